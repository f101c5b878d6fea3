/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Re-encoding of guest instructions for the host: same operation, registers renamed, memory operand replaced.
 *
 * How it works.  The decoder says which fields of the encoding name a register and where the opcode and the
 * immediate lie.  The instruction is put together anew: prefixes it needs (LOCK, operand size, mandatory),
 * REX or VEX with the host's register numbers, opcode, ModRM, immediate.  Segment overrides, address-size
 * prefixes and everything the guest wrote without effect are gone; so is every guest displacement.
 *
 * Where a register can't be encoded it goes through a scratch register:
 *   guest r9 r10 r11 r15   live in memory: loaded before, stored after
 *   AH CH DH BH            cannot be encoded beside a REX prefix, and guest rcx is host r9: unless all
 *                          operands can do without REX, the byte is moved to a scratch register and back
 *   implicit rcx           (shift counts, PCMPxSTRI's result) is copied from and to r9
 *
 * Invariants
 *  1. All moves around the instruction leave the flags alone: flags live across it on both sides.
 *  2. Guest registers and memory are written only by the instruction itself or after it: a fault in it
 *     leaves the guest's state as it was.
 *  3. rsp at the instruction is what it was at the start.
 *
 * Source: SDM vol. 2 chapter 2.
 */
#include <assert.h>
#include <cpuid.h>

#include "engine/dbt/emit.h"

enum { REX_B = 1, REX_X = 2, REX_R = 4, REX_W = 8 };

bool emit_has_bmi2(void)
{
	static _Atomic int known; /* 0: not asked yet, 1: no, 2: yes */
	unsigned a, b, c, d;

	if (!known)
		known = __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_BMI2 ? 2 : 1;
	return known == 2;
}

bool insn_is_bit_string(const struct insn *in)
{
	return in->has_mem && !in->vex && in->map == MAP_0F &&
	       (in->opcode == 0xa3 || in->opcode == 0xab || in->opcode == 0xb3 || in->opcode == 0xbb);
}

bool insn_is_high8(const struct insn *in, const struct opnd *op, unsigned reg)
{
	return op->size == 1 && in->desc->attr & INSN_HIGH8_OK && !in->has_rex && !in->vex &&
	       reg >= 4 && reg < 8;
}

/* ---- effective addresses ---- */

static void emit_movzx16(struct emit *e, unsigned dst)
{
	emit_op_reg(e, 0, false, (const uint8_t[]){ 0x0f, 0xb7 }, 2, dst, dst);
}

/* VEX-encoded 0F38 instruction on general registers. */
static void emit_vex38(struct emit *e, unsigned pp, bool w, uint8_t opcode, unsigned reg,
		       unsigned vvvv, unsigned rm)
{
	emit_u8(e, 0xc4);
	emit_u8(e, (uint8_t)((reg & 8 ? 0 : 0x80) | 0x40 | (rm & 8 ? 0 : 0x20) | 2));
	emit_u8(e, (uint8_t)((w ? 0x80 : 0) | (~vvvv & 15) << 3 | pp));
	emit_u8(e, opcode);
	emit_u8(e, (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

/* @dst = index of the unit of memory that a bit string's offset register selects, signed. */
static void emit_bit_unit(struct emit *e, const struct insn *in, unsigned dst, unsigned tmp)
{
	unsigned bits = in->opsize == 2 ? 4 : in->opsize == 4 ? 5 : 6;
	unsigned src = emit_guest_get(e, in->reg, dst);

	if (in->opsize == 2) /* movsx dst, src16 */
		emit_op_reg(e, 0, true, (const uint8_t[]){ 0x0f, 0xbf }, 2, dst, src);
	else if (in->opsize == 4) /* movsxd */
		emit_op_reg(e, 0, true, (const uint8_t[]){ 0x63 }, 1, dst, src);
	emit_mov_ri(e, tmp, bits);
	emit_vex38(e, 2, true, 0xf7, dst, tmp, in->opsize == 8 ? src : dst); /* sarx */
}

void emit_ea_seg(struct emit *e, const struct insn *in, unsigned dst, unsigned tmp,
		 uint32_t page_off_next, bool is_flat)
{
	unsigned size = in->addrsize == 8 ? 8 : 4, base, index;
	int64_t disp = in->disp;
	bool has_unit = insn_is_bit_string(in);

	assert(dst != tmp);
	if (has_unit) {
		/* dst = unit * size + base + disp; then the index. */
		emit_bit_unit(e, in, dst, tmp);
		if (in->rip_rel) {
			emit_load_gs(e, tmp, CPU_OFF(pc_base), 8);
			emit_lea(e, tmp, tmp, H_NONE, 1, (int32_t)page_off_next, 8);
			base = tmp;
		} else {
			base = in->base == 0xff ? H_NONE : emit_guest_get(e, in->base, tmp);
		}
		emit_lea(e, dst, base, dst, in->opsize, (int32_t)disp, size);
		if (in->index != 0xff) {
			index = emit_guest_get(e, in->index, tmp);
			emit_lea(e, dst, dst, index, in->scale, 0, size);
		}
	} else if (in->rip_rel) {
		int64_t sum = disp + page_off_next;

		emit_load_gs(e, dst, CPU_OFF(pc_base), 8);
		if (sum != (int32_t)sum) {
			emit_lea(e, dst, dst, H_NONE, 1, (int32_t)page_off_next, 8);
			sum = disp;
		}
		emit_lea(e, dst, dst, H_NONE, 1, (int32_t)sum, size);
	} else {
		base = in->base == 0xff ? H_NONE : emit_guest_get(e, in->base, dst);
		index = in->index == 0xff ? H_NONE : emit_guest_get(e, in->index, tmp);
		if (base == H_NONE && index == H_NONE)
			emit_mov_ri(e, dst, size == 8 ? (uint64_t)disp : (uint32_t)disp);
		else if (index == H_NONE && disp == 0)
			emit_mov_rr(e, dst, base, size);
		else
			emit_lea(e, dst, base, index, in->scale, (int32_t)disp, size);
	}
	if (in->addrsize == 2)
		emit_movzx16(e, dst);

	if (in->seg == SEG_FS || in->seg == SEG_GS || (!is_flat && in->mode != 64)) {
		emit_load_gs(e, tmp, CPU_SEG_OFF(in->seg, base), 8);
		emit_lea(e, dst, dst, tmp, 1, 0, in->mode == 64 ? 8 : 4);
	}
}

void emit_ea(struct emit *e, const struct insn *in, unsigned dst, unsigned tmp, uint32_t page_off_next)
{
	emit_ea_seg(e, in, dst, tmp, page_off_next, true);
}

/* ---- the instruction ---- */

/* A general register named by a field of the encoding. */
struct field {
	bool is_used;
	bool is_high8;
	uint8_t guest;	/* 0..15; of AH..BH the register that holds it (0..3) */
	uint8_t size;	/* bytes */
	uint8_t access; /* OPND_READ | OPND_WRITE */
	uint8_t host;	/* register to encode; 4..7 as AH..BH with is_high8 in the direct form */
	bool is_scratch;
};

enum { F_REG, F_RM, F_VVVV, F_OPCODE, F_COUNT };

struct work {
	const struct insn *in;
	struct emit *e;
	struct field f[F_COUNT];
	int reg, rm, vvvv;	  /* numbers to encode where the field is no general register */
	bool rcx_read, rcx_write; /* implicit */
	bool is_direct8; /* AH..BH are encoded as such, nothing needs REX, memory is at [rcx] */
	uint8_t pool[3], npool;
	bool is_short; /* of scratch registers */
	bool was_base; /* r15, which was taken */
	int32_t disp;  /* of the memory operand, from its pointer */
};

static void set_field(struct work *w, unsigned which, const struct opnd *op, unsigned reg)
{
	bool high = insn_is_high8(w->in, op, reg);

	w->f[which] = (struct field){
		.is_used = true,
		.is_high8 = high,
		.guest = (uint8_t)(high ? reg - 4 : reg),
		.size = (uint8_t)op->size,
		.access = op->access,
	};
}

static void gather(struct work *w)
{
	const struct insn *in = w->in;

	w->reg = in->modrm >> 3 & 7;
	w->rm = in->modrm & 7;
	w->vvvv = in->vvvv;
	for (unsigned i = 0; i < in->nops; i++) {
		const struct opnd *op = &in->op[i];

		switch (op->kind) {
		case OPND_GPR_REG:
			set_field(w, F_REG, op, in->reg);
			break;
		case OPND_GPR_RM:
			if (!in->has_mem)
				set_field(w, F_RM, op, in->rm);
			break;
		case OPND_GPR_VVVV:
			set_field(w, F_VVVV, op, in->vvvv);
			break;
		case OPND_GPR_OPCODE:
			set_field(w, F_OPCODE, op, (in->opcode & 7) | (in->rex_b ? 8 : 0));
			break;
		case OPND_XMM_REG:
			w->reg = in->reg;
			break;
		case OPND_MMX_REG:
			w->reg = in->reg & 7;
			break;
		case OPND_XMM_RM:
			w->rm = in->rm;
			break;
		case OPND_MMX_RM:
			w->rm = in->rm & 7;
			break;
		case OPND_FIXED_GPR:
			if (op->reg == R_RCX) {
				w->rcx_read |= op->access & OPND_READ;
				w->rcx_write |= (op->access & OPND_WRITE) != 0;
			}
			break;
		default:
			break;
		}
	}
	w->rcx_read |= in->desc->gpr_read >> R_RCX & 1;
	w->rcx_write |= in->desc->gpr_write >> R_RCX & 1;
}

/* Can all operands be encoded without REX, with AH, DH, BH as they are? */
static bool can_direct8(const struct work *w)
{
	bool any = false;

	for (unsigned i = 0; i < F_COUNT; i++) {
		const struct field *f = &w->f[i];

		if (!f->is_used)
			continue;
		if (f->guest == R_RCX || w->e->host[f->guest] >= 8)
			return false;
		if (!f->is_high8 && f->size == 1 && w->e->host[f->guest] >= 4)
			return false;
		any |= f->is_high8;
	}
	if (w->in->has_mem && w->e->scale)
		return false;
	return any && !w->rcx_read && !w->rcx_write && !w->in->rex_w && w->reg < 8 && w->rm < 8;
}

static uint8_t take(struct work *w)
{
	if (!w->npool) {
		assert(w->e->keeps_rcx || w->e->keeps_base);
		w->is_short = true;
		return H_R15;
	}
	w->npool--;
	if (w->pool[w->npool] == H_ADDR)
		w->e->used_addr = true;
	if (w->pool[w->npool] == H_R15)
		w->was_base = emit_take_base(w->e);
	return w->pool[w->npool];
}

/* Does the instruction need the old value of what @f names? */
static bool is_read(const struct work *w, const struct field *f)
{
	for (unsigned i = 0; i < F_COUNT; i++) {
		const struct field *g = &w->f[i];

		if (g->is_used && g->guest == f->guest && (g->access != OPND_WRITE || g->size < 4))
			return true;
	}
	return false;
}

static bool has_high8(const struct work *w)
{
	for (unsigned i = 0; i < F_COUNT; i++)
		if (w->f[i].is_used && w->f[i].is_high8)
			return true;
	return false;
}

/* Gives every field its host register; loads those that go through scratch registers. */
static void bind_fields(struct work *w)
{
	struct emit *e = w->e;
	bool rcx_free = !w->rcx_read && !w->rcx_write && !e->keeps_rcx;

	/* Taken from the end: rcx, r14, r15; with AH..BH rcx after r14, as it is on the way. */
	if (!e->keeps_base)
		w->pool[w->npool++] = H_R15;
	if (!w->in->has_mem && !has_high8(w))
		w->pool[w->npool++] = H_R14;
	if (rcx_free)
		w->pool[w->npool++] = H_RCX;
	if (!w->in->has_mem && has_high8(w))
		w->pool[w->npool++] = H_R14;

	for (unsigned i = 0; i < F_COUNT; i++) {
		struct field *f = &w->f[i];
		const struct field *same = NULL;

		if (!f->is_used)
			continue;
		if (!f->is_high8 && w->e->host[f->guest] != H_NONE) {
			f->host = w->e->host[f->guest];
			continue;
		}
		if (w->is_direct8) {
			f->host = (uint8_t)(w->e->host[f->guest] + 4);
			continue;
		}
		f->is_scratch = true;
		for (unsigned j = 0; j < i; j++)
			if (w->f[j].is_scratch && w->f[j].guest == f->guest &&
			    w->f[j].is_high8 == f->is_high8)
				same = &w->f[j];
		if (same) {
			f->host = same->host;
			continue;
		}
		f->host = take(w);
		if (!f->is_high8) {
			bool is_there =
				f->host == H_RCX && e->kept_at == e->p && e->kept_guest == f->guest;

			if (!is_there && is_read(w, f))
				emit_load_gs(e, f->host, CPU_GPR_OFF(f->guest), 8);
			continue;
		}
		/* movzx ecx, AH..BH.  rcx is free still: taken last, and implicit rcx is loaded later. */
		if (f->guest == R_RCX)
			emit_mov_rr(e, H_RCX, e->host[R_RCX], 8);
		emit_op_reg(e, 0, false, (const uint8_t[]){ 0x0f, 0xb6 }, 2, H_RCX, f->guest + 4u);
		if (f->host != H_RCX)
			emit_mov_rr(e, f->host, H_RCX, 4);
	}
	if (w->rcx_read || w->rcx_write)
		emit_mov_rr(e, H_RCX, e->host[R_RCX], 8);
	if (w->is_direct8 && w->in->has_mem)
		emit_mov_rr(e, H_RCX, H_ADDR, 8);
}

/* AH..BH back from a scratch register. */
static void put_high8(struct emit *e, const struct field *f)
{
	if (f->guest == R_RCX) {
		int32_t tmp = CPU_OFF(tmp[7]);

		emit_store_gs(e, tmp, e->host[R_RCX], 8);
		emit_store_gs(e, tmp + 1, f->host, 1);
		emit_load_gs(e, e->host[R_RCX], tmp, 8);
		return;
	}
	if (f->host != H_RCX)
		emit_mov_rr(e, H_RCX, f->host, 4);
	emit_op_reg(e, 0, false, (const uint8_t[]){ 0x8a }, 1, f->guest + 4u, H_RCX);
}

static void write_back(struct work *w)
{
	struct emit *e = w->e;

	/* What is in rcx first: put_high8 uses it. */
	if (w->rcx_write)
		emit_mov_rr(e, e->host[R_RCX], H_RCX, 8);
	for (unsigned pass = 0; pass < 2; pass++)
		for (unsigned i = 0; i < F_COUNT; i++) {
			const struct field *f = &w->f[i];

			if (!f->is_used || !f->is_scratch || !(f->access & OPND_WRITE) ||
			    (f->host == H_RCX) != (pass == 0))
				continue;
			if (f->is_high8)
				put_high8(e, f);
			else
				emit_store_gs(e, CPU_GPR_OFF(f->guest), f->host, 8);
		}
}

static bool is_vector(const struct insn *in)
{
	return in->desc->attr & (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX);
}

/* Does the legacy encoding need 66H, as part of the opcode or to say 16 bits? */
static bool needs_66(const struct insn *in)
{
	bool is_adcx = in->map == MAP_0F38 && in->opcode == 0xf6;

	if (is_vector(in) || is_adcx)
		return in->pp == 0x66;
	if (in->opsize != 2)
		return false;
	if (in->pp == 0 || in->pp == 0x66)
		return true; /* no effect on byte operations */
	for (unsigned i = 0; i < in->nops; i++)
		if (in->op[i].size == 2)
			return true;
	return false;
}

static void put_opcode(struct emit *e, const struct insn *in, uint8_t opcode)
{
	if (in->map != MAP_1BYTE)
		emit_u8(e, 0x0f);
	if (in->map == MAP_0F38)
		emit_u8(e, 0x38);
	else if (in->map == MAP_0F3A)
		emit_u8(e, 0x3a);
	emit_u8(e, opcode);
}

/* ModRM and displacement.  A memory operand's base is rcx or r14: neither needs a SIB byte, nor means RIP. */
static void put_modrm(struct work *w, int reg, int rm)
{
	unsigned mod = !w->in->has_mem			   ? 3
		       : !w->disp			   ? 0
		       : w->disp >= -128 && w->disp <= 127 ? 1
							   : 2;
	unsigned index = w->e->index, ss = w->e->scale == 8 ? 3 : w->e->scale >> 1;

	if (w->in->has_mem && w->e->scale) {
		emit_u8(w->e, (uint8_t)(mod << 6 | (reg & 7) << 3 | 4));
		emit_u8(w->e, (uint8_t)(ss << 6 | (index & 7) << 3 | (rm & 7)));
	} else {
		emit_u8(w->e, (uint8_t)(mod << 6 | (reg & 7) << 3 | (rm & 7)));
	}
	if (mod == 1)
		emit_u8(w->e, (uint8_t)w->disp);
	else if (mod == 2)
		emit_u32(w->e, (uint32_t)w->disp);
}

/* REX.X of the memory operand */
static unsigned index_x(const struct work *w)
{
	return w->in->has_mem && w->e->scale && w->e->index & 8 ? REX_X : 0;
}

static void put_legacy(struct work *w, int reg, int rm)
{
	const struct insn *in = w->in;
	struct emit *e = w->e;
	/* 82 is 80, not in 64-bit mode. */
	uint8_t opcode = in->map == MAP_1BYTE && in->opcode == 0x82 ? 0x80 : in->opcode;
	bool has_modrm = in->has_modrm;
	unsigned rex = in->rex_w ? REX_W : 0;

	if (w->f[F_OPCODE].is_used) {
		const struct field *f = &w->f[F_OPCODE];

		rex |= f->host & 8 ? REX_B : 0;
		if (in->map == MAP_1BYTE && in->opcode >= 0x40 && in->opcode < 0x50) {
			/* INC, DEC of 16- and 32-bit code: FF /0, /1 */
			opcode = 0xff;
			has_modrm = true;
			reg = in->opcode >> 3 & 1;
			rm = f->host;
		} else {
			opcode = (uint8_t)((in->opcode & ~7) | (f->host & 7));
		}
	}
	if (has_modrm)
		rex |= (reg & 8 ? REX_R : 0) | (rm & 8 ? REX_B : 0) | index_x(w);
	for (unsigned i = 0; i < F_COUNT; i++) {
		const struct field *f = &w->f[i];

		/* BPL, SIL, DIL are written with REX. */
		if (f->is_used && f->size == 1 && f->host >= 4 && !(f->is_high8 && w->is_direct8))
			rex |= 0x40;
	}
	assert(!w->is_direct8 || !rex);

	if (in->lock)
		emit_u8(e, 0xf0);
	if (needs_66(in))
		emit_u8(e, 0x66);
	if (in->pp == 0xf2 || in->pp == 0xf3)
		emit_u8(e, in->pp);
	if (rex)
		emit_u8(e, (uint8_t)(0x40 | rex));
	put_opcode(e, in, opcode);
	if (has_modrm)
		put_modrm(w, reg, rm);
}

/* Has it a general operand?  Outside of 64-bit mode VEX.W means nothing then. */
static bool has_gpr(const struct insn *in)
{
	for (unsigned i = 0; i < in->nops; i++)
		switch (in->op[i].kind) {
		case OPND_GPR_REG:
		case OPND_GPR_RM: /* VPINSRQ ... from memory, too */
		case OPND_GPR_VVVV:
		case OPND_FIXED_GPR:
			return true;
		}
	return in->desc->gpr_read || in->desc->gpr_write;
}

static void put_vex(struct work *w, int reg, int rm)
{
	const struct insn *in = w->in;
	struct emit *e = w->e;
	unsigned pp = in->pp == 0x66 ? 1 : in->pp == 0xf3 ? 2 : in->pp == 0xf2 ? 3 : 0;
	unsigned vvvv = w->f[F_VVVV].is_used ? w->f[F_VVVV].host : (unsigned)w->vvvv;
	bool wide = in->rex_w && (in->mode == 64 || !has_gpr(in));

	emit_u8(e, 0xc4);
	emit_u8(e, (uint8_t)((reg & 8 ? 0 : 0x80) | (index_x(w) ? 0 : 0x40) | (rm & 8 ? 0 : 0x20) |
			     in->map));
	emit_u8(e, (uint8_t)((wide ? 0x80 : 0) | (~vvvv & 15) << 3 | (in->vex_l ? 4 : 0) | pp));
	emit_u8(e, in->opcode);
	if (in->has_modrm)
		put_modrm(w, reg, rm);
}

static void put_imm(struct work *w)
{
	const struct insn *in = w->in;

	if (in->mode != 64)
		for (unsigned i = 0; i < in->nops; i++)
			if (in->op[i].kind == OPND_XMM_IS4) {
				/* The highest bit of the register number counts in 64-bit mode only. */
				emit_u8(w->e, in->bytes[in->imm_off] & 0x7f);
				return;
			}
	if (in->imm_len)
		emit_bytes(w->e, in->bytes + in->imm_off, in->imm_len);
}

/* ecx = bit offset of a bit string within its unit; the guest's register stays. */
static void put_bit_offset(struct emit *e, const struct insn *in)
{
	uint32_t mask = (uint32_t)in->opsize * 8 - 1;
	unsigned src = emit_guest_get(e, in->reg, H_RCX);

	if (emit_has_bmi2()) {
		bool was_base = emit_take_base(e);

		emit_mov_ri(e, H_R15, mask);
		emit_vex38(e, 2, false, 0xf5, H_RCX, src, H_R15); /* pext ecx, src, r15d */
		emit_put_base(e, was_base);
		return;
	}
	emit_mov_rr(e, H_RCX, src, 4);
	emit_u8(e, 0x9c);						  /* pushfq */
	emit_bytes(e, (const uint8_t[]){ 0x83, 0xe1, (uint8_t)mask }, 3); /* and ecx, mask */
	emit_u8(e, 0x9d);						  /* popfq */
}

bool emit_native(struct emit *e, const struct insn *in, int32_t disp)
{
	struct work w = { .in = in, .e = e, .disp = disp };
	int reg, rm;

	if (in->desc->kind != INSN_NATIVE || in->desc->attr & INSN_VSIB)
		return false;
	gather(&w);
	if (e->keeps_rcx && (w.rcx_read || w.rcx_write || insn_is_bit_string(in)))
		return false;
	if (insn_is_bit_string(in)) {
		put_bit_offset(e, in);
		w.f[F_REG].host = H_RCX;
	} else {
		w.is_direct8 = can_direct8(&w);
		if (e->keeps_rcx && has_high8(&w) && (!w.is_direct8 || in->has_mem))
			return false;
		bind_fields(&w);
	}
	if (w.is_short) {
		e->has_base |= w.was_base;
		return false;
	}
	reg = w.f[F_REG].is_used ? w.f[F_REG].host : w.reg;
	rm = in->has_mem	 ? (w.is_direct8 ? H_RCX : H_ADDR)
	     : w.f[F_RM].is_used ? w.f[F_RM].host
				 : w.rm;
	if (in->vex)
		put_vex(&w, reg, rm);
	else
		put_legacy(&w, reg, rm);
	put_imm(&w);
	write_back(&w);
	if (w.was_base)
		emit_put_base(e, true);
	for (unsigned i = 0; i < F_COUNT; i++)
		if (w.f[i].is_used && w.f[i].is_scratch && !w.f[i].is_high8 && w.f[i].host == H_RCX) {
			e->kept_at = e->p;
			e->kept_guest = w.f[i].guest;
		}
	return true;
}
