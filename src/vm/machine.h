/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine: one PC, from its parts to its end.
 *
 *   create -> start -> { pause <-> resume, reset, stop } -> run() returns -> destroy
 *
 * Threads: the LOOP thread is the one that calls machine_run(); timers, backends and the control
 * socket live on it.  Each vCPU has a thread of its own.
 *
 * The lock (machine_lock) is the one lock of devices, interrupt routing and this struct.  The loop
 * takes it around every callback; vCPU threads take it around every exit; neither holds it while
 * waiting for the host.  The verbs below are called with the lock held (inside a loop callback it
 * is); those marked (releases the lock) wait on a condition and let others in meanwhile.
 *
 * A machine has one construction path, machine_create().  What a guest does never makes a function
 * here abort; what goes wrong on the host ends the machine with a sentence (struct machine_end).
 */
#ifndef VIV_VM_MACHINE_H
#define VIV_VM_MACHINE_H

#include "base/error.h"
#include "base/loop.h"
#include "engine/engine.h"

struct block_backing_rule;
struct block_dev;
struct char_dev;
struct guest_ram;
struct machine;
struct snapshot_state;

#define MACHINE_MAX_CPUS    64
#define MACHINE_MAX_DISKS   8
#define MACHINE_MAX_NICS    4
#define MACHINE_MAX_SHARES  8
#define MACHINE_MIN_MEM	    (2 * MIB)
#define MACHINE_MAX_MEM	    (1024 * GIB)
#define MACHINE_MAX_CMDLINE 65536 /* with the final NUL; a boot protocol may allow less */

struct machine_disk {
	const char *path;
	const char *format;			  /* "raw", "qcow2" */
	const struct block_backing_rule *backing; /* block_open.backing */
	bool is_readonly;
	bool is_snapshot;			 /* writes are thrown away at the end */
	bool use_direct;			 /* past the host's page cache */
	uint64_t max_bytes_per_s, max_ops_per_s; /* 0: no limit */
	bool is_unsettled; /* block_open.is_unsettled: until machine_settled() */
};

struct machine_nic {
	int fd; /* connected SOCK_SEQPACKET socket to `viv net`, or a TAP device; taken by machine_create */
	bool is_tap;   /* net/tap.h */
	bool is_alone; /* net_port.is_alone */
	uint8_t mac[6];
};

struct machine_share {
	int fd;		 /* connected stream socket to `viv share`; taken by machine_create */
	const char *tag; /* that the guest mounts it by */
};

/* From where a machine goes on instead of being switched on. */
struct machine_restore {
	const struct snapshot_state *state;
	/*
	 * Give the RAM its contents; @ram is complete, its pages zero and not backed.  Called before the
	 * engine exists.  NULL: @ram is the machine's and complete already.
	 */
	int (*map_ram)(void *arg, struct guest_ram *ram, struct error *err);
	void *arg;
	const uint8_t *code_head; /* code will be loaded that begins so (engine_ops.code_expect); NULL: none */
	size_t code_head_len;
	struct guest_ram *ram; /* taken instead of new RAM, if machine_create succeeds (fork); or NULL */
	/* Only what machine @state describes is built: it is tried (machine_check_state()), but not loaded.  The real one comes later, in a
	 * machine that was started paused. */
	bool is_shape;
};

/* All strings and arrays are borrowed for the call of machine_create only. */
struct machine_config {
	const char *name;
	const char *engine;		     /* "auto", "dbt", "kvm"; NULL: auto */
	const struct engine_ops *engine_ops; /* not NULL: this engine (tests); @engine is ignored */
	const char *cpu;		     /* CPU model; NULL: "host" */
	unsigned cpus;			     /* 1..MACHINE_MAX_CPUS */
	uint64_t mem_bytes;   /* multiple of 4 KiB, MACHINE_MIN_MEM..MACHINE_MAX_MEM */
	const char *kernel;   /* bzImage, ELF with a PVH note, multiboot; or NULL */
	const char *initrd;   /* NULL: none; only with @kernel */
	const char *append;   /* kernel command line; NULL: empty */
	const char *firmware; /* BIOS image; NULL: the default one if there is no @kernel */
	struct machine_disk disks[MACHINE_MAX_DISKS];
	unsigned ndisks;
	struct machine_nic nics[MACHINE_MAX_NICS];
	unsigned nnics;
	struct machine_share shares[MACHINE_MAX_SHARES];
	unsigned nshares;
	/*
	 * Backends; NULL: nothing connected.  @make_backends is called once the loop exists and may fill
	 * these in; @free_backends (after it, also when it failed) once the devices are gone, before the loop
	 * goes.  Both under the lock.
	 */
	int (*make_backends)(void *arg, struct loop *loop, struct machine_config *cfg, struct error *err);
	void (*free_backends)(void *arg);
	void *backends_arg;
	struct char_dev *serial;	       /* COM1, 3F8H, IRQ 4 */
	struct char_dev *console;	       /* virtio console (hvc0) */
	struct char_dev *agent;		       /* virtio port org.qemu.guest_agent.0 */
	const struct machine_restore *restore; /* NULL: switched on; borrowed for machine_create */
	bool has_iommu;			       /* VT-d, dev/iommu/vtd.h */
	bool has_edu;			       /* the test device of dev/debug/edu.h */
	bool no_reboot;			       /* a reset asked for by the guest ends the machine */
	bool is_strict;			       /* engine_config.is_strict */
	bool use_interp_only;		       /* engine_config.use_interp_only */
	unsigned check_every;		       /* engine_config.check_every */
	bool is_counting;		       /* engine_config.is_counting */
	uint32_t without;		       /* engine_config.without */
	/* Called on each thread that executes guest code before it does; not 0: it ends the machine.  May be NULL. */
	int (*confine_vcpu)(struct error *err);
};

enum machine_state { MACHINE_CREATED, MACHINE_RUNNING, MACHINE_PAUSED, MACHINE_ENDED };

enum machine_end_reason {
	END_POWEROFF,	/* the guest switched the machine off: status 0 */
	END_STOPPED,	/* somebody outside ended it: status 0 */
	END_RESET,	/* reset with no_reboot: status 0 */
	END_SHUTDOWN,	/* triple fault with no_reboot: status 1 */
	END_DEBUG_EXIT, /* debug exit port: status (code << 1) | 1, as a process can pass it */
	END_MOVED,	/* it goes on somewhere else: status 0 */
	END_FAILED,	/* the host or the engine could not go on: status 1, text says why */
};

struct machine_end {
	enum machine_end_reason reason;
	int status;	/* 0..255 */
	char text[512]; /* one sentence, never empty */
};

/* ---- life cycle ---- */

/**
 * machine_create() - build the whole machine; nothing runs yet.
 * @engine_reason: receives why this engine was chosen; may be NULL
 * Returns 0 or -errno with @err set (files, memory, engine) and nothing left behind.  Called
 * without the lock.
 */
int machine_create(struct machine **out, const struct machine_config *cfg, char engine_reason[256],
		   struct error *err);

/** machine_default_firmware() - files that are tried, in order, where there is neither kernel nor firmware; ends with NULL. */
const char *const *machine_default_firmware(void);

/** machine_destroy() - NULL is fine.  After machine_run() returned, or never started.  No lock. */
void machine_destroy(struct machine *m);

/** machine_abandon() - in a child process, which has none of the threads: give back what the engine holds.  RAM stays;
 * nothing else may be done with @m any more. */
void machine_abandon(struct machine *m);

/** machine_start() - power on: CPUs start, or the state stays paused when @is_paused. */
int machine_start(struct machine *m, bool is_paused, struct error *err);

/** machine_before_end() - call @fn on the thread of machine_run() when the machine is to end, without the lock and before its CPUs are waited for; once. */
void machine_before_end(struct machine *m, void (*fn)(void *arg), void *arg);

/** machine_run() - serve the machine on this thread until it ended.  Called without the lock. */
void machine_run(struct machine *m, struct machine_end *end);

/* ---- verbs (lock held) ---- */

/** machine_pause() - (releases the lock) no vCPU executes and the clock stands still afterwards.
 * Returns 0, -EALREADY when paused, -ESHUTDOWN when ended. */
int machine_pause(struct machine *m, struct error *err);
int machine_resume(struct machine *m, struct error *err);

/** machine_forbid_resume() - while @why (a static sentence, NULL: no more) is set, nothing makes the paused machine run: machine_resume() and a
 * machine_stop() that the guest would have to hear fail with it.  For a machine that may be running somewhere else. */
void machine_forbid_resume(struct machine *m, const char *why);
const char *machine_why_no_resume(const struct machine *m);

/**
 * machine_throttle() - let the CPUs of the running machine execute for only 100 - @percent of the time (0: always, at most
 * MACHINE_THROTTLE_MAX), in slices of a few milliseconds; clocks and devices go on.
 */
#define MACHINE_THROTTLE_MAX 98
void machine_throttle(struct machine *m, unsigned percent);

/**
 * machine_freeze() - (releases the lock) for a moment nothing of the machine touches guest memory: no CPU executes, no device has work under way.  Nobody is told,
 * and clocks go on.  Until machine_thaw() the caller keeps the lock.  Of a paused machine it is so anyway.
 */
void machine_freeze(struct machine *m);
void machine_thaw(struct machine *m);

/** machine_reset() - like the reset button; asynchronous. */
int machine_reset(struct machine *m, struct error *err);

/** machine_stop() - press the power button; @timeout_ns of host time later end it the hard way
 * (0: at once).  A paused machine is resumed to hear the button.  Asynchronous. */
int machine_stop(struct machine *m, int64_t timeout_ns, struct error *err);

/** machine_end() - end now, for @reason, with @text.  The first caller wins.  Asynchronous. */
void machine_end(struct machine *m, enum machine_end_reason reason, int status, const char *text);

/* What others than who caused it want to know. */
enum machine_event {
	MACHINE_STATE_CHANGED, /* machine_state() tells to what; the end is told by machine_run() */
	MACHINE_WAS_RESET,
	MACHINE_TRIPLE_FAULT, /* of the guest, which is reset or ended for it */
};
/** machine_watch() - call @fn for each event, with the lock held, on any thread; NULL: no more. */
void machine_watch(struct machine *m, void (*fn)(void *arg, enum machine_event event), void *arg);

/* ---- queries (lock held unless noted) ---- */
struct loop *machine_loop(struct machine *m);	  /* any time */
pthread_mutex_t *machine_lock(struct machine *m); /* any time */
enum machine_state machine_state(const struct machine *m);
const char *machine_state_name(enum machine_state s);
const struct engine_ops *machine_engine(const struct machine *m);
struct guest_ram *machine_ram(struct machine *m);
struct engine_vm *machine_vm(struct machine *m);
/** machine_block() - disk @i of machine_config.disks; the machine's. */
struct block_dev *machine_block(struct machine *m, unsigned i);
/** machine_settled() - block_settled() of all disks.  Any thread, without the lock. */
void machine_settled(struct machine *m, int result);
/** machine_block_writes() - how often the guest changed it: a number that only grows. */
uint64_t machine_block_writes(const struct machine *m, unsigned i);
/** machine_new_generation() - after a state was loaded: the guest goes on from where it, or a copy, has been before, and is
 * told so (dev/chipset/vmgenid.h). */
void machine_new_generation(struct machine *m);
/** machine_reappear() - after a state was loaded into another machine: network cards have their own MACs, and their drivers
 * announce themselves (dev/virtio/virtio_net.h). */
void machine_reappear(struct machine *m);
/** machine_take_resets() - net_ops.resets of the first card; the machine stands still. */
size_t machine_take_resets(struct machine *m, uint8_t *out, size_t cap);
/** machine_give_resets() - these, to the guest of the first card, as many as it has room for; hostile. */
void machine_give_resets(struct machine *m, const uint8_t *frames, size_t len);
/** machine_hold_cards() - net_ops.hold of all cards; the machine stands still. */
void machine_hold_cards(struct machine *m, bool is_held);
/** machine_card_mac() - the one that the driver of card @i works with; false: there is no such card. */
bool machine_card_mac(const struct machine *m, unsigned i, uint8_t mac[6]);
/** machine_slept() - after a state was loaded: @ns of real time went by since it was saved.  Machine time knows nothing of it, the real-time clock does. */
void machine_slept(struct machine *m, int64_t ns);
/** machine_skip() - of a paused machine: @ns of machine time pass at once, on all clocks and timers, as in a process that was not scheduled. */
void machine_skip(struct machine *m, int64_t ns);
/** machine_ram_replaced() - all of RAM may have other contents; the machine is paused. */
void machine_ram_replaced(struct machine *m);

struct machine_info {
	enum machine_state state;
	const char *engine, *cpu;
	unsigned cpus;
	uint64_t mem_bytes;
	unsigned disks;
	int64_t clock_ns; /* machine time since power-on */
	uint64_t resets;
	/* The host's CLOCK_MONOTONIC when it began to be built, and when a CPU began to execute; 0: none did. */
	int64_t created_ns, first_run_ns;
};
void machine_info(struct machine *m, struct machine_info *out);

/* One counter a call of @fn: exits by kind, engine counters.  @index: of the vCPU, disk or card. */
struct machine_counter_sink {
	void (*fn)(void *arg, unsigned index, const char *name, uint64_t value);
	void *arg;
};
void machine_counters(struct machine *m, const struct machine_counter_sink *sink);
/** machine_device_counters() - one call of @fn a device (more if it has several ranges: they add up) that was accessed over
 * the bus; @index is 0.  What is no device of the machine's list is named by its address. */
void machine_device_counters(struct machine *m, const struct machine_counter_sink *sink);
/** machine_disk_counters() - what each disk did for the guest since it was plugged in; with the lock. */
void machine_disk_counters(struct machine *m, const struct machine_counter_sink *sink);
/** machine_card_counters() - the same of network cards; rx is what comes to the guest. */
void machine_card_counters(struct machine *m, const struct machine_counter_sink *sink);

/** machine_inject_nmi() - to vCPU @index. */
int machine_inject_nmi(struct machine *m, unsigned index, struct error *err);

#endif
