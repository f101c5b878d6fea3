/* SPDX-License-Identifier: Apache-2.0 */
#include "net/capture.h"

#include <errno.h>
#include <fcntl.h>
#include <pcap/bpf.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/lib.h"

enum { SHB = 0x0a0d0d0a, IDB = 1, EPB = 6, MAGIC = 0x1a2b3c4d, LINK_ETHERNET = 1 };
enum {
	OPT_END = 0,
	OPT_COMMENT = 1,
	OPT_IF_NAME = 2,
	OPT_IF_TSRESOL = 9,
	OPT_EPB_FLAGS = 2,
	OPT_USERAPPL = 4
};
static struct {
	__typeof__(bpf_validate) *bpf_validate;
	__typeof__(bpf_filter) *bpf_filter;
} lib;

int capture_load(struct error *err)
{
	static const char *const files[] = { "libpcap.so.0.8", "libpcap.so.1", NULL };
	static const struct lib_call calls[] = { { "bpf_validate", &lib.bpf_validate },
						 { "bpf_filter", &lib.bpf_filter } };

	return lib.bpf_filter ? 0 : lib_load(files, calls, ARRAY_SIZE(calls), err);
}

#define BUFFER_MAX (256 * KIB)

struct capture {
	int dir_fd, fd;
	char name[CAPTURE_NAME_MAX + 1];
	uint64_t rotate_bytes, file_bytes;
	unsigned keep, index;
	struct bpf_insn *filter;
	char **interfaces;
	unsigned ninterfaces;
	struct bytes buffer;
	struct capture_stats stats;
	int failure; /* -errno: nothing is written any more */
};

/* ---- blocks ---- */

static void put_option(struct bytes *b, uint16_t code, const void *data, size_t len)
{
	static const uint8_t zeros[4];

	bytes_put_u16(b, code);
	bytes_put_u16(b, (uint16_t)len);
	bytes_put(b, data, len);
	bytes_put(b, zeros, -len & 3);
}

/* A block begins with its type and length, and ends with its length again. */
static size_t begin_block(struct bytes *b, uint32_t type)
{
	size_t at = b->len;

	bytes_put_u32(b, type);
	bytes_put_u32(b, 0);
	return at;
}

static void end_block(struct bytes *b, size_t at)
{
	uint32_t len = (uint32_t)(b->len - at + 4);

	bytes_put_u32(b, len);
	if (!b->is_failed)
		memcpy(b->data + at + 4, &len, 4);
}

static void put_interface(struct bytes *b, const char *name)
{
	static const uint8_t nanoseconds = 9;
	size_t at = begin_block(b, IDB);

	bytes_put_u16(b, LINK_ETHERNET);
	bytes_put_u16(b, 0);
	bytes_put_u32(b, 0); /* whole packets */
	put_option(b, OPT_IF_NAME, name, strlen(name));
	put_option(b, OPT_IF_TSRESOL, &nanoseconds, 1);
	bytes_put_u32(b, OPT_END);
	end_block(b, at);
}

static void put_head(struct capture *c)
{
	struct bytes *b = &c->buffer;
	size_t at = begin_block(b, SHB);

	bytes_put_u32(b, MAGIC);
	bytes_put_u16(b, 1);
	bytes_put_u16(b, 0);
	bytes_put_u64(b, UINT64_MAX); /* the section's length is not told */
	put_option(b, OPT_USERAPPL, "vivarium", 8);
	bytes_put_u32(b, OPT_END);
	end_block(b, at);
	for (unsigned i = 0; i < c->ninterfaces; i++)
		put_interface(b, c->interfaces[i]);
}

/* ---- files ---- */

static void file_name(const struct capture *c, unsigned index, char out[CAPTURE_NAME_MAX + 16])
{
	if (index)
		snprintf(out, CAPTURE_NAME_MAX + 16, "%s.%u", c->name, index);
	else
		snprintf(out, CAPTURE_NAME_MAX + 16, "%s", c->name);
}

static int open_file(struct capture *c)
{
	char name[CAPTURE_NAME_MAX + 16];

	file_name(c, c->index, name);
	int fd = openat(c->dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	c->fd = fd;
	c->file_bytes = 0;
	c->stats.files++;
	put_head(c);
	return 0;
}

static int rotate(struct capture *c)
{
	char name[CAPTURE_NAME_MAX + 16];

	close(c->fd);
	c->fd = -1;
	c->index++;
	if (c->keep && c->index >= c->keep) {
		file_name(c, c->index - c->keep, name);
		/* Somebody else may have taken it away. */
		(void)!unlinkat(c->dir_fd, name, 0);
	}
	return open_file(c);
}

static int write_all(struct capture *c)
{
	for (size_t at = 0; at < c->buffer.len;) {
		ssize_t n = write(c->fd, c->buffer.data + at, c->buffer.len - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (size_t)n;
	}
	c->file_bytes += c->buffer.len;
	c->buffer.len = 0;
	return 0;
}

int capture_flush(struct capture *c)
{
	if (c->failure < 0)
		return c->failure;
	if (c->buffer.is_failed)
		c->failure = -ENOMEM;
	else if (c->buffer.len)
		c->failure = write_all(c);
	if (c->failure == 0 && c->rotate_bytes && c->file_bytes > c->rotate_bytes)
		c->failure = rotate(c);
	return c->failure;
}

/* ---- life ---- */

/* libpcap lets jumps go backwards, for its "protochain": such a program could go on forever. */
static bool is_endless(const struct bpf_insn *insns, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (insns[i].code == (BPF_JMP | BPF_JA) && insns[i].k >= n)
			return true;
	return false;
}

static int take_filter(struct capture *c, const struct capture_config *cfg, struct error *err)
{
	if (!cfg->filter)
		return 0;
	if (!cfg->ninsns || cfg->ninsns > CAPTURE_INSNS_MAX)
		return error_set(err, -EINVAL, "a filter has 1 to %d instructions", CAPTURE_INSNS_MAX);
	c->filter = calloc(cfg->ninsns, sizeof(*c->filter));
	if (!c->filter)
		return error_set(err, -ENOMEM, "no memory for the capture");
	for (unsigned i = 0; i < cfg->ninsns; i++)
		c->filter[i] = (struct bpf_insn){ .code = cfg->filter[i].code,
						  .jt = cfg->filter[i].jt,
						  .jf = cfg->filter[i].jf,
						  .k = cfg->filter[i].k };
	if (is_endless(c->filter, cfg->ninsns))
		return error_set(err, -EINVAL, "the filter has a loop; protochain is not possible here");
	int r = capture_load(err);

	if (r < 0)
		return r;
	return lib.bpf_validate(c->filter, (int)cfg->ninsns)
		       ? 0
		       : error_set(err, -EINVAL, "the filter is no valid program of the packet filter");
}

static int take_interfaces(struct capture *c, const struct capture_config *cfg)
{
	c->interfaces = calloc(cfg->ninterfaces + 1, sizeof(*c->interfaces));
	if (!c->interfaces)
		return -ENOMEM;
	for (; c->ninterfaces < cfg->ninterfaces; c->ninterfaces++) {
		c->interfaces[c->ninterfaces] = strdup(cfg->interfaces[c->ninterfaces]);
		if (!c->interfaces[c->ninterfaces])
			return -ENOMEM;
	}
	return 0;
}

int capture_open(struct capture **out, const struct capture_config *cfg, struct error *err)
{
	struct capture *c = calloc(1, sizeof(*c));
	size_t len = strlen(cfg->name);
	int r;

	if (!c) {
		close(cfg->dir_fd);
		return error_set(err, -ENOMEM, "no memory for the capture");
	}
	c->dir_fd = cfg->dir_fd;
	c->fd = -1;
	c->rotate_bytes = cfg->rotate_bytes;
	c->keep = cfg->keep;
	if (!len || len > CAPTURE_NAME_MAX || strchr(cfg->name, '/') || strcmp(cfg->name, "..") == 0)
		r = error_set(err, -EINVAL, "\"%.200s\" is no name for a file", cfg->name);
	else if (cfg->rotate_bytes && cfg->rotate_bytes < CAPTURE_ROTATE_MIN)
		r = error_set(err, -EINVAL, "a file of a capture has at least 64 KiB");
	else
		r = take_filter(c, cfg, err);
	if (r == 0 && (r = take_interfaces(c, cfg)) < 0)
		error_set(err, r, "no memory for the capture");
	if (r == 0) {
		memcpy(c->name, cfg->name, len + 1);
		r = open_file(c);
		if (r == 0)
			r = capture_flush(c);
		if (r < 0)
			error_set(err, r, "cannot write %s: %s", cfg->name, strerror(-r));
	}
	if (r < 0) {
		capture_close(c);
		return r;
	}
	*out = c;
	return 0;
}

void capture_close(struct capture *c)
{
	if (!c)
		return;
	if (c->fd >= 0)
		capture_flush(c);
	if (c->fd >= 0)
		close(c->fd);
	close(c->dir_fd);
	for (unsigned i = 0; i < c->ninterfaces; i++)
		free(c->interfaces[i]);
	free(c->interfaces);
	free(c->filter);
	bytes_free(&c->buffer);
	free(c);
}

/* ---- packets ---- */

int capture_add_interface(struct capture *c, const char *name)
{
	char **more = c->ninterfaces < CAPTURE_INTERFACES_MAX
			      ? realloc(c->interfaces, (c->ninterfaces + 1) * sizeof(*more))
			      : NULL;
	char *copy = more ? strdup(name) : NULL;

	c->interfaces = more ? more : c->interfaces;
	if (!copy)
		return c->ninterfaces < CAPTURE_INTERFACES_MAX ? -ENOMEM : -ENOSPC;
	c->interfaces[c->ninterfaces] = copy;
	put_interface(&c->buffer, name);
	return (int)c->ninterfaces++;
}

void capture_packet(struct capture *c, unsigned interface, enum capture_direction direction,
		    uint64_t time_ns, const uint8_t *frame, size_t len, const char *comment)
{
	static const uint8_t zeros[4];
	struct bytes *b = &c->buffer;
	uint32_t flags = direction;

	if (c->failure < 0 || (c->filter && !lib.bpf_filter(c->filter, frame, (u_int)len, (u_int)len)))
		return;
	size_t at = begin_block(b, EPB);
	bytes_put_u32(b, interface);
	bytes_put_u32(b, (uint32_t)(time_ns >> 32));
	bytes_put_u32(b, (uint32_t)time_ns);
	bytes_put_u32(b, (uint32_t)len);
	bytes_put_u32(b, (uint32_t)len);
	bytes_put(b, frame, len);
	bytes_put(b, zeros, -len & 3);
	put_option(b, OPT_COMMENT, comment, strlen(comment));
	put_option(b, OPT_EPB_FLAGS, &flags, 4);
	bytes_put_u32(b, OPT_END);
	end_block(b, at);
	c->stats.packets++;
	c->stats.bytes += len;
	if (b->len > BUFFER_MAX || b->is_failed)
		capture_flush(c);
}

struct capture_stats capture_stats(const struct capture *c)
{
	return c->stats;
}
