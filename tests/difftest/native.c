/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host side of the comparison.
 *
 * native_run() loads x87, SSE, AVX, flags and all sixteen registers and jumps to the instruction.  After it stands
 * a jump through memory to native_exit, which changes nothing; everything else in the code pages is INT3, so a
 * taken branch ends in SIGTRAP.  Faults end in the signal handler (alternate stack: rsp is the guest's), which
 * copies the registers from the context.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <asm/ldt.h>
#include <ucontext.h>
#include <unistd.h>

#include "native.h"

struct native_state native;
const struct {
	_Alignas(64) uint8_t b[XSAVE_BYTES];
} native_fpu_init = { { [24] = 0x80, [25] = 0x1f } };

void native_enter(void);
extern const char native_exit[], native_fault_exit[], native_far_jump[];

_Static_assert(__builtin_offsetof(struct native_state, rflags) == 136, "assembly");
_Static_assert(__builtin_offsetof(struct native_state, host_rsp) == 144, "assembly");
_Static_assert(__builtin_offsetof(struct native_state, far_off) == 176, "assembly");
_Static_assert(__builtin_offsetof(struct native_state, data_sel) == 182, "assembly");
_Static_assert(__builtin_offsetof(struct native_state, entry) == 184, "assembly");
_Static_assert(__builtin_offsetof(struct native_state, xsave) == 192, "assembly");

#define EXIT_VA	   (CODE_VA + 0x10000)
#define USER_CS64  0x33
#define USER_CS32  0x23
#define USER_DS	   0x2b
#define LDT_SEL(n) ((n) << 3 | 7)

// clang-format off
__asm__(".text\n"
	".globl native_enter\n"
	"native_enter:\n"
	"	push %rbx\n"
	"	push %rbp\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	mov %rsp, native+144(%rip)\n"
	"	mov $7, %eax\n"
	"	xor %edx, %edx\n"
	"	xrstor64 native+192(%rip)\n"
	"	mov native+182(%rip), %ax\n"
	"	test %ax, %ax\n"
	"	jz 1f\n"
	"	mov %eax, %ds\n"
	"	mov %eax, %es\n"
	"	mov %eax, %ss\n"
	"1:	pushq native+136(%rip)\n"
	"	popfq\n"
	"	mov native+0(%rip), %rax\n"
	"	mov native+8(%rip), %rcx\n"
	"	mov native+16(%rip), %rdx\n"
	"	mov native+24(%rip), %rbx\n"
	"	mov native+40(%rip), %rbp\n"
	"	mov native+48(%rip), %rsi\n"
	"	mov native+56(%rip), %rdi\n"
	"	mov native+64(%rip), %r8\n"
	"	mov native+72(%rip), %r9\n"
	"	mov native+80(%rip), %r10\n"
	"	mov native+88(%rip), %r11\n"
	"	mov native+96(%rip), %r12\n"
	"	mov native+104(%rip), %r13\n"
	"	mov native+112(%rip), %r14\n"
	"	mov native+120(%rip), %r15\n"
	"	mov native+32(%rip), %rsp\n"
	"	jmp *native+184(%rip)\n"
	".globl native_far_jump\n"
	"native_far_jump:\n"
	"	ljmpl *native+176(%rip)\n"
	".globl native_exit\n"
	"native_exit:\n"
	"	mov %rax, native+0(%rip)\n"
	"	mov %rcx, native+8(%rip)\n"
	"	mov %rdx, native+16(%rip)\n"
	"	mov %rbx, native+24(%rip)\n"
	"	mov %rsp, native+32(%rip)\n"
	"	mov %rbp, native+40(%rip)\n"
	"	mov %rsi, native+48(%rip)\n"
	"	mov %rdi, native+56(%rip)\n"
	"	mov %r8, native+64(%rip)\n"
	"	mov %r9, native+72(%rip)\n"
	"	mov %r10, native+80(%rip)\n"
	"	mov %r11, native+88(%rip)\n"
	"	mov %r12, native+96(%rip)\n"
	"	mov %r13, native+104(%rip)\n"
	"	mov %r14, native+112(%rip)\n"
	"	mov %r15, native+120(%rip)\n"
	"	mov native+144(%rip), %rsp\n"
	"	mov $0x2b, %eax\n"
	"	mov %eax, %ss\n"
	"	pushfq\n"
	"	popq native+136(%rip)\n"
	"	mov $7, %eax\n"
	"	xor %edx, %edx\n"
	"	xsave64 native+192(%rip)\n"
	".globl native_fault_exit\n"
	"native_fault_exit:\n"
	"	cld\n"
	"	mov native+144(%rip), %rsp\n"
	"	mov $7, %eax\n"
	"	xor %edx, %edx\n"
	"	xrstor64 native_fpu_init(%rip)\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbp\n"
	"	pop %rbx\n"
	"	ret\n");
// clang-format on

static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
static struct sigaction old_actions[5];
static volatile sig_atomic_t is_active;
static uint8_t *arena_view, *code_view;
static unsigned mode = 64;
static bool keeps_rsp = true;

static void on_signal(int sig, siginfo_t *info, void *context)
{
	static const uint8_t order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
					   REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
					   REG_R12, REG_R13, REG_R14, REG_R15 };
	ucontext_t *uc = context;
	greg_t *g = uc->uc_mcontext.gregs;
	unsigned i;

	if (!is_active) {
		for (i = 0; signals[i] != sig; i++)
			;
		if (old_actions[i].sa_flags & SA_SIGINFO) {
			old_actions[i].sa_sigaction(sig, info, context);
			return;
		}
		signal(sig, SIG_DFL);
		return;
	}
	for (i = 0; i < 16; i++)
		native.gpr[i] = (uint64_t)g[order[i]];
	native.rip = (uint64_t)g[REG_RIP];
	native.rflags = (uint64_t)g[REG_EFL];
	native.vector = g[REG_TRAPNO];
	native.error = (uint64_t)g[REG_ERR];
	native.cr2 = (uint64_t)g[REG_CR2];
	memcpy(native.xsave, uc->uc_mcontext.fpregs, XSAVE_BYTES);
	memset(native.xsave + 464, 0, 48); /* the kernel's own words */
	is_active = 0;
	g[REG_EFL] &= ~0x400;		      /* DF */
	g[REG_RSP] = (greg_t)native.host_rsp; /* not every host returns to any (native_keeps_rsp()) */
	g[REG_RIP] = (greg_t)(uintptr_t)native_fault_exit;
	g[REG_CSGSFS] = (g[REG_CSGSFS] & 0x0000ffffffff0000) | USER_CS64 | (greg_t)USER_DS << 48;
}

static void *map(uint64_t va, size_t len, int prot, int fd, off_t off)
{
	void *p = mmap((void *)(uintptr_t)va, len, prot,
		       (fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS) |
			       (va ? MAP_FIXED_NOREPLACE : 0),
		       fd, off);

	if (p == MAP_FAILED || (va && p != (void *)(uintptr_t)va)) {
		perror("difftest: mmap");
		exit(2);
	}
	return p;
}

/* 64-bit code that 32-bit code can jump to. */
static void put_low_exit(void)
{
	static const uint8_t jmp[6] = { 0xff, 0x25, 0, 0, 0, 0 }; /* jmp [rip+0] */
	uint64_t to = (uintptr_t)native_exit;
	uint8_t *p = map(EXIT_VA, 4096, PROT_READ | PROT_WRITE, -1, 0);

	memcpy(p, jmp, 6);
	memcpy(p + 6, &to, 8);
	mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

void native_init(void)
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	int fd = memfd_create("difftest", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, ARENA_BYTES + CODE_BYTES) < 0) {
		perror("difftest: memfd_create");
		exit(2);
	}
	map(ARENA_VA - 4096, 4096, PROT_NONE, -1, 0);
	map(ARENA_VA, ARENA_RW_PAGES * 4096, PROT_READ | PROT_WRITE, fd, 0);
	map(ARENA_VA + ARENA_RW_PAGES * 4096, (ARENA_PAGES - ARENA_RW_PAGES) * 4096, PROT_READ, fd,
	    ARENA_RW_PAGES * 4096);
	map(ARENA_VA + ARENA_BYTES, 4096, PROT_NONE, -1, 0);
	map(CODE_VA - 4096, 4096, PROT_NONE, -1, 0);
	map(CODE_VA, CODE_BYTES, PROT_READ | PROT_EXEC, fd, ARENA_BYTES);
	map(CODE_VA + CODE_BYTES, 4096, PROT_NONE, -1, 0);
	put_low_exit();
	arena_view = map(0, ARENA_BYTES, PROT_READ | PROT_WRITE, fd, 0);
	code_view = map(0, CODE_BYTES, PROT_READ | PROT_WRITE, fd, ARENA_BYTES);
	close(fd);
	memset(code_view, 0xcc, CODE_BYTES);
	/* Fault the pages in: the first fault of each must be the instruction's own. */
	memset(arena_view, 0, ARENA_BYTES);
	for (unsigned i = 0; i < ARENA_PAGES; i++)
		*(volatile uint8_t *)(uintptr_t)(ARENA_VA + i * 4096);
	for (unsigned i = 0; i < ARENA_RW_PAGES; i++)
		*(volatile uint8_t *)(uintptr_t)(ARENA_VA + i * 4096) = 0;

	sigemptyset(&sa.sa_mask);
	for (unsigned i = 0; i < 5; i++)
		if (sigaction(signals[i], &sa, &old_actions[i]) < 0) {
			perror("difftest: sigaction");
			exit(2);
		}
}

uint8_t *native_arena(void)
{
	return arena_view;
}

uint8_t *native_code(void)
{
	return code_view;
}

unsigned native_put_exit(unsigned off)
{
	static const uint8_t jmp[6] = { 0xff, 0x25, 0, 0, 0, 0 }; /* jmp [rip+0] */
	uint64_t to = (uintptr_t)native_exit;
	uint32_t low = EXIT_VA;
	uint8_t *p = code_view + off;
	unsigned n = 0;

	if (mode == 64) {
		memcpy(p, jmp, 6);
		memcpy(p + 6, &to, 8);
		return 14;
	}
	/* jmp far 33:EXIT_VA, where the jump to native_exit is */
	if (mode == 16)
		p[n++] = 0x66;
	p[n++] = 0xea;
	memcpy(p + n, &low, 4);
	p[n + 4] = USER_CS64;
	p[n + 5] = 0;
	return n + 6;
}

void native_run(uint64_t rip)
{
	native.rip = rip;
	native.vector = -1;
	native.error = native.cr2 = 0;
	native.far_off = (uint32_t)rip;
	native.far_sel = mode == 32 ? USER_CS32 : LDT_SEL(0);
	native.data_sel = mode == 64 ? 0 : mode == 32 ? USER_DS : LDT_SEL(1);
	native.entry = mode == 64 ? rip : (uintptr_t)native_far_jump;
	is_active = 1;
	native_enter();
	is_active = 0;
}

/* Runs what is at the start of the code pages, with the stack pointer @rsp; is it through without a fault? */
static bool can_run(const uint8_t *code, unsigned len, uint64_t rsp)
{
	memcpy(code_view, code, len);
	unsigned end = len + native_put_exit(len);

	memset(native.gpr, 0, sizeof(native.gpr));
	native.gpr[0] = SYS_getpid;
	native.gpr[4] = rsp;
	native.rflags = 0x202;
	memcpy(native.xsave, &native_fpu_init, XSAVE_BYTES);
	native_run(mode == 16 ? 0 : CODE_VA);
	memset(code_view, 0xcc, end);
	return native.vector < 0;
}

bool native_keeps_rsp(void)
{
	return keeps_rsp;
}

int native_set_mode(unsigned bits)
{
	static const uint8_t nop[] = { 0x90 }, call_kernel[] = { 0x0f, 0x05 };
	struct user_desc code = {
		.entry_number = 0,
		.base_addr = CODE_VA,
		.limit = 0xffff,
		.contents = MODIFY_LDT_CONTENTS_CODE,
	};
	struct user_desc data = {
		.entry_number = 1,
		.base_addr = DATA16_VA,
		.limit = 0xffff,
		.contents = MODIFY_LDT_CONTENTS_DATA,
	};

	if (bits == 16 && (syscall(SYS_modify_ldt, 1, &code, sizeof(code)) < 0 ||
			   syscall(SYS_modify_ldt, 1, &data, sizeof(data)) < 0))
		return -errno;
	mode = bits;
	if (!can_run(nop, sizeof(nop), bits == 16 ? 0x2000 : ARENA_VA + 4096))
		return -ENOTSUP;
	keeps_rsp = bits != 64 || can_run(call_kernel, sizeof(call_kernel), 1ULL << 62);
	return 0;
}
