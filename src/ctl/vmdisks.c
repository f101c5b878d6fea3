/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/vmdisks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/host.h"
#include "base/log.h"
#include "block/image.h"
#include "ctl/paths.h"

#define LAYER_PREFIX VMDISKS_LAYER_PREFIX
/* What was thrown away but for a snapshot: the name has a file before that has its content, so nobody may merge it. */
#define KEPT_PREFIX "kept-"

bool vmdisks_is_layered(const struct vmconfig *c, unsigned i)
{
	return !c->disks[i].is_readonly && !c->disks[i].is_snapshot;
}

/* ---- chains ---- */

static void chain_free(struct vmdisk_chain *ch)
{
	for (unsigned i = 0; i < ch->n; i++)
		free(ch->files[i]);
	free(ch->files);
	*ch = (struct vmdisk_chain){ 0 };
}

static int chain_add(struct vmdisk_chain *ch, unsigned at, const char *name, struct error *err)
{
	if (ch->n == VMDISKS_CHAIN_MAX)
		return error_set(err, -E2BIG,
				 "a disk has more than %d layers; viv image flatten makes them one",
				 VMDISKS_CHAIN_MAX);
	char **files = realloc(ch->files, (ch->n + 1) * sizeof(*files));
	char *copy = strdup(name);

	if (files)
		ch->files = files;
	if (!files || !copy) {
		free(copy);
		return error_set(err, -ENOMEM, "no memory for the layers of a disk");
	}
	memmove(&ch->files[at + 1], &ch->files[at], (ch->n - at) * sizeof(*files));
	ch->files[at] = copy;
	ch->n++;
	return 0;
}

/* The name of @path if it is a file in @folder, else NULL. */
static const char *name_in(const char *path, const char *folder)
{
	size_t len = strlen(folder);

	return !strncmp(path, folder, len) && path[len] == '/' && !strchr(path + len + 1, '/')
		       ? path + len + 1
		       : NULL;
}

/* The name, in the machine's folder, of disk @i that is read-only and the machine's own, as a seed is (cli/seed.h); NULL: it is none. */
static const char *own_readonly(const struct vmdisks *d, const struct vmconfig *c, unsigned i)
{
	return c->disks[i].is_readonly ? name_in(c->disks[i].path, d->folder) : NULL;
}

/* From the file @path, of @format, in @folder down to the base. */
static int chain_read(struct vmdisk_chain *ch, const char *path, const char *format,
		      const char *folder, struct error *err)
{
	_cleanup_free_ char *at = strdup(path), *fmt = strdup(format);

	*ch = (struct vmdisk_chain){ 0 };
	for (;;) {
		const char *name = at ? name_in(at, folder) : NULL;
		int r = at && fmt ? chain_add(ch, ch->n, name ? name : at, err) : -ENOMEM;
		struct image_info info;

		if (r < 0 || !name || strcmp(fmt, "qcow2") != 0)
			return r;
		r = image_info(at, fmt, &info, err);
		if (r < 0)
			return r;
		bool is_inside =
			info.backing_path && info.backing_format && !strchr(info.backing_path, '/');
		char *below = is_inside ? paths_format(err, "%s/%s", folder, info.backing_path) : NULL;
		char *below_fmt = is_inside ? strdup(info.backing_format) : NULL;

		image_info_free(&info);
		if (!is_inside)
			return 0;
		free(at);
		free(fmt);
		at = below;
		fmt = below_fmt;
	}
}

int vmdisks_open(struct vmdisks *d, struct vmconfig *c, struct error *err)
{
	int r = 0;

	*d = (struct vmdisks){ .config = c, .folder = paths_vm(c->name, NULL, err) };
	if (!d->folder)
		return -ENOMEM;
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++)
		if (vmdisks_is_layered(c, i))
			r = chain_read(&d->chains[i], c->disks[i].path, c->disks[i].format,
				       d->folder, err);
	return r;
}

void vmdisks_close(struct vmdisks *d)
{
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		chain_free(&d->chains[i]);
		chain_free(&d->next[i]);
		free(d->kept[i]);
	}
	free(d->folder);
	*d = (struct vmdisks){ 0 };
}

/* ---- new layers ---- */

static int new_name(char out[64], const char *prefix, unsigned i, const char *suffix, struct error *err)
{
	uint64_t random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	snprintf(out, 64, "%s%u-%016llx.%s", prefix, i, (unsigned long long)random, suffix);
	return 0;
}

/* @from in place of the file that has the name @to. */
static int replace_link(const char *from, const char *to, struct error *err)
{
	_cleanup_free_ char *part = paths_format(err, "%s.new", to);

	if (!part)
		return -ENOMEM;
	if ((host.unlinkat(AT_FDCWD, part, 0) < 0 && errno != ENOENT) ||
	    host.linkat(AT_FDCWD, from, AT_FDCWD, part, AT_SYMLINK_FOLLOW) < 0 ||
	    host.renameat(AT_FDCWD, part, AT_FDCWD, to) < 0)
		return error_set(err, -errno, "cannot link %s to %s: %s", from, to, strerror(errno));
	return 0;
}

/* @replaces: another layer of that name. */
static int link_file(const char *from, const char *to, bool replaces, struct error *err)
{
	struct stat a, b;

	if (host.linkat(AT_FDCWD, from, AT_FDCWD, to, AT_SYMLINK_FOLLOW) == 0)
		return 0;
	int r = -errno;

	/* A layer that is there already may be a merged one, or not yet, or, after an import, one of other contents: what goes with @from's
	 * other layers is @from. */
	const char *name = strrchr(to, '/');
	bool is_layer = replaces && name && !strncmp(name + 1, LAYER_PREFIX, strlen(LAYER_PREFIX));

	if (r == -EEXIST && host.fstatat(AT_FDCWD, from, &a, 0) == 0 &&
	    host.fstatat(AT_FDCWD, to, &b, 0) == 0) {
		if (a.st_dev == b.st_dev && a.st_ino == b.st_ino)
			return 0;
		if (is_layer)
			return replace_link(from, to, err);
	}
	if (r == -EXDEV)
		return error_set(err, r,
				 "%s is on another file system than the machines, which have to "
				 "share it with "
				 "their snapshots; move it there",
				 from);
	return error_set(err, r, "cannot link %s to %s: %s", from, to, strerror(-r));
}

static int outside(unsigned i, const char *name, struct error *err)
{
	return error_set(err, -EINVAL,
			 "disk %u has a backing file outside of the machine's folder (%s); viv "
			 "image flatten makes one "
			 "file of it",
			 i, name);
}

/*
 * What the file @path, outside of the machine's folder, stands on: names in it, as the headers say them, lead to the same files.
 * @links: else it is only judged whether that can be
 */
static int bring_below(struct vmdisks *d, unsigned i, const char *path, const char *format,
		       bool links, struct error *err)
{
	_cleanup_free_ char *at = strdup(path);
	bool is_qcow2 = !strcmp(format, "qcow2");

	for (unsigned n = 0; is_qcow2; n++) {
		struct image_info info;
		int r = !at ? -ENOMEM
			: n == VMDISKS_CHAIN_MAX
				? error_set(err, -ELOOP, "disk %u stands on too many files", i)
				: image_info(at, format, &info, err);

		if (r < 0)
			return r;
		const char *slash = strrchr(at, '/'), *below = info.backing_path;
		char *next = below ? paths_format(err, "%.*s/%s", (int)(slash - at), at, below) : NULL;
		_cleanup_free_ char *here = below ? paths_format(err, "%s/%s", d->folder, below) : NULL;

		is_qcow2 = below && info.backing_format && !strcmp(info.backing_format, "qcow2");
		if (below && (!next || !here))
			r = -ENOMEM;
		else if (below && (!info.backing_format || strchr(below, '/')))
			r = outside(i, below, err);
		else if (below && links)
			r = link_file(next, here, false, err);
		image_info_free(&info);
		free(at);
		at = next;
		if (r < 0)
			return r;
	}
	return 0;
}

/* A top outside of the machine's folder gets a name inside, and so does what it stands on: layers name each other plainly. */
static int bring_inside(struct vmdisks *d, unsigned i, struct error *err)
{
	struct vmdisk_chain *ch = &d->chains[i], all = { 0 };
	const char *format = d->config->disks[i].format;
	char name[64];

	if (!strchr(ch->files[0], '/'))
		return 0;
	int r = new_name(name, LAYER_PREFIX, i, format, err);
	_cleanup_free_ char *inside = r == 0 ? paths_format(err, "%s/%s", d->folder, name) : NULL;

	if (!inside)
		return r < 0 ? r : -ENOMEM;
	r = bring_below(d, i, ch->files[0], format, false, err);
	if (r == 0)
		r = bring_below(d, i, ch->files[0], format, true, err);
	if (r == 0)
		r = link_file(ch->files[0], inside, true, err);
	if (r == 0)
		r = chain_read(&all, inside, format, d->folder, err);
	if (r < 0) {
		chain_free(&all);
		return r;
	}
	chain_free(ch);
	*ch = all;
	return 0;
}

/* What a new layer is like. */
struct new_layer {
	const char *folder, *prefix;
	uint64_t size_bytes;
	const char *below, *below_format;
	bool is_unsettled;
};

static int make_file(const struct new_layer *n, unsigned i, char **path, struct error *err)
{
	struct image_create c = { .format = "qcow2",
				  .size_bytes = n->size_bytes,
				  .backing_path = n->below,
				  .backing_format = n->below_format,
				  .is_unsettled = n->is_unsettled };
	char name[64];
	int r = new_name(name, n->prefix, i, "qcow2", err);
	char *full = r == 0 ? paths_format(err, "%s/%s", n->folder, name) : NULL;

	if (!full)
		return r < 0 ? r : -ENOMEM;
	r = image_create(full, &c, err);
	if (r < 0) {
		free(full);
		return r;
	}
	*path = full;
	return 0;
}

/* The disk that is thrown away is from now on what is in @path. */
static int give_layers(struct vmconfig_disk *disk, struct error *err)
{
	int r = vmconfig_set(&disk->pristine, disk->path, err);

	if (r == 0)
		r = vmconfig_set(&disk->pristine_format, disk->format, err);
	disk->is_snapshot = r < 0;
	return r;
}

int vmdisks_keep(struct vmdisks *d, unsigned i, uint64_t size_bytes, char **path, struct error *err)
{
	struct vmconfig_disk *disk = &d->config->disks[i];
	struct vmdisk_chain *ch = &d->chains[i];

	chain_free(ch);
	int r = chain_read(ch, disk->path, disk->format, d->folder, err);

	if (r == 0)
		r = bring_inside(d, i, err);
	if (r == 0)
		r = make_file(&(struct new_layer){ d->folder, KEPT_PREFIX, size_bytes, ch->files[0],
						   disk->format, false },
			      i, path, err);
	if (r < 0)
		return r;
	r = vmconfig_set(&d->kept[i], *path, err);
	if (r == 0)
		r = give_layers(disk, err);
	return r < 0 ? r : vmdisks_push(d, i, *path, err);
}

int vmdisks_new_top(struct vmdisks *d, unsigned i, uint64_t size_bytes, char **path, struct error *err)
{
	const struct new_layer n = { d->folder,
				     LAYER_PREFIX,
				     size_bytes,
				     d->chains[i].files[0],
				     d->config->disks[i].format,
				     false };

	return make_file(&n, i, path, err);
}

int vmdisks_push(struct vmdisks *d, unsigned i, const char *path, struct error *err)
{
	int r = chain_add(&d->chains[i], 0, name_in(path, d->folder), err);

	if (r == 0)
		r = vmconfig_set(&d->config->disks[i].path, path, err);
	return r < 0 ? r : vmconfig_set(&d->config->disks[i].format, "qcow2", err);
}

void vmdisks_pop(struct vmdisks *d, unsigned i, const char *format)
{
	struct vmdisk_chain *ch = &d->chains[i];
	struct vmconfig_disk *disk = &d->config->disks[i];
	_cleanup_free_ char *top = disk->path;
	struct error err;

	disk->path = paths_format(&err, "%s/%s", d->folder, ch->files[1]);
	int r = disk->path ? vmconfig_set(&disk->format, format, &err) : -ENOMEM;

	free(ch->files[0]);
	memmove(&ch->files[0], &ch->files[1], --ch->n * sizeof(*ch->files));
	if (r == 0)
		r = vmconfig_save(d->config, &err);
	if (r < 0)
		log_error("disks", "%s", err.text);
	else if (host.unlinkat(AT_FDCWD, top, 0) < 0)
		log_warn("disks", "cannot remove %s: %s", top, strerror(errno));
}

int vmdisks_reread(struct vmdisks *d, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < d->config->ndisks; i++) {
		struct vmdisk_chain ch;

		if (!vmdisks_is_layered(d->config, i))
			continue;
		r = chain_read(&ch, d->config->disks[i].path, d->config->disks[i].format, d->folder, err);
		if (r == 0) {
			chain_free(&d->chains[i]);
			d->chains[i] = ch;
		} else {
			chain_free(&ch);
		}
	}
	return r;
}

int vmdisks_add_to(struct vmdisks *d, struct snapstore_build *b,
		   const char *names[MACHINE_MAX_DISKS], struct error *err)
{
	int r = vmdisks_reread(d, err);

	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
		names[i] = NULL;
	for (unsigned i = 0; r == 0 && i < d->config->ndisks; i++) {
		names[i] = own_readonly(d, d->config, i);
		if (names[i])
			r = snapstore_add_file(b, d->config->disks[i].path, names[i], false, err);
		if (!vmdisks_is_layered(d->config, i))
			continue;
		r = bring_inside(d, i, err);
		names[i] = d->chains[i].files[0];
		for (unsigned k = 0; r == 0 && k < d->chains[i].n; k++) {
			const char *name = d->chains[i].files[k];
			_cleanup_free_ char *path = paths_format(err, "%s/%s", d->folder, name);

			if (strchr(name, '/'))
				r = outside(i, name, err);
			else
				r = path ? snapstore_add_file(b, path, name, false, err) : -ENOMEM;
		}
	}
	return r;
}

/* A file that nobody writes is one file for both. */
static int copy_readonly(struct vmdisks *d, struct vmconfig *c, unsigned i, const char *folder,
			 struct error *err)
{
	const char *name = own_readonly(d, c, i);
	_cleanup_free_ char *to = name ? paths_format(err, "%s/%s", folder, name) : NULL;

	if (!name)
		return 0;
	int r = to ? link_file(c->disks[i].path, to, false, err) : -ENOMEM;

	return r < 0 ? r : vmconfig_set(&c->disks[i].path, to, err);
}

int vmdisks_copy(struct vmdisks *d, struct vmconfig *c, const char *folder,
		 const uint64_t sizes[MACHINE_MAX_DISKS], struct error *err)
{
	int r = vmdisks_reread(d, err);

	for (unsigned i = 0; r == 0 && i < c->ndisks; i++) {
		_cleanup_free_ char *top = NULL;
		const struct vmdisk_chain *ch = &d->chains[i];

		if (!vmdisks_is_layered(c, i)) {
			r = copy_readonly(d, c, i, folder, err);
			continue;
		}
		r = bring_inside(d, i, err);
		for (unsigned k = 0; r == 0 && k < ch->n; k++) {
			_cleanup_free_ char *from = paths_format(err, "%s/%s", d->folder, ch->files[k]);
			_cleanup_free_ char *to = paths_format(err, "%s/%s", folder, ch->files[k]);

			if (strchr(ch->files[k], '/'))
				r = outside(i, ch->files[k], err);
			else
				r = from && to ? link_file(from, to, true, err) : -ENOMEM;
		}
		if (r == 0)
			r = make_file(&(struct new_layer){ folder, LAYER_PREFIX, sizes[i], ch->files[0],
							   d->config->disks[i].format, true },
				      i, &top, err);
		if (r == 0)
			r = vmconfig_set(&c->disks[i].path, top, err);
		if (r == 0)
			r = vmconfig_set(&c->disks[i].format, "qcow2", err);
	}
	return r;
}

int vmdisks_link_chain(const char *path, const char *format, const char *from, const char *to,
		       char **top, struct error *err)
{
	struct vmdisk_chain ch;
	int r = chain_read(&ch, path, format, from, err);

	for (unsigned k = 0; r == 0 && k < ch.n; k++) {
		_cleanup_free_ char *a = paths_format(err, "%s/%s", from, ch.files[k]);
		_cleanup_free_ char *b = paths_format(err, "%s/%s", to, ch.files[k]);

		if (strchr(ch.files[k], '/'))
			r = error_set(err, -EINVAL,
				      "%s has a backing file outside of its machine's folder", path);
		else
			r = a && b ? link_file(a, b, false, err) : -ENOMEM;
	}
	char *own = r == 0 ? paths_format(err, "%s/%s", to, ch.files[0]) : NULL;

	chain_free(&ch);
	if (r == 0 && own)
		*top = own;
	return r == 0 && !own ? -ENOMEM : r;
}

/* ---- going back ---- */

static int go_back_one(struct vmdisks *d, unsigned i, const struct vmconfig_disk *from,
		       const char *snapshot, bool is_unsettled, char **top, struct error *err)
{
	chain_free(&d->next[i]);
	int r = chain_read(&d->next[i], from->path, from->format, snapshot, err);
	struct vmdisk_chain ch = d->next[i];

	for (unsigned k = 0; r == 0 && k < ch.n; k++) {
		_cleanup_free_ char *a = paths_format(err, "%s/%s", snapshot, ch.files[k]);
		_cleanup_free_ char *b = paths_format(err, "%s/%s", d->folder, ch.files[k]);

		if (strchr(ch.files[k], '/'))
			r = error_set(err, -EINVAL,
				      "the snapshot's disk %u is in no file of the snapshot", i);
		else
			r = a && b ? link_file(a, b, true, err) : -ENOMEM;
	}
	_cleanup_free_ char *below = r == 0 ? paths_format(err, "%s/%s", d->folder, ch.files[0]) : NULL;

	if (r == 0)
		r = below ? make_file(&(struct new_layer){ d->folder, LAYER_PREFIX, 0, ch.files[0],
							   from->format, is_unsettled },
				      i, top, err)
			  : -ENOMEM;
	if (r < 0)
		return r;
	chain_free(&d->next[i]);
	r = chain_read(&d->next[i], below, from->format, d->folder, err);
	return r < 0 ? r : chain_add(&d->next[i], 0, name_in(*top, d->folder), err);
}

int vmdisks_go_back(struct vmdisks *d, const struct snapshot_info *from, bool is_unsettled,
		    char *tops[MACHINE_MAX_DISKS], struct error *err)
{
	_cleanup_free_ char *snapshot = snapstore_path(from->vm, from->name, NULL, err);
	int r = snapshot ? 0 : -ENOMEM;

	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
		tops[i] = NULL;
	if (r == 0 && from->config.ndisks != d->config->ndisks)
		r = error_set(err, -EINVAL, "the snapshot has %u disks, the machine %u",
			      from->config.ndisks, d->config->ndisks);
	for (unsigned i = 0; r == 0 && i < d->config->ndisks; i++) {
		/* A throw-away disk has layers in the snapshot. */
		if (vmdisks_is_layered(&from->config, i) != !d->config->disks[i].is_readonly)
			r = error_set(err, -EINVAL, "disk %u of the snapshot is of another kind", i);
		else if (!d->config->disks[i].is_readonly)
			r = go_back_one(d, i, &from->config.disks[i], snapshot, is_unsettled,
					&tops[i], err);
	}
	for (unsigned i = 0; r < 0 && i < MACHINE_MAX_DISKS; i++)
		if (tops[i]) {
			host.unlinkat(AT_FDCWD, tops[i], 0);
			free(tops[i]);
			tops[i] = NULL;
		}
	return r;
}

static bool is_ours(const char *name)
{
	return !strncmp(name, LAYER_PREFIX, strlen(LAYER_PREFIX)) ||
	       !strncmp(name, KEPT_PREFIX, strlen(KEPT_PREFIX));
}

static bool is_needed(const struct vmdisks *d, const char *name)
{
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
		for (unsigned k = 0; k < d->chains[i].n; k++)
			if (!strcmp(d->chains[i].files[k], name))
				return true;
	return false;
}

/* Snapshots have links of their own. */
static void sweep(const struct vmdisks *d)
{
	DIR *dir = paths_open_dir(d->folder);
	struct dirent *e;

	while (dir && (e = readdir(dir)))
		if (is_ours(e->d_name) && !is_needed(d, e->d_name) &&
		    host.unlinkat(dirfd(dir), e->d_name, 0) < 0)
			log_warn("disks", "cannot remove %s: %s", e->d_name, strerror(errno));
	if (dir)
		closedir(dir);
}

int vmdisks_write_to(struct vmdisks *d, char *tops[MACHINE_MAX_DISKS], struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (!tops[i])
			continue;
		if (d->config->disks[i].is_snapshot)
			r = give_layers(&d->config->disks[i], err);
		free(d->kept[i]);
		d->kept[i] = NULL;
		if (r == 0)
			r = vmconfig_set(&d->config->disks[i].path, tops[i], err);
		if (r == 0)
			r = vmconfig_set(&d->config->disks[i].format, "qcow2", err);
		chain_free(&d->chains[i]);
		d->chains[i] = d->next[i];
		d->next[i] = (struct vmdisk_chain){ 0 };
		free(tops[i]);
		tops[i] = NULL;
	}
	return r;
}

/* The layers of before are needed until the configuration names others. */
static int save(struct vmdisks *d, struct error *err)
{
	int r = vmconfig_save(d->config, err);

	if (r == 0)
		sweep(d);
	return r;
}

int vmdisks_went_back(struct vmdisks *d, char *tops[MACHINE_MAX_DISKS], struct error *err)
{
	int r = vmdisks_write_to(d, tops, err);

	return r == 0 ? save(d, err) : r;
}

int vmdisks_settle(struct vmdisks *d, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < d->config->ndisks; i++)
		if (vmdisks_is_layered(d->config, i))
			r = paths_sync(d->config->disks[i].path, err);
	if (r == 0)
		r = paths_sync(d->folder, err);
	return r == 0 ? save(d, err) : r;
}

int vmdisks_throw_away(struct vmconfig *c, struct error *err)
{
	bool has_any = false;
	struct vmdisks d;
	int r = 0;

	for (unsigned i = 0; i < c->ndisks; i++) {
		struct vmconfig_disk *disk = &c->disks[i];

		if (!disk->pristine)
			continue;
		free(disk->path);
		free(disk->format);
		disk->path = disk->pristine;
		disk->format = disk->pristine_format;
		disk->pristine = disk->pristine_format = NULL;
		disk->is_snapshot = true;
		has_any = true;
	}
	if (!has_any)
		return 0;
	r = vmconfig_save(c, err);
	if (r == 0)
		r = vmdisks_open(&d, c, err);
	else
		return r;
	if (r == 0)
		sweep(&d);
	vmdisks_close(&d);
	return r;
}
