/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The benchmark's agent: runs the phases of workloads one after the other and times them with its own
 * machine's clock.  The same program is the first process of the guests and a plain process natively.
 *
 *   in   PHASE NAME LIMIT_S           run /bench/w/NAME/PHASE with /bin/sh in /task
 *        bye                          power off (as first process), or end
 *   out  @ready NS                    clock since boot
 *        @start NAME
 *        @end NAME STATUS NS HEX      exit status (128 + signal), time, and the first bytes of /task/PHASE.out, or
 *                                     of /task/PHASE.err when the status is not 0
 *
 * Fields never hold a space.  Anything else on the line (a kernel's messages share the serial port) is noise
 * to the reader, who looks for '@'.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define OUT_MAX 200 /* bytes of output that are told */

static volatile pid_t running;

static void on_alarm(int sig)
{
	(void)sig;
	if (running > 0)
		kill(-running, SIGKILL);
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void say(const char *line)
{
	size_t len = strlen(line);

	while (len) {
		ssize_t n = write(STDOUT_FILENO, line, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			exit(1);
		line += n;
		len -= (size_t)n;
	}
	tcdrain(STDOUT_FILENO); /* nothing is sent while a workload runs; fails on a pipe, harmlessly */
}

static void redirect(int fd, const char *path, int flags)
{
	int file = open(path, flags | O_CLOEXEC, 0600);

	if (file < 0 || dup2(file, fd) < 0)
		_exit(126);
}

static void child(const char *script, const char *out, const char *err)
{
	setpgid(0, 0);
	redirect(STDIN_FILENO, "/dev/null", O_RDONLY);
	redirect(STDOUT_FILENO, out, O_WRONLY | O_CREAT | O_TRUNC);
	redirect(STDERR_FILENO, err, O_WRONLY | O_CREAT | O_TRUNC);
	execl("/bin/sh", "sh", script, (char *)NULL);
	_exit(127);
}

/* The first process also reaps what others left. */
static int wait_for(pid_t pid)
{
	int status;

	for (;;) {
		pid_t got = waitpid(-1, &status, 0);

		if (got == pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		if (got < 0 && errno != EINTR)
			return 255;
	}
}

static void hex_of(const char *path, char hex[2 * OUT_MAX + 2])
{
	unsigned char bytes[OUT_MAX];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, bytes, sizeof(bytes));

	if (fd >= 0)
		close(fd);
	strcpy(hex, "-");
	for (ssize_t i = 0; i < n; i++)
		sprintf(hex + 2 * i, "%02x", bytes[i]);
}

static void run_phase(const char *phase, const char *name, unsigned limit_s)
{
	char script[128], out[64], err[64], line[600], hex[2 * OUT_MAX + 2];

	snprintf(script, sizeof(script), "/bench/w/%s/%s", name, phase);
	snprintf(out, sizeof(out), "/task/%s.out", phase);
	snprintf(err, sizeof(err), "/task/%s.err", phase);
	snprintf(line, sizeof(line), "@start %s\n", name);
	say(line);

	int64_t start = now_ns(CLOCK_MONOTONIC);
	pid_t pid = fork();

	if (pid == 0)
		child(script, out, err);
	int status = 255;

	if (pid > 0) {
		setpgid(pid, pid); /* whoever comes first: the alarm must find the group */
		running = pid;
		alarm(limit_s);
		status = wait_for(pid);
		alarm(0);
		running = 0;
	}
	int64_t took = now_ns(CLOCK_MONOTONIC) - start;

	hex_of(status ? err : out, hex);
	snprintf(line, sizeof(line), "@end %s %d %lld %s\n", name, status, (long long)took, hex);
	say(line);
}

static bool is_word(const char *s)
{
	for (const char *p = s; *p; p++)
		if (!isalnum((unsigned char)*p) && *p != '-' && *p != '_')
			return false;
	return *s;
}

int main(void)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	char line[256], phase[32], name[64];
	struct termios tio;
	unsigned limit_s;

	sigaction(SIGALRM, &sa, NULL);
	if (tcgetattr(STDIN_FILENO, &tio) == 0) {
		cfmakeraw(&tio);
		tcsetattr(STDIN_FILENO, TCSANOW, &tio);
	}
	if (chdir("/task") < 0) {
		perror("/task");
		return 1;
	}
	snprintf(line, sizeof(line), "@ready %lld\n", (long long)now_ns(CLOCK_BOOTTIME));
	say(line);
	while (fgets(line, sizeof(line), stdin) && strncmp(line, "bye", 3) != 0) {
		if (sscanf(line, "%31s %63s %u", phase, name, &limit_s) == 3 && is_word(phase) &&
		    is_word(name))
			run_phase(phase, name, limit_s);
		else
			say("@bad request\n");
	}
	if (getpid() == 1) {
		sync();
		reboot(RB_POWER_OFF);
	}
	return 0;
}
