/* SPDX-License-Identifier: Apache-2.0 */
/* The container of a machine's state: writing, hostile reading, showing. */
#include "vm/snapshot_state.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <xxhash.h>

#include "base/host.h"
#include "dev/registry.h"
#include "engine/x86_state.h"
#include "share/server.h"
#include "vm/snapshot_int.h"

static const char magic[8] = "VIVSTATE";
#define FORMAT_VERSION 1
#define HEADER_BYTES   16
#define CHECKSUM_BYTES 8

/* ---- tables ---- */

static bool ends(const char *text, size_t len)
{
	return memchr(text, 0, len) != NULL;
}

static int check_machine(const void *obj, struct error *err)
{
	const struct snapshot_machine *s = obj;

	if (!ends(s->viv_version, sizeof(s->viv_version)) || !ends(s->engine, sizeof(s->engine)) ||
	    !ends(s->cpu_name, sizeof(s->cpu_name)) || !ends(s->vendor, sizeof(s->vendor)) ||
	    !ends(s->host_boot, sizeof(s->host_boot)))
		return error_set(err, -EINVAL, "a name in it has no end");
	if (s->vcpus < 1 || s->vcpus > MACHINE_MAX_CPUS || s->mem_bytes < MACHINE_MIN_MEM ||
	    s->mem_bytes > MACHINE_MAX_MEM || s->mem_bytes % GUEST_PAGE_SIZE ||
	    s->rom_bytes % GUEST_PAGE_SIZE || s->rom_bytes > FIRMWARE_MAX_BYTES)
		return error_set(err, -EINVAL,
				 "no machine has %u CPUs, %llu bytes of memory and %llu of ROM", s->vcpus,
				 (unsigned long long)s->mem_bytes, (unsigned long long)s->rom_bytes);
	if (s->phys_bits < 36 || s->phys_bits > 52 || s->boot_format > BOOT_PVH || !s->tsc_khz)
		return error_set(err, -EINVAL, "the machine that it describes is impossible");
	return 0;
}

// clang-format off
#define S struct snapshot_machine
static const struct field machine_fields[] = {
	F_BYTES(S, viv_version),
	F_BYTES(S, engine),
	F_BYTES(S, cpu_name),
	F_BYTES(S, vendor),
	F_BYTES(S, brand),
	F_BYTES(S, host_boot),
	F_U64(S, mem_bytes),
	F_U64(S, rom_bytes),
	F_U64(S, xcr0_mask),
	F_U32(S, vcpus),
	F_U32(S, tsc_khz),
	F_U32(S, signature),
	F_U8(S, boot_format),
	F_U8(S, phys_bits),
	F_BOOL(S, is_amd),
	F_BOOL(S, has_kvm_pv),
	F_BOOL(S, has_fpu_error_pointers),
	F_HOST(S, pad_),
	F_END,
};
#undef S
const struct state_desc snapshot_machine_desc = {
	.name = "machine",
	.version = 1,
	.size = sizeof(struct snapshot_machine),
	.fields = machine_fields,
	.check = check_machine,
};

static int check_clock(const void *obj, struct error *err)
{
	const struct snapshot_clock *c = obj;

	if (c->clock_ns < 0 || c->clock_ns > INT64_MAX / 4 || c->last_lowest >= LAPIC_MAX_CPUS)
		return error_set(err, -EINVAL, "machine time is impossible");
	return 0;
}

#define S struct snapshot_clock
static const struct field clock_fields[] = {
	F_I64(S, clock_ns),
	F_U64(S, kvmclock_tsc),
	F_U64(S, kvmclock_ns),
	F_U64(S, resets),
	F_U32(S, last_lowest),
	F_BOOL(S, has_kvmclock),
	F_BOOL(S, is_reset_queued),
	F_HOST(S, pad_),
	F_END,
};
#undef S
const struct state_desc snapshot_clock_desc = {
	.name = "clock",
	.version = 1,
	.size = sizeof(struct snapshot_clock),
	.fields = clock_fields,
	.check = check_clock,
};

#define S struct snapshot_vcpu
static const struct field vcpu_fields[] = {
	F_U8(S, sipi_vector),
	F_BOOL(S, is_waiting_sipi),
	F_BOOL(S, init_pending),
	F_BOOL(S, sipi_pending),
	F_END,
};
#undef S
// clang-format on
const struct state_desc snapshot_vcpu_desc = {
	.name = "vcpu",
	.version = 1,
	.size = sizeof(struct snapshot_vcpu),
	.fields = vcpu_fields,
};

// clang-format off
static const char *const feature_names[CPUF_COUNT] = {
#define X(name, leaf, subleaf, reg, bit) [CPUF_##name] = #name,
#include "engine/cpu_features.def"
#undef X
};
// clang-format on

/* ---- writing ---- */

void snapshot_begin(struct snapshot_writer *w, struct bytes *out)
{
	*w = (struct snapshot_writer){ .out = out, .start = out->len };
	bytes_put(out, magic, sizeof(magic));
	bytes_put_u32(out, FORMAT_VERSION);
	bytes_put_u32(out, 0); /* the number of sections, when it is known */
}

void snapshot_begin_section(struct snapshot_writer *w, const char *name)
{
	size_t len = strlen(name);

	assert(len && len <= SNAPSHOT_NAME_MAX);
	bytes_put_u8(w->out, (uint8_t)len);
	bytes_put(w->out, name, len);
	bytes_put_u32(w->out, 0);
	w->section = w->out->len;
	w->nsections++;
}

static void poke_u32(struct bytes *b, size_t at, size_t value)
{
	uint32_t v = (uint32_t)value;

	if (!b->is_failed)
		memcpy(b->data + at, &v, sizeof(v));
}

void snapshot_end_section(struct snapshot_writer *w)
{
	poke_u32(w->out, w->section - 4, w->out->len - w->section);
}

void snapshot_put(struct snapshot_writer *w, const char *name, const struct state_desc *desc,
		  const void *obj)
{
	snapshot_begin_section(w, name);
	state_save(desc, obj, w->out);
	snapshot_end_section(w);
}

void snapshot_put_features(struct snapshot_writer *w, const struct cpu_model *model)
{
	snapshot_begin_section(w, "features");
	for (unsigned i = 1; i < CPUF_COUNT; i++)
		if (model->has[i])
			bytes_printf(w->out, "%s\n", feature_names[i]);
	snapshot_end_section(w);
}

int snapshot_end(struct snapshot_writer *w, struct error *err)
{
	poke_u32(w->out, w->start + 12, w->nsections);
	if (!w->out->is_failed)
		bytes_put_u64(w->out, XXH64(w->out->data + w->start, w->out->len - w->start, 0));
	return w->out->is_failed ? error_set(err, -ENOMEM, "no memory for the machine's state") : 0;
}

/* ---- reading ---- */

static int damaged(struct error *err, const char *how)
{
	return error_set(err, -EINVAL, "the saved machine state is damaged: %s", how);
}

const struct snapshot_section *snapshot_state_find(const struct snapshot_state *s, const char *name)
{
	for (unsigned i = 0; i < s->nsections; i++)
		if (!strcmp(s->sections[i].name, name))
			return &s->sections[i];
	return NULL;
}

static int parse_section(struct snapshot_state *s, struct byte_reader *in, struct error *err)
{
	struct snapshot_section sec = { 0 };
	uint8_t len = bytes_get_u8(in);

	if (!len || len > SNAPSHOT_NAME_MAX || !bytes_get(in, sec.name, len))
		return damaged(err, "a section has no name");
	for (unsigned i = 0; i < len; i++)
		if (sec.name[i] <= ' ' || sec.name[i] > '~')
			return damaged(err, "a section's name is not text");
	sec.len = bytes_get_u32(in);
	if (in->is_failed || sec.len > in->len - in->pos)
		return damaged(err, "a section is cut off");
	if (snapshot_state_find(s, sec.name))
		return damaged(err, "a section comes twice");
	sec.data = in->data + in->pos;
	in->pos += sec.len;
	s->sections[s->nsections++] = sec;
	return 0;
}

static int parse_feature(struct snapshot_state *s, const char *name, size_t len, struct error *err)
{
	for (unsigned i = 1; i < CPUF_COUNT; i++)
		if (strlen(feature_names[i]) == len && !memcmp(feature_names[i], name, len)) {
			s->has[i] = true;
			return 0;
		}
	return error_set(
		err, -ENOTSUP,
		"the saved machine's CPU has the feature %.*s, which this version does not know",
		(int)MIN(len, (size_t)32), name);
}

static int parse_features(struct snapshot_state *s, struct error *err)
{
	const struct snapshot_section *sec = snapshot_state_find(s, "features");
	int r = sec ? 0 : damaged(err, "it names no CPU features");
	const char *p = sec ? (const char *)sec->data : NULL, *end = sec ? p + sec->len : NULL;

	while (r == 0 && p < end) {
		const char *nl = memchr(p, '\n', (size_t)(end - p));

		if (!nl)
			return damaged(err, "the list of CPU features is cut off");
		for (const char *c = p; c < nl; c++)
			if (*c <= ' ' || *c > '~')
				return damaged(err, "a CPU feature's name is not text");
		r = parse_feature(s, p, (size_t)(nl - p), err);
		p = nl + 1;
	}
	return r;
}

int snapshot_get(const struct snapshot_state *s, const char *name, const struct state_desc *desc,
		 void *obj, struct error *err)
{
	const struct snapshot_section *sec = snapshot_state_find(s, name);

	if (!sec)
		return error_set(err, -EINVAL, "the saved machine state has no section '%s'", name);
	struct byte_reader in = { .data = sec->data, .len = sec->len };
	int r = state_load(desc, obj, &in, err);

	if (r == 0 && in.pos != in.len)
		r = error_set(err, -EINVAL, "%zu bytes too many", in.len - in.pos);
	if (r < 0)
		error_prefix(err, "section '%s'", name);
	return r;
}

static int parse_all(struct snapshot_state *s, size_t len, struct error *err)
{
	struct byte_reader in = { .data = s->data, .len = len - CHECKSUM_BYTES, .pos = HEADER_BYTES };
	uint32_t version, n;
	uint64_t sum;

	memcpy(&version, s->data + 8, 4);
	memcpy(&n, s->data + 12, 4);
	memcpy(&sum, s->data + len - CHECKSUM_BYTES, 8);
	if (version != FORMAT_VERSION)
		return error_set(err, -ENOTSUP, "the saved machine state has format version %u, this program knows version %u",
				 version, FORMAT_VERSION);
	if (sum != XXH64(s->data, len - CHECKSUM_BYTES, 0))
		return damaged(err, "its checksum does not match");
	if (n > SNAPSHOT_SECTIONS_MAX)
		return damaged(err, "it has too many sections");
	s->sections = calloc(n ? n : 1, sizeof(*s->sections));
	if (!s->sections)
		return error_set(err, -ENOMEM, "no memory for a machine's state");
	for (uint32_t i = 0; i < n; i++) {
		int r = parse_section(s, &in, err);

		if (r < 0)
			return r;
	}
	if (in.pos != in.len)
		return damaged(err, "bytes follow the last section");
	int r = snapshot_get(s, "machine", &snapshot_machine_desc, &s->machine, err);

	return r < 0 ? r : parse_features(s, err);
}

int snapshot_state_parse(struct snapshot_state *out, const uint8_t *data, size_t len, struct error *err)
{
	struct snapshot_state s = { 0 };

	if (len < sizeof(magic) || memcmp(data, magic, sizeof(magic)) != 0)
		return error_set(err, -EINVAL, "this is no saved machine state");
	if (len < HEADER_BYTES + CHECKSUM_BYTES)
		return damaged(err, "it is cut off");
	if (len > SNAPSHOT_STATE_MAX)
		return damaged(err, "it is too long");
	s.data = malloc(len);
	if (!s.data)
		return error_set(err, -ENOMEM, "no memory for a machine's state");
	memcpy(s.data, data, len);
	int r = parse_all(&s, len, err);

	if (r < 0) {
		snapshot_state_free(&s);
		return r;
	}
	*out = s;
	return 0;
}

void snapshot_state_free(struct snapshot_state *s)
{
	free(s->data);
	free(s->sections);
	*s = (struct snapshot_state){ 0 };
}

/* ---- the CPU ---- */

int snapshot_cpu_model(const struct snapshot_state *s, struct cpu_model *model, struct error *err)
{
	const struct snapshot_machine *h = &s->machine;
	char missing[200] = "";
	size_t n = 0;

	/* First: what one vendor's CPUs have and the other's lack would be a long list that says the same. */
	if (strcmp(h->vendor, model->vendor) != 0)
		return error_set(err, -ENOTSUP, "the saved machine's CPU is of %s, this host's of %s",
				 h->vendor, model->vendor);
	for (unsigned i = 1; i < CPUF_COUNT; i++)
		if (s->has[i] && !model->has[i] && n < sizeof(missing))
			n += (size_t)snprintf(missing + n, sizeof(missing) - n, " %s", feature_names[i]);
	if (n)
		return error_set(err, -ENOTSUP,
				 "this host's CPU lacks what the saved machine's has:%s", missing);
	if (h->xcr0_mask & ~model->xcr0_mask || h->phys_bits > model->phys_bits ||
	    (h->has_kvm_pv && !model->has_kvm_pv) ||
	    h->has_fpu_error_pointers != model->has_fpu_error_pointers)
		return error_set(err, -ENOTSUP,
				 "this host's CPU cannot show what the saved machine's CPU showed");
	memcpy(model->has, s->has, sizeof(model->has));
	memcpy(model->brand, h->brand, sizeof(model->brand));
	model->signature = h->signature;
	model->xcr0_mask = h->xcr0_mask;
	model->phys_bits = h->phys_bits;
	model->is_amd = h->is_amd;
	model->has_kvm_pv = h->has_kvm_pv;
	return 0;
}

/* Clocks of one kind differ less, and NTP corrects this much. */
#define SAME_CLOCK_PER 2000

void snapshot_host_boot(char out[40])
{
	int fd = host.open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC, 0);

	memset(out, 0, 40);
	/* Unknown is fine: then frequencies are compared. */
	if (fd >= 0 && host.pread(fd, out, 36, 0) != 36)
		memset(out, 0, 40);
	if (fd >= 0)
		close(fd);
}

bool snapshot_is_of_this_boot(const struct snapshot_state *s)
{
	char here[40];

	snapshot_host_boot(here);
	return here[0] && !strcmp(here, s->machine.host_boot);
}

uint32_t snapshot_tsc_khz(const struct snapshot_state *s, uint32_t host_khz)
{
	uint32_t saved = s ? s->machine.tsc_khz : host_khz;
	uint32_t apart = host_khz > saved ? host_khz - saved : saved - host_khz;

	if (s && snapshot_is_of_this_boot(s))
		return saved;
	return apart > saved / SAME_CLOCK_PER ? host_khz : saved;
}

/* ---- showing ---- */

static const struct state_desc *section_desc(const struct snapshot_section *sec)
{
	char class[SNAPSHOT_NAME_MAX + 1] = "";
	unsigned n;

	if (!strcmp(sec->name, "machine"))
		return &snapshot_machine_desc;
	if (!strcmp(sec->name, "clock"))
		return &snapshot_clock_desc;
	if (sscanf(sec->name, "cpu%u", &n) == 1)
		return &x86_state_desc;
	if (sscanf(sec->name, "vcpu%u", &n) == 1)
		return &snapshot_vcpu_desc;
	/* A device's object begins with its class's name. */
	if (strncmp(sec->name, "dev:", 4) != 0 || !sec->len || !sec->data[0] ||
	    sec->data[0] > SNAPSHOT_NAME_MAX || sec->data[0] >= sec->len)
		return NULL;
	memcpy(class, sec->data + 1, sec->data[0]);
	const struct device_class *c = device_class_find(class);

	return c ? c->state : NULL;
}

int snapshot_state_show(const struct snapshot_state *s, struct bytes *out, struct error *err)
{
	for (unsigned i = 0; i < s->nsections; i++) {
		const struct snapshot_section *sec = &s->sections[i];
		const struct state_desc *desc = section_desc(sec);
		struct byte_reader in = { .data = sec->data, .len = sec->len };

		bytes_printf(out, "[%s]\n", sec->name);
		if (!strcmp(sec->name, "features")) {
			bytes_put(out, sec->data, sec->len);
			continue;
		}
		if (!strncmp(sec->name, "share", 5)) {
			int r = share_state_show(sec->data, sec->len, out, err);

			if (r < 0)
				return r;
			continue;
		}
		if (!desc)
			return error_set(err, -ENOTSUP, "this version knows no device '%s'", sec->name);
		int r = state_show_stream(desc, &in, out, err);

		if (r < 0) {
			error_prefix(err, "section '%s'", sec->name);
			return r;
		}
	}
	return out->is_failed ? error_set(err, -ENOMEM, "no memory to show the state") : 0;
}
