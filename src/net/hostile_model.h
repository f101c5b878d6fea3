/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests: hostile frames for the lab of fabric_testing.h, and a model of its policy that shares nothing with it: what leaves the data
 * plane is read byte by byte, and who may send what to whom is written out as conditions.
 *
 * Each frame begins as a proper one between two random ends, then mostly gets something wrong: senders, targets, tags,
 * fragments, bits, lengths.  For each that comes out:
 *   - it came with a tag of its card's, if that has any, and leaves with the one of its network at the other card, or none
 *   - the machine it goes to is no other than the one with the address, or it is for all of the network
 *   - its sender is the port that sent it, with its own addresses, in its own network or over the gateway; of addresses that guests
 *     make themselves, each is the one's who asked for it first
 *   - the lab allows it, or it is the answer to something that the lab allowed and that came out before
 */
#ifndef VIV_NET_HOSTILE_MODEL_H
#define VIV_NET_HOSTILE_MODEL_H

#include "net/fabric_testing.h"

struct hostile_frame {
	unsigned from, to; /* ports; a trunk's frame may say another one of it by its tag */
	bool is_v6;
	uint16_t dport; /* of a proper one */
	struct frame frame;
	struct net_offload hints;
};

/** hostile_seed() - begin anew. @policy: of the lab, for addresses only; borrowed.  @announces: guests make addresses of their own. */
void hostile_seed(const struct policy *policy, uint64_t seed, bool announces);
/** hostile_rnd() - 0 to @below - 1. */
uint32_t hostile_rnd(uint32_t below);
/** hostile_proper() - one that a guest would send: the beginning of a TCP connection. */
void hostile_proper(struct hostile_frame *h);
void hostile_make(struct hostile_frame *h);
/** hostile_allows() - the lab does, from port to port. */
bool hostile_allows(int from, int to, unsigned proto, unsigned dport);
/** hostile_judge() - @s came out after @h went in: what is wrong with that, or NULL. */
const char *hostile_judge(const struct hostile_frame *h, const struct sent *s);
/** hostile_print() - @s, on standard output. */
void hostile_print(const struct sent *s);

#endif
