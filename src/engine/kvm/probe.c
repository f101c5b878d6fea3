/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is the KVM of this host worth using?  /dev/kvm may open and still emulate ring 0 instruction by
 * instruction (paravirtual KVM without VMX or SVM), so: run some in long mode and take the time.
 *
 * A tiny VM of one vCPU: 2 MiB identity-mapped page, a counting loop, then instructions that
 * incomplete emulators stumble over.  A host timer ends a guest that does not come back.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "engine/kvm/kvm.h"

#define PROBE_MIN_MIPS	   50.0
#define PROBE_BUDGET_NS	   120000000LL /* of guest execution; creating and closing take the rest */
#define PROBE_FIRST_LOOPS  2048	       /* 4 instructions each: 7 ms where ring 0 is emulated */
#define PROBE_SECOND_LOOPS 1000000
#define PROBE_MEM	   0x10000
#define PML4		   0x1000
#define PDPT		   0x2000
#define PD		   0x3000
#define CODE		   0x4000
#define DATA		   0x8000

/*
 * rcx: loops.
 * 1: add rax,rbx; xor rdx,rax; dec rcx; jnz 1b; out 0xf4,al;
 * lock cmpxchg16b [rsi]; movups xmm0,[rsi]; lock xadd [rsi],rax; mov rax,cr3; mov cr3,rax;
 * mov al,1; out 0xf4,al
 */
static const uint8_t probe_code[] = {
	0x48, 0x01, 0xd8, 0x48, 0x31, 0xc2, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0xe6,
	0xf4, 0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0x0f, 0x10, 0x06, 0xf0, 0x48, 0x0f,
	0xc1, 0x06, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xb0, 0x01, 0xe6, 0xf4,
};
#define CODE_AFTER_LOOP 13

struct probe {
	int dev, vm, vcpu;
	size_t run_bytes;
	struct kvm_run *run;
	uint8_t *mem;
	timer_t timer;
	bool has_timer;
};

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void probe_close(struct probe *p)
{
	if (p->has_timer)
		timer_delete(p->timer);
	if (p->run)
		munmap(p->run, p->run_bytes);
	if (p->vcpu >= 0)
		close(p->vcpu);
	if (p->vm >= 0)
		close(p->vm);
	if (p->mem)
		munmap(p->mem, PROBE_MEM);
	if (p->dev >= 0)
		close(p->dev);
}

/* The clause for people, and that KVM is no use. */
static void refuse(struct engine_probe *out, const char *what, int rc)
{
	snprintf(out->reason, sizeof(out->reason), "%s%s%s", what, rc ? ": " : "",
		 rc ? strerror(-rc) : "");
}

static void put64(struct probe *p, unsigned at, uint64_t value)
{
	memcpy(p->mem + at, &value, 8);
}

static bool set_up_memory(struct probe *p, struct engine_probe *out)
{
	void *mem =
		host.mmap(NULL, PROBE_MEM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED) {
		refuse(out, "no memory for the probe", -errno);
		return false;
	}
	p->mem = mem;
	put64(p, PML4, PDPT | 3);
	put64(p, PDPT, PD | 3);
	put64(p, PD, 0x83); /* 2 MiB at 0 */
	memcpy(p->mem + CODE, probe_code, sizeof(probe_code));
	struct kvm_userspace_memory_region r = { .memory_size = PROBE_MEM,
						 .userspace_addr = (uintptr_t)p->mem };
	int rc = kvm_ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &r);
	if (rc < 0)
		refuse(out, "KVM refuses memory", rc);
	return rc >= 0;
}

static bool set_up_vcpu(struct probe *p, struct engine_probe *out)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[256];
	} cpuid = { .head.nent = 256 };
	struct kvm_sregs s;

	p->vcpu = kvm_ioctl(p->vm, KVM_CREATE_VCPU, NULL);
	if (p->vcpu < 0) {
		refuse(out, "KVM does not create a vCPU", p->vcpu);
		return false;
	}
	void *run = host.mmap(NULL, p->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu, 0);
	if (run == MAP_FAILED) {
		refuse(out, "KVM's shared page cannot be mapped", -errno);
		return false;
	}
	p->run = run;
	int rc = kvm_ioctl(p->dev, KVM_GET_SUPPORTED_CPUID, &cpuid);
	if (rc >= 0)
		rc = kvm_ioctl(p->vcpu, KVM_SET_CPUID2, &cpuid);
	if (rc >= 0)
		rc = kvm_ioctl(p->vcpu, KVM_GET_SREGS, &s);
	if (rc >= 0) {
		struct kvm_segment code = {
			.limit = 0xffffffff, .selector = 8, .type = 11, .s = 1, .present = 1, .l = 1, .g = 1
		};
		struct kvm_segment data = {
			.limit = 0xffffffff, .selector = 16, .type = 3, .s = 1, .present = 1, .db = 1, .g = 1
		};

		s.cs = code;
		s.ds = s.es = s.fs = s.gs = s.ss = data;
		s.cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_PG;
		s.cr3 = PML4;
		s.cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
		s.efer = X86_EFER_LME | X86_EFER_LMA;
		rc = kvm_ioctl(p->vcpu, KVM_SET_SREGS, &s);
	}
	if (rc < 0)
		refuse(out, "KVM refuses long mode", rc);
	return rc >= 0;
}

static bool set_up_timer(struct probe *p, struct engine_probe *out)
{
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KVM_KICK_SIGNAL };
	const struct itimerspec at = { .it_value.tv_nsec = PROBE_BUDGET_NS };

	ev._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	p->has_timer = timer_create(CLOCK_MONOTONIC, &ev, &p->timer) == 0;
	if (!p->has_timer || timer_settime(p->timer, 0, &at, NULL)) {
		refuse(out, "the probe has no timer", -errno);
		return false;
	}
	return true;
}

static bool set_up(struct probe *p, struct engine_probe *out)
{
	p->dev = host.open("/dev/kvm", O_RDWR | O_CLOEXEC, 0);
	if (p->dev < 0) {
		refuse(out, "/dev/kvm cannot be opened", -errno);
		return false;
	}
	if (kvm_ioctl(p->dev, KVM_GET_API_VERSION, NULL) != KVM_API_VERSION) {
		refuse(out, "/dev/kvm speaks another version of its interface", 0);
		return false;
	}
	int bytes = kvm_ioctl(p->dev, KVM_GET_VCPU_MMAP_SIZE, NULL);
	p->run_bytes = bytes > 0 ? (size_t)bytes : 0;
	p->vm = kvm_ioctl(p->dev, KVM_CREATE_VM, NULL);
	if (p->vm < 0 || p->run_bytes < sizeof(struct kvm_run)) {
		refuse(out, "KVM does not create a VM", p->vm < 0 ? p->vm : 0);
		return false;
	}
	return set_up_memory(p, out) && set_up_vcpu(p, out) && set_up_timer(p, out);
}

/*
 * Run from @rip to the next OUT to port F4H.  Returns nanoseconds, or -1 with the reason in @out.
 */
static int64_t run_to_out(struct probe *p, uint64_t rip, uint64_t loops, struct engine_probe *out)
{
	struct kvm_regs regs = { .rip = rip, .rcx = loops, .rsi = DATA, .rflags = 2 };
	int rc = kvm_ioctl(p->vcpu, KVM_SET_REGS, &regs);
	int64_t start = now_ns();

	if (rc >= 0 && host.ioctl(p->vcpu, KVM_RUN, NULL) < 0)
		rc = -errno;
	int64_t took = now_ns() - start;
	if (rc == -EINTR) {
		snprintf(out->reason, sizeof(out->reason),
			 "%llu ring-0 instructions were not done in %lld ms",
			 (unsigned long long)loops * 4, (long long)(took / 1000000));
		return -1;
	}
	if (rc < 0) {
		refuse(out, "KVM does not run", rc);
		return -1;
	}
	if (p->run->exit_reason == KVM_EXIT_IO && p->run->io.port == 0xf4)
		return took;
	if (kvm_ioctl(p->vcpu, KVM_GET_REGS, &regs) < 0)
		regs.rip = 0;
	if (p->run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		snprintf(out->reason, sizeof(out->reason),
			 "KVM cannot execute a ring-0 %s (internal error %u)",
			 regs.rip == CODE + CODE_AFTER_LOOP ? "LOCK CMPXCHG16B" : "instruction",
			 p->run->internal.suberror);
	else
		snprintf(out->reason, sizeof(out->reason),
			 "ring-0 code ends unexpectedly at %#llx (KVM exit %u)",
			 (unsigned long long)(regs.rip - CODE), p->run->exit_reason);
	return -1;
}

static void measure(struct probe *p, struct engine_probe *out)
{
	uint64_t loops = PROBE_FIRST_LOOPS;
	int64_t took = run_to_out(p, CODE, 1, out); /* first entry: page faults, caches */

	if (took >= 0)
		took = run_to_out(p, CODE, loops, out);
	if (took >= 0 && took < 1000000) { /* fast: the exit itself would dominate */
		loops = PROBE_SECOND_LOOPS;
		took = run_to_out(p, CODE, loops, out);
	}
	if (took < 0)
		return;
	out->mips = (double)loops * 4 * 1000 / (double)MAX(took, 1);
	if (out->mips < PROBE_MIN_MIPS) {
		snprintf(
			out->reason, sizeof(out->reason),
			"this host's KVM emulates ring-0 code: %.1f million instructions a second, "
			"%.0f are the least that make sense",
			out->mips, PROBE_MIN_MIPS);
		return;
	}
	if (run_to_out(p, CODE + CODE_AFTER_LOOP, 0, out) < 0)
		return;
	out->is_usable = true;
	snprintf(out->reason, sizeof(out->reason),
		 "KVM runs ring-0 code at %.0f million instructions a second", out->mips);
}

void kvm_probe(struct engine_probe *out)
{
	struct probe p = { .dev = -1, .vm = -1, .vcpu = -1 };
	sigset_t unblock, before;
	int rc = kvm_own_signal();

	memset(out, 0, sizeof(*out));
	sigemptyset(&unblock);
	sigaddset(&unblock, KVM_KICK_SIGNAL);
	if (rc >= 0)
		rc = -pthread_sigmask(SIG_UNBLOCK, &unblock, &before);
	if (rc < 0) {
		refuse(out, "the probe's signal cannot be set up", rc);
		return;
	}
	if (set_up(&p, out))
		measure(&p, out);
	probe_close(&p);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}
