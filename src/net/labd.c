/* SPDX-License-Identifier: Apache-2.0 */
#include "net/labd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "base/log.h"
#include "net/confine.h"
#include "net/host_watch.h"
#include "net/labd_int.h"

#define FILES_MAX	     16384
#define UPLINK_SOCKETS_LEAST 128u
#define UPLINK_SOCKETS_MOST  1024u
#define ADVERTISE_NS	     200000000000LL /* RFC 4861, 6.2.1: between 198 and 600 s */
#define CLIENT_OUT_MAX	     (4 * MIB)
#define ACCEPT_AGAIN_NS	     100000000LL
#define TIMEOUT_MAX_MS	     60000

int64_t labd_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* ---- what the data plane asks for ---- */

int64_t labd_now_ms(void *ctx)
{
	(void)ctx;
	return labd_now_ns() / 1000000;
}

static void on_send(void *ctx, unsigned port, const struct net_offload *off, const uint8_t *frame,
		    size_t len)
{
	struct labd *d = ctx;
	const struct policy_port *q = &fabric_policy(d->f)->ports[port];

	labd_captured(d, true, (int)port, q->network, frame, len);
	labd_frame_to(d, q->card, off, frame, len);
}

static void on_seen(void *ctx, int port, unsigned network, const struct fabric_verdict *v,
		    const uint8_t *frame, size_t len)
{
	struct labd *d = ctx;

	d->verdict = *v;
	d->has_verdict = true;
	labd_captured(d, false, port, network, frame, len);
}

void labd_input(struct labd *d, unsigned port, const struct net_offload *off, uint8_t *frame, size_t len)
{
	fabric_input(d->f, port, off, frame, len);
	d->has_verdict = false;
}

/* ---- control ---- */

static void close_client(struct labd *d, struct lab_client *c)
{
	if (c->fd < 0)
		return;
	labd_end_captures(d, (int)(c - d->clients), NULL, NULL);
	close(c->fd);
	if (c->pass_fd >= 0)
		close(c->pass_fd);
	bytes_free(&c->in);
	bytes_free(&c->out);
	if (c->got_fd >= 0)
		close(c->got_fd);
	*c = (struct lab_client){ .fd = -1, .pass_fd = -1, .got_fd = -1 };
}

static bool has_client_slot(const struct labd *d)
{
	for (unsigned i = 0; i < LABD_CLIENTS; i++)
		if (d->clients[i].fd < 0)
			return true;
	return false;
}

static void accept_client(struct labd *d)
{
	int fd = accept4(d->control_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	/* Without descriptors the caller stays where it is, and must not be asked about all the time. */
	if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
		d->accept_at_ns = labd_now_ns() + ACCEPT_AGAIN_NS;
	for (unsigned i = 0; fd >= 0 && i < LABD_CLIENTS; i++)
		if (d->clients[i].fd < 0) {
			d->clients[i].fd = fd;
			return;
		}
	if (fd >= 0)
		close(fd);
}

static void run_line(struct labd *d, struct lab_client *c, const char *line, size_t len)
{
	json_t *request = json_loadb(line, len, 0, NULL), *reply = json_object();
	struct error err = { "this is no JSON object" };
	int pass_fd = -1, r = request ? labd_command(d, c, request, reply, &pass_fd, &err) : -EINVAL;

	json_object_set_new(reply, "ok", json_boolean(r == 0));
	if (r < 0)
		json_object_set_new(reply, "error", json_string(err.text));
	_cleanup_free_ char *text = json_dumps(reply, JSON_COMPACT);
	if (!text || c->out.len - c->out_off > CLIENT_OUT_MAX || (pass_fd >= 0 && c->pass_fd >= 0))
		c->is_closing = true;
	else
		bytes_printf(&c->out, "%s\n", text);
	if (c->pass_fd < 0)
		c->pass_fd = pass_fd;
	else if (pass_fd >= 0)
		close(pass_fd);
	json_decref(request);
	json_decref(reply);
}

void labd_keep_descriptor(struct msghdr *msg, int *kept)
{
	struct cmsghdr *m = CMSG_FIRSTHDR(msg);

	if (!m || m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
		return;
	for (size_t i = 0; i < (m->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
		if (*kept >= 0)
			close(*kept);
		memcpy(kept, CMSG_DATA(m) + i * sizeof(int), sizeof(int));
	}
}

static ssize_t receive(struct lab_client *c, uint8_t *buf, size_t cap)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { buf, cap };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n > 0)
		labd_keep_descriptor(&msg, &c->got_fd);
	return n;
}

static void read_client(struct labd *d, struct lab_client *c)
{
	uint8_t buf[4096], *nl;
	ssize_t n = receive(c, buf, sizeof(buf));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		bytes_put(&c->in, buf, (size_t)n);
	if (n <= 0 || c->in.is_failed) {
		close_client(d, c);
		return;
	}
	while (!c->is_closing && c->in.len && (nl = memchr(c->in.data, '\n', c->in.len))) {
		size_t len = (size_t)(nl - c->in.data);
		run_line(d, c, (char *)c->in.data, len);
		c->in.len -= len + 1;
		memmove(c->in.data, nl + 1, c->in.len);
	}
	c->is_closing |= c->in.len > LABD_LINE_MAX || c->out.is_failed;
}

static void write_client(struct lab_client *c)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { c->out.data + c->out_off, c->out.len - c->out_off };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (c->pass_fd >= 0) {
		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
		struct cmsghdr *m = CMSG_FIRSTHDR(&msg);
		m->cmsg_level = SOL_SOCKET;
		m->cmsg_type = SCM_RIGHTS;
		m->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(m), &c->pass_fd, sizeof(int));
	}
	ssize_t n = iov.iov_len ? sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		c->is_closing = true;
	if (n <= 0)
		return;
	if (c->pass_fd >= 0)
		close(c->pass_fd);
	c->pass_fd = -1;
	c->out_off += (size_t)n;
	if (c->out_off == c->out.len)
		c->out.len = c->out_off = 0;
}

static void serve_client(struct labd *d, struct lab_client *c, short events)
{
	if (events & (POLLIN | POLLHUP | POLLERR))
		read_client(d, c);
	if (c->fd >= 0)
		write_client(c);
	if (c->fd >= 0 && c->is_closing)
		close_client(d, c);
}

/* ---- what is no internet ---- */

struct host_news {
	struct labd *d;
	struct policy *policy; /* NULL: nothing is new */
};

static void on_host_network(void *arg, const struct net_prefix *range)
{
	struct host_news *n = arg;
	char text[NET_ADDR_TEXT];

	if (policy_has_blocked(n->policy ? n->policy : fabric_policy(n->d->f), range))
		return;
	if (!n->policy)
		n->policy = policy_copy(fabric_policy(n->d->f));
	if (!n->policy) {
		n->d->is_stopping = true; /* rather no network than one too many */
		log_error("net", "no memory to deny the host's new network %s",
			  net_prefix_format(range, text));
		return;
	}
	log_info("net", "%s is a network of this host now, and no internet",
		 net_prefix_format(range, text));
	if (policy_block(n->policy, range) < 0) {
		log_error("net", "this host has more networks than a policy can hold: the whole "
				 "internet is denied");
		policy_block_all(n->policy);
	}
}

static void read_host_networks(struct labd *d)
{
	struct host_news n = { d, NULL };
	int r = host_watch_read(d->host_watch_fd, on_host_network, &n);

	if (n.policy && fabric_set_policy(d->f, n.policy) < 0) {
		d->is_stopping = true;
		log_error("net", "no memory to deny new networks of this host");
	}
	if (r == 0)
		return;
	log_error("net", "new networks of this host are not denied any more: %s", strerror(-r));
	close(d->host_watch_fd);
	d->host_watch_fd = -1;
}

/* ---- the loop ---- */

static struct pollfd *add_poll(struct labd *d, int fd, short events)
{
	if (d->npfds == d->pfds_cap)
		return NULL; /* it waits for the next round */
	d->pfds[d->npfds] = (struct pollfd){ .fd = fd, .events = events };
	return &d->pfds[d->npfds++];
}

/* Somebody waits for room at a card: its queue, or uplinks of its ports. */
static bool wants_room(const struct labd *d, unsigned card)
{
	const struct policy *policy = fabric_policy(d->f);
	const struct lab_port *p = &d->ports[card];

	if (p->queued)
		return true;
	if (labd_is_congested(p))
		return false;
	if (p->uplink && uplink_wants_room(p->uplink))
		return true;
	for (unsigned i = 0; policy->ports[card].is_trunk && i < d->nports; i++)
		if (!policy->ports[i].is_gone && policy->ports[i].card == card &&
		    d->ports[i].uplink && uplink_wants_room(d->ports[i].uplink))
			return true;
	return false;
}

static void fill_port(struct labd *d, unsigned port, uint32_t *timeout_ms)
{
	struct lab_port *p = &d->ports[port];
	bool is_up = labd_has_machine(p); /* poll(2) passes over a negative descriptor */

	p->pfd = d->npfds;
	add_poll(d, p->link.fd, is_up ? net_link_poll(&p->link, wants_room(d, port), timeout_ms) : 0);
	p->nupfds = 0;
	if (p->uplink) {
		p->nupfds = uplink_fill(p->uplink, d->pfds + d->npfds, d->pfds_cap - d->npfds,
					labd_is_congested(labd_card(d, port)), timeout_ms);
		d->npfds += p->nupfds;
	}
}

static void serve_port(struct labd *d, unsigned port, bool has_failed)
{
	struct lab_port *p = &d->ports[port];

	if (p->pfd < d->npfds)
		net_link_polled(&p->link, d->pfds[p->pfd].revents);
	if (labd_has_machine(p) && p->link.is_writable)
		labd_flush_port(d, port);
	if (p->uplink)
		uplink_polled(p->uplink, d->pfds + p->pfd + 1, p->nupfds, has_failed);
	if (labd_has_machine(p))
		labd_read_port(d, port);
	if (p->uplink)
		uplink_flush(p->uplink);
}

static int wait_round(struct labd *d, uint32_t timeout_ms, int64_t next_ns)
{
	int64_t now_ns = labd_now_ns(), wait_ns = (int64_t)timeout_ms * 1000000;

	if (next_ns != INT64_MAX)
		wait_ns = MIN(wait_ns, MAX(next_ns - now_ns, (int64_t)0));
	struct timespec ts = { wait_ns / 1000000000, wait_ns % 1000000000 };
	unsigned n = 0;

	/* Entries without a descriptor count, too, for poll(2)'s limit. */
	for (unsigned i = 0; i < d->npfds; i++)
		if (d->pfds[i].fd >= 0)
			d->live[n++] = d->pfds[i];
	int r = ppoll(d->live, n, &ts, NULL);
	for (unsigned i = 0, k = 0; i < d->npfds; i++)
		d->pfds[i].revents = d->pfds[i].fd >= 0 ? d->live[k++].revents : 0;
	return r;
}

/* Who comes when there is no room waits in the socket's queue. */
static bool may_accept(const struct labd *d, uint32_t *timeout_ms)
{
	int64_t wait_ns = d->accept_at_ns - labd_now_ns();

	if (!has_client_slot(d))
		return false;
	if (wait_ns > 0)
		*timeout_ms = MIN(*timeout_ms, (uint32_t)(wait_ns / 1000000 + 1));
	return wait_ns <= 0;
}

static bool serve_round(struct labd *d, int64_t next_ns)
{
	uint32_t timeout_ms = TIMEOUT_MAX_MS;

	d->npfds = 0;
	add_poll(d, may_accept(d, &timeout_ms) ? d->control_fd : -1, POLLIN);
	for (unsigned i = 0; i < LABD_CLIENTS; i++) {
		struct lab_client *c = &d->clients[i];
		c->pfd = d->npfds;
		add_poll(d, c->fd, (short)(POLLIN | (c->out.len ? POLLOUT : 0)));
	}
	d->host_watch_pfd = d->npfds;
	add_poll(d, d->host_watch_fd, POLLIN);
	unsigned dns_at = d->npfds;
	unsigned ndns = resolver_fill(d->resolver, d->pfds + dns_at, d->pfds_cap - dns_at, &timeout_ms);
	d->npfds += ndns;
	dns_tcp_tick(d->dns_tcp, &timeout_ms);
	for (unsigned i = 0; i < POLICY_NETWORKS_MAX; i++)
		if (d->taps[i].uplink) {
			d->taps[i].pfd = d->npfds;
			add_poll(d, tap_uplink_fd(d->taps[i].uplink), POLLIN);
		}
	for (unsigned i = 0; i < d->nports; i++)
		fill_port(d, i, &timeout_ms);
	int r = wait_round(d, timeout_ms, next_ns);
	if (r < 0 && errno != EINTR) {
		log_error("net", "poll: %s", strerror(errno));
		return false;
	}
	for (unsigned i = 0; r <= 0 && i < d->npfds; i++)
		d->pfds[i].revents = 0;
	if (d->pfds[0].revents)
		accept_client(d);
	for (unsigned i = 0; i < LABD_CLIENTS; i++)
		if (d->clients[i].fd >= 0 && d->pfds[d->clients[i].pfd].revents &&
		    d->pfds[d->clients[i].pfd].fd >= 0)
			serve_client(d, &d->clients[i], d->pfds[d->clients[i].pfd].revents);
	if (d->host_watch_pfd < d->npfds && d->pfds[d->host_watch_pfd].revents)
		read_host_networks(d);
	resolver_polled(d->resolver, fabric_policy(d->f), d->pfds + dns_at, ndns);
	for (unsigned i = 0; i < POLICY_NETWORKS_MAX; i++)
		if (d->taps[i].uplink && d->taps[i].pfd < d->npfds && d->pfds[d->taps[i].pfd].revents)
			tap_uplink_read(d->taps[i].uplink, labd_now_ns() / 1000000);
	for (unsigned i = 0; i < d->nports; i++)
		serve_port(d, i, r < 0);
	return true;
}

static void flush_clients(struct labd *d)
{
	for (unsigned i = 0; i < LABD_CLIENTS; i++)
		if (d->clients[i].fd >= 0)
			write_client(&d->clients[i]);
}

static void serve(struct labd *d)
{
	int64_t next_ns = INT64_MAX, advertise_ns = 0;

	while (!d->is_stopping && serve_round(d, MIN(next_ns, advertise_ns))) {
		int64_t now_ns = labd_now_ns();
		next_ns = labd_release(d, now_ns);
		labd_flush_captures(d);
		if (now_ns < advertise_ns)
			continue;
		advertise_ns = now_ns + ADVERTISE_NS;
		for (unsigned i = 0; i < d->nports; i++)
			fabric_port_up(d->f, i);
	}
	flush_clients(d);
}

/* ---- life ---- */

static void limit_files(unsigned *max)
{
	struct rlimit lim;

	*max = 1024;
	if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = MIN(lim.rlim_max, (rlim_t)FILES_MAX);
		if (setrlimit(RLIMIT_NOFILE, &lim) == 0)
			*max = (unsigned)lim.rlim_cur;
	}
}

static void init_faults(struct labd *d, unsigned port, const struct faults *f)
{
	fault_link_init(&d->ports[port].in, f, d->lab->seed * 1000 + 2 * port);
	fault_link_init(&d->ports[port].out, f, d->lab->seed * 1000 + 2 * port + 1);
}

static int create_fabric(struct labd *d, const struct labd_config *cfg, struct error *err)
{
	struct fabric_ops ops = { .send = on_send,
				  .uplink = labd_to_uplink,
				  .dns = labd_dns,
				  .dns_tcp = labd_dns_tcp,
				  .seen = on_seen,
				  .now_ms = labd_now_ms,
				  .ctx = d };
	struct policy *p = d->lab->policy;

	d->ports = calloc(POLICY_PORTS_MAX, sizeof(*d->ports));
	if (labd_create_dns(d, cfg->resolv_conf) < 0 || !d->ports)
		return error_set(err, -ENOMEM, "the lab has no memory");
	for (unsigned i = 0; i < POLICY_PORTS_MAX; i++) {
		d->ports[i].link.fd = -1;
		init_faults(d, i, &d->lab->faults[i]);
	}
	d->nports = p->nports;
	ops.names = resolver_names(d->resolver);
	d->lab->policy = NULL;
	d->f = fabric_create(p, &ops);
	return d->f ? 0 : error_set(err, -ENOMEM, "the lab has no memory");
}

/* Half of all descriptors is for slirp's sockets, the same part for each uplink: who opens many stops nobody else's. */
static unsigned share_of_files(const struct policy *p, unsigned max)
{
	unsigned n = 0;

	for (unsigned i = 0; i < p->nports; i++)
		n += !p->ports[i].is_gone && p->networks[p->ports[i].network].has_uplink;
	return MIN(MAX(max / 2 / MAX(n, 1u), UPLINK_SOCKETS_LEAST), UPLINK_SOCKETS_MOST);
}

static int set_up(struct labd *d, const struct labd_config *cfg, struct error *err)
{
	limit_files(&d->pfds_cap);
	d->pfds = calloc(d->pfds_cap, sizeof(*d->pfds));
	d->live = calloc(d->pfds_cap, sizeof(*d->live));
	if (!d->pfds || !d->live)
		return error_set(err, -ENOMEM, "the lab has no memory");
	struct error why;

	if (capture_load(&why) < 0)
		log_warn("net", "captures have no filters: %s", why.text);
	int r = create_fabric(d, cfg, err);
	if (r < 0)
		return r;
	const struct policy *p = fabric_policy(d->f);
	d->uplink_sockets = share_of_files(p, d->pfds_cap);
	for (unsigned i = 0; r == 0 && i < p->nports; i++)
		if (p->networks[p->ports[i].network].has_uplink)
			r = labd_create_uplink(d, i, err);
	for (unsigned i = 0; r == 0 && i < p->nnetworks; i++)
		if (p->networks[i].is_tap)
			r = labd_create_tap(d, i, err);
	for (unsigned i = 0; r == 0 && i < p->nforwards; i++)
		r = labd_add_forward(d, &p->forwards[i], err);
	if (r == 0 && cfg->watches_host && (d->host_watch_fd = host_watch_open()) < 0)
		log_warn("net", "networks that this host joins later are not denied: %s",
			 strerror(-d->host_watch_fd));
	return r;
}

/* ---- machines that come and go ---- */

static void end_card(struct labd *d, unsigned port)
{
	struct lab_port *p = &d->ports[port];

	labd_close_port(d, port);
	resolver_forget(d->resolver, port);
	dns_tcp_forget(d->dns_tcp, port);
	uplink_destroy(p->uplink);
	free(p->uplink_port);
	p->uplink = NULL;
	p->uplink_port = NULL;
}

static int begin_card(struct labd *d, unsigned port, const struct faults *f, struct error *err)
{
	const struct policy *p = fabric_policy(d->f);

	init_faults(d, port, f);
	d->ports[port].dropped = d->ports[port].lost = 0;
	labd_capture_card(d, port);
	return p->networks[p->ports[port].network].has_uplink ? labd_create_uplink(d, port, err) : 0;
}

int labd_set_machines(struct labd *d, struct policy *p, const struct faults *faults, struct error *err)
{
	const struct policy *old = fabric_policy(d->f);
	bool is_new[POLICY_PORTS_MAX];
	int r = 0;

	for (unsigned i = 0; i < p->nports; i++)
		is_new[i] = !p->ports[i].is_gone && (i >= old->nports || old->ports[i].is_gone);
	if (fabric_set_policy(d->f, p) < 0)
		return error_set(err, -ENOMEM, "the lab has no memory");
	d->nports = p->nports;
	d->uplink_sockets = share_of_files(p, d->pfds_cap);
	for (unsigned i = 0; i < p->nports; i++) {
		if (p->ports[i].is_gone)
			end_card(d, i);
		else if (is_new[i] && r == 0)
			r = begin_card(d, i, &faults[i], err);
	}
	return r;
}

static void tear_down(struct labd *d)
{
	labd_end_captures(d, -1, NULL, NULL);
	for (unsigned i = 0; i < LABD_CLIENTS; i++)
		close_client(d, &d->clients[i]);
	for (unsigned i = 0; i < d->nports; i++) {
		labd_close_port(d, i);
		uplink_destroy(d->ports[i].uplink);
		free(d->ports[i].uplink_port);
	}
	for (unsigned i = 0; i < POLICY_NETWORKS_MAX; i++)
		tap_uplink_destroy(d->taps[i].uplink);
	while (d->nheld)
		free(d->held[--d->nheld]);
	free(d->held);
	fabric_destroy(d->f);
	resolver_destroy(d->resolver);
	dns_tcp_destroy(d->dns_tcp);
	for (unsigned i = 0; i < POLICY_MACHINES_MAX; i++)
		json_decref(d->origins[i]);
	free(d->ports);
	free(d->pfds);
	free(d->live);
	if (d->control_fd >= 0)
		close(d->control_fd);
	if (d->host_watch_fd >= 0)
		close(d->host_watch_fd);
	lab_free(d->lab);
	free(d);
}

/* Does any network lead to the host's?  None comes later. */
static bool is_on_host(const struct labd *d)
{
	const struct policy *p = fabric_policy(d->f);

	for (unsigned i = 0; i < p->nnetworks; i++)
		if (p->networks[i].has_uplink || p->networks[i].is_tap)
			return true;
	return false;
}

static void report(const struct labd_config *cfg, const char *text)
{
	if (cfg->ready_fd >= 0) {
		dprintf(cfg->ready_fd, "%s\n", text);
		close(cfg->ready_fd);
	} else if (strcmp(text, "ok") != 0) {
		fprintf(stderr, "viv: %s\n", text);
	}
}

int labd_main(const struct labd_config *cfg)
{
	struct labd *d = calloc(1, sizeof(*d));
	struct error err;

	if (!d) {
		report(cfg, "the lab has no memory");
		lab_free(cfg->lab);
		return 1;
	}
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	d->lab = cfg->lab;
	d->control_fd = cfg->control_fd;
	d->host_watch_fd = -1;
	for (unsigned i = 0; i < LABD_CLIENTS; i++)
		d->clients[i].fd = d->clients[i].pass_fd = d->clients[i].got_fd = -1;
	int r = set_up(d, cfg, &err);
	if (r == 0 && cfg->is_confined)
		r = confine_network(is_on_host(d), &err);
	d->has_namespaces = r > 0;
	r = MIN(r, 0);
	report(cfg, r < 0 ? err.text : "ok");
	if (r == 0)
		serve(d);
	tear_down(d);
	return r < 0;
}
