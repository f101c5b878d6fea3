/* SPDX-License-Identifier: Apache-2.0 */
#include "net/faults.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/opts.h"

/* "1%", "0.25%" */
static int parse_share(const char *text, uint32_t *ppm)
{
	char *end;
	double v = strtod(text, &end);

	if (end == text || strcmp(end, "%") != 0 || !(v >= 0 && v <= 100))
		return -EINVAL;
	*ppm = (uint32_t)(v * 10000 + 0.5);
	return 0;
}

static int parse_time(const char *text, int64_t *ns)
{
	int64_t v;

	if (opts_parse_duration(text, &v) < 0 || v < 0 || v > FAULTS_LATENCY_MAX_NS)
		return -EINVAL;
	*ns = v;
	return 0;
}

static int parse_switch(const char *text, bool *on)
{
	bool is_on = strcmp(text, "on") == 0 || strcmp(text, "true") == 0;

	if (!is_on && strcmp(text, "off") != 0 && strcmp(text, "false") != 0)
		return -EINVAL;
	*on = is_on;
	return 0;
}

int faults_set(struct faults *f, const char *key, const char *value, struct error *err)
{
	static const char *const keys[] = { "latency",	 "jitter",    "loss", "reorder",
					    "bandwidth", "partition", "none", NULL };
	const char *meant;
	bool is_none = false;
	int r;

	if (strcmp(key, "latency") == 0)
		r = parse_time(value, &f->latency_ns);
	else if (strcmp(key, "jitter") == 0)
		r = parse_time(value, &f->jitter_ns);
	else if (strcmp(key, "loss") == 0)
		r = parse_share(value, &f->loss_ppm);
	else if (strcmp(key, "reorder") == 0)
		r = parse_share(value, &f->reorder_ppm);
	else if (strcmp(key, "bandwidth") == 0)
		r = opts_parse_size(value, &f->bytes_per_s);
	else if (strcmp(key, "partition") == 0)
		r = parse_switch(value, &f->is_cut);
	else if (strcmp(key, "none") == 0)
		r = parse_switch(value, &is_none);
	else if ((meant = opts_suggest(key, keys)))
		return error_set(err, -EINVAL, "there is no fault \"%s\"; did you mean \"%s\"?",
				 key, meant);
	else
		return error_set(err, -EINVAL, "there is no fault \"%s\"; there are latency, jitter, loss, reorder, bandwidth, partition",
				 key);
	if (is_none)
		*f = (struct faults){ 0 };
	return r < 0 ? error_set(err, -EINVAL, "%s can't be %s; write latency 20ms (up to 10s), loss 1%%, bandwidth 1M, partition on",
				 key, value)
		     : 0;
}

bool faults_is_none(const struct faults *f)
{
	return !f->latency_ns && !f->jitter_ns && !f->loss_ppm && !f->reorder_ppm &&
	       !f->bytes_per_s && !f->is_cut;
}

static void add(char *buf, size_t cap, const char *text)
{
	size_t len = strlen(buf);

	snprintf(buf + len, cap - len, "%s%s", len ? " " : "", text);
}

const char *faults_format(const struct faults *f, char *buf, size_t cap)
{
	char part[64], size[32];

	*buf = 0;
	if (f->latency_ns) {
		snprintf(part, sizeof(part), "latency=%gms", (double)f->latency_ns / 1e6);
		add(buf, cap, part);
	}
	if (f->jitter_ns) {
		snprintf(part, sizeof(part), "jitter=%gms", (double)f->jitter_ns / 1e6);
		add(buf, cap, part);
	}
	if (f->loss_ppm) {
		snprintf(part, sizeof(part), "loss=%g%%", f->loss_ppm / 1e4);
		add(buf, cap, part);
	}
	if (f->reorder_ppm) {
		snprintf(part, sizeof(part), "reorder=%g%%", f->reorder_ppm / 1e4);
		add(buf, cap, part);
	}
	if (f->bytes_per_s) {
		snprintf(part, sizeof(part), "bandwidth=%s", opts_format_size(f->bytes_per_s, size));
		add(buf, cap, part);
	}
	if (f->is_cut)
		add(buf, cap, "partition=on");
	if (!*buf)
		add(buf, cap, "none");
	return buf;
}

/* xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016) */
static uint32_t next_random(struct fault_link *l)
{
	l->random ^= l->random >> 12;
	l->random ^= l->random << 25;
	l->random ^= l->random >> 27;
	return (uint32_t)((l->random * 0x2545f4914f6cdd1dULL) >> 32);
}

static bool happens(struct fault_link *l, uint32_t ppm)
{
	return ppm && (uint64_t)next_random(l) * 1000000 >> 32 < ppm;
}

void fault_link_init(struct fault_link *l, const struct faults *f, uint64_t seed)
{
	*l = (struct fault_link){ .faults = *f, .random = seed * 0x9e3779b97f4a7c15ULL | 1 };
}

int64_t fault_link_pass(struct fault_link *l, int64_t now_ns, size_t len)
{
	const struct faults *f = &l->faults;
	int64_t at = now_ns;

	if (faults_is_none(f) && l->last_ns <= now_ns)
		return now_ns;
	if (f->is_cut || happens(l, f->loss_ppm))
		return -1;
	if (f->bytes_per_s) {
		int64_t start = MAX(now_ns, l->busy_until_ns);
		if (start - now_ns > FAULTS_QUEUE_NS)
			return -1;
		/* Up to 64 KiB: no overflow. */
		at = start + (int64_t)(len * 1000000000ULL / f->bytes_per_s);
		l->busy_until_ns = at;
	}
	if (happens(l, f->reorder_ppm))
		return at;
	at += f->latency_ns;
	if (f->jitter_ns)
		at += (int64_t)((uint64_t)next_random(l) * (uint64_t)f->jitter_ns >> 32);
	/* Jitter alone keeps the order. */
	l->last_ns = at = MAX(at, l->last_ns);
	return at;
}
