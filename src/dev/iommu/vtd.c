/* SPDX-License-Identifier: Apache-2.0 */
/* The registers (10.4) and the life of the unit. */
#include "dev/iommu/vtd.h"

#include <errno.h>
#include <string.h>

#include "dev/iommu/vtd_regs.h"

#define VERSION 0x10

/* 10.4.2 */
#define CAP_ND	  6ULL		/* domains have 16 bits */
#define CAP_SAGAW (6ULL << 8)	/* 3 and 4 levels */
#define CAP_MGAW  (47ULL << 16) /* 48 bits */
#define CAP_ZLR	  (1ULL << 22)
#define CAP_FRO	  ((uint64_t)VTD_FRCD / 16 << 24)
#define CAP_SLLPS (3ULL << 34) /* 2M, 1G */
#define CAP_PSI	  (1ULL << 39)
#define CAP_NFR	  ((VTD_FAULTS - 1ULL) << 40)
#define CAP_MAMV  (18ULL << 48)
#define CAP                                                                                        \
	(CAP_ND | CAP_SAGAW | CAP_MGAW | CAP_ZLR | CAP_FRO | CAP_SLLPS | CAP_PSI | CAP_NFR | CAP_MAMV)

/* 10.4.3 */
#define ECAP_C	  (1ULL << 0) /* tables are read coherently */
#define ECAP_QI	  (1ULL << 1)
#define ECAP_IR	  (1ULL << 3)
#define ECAP_PT	  (1ULL << 6)
#define ECAP_SC	  (1ULL << 7)
#define ECAP_IRO  ((uint64_t)VTD_IVA / 16 << 8)
#define ECAP_MHMV (15ULL << 20)
#define ECAP	  (ECAP_C | ECAP_QI | ECAP_IR | ECAP_PT | ECAP_SC | ECAP_IRO | ECAP_MHMV)

/* Commands that stay on, and those that are done at once and show so for ever (10.4.5). */
#define GSTS_STATES (VTD_TE | VTD_QIE | VTD_IRE | VTD_CFI)
#define GSTS_DONE   (VTD_SRTP | VTD_SIRTP)

/* Writable bits; what is not there reads as 0. */
#define RTADDR_WRITABLE 0xfffffffffffff000ULL
#define IRTA_WRITABLE	0xfffffffffffff00fULL
#define IQA_WRITABLE	0xfffffffffffff007ULL
#define IQT_WRITABLE	0x7fff0u
#define EVENT_ADDR	0xfffffffcu
#define EVENT_DATA	0xffffu

/* 10.4.7: go; granularity asked for and done */
#define CCMD_ICC      (1ULL << 63)
#define CCMD_CIRG_AT  61
#define CCMD_CAIG_AT  59
#define CCMD_WRITABLE (CCMD_ICC | 3ULL << CCMD_CIRG_AT | 0x3ffffffffULL)
/* 10.4.8.1 */
#define IOTLB_IVT      (1ULL << 63)
#define IOTLB_IIRG_AT  60
#define IOTLB_IAIG_AT  57
#define IOTLB_WRITABLE (IOTLB_IVT | 3ULL << IOTLB_IIRG_AT | 0x0003ffff00000000ULL)

/* ---- commands ---- */

static void global_command(struct vtd *v, uint32_t value)
{
	uint32_t changed = (v->gsts ^ value) & GSTS_STATES;

	if (value & VTD_SRTP)
		v->root = v->rtaddr;
	if (value & VTD_SIRTP)
		v->intr_table = v->irta;
	v->gsts = (v->gsts & GSTS_DONE) | (value & (GSTS_STATES | GSTS_DONE));
	if (changed & VTD_QIE) {
		v->iqh = 0;
		vtd_queue_run(v);
	}
}

/* Invalidation by register: done as asked, there is nothing cached. */
static void context_command(struct vtd *v)
{
	uint64_t asked = v->ccmd >> CCMD_CIRG_AT & 3;

	if (v->ccmd & CCMD_ICC)
		v->ccmd = (v->ccmd & ~(CCMD_ICC | 3ULL << CCMD_CAIG_AT)) | asked << CCMD_CAIG_AT;
}

static void iotlb_command(struct vtd *v)
{
	uint64_t asked = v->iotlb >> IOTLB_IIRG_AT & 3;

	if (v->iotlb & IOTLB_IVT)
		v->iotlb = (v->iotlb & ~(IOTLB_IVT | 3ULL << IOTLB_IAIG_AT)) | asked << IOTLB_IAIG_AT;
}

/* ---- registers, 32 bits at a time ---- */

static uint32_t fault_read(const struct vtd *v, unsigned offset)
{
	const struct vtd_fault_record *f = &v->faults[offset / 16];
	uint64_t half = offset & 8 ? f->high : f->low;

	return (uint32_t)(half >> (offset & 4) * 8);
}

/* One of 64 bits, by the offset of its low half. */
static uint64_t read_wide(const struct vtd *v, unsigned reg)
{
	switch (reg) {
	case VTD_CAP:
		return CAP;
	case VTD_ECAP:
		return ECAP;
	case VTD_RTADDR:
		return v->rtaddr;
	case VTD_CCMD:
		return v->ccmd;
	case VTD_IQH:
		return v->iqh;
	case VTD_IQT:
		return v->iqt;
	case VTD_IQA:
		return v->iqa;
	case VTD_IRTA:
		return v->irta;
	case VTD_IOTLB:
		return v->iotlb;
	}
	return 0; /* nothing there, or write-only */
}

static uint32_t read_reg(const struct vtd *v, unsigned offset)
{
	switch (offset) {
	case VTD_VER:
		return VERSION;
	case VTD_GSTS:
		return v->gsts;
	case VTD_FSTS:
		return vtd_fsts(v);
	case VTD_FECTL:
		return v->fectl;
	case VTD_FEDATA:
		return v->fedata;
	case VTD_FEADDR:
		return v->feaddr;
	case VTD_FEUADDR:
		return v->feuaddr;
	case VTD_ICS:
		return v->ics;
	case VTD_IECTL:
		return v->iectl;
	case VTD_IEDATA:
		return v->iedata;
	case VTD_IEADDR:
		return v->ieaddr;
	case VTD_IEUADDR:
		return v->ieuaddr;
	}
	if (offset >= VTD_FRCD && offset < VTD_FRCD + VTD_FAULTS * 16)
		return fault_read(v, offset - VTD_FRCD);
	return (uint32_t)(read_wide(v, offset & ~7u) >> (offset & 4) * 8);
}

static void set_half(uint64_t *reg, bool is_high, uint32_t value, uint64_t writable)
{
	uint64_t mask = (is_high ? 0xffffffff00000000ULL : 0xffffffffULL) & writable;

	*reg = (*reg & ~mask) | ((is_high ? (uint64_t)value << 32 : value) & mask);
}

static void write_wide(struct vtd *v, unsigned offset, uint32_t value)
{
	bool is_high = offset & 4;

	switch (offset & ~7u) {
	case VTD_RTADDR:
		set_half(&v->rtaddr, is_high, value, RTADDR_WRITABLE);
		return;
	case VTD_CCMD:
		set_half(&v->ccmd, is_high, value, CCMD_WRITABLE);
		context_command(v);
		return;
	case VTD_IQT:
		if (!is_high) {
			v->iqt = value & IQT_WRITABLE;
			vtd_queue_run(v);
		}
		return;
	case VTD_IQA:
		set_half(&v->iqa, is_high, value, IQA_WRITABLE);
		return;
	case VTD_IRTA:
		set_half(&v->irta, is_high, value, IRTA_WRITABLE);
		return;
	case VTD_IVA:
		return; /* which pages are meant makes no difference */
	case VTD_IOTLB:
		set_half(&v->iotlb, is_high, value, IOTLB_WRITABLE);
		iotlb_command(v);
		return;
	}
	log_guest("vtd", "write of %#x to register %#x", value, offset);
}

static void write_reg(struct vtd *v, unsigned offset, uint32_t value)
{
	switch (offset) {
	case VTD_GCMD:
		global_command(v, value);
		return;
	case VTD_FSTS:
		vtd_fsts_write(v, value);
		return;
	case VTD_FECTL:
		vtd_event_control_write(v, &v->fectl, value, v->feaddr, v->feuaddr, v->fedata);
		return;
	case VTD_FEDATA:
		v->fedata = value & EVENT_DATA;
		return;
	case VTD_FEADDR:
		v->feaddr = value & EVENT_ADDR;
		return;
	case VTD_FEUADDR:
		v->feuaddr = value;
		return;
	case VTD_ICS:
		v->ics &= ~(value & VTD_IWC);
		if (!v->ics)
			v->iectl &= ~VTD_EVENT_PENDING;
		return;
	case VTD_IECTL:
		vtd_event_control_write(v, &v->iectl, value, v->ieaddr, v->ieuaddr, v->iedata);
		return;
	case VTD_IEDATA:
		v->iedata = value & EVENT_DATA;
		return;
	case VTD_IEADDR:
		v->ieaddr = value & EVENT_ADDR;
		return;
	case VTD_IEUADDR:
		v->ieuaddr = value;
		return;
	}
	if (offset < VTD_FRCD || offset >= VTD_FRCD + VTD_FAULTS * 16)
		write_wide(v, offset, value);
	else if (offset % 16 == 12)
		vtd_frcd_write(v, (offset - VTD_FRCD) / 16, value);
}

/* ---- the bus ---- */

static uint64_t mmio_read(void *dev, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	/* Any bytes: reading has no effects. */
	for (unsigned i = 0; i < size; i++) {
		unsigned at = (unsigned)offset + i;

		value |= (uint64_t)(read_reg(dev, at & ~3u) >> (at & 3) * 8 & 0xff) << i * 8;
	}
	return value;
}

static void mmio_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	if ((size != 4 && size != 8) || offset % size) { /* 10.2: nothing else is allowed */
		log_guest("vtd", "write of %u bytes at %#llx", size, (unsigned long long)offset);
		return;
	}
	write_reg(dev, (unsigned)offset, (uint32_t)value);
	if (size == 8)
		write_reg(dev, (unsigned)offset + 4, (uint32_t)(value >> 32));
}

static const struct bus_ops mmio_ops = { mmio_read, mmio_write };

/* ---- state ---- */

static int check(const void *obj, struct error *err)
{
	const struct vtd *v = obj;
	bool is_fine = !(v->gsts & ~(GSTS_STATES | GSTS_DONE)) &&
		       !(v->fsts & ~(0xff00u | VTD_PFO | VTD_IQE)) && (v->fsts >> 8) < VTD_FAULTS &&
		       v->next_fault < VTD_FAULTS &&
		       !((v->fectl | v->iectl) & ~(VTD_EVENT_MASK | VTD_EVENT_PENDING)) &&
		       !(v->ics & ~VTD_IWC) && !((v->iqh | v->iqt) & ~IQT_WRITABLE) &&
		       !((v->rtaddr | v->root) & ~RTADDR_WRITABLE) &&
		       !((v->irta | v->intr_table) & ~IRTA_WRITABLE) && !(v->iqa & ~IQA_WRITABLE);

	return is_fine ? 0 : error_set(err, -EINVAL, "IOMMU state is impossible");
}

// clang-format off
static const struct field fault_fields[] = {
	F_U64(struct vtd_fault_record, low),
	F_U64(struct vtd_fault_record, high),
	F_END,
};
static const struct state_desc fault_desc = {
	.name = "vtd-fault",
	.version = 1,
	.size = sizeof(struct vtd_fault_record),
	.fields = fault_fields,
};
static const struct field fields[] = {
	F_HOST(struct vtd, dev),
	F_HOST(struct vtd, iommu),
	F_HOST(struct vtd, env),
	F_HOST(struct vtd, range),
	F_HOST(struct vtd, host_bits),
	F_U64(struct vtd, rtaddr),
	F_U64(struct vtd, root),
	F_U64(struct vtd, irta),
	F_U64(struct vtd, intr_table),
	F_U64(struct vtd, ccmd),
	F_U64(struct vtd, iotlb),
	F_U64(struct vtd, iqa),
	F_U32(struct vtd, gsts),
	F_U32(struct vtd, fsts),
	F_U32(struct vtd, fectl),
	F_U32(struct vtd, fedata),
	F_U32(struct vtd, feaddr),
	F_U32(struct vtd, feuaddr),
	F_U32(struct vtd, iqh),
	F_U32(struct vtd, iqt),
	F_U32(struct vtd, ics),
	F_U32(struct vtd, iectl),
	F_U32(struct vtd, iedata),
	F_U32(struct vtd, ieaddr),
	F_U32(struct vtd, ieuaddr),
	F_U32(struct vtd, next_fault),
	F_STRUCT_ARRAY(struct vtd, faults, &fault_desc),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "vtd",
	.version = 1,
	.size = sizeof(struct vtd),
	.fields = fields,
	.check = check,
};

/* ---- life cycle ---- */

static void reset(struct device *d)
{
	struct vtd *v = container_of(d, struct vtd, dev);

	v->rtaddr = v->root = v->irta = v->intr_table = 0;
	v->ccmd = v->iotlb = v->iqa = 0;
	v->gsts = v->fsts = v->iqh = v->iqt = v->ics = v->next_fault = 0;
	v->fedata = v->feaddr = v->feuaddr = v->iedata = v->ieaddr = v->ieuaddr = 0;
	v->fectl = v->iectl = VTD_EVENT_MASK;
	memset(v->faults, 0, sizeof(v->faults));
}

static void destroy(struct device *d)
{
	struct vtd *v = container_of(d, struct vtd, dev);

	bus_remove(v->env.bus, v->range);
	free(v);
}

const struct device_class vtd_class = {
	.name = "vtd",
	.state = &desc,
	.reset = reset,
	.destroy = destroy,
};

int vtd_create(struct vtd **out, const struct dev_env *env, unsigned host_bits, struct error *err)
{
	static const struct iommu_ops ops = { vtd_translate, vtd_msi };
	struct vtd *v = calloc(1, sizeof(*v));
	int rc;

	if (!v)
		return error_set(err, -ENOMEM, "no memory for the IOMMU");
	device_init(&v->dev, &vtd_class, "vtd");
	v->iommu.ops = &ops;
	v->env = *env;
	v->host_bits = host_bits;
	rc = bus_add(env->bus, BUS_MMIO, VTD_BASE, VTD_BYTES, 0, &mmio_ops, v, &v->range);
	if (rc) {
		free(v);
		return error_set(err, rc, "the IOMMU's address is taken");
	}
	reset(&v->dev);
	*out = v;
	return 0;
}
