/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/tokens.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"
#include "ctl/migrate_offer.h"
#include "ctl/paths.h"

static int leave(struct tokens *t, const char *file, const char *own_folder, struct error *err)
{
	const char *slash = file ? strrchr(file, '/') : NULL;
	size_t own = strlen(own_folder);

	if (!slash || (!strncmp(file, own_folder, own) && file[own] == '/'))
		return 0;
	char *path = migrate_token_path(file, t->text, err);

	if (!path)
		return -ENOMEM;
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0) { /* there already, or not a folder of ours */
		if (errno != EEXIST)
			log_debug("migrate", "cannot make %s: %s", path, strerror(errno));
		free(path);
		return 0;
	}
	close(fd);
	t->files[t->n++] = path;
	return 0;
}

int tokens_leave(struct tokens *t, const char *name, struct error *err)
{
	_cleanup_free_ char *folder = paths_vm(name, NULL, err);
	uint8_t id[MIGRATE_ID_BYTES];
	struct vmconfig c;

	*t = (struct tokens){ "" };
	if (!folder)
		return -ENOMEM;
	int r = vmconfig_init(&c, err);

	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0)
		r = migrate_id_new(id, err);
	if (r == 0) {
		migrate_id_text(t->text, id);
		r = leave(t, c.kernel, folder, err);
	}
	if (r == 0)
		r = leave(t, c.initrd, folder, err);
	if (r == 0)
		r = leave(t, c.firmware, folder, err);
	for (unsigned i = 0; r == 0 && i < c.ndisks; i++)
		r = leave(t, c.disks[i].path, folder, err);
	if (!t->n)
		t->text[0] = 0;
	vmconfig_free(&c);
	return r;
}

void tokens_remove(struct tokens *t)
{
	while (t->n) {
		char *path = t->files[--t->n];

		if (unlink(path) < 0 && errno != ENOENT)
			cli_note("cannot remove %s: %s", path, strerror(errno));
		free(path);
	}
}
