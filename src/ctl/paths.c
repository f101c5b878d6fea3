/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/host.h"
#include "ctl/paths.h"

int paths_check_name(const char *what, const char *name, struct error *err)
{
	static const char allowed[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
	size_t len = strlen(name);

	if (len == 0 || len > PATHS_NAME_MAX || strspn(name, allowed) != len || strchr("_.-", name[0]))
		return error_set(
			err, -EINVAL,
			"\"%.64s\" is no name for %s: use 1 to %d letters, digits, _ . - and start "
			"with a letter or digit",
			name, what, PATHS_NAME_MAX);
	return 0;
}

char *paths_format(struct error *err, const char *fmt, ...)
{
	va_list ap;
	char *s;

	va_start(ap, fmt);
	int n = vasprintf(&s, fmt, ap);

	va_end(ap);
	if (n < 0) {
		error_set(err, -ENOMEM, "no memory for a path");
		return NULL;
	}
	return s;
}

static const char *env_dir(const char *name)
{
	const char *v = getenv(name);

	/* XDG base directory specification: relative paths are invalid and ignored. */
	return v && v[0] == '/' ? v : NULL;
}

static const char *home_dir(void)
{
	const char *home = env_dir("HOME");
	struct passwd *pw = home ? NULL : getpwuid(getuid());

	return home ? home : pw && pw->pw_dir ? pw->pw_dir : "/";
}

/* VIVARIUM_HOME may be relative: it is then made absolute, as processes may change directory. */
static char *vivarium_home(struct error *err, bool *is_set)
{
	const char *v = getenv("VIVARIUM_HOME");

	*is_set = v && v[0];
	if (!*is_set)
		return NULL;
	if (v[0] == '/')
		return paths_format(err, "%s", v);
	_cleanup_free_ char *cwd = getcwd(NULL, 0);

	if (!cwd) {
		error_set(err, -errno, "the current directory is gone: %s", strerror(errno));
		return NULL;
	}
	return paths_format(err, "%s/%s", cwd, v);
}

char *paths_data(const char *below, struct error *err)
{
	bool is_set;
	_cleanup_free_ char *home = vivarium_home(err, &is_set);

	if (is_set)
		return home ? paths_format(err, "%s/%s", home, below) : NULL;
	const char *xdg = env_dir("XDG_DATA_HOME");

	if (xdg)
		return paths_format(err, "%s/vivarium/%s", xdg, below);
	return paths_format(err, "%s/.local/share/vivarium/%s", home_dir(), below);
}

static char *below_data(const char *kind, const char *name, const char *file, struct error *err)
{
	_cleanup_free_ char *root = paths_data(kind, err);

	if (!root)
		return NULL;
	return file ? paths_format(err, "%s/%s/%s", root, name, file)
		    : paths_format(err, "%s/%s", root, name);
}

char *paths_vm(const char *name, const char *file, struct error *err)
{
	return below_data("vms", name, file, err);
}

char *paths_image(const char *name, const char *file, struct error *err)
{
	return below_data("images", name, file, err);
}

static char *run_root(struct error *err)
{
	bool is_set;
	_cleanup_free_ char *home = vivarium_home(err, &is_set);

	if (is_set)
		return home ? paths_format(err, "%s/run", home) : NULL;
	const char *xdg = env_dir("XDG_RUNTIME_DIR");
	struct stat st;

	if (xdg)
		return paths_format(err, "%s/vivarium", xdg);
	char *path = paths_format(err, "/tmp/vivarium-%u", (unsigned)getuid());

	/* A shared directory: someone else may have been there first. */
	if (path && host.fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    (!S_ISDIR(st.st_mode) || st.st_uid != getuid() || (st.st_mode & 077))) {
		error_set(err, -EACCES, "%s is not a private directory of yours: remove it, or set XDG_RUNTIME_DIR",
			  path);
		free(path);
		return NULL;
	}
	return path;
}

char *paths_run(const char *name, const char *file, struct error *err)
{
	_cleanup_free_ char *root = run_root(err);

	if (!root)
		return NULL;
	return file ? paths_format(err, "%s/%s/%s", root, name, file)
		    : paths_format(err, "%s/%s", root, name);
}

char *paths_lab(const char *name, const char *file, struct error *err)
{
	_cleanup_free_ char *root = run_root(err);

	return root ? paths_format(err, "%s/.labs/%s%s%s", root, name, file ? "/" : "", file ? file : "")
		    : NULL;
}

int paths_make(const char *path, struct error *err)
{
	/* The last one first: a confined machine may not make those that are there. */
	if (host.mkdir(path, 0700) == 0 || errno == EEXIST)
		return 0;
	const char *slash = strrchr(path, '/');

	if (errno != ENOENT || !slash || slash == path)
		return error_set(err, -errno, "cannot make the directory %s: %s", path, strerror(errno));
	_cleanup_free_ char *parent = strndup(path, (size_t)(slash - path));
	int r = parent ? paths_make(parent, err) : error_set(err, -ENOMEM, "no memory for a path");

	if (r == 0 && host.mkdir(path, 0700) < 0 && errno != EEXIST)
		r = error_set(err, -errno, "cannot make the directory %s: %s", path, strerror(errno));
	return r;
}

static int remove_at(int dir, const char *name, unsigned depth)
{
	if (host.unlinkat(dir, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	if (depth == 0)
		return -ELOOP;
	int fd = host.openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);

	if (fd < 0) /* somebody else removes it, too */
		return errno == ENOENT ? 0 : -errno;
	DIR *d = fdopendir(fd);

	if (!d) {
		int r = -errno;

		close(fd);
		return r;
	}
	int r = 0;
	struct dirent *e;

	while (r == 0 && (e = readdir(d)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			r = remove_at(fd, e->d_name, depth - 1);
	closedir(d);
	if (r == 0 && host.unlinkat(dir, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		r = -errno;
	return r;
}

int paths_remove_tree(const char *path, struct error *err)
{
	int r = remove_at(AT_FDCWD, path, 8);

	return r < 0 ? error_set(err, r, "cannot remove %s: %s", path, strerror(-r)) : 0;
}

int paths_remove_at_once(const char *path, struct error *err)
{
	const char *slash = strrchr(path, '/');
	uint64_t random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	_cleanup_free_ char *gone =
		paths_format(err, "%.*s" PATHS_REMOVED_PREFIX "%016llx",
			     slash ? (int)(slash + 1 - path) : 0, path, (unsigned long long)random);

	if (!gone)
		return -ENOMEM;
	if (host.renameat(AT_FDCWD, path, AT_FDCWD, gone) < 0)
		return errno == ENOENT
			       ? 0
			       : error_set(err, -errno, "cannot remove %s: %s", path, strerror(errno));
	return paths_remove_tree(gone, err);
}

DIR *paths_open_dir(const char *path)
{
	int fd = host.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

	if (fd >= 0 && !d)
		close(fd);
	return d;
}

static int sync_path(const char *path)
{
	_cleanup_close_ int fd = host.open(path, O_RDONLY | O_CLOEXEC, 0);

	/* Some file systems can't sync folders: then there is no more to be had. */
	return fd < 0 || (host.fsync(fd) < 0 && errno != EINVAL) ? -errno : 0;
}

/* The name itself: after a power cut, too, it is the new file's. */
static int sync_parent(const char *path)
{
	_cleanup_free_ char *dir = strdup(path);
	char *slash = dir ? strrchr(dir, '/') : NULL;

	if (!dir)
		return -ENOMEM;
	if (slash)
		slash[slash == dir] = 0;
	return sync_path(slash ? dir : ".");
}

int paths_sync(const char *path, struct error *err)
{
	int r = sync_path(path);

	return r < 0 ? error_set(err, r, "cannot make %s stable: %s", path, strerror(-r)) : 0;
}

static int write_file(const char *path, const void *data, size_t len, bool is_stable, struct error *err)
{
	_cleanup_free_ char *tmp = paths_format(err, "%s.new", path);

	if (!tmp)
		return -ENOMEM;
	/* What was left there may be a link to a file of others, which must not change. */
	(void)host.unlinkat(AT_FDCWD, tmp, 0);
	int fd = host.open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0)
		return error_set(err, -errno, "cannot write %s: %s", tmp, strerror(errno));
	int r = host_pwrite_all(fd, data, len, 0);

	if (r == 0 && is_stable && host.fsync(fd) < 0)
		r = -errno;
	close(fd);
	if (r == 0 && host.renameat(AT_FDCWD, tmp, AT_FDCWD, path) < 0)
		r = -errno;
	if (r == 0 && is_stable)
		r = sync_parent(path);
	if (r < 0) {
		host.unlinkat(AT_FDCWD, tmp, 0);
		return error_set(err, r, "cannot write %s: %s", path, strerror(-r));
	}
	return 0;
}

int paths_write_file(const char *path, const void *data, size_t len, struct error *err)
{
	return write_file(path, data, len, true, err);
}

int paths_hand_over(const char *path, const void *data, size_t len, struct error *err)
{
	return write_file(path, data, len, false, err);
}

int paths_read_file(const char *path, size_t max, char **out, size_t *len, struct error *err)
{
	_cleanup_close_ int fd = host.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot read %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > max)
		return error_set(err, -EFBIG, "%s is not a file of at most %zu bytes", path, max);
	size_t size = (size_t)st.st_size, done = 0;
	char *buf = host.malloc(size + 1);

	if (!buf)
		return error_set(err, -ENOMEM, "no memory to read %s", path);
	while (done < size) {
		ssize_t n = host.pread(fd, buf + done, size - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int r = -errno;

			free(buf);
			return error_set(err, r, "cannot read %s: %s", path, strerror(-r));
		}
		if (n == 0)
			break; /* shorter than it was: what there is */
		done += (size_t)n;
	}
	buf[done] = 0;
	*out = buf;
	*len = done;
	return 0;
}
