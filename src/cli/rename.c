/* SPDX-License-Identifier: Apache-2.0 */
/* `viv rename`. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"
#include "ctl/vmlock.h"

static const struct opt no_opts[] = { OPT_END };
const struct opts_cmd cli_rename_cmd = {
	.name = "viv rename",
	.usage = "NAME NEW",
	.summary = "give a machine that is stopped another name",
	.details = "Its snapshots, its log and its disks come along.",
	.opts = no_opts,
	.min_args = 2,
	.max_args = 2,
};

/* 0, or why it can't be done. */
static int check(const struct vmconfig *c, struct error *err)
{
	if (strncmp(c->net, "lab:", 4) == 0)
		return error_set(err, -EINVAL, "\"%s\" is a machine of a lab, whose file names it",
				 c->name);
	return 0;
}

static int rename_locked(const char *name, const char *to, struct error *err)
{
	_cleanup_free_ char *dir = paths_vm(name, NULL, err);
	_cleanup_free_ char *new_dir = dir ? paths_vm(to, NULL, err) : NULL;
	_cleanup_free_ char *run = new_dir ? paths_run(name, NULL, err) : NULL;
	struct vmconfig c;
	int r = vmconfig_init(&c, err);

	if (r == 0 && !run)
		r = -ENOMEM;
	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0)
		r = check(&c, err);
	if (r == 0)
		r = paths_remove_tree(run, err); /* of a process that was killed */
	/* This is all of it: who reads the configuration in a directory of another name knows what to make of it. */
	if (r == 0 && renameat2(AT_FDCWD, dir, AT_FDCWD, new_dir, RENAME_NOREPLACE) < 0)
		r = errno == EEXIST ? error_set(err, -EEXIST, "there is a machine \"%s\" already", to)
				    : error_set(err, -errno, "cannot rename %s to %s: %s", dir,
						new_dir, strerror(errno));
	vmconfig_free(&c);
	/* And so that nobody has to. */
	if (r == 0)
		r = vmconfig_init(&c, err);
	else
		return r;
	if (r == 0)
		r = vmconfig_load(&c, to, err);
	if (r == 0)
		r = vmconfig_save(&c, err);
	vmconfig_free(&c);
	return r;
}

int cli_rename(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	int status, r;
	char dummy;

	if (!cli_parse(&cli_rename_cmd, argc, argv, &dummy, &rest, &status))
		return status;
	const char *name = rest.args[0], *to = rest.args[1];

	r = paths_check_name("a machine", to, &err);
	_cleanup_close_ int lock = r < 0 ? r : vmlock_take(name, &err);

	if (lock == -EBUSY)
		r = error_set(&err, lock,
			      "machine \"%s\" is running, and keeps its name until viv stop %s",
			      name, name);
	else if (lock < 0)
		r = lock;
	else
		r = rename_locked(name, to, &err);
	status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_rename_cmd, &dummy, &rest);
	return status;
}
