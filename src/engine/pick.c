/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/pick.h"

const struct engine_ops *const engines[] = {
	&engine_kvm,
	&engine_dbt,
	NULL,
};

static bool is_good(const struct engine_probe *p, bool is_last)
{
	return p->is_usable && (is_last || p->mips == 0 || p->mips >= ENGINE_MIN_MIPS);
}

static void append(char text[256], const char *fmt, ...) _printf_(2, 3);
static void append(char text[256], const char *fmt, ...)
{
	size_t len = strlen(text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text + len, 256 - len, fmt, ap);
	va_end(ap);
}

static const struct engine_ops *pick_named(const struct engine_ops *const *list, const char *want,
					   char reason[256], struct error *err)
{
	char names[128] = "auto";
	size_t at = strlen(names);

	for (; *list; list++) {
		struct engine_probe p = { 0 };

		at += (size_t)snprintf(names + at, sizeof(names) - at, ", %s", (*list)->name);
		if (strcmp((*list)->name, want) != 0)
			continue;
		(*list)->probe(&p);
		if (p.is_usable) {
			snprintf(reason, 256, "asked for; %.200s", p.reason);
			return *list;
		}
		error_set(err, -ENOTSUP, "engine %s cannot serve here: %s; use --engine auto", want,
			  p.reason);
		return NULL;
	}
	error_set(err, -EINVAL, "there is no engine \"%s\"; there are %s", want, names);
	return NULL;
}

const struct engine_ops *engine_pick_from(const struct engine_ops *const *list, const char *want,
					  char reason[256], struct error *err)
{
	char refused[256] = "";

	if (strcmp(want, "auto") != 0)
		return pick_named(list, want, reason, err);
	for (; *list; list++) {
		struct engine_probe p = { 0 };

		(*list)->probe(&p);
		if (is_good(&p, !list[1])) {
			snprintf(reason, 256, "%.120s", p.reason);
			if (refused[0])
				append(reason, " (%s)", refused);
			return *list;
		}
		append(refused, "%s%s: %s", refused[0] ? "; " : "", (*list)->name, p.reason);
	}
	error_set(err, -ENOTSUP, "no engine can serve on this host (%s)", refused);
	return NULL;
}

const struct engine_ops *engine_pick(const char *want, char reason[256], struct error *err)
{
	return engine_pick_from(engines, want, reason, err);
}

static const char *const technique_names[] = {
#define NAME(name, text) text,
	ENGINE_TECHNIQUES(NAME)
#undef NAME
};

int engine_parse_techniques(const char *text, uint64_t *mask, struct error *err)
{
	char all[256] = "";
	size_t used = 0;

	*mask = 0;
	if (strcmp(text, "none") == 0)
		return 0;
	for (const char *p = text;;) {
		size_t n = strcspn(p, ",");
		unsigned i = 0;

		while (i < ENGINE_NTECHNIQUES &&
		       (strlen(technique_names[i]) != n || memcmp(technique_names[i], p, n) != 0))
			i++;
		if (i < ENGINE_NTECHNIQUES) {
			*mask |= 1ULL << i;
			if (!p[n])
				return 0;
			p += n + 1;
			continue;
		}
		for (i = 0; i < ENGINE_NTECHNIQUES; i++)
			used += (size_t)snprintf(all + used, sizeof(all) - used, "%s%s",
						 i ? ", " : "", technique_names[i]);
		return error_set(err, -EINVAL, "there is no technique \"%.*s\"; there are %s",
				 (int)n, p, all);
	}
}
