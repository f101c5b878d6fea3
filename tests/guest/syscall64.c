/* SPDX-License-Identifier: Apache-2.0 */
/* SYSCALL, SYSRET, SYSENTER, SYSEXIT, compatibility mode, SWAPGS, FS and GS bases. */
#include "guest.h"

#define EFER	  0xc0000080
#define STAR	  0xc0000081
#define LSTAR	  0xc0000082
#define CSTAR	  0xc0000083
#define FMASK	  0xc0000084
#define FS_BASE	  0xc0000100
#define GS_BASE	  0xc0000101
#define KERNEL_GS 0xc0000102

/*
 * Ring 3 calls: RAX 1: return to it with SYSRETQ; RAX 2: with SYSRETL; RAX 0: leave by INT 80H.
 * The entry notes what the processor gave.
 */
struct seen {
	uint64_t rcx, r11, rflags, cs, ss, rsp, count;
};
volatile struct seen seen;
uint64_t saved_rsp, syscall_stack[512];
__asm__(".global syscall_entry\n"
	"syscall_entry:\n\t"
	"mov %rcx, seen(%rip)\n\t"
	"mov %r11, 8+seen(%rip)\n\t"
	"mov %rsp, 40+seen(%rip)\n\t"
	"mov %rsp, saved_rsp(%rip)\n\t"
	"lea 4096+syscall_stack(%rip), %rsp\n\t"
	"pushfq\n\tpopq 16+seen(%rip)\n\t"
	"mov %cs, %edx\n\tmov %rdx, 24+seen(%rip)\n\t"
	"mov %ss, %edx\n\tmov %rdx, 32+seen(%rip)\n\t"
	"incq 48+seen(%rip)\n\t"
	"mov saved_rsp(%rip), %rsp\n\t"
	"cmp $2, %eax\n\tje 1f\n\tsysretq\n1:\tsysretl\n");
extern uint8_t syscall_entry[];

static void user_syscall(void *arg)
{
	uint64_t cs, ss, flags, rcx, r11;

	(void)arg;
	__asm__ volatile("pushfq; orq $0x4c5, (%%rsp); popfq\n\t" /* DF and the arithmetic flags */
			 "mov $1, %%eax\n\t"
			 "syscall\n\t"
			 "pushfq; pop %2\n\t"
			 "mov %%cs, %0\n\tmov %%ss, %1\n\tcld"
			 : "=&r"(cs), "=&r"(ss), "=&r"(flags), "=&c"(rcx), "=&r"(r11)
			 :
			 : "rax", "rdx", "r11", "memory", "cc");
	user_return((cs & 0xffff) | (ss & 0xffff) << 16 | flags << 32);
}

static void user_only_syscall(void *arg)
{
	(void)arg;
	__asm__ volatile("mov $1, %%eax; syscall" : : : "rax", "rcx", "rdx", "r11", "memory");
	user_return(1);
}

static void plain_sysret(void *arg)
{
	__asm__ volatile("mov %0, %%rcx; mov $2, %%r11d; sysretq"
			 :
			 : "r"(arg)
			 : "rcx", "r11", "memory");
}

static void test_syscall(void)
{
	word v = 0;

	check_fault(call_user(user_only_syscall, NULL, NULL), UD, 0, "#UD SYSCALL without EFER.SCE");
	wrmsr(EFER, rdmsr(EFER) | 1);
	wrmsr(STAR, (uint64_t)UCODE32 << 48 | (uint64_t)KCODE << 32);
	wrmsr(LSTAR, (uintptr_t)syscall_entry);
	wrmsr(FMASK, 0x700);
	struct fault f = call_user(user_syscall, NULL, &v);
	check(f.vector == -1 && seen.count == 1, "SYSCALL and SYSRET");
	check(seen.cs == KCODE && seen.ss == KDATA, "CS and SS in the kernel");
	check((v & 0xffff) == UCODE && (v >> 16 & 0xffff) == UDATA, "CS and SS back in ring 3");
	check((seen.r11 & 0x4c5) == 0x4c5 && !(seen.rflags & 0x700),
	      "R11 has the flags, FMASK clears its bits");
	check((seen.rflags & 0xc5) == 0xc5, "flags outside of FMASK stay");
	check(v >> 32 & 0x400, "SYSRET brings the flags back");
	check(seen.rcx > USER_BASE && seen.rsp > USER_BASE,
	      "RCX is the return address, RSP is unchanged");
	/* the non-canonical SYSRET: #GP in ring 0 (Intel) or ring 3 (AMD), never anything else */
	f = catch (plain_sysret, (void *)0x800000000000ull);
	check(f.vector == GP || f.vector == PF, "SYSRET to a non-canonical address faults");
	f = call_user(plain_sysret, NULL, NULL);
	check_fault(f, GP, 0, "#GP SYSRET in ring 3");
	wrmsr(FMASK, 0x47700);
	call_user(user_syscall, NULL, &v);
	check_eq(rdmsr(FMASK), 0x47700, "FMASK reads back");
}

/* Often enough for whatever learns from it; then without EFER.SCE again, and with TF in R11. */
static void user_many(void *arg)
{
	uint64_t n = 300, sum = 0;

	(void)arg;
	__asm__ volatile("1:\tmov $1, %%eax; syscall; lea 1(%1,%%rax), %1; dec %0; jnz 1b"
			 : "+r"(n), "+r"(sum)
			 :
			 : "rax", "rcx", "rdx", "r11", "memory", "cc");
	user_return(sum);
}

static void on_trap(struct frame *f)
{
	seen.rcx = f->ip;
	seen.cs = f->cs;
	f->cs = KCODE;
	f->ss = KDATA;
	extern uint8_t trap_back[];
	f->ip = (uintptr_t)trap_back;
	f->sp = saved_rsp;
	f->flags = 2;
}

static void __attribute__((noinline)) sysret_with_tf(uint64_t ip)
{
	__asm__ volatile("push %%rbx; push %%rbp\n\t"
			 "mov %%rsp, saved_rsp(%%rip)\n\t"
			 "mov %0, %%rcx; mov $0x102, %%r11d; sysretq\n"
			 "trap_back:\n\t"
			 "pop %%rbp; pop %%rbx"
			 :
			 : "r"(ip)
			 : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
			   "r13", "r14", "r15", "memory", "cc");
}

static void test_many(void)
{
	word v = 0;

	seen.count = 0;
	struct fault f = call_user(user_many, NULL, &v);
	check(f.vector == -1 && seen.count == 300 && v == 600, "SYSCALL and SYSRET, 300 times");
	set_handler(DB, on_trap);
	sysret_with_tf(USER_BASE);
	set_handler(DB, NULL);
	check(seen.rcx == USER_BASE && seen.cs == UCODE, "SYSRET with TF in R11 traps at once");
	wrmsr(EFER, rdmsr(EFER) & ~1ull);
	check_fault(call_user(user_many, NULL, NULL), UD, 0,
		    "#UD SYSCALL, when EFER.SCE is cleared again");
	wrmsr(EFER, rdmsr(EFER) | 1);
}

/* ---- compatibility mode: 32-bit code below 4 GiB, from ring 3 ---- */

extern const uint8_t compat_code[], compat_end[];
__asm__(".pushsection .rodata\n"
	"compat_code:\n\t.code32\n\t"
	"mov $0xffffffff, %eax\n\t"
	"inc %eax\n\t" /* one byte: 40H, a REX prefix in 64-bit mode */
	"mov %cs, %ebx\n\t"
	"push $0x12345678\n\tpop %ecx\n\t"
	"mov %esp, %edx\n\t"
	"int $0x80\n"
	"compat_end:\n\t.code64\n.popsection");

static uint64_t compat_regs[6];

static void on_compat(struct frame *f)
{
	compat_regs[0] = f->ax;
	compat_regs[1] = f->bx;
	compat_regs[2] = f->cx;
	compat_regs[3] = f->dx;
	compat_regs[4] = f->cs;
	compat_regs[5] = f->sp;
	f->cs = KCODE;
	f->ss = KDATA;
	extern uint8_t compat_back[];
	f->ip = (uintptr_t)compat_back;
	f->sp = saved_rsp;
	f->flags = 2;
}

static void __attribute__((noinline)) run_compat(uint64_t ip, uint64_t sp)
{
	__asm__ volatile("push %%rbx; push %%rbp\n\t"
			 "mov %%rsp, saved_rsp(%%rip)\n\t"
			 "pushq $0x2b; push %1; pushq $2; pushq $0x23; push %0\n\t"
			 "iretq\n"
			 "compat_back:\n\t"
			 "pop %%rbp; pop %%rbx"
			 :
			 : "r"(ip), "r"(sp)
			 : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
			   "r13", "r14", "r15", "memory", "cc");
}

static void test_compat(void)
{
	uint8_t *page = alloc_page();
	uint64_t va = 0xc0000000; /* below 4 GiB; a 2M page of nothing is there */

	memcpy(page, compat_code, (size_t)(compat_end - compat_code));
	*pte(va, 2) = 0;
	*pte(va, 3) |= PT_U;
	*pte(va, 4) |= PT_U;
	map(va, (uintptr_t)page, PT_P | PT_W | PT_U);
	set_handler(0x80, on_compat);
	extern uint8_t entries[];
	set_gate(0x80, entries + 16 * 0x80, KCODE, 0xee, 0);
	run_compat(va, va + 0x800);
	check_eq(compat_regs[0], 0, "compatibility mode: INC EAX is one byte");
	check_eq(compat_regs[1] & 0xffff, UCODE32, "compatibility mode: CS");
	check_eq(compat_regs[2], 0x12345678, "compatibility mode: 32-bit stack");
	check(compat_regs[4] == UCODE32 && compat_regs[5] == va + 0x800,
	      "an interrupt from compatibility mode");
	set_handler(0x80, NULL);
}

/* ---- SYSENTER ---- */

uint64_t sysenter_seen[4];
__asm__(".global sysenter_entry\n"
	"sysenter_entry:\n\t"
	"mov %rsp, sysenter_seen(%rip)\n\t"
	"mov %cs, %eax\n\tmov %rax, 8+sysenter_seen(%rip)\n\t"
	"pushfq\n\tpopq 16+sysenter_seen(%rip)\n\t"
	"incq 24+sysenter_seen(%rip)\n\t"
	"sysexitq\n");
extern uint8_t sysenter_entry[];

static void user_sysenter(void *arg)
{
	uint64_t cs;

	(void)arg;
	__asm__ volatile("lea 1f(%%rip), %%rdx\n\t"
			 "mov %%rsp, %%rcx\n\t"
			 "sysenter\n"
			 "1:\tmov %%cs, %0"
			 : "=r"(cs)
			 :
			 : "rax", "rcx", "rdx", "memory", "cc");
	user_return(cs & 0xffff);
}

static void test_sysenter(void)
{
	word v = 0;
	static uint64_t stack[64];

	wrmsr(0x174, 0);
	struct fault f = call_user(user_sysenter, NULL, NULL);
	if (f.vector == UD) {
		skip("SYSENTER", "not in long mode on AMD");
		return;
	}
	check_fault(f, GP, 0, "#GP SYSENTER with a null CS");
	/* a block of descriptors as SYSENTER and SYSEXIT want them */
	static const uint8_t from[] = { KCODE,	    KDATA,	UCODE32 & ~7,
					UDATA & ~7, UCODE & ~7, UDATA & ~7 };
	for (unsigned i = 0; i < sizeof(from); i++)
		gdt[FREE_SEL / 8 + i] = gdt[from[i] / 8];
	wrmsr(0x174, FREE_SEL);
	wrmsr(0x175, (uintptr_t)(stack + 64));
	wrmsr(0x176, (uintptr_t)sysenter_entry);
	f = call_user(user_sysenter, NULL, &v);
	check(sysenter_seen[3] == 1 && sysenter_seen[0] == (uintptr_t)(stack + 64),
	      "SYSENTER: ESP");
	check(sysenter_seen[1] == FREE_SEL && !(sysenter_seen[2] & 0x200), "SYSENTER: CS and IF");
	check(f.vector == -1 && v == ((FREE_SEL + 32) | 3), "SYSEXIT to 64-bit code");
}

/* ---- bases ---- */

static void fsgsbase_instructions(void *arg)
{
	uint64_t v;

	__asm__ volatile("wrfsbase %1; rdfsbase %0" : "=r"(v) : "r"((uint64_t)(uintptr_t)arg));
	check_eq(v, (uintptr_t)arg, "WRFSBASE, RDFSBASE");
}

static void wrfsbase_bad(void *arg)
{
	__asm__ volatile("wrfsbase %0" : : "r"(0x800000000000ull));
}

/* Both accesses lie in one block, at the same offset, before and after the base changes. */
static void test_new_base(uint64_t *words)
{
	uint64_t a, b, c, d;

	for (unsigned i = 0; i < 3; i++) {
		__asm__ volatile("wrgsbase %4; mov %%gs:8, %0; mov %%gs:16, %1; wrgsbase %5; mov "
				 "%%gs:8, %2; mov "
				 "%%gs:16, %3"
				 : "=&r"(a), "=&r"(b), "=&r"(c), "=&r"(d)
				 : "r"(words), "r"(words + 1)
				 : "memory");
		check(a == 2 && b == 3 && c == 3 && d == 4, "WRGSBASE between accesses through GS");
	}
}

/* Registers of all kinds, and the edges of what is canonical. */
#define BASE_TEST(reg)                                                                             \
	static uint64_t base_##reg(uint64_t v)                                                     \
	{                                                                                          \
		__asm__ volatile("mov %0, %%" #reg "; wrfsbase %%" #reg "; xor %%" #reg            \
				 ", %%" #reg "; rdfsbase %%" #reg "; mov %%" #reg ", %0"           \
				 : "+r"(v)                                                         \
				 :                                                                 \
				 : #reg, "cc");                                                    \
		return v;                                                                          \
	}
BASE_TEST(rcx)
BASE_TEST(rdi)
BASE_TEST(r8)
BASE_TEST(r11)
BASE_TEST(r13)
BASE_TEST(r15)

static void wrfsbase_arg(void *arg)
{
	__asm__ volatile("wrfsbase %0" : : "r"(arg));
}

static void test_base_values(void)
{
	static uint64_t (*const by[])(uint64_t) = { base_rcx, base_rdi, base_r8,
						    base_r11, base_r13, base_r15 };
	static const uint64_t good[] = { 0,	1,	    0x7fffffffffff, 0xffff800000000000,
					 ~0ull, 0x80000000, 0xffffffff };
	static const uint64_t bad[] = { 0x800000000000, 0xffff7fffffffffff, 1ull << 63, 1ull << 48 };
	unsigned nwrong = 0;
	uint64_t v;

	for (unsigned i = 0; i < sizeof(by) / sizeof(*by); i++)
		for (unsigned k = 0; k < sizeof(good) / sizeof(*good); k++)
			nwrong += by[i](good[k]) != good[k] || rdmsr(FS_BASE) != good[k];
	check_eq(nwrong, 0, "WRFSBASE and RDFSBASE, all kinds of registers");
	for (unsigned k = 0; k < sizeof(bad) / sizeof(*bad); k++) {
		struct fault f = catch (wrfsbase_arg, (void *)bad[k]);

		nwrong += f.vector != GP || rdmsr(FS_BASE) != ~0ull >> 32;
	}
	check_eq(nwrong, 0, "#GP WRFSBASE, around what is canonical");
	__asm__ volatile("wrfsbase %k1; rdfsbase %0" : "=r"(v) : "r"(0xfedcba9876543210ull));
	check_eq(v, 0x76543210, "WRFSBASE of 32 bits");
	__asm__ volatile("wrfsbase %1; rdfsbase %k0" : "=r"(v) : "r"(0x7654fedcba98ull));
	check_eq(v, 0xfedcba98, "RDFSBASE of 32 bits");
}

/* Selectors to memory: 16 bits, whatever the operand size; control registers to all kinds of registers. */
static void test_stores(void)
{
	static volatile uint64_t words[2];
	uint64_t a, b;

	words[0] = words[1] = ~0ull;
	__asm__ volatile("mov %%cs, %0; rex.w mov %%ss, %1"
			 : "=m"(*(volatile uint16_t *)words), "=m"(*((volatile uint16_t *)words + 3)));
	check(words[0] == (0x0000ffffffff0000 | KCODE | (uint64_t)KDATA << 48) && words[1] == ~0ull,
	      "MOV of selectors to memory");
	a = b = 0x1122334455667788;
	__asm__ volatile(
		"mov %%ss, %w0; mov %%ss, %%r15d; mov %%r15, %1; mov $-1, %%r11; mov %%cs, %%r11w; "
		"mov %%r11, %2"
		: "+r"(a), "=r"(b), "=m"(words[1])
		:
		: "r11", "r15");
	check(a == (0x1122334455660000 | KDATA) && b == KDATA && words[1] == (0xffffffffffff0000 | KCODE),
	      "MOV of selectors to registers");
	__asm__ volatile("mov %%cr3, %%r15; mov %%r15, %0; mov %%cr3, %1"
			 : "=r"(a), "=r"(b)
			 :
			 : "r15");
	check(a == b && a && !(a & 0xfff), "MOV from CR3");
	__asm__ volatile("mov %1, %%cr2; mov %%cr2, %%rcx; mov %%rcx, %0"
			 : "=r"(a)
			 : "r"(0x123456789abull)
			 : "rcx");
	check_eq(a, 0x123456789ab, "MOV from CR2");
}

static void test_bases(void)
{
	uint64_t words[4] = { 1, 2, 3, 4 }, v;

	wrmsr(FS_BASE, (uintptr_t)words);
	wrmsr(GS_BASE, (uintptr_t)(words + 1));
	wrmsr(KERNEL_GS, (uintptr_t)(words + 2));
	__asm__ volatile("mov %%fs:8, %0" : "=r"(v));
	check_eq(v, 2, "FS base");
	__asm__ volatile("swapgs; mov %%gs:0, %0; swapgs" : "=r"(v));
	check_eq(v, 3, "SWAPGS");
	__asm__ volatile("mov %%gs:0, %0" : "=r"(v));
	check_eq(v, 2, "and back");
	__asm__ volatile("mov %1, %%fs; mov %%fs:(%2), %0"
			 : "=r"(v)
			 : "r"(KDATA), "r"(words)
			 : "memory");
	check_eq(v, 1, "loading FS clears its base");
	check_eq(rdmsr(FS_BASE), 0, "also in the MSR");
	if (cpuid(7, 0).b & 1) {
		check_fault(catch (fsgsbase_instructions, words), UD, 0,
			    "#UD WRFSBASE without CR4.FSGSBASE");
		write_cr4(read_cr4() | 1 << 16);
		fsgsbase_instructions(words);
		check_fault(catch (wrfsbase_bad, NULL), GP, 0, "#GP WRFSBASE non-canonical");
		test_base_values();
		test_new_base(words);
	} else {
		skip("FSGSBASE", "not shown");
	}
}

void guest_main(void)
{
	test_syscall();
	test_many();
	test_compat();
	test_sysenter();
	test_bases();
	test_stores();
}
