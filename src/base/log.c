/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/host.h"
#include "base/log.h"

#define RATE_MAX_PER_WINDOW 10
#define RATE_WINDOW_NS	    1000000000

static _Atomic int log_threshold = LOG_WARN;
static _Atomic int log_fd = STDERR_FILENO;

/* The files of a machine; fd -1: there are none. */
static struct {
	int fd[2];
	uint64_t max_bytes;
	_Atomic unsigned current;
} files = { .fd = { -1, -1 } };

static const char *const level_names[LOG_NLEVELS] = { "error", "warning", "info", "debug", "trace" };

void log_set_level(enum log_level level)
{
	atomic_store(&log_threshold, level);
}

enum log_level log_level(void)
{
	return (enum log_level)atomic_load(&log_threshold);
}

const char *log_level_name(enum log_level level)
{
	return level_names[level];
}

int log_level_parse(const char *name, enum log_level *out)
{
	for (unsigned i = 0; i < LOG_NLEVELS; i++) {
		if (strcmp(level_names[i], name) == 0) {
			*out = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

void log_set_fd(int fd)
{
	files.fd[0] = files.fd[1] = -1;
	atomic_store(&log_fd, fd);
}

bool log_files(int fds[2])
{
	fds[0] = files.fd[0];
	fds[1] = files.fd[1];
	return fds[0] >= 0;
}

static bool is_later(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec > b->tv_sec || (a->tv_sec == b->tv_sec && a->tv_nsec > b->tv_nsec);
}

void log_set_files(const int fds[2], uint64_t max_bytes)
{
	struct stat st[2];
	unsigned current = 0;

	/* Where the last line was written. */
	if (fstat(fds[0], &st[0]) == 0 && fstat(fds[1], &st[1]) == 0 && st[1].st_size &&
	    is_later(&st[1].st_mtim, &st[0].st_mtim))
		current = 1;
	files.fd[0] = fds[0];
	files.fd[1] = fds[1];
	files.max_bytes = max_bytes;
	atomic_store(&files.current, current);
}

static bool is_full(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && (uint64_t)st.st_size >= files.max_bytes;
}

/* The file that is not full; of two full ones, that of before is emptied.  Other processes come to the same result. */
static int take_file(void)
{
	unsigned current = atomic_load(&files.current);

	if (!is_full(files.fd[current]))
		return files.fd[current];
	/* One thread goes on to the next; a line of another one that gets here before may still follow in the full one. */
	if (atomic_compare_exchange_strong(&files.current, &current, current ^ 1)) {
		int next = files.fd[current ^ 1];

		if (is_full(next) && host.ftruncate(next, 0) < 0)
			return -1; /* then there are no more lines: a log never grows beyond its bound */
		return next;
	}
	return files.fd[atomic_load(&files.current)];
}

static bool is_wanted(enum log_level level)
{
	return level <= (enum log_level)atomic_load_explicit(&log_threshold, memory_order_relaxed);
}

/* ---- lines ---- */

struct line {
	char text[LOG_LINE_MAX];
	size_t len;
};

/* The length of the UTF-8 sequence at @s if it is one that prints: neither cut short nor overlong, no surrogate, none of the
 * C1 control characters; 0: it is none. */
static size_t utf8_len(const unsigned char *s, size_t left)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t len = *s >= 0xf0 && *s < 0xf5   ? 4
		     : *s >= 0xe0 && *s < 0xf0 ? 3
		     : *s >= 0xc2 && *s < 0xe0 ? 2
					       : 0;
	uint32_t c = *s & (0x7fu >> len);

	if (!len || len > left)
		return 0;
	for (size_t i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	return c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) || c < 0xa0 ? 0 : len;
}

/* As what stands in a JSON string.  Control characters are gone: a guest must not steer the reader's terminal. */
static void put_text(struct line *l, const char *text, size_t room)
{
	const unsigned char *s = (const unsigned char *)text;
	size_t left = strlen(text);

	while (left) {
		size_t len = *s < 0x80 ? 1 : utf8_len(s, left);
		bool is_escaped = *s == '"' || *s == '\\';

		if (l->len + len + is_escaped + 1 > room)
			break;
		if (is_escaped)
			l->text[l->len++] = '\\';
		if (len == 0 || *s < ' ' || *s == 0x7f) {
			l->text[l->len++] = '?';
			len = 1;
		} else {
			memcpy(l->text + l->len, s, len);
			l->len += len;
		}
		s += len;
		left -= len;
	}
}

static void write_json(enum log_level level, const char *area, const char *text)
{
	static const char end[] = "\"}\n";
	struct line l;
	struct timespec ts;
	struct tm tm;
	char when[32];
	int fd = take_file();

	if (fd < 0)
		return;
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
	int n = snprintf(l.text,
			 sizeof(l.text), "{\"time\": \"%s.%06ldZ\", \"level\": \"%s\", \"area\": \"%.32s\", \"pid\": %d, \"text\": \"",
			 when, ts.tv_nsec / 1000, level_names[level], area, getpid());

	l.len = n < 0 ? 0 : (size_t)n;
	put_text(&l, text, sizeof(l.text) - sizeof(end));
	memcpy(l.text + l.len, end, sizeof(end) - 1);
	/* A log that cannot be written has nobody to tell; short writes lose the tail. */
	ssize_t r = write(fd, l.text, l.len + sizeof(end) - 1);
	(void)r;
}

static void write_plain(enum log_level level, const char *area, const char *text)
{
	char line[LOG_LINE_MAX];
	int n = snprintf(line, sizeof(line) - 1, "viv: %s: %s: %s", level_names[level], area, text);
	size_t len = n < 0 ? 0 : MIN((size_t)n, sizeof(line) - 2);

	for (size_t i = 0; i < len; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[len++] = '\n';
	ssize_t r = write(atomic_load(&log_fd), line, len);
	(void)r;
}

/* One line, one write: lines of several threads and processes never mix. */
static void write_line(enum log_level level, const char *area, const char *fmt, va_list ap)
{
	char text[LOG_LINE_MAX];
	int saved_errno = errno;

	if (vsnprintf(text, sizeof(text), fmt, ap) < 0)
		text[0] = 0;
	if (files.fd[0] >= 0)
		write_json(level, area, text);
	else
		write_plain(level, area, text);
	errno = saved_errno;
}

static void write_args(enum log_level level, const char *area, const char *fmt, ...) _printf_(3, 4);
static void write_args(enum log_level level, const char *area, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	write_line(level, area, fmt, ap);
	va_end(ap);
}

/* ---- rates ---- */

static int64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* May one more line be written?  Says first how many might not in the second before. */
static bool is_within(struct log_rate *rate, uint32_t max, enum log_level level, const char *area)
{
	int64_t now = monotonic_ns();
	int64_t start = atomic_load(&rate->window_start_ns);

	if ((start == 0 || now - start >= RATE_WINDOW_NS) &&
	    atomic_compare_exchange_strong(&rate->window_start_ns, &start, now)) {
		uint32_t seen = atomic_exchange(&rate->count, 0);

		if (seen > max)
			write_args(level, area, "%u lines like the next one were dropped", seen - max);
	}
	return atomic_fetch_add(&rate->count, 1) < max;
}

void log_write(enum log_level level, const char *area, const char *fmt, ...)
{
	static struct log_rate all;

	if (!is_wanted(level))
		return;
	if (files.fd[0] >= 0 && level > LOG_ERROR && !is_within(&all, LOG_MAX_PER_SECOND, level, area))
		return;
	va_list ap;
	va_start(ap, fmt);
	write_line(level, area, fmt, ap);
	va_end(ap);
}

void log_guest_rated(struct log_rate *rate, const char *area, const char *fmt, ...)
{
	if (!is_wanted(LOG_DEBUG) || !is_within(rate, RATE_MAX_PER_WINDOW, LOG_DEBUG, area))
		return;
	va_list ap;
	va_start(ap, fmt);
	write_line(LOG_DEBUG, area, fmt, ap);
	va_end(ap);
}
