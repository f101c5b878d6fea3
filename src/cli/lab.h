/* SPDX-License-Identifier: Apache-2.0 */
/* Labs on the command line: `viv plan`, `viv up`, `viv down`, `viv quarantine` and the verbs of `viv net`. */
#ifndef VIV_CLI_LAB_H
#define VIV_CLI_LAB_H

#include <jansson.h>

#include "ctl/vmconfig.h"
#include "net/labfile.h"

/**
 * lab_load() - read and check a lab file; this host's networks are no internet to it.
 * Returns 0 or -errno with @err set; lab_free() after it.
 */
int lab_load(struct lab **out, const char *path, struct error *err);
/** lab_load_text() - the same, and the text that was read, malloc'd: what is checked is what is used. */
int lab_load_text(struct lab **out, const char *path, char **text, size_t *len, struct error *err);

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

/* ---- machines (lab_machines.c) ---- */
/** lab_check_machines() - nothing starts if a machine of one of the names is there and is not the lab's own.  0 or -EEXIST. */
int lab_check_machines(const struct lab *l, struct error *err);
/** lab_start_machines() - all, in order; @path: of the lab's file.  Once one failed no more start, and those under way are awaited. */
int lab_start_machines(const struct lab *l, const char *path, struct error *err);
/** lab_end_machines() - all that viv up of @lab made, and their copies, as far as it goes; @err: the first trouble. */
int lab_end_machines(const char *lab, struct error *err);
/** lab_end_machine() - the same with one; it is no matter if it is none of the lab's. */
int lab_end_machine(const char *name, const char *lab, struct error *err);
/** lab_remove_half_made() - folders of the lab's machines without a configuration: of starts that were killed. */
int lab_remove_half_made(const struct lab *l, struct error *err);

/* ---- places (lab_place.c) ---- */
/**
 * lab_place_of() - by what a copy of machine @machine, whose network is @net, is taken in by its lab: what the lab says of it now.
 * @origin: of the machine, from its own configuration: what it is a copy of itself, if the lab does not know it; NULL: of none
 * @record: receives the record (net/identity.h), to be json_decref'ed
 */
int lab_place_of(const char *net, const char *machine, json_t *origin, json_t **record,
		 struct error *err);
/** lab_admit() - a place for machine @machine in the networks @net, "lab:LAB:NETWORK,NETWORK", with no rights but what all have there. */
int lab_admit(const char *net, const char *machine, json_t **record, struct error *err);

/**
 * lab_move_in() - a machine that another host offers, with configuration @c: if its network is one of a lab, the lab of that name here gives it the place that it
 * has in @record (identity_move()), or one of its own if there is none.  What the offer says of other places is dropped.
 * @record: borrowed, hostile; NULL: none, its network was chosen for it
 * @has_rules: what allows it something comes along
 * Returns 0, also without a lab, or -errno with @err set.  lab_move_out() undoes it.
 */
int lab_move_in(struct vmconfig *c, json_t *record, bool has_rules, struct error *err);
void lab_move_out(const struct vmconfig *c);

/** cli_capture() - `viv net capture`. */
int cli_capture(int argc, char **argv);

#endif
