/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/host.h"
#include "base/opts.h"

/* ---- values ---- */

/* Digits with an optional binary scale of 1024^k or a decimal fraction are not taken: exact only. */
static int parse_number(const char *text, uint64_t *out, const char **end)
{
	unsigned base = 10;
	uint64_t v = 0;
	const char *p = text;

	if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X') && isxdigit((unsigned char)p[2])) {
		base = 16;
		p += 2;
	}
	const char *digits = p;
	for (; base == 16 ? isxdigit((unsigned char)*p) : isdigit((unsigned char)*p); p++) {
		unsigned d = isdigit((unsigned char)*p) ? (unsigned)(*p - '0')
							: (unsigned)(tolower(*p) - 'a') + 10;
		if (__builtin_mul_overflow(v, base, &v) || __builtin_add_overflow(v, d, &v))
			return -ERANGE;
	}
	if (p == digits)
		return -EINVAL;
	*out = v;
	*end = p;
	return 0;
}

int opts_parse_uint(const char *text, uint64_t *out)
{
	uint64_t v;
	const char *end;
	int r = parse_number(text, &v, &end);

	if (r)
		return r;
	if (*end)
		return -EINVAL;
	*out = v;
	return 0;
}

int opts_parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGTP";
	uint64_t v;
	const char *end;
	int r = parse_number(text, &v, &end);
	unsigned shift = 0;

	if (r)
		return r;
	if (*end) {
		const char *u = strchr(units, toupper((unsigned char)*end));
		if (!u)
			return -EINVAL;
		shift = 10 * (unsigned)(u - units + 1);
		end++;
		if (end[0] == 'i' && end[1] == 'B')
			end += 2;
		else if (end[0] == 'B')
			end++;
	}
	if (*end)
		return -EINVAL;
	if (shift && v >> (64 - shift))
		return -ERANGE;
	*bytes = v << shift;
	return 0;
}

static const struct {
	const char *unit;
	int64_t ns;
} duration_units[] = {
	{ "ns", 1 },	     { "us", 1000 },	   { "ms", 1000000 },
	{ "s", 1000000000 }, { "m", 60000000000 }, { "h", 3600000000000 },
};

int opts_parse_duration(const char *text, int64_t *ns)
{
	uint64_t v;
	const char *end;
	int64_t t;
	int r = parse_number(text, &v, &end);

	if (r)
		return r;
	if (!*end && v == 0) {
		*ns = 0;
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(duration_units); i++) {
		if (strcmp(end, duration_units[i].unit) != 0)
			continue;
		if (__builtin_mul_overflow(v, duration_units[i].ns, &t))
			return -ERANGE;
		*ns = t;
		return 0;
	}
	return -EINVAL;
}

const char *opts_format_size(uint64_t bytes, char buf[32])
{
	static const char units[] = "\0KMGTP";
	unsigned u = 0;

	while (bytes && bytes % 1024 == 0 && u + 1 < sizeof(units) - 1) {
		bytes /= 1024;
		u++;
	}
	snprintf(buf, 32, "%llu%.1s", (unsigned long long)bytes, units + u);
	return buf;
}

static void format_duration(uint64_t ns, char buf[32])
{
	size_t i = ARRAY_SIZE(duration_units) - 1;

	while (i && (ns == 0 || ns % (uint64_t)duration_units[i].ns))
		i--;
	snprintf(buf, 32, "%llu%s", (unsigned long long)(ns / (uint64_t)duration_units[i].ns),
		 duration_units[i].unit);
}

/* ---- what was meant ---- */

#define SUGGEST_MAX 32

/* Edits (insert, delete, change, swap of neighbours) from @a to @b. */
static unsigned edit_distance(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b);
	unsigned d[3][SUGGEST_MAX + 1];

	if (la > SUGGEST_MAX || lb > SUGGEST_MAX)
		return SUGGEST_MAX;
	for (size_t j = 0; j <= lb; j++)
		d[0][j] = (unsigned)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned *row = d[i % 3], *above = d[(i + 2) % 3], *above2 = d[(i + 1) % 3];
		row[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			unsigned best = above[j - 1] + (a[i - 1] != b[j - 1]);
			best = MIN(best, above[j] + 1);
			best = MIN(best, row[j - 1] + 1);
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				best = MIN(best, above2[j - 2] + 1);
			row[j] = best;
		}
	}
	return d[la % 3][lb];
}

const char *opts_suggest(const char *word, const char *const *names)
{
	const char *best = NULL;
	unsigned best_d = (unsigned)MIN(strlen(word), (size_t)SUGGEST_MAX) / 3 + 1;

	for (; *names; names++) {
		unsigned d = edit_distance(word, *names);
		/* A word cut short is the commonest slip. */
		if (strlen(word) >= 3 && strncmp(word, *names, strlen(word)) == 0)
			d = MIN(d, 1u);
		if (d <= best_d && d < strlen(*names) && (!best || d < best_d)) {
			best = *names;
			best_d = d;
		}
	}
	return best;
}

static const char *suggest_option(const struct opts_cmd *cmd, const char *word)
{
	const char *names[128];
	size_t n = 0;

	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++)
		if (n < ARRAY_SIZE(names) - 2)
			names[n++] = o->name;
	names[n++] = "help";
	names[n] = NULL;
	return opts_suggest(word, names);
}

/* ---- parsing ---- */

static int set_range_error(const struct opt *o, const char *text, struct error *err)
{
	char lo[32], hi[32];

	switch (o->kind) {
	case OPT_KIND_SIZE:
		opts_format_size(o->min, lo);
		opts_format_size(o->max, hi);
		break;
	case OPT_KIND_DURATION:
		format_duration(o->min, lo);
		format_duration(o->max, hi);
		break;
	default:
		snprintf(lo, sizeof(lo), "%llu", (unsigned long long)o->min);
		snprintf(hi, sizeof(hi), "%llu", (unsigned long long)o->max);
	}
	if (o->max)
		return error_set(err, -EINVAL, "--%s %s is out of range: it must be %s to %s",
				 o->name, text, lo, hi);
	return error_set(err, -EINVAL, "--%s %s is out of range: it must be at least %s", o->name,
			 text, lo);
}

static int parse_bounded(const struct opt *o, const char *text, uint64_t *out, struct error *err)
{
	static const char *const forms[] = {
		[OPT_KIND_UINT] = "a number such as 4",
		[OPT_KIND_SIZE] = "a size such as 512M or 2G",
		[OPT_KIND_DURATION] = "a duration such as 300ms or 5s",
	};
	uint64_t v = 0;
	int r;

	if (o->kind == OPT_KIND_UINT)
		r = opts_parse_uint(text, &v);
	else if (o->kind == OPT_KIND_SIZE)
		r = opts_parse_size(text, &v);
	else
		r = opts_parse_duration(text, (int64_t *)&v);
	if (r == -EINVAL)
		return error_set(err, -EINVAL, "--%s wants %s, not '%s'", o->name, forms[o->kind], text);
	if (r || v < o->min || (o->max && v > o->max))
		return set_range_error(o, text, err);
	*out = v;
	return 0;
}

static int parse_choice(const struct opt *o, const char *text, int *out, struct error *err)
{
	char all[256] = "";
	size_t len = 0;

	for (int i = 0; o->choices[i]; i++) {
		if (strcmp(text, o->choices[i]) == 0) {
			*out = i;
			return 0;
		}
		if (len < sizeof(all) - 1) {
			int n = snprintf(all + len, sizeof(all) - len, "%s%s", i ? ", " : "",
					 o->choices[i]);
			len = MIN(len + (size_t)MAX(n, 0), sizeof(all) - 1);
		}
	}
	const char *meant = opts_suggest(text, o->choices);
	if (meant)
		return error_set(err, -EINVAL, "--%s '%s' is unknown, did you mean '%s'? (%s)",
				 o->name, text, meant, all);
	return error_set(err, -EINVAL, "--%s '%s' is unknown: it must be one of %s", o->name, text, all);
}

static int list_add(struct opt_list *l, const char *text, struct error *err)
{
	const char **v = host.realloc(l->v, (l->n + 2) * sizeof(*v));

	if (!v)
		return error_set(err, -ENOMEM, "no memory for the command line");
	l->v = v;
	l->v[l->n++] = text;
	l->v[l->n] = NULL;
	return 0;
}

static int set_value(const struct opt *o, const char *text, void *obj, struct error *err)
{
	void *p = (char *)obj + o->offset;

	switch ((enum opt_kind)o->kind) {
	case OPT_KIND_FLAG:
		*(bool *)p = text != NULL;
		return 0;
	case OPT_KIND_STRING:
		*(const char **)p = text;
		return 0;
	case OPT_KIND_LIST:
		return list_add(p, text, err);
	case OPT_KIND_UINT:
	case OPT_KIND_SIZE:
	case OPT_KIND_DURATION:
		return parse_bounded(o, text, p, err);
	case OPT_KIND_CHOICE:
		return parse_choice(o, text, p, err);
	case OPT_KIND_END:
		break;
	}
	assert(!"option kind");
	return -EINVAL;
}

static const struct opt *find_name(const struct opts_cmd *cmd, const char *name, size_t len)
{
	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++)
		if (strlen(o->name) == len && memcmp(o->name, name, len) == 0)
			return o;
	return NULL;
}

static const struct opt *find_letter(const struct opts_cmd *cmd, char letter)
{
	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++)
		if (o->letter && o->letter == letter)
			return o;
	return NULL;
}

struct parser {
	const struct opts_cmd *cmd;
	int argc, i;
	char **argv;
	void *obj;
	struct error *err;
};

static int value_from_next(struct parser *p, const struct opt *o, const char **value)
{
	if (p->i + 1 >= p->argc || strcmp(p->argv[p->i + 1], "--") == 0)
		return error_set(p->err, -EINVAL, "--%s needs a value: --%s %s", o->name, o->name,
				 o->metavar);
	*value = p->argv[++p->i];
	return 0;
}

static int unknown_option(struct parser *p, const char *arg, const char *name)
{
	const char *meant = suggest_option(p->cmd, name);

	if (meant)
		return error_set(p->err, -EINVAL, "%s has no option '%s', did you mean '--%s'?",
				 p->cmd->name, arg, meant);
	return error_set(p->err, -EINVAL, "%s has no option '%s'; '%s --help' lists them",
			 p->cmd->name, arg, p->cmd->name);
}

static int parse_long(struct parser *p, const char *arg)
{
	const char *name = arg + 2;
	const char *eq = strchr(name, '=');
	size_t len = eq ? (size_t)(eq - name) : strlen(name);
	const struct opt *o = find_name(p->cmd, name, len);
	const char *value = eq ? eq + 1 : NULL;
	int r;

	if (!o && len > 3 && memcmp(name, "no-", 3) == 0) {
		o = find_name(p->cmd, name + 3, len - 3);
		if (o && o->kind == OPT_KIND_FLAG && !eq)
			return set_value(o, NULL, p->obj, p->err);
		o = NULL;
	}
	if (!o) {
		char word[64];
		snprintf(word, sizeof(word), "%.*s", (int)MIN(len, sizeof(word) - 1), name);
		return unknown_option(p, arg, word);
	}
	if (o->kind == OPT_KIND_FLAG) {
		if (eq)
			return error_set(p->err, -EINVAL, "--%s takes no value", o->name);
		return set_value(o, "", p->obj, p->err);
	}
	if (!value && (r = value_from_next(p, o, &value)))
		return r;
	return set_value(o, value, p->obj, p->err);
}

static int parse_letters(struct parser *p, const char *arg)
{
	for (const char *c = arg + 1; *c; c++) {
		const struct opt *o = find_letter(p->cmd, *c);
		const char *value = c + 1;
		int r;

		if (!o) {
			if (*c == 'h')
				return OPTS_HELP;
			return unknown_option(p, arg, arg + 1);
		}
		if (o->kind == OPT_KIND_FLAG) {
			set_value(o, "", p->obj, p->err);
			continue;
		}
		if (!*value && (r = value_from_next(p, o, &value)))
			return r;
		return set_value(o, value, p->obj, p->err);
	}
	return 0;
}

static int check_arg_count(const struct opts_cmd *cmd, const struct opts_rest *rest, struct error *err)
{
	const char *space = *cmd->usage ? " " : "";

	if (rest->nargs < cmd->min_args)
		return error_set(err, -EINVAL, "%s needs %s argument%s: %s%s%s", cmd->name,
				 cmd->min_args == 1 ? "an" : "more", cmd->min_args == 1 ? "" : "s",
				 cmd->name, space, cmd->usage);
	if (rest->nargs > cmd->max_args)
		return error_set(err, -EINVAL, "'%s' is one argument too many: %s%s%s",
				 rest->args[cmd->max_args], cmd->name, space, cmd->usage);
	return 0;
}

static int parse_all(struct parser *p, struct opts_rest *rest)
{
	int r = 0;

	rest->next = (unsigned)p->argc;
	for (p->i = 1; p->i < p->argc && !r; p->i++) {
		char *arg = p->argv[p->i];
		if (strcmp(arg, "--") == 0) {
			if (p->cmd->takes_command) {
				rest->command = p->argv + p->i + 1;
				rest->ncommand = (unsigned)(p->argc - p->i - 1);
				break;
			}
			while (++p->i < p->argc)
				rest->args[rest->nargs++] = p->argv[p->i];
		} else if (strcmp(arg, "--help") == 0) {
			r = OPTS_HELP;
		} else if (arg[0] == '-' && arg[1] == '-') {
			r = parse_long(p, arg);
		} else if (arg[0] == '-' && arg[1]) {
			r = parse_letters(p, arg);
		} else if (p->cmd->stops_at_args) {
			rest->next = (unsigned)p->i;
			break;
		} else {
			rest->args[rest->nargs++] = arg;
		}
	}
	if (r == 0 && !p->cmd->stops_at_args)
		r = check_arg_count(p->cmd, rest, p->err);
	return r;
}

int opts_parse(const struct opts_cmd *cmd, int argc, char **argv, void *obj, struct opts_rest *rest,
	       struct error *err)
{
	struct parser p = { .cmd = cmd, .argc = argc, .argv = argv, .obj = obj, .err = err };

	*rest = (struct opts_rest){ .args = calloc((size_t)MAX(argc, 0) + 1, sizeof(*rest->args)) };
	if (!rest->args)
		return error_set(err, -ENOMEM, "no memory for the command line");
	int r = parse_all(&p, rest);
	if (r < 0)
		opts_free(cmd, obj, rest);
	return r;
}

void opts_free(const struct opts_cmd *cmd, void *obj, struct opts_rest *rest)
{
	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++) {
		if (o->kind != OPT_KIND_LIST)
			continue;
		struct opt_list *l = (void *)((char *)obj + o->offset);
		free(l->v);
		*l = (struct opt_list){ 0 };
	}
	free(rest->args);
	*rest = (struct opts_rest){ 0 };
}

/* ---- help ---- */

static void print_option(const char *left, const char *help, FILE *out)
{
	const int column = 30;

	if ((int)strlen(left) < column - 1)
		fprintf(out, "%-*s%s\n", column, left, help);
	else
		fprintf(out, "%s\n%*s%s\n", left, column, "", help);
}

const char *opts_option_text(const struct opt *o, char *buf, size_t cap)
{
	int n = o->letter ? snprintf(buf, cap, "-%c, --%s", o->letter, o->name)
			  : snprintf(buf, cap, "--%s", o->name);
	size_t len = MIN((size_t)MAX(n, 0), cap - 1);

	if (o->kind == OPT_KIND_CHOICE) {
		for (int i = 0; o->choices[i] && len < cap - 1; i++) {
			n = snprintf(buf + len, cap - len, "%s%s", i ? "|" : " ", o->choices[i]);
			len = MIN(len + (size_t)MAX(n, 0), cap - 1);
		}
	} else if (o->metavar) {
		snprintf(buf + len, cap - len, " %s%s", o->metavar,
			 o->kind == OPT_KIND_LIST ? "..." : "");
	}
	return buf;
}

static void print_actions(const struct opts_cmd *cmd, FILE *out)
{
	struct opts_action a;
	char left[160];

	fprintf(out, "\nActions:\n");
	for (unsigned i = 0; cmd->action(i, &a); i++) {
		snprintf(left, sizeof(left), "  %s%s%s", a.name, *a.usage ? " " : "", a.usage);
		print_option(left, a.summary, out);
	}
}

void opts_help(const struct opts_cmd *cmd, FILE *out)
{
	char text[160], left[192];

	fprintf(out, "%s - %s\n\nUsage: %s [OPTIONS]%s%s\n", cmd->name, cmd->summary, cmd->name,
		*cmd->usage ? " " : "", cmd->usage);
	if (cmd->action)
		print_actions(cmd, out);
	fprintf(out, "\nOptions:\n");
	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++) {
		snprintf(left, sizeof(left), "  %s%s", o->letter ? "" : "    ",
			 opts_option_text(o, text, sizeof(text)));
		print_option(left, o->help, out);
	}
	print_option("  -h, --help", "show this text", out);
	if (cmd->details)
		fprintf(out, "\n%s\n", cmd->details);
}

int opts_subvalue(const char **cursor, char *key, size_t cap, const char **value)
{
	const char *p = *cursor;
	size_t n = 0;

	if (!p)
		return 0;
	for (; *p; p++) {
		if (*p == ',') {
			if (p[1] != ',')
				break;
			p++;
		}
		if (n + 1 >= cap)
			return -EINVAL;
		key[n++] = *p;
	}
	if (n + 1 > cap)
		return -EINVAL;
	key[n] = 0;
	*cursor = *p ? p + 1 : NULL;
	char *eq = strchr(key, '=');
	*value = NULL;
	if (eq) {
		*eq = 0;
		*value = eq + 1;
	}
	return 1;
}
