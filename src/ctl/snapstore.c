/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/snapstore.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/paths.h"
#include "net/identity.h"

#define TMP_PREFIX     ".tmp-"
#define TRASH_PREFIX   ".trash-"
#define PREFETCH_BYTES (256 * (off_t)KIB) /* the tables of a layer, all of most other files */

/* ---- paths ---- */

static char *snapshots_dir(const char *vm, struct error *err)
{
	return paths_vm(vm, "snapshots", err);
}

char *snapstore_path(const char *vm, const char *name, const char *file, struct error *err)
{
	_cleanup_free_ char *dir = snapshots_dir(vm, err);

	if (!dir)
		return NULL;
	return paths_format(err, "%s/%s%s%s", dir, name, file ? "/" : "", file ? file : "");
}

static int sync_dir(const char *path, struct error *err)
{
	_cleanup_close_ int fd = host.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	if (fd < 0 || host.fsync(fd) < 0)
		return error_set(err, -errno, "cannot sync %s: %s", path, strerror(errno));
	return 0;
}

/* ---- building ---- */

int snapstore_begin(struct snapstore_build *b, const char *vm, const char *name, struct error *err)
{
	*b = (struct snapstore_build){ .dir_fd = -1 };
	int r = paths_check_name("a snapshot", name, err);

	if (r < 0)
		return r;
	b->vm = strdup(vm);
	b->name = strdup(name);
	b->final = snapstore_path(vm, name, NULL, err);
	_cleanup_free_ char *parent = snapshots_dir(vm, err);

	if (!b->vm || !b->name || !b->final || !parent)
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	r = paths_make(parent, err);
	if (r < 0)
		return r;
	snapstore_clean(vm);
	if (host.access(b->final, F_OK) == 0)
		return error_set(
			err, -EEXIST,
			"%s has a snapshot \"%s\" already: take another name, or remove it with "
			"viv snapshot delete %s %s",
			vm, name, vm, name);
	b->dir = paths_format(err, "%s/" TMP_PREFIX "%s", parent, name);
	if (!b->dir)
		return -ENOMEM;
	if (host.mkdir(b->dir, 0700) < 0) {
		r = -errno;
		if (r == -EEXIST)
			error_set(err, r, "a snapshot \"%s\" of %s is being taken", name, vm);
		else
			error_set(err, r, "cannot make %s: %s", b->dir, strerror(-r));
		free(b->dir);
		b->dir = NULL; /* not ours to remove */
		return r;
	}
	b->dir_fd = host.open(b->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (b->dir_fd < 0 || flock(b->dir_fd, LOCK_EX | LOCK_NB) < 0)
		return error_set(err, -errno, "cannot lock %s: %s", b->dir, strerror(errno));
	return 0;
}

static int copy_file(const char *path, int dir_fd, const char *as, struct error *err)
{
	_cleanup_close_ int from = host.open(path, O_RDONLY | O_CLOEXEC, 0);
	_cleanup_close_ int to = host.openat(dir_fd, as, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ssize_t n = 1;

	if (from < 0 || to < 0)
		return error_set(err, -errno, "cannot copy %s: %s", path, strerror(errno));
	while (n > 0) {
		n = copy_file_range(from, NULL, to, NULL, 1 << 30, 0);
		if (n < 0 &&
		    (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS)) {
			static char buf[256 * KIB];

			n = read(from, buf, sizeof(buf));
			for (ssize_t done = 0, w = 0; n > 0 && done < n; done += w) {
				w = write(to, buf + done, (size_t)(n - done));
				if (w < 0)
					return error_set(err, -errno, "cannot copy %s: %s", path,
							 strerror(errno));
			}
		}
	}
	if (n < 0 || host.fsync(to) < 0)
		return error_set(err, -errno, "cannot copy %s: %s", path, strerror(errno));
	return 0;
}

int snapstore_add_file(struct snapstore_build *b, const char *path, const char *as, bool may_copy,
		       struct error *err)
{
	if (host.linkat(AT_FDCWD, path, b->dir_fd, as, AT_SYMLINK_FOLLOW) == 0)
		return 0;
	int r = -errno;

	if (may_copy && (r == -EXDEV || r == -EPERM || r == -EMLINK))
		return copy_file(path, b->dir_fd, as, err);
	if (r == -EXDEV)
		return error_set(err, r, "%s is on another file system than the snapshots, which need to share it; move it there",
				 path);
	return error_set(err, r, "cannot link %s into the snapshot: %s", path, strerror(-r));
}

static int add_named(struct snapstore_build *b, const char *path, const char *as, char **member,
		     struct error *err)
{
	if (!path)
		return 0;
	int r = snapstore_add_file(b, path, as, true, err);

	return r < 0 ? r : vmconfig_set(member, as, err);
}

int snapstore_add_config(struct snapstore_build *b, const struct vmconfig *c,
			 const char *const disks[MACHINE_MAX_DISKS], json_t **out, struct error *err)
{
	json_t *json = vmconfig_to_json(c);
	struct vmconfig named;
	int r = json ? vmconfig_init(&named, err) : -ENOMEM;

	if (r < 0) {
		json_decref(json);
		return r < 0 && !json ? error_set(err, -ENOMEM, "no memory for a snapshot") : r;
	}
	r = vmconfig_from_json(&named, json, err);
	json_decref(json);
	if (r == 0)
		r = add_named(b, c->kernel, "kernel", &named.kernel, err);
	if (r == 0)
		r = add_named(b, c->initrd, "initrd", &named.initrd, err);
	if (r == 0)
		r = add_named(b, c->firmware, "firmware", &named.firmware, err);
	for (unsigned i = 0; r == 0 && i < named.ndisks; i++)
		if (disks[i]) {
			r = vmconfig_set(&named.disks[i].path, disks[i], err);
			vmconfig_own_disk(&named.disks[i]);
		}
	vmconfig_forget_shares(&named);
	*out = r == 0 ? vmconfig_to_json(&named) : NULL;
	vmconfig_free(&named);
	if (r == 0 && !*out)
		r = error_set(err, -ENOMEM, "no memory for a snapshot");
	return r;
}

int snapstore_write(const struct snapstore_build *b, const char *file, const void *data, size_t len,
		    struct error *err)
{
	_cleanup_close_ int fd =
		host.openat(b->dir_fd, file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	const char *p = data;

	if (fd < 0)
		return error_set(err, -errno, "cannot write %s/%s: %s", b->dir, file, strerror(errno));
	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, -errno, "cannot write %s/%s: %s", b->dir, file,
					 strerror(errno));
		p += n;
		len -= (size_t)n;
	}
	if (host.fsync(fd) < 0)
		return error_set(err, -errno, "cannot write %s/%s: %s", b->dir, file, strerror(errno));
	return 0;
}

int snapstore_commit(struct snapstore_build *b, struct error *err)
{
	_cleanup_free_ char *parent = snapshots_dir(b->vm, err);

	if (!parent)
		return -ENOMEM;
	if (host.fsync(b->dir_fd) < 0)
		return error_set(err, -errno, "cannot sync %s: %s", b->dir, strerror(errno));
	if (host.renameat(AT_FDCWD, b->dir, AT_FDCWD, b->final) < 0)
		return error_set(err, -errno, "cannot name the snapshot %s: %s", b->final,
				 strerror(errno));
	free(b->dir);
	b->dir = NULL;
	return sync_dir(parent, err);
}

void snapstore_release(struct snapstore_build *b)
{
	if (b->dir_fd >= 0)
		close(b->dir_fd);
	free(b->vm);
	free(b->name);
	free(b->dir);
	free(b->final);
	*b = (struct snapstore_build){ .dir_fd = -1 };
}

void snapstore_end(struct snapstore_build *b)
{
	struct error err;

	if (b->dir && paths_remove_tree(b->dir, &err) < 0)
		log_warn("snapshot", "%s", err.text);
	snapstore_release(b);
}

static bool is_left_over(const char *path, const char *name)
{
	if (!strncmp(name, TRASH_PREFIX, strlen(TRASH_PREFIX)))
		return true;
	if (strncmp(name, TMP_PREFIX, strlen(TMP_PREFIX)) != 0)
		return false;
	_cleanup_close_ int fd = host.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
}

void snapstore_clean(const char *vm)
{
	_cleanup_free_ char *parent = snapshots_dir(vm, NULL);
	DIR *d = parent ? paths_open_dir(parent) : NULL;
	struct dirent *e;
	struct error err;

	while (d && (e = readdir(d))) {
		_cleanup_free_ char *path = paths_format(NULL, "%s/%s", parent, e->d_name);

		if (path && is_left_over(path, e->d_name) && paths_remove_tree(path, &err) < 0)
			log_warn("snapshot", "%s", err.text);
	}
	if (d)
		closedir(d);
}

int snapstore_try_lock(const char *vm, bool is_exclusive, struct error *err)
{
	_cleanup_free_ char *dir = snapshots_dir(vm, err);
	int r = dir ? paths_make(dir, err) : -ENOMEM;

	if (r < 0)
		return r;
	int fd = host.open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	if (fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", dir, strerror(errno));
	if (flock(fd, (is_exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0)
		return fd;
	r = errno == EWOULDBLOCK
		    ? error_set(err, -EAGAIN,
				"another process works on the snapshots of %s; try again", vm)
		    : error_set(err, -errno, "cannot lock %s: %s", dir, strerror(errno));
	close(fd);
	return r;
}

int snapstore_lock(const char *vm, bool is_exclusive, struct error *err)
{
	for (unsigned ms = 0;; ms++) {
		int fd = snapstore_try_lock(vm, is_exclusive, err);

		if (fd != -EAGAIN)
			return fd;
		if (ms >= SNAPSTORE_LOCK_MS)
			return -EBUSY;
		usleep(1000);
	}
}

static bool is_named(const struct ram_index *x, const char *file)
{
	for (uint32_t i = 0; i < x->nlayers; i++)
		if (!strcmp(x->layers[i], file))
			return true;
	return false;
}

void snapstore_remove_unnamed(int dir_fd, const struct ram_index *x)
{
	int fd = host.openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *e;

	if (!d && fd >= 0)
		close(fd);
	while (d && (e = readdir(d)))
		if (((!strncmp(e->d_name, "ram-", 4) && !is_named(x, e->d_name)) ||
		     !strcmp(e->d_name, "ram.index.new")) &&
		    host.unlinkat(dir_fd, e->d_name, 0) < 0)
			log_warn("snapshot", "cannot remove %s: %s", e->d_name, strerror(errno));
	if (d)
		closedir(d);
}

/* ---- looking ---- */

static bool is_plain_name(const char *name)
{
	return name[0] && name[0] != '.' && !strchr(name, '/');
}

/* A file name of the configuration to a path.  Absolute ones are only for disks that nobody writes. */
static int make_path(char **member, const char *dir, bool may_be_absolute, struct error *err)
{
	if (!*member || (may_be_absolute && **member == '/'))
		return 0;
	if (!is_plain_name(*member))
		return error_set(err, -EINVAL, "\"%.80s\" is no file of the snapshot", *member);
	char *path = paths_format(err, "%s/%s", dir, *member);

	if (!path)
		return -ENOMEM;
	free(*member);
	*member = path;
	return 0;
}

static int make_paths(struct vmconfig *c, const char *dir, struct error *err)
{
	int r = make_path(&c->kernel, dir, false, err);

	if (r == 0)
		r = make_path(&c->initrd, dir, false, err);
	if (r == 0)
		r = make_path(&c->firmware, dir, false, err);
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++) {
		/* All layers are files of the folder: none may be named elsewhere. */
		for (char **b = c->disks[i].backing; *b; b++) {
			free(*b);
			*b = NULL;
		}
		/* Nor is anything read from elsewhere at a later start. */
		vmconfig_own_disk(&c->disks[i]);
		r = make_path(&c->disks[i].path, dir, c->disks[i].is_readonly, err);
	}
	return r;
}

void snapstore_measure(struct snapshot_info *i)
{
	_cleanup_free_ char *dir = snapstore_path(i->vm, i->name, NULL, NULL);
	DIR *d = dir ? paths_open_dir(dir) : NULL;
	struct dirent *e;
	struct stat st;

	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.' ||
		    host.fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		if (st.st_nlink > 1)
			i->shared_bytes += (uint64_t)st.st_blocks * 512;
		else
			i->own_bytes += (uint64_t)st.st_blocks * 512;
	}
	if (d)
		closedir(d);
}

#define NS_PER_S (json_int_t)1000000000
#define S_MAX	 (INT64_MAX / NS_PER_S)

static int read_info(struct snapshot_info *i, json_t *json, const char *dir, struct error *err)
{
	const char *viv, *engine, *parent = NULL;
	json_int_t format, created, pause_us, real_ns = 0;
	int is_frozen = 0;
	json_error_t je;
	json_t *config, *network = NULL;

	if (json_unpack_ex(json, &je, 0, "{s:I, s:s, s:s, s?:s, s:I, s:I, s:o, s?:I, s?:b, s?:o}",
			   "format", &format, "viv", &viv, "engine", &engine, "parent", &parent,
			   "created", &created, "pause_us", &pause_us, "config", &config, "real_ns",
			   &real_ns, "frozen", &is_frozen, "network", &network) < 0)
		return error_set(err, -EINVAL, "it is damaged: %s", je.text);
	if (format != SNAPSTORE_FORMAT)
		return error_set(err, -ENOTSUP,
				 "it has format version %lld, this program knows version %d",
				 (long long)format, SNAPSTORE_FORMAT);
	i->created_s = created;
	i->moment.real_ns = real_ns > 0 ? real_ns : MIN(MAX(created, (json_int_t)0), S_MAX) * NS_PER_S;
	i->moment.is_frozen = is_frozen;
	i->pause_us = (uint64_t)pause_us;
	i->viv = strdup(viv);
	i->engine = strdup(engine);
	i->parent = parent ? strdup(parent) : NULL;
	if (!i->viv || !i->engine || (parent && !i->parent))
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	int r = network ? identity_check(network, err) : 0;

	i->network = r == 0 ? json_incref(network) : NULL;
	if (r == 0)
		r = vmconfig_from_json(&i->config, config, err);
	vmconfig_forget_shares(&i->config);
	return r == 0 ? make_paths(&i->config, dir, err) : r;
}

int snapstore_load(struct snapshot_info *out, const char *vm, const char *name, struct error *err)
{
	int r = paths_check_name("a machine", vm, err);

	if (r == 0)
		r = paths_check_name("a snapshot", name, err);
	if (r < 0)
		return r;
	_cleanup_free_ char *dir = snapstore_path(vm, name, NULL, err);
	_cleanup_free_ char *path = snapstore_path(vm, name, "snapshot.json", err);
	_cleanup_free_ char *text = NULL;
	struct snapshot_info i = { .vm = strdup(vm), .name = strdup(name) };
	size_t len;

	if (!dir || !path || !i.vm || !i.name)
		r = error_set(err, -ENOMEM, "no memory for a snapshot");
	else if (host.access(dir, F_OK) < 0)
		r = error_set(err, -ENOENT, "%s has no snapshot \"%s\"; viv snapshot list %s shows those there are",
			      vm, name, vm);
	if (r == 0)
		r = vmconfig_init(&i.config, err);
	if (r == 0)
		r = paths_read_file(path, SNAPSTORE_JSON_MAX, &text, &len, err);
	if (r == 0) {
		json_error_t je;
		json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);

		r = json ? read_info(&i, json, dir, err)
			 : error_set(err, -EINVAL, "it is damaged: %s", je.text);
		if (r < 0)
			error_prefix(err, "snapshot %s of %s", name, vm);
		json_decref(json);
	}
	if (r < 0) {
		snapshot_info_free(&i);
		return r;
	}
	*out = i;
	return 0;
}

void snapshot_info_free(struct snapshot_info *i)
{
	free(i->vm);
	free(i->name);
	free(i->parent);
	free(i->viv);
	free(i->engine);
	vmconfig_free(&i->config);
	json_decref(i->network);
	*i = (struct snapshot_info){ 0 };
}

static int by_age(const void *a, const void *b)
{
	const struct snapshot_info *x = a, *y = b;

	if (x->created_s != y->created_s)
		return x->created_s < y->created_s ? -1 : 1;
	return strcmp(x->name, y->name);
}

int snapstore_list(const char *vm, struct snapshot_info **out, unsigned *n,
		   void (*damaged)(void *arg, const char *name, const struct error *why), void *arg,
		   struct error *err)
{
	int r = paths_check_name("a machine", vm, err);
	_cleanup_free_ char *home = r == 0 ? paths_vm(vm, NULL, err) : NULL;
	_cleanup_free_ char *parent = home ? snapshots_dir(vm, err) : NULL;
	struct snapshot_info *list = NULL;
	unsigned count = 0;
	struct dirent *e;

	if (!parent)
		return r < 0 ? r : -ENOMEM;
	if (host.access(home, F_OK) < 0)
		return error_set(err, -ENOENT,
				 "there is no machine \"%s\"; viv list shows those there are", vm);
	DIR *d = paths_open_dir(parent);

	while (d && (e = readdir(d))) {
		struct snapshot_info i, *more;
		struct error why;

		if (e->d_name[0] == '.')
			continue;
		if (snapstore_load(&i, vm, e->d_name, &why) < 0) {
			if (damaged)
				damaged(arg, e->d_name, &why);
			continue;
		}
		more = realloc(list, (count + 1) * sizeof(*list));
		if (!more) {
			snapshot_info_free(&i);
			r = error_set(err, -ENOMEM, "no memory for the list of snapshots");
			break;
		}
		snapstore_measure(&i);
		list = more;
		list[count++] = i;
	}
	if (d)
		closedir(d);
	if (r < 0) {
		snapstore_list_free(list, count);
		return r;
	}
	if (count)
		qsort(list, count, sizeof(*list), by_age);
	*out = list;
	*n = count;
	return 0;
}

void snapstore_list_free(struct snapshot_info *list, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		snapshot_info_free(&list[i]);
	free(list);
}

void snapstore_prefetch(const char *vm, const char *name)
{
	_cleanup_free_ char *path = snapstore_path(vm, name, NULL, NULL);
	DIR *d = path ? paths_open_dir(path) : NULL;
	struct dirent *e;

	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.' || e->d_type != DT_REG || !strncmp(e->d_name, "ram-", 4) ||
		    !strcmp(e->d_name, "kernel") || !strcmp(e->d_name, "initrd"))
			continue;
		/* Non-blocking, and whatever it is, nothing is read from it here: a hint. */
		_cleanup_close_ int fd = host.openat(
			dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);

		if (fd >= 0)
			(void)posix_fadvise(fd, 0, PREFETCH_BYTES, POSIX_FADV_WILLNEED);
	}
	if (d)
		closedir(d);
}

int snapstore_open_state(const char *vm, const char *name, struct snapshot_state *out, struct error *err)
{
	_cleanup_free_ char *path = snapstore_path(vm, name, "state", err), *data = NULL;
	size_t len;
	int r = path ? paths_read_file(path, SNAPSHOT_STATE_MAX, &data, &len, err) : -ENOMEM;

	if (r == 0)
		r = snapshot_state_parse(out, (const uint8_t *)data, len, err);
	return r;
}

int snapstore_open_set(const char *vm, const char *name, struct working_set *out, struct error *err)
{
	_cleanup_free_ char *path = snapstore_path(vm, name, WORKING_SET_FILE, err), *data = NULL;
	size_t len;
	int r = path ? paths_read_file(path, WORKING_SET_MAX, &data, &len, err) : -ENOMEM;

	return r < 0 ? r : working_set_parse(out, (const uint8_t *)data, len, err);
}

static int open_ram(const char *dir, const char *index, struct ram_files *out, struct error *err)
{
	_cleanup_free_ char *data = NULL;
	struct ram_index x;
	size_t len;
	int r = paths_read_file(index, RAM_INDEX_MAX, &data, &len, err);

	if (r == 0)
		r = ram_index_parse(&x, (const uint8_t *)data, len, err);
	if (r < 0)
		return r;
	_cleanup_close_ int fd = host.open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	if (fd < 0) {
		ram_index_free(&x);
		return error_set(err, -errno, "cannot open %s: %s", dir, strerror(errno));
	}
	return ram_files_open(out, &x, fd, err);
}

int snapstore_open_ram(const char *vm, const char *name, struct ram_files *out, struct error *err)
{
	_cleanup_free_ char *dir = snapstore_path(vm, name, NULL, err);
	_cleanup_free_ char *index = dir ? snapstore_path(vm, name, "ram.index", err) : NULL;
	int r = index ? open_ram(dir, index, out, err) : -ENOMEM;

	/* Between the index and its files, a merge may have put others in their place. */
	for (unsigned i = 0; r == -ENOENT && i < 3; i++)
		r = open_ram(dir, index, out, err);
	return r;
}

int snapstore_delete(const char *vm, const char *name, struct error *err)
{
	int r = paths_check_name("a machine", vm, err);

	if (r == 0)
		r = paths_check_name("a snapshot", name, err);
	if (r < 0)
		return r;
	_cleanup_free_ char *parent = snapshots_dir(vm, err);
	_cleanup_free_ char *path = snapstore_path(vm, name, NULL, err);
	_cleanup_free_ char *trash =
		parent ? paths_format(err, "%s/" TRASH_PREFIX "%s", parent, name) : NULL;

	if (!path || !trash)
		return -ENOMEM;
	snapstore_clean(vm);
	if (host.renameat(AT_FDCWD, path, AT_FDCWD, trash) < 0)
		return errno == ENOENT
			       ? error_set(err, -ENOENT, "%s has no snapshot \"%s\"; viv snapshot list %s shows those there are",
					   vm, name, vm)
			       : error_set(err, -errno, "cannot remove %s: %s", path, strerror(errno));
	r = sync_dir(parent, err);
	return r < 0 ? r : paths_remove_tree(trash, err);
}
