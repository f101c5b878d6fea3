/* SPDX-License-Identifier: Apache-2.0 */
/*
 * String instructions: MOVS, STOS, LODS, CMPS, SCAS with REP (SDM vol. 2, REP).
 *
 * One call does a bounded number of iterations.  When some are left, RIP stays on the instruction and RF is
 * set, as when an interrupt comes between two iterations on hardware: the dispatcher looks around and
 * comes back, and an instruction breakpoint does not fire twice.  Registers are brought up to date after each
 * iteration, so a fault leaves them as the manual says.
 *
 * All but LODS run forward over plain RAM page by page as the host's own instruction on the same element
 * size, which makes overlapping operands exact.  Pages that are not in the TLB as direct (devices, pages
 * with translated code, watched ones) take the way of single elements.
 */
#include "engine/dbt/interp_user.h"
#include "engine/dbt/thunk.h"

#define BATCH_ELEMENTS 256u
#define BATCH_BYTES    (64 * KIB)
#define PAGE_BYTES     4096u
#define SKIP_ELEMENTS  8u

struct string_op {
	struct dbt_cpu *cpu;
	unsigned size;	/* of an element */
	unsigned asize; /* of an address */
	unsigned seg;	/* of the source */
	bool is_rep;
	uint64_t count; /* iterations left; 1 without REP */
	int64_t step;
	unsigned budget;
};

/*
 * Intel's CPUs write rCX as the address size does before the first iteration, or instead of it; MOVS and STOS
 * the other registers, too.
 */
static void begin_rep(struct string_op *o, const struct insn *in)
{
	struct dbt_cpu *cpu = o->cpu;
	unsigned id = in->desc->id;

	o->count = cpu->s.gpr[R_RCX] & user_mask(o->asize);
	if (cpu->vm->model.is_amd)
		return;
	user_reg_write(cpu, R_RCX, o->asize, o->count);
	if (id == I_MOVS)
		user_reg_write(cpu, R_RSI, o->asize, cpu->s.gpr[R_RSI]);
	if (id == I_MOVS || id == I_STOS)
		user_reg_write(cpu, R_RDI, o->asize, cpu->s.gpr[R_RDI]);
}

/* Returns false when there is nothing to do. */
static bool begin(struct string_op *o, struct dbt_cpu *cpu, const struct insn *in)
{
	*o = (struct string_op){
		.cpu = cpu,
		.size = in->opcode & 1 ? in->opsize : 1,
		.asize = in->addrsize,
		.seg = user_mem_seg(in),
		.is_rep = in->rep || in->repne,
		.count = 1,
		.budget = BATCH_ELEMENTS,
	};
	o->step = cpu->s.rflags & X86_FL_DF ? -(int64_t)o->size : (int64_t)o->size;
	if (o->is_rep)
		begin_rep(o, in);
	if (cpu->s.rflags & X86_FL_TF || cpu->debug.single_step)
		o->budget = 1;
	return o->count;
}

static uint64_t offset_of(const struct string_op *o, unsigned reg)
{
	return o->cpu->s.gpr[reg] & user_mask(o->asize);
}

static void advance(const struct string_op *o, unsigned reg, uint64_t n)
{
	user_reg_write(o->cpu, reg, o->asize, o->cpu->s.gpr[reg] + (uint64_t)o->step * n);
}

/* @n iterations are complete, one by one (@is_slow) or in a run.  Returns true if more may be done now. */
static bool done(struct string_op *o, uint64_t n, bool is_slow)
{
	if (!o->is_rep)
		return false;
	o->count -= n;
	user_reg_write(o->cpu, R_RCX, o->asize, o->cpu->s.gpr[R_RCX] - n);
	if (is_slow)
		o->budget--;
	return o->count && o->budget && !o->cpu->dr6_pending;
}

/* Left with iterations to do: come back to this instruction. */
static void finish(const struct string_op *o)
{
	if (!o->is_rep || !o->count)
		return;
	o->cpu->next_rip = o->cpu->s.rip;
	o->cpu->s.rflags |= X86_FL_RF;
	o->cpu->is_rf_cleared = false;
	o->cpu->is_partial = true;
}

/* ---- runs in plain RAM ---- */

/* Bytes from seg:off forward that lie in one page and within the segment; 0: element by element. */
static uint64_t run_room(const struct string_op *o, unsigned seg, uint64_t off, unsigned acc,
			 uint64_t *lin)
{
	const struct x86_seg *s = &o->cpu->s.seg[seg];
	uint64_t room;

	*lin = mem_linear(o->cpu, seg, off, o->size, acc);
	room = PAGE_BYTES - (*lin & (PAGE_BYTES - 1));
	if (o->cpu->code_bits != 64) {
		if ((s->attr & (SEG_ATTR_S | 0xc)) == (SEG_ATTR_S | 4)) /* expand-down */
			return 0;
		room = MIN(room, s->limit - off + 1);
	}
	if (o->asize != 8)
		room = MIN(room, user_mask(o->asize) - off + 1);
	return room;
}

static bool is_direct(const struct dbt_cpu *cpu, uint64_t lin, bool is_write, uint64_t *i)
{
	const struct dbt_tlb *t = &cpu->tlb[cpu->tlb_mode];

	*i = lin >> 12 & ((1u << cpu->tlb_bits) - 1);
	return lin + (is_write ? t->wneg : t->rneg)[*i] < PAGE_BYTES;
}

static void *direct(struct dbt_cpu *cpu, uint64_t lin, bool is_write)
{
	uint64_t i;

	/* mmu_fill() may resize the TLB. */
	if (!is_direct(cpu, lin, is_write, &i) &&
	    (!mmu_fill(cpu, lin, 1, is_write, cpu->tlb_mode) || !is_direct(cpu, lin, is_write, &i)))
		return NULL;
	return (void *)(uintptr_t)(cpu->tlb[cpu->tlb_mode].xlat[i] + lin % GUEST_PAGE_SIZE);
}

/* May several iterations run as one? */
static bool may_run(const struct string_op *o)
{
	return o->is_rep && o->step > 0 && o->budget > 1 && o->count > 1 &&
	       !(o->cpu->s.dr7 & 0xff) && !o->cpu->debug.nbreak;
}

static void host_movs(void *dst, const void *src, uint64_t n, unsigned size)
{
	switch (size) {
	case 1:
		__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
		break;
	case 2:
		__asm__ volatile("rep movsw" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
		break;
	case 4:
		__asm__ volatile("rep movsl" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
		break;
	default:
		__asm__ volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
		break;
	}
}

static void host_stos(void *dst, uint64_t val, uint64_t n, unsigned size)
{
	switch (size) {
	case 1:
		__asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(val) : "memory");
		break;
	case 2:
		__asm__ volatile("rep stosw" : "+D"(dst), "+c"(n) : "a"(val) : "memory");
		break;
	case 4:
		__asm__ volatile("rep stosl" : "+D"(dst), "+c"(n) : "a"(val) : "memory");
		break;
	default:
		__asm__ volatile("rep stosq" : "+D"(dst), "+c"(n) : "a"(val) : "memory");
		break;
	}
}

static uint64_t movs_run(struct string_op *o)
{
	uint64_t from = offset_of(o, R_RSI), to = offset_of(o, R_RDI), from_lin, to_lin, n;
	void *dst, *src;

	n = run_room(o, o->seg, from, ACC_READ, &from_lin);
	n = MIN(n, run_room(o, SEG_ES, to, ACC_WRITE, &to_lin)) / o->size;
	n = MIN(n, o->count);
	if (n < 2)
		return 0;
	dst = direct(o->cpu, to_lin, true);
	if (!dst)
		return 0;
	src = direct(o->cpu, from_lin, false);
	/* Filling the source's entry may have taken the place of the other. */
	if (!src || direct(o->cpu, to_lin, true) != dst)
		return 0;
	host_movs(dst, src, n, o->size);
	return n;
}

static uint64_t stos_run(struct string_op *o)
{
	uint64_t lin, n;
	void *dst;

	n = run_room(o, SEG_ES, offset_of(o, R_RDI), ACC_WRITE, &lin) / o->size;
	n = MIN(n, o->count);
	if (n < 2)
		return 0;
	dst = direct(o->cpu, lin, true);
	if (!dst)
		return 0;
	host_stos(dst, o->cpu->s.gpr[R_RAX], n, o->size);
	return n;
}

/* ---- the instructions ---- */

/*
 * MOVS and STOS: runs where possible, else single elements.  After a run was refused the next few elements
 * do not ask again.
 */
static void transfer(struct string_op *o, uint64_t (*run)(struct string_op *o),
		     void (*one)(struct string_op *o), bool has_src)
{
	uint64_t n, bytes = 0;
	unsigned skip = 0;

	do {
		n = 0;
		if (skip)
			skip--;
		else if (may_run(o))
			n = run(o);
		if (!n) {
			one(o);
			skip = skip ? skip : SKIP_ELEMENTS;
		}
		n = n ? n : 1;
		if (has_src)
			advance(o, R_RSI, n);
		advance(o, R_RDI, n);
		bytes += n * o->size;
	} while (done(o, n, n == 1) && bytes < BATCH_BYTES);
	finish(o);
}

static void movs_one(struct string_op *o)
{
	uint64_t val = mem_read(o->cpu, o->seg, offset_of(o, R_RSI), o->size);

	mem_write(o->cpu, SEG_ES, offset_of(o, R_RDI), o->size, val);
}

static void stos_one(struct string_op *o)
{
	mem_write(o->cpu, SEG_ES, offset_of(o, R_RDI), o->size,
		  o->cpu->s.gpr[R_RAX] & user_mask(o->size));
}

void user_movs(struct dbt_cpu *cpu, const struct insn *in)
{
	struct string_op o;

	if (begin(&o, cpu, in))
		transfer(&o, movs_run, movs_one, true);
}

void user_stos(struct dbt_cpu *cpu, const struct insn *in)
{
	struct string_op o;

	if (begin(&o, cpu, in))
		transfer(&o, stos_run, stos_one, false);
}

void user_lods(struct dbt_cpu *cpu, const struct insn *in)
{
	struct string_op o;

	if (!begin(&o, cpu, in))
		return;
	do {
		user_reg_write(cpu, R_RAX, o.size, mem_read(cpu, o.seg, offset_of(&o, R_RSI), o.size));
		advance(&o, R_RSI, 1);
	} while (done(&o, 1, true));
	finish(&o);
}

/* Arithmetic flags as LAHF and SETO AL leave them in AX. */
static uint64_t flags_of(uint64_t ax)
{
	return (ax >> 8 & (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF)) | (ax & 1 ? FL_OF : 0);
}

/* Arithmetic flags of a - b, from the host's own CMP. */
static uint64_t compare(uint64_t a, uint64_t b, unsigned size)
{
	uint64_t ax;

	switch (size) {
	case 1:
		__asm__("cmpb %b2, %b1; lahf; seto %%al" : "=&a"(ax) : "q"(a), "q"(b) : "cc");
		break;
	case 2:
		__asm__("cmpw %w2, %w1; lahf; seto %%al" : "=&a"(ax) : "r"(a), "r"(b) : "cc");
		break;
	case 4:
		__asm__("cmpl %k2, %k1; lahf; seto %%al" : "=&a"(ax) : "r"(a), "r"(b) : "cc");
		break;
	default:
		__asm__("cmpq %2, %1; lahf; seto %%al" : "=&a"(ax) : "r"(a), "r"(b) : "cc");
		break;
	}
	return flags_of(ax);
}

/* What a run of comparisons found. */
struct run {
	uint64_t n;	/* comparisons made; 0: none */
	uint64_t flags; /* of the last */
};

#define HOST_SCAS(rep, suffix)                                                                     \
	__asm__ volatile(rep " scas" suffix "; lahf; seto %%al"                                    \
			 : "+D"(p), "+c"(left), "+a"(ax)                                           \
			 :                                                                         \
			 : "memory", "cc")
#define HOST_CMPS(rep, suffix)                                                                     \
	__asm__ volatile(rep " cmps" suffix "; lahf; seto %%al"                                    \
			 : "+S"(a), "+D"(b), "+c"(left), "=a"(ax)                                  \
			 :                                                                         \
			 : "memory", "cc")

static struct run host_scas(const void *p, uint64_t val, uint64_t n, unsigned size, bool is_repne)
{
	uint64_t left = n, ax = val;

	switch (size * 2 + is_repne) {
	case 2:
		HOST_SCAS("repe", "b");
		break;
	case 3:
		HOST_SCAS("repne", "b");
		break;
	case 4:
		HOST_SCAS("repe", "w");
		break;
	case 5:
		HOST_SCAS("repne", "w");
		break;
	case 8:
		HOST_SCAS("repe", "l");
		break;
	case 9:
		HOST_SCAS("repne", "l");
		break;
	case 16:
		HOST_SCAS("repe", "q");
		break;
	default:
		HOST_SCAS("repne", "q");
		break;
	}
	return (struct run){ n - left, flags_of(ax) };
}

static struct run host_cmps(const void *a, const void *b, uint64_t n, unsigned size, bool is_repne)
{
	uint64_t left = n, ax;

	switch (size * 2 + is_repne) {
	case 2:
		HOST_CMPS("repe", "b");
		break;
	case 3:
		HOST_CMPS("repne", "b");
		break;
	case 4:
		HOST_CMPS("repe", "w");
		break;
	case 5:
		HOST_CMPS("repne", "w");
		break;
	case 8:
		HOST_CMPS("repe", "l");
		break;
	case 9:
		HOST_CMPS("repne", "l");
		break;
	case 16:
		HOST_CMPS("repe", "q");
		break;
	default:
		HOST_CMPS("repne", "q");
		break;
	}
	return (struct run){ n - left, flags_of(ax) };
}

static struct run scas_run(struct string_op *o, bool is_repne)
{
	uint64_t lin, n;
	void *p;

	n = MIN(run_room(o, SEG_ES, offset_of(o, R_RDI), ACC_READ, &lin) / o->size, o->count);
	p = n < 2 ? NULL : direct(o->cpu, lin, false);
	if (!p)
		return (struct run){ 0 };
	return host_scas(p, o->cpu->s.gpr[R_RAX], n, o->size, is_repne);
}

static struct run cmps_run(struct string_op *o, bool is_repne)
{
	uint64_t a_lin, b_lin, n;
	void *a, *b;

	/* In the order in which the operands are looked at, element by element. */
	if (o->cpu->vm->model.is_amd) {
		n = run_room(o, o->seg, offset_of(o, R_RSI), ACC_READ, &a_lin);
		n = MIN(n, run_room(o, SEG_ES, offset_of(o, R_RDI), ACC_READ, &b_lin));
	} else {
		n = run_room(o, SEG_ES, offset_of(o, R_RDI), ACC_READ, &b_lin);
		n = MIN(n, run_room(o, o->seg, offset_of(o, R_RSI), ACC_READ, &a_lin));
	}
	n = MIN(n / o->size, o->count);
	a = n < 2 ? NULL : direct(o->cpu, a_lin, false);
	b = a ? direct(o->cpu, b_lin, false) : NULL;
	/* Filling one entry may have taken the place of the other. */
	if (!b || direct(o->cpu, a_lin, false) != a)
		return (struct run){ 0 };
	return host_cmps(a, b, n, o->size, is_repne);
}

/*
 * @n comparisons are done; returns true while REPE/REPNE goes on.  On Intel's CPUs a fault in a repeated comparison
 * leaves the flags as they were before the instruction (SDM vol. 2, REP): they are written at the end.
 */
static bool done_compare(struct string_op *o, const struct insn *in, uint64_t n, uint64_t flags,
			 bool is_slow)
{
	struct x86_state *s = &o->cpu->s;
	bool more = done(o, n, is_slow);

	if (o->is_rep && !(flags & FL_ZF) != in->repne) {
		o->count = 0; /* the condition ended it */
		more = false;
	}
	if (!more || o->cpu->vm->model.is_amd)
		s->rflags = (s->rflags & ~(uint64_t)FL_ARITH) | flags;
	return more;
}

static uint64_t cmps_one(struct string_op *o)
{
	struct dbt_cpu *cpu = o->cpu;
	uint64_t a, b;

	/* Which of two faulting operands is reported: the second of them on Intel's CPUs, the first on AMD's. */
	if (cpu->vm->model.is_amd) {
		a = mem_read(cpu, o->seg, offset_of(o, R_RSI), o->size);
		b = mem_read(cpu, SEG_ES, offset_of(o, R_RDI), o->size);
	} else {
		b = mem_read(cpu, SEG_ES, offset_of(o, R_RDI), o->size);
		a = mem_read(cpu, o->seg, offset_of(o, R_RSI), o->size);
	}
	return compare(a, b, o->size);
}

static uint64_t scas_one(struct string_op *o)
{
	uint64_t b = mem_read(o->cpu, SEG_ES, offset_of(o, R_RDI), o->size);

	return compare(o->cpu->s.gpr[R_RAX], b, o->size);
}

/* CMPS and SCAS: as transfer(). */
static void search(struct string_op *o, const struct insn *in,
		   struct run (*run)(struct string_op *o, bool is_repne),
		   uint64_t (*one)(struct string_op *o), bool has_src)
{
	uint64_t bytes = 0;
	unsigned skip = 0;
	struct run r;
	bool is_slow;

	do {
		r.n = 0;
		if (skip)
			skip--;
		else if (may_run(o))
			r = run(o, in->repne);
		is_slow = !r.n;
		if (is_slow) {
			r = (struct run){ 1, one(o) };
			skip = skip ? skip : SKIP_ELEMENTS;
		}
		if (has_src)
			advance(o, R_RSI, r.n);
		advance(o, R_RDI, r.n);
		bytes += r.n * o->size;
	} while (done_compare(o, in, r.n, r.flags, is_slow) && bytes < BATCH_BYTES);
	finish(o);
}

void user_cmps(struct dbt_cpu *cpu, const struct insn *in)
{
	struct string_op o;

	if (begin(&o, cpu, in))
		search(&o, in, cmps_run, cmps_one, true);
}

void user_scas(struct dbt_cpu *cpu, const struct insn *in)
{
	struct string_op o;

	if (begin(&o, cpu, in))
		search(&o, in, scas_run, scas_one, false);
}
