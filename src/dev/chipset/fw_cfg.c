/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/fw_cfg.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#define ID_TRADITIONAL 1u
#define ID_DMA	       2u

#define DMA_ERROR  0x01u
#define DMA_READ   0x02u
#define DMA_SKIP   0x04u
#define DMA_SELECT 0x08u
#define DMA_WRITE  0x10u

/* FWCfgDmaAccess, big-endian, in guest memory */
struct dma_access {
	uint32_t control;
	uint32_t len_bytes;
	uint64_t addr;
};
_Static_assert(sizeof(struct dma_access) == 16, "layout of the specification");

/* One entry of the directory, big-endian */
struct dir_entry {
	uint32_t size_bytes;
	uint16_t key;
	uint16_t reserved;
	char name[56];
};
_Static_assert(sizeof(struct dir_entry) == 64, "layout of the specification");

/* ---- contents ---- */

static struct fw_cfg_blob *find(struct fw_cfg *f, uint16_t key)
{
	uint16_t index = key & 0x3fff; /* bit 14: the old write channel */

	return index < FW_CFG_KEYS ? &f->blobs[key >> 15][index] : NULL;
}

static int set(struct fw_cfg_blob *b, const void *data, size_t len)
{
	uint8_t *copy;

	if (len > FW_CFG_MAX_BLOB)
		return -EINVAL;
	copy = malloc(MAX(len, (size_t)1));
	if (!copy)
		return -ENOMEM;
	memcpy(copy, data, len);
	free(b->data);
	b->data = copy;
	b->len = (uint32_t)len;
	return 0;
}

int fw_cfg_add_bytes(struct fw_cfg *f, uint16_t key, const void *data, size_t len)
{
	struct fw_cfg_blob *b = find(f, key);

	if (!b || (key & 0x7fff) >= FW_CFG_FILE_FIRST || (key & 0x7fff) == FW_CFG_FILE_DIR)
		return -EINVAL;
	return set(b, data, len);
}

int fw_cfg_add_u16(struct fw_cfg *f, uint16_t key, uint16_t value)
{
	uint16_t v = htole16(value);

	return fw_cfg_add_bytes(f, key, &v, sizeof(v));
}

int fw_cfg_add_u32(struct fw_cfg *f, uint16_t key, uint32_t value)
{
	uint32_t v = htole32(value);

	return fw_cfg_add_bytes(f, key, &v, sizeof(v));
}

int fw_cfg_add_u64(struct fw_cfg *f, uint16_t key, uint64_t value)
{
	uint64_t v = htole64(value);

	return fw_cfg_add_bytes(f, key, &v, sizeof(v));
}

static int build_directory(struct fw_cfg *f)
{
	size_t len = 4 + f->nfiles * sizeof(struct dir_entry);
	_cleanup_free_ uint8_t *dir = calloc(1, len);
	uint32_t count = htobe32((uint32_t)f->nfiles);

	if (!dir)
		return -ENOMEM;
	memcpy(dir, &count, sizeof(count));
	for (unsigned i = 0; i < f->nfiles; i++) {
		const struct fw_cfg_blob *b = &f->blobs[0][FW_CFG_FILE_FIRST + i];
		struct dir_entry e = {
			.size_bytes = htobe32(b->len),
			.key = htobe16((uint16_t)(FW_CFG_FILE_FIRST + i)),
		};

		memcpy(e.name, b->name, sizeof(e.name));
		memcpy(dir + 4 + i * sizeof(e), &e, sizeof(e));
	}
	return set(&f->blobs[0][FW_CFG_FILE_DIR], dir, len);
}

int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t len)
{
	struct fw_cfg_blob *b;
	int rc;

	if (!name[0] || strlen(name) >= sizeof(b->name))
		return -EINVAL;
	for (unsigned i = 0; i < f->nfiles; i++)
		if (!strcmp(f->blobs[0][FW_CFG_FILE_FIRST + i].name, name))
			return -EEXIST;
	if (f->nfiles == FW_CFG_FILE_SLOTS)
		return -ENOSPC;
	b = &f->blobs[0][FW_CFG_FILE_FIRST + f->nfiles];
	rc = set(b, data, len);
	if (rc)
		return rc;
	snprintf(b->name, sizeof(b->name), "%s", name);
	f->nfiles++;
	rc = build_directory(f);
	if (rc)
		f->nfiles--;
	return rc;
}

/* ---- reading ---- */

static void select_key(struct fw_cfg *f, uint16_t key)
{
	f->selector = key;
	f->offset = 0;
}

/* What is left of the selected blob; @len is cut to it. */
static const uint8_t *rest(struct fw_cfg *f, uint32_t *len)
{
	const struct fw_cfg_blob *b = find(f, f->selector);

	if (!b || !b->data || f->offset >= b->len) {
		*len = 0;
		return NULL;
	}
	*len = MIN(*len, b->len - f->offset);
	return b->data + f->offset;
}

static void advance(struct fw_cfg *f, uint32_t len)
{
	if (__builtin_add_overflow(f->offset, len, &f->offset))
		f->offset = UINT32_MAX;
}

static uint8_t next_byte(struct fw_cfg *f)
{
	uint32_t one = 1;
	const uint8_t *p = rest(f, &one);
	uint8_t v = one ? *p : 0;

	if (one)
		advance(f, 1);
	return v;
}

/* Bytes past the blob's end are zeros. */
static int copy_to_guest(struct fw_cfg *f, gpa_t gpa, uint32_t len)
{
	static const uint8_t zeros[4096];
	uint32_t have = len;
	const uint8_t *data = rest(f, &have);

	if (len > FW_CFG_MAX_BLOB)
		return -EFAULT;
	if (have && ram_write(f->env.ram, gpa, data, have))
		return -EFAULT;
	for (uint32_t done = have; done < len;) {
		uint32_t n = MIN(len - done, (uint32_t)sizeof(zeros));

		if (ram_write(f->env.ram, gpa + done, zeros, n))
			return -EFAULT;
		done += n;
	}
	advance(f, len);
	return 0;
}

static void run_dma(struct fw_cfg *f)
{
	struct dma_access a;
	uint32_t control, len, result = 0;

	if (ram_read(f->env.ram, f->dma_addr, &a, sizeof(a))) {
		log_guest("fw_cfg", "DMA descriptor at %#llx is not in RAM",
			  (unsigned long long)f->dma_addr);
		return;
	}
	control = be32toh(a.control);
	len = be32toh(a.len_bytes);
	if (control & DMA_SELECT)
		select_key(f, (uint16_t)(control >> 16));
	if (control & DMA_READ) {
		if (copy_to_guest(f, be64toh(a.addr), len))
			result = DMA_ERROR;
	} else if (control & DMA_WRITE) {
		result = DMA_ERROR; /* nothing here can be written */
	} else if (control & DMA_SKIP) {
		advance(f, len);
	}
	if (result)
		log_guest("fw_cfg", "DMA of %u bytes failed, control %#x", len, control);
	result = htobe32(result);
	if (ram_write(f->env.ram, f->dma_addr, &result, sizeof(result)))
		log_guest("fw_cfg", "DMA descriptor cannot be written");
}

/* ---- ports ---- */

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)(offset + i == 1 ? next_byte(dev) : 0) << i * 8;
	return v;
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	if (offset == 0 && size == 2)
		select_key(dev, (uint16_t)value);
	else
		log_guest("fw_cfg", "write of %u bytes to port %#x", size, 0x510 + (unsigned)offset);
}

static uint64_t dma_read(void *dev, uint64_t offset, unsigned size)
{
	uint64_t v = 0;

	memcpy(&v, &"QEMU CFG"[offset], size);
	return v;
}

/* The address register is big-endian; writing its last byte starts the transfer. */
static void dma_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct fw_cfg *f = dev;
	uint64_t be = htobe64(f->dma_addr);

	memcpy((uint8_t *)&be + offset, &value, size);
	f->dma_addr = be64toh(be);
	if (offset + size < 8)
		return;
	run_dma(f);
	f->dma_addr = 0;
}

static const struct bus_ops port_ops = { port_read, port_write };
static const struct bus_ops dma_ops = { dma_read, dma_write };

/* ---- life cycle ---- */

// clang-format off
static const struct field fields[] = {
	F_HOST(struct fw_cfg, dev),
	F_HOST(struct fw_cfg, env),
	F_HOST(struct fw_cfg, ranges),
	F_HOST(struct fw_cfg, blobs),
	F_HOST(struct fw_cfg, nfiles),
	F_U64(struct fw_cfg, dma_addr),
	F_U32(struct fw_cfg, offset),
	F_U16(struct fw_cfg, selector),
	F_HOST(struct fw_cfg, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "fw_cfg",
	.version = 1,
	.size = sizeof(struct fw_cfg),
	.fields = fields,
};

static void reset(struct device *d)
{
	struct fw_cfg *f = container_of(d, struct fw_cfg, dev);

	select_key(f, 0);
	f->dma_addr = 0;
}

static void destroy(struct device *d)
{
	struct fw_cfg *f = container_of(d, struct fw_cfg, dev);

	for (unsigned a = 0; a < 2; a++)
		for (unsigned k = 0; k < FW_CFG_KEYS; k++)
			free(f->blobs[a][k].data);
	bus_remove(f->env.bus, f->ranges[0]);
	bus_remove(f->env.bus, f->ranges[1]);
	free(f);
}

const struct device_class fw_cfg_class = {
	.name = "fw_cfg",
	.state = &desc,
	.reset = reset,
	.destroy = destroy,
};

int fw_cfg_create(struct fw_cfg **out, const struct dev_env *env, struct error *err)
{
	struct fw_cfg *f = calloc(1, sizeof(*f));
	int rc;

	if (!f)
		return error_set(err, -ENOMEM, "no memory for fw_cfg");
	device_init(&f->dev, &fw_cfg_class, "fw_cfg");
	f->env = *env;
	rc = fw_cfg_add_bytes(f, FW_CFG_SIGNATURE, "QEMU", 4);
	if (!rc)
		rc = fw_cfg_add_u32(f, FW_CFG_ID, ID_TRADITIONAL | ID_DMA);
	if (!rc)
		rc = build_directory(f);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x510, 2, 0, &port_ops, f, &f->ranges[0]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x514, 8, 0, &dma_ops, f, &f->ranges[1]);
	if (rc) {
		destroy(&f->dev);
		return error_set(err, rc, "fw_cfg cannot be set up: %s", strerror(-rc));
	}
	reset(&f->dev);
	*out = f;
	return 0;
}
