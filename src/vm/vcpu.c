/* SPDX-License-Identifier: Apache-2.0 */
/* A vCPU's thread, what its guest asks of the machine, and what the machine asks of it. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "vm/kvmclock.h"
#include "vm/machine_int.h"

/* KVM's hypercalls (Linux Documentation/virt/kvm/x86/hypercalls.rst). */
#define KVM_ENOSYS	      1000
#define KVM_HC_VAPIC_POLL_IRQ 1
#define KVM_HC_KICK_CPU	      5
#define KVM_HC_SEND_IPI	      10
#define KVM_HC_SCHED_YIELD    11

/* ---- exits: on the vCPU's thread, without engine locks ---- */

static bool is_lapic_msr(uint64_t msr)
{
	return msr == 0x1b || msr == 0x6e0 || (msr >= 0x800 && msr <= 0x8ff);
}

static int steal_set(struct vcpu *v, uint64_t value)
{
	int r = steal_msr_write(&v->steal, value);

	if (r == 0)
		steal_start(&v->steal, &v->m->ram, 0);
	return r;
}

static int exit_msr(struct vcpu *v, struct vcpu_exit *x)
{
	if (kvmclock_is_msr(x->addr) && x->is_write)
		return kvmclock_msr_write(v, x->addr, x->data);
	if (x->addr == KVM_MSR_STEAL_TIME && x->is_write)
		return steal_set(v, x->data);
	if (x->addr == KVM_MSR_PV_EOI && x->is_write && v->lapic)
		return lapic_set_pv_eoi(v->lapic, x->data);
	if (!v->lapic || !is_lapic_msr(x->addr))
		return -EPERM;
	if (x->is_write)
		return lapic_msr_write(v->lapic, (uint32_t)x->addr, x->data);
	return lapic_msr_read(v->lapic, (uint32_t)x->addr, &x->data);
}

static int exit_cr8(struct vcpu *v, struct vcpu_exit *x)
{
	if (!v->lapic)
		return -EPERM;
	if (x->is_write)
		return lapic_set_cr8(v->lapic, x->data);
	x->data = lapic_get_cr8(v->lapic);
	return 0;
}

static void exit_bus(struct vcpu *v, struct vcpu_exit *x)
{
	struct bus *bus = v->m->bus;
	enum bus_space space = x->kind == EXIT_PIO ? BUS_PIO : BUS_MMIO;

	if (space == BUS_MMIO && v->lapic &&
	    lapic_mmio(v->lapic, x->addr, x->size, x->is_write, &x->data)) {
		v->lapic_accesses++;
		return;
	}
	if (x->is_write)
		bus_write(bus, space, x->addr, x->size, x->data);
	else
		x->data = bus_read(bus, space, x->addr, x->size);
}

/* @id: APIC ids are indices of CPUs. */
static int64_t kick_cpu(struct machine *m, uint64_t id)
{
	if (!m->ops->unhalt)
		return -KVM_ENOSYS;
	if (id < m->ncpus) {
		m->ops->unhalt(m->cpus[id].ev);
		vcpu_wake(&m->cpus[id]);
	}
	return 0;
}

static int64_t hypercall(struct vcpu *v, const struct vcpu_exit *x)
{
	switch (x->addr) {
	case KVM_HC_VAPIC_POLL_IRQ:
	case KVM_HC_SCHED_YIELD: /* done by on_exit_, without the lock */
		return 0;
	case KVM_HC_KICK_CPU:
		return kick_cpu(v->m, x->arg[1]);
	case KVM_HC_SEND_IPI:
		if (!v->lapic)
			return -KVM_ENOSYS;
		return lapic_pv_send_ipi(v->lapic, x->arg, x->size * 8, (uint32_t)x->arg[2],
					 (uint32_t)x->arg[3]);
	default:
		return -KVM_ENOSYS;
	}
}

static int on_exit_locked(struct vcpu *v, struct vcpu_exit *x)
{
	v->exits[x->kind]++;
	switch (x->kind) {
	case EXIT_PIO:
	case EXIT_MMIO:
		exit_bus(v, x);
		return 0;
	case EXIT_CR8:
		return exit_cr8(v, x);
	case EXIT_MSR:
		return exit_msr(v, x);
	case EXIT_HYPERCALL:
		x->data = (uint64_t)hypercall(v, x);
		return 0;
	case EXIT_EOI:
		ioapic_eoi(v->m->ioapic, (uint8_t)x->addr);
		return 0;
	}
	return -EPERM;
}

/*
 * The byte of the guest's structure that says whether this CPU runs: other CPUs change it by locked instructions.
 */
static void go_away(struct vcpu *v)
{
	const struct engine_ops *ops = v->m->ops;

	if (ops->write_begin)
		ops->write_begin(v->ev);
	preempted_set(&v->steal, &v->m->ram);
	if (ops->write_end)
		ops->write_end(v->ev);
}

static void come_back(struct vcpu *v)
{
	const struct engine_ops *ops = v->m->ops;

	if (ops->write_begin)
		ops->write_begin(v->ev);
	bool has_to_flush = preempted_clear(&v->steal, &v->m->ram);
	if (ops->write_end)
		ops->write_end(v->ev);
	if (has_to_flush)
		ops->flush_tlb(v->ev);
}

/*
 * The thread may be off its core for as long as the host's other threads like: the guest is told.  No lock:
 * steal and the guest's structure are this thread's.
 */
static void yield(void *ctx)
{
	struct vcpu *v = ctx;

	go_away(v);
	sched_yield();
	come_back(v);
	steal_update(&v->steal, &v->m->ram);
}

static int on_exit_(void *ctx, struct vcpu_exit *x)
{
	struct vcpu *v = ctx;

	pthread_mutex_lock(&v->m->lock);
	int r = on_exit_locked(v, x);

	pthread_mutex_unlock(&v->m->lock);
	if (x->kind == EXIT_HYPERCALL && x->addr == KVM_HC_SCHED_YIELD)
		yield(v);
	return r;
}

static int intr_ack(void *ctx)
{
	struct vcpu *v = ctx;

	pthread_mutex_lock(&v->m->lock);
	int vector = v->lapic ? lapic_ack(v->lapic) : pic_inta(v->m->pic);

	pthread_mutex_unlock(&v->m->lock);
	steal_update(&v->steal, &v->m->ram); /* before a timer tick looks */
	return vector;
}

/* ---- asking a vCPU ---- */

void vcpu_kick(struct vcpu *v)
{
	if (v->is_inside)
		v->m->ops->vcpu_kick(v->ev);
	pthread_cond_signal(&v->cond);
}

void vcpu_wake(struct vcpu *v)
{
	if (v->is_halted && !v->wake)
		v->wake_ns = steal_now_ns();
	v->wake = true;
	pthread_cond_signal(&v->cond);
}

void vcpu_call(struct vcpu *v, void (*fn)(struct vcpu *v, void *arg), void *arg)
{
	/* Under the lock: its thread is out, and stays there. */
	if (!v->has_thread || (v->m->ops->has_plain_state && !v->is_inside)) {
		fn(v, arg);
		return;
	}
	v->call_arg = arg;
	v->call = fn;
	pthread_cond_signal(&v->cond);
	while (v->call)
		pthread_cond_wait(&v->m->idle, &v->m->lock);
}

int vcpu_load(struct vcpu *v, const struct x86_state *s, int64_t tsc_offset, struct error *err)
{
	const struct engine_ops *ops = v->m->ops;
	int r = ops->set_state(v->ev, s, err);

	if (r == 0 && ops->owns_lapic) {
		r = ops->set_lapic(v->ev, NULL);
		if (r < 0)
			error_set(err, r, "the engine refuses the LAPIC's power-up state: %s",
				  strerror(-r));
	}
	if (r < 0)
		return r;
	ops->set_tsc_offset(v->ev, tsc_offset);
	v->steal = (struct steal_clock){ .msr = v->lapic ? s->kvm_steal_time : 0 };
	if (v->lapic)
		lapic_load_pv_eoi(v->lapic, s->kvm_pv_eoi);
	v->is_waiting_sipi = !ops->owns_lapic && s->mp_state == MP_WAIT_SIPI;
	v->is_halted = false;
	v->init_pending = v->sipi_pending = false;
	v->wake = true;
	return 0;
}

/* INIT (SDM vol. 3 8.4.1, table 9-1): the TSC goes on undisturbed. */
static int apply_init(struct vcpu *v, struct error *err)
{
	const struct engine_ops *ops = v->m->ops;
	int64_t tsc_offset = ops->get_tsc_offset(v->ev);
	bool sipi_pending = v->sipi_pending;
	struct x86_state s;

	ops->get_state(v->ev, &s);
	x86_state_init(&s, v->index == 0);
	int r = vcpu_load(v, &s, tsc_offset, err);

	v->sipi_pending = sipi_pending;
	return r;
}

static int apply_sipi(struct vcpu *v, struct error *err)
{
	const struct engine_ops *ops = v->m->ops;
	int64_t tsc_offset = ops->get_tsc_offset(v->ev);
	struct x86_state s;

	ops->get_state(v->ev, &s);
	x86_state_sipi(&s, v->sipi_vector);
	return vcpu_load(v, &s, tsc_offset, err);
}

/* ---- the thread ---- */

static void handle_result(struct vcpu *v, enum run_result r, const struct error *err)
{
	switch (r) {
	case RUN_KICKED:
	case RUN_DEBUG: /* nobody set a breakpoint: go on */
		break;
	case RUN_HALTED:
		v->halts++;
		v->is_halted = true;
		break;
	case RUN_SHUTDOWN:
		log_guest("vm", "CPU %u: triple fault", v->index);
		machine_tell(v->m, MACHINE_TRIPLE_FAULT);
		if (v->m->cfg.no_reboot)
			machine_end(v->m, END_SHUTDOWN, 1, "the guest ended in a triple fault");
		else
			machine_request_reset(v->m);
		break;
	case RUN_FAILED:
		machine_fail(v->m, err);
		break;
	}
}

/* One thing to do; false when there is nothing but to wait. */
static bool step(struct vcpu *v)
{
	struct machine *m = v->m;
	struct error err = { "the engine gave no reason" };

	if (v->call) {
		v->call(v, v->call_arg);
		v->call = NULL;
		pthread_cond_broadcast(&m->idle);
		return true;
	}
	if (m->is_held) {
		v->wake_ns = 0; /* a pause is not stolen time */
		return false;
	}
	if (v->init_pending) {
		v->init_pending = false;
		if (apply_init(v, &err) < 0)
			machine_fail(m, &err);
		return true;
	}
	if (v->is_waiting_sipi) {
		if (!v->sipi_pending)
			return false;
		if (apply_sipi(v, &err) < 0)
			machine_fail(m, &err);
		return true;
	}
	if (v->is_halted && !v->wake)
		return false;

	int64_t late_ns = v->wake_ns ? steal_now_ns() - v->wake_ns : 0;

	v->wake = false;
	v->wake_ns = 0;
	v->is_halted = false;
	v->is_inside = true;
	if (!m->first_run_ns)
		m->first_run_ns = machine_monotonic_ns();
	pthread_mutex_unlock(&m->lock);
	steal_start(&v->steal, &m->ram, late_ns);
	come_back(v);
	enum run_result r = m->ops->vcpu_run(v->ev, &err);

	steal_stop(&v->steal, &m->ram);
	pthread_mutex_lock(&m->lock);
	v->is_inside = false;
	handle_result(v, r, &err);
	if (m->is_held)
		pthread_cond_broadcast(&m->idle);
	return true;
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	struct machine *m = v->m;
	struct error err;
	int r = m->cfg.confine_vcpu ? m->cfg.confine_vcpu(&err) : 0;

	pthread_mutex_lock(&m->lock);
	if (r < 0)
		machine_end(m, END_FAILED, 1, err.text);
	while (!m->is_quitting) {
		if (!step(v))
			pthread_cond_wait(&v->cond, &m->lock);
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

int vcpu_create(struct vcpu *v, struct machine *m, unsigned index, struct error *err)
{
	struct vcpu_up up = { on_exit_, intr_ack, yield, v };

	v->m = m;
	v->index = index;
	pthread_cond_init(&v->cond, NULL);
	return m->ops->vcpu_create(&v->ev, m->vm, index, &up, err);
}

/* Threads of vCPUs take no signals: those are the loop thread's. */
int vcpu_start_thread(struct vcpu *v, struct error *err)
{
	sigset_t all, old;
	char name[16];

	sigfillset(&all);
	/* Faults of emitted code are the engine's own. */
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGTRAP);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int r = pthread_create(&v->thread, NULL, vcpu_thread, v);

	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return error_set(err, -r, "cannot start a thread for CPU %u: %s", v->index, strerror(r));
	snprintf(name, sizeof(name), "cpu%u", v->index);
	pthread_setname_np(v->thread, name);
	v->has_thread = true;
	return 0;
}

void vcpu_destroy(struct vcpu *v)
{
	if (!v->m)
		return;
	v->m->ops->vcpu_destroy(v->ev);
	pthread_cond_destroy(&v->cond);
}
