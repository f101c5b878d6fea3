/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Differential test: every user-level instruction against the host's own CPU.
 *
 * A case is one random instruction with a random state.  It runs natively (native.c) and on an executor of the
 * dbt engine, in a guest with 64-bit page tables that shows the same addresses; general registers, flags
 * (undefined ones too: it is the same CPU), x87, SSE and AVX state, memory, RIP and the fault with its error
 * code and CR2 must be equal.
 *
 * Instructions come from the decoder: start-up tries every opcode of every map with every prefix, keeps
 * what it knows as user-level (templates, grouped by row of the table), and each case takes a row, one of
 * its encodings, and random registers, prefixes, addressing and immediates.
 *
 * Outside of strict mode (--no-strict) most cases have a second instruction, from a list, that uses or writes flags.
 * An exception of the first may then show other arithmetic flags if none of them is used before it is written:
 * the one thing in which the modes differ.
 *
 * A case depends only on --seed and its number:  difftest --seed S --first N --cases 1  repeats one.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <sys/syscall.h>

/* The engine's names of these are for its own files. */
#define memcpy	dt_memcpy_unused
#define memmove dt_memmove_unused
#define memset	dt_memset_unused
#define memcmp	dt_memcmp_unused
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"
#undef memcpy
#undef memmove
#undef memset
#undef memcmp

#include "guest.h"
#include "native.h"

/* ---- random numbers: xoshiro256**, seeded by SplitMix64 (Blackman, Vigna) ---- */

static uint64_t rng[4];

static uint64_t splitmix(uint64_t *x)
{
	uint64_t z = *x += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static void rng_seed(uint64_t seed, uint64_t stream)
{
	uint64_t x = seed;

	x = splitmix(&x) ^ stream * 0xd1342543de82ef95;
	for (unsigned i = 0; i < 4; i++)
		rng[i] = splitmix(&x);
}

static uint64_t rnd(void)
{
	uint64_t r = rng[1] * 5, t = rng[1] << 17;

	r = (r << 7 | r >> 57) * 9;
	rng[2] ^= rng[0];
	rng[3] ^= rng[1];
	rng[1] ^= rng[2];
	rng[0] ^= rng[3];
	rng[2] ^= t;
	rng[3] = rng[3] << 45 | rng[3] >> 19;
	return r;
}

static unsigned below(unsigned n)
{
	return (unsigned)((rnd() >> 32) * n >> 32);
}

static bool chance(unsigned percent)
{
	return below(100) < percent;
}

static uint64_t edge_int(void)
/* clang-format off */
{
	static const uint64_t edges[] = {
		0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff, 0x10000,
		0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000,
		0x8000000000000001, 0x5555555555555555, 0xaaaaaaaaaaaaaaaa, 0x0123456789abcdef,
	};
	uint64_t v = edges[below(ARRAY_SIZE(edges))];

	return chance(30) ? -v : v;
}
/* clang-format on */

static uint64_t rnd_int(void)
{
	switch (below(4)) {
	case 0:
		return edge_int();
	case 1:
		return rnd() >> below(64);
	default:
		return rnd();
	}
}

static uint32_t rnd_float32(void)
{
	static const uint32_t edges[] = {
		0,	    0x80000000, 0x3f800000, 0xbf800000, 1,	    0x007fffff,
		0x00800000, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
		0xffffffff, 0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0x3effffff,
	};

	return chance(50) ? edges[below(ARRAY_SIZE(edges))] : (uint32_t)rnd();
}

static uint64_t rnd_float64(void)
/* clang-format off */
{
	static const uint64_t edges[] = {
		0, 1ULL << 63, 0x3ff0000000000000, 0xbff0000000000000, 1, 0x000fffffffffffff, 0x0010000000000000,
		0x7fefffffffffffff, 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000, 0x7ff0000000000001,
		0x41e0000000000000, 0xc1e0000000000000, 0x43e0000000000000, 0xc3e0000000000000, 0x3fe0000000000000,
		0x4008000000000000, 0x3fdfffffffffffff,
	};

	return chance(50) ? edges[below(ARRAY_SIZE(edges))] : rnd();
}
/* clang-format on */

static void rnd_vector(uint8_t *p, unsigned bytes)
{
	unsigned kind = below(6);

	for (unsigned i = 0; i < bytes; i += 8) {
		uint64_t v;

		switch (kind) {
		case 0:
			v = (uint64_t)rnd_float32() << 32 | rnd_float32();
			break;
		case 1:
			v = rnd_float64();
			break;
		case 2:
			v = edge_int();
			break;
		case 3:
			v = rnd() & rnd() & 0x8080808080808080;
			break;
		default:
			v = rnd();
			break;
		}
		memcpy(p + i, &v, 8);
	}
}

static void rnd_float80(uint8_t *p)
{
	static const uint16_t exps[] = { 0,	 1,	 0x3ffe, 0x3fff, 0x4000,
					 0x401e, 0x403e, 0x7ffe, 0x7fff };
	uint64_t m = chance(40) ? edge_int() : rnd();
	uint16_t e = chance(50) ? exps[below(ARRAY_SIZE(exps))] : (uint16_t)(0x3fff + below(80) - 40);

	if (chance(5))
		e = (uint16_t)rnd();
	if (chance(85) && e)
		m |= 1ULL << 63; /* normal */
	if (chance(20))
		m = 1ULL << 63;
	e |= chance(50) ? 0x8000 : 0;
	memcpy(p, &m, 8);
	memcpy(p + 8, &e, 2);
}

/* ---- the guest ---- */

static struct dt_guest guest;
static struct dbt_cpu *cpu;

/* An executor: the cpu is positioned at the instruction; on return it has been executed, or guest.vector holds
 * the exception it raised.  It may return early with RIP unchanged (REP); it is then called again. */
struct executor {
	const char *name;
	void (*run)(struct dbt_cpu *c);
};

static void run_translated(struct dbt_cpu *c)
{
	struct xlate_block *b = xlate_find(c, 0, false);

	c->xlate->is_watched = true;
	/* What follows the instruction is INT3, which is interpreted: the block ends before it. */
	if (b && !b->is_interp) {
		dbt_fpu_to_regs(c);
		unsigned exit = xlate_run(c, b);

		if (exit == XEXIT_LINK && c->s.rip == guest.start && guest.vector < 0) {
			/* A group of accesses that no single check covers. */
			b = xlate_find(c, xlate_link_extra(xlate_exit_link(c)), true);
			if (!b || b->is_interp) {
				interp_one(c);
				return;
			}
			dbt_fpu_to_regs(c);
			exit = xlate_run(c, b);
		}
		if (exit != XEXIT_INTERP || guest.vector >= 0)
			return;
		if (c->s.rip != guest.start)
			return;
	}
	interp_one(c);
}

static const struct executor executors[] = {
	{ "xlate", run_translated },
	{ "interp", interp_one },
};
static const struct executor *executor = &executors[1];

/* ---- templates ---- */

struct template
{
	uint8_t prefix; /* mandatory: 0, 66, F2, F3 */
	uint8_t map;
	uint8_t opcode;
	uint8_t modrm; /* reg and mod; all of it if is_exact */
	bool has_modrm, is_exact;
	uint8_t vex; /* VEX: pp, W and L are free where the row allows */
	uint8_t vex_pp, vex_w, vex_l;
};

#define MAX_TEMPLATES 96u
struct row {
	const struct insn_desc *desc;
	unsigned ntemplates;
	uint64_t seen; /* encodings offered to it */
	struct template t[MAX_TEMPLATES];
	uint64_t cases, faults;
};
#define MAX_ROWS 4096u
static struct row *rows;
static unsigned nrows;
static const char *only;
static unsigned mode = 64; /* bits of code */
static uint64_t code_base; /* of CS: RIP is relative to it */
static bool is_strict = true;

static bool is_near_branch(unsigned id)
/* clang-format off */
{
	switch (id) {
	case I_JCC: case I_JMP_REL: case I_JMP_IND: case I_CALL_REL: case I_CALL_IND: case I_RET:
	case I_LOOP: case I_LOOPE: case I_LOOPNE: case I_JCXZ:
		return true;
	default:
		return false;
	}
}
/* clang-format on */

/* Hand-written user-level instructions that a process may run natively with the same result. */
static bool is_comparable_hand(unsigned id)
/* clang-format off */
{
	switch (id) {
	case I_JCC: case I_JMP_REL: case I_JMP_IND: case I_CALL_REL: case I_CALL_IND: case I_RET:
	case I_LOOP: case I_LOOPE: case I_LOOPNE: case I_JCXZ:
	case I_PUSH_REG: case I_POP_REG: case I_PUSH_RM: case I_POP_RM: case I_PUSH_IMM: case I_PUSHF: case I_POPF:
	case I_PUSHA: case I_POPA: case I_ENTER: case I_LEAVE:
	case I_AAA: case I_AAS: case I_AAM: case I_AAD: case I_DAA: case I_DAS: case I_BOUND: case I_SALC:
	case I_MOVS: case I_STOS: case I_LODS: case I_CMPS: case I_SCAS:
	case I_XLAT: case I_LEA: case I_MOV_MOFFS: case I_NOP: case I_PAUSE: case I_CLD: case I_STD: case I_UD:
	case I_CMPXCHG8B: case I_CMPXCHG16B: case I_MASKMOV: case I_VMASKMOV: case I_VGATHER:
	case I_FENCE: case I_CLFLUSH: case I_PREFETCH:
	case I_FNSTENV: case I_FLDENV: case I_FNSAVE: case I_FRSTOR: case I_FXSAVE: case I_FXRSTOR:
	case I_FWAIT: case I_EMMS: case I_XSAVE: case I_XRSTOR: case I_LDMXCSR: case I_MOVNTI:
	case I_VZEROUPPER: case I_VZEROALL: case I_RDFSBASE: case I_RDGSBASE:
		return true;
	case I_XSAVEC: /* which parts of the area are looked at is known of Intel's CPUs only */
		return !guest.vm->model.is_amd;
	default:
		return false;
	}
}
/* clang-format on */

static bool is_comparable(const struct insn *in)
{
	bool is_amd = guest.vm->model.is_amd;

	/* Where vendors differ and the engine follows Intel: 66H on near branches; 0F 0D with a register. */
	if (is_amd && mode == 64 && is_near_branch(in->desc->id) && in->opsize_prefix)
		return false;
	if (is_amd && in->map == MAP_0F && in->opcode == 0x0d && !in->has_mem)
		return false;
	/* VPINSRQ, VPEXTRQ outside of 64-bit mode: W is ignored, or #UD. */
	if (is_amd && mode != 64 && in->vex == 3 && in->bytes[in->opcode_off - 1] & 0x80 &&
	    (in->desc->id == I_PINSRD || in->desc->id == I_PEXTRD))
		return false;
	return cpu_has(&guest.vm->model, in->desc->feature) &&
	       (in->desc->kind == INSN_NATIVE ||
		(in->desc->kind == INSN_HAND && is_comparable_hand(in->desc->id)));
}

static void offer(const struct template *t, const struct insn *in)
{
	struct row *r;
	unsigned i;

	if (!is_comparable(in) || (only && strcmp(only, insn_name(in->desc->id))))
		return;
	for (i = 0; i < nrows && rows[i].desc != in->desc; i++)
		;
	r = &rows[i];
	if (i == nrows) {
		if (nrows == MAX_ROWS) {
			fprintf(stderr, "difftest: more than %u rows\n", MAX_ROWS);
			exit(2);
		}
		nrows++;
		r->desc = in->desc;
	}
	r->seen++;
	if (r->ntemplates < MAX_TEMPLATES) {
		r->t[r->ntemplates++] = *t;
	} else {
		/* Reservoir sampling: every encoding has the same chance to be kept. */
		uint64_t slot = rnd() % r->seen;

		if (slot < MAX_TEMPLATES)
			r->t[slot] = *t;
	}
}

struct code {
	uint8_t b[32];
	unsigned n;
};

static void put(struct code *c, unsigned byte)
{
	c->b[c->n++] = (uint8_t)byte;
}

static void put_vex(struct code *c, const struct template *t, unsigned rxb, unsigned vvvv)
{
	put(c, 0xc4);
	put(c, (mode == 64 ? rxb & 7 : (rxb & 1) | 6) << 5 | t->map); /* R and X tell it from LDS and LES */
	put(c, t->vex_w << 7 | (vvvv & 15) << 3 | t->vex_l << 2 | t->vex_pp);
	put(c, t->opcode);
}

static void put_map(struct code *c, const struct template *t)
{
	if (t->map != MAP_1BYTE)
		put(c, 0x0f);
	if (t->map == MAP_0F38)
		put(c, 0x38);
	if (t->map == MAP_0F3A)
		put(c, 0x3a);
	put(c, t->opcode);
}

/* Tries @t as it stands, with zeros for what is free. */
static void try(const struct template *t)
{
	struct code c = { .n = 0 };
	struct template u = *t;
	struct insn in;

	if (t->vex) {
		put_vex(&c, t, 7, 15);
	} else {
		if (t->prefix)
			put(&c, t->prefix);
		put_map(&c, t);
	}
	put(&c, t->modrm);
	if (insn_decode(&in, c.b, sizeof(c.b), mode) != DECODE_OK) {
		/* Gathers need SIB; others may need a vvvv that is not 15. */
		if (!t->vex)
			return;
		c.n = 0;
		put_vex(&c, t, 7, 0);
		put(&c, (t->modrm & 0xf8u) | 4u);
		put(&c, 0x20);
		if (insn_decode(&in, c.b, sizeof(c.b), mode) != DECODE_OK)
			return;
	}
	u.has_modrm = in.has_modrm;
	if (!in.has_modrm && t->modrm)
		return; /* the same again */
	if (!t->vex && t->prefix && !in.pp && t->prefix != 0x66)
		return; /* the prefix means nothing (or REP, which is drawn separately) */
	offer(&u, &in);
}

static void build_rows(void)
{
	static const uint8_t prefixes[] = { 0, 0x66, 0xf3, 0xf2 };

	rng_seed(1, 1);
	for (unsigned map = MAP_1BYTE; map <= MAP_0F3A; map++)
		for (unsigned op = 0; op < 256; op++)
			for (unsigned p = 0; p < 4; p++) {
				/* x87 and the fixed encodings of 0F 01, 0F AE, 0F C7 need all of ModRM. */
				bool is_exact =
					(map == MAP_1BYTE && op >= 0xd8 && op <= 0xdf) ||
					(map == MAP_0F && (op == 0x01 || op == 0xae || op == 0xc7));

				for (unsigned reg = 0; reg < 8; reg++) {
					struct template t = { .prefix = prefixes[p],
							      .map = (uint8_t)map,
							      .opcode = (uint8_t)op };

					t.modrm = (uint8_t)(reg << 3);
					try(&t);
					for (unsigned rm = 0; rm < (is_exact ? 8 : 1); rm++) {
						t.modrm = (uint8_t)(0xc0 | reg << 3 | rm);
						t.is_exact = is_exact;
						try(&t);
					}
				}
			}
	for (unsigned map = MAP_0F; map <= MAP_0F3A; map++)
		for (unsigned op = 0; op < 256; op++)
			for (unsigned v = 0; v < 16; v++)
				for (unsigned m = 0; m < 16; m++) {
					struct template t = {
						.vex = 3,
						.map = (uint8_t)map,
						.opcode = (uint8_t)op,
						.vex_pp = v & 3,
						.vex_w = v >> 2 & 1,
						.vex_l = v >> 3,
						.modrm = (uint8_t)((m & 7) << 3 | (m & 8 ? 0xc0 : 0)),
					};

					try(&t);
				}
}

/* ---- a case ---- */

struct test_case {
	struct code c; /* the instruction and what follows it */
	struct insn in;
	struct insn next; /* desc is NULL: nothing follows */
	uint64_t rip;
	uint64_t target; /* address of the memory operand, 0: none */
	struct native_state before;
};

static bool is_string(unsigned id)
{
	return id == I_MOVS || id == I_STOS || id == I_LODS || id == I_CMPS || id == I_SCAS;
}

static bool is_stack(unsigned id)
/* clang-format off */
{
	switch (id) {
	case I_CALL_REL: case I_CALL_IND: case I_RET: case I_PUSH_REG: case I_POP_REG: case I_PUSH_RM: case I_POP_RM:
	case I_PUSH_IMM: case I_PUSHF: case I_POPF: case I_PUSHA: case I_POPA: case I_ENTER: case I_LEAVE:
		return true;
	default:
		return false;
	}
}
/* clang-format on */

/* Bytes of a random encoding of row @r; false: did not come out as an instruction of that row. */
static bool make_code(struct test_case *tc, const struct row *r)
{
	const struct template *t = &r->t[below(r->ntemplates)];
	struct code *c = &tc->c;
	unsigned modrm = t->modrm, id = r->desc->id;
	bool mem = t->has_modrm && modrm < 0xc0;
	uint64_t tail = chance(50) ? rnd() : rnd_int();

	c->n = 0;
	if (mode == 64 && chance(4))
		put(c, chance(50) ? 0x64 : 0x65);
	else if (chance(mode == 64 ? 2 : 8))
		put(c, mode == 32 && chance(25) ? 0x2e : chance(50) ? 0x36 : 0x3e);
	if (mem && r->desc->attr & INSN_LOCKABLE && chance(15))
		put(c, 0xf0);
	if (chance(6) && id != I_JCC && id != I_JMP_REL) /* 67H */
		put(c, 0x67);
	/* REP, or what means nothing */
	if (is_string(id) ? chance(60) : !t->vex && !t->prefix && chance(4))
		put(c, chance(50) ? 0xf3 : 0xf2);
	if (!t->is_exact && t->has_modrm)
		modrm = (modrm & 0xc0) | (unsigned)(rnd() & 0x3f);
	if (t->has_modrm && !t->vex && below(4) == 0)
		modrm = (modrm & 0xc7) | (t->modrm & 0x38);
	if (mem) {
		modrm |= below(3) << 6;
		if (r->desc->attr & INSN_VSIB)
			modrm = (modrm & 0xf8) | 4;
	}
	if (t->vex) {
		put_vex(c, t, (unsigned)rnd(), (unsigned)(chance(20) ? 15 : rnd()));
	} else {
		/* The operand size prefix where it is not part of the opcode */
		if (!t->prefix && chance(12))
			put(c, 0x66);
		if (t->prefix)
			put(c, t->prefix);
		if (mode == 64 && chance(60))
			put(c, 0x40 | (unsigned)(rnd() & 15));
		put_map(c, t);
	}
	if (t->has_modrm) {
		put(c, modrm);
		if (mem && (modrm & 7) == 4)
			put(c, (unsigned)rnd());
	}
	memcpy(c->b + c->n, &tail, 8);
	tail = rnd_int();
	memcpy(c->b + c->n + 8, &tail, 4);
	if (insn_decode(&tc->in, c->b, INSN_MAX_LEN, mode) != DECODE_OK || tc->in.desc != r->desc ||
	    !is_comparable(&tc->in))
		return false;
	if (is_string(id) && tc->in.opsize_prefix && tc->in.rex_w)
		return false;
	c->n = tc->in.len;
	return true;
}

/* Where memory operands go: mostly around the ends of pages. */
static uint64_t rnd_target(unsigned size, unsigned align)
{
	static const uint64_t ends[] = { 0, 0x1000, 0x1000, 0x2000, 0x3000 };
	uint64_t va;

	switch (below(8)) {
	case 0:
	case 1:
	case 2:
		va = ARENA_VA + ends[below(ARRAY_SIZE(ends))] - size + below(2 * size + 8) - 4;
		break;
	case 3:
		va = ARENA_VA + ends[below(ARRAY_SIZE(ends))];
		break;
	default:
		va = ARENA_VA + 0x40 + below(0x1f00);
		break;
	}
	if (align > 1 && chance(75))
		va &= ~(uint64_t)(align - 1);
	return va;
}

static uint64_t seg_base(unsigned seg)
{
	return mode != 64 || seg == SEG_FS || seg == SEG_GS ? cpu->s.seg[seg].base : 0;
}

static uint64_t addr_mask(const struct insn *in)
{
	return in->addrsize == 8 ? ~0ULL : in->addrsize == 4 ? 0xffffffff : 0xffff;
}

/* The effective address, written down a second time, independent of the engine. */
static uint64_t ea_of(const struct test_case *tc, const struct native_state *s)
{
	const struct insn *in = &tc->in;
	uint64_t ea = (uint64_t)in->disp;

	if (in->rip_rel)
		ea += tc->rip + in->len;
	if (in->base != 0xff)
		ea += s->gpr[in->base];
	if (in->index != 0xff && !(in->desc->attr & INSN_VSIB))
		ea += s->gpr[in->index] * in->scale;
	if (in->map == MAP_0F && !in->vex && (in->opcode & 0xe7) == 0xa3 && in->has_mem) {
		int64_t bit = (int64_t)s->gpr[in->reg];

		if (in->opsize == 2)
			bit = (int16_t)bit;
		if (in->opsize == 4)
			bit = (int32_t)bit;
		/* Unit by floor division. */
		bit = (bit - (int64_t)((uint64_t)bit % (in->opsize * 8u))) / 8;
		ea += (uint64_t)bit;
	}
	return (ea & addr_mask(in)) + seg_base(in->seg);
}

static bool is_canonical(uint64_t va)
{
	return (uint64_t)((int64_t)va >> 47) + 1 <= 1;
}

/* May the process touch [va, +len) without harm?  The arena with its guard pages, or no address at all. */
static bool is_harmless(uint64_t va, uint64_t len)
{
	/* Nothing else of the process lies below 2G; above is AddressSanitizer's shadow, where there is one. */
	if (mode != 64)
		return va + len <= 0x70000000 && va <= 0x70000000 &&
		       (va + len <= CODE_VA - 4096 || va >= CODE_VA + 0x20000);
	if (!is_canonical(va) && !is_canonical(va + len))
		return true;
	return va >= ARENA_VA - 4096 && va + len <= ARENA_VA + ARENA_BYTES + 4096;
}

/* Does no string instruction that begins at @va leave the arena? */
static bool is_inside(uint64_t va)
{
	return va >= ARENA_VA + 320 && va <= ARENA_VA + ARENA_BYTES - 328;
}

static void patch_disp(struct test_case *tc, uint64_t disp)
{
	memcpy(tc->c.b + tc->in.disp_off, &disp, tc->in.disp_len);
	memcpy(tc->in.bytes + tc->in.disp_off, &disp, tc->in.disp_len);
	if (tc->in.disp_len == 8)
		tc->in.disp = (int64_t)disp;
	else
		tc->in.disp = tc->in.disp_len == 4   ? (int32_t)disp
			      : tc->in.disp_len == 2 ? (int16_t)disp
						     : (int8_t)disp;
	if (tc->in.desc->id == I_MOV_MOFFS)
		tc->in.disp &= (int64_t)addr_mask(&tc->in);
}

/* Registers such that the memory operand lies in the arena.  False: could not be arranged. */
static bool aim(struct test_case *tc)
{
	struct insn *in = &tc->in;
	struct native_state *s = &tc->before;
	unsigned id = in->desc->id, size = in->mem_size ? in->mem_size : 64,
		 align = size >= 16 ? size : 1;
	uint64_t ea;

	if (id == I_FXSAVE || id == I_FXRSTOR)
		align = 16, size = 512;
	if (id == I_XSAVE || id == I_XSAVEC || id == I_XRSTOR)
		align = 64, size = 832;
	if (id == I_LEA)
		return true;
	if (is_string(id)) {
		uint64_t mask = addr_mask(in), src = seg_base(in->seg < SEG_COUNT ? in->seg : SEG_DS),
			 dst = seg_base(SEG_ES);
		uint64_t from = rnd_target(64, 1),
			 to = chance(30) ? from + below(32) - 16 : rnd_target(64, 1);

		if (((from - src) | (to - dst)) & ~mask)
			return false;
		s->gpr[R_RSI] = (from - src) | (rnd() & ~mask);
		s->gpr[R_RDI] = (to - dst) | (rnd() & ~mask);
		if (in->rep || in->repne)
			s->gpr[R_RCX] = below(chance(20) ? 3 : 40) | (rnd() & ~mask);
		/* Of two operands that fault, CPUs take one or the other first. */
		if (id == I_CMPS && !is_inside(from) && !is_inside(to))
			return false;
		return is_harmless(to - 320, 640) && is_harmless(from - 320, 640);
	}
	if (is_stack(id)) {
		uint64_t ss = seg_base(SEG_SS), junk = mode == 16 ? rnd() & 0xffff0000 : 0;
		uint64_t sp = rnd_target(16, 1), bp = rnd_target(300, 1);

		s->gpr[R_RSP] = (sp - ss) | junk;
		if (id == I_ENTER || id == I_LEAVE)
			s->gpr[R_RBP] = (bp - ss) | junk;
		if (id == I_ENTER && (in->imm2 & 31) > 1 && !is_harmless(bp - 300, 300))
			return false;
		if (id == I_ENTER && mode != 16 && !is_harmless(sp - 300 - (uint16_t)in->imm, 300))
			return false;
		/* A fault in the middle leaves POPA's registers loaded or not, by CPU. */
		if (id == I_POPA && (sp - ARENA_VA >= ARENA_BYTES) !=
					    (sp + 8 * in->opsize - 1 - ARENA_VA >= ARENA_BYTES))
			return false;
		if (!is_harmless(sp - 400, 800))
			return false;
	}
	if (id == I_XLAT || id == I_MASKMOV) {
		tc->target = rnd_target(16, 1);
		uint64_t off = tc->target - seg_base(in->seg < SEG_COUNT ? in->seg : SEG_DS);

		if (off & ~addr_mask(in) || in->seg == SEG_FS || in->seg == SEG_GS)
			return false;
		if (id == I_XLAT)
			s->gpr[R_RBX] = off - (s->gpr[R_RAX] & 0xff);
		else
			s->gpr[R_RDI] = off;
		return true;
	}
	if (!in->has_mem)
		return true;

	tc->target = rnd_target(size, align);
	if (in->map == MAP_0F && !in->vex && (in->opcode & 0xe7) == 0xa3)
		s->gpr[in->reg] = chance(50) ? below(16384) - 8192ULL : below(64);
	ea = ea_of(tc, s);
	if (in->base != 0xff) {
		s->gpr[in->base] += tc->target - ea;
		if (id == I_POP_RM && in->base == R_RSP &&
		    !is_harmless(s->gpr[R_RSP] - 64 + seg_base(SEG_SS), 128))
			return false;
	} else if (in->index != 0xff && !(in->desc->attr & INSN_VSIB) && chance(80)) {
		s->gpr[in->index] += (tc->target - ea) / in->scale;
	} else {
		patch_disp(tc, (uint64_t)in->disp + tc->target - ea);
	}
	if (mode == 64 && in->addrsize == 4 && in->base != 0xff && chance(50))
		s->gpr[in->base] ^= rnd() << 32;
	if (mode != 64)
		for (unsigned i = 0; i < 16; i++)
			s->gpr[i] = (uint32_t)s->gpr[i];
	ea = ea_of(tc, s);
	if (!is_harmless(ea - (in->desc->attr & INSN_VSIB ? 3000 : 8),
			 (in->desc->attr & INSN_VSIB ? 6000u : 8u) + size))
		return false;
	if (is_stack(id) && mode != 16 && !is_harmless(s->gpr[R_RSP] - 64, 128))
		return false;
	tc->target = ea;
	return true;
}

static void fill_xsave(uint8_t *x)
{
	uint32_t mxcsr = 0x1f80;
	uint16_t fcw = 0x37f, fsw = 0;

	memset(x, 0, XSAVE_BYTES);
	if (chance(25))
		fcw = (uint16_t)(0x40 | (rnd() & 0xf3f) | (chance(70) ? 0x3f : 0));
	if (chance(50))
		fsw = (uint16_t)(rnd() & (chance(70) ? 0x7f00 : 0x7f7f));
	if ((fsw & ~fcw & 0x3f) && chance(80))
		fsw &= (uint16_t)~0x3f;
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080; /* ES, B */
	if (chance(40))
		mxcsr = (uint32_t)(rnd() & (chance(70) ? 0xe040 : 0xe07f)) | 0x1f80;
	if (chance(10))
		mxcsr = (uint32_t)(rnd() & 0xffff);
	memcpy(x, &fcw, 2);
	memcpy(x + 2, &fsw, 2);
	x[4] = (uint8_t)(chance(60) ? 0xff : rnd());
	memcpy(x + 24, &mxcsr, 4);
	for (unsigned i = 0; i < 8; i++)
		rnd_float80(x + 32 + 16 * i);
	for (unsigned i = 0; i < 16; i++) {
		rnd_vector(x + 160 + 16 * i, 16);
		rnd_vector(x + 576 + 16 * i, 16);
	}
	x[512] = 7;
	if (!guest.vm->model.is_amd && chance(10)) /* in use or not: compared on Intel's CPUs only */
		x[512] = (uint8_t)(rnd() & 7);
}

static uint64_t canonical(uint64_t va)
{
	return (uint64_t)((int64_t)(va << 16) >> 16);
}

/* State for the instruction. */
static bool make_state(struct test_case *tc)
{
	struct native_state *s = &tc->before;
	struct insn *in = &tc->in;
	unsigned id = in->desc->id;

	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = rnd_int();
	if (!native_keeps_rsp())
		s->gpr[R_RSP] = canonical(s->gpr[R_RSP]);
	if (chance(50))
		s->gpr[R_RDX] = chance(50) ? 0 : rnd() & 7; /* so that divisions succeed */
	s->rflags = (rnd() & FL_ARITH) | 2 | X86_FL_IF | (chance(25) ? X86_FL_DF : 0);
	fill_xsave(s->xsave);
	if (in->desc->attr & INSN_VSIB) /* small offsets */
		for (unsigned i = 0; i < 32; i += in->opcode & 1 ? 8 : 4) {
			int64_t off = (int64_t)below(256) - 128;
			uint8_t *p = i < 16 ? s->xsave + 160 + 16 * in->index + i
					    : s->xsave + 576 + 16 * in->index + i - 16;

			memcpy(p, &off, in->opcode & 1 ? 8 : 4);
		}
	if (!aim(tc))
		return false;
	if (mode != 64)
		for (unsigned i = 0; i < 16; i++)
			s->gpr[i] = (uint32_t)s->gpr[i];
	s->rip = tc->rip;
	if (id == I_XSAVE || id == I_XSAVEC || id == I_XRSTOR) {
		s->gpr[R_RAX] = (s->gpr[R_RAX] & ~0xffffffffULL) | (rnd() & 7);
		s->gpr[R_RDX] &= ~0xffffffffULL;
		tc->target = ea_of(tc, s);
		if (!is_harmless(tc->target, XSAVE_BYTES))
			return false;
	}
	return native_keeps_rsp() || s->gpr[R_RSP] == canonical(s->gpr[R_RSP]);
}

static uint64_t stack_va(const struct native_state *s)
{
	return (mode == 16 ? s->gpr[R_RSP] & 0xffff : s->gpr[R_RSP]) + seg_base(SEG_SS);
}

/* An XSAVE or FXSAVE area; of one that runs over an end of the arena what lies in it. */
static void fill_area(uint64_t off, uint8_t *arena, const uint8_t *x, unsigned len)
{
	/* What AMD's CPUs look at first was seen with whole areas only. */
	if (guest.vm->model.is_amd && off > ARENA_BYTES - len)
		return;
	for (unsigned i = 0; i < len; i++)
		if (off + i < ARENA_BYTES)
			arena[off + i] = x[i];
}

/* XSTATE_BV and XCOMP_BV without components that the host has enabled and the guest has not: valid for one of them. */
static void mask_header(uint64_t off, uint8_t *arena)
{
	uint32_t lo, hi;
	uint64_t v;

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	for (unsigned i = 512; i < 528; i += 8)
		if (off + i <= ARENA_BYTES - 8) {
			memcpy(&v, arena + off + i, 8);
			v &= ~(lo & ~guest.vm->model.xcr0_mask);
			memcpy(arena + off + i, &v, 8);
		}
}

/* Content of the memory operand. */
static void fill_operand(const struct test_case *tc, uint8_t *arena)
{
	uint64_t off = tc->target - ARENA_VA;
	unsigned id = tc->in.desc->id;
	uint8_t x[XSAVE_BYTES];

	if (id == I_RET || id == I_POPF) {
		uint64_t val = rnd() & ~(uint64_t)(X86_FL_TF | X86_FL_AC);

		if (id == I_RET)
			val = mode == 64 && chance(10) ? rnd() | 0x0000800000000000
						       : CODE_VA - code_base + 0x40 + below(0x300);
		off = stack_va(&tc->before) - ARENA_VA;
		if (off <= ARENA_BYTES - tc->in.opsize)
			memcpy(arena + off, &val, tc->in.opsize);
		return;
	}
	if (id == I_FXRSTOR || id == I_XRSTOR) {
		fill_xsave(x);
		x[512] = (uint8_t)(rnd() & 7);
		memset(x + 520, 0, 56);
		if (chance(5)) /* XCOMP_BV or reserved bytes */
			x[520 + below(56)] ^= 1u << below(8);
		if (chance(2))
			x[512] |= 0x10; /* MPX, which nobody has any more */
		if (chance(5))
			x[26] = 1; /* reserved bit of MXCSR */
		fill_area(off, arena, x, id == I_XRSTOR ? XSAVE_BYTES : 512);
		if (id == I_XRSTOR)
			mask_header(off, arena);
		return;
	}
	if (!tc->target || off > ARENA_BYTES - 64)
		return;
	if (id == I_JMP_IND || id == I_CALL_IND) {
		uint64_t to = CODE_VA - code_base + 0x40 + below(0x300);

		memcpy(arena + off, &to, 8);
	} else if (id == I_LDMXCSR) {
		fill_xsave(x);
		if (chance(5))
			x[26] = 1; /* reserved bit */
		memcpy(arena + off, x + 24, 4);
	} else if (tc->in.desc->attr & INSN_X87 && tc->in.mem_size == 10) {
		rnd_float80(arena + off);
	} else if ((id == I_CMPXCHG8B || id == I_CMPXCHG16B) && chance(50)) {
		unsigned half = id == I_CMPXCHG8B ? 4 : 8;

		memcpy(arena + off, &tc->before.gpr[R_RAX], half);
		memcpy(arena + off + half, &tc->before.gpr[R_RDX], half);
	} else {
		rnd_vector(arena + off, 32);
	}
}

/* Branch targets must be INT3s of the code pages; anything else would run. */
static bool is_branch_harmless(struct test_case *tc)
{
	unsigned id = tc->in.desc->id, n = tc->in.len;
	uint64_t to, start;

	if (!is_near_branch(id))
		return true;
	switch (id) {
	case I_JMP_IND:
	case I_CALL_IND:
		if (tc->in.has_mem) {
			/* Read by the instruction: fill_operand put an address there if all of it is in the arena. */
			return tc->target - ARENA_VA <= ARENA_BYTES - 64 ||
			       tc->target + 8 <= ARENA_VA || tc->target >= ARENA_VA + ARENA_BYTES;
		}
		to = tc->before.gpr[tc->in.rm];
		/* Of two faults, bad target and bad stack, vendors take one or the other first. */
		if (mode != 64 || is_canonical(to) || id == I_CALL_IND)
			tc->before.gpr[tc->in.rm] = CODE_VA - code_base + 0x40 + below(0x300);
		return tc->in.rm != R_RSP;
	case I_RET:
		/* The whole of the value, or none of it, can be read. */
		to = stack_va(&tc->before) - ARENA_VA;
		return to <= ARENA_BYTES - tc->in.opsize || to >= ARENA_BYTES;
	default:
		if (tc->in.imm_len > 1) {
			int32_t rel = (int32_t)(below(0x600) - 0x300u);

			memcpy(tc->c.b + tc->in.imm_off, &rel, tc->in.imm_len);
			memcpy(tc->in.bytes + tc->in.imm_off, &rel, tc->in.imm_len);
			tc->in.imm = rel;
		}
		to = tc->rip + n + (uint64_t)tc->in.imm;
		if (tc->in.opsize == 2)
			to &= 0xffff;
		to += code_base;
		if (to < 0x10000)
			return true; /* nothing is ever mapped there */
		start = tc->rip + code_base;
		if (to + 1 > start && to < start + n + NATIVE_EXIT_BYTES && to != start + n)
			return false;
		return to >= CODE_VA && to < CODE_VA + CODE_BYTES;
	}
}

/* ---- flags that are dead ---- */

/* Shifts by nothing leave the flags alone, and on some CPUs scans of zero do. */
static bool may_keep_flags(const struct insn *in)
{
	switch (in->desc->id) {
	case I_SHL:
	case I_SHR:
	case I_SAR:
	case I_ROL:
	case I_ROR:
	case I_RCL:
	case I_RCR:
	case I_SHLD:
	case I_SHRD:
		return !in->imm_len || !(in->imm & 31);
	case I_BSF:
	case I_BSR:
		return true;
	default:
		return false;
	}
}

static unsigned live_before(const struct insn *in, unsigned live)
{
	if (!may_keep_flags(in))
		live &= ~(unsigned)in->desc->flags_written;
	return live | in->desc->flags_read;
}

/* Would a fault find the flags that the program has got, or what the translator left of them? */
static bool are_flags_dead(const struct test_case *tc)
{
	unsigned live = FL_ARITH;

	if (is_strict)
		return false;
	if (tc->next.desc)
		live = live_before(&tc->next, live);
	return !(live_before(&tc->in, live) & FL_ARITH);
}

/* What may come after the instruction.  No memory operands, no faults. */
static const struct {
	uint8_t n, b[4];
} followers[] = {
	{ 2, { 0x01, 0xd8 } },	     /* add eax, ebx */
	{ 2, { 0x11, 0xc8 } },	     /* adc eax, ecx */
	{ 2, { 0x19, 0xd0 } },	     /* sbb eax, edx */
	{ 2, { 0x85, 0xc9 } },	     /* test ecx, ecx */
	{ 2, { 0x31, 0xf6 } },	     /* xor esi, esi */
	{ 2, { 0xff, 0xc1 } },	     /* inc ecx */
	{ 3, { 0x0f, 0x92, 0xc2 } }, /* setb dl */
	{ 3, { 0x0f, 0x9e, 0xc6 } }, /* setle dh */
	{ 3, { 0x0f, 0x4a, 0xc2 } }, /* cmovp eax, edx */
	{ 1, { 0xf5 } },	     /* cmc */
	{ 1, { 0xf9 } },	     /* stc */
	{ 2, { 0xd3, 0xe0 } },	     /* shl eax, cl */
	{ 3, { 0xc1, 0xe8, 3 } },    /* shr eax, 3 */
	{ 3, { 0xc1, 0xe0, 0 } },    /* shl eax, 0 */
	{ 2, { 0xd1, 0xd0 } },	     /* rcl eax, 1 */
	{ 3, { 0x0f, 0xa3, 0xc8 } }, /* bt eax, ecx */
	{ 3, { 0x0f, 0xaf, 0xc2 } }, /* imul eax, edx */
	{ 3, { 0x8d, 0x40, 1 } },    /* lea eax, [rax + 1] */
	{ 2, { 0xf7, 0xd8 } },	     /* neg eax */
	{ 2, { 0xf7, 0xd0 } },	     /* not eax */
	{ 2, { 0x3c, 5 } },	     /* cmp al, 5 */
};

static void add_follower(struct test_case *tc)
{
	unsigned i = below(ARRAY_SIZE(followers)), id = tc->in.desc->id;

	if (is_near_branch(id) || is_string(id) || id == I_POPF || chance(20))
		return;
	memcpy(tc->c.b + tc->c.n, followers[i].b, followers[i].n);
	if (insn_decode(&tc->next, tc->c.b + tc->c.n, INSN_MAX_LEN, mode) != DECODE_OK ||
	    tc->next.len != followers[i].n) {
		fprintf(stderr, "difftest: follower %u is no instruction\n", i);
		exit(2);
	}
	tc->c.n += followers[i].n;
}

static uint8_t pristine[ARENA_BYTES];

static bool make_case(struct test_case *tc, struct row **row)
{
	/* In 3 of 4 cases in the middle of a page, else across or just before the end of one. */
	unsigned off = chance(75) ? 0x800 : 0x1000 - below(16);

	memset(tc, 0, sizeof(*tc));
	*row = &rows[below(nrows)];
	if (!make_code(tc, *row))
		return false;
	tc->rip = CODE_VA - code_base + off;
	if (!make_state(tc) || !is_branch_harmless(tc))
		return false;
	if (!is_strict)
		add_follower(tc);
	return true;
}

/* ---- comparison ---- */

/* Components in their initial configuration may hold anything; instruction pointers differ by design. */
static void normalise(uint8_t *x, bool has_pointers)
{
	if (!(x[512] & 1)) {
		memset(x, 0, 24);
		x[0] = 0x7f;
		x[1] = 3;
		memset(x + 32, 0, 128);
	}
	if (!(x[512] & 2))
		memset(x + 160, 0, 256);
	if (!(x[512] & 4))
		memset(x + 576, 0, 256);
	x[5] = 0;
	if (!has_pointers)
		memset(x + 6, 0, 18);
	/* 48 or 57 bits are kept, by CPU. */
	memset(x + 14, 0, 2);
	memset(x + 22, 0, 2);
	for (unsigned i = 0; i < 8; i++)
		memset(x + 32 + 16 * i + 10, 0, 6);
	memset(x + 28, 0, 4); /* MXCSR_MASK */
	memset(x + 416, 0, 160);
}

static void print_bytes(const char *what, const uint8_t *b, unsigned n)
{
	fprintf(stderr, "%s", what);
	for (unsigned i = 0; i < n; i++)
		fprintf(stderr, " %02x", b[i]);
	fprintf(stderr, "\n");
}

static bool is_quiet; /* compare without printing */

static bool differ(const char *what, uint64_t before, uint64_t want, uint64_t got)
{
	if (want == got)
		return false;
	if (is_quiet)
		return true;
	fprintf(stderr, "  %-8s before %016llx  host %016llx  engine %016llx\n", what,
		(unsigned long long)before, (unsigned long long)want, (unsigned long long)got);
	return true;
}

static bool compare_bytes(const char *what, const uint8_t *before, const uint8_t *want,
			  const uint8_t *got, unsigned n)
{
	unsigned shown = 0;

	if (!memcmp(want, got, n))
		return false;
	if (is_quiet)
		return true;
	for (unsigned i = 0; i < n && shown < 32; i++)
		if (want[i] != got[i]) {
			fprintf(stderr, "  %s+0x%x: before %02x  host %02x  engine %02x\n", what, i,
				before[i], want[i], got[i]);
			shown++;
		}
	return true;
}

static const char *const gpr_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					   "r8",  "r9",	 "r10", "r11", "r12", "r13", "r14", "r15" };

static void run_engine(const struct test_case *tc)
{
	struct x86_state *s = &cpu->s;

	memcpy(s->gpr, tc->before.gpr, sizeof(s->gpr));
	s->rip = tc->rip;
	s->rflags = tc->before.rflags;
	s->cr2 = 0;
	s->interrupt_shadow = 0;
	memcpy(s->xsave, tc->before.xsave, XSAVE_BYTES);
	cpu->is_fpu_in_regs = false;
	guest.vector = -1;
	guest.error = 0;
	/* REP stays at the instruction while there is something left to do. */
	for (unsigned i = 0; i < 64; i++) {
		guest.start = s->rip;
		executor->run(cpu);
		if (guest.vector >= 0)
			break;
		if (s->rip != tc->rip + tc->in.len || !tc->next.desc)
			if (s->rip != tc->rip || !is_string(tc->in.desc->id))
				break;
	}
	dbt_fpu_to_mem(cpu);
}

/* Brings native's idea of the end to the architecture's. */
static void settle_native(const struct test_case *tc)
{
	if (native.vector < 0) {
		native.rip = tc->rip + tc->c.n;
	} else if (native.vector == EXC_BP) {
		native.vector = -1;
		native.rip--;
	} else if (native.vector == EXC_PF && native.cr2 == native.rip + code_base &&
		   native.rip != tc->rip) {
		native.vector = -1; /* the branch completed, its target is no code */
		native.error = native.cr2 = 0;
	}
	if (native.vector != EXC_PF)
		native.cr2 = 0;
	if (native.vector < 0 || native.vector == EXC_DE || native.vector == EXC_UD ||
	    native.vector == EXC_MF || native.vector == EXC_XM)
		native.error = 0;
}

static bool is_area(unsigned id)
{
	return id == I_FXSAVE || id == I_FXRSTOR || id == I_XSAVE || id == I_XSAVEC ||
	       id == I_XRSTOR || id == I_FNSTENV || id == I_FLDENV || id == I_FNSAVE || id == I_FRSTOR;
}

static bool compare(const struct test_case *tc)
{
	struct x86_state *s = &cpu->s;
	const struct native_state *b = &tc->before;
	unsigned id = tc->in.desc->id;
	/* AMD's CPUs save them only with an exception pending. */
	bool has_pointers = (id == I_FLDENV || id == I_FRSTOR || id == I_FXRSTOR) &&
			    (!guest.vm->model.is_amd || native.xsave[2] & 0x80);
	uint64_t flags = X86_FL_DF | (native.vector >= 0 && are_flags_dead(tc) ? 0 : FL_ARITH);
	uint8_t want[XSAVE_BYTES], got[XSAVE_BYTES];
	bool bad = false;

	bad |= differ("vector", 0, (uint64_t)native.vector, (uint64_t)(int64_t)guest.vector);
	if (is_area(id) && native.vector == EXC_PF) {
		/* Which byte of a large operand is looked at first is the CPU's own affair. */
		uint64_t mask = addr_mask(&tc->in);

		bad |= differ("cr2 in", 0, true,
			      ((s->cr2 - tc->target) & mask) < 8192 &&
				      ((native.cr2 - tc->target) & mask) < 8192);
	} else {
		bad |= differ("error", 0, native.error, guest.error);
		bad |= differ("cr2", 0, native.cr2, s->cr2);
	}
	bad |= differ("rip", tc->rip, native.rip, s->rip);
	/* The host's IRET to a 16-bit stack segment leaves its own bits in the upper half of rsp. */
	if (mode == 16) {
		native.gpr[R_RSP] = (uint32_t)native.gpr[R_RSP];
		s->gpr[R_RSP] = (uint32_t)s->gpr[R_RSP];
	}
	for (unsigned i = 0; i < 16; i++)
		bad |= differ(gpr_names[i], b->gpr[i], native.gpr[i], s->gpr[i]);
	bad |= differ("flags", b->rflags & flags, native.rflags & flags, s->rflags & flags);

	memcpy(want, native.xsave, XSAVE_BYTES);
	memcpy(got, s->xsave, XSAVE_BYTES);
	normalise(want, has_pointers);
	normalise(got, has_pointers);
	bad |= compare_bytes("xsave", b->xsave, want, got, 512);
	bad |= compare_bytes("ymm", b->xsave + 576, want + 576, got + 576, 256);
	bad |= compare_bytes("memory", pristine, native_arena(), guest.arena, ARENA_BYTES);
	return !bad;
}

static void restore(uint8_t *arena)
{
	memcpy(arena, pristine, ARENA_BYTES);
}

struct totals {
	uint64_t cases, faults, differences;
};

static void run_case(uint64_t seed, uint64_t number, struct totals *tot)
{
	struct test_case tc;
	struct row *row;
	uint8_t *code = native_code();
	unsigned off, len;

	rng_seed(seed, number);
	while (!make_case(&tc, &row))
		;
	off = (unsigned)(tc.rip + code_base - CODE_VA);
	memcpy(code + off, tc.c.b, tc.c.n);
	len = tc.c.n + native_put_exit(off + tc.c.n);
	fill_operand(&tc, native_arena());
	memcpy(guest.arena, native_arena(), ARENA_BYTES);
	dt_guest_put_code(&guest, off, tc.c.b, tc.c.n);

	native = tc.before;
	native_run(tc.rip);
	settle_native(&tc);
	run_engine(&tc);
	tot->cases++;
	row->cases++;
	if (native.vector >= 0) {
		tot->faults++;
		row->faults++;
	}
	is_quiet = true;
	if (!compare(&tc)) {
		tot->differences++;
		fprintf(stderr, "difference in case %llu of seed %llu: %s, target %llx\n",
			(unsigned long long)number, (unsigned long long)seed,
			insn_name(tc.in.desc->id), (unsigned long long)tc.target);
		print_bytes("  bytes", tc.c.b, tc.c.n);
		for (unsigned i = 0; i < 16; i++)
			fprintf(stderr, "%s%s %016llx", i % 4 ? "  " : "\n  ", gpr_names[i],
				(unsigned long long)tc.before.gpr[i]);
		fprintf(stderr, "\n");
		is_quiet = false;
		compare(&tc);
	}
	memset(code + off, 0xcc, len);
	dt_guest_put_code(&guest, off, NULL, tc.c.n);
	restore(native_arena());
	restore(guest.arena);
}

static void usage(FILE *to)
{
	fprintf(to, "usage: difftest [--cases N] [--seed S] [--first N] [--only MNEMONIC] "
		    "[--max-differences N]\n"
		    "                [--executor NAME] [--mode 16|32|64] [--no-strict] [--rows]\n");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "cases", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ "first", required_argument, NULL, 'f' },
		{ "only", required_argument, NULL, 'o' },
		{ "max-differences", required_argument, NULL, 'm' },
		{ "executor", required_argument, NULL, 'e' },
		{ "mode", required_argument, NULL, 'b' },
		{ "no-strict", no_argument, NULL, 'x' },
		{ "rows", no_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	uint64_t cases = 300000, seed = 1, first = 0, max_differences = 20, templates = 0;
	struct totals tot = { 0 };
	struct timespec t0, t1;
	bool list_rows = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (c) {
		case 'n':
			cases = strtoull(optarg, NULL, 0);
			break;
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'f':
			first = strtoull(optarg, NULL, 0);
			break;
		case 'o':
			only = optarg;
			break;
		case 'm':
			max_differences = strtoull(optarg, NULL, 0);
			break;
		case 'e':
			executor = NULL;
			for (unsigned i = 0; i < ARRAY_SIZE(executors); i++)
				if (!strcmp(optarg, executors[i].name))
					executor = &executors[i];
			if (!executor) {
				fprintf(stderr, "difftest: no executor named %s\n", optarg);
				return 2;
			}
			break;
		case 'b':
			mode = (unsigned)strtoul(optarg, NULL, 0);
			if (mode != 16 && mode != 32 && mode != 64) {
				usage(stderr);
				return 2;
			}
			break;
		case 'x':
			is_strict = false;
			break;
		case 'r':
			list_rows = true;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}

	rows = calloc(MAX_ROWS, sizeof(*rows));
	if (!rows || dt_guest_create(&guest, is_strict) < 0)
		return 2;
	cpu = guest.cpu;
	native_init();
	c = native_set_mode(mode);
	if (c < 0) {
		fprintf(stderr, "difftest: skipped, no %u-bit code runs on this host: %s\n", mode,
			strerror(-c));
		return 77;
	}
	dt_guest_set_mode(&guest, mode);
	code_base = seg_base(SEG_CS);
	memset(guest.code, 0xcc, CODE_BYTES);
	build_rows();
	if (!nrows) {
		fprintf(stderr, "difftest: no instruction to test%s%s\n", only ? ": " : "",
			only ? only : "");
		return 2;
	}
	for (unsigned i = 0; i < nrows; i++)
		templates += rows[i].ntemplates;

	rng_seed(seed, ~0ULL);
	for (unsigned i = 0; i < ARENA_BYTES; i += 32)
		rnd_vector(pristine + i, 32);
	restore(native_arena());
	restore(guest.arena);

	clock_gettime(CLOCK_MONOTONIC, &t0);
	for (uint64_t i = 0; i < cases && tot.differences < max_differences; i++)
		run_case(seed, first + i, &tot);
	clock_gettime(CLOCK_MONOTONIC, &t1);

	if (list_rows)
		for (unsigned i = 0; i < nrows; i++)
			printf("%-14s %4u encodings %8llu cases %8llu faults\n",
			       insn_name(rows[i].desc->id), rows[i].ntemplates,
			       (unsigned long long)rows[i].cases, (unsigned long long)rows[i].faults);
	printf("difftest: %s, %u-bit%s: %llu cases (%llu faulting), seed %llu, first %llu, %u "
	       "rows, "
	       "%llu encodings: %llu differences, %.1f s\n",
	       executor->name, mode, is_strict ? "" : ", not strict", (unsigned long long)tot.cases,
	       (unsigned long long)tot.faults, (unsigned long long)seed, (unsigned long long)first,
	       nrows, (unsigned long long)templates, (unsigned long long)tot.differences,
	       (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) * 1e-9);
	dt_guest_destroy(&guest);
	free(rows);
	return tot.differences ? 1 : 0;
}
