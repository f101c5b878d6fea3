/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "base/log.h"

#define RATE_MAX_PER_WINDOW 10
#define RATE_WINDOW_NS	    1000000000

static _Atomic int log_threshold = LOG_WARN;
static _Atomic int log_fd = STDERR_FILENO;

static const char *const level_names[] = { "error", "warning", "info", "debug", "trace" };

void log_set_level(enum log_level level)
{
	atomic_store(&log_threshold, level);
}

enum log_level log_level(void)
{
	return (enum log_level)atomic_load(&log_threshold);
}

void log_set_fd(int fd)
{
	atomic_store(&log_fd, fd);
}

static bool is_wanted(enum log_level level)
{
	return level <= (enum log_level)atomic_load_explicit(&log_threshold, memory_order_relaxed);
}

/* One line, one write: lines of several threads and processes never mix. */
static void write_line(enum log_level level, const char *area, const char *fmt, va_list ap)
{
	char line[1024];
	int saved_errno = errno;
	int n = snprintf(line, sizeof(line), "viv: %s: %s: ", level_names[level], area);
	size_t len = n < 0 ? 0 : MIN((size_t)n, sizeof(line) - 1);

	n = vsnprintf(line + len, sizeof(line) - len, fmt, ap);
	if (n > 0)
		len = MIN(len + (size_t)n, sizeof(line) - 2);
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?'; /* a guest must not steer the reader's terminal */
	line[len++] = '\n';
	/* A log that cannot be written has nobody to tell; short writes lose the tail. */
	ssize_t r = write(atomic_load(&log_fd), line, len);
	(void)r;
	errno = saved_errno;
}

void log_write(enum log_level level, const char *area, const char *fmt, ...)
{
	if (!is_wanted(level))
		return;
	va_list ap;
	va_start(ap, fmt);
	write_line(level, area, fmt, ap);
	va_end(ap);
}

static int64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

void log_guest_rated(struct log_rate *rate, const char *area, const char *fmt, ...)
{
	if (!is_wanted(LOG_DEBUG))
		return;
	int64_t now = monotonic_ns();
	int64_t start = atomic_load(&rate->window_start_ns);

	if ((start == 0 || now - start >= RATE_WINDOW_NS) &&
	    atomic_compare_exchange_strong(&rate->window_start_ns, &start, now)) {
		uint32_t seen = atomic_exchange(&rate->count, 0);
		if (seen > RATE_MAX_PER_WINDOW)
			log_write(LOG_DEBUG, area, "%u lines like the next one were dropped",
				  seen - RATE_MAX_PER_WINDOW);
	}
	if (atomic_fetch_add(&rate->count, 1) >= RATE_MAX_PER_WINDOW)
		return;
	va_list ap;
	va_start(ap, fmt);
	write_line(LOG_DEBUG, area, fmt, ap);
	va_end(ap);
}
