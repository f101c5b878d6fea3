/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guests that mean no good; the last word of the command line chooses.  Those that end by
 * themselves print "reached" first; the harness knows what must become of each.
 */
#include "guest.h"

static uint32_t seed = 12345;

static uint32_t any(void) /* xorshift */
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed;
}

struct table_pointer {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

static void load_idt(uint16_t limit, uint64_t base)
{
	struct table_pointer p = { limit, base };

	__asm__ volatile("lidt %0" : : "m"(p));
}

static void do_triple(void)
{
	load_idt(0, 0);
	__asm__ volatile("ud2");
}

static void do_nothing_mapped(void)
{
	load_idt(0xfff, TEST_BASE);
	__asm__ volatile("jmp *%0" : : "r"(TEST_BASE));
}

static void do_hole(void) /* execute where no memory is, without any handler */
{
	load_idt(0xfff, 0xd0000000);
	__asm__ volatile("jmp *%0" : : "r"(0xd0001000ul));
}

static void do_recursion(void)
{
	__asm__ volatile("1: push %rax; jmp 1b");
}

static void do_page_tables(void) /* page tables in the hole, then in themselves */
{
	write_cr3(0xd0000000);
}

static void do_cr3_garbage(void)
{
	volatile uint64_t *p = alloc_page();

	for (unsigned i = 0; i < 512; i++)
		p[i] = (uint64_t)any() << 32 | any() | 1;
	write_cr3((uintptr_t)p);
}

static void do_spin(void)
{
	for (;;)
		;
}

static void do_halt(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void on_anything(struct frame *f)
{
	(void)f;
}

static void do_storm(void) /* a fault whose handler returns to it, for ever */
{
	set_handler(UD, on_anything);
	__asm__ volatile("ud2");
}

static void do_string(void) /* one instruction over 2^60 bytes */
{
	extern uint64_t pml4[];

	/* a page that holds zeros everywhere: every entry maps it */
	uint64_t *l3 = alloc_page(), *l2 = alloc_page(), *l1 = alloc_page(), *page = alloc_page();
	for (unsigned i = 0; i < 512; i++) {
		l1[i] = (uintptr_t)page | 3;
		l2[i] = (uintptr_t)l1 | 3;
		l3[i] = (uintptr_t)l2 | 3;
	}
	for (unsigned i = 1; i < 512; i++)
		pml4[i] = (uintptr_t)l3 | 3;
	__asm__ volatile("rep stosb" : : "D"(TEST_BASE), "c"(1ull << 46), "a"(0) : "memory");
}

static void do_poweroff(void)
{
	outw(0x604, 0x2000 | 5 << 10);
}

static void do_reset_cf9(void)
{
	outb(0xcf9, 2);
	outb(0xcf9, 6);
}

static void do_reset_kbd(void)
{
	outb(0x64, 0xfe);
}

static void do_exit_7(void)
{
	outl(0xf4, 7);
}

/* Ports that end or reset the machine by design. */
static bool ends_machine(uint16_t port)
{
	return (port >= 0xf4 - 3 && port < 0xf8) || (port >= 0x600 - 3 && port < 0x608) ||
	       (port >= 0xcf8 - 3 && port < 0xd00) || (port >= 0x60 - 3 && port < 0x68) ||
	       (port >= 0x92 - 3 && port <= 0x92);
}

static void do_ports(void)
{
	for (unsigned i = 0; i < 30000; i++) {
		uint16_t port = i & 1 ? any() & 0x3ff : any() & 0xffff;

		if (ends_machine(port) || (port & ~7) == 0x3f8)
			continue;
		switch (any() % 6) {
		case 0:
			outb(port, (uint8_t)any());
			break;
		case 1:
			outw(port, (uint16_t)any());
			break;
		case 2:
			outl(port, any());
			break;
		case 3:
			(void)inb(port);
			break;
		case 4:
			(void)inw(port);
			break;
		default:
			(void)inl(port);
			break;
		}
	}
}

static void do_pci(void)
{
	for (unsigned i = 0; i < 30000; i++) {
		uint32_t a = 0x80000000 | (any() % 8) << 11 | (any() & 0xfc);

		outl(0xcf8, a);
		switch (any() & 3) {
		case 0:
			outl(0xcfc, any());
			break;
		case 1:
			outb((uint16_t)(0xcfc + (any() & 3)), (uint8_t)any());
			break;
		default:
			(void)inl(0xcfc);
			break;
		}
		/* BARs lie anywhere by now; also over RAM, LAPIC and each other */
		if (!(i & 63)) {
			volatile uint32_t *p = (void *)(uintptr_t)(0xc0000000u | (any() & 0x3ffffffc));

			if (((uintptr_t)p & 0xfff00000) != LAPIC)
				*p = any();
		}
	}
}

static void do_lapic(void)
{
	lapic_enable();
	for (unsigned v = 16; v < 256; v++)
		set_handler(v, on_anything);
	for (unsigned i = 0; i < 20000; i++) {
		uint32_t reg = any() & 0xff0, v = any();

		if (reg == 0x300)
			v = (v & ~0x700u) | (any() & 1 ? 0x600 : 0); /* fixed and start-up, no INIT to self */
		if (reg == 0xf0)
			v |= 0x100;
		if (reg == 0x310)
			v |= 0x7f000000; /* CPUs that are not there */
		lapic_write(reg, v);
		(void)lapic_read(any() & 0xffc);
		*(volatile uint8_t *)(uintptr_t)(LAPIC + (any() & 0xfff)) = (uint8_t)any();
		*(volatile uint64_t *)(uintptr_t)(LAPIC + (any() & 0xff8)) = 0x100ull << 32 | 0xffffffff;
		lapic_write(0xf0, 0x1ff);
	}
	for (unsigned i = 0; i < 20000; i++) {
		*(volatile uint32_t *)0xfec00000 = any() & 0xff;
		*(volatile uint32_t *)0xfec00010 = any();
		*(volatile uint16_t *)(uintptr_t)(0xfec00000 + (any() & 0xffe)) = (uint16_t)any();
	}
}

static void msr_read(void *arg)
{
	(void)rdmsr((uint32_t)(uintptr_t)arg);
}

static void msr_write(void *arg)
{
	wrmsr((uint32_t)(uintptr_t)arg, (uint64_t)any() << 32 | any());
}

static void do_msrs(void)
{
	static const uint32_t bases[] = { 0,	 0x100,	     0x200,	 0x400,
					  0x600, 0x4b564d00, 0xc0000080, 0xc0010000 };

	for (unsigned i = 0; i < 8000; i++) {
		uint32_t msr = bases[any() & 7] + (any() & 0xff);

		catch (msr_read, (void *)(uintptr_t)msr);
		if (msr == 0xc0000080 || msr == 0x1b || (msr & ~7u) == 0x4b564d00 || (msr >> 8) == 8)
			continue; /* ends this guest rightly: no long mode, no LAPIC, things written to its memory */
		catch (msr_write, (void *)(uintptr_t)msr);
	}
}

static void run_random(void *arg)
{
	((void (*)(void))arg)();
}

static void on_tick(struct frame *f)
{
	lapic_eoi();
	if (f->cs & 3)
		leave_user(f);
}

static void do_random_code(void)
{
	uint8_t *code = alloc_page();
	unsigned faults = 0;

	lapic_enable();
	set_handler(0x40, on_tick);
	lapic_write(0x3e0, 3);
	lapic_write(0x320, 0x20040);
	lapic_write(0x380, 100000); /* ends loops */
	user_flags = 0x202;

	for (unsigned round = 0; round < 3000; round++) {
		for (unsigned i = 0; i < 64; i++)
			code[i] = (uint8_t)any();
		/* in ring 3, where it can break nothing but this call */
		if (call_user(run_random, user_ptr(code), NULL).vector >= 0)
			faults++;
	}
	lapic_write(0x320, 0x10000);
	print("# %u of 3000 faulted\n", faults);
}

static const struct {
	const char *name;
	void (*fn)(void);
} all[] = {
	{ "triple", do_triple },
	{ "nothing-mapped", do_nothing_mapped },
	{ "hole", do_hole },
	{ "recursion", do_recursion },
	{ "page-tables", do_page_tables },
	{ "cr3-garbage", do_cr3_garbage },
	{ "spin", do_spin },
	{ "halt", do_halt },
	{ "storm", do_storm },
	{ "string", do_string },
	{ "poweroff", do_poweroff },
	{ "reset-cf9", do_reset_cf9 },
	{ "reset-kbd", do_reset_kbd },
	{ "exit-7", do_exit_7 },
	{ "ports", do_ports },
	{ "pci", do_pci },
	{ "lapic", do_lapic },
	{ "msrs", do_msrs },
	{ "random-code", do_random_code },
};

void guest_main(void)
{
	const char *name = last_argument();

	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (!is_equal(name, all[i].name))
			continue;
		print("reached %s\n", name);
		all[i].fn();
		check(true, "survived");
		return;
	}
	print("fail no case \"%s\"\n", name);
	check(false, "known case");
}
