/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/working_set.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <xxhash.h>

#include "base/host.h"
#include "vm/snapshot_ram.h"

static const char magic[8] = "VIVWKSET";
#define SET_VERSION   2
#define HEADER_BYTES  20
#define PAGEMAP_BYTES 8
#define PAGEMAP_THERE (1ull << 63)
#define PAGEMAP_FILE  (1ull << 61) /* or shared: not this process's own */
#define RUN_WRITTEN   (1u << 31)
#define PAGEMAP_CHUNK 4096u /* entries read at once */
/* At once: while they are put in place nobody maps memory, a vCPU that begins neither. */
#define PLACE_PAGES 64u
/* Bytes that are asked for at once: who starts the machine waits behind them for what it reads itself. */
#define PREFETCH_QUEUE (256 * KIB)
#define READER_NICE    10
#define PREFETCH_GAP   8u /* pages between two runs that are read with them: less than a seek */

void working_set_free(struct working_set *w)
{
	free(w->runs);
	*w = (struct working_set){ 0 };
}

uint64_t working_set_pages(const struct working_set *w)
{
	uint64_t n = 0;

	for (size_t i = 0; i < w->nruns; i++)
		n += w->runs[i].n;
	return n;
}

static int add_page(struct working_set *w, uint32_t page, bool is_written)
{
	struct page_run *last = w->nruns ? &w->runs[w->nruns - 1] : NULL;

	if (last && last->first + last->n == page && last->is_written == is_written) {
		last->n++;
		return 0;
	}
	if (w->nruns == WORKING_SET_RUNS_MAX)
		return 0;
	if (w->nruns % 1024 == 0) {
		void *runs = realloc(w->runs, (w->nruns + 1024) * sizeof(*w->runs));

		if (!runs)
			return -ENOMEM;
		w->runs = runs;
	}
	w->runs[w->nruns++] = (struct page_run){ page, 1, is_written };
	return 0;
}

static bool counts(const struct guest_ram *ram, uint64_t page, uint64_t entry, bool is_seen)
{
	return entry & PAGEMAP_THERE &&
	       (!is_seen ||
		atomic_load_explicit(&ram->page_flags[page], memory_order_relaxed) & RAM_PAGE_SEEN);
}

int working_set_add(struct working_set *w, const struct guest_ram *ram, uint64_t first_page,
		    uint64_t npages, bool is_seen, struct error *err)
{
	_cleanup_close_ int fd = host.open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0);
	uint64_t entries[PAGEMAP_CHUNK], end = first_page + npages;
	uint64_t base = (uint64_t)(uintptr_t)ram->base >> GUEST_PAGE_SHIFT;

	w->ram_bytes = ram->size_bytes;
	if (fd < 0)
		return error_set(err, -errno, "cannot open /proc/self/pagemap: %s", strerror(errno));
	for (uint64_t at = first_page; at < end;) {
		uint64_t n = MIN(end - at, (uint64_t)PAGEMAP_CHUNK);
		ssize_t got = host.pread(fd, entries, n * PAGEMAP_BYTES,
					 (off_t)((base + at) * PAGEMAP_BYTES));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < PAGEMAP_BYTES)
			return error_set(err, got < 0 ? -errno : -EIO, "cannot read /proc/self/pagemap");
		n = (uint64_t)got / PAGEMAP_BYTES;
		for (uint64_t i = 0; i < n; i++)
			if (counts(ram, at + i, entries[i], is_seen) &&
			    add_page(w, (uint32_t)(at + i), !(entries[i] & PAGEMAP_FILE)) < 0)
				return error_set(err, -ENOMEM, "no memory for a working set");
		at += n;
	}
	return 0;
}

int working_set_save(const struct working_set *w, struct bytes *out, struct error *err)
{
	size_t start = out->len;

	bytes_put(out, magic, sizeof(magic));
	bytes_put_u32(out, SET_VERSION);
	bytes_put_u64(out, w->ram_bytes);
	for (size_t i = 0; i < w->nruns; i++) {
		bytes_put_u32(out, w->runs[i].first);
		bytes_put_u32(out, w->runs[i].n | (w->runs[i].is_written ? RUN_WRITTEN : 0));
	}
	if (!out->is_failed)
		bytes_put_u64(out, XXH64(out->data + start, out->len - start, 0));
	return out->is_failed ? error_set(err, -ENOMEM, "no memory for a working set") : 0;
}

static int damaged(struct error *err)
{
	return error_set(err, -EINVAL, "the working set is damaged");
}

int working_set_parse(struct working_set *out, const uint8_t *data, size_t len, struct error *err)
{
	struct working_set w = { 0 };
	uint64_t sum, end = 0;

	if (len < HEADER_BYTES + 8 || len > WORKING_SET_MAX || (len - HEADER_BYTES) % 8 ||
	    memcmp(data, magic, sizeof(magic)) != 0)
		return error_set(err, -EINVAL, "this is no working set");
	struct byte_reader in = { .data = data, .len = len - 8, .pos = 8 };
	uint32_t version = bytes_get_u32(&in);

	w.ram_bytes = bytes_get_u64(&in);
	memcpy(&sum, data + len - 8, 8);
	if (version != SET_VERSION || sum != XXH64(data, len - 8, 0))
		return damaged(err);
	w.nruns = (len - HEADER_BYTES - 8) / 8;
	w.runs = malloc(MAX(w.nruns, (size_t)1) * sizeof(*w.runs));
	if (!w.runs)
		return error_set(err, -ENOMEM, "no memory for a working set");
	for (size_t i = 0; i < w.nruns; i++) {
		struct page_run *r = &w.runs[i];

		r->first = bytes_get_u32(&in);
		r->n = bytes_get_u32(&in);
		r->is_written = r->n & RUN_WRITTEN;
		r->n &= ~RUN_WRITTEN;
		if (!r->n || r->first < end ||
		    (uint64_t)r->first + r->n > w.ram_bytes >> GUEST_PAGE_SHIFT) {
			working_set_free(&w);
			return damaged(err);
		}
		end = (uint64_t)r->first + r->n;
	}
	*out = w;
	return 0;
}

/* ---- reading ahead ---- */

/* The run from @*i on, with those that are close behind it; *@i: the next. */
static struct page_run joined(const struct working_set *w, size_t *i)
{
	struct page_run r = w->runs[(*i)++];

	for (; *i < w->nruns && w->runs[*i].first - (r.first + r.n) <= PREFETCH_GAP; (*i)++)
		r.n = w->runs[*i].first + w->runs[*i].n - r.first;
	return r;
}

/* What was asked for: two queues of it at a time, so that the disk has the next one while the end of one is waited for. */
struct asked {
	uint64_t bytes;
	int fd; /* the end of the queue before; -1: there is none */
	uint64_t end;
};

static void ask(struct asked *a, int fd, uint64_t at, uint64_t len)
{
	char last;

	(void)posix_fadvise(fd, (off_t)at, (off_t)len, POSIX_FADV_WILLNEED);
	a->bytes += len;
	if (a->bytes < PREFETCH_QUEUE)
		return;
	if (a->fd >= 0)
		(void)!host.pread(a->fd, &last, 1, (off_t)a->end - 1);
	*a = (struct asked){ .fd = fd, .end = at + len };
}

struct working_set_reader {
	pthread_t thread;
	struct working_set set;
	uint8_t *base;	    /* of the mapping */
	struct ram_index x; /* without names and checksums */
	int *fds;	    /* own ones of its layers */
	sem_t go;	    /* posted by working_set_put_in_place(), and at the end */
	_Atomic bool is_ending;
};

static void prefetch_run(const struct working_set_reader *r, const struct page_run *run,
			 struct asked *asked)
{
	uint64_t at = (uint64_t)run->first << GUEST_PAGE_SHIFT;
	uint64_t end = at + ((uint64_t)run->n << GUEST_PAGE_SHIFT);

	for (uint64_t n; at < end && !r->is_ending; at += n) {
		unsigned layer = r->x.layer[at / r->x.granule_bytes];

		n = MIN(MIN(end - at, r->x.granule_bytes - at % r->x.granule_bytes), PREFETCH_QUEUE);
		if (layer)
			ask(asked, r->fds[layer - 1], at, n);
	}
}

static void prefetch(const struct working_set_reader *r)
{
	struct asked asked = { .fd = -1 };

	for (size_t i = 0; i < r->set.nruns;) {
		struct page_run run = joined(&r->set, &i);

		prefetch_run(r, &run, &asked);
	}
}

/* A hint: what the host refuses is read when it is touched. */
static void put_in_place(const struct working_set_reader *r, bool is_written)
{
	for (size_t i = 0; i < r->set.nruns; i++) {
		const struct page_run *run = &r->set.runs[i];
		uint64_t at = run->first, end = at + run->n;

		for (uint64_t n; run->is_written == is_written && at < end && !r->is_ending; at += n) {
			n = MIN(end - at, (uint64_t)PLACE_PAGES);
			(void)madvise(r->base + (at << GUEST_PAGE_SHIFT), n << GUEST_PAGE_SHIFT,
				      is_written ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
		}
	}
}

static void *reader_main(void *arg)
{
	struct working_set_reader *r = arg;

	/* The guest comes first, where there are few processors. */
	(void)setpriority(PRIO_PROCESS, 0, READER_NICE);
	prefetch(r);
	while (sem_wait(&r->go) < 0)
		continue;
	/* Written ones first: where the host has put a page in place already, with its neighbours, a copy of it has to be told to all processors. */
	put_in_place(r, true);
	put_in_place(r, false);
	(void)madvise(r->base, r->set.ram_bytes, MADV_NORMAL);
	return NULL;
}

static void reader_free(struct working_set_reader *r)
{
	for (uint32_t i = 0; r->fds && i < r->x.nlayers; i++)
		if (r->fds[i] >= 0)
			close(r->fds[i]);
	free(r->fds);
	free(r->x.layer);
	sem_destroy(&r->go);
	working_set_free(&r->set);
	free(r);
}

static bool take_files(struct working_set_reader *r, const struct ram_files *f)
{
	r->x = (struct ram_index){ .ram_bytes = f->index.ram_bytes,
				   .granule_bytes = f->index.granule_bytes,
				   .ngranules = f->index.ngranules };
	r->x.layer = malloc(MAX(r->x.ngranules, 1u) * sizeof(*r->x.layer));
	r->fds = malloc((f->index.nlayers + 1) * sizeof(*r->fds));
	if (!r->x.layer || !r->fds)
		return false;
	memcpy(r->x.layer, f->index.layer, r->x.ngranules * sizeof(*r->x.layer));
	for (; r->x.nlayers < f->index.nlayers; r->x.nlayers++) {
		r->fds[r->x.nlayers] = fcntl(f->fds[r->x.nlayers], F_DUPFD_CLOEXEC, 3);
		if (r->fds[r->x.nlayers] < 0)
			return false;
	}
	return true;
}

struct working_set_reader *working_set_read_ahead(struct working_set *w, const struct guest_ram *ram,
						  const struct ram_files *files)
{
	bool is_ours = w->ram_bytes == ram->size_bytes && w->ram_bytes == files->index.ram_bytes;
	struct working_set_reader *r = is_ours ? calloc(1, sizeof(*r)) : NULL;
	sigset_t all, old;
	int rc = -1;

	if (!r)
		return NULL;
	r->base = ram->base;
	r->set = *w;
	*w = (struct working_set){ 0 };
	sem_init(&r->go, 0, 0);
	if (take_files(r, files)) {
		/* A host that reads megabytes around each page that the guest comes to would have the disk busy with what nobody needs. */
		(void)madvise(r->base, r->set.ram_bytes, MADV_RANDOM);
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		rc = pthread_create(&r->thread, NULL, reader_main, r);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	if (rc == 0)
		return r;
	(void)madvise(ram->base, ram->size_bytes, MADV_NORMAL);
	reader_free(r);
	return NULL;
}

void working_set_put_in_place(struct working_set_reader *r)
{
	if (r)
		sem_post(&r->go);
}

void working_set_read_wait(struct working_set_reader *r)
{
	if (!r)
		return;
	sem_post(&r->go);
	pthread_join(r->thread, NULL);
	reader_free(r);
}

void working_set_read_end(struct working_set_reader *r)
{
	if (r)
		r->is_ending = true;
	working_set_read_wait(r);
}
