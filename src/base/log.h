/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines: one place a process, levels changed live, lines a guest can trigger rate-limited.
 * Thread-safe.  Never called with guest FPU state live (dbt calls it only outside of guest code).
 */
#ifndef VIV_BASE_LOG_H
#define VIV_BASE_LOG_H

#include "base/util.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/** log_set_level() - lines above @level are dropped.  Any thread. */
void log_set_level(enum log_level level);
enum log_level log_level(void);

/** log_set_fd() - where lines go (default: stderr).  Borrows @fd. */
void log_set_fd(int fd);

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
