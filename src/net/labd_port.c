/* SPDX-License-Identifier: Apache-2.0 */
/* Frames between the data plane and the links of machines: bounded queues, and the faults of links. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "net/labd_int.h"

static struct lab_frame *keep_frame(unsigned port, bool is_in, const struct net_offload *off,
				    const uint8_t *frame, size_t len)
{
	struct lab_frame *f = malloc(sizeof(*f) + len);

	if (!f)
		return NULL;
	f->port = port;
	f->is_in = is_in;
	f->len = (uint32_t)len;
	f->off = *off;
	memcpy(f->data, frame, len);
	return f;
}

/* ---- to the machine ---- */

static bool is_full(struct lab_port *p, const struct net_offload *off, const uint8_t *frame, size_t len)
{
	struct iovec iov = { (void *)(uintptr_t)frame, len };

	/* Its end is seen by the loop, which closes the port: nobody is in the middle of using it there. */
	return net_link_send(&p->link, off, &iov, 1) == -EAGAIN;
}

static void to_link(struct labd *d, unsigned port, const struct net_offload *off,
		    const uint8_t *frame, size_t len)
{
	struct lab_port *p = &d->ports[port];

	if (!labd_has_machine(p) || (!p->queued && !is_full(p, off, frame, len)))
		return;
	struct lab_frame *f = NULL;
	if (p->queued < LABD_QUEUE && len <= LABD_QUEUE_BYTES - p->queued_bytes)
		f = keep_frame(port, false, off, frame, len);
	if (!f) {
		p->dropped++;
		return;
	}
	p->queue[(p->head + p->queued++) % LABD_QUEUE] = f;
	p->queued_bytes += len;
}

static void pop_queue(struct lab_port *p)
{
	struct lab_frame *f = p->queue[p->head];

	p->head = (p->head + 1) % LABD_QUEUE;
	p->queued--;
	p->queued_bytes -= f->len;
	free(f);
}

void labd_flush_port(struct labd *d, unsigned port)
{
	struct lab_port *p = &d->ports[port];

	while (p->queued) {
		struct lab_frame *f = p->queue[p->head];
		if (is_full(p, &f->off, f->data, f->len))
			return;
		pop_queue(p);
	}
}

bool labd_is_congested(const struct lab_port *p)
{
	return p->queued + p->held >= LABD_QUEUE / 2 ||
	       p->queued_bytes + p->held_bytes >= LABD_QUEUE_BYTES / 2;
}

/* ---- held back by faults: a binary heap ---- */

static bool is_before(const struct lab_frame *a, const struct lab_frame *b)
{
	return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->number < b->number;
}

static bool push_held(struct labd *d, struct lab_frame *f)
{
	if (d->nheld == d->held_cap) {
		unsigned cap = MAX(d->held_cap * 2, 64u);
		struct lab_frame **held = realloc(d->held, cap * sizeof(*held));
		if (!held)
			return false;
		d->held = held;
		d->held_cap = cap;
	}
	unsigned i = d->nheld++;
	for (; i && is_before(f, d->held[(i - 1) / 2]); i = (i - 1) / 2)
		d->held[i] = d->held[(i - 1) / 2];
	d->held[i] = f;
	return true;
}

static struct lab_frame *pop_held(struct labd *d)
{
	struct lab_frame *first = d->held[0], *last = d->held[--d->nheld];
	unsigned i = 0;

	for (unsigned child; (child = 2 * i + 1) < d->nheld; i = child) {
		if (child + 1 < d->nheld && is_before(d->held[child + 1], d->held[child]))
			child++;
		if (!is_before(d->held[child], last))
			break;
		d->held[i] = d->held[child];
	}
	d->held[i] = last;
	return first;
}

/* True: it goes on at once; else it was held or lost. */
static bool pass_link(struct labd *d, unsigned port, bool is_in, const struct net_offload *off,
		      const uint8_t *frame, size_t len)
{
	struct lab_port *p = &d->ports[port];
	struct fault_link *link = is_in ? &p->in : &p->out;

	if (faults_is_none(&link->faults) && !p->held)
		return true;
	int64_t now_ns = labd_now_ns(), at_ns = fault_link_pass(link, now_ns, len);
	if (at_ns < 0) {
		p->lost++;
		return false;
	}
	if (at_ns <= now_ns && !p->held)
		return true;
	struct lab_frame *f = NULL;
	/* A long way holds more than a socket's queue. */
	if (p->held < 16 * LABD_QUEUE && len <= 4 * LABD_QUEUE_BYTES - p->held_bytes)
		f = keep_frame(port, is_in, off, frame, len);
	if (!f) {
		p->dropped++;
		return false;
	}
	f->at_ns = at_ns;
	f->number = d->number++;
	if (!push_held(d, f)) {
		free(f);
		p->dropped++;
		return false;
	}
	p->held++;
	p->held_bytes += len;
	return false;
}

int64_t labd_release(struct labd *d, int64_t now_ns)
{
	while (d->nheld && d->held[0]->at_ns <= now_ns) {
		struct lab_frame *f = pop_held(d);
		struct lab_port *p = &d->ports[f->port];
		p->held--;
		p->held_bytes -= f->len;
		if (f->is_in)
			labd_input(d, f->port, &f->off, f->data, f->len);
		else
			to_link(d, f->port, &f->off, f->data, f->len);
		free(f);
	}
	return d->nheld ? d->held[0]->at_ns : INT64_MAX;
}

void labd_frame_to(struct labd *d, unsigned port, const struct net_offload *off,
		   const uint8_t *frame, size_t len)
{
	if (labd_has_machine(&d->ports[port]) && pass_link(d, port, false, off, frame, len))
		to_link(d, port, off, frame, len);
}

/* ---- from the machine ---- */

/* It is copied before anybody looks: the machine may still write to it. */
static void take_frame(struct labd *d, unsigned port, const struct net_ring_frame *f)
{
	if (!d->ports[port].link.is_from_socket)
		memcpy(d->rx.b, f->data, f->len);
	if (pass_link(d, port, true, &f->off, d->rx.b, f->len))
		labd_input(d, port, &f->off, d->rx.b, f->len);
}

void labd_read_port(struct labd *d, unsigned port)
{
	struct lab_port *p = &d->ports[port];
	const struct net_link_rx rx = { &d->rx_off, d->rx.b };
	struct net_ring_frame f;
	int r = 1;

	for (unsigned i = 0; i < LABD_BATCH && r == 1 && labd_has_machine(p); i++) {
		r = net_link_next(&p->link, &rx, &f);
		if (r == 1) {
			take_frame(d, port, &f);
			net_link_done(&p->link);
		}
	}
	if (r < 0)
		labd_close_port(d, port);
	else if (p->link.wants_move)
		net_link_move(&p->link);
}

void labd_close_port(struct labd *d, unsigned port)
{
	struct lab_port *p = &d->ports[port];

	if (!labd_has_machine(p))
		return;
	net_link_close(&p->link);
	while (p->queued)
		pop_queue(p);
}
