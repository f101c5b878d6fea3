/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/host.h"
#include "ctl/paths.h"
#include "ctl/vmlog.h"

static const char *const names[2] = { "vm.log", "vm.log.1" };

void vmlog_take(const int fds[2])
{
	int before[2];
	bool had_any = log_files(before);

	dup2(fds[0], STDOUT_FILENO);
	dup2(fds[0], STDERR_FILENO);
	log_set_files(fds, LOG_FILE_MAX);
	for (unsigned i = 0; had_any && i < 2; i++)
		close(before[i]); /* of the machine that this one is a copy of */
}

int vmlog_set_level(const char *name, struct error *err)
{
	enum log_level level;

	if (log_level_parse(name ? name : "", &level) < 0)
		return error_set(err, -EINVAL, "there is no log level \"%.40s\"", name ? name : "");
	log_set_level(level);
	return 0;
}

int vmlog_open(const char *machine, struct error *err)
{
	int fds[2] = { -1, -1 };

	for (unsigned i = 0; i < 2; i++) {
		_cleanup_free_ char *path = paths_vm(machine, names[i], err);

		fds[i] = path ? host.open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600)
			      : -1;
		if (fds[i] < 0) {
			int r = path ? error_set(err, -errno, "cannot write %s: %s", path, strerror(errno))
				     : -ENOMEM;

			if (i)
				close(fds[0]);
			return r;
		}
	}
	vmlog_take(fds);
	return 0;
}

/* ---- one line ---- */

/* "2026-11-27T14:30:20.123456Z"; false: it is none. */
static bool parse_time(const char *text, int64_t *us)
{
	struct tm tm = { 0 };
	const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
	unsigned fraction = 0;

	if (!rest || sscanf(rest, ".%6uZ", &fraction) != 1)
		return false;
	*us = (int64_t)timegm(&tm) * 1000000 + fraction;
	return true;
}

int vmlog_parse(const char *line, size_t len, int64_t last_us, struct vmlog_line *out)
{
	json_t *json = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
	const char *when = "", *level = "", *area = "", *text = "";
	struct vmlog_line l = { .time_us = last_us, .level = LOG_ERROR };
	int pid = 0;

	if (json_unpack(json, "{s:s, s:s, s:s, s:i, s:s}", "time", &when, "level", &level, "area",
			&area, "pid", &pid, "text", &text) == 0 &&
	    parse_time(when, &l.time_us) && log_level_parse(level, &l.level) == 0) {
		l.area = strdup(area);
		l.text = strdup(text);
	} else {
		l.level = LOG_ERROR;
		l.area = strdup("stderr");
		l.text = strndup(line, len);
	}
	json_decref(json);
	if (!l.area || !l.text) {
		vmlog_line_free(&l);
		return -ENOMEM;
	}
	/* The file is the user's own, and yet: what stands there steers no terminal. */
	for (unsigned char *s = (unsigned char *)l.text; *s; s++)
		if (*s < ' ' || *s == 0x7f)
			*s = '?';
	*out = l;
	return 0;
}

void vmlog_line_free(struct vmlog_line *l)
{
	free(l->area);
	free(l->text);
	l->area = l->text = NULL;
}

/* ---- the files ---- */

int vmlog_reader_init(struct vmlog_reader *r, const char *machine, struct error *err)
{
	*r = (struct vmlog_reader){ .fd = { -1, -1 } };
	int ret = paths_check_name("a machine", machine, err);
	_cleanup_free_ char *dir = ret == 0 ? paths_vm(machine, NULL, err) : NULL;

	if (ret == 0 && !dir)
		ret = -ENOMEM;
	if (ret == 0 && access(dir, F_OK) < 0)
		ret = error_set(err, -ENOENT,
				"there is no machine \"%s\"; viv list shows those there are", machine);
	for (unsigned i = 0; ret == 0 && i < 2; i++) {
		r->path[i] = paths_vm(machine, names[i], err);
		if (!r->path[i])
			ret = -ENOMEM;
	}
	if (ret < 0)
		vmlog_reader_free(r);
	return ret;
}

void vmlog_reader_free(struct vmlog_reader *r)
{
	for (unsigned i = 0; i < 2; i++) {
		free(r->path[i]);
		r->path[i] = NULL;
		if (r->fd[i] >= 0)
			close(r->fd[i]);
		r->fd[i] = -1;
	}
}

static int open_files(struct vmlog_reader *r, struct error *err)
{
	for (unsigned i = 0; i < 2; i++) {
		if (r->fd[i] >= 0)
			continue;
		r->fd[i] = open(r->path[i], O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (r->fd[i] < 0 && errno != ENOENT)
			return error_set(err, -errno, "cannot read %s: %s", r->path[i], strerror(errno));
	}
	return 0;
}

static int give_line(struct vmlog_reader *r, vmlog_fn fn, void *arg)
{
	struct vmlog_line line;
	int ret = vmlog_parse(r->part.data, r->part.len, r->last_us, &line);

	r->part.len = 0;
	if (ret < 0)
		return ret;
	r->last_us = line.time_us;
	ret = fn(arg, &line);
	vmlog_line_free(&line);
	return ret;
}

/* What came to file @i. */
static int read_file(struct vmlog_reader *r, unsigned i, vmlog_fn fn, void *arg)
{
	char buf[16384];
	struct stat st;
	int ret = 0;

	if (r->fd[i] < 0 || fstat(r->fd[i], &st) < 0)
		return 0;
	if ((uint64_t)st.st_size < r->off[i])
		r->off[i] = 0; /* it was emptied: its turn again */
	while (ret == 0) {
		ssize_t n = pread(r->fd[i], buf, sizeof(buf), (off_t)r->off[i]);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : 0;
		for (ssize_t k = 0; ret == 0 && k < n; k++) {
			r->off[i]++;
			if (buf[k] == '\n')
				ret = give_line(r, fn, arg);
			else if (r->part.len < sizeof(r->part.data))
				r->part.data[r->part.len++] = buf[k];
		}
	}
	return ret;
}

/* The file that was written to last. */
static unsigned newer(const struct vmlog_reader *r)
{
	struct stat a, b;

	if (r->fd[1] < 0 || fstat(r->fd[1], &b) < 0 || b.st_size == 0)
		return 0;
	if (r->fd[0] < 0 || fstat(r->fd[0], &a) < 0)
		return 1;
	return b.st_mtim.tv_sec > a.st_mtim.tv_sec ||
	       (b.st_mtim.tv_sec == a.st_mtim.tv_sec && b.st_mtim.tv_nsec > a.st_mtim.tv_nsec);
}

int vmlog_read(struct vmlog_reader *r, vmlog_fn fn, void *arg, struct error *err)
{
	int ret = open_files(r, err);

	if (ret < 0)
		return ret;
	unsigned last = newer(r);

	ret = read_file(r, last ^ 1, fn, arg);
	if (ret == 0)
		ret = read_file(r, last, fn, arg);
	return ret < 0 ? error_set(err, ret, "cannot read the log: %s", strerror(-ret)) : ret;
}
