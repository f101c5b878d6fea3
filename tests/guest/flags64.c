/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flags over memory accesses: an instruction sets them, others touch memory without changing them, and then they are read
 * elsewhere.  An emulator that does not keep flags for every access must have them again wherever the code may go on: at all
 * kinds of branches, and where an access faults, or is a device's.
 */
#include "guest.h"

#define LAPIC_ID ((volatile uint32_t *)0xfee00020)
#define ABSENT	 ((uint8_t *)TEST_BASE)
#define ARITH	 0x8d5u

struct piece {
	const char *name;
	uint8_t len, bytes[15];
};

/* Operands: rax, rcx, r9 = a; rbx, r10 = b. */
static const struct piece setters[] = {
	{ "cmp rax, rbx", 3, { 0x48, 0x39, 0xd8 } },
	{ "cmp eax, ebx", 2, { 0x39, 0xd8 } },
	{ "cmp al, bl", 2, { 0x38, 0xd8 } },
	{ "cmp ah, bl", 2, { 0x38, 0xdc } },
	{ "cmp ax, bx", 3, { 0x66, 0x39, 0xd8 } },
	{ "cmp rax, 5", 4, { 0x48, 0x83, 0xf8, 0x05 } },
	{ "cmp r9, rbx", 3, { 0x49, 0x39, 0xd9 } },
	{ "cmp r9, r10", 3, { 0x4d, 0x39, 0xd1 } },
	{ "cmp rcx, rbx", 3, { 0x48, 0x39, 0xd9 } },
	{ "cmp rsp, rbx", 3, { 0x48, 0x39, 0xdc } },
	{ "cmp rax, [r8]", 3, { 0x49, 0x3b, 0x00 } },
	{ "test rax, rbx", 3, { 0x48, 0x85, 0xd8 } },
	{ "test eax, 80000001h", 5, { 0xa9, 0x01, 0x00, 0x00, 0x80 } },
	{ "test r9, r9", 3, { 0x4d, 0x85, 0xc9 } },
	{ "test r9b, 1", 4, { 0x41, 0xf6, 0xc1, 0x01 } },
	{ "and rax, rbx", 3, { 0x48, 0x21, 0xd8 } },
	{ "or eax, ebx", 2, { 0x09, 0xd8 } },
	{ "xor r9, rbx", 3, { 0x49, 0x31, 0xd9 } },
	{ "xor eax, eax", 2, { 0x31, 0xc0 } },
	{ "or al, bl", 2, { 0x08, 0xd8 } },
	{ "add rax, 7fh", 4, { 0x48, 0x83, 0xc0, 0x7f } },
	{ "add rax, 7fffffffh", 6, { 0x48, 0x05, 0xff, 0xff, 0xff, 0x7f } },
	{ "add eax, 12345678h", 5, { 0x05, 0x78, 0x56, 0x34, 0x12 } },
	{ "add al, 7", 2, { 0x04, 0x07 } },
	{ "sub eax, -128", 3, { 0x83, 0xe8, 0x80 } },
	{ "sub r10, 1", 4, { 0x49, 0x83, 0xea, 0x01 } },
	{ "add rax, rbx", 3, { 0x48, 0x01, 0xd8 } },
	{ "sub ebx, eax", 2, { 0x29, 0xc3 } },
	{ "add r9, rbx", 3, { 0x49, 0x01, 0xd9 } },
	{ "add rax, rax", 3, { 0x48, 0x01, 0xc0 } },
	{ "adc rax, rbx", 3, { 0x48, 0x11, 0xd8 } },
	{ "sbb eax, eax", 2, { 0x19, 0xc0 } },
	{ "inc rax", 3, { 0x48, 0xff, 0xc0 } },
	{ "neg rax", 3, { 0x48, 0xf7, 0xd8 } },
	{ "shl rax, 3", 4, { 0x48, 0xc1, 0xe0, 0x03 } },
	{ "shl rax, cl", 3, { 0x48, 0xd3, 0xe0 } },
	{ "bt rax, rbx", 4, { 0x48, 0x0f, 0xa3, 0xd8 } },
	/* the stack pointer moves there and back */
	{ "add rsp, 16", 8, { 0x48, 0x83, 0xec, 0x10, 0x48, 0x83, 0xc4, 0x10 } },
	{ "sub rsp, 0", 4, { 0x48, 0x83, 0xec, 0x00 } },
	/* push rdx; sub rsp, 16; add rsp, 16; pop rdi */
	{ "add rsp, 16; pop rdi", 10, { 0x52, 0x48, 0x83, 0xec, 0x10, 0x48, 0x83, 0xc4, 0x10, 0x5f } },
};

/* At rsi; no flags are changed. */
static const struct piece betweens[] = {
	{ "a load", 2, { 0x8b, 0x3e } }, /* mov edi, [rsi] */
	{ "two loads", 5, { 0x8b, 0x3e, 0x8b, 0x56, 0x10 } },
	{ "a load and SETB", 5, { 0x0f, 0x92, 0xc2, 0x8b, 0x3e } },
	{ "a load after JC", 4, { 0x72, 0x00, 0x8b, 0x3e } },
	{ "a load before JC", 4, { 0x8b, 0x3e, 0x72, 0x00 } },
	{ "a load of an operand", 2, { 0x8b, 0x06 } }, /* mov eax, [rsi] */
	{ "PUSH, a load, POP", 4, { 0x52, 0x8b, 0x3e, 0x5a } },
	{ "a load and CMOVZ of an operand", 6, { 0x8b, 0x3e, 0x48, 0x0f, 0x44, 0xc2 } }, /* cmovz rax, rdx */
	/* from here on not for devices */
	{ "a store", 3, { 0x89, 0x56, 0x08 } },
	{ "a load, LEA, a store", 8, { 0x8b, 0x3e, 0x8d, 0x52, 0x01, 0x89, 0x56, 0x08 } },
	{ "a vector's load", 4, { 0x66, 0x0f, 0x6f, 0x06 } },
	{ "POP to memory", 3, { 0x52, 0x8f, 0x06 } }, /* push rdx; pop [rsi] */
	{ "XCHG with memory", 3, { 0x48, 0x87, 0x16 } },
};
#define FOR_DEVICES 8

/* To r8, or to what [r8] says. */
enum end {
	JMP_REL,
	JMP_FAR,
	JMP_REG,
	JMP_MEM,
	CALL_REL,
	CALL_FAR,
	CALL_REG,
	CALL_MEM,
	RETURN,
	FALL,
	SYSTEM,
	NENDS
};
static const char *const ends[] = { "jmp",  "jmp to another page",  "jmp r8",  "jmp [r8]",
				    "call", "call of another page", "call r8", "call [r8]",
				    "ret",  "the next block",	    "pushf" };

static const struct piece reader = { "", 3, { 0x9c, 0x58, 0xc3 } }; /* pushf; pop rax; ret */

static uint8_t *code, *other;
static volatile struct {
	uint32_t word[8];
} data __attribute__((aligned(64)));
static uint64_t slot; /* the target */

static uint8_t *put(uint8_t *p, const void *bytes, unsigned n)
{
	memcpy(p, bytes, n);
	return p + n;
}

static uint8_t *put_rel(uint8_t *p, uint8_t opcode, const uint8_t *to)
{
	int32_t rel = (int32_t)(to - (p + 5));

	*p++ = opcode;
	return put(p, &rel, 4);
}

static uint8_t *put_end(uint8_t *p, enum end end, uint8_t *near)
{
	static const uint8_t regs[] = { 0x41, 0xff, 0xe0, 0x41, 0xff, 0x20,
					0x41, 0xff, 0xd0, 0x41, 0xff, 0x10 };

	switch (end) {
	case JMP_REL:
		return put_rel(p, 0xe9, near);
	case JMP_FAR:
		return put_rel(p, 0xe9, other);
	case JMP_REG:
		return put(p, regs, 3);
	case JMP_MEM:
		return put(p, regs + 3, 3);
	case CALL_REL:
		return put_rel(p, 0xe8, near);
	case CALL_FAR:
		return put_rel(p, 0xe8, other);
	case CALL_REG:
		return put(p, regs + 6, 3);
	case CALL_MEM:
		return put(p, regs + 9, 3);
	default:
		return p;
	}
}

struct operands {
	uint64_t a, b;
};

/* r11 = the target, r12 = where to begin */
static uint32_t run(const uint8_t *at, const struct operands *o, uint64_t to, const volatile void *memory)
{
	uint64_t flags, b = o->b;
	register uint64_t r8 __asm__("r8") = to, r11 __asm__("r11") = slot,
			     r12 __asm__("r12") = (uintptr_t)at;

	__asm__ volatile("mov %%rbx, %%r10\n\tmov %%rax, %%r9\n\tmov %%rax, %%rcx\n\t"
			 "push $0x55\n\tcmp %%eax, %%eax\n\tcall *%%r12\n\tlea 8(%%rsp), %%rsp"
			 : "=a"(flags), "+b"(b), "+r"(r8), "+r"(r11)
			 : "0"(o->a), "r"(r12), "S"(memory)
			 : "rcx", "rdx", "rdi", "r9", "r10", "memory", "cc");
	return (uint32_t)flags & ARITH;
}

static void present(struct frame *f)
{
	*pte((uintptr_t)ABSENT, 1) |= PT_P;
}

static const struct operands values[] = {
	{ 0, 0 },
	{ 5, 5 },
	{ 0x7fffffffffffffff, 1 },
	{ 0x80000000, 0xffffffff80000000 },
	{ 0x123456789abcdef1, 0xf0 },
};

enum place { RAM_PLACE, ABSENT_PLACE, DEVICE_PLACE, NPLACES };

/* Whether all values give the flags that the setter alone does. */
static bool is_right(const struct piece *s, const struct piece *between, enum end end, enum place place)
{
	const volatile void *const at[] = { &data, ABSENT, LAPIC_ID };
	uint8_t *target = code + 0x400, *alone = code + 0x800;
	uint8_t *p = code;

	slot = (uintptr_t)target;
	uint64_t r8 = end == JMP_REG || end == CALL_REG ? slot : (uintptr_t)&slot;

	if (end == RETURN)
		p = put(p, (const uint8_t[]){ 0x41, 0x53 }, 2); /* push r11 */
	p = put(p, s->bytes, s->len);
	p = put(p, between->bytes, between->len);
	p = put_end(p, end, target);
	if (end == FALL) { /* the block behind is there already */
		put(p, reader.bytes, reader.len);
		run(p, &values[0], r8, &data);
	} else if (end == SYSTEM) {
		put(p, reader.bytes, reader.len);
	} else {
		*p = 0xc3; /* of a RET, and behind calls */
	}
	/* The setter alone, with the stack pointer where it is. */
	p = alone;
	if (end == RETURN)
		p = put(p, (const uint8_t[]){ 0x41, 0x53 }, 2);
	p = put(p, s->bytes, s->len);
	p = put(p, reader.bytes, 2);
	if (end == RETURN)
		p = put(p, (const uint8_t[]){ 0x41, 0x5b }, 2); /* pop r11 */
	*p = 0xc3;
	for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		if (place == ABSENT_PLACE) {
			*pte((uintptr_t)ABSENT, 1) &= ~(uint64_t)PT_P;
			invlpg(ABSENT);
		}
		uint32_t got = run(code, &values[i], r8, at[place]);

		if (got != run(alone, &values[i], r8, &data)) {
			print("# %s, %s, %s, place %u: %x\n", s->name, between->name, ends[end],
			      place, got);
			return false;
		}
	}
	return true;
}

void guest_main(void)
{
	static const char *const names[] = { "memory", "an absent page", "a device" };

	code = alloc_page();
	other = alloc_page();
	put(code + 0x400, reader.bytes, reader.len);
	put(other, reader.bytes, reader.len);
	map((uintptr_t)ABSENT, (uintptr_t)alloc_page(), PT_P | PT_W);
	set_handler(PF, present);
	lapic_enable();
	for (unsigned place = 0; place < NPLACES; place++)
		for (unsigned end = 0; end < NENDS; end++) {
			bool is_good = true;
			unsigned n = place == DEVICE_PLACE ? FOR_DEVICES
							   : sizeof(betweens) / sizeof(betweens[0]);

			for (unsigned s = 0; s < sizeof(setters) / sizeof(setters[0]); s++)
				for (unsigned b = 0; b < n; b++) {
					is_good &= is_right(&setters[s], &betweens[b],
							    (enum end)end, (enum place)place);
				}
			print("# over accesses to %s\n", names[place]);
			check(is_good, ends[end]);
		}
	done();
}
