/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/prom_int.h"

/* In a HELP line \ and the end of the line are escaped, in a label " too. */
void prom_put_escaped(FILE *out, const char *text, bool is_label)
{
	for (; *text; text++) {
		if (*text == '\n')
			fputs("\\n", out);
		else if (*text == '\\' || (*text == '"' && is_label))
			fprintf(out, "\\%c", *text);
		else
			fputc(*text, out);
	}
}

void prom_put_label(FILE *out, const char *key, const char *value)
{
	fprintf(out, ",%s=\"", key);
	prom_put_escaped(out, value, true);
	fputc('"', out);
}

void prom_begin_sample(struct prom_family *f, const char *key, const char *of)
{
	if (!f->is_open) {
		fprintf(f->out, "# HELP %s ", f->metric);
		prom_put_escaped(f->out, f->help, false);
		fprintf(f->out, "\n# TYPE %s %s\n", f->metric, f->type);
	}
	f->is_open = true;
	fprintf(f->out, "%s{%s=\"", f->metric, key);
	prom_put_escaped(f->out, of, true);
	fputc('"', f->out);
}

void prom_end_sample(struct prom_family *f, json_int_t v, bool is_ns)
{
	if (is_ns)
		fprintf(f->out, "} %lld.%09lld\n", (long long)v / 1000000000, (long long)v % 1000000000);
	else
		fprintf(f->out, "} %lld\n", (long long)v);
}

bool prom_read_number(json_t *obj, const char *name, json_int_t *out)
{
	json_t *v = json_object_get(obj, name);

	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*out = json_integer_value(v);
	return true;
}
