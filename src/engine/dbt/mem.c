/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory operands of interpreted instructions: segmentation, alignment, page crossing, devices, noticed
 * writes, data breakpoints.
 *
 * How it works: an access within a page whose TLB entry allows it is one host access.  Everything
 * else goes through locate(): it turns the operand into at most two spans (one a page), all checked before
 * a byte is touched, and raises; spans_read() and spans_write() cannot fail any more.
 *
 * Order of checks (SDM vol. 3 6.9 leaves it open within the class): segment and canonical form,
 * alignment, then paging from the lower page to the higher one.
 *
 * Invariants
 *  1. A device is touched only after every check of the access has passed, and once a piece.
 *  2. A slow write to RAM is followed by note_write(), which looks at the page's flags after the bytes are
 *     visible: a translator that marks the page before it reads the bytes sees either them or our notice.
 *  3. An exclusive section is left before anything raises.
 */
#include "engine/dbt/mmu.h"

#define PAGE_OFFSET 0xfffULL

/* Guest memory changes under us: each access is exactly one, of exactly this size. */
typedef uint16_t u16_any __attribute__((aligned(1), may_alias));
typedef uint32_t u32_any __attribute__((aligned(1), may_alias));
typedef uint64_t u64_any __attribute__((aligned(1), may_alias));

static uint64_t host_load(const void *p, unsigned size)
{
	switch (size) {
	case 1:
		return *(const volatile uint8_t *)p;
	case 2:
		return *(const volatile u16_any *)p;
	case 4:
		return *(const volatile u32_any *)p;
	default:
		return *(const volatile u64_any *)p;
	}
}

static void host_store(void *p, unsigned size, uint64_t val)
{
	switch (size) {
	case 1:
		*(volatile uint8_t *)p = (uint8_t)val;
		break;
	case 2:
		*(volatile u16_any *)p = (uint16_t)val;
		break;
	case 4:
		*(volatile u32_any *)p = (uint32_t)val;
		break;
	default:
		*(volatile u64_any *)p = val;
	}
}

/* ---- TLB hits ----------------------------------------------------------------------------- */

/* Host pointer to [@va, +@size) if the entry allows it now, else NULL. */
static void *tlb_hit(struct dbt_cpu *cpu, uint64_t va, unsigned size, unsigned mode, bool is_write)
{
	const struct dbt_tlb *t = &cpu->tlb[mode];
	uint32_t i = (uint32_t)((va & cpu->tlb_mask) >> GUEST_PAGE_SHIFT);
	uint64_t in = va + (is_write ? t->wneg[i] : t->rneg[i]);

	if (in >= GUEST_PAGE_SIZE || in + size > GUEST_PAGE_SIZE)
		return NULL;
	return (void *)(uintptr_t)(t->xlat[i] + in);
}

/* ---- data breakpoints (SDM vol. 3 17.2) --------------------------------------------------- */

static bool is_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return a - b < blen || b - a < alen;
}

static void watch_slow(struct dbt_cpu *cpu, uint64_t va, unsigned size, bool is_write)
{
	static const uint8_t lens[] = { 1, 2, 8, 4 };

	for (unsigned i = 0; i < 4; i++) {
		unsigned rw = cpu->s.dr7 >> (16 + 4 * i) & 3;
		uint64_t len = lens[cpu->s.dr7 >> (18 + 4 * i) & 3];
		if (!(cpu->s.dr7 >> (2 * i) & 3) || !(rw == 3 || (rw == 1 && is_write)))
			continue;
		if (is_overlap(va, size, cpu->s.dr[i] & ~(len - 1), len))
			cpu->dr6_pending |= 1ULL << i;
	}
	for (unsigned i = 0; i < cpu->debug.nbreak; i++) {
		uint8_t kind = cpu->debug.bp[i].kind;
		if ((kind == 3 || (kind == 1 && is_write)) &&
		    is_overlap(va, size, cpu->debug.bp[i].addr, cpu->debug.bp[i].len))
			cpu->is_debug_hit = true;
	}
}

static inline void watch(struct dbt_cpu *cpu, uint64_t va, unsigned size, bool is_write)
{
	if (unlikely(cpu->s.dr7 & 0xff || cpu->debug.nbreak))
		watch_slow(cpu, va, size, is_write);
}

/* ---- spans -------------------------------------------------------------------------------- */

static uint64_t wrap_linear(const struct dbt_cpu *cpu, uint64_t va)
{
	return dbt_is_long(cpu) ? va : va & 0xffffffff;
}

/*
 * Translate [@va, +@size), at most two pages.  Returns how many spans there are; 0 for a page fault at
 * *@fault_va with *@pf_err.
 */
static unsigned locate_probe(struct dbt_cpu *cpu, uint64_t va, unsigned size, unsigned mode,
			     unsigned acc, struct mem_span span[2], uint64_t *fault_va, uint32_t *pf_err)
{
	unsigned n = 0;

	while (size) {
		unsigned len = MIN(size, (unsigned)(GUEST_PAGE_SIZE - (va & PAGE_OFFSET)));
		struct mmu_page page;

		if (!mmu_translate(cpu, va, mode, acc & ACC_WRITE ? ACC_WRITE : ACC_READ, &page, pf_err)) {
			*fault_va = va;
			return 0;
		}
		span[n++] = (struct mem_span){
			.offset = page.offset + (va & PAGE_OFFSET),
			.gpa = page.gpa + (va & PAGE_OFFSET),
			.len = len,
			.is_ram = page.is_ram,
			.is_writable = page.is_writable,
		};
		va = wrap_linear(cpu, va + len);
		size -= len;
	}
	return n;
}

static unsigned locate(struct dbt_cpu *cpu, uint64_t va, unsigned size, unsigned mode, unsigned acc,
		       struct mem_span span[2])
{
	uint64_t fault_va;
	uint32_t pf_err;
	unsigned n = locate_probe(cpu, va, size, mode, acc, span, &fault_va, &pf_err);

	if (!n)
		dbt_raise_pf(cpu, fault_va, pf_err);
	return n;
}

/* The largest naturally aligned piece at @gpa: 1, 2, 4 or 8 bytes. */
static unsigned mmio_piece(gpa_t gpa, unsigned len)
{
	unsigned n = 8;

	while (n > len || gpa & (n - 1))
		n /= 2;
	return n;
}

static void mmio_read(struct dbt_cpu *cpu, gpa_t gpa, uint8_t *dst, unsigned len)
{
	while (len) {
		struct vcpu_exit x = { .kind = EXIT_MMIO,
				       .size = (uint8_t)mmio_piece(gpa, len),
				       .addr = gpa };
		dbt_exit(cpu, &x);
		memcpy(dst, &x.data, x.size);
		gpa += x.size;
		dst += x.size;
		len -= x.size;
	}
}

static void mmio_write(struct dbt_cpu *cpu, gpa_t gpa, const uint8_t *src, unsigned len)
{
	while (len) {
		struct vcpu_exit x = { .kind = EXIT_MMIO,
				       .is_write = true,
				       .size = (uint8_t)mmio_piece(gpa, len),
				       .addr = gpa };
		memcpy(&x.data, src, x.size);
		dbt_exit(cpu, &x);
		gpa += x.size;
		src += x.size;
		len -= x.size;
	}
}

/* RAM [@offset, +@len) within a page was written. */
static void note_write(struct dbt_cpu *cpu, uint64_t offset, uint64_t len)
{
	atomic_thread_fence(memory_order_seq_cst);
	if (ram_note_dirty(cpu->vm->ram, offset) & RAM_PAGE_CODE)
		dbt_code_written(cpu->vm, offset, len);
}

static void spans_read(struct dbt_cpu *cpu, const struct mem_span *span, unsigned n, uint8_t *dst)
{
	for (; n; n--, dst += span->len, span++) {
		const uint8_t *src = cpu->vm->ram->base + span->offset;
		if (!span->is_ram) {
			mmio_read(cpu, span->gpa, dst, span->len);
		} else if (span->len == 2 || span->len == 4 || span->len == 8) {
			uint64_t v = host_load(src, span->len);
			memcpy(dst, &v, span->len);
		} else {
			memcpy(dst, src, span->len);
		}
	}
}

static void spans_write(struct dbt_cpu *cpu, const struct mem_span *span, unsigned n, const uint8_t *src)
{
	for (; n; n--, src += span->len, span++) {
		if (!span->is_ram) {
			mmio_write(cpu, span->gpa, src, span->len);
			continue;
		}
		if (!span->is_writable)
			continue; /* ROM */
		uint8_t *dst = cpu->vm->ram->base + span->offset;
		if (span->len == 2 || span->len == 4 || span->len == 8) {
			uint64_t v = 0;
			memcpy(&v, src, span->len);
			host_store(dst, span->len, v);
		} else {
			memcpy(dst, src, span->len);
		}
		note_write(cpu, span->offset, span->len);
	}
}

/* ---- values by linear address ------------------------------------------------------------- */

static uint64_t value_read(struct dbt_cpu *cpu, uint64_t va, unsigned size, unsigned mode)
{
	const void *p = tlb_hit(cpu, va, size, mode, false);
	uint64_t val = 0;

	if (likely(p)) {
		val = host_load(p, size);
	} else {
		struct mem_span span[2];
		unsigned n = locate(cpu, va, size, mode, ACC_READ, span);
		spans_read(cpu, span, n, (uint8_t *)&val);
	}
	watch(cpu, va, size, false);
	return val;
}

static void value_write(struct dbt_cpu *cpu, uint64_t va, unsigned size, uint64_t val, unsigned mode)
{
	void *p = tlb_hit(cpu, va, size, mode, true);

	if (likely(p)) {
		host_store(p, size, val);
	} else {
		struct mem_span span[2];
		unsigned n = locate(cpu, va, size, mode, ACC_WRITE, span);
		spans_write(cpu, span, n, (const uint8_t *)&val);
	}
	watch(cpu, va, size, true);
}

/* ---- segmentation ------------------------------------------------------------------------- */

static _Noreturn void raise_segment(struct dbt_cpu *cpu, unsigned seg)
{
	dbt_raise_err(cpu, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

/* Type and presence, SDM vol. 3 5.5 and 5.7; real and virtual-8086 mode have no types. */
static bool is_type_ok(const struct x86_seg *s, unsigned acc)
{
	bool is_code = s->attr & 8;

	if (s->attr & SEG_ATTR_UNUSABLE)
		return false;
	if (acc & ACC_WRITE && (is_code || !(s->attr & 2)))
		return false;
	return !(acc & ACC_READ && is_code && !(s->attr & 2));
}

static bool is_in_limit(const struct x86_seg *s, uint64_t ea, unsigned size)
{
	uint64_t last = ea + size - 1;

	if ((s->attr & (SEG_ATTR_S | 0xc)) == (SEG_ATTR_S | 4)) /* expand-down data */
		return ea > s->limit && last <= (s->attr & SEG_ATTR_DB ? 0xffffffff : 0xffff);
	/* What runs over the end of a segment of 4G wraps (SDM vol. 3 5.3 leaves it open). */
	return last <= s->limit || s->limit == 0xffffffff;
}

uint64_t mem_linear(struct dbt_cpu *cpu, unsigned seg, uint64_t ea, unsigned size, unsigned acc)
{
	const struct x86_seg *s = &cpu->s.seg[seg];

	if (cpu->code_bits == 64) {
		uint64_t va = ea + (seg >= SEG_FS ? s->base : 0);
		if (unlikely(!mmu_is_canonical(va) || !mmu_is_canonical(va + size - 1)))
			raise_segment(cpu, seg);
		return va;
	}
	if (dbt_is_protected(cpu) && unlikely(!is_type_ok(s, acc)))
		raise_segment(cpu, seg);
	if (unlikely(!is_in_limit(s, ea, size)))
		raise_segment(cpu, seg);
	return (s->base + ea) & 0xffffffff;
}

/* ---- alignment (SDM vol. 3 table 6-7) ----------------------------------------------------- */

/* What an operand of @size bytes must be aligned to for EFLAGS.AC; 1: not checked. */
static unsigned natural_alignment(unsigned size)
{
	switch (size) {
	case 2:
	case 14: /* 16-bit x87 environment */
	case 94:
		return 2;
	case 4:
	case 6: /* far pointer, pseudo-descriptor */
	case 28:
	case 108:
		return 4;
	case 8:
	case 10: /* extended real, far pointer */
		return 8;
	default:
		return 1;
	}
}

static inline void check_alignment(struct dbt_cpu *cpu, uint64_t va, unsigned size)
{
	if (unlikely(cpu->mode_key & DBT_MODE_ALIGN) && va & (natural_alignment(size) - 1))
		dbt_raise_err(cpu, EXC_AC, 0);
}

/* ---- the doors ---------------------------------------------------------------------------- */

uint64_t mem_read_lin(struct dbt_cpu *cpu, uint64_t va, unsigned size)
{
	check_alignment(cpu, va, size);
	return value_read(cpu, va, size, cpu->tlb_mode);
}

void mem_write_lin(struct dbt_cpu *cpu, uint64_t va, unsigned size, uint64_t val)
{
	check_alignment(cpu, va, size);
	value_write(cpu, va, size, val, cpu->tlb_mode);
}

uint64_t mem_read(struct dbt_cpu *cpu, unsigned seg, uint64_t ea, unsigned size)
{
	return mem_read_lin(cpu, mem_linear(cpu, seg, ea, size, ACC_READ), size);
}

void mem_write(struct dbt_cpu *cpu, unsigned seg, uint64_t ea, unsigned size, uint64_t val)
{
	mem_write_lin(cpu, mem_linear(cpu, seg, ea, size, ACC_WRITE), size, val);
}

static uint64_t sys_address(struct dbt_cpu *cpu, uint64_t va, unsigned size)
{
	if (!dbt_is_long(cpu))
		return va & 0xffffffff;
	if (!mmu_is_canonical(va) || !mmu_is_canonical(va + size - 1))
		dbt_raise_err(cpu, EXC_GP, 0);
	return va;
}

uint64_t sys_read(struct dbt_cpu *cpu, uint64_t va, unsigned size)
{
	return value_read(cpu, sys_address(cpu, va, size), size, DBT_TLB_KERNEL);
}

void sys_write(struct dbt_cpu *cpu, uint64_t va, unsigned size, uint64_t val)
{
	value_write(cpu, sys_address(cpu, va, size), size, val, DBT_TLB_KERNEL);
}

void sys_check_write(struct dbt_cpu *cpu, uint64_t va, unsigned len)
{
	struct mem_span span[2];

	va = sys_address(cpu, va, len);
	while (len) {
		unsigned n = MIN(len, (unsigned)(GUEST_PAGE_SIZE - (va & PAGE_OFFSET)));
		if (!tlb_hit(cpu, va, n, DBT_TLB_KERNEL, true))
			locate(cpu, va, n, DBT_TLB_KERNEL, ACC_WRITE, span);
		va = wrap_linear(cpu, va + n);
		len -= n;
	}
}

/* ---- operands for thunks ------------------------------------------------------------------ */

/* Straight into RAM?  Only one page of it, and not ROM to be written. */
static bool is_direct(const struct mem_span *span, unsigned n, unsigned acc)
{
	return n == 1 && span->is_ram && (span->is_writable || !(acc & ACC_WRITE));
}

/* The bytes before the instruction.  A device is read only if the instruction reads it; RAM always, as an
 * instruction may leave bytes of its operand alone. */
static void bounce_fill(struct dbt_cpu *cpu, struct mem_op *op, unsigned n)
{
	uint8_t *dst = op->bounce;

	for (unsigned i = 0; i < n; dst += op->span[i].len, i++) {
		if (op->span[i].is_ram || op->acc & ACC_READ)
			spans_read(cpu, &op->span[i], 1, dst);
		else
			memset(dst, 0, op->span[i].len);
	}
}

/* A locked operand in two pages or cache lines: nobody else may run meanwhile.  The tables may have changed while
 * we waited: look again. */
static unsigned locate_exclusive(struct dbt_cpu *cpu, struct mem_op *op)
{
	uint64_t fault_va;
	uint32_t pf_err;

	dbt_exclusive_begin(cpu);
	unsigned n = locate_probe(cpu, op->va, op->size, cpu->tlb_mode, op->acc, op->span,
				  &fault_va, &pf_err);
	if (!n) {
		dbt_exclusive_end(cpu);
		dbt_raise_pf(cpu, fault_va, pf_err);
	}
	op->is_exclusive = true;
	return n;
}

void mem_begin(struct dbt_cpu *cpu, struct mem_op *op, unsigned seg, uint64_t ea, unsigned size,
	       unsigned acc, bool is_locked)
{
	uint64_t va = mem_linear(cpu, seg, ea, size, acc);
	unsigned mode = cpu->tlb_mode;

	check_alignment(cpu, va, size);
	op->va = va;
	op->size = size;
	op->acc = (uint8_t)acc;
	op->is_bounced = op->is_noted = op->is_exclusive = false;
	is_locked = is_locked && (va & (DBT_LINE - 1)) + size > DBT_LINE;
	op->ptr = likely(!is_locked) ? tlb_hit(cpu, va, size, mode, acc & ACC_WRITE) : NULL;
	if (likely(op->ptr))
		return;

	unsigned n = locate(cpu, va, size, mode, acc, op->span);
	if (is_direct(op->span, n, acc) && !is_locked) {
		op->ptr = cpu->vm->ram->base + op->span[0].offset;
		op->is_noted = acc & ACC_WRITE;
		op->note_offset = op->span[0].offset;
		return;
	}
	/* A lock across a device's page locks nothing. */
	if (is_locked && op->span[0].is_ram && op->span[n - 1].is_ram)
		n = locate_exclusive(cpu, op);
	op->is_bounced = true;
	op->ptr = op->bounce;
	bounce_fill(cpu, op, n);
}

void mem_commit(struct dbt_cpu *cpu, struct mem_op *op)
{
	if (op->acc & ACC_WRITE) {
		if (op->is_bounced)
			spans_write(cpu, op->span, op->span[0].len < op->size ? 2 : 1, op->bounce);
		else if (op->is_noted)
			note_write(cpu, op->note_offset, op->size);
	}
	mem_abort(cpu, op);
	watch(cpu, op->va, op->size, op->acc & ACC_WRITE);
}

void mem_abort(struct dbt_cpu *cpu, struct mem_op *op)
{
	if (op->is_exclusive)
		dbt_exclusive_end(cpu);
	op->is_exclusive = false;
}
