/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoder: prefixes, opcode, ModRM, immediates; the row is found in the generated table.
 *
 * How a row is found: (encoding, map, opcode) gives a short run of candidate rows; the first whose mandatory
 * prefix, ModRM, VEX.W and VEX.L match and that exists in this mode is it.  Rows with an exact mandatory
 * prefix stand before those for any.
 */
#include <string.h>

#include "engine/dbt/decode.h"
#include "engine/cpuid.h"

/* Operand sizes that depend on the instruction's prefixes. */
enum {
	OSZ_V = 0x1000, /* operand size: 2 4 8 */
	OSZ_Z,		/* 2 or 4 */
	OSZ_Y,		/* 4, or 8 with REX.W */
	OSZ_X,		/* 16 or 32 by VEX.L */
	OSZ_N,		/* 8 in 64-bit mode, else 4 */
	OSZ_P,		/* far pointer: operand size + 2 */
	OSZ_A,		/* BOUND: two operands */
	OSZ_ENV,	/* x87 environment: 14 or 28 */
	OSZ_SAVE,	/* x87 state: 94 or 108 */
	OSZ_DTR,	/* descriptor-table register: 6, 10 in 64-bit mode */
};

enum insn_imm { IMM_NONE, IMM_SB, IMM_UB, IMM_UW, IMM_Z, IMM_V, IMM_2B, IMM_JZ, IMM_PTR };

struct insn_row {
	struct insn_desc d;
	uint8_t pp;	/* 0xff: any */
	uint8_t reg;	/* ModRM.reg, 0xff: any */
	uint8_t mod;	/* 1 memory only, 2 register only */
	uint16_t modrm; /* this very byte, 0x100: any */
	uint8_t w, l;	/* VEX.W (REX.W), VEX.L; 0xff: any */
	bool no_rex_b;
	bool has_modrm;
	bool uses_vvvv;
	bool is_write_only; /* the memory form of a read-write operand only writes */
	uint8_t imm[2];
};

struct insn_range {
	uint16_t first, count;
};

#include "insn_rows.inc"

static const char *const insn_names[] = {
#define X(name) #name,
#include "engine/dbt/insn_ids.def"
#undef X
};

const char *insn_name(enum insn_id id)
{
	return (unsigned)id < I_COUNT ? insn_names[id] : "?";
}

struct cursor {
	const uint8_t *p;
	unsigned pos, avail; /* avail <= 15 */
};

static bool get(struct cursor *c, uint8_t *b)
{
	if (c->pos >= c->avail)
		return false;
	*b = c->p[c->pos++];
	return true;
}

static bool get_signed(struct cursor *c, unsigned n, int64_t *v)
{
	uint64_t x = 0;

	if (c->pos + n > c->avail) {
		c->pos = c->avail;
		return false;
	}
	for (unsigned i = 0; i < n; i++)
		x |= (uint64_t)c->p[c->pos++] << (8 * i);
	*v = n == 8 ? (int64_t)x : (int64_t)(x << (64 - 8 * n)) >> (64 - 8 * n);
	return true;
}

static const struct insn_row *find_row(const struct insn *in, unsigned table, uint8_t pp)
{
	const struct insn_range *r = &insn_index[table][in->opcode];

	for (unsigned i = 0; i < r->count; i++) {
		const struct insn_row *row = &insn_rows[r->first + i];

		if (row->pp != 0xff && row->pp != pp)
			continue;
		if (row->no_rex_b && in->rex_b)
			continue;
		if (row->has_modrm) {
			if (row->reg != 0xff && row->reg != (in->modrm >> 3 & 7))
				continue;
			if (row->modrm != 0x100 && row->modrm != in->modrm)
				continue;
			if ((row->mod == 1 && in->mod == 3) || (row->mod == 2 && in->mod != 3))
				continue;
		}
		if (row->w != 0xff && row->w != in->rex_w)
			continue;
		if (in->vex && row->l != 0xff && row->l != in->vex_l)
			continue;
		if ((row->d.attr & INSN_NO64) && in->mode == 64)
			continue;
		if ((row->d.attr & INSN_ONLY64) && in->mode != 64)
			continue;
		return row;
	}
	return NULL;
}

/* Does any row of this opcode have a ModRM byte?  (All rows of one opcode agree, but 90H.) */
static bool opcode_has_modrm(unsigned table, uint8_t opcode)
{
	const struct insn_range *r = &insn_index[table][opcode];

	return r->count && insn_rows[r->first + r->count - 1].has_modrm;
}

static bool decode_mem16(struct insn *out, struct cursor *c)
{
	static const uint8_t bases[8] = { 3, 3, 5, 5, 6, 7, 5, 3 };
	static const uint8_t indexes[8] = { 6, 7, 6, 7, 0xff, 0xff, 0xff, 0xff };
	unsigned rm = out->modrm & 7;

	out->base = bases[rm];
	out->index = indexes[rm];
	out->scale = 1;
	out->seg = bases[rm] == 5 ? SEG_SS : SEG_DS;
	if (out->mod == 0 && rm == 6) {
		out->base = 0xff;
		out->seg = SEG_DS;
		out->disp_len = 2;
	} else {
		out->disp_len = out->mod == 1 ? 1 : out->mod == 2 ? 2 : 0;
	}
	if (out->disp_len) {
		out->disp_off = (uint8_t)c->pos;
		return get_signed(c, out->disp_len, &out->disp);
	}
	return true;
}

static bool decode_mem(struct insn *out, struct cursor *c)
{
	if (out->addrsize == 2)
		return decode_mem16(out, c);

	uint8_t rm = out->modrm & 7, sib;

	out->seg = SEG_DS;
	out->scale = 1;
	if (rm == 4) {
		if (!get(c, &sib))
			return false;
		out->scale = (uint8_t)(1 << (sib >> 6));
		out->index = (uint8_t)((sib >> 3 & 7) | (out->rex_x ? 8 : 0));
		if (out->index == 4)
			out->index = 0xff;
		out->base = (uint8_t)((sib & 7) | (out->rex_b ? 8 : 0));
		if ((sib & 7) == 5 && out->mod == 0) {
			out->base = 0xff;
			out->disp_len = 4;
		}
		/* A vector index of 4 is a register like any other: decided by the row later. */
	} else if (rm == 5 && out->mod == 0) {
		out->disp_len = 4;
		out->rip_rel = out->mode == 64;
	} else {
		out->base = (uint8_t)(rm | (out->rex_b ? 8 : 0));
	}
	if (out->mod == 1)
		out->disp_len = 1;
	else if (out->mod == 2)
		out->disp_len = 4;
	if (out->base == 4 || out->base == 5)
		out->seg = SEG_SS;
	if (out->disp_len) {
		out->disp_off = (uint8_t)c->pos;
		return get_signed(c, out->disp_len, &out->disp);
	}
	return true;
}

static bool decode_imm(struct insn *out, struct cursor *c, unsigned kind)
{
	unsigned n = 0;
	bool is_unsigned = false;
	int64_t v;

	switch (kind) {
	case IMM_NONE:
		return true;
	case IMM_SB:
		n = 1;
		break;
	case IMM_UB:
		n = 1;
		is_unsigned = true;
		break;
	case IMM_UW:
		n = 2;
		is_unsigned = true;
		break;
	case IMM_Z:
		n = out->opsize == 2 ? 2 : 4;
		break;
	case IMM_V:
		n = out->opsize;
		break;
	case IMM_JZ:
		n = out->mode != 64 && out->opsize == 2 ? 2 : 4;
		break;
	case IMM_2B:
		if (!get_signed(c, 1, &v))
			return false;
		out->imm2 = (uint8_t)v;
		out->imm_len++;
		return true;
	case IMM_PTR:
		out->imm_off = (uint8_t)c->pos;
		n = out->opsize == 2 ? 2 : 4;
		if (!get_signed(c, n, &v))
			return false;
		out->imm = n == 2 ? (uint16_t)v : (uint32_t)v;
		if (!get_signed(c, 2, &v))
			return false;
		out->imm2 = (uint16_t)v;
		out->imm_len = (uint8_t)(n + 2);
		return true;
	}
	if (out->imm_off == 0xff)
		out->imm_off = (uint8_t)c->pos;
	if (!get_signed(c, n, &v))
		return false;
	if (is_unsigned)
		v = n == 1 ? (uint8_t)v : (uint16_t)v;
	out->imm = v;
	out->imm_len = (uint8_t)(out->imm_len + n);
	return true;
}

static uint16_t resolve_size(const struct insn *in, uint16_t size)
{
	switch (size) {
	case OSZ_V:
		return in->opsize;
	case OSZ_Z:
		return in->opsize == 2 ? 2 : 4;
	case OSZ_Y:
		return in->rex_w && in->mode == 64 ? 8 : 4; /* VEX.W means nothing in 32-bit code */
	case OSZ_X:
		return in->vex_l ? 32 : 16;
	case OSZ_N:
		return in->mode == 64 ? 8 : 4;
	case OSZ_P:
		return in->opsize + 2;
	case OSZ_A:
		return 2 * in->opsize;
	case OSZ_ENV:
		return in->opsize == 2 ? 14 : 28;
	case OSZ_SAVE:
		return in->opsize == 2 ? 94 : 108;
	case OSZ_DTR:
		return in->mode == 64 ? 10 : 6;
	default:
		return size;
	}
}

static void note_gpr(struct insn *out, const struct opnd *op, unsigned reg, bool is_encoded)
{
	/* Without REX, byte registers 4..7 are AH CH DH BH. */
	if (is_encoded && op->size == 1 && !out->has_rex && !out->vex && reg >= 4 && reg < 8)
		reg -= 4;
	if (op->access & OPND_READ || op->size < 4)
		out->gpr_read |= (uint16_t)(1 << reg);
	if (op->access & OPND_WRITE)
		out->gpr_write |= (uint16_t)(1 << reg);
}

static void resolve_operands(struct insn *out, const struct insn_row *row)
{
	const struct insn_desc *d = &row->d;

	out->gpr_read = d->gpr_read;
	out->gpr_write = d->gpr_write;
	for (unsigned i = 0; i < INSN_MAX_OPNDS && d->op[i].kind != OPND_NONE; i++) {
		struct opnd *op = &out->op[i];

		*op = d->op[i];
		op->size = resolve_size(out, op->size);
		out->nops = (uint8_t)(i + 1);
		switch (op->kind) {
		case OPND_GPR_REG:
			note_gpr(out, op, out->reg, true);
			break;
		case OPND_GPR_VVVV:
			note_gpr(out, op, out->vvvv, true);
			break;
		case OPND_GPR_OPCODE:
			note_gpr(out, op, (unsigned)(out->opcode & 7) | (out->rex_b ? 8 : 0), true);
			break;
		case OPND_FIXED_GPR:
			note_gpr(out, op, op->reg, false);
			break;
		case OPND_GPR_RM:
		case OPND_XMM_RM:
		case OPND_MMX_RM:
		case OPND_X87_RM:
		case OPND_MOFFS:
			if (out->has_mem) {
				if (!(d->attr & INSN_NO_MEM_ACCESS)) {
					out->mem_size = op->size;
					out->mem_access = row->is_write_only ? OPND_WRITE : op->access;
				}
			} else if (op->kind == OPND_GPR_RM) {
				note_gpr(out, op, out->rm, true);
			}
			break;
		default:
			break;
		}
	}
	if (out->has_mem) {
		if (out->base != 0xff)
			out->gpr_read |= (uint16_t)(1 << out->base);
		if (out->index != 0xff && !(d->attr & INSN_VSIB))
			out->gpr_read |= (uint16_t)(1 << out->index);
	}
}

/* VEX prefix at the cursor (after C4 or C5).  Returns 0 OK, 1 out of bytes, 2 #UD; *@table set. */
static int decode_vex(struct insn *out, struct cursor *c, uint8_t first, unsigned *table)
{
	uint8_t b1, b2;
	unsigned map = MAP_0F;

	if (!get(c, &b1))
		return 1;
	out->rex_r = !(b1 & 0x80);
	if (first == 0xc5) {
		out->vex = 2;
		b2 = b1 & 0x7f;
	} else {
		out->vex = 3;
		if (!get(c, &b2))
			return 1;
		out->rex_x = !(b1 & 0x40);
		out->rex_b = !(b1 & 0x20);
		out->rex_w = b2 & 0x80;
		map = b1 & 0x1f;
		if (map < MAP_0F || map > MAP_0F3A)
			return 2;
	}
	static const uint8_t pps[4] = { 0, 0x66, 0xf3, 0xf2 };

	out->pp = pps[b2 & 3];
	out->vex_l = b2 >> 2 & 1;
	out->vvvv = (uint8_t)(~b2 >> 3 & 15);
	if (out->mode != 64) {
		/* Registers 8..15 do not exist; vvvv is cut when it was checked for being unused. */
		out->rex_r = out->rex_x = out->rex_b = false;
	}
	if (!get(c, &out->opcode))
		return 1;
	out->map = (uint8_t)map;
	*table = 3 + map;
	return 0;
}

static bool has_y_operand(const struct insn_desc *d)
{
	for (unsigned i = 0; i < INSN_MAX_OPNDS; i++)
		if (d->op[i].size == OSZ_Y)
			return true;
	return false;
}

enum decode_result insn_decode(struct insn *out, const uint8_t *code, unsigned avail, unsigned mode)
{
	struct cursor cur = { .p = code, .avail = avail < INSN_MAX_LEN ? avail : INSN_MAX_LEN },
		      *c = &cur;
	uint8_t b, rex = 0, rep = 0, seg = SEG_NONE;
	unsigned table;
	bool is_vex = false;

	memset(out, 0, sizeof(*out));
	out->mode = (uint8_t)mode;
	out->base = out->index = 0xff;
	out->seg = SEG_NONE;
	out->modrm_off = out->disp_off = out->imm_off = 0xff;

	/* Prefixes. */
	for (;;) {
		if (!get(c, &b))
			goto more;
		if (mode == 64 && (b & 0xf0) == 0x40) {
			rex = b;
			continue;
		}
		bool is_prefix = true;

		switch (b) {
		case 0x66:
			out->opsize_prefix = true;
			break;
		case 0x67:
			out->addrsize_prefix = true;
			break;
		case 0xf0:
			out->lock = true;
			break;
		case 0xf2:
		case 0xf3:
			rep = b;
			break;
		case 0x26:
			seg = mode == 64 ? seg : SEG_ES;
			break;
		case 0x2e:
			seg = mode == 64 ? seg : SEG_CS;
			break;
		case 0x36:
			seg = mode == 64 ? seg : SEG_SS;
			break;
		case 0x3e:
			seg = mode == 64 ? seg : SEG_DS;
			break;
		case 0x64:
			seg = SEG_FS;
			break;
		case 0x65:
			seg = SEG_GS;
			break;
		default:
			is_prefix = false;
		}
		if (!is_prefix)
			break;
		rex = 0; /* REX counts only directly before the opcode */
	}
	out->rep = rep == 0xf3;
	out->repne = rep == 0xf2;

	/* Opcode. */
	out->opcode_off = (uint8_t)(c->pos - 1);
	if (b == 0xc4 || b == 0xc5) {
		if (mode == 64) {
			is_vex = true;
		} else {
			if (c->pos >= c->avail)
				goto more;
			is_vex = (c->p[c->pos] & 0xc0) == 0xc0;
		}
	}
	if (is_vex) {
		if (rex || rep || out->opsize_prefix || out->lock)
			goto ud;
		int r = decode_vex(out, c, b, &table);

		if (r == 1)
			goto more;
		if (r == 2)
			goto ud;
		out->opcode_off = (uint8_t)(c->pos - 1);
	} else {
		if (rex) {
			out->has_rex = true;
			out->rex_w = rex & 8;
			out->rex_r = rex & 4;
			out->rex_x = rex & 2;
			out->rex_b = rex & 1;
		}
		out->map = MAP_1BYTE;
		if (b == 0x0f) {
			if (!get(c, &b))
				goto more;
			out->map = MAP_0F;
			if (b == 0x38 || b == 0x3a) {
				out->map = b == 0x38 ? MAP_0F38 : MAP_0F3A;
				if (!get(c, &b))
					goto more;
			}
		}
		out->opcode = b;
		out->opcode_off = (uint8_t)(c->pos - 1);
		out->pp = rep ? rep : out->opsize_prefix ? 0x66 : 0;
		table = out->map;
	}

	/* Sizes that do not depend on the row. */
	if (mode == 64)
		out->addrsize = out->addrsize_prefix ? 4 : 8;
	else
		out->addrsize = (mode == 32) != out->addrsize_prefix ? 4 : 2;

	/* ModRM. */
	if (opcode_has_modrm(table, out->opcode)) {
		if (!get(c, &out->modrm))
			goto more;
		out->has_modrm = true;
		out->modrm_off = (uint8_t)(c->pos - 1);
		out->mod = out->modrm >> 6;
		/* MOV to and from control and debug registers ignore mod. */
		if (table == MAP_0F && out->opcode >= 0x20 && out->opcode <= 0x23)
			out->mod = 3;
		out->reg = (uint8_t)((out->modrm >> 3 & 7) | (out->rex_r ? 8 : 0));
		out->rm = (uint8_t)((out->modrm & 7) | (out->rex_b ? 8 : 0));
	}
	const struct insn_row *row = find_row(out, table, out->pp);

	if (!row)
		goto ud;
	const struct insn_desc *d = &row->d;

	out->desc = d;
	if (row->pp == 0xff)
		out->pp = 0;

	/* Operand size. */
	if (mode == 64) {
		if (d->attr & INSN_FORCE64)
			out->opsize = 8;
		else if (out->rex_w)
			out->opsize = 8;
		else if (out->opsize_prefix)
			out->opsize = 2;
		else
			out->opsize = d->attr & INSN_DEF64 ? 8 : 4;
	} else {
		out->opsize = (mode == 32) != out->opsize_prefix ? 4 : 2;
		/* VEX.W of operands in general registers means nothing here; where it picks the row it stays. */
		if (!is_vex || has_y_operand(d))
			out->rex_w = false;
	}

	/* Memory operand. */
	if (out->has_modrm && out->mod != 3) {
		out->has_mem = true;
		if (!decode_mem(out, c))
			goto more;
		if (d->attr & INSN_VSIB) {
			if ((out->modrm & 7) != 4 || out->addrsize == 2)
				goto ud;
			/* index 4 names xmm4, not "none" */
			if (out->index == 0xff)
				out->index = (uint8_t)(4 | (out->rex_x ? 8 : 0));
		}
	}
	for (unsigned i = 0; i < INSN_MAX_OPNDS; i++) {
		if (d->op[i].kind != OPND_MOFFS)
			continue;
		out->has_mem = true;
		out->seg = SEG_DS;
		out->scale = 1;
		out->disp_off = (uint8_t)c->pos;
		out->disp_len = out->addrsize;
		if (!get_signed(c, out->addrsize, &out->disp))
			goto more;
		if (out->addrsize < 8)
			out->disp &= out->addrsize == 4 ? 0xffffffffLL : 0xffffLL;
	}
	if (out->has_mem) {
		if (seg != SEG_NONE)
			out->seg = seg;
		else if (mode == 64)
			out->seg = out->seg == SEG_SS ? SEG_SS : SEG_DS;
	} else {
		out->seg = seg; /* string instructions: the override, if any */
	}

	/* Immediates. */
	for (unsigned i = 0; i < 2; i++)
		if (!decode_imm(out, c, row->imm[i]))
			goto more;

	out->len = (uint8_t)c->pos;
	memcpy(out->bytes, code, out->len);
	/* Unused, all four bits of the field must be 1; used, bit 3 means nothing outside 64-bit mode. */
	if (is_vex && !row->uses_vvvv && out->vvvv)
		goto ud;
	if (mode != 64)
		out->vvvv &= 7;
	resolve_operands(out, row);

	if (out->lock && !((d->attr & INSN_LOCKABLE) && out->has_mem && (out->mem_access & OPND_WRITE)))
		goto ud;
	return DECODE_OK;

more:
	out->len = (uint8_t)c->pos;
	return c->avail == INSN_MAX_LEN ? DECODE_LONG : DECODE_MORE;
ud:
	out->len = (uint8_t)c->pos;
	return DECODE_UD;
}
