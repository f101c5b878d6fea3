/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio console (virtio 1.2, 5.3): several ports, each over a struct char_dev.  Port 0 is the
 * console (hvc0); others have names, by which guests find them (/dev/virtio-ports/NAME).  Ports without
 * a backend are not shown.
 *
 * A terminal whose window changes is best the only port of its device: then its size is in
 * configuration space, which every driver reads right; the message of several-port devices has its two
 * numbers swapped in the Linux kernels of many years.
 */
#ifndef VIV_DEV_VIRTIO_VIRTIO_CONSOLE_H
#define VIV_DEV_VIRTIO_VIRTIO_CONSOLE_H

#include "char/chardev.h"
#include "dev/virtio/virtio_pci.h"

#define VIRTIO_CONSOLE_PORTS_MAX 4
#define VIRTIO_CONSOLE_NAME_MAX	 63
#define VIRTIO_PORT_GUEST_AGENT	 "org.qemu.guest_agent.0"

struct virtio_console_port {
	struct char_dev *chr; /* borrowed, outlives the device; NULL: nothing connected */
	const char *name;     /* of ports from 1 on, up to 63 bytes; NULL: none */
	bool is_console;      /* a terminal (port 0 is one in any case) */
};

struct virtio_console_config {
	struct virtio_console_port ports[VIRTIO_CONSOLE_PORTS_MAX];
	unsigned nports; /* 1..VIRTIO_CONSOLE_PORTS_MAX */
	int slot;	 /* on the PCI bus; -1: any */
};

struct virtio_console;
extern const struct device_class virtio_console_class;

/** virtio_console_create() - @id: instance name, "virtio-console0".  0 or -errno with @err set. */
int virtio_console_create(struct virtio_console **out, const struct dev_env *env, struct pci_bus *bus,
			  const char *id, const struct virtio_console_config *cfg, struct error *err);
struct device *virtio_console_device(struct virtio_console *c);

/** virtio_console_is_open() - has a process in the guest opened port @i (the agent is there)? */
bool virtio_console_is_open(const struct virtio_console *c, unsigned i);

#endif
