/* SPDX-License-Identifier: Apache-2.0 */
/* `viv net capture`: packets of a lab into a file.  The lab writes; this process says which, and when it is enough. */
#include <errno.h>
#include <fcntl.h>
#include <pcap/pcap.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#include "base/lib.h"
#include "cli/cli.h"
#include "cli/lab.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "net/capture.h"

struct args {
	const char *lab, *output, *filter;
	uint64_t rotate, keep;
	int64_t time_ns;
	bool before, after, stay;
};

// clang-format off
static const struct opt capture_opts[] = {
	OPT_STRING_L(struct args, output, "output", 'o', "FILE", "the file, pcapng (needed)"),
	OPT_FLAG(struct args, before, "before", "only what machines and uplinks send, before the filter"),
	OPT_FLAG(struct args, after, "after", "only what is let through to machines and uplinks, after it"),
	OPT_STRING(struct args, filter, "filter", "EXPRESSION", "only such packets, as tcpdump has it: 'tcp port 80'"),
	OPT_DURATION(struct args, time_ns, "time", "TIME", "end after this time", 1000000, 86400LL * 1000000000),
	OPT_SIZE(struct args, rotate, "rotate", "SIZE", "go on in FILE.1, FILE.2 ... each time it is that long", CAPTURE_ROTATE_MIN, 1ULL << 40),
	OPT_UINT(struct args, keep, "keep", "N", "with --rotate: only the last N files", 1, 1000000),
	OPT_FLAG(struct args, stay, "stay", "return at once; the lab goes on until viv down"),
	OPT_STRING(struct args, lab, "lab", "LAB", "which lab, if more than one is up"),
	OPT_END,
};
const struct opts_cmd cli_capture_cmd = {
	.name = "viv net capture",
	.usage = "NETWORK|MACHINE|NETWORK.MACHINE|'*' -o FILE",
	.summary = "write packets to a file, each with what became of it and by which rule",
	.details = "Until Ctrl-C, unless --time or --stay say otherwise.  What a card sends is there with what becomes of it as its "
		   "comment,\nwhat comes to it as it was let through; so between two cards of a network a packet is there twice.",
	.opts = capture_opts,
	.min_args = 1,
	.max_args = 1,
};
// clang-format on

/* No other command needs it (base/lib.h). */
// clang-format off
#define PCAP_CALLS(X) X(pcap_open_dead) X(pcap_compile) X(pcap_geterr) X(pcap_close) X(pcap_freecode)
// clang-format on
#define MEMBER(f) __typeof__(f) *f;
static struct {
	PCAP_CALLS(MEMBER)
} lib;

static int load_pcap(struct error *err)
{
#define CALL(f) { #f, &lib.f },
	static const char *const files[] = { "libpcap.so.0.8", "libpcap.so.1", NULL };
	static const struct lib_call calls[] = { PCAP_CALLS(CALL) };

	return lib_load(files, calls, ARRAY_SIZE(calls), err);
}

/* The expression as a program, [[code, jt, jf, k], ...]. */
static int compile(const char *expression, json_t **out, struct error *err)
{
	struct bpf_program program;
	int r = load_pcap(err);

	if (r < 0)
		return r;
	pcap_t *p = lib.pcap_open_dead(DLT_EN10MB, 262144);

	if (!p)
		return error_set(err, -ENOMEM, "no memory");
	if (lib.pcap_compile(p, &program, expression, 1, PCAP_NETMASK_UNKNOWN) < 0) {
		error_set(err, -EINVAL, "the filter \"%s\": %s", expression, lib.pcap_geterr(p));
		lib.pcap_close(p);
		return -EINVAL;
	}
	json_t *all = json_array();
	for (unsigned i = 0; i < program.bf_len; i++) {
		const struct bpf_insn *b = &program.bf_insns[i];
		json_array_append_new(
			all, json_pack("[i, i, i, I]", b->code, b->jt, b->jf, (json_int_t)b->k));
	}
	lib.pcap_freecode(&program);
	lib.pcap_close(p);
	*out = all;
	return 0;
}

/* The folder of @path opened, and the name in it. */
static int open_folder(const char *path, const char **name, struct error *err)
{
	const char *slash = strrchr(path, '/');
	_cleanup_free_ char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");

	if (!dir)
		return error_set(err, -ENOMEM, "no memory");
	*name = slash ? slash + 1 : path;
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd >= 0 ? fd : error_set(err, -errno, "cannot open %s: %s", dir, strerror(errno));
}

/* One line with a descriptor; the answer is client_receive()'s matter. */
static int send_with(int fd, json_t *request, int pass_fd, struct error *err)
{
	_cleanup_free_ char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, nl = '\n';
	struct iovec iov[2] = { { text, text ? strlen(text) : 0 }, { &nl, 1 } };
	struct msghdr msg = { .msg_iov = iov,
			      .msg_iovlen = 2,
			      .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *m = CMSG_FIRSTHDR(&msg);

	json_decref(request);
	if (!text)
		return error_set(err, -ENOMEM, "no memory");
	m->cmsg_level = SOL_SOCKET;
	m->cmsg_type = SCM_RIGHTS;
	m->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(m), &pass_fd, sizeof(int));
	ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL);
	return n == (ssize_t)(iov[0].iov_len + 1)
		       ? 0
		       : error_set(err, n < 0 ? -errno : -EIO, "cannot talk to the lab");
}

int lab_capture(const char *lab, const char *what, const char *output, json_t *options,
		int *control_fd, struct error *err)
{
	_cleanup_free_ char *path = paths_lab(lab, "control.sock", err);
	const char *name = "";
	json_t *reply = NULL;
	int fd = path ? socket_connect(path, err) : -ENOMEM;

	if (fd < 0) {
		json_decref(options);
		return fd == -ENOENT || fd == -ECONNREFUSED
			       ? error_set(err, fd, "lab \"%s\" is not up", lab)
			       : fd;
	}
	_cleanup_close_ int dir_fd = open_folder(output, &name, err);
	int r = dir_fd;
	if (r >= 0) {
		json_object_set_new(options, "cmd", json_string("capture"));
		json_object_set_new(options, "what", json_string(what));
		json_object_set_new(options, "name", json_string(name));
		r = send_with(fd, json_incref(options), dir_fd, err);
	}
	json_decref(options);
	if (r == 0)
		r = client_receive(fd, CLIENT_TIMEOUT_MS, &reply, err);
	json_decref(reply);
	if (r < 0) {
		close(fd);
		return r;
	}
	*control_fd = fd;
	return 0;
}

/* Until a signal, the time, or the lab's end. */
static void wait_end(int control_fd, int64_t time_ns)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	_cleanup_close_ int signals = signalfd(-1, &set, SFD_CLOEXEC);
	struct pollfd p[2] = { { .fd = signals, .events = POLLIN },
			       { .fd = control_fd, .events = POLLIN } };
	struct timespec ts = { time_ns / 1000000000, time_ns % 1000000000 };
	while (ppoll(p, 2, time_ns ? &ts : NULL, NULL) < 0 && errno == EINTR)
		continue;
}

static int run_capture(const struct args *a, const char *what, struct error *err)
{
	_cleanup_free_ char *lab = a->lab ? strdup(a->lab) : lab_find(NULL, err);
	json_t *filter = NULL, *reply = NULL;
	int fd, r = lab ? 0 : -ENOENT;

	if (r == 0 && a->filter)
		r = compile(a->filter, &filter, err);
	if (r < 0)
		return r;
	json_t *options = json_pack("{s:s, s:b, s:I, s:I, s:o*}", "side",
				    a->before == a->after ? "both"
				    : a->before		  ? "before"
							  : "after",
				    "stay", a->stay, "rotate", (json_int_t)a->rotate, "keep",
				    (json_int_t)a->keep, "filter", filter);
	r = lab_capture(lab, what, a->output, options, &fd, err);
	if (r < 0)
		return r;
	if (!a->stay) {
		cli_note("capturing into %s%s", a->output, a->time_ns ? "" : "; Ctrl-C ends it");
		wait_end(fd, a->time_ns);
		r = client_call(fd, json_pack("{s:s}", "cmd", "end"), CLIENT_TIMEOUT_MS, &reply, err);
		if (r == 0)
			cli_note("%lld packets, %lld bytes",
				 (long long)json_integer_value(json_object_get(reply, "packets")),
				 (long long)json_integer_value(json_object_get(reply, "bytes")));
		json_decref(reply);
	}
	close(fd);
	return r;
}

int cli_capture(int argc, char **argv)
{
	struct args a = { 0 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_capture_cmd, argc, argv, &a, &rest, &status))
		return status;
	if (!a.output || (a.keep && !a.rotate) || (a.stay && a.time_ns)) {
		error_set(&err, -EINVAL, "%s",
			  !a.output ? "-o FILE is needed"
			  : a.keep  ? "--keep goes with --rotate"
				    : "--stay and --time exclude each other");
		status = cli_usage(&cli_capture_cmd, &err);
	} else {
		status = run_capture(&a, rest.args[0], &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	}
	opts_free(&cli_capture_cmd, &a, &rest);
	return status;
}
