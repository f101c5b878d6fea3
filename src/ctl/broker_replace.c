/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration of a machine, replaced by itself.
 *
 * Its next start believes it, above all which file is written as a disk.  A name in the machine's folder is no answer to that: the machine may
 * link files there that it may only read (a kernel, a base image, a frozen layer of a snapshot), and it may put one file in the place of another.
 *  1. A disk becomes a file that has that one name only, so that nobody else has it; or stays the file that it was, or the
 *     one before, under whatever name (a layer that was announced and did not come on top).
 *  2. While a configuration names a file as a disk, nothing is linked or renamed to that name: what was judged is what will be opened.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "ctl/broker_int.h"
#include "ctl/paths.h"

static json_t *disk_of(json_t *config, size_t i)
{
	return json_array_get(json_object_get(config, "disks"), i);
}

static bool is_written(json_t *disk)
{
	return !json_is_true(json_object_get(disk, "readonly")) &&
	       !json_is_true(json_object_get(disk, "snapshot"));
}

static const char *path_of(json_t *config, size_t i)
{
	return json_string_value(json_object_get(disk_of(config, i), "path"));
}

/* The name of @path in the folder; NULL: it is not directly there. */
static const char *name_in(const struct folder *f, const char *path)
{
	size_t n = strlen(f->path);

	return path && strncmp(path, f->path, n) == 0 && path[n] == '/' && path[n + 1] &&
			       !strchr(path + n + 1, '/')
		       ? path + n + 1
		       : NULL;
}

static bool is_same(const struct broker_top *a, const struct stat *st)
{
	return a->ino && a->dev == st->st_dev && a->ino == st->st_ino;
}

void broker_learn_tops(struct broker_policy *p)
{
	for (size_t i = 0; i < MACHINE_MAX_DISKS && disk_of(p->own.config, i); i++) {
		const char *path = path_of(p->own.config, i);
		struct stat st;

		/* What is only read is no top, whatever is linked where. */
		if (is_written(disk_of(p->own.config, i)) && path && stat(path, &st) == 0)
			p->tops[i] = (struct broker_top){ st.st_dev, st.st_ino };
	}
}

bool broker_is_top(const struct place *at)
{
	if (!at->folder || !at->is_top)
		return false;
	for (size_t i = 0; disk_of(at->folder->config, i); i++) {
		const char *name = name_in(at->folder, path_of(at->folder->config, i));

		if (name && strcmp(name, at->name) == 0)
			return true;
	}
	return false;
}

/* Disk @i of the new configuration: who else has that file? */
static bool may_be_top(const struct broker_policy *p, const struct folder *to, json_t *json,
		       size_t i, struct stat *st)
{
	bool is_own = to == &p->own;
	const char *name = name_in(to, path_of(json, i));

	if (!name || fstatat(to->fd, name, st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st->st_mode))
		return false;
	return st->st_nlink == 1 ||
	       (is_own && (is_same(&p->tops[i], st) || is_same(&p->before[i], st)));
}

static bool is_changed(json_t *old, json_t *json, size_t i)
{
	return !json_equal(json_object_get(disk_of(old, i), "path"),
			   json_object_get(disk_of(json, i), "path")) ||
	       !json_equal(json_object_get(disk_of(old, i), "snapshot"),
			   json_object_get(disk_of(json, i), "snapshot"));
}

static bool may_have_tops(const struct broker_policy *p, const struct folder *to, json_t *json,
			  struct broker_top tops[MACHINE_MAX_DISKS])
{
	struct stat st;

	for (size_t i = 0; i < MACHINE_MAX_DISKS && disk_of(json, i); i++) {
		tops[i] = p->tops[i];
		if (!is_written(disk_of(json, i))) {
			tops[i] = (struct broker_top){ 0 };
			continue;
		}
		/* A copy shares no disk with the machine. */
		if (to == &p->own && !is_changed(p->own.config, json, i))
			continue;
		if (!may_be_top(p, to, json, i, &st))
			return false;
		tops[i] = (struct broker_top){ st.st_dev, st.st_ino };
	}
	return true;
}

/* ---- reading and writing ---- */

/* @is_stable: else that is the new machine's to see to, when it runs (vmsettle.h). */
static int write_config(const struct folder *to, json_t *json, bool is_stable)
{
	_cleanup_free_ char *text = json_dumps(json, JSON_INDENT(2)), *path = NULL;
	struct error err;

	if (!text || asprintf(&path, "%s/" BROKER_CONFIG, to->path) < 0)
		return -ENOMEM;
	return is_stable ? paths_write_file(path, text, strlen(text), &err)
			 : paths_hand_over(path, text, strlen(text), &err);
}

static json_t *read_config(const struct place *from)
{
	_cleanup_close_ int fd =
		openat(from->fd, from->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	_cleanup_free_ char *text = malloc(VMCONFIG_MAX_BYTES + 1);
	struct stat st;
	size_t len = 0;

	if (fd < 0 || !text || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return NULL;
	for (;;) {
		ssize_t n = pread(fd, text + len, VMCONFIG_MAX_BYTES + 1 - len, (off_t)len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	return len <= VMCONFIG_MAX_BYTES ? json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL) : NULL;
}

static void adopt(struct broker_policy *p, struct folder *to, json_t *json,
		  const struct broker_top tops[MACHINE_MAX_DISKS])
{
	json_decref(to->config);
	to->config = json_incref(json);
	if (to != &p->own)
		return;
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (p->tops[i].dev == tops[i].dev && p->tops[i].ino == tops[i].ino)
			continue;
		p->before[i] = p->tops[i];
		p->tops[i] = tops[i];
	}
}

int broker_replace_config(struct broker_policy *p, const struct place *from, const struct place *to)
{
	const struct broker_follow f = { .folder = to->folder->path,
					 .is_copy = to->folder != &p->own,
					 .record = p->record };
	struct broker_top tops[MACHINE_MAX_DISKS] = { 0 };
	json_t *json = read_config(from);
	int r = json && broker_config_follows(p->own.config, json, &f) &&
				may_have_tops(p, to->folder, json, tops)
			? 0
			: -EACCES;

	if (r == 0)
		r = write_config(to->folder, json, to->folder == &p->own);
	if (r == 0) {
		(void)unlinkat(from->fd, from->name, 0);
		adopt(p, to->folder, json, tops);
	}
	json_decref(json);
	return r;
}
