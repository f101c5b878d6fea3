/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines: one place a process, levels changed live, lines a guest can trigger rate-limited.
 * Thread-safe.  Never called with guest FPU state live (dbt calls it only outside of guest code).
 *
 * A process writes text to a descriptor, "viv: warning: net: ...", or, for a machine, one JSON object a line to two
 * files in turns (log_set_files):
 *
 *   {"time": "2026-11-27T14:30:20.123456Z", "level": "warning", "area": "net", "pid": 4711, "text": "..."}
 *
 * The file at hand is left when it is full; the other one, if full as well, is emptied then.  So there are always
 * the last lines, of one file's size at least and of two at most, and nothing is ever renamed: a process that may
 * open no files any more goes on logging, and so do several processes with the same two files.
 */
#ifndef VIV_BASE_LOG_H
#define VIV_BASE_LOG_H

#include "base/util.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE, LOG_NLEVELS };

#define LOG_LINE_MAX	   1024	     /* bytes, with the newline: what is longer is cut off */
#define LOG_FILE_MAX	   (1 * MIB) /* of each of the two, but for the line that reaches it */
#define LOG_MAX_PER_SECOND 200	     /* of a process; errors come besides */

/** log_set_level() - lines above @level are dropped.  Any thread. */
void log_set_level(enum log_level level);
enum log_level log_level(void);

const char *log_level_name(enum log_level level); /* "warning" */
/** log_level_parse() - 0 or -EINVAL. */
int log_level_parse(const char *name, enum log_level *out);

/** log_set_fd() - text lines (the default, to stderr).  Borrows @fd. */
void log_set_fd(int fd);
/**
 * log_set_files() - JSON lines to the two files @fds, which were opened O_APPEND and are borrowed.
 * @max_bytes: when a file counts as full
 * Before other threads exist.
 */
void log_set_files(const int fds[2], uint64_t max_bytes);
/** log_files() - the two, to pass them on; false: there are none. */
bool log_files(int fds[2]);

void log_write(enum log_level level, const char *area, const char *fmt, ...) _printf_(3, 4);

#define log_error(area, ...) log_write(LOG_ERROR, area, __VA_ARGS__)
#define log_warn(area, ...)  log_write(LOG_WARN, area, __VA_ARGS__)
#define log_info(area, ...)  log_write(LOG_INFO, area, __VA_ARGS__)
#define log_debug(area, ...) log_write(LOG_DEBUG, area, __VA_ARGS__)

/*
 * log_guest() - something the guest did wrong (it got what hardware gives it).  At LOG_DEBUG; each
 * call site prints at most 10 lines a second, then says how many were dropped.
 */
struct log_rate {
	_Atomic int64_t window_start_ns;
	_Atomic uint32_t count;
};
void log_guest_rated(struct log_rate *rate, const char *area, const char *fmt, ...) _printf_(3, 4);
#define log_guest(area, ...)                                                                       \
	do {                                                                                       \
		static struct log_rate log_rate_;                                                  \
		log_guest_rated(&log_rate_, area, __VA_ARGS__);                                    \
	} while (0)

#endif
