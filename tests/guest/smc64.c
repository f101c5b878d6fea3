/* SPDX-License-Identifier: Apache-2.0 */
/* Code that is written while it runs: by itself, through aliases, by string instructions, by pages
 * that change their role.  SDM vol. 3 8.1.3: on one processor a jump is enough. */
#include "guest.h"

static uint8_t *code;
#define ALIAS 0x8000100000ull

static uint32_t call(const void *p)
{
	uint32_t v;

	__asm__ volatile("call *%1" : "=a"(v) : "r"(p) : "rcx", "rdx", "memory", "cc");
	return v;
}

static void put_return(uint8_t *at, uint32_t value) /* MOV EAX, value; RET */
{
	at[0] = 0xb8;
	memcpy(at + 1, &value, 4);
	at[5] = 0xc3;
}

static void test_rewrite(void)
{
	bool is_right = true;

	for (uint32_t i = 0; i < 200; i++) {
		put_return(code, i);
		is_right &= call(code) == i;
	}
	check(is_right, "rewritten and called, 200 times");
	is_right = true;
	for (uint32_t i = 0; i < 200; i++) {
		*(volatile uint8_t *)(code + 1) = (uint8_t)i; /* only a byte of the immediate */
		is_right &= (call(code) & 0xff) == (i & 0xff);
	}
	check(is_right, "one byte of an immediate");
	is_right = true;
	for (uint32_t i = 0; i < 100; i++) {
		put_return(code, 1);
		put_return(code + 2048, i);
		is_right &= call(code) == 1 && call(code + 2048) == i;
	}
	check(is_right, "two routines in a page");
	is_right = true;
	for (uint32_t i = 0; i < 500; i++) { /* data beside code */
		*(volatile uint32_t *)(code + 1024) = i;
		is_right &= call(code) == 1 && *(volatile uint32_t *)(code + 1024) == i;
	}
	check(is_right, "data in a page of code");
}

static void test_self(void)
{
	/* Each turn the loop increments the immediate of the ADD ahead of it in the same block. */
	uint32_t sum;

	__asm__ volatile("xor %%eax, %%eax\n\t"
			 "mov $10, %%ecx\n"
			 "1:\tincb 2f+1(%%rip)\n"
			 "2:\tadd $0, %%al\n\t" /* 04 ib */
			 "dec %%ecx\n\t"
			 "jnz 1b\n\t"
			 "movb $0, 2b+1(%%rip)"
			 : "=&a"(sum)
			 :
			 : "rcx", "memory", "cc");
	check_eq(sum, 55, "a store into the next instruction");
	__asm__ volatile("lea 3f(%%rip), %%rdi\n\t"
			 "mov $0x90, %%eax\n\t"
			 "mov $2, %%ecx\n\t"
			 "mov $1, %%edx\n\t"
			 "rep stosb\n"
			 "3:\txor %%edx, %%edx\n\t" /* 31 d2, becomes two NOPs */
			 "movw $0xd231, 3b(%%rip)"
			 : "=&d"(sum)
			 :
			 : "rax", "rcx", "rdi", "memory", "cc");
	check_eq(sum, 1, "REP STOSB over the next instruction");
}

static void test_alias(void)
{
	bool is_right = true;

	map(ALIAS, (uintptr_t)code, PT_P | PT_W);
	for (uint32_t i = 0; i < 100; i++) {
		put_return((uint8_t *)ALIAS, i);
		is_right &= call(code) == i;
		put_return(code, i + 1);
		is_right &= call((void *)ALIAS) == i + 1;
	}
	check(is_right, "written through an alias mapping");
	/* Straddling two pages, either of which is written. */
	uint8_t *second = alloc_page();
	map(ALIAS + 4096, (uintptr_t)second, PT_P | PT_W);
	is_right = true;
	for (uint32_t i = 0; i < 100; i++) {
		put_return((uint8_t *)ALIAS + 4094, 0x01000000 | i << 8);
		is_right &= call((void *)(ALIAS + 4094)) == (0x01000000 | i << 8);
		second[2] = (uint8_t)i; /* top byte of the immediate */
		is_right &= call((void *)(ALIAS + 4094)) == (i << 24 | i << 8);
	}
	check(is_right, "an instruction across pages, its tail written");
}

static void present(struct frame *f)
{
	*pte(ALIAS + 4096, 1) |= PT_P; /* nothing was there: nothing to flush */
}

/* An instruction whose second page is another one, or comes later. */
static void test_second_page(void)
{
	uint8_t *at = (uint8_t *)ALIAS + 4094, *second[2] = { alloc_page(), alloc_page() };
	bool is_right = true;

	map(ALIAS, (uintptr_t)code, PT_P | PT_W);
	for (uint32_t k = 0; k < 2; k++) {
		map(ALIAS + 4096, (uintptr_t)second[k], PT_P | PT_W);
		put_return(at, k << 8 | 1);
	}
	for (uint32_t i = 0; i < 200; i++) {
		map(ALIAS + 4096, (uintptr_t)second[i & 1], PT_P | PT_W);
		for (unsigned n = 0; n < 3; n++)
			is_right &= call(at) == ((i & 1) << 8 | 1);
	}
	check(is_right, "an instruction across pages, its second page remapped");
	set_handler(PF, present);
	is_right = true;
	for (uint32_t i = 0; i < 50; i++) {
		map(ALIAS + 4096, (uintptr_t)second[i & 1], PT_W); /* absent */
		for (unsigned n = 0; n < 3; n++)
			is_right &= call(at) == ((i & 1) << 8 | 1);
	}
	set_handler(PF, NULL);
	check(is_right, "an instruction across pages, its second page absent at first");
	/* The same page twice: its head is in the page's last bytes, its tail in the first ones. */
	map(ALIAS + 4096, (uintptr_t)code, PT_P | PT_W);
	is_right = true;
	for (uint32_t i = 0; i < 100; i++) {
		put_return(at, i);
		is_right &= call(at) == i;
		code[0] = (uint8_t)~i; /* second byte of the immediate */
		is_right &= call(at) == (i | (~i & 0xff) << 8);
	}
	check(is_right, "an instruction across pages that are the same one");
}

static void put_jump(uint8_t *at, unsigned opcode_len, const uint8_t *to)
{
	uint32_t rel = (uint32_t)(to - (at + opcode_len + 4));

	memcpy(at + opcode_len, &rel, 4);
}

/* JMP, CALL and Jcc to another page, which is another one each time: by INVLPG, by MOV to CR3, rewritten. */
static void test_far(void)
{
	uint8_t *from = (uint8_t *)ALIAS, *to = (uint8_t *)ALIAS + 4096 + 0x100;
	uint8_t *second[3] = { alloc_page(), alloc_page(), alloc_page() };
	bool is_right = true;

	map(ALIAS, (uintptr_t)code, PT_P | PT_W);
	memcpy(from, "\xe9", 1); /* jmp */
	put_jump(from, 1, to);
	memcpy(from + 16, "\xe8\0\0\0\0\xff\xc0\xc3", 8); /* call; inc eax; ret */
	put_jump(from + 16, 1, to);
	memcpy(from + 32, "\x39\xc0\x0f\x84", 4); /* cmp eax, eax; jz */
	put_jump(from + 34, 2, to);
	for (uint32_t k = 0; k < 3; k++)
		put_return(second[k] + 0x100, k);
	for (uint32_t i = 0; i < 300; i++) {
		uint32_t k = i * 7 % 3;

		if (i & 1) {
			*pte(ALIAS + 4096, 1) = (uintptr_t)second[k] | PT_P | PT_W;
			write_cr3(read_cr3());
		} else {
			map(ALIAS + 4096, (uintptr_t)second[k], PT_P | PT_W);
		}
		for (unsigned n = 0; n < 3; n++)
			is_right &= call(from) == k && call(from + 16) == k + 1 && call(from + 32) == k;
	}
	check(is_right, "direct jumps to a page that is another one each time");
	is_right = true;
	for (uint32_t i = 0; i < 100; i++) {
		put_return(second[0] + 0x100, i);
		map(ALIAS + 4096, (uintptr_t)second[0], PT_P | PT_W);
		for (unsigned n = 0; n < 3; n++)
			is_right &= call(from) == i && call(from + 16) == i + 1 && call(from + 32) == i;
	}
	check(is_right, "direct jumps to a page that is rewritten");
}

/* A page is code, then data, then code of another address space's. */
static void test_roles(void)
{
	bool is_right = true;

	for (uint32_t i = 0; i < 50; i++) {
		put_return(code, i);
		is_right &= call(code) == i;
		memset(code, 0xcc, 4096);
		for (unsigned n = 0; n < 4096; n += 512)
			is_right &= code[n] == 0xcc;
		put_return(code + 16 * i, ~i);
		is_right &= call(code + 16 * i) == ~i;
	}
	check(is_right, "pages that change their role");
}

/* A small generator: many routines, called in a chain, some replaced in each round. */
static void test_jit(void)
{
	uint8_t *pages[4];
	uint32_t want = 0, got;
	bool is_right = true;
	uint8_t add[256] = { 0 };

	for (unsigned i = 0; i < 4; i++)
		pages[i] = alloc_page();
	for (unsigned round = 0; round < 60; round++) {
		for (unsigned i = round % 3; i < 256; i += 7) {
			uint8_t *p = pages[i / 64] + i % 64 * 64;

			want += (uint8_t)(round + i) - (uint32_t)add[i];
			add[i] = (uint8_t)(round + i);
			p[0] = 0x81; /* ADD EAX, imm32 */
			p[1] = 0xc0;
			*(uint32_t *)(p + 2) = add[i];
			p[6] = 0xc3;
		}
		if (round < 7)
			continue; /* not all are there yet */
		got = 0;
		for (unsigned i = 0; i < 256; i++) {
			uint8_t *p = pages[i / 64] + i % 64 * 64;

			if (*p == 0x81)
				__asm__ volatile("call *%1" : "+a"(got) : "r"(p) : "memory", "cc");
		}
		is_right &= got == want;
	}
	check(is_right, "generated code, partly replaced in each round");
}

/*
 * Whether the flags of the comparison are needed is decided by what comes behind an instruction that many emulators do not
 * translate, and that is another thing after each change.
 */
static void test_flags_behind(void)
{
	/* cmp edi, 7; mov eax, [rsi]; push rax; pop qword [rsi] */
	static const uint8_t begin[] = { 0x83, 0xff, 0x07, 0x8b, 0x06, 0x50, 0x8f, 0x06 };
	static const uint8_t writes[] = { 0x31, 0xd2, 0x0f, 0x94, 0xc2, 0x89, 0xd0, 0xc3 }; /* xor edx, edx; sete dl; mov eax, edx; ret */
	static const uint8_t reads[] = { 0x90, 0x90, 0x0f, 0x94, 0xc2, 0x0f, 0xb6, 0xc2, 0xc3 }; /* sete dl; movzx eax, dl; ret */
	static uint64_t word;
	bool is_right = true;

	memcpy(code, begin, sizeof(begin));
	for (unsigned i = 0; i < 200; i++) {
		uint32_t number = i % 3 ? 7 : 8, got;
		bool has_read = i / 5 & 1;

		memcpy(code + sizeof(begin), has_read ? reads : writes,
		       has_read ? sizeof(reads) : sizeof(writes));
		__asm__ volatile("call *%1"
				 : "=a"(got)
				 : "r"(code), "D"(number), "S"(&word)
				 : "rcx", "rdx", "memory", "cc");
		is_right &= got == (has_read ? number == 7 : 1);
	}
	check(is_right, "flags that are read since code behind was changed");
}

void guest_main(void)
{
	code = alloc_page();
	test_rewrite();
	test_flags_behind();
	/* the image's own text is mapped writable: supervisor pages are read-write-execute */
	test_self();
	test_alias();
	test_second_page();
	test_far();
	test_roles();
	test_jit();
}
