/* SPDX-License-Identifier: Apache-2.0 */
/* What is left of machines: removing them, and what was killed before it was done. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"
#include "ctl/vmlock.h"

int cli_remove_machine(const char *name, struct error *err)
{
	_cleanup_free_ char *dir = paths_vm(name, NULL, err);
	_cleanup_free_ char *run = dir ? paths_run(name, NULL, err) : NULL;

	if (!run)
		return -ENOMEM;
	int r = paths_remove_tree(run, err);

	/* A machine that is thrown away at its end may just have removed itself. */
	return r < 0 ? r : paths_remove_at_once(dir, err);
}

/* Was it complete, and is there to stay?  Under its lock. */
static bool is_to_stay(const char *name)
{
	_cleanup_free_ char *config = paths_vm(name, "machine.json", NULL);
	struct vmconfig c;
	struct error why;

	if (!config || access(config, F_OK) < 0)
		return !config || errno != ENOENT;
	/* One that cannot be read is its owner's to look at. */
	bool stays = vmconfig_init(&c, &why) < 0 || vmconfig_load(&c, name, &why) < 0 || !c.is_throwaway;

	vmconfig_free(&c);
	return stays;
}

/* Somebody has held the lock once: before, the machine is being made. */
static bool was_locked(const char *name)
{
	_cleanup_free_ char *lock = paths_vm(name, "lock", NULL);
	struct stat st;

	return lock && stat(lock, &st) == 0 && st.st_size > 0;
}

static bool has_socket(const char *name)
{
	_cleanup_free_ char *run = paths_run(name, NULL, NULL);

	return run && access(run, F_OK) == 0;
}

static void collect_machine(const char *name)
{
	struct error why;

	if (!was_locked(name) || (is_to_stay(name) && !has_socket(name)))
		return;
	_cleanup_close_ int lock = vmlock_try(name, &why);

	if (lock < 0)
		return; /* somebody is at work, or it runs */
	if (!is_to_stay(name)) {
		if (cli_remove_machine(name, &why) < 0)
			cli_note("%s", why.text);
		return;
	}
	_cleanup_free_ char *run = paths_run(name, NULL, NULL);

	if (run && paths_remove_tree(run, &why) < 0)
		cli_note("%s", why.text);
}

void cli_collect(void)
{
	_cleanup_free_ char *vms = paths_data("vms", NULL);
	DIR *d = vms ? opendir(vms) : NULL;
	struct dirent *e;

	while (d && (e = readdir(d))) {
		if (paths_check_name("a machine", e->d_name, NULL) == 0) {
			collect_machine(e->d_name);
		} else if (strncmp(e->d_name, PATHS_REMOVED_PREFIX, strlen(PATHS_REMOVED_PREFIX)) == 0) {
			_cleanup_free_ char *path = paths_format(NULL, "%s/%s", vms, e->d_name);
			struct error why;

			if (path && paths_remove_tree(path, &why) < 0)
				cli_note("%s", why.text);
		}
	}
	if (d)
		closedir(d);
}
