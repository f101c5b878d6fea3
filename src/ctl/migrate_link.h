/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One link of a migration: records over a descriptor, waiting for the peer, but never for longer than the peer may take, nor after
 * somebody wants to stop.
 *
 * Threads: one at a time sends, one at a time receives; migrate_stop is for any.
 */
#ifndef VIV_CTL_MIGRATE_LINK_H
#define VIV_CTL_MIGRATE_LINK_H

#include "vm/migrate_stream.h"

#define MIGRATE_SILENCE_MS                                                                         \
	30000 /* so long a peer may take nothing, or send nothing while it is its turn */

struct migrate_link {
	int fd;	     /* a stream socket, non-blocking; the link's */
	int stop_fd; /* readable: stop; borrowed; -1: none */
	bool is_source;
	uint32_t seq_out, seq_in;
	uint8_t *payload; /* of the record received last */
	struct bytes out; /* free for the sender's use */
	/* Of the sender. */
	uint64_t sent_bytes;
	int64_t blocked_ns; /* that it waited for room */
};

/** migrate_link_init() - takes @fd.  0 or -errno (no socket); migrate_link_close() in any case. */
int migrate_link_init(struct migrate_link *l, int fd, int stop_fd, bool is_source, struct error *err);
void migrate_link_close(struct migrate_link *l);

/**
 * migrate_link_send() - all of @b, which is then empty.
 * Returns 0; -EPIPE (the peer is gone), -ETIMEDOUT, -ECANCELED (stopped), -ENOMEM (@b is no whole record), -errno.
 */
int migrate_link_send(struct migrate_link *l, struct bytes *b, struct error *err);
/** migrate_link_tell() - one record. */
int migrate_link_tell(struct migrate_link *l, enum migrate_record type, const void *payload,
		      size_t len, struct error *err);

/**
 * migrate_link_receive() - the next record, its payload in l->payload.
 * @timeout_ms: until it begins; -1: for ever
 * Returns 0; -EPIPE, -ETIMEDOUT, -ECANCELED, -EPROTO (no valid record), -ENOMEM, -errno.  PINGs are passed over, and begin the time anew.
 */
int migrate_link_receive(struct migrate_link *l, struct migrate_header *h, int timeout_ms,
			 struct error *err);

/** migrate_link_text() - the sentence in the payload of a REFUSE record, made fit for a terminal. */
void migrate_link_text(const struct migrate_link *l, const struct migrate_header *h, struct error *out);

/** migrate_now_ns() - CLOCK_MONOTONIC. */
int64_t migrate_now_ns(void);

#endif
