/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast is the dbt engine here?  A small guest in ring 0, long mode, is run and timed.
 *
 * Apart from the engine's own files because it computes with doubles (dbt.h, invariant 2).
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "engine/dbt/xlate.h"

#define PROBE_RAM	 (1 * MIB)
#define PROBE_LOOPS	 2000000u
#define PROBE_LOOP_INSNS 5

/* mov ecx, PROBE_LOOPS; 1: add rax, rcx; mov [0x8000], rax; xor rax, [0x8008]; dec ecx; jnz 1b; hlt */
/* clang-format off */
static const uint8_t probe_code[] = {
	0xb9, PROBE_LOOPS & 0xff, PROBE_LOOPS >> 8 & 0xff, PROBE_LOOPS >> 16 & 0xff, 0x00,
	0x48, 0x01, 0xc8,
	0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00,
	0x48, 0x33, 0x04, 0x25, 0x08, 0x80, 0x00, 0x00,
	0xff, 0xc9,
	0x75, 0xe9,
	0xf4,
};
/* clang-format on */

static int no_exit(void *ctx, struct vcpu_exit *x)
{
	x->data = ~0ULL;
	return 0;
}

static int no_intr(void *ctx)
{
	return -1;
}

static void set_long_mode(struct guest_ram *ram, struct x86_state *s)
{
	const uint64_t pml4 = 0x2000 | 3, pdpt = 0x3000 | 3, pd = 0x83;
	const struct x86_seg code = { 0, 0xffffffff, 0x08, 0xa09b },
			     data = { 0, 0xffffffff, 0x10, 0xc093 };

	ram_write(ram, 0x1000, &pml4, 8);
	ram_write(ram, 0x2000, &pdpt, 8);
	ram_write(ram, 0x3000, &pd, 8);
	ram_write(ram, 0x4000, probe_code, sizeof(probe_code));
	x86_state_reset(s, true);
	s->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_PG;
	s->cr3 = 0x1000;
	s->cr4 = X86_CR4_PAE;
	s->efer = X86_EFER_LME | X86_EFER_LMA;
	s->seg[SEG_CS] = code;
	for (int i = SEG_ES; i <= SEG_GS; i++)
		if (i != SEG_CS)
			s->seg[i] = data;
	s->rip = 0x4000;
	s->gpr[R_RSP] = 0x9000;
}

static double measure(struct error *err)
{
	struct guest_ram ram = { 0 };
	struct cpu_model model;
	struct engine_vm *vm = NULL;
	struct engine_vcpu *vcpu = NULL;
	const struct vcpu_up up = { .on_exit = no_exit, .intr_ack = no_intr };
	struct x86_state *s = NULL;
	struct timespec t0, t1;
	double mips = 0;

	if (ram_create(&ram, PROBE_RAM, 0, err) || cpu_model_init(&model, "host", 1, err))
		goto out;
	const struct engine_config cfg = { .ram = &ram,
					   .model = &model,
					   .vcpus = 1,
					   .tsc_khz = 1000000 /* nobody looks */ };

	s = aligned_alloc(64, ALIGN_UP(sizeof(*s), 64));
	if (!s) {
		error_set(err, -12, "no memory to measure the engine");
		goto out;
	}
	if (engine_dbt.vm_create(&vm, &cfg, err) || engine_dbt.vcpu_create(&vcpu, vm, 0, &up, err))
		goto out;
	set_long_mode(&ram, s);
	if (engine_dbt.set_state(vcpu, s, err))
		goto out;
	clock_gettime(CLOCK_MONOTONIC, &t0);
	enum run_result r = engine_dbt.vcpu_run(vcpu, err);

	clock_gettime(CLOCK_MONOTONIC, &t1);
	engine_dbt.get_state(vcpu, s);
	if (r != RUN_HALTED || (uint32_t)s->gpr[R_RCX] != 0) {
		error_set(err, -5, "the engine's own test guest did not end as it must");
		goto out;
	}
	double seconds = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) * 1e-9;

	mips = PROBE_LOOPS * (double)PROBE_LOOP_INSNS / seconds / 1e6;
out:
	engine_dbt.vcpu_destroy(vcpu);
	engine_dbt.vm_destroy(vm);
	ram_destroy(&ram);
	free(s);
	return mips;
}

void dbt_probe(struct engine_probe *out)
{
	struct error err = { "" };

	memset(out, 0, sizeof(*out));
	out->mips = measure(&err);
	out->is_usable = out->mips > 0;
	if (out->is_usable)
		snprintf(out->reason, sizeof(out->reason),
			 "binary translation, needs no hardware virtualization");
	else
		snprintf(out->reason, sizeof(out->reason), "%.250s", err.text);
}
