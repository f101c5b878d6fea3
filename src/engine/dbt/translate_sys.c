/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translation of what a kernel's way in and out consists of: SYSCALL and SYSRET, bases and selectors of segments, control
 * registers read, and the short REP MOVS and REP STOS by which it copies to and from programs and clears structures.
 *
 * String instructions.  One stub each for MOVS and STOS, access mode and element size, called by the block.  It does the
 * whole instruction by the host's, or nothing: when DF is set, or an operand does not lie in one page that the soft TLB
 * knows, or has more than a page of bytes.  rcx says which (0: done); if nothing, the interpreter does it.
 *
 * Invariants
 *  1. A stub of strings changes memory only through a write tag, and after all of its checks.
 *  2. Under speculation its pointers are within 64 KiB of a page of RAM, as those of blocks are, and its count is
 *     below 8 KiB.
 */
#include "engine/dbt/interp_user.h"
#include "engine/dbt/translate.h"

static bool is_off(const struct ctx *c)
{
	return c->cpu->vm->cfg.without & ENGINE_SYSTEM;
}

/* MOV r/m, Sreg: 16 bits to memory or a 16-bit register, else zero-extended. */
enum done tr_mov_r_seg(struct ctx *c, const struct insn *in)
{
	int32_t selector = CPU_SEG_OFF(in->reg & 7, selector);
	struct emit *e = &c->e;

	if (is_off(c) || (in->reg & 7) >= SEG_COUNT || tr_is_seg_off(c, in))
		return DONE_INTERP;
	if (in->has_mem)
		tr_emit_check(c, EA_INSN, 0, 2, true, tr_flags_live_before(c));
	emit_load_gs(e, H_RCX, selector, 2);
	if (in->has_mem)
		tr_emit_store_r14(c, H_RCX, 2);
	else if (in->opsize != 2)
		emit_guest_put(e, in->rm, H_RCX);
	else if (emit_host_reg[in->rm] == H_NONE)
		emit_store_gs(e, CPU_GPR_OFF(in->rm), H_RCX, 2);
	else
		emit_op_reg(e, 0x66, false, (const uint8_t[]){ 0x89 }, 1, H_RCX, emit_host_reg[in->rm]);
	return DONE_NEXT;
}

enum done tr_mov_r_cr(struct ctx *c, const struct insn *in)
{
	static const int32_t off[] = { CPU_OFF(s.cr0), 0, CPU_OFF(s.cr2), CPU_OFF(s.cr3),
				       CPU_OFF(s.cr4) };

	if (is_off(c) || tr_key_cpl(c->key) != 0 || in->reg > 4 || in->reg == 1)
		return DONE_INTERP;
	emit_load_gs(&c->e, H_RCX, off[in->reg], c->bits == 64 ? 8 : 4);
	emit_guest_put(&c->e, in->rm, H_RCX);
	return DONE_NEXT;
}

/* shlx or sarx rcx, @reg, r15 */
static void emit_shift_r15(struct ctx *c, uint8_t pp, unsigned reg)
{
	emit_u8(&c->e, 0xc4);
	emit_u8(&c->e, reg & 8 ? 0xc2 : 0xe2);
	emit_u8(&c->e, 0x80 | pp);
	emit_u8(&c->e, 0xf7);
	emit_u8(&c->e, (uint8_t)(0xc8 | (reg & 7)));
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE */
enum done tr_fsgsbase(struct ctx *c, const struct insn *in)
{
	bool is_fs = in->desc->id == I_RDFSBASE || in->desc->id == I_WRFSBASE;
	bool is_read = in->desc->id == I_RDFSBASE || in->desc->id == I_RDGSBASE;
	int32_t base = CPU_SEG_OFF(is_fs ? SEG_FS : SEG_GS, base);
	struct emit *e = &c->e;

	if (is_off(c) || !(c->key & DBT_MODE_FSGSBASE) || !c->x->has_bmi2)
		return DONE_INTERP;
	if (is_read) {
		emit_load_gs(e, H_RCX, base, in->opsize);
		emit_guest_put(e, in->rm, H_RCX);
		return DONE_NEXT;
	}
	c->held = -1;
	unsigned reg = emit_guest_get(e, in->rm, H_R14);

	if (in->opsize == 4) {
		emit_mov_rr(e, H_RCX, reg, 4);
		emit_store_gs(e, base, H_RCX, 8);
		return DONE_NEXT;
	}
	/* Canonical: the same when bit 47 is copied upward. */
	bool was_base = emit_take_base(e);

	emit_mov_ri(e, H_R15, 16);
	emit_shift_r15(c, 1, reg);
	emit_shift_r15(c, 2, H_RCX);
	OP(0x48, 0xf7, 0xd1); /* not rcx */
	emit_lea(e, H_RCX, H_RCX, reg, 1, 1, 8);
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_DECODED);
	emit_put_base(e, was_base);
	emit_store_gs(e, base, reg, 8);
	return DONE_NEXT;
}

/* ---- system calls ---- */

static enum done leave_to(struct ctx *c, const uint8_t *stub)
{
	struct emit *e = &c->e;

	emit_mov_ri(e, H_RCX, c->off[c->cur]);
	emit_mov_ri(e, H_R15, c->in[c->cur].len);
	tr_emit_jmp_exec(c, stub);
	return DONE_END;
}

enum done tr_syscall(struct ctx *c, const struct insn *in)
{
	if (is_off(c) || c->bits != 64 || c->x->is_counting)
		return DONE_INTERP;
	return leave_to(c, c->x->exit_syscall);
}

enum done tr_sysret(struct ctx *c, const struct insn *in)
{
	if (is_off(c) || c->bits != 64 || in->opsize != 8 || tr_key_cpl(c->key) != 0 || c->x->is_counting)
		return DONE_INTERP;
	return leave_to(c, c->x->exit_sysret);
}

/* ---- strings ---- */

enum { IS_STOS, IS_MOVS };

enum done tr_string(struct ctx *c, const struct insn *in)
{
	unsigned op = in->desc->id == I_MOVS ? IS_MOVS : IS_STOS;
	unsigned size = in->opcode & 1 ? in->opsize : 1;
	unsigned seg = user_mem_seg(in);

	if (is_off(c))
		return DONE_INTERP;
	if (!(in->rep || in->repne))
		return tr_string_one(c, in);
	/* In flat 32-bit code addresses are the registers too, unless something is left in their upper halves: then a tag differs. */
	bool is_flat32 = c->bits == 32 && c->is_flat && in->addrsize == 4;

	if (!((c->bits == 64 && in->addrsize == 8) || is_flat32) ||
	    (in->desc->id != I_MOVS && in->desc->id != I_STOS) || !c->x->has_bmi2 ||
	    (op == IS_MOVS && (seg == SEG_FS || seg == SEG_GS)))
		return DONE_INTERP;
	emit_u8(&c->e, 0xe8);
	tr_emit_rel_to(c, c->x->string[op][tr_tlb_mode(c->key)][__builtin_ctz(size)]);
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_DECODED);
	c->held = -1;	 /* r14 was used */
	if (is_flat32) { /* behind the last page comes the first */
		emit_mov_rr(&c->e, H_RDI, H_RDI, 4);
		if (op == IS_MOVS)
			emit_mov_rr(&c->e, H_RSI, H_RSI, 4);
	}
	return DONE_NEXT;
}

/* The stub under construction, and its jumps to where nothing is done. */
struct string {
	struct emit *e;
	unsigned shift; /* log2 of the element's size */
	unsigned nrefused;
	uint8_t *refused[8];
};

#define PUT(e, ...)                                                                                \
	emit_bytes(e, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

enum { CC_Z = 4, CC_A = 7, CC_NZ = 5 };

static uint8_t *emit_jcc(struct emit *e, unsigned cc)
{
	PUT(e, 0x0f, (uint8_t)(0x80 | cc), 0, 0, 0, 0);
	return e->p;
}

static void refuse_if(struct string *g, unsigned cc)
{
	g->refused[g->nrefused++] = emit_jcc(g->e, cc);
}

static void land(struct emit *e, uint8_t *jump)
{
	uint32_t rel = (uint32_t)(e->p - jump);

	if (!e->is_full)
		memcpy(jump - 4, &rel, 4);
}

/* r14 = the host address of rcx elements at guest address @reg (rdi or rsi), which lie in one page; clobbers rax, r15. */
static void emit_operand(struct string *g, unsigned mode, unsigned reg, bool is_write)
{
	struct emit *e = g->e;
	int32_t tlb = CPU_OFF(tlb) + (int32_t)(mode * sizeof(struct dbt_tlb));

	emit_pext_gs(e, H_R14, reg, CPU_OFF(tlb_mask), false);
	emit_load_gs_idx(e, H_R15, H_R14,
			 tlb + (int32_t)(is_write ? offsetof(struct dbt_tlb, wneg)
						  : offsetof(struct dbt_tlb, rneg)));
	emit_load_gs_idx(e, H_R14, H_R14, tlb + (int32_t)offsetof(struct dbt_tlb, xlat));
	emit_op_reg(e, 0, true, (const uint8_t[]){ 0x03 }, 1, H_R15, reg); /* add r15, reg */
	PUT(e, 0x49, 0x81, 0xff);					   /* cmp r15, 4095 */
	emit_u32(e, GUEST_PAGE_SIZE - 1);
	refuse_if(g, CC_A);
	emit_lea(e, H_RAX, H_R15, H_RCX, 1u << g->shift, 0, 8);
	PUT(e, 0x48, 0x3d); /* cmp rax, 4096 */
	emit_u32(e, GUEST_PAGE_SIZE);
	refuse_if(g, CC_A);
	PUT(e, 0x45, 0x0f, 0xb7, 0xff); /* movzx r15d, r15w */
	PUT(e, 0x4d, 0x01, 0xfe);	/* add r14, r15 */
}

/* rax and the arithmetic flags as the guest has them; rcx = @refused */
static void emit_string_end(struct emit *e, bool is_refused)
{
	emit_load_gs(e, H_RAX, CPU_OFF(tmp[4]), 8);
	PUT(e, 0x04, 0x7f, 0x9e); /* add al, 0x7f; sahf */
	emit_load_gs(e, H_RAX, CPU_OFF(tmp[3]), 8);
	emit_put_base(e, true);
	e->has_base = false;
	emit_mov_ri(e, H_RCX, is_refused);
	emit_u8(e, 0xc3);
}

static void emit_string(struct emit *e, unsigned op, unsigned mode, unsigned shift)
{
	struct string g = { .e = e, .shift = shift };
	unsigned scale = 1u << shift;

	emit_store_gs(e, CPU_OFF(tmp[3]), H_RAX, 8);
	PUT(e, 0x9f, 0x0f, 0x90, 0xc0); /* lahf; seto al */
	emit_store_gs(e, CPU_OFF(tmp[4]), H_RAX, 8);
	PUT(e, 0x65, 0xf6, 0x04, 0x25); /* test byte gs:[rflags + 1], DF */
	emit_u32(e, (uint32_t)CPU_OFF(s.rflags) + 1);
	emit_u8(e, X86_FL_DF >> 8);
	refuse_if(&g, CC_NZ);
	emit_mov_rr(e, H_RCX, H_R9, 8);
	PUT(e, 0x48, 0x85, 0xc9); /* test rcx, rcx */
	uint8_t *none = emit_jcc(e, CC_Z);

	PUT(e, 0x48, 0x81, 0xf9); /* cmp rcx */
	emit_u32(e, GUEST_PAGE_SIZE >> shift);
	refuse_if(&g, CC_A);
	PUT(e, 0x81, 0xe1); /* and ecx: invariant 2 */
	emit_u32(e, (2 * GUEST_PAGE_SIZE >> shift) - 1);

	emit_operand(&g, mode, H_RDI, true);
	emit_store_gs(e, CPU_OFF(tmp[5]), H_RDI, 8);
	if (op == IS_MOVS) {
		emit_store_gs(e, CPU_OFF(tmp[6]), H_R14, 8);
		emit_operand(&g, mode, H_RSI, false);
		emit_load_gs(e, H_RDI, CPU_OFF(tmp[6]), 8);
		emit_store_gs(e, CPU_OFF(tmp[6]), H_RSI, 8);
		emit_mov_rr(e, H_RSI, H_R14, 8);
	} else {
		emit_mov_rr(e, H_RDI, H_R14, 8);
		emit_load_gs(e, H_RAX, CPU_OFF(tmp[3]), 8);
	}
	if (shift == 1)
		emit_u8(e, 0x66);
	emit_u8(e, 0xf3);
	if (shift == 3)
		emit_u8(e, 0x48);
	emit_u8(e, (uint8_t)((op == IS_MOVS ? 0xa4 : 0xaa) | (shift > 0)));
	emit_load_gs(e, H_RDI, CPU_OFF(tmp[5]), 8);
	emit_lea(e, H_RDI, H_RDI, H_R9, scale, 0, 8);
	if (op == IS_MOVS) {
		emit_load_gs(e, H_RSI, CPU_OFF(tmp[6]), 8);
		emit_lea(e, H_RSI, H_RSI, H_R9, scale, 0, 8);
	}
	emit_mov_ri(e, H_R9, 0);
	land(e, none);
	emit_string_end(e, false);
	for (unsigned i = 0; i < g.nrefused; i++)
		land(e, g.refused[i]);
	emit_string_end(e, true);
}

void xlate_emit_strings(struct xlate_vm *x, struct emit *e)
{
	for (unsigned op = IS_STOS; op <= IS_MOVS; op++)
		for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++)
			for (unsigned shift = 0; shift < 4; shift++) {
				x->string[op][mode][shift] = e->p + e->exec_delta;
				emit_string(e, op, mode, shift);
			}
}
