/* SPDX-License-Identifier: Apache-2.0 */
/* Registers (10.4), and what the files of this unit ask of each other. */
#ifndef VIV_DEV_IOMMU_VTD_REGS_H
#define VIV_DEV_IOMMU_VTD_REGS_H

#include "dev/iommu/vtd.h"

/* Offsets (table 10.1); those of 64 bits are two of 32. */
// clang-format off
enum vtd_reg {
	VTD_VER = 0x00, VTD_CAP = 0x08, VTD_ECAP = 0x10, VTD_GCMD = 0x18, VTD_GSTS = 0x1c, VTD_RTADDR = 0x20,
	VTD_CCMD = 0x28, VTD_FSTS = 0x34, VTD_FECTL = 0x38, VTD_FEDATA = 0x3c, VTD_FEADDR = 0x40, VTD_FEUADDR = 0x44,
	VTD_IQH = 0x80, VTD_IQT = 0x88, VTD_IQA = 0x90, VTD_ICS = 0x9c, VTD_IECTL = 0xa0, VTD_IEDATA = 0xa4,
	VTD_IEADDR = 0xa8, VTD_IEUADDR = 0xac, VTD_IRTA = 0xb8, VTD_IVA = 0xf0, VTD_IOTLB = 0xf8, VTD_FRCD = 0x220,
};
// clang-format on

/* 10.4.4, 10.4.5: commands and their status have the same bits. */
#define VTD_TE	  (1u << 31) /* translation */
#define VTD_SRTP  (1u << 30) /* set root table pointer */
#define VTD_QIE	  (1u << 26) /* queued invalidation */
#define VTD_IRE	  (1u << 25) /* interrupt remapping */
#define VTD_SIRTP (1u << 24) /* set interrupt remapping table pointer */
#define VTD_CFI	  (1u << 23) /* compatibility format interrupts pass */

/* 10.4.9 */
#define VTD_PFO (1u << 0) /* a fault could not be recorded */
#define VTD_PPF (1u << 1) /* a fault is recorded */
#define VTD_IQE (1u << 4) /* the invalidation queue stands still */

/* 10.4.11, 10.4.25 */
#define VTD_EVENT_MASK	  (1u << 31)
#define VTD_EVENT_PENDING (1u << 30)

#define VTD_IWC (1u << 0) /* 10.4.24 */

/* 10.4.14: bits of the high half */
#define VTD_FAULT_F    (1ULL << 63)
#define VTD_FAULT_READ (1ULL << 62)

/* 7.1.1 table 7.1 (DMA), 5.1.4.1 table 5.2 (interrupts): reasons of faults */
enum vtd_fault {
	VTD_ROOT_NOT_PRESENT = 0x1,
	VTD_CONTEXT_NOT_PRESENT = 0x2,
	VTD_CONTEXT_INVALID = 0x3,
	VTD_ADDRESS_TOO_WIDE = 0x4,
	VTD_NO_WRITE = 0x5,
	VTD_NO_READ = 0x6,
	VTD_TABLE_ACCESS = 0x7,
	VTD_ROOT_ACCESS = 0x8,
	VTD_CONTEXT_ACCESS = 0x9,
	VTD_ROOT_RESERVED = 0xa,
	VTD_CONTEXT_RESERVED = 0xb,
	VTD_TABLE_RESERVED = 0xc,
	VTD_INTR_RESERVED = 0x20,
	VTD_INTR_INDEX = 0x21,
	VTD_INTR_NOT_PRESENT = 0x22,
	VTD_INTR_ACCESS = 0x23,
	VTD_IRTE_RESERVED = 0x24,
	VTD_INTR_COMPATIBILITY = 0x25,
	VTD_INTR_SOURCE = 0x26,
};

/* Address bits that tables must leave 0 (9: bits 63:HAW, of those that are part of an address). */
static inline uint64_t vtd_too_high(const struct vtd *v)
{
	return ~((1ULL << v->host_bits) - 1);
}

/* vtd_walk.c */
int vtd_translate(struct iommu *u, uint16_t source_id, uint64_t addr, bool is_write, gpa_t *gpa,
		  uint64_t *len);

/* vtd_intr.c */
void vtd_msi(struct iommu *u, uint16_t source_id, uint64_t addr, uint32_t data);

/* vtd_fault.c */
/** vtd_fault() - record a refused request.  @info: bits 63:12 of the address, or 63:48 of the interrupt's index. */
void vtd_fault(struct vtd *v, uint16_t source_id, uint64_t info, bool is_read, enum vtd_fault reason);
/** vtd_fault_status() - raise condition @bits (VTD_PFO, VTD_IQE) of FSTS; a first one sends the fault event. */
void vtd_fault_status(struct vtd *v, uint32_t bits);
uint32_t vtd_fsts(const struct vtd *v); /* with VTD_PPF */
void vtd_fsts_write(struct vtd *v, uint32_t value);
void vtd_frcd_write(struct vtd *v, unsigned i, uint32_t value); /* its last 32 bits */
/** vtd_event() - send an event's message, or leave it pending in @control while that masks it. */
void vtd_event(struct vtd *v, uint32_t *control, uint32_t addr, uint32_t upper, uint32_t data);
/** vtd_event_control_write() - a pending one goes out when its mask goes. */
void vtd_event_control_write(struct vtd *v, uint32_t *control, uint32_t value, uint32_t addr,
			     uint32_t upper, uint32_t data);

/* vtd_queue.c */
/** vtd_queue_run() - handle descriptors up to the tail, if the queue is on and no error stops it. */
void vtd_queue_run(struct vtd *v);

#endif
