/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the machine: machine.c (life, verbs), vcpu.c (threads, exits), pc.c (devices, wiring),
 * load.c (what firmware or loaders put into RAM).
 *
 * Invariants, all about fields under the machine's lock
 *  1. A vCPU enters vcpu_run only with is_held false, and sets is_inside before it lets the lock go:
 *     is_held and no vCPU inside means that nothing executes and nothing will.
 *  2. Who sets is_held kicks every vCPU that is inside.  Kicks are latched by the engine.
 *  3. A vCPU's wake flag is set by whatever could end its HLT, and cleared only on the way into
 *     vcpu_run: an event between the engine's decision to halt and the wait is not lost.
 *  4. CPU state is loaded by the vCPU's own thread (vcpu_call) once threads exist.
 *  5. The end is decided once (machine_end) and is_held stays true from then on.
 */
#ifndef VIV_VM_MACHINE_INT_H
#define VIV_VM_MACHINE_INT_H

#include <pthread.h>

#include "block/block.h"
#include "dev/chipset/acpi_pm.h"
#include "dev/chipset/fw_cfg.h"
#include "dev/chipset/gsi.h"
#include "dev/chipset/i8042.h"
#include "dev/chipset/ioapic.h"
#include "dev/chipset/lapic.h"
#include "dev/chipset/pic.h"
#include "dev/chipset/vmgenid.h"
#include "dev/debug/debugports.h"
#include "dev/debug/testdev.h"
#include "dev/iommu/vtd.h"
#include "dev/pci/pci_host.h"
#include "dev/serial/uart.h"
#include "dev/timer/pit.h"
#include "dev/timer/rtc.h"
#include "net/port.h"
#include "share/port.h"
#include "vm/acpi.h"
#include "vm/boot.h"
#include "vm/kvm_pv.h"
#include "vm/machine.h"

#define EXIT_KINDS 6

struct vcpu {
	struct machine *m;
	unsigned index; /* = APIC id */
	struct engine_vcpu *ev;
	struct lapic *lapic; /* NULL where the engine owns it */
	pthread_t thread;
	bool has_thread;

	/* under the lock */
	pthread_cond_t cond; /* this vCPU has something to do */
	bool is_inside;	     /* in vcpu_run */
	bool is_halted;
	bool wake;
	int64_t wake_ns; /* steal_now_ns() when an event found it halted; 0: none did */
	bool is_waiting_sipi;
	bool init_pending, sipi_pending;
	uint8_t sipi_vector;
	void (*call)(struct vcpu *v, void *arg); /* to be run by this vCPU's thread */
	void *call_arg;
	uint64_t exits[EXIT_KINDS], halts, lapic_accesses;

	/* its own thread's */
	struct steal_clock steal;
};

/* A file that is read again at each reset. */
struct boot_source {
	int fd; /* -1: none */
	char *name;
};

struct machine {
	pthread_mutex_t lock;
	struct machine_config cfg; /* numbers and backends; strings only while creating */
	char *name, *append, *cpu_name;
	const struct engine_ops *ops;
	struct engine_vm *vm;
	struct cpu_model model;
	struct guest_ram ram;
	void *rom; /* firmware's region */
	struct loop *loop;
	struct vclock clock;
	uint32_t tsc_khz; /* of the guest's TSC; a restored machine keeps the figure that its guest was told */
	/* kvmclock: what the clock read at which TSC; since the last reset */
	bool has_kvmclock;
	uint64_t kvmclock_tsc, kvmclock_ns;
	struct vclock host_clock; /* never stops: time-outs of people */

	/* boot */
	struct boot_source kernel, initrd, firmware;
	enum boot_format format; /* of the kernel; BOOT_UNKNOWN with firmware */
	struct x86_state *bsp;	 /* first state of CPU 0 */

	/* devices, in order of creation and of reset */
	struct bus *bus;
	struct dev_env env;
	struct device *devices, **devices_end;
	struct lapic_bus *lapic_bus;
	struct pic *pic;
	struct vtd *vtd; /* NULL: no IOMMU */
	struct ioapic *ioapic;
	struct gsi *gsi;
	struct pit *pit;
	struct rtc *rtc;
	struct i8042 *i8042;
	struct acpi_pm *acpi_pm;
	struct vmgenid *vmgenid;
	struct fw_cfg *fw_cfg;
	struct uart *uart;
	struct debugports *debugports;
	struct testdev *testdev;
	struct pci_host *pci;
	struct block_dev *blocks[MACHINE_MAX_DISKS];
	struct virtio_blk *disks[MACHINE_MAX_DISKS];
	struct virtio_net *cards[MACHINE_MAX_NICS];
	struct net_port *ports[MACHINE_MAX_NICS];
	struct share_port *shares[MACHINE_MAX_SHARES];

	/* run state, under the lock */
	enum machine_state state;
	bool is_held;
	bool is_reset_queued;
	bool is_loaded; /* not started yet, and its state is another machine's */
	bool is_quitting;
	void (*before_end)(void *arg); /* the loop thread's */
	void *before_end_arg;
	const char *no_resume; /* why not; NULL: it may */
	unsigned throttle_percent;
	bool is_throttled;	       /* held by it at this moment */
	struct vtimer *throttle_timer; /* on host_clock; NULL: never needed */
	pthread_cond_t idle;	       /* a vCPU came out of vcpu_run, or finished a call */
	uint64_t host_tsc_at_pause;
	struct vtimer *stop_timer; /* on host_clock */
	uint64_t resets;
	int64_t created_ns, first_run_ns; /* struct machine_info */
	bool is_end_set;
	struct machine_end end;
	void (*on_event)(void *arg, enum machine_event event); /* machine_watch() */
	void *event_arg;

	unsigned ncpus;
	struct vcpu cpus[MACHINE_MAX_CPUS];
};

/* vcpu.c */
int vcpu_create(struct vcpu *v, struct machine *m, unsigned index, struct error *err);
void vcpu_destroy(struct vcpu *v);
int vcpu_start_thread(struct vcpu *v, struct error *err);
/** vcpu_kick() - leave vcpu_run or the wait soon. */
void vcpu_kick(struct vcpu *v);
void vcpu_wake(struct vcpu *v); /* an event that may end a HLT */
/** vcpu_call() - run @fn on the vCPU's thread and wait (releases the lock); all vCPUs are held. */
void vcpu_call(struct vcpu *v, void (*fn)(struct vcpu *v, void *arg), void *arg);
/** vcpu_load() - registers, the common TSC offset, LAPIC power-up values: on its own thread. */
int vcpu_load(struct vcpu *v, const struct x86_state *s, int64_t tsc_offset, struct error *err);

/* machine.c */
int64_t machine_monotonic_ns(void);   /* the host's CLOCK_MONOTONIC */
void machine_hold(struct machine *m); /* (releases the lock) no vCPU executes afterwards */
void machine_request_reset(struct machine *m);
void machine_fail(struct machine *m, const struct error *err);
/** machine_tell() - who watches; with the lock. */
void machine_tell(struct machine *m, enum machine_event event);

/** machine_queue_reset() - a reset in a moment, whatever no_reboot says.  0 or -ENOMEM. */
int machine_queue_reset(struct machine *m);

/* pc.c */
int pc_create(struct machine *m, struct error *err);
void pc_reset(struct machine *m);
void pc_destroy(struct machine *m);

/* load.c */
int load_open(struct machine *m, const struct machine_config *cfg, struct error *err);
/** load_rom_bytes() - how much ROM the firmware needs. */
int load_rom_bytes(struct machine *m, uint64_t *bytes, struct error *err);
/** load_boot() - fill RAM and m->bsp as at power-on; after every device reset. */
int load_boot(struct machine *m, struct error *err);
/** load_fw_cfg() - tables and figures for firmware, once. */
int load_fw_cfg(struct machine *m, struct error *err);
void load_close(struct machine *m);
/** load_cpu_state() - the first state of vCPU @index. */
void load_cpu_state(struct machine *m, unsigned index, struct x86_state *out);

#endif
