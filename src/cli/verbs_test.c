/* SPDX-License-Identifier: Apache-2.0 */
/* What holds for every verb, and the words that complete a command line. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/unit.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/completion.h"
#include "ctl/paths.h"

/* ---- the tables ---- */

static void check_table(const struct opts_cmd *cmd)
{
	assert_non_null(cmd->summary);
	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++) {
		if (!o->help || !*o->help || o->help[strlen(o->help) - 1] == '.')
			fail_msg("%s --%s: help is a line without a full stop", cmd->name, o->name);
		if (o->kind != OPT_KIND_FLAG && !o->metavar)
			fail_msg("%s --%s has no name for its value", cmd->name, o->name);
		for (const struct opt *p = cmd->opts; p < o; p++)
			if (strcmp(p->name, o->name) == 0 || (p->letter && p->letter == o->letter))
				fail_msg("%s has --%s twice, or its letter", cmd->name, o->name);
	}
}

static void test_tables(void **state)
{
	char want[64];

	for (const struct verb *v = cli_verbs; v->name; v++) {
		if (!v->summary) {
			assert_null(v->cmd);
			continue;
		}
		if (!v->cmd)
			fail_msg("viv %s is listed, and has no table", v->name);
		snprintf(want, sizeof(want), "viv %s", v->name);
		assert_string_equal(v->cmd->name, want);
		check_table(v->cmd);
		struct opts_action a;
		for (unsigned i = 0; v->cmd->action && v->cmd->action(i, &a); i++) {
			assert_true(*a.name && *a.summary);
			if (!a.cmd)
				continue;
			check_table(a.cmd);
			snprintf(want, sizeof(want), "viv %s %s", v->name, a.name);
			assert_string_equal(a.cmd->name, want);
		}
	}
}

/* ---- completion ---- */

/* The words of @line, at single spaces; what is printed for the last one, without the helps. */
static const char *words_of(const char *line)
{
	static char got[8192];
	char copy[256], *words[32], *p = copy;
	char *text = NULL, *to = got;
	size_t size;
	unsigned n = 0;
	FILE *out = open_memstream(&text, &size);

	snprintf(copy, sizeof(copy), "%s", line);
	while (p)
		words[n++] = strsep(&p, " ");
	completion_words(words, n, out);
	fclose(out);
	for (const char *q = text; *q;) {
		size_t len = strcspn(q, "\t\n"), all = strcspn(q, "\n");

		assert_true((size_t)(to - got) + len + 2 < sizeof(got));
		if (to != got)
			*to++ = ' ';
		memcpy(to, q, len);
		to += len;
		q += all + 1;
	}
	*to = 0;
	free(text);
	return got;
}

static void make_home(void)
{
	static const char *const dirs[] = { "/vms",	    "/vms/alpha", "/vms/beta",
					    "/vms/.hidden", "/images",	  "/images/debian",
					    "/run",	    "/run/.labs", "/run/.labs/training" };
	static char home[] = "/tmp/viv-verbs-XXXXXX";
	char path[128];

	assert_non_null(mkdtemp(home));
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), "%s%s", home, dirs[i]);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	setenv("VIVARIUM_HOME", home, 1);
}

static void remove_home(void)
{
	struct error err;

	assert_int_equal(paths_remove_tree(getenv("VIVARIUM_HOME"), &err), 0);
}

// clang-format off
static const struct { const char *line, *want; } cases[] = {
	{ "viv",                             "" },
	{ "viv pau",                         "pause" },
	{ "viv vm",                          "" }, /* internal ones are not offered */
	{ "viv vm --",                       "" },
	{ "viv nosuchverb ",                 "" },
	{ "viv help pau",                    "pause" },
	{ "viv help pause ",                 "" },
	{ "viv run --eng",                   "--engine" },
	{ "viv run --engine ",               "auto kvm dbt" },
	{ "viv run --engine=d",              "--engine=dbt" },
	{ "viv run --nosuch=d",              "" },
	{ "viv run --detach=",               "" },
	{ "viv run --kernel ",               ":files" },
	{ "viv run --kernel=",               ":files" },
	{ "viv run --disk ",                 ":files" },
	{ "viv run --name ",                 "" }, /* a new name */
	{ "viv run --mem ",                  "" },
	{ "viv run --net n",                 "nat none" },
	{ "viv run ",                        "debian" },
	{ "viv run -d ",                     "debian" },
	{ "viv run --mem 1G ",               "debian" },
	{ "viv run --mem=1G ",               "debian" },
	{ "viv run debian ",                 "" },
	{ "viv run debian -- --eng",         "" }, /* the guest's command */
	{ "viv stop ",                       "alpha beta" },
	{ "viv stop -- ",                    "alpha beta" },
	{ "viv stop -f alpha b",             "beta" },
	{ "viv start alpha ",                "" },
	{ "viv fork -n ",                    "" },
	{ "viv fork -n 3 a",                 "alpha" },
	{ "viv fork -n3 a",                  "alpha" },
	{ "viv list ",                       "" },
	{ "viv list --",                     "--json --help" },
	{ "viv image cr",                    "create" },
	{ "viv image rm ",                   "debian" },
	{ "viv image info ",                 ":files" },
	{ "viv image create --compression ", "zlib zstd" },
	{ "viv image create f ",             "" },
	{ "viv image convert a ",            ":files" },
	{ "viv image nosuch ",               "" },
	{ "viv snapshot cre",                "create" },
	{ "viv snapshot create ",            "alpha beta" },
	{ "viv snapshot --json create ",     "alpha beta" },
	{ "viv snapshot list alpha ",        "" },
	{ "viv snapshot export alpha s ",    ":files" },
	{ "viv net capture -o ",             ":files" },
	{ "viv net show --lab ",             "training" },
	{ "viv down ",                       "training :files" },
	{ "viv completion ",                 "bash zsh fish" },
};
// clang-format on

static void test_words(void **state)
{
	make_home();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *got = words_of(cases[i].line);

		if (strcmp(got, cases[i].want) != 0)
			fail_msg("%s: \"%s\", not \"%s\"", cases[i].line, got, cases[i].want);
	}
	remove_home();
}

/* Each option of each verb is offered, and no line that is odd does harm. */
static void test_all_options(void **state)
{
	char line[128];

	for (const struct verb *v = cli_verbs; v->name; v++) {
		for (const struct opt *o = v->cmd ? v->cmd->opts : NULL;
		     o && o->kind != OPT_KIND_END; o++) {
			if (v->cmd->action)
				continue;
			snprintf(line, sizeof(line), "viv %s --%s", v->name, o->name);
			if (!strstr(words_of(line), o->name))
				fail_msg("%s is not offered", line);
			snprintf(line, sizeof(line), "viv %s --%s ", v->name, o->name);
			words_of(line);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_all_options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
