/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes over the links of a migration: records.  docs/formats/migration.md has every byte.
 *
 *   record = header of 24 bytes, payload
 *   header = u32 "VMIG", u16 type, u16 flags (0), u32 bytes of the payload, u32 sequence number, u64 XXH64 of all before and the payload
 *
 * Integers are little-endian.  Records of one direction of one link are numbered from 0: one that is lost, doubled or exchanged is noticed,
 * as is one that is damaged.  (That is against accidents; against people the link is encrypted.)
 *
 * Everything read is hostile: payloads are bounded, so are the memory and the time that one costs, and nothing outside of guest
 * memory is written.
 */
#ifndef VIV_VM_MIGRATE_STREAM_H
#define VIV_VM_MIGRATE_STREAM_H

#include "base/bytes.h"
#include "base/error.h"
#include "mem/ram.h"

#define MIGRATE_FORMAT	     1
#define MIGRATE_HEADER_BYTES 24
#define MIGRATE_PAGES_MAX    256   /* with contents, in one record */
#define MIGRATE_ZERO_MAX     65536 /* zero pages in one record */
#define MIGRATE_PAYLOAD_MAX  (1 * MIB + 16 * KIB)
#define MIGRATE_STREAMS_MAX  16
#define MIGRATE_FDS_MAX                                                                            \
	(MIGRATE_STREAMS_MAX + 1) /* that the target's process gets: links, and the door */
#define MIGRATE_ID_BYTES 16

// clang-format off
/* X(name, number, from the source, from the target) */
#define MIGRATE_RECORDS(X)                                                                                   \
	X(HELLO,       1, true,  false) /* JSON: what the machine is, and what is wanted */                  \
	X(JOIN,        2, true,  false) /* a further link: id of 16 bytes, u16 its index */                  \
	X(ASK,         3, true,  false) /* id: what became of it? */                                         \
	X(ANSWER,      4, false, true)  /* u8: enum migrate_answer */                                        \
	X(ACCEPT,      5, false, true)  /* JSON: {} */                                                       \
	X(REFUSE,      6, false, true)  /* a sentence */                                                     \
	X(STATE,       7, true,  false) /* a piece of the machine's state */                                 \
	X(RAM,         8, true,  false) /* pages */                                                          \
	X(ROUND,       9, true,  false) /* u32: a round of memory ends on this link */                       \
	X(ROUND_DONE, 10, false, true)  /* u32: it has come in on all links */                               \
	X(SUMS,       11, true,  false) /* u64 first page, u32 number, u64 XXH64 of each page as it must be */  \
	X(REST,       12, true,  false) /* that was all: struct migrate_rest */                              \
	X(LOADED,     13, false, true)  /* the machine is complete */                                        \
	X(COMMIT,     14, true,  false) /* it is yours */                                                    \
	X(RUNNING,    15, false, true)  /* it runs; u64 ns that it stood still */                              \
	X(PING,       16, true,  true)  /* I am there */                                                     \
	X(MISSING,    17, true,  true)  /* a part of the map of pages that the target lacks */               \
	X(WANT,       18, false, true)  /* u64: this page is waited for */                                   \
	X(GOT,        19, false, true)  /* u32: so many pages have come since the last such record */        \
	X(FETCHED,    20, false, true)  /* nothing is missing any more */                                                     \
	X(DISK,       32, true,  false) /* a piece of a file: vm/migrate_disk.h */                           \
	X(DISK_ROUND, 33, true,  false) /* u32: what came of files is to be stable */                        \
	X(DISK_DONE,  34, false, true)  /* u32: it is */                                                     \
	X(DISK_SUMS,  35, true,  false) /* checksums of a file */                                            \
	X(RESETS,     36, true,  false) /* frames for the guest: connections that end here */                \
	X(CONSOLE,    37, true,  false) /* what the console is to go on with, char/chardev.h */                     \
	X(BUNDLE,     38, true,  false) /* JSON: a snapshot comes, ctl/migrate_bundle.h */                   \
	X(BUNDLE_DATA, 39, true, false) /* a piece of it; empty: it is complete */                           \
	X(BUNDLE_DONE, 40, false, true) /* it is stable and was checked */
// clang-format on

enum migrate_record {
#define X(name, number, from_source, from_target) MIGRATE_R_##name = number,
	MIGRATE_RECORDS(X)
#undef X
};

/* LACKING: it ran there, and its memory is not complete; the link is that machine's from here on, and the map of what it lacks comes next. */
enum migrate_answer {
	MIGRATE_ANSWER_UNKNOWN,
	MIGRATE_ANSWER_RAN,
	MIGRATE_ANSWER_ABORTED,
	MIGRATE_ANSWER_LACKING
};

/** migrate_record_name() - "HELLO"; NULL: there is none of this number. */
const char *migrate_record_name(unsigned type);

/* ---- writing ---- */

/** migrate_record_begin() - append a header; returns where it is, for migrate_record_end(). */
size_t migrate_record_begin(struct bytes *out, enum migrate_record type);
/** migrate_record_end() - what was appended since is the payload, at most MIGRATE_PAYLOAD_MAX.  @seq: of this direction; counted up. */
void migrate_record_end(struct bytes *out, size_t begin, uint32_t *seq);
/** migrate_record_put() - both, with a payload at hand. */
void migrate_record_put(struct bytes *out, enum migrate_record type, uint32_t *seq,
			const void *payload, size_t len);

/* ---- reading ---- */

struct migrate_header {
	enum migrate_record type;
	uint32_t len, seq;
	uint64_t sum;
};

/**
 * migrate_header_parse() - is it one, and may this side get it?
 * @seq: the number that it must have
 * Returns 0, or -EPROTO with @err set.
 */
int migrate_header_parse(struct migrate_header *h, const uint8_t raw[MIGRATE_HEADER_BYTES],
			 uint32_t seq, bool is_from_source, struct error *err);
/** migrate_payload_check() - does the checksum of both match?  0 or -EPROTO. */
int migrate_payload_check(const struct migrate_header *h, const uint8_t raw[MIGRATE_HEADER_BYTES],
			  const uint8_t *payload, struct error *err);

/* ---- memory ---- */

/*
 *   RAM = u8 codec, u8 0, u16 runs, run..., data
 *   run = u64 first page (of the mapping, mem/ram.h), u32 pages
 */
enum migrate_codec {
	MIGRATE_ZERO, /* no data: they are zero; MIGRATE_ZERO_MAX of them */
	MIGRATE_RAW,  /* the pages */
	MIGRATE_ZSTD, /* a zstd frame of them */
	MIGRATE_DELTA, /* a zstd frame of what they differ in, by exclusive or, from what was sent of each before */
	MIGRATE_NCODECS
};

struct migrate_packer {
	void *zstd; /* of zstd; made when needed */
	int level;
};
void migrate_packer_free(struct migrate_packer *p); /* zeroed is fine */

/**
 * migrate_pack() - append a RAM record.
 * @pages: ascending, at most MIGRATE_PAGES_MAX, or MIGRATE_ZERO_MAX that are zero
 * @data: their contents, one after the other; ignored for MIGRATE_ZERO
 * Contents that zstd does not make smaller go as they are; those of MIGRATE_DELTA must get smaller.
 * Returns the codec used; -EMSGSIZE (a delta that is none), -ENOMEM: nothing was appended.
 */
int migrate_pack(struct migrate_packer *p, struct bytes *out, uint32_t *seq,
		 enum migrate_codec codec, const uint64_t *pages, unsigned n, const uint8_t *data);
/** migrate_pack_zero() - the same for one run of zero pages, at most MIGRATE_ZERO_MAX. */
void migrate_pack_zero(struct bytes *out, uint32_t *seq, uint64_t first, uint32_t n);

struct migrate_unpacker {
	void *zstd;
	uint8_t *buf; /* MIGRATE_PAGES_MAX pages; made when needed */
	/* A bit a page of memory: it may differ from zero; shared by all links, each of which has pages of its own (migrate_page_link()). */
	_Atomic uint64_t *touched;
	/*
	 * Not NULL: pages are not put into memory but handed to this, @data NULL for a zero one; deltas are refused then.  Negative results end the
	 * record.
	 */
	int (*put)(void *arg, uint64_t page, const uint8_t *data, struct error *err);
	void *put_arg;
};
void migrate_unpacker_free(struct migrate_unpacker *u); /* not @touched */

/**
 * migrate_unpack() - put the pages of a RAM payload where they belong.
 * @link, @nlinks: pages of other links are refused
 * @npages: gets how many there were
 * Returns 0, -EPROTO (anything wrong with it: pages may be changed), -ENOMEM.
 */
int migrate_unpack(struct migrate_unpacker *u, struct guest_ram *ram, unsigned link, unsigned nlinks,
		   const uint8_t *payload, size_t len, uint64_t *npages, struct error *err);

/** migrate_page_link() - on which link a page goes: always on the same, so that what is sent later comes later. */
static inline unsigned migrate_page_link(uint64_t page, unsigned nlinks)
{
	return (unsigned)(page / MIGRATE_PAGES_MAX % nlinks);
}

/** migrate_page_sum() - of page number @page with these contents: one in a wrong place has another. */
uint64_t migrate_page_sum(uint64_t page, const uint8_t *data);
/** migrate_put_sums() - one SUMS record of @n pages of @ram, which stands still. */
#define MIGRATE_SUMS_MAX 65536 /* in one record */
void migrate_put_sums(struct bytes *out, uint32_t *seq, const struct guest_ram *ram, uint64_t first,
		      uint32_t n);
/**
 * migrate_check_sums() - compare @ram with a SUMS payload.
 * @bad: gets the first page that differs, UINT64_MAX if none
 * Returns how many pages were compared, or -EPROTO.
 */
int64_t migrate_check_sums(const struct guest_ram *ram, const uint8_t *payload, size_t len,
			   uint64_t *bad, uint64_t *nbad, struct error *err);

/* ---- pages that the target lacks ---- */

#define MIGRATE_MISSING_MAX (1U << 20) /* pages in one record */

/*
 *   MISSING = u64 first page, u32 pages, u64... a bit a page
 * In order, from page 0 to the end of memory; the first page of each record is a multiple of 64.
 */
/** migrate_put_missing() - records with all of @bitmap, which has a bit for each of @npages pages and room for whole words. */
void migrate_put_missing(struct bytes *out, uint32_t *seq, const uint64_t *bitmap, uint64_t npages);
/**
 * migrate_get_missing() - one of them into @bitmap.
 * @next: the page at which it has to begin, 0 at first; gets where the next one does
 * Returns 1: that was all; 0; -EPROTO.
 */
int migrate_get_missing(uint64_t *bitmap, uint64_t npages, uint64_t *next, const uint8_t *payload,
			size_t len, struct error *err);

/* ---- the machine's state ---- */

/*
 * Comes twice: before memory, so that the target can build the machine and see whether it can load such a state at all; and at the end.
 *   STATE = u32 bytes in all, u32 offset of the piece, piece
 */
void migrate_put_state(struct bytes *out, uint32_t *seq, const uint8_t *state, size_t len);

struct migrate_state_in {
	struct bytes data;
	uint32_t total; /* 0: nothing has come */
};
/** migrate_state_add() - the next piece, in order.  1: complete; 0; -EPROTO, -ENOMEM. */
int migrate_state_add(struct migrate_state_in *s, const uint8_t *payload, size_t len, struct error *err);

struct migrate_rest {
	uint64_t paused_ns; /* the machine had been standing still for so long when this was sent */
	bool is_paused;	    /* by its user: it is not to run */
};
void migrate_put_rest(struct bytes *out, uint32_t *seq, const struct migrate_rest *r);
int migrate_get_rest(struct migrate_rest *r, const uint8_t *payload, size_t len, struct error *err);
/** migrate_get_commit() - how long the machine had been standing still when the COMMIT was sent; 0: it does not say. */
uint64_t migrate_get_commit(const uint8_t *payload, size_t len);

#endif
