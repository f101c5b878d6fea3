/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv man`, internal: the manual pages, from the table of verbs and their option tables.  The build runs it.
 * Language: man(7) of groff; "-" is written "\-" where it can be typed, groff_char(7).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "ctl/paths.h"

struct args {
	const char *dir;
};
static const struct opt man_opts[] = {
	OPT_STRING(struct args, dir, "dir", "PATH", "write all pages into this folder"),
	OPT_END,
};
static const struct opts_cmd man_cmd = {
	.name = "viv man",
	.usage = "[VERB]",
	.summary = "internal: manual pages, viv(1) or that of a verb",
	.opts = man_opts,
	.max_args = 1,
};

/* ---- roff ---- */

/* @len bytes, so that no character of it means something to roff. */
static void put_text(FILE *out, const char *text, size_t len, bool is_line_start)
{
	if (is_line_start && len && (text[0] == '.' || text[0] == '\''))
		fputs("\\&", out);
	for (size_t i = 0; i < len; i++) {
		switch (text[i]) {
		case '\\':
			fputs("\\e", out);
			break;
		case '-':
			fputs("\\-", out);
			break;
		case '\'':
			fputs("\\(aq", out);
			break;
		case '^':
			fputs("\\(ha", out);
			break;
		case '~':
			fputs("\\(ti", out);
			break;
		case '`':
			fputs("\\(ga", out);
			break;
		default:
			fputc(text[i], out);
		}
	}
}

static void put(FILE *out, const char *text)
{
	put_text(out, text, strlen(text), false);
}

static void put_line(FILE *out, const char *text)
{
	put_text(out, text, strlen(text), true);
	fputc('\n', out);
}

/* Paragraphs are parted by empty lines; sentences begin on lines of their own, as man-pages(7) wants it. */
static void put_paragraphs(FILE *out, const char *text)
{
	while (*text) {
		const char *stop = strstr(text, ".  ");
		size_t len = strcspn(text, "\n");

		if (len == 0) {
			fputs(".PP\n", out);
			text += strspn(text, "\n");
			continue;
		}
		if (stop && (size_t)(stop - text) < len) {
			put_text(out, text, (size_t)(stop - text) + 1, true);
			text = stop + 1 + strspn(stop + 1, " ");
		} else {
			put_text(out, text, len, true);
			text += len + (text[len] == '\n');
		}
		fputc('\n', out);
	}
}

/* ---- parts of a page ---- */

static void put_head(FILE *out, const char *page, const char *summary)
{
	char upper[64];
	size_t i;

	for (i = 0; page[i] && i < sizeof(upper) - 1; i++)
		upper[i] = (char)(page[i] >= 'a' && page[i] <= 'z' ? page[i] - 32 : page[i]);
	upper[i] = 0;
	fputs(".\\\" Made by viv from its option tables; not to be edited.\n", out);
	fprintf(out, ".TH %s 1 \"\" \"Vivarium %s\" \"User Commands\"\n.SH NAME\n", upper, VIV_VERSION);
	put(out, page);
	fputs(" \\- ", out);
	put_line(out, summary);
}

static void put_options(FILE *out, const struct opts_cmd *cmd)
{
	char left[256];

	for (const struct opt *o = cmd->opts; o->kind != OPT_KIND_END; o++) {
		fputs(".TP\n.B ", out);
		put_line(out, opts_option_text(o, left, sizeof(left)));
		put_line(out, o->help);
	}
}

static bool has_options(const struct opts_cmd *cmd)
{
	return cmd->opts->kind != OPT_KIND_END;
}

static void put_actions(FILE *out, const struct opts_cmd *cmd)
{
	struct opts_action a;

	fputs(".SH ACTIONS\n", out);
	for (unsigned i = 0; cmd->action(i, &a); i++) {
		fputs(".TP\n.B ", out);
		put(out, a.name);
		put_text(out, " ", *a.usage ? 1 : 0, false);
		put_line(out, a.usage);
		put_line(out, a.cmd ? a.cmd->summary : a.summary);
		if (a.cmd && (has_options(a.cmd) || a.cmd->details)) {
			fputs(".RS\n", out);
			if (a.cmd->details) {
				fputs(".PP\n", out);
				put_paragraphs(out, a.cmd->details);
			}
			put_options(out, a.cmd);
			fputs(".RE\n", out);
		}
	}
}

static void put_verb_page(FILE *out, const struct verb *v)
{
	char page[64];

	snprintf(page, sizeof(page), "viv-%s", v->name);
	put_head(out, page, v->cmd->summary);
	fputs(".SH SYNOPSIS\n.B ", out);
	put(out, v->cmd->name);
	fputs("\n[OPTIONS] ", out);
	put_line(out, v->cmd->usage);
	if (v->cmd->details) {
		fputs(".SH DESCRIPTION\n", out);
		put_paragraphs(out, v->cmd->details);
	}
	if (v->cmd->action)
		put_actions(out, v->cmd);
	fputs(".SH OPTIONS\n", out);
	put_options(out, v->cmd);
	fputs(".TP\n.B \\-h, \\-\\-help\nshow a help text\n", out);
	fputs(".SH SEE ALSO\n.BR viv (1)\n", out);
}

static void put_main_page(FILE *out)
{
	put_head(out, "viv", "virtual machines, with or without hardware virtualization");
	fputs(".SH SYNOPSIS\n.B viv\nVERB [OPTIONS] ...\n.SH VERBS\n", out);
	for (const struct verb *v = cli_verbs; v->name; v++) {
		if (!v->summary)
			continue;
		fprintf(out, ".TP\n.BR viv\\-%s (1)\n", v->name);
		put_line(out, v->summary);
	}
	fputs(".SH VALUES\n"
	      "A SIZE is a number of bytes or has a unit of 1024: 512K, 512M, 2G.\n"
	      "A TIME has a unit: 300ms, 5s, 2m, 1h.\n"
	      "An option without a value is taken back by \\-\\-no\\- before its name.\n"
	      ".SH EXIT STATUS\n"
	      "0 if all went well, 1 if the operation failed, 2 if the command line makes no "
	      "sense;\n"
	      "with a command for the guest, the status of that command.\n"
	      ".SH ENVIRONMENT\n"
	      ".TP\n.B VIVARIUM_CONFINE\n"
	      "off: the process of a machine that is started has the user's rights, to look into "
	      "it with "
	      "a debugger; viv info says so\n"
	      ".TP\n.B VIVARIUM_HOME\n"
	      "where machines and images are, and while they run their sockets\n"
	      ".SH FILES\n"
	      ".TP\n.I $XDG_DATA_HOME/vivarium\n"
	      "machines and images, without VIVARIUM_HOME; \\(ti/.local/share/vivarium if that is "
	      "not set either\n"
	      ".TP\n.I $XDG_RUNTIME_DIR/vivarium\n"
	      "control sockets of running machines\n",
	      out);
}

/* ---- files ---- */

static int write_page(const char *dir, const struct verb *v, struct error *err)
{
	_cleanup_free_ char *path = v ? paths_format(err, "%s/viv-%s.1", dir, v->name)
				      : paths_format(err, "%s/viv.1", dir);

	if (!path)
		return -ENOMEM;
	unlink(path); /* so that the folder is newer than what it was made from */
	FILE *out = fopen(path, "we");

	if (!out)
		return error_set(err, -errno, "cannot write %s: %s", path, strerror(errno));
	if (v)
		put_verb_page(out, v);
	else
		put_main_page(out);
	bool is_bad = ferror(out);

	if (fclose(out) == EOF || is_bad)
		return error_set(err, -EIO, "cannot write %s", path);
	return 0;
}

static int write_all(const char *dir, struct error *err)
{
	int r = paths_make(dir, err);

	if (r == 0)
		r = write_page(dir, NULL, err);
	for (const struct verb *v = cli_verbs; v->name && r == 0; v++) {
		if (v->cmd)
			r = write_page(dir, v, err);
	}
	return r;
}

static int print_page(const char *name, struct error *err)
{
	const struct verb *v = cli_verbs;

	while (name && v->name && strcmp(v->name, name) != 0)
		v++;
	if (!name)
		put_main_page(stdout);
	else if (v->name && v->cmd)
		put_verb_page(stdout, v);
	else
		return error_set(err, -ENOENT, "there is no verb \"%s\"", name);
	return fflush(stdout) == EOF ? error_set(err, -EIO, "cannot write the page") : 0;
}

int cli_man(int argc, char **argv)
{
	struct args a = { 0 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&man_cmd, argc, argv, &a, &rest, &status))
		return status;
	int r = a.dir ? write_all(a.dir, &err) : print_page(rest.args[0], &err);

	status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&man_cmd, &a, &rest);
	return status;
}
