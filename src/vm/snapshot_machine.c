/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine to state and back.
 *
 * Loading has two passes.  The first loads everything into copies and compares the machine that the state
 * describes with the one at hand: all that can be wrong with the bytes is found there, and nothing has
 * changed.  It is left out for a state that this machine loaded, or gave, before.  The second loads devices, CPUs and clocks; then devices re-arm their timers and drive their lines
 * (after_load), in the order of their creation, which all have loaded state by then.
 *
 * An engine that owns the local APICs gives and takes them as register pages.  Here they go through LAPIC
 * devices that are connected to nothing, so that the bytes are those of a machine whose LAPICs are devices.
 */
#include <errno.h>
#include <string.h>
#include <x86intrin.h>

#include "base/log.h"
#include "dev/chipset/lapic_regs.h"
#include "share/server.h"
#include "vm/kvmclock.h"
#include "vm/snapshot_int.h"

/* ---- LAPICs of an engine that owns them ---- */

struct lapics {
	struct lapic_bus *bus;
	struct lapic *lapic[MACHINE_MAX_CPUS];
};

static void no_level(void *ctx, unsigned cpu, bool level)
{
}

static void no_event(void *ctx, unsigned cpu)
{
}

static void no_vector(void *ctx, unsigned cpu, uint8_t vector)
{
}

static uint64_t lapics_tsc(void *ctx, unsigned cpu)
{
	struct machine *m = ctx;

	return m->ops->read_tsc(m->cpus[cpu].ev);
}

static void no_eoi(void *ctx, uint8_t vector)
{
}

static uint8_t no_ack(void *ctx)
{
	return 0;
}

static void lapics_destroy(struct lapics *s)
{
	for (unsigned i = 0; i < MACHINE_MAX_CPUS; i++)
		if (s->lapic[i])
			s->lapic[i]->dev.cls->destroy(&s->lapic[i]->dev);
	lapic_bus_destroy(s->bus);
}

static int lapics_create(struct lapics *s, struct machine *m, struct error *err)
{
	struct lapic_bus_config cfg = {
		.up = { no_level, no_event, no_event, no_vector, lapics_tsc, NULL, no_eoi, no_ack, m },
		.tsc_khz = m->tsc_khz,
		.phys_bits = m->model.phys_bits,
		.has_x2apic = cpu_has(&m->model, CPUF_X2APIC),
		.has_tsc_deadline = cpu_has(&m->model, CPUF_TSC_DEADLINE),
	};

	*s = (struct lapics){ 0 };
	if (!m->ops->owns_lapic)
		return 0;
	int r = lapic_bus_create(&s->bus, &cfg, err);

	for (unsigned i = 0; r == 0 && i < m->ncpus; i++)
		r = lapic_create(&s->lapic[i], &m->env, s->bus, i, err);
	if (r < 0)
		lapics_destroy(s);
	return r;
}

/* The device of vCPU @i's LAPIC, wherever it is. */
static struct lapic *lapic_of(struct machine *m, struct lapics *s, unsigned i)
{
	return m->ops->owns_lapic ? s->lapic[i] : m->cpus[i].lapic;
}

/* ---- saving ---- */

struct save_call {
	struct snapshot_writer *w;
	struct lapics *lapics;
	struct x86_state *s;
	int result;
};

/* On the vCPU's thread. */
static void save_cpu(struct vcpu *v, void *arg)
{
	struct save_call *c = arg;
	struct machine *m = v->m;
	uint8_t regs[1024];

	m->ops->get_state(v->ev, c->s);
	/* The TSC stands still since the pause, whatever it reads as. */
	c->s->tsc = m->host_tsc_at_pause + (uint64_t)m->ops->get_tsc_offset(v->ev);
	if (!m->ops->owns_lapic) {
		c->s->apic_base = v->lapic->base;
		c->s->cr8 = v->lapic->tpr >> 4;
		return;
	}
	c->result = m->ops->get_lapic(v->ev, regs);
	if (c->result < 0)
		return;
	lapic_set_base(c->lapics->lapic[v->index], c->s->apic_base);
	lapic_set_regs(c->lapics->lapic[v->index], regs);
}

static int save_cpus(struct machine *m, struct save_call *c, struct error *err)
{
	char name[16];

	for (unsigned i = 0; i < m->ncpus; i++) {
		struct vcpu *v = &m->cpus[i];
		struct snapshot_vcpu sv = {
			.sipi_vector = v->sipi_vector,
			.init_pending = v->init_pending,
			.sipi_pending = v->sipi_pending,
		};

		vcpu_call(v, save_cpu, c);
		if (c->result < 0)
			return error_set(err, c->result, "the engine does not give CPU %u's LAPIC: %s",
					 i, strerror(-c->result));
		sv.is_waiting_sipi = c->s->mp_state == MP_WAIT_SIPI;
		snprintf(name, sizeof(name), "cpu%u", i);
		snapshot_put(c->w, name, &x86_state_desc, c->s);
		snprintf(name, sizeof(name), "vcpu%u", i);
		snapshot_put(c->w, name, &snapshot_vcpu_desc, &sv);
	}
	return 0;
}

static void save_device(struct snapshot_writer *w, const struct device *d)
{
	char name[sizeof(d->id) + 4];

	snprintf(name, sizeof(name), "dev:%s", d->id);
	snapshot_put(w, name, d->cls->state, d);
}

static void describe(const struct machine *m, struct snapshot_machine *s)
{
	*s = (struct snapshot_machine){
		.mem_bytes = m->cfg.mem_bytes,
		.rom_bytes = m->ram.size_bytes - m->cfg.mem_bytes,
		.xcr0_mask = m->model.xcr0_mask,
		.vcpus = m->ncpus,
		.tsc_khz = m->tsc_khz,
		.signature = m->model.signature,
		.boot_format = (uint8_t)m->format,
		.phys_bits = m->model.phys_bits,
		.is_amd = m->model.is_amd,
		.has_kvm_pv = m->model.has_kvm_pv,
		.has_fpu_error_pointers = m->model.has_fpu_error_pointers,
	};
	snprintf(s->viv_version, sizeof(s->viv_version), "%s", VIV_VERSION);
	snprintf(s->engine, sizeof(s->engine), "%s", m->ops->name);
	snprintf(s->cpu_name, sizeof(s->cpu_name), "%s", m->cpu_name);
	snprintf(s->vendor, sizeof(s->vendor), "%s", m->model.vendor);
	memcpy(s->brand, m->model.brand, sizeof(s->brand));
	snapshot_host_boot(s->host_boot);
}

static void save_clock(const struct machine *m, const struct lapics *lapics, struct snapshot_clock *c)
{
	const struct lapic_bus *bus = m->ops->owns_lapic ? lapics->bus : m->lapic_bus;

	*c = (struct snapshot_clock){
		.clock_ns = vclock_now_ns(&m->clock),
		.kvmclock_tsc = m->kvmclock_tsc,
		.kvmclock_ns = m->kvmclock_ns,
		.resets = m->resets,
		.last_lowest = bus->last_lowest,
		.has_kvmclock = m->has_kvmclock,
		.is_reset_queued = m->is_reset_queued,
	};
}

/* Which files of shared folders the guest has in hand. */

static void share_section(unsigned i, char name[16])
{
	snprintf(name, 16, "share%u", i);
}

static int save_shares(struct machine *m, struct snapshot_writer *w, struct error *err)
{
	char name[16];
	int r = 0;

	for (unsigned i = 0; r == 0 && i < m->cfg.nshares; i++) {
		share_section(i, name);
		snapshot_begin_section(w, name);
		r = m->shares[i]->ops->save(m->shares[i], w->out, err);
		snapshot_end_section(w);
	}
	return r;
}

int machine_save_state(struct machine *m, struct bytes *out, struct error *err)
{
	struct snapshot_machine desc;
	struct snapshot_clock clock;
	struct snapshot_writer w;
	struct lapics lapics;
	size_t before = out->len;

	if (m->state != MACHINE_PAUSED && m->state != MACHINE_CREATED)
		return error_set(err, -EBUSY, "the machine is not paused");
	struct save_call c = { .w = &w, .lapics = &lapics, .s = aligned_alloc(64, sizeof(*c.s)) };

	if (!c.s)
		return error_set(err, -ENOMEM, "no memory for the machine's state");
	int r = lapics_create(&lapics, m, err);

	if (r < 0) {
		free(c.s);
		return r;
	}
	if (m->state == MACHINE_CREATED && !m->is_loaded)
		m->host_tsc_at_pause = __rdtsc();
	describe(m, &desc);
	snapshot_begin(&w, out);
	snapshot_put(&w, "machine", &snapshot_machine_desc, &desc);
	snapshot_put_features(&w, &m->model);
	save_clock(m, &lapics, &clock);
	snapshot_put(&w, "clock", &snapshot_clock_desc, &clock);
	r = save_cpus(m, &c, err);
	for (unsigned i = 0; r == 0 && m->ops->owns_lapic && i < m->ncpus; i++)
		save_device(&w, &lapics.lapic[i]->dev);
	for (const struct device *d = m->devices; r == 0 && d; d = d->next)
		save_device(&w, d);
	if (r == 0)
		r = save_shares(m, &w, err);
	if (r == 0)
		r = snapshot_end(&w, err);
	if (r < 0)
		out->len = before;
	lapics_destroy(&lapics);
	free(c.s);
	return r;
}

/* ---- loading: shared folders ---- */

static int try_shares(const struct machine *m, const struct snapshot_state *s, struct error *err)
{
	char name[16];
	int r = 0;

	for (unsigned i = 0; r == 0 && i < m->cfg.nshares; i++) {
		share_section(i, name);
		const struct snapshot_section *sec = snapshot_state_find(s, name);

		r = sec ? share_state_check(sec->data, sec->len, err)
			: error_set(err, -EINVAL, "the saved machine state has no section '%s'", name);
	}
	return r;
}

/* Without its server a folder gives errors, as it would have without a snapshot; the machine is whole. */
static void load_shares(struct machine *m, const struct snapshot_state *s)
{
	char name[16];
	struct error err;

	for (unsigned i = 0; i < m->cfg.nshares; i++) {
		share_section(i, name);
		const struct snapshot_section *sec = snapshot_state_find(s, name);

		if (m->shares[i]->ops->load(m->shares[i], sec->data, sec->len, &err) < 0)
			log_warn("vm", "%s", err.text);
	}
}

/* ---- loading: what can be wrong ---- */

static int same(const char *what, uint64_t saved, uint64_t ours, struct error *err)
{
	if (saved == ours)
		return 0;
	return error_set(err, -EINVAL, "the snapshot is of a machine with %llu %s, this one has %llu",
			 (unsigned long long)saved, what, (unsigned long long)ours);
}

static int compare(const struct machine *m, const struct snapshot_state *s, struct error *err)
{
	const struct snapshot_machine *h = &s->machine;
	int r = same("CPUs", h->vcpus, m->ncpus, err);

	if (r == 0)
		r = same("bytes of memory", h->mem_bytes, m->cfg.mem_bytes, err);
	if (r == 0)
		r = same("bytes of ROM", h->rom_bytes, m->ram.size_bytes - m->cfg.mem_bytes, err);
	for (unsigned i = 1; r == 0 && i < CPUF_COUNT; i++)
		if (s->has[i] != m->model.has[i])
			r = error_set(err, -EINVAL, "the snapshot is of a machine with another CPU (%s), this one has %s",
				      h->cpu_name, m->cpu_name);
	if (r == 0 && h->boot_format != m->format &&
	    (h->boot_format == BOOT_MULTIBOOT || m->format == BOOT_MULTIBOOT))
		r = error_set(err, -EINVAL, "the snapshot is of a machine with another kind of kernel");
	return r;
}

/* Into a copy of the device: its check sees the real one's host side. */
static int try_device(const struct snapshot_state *s, const struct device *d, struct error *err)
{
	char name[sizeof(d->id) + 4];
	void *copy = NULL;

	snprintf(name, sizeof(name), "dev:%s", d->id);
	if (!snapshot_state_find(s, name) && d->cls->may_be_new)
		return 0;
	if (!snapshot_state_find(s, name))
		return error_set(err, -EINVAL,
				 "the snapshot is of a machine without %s, which this one has", d->id);
	if (posix_memalign(&copy, 64, d->cls->state->size))
		return error_set(err, -ENOMEM, "no memory to load the machine's state");
	memcpy(copy, d, d->cls->state->size);
	int r = snapshot_get(s, name, d->cls->state, copy, err);

	free(copy);
	return r;
}

static bool has_device(const struct machine *m, const struct lapics *lapics, const char *id)
{
	for (const struct device *d = m->devices; d; d = d->next)
		if (!strcmp(d->id, id))
			return true;
	for (unsigned i = 0; i < m->ncpus; i++)
		if (lapics->lapic[i] && !strcmp(lapics->lapic[i]->dev.id, id))
			return true;
	return false;
}

/* Everything of the state that is no device, loaded and checked. */
struct loaded {
	struct snapshot_clock clock;
	struct snapshot_vcpu *vcpus;
	struct x86_state *cpus, *before; /* of all vCPUs; @before: as they are now */
};

static void loaded_free(struct loaded *l)
{
	free(l->vcpus);
	free(l->cpus);
	free(l->before);
}

static int load_cpus(struct machine *m, const struct snapshot_state *s, struct loaded *l,
		     struct error *err)
{
	char name[16];
	int r = 0;

	l->vcpus = calloc(m->ncpus, sizeof(*l->vcpus));
	l->cpus = aligned_alloc(64, m->ncpus * sizeof(*l->cpus));
	l->before = aligned_alloc(64, m->ncpus * sizeof(*l->before));
	if (!l->vcpus || !l->cpus || !l->before)
		return error_set(err, -ENOMEM, "no memory to load the machine's state");
	memset(l->cpus, 0, m->ncpus * sizeof(*l->cpus));
	for (unsigned i = 0; r == 0 && i < m->ncpus; i++) {
		snprintf(name, sizeof(name), "cpu%u", i);
		r = snapshot_get(s, name, &x86_state_desc, &l->cpus[i], err);
		snprintf(name, sizeof(name), "vcpu%u", i);
		if (r == 0)
			r = snapshot_get(s, name, &snapshot_vcpu_desc, &l->vcpus[i], err);
		if (r == 0 && l->cpus[i].xcr0 & ~m->model.xcr0_mask)
			r = error_set(
				err, -EINVAL,
				"CPU %u of the snapshot uses state that this machine's CPU lacks", i);
	}
	return r;
}

/* What the second pass needs. */
static int load_rest(struct machine *m, const struct snapshot_state *s, struct loaded *l,
		     struct error *err)
{
	int r = snapshot_get(s, "clock", &snapshot_clock_desc, &l->clock, err);

	return r == 0 ? load_cpus(m, s, l, err) : r;
}

static int try_all(struct machine *m, const struct snapshot_state *s, struct lapics *lapics,
		   struct loaded *l, struct error *err)
{
	int r = compare(m, s, err);

	if (r == 0)
		r = load_rest(m, s, l, err);
	for (unsigned i = 0; r == 0 && i < m->ncpus; i++)
		r = try_device(s, &lapic_of(m, lapics, i)->dev, err);
	for (const struct device *d = m->devices; r == 0 && d; d = d->next)
		r = try_device(s, d, err);
	if (r == 0)
		r = try_shares(m, s, err);
	for (unsigned i = 0; r == 0 && i < s->nsections; i++) {
		const char *name = s->sections[i].name;

		if (!strncmp(name, "dev:", 4) && !has_device(m, lapics, name + 4))
			r = error_set(err, -EINVAL,
				      "the snapshot is of a machine with %s, which this one lacks",
				      name + 4);
	}
	return r;
}

/* ---- loading: doing it ---- */

struct load_call {
	struct lapics *lapics;
	struct loaded *l;
	int64_t tsc_offset;
	struct error *err;
	int result;
};

/* An INIT that was on its way is carried out here: engines that own the LAPIC know of none. */
static void settle_init(const struct snapshot_vcpu *sv, unsigned index, struct x86_state *s)
{
	if (sv->init_pending)
		x86_state_init(s, index == 0);
	if (sv->sipi_pending && s->mp_state == MP_WAIT_SIPI)
		x86_state_sipi(s, sv->sipi_vector);
}

/* On the vCPU's thread. */
static void load_cpu(struct vcpu *v, void *arg)
{
	struct load_call *c = arg;
	struct machine *m = v->m;
	const struct snapshot_vcpu *sv = &c->l->vcpus[v->index];
	struct x86_state *s = &c->l->cpus[v->index];
	uint8_t regs[1024];

	m->ops->get_state(v->ev, &c->l->before[v->index]);
	if (m->ops->owns_lapic)
		settle_init(sv, v->index, s);
	c->result = vcpu_load(v, s, c->tsc_offset, c->err);
	if (c->result < 0)
		return;
	if (m->ops->owns_lapic) {
		lapic_get_regs(c->lapics->lapic[v->index], regs);
		c->result = m->ops->set_lapic(v->ev, regs);
		if (c->result < 0)
			error_set(c->err, c->result, "the engine refuses CPU %u's LAPIC: %s",
				  v->index, strerror(-c->result));
		return;
	}
	v->is_waiting_sipi = sv->is_waiting_sipi;
	v->init_pending = sv->init_pending;
	v->sipi_pending = sv->sipi_pending;
	v->sipi_vector = sv->sipi_vector;
}

static void put_cpu_back(struct vcpu *v, void *arg)
{
	struct load_call *c = arg;

	if (v->m->ops->set_state(v->ev, &c->l->before[v->index], NULL) < 0)
		machine_fail(v->m, c->err);
}

static int load_all_cpus(struct machine *m, struct load_call *c)
{
	for (unsigned i = 0; i < m->ncpus; i++) {
		vcpu_call(&m->cpus[i], load_cpu, c);
		if (c->result == 0)
			continue;
		for (unsigned k = 0; k <= i; k++)
			vcpu_call(&m->cpus[k], put_cpu_back, c);
		return c->result;
	}
	return 0;
}

static void load_clock(struct machine *m, const struct snapshot_state *s, const struct loaded *l)
{
	const struct snapshot_clock *c = &l->clock;
	bool is_same_rate = m->tsc_khz == s->machine.tsc_khz, has_guest_clock = false;

	vclock_set(&m->clock, c->clock_ns);
	m->resets = c->resets;
	if (m->lapic_bus)
		m->lapic_bus->last_lowest = c->last_lowest;
	m->has_kvmclock = c->has_kvmclock;
	m->kvmclock_tsc = c->kvmclock_tsc;
	m->kvmclock_ns = c->kvmclock_ns;
	for (unsigned i = 0; i < m->ncpus; i++)
		has_guest_clock |= l->cpus[i].kvm_system_time & 1;
	if (!is_same_rate)
		log_warn("vm",
			 "the time stamp counter runs at %u kHz here, at %u kHz where the snapshot "
			 "was "
			 "taken: a guest that reads time from it is off by so much",
			 m->tsc_khz, s->machine.tsc_khz);
	if (m->ops->set_clock || !has_guest_clock || (c->has_kvmclock && is_same_rate))
		return;
	/* From an engine that has this clock inside, or another scale: from here on by a new pair. */
	m->has_kvmclock = true;
	m->kvmclock_tsc = l->cpus[0].tsc;
	m->kvmclock_ns = (uint64_t)c->clock_ns;
	for (unsigned i = 0; i < m->ncpus; i++)
		kvmclock_publish(&m->cpus[i], l->cpus[i].kvm_system_time);
}

static void load_device(const struct snapshot_state *s, struct device *d, int *result, struct error *err)
{
	char name[sizeof(d->id) + 4];

	snprintf(name, sizeof(name), "dev:%s", d->id);
	if (!snapshot_state_find(s, name))
		d->cls->reset(d); /* it may be new */
	else if (*result == 0)
		*result = snapshot_get(s, name, d->cls->state, d, err);
}

static int load_everything(struct machine *m, const struct snapshot_state *s, struct lapics *lapics,
			   struct loaded *l, struct error *err)
{
	uint64_t now = __rdtsc();
	struct load_call c = {
		.lapics = lapics, .l = l, .err = err, .tsc_offset = (int64_t)(l->cpus[0].tsc - now)
	};
	int r = 0;

	for (unsigned i = 0; m->ops->owns_lapic && i < m->ncpus; i++)
		load_device(s, &lapics->lapic[i]->dev, &r, err);
	if (r == 0)
		r = load_all_cpus(m, &c);
	if (r < 0)
		return r;
	m->host_tsc_at_pause = now;
	for (struct device *d = m->devices; d; d = d->next)
		load_device(s, d, &r, err);
	if (r < 0) { /* it worked a moment ago: no memory any more */
		machine_fail(m, err);
		return r;
	}
	load_clock(m, s, l);
	load_shares(m, s);
	m->is_reset_queued = false;
	loop_clock_changed(m->loop);
	for (struct device *d = m->devices; d; d = d->next)
		if (d->cls->after_load)
			d->cls->after_load(d);
	if (l->clock.is_reset_queued && machine_queue_reset(m) < 0)
		machine_fail(m, &(struct error){ "no memory to reset the machine" });
	return 0;
}

enum passes { TRY, TRY_AND_LOAD, LOAD };

static int load(struct machine *m, const struct snapshot_state *s, enum passes passes, struct error *err)
{
	struct loaded l = { 0 };
	struct lapics lapics;

	if (m->state != MACHINE_PAUSED && m->state != MACHINE_CREATED)
		return error_set(err, -EBUSY, "the machine is not paused");
	int r = lapics_create(&lapics, m, err);

	if (r < 0)
		return r;
	r = passes == LOAD ? load_rest(m, s, &l, err) : try_all(m, s, &lapics, &l, err);
	if (r == 0 && passes != TRY)
		r = load_everything(m, s, &lapics, &l, err);
	loaded_free(&l);
	lapics_destroy(&lapics);
	return r;
}

int machine_check_state(struct machine *m, const struct snapshot_state *s, struct error *err)
{
	return load(m, s, TRY, err);
}

int machine_load_state(struct machine *m, const struct snapshot_state *s, struct error *err)
{
	return load(m, s, TRY_AND_LOAD, err);
}

int machine_reload_state(struct machine *m, const struct snapshot_state *s, struct error *err)
{
	return load(m, s, LOAD, err);
}
