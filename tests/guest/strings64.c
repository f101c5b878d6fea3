/* SPDX-License-Identifier: Apache-2.0 */
/* String instructions: counts, directions, overlaps, address sizes, faults in the middle, ports. */
#include "guest.h"

#define A (TEST_BASE + 0x10000)
#define B (TEST_BASE + 0x20000)

struct regs {
	uint64_t cx, si, di, ax;
};

#define STRING(name, insn)                                                                         \
	static void name(void *arg)                                                                \
	{                                                                                          \
		struct regs *r = arg;                                                              \
		__asm__ volatile(insn "\n\tcld\n\tmov %%rcx, (%%rbx)\n\tmov %%rsi, 8(%%rbx)\n\t"   \
				      "mov %%rdi, 16(%%rbx)\n\tmov %%rax, 24(%%rbx)"               \
				 : "+c"(r->cx), "+S"(r->si), "+D"(r->di), "+a"(r->ax)              \
				 : "b"(r)                                                          \
				 : "memory", "cc");                                                \
	}
STRING(rep_movsb, "rep movsb")
STRING(rep_movsq, "rep movsq")
STRING(rep_movsd_down, "std; rep movsl")
STRING(rep_movsb_down, "std; rep movsb")
STRING(rep_stosb, "rep stosb")
STRING(rep_stosq, "rep stosq")
STRING(rep_stosd, "rep stosl")
STRING(rep_stosw_down, "std; rep stosw")
STRING(repe_cmpsb, "repe cmpsb")
STRING(repne_scasb, "repne scasb")
STRING(repe_scasw, "repe scasw")
STRING(rep_lodsb, "rep lodsb")
STRING(addr32_movsb, "addr32 rep movsb")
STRING(addr32_stosb, "addr32 rep stosb")

/* A fault's registers are read from the frame. */
static struct regs at_fault;
static uint64_t fault_ip, fault_cr2;

static void on_fault(struct frame *f)
{
	at_fault = (struct regs){ f->cx, f->si, f->di, f->ax };
	fault_ip = f->ip;
	fault_cr2 = read_cr2();
	*pte(fault_cr2 & ~0xfffull, 1) |= PT_P | PT_W;
	invlpg((void *)fault_cr2);
}

static void fill(volatile uint8_t *p, unsigned n, unsigned seed)
{
	for (unsigned i = 0; i < n; i++)
		p[i] = (uint8_t)(i * 7 + seed);
}

static bool is_copy(uint64_t d, uint64_t s, unsigned n)
{
	return !memcmp((void *)d, (void *)s, n);
}

static void test_plain(void)
{
	struct regs r = { 5000, A, B, 0 };

	fill((void *)A, 0x3000, 1);
	memset((void *)B, 0, 0x3000);
	rep_movsb(&r);
	check(is_copy(B, A, 5000) && r.cx == 0 && r.si == A + 5000 && r.di == B + 5000,
	      "REP MOVSB");
	check_eq(*(uint8_t *)(B + 5000), 0, "and not a byte more");
	r = (struct regs){ 1000, A + 3, B + 1, 0 };
	rep_movsq(&r);
	check(is_copy(B + 1, A + 3, 8000) && r.cx == 0 && r.di == B + 8001,
	      "REP MOVSQ, misaligned");
	r = (struct regs){ 0, 0x123, 0x456, 0 };
	rep_movsb(&r);
	check(r.cx == 0 && r.si == 0x123 && r.di == 0x456, "RCX = 0 does nothing, not even fault");
	r = (struct regs){ 1500, A + 5996, B + 5996, 0 };
	memset((void *)B, 0, 0x3000);
	rep_movsd_down(&r);
	check(is_copy(B, A, 6000) && r.si == A - 4 && r.di == B - 4, "REP MOVSD downwards");
	fill((void *)A, 256, 3);
	r = (struct regs){ 255, A, A + 1, 0 };
	rep_movsb(&r);
	bool is_same = true;
	for (unsigned i = 0; i < 256; i++)
		is_same &= *(uint8_t *)(A + i) == 3;
	check(is_same, "overlap by one byte propagates it");
	fill((void *)A, 256, 3);
	r = (struct regs){ 248, A + 247, A + 255, 0 };
	rep_movsb_down(&r);
	is_same = true;
	for (unsigned i = 0; i < 256; i++)
		is_same &= *(uint8_t *)(A + i) == (uint8_t)((i < 8 ? i : i - 8) * 7 + 3);
	check(is_same, "overlap downwards moves");
	r = (struct regs){ 1001, 0, A + 1, 0x1122334455667788 };
	rep_stosq(&r);
	check(*(uint64_t *)(A + 1 + 8000) == 0x1122334455667788 && r.di == A + 1 + 8008,
	      "REP STOSQ");
	r = (struct regs){ 3, 0, A, 0x99aabbcc };
	rep_stosd(&r);
	check(*(uint32_t *)(A + 8) == 0x99aabbcc && r.di == A + 12, "REP STOSD");
	r = (struct regs){ 100, 0, A + 198, 0xbeef };
	rep_stosw_down(&r);
	check(*(uint16_t *)A == 0xbeef && r.di == A - 2, "REP STOSW downwards");
}

STRING(rep_movsw, "rep movsw")
STRING(rep_movsd, "rep movsl")
STRING(rep_stosw, "rep stosw")
STRING(repne_movsb, "repne movsb")

#define PATTERN 0x8877665544332211

/* What REP MOVS or REP STOS of @n elements leaves, element by element, upwards. */
static void model(uint8_t *d, const uint8_t *s, uint64_t n, unsigned size)
{
	static const uint64_t pattern = PATTERN;

	for (uint64_t i = 0; i < n * size; i += size)
		for (unsigned k = 0; k < size; k++)
			d[i + k] = s ? s[i + k] : ((const uint8_t *)&pattern)[k];
}

/* One instruction on B + @to, and from A + @from, against model() on a copy. */
static bool is_right(void (*insn)(void *), bool is_movs, unsigned size, uint64_t n, unsigned from,
		     unsigned to)
{
	static uint8_t want[0x3000], source[0x3000];
	struct regs r = { n, is_movs ? A + from : 7, B + to, PATTERN };
	bool is_same = true;

	memcpy(want, (void *)B, sizeof(want));
	memcpy(source, (void *)A, sizeof(source));
	model(want + to, is_movs ? source + from : NULL, n, size);
	insn(&r);
	for (unsigned i = 0; i < sizeof(want); i += 8)
		is_same &= *(uint64_t *)(B + i) == *(uint64_t *)(want + i);
	return is_same && r.cx == 0 && r.di == B + to + n * size && r.ax == PATTERN &&
	       r.si == (is_movs ? A + from + n * size : 7);
}

/* All element sizes, with counts and places around those where a run ends: the page, a page's bytes, nothing. */
static void test_short(void)
{
	static const struct {
		void (*insn)(void *);
		bool is_movs;
		unsigned size;
	} kinds[] = { { rep_movsb, true, 1 },  { rep_movsw, true, 2 },	 { rep_movsd, true, 4 },
		      { rep_movsq, true, 8 },  { repne_movsb, true, 1 }, { rep_stosb, false, 1 },
		      { rep_stosw, false, 2 }, { rep_stosd, false, 4 },	 { rep_stosq, false, 8 } };
	static const uint16_t bytes[] = { 0, 8, 16, 64, 248, 4088, 4096, 4104, 6000 };
	static const uint16_t places[] = { 0, 1, 7, 4032, 4088, 4089, 4095 };
	unsigned nwrong = 0;

	for (unsigned i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		for (unsigned k = 0; k < sizeof(bytes) / sizeof(*bytes); k++)
			for (unsigned p = 0; p < sizeof(places) / sizeof(*places); p++) {
				unsigned from =
					places[(p + i + k) % (sizeof(places) / sizeof(*places))];

				fill((void *)A, 0x3000, k + p);
				fill((void *)B, 0x3000, k + 2 * p + 1);
				nwrong += !is_right(kinds[i].insn, kinds[i].is_movs, kinds[i].size,
						    bytes[k] / kinds[i].size, from, places[p]);
			}
	check_eq(nwrong, 0, "REP MOVS and REP STOS: sizes, counts, places");

	uint64_t flags, n = 8, d = B, s = A;
	for (unsigned i = 0; i < 2; i++)
		__asm__ volatile("push %4; popf; rep movsb; mov $8, %%ecx; rep stosb; pushf; pop %0"
				 : "=&r"(flags), "+c"(n), "+D"(d), "+S"(s)
				 : "r"(i ? 0x8d7ull : 2ull), "a"(0)
				 : "memory", "cc");
	check_eq(flags & 0x8d5, 0x8d5, "they keep all flags");
}

/* A page that strings were just written to becomes read-only; what ring 3 may not touch. */
static void user_stos(void *arg)
{
	struct regs r = { 8, 0, (uintptr_t)arg, 0x11 };

	rep_stosb(&r);
}

static void test_short_faults(void)
{
	struct regs r;

	set_handler(PF, on_fault);
	for (unsigned i = 0; i < 3; i++) {
		r = (struct regs){ 16, A, B, 0 };
		rep_movsb(&r);
	}
	*pte(B, 1) &= ~PT_W;
	invlpg((void *)B);
	fault_cr2 = 0;
	r = (struct regs){ 16, A, B + 8, 0 };
	rep_movsb(&r);
	check(fault_cr2 == B + 8 && at_fault.cx == 16 && at_fault.si == A && is_copy(B + 8, A, 16),
	      "REP MOVSB into a page that has become read-only");
	*pte(A, 1) &= ~PT_P;
	invlpg((void *)A);
	fault_cr2 = 0;
	r = (struct regs){ 2, A + 4, B + 8, 0 };
	rep_movsd(&r);
	check(fault_cr2 == A + 4 && at_fault.cx == 2 && at_fault.di == B + 8,
	      "REP MOVSD from a page that is gone");
	set_handler(PF, NULL);
	r = (struct regs){ 8, 0, B, 0x22 };
	rep_stosb(&r);
	check_fault(call_user(user_stos, (void *)B, NULL), PF, 7,
		    "#PF REP STOSB in ring 3 on a page of ring 0");
	check_eq(*(uint8_t *)B, 0x22, "which is unchanged");
}

static void test_compare(void)
{
	struct regs r = { 0x1000, A, B, 0 };

	fill((void *)A, 0x1000, 9);
	fill((void *)B, 0x1000, 9);
	*(uint8_t *)(B + 0x234) ^= 1;
	repe_cmpsb(&r);
	check(r.cx == 0x1000 - 0x235 && r.si == A + 0x235 && r.di == B + 0x235,
	      "REPE CMPSB stops behind it");
	memset((void *)A, 1, 0x1000);
	*(uint8_t *)(A + 0xabc) = 0x42;
	r = (struct regs){ ~0ull, 0, A, 0x42 };
	repne_scasb(&r);
	check(r.di == A + 0xabd && r.cx == ~0ull - 0xabd, "REPNE SCASB, RCX = -1");
	r = (struct regs){ 0x800, 0, A, 0x0101 };
	repe_scasw(&r);
	check(r.di == A + 0xabe && r.cx == 0x800 - 0xabe / 2, "REPE SCASW");
	r = (struct regs){ 17, A + 0xaac, 0, 0xff00 };
	rep_lodsb(&r);
	check(r.ax == 0xff42 && r.cx == 0 && r.si == A + 0xabd, "REP LODSB");
}

#define COMPARE(name, insn)                                                                        \
	static uint64_t name(struct regs *r)                                                       \
	{                                                                                          \
		uint64_t flags;                                                                    \
		__asm__ volatile("cmp %%eax, %%eax\n\t" insn "\n\tpushf\n\tpop %0"                 \
				 : "=r"(flags), "+c"(r->cx), "+S"(r->si), "+D"(r->di)              \
				 : "a"(r->ax)                                                      \
				 : "memory", "cc");                                                \
		return flags & 0x8d5;                                                              \
	}
COMPARE(cmpsb_e, "repe cmpsb")
COMPARE(cmpsw_ne, "repne cmpsw")
COMPARE(cmpsl_e, "repe cmpsl")
COMPARE(cmpsq_e, "repe cmpsq")
COMPARE(cmpsq_ne, "repne cmpsq")
COMPARE(scasb_e, "repe scasb")
COMPARE(scasw_ne, "repne scasw")
COMPARE(scasl_ne, "repne scasl")
COMPARE(scasq_e, "repe scasq")
COMPARE(cmp_q, "cmp %%rcx, %%rax")
COMPARE(cmp_l, "cmp %%ecx, %%eax")

/* Over several pages that begin in different places, elements over their ends included; flags of the last. */
static void test_long_compare(void)
{
	struct regs r, one;
	uint64_t flags, n;

	fill((void *)A, 0x5000, 3);
	memcpy((void *)(B + 5), (void *)(A + 0x7f3), 0x4000);
	r = (struct regs){ 0x4000, A + 0x7f3, B + 5, 0 };
	check(cmpsb_e(&r) == 0x44 && !r.cx && r.si == A + 0x47f3 && r.di == B + 0x4005,
	      "REPE CMPSB over five pages, all equal");
	r = (struct regs){ 0x4000 / 8, A + 0x7f3, B + 5, 0 };
	check(cmpsq_e(&r) == 0x44 && !r.cx && r.si == A + 0x47f3,
	      "REPE CMPSQ over five pages, all equal");
	*(uint32_t *)(B + 5 + 0x3004) = 0x7fffffff;
	*(uint32_t *)(A + 0x7f3 + 0x3004) = 0x80000000;
	r = (struct regs){ 0x1000, A + 0x7f3, B + 5, 0 };
	flags = cmpsl_e(&r);
	one = (struct regs){ 0x7fffffff, 0, 0, 0x80000000 };
	check(r.cx == 0x1000 - 0x3008 / 4 && r.di == B + 5 + 0x3008 && flags == cmp_l(&one),
	      "REPE CMPSL: flags of the one that differs");
	r = (struct regs){ 0x800, A + 0x7f3, B + 5, 0 };
	flags = cmpsq_e(&r);
	one = (struct regs){ *(uint64_t *)(B + 5 + 0x3000), 0, 0, *(uint64_t *)(A + 0x7f3 + 0x3000) };
	check(r.cx == 0x800 - 0x3008 / 8 && flags == cmp_q(&one), "REPE CMPSQ, the same");
	for (unsigned i = 0; i < 0x4000; i++)
		*(uint8_t *)(B + i) = (uint8_t) ~*(uint8_t *)(A + i);
	memcpy((void *)(B + 0x3ff0), (void *)(A + 0x3ff0), 8);
	r = (struct regs){ 0x4000, A, B, 0 };
	check(cmpsw_ne(&r) == 0x44 && r.si == A + 0x3ff2 && r.di == B + 0x3ff2,
	      "REPNE CMPSW finds the first that is equal");
	r = (struct regs){ 0x4000, A, B, 0 };
	check(cmpsq_ne(&r) == 0x44 && r.si == A + 0x3ff8 && r.cx == 0x4000 - 0x3ff8 / 8,
	      "REPNE CMPSQ");

	memset((void *)A, 0x5a, 0x5000);
	*(uint64_t *)(A + 0x4ff3) = 0x1234567812345678;
	r = (struct regs){ 0x5000, 0, A + 0xff3, 0x5a };
	check(scasb_e(&r) && r.di == A + 0x4ff4 && r.cx == 0x5000 - 0x4001,
	      "REPE SCASB over pages");
	r = (struct regs){ ~0ull, 0, A + 0xff3, 0x5678 };
	check(scasw_ne(&r) == 0x44 && r.di == A + 0x4ff5,
	      "REPNE SCASW over pages, words across their ends");
	r = (struct regs){ ~0ull, 0, A + 0xff3, 0x12345678 };
	check(scasl_ne(&r) == 0x44 && r.di == A + 0x4ff7, "REPNE SCASL");
	r = (struct regs){ ~0ull, 0, A + 0xff3, 0x5a5a5a5a5a5a5a5a };
	flags = scasq_e(&r);
	n = ~0ull - r.cx;
	one = (struct regs){ 0x1234567812345678, 0, 0, 0x5a5a5a5a5a5a5a5a };
	check(n == 0x801 && r.di == A + 0x4ffb && flags == cmp_q(&one),
	      "REPE SCASQ: count and flags");
	r = (struct regs){ 0, A, B, 0 };
	check(cmpsb_e(&r) == 0x44 && r.si == A && r.di == B, "RCX = 0 compares nothing");
}

static void test_addr32(void)
{
	struct regs r = { 0x100000005, A & 0xffffffff, 0, 0 };
	uint8_t *low = alloc_page();

	fill(low, 64, 5);
	r.si = 0xabc00000000 | (uintptr_t)low;
	r.di = 0xdef00000000 | ((uintptr_t)low + 100);
	addr32_movsb(&r);
	check(!memcmp(low + 100, low, 5) && low[105] == 0, "67h: ECX, ESI, EDI");
	check(r.cx == 0 && r.si == (uintptr_t)low + 5 && r.di == (uintptr_t)low + 105,
	      "67h: upper halves are cleared");
	r = (struct regs){ 0xff00000000, 0, 0xdef00000000 | (uintptr_t)low, 1 };
	addr32_stosb(&r);
	check_eq(low[0], 5, "67h: ECX = 0 does nothing");
}

/* The destination's or the source's third page is missing; the handler maps it and the rest is done. */
static void test_faults(void)
{
	struct regs r;

	set_handler(PF, on_fault);
	fill((void *)A, 0x4000, 17);
	memset((void *)B, 0, 0x4000);
	*pte(B + 0x2000, 1) &= ~PT_P;
	invlpg((void *)(B + 0x2000));
	r = (struct regs){ 0x3000, A + 0x10, B + 0x20, 0 };
	rep_movsb(&r);
	check(at_fault.cx == 0x3000 - 0x1fe0 && at_fault.si == A + 0x1ff0 && at_fault.di == B + 0x2000,
	      "REP MOVSB: registers at a fault on the destination");
	check_eq(fault_cr2, B + 0x2000, "CR2 at that fault");
	check(is_copy(B + 0x20, A + 0x10, 0x3000) && r.cx == 0, "and the rest afterwards");
	*pte(A + 0x1000, 1) &= ~PT_P;
	invlpg((void *)(A + 0x1000));
	r = (struct regs){ 0x400, A + 4, B + 1, 0 };
	memset((void *)B, 0, 0x4000);
	rep_movsq(&r);
	check(at_fault.cx == 0x400 - 0x1ff && at_fault.si == A + 0xffc && at_fault.di == B + 0xff9,
	      "REP MOVSQ: an element across the missing source page");
	check_eq(fault_cr2, A + 0x1000, "CR2 in the second page of the element");
	check(is_copy(B + 1, A + 4, 0x2000), "and the rest afterwards, again");
	*pte(B, 1) &= ~PT_P;
	invlpg((void *)B);
	r = (struct regs){ 0x800, A + 0x1ffc, B + 0x1ffc, 0 };
	rep_movsd_down(&r);
	check(at_fault.cx == 0x400 && at_fault.di == B + 0xffc, "downwards into a missing page");
	*pte(B + 0x1000, 1) &= ~PT_W;
	invlpg((void *)(B + 0x1000));
	r = (struct regs){ 0x1000, 0, B + 0x800, 0xee };
	rep_stosb(&r);
	check(at_fault.cx == 0x800 && at_fault.di == B + 0x1000 && fault_cr2 == B + 0x1000,
	      "REP STOSB into a read-only page");
	check(*(uint8_t *)(B + 0x17ff) == 0xee && r.cx == 0, "done after the handler");
	*pte(A + 0x1000, 1) &= ~PT_P;
	invlpg((void *)(A + 0x1000));
	memset((void *)B, 5, 0x1000);
	memset((void *)A, 5, 0x1000);
	r = (struct regs){ 0x2000, A + 1, B, 0 };
	repe_cmpsb(&r);
	check(at_fault.cx == 0x2000 - 0xfff && at_fault.si == A + 0x1000,
	      "REPE CMPSB into a missing page");
	set_handler(PF, NULL);
}

static void test_ports(void)
{
	struct regs r = { 4, A, A + 64, 0 };
	static const char text[] = "# outs\n";
	uint64_t n = sizeof(text) - 1;
	const char *s = text;

	__asm__ volatile("rep outsb" : "+S"(s), "+c"(n) : "d"(0x3f8) : "memory");
	check(n == 0 && s == text + sizeof(text) - 1, "REP OUTSB");
	outb(0x3ff, 0x5a); /* the UART's scratch register */
	memset((void *)A, 0, 64);
	__asm__ volatile("rep insb" : "+D"(r.si), "+c"(r.cx) : "d"(0x3ff) : "memory");
	check(*(uint32_t *)A == 0x5a5a5a5a && *(uint8_t *)(A + 4) == 0 && r.si == A + 4,
	      "REP INSB");
	*pte(A + 0x1000, 1) &= ~(PT_P | PT_W);
	invlpg((void *)(A + 0x1000));
	set_handler(PF, on_fault);
	r.si = A + 0xffe;
	r.cx = 4;
	__asm__ volatile("rep insb" : "+D"(r.si), "+c"(r.cx) : "d"(0x3ff) : "memory");
	set_handler(PF, NULL);
	check(at_fault.cx == 2 && at_fault.di == A + 0x1000 && r.cx == 0 && *(uint8_t *)(A + 0x1001) == 0x5a,
	      "REP INSB into a missing page");
}

void guest_main(void)
{
	for (unsigned i = 0; i < 8; i++) {
		map(A + i * 4096, (uintptr_t)alloc_page(), PT_P | PT_W);
		map(B + i * 4096, (uintptr_t)alloc_page(), PT_P | PT_W);
	}
	map(A - 4096, (uintptr_t)alloc_page(), PT_P | PT_W);
	map(B - 4096, (uintptr_t)alloc_page(), PT_P | PT_W);
	test_plain();
	test_short();
	test_short_faults();
	test_compare();
	test_long_compare();
	test_addr32();
	test_faults();
	test_ports();
}
