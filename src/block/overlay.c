/* SPDX-License-Identifier: Apache-2.0 */
#include "block/overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/host.h"

static int open_temp(struct error *err)
{
	const char *dir = getenv("TMPDIR");
	char path[4096];

	if (!dir || !*dir)
		dir = "/var/tmp";
	int fd = host.open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
	if (fd >= 0)
		return fd;
	/* Not every file system has O_TMPFILE. */
	int n = snprintf(path, sizeof(path), "%s/viv-XXXXXX", dir);
	if (n < 0 || (size_t)n >= sizeof(path))
		return error_set(err, -ENAMETOOLONG, "TMPDIR is too long");
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return error_set(err, -errno,
				 "cannot make a temporary file for a throw-away disk in '%s': %s; "
				 "point TMPDIR to a folder with room",
				 dir, strerror(errno));
	host.unlinkat(AT_FDCWD, path, 0);
	return fd;
}

int overlay_open(struct overlay *o, uint64_t size_bytes, struct error *err)
{
	*o = (struct overlay){ .fd = -1, .nsectors = size_bytes / BLOCK_SECTOR };
	int r = open_temp(err);
	if (r < 0)
		return r;
	o->fd = r;
	if (host.ftruncate(o->fd, (off_t)size_bytes) < 0) {
		r = error_set(err, -errno, "cannot size the throw-away disk's temporary file: %s",
			      strerror(errno));
		goto fail;
	}
	o->bits_len = (o->nsectors + 63) / 64 * 8;
	void *bits = host.mmap(NULL, o->bits_len, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bits == MAP_FAILED) {
		r = error_set(err, -errno, "no memory for the throw-away disk's map: %s",
			      strerror(errno));
		goto fail;
	}
	o->bits = bits;
	return 0;
fail:
	overlay_close(o);
	return r;
}

void overlay_close(struct overlay *o)
{
	if (o->bits)
		munmap((void *)o->bits, o->bits_len);
	if (o->fd >= 0)
		close(o->fd);
	*o = (struct overlay){ .fd = -1 };
}

void overlay_reset(struct overlay *o)
{
	/* Anonymous private memory: the pages go, the next look finds zeroes. */
	if (madvise((void *)o->bits, o->bits_len, MADV_DONTNEED) < 0)
		for (size_t i = 0; i < o->bits_len / 8; i++)
			o->bits[i] = 0;
}

uint64_t overlay_run(const struct overlay *o, uint64_t sector, uint64_t max, bool *is_in_overlay)
{
	uint64_t word = o->bits[sector / 64] >> (sector % 64);
	bool is_set = word & 1;
	uint64_t n = 0;

	*is_in_overlay = is_set;
	while (n < max) {
		uint64_t at = sector + n;
		word = o->bits[at / 64] >> (at % 64);
		if (is_set)
			word = ~word;
		/* word: the bits from @at on that end the run; zeros shifted in belong to the next word. */
		uint64_t left = 64 - at % 64;
		uint64_t part = word ? (uint64_t)__builtin_ctzll(word) : 64;
		if (part < left)
			return MIN(n + part, max);
		n += left;
	}
	return max;
}

void overlay_mark(struct overlay *o, uint64_t sector, uint64_t n)
{
	while (n) {
		uint64_t first = sector % 64, part = MIN(64 - first, n);
		uint64_t mask = (part == 64 ? ~0ULL : (1ULL << part) - 1) << first;
		o->bits[sector / 64] |= mask; /* atomic: neighbours share the word */
		sector += part;
		n -= part;
	}
}
