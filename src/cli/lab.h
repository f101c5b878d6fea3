/* SPDX-License-Identifier: Apache-2.0 */
/* Labs on the command line: `viv plan`, `viv up`, `viv down`, `viv quarantine` and the verbs of `viv net`. */
#ifndef VIV_CLI_LAB_H
#define VIV_CLI_LAB_H

#include <jansson.h>

#include "net/labfile.h"

/**
 * lab_load() - read and check a lab file; this host's networks are no internet to it.
 * Returns 0 or -errno with @err set; lab_free() after it.
 */
int lab_load(struct lab **out, const char *path, struct error *err);

/** lab_name_of() - the lab that @what means: a file, or the name of a lab that is up.  malloc'd; NULL with @err set. */
char *lab_name_of(const char *what, struct error *err);

/**
 * lab_request() - ask the process of lab @name.
 * @request: taken
 * @reply: to be json_decref'ed
 */
int lab_request(const char *name, json_t *request, json_t **reply, struct error *err);

/** lab_find() - the one lab that is up, or the one in which machine @machine is (NULL: any). malloc'd; NULL with @err set. */
char *lab_find(const char *machine, struct error *err);

/**
 * lab_capture() - have lab @lab write packets of @what to @output.
 * @options: side, stay, rotate, keep, filter as net/labd.h has them; taken
 * @control_fd: receives the connection; closing it ends the capture, unless it stays
 */
int lab_capture(const char *lab, const char *what, const char *output, json_t *options,
		int *control_fd, struct error *err);

/** cli_capture() - `viv net capture`. */
int cli_capture(int argc, char **argv);

#endif
