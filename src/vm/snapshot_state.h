/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of a whole machine as bytes: what a guest can observe of CPUs, devices and clocks; not its RAM
 * (snapshot_ram.h) and not the contents of its disks.
 *
 *   machine_save_state() --> bytes --> snapshot_state_parse() --> machine_load_state()
 *
 * Wire format; integers little-endian, nothing aligned (docs/formats/snapshot.md)
 *
 *   file    = "VIVSTATE", u32 format version, u32 number of sections, section..., u64 XXH64 of all before
 *   section = u8 name length, name, u32 length, bytes
 *
 * The section "machine" says what machine this is the state of, "features" which CPU features it has; both
 * are compared with the receiving machine before anything is touched.  "clock" is machine time, "cpuN" and
 * "vcpuN" are CPUs, "dev:ID" devices; each is one object of a field table (state/field.h).
 *
 * The bytes are the same for every engine: local APICs are always those of the LAPIC device.
 */
#ifndef VIV_VM_SNAPSHOT_STATE_H
#define VIV_VM_SNAPSHOT_STATE_H

#include "base/bytes.h"
#include "base/error.h"
#include "engine/cpuid.h"

struct machine;

#define SNAPSHOT_STATE_MAX    (64 * MIB) /* bytes; a longer one is refused */
#define SNAPSHOT_SECTIONS_MAX 512
#define SNAPSHOT_NAME_MAX     63

/* What the state is of.  Strings end in a NUL. */
struct snapshot_machine {
	char viv_version[16]; /* that wrote it */
	char engine[8];	      /* it ran on; another one may load it */
	char cpu_name[32];
	char vendor[16];
	char brand[48];
	char host_boot[40]; /* identifies the host since it was started; empty: unknown */
	uint64_t mem_bytes, rom_bytes;
	uint64_t xcr0_mask;
	uint32_t vcpus;
	uint32_t tsc_khz;
	uint32_t signature;
	uint8_t boot_format; /* enum boot_format */
	uint8_t phys_bits;
	bool is_amd, has_kvm_pv, has_fpu_error_pointers;
	uint8_t pad_[7];
};
extern const struct state_desc snapshot_machine_desc;

struct snapshot_section {
	char name[SNAPSHOT_NAME_MAX + 1];
	const uint8_t *data; /* in snapshot_state.data */
	uint32_t len;
};

struct snapshot_state {
	struct snapshot_machine machine;
	bool has[CPUF_COUNT];
	uint8_t *data;
	struct snapshot_section *sections;
	unsigned nsections;
};

/**
 * snapshot_state_parse() - hostile bytes to sections; checks form, checksum and the section "machine".
 * @data: copied
 * Returns 0, -EINVAL, -ENOMEM with @err set; snapshot_state_free() after success.
 */
int snapshot_state_parse(struct snapshot_state *out, const uint8_t *data, size_t len, struct error *err);
void snapshot_state_free(struct snapshot_state *s); /* zeroed is fine */

/** snapshot_state_find() - a section by name, or NULL. */
const struct snapshot_section *snapshot_state_find(const struct snapshot_state *s, const char *name);

/** snapshot_state_show() - every field of every section, readable, into @out.  Returns 0, -EINVAL, -ENOMEM. */
int snapshot_state_show(const struct snapshot_state *s, struct bytes *out, struct error *err);

/** snapshot_host_boot() - fill in what identifies this host since it was started. */
void snapshot_host_boot(char out[40]);

/** snapshot_cpu_model() - the saved CPU over @model, the same one by name on this host.
 * Returns 0, or -ENOTSUP naming what this host lacks; @model is then untouched. */
int snapshot_cpu_model(const struct snapshot_state *s, struct cpu_model *model, struct error *err);

/** snapshot_is_of_this_boot() - was it taken on this host, since it was started? */
bool snapshot_is_of_this_boot(const struct snapshot_state *s);

/**
 * snapshot_tsc_khz() - the frequency to tell the guest of its TSC.
 * @s: what the machine goes on from, or NULL
 * @host_khz: measured here; measurements differ a little, more on a busy host, and a guest's CPUs must be told one
 * figure: on the same host, or one with nearly the same, it is the saved one
 */
uint32_t snapshot_tsc_khz(const struct snapshot_state *s, uint32_t host_khz);

/* ---- the machine's side (lock held) ---- */

/**
 * machine_save_state() - append the state to @out.
 * The machine is paused, or was not started yet.  (Releases the lock.)  Returns 0, -EBUSY, -EIO (the engine),
 * -ENOMEM.
 */
int machine_save_state(struct machine *m, struct bytes *out, struct error *err);

/** machine_check_state() - would machine_load_state() take @s?  Changes nothing.  Errors as there. */
int machine_check_state(struct machine *m, const struct snapshot_state *s, struct error *err);

/**
 * machine_load_state() - make the state @s that of @m, which is paused or was not started yet.
 * (Releases the lock.)  RAM has its contents already, as devices look at it.  Returns 0, or -EINVAL, -ENOTSUP (another
 * machine, damaged), -ENOMEM with @err set and the machine untouched; only where the engine fails in the middle
 * does the machine end.
 */
int machine_load_state(struct machine *m, const struct snapshot_state *s, struct error *err);

/** machine_reload_state() - the same for a state that @m has loaded, or has saved itself, before: it is known to fit.  Returns as
 * machine_load_state(), but that bytes which are damaged all the same end the machine. */
int machine_reload_state(struct machine *m, const struct snapshot_state *s, struct error *err);

#endif
