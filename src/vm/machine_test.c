/* SPDX-License-Identifier: Apache-2.0 */
/* The machine over a scripted engine: what each vCPU's vcpu_run does is a function of the test. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "vm/machine.h"
#include "vm/machine_int.h"

#define CPUS 3

/* ---- the engine ---- */

struct engine_vm {
	int dummy;
};
struct engine_vcpu {
	unsigned index;
	struct vcpu_up up;
	struct x86_state s;
	int64_t tsc_offset;
	atomic_bool is_kicked, intr, nmi, unhalt;
	atomic_uint flushes;
	atomic_bool is_inside;
	atomic_uint runs;
};

static struct engine_vm the_vm;
static struct engine_vcpu *cpus[CPUS];
static enum run_result (*script)(struct engine_vcpu *v, struct error *err);
static int fail_set_state;

static void fake_probe(struct engine_probe *out)
{
	*out = (struct engine_probe){ .is_usable = true };
}

static int fake_vm_create(struct engine_vm **out, const struct engine_config *cfg, struct error *err)
{
	*out = &the_vm;
	return 0;
}

static void fake_vm_destroy(struct engine_vm *vm)
{
	for (unsigned i = 0; i < CPUS; i++)
		assert_null(cpus[i]); /* engine.h: after all its vCPUs */
}

static int fake_vcpu_create(struct engine_vcpu **out, struct engine_vm *vm, unsigned index,
			    const struct vcpu_up *up, struct error *err)
{
	struct engine_vcpu *v = aligned_alloc(64, ALIGN_UP(sizeof(*v), (size_t)64));

	assert_non_null(v);
	memset(v, 0, sizeof(*v));
	v->index = index;
	v->up = *up;
	cpus[index] = *out = v;
	return 0;
}

static void fake_vcpu_destroy(struct engine_vcpu *v)
{
	if (v)
		cpus[v->index] = NULL;
	free(v);
}

static enum run_result fake_run(struct engine_vcpu *v, struct error *err)
{
	v->is_inside = true;
	v->runs++;
	enum run_result r = script(v, err);

	v->is_inside = false;
	return r;
}

static void fake_kick(struct engine_vcpu *v)
{
	v->is_kicked = true;
}

static void fake_get_state(struct engine_vcpu *v, struct x86_state *out)
{
	assert_false(v->is_inside);
	*out = v->s;
}

static int fake_set_state(struct engine_vcpu *v, const struct x86_state *in, struct error *err)
{
	assert_false(v->is_inside);
	if (fail_set_state)
		return error_set(err, -EIO, "scripted failure");
	v->s = *in;
	return 0;
}

static void fake_set_intr(struct engine_vcpu *v, bool level)
{
	v->intr = level;
}

static void fake_raise_nmi(struct engine_vcpu *v)
{
	v->nmi = true;
}

static void fake_unhalt(struct engine_vcpu *v)
{
	v->unhalt = true;
}

static void fake_flush_tlb(struct engine_vcpu *v)
{
	v->flushes++;
}

static uint64_t fake_read_tsc(struct engine_vcpu *v)
{
	return __builtin_ia32_rdtsc() + (uint64_t)v->tsc_offset;
}

static uint32_t fake_tsc_khz(struct engine_vm *vm)
{
	return 1000000;
}

static int64_t fake_get_tsc_offset(struct engine_vcpu *v)
{
	return v->tsc_offset;
}

static void fake_set_tsc_offset(struct engine_vcpu *v, int64_t offset)
{
	v->tsc_offset = offset;
}

static const struct engine_ops engine_fake = {
	.name = "fake",
	.probe = fake_probe,
	.vm_create = fake_vm_create,
	.vm_destroy = fake_vm_destroy,
	.vcpu_create = fake_vcpu_create,
	.vcpu_destroy = fake_vcpu_destroy,
	.vcpu_run = fake_run,
	.vcpu_kick = fake_kick,
	.get_state = fake_get_state,
	.set_state = fake_set_state,
	.set_intr = fake_set_intr,
	.raise_nmi = fake_raise_nmi,
	.unhalt = fake_unhalt,
	.flush_tlb = fake_flush_tlb,
	.read_tsc = fake_read_tsc,
	.tsc_khz = fake_tsc_khz,
	.get_tsc_offset = fake_get_tsc_offset,
	.set_tsc_offset = fake_set_tsc_offset,
};

/* ---- helpers ---- */

static void nap(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* A guest that computes until it is kicked. */
static enum run_result spin(struct engine_vcpu *v, struct error *err)
{
	while (!atomic_exchange(&v->is_kicked, false))
		nap();
	return RUN_KICKED;
}

static void pio(struct engine_vcpu *v, uint16_t port, uint8_t size, uint32_t value)
{
	struct vcpu_exit x = { .kind = EXIT_PIO, .is_write = true, .size = size, .addr = port, .data = value };

	assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
}

static uint64_t mmio(struct engine_vcpu *v, uint64_t gpa, bool is_write, uint64_t value)
{
	struct vcpu_exit x = { .kind = EXIT_MMIO, .is_write = is_write, .size = 4, .addr = gpa, .data = value };

	assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
	return x.data;
}

/* A multiboot image of one instruction, in a file without a name. */
static const char *make_kernel(void)
{
	static char path[64];
	uint32_t image[64] = { 0x1badb002, 1 << 16,  0u - 0x1badb002u - (1 << 16),
			       0x100000,   0x100000, 0,
			       0,	   0x100020 };
	FILE *f = tmpfile();

	assert_non_null(f);
	assert_int_equal(fwrite(image, sizeof(image), 1, f), 1);
	fflush(f);
	/* stays open: the test's process is short-lived */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fileno(f));
	return path;
}

struct world {
	struct machine *m;
	struct machine_end end;
	pthread_t thread;
	struct error err;
};

static struct machine_config base_config(void)
{
	return (struct machine_config){ .name = "test",
					.engine_ops = &engine_fake,
					.cpus = CPUS,
					.mem_bytes = 16 * MIB,
					.kernel = make_kernel() };
}

static void *loop_main(void *arg)
{
	struct world *w = arg;

	machine_run(w->m, &w->end);
	return NULL;
}

static void power_on(struct world *w, enum run_result (*fn)(struct engine_vcpu *, struct error *),
		     bool no_reboot)
{
	struct machine_config cfg = base_config();

	memset(w, 0, sizeof(*w));
	script = fn;
	cfg.no_reboot = no_reboot;
	assert_int_equal(machine_create(&w->m, &cfg, NULL, &w->err), 0);
	pthread_mutex_lock(machine_lock(w->m));
	assert_int_equal(machine_start(w->m, false, &w->err), 0);
	pthread_mutex_unlock(machine_lock(w->m));
	assert_int_equal(pthread_create(&w->thread, NULL, loop_main, w), 0);
}

static void expect_end(struct world *w, enum machine_end_reason reason, int status)
{
	pthread_join(w->thread, NULL);
	assert_int_equal(w->end.reason, reason);
	assert_int_equal(w->end.status, status);
	assert_true(w->end.text[0]);
	for (unsigned i = 0; i < CPUS; i++)
		assert_false(cpus[i]->is_inside);
	machine_destroy(w->m);
}

static void locked(struct world *w, void (*fn)(struct world *w))
{
	pthread_mutex_lock(machine_lock(w->m));
	fn(w);
	pthread_mutex_unlock(machine_lock(w->m));
}

static void do_quit(struct world *w)
{
	assert_int_equal(machine_stop(w->m, 0, &w->err), 0);
}

/* ---- ends ---- */

static enum run_result debug_exit_guest(struct engine_vcpu *v, struct error *err)
{
	if (v->index == 0)
		pio(v, 0xf4, 4, 0x10);
	return spin(v, err);
}

static enum run_result cf9_guest(struct engine_vcpu *v, struct error *err)
{
	if (v->index == 0) {
		pio(v, 0xcf9, 1, 2);
		pio(v, 0xcf9, 1, 6);
	}
	return spin(v, err);
}

static enum run_result poweroff_guest(struct engine_vcpu *v, struct error *err)
{
	if (v->index == 0)
		pio(v, 0x604, 2, 1 << 13 | 5 << 10); /* SLP_EN, SLP_TYP 5 */
	return spin(v, err);
}

static enum run_result triple_fault_guest(struct engine_vcpu *v, struct error *err)
{
	return v->index == 0 ? RUN_SHUTDOWN : spin(v, err);
}

static enum run_result broken_engine(struct engine_vcpu *v, struct error *err)
{
	error_set(err, -EIO, "the engine lost a page");
	return v->index == 0 ? RUN_FAILED : spin(v, err);
}

static void test_ends(void **state)
{
	struct world w;

	(void)state;
	power_on(&w, debug_exit_guest, false);
	expect_end(&w, END_DEBUG_EXIT, 0x21);
	power_on(&w, poweroff_guest, false);
	expect_end(&w, END_POWEROFF, 0);
	power_on(&w, cf9_guest, true);
	expect_end(&w, END_RESET, 0);
	power_on(&w, triple_fault_guest, true);
	expect_end(&w, END_SHUTDOWN, 1);
	power_on(&w, broken_engine, false);
	expect_end(&w, END_FAILED, 1);
	assert_string_equal(w.end.text, "the engine lost a page");
	power_on(&w, spin, false);
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

/* ---- a machine that may be somewhere else ---- */

static void test_forbidden_resume(void **state)
{
	struct machine_info info;
	struct world w;

	(void)state;
	power_on(&w, spin, false);
	pthread_mutex_lock(machine_lock(w.m));
	assert_int_equal(machine_pause(w.m, &w.err), 0);
	machine_forbid_resume(w.m, "it is away");
	assert_int_equal(machine_resume(w.m, &w.err), -EPERM);
	assert_string_equal(w.err.text, "it is away");
	assert_int_equal(machine_stop(w.m, 1000000000, &w.err), -EPERM); /* the guest would have to hear it */
	assert_int_equal(machine_reset(w.m, &w.err), -EPERM);
	assert_int_equal(machine_state(w.m), MACHINE_PAUSED);
	machine_forbid_resume(w.m, NULL);
	/* A reset that was on its way waits, and comes then. */
	assert_int_equal(machine_reset(w.m, &w.err), 0);
	machine_forbid_resume(w.m, "it is away");
	pthread_mutex_unlock(machine_lock(w.m));
	for (unsigned i = 0; i < 20; i++)
		nap();
	pthread_mutex_lock(machine_lock(w.m));
	machine_info(w.m, &info);
	assert_int_equal(info.resets, 0);
	machine_forbid_resume(w.m, NULL);
	assert_int_equal(machine_resume(w.m, &w.err), 0);
	while (info.resets != 1) {
		pthread_mutex_unlock(machine_lock(w.m));
		nap();
		pthread_mutex_lock(machine_lock(w.m));
		machine_info(w.m, &info);
	}
	pthread_mutex_unlock(machine_lock(w.m));
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

/* ---- slowing down ---- */

static unsigned count_inside(struct world *w)
{
	unsigned n = 0;

	pthread_mutex_lock(machine_lock(w->m));
	for (unsigned i = 0; i < CPUS; i++)
		n += cpus[i]->is_inside;
	pthread_mutex_unlock(machine_lock(w->m));
	return n;
}

/* It stands now and then, runs again each time, and for good when it is over; a pause in between holds. */
static void test_throttle(void **state)
{
	struct world w;

	(void)state;
	power_on(&w, spin, false);
	pthread_mutex_lock(machine_lock(w.m));
	machine_throttle(w.m, 50);
	pthread_mutex_unlock(machine_lock(w.m));
	for (unsigned i = 0; i < 5; i++) {
		while (count_inside(&w))
			nap();
		while (!count_inside(&w)) /* the others wait to be started */
			nap();
	}
	pthread_mutex_lock(machine_lock(w.m));
	assert_int_equal(machine_pause(w.m, &w.err), 0);
	pthread_mutex_unlock(machine_lock(w.m));
	for (unsigned i = 0; i < 30; i++, nap())
		assert_int_equal(count_inside(&w), 0);
	pthread_mutex_lock(machine_lock(w.m));
	assert_int_equal(machine_resume(w.m, &w.err), 0);
	machine_throttle(w.m, 0);
	pthread_mutex_unlock(machine_lock(w.m));
	while (!count_inside(&w)) /* the others wait to be started */
		nap();
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

/* Nothing executes while the lock is kept, it goes on by itself afterwards; of a paused machine nothing changes. */
static void test_freeze(void **state)
{
	struct world w;

	(void)state;
	power_on(&w, spin, false);
	for (unsigned i = 0; i < 5; i++) {
		pthread_mutex_lock(machine_lock(w.m));
		machine_freeze(w.m);
		for (unsigned c = 0; c < CPUS; c++)
			assert_false(cpus[c]->is_inside);
		assert_int_equal(machine_state(w.m), MACHINE_RUNNING);
		machine_thaw(w.m);
		pthread_mutex_unlock(machine_lock(w.m));
		while (!count_inside(&w))
			nap();
	}
	pthread_mutex_lock(machine_lock(w.m));
	assert_int_equal(machine_pause(w.m, &w.err), 0);
	machine_freeze(w.m);
	machine_thaw(w.m);
	pthread_mutex_unlock(machine_lock(w.m));
	for (unsigned i = 0; i < 10; i++, nap())
		assert_int_equal(count_inside(&w), 0);
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

/* ---- pause ---- */

static void test_pause(void **state)
{
	struct machine_info before, after;
	struct world w;
	unsigned runs;
	int64_t tsc, host_tsc, paused;

	(void)state;
	power_on(&w, spin, false);
	for (unsigned round = 0; round < 20; round++) {
		pthread_mutex_lock(machine_lock(w.m));
		assert_int_equal(machine_pause(w.m, &w.err), 0);
		assert_int_equal(machine_pause(w.m, &w.err), -EALREADY);
		for (unsigned i = 0; i < CPUS; i++)
			assert_false(cpus[i]->is_inside);
		machine_info(w.m, &before);
		runs = cpus[0]->runs;
		tsc = (int64_t)fake_read_tsc(cpus[0]);
		host_tsc = (int64_t)__builtin_ia32_rdtsc();
		pthread_mutex_unlock(machine_lock(w.m));
		nap();
		pthread_mutex_lock(machine_lock(w.m));
		paused = (int64_t)__builtin_ia32_rdtsc() - host_tsc;
		machine_info(w.m, &after);
		assert_int_equal(after.state, MACHINE_PAUSED);
		assert_int_equal(before.clock_ns, after.clock_ns);
		assert_int_equal(cpus[0]->runs, runs);
		assert_int_equal(machine_resume(w.m, &w.err), 0);
		assert_int_equal(machine_resume(w.m, &w.err), -EALREADY);
		/* the guest's TSC did not see the nap, however long the host made it */
		tsc = (int64_t)fake_read_tsc(cpus[0]) - tsc;
		assert_true(tsc <= (int64_t)__builtin_ia32_rdtsc() - host_tsc - paused);
		for (unsigned i = 1; i < CPUS; i++)
			assert_int_equal(cpus[i]->tsc_offset, cpus[0]->tsc_offset);
		pthread_mutex_unlock(machine_lock(w.m));
		while (cpus[0]->runs == runs)
			nap();
	}
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

/* ---- reset ---- */

static atomic_uint resets_wanted;

static enum run_result resetting_guest(struct engine_vcpu *v, struct error *err)
{
	if (v->index == 0 && resets_wanted) {
		resets_wanted--;
		v->s.rip = 0x1234;
		v->s.gpr[R_RBX] = 0;
		mmio(v, 0xfee00080, true, 0x50); /* TPR */
		return RUN_SHUTDOWN;
	}
	return spin(v, err);
}

static void test_reset(void **state)
{
	struct machine_info info;
	struct world w;

	(void)state;
	resets_wanted = 5;
	power_on(&w, resetting_guest, false);
	do {
		nap();
		pthread_mutex_lock(machine_lock(w.m));
		machine_info(w.m, &info);
		pthread_mutex_unlock(machine_lock(w.m));
	} while (info.resets < 5 || !cpus[0]->is_inside);
	pthread_mutex_lock(machine_lock(w.m));
	assert_int_equal(machine_pause(w.m, &w.err), 0);
	/* boot loader state again: entry point, magic, information */
	assert_int_equal(cpus[0]->s.rip, 0x100020);
	assert_int_equal(cpus[0]->s.gpr[R_RAX], 0x2badb002);
	assert_int_not_equal(cpus[0]->s.gpr[R_RBX], 0);
	assert_int_equal(cpus[1]->s.mp_state, MP_WAIT_SIPI);
	/* a reset while paused leaves it paused */
	assert_int_equal(machine_reset(w.m, &w.err), 0);
	pthread_mutex_unlock(machine_lock(w.m));
	do {
		nap();
		pthread_mutex_lock(machine_lock(w.m));
		machine_info(w.m, &info);
		pthread_mutex_unlock(machine_lock(w.m));
	} while (info.resets < 6);
	assert_int_equal(info.state, MACHINE_PAUSED);
	assert_false(cpus[0]->is_inside);
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

static void test_failed_reset(void **state)
{
	struct world w;

	(void)state;
	power_on(&w, spin, false);
	pthread_mutex_lock(machine_lock(w.m));
	fail_set_state = 1;
	assert_int_equal(machine_reset(w.m, &w.err), 0);
	pthread_mutex_unlock(machine_lock(w.m));
	expect_end(&w, END_FAILED, 1);
	fail_set_state = 0;
	assert_string_equal(w.end.text, "reset failed: scripted failure");
}

/* ---- HLT, INIT, SIPI ---- */

static atomic_uint halts, ap_started;

/* CPU 0 halts for ever; its LAPIC timer wakes it.  The vector it gets is the one it programmed. */
static enum run_result halting_guest(struct engine_vcpu *v, struct error *err)
{
	if (v->index)
		return spin(v, err);
	if (atomic_exchange(&v->is_kicked, false))
		return RUN_KICKED;
	if (v->runs == 1) {
		mmio(v, 0xfee000f0, true, 0x1ff);
		mmio(v, 0xfee003e0, true, 0xb);		   /* divide by 1 */
		mmio(v, 0xfee00320, true, 0x20000 | 0x61); /* periodic */
		mmio(v, 0xfee00380, true, 1000000);	   /* 1 ms */
	}
	if (v->intr) {
		int vector = v->up.intr_ack(v->up.ctx);

		assert_int_equal(vector, 0x61);
		mmio(v, 0xfee000b0, true, 0); /* EOI */
		halts++;
	}
	return RUN_HALTED;
}

/*
 * CPU 0 has its steal time at STEAL and halts with interrupts off, until CPU 1 ends that by hypercall; then the
 * yield hypercall.  CPU 1 is kept waiting for a SIPI: the test is its guest.
 */
#define STEAL 0x5000

static atomic_uint kicks_seen;

static int64_t hypercall(struct engine_vcpu *v, uint64_t nr, uint64_t a0, uint64_t a1)
{
	struct vcpu_exit x = { .kind = EXIT_HYPERCALL, .size = 8, .addr = nr, .arg = { a0, a1 } };

	assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
	return (int64_t)x.data;
}

static int wrmsr(struct engine_vcpu *v, uint64_t msr, uint64_t value)
{
	struct vcpu_exit x = { .kind = EXIT_MSR, .is_write = true, .size = 8, .addr = msr, .data = value };

	return v->up.on_exit(v->up.ctx, &x);
}

static enum run_result kicked_guest(struct engine_vcpu *v, struct error *err)
{
	if (v->index)
		return spin(v, err);
	if (atomic_exchange(&v->is_kicked, false))
		return RUN_KICKED;
	if (v->runs == 1) {
		assert_int_equal(wrmsr(v, 0x4b564d03, STEAL | 3), -EPERM);
		assert_int_equal(wrmsr(v, 0x4b564d03, STEAL | 1), 0);
		assert_int_equal(wrmsr(v, 0x4b564d04, STEAL | 3), -EPERM);
		assert_int_equal(wrmsr(v, 0x4b564d04, 0), 0);
		assert_int_equal(hypercall(v, 11, 1, 0), 0);
		assert_int_equal(hypercall(v, 5, 0, CPUS), 0); /* nobody */
	}
	if (atomic_exchange(&v->unhalt, false))
		kicks_seen++;
	return RUN_HALTED;
}

static void test_kick_cpu(void **state)
{
	struct world w;

	(void)state;
	kicks_seen = 0;
	power_on(&w, kicked_guest, false);
	for (unsigned i = 1; i <= 50; i++) {
		assert_int_equal(hypercall(cpus[1], 5, 0, 0), 0);
		while (kicks_seen < i)
			nap();
	}
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

static void test_halt(void **state)
{
	struct world w;

	(void)state;
	halts = 0;
	power_on(&w, halting_guest, false);
	while (halts < 20)
		nap();
	/* It slept in between: one run a wake-up, not a busy loop. */
	assert_in_range(cpus[0]->runs, 20, 3 * halts + 10);
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

static enum run_result smp_guest(struct engine_vcpu *v, struct error *err)
{
	if (v->index == 0 && v->runs == 1) {
		mmio(v, 0xfee000f0, true, 0x1ff);
		mmio(v, 0xfee00310, true, 2u << 24); /* to APIC id 2 */
		mmio(v, 0xfee00300, true, 0x4612); /* SIPI before INIT: CPU 2 waits for one since power-on */
	}
	if (v->index == 2 && v->runs == 1)
		ap_started = v->s.seg[1].selector << 16 | (uint32_t)v->s.rip;
	return spin(v, err);
}

static void test_sipi(void **state)
{
	struct world w;

	(void)state;
	ap_started = ~0u;
	power_on(&w, smp_guest, false);
	while (ap_started == ~0u)
		nap();
	assert_int_equal(ap_started, 0x1200u << 16);
	assert_int_equal(cpus[1]->runs, 0); /* nobody called it */

	/* INIT takes it back, whatever it does; the TSC goes on as it was. */
	pthread_mutex_lock(machine_lock(w.m));
	int64_t offset = cpus[2]->tsc_offset;

	assert_int_equal(cpus[2]->s.mp_state, MP_RUNNABLE);
	pthread_mutex_unlock(machine_lock(w.m));

	mmio(cpus[0], 0xfee00310, true, 2u << 24);
	mmio(cpus[0], 0xfee00300, true, 0x4500); /* INIT, assert */
	unsigned mp_state;

	do { /* CPU 2's thread loads it under the lock */
		nap();
		pthread_mutex_lock(machine_lock(w.m));
		mp_state = cpus[2]->s.mp_state;
		pthread_mutex_unlock(machine_lock(w.m));
	} while (mp_state != MP_WAIT_SIPI);
	pthread_mutex_lock(machine_lock(w.m));
	assert_int_equal(cpus[2]->tsc_offset, offset);
	pthread_mutex_unlock(machine_lock(w.m));
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

/* ---- exits ---- */

static atomic_bool is_checked;

static enum run_result msr_guest(struct engine_vcpu *v, struct error *err)
{
	struct vcpu_exit x = { .kind = EXIT_MSR, .size = 8, .addr = 0x1b };

	if (v->index || v->runs > 1)
		return spin(v, err);
	assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
	assert_int_equal(x.data, 0xfee00900); /* enabled, BSP */
	x.addr = 0xc0000080;		      /* EFER is the engine's own business */
	assert_int_equal(v->up.on_exit(v->up.ctx, &x), -EPERM);
	x = (struct vcpu_exit){ .kind = EXIT_CR8, .is_write = true, .size = 8, .data = 5 };
	assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
	x = (struct vcpu_exit){ .kind = EXIT_CR8, .size = 8 };
	assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
	assert_int_equal(x.data, 5);
	x = (struct vcpu_exit){ .kind = EXIT_CR8, .is_write = true, .size = 8, .data = 16 };
	assert_int_equal(v->up.on_exit(v->up.ctx, &x), -EPERM);
	x = (struct vcpu_exit){ .kind = EXIT_PIO, .size = 1, .addr = 0x1234 };
	assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
	assert_int_equal(x.data, 0xff); /* nobody there */
	for (unsigned i = 0; i < 2; i++) {
		x = (struct vcpu_exit){ .kind = EXIT_PIO, .size = 1, .addr = 0x3fd };
		assert_int_equal(v->up.on_exit(v->up.ctx, &x), 0);
	}
	assert_int_equal(mmio(v, 0xd0000000, false, 0), 0xffffffff);
	is_checked = true;
	return spin(v, err);
}

static void sum_counters(void *arg, unsigned vcpu, const char *name, uint64_t value)
{
	if (vcpu == 0 && strcmp(name, "exits_cr8") == 0)
		*(uint64_t *)arg = value;
}

static void uart_accesses(void *arg, unsigned vcpu, const char *name, uint64_t value)
{
	assert_int_equal(vcpu, 0);
	assert_true(value > 0); /* who was not accessed is not told */
	if (strncmp(name, "uart", 4) == 0)
		*(uint64_t *)arg += value;
}

static void test_exits(void **state)
{
	uint64_t cr8_exits = 0, uart = 0;
	struct machine_counter_sink sink = { sum_counters, &cr8_exits };
	struct world w;
	char rsdp[9] = "";

	(void)state;
	is_checked = false;
	power_on(&w, msr_guest, false);
	while (!is_checked)
		nap();
	pthread_mutex_lock(machine_lock(w.m));
	machine_counters(w.m, &sink);
	assert_int_equal(cr8_exits, 3);
	machine_device_counters(w.m, &(struct machine_counter_sink){ uart_accesses, &uart });
	assert_int_equal(uart, 2);
	/* the ACPI tables lie where the search for them looks */
	assert_int_equal(ram_read(machine_ram(w.m), 0xe0000, rsdp, 8), 0);
	assert_string_equal(rsdp, "RSD PTR ");
	assert_int_equal(machine_inject_nmi(w.m, 1, &w.err), 0);
	assert_int_equal(machine_inject_nmi(w.m, CPUS, &w.err), -EINVAL);
	pthread_mutex_unlock(machine_lock(w.m));
	locked(&w, do_quit);
	expect_end(&w, END_STOPPED, 0);
}

/* ---- stop ---- */

static void do_stop_soon(struct world *w)
{
	assert_int_equal(machine_stop(w->m, 30000000, &w->err), 0);
}

static void do_pause(struct world *w)
{
	assert_int_equal(machine_pause(w->m, &w->err), 0);
}

static void test_stop_times_out(void **state)
{
	struct world w;

	(void)state;
	power_on(&w, spin, false); /* deaf to the power button */
	locked(&w, do_pause);	   /* and asleep: the time-out is the host's */
	locked(&w, do_stop_soon);
	expect_end(&w, END_STOPPED, 0);
	assert_non_null(strstr(w.end.text, "in time"));
}

/* ---- bad configurations ---- */

static void expect_refusal(const struct machine_config *cfg, const char *part)
{
	struct machine *m = NULL;
	struct error err = { "" };

	assert_true(machine_create(&m, cfg, NULL, &err) < 0);
	assert_null(m);
	assert_non_null(strstr(err.text, part));
	for (unsigned i = 0; i < CPUS; i++)
		assert_null(cpus[i]);
}

static void test_refusals(void **state)
{
	struct machine_config cfg;

	(void)state;
	cfg = base_config();
	cfg.cpus = 0;
	expect_refusal(&cfg, "CPUs");
	cfg = base_config();
	cfg.mem_bytes = 4096;
	expect_refusal(&cfg, "memory");
	cfg = base_config();
	cfg.kernel = "/nonexistent/kernel";
	expect_refusal(&cfg, "/nonexistent/kernel");
	cfg = base_config();
	cfg.kernel = "/dev/null";
	expect_refusal(&cfg, "/dev/null");
	cfg = base_config();
	cfg.firmware = "/dev/null";
	expect_refusal(&cfg, "exclude");
	cfg = base_config();
	cfg.cpu = "z80";
	expect_refusal(&cfg, "z80");
	cfg = base_config();
	cfg.disks[0].path = "/nonexistent/disk";
	cfg.ndisks = 1;
	expect_refusal(&cfg, "/nonexistent/disk");
	fail_set_state = 1;
	cfg = base_config();
	expect_refusal(&cfg, "scripted failure");
	fail_set_state = 0;
}

static struct device *reset_last;

static void note_reset(struct device *dev)
{
	reset_last = dev;
}

/* What devices have in flight, and drain as they are reset, goes through an IOMMU that is as the guest has set it. */
static void test_iommu_is_reset_last(void **state)
{
	static struct device_class noted[64];
	struct machine_config cfg = base_config();
	struct machine *m;
	struct error err;
	unsigned n = 0;

	cfg.has_iommu = true;
	assert_int_equal(machine_create(&m, &cfg, NULL, &err), 0);
	for (struct device *d = m->devices; d; d = d->next) {
		assert_true(n < ARRAY_SIZE(noted));
		noted[n] = *d->cls;
		noted[n].reset = note_reset;
		d->cls = &noted[n++];
	}
	pc_reset(m);
	assert_ptr_equal(reset_last, &m->vtd->dev);
	machine_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ends),	     cmocka_unit_test(test_forbidden_resume),
		cmocka_unit_test(test_throttle),     cmocka_unit_test(test_freeze),
		cmocka_unit_test(test_pause),	     cmocka_unit_test(test_reset),
		cmocka_unit_test(test_failed_reset), cmocka_unit_test(test_halt),
		cmocka_unit_test(test_kick_cpu),     cmocka_unit_test(test_sipi),
		cmocka_unit_test(test_exits),	     cmocka_unit_test(test_stop_times_out),
		cmocka_unit_test(test_refusals),     cmocka_unit_test(test_iommu_is_reset_last),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
