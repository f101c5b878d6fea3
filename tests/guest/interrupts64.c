/* SPDX-License-Identifier: Apache-2.0 */
/* PIC, PIT, LAPIC, IOAPIC: delivery, priority, masking, waking, shadows. */
#include "guest.h"

static volatile unsigned count[256];
static volatile uint8_t order[64];
static volatile unsigned norder;

static void note(struct frame *f)
{
	count[f->vector & 255]++;
	if (norder < 64)
		order[norder++] = (uint8_t)f->vector;
}

static void on_lapic(struct frame *f)
{
	note(f);
	lapic_eoi();
}

static void on_pic1(struct frame *f)
{
	note(f);
	outb(0x20, 0x20);
}

static void on_pic2(struct frame *f)
{
	note(f);
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
}

/* Wait with interrupts on until count[vector] reaches @n, at most @us microseconds. */
static bool wait_count(unsigned vector, unsigned n, unsigned us)
{
	sti();
	for (unsigned t = 0; count[vector] < n && t < us; t += 20)
		delay_us(20);
	cli();
	return count[vector] >= n;
}

static void window(void) /* interrupts on for a moment */
{
	__asm__ volatile("sti; nop; nop; cli" : : : "memory");
}

static void reset(void)
{
	for (unsigned i = 0; i < 256; i++)
		count[i] = 0;
	norder = 0;
}

/* ---- PIC and PIT ---- */

static void init_pic(void)
{
	static const uint8_t words[][2] = { { 0x20, 0x11 }, { 0xa0, 0x11 }, { 0x21, 0x20 },
					    { 0xa1, 0x28 }, { 0x21, 4 },    { 0xa1, 2 },
					    { 0x21, 1 },    { 0xa1, 1 },    { 0x21, 0xff },
					    { 0xa1, 0xff } };

	for (unsigned i = 0; i < sizeof(words) / 2; i++)
		outb(words[i][0], words[i][1]);
	for (unsigned i = 0; i < 8; i++) {
		set_handler(0x20 + i, on_pic1);
		set_handler(0x28 + i, on_pic2);
	}
}

static void start_pit(unsigned mode, unsigned reload)
{
	outb(0x43, (uint8_t)(0x30 | mode << 1));
	outb(0x40, (uint8_t)reload);
	outb(0x40, (uint8_t)(reload >> 8));
}

static void test_pic(void)
{
	reset();
	init_pic();
	check(inb(0x21) == 0xff && inb(0xa1) == 0xff, "PIC masks read back");
	lapic_enable();
	lapic_write(0x350, 0x700); /* LINT0: ExtINT */
	start_pit(2, 1193);	   /* 1 kHz */
	outb(0x21, 0xfe);
	check(wait_count(0x20, 5, 200000), "PIT interrupts by the PIC");
	outb(0x21, 0xff);
	unsigned n = count[0x20];
	sti();
	delay_us(5000);
	cli();
	check(count[0x20] <= n + 1, "masked at the PIC");
	outb(0x21, 0xfe);
	delay_us(3000);
	reset();
	window();
	check(count[0x20] >= 1, "an edge waits while interrupts are off");
	lapic_write(0x350, 0x10700);
	window(); /* one may be on its way */
	n = count[0x20];
	sti();
	delay_us(5000);
	cli();
	check_eq(count[0x20], n, "masked at LINT0");
	lapic_write(0x350, 0x700);
	check(wait_count(0x20, 2, 100000), "and unmasked");
	/* HLT wakes. */
	reset();
	for (unsigned i = 0; i < 5; i++)
		sti_hlt_cli();
	check(count[0x20] >= 5, "HLT wakes for the PIT");
	/* One-shot: the line rises once.  Tried again when the host was too slow to look in time. */
	outb(0x21, 0xff);
	uint8_t before = 1;
	for (unsigned i = 0; i < 10 && before; i++) {
		start_pit(0, 60000); /* 50 ms */
		outb(0x21, 0xfe);    /* take what mode 2 has left */
		window();
		outb(0x21, 0xff);
		outb(0x20, 0x0a); /* IRR */
		before = inb(0x20) & 1;
	}
	for (unsigned ms = 0; ms < 2000 && !(inb(0x20) & 1); ms++)
		delay_us(1000);
	check(!before && (inb(0x20) & 1), "PIT mode 0 raises its line at the end, IRR shows it");
	reset();
	outb(0x21, 0xfe);
	sti();
	delay_us(80000);
	cli();
	check_eq(count[0x20], 1, "PIT mode 0 interrupts once");
	outb(0x21, 0xff);
	outb(0x20, 0x0b);
	check_eq(inb(0x20), 0, "ISR is empty after EOI");
}

static void test_pit_counts(void)
{
	start_pit(2, 0xffff);
	outb(0x43, 0);
	unsigned a = inb(0x40);
	a |= (unsigned)inb(0x40) << 8;
	delay_us(1000);
	outb(0x43, 0);
	unsigned b = inb(0x40);
	b |= (unsigned)inb(0x40) << 8;
	unsigned gone = (a - b) & 0xffff;
	check(gone > 1000 && gone < 40000, "the PIT counts, latched");
	outb(0x43, 0xe2);
	check((inb(0x40) & 0x3f) == 0x34, "PIT status read-back");
}

/* ---- LAPIC ---- */

static void test_lapic(void)
{
	reset();
	check((lapic_read(0x30) & 0xff) >= 0x10 && (lapic_read(0x30) >> 16 & 0xff) >= 4,
	      "LAPIC version");
	check_eq(lapic_read(0x20) >> 24, cpuid(1, 0).b >> 24, "LAPIC ID is CPUID's");
	for (unsigned v = 0x30; v < 0xf0; v++)
		set_handler(v, on_lapic);
	/* self-IPIs: priority, order, IRR and ISR */
	lapic_write(0x300, 0x40000 | 0x41);
	lapic_write(0x300, 0x40000 | 0x81);
	lapic_write(0x300, 0x40000 | 0x61);
	check(lapic_read(0x220) & 2, "IRR of a waiting vector");
	window();
	sti();
	delay_us(10);
	cli();
	check(norder == 3 && order[0] == 0x81 && order[1] == 0x61 && order[2] == 0x41,
	      "highest vector first");
	lapic_write(0x300, 0x40000 | 0x50);
	lapic_write(0x300, 0x40000 | 0x50);
	window();
	window();
	check_eq(count[0x50], 1, "a vector waits once");
	/* task priority */
	write_cr8(5);
	check_eq(lapic_read(0x80), 0x50, "CR8 is TPR");
	lapic_write(0x300, 0x40000 | 0x5f);
	lapic_write(0x300, 0x40000 | 0x60);
	window();
	check(count[0x60] == 1 && count[0x5f] == 0, "TPR holds back its class and below");
	write_cr8(0);
	window();
	check_eq(count[0x5f], 1, "TPR lowered");
	/* illegal vectors */
	lapic_write(0x280, 0);
	set_handler(5, on_lapic);
	lapic_write(0x300, 0x40000 | 0x05);
	window();
	check_eq(count[5], 0, "vectors below 16 are not delivered");
	lapic_write(0x280, 0);
	check(lapic_read(0x280) & 0x20, "ESR: illegal vector sent");
	lapic_write(0x280, 0);
	lapic_write(0x280, 0);
	set_handler(5, NULL);
}

static void on_nested(struct frame *f)
{
	note(f);
	if (f->vector == 0x61) {
		lapic_write(0x300, 0x40000 | 0x51);
		lapic_write(0x300, 0x40000 | 0x71);
		sti();
		__asm__ volatile("nop; nop");
		cli();
		check(lapic_read(0x130) & 2, "ISR of the vector in service");
		check_eq(lapic_read(0xa0), 0x60, "PPR");
	}
	lapic_eoi();
}

static void test_nesting(void)
{
	reset();
	set_handler(0x61, on_nested);
	lapic_write(0x300, 0x40000 | 0x61);
	window();
	window();
	check(norder == 3 && order[0] == 0x61 && order[1] == 0x71 && order[2] == 0x51,
	      "a higher class nests, a lower one waits");
	set_handler(0x61, on_lapic);
}

static void test_timer(void)
{
	reset();
	lapic_write(0x3e0, 3); /* divide by 16 */
	lapic_write(0x320, 0x40);
	lapic_write(0x380, 20000);
	uint32_t a = lapic_read(0x390);
	check(a <= 20000, "timer: current count");
	check(wait_count(0x40, 1, 500000), "timer: one-shot");
	check_eq(lapic_read(0x390), 0, "timer: stays at 0");
	sti();
	delay_us(2000);
	cli();
	check_eq(count[0x40], 1, "timer: only once");
	lapic_write(0x320, 0x20041);
	lapic_write(0x380, 20000);
	check(wait_count(0x41, 4, 500000), "timer: periodic");
	lapic_write(0x380, 0);
	reset();
	sti();
	delay_us(3000);
	cli();
	check(count[0x41] <= 1, "timer: stopped by count 0");
	lapic_write(0x320, 0x10042);
	lapic_write(0x380, 1000);
	sti();
	delay_us(3000);
	cli();
	check_eq(count[0x42], 0, "timer: masked");
	reset();
	lapic_write(0x320, 0x43);
	lapic_write(0x380, 50000);
	sti_hlt_cli();
	check_eq(count[0x43], 1, "timer: wakes HLT");
	if (cpuid(1, 0).c & 1 << 24) {
		reset();
		lapic_write(0x320, 0x40044);
		__asm__ volatile("mfence" : : : "memory");
		uint64_t now = rdtsc();
		wrmsr(0x6e0, now + 3000000);
		check(rdmsr(0x6e0) != 0, "TSC deadline is armed");
		sti_hlt_cli();
		check(count[0x44] == 1 && rdtsc() >= now + 3000000,
		      "TSC deadline fires, not early");
		check_eq(rdmsr(0x6e0), 0, "TSC deadline is disarmed by firing");
		wrmsr(0x6e0, rdtsc() - 1000);
		window();
		check(wait_count(0x44, 2, 100000), "TSC deadline in the past fires at once");
		wrmsr(0x6e0, rdtsc() + 100000000000ull);
		wrmsr(0x6e0, 0);
		check_eq(rdmsr(0x6e0), 0, "TSC deadline disarmed by 0");
	} else {
		skip("TSC deadline", "not shown");
	}
	lapic_write(0x320, 0x10000);
}

/* ---- shadows, NMI ---- */

static volatile uint64_t shadow_ip;

static void on_shadow(struct frame *f)
{
	shadow_ip = f->ip;
	lapic_eoi();
}

extern uint8_t shadow_1[], shadow_2[], shadow_3[], shadow_4[];

static void test_shadow(void)
{
	set_handler(0x90, on_shadow);
	lapic_write(0x300, 0x40000 | 0x90);
	delay_us(10);
	__asm__ volatile("sti\nshadow_1: nop\nshadow_2: nop\n\tcli" : : : "memory");
	check_eq(shadow_ip, (uintptr_t)shadow_2, "STI holds interrupts off for one instruction");
	lapic_write(0x300, 0x40000 | 0x90);
	delay_us(10);
	shadow_ip = 0;
	__asm__ volatile("sti; cli" : : : "memory");
	check_eq(shadow_ip, 0, "STI; CLI opens no window");
	__asm__ volatile("mov %%ss, %%eax; sti; nop; cli" : : : "rax", "memory");
	lapic_write(0x300, 0x40000 | 0x90);
	delay_us(10);
	shadow_ip = 0;
	__asm__ volatile("mov %%ss, %%eax\n\tpushfq; orq $0x200, (%%rsp)\n\tpopfq\nshadow_3: mov "
			 "%%eax, %%ss\n"
			 "shadow_4: nop\n\tcli"
			 :
			 :
			 : "rax", "memory", "cc");
	check_eq(shadow_ip, (uintptr_t)shadow_3, "POPF opens at once");
}

static volatile unsigned nmis, nmi_depth, nmi_max;

static void on_nmi(struct frame *f)
{
	(void)f;
	nmis++;
	if (++nmi_depth > nmi_max)
		nmi_max = nmi_depth;
	if (nmis == 1) {
		lapic_write(0x310, lapic_read(0x20));
		lapic_write(0x300, 0x4400); /* another one: waits for IRET */
		for (volatile unsigned i = 0; i < 200; i++)
			;
	}
	nmi_depth--;
}

static void test_nmi(void)
{
	set_handler(NMI_VECTOR, on_nmi);
	lapic_write(0x310, lapic_read(0x20));
	lapic_write(0x300, 0x4400);
	delay_us(1000);
	check_eq(nmis, 2, "NMI to self; one more inside its handler");
	check_eq(nmi_max, 1, "NMIs do not nest");
	set_handler(NMI_VECTOR, NULL);
}

/* ---- IOAPIC ---- */

#define IOAPIC 0xfec00000u

static void ioapic_write(unsigned reg, uint32_t v)
{
	*(volatile uint32_t *)IOAPIC = reg;
	*(volatile uint32_t *)(IOAPIC + 0x10) = v;
}

static uint32_t ioapic_read(unsigned reg)
{
	*(volatile uint32_t *)IOAPIC = reg;
	return *(volatile uint32_t *)(IOAPIC + 0x10);
}

/* The level stays until the third time. */
static void on_level(struct frame *f)
{
	note(f);
	if (count[0x76] >= 3) {
		outb(0x3f8 + 1, 0);
		(void)inb(0x3fa);
	}
	lapic_eoi();
}

static void test_ioapic(void)
{
	reset();
	check((ioapic_read(1) >> 16 & 0xff) >= 23, "IOAPIC: 24 pins or more");
	ioapic_write(0x10 + 4, 0x10000); /* masked entries keep what is written */
	ioapic_write(0x11 + 4, 0x5a000000);
	check(ioapic_read(0x14) == 0x10000 && ioapic_read(0x15) == 0x5a000000,
	      "IOAPIC: entries read back");
	lapic_write(0x350, 0x10700);
	start_pit(2, 1193);
	ioapic_write(0x10 + 5, 0); /* pin 2 is the PIT, edge */
	ioapic_write(0x11 + 4, lapic_read(0x20));
	ioapic_write(0x10 + 4, 0x73);
	check(wait_count(0x73, 5, 200000), "IOAPIC: PIT on pin 2, edge");
	ioapic_write(0x10 + 4, 0x10073);
	unsigned n = count[0x73];
	sti();
	delay_us(5000);
	cli();
	check(count[0x73] <= n + 1, "IOAPIC: masked");
	/* logical destination, lowest priority */
	lapic_write(0xe0, 0xffffffff);
	lapic_write(0xd0, 1u << 24);
	ioapic_write(0x11 + 4, 1u << 24);
	ioapic_write(0x10 + 4, 0x900 | 0x74);
	check(wait_count(0x74, 2, 200000), "IOAPIC: logical, lowest priority");
	ioapic_write(0x10 + 4, 0x10000);
	/* the UART's line 4, edge through the IOAPIC, and level */
	reset();
	outb(0x3f8 + 4, 0x0b); /* OUT2 */
	ioapic_write(0x11 + 8, lapic_read(0x20));
	ioapic_write(0x10 + 8, 0x75);
	outb(0x3f8 + 1, 2); /* transmitter empty */
	check(wait_count(0x75, 1, 100000), "IOAPIC: UART, edge");
	outb(0x3f8 + 1, 0);
	(void)inb(0x3fa);
	set_handler(0x76, on_level);
	ioapic_write(0x10 + 8, 0x8000 | 0x76); /* level */
	reset();
	outb(0x3f8 + 1, 2);
	check(wait_count(0x76, 3, 100000), "IOAPIC: UART, level: again until the source is quiet");
	sti();
	delay_us(1000);
	cli();
	check_eq(count[0x76], 3, "IOAPIC: then no more");
	check(!(ioapic_read(0x10 + 8) & 0x4000), "IOAPIC: remote IRR is cleared by EOI");
	ioapic_write(0x10 + 8, 0x10000);
}

/* ---- x2APIC, last: there is no way back but through disabling ---- */

static void on_x2(struct frame *f)
{
	note(f);
	wrmsr(0x80b, 0);
}

static void x2_reserved(void *arg)
{
	(void)arg;
	wrmsr(0x80b, 1);
}

static void x2_read_only(void *arg)
{
	(void)arg;
	wrmsr(0x802, 0);
}

static void x2_missing(void *arg)
{
	(void)arg;
	(void)rdmsr(0x80e); /* DFR is not there */
}

static void test_x2apic(void)
{
	if (!(cpuid(1, 0).c & 1 << 21)) {
		skip("x2APIC", "not shown");
		return;
	}
	reset();
	uint32_t id = lapic_read(0x20) >> 24;
	wrmsr(0x1b, rdmsr(0x1b) | 0x400);
	check_eq(rdmsr(0x802), id, "x2APIC: ID");
	set_handler(0x66, on_x2);
	wrmsr(0x83f, 0x66); /* self IPI */
	window();
	check_eq(count[0x66], 1, "x2APIC: self IPI");
	wrmsr(0x830, (uint64_t)id << 32 | 0x66);
	window();
	check_eq(count[0x66], 2, "x2APIC: ICR");
	check_eq(rdmsr(0x80d), (uint64_t)1 << (id & 15) | (id >> 4) << 16, "x2APIC: logical ID");
	check_fault(catch (x2_reserved, NULL), GP, 0, "x2APIC: EOI other than 0");
	check_fault(catch (x2_read_only, NULL), GP, 0, "x2APIC: ID is read-only");
	check_fault(catch (x2_missing, NULL), GP, 0, "x2APIC: no DFR");
}

void guest_main(void)
{
	test_pic();
	test_pit_counts();
	test_lapic();
	test_nesting();
	test_timer();
	test_shadow();
	test_nmi();
	test_ioapic();
	test_x2apic();
}
