/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv receive`: wait for machines that others move here.
 *
 * This process reads the first record of each link, no more: which machine it is, or which links belong together.  It makes the machine's folder
 * and starts the machine's process with the links, which goes on with the next record.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "cli/cli.h"
#include "cli/joinlinks.h"
#include "cli/lab.h"
#include "cli/spawn.h"
#include "cli/tcplink.h"
#include "cli/tls.h"
#include "cli/transport.h"
#include "ctl/migrate_bundle.h"
#include "ctl/migrate_lazy.h"
#include "ctl/migrate_link.h"
#include "ctl/migrate_offer.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "ctl/vmlock.h"

#define SETTLE_POLL_MS	20
#define FIRST_RECORD_MS 10000

struct args {
	const char *listen;
	struct transport_options transport;
	bool once, stdio, lab_rules, host_networks;
};

static const struct opt receive_opts[] = {
	OPT_STRING(struct args, listen, "listen", "tls://[HOST]:PORT|unix:PATH", "where to wait for them"),
	OPT_STRING(struct args, transport.certificates, "certificates", "FOLDER",
		   "ca.pem, cert.pem and key.pem for tls:// (default: tls in viv's data folder)"),
	OPT_FLAG(struct args, transport.is_insecure, "insecure",
		 "listen on tcp://, too, where anybody may send a machine here"),
	OPT_FLAG(struct args, stdio, "stdio", "take one over standard input and output, as ssh runs it"),
	OPT_FLAG(struct args, lab_rules, "lab-rules",
		 "what a rule of its lab allows a machine comes along to the lab here"),
	OPT_FLAG(struct args, host_networks,
		 "host-networks", "machines that come may use the host's networks that they name, tap:NAME and bridge:NAME"),
	OPT_FLAG(struct args, once, "once",
		 "end after the first one, with status 1 if it did not come through"),
	OPT_END,
};
const struct opts_cmd cli_receive_cmd = {
	.name = "viv receive",
	.usage = "",
	.summary = "wait for machines that viv migrate moves to this host",
	.details = "Machines run on when this command ends.",
	.opts = receive_opts,
};

/* One machine on its way here. */
struct arrival {
	struct migrate_offer offer;
	struct migrate_link links[MIGRATE_STREAMS_MAX];
	unsigned nlinks;
	struct spawned process;
	pthread_t thread;
	bool is_alone; /* nobody joins the thread */
	bool has_lab_rules, has_host_networks;
	int status;
};

static void arrival_free(struct arrival *a)
{
	for (unsigned i = 0; i < a->nlinks; i++)
		migrate_link_close(&a->links[i]);
	migrate_offer_free(&a->offer);
	free(a);
}

static void refuse(struct migrate_link *l, const struct error *why)
{
	struct error err;

	cli_note("%s", why->text);
	if (migrate_link_tell(l, MIGRATE_R_REFUSE, why->text, strlen(why->text), &err) < 0)
		cli_note("%s", err.text);
}

static int answer(struct migrate_link *l, const struct migrate_header *h, struct error *err)
{
	uint8_t what;

	if (h->len != MIGRATE_ID_BYTES)
		return error_set(err, -EPROTO, "a question about no migration");
	int r = claim_ask(l->payload, err);

	if (r == MIGRATE_ANSWER_RAN) {
		/* A machine that lacks memory answers itself, and goes on with this link. */
		int passed = migrate_door_pass(l->payload, l->fd, err);

		if (passed != -ENOENT)
			return passed;
	}
	if (r < 0)
		return r;
	what = (uint8_t)r;
	return migrate_link_tell(l, MIGRATE_R_ANSWER, &what, 1, err);
}

/* ---- a machine ---- */

/* Of a process that was killed; its broker may be about it.  Of such a process the end of its status is seen before its lock, and its control
 * socket, are gone: for that moment it looks as if it ran. */
static void settle(const char *name)
{
	const struct timespec pause = { .tv_nsec = SETTLE_POLL_MS * 1000000L };
	struct error err;
	int r = -EBUSY;

	for (unsigned ms = 0; r == -EBUSY && ms < VMLOCK_WAIT_MS && migrate_is_incoming(name);
	     ms += SETTLE_POLL_MS) {
		_cleanup_close_ int lock = vmlock_take(name, &err);

		r = lock < 0 ? lock : migrate_settle(name, &err);
		if (r == -EBUSY)
			nanosleep(&pause, NULL);
	}
	if (r < 0 && migrate_is_incoming(name))
		cli_note("%s", err.text);
}

static void *await_machine(void *arg)
{
	struct arrival *a = arg;
	const char *name = a->offer.config.name;
	char engine[256], reason[256];
	pid_t pid = a->process.pid;
	struct error err;

	a->status = spawned_wait_ready(&a->process, engine, reason, &err) < 0 ? EXIT_FAILED : EXIT_FINE;
	spawned_free(&a->process);
	migrate_door_close(a->offer.id); /* all of its memory is here, or it is gone */
	if (a->status == EXIT_FINE)
		cli_note("%s is here, on engine %s", name, engine);
	else
		cli_note("%s did not come here: %s", name, err.text);
	if (a->status != EXIT_FINE) {
		settle(name);
		lab_move_out(&a->offer.config);
	}
	if (a->is_alone) {
		/* Its process is ours to wait for, however long it runs. */
		while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			continue;
		arrival_free(a);
	}
	return NULL;
}

/* Where it is to be connected, which is this host's to say. */
static int give_network(struct arrival *a, struct error *err)
{
	struct vmconfig *c = &a->offer.config;
	int r = run_check_net(c->net ?: "", err);

	if (r < 0)
		return r;
	if (!a->has_host_networks && (!strncmp(c->net, "tap:", 4) || !strncmp(c->net, "bridge:", 7)))
		return error_set(err, -EPERM, "the machine has %s as its network, which viv receive gives with --host-networks only; viv migrate --network names another one",
				 c->net);
	r = lab_move_in(c, a->offer.network, a->has_lab_rules, err);
	return r < 0 ? r : vmconfig_save(c, err);
}

static int start_machine(struct arrival *a, struct error *err)
{
	int fds[MIGRATE_FDS_MAX];
	const struct spawn_from from = { .links = fds, .nlinks = a->nlinks + 1 };
	struct error why;

	for (unsigned i = 0; i < a->nlinks; i++)
		fds[i] = a->links[i].fd;
	_cleanup_close_ int door = migrate_door_listen(a->offer.id, err);
	_cleanup_close_ int lock = door < 0 ? door : migrate_make_folder(&a->offer, err);

	if (lock < 0)
		return lock;
	fds[a->nlinks] = door;
	int r = a->offer.snapshots[0] ? bundle_adopt(a->offer.snapshots, a->offer.config.name, err) : 0;

	if (r == 0)
		r = give_network(a, err);

	if (r == 0)
		r = spawn_machine(&a->process, &a->offer.config, lock, &from, false, err);
	if (r < 0 && migrate_settle(a->offer.config.name, &why) < 0)
		cli_note("%s", why.text);
	if (r < 0)
		lab_move_out(&a->offer.config);
	return r;
}

/* ---- links ---- */

static int first_record(struct migrate_link *l, int fd, struct migrate_header *h, struct error *err)
{
	int r = migrate_link_init(l, fd, -1, false, err);

	return r < 0 ? r : migrate_link_receive(l, h, FIRST_RECORD_MS, err);
}

/* The other links of @a: nobody else is listened to until they are there. */
static int await_links(struct arrival *a, int listen_fd, struct error *err)
{
	while (a->nlinks < a->offer.nlinks) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
		struct migrate_link *l = &a->links[a->nlinks];
		struct migrate_header h;
		uint16_t index;

		if (fd < 0 && errno == EINTR)
			continue;
		if (fd < 0)
			return error_set(err, -errno, "cannot accept a connection: %s", strerror(errno));
		int r = first_record(l, fd, &h, err);

		if (r == 0 && h.type == MIGRATE_R_ASK) {
			r = answer(l, &h, err);
			migrate_link_close(l);
			if (r < 0)
				cli_note("%s", err->text);
			continue;
		}
		if (r == 0 && (h.type != MIGRATE_R_JOIN || h.len != MIGRATE_ID_BYTES + 2))
			r = error_set(err, -EBUSY, "another machine is just being received; try again");
		if (r == 0)
			memcpy(&index, l->payload + MIGRATE_ID_BYTES, 2);
		if (r == 0 &&
		    (memcmp(l->payload, a->offer.id, MIGRATE_ID_BYTES) != 0 || index != a->nlinks))
			r = error_set(err, -EPROTO, "a link of another migration");
		if (r < 0) {
			refuse(l, err);
			migrate_link_close(l);
			return r;
		}
		a->nlinks++;
	}
	return 0;
}

/* The same where each link has a process like this one. */
static int gather_links(struct arrival *a, struct error *err)
{
	int fds[MIGRATE_STREAMS_MAX];
	unsigned n = a->offer.nlinks;
	int r = n > 1 ? joinlinks_gather(a->offer.id, a->links[0].fd, fds, n, err) : 0;

	for (unsigned i = 1; r == 0 && i < n; i++) {
		r = migrate_link_init(&a->links[i], fds[i], -1, false, err);
		if (r == 0)
			a->nlinks++;
		for (; r < 0 && i < n; i++)
			close(fds[i]);
	}
	return r;
}

static int hand_over(struct migrate_link *l, const struct migrate_header *h, struct error *err)
{
	uint16_t index;

	if (h->len != MIGRATE_ID_BYTES + sizeof(index))
		return error_set(err, -EPROTO, "a link that joins nothing");
	memcpy(&index, l->payload + MIGRATE_ID_BYTES, sizeof(index));
	return joinlinks_pass(l->payload, index, l->fd, err);
}

/* ---- snapshots ---- */

struct bundle_way {
	struct migrate_link link; /* BUNDLE was received from it */
	struct migrate_header first;
};

static void *serve_snapshots(void *arg)
{
	struct bundle_way *w = arg;
	struct error err;

	if (bundle_serve(&w->link, &w->first, &err) < 0)
		cli_note("%s", err.text);
	migrate_link_close(&w->link);
	free(w);
	return NULL;
}

/* Beside all else, unless nothing else comes to this process. */
static int take_snapshots(struct migrate_link *l, const struct migrate_header *h, bool is_alone,
			  struct error *err)
{
	struct bundle_way *w = calloc(1, sizeof(*w));
	pthread_t thread;

	if (!w)
		return error_set(err, -ENOMEM, "no memory to receive snapshots");
	w->link = *l;
	w->first = *h;
	*l = (struct migrate_link){ .fd = -1, .stop_fd = -1 };
	if (is_alone) {
		serve_snapshots(w);
	} else if (pthread_create(&thread, NULL, serve_snapshots, w) == 0) {
		pthread_detach(thread);
	} else {
		migrate_link_close(&w->link);
		free(w);
		return error_set(err, -EAGAIN, "cannot start a thread to receive snapshots");
	}
	return 0;
}

/* ---- what comes first on a link ---- */

/* Is it something for which no machine is made?  Then it is done with: *@r, 0 or -errno. */
static bool is_other(struct migrate_link *l, const struct migrate_header *h, bool is_alone, int *r,
		     struct error *err)
{
	bool joins = h->type == MIGRATE_R_JOIN && is_alone;

	if (h->type == MIGRATE_R_ASK)
		*r = answer(l, h, err);
	else if (h->type == MIGRATE_R_BUNDLE)
		*r = take_snapshots(l, h, is_alone, err);
	else if (joins)
		*r = hand_over(l, h, err);
	return h->type == MIGRATE_R_ASK || h->type == MIGRATE_R_BUNDLE || joins;
}

/* With @is_once: the machine, which came through or did not; NULL: none came.  Else NULL. */
static struct arrival *take_link(int fd, int listen_fd, const struct args *args, bool is_once)
{
	struct arrival *a = calloc(1, sizeof(*a));
	struct migrate_header h;
	struct error err;

	if (!a) {
		close(fd);
		return NULL;
	}
	int r = migrate_offer_init(&a->offer, &err);

	if (r < 0) {
		close(fd);
		arrival_free(a);
		return NULL;
	}
	a->nlinks = 1;
	a->has_lab_rules = args->lab_rules;
	a->has_host_networks = args->host_networks;
	r = first_record(&a->links[0], fd, &h, &err);
	if (r < 0) {
		cli_note("%s", err.text);
		arrival_free(a);
		return NULL;
	}
	if (is_other(&a->links[0], &h, listen_fd < 0, &r, &err)) {
		if (r < 0)
			cli_note("%s", err.text);
		arrival_free(a);
		return NULL;
	}
	r = h.type == MIGRATE_R_HELLO
		    ? migrate_offer_parse(&a->offer, a->links[0].payload, h.len, &err)
		    : error_set(&err, -EPROTO, "a link that begins with no offer");
	if (r == 0)
		r = listen_fd < 0 ? gather_links(a, &err) : await_links(a, listen_fd, &err);
	if (r == 0)
		r = start_machine(a, &err);
	if (r < 0) {
		refuse(&a->links[0], &err);
		if (a->offer.snapshots[0])
			bundle_drop(a->offer.snapshots);
		arrival_free(a);
		return NULL;
	}
	/* The machine's only now: who else held them would keep the source from noticing its end. */
	for (unsigned i = 0; i < a->nlinks; i++)
		migrate_link_close(&a->links[i]);
	a->nlinks = 0;
	cli_note("receiving %s", a->offer.config.name);
	a->is_alone = !is_once;
	if (is_once) {
		await_machine(a);
		return a;
	}
	if (pthread_create(&a->thread, NULL, await_machine, a) == 0)
		pthread_detach(a->thread);
	else /* the machine does without us */
		cli_note("cannot start a thread: it is not told whether %s comes through",
			 a->offer.config.name);
	return NULL;
}

static int listen_unix(const char *where, struct error *err)
{
	char path[4096];

	if (where[0] == '/')
		snprintf(path, sizeof(path), "%s", where);
	else if (!getcwd(path, sizeof(path)) || strlen(path) + strlen(where) + 2 > sizeof(path))
		return error_set(err, -ENAMETOOLONG, "the path of the socket is too long");
	else
		strcat(strcat(path, "/"), where);
	int fd = socket_listen(path, err);

	if (fd >= 0 && fcntl(fd, F_SETFL, 0) < 0) { /* waiting is all there is to do */
		close(fd);
		return error_set(err, -errno, "cannot listen: %s", strerror(errno));
	}
	return fd;
}

/* Where links come from. */
struct listener {
	int fd;
	char where[300]; /* for people: with the port that it got */
	char *inner;	 /* a socket to which viv-tls connects who is believed; NULL: none */
};

static void listener_close(struct listener *l)
{
	close(l->fd);
	if (l->inner && unlink(l->inner) < 0)
		cli_note("cannot remove %s: %s", l->inner, strerror(errno));
	free(l->inner);
}

static int listen_tls(struct listener *l, int net_fd, const struct args *a, struct error *err)
{
	_cleanup_free_ char *dir = paths_run("", NULL, err);
	int r = dir ? paths_make(dir, err) : -ENOMEM;

	l->inner = r == 0 ? paths_format(err, "%s/.receive-%d.sock", dir, (int)getpid()) : NULL;
	if (!l->inner)
		return r < 0 ? r : -ENOMEM;
	l->fd = listen_unix(l->inner, err);
	if (l->fd < 0)
		return l->fd;
	r = tls_start_listener(net_fd, l->inner, a->transport.certificates, err);
	if (r < 0)
		listener_close(l);
	return MIN(r, 0);
}

static int listen_tcp(struct listener *l, const struct args *a, struct error *err)
{
	bool is_tls = !strncmp(a->listen, "tls", 3);
	struct tcplink_address at;
	int r = is_tls ? 0 : transport_may_be_plain(a->listen, &a->transport, err);

	if (r == 0)
		r = tcplink_parse(&at, is_tls ? "tls" : "tcp", a->listen + 6, err);
	int fd = r < 0 ? r : tcplink_listen(&at, err);

	if (fd < 0)
		return fd;
	snprintf(l->where, sizeof(l->where), strchr(at.host, ':') ? "%.6s[%s]:%s" : "%.6s%s:%s",
		 a->listen, at.host, at.port);
	l->fd = fd;
	if (!is_tls)
		return 0;
	r = listen_tls(l, fd, a, err);
	close(fd);
	return r;
}

static int listen_on(struct listener *l, const struct args *a, struct error *err)
{
	*l = (struct listener){ .fd = -1 };
	if (!strncmp(a->listen, "tls://", 6) || !strncmp(a->listen, "tcp://", 6))
		return listen_tcp(l, a, err);
	snprintf(l->where, sizeof(l->where), "%s", a->listen);
	if (strncmp(a->listen, "unix:", 5) != 0)
		return error_set(
			err, -EINVAL,
			"\"%s\" is nothing to listen on; there are tls://[HOST]:PORT and unix:PATH",
			a->listen);
	l->fd = listen_unix(a->listen + 5, err);
	return MIN(l->fd, 0);
}

static int serve(const struct args *a, struct error *err)
{
	struct listener l;
	int status = -1;

	if (listen_on(&l, a, err) < 0)
		return cli_fail(err);
	cli_note("waiting for machines on %s", l.where);
	while (status < 0) {
		int link = accept4(l.fd, NULL, NULL, SOCK_CLOEXEC);

		if (link < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (link < 0) {
			error_set(err, -errno, "cannot accept a connection: %s", strerror(errno));
			status = cli_fail(err);
			break;
		}
		if (!strncmp(a->listen, "tcp", 3))
			tcplink_tune(link);
		struct arrival *arrival = take_link(link, l.fd, a, a->once);

		if (arrival) {
			status = arrival->status;
			arrival_free(arrival);
		}
	}
	listener_close(&l);
	return status;
}

/* ---- over standard input and output ---- */

struct pipe_end {
	int from, to;
};

static void *carry(void *arg)
{
	const struct pipe_end *p = arg;
	uint8_t buf[65536];
	ssize_t n;

	while ((n = read(p->from, buf, sizeof(buf))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;
		for (ssize_t done = 0, w; done < n; done += w) {
			w = write(p->to, buf + done, (size_t)(n - done));
			if (w < 0 && errno == EINTR)
				w = 0;
			if (w < 0)
				goto end;
		}
	}
end:
	/* The other side learns that no more comes. */
	if (shutdown(p->to, SHUT_WR) < 0)
		close(p->to);
	return NULL;
}

static int serve_stdio(const struct args *args, struct error *err)
{
	int fds[2];
	pthread_t in, out;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
		error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
		return cli_fail(err);
	}
	struct pipe_end to_machine = { STDIN_FILENO, fds[0] }, from_machine = { fds[0], STDOUT_FILENO };

	if (pthread_create(&in, NULL, carry, &to_machine) != 0 ||
	    pthread_create(&out, NULL, carry, &from_machine) != 0) {
		error_set(err, -EAGAIN, "cannot start a thread");
		return cli_fail(err);
	}
	struct arrival *a = take_link(fds[1], -1, args, true);
	int status = a ? a->status : EXIT_FINE;

	if (a)
		arrival_free(a);
	/* What it says last goes out still; what the source says then is nothing that anybody waits for. */
	pthread_join(out, NULL);
	return status;
}

int cli_receive(int argc, char **argv)
{
	struct args a = { NULL };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_receive_cmd, argc, argv, &a, &rest, &status))
		return status;
	if (!a.listen == !a.stdio) {
		error_set(&err, -EINVAL, "where? One of --listen and --stdio");
		status = cli_usage(&cli_receive_cmd, &err);
	} else {
		bundle_clean();
		status = a.stdio ? serve_stdio(&a, &err) : serve(&a, &err);
	}
	opts_free(&cli_receive_cmd, &a, &rest);
	return status;
}
