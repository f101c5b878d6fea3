/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One instruction of a foreign engine's vCPU on the dbt engine.
 *
 * Where KVM reports that it cannot emulate an instruction, the kvm engine takes the architectural
 * state out, lets the dbt engine execute exactly that instruction on the same RAM, loads the result
 * back and goes on.  The dbt vCPU is an ordinary one of a dbt VM made on the same guest_ram; nobody
 * calls vcpu_run on it.
 */
#ifndef VIV_ENGINE_STEP_H
#define VIV_ENGINE_STEP_H

#include "engine/x86_state.h"

struct engine_vcpu;

/**
 * dbt_step_foreign() - load @io, execute one instruction, store the state back to @io.
 * @dbt: a vCPU made by engine_dbt.vcpu_create; its vcpu_up serves the instruction's exits
 * @io:  in and out: everything but the LAPIC.  The TSC goes on from io->tsc
 *
 * An instruction that faults delivers its exception: that counts as the one instruction, and the
 * next one is the handler's first.  A repeated string instruction does at least one iteration.
 * Pending events in @io (exception_pending, is_external_pending, nmi_pending) are left alone.
 * Nothing remembered from an earlier call may be used (TLB entries, decoded or translated code):
 * between calls the other engine changes memory and page tables unseen.
 *
 * Returns 0, or -ESHUTDOWN: triple fault, @io is undefined.
 */
int dbt_step_foreign(struct engine_vcpu *dbt, struct x86_state *io);

#endif
