/* SPDX-License-Identifier: Apache-2.0 */
/* Each content once; what anything needs stays, whatever is removed in which order. */
#include "base/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/store.h"
#include "ctl/migrate_claim.h"
#include "ctl/paths.h"

#define ABC                                                                                        \
	"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" /* FIPS 180-4's example */

static char home[] = "/tmp/viv-store-XXXXXX";

/* ---- a store ---- */

static const char *at(const char *below)
{
	static char path[4][300];
	static unsigned i;
	char *p = path[i++ % 4];

	snprintf(p, 300, "%s/%s", home, below);
	return p;
}

static void put(const char *below, const char *text)
{
	char dir[300];

	snprintf(dir, sizeof(dir), "%s", at(below));
	*strrchr(dir, '/') = 0;
	assert_int_equal(paths_make(dir, NULL), 0);
	FILE *f = fopen(at(below), "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void image(const char *name, const char *disk)
{
	char file[100];

	snprintf(file, sizeof(file), "images/%s/image.json", name);
	put(file, "{\"format\": 1}");
	snprintf(file, sizeof(file), "images/%s/disk.raw", name);
	put(file, disk);
}

static void seal(const char *name)
{
	char dir[100];
	struct error err;

	snprintf(dir, sizeof(dir), "images/%s", name);
	if (store_seal(at(dir), &err) < 0)
		fail_msg("%s", err.text);
}

static bool exists(const char *below)
{
	return access(at(below), F_OK) == 0;
}

static ino_t inode(const char *below)
{
	struct stat st;

	assert_int_equal(stat(at(below), &st), 0);
	return st.st_ino;
}

static char gone[10][STORE_HEX + 1];
static unsigned ngone;

static void on_gone(void *arg, const char *what, uint64_t bytes)
{
	snprintf(gone[ngone++ % 10], sizeof(gone[0]), "%s", what);
}

static int collect(bool is_dry)
{
	struct error err;

	ngone = 0;
	return store_collect(is_dry, on_gone, NULL, &err);
}

static int set_up(void **state)
{
	strcpy(strrchr(home, '-'), "-XXXXXX");
	return !mkdtemp(home) || setenv("VIVARIUM_HOME", home, 1);
}

static int tear_down(void **state)
{
	return paths_remove_tree(home, NULL);
}

/* ---- tests ---- */

static void test_parse(void **state)
{
	static const char *const good[] = { ABC "  disk.raw\n", ABC "  a\n" ABC "  b\n" };
	static const char *const bad[] = {
		"",
		"\n",
		ABC,
		ABC "\n",
		ABC "  \n",
		ABC "  a",
		ABC " a\n",
		ABC "  b\n" ABC "  a\n",
		ABC "  a\n" ABC "  a\n",
		ABC "  ../a\n",
		ABC "  .a\n",
		ABC "  digests\n",
		"BA" ABC "  a\n",
		ABC "  a/b\n",
		"g" ABC "  a\n",
		ABC "  a234567890123456789012345678901234567890123456789012345678901234\n",
		ABC "  a\n" ABC "  b\n" ABC "  c\n" ABC "  d\n" ABC "  e\n" ABC "  f\n" ABC
		    "  g\n" ABC "  h\n" ABC "  i\n",
	};
	struct store_digests d;
	struct error err;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(store_parse(good[i], strlen(good[i]), &d, &err), 0);
	assert_int_equal(d.n, 2);
	assert_string_equal(d.files[1].name, "b");
	assert_string_equal(d.files[1].hex, ABC);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (store_parse(bad[i], strlen(bad[i]), &d, &err) != -EINVAL)
			fail_msg("%s was taken", bad[i]);
	assert_int_equal(store_parse(ABC "  a\0b\n", STORE_HEX + 6, &d, &err), -EINVAL);
}

/* A hole and the zeros that it stands for are one content. */
static void test_hash(void **state)
{
	char a[STORE_HEX + 1], b[STORE_HEX + 1];
	static char zeros[3 * MIB + 5];
	struct error err;

	put("abc", "abc");
	assert_int_equal(store_hash(at("abc"), a, &err), 0);
	assert_string_equal(a, ABC);
	put("empty", "");
	assert_int_equal(store_hash(at("empty"), a, &err), 0);
	assert_string_equal(a, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	memcpy(zeros + 2 * MIB, "data", 4);
	int whole = open(at("whole"), O_RDWR | O_CREAT, 0600),
	    holes = open(at("holes"), O_RDWR | O_CREAT, 0600);
	assert_int_equal(write(whole, zeros, sizeof(zeros)), sizeof(zeros));
	assert_int_equal(ftruncate(holes, sizeof(zeros)), 0);
	assert_int_equal(pwrite(holes, "data", 4, 2 * MIB), 4);
	close(whole);
	close(holes);
	assert_int_equal(store_hash(at("whole"), a, &err), 0);
	assert_int_equal(store_hash(at("holes"), b, &err), 0);
	assert_string_equal(a, b);
	assert_int_equal(store_hash(at("none"), b, &err), -ENOENT);
	assert_int_equal(store_hash(home, b, &err), -EINVAL);
}

static void test_once(void **state)
{
	struct store_digests d, e;
	struct error err;

	image("a", "abc");
	image("b", "abc");
	image("c", "other");
	assert_int_equal(store_read("a", &d, &err), -ENOENT);
	assert_null(store_blob("a", "disk.raw"));
	seal("a");
	seal("b");
	seal("c");
	seal("b"); /* again */
	assert_int_equal(store_read("a", &d, &err), 0);
	assert_int_equal(store_read("b", &e, &err), 0);
	assert_string_equal(d.image, e.image);
	assert_string_equal(d.files[0].name, "disk.raw");
	assert_string_equal(d.files[0].hex, ABC);
	assert_int_equal(inode("images/a/disk.raw"), inode("images/b/disk.raw"));
	assert_int_equal(inode("images/a/disk.raw"), inode("images/.blobs/" ABC));
	assert_int_not_equal(inode("images/a/disk.raw"), inode("images/c/disk.raw"));
	assert_false(exists("images/b/disk.raw.new"));
	_cleanup_free_ char *blob = store_blob("b", "disk.raw");
	assert_string_equal(blob, at("images/.blobs/" ABC));
	assert_null(store_blob("b", "vmlinuz"));
}

/* What is changed afterwards is known no more; what changes in silence is found. */
static void test_changed(void **state)
{
	struct store_digests d;
	struct error err;
	struct stat st;

	image("a", "abc");
	assert_int_equal(store_verify("a", &err), -ENOENT);
	seal("a");
	assert_int_equal(store_verify("a", &err), 0);
	assert_int_equal(stat(at("images/a/disk.raw"), &st), 0);
	put("images/a/disk.raw", "abd"); /* the blob as well: it is that file */
	const struct timespec back[2] = { st.st_atim, st.st_mtim };
	assert_int_equal(utimensat(AT_FDCWD, at("images/a/disk.raw"), back, 0), 0);
	assert_int_equal(store_read("a", &d, &err), 0);
	assert_int_equal(store_verify("a", &err), -EBADMSG);
	assert_non_null(strstr(err.text, "disk.raw"));
	/* a file in its place */
	assert_int_equal(unlink(at("images/a/disk.raw")), 0);
	put("images/a/disk.raw", "abc");
	assert_int_equal(store_read("a", &d, &err), -ENOENT);
	assert_null(store_blob("a", "disk.raw"));
}

static void test_collect(void **state)
{
	struct error err;

	assert_int_equal(collect(false), 0); /* of nothing */
	image("a", "abc");
	image("b", "abc");
	seal("a");
	seal("b");
	put("vms/off/machine.json", "{\"kernel\": \"/x/images/.blobs/" ABC "\", \"unknown\": 1}");
	assert_int_equal(collect(false), 0);
	assert_int_equal(ngone, 0);
	assert_int_equal(store_remove("a", &err), 0);
	assert_int_equal(collect(false), 0);
	assert_int_equal(ngone, 0);
	assert_int_equal(store_remove("b", &err), 0);
	assert_int_equal(store_remove("b", &err), -ENOENT);
	/* the machine needs the disk; nobody the descriptions */
	assert_int_equal(collect(true), 0);
	assert_int_equal(ngone, 1);
	assert_string_not_equal(gone[0], ABC);
	assert_true(exists("images/.blobs/" ABC));
	assert_int_equal(collect(false), 0);
	assert_int_equal(ngone, 1);
	assert_int_equal(collect(false), 0);
	assert_int_equal(ngone, 0);
	/* a snapshot's link */
	assert_int_equal(link(at("images/.blobs/" ABC), at("vms/off/kept")), 0);
	put("vms/off/machine.json", "{}");
	assert_int_equal(collect(false), 0);
	assert_int_equal(ngone, 0);
	assert_int_equal(unlink(at("vms/off/kept")), 0);
	assert_int_equal(collect(true), 0);
	assert_int_equal(ngone, 1);
	assert_string_equal(gone[0], ABC);
	assert_true(exists("images/.blobs/" ABC));
	assert_int_equal(collect(false), 0);
	assert_false(exists("images/.blobs/" ABC));
}

/* A description that can't be read may need anything. */
static void test_doubt(void **state)
{
	struct error err;

	image("a", "abc");
	seal("a");
	assert_int_equal(store_remove("a", &err), 0);
	put("vms/odd/x", "");
	assert_int_equal(mkdir(at("vms/odd/machine.json"), 0700), 0);
	assert_true(collect(false) < 0);
	assert_int_equal(ngone, 0);
	assert_true(exists("images/.blobs/" ABC));
}

/* A machine that was made of an image without digests keeps it. */
static void test_used_by_name(void **state)
{
	struct error err;
	char text[400];

	image("a", "abc");
	image("a2", "abc");
	snprintf(text, sizeof(text), "{\"disks\": [{\"path\": \"%s\"}]}", at("images/a2/disk.raw"));
	put("vms/m/machine.json", text);
	assert_int_equal(store_remove("a2", &err), -EBUSY);
	assert_non_null(strstr(err.text, "\"m\""));
	/* One that is on its way here. */
	image("a3", "abc");
	snprintf(text, sizeof(text), "{\"disks\": [{\"path\": \"%s\"}]}", at("images/a3/disk.raw"));
	put("vms/n/" MIGRATE_INCOMING, text);
	assert_int_equal(store_remove("a3", &err), -EBUSY);
	assert_non_null(strstr(err.text, "\"n\""));
	assert_int_equal(store_remove("a", &err), 0);
	assert_false(exists("images/a"));
	assert_true(exists("images/a2/disk.raw"));
}

static void test_leftovers(void **state)
{
	put("images/.a.lock", "");
	put("images/.a.abcdef/disk.raw", "half");
	put("images/.b.abcdef/old/disk.raw", "an image that is being replaced");
	put("images/.c.12345/x", "no such name");
	int lock = open(at("images/.a.lock"), O_RDONLY);

	assert_int_equal(flock(lock, LOCK_EX), 0);
	assert_int_equal(collect(false), 0);
	assert_int_equal(ngone, 0);
	close(lock);
	assert_int_equal(collect(true), 0);
	assert_int_equal(ngone, 1);
	assert_true(exists("images/.a.abcdef"));
	assert_int_equal(collect(false), 0);
	assert_false(exists("images/.a.abcdef"));
	assert_true(exists("images/.b.abcdef/old/disk.raw") && exists("images/.c.12345/x"));
}

/* ".a3.9.lock" has the form of a builder's folder of an image "a3". */
static void test_lock_is_no_leftover(void **state)
{
	put("images/.a3.9.lock", "");
	put("images/.a3.9.abcdef/disk.raw", "half");
	int lock = open(at("images/.a3.9.lock"), O_RDONLY);

	assert_int_equal(flock(lock, LOCK_EX), 0);
	assert_int_equal(collect(false), 0);
	assert_int_equal(ngone, 0);
	assert_true(exists("images/.a3.9.lock") && exists("images/.a3.9.abcdef/disk.raw"));
	close(lock);
	assert_int_equal(collect(false), 0);
	assert_false(exists("images/.a3.9.abcdef"));
	assert_true(exists("images/.a3.9.lock"));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_parse),	      T(test_hash),	 T(test_once),
		T(test_changed),      T(test_collect),	 T(test_doubt),
		T(test_used_by_name), T(test_leftovers), T(test_lock_is_no_leftover),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
