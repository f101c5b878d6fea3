/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/virtio_9p.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"

#define F_MOUNT_TAG VIRTIO_F(0)

enum { QUEUE_SIZE = 128 };
_Static_assert(QUEUE_SIZE == SHARE_REQS_MAX, "as many chains as a port takes requests");

struct __attribute__((packed)) config_space {
	uint16_t tag_len;
	char tag[SHARE_TAG_MAX]; /* without a NUL */
};

struct virtio_9p {
	struct virtio_pci pci;
	struct p9_host {
		struct share_port *port;
		unsigned in_flight;
		char tag[SHARE_TAG_MAX + 1];
	} host;
};

/* One request under way. */
struct p9_io {
	struct virtio_9p *p;
	struct vq_elem elem; /* iov is the array below */
	struct share_req req;
	struct iovec iov[];
};

// clang-format off
static const struct field virtio_9p_fields[] = {
	F_STRUCT(struct virtio_9p, pci, &virtio_pci_state),
	F_HOST(struct virtio_9p, host),
	F_END,
};
// clang-format on
static const struct state_desc virtio_9p_state = {
	.name = "virtio-9p",
	.version = 1,
	.size = sizeof(struct virtio_9p),
	.fields = virtio_9p_fields,
};

static struct virtio_9p *p9_of(struct virtio_dev *v)
{
	return container_of(v, struct virtio_9p, pci.v);
}

static void on_done(struct share_req *req, size_t written)
{
	struct p9_io *io = req->owner;
	struct virtio_9p *p = io->p;

	assert(p->host.in_flight);
	p->host.in_flight--;
	vq_put(&p->pci.v.vqs[0], &io->elem, written);
	virtio_flush(&p->pci.v, 0);
	free(io);
}

static int64_t handle(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	struct virtio_9p *p = p9_of(v);
	unsigned n = e->nout + e->nin;

	if (e->out_bytes < P9_HEADER || e->in_bytes < P9_ERROR_LEN) {
		/* No answer can be given but this. */
		v->vqs[q].is_broken = true;
		log_guest("virtio-9p", "%s: a chain without a message, or without room for an answer",
			  p->pci.dev.id);
		return 0;
	}
	struct p9_io *io = malloc(sizeof(*io) + n * sizeof(struct iovec));

	if (!io) {
		uint8_t header[P9_HEADER], text[P9_ERROR_LEN];
		uint16_t tag;

		iov_to_buf(e->iov, e->nout, 0, header, sizeof(header));
		memcpy(&tag, header + 5, sizeof(tag));
		p9_error(text, tag, ENOMEM);
		return (int64_t)iov_from_buf(vq_in_iov(e), e->nin, 0, text, sizeof(text));
	}
	io->p = p;
	io->elem = *e;
	io->elem.iov = io->iov;
	memcpy(io->iov, e->iov, n * sizeof(struct iovec));
	io->req = (struct share_req){ .iov = io->iov,
				      .nout = e->nout,
				      .nin = e->nin,
				      .out_bytes = e->out_bytes,
				      .in_bytes = e->in_bytes,
				      .done = on_done,
				      .owner = io };
	p->host.in_flight++;
	p->host.port->ops->submit(p->host.port, &io->req);
	return VIRTIO_KEPT;
}

/* ---- virtio_class ---- */

static void p9_kick(struct virtio_dev *v, unsigned q)
{
	virtio_serve(v, q, handle);
}

static void p9_config_read(struct virtio_dev *v, uint8_t *config)
{
	const struct virtio_9p *p = p9_of(v);
	struct config_space c = { .tag_len = (uint16_t)strlen(p->host.tag) };

	memcpy(c.tag, p->host.tag, c.tag_len);
	memcpy(config, &c, sizeof(c));
}

static void p9_drain(struct virtio_dev *v)
{
	struct virtio_9p *p = p9_of(v);

	if (p->host.in_flight)
		p->host.port->ops->drain(p->host.port);
}

static void p9_reset(struct virtio_dev *v)
{
	p9_drain(v);
	p9_of(v)->host.port->ops->reset(p9_of(v)->host.port);
}

static const struct virtio_class p9_virtio_class = {
	.name = "virtio-9p",
	.id = VIRTIO_ID_9P,
	.pci_class = 0x018000, /* mass storage, of a kind that has no number */
	.config_len = sizeof(struct config_space),
	.config_read = p9_config_read,
	.kick = p9_kick,
	.reset = p9_reset,
	.pause = p9_drain,
};

/* ---- device ---- */

static void p9_destroy(struct device *d)
{
	struct virtio_9p *p = container_of(d, struct virtio_9p, pci.dev);

	p9_drain(&p->pci.v);
	virtio_pci_fini(&p->pci);
	free(p);
}

const struct device_class virtio_9p_class = {
	.name = "virtio-9p",
	.state = &virtio_9p_state,
	.reset = virtio_pci_device_reset,
	.after_load = virtio_pci_device_after_load,
	.destroy = p9_destroy,
	.pause = virtio_pci_device_pause,
	.resume = virtio_pci_device_resume,
};

int virtio_9p_create(struct virtio_9p **out, const struct dev_env *env, struct pci_bus *bus,
		     const char *id, const struct virtio_9p_config *cfg, struct error *err)
{
	static const uint16_t sizes[1] = { QUEUE_SIZE };
	struct virtio_9p *p = calloc(1, sizeof(*p));

	if (!p)
		return error_set(err, -ENOMEM, "out of memory");
	p->host.port = cfg->port;
	memcpy(p->host.tag, cfg->tag, strnlen(cfg->tag, SHARE_TAG_MAX));
	int r = virtio_pci_init(&p->pci, &virtio_9p_class, id, bus, cfg->slot, env,
				&p9_virtio_class, F_MOUNT_TAG, sizes, 1, err);
	if (r < 0) {
		free(p);
		return r;
	}
	*out = p;
	return 0;
}

struct device *virtio_9p_device(struct virtio_9p *p)
{
	return &p->pci.dev;
}
