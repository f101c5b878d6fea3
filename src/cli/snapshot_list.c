/* SPDX-License-Identifier: Apache-2.0 */
/* `viv snapshot list`, `tree`, `show`, `verify`. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/snapshot.h"

/* ---- list, tree ---- */

static json_t *to_json(const struct snapshot_info *i)
{
	return json_pack("{s:s, s:s?, s:I, s:I, s:I, s:I, s:O*, s:I, s:s, s:s}", "name", i->name,
			 "parent", i->parent, "created", (json_int_t)i->created_s, "own_bytes",
			 (json_int_t)i->own_bytes, "shared_bytes", (json_int_t)i->shared_bytes,
			 "mem_bytes", (json_int_t)i->config.mem_bytes, "network", i->network,
			 "pause_us", (json_int_t)i->pause_us, "engine", i->engine, "viv", i->viv);
}

static void age_text(int64_t seconds, char out[24])
{
	static const struct {
		const char *unit;
		int64_t s;
	} units[] = { { "d", 86400 }, { "h", 3600 }, { "min", 60 }, { "s", 1 } };

	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		if (seconds >= units[i].s || units[i].s == 1) {
			snprintf(out, 24, "%lld %s", (long long)(seconds / units[i].s), units[i].unit);
			return;
		}
}

static void print_row(const struct snapshot_info *i, unsigned depth)
{
	char age[24], name[96];

	age_text(MAX((int64_t)time(NULL) - i->created_s, (int64_t)0), age);
	snprintf(name, sizeof(name), "%*s%s", (int)MIN(2 * depth, 24u), "", i->name);
	printf("%-24s %8s %10.1f %10.1f   %s\n", name, age, (double)i->own_bytes / MIB,
	       (double)i->shared_bytes / MIB, i->parent ? i->parent : "-");
}

static bool has_parent(const struct snapshot_info *list, unsigned n, const struct snapshot_info *i)
{
	for (unsigned k = 0; i->parent && k < n; k++)
		if (!strcmp(list[k].name, i->parent) && list[k].created_s <= i->created_s && &list[k] != i)
			return true;
	return false;
}

/* Parents are older, so the depth is bounded by their number. */
static void print_children(const struct snapshot_info *list, unsigned n,
			   const struct snapshot_info *of, unsigned depth)
{
	for (unsigned k = 0; k < n; k++) {
		bool is_root = !has_parent(list, n, &list[k]);

		if (of ? is_root || strcmp(list[k].parent, of->name) != 0 || depth > n : !is_root)
			continue;
		print_row(&list[k], depth);
		print_children(list, n, &list[k], depth + 1);
	}
}

static void note_damaged(void *arg, const char *name, const struct error *why)
{
	bool *is_bad = arg;

	*is_bad = true;
	cli_note("%s", why->text);
}

int snapshot_list(const char *vm, bool as_tree, bool json, struct error *err)
{
	struct snapshot_info *list;
	bool is_bad = false;
	unsigned n;
	int r = snapstore_list(vm, &list, &n, note_damaged, &is_bad, err);

	if (r < 0)
		return r;
	if (json) {
		json_t *array = json_array();

		for (unsigned i = 0; i < n; i++)
			(void)json_array_append_new(array, to_json(&list[i]));
		cli_print_json(array);
	} else {
		printf("%-24s %8s %10s %10s   %s\n", "SNAPSHOT", "AGE", "OWN MiB", "SHARED MiB", "PARENT");
		if (as_tree)
			print_children(list, n, NULL, 0);
		for (unsigned i = 0; !as_tree && i < n; i++)
			print_row(&list[i], 0);
	}
	snapstore_list_free(list, n);
	return is_bad ? error_set(err, -EINVAL, "some snapshots of %s are damaged", vm) : 0;
}

/* ---- show ---- */

/* A text without the quotes that mark it as one. */
static json_t *value_to_json(const char *value)
{
	size_t len = strlen(value);
	bool is_text = len >= 2 && value[0] == '"' && value[len - 1] == '"';

	return is_text ? json_stringn(value + 1, len - 2) : json_string(value);
}

/* "name = value" lines of sections to {"section": {"name": "value"}}. */
static json_t *text_to_json(char *text)
{
	json_t *all = json_object(), *section = all;
	char *save = NULL;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *eq = strstr(line, " = ");
		size_t len = strlen(line);

		if (line[0] == '[' && line[len - 1] == ']') {
			line[len - 1] = 0;
			section = json_object();
			(void)json_object_set_new(all, line + 1, section);
		} else if (eq) {
			*eq = 0;
			(void)json_object_set_new(section, line, value_to_json(eq + 3));
		} else {
			(void)json_object_set_new(section, line, json_true());
		}
	}
	return all;
}

int snapshot_show(const char *vm, const char *name, bool json, struct error *err)
{
	struct snapshot_info i;
	struct snapshot_state s;
	_cleanup_bytes_ struct bytes text = { 0 };
	int r = snapstore_load(&i, vm, name, err);

	if (r < 0)
		return r;
	r = snapstore_open_state(vm, name, &s, err);
	if (r == 0) {
		r = snapshot_state_show(&s, &text, err);
		snapshot_state_free(&s);
	}
	if (r == 0 && json) {
		snapstore_measure(&i);
		json_t *all = to_json(&i);

		bytes_put_u8(&text, 0);
		(void)json_object_set_new(all, "state", text_to_json((char *)text.data));
		cli_print_json(all);
	} else if (r == 0) {
		fwrite(text.data, 1, text.len, stdout);
	}
	snapshot_info_free(&i);
	return r;
}

/* ---- verify ---- */

struct verify {
	struct progress progress;
	json_t *list;
	bool json;
};

static bool tick(void *arg, uint64_t done, uint64_t total)
{
	struct verify *v = arg;

	progress_tick(&v->progress, (int)(done * 1000 / total));
	return true;
}

static void bad_piece(void *arg, uint64_t offset, uint64_t len, const char *layer)
{
	struct verify *v = arg;

	if (v->json)
		(void)json_array_append_new(v->list,
					    json_pack("{s:s, s:I, s:I}", "file", layer, "offset",
						      (json_int_t)offset, "bytes", (json_int_t)len));
	else
		printf("damaged: memory from %#llx, %llu KiB, in %s\n", (unsigned long long)offset,
		       (unsigned long long)(len / KIB), layer);
}

int snapshot_verify(const char *vm, const char *name, bool json, struct error *err)
{
	struct verify v = { .json = json, .list = json_array() };
	struct ram_progress progress = { tick, &v };
	struct snapshot_info i;
	struct snapshot_state s;
	struct ram_files f;
	int r = snapstore_load(&i, vm, name, err);

	if (r == 0) {
		snapshot_info_free(&i);
		r = snapstore_open_state(vm, name, &s, err);
	}
	if (r == 0) {
		snapshot_state_free(&s);
		r = snapstore_open_ram(vm, name, &f, err);
	}
	if (r < 0) {
		json_decref(v.list);
		error_prefix(err, "snapshot %s of %s", name, vm);
		return r;
	}
	progress_start(&v.progress, "reading the snapshot");
	int64_t bad = ram_files_verify(&f, bad_piece, &v, &progress, err);

	progress_end(&v.progress);
	ram_files_close(&f);
	if (json && bad >= 0)
		cli_print_json(json_pack("{s:b, s:O}", "whole", bad == 0, "damaged", v.list));
	json_decref(v.list);
	if (bad < 0)
		return (int)bad;
	if (bad)
		return error_set(err, -EINVAL, "snapshot %s of %s is damaged in %lld places of its memory",
				 name, vm, (long long)bad);
	if (!json)
		printf("%s: whole\n", name);
	return 0;
}
