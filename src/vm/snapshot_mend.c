/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/snapshot_mend.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#include "base/host.h"
#include "base/log.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif
#define HUGE_BYTES     (2 * MIB)
#define HUGE_PAGES     (HUGE_BYTES / GUEST_PAGE_SIZE)
#define MEND_NICE      15
#define REST_NS	       1000000L /* after each: the guest faults pages in meanwhile */
#define ENTRY_THERE    (1ull << 63)
#define ENTRY_OF_FILE  (1ull << 61)
#define ENTRY_UNSHARED (1ull << 56)
#define ENTRY_IS_MENDED(e)                                                                         \
	(((e) & (ENTRY_THERE | ENTRY_UNSHARED | ENTRY_OF_FILE)) == (ENTRY_THERE | ENTRY_UNSHARED))

struct ram_mend {
	pthread_t thread;
	uint8_t *base;
	uint64_t size_bytes;
	int pagemap;
	_Atomic bool is_stopping;
};

/* All of the 2 MiB at @p in pages of this process alone. */
static bool is_whole(const struct ram_mend *m, const uint8_t *p)
{
	uint64_t entries[HUGE_PAGES];
	off_t at = (off_t)((uintptr_t)p / GUEST_PAGE_SIZE * sizeof(entries[0]));

	if (host.pread(m->pagemap, entries, sizeof(entries), at) != sizeof(entries))
		return false;
	for (size_t i = 0; i < HUGE_PAGES; i++)
		if (!ENTRY_IS_MENDED(entries[i]))
			return false;
	return true;
}

static void *mend_main(void *arg)
{
	struct ram_mend *m = arg;
	uintptr_t first = ALIGN_UP((uintptr_t)m->base, HUGE_BYTES);
	const struct timespec rest = { .tv_nsec = REST_NS };
	uint8_t *end = m->base + m->size_bytes;

	setpriority(PRIO_PROCESS, 0, MEND_NICE); /* of this thread, on Linux */
	for (uint8_t *p = (uint8_t *)first; !m->is_stopping && p + HUGE_BYTES <= end; p += HUGE_BYTES) {
		struct timespec before, after;

		if (!is_whole(m, p))
			continue;
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
		/* EINVAL: mapped from a file.  EAGAIN, ENOMEM: no huge page is to be had now. */
		if (madvise(p, HUGE_BYTES, MADV_COLLAPSE) < 0 && errno == EINVAL)
			continue;
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
		/* One that was whole already takes next to nothing. */
		if ((after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec > 50000)
			nanosleep(&rest, NULL);
	}
	return NULL;
}

void ram_mend_wait(struct ram_mend *m)
{
	if (!m)
		return;
	pthread_join(m->thread, NULL);
	close(m->pagemap);
	free(m);
}

void ram_mend_stop(struct ram_mend *m)
{
	if (m)
		m->is_stopping = true;
	ram_mend_wait(m);
}

struct ram_mend *ram_mend_start(const struct guest_ram *ram)
{
	struct ram_mend *m = calloc(1, sizeof(*m));
	sigset_t all, old;

	if (!m)
		return NULL;
	*m = (struct ram_mend){ .base = ram->base, .size_bytes = ram->size_bytes };
	m->pagemap = host.open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0);
	/* The process's signals are for its own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int r = m->pagemap < 0 ? errno : pthread_create(&m->thread, NULL, mend_main, m);

	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!r)
		return m;
	log_debug("snapshot", "huge pages stay broken up: %s", strerror(r));
	if (m->pagemap >= 0)
		close(m->pagemap);
	free(m);
	return NULL;
}
