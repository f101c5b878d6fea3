/* SPDX-License-Identifier: Apache-2.0 */
#include "net/conntrack.h"

#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#define BUCKETS 16384u
#define CHUNK	64u /* entries are allocated in such blocks, up to CONNTRACK_PER_OWNER an owner */

enum { NEW_MS = 30000, TCP_MS = 7200000, UDP_MS = 180000, CLOSING_MS = 10000 };

struct owner {
	struct conn *oldest, *newest, *unused; /* unused: by next */
	unsigned used, allocated;
	struct conn *chunks[CONNTRACK_PER_OWNER / CHUNK];
};

struct conntrack {
	struct conn *buckets[BUCKETS];
	uint64_t secret; /* buckets can't be aimed at */
	unsigned nowners;
	struct owner owners[];
};

struct conntrack *conntrack_create(unsigned nowners)
{
	struct conntrack *t = calloc(1, sizeof(*t) + nowners * sizeof(t->owners[0]));

	if (!t)
		return NULL;
	t->nowners = nowners;
	if (getrandom(&t->secret, sizeof(t->secret), GRND_NONBLOCK) != sizeof(t->secret))
		t->secret = (uint64_t)(uintptr_t)t;
	return t;
}

void conntrack_destroy(struct conntrack *t)
{
	if (!t)
		return;
	for (unsigned i = 0; i < t->nowners; i++)
		for (unsigned c = 0; c < ARRAY_SIZE(t->owners[i].chunks); c++)
			free(t->owners[i].chunks[c]);
	free(t);
}

struct conn_key conntrack_key(const struct packet *p)
{
	struct conn_key k = {
		.src = p->src, .dst = p->dst, .sport = p->sport, .dport = p->dport, .proto = p->proto
	};

	if (p->proto == IP_ICMP || p->proto == IP_ICMP6) {
		bool is_v4 = p->proto == IP_ICMP;
		k.sport = k.dport = p->icmp_id;
		k.icmp = p->icmp_type == (is_v4 ? ICMP_ECHO : ICMP6_ECHO) ? CONN_REQUEST
			 : p->icmp_type == (is_v4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY)
				 ? CONN_REPLY
				 : CONN_OTHER_ICMP;
	}
	return k;
}

/* Both directions of a flow are in one bucket: the sum of its ends' hashes. */
static unsigned bucket_of(const struct conntrack *t, const struct conn_key *k)
{
	uint64_t a = XXH64(k->src.b, 16, t->secret ^ k->sport),
		 b = XXH64(k->dst.b, 16, t->secret ^ k->dport);

	return (unsigned)((a + b + k->proto) >> 17) % BUCKETS;
}

static bool is_along(const struct conn_key *a, const struct conn_key *b)
{
	return a->proto == b->proto && a->icmp == b->icmp && a->sport == b->sport &&
	       a->dport == b->dport && net_addr_is_equal(&a->src, &b->src) &&
	       net_addr_is_equal(&a->dst, &b->dst);
}

static bool is_answer_kind(uint8_t a, uint8_t b)
{
	return a == CONN_NO_ICMP ? b == CONN_NO_ICMP : a == CONN_REQUEST && b == CONN_REPLY;
}

static bool is_against(const struct conn_key *a, const struct conn_key *b)
{
	return a->proto == b->proto && is_answer_kind(a->icmp, b->icmp) && a->sport == b->dport &&
	       a->dport == b->sport && net_addr_is_equal(&a->src, &b->dst) &&
	       net_addr_is_equal(&a->dst, &b->src);
}

struct conn *conntrack_find(struct conntrack *t, const struct conn_key *key, int64_t now_ms, bool *is_answer)
{
	struct conn *c = t->buckets[bucket_of(t, key)];

	for (; c; c = c->next) {
		bool along = is_along(&c->key, key);
		if (!along && !is_against(&c->key, key))
			continue;
		if (c->expires_ms <= now_ms) {
			conntrack_remove(t, c);
			return NULL;
		}
		*is_answer = !along;
		return c;
	}
	return NULL;
}

/* ---- an owner's list, by age ---- */

static void unlink_age(struct owner *o, struct conn *c)
{
	*(c->older ? &c->older->newer : &o->oldest) = c->newer;
	*(c->newer ? &c->newer->older : &o->newest) = c->older;
}

static void link_newest(struct owner *o, struct conn *c)
{
	c->older = o->newest;
	c->newer = NULL;
	*(o->newest ? &o->newest->newer : &o->oldest) = c;
	o->newest = c;
}

static bool allocate(struct owner *o)
{
	if (o->allocated == CONNTRACK_PER_OWNER)
		return false;
	struct conn *chunk = calloc(CHUNK, sizeof(*chunk));
	if (!chunk)
		return false;
	o->chunks[o->allocated / CHUNK] = chunk;
	o->allocated += CHUNK;
	for (unsigned i = 0; i < CHUNK; i++) {
		chunk[i].next = o->unused;
		o->unused = &chunk[i];
	}
	return true;
}

void conntrack_remove(struct conntrack *t, struct conn *c)
{
	struct owner *o = &t->owners[c->owner];
	struct conn **p = &t->buckets[bucket_of(t, &c->key)];

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	unlink_age(o, c);
	o->used--;
	c->is_used = false;
	c->next = o->unused;
	o->unused = c;
}

void conntrack_forget(struct conntrack *t, int port)
{
	for (unsigned i = 0; i < BUCKETS; i++)
		for (struct conn *c = t->buckets[i], *next; c; c = next) {
			next = c->next;
			if (c->from == port || c->to == port)
				conntrack_remove(t, c);
		}
}

struct conn *conntrack_add(struct conntrack *t, const struct conn_key *key, unsigned owner, int64_t now_ms)
{
	struct owner *o = &t->owners[owner];
	unsigned bucket = bucket_of(t, key);

	if (!o->unused && !allocate(o)) {
		if (!o->oldest)
			return NULL;
		conntrack_remove(t, o->oldest);
	}
	struct conn *c = o->unused;
	o->unused = c->next;
	*c = (struct conn){
		.key = *key, .owner = owner, .is_used = true, .expires_ms = now_ms + NEW_MS, .rule = -1
	};
	c->next = t->buckets[bucket];
	t->buckets[bucket] = c;
	link_newest(o, c);
	o->used++;
	return c;
}

static int64_t lifetime_ms(const struct conn *c)
{
	if (c->state == CONN_CLOSING)
		return CLOSING_MS;
	if (c->state == CONN_NEW)
		return NEW_MS;
	return c->key.proto == IP_TCP ? TCP_MS : c->key.proto == IP_UDP ? UDP_MS : NEW_MS;
}

void conntrack_seen(struct conntrack *t, struct conn *c, bool is_answer, uint8_t tcp_flags, int64_t now_ms)
{
	struct owner *o = &t->owners[c->owner];

	if (is_answer && c->state == CONN_NEW)
		c->state = CONN_ANSWERED;
	if (tcp_flags & PACKET_FIN)
		c->has_fin[is_answer] = true;
	if (tcp_flags & PACKET_RST || (c->has_fin[0] && c->has_fin[1]))
		c->state = CONN_CLOSING;
	c->expires_ms = now_ms + lifetime_ms(c);
	if (o->newest != c) {
		unlink_age(o, c);
		link_newest(o, c);
	}
}

unsigned conntrack_count(const struct conntrack *t, unsigned owner)
{
	return t->owners[owner].used;
}
