/* SPDX-License-Identifier: Apache-2.0 */
/* The verifier accepts the soft-TLB sequences as emitted and refuses everything an attack would need. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

#include "engine/code_verify.h"

static const struct code_verify_env env = {
	.stubs = { (const uint8_t *)0x10001000, (const uint8_t *)0x10004000 },
	.miss = { (const uint8_t *)0x10002000, (const uint8_t *)0x10002100 },
	.calls = { (const uint8_t *)0x10003000 },
	.exec = (const uint8_t *)0x10000000,
	.linked = { (const uint8_t *)0x10004000 },
	.off_base = 0x130,
	.base = 0x180,
	.off_ptr = 0x200,
	.off_rounds = 0x240,
	.off_kept = { 0x48 },
	.nptr = 8,
	.near_entry = SIZE_MAX,
	.cpu_bytes = 0x10000,
	.off_tlb_mask = 0x100,
	.off_page_mask = 0x108,
	.off_jc_mask = 0x110,
	.off_jc_neg = 0x3000,
	.off_jc_code = 0x2000,
	.off_ct_mask = 0x128,
	.off_ct = 0x2800,
	.off_line_mask = 0x118,
	.off_line_size = 0x120,
	.line_bytes = 64,
	.writable = { { 0, 0x100 }, { 0x200, 0x280 } },
	.off_rneg = 0x4000,
	.off_wneg = 0x6000,
	.off_xlat = 0x8000,
};

struct snippet {
	const char *name;
	bool is_good;
	unsigned len;
	uint8_t bytes[96];
};

/* pext r14, rcx, gs:[100h]; add rcx, gs:[r14*8 + tag] */
#define TLB_LOADS(tag_hi)                                                                          \
	0x65, 0xc4, 0x62, 0xf2, 0xf5, 0x34, 0x25, 0x00, 0x01, 0x00, 0x00, 0x65, 0x4a, 0x03, 0x0c,  \
		0xf5, 0x00, tag_hi, 0x00, 0x00
/* cmp rcx, 4096 - 8; ja (put there by verify()); mov r14, gs:[r14*8 + 8000h] */
#define GUARD_8                                                                                    \
	0x48, 0x81, 0xf9, 0xf8, 0x0f, 0x00, 0x00, 0x0f, 0x87, 0x00, 0x00, 0x00, 0x00, 0x65, 0x4e,  \
		0x8b, 0x34, 0xf5, 0x00, 0x80, 0x00, 0x00
#define LOW_16	  0x0f, 0xb7, 0xc9		    /* movzx ecx, cx */
#define CHECK_8	  GUARD_8, LOW_16, 0x49, 0x01, 0xce /* add r14, rcx */
#define LEN_LOADS 20
#define LEN_GUARD 22
#define LEN_PARTS 25
#define LEN_CHECK 28
/* lea rcx, [r14]; pext rcx, rcx, gs:[118h]; lea rcx, [rcx + last]; pext rcx, rcx, gs:[120h] */
#define LINE(last)                                                                                 \
	0x49, 0x8d, 0x0e, 0x65, 0xc4, 0xe2, 0xf2, 0xf5, 0x0c, 0x25, 0x18, 0x01, 0x00, 0x00, 0x48,  \
		0x8d, 0x49, last, 0x65, 0xc4, 0xe2, 0xf2, 0xf5, 0x0c, 0x25, 0x20, 0x01, 0x00, 0x00
#define LEN_LINE 29
/* jrcxz over a jump over 4 bytes */
#define IF_ONE_LINE 0xe3, 0x05, 0xe9, 0x04, 0x00, 0x00, 0x00
#define LEN_IF	    7

/* mov r15, gs:[130h] */
#define GET_BASE 0x65, 0x4c, 0x8b, 0x3c, 0x25, 0x30, 0x01, 0x00, 0x00
/* The same check as TLB_LOADS and CHECK_8, by r15, which is 180h into the state. */
#define CHECK_BY_BASE                                                                              \
	0xc4, 0x42, 0xf2, 0xf5, 0x77, 0x80, 0x4b, 0x03, 0x8c, 0xf7, 0x80, 0x3e, 0x00, 0x00, 0x48,  \
		0x81, 0xf9, 0xf8, 0x0f, 0x00, 0x00, 0x0f, 0x87, 0x00, 0x00, 0x00, 0x00, 0x4f,      \
		0x8b, 0xb4, 0xf7, 0x80, 0x7e, 0x00, 0x00, LOW_16, 0x49, 0x01, 0xce
#define LEN_BY_BASE 41

static const struct snippet snippets[] = {
	{ "check by the base", true, LEN_BY_BASE + 3, { CHECK_BY_BASE, 0x49, 0x8b, 0x06 } },
	{ "check by something else", /* mov r15, rax */
	  false,
	  3 + LEN_BY_BASE + 3,
	  { 0x49, 0x89, 0xc7, CHECK_BY_BASE, 0x49, 0x8b, 0x06 } },
	{ "check by the base again",
	  true,
	  3 + 9 + LEN_BY_BASE + 3,
	  { 0x49, 0x89, 0xc7, GET_BASE, CHECK_BY_BASE, 0x49, 0x8b, 0x06 } },
	{ "base moved", false, 7, { 0x49, 0x83, 0xc7, 0x08, 0x49, 0x8b, 0x07 } },
	{ "lower half of the base", /* mov r15d, gs:[130h] */
	  false,
	  11,
	  { 0x65, 0x44, 0x8b, 0x3c, 0x25, 0x30, 0x01, 0x00, 0x00, 0x41, 0x8b } },
	{ "another word as the base",
	  false,
	  12,
	  { 0x65, 0x4c, 0x8b, 0x3c, 0x25, 0x38, 0x01, 0, 0, 0x49, 0x8b, 0x07 } },
	{ "state by the base", true, 4, { 0x49, 0x8b, 0x47, 0x80 } },
	{ "state before its begin, by the base", false, 7, { 0x49, 0x8b, 0x87, 0x00, 0xfe, 0xff, 0xff } },
	{ "state beyond its end, by the base", false, 7, { 0x49, 0x8b, 0x87, 0x80, 0xfe, 0x00, 0x00 } },
	{ "write to the guest's state by the base", true, 7, { 0x49, 0x89, 0x87, 0x80, 0xfe, 0xff, 0xff } },
	{ "write to the TLB's mask by the base", false, 4, { 0x49, 0x89, 0x47, 0x80 } },
	{ "write to the base's word", false, 9, { 0x65, 0x48, 0x89, 0x04, 0x25, 0x30, 0x01, 0x00, 0x00 } },
	{ "state by the base and a register", false, 4, { 0x49, 0x8b, 0x04, 0x07 } },
	{ "by the base in the host's thread-local storage", false, 5, { 0x64, 0x49, 0x8b, 0x47, 0x80 } },
	{ "return without the base", false, 4, { 0x49, 0x89, 0xc7, 0xc3 } },
	{ "patched jump", true, 5, { 0xe9, 0xfb, 0x3f, 0x00, 0x00 } },
	{ "patched jump without the base", false, 8, { 0x49, 0x89, 0xc7, 0xe9, 0xf8, 0x3f, 0x00, 0x00 } },
	{ "jump by the branch table without the base", /* mov r15, rax first */
	  false,
	  23,
	  { 0x49, 0x89, 0xc7, 0x65, 0xc4, 0x62, 0xf2, 0xf5, 0x34, 0x25, 0x10, 0x01,
	    0x00, 0x00, 0x65, 0x42, 0xff, 0x24, 0xf5, 0x00, 0x20, 0x00, 0x00 } },
	{ "ways with and without the base meet", /* jrcxz +3; mov r15, rax; mov rax, [r15 - 80h] */
	  false,
	  9,
	  { 0xe3, 0x03, 0x49, 0x89, 0xc7, 0x49, 0x8b, 0x47, 0x80 } },
	{ "checked read", true, LEN_LOADS + LEN_CHECK + 3, { TLB_LOADS(0x40), CHECK_8, 0x49, 0x8b, 0x06 } },
	{ "checked write", true, LEN_LOADS + LEN_CHECK + 3, { TLB_LOADS(0x60), CHECK_8, 0x49, 0x89, 0x06 } },
	{ "write after a read check",
	  false,
	  LEN_LOADS + LEN_CHECK + 3,
	  { TLB_LOADS(0x40), CHECK_8, 0x49, 0x89, 0x06 } },
	{ "16 bytes after a check of 8",
	  false,
	  LEN_LOADS + LEN_CHECK + 4,
	  { TLB_LOADS(0x40), CHECK_8, 0x41, 0x0f, 0x10, 0x06 } },
	{ "pointer moved after the check",
	  false,
	  LEN_LOADS + LEN_CHECK + 7,
	  { TLB_LOADS(0x40), CHECK_8, 0x49, 0x83, 0xc6, 0x01, 0x49, 0x8b, 0x06 } },
	{ "displacement on a checked pointer",
	  false,
	  LEN_LOADS + LEN_CHECK + 4,
	  { TLB_LOADS(0x40), CHECK_8, 0x49, 0x8b, 0x46, 0x08 } },
	{ "pointer in parts", /* mov rax, [r14 + rcx] */
	  true,
	  LEN_LOADS + LEN_PARTS + 4,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x49, 0x8b, 0x04, 0x0e } },
	{ "write in parts after a read check",
	  false,
	  LEN_LOADS + LEN_PARTS + 4,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x49, 0x89, 0x04, 0x0e } },
	{ "16 bytes in parts after a check of 8",
	  false,
	  LEN_LOADS + LEN_PARTS + 5,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x41, 0x0f, 0x10, 0x04, 0x0e } },
	{ "displacement in parts", /* mov rax, [r14 + rcx + 8] */
	  false,
	  LEN_LOADS + LEN_PARTS + 5,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x49, 0x8b, 0x44, 0x0e, 0x08 } },
	{ "twice the offset", /* mov rax, [r14 + rcx * 2] */
	  false,
	  LEN_LOADS + LEN_PARTS + 4,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x49, 0x8b, 0x04, 0x4e } },
	{ "offset not cut to 16 bits",
	  false,
	  LEN_LOADS + LEN_GUARD + 4,
	  { TLB_LOADS(0x40), GUARD_8, 0x49, 0x8b, 0x04, 0x0e } },
	{ "offset changed since", /* inc ecx */
	  false,
	  LEN_LOADS + LEN_PARTS + 6,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0xff, 0xc1, 0x49, 0x8b, 0x04, 0x0e } },
	{ "page changed since", /* inc r14 */
	  false,
	  LEN_LOADS + LEN_PARTS + 7,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x49, 0xff, 0xc6, 0x49, 0x8b, 0x04, 0x0e } },
	{ "another register in between", /* mov r15, rax */
	  true,
	  LEN_LOADS + LEN_PARTS + 7,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x49, 0x89, 0xc7, 0x49, 0x8b, 0x04, 0x0e } },
	{ "page without its offset", /* mov rax, [r14] */
	  false,
	  LEN_LOADS + LEN_PARTS + 3,
	  { TLB_LOADS(0x40), GUARD_8, LOW_16, 0x49, 0x8b, 0x06 } },
	{ "no guard",
	  false,
	  LEN_LOADS + 9,
	  { TLB_LOADS(0x40), 0x0f, 0xb7, 0xc9, 0x49, 0x01, 0xce, 0x49, 0x8b, 0x06 } },
	{ "guest register as a pointer", false, 3, { 0x48, 0x8b, 0x00 } },
	{ "host stack as memory", false, 4, { 0x48, 0x8b, 0x04, 0x24 } },
	{ "absolute host address", false, 8, { 0x48, 0x8b, 0x04, 0x25, 0x00, 0x10, 0x00, 0x00 } },
	{ "rip-relative host address", false, 7, { 0x48, 0x8b, 0x05, 0x00, 0x00, 0x00, 0x00 } },
	{ "thread-local storage", false, 9, { 0x64, 0x48, 0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00 } },
	{ "state", true, 9, { 0x65, 0x48, 0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00 } },
	{ "beyond the state", false, 9, { 0x65, 0x48, 0x8b, 0x04, 0x25, 0xfc, 0xff, 0x00, 0x00 } },
	{ "state with a free index", false, 9, { 0x65, 0x4e, 0x8b, 0x34, 0xf5, 0x00, 0x80, 0x00, 0x00 } },
	{ "syscall", false, 2, { 0x0f, 0x05 } },
	{ "sysenter", false, 2, { 0x0f, 0x34 } },
	{ "int 80h", false, 2, { 0xcd, 0x80 } },
	{ "int3", false, 1, { 0xcc } },
	{ "hlt", false, 1, { 0xf4 } },
	{ "in al, dx", false, 1, { 0xec } },
	{ "return", true, 1, { 0xc3 } },
	{ "return that drops words", false, 3, { 0xc2, 0x08, 0x00 } },
	{ "return with flags on the stack", false, 2, { 0x9c, 0xc3 } },
	{ "return with r14 on the stack", false, 3, { 0x41, 0x56, 0xc3 } },
	/* push r14; call; pop r15, and its base again; ret; at the call's target: ret */
	{ "call and return", true, 20, { 0x41, 0x56, 0xe8, 0x0c, 0, 0, 0, 0x41, 0x5f, GET_BASE, 0xc3, 0xc3 } },
	{ "call, and return without the base",
	  false,
	  11,
	  { 0x41, 0x56, 0xe8, 0x03, 0, 0, 0, 0x41, 0x5f, 0xc3, 0xc3 } },
	{ "call without a pushed word", false, 9, { 0xe8, 0x03, 0, 0, 0, 0x41, 0x5f, 0xc3, 0xc3 } },
	{ "call with flags pushed", false, 10, { 0x9c, 0xe8, 0x03, 0, 0, 0, 0x41, 0x5f, 0xc3, 0xc3 } },
	{ "call that comes back to a return", false, 8, { 0x41, 0x56, 0xe8, 0x00, 0, 0, 0, 0xc3 } },
	{ "call that leaves the word", false, 11, { 0x41, 0x56, 0xe8, 0x03, 0, 0, 0, 0x90, 0x90, 0x9d, 0xc3 } },
	{ "call out of the block", false, 10, { 0x41, 0x56, 0xe8, 0x00, 0x20, 0, 0, 0x41, 0x5f, 0xc3 } },
	{ "call back", false, 10, { 0x41, 0x56, 0xe8, 0xf9, 0xff, 0xff, 0xff, 0x41, 0x5f, 0xc3 } },
	{ "call into an instruction",
	  false,
	  12,
	  { 0x41, 0x56, 0xe8, 0x04, 0, 0, 0, 0x41, 0x5f, 0xc3, 0x31, 0xc0 } },
	/* a checked pointer does not outlive a call, nor reach its target */
	{ "pointer used after a call",
	  false,
	  LEN_LOADS + LEN_CHECK + 14,
	  { TLB_LOADS(0x40), CHECK_8, 0x41, 0x56, 0xe8, 0x06, 0, 0, 0, 0x41, 0x5f, 0x49, 0x8b, 0x06,
	    0xc3, 0xc3 } },
	{ "pointer used by the called",
	  false,
	  LEN_LOADS + LEN_CHECK + 14,
	  { TLB_LOADS(0x40), CHECK_8, 0x41, 0x56, 0xe8, 0x03, 0, 0, 0, 0x41, 0x5f, 0xc3, 0x49, 0x8b,
	    0x06, 0xc3 } },
	{ "call of the miss with r14 pushed", false, 9, { 0x41, 0x56, 0xe8, 0xf9, 0x1f, 0, 0, 0x41, 0x5f } },
	{ "iretq", false, 2, { 0x48, 0xcf } },
	{ "retf", false, 1, { 0xcb } },
	{ "wrgsbase rax", false, 5, { 0xf3, 0x48, 0x0f, 0xae, 0xd8 } },
	{ "wrfsbase rax", false, 5, { 0xf3, 0x48, 0x0f, 0xae, 0xd0 } },
	{ "mov gs, ax", false, 2, { 0x8e, 0xe8 } },
	{ "swapgs", false, 3, { 0x0f, 0x01, 0xf8 } },
	{ "wrpkru", false, 3, { 0x0f, 0x01, 0xef } },
	{ "rep movsb", false, 2, { 0xf3, 0xa4 } },
	{ "xlat", false, 1, { 0xd7 } },
	{ "maskmovdqu", false, 4, { 0x66, 0x0f, 0xf7, 0xc1 } },
	{ "vpgatherdd", false, 6, { 0xc4, 0xe2, 0x75, 0x90, 0x04, 0x90 } },
	{ "xsave", false, 4, { 0x41, 0x0f, 0xae, 0x26 } },
	{ "std", false, 1, { 0xfd } },
	{ "jmp rax", false, 2, { 0xff, 0xe0 } },
	{ "call rax", false, 2, { 0xff, 0xd0 } },
	{ "jmp [rax]", false, 2, { 0xff, 0x20 } },
	{ "jmp out", false, 5, { 0xe9, 0x00, 0x10, 0x00, 0x00 } },
	{ "jmp to a stub", true, 5, { 0xe9, 0xfb, 0x0f, 0x00, 0x00 } },
	{ "call to a stub", false, 5, { 0xe8, 0xfb, 0x0f, 0x00, 0x00 } },
	{ "call to the miss", true, 5, { 0xe8, 0xfb, 0x1f, 0x00, 0x00 } },
	{ "call to a listed one", true, 5, { 0xe8, 0xfb, 0x2f, 0x00, 0x00 } },
	{ "call into a listed one", false, 5, { 0xe8, 0xfc, 0x2f, 0x00, 0x00 } },
	{ "jump to one that is called", false, 5, { 0xe9, 0xfb, 0x2f, 0x00, 0x00 } },
	{ "pointer used after it",
	  false,
	  LEN_LOADS + LEN_CHECK + 8,
	  { TLB_LOADS(0x40), CHECK_8, 0xe8, 0xfb - LEN_LOADS - LEN_CHECK, 0x2f, 0x00, 0x00, 0x49,
	    0x8b, 0x06 } },
	{ "far jump", false, 3, { 0x41, 0xff, 0x2e } },
	{ "mov rsp, rax", false, 3, { 0x48, 0x89, 0xc4 } },
	{ "pop rsp", false, 1, { 0x5c } },
	{ "flags through the stack", true, 2, { 0x9c, 0x9d } },
	{ "stack underflow", false, 1, { 0x9d } },
	{ "jump with a word on the stack", false, 6, { 0x9c, 0xe9, 0xfa, 0x0f, 0x00, 0x00 } },
	{ "no instruction", false, 2, { 0x0f, 0x04 } },
	/* mov gs:[200h], r14; mov r14, gs:[200h]; mov rax, [r14] */
	{ "pointer kept in a slot",
	  true,
	  LEN_LOADS + LEN_CHECK + 26,
	  { TLB_LOADS(0x40),
	    CHECK_8,
	    0x65,
	    0x4c,
	    0x89,
	    0x34,
	    0x25,
	    0x00,
	    0x02,
	    0x00,
	    0x00,
	    0x31,
	    0xc0,
	    0x90,
	    0x90,
	    0x90,
	    0x65,
	    0x4c,
	    0x8b,
	    0x34,
	    0x25,
	    0x00,
	    0x02,
	    0x00,
	    0x00,
	    0x49,
	    0x8b,
	    0x06 } },
	{ "write through a slot of a read check",
	  false,
	  LEN_LOADS + LEN_CHECK + 21,
	  { TLB_LOADS(0x40),
	    CHECK_8,
	    0x65,
	    0x4c,
	    0x89,
	    0x34,
	    0x25,
	    0x00,
	    0x02,
	    0x00,
	    0x00,
	    0x65,
	    0x4c,
	    0x8b,
	    0x34,
	    0x25,
	    0x00,
	    0x02,
	    0x00,
	    0x00,
	    0x49,
	    0x89,
	    0x06 } },
	{ "pointer from a slot of another block",
	  false,
	  12,
	  { 0x65, 0x4c, 0x8b, 0x34, 0x25, 0x00, 0x02, 0x00, 0x00, 0x49, 0x8b, 0x06 } },
	{ "slot written with a free register", false, 9, { 0x65, 0x48, 0x89, 0x04, 0x25, 0x08, 0x02, 0x00, 0x00 } },
	{ "half a slot written", false, 8, { 0x65, 0x89, 0x04, 0x25, 0x0c, 0x02, 0x00, 0x00 } },
	/* je over the check to the access */
	{ "jump over a check",
	  false,
	  2 + LEN_LOADS + LEN_CHECK + 3,
	  { 0x74, LEN_LOADS + LEN_CHECK, TLB_LOADS(0x40), CHECK_8, 0x49, 0x8b, 0x06 } },
	/* the access, then back to it with another pointer */
	{ "jump back to an access",
	  false,
	  LEN_LOADS + LEN_CHECK + 3 + 3 + 2,
	  { TLB_LOADS(0x40), CHECK_8, 0x49, 0x8b, 0x06, 0x49, 0xff, 0xc6, 0x74, (uint8_t)-8 } },
	{ "jump into an instruction", false, 7, { 0x74, 0x01, 0xb8, 0x0f, 0x05, 0x90, 0x90 } },
	{ "jump back into an instruction", false, 7, { 0xb8, 0x0f, 0x05, 0x90, 0x90, 0x74, (uint8_t)-6 } },
	{ "jump past the end", false, 2, { 0x74, 0x20 } },
	/* lock add [r14], rax */
	{ "locked after the check for a line",
	  true,
	  LEN_LOADS + LEN_CHECK + LEN_LINE + LEN_IF + 4,
	  { TLB_LOADS(0x60), CHECK_8, LINE(7), IF_ONE_LINE, 0xf0, 0x49, 0x01, 0x06 } },
	{ "locked without one",
	  false,
	  LEN_LOADS + LEN_CHECK + 4,
	  { TLB_LOADS(0x60), CHECK_8, 0xf0, 0x49, 0x01, 0x06 } },
	{ "locked after one of 4 bytes",
	  false,
	  LEN_LOADS + LEN_CHECK + LEN_LINE + LEN_IF + 4,
	  { TLB_LOADS(0x60), CHECK_8, LINE(3), IF_ONE_LINE, 0xf0, 0x49, 0x01, 0x06 } },
	{ "locked where it says that there are two lines", /* jrcxz over it */
	  false,
	  LEN_LOADS + LEN_CHECK + LEN_LINE + 2 + 4,
	  { TLB_LOADS(0x60), CHECK_8, LINE(7), 0xe3, 0x04, 0xf0, 0x49, 0x01, 0x06 } },
	{ "locked on both ways",
	  false,
	  LEN_LOADS + LEN_CHECK + LEN_LINE + 2 + 4,
	  { TLB_LOADS(0x60), CHECK_8, LINE(7), 0xe3, 0x00, 0xf0, 0x49, 0x01, 0x06 } },
	{ "locked through a pointer moved since", /* inc r14 */
	  false,
	  LEN_LOADS + LEN_CHECK + LEN_LINE + LEN_IF + 7,
	  { TLB_LOADS(0x60), CHECK_8, LINE(7), IF_ONE_LINE, 0x49, 0xff, 0xc6, 0xf0, 0x49, 0x01, 0x06 } },
	{ "locked besides what was checked", /* lock add [r14 + 4], eax */
	  false,
	  LEN_LOADS + LEN_CHECK + LEN_LINE + LEN_IF + 5,
	  { TLB_LOADS(0x60), CHECK_8, LINE(3), IF_ONE_LINE, 0xf0, 0x41, 0x01, 0x46, 0x04 } },
	{ "locked where the line was checked of the offset only", /* lea rcx, [r14]; lea rcx, [rcx + 7]; pext */
	  false,
	  LEN_LOADS + LEN_CHECK + 18 + LEN_IF + 4,
	  { TLB_LOADS(0x60),
	    CHECK_8,
	    0x49,
	    0x8d,
	    0x0e,
	    0x48,
	    0x8d,
	    0x49,
	    0x07,
	    0x65,
	    0xc4,
	    0xe2,
	    0xf2,
	    0xf5,
	    0x0c,
	    0x25,
	    0x20,
	    0x01,
	    0x00,
	    0x00,
	    IF_ONE_LINE,
	    0xf0,
	    0x49,
	    0x01,
	    0x06 } },
	{ "xchg without a check for a line",
	  false,
	  LEN_LOADS + LEN_CHECK + 3,
	  { TLB_LOADS(0x60), CHECK_8, 0x49, 0x87, 0x06 } },
	{ "lock cmpxchg8b without one",
	  false,
	  LEN_LOADS + LEN_CHECK + 5,
	  { TLB_LOADS(0x60), CHECK_8, 0xf0, 0x41, 0x0f, 0xc7, 0x0e } },
	{ "a locked byte", true, LEN_LOADS + LEN_CHECK + 4, { TLB_LOADS(0x60), CHECK_8, 0xf0, 0x41, 0x00, 0x06 } },
	{ "locked state", false, 10, { 0xf0, 0x65, 0x48, 0x01, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00 } },
	/* mov rcx, r14; mov [rcx], rax */
	{ "pointer in rcx",
	  true,
	  LEN_LOADS + LEN_CHECK + 6,
	  { TLB_LOADS(0x60), CHECK_8, 0x4c, 0x89, 0xf1, 0x48, 0x89, 0x01 } },
	/* the same after a read check, with the loads of a write check in between */
	{ "pointer in rcx of an earlier read check",
	  false,
	  LEN_LOADS + LEN_CHECK + 3 + 20 + 3,
	  { TLB_LOADS(0x40),
	    CHECK_8,
	    0x4c,
	    0x89,
	    0xf1,
	    0x65,
	    0xc4,
	    0x62,
	    0xf2,
	    0xf5,
	    0x34,
	    0x25,
	    0x00,
	    0x01,
	    0x00,
	    0x00,
	    0x65,
	    0x4e,
	    0x8b,
	    0x3c,
	    0xf5,
	    0x00,
	    0x60,
	    0x00,
	    0x00,
	    0x48,
	    0x89,
	    0x01 } },
	/* bts [r14], rax; mov r15d, mask; pext ecx, eax, r15d; bts [r14], rcx */
	{ "bit string with any offset",
	  false,
	  LEN_LOADS + LEN_CHECK + 4,
	  { TLB_LOADS(0x60), CHECK_8, 0x49, 0x0f, 0xab, 0x06 } },
	{ "bit string with a bounded offset",
	  true,
	  LEN_LOADS + LEN_CHECK + 15,
	  { TLB_LOADS(0x60), CHECK_8, 0x41, 0xbf, 0x3f, 0x00, 0x00, 0x00, 0xc4, 0xc2, 0x7a, 0xf5,
	    0xcf, 0x49, 0x0f, 0xab, 0x0e } },
	{ "bit string with an offset bounded to more", /* bts [r14], ecx */
	  false,
	  LEN_LOADS + LEN_CHECK + 15,
	  { TLB_LOADS(0x60), CHECK_8, 0x41, 0xbf, 0x3f, 0x00, 0x00, 0x00, 0xc4, 0xc2, 0x7a, 0xf5,
	    0xcf, 0x41, 0x0f, 0xab, 0x0e } },
	{ "bit string with an offset bounded to nothing",
	  false,
	  LEN_LOADS + LEN_CHECK + 15,
	  { TLB_LOADS(0x60), CHECK_8, 0x41, 0xbf, 0x7f, 0x00, 0x00, 0x00, 0xc4, 0xc2, 0x7a, 0xf5,
	    0xcf, 0x49, 0x0f, 0xab, 0x0e } },
	{ "bit of a number",
	  true,
	  LEN_LOADS + LEN_CHECK + 5,
	  { TLB_LOADS(0x60), CHECK_8, 0x49, 0x0f, 0xba, 0x2e, 0x3f } },
	{ "lea rsp, [rsp + 8]", true, 6, { 0x9c, 0x48, 0x8d, 0x64, 0x24, 0x08 } },
	{ "lea esp, [rsp + 8]", false, 5, { 0x9c, 0x8d, 0x64, 0x24, 0x08 } },
	{ "lea rsp, [rsp + rax + 8]", false, 6, { 0x9c, 0x48, 0x8d, 0x64, 0x04, 0x08 } },
	{ "write to the guest's state", true, 9, { 0x65, 0x48, 0x89, 0x04, 0x25, 0xf8, 0x00, 0x00, 0x00 } },
	{ "write to the TLB's mask", false, 9, { 0x65, 0x48, 0x89, 0x04, 0x25, 0x00, 0x01, 0x00, 0x00 } },
	{ "write to the TLB", false, 9, { 0x65, 0x48, 0x89, 0x04, 0x25, 0x00, 0x40, 0x00, 0x00 } },
	/* pext r14, rcx, gs:[110h] or gs:[100h]; jmp gs:[r14 * 8 + 2000h] */
	{ "jump by the branch table", true, 20, { 0x65, 0xc4, 0x62, 0xf2, 0xf5, 0x34, 0x25,
						  0x10, 0x01, 0x00, 0x00, 0x65, 0x42, 0xff,
						  0x24, 0xf5, 0x00, 0x20, 0x00, 0x00 } },
	{ "jump by an index of the TLB", false, 20, { 0x65, 0xc4, 0x62, 0xf2, 0xf5, 0x34, 0x25,
						      0x00, 0x01, 0x00, 0x00, 0x65, 0x42, 0xff,
						      0x24, 0xf5, 0x00, 0x20, 0x00, 0x00 } },
	{ "read of what is no table", false, 20, { 0x65, 0xc4, 0x62, 0xf2, 0xf5, 0x34, 0x25,
						   0x00, 0x01, 0x00, 0x00, 0x65, 0x4e, 0x8b,
						   0x34, 0xf5, 0x00, 0x90, 0x00, 0x00 } },
	/* pext r14, rcx, gs:[128h]; mov r15, gs:[r14*8 + 2800h] */
	{ "table of pages", true, 20, { 0x65, 0xc4, 0x62, 0xf2, 0xf5, 0x34, 0x25, 0x28, 0x01, 0x00,
					0x00, 0x65, 0x4e, 0x8b, 0x3c, 0xf5, 0x00, 0x28, 0x00, 0x00 } },
	{ "table of pages with another's index", false, 20, { 0x65, 0xc4, 0x62, 0xf2, 0xf5,
							      0x34, 0x25, 0x10, 0x01, 0x00,
							      0x00, 0x65, 0x4e, 0x8b, 0x3c,
							      0xf5, 0x00, 0x28, 0x00, 0x00 } },
	{ "arithmetic", true, 3, { 0x48, 0x01, 0xd0 } },
	{ "vectors", true, 4, { 0xc5, 0xf8, 0x58, 0xc1 } },
};

/* The snippet with a jump to a stub behind it, where a ja with displacement 0 leads. */
static bool verify(const uint8_t *bytes, unsigned len, bool has_end, char why[160])
{
	uint8_t code[200];
	struct code_verify_env e = env;

	memcpy(code, bytes, len);
	e.code = code;
	for (unsigned i = 0; i + 6 <= len; i++)
		if (!memcmp(code + i, (const uint8_t[]){ 0x0f, 0x87, 0, 0, 0, 0 }, 6))
			code[i + 2] = (uint8_t)(len - i - 6);
	if (has_end) {
		uint32_t rel = 0x1000 - (len + 5);

		code[len] = 0xe9;
		memcpy(code + len + 1, &rel, 4);
		len += 5;
	}
	return code_verify(len, &e, why);
}

static void test_snippets(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(snippets); i++) {
		char why[160] = "";
		bool ok = verify(snippets[i].bytes, snippets[i].len, true, why);

		if (ok != snippets[i].is_good)
			fail_msg("%s: %s %s", snippets[i].name, ok ? "accepted" : "refused", why);
	}
}

static void test_end(void **state)
{
	static const uint8_t nop[] = { 0x90 };
	char why[160];

	assert_false(verify(nop, sizeof(nop), false, why));
	assert_true(verify(nop, sizeof(nop), true, why));
}

/* A block in two parts, the second one far away. */
static void test_parts(void **state)
{
	/* ja to the second part; jmp to a stub */
	static const uint8_t hot[] = { 0x0f, 0x87, 0xfa, 0xff, 0x1f, 0, 0xe9, 0xf5, 0x0f, 0, 0 };
	/* nop; jmp to the jump at the end of the first part */
	uint8_t cold[] = { 0x90, 0xe9, 0, 0, 0, 0 };
	struct code_verify_env e = env;
	char why[160];
	int32_t back = 6 - (0x200000 + 6);

	e.code = hot;
	e.cold_code = cold;
	e.cold_exec = env.exec + 0x200000;
	e.cold_len = sizeof(cold);
	memcpy(cold + 2, &back, 4);
	if (!code_verify(sizeof(hot), &e, why))
		fail_msg("%s", why);
	assert_false(code_verify(6, &e, why)); /* the first part ends in the ja */
	e.cold_len = 1;
	assert_false(code_verify(sizeof(hot), &e, why)); /* the second one in the nop */
	e.cold_len = sizeof(cold);
	back++; /* into the jump */
	memcpy(cold + 2, &back, 4);
	assert_false(code_verify(sizeof(hot), &e, why));
	back = -1 - (0x200000 + 6);
	memcpy(cold + 2, &back, 4);
	assert_false(code_verify(sizeof(hot), &e, why)); /* before the block */
	e.cold_exec++;
	assert_false(code_verify(sizeof(hot), &e, why)); /* the ja leads to what is before the second part */
}

static void test_near_entry(void **state)
{
	/* mov eax, imm32; mov rax, [r14]; jmp to a stub */
	static const uint8_t plain[] = { 0xb8, 0x90, 0x90, 0x90, 0x90, 0xe9, 0xf6, 0x0f, 0, 0 };
	static const uint8_t read[] = { TLB_LOADS(0x40), CHECK_8, 0x49, 0x8b, 0x06 };
	struct code_verify_env e = env;
	char why[160];

	e.code = plain;
	e.near_entry = 5;
	assert_true(code_verify(sizeof(plain), &e, why));
	e.near_entry = 2; /* inside of an instruction */
	assert_false(code_verify(sizeof(plain), &e, why));

	uint8_t code[sizeof(read) + 5];
	uint32_t rel = 0x1000 - sizeof(code);

	memcpy(code, read, sizeof(read));
	code[LEN_LOADS + 9] = 18; /* the ja: to the end */
	code[sizeof(read)] = 0xe9;
	memcpy(code + sizeof(read) + 1, &rel, 4);
	e.code = code;
	e.near_entry = 0;
	assert_true(code_verify(sizeof(code), &e, why));
	e.near_entry = LEN_LOADS + LEN_CHECK; /* behind the check */
	assert_false(code_verify(sizeof(code), &e, why));
}

/*
 * A block as the largest are: many checks, each with a miss far behind that comes back to it, and calls between them.
 * With @is_bad the last miss goes on to the access instead.
 */
#define CHECKS 300
static bool verify_large(bool is_bad, char why[160])
{
	static const uint8_t check[] = { TLB_LOADS(0x60), CHECK_8, 0x49, 0x89, 0x06 };
	/* push r14; call 0; pop r15; mov r15, gs:[130h] */
	static const uint8_t call[] = { 0x41, 0x56, 0xe8, 0, 0, 0, 0, 0x41, 0x5f, GET_BASE };
	enum { PART = sizeof(check) + sizeof(call), MISS = 5 + 5 };
	static uint8_t code[CHECKS * (PART + MISS) + 10];
	struct code_verify_env e = env;
	size_t miss = CHECKS * PART + 5;
	uint32_t rel = (uint32_t)(0x1000 - miss);

	code[miss - 5] = 0xe9; /* to a stub */
	memcpy(code + miss - 4, &rel, 4);
	for (unsigned i = 0; i < CHECKS; i++) {
		uint8_t *p = code + i * PART;

		memcpy(p, check, sizeof(check));
		rel = (uint32_t)(miss - (i * PART + LEN_LOADS + 13));
		memcpy(p + LEN_LOADS + 9, &rel, 4);
		memcpy(p + sizeof(check), call, sizeof(call));
		rel = (uint32_t)(CHECKS * (PART + MISS) + 5 - (i * PART + sizeof(check) + 7));
		memcpy(p + sizeof(check) + 3, &rel, 4);
		code[miss] = 0xe8;
		rel = (uint32_t)(0x2000 - (miss + 5));
		memcpy(code + miss + 1, &rel, 4);
		code[miss + 5] = 0xe9;
		rel = (uint32_t)(i * PART - (miss + MISS));
		if (is_bad && i == CHECKS - 1)
			rel += LEN_LOADS + LEN_CHECK;
		memcpy(code + miss + 6, &rel, 4);
		miss += MISS;
	}
	code[miss] = 0xe9; /* where the calls go */
	rel = (uint32_t)(0x1000 - (miss + 5));
	memcpy(code + miss + 1, &rel, 4);
	e.code = code;
	return code_verify(miss + 5, &e, why);
}

static void test_large(void **state)
{
	char why[160] = "";

	if (!verify_large(false, why))
		fail_msg("%s", why);
	assert_false(verify_large(true, why));
	assert_non_null(strstr(why, "not checked"));
}

/* Rule 10: the loop that translate_loop.c makes of mov [rax], rdx; add rax, 8; cmp rax, rdi; jne. */
#define LOOP_CAP    0x65, 0x48, 0xc7, 0x04, 0x25, 0x40, 0x02, 0, 0, 0, 0x04, 0, 0 /* rounds = 400h */
#define LOOP_OFFSET 0x41, 0x89, 0xcf
#define LOOP_ROOM   0xb9, 0xf8, 0x0f, 0, 0
#define LOOP_BYTES  0x44, 0x29, 0xf9
#define LOOP_SHIFT  0xc1, 0xe9, 0x03
#define LOOP_REG    0x4c, 0x8b, 0xf8
#define LOOP_LESS   0x4d, 0x29, 0xfe
#define LOOP_SLOT   0x65, 0x4c, 0x89, 0x34, 0x25, 0x00, 0x02, 0, 0
#define LOOP_CMP    0x65, 0x3b, 0x0c, 0x25, 0x40, 0x02, 0, 0
#define LOOP_CMOV   0x65, 0x0f, 0x47, 0x0c, 0x25, 0x40, 0x02, 0, 0
#define LOOP_WORD   0x65, 0x48, 0x89, 0x0c, 0x25, 0x40, 0x02, 0, 0
#define LOOP_LOAD   0x65, 0x4c, 0x8b, 0x34, 0x25, 0x00, 0x02, 0, 0
#define LOOP_STORE  0x49, 0x89, 0x14, 0x06
#define LOOP_ADD    0x48, 0x83, 0xc0, 0x08
#define LOOP_IF	    0x48, 0x39, 0xf8
#define LOOP_OUT    0xe3, 0x06
#define LOOP_COUNT  0x48, 0x8d, 0x49, 0xff
#define LOOP_BACK   0x75, 0xe4

static const uint8_t good_loop[] = { LOOP_CAP,	      0x48,	  0x8d,	       0x08,
				     TLB_LOADS(0x60), CHECK_8,	  LOOP_OFFSET, LOOP_ROOM,
				     LOOP_BYTES,      LOOP_SHIFT, LOOP_REG,    LOOP_LESS,
				     LOOP_SLOT,	      LOOP_CMP,	  LOOP_CMOV,   LOOP_WORD,
				     LOOP_LOAD,	      LOOP_STORE, LOOP_ADD,    LOOP_IF,
				     LOOP_OUT,	      LOOP_COUNT, LOOP_BACK };

static const struct {
	const char *name;
	bool is_good;
	unsigned len;
	uint8_t from[13], to[13];
} loop_changes[] = {
	{ "as it is", true, 3, { LOOP_IF }, { LOOP_IF } },
	{ "fewer rounds", true, 3, { LOOP_SHIFT }, { 0xc1, 0xe9, 0x04 } },
	{ "a step of half", true, 4, { LOOP_ADD }, { 0x48, 0x83, 0xc0, 0x04 } },
	{ "a step of two", false, 4, { LOOP_ADD }, { 0x48, 0x83, 0xc0, 0x10 } },
	{ "a step back", false, 4, { LOOP_ADD }, { 0x48, 0x83, 0xe8, 0x08 } },
	{ "a step of 32 bits", false, 4, { LOOP_ADD }, { 0x90, 0x83, 0xc0, 0x08 } },
	{ "a step that is no constant", false, 4, { LOOP_ADD }, { 0x48, 0x01, 0xd0, 0x90 } },
	{ "a second step", false, 3, { LOOP_IF }, { 0x48, 0xff, 0xc0 } },
	{ "another address", false, 3, { LOOP_IF }, { 0x48, 0x89, 0xf8 } },
	{ "the address exchanged", false, 3, { LOOP_IF }, { 0x48, 0x87, 0xf8 } },
	{ "too many rounds", false, 3, { LOOP_SHIFT }, { 0xc1, 0xe9, 0x02 } },
	{ "rounds of a byte", false, 3, { LOOP_SHIFT }, { 0x90, 0x90, 0x90 } },
	{ "more room than was checked", false, 5, { LOOP_ROOM }, { 0xb9, 0xfc, 0x0f, 0, 0 } },
	{ "room from the page's start", false, 3, { LOOP_BYTES }, { 0x90, 0x90, 0x90 } },
	{ "room from a register that is no offset", false, 3, { LOOP_OFFSET }, { 0x41, 0x89, 0xd7 } },
	{ "room from another register", false, 3, { LOOP_BYTES }, { 0x90, 0x29, 0xf9 } },
	{ "downwards", false, 5, { LOOP_ROOM }, { 0x44, 0x89, 0xf9, 0x90, 0x90 } },
	{ "another register", false, 3, { LOOP_REG }, { 0x4c, 0x8b, 0xff } },
	{ "no register", false, 3, { LOOP_LESS }, { 0x90, 0x90, 0x90 } },
	{ "another slot", false, 9, { LOOP_SLOT }, { 0x65, 0x4c, 0x89, 0x34, 0x25, 0x08, 0x02, 0, 0 } },
	{ "rounds from elsewhere", false, 9, { LOOP_CMOV }, { 0x65, 0x8b, 0x0c, 0x25, 0x40, 0x02, 0, 0, 0x90 } },
	{ "access by another register", false, 4, { LOOP_STORE }, { 0x49, 0x89, 0x14, 0x3e } },
	{ "access by twice the register", false, 4, { LOOP_STORE }, { 0x49, 0x89, 0x14, 0x46 } },
	{ "access by no register", false, 4, { LOOP_STORE }, { 0x49, 0x89, 0x16, 0x90 } },
	{ "rounds not asked for", false, 2, { LOOP_OUT }, { 0x90, 0x90 } },
	{ "rounds not counted", false, 4, { LOOP_COUNT }, { 0x48, 0x8d, 0x49, 0x00 } },
	{ "rounds counted by two less than none", false, 4, { LOOP_COUNT }, { 0x48, 0x8d, 0x49, 0xfe } },
	{ "rounds of more", false, 4, { LOOP_COUNT }, { 0x48, 0x8d, 0x49, 0x01 } },
};

static void test_loops(void **state)
{
	char why[160] = "";

	for (unsigned i = 0; i < ARRAY_SIZE(loop_changes); i++) {
		uint8_t code[sizeof(good_loop)];
		unsigned n = loop_changes[i].len, at = 0;

		memcpy(code, good_loop, sizeof(code));
		while (memcmp(code + at, loop_changes[i].from, n) != 0) {
			at++;
			assert_true(at + n <= sizeof(code));
		}
		memcpy(code + at, loop_changes[i].to, n);
		bool ok = verify(code, sizeof(code), true, why);

		if (ok != loop_changes[i].is_good)
			fail_msg("%s: %s %s", loop_changes[i].name, ok ? "accepted" : "refused", why);
	}
	/* A read check is none for a write. */
	uint8_t code[sizeof(good_loop)];

	memcpy(code, good_loop, sizeof(code));
	assert_int_equal(code[33], 0x60);
	code[33] = 0x40;
	assert_false(verify(code, sizeof(code), true, why));
	/* Others may not come in past the gate. */
	struct code_verify_env e = env;
	uint8_t all[sizeof(good_loop) + 5];
	uint32_t rel = 0x1000 - sizeof(all);

	memcpy(all, good_loop, sizeof(good_loop));
	all[45] = sizeof(good_loop) - 49;
	all[sizeof(good_loop)] = 0xe9;
	memcpy(all + sizeof(good_loop) + 1, &rel, 4);
	e.code = all;
	if (!code_verify(sizeof(all), &e, why))
		fail_msg("%s", why);
	e.near_entry = sizeof(good_loop) - 28;
	assert_false(code_verify(sizeof(all), &e, why));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_end),	   cmocka_unit_test(test_snippets),
		cmocka_unit_test(test_near_entry), cmocka_unit_test(test_parts),
		cmocka_unit_test(test_large),	   cmocka_unit_test(test_loops)
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
