/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoder against an independent one (Zydis), in all three code-segment modes: every opcode byte of the
 * four maps with every ModRM byte under each kind of prefix, every VEX form, and random bytes.
 *
 * compare() decodes the same bytes with both and gives the set of aspects in which they differ.  A
 * difference that is meant stands in known[], with its reason; any other fails the test, and so does a
 * row of known[] that no bytes needed.
 */
#include "base/unit.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <Zydis/Zydis.h>

#include "base/util.h"
#include "engine/dbt/decode.h"

enum aspect {
	A_WE_REFUSE, /* Zydis decodes it */
	A_WE_ACCEPT, /* Zydis does not */
	A_TOO_LONG,  /* #GP against #UD */
	A_LEN,
	A_GPR_SIZE,
	A_MEM_SIZE,
	A_MEM_ACCESS,
	A_GPR_READ,
	A_GPR_WRITE,
	A_FLAGS_READ,
	A_FLAGS_WRITTEN_MORE, /* by us: the translator would take a live flag for dead */
	A_FLAGS_WRITTEN_LESS,
	A_SEG,
	A_ADDRESS, /* base, index, scale, displacement, address size */
	A_DISP_PLACE,
	A_IMM, /* value */
	A_IMM_PLACE,
	A_ALIGNED,
	ASPECTS
};

/* clang-format off */
static const char *const aspect_names[ASPECTS] = {
	"refused here", "accepted here", "too long", "length", "register size", "memory size", "memory access",
	"registers read", "registers written", "flags read", "more flags written", "fewer flags written", "segment",
	"address", "displacement's place", "immediate", "immediate's place", "alignment",
};
/* clang-format on */

#define BYTES 24 /* more than any instruction: Zydis tells too long from too few */

static ZydisDecoder decoders[3];
static uint8_t gpr_of[ZYDIS_REGISTER_MAX_VALUE + 1], seg_of[ZYDIS_REGISTER_MAX_VALUE + 1];

struct pair {
	const uint8_t *bytes;
	unsigned mode;
	enum decode_result r;
	struct insn in;
	ZyanStatus zr;
	ZydisDecodedInstruction z;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};

static int setup(void **state)
{
	static const ZydisDecoderMode off[] = {
		/* NOPs where these are not shown */
		ZYDIS_DECODER_MODE_MPX,	     ZYDIS_DECODER_MODE_CET, ZYDIS_DECODER_MODE_CLDEMOTE,
		ZYDIS_DECODER_MODE_WBNOINVD, ZYDIS_DECODER_MODE_KNC,
	};
	static const ZydisMachineMode machine[3] = { ZYDIS_MACHINE_MODE_LEGACY_16,
						     ZYDIS_MACHINE_MODE_LEGACY_32,
						     ZYDIS_MACHINE_MODE_LONG_64 };
	static const ZydisStackWidth width[3] = { ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32,
						  ZYDIS_STACK_WIDTH_64 };

	for (unsigned i = 0; i < 3; i++) {
		if (ZYAN_FAILED(ZydisDecoderInit(&decoders[i], machine[i], width[i])))
			return -1;
		for (unsigned k = 0; k < ARRAY_SIZE(off); k++)
			if (ZYAN_FAILED(ZydisDecoderEnableMode(&decoders[i], off[k], ZYAN_FALSE)))
				return -1;
	}
	for (unsigned reg = 0; reg <= ZYDIS_REGISTER_MAX_VALUE; reg++) {
		ZydisRegisterClass c = ZydisRegisterGetClass(reg);

		gpr_of[reg] = seg_of[reg] = 0xff;
		if (c >= ZYDIS_REGCLASS_GPR8 && c <= ZYDIS_REGCLASS_GPR64)
			gpr_of[reg] = (uint8_t)ZydisRegisterGetId(
				ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg));
		else if (c == ZYDIS_REGCLASS_SEGMENT)
			seg_of[reg] = (uint8_t)ZydisRegisterGetId(reg);
	}
	return 0;
}

/* ---- what Zydis says, in the decoder's terms ---- */

static void zydis_gprs(const struct pair *p, uint16_t *reads, uint16_t *writes)
{
	*reads = *writes = 0;
	for (unsigned i = 0; i < p->z.operand_count; i++) {
		const ZydisDecodedOperand *op = &p->op[i];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (gpr_of[op->mem.base] != 0xff)
				*reads |= (uint16_t)(1 << gpr_of[op->mem.base]);
			if (gpr_of[op->mem.index] != 0xff)
				*reads |= (uint16_t)(1 << gpr_of[op->mem.index]);
		}
		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || gpr_of[op->reg.value] == 0xff)
			continue;
		uint16_t bit = (uint16_t)(1 << gpr_of[op->reg.value]);

		if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
			*writes |= bit;
			/* What is written in part or perhaps not keeps something: it is read. */
			if (ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, op->reg.value) < 32 ||
			    op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE)
				*reads |= bit;
		}
		if (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
			*reads |= bit;
	}
}

/* The operand that ModRM or a moffs names, if it is memory. */
static const ZydisDecodedOperand *zydis_mem(const struct pair *p)
{
	for (unsigned i = 0; i < p->z.operand_count; i++)
		if (p->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    p->op[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
		    (p->op[i].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM ||
		     p->op[i].encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64))
			return &p->op[i];
	return NULL;
}

static unsigned access_of(ZydisOperandActions a)
{
	return (a & (ZYDIS_OPERAND_ACTION_MASK_READ) ? OPND_READ : 0) |
	       (a & ZYDIS_OPERAND_ACTION_MASK_WRITE ? OPND_WRITE : 0);
}

static bool gpr_sizes_agree(const struct pair *p)
{
	for (unsigned i = 0; i < p->in.nops; i++) {
		const struct opnd *o = &p->in.op[i];
		ZydisOperandEncoding enc;

		switch (o->kind) {
		case OPND_GPR_REG:
			enc = ZYDIS_OPERAND_ENCODING_MODRM_REG;
			break;
		case OPND_GPR_RM:
			enc = ZYDIS_OPERAND_ENCODING_MODRM_RM;
			break;
		case OPND_GPR_VVVV:
			enc = ZYDIS_OPERAND_ENCODING_NDSNDD;
			break;
		case OPND_GPR_OPCODE:
			enc = ZYDIS_OPERAND_ENCODING_OPCODE;
			break;
		default:
			continue;
		}
		for (unsigned k = 0; k < p->z.operand_count; k++)
			if (p->op[k].encoding == enc && p->op[k].type == ZYDIS_OPERAND_TYPE_REGISTER &&
			    gpr_of[p->op[k].reg.value] != 0xff && p->op[k].size != 8 * o->size)
				return false;
	}
	return true;
}

static bool address_agrees(const struct pair *p, const ZydisDecodedOperand *m)
{
	const struct insn *in = &p->in;
	bool is_rip = m->mem.base == ZYDIS_REGISTER_RIP || m->mem.base == ZYDIS_REGISTER_EIP;
	uint64_t mask = in->addrsize == 8 ? ~0ULL : (1ULL << 8 * in->addrsize) - 1;
	uint8_t index = gpr_of[m->mem.index];

	if (m->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
		index = (uint8_t)ZydisRegisterGetId(m->mem.index);
	return in->rip_rel == is_rip && in->base == gpr_of[m->mem.base] && in->index == index &&
	       (index == 0xff || in->scale == m->mem.scale) &&
	       ((uint64_t)in->disp & mask) == ((uint64_t)m->mem.disp.value & mask);
}

/* The segment that an override can change, in string instructions and XLAT too. */
static bool segment_agrees(const struct pair *p, const ZydisDecodedOperand *m)
{
	const struct insn *in = &p->in;
	uint8_t def = SEG_DS;

	for (unsigned i = 0; !m && i < p->z.operand_count; i++)
		if (p->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    (gpr_of[p->op[i].mem.base] == 6 || gpr_of[p->op[i].mem.base] == 3))
			m = &p->op[i];
	if (!m || m->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
		return true;
	uint8_t seg = in->seg == SEG_NONE ? def : in->seg;

	/* In 64-bit mode ES CS SS DS are all flat: which of them it is tells nothing. */
	if (in->mode == 64 && seg < SEG_FS && seg_of[m->mem.segment] < SEG_FS)
		return true;
	return seg == seg_of[m->mem.segment];
}

static bool immediates_agree(const struct pair *p)
{
	const struct insn *in = &p->in;
	uint64_t mask = ~0ULL, imm = p->z.raw.imm[0].value.u;

	if (!p->z.raw.imm[0].size)
		return true; /* its place is compared */
	/* Signed or not is the same when the operation is as wide as the immediate. */
	if (!p->z.raw.imm[0].is_relative && !p->z.raw.imm[0].is_signed &&
	    p->z.operand_width == p->z.raw.imm[0].size && p->z.operand_width < 64)
		mask = (1ULL << p->z.operand_width) - 1;
	return ((uint64_t)in->imm & mask) == (imm & mask) &&
	       (!p->z.raw.imm[1].size || (uint32_t)in->imm2 == p->z.raw.imm[1].value.u);
}

/* Must the memory operand be aligned?  Legacy forms of exception classes 1, 2 and 4 with 16 bytes; VEX of class 1. */
static bool zydis_is_aligned(const struct pair *p, const ZydisDecodedOperand *m)
{
	ZydisExceptionClass c = p->z.meta.exception_class;

	if (c == ZYDIS_EXCEPTION_CLASS_AVX1)
		return true;
	return m->size == 128 && (c == ZYDIS_EXCEPTION_CLASS_SSE1 ||
				  c == ZYDIS_EXCEPTION_CLASS_SSE2 || c == ZYDIS_EXCEPTION_CLASS_SSE4);
}

static uint32_t compare_memory(const struct pair *p)
{
	const struct insn *in = &p->in;
	const ZydisDecodedOperand *m = zydis_mem(p);
	uint32_t diff = 0;

	if (!segment_agrees(p, m))
		diff |= 1u << A_SEG;
	if (p->z.address_width != 8 * in->addrsize)
		diff |= 1u << A_ADDRESS;
	if (p->z.raw.disp.size != 8 * in->disp_len ||
	    (in->disp_len && p->z.raw.disp.offset != in->disp_off))
		diff |= 1u << A_DISP_PLACE;
	if (!m || !in->has_mem)
		return diff | (!m != !in->has_mem ? 1u << A_ADDRESS : 0);
	if (!address_agrees(p, m))
		diff |= 1u << A_ADDRESS;
	if (m->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
		return diff | (in->mem_access ? 1u << A_MEM_ACCESS : 0);
	if (in->mem_size * 8 != m->size)
		diff |= 1u << A_MEM_SIZE;
	if (in->mem_access != access_of(m->actions))
		diff |= 1u << A_MEM_ACCESS;
	if (!(in->desc->attr & INSN_ALIGNED) != !zydis_is_aligned(p, m))
		diff |= 1u << A_ALIGNED;
	return diff;
}

/* Decodes @bytes (BYTES of them) with both; returns the aspects in which they differ, 1 << enum aspect. */
static uint32_t compare(struct pair *p, const uint8_t *bytes, unsigned mode)
{
	static const ZydisAccessedFlags no_flags;
	const ZydisDecoder *decoder = &decoders[mode / 32];
	ZydisDecoderContext ctx;
	uint16_t reads, writes;
	uint32_t diff;

	p->bytes = bytes;
	p->mode = mode;
	p->r = insn_decode(&p->in, bytes, BYTES, mode);
	p->zr = ZydisDecoderDecodeInstruction(decoder, &ctx, bytes, BYTES, &p->z);
	if (ZYAN_FAILED(p->zr) || p->r != DECODE_OK) {
		if (ZYAN_FAILED(p->zr) && p->r == DECODE_OK)
			return 1u << A_WE_ACCEPT;
		if (ZYAN_SUCCESS(p->zr))
			return 1u << A_WE_REFUSE;
		/*
		 * Where the opcode is the 15th byte and does not exist, Zydis refuses it unseen of its ModRM; the
		 * CPU fetches that first and raises #GP (67 67 67 41 2e 48 65 65 2e 41 2e c4 41 40 7e: so on Zen 5).
		 */
		if (p->r == DECODE_LONG && p->zr == ZYDIS_STATUS_DECODING_ERROR)
			return 0;
		return (p->r == DECODE_LONG) != (p->zr == ZYDIS_STATUS_INSTRUCTION_TOO_LONG)
			       ? 1u << A_TOO_LONG
			       : 0;
	}
	if (ZYAN_FAILED(ZydisDecoderDecodeOperands(decoder, &ctx, &p->z, p->op, p->z.operand_count)))
		fail_msg("Zydis decodes an instruction but not its operands");
	if (p->in.len != p->z.length)
		return 1u << A_LEN;

	const struct insn *in = &p->in;
	const ZydisAccessedFlags *f = p->z.cpu_flags ? p->z.cpu_flags : &no_flags;
	unsigned tested = f->tested & FL_ARITH;
	unsigned written = (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_ARITH;

	diff = compare_memory(p);
	if (!gpr_sizes_agree(p))
		diff |= 1u << A_GPR_SIZE;
	zydis_gprs(p, &reads, &writes);
	if (in->gpr_read != reads)
		diff |= 1u << A_GPR_READ;
	if (in->gpr_write != writes)
		diff |= 1u << A_GPR_WRITE;
	if (in->desc->flags_read != tested)
		diff |= 1u << A_FLAGS_READ;
	if (in->desc->flags_written & ~written)
		diff |= 1u << A_FLAGS_WRITTEN_MORE;
	if (written & ~in->desc->flags_written)
		diff |= 1u << A_FLAGS_WRITTEN_LESS;
	if (!immediates_agree(p))
		diff |= 1u << A_IMM;
	if (8 * in->imm_len != p->z.raw.imm[0].size + p->z.raw.imm[1].size ||
	    (in->imm_len && in->imm_off != p->z.raw.imm[0].offset))
		diff |= 1u << A_IMM_PLACE;
	return diff;
}

/* ---- differences that are meant ---- */

/* Extensions that are not shown to guests.  EVEX, MVEX, XOP and 3DNow! are told by their encoding. */
static bool is_not_shown(const struct pair *p)
{
	static const ZydisISASet sets[] = {
		ZYDIS_ISA_SET_AMD3DNOW,	    ZYDIS_ISA_SET_AMD_INVLPGB, ZYDIS_ISA_SET_AMX_BF16,
		ZYDIS_ISA_SET_AMX_INT8,	    ZYDIS_ISA_SET_AMX_TILE,    ZYDIS_ISA_SET_AVX512BW_KOP,
		ZYDIS_ISA_SET_AVX512DQ_KOP, ZYDIS_ISA_SET_AVX512F_KOP, ZYDIS_ISA_SET_AVX_VNNI,
		ZYDIS_ISA_SET_CET,	    ZYDIS_ISA_SET_ENQCMD,      ZYDIS_ISA_SET_FMA4,
		ZYDIS_ISA_SET_HRESET,	    ZYDIS_ISA_SET_KEYLOCKER,   ZYDIS_ISA_SET_KEYLOCKER_WIDE,
		ZYDIS_ISA_SET_KNCE,	    ZYDIS_ISA_SET_KNCJKBR,     ZYDIS_ISA_SET_KNCV,
		ZYDIS_ISA_SET_MCOMMIT,	    ZYDIS_ISA_SET_MONITORX,    ZYDIS_ISA_SET_MOVDIR,
		ZYDIS_ISA_SET_PADLOCK_ACE,  ZYDIS_ISA_SET_PADLOCK_PHE, ZYDIS_ISA_SET_PADLOCK_PMM,
		ZYDIS_ISA_SET_PADLOCK_RNG,  ZYDIS_ISA_SET_PCONFIG,     ZYDIS_ISA_SET_PKU,
		ZYDIS_ISA_SET_PT,	    ZYDIS_ISA_SET_RDPRU,       ZYDIS_ISA_SET_RTM,
		ZYDIS_ISA_SET_SERIALIZE,    ZYDIS_ISA_SET_SGX,	       ZYDIS_ISA_SET_SGX_ENCLV,
		ZYDIS_ISA_SET_SMX,	    ZYDIS_ISA_SET_SNP,	       ZYDIS_ISA_SET_SSE4A,
		ZYDIS_ISA_SET_SVM,	    ZYDIS_ISA_SET_TDX,	       ZYDIS_ISA_SET_TSX_LDTRK,
		ZYDIS_ISA_SET_UINTR,	    ZYDIS_ISA_SET_VMFUNC,      ZYDIS_ISA_SET_VTX,
		ZYDIS_ISA_SET_WAITPKG,	    ZYDIS_ISA_SET_XOP,
	};

	if (p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	    p->z.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return true;
	for (unsigned i = 0; i < ARRAY_SIZE(sets); i++)
		if (p->z.meta.isa_set == sets[i])
			return true;
	return false;
}

/* Registers that don't exist or must differ: the handlers raise #UD, after the checks of insn_check(). */
static bool is_register_checked_later(const struct pair *p)
{
	const struct insn *in = &p->in;
	unsigned seg = in->reg & 7;

	switch (in->desc->id) {
	case I_MOV_R_CR:
	case I_MOV_CR_R:
		return in->reg > 8 || !(1 << in->reg & 0x11d); /* there are 0 2 3 4 8 */
	case I_MOV_R_DR:
	case I_MOV_DR_R:
		return in->reg > 7;
	case I_MOV_R_SEG:
		return seg >= SEG_COUNT;
	case I_MOV_SEG_R:
		return seg >= SEG_COUNT || seg == SEG_CS;
	case I_VGATHER:
		return in->reg == in->index || in->reg == in->vvvv || in->index == in->vvvv;
	default:
		return false;
	}
}

static bool is_undefined_opcode(const struct pair *p)
{
	return p->r == DECODE_UD && !p->in.desc;
}

static bool is_hint(const struct pair *p)
{
	return p->in.desc->attr & INSN_NO_MEM_ACCESS && p->in.desc->id != I_LEA;
}

static bool is_nop(const struct pair *p)
{
	return p->in.desc->id == I_NOP && p->in.has_modrm;
}

static bool is_ud(const struct pair *p)
{
	return p->in.desc->id == I_UD;
}

static bool is_clflush(const struct pair *p)
{
	return p->in.desc->id == I_CLFLUSH;
}

/* Does our set of registers leave out any that Zydis has?  Too many are harmless, too few are not. */
static bool misses_registers(const struct pair *p)
{
	uint16_t reads, writes;

	zydis_gprs(p, &reads, &writes);
	return reads & ~p->in.gpr_read || writes & ~p->in.gpr_write;
}

static bool is_string(const struct pair *p)
{
	switch (p->in.desc->id) {
	case I_MOVS:
	case I_STOS:
	case I_LODS:
	case I_CMPS:
	case I_SCAS:
	case I_INS:
	case I_OUTS:
		return !misses_registers(p);
	default:
		return false;
	}
}

static bool is_repeated_compare(const struct pair *p)
{
	return p->in.desc->id == I_CMPS || p->in.desc->id == I_SCAS;
}

static bool reads_implied_more(const struct pair *p)
{
	switch (p->in.desc->id) {
	case I_MUL:
	case I_IMUL1:
	case I_CDQ:
	case I_PUSHA:
	case I_POPA:
		return !misses_registers(p);
	default:
		return false;
	}
}

static bool is_bit_scan(const struct pair *p)
{
	return (p->in.desc->id == I_BSF || p->in.desc->id == I_BSR) && !misses_registers(p);
}

static bool is_low_word_source(const struct pair *p)
{
	return p->in.desc->id == I_LAR || p->in.desc->id == I_LSL ||
	       (p->in.desc->id == I_MOVSXD && p->in.opsize == 2);
}

static bool is_movmsk(const struct pair *p)
{
	return p->in.rex_w && (p->in.desc->id == I_MOVMSKPS || p->in.desc->id == I_MOVMSKPD);
}

static bool is_unaligned_by_definition(const struct pair *p)
{
	switch (p->in.desc->id) {
	case I_MOVUPS:
	case I_MOVUPD:
	case I_MOVDQU:
	case I_LDDQU:
	case I_PCMPESTRI:
	case I_PCMPESTRM:
	case I_PCMPISTRI:
	case I_PCMPISTRM:
		return !(p->in.desc->attr & INSN_ALIGNED);
	default:
		return false;
	}
}

static bool is_sha(const struct pair *p)
{
	return p->z.meta.isa_set == ZYDIS_ISA_SET_SHA && !(p->in.desc->attr & INSN_ALIGNED);
}

static bool is_aligned_without_class(const struct pair *p)
{
	return (p->in.desc->id == I_CVTPD2PI || p->in.desc->id == I_CVTTPD2PI ||
		p->in.desc->id == I_CMPXCHG16B) &&
	       p->in.desc->attr & INSN_ALIGNED;
}

static bool is_undefined_kept(const struct pair *p)
{
	switch (p->in.desc->id) {
	case I_BT:
	case I_BTS:
	case I_BTR:
	case I_BTC:
		return p->in.desc->flags_written == FL_CF;
	case I_DIV:
	case I_IDIV:
		return !p->in.desc->flags_written;
	case I_MUL:
	case I_IMUL1:
	case I_IMUL:
		return p->in.desc->flags_written == (FL_CF | FL_OF);
	case I_LZCNT:
	case I_TZCNT:
		return p->in.desc->flags_written == (FL_CF | FL_ZF);
	default:
		return false;
	}
}

/* mod = 0, base = 5: no base, REX.B or not. */
static bool is_sib_without_base(const struct pair *p)
{
	const ZydisDecodedOperand *m = zydis_mem(p);

	return m && m->mem.base == ZYDIS_REGISTER_R13D && p->in.mod == 0 &&
	       (p->in.modrm & 7) == 4 && p->in.base == 0xff;
}

static bool is_vptest(const struct pair *p)
{
	return p->in.vex && (p->in.desc->id == I_PTEST || p->in.desc->id == I_VTESTPS ||
			     p->in.desc->id == I_VTESTPD);
}

static bool is_vmcall(const struct pair *p)
{
	return p->in.desc->id == I_VMCALL;
}

static bool is_syscall(const struct pair *p)
{
	return p->in.desc->id == I_SYSCALL;
}

static bool is_rep_xchg_r8(const struct pair *p)
{
	return p->z.mnemonic == ZYDIS_MNEMONIC_PAUSE && p->in.rex_b && p->in.rep;
}

struct known {
	uint32_t aspects; /* which it covers, 1 << enum aspect */
	bool (*when)(const struct pair *p);
	const char *reason;
};

#define A(x) (1u << A_##x)
static const struct known known[] = {
	{ A(WE_REFUSE), is_not_shown, "an extension that no model shows" },
	{ A(WE_ACCEPT), is_register_checked_later, "the handlers of these forms raise the #UD" },
	{ A(TOO_LONG), is_undefined_opcode,
	  "an opcode that is not there is #UD, its operands are not looked at" },
	{ A(MEM_SIZE) | A(MEM_ACCESS), is_hint,
	  "touches no memory, or (XSAVE) as much as XCR0 says: the handler's" },
	{ A(GPR_SIZE) | A(GPR_READ), is_nop, "a hint reads nothing" },
	{ A(GPR_SIZE), is_ud, "UD0, UD1 raise #UD and read nothing" },
	{ A(MEM_SIZE), is_clflush, "one byte is checked, its cache line is meant" },
	{ A(GPR_READ) | A(GPR_WRITE), is_string,
	  "as with REP, which may keep rAX (LODS); Zydis forgets that rSI, rDI change" },
	{ A(FLAGS_READ), is_repeated_compare, "REP with rCX = 0 keeps the flags" },
	{ A(GPR_READ), reads_implied_more, "what 16-bit forms merge or push counts as read in all sizes" },
	{ A(GPR_READ), is_bit_scan, "a source of 0 keeps the destination (AMD's manual; Intel's CPUs)" },
	{ A(GPR_SIZE), is_low_word_source,
	  "only the low 16 bits of a register source matter (LAR, LSL, MOVSXD r16)" },
	{ A(GPR_SIZE), is_movmsk, "the result is zero-extended with REX.W or without" },
	{ A(ALIGNED), is_unaligned_by_definition,
	  "exception class 4 or 1, but excepted by name (SDM vol. 2, 2.4)" },
	{ A(ALIGNED), is_sha, "AMD's CPUs don't check (seen on Zen 3): the host decides" },
	{ A(ALIGNED), is_aligned_without_class,
	  "SDM vol. 3 table 23-4, CMPXCHG16B's page; Zydis gives another class" },
	{ A(GPR_READ) | A(ADDRESS), is_sib_without_base,
	  "Zydis 4.0 takes r13d as base; SDM table 2-5 and CPUs do not" },
	{ A(FLAGS_WRITTEN_MORE), is_vptest,
	  "OF SF AF PF are cleared (SDM VPTEST, VTESTPS); Zydis 4.0 forgets it" },
	{ A(FLAGS_WRITTEN_LESS), is_vmcall, "a hypercall keeps the flags; Zydis means VMX' own result" },
	{ A(FLAGS_WRITTEN_LESS), is_undefined_kept,
	  "undefined, and Intel's or AMD's CPUs keep them: nothing before may be taken for dead" },
	{ A(FLAGS_READ), is_syscall, "r11 gets the flags; Zydis forgets it" },
	{ A(GPR_READ) | A(GPR_WRITE), is_rep_xchg_r8,
	  "F3 41 90 is XCHG r8, rAX on CPUs (seen on Zen 3), not PAUSE" },
};
#undef A
static uint64_t known_used[ARRAY_SIZE(known)];

/* ---- running over bytes ---- */

#define NAMES (ZYDIS_MNEMONIC_MAX_VALUE + 1 + I_COUNT)
static uint32_t found[ASPECTS][NAMES]; /* how often, by Zydis' mnemonic, else by ours */
static unsigned nfound;
static uint64_t ndecoded, nvalid;

static void report(const struct pair *p, unsigned aspect)
{
	bool is_valid = ZYAN_SUCCESS(p->zr), is_ours = p->r == DECODE_OK;
	unsigned name = is_valid ? p->z.mnemonic
				 : ZYDIS_MNEMONIC_MAX_VALUE + 1 + (is_ours ? p->in.desc->id : 0u);
	uint16_t reads = 0, writes = 0;

	if (found[aspect][name]++)
		return;
	nfound++;
	print_error("%s: %u bit, ", aspect_names[aspect], p->mode);
	for (unsigned i = 0; i < 15; i++)
		print_error("%02x ", p->bytes[i]);
	print_error(": %s/%s", is_valid ? ZydisMnemonicGetString(p->z.mnemonic) : "-",
		    is_ours ? insn_name(p->in.desc->id) : "-");
	if (!is_valid || !is_ours) {
		print_error(", isa %s, status %#x\n",
			    is_valid ? ZydisISASetGetString(p->z.meta.isa_set) : "-", (unsigned)p->zr);
		return;
	}
	const ZydisDecodedOperand *m = zydis_mem(p);
	const ZydisAccessedFlags *f = p->z.cpu_flags;

	zydis_gprs(p, &reads, &writes);
	print_error(", len %u/%u, mem %u/%u %u/%u, r %#x/%#x w %#x/%#x, fr %#x/%#x fw %#x/%#x\n",
		    p->z.length, p->in.len, m ? m->size / 8u : 0, p->in.mem_size,
		    m ? access_of(m->actions) : 0, p->in.mem_access, reads, p->in.gpr_read, writes,
		    p->in.gpr_write, f ? f->tested & FL_ARITH : 0, p->in.desc->flags_read,
		    f ? (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_ARITH : 0,
		    p->in.desc->flags_written);
}

static void check(const uint8_t *bytes, unsigned mode)
{
	struct pair p;
	uint32_t diff = compare(&p, bytes, mode);

	ndecoded++;
	nvalid += p.r == DECODE_OK;
	for (unsigned i = 0; diff && i < ARRAY_SIZE(known); i++)
		if (diff & known[i].aspects && known[i].when(&p)) {
			diff &= ~known[i].aspects;
			known_used[i]++;
		}
	for (unsigned a = 0; diff; a++, diff >>= 1)
		if (diff & 1)
			report(&p, a);
}

static uint64_t rng = 0x243f6a8885a308d3;
static uint64_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng * 0x2545f4914f6cdd1d;
}

/* All ModRM bytes after @n bytes of prefixes and opcode; what follows changes each time. */
static void check_modrms(uint8_t *b, unsigned n, unsigned mode)
{
	for (unsigned modrm = 0; modrm < 256; modrm++) {
		uint64_t x = rnd(), y = rnd();

		memcpy(b + n + 1, &x, 8);
		memcpy(b + n + 9, &y, 8);
		b[n] = (uint8_t)modrm;
		check(b, mode);
	}
}

static const unsigned modes[3] = { 16, 32, 64 };

static void legacy_encodings(void **state)
{
	static const struct {
		uint8_t n, b[3];
		bool only64;
	} prefixes[] = {
		{ 0, { 0 }, false },	      { 1, { 0x66 }, false },
		{ 1, { 0xf2 }, false },	      { 1, { 0xf3 }, false },
		{ 1, { 0x67 }, false },	      { 1, { 0xf0 }, false },
		{ 1, { 0x36 }, false },	      { 1, { 0x64 }, false },
		{ 2, { 0x66, 0xf2 }, false }, { 2, { 0xf3, 0x66 }, false },
		{ 2, { 0x66, 0x67 }, false }, { 2, { 0xf2, 0xf0 }, false },
		{ 1, { 0x48 }, true },	      { 1, { 0x47 }, true },
		{ 2, { 0x66, 0x48 }, true },  { 2, { 0xf3, 0x48 }, true },
		{ 2, { 0xf2, 0x4d }, true },  { 2, { 0x48, 0x66 }, true },
		{ 2, { 0x67, 0x45 }, true },
	};
	static const struct {
		uint8_t n, b[2];
	} maps[] = { { 0, { 0 } }, { 1, { 0x0f } }, { 2, { 0x0f, 0x38 } }, { 2, { 0x0f, 0x3a } } };
	uint8_t b[BYTES + 16];

	for (unsigned m = 0; m < 3; m++)
		for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++)
			for (unsigned k = 0;
			     k < ARRAY_SIZE(maps) && (!prefixes[p].only64 || modes[m] == 64); k++)
				for (unsigned op = 0; op < 256; op++) {
					unsigned n = prefixes[p].n + maps[k].n;

					memcpy(b, prefixes[p].b, prefixes[p].n);
					memcpy(b + prefixes[p].n, maps[k].b, maps[k].n);
					b[n] = (uint8_t)op;
					check_modrms(b, n + 1, modes[m]);
				}
}

/* VEX2 and VEX3: all of pp, L, W, and registers in the inverted fields at both ends. */
static void vex_encodings(void **state)
{
	static const uint8_t fields[] = { 0x78, 0x00, 0x38 }; /* vvvv: none, 15, 8 */
	uint8_t b[BYTES + 16];

	for (unsigned m = 0; m < 3; m++)
		for (unsigned map = 0; map < 5; map++) /* 0 and 4 are not there */
			for (unsigned op = 0; op < 256; op++)
				for (unsigned ppl = 0; ppl < 8; ppl++)
					for (unsigned w = 0; w < 2; w++)
						for (unsigned v = 0; v < ARRAY_SIZE(fields); v++) {
							b[0] = 0xc4;
							/* R X B none, or all where that is still VEX */
							b[1] = (uint8_t)(map | (modes[m] == 64 && v == 1
											? 0
											: 0xe0));
							b[2] = (uint8_t)(w << 7 | fields[v] | ppl);
							b[3] = (uint8_t)op;
							check_modrms(b, 4, modes[m]);
							if (map != 1 || w)
								continue;
							b[0] = 0xc5;
							b[1] = (uint8_t)(0x80 | fields[v] | ppl);
							b[2] = (uint8_t)op;
							check_modrms(b, 3, modes[m]);
						}
}

static void random_bytes(void **state)
{
	static const uint8_t usual[] = { 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e,
					 0x65, 0x0f, 0xc4, 0xc5, 0x48, 0x41 };
	const char *fixed = getenv("DECODE_TEST_SEED");
	uint64_t seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)time(NULL) * 0x9e3779b97f4a7c15;
	uint8_t b[BYTES];

	print_message("DECODE_TEST_SEED=%#" PRIx64 "\n", seed);
	rng = seed | 1;
	for (unsigned i = 0; i < 3000000; i++) {
		for (unsigned k = 0; k < BYTES; k += 8) {
			uint64_t x = rnd();

			memcpy(b + k, &x, 8);
		}
		for (unsigned k = 0; k < 13 && rnd() >> 62; k++)
			b[k] = usual[(rnd() >> 32) % ARRAY_SIZE(usual)];
		check(b, modes[i % 3]);
	}
}

/* All lengths around the limit; and less than all of an instruction is no instruction yet. */
static void lengths(void **state)
/* clang-format off */
{
	static const struct { uint8_t n, b[8]; } insns[] = {
		{ 1, { 0x90 } }, { 2, { 0x0f, 0xa2 } }, { 2, { 0x0f, 0x0f } }, { 2, { 0x01, 0xc8 } },
		{ 7, { 0x81, 0x40, 0x10, 1, 2, 3, 4 } }, { 3, { 0xc8, 1, 2 } }, { 6, { 0x8b, 0x84, 0x24, 1, 2, 3 } },
		{ 3, { 0x0f, 0x38, 0 } }, { 2, { 0xc5, 0xf8 } }, { 3, { 0xc4, 0xe2, 0x70 } }, { 1, { 0xa1 } },
		{ 1, { 0xea } }, { 1, { 0x06 } }, { 3, { 0xf0, 0x01, 0xc8 } },
	};
	uint8_t b[BYTES];
	struct insn whole, in;

	for (unsigned m = 0; m < 3; m++)
		for (unsigned i = 0; i < ARRAY_SIZE(insns); i++)
			for (unsigned prefixes = 0; prefixes < 16; prefixes++) {
				memset(b, 0x11, sizeof(b));
				memset(b, 0x2e, prefixes);
				memcpy(b + prefixes, insns[i].b, insns[i].n);
				check(b, modes[m]);
				if (insn_decode(&whole, b, BYTES, modes[m]) != DECODE_OK)
					continue;
				for (unsigned n = 0; n <= whole.len; n++)
					assert_int_equal(insn_decode(&in, b, n, modes[m]),
							 n == whole.len ? DECODE_OK : DECODE_MORE);
				assert_memory_equal(&in, &whole, sizeof(in));
			}
}
/* clang-format on */

/* Before the random bytes, so that it does not depend on them. */
static void every_known_difference_is_there(void **state)
{
	unsigned unused = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
		if (!known_used[i]) {
			print_error("no such difference: %s\n", known[i].reason);
			unused++;
		}
	assert_int_equal(unused, 0);
}

static void nothing_else_differs(void **state)
{
	print_message("%" PRIu64 " decoded, %" PRIu64 " valid\n", ndecoded, nvalid);
	assert_true(nvalid > ndecoded / 10);
	assert_int_equal(nfound, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(legacy_encodings),
		cmocka_unit_test(vex_encodings),
		cmocka_unit_test(lengths),
		cmocka_unit_test(every_known_difference_is_there),
		cmocka_unit_test(random_bytes),
		cmocka_unit_test(nothing_else_differs),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
