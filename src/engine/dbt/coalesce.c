/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coalescing: which accesses of a block one soft-TLB check may cover.
 *
 * How it works.  Going forward through the block, each register has a version, which changes when the register
 * is written, and a bias, the sum of the constants added to it since (PUSH, POP, ADD and SUB of an immediate,
 * INC, DEC, LEA of itself).  Accesses whose base and index have the same versions differ by a
 * constant; as long as all bytes lie within GROUP_SPAN_MAX they form a group.  A check of the whole span
 * at the first of them gives a pointer from which all others are reached by a displacement.
 *
 * Invariants
 *  1. A group's check precedes its accesses in the straight line of the block, and nothing between them can change a
 *     mapping of this vCPU: instructions that could are safepoints, and end all groups.  So do calls.
 *  2. A check for writing is made only where the write itself is sure to come: a write that a branch
 *     separates from the group's first access begins a new group.  So a page that is only ever read is not asked to be
 *     writable.
 *  3. Checking more than the program accesses has no effect that the guest could see: where the span crosses
 *     a page, or its page is not there or not writable without notice, a copy of the block that checks every access
 *     by itself goes on (DBT_MODE_EACH).
 *
 * Not grouped: bit strings and gathers (their address is no base + constant), absolute addresses.
 */
#include "engine/dbt/translate.h"

struct plan {
	struct ctx *c;
	uint16_t ver[17]; /* [16]: of everything, for accesses without registers */
	int64_t bias[16];
	uint16_t branches;
};

static bool adds_constant(const struct ctx *c, const struct insn *in, unsigned *reg, int64_t *by)
{
	const struct opnd *op = &in->op[0];
	unsigned size = c->sp_size;

	if (in->has_mem && in->desc->id != I_LEA)
		return false;
	switch (in->desc->id) {
	case I_ADD:
	case I_SUB:
		if (in->op[1].kind != OPND_IMM || op->size != size)
			return false;
		*by = in->desc->id == I_ADD ? in->imm : -in->imm;
		break;
	case I_INC:
	case I_DEC:
		if (op->size != size)
			return false;
		*by = in->desc->id == I_INC ? 1 : -1;
		break;
	case I_LEA:
		if (in->opsize != size || in->addrsize != size || in->rip_rel ||
		    in->index != 0xff || in->base != in->reg)
			return false;
		*reg = in->reg;
		*by = in->disp;
		return true;
	default:
		return false;
	}
	if (op->kind == OPND_GPR_RM)
		*reg = in->rm;
	else if (op->kind == OPND_GPR_OPCODE)
		*reg = (in->opcode & 7) | (in->rex_b ? 8u : 0u);
	else if (op->kind == OPND_FIXED_GPR)
		*reg = op->reg;
	else
		return false;
	return true;
}

static void written(struct plan *p, unsigned reg)
{
	p->ver[reg]++;
	p->bias[reg] = 0;
}

static struct group *find_group(struct plan *p, const struct group *want, int64_t disp, unsigned size)
{
	struct ctx *c = p->c;

	for (unsigned i = c->ngroups; i-- > 0;) {
		struct group *g = &c->group[i];

		if (g->base != want->base || g->index != want->index || g->scale != want->scale ||
		    g->seg != want->seg || g->addrsize != want->addrsize ||
		    g->base_ver != want->base_ver || g->index_ver != want->index_ver)
			continue;
		if (MAX(g->dmax, disp + (int64_t)size) - MIN(g->dmin, disp) > GROUP_SPAN_MAX)
			continue;
		if (want->is_write && !g->is_write && g->branches != p->branches)
			return NULL; /* invariant 2 */
		return g;
	}
	return NULL;
}

static void add(struct plan *p, unsigned i, unsigned which, struct group *want, int64_t disp, unsigned size)
{
	struct ctx *c = p->c;
	struct group *g = find_group(p, want, disp, size);

	if (!g) {
		if (c->ngroups == MAX_GROUPS)
			return;
		g = &c->group[c->ngroups++];
		*g = *want;
		g->branches = p->branches;
		g->dmin = disp;
		g->dmax = disp + (int64_t)size;
		g->slot = SLOT_NONE;
	}
	g->dmin = MIN(g->dmin, disp);
	g->dmax = MAX(g->dmax, disp + (int64_t)size);
	g->is_write |= want->is_write;
	g->members++;
	g->last = (uint16_t)i;
	c->acc[i][which] = (struct access){ .group = (int8_t)(g - c->group), .disp = disp };
}

/* A stack access at @reg + @disp. */
static void add_stack(struct plan *p, unsigned i, unsigned reg, int64_t disp, unsigned size, bool is_write)
{
	struct group want = {
		.base = (uint8_t)reg,
		.index = 0xff,
		.scale = 1,
		.seg = SEG_SS,
		.addrsize = (uint8_t)p->c->sp_size,
		.is_write = is_write,
		.base_ver = p->ver[reg],
	};

	add(p, i, ACC_STACK, &want, disp + p->bias[reg], size);
}

static void add_operand(struct plan *p, unsigned i)
{
	const struct ctx *c = p->c;
	const struct insn *in = &c->in[i];
	struct group want = {
		.base = in->base,
		.index = in->index,
		.scale = in->index == 0xff ? 1 : in->scale,
		.seg = in->seg == SEG_FS || in->seg == SEG_GS || !c->is_flat ? in->seg : SEG_SS,
		.addrsize = in->addrsize,
		.is_write = in->mem_access & OPND_WRITE,
	};
	int64_t disp = in->disp;

	if (!in->mem_size || in->mem_size > 64 || in->addrsize != c->sp_size ||
	    insn_is_bit_string(in) || in->desc->id == I_MOV_MOFFS || in->desc->attr & INSN_VSIB)
		return;
	if (in->rip_rel) {
		want.base = BASE_RIP;
		disp += c->off[i + 1];
	} else if (in->base != 0xff) {
		want.base_ver = p->ver[in->base];
		disp += p->bias[in->base];
	}
	if (in->index != 0xff) {
		/* The bias of an index would need its own term: a changed one is another register. */
		want.index_ver = p->ver[in->index];
		if (p->bias[in->index])
			return;
	}
	if (want.base >= 16)
		want.base_ver = p->ver[16];
	add(p, i, ACC_OPERAND, &want, disp, in->mem_size);
}

/* Must name exactly the accesses that the emitters of translate.c make, in their order. */
static void accesses(struct plan *p, unsigned i)
{
	const struct insn *in = &p->c->in[i];
	unsigned size = in->opsize;

	if (in->desc->kind == INSN_NATIVE) {
		if (in->mem_access)
			add_operand(p, i);
		return;
	}
	switch (in->desc->id) {
	case I_PUSH_RM:
		if (in->has_mem)
			add_operand(p, i);
		/* fall through */
	case I_PUSH_REG:
	case I_PUSH_IMM:
	case I_PUSHF:
		add_stack(p, i, R_RSP, -(int64_t)size, size, true);
		break;
	case I_CALL_IND:
		if (in->has_mem)
			add_operand(p, i);
		/* fall through */
	case I_CALL_REL:
		add_stack(p, i, R_RSP, -(int64_t)size, size, true);
		break;
	case I_JMP_IND:
		if (in->has_mem)
			add_operand(p, i);
		break;
	case I_POP_REG:
	case I_RET:
		add_stack(p, i, R_RSP, 0, size, false);
		break;
	case I_POP_RM:
		if (!in->has_mem)
			add_stack(p, i, R_RSP, 0, size, false);
		break;
	case I_LEAVE:
		add_stack(p, i, R_RBP, 0, size, false);
		break;
	case I_CMPXCHG8B:
	case I_CMPXCHG16B:
	case I_LDMXCSR:
		add_operand(p, i);
		break;
	default:
		break;
	}
}

/* What the instruction does to registers, after its accesses. */
static void effects(struct plan *p, unsigned i)
{
	const struct insn *in = &p->c->in[i];
	int64_t size = in->opsize, by;
	unsigned reg;

	p->branches += !!(in->desc->attr & INSN_BRANCH);
	if (adds_constant(p->c, in, &reg, &by)) {
		p->bias[reg] += by;
		return;
	}
	bool is_call = in->desc->id == I_CALL_REL || in->desc->id == I_CALL_IND;
	bool has_new_base = in->desc->id == I_WRFSBASE || in->desc->id == I_WRGSBASE;

	if (is_call || has_new_base ||
	    (in->desc->kind == INSN_SYSTEM && in->desc->id != I_CLI && in->desc->id != I_STI)) {
		for (unsigned r = 0; r < 17; r++) /* invariant 1; the base of FS or GS */
			p->ver[r]++;
		return;
	}
	uint16_t mask = in->gpr_write;

	switch (in->desc->id) {
	case I_PUSH_RM:
	case I_PUSH_REG:
	case I_PUSH_IMM:
	case I_PUSHF:
		p->bias[R_RSP] -= size;
		mask &= (uint16_t) ~(1u << R_RSP);
		break;
	case I_POP_REG:
	case I_POP_RM:
		if (!in->has_mem) {
			unsigned dst = in->op[0].kind == OPND_GPR_RM ? in->rm
				       : in->op[0].kind == OPND_FIXED_GPR
					       ? in->op[0].reg
					       : (in->opcode & 7) | (in->rex_b ? 8u : 0u);

			if (dst != R_RSP) {
				p->bias[R_RSP] += size;
				mask &= (uint16_t) ~(1u << R_RSP);
			}
		}
		break;
	default:
		break;
	}
	for (unsigned r = 0; r < 16; r++)
		if (mask >> r & 1)
			written(p, r);
}

void coalesce_plan(struct ctx *c)
{
	struct plan p = { .c = c };

	c->ngroups = 0;
	c->held = -1;
	c->slots = 0;
	c->ptr_disp = 0;
	for (unsigned i = 0; i < c->n; i++)
		for (unsigned k = 0; k < ACC_MAX; k++)
			c->acc[i][k].group = -1;
	if (!c->x->has_bmi2 || c->key & DBT_MODE_EACH || c->cpu->vm->cfg.without & ENGINE_COALESCING)
		return;
	for (unsigned i = 0; i < c->n; i++) {
		accesses(&p, i);
		effects(&p, i);
	}
	/* One access alone is checked as such. */
	for (unsigned i = 0; i < c->n; i++)
		for (unsigned k = 0; k < ACC_MAX; k++)
			if (c->acc[i][k].group >= 0 && c->group[c->acc[i][k].group].members < 2)
				c->acc[i][k].group = -1;
}
