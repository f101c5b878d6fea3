/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/virtio_rng.h"

#include <errno.h>
#include <string.h>

enum { QUEUE_SIZE = 16 };
#define FILL_MAX (64 * KIB) /* a chain: a longer one gets less, as the driver must expect (5.4.6) */

struct virtio_rng {
	struct virtio_pci pci;
	struct rng_host {
		void (*fill)(void *ctx, uint8_t *buf, size_t len);
		void *ctx;
	} host;
};

// clang-format off
static const struct field virtio_rng_fields[] = {
	F_STRUCT(struct virtio_rng, pci, &virtio_pci_state),
	F_HOST(struct virtio_rng, host),
	F_END,
};
// clang-format on
static const struct state_desc virtio_rng_state = {
	.name = "virtio-rng",
	.version = 1,
	.size = sizeof(struct virtio_rng),
	.fields = virtio_rng_fields,
};

static int64_t handle(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	struct virtio_rng *g = container_of(v, struct virtio_rng, pci.v);
	uint64_t done = 0;

	(void)q;
	for (unsigned i = 0; i < e->nin && done < FILL_MAX; i++) {
		struct iovec *iov = &vq_in_iov(e)[i];
		size_t n = MIN((uint64_t)iov->iov_len, FILL_MAX - done);
		g->host.fill(g->host.ctx, iov->iov_base, n);
		done += n;
	}
	return (int64_t)done;
}

static void rng_kick(struct virtio_dev *v, unsigned q)
{
	virtio_serve(v, q, handle);
}

static void rng_config_read(struct virtio_dev *v, uint8_t *config)
{
	/* There is none. */
	(void)v;
	(void)config;
}

static void rng_reset(struct virtio_dev *v)
{
	/* No state of its own. */
	(void)v;
}

static const struct virtio_class rng_virtio_class = {
	.name = "virtio-rng",
	.id = VIRTIO_ID_RNG,
	.pci_class = 0x00ff00,
	.config_read = rng_config_read,
	.kick = rng_kick,
	.reset = rng_reset,
};

static void rng_destroy(struct device *d)
{
	struct virtio_rng *g = container_of(d, struct virtio_rng, pci.dev);

	virtio_pci_fini(&g->pci);
	free(g);
}

const struct device_class virtio_rng_class = {
	.name = "virtio-rng",
	.state = &virtio_rng_state,
	.reset = virtio_pci_device_reset,
	.after_load = virtio_pci_device_after_load,
	.destroy = rng_destroy,
	.pause = virtio_pci_device_pause,
	.resume = virtio_pci_device_resume,
};

int virtio_rng_create(struct virtio_rng **out, const struct dev_env *env, struct pci_bus *bus,
		      const char *id, const struct virtio_rng_config *cfg, struct error *err)
{
	static const uint16_t sizes[1] = { QUEUE_SIZE };
	struct virtio_rng *g = calloc(1, sizeof(*g));

	if (!g)
		return error_set(err, -ENOMEM, "out of memory");
	g->host.fill = cfg->fill;
	g->host.ctx = cfg->ctx;
	int r = virtio_pci_init(&g->pci, &virtio_rng_class, id, bus, cfg->slot, env,
				&rng_virtio_class, 0, sizes, 1, err);
	if (r < 0) {
		free(g);
		return r;
	}
	*out = g;
	return 0;
}

struct device *virtio_rng_device(struct virtio_rng *g)
{
	return &g->pci.dev;
}
