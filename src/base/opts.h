/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Option tables: one row an option; the parser, the help text, the manual pages and the "did you
 * mean" all read the same rows.
 *
 *   static const struct opt run_opts[] = {
 *           OPT_SIZE(struct run_args, mem_bytes, "mem", "SIZE", "guest memory", 1 * MIB, 1ULL << 40),
 *           OPT_END,
 *   };
 *
 * The caller puts defaults into the object, then parses over it.
 */
#ifndef VIV_BASE_OPTS_H
#define VIV_BASE_OPTS_H

#include <stdio.h>

#include "base/error.h"

enum opt_kind {
	OPT_KIND_END,
	OPT_KIND_FLAG,	   /* bool; --name sets it, --no-name clears it */
	OPT_KIND_STRING,   /* const char *, borrowed from argv */
	OPT_KIND_LIST,	   /* struct opt_list; may be given again and again */
	OPT_KIND_UINT,	   /* uint64_t, decimal or 0x */
	OPT_KIND_SIZE,	   /* uint64_t bytes: 4096, 512K, 512M, 2G, 1T (powers of 1024) */
	OPT_KIND_DURATION, /* int64_t ns: 10ns, 5us, 300ms, 5s, 2m, 1h; a unit is needed unless 0 */
	OPT_KIND_CHOICE,   /* int: index in @choices */
};

struct opt_list {
	const char **v; /* the strings are borrowed from argv; the array is freed by opts_free */
	unsigned n;
};

struct opt {
	const char *name;	    /* without the dashes */
	char letter;		    /* -x, or 0 */
	uint8_t kind;		    /* enum opt_kind */
	uint32_t offset;	    /* in the object */
	const char *metavar;	    /* "SIZE"; NULL for flags */
	const char *help;	    /* one line, lower case, no full stop */
	uint64_t min, max;	    /* UINT, SIZE, DURATION; max 0: no bound */
	const char *const *choices; /* CHOICE: NULL-terminated */
};

#define OPT_(kind_, type, member, ctype, name_, meta, help_, ...)                                              \
	{                                                                                                      \
		.name = name_, .kind = kind_,                                                                  \
		.offset = offsetof(type, member) +                                                             \
			  0 * sizeof((ctype *)0 == &((type *)0)->member), /* the member has the kind's type */ \
			.metavar = meta, .help = help_, __VA_ARGS__                                            \
	}
#define OPT_FLAG(type, member, name, help) OPT_(OPT_KIND_FLAG, type, member, bool, name, NULL, help)
#define OPT_FLAG_L(type, member, name, letter_, help)                                              \
	OPT_(OPT_KIND_FLAG, type, member, bool, name, NULL, help, .letter = letter_)
#define OPT_STRING(type, member, name, meta, help)                                                 \
	OPT_(OPT_KIND_STRING, type, member, const char *, name, meta, help)
#define OPT_STRING_L(type, member, name, letter_, meta, help)                                      \
	OPT_(OPT_KIND_STRING, type, member, const char *, name, meta, help, .letter = letter_)
#define OPT_LIST(type, member, name, meta, help)                                                   \
	OPT_(OPT_KIND_LIST, type, member, struct opt_list, name, meta, help)
#define OPT_UINT(type, member, name, meta, help, min_, max_)                                       \
	OPT_(OPT_KIND_UINT, type, member, uint64_t, name, meta, help, .min = min_, .max = max_)
#define OPT_UINT_L(type, member, name, letter_, meta, help, min_, max_)                            \
	OPT_(OPT_KIND_UINT, type, member, uint64_t, name, meta, help, .letter = letter_,           \
	     .min = min_, .max = max_)
#define OPT_SIZE(type, member, name, meta, help, min_, max_)                                       \
	OPT_(OPT_KIND_SIZE, type, member, uint64_t, name, meta, help, .min = min_, .max = max_)
#define OPT_DURATION(type, member, name, meta, help, min_, max_)                                   \
	OPT_(OPT_KIND_DURATION, type, member, int64_t, name, meta, help, .min = min_, .max = max_)
#define OPT_CHOICE(type, member, name, meta, help, choices_)                                       \
	OPT_(OPT_KIND_CHOICE, type, member, int, name, meta, help, .choices = choices_)
#define OPT_END                                                                                    \
	{                                                                                          \
		.kind = OPT_KIND_END                                                               \
	}

struct opts_cmd;
struct opts_action { /* "create" of viv snapshot */
	const char *name;
	const char *usage;	    /* its positional arguments, or "" */
	const char *summary;	    /* one line */
	const struct opts_cmd *cmd; /* its own options and help; NULL: those of the command */
};

struct opts_cmd {
	const char *name;    /* "viv run" */
	const char *usage;   /* positional part: "[IMAGE] [-- CMD...]", or "" */
	const char *summary; /* one line */
	const char *details; /* further paragraphs for help, or NULL */
	const struct opt *opts;
	unsigned min_args, max_args; /* positional arguments */
	bool takes_command;	     /* everything after "--" is a command of its own */
	bool stops_at_args;	     /* options end at the first positional argument (a verb) */
	/* The first argument is one of these: true and *@out for the i-th, false at the end.  NULL: it has none. */
	bool (*action)(unsigned i, struct opts_action *out);
};

struct opts_rest {	   /* borrowed from argv; the arrays are freed by opts_free */
	const char **args; /* positional, NULL-terminated */
	unsigned nargs;
	char **command; /* after "--", NULL-terminated inside argv; NULL when absent */
	unsigned ncommand;
	unsigned next; /* stops_at_args: index in argv of the first positional argument, or argc */
};

enum opts_result { OPTS_OK = 0, OPTS_HELP = 1 }; /* or a negative errno */

/**
 * opts_parse() - read argv[1..] by the table into @obj.
 * Accepts --name VALUE, --name=VALUE, -x VALUE, -xVALUE, -xy for flags; --help and -h are built in.
 * Returns OPTS_OK; OPTS_HELP when help was asked for (the caller prints opts_help); -EINVAL with
 * one sentence in @err; -ENOMEM.  After OPTS_OK and OPTS_HELP the caller calls opts_free; on errors
 * nothing is left to free.
 */
int opts_parse(const struct opts_cmd *cmd, int argc, char **argv, void *obj, struct opts_rest *rest,
	       struct error *err);
/** opts_free() - the lists in @obj and the arrays in @rest; safe to repeat. */
void opts_free(const struct opts_cmd *cmd, void *obj, struct opts_rest *rest);

/** opts_help() - the help text, generated from the table. */
void opts_help(const struct opts_cmd *cmd, FILE *out);
/** opts_option_text() - "--engine raw|qcow2", "-o, --output FILE" into @buf (cap @cap), which is returned; cut off at @cap. */
const char *opts_option_text(const struct opt *o, char *buf, size_t cap);

/* Values, also for configuration files.  Return 0, -EINVAL (not a number, no such unit), -ERANGE
 * (does not fit); @out untouched on failure. */
int opts_parse_uint(const char *text, uint64_t *out);
int opts_parse_size(const char *text, uint64_t *bytes);
int opts_parse_duration(const char *text, int64_t *ns);

/** opts_format_size() - shortest exact form ("512M") into @buf, which is returned. */
const char *opts_format_size(uint64_t bytes, char buf[32]);

/**
 * opts_suggest() - the name in the NULL-terminated @names nearest to @word, or NULL when none is
 * near enough to be what was meant.
 */
const char *opts_suggest(const char *word, const char *const *names);

/**
 * opts_subvalue() - walk "FILE,ro,format=qcow2": each call gives the next part.
 * @cursor: starts at the text, ends NULL.  A part is copied to @key (cap @cap); at its '=' it is cut
 * and *@value points to the rest inside @key, else *@value is NULL.  ",," stands for a comma.
 * Returns 1 for a part, 0 at the end, -EINVAL when it does not fit.
 */
int opts_subvalue(const char **cursor, char *key, size_t cap, const char **value);

#endif
