/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a machine may do with which file.
 *
 * A name is resolved to a place: an open folder and a plain name in it.  Below a folder of the machine every component is opened without
 * following links (openat2, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS); a name outside must be one that the configuration names, to the byte.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/host.h"
#include "ctl/broker_int.h"
#include "ctl/paths.h"
#include "ctl/vmlock.h"

#define OPEN_FLAGS                                                                                 \
	(O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_DIRECTORY | O_NOFOLLOW | O_DIRECT | \
	 O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

/* ---- making ---- */

/* The rest of @path behind @folder, or NULL: it is not below it. */
static const char *below(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	return strncmp(path, folder, n) == 0 && (path[n] == '/' || !path[n]) ? path + n : NULL;
}

static int list(struct broker_policy *p, const char *path, bool is_writable, bool is_tree)
{
	if (!path)
		return 0;
	for (unsigned i = 0; i < p->nlisted; i++) {
		if (strcmp(p->listed[i].path, path) == 0) {
			p->listed[i].is_writable |= is_writable;
			p->listed[i].is_tree |= is_tree;
			return 0;
		}
	}
	if (p->nlisted == BROKER_LISTED_MAX)
		return -E2BIG;
	char *copy = strdup(path);

	if (!copy)
		return -ENOMEM;
	p->listed[p->nlisted++] = (struct listed){ copy, is_writable, is_tree };
	return 0;
}

/* Also under its real name: that is what layers ask for. */
static int list_both(struct broker_policy *p, const char *path, bool is_writable)
{
	_cleanup_free_ char *real = path ? realpath(path, NULL) : NULL;
	struct stat st;
	bool is_tree = real && stat(real, &st) == 0 && S_ISDIR(st.st_mode);
	int r = list(p, path, is_writable, is_tree);

	return r == 0 && real ? list(p, real, is_writable, is_tree) : r;
}

/* A machine that was made of a snapshot begins on its layers, which are other machines', too: it gets layers of its own before it writes. */
static bool is_in_snapshot(const struct broker_policy *p, const char *path)
{
	const char *rest = below(path, p->own.path);

	return rest && *rest && strchr(rest + 1, '/');
}

static int list_config(struct broker_policy *p, const struct vmconfig *c)
{
	int r = list_both(p, c->kernel, false);

	if (r == 0)
		r = list_both(p, c->initrd, false);
	if (r == 0)
		r = list_both(p, c->firmware, false);
	for (const char *const *f = machine_default_firmware(); r == 0 && *f; f++)
		r = list(p, *f, false, false);
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++) {
		const struct vmconfig_disk *d = &c->disks[i];

		r = list_both(p, d->path,
			      !d->is_readonly && !d->is_snapshot && !is_in_snapshot(p, d->path));
		if (r == 0)
			r = list_both(p, d->pristine, false);
		for (char *const *b = d->backing; r == 0 && *b; b++)
			r = list_both(p, *b, false);
	}
	if (r == 0)
		r = list(p, "/proc/sys/kernel/random/boot_id", false, false);
	return r == 0 ? list(p, "/dev/kvm", true, false) : r;
}

static void folder_close(struct folder *f)
{
	free(f->path);
	free(f->real);
	json_decref(f->config);
	if (f->fd >= 0)
		close(f->fd);
	*f = (struct folder){ .fd = -1 };
}

static int folder_open(struct folder *f, const char *path)
{
	*f = (struct folder){ .fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC) };
	if (f->fd < 0)
		return -errno;
	f->path = strdup(path);
	f->real = realpath(path, NULL);
	if (f->path && f->real)
		return 0;
	int r = -errno;

	folder_close(f);
	return r;
}

int broker_policy_create(struct broker_policy **out, const struct vmconfig *c, struct error *err)
{
	_cleanup_free_ char *own = paths_vm(c->name, NULL, err);
	struct broker_policy *p = own ? calloc(1, sizeof(*p)) : NULL;
	const char *temporary = getenv("TMPDIR");

	if (!p)
		return own ? error_set(err, -ENOMEM, "no memory for a broker") : -ENOMEM;
	p->lock_fd = p->held_lock = -1;
	int r = folder_open(&p->own, own);

	if (r < 0) {
		free(p);
		return error_set(err, r, "cannot open %s: %s", own, strerror(-r));
	}
	p->name = strdup(c->name);
	p->machines = strndup(own, (size_t)(strrchr(own, '/') - own));
	p->temporary = strdup(temporary && *temporary ? temporary : "/var/tmp");
	p->own.config = vmconfig_to_json(c);
	r = p->name && p->machines && p->temporary && p->own.config ? list_config(p, c) : -ENOMEM;
	if (r < 0) {
		broker_policy_destroy(p);
		return error_set(err, r, "the files of the machine can't be listed: %s", strerror(-r));
	}
	broker_learn_tops(p);
	*out = p;
	return 0;
}

void broker_policy_set_claim(struct broker_policy *p, const uint8_t *id)
{
	p->is_incoming = true;
	memcpy(p->id, id, sizeof(p->id));
}

void broker_policy_set_lab(struct broker_policy *p, broker_lab_fn lab, void *arg)
{
	p->lab = lab;
	p->lab_arg = arg;
}

void broker_policy_destroy(struct broker_policy *p)
{
	if (!p)
		return;
	folder_close(&p->own);
	for (unsigned i = 0; i < p->ncopies; i++)
		folder_close(&p->copies[i]);
	for (unsigned i = 0; i < p->nlisted; i++)
		free(p->listed[i].path);
	if (p->lock_fd >= 0)
		close(p->lock_fd);
	free(p->name);
	free(p->machines);
	free(p->temporary);
	json_decref(p->record);
	free(p);
}

void broker_policy_set_lock(struct broker_policy *p, int fd)
{
	p->held_lock = fd;
}

void broker_policy_await(struct broker_policy *p)
{
	p->awaits = true;
}

bool broker_policy_has_left(const struct broker_policy *p)
{
	return p->has_left;
}

int broker_policy_take_lock(struct broker_policy *p)
{
	int fd = p->lock_fd;

	p->lock_fd = -1;
	return fd;
}

bool broker_policy_is_unwanted(const struct broker_policy *p)
{
	return p->is_unwanted;
}

int broker_policy_hand_over(struct broker_policy *p, const char *name)
{
	for (unsigned i = 0; i < p->ncopies; i++) {
		if (strcmp(strrchr(p->copies[i].path, '/') + 1, name) != 0)
			continue;
		folder_close(&p->copies[i]);
		p->copies[i] = p->copies[--p->ncopies];
		return 0;
	}
	return -EACCES;
}

/* ---- where a name leads ---- */

static bool is_plain(const char *name)
{
	return *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !strchr(name, '/') &&
	       strlen(name) <= NAME_MAX;
}

static int open_beneath(int dir, const char *path)
{
	const struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
				      .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
						 RESOLVE_NO_MAGICLINKS };
	int fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));

	return fd < 0 ? -errno : fd;
}

/* Does @path go up anywhere? */
static bool goes_up(const char *path)
{
	for (const char *at = path; (at = strstr(at, "..")); at += 2)
		if ((at == path || at[-1] == '/') && (at[2] == '/' || !at[2]))
			return true;
	return false;
}

static unsigned count_slashes(const char *path)
{
	unsigned n = 0;

	for (; *path; path++)
		n += *path == '/';
	return n;
}

static int in_folder(struct folder *f, const char *rest, struct place *out)
{
	char parent[PATH_MAX];

	while (*rest == '/')
		rest++;
	const char *slash = strrchr(rest, '/'), *name = slash ? slash + 1 : rest;

	if (*rest && !is_plain(name))
		return -EACCES;
	snprintf(out->name, sizeof(out->name), "%s", *rest ? name : ".");
	snprintf(parent, sizeof(parent), "%.*s", slash ? (int)(slash - rest) : 1, slash ? rest : ".");
	out->folder = f;
	out->is_top = !slash;
	out->depth = *rest ? 1 + count_slashes(rest) : 0;
	if (out->depth > BROKER_DEPTH_MAX)
		return -EACCES;
	out->fd = open_beneath(f->fd, parent);
	return out->fd < 0 ? out->fd : 0;
}

static int by_path(struct broker_policy *p, const char *path, struct place *out)
{
	const char *rest = below(path, p->own.path);

	if (rest)
		return in_folder(&p->own, rest, out);
	for (unsigned i = 0; i < p->ncopies; i++) {
		rest = below(path, p->copies[i].path);
		if (rest)
			return in_folder(&p->copies[i], rest, out);
	}
	for (unsigned i = 0; i < p->nlisted; i++) {
		const struct listed *l = &p->listed[i];

		if (strcmp(path, l->path) != 0 && !(l->is_tree && below(path, l->path) && !goes_up(path)))
			continue;
		out->listed = l;
		out->fd = AT_FDCWD;
		snprintf(out->name, sizeof(out->name), "%s", path);
		return 0;
	}
	return -EACCES;
}

/* @dir came from the machine: it must be a folder below one of its own, wherever that is by now. */
static int by_dir(struct broker_policy *p, int dir, const char *name, struct place *out)
{
	char link[64], real[PATH_MAX];
	struct stat st;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", dir);
	ssize_t n = readlink(link, real, sizeof(real) - 1);

	if (n < 0 || fstat(dir, &st) < 0 || !S_ISDIR(st.st_mode) ||
	    (!is_plain(name) && strcmp(name, ".") != 0))
		return -EACCES;
	real[n] = 0;
	const char *rest = below(real, p->own.real);

	out->folder = &p->own;
	for (unsigned i = 0; !rest && i < p->ncopies; i++) {
		rest = below(real, p->copies[i].real);
		out->folder = &p->copies[i];
	}
	if (!rest)
		return -EACCES;
	out->is_top = !*rest;
	out->depth = count_slashes(rest) + (strcmp(name, ".") != 0);
	if (out->depth > BROKER_DEPTH_MAX)
		return -EACCES;
	snprintf(out->name, sizeof(out->name), "%s", name);
	out->fd = dup(dir);
	return out->fd < 0 ? -errno : 0;
}

static int find_place(struct broker_policy *p, const char *name, int dir, struct place *out)
{
	*out = (struct place){ .fd = -1 };
	if (!name)
		return -EINVAL;
	return dir >= 0 ? by_dir(p, dir, name, out) : by_path(p, name, out);
}

static void place_close(struct place *at)
{
	if (at->fd >= 0)
		close(at->fd);
	at->fd = -1;
}

static bool is_mark_of_arrival(const struct place *at)
{
	return at->is_top && strcmp(at->name, MIGRATE_INCOMING) == 0;
}

/* What only its broker writes. */
static bool is_guarded(const struct place *at)
{
	return at->is_top && (strcmp(at->name, BROKER_CONFIG) == 0 ||
			      strcmp(at->name, "lock") == 0 || strncmp(at->name, "vm.log", 6) == 0 ||
			      strcmp(at->name, ".") == 0 || is_mark_of_arrival(at));
}

/* ---- operations ---- */

static bool is_temporary(const struct broker_policy *p, const char *path, int flags)
{
	return (flags & O_TMPFILE) == O_TMPFILE && strcmp(path, p->temporary) == 0;
}

/*
 * A file with several names is a frozen layer, or one of the user's that was linked: others stand on it.  It is written only where the
 * configuration had it as a disk when the machine began.
 */
static bool is_shared(const struct broker_policy *p, const struct place *at, const char *path)
{
	struct stat st;

	if (fstatat(at->fd, at->name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode) ||
	    st.st_nlink == 1)
		return false;
	for (unsigned i = 0; i < p->nlisted; i++)
		if (p->listed[i].is_writable && strcmp(p->listed[i].path, path) == 0)
			return false;
	return true;
}

static int open_temporary(const char *dir)
{
	char path[PATH_MAX];
	int fd = host.open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);

	if (fd >= 0 || snprintf(path, sizeof(path), "%s/viv-XXXXXX", dir) >= (int)sizeof(path))
		return fd >= 0 ? fd : -errno;
	/* Not every file system has such. */
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	(void)unlink(path);
	return fd;
}

static int do_open(struct broker_policy *p, const struct broker_request *rq, const char *name,
		   int dir, int *fd)
{
	bool is_write = (rq->flags & O_ACCMODE) != O_RDONLY || (rq->flags & (O_CREAT | O_TRUNC));
	struct place at;

	/* A file without a name: what is thrown away at the end is written to it. */
	if (dir < 0 && is_temporary(p, name, rq->flags)) {
		*fd = open_temporary(name);
		return *fd < 0 ? *fd : 0;
	}
	if (rq->flags & ~OPEN_FLAGS)
		return -EINVAL;
	int r = find_place(p, name, dir, &at);

	if (r < 0)
		return r;
	if (at.listed) {
		if (is_write && (!at.listed->is_writable || (rq->flags & (O_CREAT | O_TRUNC))))
			r = -EACCES;
		if (rq->flags & O_DIRECTORY)
			r = -EACCES;
	} else if (is_write && (is_guarded(&at) || is_shared(p, &at, name))) {
		r = -EACCES;
	}
	if (r == 0) {
		int extra = O_CLOEXEC | O_NOCTTY | (at.folder ? O_NOFOLLOW : 0);
		mode_t mode = rq->mode & 0700;

		*fd = openat(at.fd, at.name, rq->flags | extra, mode);
		r = *fd < 0 ? -errno : 0;
	}
	place_close(&at);
	return r;
}

static int do_stat(struct broker_policy *p, const struct broker_request *rq, const char *name,
		   int dir, struct stat *st)
{
	struct place at;
	int r = find_place(p, name, dir, &at);

	if (r < 0)
		return r;
	int flags = at.folder ? AT_SYMLINK_NOFOLLOW : rq->flags & AT_SYMLINK_NOFOLLOW;

	r = fstatat(at.fd, at.name, st, flags) < 0 ? -errno : 0;
	place_close(&at);
	return r;
}

static int do_access(struct broker_policy *p, const struct broker_request *rq, const char *name, int dir)
{
	struct place at;
	int r = find_place(p, name, dir, &at);

	if (r < 0)
		return r;
	r = faccessat(at.fd, at.name, (int)(rq->mode & (R_OK | W_OK)), 0) < 0 ? -errno : 0;
	place_close(&at);
	return r;
}

/*
 * An image names what it stands on as it likes, over links and ".."; it is the file that counts.  Of other names nothing is told, not even whether
 * they are there.
 */
static int do_realpath(struct broker_policy *p, const char *name, char *text)
{
	char real[PATH_MAX];
	struct place at;
	int r = find_place(p, name, -1, &at);
	bool is_known = r == 0;

	if (r == -EACCES && name[0] == '/' && realpath(name, real))
		r = find_place(p, real, -1, &at);
	if (r < 0)
		return r;
	bool is_listed = at.listed;

	place_close(&at);
	if (!is_known && !is_listed)
		return -EACCES;
	return realpath(is_known ? name : real, text) ? 0 : -errno;
}

/* A folder below the machine's; or a new machine's. */
static int do_mkdir(struct broker_policy *p, const struct broker_request *rq, const char *name, int dir)
{
	const char *rest = dir < 0 && name ? below(name, p->machines) : NULL;
	struct error err;
	struct place at;
	int r = find_place(p, name, dir, &at);

	if (r == 0) {
		r = !at.folder || at.depth == BROKER_DEPTH_MAX ? -EACCES
		    : mkdirat(at.fd, at.name, 0700) < 0	       ? -errno
							       : 0;
		place_close(&at);
		return r;
	}
	if (r != -EACCES || !rest || *rest != '/' || paths_check_name("a machine", rest + 1, &err) < 0)
		return r;
	if (p->ncopies == BROKER_COPIES_MAX)
		return -EDQUOT;
	if (mkdir(name, 0700) < 0)
		return -errno;
	r = folder_open(&p->copies[p->ncopies], name);
	if (r == 0)
		p->ncopies++;
	else
		(void)rmdir(name);
	return r;
}

static int do_unlink(struct broker_policy *p, const struct broker_request *rq, const char *name, int dir)
{
	bool is_dir = rq->flags & AT_REMOVEDIR;
	struct place at;

	/* A copy that did not come to live. */
	for (unsigned i = 0; is_dir && dir < 0 && name && i < p->ncopies; i++) {
		if (strcmp(name, p->copies[i].path) != 0)
			continue;
		if (rmdir(name) < 0)
			return -errno;
		folder_close(&p->copies[i]);
		p->copies[i] = p->copies[--p->ncopies];
		return 0;
	}
	/* This machine itself: at its end. */
	if (is_dir && dir < 0 && strcmp(name, p->own.path) == 0) {
		p->is_unwanted = true;
		return 0;
	}
	int r = find_place(p, name, dir, &at);

	if (r < 0)
		return r;
	bool has_arrived = p->is_taken && is_mark_of_arrival(&at);

	if (!at.folder || (at.folder == &p->own && is_guarded(&at) && !has_arrived))
		r = -EACCES;
	else
		r = unlinkat(at.fd, at.name, is_dir ? AT_REMOVEDIR : 0) < 0 ? -errno : 0;
	place_close(&at);
	return r;
}

static bool is_folder(const struct place *at)
{
	struct stat st;

	return fstatat(at->fd, at->name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static int do_rename(struct broker_policy *p, const char *const names[2], const int dirs[2])
{
	struct place from, to = { .fd = -1 };
	int r = find_place(p, names[0], dirs[0], &from);

	if (r == 0)
		r = find_place(p, names[1], dirs[1], &to);
	if (r == 0 && (!from.folder || !to.folder || is_guarded(&from)))
		r = -EACCES;
	if (r == 0 && to.is_top && strcmp(to.name, BROKER_CONFIG) == 0)
		r = broker_replace_config(p, &from, &to);
	else if (r == 0 && (is_guarded(&to) || broker_is_top(&to)))
		r = -EACCES;
	else if (r == 0 && from.depth != to.depth && is_folder(&from))
		r = -EACCES; /* it could get deeper and deeper */
	else if (r == 0)
		r = renameat(from.fd, from.name, to.fd, to.name) < 0 ? -errno : 0;
	place_close(&from);
	place_close(&to);
	return r;
}

static int do_link(struct broker_policy *p, const char *const names[2], const int dirs[2])
{
	struct place from, to = { .fd = -1 };
	struct stat st;
	int r = find_place(p, names[0], dirs[0], &from);

	if (r == 0)
		r = find_place(p, names[1], dirs[1], &to);
	if (r == 0 && (!to.folder || is_guarded(&to) || (from.folder && is_guarded(&from))))
		r = -EACCES;
	if (r == 0 && broker_is_top(&to))
		r = faccessat(to.fd, to.name, F_OK, AT_SYMLINK_NOFOLLOW) == 0 ? -EEXIST : -EACCES;
	/* Files only: of the machine, or that it may read anyway. */
	if (r == 0 && fstatat(from.fd, from.name, &st, from.folder ? AT_SYMLINK_NOFOLLOW : 0) < 0)
		r = -errno;
	if (r == 0 && !S_ISREG(st.st_mode))
		r = -EACCES;
	if (r == 0)
		r = linkat(from.fd, from.name, to.fd, to.name, from.folder ? 0 : AT_SYMLINK_FOLLOW) < 0
			    ? -errno
			    : 0;
	place_close(&from);
	place_close(&to);
	return r;
}

static int write_text(int fd, const char *text)
{
	for (size_t len = strlen(text), n = 0; n < len;) {
		ssize_t w = write(fd, text + n, len - n);

		if (w < 0 && errno == EINTR)
			continue;
		if (w <= 0)
			return w < 0 ? -errno : -EIO;
		n += (size_t)w;
	}
	return 0;
}

/* Too long for a message: in a file without a name. */
static int do_lab(struct broker_policy *p, int *fd)
{
	json_t *record = p->lab ? p->lab(p->lab_arg) : NULL;
	_cleanup_free_ char *text = record ? json_dumps(record, JSON_COMPACT) : NULL;

	if (!text) {
		json_decref(record);
		return record ? -ENOMEM : -ENOENT;
	}
	json_decref(p->record);
	p->record = record;
	_cleanup_close_ int file = memfd_create("viv-lab", MFD_CLOEXEC);
	int r = file < 0 ? -errno : write_text(file, text);

	if (r < 0)
		return r;
	*fd = file;
	file = -1;
	return 0;
}

static int do_claim(struct broker_policy *p, int what)
{
	struct error err;
	int r;

	if (!p->is_incoming)
		return -EACCES;
	switch (what) {
	case CLAIM_OPEN:
		return claim_open(p->id, &err);
	case CLAIM_TAKE:
		r = claim_take(p->id, &err);
		p->is_taken |= r == 0;
		return r;
	case CLAIM_SYNC:
		return claim_sync(&err);
	case CLAIM_ASK:
		return claim_ask(p->id, &err);
	case CLAIM_FORGET:
		claim_forget(p->id);
		return 0;
	}
	return -EINVAL;
}

static int do_arrive(struct broker_policy *p, int lock)
{
	struct error err;

	if (!p->awaits || lock < 0)
		return -EACCES;
	_cleanup_close_ int fd = fcntl(lock, F_DUPFD_CLOEXEC, 0);
	int r = fd < 0 ? -errno : vmlock_join(fd, p->name, &err);

	if (r < 0)
		return r;
	p->awaits = false;
	p->lock_fd = p->held_lock = fd;
	fd = -1;
	return 0;
}

int broker_answer(struct broker_policy *p, const struct broker_request *rq,
		  const char *const names[2], const int dirs[2], struct stat *st, int *fd, char *text)
{
	*fd = -1;
	if (!names[0] && rq->op != BROKER_LAB && rq->op != BROKER_CLAIM && rq->op != BROKER_LOCK &&
	    rq->op != BROKER_LEAVE && rq->op != BROKER_ARRIVE)
		return -EINVAL;
	switch ((enum broker_op)rq->op) {
	case BROKER_OPEN:
		return do_open(p, rq, names[0], dirs[0], fd);
	case BROKER_STAT:
		return do_stat(p, rq, names[0], dirs[0], st);
	case BROKER_ACCESS:
		return do_access(p, rq, names[0], dirs[0]);
	case BROKER_REALPATH:
		return do_realpath(p, names[0], text);
	case BROKER_MKDIR:
		return do_mkdir(p, rq, names[0], dirs[0]);
	case BROKER_UNLINK:
		return do_unlink(p, rq, names[0], dirs[0]);
	case BROKER_RENAME:
		return do_rename(p, names, dirs);
	case BROKER_LINK:
		return do_link(p, names, dirs);
	case BROKER_LAB:
		return do_lab(p, fd);
	case BROKER_CLAIM:
		return do_claim(p, rq->flags);
	case BROKER_LOCK:
		*fd = p->held_lock >= 0 ? fcntl(p->held_lock, F_DUPFD_CLOEXEC, 0) : -1;
		return *fd >= 0 ? 0 : -EACCES;
	case BROKER_LEAVE:
		p->has_left = true;
		return 0;
	case BROKER_ARRIVE:
		return do_arrive(p, dirs[0]);
	case BROKER_COPY: /* the server's */
	case BROKER_NOPS:
		break;
	}
	return -EINVAL;
}
