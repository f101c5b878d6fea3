/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/vm_handover.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "net/link.h"

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void vm_handover_init(struct vm_handover *v, struct vm_host *host)
{
	*v = (struct vm_handover){ .host = host, .status_fd = -1, .lifeline_fd = -1, .lock = -1 };
	for (unsigned i = 0; i < MACHINE_MAX_NICS; i++)
		v->cards[i] = v->peers[i] = -1;
}

void vm_handover_end(struct vm_handover *v, bool has_left)
{
	for (unsigned i = 0; i < MACHINE_MAX_NICS; i++) {
		close_fd(&v->cards[i]);
		close_fd(&v->peers[i]);
	}
	close_fd(&v->lock);
	if (has_left && broker_door() >= 0)
		broker_leave();
	else if (has_left)
		vm_host_has_left(v->host);
}

/* ---- cards ---- */

void vm_handover_note_cards(struct vm_handover *v, const struct broker_start *s)
{
	v->have.n = s->ncards;
	v->have.is_tap = s->is_tap;
	memcpy(v->have.macs, s->macs, sizeof(s->macs));
	for (unsigned i = 0; i < s->ncards; i++)
		v->cards[i] = fcntl(s->cards[i], F_DUPFD_CLOEXEC, 0);
}

int vm_handover_make_cards(struct vm_handover *v, struct handover_cards *c, struct broker_start *s,
			   struct error *err)
{
	s->is_tap = c->is_tap;
	memcpy(s->macs, c->macs, sizeof(c->macs));
	for (s->ncards = 0; s->ncards < c->n; s->ncards++) {
		int pair[2] = { c->fds[s->ncards], -1 };

		if (!c->is_tap && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
			return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
		s->cards[s->ncards] = pair[0];
		v->peers[s->ncards] = pair[1];
	}
	return 0;
}

void vm_handover_cards(void *arg, struct handover_cards *c)
{
	struct vm_handover *v = arg;

	*c = v->have;
	for (unsigned i = 0; i < MACHINE_MAX_NICS; i++)
		c->fds[i] = c->is_tap ? v->cards[i] : -1;
}

static void turn_networks(struct vm_handover *v, const struct handover *h)
{
	for (unsigned i = 0; i < MACHINE_MAX_NICS; i++) {
		int r = v->peers[i] < 0	 ? 0
			: i >= h->ncards ? -ENODEV
					 : net_link_hand_over(h->cards[i], v->peers[i]);

		if (r < 0)
			log_error("vm", "card %u has lost its network: %s", i, strerror(-r));
		close_fd(&v->peers[i]);
	}
}

/* ---- to the next process ---- */

/* A copy of a machine has it at its broker only. */
static int get_lock(struct vm_handover *v, struct error *err)
{
	if (v->lock >= 0)
		return 0;
	if (broker_door() >= 0) {
		v->lock = broker_lock(err);
		return MIN(v->lock, 0);
	}
	v->lock = fcntl(v->host->lock_fd, F_DUPFD_CLOEXEC, 0);
	return v->lock >= 0 ? 0 : error_set(err, -EBADF, "the machine has no lock to hand over");
}

int vm_handover_give(void *arg, struct handover *h, struct bytes *console, struct error *err)
{
	struct vm_handover *v = arg;
	int r = agent_is_busy(v->agent)
			? error_set(err, -EBUSY, "a command is being executed in the guest by its agent, which would be lost; wait for its end")
			: get_lock(v, err);

	if (r < 0)
		return r;
	h->lock = v->lock;
	h->listen = ctl_hold(v->ctl, true);
	h->status = v->status_fd;
	h->lifeline = v->lifeline_fd;
	h->ncards = v->have.is_tap ? 0 : v->have.n;
	memcpy(h->cards, v->cards, sizeof(h->cards));
	machine_hold_cards(v->machine, true);
	chardev_hub_hold(v->hub, true);
	h->nclients = chardev_hub_save(v->hub, console, h->clients);
	return 0;
}

void vm_handover_keep(void *arg)
{
	struct vm_handover *v = arg;

	(void)ctl_hold(v->ctl, false);
	machine_hold_cards(v->machine, false);
	chardev_hub_hold(v->hub, false);
}

/* ---- from the one before ---- */

static int take_lock(struct vm_handover *v, int *lock_fd, struct error *err)
{
	int fd = *lock_fd;

	*lock_fd = -1;
	if (fd < 0)
		return error_set(err, -ENOLCK, "the old process has not handed over the machine's lock");
	if (broker_door() < 0)
		return vm_host_arrived(v->host, v->name, fd, err);
	v->host->lock_fd = fd; /* until the end of this process, as every machine's */
	return broker_arrive(fd, err);
}

void vm_handover_take(struct vm_handover *v, struct handover *h, const struct bytes *console)
{
	struct error err;

	turn_networks(v, h);
	machine_hold_cards(v->machine, false);
	if (take_lock(v, &h->lock, &err) < 0)
		log_error("vm", "%s", err.text);
	if (console->len) {
		if (chardev_hub_load(v->hub, console->data, console->len, h->clients, h->nclients,
				     &err) < 0)
			log_warn("vm", "console: %s", err.text);
		h->nclients = 0;
	}
	if (h->listen >= 0 && ctl_listen(v->ctl, h->listen, &err) < 0)
		log_error("vm", "%s", err.text);
	h->listen = -1;
	v->status_fd = h->status;
	h->status = -1;
}
