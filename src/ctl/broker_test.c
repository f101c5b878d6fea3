/* SPDX-License-Identifier: Apache-2.0 */
/* What the broker does and refuses, asked directly and through its door; and that no try of a process that was taken over succeeds. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/attack.h"
#include "ctl/broker_int.h"
#include "ctl/confine.h"
#include "ctl/paths.h"
#include "ctl/vmlock.h"
#include "share/server.h"

static char home[64], own[128], other[128], kernel[128], disk[128], images[128];

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void read_text(const char *path, char *text, size_t cap)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, cap - 1);

	assert_true(n >= 0);
	text[n] = 0;
	close(fd);
}

/* A name in a folder; good for the next seven. */
static const char *in(const char *folder, const char *name)
{
	static char path[8][PATH_MAX];
	static unsigned next;
	char *out = path[next++ % 8];
	size_t n = strlen(folder), len = strlen(name);

	/* @folder may be one of these */
	assert_true(n + len + 2 <= PATH_MAX);
	memmove(out, folder, n);
	out[n] = '/';
	memmove(out + n + 1, name, len + 1);
	return out;
}

struct scene {
	struct vmconfig c;
	struct broker_policy *p;
};

static int set_up(void **state)
{
	static struct scene s;
	struct error err;

	log_set_level(LOG_ERROR);
	snprintf(home, sizeof(home), "/tmp/viv-broker-XXXXXX");
	assert_non_null(mkdtemp(home));
	setenv("VIVARIUM_HOME", home, 1);
	setenv("TMPDIR", home, 1);
	snprintf(own, sizeof(own), "%s/vms/m", home);
	snprintf(other, sizeof(other), "%s/vms/other", home);
	snprintf(kernel, sizeof(kernel), "%s/kernel", home);
	snprintf(disk, sizeof(disk), "%s/disk.raw", home);
	snprintf(images, sizeof(images), "%s/images", home);
	assert_int_equal(paths_make(own, &err), 0);
	assert_int_equal(paths_make(other, &err), 0);
	assert_int_equal(paths_make(images, &err), 0);
	write_text(in(images, "base.raw"), "base");
	write_text(kernel, "the kernel");
	write_text(disk, "the disk");
	write_text(in(other, "secret"), "secret");
	memset(&s, 0, sizeof(s));
	assert_int_equal(vmconfig_init(&s.c, &err), 0);
	assert_int_equal(vmconfig_set(&s.c.name, "m", &err), 0);
	assert_int_equal(vmconfig_set(&s.c.kernel, kernel, &err), 0);
	assert_int_equal(vmconfig_add_disk(&s.c, disk, "raw", false, false, &err), 0);
	assert_int_equal(vmconfig_allow_backing(&s.c, images, &err), 0);
	assert_int_equal(vmconfig_save(&s.c, &err), 0);
	assert_int_equal(broker_policy_create(&s.p, &s.c, &err), 0);
	*state = &s;
	return 0;
}

static int tear_down(void **state)
{
	struct scene *s = *state;
	struct error err;

	broker_policy_destroy(s->p);
	vmconfig_free(&s->c);
	assert_int_equal(paths_remove_tree(home, &err), 0);
	return 0;
}

static int ask(struct scene *s, enum broker_op op, int flags, unsigned mode, const char *name,
	       const char *to, int dir, int *fd)
{
	const struct broker_request rq = { .op = op, .flags = flags, .mode = mode };
	const char *names[2] = { name, to };
	const int dirs[2] = { dir, -1 };
	char text[PATH_MAX];
	struct stat st;
	int got, r = broker_answer(s->p, &rq, names, dirs, &st, &got, text);

	if (fd)
		*fd = got;
	else if (got >= 0)
		close(got);
	return r;
}

#define OPEN(s, flags, name)	 ask(s, BROKER_OPEN, flags, 0600, name, NULL, -1, NULL)
#define OPEN_AT(s, f, dir, name) ask(s, BROKER_OPEN, f, 0600, name, NULL, dir, NULL)
#define RENAME(s, from, to)	 ask(s, BROKER_RENAME, 0, 0, from, to, -1, NULL)
#define LINK(s, from, to)	 ask(s, BROKER_LINK, 0, 0, from, to, -1, NULL)
#define UNLINK(s, name)		 ask(s, BROKER_UNLINK, 0, 0, name, NULL, -1, NULL)
#define MKDIR(s, name)		 ask(s, BROKER_MKDIR, 0, 0700, name, NULL, -1, NULL)

static void test_its_own_files(void **state)
{
	struct scene *s = *state;

	assert_int_equal(OPEN(s, O_RDWR | O_CREAT | O_EXCL, in(own, "a")), 0);
	assert_int_equal(OPEN(s, O_RDWR | O_CREAT | O_EXCL, in(own, "a")), -EEXIST);
	assert_int_equal(OPEN(s, O_RDONLY, in(own, "none")), -ENOENT);
	assert_int_equal(MKDIR(s, in(own, "sub")), 0);
	assert_int_equal(MKDIR(s, own), -EEXIST);
	/* not so deep that nobody would remove it */
	assert_int_equal(MKDIR(s, in(own, "deep")), 0);
	assert_int_equal(MKDIR(s, in(own, "deep/er")), 0);
	assert_int_equal(MKDIR(s, in(own, "deep/er/still")), -EACCES);
	assert_int_equal(OPEN(s, O_RDWR | O_CREAT, in(own, "deep/er/file")), 0);
	assert_int_equal(OPEN(s, O_RDWR | O_CREAT, in(own, "deep/er/still/file")), -EACCES);
	assert_int_equal(MKDIR(s, in(own, "other")), 0);
	assert_int_equal(RENAME(s, in(own, "other"), in(own, "deep/er/other")), -EACCES);
	assert_int_equal(RENAME(s, in(own, "deep/er"), in(own, "deep/est")), 0);
	assert_int_equal(RENAME(s, in(own, "a"), in(own, "sub/b")), 0);
	assert_int_equal(LINK(s, in(own, "sub/b"), in(own, "c")), 0);
	assert_int_equal(ask(s, BROKER_ACCESS, 0, F_OK, in(own, "c"), NULL, -1, NULL), 0);
	assert_int_equal(ask(s, BROKER_STAT, 0, 0, in(own, "c"), NULL, -1, NULL), 0);
	/* It has two names by now: others may stand on it. */
	assert_int_equal(OPEN(s, O_RDONLY, in(own, "c")), 0);
	assert_int_equal(OPEN(s, O_RDWR, in(own, "c")), -EACCES);
	assert_int_equal(UNLINK(s, in(own, "sub/b")), 0);
	assert_int_equal(OPEN(s, O_RDWR, in(own, "c")), 0);
	assert_int_equal(ask(s, BROKER_UNLINK, AT_REMOVEDIR, 0, in(own, "sub"), NULL, -1, NULL), 0);
	/* a file without a name, in the folder for such */
	assert_int_equal(OPEN(s, O_TMPFILE | O_RDWR, home), 0);
	assert_int_equal(OPEN(s, O_RDONLY | O_DIRECTORY, home), -EACCES);
}

static int no_tmpfile(const char *path, int flags, mode_t mode)
{
	errno = EOPNOTSUPP;
	return (flags & O_TMPFILE) == O_TMPFILE ? -1 : open(path, flags, mode);
}

/* On a file system that has no files without a name. */
static void test_a_temporary_file(void **state)
{
	struct scene *s = *state;
	struct stat st;
	int fd;

	host.open = no_tmpfile;
	int r = ask(s, BROKER_OPEN, O_TMPFILE | O_RDWR, 0600, home, NULL, -1, &fd);

	host = host_calls_real;
	assert_int_equal(r, 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_true(S_ISREG(st.st_mode) && st.st_nlink == 0);
	assert_int_equal(write(fd, "x", 1), 1);
	close(fd);
}

static void test_by_a_folders_descriptor(void **state)
{
	struct scene *s = *state;
	int mine = -1, theirs = open(other, O_RDONLY | O_DIRECTORY);

	assert_int_equal(ask(s, BROKER_OPEN, O_RDONLY | O_DIRECTORY, 0, own, NULL, -1, &mine), 0);
	assert_int_equal(OPEN_AT(s, O_RDWR | O_CREAT, mine, "x"), 0);
	assert_int_equal(OPEN_AT(s, O_RDONLY, mine, "../other/secret"), -EACCES);
	assert_int_equal(OPEN_AT(s, O_RDONLY, mine, ".."), -EACCES);
	assert_int_equal(OPEN_AT(s, O_RDONLY, theirs, "secret"), -EACCES);
	assert_int_equal(OPEN_AT(s, O_WRONLY, mine, "machine.json"), -EACCES);
	close(mine);
	/* no folder at all */
	mine = open(in(own, "x"), O_RDONLY);
	assert_int_equal(OPEN_AT(s, O_RDONLY, mine, "x"), -EACCES);
	close(mine);
	close(theirs);
}

static void test_no_way_out(void **state)
{
	struct scene *s = *state;

	assert_int_equal(OPEN(s, O_RDONLY, "/etc/passwd"), -EACCES);
	assert_int_equal(OPEN(s, O_RDONLY, in(other, "secret")), -EACCES);
	assert_int_equal(OPEN(s, O_WRONLY | O_CREAT, in(other, "new")), -EACCES);
	assert_true(OPEN(s, O_RDONLY, in(own, "../other/secret")) < 0);
	assert_true(OPEN(s, O_RDONLY, in(own, "./../other/secret")) < 0);
	assert_int_equal(OPEN(s, O_RDONLY, in(home, "vms/m2")), -EACCES);
	assert_int_equal(OPEN(s, O_RDONLY | O_PATH, in(own, "a")), -EINVAL);
	assert_true(LINK(s, in(other, "secret"), in(own, "stolen")) < 0);
	assert_true(RENAME(s, in(other, "secret"), in(own, "stolen")) < 0);
	assert_true(UNLINK(s, in(other, "secret")) < 0);
	/* links that somebody else left there are not followed */
	assert_int_equal(symlink(other, in(own, "dir")), 0);
	assert_int_equal(symlink(in(other, "secret"), in(own, "file")), 0);
	assert_true(OPEN(s, O_RDONLY, in(own, "dir/secret")) < 0);
	assert_true(OPEN(s, O_RDONLY, in(own, "file")) < 0);
	assert_true(LINK(s, in(own, "file"), in(own, "stolen")) < 0);
}

static void test_files_of_the_configuration(void **state)
{
	struct scene *s = *state;
	char text[32];

	assert_int_equal(OPEN(s, O_RDONLY, kernel), 0);
	assert_int_equal(OPEN(s, O_RDWR, kernel), -EACCES);
	assert_int_equal(OPEN(s, O_RDWR, disk), 0);
	assert_int_equal(OPEN(s, O_RDWR | O_TRUNC, disk), -EACCES);
	assert_int_equal(UNLINK(s, disk), -EACCES);
	assert_int_equal(RENAME(s, disk, in(own, "disk")), -EACCES);
	/* A link to it is not a way to write to it. */
	assert_int_equal(LINK(s, kernel, in(own, "kernel")), 0);
	assert_int_equal(OPEN(s, O_RDONLY, in(own, "kernel")), 0);
	assert_int_equal(OPEN(s, O_RDWR, in(own, "kernel")), -EACCES);
	assert_int_equal(OPEN(s, O_WRONLY | O_TRUNC, in(own, "kernel")), -EACCES);
	read_text(kernel, text, sizeof(text));
	assert_string_equal(text, "the kernel");
}

static void test_folders_that_disks_may_stand_on(void **state)
{
	struct scene *s = *state;

	assert_int_equal(OPEN(s, O_RDONLY, in(images, "base.raw")), 0);
	assert_int_equal(OPEN(s, O_RDWR, in(images, "base.raw")), -EACCES);
	assert_int_equal(OPEN(s, O_RDONLY, in(images, "none")), -ENOENT);
	assert_int_equal(OPEN(s, O_RDONLY, in(images, "../vms/other/secret")), -EACCES);
	assert_int_equal(OPEN(s, O_RDONLY, in(images, "../images/base.raw")), -EACCES);
	assert_int_equal(LINK(s, in(images, "../vms/other/secret"), in(own, "stolen")), -EACCES);
	assert_int_equal(ask(s, BROKER_STAT, 0, 0, in(images, ".."), NULL, -1, NULL), -EACCES);
	assert_int_equal(ask(s, BROKER_REALPATH, 0, 0, in(images, "../vms/other/secret"), NULL, -1, NULL),
			 -EACCES);
}

/* As images name them; and of what they may not name they learn nothing. */
static void test_names_that_lead_to_them(void **state)
{
	struct scene *s = *state;

#define REALPATH(s, name) ask(s, BROKER_REALPATH, 0, 0, name, NULL, -1, NULL)
	assert_int_equal(mkdir(in(home, "aside"), 0700), 0);
	assert_int_equal(symlink(in(images, "base.raw"), in(home, "aside/link")), 0);
	assert_int_equal(symlink(in(other, "secret"), in(home, "aside/bad")), 0);
	assert_int_equal(REALPATH(s, in(home, "aside/../images/base.raw")), 0);
	assert_int_equal(REALPATH(s, in(home, "aside/link")), 0);
	assert_int_equal(REALPATH(s, in(home, "aside/../kernel")), 0);
	assert_int_equal(REALPATH(s, in(home, "aside/bad")), -EACCES);
	assert_int_equal(REALPATH(s, in(home, "aside/none")), -EACCES);
	assert_int_equal(REALPATH(s, in(home, "aside")), -EACCES);
	assert_int_equal(REALPATH(s, in(home, "aside/../vms/m/machine.json")), -EACCES);
	assert_int_equal(OPEN(s, O_RDONLY, in(home, "aside/link")), -EACCES);
}

/* @edit: what a machine that was taken over would want its configuration to be. */
static int save_changed(struct scene *s, void (*edit)(json_t *json))
{
	json_t *json = vmconfig_to_json(&s->c);

	edit(json);
	char *text = json_dumps(json, 0);

	write_text(in(own, "machine.json.new"), text);
	free(text);
	json_decref(json);
	return RENAME(s, in(own, "machine.json.new"), in(own, "machine.json"));
}

static void same(json_t *json)
{
}
static void layer_on_top(json_t *json)
{
	json_t *d = json_array_get(json_object_get(json, "disks"), 0);
	char path[256];

	snprintf(path, sizeof(path), "%s/layer-1.qcow2", own);
	json_object_set_new(d, "path", json_string(path));
	json_object_set_new(d, "format", json_string("qcow2"));
}
static void other_kernel(json_t *json)
{
	json_object_set_new(json, "kernel", json_string("/etc/passwd"));
}
static void other_disk(json_t *json)
{
	json_object_set_new(json_array_get(json_object_get(json, "disks"), 0), "path",
			    json_string("/etc/passwd"));
}
static void layer_below(json_t *json)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/../other/secret", own);
	json_object_set_new(json_array_get(json_object_get(json, "disks"), 0), "path", json_string(path));
}
static void other_format(json_t *json)
{
	json_object_set_new(json_array_get(json_object_get(json, "disks"), 0), "format",
			    json_string("qcow2"));
}
static void more_backing(json_t *json)
{
	layer_on_top(json);
	json_object_set_new(json_array_get(json_object_get(json, "disks"), 0), "backing",
			    json_pack("[s]", "/"));
}
static void more_disks(json_t *json)
{
	json_array_append(json_object_get(json, "disks"),
			  json_array_get(json_object_get(json, "disks"), 0));
}
static void fewer_disks(json_t *json)
{
	json_array_clear(json_object_get(json, "disks"));
}
static void other_net(json_t *json)
{
	json_object_set_new(json, "net", json_string("lab:x:y"));
}
static void forwards(json_t *json)
{
	json_object_set_new(json, "forwards", json_pack("[s]", "0.0.0.0:22:22"));
}
static void other_name(json_t *json)
{
	json_object_set_new(json, "name", json_string("other"));
}
static void no_kernel(json_t *json)
{
	json_object_del(json, "kernel");
}
static void unknown_member(json_t *json)
{
	json_object_set_new(json, "share", json_string("/"));
}

static void test_the_configuration(void **state)
{
	static void (*const bad[])(json_t *) = { other_kernel, other_disk,   layer_below,
						 other_format, more_backing, more_disks,
						 fewer_disks,  other_net,    forwards,
						 other_name,   no_kernel,    unknown_member };
	struct scene *s = *state;
	char before[4096], after[4096];

	read_text(in(own, "machine.json"), before, sizeof(before));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(save_changed(s, bad[i]), -EACCES);
		read_text(in(own, "machine.json"), after, sizeof(after));
		assert_string_equal(before, after);
	}
	write_text(in(own, "machine.json.new"), "{");
	assert_int_equal(RENAME(s, in(own, "machine.json.new"), in(own, "machine.json")), -EACCES);
	assert_int_equal(save_changed(s, same), 0);
	assert_int_equal(save_changed(s, layer_on_top), -EACCES); /* there is no such file */
	write_text(in(own, "layer-1.qcow2"), "a layer");
	assert_int_equal(save_changed(s, layer_on_top), 0);
	read_text(in(own, "machine.json"), after, sizeof(after));
	assert_non_null(strstr(after, "layer-1.qcow2"));
	/* there it stays */
	assert_int_equal(OPEN(s, O_WRONLY, in(own, "machine.json")), -EACCES);
	assert_int_equal(UNLINK(s, in(own, "machine.json")), -EACCES);
	assert_int_equal(RENAME(s, in(own, "machine.json"), in(own, "x")), -EACCES);
	assert_int_equal(LINK(s, in(own, "machine.json"), in(own, "x")), -EACCES);
	assert_int_equal(RENAME(s, in(own, "machine.json.new"), in(own, "lock")), -EACCES);
	assert_int_equal(OPEN(s, O_RDONLY, in(own, "machine.json")), 0);
}

static void write_json(const char *path, json_t *json)
{
	char *text = json_dumps(json, 0);

	write_text(path, text);
	free(text);
}

/* What the broker, or a command of the user's, writes its new configuration to first is no link to a file of others. */
static void test_the_configuration_is_written_to_no_link(void **state)
{
	static const char *const names[] = { "machine.json.new", "machine.json.broker" };
	struct scene *s = *state;
	struct error err;
	char text[32];

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		assert_int_equal(LINK(s, kernel, in(own, names[i])), 0);
	json_t *json = vmconfig_to_json(&s->c);

	write_json(in(own, "mine"), json);
	json_decref(json);
	assert_int_equal(RENAME(s, in(own, "mine"), in(own, "machine.json")), 0);
	read_text(kernel, text, sizeof(text));
	assert_string_equal(text, "the kernel");
	(void)UNLINK(s, in(own, "machine.json.new"));
	assert_int_equal(LINK(s, kernel, in(own, "machine.json.new")), 0);
	assert_int_equal(vmconfig_save(&s->c, &err), 0);
	read_text(kernel, text, sizeof(text));
	assert_string_equal(text, "the kernel");
}

static void set_disk(json_t *json, const char *path, const char *format)
{
	json_t *d = json_array_get(json_object_get(json, "disks"), 0);

	json_object_set_new(d, "path", json_string(path));
	json_object_set_new(d, "format", json_string(format));
}

static int save_disk(struct scene *s, const char *path, const char *format)
{
	json_t *json = vmconfig_to_json(&s->c);

	set_disk(json, path, format);
	write_json(in(own, "mine"), json);
	json_decref(json);
	return RENAME(s, in(own, "mine"), in(own, "machine.json"));
}

/* As after a start: the broker knows what machine.json says. */
static void start_again(struct scene *s)
{
	struct error err;

	broker_policy_destroy(s->p);
	vmconfig_free(&s->c);
	assert_int_equal(vmconfig_init(&s->c, &err), 0);
	assert_int_equal(vmconfig_load(&s->c, "m", &err), 0);
	assert_int_equal(broker_policy_create(&s->p, &s->c, &err), 0);
}

/* What is linked, or what others stand on, does not become a disk that is written after the next start. */
static void test_what_is_linked_is_no_disk(void **state)
{
	struct scene *s = *state;

	assert_int_equal(LINK(s, kernel, in(own, "layer-0-k.raw")), 0);
	assert_int_equal(save_disk(s, in(own, "layer-0-k.raw"), "raw"), -EACCES);
	assert_int_equal(LINK(s, in(images, "base.raw"), in(own, "layer-0-b.raw")), 0);
	assert_int_equal(save_disk(s, in(own, "layer-0-b.raw"), "raw"), -EACCES);
	assert_int_equal(symlink(kernel, in(own, "layer-0-l.raw")), 0);
	assert_int_equal(save_disk(s, in(own, "layer-0-l.raw"), "raw"), -EACCES);
	assert_int_equal(MKDIR(s, in(own, "layer-0-d")), 0);
	assert_int_equal(save_disk(s, in(own, "layer-0-d"), "raw"), -EACCES);
	/* what it made itself, as long as that is nobody else's; then it keeps its place */
	write_text(in(own, "layer-1"), "mine");
	assert_int_equal(save_disk(s, in(own, "layer-1"), "qcow2"), 0);
	assert_int_equal(RENAME(s, in(own, "layer-0-k.raw"), in(own, "layer-1")), -EACCES);
	assert_int_equal(LINK(s, kernel, in(own, "layer-1")), -EEXIST);
	assert_int_equal(UNLINK(s, in(own, "layer-1")), 0);
	assert_int_equal(LINK(s, kernel, in(own, "layer-1")), -EACCES);
	assert_int_equal(OPEN(s, O_RDWR | O_CREAT, in(own, "layer-1")), 0);
	start_again(s);
	assert_int_equal(LINK(s, kernel, in(own, "layer-1")), -EEXIST);
	assert_int_equal(UNLINK(s, in(own, "layer-1")), 0);
	assert_int_equal(LINK(s, kernel, in(own, "layer-1")), -EACCES);
	assert_int_equal(RENAME(s, in(own, "layer-0-k.raw"), in(own, "layer-1")), -EACCES);
}

/* A layer that was announced and came to nothing: the disk is again what it was, in a snapshot or not, under its name in the folder. */
static void test_a_layer_that_is_taken_back(void **state)
{
	struct scene *s = *state;

	assert_int_equal(LINK(s, disk, in(own, "layer-0")), 0);
	write_text(in(own, "layer-1"), "one");
	write_text(in(own, "layer-2"), "two");
	assert_int_equal(save_disk(s, in(own, "layer-1"), "qcow2"), 0);
	assert_int_equal(save_disk(s, in(own, "layer-0"), "raw"), 0);
	assert_int_equal(save_disk(s, in(own, "layer-1"), "qcow2"), 0);
	assert_int_equal(MKDIR(s, in(own, "snapshots")), 0);
	assert_int_equal(LINK(s, in(own, "layer-1"), in(own, "snapshots/layer-1")), 0);
	assert_int_equal(save_disk(s, in(own, "layer-2"), "qcow2"), 0);
	/* not the one before the last one, which is a snapshot's by now */
	assert_int_equal(save_disk(s, in(own, "layer-0"), "raw"), -EACCES);
	assert_int_equal(save_disk(s, in(own, "layer-1"), "qcow2"), 0);
}

/* A machine that was made of a snapshot begins with its layers, which others have, too. */
static void test_the_layers_of_a_snapshot(void **state)
{
	struct scene *s = *state;
	struct error err;

	assert_int_equal(MKDIR(s, in(own, "snapshots")), 0);
	assert_int_equal(MKDIR(s, in(own, "snapshots/s")), 0);
	assert_int_equal(LINK(s, disk, in(own, "snapshots/s/layer-0")), 0);
	assert_int_equal(vmconfig_set(&s->c.disks[0].path, in(own, "snapshots/s/layer-0"), &err), 0);
	assert_int_equal(vmconfig_save(&s->c, &err), 0);
	start_again(s);
	assert_int_equal(OPEN(s, O_RDONLY, in(own, "snapshots/s/layer-0")), 0);
	assert_int_equal(OPEN(s, O_RDWR, in(own, "snapshots/s/layer-0")), -EACCES);
	write_text(in(own, "layer-1"), "one");
	assert_int_equal(save_disk(s, in(own, "layer-1"), "qcow2"), 0);
}

/* It gets layers, which its start throws away; what it stands on is never written. */
static void test_a_throw_away_disk(void **state)
{
	struct scene *s = *state;
	struct error err;
	json_t *json, *d;

	s->c.disks[0].is_snapshot = true;
	assert_int_equal(vmconfig_save(&s->c, &err), 0);
	start_again(s);
	assert_int_equal(OPEN(s, O_RDWR, disk), -EACCES);
	assert_int_equal(LINK(s, disk, in(own, "layer-0")), 0);
	json = vmconfig_to_json(&s->c);
	d = json_array_get(json_object_get(json, "disks"), 0);
	json_object_set_new(d, "snapshot", json_false());
	json_object_set(d, "pristine", json_object_get(d, "path"));
	json_object_set(d, "pristine_format", json_object_get(d, "format"));
	set_disk(json, in(own, "layer-0"), "raw");
	write_json(in(own, "mine"), json);
	assert_int_equal(RENAME(s, in(own, "mine"), in(own, "machine.json")), -EACCES);
	write_text(in(own, "kept-0"), "kept");
	set_disk(json, in(own, "kept-0"), "qcow2");
	write_json(in(own, "mine"), json);
	assert_int_equal(RENAME(s, in(own, "mine"), in(own, "machine.json")), 0);
	start_again(s);
	json_object_set_new(d, "snapshot", json_true());
	json_object_del(d, "pristine");
	json_object_del(d, "pristine_format");
	set_disk(json, kernel, "raw");
	write_json(in(own, "mine"), json);
	assert_int_equal(RENAME(s, in(own, "mine"), in(own, "machine.json")), -EACCES);
	set_disk(json, disk, "raw");
	json_object_set_new(d, "snapshot", json_false());
	write_json(in(own, "mine"), json);
	assert_int_equal(RENAME(s, in(own, "mine"), in(own, "machine.json")), -EACCES);
	json_object_set_new(d, "snapshot", json_true());
	write_json(in(own, "mine"), json);
	assert_int_equal(RENAME(s, in(own, "mine"), in(own, "machine.json")), 0);
	start_again(s);
	assert_int_equal(OPEN(s, O_RDWR, disk), -EACCES);
	json_decref(json);
}

static void copy_config(json_t *json, const char *copy)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%.4000s/layer-2", copy);
	set_disk(json, path, "qcow2");
	json_object_set_new(json, "name", json_string("m-1"));
	json_object_set_new(json, "mac", json_string("52:54:00:01:02:03"));
}

static void test_copies(void **state)
{
	struct scene *s = *state;
	char copy[PATH_MAX];
	json_t *json = vmconfig_to_json(&s->c);

	snprintf(copy, sizeof(copy), "%s/vms/m-1", home);
	assert_int_equal(MKDIR(s, other), -EEXIST);
	assert_int_equal(MKDIR(s, in(home, "vms/.hidden")), -EACCES);
	assert_int_equal(MKDIR(s, in(home, "vms/a/b")), -EACCES);
	assert_int_equal(MKDIR(s, copy), 0);
	assert_int_equal(OPEN(s, O_RDWR | O_CREAT, in(copy, "layer-2")), 0);
	copy_config(json, copy);
	write_json(in(copy, "new"), json);
	assert_int_equal(RENAME(s, in(copy, "new"), in(copy, "machine.json")), 0);
	assert_int_equal(LINK(s, kernel, in(copy, "layer-2")), -EEXIST);
	json_object_set_new(json, "kernel", json_string("/etc/passwd"));
	write_json(in(copy, "new"), json);
	assert_int_equal(RENAME(s, in(copy, "new"), in(copy, "machine.json")), -EACCES);
	json_object_set_new(json, "kernel", json_string(kernel));
	/* a disk of its own */
	set_disk(json, disk, "raw");
	write_json(in(copy, "new"), json);
	assert_int_equal(RENAME(s, in(copy, "new"), in(copy, "machine.json")), -EACCES);
	json_decref(json);
	/* It has a broker of its own from now on. */
	assert_int_equal(broker_policy_hand_over(s->p, "other"), -EACCES);
	assert_int_equal(broker_policy_hand_over(s->p, "m-1"), 0);
	assert_int_equal(OPEN(s, O_RDONLY, in(copy, "layer-2")), -EACCES);
	assert_int_equal(broker_policy_hand_over(s->p, "m-1"), -EACCES);
	/* one that comes to nothing */
	assert_int_equal(MKDIR(s, in(home, "vms/m-2")), 0);
	assert_int_equal(ask(s, BROKER_UNLINK, AT_REMOVEDIR, 0, in(home, "vms/m-2"), NULL, -1, NULL), 0);
	assert_true(access(in(home, "vms/m-2"), F_OK) < 0);
}

static json_t *lab_record(void *arg)
{
	return json_incref(arg);
}

/* A copy says that it comes from this machine, by what the lab says of this machine, and nothing else. */
static void test_copies_in_a_lab(void **state)
{
	struct scene *s = *state;
	char copy[PATH_MAX], text[64] = "";
	json_t *json, *record = json_pack("{s:s, s:s}", "lab", "demo", "machine", "m"),
		      *other_record = json_pack("{s:s, s:s}", "lab", "demo", "machine", "other");
	struct error err;
	int fd;

	assert_int_equal(vmconfig_set(&s->c.lab, "demo", &err), 0);
	assert_int_equal(vmconfig_save(&s->c, &err), 0);
	start_again(s);
	assert_int_equal(ask(s, BROKER_LAB, 0, 0, NULL, NULL, -1, &fd), -ENOENT);
	broker_policy_set_lab(s->p, lab_record, record);
	snprintf(copy, sizeof(copy), "%s/vms/m-1", home);
	assert_int_equal(MKDIR(s, copy), 0);
	assert_int_equal(OPEN(s, O_RDWR | O_CREAT, in(copy, "layer-2")), 0);
	json = vmconfig_to_json(&s->c);
	copy_config(json, copy);
	json_object_set_new(json, "lab", json_null());
	json_object_set(json, "origin", record);
	write_json(in(copy, "new"), json);
	/* the lab was not asked yet */
	assert_int_equal(RENAME(s, in(copy, "new"), in(copy, "machine.json")), -EACCES);
	assert_int_equal(ask(s, BROKER_LAB, 0, 0, NULL, NULL, -1, &fd), 0);
	assert_true(pread(fd, text, sizeof(text) - 1, 0) > 0);
	close(fd);
	assert_string_equal(text, "{\"lab\":\"demo\",\"machine\":\"m\"}");
	json_object_set(json, "origin", other_record);
	write_json(in(copy, "new"), json);
	assert_int_equal(RENAME(s, in(copy, "new"), in(copy, "machine.json")), -EACCES);
	json_object_set(json, "origin", record);
	json_object_set_new(json, "lab", json_string("other"));
	write_json(in(copy, "new"), json);
	assert_int_equal(RENAME(s, in(copy, "new"), in(copy, "machine.json")), -EACCES);
	json_object_set_new(json, "lab", json_null());
	write_json(in(copy, "new"), json);
	assert_int_equal(RENAME(s, in(copy, "new"), in(copy, "machine.json")), 0);
	/* itself it stays what it was */
	json_decref(json);
	json = vmconfig_to_json(&s->c);
	json_object_set(json, "origin", record);
	write_json(in(own, "mine"), json);
	assert_int_equal(RENAME(s, in(own, "mine"), in(own, "machine.json")), -EACCES);
	json_decref(json);
	json_decref(record);
	json_decref(other_record);
}

/* ---- whatever it asks, in whatever order, over starts ---- */

static const char *const some_names[] = {
	"a",	     "b",     "layer-0",       "machine.json",	      "machine.json.new",
	"snapshots", "sub/a", "snapshots/s/a", "snapshots/s/layer-0", "sub"
};

static unsigned pick(uint32_t *seed, unsigned n)
{
	*seed = *seed * 1664525 + 1013904223;
	return (*seed >> 8) % n;
}

static const char *some_file(uint32_t *seed)
{
	const char *const outside[] = { kernel, disk, in(images, "base.raw"), in(other, "secret") };

	return pick(seed, 3) ? in(own, some_names[pick(seed, ARRAY_SIZE(some_names))])
			     : outside[pick(seed, ARRAY_SIZE(outside))];
}

/* Everything that it gets to write it spoils. */
static void spoil(struct scene *s, const char *name, int flags)
{
	int fd;

	if (ask(s, BROKER_OPEN, flags, 0600, name, NULL, -1, &fd) != 0)
		return;
	if (flags != O_RDONLY)
		(void)!pwrite(fd, "spoiled", 7, 0);
	close(fd);
}

/* A configuration with another disk, or another kind of one, in a file of its own. */
static bool propose(struct scene *s, uint32_t *seed)
{
	static const char *const formats[] = { "raw", "qcow2" };
	json_t *json = vmconfig_to_json(&s->c), *d = json_array_get(json_object_get(json, "disks"), 0);
	const char *to = in(own, some_names[pick(seed, 2)]);
	bool is_taken = false;
	int fd;

	set_disk(json, some_file(seed), formats[pick(seed, 2)]);
	if (!pick(seed, 4))
		json_object_set_new(d, "snapshot", json_boolean(pick(seed, 2)));
	if (!pick(seed, 4)) {
		json_object_set_new(d, "pristine", json_string(some_file(seed)));
		json_object_set_new(d, "pristine_format", json_string("raw"));
	}
	char *text = json_dumps(json, 0);

	if (ask(s, BROKER_OPEN, O_RDWR | O_CREAT | O_TRUNC, 0600, to, NULL, -1, &fd) == 0) {
		assert_int_equal(write(fd, text, strlen(text)), strlen(text));
		close(fd);
		is_taken = RENAME(s, to, in(own, "machine.json")) == 0;
	}
	free(text);
	json_decref(json);
	return is_taken;
}

static void expect_text(const char *path, const char *want)
{
	char text[32];

	read_text(path, text, sizeof(text));
	assert_string_equal(text, want);
}

static void test_what_is_only_read_stays_as_it_is(void **state)
{
	static const int flags[] = { O_RDONLY, O_RDWR, O_RDWR | O_CREAT, O_WRONLY | O_TRUNC };
	struct scene *s = *state;
	uint32_t seed = 7;
	unsigned nlinks = 0, nconfigs = 0;

	log_set_level(LOG_ERROR);
	for (unsigned i = 0; i < 20000; i++) {
		const char *one = some_file(&seed), *two = some_file(&seed);

		switch (pick(&seed, 9)) {
		case 0:
		case 1:
			spoil(s, one, flags[pick(&seed, ARRAY_SIZE(flags))]);
			break;
		case 2:
			nlinks += LINK(s, one, two) == 0;
			break;
		case 3:
			(void)RENAME(s, one, two);
			break;
		case 4:
			(void)ask(s, BROKER_UNLINK, pick(&seed, 4) ? 0 : AT_REMOVEDIR, 0, one, NULL,
				  -1, NULL);
			break;
		case 5:
			(void)MKDIR(s, pick(&seed, 2) ? in(own, "snapshots/s") : one);
			break;
		case 6:
		case 7:
			nconfigs += propose(s, &seed);
			break;
		case 8:
			if (!pick(&seed, 8))
				start_again(s);
			break;
		}
	}
	/* Some of it was done. */
	assert_true(nlinks > 10 && nconfigs > 10);
	expect_text(kernel, "the kernel");
	expect_text(in(images, "base.raw"), "base");
	expect_text(in(other, "secret"), "secret");
}

#define CLAIM(s, what) ask(s, BROKER_CLAIM, what, 0, NULL, NULL, -1, NULL)

/* It decides about its own migration; that it has arrived it says when it is its own. */
static void test_a_machine_that_is_on_its_way(void **state)
{
	static const uint8_t id[MIGRATE_ID_BYTES] = { 0xab };
	struct scene *s = *state;
	const char *mark = in(own, MIGRATE_INCOMING);

	for (int what = CLAIM_OPEN; what <= CLAIM_FORGET; what++)
		assert_int_equal(CLAIM(s, what), -EACCES);
	/* A machine's start believes that file. */
	assert_int_equal(OPEN(s, O_WRONLY | O_CREAT, mark), -EACCES);
	write_text(mark, "{}");
	write_text(in(own, "other"), "{}");
	broker_policy_set_claim(s->p, id);
	assert_int_equal(OPEN(s, O_RDONLY, mark), 0);
	assert_int_equal(OPEN(s, O_WRONLY, mark), -EACCES);
	assert_int_equal(RENAME(s, in(own, "other"), mark), -EACCES);
	assert_int_equal(RENAME(s, mark, in(own, "other")), -EACCES);
	assert_int_equal(UNLINK(s, mark), -EACCES);
	assert_int_equal(CLAIM(s, CLAIM_OPEN), 0);
	assert_int_equal(CLAIM(s, CLAIM_OPEN), -EEXIST);
	assert_int_equal(access(in(home, "migrations/ab000000000000000000000000000000.open"), F_OK), 0);
	assert_int_equal(OPEN(s, O_RDONLY | O_DIRECTORY, in(home, "migrations")), -EACCES);
	assert_int_equal(CLAIM(s, 99), -EINVAL);
	assert_int_equal(CLAIM(s, CLAIM_TAKE), 0);
	assert_int_equal(CLAIM(s, CLAIM_SYNC), 0);
	assert_int_equal(UNLINK(s, mark), 0);
	assert_int_equal(CLAIM(s, CLAIM_ASK), MIGRATE_ANSWER_RAN);
	assert_int_equal(CLAIM(s, CLAIM_FORGET), 0);
	assert_int_equal(CLAIM(s, CLAIM_ASK), MIGRATE_ANSWER_UNKNOWN);
}

/* The source asked meanwhile, and took it back. */
static void test_a_machine_that_was_taken_back(void **state)
{
	static const uint8_t id[MIGRATE_ID_BYTES] = { 0xcd };
	struct scene *s = *state;
	struct error err;

	write_text(in(own, MIGRATE_INCOMING), "{}");
	broker_policy_set_claim(s->p, id);
	assert_int_equal(CLAIM(s, CLAIM_OPEN), 0);
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_ABORTED);
	assert_int_equal(CLAIM(s, CLAIM_TAKE), -ECANCELED);
	assert_int_equal(UNLINK(s, in(own, MIGRATE_INCOMING)), -EACCES);
}

/* The lock goes from one broker to the next by their machines; what else one calls a lock is none. */
static void test_a_machine_that_goes_on_elsewhere(void **state)
{
	struct scene *s = *state;
	struct broker_policy *next;
	struct error err;
	int lock = vmlock_take("m", &err), lent, other_lock;

	assert_true(lock >= 0);
	assert_int_equal(vmlock_run(lock, "m", &err), 0);
	assert_int_equal(broker_policy_create(&next, &s->c, &err), 0);
	/* Not of a machine that was switched on here. */
	assert_int_equal(ask(s, BROKER_ARRIVE, 0, 0, NULL, NULL, lock, NULL), -EACCES);
	assert_int_equal(ask(s, BROKER_LOCK, 0, 0, NULL, NULL, -1, &lent), -EACCES);
	broker_policy_set_lock(s->p, lock);
	assert_int_equal(ask(s, BROKER_LOCK, 0, 0, NULL, NULL, -1, &lent), 0);

	struct scene to = { .p = next };

	broker_policy_await(next);
	assert_int_equal(ask(&to, BROKER_ARRIVE, 0, 0, NULL, NULL, -1, NULL), -EACCES);
	write_text(in(other, "lock"), "");
	other_lock = open(in(other, "lock"), O_RDWR);
	assert_int_equal(ask(&to, BROKER_ARRIVE, 0, 0, NULL, NULL, other_lock, NULL), -EBADF);
	close(other_lock);
	other_lock = open(in(own, "lock"), O_RDWR); /* that file, but not that lock */
	assert_int_equal(ask(&to, BROKER_ARRIVE, 0, 0, NULL, NULL, other_lock, NULL), -EBADF);
	close(other_lock);
	assert_int_equal(broker_policy_take_lock(next), -1);
	assert_int_equal(ask(&to, BROKER_ARRIVE, 0, 0, NULL, NULL, lent, NULL), 0);
	assert_int_equal(ask(&to, BROKER_ARRIVE, 0, 0, NULL, NULL, lent, NULL), -EACCES);
	assert_false(broker_policy_has_left(s->p));
	assert_int_equal(ask(s, BROKER_LEAVE, 0, 0, NULL, NULL, -1, NULL), 0);
	assert_true(broker_policy_has_left(s->p));
	/* It stays locked until the last of them has closed it. */
	close(lent);
	close(lock);
	assert_true(vmlock_is_running("m"));
	lock = broker_policy_take_lock(next);
	assert_true(lock >= 0);
	broker_policy_destroy(next);
	assert_true(vmlock_is_running("m"));
	close(lock);
	assert_false(vmlock_is_running("m"));
}

static void test_messages(void **state)
{
	struct broker_request rq = { .op = BROKER_RENAME, .len = { 2, 3 } }, got;
	uint8_t data[sizeof(rq) + 5];
	const char *names[2];

	memcpy(data, &rq, sizeof(rq));
	memcpy(data + sizeof(rq), "a\0bc", 5);
	assert_int_equal(broker_parse(data, sizeof(data), &got, names), 0);
	assert_string_equal(names[0], "a");
	assert_string_equal(names[1], "bc");
	for (size_t n = 0; n < sizeof(data); n++)
		assert_int_equal(broker_parse(data, n, &got, names), -EINVAL);
	data[sizeof(rq)] = 0; /* a NUL too many */
	assert_int_equal(broker_parse(data, sizeof(data), &got, names), -EINVAL);
	data[sizeof(rq)] = 'a';
	data[sizeof(data) - 1] = 'x'; /* none */
	assert_int_equal(broker_parse(data, sizeof(data), &got, names), -EINVAL);
	rq.op = BROKER_NOPS;
	memcpy(data, &rq, sizeof(rq));
	assert_int_equal(broker_parse(data, sizeof(data), &got, names), -EINVAL);
}

/* ---- through the door ---- */

/* In the machine: the host's table leads to the broker. */
static void use_files(void)
{
	char text[32] = "", path[PATH_MAX];
	struct stat st;
	int dir = host.open(own, O_RDONLY | O_DIRECTORY, 0),
	    fd = host.openat(dir, "x", O_RDWR | O_CREAT, 0600);

	if (fd < 0 || write(fd, "hello", 5) != 5)
		_exit(1);
	fd = host.open(in(own, "x"), O_RDONLY, 0);
	if (read(fd, text, sizeof(text)) != 5 || strcmp(text, "hello") != 0)
		_exit(2);
	if (host.fstatat(dir, "x", &st, 0) < 0 || st.st_size != 5)
		_exit(3);
	if (host.linkat(dir, "x", dir, "y", 0) < 0 ||
	    host.renameat(dir, "y", AT_FDCWD, in(own, "z")) < 0 ||
	    host.unlinkat(AT_FDCWD, in(own, "z"), 0) < 0 || host.access(in(own, "z"), F_OK) == 0 ||
	    errno != ENOENT)
		_exit(4);
	if (!host.realpath(kernel, path) || strcmp(path, kernel) != 0)
		_exit(5);
	if (host.open("/etc/passwd", O_RDONLY, 0) >= 0 || errno != EACCES)
		_exit(6);
	if (host.mkdir(in(own, "sub"), 0700) < 0)
		_exit(7);
	/* its own, opened before it had no files */
	if (host.open("/proc/self/pagemap", O_RDONLY, 0) < 0)
		_exit(8);
	_exit(0);
}

/* Both in children of this process: what they become ends with them. */
static int kept_fds[3] = { -1, -1, -1 }; /* of the machine's process */

static int run_confined(struct scene *s, void (*machine)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		struct confine c;
		struct error err;
		int r = confine_split(&c, kept_fds, false, &err);

		if (r == CONFINE_MACHINE) {
			if (confine_await(c.root_fd, &err) < 0)
				_exit(102);
			broker_use(c.door, c.pagemap_fd);
			machine();
		}
		if (r < 0) {
			fprintf(stderr, "%s\n", err.text);
			_exit(100);
		}
		broker_serve(s->p, c.door, NULL, NULL);
		status = confine_wait(&c);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 101);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 102;
}

static void test_through_the_door(void **state)
{
	assert_int_equal(run_confined(*state, use_files), 0);
}

enum { NTHREADS = 12 };
static pthread_barrier_t begin, end;

static int compare_ints(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* What a C library asks the kernel for when a thread does nothing but compute. */
static void *use_the_library(void *arg)
{
	enum { N = 4096 };
	struct error err;

	if (confine_filter_vcpu(&err) < 0)
		_exit(1);
	pthread_barrier_wait(&begin);
	/* an arena for each thread, one of them more than there are without counting processors */
	int *p = malloc(N * sizeof(*p));

	pthread_barrier_wait(&end);
	for (int i = 0; i < N; i++)
		p[i] = (i * 7919) % N;
	qsort(p, N, sizeof(*p), compare_ints);
	for (int i = 0; i < N; i++)
		if (p[i] != i)
			_exit(2);
	free(p);
	return NULL;
}

static void use_threads(void)
{
	pthread_t threads[NTHREADS];

	pthread_barrier_init(&begin, NULL, NTHREADS);
	pthread_barrier_init(&end, NULL, NTHREADS);
	for (int i = 0; i < NTHREADS; i++)
		if (pthread_create(&threads[i], NULL, use_the_library, NULL) != 0)
			_exit(3);
	for (int i = 0; i < NTHREADS; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}

static void test_threads_of_guests_compute(void **state)
{
	assert_int_equal(run_confined(*state, use_threads), 0);
}

static struct attack_target target;

/* ---- a server of a folder, as the machine's process sees it ---- */

static char shared[256];

static bool receive(int fd, uint8_t *p, size_t len)
{
	for (ssize_t n; len; p += n, len -= (size_t)n) {
		n = read(fd, p, len);
		if (n <= 0)
			return false;
	}
	return true;
}

static void serve_folder(int fd, bool is_readonly)
{
	static uint8_t request[P9_MSIZE_MIN], reply[P9_MSIZE_MAX];
	struct share_server *server;
	struct error err;
	uint32_t size;

	if (share_server_create(&server, open(shared, O_PATH | O_DIRECTORY), is_readonly, &err) < 0)
		_exit(1);
	while (receive(fd, request, sizeof(size))) {
		memcpy(&size, request, sizeof(size));
		if (size < P9_HEADER || size > sizeof(request) ||
		    !receive(fd, request + sizeof(size), size - sizeof(size)))
			_exit(1);
		size_t n = share_server_handle(server, request, size, reply);

		if (write(fd, reply, n) != (ssize_t)n)
			_exit(1);
	}
	_exit(0);
}

/* A socket to one, which ends with it. */
static int share(bool is_readonly)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		close(fds[0]);
		for (size_t i = 0; i < ARRAY_SIZE(kept_fds); i++)
			if (kept_fds[i] >= 0)
				close(kept_fds[i]);
		serve_folder(fds[1], is_readonly);
	}
	close(fds[1]);
	return fds[0];
}

static void share_twice(bool is_second_readonly)
{
	struct error err;
	char link[300];

	snprintf(shared, sizeof(shared), "%s/shared", own);
	assert_int_equal(paths_make(shared, &err), 0);
	write_text(in(own, ATTACK_SECRET), "secret");
	write_text(in(shared, ATTACK_KEPT), "kept");
	snprintf(link, sizeof(link), "%s/" ATTACK_LINK, shared);
	assert_int_equal(symlink("../" ATTACK_SECRET, link), 0);
	target.share_fd = kept_fds[0] = share(false);
	target.readonly_share_fd = kept_fds[1] = share(is_second_readonly);
}

static void end_shares(void)
{
	for (unsigned i = 0; i < 2; i++) {
		close(kept_fds[i]);
		kept_fds[i] = -1;
		assert_true(wait(NULL) > 0);
	}
}

static void attack(void)
{
	for (unsigned i = 0; i < attack_count(); i++) {
		for (int is_vcpu = 0; is_vcpu < 2; is_vcpu++) {
			struct attack_result r = attack_try(i, &target, is_vcpu);

			if (r.outcome != ATTACK_KILLED && r.outcome != ATTACK_REFUSED) {
				dprintf(STDERR_FILENO, "%s: %d\n", r.name, r.outcome);
				_exit(1);
			}
		}
	}
	_exit(0);
}

static void test_attacks(void **state)
{
	struct scene *s = *state;

	target = (struct attack_target){ .config = &s->c,
					 .folder = own,
					 .victim = other,
					 .socket = "/tmp/none.sock",
					 .process = getpid(),
					 .tcp_port = 1 };
	share_twice(true);
	assert_int_equal(run_confined(s, attack), 0);
	end_shares();
}

/* The tries can succeed: a process that is not confined makes those that do no harm. */
static void test_attacks_are_real(void **state)
{
	static const char *const harmless[] = {
		"open a file by its name",
		"ask the broker for the password file",
		"write the machine's configuration",
		"write to the machine's kernel by another name",
		"replace the configuration by one with the kernel as its disk",
		"put the kernel in the place of the machine's disk",
		"the kernel's netlink",
		"signal a process of the host",
		"a descriptor of a process of the host",
		"run a shell",
		"become dumpable",
		"map memory to write and execute",
		"make written memory executable",
		"map a file to write and execute",
		"make a file in a read-only shared folder", /* which here is not read-only */
		"write a file of a read-only shared folder",
	};
	struct scene *s = *state;

	target = (struct attack_target){
		.config = &s->c, .folder = own, .victim = other, .process = getpid()
	};
	share_twice(false);
	for (size_t k = 0; k < ARRAY_SIZE(harmless); k++) {
		unsigned i = 0;

		while (i < attack_count() && strcmp(attack_name(i), harmless[k]) != 0)
			i++;
		assert_true(i < attack_count());
		assert_int_equal(attack_try(i, &target, false).outcome, ATTACK_SUCCEEDED);
	}
	end_shares();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_its_own_files, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_temporary_file, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_by_a_folders_descriptor, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_way_out, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_files_of_the_configuration, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_folders_that_disks_may_stand_on, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_names_that_lead_to_them, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_the_configuration, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_the_configuration_is_written_to_no_link,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_copies, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_what_is_linked_is_no_disk, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_layer_that_is_taken_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_the_layers_of_a_snapshot, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_throw_away_disk, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_copies_in_a_lab, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_what_is_only_read_stays_as_it_is, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_machine_that_is_on_its_way, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_machine_that_was_taken_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_machine_that_goes_on_elsewhere, set_up, tear_down),
		cmocka_unit_test(test_messages),
		cmocka_unit_test_setup_teardown(test_through_the_door, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_threads_of_guests_compute, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_attacks, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_attacks_are_real, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
