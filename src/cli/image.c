/* SPDX-License-Identifier: Apache-2.0 */
/* `viv image list|build|seal|verify|rm|gc`; add is in image_add.c, the verbs for files in image_files.c. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "cli/cli.h"
#include "cli/image.h"
#include "cli/store.h"
#include "ctl/paths.h"

struct args {
	bool json, force, is_dry;
};
static const struct opt image_opts[] = {
	OPT_FLAG(struct args, json, "json", "with list: print JSON"),
	OPT_FLAG_L(struct args, force, "force", 'f', "with build: make it even if it is up to date"),
	OPT_FLAG(struct args, is_dry, "dry-run", "with gc: only say what would go"),
	OPT_END,
};
// clang-format off
static const struct opts_action actions[] = {
	{ "list",   "",             "show the images there are" },
	{ "build",  "debian",       "make the default image from Debian's own packages; it takes a few minutes" },
	{ "add",    "IMAGE [FILE]", "put a disk, or a kernel, into the image store", &image_add_cmd },
	{ "seal",   "IMAGE...",     "record digests of images' files, and store what they have in common once" },
	{ "verify", "[IMAGE...]",   "compare images' files with their digests" },
	{ "rm",     "IMAGE...",     "remove images; what machines were made of stays" },
	{ "gc",     "",             "remove what no machine, snapshot or image needs" },
};
// clang-format on

static bool action_at(unsigned i, struct opts_action *out)
{
	if (i >= ARRAY_SIZE(actions))
		return cli_image_file_action(i - ARRAY_SIZE(actions), out);
	*out = actions[i];
	return true;
}

const struct opts_cmd cli_image_cmd = {
	.name = "viv image",
	.usage = "ACTION ...",
	.summary = "list, build and remove images; work on image files",
	.details = "The actions from create on work on disk image files, raw and qcow2; each has "
		   "options of its own, which its --help shows.",
	.opts = image_opts,
	.min_args = 1,
	.max_args = 1024,
	.action = action_at,
};

/* ---- list ---- */

static int64_t disk_bytes(const char *name)
{
	static const char *const files[] = { "disk.raw", "disk.qcow2", "vmlinuz", "initrd" };
	int64_t sum = 0;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		_cleanup_free_ char *path = paths_image(name, files[i], NULL);
		struct stat st;

		if (path && stat(path, &st) == 0)
			sum += (int64_t)st.st_blocks * 512;
	}
	return sum;
}

static int is_image(const struct dirent *e)
{
	return paths_check_name("an image", e->d_name, NULL) == 0;
}

static json_t *image_json(const char *name)
{
	struct store_digests d;
	struct image im;
	struct error err;
	json_t *one;

	if (image_load(&im, name, &err) < 0)
		one = json_pack("{s:s, s:s}", "name", name, "error", err.text);
	else
		one = json_pack("{s:s, s:s, s:I, s:b, s:s?}", "name", name, "title", im.title,
				"bytes", (json_int_t)disk_bytes(name), "agent", im.has_agent,
				"digest", store_read(name, &d, &err) == 0 ? d.image : NULL);
	image_free(&im);
	return one;
}

static int list(const struct args *a, struct error *err)
{
	_cleanup_free_ char *dir = paths_data("images", err);
	struct dirent **names = NULL;
	json_t *all = json_array();
	int n = dir ? scandir(dir, &names, is_image, alphasort) : -1;

	if (!dir || (n < 0 && errno != ENOENT)) {
		json_decref(all);
		if (dir)
			error_set(err, -errno, "cannot read %s: %s", dir, strerror(errno));
		return cli_fail(err);
	}
	for (int i = 0; i < n; i++) {
		(void)json_array_append_new(all, image_json(names[i]->d_name));
		free(names[i]);
	}
	free(names);
	if (a->json)
		return cli_print_json(all);
	size_t i;
	json_t *one;

	json_array_foreach(all, i, one)
	{
		const char *title = json_string_value(json_object_get(one, "title"));
		const char *error = json_string_value(json_object_get(one, "error"));

		const char *digest = json_string_value(json_object_get(one, "digest"));

		printf("%-16s %6lld MiB  %-12.12s  %s\n",
		       json_string_value(json_object_get(one, "name")),
		       (long long)json_integer_value(json_object_get(one, "bytes")) / (1024 * 1024),
		       digest ? digest : "-", title ? title : error);
	}
	json_decref(all);
	return EXIT_FINE;
}

/* ---- seal, verify ---- */

static int seal(const char *name, struct error *err)
{
	int r = paths_check_name("an image", name, err);
	_cleanup_free_ char *dir = r == 0 ? paths_image(name, NULL, err) : NULL;
	_cleanup_close_ int own = dir ? store_lock_builder(name, err) : -1;
	_cleanup_close_ int lock = own < 0 ? own : store_lock(false, err);

	if (r == 0 && lock < 0)
		r = lock;
	if (r == 0 && access(dir, F_OK) < 0)
		r = error_set(err, -ENOENT,
			      "there is no image \"%s\"; viv image list shows those there are", name);
	if (r == 0)
		r = store_seal(dir, err);
	return r < 0 ? cli_fail(err) : EXIT_FINE;
}

static int verify(const char *name, struct error *err)
{
	int r = paths_check_name("an image", name, err);

	if (r == 0)
		r = store_verify(name, err);
	if (r < 0)
		return cli_fail(err);
	printf("%s: as recorded\n", name);
	return EXIT_FINE;
}

static int verify_all(struct error *err)
{
	_cleanup_free_ char *dir = paths_data("images", err);
	struct dirent **names = NULL;
	int status = EXIT_FINE, n = dir ? scandir(dir, &names, is_image, alphasort) : -1;

	if (n < 0 && (!dir || errno != ENOENT)) {
		if (dir)
			error_set(err, -errno, "cannot read %s: %s", dir, strerror(errno));
		return cli_fail(err);
	}
	for (int i = 0; i < n; i++) {
		status = MAX(status, verify(names[i]->d_name, err));
		free(names[i]);
	}
	free(names);
	return status;
}

/* ---- build ---- */

/* Beside the program in a source tree's build directory, or where it is installed. */
static char *find_script(struct error *err)
{
	char exe[4096];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	static const char *const places[] = { "../tools/build-image.sh",
					      "../share/vivarium/build-image.sh",
					      "../share/vivarium/tools/build-image.sh" };

	exe[n > 0 ? n : 0] = 0;
	char *slash = strrchr(exe, '/');

	if (slash)
		*slash = 0;
	for (size_t i = 0; slash && i < ARRAY_SIZE(places); i++) {
		char *path = paths_format(err, "%s/%s", exe, places[i]);

		if (!path || access(path, X_OK) == 0)
			return path;
		free(path);
	}
	error_set(err, -ENOENT, "build-image.sh is not where viv is installed; use make image in the source tree");
	return NULL;
}

static int build(const char *name, const struct args *a, struct error *err)
{
	if (strcmp(name, "debian") != 0) {
		error_set(err, -EINVAL, "\"%s\" is not known; debian is", name);
		return cli_fail(err);
	}
	_cleanup_free_ char *script = find_script(err);
	int status = 0;

	if (!script)
		return cli_fail(err);
	fflush(NULL);
	pid_t pid = fork();

	if (pid == 0) {
		execl(script, script, "--name", name, a->force ? "--force" : NULL, NULL);
		fprintf(stderr, "viv: cannot run %s: %s\n", script, strerror(errno));
		_exit(EXIT_FAILED);
	}
	if (pid < 0) {
		error_set(err, -errno, "cannot start a process: %s", strerror(errno));
		return cli_fail(err);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? seal(name, err) : EXIT_FAILED;
}

/* ---- rm, gc ---- */

static int rm(const char *name, struct error *err)
{
	int r = paths_check_name("an image", name, err);

	if (r == 0)
		r = store_remove(name, err);
	return r < 0 ? cli_fail(err) : EXIT_FINE;
}

struct collected {
	uint64_t bytes;
	unsigned n;
};

static void on_gone(void *arg, const char *what, uint64_t bytes)
{
	struct collected *c = arg;

	printf("%-12.12s %6llu MiB\n", what, (unsigned long long)(bytes / MIB));
	c->bytes += bytes;
	c->n++;
}

static int gc(const struct args *a, struct error *err)
{
	struct collected c = { 0 };
	int r = store_collect(a->is_dry, on_gone, &c, err);

	cli_note("%s %u file%s, %llu MiB", a->is_dry ? "would remove" : "removed", c.n,
		 c.n == 1 ? "" : "s", (unsigned long long)(c.bytes / MIB));
	return r < 0 ? cli_fail(err) : EXIT_FINE;
}

static int usage(const char *text)
{
	struct error err;

	error_set(&err, -EINVAL, "%s", text);
	return cli_usage(&cli_image_cmd, &err);
}

static int each(const struct opts_rest *rest, int (*run)(const char *name, struct error *err),
		struct error *err)
{
	int status = EXIT_FINE;

	for (unsigned i = 1; i < rest->nargs; i++)
		status = MAX(status, run(rest->args[i], err));
	return status;
}

static int dispatch(const struct args *a, const struct opts_rest *rest, struct error *err)
{
	const char *what = rest->args[0];
	bool is_alone = rest->nargs == 1;

	if (strcmp(what, "list") == 0)
		return is_alone ? list(a, err) : usage("list takes no names");
	if (strcmp(what, "build") == 0)
		return rest->nargs == 2 ? build(rest->args[1], a, err) : usage("build takes one name");
	if (strcmp(what, "seal") == 0)
		return is_alone ? usage("seal takes names") : each(rest, seal, err);
	if (strcmp(what, "verify") == 0)
		return is_alone ? verify_all(err) : each(rest, verify, err);
	if (strcmp(what, "rm") == 0)
		return is_alone ? usage("rm takes names") : each(rest, rm, err);
	if (strcmp(what, "gc") == 0)
		return is_alone ? gc(a, err) : usage("gc takes no names");
	return usage(
		"there are list, build, add, seal, verify, rm, gc and the verbs for image files");
}

int cli_image(int argc, char **argv)
{
	struct args a = { false };
	struct opts_rest rest;
	struct error err;
	int status;

	if (cli_image_file(argc, argv, &status))
		return status;
	if (argc > 1 && strcmp(argv[1], "add") == 0)
		return image_add(argc - 1, argv + 1);
	if (!cli_parse(&cli_image_cmd, argc, argv, &a, &rest, &status))
		return status;
	status = dispatch(&a, &rest, &err);
	opts_free(&cli_image_cmd, &a, &rest);
	return status;
}
