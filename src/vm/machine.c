/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

#include "base/log.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_net.h"
#include "vm/machine_int.h"
#include "vm/snapshot_state.h"

void machine_watch(struct machine *m, void (*fn)(void *arg, enum machine_event event), void *arg)
{
	m->on_event = fn;
	m->event_arg = arg;
}

void machine_tell(struct machine *m, enum machine_event event)
{
	if (m->on_event)
		m->on_event(m->event_arg, event);
}

/* ---- holding vCPUs ---- */

static bool any_inside(const struct machine *m)
{
	for (unsigned i = 0; i < m->ncpus; i++) {
		if (m->cpus[i].is_inside)
			return true;
	}
	return false;
}

static void start_hold(struct machine *m)
{
	m->is_held = true;
	for (unsigned i = 0; i < m->ncpus; i++)
		vcpu_kick(&m->cpus[i]);
}

void machine_hold(struct machine *m)
{
	start_hold(m);
	while (any_inside(m))
		pthread_cond_wait(&m->idle, &m->lock);
}

static void release(struct machine *m)
{
	m->is_held = false;
	for (unsigned i = 0; i < m->ncpus; i++)
		vcpu_wake(&m->cpus[i]);
}

/* ---- slowing down ---- */

#define THROTTLE_SLICE_NS 5000000LL /* that the CPUs run, or stand, at least */

static void on_throttle(void *arg)
{
	struct machine *m = arg;
	int64_t run = THROTTLE_SLICE_NS, stand = THROTTLE_SLICE_NS;

	if (m->is_throttled) {
		m->is_throttled = false;
		/* Others hold it for longer: a pause, a reset, the end. */
		if (m->state == MACHINE_RUNNING && !m->is_reset_queued && !m->is_end_set)
			release(m);
	} else if (m->throttle_percent && m->state == MACHINE_RUNNING && !m->is_held) {
		m->is_throttled = true;
		start_hold(m);
	}
	if (!m->throttle_percent && !m->is_throttled)
		return;
	if (m->throttle_percent > 50)
		stand = run * m->throttle_percent / (100 - m->throttle_percent);
	else if (m->throttle_percent)
		run = stand * (100 - m->throttle_percent) / m->throttle_percent;
	vtimer_arm(m->throttle_timer, vclock_now_ns(&m->host_clock) + (m->is_throttled ? stand : run));
}

void machine_throttle(struct machine *m, unsigned percent)
{
	m->throttle_percent = MIN(percent, (unsigned)MACHINE_THROTTLE_MAX);
	if (!m->throttle_timer && percent)
		m->throttle_timer = vtimer_create(m->loop, &m->host_clock, on_throttle, m);
	/* Without memory for a timer it runs as it did. */
	if (m->throttle_timer && (percent ? !vtimer_is_armed(m->throttle_timer) : m->is_throttled))
		vtimer_arm(m->throttle_timer, vclock_now_ns(&m->host_clock));
}

/* ---- time ---- */

/* Guest TSC stands still while the machine is paused: all offsets move by the same amount. */
static void tsc_pause(struct machine *m)
{
	m->host_tsc_at_pause = __rdtsc();
}

static void tsc_resume(struct machine *m)
{
	int64_t away = (int64_t)(__rdtsc() - m->host_tsc_at_pause);

	for (unsigned i = 0; i < m->ncpus; i++) {
		struct engine_vcpu *ev = m->cpus[i].ev;

		m->ops->set_tsc_offset(ev, m->ops->get_tsc_offset(ev) - away);
	}
}

void machine_skip(struct machine *m, int64_t ns)
{
	if (ns <= 0)
		return;
	/* tsc_resume() takes away less. */
	m->host_tsc_at_pause += (uint64_t)((unsigned __int128)ns * m->tsc_khz / 1000000);
	vclock_set(&m->clock, vclock_now_ns(&m->clock) + ns);
	loop_clock_changed(m->loop);
}

static int clock_start(struct machine *m, struct error *err)
{
	int r = 0;

	if (m->ops->set_clock)
		r = m->ops->set_clock(m->vm, vclock_now_ns(&m->clock), err);
	if (r < 0)
		return r;
	vclock_start(&m->clock);
	loop_clock_changed(m->loop);
	return 0;
}

/* ---- reset ---- */

struct load_call {
	struct x86_state *s;
	int64_t tsc_offset;
	int result;
	struct error *err;
};

static void load_on_thread(struct vcpu *v, void *arg)
{
	struct load_call *c = arg;

	c->result = vcpu_load(v, c->s, c->tsc_offset, c->err);
}

/* All vCPUs held: devices and CPUs as after power-on, RAM as the loader leaves it. */
static int power_on_state(struct machine *m, struct error *err)
{
	struct load_call c = { .tsc_offset = -(int64_t)__rdtsc(), .err = err };

	m->has_kvmclock = false;
	pc_reset(m);
	int r = load_boot(m, err);

	if (r < 0)
		return r;
	c.s = aligned_alloc(64, sizeof(*c.s));
	if (!c.s)
		return error_set(err, -ENOMEM, "no memory for a CPU's state");
	for (unsigned i = 0; r == 0 && i < m->ncpus; i++) {
		load_cpu_state(m, i, c.s);
		vcpu_call(&m->cpus[i], load_on_thread, &c);
		r = c.result;
	}
	free(c.s);
	return r;
}

static void reset_now(void *arg)
{
	struct machine *m = arg;
	struct error err;

	if (!m->is_reset_queued || m->no_resume)
		return; /* a state was loaded meanwhile; or the reset goes with the machine, machine_forbid_resume() */
	m->is_reset_queued = false;
	if (m->state == MACHINE_ENDED || m->is_end_set)
		return;
	machine_hold(m);
	if (m->is_end_set)
		return;
	m->resets++;
	if (power_on_state(m, &err) < 0) {
		error_prefix(&err, "reset failed");
		machine_fail(m, &err);
		return;
	}
	if (m->state == MACHINE_PAUSED)
		tsc_pause(m);
	else
		release(m);
	machine_tell(m, MACHINE_WAS_RESET);
}

/* From the reset button: no_reboot is about the guest's own wish. */
int machine_queue_reset(struct machine *m)
{
	if (m->is_reset_queued)
		return 0;
	start_hold(m); /* the guest does not see one instruction more than it must */
	int r = loop_post(m->loop, reset_now, m);

	m->is_reset_queued = r == 0;
	return r;
}

void machine_request_reset(struct machine *m)
{
	struct error err;

	if (m->cfg.no_reboot) {
		machine_end(m, END_RESET, 0, "the guest asked for a reset");
		return;
	}
	int r = machine_queue_reset(m);

	if (r < 0) {
		error_set(&err, r, "cannot reset the machine: %s", strerror(-r));
		machine_fail(m, &err);
	}
}

/* ---- end ---- */

void machine_end(struct machine *m, enum machine_end_reason reason, int status, const char *text)
{
	if (m->is_end_set)
		return;
	m->is_end_set = true;
	m->end.reason = reason;
	m->end.status = status;
	snprintf(m->end.text, sizeof(m->end.text), "%s", text);
	start_hold(m);
	loop_stop(m->loop, 0);
}

void machine_fail(struct machine *m, const struct error *err)
{
	machine_end(m, END_FAILED, 1, err->text);
}

/* ---- life cycle ---- */

static int check_config(const struct machine_config *cfg, struct error *err)
{
	if (cfg->cpus < 1 || cfg->cpus > MACHINE_MAX_CPUS)
		return error_set(err, -EINVAL, "a machine has 1 to %d CPUs, not %u",
				 MACHINE_MAX_CPUS, cfg->cpus);
	if (cfg->mem_bytes < MACHINE_MIN_MEM || cfg->mem_bytes > MACHINE_MAX_MEM ||
	    cfg->mem_bytes % GUEST_PAGE_SIZE)
		return error_set(err, -EINVAL, "memory must be a multiple of 4K from 2M to 1T");
	if (cfg->append && strlen(cfg->append) >= MACHINE_MAX_CMDLINE)
		return error_set(err, -EINVAL, "the kernel command line is longer than %d bytes",
				 MACHINE_MAX_CMDLINE - 1);
	if (cfg->ndisks > MACHINE_MAX_DISKS || cfg->nnics > MACHINE_MAX_NICS)
		return error_set(err, -EINVAL, "a machine has at most %d disks and %d network cards",
				 MACHINE_MAX_DISKS, MACHINE_MAX_NICS);
	if (cfg->nshares > MACHINE_MAX_SHARES)
		return error_set(err, -EINVAL, "a machine has at most %d shared folders",
				 MACHINE_MAX_SHARES);
	return 0;
}

static int create_memory(struct machine *m, struct error *err)
{
	const struct machine_restore *restore = m->cfg.restore;
	uint64_t rom_bytes = restore ? restore->state->machine.rom_bytes : 0;
	int r = restore ? 0 : load_rom_bytes(m, &rom_bytes, err);

	if (restore && restore->state->machine.mem_bytes != m->cfg.mem_bytes)
		return error_set(
			err, -EINVAL,
			"the snapshot is of a machine with %llu bytes of memory, this one has %llu",
			(unsigned long long)restore->state->machine.mem_bytes,
			(unsigned long long)m->cfg.mem_bytes);
	if (restore && restore->ram) {
		m->ram = *restore->ram;
		m->ram.on_code_write = NULL;
		m->rom = m->ram.base + m->ram.size_bytes - rom_bytes;
		return 0;
	}
	if (r == 0)
		r = ram_create(&m->ram, m->cfg.mem_bytes, rom_bytes, err);
	if (r == 0 && rom_bytes) {
		m->rom = ram_add_rom(&m->ram, 4 * GIB - rom_bytes, rom_bytes, err);
		if (!m->rom)
			r = -EINVAL;
	}
	if (r == 0 && restore && restore->map_ram)
		r = restore->map_ram(restore->arg, &m->ram, err);
	return r;
}

static int create_engine(struct machine *m, const struct machine_config *cfg, struct error *err)
{
	struct engine_config ec = {
		.ram = &m->ram,
		.model = &m->model,
		.vcpus = m->ncpus,
		.is_strict = cfg->is_strict,
		.check_every = cfg->check_every,
		.use_interp_only = cfg->use_interp_only,
		.is_counting = cfg->is_counting,
		.without = cfg->without,
	};

	if (cfg->restore && snapshot_is_of_this_boot(cfg->restore->state))
		ec.tsc_khz = cfg->restore->state->machine.tsc_khz;

	int r = cpu_model_init(&m->model, m->cpu_name, m->ncpus, err);

	if (r == 0 && cfg->restore)
		r = snapshot_cpu_model(cfg->restore->state, &m->model, err);
	if (r == 0)
		r = m->ops->vm_create(&m->vm, &ec, err);
	if (r == 0)
		m->tsc_khz = snapshot_tsc_khz(cfg->restore ? cfg->restore->state : NULL,
					      m->ops->tsc_khz(m->vm));
	for (unsigned i = 0; r == 0 && i < m->ncpus; i++)
		r = vcpu_create(&m->cpus[i], m, i, err);
	if (r == 0 && cfg->restore && cfg->restore->code_head && m->ops->code_expect)
		m->ops->code_expect(m->vm, cfg->restore->code_head, cfg->restore->code_head_len);
	return r;
}

static void stop_expired(void *arg)
{
	machine_end(arg, END_STOPPED, 0, "the guest did not switch itself off in time and was stopped");
}

/* What kind of kernel decides about test devices: known before they are built. */
static int detect_format(struct machine *m, struct error *err)
{
	struct boot_blob kernel;

	if (m->cfg.restore)
		m->format = m->cfg.restore->state->machine.boot_format;
	if (!m->kernel.name || m->cfg.restore)
		return 0;
	int r = boot_blob_read(&kernel, m->kernel.fd, m->kernel.name, 1 * GIB, err);

	if (r == 0) {
		m->format = boot_detect(&kernel);
		boot_blob_free(&kernel);
	}
	return r;
}

/*
 * A machine that goes on from where it was, on a host that has not been started anew since then, keeps the engine that needs nothing of
 * the host: to measure again what there is takes longer than all else.  NULL: it is to be chosen.
 */
static const struct engine_ops *engine_as_before(const struct machine_config *cfg, char reason[256])
{
	const char *want = cfg->engine ? cfg->engine : "auto";
	const struct snapshot_state *s = cfg->restore ? cfg->restore->state : NULL;

	if (!s || (strcmp(want, "auto") != 0 && strcmp(want, engine_dbt.name) != 0) ||
	    strcmp(s->machine.engine, engine_dbt.name) != 0 || !snapshot_is_of_this_boot(s))
		return NULL;
	snprintf(reason, 256, "as when the snapshot was taken");
	return &engine_dbt;
}

static int build(struct machine *m, const struct machine_config *cfg, char engine_reason[256],
		 struct error *err)
{
	char reason[256] = "";
	int r = check_config(cfg, err);

	if (r < 0)
		return r;
	m->name = strdup(cfg->name ? cfg->name : "machine");
	m->append = strdup(cfg->append ? cfg->append : "");
	m->cpu_name = strdup(cfg->cpu ? cfg->cpu : "host");
	m->bsp = aligned_alloc(64, sizeof(*m->bsp));
	if (!m->name || !m->append || !m->cpu_name || !m->bsp)
		return error_set(err, -ENOMEM, "no memory for a machine");
	r = load_open(m, cfg, err);
	if (r == 0)
		r = detect_format(m, err);
	if (r < 0)
		return r;

	m->ops = cfg->engine_ops;
	if (!m->ops)
		m->ops = engine_as_before(cfg, reason);
	if (!m->ops)
		m->ops = engine_pick(cfg->engine ? cfg->engine : "auto", reason, err);
	if (!m->ops)
		return -ENOTSUP;
	if (engine_reason)
		snprintf(engine_reason, 256, "%s", reason);

	r = loop_create(&m->loop, &m->lock, err);
	if (r == 0 && cfg->make_backends)
		r = cfg->make_backends(cfg->backends_arg, m->loop, &m->cfg, err);
	if (r == 0)
		r = create_memory(m, err);
	if (r == 0)
		r = create_engine(m, cfg, err);
	/* They confine themselves while the rest is made, and wait for the start. */
	for (unsigned i = 0; r == 0 && i < m->ncpus; i++)
		r = vcpu_start_thread(&m->cpus[i], err);
	if (r < 0)
		return r;
	m->stop_timer = vtimer_create(m->loop, &m->host_clock, stop_expired, m);
	if (!m->stop_timer)
		return error_set(err, -ENOMEM, "no memory for a timer");
	r = pc_create(m, err);
	if (r == 0)
		r = load_fw_cfg(m, err);
	if (r < 0)
		return r;
	if (!cfg->restore)
		return power_on_state(m, err);
	pc_reset(m);
	if (cfg->restore->is_shape)
		return machine_check_state(m, cfg->restore->state, err);
	r = machine_load_state(m, cfg->restore->state, err);
	m->is_loaded = r == 0;
	return r;
}

int machine_create(struct machine **out, const struct machine_config *cfg, char engine_reason[256],
		   struct error *err)
{
	struct machine *m = calloc(1, sizeof(*m));

	if (!m)
		return error_set(err, -ENOMEM, "no memory for a machine");
	m->created_ns = machine_monotonic_ns();
	m->cfg = *cfg;
	m->ncpus = MIN(cfg->cpus, (unsigned)MACHINE_MAX_CPUS);
	m->kernel.fd = m->initrd.fd = m->firmware.fd = -1;
	m->is_held = true;
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->idle, NULL);
	vclock_init(&m->clock);
	vclock_init(&m->host_clock);
	vclock_start(&m->host_clock);
	pthread_mutex_lock(&m->lock);
	int r = build(m, cfg, engine_reason, err);

	pthread_mutex_unlock(&m->lock);
	/* The caller's strings may go now. */
	m->cfg.name = m->cfg.engine = m->cfg.cpu = m->cfg.kernel = m->cfg.initrd = NULL;
	m->cfg.append = m->cfg.firmware = NULL;
	m->cfg.restore = NULL;
	memset(m->cfg.disks, 0, sizeof(m->cfg.disks));
	for (unsigned i = 0; i < MACHINE_MAX_SHARES; i++)
		m->cfg.shares[i].tag = NULL;
	if (r < 0) {
		if (cfg->restore && cfg->restore->ram)
			m->ram = (struct guest_ram){ 0 }; /* stays the caller's */
		machine_destroy(m);
		return r;
	}
	*out = m;
	return 0;
}

static void pause_devices(struct machine *m)
{
	for (struct device *d = m->devices; d; d = d->next) {
		if (d->cls->pause)
			d->cls->pause(d);
	}
}

static void resume_devices(struct machine *m)
{
	for (struct device *d = m->devices; d; d = d->next) {
		if (d->cls->resume)
			d->cls->resume(d);
	}
}

int machine_start(struct machine *m, bool is_paused, struct error *err)
{
	int r = 0;

	assert(m->state == MACHINE_CREATED);
	if (is_paused) {
		m->state = MACHINE_PAUSED;
		if (!m->is_loaded)
			tsc_pause(m);
		m->is_loaded = false;
		pause_devices(m);
		return 0;
	}
	if (m->is_loaded)
		tsc_resume(m);
	m->is_loaded = false;
	r = clock_start(m, err);
	if (r < 0)
		return r;
	m->state = MACHINE_RUNNING;
	if (!m->is_reset_queued)
		release(m);
	machine_tell(m, MACHINE_STATE_CHANGED);
	return 0;
}

void machine_before_end(struct machine *m, void (*fn)(void *arg), void *arg)
{
	m->before_end = fn;
	m->before_end_arg = arg;
}

void machine_run(struct machine *m, struct machine_end *end)
{
	loop_run(m->loop);
	if (m->before_end)
		m->before_end(m->before_end_arg);
	pthread_mutex_lock(&m->lock);
	assert(m->is_end_set);
	machine_hold(m);
	m->state = MACHINE_ENDED;
	vclock_stop(&m->clock);
	loop_clock_changed(m->loop);
	*end = m->end;
	pthread_mutex_unlock(&m->lock);
}

void machine_destroy(struct machine *m)
{
	if (!m)
		return;
	pthread_mutex_lock(&m->lock);
	m->is_quitting = true;
	start_hold(m);
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < m->ncpus; i++) {
		if (m->cpus[i].has_thread)
			pthread_join(m->cpus[i].thread, NULL);
	}
	pthread_mutex_lock(&m->lock);
	if (m->bus)
		pc_destroy(m);
	if (m->loop && m->cfg.free_backends)
		m->cfg.free_backends(m->cfg.backends_arg);
	for (unsigned i = 0; i < m->cfg.nnics && i < MACHINE_MAX_NICS; i++) {
		if (m->cfg.nics[i].fd >= 0)
			close(m->cfg.nics[i].fd);
	}
	for (unsigned i = 0; i < m->cfg.nshares && i < MACHINE_MAX_SHARES; i++) {
		if (m->cfg.shares[i].fd >= 0)
			close(m->cfg.shares[i].fd);
	}
	vtimer_destroy(m->stop_timer);
	vtimer_destroy(m->throttle_timer);
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < m->ncpus; i++)
		vcpu_destroy(&m->cpus[i]);
	if (m->ops)
		m->ops->vm_destroy(m->vm);
	ram_destroy(&m->ram);
	loop_destroy(m->loop);
	load_close(m);
	pthread_cond_destroy(&m->idle);
	pthread_mutex_destroy(&m->lock);
	free(m->bsp);
	free(m->name);
	free(m->append);
	free(m->cpu_name);
	free(m);
}

void machine_abandon(struct machine *m)
{
	for (unsigned i = 0; i < m->ncpus; i++)
		m->ops->vcpu_destroy(m->cpus[i].ev);
	m->ops->vm_destroy(m->vm);
	/* Of the old engine: zero again. */
	madvise((void *)(uintptr_t)m->ram.page_flags, m->ram.size_bytes >> GUEST_PAGE_SHIFT,
		MADV_DONTNEED);
}

/* ---- verbs ---- */

static int check_alive(const struct machine *m, struct error *err)
{
	if (m->is_end_set || m->state == MACHINE_ENDED)
		return error_set(err, -ESHUTDOWN, "the machine has ended");
	return 0;
}

int machine_pause(struct machine *m, struct error *err)
{
	int r = check_alive(m, err);

	if (r < 0)
		return r;
	if (m->state != MACHINE_RUNNING)
		return error_set(err, -EALREADY, "the machine is paused already");
	m->state = MACHINE_PAUSED;
	machine_hold(m);
	tsc_pause(m);
	vclock_stop(&m->clock);
	loop_clock_changed(m->loop);
	pause_devices(m);
	machine_tell(m, MACHINE_STATE_CHANGED);
	return check_alive(m, err);
}

int machine_resume(struct machine *m, struct error *err)
{
	int r = check_alive(m, err);

	if (r < 0)
		return r;
	if (m->state != MACHINE_PAUSED)
		return error_set(err, -EALREADY, "the machine is not paused");
	if (m->no_resume)
		return error_set(err, -EPERM, "%s", m->no_resume);
	tsc_resume(m);
	r = clock_start(m, err);
	if (r < 0)
		return r;
	resume_devices(m);
	m->state = MACHINE_RUNNING;
	if (!m->is_reset_queued)
		release(m);
	machine_tell(m, MACHINE_STATE_CHANGED);
	return 0;
}

void machine_freeze(struct machine *m)
{
	if (m->state != MACHINE_RUNNING)
		return;
	machine_hold(m);
	if (m->state == MACHINE_RUNNING)
		pause_devices(m);
}

void machine_thaw(struct machine *m)
{
	/* Others hold it for longer: a pause, a reset, the end. */
	if (m->state != MACHINE_RUNNING || m->is_end_set)
		return;
	resume_devices(m);
	if (!m->is_reset_queued)
		release(m);
}

void machine_forbid_resume(struct machine *m, const char *why)
{
	m->no_resume = why;
	if (!why && m->is_reset_queued && loop_post(m->loop, reset_now, m) < 0)
		machine_fail(m, &(struct error){ "no memory to reset the machine" });
}

const char *machine_why_no_resume(const struct machine *m)
{
	return m->no_resume;
}

int machine_reset(struct machine *m, struct error *err)
{
	int r = check_alive(m, err);

	if (r == 0 && m->no_resume)
		r = error_set(err, -EPERM, "%s", m->no_resume);
	if (r < 0)
		return r;
	r = machine_queue_reset(m);
	return r < 0 ? error_set(err, r, "cannot reset the machine: %s", strerror(-r)) : 0;
}

int machine_stop(struct machine *m, int64_t timeout_ns, struct error *err)
{
	int r = check_alive(m, err);

	if (r < 0)
		return r;
	if (timeout_ns <= 0) {
		machine_end(m, END_STOPPED, 0, "the machine was stopped");
		return 0;
	}
	if (m->state == MACHINE_PAUSED)
		r = machine_resume(m, err);
	if (r < 0)
		return r;
	acpi_pm_power_button(m->acpi_pm);
	vtimer_arm(m->stop_timer, vclock_now_ns(&m->host_clock) + timeout_ns);
	return 0;
}

int machine_inject_nmi(struct machine *m, unsigned index, struct error *err)
{
	int r = check_alive(m, err);

	if (r < 0)
		return r;
	if (index >= m->ncpus)
		return error_set(err, -EINVAL, "there is no CPU %u", index);
	if (m->cpus[index].lapic) {
		lapic_inject_nmi(m->cpus[index].lapic);
	} else {
		m->ops->raise_nmi(m->cpus[index].ev);
		vcpu_wake(&m->cpus[index]);
	}
	return 0;
}

/* ---- queries ---- */

struct loop *machine_loop(struct machine *m)
{
	return m->loop;
}

pthread_mutex_t *machine_lock(struct machine *m)
{
	return &m->lock;
}

enum machine_state machine_state(const struct machine *m)
{
	return m->state;
}

const char *machine_state_name(enum machine_state s)
{
	static const char *const names[] = { "created", "running", "paused", "ended" };

	return s < ARRAY_SIZE(names) ? names[s] : "unknown";
}

const struct engine_ops *machine_engine(const struct machine *m)
{
	return m->ops;
}

struct guest_ram *machine_ram(struct machine *m)
{
	return &m->ram;
}

struct engine_vm *machine_vm(struct machine *m)
{
	return m->vm;
}

struct block_dev *machine_block(struct machine *m, unsigned i)
{
	return m->blocks[i];
}

void machine_settled(struct machine *m, int result)
{
	for (unsigned i = 0; i < m->cfg.ndisks; i++)
		if (m->blocks[i])
			block_settled(m->blocks[i], result);
}

uint64_t machine_block_writes(const struct machine *m, unsigned i)
{
	struct virtio_blk_stats stats;

	virtio_blk_stats(m->disks[i], &stats);
	return stats.writes + stats.discards;
}

void machine_ram_replaced(struct machine *m)
{
	ram_note_write_ptr(&m->ram, m->ram.base, m->ram.size_bytes);
}

int64_t machine_monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

void machine_info(struct machine *m, struct machine_info *out)
{
	*out = (struct machine_info){
		.state = m->is_end_set ? MACHINE_ENDED : m->state,
		.engine = m->ops->name,
		.cpu = m->cpu_name,
		.cpus = m->ncpus,
		.mem_bytes = m->cfg.mem_bytes,
		.disks = m->cfg.ndisks,
		.clock_ns = vclock_now_ns(&m->clock),
		.resets = m->resets,
		.created_ns = m->created_ns,
		.first_run_ns = m->first_run_ns,
	};
}

/* Processor time that the host gave to the vCPU's thread; 0 when it is not there. */
static uint64_t thread_cpu_ns(const struct vcpu *v)
{
	struct timespec ts;
	clockid_t clock;

	if (!v->has_thread || pthread_getcpuclockid(v->thread, &clock) || clock_gettime(clock, &ts) < 0)
		return 0;
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

struct device_counter {
	struct machine *m;
	const struct machine_counter_sink *sink;
};

static void count_range(void *arg, enum bus_space space, uint64_t base, const void *dev, uint64_t accesses)
{
	const struct device_counter *c = arg;
	const struct device *d = c->m->devices;
	char name[40];

	if (!accesses)
		return;
	while (d && d != dev) /* a device's header is its first member */
		d = d->next;
	snprintf(name, sizeof(name), space == BUS_PIO ? "port-%llx" : "memory-%llx",
		 (unsigned long long)base);
	c->sink->fn(c->sink->arg, 0, d ? d->id : name, accesses);
}

void machine_device_counters(struct machine *m, const struct machine_counter_sink *sink)
{
	struct device_counter c = { m, sink };

	bus_counters(m->bus, count_range, &c);
}

void machine_disk_counters(struct machine *m, const struct machine_counter_sink *sink)
{
	for (unsigned i = 0; i < m->cfg.ndisks; i++) {
		struct virtio_blk_stats s;

		virtio_blk_stats(m->disks[i], &s);
		sink->fn(sink->arg, i, "reads", s.reads);
		sink->fn(sink->arg, i, "writes", s.writes);
		sink->fn(sink->arg, i, "flushes", s.flushes);
		sink->fn(sink->arg, i, "discards", s.discards);
		sink->fn(sink->arg, i, "errors", s.errors);
		sink->fn(sink->arg, i, "read_bytes", s.read_bytes);
		sink->fn(sink->arg, i, "written_bytes", s.written_bytes);
	}
}

void machine_card_counters(struct machine *m, const struct machine_counter_sink *sink)
{
	for (unsigned i = 0; i < m->cfg.nnics; i++) {
		struct virtio_net_stats s;

		virtio_net_stats(m->cards[i], &s);
		sink->fn(sink->arg, i, "rx_frames", s.rx_frames);
		sink->fn(sink->arg, i, "rx_bytes", s.rx_bytes);
		sink->fn(sink->arg, i, "rx_dropped", s.rx_dropped);
		sink->fn(sink->arg, i, "rx_filtered", s.rx_filtered);
		sink->fn(sink->arg, i, "tx_frames", s.tx_frames);
		sink->fn(sink->arg, i, "tx_bytes", s.tx_bytes);
		sink->fn(sink->arg, i, "tx_dropped", s.tx_dropped);
	}
}

void machine_counters(struct machine *m, const struct machine_counter_sink *sink)
{
	static const char *const kinds[EXIT_KINDS] = { "exits_pio", "exits_mmio",      "exits_cr8",
						       "exits_msr", "exits_hypercall", "exits_eoi" };
	const char *names[ENGINE_COUNTERS_MAX];
	uint64_t values[ENGINE_COUNTERS_MAX];

	for (unsigned i = 0; i < m->ncpus; i++) {
		struct vcpu *v = &m->cpus[i];

		for (unsigned k = 0; k < EXIT_KINDS; k++)
			sink->fn(sink->arg, i, kinds[k], v->exits[k]);
		sink->fn(sink->arg, i, "exits_to_lapic", v->lapic_accesses);
		sink->fn(sink->arg, i, "halts", v->halts);
		sink->fn(sink->arg, i, "cpu_time_ns", thread_cpu_ns(v));
		unsigned n = m->ops->counters
				     ? m->ops->counters(v->ev, names, values, ENGINE_COUNTERS_MAX)
				     : 0;

		for (unsigned k = 0; k < n; k++)
			sink->fn(sink->arg, i, names[k], values[k]);
	}
}
