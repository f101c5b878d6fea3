/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "ctl/paths.h"

/* viv-tls lies beside viv. */
static char *program(struct error *err)
{
	char exe[4096];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 8);
	char *slash = n > 0 ? memrchr(exe, '/', (size_t)n) : NULL;

	if (!slash) {
		error_set(err, -ENOENT, "cannot find this program's own folder");
		return NULL;
	}
	return paths_format(err, "%.*s/viv-tls", (int)(slash - exe), exe);
}

/* @fds become 3, 4, ... of the program; the others that are open close by themselves. */
static pid_t run(const char *const *args, const int *fds, unsigned n, bool ends_with_us, struct error *err)
{
	_cleanup_free_ char *path = program(err);
	int high[4];

	if (!path)
		return -ENOENT;
	fflush(NULL);
	pid_t parent = getpid(), pid = fork();

	if (pid < 0)
		return error_set(err, -errno, "cannot start a process: %s", strerror(errno));
	if (pid > 0)
		return pid;
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* A link's: Ctrl-C is for viv, which cancels in order. */
	if (ends_with_us)
		prctl(PR_SET_PDEATHSIG, SIGTERM);
	else
		signal(SIGINT, SIG_IGN);
	if (ends_with_us && getppid() != parent)
		_exit(1);
	for (unsigned i = 0; i < n; i++)
		high[i] = fcntl(fds[i], F_DUPFD, 64); /* out of the way of those that they become */
	for (unsigned i = 0; i < n; i++) {
		dup2(high[i], 3 + (int)i);
		close(high[i]);
	}
	execv(path, (char **)(uintptr_t)args);
	fprintf(stderr, "viv: cannot run %s: %s\n", path, strerror(errno));
	_exit(127);
}

/* What the process says before it closes the pipe: nothing is fine. */
static int await_word(int fd, struct error *err)
{
	size_t len = 0;
	ssize_t n;

	while (len < sizeof(err->text) - 1 &&
	       (n = read(fd, err->text + len, sizeof(err->text) - 1 - len)) != 0) {
		if (n > 0)
			len += (size_t)n;
		else if (errno != EINTR)
			return error_set(err, -errno, "cannot read from viv-tls: %s", strerror(errno));
	}
	err->text[len] = 0;
	if (len == 3 && !strcmp(err->text, "ok\n"))
		return 0;
	err->text[strcspn(err->text, "\n")] = 0;
	return len ? -EACCES : error_set(err, -EIO, "viv-tls ended without a word");
}

static char *folder_or_default(const char *folder, struct error *err)
{
	return folder ? paths_format(err, "%s", folder) : paths_data("tls", err);
}

int tls_open_link(int net_fd, const char *host, const char *folder, struct error *err)
{
	_cleanup_free_ char *keys = folder_or_default(folder, err);
	const char *args[] = { "viv-tls", "connect", keys, host, NULL };
	int link[2] = { -1, -1 }, word[2] = { -1, -1 }, r = keys ? 0 : -ENOMEM;

	if (r == 0 && (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, link) < 0 ||
		       pipe2(word, O_CLOEXEC) < 0))
		r = error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	if (r == 0) {
		const int fds[] = { net_fd, link[1], word[1] };

		r = run(args, fds, 3, false, err);
	}
	close(net_fd);
	if (link[1] >= 0)
		close(link[1]);
	if (word[1] >= 0)
		close(word[1]);
	if (r > 0)
		r = await_word(word[0], err);
	if (word[0] >= 0)
		close(word[0]);
	if (r == 0)
		return link[0];
	if (link[0] >= 0)
		close(link[0]);
	return r;
}

pid_t tls_start_listener(int net_fd, const char *path, const char *folder, struct error *err)
{
	_cleanup_free_ char *keys = folder_or_default(folder, err);
	const char *args[] = { "viv-tls", "listen", keys, path, NULL };
	int word[2];

	if (!keys)
		return -ENOMEM;
	if (pipe2(word, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	const int fds[] = { net_fd, word[1] };
	pid_t pid = run(args, fds, 2, true, err);

	close(word[1]);
	int r = pid < 0 ? 0 : await_word(word[0], err);

	close(word[0]);
	if (pid > 0 && r < 0)
		waitpid(pid, NULL, 0);
	return r < 0 ? r : pid;
}
