/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loops: a block that ends with a conditional jump to its own start is emitted twice.
 *
 * The first time as any block, with its checks.  After some rounds its jump back leads through the gate, which makes one check
 * for each group of accesses whose address a round moves by a constant, or not at all; finds out how many rounds
 * their pages allow; and lets so many go through the second copy, where these accesses are not checked.  Then, or where
 * the gate finds something missing, the first copy does the next round.
 *
 *	near entry:	wait = LOOP_WAIT
 *	start:		first copy			all checks
 *			jcc back
 *			jmp next block
 *	back:		poll; if wait: wait - 1, jmp start
 *	gate:		for each window: check, pointer into gs:ptr[], rounds into gs:rounds
 *	top:		second copy			mov r14, gs:[ptr]; the operand is [r14 + register * scale + at]
 *			jrcxz out
 *			rounds - 1
 *			jcc top
 *	exit:		jmp next block
 *	out:		jcc back
 *			jmp exit
 *
 * Addresses are followed as sums of what registers hold at the start of a round; accesses with the same sum, but for a
 * constant, share a window.  Its pointer is the host's address less what the register that moves it has added, so that it
 * stays the same in all rounds and at every place of a round.  The rounds are counted in rcx, or, where the second copy
 * needs that, in memory.
 *
 * Guest registers that live in memory (emit.h) and are used in the loop change places, for the second copy, with registers
 * that are not: gate and ways out swap them.
 *
 * Invariants
 *  1. Where an instruction of the second copy can fault, each guest register is where the block's loop_host says, or in
 *     the state: it is executed again as any other.
 *  2. Between two polls there are XLATE_LOOP_ROUNDS rounds at most.  Nothing in between can change a mapping of
 *     this vCPU, as in any block.
 *  3. The gate only looks into the soft TLB: it fills nothing, so that no access is made that the program does not make.
 *  4. A round moves a window by LOOP_BY_MAX bytes at most: rounds that the host runs ahead, before it finds out that they
 *     were too many, stay as near to the page as a wrong offset in it would (dbt.h, xlat).
 *  5. code_verify.c follows all that by itself.
 */
#include "engine/dbt/translate.h"

#define LOOP_BY_MAX	256
#define LOOP_WAIT	3  /* rounds before the gate is tried: it costs about as much as two */
#define LOOP_WAIT_AGAIN 16 /* after it found something missing */
#define NO_REG		0xff
#define COEF_PC		16

/* ---- the plan ----------------------------------------------------------------------------- */

/* What a register holds: a sum of what registers held at the start of the round. */
struct sum {
	bool is_known;
	int64_t k;
	int32_t coef[17];
};

struct state {
	struct sum reg[16];
	uint16_t copied; /* registers that were written by more than adding a constant to what they held */
	unsigned branches;
};

static void begin_round(struct state *s)
{
	memset(s, 0, sizeof(*s));
	for (unsigned r = 0; r < 16; r++) {
		s->reg[r].is_known = true;
		s->reg[r].coef[r] = 1;
	}
}

/* @a += @b * @by; numbers that no address needs are not followed. */
static void add_sum(struct sum *a, const struct sum *b, int32_t by)
{
	bool is_known = a->is_known && b->is_known;

	if (is_known) {
		a->k += b->k * by;
		is_known = a->k == (int32_t)a->k;
		for (unsigned r = 0; r < ARRAY_SIZE(a->coef); r++) {
			a->coef[r] += b->coef[r] * by;
			is_known &= a->coef[r] >= -8 && a->coef[r] <= 8;
		}
	}
	if (!is_known)
		*a = (struct sum){ 0 };
}

static struct sum address_of(const struct ctx *c, unsigned i, const struct state *s)
{
	const struct insn *in = &c->in[i];
	struct sum a = { .is_known = true, .k = in->disp };

	if (in->rip_rel) {
		a.coef[COEF_PC] = 1;
		a.k += c->off[i + 1];
	}
	if (in->base != 0xff)
		add_sum(&a, &s->reg[in->base], 1);
	if (in->index != 0xff)
		add_sum(&a, &s->reg[in->index], in->scale);
	a.is_known &= a.k == (int32_t)a.k;
	return a;
}

/* The general register of 64 bits that operand @k is, or NO_REG. */
static unsigned reg_operand(const struct insn *in, unsigned k)
{
	const struct opnd *op = &in->op[k];

	if (k >= in->nops || op->size != 8)
		return NO_REG;
	switch (op->kind) {
	case OPND_GPR_REG:
		return in->reg;
	case OPND_GPR_RM:
		return in->has_mem ? NO_REG : in->rm;
	case OPND_GPR_OPCODE:
		return (in->opcode & 7) | (in->rex_b ? 8u : 0u);
	case OPND_FIXED_GPR:
		return op->reg;
	default:
		return NO_REG;
	}
}

/* What instruction @i leaves in the register that it returns; NO_REG: nothing that can be followed. */
static unsigned result_of(const struct ctx *c, unsigned i, const struct state *s, struct sum *out)
{
	const struct insn *in = &c->in[i];
	unsigned dst = reg_operand(in, 0), src = reg_operand(in, 1);
	unsigned id = in->desc->id;
	const bool has_imm = in->nops > 1 && in->op[1].kind == OPND_IMM;

	if (id == I_LEA && in->opsize == 8 && in->addrsize == 8) {
		*out = address_of(c, i, s);
		return in->reg;
	}
	if (dst == NO_REG || (id != I_MOV && in->has_mem))
		return NO_REG;
	*out = s->reg[dst];
	switch (id) {
	case I_INC:
		out->k++;
		return dst;
	case I_DEC:
		out->k--;
		return dst;
	case I_ADD:
	case I_SUB:
		if (has_imm)
			out->k += id == I_ADD ? in->imm : -in->imm;
		else if (src != NO_REG)
			add_sum(out, &s->reg[src], id == I_ADD ? 1 : -1);
		else
			return NO_REG;
		out->is_known &= out->k == (int32_t)out->k;
		return dst;
	case I_MOV:
		if (src == NO_REG)
			return NO_REG;
		*out = s->reg[src];
		return dst;
	default:
		return NO_REG;
	}
}

static bool adds_constant(const struct insn *in, unsigned dst)
{
	switch (in->desc->id) {
	case I_INC:
	case I_DEC:
		return dst != NO_REG;
	case I_ADD:
	case I_SUB:
		return dst != NO_REG && in->op[1].kind == OPND_IMM;
	case I_LEA:
		return dst != NO_REG && in->base == dst && in->index == 0xff;
	default:
		return false;
	}
}

static void step(const struct ctx *c, unsigned i, struct state *s)
{
	const struct insn *in = &c->in[i];
	struct sum result;
	unsigned dst = result_of(c, i, s, &result);

	if (!adds_constant(in, dst))
		s->copied |= in->gpr_write;
	for (unsigned r = 0; r < 16; r++)
		if (in->gpr_write >> r & 1)
			s->reg[r].is_known = false;
	if (dst != NO_REG)
		s->reg[dst] = result;
	s->branches += !!(in->desc->attr & INSN_BRANCH);
}

/* Does @s say: what @reg held at the start, and a constant? */
static bool is_moved(const struct sum *s, unsigned reg)
{
	for (unsigned r = 0; r < ARRAY_SIZE(s->coef); r++)
		if (s->coef[r] != (r == reg))
			return false;
	return s->is_known;
}

static bool is_scale(int32_t n)
{
	return n == 1 || n == 2 || n == 4 || n == 8;
}

static bool may_be_in_loop(const struct insn *in)
{
	const struct insn_desc *d = in->desc;

	switch (d->id) {
	case I_LEA:
	case I_NOP:
	case I_PREFETCH:
	case I_JCC:
		return true;
	default:
		return d->kind == INSN_NATIVE &&
		       !(d->attr & (INSN_BRANCH | INSN_ENDS_BLOCK | INSN_CPL0));
	}
}

static bool has_access(const struct insn *in)
{
	return in->desc->kind == INSN_NATIVE && in->mem_access;
}

/* How the address @a moves, into @w; false: not as a window's must.  @after: the registers after a round */
static bool find_move(const struct ctx *c, struct window *w, const struct sum *a,
		      const struct state *now, const struct state *after)
{
	int64_t by = 0;

	w->varies = NO_REG;
	for (unsigned r = 0; r < 16; r++) {
		if (!a->coef[r])
			continue;
		if (!is_scale(a->coef[r]) || !is_moved(&after->reg[r], r))
			return false;
		if (!after->reg[r].k)
			continue;
		if (w->varies != NO_REG || c->loop.host[r] == H_NONE ||
		    !is_moved(&now->reg[r], r) || after->copied >> r & 1)
			return false;
		w->varies = (uint8_t)r;
		by = after->reg[r].k * a->coef[r];
	}
	if (by > LOOP_BY_MAX || by < -LOOP_BY_MAX)
		return false;
	w->by = (int32_t)by;
	return true;
}

/* Instruction @i's operand, in registers as they are @now, into a window. */
static void add_access(struct ctx *c, unsigned i, const struct state *now, const struct state *after)
{
	struct loop *l = &c->loop;
	const struct insn *in = &c->in[i];
	struct sum a = address_of(c, i, now);
	struct window new = { .is_write = in->mem_access & OPND_WRITE, .branches = now->branches };
	unsigned n = 0;

	if (!a.is_known || !in->mem_size || in->mem_size > 64 || in->addrsize != 8 ||
	    insn_is_bit_string(in) || insn_is_locked(in) || in->desc->attr & INSN_VSIB ||
	    !find_move(c, &new, &a, now, after))
		return;
	new.seg = in->seg == SEG_FS || in->seg == SEG_GS ? in->seg : SEG_SS;
	new.kmin = a.k;
	new.kmax = a.k + in->mem_size;
	memcpy(new.coef, a.coef, sizeof(a.coef));
	for (; n < l->nwindows; n++) {
		const struct window *w = &l->window[n];

		if (!memcmp(w->coef, new.coef, sizeof(new.coef)) && w->seg == new.seg &&
		    MAX(w->kmax, new.kmax) - MIN(w->kmin, new.kmin) <= GROUP_SPAN_MAX &&
		    (w->is_write || !new.is_write || w->branches == new.branches))
			break;
	}
	if (n == MAX_WINDOWS)
		return;
	if (n == l->nwindows)
		l->window[l->nwindows++] = new;
	struct window *w = &l->window[n];

	w->kmin = MIN(w->kmin, new.kmin);
	w->kmax = MAX(w->kmax, new.kmax);
	w->is_write |= new.is_write;
	l->of[i].window = (int8_t)n;
	l->of[i].at = w->varies == NO_REG ? a.k : a.k - now->reg[w->varies].k * a.coef[w->varies];
}

/* @used: mask of the registers that the loop names */
static void plan_swaps(struct ctx *c, uint16_t used)
{
	struct loop *l = &c->loop;

	used |= 1 << R_RSP;
	for (unsigned g = 0; g < 16; g++) {
		unsigned d = 0;

		if (emit_host_reg[g] != H_NONE || !(used >> g & 1))
			continue;
		while (d < 16 && (used >> d & 1 || emit_host_reg[d] == H_NONE))
			d++;
		if (d == 16)
			return;
		l->host[g] = emit_host_reg[d];
		l->host[d] = H_NONE;
		l->swap[l->nswaps].g = (uint8_t)g;
		l->swap[l->nswaps++].d = (uint8_t)d;
		used |= (uint16_t)(1u << d);
	}
}

void tr_loop_swap(struct ctx *c, bool back)
{
	const struct loop *l = &c->loop;

	for (unsigned i = 0; i < l->nswaps; i++) {
		uint8_t in = back ? l->swap[i].d : l->swap[i].g,
			out = back ? l->swap[i].g : l->swap[i].d;
		unsigned h = emit_host_reg[l->swap[i].d];

		emit_store_gs(&c->e, CPU_GPR_OFF(out), h, 8);
		emit_load_gs(&c->e, h, CPU_GPR_OFF(in), 8);
	}
}

void tr_loop_plan(struct ctx *c)
{
	struct loop *l = &c->loop;
	bool has_accesses = false;
	struct state now, after;

	l->is_on = false;
	l->is_swapped = false;
	l->jump = l->top = NULL;
	l->nwindows = l->nswaps = 0;
	memcpy(l->host, emit_host_reg, sizeof(l->host));
	if (!c->n || c->bits != 64 || !c->x->has_bmi2 || c->key & DBT_MODE_EACH ||
	    c->cpu->vm->cfg.without & (ENGINE_COALESCING | ENGINE_LOOPS) ||
	    !tr_is_jump_back(c, &c->in[c->n - 1]))
		return;
	uint16_t used = 0;

	begin_round(&after);
	for (unsigned i = 0; i < c->n; i++) {
		if (!may_be_in_loop(&c->in[i]))
			return;
		step(c, i, &after);
		used |= c->in[i].gpr_read | c->in[i].gpr_write;
	}
	plan_swaps(c, used);
	begin_round(&now);
	for (unsigned i = 0; i < c->n; i++) {
		l->of[i].window = -1;
		if (has_access(&c->in[i])) {
			has_accesses = true;
			add_access(c, i, &now, &after);
		}
		step(c, i, &now);
	}
	l->is_on = l->nwindows || !has_accesses;
}

/* ---- the gate ----------------------------------------------------------------------------- */

/* rcx = linear address of the window's first byte */
static void emit_window_address(struct ctx *c, const struct window *w)
{
	struct emit *e = &c->e;
	unsigned base = H_NONE;
	int32_t k = (int32_t)w->kmin;

	if (w->coef[COEF_PC]) {
		emit_load_gs(e, H_RCX, CPU_OFF(pc_base), 8);
		base = H_RCX;
	}
	for (unsigned r = 0; r < 16; r++) {
		if (!w->coef[r])
			continue;
		unsigned h = emit_guest_get(e, r, H_R15);

		if (base == H_NONE && w->coef[r] == 1)
			emit_lea(e, H_RCX, h, H_NONE, 1, k, 8);
		else
			emit_lea(e, H_RCX, base, h, (unsigned)w->coef[r], k, 8);
		base = H_RCX;
		k = 0;
	}
	if (base == H_NONE)
		emit_mov_ri(e, H_RCX, (uint64_t)(int64_t)k);
	else if (k)
		emit_lea(e, H_RCX, H_RCX, H_NONE, 1, k, 8);
	if (w->seg != SEG_SS) {
		emit_load_gs(e, H_R15, CPU_SEG_OFF(w->seg, base), 8);
		emit_lea(e, H_RCX, H_RCX, H_R15, 1, 0, 8);
	}
}

/* rcx = rounds that the page allows after the first, from r15, the offset in it; r14 = what stays the same. */
static void emit_rounds(struct ctx *c, const struct window *w)
{
	struct emit *e = &c->e;
	int32_t scale = w->coef[w->varies];
	unsigned shift = 0;

	while (1 << shift < (w->by < 0 ? -w->by : w->by))
		shift++;
	if (w->by > 0) {
		emit_mov_ri(e, H_RCX, 4096 - (uint64_t)(w->kmax - w->kmin));
		OP(0x44, 0x29, 0xf9); /* sub ecx, r15d */
	} else {
		emit_mov_rr(e, H_RCX, H_R15, 4);
	}
	OP(0xc1, 0xe9); /* shr ecx, shift */
	emit_u8(e, (uint8_t)shift);
	if (scale == 1)
		emit_mov_rr(e, H_R15, e->host[w->varies], 8);
	else
		emit_lea(e, H_R15, H_NONE, e->host[w->varies], (unsigned)scale, 0, 8);
	OP(0x4d, 0x29, 0xfe); /* sub r14, r15 */
}

static void emit_window(struct ctx *c, unsigned n, const uint8_t *miss)
{
	struct emit *e = &c->e;
	const struct window *w = &c->loop.window[n];
	int32_t slot = CPU_OFF(ptr) + 8 * (int32_t)n;

	emit_window_address(c, w);
	tr_emit_lookup_or(c, (unsigned)(w->kmax - w->kmin), w->is_write, miss);
	if (w->varies == NO_REG) {
		emit_store_gs(e, slot, H_R14, 8);
		return;
	}
	emit_rounds(c, w);
	emit_store_gs(e, slot, H_R14, 8);
	OP(0x65, 0x3b, 0x0c, 0x25); /* cmp ecx, gs:[rounds] */
	emit_u32(e, (uint32_t)CPU_OFF(rounds));
	OP(0x65, 0x0f, 0x47, 0x0c, 0x25); /* cmova ecx, gs:[rounds] */
	emit_u32(e, (uint32_t)CPU_OFF(rounds));
	emit_store_gs(e, CPU_OFF(rounds), H_RCX, 8);
}

/* Of the flags that are live where a round begins, kept over the gate in tmp[0]: loops by INC and DEC leave CF alone. */
enum kept { KEPT_NONE, KEPT_CARRY, KEPT_ALL };

static enum kept kept_flags(const struct ctx *c)
{
	unsigned live = c->live_in & FL_ARITH;

	return !live ? KEPT_NONE : live == FL_CF ? KEPT_CARRY : KEPT_ALL;
}

static void emit_flags_away(struct ctx *c, enum kept kept)
{
	if (kept == KEPT_CARRY) {
		OP(0x65, 0x0f, 0x93, 0x04, 0x25); /* setnc gs:[tmp0] */
		emit_u32(&c->e, (uint32_t)CPU_OFF(tmp[0]));
	} else if (kept == KEPT_ALL) {
		OP(0x9c, 0x41, 0x5f); /* pushfq; pop r15 */
		emit_store_gs(&c->e, CPU_OFF(tmp[0]), H_R15, 8);
	}
}

static void emit_flags_back(struct ctx *c, enum kept kept)
{
	if (kept == KEPT_CARRY) {
		OP(0x65, 0x80, 0x3c, 0x25); /* cmp byte gs:[tmp0], 1 */
		emit_u32(&c->e, (uint32_t)CPU_OFF(tmp[0]));
		emit_u8(&c->e, 1);
	} else if (kept == KEPT_ALL) {
		emit_load_gs(&c->e, H_RCX, CPU_OFF(tmp[0]), 8);
		OP(0x51, 0x9d); /* push rcx; popfq */
	}
}

static void set_rel32(struct ctx *c, uint8_t *end, const uint8_t *target)
{
	uint32_t rel = (uint32_t)(target - end);

	if (!c->e.is_full)
		memcpy(end - 4, &rel, 4);
}

static void emit_jmp(struct ctx *c, const uint8_t *to)
{
	emit_u8(&c->e, 0xe9);
	emit_u32(&c->e, (uint32_t)(to - (c->e.p + 4)));
}

void tr_loop_enter(struct ctx *c)
{
	if (!c->loop.is_on)
		return;
	if (c->loop.nwindows)
		emit_store_gs_imm(&c->e, CPU_OFF(loop_wait), c->cpu->xlate->check ? 0 : LOOP_WAIT, 8);
	c->loop.start = c->e.p;
}

/* From "back" to before "top".  Where flags are live they are kept over the gate.  Returns where "start" is. */
static const uint8_t *emit_gate(struct ctx *c)
{
	struct emit *e = &c->e;
	enum kept kept = kept_flags(c);
	const uint8_t *start = c->loop.start, *miss;

	/* Somebody who compares wants to see each run of a block end. */
	if (c->cpu->xlate->check) {
		start = e->p;
		tr_emit_link(c, -1, c->off[0]);
	}
	miss = e->p;
	emit_put_base(e, true);
	tr_loop_swap(c, true);
	emit_flags_back(c, kept);
	emit_store_gs_imm(e, CPU_OFF(loop_wait), LOOP_WAIT_AGAIN, 8);
	emit_jmp(c, start);

	set_rel32(c, c->loop.jump, e->p);
	e->has_base = true;
	c->loop.jump = e->p;
	c->cur = 0;
	tr_emit_poll(c, kept != KEPT_NONE);
	if (c->loop.nwindows) {
		emit_load_gs(e, H_RCX, CPU_OFF(loop_wait), 8);
		OP(0xe3, 0); /* jrcxz gate */
		uint8_t *skip = e->p;

		emit_lea(e, H_RCX, H_RCX, H_NONE, 1, -1, 8);
		emit_store_gs(e, CPU_OFF(loop_wait), H_RCX, 8);
		emit_jmp(c, start);
		if (!e->is_full)
			skip[-1] = (uint8_t)(e->p - skip);
	}
	(void)emit_take_base(e); /* a scratch register of what follows */
	emit_flags_away(c, kept);
	tr_loop_swap(c, false);
	e->host = c->loop.host;
	emit_store_gs_imm(e, CPU_OFF(rounds), XLATE_LOOP_ROUNDS, 8);
	for (unsigned n = 0; n < c->loop.nwindows; n++)
		emit_window(c, n, miss);
	emit_flags_back(c, kept);
	emit_put_base(e, true);
	return start;
}

/* ---- the rounds --------------------------------------------------------------------------- */

static enum done emit_in_window(struct ctx *c, const struct insn *in, int n)
{
	const struct window *w = &c->loop.window[n];
	int held = -2 - n; /* no group's number, and not -1 */

	if (c->held != held)
		emit_load_gs(&c->e, H_R14, CPU_OFF(ptr) + 8 * n, 8);
	c->held = held;
	if (w->varies != NO_REG) {
		c->e.scale = (uint8_t)w->coef[w->varies];
		c->e.index = c->e.host[w->varies];
	}
	bool ok = emit_native(&c->e, in, (int32_t)(c->loop.of[c->cur].at - w->kmin));

	c->e.scale = 0;
	return ok ? DONE_NEXT : DONE_INTERP;
}

static bool is_simple_lea(const struct ctx *c, const struct insn *in)
{
	const uint8_t *host = c->e.host;

	return host[in->reg] != H_NONE && in->opsize >= 4 && in->addrsize == 8 && !in->rip_rel &&
	       (in->base != 0xff || in->index != 0xff) &&
	       (in->base == 0xff || host[in->base] != H_NONE) &&
	       (in->index == 0xff || host[in->index] != H_NONE);
}

/* Does what translate.c emits for the instruction use rcx? */
static bool needs_rcx(const struct ctx *c, unsigned i)
{
	const struct insn *in = &c->in[i];

	switch (in->desc->id) {
	case I_LEA:
		return !is_simple_lea(c, in);
	case I_JCC: /* polls */
		return c->off[i + 1] + in->imm <= c->off[i];
	default:
		return has_access(in) && c->loop.of[i].window < 0;
	}
}

/* The second copy but for its last jump.  False: not so (with @keeps_rcx it may go without). */
static bool emit_round(struct ctx *c, bool keeps_rcx, struct xlate_insn_map *map)
{
	struct emit *e = &c->e;

	c->held = -1;
	c->slots = (1u << c->loop.nwindows) - 1;
	for (unsigned g = 0; g < c->ngroups; g++) {
		c->group[g].slot = SLOT_NONE;
		c->group[g].is_checked = false;
	}
	for (c->cur = 0; c->cur + 1 < c->n; c->cur++) {
		const struct insn *in = &c->in[c->cur];
		int n = c->loop.of[c->cur].window;

		map[c->cur].host_off = (uint32_t)(e->p - e->start);
		map[c->cur].page_off = c->off[c->cur];
		if (keeps_rcx && needs_rcx(c, c->cur))
			return false;
		e->used_addr = false;
		e->keeps_rcx = keeps_rcx;
		enum done done = n >= 0 ? emit_in_window(c, in, n) : tr_insn(c, in);

		e->keeps_rcx = false;
		if (done != DONE_NEXT)
			return false;
		if (e->used_addr)
			c->held = -1;
		tr_free_slots(c);
	}
	map[c->cur].host_off = (uint32_t)(e->p - e->start);
	map[c->cur].page_off = c->off[c->cur];
	return true;
}

/* The jump back of the second copy, and what comes after it.  @back: where rounds begin that are not allowed for */
static void emit_jump_back(struct ctx *c, bool in_rcx, const uint8_t *back)
{
	struct emit *e = &c->e;
	uint8_t cc = c->in[c->n - 1].opcode & 15;

	if (!in_rcx)
		emit_load_gs(e, H_RCX, CPU_OFF(rounds), 8);
	OP(0xe3, 0); /* jrcxz out */
	uint8_t *to_out = e->p;
	emit_lea(e, H_RCX, H_RCX, H_NONE, 1, -1, 8);
	if (!in_rcx)
		emit_store_gs(e, CPU_OFF(rounds), H_RCX, 8);
	emit_u8(e, 0x0f);
	emit_u8(e, (uint8_t)(0x80 | cc));
	emit_u32(e, (uint32_t)(c->loop.top - (e->p + 4)));
	emit_u8(e, 0xe9); /* jmp exit */
	emit_u32(e, 0);
	uint8_t *to_exit = e->p;

	if (!e->is_full)
		to_out[-1] = (uint8_t)(e->p - to_out);
	tr_loop_swap(c, true);
	emit_u8(e, 0x0f);
	emit_u8(e, (uint8_t)(0x80 | cc));
	emit_u32(e, (uint32_t)(back - (e->p + 4)));
	uint8_t *next = e->p;
	c->loop.is_swapped = false;
	tr_emit_goto(c, c->off[c->n], NO_UNDO);
	set_rel32(c, to_exit, c->loop.nswaps ? e->p : next);
	if (c->loop.nswaps) {
		tr_loop_swap(c, true);
		emit_jmp(c, next);
	}
}

unsigned tr_loop_emit(struct ctx *c, struct xlate_insn_map *map)
{
	struct emit *e = &c->e;
	const uint8_t *start = emit_gate(c), *back = c->cpu->xlate->check ? start : c->loop.jump;
	uint8_t *load = e->p;

	emit_load_gs(e, H_RCX, CPU_OFF(rounds), 8);
	const unsigned ncold = c->ncold, nlinks = c->nlinks;
	bool in_rcx;

	c->loop.top = e->p;
	c->loop.is_swapped = c->loop.nswaps;
	in_rcx = emit_round(c, true, map);
	if (!in_rcx) {
		e->p = load;
		c->ncold = ncold;
		c->nlinks = nlinks;
		e->kept_at = NULL;
		c->loop.top = e->p;
		if (!emit_round(c, false, map)) /* the first copy had them all */
			e->is_full = true;
	}
	emit_jump_back(c, in_rcx, back);
	e->host = emit_host_reg;
	return c->n;
}
