/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots that are deleted in any order, and killed meanwhile: those that are left hold what they held.
 *
 *   test_snapmerge [ROUNDS]    so many kills (default 30), each at a random moment of deleting and merging
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/host.h"
#include "block/block.h"
#include "block/image.h"
#include "ctl/paths.h"
#include "ctl/snapmerge.h"
#include "ctl/vmdisks.h"

#define RAM_BYTES  (2 * MIB)
#define DISK_BYTES (512 * KIB)
#define GRANULES   (RAM_BYTES / RAM_GRANULE_MIN)
#define KEPT_MAX   8u

struct kept {
	char name[32];
	uint8_t ram[RAM_BYTES], disk[DISK_BYTES];
};

/* A machine without CPUs. */
struct model {
	char home[64];
	struct loop *loop;
	struct vmconfig config;
	struct vmdisks disks;
	uint8_t ram[RAM_BYTES], disk[DISK_BYTES];
	uint64_t dirty[RAM_BYTES / GUEST_PAGE_SIZE / 64];
	char base[32]; /* name of the parent of the next snapshot; "": none */
	struct kept *kept[KEPT_MAX];
	unsigned nkept, counter;
	uint32_t seed;
	struct error err;
};

static unsigned rounds = 30;

static uint32_t any(struct model *m, uint32_t below)
{
	m->seed = m->seed * 1664525 + 1013904223;
	return (m->seed >> 7) % below;
}

#define ok(m, expr)                                                                                \
	do {                                                                                       \
		(m)->err.text[0] = 0;                                                              \
		if ((expr) < 0)                                                                    \
			fail_msg("%s: %s", #expr, (m)->err.text);                                  \
	} while (0)

/* ---- disks ---- */

static void on_done(struct block_req *req, int result)
{
	*(int *)req->owner = result;
}

static void transfer(struct model *m, struct block_dev *b, enum block_op op, uint64_t at, void *buf,
		     size_t len)
{
	int result = 1;
	struct iovec iov = { buf, len };
	struct block_req req = { .op = op,
				 .offset_bytes = at,
				 .len_bytes = op == BLOCK_FLUSH ? 0 : len,
				 .iov = &iov,
				 .niov = 1,
				 .done = on_done,
				 .owner = &result };

	b->ops->submit(b, &req);
	while (result > 0)
		loop_run_once(m->loop, -1);
	assert_int_equal(result, 0);
}

static struct block_dev *open_disk(struct model *m, const char *path, const char *format,
				   const char *folder, bool is_readonly)
{
	const char *const allowed[] = { folder, NULL };
	const struct block_backing_rule rule = { .paths = allowed };
	const struct block_open o = {
		.path = path, .format = format, .is_readonly = is_readonly, .backing = &rule
	};
	struct block_dev *b;

	ok(m, block_open(&b, m->loop, &o, &m->err));
	return b;
}

static void expect_disk(struct model *m, const struct vmconfig *c, const char *folder, const uint8_t *want)
{
	static uint8_t buf[DISK_BYTES];
	struct block_dev *b = open_disk(m, c->disks[0].path, c->disks[0].format, folder, true);

	transfer(m, b, BLOCK_READ, 0, buf, sizeof(buf));
	b->ops->close(b);
	assert_memory_equal(buf, want, sizeof(buf));
}

/* ---- the machine ---- */

static void work(struct model *m)
{
	struct block_dev *b = open_disk(m, m->config.disks[0].path, m->config.disks[0].format,
					m->disks.folder, false);

	for (unsigned i = 0; i < 6; i++) {
		uint64_t page = any(m, RAM_BYTES / GUEST_PAGE_SIZE),
			 at = any(m, DISK_BYTES / 512) * 512ull;
		int value = (int)any(m, 4) ? (int)any(m, 256) : 0;

		memset(m->ram + page * GUEST_PAGE_SIZE, value, GUEST_PAGE_SIZE);
		m->dirty[page / 64] |= 1ull << page % 64;
		memset(m->disk + at, value, 512);
		transfer(m, b, BLOCK_WRITE, at, m->disk + at, 512);
	}
	transfer(m, b, BLOCK_FLUSH, 0, NULL, 0);
	b->ops->close(b);
}

static bool link_base(struct model *m, struct snapstore_build *b, struct ram_index *x)
{
	struct ram_files base;

	if (!m->base[0] || snapstore_open_ram("m", m->base, &base, &m->err) < 0)
		return false;
	for (uint32_t i = 0; i < base.index.nlayers; i++) {
		_cleanup_free_ char *path = snapstore_path("m", m->base, base.index.layers[i], &m->err);

		ok(m, snapstore_add_file(b, path, base.index.layers[i], false, &m->err));
	}
	ok(m, ram_index_copy(x, &base.index, &m->err));
	ram_files_close(&base);
	return true;
}

static void write_ram(struct model *m, struct snapstore_build *b)
{
	struct ram_index x;
	struct bytes out = { 0 };
	char name[RAM_LAYER_NAME];
	bool has_base = link_base(m, b, &x);

	if (!has_base)
		ok(m, ram_index_init(&x, RAM_BYTES, &m->err));
	snprintf(name, sizeof(name), "ram-%u", m->counter);
	int layer = ram_index_add_layer(&x, name, &m->err);
	int fd = openat(b->dir_fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);

	assert_true(layer > 0 && fd >= 0);
	ok(m, ram_write_layer(&x, (unsigned)layer, fd, m->ram, has_base ? m->dirty : NULL, NULL, &m->err));
	close(fd);
	ram_index_drop_unused(&x);
	snapstore_remove_unnamed(b->dir_fd, &x);
	ok(m, ram_index_save(&x, &out, &m->err));
	ok(m, snapstore_write(b, "ram.index", out.data, out.len, &m->err));
	bytes_free(&out);
	ram_index_free(&x);
}

static void take(struct model *m)
{
	const char *names[MACHINE_MAX_DISKS];
	struct snapstore_build b;
	_cleanup_free_ char *top = NULL;
	json_t *config;

	if (m->nkept == KEPT_MAX)
		return;
	struct kept *k = malloc(sizeof(*k));

	snprintf(k->name, sizeof(k->name), "s%u", ++m->counter);
	memcpy(k->ram, m->ram, sizeof(k->ram));
	memcpy(k->disk, m->disk, sizeof(k->disk));
	ok(m, snapstore_begin(&b, "m", k->name, &m->err));
	ok(m, vmdisks_add_to(&m->disks, &b, names, &m->err));
	ok(m, snapstore_add_config(&b, &m->config, names, &config, &m->err));
	ok(m, vmdisks_new_top(&m->disks, 0, DISK_BYTES, &top, &m->err));
	ok(m, vmdisks_push(&m->disks, 0, top, &m->err));
	ok(m, vmconfig_save(&m->config, &m->err));
	write_ram(m, &b);
	json_t *info = json_pack("{s:i, s:s, s:s, s:I, s:s, s:I, s:o}", "format", SNAPSTORE_FORMAT,
				 "name", k->name, "viv", VIV_VERSION, "created", (json_int_t)m->counter,
				 "engine", "dbt", "pause_us", (json_int_t)0, "config", config);
	_cleanup_free_ char *text = json_dumps(info, 0);

	json_decref(info);
	ok(m, snapstore_write(&b, "snapshot.json", text, strlen(text), &m->err));
	ok(m, snapstore_commit(&b, &m->err));
	snapstore_end(&b);
	strcpy(m->base, k->name);
	memset(m->dirty, 0, sizeof(m->dirty));
	m->kept[m->nkept++] = k;
}

static void restore_disk(struct model *m, const char *name)
{
	char *tops[MACHINE_MAX_DISKS];
	struct snapshot_info info;

	ok(m, snapstore_load(&info, "m", name, &m->err));
	ok(m, vmdisks_go_back(&m->disks, &info, false, tops, &m->err));
	ok(m, vmdisks_went_back(&m->disks, tops, &m->err));
	snapshot_info_free(&info);
}

static void go_back(struct model *m)
{
	if (!m->nkept)
		return;
	const struct kept *k = m->kept[any(m, m->nkept)];

	restore_disk(m, k->name);
	memcpy(m->ram, k->ram, sizeof(m->ram));
	memcpy(m->disk, k->disk, sizeof(m->disk));
	memset(m->dirty, 0, sizeof(m->dirty));
	strcpy(m->base, k->name);
}

static void forget(struct model *m, unsigned i)
{
	if (!strcmp(m->base, m->kept[i]->name))
		m->base[0] = 0;
	free(m->kept[i]);
	m->kept[i] = m->kept[--m->nkept];
}

static void expect_kept(struct model *m, const struct kept *k)
{
	static uint8_t buf[RAM_GRANULE_MIN];
	struct snapshot_info info;
	struct ram_files f;

	ok(m, snapstore_load(&info, "m", k->name, &m->err));
	ok(m, snapstore_open_ram("m", k->name, &f, &m->err));
	for (uint32_t g = 0; g < f.index.ngranules; g++) {
		memset(buf, 0, sizeof(buf));
		if (f.index.layer[g])
			assert_int_equal(pread(f.fds[f.index.layer[g] - 1], buf, sizeof(buf),
					       (off_t)(g * sizeof(buf))),
					 sizeof(buf));
		assert_memory_equal(buf, k->ram + g * sizeof(buf), sizeof(buf));
	}
	ram_files_close(&f);
	_cleanup_free_ char *dir = snapstore_path("m", k->name, NULL, &m->err);

	expect_disk(m, &info.config, dir, k->disk);
	snapshot_info_free(&info);
}

static void expect_all(struct model *m)
{
	struct snapshot_info *list;
	unsigned n;

	ok(m, snapstore_list("m", &list, &n, NULL, NULL, &m->err));
	assert_int_equal(n, m->nkept);
	snapstore_list_free(list, n);
	for (unsigned i = 0; i < m->nkept; i++)
		expect_kept(m, m->kept[i]);
	expect_disk(m, &m->config, m->disks.folder, m->disk);
}

/* The files of @dir whose names begin with @prefix; hidden ones, too, for "." */
static unsigned count(struct model *m, const char *dir, const char *prefix)
{
	_cleanup_free_ char *path = paths_format(&m->err, "%s/vms/m/%s", m->home, dir);
	DIR *d = opendir(path);
	struct dirent *e;
	unsigned n = 0;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += !strncmp(e->d_name, prefix, strlen(prefix)) && strcmp(e->d_name, ".") &&
		     strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

/* ---- set up ---- */

static int no_sync(int fd)
{
	return 0;
}

static int setup(void **state)
{
	struct model *m = calloc(1, sizeof(*m));

	m->seed = 4711;
	strcpy(m->home, "/tmp/viv-merge-XXXXXX");
	assert_non_null(mkdtemp(m->home));
	setenv("VIVARIUM_HOME", m->home, 1);
	ok(m, loop_create(&m->loop, NULL, &m->err));
	host.fsync = host.fdatasync = no_sync; /* processes die here, hosts don't */
	_cleanup_free_ char *dir = paths_vm("m", NULL, &m->err);
	_cleanup_free_ char *disk = paths_vm("m", "disk.raw", &m->err);

	ok(m, paths_make(dir, &m->err));
	int fd = open(disk, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
	close(fd);
	ok(m, vmconfig_init(&m->config, &m->err));
	ok(m, vmconfig_set(&m->config.name, "m", &m->err));
	ok(m, vmconfig_add_disk(&m->config, disk, "raw", false, false, &m->err));
	ok(m, vmconfig_save(&m->config, &m->err));
	ok(m, vmdisks_open(&m->disks, &m->config, &m->err));
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	struct model *m = *state;

	while (m->nkept)
		forget(m, 0);
	vmdisks_close(&m->disks);
	vmconfig_free(&m->config);
	loop_destroy(m->loop);
	paths_remove_tree(m->home, NULL);
	host = host_calls_real;
	free(m);
	return 0;
}

static void delete (struct model *m, const char *which)
{
	char name[32];

	strcpy(name, which);
	for (unsigned i = 0; i < m->nkept; i++)
		if (!strcmp(m->kept[i]->name, name)) {
			forget(m, i);
			break;
		}
	ok(m, snapstore_delete("m", name, &m->err));
	ok(m, snapmerge("m", NULL, NULL, &m->err));
	expect_all(m);
}

/* ---- tests ---- */

static void test_middle_one_goes_into_its_child(void **state)
{
	struct model *m = *state;

	for (unsigned i = 0; i < 3; i++) {
		work(m);
		take(m);
	}
	work(m);
	assert_int_equal(count(m, "snapshots/s3", "ram-"), 3);
	assert_int_equal(count(m, "snapshots/s3", "layer-"), 2);
	assert_int_equal(count(m, "", "layer-"), 3);
	delete (m, "s2");
	assert_int_equal(count(m, "snapshots/s3", "ram-"), 2);
	assert_int_equal(count(m, "snapshots/s3", "layer-"), 1);
	assert_int_equal(count(m, "", "layer-"), 2);
	/* The machine goes on from there, and back. */
	work(m);
	take(m);
	expect_all(m);
	go_back(m);
	expect_all(m);
	/* The oldest: its disk is the lowest layer, which stays; its memory goes into that of the others. */
	delete (m, "s1");
	assert_int_equal(count(m, "snapshots/s3", "ram-"), 1);
	assert_int_equal(count(m, "snapshots/s3", "disk.raw"), 1);
}

static void test_many_deleted_leave_short_chains(void **state)
{
	struct model *m = *state;

	for (unsigned i = 0; i < 12; i++) {
		work(m);
		take(m);
		if (i)
			delete (m, m->kept[0]->name);
	}
	assert_int_equal(m->nkept, 1);
	/* disk.raw below, the snapshot's, the machine's. */
	assert_true(count(m, "", "layer-") <= 3);
	for (unsigned i = 0; i < 3; i++)
		go_back(m);
	expect_all(m);
}

static void test_what_two_need_stays_shared(void **state)
{
	struct model *m = *state;

	for (unsigned i = 0; i < 2; i++) {
		work(m);
		take(m);
	}
	/* s3 stands on s2, and so does s4. */
	work(m);
	take(m);
	while (strcmp(m->base, "s2") != 0)
		go_back(m);
	work(m);
	take(m);
	delete (m, "s2");
	delete (m, "s1");
	struct stat a, b;
	unsigned nshared = 0;
	_cleanup_free_ char *dir = snapstore_path("m", "s3", NULL, &m->err);
	DIR *d = opendir(dir);
	struct dirent *e;

	while ((e = readdir(d))) {
		_cleanup_free_ char *other = snapstore_path("m", "s4", e->d_name, &m->err);

		if (!strncmp(e->d_name, "ram-", 4) && fstatat(dirfd(d), e->d_name, &a, 0) == 0 &&
		    stat(other, &b) == 0)
			nshared += a.st_ino == b.st_ino;
	}
	closedir(d);
	assert_int_equal(nshared, 1);
	delete (m, "s3");
}

static void test_a_disk_in_use_waits(void **state)
{
	struct model *m = *state;

	work(m);
	take(m);
	work(m);
	take(m);
	work(m);
	struct block_dev *running =
		open_disk(m, m->config.disks[0].path, "qcow2", m->disks.folder, false);

	/* The machine's own top is the child: while it runs, its layers stay. */
	forget(m, 1);
	ok(m, snapstore_delete("m", "s2", &m->err));
	ok(m, snapmerge("m", NULL, NULL, &m->err));
	assert_int_equal(count(m, "", "layer-"), 2);
	running->ops->close(running);
	expect_all(m);
	ok(m, snapmerge("m", NULL, NULL, &m->err));
	assert_int_equal(count(m, "", "layer-"), 1);
	expect_all(m);
	vmdisks_close(&m->disks);
	ok(m, vmdisks_open(&m->disks, &m->config, &m->err));
}

static bool refuse(void *arg, uint64_t done, uint64_t total)
{
	return false;
}

static void test_canceled_and_damaged(void **state)
{
	struct model *m = *state;
	const struct ram_progress progress = { refuse, NULL };

	for (unsigned i = 0; i < 3; i++) {
		work(m);
		take(m);
	}
	forget(m, 1);
	ok(m, snapstore_delete("m", "s2", &m->err));
	assert_int_equal(snapmerge("m", NULL, &progress, &m->err), -ECANCELED);
	assert_int_equal(count(m, "snapshots/s3", "ram-"), 3);
	expect_all(m);
	/* A bit of a layer that would be copied: nothing is built on it. */
	_cleanup_free_ char *path = snapstore_path("m", "s3", "ram-2", &m->err);
	int fd = open(path, O_RDWR);
	off_t at = lseek(fd, 0, SEEK_DATA);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	assert_true(snapmerge("m", NULL, NULL, &m->err) == -EINVAL);
	assert_non_null(strstr(m->err.text, "damaged"));
	assert_int_equal(count(m, "snapshots/s3", "ram-"), 3);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
	ok(m, snapmerge("m", NULL, NULL, &m->err));
	expect_all(m);
}

struct replacing {
	struct model *m;
	const char *name; /* NULL: done */
};

/* Another process, meanwhile: the snapshot is deleted, and one of another moment takes its name. */
static bool replace_one(void *arg, uint64_t done, uint64_t total)
{
	struct replacing *r = arg;
	struct model *m = r->m;

	if (!r->name)
		return true;
	for (unsigned i = 0; i < m->nkept; i++)
		if (!strcmp(m->kept[i]->name, r->name)) {
			forget(m, i);
			break;
		}
	ok(m, snapstore_delete("m", r->name, &m->err));
	m->counter = (unsigned)strtoul(r->name + 1, NULL, 10) - 1;
	r->name = NULL;
	work(m);
	take(m);
	return true;
}

static void test_replaced_meanwhile(void **state)
{
	struct model *m = *state;
	struct replacing r = { m, "s3" };
	const struct ram_progress progress = { replace_one, &r };

	for (unsigned i = 0; i < 3; i++) {
		work(m);
		take(m);
	}
	forget(m, 1);
	ok(m, snapstore_delete("m", "s2", &m->err));
	/* Its result may be a failure: what it was about is gone. */
	(void)snapmerge("m", NULL, &progress, &m->err);
	assert_null(r.name);
	expect_all(m);
	ok(m, snapmerge("m", NULL, NULL, &m->err));
	expect_all(m);
}

/* The folder of @name once more as @as, in files of its own, as an import makes them. */
static void import_copy(struct model *m, const char *name, const char *as)
{
	char cmd[512];

	snprintf(cmd, sizeof(cmd), "cd %s/vms/m/snapshots && cp -r %s %s && sed -i 's/\"created\": [0-9]*/\"created\": 999999/' %s/snapshot.json",
		 m->home, name, as, as);
	assert_int_equal(system(cmd), 0);
}

/* The path of the layer of disks in @folder which is number @n from the top of @c's disk. */
static char *layer_path(struct model *m, const struct vmconfig *c, const char *folder, unsigned n)
{
	char *path = strdup(c->disks[0].path);
	struct image_info info;

	while (n--) {
		ok(m, image_info(path, "qcow2", &info, &m->err));
		free(path);
		path = paths_format(&m->err, "%s/%s", folder, info.backing_path);
		image_info_free(&info);
	}
	return path;
}

/* A bundle from elsewhere may have layers of the same names, and anything in them. */
static void test_imported_files_stay_with_their_snapshot(void **state)
{
	struct model *m = *state;
	static const uint8_t other[512] = { 0xee };
	struct block_dev *b;
	struct snapshot_info info;

	for (unsigned i = 0; i < 3; i++) {
		work(m);
		take(m);
	}
	import_copy(m, "s3", "evil");
	_cleanup_free_ char *dir = snapstore_path("m", "evil", NULL, &m->err);

	ok(m, snapstore_load(&info, "m", "evil", &m->err));
	b = open_disk(m, info.config.disks[0].path, "qcow2", dir, false);
	for (uint64_t at = 0; at < DISK_BYTES; at += sizeof(other))
		transfer(m, b, BLOCK_WRITE, at, (void *)(uintptr_t)other, sizeof(other));
	b->ops->close(b);
	snapshot_info_free(&info);
	/* Going back to one gives its content, whatever was there before; but a base of another name is never replaced. */
	_cleanup_free_ char *base = snapstore_path("m", "evil", "disk.raw", &m->err);
	_cleanup_free_ char *own = snapstore_path("m", "s3", "disk.raw", &m->err);

	assert_true(unlink(base) == 0 && link(own, base) == 0);
	while (strcmp(m->base, "s1") != 0)
		go_back(m);
	restore_disk(m, "evil");
	for (unsigned at = 0; at < DISK_BYTES; at += sizeof(other))
		memcpy(m->disk + at, other, sizeof(other));
	expect_disk(m, &m->config, m->disks.folder, m->disk);
	restore_disk(m, "s3");
	memcpy(m->disk, m->kept[2]->disk, sizeof(m->disk));
	expect_disk(m, &m->config, m->disks.folder, m->disk);
	m->base[0] = 0;
	/* The machine goes back to s1: of what stands on the layer that goes, it has nothing. */
	while (strcmp(m->base, "s1") != 0)
		go_back(m);
	for (unsigned i = 0; i < m->nkept; i++)
		if (!strcmp(m->kept[i]->name, "s2")) {
			forget(m, i);
			break;
		}
	ok(m, snapstore_delete("m", "s2", &m->err));
	for (unsigned i = 0; i < 2; i++) {
		ok(m, snapmerge("m", NULL, NULL, &m->err));
		for (unsigned k = 0; k < m->nkept; k++)
			expect_kept(m, m->kept[k]);
	}
	assert_int_equal(count(m, "snapshots/s3", "layer-"), 1);
	assert_int_equal(count(m, "snapshots/evil", "layer-"), 1);
}

/* What cannot be read, or merged, is left alone, and only that. */
static void test_damaged_disks_keep_nobody(void **state)
{
	struct model *m = *state;
	struct snapshot_info info;
	static const char *const names[] = { "unreadable", "broken" };

	for (unsigned i = 0; i < 3; i++) {
		work(m);
		take(m);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		import_copy(m, "s3", names[i]);
		_cleanup_free_ char *dir = snapstore_path("m", names[i], NULL, &m->err);

		ok(m, snapstore_load(&info, "m", names[i], &m->err));
		_cleanup_free_ char *path = layer_path(m, &info.config, dir, i ? 2 : 1);

		/* No image; nothing to stand on. */
		assert_int_equal(i ? unlink(path) : truncate(path, 100), 0);
		snapshot_info_free(&info);
	}
	forget(m, 1);
	ok(m, snapstore_delete("m", "s2", &m->err));
	while (strcmp(m->base, "s1") != 0)
		go_back(m);
	assert_int_equal(snapmerge("m", NULL, NULL, &m->err), -ENOENT);
	assert_non_null(strstr(m->err.text, "broken"));
	assert_int_equal(count(m, "snapshots/s3", "ram-"), 2);
	assert_int_equal(count(m, "snapshots/s3", "layer-"), 1);
	for (unsigned k = 0; k < m->nkept; k++)
		expect_kept(m, m->kept[k]);
}

/* Each snapshot has all layers of its memory open: more than a process has by default. */
static void test_many_files(void **state)
{
	struct model *m = *state;
	struct rlimit old, few = { 12, 0 };

	/* Each has one granule of its own. */
	for (unsigned i = 0; i < KEPT_MAX; i++) {
		uint64_t at = i * (uint64_t)RAM_GRANULE_MIN, page = at / GUEST_PAGE_SIZE;

		memset(m->ram + at, (int)i + 1, GUEST_PAGE_SIZE);
		m->dirty[page / 64] |= 1ull << page % 64;
		take(m);
	}
	assert_int_equal(count(m, "snapshots/s8", "ram-"), 8);
	forget(m, 1);
	ok(m, snapstore_delete("m", "s2", &m->err));
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	few.rlim_max = old.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	int r = snapmerge("m", NULL, NULL, &m->err);

	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(r, 0);
	expect_all(m);
	assert_int_equal(count(m, "snapshots/s8", "ram-"), 7);
	assert_int_equal(count(m, "snapshots/s8", "layer-"), 6);
}

/* As many layers as an index can name, by a program that let them become so many: they are merged all the same. */
static void test_as_many_layers_as_there_may_be(void **state)
{
	struct model *m = *state;
	struct bytes out = { 0 };
	struct ram_files f;
	char name[RAM_LAYER_NAME];

	for (unsigned i = 0; i < 2; i++) {
		work(m);
		take(m);
	}
	ok(m, snapstore_open_ram("m", "s2", &f, &m->err));
	_cleanup_free_ char *dir = snapstore_path("m", "s2", NULL, &m->err);
	_cleanup_free_ char *index = snapstore_path("m", "s2", "ram.index", &m->err);
	int dir_fd = open(dir, O_RDONLY | O_DIRECTORY);

	for (unsigned i = 0; f.index.nlayers < RAM_LAYERS_MAX; i++) {
		snprintf(name, sizeof(name), "ram-x%u", i);
		int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);

		assert_true(fd >= 0 && ftruncate(fd, RAM_BYTES) == 0);
		close(fd);
		ok(m, ram_index_add_layer(&f.index, name, &m->err));
	}
	close(dir_fd);
	ok(m, ram_index_save(&f.index, &out, &m->err));
	f.index.nlayers -= RAM_LAYERS_MAX - 2; /* as many as are open */
	ram_files_close(&f);
	int fd = open(index, O_WRONLY | O_TRUNC);

	assert_true(write(fd, out.data, out.len) == (ssize_t)out.len);
	close(fd);
	bytes_free(&out);
	delete (m, "s1");
	assert_true(count(m, "snapshots/s2", "ram-") <= 2);
}

static int fail_to_sync(int fd)
{
	errno = EIO;
	return -1;
}

/* A layer that did not come on top after all: while the saved configuration may name it, it stays. */
static void test_a_layer_that_was_not_pushed(void **state)
{
	struct model *m = *state;
	_cleanup_free_ char *first = NULL, *second = NULL;

	ok(m, vmdisks_new_top(&m->disks, 0, DISK_BYTES, &first, &m->err));
	ok(m, vmdisks_push(&m->disks, 0, first, &m->err));
	ok(m, vmconfig_save(&m->config, &m->err));
	host.fsync = fail_to_sync;
	vmdisks_pop(&m->disks, 0, "raw");
	host.fsync = no_sync;
	assert_int_equal(access(first, F_OK), 0);
	ok(m, vmdisks_new_top(&m->disks, 0, DISK_BYTES, &second, &m->err));
	ok(m, vmdisks_push(&m->disks, 0, second, &m->err));
	ok(m, vmconfig_save(&m->config, &m->err));
	vmdisks_pop(&m->disks, 0, "raw");
	assert_true(access(second, F_OK) < 0);
	/* As it is started again. */
	struct vmconfig saved;

	ok(m, vmconfig_init(&saved, &m->err));
	ok(m, vmconfig_load(&saved, "m", &m->err));
	expect_disk(m, &saved, m->disks.folder, m->disk);
	vmconfig_free(&saved);
}

static void test_impossible_times(void **state)
{
	static const int64_t times[] = { 0, -1, -9300000000, INT64_MIN, INT64_MAX };
	struct model *m = *state;
	struct snapshot_info info;
	char cmd[256];

	work(m);
	take(m);
	for (unsigned i = 0; i < ARRAY_SIZE(times); i++) {
		snprintf(cmd, sizeof(cmd), "sed -i 's/\"created\": [-0-9]*/\"created\": %lld/' %s/vms/m/snapshots/s1/snapshot.json",
			 (long long)times[i], m->home);
		assert_int_equal(system(cmd), 0);
		ok(m, snapstore_load(&info, "m", "s1", &m->err));
		assert_true(info.created_s == times[i]);
		assert_true(info.moment.real_ns ==
			    (times[i] > 0 ? INT64_MAX / 1000000000 * 1000000000 : 0));
		snapshot_info_free(&info);
	}
}

static void judge_images(struct model *m)
{
	char cmd[256];

	if (system("command -v qemu-img >/dev/null") != 0) {
		print_message("qemu-img is not installed: its opinion is left out\n");
		return;
	}
	snprintf(cmd, sizeof(cmd), "for f in $(find %s -name 'layer-*.qcow2'); do qemu-img check -q $f || exit 1; done",
		 m->home);
	assert_int_equal(system(cmd), 0);
}

/* ---- a machine that runs meanwhile ---- */

struct runner {
	struct model *m;
	struct block_dev *disk;
	unsigned ntaken;
};

static int run_close(void *arg, struct error *err)
{
	const struct runner *r = arg;
	const char *const allowed[] = { r->m->disks.folder, NULL };
	const struct block_backing_rule rule = { .paths = allowed };

	/* It may stand on the raw file alone, which is opened again as well. */
	return block_reopen_below(r->disk, &rule, err);
}

static int run_take_in(void *arg, unsigned disk, const char *layer,
		       const struct ram_progress *progress, struct error *err)
{
	struct runner *r = arg;
	struct model *m = r->m;

	assert_int_equal(disk, 0);
	/* What it has open may stand on more than the file that has the name now. */
	ok(m, run_close(arg, &m->err));
	for (uint64_t at = 0; at < DISK_BYTES; at += 64 * KIB)
		transfer(m, r->disk, BLOCK_TAKE_IN, at, NULL, 64 * KIB);
	transfer(m, r->disk, BLOCK_FLUSH, 0, NULL, 0);
	transfer(m, r->disk, BLOCK_NAME_BELOW, 0, NULL, 0);
	ok(m, block_drop_below(r->disk, &m->err));
	r->ntaken++;
	return 0;
}

static void run(struct model *m, struct runner *r, struct snapmerge_running *out)
{
	*r = (struct runner){ .m = m };
	r->disk = open_disk(m, m->config.disks[0].path, "qcow2", m->disks.folder, false);
	*out = (struct snapmerge_running){ run_take_in, run_close, r };
}

static void test_a_running_machine_takes_in(void **state)
{
	struct model *m = *state;
	struct snapmerge_running running;
	static uint8_t buf[DISK_BYTES];
	struct runner r;

	for (unsigned i = 0; i < 3; i++) {
		work(m);
		take(m);
	}
	work(m);
	run(m, &r, &running);
	/* s1's layer is the lowest; those of s2 and s3 go into each other, and then into the top. */
	while (m->nkept > 1) {
		const char *name = m->kept[m->nkept - 1]->name;

		ok(m, snapstore_delete("m", name, &m->err));
		forget(m, m->nkept - 1);
	}
	ok(m, snapmerge("m", &running, NULL, &m->err));
	assert_true(r.ntaken > 0); /* which goes first is not said */
	assert_int_equal(count(m, "", "layer-"), 1);
	transfer(m, r.disk, BLOCK_READ, 0, buf, sizeof(buf));
	assert_memory_equal(buf, m->disk, sizeof(buf));
	r.disk->ops->close(r.disk);
	expect_all(m);
	judge_images(m);
}

/*
 * A process that deletes @name and merges, killed after a random time; true: it came to its end.  @runs: it is the machine, too,
 * which runs.
 */
static bool killed_delete(struct model *m, const char *name, bool runs, unsigned most_us)
{
	unsigned wait_us = any(m, most_us);
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		struct snapmerge_running running;
		struct runner r;

		if (runs)
			run(m, &r, &running);
		_exit(snapstore_delete("m", name, &m->err) < 0 ||
		      snapmerge("m", runs ? &running : NULL, NULL, &m->err) < 0);
	}
	usleep(wait_us);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status))
		assert_int_equal(WEXITSTATUS(status), 0);
	return WIFEXITED(status);
}

static void test_killed_at_any_moment(void **state)
{
	struct model *m = *state;
	unsigned ndone = 0;

	for (unsigned i = 0; i < rounds; i++) {
		for (unsigned k = 0; k < 2; k++) {
			work(m);
			take(m);
		}
		if (any(m, 4) == 0)
			go_back(m);
		unsigned victim = any(m, m->nkept);
		char name[32];

		strcpy(name, m->kept[victim]->name);
		_cleanup_free_ char *path = snapstore_path("m", name, NULL, &m->err);

		ndone += killed_delete(m, name, i % 2, i % 4 < 2 ? 20000 : 80000);
		if (access(path, F_OK) < 0)
			forget(m, victim);
		expect_all(m);
		while (m->nkept > KEPT_MAX - 2) {
			delete (m, m->kept[any(m, m->nkept)]->name);
		}
		if (i % 50 == 0)
			judge_images(m);
	}
	ok(m, snapmerge("m", NULL, NULL, &m->err));
	expect_all(m);
	judge_images(m);
	for (unsigned i = 0; i < m->nkept; i++) {
		_cleanup_free_ char *dir = paths_format(&m->err, "snapshots/%s", m->kept[i]->name);

		assert_int_equal(count(m, dir, "."), 0);
	}
	assert_int_equal(count(m, "", "."), 0);
	assert_int_equal(count(m, "snapshots", "."), 0);
	print_message("%u deletions killed, %u came to their end before\n", rounds, ndone);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_middle_one_goes_into_its_child, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_deleted_leave_short_chains, setup, teardown),
		cmocka_unit_test_setup_teardown(test_what_two_need_stays_shared, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_disk_in_use_waits, setup, teardown),
		cmocka_unit_test_setup_teardown(test_canceled_and_damaged, setup, teardown),
		cmocka_unit_test_setup_teardown(test_replaced_meanwhile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_imported_files_stay_with_their_snapshot, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_damaged_disks_keep_nobody, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_as_many_layers_as_there_may_be, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_layer_that_was_not_pushed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_impossible_times, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_running_machine_takes_in, setup, teardown),
		cmocka_unit_test_setup_teardown(test_killed_at_any_moment, setup, teardown),
	};

	if (argc > 1)
		rounds = (unsigned)strtoul(argv[1], NULL, 10);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
