/* SPDX-License-Identifier: Apache-2.0 */
/* Machines of a lab that its file does not name: copies, machines that a person admits, and such as come from another host. */
#include <errno.h>
#include <string.h>

#include "net/labd_int.h"

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "the lab has no memory");
}

static int need_machine(json_t *request, const char **out, struct error *err)
{
	*out = json_string_value(json_object_get(request, "machine"));
	return *out ? 0 : error_set(err, -EINVAL, "\"machine\" is missing");
}

static void copy_faults(const struct labd *d, struct faults *out)
{
	for (unsigned i = 0; i < d->nports; i++)
		out[i] = labd_card(d, i)->in.faults;
}

json_t *labd_record(const struct labd *d, unsigned machine)
{
	struct faults faults[POLICY_PORTS_MAX];

	copy_faults(d, faults);
	return identity_of(fabric_policy(d->f), machine, faults, d->origins[machine]);
}

static bool is_idle(const struct labd *d, const struct policy *p, unsigned machine)
{
	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone && p->ports[i].machine == machine &&
		    labd_has_machine(labd_card(d, i)))
			return false;
	return true;
}

static void drop(struct labd *d, struct policy *p, unsigned machine)
{
	policy_forget_machine(p, machine);
	labd_capture_forget(d, machine);
	json_decref(d->origins[machine]);
	d->origins[machine] = NULL;
}

/* Copies that are switched off: they bring along all that is needed when they come again. */
static int make_room(struct labd *d, struct error *err)
{
	struct policy *p = policy_copy(fabric_policy(d->f));

	if (!p)
		return no_memory(err);
	for (unsigned i = 0; i < p->nmachines; i++)
		if (p->machines[i].is_copy && is_idle(d, p, i))
			drop(d, p, i);
	return labd_set_machines(d, p, NULL, err);
}

static int add(struct policy *p, struct faults *faults, const char *name,
	       const struct lab_place *at, struct error *err)
{
	if (!at->record)
		return identity_admit(p, name, at->networks, err);
	return at->is_moving ? identity_move(p, faults, name, at->record, at->has_rules, err)
			     : identity_add(p, faults, name, at->record, err);
}

static int try_to_take_in(struct labd *d, const char *name, const struct lab_place *at, struct error *err)
{
	struct policy *p = policy_copy(fabric_policy(d->f));
	struct faults faults[POLICY_PORTS_MAX] = { 0 };

	if (!p)
		return no_memory(err);
	copy_faults(d, faults);
	int machine = add(p, faults, name, at, err);
	if (machine < 0) {
		policy_free(p);
		return machine;
	}
	json_decref(d->origins[machine]);
	d->origins[machine] = json_incref(at->record);
	int r = labd_set_machines(d, p, faults, err);
	if (r < 0 && (p = policy_copy(fabric_policy(d->f)))) {
		struct error other;
		drop(d, p, (unsigned)machine);
		labd_set_machines(d, p, NULL, &other);
	}
	return r;
}

int labd_take_in(struct labd *d, const char *name, const struct lab_place *at, struct error *err)
{
	int r = try_to_take_in(d, name, at, err);
	struct error why;

	if (r == -ENOSPC && make_room(d, &why) == 0)
		r = try_to_take_in(d, name, at, err);
	return r;
}

/* ---- from another host ---- */

/* It has been here, or the lab's file keeps a place for it: that has to be the one that it comes with. */
static int take_place(struct labd *d, unsigned machine, json_t *record, struct error *err)
{
	const struct policy *old = fabric_policy(d->f);

	if (!is_idle(d, old, machine))
		return error_set(err, -EBUSY, "machine \"%s\" is connected to lab \"%s\" already",
				 old->machines[machine].name, old->name);
	int r = identity_is_same(old, machine, record, err);
	if (r < 0)
		return r;
	struct policy *p = policy_copy(old);
	if (!p)
		return no_memory(err);
	r = identity_restrict(p, machine, record, err);
	if (r < 0) {
		policy_free(p);
		return r;
	}
	return labd_set_machines(d, p, NULL, err);
}

/* Addresses that its guest has made and announced: nobody asks for them once more. */
static void bind_announced(struct labd *d, unsigned machine, json_t *record)
{
	const struct policy *p = fabric_policy(d->f);
	struct net_addr a;
	json_t *card, *text;
	size_t i, k;

	json_array_foreach(json_object_get(record, "cards"), i, card)
	{
		int port = policy_find_port(p, (int)machine,
					    policy_find_network(p, json_string_value(json_object_get(
									   card, "network"))));
		json_array_foreach(json_object_get(card, "announced"), k,
				   text) if (port >= 0 && net_addr_parse(json_string_value(text), &a) == 0)
			fabric_bind(d->f, (unsigned)port, &a);
	}
}

static int move_in(struct labd *d, const char *name, json_t *request, struct error *err)
{
	struct lab_place at = { .record = json_object_get(request, "identity"),
				.is_moving = true,
				.has_rules = json_is_true(json_object_get(request, "rules")) };
	int r = identity_check(at.record, err), machine = policy_find_machine(fabric_policy(d->f), name);

	if (r == 0)
		r = machine < 0 ? labd_take_in(d, name, &at, err)
				: take_place(d, (unsigned)machine, at.record, err);
	if (r < 0)
		return r;
	bind_announced(d, (unsigned)policy_find_machine(fabric_policy(d->f), name), at.record);
	return 0;
}

/* ---- commands ---- */

int labd_admit(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
	       int *pass_fd, struct error *err)
{
	const struct lab_place by_name = { .networks = json_object_get(request, "networks") };
	const char *name;
	int r = need_machine(request, &name, err);

	if (r == 0)
		r = json_object_get(request, "identity") ? move_in(d, name, request, err)
							 : labd_take_in(d, name, &by_name, err);
	if (r < 0)
		return r;
	int machine = policy_find_machine(fabric_policy(d->f), name);
	json_object_set_new(reply, "identity", labd_record(d, (unsigned)machine));
	return 0;
}

int labd_forget_machine(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
			int *pass_fd, struct error *err)
{
	const char *name;
	int r = need_machine(request, &name, err);
	struct policy *p = r == 0 ? policy_copy(fabric_policy(d->f)) : NULL;

	if (!p)
		return r < 0 ? r : no_memory(err);
	int machine = policy_find_machine(p, name);
	if (machine < 0)
		r = error_set(err, -ENOENT, "there is no machine \"%s\" in lab \"%s\"", name, p->name);
	else if (!p->machines[machine].is_copy)
		r = error_set(err, -EINVAL, "machine \"%s\" is in the lab's file", name);
	else if (!is_idle(d, p, (unsigned)machine))
		r = error_set(err, -EBUSY, "machine \"%s\" is connected", name);
	if (r < 0) {
		policy_free(p);
		return r;
	}
	drop(d, p, (unsigned)machine);
	return labd_set_machines(d, p, NULL, err);
}

/* The record as it is now, and what its guest has announced. */
int labd_tell_identity(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		       int *pass_fd, struct error *err)
{
	const struct policy *p = fabric_policy(d->f);
	const char *name;
	int r = need_machine(request, &name, err);
	int machine = r < 0 ? r : policy_find_machine(p, name);

	if (r < 0)
		return r;
	if (machine < 0)
		return error_set(err, -ENOENT, "there is no machine \"%s\" in lab \"%s\"", name, p->name);
	json_t *record = labd_record(d, (unsigned)machine);
	json_t *cards = json_object_get(record, "cards");
	for (unsigned i = 0, at = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone && p->ports[i].machine == (unsigned)machine)
			json_object_set_new(json_array_get(cards, at++), "announced",
					    labd_announced(d, i));
	json_object_set_new(reply, "identity", record);
	return 0;
}
