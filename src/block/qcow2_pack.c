/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed clusters (the specification, "Compressed Clusters Descriptor"). */
#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "block/qcow2_int.h"

/* The last few clusters unpacked: a guest reads them in small pieces. */
#define ZCACHE_SLOTS 4u

struct qcow2_zcache {
	pthread_mutex_t lock;
	struct {
		uint64_t entry; /* 0: empty */
		uint8_t *data;
		uint64_t used;
	} slots[ZCACHE_SLOTS];
	uint64_t clock;
};

int qcow2_zcache_create(struct qcow2 *q)
{
	q->zcache = calloc(1, sizeof(*q->zcache));
	if (!q->zcache)
		return -ENOMEM;
	pthread_mutex_init(&q->zcache->lock, NULL);
	return 0;
}

void qcow2_zcache_free(struct qcow2_zcache *z)
{
	if (!z)
		return;
	for (unsigned i = 0; i < ZCACHE_SLOTS; i++)
		free(z->slots[i].data);
	pthread_mutex_destroy(&z->lock);
	free(z);
}

/* ---- one cluster ---- */

/* Raw deflate.  What is left of @src after a cluster's worth of output is of no interest. */
static int inflate_cluster(const uint8_t *src, uint64_t n, uint8_t *dst, uint64_t size)
{
	z_stream z = { .next_in = (uint8_t *)(uintptr_t)src,
		       .avail_in = (uInt)n,
		       .next_out = dst,
		       .avail_out = (uInt)size };

	if (inflateInit2(&z, -15) != Z_OK)
		return -ENOMEM;
	int r = inflate(&z, Z_FINISH);
	bool is_whole = z.avail_out == 0 && (r == Z_STREAM_END || r == Z_BUF_ERROR || r == Z_OK);
	inflateEnd(&z);
	return is_whole ? 0 : -EIO;
}

static int unzstd_cluster(const uint8_t *src, uint64_t n, uint8_t *dst, uint64_t size)
{
	ZSTD_DCtx *d = ZSTD_createDCtx();
	ZSTD_inBuffer in = { src, n, 0 };
	ZSTD_outBuffer out = { dst, size, 0 };

	if (!d)
		return -ENOMEM;
	while (out.pos < out.size) {
		size_t before_in = in.pos, before_out = out.pos;
		size_t r = ZSTD_decompressStream(d, &out, &in);
		if (ZSTD_isError(r) || (in.pos == before_in && out.pos == before_out))
			break;
	}
	ZSTD_freeDCtx(d);
	return out.pos == out.size ? 0 : -EIO;
}

static int load(struct qcow2 *q, uint64_t entry, uint8_t *dst)
{
	uint64_t at, n;

	qcow2_packed_extent(q, entry, &at, &n);
	/* Packed data is never longer than its cluster (+ the sector it starts in); past the end are zeroes, which
	 * don't unpack. */
	if (n > q->cluster_size + 2 * 512)
		return -EIO;
	_cleanup_free_ uint8_t *src = malloc(n);
	if (!src)
		return -ENOMEM;
	int r = io_pread(q->meta_fd, src, n, at);
	if (r < 0)
		return r;
	return q->h.compression ? unzstd_cluster(src, n, dst, q->cluster_size)
				: inflate_cluster(src, n, dst, q->cluster_size);
}

int qcow2_unpack(struct qcow2 *q, uint64_t entry, struct io_vec v, uint64_t skip, uint64_t len)
{
	struct qcow2_zcache *z = q->zcache;
	unsigned oldest = 0;

	pthread_mutex_lock(&z->lock);
	for (unsigned i = 0; i < ZCACHE_SLOTS; i++) {
		if (z->slots[i].entry == entry) {
			z->slots[i].used = ++z->clock;
			int r = io_put(v, z->slots[i].data + skip, len);
			pthread_mutex_unlock(&z->lock);
			return r;
		}
		if (z->slots[i].used < z->slots[oldest].used)
			oldest = i;
	}
	pthread_mutex_unlock(&z->lock);
	uint8_t *data = malloc(q->cluster_size);
	if (!data)
		return -ENOMEM;
	int r = load(q, entry, data);
	if (r == 0)
		r = io_put(v, data + skip, len);
	if (r < 0) {
		free(data);
		return r;
	}
	pthread_mutex_lock(&z->lock);
	uint8_t *old = z->slots[oldest].data;
	z->slots[oldest].entry = entry;
	z->slots[oldest].data = data;
	z->slots[oldest].used = ++z->clock;
	pthread_mutex_unlock(&z->lock);
	free(old);
	return 0;
}

/* The room of an unpacked cluster is used for another one. */
static void forget(struct qcow2_zcache *z, uint64_t entry)
{
	pthread_mutex_lock(&z->lock);
	for (unsigned i = 0; i < ZCACHE_SLOTS; i++)
		if (z->slots[i].entry == entry)
			z->slots[i].entry = 0;
	pthread_mutex_unlock(&z->lock);
}

/* ---- packing ---- */

/* At most @cap bytes, or 0: it doesn't get that small. */
static uint64_t deflate_cluster(const void *src, uint64_t n, uint8_t *dst, uint64_t cap)
{
	z_stream z = { .next_in = (uint8_t *)(uintptr_t)src,
		       .avail_in = (uInt)n,
		       .next_out = dst,
		       .avail_out = (uInt)cap };

	/* A window of 4 KiB: readers count on it. */
	if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
		return 0;
	int r = deflate(&z, Z_FINISH);
	uint64_t got = r == Z_STREAM_END ? cap - z.avail_out : 0;
	deflateEnd(&z);
	return got;
}

static uint64_t zstd_cluster(const void *src, uint64_t n, uint8_t *dst, uint64_t cap)
{
	size_t r = ZSTD_compress(dst, cap, src, n, ZSTD_CLEVEL_DEFAULT);

	return ZSTD_isError(r) ? 0 : r;
}

/* Under @lock.  Room for @n bytes, after the packed cluster before where it can be. */
static int place(struct qcow2 *q, uint64_t n, uint64_t *at)
{
	uint64_t mask = q->cluster_size - 1, first, got, count;
	uint64_t max = q->ref_order == 6 ? UINT64_MAX : (1ULL << (1u << q->ref_order)) - 1;
	bool is_fresh;
	int r;

	if (q->packed_at & mask) {
		uint64_t c = q->packed_at >> q->cluster_bits,
			 room = q->cluster_size - (q->packed_at & mask);
		r = qcow2_refs_get(q, c, &count);
		if (r < 0)
			return r;
		if (room >= n && count < max) {
			*at = q->packed_at;
			q->packed_at += n;
			return qcow2_refs_add(q, c, 1);
		}
	}
	r = qcow2_alloc(q, 1, &first, &got, &is_fresh);
	if (r < 0)
		return r;
	if (q->packed_at & mask && first == (q->packed_at >> q->cluster_bits) + 1 && count < max) {
		/* The cluster after it is ours too: the data goes across the border. */
		r = qcow2_refs_add(q, first - 1, 1);
		*at = q->packed_at;
	} else {
		*at = first << q->cluster_bits;
	}
	q->packed_at = *at + n;
	return r;
}

static int write_plain(struct qcow2 *q, const void *buf, uint64_t at)
{
	uint64_t len = MIN(q->cluster_size, q->layer.size_bytes - at);
	struct iovec iov = { (void *)(uintptr_t)buf, len };

	return qcow2_write(&q->layer, (struct io_vec){ &iov, 1, 0 }, len, at);
}

int qcow2_write_compressed(struct layer *l, const void *buf, uint64_t at)
{
	struct qcow2 *q = qcow2_of(l);
	unsigned x = 62 - (q->cluster_bits - 8);
	uint64_t cap = q->cluster_size - 512, place_at;
	_cleanup_free_ uint8_t *out = malloc(cap);
	struct qcow2_table *t;

	if (!out)
		return -ENOMEM;
	if (qcow2_is_tight(q)) {
		int w = qcow2_writeback(q, true);
		if (w < 0)
			return w;
	}
	uint64_t n = !cap		? 0
		     : q->h.compression ? zstd_cluster(buf, q->cluster_size, out, cap)
					: deflate_cluster(buf, q->cluster_size, out, cap);
	if (!n)
		return write_plain(q, buf, at);
	pthread_mutex_lock(&q->lock);
	int r = place(q, n, &place_at);
	pthread_mutex_unlock(&q->lock);
	if (r == 0 && place_at >> x)
		r = -EFBIG;
	if (r == 0)
		r = io_pwrite(q->meta_fd, out, n, place_at);
	io_sync_note(&q->sync);
	if (r < 0)
		return r;
	pthread_mutex_lock(&q->lock);
	r = qcow2_l2_own(q, at, &t);
	if (r == 0) {
		uint64_t sectors = ((place_at + n - 1) >> 9) - (place_at >> 9);
		uint64_t desc = QCOW2_COMPRESSED | sectors << x | place_at;
		forget(q->zcache, desc);
		r = qcow2_unref_entry(q, qcow2_entry_get(q, t, at).desc);
		if (r == 0)
			qcow2_entry_set(q, t, at, (struct qcow2_entry){ desc, 0 });
	}
	pthread_mutex_unlock(&q->lock);
	return r;
}
