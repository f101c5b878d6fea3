/* SPDX-License-Identifier: Apache-2.0 */
/* Runs one instruction on the host CPU with a given state, in this process, and catches its faults. */
#ifndef VIV_DIFFTEST_NATIVE_H
#define VIV_DIFFTEST_NATIVE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * The address space both sides see.  Natively it is real host memory at these addresses, for the guest
 * it is mapped by its page tables.  Unmapped pages lie before and after each of the two areas.
 */
#define ARENA_VA       0x20000000ULL
#define ARENA_PAGES    3u /* read-write, read-write, read-only */
#define ARENA_RW_PAGES 2u
#define ARENA_BYTES    (ARENA_PAGES * 4096u)
#define CODE_VA	       0x20100000ULL
#define CODE_PAGES     2u
#define CODE_BYTES     (CODE_PAGES * 4096u)

/* 16-bit code: segments of 64 KiB.  CS starts at the code, the others a page before the arena. */
#define DATA16_VA (ARENA_VA - 0x1000)

#define XSAVE_BYTES 832u

/* Offsets known to the assembly in native.c. */
struct native_state {
	uint64_t gpr[16];  /* 0 */
	uint64_t rip;	   /* 128 */
	uint64_t rflags;   /* 136 */
	uint64_t host_rsp; /* 144 */
	int64_t vector;	   /* of a fault, -1: none */
	uint64_t error, cr2;
	uint32_t far_off; /* 176: 16- and 32-bit code is entered by a far jump */
	uint16_t far_sel;
	uint16_t data_sel; /* 182: for DS, ES, SS; 0: leave them (64-bit code) */
	uint64_t entry;	   /* 184 */
	_Alignas(64) uint8_t xsave[XSAVE_BYTES + 64];
};

extern struct native_state native;

/** native_set_mode() - @bits of code that follows: 16, 32, 64; it is tried.  Returns 0, or -errno: the host kernel does not let a
 * process have a 16-bit code segment (modify_ldt), or (-ENOTSUP) no code of @bits runs here: a host that is a paravirtual guest itself has only
 * 64-bit segments.  After native_init(). */
int native_set_mode(unsigned bits);

/** native_keeps_rsp() - does the kernel return to 64-bit code whatever its RSP?  Where a hypervisor does it in the kernel's place, RSP may have
 * to be canonical. */
bool native_keeps_rsp(void);

/** native_init() - map arena and code, install the signal handlers (after those of the engine, which get
 * what is not this harness's).  Exits with a message when it can't. */
void native_init(void);

uint8_t *native_arena(void); /* writable view of all ARENA_BYTES */
uint8_t *native_code(void);  /* writable view of the code pages */

/** native_run() - run the instruction at @rip (offset in CS; in the code pages, its bytes and the exit
 * jump after it are in place).  State in and out in @native; rip after it, or the fault's. */
void native_run(uint64_t rip);

/** native_put_exit() - write the jump that ends a run at code offset @off; returns its length. */
unsigned native_put_exit(unsigned off);
#define NATIVE_EXIT_BYTES 14u /* at most */

#endif
