/* SPDX-License-Identifier: Apache-2.0 */
/* `viv migrate`: move a running machine to another host. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/migrate.h"
#include "cli/tokens.h"
#include "cli/transport.h"
#include "ctl/client.h"
#include "ctl/migrate_bundle.h"
#include "ctl/migrate_link.h"
#include "ctl/paths.h"
#include "ctl/snapstore.h"
#include "ctl/vmlock.h"

#define TICK_MS	    250
#define END_POLL_MS 20

const char *const migrate_priorities[] = { "keep-running", "finish", NULL };

struct args {
	struct migrate_options o;
	bool json, recover, cancel, status;
};

static const struct opt migrate_opts[] = {
	OPT_STRING(struct args, o.name, "name", "NAME", "of the machine there (default: as here)"),
	OPT_DURATION(struct args, o.max_downtime, "max-downtime", "TIME",
		     "that it may stand still (default 100ms)", 1000000, 3600LL * 1000000000),
	OPT_DURATION(struct args, o.deadline, "deadline", "TIME", "by when it has to run there",
		     1000000, 7LL * 24 * 3600 * 1000000000),
	OPT_CHOICE(struct args, o.priority, "priority",
		   "keep-running|finish", "what counts more: that the guest is not slowed down, or that it gets there (default finish)",
		   migrate_priorities),
	OPT_SIZE(struct args, o.bandwidth, "bandwidth", "SIZE", "a second at most while it runs",
		 1024, 1ULL << 40),
	OPT_UINT(struct args, o.links, "links", "N", "connections at a time (default 1)", 1,
		 TRANSPORT_MAX_LINKS),
	OPT_STRING(struct args, o.engine, "engine", "auto|kvm|dbt",
		   "what executes it there (default: as here)"),
	OPT_STRING(struct args, o.network, "network",
		   "NETWORK", "its network there, as for viv run --net (default: as here; in a lab also its place)"),
	OPT_FLAG(struct args, o.verify,
		 "verify", "compare all of memory by checksums before it runs there; it stands still for that"),
	MIGRATE_TRANSPORT_OPTS(struct args),
	OPT_FLAG(struct args, recover,
		 "recover", "the link was lost at the last moment: ask whether it runs there, and bring it the rest of its memory"),
	OPT_FLAG(struct args, cancel, "cancel", "a migration that is under way: the machine stays here"),
	OPT_FLAG(struct args, status, "status", "show one that is under way"),
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
const struct opts_cmd cli_migrate_cmd = {
	.name = "viv migrate",
	.usage = "NAME [TARGET]",
	.summary = "move a running machine to another host",
	.details =
		"TARGET is ssh://[USER@]HOST[:PORT], where viv receive is then run, "
		"tls://HOST:PORT or unix:PATH,\n"
		"where viv receive --listen waits, or fd:N, a connected stream socket.\n\n"
		"Disks, kernel and initrd that the target does not see are copied, disks as they "
		"are for the guest:\n"
		"in one piece.  Snapshots stay here, until viv rm; with --with-snapshots they go, "
		"too, "
		"before the machine.\n\n"
		"The machine runs on while its memory is copied, and stands still for the last of "
		"it.  Until the\n"
		"target has everything, the machine stays here whatever happens; Ctrl-C cancels.  "
		"If it "
		"cannot be there by the\n"
		"deadline, or changes its memory faster than the link carries it, it runs there "
		"before the rest "
		"of its memory has\n"
		"come, and waits for what it touches; should the link be lost then, it stands "
		"still until "
		"--recover.",
	.opts = migrate_opts,
	.min_args = 1,
	.max_args = 2,
};

/* ---- progress ---- */

static double of(json_t *j, const char *key)
{
	return (double)json_integer_value(json_object_get(j, key));
}

static void show_line(json_t *j)
{
	fprintf(stderr, "\r\033[K%s: %.1f MiB sent, %.1f MiB left, %.1f MiB/s changed, downtime %.1f ms",
		json_string_value(json_object_get(j, "text")), of(j, "sent_bytes") / MIB,
		of(j, "pages_left") * 4096 / MIB, of(j, "dirty_bytes_per_s") / MIB,
		of(j, "expected_downtime_us") / 1e3);
	if (of(j, "disk_bytes_left") > 0)
		fprintf(stderr, ", disks: %.1f MiB left", of(j, "disk_bytes_left") / MIB);
	if (of(j, "throttle_percent") > 0)
		fprintf(stderr, ", slowed down by %.0f %%", of(j, "throttle_percent"));
	fprintf(stderr, ", %.0f s", of(j, "elapsed_us") / 1e6);
	fflush(stderr);
}

/* A look at how far it is; a machine that has just moved does not answer any more. */
static void tick(int fd, bool *is_shown)
{
	json_t *reply;

	if (!isatty(STDERR_FILENO) || fd < 0 ||
	    client_call(fd, json_pack("{s:s}", "cmd", "migrate-status"), 1000, &reply, NULL) < 0)
		return;
	show_line(reply);
	*is_shown = true;
	json_decref(reply);
}

static int watch_interrupt(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

/* Until the answer is there; Ctrl-C asks to cancel, which the answer then says.  Returns whether it was asked. */
static bool wait_for_answer(const char *name, int fd)
{
	bool is_asked = false;
	_cleanup_close_ int signals = watch_interrupt();
	_cleanup_close_ int look = client_connect(name, NULL);
	bool is_shown = false;

	for (;;) {
		struct pollfd p[2] = { { .fd = fd, .events = POLLIN },
				       { .fd = signals, .events = POLLIN } };
		int n = poll(p, 2, TICK_MS);

		if (p[0].revents || (n < 0 && errno != EINTR))
			break;
		if (p[1].revents) {
			struct signalfd_siginfo si;
			struct error err;
			json_t *reply;

			is_asked = true;
			if (read(signals, &si, sizeof(si)) != sizeof(si) ||
			    client_request(name, json_pack("{s:s}", "cmd", "migrate-cancel"),
					   CLIENT_TIMEOUT_MS, &reply, &err) < 0)
				cli_note("%s", err.text);
			else
				json_decref(reply);
		}
		tick(look, &is_shown);
	}
	if (is_shown)
		fprintf(stderr, "\r\033[K");
	return is_asked;
}

void migrate_print(const char *name, json_t *j)
{
	if (!strcmp(json_string_value(json_object_get(j, "state")) ?: "", "kept")) {
		printf("%s did not move: it runs here again\n", name);
		return;
	}
	printf("%s moved to %s in %.2f s: %.1f MiB sent in %.0f rounds; it stood still for %.1f "
	       "ms\n",
	       name, json_string_value(json_object_get(j, "to")), of(j, "elapsed_us") / 1e6,
	       of(j, "sent_bytes") / MIB, of(j, "rounds"), of(j, "downtime_us") / 1e3);
	if (of(j, "pages_late") > 0)
		printf("%.1f MiB of that went after it, %.0f pages of them because it waited for "
		       "them\n",
		       of(j, "pages_late") * 4096 / MIB, of(j, "pages_wanted"));
}

/* ---- requests ---- */

int migrate_request_over(const char *name, json_t *request, struct transport *t, json_t **report,
			 struct error *err)
{
	_cleanup_close_ int fd = client_connect(name, err);

	if (fd < 0) {
		json_decref(request);
		return fd;
	}
	int r = client_send_fds(fd, request, t->fds, t->n, CLIENT_TIMEOUT_MS, err);

	transport_close(t);
	if (r < 0)
		return r;
	bool is_asked = wait_for_answer(name, fd);

	r = client_receive(fd, -1, report, err);
	if (r == 0)
		json_object_del(*report, "ok");
	return r < 0 && is_asked ? -EINTR : r;
}

/* ---- snapshots ---- */

static int open_way(struct migrate_link *l, struct transport *t, const char *to,
		    const struct migrate_options *a, struct error *err)
{
	*t = (struct transport){ .n = 0 };
	if (strncmp(to, "fd:", 3) == 0)
		return error_set(err, -EINVAL, "snapshots need a link of their own, which fd: has not");
	int r = transport_connect(t, to, 1, &a->transport, err);

	return r < 0 ? r : migrate_link_init(l, t->fds[--t->n], -1, true, err);
}

static void damaged(void *arg, const char *name, const struct error *why)
{
	cli_note("snapshot %s of %s is damaged and stays here: %s", name, (const char *)arg, why->text);
}

/* Those that go along. */
struct bundles {
	struct snapshot_info *list;
	unsigned n;
	char token[MIGRATE_ID_TEXT]; /* by which they are known at the target as long as @link is open */
	struct migrate_link link;
	struct transport way;
};

static int bundles_send(struct bundles *b, const char *name, const char *to,
			const struct migrate_options *a, struct error *err)
{
	uint8_t id[MIGRATE_ID_BYTES];
	int r = snapstore_list(name, &b->list, &b->n, damaged, (void *)(uintptr_t)name, err);

	if (r < 0 || !b->n)
		return r;
	r = open_way(&b->link, &b->way, to, a, err);
	if (r == 0)
		r = migrate_id_new(id, err);
	if (r == 0)
		migrate_id_text(b->token, id);
	for (unsigned i = 0; r == 0 && i < b->n; i++) {
		if (isatty(STDERR_FILENO))
			cli_note("sending snapshot %s", b->list[i].name);
		r = bundle_send(&b->link, b->token, name, b->list[i].name, err);
	}
	return r;
}

/* The machine's lock, once its process here has ended, which it is about to do; or -errno. */
static int await_end(const char *name, struct error *err)
{
	const struct timespec pause = { .tv_nsec = END_POLL_MS * 1000000L };
	int lock = -EBUSY;

	for (unsigned ms = 0; lock == -EBUSY && ms < VMLOCK_WAIT_MS; ms += END_POLL_MS) {
		lock = vmlock_take(name, err);
		if (lock == -EBUSY)
			nanosleep(&pause, NULL);
	}
	return lock;
}

/* They are the target's now, and the machine, too. */
static void bundles_forget(const struct bundles *b, const char *name)
{
	struct error err;
	_cleanup_close_ int lock = await_end(name, &err);
	_cleanup_free_ char *folder = paths_vm(name, "snapshots", NULL);
	int r = lock < 0 ? lock : 0;

	for (unsigned i = 0; r == 0 && i < b->n; i++)
		r = snapstore_delete(name, b->list[i].name, &err);
	/* One that was damaged is there still. */
	if (r == 0 && folder && rmdir(folder) == 0)
		r = cli_remove_machine(name, &err);
	if (r < 0)
		cli_note("%s moved, but not all of it is gone here: %s", name, err.text);
}

/* Its process takes its folder away when it has told us: who comes back at once would find a machine of that name. */
static void await_gone(const char *name)
{
	struct error err;
	_cleanup_close_ int lock = await_end(name, &err);

	(void)lock;
}

static void bundles_end(struct bundles *b)
{
	migrate_link_close(&b->link);
	transport_close(&b->way);
	if (b->list)
		snapstore_list_free(b->list, b->n);
}

static int move(const char *name, const char *to, const struct migrate_options *a,
		const char *snapshots, json_t **report, struct error *err)
{
	struct transport t;
	struct tokens tokens;
	int r = transport_connect(&t, to, a->links ? (unsigned)a->links : 1, &a->transport, err);

	if (r < 0)
		return r;
	r = tokens_leave(&tokens, name, err);
	if (r < 0) {
		tokens_remove(&tokens);
		transport_close(&t);
		return r;
	}
	json_t *rq = json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:s*, s:s*, s:b, s:b, s:b}", "cmd",
			       "migrate", "to", to, "name", a->name, "engine", a->engine, "network",
			       a->network, "token", tokens.text[0] ? tokens.text : NULL,
			       "snapshots", snapshots, "verify", a->verify, "copy", a->copy,
			       "keep_running", a->priority == MIGRATE_KEEP_RUNNING_FIRST);
	int e = rq ? 0 : -1;

	if (e == 0 && a->max_downtime)
		e = json_object_set_new(rq, "max_downtime_us", json_integer(a->max_downtime / 1000));
	if (e == 0 && a->deadline)
		e = json_object_set_new(rq, "deadline_ms", json_integer(a->deadline / 1000000));
	if (e == 0 && a->bandwidth)
		e = json_object_set_new(rq, "bytes_per_s", json_integer((json_int_t)a->bandwidth));
	if (e < 0) {
		json_decref(rq);
		rq = NULL; /* client_send_fds() says so */
	}
	r = migrate_request_over(name, rq, &t, report, err);
	transport_close(&t);
	tokens_remove(&tokens);
	return r;
}

int migrate_machine(const char *name, const char *to, const struct migrate_options *a,
		    json_t **report, struct error *err)
{
	struct bundles b = { .link = { .fd = -1, .stop_fd = -1 } };
	int r = a->with_snapshots ? bundles_send(&b, name, to, a, err) : 0;

	if (r == 0)
		r = move(name, to, a, b.n ? b.token : NULL, report, err);
	bool has_moved = r == 0 && !strcmp(json_string_value(json_object_get(*report, "state")) ?: "",
					   "moved");

	if (has_moved && b.n)
		bundles_forget(&b, name);
	else if (has_moved)
		await_gone(name);
	bundles_end(&b);
	return r;
}

/* A machine whose process ended while its fate was unknown: the answer decides about its folder. */
static int recover_folder(const char *name, struct transport *t, struct migrate_mark *mark,
			  struct error *err)
{
	uint8_t id[MIGRATE_ID_BYTES];
	struct migrate_link l;
	struct migrate_header h;
	int r = migrate_id_parse(id, mark->id, err);

	if (r < 0)
		return r;
	r = migrate_link_init(&l, t->fds[--t->n], -1, true, err);
	if (r == 0)
		r = migrate_link_tell(&l, MIGRATE_R_ASK, id, sizeof(id), err);
	if (r == 0)
		r = migrate_link_receive(&l, &h, MIGRATE_SILENCE_MS, err);
	if (r == 0 && (h.type != MIGRATE_R_ANSWER || h.len != 1))
		r = error_set(err, -EPROTO, "the target answers out of turn");
	int answer = r == 0 ? l.payload[0] : 0;

	migrate_link_close(&l);
	if (r < 0)
		return r;
	if (answer == MIGRATE_ANSWER_UNKNOWN)
		return error_set(err, -ENOENT, "the host that answers knows nothing of this migration");
	if (answer == MIGRATE_ANSWER_ABORTED) {
		r = mark_remove(name, err);
		if (r == 0)
			cli_note("%s did not move; viv start %s starts it", name, name);
		return r;
	}
	if (answer == MIGRATE_ANSWER_LACKING)
		return error_set(err, -ENODATA,
				 "%s stands still at %s for want of memory that was lost with its "
				 "process here; viv stop -f "
				 "there ends it, and viv start switches it on again",
				 name, mark->to);
	mark->has_moved = true;
	r = mark_put(name, mark, err);
	if (r == 0)
		cli_note("%s moved to %s; viv rm %s removes what is left of it here", name,
			 mark->to, name);
	return r;
}

static int recover(const char *name, const char *to, const struct transport_options *o,
		   json_t **report, struct error *err)
{
	struct migrate_mark mark;
	struct transport t;
	int r = paths_check_name("a machine", name, err);

	if (r == 0)
		r = mark_get(name, &mark, err);
	if (r == -ENOENT)
		return error_set(err, r, "it is not in doubt where machine \"%s\" is", name);
	if (r == 0 && mark.has_moved)
		return error_set(
			err, -EALREADY,
			"machine \"%s\" moved to %s; viv rm %s removes what is left of it here",
			name, mark.to, name);
	/* One whose process was killed may have a broker for a moment. */
	_cleanup_close_ int lock = r == 0 ? vmlock_take(name, err) : r;

	if (lock < 0 && lock != -EBUSY)
		return lock;
	r = transport_connect(&t, to ? to : mark.to, 1, o, err);
	if (r < 0)
		return r;
	r = lock < 0 ? migrate_request_over(name, json_pack("{s:s}", "cmd", "migrate-recover"), &t,
					    report, err)
		     : recover_folder(name, &t, &mark, err);
	transport_close(&t);
	return r;
}

static int simple(const char *name, const char *command, bool prints, struct error *err)
{
	json_t *reply;
	int r = client_request(name, json_pack("{s:s}", "cmd", command), CLIENT_TIMEOUT_MS, &reply, err);

	if (r < 0)
		return r;
	json_object_del(reply, "ok");
	if (prints)
		cli_print_json(json_incref(reply));
	json_decref(reply);
	return 0;
}

int cli_migrate(int argc, char **argv)
{
	struct args a = { .o.priority = MIGRATE_FINISH_FIRST };
	json_t *report = NULL;
	struct opts_rest rest;
	struct error err;
	int status, r;

	if (!cli_parse(&cli_migrate_cmd, argc, argv, &a, &rest, &status))
		return status;
	const char *to = rest.nargs > 1 ? rest.args[1] : NULL;

	if (a.recover + a.cancel + a.status > 1 || (!to && !a.recover && !a.cancel && !a.status)) {
		error_set(&err, -EINVAL,
			  to ? "only one of --recover, --cancel and --status"
			     : "where to? TARGET is missing");
		status = cli_usage(&cli_migrate_cmd, &err);
	} else {
		r = a.cancel	? simple(rest.args[0], "migrate-cancel", false, &err)
		    : a.status	? simple(rest.args[0], "migrate-status", true, &err)
		    : a.recover ? recover(rest.args[0], to, &a.o.transport, &report, &err)
				: migrate_machine(rest.args[0], to, &a.o, &report, &err);
		status = r < 0 ? cli_fail(&err) : EXIT_FINE;
		if (report && a.json)
			cli_print_json(json_incref(report));
		else if (report)
			migrate_print(rest.args[0], report);
		json_decref(report);
	}
	opts_free(&cli_migrate_cmd, &a, &rest);
	return status;
}
