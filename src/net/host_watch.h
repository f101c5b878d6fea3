/* SPDX-License-Identifier: Apache-2.0 */
/*
 * This host's addresses, as they come: rtnetlink(7).  A laptop that joins another network, or a VPN that comes up, must not
 * become an internet that a lab was let to (policy_block()).
 *
 * Only the kernel is believed.  The socket is to be opened before the process confines itself.
 */
#ifndef VIV_NET_HOST_WATCH_H
#define VIV_NET_HOST_WATCH_H

#include "net/addr.h"

/** host_watch_open() - a socket that is readable when addresses come, and at first with all that are there.  Or -errno. */
int host_watch_open(void);
/**
 * host_watch_read() - all that waits in @fd.
 * @fn: is called with the network of each address
 * Returns 0, or -errno: nothing is told any more.
 */
int host_watch_read(int fd, void (*fn)(void *arg, const struct net_prefix *p), void *arg);
/** host_watch_parse() - the addresses in messages of @len bytes, aligned as struct nlmsghdr; what is malformed ends it. */
void host_watch_parse(const void *messages, size_t len,
		      void (*fn)(void *arg, const struct net_prefix *p), void *arg);

#endif
