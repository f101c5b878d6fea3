/* SPDX-License-Identifier: Apache-2.0 */
/* Places in labs for machines that no lab's file names: by the lab's word about another one, or by a person's. */
#include <errno.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/lab.h"
#include "ctl/paths.h"
#include "net/identity.h"

/* The lab of "lab:LAB:NETWORK,NETWORK"; malloc'd. */
static char *lab_of(const char *net, const char **networks, struct error *err)
{
	const char *name = net + strlen("lab:"), *colon = strchr(name, ':');
	char *lab = colon ? strndup(name, (size_t)(colon - name)) : NULL;

	if (!lab)
		error_set(err, colon ? -ENOMEM : -EINVAL,
			  "a network of a lab is written lab:LAB:NETWORK,NETWORK");
	*networks = colon ? colon + 1 : NULL;
	return lab;
}

/* The record in a lab's answer. */
static int ask(const char *lab, json_t *request, json_t **record, struct error *err)
{
	json_t *reply;
	int r = lab_request(lab, request, &reply, err);

	if (r < 0)
		return r;
	json_t *identity = json_object_get(reply, "identity");

	r = identity_check(identity, err);
	if (r == 0)
		*record = json_incref(identity);
	json_decref(reply);
	return r;
}

int lab_place_of(const char *net, const char *machine, json_t *origin, json_t **record, struct error *err)
{
	const char *networks;
	_cleanup_free_ char *lab = lab_of(net, &networks, err);

	if (!lab)
		return -EINVAL;
	int r = ask(lab, json_pack("{s:s, s:s}", "cmd", "identity", "machine", machine), record, err);

	/* A copy that is off may have lost its place: it is still a copy of what it was one of. */
	if (r < 0 && origin && strcasecmp(identity_lab(origin), lab) == 0) {
		*record = json_incref(origin);
		return 0;
	}
	return r;
}

/* The names in "NETWORK,NETWORK" as an array; NULL with @err set. */
static json_t *list_of(const char *networks, struct error *err)
{
	_cleanup_free_ char *copy = strdup(networks);
	json_t *list = copy ? json_array() : NULL;
	char *save = NULL;

	for (char *n = list ? strtok_r(copy, ",", &save) : NULL; n; n = strtok_r(NULL, ",", &save))
		if (json_array_append_new(list, json_string(n)) < 0) {
			json_decref(list);
			list = NULL;
			break;
		}
	if (!list)
		error_set(err, -EINVAL, "\"%.60s\" are no names of networks", networks);
	return list;
}

int lab_admit(const char *net, const char *machine, json_t **record, struct error *err)
{
	const char *networks;
	_cleanup_free_ char *lab = lab_of(net, &networks, err);
	json_t *list = lab ? list_of(networks, err) : NULL;

	if (!list)
		return -EINVAL;
	return ask(lab,
		   json_pack("{s:s, s:s, s:o}", "cmd", "admit", "machine", machine, "networks", list),
		   record, err);
}

/* ---- from another host ---- */

static int move_into_lab(struct vmconfig *c, json_t *told, bool has_rules, json_t **record,
			 struct error *err)
{
	const char *networks;
	_cleanup_free_ char *lab = lab_of(c->net, &networks, err);
	struct error why;

	if (!lab)
		return -EINVAL;
	int r = paths_check_name("a lab", lab, err);
	if (r < 0)
		return r;
	r = told ? ask(lab,
		       json_pack("{s:s, s:s, s:O, s:b}", "cmd", "admit", "machine", c->name,
				 "identity", told, "rules", has_rules),
		       record, &why)
		 : lab_admit(c->net, c->name, record, &why);
	return r < 0 ? error_set(err, r, "%s; viv migrate --network names another network for it there",
				 why.text)
		     : 0;
}

int lab_move_in(struct vmconfig *c, json_t *told, bool has_rules, struct error *err)
{
	json_t *record = NULL;
	int r = c->net && strncmp(c->net, "lab:", 4) == 0
			? move_into_lab(c, told, has_rules, &record, err)
			: 0;

	if (r == 0)
		r = vmconfig_set_origin(c, record, err);
	json_decref(record);
	return r;
}

void lab_move_out(const struct vmconfig *c)
{
	json_t *reply = NULL;
	struct error err;

	/* One that the lab's file names keeps its place. */
	if (c->origin && lab_request(identity_lab(c->origin),
				     json_pack("{s:s, s:s}", "cmd", "forget", "machine", c->name),
				     &reply, &err) == 0)
		json_decref(reply);
}
