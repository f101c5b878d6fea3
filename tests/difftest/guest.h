/* SPDX-License-Identifier: Apache-2.0 */
/* A guest of one vCPU in 64-bit user mode, with the address space of native.h. */
#ifndef VIV_DIFFTEST_GUEST_H
#define VIV_DIFFTEST_GUEST_H

#include "engine/dbt/dbt.h"

struct dt_guest {
	struct guest_ram ram;
	struct dbt_vm *vm;
	struct dbt_cpu *cpu;
	uint8_t *arena; /* host pointers to what the guest has at ARENA_VA and CODE_VA */
	uint8_t *code;
	int vector; /* of the exception the instruction raised, -1: none; set by the link-time wrapper */
	uint32_t error;
	uint64_t start; /* RIP of the instruction under test */
};

/** dt_guest_create() - @is_strict: engine_config.is_strict.  Returns 0, or -1 after printing why.  One guest at a time. */
int dt_guest_create(struct dt_guest *g, bool is_strict);
/** dt_guest_set_mode() - @bits of code: 64, 32 (flat) or 16 (segments of native.h), all at CPL 3 in long mode. */
void dt_guest_set_mode(struct dt_guest *g, unsigned bits);

/** dt_guest_put_code() - write @len bytes at code offset @off as the machine does; NULL: INT3s. */
void dt_guest_put_code(struct dt_guest *g, unsigned off, const uint8_t *bytes, unsigned len);
void dt_guest_destroy(struct dt_guest *g);

#endif
