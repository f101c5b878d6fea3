/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a bare-metal test guest stands on: start-up, serial output, exceptions that can be caught,
 * ring 3, page tables, the LAPIC, more CPUs.
 *
 * A guest is one C file with guest_main().  It prints "ok NAME" or "fail NAME ..." a check, and at
 * the end "done N ok, M failed"; its status is 1 by port F4H when nothing failed, else 3.
 * Loaded by multiboot 1.  64-bit guests run identity-mapped in long mode (4 GiB, 2 MiB pages,
 * supervisor), and once more at USER_BASE with user rights; 32-bit ones flat without paging.
 * Interrupts are off and both PICs masked at the start.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __x86_64__
typedef uint64_t word;
#else
typedef uint32_t word;
#endif

void guest_main(void);

/* ---- ports and special registers ---- */
#define OUT_IN(name, type, r)                                                                      \
	static inline void out##name(uint16_t port, type v)                                        \
	{                                                                                          \
		__asm__ volatile("out %" r "0, %1" : : "a"(v), "Nd"(port));                        \
	}                                                                                          \
	static inline type in##name(uint16_t port)                                                 \
	{                                                                                          \
		type v;                                                                            \
		__asm__ volatile("in %1, %" r "0" : "=a"(v) : "Nd"(port));                         \
		return v;                                                                          \
	}
OUT_IN(b, uint8_t, "b")
OUT_IN(w, uint16_t, "w")
OUT_IN(l, uint32_t, "k")

#define REGISTER(name, reg)                                                                        \
	static inline word read_##name(void)                                                       \
	{                                                                                          \
		word v;                                                                            \
		__asm__ volatile("mov %%" reg ", %0" : "=r"(v) : : "memory");                      \
		return v;                                                                          \
	}                                                                                          \
	static inline void write_##name(word v)                                                    \
	{                                                                                          \
		__asm__ volatile("mov %0, %%" reg : : "r"(v) : "memory");                          \
	}
REGISTER(cr0, "cr0")
REGISTER(cr2, "cr2")
REGISTER(cr3, "cr3")
REGISTER(cr4, "cr4")
REGISTER(dr0, "dr0")
REGISTER(dr1, "dr1")
REGISTER(dr2, "dr2")
REGISTER(dr3, "dr3")
REGISTER(dr6, "dr6")
REGISTER(dr7, "dr7")
#ifdef __x86_64__
REGISTER(cr8, "cr8")
#endif

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t a, d;
	__asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(msr));
	return a | (uint64_t)d << 32;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
	__asm__ volatile("wrmsr"
			 :
			 : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32))
			 : "memory");
}
static inline uint64_t rdtsc(void)
{
	uint32_t a, d;
	__asm__ volatile("rdtsc" : "=a"(a), "=d"(d) : : "memory");
	return a | (uint64_t)d << 32;
}
struct cpuid {
	uint32_t a, b, c, d;
};
static inline struct cpuid cpuid(uint32_t leaf, uint32_t sub)
{
	struct cpuid r;
	__asm__ volatile("cpuid"
			 : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d)
			 : "a"(leaf), "c"(sub));
	return r;
}
static inline void invlpg(const void *p)
{
	__asm__ volatile("invlpg (%0)" : : "r"(p) : "memory");
}
static inline word read_flags(void)
{
	word f;
	__asm__ volatile("pushf; pop %0" : "=r"(f));
	return f;
}
static inline void sti(void)
{
	__asm__ volatile("sti" : : : "memory");
}
static inline void cli(void)
{
	__asm__ volatile("cli" : : : "memory");
}
static inline void pause(void)
{
	__asm__ volatile("pause" : : : "memory");
}
/* STI and HLT without a gap: an interrupt that is waiting wakes it. */
static inline void sti_hlt_cli(void)
{
	__asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* ---- results ---- */
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* %s %c %d %u %x %lx %llx %% */
void check(bool is_ok, const char *name);
/** check_eq() - as check, and says both values when they differ. */
void check_eq(uint64_t got, uint64_t want, const char *name);
/** skip() - the CPU does not show what the check needs: says so, counts for nothing. */
void skip(const char *name, const char *why);
_Noreturn void done(void);

/** last_argument() - the last word of the command line, "" if there is none. */
const char *last_argument(void);
bool is_equal(const char *a, const char *b);

/* ---- memory ---- */
void *memset(void *p, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);

/* ---- exceptions and interrupts ---- */
enum { DE, DB, NMI_VECTOR, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };

struct frame { /* as the entry code of lib leaves it on the stack */
#ifdef __x86_64__
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
	uint64_t vector, error, ip, cs, flags, sp, ss;
#else
	uint32_t gs, fs, es, ds;
	uint32_t di, si, bp, unused, bx, dx, cx, ax;
	uint32_t vector, error, ip, cs, flags, sp, ss; /* sp, ss: from an outer ring only */
#endif
};
typedef void (*handler_fn)(struct frame *f);
/** set_handler() - @fn is called with the frame and may change it; NULL: back to catching. */
void set_handler(unsigned vector, handler_fn fn);

struct fault {
	int vector; /* -1: none */
	word error, ip, cr2, cs, flags, sp, dr6;
};
/** catch() - call @fn(@arg); an exception inside ends the call and is described in the result. */
struct fault catch (void (*fn)(void *arg), void *arg);
/** check_fault() - the fault is @vector with @error. */
void check_fault(struct fault f, int vector, word error, const char *name);

/* Read or write one word, for catch(). */
void touch_read(void *p);
void touch_write(void *p);

#define KCODE 0x08
#define KDATA 0x10
#ifdef __x86_64__
#define KCODE32 0x18
#define UCODE32 0x23
#define UDATA	0x2b
#define UCODE	0x33
#else
#define UCODE 0x1b
#define UDATA 0x23
#endif
#define FREE_SEL 0x38 /* eight descriptors for tests */
#define TSS_SEL	 0x80
extern uint64_t gdt[];
void set_descriptor(unsigned sel, uint32_t base, uint32_t limit, unsigned attr); /* limit with G applied */
/* IDT gate: @type with P and DPL, as 8EH; @ist 64-bit only. */
void set_gate(unsigned vector, void *target, uint16_t sel, unsigned type, unsigned ist);

/*
 * call_user() - run @fn(@arg) in ring 3 until it executes INT 80H (the value in AX is returned in
 * @result) or faults (as catch()).  In 64-bit guests fn must stay in its own function: data through @arg.
 */
struct fault call_user(void (*fn)(void *arg), void *arg, word *result);
extern word user_flags; /* FLAGS that ring 3 starts with; 2 at first */
/** leave_user() - a handler: end the call_user() that was interrupted. */
void leave_user(struct frame *f);
static inline void user_return(word v)
{
	__asm__ volatile("int $0x80" : : "a"(v) : "memory");
}

#ifdef __x86_64__
/* ---- paging, 64-bit ---- */
#define PT_P	  1ULL
#define PT_W	  2ULL
#define PT_U	  4ULL
#define PT_PWT	  8ULL
#define PT_A	  0x20ULL
#define PT_D	  0x40ULL
#define PT_PS	  0x80ULL
#define PT_G	  0x100ULL
#define PT_NX	  (1ULL << 63)
#define USER_BASE 0x4000000000ULL /* the image, with user rights */
#define TEST_BASE 0x8000000000ULL /* nothing mapped at first */
static inline void *user_ptr(const void *p)
{
	return (void *)((uintptr_t)p + USER_BASE);
}
void *alloc_page(void); /* zeroed, physical = virtual */
/** pte() - the entry that maps @va at @level (1: 4K, 2: 2M, 3: 1G), tables above made with all rights. */
uint64_t *pte(uint64_t va, unsigned level);
/** map() - map 4 KiB at @va to @pa with @flags and flush it. */
void map(uint64_t va, uint64_t pa, uint64_t flags);
#endif

/* ---- local APIC (xAPIC) and more CPUs ---- */
#define LAPIC 0xfee00000u
static inline uint32_t lapic_read(uint32_t reg)
{
	return *(volatile uint32_t *)(uintptr_t)(LAPIC + reg);
}
static inline void lapic_write(uint32_t reg, uint32_t v)
{
	*(volatile uint32_t *)(uintptr_t)(LAPIC + reg) = v;
}
void lapic_enable(void); /* on, spurious vector FFH */
static inline void lapic_eoi(void)
{
	lapic_write(0xb0, 0);
}
void lapic_ipi(unsigned apic_id, uint32_t icr_low);

#ifdef __x86_64__
#define MAX_CPUS 8
extern volatile unsigned cpus_online; /* 1 at first */
/** start_cpus() - INIT-SIPI-SIPI to all others; returns the number online after a while. */
unsigned start_cpus(void);
unsigned cpu_index(void); /* 0: boot CPU; by TR */
/** on_cpu() - @fn(@arg) on CPU @n, which spins for work; wait_cpu() until it has returned. */
void on_cpu(unsigned n, void (*fn)(void *arg), void *arg);
void wait_cpu(unsigned n);
#endif

/* About @us microseconds by the PM timer, without interrupts. */
void delay_us(uint32_t us);
uint32_t pm_timer(void);

#endif
