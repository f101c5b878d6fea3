/* SPDX-License-Identifier: Apache-2.0 */
/* `viv image create|info|check|resize|convert|flatten|rebase|commit|compact`: work on image files. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "block/image.h"
#include "cli/cli.h"
#include "cli/image.h"

enum { FORMAT_BY_NAME, FORMAT_RAW, FORMAT_QCOW2 };
static const char *const format_choices[] = { "by-name", "raw", "qcow2", NULL };
static const char *const compression_choices[] = { "zlib", "zstd", NULL };

struct args {
	int format, to, backing_format, compression;
	const char *base;
	struct opt_list backing;
	uint64_t cluster_bytes, refcount_bits;
	bool is_v2, has_ext, is_lazy, force, json, repair, shrink, compress;
};

#define OPT_FORMAT(member, name, help)                                                             \
	OPT_CHOICE(struct args, member, name, "raw|qcow2", help, format_choices)
#define OPT_BACKING                                                                                \
	OPT_LIST(struct args, backing, "backing", "PATH",                                          \
		 "a file, or folder of files, that the image may stand on; may be given again")
#define OPT_FORCE OPT_FLAG_L(struct args, force, "force", 'f', "replace the file if it exists")
#define OPT_NEW                                                                                        \
	OPT_SIZE(struct args, cluster_bytes, "cluster-size", "SIZE",                                   \
		 "512 to 2M, 64K if not given", 512, 2 * MIB),                                         \
		OPT_UINT(struct args, refcount_bits, "refcount-bits", "N",                             \
			 "1 to 64, 16 if not given", 1, 64),                                           \
		OPT_FLAG(struct args, is_v2, "v2", "qcow2 version 2, for old programs (compat=0.10)"), \
		OPT_FLAG(struct args, has_ext, "extended-l2",                                          \
			 "clusters in 32 parts: less copying on layers"),                              \
		OPT_FLAG(struct args, is_lazy, "lazy-refcounts",                                       \
			 "faster flushes, repaired after a crash"),                                    \
		OPT_CHOICE(struct args, compression, "compression", "zlib|zstd",                       \
			   "of compressed clusters", compression_choices)

/* ---- common ---- */

static volatile sig_atomic_t is_interrupted;

static void on_interrupt(int sig)
{
	(void)sig;
	is_interrupted = 1;
}

static bool tick(void *arg, uint64_t done, uint64_t total)
{
	progress_tick(arg, total ? (int)(done * 1000.0 / (double)total) : -1);
	return is_interrupted;
}

/* Ctrl-C stops the work in order: half-made files go. */
static struct image_progress start(struct progress *p, const char *what)
{
	struct sigaction sa = { .sa_handler = on_interrupt };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	*p = (struct progress){ .what = what };
	if (isatty(STDERR_FILENO))
		progress_start(p, what);
	return (struct image_progress){ tick, p };
}

/* The format as given or by the file's name; never by its content. */
static int format_of(int choice, const char *path, const char **out, struct error *err)
{
	const char *dot = strrchr(path, '.');

	if (choice == FORMAT_BY_NAME && dot && strcmp(dot, ".qcow2") == 0)
		choice = FORMAT_QCOW2;
	else if (choice == FORMAT_BY_NAME && dot &&
		 (strcmp(dot, ".raw") == 0 || strcmp(dot, ".img") == 0))
		choice = FORMAT_RAW;
	if (choice == FORMAT_BY_NAME)
		return error_set(err, -EINVAL, "the name '%s' doesn't tell the format (.qcow2, .raw, .img); say it with an option",
				 path);
	*out = format_choices[choice];
	return 0;
}

/* An existing image as the arguments allow it to be opened; @paths lives as long. */
static int open_of(const struct args *a, const char *path, struct block_backing_rule *rule,
		   const char ***paths, struct block_open *o, struct error *err)
{
	*o = (struct block_open){ .path = path };
	int r = format_of(a->format, path, &o->format, err);

	if (r < 0 || !a->backing.n)
		return r;
	*paths = calloc(a->backing.n + 1, sizeof(char *));
	if (!*paths)
		return error_set(err, -ENOMEM, "out of memory");
	memcpy(*paths, a->backing.v, a->backing.n * sizeof(char *));
	*rule = (struct block_backing_rule){ .paths = *paths };
	o->backing = rule;
	return 0;
}

static struct image_create new_of(const struct args *a, const char *format)
{
	return (struct image_create){
		.format = format,
		.cluster_bytes = a->cluster_bytes,
		.refcount_bits = (unsigned)a->refcount_bits,
		.is_v2 = a->is_v2,
		.has_extended_l2 = a->has_ext,
		.has_lazy_refcounts = a->is_lazy,
		.compression = a->compression ? IMAGE_ZSTD : IMAGE_ZLIB,
		.may_replace = a->force,
	};
}

static int parse_size(const char *text, uint64_t *out, struct error *err)
{
	return opts_parse_size(text, out) == 0
		       ? 0
		       : error_set(err, -EINVAL, "\"%s\" is no size; write it as 20G or 512M", text);
}

/* ---- create, info ---- */

static int do_create(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	const char *format;
	int r = format_of(a->format, rest->args[0], &format, err);
	struct image_create c = new_of(a, format);

	c.backing_path = a->base;
	if (r == 0 && a->base)
		r = format_of(a->backing_format, a->base, &c.backing_format, err);
	if (r == 0 && rest->nargs == 2)
		r = parse_size(rest->args[1], &c.size_bytes, err);
	else if (r == 0 && !a->base)
		r = error_set(err, -EINVAL, "say the size of the disk: viv image create %s 20G",
			      rest->args[0]);
	return r == 0 ? image_create(rest->args[0], &c, err) : r;
}

static json_t *info_json(const char *path, const struct image_info *i)
{
	json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I}", "file", path, "format", i->format, "size",
			      (json_int_t)i->size_bytes, "file_bytes", (json_int_t)i->file_bytes,
			      "allocated_bytes", (json_int_t)i->allocated_bytes);
	json_t *more =
		!o || !i->version
			? json_object()
			: json_pack("{s:i, s:I, s:i, s:b, s:b, s:b, s:b, s:s, s:i, s:s?, s:s?}",
				    "version", (int)i->version, "cluster_bytes",
				    (json_int_t)i->cluster_bytes, "refcount_bits", (int)i->refcount_bits,
				    "extended_l2", i->has_extended_l2, "lazy_refcounts",
				    i->has_lazy_refcounts, "dirty", i->is_dirty, "corrupt",
				    i->is_corrupt, "compression", compression_choices[i->compression],
				    "internal_snapshots", (int)i->nsnapshots, "backing",
				    i->backing_path, "backing_format", i->backing_format);

	if (!more || json_object_update(o, more) < 0) {
		json_decref(o);
		o = NULL;
	}
	json_decref(more);
	return o;
}

static void print_info(const char *path, const struct image_info *i)
{
	char size[32];

	printf("%s: %s, a disk of %s\n", path, i->format, opts_format_size(i->size_bytes, size));
	printf("  on the host: %.1f MiB\n", (double)i->allocated_bytes / (double)MIB);
	if (!i->version)
		return;
	printf("  version %u, clusters of %s, reference counts of %u bits, %s%s%s\n", i->version,
	       opts_format_size(i->cluster_bytes, size), i->refcount_bits,
	       compression_choices[i->compression], i->has_extended_l2 ? ", extended L2 entries" : "",
	       i->has_lazy_refcounts ? ", lazy refcounts" : "");
	if (i->backing_path)
		printf("  stands on %s (%s)\n", i->backing_path, i->backing_format ?: "no format given");
	if (i->nsnapshots)
		printf("  %u internal snapshots\n", i->nsnapshots);
	if (i->is_dirty)
		printf("  was not closed in order; the next machine that uses it repairs it\n");
	if (i->is_corrupt)
		printf("  is marked as damaged; see viv image check --repair\n");
}

static int do_info(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	const char *format;
	struct image_info i;
	int r = format_of(a->format, rest->args[0], &format, err);

	if (r == 0)
		r = image_info(rest->args[0], format, &i, err);
	if (r < 0)
		return r;
	if (a->json)
		r = cli_print_json(info_json(rest->args[0], &i)) == EXIT_FINE
			    ? 0
			    : error_set(err, -EIO, "cannot print");
	else
		print_info(rest->args[0], &i);
	image_info_free(&i);
	return r;
}

/* ---- check ---- */

static int print_check(const char *path, const struct args *a, const struct image_check *c)
{
	if (a->json)
		return cli_print_json(
			json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s}", "file", path, "errors",
				  (json_int_t)c->nerrors, "leaks", (json_int_t)c->nleaks, "fixed",
				  (json_int_t)c->nfixed, "clusters", (json_int_t)c->nclusters,
				  "used", (json_int_t)c->nused, "end_bytes",
				  (json_int_t)c->end_bytes, "first_error", c->first_error));
	if (!c->nerrors && !c->nleaks)
		printf("%s: no errors\n", path);
	else
		printf("%s: %llu errors, %llu lost clusters, %llu of them put right\n", path,
		       (unsigned long long)c->nerrors, (unsigned long long)c->nleaks,
		       (unsigned long long)c->nfixed);
	if (c->nerrors)
		printf("  the first: %s\n", c->first_error);
	if (c->nclusters)
		printf("  %llu of %llu clusters in use\n", (unsigned long long)c->nused,
		       (unsigned long long)c->nclusters);
	return EXIT_FINE;
}

static int do_check(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	const char *path = rest->args[0], *format;
	struct image_check c;
	struct progress p;
	int r = format_of(a->format, path, &format, err);

	if (r < 0)
		return r;
	const struct image_progress tell = start(&p, "checking");
	r = image_check(path, format, a->repair, &c, &tell, err);
	progress_end(&p);
	if (r < 0)
		return r;
	if (print_check(path, a, &c) != EXIT_FINE)
		return error_set(err, -EIO, "cannot print");
	if (c.nerrors + c.nleaks > c.nfixed && (c.nerrors || a->repair))
		return error_set(err, -EIO, "'%s' %s", path,
				 a->repair ? "could not be put right wholly"
					   : "is damaged; --repair puts right what it can");
	return 0;
}

/* ---- the rest ---- */

static int do_resize(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	struct block_backing_rule rule;
	const char **paths = NULL;
	struct block_open o;
	uint64_t size;
	int r = open_of(a, rest->args[0], &rule, &paths, &o, err);

	if (r == 0)
		r = parse_size(rest->args[1], &size, err);
	if (r == 0)
		r = image_resize(&o, size, a->shrink, err);
	free(paths);
	return r;
}

static int do_convert(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	struct block_backing_rule rule;
	const char **paths = NULL, *to;
	struct block_open o;
	struct progress p;
	int r = open_of(a, rest->args[0], &rule, &paths, &o, err);

	if (r == 0)
		r = format_of(a->to, rest->args[1], &to, err);
	if (r == 0) {
		const struct image_create c = new_of(a, to);
		const struct image_progress tell = start(&p, "converting");
		o.is_readonly = true;
		r = image_convert(&o, rest->args[1], &c, a->compress, &tell, err);
		progress_end(&p);
	}
	free(paths);
	return r;
}

enum merge { FLATTEN, REBASE, COMMIT, COMPACT };

static int merge(const struct args *a, const struct opts_rest *rest, enum merge how,
		 const char *what, struct error *err)
{
	struct block_backing_rule rule;
	const char **paths = NULL, *format = NULL;
	struct block_open o;
	struct progress p;
	int r = open_of(a, rest->args[0], &rule, &paths, &o, err);

	if (r == 0 && how == REBASE)
		r = format_of(a->backing_format, rest->args[1], &format, err);
	if (r == 0) {
		const struct image_progress tell = start(&p, what);
		r = how == COMMIT    ? image_commit(&o, &tell, err)
		    : how == COMPACT ? image_compact(&o, &tell, err)
				     : image_rebase(&o, how == REBASE ? rest->args[1] : NULL,
						    format, &tell, err);
		progress_end(&p);
	}
	free(paths);
	return r;
}

static int do_flatten(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	return merge(a, rest, FLATTEN, "flattening", err);
}

static int do_rebase(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	return merge(a, rest, REBASE, "rebasing", err);
}

static int do_commit(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	return merge(a, rest, COMMIT, "committing", err);
}

static int do_compact(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	return merge(a, rest, COMPACT, "compacting", err);
}

static int do_import(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	const char *to;
	int r = format_of(a->to, rest->args[1], &to, err);

	return r == 0 ? image_import(rest->args[0], rest->args[1], to, a->force, err) : r;
}

/* ---- the verbs ---- */

static const struct opt create_opts[] = {
	OPT_FORMAT(format, "format", "of the image; by its name if not given"),
	OPT_STRING(struct args, base, "backing", "FILE",
		   "the image it stands on, relative to its own folder"),
	OPT_FORMAT(backing_format, "backing-format", "of that; by its name if not given"),
	OPT_NEW,
	OPT_FORCE,
	OPT_END,
};
static const struct opt info_opts[] = {
	OPT_FORMAT(format, "format", "of the image; by its name if not given"),
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
static const struct opt check_opts[] = {
	OPT_FORMAT(format, "format", "of the image; by its name if not given"),
	OPT_FLAG(struct args, repair, "repair", "put right what can be"),
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
static const struct opt resize_opts[] = {
	OPT_FORMAT(format, "format", "of the image; by its name if not given"),
	OPT_FLAG(struct args, shrink, "shrink", "the end of the disk may be lost"),
	OPT_BACKING,
	OPT_END,
};
static const struct opt convert_opts[] = {
	OPT_FORMAT(format, "from", "format of the first; by its name if not given"),
	OPT_FORMAT(to, "to", "format of the second; by its name if not given"),
	OPT_FLAG_L(struct args, compress, "compress", 'c', "compress the clusters (qcow2)"),
	OPT_NEW,
	OPT_BACKING,
	OPT_FORCE,
	OPT_END,
};
static const struct opt merge_opts[] = {
	OPT_FORMAT(format, "format", "of the image; by its name if not given"),
	OPT_BACKING,
	OPT_END,
};
static const struct opt rebase_opts[] = {
	OPT_FORMAT(format, "format", "of the image; by its name if not given"),
	OPT_FORMAT(backing_format, "backing-format", "of the new base; by its name if not given"),
	OPT_BACKING,
	OPT_END,
};
static const struct opt import_opts[] = {
	OPT_FORMAT(to, "to", "format of the second; by its name if not given"),
	OPT_FORCE,
	OPT_END,
};

struct file_verb {
	const char *name;
	int (*run)(const struct args *a, const struct opts_rest *rest, struct error *err);
	struct opts_cmd cmd;
};

#define VERB(name_, fn, usage_, min, max, opts_, summary_)                                         \
	{                                                                                          \
		name_, fn,                                                                         \
		{                                                                                  \
			.name = "viv image " name_, .usage = usage_, .summary = summary_,          \
			.opts = opts_, .min_args = min, .max_args = max                            \
		}                                                                                  \
	}
// clang-format off
static const struct file_verb verbs[] = {
	VERB("create",  do_create,  "FILE [SIZE]", 1, 2, create_opts,  "make a disk image"),
	VERB("info",    do_info,    "FILE",        1, 1, info_opts,    "what a disk image is"),
	VERB("check",   do_check,   "FILE",        1, 1, check_opts,   "look for damage in a qcow2 image, and put it right"),
	VERB("resize",  do_resize,  "FILE SIZE",   2, 2, resize_opts,  "set the size of the disk in an image"),
	VERB("convert", do_convert, "FROM TO",     2, 2, convert_opts, "copy a disk into a new image of any format"),
	VERB("flatten", do_flatten, "FILE",        1, 1, merge_opts,   "make an image stand alone: copy up what lies below"),
	VERB("rebase",  do_rebase,  "FILE BASE",   2, 2, rebase_opts,  "put an image on another base; its disk stays the same"),
	VERB("commit",  do_commit,  "FILE",        1, 1, merge_opts,   "write what an image holds into the one it stands on"),
	VERB("compact", do_compact, "FILE",        1, 1, merge_opts,   "write an image anew, without room it doesn't use"),
	VERB("import",  do_import,  "FROM TO",     2, 2, import_opts,  "make an image of a VMDK, VHDX, VHD or VDI file (needs qemu-img)"),
};
// clang-format on

bool cli_image_file(int argc, char **argv, int *status)
{
	for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++) {
		const struct file_verb *v = &verbs[i];
		struct args a = { 0 };
		struct opts_rest rest;
		struct error err;
		if (strcmp(argv[1], v->name) != 0)
			continue;
		if (!cli_parse(&v->cmd, argc - 1, argv + 1, &a, &rest, status))
			return true;
		*status = v->run(&a, &rest, &err) < 0 ? cli_fail(&err) : EXIT_FINE;
		opts_free(&v->cmd, &a, &rest);
		return true;
	}
	return false;
}

bool cli_image_file_action(unsigned i, struct opts_action *out)
{
	if (i >= ARRAY_SIZE(verbs))
		return false;
	const struct file_verb *v = &verbs[i];

	*out = (struct opts_action){ v->name, v->cmd.usage, v->cmd.summary, &v->cmd };
	return true;
}
