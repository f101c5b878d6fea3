/* SPDX-License-Identifier: Apache-2.0 */
#include "net/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/host.h"

#define DEVICE	  "/dev/net/tun"
#define OFFLOADS  (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
#define OWN_NAMES "viv%d" /* the kernel puts the first free number in */

int tap_parse(const char *text, struct tap_name *out, struct error *err)
{
	struct tap_name t = { .is_bridge = strncmp(text, "bridge:", 7) == 0 };
	const char *name = t.is_bridge ? text + 7 : strncmp(text, "tap:", 4) == 0 ? text + 4 : "";

	/* As the kernel's dev_valid_name(), and none of its patterns. */
	if (!*name || strlen(name) >= sizeof(t.name) || strpbrk(name, "/:% \t\n") ||
	    !strcmp(name, ".") || !strcmp(name, ".."))
		return error_set(err, -EINVAL, "\"%s\" names no interface; write tap:NAME or bridge:NAME, a NAME of at most 15 letters, as in ip link",
				 text);
	strcpy(t.name, name);
	*out = t;
	return 0;
}

static int open_device(int *fd, struct error *err)
{
	*fd = host.open(DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0);
	if (*fd >= 0)
		return 0;
	int e = -errno;
	if (e == -ENOENT || e == -ENODEV)
		return error_set(err, e,
				 "this host has no " DEVICE
				 ", which tap and bridge need; sudo modprobe tun may make it");
	if (e == -EACCES || e == -EPERM)
		return error_set(
			err, e,
			"you may not open " DEVICE
			": tap and bridge are for those who have the rights of root; --net nat and "
			"labs need none");
	return error_set(err, e, "cannot open " DEVICE ": %s", strerror(-e));
}

static int explain_attach(const struct tap_name *t, int e, struct error *err)
{
	if (e == -EPERM && t->is_bridge)
		return error_set(err, e,
				 "you may not make an interface for bridge %s: that needs root "
				 "(CAP_NET_ADMIN); a tap device that root makes "
				 "for you, and puts into the bridge, does not: sudo ip tuntap add "
				 "NAME mode tap user $USER",
				 t->name);
	if (e == -EPERM)
		return error_set(err, e,
				 "you may not use interface %s: it is not yours, or not there; "
				 "root makes it for you: sudo ip tuntap add "
				 "%s mode tap user $USER && sudo ip link set %s up",
				 t->name, t->name, t->name);
	if (e == -EBUSY)
		return error_set(err, e, "interface %s is in use by another machine or program", t->name);
	if (e == -EINVAL)
		return error_set(err, e, "interface %s is no tap device of one queue; ip -d link show %s tells what it is",
				 t->name, t->name);
	return error_set(err, e, "cannot use interface %s: %s", t->name, strerror(-e));
}

/* Who may use a device may still not switch it on. */
static int switch_on(int control_fd, struct ifreq *r, struct error *err)
{
	if (host.ioctl(control_fd, SIOCGIFFLAGS, r) < 0)
		return error_set(err, -errno, "cannot ask for the state of interface %s: %s",
				 r->ifr_name, strerror(errno));
	if (r->ifr_flags & IFF_UP)
		return 0;
	r->ifr_flags |= IFF_UP;
	if (host.ioctl(control_fd, SIOCSIFFLAGS, r) < 0)
		return error_set(
			err, -errno,
			"interface %s is down, and you may not change that: sudo ip link set %s up",
			r->ifr_name, r->ifr_name);
	return 0;
}

static int put_into_bridge(int control_fd, const struct tap_name *t, struct ifreq *r, struct error *err)
{
	struct ifreq b = { 0 };

	strcpy(b.ifr_name, t->name);
	if (host.ioctl(control_fd, SIOCGIFINDEX, r) < 0)
		return error_set(err, -errno, "interface %s is gone again: %s", r->ifr_name,
				 strerror(errno));
	b.ifr_ifindex = r->ifr_ifindex;
	if (host.ioctl(control_fd, SIOCBRADDIF, &b) == 0)
		return 0;
	int e = -errno;
	if (e == -ENODEV)
		return error_set(err, e,
				 "there is no bridge %s; sudo ip link add %s type bridge makes one",
				 t->name, t->name);
	if (e == -EOPNOTSUPP || e == -EINVAL)
		return error_set(err, e, "interface %s is no bridge", t->name);
	return error_set(err, e, "cannot put an interface into bridge %s: %s", t->name, strerror(-e));
}

static int set_up(const struct tap_name *t, int fd, struct error *err)
{
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int header = sizeof(struct net_offload);

	strcpy(r.ifr_name, t->is_bridge ? OWN_NAMES : t->name);
	if (host.ioctl(fd, TUNSETIFF, &r) < 0)
		return explain_attach(t, -errno, err);
	if (host.ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 ||
	    host.ioctl(fd, TUNSETOFFLOAD, (void *)(uintptr_t)OFFLOADS) < 0)
		return error_set(err, -errno, "interface %s takes no long frames: %s", r.ifr_name,
				 strerror(errno));
	_cleanup_close_ int control_fd = host.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (control_fd < 0)
		return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	int e = t->is_bridge ? put_into_bridge(control_fd, t, &r, err) : 0;
	return e == 0 ? switch_on(control_fd, &r, err) : e;
}

int tap_open(const struct tap_name *name, int *fd, struct error *err)
{
	int r = open_device(fd, err);

	if (r < 0)
		return r;
	r = set_up(name, *fd, err);
	if (r < 0) {
		close(*fd);
		*fd = -1;
	}
	return r;
}
