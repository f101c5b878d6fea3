/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vCPU's main loop: events, interpreter, translated code; stopping the world.
 *
 * A vCPU is "running" (is_running) from dbt_run_enter() to dbt_run_leave(): while it may execute guest
 * instructions or look at translations.  An exclusive section waits until nobody else is running;
 * a vCPU at its safepoint (loop top, or around a call up) leaves and waits for the end of the section.
 *
 * Lock order: exclusive section, then vm->lock.  Nobody begins a section holding vm->lock.
 */
#include <errno.h>
#include <sched.h>

#include "engine/dbt/check.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/xlate.h"

/* ---- stop the world ----------------------------------------------------------------------- */

void dbt_run_enter(struct dbt_cpu *cpu)
{
	struct dbt_vm *vm = cpu->vm;

	for (;;) {
		atomic_store_explicit(&cpu->is_running, true, memory_order_seq_cst);
		void *owner = atomic_load_explicit(&vm->excl_owner, memory_order_seq_cst);

		if (likely(!owner) || owner == cpu)
			return;
		atomic_store_explicit(&cpu->is_running, false, memory_order_seq_cst);
		pthread_mutex_lock(&vm->excl_lock);
		pthread_cond_broadcast(&vm->excl_stopped);
		while (vm->excl_owner)
			pthread_cond_wait(&vm->excl_done, &vm->excl_lock);
		pthread_mutex_unlock(&vm->excl_lock);
	}
}

void dbt_run_leave(struct dbt_cpu *cpu)
{
	struct dbt_vm *vm = cpu->vm;

	atomic_store_explicit(&cpu->is_running, false, memory_order_seq_cst);
	if (unlikely(atomic_load_explicit(&vm->excl_owner, memory_order_seq_cst))) {
		pthread_mutex_lock(&vm->excl_lock);
		pthread_cond_broadcast(&vm->excl_stopped);
		pthread_mutex_unlock(&vm->excl_lock);
	}
}

static bool others_run(const struct dbt_vm *vm, const struct dbt_cpu *me)
{
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i] && vm->cpus[i] != me &&
		    atomic_load_explicit(&vm->cpus[i]->is_running, memory_order_seq_cst))
			return true;
	return false;
}

/* @cpu NULL: a thread that is no vCPU (dirty log); the owner is then the vm itself. */
static void exclusive_begin(struct dbt_vm *vm, struct dbt_cpu *cpu)
{
	if (cpu && vm->excl_owner == cpu) { /* the lockstep checker's, around what takes one of its own */
		vm->excl_depth++;
		return;
	}
	pthread_mutex_lock(&vm->excl_lock);
	while (vm->excl_owner) { /* somebody else's turn: be stopped meanwhile */
		if (cpu)
			atomic_store_explicit(&cpu->is_running, false, memory_order_seq_cst);
		pthread_cond_broadcast(&vm->excl_stopped);
		pthread_cond_wait(&vm->excl_done, &vm->excl_lock);
	}
	atomic_store_explicit(&vm->excl_owner, cpu ? (void *)cpu : (void *)vm, memory_order_seq_cst);
	if (cpu)
		atomic_store_explicit(&cpu->is_running, true, memory_order_seq_cst);
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i] && vm->cpus[i] != cpu)
			dbt_poll_set(vm->cpus[i]);
	while (others_run(vm, cpu))
		pthread_cond_wait(&vm->excl_stopped, &vm->excl_lock);
	pthread_mutex_unlock(&vm->excl_lock);
}

static void exclusive_end(struct dbt_vm *vm)
{
	if (vm->excl_depth) {
		vm->excl_depth--;
		return;
	}
	pthread_mutex_lock(&vm->excl_lock);
	atomic_store_explicit(&vm->excl_owner, NULL, memory_order_seq_cst);
	pthread_cond_broadcast(&vm->excl_done);
	pthread_mutex_unlock(&vm->excl_lock);
}

void dbt_exclusive_begin(struct dbt_cpu *cpu)
{
	exclusive_begin(cpu->vm, cpu);
}

void dbt_exclusive_end(struct dbt_cpu *cpu)
{
	exclusive_end(cpu->vm);
}

void dbt_exclusive_begin_foreign(struct dbt_vm *vm)
{
	exclusive_begin(vm, NULL);
}

void dbt_exclusive_end_foreign(struct dbt_vm *vm)
{
	exclusive_end(vm);
}

int dbt_exit(struct dbt_cpu *cpu, struct vcpu_exit *x)
{
	dbt_fpu_to_mem(cpu);
	dbt_run_leave(cpu);
	int rc = cpu->up.on_exit(cpu->up.ctx, x);

	dbt_run_enter(cpu);
	return rc;
}

/*
 * A guest that spins waits for another of its CPUs, whose thread may be waiting for this core.  PAUSEs less than
 * PAUSE_GAP_US apart are one loop; it may spin for PAUSE_SPIN_US, about what it costs to come back.
 */
#define PAUSE_GAP_US  5
#define PAUSE_SPIN_US 25

void dbt_pause(struct dbt_cpu *cpu)
{
	uint64_t now = __builtin_ia32_rdtsc(), us = cpu->vm->tsc_khz / 1000;

	__asm__ volatile("pause");
	if (now - cpu->pause_last > PAUSE_GAP_US * us)
		cpu->pause_first = now;
	cpu->pause_last = now;
	if (likely(now - cpu->pause_first < PAUSE_SPIN_US * us) || cpu->vm->ncpus < 2 || !cpu->up.yield)
		return;
	dbt_fpu_to_mem(cpu);
	dbt_run_leave(cpu);
	cpu->up.yield(cpu->up.ctx);
	dbt_run_enter(cpu);
	cpu->pauses_yielded++;
	cpu->pause_first = cpu->pause_last = __builtin_ia32_rdtsc();
}

/* ---- the loop ----------------------------------------------------------------------------- */

static bool wants_interp(const struct dbt_cpu *cpu)
{
	return (cpu->s.rflags & X86_FL_TF) || (cpu->s.dr7 & 0xff) || cpu->s.interrupt_shadow ||
	       cpu->debug.single_step || cpu->debug.nbreak || cpu->dr6_pending ||
	       cpu->vm->cfg.use_interp_only || dbt_is_near_stop(cpu);
}

static bool intr_open(const struct dbt_cpu *cpu)
{
	return (cpu->s.rflags & X86_FL_IF) && !cpu->s.interrupt_shadow;
}

bool dbt_must_look(const struct dbt_cpu *cpu)
{
	uint64_t req = atomic_load_explicit(&cpu->requests, memory_order_relaxed);

	return (req && (req != DBT_REQ_INTR || intr_open(cpu))) ||
	       atomic_load_explicit(&cpu->poll, memory_order_relaxed) ||
	       cpu->s.mp_state != MP_RUNNABLE || cpu->is_shutdown || cpu->is_debug_hit ||
	       wants_interp(cpu);
}

/* Deliver what waits.  Returns false when vcpu_run has to return, with *@result. */
static bool handle_requests(struct dbt_cpu *cpu, enum run_result *result)
{
	atomic_store_explicit(&cpu->poll, 0, memory_order_seq_cst);
	dbt_poll_refresh(cpu);
	uint64_t req = atomic_load_explicit(&cpu->requests, memory_order_seq_cst);

	if (unlikely(atomic_load_explicit(&cpu->vm->excl_owner, memory_order_seq_cst))) {
		dbt_fpu_to_mem(cpu);
		dbt_run_leave(cpu);
		dbt_run_enter(cpu);
	}
	if (!req && likely(cpu->s.mp_state == MP_RUNNABLE))
		return true;
	if (req & DBT_REQ_KICK) {
		atomic_fetch_and_explicit(&cpu->requests, ~(uint64_t)DBT_REQ_KICK, memory_order_seq_cst);
		*result = RUN_KICKED;
		return false;
	}
	if (req & DBT_REQ_TLB_FLUSH) {
		atomic_fetch_and_explicit(&cpu->requests, ~(uint64_t)DBT_REQ_TLB_FLUSH,
					  memory_order_seq_cst);
		mmu_flush_all(cpu);
	}
	if (cpu->s.mp_state == MP_WAIT_SIPI) {
		*result = RUN_HALTED;
		return false;
	}
	if ((req & DBT_REQ_UNHALT) && cpu->s.mp_state == MP_HALTED) {
		atomic_fetch_and_explicit(&cpu->requests, ~(uint64_t)DBT_REQ_UNHALT, memory_order_seq_cst);
		cpu->s.mp_state = MP_RUNNABLE;
	}
	if ((req & DBT_REQ_NMI) && !cpu->s.nmi_blocked && !cpu->s.interrupt_shadow) {
		atomic_fetch_and_explicit(&cpu->requests, ~(uint64_t)DBT_REQ_NMI, memory_order_seq_cst);
		uint8_t n = atomic_load(&cpu->nmi_count);

		while (n && !atomic_compare_exchange_weak(&cpu->nmi_count, &n, n - 1))
			;
		if (n > 1)
			atomic_fetch_or(&cpu->requests, DBT_REQ_NMI);
		if (n) {
			cpu->s.mp_state = MP_RUNNABLE;
			exc_interrupt(cpu, EXC_NMI, true);
		}
	} else if ((req & DBT_REQ_INTR) && intr_open(cpu)) {
		dbt_fpu_to_mem(cpu);
		dbt_run_leave(cpu);
		int vector = cpu->up.intr_ack(cpu->up.ctx);

		dbt_run_enter(cpu);
		if (vector >= 0) {
			cpu->s.mp_state = MP_RUNNABLE;
			exc_interrupt(cpu, (unsigned)vector, false);
		}
	}
	if (cpu->s.mp_state == MP_HALTED) {
		*result = RUN_HALTED;
		return false;
	}
	return true;
}

/* A block to enter for the present state, or NULL: interpret one instruction. */
static struct xlate_block *next_block(struct dbt_cpu *cpu, uint32_t key_extra, bool is_jump)
{
	struct xlate_block *b = xlate_find(cpu, key_extra, is_jump);

	return b && !(b->is_interp && cpu->xlate->is_watched) ? b : NULL;
}

enum run_result dbt_run(struct dbt_cpu *cpu)
{
	enum run_result result = RUN_KICKED;
	struct xlate_link *link = NULL;
	uint64_t link_generation = 0, link_rip = 0;

	dbt_run_enter(cpu);
	for (;;) {
		if (unlikely(cpu->is_shutdown)) {
			cpu->is_shutdown = false;
			result = RUN_SHUTDOWN;
			break;
		}
		if (unlikely(cpu->is_debug_hit)) {
			cpu->is_debug_hit = false;
			result = RUN_DEBUG;
			break;
		}
		if (!handle_requests(cpu, &result))
			break;
		if (cpu->is_shutdown)
			continue;
		if (dbt_is_at_stop(cpu)) {
			result = RUN_KICKED;
			break;
		}
		/* The link of the last exit says what kind of block goes on, unless an event came between. */
		uint32_t extra = link && link_generation == cpu->vm->xlate->generation &&
						 cpu->s.rip == link_rip
					 ? xlate_link_extra(link)
					 : 0;
		struct xlate_block *b = wants_interp(cpu) ? NULL : next_block(cpu, extra, link);

		if (!b) {
			link = NULL;
			if (unlikely(cpu->vm->xlate->verify_failures)) { /* a defect of ours: no test may miss it */
				result = RUN_FAILED;
				break;
			}
			interp_one(cpu);
			continue;
		}
		unsigned exit;

		if (unlikely(cpu->xlate->check)) {
			dbt_fpu_to_regs(cpu);
			if (!check_run(cpu, b, &exit)) {
				result = RUN_FAILED;
				break;
			}
		} else {
			if (link && link_generation == cpu->vm->xlate->generation)
				xlate_link_patch(cpu, link, b);
			if (!extra)
				xlate_jc_set(cpu, cpu->s.rip, b);
			dbt_fpu_to_regs(cpu);
			exit = xlate_run(cpu, b);
		}
		link = NULL;
		switch (exit) {
		case XEXIT_LINK:
			cpu->xlate->exits_link++;
			link = xlate_exit_link(cpu);
			link_generation = cpu->vm->xlate->generation;
			link_rip = cpu->s.rip;
			break;
		case XEXIT_INTERP:
			/* At once: an interrupt must not come between STI and this instruction. */
			cpu->xlate->exits_interp++;
			interp_one(cpu);
			break;
		case XEXIT_POLL:
			cpu->xlate->exits_poll++;
			break;
		default:
			cpu->xlate->exits_lookup++;
			break;
		}
	}
	dbt_fpu_to_mem(cpu);
	dbt_run_leave(cpu);
	return result;
}
