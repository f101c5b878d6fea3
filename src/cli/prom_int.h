/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of cli/prom.h: the format. */
#ifndef VIV_CLI_PROM_INT_H
#define VIV_CLI_PROM_INT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#define PROM_COUNTER(metric, help) metric "_total", "counter", help
#define PROM_GAUGE(metric, help)   metric, "gauge", help

/* One metric: its header is written before the first sample, so one without samples is not there at all. */
struct prom_family {
	FILE *out;
	const char *metric, *type, *help;
	bool is_open;
};

/** prom_put_escaped() - \ and the end of the line, in a label " too. */
void prom_put_escaped(FILE *out, const char *text, bool is_label);
void prom_put_label(FILE *out, const char *key, const char *value);
/** prom_begin_sample() - of @of, whose label has the name @key; more labels may follow, then prom_end_sample(). */
void prom_begin_sample(struct prom_family *f, const char *key, const char *of);
void prom_end_sample(struct prom_family *f, json_int_t v, bool is_ns);
/** prom_read_number() - false: @obj has no such member, or it is no number from 0 on. */
bool prom_read_number(json_t *obj, const char *name, json_int_t *out);

#endif
