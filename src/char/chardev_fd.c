/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "char/chardev.h"
#include "char/stream.h"

struct fd_dev {
	struct char_dev chr;
	struct stream in, out;
	int ready_fd; /* always readable: stands in for an input that cannot be polled; or -1 */
	struct loop_fd *in_watch, *out_watch;
	bool is_out_broken;
};

static void on_output(void *arg, int fd, unsigned events)
{
	struct fd_dev *d = arg;

	loop_fd_modify(d->out_watch, 0);
	if (d->chr.user.writable)
		d->chr.user.writable(d->chr.user.ctx);
}

static size_t fd_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	struct fd_dev *d = container_of(c, struct fd_dev, chr);
	size_t done = 0;

	if (d->out.fd < 0 || d->is_out_broken)
		return len;
	while (done < len) {
		ssize_t n = stream_write(&d->out, data + done, len - done);

		if (n == -EAGAIN && d->out_watch) {
			loop_fd_modify(d->out_watch, LOOP_OUT);
			return done;
		}
		if (n < 0) {
			log_warn("char", "console output is lost from here on: %s", strerror((int)-n));
			d->is_out_broken = true;
			return len;
		}
		done += (size_t)n;
	}
	return done;
}

static void end_input(struct fd_dev *d)
{
	loop_fd_remove(d->in_watch);
	d->in_watch = NULL;
	if (d->chr.user.connected)
		d->chr.user.connected(d->chr.user.ctx, false);
}

static void on_input(void *arg, int fd, unsigned events)
{
	struct fd_dev *d = arg;
	uint8_t buf[4096];
	size_t room = MIN(chardev_room(&d->chr), sizeof(buf));
	ssize_t n;

	if (!room) {
		loop_fd_modify(d->in_watch, 0); /* until rx_ready */
		return;
	}
	n = stream_read(&d->in, buf, room);
	if (n == -EAGAIN)
		return;
	if (n <= 0)
		end_input(d);
	else
		chardev_give(&d->chr, buf, (size_t)n);
}

static void fd_rx_ready(struct char_dev *c)
{
	struct fd_dev *d = container_of(c, struct fd_dev, chr);

	if (d->in_watch)
		loop_fd_modify(d->in_watch, LOOP_IN);
}

static void fd_close(struct char_dev *c)
{
	struct fd_dev *d = container_of(c, struct fd_dev, chr);

	loop_fd_remove(d->in_watch);
	loop_fd_remove(d->out_watch);
	if (d->ready_fd >= 0)
		close(d->ready_fd);
	stream_close(&d->in);
	stream_close(&d->out);
	free(d);
}

static const struct char_ops fd_ops = { fd_write, fd_rx_ready, fd_close };

static int watch(struct fd_dev *d, struct loop *loop, struct error *err)
{
	int in_fd = d->in.fd;

	if (in_fd >= 0 && d->in.is_file) {
		d->ready_fd = in_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
		if (in_fd < 0)
			return error_set(err, -errno, "cannot watch the console input: %s",
					 strerror(errno));
	}
	if (in_fd >= 0) {
		d->in_watch = loop_fd_add(loop, in_fd, LOOP_IN, on_input, d);
		if (!d->in_watch)
			return error_set(err, -EIO, "cannot watch the console input: %s",
					 strerror(errno));
	}
	if (d->out.fd >= 0 && !d->out.is_file) {
		d->out_watch = loop_fd_add(loop, d->out.fd, 0, on_output, d);
		if (!d->out_watch)
			return error_set(err, -EIO, "cannot watch the console output: %s",
					 strerror(errno));
	}
	return 0;
}

int chardev_fd(struct char_dev **out, struct loop *loop, int in_fd, int out_fd, struct error *err)
{
	struct fd_dev *d = calloc(1, sizeof(*d));
	int rc;

	if (!d)
		return error_set(err, -ENOMEM, "no memory for a character device");
	d->chr.ops = &fd_ops;
	d->ready_fd = -1;
	d->in = d->out = (struct stream){ .fd = -1, .restore_fd = -1 };
	rc = stream_open(&d->in, in_fd, false, err);
	if (!rc)
		rc = stream_open(&d->out, out_fd, true, err);
	if (!rc)
		rc = watch(d, loop, err);
	if (rc) {
		fd_close(&d->chr);
		return rc;
	}
	*out = &d->chr;
	return 0;
}
