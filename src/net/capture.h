/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Captures in pcapng (draft-ietf-opsawg-pcapng): every card is an interface of the file, every packet has as its comment what
 * became of it and by which rule.  Wireshark and tshark read them.
 *
 * Packets gather in a buffer, which capture_flush() writes.  With a bound, the file is followed by FILE.1, FILE.2 and so on,
 * each complete in itself, and the oldest go.
 */
#ifndef VIV_NET_CAPTURE_H
#define VIV_NET_CAPTURE_H

#include "base/error.h"

#define CAPTURE_NAME_MAX       200
#define CAPTURE_ROTATE_MIN     (64 * KIB)
#define CAPTURE_INSNS_MAX      4096
#define CAPTURE_INTERFACES_MAX 4096

struct capture_insn { /* of the classic BPF machine, as libpcap compiles them */
	uint16_t code;
	uint8_t jt, jf;
	uint32_t k;
};

struct capture_config {
	int dir_fd;			   /* where the files are; taken, on failure too */
	const char *name;		   /* of the first one, without a slash */
	uint64_t rotate_bytes;		   /* a file ends when it is longer; 0: never */
	unsigned keep;			   /* files, when rotating; 0: all */
	const struct capture_insn *filter; /* NULL: everything; copied */
	unsigned ninsns;
	const char *const *interfaces; /* names; copied */
	unsigned ninterfaces;
};

struct capture_stats {
	uint64_t packets, bytes;
	unsigned files;
};

struct capture;

/** capture_load() - what filters need, before a process gives up the right to open files (base/lib.h).  0, or -ENOENT: captures with a filter fail. */
int capture_load(struct error *err);

/** capture_open() - a file of that name is replaced.  Returns 0 or -errno with @err set: -EINVAL for a filter that is no
 * valid program, or a name with a slash. */
int capture_open(struct capture **out, const struct capture_config *cfg, struct error *err);
/** capture_close() - what is buffered is written.  NULL is fine. */
void capture_close(struct capture *c);

enum capture_direction { CAPTURE_IN = 1, CAPTURE_OUT = 2 }; /* from the machine; to it */
/**
 * capture_packet() - if the filter wants it.
 * @interface: index in config.interfaces
 * @time_ns: since 1970
 * @comment: what became of it
 */
void capture_packet(struct capture *c, unsigned interface, enum capture_direction direction,
		    uint64_t time_ns, const uint8_t *frame, size_t len, const char *comment);
/** capture_add_interface() - one more.  Returns its index, or -ENOMEM, -ENOSPC: CAPTURE_INTERFACES_MAX. */
int capture_add_interface(struct capture *c, const char *name);
/** capture_flush() - write what is buffered.  Returns 0 or -errno: what comes after is lost, and so on. */
int capture_flush(struct capture *c);
struct capture_stats capture_stats(const struct capture *c);

#endif
