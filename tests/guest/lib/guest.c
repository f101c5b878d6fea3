/* SPDX-License-Identifier: Apache-2.0 */
/* What both kinds of guests share: output, results, descriptors, catching exceptions. */
#include <stdarg.h>

#include "guest.h"

#define COM1 0x3f8

void *memset(void *p, int c, size_t n)
{
	void *d = p;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return p;
}

void *memcpy(void *dst, const void *src, size_t n)
{
	void *d = dst;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(src), "+c"(n) : : "memory");
	return dst;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

/* ---- output ---- */

static volatile int print_lock;

static void put_char(char c)
{
	outb(COM1, (uint8_t)c);
}

static void put_number(uint64_t v, unsigned base)
{
	char text[24];
	unsigned n = 0;

	if (base == 16) {
		do
			text[n++] = "0123456789abcdef"[v & 15];
		while (v >>= 4);
	} else { /* 32 bits: no 64-bit division without libgcc */
		uint32_t w = (uint32_t)v;
		do
			text[n++] = (char)('0' + w % 10);
		while (w /= 10);
	}
	while (n)
		put_char(text[--n]);
}

static uint64_t next_number(va_list *ap, unsigned longs, bool is_signed)
{
	if (longs == 2)
		return va_arg(*ap, unsigned long long);
	if (longs == 1)
		return va_arg(*ap, unsigned long);
	return is_signed ? (uint64_t)va_arg(*ap, int) : va_arg(*ap, unsigned);
}

static void put_format(const char *fmt, va_list *ap)
{
	for (; *fmt; fmt++) {
		unsigned longs = 0;

		if (*fmt != '%') {
			put_char(*fmt);
			continue;
		}
		while (*++fmt == 'l')
			longs++;
		if (*fmt == 's') {
			for (const char *s = va_arg(*ap, const char *); *s; s++)
				put_char(*s);
		} else if (*fmt == 'c') {
			put_char((char)va_arg(*ap, int));
		} else if (*fmt == 'd' || *fmt == 'u') {
			uint64_t v = next_number(ap, longs, *fmt == 'd');
			if (*fmt == 'd' && (int64_t)v < 0) {
				put_char('-');
				v = -v;
			}
			put_number(v, 10);
		} else if (*fmt == 'x') {
			put_number(next_number(ap, longs, false), 16);
		} else {
			put_char(*fmt);
		}
	}
}

void print(const char *fmt, ...)
{
	va_list ap;

	while (__sync_lock_test_and_set(&print_lock, 1))
		pause();
	va_start(ap, fmt);
	put_format(fmt, &ap);
	va_end(ap);
	__sync_lock_release(&print_lock);
}

/* ---- results ---- */

static volatile unsigned noks, nfails;

void check(bool is_ok, const char *name)
{
	__sync_fetch_and_add(is_ok ? &noks : &nfails, 1);
	print("%s %s\n", is_ok ? "ok" : "fail", name);
}

void check_eq(uint64_t got, uint64_t want, const char *name)
{
	if (got == want) {
		check(true, name);
		return;
	}
	__sync_fetch_and_add(&nfails, 1);
	print("fail %s: got %llx, want %llx\n", name, (unsigned long long)got, (unsigned long long)want);
}

void skip(const char *name, const char *why)
{
	print("skip %s: %s\n", name, why);
}

_Noreturn void done(void)
{
	print("done %u ok, %u failed\n", noks, nfails);
	outl(0xf4, nfails ? 1 : 0);
	for (;;)
		__asm__ volatile("cli; hlt");
}

/* ---- descriptors ---- */

struct gate {
	uint16_t low, sel;
	uint8_t ist, type;
	uint16_t mid;
#ifdef __x86_64__
	uint32_t high, zero;
#endif
};
static struct gate idt[256] __attribute__((aligned(16)));

void set_descriptor(unsigned sel, uint32_t base, uint32_t limit, unsigned attr)
{
	uint64_t l = attr & 0x8000 ? limit >> 12 : limit;

	gdt[sel / 8] = (l & 0xffff) | (base & 0xffffffULL) << 16 | (uint64_t)(attr & 0xf0ff) << 40 |
		       (l & 0xf0000) << 32 | (uint64_t)(base >> 24) << 56;
}

void set_gate(unsigned vector, void *target, uint16_t sel, unsigned type, unsigned ist)
{
	uintptr_t t = (uintptr_t)target;

	idt[vector] = (struct gate){
		.low = (uint16_t)t,
		.sel = sel,
		.ist = (uint8_t)ist,
		.type = (uint8_t)type,
		.mid = (uint16_t)(t >> 16),
#ifdef __x86_64__
		.high = (uint32_t)(t >> 32),
#endif
	};
}

struct table_pointer {
	uint16_t limit;
	word base;
} __attribute__((packed));

static void load_idt(void)
{
	struct table_pointer p = { sizeof(idt) - 1, (word)(uintptr_t)idt };

	__asm__ volatile("lidt %0" : : "m"(p));
}

#ifdef __x86_64__
struct tss {
	uint32_t zero;
	uint64_t sp[3], zero2, ist[7], zero3;
	uint16_t zero4, iomap;
} __attribute__((packed));
static struct tss tss[MAX_CPUS];
static uint8_t ring0_stacks[MAX_CPUS][8192] __attribute__((aligned(16)));

static void load_tss(unsigned cpu)
{
	unsigned sel = TSS_SEL + 16 * cpu;
	uint64_t base = (uint64_t)(uintptr_t)&tss[cpu];

	tss[cpu].sp[0] = (uintptr_t)ring0_stacks[cpu + 1];
	tss[cpu].iomap = sizeof(struct tss);
	set_descriptor(sel, (uint32_t)base, sizeof(struct tss) - 1, 0x89);
	gdt[sel / 8 + 1] = base >> 32;
	__asm__ volatile("ltr %w0" : : "r"(sel));
}

unsigned cpu_index(void)
{
	uint16_t sel;
	__asm__ volatile("str %0" : "=r"(sel));
	return (sel - TSS_SEL) / 16u;
}
#else
/* SDM vol. 3 figure 7-2 */
struct tss32 {
	uint32_t link, sp0, ss0, sp1, ss1, sp2, ss2, cr3, ip, flags, regs[8], segs[6], ldt;
	uint16_t trap, iomap;
};
struct tss32 main_tss;
static uint8_t ring0_stack[8192] __attribute__((aligned(16)));

static void load_tss(unsigned cpu)
{
	(void)cpu;
	main_tss.sp0 = (uintptr_t)(ring0_stack + sizeof(ring0_stack));
	main_tss.ss0 = KDATA;
	main_tss.iomap = sizeof(main_tss);
	set_descriptor(TSS_SEL, (uintptr_t)&main_tss, sizeof(main_tss) - 1, 0x89);
	__asm__ volatile("ltr %w0" : : "r"(TSS_SEL));
}
#endif

/* ---- exceptions ---- */

extern uint8_t entries[]; /* 256 entry points, 16 bytes each */
extern long catch_call(void (*fn)(void *), void *arg, word *sp);
extern _Noreturn void catch_jump(word sp);
extern _Noreturn void user_jump(void (*fn)(void *), void *arg, word sp);

static handler_fn handlers[256];
static word catch_sp; /* not 0: a catch() of the boot CPU is active */
static struct fault caught;

void set_handler(unsigned vector, handler_fn fn)
{
	handlers[vector] = fn;
}

static bool is_boot_cpu(void)
{
#ifdef __x86_64__
	return cpu_index() == 0;
#else
	return true;
#endif
}

void lib_exception(struct frame *f)
{
	word sp = catch_sp;

	if (handlers[f->vector]) {
		handlers[f->vector](f);
		return;
	}
	if (sp && is_boot_cpu()) {
		catch_sp = 0;
		caught = (struct fault){ .vector = (int)f->vector,
					 .error = f->error,
					 .ip = f->ip,
					 .cr2 = read_cr2(),
					 .cs = f->cs,
					 .flags = f->flags,
					 .dr6 = read_dr6() };
		if ((f->cs & 3) || sizeof(word) == 8)
			caught.sp = f->sp;
		catch_jump(sp);
	}
	print("fail unexpected exception %u, error %lx, at %lx:%lx, cr2 %lx\n", (unsigned)f->vector,
	      (unsigned long)f->error, (unsigned long)f->cs, (unsigned long)f->ip,
	      (unsigned long)read_cr2());
	nfails++;
	done();
}

struct fault catch (void (*fn)(void *), void *arg)
{
	caught = (struct fault){ .vector = -1 };
	catch_call(fn, arg, &catch_sp);
	catch_sp = 0;
	return caught;
}

void check_fault(struct fault f, int vector, word error, const char *name)
{
	if (f.vector == vector && (vector < 0 || f.error == error)) {
		check(true, name);
		return;
	}
	__sync_fetch_and_add(&nfails, 1);
	print("fail %s: exception %d error %lx, want %d error %lx\n", name, f.vector,
	      (unsigned long)f.error, vector, (unsigned long)error);
}

void touch_read(void *p)
{
	(void)*(volatile word *)p;
}

void touch_write(void *p)
{
	*(volatile word *)p = 0x55;
}

struct user_call {
	void (*fn)(void *);
	void *arg;
};
static uint8_t user_stack[16384] __attribute__((aligned(4096)));
static word user_value;

word user_flags = 2;

void leave_user(struct frame *f)
{
	word sp = catch_sp;

	user_value = f->ax;
	catch_sp = 0;
	catch_jump(sp);
}

static void enter_user(void *arg)
{
	struct user_call *c = arg;
	uintptr_t top = (uintptr_t)(user_stack + sizeof(user_stack) - 64);

#ifdef __x86_64__
	user_jump((void (*)(void *))user_ptr((void *)c->fn), c->arg, top + USER_BASE - 8);
#else
	user_jump(c->fn, c->arg, top - 4);
#endif
}

struct fault call_user(void (*fn)(void *), void *arg, word *result)
{
	struct user_call c = { fn, arg };

	set_handler(0x80, leave_user);
	set_gate(0x80, entries + 16 * 0x80, KCODE, 0xee, 0);
	struct fault f = catch (enter_user, &c);
	if (result)
		*result = user_value;
	return f;
}

/* ---- LAPIC and time ---- */

void lapic_enable(void)
{
	lapic_write(0xf0, 0x1ff);
}

void lapic_ipi(unsigned apic_id, uint32_t icr_low)
{
	lapic_write(0x310, apic_id << 24);
	lapic_write(0x300, icr_low);
}

/*
 * The PM timer's port stands in the FADT; without walking ACPI it is found where the usual boards
 * have it, as the one that counts.
 */
static uint16_t pm_port;

uint32_t pm_timer(void)
{
	static const uint16_t ports[] = { 0x608, 0xb008, 0x408 };

	for (unsigned i = 0; !pm_port && i < 3; i++) {
		uint32_t a = inl(ports[i]), b = a;

		for (unsigned n = 0; n < 1000 && b == a; n++)
			b = inl(ports[i]);
		if (a != b && a != 0xffffffff)
			pm_port = ports[i];
	}
	return pm_port ? inl(pm_port) & 0xffffff : 0;
}

void delay_us(uint32_t us)
{
	uint32_t want = (us >> 10) * 3665 + (us & 1023) * 3665 / 1024, gone = 0, last = pm_timer();

	while (gone < want) {
		uint32_t now = pm_timer();

		gone += (now - last) & 0xffffff;
		last = now;
		pause();
	}
}

/* Multiboot information, 3.3: flag bit 2, command line at 16. */
extern uint32_t multiboot_info;

const char *last_argument(void)
{
	const uint32_t *info = (void *)(uintptr_t)multiboot_info;
	const char *s = info[0] & 4 ? (const char *)(uintptr_t)info[4] : "", *word = s;

	for (; *s; s++)
		if (*s == ' ' && s[1] && s[1] != ' ')
			word = s + 1;
	return word;
}

bool is_equal(const char *a, const char *b)
{
	for (; *a && *a == *b; a++, b++)
		;
	return *a == *b;
}

static void init_com1(void)
{
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x80);
	outb(COM1, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 3);
	outb(COM1 + 2, 1);
	outb(COM1 + 4, 3);
}

void lib_main(void)
{
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	init_com1();
	for (unsigned i = 0; i < 256; i++)
		set_gate(i, entries + 16 * i, KCODE, 0x8e, 0);
	load_idt();
	__asm__ volatile("lldt %w0" : : "r"(0)); /* after reset there is one, at address 0 */
	load_tss(0);
	guest_main();
	done();
}

#ifdef __x86_64__

/* ---- paging ---- */

extern uint64_t pml4[];
static uint8_t pool[96][4096] __attribute__((aligned(4096)));
static unsigned pool_used;

void *alloc_page(void)
{
	if (pool_used == sizeof(pool) / sizeof(pool[0])) {
		print("fail out of pages\n");
		nfails++;
		done();
	}
	return memset(pool[pool_used++], 0, 4096);
}

uint64_t *pte(uint64_t va, unsigned level)
{
	uint64_t *table = pml4;

	for (unsigned l = 4;; l--) {
		uint64_t *e = &table[va >> (12 + 9 * (l - 1)) & 511];

		if (l == level)
			return e;
		if (!(*e & PT_P))
			*e = (uintptr_t)alloc_page() | PT_P | PT_W | PT_U;
		table = (uint64_t *)(uintptr_t)(*e & 0xffffffffff000);
	}
}

void map(uint64_t va, uint64_t pa, uint64_t flags)
{
	*pte(va, 1) = pa | flags;
	invlpg((void *)va);
}

/* ---- more CPUs ---- */

extern uint8_t ap_start[], ap_end[];
extern volatile unsigned ap_next;
volatile unsigned cpus_online = 1;

static struct work {
	void (*volatile fn)(void *);
	void *volatile arg;
	char pad[48];
} works[MAX_CPUS];

_Noreturn void ap_main(unsigned cpu)
{
	load_idt();
	load_tss(cpu);
	lapic_enable();
	__sync_fetch_and_add(&cpus_online, 1);
	for (;;) {
		void (*fn)(void *) = works[cpu].fn;

		if (fn) {
			fn(works[cpu].arg);
			__sync_synchronize();
			works[cpu].fn = NULL;
		}
		pause();
	}
}

unsigned start_cpus(void)
{
	lapic_enable();
	memcpy((void *)0x8000, ap_start, (size_t)(ap_end - ap_start));
	lapic_write(0x300, 0xc4500); /* INIT to all others */
	delay_us(10000);
	for (unsigned i = 0; i < 2; i++) {
		lapic_write(0x300, 0xc4608); /* start-up at 8000H */
		delay_us(200);
	}
	/* Done when none came for 50 ms, after at least 100 ms. */
	for (unsigned idle = 0, ms = 0, seen = 0; idle < 50 || ms < 100; idle++, ms++) {
		if (cpus_online != seen)
			idle = 0;
		seen = cpus_online;
		delay_us(1000);
	}
	return cpus_online;
}

void on_cpu(unsigned n, void (*fn)(void *), void *arg)
{
	works[n].arg = arg;
	__sync_synchronize();
	works[n].fn = fn;
}

void wait_cpu(unsigned n)
{
	while (works[n].fn)
		pause();
}

#endif
