/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls whose returns go elsewhere than after the call: return addresses that are changed, dropped, added, that
 * belong to code that was rewritten or mapped elsewhere meanwhile, and more calls than anybody predicts.
 */
#include "guest.h"

/* ---- return addresses changed ---- */

__attribute__((naked, noinline)) static uint64_t return_later(uint64_t by)
{
	/* 5 bytes further on: over a MOV EAX, imm32 of the caller. */
	__asm__("add %rdi, (%rsp)\n\t"
		"ret");
}

static uint64_t skipped(uint64_t by)
{
	uint64_t v = by;

	__asm__ volatile("mov $7, %%eax\n\t"
			 "call %P1\n\t"
			 "mov $1, %%eax"
			 : "=&a"(v)
			 : "i"(return_later), "D"(by)
			 : "memory", "cc");
	return v;
}

static void test_changed(void)
{
	bool is_right = true;

	for (unsigned i = 0; i < 300; i++)
		is_right &= skipped(i % 3 ? 5 : 0) == (i % 3 ? 7 : 1);
	check(is_right, "a return address that is sometimes changed");
	is_right = true;
	for (unsigned i = 0; i < 300; i++) {
		uint64_t v = 0;

		/* A retpoline: the call's own return is never taken. */
		__asm__ volatile("lea 3f(%%rip), %%rax\n\t"
				 "call 2f\n"
				 "1:\tpause\n\t"
				 "jmp 1b\n"
				 "2:\tmov %%rax, (%%rsp)\n\t"
				 "ret\n"
				 "3:\tlea 1(%0), %0"
				 : "+r"(v)
				 :
				 : "rax", "memory", "cc");
		is_right &= v == 1;
	}
	check(is_right, "RET as an indirect jump");
}

/* A call that only asks for its address, within calls and returns that fit. */
__attribute__((noinline)) static uint64_t own_address(void)
{
	uint64_t v;

	__asm__ volatile("call 1f\n1:\tpop %0" : "=r"(v) : : "memory");
	return v;
}

__attribute__((noinline)) static uint64_t nested(unsigned n)
{
	return n ? nested(n - 1) + (own_address() != 0) : 0;
}

/* ---- returns over several frames ---- */

static void *jump_sp, *jump_ip;
static uint8_t deep_stack[4 << 20] __attribute__((aligned(16)));

__attribute__((noinline)) static uint64_t dive(unsigned n, bool is_thrown)
{
	if (n)
		return dive(n - 1, is_thrown) + 1;
	if (is_thrown)
		__asm__ volatile("mov %0, %%rsp\n\t"
				 "jmp *%1"
				 :
				 : "r"(jump_sp), "r"(jump_ip), "a"(~0ull)
				 : "memory");
	return 0;
}

static uint64_t dive_and_catch(unsigned n, bool is_thrown)
{
	uint64_t v;

	/* On a stack of its own: rsp and rbp are kept at its top. */
	__asm__ volatile("mov %%rsp, %%rax\n\t"
			 "lea %6, %%rsp\n\t"
			 "push %%rax\n\t"
			 "push %%rbp\n\t"
			 "lea 1f(%%rip), %%rax\n\t"
			 "mov %%rax, %1\n\t"
			 "mov %%rsp, %2\n\t"
			 "call %P5\n"
			 "1:\tpop %%rbp\n\t"
			 "pop %%rsp"
			 : "=&a"(v), "=m"(jump_ip), "=m"(jump_sp), "+D"(n), "+S"(is_thrown)
			 : "i"(dive), "m"(deep_stack[sizeof(deep_stack)])
			 : "rcx", "rdx", "rbx", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
			   "r15", "memory", "cc");
	return v;
}

static void test_frames(void)
{
	bool is_right = true;

	for (unsigned i = 0; i < 200; i++) {
		is_right &= nested(i % 20) == i % 20;
		is_right &= dive_and_catch(i % 40, true) == ~0ull;
		is_right &= dive_and_catch(i % 40, false) == i % 40;
	}
	check(is_right, "frames left behind");
	/* More frames than the stack of returns has room for. */
	is_right = true;
	for (unsigned i = 0; i < 3; i++)
		is_right &= dive_and_catch(40000 + i, false) == 40000 + i;
	check(is_right, "40000 frames, and back");
	check(dive_and_catch(50000, true) == ~0ull, "50000 frames, left behind");
	check(dive_and_catch(9, false) == 9, "a few frames after that");
	/* Calls that never return. */
	uint64_t n = 0;

	__asm__ volatile("mov %%rsp, %%rbx\n\t"
			 "mov $100000, %%ecx\n"
			 "1:\tcall 2f\n\t"
			 "nop\n"
			 "2:\tmov %%rbx, %%rsp\n\t"
			 "inc %0\n\t"
			 "dec %%ecx\n\t"
			 "jnz 1b"
			 : "+r"(n)
			 :
			 : "rbx", "rcx", "memory", "cc");
	check_eq(n, 100000, "100000 calls without a return");
}

/* Two stacks that take turns: each return belongs to the other's call. */
static uint64_t turns;
static uint64_t other_sp __attribute__((used));
static uint8_t other_stack[4096] __attribute__((aligned(16)));

__attribute__((naked, noinline)) static void switch_stack(void)
{
	__asm__("push %rbp\n\t"
		"push %rbx\n\t"
		"xchg %rsp, other_sp(%rip)\n\t"
		"pop %rbx\n\t"
		"pop %rbp\n\t"
		"ret");
}

static void other(void)
{
	for (;;) {
		turns += 1000;
		switch_stack();
	}
}

static void test_coroutines(void)
{
	uint64_t *sp = (uint64_t *)(other_stack + sizeof(other_stack)) - 2;

	*--sp = (uint64_t)other;
	*--sp = 0;
	*--sp = 0;
	other_sp = (uint64_t)sp;
	for (unsigned i = 0; i < 500; i++) {
		turns++;
		switch_stack();
	}
	check_eq(turns, 500500, "two stacks by turns");
}

/* ---- what changes during the call ---- */

static uint8_t *code;
#define WINDOW 0x8000200000ull

/* CALL RDI; MOV EAX, value; RET */
static void put_caller(uint8_t *at, uint32_t value)
{
	at[0] = 0xff;
	at[1] = 0xd7;
	at[2] = 0xb8;
	memcpy(at + 3, &value, 4);
	at[7] = 0xc3;
}

static uint32_t call_with(const void *p, void (*fn)(void))
{
	uint32_t v;

	__asm__ volatile("call *%2"
			 : "=a"(v), "+D"(fn)
			 : "r"(p)
			 : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
	return v;
}

static uint32_t next_value;
static uint8_t *pages[2];

static void rewrite(void)
{
	memcpy(code + 3, &next_value, 4);
}

static void rewrite_caller_only(void)
{
	*(volatile uint8_t *)code = 0xff;
}

static void remap(void)
{
	map(WINDOW, (uintptr_t)pages[next_value & 1], PT_P | PT_W);
	invlpg((void *)WINDOW);
}

static void nothing(void)
{
}

static void test_meanwhile(void)
{
	bool is_right = true;

	code = alloc_page();
	put_caller(code, 0);
	for (next_value = 1; next_value < 200; next_value++)
		is_right &= call_with(code, rewrite) == next_value;
	check(is_right, "the code after the call is rewritten during the call");
	is_right = true;
	for (unsigned i = 0; i < 200; i++)
		is_right &= call_with(code, i & 1 ? rewrite_caller_only : nothing) == 199;
	check(is_right, "the call itself is rewritten");
	pages[0] = alloc_page();
	pages[1] = alloc_page();
	put_caller(pages[0], 1000);
	put_caller(pages[1], 1001);
	map(WINDOW, (uintptr_t)pages[0], PT_P | PT_W);
	is_right = true;
	for (next_value = 0; next_value < 200; next_value++)
		is_right &= call_with((void *)WINDOW, remap) == 1000 + (next_value & 1);
	check(is_right, "the page is mapped elsewhere during the call");
	is_right = true;
	for (next_value = 0; next_value < 200; next_value++) {
		is_right &= call_with((void *)WINDOW, nothing) == 1000 + (~next_value & 1);
		remap();
		is_right &= call_with((void *)WINDOW, nothing) == 1000 + (next_value & 1);
	}
	check(is_right, "the page is mapped elsewhere between calls");
}

/* ---- faults ---- */

__attribute__((naked)) static void return_nowhere(void *arg)
{
	__asm__("push %rdi\n\t"
		"ret");
}

__attribute__((naked)) static void return_more(void *arg)
{
	__asm__("mov (%rdi), %rax\n\t"
		"xchg %rax, (%rsp)\n\t" /* the caller's return address, kept in what arg names */
		"mov %rax, (%rdi)\n\t"
		"ret");
}

static void test_faults(void)
{
	uint64_t to = 0x1234567890abcdefull;
	struct fault f = catch (return_nowhere, (void *)to);

	check_fault(f, GP, 0, "a return to no canonical address");
	check(f.ip != to, "faults at the RET");
	f = catch (return_more, &to);
	check_fault(f, GP, 0, "the same with the call's own frame");
	to = 0x800000000000ull - 4096;
	f = catch (return_nowhere, (void *)to);
	check_fault(f, PF, 0x10 & -(f.error >> 4 & 1), "a return to a page that is not there");
	check_eq(f.cr2, to, "faults at its target");
}

static void user_returns(void *arg)
{
	uint64_t v = 0;

	/* In ring 3, after kernel calls from the same code: the same pairs. */
	__asm__ volatile("call 1f\n\t"
			 "add $1, %0\n\t"
			 "jmp 2f\n"
			 "1:\tadd $10, %0\n\t"
			 "ret\n"
			 "2:"
			 : "+r"(v)
			 :
			 : "memory", "cc");
	user_return(v);
}

__attribute__((naked, noinline)) static void store_there(void)
{
	__asm__("movl $1, (%rdi)\n\t"
		"ret");
}

__attribute__((naked)) static void jump_there(void *arg)
{
	__asm__("int $0x81\n\t"
		"mov 8(%rdi), %rax\n\t"
		"mov (%rdi), %rdi\n\t"
		"jmp *%rax");
}

static volatile uint32_t word_of_ring0;

static void warm_up(struct frame *f)
{
	for (unsigned i = 0; i < 3; i++)
		__asm__ volatile("call *%0"
				 :
				 : "r"(store_there), "D"(&word_of_ring0)
				 : "memory", "cc");
	word_of_ring0 = 0;
}

/* Ring 3 jumps to addresses which are those of ring 0's code but for bits above the 48th. */
static void test_aliases(void)
{
	extern uint8_t entries[];
	static struct {
		volatile uint32_t *at;
		uint64_t to;
	} user __attribute__((aligned(16)));
	bool is_right = true;

	set_handler(0x81, warm_up);
	set_gate(0x81, entries + 16 * 0x81, KCODE, 0xee, 0);
	for (unsigned bits = 0; bits < 16; bits++) {
		for (int sign = -1; sign <= 1; sign += 2) {
			uint64_t d = (bits & 1 ? 4 : 0) + (bits & 2 ? 0x3000 : 0) +
				     (bits & 4 ? 1 : 0) + (bits & 8 ? 0x400 : 0);

			user.at = &word_of_ring0;
			user.to = (uint64_t)store_there + ((uint64_t)sign * d << 49);
			struct fault f = call_user(jump_there, (uint8_t *)&user + USER_BASE, NULL);

			is_right &= f.vector == (d ? GP : PF) && !word_of_ring0;
		}
	}
	check(is_right, "ring 0's code under other addresses");
}

static void test_rings(void)
{
	bool is_right = true;

	for (unsigned i = 0; i < 50; i++) {
		word v = 0;
		struct fault f = call_user(user_returns, NULL, &v);

		is_right &= f.vector == -1 && v == 11 && dive_and_catch(i, false) == i;
	}
	check(is_right, "calls in ring 3 and ring 0 by turns");
}

/* ---- interrupts ---- */

static void end_of_tree(struct frame *f)
{
	lapic_eoi();
	f->ip = (uint64_t)jump_ip;
	f->sp = (uint64_t)jump_sp;
}

/*
 * 2^60 calls, all of them forward in one page, and after each function of the tree has run a few times, so that no jump
 * of it is new: only the timer ends that.  Function N returns at once if bit N of rdx is set.
 */
static void test_tree(void)
{
	set_handler(0x40, end_of_tree);
	lapic_enable();
	lapic_write(0x3e0, 3);
	lapic_write(0x320, 0x40); /* one-shot */
	lapic_write(0x380, 3000000);
	__asm__ volatile("lea 9f(%%rip), %%rax\n\t"
			 "mov %%rax, %0\n\t"
			 "mov %%rsp, %1\n\t"
			 "mov $9, %%ecx\n\t"
			 "sti\n"
			 "2:\tlea 4f(%%rip), %%rbx\n\t"
			 "mov $2, %%edx\n"
			 "3:\tcall *%%rbx\n\t" /* each, calling the next one twice */
			 "add $18, %%rbx\n\t"
			 "shl $1, %%rdx\n\t"
			 "bt $61, %%rdx\n\t"
			 "jnc 3b\n\t"
			 "dec %%ecx\n\t"
			 "jnz 2b\n\t"
			 "xor %%edx, %%edx\n\t"
			 "call 4f\n\t"
			 "jmp 9f\n\t"
			 ".balign 2048\n\t"
			 ".set row, 0\n"
			 "4:\t.rept 60\n\t"
			 "bt $row, %%rdx\n\t"
			 "jc .+12\n\t"
			 "call .+11\n\t"
			 "call .+6\n\t"
			 "ret\n\t"
			 ".set row, row + 1\n\t"
			 ".endr\n\t"
			 "ret\n"
			 "9:\tcli"
			 : "=m"(jump_ip), "=m"(jump_sp)
			 :
			 : "rax", "rbx", "rcx", "rdx", "memory", "cc");
	check(true, "a tree of calls is interrupted");
}

/* A RET that jumps to itself. */
static void test_loop(void)
{
	lapic_write(0x380, 1000000);
	__asm__ volatile("lea 9f(%%rip), %%rax\n\t"
			 "mov %%rax, %0\n\t"
			 "mov %%rsp, %1\n\t"
			 "lea 1f(%%rip), %%rax\n\t"
			 "sti\n"
			 "1:\tpush %%rax\n\t"
			 "ret\n"
			 "9:\tcli"
			 : "=m"(jump_ip), "=m"(jump_sp)
			 :
			 : "rax", "memory", "cc");
	check(true, "a loop by RET is interrupted");
}

void guest_main(void)
{
	test_changed();
	test_frames();
	test_coroutines();
	test_meanwhile();
	test_faults();
	test_rings();
	test_aliases();
	test_tree();
	test_loop();
	done();
}
