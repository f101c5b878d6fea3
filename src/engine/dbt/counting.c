/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counting mode (engine_config.is_counting): each vCPU knows how many instructions it has retired, exactly, and can be
 * stopped at a count, so that a run can be repeated with every event at the instruction where it was.
 *
 * What counts: an instruction that completes, once, whatever it does: one with REP when its last iteration is done, HLT, an
 * INT and what takes a trap behind it.  What faults does not count, nor does the delivery of an exception or interrupt.
 *
 * How it works.  gs:left counts down to the next stop.  A block takes off all of its instructions as it is entered; what
 * leaves it before its end puts back those that it has ahead: in cold code, where that is known, or by gs:count_fix, which a
 * miss sets for the case that the access is refused, or by the map of the block after a host fault.  The interpreter counts
 * for itself.  So left is exact whenever C code runs, but in the miss functions before they refuse.
 * A block that has more instructions than are left is not begun: the dispatcher interprets the last ones.
 *
 * Invariants
 *  1. A block has one end: it ends at each branch, and loops are not unrolled, so that only what is said above leaves it early.
 *  2. A block is entered only if left is no less than its instructions, the interpreted one at its end included.
 *
 * It is a mode of the whole machine: its blocks need no key of their own, and without it nothing of this is emitted.
 */
#include "engine/dbt/translate.h"

#define COUNT_MAX ((uint64_t)INT64_MAX)

void dbt_count_init(struct dbt_cpu *cpu)
{
	cpu->count_end = COUNT_MAX;
	cpu->left = INT64_MAX;
}

uint64_t dbt_count(const struct dbt_cpu *cpu)
{
	return cpu->count_end - (uint64_t)cpu->left;
}

void dbt_count_stop_at(struct dbt_cpu *cpu, uint64_t count)
{
	uint64_t now = dbt_count(cpu);

	cpu->count_end = MIN(count, COUNT_MAX);
	cpu->left = (int64_t)(cpu->count_end - now);
}

/* ---- emitted code ------------------------------------------------------------------------- */

/* gs:left less the block's instructions; the numbers come with tr_count_finish().  Flags live on. */
void tr_count_enter(struct ctx *c)
{
	struct emit *e = &c->e;

	if (!c->x->is_counting)
		return;
	c->cur = 0;
	emit_load_gs(e, H_RCX, CPU_OFF(left), 8);
	OP(0x4c, 0x8d, 0xb1); /* lea r14, [rcx - instructions] */
	c->count_at[0] = e->p;
	emit_u32(e, 0);
	emit_store_gs(e, CPU_OFF(left), H_R14, 8);
	OP(0x48, 0x8d, 0x89); /* lea rcx, [rcx - instructions, the interpreted one too] */
	c->count_at[1] = e->p;
	emit_u32(e, 0);
	tr_emit_pext_gs(c, H_RCX, H_RCX, CPU_OFF(sign_mask), false);
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_POLL);
}

void tr_count_finish(struct ctx *c, unsigned ninsns, bool is_tail_interpreted)
{
	const uint32_t by[2] = { 0 - ninsns, 0 - ninsns - is_tail_interpreted };

	c->counted = ninsns;
	if (c->x->is_counting && !c->e.is_full)
		for (unsigned i = 0; i < 2; i++)
			memcpy(c->count_at[i], &by[i], 4);
}

static unsigned ahead(const struct ctx *c, const struct cold *k)
{
	return c->counted - (unsigned)(k->in - c->in);
}

void tr_count_back(struct ctx *c, const struct cold *k)
{
	struct emit *e = &c->e;

	if (!c->x->is_counting || !ahead(c, k))
		return;
	emit_load_gs(e, H_RCX, CPU_OFF(left), 8);
	emit_lea(e, H_RCX, H_RCX, H_NONE, 1, (int32_t)ahead(c, k), 8);
	emit_store_gs(e, CPU_OFF(left), H_RCX, 8);
}

void tr_count_miss(struct ctx *c, const struct cold *k)
{
	if (c->x->is_counting)
		emit_store_gs_imm(&c->e, CPU_OFF(count_fix), (int32_t)ahead(c, k), 8);
}
