/* SPDX-License-Identifier: Apache-2.0 */
/* One vCPU of the kvm engine: CPUID, the run loop, kicks and injection; the story is in kvm.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"

#define CPUID_MAX	  256
#define CPUID_SUBLEAF_MAX 64

/* ---- CPUID ---- */

static uint32_t *cpuid_word(struct kvm_cpuid_entry2 *e, unsigned reg)
{
	uint32_t *words[4] = { &e->eax, &e->ebx, &e->ecx, &e->edx };

	return words[reg];
}

static const struct kvm_cpuid_entry2 *find_leaf(const struct kvm_cpuid2 *t, uint32_t leaf, uint32_t sub)
{
	for (unsigned i = 0; i < t->nent; i++)
		if (t->entries[i].function == leaf &&
		    (!(t->entries[i].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) ||
		     t->entries[i].index == sub))
			return &t->entries[i];
	return NULL;
}

static bool is_offered(const struct kvm_cpuid2 *sup, uint32_t leaf, uint32_t sub, unsigned reg,
		       unsigned bit)
{
	const struct kvm_cpuid_entry2 *e = find_leaf(sup, leaf, sub);
	struct kvm_cpuid_entry2 copy;

	if (!e)
		return false;
	copy = *e;
	return *cpuid_word(&copy, reg) >> bit & 1;
}

void kvm_filter_model(struct cpu_model *m, const struct kvm_cpuid2 *sup, bool has_tsc_deadline)
{
	bool wants_deadline = m->has[CPUF_TSC_DEADLINE];
	bool wants_hypervisor = m->has[CPUF_HYPERVISOR];
	bool wants_invariant = m->has[CPUF_INVARIANT_TSC];

#define X(name, leaf, subleaf, reg, bit)                                                           \
	m->has[CPUF_##name] = m->has[CPUF_##name] && is_offered(sup, leaf, subleaf, reg, bit);
#include "engine/cpu_features.def"
#undef X
	/* Not in the table of older kernels though offered by other means. */
	m->has[CPUF_TSC_DEADLINE] = wants_deadline && has_tsc_deadline;
	m->has[CPUF_HYPERVISOR] = wants_hypervisor;
	m->has[CPUF_INVARIANT_TSC] = wants_invariant;
	if (!m->has[CPUF_XSAVE])
		m->has[CPUF_AVX] = m->has[CPUF_AVX2] = m->has[CPUF_FMA] = m->has[CPUF_F16C] =
			m->has[CPUF_VAES] = m->has[CPUF_VPCLMUL] = m->has[CPUF_XSAVEOPT] =
				m->has[CPUF_XSAVEC] = m->has[CPUF_XGETBV1] = m->has[CPUF_XSAVES] =
					false;
	if (!m->has[CPUF_AVX])
		m->xcr0_mask &= 3;
	const struct kvm_cpuid_entry2 *sizes = find_leaf(sup, 0x80000008, 0);
	if (sizes && (sizes->eax & 0xff) >= 36)
		m->phys_bits = MIN(m->phys_bits, (uint8_t)(sizes->eax & 0xff));
}

static bool has_subleaves(uint32_t leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0xf ||
	       leaf == 0x10 || leaf == 0x12 || leaf == 0x14 || leaf == 0x17 || leaf == 0x18 ||
	       leaf == 0x1f || leaf == 0x8000001d;
}

/* Appends one entry; the caller checked for room. */
static void put_leaf(const struct cpu_model *m, const struct cpuid_env *env, uint32_t leaf,
		     uint32_t sub, struct kvm_cpuid_entry2 *e)
{
	struct cpuid_regs r;

	cpuid_query(m, env, leaf, sub, &r);
	*e = (struct kvm_cpuid_entry2){
		.function = leaf,
		.index = sub,
		.flags = has_subleaves(leaf) ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
		.eax = r.eax,
		.ebx = r.ebx,
		.ecx = r.ecx,
		.edx = r.edx,
	};
}

static bool is_empty(const struct kvm_cpuid_entry2 *e)
{
	return !(e->eax | e->ebx | e->ecx | e->edx);
}

int kvm_build_cpuid(const struct cpu_model *m, const struct kvm_cpuid2 *sup, unsigned apic_id,
		    struct kvm_cpuid_entry2 *out, unsigned max)
{
	static const uint32_t ranges[] = { 0, 0x40000000, 0x80000000 };
	/* KVM itself keeps OSXSAVE, the APIC bit and the sizes of leaf 0DH up to date afterwards.
	 */
	struct cpuid_env env = { .apic_id = apic_id, .xcr0 = 1, .apic_enabled = true };
	unsigned n = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++) {
		struct cpuid_regs top;

		cpuid_query(m, &env, ranges[i], 0, &top);
		if (ranges[i] == 0x40000000 && !m->has[CPUF_HYPERVISOR])
			continue;
		uint32_t last = MIN(top.eax, ranges[i] + 0xff);
		for (uint32_t leaf = ranges[i]; leaf >= ranges[i] && leaf <= last; leaf++) {
			uint32_t subs = has_subleaves(leaf) ? CPUID_SUBLEAF_MAX : 1;

			for (uint32_t sub = 0; sub < subs; sub++) {
				struct kvm_cpuid_entry2 e;

				put_leaf(m, &env, leaf, sub, &e);
				if (sub && is_empty(&e) && leaf != 0xd)
					break;
				if (sub > 1 && is_empty(&e))
					continue; /* leaf 0DH has gaps */
				if (leaf == 0x40000001) {
					const struct kvm_cpuid_entry2 *k = find_leaf(sup, leaf, 0);

					e.eax &= k ? k->eax : 0;
				}
				if (n == max)
					return -E2BIG;
				out[n++] = e;
			}
		}
	}
	return (int)n;
}

static int set_cpuid(struct kvm_vcpu *v, struct error *err)
{
	_cleanup_free_ struct kvm_cpuid2 *t = calloc(1, sizeof(*t) + CPUID_MAX * sizeof(t->entries[0]));

	if (!t)
		return error_set(err, -ENOMEM, "no memory for a CPUID table");
	int n = kvm_build_cpuid(&v->vm->model, v->vm->supported, v->index, t->entries, CPUID_MAX);
	if (n < 0)
		return error_set(err, n, "the CPU model has too many CPUID leaves");
	t->nent = (uint32_t)n;
	int rc = kvm_ioctl(v->fd, KVM_SET_CPUID2, t);
	return rc < 0 ? error_set(err, rc, "KVM refuses the CPUID table: %s", strerror(-rc)) : 0;
}

/* ---- life cycle ---- */

void kvm_vcpu_destroy(struct engine_vcpu *ev)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);

	if (!v)
		return;
	if (v->step)
		engine_dbt.vcpu_destroy(v->step);
	if (v->run)
		munmap(v->run, v->vm->run_bytes);
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

static int open_vcpu(struct kvm_vcpu *v, struct error *err)
{
	struct kvm_vm *vm = v->vm;

	v->fd = kvm_ioctl(vm->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)v->index);
	if (v->fd < 0)
		return error_set(err, v->fd, "KVM does not create vCPU %u: %s", v->index,
				 strerror(-v->fd));
	void *p = host.mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (p == MAP_FAILED)
		return error_set(err, -errno, "vCPU %u's shared page cannot be mapped: %s",
				 v->index, strerror(errno));
	v->run = p;
	int khz = kvm_ioctl(v->fd, KVM_GET_TSC_KHZ, NULL);
	if (khz > 0) {
		vm->tsc_khz = (uint32_t)khz;
		if (vm->model.tsc_khz)
			vm->model.tsc_khz = (uint32_t)khz;
	}
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET };
	vm->has_tsc_offset = kvm_ioctl(v->fd, KVM_HAS_DEVICE_ATTR, &attr) >= 0;
	return 0;
}

int kvm_vcpu_create(struct engine_vcpu **out, struct engine_vm *evm, unsigned index,
		    const struct vcpu_up *up, struct error *err)
{
	struct kvm_vcpu *v = calloc(1, sizeof(*v));

	if (!v)
		return error_set(err, -ENOMEM, "no memory for a vCPU");
	v->vm = to_kvm_vm(evm);
	v->fd = -1;
	v->index = index;
	v->up = *up;
	int rc = open_vcpu(v, err);
	if (rc >= 0)
		rc = set_cpuid(v, err);
	if (rc < 0) {
		kvm_vcpu_destroy((struct engine_vcpu *)(void *)v);
		return rc;
	}
	kvm_state_find_msrs(v);
	v->tsc_offset = kvm_vcpu_get_tsc_offset((struct engine_vcpu *)(void *)v);
	*out = (struct engine_vcpu *)(void *)v;
	return 0;
}

/* ---- TSC ---- */

static int tsc_offset_attr(struct kvm_vcpu *v, unsigned long request, int64_t *offset)
{
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL,
					.attr = KVM_VCPU_TSC_OFFSET,
					.addr = (uintptr_t)offset };

	return kvm_ioctl(v->fd, request, &attr);
}

static int tsc_msr(struct kvm_vcpu *v, unsigned long request, uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e;
	} m = { .head.nmsrs = 1, .e = { .index = 0x10, .data = *value } };
	int rc = kvm_ioctl(v->fd, request, &m);

	*value = m.e.data;
	return rc == 1 ? 0 : rc < 0 ? rc : -EINVAL;
}

int64_t kvm_vcpu_get_tsc_offset(struct engine_vcpu *ev)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);
	int64_t offset;
	uint64_t tsc = 0;

	if (v->vm->has_tsc_offset && tsc_offset_attr(v, KVM_GET_DEVICE_ATTR, &offset) >= 0)
		return offset;
	if (tsc_msr(v, KVM_GET_MSRS, &tsc) < 0)
		return atomic_load(&v->tsc_offset);
	return (int64_t)(tsc - __builtin_ia32_rdtsc());
}

/* Paravirtual KVM accepts an offset and leaves the counter alone: look whether it took. */
static void check_tsc_offset(struct kvm_vcpu *v, int64_t wanted)
{
	int64_t got = kvm_vcpu_get_tsc_offset((struct engine_vcpu *)(void *)v);
	uint64_t slack = v->vm->has_tsc_offset ? 0 : 100000000; /* the MSR path is only as exact */
	bool is_off = (uint64_t)(got - wanted) + slack > 2 * slack;

	atomic_store(&v->tsc_offset, got);
	pthread_mutex_lock(&v->vm->lock);
	if (is_off && !v->vm->is_tsc_reported) {
		v->vm->is_tsc_reported = true;
		log_warn("kvm",
			 "this host's KVM cannot shift the guest's time stamp counter: it reads "
			 "as the host's");
	}
	pthread_mutex_unlock(&v->vm->lock);
}

void kvm_vcpu_set_tsc_offset(struct engine_vcpu *ev, int64_t offset)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);
	int64_t given = offset;

	if (!v->vm->has_tsc_offset || tsc_offset_attr(v, KVM_SET_DEVICE_ATTR, &given) < 0) {
		uint64_t tsc = __builtin_ia32_rdtsc() + (uint64_t)offset;
		int rc = tsc_msr(v, KVM_SET_MSRS, &tsc);

		if (rc < 0)
			error_set(&v->broken, rc, "KVM does not set vCPU %u's time stamp counter: %s",
				  v->index, strerror(-rc));
	}
	check_tsc_offset(v, offset);
}

/* ---- news from other threads ---- */

/* See "Kick" in kvm.h. */
static void interrupt_run(struct kvm_vcpu *v)
{
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	int tid = atomic_load(&v->tid);
	if (tid && tid != (int)syscall(SYS_gettid))
		syscall(SYS_tgkill, getpid(), tid, KVM_KICK_SIGNAL); /* gone already: nothing to do */
}

void kvm_vcpu_kick(struct engine_vcpu *ev)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);

	atomic_fetch_or(&v->requests, KVM_REQ_KICKED);
	interrupt_run(v);
}

void kvm_vcpu_raise_nmi(struct engine_vcpu *ev)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);

	atomic_fetch_or(&v->requests, KVM_REQ_NMI_WAITS);
	interrupt_run(v);
}

void kvm_vcpu_set_intr(struct engine_vcpu *ev, bool level)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);

	if (atomic_exchange(&v->intr_line, level) != level && level)
		interrupt_run(v);
}

static int allow_kick_signal(struct kvm_vcpu *v)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, KVM_KICK_SIGNAL);
	return pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* ---- injection ---- */

/* A vector from the PIC, as an event in flight; a halted CPU wakes. */
static int inject_external(struct kvm_vcpu *v, uint8_t vector)
{
	struct kvm_vcpu_events ev;
	struct kvm_mp_state mp;
	int rc = kvm_ioctl(v->fd, KVM_GET_VCPU_EVENTS, &ev);

	if (rc >= 0) {
		ev.interrupt.injected = 1;
		ev.interrupt.nr = vector;
		ev.interrupt.soft = 0;
		ev.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_SIPI_VECTOR;
		rc = kvm_ioctl(v->fd, KVM_SET_VCPU_EVENTS, &ev);
	}
	if (rc >= 0)
		rc = kvm_ioctl(v->fd, KVM_GET_MP_STATE, &mp);
	if (rc >= 0 && mp.mp_state == KVM_MP_STATE_HALTED) {
		mp.mp_state = KVM_MP_STATE_RUNNABLE;
		rc = kvm_ioctl(v->fd, KVM_SET_MP_STATE, &mp);
	}
	return rc;
}

/* What waits for this vCPU, before it runs. */
static int inject_waiting(struct kvm_vcpu *v)
{
	struct kvm_run *run = v->run;
	int rc = 0;

	if (atomic_load(&v->requests) & KVM_REQ_NMI_WAITS) {
		atomic_fetch_and(&v->requests, ~(uint32_t)KVM_REQ_NMI_WAITS);
		rc = kvm_ioctl(v->fd, KVM_NMI, NULL);
		v->counters[KVMC_NMIS]++;
		if (rc < 0)
			return rc;
	}
	run->request_interrupt_window = 0;
	if (!atomic_load(&v->intr_line))
		return 0;
	if (v->is_window_known && run->ready_for_interrupt_injection) {
		int vector = v->up.intr_ack ? v->up.intr_ack(v->up.ctx) : -1;

		v->is_window_known = false;
		if (vector >= 0) {
			rc = inject_external(v, (uint8_t)vector);
			v->counters[KVMC_EXTINTS]++;
		}
	}
	if (atomic_load(&v->intr_line)) {
		run->request_interrupt_window = 1;
		/* A CPU that was loaded halted would wait for good: a window alone does not wake it. */
		if (!v->is_window_known)
			__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	}
	return rc;
}

/* ---- exits ---- */

static uint64_t load_le(const uint8_t *p, unsigned size)
{
	uint64_t v = 0;

	memcpy(&v, p, size);
	return v;
}

static void serve_pio(struct kvm_vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *p = (uint8_t *)run + run->io.data_offset;
	struct vcpu_exit x = { .kind = EXIT_PIO,
			       .size = run->io.size,
			       .addr = run->io.port,
			       .is_write = run->io.direction == KVM_EXIT_IO_OUT };

	v->counters[KVMC_PIO]++;
	for (uint32_t i = 0; i < run->io.count; i++, p += x.size) {
		x.data = x.is_write ? load_le(p, x.size) : 0;
		v->up.on_exit(v->up.ctx, &x);
		if (!x.is_write)
			memcpy(p, &x.data, x.size);
	}
}

static void serve_mmio(struct kvm_vcpu *v)
{
	struct kvm_run *run = v->run;
	struct vcpu_exit x = { .kind = EXIT_MMIO,
			       .size = (uint8_t)run->mmio.len,
			       .addr = run->mmio.phys_addr,
			       .is_write = run->mmio.is_write };

	v->counters[KVMC_MMIO]++;
	if (x.is_write && ram_find(v->vm->ram, x.addr))
		return; /* ROM */
	x.data = x.is_write ? load_le(run->mmio.data, x.size) : 0;
	v->up.on_exit(v->up.ctx, &x);
	if (!x.is_write)
		memcpy(run->mmio.data, &x.data, x.size);
}

static void serve_eoi(struct kvm_vcpu *v)
{
	struct vcpu_exit x = { .kind = EXIT_EOI, .is_write = true, .size = 8, .addr = v->run->eoi.vector };

	v->counters[KVMC_EOI]++;
	v->up.on_exit(v->up.ctx, &x);
}

/* An exit that only the host or KVM itself can explain. */
static enum run_result fail(struct kvm_vcpu *v, struct error *err)
{
	const struct kvm_run *run = v->run;
	struct kvm_regs regs = { 0 };

	(void)kvm_ioctl(v->fd, KVM_GET_REGS, &regs); /* for the sentence only; 0 if even that fails */
	switch (run->exit_reason) {
	case KVM_EXIT_FAIL_ENTRY:
		error_set(err, -EIO,
			  "the host CPU refuses to enter the guest at %#llx (reason %#llx); the "
			  "guest's "
			  "state does not suit this hardware, --engine dbt runs it",
			  (unsigned long long)regs.rip,
			  (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		error_set(err, -EIO, "KVM reports its internal error %u at %#llx; --engine dbt has none",
			  run->internal.suberror, (unsigned long long)regs.rip);
		break;
	default:
		error_set(err, -EIO, "KVM left the guest at %#llx for reason %u, which nobody asked for",
			  (unsigned long long)regs.rip, run->exit_reason);
		break;
	}
	return RUN_FAILED;
}

/* Serve the exit in v->run.  False: vcpu_run ends with *@result. */
static bool serve_exit(struct kvm_vcpu *v, enum run_result *result, struct error *err)
{
	switch (v->run->exit_reason) {
	case KVM_EXIT_IO:
		serve_pio(v);
		v->needs_completion = true;
		return true;
	case KVM_EXIT_MMIO:
		serve_mmio(v);
		v->needs_completion = true;
		return true;
	case KVM_EXIT_IOAPIC_EOI:
		serve_eoi(v);
		return true;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		v->counters[KVMC_WINDOWS]++;
		return true;
	case KVM_EXIT_INTR:
		return true;
	case KVM_EXIT_DEBUG:
		v->counters[KVMC_DEBUG]++;
		*result = RUN_DEBUG;
		return false;
	case KVM_EXIT_SHUTDOWN:
		*result = RUN_SHUTDOWN;
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		if (v->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
			*result = kvm_step(v, err);
			return *result == RUN_KICKED;
		}
		break;
	}
	*result = fail(v, err);
	return false;
}

/* KVM_RUN once.  0: an exit to serve; -EINTR: none; else -errno. */
static int run_once(struct kvm_vcpu *v)
{
	int rc = host.ioctl(v->fd, KVM_RUN, NULL) < 0 ? -errno : 0;

	v->counters[KVMC_RUNS]++;
	v->is_window_known = true;
	v->needs_completion = false;
	/* -EAGAIN: an AP was woken by INIT or SIPI, api.rst 4.10 */
	return rc == -EAGAIN ? -EINTR : rc;
}

static enum run_result run_loop(struct kvm_vcpu *v, struct error *err)
{
	enum run_result result = RUN_FAILED;

	for (;;) {
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		if (v->needs_completion) {
			/* Nothing is injected into a half-done instruction; it ends first. */
			if (atomic_load(&v->requests))
				__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
			v->run->request_interrupt_window = atomic_load(&v->intr_line);
		} else if (atomic_load(&v->requests) & KVM_REQ_KICKED) {
			atomic_fetch_and(&v->requests, ~(uint32_t)KVM_REQ_KICKED);
			v->counters[KVMC_KICKS]++;
			return RUN_KICKED;
		} else {
			int rc = inject_waiting(v);

			if (rc < 0) {
				error_set(err, rc, "KVM does not take an interrupt: %s", strerror(-rc));
				return RUN_FAILED;
			}
		}
		int rc = run_once(v);
		if (rc == -EINTR)
			continue;
		if (rc < 0) {
			error_set(err, rc, "KVM cannot run the guest: %s", strerror(-rc));
			return RUN_FAILED;
		}
		if (!serve_exit(v, &result, err))
			return result;
	}
}

enum run_result kvm_vcpu_run(struct engine_vcpu *ev, struct error *err)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);
	int tid = (int)syscall(SYS_gettid);

	if (v->broken.text[0]) {
		error_set(err, -EIO, "%s", v->broken.text);
		return RUN_FAILED;
	}
	if (v->signal_tid != tid) {
		int rc = allow_kick_signal(v);

		if (rc) {
			error_set(err, -rc, "the kick signal cannot be unblocked: %s", strerror(rc));
			return RUN_FAILED;
		}
		v->signal_tid = tid;
	}
	atomic_store(&v->tid, tid);
	enum run_result r = run_loop(v, err);
	atomic_store(&v->tid, 0);
	atomic_store(&v->tsc_offset, kvm_vcpu_get_tsc_offset(ev));
	return r;
}

/* ---- guest debug by the host ---- */

int kvm_vcpu_set_debug(struct engine_vcpu *ev, const struct engine_debug *dbg)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);
	struct kvm_guest_debug d = { 0 };

	if (dbg->nbreak > 4)
		return -EINVAL;
	if (dbg->single_step)
		d.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	if (dbg->nbreak)
		d.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
	d.arch.debugreg[7] = dbg->nbreak ? 0x600 : 0; /* GE and the fixed bit, SDM vol. 3 17.2.4 */
	for (unsigned i = 0; i < dbg->nbreak; i++) {
		static const uint8_t len_code[9] = { [1] = 0, [2] = 1, [4] = 3, [8] = 2 };
		unsigned len = dbg->bp[i].kind ? dbg->bp[i].len : 1; /* execution: length 1 */

		if (dbg->bp[i].kind == 2 || dbg->bp[i].kind > 3 || len > 8 ||
		    (len != 1 && !len_code[len]))
			return -EINVAL;
		d.arch.debugreg[i] = dbg->bp[i].addr;
		d.arch.debugreg[7] |= 2ULL << (i * 2);
		d.arch.debugreg[7] |= (uint64_t)(dbg->bp[i].kind | len_code[len] << 2) << (16 + i * 4);
	}
	int rc = kvm_ioctl(v->fd, KVM_SET_GUEST_DEBUG, &d);
	if (rc < 0)
		return rc;
	v->debug = *dbg;
	return 0;
}
