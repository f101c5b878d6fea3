/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FPU state in memory (FNSTENV ... XRSTOR) and vector instructions whose faults depend on a mask.
 *
 * The guest's state is taken as an image (s.xsave, standard format) or worked on in the host's registers
 * with the host's own instruction; formats of the guest are put together byte by byte, because they carry
 * instruction and data pointers, which must be the guest's (thunk.c, invariant 4).
 *
 * Sources: SDM vol. 1 8.1.10 (x87 formats), 10.5 (FXSAVE), 13.4-13.13 (XSAVE); SDM vol. 2 for each.
 */
#include "engine/dbt/interp_user.h"
#include "engine/dbt/thunk.h"

/* Offsets in the XSAVE image. */
/* clang-format off */
enum {
	FX_FCW = 0, FX_FSW = 2, FX_FTW = 4, FX_FOP = 6, FX_FIP = 8, FX_FDP = 16, FX_MXCSR = 24, FX_MXCSR_MASK = 28,
	FX_ST = 32, FX_XMM = 160, XS_BV = 512, XS_COMP = 520, XS_RESERVED = 528, XS_HEADER_END = 576,
	XS_YMM = 576, XS_END = 832,
};
/* clang-format on */
enum { XF_X87 = 1, XF_SSE = 2, XF_AVX = 4 };
#define XCOMP_COMPACT (1ULL << 63)
#define MXCSR_DEFAULT 0x1f80u

static inline uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	__builtin_memcpy(&v, p, 2);
	return v;
}
static inline uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	__builtin_memcpy(&v, p, 4);
	return v;
}
static inline uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	__builtin_memcpy(&v, p, 8);
	return v;
}
static inline void put16(uint8_t *p, uint16_t v)
{
	__builtin_memcpy(p, &v, 2);
}
static inline void put32(uint8_t *p, uint32_t v)
{
	__builtin_memcpy(p, &v, 4);
}
static inline void put64(uint8_t *p, uint64_t v)
{
	__builtin_memcpy(p, &v, 8);
}

/* The whole state as an image that may be read and changed.  Every component is there: XSAVE writes the
 * initial values of those that are not in use. */
static uint8_t *image(struct dbt_cpu *cpu)
{
	dbt_fpu_to_regs(cpu);
	dbt_fpu_to_mem(cpu);
	return cpu->s.xsave;
}

/* The same when all of it is going to be written: what is in the registers is lost. */
static uint8_t *new_image(struct dbt_cpu *cpu)
{
	cpu->is_fpu_in_regs = false;
	return cpu->s.xsave;
}

static unsigned vector_regs(const struct dbt_cpu *cpu)
{
	return cpu->code_bits == 64 ? 16 : 8;
}

static void check_fpu_usable(struct dbt_cpu *cpu)
{
	if (cpu->s.cr0 & (X86_CR0_EM | X86_CR0_TS))
		dbt_raise(cpu, EXC_NM);
}

/* ---- x87 environment ---- */

/* As FNSTENV writes it in 32-bit protected mode. */
struct x87_env {
	uint32_t fcw, fsw, ftw, fip, fcs_fop, fdp, fds;
	uint8_t st[80]; /* FNSAVE, FRSTOR */
};

static unsigned env_bytes(const struct insn *in)
{
	return in->opsize == 2 ? 14 : 28;
}

static bool is_real_format(const struct dbt_cpu *cpu)
{
	return !(cpu->s.cr0 & X86_CR0_PE) || cpu->s.rflags & X86_FL_VM;
}

static void env_write(const struct dbt_cpu *cpu, const struct insn *in, uint8_t *p,
		      const struct x87_env *e, uint32_t fip, uint32_t fdp, uint16_t fop)
{
	fop &= 0x7ff;
	if (in->opsize == 2) {
		put16(p, (uint16_t)e->fcw);
		put16(p + 2, (uint16_t)e->fsw);
		put16(p + 4, (uint16_t)e->ftw);
		put16(p + 6, (uint16_t)fip);
		put16(p + 10, (uint16_t)fdp);
		if (is_real_format(cpu)) {
			put16(p + 8, (uint16_t)((fip >> 16 & 15) << 12 | fop));
			put16(p + 12, (uint16_t)((fdp >> 16 & 15) << 12));
		} else {
			put16(p + 8, 0); /* selectors: deprecated, 0 (CPUID.7.0:EBX[13]) */
			put16(p + 12, 0);
		}
		return;
	}
	put32(p, e->fcw);
	put32(p + 4, e->fsw);
	put32(p + 8, e->ftw);
	if (is_real_format(cpu)) {
		put32(p + 12, fip & 0xffff);
		put32(p + 16, (fip >> 16) << 12 | fop);
		put32(p + 20, fdp & 0xffff);
		put32(p + 24, (fdp >> 16) << 12);
	} else {
		put32(p + 12, fip);
		put32(p + 16, (uint32_t)fop << 16);
		put32(p + 20, fdp);
		put32(p + 24, e->fds & 0xffff0000u);
	}
}

static void env_read(const struct dbt_cpu *cpu, const struct insn *in, const uint8_t *p,
		     struct x87_env *e, uint32_t *fip, uint32_t *fdp, uint16_t *fop)
{
	memset(e, 0, sizeof(*e));
	if (in->opsize == 2) {
		e->fcw = get16(p);
		e->fsw = get16(p + 2);
		e->ftw = get16(p + 4);
		*fip = get16(p + 6);
		*fdp = get16(p + 10);
		*fop = 0;
		if (is_real_format(cpu)) {
			*fip |= (uint32_t)(get16(p + 8) >> 12) << 16;
			*fdp |= (uint32_t)(get16(p + 12) >> 12) << 16;
			*fop = get16(p + 8) & 0x7ff;
		}
		return;
	}
	e->fcw = get32(p);
	e->fsw = get32(p + 4);
	e->ftw = get32(p + 8);
	if (is_real_format(cpu)) {
		*fip = (get32(p + 12) & 0xffff) | (get32(p + 16) >> 12 & 0xffff) << 16;
		*fop = get32(p + 16) & 0x7ff;
		*fdp = (get32(p + 20) & 0xffff) | (get32(p + 24) >> 12 & 0xffff) << 16;
	} else {
		*fip = get32(p + 12);
		*fop = get32(p + 16) >> 16 & 0x7ff;
		*fdp = get32(p + 20);
	}
}

/* FNSTENV and FNSAVE. */
static void store_env(struct dbt_cpu *cpu, const struct insn *in, bool is_save)
{
	unsigned len = env_bytes(in);
	const uint8_t *x;
	struct x87_env e;
	uint64_t fip, fdp;
	uint16_t fop;
	struct mem_op op;

	mem_begin(cpu, &op, in->seg, insn_ea(cpu, in), len + (is_save ? 80 : 0), ACC_WRITE, false);
	x = image(cpu);
	fip = get64(x + FX_FIP);
	fdp = get64(x + FX_FDP);
	fop = get16(x + FX_FOP);
	dbt_fpu_to_regs(cpu);
	if (is_save)
		__asm__ volatile("fnsave %0" : "=m"(e));
	else
		__asm__ volatile("fnstenv %0" : "=m"(e));
	if (is_save)
		thunk_set_fpu_pointers(cpu, 0, 0, 0);
	env_write(cpu, in, op.ptr, &e, (uint32_t)fip, (uint32_t)fdp, fop);
	if (is_save)
		memcpy((uint8_t *)op.ptr + len, e.st, 80);
	mem_commit(cpu, &op);
}

/* FLDENV and FRSTOR. */
static void load_env(struct dbt_cpu *cpu, const struct insn *in, bool is_restore)
{
	unsigned len = env_bytes(in);
	struct x87_env e;
	uint32_t fip, fdp;
	uint16_t fop;
	struct mem_op op;

	mem_begin(cpu, &op, in->seg, insn_ea(cpu, in), len + (is_restore ? 80 : 0), ACC_READ, false);
	env_read(cpu, in, op.ptr, &e, &fip, &fdp, &fop);
	if (is_restore)
		memcpy(e.st, (uint8_t *)op.ptr + len, 80);
	mem_commit(cpu, &op);
	dbt_fpu_to_regs(cpu);
	if (is_restore)
		__asm__ volatile("frstor %0" : : "m"(e));
	else
		__asm__ volatile("fldenv %0" : : "m"(e));
	thunk_set_fpu_pointers(cpu, fip, fdp, fop);
}

void user_fnstenv(struct dbt_cpu *cpu, const struct insn *in)
{
	store_env(cpu, in, false);
}

void user_fnsave(struct dbt_cpu *cpu, const struct insn *in)
{
	store_env(cpu, in, true);
}

void user_fldenv(struct dbt_cpu *cpu, const struct insn *in)
{
	load_env(cpu, in, false);
}

void user_frstor(struct dbt_cpu *cpu, const struct insn *in)
{
	load_env(cpu, in, true);
}

void user_fwait(struct dbt_cpu *cpu, const struct insn *in)
{
	/* insn_check() has looked for a pending exception. */
}

void user_emms(struct dbt_cpu *cpu, const struct insn *in)
{
	dbt_fpu_to_regs(cpu);
	__asm__ volatile("emms");
}

/* ---- FXSAVE, XSAVE ---- */

/* x87 part of the legacy area; pointers of 64 bits with REX.W, else of 32 bits with selectors (0). */
static void put_x87(const struct insn *in, uint8_t *p, const uint8_t *x)
{
	memcpy(p, x, FX_FIP);
	if (in->rex_w) {
		memcpy(p + FX_FIP, x + FX_FIP, 16);
	} else {
		put64(p + FX_FIP, get32(x + FX_FIP));
		put64(p + FX_FDP, get32(x + FX_FDP));
	}
	memcpy(p + FX_ST, x + FX_ST, 128);
}

/* An instruction or data pointer as the CPU keeps it: canonical. */
static uint64_t canonical(uint64_t va)
{
	return (uint64_t)((int64_t)(va << 16) >> 16);
}

static void get_x87(const struct insn *in, uint8_t *x, const uint8_t *p)
{
	memcpy(x, p, FX_FIP);
	put16(x + FX_FOP, get16(p + FX_FOP) & 0x7ff);
	if (in->rex_w) {
		put64(x + FX_FIP, canonical(get64(p + FX_FIP)));
		put64(x + FX_FDP, canonical(get64(p + FX_FDP)));
	} else {
		put64(x + FX_FIP, get32(p + FX_FIP));
		put64(x + FX_FDP, get32(p + FX_FDP));
	}
	memcpy(x + FX_ST, p + FX_ST, 128);
}

/* Address of an area that must lie at a multiple of @align: 16 for FXSAVE and FXRSTOR, 64 for the XSAVE family. */
static uint64_t aligned_ea(struct dbt_cpu *cpu, const struct insn *in, unsigned align)
{
	uint64_t ea = insn_ea(cpu, in);

	if (align == 16)
		mem_linear(cpu, in->seg, ea, 1, ACC_READ); /* #SS goes before #GP here, as on hardware */
	if (insn_is_misaligned(cpu, in, ea, align))
		dbt_raise_err(cpu, EXC_GP, 0);
	return ea;
}

static void check_mxcsr(struct dbt_cpu *cpu, struct mem_op *op, uint32_t mxcsr)
{
	if (!(mxcsr & ~dbt_host_mxcsr_mask()))
		return;
	mem_abort(cpu, op);
	dbt_raise_err(cpu, EXC_GP, 0);
}

void user_fxsave(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned len = FX_XMM + 16 * vector_regs(cpu);
	struct mem_op op;
	const uint8_t *x;
	uint64_t ea;

	check_fpu_usable(cpu);
	ea = aligned_ea(cpu, in, 16);
	/* Bytes that FXSAVE leaves alone are read first where the area is not plain RAM. */
	mem_begin(cpu, &op, in->seg, ea, 512, ACC_RW, false);
	x = thunk_fpu_image(cpu);
	put_x87(in, op.ptr, x);
	memcpy((uint8_t *)op.ptr + FX_MXCSR, x + FX_MXCSR, 4);
	put32((uint8_t *)op.ptr + FX_MXCSR_MASK, dbt_host_mxcsr_mask());
	memcpy((uint8_t *)op.ptr + FX_XMM, x + FX_XMM, len - FX_XMM);
	mem_commit(cpu, &op);
}

void user_fxrstor(struct dbt_cpu *cpu, const struct insn *in)
{
	struct mem_op op;
	const uint8_t *p;
	uint64_t ea;
	uint8_t *x;

	check_fpu_usable(cpu);
	ea = aligned_ea(cpu, in, 16);
	mem_begin(cpu, &op, in->seg, ea, 512, ACC_READ, false);
	p = op.ptr;
	check_mxcsr(cpu, &op, get32(p + FX_MXCSR));
	x = image(cpu);
	get_x87(in, x, p);
	memcpy(x + FX_MXCSR, p + FX_MXCSR, 4);
	memcpy(x + FX_XMM, p + FX_XMM, 16 * vector_regs(cpu));
	x[XS_BV] |= XF_X87 | XF_SSE;
	mem_commit(cpu, &op);
	dbt_fpu_to_regs(cpu); /* the CPU makes of FCW and FSW what it does */
}

static void check_xsave(struct dbt_cpu *cpu)
{
	if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
		dbt_raise(cpu, EXC_UD);
	if (cpu->s.cr0 & X86_CR0_TS)
		dbt_raise(cpu, EXC_NM);
}

/* Address of an XSAVE area of @len bytes.  Intel's CPUs look at the segment before the alignment. */
static uint64_t xsave_ea(struct dbt_cpu *cpu, const struct insn *in, unsigned len, unsigned acc)
{
	if (!cpu->vm->model.is_amd)
		mem_linear(cpu, in->seg, insn_ea(cpu, in), len, acc);
	return aligned_ea(cpu, in, 64);
}

/* Components that the instruction asks for and that are enabled. */
static uint64_t requested(const struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t enabled = cpu->s.xcr0;

	if (in->desc->id == I_XSAVES || in->desc->id == I_XRSTORS)
		enabled |= cpu->s.xss;
	return ((uint64_t)(uint32_t)cpu->s.gpr[R_RDX] << 32 | (uint32_t)cpu->s.gpr[R_RAX]) & enabled;
}

/* Components not in their initial configuration (XINUSE). */
static uint64_t in_use(const struct dbt_cpu *cpu, const uint8_t *x)
{
	return get64(x + XS_BV) & cpu->s.xcr0;
}

/* XSAVE, XSAVEOPT (standard format), XSAVEC, XSAVES (compacted; the offsets of x87, SSE and AVX are the same). */
void user_xsave(struct dbt_cpu *cpu, const struct insn *in)
{
	bool is_compact = in->desc->id == I_XSAVEC || in->desc->id == I_XSAVES;
	bool is_opt = is_compact || in->desc->id == I_XSAVEOPT;
	uint64_t rfbm = requested(cpu, in), used, write;
	unsigned len = rfbm & XF_AVX ? XS_END : XS_HEADER_END, n = vector_regs(cpu);
	/* With nothing to save in the legacy area, Intel's CPUs don't look at it; MXCSR of the standard format is in it. */
	bool has_legacy = rfbm & (is_compact ? XF_X87 | XF_SSE : ~0ULL);
	unsigned first = !has_legacy && !cpu->vm->model.is_amd ? XS_BV : 0;
	struct mem_op op;
	const uint8_t *x;
	uint64_t ea;
	uint8_t *p;

	check_xsave(cpu);
	ea = xsave_ea(cpu, in, len, ACC_RW);
	mem_begin(cpu, &op, in->seg, ea + first, len - first, ACC_RW, false);
	p = (uint8_t *)op.ptr - first;
	x = thunk_fpu_image(cpu);
	used = in_use(cpu, x);
	if (is_compact && get32(x + FX_MXCSR) != MXCSR_DEFAULT)
		used |= XF_SSE & cpu->s.xcr0;
	write = is_opt ? rfbm & used : rfbm;

	if (write & XF_X87)
		put_x87(in, p, x);
	/* The standard format has MXCSR as part of SSE and AVX, the compacted one of SSE only. */
	if (is_compact ? write & XF_SSE : rfbm & (XF_SSE | XF_AVX)) {
		memcpy(p + FX_MXCSR, x + FX_MXCSR, 4);
		put32(p + FX_MXCSR_MASK, dbt_host_mxcsr_mask());
	}
	if (write & XF_SSE)
		memcpy(p + FX_XMM, x + FX_XMM, 16 * n);
	if (write & XF_AVX)
		memcpy(p + XS_YMM, x + XS_YMM, 16 * n);
	if (is_compact) {
		put64(p + XS_BV, rfbm & used);
		put64(p + XS_COMP, rfbm | XCOMP_COMPACT);
	} else {
		put64(p + XS_BV, (get64(p + XS_BV) & ~rfbm) | (rfbm & used));
	}
	mem_commit(cpu, &op);
}

static bool is_zero(const uint8_t *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

/* Rules on the header of an XSAVE area (SDM vol. 1 13.8.1, 13.8.2, 13.12). */
static bool is_header_valid(const struct dbt_cpu *cpu, const struct insn *in, const uint8_t *p)
{
	bool is_system = in->desc->id == I_XRSTORS;
	uint64_t bv = get64(p + XS_BV), comp = get64(p + XS_COMP), enabled = cpu->s.xcr0;

	if (is_system)
		enabled |= cpu->s.xss;
	if (comp & XCOMP_COMPACT)
		return (is_system || cpu_has(&cpu->vm->model, CPUF_XSAVEC)) &&
		       !(comp & ~(enabled | XCOMP_COMPACT)) && !(bv & ~comp) &&
		       is_zero(p + XS_RESERVED, 48);
	return !is_system && !(bv & ~enabled) && is_zero(p + XS_COMP, 16);
}

static void init_x87(uint8_t *x)
{
	memset(x, 0, FX_MXCSR);
	put16(x + FX_FCW, 0x37f);
	memset(x + FX_ST, 0, 128);
}

/*
 * What Intel's CPUs look at before the legacy area of XRSTOR: the last byte that the request may need; then the header,
 * if it says that the format is the compacted one or if nothing is requested.
 */
static void check_area(struct dbt_cpu *cpu, const struct insn *in, uint64_t ea, uint64_t rfbm)
{
	unsigned len = rfbm & XF_AVX ? XS_END : XS_HEADER_END;
	struct mem_op op;
	const uint8_t *p;
	bool is_invalid;

	mem_begin(cpu, &op, in->seg, ea + len - 1, 1, ACC_READ, false);
	mem_abort(cpu, &op);
	mem_begin(cpu, &op, in->seg, ea + XS_BV, XS_HEADER_END - XS_BV, ACC_READ, false);
	p = (uint8_t *)op.ptr - XS_BV;
	is_invalid = (!rfbm || get64(p + XS_COMP) & XCOMP_COMPACT) && !is_header_valid(cpu, in, p);
	mem_abort(cpu, &op);
	if (is_invalid)
		dbt_raise_err(cpu, EXC_GP, 0);
}

/*
 * XRSTOR, XRSTORS.
 *
 * The whole area is read at once, AVX part included where requested: an area whose XSTATE_BV says that
 * there is none may end before it, so that part is asked for only when needed.
 */
void user_xrstor(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t rfbm = requested(cpu, in), bv, ea;
	unsigned n = vector_regs(cpu), len = XS_HEADER_END;
	bool is_compact;
	struct mem_op op;
	const uint8_t *p;
	uint8_t *x;

	check_xsave(cpu);
	ea = xsave_ea(cpu, in, rfbm & XF_AVX ? XS_END : len, ACC_READ);
	if (!cpu->vm->model.is_amd) {
		check_area(cpu, in, ea, rfbm);
		if (!rfbm)
			return;
	}
	mem_begin(cpu, &op, in->seg, ea, len, ACC_READ, false);
	p = op.ptr;
	bv = get64(p + XS_BV);
	is_compact = get64(p + XS_COMP) & XCOMP_COMPACT;
	if (!is_header_valid(cpu, in, p)) {
		mem_abort(cpu, &op);
		dbt_raise_err(cpu, EXC_GP, 0);
	}
	if (rfbm & bv & XF_AVX) {
		mem_commit(cpu, &op);
		len = XS_END;
		mem_begin(cpu, &op, in->seg, ea, len, ACC_READ, false);
		p = op.ptr;
	}
	if (is_compact ? rfbm & bv & XF_SSE : rfbm & (XF_SSE | XF_AVX))
		check_mxcsr(cpu, &op, get32(p + FX_MXCSR));

	x = n == 16 && !(dbt_host_xsave_mask() & ~rfbm) ? new_image(cpu) : image(cpu);
	if (rfbm & XF_X87) {
		if (bv & XF_X87)
			get_x87(in, x, p);
		else
			init_x87(x);
	}
	if (rfbm & XF_SSE) {
		if (bv & XF_SSE)
			memcpy(x + FX_XMM, p + FX_XMM, 16 * n);
		else
			memset(x + FX_XMM, 0, 16 * n);
	}
	if (is_compact) {
		if (rfbm & XF_SSE)
			put32(x + FX_MXCSR, bv & XF_SSE ? get32(p + FX_MXCSR) : MXCSR_DEFAULT);
	} else if (rfbm & (XF_SSE | XF_AVX)) {
		put32(x + FX_MXCSR, get32(p + FX_MXCSR));
	}
	if (rfbm & XF_AVX) {
		if (bv & XF_AVX)
			memcpy(x + XS_YMM, p + XS_YMM, 16 * n);
		else
			memset(x + XS_YMM, 0, 16 * n);
	}
	/* Outside of 64-bit mode registers 8..15 stay, so their components stay in use. */
	if (n == 16)
		put64(x + XS_BV, (get64(x + XS_BV) & ~rfbm) | (bv & rfbm));
	else
		put64(x + XS_BV, (get64(x + XS_BV) & ~(rfbm & XF_X87)) | (bv & rfbm));
	mem_commit(cpu, &op);
	dbt_fpu_to_regs(cpu);
}

void user_xgetbv(struct dbt_cpu *cpu, const struct insn *in)
{
	uint32_t index = (uint32_t)cpu->s.gpr[R_RCX];
	uint64_t val;

	if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
		dbt_raise(cpu, EXC_UD);
	if (index == 0)
		val = cpu->s.xcr0;
	else if (index == 1 && cpu_has(&cpu->vm->model, CPUF_XGETBV1))
		val = in_use(cpu, thunk_fpu_image(cpu));
	else
		dbt_raise_err(cpu, EXC_GP, 0);
	cpu->s.gpr[R_RAX] = (uint32_t)val;
	cpu->s.gpr[R_RDX] = val >> 32;
}

void user_ldmxcsr(struct dbt_cpu *cpu, const struct insn *in)
{
	uint32_t val = (uint32_t)mem_read(cpu, in->seg, insn_ea(cpu, in), 4);

	if (val & ~dbt_host_mxcsr_mask())
		dbt_raise_err(cpu, EXC_GP, 0);
	dbt_fpu_to_regs(cpu);
	__asm__ volatile("ldmxcsr %0" : : "m"(val));
}

/* ---- vectors ---- */

/* VZEROUPPER, VZEROALL: registers 0..7 only outside of 64-bit mode. */
void user_vzeroupper(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned bytes = 16 * vector_regs(cpu);
	uint8_t *x;

	if (cpu->code_bits == 64) {
		dbt_fpu_to_regs(cpu);
		if (in->vex_l)
			__asm__ volatile("vzeroall");
		else
			__asm__ volatile("vzeroupper");
		return;
	}
	x = image(cpu);
	memset(x + XS_YMM, 0, bytes);
	if (in->vex_l)
		memset(x + FX_XMM, 0, bytes);
}

struct vector {
	uint8_t b[32];
};

static struct vector vector_get(const uint8_t *x, unsigned reg)
{
	struct vector v;

	memcpy(v.b, x + FX_XMM + 16 * reg, 16);
	memcpy(v.b + 16, x + XS_YMM + 16 * reg, 16);
	return v;
}

static void vector_set(uint8_t *x, unsigned reg, const struct vector *v)
{
	memcpy(x + FX_XMM + 16 * reg, v->b, 16);
	memcpy(x + XS_YMM + 16 * reg, v->b + 16, 16);
	x[XS_BV] |= XF_SSE | XF_AVX;
}

static bool is_selected(const struct vector *mask, unsigned i, unsigned size)
{
	return mask->b[i * size + size - 1] & 0x80;
}

static uint64_t element(const struct vector *v, unsigned i, unsigned size)
{
	return size == 8 ? get64(v->b + 8 * i) : get32(v->b + 4 * i);
}

static void set_element(struct vector *v, unsigned i, unsigned size, uint64_t val)
{
	if (size == 8)
		put64(v->b + 8 * i, val);
	else
		put32(v->b + 4 * i, (uint32_t)val);
}

static void probe_write(struct dbt_cpu *cpu, unsigned seg, uint64_t ea, unsigned size)
{
	struct mem_op op;

	mem_begin(cpu, &op, seg, ea, size, ACC_WRITE, false);
	mem_abort(cpu, &op);
}

/* MASKMOVQ, (V)MASKMOVDQU: bytes of one register selected by another, to [rDI]. */
void user_maskmov(struct dbt_cpu *cpu, const struct insn *in)
{
	bool is_mmx = !in->vex && in->pp != 0x66;
	unsigned len = is_mmx ? 8 : 16;
	uint64_t ea = cpu->s.gpr[R_RDI] & user_mask(in->addrsize);
	uint8_t data[16], mask[16];
	struct mem_op op;
	const uint8_t *x;
	bool any = false;

	if (is_mmx) {
		/* Any MMX instruction marks the x87 registers valid and sets TOP to 0, this one before it can fault. */
		dbt_fpu_to_regs(cpu);
		__asm__ volatile("movd %%mm0, %%eax" : : : "eax");
	}
	x = image(cpu);
	memcpy(data, is_mmx ? x + FX_ST + 16 * (in->reg & 7) : x + FX_XMM + 16 * in->reg, len);
	memcpy(mask, is_mmx ? x + FX_ST + 16 * (in->rm & 7) : x + FX_XMM + 16 * in->rm, len);
	for (unsigned i = 0; i < len; i++)
		any |= mask[i] & 0x80;
	/* Checked as a write even if nothing is selected; by Intel's CPUs the upper half first. */
	if (len == 16 && !cpu->vm->model.is_amd) {
		probe_write(cpu, user_mem_seg(in), ea + 8, 8);
		probe_write(cpu, user_mem_seg(in), ea, 8);
	}
	mem_begin(cpu, &op, user_mem_seg(in), ea, len, any ? ACC_RW : ACC_WRITE, false);
	if (!any) {
		mem_abort(cpu, &op);
		return;
	}
	for (unsigned i = 0; i < len; i++)
		if (mask[i] & 0x80)
			((uint8_t *)op.ptr)[i] = data[i];
	mem_commit(cpu, &op);
}

/* Where element @i of a masked move is: AMD's CPUs wrap each one's address to the address size, as operands have theirs. */
static uint64_t element_address(struct dbt_cpu *cpu, const struct insn *in, uint64_t ea, unsigned i,
				unsigned size)
{
	uint64_t at = ea + i * size;

	return cpu->vm->model.is_amd ? at & user_mask(in->addrsize) : at;
}

/*
 * May all selected elements of a masked store be written?  Intel's CPUs look at the first byte and at the last byte of
 * what is selected and name one of them in CR2, AMD's at the elements.
 */
static void probe_elements(struct dbt_cpu *cpu, const struct insn *in, const struct vector *mask,
			   uint64_t ea, unsigned n, unsigned size)
{
	unsigned first = n, last = 0;

	for (unsigned i = 0; i < n; i++) {
		if (!is_selected(mask, i, size))
			continue;
		if (cpu->vm->model.is_amd)
			probe_write(cpu, in->seg, element_address(cpu, in, ea, i, size), size);
		first = MIN(first, i);
		last = i;
	}
	if (first == n || cpu->vm->model.is_amd)
		return;
	probe_write(cpu, in->seg, ea + first * size, 1);
	probe_write(cpu, in->seg, ea + last * size + size - 1, 1);
}

/* VMASKMOVPS/PD, VPMASKMOVD/Q: unselected elements cause no fault. */
void user_vmaskmov(struct dbt_cpu *cpu, const struct insn *in)
{
	bool is_int = in->opcode >= 0x8c;
	bool is_store = is_int ? in->opcode == 0x8e : in->opcode >= 0x2e;
	unsigned size = is_int ? (in->rex_w ? 8 : 4) : (in->opcode & 1 ? 8 : 4),
		 n = (in->vex_l ? 32 : 16) / size;
	uint64_t ea = insn_ea(cpu, in);
	struct vector mask, v = { { 0 } }, data;
	uint8_t *x = image(cpu);

	mask = vector_get(x, in->vvvv);
	if (!is_store) {
		for (unsigned i = 0; i < n; i++)
			if (is_selected(&mask, i, size))
				set_element(&v, i, size,
					    mem_read(cpu, in->seg,
						     element_address(cpu, in, ea, i, size), size));
		vector_set(x, in->reg, &v);
		return;
	}
	data = vector_get(x, in->reg);
	/* All or nothing: a fault in a later element must come before the first write. */
	probe_elements(cpu, in, &mask, ea, n, size);
	for (unsigned i = 0; i < n; i++)
		if (is_selected(&mask, i, size))
			mem_write(cpu, in->seg, element_address(cpu, in, ea, i, size), size,
				  element(&data, i, size));
}

/*
 * Intel's CPUs spread the mask over its elements before the first load (SDM vol. 2, VPGATHERDD, Operation) and
 * clear what is above it; AMD's CPUs leave what a fault does not reach.
 */
static void spread_mask(struct vector *mask, unsigned bytes, unsigned size)
{
	for (unsigned i = 0; i < bytes / size; i++)
		set_element(mask, i, size, is_selected(mask, i, size) ? ~0ULL : 0);
	memset(mask->b + bytes, 0, sizeof(mask->b) - bytes);
}

/*
 * VGATHER.., VPGATHER..: element by element; a completed element clears its part of the mask, so after a fault the
 * instruction goes on where it was.
 */
void user_vgather(struct dbt_cpu *cpu, const struct insn *in)
{
	bool is_qindex = in->opcode & 1;
	unsigned size = in->rex_w ? 8 : 4, isize = is_qindex ? 8 : 4, bytes = in->vex_l ? 32 : 16;
	unsigned n = MIN(bytes / size, bytes / isize);
	uint64_t base = insn_ea(cpu, in), wrap = user_mask(in->addrsize);
	struct vector mask, index, dst;

	if (in->reg == in->vvvv || in->reg == in->index || in->vvvv == in->index)
		dbt_raise(cpu, EXC_UD);
	dst = vector_get(image(cpu), in->reg);
	mask = vector_get(cpu->s.xsave, in->vvvv);
	index = vector_get(cpu->s.xsave, in->index);
	if (!cpu->vm->model.is_amd)
		spread_mask(&mask, bytes, size);
	for (unsigned i = 0; i < n; i++) {
		uint64_t off = element(&index, i, isize);

		if (is_selected(&mask, i, size)) {
			if (isize == 4)
				off = (uint64_t)(int64_t)(int32_t)off;
			/* What is done is kept if this element faults. */
			vector_set(cpu->s.xsave, in->reg, &dst);
			vector_set(cpu->s.xsave, in->vvvv, &mask);
			set_element(&dst, i, size,
				    mem_read(cpu, in->seg, (base + off * in->scale) & wrap, size));
			if (!cpu->vm->model.is_amd) /* an element's write is one to all of the register */
				memset(dst.b + bytes, 0, sizeof(dst.b) - bytes);
		}
		set_element(&mask, i, size, 0);
	}
	memset(dst.b + n * size, 0, sizeof(dst.b) - n * size);
	memset(mask.b, 0, sizeof(mask.b));
	vector_set(cpu->s.xsave, in->reg, &dst);
	vector_set(cpu->s.xsave, in->vvvv, &mask);
}
