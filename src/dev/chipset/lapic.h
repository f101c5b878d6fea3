/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Local APICs: one struct lapic a vCPU, all of them on one struct lapic_bus that carries
 * interrupt messages (IPIs, MSIs, IOAPIC) between them.  Source: Intel SDM vol. 3 chapter 10.
 *
 * Used where the engine does not own the LAPIC (engine_ops.owns_lapic false).  The machine forwards
 *  - accesses to physical memory: lapic_mmio() first, then the bus;
 *  - MSRs 1BH, 6E0H, 800H..8FFH: lapic_msr_read/write;
 *  - CR8: lapic_get_cr8/lapic_set_cr8;
 *  - the engine's INTA: lapic_ack;
 * and gives env->msi = { lapic_bus_msi, bus }, the PIC's output line = lapic_bus_lint0_line().
 *
 * The timer counts at LAPIC_TIMER_HZ before the divider.  The bus does not show EOI-broadcast
 * suppression, CMCI, or SMIs (SMI messages are dropped: there is no SMM).
 *
 * Locking: as all devices, under the machine's lock; callbacks too.
 */
#ifndef VIV_DEV_CHIPSET_LAPIC_H
#define VIV_DEV_CHIPSET_LAPIC_H

#include "dev/chipset/apic_msg.h"
#include "dev/device.h"

#define LAPIC_MAX_CPUS	   255
#define LAPIC_TIMER_HZ	   1000000000u
#define LAPIC_DEFAULT_BASE 0xfee00000u

#define LAPIC_BASE_BSP	  (1u << 8)
#define LAPIC_BASE_X2APIC (1u << 10)
#define LAPIC_BASE_ENABLE (1u << 11)

/* What the machine gives.  @cpu is the index given to lapic_create. */
struct lapic_up {
	/* Level of the vCPU's INTR input changed: when true, lapic_ack will (very likely) give a vector. */
	void (*set_intr)(void *ctx, unsigned cpu, bool level);
	void (*raise_nmi)(void *ctx, unsigned cpu);
	/* INIT: the vCPU goes to x86_state_init and waits for a SIPI (the BSP: runs the reset vector). */
	void (*init)(void *ctx, unsigned cpu);
	/* SIPI: only a vCPU that waits for one takes it. */
	void (*sipi)(void *ctx, unsigned cpu, uint8_t vector);
	uint64_t (*read_tsc)(void *ctx, unsigned cpu);
	/* IA32_APIC_BASE changed (CPUID.1:EDX.APIC follows ENABLE).  May be NULL. */
	void (*base_changed)(void *ctx, unsigned cpu, uint64_t base);
	/* EOI of a level-triggered interrupt: ioapic_eoi. */
	void (*eoi)(void *ctx, uint8_t vector);
	/* INTA cycle of the PIC: pic_inta. */
	uint8_t (*extint_ack)(void *ctx);
	void *ctx;
};

struct lapic_bus_config {
	struct lapic_up up;
	uint32_t tsc_khz;      /* for TSC-deadline; not 0 */
	unsigned phys_bits;    /* MAXPHYADDR, 32..52: IA32_APIC_BASE bits above are reserved */
	bool has_x2apic;       /* CPUID.1:ECX.21 */
	bool has_tsc_deadline; /* CPUID.1:ECX.24 */
};

struct lapic_bus;
/** lapic_bus_create() - @cfg is copied.  Returns 0 or -ENOMEM. */
int lapic_bus_create(struct lapic_bus **out, const struct lapic_bus_config *cfg, struct error *err);
void lapic_bus_destroy(struct lapic_bus *b); /* after its LAPICs; NULL is fine */

/** lapic_bus_msi() - an MSI write.  Fits msi_sink.send.  Writes elsewhere are dropped. */
void lapic_bus_msi(void *bus, uint64_t addr, uint32_t data);
/** lapic_bus_deliver() - @m to whom it names.  Returns to how many LAPICs it went. */
unsigned lapic_bus_deliver(struct lapic_bus *b, const struct apic_msg *m);
/** lapic_bus_lint0_line() - a line to connect the PIC's output to (LINT0 of all, INTR of the BSP). */
struct irq_line lapic_bus_lint0_line(struct lapic_bus *b);

enum {
	LAPIC_LVT_TIMER,
	LAPIC_LVT_THERMAL,
	LAPIC_LVT_PERF,
	LAPIC_LVT_LINT0,
	LAPIC_LVT_LINT1,
	LAPIC_LVT_ERROR,
	LAPIC_NLVT
};

struct lapic {
	struct device dev;
	struct dev_env env;
	struct lapic_bus *bus;
	struct vtimer *timer;
	uint64_t cpu;	 /* index = initial APIC id */
	bool intr_level; /* last level given to set_intr */
	bool intr_known;
	uint8_t pad_host_[6];
	uint64_t pv_eoi; /* the CPU's MSR_KVM_PV_EOI_EN */

	/* state */
	uint64_t base; /* IA32_APIC_BASE */
	uint32_t id;   /* x2APIC: the id; xAPIC: the 8-bit id */
	uint32_t ldr;  /* xAPIC: bits 31..24; x2APIC: computed */
	uint32_t dfr;
	uint32_t svr;
	uint32_t tpr; /* 8 bits */
	uint32_t esr;
	uint32_t esr_pending;
	uint32_t icr_high;
	uint64_t icr; /* low 32 bits; x2APIC: all 64 */
	uint32_t isr[8], tmr[8], irr[8];
	uint32_t lvt[LAPIC_NLVT];
	uint32_t timer_initial; /* TMICT */
	uint32_t timer_divide;	/* TDCR */
	bool is_lint0_high;	/* LINT0 input level */
	bool timer_runs;	/* one-shot or periodic countdown active: ends at timer_end_ns */
	bool pv_eoi_pending; /* the guest may end the interrupt in service in its memory (lapic_pv.c) */
	uint8_t pad_[5];
	int64_t timer_end_ns;  /* machine time */
	uint64_t tsc_deadline; /* 0: not armed */
};

extern const struct device_class lapic_class;

/** lapic_create() - LAPIC of vCPU @cpu (APIC id @cpu; 0 is the BSP) on @bus.
 * Returns 0, -EINVAL (index), -EEXIST, -ENOMEM. */
int lapic_create(struct lapic **out, const struct dev_env *env, struct lapic_bus *bus, unsigned cpu,
		 struct error *err);

/* Register accesses and lapic_ack(): on the vCPU's own thread, while its guest does not execute. */
/** lapic_mmio() - serve a physical access if it hits the xAPIC page of this vCPU; else false. */
bool lapic_mmio(struct lapic *l, uint64_t gpa, unsigned size, bool is_write, uint64_t *data);

/** lapic_msr_read() - MSR 1BH, 6E0H, 800H..8FFH.  Returns 0 or -EPERM (#GP(0)). */
int lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *out);
int lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value);

uint64_t lapic_get_cr8(const struct lapic *l);
int lapic_set_cr8(struct lapic *l, uint64_t value); /* -EPERM: reserved bits */

/** lapic_ack() - the vector to deliver now (moved to in-service, or from the PIC), or -1. */
int lapic_ack(struct lapic *l);
/** lapic_has_intr() - would lapic_ack give a vector? */
bool lapic_has_intr(const struct lapic *l);

/**
 * lapic_pv_send_ipi() - KVM_HC_SEND_IPI (Linux Documentation/virt/kvm/x86/hypercalls.rst).
 * @bitmap: a0, a1: whom, counted from APIC id @min (a2); @width: 64 for callers in 64-bit mode, else 32
 * @icr: a3: delivery mode and vector
 * Returns to how many it went, or -EINVAL (shorthand or logical destination).
 */
int lapic_pv_send_ipi(struct lapic *l, const uint64_t bitmap[2], unsigned width, uint32_t min,
		      uint32_t icr);

/** lapic_set_pv_eoi() - MSR_KVM_PV_EOI_EN (Linux Documentation/virt/kvm/x86/msr.rst) is written.
 * On the vCPU's thread.  Returns 0, or -EPERM: reserved bit. */
int lapic_set_pv_eoi(struct lapic *l, uint64_t value);
/** lapic_load_pv_eoi() - the register's value after CPU state was loaded. */
void lapic_load_pv_eoi(struct lapic *l, uint64_t value);

/** lapic_inject_nmi() - the NMI button: pulse LINT1. */
void lapic_inject_nmi(struct lapic *l);

/** lapic_init_signal() - INIT from outside (the CPU's own INIT handling resets the LAPIC: SDM 10.4.7.3). */
void lapic_init_signal(struct lapic *l);

/* Exchange with engines that own the LAPIC: SDM table 10-1 layout, as KVM_GET/SET_LAPIC.  In x2APIC mode (judged
 * by IA32_APIC_BASE, which goes by lapic_set_base) the ID register holds the 32-bit id. */
void lapic_get_regs(struct lapic *l, uint8_t regs[1024]); /* the vCPU is held */
/** lapic_set_regs() - also restarts the timer from TMCCT. */
void lapic_set_regs(struct lapic *l, const uint8_t regs[1024]);
/** lapic_set_base() - load IA32_APIC_BASE without transition rules (restore). */
void lapic_set_base(struct lapic *l, uint64_t base);

#endif
