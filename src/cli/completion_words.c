/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How it works: the words before the last one are walked as opts_parse() walks them, for the table of the verb (and of
 * its action).  What stands at the cursor is then the value of an option or the k-th positional argument, and the name
 * for it in the table, "[MACHINE...]" or "raw|qcow2", tells what to offer.
 */
#include <dirent.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/completion.h"
#include "ctl/paths.h"
#include "ctl/snapstore.h"

struct completion {
	const struct verb *verb;
	const struct opts_cmd *cmd; /* of the verb or, if it has one, of its action */
	const char *usage;	    /* what is positional after verb and action */
	unsigned nargs, max_args;   /* of these: there are before the cursor; may be */
	const char *machine;	    /* the first of them that names one, or NULL */
	const struct opt *needs;    /* the word at the cursor is its value */
	bool is_literal;	    /* after "--": no options */
	bool is_command;	    /* ... but a command of its own */
	const char *current, *prefix_end;
	FILE *out;
};

/* "--name=" of "--name=value" is repeated in front of each word. */
static void offer(const struct completion *c, const char *word, const char *help)
{
	const char *typed = c->prefix_end ? c->prefix_end : c->current;

	if (strncmp(word, typed, strlen(typed)) != 0)
		return;
	fprintf(c->out, "%.*s%s\t%s\n", c->prefix_end ? (int)(c->prefix_end - c->current) : 0,
		c->current, word, help);
}

/* ---- names ---- */

static int is_name(const struct dirent *e)
{
	return paths_check_name("a name", e->d_name, NULL) == 0;
}

static void offer_names_in(const struct completion *c, char *dir, const char *help)
{
	struct dirent **names = NULL;
	int n = dir ? scandir(dir, &names, is_name, alphasort) : -1;

	for (int i = 0; i < n; i++) {
		offer(c, names[i]->d_name, help);
		free(names[i]);
	}
	free(names);
	free(dir);
}

/* As "SNAPSHOT", or as "MACHINE@SNAPSHOT". */
static void offer_snapshots_of(const struct completion *c, const char *vm, bool with_machine)
{
	struct snapshot_info *list;
	unsigned n;
	struct error err;
	char word[2 * PATHS_NAME_MAX + 2];

	if (paths_check_name("a machine", vm, NULL) < 0 ||
	    snapstore_list(vm, &list, &n, NULL, NULL, &err) < 0)
		return;
	for (unsigned i = 0; i < n; i++) {
		snprintf(word, sizeof(word), "%s%s%s", with_machine ? vm : "",
			 with_machine ? "@" : "", list[i].name);
		offer(c, word, "snapshot");
	}
	snapstore_list_free(list, n);
}

static void offer_snapshots(const struct completion *c, bool with_machine)
{
	_cleanup_free_ char *dir = paths_data("vms", NULL);
	struct dirent **names = NULL;
	int n;

	if (c->machine && !with_machine) {
		offer_snapshots_of(c, c->machine, false);
		return;
	}
	n = dir ? scandir(dir, &names, is_name, alphasort) : -1;
	for (int i = 0; i < n; i++) {
		offer_snapshots_of(c, names[i]->d_name, with_machine);
		free(names[i]);
	}
	free(names);
}

/* One alternative of what a table calls a value. */
static bool offer_kind(const struct completion *c, const char *name, bool is_positional)
{
	static const char *const files[] = { "FILE", "PATH",	 "FROM",      "TO",
					     "BASE", "LAB.yaml", "FOLDER:TAG" };

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		if (strcmp(name, files[i]) == 0)
			return true;
	}
	if (strcmp(name, "MACHINE") == 0 || (is_positional && strcmp(name, "NAME") == 0))
		offer_names_in(c, paths_data("vms", NULL), "machine");
	else if (strcmp(name, "IMAGE") == 0)
		offer_names_in(c, paths_data("images", NULL), "image");
	else if (strcmp(name, "LAB") == 0)
		offer_names_in(c, paths_run(".labs", NULL, NULL), "lab");
	else if (strcmp(name, "SNAPSHOT") == 0)
		offer_snapshots(c, false);
	else if (strcmp(name, "MACHINE@SNAPSHOT") == 0)
		offer_snapshots(c, true);
	else if (name[0] >= 'a' && name[0] <= 'z' && !strpbrk(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
		offer(c, name, "");
	return false;
}

/* "[MACHINE|NAME...]" or "FILE[,ro][,format=F]": brackets, dots and what follows a comma are left out. */
static void offer_values(const struct completion *c, const char *meta, size_t len, bool is_positional)
{
	char name[64];
	bool wants_file = false;
	size_t n = 0;

	for (size_t i = 0; i <= len; i++) {
		bool is_end = i == len || meta[i] == ',' || strncmp(meta + i, "...", 3) == 0;

		if (is_end || meta[i] == '|') {
			name[n] = 0;
			wants_file |= offer_kind(c, name, is_positional);
			n = 0;
		} else if (meta[i] != '[' && meta[i] != ']' && n < sizeof(name) - 1) {
			name[n++] = meta[i];
		}
		if (is_end)
			break;
	}
	if (wants_file)
		fprintf(c->out, ":files\n");
}

/* ---- what stands at the cursor ---- */

/* The @k-th word of @usage, or the last one if that may be repeated.  NULL: none. */
static const char *usage_word(const char *usage, unsigned k, size_t *len)
{
	for (const char *p = usage;;) {
		p += strspn(p, " ");
		*len = strcspn(p, " ");
		if (!*len || strncmp(p, "--", 2) == 0 || strncmp(p, "[--", 3) == 0)
			return NULL;
		bool repeats = *len >= 3 && memmem(p, *len, "...", 3);
		if (k-- == 0 || repeats)
			return p;
		p += *len;
	}
}

static void offer_options(const struct completion *c)
{
	char word[80];

	for (const struct opt *o = c->cmd->opts; o->kind != OPT_KIND_END; o++) {
		snprintf(word, sizeof(word), "--%s", o->name);
		offer(c, word, o->help);
	}
	offer(c, "--help", "show this text");
}

static void offer_value_of(const struct completion *c, const struct opt *o)
{
	if (o->kind == OPT_KIND_CHOICE) {
		for (int i = 0; o->choices[i]; i++)
			offer(c, o->choices[i], o->help);
	} else if (o->metavar) {
		offer_values(c, o->metavar, strlen(o->metavar), false);
	}
}

static void offer_verbs(const struct completion *c)
{
	for (const struct verb *v = cli_verbs; v->name; v++) {
		if (v->summary)
			offer(c, v->name, v->summary);
	}
}

static const struct opt *find_option(const struct opts_cmd *cmd, const char *name, size_t len)
{
	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++) {
		if (strlen(o->name) == len && strncmp(o->name, name, len) == 0)
			return o;
	}
	return NULL;
}

/* Does option @word take the next one as its value? */
static const struct opt *option_that_needs(const struct opts_cmd *cmd, const char *word)
{
	if (word[0] != '-' || !word[1])
		return NULL;
	if (word[1] == '-') {
		const struct opt *o = find_option(cmd, word + 2, strlen(word + 2));

		return o && o->kind != OPT_KIND_FLAG ? o : NULL;
	}
	for (const char *p = word + 1; *p; p++) {
		const struct opt *o = cmd->opts;

		while (o->kind != OPT_KIND_END && o->letter != *p)
			o++;
		if (o->kind != OPT_KIND_FLAG)
			return o->kind != OPT_KIND_END && !p[1] ? o : NULL;
	}
	return NULL;
}

static void take_argument(struct completion *c, const char *word)
{
	size_t len;
	const char *what = usage_word(c->usage, c->nargs++, &len);

	if (what && !c->machine && (strncmp(what, "MACHINE", 7) == 0 || strncmp(what, "NAME", 4) == 0))
		c->machine = word;
}

static bool take_action(struct completion *c, const char *word)
{
	struct opts_action a;

	for (unsigned i = 0; c->verb->cmd->action(i, &a); i++) {
		if (strcmp(a.name, word) != 0)
			continue;
		c->usage = a.usage;
		if (a.cmd) {
			c->cmd = a.cmd;
			c->max_args = a.cmd->max_args;
		} else {
			c->max_args = c->cmd->max_args - 1;
		}
		return true;
	}
	return false;
}

/* All words but the last.  False: one of them makes no sense. */
static bool walk(struct completion *c, char *const *words, unsigned n)
{
	bool awaits_action = c->cmd->action != NULL;

	for (unsigned i = 0; i + 1 < n; i++) {
		const char *word = words[i];

		if (c->needs) {
			c->needs = NULL;
		} else if (!c->is_literal && strcmp(word, "--") == 0) {
			c->is_literal = true;
			c->is_command = c->cmd->takes_command;
		} else if (!c->is_literal && word[0] == '-' && word[1]) {
			c->needs = option_that_needs(c->cmd, word);
		} else if (awaits_action) {
			if (!take_action(c, word))
				return false;
			awaits_action = false;
		} else {
			take_argument(c, word);
		}
	}
	if (awaits_action)
		c->usage = NULL;
	return true;
}

static void offer_argument(const struct completion *c)
{
	struct opts_action a;
	size_t len;

	if (!c->usage) {
		for (unsigned i = 0; c->cmd->action(i, &a); i++)
			offer(c, a.name, a.summary);
		return;
	}
	const char *what = c->nargs < c->max_args ? usage_word(c->usage, c->nargs, &len) : NULL;

	if (what)
		offer_values(c, what, len, true);
}

void completion_words(char *const *words, unsigned n, FILE *out)
{
	struct completion c = { .current = n ? words[n - 1] : "", .out = out };

	if (n < 2)
		return;
	if (n == 2 || strcmp(words[1], "help") == 0) {
		if (n <= 3)
			offer_verbs(&c);
		if (n == 2)
			offer(&c, "help", "tell more about a verb");
		return;
	}
	for (c.verb = cli_verbs; c.verb->name && strcmp(c.verb->name, words[1]) != 0; c.verb++)
		continue;
	if (!c.verb->name || !c.verb->cmd)
		return;
	c.cmd = c.verb->cmd;
	c.usage = c.cmd->usage;
	c.max_args = c.cmd->max_args;
	if (!walk(&c, words + 2, n - 2) || c.is_command)
		return;
	const char *eq = c.current[0] == '-' && c.current[1] == '-' ? strchr(c.current, '=') : NULL;

	if (c.needs) {
		offer_value_of(&c, c.needs);
	} else if (eq && !c.is_literal) {
		const struct opt *o = find_option(c.cmd, c.current + 2, (size_t)(eq - c.current - 2));

		c.prefix_end = eq + 1;
		if (o && o->kind != OPT_KIND_FLAG)
			offer_value_of(&c, o);
	} else if (c.current[0] == '-' && !c.is_literal) {
		offer_options(&c);
	} else {
		offer_argument(&c);
	}
}
