/* SPDX-License-Identifier: Apache-2.0 */
#include "net/host_watch.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/host.h"

/* All addresses, of both versions. */
static int ask_for_all(int fd)
{
	struct {
		struct nlmsghdr head;
		struct ifaddrmsg body;
	} q = { .head = { .nlmsg_len = sizeof(q),
			  .nlmsg_type = RTM_GETADDR,
			  .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP } };

	return send(fd, &q, sizeof(q), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int host_watch_open(void)
{
	struct sockaddr_nl all = { .nl_family = AF_NETLINK,
				   .nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR };
	int fd = host.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE);
	int r = fd < 0 ? -errno : 0;

	if (r == 0 && bind(fd, (const struct sockaddr *)&all, sizeof(all)) < 0)
		r = -errno;
	if (r == 0)
		r = ask_for_all(fd);
	if (r < 0 && fd >= 0)
		close(fd);
	return r < 0 ? r : fd;
}

static void take_address(const struct nlmsghdr *h,
			 void (*fn)(void *arg, const struct net_prefix *p), void *arg)
{
	const struct ifaddrmsg *m = NLMSG_DATA(h);
	size_t size = m->ifa_family == AF_INET ? 4 : m->ifa_family == AF_INET6 ? 16 : 0;
	int left = (int)IFA_PAYLOAD(h);

	if (!size || m->ifa_prefixlen > size * 8)
		return;
	/* Of a link between two ends, IFA_ADDRESS is the other end and IFA_LOCAL the own: both are no internet. */
	for (const struct rtattr *a = IFA_RTA(m); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
		if ((a->rta_type != IFA_ADDRESS && a->rta_type != IFA_LOCAL) || RTA_PAYLOAD(a) != size)
			continue;
		struct net_addr at = size == 4 ? net_addr_v4(RTA_DATA(a)) : net_addr_v6(RTA_DATA(a));
		struct net_prefix p = net_prefix_of(&at, m->ifa_prefixlen + (size == 4 ? 96u : 0u));
		fn(arg, &p);
	}
}

void host_watch_parse(const void *messages, size_t len,
		      void (*fn)(void *arg, const struct net_prefix *p), void *arg)
{
	for (const struct nlmsghdr *h = messages; NLMSG_OK(h, len); h = NLMSG_NEXT(h, len))
		if (h->nlmsg_type == RTM_NEWADDR &&
		    h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct ifaddrmsg)))
			take_address(h, fn, arg);
}

int host_watch_read(int fd, void (*fn)(void *arg, const struct net_prefix *p), void *arg)
{
	_Alignas(struct nlmsghdr)
		uint8_t buf[32 * KIB]; /* of the kernel's dumps (rtnetlink.c, netlink_dump()) */
	bool is_missing = false;

	for (;;) {
		struct sockaddr_nl from;
		socklen_t from_len = sizeof(from);
		ssize_t n = recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT, (struct sockaddr *)&from,
				     &from_len);
		if (n > 0 && from_len == sizeof(from) && !from.nl_pid)
			host_watch_parse(buf, (size_t)n, fn, arg);
		if (n > 0 || (n < 0 && errno == EINTR))
			continue;
		if (n < 0 && errno == ENOBUFS) { /* it had more to tell than room (netlink(7)) */
			is_missing = true;
			continue;
		}
		if (n == 0 || errno != EAGAIN)
			return n == 0 ? -EPIPE : -errno;
		return is_missing ? ask_for_all(fd) : 0;
	}
}
