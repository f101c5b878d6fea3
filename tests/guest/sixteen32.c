/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 16-bit code for long: loops, calls and accesses where addresses, stack pointer and IP wrap, segments with bases and
 * limits.  In real mode as in realmode32.c (code at 0000:9000, results at 0000:8000), then in 16-bit segments of protected mode.
 */
#include "real.h"

#define PCODE 0x58 /* 16-bit code under test */
#define PDATA 0x60

/* Code that other sections than the tests run in, with its length. */
#define CODE16_OF(name, body)                                                                      \
	extern uint8_t r_##name[], r_##name##_end[];                                               \
	__asm__(".pushsection .rodata\nr_" #name ":\n.code16\n" body "\nr_" #name                  \
		"_end:\n.code32\n.popsection")
#define REAL(name, body) CODE16_OF(name, body "\n\tret")
#define RUN(name)	 run(r_##name, r_##name##_end)
#define COPY(to, name)	 memcpy((void *)(to), r_##name, (size_t)(r_##name##_end - r_##name))

/* Sums 3000 times over calls, a table and the stack. */
REAL(long_loop, "mov $3000, %cx; xor %eax, %eax; mov $0x8100, %si\n"
		"1:\tpush %cx; push $3; push %ax; call 2f; add $4, %sp; pop %cx; loop 1b\n\t"
		"mov %eax, 0x8000; mov %sp, 0x8004; jmp 3f\n"
		"2:\tpush %bp; mov %sp, %bp; mov 6(%bp), %dx; add (%si), %dx; movzwl %dx, %edx\n\t"
		"add %edx, %eax; addw $1, 2(%si); leave; ret\n3:");
/* The same as compilers write it: operands and return addresses of 32 bits. */
REAL(long_loop32,
     "movl $3000, %ecx; xorl %eax, %eax\n"
     "1:\tpushl %ecx; pushl $5; calll 2f; addl $4, %esp; popl %ecx; decl %ecx; jnz 1b\n\t"
     "movl %eax, 0x8000; movl %esp, 0x8004; jmp 3f\n"
     "2:\tpushl %ebp; movl %esp, %ebp; addl 8(%bp), %eax; leavel; retl\n3:");
/* A segment that begins 10H bytes into the page: jumps and calls to before the block, and over the start of the segment. */
REAL(edge, "lcall $0x901, $(1f - r_edge - 0x10); mov %ax, 0x8000; mov %cx, 0x8004; mov %bx, "
	   "0x8008; jmp 9f\n"
	   "3:\tinc %ax; ret\n"
	   "2:\tcall 3b; loop 2b; jmp 4f\n"
	   "1:\tmov $500, %cx; xor %ax, %ax; jmp 2b\n"
	   "4:\t.byte 0xe9; .word 0xfff0 - (. + 2 - r_edge - 0x10)\n" /* jmp fff0, which is 19000 */
	   "9:");
/* Offsets wrap, byte by byte only between accesses. */
REAL(wraps,
     "mov $0xfff0, %bx; mov $0x28, %si; mov (%bx,%si), %eax; mov %eax, 0x8000\n\t"
     "mov $0xfffc, %bx; mov (%bx), %cx; mov 2(%bx), %dx; mov 4(%bx), %di; mov 6(%bx), %si\n\t"
     "mov %cx, 0x8004; mov %dx, 0x8006; mov %di, 0x8008; mov %si, 0x800a\n\t"
     "mov $0xfffe, %bp; mov %ss:0x22(%bp), %ax; mov %ax, 0x800c");
REAL(stack_wrap,
     "mov %sp, %bx; mov $2, %sp; push $0x1234; push $0x5678; mov %sp, 0x8000; pop %ax; pop %cx\n\t"
     "mov %sp, 0x8004; mov $8, %sp; mov $0x77, %di; pusha; mov %sp, 0x8008; popa; mov %sp, "
     "0x800c\n\t"
     "mov $0xffff1234, %esp; mov $0x10, %sp; pushl $0x99aabbcc; popl %edx; mov %esp, 0x8010; mov "
     "%bx, %sp\n\t"
     "mov %edx, 0x8014; mov %ax, 0x8018; mov %cx, 0x801c; movzwl %bx, %esp");
/* Beyond the limit: #GP and #SS at the instruction, with nothing changed.  The handler skips its two bytes. */
REAL(limits,
     "mov $0xffff, %si; xor %bp, %bp; mov $100, %cx; xor %dx, %dx; mov $0x4321, %ax\n"
     "1:\tmov (%si), %ax; inc %dx; loop 1b; mov %bp, 0x8000; mov %ax, 0x8002; mov %dx, 0x8004\n\t"
     "mov $0xffff, %di; xor %bp, %bp; mov (%bp,%di), %ax; mov %bp, 0x8006\n\t"
     "xor %bp, %bp; pushl $0x10000; mov %sp, %bx; retl; cmp %sp, %bx; sete %al; add $4, %sp\n\t"
     "mov %bp, 0x8008; mov %al, 0x800a");
REAL(selectors,
     "mov $0x810, %ax; mov %ax, %es; mov $0x820, %ax; mov %ax, %fs; push $0x830; pop %gs\n\t"
     "mov %es:0, %cx; mov %fs:0, %dx; mov %gs:0, %si; mov %cx, 0x8000; mov %dx, 0x8002; mov %si, "
     "0x8004\n\t"
     "lds 0x8140, %di; mov (%di), %ax; les (%di), %bx; push %ds; push %es; xor %cx, %cx; mov %cx, "
     "%ds\n\t"
     "mov %ax, 0x8008; mov %di, 0x800a; mov %bx, 0x800c; pop %ax; mov %ax, 0x800e; pop %ax; mov "
     "%ax, 0x8010\n\t"
     "lgsl 0x8150, %edx; mov %edx, 0x8014; mov %gs, 0x8018; push %fs; pop %ax; mov %ax, 0x801c\n\t"
     "mov $200, %cx\n1:\tmov %cx, %ax; and $1, %ax; add $0x840, %ax; mov %ax, %es; incw %es:0; "
     "loop 1b");
/* Bytes of its own code: the loop counts by what it writes into itself. */
REAL(changes, "mov $300, %cx; xor %ax, %ax\n"
	      "1:\tadd $1, %ax; mov %cl, (0x9000 + 1b - r_changes + 2); loop 1b; mov %ax, 0x8000");
REAL(elements, "cld; mov $0x8100, %si; mov $0x8200, %di; mov $16, %cx\n"
	       "1:\tlodsb; xor $0x5a, %al; stosb; loop 1b\n\t"
	       "mov $0x8200, %si; mov $0x8300, %di; mov $8, %cx\n2:\tmovsw; loop 2b\n\t"
	       "mov $0x8200, %si; mov $0x8300, %di; mov $5, %cx\n3:\tcmpsw; loope 3b; mov %cx, "
	       "0x8000; mov %si, 0x8002\n\t"
	       "std; mov $0x830e, %di; mov $8, %cx; mov $0x2222, %ax\n4:\tscasw; loopne 4b; cld; "
	       "mov %cx, 0x8004; mov %di, 0x8006\n\t"
	       "mov $0xfffe, %si; lodsw; lodsw; mov %si, 0x8008; mov %ax, 0x800a; mov $0xffff, "
	       "%di; stosb; mov %di, 0x800c");
/* "Unreal" mode: an operand may run over 64 KiB, the next one begins at 0. */
REAL(unreal,
     "cli; lgdtl 0x7f20; mov %cr0, %eax; or $1, %al; mov %eax, %cr0; mov $0x10, %bx; mov %bx, "
     "%es\n\t"
     "and $0xfe, %al; mov %eax, %cr0; xor %bx, %bx; mov %bx, %es\n\t"
     "mov $0xfffe, %bx; mov %es:(%bx), %eax; mov %es:2(%bx), %cx; mov %es:4(%bx), %dx\n\t"
     "mov %eax, 0x8000; mov %cx, 0x8004; mov %dx, 0x8006\n\t"
     "mov $0x00200000, %esi; mov $50, %cx\n1:\tincl %es:(%esi); incl %es:4(%esi); loop 1b\n\t"
     "mov %es:(%esi), %eax; mov %eax, 0x8008");

/* IVT handlers at 0:A000: mark BP, skip two bytes. */
CODE16_OF(skip, "mov $0xbad, %bp; push %bp; mov %sp, %bp; addw $2, 2(%bp); pop %bp; iret");
CODE16_OF(at_fff0, "mov $0x4711, %bx; call 1f; lret\n1:\tinc %bx; ret");

static uint16_t word_at(unsigned va)
{
	return *(volatile uint16_t *)(uintptr_t)va;
}

static void test_loops(void)
{
	volatile uint16_t *words = (void *)0x8100;

	words[0] = 7;
	words[1] = 0;
	RUN(long_loop);
	check_eq(res->w[0], 3000 * 10, "a long loop of calls");
	check_eq(res->w[1] & 0xffff, 0x6fee, "its stack pointer");
	check_eq(words[1], 3000, "its rounds");
	RUN(long_loop32);
	check_eq(res->w[0], 3000 * 5, "a long loop of 32-bit calls");
	check_eq(res->w[1] & 0xffff, 0x6fee, "its stack pointer, again");
	COPY(0x19000, at_fff0);
	RUN(edge);
	check((res->w[0] & 0xffff) == 500 && (res->w[1] & 0xffff) == 0,
	      "calls below the block, in the segment's first page");
	check_eq(res->w[2] & 0xffff, 0x4712, "a jump to before the segment's start");
	for (unsigned i = 0; i < 3; i++) {
		RUN(changes);
		check_eq(res->w[0] & 0xffff, 862, "a loop that changes itself");
	}
}

static void test_addresses(void)
{
	*(volatile uint32_t *)0x18 = 0x13572468;
	*(volatile uint32_t *)0xfffc = 0x22221111;
	*(volatile uint32_t *)0x10000 = 0x66665555;
	*(volatile uint32_t *)0 = 0x44443333;
	RUN(wraps);
	check_eq(res->w[0], 0x13572468, "base and index wrap");
	check(res->w[1] == 0x22221111 && res->w[2] == 0x44443333,
	      "a row of operands wraps at 64 KiB");
	check_eq(res->w[3] & 0xffff, word_at(0x20), "BP wraps");
	*(volatile uint32_t *)0x10000 = 0;
	RUN(stack_wrap);
	check((res->w[0] & 0xffff) == 0xfffe && (res->w[1] & 0xffff) == 2, "SP wraps");
	check((res->w[6] & 0xffff) == 0x5678 && (res->w[7] & 0xffff) == 0x1234,
	      "what was pushed around it");
	check((res->w[2] & 0xffff) == 0xfff8 && (res->w[3] & 0xffff) == 8,
	      "PUSHA and POPA wrap word by word");
	check(res->w[4] == 0xffff0010 && res->w[5] == 0x99aabbcc, "the upper half of ESP stays");
	COPY(0xa000, skip);
	for (unsigned v = 12; v < 14; v++)
		((volatile uint32_t *)0)[v] = 0xa000;
	RUN(limits);
	check(res->w[0] == 0x43210bad && (res->w[1] & 0xffff) == 100, "#GP, a hundred times");
	check_eq(res->w[1] >> 16, 0xbad, "#SS");
	check((res->w[2] & 0xffff) == 0xbad && (res->w[2] >> 16 & 0xff) == 1,
	      "RET beyond the limit: #GP at the RET");
	*(volatile uint32_t *)0 = 0x44443333;
	*(volatile uint32_t *)0x10000 = 0x66665555;
	*(volatile uint32_t *)0xfffc = 0x22221111;
	RUN(unreal);
	check_eq(res->w[0], 0x55552222, "unreal: an operand over 64 KiB");
	check(res->w[1] == 0x44443333, "unreal: the next ones at 0");
	check_eq(res->w[2], 50, "unreal: a loop in the third megabyte");
}

static void test_selectors(void)
{
	static const uint16_t words[] = { 0x1111, 0x2222, 0x3333 };

	for (unsigned i = 0; i < 3; i++)
		*(volatile uint16_t *)(0x8100 + 0x100 * (uintptr_t)i) = words[i];
	*(volatile uint32_t *)0x8140 = 0x08200004; /* DS:DI = 0820:0004 */
	*(volatile uint32_t *)0x8204 = 0x08300008; /* ES:BX = 0830:0008 */
	*(volatile uint32_t *)0x8150 = 0xabcd1234;
	*(volatile uint16_t *)0x8154 = 0x0844;
	*(volatile uint32_t *)0x8400 = 0;
	*(volatile uint32_t *)0x8410 = 0;
	RUN(selectors);
	check(res->w[0] == 0x22221111 && (res->w[1] & 0xffff) == 0x3333, "ES, FS, GS");
	check(res->w[2] == 0x00040008 && (res->w[3] & 0xffff) == 8, "LDS and LES: offsets");
	check(res->w[3] >> 16 == 0x830 && (res->w[4] & 0xffff) == 0x820, "LDS and LES: selectors");
	check(res->w[5] == 0xabcd1234 && (res->w[6] & 0xffff) == 0x844, "LGS with 32 bits");
	check_eq(res->w[7] & 0xffff, 0x820, "PUSH FS");
	check(word_at(0x8400) == 100 && word_at(0x8410) == 100, "a loop that changes ES");
}

static void test_elements(void)
{
	volatile uint8_t *from = (void *)0x8100, *to = (void *)0x8200;
	bool is_same = true;

	for (unsigned i = 0; i < 16; i++)
		from[i] = (uint8_t)(17 * i);
	*(volatile uint32_t *)0 = 0x44443333;
	*(volatile uint32_t *)0xfffc = 0x22221111;
	RUN(elements);
	for (unsigned i = 0; i < 16; i++)
		is_same &= to[i] == (from[i] ^ 0x5a) && to[i] == to[i + 0x100];
	check(is_same, "LODSB, STOSB and MOVSW");
	check(res->w[0] == 0x820a0000, "CMPSW");
	check(res->w[1] == 0x82fe0000, "SCASW downwards");
	check(res->w[2] == 0x33330002 && (res->w[3] & 0xffff) == 0, "their registers wrap");
}

/* ---- protected mode ---- */

struct far {
	uint32_t off;
	uint16_t sel;
};

static void call_16(void *arg)
{
	struct far f = { (uint32_t)(uintptr_t)arg, PCODE };

	__asm__ volatile("mov %1, %%es; lcall *%0; mov %2, %%es"
			 :
			 : "m"(f), "r"(PDATA), "r"(KDATA)
			 : "eax", "ecx", "edx", "memory", "cc");
}

/* In a segment of its own; the 32-bit stack stays.  ES is PDATA. */
CODE16_OF(p_loop,
	  "mov $1000, %cx; xor %ax, %ax\n1:\tcall 2f; incw %es:4; loop 1b; mov %ax, %es:0; lretl\n"
	  "2:\tadd $3, %ax; ret");
/* ... with a stack of 16 bits. */
CODE16_OF(p_stack,
	  "mov %ss, %dx; mov %esp, %eax; mov $0x50, %cx; mov %cx, %ss; mov $0x6f00, %sp; push "
	  "%eax; mov $100, %cx\n"
	  "1:\tpush %cx; push $7; call 2f; pop %ax; pop %cx; loop 1b; mov %sp, %cx; pop %eax\n\t"
	  "mov %dx, %ss; mov %eax, %esp; mov %cx, %es:0; lretl\n"
	  "2:\tpush %bp; mov %sp, %bp; push 4(%bp); pop %es:2; leave; ret");
CODE16_OF(p_over, "movw $1, %es:0xffe; movw $1, %es:0xfff; lretl");
CODE16_OF(p_out, "jmp 1f; .skip 256\n1:\tlretl");

static void test_protected(void)
{
	static uint8_t text[8192] __attribute__((aligned(4096)));
	static volatile uint16_t data[2048];
	uint8_t *code = text + 0x123; /* begins within a page */
	bool is_fine = true;

	set_descriptor(PCODE, (uint32_t)(uintptr_t)code, 0x1fff, 0x009b);
	set_descriptor(PDATA, (uint32_t)(uintptr_t)data, 0xfff, 0x0093);
	set_descriptor(DATA16, 0, 0xffff, 0x0093);
	COPY(code, p_loop);
	for (unsigned i = 1; i <= 3; i++) {
		call_16(0);
		is_fine &= data[0] == 3000 && data[2] == (uint16_t)(1000 * i);
	}
	check(is_fine, "a loop of calls in a 16-bit segment");
	COPY(code, p_stack);
	call_16(0);
	check(data[0] == 0x6efc && data[1] == 7, "with a 16-bit stack");
	COPY(code, p_over);
	check_fault(catch (call_16, NULL), GP, 0, "a write over the limit");
	check_eq(data[0x7ff], 1, "the one before it");
	COPY(code, p_out);
	call_16(0);
	set_descriptor(PCODE, (uint32_t)(uintptr_t)code, 0xff, 0x009b);
	struct fault f = catch (call_16, NULL);

	check_fault(f, GP, 0, "a jump over the limit of CS");
	check_eq(f.ip, 0, "at the jump");
	set_descriptor(PCODE, (uint32_t)(uintptr_t)code, 0x103, 0x009b);
	f = catch (call_16, NULL);
	check_fault(f, GP, 0, "an instruction over the limit of CS");
	check_eq(f.ip, 0x103, "at its start");
	/* The same bytes by another base. */
	set_descriptor(PCODE, (uint32_t)(uintptr_t)code - 0x40, 0x1fff, 0x009b);
	COPY(code, p_loop);
	data[2] = 0;
	call_16((void *)0x40);
	check(data[0] == 3000 && data[2] == 1000, "the same code by another base");
}

void guest_main(void)
{
	test_loops();
	test_addresses();
	test_selectors();
	test_elements();
	test_protected();
}
