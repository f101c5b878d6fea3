/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host signals that are guest exceptions, and the per-thread host state of a vCPU.
 *
 * A guest instruction that faults on the host CPU arrives here as SIGFPE, SIGSEGV, SIGBUS or SIGILL, on the
 * thread's alternate stack.  If the pc lies in a thunk the thread continues at the thunk's landing; else
 * the translator is asked; else the previous action of the signal is restored and the instruction runs
 * again, so that a bug of ours dies as it should, with a core file at the right place.
 */
#include <asm/prctl.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "engine/dbt/thunk.h"

#define ALT_STACK_BYTES                                                                            \
	(64 * KIB) /* for the handlers; the frame of the host's kernel comes on top */
#define HWCAP2_FSGSBASE_BIT 2

enum { TRAP_DE = 0, TRAP_UD = 6, TRAP_GP = 13, TRAP_MF = 16, TRAP_XM = 19 };

bool thunk_fault(struct dbt_cpu *cpu, ucontext_t *uc); /* thunk.c */

bool (*dbt_xlate_fault)(struct dbt_cpu *cpu, ucontext_t *uc, int sig);

static const int fault_signals[] = { SIGFPE, SIGSEGV, SIGBUS, SIGILL };
static struct sigaction old_actions[ARRAY_SIZE(fault_signals)];
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int install_result;

static _Thread_local struct dbt_cpu *current_cpu;
static _Thread_local void *alt_stack;
static _Thread_local size_t alt_stack_bytes;
static _Thread_local stack_t old_alt_stack;

struct dbt_cpu *thunk_thread_cpu(void)
{
	return current_cpu;
}

int dbt_fault_vector(const struct dbt_cpu *cpu, const ucontext_t *uc)
{
	switch (uc->uc_mcontext.gregs[REG_TRAPNO]) {
	case TRAP_DE:
		return EXC_DE;
	case TRAP_UD:
		return EXC_UD;
	case TRAP_GP:
		return EXC_GP;
	case TRAP_MF:
		return EXC_MF;
	case TRAP_XM:
		return cpu->s.cr4 & X86_CR4_OSXMMEXCPT ? EXC_XM : EXC_UD;
	default:
		return -1;
	}
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	struct dbt_cpu *cpu = current_cpu;
	ucontext_t *uc = context;

	if (info->si_code > 0 && cpu) { /* not sent by somebody */
		if (thunk_fault(cpu, uc))
			return;
		if (dbt_xlate_fault && dbt_xlate_fault(cpu, uc, sig))
			return;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(fault_signals); i++)
		if (fault_signals[i] == sig)
			sigaction(sig, &old_actions[i], NULL);
	if (info->si_code <= 0)
		raise(sig); /* would not come again by itself */
}

static void install(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	sigemptyset(&sa.sa_mask);
	for (unsigned i = 0; i < ARRAY_SIZE(fault_signals); i++)
		if (sigaction(fault_signals[i], &sa, &old_actions[i]) < 0) {
			install_result = -errno;
			return;
		}
}

int dbt_signal_init(struct error *err)
{
	pthread_once(&once, install);
	if (install_result < 0)
		return error_set(err, install_result, "cannot install signal handlers (errno %d)",
				 -install_result);
	return 0;
}

static int set_gs_base(struct dbt_cpu *cpu)
{
	if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT) {
		__asm__ volatile("wrgsbase %0" : : "r"(cpu));
		return 0;
	}
	return syscall(SYS_arch_prctl, ARCH_SET_GS, cpu) < 0 ? -errno : 0;
}

int thunk_thread_init(struct dbt_cpu *cpu, struct error *err)
{
	int ret;

	if (current_cpu == cpu)
		return 0;
	ret = dbt_signal_init(err);
	if (ret < 0)
		return ret;
	if (!alt_stack) {
		/* A frame holds all of the host's vector state: 11 KiB with AMX, and it grows with the CPUs. */
		stack_t ss = { .ss_size = ALT_STACK_BYTES + getauxval(AT_MINSIGSTKSZ) };

		ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
		if (ss.ss_sp == MAP_FAILED)
			return error_set(err, -errno, "no memory for a signal stack");
		if (sigaltstack(&ss, &old_alt_stack) < 0) {
			ret = -errno;
			munmap(ss.ss_sp, ss.ss_size);
			return error_set(err, ret, "cannot set a signal stack (errno %d)", -ret);
		}
		alt_stack = ss.ss_sp;
		alt_stack_bytes = ss.ss_size;
	}
	ret = set_gs_base(cpu);
	if (ret < 0)
		return error_set(err, ret, "cannot set the GS base (errno %d)", -ret);
	current_cpu = cpu;
	return 0;
}

void thunk_thread_finish(void)
{
	current_cpu = NULL;
	if (alt_stack) {
		sigaltstack(&old_alt_stack, NULL);
		munmap(alt_stack, alt_stack_bytes);
		alt_stack = NULL;
	}
}
