/* SPDX-License-Identifier: Apache-2.0 */
#include "net/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "base/host.h"

#define PAGE	     4096u
#define RING	     ((uint32_t)NET_RING_BYTES)
#define MASK	     (RING - 1)
#define MEMORY_BYTES (PAGE + 2 * (size_t)RING)
#define MAP_BYTES    (PAGE + 4 * (size_t)RING)
#define SEALS	     (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

_Static_assert((RING & MASK) == 0 && RING % PAGE == 0 && RING >= 3 * NET_FRAME_MAX, "ring.h");

/* In shared memory.  Each side's words have a cache line of their own. */
struct control {
	_Alignas(64) _Atomic uint32_t head;
	_Atomic uint32_t wants_room;
	_Alignas(64) _Atomic uint32_t tail;
	_Atomic uint32_t wants_frames;
};

struct header {
	uint32_t len;
	struct net_offload off;
	uint16_t unused;
};
_Static_assert(sizeof(struct header) == 16, "frames are aligned by it");

struct net_ring {
	uint8_t *map;
	pid_t owner; /* the process that mapped it: a copy has something else there, or nothing */
	struct {
		struct control *c;
		uint8_t *bytes;
		uint32_t head, tail; /* ours, and the other side's as it was last read and found good */
	} tx;
	struct {
		struct control *c;
		const uint8_t *bytes;
		uint32_t head, tail, seen; /* seen: what the frame that was looked at takes */
	} rx;
};

/* ---- life ---- */

static bool map_part(uint8_t *at, size_t len, int fd, size_t offset)
{
	return host.mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) !=
	       MAP_FAILED;
}

static int map_all(struct net_ring **out, int fd, bool is_maker)
{
	struct net_ring *r = host.malloc(sizeof(*r));

	if (!r)
		return -ENOMEM;
	*r = (struct net_ring){ .owner = getpid() };
	r->map = host.mmap(NULL, MAP_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			   -1, 0);
	if (r->map == MAP_FAILED) {
		free(r);
		return -errno;
	}
	uint8_t *bytes[2] = { r->map + PAGE, r->map + PAGE + 2 * (size_t)RING };
	bool is_mapped = map_part(r->map, PAGE, fd, 0);
	for (unsigned i = 0; is_mapped && i < 4; i++)
		is_mapped = map_part(bytes[i / 2] + i % 2 * RING, RING, fd, PAGE + i / 2 * (size_t)RING);
	/* A copy of this process (fork(2)), which may be another machine, has no part in it. */
	if (!is_mapped || madvise(r->map, MAP_BYTES, MADV_DONTFORK) < 0) {
		int e = -errno;
		net_ring_destroy(r);
		return e;
	}
	struct control *c = (struct control *)r->map;
	r->tx.c = &c[!is_maker];
	r->rx.c = &c[is_maker];
	r->tx.bytes = bytes[!is_maker];
	r->rx.bytes = bytes[is_maker];
	atomic_store(&r->rx.c->wants_frames, 1);
	*out = r;
	return 0;
}

int net_ring_make(struct net_ring **out, int *fd)
{
	int f = memfd_create("viv-frames", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r = f < 0 ? -errno : 0;

	if (r == 0 && (host.ftruncate(f, (off_t)MEMORY_BYTES) < 0 || fcntl(f, F_ADD_SEALS, SEALS) < 0))
		r = -errno;
	if (r == 0)
		r = map_all(out, f, true);
	if (r == 0)
		*fd = f;
	else if (f >= 0)
		close(f);
	return r;
}

int net_ring_join(struct net_ring **out, int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0 || st.st_size != (off_t)MEMORY_BYTES)
		return -EPROTO;
	return map_all(out, fd, false);
}

void net_ring_destroy(struct net_ring *r)
{
	if (!r)
		return;
	if (r->owner == getpid())
		munmap(r->map, MAP_BYTES);
	free(r);
}

/* ---- out ---- */

/* Room after a look at the other side's position; -EPROTO. */
static int64_t room(struct net_ring *r)
{
	uint32_t tail = atomic_load_explicit(&r->tx.c->tail, memory_order_acquire);

	if (r->tx.head - tail > RING)
		return -EPROTO;
	r->tx.tail = tail;
	return RING - (r->tx.head - tail);
}

/* 0, -EAGAIN: the other side was told, -EPROTO. */
static int await_room(struct net_ring *r, uint32_t need)
{
	int64_t n = RING - (r->tx.head - r->tx.tail);

	if (n < need)
		n = room(r);
	if (n >= need)
		return 0;
	if (n >= 0) {
		atomic_store(&r->tx.c->wants_room, 1);
		n = room(r);
	}
	if (n < 0)
		return (int)n;
	if (n < need)
		return -EAGAIN;
	atomic_store_explicit(&r->tx.c->wants_room, 0, memory_order_relaxed);
	return 0;
}

bool net_ring_has_room(struct net_ring *r)
{
	return await_room(r, sizeof(struct header) + ALIGN_UP(NET_FRAME_MAX, sizeof(struct header))) !=
	       -EAGAIN;
}

static bool is_wanted(_Atomic uint32_t *flag)
{
	return atomic_load(flag) && atomic_exchange(flag, 0);
}

int net_ring_put(struct net_ring *r, const struct net_offload *off, const struct iovec *iov,
		 unsigned niov, bool *rings)
{
	size_t len = 0;

	for (unsigned i = 0; i < niov; i++) {
		if (iov[i].iov_len > NET_FRAME_MAX - len)
			return -EMSGSIZE;
		len += iov[i].iov_len;
	}
	if (!len)
		return -EMSGSIZE;
	struct header h = { .len = (uint32_t)len, .off = *off };
	uint32_t need = sizeof(h) + ALIGN_UP((uint32_t)len, (uint32_t)sizeof(h));
	int e = await_room(r, need);
	if (e < 0)
		return e;
	uint8_t *at = r->tx.bytes + (r->tx.head & MASK);
	memcpy(at, &h, sizeof(h));
	at += sizeof(h);
	for (unsigned i = 0; i < niov; i++) {
		memcpy(at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	r->tx.head += need;
	atomic_store(&r->tx.c->head, r->tx.head);
	if (is_wanted(&r->tx.c->wants_frames))
		*rings = true;
	return 0;
}

/* ---- in ---- */

/* How many bytes are there to read; -EPROTO. */
static int64_t filled(struct net_ring *r)
{
	uint32_t head = atomic_load(&r->rx.c->head);

	if (head - r->rx.tail > RING)
		return -EPROTO;
	r->rx.head = head;
	return head - r->rx.tail;
}

int net_ring_peek(struct net_ring *r, struct net_ring_frame *f)
{
	int64_t n = r->rx.head - r->rx.tail;
	struct header h;

	if (!n)
		n = filled(r);
	if (n <= 0)
		return (int)n;
	if (n < (int64_t)sizeof(h))
		return -EPROTO;
	const volatile uint32_t *at = (const volatile uint32_t *)(r->rx.bytes + (r->rx.tail & MASK));
	uint32_t words[sizeof(h) / 4];
	for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
		words[i] = at[i];
	memcpy(&h, words, sizeof(h));
	if (!h.len || h.len > NET_FRAME_MAX)
		return -EPROTO;
	uint32_t takes = sizeof(h) + ALIGN_UP(h.len, (uint32_t)sizeof(h));
	if (takes > n)
		return -EPROTO;
	r->rx.seen = takes;
	*f = (struct net_ring_frame){ h.off, r->rx.bytes + (r->rx.tail & MASK) + sizeof(h), h.len };
	return 1;
}

bool net_ring_pop(struct net_ring *r)
{
	r->rx.tail += r->rx.seen;
	r->rx.seen = 0;
	atomic_store(&r->rx.c->tail, r->rx.tail);
	return r->rx.head - r->rx.tail <= RING / 2 && is_wanted(&r->rx.c->wants_room);
}

int net_ring_reclaim(struct net_ring *r)
{
	if (room(r) < 0)
		return -EPROTO;
	/* What is told of our own position is that again, whatever the other side has made of it. */
	atomic_store(&r->tx.c->head, r->tx.head);
	r->rx.c = r->tx.c;
	r->rx.bytes = r->tx.bytes;
	r->rx.head = r->rx.tail = r->tx.tail;
	r->rx.seen = 0;
	return 0;
}

bool net_ring_sleep(struct net_ring *r)
{
	atomic_store(&r->rx.c->wants_frames, 1);
	/* Broken counts as something: net_ring_peek() tells. */
	if (r->rx.head == r->rx.tail && filled(r) == 0)
		return true;
	/* If it was taken back already, a bell comes for nothing. */
	atomic_store(&r->rx.c->wants_frames, 0);
	return false;
}
