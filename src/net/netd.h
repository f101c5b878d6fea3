/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network process, `viv net`: user-mode NAT (libslirp) for one guest network card.
 *
 *   guest 10.0.2.15/24 (DHCP), fec0::/64     10.0.2.2  the host and the way out
 *                                            10.0.2.3  DNS, answered by the host's resolver
 *
 * It runs alone, holding nothing of the machine but the frame socket, and ends when that closes.
 *
 *   machine                          viv net
 *     netd_spawn() --- fork, exec --> netd_cli(): reads options, opens forwards
 *                  <-- "ok\n" or a sentence on the ready pipe
 *     net_port_socket(fd) <== frames ==> slirp
 */
#ifndef VIV_NET_NETD_H
#define VIV_NET_NETD_H

#include <netinet/in.h>
#include <sys/types.h>

#include "base/error.h"

#define NETD_FORWARDS_MAX 64

struct netd_forward {
	bool is_udp;
	struct sockaddr_storage host; /* AF_INET or AF_INET6 */
	struct in_addr guest;	      /* 0: whoever got the first DHCP address */
	uint16_t guest_port;
};

struct netd_config {
	int fd;		    /* SOCK_SEQPACKET to the machine; taken */
	int ready_fd;	    /* gets "ok\n" or one sentence, then is closed; -1: none */
	bool is_restricted; /* the guest reaches only the virtual host, and forwards come in */
	bool no_ipv6;
	bool no_host_loopback; /* 10.0.2.2 does not lead to the host's 127.0.0.1 */
	int tunnel_fd;	       /* a listening UNIX socket for net/tunnel.h; taken; -1: none */
	struct netd_forward forwards[NETD_FORWARDS_MAX];
	unsigned nforwards;
};

/**
 * netd_parse_forward() - "[tcp:|udp:][HOSTADDR:]HOSTPORT:[GUESTADDR:]GUESTPORT".
 * HOSTADDR is 127.0.0.1 when left out; IPv6 in brackets.  Returns 0, or -EINVAL with @err set.
 */
int netd_parse_forward(const char *text, struct netd_forward *out, struct error *err);

/** netd_main() - serve until the socket closes.  Returns the process's status: 0, or 1 after one sentence to
 * @ready_fd or, without it, to stderr. */
int netd_main(const struct netd_config *cfg);

/** netd_cli() - `viv net ...`: @argv[0] is the verb.  Returns the process's status (2: bad usage). */
int netd_cli(int argc, char **argv);

/* ---- from the machine's side ---- */

struct netd_options {
	const char *exe; /* program; NULL: /proc/self/exe */
	bool is_restricted, no_ipv6, no_host_loopback;
	const char *const *forwards; /* texts for netd_parse_forward */
	unsigned nforwards;
	int tunnel_fd; /* as in struct netd_config; borrowed; 0 or less: none */
	/* If this process logs to files (base/log.h), so does that one, from the same level on. */
};

/**
 * netd_spawn() - start `EXE net --fd N ...` and wait until it serves.
 * @fd: receives the machine's end of the socket, close-on-exec
 * @pid: receives the child, to be waited for
 * The child ends with its parent: when the socket closes, and by a signal when the calling THREAD
 * ends; so call it from one that lives as long as the process.  It is in a session of its own: keys
 * typed on the terminal don't reach it.
 * Returns 0, or -errno with the child's sentence in @err and no child left.
 */
int netd_spawn(const struct netd_options *o, int *fd, pid_t *pid, struct error *err);

/**
 * netd_begin(), netd_await() - the two halves of it: the child comes up while its parent does something else.  What is sent to it
 * waits in the socket.
 * @pid: 0: it is another's child, who sees to its end
 * @ready_fd: received from the one, taken by the other; if netd_await() fails, no child is left, and @fd is still the caller's
 */
int netd_begin(const struct netd_options *o, int *fd, pid_t *pid, int *ready_fd, struct error *err);
int netd_await(int ready_fd, pid_t pid, struct error *err);

#endif
