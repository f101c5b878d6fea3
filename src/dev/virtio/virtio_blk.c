/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request is a chain: 16 bytes of header, data, one byte of status at the very end (5.2.6).  Framing is
 * free (2.7.4): the three parts may be cut into buffers anywhere, so everything is found by byte
 * offsets, and data goes to the backend as slices of the guest's own buffers.
 *
 * What the backend can do without waiting is done inside the kick (block_ops.try_now), up to NOW_BYTES a
 * kick; everything done by then comes back with one interrupt.
 */
#include "dev/virtio/virtio_blk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"

#define QUEUE_SIZE 256
#define SEG_MAX	   (QUEUE_SIZE - 2) /* header and status take a descriptor each */
#define SIZE_MAX_BYTES                                                                             \
	(12 * KIB) /* a segment, behind an IOMMU: each of its pages may lie elsewhere */
#define DISCARD_SEGS	16
#define DISCARD_SECTORS (1u << 22) /* 2 GiB a segment */
#define REQUEST_MAX	(1 * GIB)  /* bytes of one read or write */
#define NOW_BYTES	(1 * MIB)  /* done inside one kick, under the machine's lock */

_Static_assert(SEG_MAX *(SIZE_MAX_BYTES / GUEST_PAGE_SIZE + 1) + 4 <= VQ_IOV_MAX,
	       "the largest request, with header and status across pages, has room");

// clang-format off
#define F_SIZE_MAX     VIRTIO_F(1)
#define F_SEG_MAX      VIRTIO_F(2)
#define F_RO           VIRTIO_F(5)
#define F_BLK_SIZE     VIRTIO_F(6)
#define F_FLUSH        VIRTIO_F(9)
#define F_TOPOLOGY     VIRTIO_F(10)
#define F_CONFIG_WCE   VIRTIO_F(11)
#define F_MQ           VIRTIO_F(12)
#define F_DISCARD      VIRTIO_F(13)
#define F_WRITE_ZEROES VIRTIO_F(14)
// clang-format on

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
enum { SEG_UNMAP = 1 };

struct req_header {
	uint32_t type, reserved;
	uint64_t sector;
};
struct discard_seg {
	uint64_t sector;
	uint32_t nsectors, flags;
};

/* 5.2.4 */
struct __attribute__((packed)) config_space {
	uint64_t capacity;
	uint32_t size_max, seg_max;
	uint16_t cylinders;
	uint8_t heads, sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp, alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t writeback, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
};
_Static_assert(sizeof(struct config_space) == 60, "virtio 1.2, 5.2.4");

struct virtio_blk {
	struct virtio_pci pci;
	uint8_t writeback;   /* the driver wants a write cache */
	uint8_t reserved[7]; /* zero */
	struct blk_host {
		struct block_dev *block;
		struct block_info info;
		unsigned nqueues, in_flight;
		char serial[VIRTIO_BLK_ID_BYTES];
		struct virtio_blk_stats stats;
		uint64_t now_bytes;    /* left of NOW_BYTES in this kick */
		struct iovec *vectors; /* VQ_IOV_MAX: the data of the request at hand */
	} host;
};

/* One request under way. */
struct blk_io {
	struct virtio_blk *b;
	unsigned q;
	struct vq_elem elem; /* iov is the array below */
	struct block_req req;
	unsigned nsegs, seg; /* discard and write zeroes */
	struct discard_seg segs[DISCARD_SEGS];
	struct iovec iov[]; /* the chain's, then the data's */
};

static int check_state(const void *obj, struct error *err)
{
	const struct virtio_blk *b = obj;

	if (b->writeback > 1)
		return error_set(err, -EINVAL, "virtio-blk: writeback is 0 or 1");
	for (unsigned i = 0; i < sizeof(b->reserved); i++)
		if (b->reserved[i])
			return error_set(err, -EINVAL, "virtio-blk state has reserved bytes set");
	return 0;
}

// clang-format off
static const struct field virtio_blk_fields[] = {
	F_STRUCT(struct virtio_blk, pci, &virtio_pci_state),
	F_U8(struct virtio_blk, writeback),
	F_BYTES(struct virtio_blk, reserved),
	F_HOST(struct virtio_blk, host),
	F_END,
};
// clang-format on
static const struct state_desc virtio_blk_state = {
	.name = "virtio-blk",
	.version = 1,
	.size = sizeof(struct virtio_blk),
	.fields = virtio_blk_fields,
	.check = check_state,
};

static struct virtio_blk *blk_of(struct virtio_dev *v)
{
	return container_of(v, struct virtio_blk, pci.v);
}

static struct block_dev *backend(const struct virtio_blk *b)
{
	return b->host.block;
}

/* ---- completion ---- */

/* The last byte of the chain tells the status; all bytes before it may have been written. */
static uint64_t put_status(const struct vq_elem *e, uint8_t status)
{
	iov_from_buf(vq_in_iov(e), e->nin, e->in_bytes - 1, &status, 1);
	return e->in_bytes;
}

static uint8_t status_of(int result)
{
	return result == 0 ? S_OK : result == -EOPNOTSUPP ? S_UNSUPP : S_IOERR;
}

static void submit_segment(struct blk_io *io);

static void on_done(struct block_req *req, int result)
{
	struct blk_io *io = req->owner;
	struct virtio_blk *b = io->b;

	if (result == 0 && ++io->seg < io->nsegs) {
		submit_segment(io);
		return;
	}
	if (result < 0)
		b->host.stats.errors++;
	assert(b->host.in_flight);
	b->host.in_flight--;
	vq_put(&b->pci.v.vqs[io->q], &io->elem, put_status(&io->elem, status_of(result)));
	virtio_flush(&b->pci.v, io->q);
	free(io);
}

/* ---- requests ---- */

static bool is_in_range(const struct virtio_blk *b, uint64_t sector, uint64_t nsectors)
{
	uint64_t size = b->host.info.size_bytes / BLOCK_SECTOR;

	return sector <= size && nsectors <= size - sector;
}

/* 5.2.6.2: without a negotiated flush, or with the cache off, a write that completed is stable. */
static bool is_write_through(const struct virtio_blk *b)
{
	return !virtio_has(&b->pci.v, F_FLUSH) || !b->writeback;
}

static struct blk_io *make_io(struct virtio_blk *b, unsigned q, const struct vq_elem *e)
{
	unsigned n = e->nout + e->nin;
	struct blk_io *io = malloc(sizeof(*io) + 2 * n * sizeof(struct iovec));

	if (!io)
		return NULL;
	io->b = b;
	io->q = q;
	io->elem = *e;
	io->elem.iov = io->iov;
	io->nsegs = io->seg = 0;
	memcpy(io->iov, e->iov, n * sizeof(struct iovec));
	io->req = (struct block_req){ .iov = io->iov + n, .done = on_done, .owner = io };
	return io;
}

static int try_now(struct virtio_blk *b, struct block_req *req)
{
	if (!backend(b)->ops->try_now || req->len_bytes > b->host.now_bytes)
		return -EAGAIN;
	b->host.now_bytes -= req->len_bytes;
	return backend(b)->ops->try_now(backend(b), req);
}

/* Do the request of chain @e, whose data is @req->iov (borrowed), now or later. */
static int64_t start_io(struct virtio_blk *b, unsigned q, struct vq_elem *e, struct block_req *req)
{
	int r = try_now(b, req);

	if (r != -EAGAIN) {
		b->host.stats.errors += r < 0;
		b->host.stats.immediate++;
		return put_status(e, status_of(r));
	}
	struct blk_io *io = make_io(b, q, e);
	if (!io)
		return put_status(e, S_IOERR);
	struct iovec *data = io->iov + e->nout + e->nin;
	if (req->niov)
		memcpy(data, req->iov, req->niov * sizeof(*data));
	req->iov = data;
	req->done = on_done;
	req->owner = io;
	io->req = *req;
	b->host.in_flight++;
	backend(b)->ops->submit(backend(b), &io->req);
	return VIRTIO_KEPT;
}

static int64_t do_read_write(struct virtio_blk *b, unsigned q, struct vq_elem *e,
			     const struct req_header *h)
{
	bool is_write = h->type == T_OUT;
	uint64_t len = is_write ? e->out_bytes - sizeof(*h) : e->in_bytes - 1;

	if (len % BLOCK_SECTOR || len > REQUEST_MAX ||
	    !is_in_range(b, h->sector, len / BLOCK_SECTOR) || (is_write && b->host.info.is_readonly)) {
		log_guest("virtio-blk", "%s: bad request: sector %llu, %llu bytes", b->pci.dev.id,
			  (unsigned long long)h->sector, (unsigned long long)len);
		return put_status(e, S_IOERR);
	}
	struct block_req req = {
		.op = is_write ? BLOCK_WRITE : BLOCK_READ,
		.is_fua = is_write && is_write_through(b),
		.offset_bytes = h->sector * BLOCK_SECTOR,
		.len_bytes = len,
		.iov = b->host.vectors,
		.niov = is_write ? iov_slice(e->iov, e->nout, sizeof(*h), len, b->host.vectors)
				 : iov_slice(vq_in_iov(e), e->nin, 0, len, b->host.vectors),
	};
	if (is_write) {
		b->host.stats.writes++;
		b->host.stats.written_bytes += len;
	} else {
		b->host.stats.reads++;
		b->host.stats.read_bytes += len;
	}
	return start_io(b, q, e, &req);
}

static int64_t do_flush(struct virtio_blk *b, unsigned q, struct vq_elem *e)
{
	struct block_req req = { .op = BLOCK_FLUSH };

	b->host.stats.flushes++;
	return start_io(b, q, e, &req);
}

static int64_t do_get_id(struct virtio_blk *b, struct vq_elem *e)
{
	iov_from_buf(vq_in_iov(e), e->nin, 0, b->host.serial,
		     MIN((uint64_t)sizeof(b->host.serial), e->in_bytes - 1));
	return put_status(e, S_OK);
}

/* Segment after segment: the next when the one before is done. */
static void submit_segment(struct blk_io *io)
{
	const struct discard_seg *s = &io->segs[io->seg];

	io->req.offset_bytes = s->sector * BLOCK_SECTOR;
	io->req.len_bytes = (uint64_t)s->nsectors * BLOCK_SECTOR;
	io->req.may_unmap = s->flags & SEG_UNMAP;
	backend(io->b)->ops->submit(backend(io->b), &io->req);
}

static int64_t do_discard(struct virtio_blk *b, unsigned q, struct vq_elem *e, uint32_t type)
{
	uint64_t len = e->out_bytes - sizeof(struct req_header);
	unsigned n = len / sizeof(struct discard_seg);
	uint8_t status = S_OK;

	if (!virtio_has(&b->pci.v, type == T_DISCARD ? F_DISCARD : F_WRITE_ZEROES))
		return put_status(e, S_UNSUPP);
	if (!n || n > DISCARD_SEGS || len % sizeof(struct discard_seg) || b->host.info.is_readonly)
		return put_status(e, S_IOERR);
	struct blk_io *io = make_io(b, q, e);
	if (!io)
		return put_status(e, S_IOERR);
	io->nsegs = n;
	iov_to_buf(e->iov, e->nout, sizeof(struct req_header), io->segs, len);
	for (unsigned i = 0; i < n && status == S_OK; i++) {
		const struct discard_seg *s = &io->segs[i];
		/* 5.2.6.2: other flags, and unmap in a discard, are unsupported */
		if (s->flags & ~(type == T_WRITE_ZEROES ? SEG_UNMAP : 0u))
			status = S_UNSUPP;
		else if (s->nsectors > DISCARD_SECTORS || !is_in_range(b, s->sector, s->nsectors))
			status = S_IOERR;
	}
	if (status != S_OK) {
		free(io);
		return put_status(e, status);
	}
	io->req.op = type == T_DISCARD ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES;
	io->req.is_fua = type == T_WRITE_ZEROES && is_write_through(b);
	b->host.stats.discards++;
	b->host.in_flight++;
	submit_segment(io);
	return VIRTIO_KEPT;
}

static int64_t handle(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	struct virtio_blk *b = blk_of(v);
	struct req_header h;

	if (e->out_bytes < sizeof(h) || !e->in_bytes) {
		/* Not even room for a status: nothing can be told but this. */
		v->vqs[q].is_broken = true;
		log_guest("virtio-blk", "%s: a chain without header or status", b->pci.dev.id);
		return 0;
	}
	iov_to_buf(e->iov, e->nout, 0, &h, sizeof(h));
	switch (h.type) {
	case T_IN:
	case T_OUT:
		return do_read_write(b, q, e, &h);
	case T_FLUSH:
		return do_flush(b, q, e);
	case T_GET_ID:
		return do_get_id(b, e);
	case T_DISCARD:
	case T_WRITE_ZEROES:
		return do_discard(b, q, e, h.type);
	}
	log_guest("virtio-blk", "%s: request type %u", b->pci.dev.id, h.type);
	return put_status(e, S_UNSUPP);
}

/* ---- virtio_class ---- */

static void blk_kick(struct virtio_dev *v, unsigned q)
{
	blk_of(v)->host.now_bytes = NOW_BYTES;
	virtio_serve(v, q, handle);
}

static void blk_config_read(struct virtio_dev *v, uint8_t *config)
{
	const struct virtio_blk *b = blk_of(v);
	const struct block_info *info = &b->host.info;
	struct config_space c = {
		.capacity = info->size_bytes / BLOCK_SECTOR,
		.size_max = v->host.offered & F_SIZE_MAX ? SIZE_MAX_BYTES : 0,
		.seg_max = SEG_MAX,
		.blk_size = BLOCK_SECTOR,
		.physical_block_exp = 3, /* 4 KiB, as the host's page cache */
		.min_io_size = 8,
		.opt_io_size = 0,
		.writeback = b->writeback,
		.num_queues = b->host.nqueues,
	};

	if (info->can_discard) {
		c.max_discard_sectors = DISCARD_SECTORS;
		c.max_discard_seg = DISCARD_SEGS;
		c.discard_sector_alignment = 8;
	}
	if (info->can_write_zeroes) {
		c.max_write_zeroes_sectors = DISCARD_SECTORS;
		c.max_write_zeroes_seg = DISCARD_SEGS;
		c.write_zeroes_may_unmap = 1;
	}
	memcpy(config, &c, sizeof(c));
}

static void blk_config_write(struct virtio_dev *v, unsigned offset, unsigned size, uint32_t value)
{
	if (offset == offsetof(struct config_space, writeback) && size == 1 && value <= 1 &&
	    virtio_has(v, F_CONFIG_WCE))
		blk_of(v)->writeback = value;
	else
		log_guest("virtio-blk", "%s: write to configuration byte %u", blk_of(v)->pci.dev.id,
			  offset);
}

static void blk_drain(struct virtio_dev *v)
{
	struct virtio_blk *b = blk_of(v);

	if (b->host.in_flight)
		backend(b)->ops->drain(backend(b));
}

static void blk_reset(struct virtio_dev *v)
{
	blk_drain(v);
	blk_of(v)->writeback = 1;
}

static const struct virtio_class blk_virtio_class = {
	.name = "virtio-blk",
	.id = VIRTIO_ID_BLOCK,
	.pci_class = 0x010000, /* as other hypervisors show it: firmware looks for mass storage */
	.config_len = sizeof(struct config_space),
	.config_read = blk_config_read,
	.config_write = blk_config_write,
	.kick = blk_kick,
	.reset = blk_reset,
	.pause = blk_drain,
};

/* ---- device ---- */

static void blk_destroy(struct device *d)
{
	struct virtio_blk *b = container_of(d, struct virtio_blk, pci.dev);

	blk_drain(&b->pci.v);
	virtio_pci_fini(&b->pci);
	free(b->host.vectors);
	free(b);
}

const struct device_class virtio_blk_class = {
	.name = "virtio-blk",
	.state = &virtio_blk_state,
	.reset = virtio_pci_device_reset,
	.after_load = virtio_pci_device_after_load,
	.destroy = blk_destroy,
	.pause = virtio_pci_device_pause,
	.resume = virtio_pci_device_resume,
};

int virtio_blk_create(struct virtio_blk **out, const struct dev_env *env, struct pci_bus *bus,
		      const char *id, const struct virtio_blk_config *cfg, struct error *err)
{
	uint16_t sizes[VIRTIO_BLK_QUEUES_MAX];
	struct virtio_blk *b = calloc(1, sizeof(*b));

	if (!b)
		return error_set(err, -ENOMEM, "out of memory");
	b->writeback = 1;
	b->host.vectors = calloc(VQ_IOV_MAX, sizeof(struct iovec));
	if (!b->host.vectors) {
		free(b);
		return error_set(err, -ENOMEM, "out of memory");
	}
	b->host.block = cfg->block;
	b->host.nqueues = MAX(1u, MIN(cfg->nqueues, (unsigned)VIRTIO_BLK_QUEUES_MAX));
	if (cfg->serial)
		memcpy(b->host.serial, cfg->serial, strnlen(cfg->serial, VIRTIO_BLK_ID_BYTES));
	cfg->block->ops->info(cfg->block, &b->host.info);
	for (unsigned q = 0; q < VIRTIO_BLK_QUEUES_MAX; q++)
		sizes[q] = QUEUE_SIZE;

	const struct block_info *info = &b->host.info;
	uint64_t offered = env->iommu ? F_SIZE_MAX : 0;

	offered |= F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE;
	if (info->is_readonly)
		offered |= F_RO;
	if (b->host.nqueues > 1)
		offered |= F_MQ;
	if (info->can_discard)
		offered |= F_DISCARD;
	if (info->can_write_zeroes)
		offered |= F_WRITE_ZEROES;
	int r = virtio_pci_init(&b->pci, &virtio_blk_class, id, bus, cfg->slot, env,
				&blk_virtio_class, offered, sizes, b->host.nqueues, err);
	if (r < 0) {
		free(b->host.vectors);
		free(b);
		return r;
	}
	*out = b;
	return 0;
}

struct device *virtio_blk_device(struct virtio_blk *b)
{
	return &b->pci.dev;
}

void virtio_blk_stats(const struct virtio_blk *b, struct virtio_blk_stats *out)
{
	*out = b->host.stats;
}
