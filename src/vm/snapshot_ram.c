/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/snapshot_ram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/host.h"

static const char magic[8] = "VIVRAMIX";
#define INDEX_VERSION 1
#define HEADER_BYTES  28
#define ENTRY_BYTES   10
#define PROGRESS_STEP (8 * MIB)
#define FILES_BESIDE  512u

/* ---- the index ---- */

static uint64_t granule_for(uint64_t ram_bytes)
{
	uint64_t g = RAM_GRANULE_MIN;

	while (ram_bytes / g >= RAM_GRANULES_MAX)
		g *= 2;
	return g;
}

static uint64_t granule_len(const struct ram_index *x, uint32_t i)
{
	return MIN((uint64_t)x->granule_bytes, x->ram_bytes - (uint64_t)i * x->granule_bytes);
}

static int allocate(struct ram_index *x, struct error *err)
{
	x->layer = calloc(x->ngranules, sizeof(*x->layer));
	x->hash = calloc(x->ngranules, sizeof(*x->hash));
	if (x->layer && x->hash)
		return 0;
	ram_index_free(x);
	return error_set(err, -ENOMEM, "no memory for an index of guest memory");
}

int ram_index_init(struct ram_index *x, uint64_t ram_bytes, struct error *err)
{
	if (!ram_bytes || ram_bytes % GUEST_PAGE_SIZE || ram_bytes > 2048 * GIB)
		return error_set(err, -EINVAL, "no machine has %llu bytes of memory",
				 (unsigned long long)ram_bytes);
	uint64_t granule = granule_for(ram_bytes);

	*x = (struct ram_index){ .ram_bytes = ram_bytes,
				 .granule_bytes = (uint32_t)granule,
				 .ngranules = (uint32_t)((ram_bytes + granule - 1) / granule) };
	return allocate(x, err);
}

void ram_index_free(struct ram_index *x)
{
	free(x->layers);
	free(x->layer);
	free(x->hash);
	*x = (struct ram_index){ 0 };
}

int ram_index_copy(struct ram_index *to, const struct ram_index *from, struct error *err)
{
	*to = *from;
	to->layers = NULL;
	to->nlayers = 0;
	int r = allocate(to, err);

	for (uint32_t i = 0; r >= 0 && i < from->nlayers; i++)
		r = ram_index_add_layer(to, from->layers[i], err);
	if (r < 0) {
		ram_index_free(to);
		return r;
	}
	memcpy(to->layer, from->layer, from->ngranules * sizeof(*to->layer));
	memcpy(to->hash, from->hash, from->ngranules * sizeof(*to->hash));
	return 0;
}

/* A plain file name, so that an index leads nowhere out of its folder. */
static bool is_layer_name(const char *name, size_t len)
{
	if (!len || len >= RAM_LAYER_NAME)
		return false;
	for (size_t i = 0; i < len; i++)
		if (!name[i] || !strchr("abcdefghijklmnopqrstuvwxyz0123456789-", name[i]))
			return false;
	return true;
}

int ram_index_add_layer(struct ram_index *x, const char *name, struct error *err)
{
	if (!is_layer_name(name, strlen(name)))
		return error_set(err, -EINVAL, "'%.40s' is no name for a file of guest memory", name);
	for (uint32_t i = 0; i < x->nlayers; i++)
		if (!strcmp(x->layers[i], name))
			return error_set(err, -EINVAL, "the file %s is named twice", name);
	if (x->nlayers == RAM_LAYERS_MAX)
		return error_set(err, -ENOSPC, "the snapshot has more than %d ancestors",
				 RAM_LAYERS_MAX - 1);
	void *layers = realloc(x->layers, (x->nlayers + 1) * sizeof(*x->layers));

	if (!layers)
		return error_set(err, -ENOMEM, "no memory for an index of guest memory");
	x->layers = layers;
	strcpy(x->layers[x->nlayers++], name);
	return (int)x->nlayers;
}

void ram_index_drop_unused(struct ram_index *x)
{
	uint16_t to[RAM_LAYERS_MAX + 1] = { 0 };
	uint32_t n = 0;

	for (uint32_t i = 0; i < x->ngranules; i++)
		to[x->layer[i]] = 1;
	for (uint32_t l = 1; l <= x->nlayers; l++) {
		if (!to[l])
			continue;
		memmove(x->layers[n], x->layers[l - 1], sizeof(x->layers[0]));
		to[l] = (uint16_t)++n;
	}
	to[0] = 0;
	x->nlayers = n;
	for (uint32_t i = 0; i < x->ngranules; i++)
		x->layer[i] = to[x->layer[i]];
}

int ram_index_save(const struct ram_index *x, struct bytes *out, struct error *err)
{
	size_t start = out->len;

	bytes_put(out, magic, sizeof(magic));
	bytes_put_u32(out, INDEX_VERSION);
	bytes_put_u32(out, x->granule_bytes);
	bytes_put_u64(out, x->ram_bytes);
	bytes_put_u32(out, x->nlayers);
	for (uint32_t i = 0; i < x->nlayers; i++) {
		bytes_put_u8(out, (uint8_t)strlen(x->layers[i]));
		bytes_put(out, x->layers[i], strlen(x->layers[i]));
	}
	for (uint32_t i = 0; i < x->ngranules; i++) {
		bytes_put_u16(out, x->layer[i]);
		bytes_put_u64(out, x->hash[i]);
	}
	if (!out->is_failed)
		bytes_put_u64(out, XXH64(out->data + start, out->len - start, 0));
	return out->is_failed ? error_set(err, -ENOMEM, "no memory for an index of guest memory") : 0;
}

static int damaged(struct error *err, const char *how)
{
	return error_set(err, -EINVAL, "the index of guest memory is damaged: %s", how);
}

static int parse_layers(struct ram_index *x, struct byte_reader *in, uint32_t n, struct error *err)
{
	char name[RAM_LAYER_NAME] = "";

	for (uint32_t i = 0; i < n; i++) {
		uint8_t len = bytes_get_u8(in);

		if (in->is_failed || len >= sizeof(name) || !bytes_get(in, name, len) ||
		    !is_layer_name(name, len))
			return damaged(err, "a layer has no valid name");
		name[len] = 0;
		int r = ram_index_add_layer(x, name, err);

		if (r < 0)
			return r;
	}
	return 0;
}

static int parse_granules(struct ram_index *x, struct byte_reader *in, struct error *err)
{
	for (uint32_t i = 0; i < x->ngranules; i++) {
		x->layer[i] = bytes_get_u16(in);
		x->hash[i] = bytes_get_u64(in);
		if (x->layer[i] > x->nlayers)
			return damaged(err, "it names a layer that is not there");
	}
	return in->is_failed || in->pos != in->len ? damaged(err, "its length is wrong") : 0;
}

int ram_index_parse(struct ram_index *out, const uint8_t *data, size_t len, struct error *err)
{
	struct ram_index x;
	uint64_t sum;

	if (len < HEADER_BYTES + 8 || len > RAM_INDEX_MAX || memcmp(data, magic, sizeof(magic)) != 0)
		return error_set(err, -EINVAL, "this is no index of guest memory");
	struct byte_reader in = { .data = data, .len = len - 8, .pos = 8 };
	uint32_t version = bytes_get_u32(&in), granule = bytes_get_u32(&in);
	uint64_t ram_bytes = bytes_get_u64(&in);
	uint32_t nlayers = bytes_get_u32(&in);

	memcpy(&sum, data + len - 8, 8);
	if (version != INDEX_VERSION)
		return error_set(
			err, -ENOTSUP,
			"the index of guest memory has version %u, this program knows version %u",
			version, INDEX_VERSION);
	if (sum != XXH64(data, len - 8, 0))
		return damaged(err, "its checksum does not match");
	int r = ram_index_init(&x, ram_bytes, err);

	if (r < 0)
		return r;
	if (granule != x.granule_bytes || nlayers > RAM_LAYERS_MAX)
		r = damaged(err, "its figures are impossible");
	if (r == 0)
		r = parse_layers(&x, &in, nlayers, err);
	if (r == 0)
		r = parse_granules(&x, &in, err);
	if (r < 0) {
		ram_index_free(&x);
		return r;
	}
	*out = x;
	return 0;
}

/* ---- writing ---- */

static bool is_dirty(const uint64_t *dirty, uint64_t at, uint64_t len)
{
	uint64_t end = (at + len) >> GUEST_PAGE_SHIFT;

	for (uint64_t p = at >> GUEST_PAGE_SHIFT; p < end; p++)
		if (dirty[p / 64] >> p % 64 & 1)
			return true;
	return false;
}

/* Runs of pages that are not zero, of @len bytes that belong at @at. */
static int write_granule(int fd, const uint8_t *p, uint64_t at, uint64_t len, struct error *err)
{
	uint64_t done = 0;
	int r = 0;

	while (r == 0 && done < len) {
		uint64_t from = done;

		while (done < len && !bytes_are_zero(p + done, GUEST_PAGE_SIZE))
			done += GUEST_PAGE_SIZE;
		if (done > from)
			r = host_pwrite_all(fd, p + from, done - from, at + from);
		while (done < len && bytes_are_zero(p + done, GUEST_PAGE_SIZE))
			done += GUEST_PAGE_SIZE;
	}
	return r < 0 ? error_set(err, r, "cannot write guest memory: %s", strerror(-r)) : 0;
}

static int report(const struct ram_progress *p, uint64_t done, uint64_t total, struct error *err)
{
	if (p && p->fn && !p->fn(p->arg, done, total))
		return error_set(err, -ECANCELED, "canceled");
	return 0;
}

int ram_write_layer(struct ram_index *x, unsigned layer, int fd, const uint8_t *base,
		    const uint64_t *dirty, const struct ram_progress *progress, struct error *err)
{
	int r = 0;

	if (host.ftruncate(fd, (off_t)x->ram_bytes) < 0)
		return error_set(err, -errno, "cannot write guest memory: %s", strerror(errno));
	for (uint32_t i = 0; r == 0 && i < x->ngranules; i++) {
		uint64_t at = (uint64_t)i * x->granule_bytes, len = granule_len(x, i);

		if (at % PROGRESS_STEP == 0)
			r = report(progress, at, x->ram_bytes, err);
		if (r < 0 || (dirty && !is_dirty(dirty, at, len)))
			continue;
		x->layer[i] = 0;
		x->hash[i] = 0;
		if (bytes_are_zero(base + at, len))
			continue;
		x->layer[i] = (uint16_t)layer;
		x->hash[i] = XXH64(base + at, len, 0);
		r = write_granule(fd, base + at, at, len, err);
	}
	return r == 0 ? report(progress, x->ram_bytes, x->ram_bytes, err) : r;
}

struct load {
	uint32_t layer, ngranules;
};

static int by_load(const void *a, const void *b)
{
	const struct load *x = a, *y = b;

	return x->ngranules != y->ngranules ? (x->ngranules < y->ngranules ? -1 : 1) : 0;
}

void ram_index_consolidate(const struct ram_index *x, uint32_t most, uint64_t *dirty)
{
	struct load loads[RAM_LAYERS_MAX + 1];
	bool goes[RAM_LAYERS_MAX + 1] = { 0 };
	uint32_t n = 0;

	for (uint32_t l = 0; l <= x->nlayers; l++)
		loads[l] = (struct load){ l, 0 };
	for (uint32_t i = 0; i < x->ngranules; i++)
		if (!is_dirty(dirty, (uint64_t)i * x->granule_bytes, granule_len(x, i)))
			loads[x->layer[i]].ngranules++;
	for (uint32_t l = 1; l <= x->nlayers; l++)
		if (loads[l].ngranules)
			loads[n++] = loads[l];
	if (n <= most)
		return;
	qsort(loads, n, sizeof(loads[0]), by_load);
	for (uint32_t k = 0; k < n - most / 2; k++)
		goes[loads[k].layer] = true;
	for (uint32_t i = 0; i < x->ngranules; i++) {
		uint64_t page = (uint64_t)i * x->granule_bytes >> GUEST_PAGE_SHIFT;

		if (goes[x->layer[i]])
			dirty[page / 64] |= 1ull << page % 64;
	}
}

/* ---- reading ---- */

/* Beside what else the process has open. */
static void allow_files(uint32_t nlayers)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur >= lim.rlim_max ||
	    nlayers + FILES_BESIDE <= lim.rlim_cur)
		return;
	lim.rlim_cur = lim.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &lim); /* without it, opening says what is missing */
}

int ram_files_open(struct ram_files *f, struct ram_index *index, int dir_fd, struct error *err)
{
	*f = (struct ram_files){ .index = *index };
	*index = (struct ram_index){ 0 };
	f->fds = calloc(f->index.nlayers + 1, sizeof(*f->fds));
	if (!f->fds) {
		ram_files_close(f);
		return error_set(err, -ENOMEM, "no memory for the files of guest memory");
	}
	for (uint32_t i = 0; i < f->index.nlayers; i++)
		f->fds[i] = -1;
	allow_files(f->index.nlayers);
	for (uint32_t i = 0; i < f->index.nlayers; i++) {
		const char *name = f->index.layers[i];
		struct stat st;
		int r = 0;

		f->fds[i] = host.openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
		if (f->fds[i] < 0 || fstat(f->fds[i], &st) < 0)
			r = error_set(err, -errno, "cannot open the snapshot's memory %s: %s", name,
				      strerror(errno));
		else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != f->index.ram_bytes)
			/* Past the end of a mapped file the guest would kill its machine. */
			r = error_set(err, -EINVAL, "the snapshot's memory %s is cut off: it has %llu bytes, not %llu",
				      name, (unsigned long long)st.st_size,
				      (unsigned long long)f->index.ram_bytes);
		if (r < 0) {
			ram_files_close(f);
			return r;
		}
		f->allocated_bytes += (uint64_t)st.st_blocks * 512;
	}
	return 0;
}

void ram_files_close(struct ram_files *f)
{
	for (uint32_t i = 0; f->fds && i < f->index.nlayers; i++)
		if (f->fds[i] >= 0)
			close(f->fds[i]);
	free(f->fds);
	ram_index_free(&f->index);
	*f = (struct ram_files){ 0 };
}

/* The granules from @i on that lie in the same layer. */
static uint32_t run_end(const struct ram_index *x, uint32_t i)
{
	uint32_t end = i + 1;

	while (end < x->ngranules && x->layer[end] == x->layer[i])
		end++;
	return end;
}

int ram_files_map(const struct ram_files *f, struct guest_ram *ram, bool is_fresh, struct error *err)
{
	const struct ram_index *x = &f->index;

	if (x->ram_bytes != ram->size_bytes)
		return error_set(err, -EINVAL, "the snapshot has %llu bytes of memory, the machine %llu",
				 (unsigned long long)x->ram_bytes, (unsigned long long)ram->size_bytes);
	for (uint32_t i = 0, end; i < x->ngranules; i = end) {
		end = run_end(x, i);
		uint64_t at = (uint64_t)i * x->granule_bytes;
		uint64_t len = MIN((uint64_t)end * x->granule_bytes, x->ram_bytes) - at;

		if (!x->layer[i] && is_fresh)
			continue;
		int r = ram_map(ram, at, len, x->layer[i] ? f->fds[x->layer[i] - 1] : -1, err);

		if (r < 0)
			return r;
	}
	return 0;
}

int ram_files_prefault(const struct ram_files *f, struct guest_ram *ram, struct error *err)
{
	const struct ram_index *x = &f->index;

	for (uint32_t i = 0, end; i < x->ngranules; i = end) {
		end = run_end(x, i);
		uint64_t at = (uint64_t)i * x->granule_bytes;
		uint64_t len = MIN((uint64_t)end * x->granule_bytes, x->ram_bytes) - at;

		if (!x->layer[i] || madvise(ram->base + at, len, MADV_POPULATE_READ) == 0)
			continue;
		if (errno == EINVAL) /* Linux before 5.14: it is read when it is touched */
			return 0;
		return error_set(err, -errno, "cannot read the snapshot's memory ahead: %s",
				 strerror(errno));
	}
	return 0;
}

static int read_all(int fd, uint8_t *p, uint64_t len, uint64_t at, struct error *err)
{
	while (len) {
		ssize_t n = host.pread(fd, p, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n < 0 ? -errno : -EIO,
					 "cannot read the snapshot's memory: %s",
					 n < 0 ? strerror(errno) : "the file is cut off");
		p += n;
		at += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/* [@at, +@len), which lies in one granule, from the files. */
static int read_piece(const struct ram_files *f, uint8_t *to, uint64_t at, uint64_t len, struct error *err)
{
	unsigned layer = f->index.layer[at / f->index.granule_bytes];

	if (layer)
		return read_all(f->fds[layer - 1], to, len, at, err);
	memset(to, 0, len);
	return 0;
}

/* Layer numbers of two indexes mean different files; contents are compared. */
static bool is_same_granule(const struct ram_index *a, const struct ram_index *b, uint32_t i)
{
	if (!a->layer[i] || !b->layer[i])
		return a->layer[i] == b->layer[i];
	return a->hash[i] == b->hash[i];
}

static int64_t put_granule(const struct ram_files *f, struct guest_ram *ram, uint32_t i, struct error *err)
{
	uint64_t at = (uint64_t)i * f->index.granule_bytes, len = granule_len(&f->index, i);
	int r = ram_map(ram, at, len, f->index.layer[i] ? f->fds[f->index.layer[i] - 1] : -1, err);

	if (r < 0)
		return r;
	ram_note_write_ptr(ram, ram->base + at, len);
	return (int64_t)(len >> GUEST_PAGE_SHIFT);
}

/* The pages of one word of the bitmap, those from @first_page on, whose bits are in @bits. */
static int64_t put_bits(const struct ram_files *f, struct guest_ram *ram, uint64_t first_page,
			uint64_t bits, struct error *err)
{
	uint64_t granule = f->index.granule_bytes >> GUEST_PAGE_SHIFT;
	int64_t n = 0;

	while (bits) {
		unsigned shift = (unsigned)__builtin_ctzll(bits);
		uint64_t page = first_page + shift, rest = ~(bits >> shift);
		uint64_t run =
			MIN(rest ? (uint64_t)__builtin_ctzll(rest) : 64, granule - page % granule);
		uint64_t at = page << GUEST_PAGE_SHIFT, len = run << GUEST_PAGE_SHIFT;
		int r = read_piece(f, ram->base + at, at, len, err);

		if (r < 0)
			return r;
		ram_note_write_ptr(ram, ram->base + at, len);
		n += (int64_t)run;
		bits &= run < 64 ? ~(((1ULL << run) - 1) << shift) : 0;
	}
	return n;
}

/* [@first, @end) of pages, those in @dirty. */
static int64_t put_pages(const struct ram_files *f, struct guest_ram *ram, uint64_t first,
			 uint64_t end, const uint64_t *dirty, struct error *err)
{
	int64_t n = 0;

	for (uint64_t page = first, next; page < end; page = next) {
		uint64_t bits = dirty[page / 64] >> page % 64;

		next = MIN(end, (page / 64 + 1) * 64);
		if (next - page < 64)
			bits &= (1ULL << (next - page)) - 1;
		int64_t pages = bits ? put_bits(f, ram, page, bits, err) : 0;

		if (pages < 0)
			return pages;
		n += pages;
	}
	return n;
}

int64_t ram_files_put_back(const struct ram_files *f, const struct ram_index *now,
			   struct guest_ram *ram, const uint64_t *dirty, struct error *err)
{
	const struct ram_index *x = &f->index;
	int64_t n = 0, pages;

	/* The same files: nothing but pages. */
	if (now == x)
		return put_pages(f, ram, 0, x->ram_bytes >> GUEST_PAGE_SHIFT, dirty, err);
	for (uint32_t i = 0; i < x->ngranules; i++, n += pages) {
		uint64_t first = (uint64_t)i * x->granule_bytes >> GUEST_PAGE_SHIFT;

		pages = is_same_granule(x, now, i)
				? put_pages(f, ram, first,
					    first + (granule_len(x, i) >> GUEST_PAGE_SHIFT), dirty, err)
				: put_granule(f, ram, i, err);
		if (pages < 0)
			return pages;
	}
	return n;
}

int ram_files_copy(const struct ram_files *f, uint32_t i, int to, uint8_t *buf, struct error *err)
{
	const struct ram_index *x = &f->index;
	uint64_t at = (uint64_t)i * x->granule_bytes, len = granule_len(x, i);
	int r = read_piece(f, buf, at, len, err);

	if (r == 0 && XXH64(buf, len, 0) != x->hash[i])
		r = error_set(err, -EINVAL, "the snapshot's memory %s is damaged at byte %llu",
			      x->layers[x->layer[i] - 1], (unsigned long long)at);
	return r == 0 ? write_granule(to, buf, at, len, err) : r;
}

bool ram_index_is_same(const struct ram_index *a, const struct ram_index *b)
{
	if (a->ram_bytes != b->ram_bytes)
		return false;
	for (uint32_t i = 0; i < a->ngranules; i++)
		if (!is_same_granule(a, b, i))
			return false;
	return true;
}

int64_t ram_files_verify(const struct ram_files *f,
			 void (*bad)(void *arg, uint64_t offset, uint64_t len, const char *layer),
			 void *arg, const struct ram_progress *progress, struct error *err)
{
	const struct ram_index *x = &f->index;
	_cleanup_free_ uint8_t *buf = malloc(x->granule_bytes);
	int64_t nbad = 0;

	if (!buf)
		return error_set(err, -ENOMEM, "no memory to verify a snapshot");
	for (uint32_t i = 0; i < x->ngranules; i++) {
		uint64_t at = (uint64_t)i * x->granule_bytes, len = granule_len(x, i);
		int r = at % PROGRESS_STEP == 0 ? report(progress, at, x->ram_bytes, err) : 0;

		if (r < 0)
			return r;
		if (!x->layer[i])
			continue;
		/* What cannot be read is damaged. */
		if (read_all(f->fds[x->layer[i] - 1], buf, len, at, NULL) < 0 ||
		    XXH64(buf, len, 0) != x->hash[i]) {
			bad(arg, at, len, x->layers[x->layer[i] - 1]);
			nbad++;
		}
	}
	return nbad;
}
