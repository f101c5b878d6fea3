/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real mode and the ways between the modes.  Each case is a piece of 16-bit code that runs at
 * 0000:9000 and leaves its results in a block at 0000:8000; the switch there and back is the guest's.
 */
#include "real.h"

#define REAL(name, body)                                                                           \
	extern uint8_t r_##name[], r_##name##_end[];                                               \
	__asm__(".pushsection .rodata\nr_" #name ":\n.code16\n" body "\n\tret\nr_" #name           \
		"_end:\n.code32\n.popsection")
#define RUN(name) run(r_##name, r_##name##_end)

static void set_vector(unsigned n, uint32_t seg_off)
{
	((volatile uint32_t *)0)[n] = seg_off;
}

REAL(plain,
     "mov $0x1234, %ax; mov %ax, 0x8000; mov %cs, 0x8004; mov %ss, 0x8008; mov %sp, 0x800c\n\t"
     "smsw %ax; mov %ax, 0x8010; pushfl; popl 0x8014");
REAL(segments,
     "mov $0x1234, %ax; mov %ax, %ds; movw $0xabcd, (0x10); xor %ax, %ax; mov %ax, %ds\n\t"
     "mov 0x12350, %ax" /* 16-bit offset 2350H: segment 0 */
     "; mov $0xffff, %ax; mov %ax, %fs; mov %fs:0x10, %eax; mov %eax, 0x8004");
REAL(ints, "mov $0x5678, %bx; int $0x60; mov %bx, 0x8000; pushf; pop %ax; mov %ax, 0x8004; int3; "
	   "mov %bx, 0x8008");
REAL(divide,
     "xor %dx, %dx; mov $7, %ax; xor %cx, %cx\n9:\tdiv %cx; mov %ax, 0x8000; mov %bp, 0x8004");
REAL(bound_limit, "mov $0xffff, %si; movw (%si), %ax; mov %bp, 0x8000");
REAL(loops,
     "mov $5, %cx; xor %ax, %ax\n1:\tinc %ax; loop 1b; mov %ax, 0x8000\n\t"
     "mov $0x10003, %ecx; xor %ax, %ax\n2:\tinc %ax; loop 2b; mov %ax, 0x8004; mov %ecx, 0x8008\n\t"
     "mov $3, %ecx; xor %ax, %ax\n3:\tinc %ax; addr32 loop 3b; mov %ax, 0x800c\n\t"
     "xor %cx, %cx; mov $1, %ax; jcxz 4f; mov $2, %ax\n4:\tmov %ax, 0x8010");
REAL(strings,
     "mov $0x8100, %si; mov $0x8200, %di; mov $8, %cx; cld; rep movsw\n\t"
     "mov %si, 0x8000; mov %di, 0x8004; mov %cx, 0x8008\n\t"
     "mov $0x8300, %di; mov $0xfffe, %si; xor %ax, %ax; lodsw; mov %si, 0x800c\n\t"
     "std; mov $0x8303, %di; mov $4, %cx; mov $0x5a, %al; rep stosb; cld; mov %di, 0x8010");
REAL(wide, "mov $0x12345678, %eax; mov $0x9abc, %bx; movzwl %bx, %ecx; add %ecx, %eax; mov %eax, "
	   "0x8000\n\t"
	   "mov $0x8100, %esi; movl (%esi), %eax; mov %eax, 0x8004; mov $2, %ebx; movw "
	   "-2(%esi,%ebx,1), %ax; mov %ax, 0x8008\n\t"
	   "pushl $0x11112222; pop %cx; pop %dx; mov %cx, 0x800c; mov %dx, 0x800e; imul $3, %eax, "
	   "%edx; mov %dx, 0x8010");
REAL(far, "lcall $0x900, $(7f - r_far); mov %ax, 0x8000; mov %sp, 0x8004; jmp 8f\n"
	  "7:\tmov $0x4242, %ax; lret\n8:\tpushf; push %cs; call 6f; mov %ax, 0x8008; mov %sp, "
	  "0x800c; jmp 5f\n"
	  "6:\tmov $0x4343, %ax; iret\n5:");
REAL(unreal, "cli; lgdtl 0x7f20; mov %cr0, %eax; or $1, %al; mov %eax, %cr0; mov $0x10, %bx; mov "
	     "%bx, %es\n\t"
	     "and $0xfe, %al; mov %eax, %cr0; xor %bx, %bx; mov $0x00200000, %esi\n\t"
	     "movl $0xcafebabe, %es:(%esi); movl %es:(%esi), %ecx; mov %ecx, 0x8000");
REAL(flags, "xor %ax, %ax; push %ax; popf; pushf; pop %ax; mov %ax, 0x8000; mov $0xf8ff, %ax; push "
	    "%ax; popf; pushf; pop %ax; "
	    "push $2; popf; mov %ax, 0x8004");
REAL(enter, "mov $0x6f00, %bp; enter $16, $0; mov %bp, 0x8000; mov %sp, 0x8004; leave; mov %bp, "
	    "0x8008; mov %sp, 0x800c\n\t"
	    "pusha; popa; mov %sp, 0x8010");
REAL(bcd, "mov $0x19, %al; add $0x28, %al; daa; mov %ax, 0x8000; mov $0x4b, %al; aam; mov %ax, "
	  "0x8004; stc; .byte 0xd6; mov %al, 0x8008");

/* IVT handlers at 0:A000: mark BP, skip the instruction for #DE and limits. */
extern uint8_t r_h60[], r_hde[], r_hgp[], r_h_end[];
__asm__(".pushsection .rodata\n.code16\n"
	"r_h60:\tinc %bx\n\tiret\n"
	"r_hde:\tmov $0xde, %bp\n\tpush %bp\n\tmov %sp, %bp\n\taddw $2, 2(%bp)\n\tpop %bp\n\tiret\n"
	"r_hgp:\tmov $0xbad, %bp\n\tpush %bp\n\tmov %sp, %bp\n\taddw $2, 2(%bp)\n\tpop "
	"%bp\n\tiret\n"
	"r_h_end:\n.code32\n.popsection");

static void set_handlers(void)
{
	memcpy((void *)0xa000, r_h60, (size_t)(r_h_end - r_h60));
	set_vector(0x60, 0xa000);
	set_vector(3, 0xa000);
	set_vector(0, 0xa000 + (uint32_t)(r_hde - r_h60));
	set_vector(13, 0xa000 + (uint32_t)(r_hgp - r_h60));
}

void guest_main(void)
{
	uint16_t *words = (void *)0x8100;

	set_handlers();
	RUN(plain);
	check_eq(res->w[0] & 0xffff, 0x1234, "real mode and back");
	check((res->w[1] & 0xffff) == 0 && (res->w[2] & 0xffff) == 0, "CS and SS are 0");
	check(!(res->w[4] & 1), "SMSW shows no PE");
	check_eq(res->w[5] & 0x20202, 2, "EFLAGS");
	RUN(segments);
	check_eq(*(volatile uint16_t *)0x12350, 0xabcd, "base is selector times 16");
	check_eq(res->w[1], *(volatile uint32_t *)0x100000, "FFFF:0010 is at 1 MiB");
	RUN(ints);
	check_eq(res->w[0] & 0xffff, 0x5679, "INT n through the IVT");
	check_eq(res->w[2] & 0xffff, 0x567a, "INT3 through the IVT");
	RUN(divide);
	check(res->w[0] == 0xeeee0007 && (res->w[1] & 0xffff) == 0xde, "#DE points at the DIV");
	RUN(bound_limit);
	check_eq(res->w[0] & 0xffff, 0xbad, "a word at offset FFFFH is beyond the limit");
	RUN(loops);
	check_eq(res->w[0] & 0xffff, 5, "LOOP");
	check((res->w[1] & 0xffff) == 3 && res->w[2] == 0x10000, "LOOP counts CX only");
	check_eq(res->w[3] & 0xffff, 3, "LOOP with ECX");
	check_eq(res->w[4] & 0xffff, 1, "JCXZ");
	for (unsigned i = 0; i < 16; i++)
		words[i] = (uint16_t)(0x1111 * i);
	RUN(strings);
	check(!memcmp((void *)0x8200, (void *)0x8100, 16), "REP MOVSW");
	check((res->w[0] & 0xffff) == 0x8110 && (res->w[1] & 0xffff) == 0x8210 &&
		      (res->w[2] & 0xffff) == 0,
	      "its registers");
	check_eq(res->w[3] & 0xffff, 0, "SI wraps at 64 KiB");
	check(*(volatile uint32_t *)0x8300 == 0x5a5a5a5a && (res->w[4] & 0xffff) == 0x82ff,
	      "REP STOSB downwards");
	RUN(wide);
	check_eq(res->w[0], 0x12345678 + 0x9abc, "66h: 32-bit operands");
	check_eq(res->w[1], 0x11110000, "67h: 32-bit addresses");
	check_eq(res->w[3], 0x11112222, "PUSH of 32 bits, POP of 16");
	RUN(far);
	check_eq(res->w[0] & 0xffff, 0x4242, "far CALL and RETF");
	check((res->w[2] & 0xffff) == 0x4343 && (res->w[1] & 0xffff) == (res->w[3] & 0xffff),
	      "IRET");
	RUN(unreal);
	check_eq(res->w[0], 0xcafebabe, "a 4 GiB limit survives in real mode");
	RUN(flags);
	check((res->w[0] & 0xffff) == 2 && (res->w[1] & 0x7000) == 0x7000,
	      "POPF: NT and IOPL can be set in real mode");
	RUN(enter);
	check((res->w[1] & 0xffff) == (res->w[0] & 0xffff) - 16 && (res->w[2] & 0xffff) == 0x6f00,
	      "ENTER, LEAVE");
	check_eq(res->w[3] & 0xffff, res->w[4] & 0xffff, "PUSHA, POPA");
	RUN(bcd);
	check((res->w[0] & 0xff) == 0x47 && (res->w[1] & 0xffff) == 0x0705 && (res->w[2] & 0xff) == 0xff,
	      "DAA, AAM, SALC");
	for (unsigned i = 0; i < 50; i++)
		RUN(plain);
	check_eq(res->w[0] & 0xffff, 0x1234, "fifty times to and fro");
}
