/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the process of a lab: labd.c (life and loop), labd_port.c (frames), labd_uplink.c (ways out), labd_dns.c (names),
 * labd_ctl.c (commands), labd_machines.c (machines that come and go). */
#ifndef VIV_NET_LABD_INT_H
#define VIV_NET_LABD_INT_H

#include <poll.h>

#include "base/bytes.h"
#include "net/capture.h"
#include "net/dns_tcp.h"
#include "net/fabric.h"
#include "net/identity.h"
#include "net/labd.h"
#include "net/link.h"
#include "net/resolver.h"
#include "net/uplink.h"
#include "net/uplink_tap.h"

struct lab_frame {	 /* that waits */
	int64_t at_ns;	 /* when faults let it go */
	uint64_t number; /* frames of the same time keep their order */
	unsigned port;
	bool is_in; /* from the machine */
	uint32_t len;
	struct net_offload off;
	uint8_t room[FABRIC_HEADROOM];
	uint8_t data[];
};

struct uplink_port; /* labd_uplink.c's */
struct lab_capture; /* labd_capture.c's */

struct lab_port {
	struct net_link link;		     /* its fd -1: no machine */
	struct lab_frame *queue[LABD_QUEUE]; /* the link takes no more */
	unsigned head, queued;
	size_t queued_bytes;
	struct fault_link in, out;
	unsigned held; /* by faults */
	size_t held_bytes;
	uint64_t dropped;      /* no room in a queue */
	uint64_t lost;	       /* by faults */
	struct uplink *uplink; /* NULL: none */
	struct uplink_port *uplink_port;
	unsigned pfd, nupfds; /* in the round's set; nupfds of the uplink behind it */
};
/* Of a trunk the first has the link, what waits for it, and the faults; uplinks are of each. */

struct lab_client {
	int fd; /* -1: unused */
	struct bytes in, out;
	size_t out_off;
	int pass_fd; /* goes with the next byte of @out; -1: none */
	int got_fd;  /* came with a command; -1: none */
	bool is_closing;
	unsigned pfd;
};

struct labd {
	struct lab *lab; /* its policy is the fabric's */
	struct fabric *f;
	struct resolver *resolver;
	struct dns_tcp *dns_tcp;
	struct lab_port *ports; /* as the policy's; POLICY_PORTS_MAX, as more may come */
	unsigned nports;
	struct lab_frame **held; /* a heap, the earliest first */
	unsigned nheld, held_cap;
	uint64_t number;
	int control_fd;
	int64_t accept_at_ns;		      /* not before: the last try failed */
	json_t *origins[POLICY_MACHINES_MAX]; /* the records that machines came with; NULL: it is the file's */
	struct lab_client clients[LABD_CLIENTS];
	struct pollfd *pfds, *live; /* @live: those with a descriptor */
	unsigned npfds, pfds_cap;   /* at most RLIMIT_NOFILE: poll(2) refuses more */
	unsigned uplink_sockets;    /* uplink_config.max_sockets of each */
	struct lab_tap {
		struct labd *d;
		unsigned network, pfd;
		struct tap_uplink *uplink; /* NULL: the network has none */
	} taps[POLICY_NETWORKS_MAX];
	int host_watch_fd;   /* -1: none */
	bool has_namespaces; /* confine.h */
	unsigned host_watch_pfd;
	bool is_stopping;
	struct lab_capture *captures[LABD_CAPTURES];
	unsigned ncaptures;
	struct fabric_verdict verdict; /* of the frame that is on its way */
	bool has_verdict;
	struct {
		uint8_t room[FABRIC_HEADROOM];
		uint8_t b[NET_FRAME_MAX];
	} rx, tx; /* from a machine; from an uplink */
	struct net_offload rx_off;
};

static inline struct lab_port *labd_card(const struct labd *d, unsigned port)
{
	return &d->ports[fabric_policy(d->f)->ports[port].card];
}

int64_t labd_now_ns(void);
/** labd_now_ms() - for modules that are told the time; @ctx is not looked at. */
int64_t labd_now_ms(void *ctx);

/** labd_create_dns() - the gateways' DNS.  0 or -ENOMEM. */
int labd_create_dns(struct labd *d, const char *resolv_conf);
/** labd_dns(), labd_dns_tcp() - fabric_ops.dns and dns_tcp. */
void labd_dns(void *ctx, unsigned port, const struct packet *p, const uint8_t *payload, size_t len);
void labd_dns_tcp(void *ctx, unsigned port, const struct packet *p);

/** labd_frame_to() - a frame of the data plane for the machine at @card: faults, then its link. */
void labd_frame_to(struct labd *d, unsigned card, const struct net_offload *off,
		   const uint8_t *frame, size_t len);
/** labd_read_port() - frames from its machine. */
void labd_read_port(struct labd *d, unsigned port);
void labd_flush_port(struct labd *d, unsigned port);
/** labd_has_machine() - somebody is at the other end of @p. */
static inline bool labd_has_machine(const struct lab_port *p)
{
	return p->link.fd >= 0;
}
void labd_close_port(struct labd *d, unsigned port);
/** labd_release() - what faults held back until now.  Returns the time of the next one, INT64_MAX: none. */
int64_t labd_release(struct labd *d, int64_t now_ns);
bool labd_is_congested(const struct lab_port *p);

/** labd_input() - a frame from the machine at @port, past its faults. */
void labd_input(struct labd *d, unsigned port, const struct net_offload *off, uint8_t *frame, size_t len);

/** labd_create_uplink() - the way out of the card at @port, by NAT; 0, too, where its network has another one. */
int labd_create_uplink(struct labd *d, unsigned port, struct error *err);
int labd_add_forward(struct labd *d, const struct policy_forward *w, struct error *err);
/** labd_create_tap() - the way out of @network, by an interface of the host's. */
int labd_create_tap(struct labd *d, unsigned network, struct error *err);
/** labd_to_uplink() - fabric_ops.uplink. */
void labd_to_uplink(void *ctx, unsigned network, const struct net_offload *off, uint8_t *frame,
		    size_t len);
/**
 * labd_keep_descriptor() - of those that came with @msg and earlier ones only the last stays open.  CMSG_SPACE() of one has room for two.
 * @kept: receives it; -1: there is none
 */
void labd_keep_descriptor(struct msghdr *msg, int *kept);
/**
 * labd_set_machines() - a policy with machines that came or went.  Takes @p, also on failure.
 * @faults: by port, of those that came
 * Returns 0 or -errno with @err set: machines that came may then be there without a way out.
 */
int labd_set_machines(struct labd *d, struct policy *p, const struct faults *faults, struct error *err);

/* ---- machines that the file does not name (labd_machines.c) ---- */

/* By what one is taken in: a record, or @networks, an array of names, because a person says so. */
struct lab_place {
	json_t *record, *networks; /* borrowed; one of them is NULL */
	bool is_moving; /* it has its addresses already, and keeps them (identity_move()) ... */
	bool has_rules; /* ... and its rights */
};
/** labd_take_in() - machine @name, which the lab does not know.  0 or -errno with @err set. */
int labd_take_in(struct labd *d, const char *name, const struct lab_place *at, struct error *err);
/** labd_record() - of a machine, as it is now. */
json_t *labd_record(const struct labd *d, unsigned machine);
/** labd_announced() - the addresses that the guest at @port has made, as texts. */
json_t *labd_announced(const struct labd *d, unsigned port);
/* Commands, as labd_command(). */
int labd_admit(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
	       int *pass_fd, struct error *err);
int labd_forget_machine(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
			int *pass_fd, struct error *err);
int labd_tell_identity(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		       int *pass_fd, struct error *err);

/** labd_command() - @request of @client to @reply, both JSON objects; @pass_fd: receives a descriptor to go with it, or -1. */
int labd_command(struct labd *d, struct lab_client *client, json_t *request, json_t *reply,
		 int *pass_fd, struct error *err);

/** labd_captured() - a frame for captures: before the filter from, or after it to, @port or the uplink of @network. */
void labd_captured(struct labd *d, bool is_after, int port, unsigned network, const uint8_t *frame,
		   size_t len);
/** labd_capture() - begin one.  Takes @dir_fd. */
int labd_capture(struct labd *d, json_t *request, int client, int dir_fd, struct error *err);
/** labd_end_captures() - those that end with @client, -1: that stay.  @reply: receives their sums; NULL: nobody asks. */
int labd_end_captures(struct labd *d, int client, json_t *reply, struct error *err);
/** labd_capture_card() - the card at @port is another one than before. */
void labd_capture_card(struct labd *d, unsigned port);
/** labd_capture_forget() - @machine is gone. */
void labd_capture_forget(struct labd *d, unsigned machine);
void labd_flush_captures(struct labd *d);

#endif
