/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fw_cfg: numbered and named blobs for firmware and kernels, by ports 510H-511H and by DMA (514H).
 * Source: QEMU docs/specs/fw_cfg.rst (the interface that SeaBIOS, OVMF and Linux expect).
 *
 * Contents are set at construction and belong to the machine's configuration, not to its state;
 * guest writes are refused (DMA: error bit).
 */
#ifndef VIV_DEV_CHIPSET_FW_CFG_H
#define VIV_DEV_CHIPSET_FW_CFG_H

#include "dev/device.h"

#define FW_CFG_SIGNATURE    0x00
#define FW_CFG_ID	    0x01
#define FW_CFG_UUID	    0x02
#define FW_CFG_RAM_SIZE	    0x03 /* u64 */
#define FW_CFG_NOGRAPHIC    0x04
#define FW_CFG_NB_CPUS	    0x05 /* u16 */
#define FW_CFG_KERNEL_ADDR  0x07
#define FW_CFG_KERNEL_SIZE  0x08
#define FW_CFG_INITRD_ADDR  0x0a
#define FW_CFG_INITRD_SIZE  0x0b
#define FW_CFG_BOOT_MENU    0x0e
#define FW_CFG_MAX_CPUS	    0x0f
#define FW_CFG_KERNEL_ENTRY 0x10
#define FW_CFG_KERNEL_DATA  0x11
#define FW_CFG_INITRD_DATA  0x12
#define FW_CFG_CMDLINE_ADDR 0x13
#define FW_CFG_CMDLINE_SIZE 0x14
#define FW_CFG_CMDLINE_DATA 0x15
#define FW_CFG_SETUP_ADDR   0x16
#define FW_CFG_SETUP_SIZE   0x17
#define FW_CFG_SETUP_DATA   0x18
#define FW_CFG_FILE_DIR	    0x19
#define FW_CFG_FILE_FIRST   0x20
#define FW_CFG_FILE_SLOTS   0x20
#define FW_CFG_ARCH_LOCAL   0x8000 /* + 0 ACPI tables, 1 SMBIOS, 2 IRQ0 override, 3 e820 */
#define FW_CFG_KEYS	    (FW_CFG_FILE_FIRST + FW_CFG_FILE_SLOTS)
#define FW_CFG_MAX_BLOB	    (1u << 30)

struct fw_cfg_blob {
	uint8_t *data;
	uint32_t len;
	char name[56]; /* files only */
};

struct fw_cfg {
	struct device dev;
	struct dev_env env;
	struct bus_range *ranges[2];
	struct fw_cfg_blob blobs[2][FW_CFG_KEYS]; /* generic, arch-local */
	uint64_t nfiles;

	uint64_t dma_addr;
	uint32_t offset; /* next byte of the selected blob */
	uint16_t selector;
	uint8_t pad_[2];
};

extern const struct device_class fw_cfg_class;

/** fw_cfg_create() - with signature, ID (DMA present) and an empty directory. */
int fw_cfg_create(struct fw_cfg **out, const struct dev_env *env, struct error *err);

/* Set (or replace) a key: below FW_CFG_FILE_FIRST, or the same | FW_CFG_ARCH_LOCAL.  Data is copied, integers are
 * little-endian.  Return 0, -EINVAL (key, size), -ENOMEM. */
int fw_cfg_add_bytes(struct fw_cfg *f, uint16_t key, const void *data, size_t len);
int fw_cfg_add_u16(struct fw_cfg *f, uint16_t key, uint16_t value);
int fw_cfg_add_u32(struct fw_cfg *f, uint16_t key, uint32_t value);
int fw_cfg_add_u64(struct fw_cfg *f, uint16_t key, uint64_t value);
/** fw_cfg_add_file() - "etc/..." of 1..55 bytes; copied.  Returns 0, -EINVAL, -EEXIST, -ENOSPC, -ENOMEM. */
int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t len);

#endif
