/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86 instruction decoder of the dbt engine.
 *
 * One table (insn.def) names every instruction that a guest may execute; anything not named is
 * #UD.  The decoder is pure: bytes in, struct insn out, no guest state read, no memory touched,
 * no allocation.  Prefixes, ModRM and immediates keep their byte offsets, because the re-encoder
 * (thunk interpreter and translator) rebuilds the instruction from them.
 *
 * Source: Intel SDM vol. 2 chapter 2 (format), appendix A (opcode map, operand codes);
 * AMD APM vol. 3.  AMD and Intel differ in a few encodings; the row says which is followed.
 */
#ifndef VIV_DBT_DECODE_H
#define VIV_DBT_DECODE_H

#include <stdbool.h>
#include <stdint.h>

#define INSN_MAX_LEN 15

/* Segment register numbers, as encoded. */
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT, SEG_NONE = 0xff };

/* Opcode maps. */
enum insn_map { MAP_1BYTE, MAP_0F, MAP_0F38, MAP_0F3A };

/* How the instruction is executed. */
enum insn_kind {
	/*
	 * The host executes the same instruction with registers renamed and the memory operand
	 * replaced by a checked pointer.  Everything about it is described by the row.
	 */
	INSN_NATIVE,
	/* Written by hand, user level: control flow, stack, strings, BCD ... */
	INSN_HAND,
	/* Written by hand, system level: segments, control registers, descriptor tables ... */
	INSN_SYSTEM,
};

/*
 * Identity.  INSN_HAND and INSN_SYSTEM rows have an id of their own per meaning; all INSN_NATIVE
 * rows have an id per mnemonic (I_ADD, I_MOVAPS ...).  insn_ids.def lists the names once:
 * X(NAME) gives I_NAME and its string.
 */
enum insn_id {
#define X(name) I_##name,
#include "engine/dbt/insn_ids.def"
#undef X
	I_COUNT
};

/* What an operand is (the manual's operand codes folded to what executing it needs). */
enum opnd_kind {
	OPND_NONE,
	OPND_GPR_REG,	 /* general register in ModRM.reg (Gb Gv Gy ...) */
	OPND_GPR_RM,	 /* general register or memory in ModRM.rm (Eb Ev Ey Rv M ...) */
	OPND_GPR_VVVV,	 /* general register in VEX.vvvv (By) */
	OPND_GPR_OPCODE, /* general register in opcode bits 2..0 + REX.B (Zv) */
	OPND_XMM_REG,	 /* vector register in ModRM.reg (Vx) */
	OPND_XMM_RM,	 /* vector register or memory in ModRM.rm (Wx, Ux) */
	OPND_XMM_VVVV,	 /* vector register in VEX.vvvv (Hx) */
	OPND_XMM_IS4,	 /* vector register in imm8[7:4] (Lx) */
	OPND_MMX_REG,	 /* Pq */
	OPND_MMX_RM,	 /* Qq, Nq */
	OPND_X87_RM,	 /* ST(i) or memory, opcodes D8..DF */
	OPND_SEG_REG,	 /* Sw */
	OPND_CR_REG,	 /* Cd */
	OPND_DR_REG,	 /* Dd */
	OPND_IMM,	 /* immediate in insn.imm (sign-extended as the instruction asks) */
	OPND_IMM2,	 /* second immediate: ENTER's level, far pointer's selector */
	OPND_REL,	 /* branch displacement in insn.imm */
	OPND_MOFFS,	 /* absolute offset in insn.disp (Ob, Ov) */
	OPND_FIXED_GPR,	 /* implied general register, number in opnd.reg (AL, rAX, CL, DX ...) */
	OPND_FIXED_SEG,	 /* implied segment register in opnd.reg (push es ...) */
	OPND_ONE,	 /* the constant 1 (D0/D1 shifts) */
	OPND_STR_SRC,	 /* DS:rSI with override (X) */
	OPND_STR_DST,	 /* ES:rDI (Y) */
};

enum { OPND_READ = 1, OPND_WRITE = 2, OPND_RW = 3 };

struct opnd {
	uint8_t kind;	/* enum opnd_kind */
	uint8_t access; /* OPND_READ | OPND_WRITE */
	uint8_t reg;	/* OPND_FIXED_*: register number */
	/*
	 * Size in bytes once decoded (in struct insn); in a row: enum opnd_size.
	 * GPR sizes are 1, 2, 4, 8; vectors 4, 8, 16, 32; memory whatever is accessed.
	 */
	uint16_t size;
};

/* Row attributes. */
enum {
	INSN_LOCKABLE = 1 << 0, /* LOCK allowed (with a memory destination), else #UD */
	INSN_NO64 = 1 << 1,	/* #UD in 64-bit mode */
	INSN_ONLY64 = 1 << 2,	/* #UD outside 64-bit mode */
	INSN_DEF64 = 1 << 3,	/* operand size defaults to 64 in 64-bit mode (push, pop ...) */
	INSN_FORCE64 = 1 << 4,	/* operand size is 64 in 64-bit mode whatever the prefixes */
	INSN_CPL0 = 1 << 5,	/* #GP(0) when CPL != 0 */
	INSN_NO_REAL = 1 << 6,	/* #UD in real and virtual-8086 mode */
	INSN_ALIGNED = 1 << 7,	/* memory operand must be aligned to its size, else #GP(0) */
	INSN_NO_MEM_ACCESS = 1 << 8, /* has ModRM memory form but touches no memory: LEA, NOP Ev,
				      * PREFETCHx */
	INSN_X87 = 1 << 9,	     /* #NM by CR0.EM|TS, #MF pending (waiting form) */
	INSN_X87_NOWAIT = 1 << 10,   /* with INSN_X87: FNINIT, FNSTSW ...: no #MF */
	INSN_MMX = 1 << 11,	     /* #UD by CR0.EM, #NM by CR0.TS, #MF pending */
	INSN_SSE = 1 << 12,	     /* #UD by CR0.EM or !CR4.OSFXSR, #NM by CR0.TS */
	INSN_AVX = 1 << 13,	     /* #UD unless CR4.OSXSAVE and XCR0[2:1] = 11, #NM by CR0.TS */
	INSN_VEX_W_GPR = 1 << 14, /* VEX instruction on general registers (BMI): no XCR0 check, but
				   * #UD in real and virtual-8086 mode */
	INSN_BRANCH = 1 << 15,	  /* may write RIP other than to the next instruction */
	INSN_ENDS_BLOCK = 1 << 16, /* changes mode, mapping, IF ...: a translation block ends after it */
	INSN_RM_REG_ONLY = 1 << 17, /* memory form is #UD */
	INSN_RM_MEM_ONLY = 1 << 18, /* register form is #UD */
	INSN_ZX32 = 1 << 19,	    /* the register destination is zero-extended even if not written
				   * (CMOVcc with false condition) */
	INSN_VSIB = 1 << 20,	    /* gather: the memory operand has a vector index */
	INSN_HIGH8_OK = 1 << 21,    /* has byte registers: without REX, 4..7 name AH CH DH BH */
};

/* Arithmetic flags, as in RFLAGS. */
#define FL_CF	 0x001
#define FL_PF	 0x004
#define FL_AF	 0x010
#define FL_ZF	 0x040
#define FL_SF	 0x080
#define FL_OF	 0x800
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

#define INSN_MAX_OPNDS 4

/* One row of the table. */
struct insn_desc {
	uint16_t id;  /* enum insn_id */
	uint8_t kind; /* enum insn_kind */
	uint8_t feature; /* enum cpu_feature (engine/cpuid.h): #UD when the guest CPU lacks it; 0: always there */
	uint32_t attr;			/* INSN_* */
	struct opnd op[INSN_MAX_OPNDS]; /* in manual order, destination first; implied ones included */
	uint16_t flags_read;		/* FL_* */
	uint16_t flags_written;		/* FL_*, undefined ones included */
	uint16_t gpr_read;  /* bit n: implied general register n is read (MUL: rAX ...) */
	uint16_t gpr_write; /* bit n: implied general register n is written */
};

/* One decoded instruction. */
struct insn {
	const struct insn_desc *desc;
	uint8_t len; /* 1..15 */
	uint8_t bytes[INSN_MAX_LEN];

	uint8_t map;	/* enum insn_map */
	uint8_t opcode; /* last opcode byte */
	uint8_t pp;	/* mandatory prefix that selected the row: 0, 0x66, 0xf3, 0xf2 */

	uint8_t opsize;	  /* effective operand size of "v" operands: 2, 4, 8 bytes */
	uint8_t addrsize; /* 2, 4, 8 bytes */
	uint8_t mode;	  /* 16, 32 or 64: the code-segment mode it was decoded for */

	bool has_rex, rex_w, rex_r, rex_x, rex_b; /* VEX carries these too (has_rex false) */
	bool lock, rep, repne; /* rep: F3 present, repne: F2 present (the last one of both counts) */
	bool opsize_prefix, addrsize_prefix;
	uint8_t vex;   /* 0: legacy encoding; 2 or 3: length of the VEX prefix */
	uint8_t vex_l; /* VEX.L: 0 = 128, 1 = 256 bit */
	uint8_t vvvv;  /* 0..15, already inverted; 0 when not VEX */

	bool has_modrm;
	uint8_t modrm, mod;
	uint8_t reg; /* ModRM.reg with REX.R/VEX.R */
	uint8_t rm;  /* ModRM.rm with REX.B/VEX.B (register form) */

	bool has_mem;  /* the ModRM names memory (also for LEA and friends), or OPND_MOFFS */
	bool rip_rel;  /* EA = address of the next instruction + disp */
	uint8_t seg;   /* effective segment of the memory operand (override or default SS/DS);
			 * in 64-bit mode ES CS SS DS overrides are ignored, FS GS are kept */
	uint8_t base;  /* 0..15 or 0xff: none */
	uint8_t index; /* 0..15 or 0xff: none (VSIB: vector register) */
	uint8_t scale; /* 1, 2, 4, 8 */
	int64_t disp;  /* sign-extended displacement; moffs: zero-extended */

	int64_t imm; /* sign-extended unless the operand is unsigned (imm8 of ENTER, I/O ...) */
	int32_t imm2;

	/* Byte offsets into bytes[], 0xff when absent. */
	uint8_t opcode_off, modrm_off, disp_off, imm_off;
	uint8_t disp_len, imm_len; /* bytes */

	struct opnd op[INSN_MAX_OPNDS]; /* sizes resolved to bytes */
	uint8_t nops;
	uint16_t mem_size;  /* bytes touched by the memory operand; 0 when none is touched */
	uint8_t mem_access; /* OPND_READ | OPND_WRITE; 0 when none is touched */
	uint16_t gpr_read;  /* every general register read: operands, address, implied */
	uint16_t gpr_write; /* every general register written (a partial write counts as both) */
};

/* Result of insn_decode. */
enum decode_result {
	DECODE_OK = 0,
	DECODE_UD,   /* not an instruction: #UD.  insn.len is how many bytes were looked at */
	DECODE_MORE, /* ran out of bytes before the end: fetch the next page and call again */
	DECODE_LONG, /* more than 15 bytes: #GP(0) */
};

/**
 * insn_decode() - decode one instruction.
 * @out: filled on DECODE_OK; on the others only len is meaningful
 * @code: the bytes, not necessarily all of one instruction
 * @avail: how many there are (more than 15 are not looked at)
 * @mode: 16, 32 or 64: CS.L/CS.D of the code segment
 *
 * Pure and thread-safe.  Does not check CPL, CPUID features or control registers: the caller does
 * from the row (insn_check in interp.h).  Does check LOCK legality, INSN_NO64/ONLY64 and
 * register/memory-only forms (DECODE_UD).
 */
enum decode_result insn_decode(struct insn *out, const uint8_t *code, unsigned avail, unsigned mode);

/** insn_is_locked() - is the memory operand accessed atomically: LOCK, or XCHG, which implies it? */
static inline bool insn_is_locked(const struct insn *in)
{
	return in->has_mem && (in->lock || in->desc->id == I_XCHG);
}

/** insn_name() - the mnemonic in lower case, for messages; never NULL. */
const char *insn_name(enum insn_id id);

#endif
