/* SPDX-License-Identifier: Apache-2.0 */
/*
 * This terminal as a machine's console: raw mode, and back again after every kind of end.
 *
 * Who restores it: terminal_restore() in the normal case; handlers of deadly signals; and, should this
 * process be killed outright, a guard process that does nothing but wait for its end.
 */
#ifndef VIV_CLI_TERMINAL_H
#define VIV_CLI_TERMINAL_H

#include "base/error.h"

/** terminal_raw() - raw mode on stdin, if it is a terminal (else nothing happens). */
int terminal_raw(struct error *err);
/** terminal_restore() - may be called always and again; async-signal-safe. */
void terminal_restore(void);
bool terminal_is_raw(void);

enum bridge_end {
	BRIDGE_ESCAPE, /* the person typed Ctrl-] */
	BRIDGE_CLOSED, /* the other side closed the console */
	BRIDGE_SIGNAL, /* SIGTERM, SIGINT, SIGHUP or SIGQUIT came: *sig */
};

struct bridge {
	int console_fd;		    /* stream socket of the console */
	int also_fd;		    /* readable: @on_also is called; -1: none */
	bool (*on_also)(void *arg); /* false: do not watch it any more */
	void (*on_resize)(void *arg, unsigned cols, unsigned rows); /* at the start and on changes */
	void *arg;
};

/** terminal_bridge() - pass bytes both ways until the end.  Returns an enum bridge_end or -errno. */
int terminal_bridge(const struct bridge *b, int *sig, struct error *err);

#define TERMINAL_ESCAPE 0x1d /* Ctrl-] */

#endif
