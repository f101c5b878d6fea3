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
	SETS = 32, /* for each port */
	WAYS = 8,
	TTL_LAB_S = 60,
	KEEP_MIN_S = 60,
	KEEP_MAX_S = 86400
};

/* How the host's resolver is asked. */
enum way { BY_UDP, BY_TCP };

struct pending {
	int fd; /* -1: unused */
	struct dns_client from;
	uint16_t id;	       /* the guest's */
	struct dns_edns edns;  /* the guest's */
	struct dns_question q; /* as it was sent on */
	uint16_t flags;	       /* as it is sent on */
	bool wants_dnssec;
	bool is_plain; /* asked without EDNS: the host's resolver does not know it */
	enum way way;
	uint8_t query[2 + DNS_QUERY_MAX]; /* behind TCP's length */
	size_t query_len, sent;		  /* with that; by TCP */
	uint8_t *answer; /* by TCP: with its length, as soon as that is known; malloc'd */
	uint8_t length[2];
	size_t got;
	int64_t udp_until_ms, expires_ms;
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
	const struct policy_port *q = &policy->ports[p->from.port];

	for (unsigned i = 0; i < policy->nrules; i++) {
		const struct policy_rule *rule = &policy->rules[i];
		struct learning l = { r, policy, p->from.port, rule->id };
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
	size_t at = dns_make_empty(out, query, q, port < 0 ? DNS_NXDOMAIN : 0);
	bool is_v4 = q->type == DNS_A;

	if (port < 0 || (!is_v4 && q->type != DNS_AAAA))
		return at;
	struct net_addr v6 = r->ops.addr6(r->ops.ctx, (unsigned)port);
	size_t size = is_v4 ? 4 : 16;
	net_put16(out + 6, 1);
	net_put16(out + at, 0xc000 | 12); /* the question's name */
	net_put16(out + at + 2, q->type);
	net_put16(out + at + 4, 1);
	net_put32(out + at + 6, TTL_LAB_S);
	net_put16(out + at + 10, (unsigned)size);
	memcpy(out + at + 12, is_v4 ? policy->ports[port].v4.b + 12 : v6.b, size);
	return at + 12 + size;
}

/* ---- to who asked ---- */

static size_t max_of(const struct dns_client *to, const struct dns_edns *edns)
{
	return to->conn ? DNS_MESSAGE_MAX : dns_udp_max(edns);
}

/* An answer without records, made of the question at @query. */
static void reply_empty(struct resolver *r, const struct dns_client *to, const uint8_t *query,
			const struct dns_question *q, const struct dns_edns *edns, unsigned rcode)
{
	uint8_t out[DNS_QUERY_MAX];
	size_t len = dns_make_empty(out, query, q, rcode);

	len = dns_fit(out, len, q, NULL, edns, rcode, max_of(to, edns));
	r->ops.reply(r->ops.ctx, to, out, len);
}

static void release(struct pending *p)
{
	if (p->fd >= 0)
		close(p->fd);
	free(p->answer);
	p->answer = NULL;
	p->fd = -1;
	p->is_polled = false;
}

/* The host's resolver has none, or could not be asked. */
static void fail(struct resolver *r, struct pending *p)
{
	uint8_t query[DNS_QUERY_MAX];
	struct dns_question q = p->q;

	memcpy(query, p->query + 2, q.end);
	q.flags = p->flags;
	net_put16(query, p->id);
	reply_empty(r, &p->from, query, &q, &p->edns, DNS_SERVFAIL);
	release(p);
}

/* ---- to the host's resolver ---- */

/* A machine has never more than it leaves: many of them, or many cards of one, don't take all. */
static struct pending *take_slot(struct resolver *r, const struct policy *policy, unsigned port)
{
	struct pending *free_one = NULL;
	unsigned nfree = 0, of_port = 0, of_machine = 0;

	for (unsigned i = 0; i < RESOLVER_PENDING; i++) {
		struct pending *p = &r->pending[i];
		if (p->fd < 0) {
			free_one = p;
			nfree++;
			continue;
		}
		of_port += p->from.port == port;
		of_machine += policy->ports[p->from.port].machine == policy->ports[port].machine;
	}
	return of_port < RESOLVER_PER_PORT && of_machine < nfree ? free_one : NULL;
}

/* @query is the guest's question, or the one that was sent before: of it go on the question and @p->flags, no option. */
static int make_query(struct pending *p, const uint8_t *query)
{
	struct dns_edns own = { .wants_dnssec = p->wants_dnssec };
	uint8_t copy[DNS_QUERY_MAX];
	uint16_t id;

	memcpy(copy, query, p->q.end);
	if (getrandom(&id, sizeof(id), 0) != sizeof(id))
		return -EIO;
	p->q.id = id;
	p->query_len =
		2 + dns_make_query(p->query + 2, copy, &p->q, id, p->flags, p->is_plain ? NULL : &own);
	net_put16(p->query, (unsigned)p->query_len - 2);
	p->sent = p->got = 0;
	return 0;
}

static int connect_upstream(const struct resolver *r, int type)
{
	socklen_t size = r->upstream.ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
							   : sizeof(struct sockaddr_in);
	int fd = host.socket(r->upstream.ss_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (host.connect(fd, (const struct sockaddr *)&r->upstream, size) < 0 && errno != EINPROGRESS) {
		int e = -errno;
		close(fd);
		return e;
	}
	return fd;
}

static int send_upstream(struct resolver *r, struct pending *p, enum way way, const uint8_t *query)
{
	p->way = way;
	if (!r->has_upstream)
		return -EHOSTUNREACH;
	int e = make_query(p, query);
	if (e < 0)
		return e;
	int fd = connect_upstream(r, way == BY_TCP ? SOCK_STREAM : SOCK_DGRAM);
	if (fd < 0)
		return fd;
	release(p);
	p->fd = fd;
	if (way != BY_TCP && send(fd, p->query + 2, p->query_len - 2, MSG_NOSIGNAL) < 0)
		return -errno;
	return 0;
}

static void ask_again(struct resolver *r, struct pending *p, enum way way)
{
	if (send_upstream(r, p, way, p->query + 2) < 0)
		fail(r, p);
}

/* ---- questions ---- */

static bool is_only_named(const struct policy *policy, unsigned port, const char *name)
{
	/* Could it ask for anything at all?  Then no name decides. */
	static const char any[] = "a.invalid";

	return policy_may_ask(policy, port, name) && !policy_may_ask(policy, port, any);
}

static void ask_outside(struct resolver *r, const struct policy *policy, const struct dns_client *from,
			const uint8_t *m, const struct dns_question *q, const struct dns_edns *edns)
{
	bool is_named = is_only_named(policy, from->port, q->name);
	struct pending *slot;

	if (!policy_may_ask(policy, from->port, q->name)) {
		reply_empty(r, from, m, q, edns, DNS_REFUSED);
		return;
	}
	if (q->type != DNS_A && q->type != DNS_AAAA && is_named) {
		reply_empty(r, from, m, q, edns, 0);
		return;
	}
	slot = take_slot(r, policy, from->port);
	if (!slot) {
		if (from->conn) /* over UDP it will ask again */
			reply_empty(r, from, m, q, edns, DNS_SERVFAIL);
		return;
	}
	int64_t now_ms = r->ops.now_ms(r->ops.ctx);
	*slot = (struct pending){ .fd = -1,
				  .from = *from,
				  .id = q->id,
				  .edns = *edns,
				  .q = *q,
				  .flags = DNS_RD,
				  .udp_until_ms = now_ms + RESOLVER_UDP_MS,
				  .expires_ms = now_ms + RESOLVER_MS };
	/* Who validates itself needs both (RFC 4035, 4.9); with a rule's names nothing but the name goes out. */
	if (!is_named) {
		slot->wants_dnssec = edns->wants_dnssec;
		slot->flags |= q->flags & DNS_CD;
	}
	if (send_upstream(r, slot, BY_UDP, m) < 0) {
		release(slot);
		reply_empty(r, from, m, q, edns, DNS_SERVFAIL);
	}
}

bool resolver_ask(struct resolver *r, const struct policy *policy, const struct dns_client *from,
		  const uint8_t *m, size_t len)
{
	uint8_t out[DNS_QUERY_MAX + 12 + 16];
	struct dns_edns edns = { .udp_size = DNS_UDP_PLAIN };
	struct dns_question q;

	if (!dns_parse_question(m, len, &q) || q.flags & DNS_QR)
		return false;
	bool is_fine = dns_parse_edns(m, len, &q, &edns);
	unsigned rcode = !is_fine		? DNS_FORMERR
			 : edns.version		? DNS_BADVERS
			 : q.flags & DNS_OPCODE ? DNS_NOTIMP
						: 0;
	if (rcode) {
		reply_empty(r, from, m, &q, &edns, rcode);
		return true;
	}
	int machine = find_machine(policy, from->port, q.name);
	if (machine == -1) {
		ask_outside(r, policy, from, m, &q, &edns);
		return true;
	}
	len = answer_machine(r, policy, machine, m, &q, out);
	len = dns_fit(out, len, &q, NULL, &edns, out[3] & DNS_RCODE, max_of(from, &edns));
	r->ops.reply(r->ops.ctx, from, out, len);
	return true;
}

/* ---- answers ---- */

/* @m: @len bytes, and room for DNS_OPT_BYTES.  False: it is none to what was asked. */
static bool take_message(struct resolver *r, const struct policy *policy, struct pending *p,
			 uint8_t *m, size_t len)
{
	struct dns_answer a;

	if (!dns_parse_answer(m, len, &p->q, &a))
		return false;
	bool is_refusal = a.rcode == DNS_FORMERR || a.rcode == DNS_NOTIMP;
	if (!p->is_plain && is_refusal && !a.has_opt) {
		p->is_plain = true;
		ask_again(r, p, p->way);
		return true;
	}
	if (a.is_truncated && p->way != BY_TCP && p->from.conn) {
		ask_again(r, p, BY_TCP);
		return true;
	}
	if (a.rcode > DNS_RCODE || (a.is_truncated && p->way == BY_TCP)) { /* about our own options; nonsense */
		fail(r, p);
		return true;
	}
	len = dns_fit(m, len, &p->q, &a, &p->edns, a.rcode, max_of(&p->from, &p->edns));
	/* As it is sent: what was cut off is not learnt. */
	learn_answer(r, policy, p, m, len);
	net_put16(m, p->id);
	r->ops.reply(r->ops.ctx, &p->from, m, len);
	release(p);
	return true;
}

static void read_udp(struct resolver *r, const struct policy *policy, struct pending *p)
{
	uint8_t m[DNS_UDP_MAX + 1 + DNS_OPT_BYTES];
	ssize_t len = recv(p->fd, m, DNS_UDP_MAX + 1, MSG_DONTWAIT);

	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (len < 0) /* nobody is there: over TCP there may be */
		ask_again(r, p, BY_TCP);
	else if (len <= DNS_UDP_MAX)
		/* What is none to it is somebody's guess.  The right one may still come. */
		(void)take_message(r, policy, p, m, (size_t)len);
}

/* Its length first, then as much memory.  1: there is more to come, 0: it is whole, or -errno. */
static int read_part(struct pending *p)
{
	size_t len = p->answer ? net_get16(p->length) : 0;
	uint8_t *at = p->answer ? p->answer + p->got - 2 : p->length + p->got;
	ssize_t n = recv(p->fd, at, (p->answer ? len + 2 : 2) - p->got, MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 1 : -errno;
	if (n == 0)
		return -EPIPE;
	p->got += (size_t)n;
	if (p->answer)
		return p->got < len + 2;
	if (p->got == 2) {
		p->answer = malloc(net_get16(p->length) + (size_t)DNS_OPT_BYTES);
		return p->answer ? 1 : -ENOMEM;
	}
	return 1;
}

static void serve_tcp(struct resolver *r, const struct policy *policy, struct pending *p)
{
	if (p->sent < p->query_len) {
		ssize_t n = send(p->fd, p->query + p->sent, p->query_len - p->sent,
				 MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			fail(r, p);
		else if (n > 0)
			p->sent += (size_t)n;
		return;
	}
	int left = read_part(p);
	if (left > 0)
		return;
	uint8_t *m = p->answer;
	p->answer = NULL; /* asking again may release the slot */
	if (left < 0 || !take_message(r, policy, p, m, net_get16(p->length)))
		fail(r, p);
	free(m);
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

void resolver_forget(struct resolver *r, unsigned port)
{
	for (unsigned i = 0; i < RESOLVER_PENDING; i++)
		if (r->pending[i].from.port == port)
			release(&r->pending[i]);
	memset(r->learnt[port], 0, sizeof(r->learnt[port]));
}

static int64_t next_ms(const struct pending *p)
{
	return p->way == BY_TCP ? p->expires_ms : MIN(p->udp_until_ms, p->expires_ms);
}

unsigned resolver_fill(struct resolver *r, struct pollfd *pfds, unsigned max, uint32_t *timeout_ms)
{
	int64_t now_ms = r->ops.now_ms(r->ops.ctx);
	unsigned n = 0;

	for (unsigned i = 0; i < RESOLVER_PENDING; i++) {
		struct pending *p = &r->pending[i];
		p->is_polled = p->fd >= 0 && n < max;
		if (p->fd >= 0)
			*timeout_ms = (uint32_t)MIN((int64_t)*timeout_ms,
						    MAX(next_ms(p) - now_ms, (int64_t)0));
		if (!p->is_polled)
			continue;
		bool is_sent = p->way != BY_TCP || p->sent == p->query_len;
		pfds[n++] = (struct pollfd){ .fd = p->fd, .events = is_sent ? POLLIN : POLLOUT };
	}
	return n;
}

static void look_at_clock(struct resolver *r, struct pending *p, int64_t now_ms)
{
	if (p->fd < 0 || next_ms(p) > now_ms)
		return;
	if (p->expires_ms <= now_ms)
		fail(r, p);
	else
		ask_again(r, p, BY_TCP);
}

void resolver_polled(struct resolver *r, const struct policy *policy, const struct pollfd *pfds,
		     unsigned n)
{
	int64_t now_ms = r->ops.now_ms(r->ops.ctx);

	for (unsigned i = 0, at = 0; i < RESOLVER_PENDING; i++) {
		struct pending *p = &r->pending[i];
		bool is_ready = p->is_polled && at < n && pfds[at++].revents;
		if (is_ready && p->way == BY_TCP)
			serve_tcp(r, policy, p);
		else if (is_ready)
			read_udp(r, policy, p);
		look_at_clock(r, p, now_ms);
	}
}
