/* SPDX-License-Identifier: Apache-2.0 */
/* From a device's address to guest memory: 3.4, 3.7; formats of the tables: 9.1, 9.3, 9.8. */
#include <errno.h>

#include "dev/chipset/apic_msg.h"
#include "dev/iommu/vtd_regs.h"

#define PRESENT	     1ULL
#define ADDRESS_MASK 0x000ffffffffff000ULL
#define HIGH_MASK    0xfffffffffffff000ULL /* an address up to bit 63: root and context entries */

/* 9.3 */
#define CONTEXT_FPD	  2ULL /* faults of this device are not recorded */
#define CONTEXT_TYPE(low) ((low) >> 2 & 3)
#define CONTEXT_AW(high)  ((high)&7)
#define CONTEXT_LOW_RSVD  0xff0ULL
#define CONTEXT_HIGH_RSVD 0xffffffffff000080ULL
#define TYPE_UNTRANSLATED 0
#define TYPE_PASS_THROUGH 2

/* 9.8 */
#define SL_READ	 1ULL
#define SL_WRITE 2ULL
#define SL_LARGE (1ULL << 7)
#define SL_SNOOP (1ULL << 11) /* of leaves only */
#define SL_TM	 (1ULL << 62) /* of device TLBs, which there are not */

#define INTERRUPT_END (APIC_MSI_BASE + MIB)

/* One request, and what is told of it if it is refused. */
struct request {
	struct vtd *v;
	uint16_t source_id;
	uint64_t addr;
	bool is_write;
	bool is_quiet; /* FPD */
};

static int refuse(const struct request *r, enum vtd_fault reason)
{
	if (!r->is_quiet)
		vtd_fault(r->v, r->source_id, r->addr & HIGH_MASK, !r->is_write, reason);
	return -EFAULT;
}

static int read_entry(const struct request *r, gpa_t gpa, uint64_t e[2])
{
	return ram_read(r->v->env.ram, gpa, e, 16);
}

/* The context entry of the requester: 3.4.2, 3.4.3. */
static int find_context(struct request *r, uint64_t context[2])
{
	uint64_t root[2], bad = vtd_too_high(r->v);

	if (read_entry(r, (r->v->root & HIGH_MASK) + (r->source_id >> 8) * 16, root) < 0)
		return refuse(r, VTD_ROOT_ACCESS);
	if (!(root[0] & PRESENT))
		return refuse(r, VTD_ROOT_NOT_PRESENT);
	if (root[1] || (root[0] & ~(HIGH_MASK | PRESENT)) || (root[0] & bad))
		return refuse(r, VTD_ROOT_RESERVED);
	if (read_entry(r, (root[0] & HIGH_MASK) + (r->source_id & 0xff) * 16, context) < 0)
		return refuse(r, VTD_CONTEXT_ACCESS);
	r->is_quiet = context[0] & CONTEXT_FPD;
	if (!(context[0] & PRESENT))
		return refuse(r, VTD_CONTEXT_NOT_PRESENT);
	if ((context[0] & CONTEXT_LOW_RSVD) || (context[1] & CONTEXT_HIGH_RSVD) || (context[0] & bad))
		return refuse(r, VTD_CONTEXT_RESERVED);
	return 0;
}

/* Bits of an entry of @level that must be 0: 9.8. */
static uint64_t reserved_bits(const struct vtd *v, unsigned level, bool is_leaf)
{
	uint64_t rsvd = (vtd_too_high(v) & ADDRESS_MASK) | SL_TM;

	if (!is_leaf)
		rsvd |= SL_SNOOP | (level == 4 ? SL_LARGE : 0);
	else if (level > 1) /* below the page's size */
		rsvd |= ((1ULL << (3 + 9 * level)) - 1) & ADDRESS_MASK;
	return rsvd;
}

/* 3.7: @levels tables of 512 entries. */
static int walk(const struct request *r, gpa_t table, unsigned levels, gpa_t *gpa, uint64_t *len)
{
	uint64_t need = r->is_write ? SL_WRITE : SL_READ;

	for (unsigned level = levels;; level--) {
		unsigned shift = 3 + 9 * level;
		uint64_t e, page = 1ULL << shift;

		if (ram_read(r->v->env.ram, table + (r->addr >> shift & 511) * 8, &e, 8) < 0)
			return refuse(r, VTD_TABLE_ACCESS);
		bool is_leaf = level == 1 || (level < 4 && (e & SL_LARGE));

		if ((e & (SL_READ | SL_WRITE)) && (e & reserved_bits(r->v, level, is_leaf)))
			return refuse(r, VTD_TABLE_RESERVED);
		if (!(e & need))
			return refuse(r, r->is_write ? VTD_NO_WRITE : VTD_NO_READ);
		if (is_leaf) {
			*gpa = (e & ADDRESS_MASK) | (r->addr & (page - 1));
			*len = MIN(*len, page - (r->addr & (page - 1)));
			return 0;
		}
		table = e & ADDRESS_MASK;
	}
}

int vtd_translate(struct iommu *u, uint16_t source_id, uint64_t addr, bool is_write, gpa_t *gpa,
		  uint64_t *len)
{
	struct vtd *v = container_of(u, struct vtd, iommu);
	struct request r = { v, source_id, addr, is_write, false };
	uint64_t context[2];

	*gpa = addr;
	/* 3.14: that range is the interrupts', whatever tables say; as memory there is nothing. */
	if (addr < APIC_MSI_BASE)
		*len = MIN(*len, APIC_MSI_BASE - addr);
	if (!(v->gsts & VTD_TE) || (addr >= APIC_MSI_BASE && addr < INTERRUPT_END))
		return 0;
	if (find_context(&r, context) < 0)
		return -EFAULT;
	/* AW 1: 39 bits, 3 levels; 2: 48 bits, 4 levels */
	unsigned type = CONTEXT_TYPE(context[0]), aw = CONTEXT_AW(context[1]);

	if ((aw != 1 && aw != 2) || (type != TYPE_UNTRANSLATED && type != TYPE_PASS_THROUGH))
		return refuse(&r, VTD_CONTEXT_INVALID);
	if (addr >> (30 + 9 * aw))
		return refuse(&r, VTD_ADDRESS_TOO_WIDE);
	*len = MIN(*len, (1ULL << (30 + 9 * aw)) - addr);
	if (type == TYPE_PASS_THROUGH)
		return 0;
	return walk(&r, context[0] & HIGH_MASK, aw + 2, gpa, len);
}
