/* SPDX-License-Identifier: Apache-2.0 */
/* Four-level paging: rights, sizes, A and D bits, error codes, the TLB's rules.  SDM vol. 3 ch. 4. */
#include "guest.h"

#define CR4_PGE	  0x80ul
#define CR4_SMEP  (1ul << 20)
#define CR4_SMAP  (1ul << 21)
#define CR4_PCIDE (1ul << 17)

static uint8_t *page;		      /* one physical page, mapped for tests */
static const uint64_t at = TEST_BASE; /* where it is mapped */
#define AT ((void *)TEST_BASE)

static void execute(void *p)
{
	((void (*)(void))p)();
}

static void load_cr3(void *v)
{
	write_cr3((uintptr_t)v);
}

static void load_cr4(void *v)
{
	write_cr4((uintptr_t)v);
}

static void user_read(void *p)
{
	(void)*(volatile uint64_t *)p;
	user_return(0);
}

static void user_write(void *p)
{
	*(volatile uint64_t *)p = 1;
	user_return(0);
}

static void user_execute(void *p)
{
	((void (*)(void))p)();
	user_return(0);
}

/* Returns what the function at @p returns. */
static void user_call(void *p)
{
	uint32_t v;

	__asm__ volatile("call *%1" : "=&a"(v) : "r"(p) : "memory");
	user_return(v);
}

/* At @code: a function that returns @v. */
static void put_function(uint8_t *code, uint32_t v)
{
	code[0] = 0xb8;
	memcpy(code + 1, &v, 4);
	code[5] = 0xc3;
}

static bool user_gets(uint64_t va, uint32_t want)
{
	word v = 0;

	return call_user(user_call, (void *)va, &v).vector == -1 && v == want;
}

static uint64_t flags_of(uint64_t va)
{
	return *pte(va, 1) & (PT_A | PT_D);
}

static void test_rights(void)
{
	*page = 0xc3; /* RET */
	map(at, (uintptr_t)page, PT_P | PT_W | PT_U);
	check_fault(catch (touch_read, AT), -1, 0, "supervisor reads a user page");
	check_fault(call_user(user_read, AT, NULL), -1, 0, "user reads");
	check_fault(call_user(user_write, AT, NULL), -1, 0, "user writes");
	*page = 0xc3;
	check_fault(call_user(user_execute, AT, NULL), -1, 0, "user executes");
	map(at, (uintptr_t)page, PT_P | PT_U);
	check_fault(call_user(user_write, AT, NULL), PF, 7, "user writes read-only");
	check_fault(catch (touch_write, AT), PF, 3, "supervisor writes read-only, WP");
	write_cr0(read_cr0() & ~0x10000ul);
	check_fault(catch (touch_write, AT), -1, 0, "supervisor writes read-only, no WP");
	write_cr0(read_cr0() | 0x10000);
	check_fault(catch (touch_write, AT), PF, 3, "WP on again");
	map(at, (uintptr_t)page, PT_P | PT_W);
	check_fault(call_user(user_read, AT, NULL), PF, 5, "user reads a supervisor page");
	check_fault(call_user(user_execute, AT, NULL), PF, 0x15, "user executes a supervisor page");
	map(at, (uintptr_t)page, PT_P | PT_W | PT_NX);
	check_fault(catch (execute, AT), PF, 0x11, "NX");
	check_fault(catch (touch_write, AT), -1, 0, "NX pages can be written");
	map(at, 0, 0);
	check_fault(catch (touch_read, AT), PF, 0, "read of nothing");
	check_fault(catch (touch_write, AT), PF, 2, "write of nothing");
	check_fault(catch (execute, AT), PF, 0x10, "fetch of nothing");
	check_fault(call_user(user_write, AT, NULL), PF, 6, "user write of nothing");
}

/* Rights are the AND over all levels. */
static void test_levels(void)
{
	uint64_t *pde = pte(at, 2), *pdpte = pte(at, 3), *pml4e = pte(at, 4);
	struct {
		uint64_t *e;
		const char *ro, *super, *nx, *absent;
	} const levels[] = {
		{ pde, "PDE read-only", "PDE supervisor", "PDE NX", "PDE absent" },
		{ pdpte, "PDPTE read-only", "PDPTE supervisor", "PDPTE NX", "PDPTE absent" },
		{ pml4e, "PML4E read-only", "PML4E supervisor", "PML4E NX", "PML4E absent" },
	};

	*page = 0xc3;
	map(at, (uintptr_t)page, PT_P | PT_W | PT_U);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t old = *levels[i].e;

		*levels[i].e = old & ~PT_W;
		invlpg(AT);
		check_fault(call_user(user_write, AT, NULL), PF, 7, levels[i].ro);
		*levels[i].e = old & ~PT_U;
		invlpg(AT);
		check_fault(call_user(user_read, AT, NULL), PF, 5, levels[i].super);
		*levels[i].e = old | PT_NX;
		invlpg(AT);
		check_fault(catch (execute, AT), PF, 0x11, levels[i].nx);
		*levels[i].e = 0;
		invlpg(AT);
		check_fault(catch (touch_read, AT), PF, 0, levels[i].absent);
		*levels[i].e = old;
		invlpg(AT);
	}
}

static void test_reserved(void)
{
	unsigned bits = cpuid(0x80000008, 0).a & 0xff;
	uint64_t *pdpte = pte(at, 3), old = *pdpte, *pml4e = pte(at, 4), old4 = *pml4e;

	if (bits < 52) {
		map(at, (uintptr_t)page | 1ull << bits, PT_P | PT_W);
		check_fault(catch (touch_read, AT), PF, 9, "reserved address bit");
	}
	map(at, (uintptr_t)page, PT_P | PT_W);
	*pml4e = old4 | PT_PS;
	invlpg(AT);
	check_fault(catch (touch_read, AT), PF, 9, "PS in a PML4E");
	*pml4e = old4;
	*pte(at + (1 << 21), 2) = 0x200000 | 1 << 13 | PT_P | PT_PS;
	check_fault(catch (touch_read, (void *)(at + (1 << 21))), PF, 9, "reserved bit of a 2M page");
	*pte(at + (1 << 21), 2) = 0;
	*pdpte = old;
	invlpg(AT);
	wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ull);
	map(at, (uintptr_t)page, PT_P | PT_W | PT_NX);
	write_cr3(read_cr3());
	struct fault f = catch (touch_read, AT);
	wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
	check_fault(f, PF, 9, "NX bit is reserved without EFER.NXE");
	write_cr3(read_cr3());
}

static void test_accessed_dirty(void)
{
	map(at, (uintptr_t)page, PT_P | PT_W);
	*pte(at, 2) &= ~PT_A;
	*pte(at, 4) &= ~PT_A;
	check_eq(flags_of(at), 0, "A and D start clear");
	touch_read(AT);
	check_eq(flags_of(at), PT_A, "a read sets A");
	check(*pte(at, 2) & PT_A, "in the PDE too");
	check(*pte(at, 4) & PT_A, "in the PML4E too");
	touch_write(AT);
	check_eq(flags_of(at), PT_A | PT_D, "a write sets D");
	*pte(at, 1) &= ~PT_D;
	invlpg(AT);
	touch_write(AT);
	check_eq(flags_of(at), PT_A | PT_D, "D is set again after INVLPG");
	map(at, (uintptr_t)page, PT_P);
	(void)catch (touch_write, AT);
	check(!(flags_of(at) & PT_D), "a refused write does not set D");
	/* Read-modify-write instructions set D even if they write nothing new. */
	map(at, (uintptr_t)page, PT_P | PT_W);
	*(volatile uint64_t *)page = 5;
	__asm__ volatile("lock cmpxchg %%rcx, (%0)"
			 :
			 : "r"(at), "a"(7ull), "c"(9ull)
			 : "memory", "cc");
	check_eq(flags_of(at), PT_A | PT_D, "a failing CMPXCHG sets D");
	map(at, (uintptr_t)page, PT_P | PT_W);
	*page = 0xc3;
	execute(AT);
	check_eq(flags_of(at), PT_A, "a fetch sets A");
}

static void test_sizes(void)
{
	uint64_t two = at + (2ull << 30), one = at + (8ull << 30);
	volatile uint64_t *p = (void *)(two + 0x123000), *q = (void *)(one + 0x345678);

	/* RAM may end at 64 MiB: 2M page at 32 MiB, 1G page at 0 */
	*pte(two, 2) = 0x2000000 | PT_P | PT_W | PT_PS;
	*p = 0x1122334455667788;
	check_eq(*(volatile uint64_t *)0x2123000, 0x1122334455667788, "2M page");
	check((*pte(two, 2) & (PT_A | PT_D)) == (PT_A | PT_D), "A and D of a 2M page");
	*pte(two, 2) = 0x2200000 | PT_P | PT_W | PT_PS;
	invlpg((void *)(two + 0x1ff000)); /* any address of the page */
	*p = 42;
	check_eq(*(volatile uint64_t *)0x2323000, 42, "INVLPG drops all of a 2M page");
	*(volatile uint64_t *)0x2124008 = 77;
	*pte(two, 2) = 0;
	invlpg((void *)two);
	map(two, 0x2124000, PT_P);
	check_eq(*(volatile uint64_t *)(two + 8), 77, "a 2M page becomes 4K pages");
	if (cpuid(0x80000001, 0).d & 1 << 26) {
		*pte(one, 3) = 0 | PT_P | PT_W | PT_PS;
		*(volatile uint64_t *)0x345678 = 0;
		*(volatile uint64_t *)0x2345678 = 99;
		check_eq(*(volatile uint64_t *)(one + 0x2345678), 99, "1G page");
		check_eq(*q, *(volatile uint64_t *)0x345678, "1G page, low part");
		*pte(one, 3) = 0;
		invlpg((void *)(one + 0x3000000));
		check_fault(catch (touch_read, (void *)q), PF, 0, "INVLPG drops a 1G page");
	} else {
		skip("1G page", "not shown");
	}
}

static void test_crossing(void)
{
	uint8_t *second = alloc_page();
	struct fault f;
	volatile uint64_t *p = (void *)(at + 0xffc);

	map(at, (uintptr_t)page, PT_P | PT_W);
	map(at + 4096, (uintptr_t)second, PT_P | PT_W);
	*p = 0x1122334455667788;
	check(*(uint32_t *)(page + 0xffc) == 0x55667788 && *(uint32_t *)second == 0x11223344,
	      "a write across pages");
	check_eq(*p, 0x1122334455667788, "a read across pages");
	__asm__ volatile("lock addq $1, %0" : "+m"(*p));
	check_eq(*p, 0x1122334455667789, "a locked operation across pages");
	map(at + 4096, 0, 0);
	*(uint32_t *)(page + 0xffc) = 0xaaaaaaaa;
	f = catch (touch_write, (void *)p);
	check_fault(f, PF, 2, "the second page is missing");
	check_eq(f.cr2, at + 4096, "CR2 is in the second page");
	check_eq(*(uint32_t *)(page + 0xffc), 0xaaaaaaaa, "nothing was written to the first");
	/* code across pages */
	page[0xffe] = 0xb8; /* MOV EAX, imm32 */
	page[0xfff] = 0x78;
	second[0] = 0x56;
	second[1] = 0x34;
	second[2] = 0x12;
	second[3] = 0xc3;
	f = catch (execute, (void *)(at + 0xffe));
	check_fault(f, PF, 0x10, "a fetch into a missing page");
	check(f.cr2 == at + 4096 && f.ip == at + 0xffe, "CR2 and RIP of that fetch");
	map(at + 4096, (uintptr_t)second, PT_P);
	uint32_t v;
	__asm__ volatile("call *%1" : "=&a"(v) : "r"(at + 0xffe) : "memory");
	check_eq(v, 0x12345678, "code across pages");
}

static void test_tlb(void)
{
	uint8_t *other = alloc_page();
	volatile uint64_t *p = AT;

	*(uint64_t *)page = 1;
	*(uint64_t *)other = 2;
	map(at, (uintptr_t)page, PT_P | PT_W);
	check_eq(*p, 1, "first mapping");
	map(at, (uintptr_t)other, PT_P | PT_W);
	check_eq(*p, 2, "INVLPG");
	*pte(at, 1) = (uintptr_t)page | PT_P | PT_W;
	write_cr3(read_cr3());
	check_eq(*p, 1, "MOV CR3 drops non-global entries");
	write_cr4(read_cr4() | CR4_PGE);
	map(at, (uintptr_t)page, PT_P | PT_W | PT_G);
	check_eq(*p, 1, "global mapping");
	*pte(at, 1) = (uintptr_t)other | PT_P | PT_W | PT_G;
	write_cr4(read_cr4() & ~CR4_PGE);
	check_eq(*p, 2, "clearing CR4.PGE drops global entries");
	write_cr4(read_cr4() | CR4_PGE);
	map(at, (uintptr_t)page, PT_P | PT_W | PT_G);
	check_eq(*p, 1, "global again");
	map(at, (uintptr_t)other, PT_P | PT_W | PT_G);
	check_eq(*p, 2, "INVLPG drops global entries");
	/* Code through a changed mapping. */
	static const uint8_t code1[] = { 0xb8, 1, 0, 0, 0, 0xc3 },
			     code2[] = { 0xb8, 2, 0, 0, 0, 0xc3 };
	uint32_t v[2];
	memcpy(page, code1, sizeof(code1));
	memcpy(other, code2, sizeof(code2));
	for (unsigned i = 0; i < 2; i++) {
		map(at, (uintptr_t)(i ? other : page), PT_P);
		__asm__ volatile("call *%1" : "=&a"(v[i]) : "r"(at) : "memory");
	}
	check(v[0] == 1 && v[1] == 2, "code follows the mapping");
	bool is_right = true;
	for (unsigned i = 0; i < 8; i++) {
		uint64_t va = at + 0x25800000; /* far from large pages */

		map(va, (uintptr_t)(i & 1 ? other : page), PT_P | PT_U);
		for (unsigned k = 0; k < 3; k++)
			is_right &= user_gets(va, 1 + (i & 1));
	}
	check(is_right, "code of users follows the mapping");
	/* A failed access must not be remembered. */
	map(at, 0, 0);
	(void)catch (touch_read, AT);
	*pte(at, 1) = (uintptr_t)page | PT_P | PT_W;
	check_fault(catch (touch_read, AT), -1, 0, "absent entries are not cached");
	write_cr4(read_cr4() & ~CR4_PGE);
}

static void test_smep_smap(void)
{
	struct cpuid c = cpuid(7, 0);

	*page = 0xc3;
	map(at, (uintptr_t)page, PT_P | PT_W | PT_U);
	if (c.b & 1 << 7) {
		write_cr4(read_cr4() | CR4_SMEP);
		check_fault(catch (execute, AT), PF, 0x11, "SMEP");
		check_fault(catch (touch_read, AT), -1, 0, "SMEP does not touch data");
		check_fault(call_user(user_execute, AT, NULL), -1, 0, "SMEP does not touch users");
		write_cr4(read_cr4() & ~CR4_SMEP);
		check_fault(catch (execute, AT), -1, 0, "SMEP off");
	} else {
		skip("SMEP", "not shown");
		check_fault(catch (load_cr4, (void *)(read_cr4() | CR4_SMEP)), GP, 0,
			    "CR4.SMEP is reserved then");
	}
	if (c.b & 1 << 20) {
		write_cr4(read_cr4() | CR4_SMAP);
		check_fault(catch (touch_read, AT), PF, 1, "SMAP, read");
		check_fault(catch (touch_write, AT), PF, 3, "SMAP, write");
		__asm__ volatile("stac");
		check_fault(catch (touch_write, AT), -1, 0, "STAC");
		__asm__ volatile("clac");
		check_fault(catch (touch_read, AT), PF, 1, "CLAC");
		check_fault(call_user(user_read, AT, NULL), -1, 0, "SMAP does not touch users");
		write_cr4(read_cr4() & ~CR4_SMAP);
	} else {
		skip("SMAP", "not shown");
	}
}

static uint64_t second_space(void)
{
	extern uint64_t pml4[];
	uint64_t *t = alloc_page();

	memcpy(t, pml4, 4096);
	t[TEST_BASE >> 39 & 511] = 0;
	return (uintptr_t)t;
}

static void test_address_spaces(void)
{
	uint64_t first = read_cr3(), second = second_space(), *l4 = (void *)second;
	uint64_t *l3 = alloc_page(), *l2 = alloc_page(), *l1 = alloc_page();
	uint8_t *other = alloc_page();
	volatile uint64_t *p = AT;

	l4[TEST_BASE >> 39 & 511] = (uintptr_t)l3 | 7;
	l3[0] = (uintptr_t)l2 | 7;
	l2[0] = (uintptr_t)l1 | 7;
	l1[0] = (uintptr_t)other | 3;
	*(uint64_t *)page = 11;
	*(uint64_t *)other = 22;
	map(at, (uintptr_t)page, PT_P | PT_W);
	bool is_right = true;
	for (unsigned i = 0; i < 20; i++) {
		write_cr3(second);
		is_right &= *p == 22;
		write_cr3(first);
		is_right &= *p == 11;
	}
	check(is_right, "two address spaces");
	if (!(cpuid(1, 0).c & 1 << 17)) {
		skip("PCID", "not shown");
		return;
	}
	write_cr4(read_cr4() | CR4_PCIDE);
	is_right = true;
	for (unsigned i = 0; i < 20; i++) {
		write_cr3(second | 5 | 1ull << 63);
		is_right &= *p == 22;
		write_cr3(first | 0 | 1ull << 63);
		is_right &= *p == 11;
	}
	check(is_right, "two address spaces by PCID");
	/* Code at one address of both, for users and the supervisor. */
	put_function(page, 1);
	put_function(other, 2);
	*pte(at, 1) |= PT_U;
	l1[0] |= PT_U;
	invlpg(AT);
	is_right = true;
	for (unsigned i = 0; i < 20; i++) {
		uint32_t v, want = i & 1 ? 1 : 2;

		write_cr3((i & 1 ? first : second | 5) | (i < 2 ? 0 : 1ull << 63));
		__asm__ volatile("call *%1" : "=&a"(v) : "r"(at) : "memory");
		is_right &= v == want && user_gets(at, want);
	}
	check(is_right, "code of two address spaces by PCID");
	/* Without bit 63 the PCID's entries go. */
	*(uint64_t *)page = 11;
	*(uint64_t *)other = 22;
	write_cr3(second | 5 | 1ull << 63);
	(void)*p;
	l1[0] = (uintptr_t)page | 3;
	write_cr3(first | 1ull << 63);
	write_cr3(second | 5);
	check_eq(*p, 11, "MOV CR3 without bit 63 drops the PCID");
	if (cpuid(7, 0).b & 1 << 10) {
		struct {
			uint64_t pcid, address;
		} d = { 5, at };

		l1[0] = (uintptr_t)other | 3;
		__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(0ul) : "memory");
		check_eq(*p, 22, "INVPCID of an address");
		l1[0] = (uintptr_t)page | 3;
		__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(1ul) : "memory");
		check_eq(*p, 11, "INVPCID of a context");
		l1[0] = (uintptr_t)other | 3;
		__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(2ul) : "memory");
		check_eq(*p, 22, "INVPCID of everything");
		l1[0] = (uintptr_t)page | 3;
		__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(3ul) : "memory");
		check_eq(*p, 11, "INVPCID of all but global");
		/* From another address space. */
		static const char *const names[] = {
			"INVPCID of an address of another context", "INVPCID of another context",
			"INVPCID of everything, from another context",
			"INVPCID of all but global, from another context"
		};
		put_function(page, 1);
		put_function(other, 2);
		for (uint64_t type = 0; type < 4; type++) {
			l1[0] = (uintptr_t)page | PT_P | PT_U;
			write_cr3(second | 5);
			is_right = *(uint8_t *)AT == 0xb8 && user_gets(at, 1) && user_gets(at, 1);
			write_cr3(first | 1ull << 63);
			l1[0] = (uintptr_t)other | PT_P | PT_U;
			__asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(type) : "memory");
			write_cr3(second | 5 | 1ull << 63);
			is_right &= user_gets(at, 2) && ((uint8_t *)AT)[1] == 2;
			check(is_right, names[type]);
		}
	} else {
		skip("INVPCID", "not shown");
	}
	write_cr3(first);
	check_fault(catch (load_cr3, (void *)(first | 1ull << 62)), GP, 0, "#GP reserved CR3 bit");
	write_cr4(read_cr4() & ~CR4_PCIDE);
}

/* A string of page faults that map on demand: the handler changes the tables and returns. */
static volatile unsigned demand;

static void on_demand(struct frame *f)
{
	uint64_t va = read_cr2();

	demand++;
	*pte(va, 1) = (uintptr_t)page | PT_P | PT_W; /* no INVLPG needed after an absent entry */
}

static void test_demand(void)
{
	uint64_t va = at + 0x200000, sum = 0;

	for (unsigned i = 0; i < 64; i++)
		*pte(va + i * 4096, 1) = 0;
	*(uint64_t *)page = 3;
	set_handler(PF, on_demand);
	for (unsigned i = 0; i < 64; i++)
		sum += *(volatile uint64_t *)(va + i * 4096);
	set_handler(PF, NULL);
	check(demand == 64 && sum == 192, "demand paging");
}

void guest_main(void)
{
	page = alloc_page();
	test_rights();
	test_levels();
	test_reserved();
	test_accessed_dirty();
	test_sizes();
	test_crossing();
	test_tlb();
	test_smep_smap();
	test_address_spaces();
	test_demand();
}
