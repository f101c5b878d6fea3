/* SPDX-License-Identifier: Apache-2.0 */
#include "net/resolver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/host.h"

enum {
	HEADER = 12,
	SETS = 32, /* for each port */
	WAYS = 8,
	PENDING_MS = 5000,
	TTL_LAB_S = 60,
	KEEP_MIN_S = 60,
	KEEP_MAX_S = 86400
};
enum { FLAG_QR = 0x8000, FLAG_AA = 0x0400, FLAG_RD = 0x0100, FLAG_RA = 0x0080, OPCODE = 0x7800 };
enum { RCODE_FORMERR = 1, RCODE_SERVFAIL = 2, RCODE_NXDOMAIN = 3, RCODE_REFUSED = 5 };

struct pending {
	int fd; /* -1: unused */
	unsigned port;
	struct net_addr gateway, client;
	uint16_t client_port, id;
	struct dns_question q; /* as it was sent on */
	int64_t expires_ms;
	bool is_polled;
};

struct learnt {
	struct net_addr addr;
	uint32_t rule_id; /* 0: unused */
	int64_t expires_ms;
};

struct resolver {
	struct resolver_ops ops;
	struct sockaddr_storage upstream;
	bool has_upstream;
	struct pending pending[RESOLVER_PENDING];
	struct learnt learnt[POLICY_PORTS_MAX][SETS][WAYS];
};

/* ---- messages ---- */

/* A name at @at, labels dotted, lower case; @at moves behind it.  False: malformed. */
static bool read_name(const uint8_t *m, size_t len, size_t *at, char *out, bool may_point)
{
	size_t pos = *at, n = 0, jumps = 0;
	bool has_jumped = false;

	for (;;) {
		if (pos >= len)
			return false;
		uint8_t label = m[pos++];
		if (label >= 0xc0) {
			/* Only backwards, so that it ends. */
			size_t to = pos < len ? (size_t)(label & 0x3f) << 8 | m[pos] : len;
			if (!may_point || to >= pos - 1 || ++jumps > 32)
				return false;
			if (!has_jumped)
				*at = pos + 1;
			has_jumped = true;
			pos = to;
			continue;
		}
		if (label > 63 || label > len - pos || n + label + 1 > POLICY_DOMAIN_MAX)
			return false;
		if (!label)
			break;
		if (n)
			out[n++] = '.';
		for (unsigned i = 0; i < label; i++) {
			char c = (char)m[pos++];
			bool is_fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
				       (c >= '0' && c <= '9') || c == '-' || c == '_';
			if (!is_fine)
				return false;
			out[n++] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
		}
	}
	out[n] = 0;
	if (!has_jumped)
		*at = pos;
	return true;
}

bool dns_parse_question(const uint8_t *m, size_t len, struct dns_question *out)
{
	struct dns_question q;
	size_t at = HEADER;

	if (len < HEADER || net_get16(m + 4) != 1)
		return false;
	q.id = net_get16(m);
	q.flags = net_get16(m + 2);
	if (!read_name(m, len, &at, q.name, false) || len - at < 4 || net_get16(m + at + 2) != 1)
		return false;
	q.type = net_get16(m + at);
	q.end = at + 4;
	*out = q;
	return true;
}

int dns_each_address(const uint8_t *m, size_t len, const struct dns_question *q,
		     void (*fn)(void *arg, const struct net_addr *a, uint32_t ttl_s), void *arg)
{
	char name[POLICY_DOMAIN_MAX + 1];
	struct dns_question own;
	int found = 0;

	if (!dns_parse_question(m, len, &own) || !(own.flags & FLAG_QR) || own.id != q->id ||
	    own.type != q->type || strcmp(own.name, q->name) != 0)
		return -EBADMSG;
	size_t at = own.end;
	for (unsigned i = 0, n = net_get16(m + 6); i < n; i++) {
		if (!read_name(m, len, &at, name, true) || len - at < 10)
			return -EBADMSG;
		uint16_t type = net_get16(m + at), size = net_get16(m + at + 8);
		uint32_t ttl = net_get32(m + at + 4);
		at += 10;
		if (size > len - at)
			return -EBADMSG;
		struct net_addr a;
		bool is_address = (type == DNS_A && size == 4) || (type == DNS_AAAA && size == 16);
		if (is_address) {
			a = type == DNS_A ? net_addr_v4(m + at) : net_addr_v6(m + at);
			fn(arg, &a, ttl);
			found++;
		}
		at += size;
	}
	return found;
}

/* The question's own bytes with another header: an answer without records. */
static size_t make_header(uint8_t *out, const uint8_t *query, const struct dns_question *q, unsigned rcode)
{
	memcpy(out, query, q->end);
	net_put16(out + 2, FLAG_QR | FLAG_AA | FLAG_RA | (q->flags & (FLAG_RD | OPCODE)) | rcode);
	net_put16(out + 6, 0);
	net_put16(out + 8, 0);
	net_put16(out + 10, 0);
	return q->end;
}

/* ---- what was learnt ---- */

static struct learnt *set_of(struct resolver *r, unsigned port, uint32_t rule_id,
			     const struct net_addr *a)
{
	return r->learnt[port][XXH64(a->b, 16, rule_id) % SETS];
}

static bool has_learnt(void *ctx, unsigned port, uint32_t rule_id, const struct net_addr *a)
{
	struct resolver *r = ctx;
	struct learnt *set = set_of(r, port, rule_id, a);
	int64_t now_ms = r->ops.now_ms(r->ops.ctx);

	for (unsigned i = 0; i < WAYS; i++)
		if (set[i].rule_id == rule_id && set[i].expires_ms > now_ms &&
		    net_addr_is_equal(&set[i].addr, a))
			return true;
	return false;
}

struct policy_names resolver_names(struct resolver *r)
{
	return (struct policy_names){ has_learnt, r };
}

struct learning {
	struct resolver *r;
	const struct policy *policy;
	unsigned port;
	uint32_t rule_id;
};

static void learn(void *arg, const struct net_addr *a, uint32_t ttl_s)
{
	struct learning *l = arg;
	struct learnt *set = set_of(l->r, l->port, l->rule_id, a), *at = set;
	int64_t now_ms = l->r->ops.now_ms(l->r->ops.ctx);

	/* An answer must not lead into the lab or the host (rebinding): policy_decide() refuses, and here is no room for it. */
	if (policy_is_blocked(l->policy, a))
		return;
	for (unsigned i = 0; i < WAYS; i++) {
		if (set[i].rule_id == l->rule_id && net_addr_is_equal(&set[i].addr, a)) {
			at = &set[i];
			break;
		}
		if (set[i].expires_ms < at->expires_ms)
			at = &set[i];
	}
	/* Programs hold on to an address a little longer than they are told to. */
	uint32_t keep_s = MIN(MAX(ttl_s, (uint32_t)KEEP_MIN_S), (uint32_t)KEEP_MAX_S);
	*at = (struct learnt){ *a, l->rule_id, now_ms + (int64_t)keep_s * 1000 };
}

static void learn_answer(struct resolver *r, const struct policy *policy, const struct pending *p,
			 const uint8_t *m, size_t len)
{
	const struct policy_port *q = &policy->ports[p->port];

	for (unsigned i = 0; i < policy->nrules; i++) {
		const struct policy_rule *rule = &policy->rules[i];
		struct learning l = { r, policy, p->port, rule->id };
		if (!rule->nnames ||
		    (rule->from.network >= 0 && (unsigned)rule->from.network != q->network) ||
		    (rule->from.machine >= 0 && (unsigned)rule->from.machine != q->machine) ||
		    !policy_rule_names(rule, p->q.name))
			continue;
		dns_each_address(m, len, &p->q, learn, &l);
	}
}

/* ---- the lab's own names ---- */

/* "web", "web.app", each with or without ".lab".  -1: no such machine; else a port that @from may see, or -2. */
static int find_machine(const struct policy *policy, unsigned from, const char *name)
{
	char copy[POLICY_DOMAIN_MAX + 1], *network = NULL, *dot;
	bool is_ours = false;
	int best = -2;

	strcpy(copy, name);
	size_t len = strlen(copy);
	if (len > 4 && strcmp(copy + len - 4, ".lab") == 0) {
		copy[len - 4] = 0;
		is_ours = true;
	}
	dot = strchr(copy, '.');
	if (dot) {
		*dot = 0;
		network = dot + 1;
	}
	int machine = policy_find_machine(policy, copy),
	    n = network ? policy_find_network(policy, network) : -1;
	if (machine < 0 || (network && n < 0))
		return is_ours ? -2 : -1;
	for (unsigned i = 0; i < policy->nports; i++) {
		if (policy->ports[i].is_gone || policy->ports[i].machine != (unsigned)machine ||
		    (n >= 0 && policy->ports[i].network != (unsigned)n) ||
		    (policy->ports[from].machine != (unsigned)machine && !policy_may_see(policy, from, i)))
			continue;
		/* The card in the asker's own network is the shortest way. */
		if (best < 0 || policy->ports[i].network == policy->ports[from].network)
			best = (int)i;
	}
	return best;
}

static size_t answer_machine(const struct resolver *r, const struct policy *policy, int port,
			     const uint8_t *query, const struct dns_question *q, uint8_t *out)
{
	size_t at = make_header(out, query, q, port < 0 ? RCODE_NXDOMAIN : 0);
	bool is_v4 = q->type == DNS_A;

	if (port < 0 || (!is_v4 && q->type != DNS_AAAA))
		return at;
	struct net_addr v6 = r->ops.addr6(r->ops.ctx, (unsigned)port);
	size_t size = is_v4 ? 4 : 16;
	net_put16(out + 6, 1);
	net_put16(out + at, 0xc000 | HEADER);
	net_put16(out + at + 2, q->type);
	net_put16(out + at + 4, 1);
	net_put32(out + at + 6, TTL_LAB_S);
	net_put16(out + at + 10, (unsigned)size);
	memcpy(out + at + 12, is_v4 ? policy->ports[port].v4.b + 12 : v6.b, size);
	return at + 12 + size;
}

/* ---- questions ---- */

static void reply(struct resolver *r, unsigned port, const struct packet *p, const uint8_t *m, size_t len)
{
	r->ops.reply(r->ops.ctx, port, &p->dst, &p->src, 53, p->sport, m, len);
}

static void release(struct pending *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
	p->is_polled = false;
}

static struct pending *take_slot(struct resolver *r, unsigned port)
{
	struct pending *free_one = NULL;
	unsigned own = 0;

	for (unsigned i = 0; i < RESOLVER_PENDING; i++) {
		struct pending *p = &r->pending[i];
		if (p->fd < 0)
			free_one = p;
		else if (p->port == port)
			own++;
	}
	return own < RESOLVER_PER_PORT ? free_one : NULL;
}

static int send_upstream(struct resolver *r, struct pending *p, const uint8_t *query, size_t len)
{
	uint8_t m[HEADER + POLICY_DOMAIN_MAX + 6];
	socklen_t size = r->upstream.ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
							   : sizeof(struct sockaddr_in);

	if (!r->has_upstream || p->q.end > sizeof(m) || len < p->q.end)
		return -EHOSTUNREACH;
	/* Question and flags only: no options of the guest's reach the host's resolver. */
	memcpy(m, query, p->q.end);
	if (getrandom(m, 2, 0) != 2)
		return -EIO;
	net_put16(m + 2, FLAG_RD);
	memset(m + 6, 0, 6);
	p->q.id = net_get16(m);
	p->fd = host.socket(r->upstream.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (p->fd < 0)
		return -errno;
	if (host.connect(p->fd, (const struct sockaddr *)&r->upstream, size) < 0 ||
	    send(p->fd, m, p->q.end, MSG_NOSIGNAL) < 0) {
		int e = -errno;
		release(p);
		return e;
	}
	return 0;
}

static bool is_only_named(const struct policy *policy, unsigned port, const char *name)
{
	/* Could it ask for anything at all?  Then no name decides. */
	static const char any[] = "a.invalid";

	return policy_may_ask(policy, port, name) && !policy_may_ask(policy, port, any);
}

void resolver_ask(struct resolver *r, const struct policy *policy, unsigned port,
		  const struct packet *p, const uint8_t *payload, size_t len)
{
	uint8_t out[DNS_MESSAGE_MAX];
	struct dns_question q;

	if (!dns_parse_question(payload, len, &q) || q.flags & FLAG_QR)
		return;
	if (q.flags & OPCODE) {
		reply(r, port, p, out, make_header(out, payload, &q, RCODE_REFUSED));
		return;
	}
	int machine = find_machine(policy, port, q.name);
	if (machine != -1) {
		reply(r, port, p, out, answer_machine(r, policy, machine, payload, &q, out));
		return;
	}
	if (!policy_may_ask(policy, port, q.name)) {
		reply(r, port, p, out, make_header(out, payload, &q, RCODE_REFUSED));
		return;
	}
	if (q.type != DNS_A && q.type != DNS_AAAA && is_only_named(policy, port, q.name)) {
		reply(r, port, p, out, make_header(out, payload, &q, 0));
		return;
	}
	struct pending *slot = take_slot(r, port);
	if (!slot)
		return; /* it will ask again */
	*slot = (struct pending){ .fd = -1,
				  .port = port,
				  .gateway = p->dst,
				  .client = p->src,
				  .client_port = p->sport,
				  .id = q.id,
				  .q = q };
	slot->expires_ms = r->ops.now_ms(r->ops.ctx) + PENDING_MS;
	if (send_upstream(r, slot, payload, len) < 0)
		reply(r, port, p, out, make_header(out, payload, &q, RCODE_SERVFAIL));
}

static void ignore(void *arg, const struct net_addr *a, uint32_t ttl_s)
{
	(void)arg;
	(void)a;
	(void)ttl_s;
}

static void take_answer(struct resolver *r, const struct policy *policy, struct pending *p)
{
	uint8_t m[DNS_MESSAGE_MAX + 1];
	ssize_t len = recv(p->fd, m, sizeof(m), MSG_DONTWAIT);

	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	/* Not what was asked for: somebody guesses.  The right one may still come. */
	if (len > 0 && len <= DNS_MESSAGE_MAX && dns_each_address(m, (size_t)len, &p->q, ignore, NULL) < 0)
		return;
	if (len > 0 && len <= DNS_MESSAGE_MAX) {
		learn_answer(r, policy, p, m, (size_t)len);
		net_put16(m, p->id);
		r->ops.reply(r->ops.ctx, p->port, &p->gateway, &p->client, 53, p->client_port, m,
			     (size_t)len);
	}
	release(p);
}

/* ---- life ---- */

struct resolver *resolver_create(const struct sockaddr_storage *upstream, const struct resolver_ops *ops)
{
	struct resolver *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->ops = *ops;
	for (unsigned i = 0; i < RESOLVER_PENDING; i++)
		r->pending[i].fd = -1;
	if (upstream) {
		r->upstream = *upstream;
		r->has_upstream = true;
	}
	return r;
}

void resolver_destroy(struct resolver *r)
{
	if (!r)
		return;
	for (unsigned i = 0; i < RESOLVER_PENDING; i++)
		release(&r->pending[i]);
	free(r);
}

int resolver_host_upstream(const char *path, struct sockaddr_storage *out)
{
	char line[512], text[128];
	FILE *f = fopen(path, "re");
	int r = -ENOENT;

	while (f && r < 0 && fgets(line, sizeof(line), f)) {
		struct sockaddr_in *v4 = (void *)out;
		struct sockaddr_in6 *v6 = (void *)out;
		if (sscanf(line, " nameserver %127s", text) != 1)
			continue;
		memset(out, 0, sizeof(*out));
		if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
			v4->sin_family = AF_INET;
			v4->sin_port = htons(53);
			r = 0;
		} else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
			v6->sin6_family = AF_INET6;
			v6->sin6_port = htons(53);
			r = 0;
		}
	}
	if (f)
		fclose(f);
	return r;
}

unsigned resolver_fill(struct resolver *r, struct pollfd *pfds, unsigned max, uint32_t *timeout_ms)
{
	int64_t now_ms = r->ops.now_ms(r->ops.ctx);
	unsigned n = 0;

	for (unsigned i = 0; i < RESOLVER_PENDING; i++) {
		struct pending *p = &r->pending[i];
		if (p->fd >= 0 && p->expires_ms <= now_ms)
			release(p);
		p->is_polled = p->fd >= 0 && n < max;
		if (!p->is_polled)
			continue;
		pfds[n++] = (struct pollfd){ .fd = p->fd, .events = POLLIN };
		*timeout_ms = (uint32_t)MIN((int64_t)*timeout_ms, p->expires_ms - now_ms);
	}
	return n;
}

void resolver_polled(struct resolver *r, const struct policy *policy, const struct pollfd *pfds,
		     unsigned n)
{
	for (unsigned i = 0, at = 0; i < RESOLVER_PENDING && at < n; i++)
		if (r->pending[i].is_polled && pfds[at++].revents)
			take_answer(r, policy, &r->pending[i]);
}
