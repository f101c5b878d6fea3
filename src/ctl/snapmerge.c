/* SPDX-License-Identifier: Apache-2.0 */
/* Layers of disks, and the whole of a merge (snapmerge.h). */
#include "ctl/snapmerge.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/host.h"
#include "base/log.h"
#include "block/image.h"
#include "block/image_file.h"
#include "ctl/paths.h"
#include "ctl/snapstore.h"
#include "ctl/vmdisks.h"

#define PART ".merge-" /* what is not done yet */

/* A file of a folder that is, or has below it, a layer. */
struct file {
	char *name, *below, *below_format; /* below: NULL: nothing, or nothing in the folder */
	dev_t dev;
	ino_t ino;
	uint64_t bytes; /* on the host */
	nlink_t nlinks;
};

struct folder {
	char *path;
	bool is_machine;
	struct file *files;
	unsigned nfiles;
	char *tops[MACHINE_MAX_DISKS]; /* names of what disks are, or NULL */
};

struct scan {
	struct folder *folders; /* the machine's is the last */
	unsigned n;
};

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no memory to merge snapshots");
}

/* ---- what there is ---- */

static void folder_free(struct folder *f)
{
	for (unsigned k = 0; k < f->nfiles; k++) {
		free(f->files[k].name);
		free(f->files[k].below);
		free(f->files[k].below_format);
	}
	for (unsigned k = 0; k < MACHINE_MAX_DISKS; k++)
		free(f->tops[k]);
	free(f->files);
	free(f->path);
}

static void scan_free(struct scan *s)
{
	for (unsigned i = 0; i < s->n; i++)
		folder_free(&s->folders[i]);
	free(s->folders);
	*s = (struct scan){ 0 };
}

/* Only names given here: they stand for one content for ever. */
static bool is_layer_name(const char *name)
{
	const char *dot = strrchr(name, '.');

	return !strncmp(name, VMDISKS_LAYER_PREFIX, strlen(VMDISKS_LAYER_PREFIX)) && dot &&
	       !strcmp(dot, ".qcow2");
}

static int add_file(struct folder *f, const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_format(err, "%s/%s", f->path, name);
	struct image_info info;
	struct stat st;
	int r = path ? image_info(path, "qcow2", &info, err) : -ENOMEM;

	if (r < 0)
		return r;
	struct file *more = realloc(f->files, (f->nfiles + 1) * sizeof(*more));

	if (more)
		f->files = more;
	if (!more || host.fstatat(AT_FDCWD, path, &st, 0) < 0) {
		image_info_free(&info);
		return error_set(err, more ? -errno : -ENOMEM, "cannot look at %s: %s", path,
				 strerror(more ? errno : ENOMEM));
	}
	struct file *file = &f->files[f->nfiles++];

	*file = (struct file){ .name = strdup(name),
			       .dev = st.st_dev,
			       .ino = st.st_ino,
			       .nlinks = st.st_nlink,
			       .bytes = (uint64_t)st.st_blocks * 512 };
	if (info.backing_path && !strchr(info.backing_path, '/') && info.backing_format) {
		file->below = strdup(info.backing_path);
		file->below_format = strdup(info.backing_format);
	}
	bool has_below = info.backing_path && !strchr(info.backing_path, '/') && info.backing_format;

	image_info_free(&info);
	return !file->name || (has_below && (!file->below || !file->below_format)) ? no_memory(err) : 0;
}

static int add_folder(struct scan *s, const char *path, const struct vmconfig *c, bool is_machine,
		      struct error *err)
{
	struct folder *more = realloc(s->folders, (s->n + 1) * sizeof(*more));
	int r = 0;

	if (!more)
		return no_memory(err);
	s->folders = more;
	struct folder *f = &more[s->n++];

	*f = (struct folder){ .path = strdup(path), .is_machine = is_machine };
	if (!f->path)
		return no_memory(err);
	for (unsigned i = 0; i < c->ndisks; i++) {
		const char *slash = strrchr(c->disks[i].path, '/');

		f->tops[i] = strdup(slash ? slash + 1 : c->disks[i].path);
		if (!f->tops[i])
			return no_memory(err);
	}
	DIR *d = paths_open_dir(path);
	struct dirent *e;

	if (!d)
		return error_set(err, -errno, "cannot read %s: %s", path, strerror(errno));
	while (r == 0 && (e = readdir(d))) {
		if (is_layer_name(e->d_name))
			r = add_file(f, e->d_name, err);
		else if (!strncmp(e->d_name, PART, strlen(PART)) &&
			 host.unlinkat(dirfd(d), e->d_name, 0) < 0)
			log_warn("snapshot", "cannot remove %s: %s", e->d_name, strerror(errno));
	}
	closedir(d);
	return r;
}

/* Damaged snapshots are left out, and so left alone: they have links of their own.  @tells: a warning of each. */
static int scan_all(struct scan *s, const char *vm, bool tells, struct error *err)
{
	_cleanup_free_ char *home = paths_vm(vm, NULL, err);
	struct snapshot_info *list;
	struct vmconfig c;
	unsigned n;
	int r = home ? snapstore_list(vm, &list, &n, NULL, NULL, err) : -ENOMEM;

	*s = (struct scan){ 0 };
	if (r < 0)
		return r;
	for (unsigned i = 0; r == 0 && i < n; i++) {
		_cleanup_free_ char *path = snapstore_path(vm, list[i].name, NULL, err);

		r = path ? add_folder(s, path, &list[i].config, false, err) : -ENOMEM;
		if (r < 0 && r != -ENOMEM) {
			if (tells)
				log_warn("snapshot", "%s of %s is left as it is: %s", list[i].name,
					 vm, err->text);
			folder_free(&s->folders[--s->n]);
			r = 0;
		}
	}
	snapstore_list_free(list, n);
	if (r == 0)
		r = vmconfig_init(&c, err);
	if (r < 0)
		return r;
	r = vmconfig_load(&c, vm, err);
	if (r == 0)
		r = add_folder(s, home, &c, true, err);
	vmconfig_free(&c);
	return r;
}

static const struct file *find_file(const struct folder *f, const char *name)
{
	for (unsigned i = 0; i < f->nfiles; i++)
		if (!strcmp(f->files[i].name, name))
			return &f->files[i];
	return NULL;
}

static bool is_top(const struct folder *f, const char *name)
{
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
		if (f->tops[i] && !strcmp(f->tops[i], name))
			return true;
	return false;
}

static bool is_any_top(const struct scan *s, const char *name)
{
	for (unsigned i = 0; i < s->n; i++)
		if (is_top(&s->folders[i], name))
			return true;
	return false;
}

static bool is_on(const struct file *f, const char *below)
{
	return f->below && !strcmp(f->below, below);
}

/* Does @name have one child, in whatever folders? */
static bool has_one_child(const struct scan *s, const char *name)
{
	const struct file *child = NULL;

	for (unsigned i = 0; i < s->n; i++)
		for (unsigned k = 0; k < s->folders[i].nfiles; k++) {
			const struct file *f = &s->folders[i].files[k];

			if (!is_on(f, name))
				continue;
			if (child && strcmp(child->name, f->name) != 0)
				return false;
			child = f;
		}
	return child;
}

static const struct file *find_child(const struct folder *f, const char *name)
{
	for (unsigned k = 0; k < f->nfiles; k++)
		if (is_on(&f->files[k], name))
			return &f->files[k];
	return NULL;
}

static bool is_same_file(const struct file *a, const struct file *b)
{
	return a && b && a->dev == b->dev && a->ino == b->ino;
}

/* ---- one layer into its child ---- */

struct step {
	const struct folder *in;
	const struct file *child, *layer;
};

/* Layers that were tried. */
struct tried {
	dev_t dev;
	ino_t ino;
};

static bool is_in(const struct tried *tried, unsigned n, const struct file *f)
{
	while (n--)
		if (tried[n].dev == f->dev && tried[n].ino == f->ino)
			return true;
	return false;
}

/* What the machine writes to: for a merge in its own folder, and if it has no other names. */
static bool is_ours_to_change(const struct scan *s, const struct folder *in, const struct file *child)
{
	const struct folder *machine = &s->folders[s->n - 1];
	const struct file *top = is_top(machine, child->name) ? find_file(machine, child->name) : NULL;

	return !is_same_file(top, child) || (in == machine && child->nlinks == 1);
}

/* A small layer under a large one, which would be copied each time; a machine's top is not copied. */
static bool is_too_large(const struct folder *in, const struct file *child, const struct file *l)
{
	return child->bytes > MAX(4 * l->bytes, SNAPMERGE_ALWAYS_BYTES) &&
	       !(in->is_machine && is_top(in, child->name));
}

/* The next that is worth it. */
static bool find_step(const struct scan *s, const struct tried *tried, unsigned ntried, struct step *out)
{
	for (unsigned i = 0; i < s->n; i++)
		for (unsigned k = 0; k < s->folders[i].nfiles; k++) {
			const struct folder *in = &s->folders[i];
			const struct file *l = &in->files[k], *child = find_child(in, l->name);

			if (!child || !l->below || is_in(tried, ntried, l) ||
			    is_any_top(s, l->name) || !has_one_child(s, l->name) ||
			    is_too_large(in, child, l) || !is_ours_to_change(s, in, child))
				continue;
			*out = (struct step){ .in = in, .child = child, .layer = l };
			return true;
		}
	return false;
}

struct ticker {
	const struct ram_progress *progress;
};

static bool tick(void *arg, uint64_t done, uint64_t total)
{
	const struct ticker *t = arg;

	return t->progress && t->progress->fn &&
	       !t->progress->fn(t->progress->arg, done, MAX(total, 1ull));
}

/* The data of @from with its holes.  -EBUSY: somebody writes to it. */
static int copy_sparse(const char *from, const char *to, struct error *err)
{
	struct image_file file;
	int r = image_file_open(&file, from, false, false, err);

	if (r < 0)
		return r;
	_cleanup_close_ int in = file.fd;
	_cleanup_close_ int out = host.open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	_cleanup_free_ char *buf = malloc(MIB);
	off_t end = lseek(in, 0, SEEK_END);

	if (end < 0 || out < 0 || !buf || ftruncate(out, end) < 0)
		return error_set(err, -errno, "cannot copy %s: %s", from, strerror(errno));
	for (off_t at = 0, hole; at < end; at = hole) {
		at = lseek(in, at, SEEK_DATA);
		if (at < 0 && errno == ENXIO)
			break;
		hole = at < 0 ? -1 : lseek(in, at, SEEK_HOLE);
		if (hole < 0)
			return error_set(err, -errno, "cannot copy %s: %s", from, strerror(errno));
		for (ssize_t n; at < hole; at += n) {
			n = pread(in, buf, MIN((size_t)(hole - at), (size_t)MIB), at);
			if (n > 0)
				n = pwrite(out, buf, (size_t)n, at);
			if (n <= 0)
				return error_set(err, n < 0 ? -errno : -EIO, "cannot copy %s: %s",
						 from, n < 0 ? strerror(errno) : "it is cut off");
		}
	}
	return 0;
}

static int rebase(const char *path, const char *folder, const struct file *layer,
		  const struct ram_progress *progress, struct error *err)
{
	const char *const allowed[] = { folder, NULL };
	const struct block_backing_rule rule = { .paths = allowed };
	const struct block_open o = { .path = path, .format = "qcow2", .backing = &rule };
	struct ticker ticker = { progress };
	const struct image_progress p = { tick, &ticker };

	return image_rebase(&o, layer->below, layer->below_format, &p, err);
}

static int sync_folder(const char *path, struct error *err)
{
	_cleanup_close_ int fd = host.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	return fd < 0 || host.fsync(fd) < 0
		       ? error_set(err, -errno, "cannot sync %s: %s", path, strerror(errno))
		       : 0;
}

/* The file @part of @from under the name @child in @f. */
static int put_in(const struct folder *f, const struct folder *from, const char *part,
		  const char *child, struct error *err)
{
	_cleanup_free_ char *here = paths_format(err, "%s/" PART "%s", f->path, child);
	_cleanup_free_ char *final = paths_format(err, "%s/%s", f->path, child);

	if (!here || !final)
		return -ENOMEM;
	if (f != from && host.linkat(AT_FDCWD, part, AT_FDCWD, here, 0) < 0)
		return error_set(err, -errno, "cannot link %s: %s", here, strerror(errno));
	if (host.renameat(AT_FDCWD, f != from ? here : part, AT_FDCWD, final) < 0)
		return error_set(err, -errno, "cannot name %s: %s", final, strerror(errno));
	return sync_folder(f->path, err);
}

/* The layers that nothing in their folder stands on any more, by what the folders are now. */
static int remove_layer(const char *vm, const char *layer, struct error *err)
{
	struct scan s;
	int r = scan_all(&s, vm, false, err);

	for (unsigned i = 0; r == 0 && i < s.n; i++) {
		const struct folder *f = &s.folders[i];
		bool is_needed = is_top(f, layer) || !find_file(f, layer);

		for (unsigned k = 0; k < f->nfiles; k++)
			is_needed |= is_on(&f->files[k], layer);
		if (is_needed)
			continue;
		_cleanup_free_ char *path = paths_format(err, "%s/%s", f->path, layer);

		if (!path || host.unlinkat(AT_FDCWD, path, 0) < 0)
			r = path ? error_set(err, -errno, "cannot remove %s: %s", path, strerror(errno))
				 : -ENOMEM;
	}
	scan_free(&s);
	return r;
}

/* The new file in place of the child wherever that is this file and stands on this layer: what came in by an import has the
 * names, and maybe something else in them. */
static int exchange(const char *vm, const struct scan *s, const struct step *st, const char *part,
		    struct error *err)
{
	_cleanup_close_ int lock = snapstore_lock(vm, true, err);
	_cleanup_free_ char *first = paths_format(err, "%s/%s", st->in->path, st->child->name);
	int r = lock < 0 ? lock : first ? 0 : -ENOMEM;

	if (r == 0)
		r = put_in(st->in, st->in, part, st->child->name, err);
	for (unsigned i = 0; r == 0 && i < s->n; i++) {
		const struct folder *f = &s->folders[i];
		const struct file *there = find_file(f, st->child->name);

		/* One that was deleted meanwhile is no failure. */
		if (f != st->in && is_same_file(there, st->child) &&
		    is_same_file(find_file(f, st->layer->name), st->layer) &&
		    host.access(f->path, F_OK) == 0)
			r = put_in(f, st->in, first, st->child->name, err);
	}
	return r == 0 ? remove_layer(vm, st->layer->name, err) : r;
}

static unsigned disk_of(const struct folder *f, const char *top)
{
	unsigned i = 0;

	while (!f->tops[i] || strcmp(f->tops[i], top) != 0)
		i++;
	return i;
}

/* What a machine writes to: in place, under its lock, or by itself if it runs. */
static int merge_top(const char *vm, const struct step *st, const char *child,
		     const struct snapmerge_running *running, const struct ram_progress *progress,
		     struct error *err)
{
	int r = rebase(child, st->in->path, st->layer, progress, err);

	if (r == -EBUSY && running) {
		r = running->take_in(running->arg, disk_of(st->in, st->child->name),
				     st->layer->name, progress, err);
		if (r == -ESRCH)
			r = -EBUSY; /* somebody else has it, or it came to its end just now */
	}
	_cleanup_close_ int lock = r == 0 ? snapstore_lock(vm, true, err) : -1;

	return r < 0 ? r : lock < 0 ? lock : remove_layer(vm, st->layer->name, err);
}

static int merge_one(const char *vm, const struct scan *s, const struct step *st,
		     const struct snapmerge_running *running, const struct ram_progress *progress,
		     struct error *err)
{
	_cleanup_free_ char *child = paths_format(err, "%s/%s", st->in->path, st->child->name);
	_cleanup_free_ char *part = paths_format(err, "%s/" PART "%s", st->in->path, st->child->name);

	if (!child || !part)
		return -ENOMEM;
	if (st->in->is_machine && is_top(st->in, st->child->name))
		return merge_top(vm, st, child, running, progress, err);
	int r = copy_sparse(child, part, err);

	if (r == 0)
		r = rebase(part, st->in->path, st->layer, progress, err);
	if (r == 0)
		r = exchange(vm, s, st, part, err);
	if (r < 0)
		host.unlinkat(AT_FDCWD, part, 0);
	return r;
}

/* A layer that cannot be merged keeps no other from it; the result is that of the first. */
static int merge_disks(const char *vm, const struct snapmerge_running *running,
		       const struct ram_progress *progress, struct error *err)
{
	struct tried tried[256];
	unsigned ntried = 0;
	bool has_more = true;
	int result = 0;

	while (has_more && ntried < ARRAY_SIZE(tried)) {
		struct error why;
		struct scan s;
		struct step st;
		int r = scan_all(&s, vm, !ntried, &why);

		has_more = r == 0 && find_step(&s, tried, ntried, &st);
		if (has_more) {
			tried[ntried++] = (struct tried){ st.layer->dev, st.layer->ino };
			r = merge_one(vm, &s, &st, running, progress, &why);
			has_more = r != -ECANCELED;
		}
		scan_free(&s);
		/* -EBUSY: a running machine writes to one of them. */
		if (r < 0 && r != -EBUSY && result == 0) {
			result = r;
			*err = why;
		}
	}
	return result;
}

/* A snapshot has all layers of its memory open: more than a process has by default. */
static void allow_files(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0)
		return;
	lim.rlim_cur = lim.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &lim) < 0)
		log_debug("snapshot", "no more open files: %s", strerror(errno));
}

/* ---- all ---- */

int snapmerge(const char *vm, const struct snapmerge_running *running,
	      const struct ram_progress *progress, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(vm, "merge.lock", err);
	_cleanup_close_ int lock =
		path ? host.open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
	struct error why;
	int r;

	if (!path)
		return -ENOMEM;
	if (lock < 0)
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	do
		r = flock(lock, LOCK_EX);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return error_set(err, -errno, "cannot lock %s: %s", path, strerror(errno));
	allow_files();
	r = snapmerge_ram(vm, progress, err);
	if (r == -ECANCELED)
		return r;
	int disks = merge_disks(vm, running, progress, r < 0 ? &why : err);
	int closed = running ? running->close(running->arg, &why) : 0;

	if (closed < 0 && closed != -ESRCH)
		log_warn("snapshot", "the machine still has merged files open: %s", why.text);
	return r < 0 ? r : disks;
}
