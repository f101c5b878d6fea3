/* SPDX-License-Identifier: Apache-2.0 */
/* The emitter: host instructions by hand (emit.h).  Encodings: SDM vol. 2 chapter 2. */
#include <assert.h>

#include "engine/dbt/emit.h"

const uint8_t emit_host_reg[16] = {
	[R_RAX] = H_RAX, [R_RCX] = H_R9,  [R_RDX] = H_RDX,  [R_RBX] = H_RBX,
	[R_RSP] = H_R13, [R_RBP] = H_RBP, [R_RSI] = H_RSI,  [R_RDI] = H_RDI,
	[R_R8] = H_R8,	 [R_R9] = H_NONE, [R_R10] = H_NONE, [R_R11] = H_NONE,
	[R_R12] = H_R12, [R_R13] = H_R10, [R_R14] = H_R11,  [R_R15] = H_NONE,
};

enum { REX = 0x40, REX_B = 1, REX_X = 2, REX_R = 4, REX_W = 8 };

/* ModRM, SIB and displacement of [base + index * scale + disp]; register numbers 0..15. */
static void put_mem(struct emit *e, unsigned reg, unsigned base, unsigned index, unsigned scale,
		    int32_t disp)
{
	unsigned mod, ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
	bool has_sib = index != H_NONE || base == H_NONE || (base & 7) == H_RSP;

	if (base == H_NONE)
		mod = 0; /* disp32 follows the SIB byte without a base */
	else if (disp == 0 && (base & 7) != H_RBP)
		mod = 0;
	else
		mod = disp >= -128 && disp <= 127 ? 1 : 2;

	emit_u8(e, (uint8_t)(mod << 6 | (reg & 7) << 3 | (has_sib ? 4 : base & 7)));
	if (has_sib)
		emit_u8(e, (uint8_t)(ss << 6 | (index == H_NONE ? 4 : index & 7) << 3 |
				     (base == H_NONE ? 5 : base & 7)));
	if (mod == 1)
		emit_u8(e, (uint8_t)disp);
	else if (mod == 2 || base == H_NONE)
		emit_u32(e, (uint32_t)disp);
}

/* @rex: REX_W, or REX itself to force the prefix (byte registers 4..7). */
static void op_mem(struct emit *e, uint8_t prefix, unsigned rex, const uint8_t *opc, unsigned nopc,
		   unsigned reg, unsigned base, int32_t disp)
{
	if (base == H_NONE && e->has_base) {
		base = H_R15;
		disp -= DBT_BASE;
	}
	if (base == H_NONE)
		emit_u8(e, 0x65);
	if (prefix)
		emit_u8(e, prefix);
	if (reg & 8)
		rex |= REX_R;
	if (base != H_NONE && base & 8)
		rex |= REX_B;
	if (rex)
		emit_u8(e, (uint8_t)(REX | rex));
	emit_bytes(e, opc, nopc);
	put_mem(e, reg, base, H_NONE, 1, disp);
}

void emit_op_mem(struct emit *e, uint8_t prefix, bool rex_w, const uint8_t *opc, unsigned nopc,
		 unsigned reg, unsigned base, int32_t disp)
{
	op_mem(e, prefix, rex_w ? REX_W : 0, opc, nopc, reg, base, disp);
}

bool emit_take_base(struct emit *e)
{
	bool was_base = e->has_base;

	e->has_base = false;
	return was_base;
}

void emit_put_base(struct emit *e, bool was_base)
{
	e->has_base = false;
	if (was_base)
		emit_load_gs(e, H_R15, CPU_OFF(base), 8);
	e->has_base = was_base;
}

void emit_op_reg(struct emit *e, uint8_t prefix, bool rex_w, const uint8_t *opc, unsigned nopc,
		 unsigned reg, unsigned rm)
{
	unsigned rex = (rex_w ? REX_W : 0) | (reg & 8 ? REX_R : 0) | (rm & 8 ? REX_B : 0);

	if (prefix)
		emit_u8(e, prefix);
	if (rex)
		emit_u8(e, (uint8_t)(REX | rex));
	emit_bytes(e, opc, nopc);
	emit_u8(e, (uint8_t)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

void emit_mov_rr(struct emit *e, unsigned dst, unsigned src, unsigned size)
{
	if (dst != src || size == 4)
		emit_op_reg(e, 0, size == 8, (const uint8_t[]){ 0x8b }, 1, dst, src);
}

void emit_mov_ri(struct emit *e, unsigned dst, uint64_t imm)
{
	if (imm <= UINT32_MAX) {
		if (dst & 8)
			emit_u8(e, REX | REX_B);
		emit_u8(e, (uint8_t)(0xb8 | (dst & 7)));
		emit_u32(e, (uint32_t)imm);
	} else if ((int64_t)imm == (int32_t)imm) {
		emit_op_reg(e, 0, true, (const uint8_t[]){ 0xc7 }, 1, 0, dst);
		emit_u32(e, (uint32_t)imm);
	} else {
		emit_u8(e, (uint8_t)(REX | REX_W | (dst & 8 ? REX_B : 0)));
		emit_u8(e, (uint8_t)(0xb8 | (dst & 7)));
		emit_u64(e, imm);
	}
}

void emit_load_gs(struct emit *e, unsigned dst, int32_t off, unsigned size)
{
	static const uint8_t movzx8[] = { 0x0f, 0xb6 }, movzx16[] = { 0x0f, 0xb7 }, mov[] = { 0x8b };

	if (size == 1)
		op_mem(e, 0, 0, movzx8, 2, dst, H_NONE, off);
	else if (size == 2)
		op_mem(e, 0, 0, movzx16, 2, dst, H_NONE, off);
	else
		op_mem(e, 0, size == 8 ? REX_W : 0, mov, 1, dst, H_NONE, off);
}

void emit_store_gs(struct emit *e, int32_t off, unsigned src, unsigned size)
{
	unsigned rex = size == 8 ? REX_W : size == 1 && src >= 4 ? REX : 0;

	op_mem(e, size == 2 ? 0x66 : 0, rex, (const uint8_t[]){ size == 1 ? 0x88 : 0x89 }, 1, src,
	       H_NONE, off);
}

void emit_store_gs_imm(struct emit *e, int32_t off, int32_t imm, unsigned size)
{
	op_mem(e, size == 2 ? 0x66 : 0, size == 8 ? REX_W : 0,
	       (const uint8_t[]){ size == 1 ? 0xc6 : 0xc7 }, 1, 0, H_NONE, off);
	for (unsigned i = 0; i < (size == 8 ? 4 : size); i++)
		emit_u8(e, (uint8_t)((uint32_t)imm >> (8 * i)));
}

void emit_lea(struct emit *e, unsigned dst, unsigned base, unsigned index, unsigned scale,
	      int32_t disp, unsigned size)
{
	unsigned rex = (size == 8 ? REX_W : 0) | (dst & 8 ? REX_R : 0) |
		       (base != H_NONE && base & 8 ? REX_B : 0) |
		       (index != H_NONE && index & 8 ? REX_X : 0);

	assert(index != H_RSP);
	if (size == 2)
		emit_u8(e, 0x66);
	if (rex)
		emit_u8(e, (uint8_t)(REX | rex));
	emit_u8(e, 0x8d);
	put_mem(e, dst, base, index, scale, disp);
}

void emit_load_gs_idx(struct emit *e, unsigned dst, unsigned idx, int32_t off)
{
	emit_gs_idx(e, REX_W, 0x8b, dst, idx, off);
}

void emit_gs_idx(struct emit *e, unsigned rex, uint8_t opcode, unsigned reg, unsigned idx, int32_t off)
{
	rex |= (reg & 8 ? REX_R : 0) | (idx & 8 ? REX_X : 0) | (e->has_base ? REX_B : 0);
	if (!e->has_base)
		emit_u8(e, 0x65);
	if (rex)
		emit_u8(e, (uint8_t)(REX | rex));
	emit_u8(e, opcode);
	put_mem(e, reg, e->has_base ? H_R15 : H_NONE, idx, 8, off - (e->has_base ? DBT_BASE : 0));
}

void emit_pext_gs(struct emit *e, unsigned dst, unsigned src, int32_t off, bool is_pdep)
{
	if (!e->has_base)
		emit_u8(e, 0x65);
	emit_u8(e, 0xc4);
	emit_u8(e, (uint8_t)((dst & 8 ? 0 : 0x80) | 0x40 | (e->has_base ? 0 : 0x20) | 2));
	emit_u8(e, (uint8_t)(0x80 | ((~src & 15) << 3) | (is_pdep ? 3 : 2)));
	emit_u8(e, 0xf5);
	put_mem(e, dst, e->has_base ? H_R15 : H_NONE, H_NONE, 1, off - (e->has_base ? DBT_BASE : 0));
}

unsigned emit_guest_get(struct emit *e, unsigned r, unsigned scratch)
{
	if (e->host[r] != H_NONE)
		return e->host[r];
	emit_load_gs(e, scratch, CPU_GPR_OFF(r), 8);
	return scratch;
}

void emit_guest_put(struct emit *e, unsigned r, unsigned src)
{
	if (e->host[r] != H_NONE)
		emit_mov_rr(e, e->host[r], src, 8);
	else
		emit_store_gs(e, CPU_GPR_OFF(r), src, 8);
}
