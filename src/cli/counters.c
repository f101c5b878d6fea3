/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/counters.h"

#define SLOW_PREFIX "interpreted_"
#define TIME_NAME   "cpu_time_ns"
#define CPUS_SHOWN  4 /* columns; more CPUs are in their sum only */
#define ROWS_MAX    4096

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && strcmp(s + n - m, end) == 0;
}

static bool is_level(const char *name)
{
	return ends_with(name, "_size") || ends_with(name, "_bytes");
}

static json_int_t number(json_t *obj, const char *name)
{
	return json_integer_value(json_object_get(obj, name)); /* 0 for anything else */
}

/* ---- differences ---- */

static json_t *object_since(json_t *before, json_t *after)
{
	json_t *out = json_object(), *v;
	const char *name;

	json_object_foreach(after, name, v)
	{
		json_int_t now = json_integer_value(v), then = is_level(name) ? 0 : number(before, name);

		if (json_object_set_new(out, name, json_integer(now >= then ? now - then : now)) < 0) {
			json_decref(out);
			return NULL;
		}
	}
	return out;
}

json_t *counters_since(json_t *before, json_t *after)
{
	json_t *cpus = json_array(), *was = json_object_get(before, "counters"), *cpu;
	size_t i;

	json_array_foreach(json_object_get(after, "counters"), i, cpu)
	{
		if (json_array_append_new(cpus, object_since(json_array_get(was, i), cpu)) < 0) {
			json_decref(cpus);
			return NULL;
		}
	}
	return json_pack("{s:o, s:o}", "counters", cpus, "devices",
			 object_since(json_object_get(before, "devices"),
				      json_object_get(after, "devices")));
}

/* ---- tables ---- */

struct row {
	const char *name; /* borrowed */
	json_int_t cpu[CPUS_SHOWN], sum;
};
struct rows {
	struct row *v;
	size_t n;
};

static struct row *row_named(struct rows *rows, const char *name)
{
	for (size_t i = 0; i < rows->n; i++)
		if (strcmp(rows->v[i].name, name) == 0)
			return &rows->v[i];
	if (rows->n == ROWS_MAX)
		return NULL;
	rows->v[rows->n] = (struct row){ .name = name };
	return &rows->v[rows->n++];
}

static void add(struct rows *rows, size_t cpu, const char *name, json_t *v)
{
	struct row *row = json_is_integer(v) ? row_named(rows, name) : NULL;

	if (!row)
		return;
	row->sum += json_integer_value(v);
	if (cpu < CPUS_SHOWN)
		row->cpu[cpu] += json_integer_value(v);
}

static int most_first(const void *a, const void *b)
{
	const struct row *x = a, *y = b;

	return x->sum > y->sum ? -1 : x->sum < y->sum ? 1 : strcmp(x->name, y->name);
}

static void print_rows(FILE *out, const char *title, struct rows *rows, size_t ncpus, size_t prefix,
		       json_int_t time_ns)
{
	size_t columns = ncpus > 1 ? MIN(ncpus, (size_t)CPUS_SHOWN) : 0;

	if (!rows->n)
		return;
	fprintf(out, "%-28s", title);
	for (size_t i = 0; i < columns; i++)
		fprintf(out, "         cpu%zu", i);
	fprintf(out, " %16s %16s\n", columns ? "all" : "", time_ns > 0 ? "per CPU second" : "");
	for (size_t r = 0; r < rows->n; r++) {
		const struct row *row = &rows->v[r];

		fprintf(out, "  %-26s", row->name + prefix);
		for (size_t i = 0; i < columns; i++)
			fprintf(out, " %12" JSON_INTEGER_FORMAT, row->cpu[i]);
		fprintf(out, " %16" JSON_INTEGER_FORMAT, row->sum);
		if (time_ns > 0 && !is_level(row->name) && strcmp(row->name, TIME_NAME) != 0)
			fprintf(out, " %16.0f", (double)row->sum * 1e9 / (double)time_ns);
		fputc('\n', out);
	}
}

void counters_print(json_t *info, FILE *out)
{
	json_t *cpus = json_object_get(info, "counters"), *cpu, *v;
	struct rows main = { calloc(ROWS_MAX, sizeof(struct row)), 0 };
	struct rows slow = { calloc(ROWS_MAX, sizeof(struct row)), 0 };
	struct rows devices = { calloc(ROWS_MAX, sizeof(struct row)), 0 };
	size_t i, ncpus = json_array_size(cpus);
	json_int_t time_ns = 0;
	const char *name;

	if (main.v && slow.v && devices.v) {
		json_array_foreach(cpus, i, cpu)
		{
			time_ns += number(cpu, TIME_NAME);
			json_object_foreach(cpu, name, v)
				add(strncmp(name, SLOW_PREFIX, strlen(SLOW_PREFIX)) == 0 ? &slow : &main,
				    i, name, v);
		}
		json_object_foreach(json_object_get(info, "devices"), name, v)
			add(&devices, 0, name, v);
		qsort(slow.v, slow.n, sizeof(struct row), most_first);
		qsort(devices.v, devices.n, sizeof(struct row), most_first);
		print_rows(out, "COUNTER", &main, ncpus, 0, time_ns);
		print_rows(out, "INTERPRETED", &slow, ncpus, strlen(SLOW_PREFIX), time_ns);
		print_rows(out, "ACCESSES TO DEVICES", &devices, 1, 0, time_ns);
	}
	free(main.v);
	free(slow.v);
	free(devices.v);
}
