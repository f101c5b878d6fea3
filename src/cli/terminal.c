/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>

#include "base/bytes.h"
#include "cli/terminal.h"

/* One terminal a process: the handlers below must find it. */
static struct termios saved;
static atomic_bool is_raw;
static int guard_pipe = -1;

bool terminal_is_raw(void)
{
	return is_raw;
}

void terminal_restore(void)
{
	int saved_errno = errno;

	if (atomic_exchange(&is_raw, false))
		tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
	if (guard_pipe >= 0) {
		char c = 'r'; /* restored: nothing to do for the guard */

		while (write(guard_pipe, &c, 1) < 0 && errno == EINTR)
			continue;
		close(guard_pipe);
		guard_pipe = -1;
	}
	errno = saved_errno;
}

static void on_deadly_signal(int sig)
{
	/* TCSANOW: draining could wait for ever for a terminal that is stopped. */
	if (atomic_exchange(&is_raw, false))
		tcsetattr(STDIN_FILENO, TCSANOW, &saved);
	signal(sig, SIG_DFL);
	raise(sig);
}

/* ---- the guard ---- */

static void guard_main(int fd, int tty)
{
	sigset_t all;
	char c;
	ssize_t n;

	/* SIGTTOU is among them: then a background process may set a terminal. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	dup2(tty, 0);
	dup2(fd, 1);
	close_range(2, ~0u, 0);
	do
		n = read(1, &c, 1);
	while (n < 0 && errno == EINTR);
	if (n == 0)
		tcsetattr(0, TCSANOW, &saved);
	_exit(0);
}

/* Twice forked, so that nobody has to wait for it. */
static int start_guard(struct error *err)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	pid_t pid = fork();

	if (pid < 0) {
		int r = -errno;

		close(fds[0]);
		close(fds[1]);
		return error_set(err, r, "cannot start a process: %s", strerror(-r));
	}
	if (pid == 0) {
		close(fds[1]);
		pid = fork();
		if (pid == 0)
			guard_main(fds[0], STDIN_FILENO);
		_exit(pid < 0);
	}
	close(fds[0]);
	int status = 0;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (status) {
		close(fds[1]);
		return error_set(err, -EAGAIN, "cannot start a process to watch over the terminal");
	}
	guard_pipe = fds[1];
	return 0;
}

int terminal_raw(struct error *err)
{
	static const int deadly[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS };
	struct termios raw;

	if (!isatty(STDIN_FILENO) || is_raw)
		return 0;
	if (tcgetattr(STDIN_FILENO, &saved) < 0)
		return error_set(err, -errno, "cannot read the terminal's settings: %s", strerror(errno));
	int r = start_guard(err);

	if (r < 0)
		return r;
	for (size_t i = 0; i < ARRAY_SIZE(deadly); i++)
		signal(deadly[i], on_deadly_signal);
	raw = saved;
	cfmakeraw(&raw);
	is_raw = true;
	if (tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) < 0) {
		r = -errno;
		terminal_restore();
		return error_set(err, r, "cannot put the terminal into raw mode: %s", strerror(-r));
	}
	return 0;
}

/* ---- the bridge ---- */

struct state {
	const struct bridge *b;
	uint8_t in[4096]; /* typed, not yet taken by the machine: [in_at, in_len) */
	size_t in_at, in_len;
	bool is_stdin_open, is_also_open;
	bool has_escape;
};

static void tell_size(const struct bridge *b)
{
	struct winsize ws;

	if (b->on_resize && ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col && ws.ws_row)
		b->on_resize(b->arg, ws.ws_col, ws.ws_row);
}

/* Output waits for the terminal: what the guest writes meanwhile waits in the machine. */
static int write_out(const uint8_t *p, size_t len)
{
	while (len) {
		ssize_t n = write(STDOUT_FILENO, p, len);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd out = { .fd = STDOUT_FILENO, .events = POLLOUT };

			poll(&out, 1, -1);
		} else if (n < 0 && errno != EINTR) {
			return -errno;
		} else if (n > 0) {
			p += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* 1: there may be more; 0: closed; -errno of the output. */
static int pump_out(struct state *s)
{
	uint8_t buf[16384];
	ssize_t n = recv(s->b->console_fd, buf, sizeof(buf), MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 1 : 0;
	if (n == 0)
		return 0;
	int r = write_out(buf, (size_t)n);

	/* Nobody reads our output any more: the machine goes on regardless. */
	return r < 0 && r != -EPIPE ? r : 1;
}

static void read_in(struct state *s)
{
	ssize_t n = read(STDIN_FILENO, s->in, sizeof(s->in));

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		s->is_stdin_open = false;
		return;
	}
	s->in_at = 0;
	s->in_len = (size_t)n;
	if (is_raw) {
		uint8_t *esc = memchr(s->in, TERMINAL_ESCAPE, (size_t)n);

		s->has_escape = esc;
		if (esc)
			s->in_len = (size_t)(esc - s->in);
	}
}

static void send_in(struct state *s)
{
	ssize_t n = send(s->b->console_fd, s->in + s->in_at, s->in_len - s->in_at,
			 MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0)
		s->in_at += (size_t)n;
	else if (n < 0 && errno != EAGAIN && errno != EINTR)
		s->in_at = s->in_len; /* the end shows on the reading side */
}

/* The signal that ends the bridge, or 0. */
static int read_signal(struct state *s, int fd)
{
	struct signalfd_siginfo si;

	while (read(fd, &si, sizeof(si)) == sizeof(si)) {
		if (si.ssi_signo != SIGWINCH)
			return (int)si.ssi_signo;
		tell_size(s->b);
	}
	return 0;
}

#define GO_ON 1000

/* One round.  Returns GO_ON, else what terminal_bridge returns. */
static int bridge_round(struct state *s, int signal_fd, int *sig)
{
	bool has_in = s->in_at < s->in_len;
	struct pollfd p[4] = {
		{ .fd = s->b->console_fd, .events = (short)(POLLIN | (has_in ? POLLOUT : 0)) },
		{ .fd = s->is_stdin_open && !has_in ? STDIN_FILENO : -1, .events = POLLIN },
		{ .fd = s->is_also_open ? s->b->also_fd : -1, .events = POLLIN },
		{ .fd = signal_fd, .events = POLLIN },
	};

	if (poll(p, 4, -1) < 0)
		return errno == EINTR ? GO_ON : -errno;
	if (p[3].revents && (*sig = read_signal(s, signal_fd)))
		return BRIDGE_SIGNAL;
	if (p[2].revents && !s->b->on_also(s->b->arg))
		s->is_also_open = false;
	if (p[0].revents & (POLLIN | POLLHUP | POLLERR)) {
		int r = pump_out(s);

		if (r <= 0)
			return r < 0 ? r : BRIDGE_CLOSED;
	}
	if (p[1].revents)
		read_in(s);
	if (s->in_at < s->in_len)
		send_in(s);
	return s->has_escape && s->in_at == s->in_len ? BRIDGE_ESCAPE : GO_ON;
}

int terminal_bridge(const struct bridge *b, int *sig, struct error *err)
{
	struct state s = { .b = b, .is_stdin_open = true, .is_also_open = b->also_fd >= 0 };
	sigset_t set, old;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGWINCH);
	sigprocmask(SIG_BLOCK, &set, &old);
	_cleanup_close_ int signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);

	if (signal_fd < 0) {
		r = error_set(err, -errno, "cannot watch signals: %s", strerror(errno));
	} else {
		tell_size(b);
		do
			r = bridge_round(&s, signal_fd, sig);
		while (r == GO_ON);
		if (r < 0)
			error_set(err, r, "the console failed: %s", strerror(-r));
	}
	sigprocmask(SIG_SETMASK, &old, NULL);
	return r;
}
