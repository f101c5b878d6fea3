/* SPDX-License-Identifier: Apache-2.0 */
/* `viv image add`: files of this host become an image of the store, each content once. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "block/image.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/store.h"
#include "ctl/paths.h"

struct args {
	const char *kernel, *initrd, *append, *title;
	bool has_agent;
};
static const struct opt add_opts[] = {
	OPT_STRING(struct args, kernel, "kernel", "FILE", "start with it, not from the disk"),
	OPT_STRING(struct args, initrd, "initrd", "FILE", "with a kernel: initial ramdisk"),
	OPT_STRING(struct args, append, "append", "TEXT", "with a kernel: its command line"),
	OPT_STRING(struct args, title, "title", "TEXT", "a line for people"),
	OPT_FLAG(struct args, has_agent, "agent", "the guest runs qemu-guest-agent"),
	OPT_END,
};
const struct opts_cmd image_add_cmd = {
	.name = "viv image add",
	.usage = "IMAGE [FILE]",
	.summary = "put a disk, or a kernel, into the image store",
	.details = "FILE is copied: raw, .qcow2 (one that stands on nothing), or .vmdk, .vhdx, "
		   ".vhd, .vdi, which become qcow2. What the store has already, "
		   "it has once.",
	.opts = add_opts,
	.min_args = 1,
	.max_args = 2,
};

/* A disk that stands on other files would lose them. */
static int check_disk(const char *path, const char *format, struct error *err)
{
	struct image_info info;
	int r = image_info(path, format, &info, err);

	if (r < 0)
		return r;
	if (info.backing_path)
		r = error_set(err, -EINVAL, "%s stands on %s; viv image flatten makes one file of it",
			      path, info.backing_path);
	image_info_free(&info);
	return r;
}

/* *@name: what it is called in @dir. */
static int add_disk(const char *dir, const char *from, const char **name, struct error *err)
{
	const char *dot = strrchr(from, '.');
	bool is_foreign = image_is_foreign(from);
	bool is_qcow2 = is_foreign || (dot && strcmp(dot, ".qcow2") == 0);

	*name = is_qcow2 ? "disk.qcow2" : "disk.raw";
	_cleanup_free_ char *to = paths_format(err, "%s/%s", dir, *name);

	if (!to)
		return -ENOMEM;
	if (is_foreign)
		return image_import(from, to, "qcow2", false, err);
	int r = check_disk(from, is_qcow2 ? "qcow2" : "raw", err);

	return r < 0 ? r : image_copy_disk(from, to, err);
}

static int add_file(const char *dir, const char *from, const char *as, struct error *err)
{
	_cleanup_free_ char *to = from ? paths_format(err, "%s/%s", dir, as) : NULL;

	return !from ? 0 : to ? image_copy_disk(from, to, err) : -ENOMEM;
}

static int write_json(const char *dir, const char *image, const struct args *a, const char *disk,
		      struct error *err)
{
	_cleanup_free_ char *path = paths_format(err, "%s/image.json", dir);
	json_t *json = json_pack("{s:i, s:s, s:s, s:s, s:s*, s:s*, s:s*, s:s*, s:s*, s:b}",
				 "format", 1, "name", image, "title", a->title ? a->title : image,
				 "arch", "x86_64", "kernel", a->kernel ? "vmlinuz" : NULL, "initrd",
				 a->initrd ? "initrd" : NULL, "append", a->append, "disk", disk,
				 "disk_format", disk ? strrchr(disk, '.') + 1 : NULL, "agent",
				 a->has_agent);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;

	json_decref(json);
	if (!path)
		return -ENOMEM;
	return text ? paths_write_file(path, text, strlen(text), err)
		    : error_set(err, -EINVAL, "a text is not valid UTF-8, or there is no memory");
}

static int fill(const char *dir, const char *image, const struct args *a, const char *disk,
		struct error *err)
{
	const char *name = NULL;
	int r = disk ? add_disk(dir, disk, &name, err) : 0;

	if (r == 0)
		r = add_file(dir, a->kernel, "vmlinuz", err);
	if (r == 0)
		r = add_file(dir, a->initrd, "initrd", err);
	if (r == 0)
		r = write_json(dir, image, a, name, err);
	return r == 0 ? store_seal(dir, err) : r;
}

/* A folder that no other command takes for an image. */
static int make_folder(const char *image, char **dir, struct error *err)
{
	_cleanup_free_ char *images = paths_data("images", err);

	*dir = images ? paths_format(err, "%s/.%s.XXXXXX", images, image) : NULL;
	if (!*dir)
		return -ENOMEM;
	return mkdtemp(*dir) ? 0 : error_set(err, -errno, "cannot make %s: %s", *dir, strerror(errno));
}

static int add(const char *image, const char *disk, const struct args *a, struct error *err)
{
	_cleanup_free_ char *dir = NULL, *final = paths_image(image, NULL, err);
	_cleanup_close_ int own_lock = final ? store_lock_builder(image, err) : -ENOMEM;
	_cleanup_close_ int lock = own_lock < 0 ? own_lock : store_lock(false, err);
	int r = lock;

	if (r >= 0)
		r = access(final, F_OK) < 0
			    ? make_folder(image, &dir, err)
			    : error_set(err, -EEXIST, "there is an image \"%s\" already; viv image rm %s removes it",
					image, image);
	if (r < 0)
		return r;
	r = fill(dir, image, a, disk, err);
	if (r == 0 && rename(dir, final) < 0)
		r = error_set(err, -errno, "cannot make %s: %s", final, strerror(errno));
	if (r < 0) {
		struct error why;

		if (paths_remove_tree(dir, &why) < 0)
			cli_note("%s", why.text);
	}
	return r;
}

int image_add(int argc, char **argv)
{
	struct args a = { NULL };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&image_add_cmd, argc, argv, &a, &rest, &status))
		return status;
	const char *disk = rest.nargs > 1 ? rest.args[1] : NULL;
	int r = paths_check_name("an image", rest.args[0], &err);

	if (r == 0 && !disk && !a.kernel)
		r = error_set(&err, -EINVAL, "an image is made of a disk, or of a kernel, or of both");
	if (r == 0 && !a.kernel && (a.initrd || a.append))
		r = error_set(&err, -EINVAL, "--initrd and --append go with --kernel");
	if (r < 0)
		status = cli_usage(&image_add_cmd, &err);
	else
		status = add(rest.args[0], disk, &a, &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&image_add_cmd, &a, &rest);
	return status;
}
