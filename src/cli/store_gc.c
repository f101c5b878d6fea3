/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv image gc`: what the store has, and nothing needs.
 *
 * Descriptions of machines are read twice, one round after the other: a machine that moves from one folder to another meanwhile is in at least
 * one of them.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/store.h"
#include "ctl/migrate_claim.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"

struct blob {
	char hex[STORE_HEX + 1];
	uint64_t bytes;
	bool is_needed;
};

struct gc {
	struct blob *blobs;
	size_t n;
	int fd; /* images/.blobs */
};

static void forget(struct gc *g)
{
	free(g->blobs);
	if (g->fd >= 0)
		close(g->fd);
}

/* ---- what there is ---- */

static int add_blob(struct gc *g, const char *hex, const struct stat *st, struct error *err)
{
	struct blob *blobs = reallocarray(g->blobs, g->n + 1, sizeof(*blobs));

	if (!blobs)
		return error_set(err, -ENOMEM, "no memory to look at the image store");
	g->blobs = blobs;
	blobs[g->n] =
		(struct blob){ .bytes = (uint64_t)st->st_blocks * 512, .is_needed = st->st_nlink > 1 };
	memcpy(blobs[g->n++].hex, hex, STORE_HEX + 1);
	return 0;
}

static int find_blobs(struct gc *g, struct error *err)
{
	_cleanup_free_ char *path = paths_data("images/.blobs", err);
	struct dirent *e;
	struct stat st;
	int r = 0;

	if (!path)
		return -ENOMEM;
	g->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (g->fd < 0)
		return errno == ENOENT
			       ? 0
			       : error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	DIR *d = opendir(path);

	if (!d)
		return error_set(err, -errno, "cannot read %s: %s", path, strerror(errno));
	while (r == 0 && (errno = 0, e = readdir(d)))
		if (strlen(e->d_name) == STORE_HEX &&
		    fstatat(g->fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
			r = add_blob(g, e->d_name, &st, err);
	if (r == 0 && errno)
		r = error_set(err, -errno, "cannot read %s: %s", path, strerror(errno));
	closedir(d);
	return r;
}

/* ---- what is needed ---- */

static void mark_in(struct gc *g, const char *text, size_t len)
{
	for (size_t i = 0; i < g->n; i++)
		g->blobs[i].is_needed |= memmem(text, len, g->blobs[i].hex, STORE_HEX) != NULL;
}

/* What can't be read may need anything. */
static int mark_file(struct gc *g, const char *vms, const char *vm, const char *file, struct error *err)
{
	_cleanup_free_ char *path = paths_format(err, "%s/%s/%s", vms, vm, file), *text = NULL;
	size_t len;

	if (!path)
		return -ENOMEM;
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return 0;
	int r = paths_read_file(path, VMCONFIG_MAX_BYTES, &text, &len, err);

	if (r == -ENOENT)
		return 0; /* the machine was removed just now */
	if (r == 0)
		mark_in(g, text, len);
	return r;
}

static int mark_all(struct gc *g, const char *vms, struct error *err)
{
	DIR *d = opendir(vms);
	struct dirent *e;
	int r = 0;

	if (!d)
		return errno == ENOENT
			       ? 0
			       : error_set(err, -errno, "cannot read %s: %s", vms, strerror(errno));
	while (r == 0 && (errno = 0, e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		r = mark_file(g, vms, e->d_name, "machine.json", err);
		if (r == 0)
			r = mark_file(g, vms, e->d_name, MIGRATE_INCOMING, err);
	}
	if (r == 0 && errno)
		r = error_set(err, -errno, "cannot read %s: %s", vms, strerror(errno));
	closedir(d);
	return r;
}

static int mark_machines(struct gc *g, struct error *err)
{
	_cleanup_free_ char *vms = paths_data("vms", err);
	int r = vms ? mark_all(g, vms, err) : -ENOMEM;

	if (r == 0)
		r = mark_all(g, vms, err);
	if (r < 0)
		error_prefix(err, "nothing is removed, as it is not clear what machines need");
	return r;
}

/* ---- removing an image ---- */

/* Does machine @vm's @file have @text?  1, 0, -errno. */
static int has_text(const char *vms, const char *vm, const char *file, const char *text, struct error *err)
{
	_cleanup_free_ char *path = paths_format(err, "%s/%s/%s", vms, vm, file), *json = NULL;
	size_t len;

	if (!path)
		return -ENOMEM;
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return 0;
	int r = paths_read_file(path, VMCONFIG_MAX_BYTES, &json, &len, err);

	if (r < 0)
		return r == -ENOENT ? 0 : r; /* removed just now */
	return memmem(json, len, text, strlen(text)) != NULL;
}

/* The first machine whose description has @text, here or on its way here: 1; 0: none. */
static int find_user(const char *text, char name[256], struct error *err)
{
	_cleanup_free_ char *vms = paths_data("vms", err);
	DIR *d = vms ? opendir(vms) : NULL;
	struct dirent *e;
	int r = 0;

	if (!d)
		return !vms ? -ENOMEM
		       : errno == ENOENT
			       ? 0
			       : error_set(err, -errno, "cannot read %s: %s", vms, strerror(errno));
	while (r == 0 && (errno = 0, e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		r = has_text(vms, e->d_name, "machine.json", text, err);
		if (r == 0)
			r = has_text(vms, e->d_name, MIGRATE_INCOMING, text, err);
		if (r == 1)
			snprintf(name, 256, "%s", e->d_name);
	}
	if (r == 0 && errno)
		r = error_set(err, -errno, "cannot read %s: %s", vms, strerror(errno));
	closedir(d);
	return r;
}

int store_remove(const char *name, struct error *err)
{
	_cleanup_free_ char *dir = paths_image(name, NULL, err), *gone = NULL;
	_cleanup_free_ char *text = dir ? paths_format(err, "\"%s/", dir) : NULL;
	char user[256];

	if (!text)
		return -ENOMEM;
	_cleanup_close_ int lock = store_lock(true, err);
	int r = lock < 0 ? lock : 0;

	if (r == 0 && access(dir, F_OK) < 0)
		r = error_set(err, -ENOENT,
			      "there is no image \"%s\"; viv image list shows those there are", name);
	if (r == 0)
		r = find_user(text, user, err);
	if (r > 0)
		r = error_set(err, -EBUSY,
			      "machine \"%s\" uses files of image \"%s\"; viv rm %s removes it",
			      user, name, user);
	if (r < 0)
		return r;
	/* Out of the way in one step; what is left if this is killed, gc takes. */
	gone = paths_format(err, "%.*s.%s.XXXXXX", (int)(strlen(dir) - strlen(name)), dir, name);
	if (!gone)
		return -ENOMEM;
	if (!mkdtemp(gone) || rename(dir, gone) < 0)
		return error_set(err, -errno, "cannot remove %s: %s", dir, strerror(errno));
	return paths_remove_tree(gone, err);
}

/* ---- what goes ---- */

static int remove_blobs(struct gc *g, bool is_dry, store_gone_fn gone, void *arg, struct error *err)
{
	for (size_t i = 0; i < g->n; i++) {
		const struct blob *b = &g->blobs[i];

		if (b->is_needed)
			continue;
		if (!is_dry && unlinkat(g->fd, b->hex, 0) < 0)
			return error_set(err, -errno, "cannot remove blob %s: %s", b->hex,
					 strerror(errno));
		gone(arg, b->hex, b->bytes);
	}
	return 0;
}

static uint64_t tree_bytes(const char *path)
{
	DIR *d = opendir(path);
	uint64_t sum = 0;
	struct dirent *e;
	struct stat st;

	while (d && (e = readdir(d)))
		if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
			sum += (uint64_t)st.st_blocks * 512;
	if (d)
		closedir(d);
	return sum;
}

static bool is_folder(const char *images, const char *name)
{
	_cleanup_free_ char *path = paths_format(NULL, "%s/%s", images, name);
	struct stat st;

	return path && lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/*
 * ".NAME.XXXXXX": being built by who holds ".NAME.lock" (build-image.sh); "old" in it is an image that is being replaced, and is put back by the next build if the
 * builder was killed at that moment.  Locks are files: that of an image "a3.9" has the form of a folder of "a3".
 */
static bool is_leftover(const char *images, const char *folder)
{
	size_t n = strlen(folder);
	_cleanup_free_ char *old = paths_format(NULL, "%s/%s/old", images, folder);
	_cleanup_free_ char *lock =
		paths_format(NULL, "%s/%.*s.lock", images, (int)(n > 7 ? n - 7 : 0), folder);

	if (n < 9 || folder[0] != '.' || folder[n - 7] != '.' || !old || !lock || access(old, F_OK) == 0)
		return false;
	if (!is_folder(images, folder))
		return false;
	_cleanup_close_ int fd = open(lock, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	/* Whoever begins now makes a folder with a name of its own. */
	return fd < 0 ? errno == ENOENT : flock(fd, LOCK_EX | LOCK_NB) == 0;
}

static int remove_leftovers(bool is_dry, store_gone_fn gone, void *arg, struct error *err)
{
	_cleanup_free_ char *images = paths_data("images", err);
	DIR *d = images ? opendir(images) : NULL;
	struct dirent *e;
	int r = 0;

	if (!d)
		return images && errno == ENOENT
			       ? 0
			       : error_set(err, -errno, "cannot read the images: %s", strerror(errno));
	while (r == 0 && (e = readdir(d))) {
		_cleanup_free_ char *path = paths_format(err, "%s/%s", images, e->d_name);

		if (!path)
			r = -ENOMEM;
		else if (is_leftover(images, e->d_name)) {
			uint64_t bytes = tree_bytes(path);

			r = is_dry ? 0 : paths_remove_tree(path, err);
			if (r == 0)
				gone(arg, e->d_name, bytes);
		}
	}
	closedir(d);
	return r;
}

int store_collect(bool is_dry, store_gone_fn gone, void *arg, struct error *err)
{
	struct gc g = { .fd = -1 };
	_cleanup_close_ int lock = store_lock(true, err);
	int r = lock < 0 ? lock : remove_leftovers(is_dry, gone, arg, err);

	if (r == 0)
		r = find_blobs(&g, err);
	if (r == 0)
		r = mark_machines(&g, err);
	if (r == 0)
		r = remove_blobs(&g, is_dry, gone, arg, err);
	forget(&g);
	return r;
}
