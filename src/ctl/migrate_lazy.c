/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migrate_lazy.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/migrate_claim.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "engine/engine.h"

#define FAULTS_AT_ONCE 16
#define DOOR_MS	       5000
#define COMMIT_MS      120000 /* as in migrate_target.c: the source gives its disks away meanwhile */

struct migrate_lazy {
	struct migrate_lazy_config cfg;
	int uffd, stop_fd;
	uint64_t npages, next_noted;
	uint64_t *sums; /* of missing pages; NULL: not wanted */
	pthread_t faults_thread, link_thread;
	bool has_faults_thread, has_link_thread, has_begun;
	struct migrate_unpacker unpacker; /* LINK's */

	pthread_mutex_t lock;
	pthread_cond_t news;
	/* Under @lock. */
	_Atomic uint64_t *missing, *wanted; /* a bit a page; LINK clears without it */
	_Atomic uint64_t nmissing;	    /* LINK counts down without it */
	bool has_commit, is_commit_told, is_canceled;
	int64_t still_since_ns; /* by the commit */
	unsigned nlost, nback, nlost_told, nback_told;
	struct error why;
};

static bool get_bit(const _Atomic uint64_t *map, uint64_t i)
{
	return atomic_load(&map[i / 64]) >> i % 64 & 1;
}

static void set_bit(_Atomic uint64_t *map, uint64_t i)
{
	atomic_fetch_or(&map[i / 64], 1ULL << i % 64);
}

static void clear_bit(_Atomic uint64_t *map, uint64_t i)
{
	atomic_fetch_and(&map[i / 64], ~(1ULL << i % 64));
}

/* ---- life ---- */

int migrate_faults_open(struct error *err)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0)
		return fd;
	int e = -errno;

	if (fd >= 0)
		close(fd);
	return error_set(err, e, "this host gives no userfaultfd: %s", strerror(-e));
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int refuse(const struct migrate_lazy_config *cfg, int r)
{
	int door = cfg->door_fd, faults = cfg->faults_fd;

	close_fd(&door);
	close_fd(&faults);
	return r;
}

int migrate_lazy_create(struct migrate_lazy **out, const struct migrate_lazy_config *cfg,
			struct error *err)
{
	if (cfg->engine->runs_in_kernel)
		return refuse(cfg, error_set(err, -EOPNOTSUPP,
					     "engine %s touches memory inside of the host's kernel",
					     cfg->engine->name));
	if (cfg->faults_fd < 0)
		return refuse(cfg, error_set(err, -EOPNOTSUPP, "this host gives no userfaultfd"));
	struct migrate_lazy *z = calloc(1, sizeof(*z));

	if (!z)
		return refuse(cfg, error_set(err, -ENOMEM, "no memory for post-copy"));
	z->cfg = *cfg;
	z->uffd = cfg->faults_fd;
	z->npages = cfg->ram->size_bytes >> GUEST_PAGE_SHIFT;
	z->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	z->missing = calloc(z->npages / 64 + 1, 8);
	z->wanted = calloc(z->npages / 64 + 1, 8);
	pthread_mutex_init(&z->lock, NULL);
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&z->news, &attr);
	pthread_condattr_destroy(&attr);
	if (z->stop_fd < 0 || !z->missing || !z->wanted) {
		migrate_lazy_destroy(z);
		return error_set(err, -ENOMEM, "no memory for post-copy");
	}
	*out = z;
	return 0;
}

static void end_threads(struct migrate_lazy *z)
{
	eventfd_t value;

	if (z->stop_fd >= 0 && eventfd_write(z->stop_fd, 1) < 0)
		log_debug("migrate", "cannot stop: %s", strerror(errno));
	if (z->has_faults_thread)
		pthread_join(z->faults_thread, NULL);
	if (z->has_link_thread)
		pthread_join(z->link_thread, NULL);
	z->has_faults_thread = z->has_link_thread = false;
	if (z->stop_fd >= 0)
		(void)eventfd_read(z->stop_fd, &value);
}

/* Who waits for a page goes on. */
static void close_uffd(struct migrate_lazy *z)
{
	struct uffdio_range all = { (uintptr_t)z->cfg.ram->base, z->cfg.ram->size_bytes };

	if (z->uffd < 0)
		return;
	if (z->has_begun && ioctl(z->uffd, UFFDIO_UNREGISTER, &all) < 0)
		log_warn("migrate", "userfaultfd: %s", strerror(errno));
	close_fd(&z->uffd);
	atomic_store(&z->cfg.ram->is_lazy, false);
}

void migrate_lazy_destroy(struct migrate_lazy *z)
{
	if (!z)
		return;
	end_threads(z);
	close_uffd(z);
	close_fd(&z->stop_fd);
	close_fd(&z->cfg.door_fd);
	migrate_unpacker_free(&z->unpacker);
	pthread_cond_destroy(&z->news);
	pthread_mutex_destroy(&z->lock);
	free((void *)(uintptr_t)z->missing);
	free((void *)(uintptr_t)z->wanted);
	free(z->sums);
	free(z);
}

/* ---- before it runs ---- */

int migrate_lazy_note(struct migrate_lazy *z, const uint8_t *payload, size_t len, struct error *err)
{
	if (z->has_begun || migrate_lazy_is_noted(z))
		return error_set(err, -EPROTO, "the source tells twice what is missing");
	/* Nobody else looks at it yet. */
	int r = migrate_get_missing((uint64_t *)(uintptr_t)z->missing, z->npages, &z->next_noted,
				    payload, len, err);

	if (r <= 0)
		return r;
	for (uint64_t w = 0; w < z->npages / 64 + 1; w++)
		z->nmissing += (uint64_t)__builtin_popcountll(z->missing[w]);
	/* Old contents go. */
	for (uint64_t p = 0, end; p < z->npages; p = end) {
		for (end = p + 1;
		     end < z->npages && get_bit(z->missing, end) == get_bit(z->missing, p); end++)
			;
		uint8_t *at = z->cfg.ram->base + (p << GUEST_PAGE_SHIFT);
		uint64_t bytes = (end - p) << GUEST_PAGE_SHIFT;

		if (!get_bit(z->missing, p))
			continue;
		if (madvise(at, bytes, MADV_DONTNEED) < 0)
			return error_set(err, -errno, "cannot drop old pages: %s", strerror(errno));
		ram_note_write_ptr(z->cfg.ram, at, bytes);
	}
	return 0;
}

bool migrate_lazy_is_noted(const struct migrate_lazy *z)
{
	return z->next_noted == z->npages;
}

static int differs(uint64_t page, struct error *err)
{
	return error_set(err, -EBADMSG, "memory is not the source's: page %llu differs",
			 (unsigned long long)page);
}

int migrate_lazy_sums(struct migrate_lazy *z, const uint8_t *payload, size_t len, struct error *err)
{
	struct byte_reader in = { .data = payload, .len = len };
	uint64_t first = bytes_get_u64(&in);
	uint32_t n = bytes_get_u32(&in);

	if (in.is_failed || first > z->npages || n > z->npages - first || in.len - in.pos != 8ULL * n)
		return error_set(
			err, -EPROTO,
			"the peer sends no valid stream: checksums of pages that are not there");
	if (!z->sums)
		z->sums = calloc(z->npages, sizeof(*z->sums));
	if (!z->sums)
		return error_set(err, -ENOMEM, "no memory for checksums");
	for (uint64_t p = first; p < first + n; p++) {
		z->sums[p] = bytes_get_u64(&in);
		if (!get_bit(z->missing, p) &&
		    z->sums[p] != migrate_page_sum(p, z->cfg.ram->base + (p << GUEST_PAGE_SHIFT)))
			return differs(p, err);
	}
	return 0;
}

/* ---- pages ---- */

/* 0, also if there is one already; else -errno. */
static int place(struct migrate_lazy *z, uint64_t page, const uint8_t *data)
{
	uint64_t at = (uintptr_t)z->cfg.ram->base + (page << GUEST_PAGE_SHIFT);
	int r;

	do {
		if (data) {
			struct uffdio_copy c = { .dst = at, .src = (uintptr_t)data, .len = GUEST_PAGE_SIZE };

			r = ioctl(z->uffd, UFFDIO_COPY, &c);
		} else {
			struct uffdio_zeropage c = { .range = { at, GUEST_PAGE_SIZE } };

			r = ioctl(z->uffd, UFFDIO_ZEROPAGE, &c);
		}
	} while (r < 0 && (errno == EAGAIN || errno == EINTR));
	if (r < 0 && errno == EEXIST) {
		struct uffdio_range wake = { at, GUEST_PAGE_SIZE };

		r = ioctl(z->uffd, UFFDIO_WAKE, &wake);
	}
	return r < 0 ? -errno : 0;
}

/* A page that has come. */
static int put(void *arg, uint64_t page, const uint8_t *data, struct error *err)
{
	struct migrate_lazy *z = arg;

	if (!get_bit(z->missing, page))
		return 0; /* asked for when it was on its way already */
	if (z->sums) {
		static const uint8_t zeroes[GUEST_PAGE_SIZE];

		if (z->sums[page] != migrate_page_sum(page, data ? data : zeroes))
			return differs(page, err);
	}
	int r = place(z, page, data);

	if (r < 0)
		return error_set(err, r, "a page cannot be put in place: %s", strerror(-r));
	clear_bit(z->missing, page);
	z->nmissing--;
	return 0;
}

static void fault(struct migrate_lazy *z, uint64_t address)
{
	uint64_t page = (address - (uintptr_t)z->cfg.ram->base) >> GUEST_PAGE_SHIFT;

	if (!get_bit(z->missing, page)) {
		int r = place(z, page, NULL);

		if (r < 0)
			log_error("migrate", "a page of zeros cannot be put in place: %s", strerror(-r));
		return;
	}
	struct error err;

	if (get_bit(z->wanted, page))
		return;
	set_bit(z->wanted, page); /* first: whoever greets over a new link asks for it too */
	if (migrate_lazy_tell(z, MIGRATE_R_WANT, &page, sizeof(page), &err) < 0)
		log_debug("migrate", "%s", err.text);
}

static void *faults_main(void *arg)
{
	struct migrate_lazy *z = arg;
	struct uffd_msg msg[FAULTS_AT_ONCE];

	for (;;) {
		struct pollfd p[2] = { { .fd = z->uffd, .events = POLLIN },
				       { .fd = z->stop_fd, .events = POLLIN } };

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			log_error("migrate", "userfaultfd: %s", strerror(errno));
		if (p[1].revents)
			return NULL;
		ssize_t n = read(z->uffd, msg, sizeof(msg));

		for (ssize_t i = 0; i < n / (ssize_t)sizeof(msg[0]); i++)
			if (msg[i].event == UFFD_EVENT_PAGEFAULT)
				fault(z, msg[i].arg.pagefault.address);
	}
}

/* ---- the link ---- */

static int tell_got(struct migrate_lazy *z, uint32_t n, struct error *err)
{
	pthread_mutex_lock(&z->lock);
	int r = migrate_link_tell(z->cfg.link, MIGRATE_R_GOT, &n, sizeof(n), err);

	pthread_cond_broadcast(&z->news);
	pthread_mutex_unlock(&z->lock);
	/* After the last one the source is told something else. */
	return z->nmissing ? r : 0;
}

static int take_record(struct migrate_lazy *z, const struct migrate_header *h, struct error *err)
{
	uint64_t n = 0;
	int r = 0;

	switch (h->type) {
	case MIGRATE_R_RAM:
		r = migrate_unpack(&z->unpacker, z->cfg.ram, 0, 1, z->cfg.link->payload, h->len, &n, err);
		return r < 0 ? r : tell_got(z, (uint32_t)n, err);
	case MIGRATE_R_COMMIT:
		pthread_mutex_lock(&z->lock);
		z->has_commit = true;
		z->still_since_ns =
			migrate_now_ns() - (int64_t)migrate_get_commit(z->cfg.link->payload, h->len);
		pthread_cond_broadcast(&z->news);
		pthread_mutex_unlock(&z->lock);
		return 0;
	default:
		return error_set(err, -EPROTO, "the source says something out of turn");
	}
}

/* Also a link that carries what makes no sense: over another one all that is missing comes again. */
static void lost(struct migrate_lazy *z, const struct error *why)
{
	pthread_mutex_lock(&z->lock);
	shutdown(z->cfg.link->fd, SHUT_RDWR);
	z->nlost++;
	z->why = *why;
	pthread_cond_broadcast(&z->news);
	pthread_mutex_unlock(&z->lock);
}

/* The descriptor that comes over @conn, or -1. */
static int take_fd(int conn)
{
	char byte;
	int fd;

	if (socket_receive_fd(conn, DOOR_MS, &byte, 1, &fd) != 1 && fd >= 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Over the new link: what is missing, and what of it is waited for. */
static int greet(struct migrate_lazy *z, struct error *err)
{
	struct migrate_link *l = z->cfg.link;
	uint8_t answer = MIGRATE_ANSWER_LACKING;

	migrate_record_put(&l->out, MIGRATE_R_ANSWER, &l->seq_out, &answer, 1);
	migrate_put_missing(&l->out, &l->seq_out, (const uint64_t *)(uintptr_t)z->missing, z->npages);
	for (uint64_t p = 0; p < z->npages; p++) {
		if (!z->wanted[p / 64])
			p |= 63;
		else if (get_bit(z->wanted, p) && get_bit(z->missing, p))
			migrate_record_put(&l->out, MIGRATE_R_WANT, &l->seq_out, &p, sizeof(p));
	}
	return migrate_link_send(l, &l->out, err);
}

/* Returns 0: there is another link; -ECANCELED: stopped. */
static int await_link(struct migrate_lazy *z, struct error *err)
{
	struct migrate_link *l = z->cfg.link;
	int stop_fd = l->stop_fd, r = -EPIPE;

	while (r < 0) {
		struct pollfd p[3] = { { .fd = z->cfg.door_fd, .events = POLLIN },
				       { .fd = z->stop_fd, .events = POLLIN },
				       { .fd = stop_fd, .events = POLLIN } };

		if (poll(p, 3, -1) < 0)
			continue;
		if (p[1].revents || p[2].revents)
			return -ECANCELED;
		_cleanup_close_ int conn = accept4(z->cfg.door_fd, NULL, NULL, SOCK_CLOEXEC);
		int fd = conn >= 0 ? take_fd(conn) : -1;

		if (fd < 0)
			continue;
		pthread_mutex_lock(&z->lock);
		migrate_link_close(l);
		r = migrate_link_init(l, fd, stop_fd, false, err);
		l->seq_in = 1; /* ASK was read elsewhere */
		if (r == 0)
			r = greet(z, err);
		if (r == 0)
			z->nback++;
		else
			log_warn("migrate", "%s", err->text);
		pthread_cond_broadcast(&z->news);
		pthread_mutex_unlock(&z->lock);
	}
	return 0;
}

static bool is_done(struct migrate_lazy *z)
{
	pthread_mutex_lock(&z->lock);
	bool is = z->has_commit && !z->nmissing;

	pthread_mutex_unlock(&z->lock);
	return is;
}

static void *link_main(void *arg)
{
	struct migrate_lazy *z = arg;
	struct migrate_header h;
	struct error err;

	while (!is_done(z)) {
		int r = migrate_link_receive(z->cfg.link, &h,
					     z->has_commit ? MIGRATE_SILENCE_MS : COMMIT_MS, &err);

		if (r == 0)
			r = take_record(z, &h, &err);
		if (r < 0 && r != -ECANCELED) {
			lost(z, &err);
			if (z->cfg.door_fd < 0)
				return NULL;
			r = await_link(z, &err);
		}
		if (r < 0)
			break;
	}
	if (is_done(z))
		return NULL;
	pthread_mutex_lock(&z->lock);
	z->is_canceled = true;
	error_set(&z->why, -ECANCELED, "canceled");
	pthread_cond_broadcast(&z->news);
	pthread_mutex_unlock(&z->lock);
	return NULL;
}

/* ---- for the target's thread ---- */

int migrate_lazy_begin(struct migrate_lazy *z, struct error *err)
{
	struct uffdio_register reg = { .range = { (uintptr_t)z->cfg.ram->base, z->cfg.ram->size_bytes },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };

	if (!migrate_lazy_is_noted(z))
		return error_set(err, -EPROTO, "the source does not say what is missing");
	if (ioctl(z->uffd, UFFDIO_REGISTER, &reg) < 0)
		return error_set(err, -errno, "userfaultfd: %s", strerror(errno));
	z->has_begun = true;
	atomic_store(&z->cfg.ram->is_lazy, true);
	z->unpacker.put = put;
	z->unpacker.put_arg = z;
	int e = pthread_create(&z->faults_thread, NULL, faults_main, z);

	z->has_faults_thread = e == 0;
	if (!e)
		e = pthread_create(&z->link_thread, NULL, link_main, z);
	z->has_link_thread = z->has_faults_thread && e == 0;
	return e ? error_set(err, -e, "cannot start a thread: %s", strerror(e)) : 0;
}

int64_t migrate_lazy_still_since_ns(struct migrate_lazy *z)
{
	pthread_mutex_lock(&z->lock);
	int64_t ns = z->still_since_ns;

	pthread_mutex_unlock(&z->lock);
	return ns;
}

/* With the lock: has something happened that was not told?  In the order in which it did. */
static bool next(struct migrate_lazy *z, enum migrate_event *ev)
{
	bool is_cut = z->nlost_told > z->nback_told;

	if (z->has_commit && !z->is_commit_told) {
		z->is_commit_told = true;
		*ev = MIGRATE_EV_COMMIT;
	} else if (is_cut && z->nback > z->nback_told) {
		z->nback_told++;
		*ev = MIGRATE_EV_BACK;
	} else if (!is_cut && z->nlost > z->nlost_told) {
		z->nlost_told++;
		*ev = MIGRATE_EV_LOST;
	} else if (z->is_canceled) {
		*ev = MIGRATE_EV_CANCEL;
	} else if (!is_cut && z->is_commit_told && !z->nmissing) {
		*ev = MIGRATE_EV_FETCHED;
	} else {
		return false;
	}
	return true;
}

enum migrate_event migrate_lazy_next(struct migrate_lazy *z, int timeout_ms, struct error *err)
{
	enum migrate_event ev = MIGRATE_EV_LOST;
	struct timespec end;
	bool is_there;
	int e = 0;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += timeout_ms / 1000;
	pthread_mutex_lock(&z->lock);
	while (!(is_there = next(z, &ev)) && e == 0)
		e = timeout_ms < 0 ? pthread_cond_wait(&z->news, &z->lock)
				   : pthread_cond_timedwait(&z->news, &z->lock, &end);
	if (!is_there)
		error_set(err, -ETIMEDOUT, "the link was lost: nothing has come through for a while");
	else if (ev == MIGRATE_EV_LOST || ev == MIGRATE_EV_CANCEL)
		*err = z->why;
	pthread_mutex_unlock(&z->lock);
	return ev;
}

int migrate_lazy_tell(struct migrate_lazy *z, enum migrate_record type, const void *payload,
		      size_t len, struct error *err)
{
	pthread_mutex_lock(&z->lock);
	int r = z->nlost == z->nback ? migrate_link_tell(z->cfg.link, type, payload, len, err)
				     : error_set(err, -EPIPE, "the link was lost");

	if (r < 0 && z->nlost == z->nback)
		shutdown(z->cfg.link->fd, SHUT_RDWR); /* its reader says so, once */
	pthread_mutex_unlock(&z->lock);
	return r;
}

void migrate_lazy_end(struct migrate_lazy *z)
{
	end_threads(z);
	close_uffd(z);
	close_fd(&z->cfg.door_fd);
}

bool migrate_lazy_is_lacking(const struct migrate_lazy *z)
{
	return z->nmissing > 0;
}

/* ---- the door ---- */

int migrate_door_listen(const uint8_t id[MIGRATE_ID_BYTES], struct error *err)
{
	_cleanup_free_ char *path = migrate_socket_path(id, "door", err);

	return path ? socket_listen(path, err) : -ENOMEM;
}

void migrate_door_close(const uint8_t id[MIGRATE_ID_BYTES])
{
	_cleanup_free_ char *path = migrate_socket_path(id, "door", NULL);

	if (path && host.unlinkat(AT_FDCWD, path, 0) < 0)
		log_debug("migrate", "cannot remove %s: %s", path, strerror(errno));
}

int migrate_door_pass(const uint8_t id[MIGRATE_ID_BYTES], int fd, struct error *err)
{
	_cleanup_free_ char *path = migrate_socket_path(id, "door", err);
	_cleanup_close_ int conn = path ? socket_connect_within(path, DOOR_MS, err) : -1;

	if (conn < 0)
		return conn == -ECONNREFUSED || conn == -ENOENT ? -ENOENT : conn;
	return socket_send_fd(conn, fd, &(char){ 0 }, 1, err);
}
