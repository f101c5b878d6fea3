/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process of a lab, `viv net lab`: the data plane (fabric.h) between the sockets of machines and uplinks to the
 * host's network, and a control socket.
 *
 *   machine --- frames (port.h) --- port: queue, faults ---+
 *   machine --- ...                                        +-- fabric --- uplink of each card that has one --- host
 *   `viv net` -- control socket: one JSON object a line ---+        \--- resolver --- host's resolver
 *
 * Bounds, for each port: LABD_QUEUE frames and LABD_QUEUE_BYTES that its socket does not take, as many that faults hold
 * back; LABD_BATCH frames a round; what fabric.h, conntrack.h, resolver.h and tcp_nat.h say.  What is more is dropped and
 * counted; nobody waits for a port that does not read.
 *
 * Commands: {"cmd": "attach", "machine": M, "network": N} gives a packet socket and the machine's record
 * with the answer; with "identity", a record, a machine is taken in that the lab does not know; admit takes one in with
 * "machine" and "networks", or as it was in another lab, with "identity" and, if true, its "rules", and gives its record; identity and forget with "machine"; show; allow and deny with
 * "rule", "what", "names"; remove with "id"; quarantine with "machine", "on"; fault with "card", "settings"; stop; capture with
 * "what", "name", "side" (before, after, both), "filter", "rotate", "keep", "stay" and a folder's descriptor, and end, which ends this client's.
 */
#ifndef VIV_NET_LABD_H
#define VIV_NET_LABD_H

#include <jansson.h>

#include "net/labfile.h"

#define LABD_QUEUE	 256
#define LABD_QUEUE_BYTES (2 * MIB)
#define LABD_BATCH	 64
#define LABD_CLIENTS	 16
#define LABD_LINE_MAX	 (4 * MIB)
#define LABD_CAPTURES	 8

struct labd_config {
	struct lab *lab;	 /* taken */
	int control_fd;		 /* a listening stream socket; taken */
	int ready_fd;		 /* gets "ok\n" or one sentence, then is closed; -1: none */
	const char *resolv_conf; /* the host's */
	bool is_confined;	 /* confine.h, once it serves */
	bool watches_host;	 /* networks of this host are denied as they come (host_watch.h) */
};

/** labd_main() - serve until told to stop.  Returns the process's status. */
int labd_main(const struct labd_config *cfg);

struct labd_attach {
	const char *machine, *network;
	json_t *identity; /* for a machine that the lab may not know: what it is taken in by (identity.h); NULL: none */
};
/**
 * labd_attach() - connect a machine's card; the machine's side.
 * @control_fd: connected to the control socket
 * @mac: receives the card's
 * @fd: receives the packet socket, for net_port_socket()
 * @identity: receives the machine's record, to be json_decref'ed; NULL: nobody wants it
 * Returns 0 or -errno with @err set: -EREMOTEIO with the lab's own sentence.
 */
int labd_attach(int control_fd, const struct labd_attach *a, uint8_t mac[6], int *fd,
		json_t **identity, struct error *err);
/** labd_identity() - the record of a machine as it is now. */
int labd_identity(int control_fd, const char *machine, json_t **identity, struct error *err);
/** labd_forget() - a copy that is off and does not come again. */
int labd_forget(int control_fd, const char *machine, struct error *err);

#endif
