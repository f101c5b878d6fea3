/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building a block: decode a run of instructions, find out where flags are live, emit.
 *
 * Each instruction either has an emitter here (natively executable ones through emit_native), or the
 * block ends with an exit to the interpreter at it.  A memory access is emitted as: effective address,
 * soft-TLB check, the instruction at the checked pointer.  All checks of an instruction precede every
 * write to guest state, so that the interpreter can execute it again from its start.
 */
#include <assert.h>
#include <limits.h>

#include "base/log.h"
#include "engine/code_verify.h"
#include "engine/dbt/interp_user.h"
#include "engine/dbt/translate.h"

/* ---- small pieces ------------------------------------------------------------------------- */

void tr_emit_op(struct ctx *c, const uint8_t *b, unsigned n)
{
	emit_bytes(&c->e, b, n);
}
void tr_emit_rel_to(struct ctx *c, const uint8_t *exec_target)
{
	emit_u32(&c->e, (uint32_t)(exec_target - (c->e.p + 4 + c->e.exec_delta)));
}

void tr_emit_jmp_exec(struct ctx *c, const uint8_t *exec_target)
{
	emit_u8(&c->e, 0xe9);
	tr_emit_rel_to(c, exec_target);
}

struct cold *tr_cold_add(struct ctx *c, int kind)
{
	if (c->ncold == MAX_COLD) {
		c->e.is_full = true;
		return &c->cold[MAX_COLD - 1];
	}
	struct cold *k = &c->cold[c->ncold++];

	k->kind = kind;
	k->jump = c->e.p;
	k->in = &c->in[c->cur];
	k->page_off = c->off[c->cur];
	k->link = NULL;
	k->is_swapped = c->loop.is_swapped;
	k->has_base = c->e.has_base;
	k->needs_flags = tr_flags_missing(c);
	return k;
}

/* jmp to cold code of the present instruction: an exit to the interpreter (or a poll exit). */
void tr_emit_jmp_cold(struct ctx *c, int kind)
{
	emit_u8(&c->e, 0xe9);
	emit_u32(&c->e, 0);
	tr_cold_add(c, kind);
}

/* Of stack accesses: rcx = @reg + @disp. */
static void emit_stack_address(struct ctx *c, unsigned reg, int32_t disp)
{
	emit_lea(&c->e, H_RCX, reg, H_NONE, 1, disp, MAX(c->sp_size, 4u));
	if (c->sp_size == 2)
		OP(0x0f, 0xb7, 0xc9); /* movzx ecx, cx */
}

static unsigned address_seg(const struct ctx *c, unsigned ea_kind)
{
	const struct insn *in = &c->in[c->cur];

	switch (ea_kind) {
	case EA_INSN:
		return in->seg;
	case EA_SOURCE:
		return user_mem_seg(in);
	case EA_DESTINATION:
		return SEG_ES;
	default:
		return SEG_SS;
	}
}

/* rcx = the address of an access; where it is by a segment with base and limit (tr_is_segmented), the offset in that. */
static void emit_address(struct ctx *c, unsigned ea_kind, int32_t disp)
{
	struct emit *e = &c->e;

	switch (ea_kind) {
	case EA_INSN: {
		struct insn in = c->in[c->cur];

		in.disp += disp;
		if (tr_is_segmented(c, in.seg))
			in.seg = SEG_DS;
		emit_ea(e, &in, H_RCX, H_R14, c->off[c->cur + 1]);
		break;
	}
	case EA_STACK:
		emit_stack_address(c, H_R13, disp);
		break;
	case EA_STACK_FRAME:
		emit_stack_address(c, H_RBP, disp);
		break;
	case EA_SOURCE:
	case EA_DESTINATION:
		emit_lea(e, H_RCX, ea_kind == EA_SOURCE ? H_RSI : H_RDI, H_NONE, 1, 0,
			 MAX(c->in[c->cur].addrsize, 4));
		if (c->in[c->cur].addrsize == 2)
			OP(0x0f, 0xb7, 0xc9); /* movzx ecx, cx */
		break;
	}
}

/* The linear address again, which has been checked against its segment's limit. */
static void emit_linear(struct ctx *c, unsigned ea_kind, int32_t disp)
{
	emit_address(c, ea_kind, disp);
	if (tr_is_segmented(c, address_seg(c, ea_kind)))
		tr_seg_base(c, address_seg(c, ea_kind));
}

int tr_tlb_mode(uint32_t key)
{
	return key & DBT_MODE_USER     ? DBT_TLB_USER
	       : key & DBT_MODE_AC_TLB ? DBT_TLB_KERNEL_AC
				       : DBT_TLB_KERNEL;
}

/* r14 = index of the soft-TLB entry of the address in rcx */
static void emit_tlb_index(struct ctx *c, bool live)
{
	struct emit *e = &c->e;

	if (c->x->has_bmi2) {
		tr_emit_pext_gs(c, H_R14, H_RCX, CPU_OFF(tlb_mask), false);
		return;
	}
	if (live)
		OP(0x9c); /* pushfq */
	emit_mov_rr(e, H_R14, H_RCX, 8);
	emit_op_mem(e, 0, true, (const uint8_t[]){ 0x23 }, 1, H_R14, H_NONE, CPU_OFF(tlb_mask)); /* and */
	OP(0x49, 0xc1, 0xee, 0x0c); /* shr r14, 12 */
	if (live)
		OP(0x9d); /* popfq */
}

static int32_t tlb_off(const struct ctx *c, size_t member)
{
	return CPU_OFF(tlb) + tr_tlb_mode(c->key) * (int32_t)sizeof(struct dbt_tlb) + (int32_t)member;
}

static int32_t neg_off(const struct ctx *c, bool is_write)
{
	return tlb_off(c, is_write ? offsetof(struct dbt_tlb, wneg) : offsetof(struct dbt_tlb, rneg));
}

/*
 * The check of @size bytes at rcx where flags are dead: rcx = offset in the page; "ja", without its rel32, where they do
 * not lie in it.
 */
static void emit_tlb_compare(struct ctx *c, unsigned size, bool is_write)
{
	emit_tlb_index(c, false);
	emit_gs_idx(&c->e, 0x48, 0x03, H_RCX, H_R14, neg_off(c, is_write)); /* add rcx, gs:[r14 * 8 + neg] */
	OP(0x48, 0x81, 0xf9); /* cmp rcx, 4096 - size */
	emit_u32(&c->e, 4096 - size);
	OP(0x0f, 0x87); /* ja */
}

/* After it: the bytes are at r14 + rcx, also for a processor that runs ahead of the comparison. */
static void emit_tlb_page(struct ctx *c)
{
	emit_load_gs_idx(&c->e, H_R14, H_R14, tlb_off(c, offsetof(struct dbt_tlb, xlat)));
	OP(0x0f, 0xb7, 0xc9); /* movzx ecx, cx */
}

static void emit_tlb_sum(struct ctx *c)
{
	OP(0x49, 0x01, 0xce); /* add r14, rcx */
}

void tr_emit_lookup_or(struct ctx *c, unsigned size, bool is_write, const uint8_t *miss)
{
	emit_tlb_compare(c, size, is_write);
	emit_u32(&c->e, (uint32_t)(miss - (c->e.p + 4)));
	emit_tlb_page(c);
	emit_tlb_sum(c);
	(void)emit_take_base(&c->e);
	OP(0x41, 0x89, 0xcf); /* mov r15d, ecx */
}

/*
 * The soft-TLB check of @size bytes at rcx: leaves the host pointer in r14; with @is_sum off, and flags dead, its parts in r14
 * and rcx.  Clobbers rcx; flags only where they are dead.  Returns the cold part that a miss goes to.
 */
static struct cold *emit_lookup(struct ctx *c, unsigned size, bool is_write, bool live, int kind,
				bool is_sum)
{
	struct emit *e = &c->e;
	struct cold *k;

	if (!live) {
		emit_tlb_compare(c, size, is_write);
		emit_u32(e, 0);
		k = tr_cold_add(c, kind);
		emit_tlb_page(c);
		if (is_sum)
			emit_tlb_sum(c);
		return k;
	}
	emit_tlb_index(c, true);
	bool was_base = emit_take_base(e);
	emit_load_gs_idx(e, H_R15, H_R14, neg_off(c, is_write));
	emit_load_gs_idx(e, H_R14, H_R14, tlb_off(c, offsetof(struct dbt_tlb, xlat)));
	emit_lea(e, H_R15, H_R15, H_RCX, 1, (int32_t)size - 1, 8);
	OP(0x41, 0x0f, 0xb7, 0xcf); /* movzx ecx, r15w */
	emit_lea(e, H_R14, H_R14, H_RCX, 1, 1 - (int32_t)size, 8);
	if (c->x->has_bmi2) {
		tr_emit_pext_gs(c, H_RCX, H_R15, CPU_OFF(page_mask), false);
	} else {
		OP(0x9c);		    /* pushfq */
		OP(0x49, 0xc1, 0xef, 0x0c); /* shr r15, 12 */
		OP(0x9d);		    /* popfq */
		emit_mov_rr(e, H_RCX, H_R15, 8);
	}
	OP(0xe3, 0x05); /* jrcxz +5 */
	OP(0xe9);	/* jmp miss */
	emit_u32(e, 0);
	k = tr_cold_add(c, kind);
	emit_put_base(e, was_base);
	return k;
}

/* The pointer of @g is in r14 from here on; keep it for later accesses that others come before. */
static void hold_group(struct ctx *c, int g)
{
	struct group *gr = &c->group[g];

	c->held = g;
	if (gr->slot == SLOT_NONE && gr->last > c->cur) {
		for (unsigned k = ARRAY_SIZE(c->cpu->ptr); k-- > 0;) /* the last ones are nearer to r15 */
			if (!(c->slots >> k & 1)) {
				c->slots |= 1u << k;
				gr->slot = (uint8_t)k;
				break;
			}
	}
	if (gr->slot != SLOT_NONE)
		emit_store_gs(&c->e, CPU_OFF(ptr) + 8 * gr->slot, H_R14, 8);
}

void tr_free_slots(struct ctx *c)
{
	for (unsigned g = 0; g < c->ngroups; g++)
		if (c->group[g].slot != SLOT_NONE && c->group[g].last <= c->cur) {
			c->slots &= ~(1u << c->group[g].slot);
			c->group[g].slot = SLOT_NONE;
			c->group[g].is_checked = false;
		}
}

/* As tr_emit_check(); with @is_sum off, the access being in no group, and flags dead, it is at [r14 + rcx]. */
static void emit_check(struct ctx *c, unsigned ea_kind, int32_t disp, unsigned size, bool is_write,
		       bool live, bool is_sum)
{
	const struct access *a = &c->acc[c->cur][ea_kind == EA_INSN ? ACC_OPERAND : ACC_STACK];
	struct group *g = a->group < 0 ? NULL : &c->group[a->group];
	uint8_t *retry = c->e.p;
	struct cold *k;

	c->ptr_disp = 0;
	if (g && g->is_checked && (c->held == a->group || g->slot != SLOT_NONE)) {
		c->ptr_disp = (int32_t)(a->disp - g->dmin);
		if (c->held != a->group)
			emit_load_gs(&c->e, H_R14, CPU_OFF(ptr) + 8 * g->slot, 8);
		c->held = a->group;
		return;
	}
	if (c->nlinks >= XLATE_MAX_LINKS - 2 * XLATE_MAX_BRANCHES - 4)
		g = NULL;
	if (g) { /* of the whole span, from its lowest byte */
		c->ptr_disp = (int32_t)(a->disp - g->dmin);
		disp -= c->ptr_disp;
	}
	unsigned seg = address_seg(c, ea_kind);

	emit_address(c, ea_kind, disp);
	if (tr_is_segmented(c, seg))
		tr_seg_check(c, seg, g ? (unsigned)(g->dmax - g->dmin) : size, g ? g->is_write : is_write,
			     g ? g->addrsize == 2 : ea_kind == EA_STACK && c->sp_size == 2 && size > 8,
			     live);
	if (!g) {
		k = emit_lookup(c, size, is_write, live, COLD_MISS, is_sum);
		c->held = -1;
	} else {
		k = emit_lookup(c, (unsigned)(g->dmax - g->dmin), g->is_write, live, COLD_GROUP, true);
		k->is_first_write = is_write;
		g->is_checked = true;
		hold_group(c, a->group);
		k->link = &c->links[c->nlinks++];
		*k->link = (struct new_link){ 0 };
	}
	k->retry = retry;
	k->size = (uint16_t)(g ? g->dmax - g->dmin : size);
	k->is_write = g ? g->is_write : is_write;
	k->ea_kind = (uint8_t)ea_kind;
	k->ea_disp = disp;
}

/*
 * An access of @size bytes of the current instruction: afterwards it is at [r14 + ptr_disp].  Clobbers rcx;
 * flags only where they are dead (@live).
 */
void tr_emit_check(struct ctx *c, unsigned ea_kind, int32_t disp, unsigned size, bool is_write, bool live)
{
	emit_check(c, ea_kind, disp, size, is_write, live, true);
}

/*
 * The checked operand of a locked instruction: the interpreter's if it crosses a cache line (DBT_LINE).
 * Clobbers rcx; flags live on.
 */
static void emit_line_check(struct ctx *c, unsigned size)
{
	struct emit *e = &c->e;

	if (size < 2)
		return;
	emit_lea(e, H_RCX, H_R14, H_NONE, 1, c->ptr_disp, 8);
	if (c->x->has_bmi2) {
		tr_emit_pext_gs(c, H_RCX, H_RCX, CPU_OFF(line_mask), false);
		emit_lea(e, H_RCX, H_RCX, H_NONE, 1, (int32_t)size - 1, 8);
		tr_emit_pext_gs(c, H_RCX, H_RCX, CPU_OFF(line_size), false);
	} else {
		OP(0x9c);		      /* pushfq */
		OP(0x83, 0xe1, DBT_LINE - 1); /* and ecx, 63 */
		emit_lea(e, H_RCX, H_RCX, H_NONE, 1, (int32_t)size - 1, 8);
		OP(0xc1, 0xe9, 6); /* shr ecx, 6 */
		OP(0x9d);	   /* popfq */
	}
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_INTERP);
}

/* mov [r14], reg / mov reg, [r14], zero-extended; @size 2, 4 or 8 */
void tr_emit_store_r14(struct ctx *c, unsigned reg, unsigned size)
{
	emit_op_mem(&c->e, size == 2 ? 0x66 : 0, size == 8, (const uint8_t[]){ 0x89 }, 1, reg,
		    H_R14, c->ptr_disp);
}

void tr_emit_load_r14(struct ctx *c, unsigned reg, unsigned size)
{
	static const uint8_t movzx[] = { 0x0f, 0xb7 }, mov[] = { 0x8b };

	emit_op_mem(&c->e, 0, size == 8, size == 2 ? movzx : mov, size == 2 ? 2 : 1, reg, H_R14,
		    c->ptr_disp);
}

/* @guest = [r14], as an instruction of that operand size writes it.  Clobbers rcx. */
void tr_emit_get_r14(struct ctx *c, unsigned guest, unsigned size)
{
	struct emit *e = &c->e;
	unsigned h = emit_host_reg[guest];

	if (h == H_NONE) {
		tr_emit_load_r14(c, H_RCX, size);
		emit_store_gs(e, CPU_GPR_OFF(guest), H_RCX, size == 2 ? 2 : 8);
	} else if (size == 2) {
		emit_op_mem(e, 0x66, false, (const uint8_t[]){ 0x8b }, 1, h, H_R14, c->ptr_disp);
	} else {
		tr_emit_load_r14(c, h, size);
	}
}

void tr_emit_sp_add(struct ctx *c, int32_t delta)
{
	emit_lea(&c->e, H_R13, H_R13, H_NONE, 1, delta, c->sp_size);
}

/* RIP of page offset @off into @reg (flags untouched); @off may lie outside of the page. */
void tr_emit_rip(struct ctx *c, unsigned reg, int32_t off)
{
	emit_load_gs(&c->e, reg, CPU_OFF(pc_base), 8);
	emit_lea(&c->e, reg, reg, H_NONE, 1, off, c->bits == 64 ? 8 : 4);
}

/* The same of a branch's target, which has the operand size's bits. */
static void emit_target(struct ctx *c, int32_t off)
{
	tr_emit_rip(c, H_RCX, off);
	if (c->in[c->cur].opsize == 2 && c->bits != 64)
		OP(0x0f, 0xb7, 0xc9); /* movzx ecx, cx */
}

/* Poll at the current instruction, before it does anything. */
void tr_emit_poll(struct ctx *c, bool live)
{
	if (live) {
		emit_load_gs(&c->e, H_RCX, CPU_OFF(poll), 8);
		OP(0xe3, 0x05);
		tr_emit_jmp_cold(c, COLD_POLL);
	} else {
		emit_op_mem(&c->e, 0, false, (const uint8_t[]){ 0x80 }, 1, 7, H_NONE, CPU_OFF(poll));
		emit_u8(&c->e, 0); /* cmp byte gs:[poll], 0 */
		OP(0x0f, 0x85);	   /* jne */
		emit_u32(&c->e, 0);
		tr_cold_add(c, COLD_POLL);
	}
}

/*
 * The flags that a conditional jump back reads are live at it, which makes its poll slow.  Where they are dead before the
 * instruction that sets them, the poll is there.
 */
static void poll_early(struct ctx *c)
{
	unsigned next = c->cur + 1;

	if (next >= c->n || c->in[next].desc->id != I_JCC || tr_flags_live_before(c) ||
	    (c->cur && c->in[c->cur - 1].desc->id == I_STI)) /* the shadow: nothing comes between */
		return;
	int32_t off = (int32_t)(c->off[next + 1] + c->in[next].imm);

	if (off < 0 || off > c->off[next] || c->loop.is_on)
		return;
	tr_emit_poll(c, false);
	c->polled = next;
}

/* exit_info of a branch; see below. */
static int32_t undo_info(const struct ctx *c, int32_t sp_moved)
{
	return sp_moved == NO_UNDO ? -1 : (int32_t)((uint32_t)sp_moved << 12 | c->off[c->cur]);
}

/*
 * Indirect transfer: the target RIP is in rcx.  Nothing follows.
 *
 * A target that is no canonical address is not in the branch table.  xlate_run() finds that out, and takes the
 * instruction back by gs:exit_info: its offset in the page and what it has added to rsp.
 * @sp_moved: that sum, or NO_UNDO: not by a branch
 */
void tr_emit_indirect(struct ctx *c, int32_t sp_moved)
{
	struct emit *e = &c->e;
	int32_t info = undo_info(c, sp_moved);

	emit_store_gs(e, CPU_OFF(s.rip), H_RCX, 8);
	if (!c->x->has_bmi2) {
		emit_mov_ri(e, H_R15, (uint32_t)info);
		tr_emit_jmp_exec(c, c->x->exit_branch);
		return;
	}
	tr_emit_pext_gs(c, H_R14, H_RCX, CPU_OFF(jc_mask), false);
	emit_load_gs(e, H_R15, CPU_OFF(jc_key_now), 8);
	bool was_base = emit_take_base(e);
	emit_lea(e, H_RCX, H_RCX, H_R15, 1, 0, 8);
	emit_load_gs_idx(e, H_R15, H_R14, CPU_OFF(jc_neg));
	emit_lea(e, H_RCX, H_RCX, H_R15, 1, 0, 8);
	OP(0xe3, 0x05); /* jrcxz +5: hit */
	tr_emit_jmp_cold(c, COLD_BRANCH);
	c->cold[c->ncold - 1].ea_disp = info;
	emit_put_base(e, was_base);
	emit_gs_idx(e, 0, 0xff, 4, H_R14, CPU_OFF(jc_code)); /* jmp gs:[r14 * 8 + jc_code] */
}

/* No-ops until @by bytes further on an address of alignment @to comes. */
static void align_to(struct ctx *c, unsigned by, unsigned to)
{
	static const uint8_t nops[8][7] = { { 0 },
					    { 0x90 },
					    { 0x66, 0x90 },
					    { 0x0f, 0x1f, 0x00 },
					    { 0x0f, 0x1f, 0x40, 0x00 },
					    { 0x0f, 0x1f, 0x44, 0x00, 0x00 },
					    { 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00 },
					    { 0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00 } };
	unsigned pad = (unsigned)(-(uintptr_t)(c->e.p + by)) & (to - 1);

	emit_bytes(&c->e, nops[pad], pad);
}

/* The rel32 of a patchable jump lies within eight aligned bytes, which the host fetches at once. */
static void align_site(struct ctx *c, unsigned opcode_len)
{
	if (((uintptr_t)(c->e.p + opcode_len) & 7) > 4)
		align_to(c, opcode_len, 8);
}

/* The jump or call just emitted can be patched to go to page offset @off of the same page. */
static void note_link(struct ctx *c, uint16_t off)
{
	struct cold *k = tr_cold_add(c, COLD_LINK);

	k->page_off = off;
	if (c->nlinks == XLATE_MAX_LINKS) {
		c->e.is_full = true;
		return;
	}
	k->link = &c->links[c->nlinks++];
	*k->link = (struct new_link){ .site = c->e.p - 4, .page_off = off };
}

/*
 * Can a jump to page offset @off be patched?  Not to another page, nor to an instruction that goes on there, nor to what may
 * lie before its segment.
 */
static bool is_linkable(const struct ctx *c, int32_t off)
{
	return off >= (c->key & DBT_MODE_EDGE ? c->off[0] : 0) && off <= 4096 - INSN_MAX_LEN;
}

/* A patchable jump to page offset @off of the same page; @cc < 0: unconditional. */
void tr_emit_link(struct ctx *c, int cc, uint16_t off)
{
	if (cc >= 0 && c->loop.is_swapped) {
		emit_u8(&c->e, 0x0f);
		emit_u8(&c->e, (uint8_t)(0x80 | cc));
		emit_u32(&c->e, 0);
		note_link(c, off);
		c->cold[c->ncold - 1].kind = COLD_SIDE;
		return;
	}
	align_site(c, cc < 0 ? 1 : 2);
	if (cc < 0) {
		emit_u8(&c->e, 0xe9);
	} else {
		emit_u8(&c->e, 0x0f);
		emit_u8(&c->e, (uint8_t)(0x80 | cc));
	}
	emit_u32(&c->e, 0);
	note_link(c, off);
}

/* A link for a direct transfer to RIP = pc_base + @off in another page; NULL: it goes by the branch table. */
static struct new_link *far_link(struct ctx *c, int32_t off, int32_t sp_moved)
{
	struct new_link *l = &c->links[c->nlinks];

	if (!c->x->has_far_links || c->bits != 64 || !is_linkable(c, off & 0xfff) ||
	    off == (off & 0xfff) || c->nlinks == XLATE_MAX_LINKS)
		return NULL;
	*l = (struct new_link){ .page_off = (uint16_t)(off & 0xfff),
				.is_far = true,
				.page_delta = off & ~0xfff,
				.info = undo_info(c, sp_moved) };
	c->nlinks++;
	return l;
}

/*
 * The transfer of far link @l (xlate.h): pc_base becomes the target's page, its entry of ct is compared with
 * the page of RAM in the LEA.  Unpatched that is none, and the last jump goes to the one before.
 */
static void emit_far(struct ctx *c, struct new_link *l)
{
	struct emit *e = &c->e;

	emit_load_gs(e, H_RCX, CPU_OFF(pc_base), 8);
	emit_lea(e, H_RCX, H_RCX, H_NONE, 1, l->page_delta, 8);
	emit_store_gs(e, CPU_OFF(pc_base), H_RCX, 8);
	tr_emit_pext_gs(c, H_R14, H_RCX, CPU_OFF(ct_mask), false);
	emit_load_gs_idx(e, H_R14, H_R14, CPU_OFF(ct));
	OP(0xc4, 0xe3, 0xfb, 0xf0, 0xc9, 0x30); /* rorx rcx, rcx, 48 */
	align_site(c, 4);
	emit_lea(e, H_RCX, H_RCX, H_R14, 1, (int32_t)XLATE_NO_RAM_PAGE, 8);
	l->ram_page = e->p - 4;
	emit_load_gs(e, H_R14, CPU_OFF(jc_key_now), 8);
	emit_lea(e, H_RCX, H_RCX, H_R14, 1, 0, 8);
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_FAR_MISS);
	c->cold[c->ncold - 1].link = l;
	uint8_t *other = e->p - 5;

	align_site(c, 1);
	emit_u8(e, 0xe9);
	emit_u32(e, (uint32_t)(other - (e->p + 4)));
	l->site = e->p - 4;
	l->stub = other - e->p;
}

/* A direct transfer to RIP = pc_base + @off, taken always.  @sp_moved: as in tr_emit_indirect(). */
void tr_emit_goto(struct ctx *c, int32_t off, int32_t sp_moved)
{
	if (is_linkable(c, off)) {
		tr_emit_link(c, -1, (uint16_t)off);
		return;
	}
	struct new_link *l = far_link(c, off, sp_moved);

	if (l) {
		emit_far(c, l);
		return;
	}
	if (sp_moved == NO_UNDO)
		tr_emit_rip(c, H_RCX, off);
	else
		emit_target(c, off);
	tr_emit_indirect(c, sp_moved);
}

/* 66H on a branch outside of 16-bit code. */
static bool is_odd_branch(const struct ctx *c, const struct insn *in)
{
	return in->opsize == 2 && c->bits != 16;
}

static int32_t branch_target(const struct ctx *c)
{
	const struct insn *in = &c->in[c->cur];

	return (int32_t)(c->off[c->cur + 1] + in->imm);
}

/* ---- instructions ------------------------------------------------------------------------- */

/* The instruction with its operand at [r14 + rcx]; false: it needs rcx. */
static bool emit_in_parts(struct ctx *c, const struct insn *in)
{
	struct emit *e = &c->e;
	uint8_t *start = e->p;

	e->index = H_RCX;
	e->scale = 1;
	e->keeps_rcx = e->keeps_base = true;
	bool is_done = emit_native(e, in, 0);

	e->scale = 0;
	e->keeps_rcx = e->keeps_base = false;
	if (!is_done)
		e->p = start;
	return is_done;
}

static enum done tr_native(struct ctx *c, const struct insn *in)
{
	uint8_t *start = c->e.p;
	unsigned ncold = c->ncold;

	c->ptr_disp = 0;
	if (in->mem_access) {
		if (in->mem_size == 0 || in->mem_size > 64)
			return DONE_INTERP;
		if (tr_is_seg_off(c, in))
			return DONE_INTERP;
		if (insn_is_bit_string(in) && !c->x->has_bmi2)
			return DONE_INTERP; /* emit_ea cannot move the address without touching flags */
		bool live = tr_flags_live_before(c), is_locked = insn_is_locked(in);
		bool is_sum = live || is_locked || insn_is_bit_string(in) ||
			      c->acc[c->cur][ACC_OPERAND].group >= 0;

		emit_check(c, EA_INSN, 0, in->mem_size, in->mem_access & OPND_WRITE, live, is_sum);
		if (is_locked)
			emit_line_check(c, in->mem_size);
		if (!is_sum) {
			if (emit_in_parts(c, in))
				return DONE_NEXT;
			emit_tlb_sum(c);
		}
	}
	if (!emit_native(&c->e, in, c->ptr_disp)) {
		c->e.p = start;
		c->ncold = ncold;
		return DONE_INTERP;
	}
	return DONE_NEXT;
}

static enum done tr_push_host(struct ctx *c, unsigned host, unsigned size)
{
	tr_emit_check(c, EA_STACK, -(int32_t)size, size, true, tr_flags_live_before(c));
	if (host == H_RCX) /* a value kept in tmp[1] over the check */
		emit_load_gs(&c->e, H_RCX, CPU_OFF(tmp[1]), 8);
	tr_emit_store_r14(c, host, size);
	tr_emit_sp_add(c, -(int32_t)size);
	return DONE_NEXT;
}

static enum done tr_push_reg(struct ctx *c, const struct insn *in)
{
	unsigned r = in->op[0].kind == OPND_GPR_RM	? in->rm
		     : in->op[0].kind == OPND_FIXED_GPR ? in->op[0].reg
							: (in->opcode & 7) | (in->rex_b ? 8u : 0u);
	unsigned size = in->opsize;

	if (emit_host_reg[r] != H_NONE)
		return tr_push_host(c, emit_host_reg[r], size);
	tr_emit_check(c, EA_STACK, -(int32_t)size, size, true, tr_flags_live_before(c));
	emit_load_gs(&c->e, H_RCX, CPU_GPR_OFF(r), 8);
	tr_emit_store_r14(c, H_RCX, size);
	tr_emit_sp_add(c, -(int32_t)size);
	return DONE_NEXT;
}

static enum done tr_pop_reg(struct ctx *c, const struct insn *in)
{
	unsigned r = in->op[0].kind == OPND_GPR_RM	? in->rm
		     : in->op[0].kind == OPND_FIXED_GPR ? in->op[0].reg
							: (in->opcode & 7) | (in->rex_b ? 8u : 0u);
	unsigned size = in->opsize;

	if (r == R_RSP && size < c->sp_size) /* the sum shows in the upper half */
		return DONE_INTERP;
	tr_emit_check(c, EA_STACK, 0, size, false, tr_flags_live_before(c));
	tr_emit_get_r14(c, r, size);
	if (r == R_RSP)
		return DONE_NEXT;
	tr_emit_sp_add(c, (int32_t)size);
	return DONE_NEXT;
}

static enum done tr_push_imm(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;

	tr_emit_check(c, EA_STACK, -(int32_t)size, size, true, tr_flags_live_before(c));
	emit_op_mem(&c->e, size == 2 ? 0x66 : 0, size == 8, (const uint8_t[]){ 0xc7 }, 1, 0, H_R14,
		    c->ptr_disp);
	for (unsigned i = 0; i < MIN(size, 4u); i++)
		emit_u8(&c->e, (uint8_t)((uint32_t)in->imm >> (8 * i)));
	tr_emit_sp_add(c, -(int32_t)size);
	return DONE_NEXT;
}

static enum done tr_push_mem(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;

	if (tr_is_seg_off(c, in))
		return DONE_INTERP;
	tr_emit_check(c, EA_INSN, 0, size, false, tr_flags_live_before(c));
	tr_emit_load_r14(c, H_RCX, size);
	emit_store_gs(&c->e, CPU_OFF(tmp[1]), H_RCX, 8);
	return tr_push_host(c, H_RCX, size);
}

static enum done tr_leave(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;

	tr_emit_check(c, EA_STACK_FRAME, 0, size, false, tr_flags_live_before(c));
	emit_lea(&c->e, H_R13, H_RBP, H_NONE, 1, (int32_t)size, c->sp_size);
	tr_emit_get_r14(c, R_RBP, size);
	return DONE_NEXT;
}

static enum done tr_lea(struct ctx *c, const struct insn *in)
{
	struct insn flat = *in;
	unsigned host = c->e.host[in->reg];

	if (host != H_NONE && in->opsize >= 4 && in->addrsize == 8 && !in->rip_rel &&
	    (in->base != 0xff || in->index != 0xff)) {
		unsigned base = in->base == 0xff ? H_NONE : emit_guest_get(&c->e, in->base, H_RCX);
		unsigned index = in->index == 0xff ? H_NONE : emit_guest_get(&c->e, in->index, H_R14);

		if (index == H_R14)
			c->held = -1;
		emit_lea(&c->e, host, base, index, in->scale, (int32_t)in->disp, in->opsize);
		return DONE_NEXT;
	}
	flat.seg = SEG_DS;
	c->held = -1;
	emit_ea(&c->e, &flat, H_RCX, H_R14, c->off[c->cur + 1]);
	if (in->opsize == 8) {
		emit_guest_put(&c->e, in->reg, H_RCX);
	} else if (in->opsize == 4) {
		emit_mov_rr(&c->e, H_RCX, H_RCX, 4);
		emit_guest_put(&c->e, in->reg, H_RCX);
	} else {
		unsigned d = c->e.host[in->reg];

		if (d == H_NONE) {
			emit_store_gs(&c->e, CPU_GPR_OFF(in->reg), H_RCX, 2);
		} else { /* mov d16, cx */
			emit_u8(&c->e, 0x66);
			if (d >= 8)
				emit_u8(&c->e, 0x41);
			emit_u8(&c->e, 0x89);
			emit_u8(&c->e, (uint8_t)(0xc8 | (d & 7)));
		}
	}
	return DONE_NEXT;
}

/* Leaves the return address in rcx. */
static void tr_call_push(struct ctx *c)
{
	unsigned size = c->in[c->cur].opsize;

	tr_emit_check(c, EA_STACK, -(int32_t)size, size, true, tr_flags_live_at_end(c));
	tr_end_flags(c);
	tr_emit_rip(c, H_RCX, c->off[c->cur + 1]);
	tr_emit_store_r14(c, H_RCX, size);
	tr_emit_sp_add(c, -(int32_t)size);
}

/* The host's call just emitted goes to cold code that goes on to @off, or to tmp[2]. */
static void cold_call(struct ctx *c, int32_t off, bool is_direct)
{
	struct cold *k = tr_cold_add(c, COLD_CALL);

	k->ea_disp = off;
	k->link = is_direct ? far_link(c, off, -(int32_t)c->in[c->cur].opsize) : NULL;
}

/*
 * The call itself, the return address being in rcx, and where it comes back to (stubs.c, "returns").
 * @off: target's offset in the page, anywhere; for an indirect call it is in tmp[2]
 */
static enum done tr_call_go(struct ctx *c, const struct insn *in, int32_t off)
{
	struct emit *e = &c->e;
	int32_t next = c->off[c->cur + 1];

	emit_load_gs(e, H_R14, CPU_OFF(ret_key), 8);
	emit_lea(e, H_R14, H_R14, H_RCX, 1, 0, 8);
	OP(0x41, 0x56);	   /* push r14 */
	align_to(c, 5, 8); /* the landing can be patched at once */
	emit_u8(e, 0xe8);
	emit_u32(e, 0);
	if (in->desc->id == I_CALL_REL && is_linkable(c, off))
		note_link(c, (uint16_t)off);
	else
		cold_call(c, off, in->desc->id == I_CALL_REL);

	c->landing = (uint32_t)(e->p - e->start);
	OP(0x4d, 0x8d, 0xb6); /* lea r14, [r14 - next], in the long form */
	emit_u32(e, (uint32_t)-next);
	bool was_base = emit_take_base(e);
	OP(0x41, 0x5f); /* pop r15 */
	emit_lea(e, H_RCX, H_RCX, H_R15, 1, 1, 8);
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_RETURN);
	emit_put_base(e, was_base);
	emit_store_gs(e, CPU_OFF(pc_base), H_R14, 8);
	c->held = -1;
	return DONE_NEXT;
}

static enum done tr_call_rel(struct ctx *c, const struct insn *in)
{
	if (is_odd_branch(c, in))
		return DONE_INTERP;
	int32_t off = branch_target(c);

	/* A return does not poll (stubs.c), so each call does: here, or as it looks for another page's block. */
	if (off >= 0 && off < 4096 && (c->x->has_returns || off <= c->off[c->cur]))
		tr_emit_poll(c, tr_flags_live_at_end(c));
	tr_call_push(c);
	if (c->x->has_returns && off == c->off[c->cur + 1]) { /* only asks for its own address */
		c->held = -1;
		return DONE_NEXT;
	}
	if (c->x->has_returns)
		return tr_call_go(c, in, off);
	tr_emit_goto(c, off, -(int32_t)in->opsize);
	return DONE_END;
}

/* Target of an indirect transfer into tmp[2] (the checks of what follows need the scratch registers). */
static bool indirect_target(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;

	if (is_odd_branch(c, in) || tr_is_seg_off(c, in))
		return false;
	if (in->has_mem) {
		tr_emit_check(c, EA_INSN, 0, size, false, tr_flags_live_at_end(c));
		if (in->desc->id == I_JMP_IND)
			tr_end_flags(c);
		tr_emit_load_r14(c, H_RCX, size);
	} else {
		if (in->desc->id == I_JMP_IND)
			tr_end_flags(c);
		unsigned h = emit_guest_get(&c->e, in->rm, H_RCX);

		if (size == 2) /* movzx */
			emit_op_reg(&c->e, 0, false, (const uint8_t[]){ 0x0f, 0xb7 }, 2, H_RCX, h);
		else if (h != H_RCX || size == 4)
			emit_mov_rr(&c->e, H_RCX, h, size);
	}
	return true;
}

static enum done tr_call_ind(struct ctx *c, const struct insn *in)
{
	if (!indirect_target(c, in))
		return DONE_INTERP;
	emit_store_gs(&c->e, CPU_OFF(tmp[2]), H_RCX, 8);
	tr_call_push(c);
	if (c->x->has_returns)
		return tr_call_go(c, in, 0);
	emit_load_gs(&c->e, H_RCX, CPU_OFF(tmp[2]), 8);
	tr_emit_indirect(c, -(int32_t)in->opsize);
	return DONE_END;
}

static enum done tr_jmp_ind(struct ctx *c, const struct insn *in)
{
	if (!indirect_target(c, in))
		return DONE_INTERP;
	tr_emit_indirect(c, 0);
	return DONE_END;
}

static enum done tr_ret(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;
	int32_t popped = (int32_t)size + (in->imm_len ? (int32_t)(in->imm & 0xffff) : 0);

	if (is_odd_branch(c, in))
		return DONE_INTERP;
	tr_emit_check(c, EA_STACK, 0, size, false, tr_flags_live_at_end(c));
	tr_end_flags(c);
	if (!c->x->has_returns) {
		tr_emit_load_r14(c, H_RCX, size);
		tr_emit_sp_add(c, popped);
		tr_emit_indirect(c, popped);
		return DONE_END;
	}
	tr_emit_load_r14(c, H_R14, size);
	tr_emit_sp_add(c, popped);
	emit_store_gs_imm(&c->e, CPU_OFF(exit_info), undo_info(c, popped), 8);
	emit_load_gs(&c->e, H_RCX, CPU_OFF(ret_key), 8);
	emit_lea(&c->e, H_RCX, H_RCX, H_R14, 1, 0, 8);
	OP(0x48, 0xf7, 0xd1); /* not rcx */
	OP(0xc3);
	return DONE_END;
}

static enum done tr_jmp_rel(struct ctx *c, const struct insn *in)
{
	if (is_odd_branch(c, in))
		return DONE_INTERP;
	int32_t off = branch_target(c);

	if (off >= 0 && off <= c->off[c->cur])
		tr_emit_poll(c, tr_flags_live_at_end(c));
	tr_end_flags(c);
	tr_emit_goto(c, off, 0);
	return DONE_END;
}

/* A conditional jump to @off; falls through to the next instruction. */
static void emit_cond(struct ctx *c, int cc, int32_t off)
{
	if (is_linkable(c, off)) {
		tr_emit_link(c, cc, (uint16_t)off);
		return;
	}
	emit_u8(&c->e, 0x0f);
	emit_u8(&c->e, (uint8_t)(0x80 | cc));
	emit_u32(&c->e, 0);
	struct cold *k = tr_cold_add(c, COLD_FAR);

	k->ea_disp = off;
	k->link = far_link(c, off, 0);
}

static enum done tr_jcc(struct ctx *c, const struct insn *in)
{
	if (is_odd_branch(c, in))
		return DONE_INTERP;
	int32_t off = branch_target(c);

	if (c->loop.is_on && c->cur + 1 == c->n) {
		emit_u8(&c->e, 0x0f);
		emit_u8(&c->e, (uint8_t)(0x80 | (in->opcode & 15)));
		emit_u32(&c->e, 0);
		c->loop.jump = c->e.p;
		return DONE_NEXT;
	}
	if (off >= 0 && off <= c->off[c->cur] && c->polled != c->cur)
		tr_emit_poll(c, true);
	emit_cond(c, in->opcode & 15, off);
	return DONE_NEXT;
}

static enum done tr_loop(struct ctx *c, const struct insn *in)
{
	/* LOOP (no flags used or changed) and JRCXZ; guest rcx lives in r9. */
	bool is_jcxz = in->desc->id == I_JCXZ;
	int32_t off = branch_target(c);
	uint8_t *skip;

	if (is_odd_branch(c, in))
		return DONE_INTERP;
	if (off >= 0 && off <= c->off[c->cur])
		tr_emit_poll(c, true);
	if (!is_jcxz)
		emit_lea(&c->e, H_R9, H_R9, H_NONE, 1, -1, in->addrsize);
	if (in->addrsize == 2)
		OP(0x41, 0x0f, 0xb7, 0xc9); /* movzx ecx, r9w */
	else
		emit_mov_rr(&c->e, H_RCX, H_R9, in->addrsize);
	OP(0xe3, 0x00); /* jrcxz */
	skip = c->e.p;
	if (is_jcxz) {
		/* zero: taken.  jrcxz taken -> over this jump to the fall-through */
		OP(0xeb, 0x00);
		uint8_t *over = c->e.p;

		if (!c->e.is_full)
			skip[-1] = (uint8_t)(c->e.p - skip);
		tr_emit_goto(c, off, 0);
		if (!c->e.is_full)
			over[-1] = (uint8_t)(c->e.p - over);
		return DONE_NEXT;
	}
	tr_emit_goto(c, off, 0);
	if (!c->e.is_full)
		skip[-1] = (uint8_t)(c->e.p - skip);
	return DONE_NEXT;
}

/* rflags bits without touching host flags: gs:s.rflags = (it & mask operand) + add */
static void emit_rflags_change(struct ctx *c, int32_t mask_off, int32_t add)
{
	emit_load_gs(&c->e, H_RCX, CPU_OFF(s.rflags), 8);
	tr_emit_pext_gs(c, H_RCX, H_RCX, mask_off, false);
	tr_emit_pext_gs(c, H_RCX, H_RCX, mask_off, true);
	if (add)
		emit_lea(&c->e, H_RCX, H_RCX, H_NONE, 1, add, 8);
	emit_store_gs(&c->e, CPU_OFF(s.rflags), H_RCX, 8);
}

unsigned tr_key_cpl(uint32_t key)
{
	return key >> DBT_MODE_CPL_SHIFT & 3;
}

static enum done tr_cli(struct ctx *c, const struct insn *in)
{
	if (tr_key_cpl(c->key) != 0 || !c->x->has_bmi2)
		return DONE_INTERP;
	emit_rflags_change(c, CPU_OFF(not_if), 0);
	return DONE_NEXT;
}

static enum done tr_sti(struct ctx *c, const struct insn *in)
{
	/*
	 * Without an event waiting, the shadow of STI needs no bookkeeping as long as the next
	 * instruction follows here: no poll lies between the two.
	 */
	if (tr_key_cpl(c->key) != 0 || !c->x->has_bmi2 || c->cur + 1 >= c->n ||
	    (c->in[c->cur + 1].desc->attr & INSN_BRANCH))
		return DONE_INTERP;
	emit_load_gs(&c->e, H_RCX, CPU_OFF(requests), 8);
	OP(0xe3, 0x05);
	tr_emit_jmp_cold(c, COLD_INTERP);
	emit_rflags_change(c, CPU_OFF(not_if), X86_FL_IF);
	return DONE_NEXT;
}

static enum done tr_pushf(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;

	if (!c->x->has_bmi2 || c->key & DBT_MODE_VM86 || (size == 2 && c->bits == 64))
		return DONE_INTERP;
	tr_emit_check(c, EA_STACK, -(int32_t)size, size, true, true);
	bool was_base = emit_take_base(&c->e);

	OP(0x9c);	/* pushfq */
	OP(0x41, 0x5f); /* pop r15 */
	emit_mov_rr(&c->e, H_RCX, H_R15, 8);
	OP(0x41, 0x81, 0xe7); /* and r15d, FL_ARITH */
	emit_u32(&c->e, FL_ARITH);
	OP(0x51); /* push rcx: the flags to restore */
	emit_load_gs(&c->e, H_RCX, CPU_OFF(s.rflags), 4);
	OP(0x81, 0xe1); /* and ecx, others without RF and VM */
	emit_u32(&c->e, 0xffffffffu & ~(uint32_t)(FL_ARITH | X86_FL_RF | X86_FL_VM));
	OP(0x44, 0x09, 0xf9); /* or ecx, r15d */
	tr_emit_store_r14(c, H_RCX, size);
	if (tr_flags_live_after(c))
		OP(0x9d); /* popfq */
	else
		OP(0x48, 0x8d, 0x64, 0x24, 0x08); /* lea rsp, [rsp + 8] */
	emit_put_base(&c->e, was_base);
	tr_emit_sp_add(c, -(int32_t)size);
	return DONE_NEXT;
}

static enum done tr_cld_std(struct ctx *c, const struct insn *in)
{
	if (!c->x->has_bmi2)
		return DONE_INTERP;
	emit_rflags_change(c, CPU_OFF(not_df), in->desc->id == I_STD ? (int32_t)X86_FL_DF : 0);
	return DONE_NEXT;
}

static enum done tr_moffs(struct ctx *c, const struct insn *in)
{
	/* A0..A3: AL/eAX/rAX from or to an absolute address. */
	unsigned size = in->mem_size;
	bool is_store = in->mem_access & OPND_WRITE;
	uint8_t opc = (uint8_t)(is_store ? (size == 1 ? 0x88 : 0x89) : (size == 1 ? 0x8a : 0x8b));

	if ((c->bits == 64 && (in->seg == SEG_FS || in->seg == SEG_GS)) || tr_is_seg_off(c, in) ||
	    in->disp != (int32_t)in->disp)
		return DONE_INTERP;
	tr_emit_check(c, EA_INSN, 0, size, is_store, tr_flags_live_before(c));
	emit_op_mem(&c->e, size == 2 ? 0x66 : 0, size == 8, &opc, 1, H_RAX, H_R14, c->ptr_disp);
	return DONE_NEXT;
}

static enum done tr_rdtsc(struct ctx *c, const struct insn *in)
{
	if (!c->x->has_bmi2 || ((c->key & DBT_MODE_USER) && (c->key & DBT_MODE_TSD)))
		return DONE_INTERP;
	OP(0x0f, 0x31);				/* rdtsc */
	OP(0xc4, 0xe3, 0xfb, 0xf0, 0xd2, 0x20); /* rorx rdx, rdx, 32 */
	emit_lea(&c->e, H_RAX, H_RAX, H_RDX, 1, 0, 8);
	emit_load_gs(&c->e, H_RDX, CPU_OFF(tsc_offset), 8);
	emit_lea(&c->e, H_RAX, H_RAX, H_RDX, 1, 0, 8);
	OP(0xc4, 0xe3, 0xfb, 0xf0, 0xd0, 0x20); /* rorx rdx, rax, 32 */
	emit_mov_rr(&c->e, H_RDX, H_RDX, 4);
	emit_mov_rr(&c->e, H_RAX, H_RAX, 4);
	return DONE_NEXT;
}

static enum done tr_rdtscp(struct ctx *c, const struct insn *in)
{
	enum done done = tr_rdtsc(c, in);

	if (done == DONE_NEXT)
		emit_load_gs(&c->e, H_R9, CPU_OFF(s.tsc_aux), 4);
	return done;
}

static enum done tr_swapgs(struct ctx *c, const struct insn *in)
{
	int32_t gs = CPU_SEG_OFF(SEG_GS, base);

	if (tr_key_cpl(c->key) != 0 || c->bits != 64)
		return DONE_INTERP;
	c->held = -1;
	emit_load_gs(&c->e, H_RCX, gs, 8);
	emit_load_gs(&c->e, H_R14, CPU_OFF(s.kernel_gs_base), 8);
	emit_store_gs(&c->e, gs, H_R14, 8);
	emit_store_gs(&c->e, CPU_OFF(s.kernel_gs_base), H_RCX, 8);
	return DONE_NEXT;
}

static enum done tr_cmpxchg_wide(struct ctx *c, const struct insn *in)
{
	/* CMPXCHG8B/16B: rcx:rbx and rdx:rax are implied; guest rcx is in r9. */
	unsigned size = in->mem_size;

	if (tr_is_seg_off(c, in))
		return DONE_INTERP;
	tr_emit_check(c, EA_INSN, 0, size, true, tr_flags_live_before(c));
	if (insn_is_locked(in) && size == 8) /* the wide one is aligned, or raises */
		emit_line_check(c, size);
	emit_mov_rr(&c->e, H_RCX, H_R9, 8);
	if (in->lock)
		emit_u8(&c->e, 0xf0);
	emit_op_mem(&c->e, 0, size == 16, (const uint8_t[]){ 0x0f, 0xc7 }, 2, 1, H_R14, c->ptr_disp);
	return DONE_NEXT;
}

/* Hand instructions that the host may run as they are: no operands but vector or x87 state. */
static enum done tr_raw(struct ctx *c, const struct insn *in)
{
	emit_bytes(&c->e, in->bytes, in->len);
	return DONE_NEXT;
}

static enum done tr_mem_raw(struct ctx *c, const struct insn *in, const uint8_t *opc, unsigned n,
			    unsigned reg)
{
	if (tr_is_seg_off(c, in))
		return DONE_INTERP;
	tr_emit_check(c, EA_INSN, 0, in->mem_size, in->mem_access & OPND_WRITE, tr_flags_live_before(c));
	emit_op_mem(&c->e, 0, false, opc, n, reg, H_R14, c->ptr_disp);
	return DONE_NEXT;
}

static bool fpu_allowed(const struct ctx *c, const struct insn *in)
{
	uint32_t a = in->desc->attr;

	if ((a & (INSN_X87 | INSN_MMX) || in->desc->id == I_FWAIT) && (c->key & DBT_MODE_NO_FPU))
		return false;
	if ((a & INSN_SSE) && (c->key & DBT_MODE_NO_SSE))
		return false;
	return !((a & INSN_AVX) && (c->key & DBT_MODE_NO_AVX));
}

enum done tr_insn(struct ctx *c, const struct insn *in)
{
	const struct insn_desc *d = in->desc;

	if (!cpu_has(&c->cpu->vm->model, d->feature) || !fpu_allowed(c, in))
		return DONE_INTERP;
	/* Outside of 64-bit mode a code segment is not writable. */
	if (c->bits != 64 && c->is_flat && in->seg == SEG_CS && in->mem_access & OPND_WRITE)
		return DONE_INTERP;
	if (!(c->key & DBT_MODE_PE) && (in->vex || d->attr & INSN_NO_REAL))
		return DONE_INTERP;
	if (d->kind == INSN_NATIVE)
		return d->attr & (INSN_BRANCH | INSN_ENDS_BLOCK | INSN_CPL0) ? DONE_INTERP
									     : tr_native(c, in);

	switch (d->id) {
	case I_NOP:
	case I_PREFETCH:
		return DONE_NEXT;
	case I_LEA:
		return tr_lea(c, in);
	case I_PUSH_REG:
		return tr_push_reg(c, in);
	case I_PUSH_RM:
		return in->has_mem ? tr_push_mem(c, in) : tr_push_reg(c, in);
	case I_PUSH_IMM:
		return tr_push_imm(c, in);
	case I_POP_REG:
		return tr_pop_reg(c, in);
	case I_POP_RM:
		return in->has_mem ? DONE_INTERP : tr_pop_reg(c, in);
	case I_LEAVE:
		return tr_leave(c, in);
	case I_CALL_REL:
		return tr_call_rel(c, in);
	case I_CALL_IND:
		return tr_call_ind(c, in);
	case I_JMP_REL:
		return tr_jmp_rel(c, in);
	case I_JMP_IND:
		return tr_jmp_ind(c, in);
	case I_RET:
		return tr_ret(c, in);
	case I_JCC:
		return tr_jcc(c, in);
	case I_LOOP:
	case I_JCXZ:
		return tr_loop(c, in);
	case I_CLI:
		return tr_cli(c, in);
	case I_STI:
		return tr_sti(c, in);
	case I_PUSHF:
		return tr_pushf(c, in);
	case I_CLD:
	case I_STD:
		return tr_cld_std(c, in);
	case I_MOV_MOFFS:
		return tr_moffs(c, in);
	case I_RDTSC:
		return tr_rdtsc(c, in);
	case I_RDTSCP:
		return tr_rdtscp(c, in);
	case I_SWAPGS:
		return tr_swapgs(c, in);
	case I_MOV_R_SEG:
		return tr_mov_r_seg(c, in);
	case I_MOV_SEG_R:
		return tr_mov_seg_r(c, in);
	case I_PUSH_SEG:
		return tr_push_seg(c, in);
	case I_POP_SEG:
		return tr_pop_seg(c, in);
	case I_LDS:
	case I_LES:
	case I_LFS:
	case I_LGS:
		return tr_load_far(c, in);
	case I_PUSHA:
		return tr_pusha(c, in);
	case I_POPA:
		return tr_popa(c, in);
	case I_MOV_R_CR:
		return tr_mov_r_cr(c, in);
	case I_RDFSBASE:
	case I_RDGSBASE:
	case I_WRFSBASE:
	case I_WRGSBASE:
		return tr_fsgsbase(c, in);
	case I_STOS:
	case I_MOVS:
	case I_LODS:
	case I_CMPS:
	case I_SCAS:
		return tr_string(c, in);
	case I_SYSCALL:
		return tr_syscall(c, in);
	case I_SYSRET:
		return tr_sysret(c, in);
	case I_CMPXCHG8B:
	case I_CMPXCHG16B:
		return tr_cmpxchg_wide(c, in);
	case I_VZEROUPPER:
	case I_VZEROALL:
		return c->bits == 64 ? tr_raw(c, in) : DONE_INTERP; /* else registers 8..15 stay */
	case I_EMMS:
	case I_FWAIT:
	case I_FENCE:
		return tr_raw(c, in);
	case I_LDMXCSR:
		return in->vex ? DONE_INTERP : tr_mem_raw(c, in, (const uint8_t[]){ 0x0f, 0xae }, 2, 2);
	default:
		return DONE_INTERP;
	}
}

/* ---- the block ---------------------------------------------------------------------------- */

/* After a call that comes back here another block goes on: there may be one, and others will come to it. */
static bool ends_flow(const struct insn *in)
{
	switch (in->desc->id) {
	case I_CALL_REL:
	case I_CALL_IND:
	case I_JMP_REL:
	case I_JMP_IND:
	case I_RET:
		return true;
	default:
		return false;
	}
}

bool tr_is_jump_back(const struct ctx *c, const struct insn *in)
{
	return in->desc->id == I_JCC && in->opsize != 2 &&
	       (uint32_t)c->off[c->n] + in->imm == c->off[0];
}

/* Decode from the block's start; returns whether the run stopped for an instruction that cannot be
 * decoded here (page end, #UD): the block then exits to the interpreter at off[n]. */
static bool decode_run(struct ctx *c, uint64_t phys2)
{
	const uint8_t *ram = c->cpu->vm->ram->base, *page = ram + (c->phys & ~0xfffULL);
	unsigned off = c->phys & 0xfff, nbranches = 0;

	if (phys2 & 1) {
		uint8_t bytes[2 * INSN_MAX_LEN];
		unsigned n = 4096 - off;

		memcpy(bytes, page + off, n);
		memcpy(bytes + n, ram + (phys2 & ~0xfffULL), INSN_MAX_LEN);
		c->n = interp_decode(c->cpu, &c->in[0], bytes, n + INSN_MAX_LEN, c->bits) == DECODE_OK;
		c->off[0] = (uint16_t)off;
		c->off[1] = (uint16_t)(off + c->in[0].len);
		return !c->n;
	}

	c->n = 0;
	c->off[0] = (uint16_t)off;
	while (c->n < XLATE_MAX_INSNS && nbranches < XLATE_MAX_BRANCHES) {
		struct insn *in = &c->in[c->n];

		c->off[c->n] = (uint16_t)off;
		if (off >= 4096 || (c->n && xlate_has_block(c->x, (c->phys & ~0xfffULL) | off,
							    c->key & ~(uint32_t)DBT_MODE_EACH)))
			return false;
		if (interp_decode(c->cpu, in, page + off, 4096 - off, c->bits) != DECODE_OK)
			return true;
		off += in->len;
		c->n++;
		c->off[c->n] = (uint16_t)off;
		if (ends_flow(in) || tr_is_jump_back(c, in) ||
		    (c->x->is_counting && in->desc->attr & INSN_BRANCH))
			return false;
		nbranches += !!(in->desc->attr & INSN_BRANCH);
		/* Those never go on in translated code. */
		if (in->desc->kind == INSN_SYSTEM && in->desc->id != I_CLI && in->desc->id != I_STI)
			return false;
	}
	return false;
}

static uint32_t link_ref(const struct ctx *c, const struct new_link *l)
{
	return c->links_ref + (uint32_t)((size_t)(l - c->links) * sizeof(struct xlate_link));
}

/* Leave through the unpatched link @l. */
static void emit_link_stub(struct ctx *c, const struct new_link *l)
{
	struct emit *e = &c->e;

	emit_mov_ri(e, H_RCX, link_ref(c, l));
	tr_emit_jmp_exec(c, c->x->exit_link);
}

/* The patchable jump of @l, in cold code, and its stub. */
static void emit_cold_link(struct ctx *c, struct new_link *l)
{
	struct emit *e = &c->e;

	align_site(c, 1);
	emit_u8(e, 0xe9);
	emit_u32(e, 0); /* to the stub that follows */
	l->site = e->p - 4;
	l->stub = 0;
	emit_link_stub(c, l);
}

/*
 * The check of a group failed: where its span crosses a page, or after the miss stub says so, the present
 * instruction is the first of a block in which each access is checked by itself.
 */
static void emit_group_miss(struct ctx *c, struct cold *k)
{
	struct emit *e = &c->e;
	uint8_t *each;

	emit_linear(c, k->ea_kind, k->ea_disp);
	tr_count_miss(c, k);
	emit_mov_ri(e, H_R14, k->size - 1u);
	emit_mov_ri(e, H_R15,
		    k->page_off | (uint32_t)k->size << 16 | (uint32_t)k->is_write << 28 |
			    (uint32_t)k->is_first_write << 29);
	emit_u8(e, 0xe8);
	tr_emit_rel_to(c, c->x->miss_group);
	e->has_base = true;
	OP(0xe3, 0x00); /* jrcxz each */
	each = e->p;
	if (k->is_swapped)
		tr_loop_swap(c, false);
	emit_u8(e, 0xe9);
	emit_u32(e, (uint32_t)(k->retry - (e->p + 4)));
	if (!e->is_full)
		each[-1] = (uint8_t)(e->p - each);
	tr_count_back(c, k);
	k->link->page_off = k->page_off;
	k->link->is_each = true;
	emit_cold_link(c, k->link);
}

/* The instruction is interpreted, from its decoded form. */
static void emit_decoded(struct ctx *c, const struct cold *k)
{
	struct emit *e = &c->e;
	struct insn *in = xlate_alloc(c->x, sizeof(*in));

	if (!in) {
		e->is_full = true;
		return;
	}
	*in = *k->in;
	c->ndecoded++;
	tr_count_back(c, k);
	emit_mov_ri(e, H_RCX, k->page_off);
	emit_mov_ri(e, H_R15, xlate_ref(c->x, in));
	tr_emit_jmp_exec(c, c->x->exit_call);
}

static void emit_cold(struct ctx *c, struct cold *k)
{
	struct emit *e = &c->e;
	uint8_t *here = e->p;

	if (e->is_full)
		return;
	uint32_t rel = (uint32_t)(here - k->jump);

	memcpy(k->jump - 4, &rel, 4);
	c->cur = (unsigned)(k->in - c->in);
	e->host = emit_host_reg;
	e->has_base = k->has_base;
	if (k->is_swapped)
		tr_loop_swap(c, true);
	if (k->needs_flags && (k->kind == COLD_MISS || k->kind == COLD_GROUP || k->kind == COLD_INTERP ||
			       k->kind == COLD_DECODED || k->kind == COLD_POLL))
		tr_emit_flags(c);
	switch (k->kind) {
	case COLD_MISS:
		emit_linear(c, k->ea_kind, k->ea_disp);
		tr_count_miss(c, k);
		emit_mov_ri(e, H_R15,
			    k->page_off | (uint32_t)k->size << 16 | (uint32_t)k->is_write << 28);
		emit_u8(e, 0xe8);
		tr_emit_rel_to(c, c->x->miss);
		e->has_base = true;
		if (k->is_swapped)
			tr_loop_swap(c, false);
		emit_u8(e, 0xe9);
		emit_u32(e, (uint32_t)(k->retry - (e->p + 4)));
		break;
	case COLD_GROUP:
		emit_group_miss(c, k);
		break;
	case COLD_FAR_MISS:
		emit_mov_ri(e, H_RCX, link_ref(c, k->link));
		tr_emit_jmp_exec(c, c->x->exit_far);
		break;
	case COLD_FAR:
		if (k->link) {
			emit_far(c, k->link);
			break;
		}
		emit_target(c, k->ea_disp);
		tr_emit_indirect(c, 0);
		break;
	case COLD_BRANCH:
		emit_mov_ri(e, H_R15, (uint32_t)k->ea_disp);
		tr_emit_jmp_exec(c, c->x->exit_branch);
		break;
	case COLD_CALL:
		if (k->link) {
			emit_far(c, k->link);
			break;
		}
		if (k->in->desc->id == I_CALL_IND)
			emit_load_gs(e, H_RCX, CPU_OFF(tmp[2]), 8);
		else
			emit_target(c, k->ea_disp);
		tr_emit_indirect(c, -(int32_t)k->in->opsize);
		break;
	case COLD_RETURN:
		emit_lea(e, H_R14, H_R14, H_NONE, 1, c->off[c->cur + 1], 8);
		tr_emit_jmp_exec(c, c->x->ret_again);
		break;
	case COLD_DECODED:
		emit_decoded(c, k);
		break;
	case COLD_INTERP:
	case COLD_POLL:
		tr_count_back(c, k);
		emit_mov_ri(e, H_RCX, k->page_off);
		tr_emit_jmp_exec(c, k->kind == COLD_POLL ? c->x->exit_poll : c->x->exit_interp);
		break;
	case COLD_SIDE:
		emit_cold_link(c, k->link);
		break;
	case COLD_LINK:
		k->link->stub = here - k->jump;
		emit_link_stub(c, k->link);
		break;
	}
}

static void emit_entry(struct ctx *c)
{
	struct emit *e = &c->e;

	emit_load_gs(e, H_RCX, CPU_OFF(s.rip), 8);
	emit_lea(e, H_R14, H_RCX, H_NONE, 1, -(int32_t)(c->phys & 0xfff), 8);
	emit_store_gs(e, CPU_OFF(pc_base), H_R14, 8);
}

/* The same among the ways out. */
static uint8_t *emit_cold_entry(struct ctx *c, const uint8_t *near_entry)
{
	align_to(c, 0, 8); /* it can be patched at once */
	uint8_t *start = c->e.p;

	c->e.has_base = true;
	emit_entry(c);
	emit_u8(&c->e, 0xe9);
	emit_u32(&c->e, (uint32_t)(near_entry - (c->e.p + 4)));
	return start;
}

bool xlate_is_verified(const struct dbt_vm *vm, const struct xlate_block *b, const uint8_t *code,
		       uint32_t cold, const uint8_t *cold_code, char why[160])
{
	const struct xlate_vm *x = vm->xlate;
	uint8_t *exec = xlate_code(x, b);
	int mode = tr_tlb_mode(xlate_block_key(b));
	uint32_t tlb = (uint32_t)CPU_OFF(tlb) + (uint32_t)mode * (uint32_t)sizeof(struct dbt_tlb);
	struct code_verify_env env = {
		.stubs = { x->exit_branch, x->exit_link, x->exit_interp, x->exit_poll, x->ret_again,
			   x->exit_call, x->exit_syscall, x->exit_sysret, x->exit_far },
		.miss = { x->miss, x->miss_group },
		.code = code,
		.exec = exec,
		.cold_code = cold_code,
		.cold_exec = x->cc.rx + cold,
		.cold_len = b->cold_len,
		.near_entry = b->near,
		.off_ptr = (uint32_t)CPU_OFF(ptr),
		.off_rounds = (uint32_t)CPU_OFF(rounds),
		.off_kept = { CPU_GPR_OFF(R_R9), CPU_GPR_OFF(R_R10), CPU_GPR_OFF(R_R11),
			      CPU_GPR_OFF(R_R15) },
		.nptr = ARRAY_SIZE(vm->cpus[0]->ptr),
		.cpu_bytes = sizeof(struct dbt_cpu),
		.off_tlb_mask = (uint32_t)CPU_OFF(tlb_mask),
		.off_page_mask = (uint32_t)CPU_OFF(page_mask),
		.off_jc_mask = (uint32_t)CPU_OFF(jc_mask),
		.off_ct_mask = (uint32_t)CPU_OFF(ct_mask),
		.off_ct = (uint32_t)CPU_OFF(ct),
		.off_jc_neg = (uint32_t)CPU_OFF(jc_neg),
		.off_jc_code = (uint32_t)CPU_OFF(jc_code),
		.off_line_mask = (uint32_t)CPU_OFF(line_mask),
		.off_line_size = (uint32_t)CPU_OFF(line_size),
		.line_bytes = DBT_LINE,
		.writable = { { (uint32_t)CPU_OFF(tmp), (uint32_t)CPU_OFF(poll) },
			      { (uint32_t)CPU_OFF(s), (uint32_t)CPU_OFF(base) } },
		.off_base = (uint32_t)CPU_OFF(base),
		.base = (uint32_t)DBT_BASE,
		.linked = { x->exit_link, x->exit_far },
		.off_rneg = tlb + (uint32_t)offsetof(struct dbt_tlb, rneg),
		.off_wneg = tlb + (uint32_t)offsetof(struct dbt_tlb, wneg),
		.off_xlat = tlb + (uint32_t)offsetof(struct dbt_tlb, xlat),
	};

	_Static_assert(sizeof(env.calls) == sizeof(x->string), "all of them may be called");
	memcpy((void *)env.calls, x->string, sizeof(env.calls));
	/* The sequence verified is the BMI2 one. */
	return !x->has_bmi2 || code_verify(b->code_len, &env, why);
}

bool xlate_verify(struct dbt_cpu *cpu, const struct xlate_block *b, uint32_t cold)
{
	struct xlate_vm *x = cpu->vm->xlate;

	dbt_fpu_to_mem(cpu);
	if (xlate_is_verified(cpu->vm, b, x->cc.rw + b->code, cold, x->cc.rw + cold, x->refused))
		return true;
	log_error("dbt", "block at physical %llx refused by the verifier: %s",
		  (unsigned long long)xlate_block_phys(b), x->refused);
	x->verify_failures++;
	return false;
}

/* The form of struct xlate_block's map; at most 10 bytes an entry. */
static size_t pack_map(uint8_t *out, const struct xlate_insn_map *map, unsigned n)
{
	uint8_t *p = out;
	uint32_t host = 0;
	int page_off = 0;

	for (unsigned i = 0; i < n; i++) {
		int step = (int)map[i].page_off - page_off;
		uint32_t v[2] = { map[i].host_off - host, (uint32_t)step << 1 ^ (uint32_t)(step >> 31) };

		for (unsigned k = 0; k < 2; k++) {
			for (; v[k] >= 0x80; v[k] >>= 7)
				*p++ = (uint8_t)(v[k] | 0x80);
			*p++ = (uint8_t)v[k];
		}
		host = map[i].host_off;
		page_off = map[i].page_off;
	}
	return (size_t)(p - out);
}

static void pack_links(const struct ctx *c, struct xlate_block *b)
{
	struct xlate_far *far = xlate_block_fars(b);

	for (unsigned i = 0; i < c->nlinks; i++) {
		const struct new_link *l = &c->links[i];

		b->links[i] = (struct xlate_link){
			.site = l->site ? (uint32_t)(l->site - c->x->cc.rw) : 0,
			.stub = (int32_t)l->stub,
			.target = (uint16_t)(l->page_off | (l->is_each ? XLATE_LINK_EACH : 0)),
			.index = (uint8_t)i,
		};
		if (!l->is_far)
			continue;
		*far++ = (struct xlate_far){ .delta = l->page_delta | (int32_t)(l->site - l->ram_page),
					     .info = l->info };
		b->links[i].far = (uint8_t)(far - xlate_block_fars(b));
	}
}

struct xlate_block *xlate_translate(struct dbt_cpu *cpu, uint64_t phys, uint64_t phys2,
				    uint32_t key, bool is_jump)
{
	struct xlate_vm *x = cpu->vm->xlate;
	struct ctx ctx, *c = &ctx;
	struct emit *e = &c->e;
	struct xlate_insn_map map[2 * XLATE_MAX_INSNS];

	c->cpu = cpu;
	c->x = x;
	c->key = key;
	c->bits = (key & 3) == DBT_MODE_CODE64 ? 64 : (key & 3) == DBT_MODE_CODE32 ? 32 : 16;
	c->sp_size = c->bits == 64 ? 8 : key & DBT_MODE_SS32 ? 4 : 2;
	c->is_flat = key & DBT_MODE_FLAT && c->bits != 16 && c->sp_size != 2;
	c->phys = phys;
	c->ncold = c->nlinks = c->ndecoded = 0;
	c->landing = 0;
	c->polled = UINT_MAX;
	bool is_stuck = decode_run(c, phys2);

	tr_find_live(c);
	coalesce_plan(c);
	tr_loop_plan(c);
	e->p = e->start = xlate_hot(x, &e->end);
	e->is_full = false;
	e->kept_at = NULL;
	e->has_base = true;
	e->keeps_rcx = e->keeps_base = false;
	e->host = emit_host_reg;
	e->scale = 0;
	e->exec_delta = x->cc.rx - x->cc.rw;

	if (!is_jump)
		emit_entry(c);
	uint8_t *near_entry = e->p;
	tr_count_enter(c);
	tr_loop_enter(c);
	enum done done = DONE_NEXT;
	/* What is decoded and not translated counts too: it has decided which flags are live. */
	unsigned guest_end = c->off[c->n];

	for (c->cur = 0; c->cur < c->n && done == DONE_NEXT; c->cur++) {
		map[c->cur].host_off = (uint32_t)(e->p - e->start);
		map[c->cur].page_off = c->off[c->cur];
		e->used_addr = false;
		poll_early(c);
		if (c->cur == c->again.end && c->in[c->cur].desc->kind == INSN_SYSTEM)
			tr_end_flags(c);
		done = tr_insn(c, &c->in[c->cur]);
		if (e->used_addr)
			c->held = -1;
		tr_free_slots(c);
		if (done == DONE_INTERP)
			break;
	}
	unsigned nmapped = c->cur;

	tr_count_finish(c, nmapped, done == DONE_INTERP || (is_stuck && c->n == 0));
	if (done == DONE_INTERP) {
		tr_emit_jmp_cold(c, c->in[c->cur].desc->kind == INSN_NATIVE ? COLD_INTERP : COLD_DECODED);
	} else if (done == DONE_NEXT) {
		if (is_stuck && c->n == 0) {
			guest_end = 4096;
			tr_emit_jmp_cold(c, COLD_INTERP);
		} else {
			tr_end_flags(c);
			tr_emit_goto(c, c->off[c->n], NO_UNDO);
		}
	}
	unsigned nmap = nmapped;

	if (c->loop.jump)
		nmap += tr_loop_emit(c, map + nmapped);

	uint8_t packed[10 * ARRAY_SIZE(map)];
	size_t npacked = pack_map(packed, map, nmap);
	unsigned nfars = 0;

	for (unsigned i = 0; i < c->nlinks; i++)
		nfars += c->links[i].is_far;

	struct xlate_block *b = xlate_alloc(
		x, offsetof(struct xlate_block, links) + c->nlinks * sizeof(struct xlate_link) +
			   nfars * sizeof(struct xlate_far) +
			   (phys2 ? sizeof(struct xlate_crossing) : 0) +
			   (c->loop.top ? sizeof(struct xlate_loop) : 0) + npacked);

	if (!b || e->is_full || e->p - e->start > UINT16_MAX)
		return NULL;
	c->links_ref = xlate_ref(x, b->links);

	struct emit hot = *e;

	assert(hot.has_base);
	e->p = e->start = xlate_cold(x, &e->end);
	for (unsigned i = 0; i < c->ncold; i++)
		emit_cold(c, &c->cold[i]);
	uint8_t *far_entry = is_jump ? emit_cold_entry(c, near_entry) : hot.start;

	if (e->is_full || e->p - e->start > UINT16_MAX)
		return NULL;
	struct emit cold = *e;

	guest_end = MIN(guest_end, 4096u);
	*b = (struct xlate_block){
		.tag = xlate_tag(phys, key),
		.code = (uint32_t)(hot.start - x->cc.rw),
		.entry = (uint32_t)(far_entry - x->cc.rw),
		.code_len = (uint16_t)(hot.p - hot.start),
		.landing = (uint16_t)c->landing,
		.guest_len = (uint16_t)(MAX(guest_end, (unsigned)(phys & 0xfff) + 1) - (phys & 0xfff)),
		.near = (uint8_t)(near_entry - hot.start),
		.ninsns = (uint8_t)nmapped,
		.nlinks = (uint8_t)c->nlinks,
		.nfars = (uint8_t)nfars,
		.nmap = (uint8_t)nmap,
		.ndecoded = (uint8_t)c->ndecoded,
		.cold_len = (uint16_t)(cold.p - cold.start),
		.is_interp = nmapped == 0,
		.is_crossing = phys2 != 0,
		.has_loop = c->loop.top,
	};
	for (unsigned i = 0; i < nmapped; i++)
		b->has_tsc |= c->in[i].desc->id == I_RDTSC || c->in[i].desc->id == I_RDTSCP;
	pack_links(c, b);
	if (phys2)
		*xlate_block_crossing(b) = (struct xlate_crossing){
			.page2 = phys2 & 1 ? (uint32_t)(phys2 >> GUEST_PAGE_SHIFT) : XLATE_NO_RAM_PAGE,
			.guest_len2 = !(phys2 & 1) ? 0
				      : c->n	   ? c->off[1] - 4096u
						   : INSN_MAX_LEN,
		};
	if (b->has_loop) {
		struct xlate_loop *loop = xlate_block_loop(b);

		loop->off = (uint32_t)(c->loop.top - hot.start);
		memcpy(loop->host, c->loop.host, sizeof(loop->host));
	}
	memcpy(xlate_block_map(b), packed, npacked);
	if (cpu->vm->cfg.is_strict && !xlate_verify(cpu, b, (uint32_t)(cold.start - x->cc.rw)))
		return NULL;
	xlate_cache_take(x, b, b->code_len, (size_t)(cold.p - cold.start));
	return b;
}
