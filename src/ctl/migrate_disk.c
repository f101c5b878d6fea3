/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's files: disks and the like that the target does not see (it said so with ACCEPT) go over link 0.
 *
 *   before memory    everything but what is zero; then what the guest wrote meanwhile, again and again until that gets no less
 *   between rounds   what was written since
 *   standing still   the rest; with --verify the checksums
 *
 * Every SYNC_BYTES (also of what is compared), and at the end of a round, the target makes stable what it has and says so: it never has more than that to do when the
 * machine stands still.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/host.h"
#include "ctl/migrate_int.h"

#define SYNC_BYTES	(256 * MIB)
#define SYNC_MS		120000 /* that the target may take for that */
#define FEW_BYTES	(1 * MIB)
#define TRIES_TO_SHRINK 8
#define TRIAL		32 /* pieces between trials of the other codec */
#define SMOOTH		0.2

static void learn(double *mean, double value)
{
	*mean = *mean ? *mean + SMOOTH * (value - *mean) : value;
}

static struct block_dev *disk_of(const struct migrator *g, unsigned i)
{
	return machine_block(g->cfg.machine, i);
}

static uint64_t nunits(const struct migrate_file *f)
{
	return (f->size_bytes + BLOCK_TRACK_BYTES - 1) / BLOCK_TRACK_BYTES;
}

/* ---- what is there ---- */

int migrate_disks_measure(struct migrator *g, struct error *err)
{
	for (unsigned i = 0; i < g->offer.config.ndisks; i++) {
		struct migrate_file *f = &g->offer.disks[i];

		f->used_bytes = 0;
		for (uint64_t at = 0, run; at < f->size_bytes; at += run) {
			bool is_zero;
			int r = block_copy_status(disk_of(g, i), at, f->size_bytes - at, &is_zero, &run);

			if (r < 0)
				return error_set(err, r, "cannot read disk %u: %s", i, strerror(-r));
			f->used_bytes += is_zero ? 0 : run;
		}
	}
	return 0;
}

/* ---- records ---- */

static int want_done(struct migrator *g, struct error *err)
{
	struct migrate_disks *d = &g->disks;
	struct migrate_link *l = &g->links[0];

	migrate_record_put(&l->out, MIGRATE_R_DISK_ROUND, &l->seq_out, &d->round, sizeof(d->round));
	int r = migrate_flush_link0(g, err);

	if (r == 0)
		r = migrate_await_round(g, MIGRATE_R_DISK_DONE, d->round, SYNC_MS, err);
	if (r < 0)
		return r;
	d->unsynced_bytes = 0;
	d->round++;
	return 0;
}

/* Does zstd pay?  What is not known yet is tried. */
static bool packs(struct migrate_disks *d)
{
	bool yes = !d->pack_ns || d->pack_ns + d->pack_ratio * d->byte_ns < d->byte_ns;

	if (!d->byte_ns)
		return false;
	if (++d->since_trial <= TRIAL)
		return yes;
	d->since_trial = 0;
	return true;
}

static int put_chunk(struct migrator *g, const struct migrate_chunk *c, struct error *err)
{
	struct migrate_disks *d = &g->disks;
	struct migrate_link *l = &g->links[0];
	bool tries = c->data && c->len >= 4096 && packs(d);
	int64_t from = migrate_now_ns();
	int r = migrate_chunk_put(&g->senders[0].packer, &l->out, &l->seq_out, tries, c);
	int64_t packed = migrate_now_ns();
	size_t n = l->out.len;

	if (r < 0)
		return error_set(err, r, "no memory to send a disk");
	if (tries) {
		learn(&d->pack_ns, (double)(packed - from) / (double)c->len);
		learn(&d->pack_ratio, (double)n / (double)c->len);
	}
	d->unsynced_bytes += c->data ? c->len : 0;
	g->f.disk_bytes_sent += n;
	r = migrate_flush_link0(g, err);
	if (r == 0 && n >= 16 * KIB)
		learn(&d->byte_ns, (double)(migrate_now_ns() - packed) / (double)n);
	return r;
}

/* ---- files ---- */

static int send_file(struct migrator *g, uint32_t number, const struct migrate_file *f,
		     const char *path, struct error *err)
{
	_cleanup_close_ int fd = host.open(path, O_RDONLY | O_CLOEXEC, 0);
	int r = 0;

	if (fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	for (uint64_t at = 0; r == 0 && at < f->size_bytes;) {
		uint64_t want = MIN(f->size_bytes - at, (uint64_t)MIGRATE_CHUNK_BYTES);
		ssize_t n = pread(fd, g->disks.buf, want, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n < 0 ? -errno : -EIO, "cannot read %s: %s", path,
					 n < 0 ? strerror(errno) : "it has become shorter");
		r = put_chunk(g,
			      &(struct migrate_chunk){ .file = number,
						       .offset = at,
						       .len = (uint64_t)n,
						       .data = g->disks.buf },
			      err);
		at += (uint64_t)n;
	}
	return r;
}

static int send_files(struct migrator *g, struct error *err)
{
	const char *path;
	int r = 0;

	for (uint32_t n = MIGRATE_FILE_KERNEL; r == 0 && n <= MIGRATE_FILE_FIRMWARE; n++) {
		const struct migrate_file *f = migrate_file_of(&g->offer, n, &path);

		if (f && f->is_copied)
			r = send_file(g, n, f, path, err);
	}
	return r;
}

/* ---- disks ---- */

/* What the buffer holds of [@at, @at + @len), without what is zero there if that is what it is at the target anyway. */
static int send_data(struct migrator *g, uint32_t i, uint64_t at, uint64_t len, struct error *err)
{
	int r = 0;

	for (uint64_t done = 0, n; r == 0 && done < len; done += n) {
		struct migrate_chunk c = { .file = i, .offset = at + done };
		const uint8_t *p = g->disks.buf + done;

		n = MIN(len - done, BLOCK_TRACK_BYTES);
		bool zero = bytes_are_zero(p, n);

		while (done + n < len &&
		       bytes_are_zero(p + n, MIN(len - done - n, BLOCK_TRACK_BYTES)) == zero)
			n += MIN(len - done - n, BLOCK_TRACK_BYTES);
		c.len = n;
		c.data = zero ? NULL : p;
		if (!zero || !g->disks.is_first)
			r = put_chunk(g, &c, err);
	}
	return r;
}

/* [@at, @at + @len) of disk @i. */
static int send_range(struct migrator *g, uint32_t i, uint64_t at, uint64_t len, struct error *err)
{
	int r = 0;

	for (uint64_t end = at + len, run; r == 0 && at < end; at += run) {
		bool zero;

		r = block_copy_status(disk_of(g, i), at, end - at, &zero, &run);
		if (r == 0 && zero) {
			const struct migrate_chunk c = { .file = i, .offset = at, .len = run };

			r = g->disks.is_first ? 0 : put_chunk(g, &c, err);
		} else if (r == 0) {
			run = MIN(run, (uint64_t)MIGRATE_CHUNK_BYTES);
			r = block_copy_read(disk_of(g, i), g->disks.buf, at, run);
			if (r == 0)
				r = send_data(g, i, at, run, err);
			else
				r = error_set(err, r, "cannot read disk %u: %s", i, strerror(-r));
		} else {
			r = error_set(err, r, "cannot read disk %u: %s", i, strerror(-r));
		}
	}
	return r;
}

static bool is_late(const struct migrator *g)
{
	return !g->is_paused && g->deadline_ns &&
	       migrate_now_ns() - g->f.begin_ns > (int64_t)g->deadline_ns;
}

/* Next run of set bits from @from on, cleared; at most a record's worth.  Returns its length in bits; 0: none. */
static uint64_t take_run(uint64_t *bits, uint64_t n, uint64_t *from)
{
	uint64_t c = *from, len = 0;

	while (c < n && !(bits[c / 64] >> c % 64 & 1))
		c = bits[c / 64] >> c % 64 ? c + 1 : (c / 64 + 1) * 64;
	for (*from = c; c + len < n && len < MIGRATE_CHUNK_BYTES / BLOCK_TRACK_BYTES; len++) {
		if (!(bits[(c + len) / 64] >> (c + len) % 64 & 1))
			break;
		bits[(c + len) / 64] &= ~(1ULL << (c + len) % 64);
	}
	return len;
}

static void count_left(struct migrator *g)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < g->offer.config.ndisks; i++)
		for (uint64_t w = 0; g->disks.todo[i] && w < block_track_words(disk_of(g, i)); w++)
			n += (uint64_t)__builtin_popcountll(g->disks.todo[i][w]);
	g->f.disk_bytes_left = n * BLOCK_TRACK_BYTES;
}

/* What todo says of disk @i.  With the deadline over it stops; the rest stays to be done. */
static int send_disk(struct migrator *g, uint32_t i, struct error *err)
{
	uint64_t *todo = g->disks.todo[i], n = nunits(&g->offer.disks[i]), at = 0, len;
	int r = 0;

	while (r == 0 && !is_late(g) && (len = take_run(todo, n, &at)) > 0) {
		uint64_t from = at * BLOCK_TRACK_BYTES;
		uint64_t end = MIN((at + len) * BLOCK_TRACK_BYTES, g->offer.disks[i].size_bytes);

		r = send_range(g, i, from, end - from, err);
		at += len;
		g->f.disk_bytes_left -= MIN(len * BLOCK_TRACK_BYTES, (uint64_t)g->f.disk_bytes_left);
		if (r == 0 && g->disks.unsynced_bytes >= SYNC_BYTES)
			r = want_done(g, err);
		if (r == 0 && g->is_stopping)
			r = error_set(err, -ECANCELED, "canceled");
	}
	return r;
}

static int send_disks(struct migrator *g, struct error *err)
{
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < g->offer.config.ndisks; i++)
		if (g->disks.todo[i])
			r = send_disk(g, i, err);
	return r;
}

static void collect(struct migrator *g)
{
	for (unsigned i = 0; i < g->offer.config.ndisks; i++)
		if (g->disks.todo[i])
			block_track_collect(disk_of(g, i), g->disks.todo[i]);
	count_left(g);
}

/* With the lock. */
static int begin(struct migrator *g, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < g->offer.config.ndisks; i++) {
		uint64_t n = nunits(&g->offer.disks[i]);

		if (!g->offer.disks[i].is_copied)
			continue;
		g->disks.todo[i] = calloc(block_track_words(disk_of(g, i)), 8);
		if (!g->disks.todo[i])
			return error_set(err, -ENOMEM, "no memory to copy a disk");
		for (uint64_t c = 0; c < n; c++)
			g->disks.todo[i][c / 64] |= 1ULL << c % 64;
		r = block_track_begin(disk_of(g, i), err);
	}
	return r;
}

int migrate_disks_round(struct migrator *g, struct error *err)
{
	if (!g->disks.any)
		return 0;
	collect(g);
	if (!g->f.disk_bytes_left)
		return 0;
	int r = send_disks(g, err);

	if (r == 0)
		r = want_done(g, err);
	collect(g);
	return r;
}

int migrate_disks_copy(struct migrator *g, struct error *err)
{
	uint64_t last = UINT64_MAX;
	const char *path;
	int r;

	for (uint32_t n = 0; n <= MIGRATE_FILE_FIRMWARE; n++) {
		const struct migrate_file *f = migrate_file_of(&g->offer, n, &path);

		g->disks.any |= f && f->is_copied;
	}
	if (!g->disks.any)
		return 0;
	g->disks.buf = aligned_alloc(4096, MIGRATE_CHUNK_BYTES);
	if (!g->disks.buf)
		return error_set(err, -ENOMEM, "no memory to copy files");
	pthread_mutex_lock(machine_lock(g->cfg.machine));
	r = begin(g, err);
	pthread_mutex_unlock(machine_lock(g->cfg.machine));
	if (r == 0)
		r = send_files(g, err);
	g->disks.is_first = true;
	count_left(g);
	if (r == 0)
		r = send_disks(g, err);
	/* Cut short by the deadline, what is left may go either way. */
	g->disks.is_first = false;
	if (r == 0)
		r = want_done(g, err);
	for (unsigned i = 0; r == 0 && i < TRIES_TO_SHRINK && !is_late(g); i++) {
		collect(g);
		if (g->f.disk_bytes_left <= FEW_BYTES || g->f.disk_bytes_left >= last)
			break;
		last = g->f.disk_bytes_left;
		r = migrate_disks_round(g, err);
	}
	return r;
}

uint64_t migrate_disks_left_ns(const struct migrator *g)
{
	/* Disk and link at the target take their time, too: as if all of it went raw. */
	return (uint64_t)(g->disks.byte_ns * (double)g->f.disk_bytes_left);
}

static int send_sums(struct migrator *g, uint32_t i, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	uint64_t size = g->offer.disks[i].size_bytes, n = nunits(&g->offer.disks[i]), sums[256];
	int r = 0;

	for (uint64_t first = 0, k; r == 0 && first < n; first += k) {
		for (k = 0; r == 0 && k < ARRAY_SIZE(sums) && first + k < n; k++) {
			uint64_t at = (first + k) * MIGRATE_UNIT_BYTES;
			uint64_t len = MIN(size - at, (uint64_t)MIGRATE_UNIT_BYTES);

			r = block_copy_read(disk_of(g, i), g->disks.buf, at, len);
			sums[k] = migrate_unit_sum(first + k, g->disks.buf, len);
		}
		if (r < 0)
			return error_set(err, r, "cannot read disk %u: %s", i, strerror(-r));
		migrate_units_put(&l->out, &l->seq_out, i, first, sums, (uint32_t)k);
		r = migrate_flush_link0(g, err);
		/* Much reading for few bytes: what buffers on the way hold takes the target long. */
		if (r == 0 && (first + k) * MIGRATE_UNIT_BYTES % SYNC_BYTES == 0)
			r = want_done(g, err);
	}
	return r;
}

int migrate_disks_rest(struct migrator *g, struct error *err)
{
	if (!g->disks.any)
		return 0;
	pthread_mutex_lock(machine_lock(g->cfg.machine));
	for (unsigned i = 0; i < g->offer.config.ndisks; i++)
		if (g->disks.todo[i])
			disk_of(g, i)->ops->drain(disk_of(g, i));
	pthread_mutex_unlock(machine_lock(g->cfg.machine));
	collect(g);
	int r = send_disks(g, err);

	for (uint32_t i = 0; r == 0 && g->offer.verifies && i < g->offer.config.ndisks; i++)
		if (g->disks.todo[i])
			r = send_sums(g, i, err);
	return r;
}

void migrate_disks_end(struct migrator *g)
{
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (g->disks.todo[i])
			block_track_end(disk_of(g, i));
		free(g->disks.todo[i]);
	}
	free(g->disks.buf);
	g->disks = (struct migrate_disks){ 0 };
}
