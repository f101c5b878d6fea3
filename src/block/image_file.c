/* SPDX-License-Identifier: Apache-2.0 */
#include "block/image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>

#include "base/host.h"
#include "base/log.h"

#define LOCK_WAIT_MS 300
#define LOCK_POLL_MS 5

/* -EAGAIN: somebody holds it.  A process that was killed holds it for a moment longer, if its io_uring was at work on the file. */
static int set_lock(int fd, const struct flock *lk)
{
	const struct timespec pause = { .tv_nsec = LOCK_POLL_MS * 1000000L };

	for (unsigned ms = 0;; ms += LOCK_POLL_MS) {
		if (fcntl(fd, F_OFD_SETLK, lk) == 0)
			return 0;
		if ((errno != EAGAIN && errno != EACCES) || ms >= LOCK_WAIT_MS)
			return errno == EACCES ? -EAGAIN : -errno;
		nanosleep(&pause, NULL);
	}
}

static int lock_image(int fd, const char *path, bool is_writer, struct error *err)
{
	struct flock lk = { .l_type = is_writer ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };
	int r = set_lock(fd, &lk);

	if (r == 0)
		return 0;
	if (r != -EAGAIN) {
		/* Some network file systems have no locks. */
		log_warn("block",
			 "disk image '%s' can't be locked (%s); "
			 "make sure that no other machine uses it",
			 path, strerror(-r));
		return 0;
	}
	/* Who is there?  A lock that went meanwhile reads as "written". */
	struct flock other = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	bool is_read = is_writer && fcntl(fd, F_OFD_GETLK, &other) == 0 && other.l_type == F_RDLCK;
	return error_set(
		err, -EBUSY,
		"disk image '%s' is in use by another machine, which %s it; stop that one, "
		"%s",
		path, is_read ? "reads" : "writes to",
		is_read ? "or open the image read-only or as a throw-away copy"
			: "or give this one its own copy of the image");
}

static int measure(struct image_file *f, const char *path, struct error *err)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return error_set(err, -errno, "cannot look at disk image '%s': %s", path,
				 strerror(errno));
	if (S_ISDIR(st.st_mode))
		return error_set(err, -EISDIR, "disk image '%s' is a folder; name an image file", path);
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	if (S_ISREG(st.st_mode)) {
		f->size_bytes = st.st_size;
	} else if (S_ISBLK(st.st_mode)) {
		f->is_block_device = true;
		if (ioctl(f->fd, BLKGETSIZE64, &f->size_bytes) < 0)
			return error_set(err, -errno, "cannot learn the size of '%s': %s", path,
					 strerror(errno));
	} else {
		return error_set(err, -EINVAL,
				 "disk image '%s' is neither a regular file nor a block device", path);
	}
	return 0;
}

/* O_DIRECT with requests of 512 bytes must work: the guest sees such sectors. */
static int probe_direct(const struct image_file *f, const char *path, struct error *err)
{
	_Alignas(512) char buf[512];

	if (host.pread(f->fd, buf, sizeof(buf), 0) < 0)
		return error_set(
			err, -errno,
			"disk image '%s' can't be read in sectors of 512 bytes without the "
			"page cache (%s); leave out the direct option",
			path, strerror(errno));
	return 0;
}

static int open_error(const char *path, bool is_writer, int e, struct error *err)
{
	const char *remedy = "check the path";

	if (e == EACCES || e == EPERM)
		remedy = is_writer && host.access(path, R_OK) == 0
				 ? "open it read-only or as a throw-away copy, or change its "
				   "permissions"
				 : "change its permissions";
	else if (e == EROFS)
		remedy = "open it read-only or as a throw-away copy";
	else if (e == EINVAL)
		remedy = "its file system may lack O_DIRECT: leave out the direct option";
	else if (e != ENOENT && e != ENOTDIR && e != EISDIR)
		remedy = "see that the storage under it works";
	return error_set(err, -e, "cannot open disk image '%s': %s; %s", path, strerror(e), remedy);
}

int image_file_check_raw(const struct image_file *f, const char *path, struct error *err)
{
	if (!f->size_bytes)
		return error_set(err, -EINVAL,
				 "disk image '%s' is empty; give it a size first "
				 "(truncate -s 2G FILE)",
				 path);
	if (f->size_bytes % BLOCK_SECTOR)
		return error_set(
			err, -EINVAL,
			"disk image '%s' has %llu bytes, which is no multiple of 512: it is "
			"damaged, or no raw image",
			path, (unsigned long long)f->size_bytes);
	return 0;
}

static int open_file(struct image_file *f, const char *path, bool is_writer, bool use_direct,
		     bool has_lock, struct error *err)
{
	int flags = (is_writer ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

	if (use_direct)
		flags |= O_DIRECT;
	*f = (struct image_file){ .is_direct = use_direct };
	f->fd = host.open(path, flags, 0);
	if (f->fd < 0)
		return open_error(path, is_writer, errno, err);
	int r = measure(f, path, err);
	if (r == 0 && has_lock)
		r = lock_image(f->fd, path, is_writer, err);
	if (r == 0 && f->is_direct)
		r = probe_direct(f, path, err);
	if (r < 0)
		image_file_close(f);
	return r;
}

int image_file_open(struct image_file *f, const char *path, bool is_writer, bool use_direct,
		    struct error *err)
{
	return open_file(f, path, is_writer, use_direct, true, err);
}

int image_file_peek(struct image_file *f, const char *path, struct error *err)
{
	return open_file(f, path, false, false, false, err);
}

int image_file_take(struct image_file *f, int fd, const char *path, struct error *err)
{
	*f = (struct image_file){ .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0) };
	if (f->fd < 0)
		return error_set(err, -errno, "cannot use disk image '%s': %s", path, strerror(errno));
	int r = measure(f, path, err);

	if (r < 0)
		image_file_close(f);
	return r;
}

void image_file_share(const struct image_file *f)
{
	struct flock lk = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

	/* From a stronger lock to a weaker one: the file system may have none, else it can't fail. */
	(void)fcntl(f->fd, F_OFD_SETLK, &lk);
}

void image_file_close(struct image_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}
