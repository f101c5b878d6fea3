/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/host.h"
#include "ctl/broker.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"
#include "net/identity.h"
#include "share/port.h"

enum kind { K_STRING, K_U64, K_BOOL };

struct row {
	const char *key;
	enum kind kind;
	size_t offset;
	uint64_t min, max;
};

// clang-format off
#define S(key, m)	    { key, K_STRING, offsetof(struct vmconfig, m), 0, 0 }
#define N(key, m, min, max) { key, K_U64,    offsetof(struct vmconfig, m), min, max }
#define B(key, m)	    { key, K_BOOL,   offsetof(struct vmconfig, m), 0, 0 }
static const struct row rows[] = {
	S("name",            name),
	S("image",           image),
	S("engine",          engine),
	S("cpu",             cpu),
	N("cpus",            cpus, 1, MACHINE_MAX_CPUS),
	N("mem",             mem_bytes, MACHINE_MIN_MEM, MACHINE_MAX_MEM),
	S("kernel",          kernel),
	S("initrd",          initrd),
	S("append",          append),
	S("firmware",        firmware),
	S("net",             net),
	S("mac",             mac),
	S("log_level",       log_level),
	S("lab",             lab),
	S("login",           login),
	N("cpu_limit",       limits.cpu_percent, 0, UINT32_MAX),
	N("mem_limit",       limits.mem_bytes, 0, INT64_MAX),
	N("read_bps",        limits.read_bps, 0, INT64_MAX),
	N("write_bps",       limits.write_bps, 0, INT64_MAX),
	N("read_iops",       limits.read_iops, 0, INT64_MAX),
	N("write_iops",      limits.write_iops, 0, INT64_MAX),
	B("iommu",           has_iommu),
	B("edu",             has_edu),
	B("no_reboot",       no_reboot),
	B("strict",          is_strict),
	B("interp_only",     use_interp_only),
	B("counting",        is_counting),
	N("check",           check_every, 0, UINT32_MAX),
	N("without",         without, 0, (1u << ENGINE_NTECHNIQUES) - 1),
	B("throwaway",       is_throwaway),
	B("agent",           has_agent),
	B("virtio_console",  uses_virtio_console),
};
#undef S
#undef N
#undef B
// clang-format on

static void *member(const struct vmconfig *c, const struct row *row)
{
	return (char *)(uintptr_t)c + row->offset;
}

int vmconfig_set(char **m, const char *value, struct error *err)
{
	char *copy = value ? strdup(value) : NULL;

	if (value && !copy)
		return error_set(err, -ENOMEM, "no memory for the configuration");
	free(*m);
	*m = copy;
	return 0;
}

int vmconfig_init(struct vmconfig *c, struct error *err)
{
	*c = (struct vmconfig){ .cpus = 1, .mem_bytes = 1 * GIB };
	int r = vmconfig_set(&c->engine, "auto", err);

	if (r == 0)
		r = vmconfig_set(&c->cpu, "host", err);
	if (r == 0)
		r = vmconfig_set(&c->append, "", err);
	if (r == 0)
		r = vmconfig_set(&c->net, "nat", err);
	if (r == 0)
		r = vmconfig_set(&c->log_level, "info", err);
	return r;
}

void vmconfig_free(struct vmconfig *c)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (rows[i].kind == K_STRING)
			free(*(char **)member(c, &rows[i]));
	}
	for (unsigned i = 0; i < c->nforwards; i++)
		free(c->forwards[i]);
	for (unsigned i = 0; i < c->ndisks; i++) {
		free(c->disks[i].path);
		free(c->disks[i].format);
		vmconfig_own_disk(&c->disks[i]);
		for (char **b = c->disks[i].backing; *b; b++)
			free(*b);
	}
	for (unsigned i = 0; i < c->nshares; i++) {
		free(c->shares[i].path);
		free(c->shares[i].tag);
	}
	json_decref(c->origin);
	memset(c, 0, sizeof(*c));
}

int vmconfig_add_disk(struct vmconfig *c, const char *path, const char *format, bool is_readonly,
		      bool is_snapshot, struct error *err)
{
	struct vmconfig_disk d = { .is_readonly = is_readonly, .is_snapshot = is_snapshot };

	if (c->ndisks == MACHINE_MAX_DISKS)
		return error_set(err, -EINVAL, "a machine has at most %d disks", MACHINE_MAX_DISKS);
	d.path = strdup(path);
	d.format = strdup(format);
	if (!d.path || !d.format) {
		free(d.path);
		free(d.format);
		return error_set(err, -ENOMEM, "no memory for the configuration");
	}
	c->disks[c->ndisks++] = d;
	return 0;
}

int vmconfig_allow_backing(struct vmconfig *c, const char *path, struct error *err)
{
	struct vmconfig_disk *d = &c->disks[c->ndisks - 1];
	unsigned n = 0;

	while (d->backing[n])
		n++;
	if (n == VMCONFIG_MAX_BACKING)
		return error_set(err, -EINVAL, "a disk has at most %d files or folders to stand on",
				 VMCONFIG_MAX_BACKING);
	return vmconfig_set(&d->backing[n], path, err);
}

void vmconfig_own_disk(struct vmconfig_disk *d)
{
	free(d->pristine);
	free(d->pristine_format);
	d->pristine = d->pristine_format = NULL;
}

int vmconfig_set_origin(struct vmconfig *c, json_t *record, struct error *err)
{
	int r = vmconfig_set(&c->lab, NULL, err);

	json_decref(c->origin);
	c->origin = json_incref(record);
	return r;
}

int vmconfig_add_forward(struct vmconfig *c, const char *spec, struct error *err)
{
	if (c->nforwards == VMCONFIG_MAX_FORWARDS)
		return error_set(err, -EINVAL, "a machine has at most %d port forwards",
				 VMCONFIG_MAX_FORWARDS);
	int r = vmconfig_set(&c->forwards[c->nforwards], spec, err);

	if (r == 0)
		c->nforwards++;
	return r;
}

/* Words that are one on any command line, in a guest as well. */
static bool is_tag(const char *tag)
{
	size_t len =
		strspn(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");

	return len && !tag[len] && len <= SHARE_TAG_MAX && tag[0] != '-' && tag[0] != '.';
}

int vmconfig_add_share(struct vmconfig *c, const char *path, const char *tag, bool is_readonly,
		       struct error *err)
{
	if (c->nshares == MACHINE_MAX_SHARES)
		return error_set(err, -EINVAL, "a machine has at most %d shared folders",
				 MACHINE_MAX_SHARES);
	if (!is_tag(tag))
		return error_set(err, -EINVAL, "\"%.80s\" is no name for a shared folder: 1 to %d letters, digits, \"_\", \".\" and \"-\"",
				 tag, SHARE_TAG_MAX);
	for (unsigned i = 0; i < c->nshares; i++)
		if (strcmp(c->shares[i].tag, tag) == 0)
			return error_set(err, -EINVAL, "two shared folders are called \"%s\"", tag);
	struct vmconfig_share s = { .is_readonly = is_readonly };
	int r = vmconfig_set(&s.path, path, err);

	if (r == 0)
		r = vmconfig_set(&s.tag, tag, err);
	if (r < 0)
		free(s.path);
	else
		c->shares[c->nshares++] = s;
	return r;
}

void vmconfig_forget_shares(struct vmconfig *c)
{
	for (unsigned i = 0; i < c->nshares; i++) {
		free(c->shares[i].path);
		c->shares[i].path = NULL;
	}
}

/* ---- out ---- */

static json_t *value_to_json(const struct vmconfig *c, const struct row *row)
{
	switch (row->kind) {
	case K_STRING: {
		const char *s = *(char **)member(c, row);

		return s ? json_string(s) : json_null();
	}
	case K_U64:
		return json_integer((json_int_t) * (uint64_t *)member(c, row));
	case K_BOOL:
		return json_boolean(*(bool *)member(c, row));
	}
	return NULL;
}

static json_t *disk_to_json(const struct vmconfig_disk *d)
{
	json_t *backing = json_array();
	int r = backing ? 0 : -1;

	for (char *const *b = d->backing; r == 0 && *b; b++)
		r = json_array_append_new(backing, json_string(*b));
	json_t *obj = r == 0 ? json_pack("{s:s, s:s, s:b, s:b, s:b, s:I, s:I, s:O, s:s*, s:s*}",
					 "path", d->path, "format", d->format, "readonly",
					 d->is_readonly, "snapshot", d->is_snapshot, "direct",
					 d->use_direct, "bps", (json_int_t)d->max_bytes_per_s, "iops",
					 (json_int_t)d->max_ops_per_s, "backing", backing, "pristine",
					 d->pristine, "pristine_format", d->pristine_format)
			     : NULL;

	json_decref(backing);
	return obj;
}

static json_t *shares_to_json(const struct vmconfig *c)
{
	json_t *list = json_array();
	int r = list ? 0 : -1;

	for (unsigned i = 0; r == 0 && i < c->nshares; i++)
		r = json_array_append_new(list, json_pack("{s:s, s:s*, s:b}", "tag", c->shares[i].tag,
							  "path", c->shares[i].path, "readonly",
							  c->shares[i].is_readonly));
	if (r == 0)
		return list;
	json_decref(list);
	return NULL;
}

json_t *vmconfig_to_json(const struct vmconfig *c)
{
	json_t *obj = json_object(), *disks = json_array(), *forwards = json_array();
	int r = obj && disks && forwards ? 0 : -1;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(rows); i++)
		r = json_object_set_new(obj, rows[i].key, value_to_json(c, &rows[i]));
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++) {
		const struct vmconfig_disk *d = &c->disks[i];

		r = json_array_append_new(disks, disk_to_json(d));
	}
	for (unsigned i = 0; r == 0 && i < c->nforwards; i++)
		r = json_array_append_new(forwards, json_string(c->forwards[i]));
	if (r == 0)
		r = json_object_set(obj, "disks", disks) || json_object_set(obj, "forwards", forwards);
	if (r == 0 && c->nshares)
		r = json_object_set_new(obj, "shares", shares_to_json(c));
	if (r == 0 && c->origin)
		r = json_object_set(obj, "origin", c->origin);
	json_decref(disks);
	json_decref(forwards);
	if (r == 0)
		return obj;
	json_decref(obj);
	return NULL;
}

/* ---- in ---- */

static int bad_value(const char *key, struct error *err)
{
	return error_set(err, -EINVAL, "\"%.40s\" has no valid value", key);
}

static int value_from_json(struct vmconfig *c, const struct row *row, json_t *v, struct error *err)
{
	switch (row->kind) {
	case K_STRING:
		if (json_is_null(v))
			return vmconfig_set(member(c, row), NULL, err);
		if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
			return bad_value(row->key, err);
		return vmconfig_set(member(c, row), json_string_value(v), err);
	case K_U64:
		if (!json_is_integer(v) || json_integer_value(v) < 0 ||
		    (uint64_t)json_integer_value(v) < row->min ||
		    (uint64_t)json_integer_value(v) > row->max)
			return bad_value(row->key, err);
		*(uint64_t *)member(c, row) = (uint64_t)json_integer_value(v);
		return 0;
	case K_BOOL:
		if (!json_is_boolean(v))
			return bad_value(row->key, err);
		*(bool *)member(c, row) = json_is_true(v);
		return 0;
	}
	return bad_value(row->key, err);
}

static int disk_from_json(struct vmconfig *c, json_t *d, struct error *err)
{
	const char *path, *format, *pristine = NULL, *pristine_format = NULL;
	int is_readonly, is_snapshot, use_direct = 0;
	json_int_t bps = 0, iops = 0;
	json_t *backing = NULL, *b;
	size_t i;

	if (json_unpack(d, "{s:s, s:s, s:b, s:b, s?b, s?I, s?I, s?o, s?s, s?s !}", "path", &path,
			"format", &format, "readonly", &is_readonly, "snapshot", &is_snapshot,
			"direct", &use_direct, "bps", &bps, "iops", &iops, "backing", &backing,
			"pristine", &pristine, "pristine_format", &pristine_format) < 0 ||
	    bps < 0 || !pristine != !pristine_format || iops < 0 || (backing && !json_is_array(backing)))
		return bad_value("disks", err);
	int r = vmconfig_add_disk(c, path, format, is_readonly, is_snapshot, err);
	if (r < 0)
		return r;
	struct vmconfig_disk *disk = &c->disks[c->ndisks - 1];
	r = vmconfig_set(&disk->pristine, pristine, err);
	if (r == 0)
		r = vmconfig_set(&disk->pristine_format, pristine_format, err);
	if (r < 0)
		return r;
	disk->use_direct = use_direct;
	disk->max_bytes_per_s = (uint64_t)bps;
	disk->max_ops_per_s = (uint64_t)iops;
	json_array_foreach(backing, i, b)
	{
		if (!json_is_string(b))
			return bad_value("disks", err);
		r = vmconfig_allow_backing(c, json_string_value(b), err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int disks_from_json(struct vmconfig *c, json_t *list, struct error *err)
{
	size_t i;
	json_t *d;

	if (!json_is_array(list))
		return bad_value("disks", err);
	json_array_foreach(list, i, d)
	{
		int r = disk_from_json(c, d, err);

		if (r < 0)
			return r;
	}
	return 0;
}

static int forwards_from_json(struct vmconfig *c, json_t *list, struct error *err)
{
	size_t i;
	json_t *f;

	if (!json_is_array(list))
		return bad_value("forwards", err);
	json_array_foreach(list, i, f)
	{
		if (!json_is_string(f))
			return bad_value("forwards", err);
		int r = vmconfig_add_forward(c, json_string_value(f), err);

		if (r < 0)
			return r;
	}
	return 0;
}

static int shares_from_json(struct vmconfig *c, json_t *list, struct error *err)
{
	size_t i;
	json_t *s;

	if (!json_is_array(list))
		return bad_value("shares", err);
	json_array_foreach(list, i, s)
	{
		const char *tag, *path = NULL;
		int is_readonly;

		if (json_unpack(s, "{s:s, s?s, s:b !}", "tag", &tag, "path", &path, "readonly",
				&is_readonly) < 0 ||
		    (path && path[0] != '/'))
			return bad_value("shares", err);
		int r = vmconfig_add_share(c, path, tag, is_readonly, err);

		if (r < 0)
			return r;
	}
	return 0;
}

static int origin_from_json(struct vmconfig *c, json_t *record, struct error *err)
{
	int r = identity_check(record, err);

	if (r < 0)
		return bad_value("origin", err);
	json_decref(c->origin);
	c->origin = json_incref(record);
	return 0;
}

static const struct row *find_row(const char *key)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (strcmp(rows[i].key, key) == 0)
			return &rows[i];
	}
	return NULL;
}

int vmconfig_from_json(struct vmconfig *c, json_t *json, struct error *err)
{
	const char *key;
	json_t *v;
	int r = 0;

	if (!json_is_object(json))
		return error_set(err, -EINVAL, "it is not a JSON object");
	json_object_foreach(json, key, v)
	{
		const struct row *row = find_row(key);

		if (row)
			r = value_from_json(c, row, v, err);
		else if (strcmp(key, "disks") == 0)
			r = disks_from_json(c, v, err);
		else if (strcmp(key, "forwards") == 0)
			r = forwards_from_json(c, v, err);
		else if (strcmp(key, "shares") == 0)
			r = shares_from_json(c, v, err);
		else if (strcmp(key, "origin") == 0)
			r = origin_from_json(c, v, err);
		else
			r = error_set(err, -EINVAL, "\"%.40s\" is unknown to this version", key);
		if (r < 0)
			return r;
	}
	if (c->mem_bytes % GUEST_PAGE_SIZE)
		return bad_value("mem", err);
	return c->name ? paths_check_name("a machine", c->name, err)
		       : error_set(err, -EINVAL, "\"name\" is missing");
}

/* ---- files ---- */

/* A path below @from to the same one below @to. */
static int move_path(char **path, const char *from, const char *to, struct error *err)
{
	size_t len = strlen(from);

	if (!*path || strncmp(*path, from, len) != 0 || ((*path)[len] != '/' && (*path)[len]))
		return 0;
	char *moved = paths_format(err, "%s%s", to, *path + len);

	if (!moved)
		return -ENOMEM;
	free(*path);
	*path = moved;
	return 0;
}

/* The directory has another name than when its files were named: the machine was renamed, which is one rename(2). */
static int relocate(struct vmconfig *c, const char *name, struct error *err)
{
	_cleanup_free_ char *from = paths_vm(c->name, NULL, err);
	_cleanup_free_ char *to = from ? paths_vm(name, NULL, err) : NULL;
	int r = to ? vmconfig_set(&c->name, name, err) : -ENOMEM;

	if (r == 0)
		r = move_path(&c->kernel, from, to, err);
	if (r == 0)
		r = move_path(&c->initrd, from, to, err);
	if (r == 0)
		r = move_path(&c->firmware, from, to, err);
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++) {
		r = move_path(&c->disks[i].path, from, to, err);
		if (r == 0)
			r = move_path(&c->disks[i].pristine, from, to, err);
		for (char **b = c->disks[i].backing; r == 0 && *b; b++)
			r = move_path(b, from, to, err);
	}
	return r;
}

int vmconfig_load(struct vmconfig *c, const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(name, "machine.json", err);
	_cleanup_free_ char *text = NULL;
	size_t len;
	json_error_t je;

	if (!path)
		return -ENOMEM;
	if (host.access(path, F_OK) < 0 && errno == ENOENT)
		return error_set(err, -ENOENT,
				 "there is no machine \"%s\"; viv list shows those there are", name);
	int r = paths_read_file(path, VMCONFIG_MAX_BYTES, &text, &len, err);

	if (r < 0)
		return r;
	json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);

	if (!json)
		return error_set(err, -EINVAL, "%s, line %d: %s", path, je.line, je.text);
	r = vmconfig_from_json(c, json, err);
	json_decref(json);
	if (r == 0 && strcmp(c->name, name) != 0)
		r = relocate(c, name, err);
	if (r < 0)
		error_prefix(err, "%s", path);
	return r;
}

static int save(const struct vmconfig *c, bool is_stable, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(c->name, "machine.json", err);

	if (!path)
		return -ENOMEM;
	json_t *json = vmconfig_to_json(c);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;

	json_decref(json);
	if (!text)
		return error_set(err, -EINVAL,
				 "a path or argument is not valid UTF-8, or there is no memory");
	return is_stable ? paths_write_file(path, text, strlen(text), err)
			 : paths_hand_over(path, text, strlen(text), err);
}

int vmconfig_save(const struct vmconfig *c, struct error *err)
{
	/* A broker takes the bytes and writes them to a file of its own (broker_replace.c). */
	return save(c, broker_door() < 0, err);
}

int vmconfig_put(const struct vmconfig *c, struct error *err)
{
	return save(c, false, err);
}

/* ---- the machine ---- */

void vmconfig_machine(const struct vmconfig *c, struct machine_config *out)
{
	*out = (struct machine_config){
		.name = c->name,
		.engine = c->engine,
		.cpu = c->cpu,
		.cpus = (unsigned)c->cpus,
		.mem_bytes = c->mem_bytes,
		.kernel = c->kernel,
		.initrd = c->initrd,
		.append = c->append,
		.firmware = c->firmware,
		.ndisks = c->ndisks,
		.has_iommu = c->has_iommu,
		.has_edu = c->has_edu,
		.no_reboot = c->no_reboot,
		.is_strict = c->is_strict,
		.use_interp_only = c->use_interp_only,
		.is_counting = c->is_counting,
		.check_every = (unsigned)c->check_every,
		.without = (uint32_t)c->without,
	};
	for (unsigned i = 0; i < c->ndisks; i++)
		out->disks[i] = (struct machine_disk){
			.path = c->disks[i].path,
			.format = c->disks[i].format,
			.is_readonly = c->disks[i].is_readonly,
			.is_snapshot = c->disks[i].is_snapshot,
			.use_direct = c->disks[i].use_direct,
			.max_bytes_per_s = c->disks[i].max_bytes_per_s,
			.max_ops_per_s = c->disks[i].max_ops_per_s,
		};
}

int vmconfig_new_mac(struct vmconfig *c, struct error *err)
{
	uint8_t b[3];
	char text[18];

	if (getrandom(b, sizeof(b), 0) != sizeof(b))
		return error_set(err, -EIO, "the host gives no random numbers");
	snprintf(text, sizeof(text), "52:54:00:%02x:%02x:%02x", b[0], b[1], b[2]);
	return vmconfig_set(&c->mac, text, err);
}

int vmconfig_parse_mac(const char *text, uint8_t mac[6], struct error *err)
{
	unsigned b[6];
	char end;

	if (strlen(text) != 17 || sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2],
					 &b[3], &b[4], &b[5], &end) != 6)
		return error_set(err, -EINVAL, "\"%.40s\" is no MAC address", text);
	if (b[0] & 1)
		return error_set(err, -EINVAL, "%s is a group address, no card can have it", text);
	for (unsigned i = 0; i < 6; i++)
		mac[i] = (uint8_t)b[i];
	return 0;
}
