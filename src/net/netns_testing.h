/* SPDX-License-Identifier: Apache-2.0 */
/* For tests: a network namespace of the test's own, in which it is root, without any rights on the host. */
#ifndef VIV_NET_NETNS_TESTING_H
#define VIV_NET_NETNS_TESTING_H

#include <stdbool.h>

/** netns_enter() - this process, which has one thread, is root of new user and network namespaces. False: this host does not let it. */
bool netns_enter(void);
/** netns_up() - the interface is.  False: that failed, as below. */
bool netns_up(const char *interface);
/** netns_add_address() - @label: "lo:1"; @mask: NULL: as the kernel likes it. */
bool netns_add_address(const char *label, const char *ip, const char *mask);
/** netns_route_all() - all of IPv4 goes out by @interface. */
bool netns_route_all(const char *interface);

#endif
