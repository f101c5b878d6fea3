/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dbt engine behind the seam: engine_ops.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <cpuid.h>

#include "engine/dbt/check.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"
#include "engine/step.h"

static struct dbt_vm *vm_of(struct engine_vm *vm)
{
	return (struct dbt_vm *)(void *)vm;
}

static struct dbt_cpu *cpu_of(struct engine_vcpu *v)
{
	return (struct dbt_cpu *)(void *)v;
}

/* ---- host TSC ----------------------------------------------------------------------------- */

static int64_t mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* Leaf 15H gives the frequency on CPUs that know it; else it is measured over 10 ms. */
static uint32_t host_tsc_khz(void)
{
	unsigned a, b, c, d;

	if (__get_cpuid_count(0x15, 0, &a, &b, &c, &d) && a && b && c)
		return (uint32_t)((uint64_t)c * b / a / 1000);
	int64_t t0 = mono_ns(), t1;
	uint64_t c0 = __builtin_ia32_rdtsc(), c1;

	do {
		t1 = mono_ns();
		c1 = __builtin_ia32_rdtsc();
	} while (t1 - t0 < 10000000);
	return (uint32_t)((c1 - c0) * 1000000 / (uint64_t)(t1 - t0));
}

/* ---- life cycle --------------------------------------------------------------------------- */

static void on_code_write(void *arg, uint64_t offset, uint64_t len)
{
	dbt_code_written(arg, offset, len);
}

static void dbt_vm_destroy(struct engine_vm *evm)
{
	struct dbt_vm *vm = vm_of(evm);

	if (!vm)
		return;
	if (vm->ram && vm->ram->on_code_write_arg == vm) {
		vm->ram->on_code_write = NULL;
		vm->ram->on_code_write_arg = NULL;
	}
	xlate_vm_destroy(vm);
	pthread_mutex_destroy(&vm->lock);
	pthread_mutex_destroy(&vm->excl_lock);
	pthread_cond_destroy(&vm->excl_stopped);
	pthread_cond_destroy(&vm->excl_done);
	free(vm);
}

static int dbt_vm_create(struct engine_vm **out, const struct engine_config *cfg, struct error *err)
{
	struct dbt_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return error_set(err, -ENOMEM, "no memory for the dbt engine");
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->excl_lock, NULL);
	pthread_cond_init(&vm->excl_stopped, NULL);
	pthread_cond_init(&vm->excl_done, NULL);
	vm->cfg = *cfg;
	vm->cfg.is_strict |= cfg->check_every != 0; /* dead flags would count as differences */
	vm->cfg.without |= cfg->is_counting ? ENGINE_LOOPS : 0; /* counting.c */
	vm->ram = cfg->ram;
	vm->model = *cfg->model;
	vm->ncpus = cfg->vcpus;
	vm->tsc_khz = cfg->tsc_khz ? cfg->tsc_khz : host_tsc_khz();
	if (!vm->model.tsc_khz)
		vm->model.tsc_khz = vm->tsc_khz;
	vm->phys_mask = (1ULL << vm->model.phys_bits) - 1;
	/* Threads that execute guest code may set no handlers once they are confined. */
	int rc = dbt_signal_init(err);

	if (rc == 0)
		rc = xlate_vm_create(vm, err);
	if (rc) {
		dbt_vm_destroy((struct engine_vm *)(void *)vm);
		return rc;
	}
	vm->ram->on_code_write = on_code_write;
	vm->ram->on_code_write_arg = vm;
	dbt_xlate_fault = xlate_signal;
	*out = (struct engine_vm *)(void *)vm;
	return 0;
}

static void ask(struct dbt_cpu *cpu, uint64_t req)
{
	atomic_fetch_or_explicit(&cpu->requests, req, memory_order_seq_cst);
	dbt_poll_set(cpu);
}

static int dbt_vm_ram_changed(struct engine_vm *evm, struct error *err)
{
	struct dbt_vm *vm = vm_of(evm);

	dbt_exclusive_begin_foreign(vm);
	xlate_flush(vm);
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i])
			mmu_flush_all(vm->cpus[i]);
	dbt_exclusive_end_foreign(vm);
	return 0;
}

static void dbt_vcpu_destroy(struct engine_vcpu *v)
{
	struct dbt_cpu *cpu = cpu_of(v);

	if (!cpu)
		return;
	if (cpu->vm)
		cpu->vm->cpus[cpu->index] = NULL;
	thunk_cpu_destroy(cpu);
	xlate_cpu_destroy(cpu);
	munmap(cpu, ALIGN_UP(sizeof(*cpu), 2 * MIB));
}

static int dbt_vcpu_create(struct engine_vcpu **out, struct engine_vm *evm, unsigned index,
			   const struct vcpu_up *up, struct error *err)
{
	struct dbt_vm *vm = vm_of(evm);
	/* Zero pages; huge where the host has them: the soft TLB is the hottest data there is. */
	struct dbt_cpu *cpu = mmap(NULL, ALIGN_UP(sizeof(*cpu), 2 * MIB), PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (cpu == MAP_FAILED)
		return error_set(err, -ENOMEM, "no memory for vCPU %u: %m", index);
	cpu->vm = vm;
	cpu->index = index;
	cpu->up = *up;
	int rc = thunk_cpu_create(cpu, err);

	if (!rc)
		rc = xlate_cpu_create(cpu, err);
	if (rc) {
		cpu->vm = NULL;
		dbt_vcpu_destroy((struct engine_vcpu *)(void *)cpu);
		return rc;
	}
	x86_state_reset(&cpu->s, index == 0);
	cpu->tsc_offset = 0 - (int64_t)__builtin_ia32_rdtsc();
	dbt_count_init(cpu);
	mmu_init(cpu); /* zero pages are not an empty TLB: slot 0 would answer for page 0 */
	dbt_mode_changed(cpu);
	mmu_flush_all(cpu);
	vm->cpus[index] = cpu;
	*out = (struct engine_vcpu *)(void *)cpu;
	return 0;
}

/* ---- running ------------------------------------------------------------------------------ */

static enum run_result dbt_vcpu_run(struct engine_vcpu *v, struct error *err)
{
	struct dbt_cpu *cpu = cpu_of(v);

	if (thunk_thread_init(cpu, err))
		return RUN_FAILED;
	enum run_result r = dbt_run(cpu);

	if (r == RUN_FAILED && cpu->vm->xlate->verify_failures)
		error_set(err, -EFAULT, "the verifier refused a block: %s", cpu->vm->xlate->refused);
	else if (r == RUN_FAILED)
		error_set(err, -EFAULT, "translated and interpreted code differ: %s",
			  check_difference(cpu));
	return r;
}

static void dbt_vcpu_kick(struct engine_vcpu *v)
{
	ask(cpu_of(v), DBT_REQ_KICK);
}

static void dbt_set_intr(struct engine_vcpu *v, bool level)
{
	struct dbt_cpu *cpu = cpu_of(v);

	if (level)
		ask(cpu, DBT_REQ_INTR);
	else
		atomic_fetch_and_explicit(&cpu->requests, ~(uint64_t)DBT_REQ_INTR, memory_order_seq_cst);
}

static void dbt_raise_nmi(struct engine_vcpu *v)
{
	struct dbt_cpu *cpu = cpu_of(v);
	/*
	 * In this order: the vCPU takes one off the count before it is blocked, so that a limit of 1 never
	 * meets the count of before.
	 */
	uint8_t limit = *(volatile uint8_t *)&cpu->s.nmi_blocked ? 1 : 2;
	uint8_t n = atomic_load(&cpu->nmi_count);

	while (n < limit && !atomic_compare_exchange_weak(&cpu->nmi_count, &n, n + 1))
		;
	ask(cpu, DBT_REQ_NMI);
}

static void dbt_unhalt(struct engine_vcpu *v)
{
	ask(cpu_of(v), DBT_REQ_UNHALT);
}

static void dbt_flush_tlb(struct engine_vcpu *v)
{
	ask(cpu_of(v), DBT_REQ_TLB_FLUSH);
}

/* ---- state -------------------------------------------------------------------------------- */

static void dbt_get_state(struct engine_vcpu *v, struct x86_state *out)
{
	struct dbt_cpu *cpu = cpu_of(v);

	dbt_fpu_to_mem(cpu);
	*out = cpu->s;
	out->tsc = dbt_rdtsc(cpu);
	out->nmi_pending = atomic_load(&cpu->nmi_count);
	out->unhalt_pending = !!(atomic_load(&cpu->requests) & DBT_REQ_UNHALT);
}

static int dbt_set_state(struct engine_vcpu *v, const struct x86_state *in, struct error *err)
{
	struct dbt_cpu *cpu = cpu_of(v);

	cpu->is_fpu_in_regs = false;
	cpu->s = *in;
	cpu->s.rflags |= 2;
	cpu->tsc_offset = (int64_t)(in->tsc - __builtin_ia32_rdtsc());
	atomic_store(&cpu->nmi_count, MIN(in->nmi_pending, (uint8_t)2));
	if (in->nmi_pending)
		ask(cpu, DBT_REQ_NMI);
	else
		atomic_fetch_and_explicit(&cpu->requests, ~(uint64_t)DBT_REQ_NMI, memory_order_seq_cst);
	cpu->s.nmi_pending = 0;
	if (in->unhalt_pending)
		ask(cpu, DBT_REQ_UNHALT);
	else
		atomic_fetch_and_explicit(&cpu->requests, ~(uint64_t)DBT_REQ_UNHALT, memory_order_seq_cst);
	cpu->s.unhalt_pending = false;
	cpu->is_shutdown = false;
	cpu->dr6_pending = 0;
	if (cr_uses_pdptes(cpu))
		cr_load_pdptes(cpu, cpu->s.cr3);
	dbt_mode_changed(cpu);
	mmu_flush_all(cpu);
	if (cpu->s.exception_pending || cpu->s.is_external_pending)
		ask(cpu, 0);
	return 0;
}

int dbt_step_foreign(struct engine_vcpu *v, struct x86_state *io)
{
	struct dbt_cpu *cpu = cpu_of(v);
	struct error err;
	int rc = thunk_thread_init(cpu, &err);

	if (rc)
		return rc;
	rc = dbt_set_state(v, io, &err); /* flushes everything remembered of memory */
	if (rc)
		return rc;
	dbt_run_enter(cpu);
	interp_one(cpu);
	dbt_fpu_to_mem(cpu);
	dbt_run_leave(cpu);
	if (cpu->is_shutdown)
		return -ESHUTDOWN;
	uint8_t nmi_pending = io->nmi_pending;

	dbt_get_state(v, io);
	io->nmi_pending = nmi_pending;
	return 0;
}

static uint64_t dbt_read_tsc(struct engine_vcpu *v)
{
	return dbt_rdtsc(cpu_of(v));
}

static uint32_t dbt_tsc_khz(struct engine_vm *vm)
{
	return vm_of(vm)->tsc_khz;
}

static int64_t dbt_get_tsc_offset(struct engine_vcpu *v)
{
	return cpu_of(v)->tsc_offset;
}

static void dbt_set_tsc_offset(struct engine_vcpu *v, int64_t offset)
{
	cpu_of(v)->tsc_offset = offset;
}

/* ---- dirty log ---------------------------------------------------------------------------- */

/* With the world stopped. */
static void dbt_write_begin(struct engine_vcpu *v)
{
	dbt_run_enter(cpu_of(v));
}

static void dbt_write_end(struct engine_vcpu *v)
{
	dbt_run_leave(cpu_of(v));
}

static void flush_tlbs(struct dbt_vm *vm)
{
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i])
			mmu_flush_all(vm->cpus[i]);
}

/* Before pages are tracked anew: code is loaded only into those that have not been written since the log was started (keep_load.c). */
static void set_logging(struct dbt_vm *vm, bool is_logging)
{
	pthread_mutex_lock(&vm->lock);
	vm->log_epoch++;
	vm->is_dirty_logging = is_logging;
	pthread_mutex_unlock(&vm->lock);
}

static int dbt_dirty_start(struct engine_vm *evm, struct error *err)
{
	struct dbt_vm *vm = vm_of(evm);

	dbt_exclusive_begin_foreign(vm);
	set_logging(vm, true);
	ram_log_start(vm->ram);
	flush_tlbs(vm);
	dbt_exclusive_end_foreign(vm);
	return 0;
}

static int dbt_dirty_collect(struct engine_vm *evm, uint64_t *bitmap, struct error *err)
{
	struct dbt_vm *vm = vm_of(evm);
	uint64_t npages = vm->ram->size_bytes >> GUEST_PAGE_SHIFT;

	if (!vm->is_dirty_logging)
		return error_set(err, -EINVAL, "the dirty log is not running");
	memset(bitmap, 0, ALIGN_UP(npages, 64) / 8);
	/*
	 * The world stands still: a vCPU that kept a write mapping of a collected page could change
	 * the page after the caller has read it, unnoticed.
	 */
	dbt_exclusive_begin_foreign(vm);
	set_logging(vm, true);
	ram_log_collect(vm->ram, bitmap);
	flush_tlbs(vm);
	dbt_exclusive_end_foreign(vm);
	return 0;
}

static void dbt_dirty_stop(struct engine_vm *evm)
{
	struct dbt_vm *vm = vm_of(evm);

	set_logging(vm, false);
	ram_log_stop(vm->ram);
}

/* ---- kept code ---------------------------------------------------------------------------- */

static int dbt_code_save(struct engine_vm *evm, const uint64_t *dirty, struct engine_code *out,
			 struct error *err)
{
	return xlate_code_save(vm_of(evm), dirty, out, err);
}

static void dbt_code_expect(struct engine_vm *evm, const uint8_t *head, size_t len)
{
	xlate_code_expect(vm_of(evm), head, len);
}

static int dbt_code_load(struct engine_vm *evm, const struct engine_code_source *in,
			 const _Atomic bool *stop, struct error *err)
{
	return xlate_code_load(vm_of(evm), in, stop, err);
}

/* ---- debug, counters, probe --------------------------------------------------------------- */

static int dbt_set_debug(struct engine_vcpu *v, const struct engine_debug *dbg)
{
	cpu_of(v)->debug = *dbg;
	mmu_flush_all(cpu_of(v));
	return 0;
}

static uint64_t dbt_ops_count(struct engine_vcpu *v)
{
	return dbt_count(cpu_of(v));
}

static void dbt_ops_stop_at(struct engine_vcpu *v, uint64_t count)
{
	dbt_count_stop_at(cpu_of(v), count);
}

/* Slow-path reasons: what the interpreter executed, by instruction. */
static const char *const interpreted_names[] = {
#define X(name) "interpreted_" #name,
#include "engine/dbt/insn_ids.def"
#undef X
};

static unsigned dbt_counters(struct engine_vcpu *v, const char **names, uint64_t *values, unsigned max)
{
	const struct dbt_cpu *cpu = cpu_of(v);
	const struct xlate_cpu *x = cpu->xlate;
	const struct xlate_vm *shared = cpu->vm->xlate;
	const struct {
		const char *name;
		uint64_t value;
		bool is_shared, is_absent;
	} rows[] = {
		{ "instructions_interpreted", cpu->insn_count },
		{ "instructions_retired", dbt_count(cpu), false, !cpu->vm->cfg.is_counting },
		{ "translations", x->translations },
		{ "block_entries", x->entries },
		{ "branch_table_fills", x->table_fills },
		{ "far_link_fills", x->far_fills },
		{ "exits_lookup", x->exits_lookup },
		{ "exits_link", x->exits_link },
		{ "exits_interpreter", x->exits_interp },
		{ "exits_poll", x->exits_poll },
		{ "interpreted_in_place", x->steps },
		{ "pauses_yielded", cpu->pauses_yielded },
		{ "return_overflows", x->ret_overflows },
		{ "blocks_compared", x->compared },
		{ "blocks_compared_again", x->compared_again },
		{ "blocks_not_compared", x->compared_not },
		{ "tlb_fills", x->fill_true },
		{ "tlb_refused", x->fill_false },
		{ "tlb_misses_user", cpu->tlb_misses_by_mode[DBT_TLB_USER] },
		{ "tlb_misses_kernel", cpu->tlb_misses_by_mode[DBT_TLB_KERNEL] },
		{ "tlb_misses_kernel_ac", cpu->tlb_misses_by_mode[DBT_TLB_KERNEL_AC] },
		{ "tlb_walks", cpu->tlb_walks },
		{ "tlb_flushes", cpu->tlb_flushes },
		{ "tlb_size", 1ULL << cpu->tlb_bits },
		{ "code_bytes", xlate_cache_bytes(shared), true },
		{ "code_records_bytes", xlate_cache_meta_bytes(shared), true },
		{ "code_limit_bytes", (uint64_t)shared->cc.limit * shared->cc.segment_bytes, true },
		{ "code_flushes", shared->flushes, true },
		{ "blocks_size", shared->table.nblocks, true },
		{ "blocks_loaded", shared->loaded, true },
		{ "code_segments_dropped", shared->evictions, true },
		{ "blocks_dropped", shared->evicted, true },
		{ "blocks_translated_again", shared->translated_again, true },
		{ "blocks_invalidated", shared->invalidations, true },
		{ "blocks_refused_by_verifier", shared->verify_failures, true },
		{ "code_page_writes", shared->smc_hits, true },
	};
	unsigned n = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(rows) && n < max; i++) {
		if ((rows[i].is_shared && cpu->index != 0) || rows[i].is_absent)
			continue;
		names[n] = rows[i].name;
		values[n++] = rows[i].value;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(interpreted_names) && n < max; i++) {
		if (!x->interp_by_id[i])
			continue;
		names[n] = interpreted_names[i];
		values[n++] = x->interp_by_id[i];
	}
	return n;
}

const struct engine_ops engine_dbt = {
	.name = "dbt",
	.owns_lapic = false,
	.has_plain_state = true, /* the FPU's leaves the host's registers with vcpu_run */
	.probe = dbt_probe,	 /* src/engine/dbt_probe.c: it computes with doubles */
	.vm_create = dbt_vm_create,
	.vm_destroy = dbt_vm_destroy,
	.vm_ram_changed = dbt_vm_ram_changed,
	.vcpu_create = dbt_vcpu_create,
	.vcpu_destroy = dbt_vcpu_destroy,
	.vcpu_run = dbt_vcpu_run,
	.vcpu_kick = dbt_vcpu_kick,
	.get_state = dbt_get_state,
	.set_state = dbt_set_state,
	.set_intr = dbt_set_intr,
	.raise_nmi = dbt_raise_nmi,
	.unhalt = dbt_unhalt,
	.flush_tlb = dbt_flush_tlb,
	.write_begin = dbt_write_begin,
	.write_end = dbt_write_end,
	.read_tsc = dbt_read_tsc,
	.tsc_khz = dbt_tsc_khz,
	.get_tsc_offset = dbt_get_tsc_offset,
	.set_tsc_offset = dbt_set_tsc_offset,
	.dirty_start = dbt_dirty_start,
	.dirty_collect = dbt_dirty_collect,
	.dirty_stop = dbt_dirty_stop,
	.code_save = dbt_code_save,
	.code_expect = dbt_code_expect,
	.code_load = dbt_code_load,
	.set_debug = dbt_set_debug,
	.count = dbt_ops_count,
	.stop_at = dbt_ops_stop_at,
	.counters = dbt_counters,
};
