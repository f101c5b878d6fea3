/* SPDX-License-Identifier: Apache-2.0 */
/* Calls and returns of 32-bit code: position-independent code that asks for its own address, RET that drops arguments,
 * returns that go elsewhere. */
#include "guest.h"

__attribute__((noinline)) static uint32_t own_address(void)
{
	uint32_t v;

	__asm__ volatile("call 1f\n1:\tpop %0" : "=r"(v) : : "memory");
	return v;
}

__attribute__((noinline)) static uint32_t nested(unsigned n)
{
	return n ? nested(n - 1) + (own_address() != 0) : 0;
}

__attribute__((stdcall, noinline)) static uint32_t three(uint32_t a, uint32_t b, uint32_t c)
{
	__asm__ volatile("" : "+r"(a));
	return a * 100 + b * 10 + c;
}

__attribute__((naked, noinline)) static void thunk(void)
{
	__asm__("mov (%esp), %ebx\n\t"
		"ret");
}

void guest_main(void)
{
	bool is_right = true;

	for (unsigned i = 0; i < 300; i++)
		is_right &= nested(i % 30) == i % 30;
	check(is_right, "CALL for the own address among others");
	is_right = true;
	for (unsigned i = 0; i < 300; i++)
		is_right &= three(i, 2, 3) == i * 100 + 23;
	check(is_right, "RET imm16");
	is_right = true;
	for (unsigned i = 0; i < 300; i++) {
		uint32_t at, want;

		__asm__ volatile("call %P2\n1:\tmov $1b, %1\n\tmov %%ebx, %0"
				 : "=&a"(at), "=&c"(want)
				 : "i"(thunk)
				 : "ebx", "memory", "cc");
		is_right &= at == want;
	}
	check(is_right, "the address by a thunk");
	is_right = true;
	for (unsigned i = 0; i < 300; i++) {
		uint32_t v = 0;

		__asm__ volatile("mov $3f, %%eax\n\t"
				 "call 2f\n"
				 "1:\tjmp 1b\n"
				 "2:\tmov %%eax, (%%esp)\n\t"
				 "ret\n"
				 "3:\tlea 1(%0), %0"
				 : "+r"(v)
				 :
				 : "eax", "memory", "cc");
		is_right &= v == 1;
	}
	check(is_right, "RET as an indirect jump");
	done();
}
