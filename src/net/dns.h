/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DNS messages (RFC 1035) with EDNS0 (RFC 6891): the checked door to them, and the few that the gateway makes itself.
 *
 * The options of EDNS are between two neighbors: what a guest's question has ends at the gateway, which asks with its own, and so does
 * what the host's resolver answers with.  dns_fit() gives an answer the form that its asker understands.
 *
 * Every byte is untrusted: a guest's, or the host's resolver's.
 */
#ifndef VIV_NET_DNS_H
#define VIV_NET_DNS_H

#include "net/addr.h"

#define DNS_NAME_MAX	253   /* bytes of a name in text (RFC 1035, 2.3.4) */
#define DNS_MESSAGE_MAX 65535 /* TCP's two bytes of length (RFC 1035, 4.2.2) */
#define DNS_UDP_MAX	1232  /* of an answer over UDP: fits every frame (DNS flag day 2020) */
#define DNS_UDP_PLAIN	512   /* ... to who has no EDNS (RFC 1035, 4.2.1) */
#define DNS_OPT_BYTES	11    /* an OPT record without options */
/* A question with an OPT record, as the gateway asks it. */
#define DNS_QUERY_MAX (12 + DNS_NAME_MAX + 2 + 4 + DNS_OPT_BYTES)

enum { DNS_A = 1, DNS_CNAME = 5, DNS_AAAA = 28, DNS_OPT = 41 };
enum {
	DNS_QR = 0x8000, /* an answer */
	DNS_OPCODE = 0x7800,
	DNS_AA = 0x0400,
	DNS_TC = 0x0200,
	DNS_RD = 0x0100,
	DNS_RA = 0x0080,
	DNS_CD = 0x0010,
	DNS_RCODE = 0x000f
};
enum {
	DNS_FORMERR = 1,
	DNS_SERVFAIL = 2,
	DNS_NXDOMAIN = 3,
	DNS_NOTIMP = 4,
	DNS_REFUSED = 5,
	DNS_BADVERS = 16 /* the upper bits are the OPT record's */
};

struct dns_question {
	uint16_t id, flags, type;
	char name[DNS_NAME_MAX + 1]; /* lower case, no dot at the end */
	size_t end;		     /* behind the question in the message */
};

/* What the asker says of itself (RFC 6891, 6.1). */
struct dns_edns {
	bool is_there;
	uint8_t version;
	bool wants_dnssec; /* DO (RFC 3225) */
	uint16_t udp_size; /* of a message that it takes over UDP, at least DNS_UDP_PLAIN */
};

/** dns_parse_question() - a message with one question.  False: it is none, or its name has other bytes than a host's. */
bool dns_parse_question(const uint8_t *m, size_t len, struct dns_question *out);
/** dns_parse_edns() - of the message whose question is @q.  False: records behind it are malformed, or there are two OPT (RFC 6891, 6.1.1). */
bool dns_parse_edns(const uint8_t *m, size_t len, const struct dns_question *q, struct dns_edns *out);

struct dns_answer {
	unsigned rcode; /* with the upper bits of its OPT record */
	bool is_truncated;
	bool has_opt;
	size_t end; /* where that is, else behind the last record: what follows is not sent on */
	uint16_t before_opt; /* additional records before it */
};
/**
 * dns_parse_answer() - an answer to @q.  False: it is none to that, or malformed.
 * One that is truncated is not looked into.
 */
bool dns_parse_answer(const uint8_t *m, size_t len, const struct dns_question *q, struct dns_answer *out);
/** dns_each_address() - the A and AAAA records in the answer section of what dns_parse_answer() found fine.  Returns how many. */
unsigned dns_each_address(const uint8_t *m, size_t len, const struct dns_question *q,
			  void (*fn)(void *arg, const struct net_addr *a, uint32_t ttl_s), void *arg);

/** dns_make_query() - @q, with the number @id and the flags @flags, to @out; @edns: NULL: without.  Returns its length. */
size_t dns_make_query(uint8_t out[DNS_QUERY_MAX], const uint8_t *query, const struct dns_question *q,
		      uint16_t id, uint16_t flags, const struct dns_edns *edns);
/** dns_make_empty() - an answer without records to @query, whose question is @q; @out has room for q->end.  Returns its length. */
size_t dns_make_empty(uint8_t *out, const uint8_t *query, const struct dns_question *q, unsigned rcode);
/**
 * dns_fit() - an answer as its asker understands it: with an OPT record of the gateway's if and only if it has EDNS, and cut to the question,
 * with TC, if it is longer than @max or was truncated before.
 * @m: @len bytes, with room for DNS_OPT_BYTES more; of dns_make_empty(), or what dns_parse_answer() found as @a
 * @a: NULL: it has no OPT record
 * @rcode: goes into it, up to DNS_BADVERS
 * @max: at least q->end + DNS_OPT_BYTES
 * Returns its new length.
 */
size_t dns_fit(uint8_t *m, size_t len, const struct dns_question *q, const struct dns_answer *a,
	       const struct dns_edns *edns, unsigned rcode, size_t max);
/** dns_udp_max() - bytes of an answer over UDP to who has said @edns. */
size_t dns_udp_max(const struct dns_edns *edns);

#endif
