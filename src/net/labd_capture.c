/* SPDX-License-Identifier: Apache-2.0 */
/* Captures of a lab: which packets go into which. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "net/labd_int.h"

struct lab_capture {
	struct capture *c;
	int network, machine; /* -1: any */
	bool wants_before, wants_after;
	int client;			       /* index: it ends with this one; -1: with the lab */
	unsigned interfaces[POLICY_PORTS_MAX]; /* of cards; those of uplinks come first, as networks */
};

static uint64_t wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void describe(const struct labd *d, const struct fabric_verdict *v, char *buf, size_t cap)
{
	const struct policy *p = fabric_policy(d->f);
	bool is_fine = v->reason == FABRIC_PASSED || v->reason == FABRIC_GATEWAY;
	size_t len = (size_t)snprintf(buf, cap, "%s%s",
				      is_fine ? "" : "denied: ", fabric_reason_names[v->reason]);

	if (v->rule < 0 || len >= cap)
		return;
	len += (size_t)snprintf(buf + len, cap - len, "; rule %u: ", p->rules[v->rule].id);
	if (len < cap)
		policy_format_rule(p, &p->rules[v->rule], buf + len, cap - len);
}

static void offer(struct labd *d, bool is_after, int port, unsigned network, const uint8_t *frame,
		  size_t len)
{
	const struct policy *p = fabric_policy(d->f);
	char comment[512] = "of the gateway";
	uint64_t now_ns = wall_ns();

	if (d->has_verdict)
		describe(d, &d->verdict, comment, sizeof(comment));
	for (unsigned i = 0; i < LABD_CAPTURES; i++) {
		struct lab_capture *k = d->captures[i];
		if (!k || !(is_after ? k->wants_after : k->wants_before) ||
		    (k->network >= 0 && (unsigned)k->network != network) ||
		    (k->machine >= 0 &&
		     (port == POLICY_OUTSIDE || (unsigned)k->machine != p->ports[port].machine)))
			continue;
		/* From a machine is in; an uplink is seen from the other side. */
		bool is_in = (port == POLICY_OUTSIDE) ? is_after : !is_after;
		capture_packet(k->c, port == POLICY_OUTSIDE ? network : k->interfaces[port],
			       is_in ? CAPTURE_IN : CAPTURE_OUT, now_ns, frame, len, comment);
	}
}

void labd_captured(struct labd *d, bool is_after, int port, unsigned network, const uint8_t *frame,
		   size_t len)
{
	if (d->ncaptures)
		offer(d, is_after, port, network, frame, len);
}

static int read_filter(json_t *filter, struct capture_insn **out, unsigned *n, struct error *err)
{
	size_t count = json_array_size(filter);

	if (!filter)
		return 0;
	if (!count || count > CAPTURE_INSNS_MAX)
		return error_set(err, -EINVAL, "a filter has 1 to %d instructions", CAPTURE_INSNS_MAX);
	*out = calloc(count, sizeof(**out));
	if (!*out)
		return error_set(err, -ENOMEM, "the lab has no memory");
	for (size_t i = 0; i < count; i++) {
		json_int_t code, jt, jf, k;
		if (json_unpack(json_array_get(filter, i), "[I, I, I, I]", &code, &jt, &jf, &k) < 0)
			return error_set(err, -EINVAL, "an instruction of a filter is four numbers");
		(*out)[i] =
			(struct capture_insn){ (uint16_t)code, (uint8_t)jt, (uint8_t)jf, (uint32_t)k };
	}
	*n = (unsigned)count;
	return 0;
}

/* "*", a network, a machine or NETWORK.MACHINE. */
static int read_what(const struct policy *p, const char *what, struct lab_capture *k, struct error *err)
{
	char copy[2 * POLICY_NAME_MAX + 2];
	const char *dot = strchr(what, '.');

	k->network = k->machine = -1;
	if (strcmp(what, "*") == 0)
		return 0;
	snprintf(copy, sizeof(copy), "%.*s", dot ? (int)(dot - what) : (int)sizeof(copy) - 1, what);
	k->network = policy_find_network(p, copy);
	if (dot)
		k->machine = policy_find_machine(p, dot + 1);
	else if (k->network < 0)
		k->machine = policy_find_machine(p, copy);
	bool is_found = dot ? policy_find_port(p, k->machine, k->network) >= 0
			    : k->network >= 0 || k->machine >= 0;
	return is_found ? 0
			: error_set(err, -ENOENT, "lab \"%s\" has no network, machine or card \"%s\"",
				    p->name, what);
}

static int open_capture(struct labd *d, json_t *request, int dir_fd, struct lab_capture *k,
			struct error *err)
{
	const struct policy *p = fabric_policy(d->f);
	char labels[POLICY_PORTS_MAX + POLICY_NETWORKS_MAX][2 * POLICY_NAME_MAX + 2];
	const char *interfaces[ARRAY_SIZE(labels)];
	struct capture_config cfg = { .dir_fd = dir_fd, .interfaces = interfaces };
	_cleanup_free_ struct capture_insn *filter = NULL;

	cfg.name = json_string_value(json_object_get(request, "name")) ?: "";
	cfg.rotate_bytes = (uint64_t)json_integer_value(json_object_get(request, "rotate"));
	cfg.keep = (unsigned)json_integer_value(json_object_get(request, "keep"));
	int r = read_filter(json_object_get(request, "filter"), &filter, &cfg.ninsns, err);
	if (r < 0) {
		close(dir_fd);
		return r;
	}
	cfg.filter = filter;
	for (unsigned i = 0; i < p->nnetworks; i++) {
		snprintf(labels[i], sizeof(labels[0]), "%s.uplink", p->networks[i].name);
		interfaces[cfg.ninterfaces++] = labels[i];
	}
	for (unsigned i = 0; i < p->nports; i++) {
		char *label = labels[cfg.ninterfaces];
		k->interfaces[i] = cfg.ninterfaces;
		interfaces[cfg.ninterfaces++] = policy_port_label(p, i, label, sizeof(labels[0]));
	}
	return capture_open(&k->c, &cfg, err);
}

int labd_capture(struct labd *d, json_t *request, int client, int dir_fd, struct error *err)
{
	const char *what = json_string_value(json_object_get(request, "what"));
	struct lab_capture *k = calloc(1, sizeof(*k)), **slot = NULL;
	int r = 0;

	for (unsigned i = 0; i < LABD_CAPTURES && !slot; i++)
		if (!d->captures[i])
			slot = &d->captures[i];
	if (!k)
		r = error_set(err, -ENOMEM, "the lab has no memory");
	else if (!slot)
		r = error_set(err, -EBUSY, "a lab makes at most %d captures at a time", LABD_CAPTURES);
	else if (!what || dir_fd < 0)
		r = error_set(err, -EINVAL, "a capture needs \"what\" and a folder");
	else
		r = read_what(fabric_policy(d->f), what, k, err);
	if (r < 0) {
		if (dir_fd >= 0)
			close(dir_fd);
		free(k);
		return r;
	}
	const char *side = json_string_value(json_object_get(request, "side")) ?: "both";
	k->wants_before = strcmp(side, "after") != 0;
	k->wants_after = strcmp(side, "before") != 0;
	k->client = json_is_true(json_object_get(request, "stay")) ? -1 : client;
	r = open_capture(d, request, dir_fd, k, err);
	if (r < 0) {
		free(k);
		return r;
	}
	*slot = k;
	d->ncaptures++;
	return 0;
}

void labd_capture_card(struct labd *d, unsigned port)
{
	char label[2 * POLICY_NAME_MAX + 2];
	const struct policy *p = fabric_policy(d->f);

	policy_port_label(p, port, label, sizeof(label));
	for (unsigned i = 0; i < LABD_CAPTURES; i++) {
		struct lab_capture *k = d->captures[i];
		int r = k ? capture_add_interface(k->c, label) : 0;
		/* One that has no place any more is called as its network's uplink. */
		if (k)
			k->interfaces[port] = r < 0 ? p->ports[port].network : (unsigned)r;
	}
}

void labd_capture_forget(struct labd *d, unsigned machine)
{
	for (unsigned i = 0; i < LABD_CAPTURES; i++)
		if (d->captures[i] && d->captures[i]->machine == (int)machine)
			d->captures[i]->machine = POLICY_MACHINES_MAX; /* nobody */
}

static void end_capture(struct labd *d, unsigned i)
{
	capture_close(d->captures[i]->c);
	free(d->captures[i]);
	d->captures[i] = NULL;
	d->ncaptures--;
}

int labd_end_captures(struct labd *d, int client, json_t *reply, struct error *err)
{
	struct capture_stats sum = { 0 };
	int failure = 0;

	for (unsigned i = 0; i < LABD_CAPTURES; i++) {
		if (!d->captures[i] || d->captures[i]->client != client)
			continue;
		int r = capture_flush(d->captures[i]->c);
		failure = r < 0 ? r : failure;
		struct capture_stats s = capture_stats(d->captures[i]->c);
		sum.packets += s.packets;
		sum.bytes += s.bytes;
		sum.files += s.files;
		end_capture(d, i);
	}
	if (reply) {
		json_object_set_new(reply, "packets", json_integer((json_int_t)sum.packets));
		json_object_set_new(reply, "bytes", json_integer((json_int_t)sum.bytes));
		json_object_set_new(reply, "files", json_integer(sum.files));
	}
	return failure < 0
		       ? error_set(err, failure, "the capture can't be written: %s", strerror(-failure))
		       : 0;
}

void labd_flush_captures(struct labd *d)
{
	for (unsigned i = 0; d->ncaptures && i < LABD_CAPTURES; i++)
		if (d->captures[i] && capture_flush(d->captures[i]->c) < 0)
			log_debug("net", "a capture can't be written any more");
}
