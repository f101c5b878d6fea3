/* SPDX-License-Identifier: Apache-2.0 */
/* What a lab can be told. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/labd_int.h"

#define LINE_MAX_BYTES (4 * MIB) /* of an answer: a record has all rules of a machine */

static const char *text_of(json_t *request, const char *key)
{
	return json_string_value(json_object_get(request, key));
}

static int need_text(json_t *request, const char *key, const char **out, struct error *err)
{
	*out = text_of(request, key);
	return *out ? 0 : error_set(err, -EINVAL, "\"%s\" is missing", key);
}

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "the lab has no memory");
}

/* "dmz.web" */
static int find_card(const struct policy *p, const char *label, struct error *err)
{
	char text[2 * POLICY_NAME_MAX + 2];

	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone &&
		    strcmp(policy_port_label(p, i, text, sizeof(text)), label) == 0)
			return (int)i;
	return error_set(err, -ENOENT,
			 "there is no card \"%s\" in lab \"%s\"; cards are called NETWORK.MACHINE",
			 label, p->name);
}

/* ---- attach ---- */

static int attach(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		  int *pass_fd, struct error *err)
{
	json_t *record = json_object_get(request, "identity");
	const char *machine, *network = NULL;
	int fds[2];
	char mac[NET_MAC_TEXT];

	int r = need_text(request, "machine", &machine, err);
	if (r == 0)
		r = need_text(request, "network", &network, err);
	if (r == 0 && record && policy_find_machine(fabric_policy(d->f), machine) < 0)
		r = labd_take_in(d, machine, &(struct lab_place){ .record = record }, err);
	if (r < 0)
		return r;
	const struct policy *p = fabric_policy(d->f);
	int port = policy_find_port(p, policy_find_machine(p, machine), policy_find_network(p, network));
	if (port < 0)
		return error_set(err, -ENOENT, "lab \"%s\" has no machine \"%s\" in a network \"%s\"",
				 p->name, machine, network);
	if (p->ports[port].card != (unsigned)port)
		return error_set(
			err, -EINVAL, "network \"%s\" is a part of a trunk of machine \"%s\", which begins with network \"%s\"",
			network, machine, p->networks[p->ports[p->ports[port].card].network].name);
	if (labd_has_machine(&d->ports[port]))
		return error_set(err, -EBUSY, "machine \"%s\" is connected to network \"%s\" already",
				 machine, network);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return error_set(err, -errno, "the lab can't make a socket: %s", strerror(errno));
	net_link_open(&d->ports[port].link, fds[0], false);
	*pass_fd = fds[1];
	json_object_set_new(reply, "mac", json_string(net_mac_format(p->ports[port].mac, mac)));
	json_object_set_new(reply, "identity", labd_record(d, p->ports[port].machine));
	return 0;
}

/* ---- the policy ---- */

static int set_policy(struct labd *d, struct policy *p, struct error *err)
{
	return fabric_set_policy(d->f, p) < 0 ? no_memory(err) : 0;
}

/* Names of a rule, [names] of at most POLICY_NAMES_MAX. */
static int read_names(json_t *names, struct policy_rule *r, struct error *err)
{
	size_t n = json_array_size(names);

	if (names && !n) /* nothing would stand for everything */
		return error_set(err, -EINVAL, "the names of a rule are an array of at least one");
	if (n > POLICY_NAMES_MAX)
		return error_set(err, -EINVAL, "a rule has at most %d names", POLICY_NAMES_MAX);
	r->names = calloc(n + 1, sizeof(*r->names));
	if (!r->names)
		return no_memory(err);
	for (size_t i = 0; i < n; i++) {
		const char *name = json_string_value(json_array_get(names, i));
		int ret = name ? policy_check_domain(name, err)
			       : error_set(err, -EINVAL, "a name is a text");
		if (ret < 0)
			return ret;
		snprintf(r->names[r->nnames++], sizeof(r->names[0]), "%s", name);
	}
	return 0;
}

/* A rule in front of all others: what was said last holds.  The opposite, said before, goes. */
static int add_rule(struct labd *d, json_t *request, json_t *reply, bool is_allow, struct error *err)
{
	struct policy *p = policy_copy(fabric_policy(d->f));
	struct policy_rule r = { 0 };
	const char *ends;
	int ret = p ? need_text(request, "rule", &ends, err) : no_memory(err);

	if (ret == 0)
		ret = policy_parse_rule(p, ends, text_of(request, "what"), &r, err);
	r.is_allow = is_allow;
	if (ret == 0)
		ret = read_names(json_object_get(request, "names"), &r, err);
	if (ret == 0) {
		policy_remove_same(p, &r);
		ret = policy_add_rule(p, 0, &r, err);
	}
	free(r.names);
	if (ret < 0) {
		policy_free(p);
		return ret;
	}
	json_object_set_new(reply, "id", json_integer(p->rules[0].id));
	return set_policy(d, p, err);
}

static int allow(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		 int *pass_fd, struct error *err)
{
	return add_rule(d, request, reply, true, err);
}

static int deny(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		int *pass_fd, struct error *err)
{
	return add_rule(d, request, reply, false, err);
}

static int remove_rule(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		       int *pass_fd, struct error *err)
{
	json_int_t id = json_integer_value(json_object_get(request, "id"));
	struct policy *p = policy_copy(fabric_policy(d->f));

	if (!p)
		return no_memory(err);
	if (id < 0 || id > UINT32_MAX || policy_remove_rule(p, (uint32_t)id) < 0) {
		policy_free(p);
		return error_set(err, -ENOENT, "there is no rule %lld", (long long)id);
	}
	return set_policy(d, p, err);
}

static int quarantine(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		      int *pass_fd, struct error *err)
{
	json_t *on = json_object_get(request, "on");
	const char *name;
	int r = need_text(request, "machine", &name, err);

	if (r < 0)
		return r;
	if (!json_is_boolean(on))
		return error_set(err, -EINVAL, "\"on\" is missing");
	struct policy *p = policy_copy(fabric_policy(d->f));
	if (!p)
		return no_memory(err);
	int machine = policy_find_machine(p, name);
	if (machine < 0) {
		r = error_set(err, -ENOENT, "there is no machine \"%s\" in lab \"%s\"", name, p->name);
		policy_free(p);
		return r;
	}
	p->machines[machine].is_quarantined = json_is_true(on);
	return set_policy(d, p, err);
}

/* ---- faults ---- */

static int fault(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		 int *pass_fd, struct error *err)
{
	json_t *settings = json_object_get(request, "settings"), *value;
	const char *label, *key;
	char text[128];
	int r = need_text(request, "card", &label, err),
	    port = r < 0 ? r : find_card(fabric_policy(d->f), label, err);

	if (port < 0)
		return port;
	struct lab_port *card = labd_card(d, (unsigned)port);
	struct faults f = card->in.faults;
	json_object_foreach(settings, key, value)
	{
		if (!json_is_string(value))
			return error_set(err, -EINVAL, "\"%s\" is a text", key);
		r = faults_set(&f, key, json_string_value(value), err);
		if (r < 0)
			return r;
	}
	card->in.faults = card->out.faults = f;
	json_object_set_new(reply, "faults", json_string(faults_format(&f, text, sizeof(text))));
	return 0;
}

/* ---- show ---- */

static json_t *counts_json(const struct fabric_counts *c)
{
	return json_pack("{s:I, s:I, s:I}", "frames", (json_int_t)c->frames, "bytes",
			 (json_int_t)c->bytes, "flows", (json_int_t)c->flows);
}

json_t *labd_announced(const struct labd *d, unsigned port)
{
	struct net_addr bound[FABRIC_BOUND];
	char text[NET_ADDR_TEXT];
	json_t *list = json_array();

	for (unsigned i = 0, n = fabric_bound(d->f, port, bound); i < n; i++)
		json_array_append_new(list, json_string(net_addr_format(&bound[i], text)));
	return list;
}

static json_t *card_json(const struct labd *d, unsigned i)
{
	const struct policy *p = fabric_policy(d->f);
	const struct fabric_port_counts *c = fabric_port_counts(d->f, i);
	const struct policy_port *q = &p->ports[i];
	char label[2 * POLICY_NAME_MAX + 2], mac[NET_MAC_TEXT], v4[NET_ADDR_TEXT],
		v6[NET_ADDR_TEXT], text[128];
	json_t *denied = json_object();

	for (unsigned r = FABRIC_MALFORMED; r < FABRIC_REASONS; r++)
		if (c->reasons[r])
			json_object_set_new(denied, fabric_reason_names[r],
					    json_integer((json_int_t)c->reasons[r]));
	return json_pack(
		"{s:s, s:b, s:s, s:s, s:s, s:o, s:b, s:b, s:s, s:o, s:o, s:I, s:I, s:I, s:o, s:o}",
		"card", policy_port_label(p, i, label, sizeof(label)), "copy",
		p->machines[q->machine].is_copy, "mac", net_mac_format(q->mac, mac), "address",
		net_addr_format(&q->v4, v4), "address6", net_addr_format(&q->v6, v6), "announced",
		labd_announced(d, i), "up", labd_has_machine(labd_card(d, i)), "quarantine",
		p->machines[q->machine].is_quarantined, "faults",
		faults_format(&labd_card(d, i)->in.faults, text, sizeof(text)), "in",
		counts_json(&c->in), "out", counts_json(&c->out), "flows",
		(json_int_t)fabric_flows(d->f, i), "dropped", (json_int_t)d->ports[i].dropped,
		"lost", (json_int_t)d->ports[i].lost, "denied", denied, "vlan",
		q->vlan < 0 ? json_null() : json_integer(q->vlan));
}

static int show(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		int *pass_fd, struct error *err)
{
	const struct policy *p = fabric_policy(d->f);
	json_t *cards = json_array(), *rules = json_array();
	char text[1024];

	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone)
			json_array_append_new(cards, card_json(d, i));
	for (unsigned i = 0; i < p->nrules; i++) {
		struct fabric_counts c = fabric_rule_counts(d->f, i);
		json_t *o = counts_json(&c);
		json_object_set_new(o, "id", json_integer(p->rules[i].id));
		json_object_set_new(o, "action", json_string(p->rules[i].is_allow ? "allow" : "deny"));
		json_object_set_new(o, "rule",
				    json_string(policy_format_rule(p, &p->rules[i], text, sizeof(text))));
		json_array_append_new(rules, o);
	}
	json_object_set_new(reply, "lab", json_string(p->name));
	json_object_set_new(reply, "cards", cards);
	json_object_set_new(reply, "rules", rules);
	json_object_set_new(reply, "namespaces", json_boolean(d->has_namespaces));
	return 0;
}

static int stop(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		int *pass_fd, struct error *err)
{
	d->is_stopping = true;
	return 0;
}

static int capture(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		   int *pass_fd, struct error *err)
{
	int dir_fd = client->got_fd;

	client->got_fd = -1;
	return labd_capture(d, request, (int)(client - d->clients), dir_fd, err);
}

static int end(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
	       int *pass_fd, struct error *err)
{
	return labd_end_captures(d, (int)(client - d->clients), reply, err);
}

static const struct {
	const char *name;
	int (*run)(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		   int *pass_fd, struct error *err);
} commands[] = {
	{ "attach", attach },
	{ "show", show },
	{ "allow", allow },
	{ "deny", deny },
	{ "remove", remove_rule },
	{ "quarantine", quarantine },
	{ "fault", fault },
	{ "stop", stop },
	{ "capture", capture },
	{ "end", end },
	{ "identity", labd_tell_identity },
	{ "forget", labd_forget_machine },
	{ "admit", labd_admit },
};

int labd_command(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		 int *pass_fd, struct error *err)
{
	const char *name = json_is_object(request) ? text_of(request, "cmd") : NULL;

	*pass_fd = -1;
	for (unsigned i = 0; name && i < ARRAY_SIZE(commands); i++)
		if (strcmp(commands[i].name, name) == 0)
			return commands[i].run(d, client, request, reply, pass_fd, err);
	return error_set(err, -EINVAL, "a lab knows no command \"%s\"", name ? name : "");
}

/* ---- the machine's side ---- */

/* A line, and a descriptor if one comes along, as labd.c sends them.  malloc'd. */
static int receive_line(int fd, char **out, int *passed)
{
	char control[CMSG_SPACE(sizeof(int))];
	_cleanup_free_ char *line = malloc(LINE_MAX_BYTES);
	size_t len = 0;

	if (!line)
		return -ENOMEM;
	while (len < LINE_MAX_BYTES - 1 && (!len || line[len - 1] != '\n')) {
		struct iovec iov = { line + len, LINE_MAX_BYTES - 1 - len };
		struct msghdr msg = { .msg_iov = &iov,
				      .msg_iovlen = 1,
				      .msg_control = control,
				      .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EPIPE;
		labd_keep_descriptor(&msg, passed);
		len += (size_t)n;
	}
	line[len] = 0;
	*out = line;
	line = NULL;
	return 0;
}

/* Takes @request.  The answer of a lab that says yes. */
static int call(int control_fd, json_t *request, json_t **reply, int *passed, struct error *err)
{
	_cleanup_free_ char *text = request ? json_dumps(request, JSON_COMPACT) : NULL, *line = NULL;

	json_decref(request);
	if (!text)
		return error_set(err, -ENOMEM, "no memory to talk to the lab");
	if (dprintf(control_fd, "%s\n", text) < 0)
		return error_set(err, -errno, "cannot talk to the lab: %s", strerror(errno));
	int r = receive_line(control_fd, &line, passed);
	json_t *o = r == 0 ? json_loads(line, 0, NULL) : NULL;
	if (!o)
		return error_set(err, r < 0 ? r : -EPROTO, "the lab does not answer");
	if (!json_is_true(json_object_get(o, "ok"))) {
		r = error_set(err, -EREMOTEIO, "%s", text_of(o, "error") ?: "the lab refuses");
		json_decref(o);
		return r;
	}
	*reply = o;
	return 0;
}

int labd_attach(int control_fd, const struct labd_attach *a, uint8_t mac[6], int *fd,
		json_t **identity, struct error *err)
{
	json_t *request = json_pack("{s:s, s:s, s:s, s:O*}", "cmd", "attach", "machine", a->machine,
				    "network", a->network, "identity", a->identity),
	       *reply = NULL;
	int passed = -1, r = call(control_fd, request, &reply, &passed, err);
	json_t *record = json_object_get(reply, "identity");

	if (r == 0 && (passed < 0 || net_mac_parse(text_of(reply, "mac") ?: "", mac) < 0 ||
		       identity_check(record, err) < 0))
		r = error_set(err, -EPROTO, "the lab's answer makes no sense");
	if (r == 0 && identity)
		*identity = json_incref(record);
	json_decref(reply);
	if (r < 0 && passed >= 0)
		close(passed);
	if (r == 0)
		*fd = passed;
	return r;
}

int labd_identity(int control_fd, const char *machine, json_t **identity, struct error *err)
{
	json_t *reply = NULL;
	int passed = -1,
	    r = call(control_fd, json_pack("{s:s, s:s}", "cmd", "identity", "machine", machine),
		     &reply, &passed, err);
	json_t *record = json_object_get(reply, "identity");

	if (passed >= 0)
		close(passed);
	if (r == 0 && (r = identity_check(record, err)) == 0)
		*identity = json_incref(record);
	json_decref(reply);
	return r;
}

int labd_forget(int control_fd, const char *machine, struct error *err)
{
	json_t *reply = NULL;
	int passed = -1,
	    r = call(control_fd, json_pack("{s:s, s:s}", "cmd", "forget", "machine", machine),
		     &reply, &passed, err);

	if (passed >= 0)
		close(passed);
	json_decref(reply);
	return r;
}
