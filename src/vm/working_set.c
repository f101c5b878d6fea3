/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/working_set.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "base/host.h"

static const char magic[8] = "VIVWKSET";
#define SET_VERSION   1
#define HEADER_BYTES  20
#define PAGEMAP_BYTES 8
#define PAGEMAP_THERE (1ull << 63)
#define PAGEMAP_CHUNK 4096u /* entries read at once */
/* At once.  Who ends the reading waits for so much; and while pages are put in place nobody maps memory, a vCPU that begins neither. */
#define READ_PAGES   256u
#define PLACE_PAGES  64u
#define PREFETCH_GAP 16u /* pages between two runs that are read with them: less than a seek */

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

static int add_page(struct working_set *w, uint32_t page)
{
	struct page_run *last = w->nruns ? &w->runs[w->nruns - 1] : NULL;

	if (last && last->first + last->n == page) {
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
	w->runs[w->nruns++] = (struct page_run){ page, 1 };
	return 0;
}

int working_set_add(struct working_set *w, const struct guest_ram *ram, uint64_t first_page,
		    uint64_t npages, struct error *err)
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
			if (entries[i] & PAGEMAP_THERE && add_page(w, (uint32_t)(at + i)) < 0)
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
		bytes_put_u32(out, w->runs[i].n);
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

struct working_set_reader {
	pthread_t thread;
	struct working_set set;
	uint8_t *base; /* of the mapping */
	sem_t go;      /* posted by working_set_put_in_place(), and at the end */
	_Atomic bool is_ending;
};

/* A hint: what the host refuses is read when it is touched. */
static void advise(const struct working_set_reader *r, uint64_t first, uint64_t end, int advice)
{
	for (uint64_t n; first < end && !r->is_ending; first += n) {
		n = MIN(end - first, (uint64_t)(advice == MADV_WILLNEED ? READ_PAGES : PLACE_PAGES));
		(void)madvise(r->base + (first << GUEST_PAGE_SHIFT), n << GUEST_PAGE_SHIFT, advice);
	}
}

/* All that is to be read is known to the host before anything is waited for. */
static void *reader_main(void *arg)
{
	struct working_set_reader *r = arg;
	const struct working_set *w = &r->set;

	for (size_t i = 0, next; i < w->nruns && !r->is_ending; i = next) {
		uint64_t first = w->runs[i].first, end = first + w->runs[i].n;

		for (next = i + 1; next < w->nruns && w->runs[next].first - end <= PREFETCH_GAP; next++)
			end = (uint64_t)w->runs[next].first + w->runs[next].n;
		advise(r, first, end, MADV_WILLNEED);
	}
	while (sem_wait(&r->go) < 0)
		continue;
	for (size_t i = 0; i < w->nruns && !r->is_ending; i++)
		advise(r, w->runs[i].first, (uint64_t)w->runs[i].first + w->runs[i].n, MADV_POPULATE_READ);
	return NULL;
}

static void reader_free(struct working_set_reader *r)
{
	sem_destroy(&r->go);
	working_set_free(&r->set);
	free(r);
}

struct working_set_reader *working_set_read_ahead(struct working_set *w, const struct guest_ram *ram)
{
	struct working_set_reader *r = w->ram_bytes == ram->size_bytes ? calloc(1, sizeof(*r)) : NULL;
	sigset_t all, old;

	if (!r)
		return NULL;
	r->base = ram->base;
	r->set = *w;
	*w = (struct working_set){ 0 };
	sem_init(&r->go, 0, 0);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int rc = pthread_create(&r->thread, NULL, reader_main, r);

	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc == 0)
		return r;
	reader_free(r);
	return NULL;
}

void working_set_put_in_place(struct working_set_reader *r)
{
	if (r)
		sem_post(&r->go);
}

void working_set_read_end(struct working_set_reader *r)
{
	if (!r)
		return;
	r->is_ending = true;
	sem_post(&r->go);
	pthread_join(r->thread, NULL);
	reader_free(r);
}
