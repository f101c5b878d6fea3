/* SPDX-License-Identifier: Apache-2.0 */
/* What is said reaches cloud-init as the same text, whatever it looks like to YAML; what can't be right is refused. */
#include "base/unit.h"

#include <crypt.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "block/iso9660.h"
#include "cli/cloudinit.h"

#define KEY "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

/* ---- reading YAML ---- */

struct doc {
	yaml_parser_t parser;
	yaml_document_t doc;
};

static void load(struct doc *d, const struct bytes *text)
{
	assert_true(yaml_parser_initialize(&d->parser));
	yaml_parser_set_input_string(&d->parser, text->data, text->len);
	assert_true(yaml_parser_load(&d->parser, &d->doc));
}

static void unload(struct doc *d)
{
	yaml_document_delete(&d->doc);
	yaml_parser_delete(&d->parser);
}

/* The value of @key in @map (NULL: the root), or NULL. */
static yaml_node_t *get(struct doc *d, yaml_node_t *map, const char *key)
{
	yaml_node_t *m = map ? map : yaml_document_get_root_node(&d->doc);

	assert_int_equal(m->type, YAML_MAPPING_NODE);
	for (yaml_node_pair_t *p = m->data.mapping.pairs.start; p < m->data.mapping.pairs.top; p++) {
		yaml_node_t *k = yaml_document_get_node(&d->doc, p->key);

		if (strcmp((char *)k->data.scalar.value, key) == 0)
			return yaml_document_get_node(&d->doc, p->value);
	}
	return NULL;
}

/* A text, which is quoted: without that "no" is a boolean. */
static void check_text(const yaml_node_t *n, const char *want)
{
	assert_non_null(n);
	assert_int_equal(n->type, YAML_SCALAR_NODE);
	assert_int_equal(n->data.scalar.style, YAML_DOUBLE_QUOTED_SCALAR_STYLE);
	assert_string_equal((const char *)n->data.scalar.value, want);
}

static void check_plain(const yaml_node_t *n, const char *want)
{
	assert_non_null(n);
	assert_int_equal(n->data.scalar.style, YAML_PLAIN_SCALAR_STYLE);
	assert_string_equal((const char *)n->data.scalar.value, want);
}

static yaml_node_t *item(struct doc *d, yaml_node_t *list, unsigned i)
{
	assert_non_null(list);
	assert_int_equal(list->type, YAML_SEQUENCE_NODE);
	assert_true(list->data.sequence.items.start + i < list->data.sequence.items.top);
	return yaml_document_get_node(&d->doc, list->data.sequence.items.start[i]);
}

/* ---- files ---- */

static char folder[] = "/tmp/viv-cloudinit-XXXXXX";

static const char *file(const char *name, const char *text)
{
	static char path[200];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
	return path;
}

static int add(struct cloudinit *ci, const char *what, const char *path)
{
	char spec[300];
	struct error err;

	snprintf(spec, sizeof(spec), "%s=%s", what, path);
	return cloudinit_add(ci, spec, &err);
}

/* ---- tests ---- */

static void test_user_data(void **state)
{
	struct cloudinit ci = { 0 };
	_cleanup_bytes_ struct bytes out = { 0 };
	struct error err;
	struct doc d;

	assert_int_equal(cloudinit_add(&ci, "user=no,hostname=web-1.example,packages=nginx+curl,package=g++",
				       &err),
			 0);
	assert_int_equal(cloudinit_add(&ci, "password=a,,b: # \"'%", &err), 0);
	assert_int_equal(
		add(&ci, "ssh-key",
		    file("keys", "# mine\n\n" KEY
				 " ann: #\"'\\ \303\244\n  restrict,command=\"x y\" " KEY "\r\n")),
		0);
	assert_int_equal(cloudinit_user_data(&ci, &out, &err), 0);
	assert_memory_equal(out.data, "#cloud-config\n", 14);
	load(&d, &out);
	check_text(get(&d, get(&d, NULL, "user"), "name"), "no");
	assert_null(get(&d, NULL, "disable_root"));
	yaml_node_t *keys = get(&d, NULL, "ssh_authorized_keys");
	check_text(item(&d, keys, 0), KEY " ann: #\"'\\ \303\244");
	check_text(item(&d, keys, 1), "restrict,command=\"x y\" " KEY);
	check_text(get(&d, NULL, "password"), ci.password_hash);
	check_plain(get(&d, get(&d, NULL, "chpasswd"), "expire"), "false");
	check_text(item(&d, get(&d, NULL, "packages"), 1), "curl");
	check_text(item(&d, get(&d, NULL, "packages"), 2), "g++");
	check_plain(get(&d, NULL, "package_update"), "true");
	unload(&d);
	/* the hash, and nothing but the hash */
	struct crypt_data data = { 0 };
	assert_memory_equal(ci.password_hash, "$6$", 3);
	assert_string_equal(crypt_rn("a,b: # \"'%", ci.password_hash, &data, sizeof(data)),
			    ci.password_hash);
	assert_null(memmem(out.data, out.len, "a,b", 3));
	cloudinit_free(&ci);
}

static void test_root_and_nobody(void **state)
{
	struct cloudinit ci = { 0 };
	_cleanup_bytes_ struct bytes out = { 0 }, none = { 0 };
	struct error err;
	struct doc d;

	assert_int_equal(cloudinit_add(&ci, "user=root", &err), 0);
	assert_int_equal(cloudinit_user_data(&ci, &out, &err), 0);
	load(&d, &out);
	check_plain(get(&d, NULL, "disable_root"), "false");
	unload(&d);
	cloudinit_free(&ci);
	assert_int_equal(cloudinit_user_data(&ci, &none, &err), 0);
	load(&d, &none);
	assert_null(get(&d, NULL, "user"));
	assert_null(get(&d, NULL, "packages"));
	assert_null(get(&d, NULL, "password"));
	unload(&d);
}

static void test_refused(void **state)
{
	static const char *const bad[] = {
		"user=Ann",
		"user=",
		"user=1a",
		"user=a b",
		"user=-a",
		"user=a:b",
		"user=a2345678901234567890123456789012x",
		"hostname=",
		"hostname=-a",
		"hostname=a-",
		"hostname=a..b",
		"hostname=a.",
		"hostname=a_b",
		"hostname=a b",
		"hostname=a2345678901234567890123456789012345678901234567890123456789012345",
		"packages=",
		"packages=a+",
		"packages=+a",
		"packages=a b",
		"packages=-a",
		"package=a;b",
		"password=",
		"password=a\nb",
		"user=a,user=b",
		"password=a,password=b",
		"user",
		"",
		"nothing=x",
		"ssh-key=/nonexistent",
	};
	struct error err;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct cloudinit ci = { 0 };

		if (cloudinit_add(&ci, bad[i], &err) >= 0)
			fail_msg("%s was taken", bad[i]);
		assert_memory_equal(err.text, "--cloud-init: ", 14);
		cloudinit_free(&ci);
	}
	struct cloudinit ci = { 0 };
	assert_int_equal(add(&ci, "ssh-key", file("private", "-----BEGIN OPENSSH PRIVATE KEY-----\n")),
			 -EINVAL);
	assert_int_equal(add(&ci, "ssh-key", file("empty", "# none\n")), -EINVAL);
	assert_int_equal(add(&ci, "ssh-key", file("other", "ssh-ed25519 short\n")), -EINVAL);
	assert_int_equal(add(&ci, "ssh-key", file("control", KEY " a\x1b[0m\n")), -EINVAL);
	assert_int_equal(add(&ci, "password-file", file("none", "\n")), -EINVAL);
	cloudinit_free(&ci);
}

/* Nothing that is said of a refused password has any of it, and the command line has it no more. */
static void test_passwords_are_not_told(void **state)
{
	static const char *const lines[] = { "password=first,second", "user=B,password=first",
					     "password=a,first=second", "password=first,password=second",
					     "password=first,,second,user" };
	struct error err;

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		struct cloudinit ci = { 0 };
		char spec[100];

		assert_true(cloudinit_add(&ci, lines[i], &err) < 0);
		assert_null(strstr(err.text, "first"));
		assert_null(strstr(err.text, "second"));
		snprintf(spec, sizeof(spec), "%s", lines[i]);
		cloudinit_hide(spec);
		assert_int_equal(strspn(spec, "*"), strlen(lines[i]));
		cloudinit_free(&ci);
	}
	char other[] = "user=ann";

	cloudinit_hide(other);
	assert_string_equal(other, "user=ann");
}

static void test_password_file(void **state)
{
	struct cloudinit ci = { 0 };
	struct crypt_data data = { 0 };

	assert_int_equal(add(&ci, "password-file", file("password", "secret\n")), 0);
	assert_string_equal(crypt_rn("secret", ci.password_hash, &data, sizeof(data)), ci.password_hash);
	cloudinit_free(&ci);
}

static void test_own_files(void **state)
{
	struct cloudinit ci = { 0 };
	struct error err;
	char path[200];

	snprintf(path, sizeof(path), "%s", file("md", "instance-id: i-1\nlocal-hostname: x\n"));
	assert_int_equal(cloudinit_own_files(&ci, NULL, path, NULL, &err), 0);
	assert_true(ci.is_wanted && ci.meta_data && !ci.user_data);
	cloudinit_free(&ci);
	assert_int_equal(
		cloudinit_own_files(&ci, NULL, file("md", "{\"instance-id\": \"i-1\"}"), NULL, &err), 0);
	cloudinit_free(&ci);
	static const char *const bad[] = { "",
					   "x",
					   "local-hostname: x\n",
					   "instance-id:\n",
					   "instance-id: [a]\n",
					   "a: b: c\n",
					   "[instance-id]" };
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		if (cloudinit_own_files(&ci, NULL, file("md", bad[i]), NULL, &err) != -EINVAL)
			fail_msg("%s was taken", bad[i]);
		cloudinit_free(&ci);
	}
	/* one or the other */
	assert_int_equal(cloudinit_add(&ci, "user=a", &err), 0);
	assert_int_equal(cloudinit_own_files(&ci, path, NULL, NULL, &err), -EINVAL);
	cloudinit_free(&ci);
	assert_int_equal(cloudinit_add(&ci, "hostname=a", &err), 0);
	assert_int_equal(cloudinit_own_files(&ci, NULL, path, NULL, &err), -EINVAL);
	cloudinit_free(&ci);
	assert_int_equal(cloudinit_own_files(&ci, NULL, NULL, NULL, &err), 0);
	assert_false(ci.is_wanted);
}

static bool has(const struct bytes *b, const char *text)
{
	return memmem(b->data, b->len, text, strlen(text));
}

static void test_seed(void **state)
{
	struct cloudinit ci = { 0 };
	_cleanup_bytes_ struct bytes a = { 0 }, b = { 0 }, c = { 0 };
	struct error err;

	assert_int_equal(cloudinit_add(&ci, "user=ann", &err), 0);
	assert_int_equal(cloudinit_make_seed(&ci, "web", &a, &err), 0);
	assert_int_equal(cloudinit_make_seed(&ci, "web", &b, &err), 0);
	assert_true(has(&a, "local-hostname: \"web\"") && has(&a, "instance-id: \"iid-") &&
		    has(&a, "name: \"ann\""));
	assert_true(a.len == b.len && memcmp(a.data, b.data, a.len) != 0); /* another instance */
	assert_false(has(&a, "NETWORK_.;1"));
	/* a machine's name that can be no host's; files of the user's own, as they are */
	assert_int_equal(cloudinit_own_files(&ci, NULL, NULL, file("net", "version: 2\n"), &err), 0);
	assert_int_equal(cloudinit_make_seed(&ci, "web_1", &c, &err), 0);
	assert_true(has(&c, "version: 2\n") && has(&c, "NETWORK_.;1") && !has(&c, "local-hostname"));
	cloudinit_free(&ci);
}

static int set_up(void **state)
{
	return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
	char command[100];

	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_user_data),     cmocka_unit_test(test_root_and_nobody),
		cmocka_unit_test(test_refused),	      cmocka_unit_test(test_passwords_are_not_told),
		cmocka_unit_test(test_password_file), cmocka_unit_test(test_own_files),
		cmocka_unit_test(test_seed),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
