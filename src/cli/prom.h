/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Machines' counters in Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats, "Text-based format"):
 * a HELP and a TYPE line a metric, then all its samples.
 *
 * Names follow prometheus.io/docs/practices/naming: the prefix viv, base units (seconds, bytes) in plural as a suffix,
 * _total after what only grows, labels for what can be summed up.
 */
#ifndef VIV_CLI_PROM_H
#define VIV_CLI_PROM_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

/* One running machine. */
struct prom_machine {
	const char *name;
	json_t *info; /* what "info" answered; NULL: nothing in time.  Nothing in it is trusted. */
	int64_t resident_bytes; /* -1: not known */
};

/** prom_print() - all that is known of @n machines; what is missing, not a number or below 0 gives no sample. */
void prom_print(const struct prom_machine *machines, size_t n, FILE *out);
/** prom_print_labs() - @labs: what their networks answered to "show" (net/labd.h); nothing in it is trusted. */
void prom_print_labs(json_t *const *labs, size_t n, FILE *out);

#endif
