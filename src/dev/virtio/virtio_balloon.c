/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The statistics queue works backwards: the driver leaves one buffer there, filled; the device gives it back to
 * ask for the next.  So the buffer is read when it comes (has_stats) but stays in the ring until then.
 */
#include "dev/virtio/virtio_balloon.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

#define F_STATS_VQ	 VIRTIO_F(1)
#define F_DEFLATE_ON_OOM VIRTIO_F(2)

enum { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_STATS, NQUEUES, QUEUE_SIZE = 128 };
enum { PAGES_MAX = 65536 }; /* a chain */

struct config_space {
	uint32_t num_pages, actual;
};
struct __attribute__((packed)) stat {
	uint16_t tag;
	uint64_t value;
};

struct virtio_balloon {
	struct virtio_pci pci;
	uint32_t num_pages; /* wanted */
	uint32_t actual;
	bool has_stats;	     /* the waiting buffer of the statistics queue was read */
	uint8_t reserved[7]; /* zero */
	struct balloon_host {
		void (*release)(void *ctx, gpa_t gpa, uint64_t len);
		void *ctx;
		struct iovec *iov; /* VQ_IOV_MAX */
		uint64_t stats[BALLOON_STATS];
	} host;
};

static int check_state(const void *obj, struct error *err)
{
	const struct virtio_balloon *b = obj;

	for (unsigned i = 0; i < sizeof(b->reserved); i++)
		if (b->reserved[i])
			return error_set(err, -EINVAL, "virtio-balloon has reserved bytes set");
	return 0;
}

// clang-format off
static const struct field virtio_balloon_fields[] = {
	F_STRUCT(struct virtio_balloon, pci, &virtio_pci_state),
	F_U32(struct virtio_balloon, num_pages),
	F_U32(struct virtio_balloon, actual),
	F_BOOL(struct virtio_balloon, has_stats),
	F_BYTES(struct virtio_balloon, reserved),
	F_HOST(struct virtio_balloon, host),
	F_END,
};
// clang-format on
static const struct state_desc virtio_balloon_state = {
	.name = "virtio-balloon",
	.version = 1,
	.size = sizeof(struct virtio_balloon),
	.fields = virtio_balloon_fields,
	.check = check_state,
};

static struct virtio_balloon *balloon_of(struct virtio_dev *v)
{
	return container_of(v, struct virtio_balloon, pci.v);
}

/* ---- pages ---- */

static void release(struct virtio_balloon *b, gpa_t gpa, uint64_t len)
{
	struct guest_ram *ram = b->pci.v.host.ram;
	struct iovec iov;
	unsigned n = 0;

	/* Only writable RAM, all of it in one region. */
	if (!len || ram_iov(ram, gpa, len, true, &iov, 1, &n) < 0 || iov.iov_len != len) {
		if (len)
			log_guest("virtio-balloon", "page %#llx is not RAM", (unsigned long long)gpa);
		return;
	}
	b->host.release(b->host.ctx, gpa, len);
	ram_note_write(ram, gpa, len);
}

/* Page numbers, neighbours taken together; a run with a page outside of RAM is refused as a whole. */
static int64_t handle_inflate(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	struct virtio_balloon *b = balloon_of(v);
	gpa_t run = 0;
	uint64_t len = 0;
	uint32_t pfns[256];

	(void)q;
	for (size_t off = 0; off < PAGES_MAX * 4; off += sizeof(pfns)) {
		size_t n = iov_to_buf(e->iov, e->nout, off, pfns, sizeof(pfns)) / 4;
		for (size_t i = 0; i < n; i++) {
			gpa_t gpa = (gpa_t)pfns[i] << 12;
			if (!len || gpa != run + len) {
				release(b, run, len);
				run = gpa;
				len = 0;
			}
			len += GUEST_PAGE_SIZE;
		}
		if (n < ARRAY_SIZE(pfns))
			break;
	}
	release(b, run, len);
	return 0;
}

static int64_t handle_deflate(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	/* The pages come back as they are touched. */
	(void)v;
	(void)q;
	(void)e;
	return 0;
}

/* ---- statistics ---- */

static void read_stats(struct virtio_balloon *b)
{
	struct virtqueue *vq = virtio_vq(&b->pci.v, QUEUE_STATS);
	struct vq_elem e = { .iov = b->host.iov };
	struct stat s;

	if (!vq || b->has_stats || vq_peek(vq, &e) <= 0) {
		virtio_flush(&b->pci.v, QUEUE_STATS);
		return;
	}
	b->has_stats = true;
	for (unsigned i = 0; i < 64; i++) {
		if (iov_to_buf(e.iov, e.nout, i * sizeof(s), &s, sizeof(s)) != sizeof(s))
			break;
		if (s.tag < BALLOON_STATS)
			b->host.stats[s.tag] = s.value;
	}
}

void virtio_balloon_poll_stats(struct virtio_balloon *b)
{
	struct virtqueue *vq = virtio_vq(&b->pci.v, QUEUE_STATS);
	struct vq_elem e = { .iov = b->host.iov };

	if (!vq || !b->has_stats || vq_pop(vq, &e) <= 0)
		return;
	b->has_stats = false;
	vq_put(vq, &e, 0);
	vq_arm_kick(vq);
	virtio_flush(&b->pci.v, QUEUE_STATS);
}

void virtio_balloon_stats(const struct virtio_balloon *b, uint64_t out[BALLOON_STATS])
{
	memcpy(out, b->host.stats, sizeof(b->host.stats));
}

/* ---- virtio_class ---- */

static void balloon_kick(struct virtio_dev *v, unsigned q)
{
	switch (q) {
	case QUEUE_INFLATE:
		virtio_serve(v, q, handle_inflate);
		break;
	case QUEUE_DEFLATE:
		virtio_serve(v, q, handle_deflate);
		break;
	case QUEUE_STATS:
		read_stats(balloon_of(v));
		break;
	}
}

static void balloon_config_read(struct virtio_dev *v, uint8_t *config)
{
	struct config_space c = { balloon_of(v)->num_pages, balloon_of(v)->actual };

	memcpy(config, &c, sizeof(c));
}

static void balloon_config_write(struct virtio_dev *v, unsigned offset, unsigned size, uint32_t value)
{
	if (offset == offsetof(struct config_space, actual) && size == 4)
		balloon_of(v)->actual = value;
	else
		log_guest("virtio-balloon", "write to configuration byte %u", offset);
}

static void balloon_reset(struct virtio_dev *v)
{
	struct virtio_balloon *b = balloon_of(v);

	b->actual = 0;
	b->has_stats = false;
	memset(b->host.stats, 0xff, sizeof(b->host.stats));
}

static const struct virtio_class balloon_virtio_class = {
	.name = "virtio-balloon",
	.id = VIRTIO_ID_BALLOON,
	.pci_class = 0x00ff00,
	.config_len = sizeof(struct config_space),
	.config_read = balloon_config_read,
	.config_write = balloon_config_write,
	.kick = balloon_kick,
	.reset = balloon_reset,
};

void virtio_balloon_set_target(struct virtio_balloon *b, uint64_t bytes)
{
	b->num_pages = MIN(bytes >> 12, (uint64_t)UINT32_MAX);
	virtio_config_changed(&b->pci.v);
}

uint64_t virtio_balloon_actual(const struct virtio_balloon *b)
{
	return (uint64_t)b->actual << 12;
}

/* ---- device ---- */

static void balloon_destroy(struct device *d)
{
	struct virtio_balloon *b = container_of(d, struct virtio_balloon, pci.dev);

	virtio_pci_fini(&b->pci);
	free(b->host.iov);
	free(b);
}

const struct device_class virtio_balloon_class = {
	.name = "virtio-balloon",
	.state = &virtio_balloon_state,
	.reset = virtio_pci_device_reset,
	.after_load = virtio_pci_device_after_load,
	.destroy = balloon_destroy,
	.pause = virtio_pci_device_pause,
	.resume = virtio_pci_device_resume,
};

int virtio_balloon_create(struct virtio_balloon **out, const struct dev_env *env, struct pci_bus *bus,
			  const char *id, const struct virtio_balloon_config *cfg, struct error *err)
{
	static const uint16_t sizes[NQUEUES] = { QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE };
	struct virtio_balloon *b = calloc(1, sizeof(*b));
	int r = -ENOMEM;

	if (!b)
		return error_set(err, r, "out of memory");
	b->host.release = cfg->release;
	b->host.ctx = cfg->ctx;
	memset(b->host.stats, 0xff, sizeof(b->host.stats));
	b->host.iov = calloc(VQ_IOV_MAX, sizeof(struct iovec));
	if (!b->host.iov)
		error_set(err, r, "out of memory");
	else
		r = virtio_pci_init(&b->pci, &virtio_balloon_class, id, bus, cfg->slot, env,
				    &balloon_virtio_class, F_STATS_VQ | F_DEFLATE_ON_OOM, sizes,
				    NQUEUES, err);
	if (r < 0) {
		free(b->host.iov);
		free(b);
		return r;
	}
	*out = b;
	return 0;
}

struct device *virtio_balloon_device(struct virtio_balloon *b)
{
	return &b->pci.dev;
}
