/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What KVM cannot emulate: the state goes to a dbt vCPU on the same RAM, which executes one
 * instruction, and what it changed comes back.
 *
 * The dbt vCPU's exits go to the machine as any others, but for what this engine itself holds: the
 * local APIC and its MSRs.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"
#include "engine/step.h"

static int read_lapic(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	struct kvm_lapic_state s;
	int rc = kvm_ioctl(v->fd, KVM_GET_LAPIC, &s);
	uint64_t at = x->addr - KVM_APIC_PAGE;

	x->data = ~0ULL;
	if (rc >= 0 && at + x->size <= KVM_APIC_BYTES) {
		x->data = 0;
		memcpy(&x->data, s.regs + at, x->size);
	}
	return 0;
}

static int lapic_msr(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e;
	} m = { .head.nmsrs = 1, .e = { .index = (uint32_t)x->addr, .data = x->data } };

	if (kvm_ioctl(v->fd, x->is_write ? KVM_SET_MSRS : KVM_GET_MSRS, &m) != 1)
		return -EPERM;
	if (!x->is_write)
		x->data = m.e.data;
	return 0;
}

static int step_exit(void *ctx, struct vcpu_exit *x)
{
	struct kvm_vcpu *v = ctx;

	switch (x->kind) {
	case EXIT_MMIO:
		if (x->addr < KVM_APIC_PAGE || x->addr >= KVM_APIC_PAGE + GUEST_PAGE_SIZE)
			break;
		if (!x->is_write)
			return read_lapic(v, x);
		/* No way into the kernel's LAPIC with the side effects of a write. */
		error_set(&v->broken, -EIO,
			  "an instruction KVM cannot emulate writes to the local APIC at %#llx; "
			  "--engine dbt runs it",
			  (unsigned long long)x->addr);
		return 0;
	case EXIT_MSR:
		return lapic_msr(v, x);
	case EXIT_CR8:
		if (x->is_write)
			v->step_cr8 = x->data;
		else
			x->data = v->step_cr8;
		return 0;
	default:
		break;
	}
	return v->up.on_exit(v->up.ctx, x);
}

static int make_step_vcpu(struct kvm_vcpu *v, struct error *err)
{
	struct kvm_vm *vm = v->vm;
	const struct vcpu_up up = { .on_exit = step_exit, .ctx = v };
	int rc = 0;

	pthread_mutex_lock(&vm->lock);
	if (!vm->step_vm)
		rc = engine_dbt.vm_create(&vm->step_vm, &vm->cfg, err);
	if (rc >= 0)
		rc = engine_dbt.vcpu_create(&v->step, vm->step_vm, v->index, &up, err);
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

static void log_step(struct kvm_vcpu *v, const struct x86_state *s)
{
	const struct kvm_run *run = v->run;
	char hex[3 * 15 + 1] = "";

	if (run->internal.ndata > 1 &&
	    run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
		for (unsigned i = 0; i < MIN(run->emulation_failure.insn_size, 15u); i++)
			snprintf(hex + 3 * i, 4, " %02x", run->emulation_failure.insn_bytes[i]);
	log_guest("kvm", "vCPU %u: KVM cannot emulate%s at %#llx, dbt does", v->index, hex,
		  (unsigned long long)s->rip);
}

enum run_result kvm_step(struct kvm_vcpu *v, struct error *err)
{
	struct x86_state before, s;
	int rc = v->step ? 0 : make_step_vcpu(v, err);

	if (rc >= 0)
		rc = kvm_state_get(v, &before, err);
	if (rc < 0) {
		error_prefix(err, "an instruction KVM cannot emulate");
		return RUN_FAILED;
	}
	v->counters[KVMC_STEPS]++;
	log_step(v, &before);
	/* Kernels without exits on emulation failure (before 5.14) have queued a #UD beside the
	 * exit. */
	s = before;
	if (s.exception_pending && s.exception_vector == 6)
		s.exception_pending = s.exception_vector = 0;
	v->step_cr8 = s.cr8;
	rc = dbt_step_foreign(v->step, &s);
	if (rc == -ESHUTDOWN)
		return RUN_SHUTDOWN;
	s.cr8 = v->step_cr8;
	if (kvm_state_put(v, &s, &before, err) < 0)
		return RUN_FAILED;
	if (v->broken.text[0]) {
		*err = v->broken;
		return RUN_FAILED;
	}
	return v->debug.single_step ? RUN_DEBUG : RUN_KICKED;
}
