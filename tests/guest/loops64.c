/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loops over memory: random ones, each run twice from the same state, at full speed and step by step (TF).  Registers, flags,
 * memory, and what each fault's handler sees must be the same.
 *
 * A loop has pointers that a round moves by a constant, an index, pointers that come from memory, and data; registers
 * have these roles by chance.
 */
#include "guest.h"

#define AREA	   (TEST_BASE + 0x100000)
#define AREA_BYTES 0x18000 /* 24 pages */
#define COPY	   (TEST_BASE + 0x40000)
#define CODE	   (TEST_BASE + 0x180000)
#define CODE_BYTES 0x8000
#define LOOPS	   200

/* ---- running ---- */

struct regs {
	uint64_t r[16], flags; /* in the order of their numbers; r[4] is not used */
};

void run_loop(struct regs *r, void *code);
__asm__(".text\n"
	".globl run_loop\n"
	"run_loop:\n\t"
	"push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi; push %rsi\n\t"
	"pushq 128(%rdi)\n\t"
	"mov 0(%rdi), %rax; mov 8(%rdi), %rcx; mov 16(%rdi), %rdx; mov 24(%rdi), %rbx\n\t"
	"mov 40(%rdi), %rbp; mov 48(%rdi), %rsi; mov 64(%rdi), %r8; mov 72(%rdi), %r9\n\t"
	"mov 80(%rdi), %r10; mov 88(%rdi), %r11; mov 96(%rdi), %r12; mov 104(%rdi), %r13\n\t"
	"mov 112(%rdi), %r14; mov 120(%rdi), %r15; mov 56(%rdi), %rdi\n\t"
	"popf\n\t"
	"call *(%rsp)\n\t"
	"pushf; andl $~0x100, (%rsp); popf; pushf\n\t"
	"push %rdi; mov 24(%rsp), %rdi\n\t"
	"mov %rax, 0(%rdi); mov %rcx, 8(%rdi); mov %rdx, 16(%rdi); mov %rbx, 24(%rdi)\n\t"
	"mov %rbp, 40(%rdi); mov %rsi, 48(%rdi); mov %r8, 64(%rdi); mov %r9, 72(%rdi)\n\t"
	"mov %r10, 80(%rdi); mov %r11, 88(%rdi); mov %r12, 96(%rdi); mov %r13, 104(%rdi)\n\t"
	"mov %r14, 112(%rdi); mov %r15, 120(%rdi)\n\t"
	"popq 56(%rdi); popq 128(%rdi)\n\t"
	"pop %rsi; pop %rdi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n\t"
	"ret");

static unsigned steps, faults;
static uint64_t seen; /* hash of what handlers saw */
static unsigned div_len;

static void note(const struct frame *f)
{
	const uint64_t *p = &f->r15;

	for (unsigned i = 0; i < 15; i++)
		seen = (seen ^ p[i]) * 0x100000001b3;
	seen = (seen ^ f->ip) * 0x100000001b3;
	faults++;
}

static void on_step(struct frame *f)
{
	steps++;
}

static void on_divide(struct frame *f)
{
	note(f);
	f->ip += div_len;
}

static void on_page(struct frame *f)
{
	uint64_t va = read_cr2();

	if (va - AREA >= AREA_BYTES) {
		print("fail a loop accesses %llx, from %llx\n", (unsigned long long)va,
		      (unsigned long long)f->ip);
		done();
	}
	note(f);
	seen = (seen ^ va) * 0x100000001b3;
	*pte(va & ~0xfffull, 1) |= PT_P | PT_W;
	invlpg((void *)va);
}

/* ---- making loops ---- */

static uint64_t table[256]; /* pointers into the area; in the guest's image, so that an absolute address reaches it */

static uint64_t seed = 1;

static unsigned rnd(unsigned n)
{
	seed = seed * 6364136223846793005 + 1442695040888963407;
	return (unsigned)(seed >> 33) % n;
}

static uint8_t *at;

static void put(uint8_t b)
{
	*at++ = b;
}

static void put32(uint32_t v)
{
	memcpy(at, &v, 4);
	at += 4;
}

static void op_rr(unsigned w, uint8_t op, unsigned reg, unsigned rm)
{
	put((uint8_t)(0x40 | w << 3 | reg >> 3 << 2 | rm >> 3));
	if (op == 0xaf || op == 0xb6 || (op & 0xf0) == 0x40) /* IMUL, MOVZX, CMOVcc */
		put(0x0f);
	put(op);
	put((uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

/* [@base + @index * 2^@ss + @disp], no index: 4 */
static void op_mem(unsigned w, uint8_t op, unsigned reg, unsigned base, unsigned index, unsigned ss,
		   int32_t disp)
{
	put((uint8_t)(0x40 | w << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3));
	if (op == 0xb6)
		put(0x0f);
	put(op);
	put((uint8_t)(0x80 | (reg & 7) << 3 | 4));
	put((uint8_t)(ss << 6 | (index & 7) << 3 | (base & 7)));
	put32((uint32_t)disp);
}

/* Roles of registers. */
enum { COUNT, P0, P1, INDEX, CHASED, DATA, NDATA = 9, ROLES = DATA + NDATA };
static unsigned reg[ROLES];

static unsigned data(void)
{
	return reg[DATA + rnd(NDATA)];
}

static bool is_data(unsigned r)
{
	for (unsigned i = 0; i < DATA; i++)
		if (reg[i] == r)
			return false;
	return true;
}

static void deal(void)
{
	unsigned cards[15], n = 0;

	for (unsigned r = 0; r < 16; r++)
		if (r != 4)
			cards[n++] = r;
	for (unsigned i = 0; i < ROLES; i++) {
		unsigned k = n ? rnd(n) : 0;

		reg[i] = n ? cards[k] : reg[DATA + i % 4];
		if (n)
			cards[k] = cards[--n];
	}
}

static int32_t step_p[2], step_i;

static void add_const(unsigned r, int32_t by)
{
	switch (rnd(3)) {
	case 0: /* add */
		op_rr(1, 0x81, 0, r);
		put32((uint32_t)by);
		break;
	case 1: /* sub */
		op_rr(1, 0x81, 5, r);
		put32((uint32_t)-by);
		break;
	default: /* lea: no index with base 4, which is RSP or R12 */
		op_mem(1, 0x8d, r, r, 4, 0, by);
		break;
	}
}

/* One instruction or a few; @exit: where the displacement of a way out is to be put, or NULL. */
static uint8_t *body_insn(void)
{
	static const uint8_t alu[] = { 0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39, 0x85 };
	unsigned p = reg[rnd(2) ? P0 : P1], w = rnd(2);
	int32_t disp = (int32_t)rnd(256) - 128;

	switch (rnd(17)) {
	case 0:
	case 1:
		op_mem(w, 0x8b, data(), p, 4, 0, disp); /* load */
		break;
	case 2:
	case 3:
		op_mem(w, 0x89, data(), p, 4, 0, disp); /* store */
		break;
	case 4:
		op_mem(w, 0x01, data(), p, 4, 0, disp); /* add to memory */
		break;
	case 5:
		op_mem(w, rnd(2) ? 0x8b : 0x89, data(), p, reg[INDEX], rnd(4), disp);
		break;
	case 6:
		op_mem(0, 0xb6, data(), p, reg[INDEX], 0, disp); /* movzx r32, byte */
		break;
	case 7: { /* a pointer from the table: movzx; mov */
		op_rr(0, 0xb6, reg[CHASED], data());
		put((uint8_t)(0x48 | reg[CHASED] >> 3 << 2 | reg[CHASED] >> 3 << 1));
		put(0x8b);
		put((uint8_t)((reg[CHASED] & 7) << 3 | 4));
		put((uint8_t)(3 << 6 | (reg[CHASED] & 7) << 3 | 5));
		put32((uint32_t)(uint64_t)table);
		op_mem(w, rnd(2) ? 0x8b : 0x89, data(), reg[CHASED], 4, 0, disp);
		if (rnd(2))
			op_mem(w, rnd(2) ? 0x8b : 0x89, data(), reg[CHASED], 4, 0, disp + 8);
		break;
	}
	case 8:
		op_rr(1, 0xc1, rnd(2) ? 4 : 5, data()); /* shift */
		put((uint8_t)rnd(64));
		break;
	case 9:
		op_rr(1, 0xd3, rnd(2) ? 0 : 7, data()); /* rotate, shift by CL, whatever is in it */
		break;
	case 10:
		op_rr(1, 0xaf, data(), data()); /* imul */
		break;
	case 11:
		op_rr(w, (uint8_t)(0x40 | rnd(16)), data(), data()); /* cmov */
		break;
	case 12: /* lea of a sum, and an access there */
		op_mem(1, 0x8d, reg[CHASED], reg[P0], reg[INDEX], 0, disp);
		op_mem(1, 0x8b, data(), reg[CHASED], 4, 0, 8);
		break;
	case 13: { /* cmp with a byte; a way out */
		unsigned d = data();

		op_rr(0, 0x81, 7, d);
		put32(0x12345678 + rnd(4));
		put(0x0f);
		put((uint8_t)(rnd(2) ? 0x84 : 0x8a)); /* je, jp: the latter often */
		if (at[-1] == 0x8a && rnd(4)) {
			at[-1] = 0x84;
		}
		put32(0);
		return at;
	}
	case 14:
		if (rnd(4) || !is_data(0) || !is_data(2))
			op_rr(w, alu[rnd(sizeof(alu))], data(), data());
		else
			op_rr(1, 0xf7, 6, data()); /* div: mostly #DE */
		break;
	case 15: { /* sums of sums */
		unsigned d = data();

		for (unsigned i = rnd(12); i-- > 0;)
			op_mem(1, 0x8d, d, data(), d, 3, disp << 24);
		break;
	}
	default:
		op_rr(w, alu[rnd(sizeof(alu))], data(), data());
		break;
	}
	return NULL;
}

static void *make_loop(void)
{
	uint8_t *start = at, *out[16];
	unsigned nout = 0, n = 1 + rnd(10);
	unsigned moves = 0; /* bits: which has moved */

	step_p[0] = (int32_t)(rnd(9) * 8) - 32;
	step_p[1] = rnd(4) ? (int32_t)rnd(64) - 32 : 0;
	step_i = rnd(3) ? (int32_t)rnd(9) - 4 : 0;
	for (unsigned i = 0; i < n || moves != 7; i++) {
		if (i >= n || !rnd(4)) {
			unsigned which = rnd(3);

			if (!(moves >> which & 1))
				add_const(reg[which == 2 ? INDEX : P0 + which],
					  which == 2 ? step_i : step_p[which]);
			moves |= 1u << which;
			continue;
		}
		uint8_t *o = body_insn();

		if (o)
			out[nout++] = o;
	}
	op_rr(1, 0x81, 5, reg[COUNT]); /* sub count, 1 */
	put32(1);
	put(0x0f);
	put(0x85); /* jne */
	put32((uint32_t)(start - (at + 4)));
	for (unsigned i = 0; i < nout; i++) {
		uint32_t rel = (uint32_t)(at - out[i]);

		memcpy(out[i] - 4, &rel, 4);
	}
	put(0xc3);
	return start;
}

static uint64_t hash_area(void)
{
	uint64_t h = 1;

	for (uint64_t *p = (uint64_t *)AREA; p < (uint64_t *)(AREA + AREA_BYTES); p++)
		h = (h ^ *p) * 0x100000001b3;
	return h;
}

static void fill_area(uint64_t s)
{
	for (uint64_t *p = (uint64_t *)AREA; p < (uint64_t *)(AREA + AREA_BYTES); p++)
		*p = s = s * 6364136223846793005 + 1442695040888963407;
	for (unsigned i = 0; i < 256; i++)
		table[i] = AREA + 0x1000 + (i * 0x1234567u & 0x15fff);
}

static void no_page(unsigned which)
{
	uint64_t va = AREA + which * 0x1000;

	*pte(va, 1) &= ~PT_P;
	invlpg((void *)va);
}

/* Returns whether both ways are the same. */
static bool try_loop(void *code, const struct regs *from, uint64_t fill, unsigned gone)
{
	struct regs r[2];
	uint64_t hash[2], saw[2];

	for (unsigned k = 0; k < 2; k++) {
		r[k] = *from;
		r[k].flags |= k ? 0x100 : 0;
		fill_area(fill);
		if (gone)
			no_page(gone);
		seen = 1;
		run_loop(&r[k], code);
		saw[k] = seen;
		*pte(AREA + gone * 0x1000, 1) |= PT_P | PT_W;
		invlpg((void *)(AREA + gone * 0x1000));
		hash[k] = hash_area();
	}
	return !memcmp(&r[0], &r[1], sizeof(r[0])) && hash[0] == hash[1] && saw[0] == saw[1];
}

static void test_random(void)
{
	unsigned bad = 0;

	set_handler(DB, on_step);
	set_handler(DE, on_divide);
	set_handler(PF, on_page);
	div_len = 3;
	for (unsigned i = 0; i < LOOPS; i++) {
		struct regs r = { .flags = 2 | (rnd(2) ? 0x8d5 : 0) };

		if (at > (uint8_t *)CODE + CODE_BYTES - 4096)
			at = (uint8_t *)CODE;
		deal();
		for (unsigned k = 0; k < 16; k++)
			r.r[k] = (uint64_t)rnd(1u << 31) << 32 | rnd(1u << 31);
		r.r[reg[COUNT]] = 1 + rnd(rnd(4) ? 100 : 500);
		r.r[reg[P0]] = AREA + 0x8000 + rnd(0x4000);
		r.r[reg[P1]] = AREA + 0x8000 + rnd(0x4000);
		r.r[reg[INDEX]] = rnd(64);
		void *code = make_loop();
		uint64_t was = seed;

		if (!try_loop(code, &r, was, rnd(2) ? 0 : 7 + rnd(6))) {
			bad++;
			print("# loop %u differs:", i);
			for (uint8_t *p = code; p < at; p++)
				print(" %x", *p);
			print("\n");
		}
	}
	set_handler(DB, NULL);
	set_handler(DE, NULL);
	set_handler(PF, NULL);
	check_eq(bad, 0, "random loops are the same at full speed and step by step");
	check(steps > 100000 && faults > 100, "and they did step, and fault");
}

/* ---- single ones ---- */

static volatile uint32_t flag;
static volatile uint64_t timer_ip;
extern const char waiting[], waited[];

static void on_timer(struct frame *f)
{
	flag = 1;
	timer_ip = f->ip;
	lapic_eoi();
}

static void test_interrupted(void)
{
	uint64_t rounds = 0;

	lapic_enable();
	set_handler(0x40, on_timer);
	lapic_write(0x3e0, 0xb);  /* divide by 1 */
	lapic_write(0x320, 0x40); /* one shot */
	flag = 0;
	lapic_write(0x380, 100000);
	sti();
	__asm__ volatile("1: inc %0; cmpl $0, %1; je 1b"
			 : "+r"(rounds)
			 : "m"(flag)
			 : "memory", "cc");
	cli();
	check(rounds && flag, "a loop that waits for a word is interrupted, and sees it");
	/* When the timer's turn comes is the host's affair: some try will meet the loop. */
	timer_ip = 0;
	for (unsigned i = 0;
	     i < 3000 && timer_ip - (uint64_t)waiting >= (uint64_t)(waited - waiting); i++) {
		lapic_write(0x380, 20000);
		sti();
		__asm__ volatile("mov $1000000, %%ecx\n"
				 "waiting: lea 3(%0), %0; sub $1, %%ecx; jne waiting\n"
				 "waited:"
				 : "+r"(rounds)
				 :
				 : "rcx", "memory", "cc");
		cli();
	}
	check(timer_ip - (uint64_t)waiting < (uint64_t)(waited - waiting),
	      "a loop without memory is interrupted");
	lapic_write(0x320, 0x10000);
	set_handler(0x40, NULL);
}

/* Adds two numbers of 64-bit digits: the carry lives from round to round. */
static void test_carry(void)
{
	uint64_t *a = (uint64_t *)(AREA + 0xf80), *b = (uint64_t *)(AREA + 0x2f28), *c = (uint64_t *)COPY;
	uint64_t n = 600, *pa = a, *pb = b, *pc = c, tmp;
	bool is_right = true;

	for (unsigned i = 0; i < n; i++) {
		a[i] = i % 7 ? ~0ull : i;
		b[i] = i % 5 ? 0 : 1;
	}
	__asm__ volatile("clc\n"
			 "1: mov (%1), %0\n\t"
			 "adc (%2), %0\n\t"
			 "mov %0, (%3)\n\t"
			 "lea 8(%1), %1; lea 8(%2), %2; lea 8(%3), %3\n\t"
			 "dec %4\n\t"
			 "jnz 1b"
			 : "=&r"(tmp), "+r"(pa), "+r"(pb), "+r"(pc), "+r"(n)
			 :
			 : "memory", "cc");
	unsigned carry = 0;
	for (unsigned i = 0; i < 600; i++) {
		unsigned __int128 sum = (unsigned __int128)a[i] + b[i] + carry;

		is_right &= c[i] == (uint64_t)sum;
		carry = (unsigned)(sum >> 64);
	}
	check(is_right && pa == a + 600, "the carry lives over the rounds");
}

/* The loop writes the immediate of its own next round. */
static void test_own_code(void)
{
	uint64_t sum = 0;

	at = (uint8_t *)CODE;
	void *code = at;
	static const uint8_t loop[] = {
		0x48, 0x81, 0xc0, 1, 0, 0, 0, /* add rax, 1 */
		0x01, 0x0e,		      /* add [rsi], ecx */
		0x83, 0xea, 0x01,	      /* sub edx, 1 */
		0x75, 0xf2,		      /* jne */
		0xc3,
	};
	struct regs r = { .flags = 2 };

	memcpy(code, loop, sizeof(loop));
	r.r[1] = 2;
	r.r[2] = 50;
	r.r[6] = (uint64_t)code + 3;
	run_loop(&r, code);
	for (unsigned i = 0; i < 50; i++)
		sum += 1 + 2 * i;
	check_eq(r.r[0], sum, "a loop that changes itself");
	memcpy(code, loop, sizeof(loop));
	r.r[0] = 0;
	r.r[2] = 50;
	r.r[6] = AREA;
	run_loop(&r, code);
	check_eq(r.r[0], 50, "and the same that does not");
	r.r[0] = 0;
	r.r[2] = 50;
	r.r[6] = (uint64_t)code + 3;
	run_loop(&r, code);
	check_eq(r.r[0], sum, "and again does");
}

/* An unmasked exception of the n-th round's addition; pointers and counter in registers of all kinds. */
static unsigned xm_rounds;

static void on_xm(struct frame *f)
{
	uint32_t csr = 0x1f80;

	note(f);
	xm_rounds = (unsigned)f->r10;
	__asm__ volatile("ldmxcsr %0" : : "m"(csr));
}

static void test_float(void)
{
	uint64_t *a = (uint64_t *)AREA, n = 0;
	uint32_t csr = 0x1f80 & ~0x200u; /* #ZE of divisions unmasked */

	for (unsigned i = 0; i < 800; i++)
		a[i] = i == 517 ? 0 : 0x3ff0000000000000; /* 0.0, 1.0 */
	write_cr4(read_cr4() | 0x600);
	set_handler(XM, on_xm);
	__asm__ volatile("ldmxcsr %2\n\t"
			 "mov %1, %%r9; xor %%r10d, %%r10d; mov $1, %%r11d; xorpd %%xmm1, %%xmm1\n"
			 "1: cvtsi2sd %%r11, %%xmm0\n\t"
			 "divsd (%%r9), %%xmm0\n\t"
			 "movapd %%xmm0, %%xmm2\n\t"
			 "minsd %%xmm2, %%xmm1\n\t"
			 "add $8, %%r9\n\t"
			 "add $1, %%r10\n\t"
			 "cmp $800, %%r10\n\t"
			 "jne 1b\n\t"
			 "mov %%r10, %0"
			 : "=r"(n)
			 : "r"(a), "m"(csr)
			 : "r9", "r10", "r11", "memory", "cc");
	set_handler(XM, NULL);
	check_eq(xm_rounds, 517, "an exception of the 517th round has that round's registers");
	check_eq(n, 800, "and the loop goes on");
}

static void map_all(uint64_t va, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i += 0x1000)
		map(va + i, (uintptr_t)alloc_page(), PT_P | PT_W);
}

void guest_main(void)
{
	map_all(AREA, AREA_BYTES);
	map_all(COPY, 0x2000);
	map_all(CODE, CODE_BYTES);
	at = (uint8_t *)CODE;
	test_random();
	test_interrupted();
	test_carry();
	test_own_code();
	test_float();
	done();
}
