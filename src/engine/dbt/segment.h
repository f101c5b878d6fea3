/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segment descriptors and what loads them: shared by the system-level files of the interpreter.
 *
 * A fault that names a selector carries its index and TI bit, and the EXT bit while an event is
 * being delivered (cpu->exc_ext).  Functions raise unless they say otherwise.
 *
 * Source: SDM vol. 3 3.4 (descriptors), 5.5-5.8 (protection), 8.2 (TSS).
 */
#ifndef VIV_DBT_SEGMENT_H
#define VIV_DBT_SEGMENT_H

#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"

/* A descriptor as it stands in a table. */
struct seg_desc {
	uint64_t va;	   /* linear address it was read from */
	uint32_t lo, hi;   /* bytes 3..0 and 7..4 */
	uint32_t lo2, hi2; /* bytes 11..8 and 15..12 of a long-mode system descriptor, else 0 */
};

/* System descriptor types (SDM vol. 3 table 3-2). */
enum {
	DESC_TSS16 = 1,
	DESC_LDT = 2,
	DESC_TSS16_BUSY = 3,
	DESC_CALL16 = 4,
	DESC_TASK_GATE = 5,
	DESC_INT16 = 6,
	DESC_TRAP16 = 7,
	DESC_TSS32 = 9, /* and the 64-bit TSS */
	DESC_TSS32_BUSY = 11,
	DESC_CALL32 = 12, /* and the 64-bit gates */
	DESC_INT32 = 14,
	DESC_TRAP32 = 15,
};

static inline unsigned desc_type(const struct seg_desc *d)
{
	return d->hi >> 8 & 15;
}
static inline bool desc_is_segment(const struct seg_desc *d) /* S = 1: code or data */
{
	return d->hi & 1u << 12;
}
static inline unsigned desc_dpl(const struct seg_desc *d)
{
	return d->hi >> 13 & 3;
}
static inline bool desc_is_present(const struct seg_desc *d)
{
	return d->hi & 1u << 15;
}
static inline bool desc_is_code(const struct seg_desc *d)
{
	return desc_is_segment(d) && desc_type(d) & 8;
}
static inline bool desc_is_conforming(const struct seg_desc *d) /* of a code segment */
{
	return desc_type(d) & 4;
}
static inline bool desc_is_writable_data(const struct seg_desc *d)
{
	return desc_is_segment(d) && (desc_type(d) & 10) == 2;
}
static inline bool desc_is_readable(const struct seg_desc *d) /* data, or readable code */
{
	return desc_is_segment(d) && (desc_type(d) & 10) != 8;
}
static inline bool desc_is_long(const struct seg_desc *d) /* L of a code segment */
{
	return d->hi & 1u << 21;
}
static inline bool desc_is_big(const struct seg_desc *d) /* D or B */
{
	return d->hi & 1u << 22;
}
static inline uint32_t desc_base(const struct seg_desc *d)
{
	return d->lo >> 16 | (d->hi & 0xff) << 16 | (d->hi & 0xff000000);
}
static inline uint32_t desc_limit(const struct seg_desc *d)
{
	uint32_t limit = (d->lo & 0xffff) | (d->hi & 0xf0000);

	return d->hi & 1u << 23 ? limit << 12 | 0xfff : limit;
}
static inline bool sel_is_null(uint16_t sel)
{
	return (sel & 0xfffc) == 0;
}
static inline bool va_is_canonical(uint64_t va)
{
	return (uint64_t)((int64_t)(va << 16) >> 16) == va;
}
static inline unsigned seg_type(const struct x86_seg *s)
{
	return s->attr & SEG_ATTR_TYPE;
}
static inline unsigned seg_dpl(const struct x86_seg *s)
{
	return s->attr >> SEG_ATTR_DPL_SHIFT & 3;
}

/** seg_fault() - raise @vector with the selector's error code. */
_Noreturn void seg_fault(struct dbt_cpu *cpu, unsigned vector, uint16_t sel);

/** desc_fetch() - read the descriptor of @sel.  Returns false when it lies outside its table (or
 * the LDT is not there); only a page fault is raised. */
bool desc_fetch(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d);
/** desc_fetch_system() - the same for a system descriptor: 16 bytes in long mode. */
bool desc_fetch_system(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d);
/** desc_set_accessed() - set the A bit in the table if it is clear. */
void desc_set_accessed(struct dbt_cpu *cpu, struct seg_desc *d);
/** desc_set_busy() - make the TSS descriptor busy or available in the table. */
void desc_set_busy(struct dbt_cpu *cpu, const struct seg_desc *d, bool is_busy);

/** seg_fill() - hidden part from a descriptor.  Never raises. */
void seg_fill(struct x86_seg *s, uint16_t sel, const struct seg_desc *d);
/** seg_fill_system() - LDTR and TR: with the upper half of the base.  Never raises. */
void seg_fill_system(struct x86_seg *s, uint16_t sel, const struct seg_desc *d);
/** seg_set_null() - the NULL selector in @s; SS keeps @cpl in its DPL.  Never raises. */
void seg_set_null(struct x86_seg *s, uint16_t sel, unsigned cpl);
/** seg_set_vm86() - virtual-8086 form of @selector.  Never raises. */
void seg_set_vm86(struct x86_seg *s, uint16_t selector);
/** seg_set_flat() - fixed 4 GiB segment of SYSCALL and friends.  Never raises. */
void seg_set_flat(struct x86_seg *s, uint16_t selector, uint16_t attr);
/** seg_drop_outer() - return to outer @cpl: forget ES, DS, FS, GS that it may not use. */
void seg_drop_outer(struct dbt_cpu *cpu, unsigned cpl);

/** code_check_rip() - raise #GP(EXT) unless @rip may be executed in the code segment @d.  Returns
 * it as RIP will hold it. */
uint64_t code_check_rip(struct dbt_cpu *cpu, const struct seg_desc *d, uint64_t rip);

/*
 * A stack that values are pushed on or read from before anything is committed: the current one,
 * or one that is about to be switched to.  Memory is accessed as @cpl would.
 */
struct stack_frame {
	struct x86_seg ss;
	uint64_t sp;   /* moves with each push */
	uint64_t mask; /* of the stack's address size */
	unsigned cpl;
	bool is_long; /* flat 64-bit stack */
	uint32_t err; /* error code of #SS */
};
void stack_frame_current(struct dbt_cpu *cpu, struct stack_frame *f);
void stack_frame_init(struct dbt_cpu *cpu, struct stack_frame *f, const struct x86_seg *ss,
		      uint64_t sp, unsigned cpl, bool is_long, uint32_t err);
void stack_frame_push(struct dbt_cpu *cpu, struct stack_frame *f, unsigned size, uint64_t val);
uint64_t stack_frame_read(struct dbt_cpu *cpu, const struct stack_frame *f, unsigned size, unsigned off);
/** stack_set_sp() - write rSP as a stack of that kind does.  Never raises. */
void stack_set_sp(struct dbt_cpu *cpu, const struct stack_frame *f, uint64_t sp);

/** tss_inner_stack() - the stack for privilege level @cpl (long mode: or IST entry @ist, 1..7) from
 * the TSS, checked as SDM vol. 3 6.12.1 asks (#TS, #SS). */
void tss_inner_stack(struct dbt_cpu *cpu, unsigned cpl, unsigned ist, struct x86_seg *ss, uint64_t *sp);

/** tss_is_wide() - TR holds a 32-bit (or 64-bit) TSS. */
static inline bool tss_is_wide(const struct dbt_cpu *cpu)
{
	return cpu->s.tr.attr & 8;
}

#endif
