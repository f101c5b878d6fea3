/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "base/unit.h"
#include "base/opts.h"

struct args {
	bool is_detached, use_rm;
	const char *name;
	struct opt_list disks;
	uint64_t cpus, mem_bytes;
	int64_t timeout_ns;
	int engine;
};

static const char *const engines[] = { "auto", "kvm", "dbt", NULL };
static const struct opt rows[] = {
	OPT_FLAG_L(struct args, is_detached, "detach", 'd', "run in the background"),
	OPT_FLAG(struct args, use_rm, "rm", "remove it afterwards"),
	OPT_STRING_L(struct args, name, "name", 'n', "NAME", "what to call it"),
	OPT_LIST(struct args, disks, "disk", "FILE[,ro][,format=F]", "a disk"),
	OPT_UINT_L(struct args, cpus, "cpus", 'c', "N", "virtual CPUs", 1, 255),
	OPT_SIZE(struct args, mem_bytes, "mem", "SIZE", "guest memory", 1 * MIB, 1024 * GIB),
	OPT_DURATION(struct args, timeout_ns, "timeout", "TIME", "give up after", 0, 0),
	OPT_CHOICE(struct args, engine, "engine", "ENGINE", "what executes the guest", engines),
	OPT_END,
};
static const struct opts_cmd cmd = {
	.name = "viv run",
	.usage = "[IMAGE] [-- CMD...]",
	.summary = "run a machine",
	.opts = rows,
	.max_args = 1,
	.takes_command = true,
};

static struct args a;
static struct opts_rest rest;
static struct error err;

#define PARSE(...)                                                                                 \
	({                                                                                         \
		static char *argv_[] = { "run", __VA_ARGS__, NULL };                               \
		a = (struct args){ .cpus = 2 };                                                    \
		err.text[0] = 0;                                                                   \
		opts_parse(&cmd, (int)ARRAY_SIZE(argv_) - 1, argv_, &a, &rest, &err);              \
	})

static void all_kinds(void **state)
{
	assert_int_equal(PARSE("debian", "--mem", "512M", "--cpus=4", "--disk", "a,ro", "-dn", "x",
			       "--disk=b", "--timeout", "300ms", "--engine", "dbt", "--rm",
			       "--no-rm", "--", "uname", "-a"),
			 OPTS_OK);
	assert_int_equal(a.mem_bytes, 512 * MIB);
	assert_int_equal(a.cpus, 4);
	assert_true(a.is_detached);
	assert_false(a.use_rm);
	assert_string_equal(a.name, "x");
	assert_int_equal(a.disks.n, 2);
	assert_string_equal(a.disks.v[1], "b");
	assert_null(a.disks.v[2]);
	assert_int_equal(a.timeout_ns, 300000000);
	assert_int_equal(a.engine, 2);
	assert_int_equal(rest.nargs, 1);
	assert_string_equal(rest.args[0], "debian");
	assert_int_equal(rest.ncommand, 2);
	assert_string_equal(rest.command[1], "-a");
	assert_null(rest.command[2]);
	opts_free(&cmd, &a, &rest);
	opts_free(&cmd, &a, &rest);

	assert_int_equal(PARSE("-c3", "-nfoo"), OPTS_OK);
	assert_int_equal(a.cpus, 3);
	assert_string_equal(a.name, "foo");
	assert_null(rest.command);
	opts_free(&cmd, &a, &rest);
	assert_int_equal(PARSE("--help"), OPTS_HELP);
	opts_free(&cmd, &a, &rest);
	assert_int_equal(PARSE("-dh"), OPTS_HELP);
	opts_free(&cmd, &a, &rest);
}

#define ASSERT_FAILS(text_, ...)                                                                   \
	do {                                                                                       \
		assert_int_equal(PARSE(__VA_ARGS__), -EINVAL);                                     \
		if (!strstr(err.text, text_))                                                      \
			fail_msg("'%s' lacks '%s'", err.text, text_);                              \
	} while (0)

static void errors_are_sentences(void **state)
{
	ASSERT_FAILS("viv run has no option '--dsik', did you mean '--disk'?", "--dsik", "x");
	ASSERT_FAILS("did you mean '--detach'?", "--det");
	ASSERT_FAILS("did you mean '--mem'?", "--mme=1G");
	ASSERT_FAILS("'viv run --help' lists them", "--frobnicate");
	ASSERT_FAILS("has no option '-z'", "-z");
	ASSERT_FAILS("--name needs a value: --name NAME", "--name");
	ASSERT_FAILS("--name needs a value", "--name", "--", "x");
	ASSERT_FAILS("--rm takes no value", "--rm=1");
	ASSERT_FAILS("--cpus wants a number such as 4, not 'two'", "--cpus", "two");
	ASSERT_FAILS("--cpus 256 is out of range: it must be 1 to 255", "--cpus", "256");
	ASSERT_FAILS("--mem 1K is out of range: it must be 1M to 1T", "--mem", "1K");
	ASSERT_FAILS("--mem 99999999999999999999", "--mem", "99999999999999999999");
	ASSERT_FAILS("--mem wants a size such as 512M", "--mem", "512X");
	ASSERT_FAILS("--timeout wants a duration such as 300ms or 5s, not '5'", "--timeout", "5");
	ASSERT_FAILS("'bdt' is unknown, did you mean 'dbt'? (auto, kvm, dbt)", "--engine", "bdt");
	ASSERT_FAILS("must be one of auto, kvm, dbt", "--engine", "qemu");
	ASSERT_FAILS("'b' is one argument too many: viv run [IMAGE]", "a", "b");
	/* Nothing is left behind by a failure after a list was filled (leak checker). */
	ASSERT_FAILS("has no option", "--disk", "a", "--zzzzzzzz");
}

static void values(void **state)
{
	uint64_t v = 77;
	int64_t t = 77;
	char buf[32];

	assert_int_equal(opts_parse_size("0", &v), 0);
	assert_int_equal(v, 0);
	assert_int_equal(opts_parse_size("2g", &v), 0);
	assert_int_equal(v, 2 * GIB);
	assert_int_equal(opts_parse_size("4KiB", &v), 0);
	assert_int_equal(v, 4096);
	assert_int_equal(opts_parse_size("0x1000", &v), 0);
	assert_int_equal(v, 4096);
	v = 77;
	assert_int_equal(opts_parse_size("", &v), -EINVAL);
	assert_int_equal(opts_parse_size("-1", &v), -EINVAL);
	assert_int_equal(opts_parse_size("1.5G", &v), -EINVAL);
	assert_int_equal(opts_parse_size(" 1", &v), -EINVAL);
	assert_int_equal(opts_parse_size("1Mx", &v), -EINVAL);
	assert_int_equal(opts_parse_size("18014398509481984K", &v), -ERANGE);
	assert_int_equal(opts_parse_uint("18446744073709551616", &v), -ERANGE);
	assert_int_equal(v, 77);
	assert_int_equal(opts_parse_uint("18446744073709551615", &v), 0);
	assert_true(v == UINT64_MAX);

	assert_int_equal(opts_parse_duration("5s", &t), 0);
	assert_int_equal(t, 5000000000);
	assert_int_equal(opts_parse_duration("2h", &t), 0);
	assert_int_equal(t, 7200000000000);
	assert_int_equal(opts_parse_duration("0", &t), 0);
	assert_int_equal(t, 0);
	t = 77;
	assert_int_equal(opts_parse_duration("10", &t), -EINVAL);
	assert_int_equal(opts_parse_duration("10 s", &t), -EINVAL);
	assert_int_equal(opts_parse_duration("9999999999h", &t), -ERANGE);
	assert_int_equal(t, 77);

	assert_string_equal(opts_format_size(512 * MIB, buf), "512M");
	assert_string_equal(opts_format_size(1536, buf), "1536");
	assert_string_equal(opts_format_size(0, buf), "0");
	assert_string_equal(opts_format_size(UINT64_MAX, buf), "18446744073709551615");
}

static void help_shows_every_row(void **state)
{
	char *text = NULL;
	size_t len = 0;
	FILE *out = open_memstream(&text, &len);

	opts_help(&cmd, out);
	fclose(out);
	assert_non_null(strstr(text, "Usage: viv run [OPTIONS] [IMAGE] [-- CMD...]\n"));
	assert_non_null(strstr(text, "  -d, --detach                run in the background\n"));
	assert_non_null(strstr(text, "--engine auto|kvm|dbt"));
	for (const struct opt *o = rows; o->kind != OPT_KIND_END; o++) {
		assert_non_null(strstr(text, o->name));
		assert_non_null(strstr(text, o->help));
	}
	free(text);
}

static void verbs_stop_at_arguments(void **state)
{
	static const struct opts_cmd top = {
		.name = "viv", .usage = "VERB", .summary = "s", .opts = rows, .stops_at_args = true
	};
	char *argv[] = { "viv", "-d", "run", "--whatever", NULL };

	a = (struct args){ 0 };
	assert_int_equal(opts_parse(&top, 4, argv, &a, &rest, &err), OPTS_OK);
	assert_true(a.is_detached);
	assert_int_equal(rest.next, 2);
	opts_free(&top, &a, &rest);
	static const char *const verbs[] = { "run", "start", "snapshot", "stop", NULL };
	assert_string_equal(opts_suggest("snap", verbs), "snapshot");
	assert_string_equal(opts_suggest("rnu", verbs), "run");
	assert_string_equal(opts_suggest("sart", verbs), "start");
	assert_null(opts_suggest("migrate", verbs));
	assert_null(opts_suggest("", verbs));
}

static void arguments_after_dashes(void **state)
{
	static const struct opts_cmd plain = {
		.name = "viv stop", .usage = "NAME", .summary = "s", .opts = rows, .min_args = 1, .max_args = 2
	};
	char *argv[] = { "stop", "--", "-x", "--y", NULL };

	a = (struct args){ 0 };
	assert_int_equal(opts_parse(&plain, 4, argv, &a, &rest, &err), OPTS_OK);
	assert_int_equal(rest.nargs, 2);
	assert_string_equal(rest.args[1], "--y");
	opts_free(&plain, &a, &rest);
	assert_int_equal(opts_parse(&plain, 1, argv, &a, &rest, &err), -EINVAL);
	assert_string_equal(err.text, "viv stop needs an argument: viv stop NAME");
}

static void subvalues(void **state)
{
	const char *cur = "a,,b.img,ro,format=qcow2", *value;
	char key[16];

	assert_int_equal(opts_subvalue(&cur, key, sizeof(key), &value), 1);
	assert_string_equal(key, "a,b.img");
	assert_null(value);
	assert_int_equal(opts_subvalue(&cur, key, sizeof(key), &value), 1);
	assert_string_equal(key, "ro");
	assert_int_equal(opts_subvalue(&cur, key, sizeof(key), &value), 1);
	assert_string_equal(key, "format");
	assert_string_equal(value, "qcow2");
	assert_int_equal(opts_subvalue(&cur, key, sizeof(key), &value), 0);
	cur = "0123456789abcdef";
	assert_int_equal(opts_subvalue(&cur, key, sizeof(key), &value), -EINVAL);
	cur = "0123456789abcde";
	assert_int_equal(opts_subvalue(&cur, key, sizeof(key), &value), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_kinds),
		cmocka_unit_test(errors_are_sentences),
		cmocka_unit_test(values),
		cmocka_unit_test(help_shows_every_row),
		cmocka_unit_test(verbs_stop_at_arguments),
		cmocka_unit_test(arguments_after_dashes),
		cmocka_unit_test(subvalues),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
