/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From protected mode into real mode and back, for the 32-bit guests that test it: run() puts a piece of 16-bit code at
 * 0000:9000 and calls it there; it leaves its results in a block at 0000:8000.
 */
#ifndef TESTS_GUEST_REAL_H
#define TESTS_GUEST_REAL_H

#include "guest.h"

#define CODE16 0x48 /* descriptors for the way */
#define DATA16 0x50

struct results {
	uint32_t w[16];
};
static volatile struct results *const res = (void *)0x8000;

/* Protected mode -> real mode -> code -> protected mode. */
__asm__(".text\n"
	"real_call:\n\t" /* copied to 7000H; called with EAX = 16-bit entry */
	"pusha\n\tmov %esp, 0x7f00\n\t"
	"mov %eax, 0x7f04\n\t"
	"sidt 0x7f08\n\tlidt 0x7f18\n\t"
	"ljmp $0x48, $(1f - real_call + 0x7000)\n"
	".code16\n"
	"1:\tmov $0x50, %ax\n\tmov %ax, %ds\n\tmov %ax, %es\n\tmov %ax, %ss\n\tmov %ax, %fs\n\tmov "
	"%ax, %gs\n\t"
	"mov %cr0, %eax\n\tand $0x7ffffffe, %eax\n\tmov %eax, %cr0\n\t"
	"ljmp $0, $(2f - real_call + 0x7000)\n"
	"2:\txor %ax, %ax\n\tmov %ax, %ds\n\tmov %ax, %es\n\tmov %ax, %ss\n\tmov %ax, %fs\n\tmov "
	"%ax, %gs\n\t"
	"mov $0x6ff0, %sp\n\t"
	"call *0x7f04\n\t"
	"cli\n\tcld\n\txor %ax, %ax\n\tmov %ax, %ds\n\t"
	"lgdtl 0x7f20\n\t"
	"mov %cr0, %eax\n\tor $1, %al\n\tmov %eax, %cr0\n\t"
	"ljmpl $0x8, $(3f - real_call + 0x7000)\n"
	".code32\n"
	"3:\tmov $0x10, %eax\n\tmov %eax, %ds\n\tmov %eax, %es\n\tmov %eax, %ss\n\tmov %eax, "
	"%fs\n\tmov %eax, %gs\n\t"
	"mov 0x7f00, %esp\n\tlidt 0x7f08\n\tpopa\n\tret\n"
	"real_call_end:\n");
extern uint8_t real_call[], real_call_end[];

struct pointer {
	uint16_t limit;
	uint32_t base;
} __attribute__((packed));

static void run(const uint8_t *code, const uint8_t *end)
{
	set_descriptor(CODE16, 0, 0xffff, 0x009b);
	set_descriptor(DATA16, 0, 0xffff, 0x0093);
	memcpy((void *)0x7000, real_call, (size_t)(real_call_end - real_call));
	*(struct pointer *)0x7f18 = (struct pointer){ 0x3ff, 0 };
	*(struct pointer *)0x7f20 = (struct pointer){ 0x1ff, (uintptr_t)gdt };
	memcpy((void *)0x9000, code, (size_t)(end - code));
	memset((void *)res, 0xee, sizeof(*res));
	__asm__ volatile("call *%1" : : "a"(0x9000), "r"(0x7000) : "memory", "cc");
}

#endif
