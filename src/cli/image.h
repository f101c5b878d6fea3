/* SPDX-License-Identifier: Apache-2.0 */
/* Images: images/NAME/image.json names the files that make a machine. */
#ifndef VIV_CLI_IMAGE_H
#define VIV_CLI_IMAGE_H

#include "ctl/vmconfig.h"

struct image {
	char *kernel, *initrd, *disk; /* absolute paths; NULL: none */
	char *append, *disk_format, *title;
	bool has_agent, uses_virtio_console;
};

/** image_load() - 0, -ENOENT (no such image), other -errno with @err set; image_free() in any case. */
int image_load(struct image *im, const char *name, struct error *err);
void image_free(struct image *im);

/** image_copy_disk() - a machine's own copy of @from at @to, sparse, or sharing blocks where the file
 * system can; with progress. */
int image_copy_disk(const char *from, const char *to, struct error *err);

/**
 * cli_image_file() - the verbs of `viv image` that work on image files; argv[1] is the verb.
 * False: it is none of them; else *@status is the exit status.
 */
bool cli_image_file(int argc, char **argv, int *status);
/** cli_image_file_action() - the @i-th of these verbs; false: there are less. */
bool cli_image_file_action(unsigned i, struct opts_action *out);

/** image_add() - `viv image add`; @argv[0] is that.  The exit status. */
int image_add(int argc, char **argv);
extern const struct opts_cmd image_add_cmd;

/** image_is_foreign() - by its name: one for image_import(). */
bool image_is_foreign(const char *path);
/** image_import() - a VMDK, VHDX, VHD or VDI file (by its name) to a new image, with qemu-img. */
int image_import(const char *from, const char *to, const char *to_format, bool may_replace,
		 struct error *err);

#endif
