/* SPDX-License-Identifier: Apache-2.0 */
/* Images of other programs, by way of qemu-img. */
#include <errno.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>

#include "cli/cli.h"
#include "cli/image.h"

extern char **environ;

/* By the name: what a stranger's file says of itself is not asked. */
static const char *foreign_format(const char *path)
{
	// clang-format off
	static const char *const formats[][2] = {
		{ ".vmdk", "vmdk" }, { ".vhdx", "vhdx" }, { ".vhd", "vpc" }, { ".vdi", "vdi" },
	};
	// clang-format on
	const char *dot = strrchr(path, '.');

	for (size_t i = 0; dot && i < ARRAY_SIZE(formats); i++)
		if (strcasecmp(dot, formats[i][0]) == 0)
			return formats[i][1];
	return NULL;
}

bool image_is_foreign(const char *path)
{
	return foreign_format(path);
}

/* A leading dash is no option of qemu-img's, a colon no protocol. */
static int plain_path(const char *path, char out[PATH_MAX])
{
	int n = snprintf(out, PATH_MAX, "%s%s", path[0] == '/' ? "" : "./", path);

	return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

static int run_qemu_img(const char *format, const char *to_format, const char *from, const char *to,
			struct error *err)
{
	const char *argv[] = { "qemu-img", "convert", "-f", format, "-O",
			       to_format,  NULL,      from, to,	    NULL };
	posix_spawn_file_actions_t fa;
	pid_t pid;
	int status;

	argv[6] = isatty(STDERR_FILENO) ? "-p" : "-q";
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, STDERR_FILENO, STDOUT_FILENO); /* its progress is not our output */
	int r = posix_spawnp(&pid, "qemu-img", &fa, NULL, (char **)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	if (r == ENOENT)
		return error_set(
			err, -ENOENT, "qemu-img is not installed, and import needs it; on Debian: apt-get install qemu-utils");
	if (r)
		return error_set(err, -r, "cannot start qemu-img: %s", strerror(r));
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set(err, -errno, "cannot wait for qemu-img: %s", strerror(errno));
	return WIFEXITED(status) && WEXITSTATUS(status) == 0
		       ? 0
		       : error_set(err, -EIO,
				   "qemu-img could not convert '%s'; its reason stands above", from);
}

int image_import(const char *from, const char *to, const char *to_format, bool may_replace,
		 struct error *err)
{
	const char *format = foreign_format(from);
	char source[PATH_MAX], part[PATH_MAX], target[PATH_MAX];

	if (!format)
		return error_set(err, -EINVAL, "'%s' is none of .vmdk, .vhdx, .vhd, .vdi; for raw and qcow2 there is viv image convert",
				 from);
	if (!may_replace && access(to, F_OK) == 0)
		return error_set(err, -EEXIST, "'%s' exists; remove it first, or say --force", to);
	if (plain_path(from, source) < 0 || plain_path(to, target) < 0 ||
	    (size_t)snprintf(part, sizeof(part), "%s.%d.part", target, (int)getpid()) >= sizeof(part))
		return error_set(err, -ENAMETOOLONG, "the path is too long");
	int r = run_qemu_img(format, to_format, source, part, err);
	if (r == 0 && rename(part, target) < 0)
		r = error_set(err, -errno, "cannot put '%s' in place: %s", to, strerror(errno));
	if (r < 0)
		unlink(part);
	return r;
}
