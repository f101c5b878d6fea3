/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migrate_files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/host.h"
#include "block/block.h"

static const char *const names[MIGRATE_NFILES] = { "kernel", "initrd", "firmware" };

void migrate_files_init(struct migrate_files *f)
{
	*f = (struct migrate_files){ 0 };
	for (unsigned i = 0; i < MIGRATE_NFILES; i++)
		f->files[i].fd = -1;
}

int migrate_files_open(struct migrate_files *f, struct migrate_offer *o, const struct vmconfig *c,
		       struct loop *loop, struct error *err)
{
	const char *paths[MIGRATE_NFILES] = { c->kernel, c->initrd, c->firmware };
	const char *path;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < c->ndisks && i < o->config.ndisks; i++) {
		const struct block_open bo = { .path = c->disks[i].path, .format = c->disks[i].format };

		if (o->disks[i].is_copied)
			r = block_open(&f->disks[i], loop, &bo, err);
	}
	for (uint32_t i = 0; r == 0 && i < MIGRATE_NFILES; i++) {
		const struct migrate_file *mf = migrate_file_of(o, MIGRATE_FILE_KERNEL + i, &path);

		if (!mf || !mf->is_copied || !paths[i])
			continue;
		int fd = host.open(paths[i], O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0);

		if (fd < 0)
			return error_set(err, -errno, "cannot open %s: %s", paths[i], strerror(errno));
		f->files[i].fd = fd;
		f->files[i].size_bytes = mf->size_bytes;
	}
	return r;
}

void migrate_files_close(struct migrate_files *f)
{
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (f->disks[i])
			f->disks[i]->ops->close(f->disks[i]);
		f->disks[i] = NULL;
	}
	for (unsigned i = 0; i < MIGRATE_NFILES; i++) {
		if (f->files[i].fd >= 0)
			close(f->files[i].fd);
		f->files[i].fd = -1;
	}
	migrate_chunk_reader_free(&f->reader);
	free(f->buf);
	f->buf = NULL;
}

static int not_wanted(struct error *err)
{
	return error_set(
		err, -EPROTO, "the source sends a piece of a file that nobody asked for, or that is outside of it");
}

static int cannot_write(uint32_t file, int r, struct error *err)
{
	return file < MACHINE_MAX_DISKS
		       ? error_set(err, r, "cannot write disk %u at the target: %s", file, strerror(-r))
		       : error_set(err, r, "cannot write the %s at the target: %s",
				   names[file - MIGRATE_FILE_KERNEL], strerror(-r));
}

int migrate_files_take(struct migrate_files *f, const uint8_t *payload, size_t len, struct error *err)
{
	struct migrate_chunk c;
	int r = migrate_chunk_get(&f->reader, &c, payload, len, err);

	if (r < 0)
		return r;
	if (c.file < MACHINE_MAX_DISKS && f->disks[c.file]) {
		struct block_dev *b = f->disks[c.file];
		struct block_info info;

		b->ops->info(b, &info);
		if (c.offset > info.size_bytes || c.len > info.size_bytes - c.offset ||
		    (c.offset | c.len) % BLOCK_SECTOR)
			return not_wanted(err);
		r = c.data ? block_copy_write(b, c.data, c.offset, c.len)
			   : block_copy_zero(b, c.offset, c.len);
	} else if (c.file >= MIGRATE_FILE_KERNEL && c.file < MIGRATE_FILE_KERNEL + MIGRATE_NFILES &&
		   f->files[c.file - MIGRATE_FILE_KERNEL].fd >= 0 && c.data) {
		uint64_t size = f->files[c.file - MIGRATE_FILE_KERNEL].size_bytes;

		if (c.offset > size || c.len > size - c.offset)
			return not_wanted(err);
		r = host_pwrite_all(f->files[c.file - MIGRATE_FILE_KERNEL].fd, c.data, c.len, c.offset);
	} else {
		return not_wanted(err);
	}
	return r < 0 ? cannot_write(c.file, r, err) : 0;
}

int migrate_files_flush(struct migrate_files *f, struct error *err)
{
	int r = 0;
	uint32_t i;

	for (i = 0; i < MACHINE_MAX_DISKS && r == 0; i++)
		if (f->disks[i])
			r = block_copy_flush(f->disks[i]);
	if (r < 0)
		return cannot_write(i - 1, r, err);
	for (i = 0; i < MIGRATE_NFILES; i++)
		if (f->files[i].fd >= 0 && host.fdatasync(f->files[i].fd) < 0)
			return cannot_write(MIGRATE_FILE_KERNEL + i, -errno, err);
	return 0;
}

int migrate_files_check(struct migrate_files *f, const uint8_t *payload, size_t len, struct error *err)
{
	struct migrate_units u;
	struct block_info info;
	int r = migrate_units_get(&u, payload, len, err);

	if (r < 0)
		return r;
	struct block_dev *b = u.file < MACHINE_MAX_DISKS ? f->disks[u.file] : NULL;

	if (!b)
		return not_wanted(err);
	b->ops->info(b, &info);
	if (u.first + u.n > (info.size_bytes + MIGRATE_UNIT_BYTES - 1) / MIGRATE_UNIT_BYTES)
		return not_wanted(err);
	if (!f->buf)
		f->buf = malloc(MIGRATE_UNIT_BYTES);
	if (!f->buf)
		return error_set(err, -ENOMEM, "no memory to compare a disk");
	for (uint32_t i = 0; i < u.n; i++) {
		uint64_t unit = u.first + i, at = unit * MIGRATE_UNIT_BYTES, sum;
		uint64_t n = MIN(info.size_bytes - at, (uint64_t)MIGRATE_UNIT_BYTES);

		memcpy(&sum, u.sums + 8ULL * i, sizeof(sum));
		r = block_copy_read(b, f->buf, at, n);
		if (r < 0)
			return error_set(err, r, "cannot read disk %u at the target: %s", u.file,
					 strerror(-r));
		if (migrate_unit_sum(unit, f->buf, n) != sum)
			return error_set(err, -EBADMSG, "disk %u is not the source's: the first difference is in the 64 KiB at byte %llu",
					 u.file, (unsigned long long)at);
	}
	return 0;
}
