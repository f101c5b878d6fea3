/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TAP devices of the host: a network interface whose cable is a descriptor (Linux, Documentation/networking/tuntap.rst).
 *
 * For those who have the rights: who may open /dev/net/tun, and either is the owner of the device (ip tuntap add ... user NAME) or
 * has CAP_NET_ADMIN.  Frames have hints in front (IFF_VNET_HDR), which are struct net_offload.
 */
#ifndef VIV_NET_TAP_H
#define VIV_NET_TAP_H

#include <net/if.h>

#include "net/port.h"

struct tap_name {
	bool is_bridge; /* a device of its own is put into the bridge @name; it is gone with the descriptor */
	char name[IFNAMSIZ]; /* of the device, or the bridge */
};

/** tap_parse() - "tap:NAME" or "bridge:NAME".  0, or -EINVAL with @err set. */
int tap_parse(const char *text, struct tap_name *out, struct error *err);

/**
 * tap_open() - the device, switched on if it is not.
 * @fd: receives a descriptor that does not block, close-on-exec
 * Returns 0 or -errno with @err set: what is not there, who may not, and what to do.
 */
int tap_open(const struct tap_name *name, int *fd, struct error *err);

/** net_port_tap() - a port over a device that tap_open() opened.  Takes @fd. */
int net_port_tap(struct net_port **out, struct loop *loop, int fd, const uint8_t mac[6],
		 struct error *err);

#endif
