/* SPDX-License-Identifier: Apache-2.0 */
#include "net/netns_testing.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool is_fine = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return is_fine;
}

bool netns_enter(void)
{
	char uid[64], gid[64];

	snprintf(uid, sizeof(uid), "0 %u 1", getuid());
	snprintf(gid, sizeof(gid), "0 %u 1", getgid());
	return unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 &&
	       write_file("/proc/self/setgroups", "deny") &&
	       write_file("/proc/self/uid_map", uid) && write_file("/proc/self/gid_map", gid);
}

static bool ask(unsigned long request, void *arg)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool is_fine = fd >= 0 && ioctl(fd, request, arg) == 0;

	if (fd >= 0)
		close(fd);
	return is_fine;
}

bool netns_up(const char *interface)
{
	struct ifreq r = { 0 };

	snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", interface);
	if (!ask(SIOCGIFFLAGS, &r))
		return false;
	r.ifr_flags |= IFF_UP;
	return ask(SIOCSIFFLAGS, &r);
}

bool netns_add_address(const char *label, const char *ip, const char *mask)
{
	struct ifreq r = { 0 };
	struct sockaddr_in *a = (void *)&r.ifr_addr;

	snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", label);
	a->sin_family = AF_INET;
	if (inet_pton(AF_INET, ip, &a->sin_addr) != 1 || !ask(SIOCSIFADDR, &r))
		return false;
	return !mask || (inet_pton(AF_INET, mask, &a->sin_addr) == 1 && ask(SIOCSIFNETMASK, &r));
}

bool netns_route_all(const char *interface)
{
	char name[IFNAMSIZ];
	struct rtentry r = { .rt_flags = RTF_UP, .rt_dev = name };

	snprintf(name, sizeof(name), "%s", interface);
	r.rt_dst.sa_family = r.rt_genmask.sa_family = AF_INET;
	return ask(SIOCADDRT, &r);
}
