/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log of a machine: vms/NAME/vm.log and vm.log.1, written in turns (base/log.h) by its process and that of its
 * network, through restarts.  What others print on these processes' standard error stands in vm.log as it came.
 */
#ifndef VIV_CTL_VMLOG_H
#define VIV_CTL_VMLOG_H

#include <jansson.h>

#include "base/error.h"
#include "base/log.h"

/**
 * vmlog_open() - from here on this process logs to the files of @machine; standard output and error go there, too.
 * The files stay open for good.  0 or -errno.
 */
int vmlog_open(const char *machine, struct error *err);

/** vmlog_take() - the same with files that another process has opened: @fds stay open for good. */
void vmlog_take(const int fds[2]);
/** vmlog_set_level() - by its name; NULL: there is none.  0 or -EINVAL with @err set. */
int vmlog_set_level(const char *name, struct error *err);

/* ---- reading ---- */

struct vmlog_line {
	int64_t time_us; /* since 1970; of a line that is not ours: as of the line before */
	enum log_level level;
	char *area, *text; /* of a line that is not ours: "stderr", the line */
};

/** vmlog_parse() - one line without its newline; anything may stand in it.  0 or -ENOMEM; vmlog_line_free(). */
int vmlog_parse(const char *line, size_t len, int64_t last_us, struct vmlog_line *out);
void vmlog_line_free(struct vmlog_line *l);

struct vmlog_reader {
	char *path[2];
	int fd[2];	 /* -1: it is not there yet */
	uint64_t off[2]; /* read up to here */
	unsigned current;
	struct {
		char data[16384];
		size_t len;
	} part; /* of a line, not complete yet */
	int64_t last_us;
};

typedef int (*vmlog_fn)(void *arg, const struct vmlog_line *line); /* not 0: ends the reading */

/** vmlog_reader_init() - 0, -ENOENT with @err: there is no such machine, other -errno. */
int vmlog_reader_init(struct vmlog_reader *r, const char *machine, struct error *err);
void vmlog_reader_free(struct vmlog_reader *r);
/** vmlog_read() - all whole lines that came since the last call, the older file's first.  What @fn returned, 0, or -errno. */
int vmlog_read(struct vmlog_reader *r, vmlog_fn fn, void *arg, struct error *err);

#endif
