/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest for tests of snapshots (multiboot, 32-bit): SNAPSHOT_GUEST_ROUNDS times it computes a while, in integer,
 * x87 and vector registers, and waits in HLT for a tick of the PIT.  Then it prints the eight hexadecimal digits of
 * snapshot_guest_result() and a newline on COM1 and writes 0 to the debug exit port.
 */
#ifndef VIV_VM_SNAPSHOT_GUEST_H
#define VIV_VM_SNAPSHOT_GUEST_H

#include "base/util.h"

#define SNAPSHOT_GUEST_ROUNDS 90
#define SNAPSHOT_GUEST_STEPS  500
#define SNAPSHOT_GUEST_ROUND  0x200000 /* gpa of the number of rounds done, u32 */

extern const uint8_t snapshot_guest_start[], snapshot_guest_end[];
static inline size_t snapshot_guest_len(void)
{
	return (size_t)(snapshot_guest_end - snapshot_guest_start);
}

static inline uint32_t snapshot_guest_result(void)
{
	uint32_t x = 1;

	for (uint32_t i = 0; i < SNAPSHOT_GUEST_ROUNDS * SNAPSHOT_GUEST_STEPS; i++)
		x = x * 1664525 + 1013904223;
	/* the x87 counted the rounds, the vector register twice that */
	return x + SNAPSHOT_GUEST_ROUNDS + 2 * SNAPSHOT_GUEST_ROUNDS;
}

/* clang-format off */
#define SNAPSHOT_TEXT_(x) #x
#define SNAPSHOT_TEXT(x)  SNAPSHOT_TEXT_(x)
__asm__(
"	.pushsection .rodata\n"
"	.globl snapshot_guest_start, snapshot_guest_end\n"
"	.balign 16\n"
"	.set base, 0x100000\n"
"	.set rounds, " SNAPSHOT_TEXT(SNAPSHOT_GUEST_ROUND) "\n"
"	.code32\n"
"snapshot_guest_start:\n"
	/* multiboot: addresses are given (bit 16) */
"	.long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)\n"
"	.long base, base, base + (snapshot_guest_end - snapshot_guest_start), 0, base + (1f - snapshot_guest_start)\n"
"1:	cli\n"
"	cld\n"
"	mov $0x180000, %esp\n"
	/* a GDT of our own: code 8, data 16 */
"	lgdt base + (gdtr - snapshot_guest_start)\n"
"	ljmp $8, $base + (2f - snapshot_guest_start)\n"
"2:	mov $16, %eax\n"
"	mov %eax, %ds\n"
"	mov %eax, %es\n"
"	mov %eax, %ss\n"
	/* vector 20H */
"	mov $base + (tick - snapshot_guest_start), %eax\n"
"	mov $0x210000 + 0x20 * 8, %edi\n"
"	mov %ax, (%edi)\n"
"	movw $8, 2(%edi)\n"
"	movw $0x8e00, 4(%edi)\n"
"	shr $16, %eax\n"
"	mov %ax, 6(%edi)\n"
"	lidt base + (idtr - snapshot_guest_start)\n"
	/* PIC at 20H, only the timer; PIT at 1 kHz */
"	mov $0x11, %al\n	out %al, $0x20\n"
"	mov $0x20, %al\n	out %al, $0x21\n"
"	mov $0x04, %al\n	out %al, $0x21\n"
"	mov $0x01, %al\n	out %al, $0x21\n"
"	mov $0xfe, %al\n	out %al, $0x21\n"
"	mov $0x34, %al\n	out %al, $0x43\n"
"	mov $0xa9, %al\n	out %al, $0x40\n"
"	mov $0x04, %al\n	out %al, $0x40\n"
	/* SSE and x87 */
"	mov %cr0, %eax\n"
"	and $~4, %eax\n"
"	or $2, %eax\n"
"	mov %eax, %cr0\n"
"	mov %cr4, %eax\n"
"	or $0x600, %eax\n"
"	mov %eax, %cr4\n"
"	fninit\n"
"	fldz\n"
"	pxor %xmm5, %xmm5\n"
"	mov $2, %eax\n"
"	movd %eax, %xmm6\n"
"	mov $1, %ebx\n"
"	movl $0, rounds\n"
"3:	mov $" SNAPSHOT_TEXT(SNAPSHOT_GUEST_STEPS) ", %ecx\n"
"4:	imul $1664525, %ebx, %ebx\n"
"	add $1013904223, %ebx\n"
"	dec %ecx\n"
"	jnz 4b\n"
"	fld1\n"
"	faddp\n"
"	paddd %xmm6, %xmm5\n"
"	sti\n"
"	hlt\n"
"	cli\n"
"	lock incl rounds\n"
"	cmpl $" SNAPSHOT_TEXT(SNAPSHOT_GUEST_ROUNDS) ", rounds\n"
"	jb 3b\n"
"	fistpl rounds + 4\n"
"	add rounds + 4, %ebx\n"
"	movd %xmm5, %eax\n"
"	add %eax, %ebx\n"
	/* eight digits and a newline */
"	mov $8, %ecx\n"
"	mov $0x3f8, %edx\n"
"5:	rol $4, %ebx\n"
"	mov %ebx, %eax\n"
"	and $15, %eax\n"
"	cmp $10, %eax\n"
"	jb 6f\n"
"	add $39, %eax\n"
"6:	add $48, %eax\n"
"	out %al, %dx\n"
"	dec %ecx\n"
"	jnz 5b\n"
"	mov $10, %al\n"
"	out %al, %dx\n"
"	xor %eax, %eax\n"
"	out %eax, $0xf4\n"
"7:	hlt\n"
"	jmp 7b\n"
"tick:	push %eax\n"
"	mov $0x20, %al\n"
"	out %al, $0x20\n"
"	pop %eax\n"
"	iret\n"
"	.balign 8\n"
"gdt:	.quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
"gdtr:	.word 23\n"
"	.long base + (gdt - snapshot_guest_start)\n"
"idtr:	.word 0x21 * 8 - 1\n"
"	.long 0x210000\n"
"snapshot_guest_end:\n"
"	.code64\n"
"	.popsection\n");
/* clang-format on */

#endif
