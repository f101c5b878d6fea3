/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queue 0 receives, queue 1 sends, queue 2 controls.  Every frame in a queue is preceded by a 12-byte header
 * (5.1.6) that is struct net_offload plus num_buffers.
 *
 * Receiving copies from the port's buffer into the guest's; with mergeable buffers a frame spreads over
 * as many chains as it needs, published together.  Without room the port is told -ENOBUFS and keeps
 * or drops the frame; a kick of queue 0 calls it again (rx_ready).  Sending hands the guest's own
 * buffers to the port; when that is congested the chain stays in the ring until tx_ready.
 *
 * What the driver did not negotiate is done here in software: it never sees a frame with hints it does not
 * understand.
 */
#include "dev/virtio/virtio_net.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "net/offload.h"

// clang-format off
#define F_CSUM                VIRTIO_F(0)
#define F_GUEST_CSUM          VIRTIO_F(1)
#define F_CTRL_GUEST_OFFLOADS VIRTIO_F(2)
#define F_MAC                 VIRTIO_F(5)
#define F_GUEST_TSO4          VIRTIO_F(7)
#define F_GUEST_TSO6          VIRTIO_F(8)
#define F_GUEST_ECN           VIRTIO_F(9)
#define F_HOST_TSO4           VIRTIO_F(11)
#define F_HOST_TSO6           VIRTIO_F(12)
#define F_HOST_ECN            VIRTIO_F(13)
#define F_MRG_RXBUF           VIRTIO_F(15)
#define F_STATUS              VIRTIO_F(16)
#define F_CTRL_VQ             VIRTIO_F(17)
#define F_CTRL_RX             VIRTIO_F(18)
#define F_CTRL_RX_EXTRA       VIRTIO_F(20)
#define F_GUEST_ANNOUNCE      VIRTIO_F(21)
#define F_CTRL_MAC_ADDR       VIRTIO_F(23)
#define GUEST_OFFLOADS        (F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN)
// clang-format on

enum { QUEUE_RX, QUEUE_TX, QUEUE_CTRL, NQUEUES };
#define QUEUE_SIZE    256
#define CTRL_SIZE     64
#define HEADER_BYTES  12
#define FRAME_MIN     14
#define MAC_TABLE_MAX 64
#define MERGE_MAX     64 /* chains a frame may spread over */

/* 5.1.6.5: class and command */
enum { CTRL_OK = 0, CTRL_ERR = 1 };
enum { CLASS_RX = 0, CLASS_MAC = 1, CLASS_ANNOUNCE = 3, CLASS_GUEST_OFFLOADS = 5 };
enum { RX_PROMISC, RX_ALLMULTI, RX_ALLUNI, RX_NOMULTI, RX_NOUNI, RX_NOBCAST, RX_MODES };
enum { MAC_TABLE_SET = 0, MAC_ADDR_SET = 1 };
enum { ANNOUNCE_ACK = 0 };
enum { OFFLOADS_SET = 0 };

/* 5.1.4 */
#define STATUS_LINK_UP	1u
#define STATUS_ANNOUNCE 2u

struct __attribute__((packed)) config_space {
	uint8_t mac[6];
	uint16_t status;
};

struct net_header {
	struct net_offload off;
	uint16_t num_buffers;
};
_Static_assert(sizeof(struct net_header) == HEADER_BYTES, "virtio 1.2, 5.1.6");

struct virtio_net {
	struct virtio_pci pci;
	uint64_t guest_offloads; /* feature bits in force */
	uint8_t mac[6];
	bool is_link_up;
	uint8_t rx_mode;		       /* bit n: RX_ mode n is on */
	uint8_t nunicast, nmulticast;	       /* in the table, in this order */
	bool is_unicast_all, is_multicast_all; /* the table overflowed */
	uint8_t mac_table[MAC_TABLE_MAX][6];
	uint8_t reserved[4]; /* zero */
	struct net_host {
		struct net_port *port;
		struct virtio_net_stats stats;
		struct iovec *rx_iov; /* VQ_IOV_MAX a merged chain */
		uint8_t *frame;	      /* NET_FRAME_MAX: for software offloads */
		bool is_rx_starved;   /* the port was told -ENOBUFS */
		/* After virtio_net_reappear(); a snapshot has none of it, as it is for one place only. */
		bool is_announcing, has_new_mac;
	} host;
};

static int check_state(const void *obj, struct error *err)
{
	const struct virtio_net *n = obj;

	if (n->nunicast + n->nmulticast > MAC_TABLE_MAX || n->rx_mode >= 1u << RX_MODES ||
	    n->guest_offloads & ~(n->pci.v.features & GUEST_OFFLOADS))
		return error_set(err, -EINVAL, "virtio-net: no such receive filter or offloads");
	for (unsigned i = 0; i < sizeof(n->reserved); i++)
		if (n->reserved[i])
			return error_set(err, -EINVAL, "virtio-net state has reserved bytes set");
	return 0;
}

// clang-format off
static const struct field virtio_net_fields[] = {
	F_STRUCT(struct virtio_net, pci, &virtio_pci_state),
	F_U64(struct virtio_net, guest_offloads),
	F_BYTES(struct virtio_net, mac),
	F_BOOL(struct virtio_net, is_link_up),
	F_U8(struct virtio_net, rx_mode),
	F_U8(struct virtio_net, nunicast),
	F_U8(struct virtio_net, nmulticast),
	F_BOOL(struct virtio_net, is_unicast_all),
	F_BOOL(struct virtio_net, is_multicast_all),
	F_BYTES(struct virtio_net, mac_table),
	F_BYTES(struct virtio_net, reserved),
	F_HOST(struct virtio_net, host),
	F_END,
};
// clang-format on
static const struct state_desc virtio_net_state = {
	.name = "virtio-net",
	.version = 1,
	.size = sizeof(struct virtio_net),
	.fields = virtio_net_fields,
	.check = check_state,
};

static struct virtio_net *net_of(struct virtio_dev *v)
{
	return container_of(v, struct virtio_net, pci.v);
}

/* ---- receiving ---- */

static bool has_mode(const struct virtio_net *n, unsigned mode)
{
	return n->rx_mode & (1u << mode);
}

static bool is_in_table(const struct virtio_net *n, unsigned from, unsigned count, const uint8_t *mac)
{
	for (unsigned i = from; i < from + count; i++)
		if (!memcmp(n->mac_table[i], mac, 6))
			return true;
	return false;
}

/* 5.1.6.5.1, .2: is a frame to @mac for this guest? */
static bool is_wanted(const struct virtio_net *n, const uint8_t *mac)
{
	static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

	if (has_mode(n, RX_PROMISC))
		return true;
	if (!memcmp(mac, broadcast, 6))
		return !has_mode(n, RX_NOBCAST);
	if (mac[0] & 1)
		return !has_mode(n, RX_NOMULTI) && (has_mode(n, RX_ALLMULTI) || n->is_multicast_all ||
						    is_in_table(n, n->nunicast, n->nmulticast, mac));
	return !has_mode(n, RX_NOUNI) &&
	       (has_mode(n, RX_ALLUNI) || n->is_unicast_all || !memcmp(mac, n->mac, 6) ||
		(n->host.has_new_mac && !memcmp(mac, n->host.port->mac, 6)) ||
		is_in_table(n, 0, n->nunicast, mac));
}

/*
 * Puts header and frame into the guest's next buffers.  Returns 0, -ENOBUFS (nothing was taken), or
 * -EMSGSIZE (the frame can't ever fit).
 */
static int fill_buffers(struct virtio_net *n, struct virtqueue *vq, const struct net_offload *off,
			const struct iovec *iov, unsigned niov)
{
	struct vq_elem elems[MERGE_MAX];
	uint64_t takes[MERGE_MAX];
	size_t len = iov_bytes(iov, niov), need = HEADER_BYTES + len, room = 0;
	unsigned nelems = 0, max = virtio_has(&n->pci.v, F_MRG_RXBUF) ? MERGE_MAX : 1, used = 0;
	int r;

	/* Gather. */
	while (room < need) {
		struct vq_elem *e = &elems[nelems];
		if (nelems == max) {
			vq_unpop(vq, nelems);
			return -EMSGSIZE;
		}
		/* The vectors of all chains share one array; what a chain may need is left free. */
		e->iov = n->host.rx_iov + used;
		r = vq_pop(vq, e);
		if (r <= 0) {
			vq_unpop(vq, nelems);
			return -ENOBUFS;
		}
		if (!nelems && e->in_bytes < HEADER_BYTES) {
			vq_unpop(vq, 1);
			virtio_break(&n->pci.v, QUEUE_RX, "a receive buffer shorter than a header");
			return -ENOBUFS;
		}
		used += e->nout + e->nin;
		takes[nelems] = MIN(e->in_bytes, (uint64_t)(need - room));
		room += takes[nelems++];
	}
	/* Fill. */
	struct net_header h = { .off = *off, .num_buffers = nelems };
	size_t done = 0;
	for (unsigned i = 0, src = 0, src_off = 0; i < nelems; i++) {
		size_t at = 0;
		if (!i)
			at = iov_from_buf(vq_in_iov(&elems[0]), elems[0].nin, 0, &h, HEADER_BYTES);
		while (at < takes[i]) {
			size_t part = MIN(iov[src].iov_len - src_off, takes[i] - at);
			iov_from_buf(vq_in_iov(&elems[i]), elems[i].nin, at,
				     (uint8_t *)iov[src].iov_base + src_off, part);
			at += part;
			src_off += part;
			done += part;
			if (src_off == iov[src].iov_len) {
				src++;
				src_off = 0;
			}
		}
		vq_put(vq, &elems[i], takes[i]);
	}
	n->host.stats.rx_frames++;
	n->host.stats.rx_bytes += done;
	return 0;
}

/* One plain or hinted frame that the driver understands. */
static int deliver(struct virtio_net *n, const struct net_offload *off, const struct iovec *iov,
		   unsigned niov)
{
	struct virtqueue *vq = virtio_vq(&n->pci.v, QUEUE_RX);
	int r;

	if (!vq)
		return -ENOBUFS;
	vq_disarm_kick(vq);
	r = fill_buffers(n, vq, off, iov, niov);
	/* No room: ask for a kick, and look again, as some may have come meanwhile. */
	for (unsigned tries = 0; r == -ENOBUFS && vq_arm_kick_more(vq); tries++) {
		if (tries == 4) {
			virtio_defer(&n->pci.v, QUEUE_RX);
			break;
		}
		r = fill_buffers(n, vq, off, iov, niov);
	}
	return r;
}

static int emit_plain(void *arg, const uint8_t *frame, size_t len)
{
	static const struct net_offload none;
	struct iovec iov = { (void *)(uintptr_t)frame, len };

	return deliver(arg, &none, &iov, 1);
}

static bool driver_understands(const struct virtio_net *n, const struct net_offload *off)
{
	uint64_t have = n->guest_offloads;

	if (off->flags & NET_OFF_NEEDS_CSUM && !(have & F_GUEST_CSUM))
		return false;
	if (off->gso_type & NET_GSO_ECN && !(have & F_GUEST_ECN))
		return false;
	switch (off->gso_type & ~NET_GSO_ECN) {
	case NET_GSO_NONE:
		return true;
	case NET_GSO_TCP4:
		return have & F_GUEST_TSO4;
	case NET_GSO_TCP6:
		return have & F_GUEST_TSO6;
	}
	return false;
}

static int net_receive(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	struct virtio_net *n = ctx;
	struct net_offload o = *off;
	uint8_t dst[6];
	int r;

	if (!virtio_vq(&n->pci.v, QUEUE_RX)) {
		/* No driver: as with a cable in a machine that is off, frames are lost; paused: kept. */
		if (n->pci.v.host.is_paused) {
			n->host.is_rx_starved = true;
			return -ENOBUFS;
		}
		n->host.stats.rx_dropped++;
		return 0;
	}
	size_t len = iov_bytes(iov, niov);
	if (len < FRAME_MIN || len > NET_FRAME_MAX) {
		n->host.stats.rx_dropped++;
		return 0;
	}
	iov_to_buf(iov, niov, 0, dst, sizeof(dst));
	if (!is_wanted(n, dst)) {
		n->host.stats.rx_filtered++;
		return 0;
	}
	if (!(n->guest_offloads & F_GUEST_CSUM))
		o.flags &= ~NET_OFF_CSUM_VALID;
	if (driver_understands(n, &o)) {
		r = deliver(n, &o, iov, niov);
	} else {
		iov_to_buf(iov, niov, 0, n->host.frame, len);
		uint64_t before = n->host.stats.rx_frames;
		r = offload_segment(&o, n->host.frame, len, emit_plain, n);
		/* Part of it got through: the rest is lost, as on a wire. */
		if (r == -ENOBUFS && n->host.stats.rx_frames != before)
			r = 0;
	}
	virtio_flush(&n->pci.v, QUEUE_RX);
	if (r == -ENOBUFS) {
		n->host.is_rx_starved = true;
		return r;
	}
	if (r < 0)
		n->host.stats.rx_dropped++;
	return 0;
}

static void feed_receiver(struct virtio_net *n)
{
	if (!n->host.is_rx_starved)
		return;
	n->host.is_rx_starved = false;
	n->host.port->ops->rx_ready(n->host.port);
}

/* ---- sending ---- */

/* Hints for things not negotiated: the driver is wrong. */
static bool may_send(const struct virtio_net *n, const struct net_offload *off)
{
	const struct virtio_dev *v = &n->pci.v;

	if (off->flags & NET_OFF_NEEDS_CSUM && !virtio_has(v, F_CSUM))
		return false;
	if (off->gso_type & NET_GSO_ECN && !virtio_has(v, F_HOST_ECN))
		return false;
	switch (off->gso_type & ~NET_GSO_ECN) {
	case NET_GSO_NONE:
		return true;
	case NET_GSO_TCP4:
		return virtio_has(v, F_HOST_TSO4);
	case NET_GSO_TCP6:
		return virtio_has(v, F_HOST_TSO6);
	}
	return false;
}

static int64_t handle_tx(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	struct virtio_net *n = net_of(v);
	struct iovec iov[VQ_IOV_MAX];
	struct net_header h;

	(void)q;
	uint64_t len = e->out_bytes - HEADER_BYTES;
	if (e->out_bytes < HEADER_BYTES + FRAME_MIN || len > NET_FRAME_MAX) {
		log_guest("virtio-net", "%s: a frame of %lld bytes", n->pci.dev.id, (long long)len);
		n->host.stats.tx_dropped++;
		return 0;
	}
	iov_to_buf(e->iov, e->nout, 0, &h, sizeof(h));
	h.off.flags &= NET_OFF_NEEDS_CSUM;
	if (!may_send(n, &h.off)) {
		log_guest("virtio-net", "%s: offloads that were not negotiated", n->pci.dev.id);
		n->host.stats.tx_dropped++;
		return 0;
	}
	unsigned niov = iov_slice(e->iov, e->nout, HEADER_BYTES, len, iov);
	int r = n->host.port->ops->send(n->host.port, &h.off, iov, niov);
	if (r == -EAGAIN)
		return VIRTIO_STOP;
	if (r < 0) {
		n->host.stats.tx_dropped++;
		return 0;
	}
	n->host.stats.tx_frames++;
	n->host.stats.tx_bytes += len;
	return 0;
}

static void net_tx_ready(void *ctx)
{
	virtio_kick(&((struct virtio_net *)ctx)->pci.v, QUEUE_TX);
}

static void net_link_changed(void *ctx, bool is_up)
{
	struct virtio_net *n = ctx;

	if (n->is_link_up == is_up)
		return;
	n->is_link_up = is_up;
	virtio_config_changed(&n->pci.v);
}

/* ---- control ---- */

/* One list of a MAC table command: count, then addresses.  Advances *@off.  False: malformed. */
static bool take_mac_list(struct virtio_net *n, const struct vq_elem *e, size_t *off,
			  unsigned *filled, uint8_t *count, bool *is_all)
{
	uint32_t entries;

	if (iov_to_buf(e->iov, e->nout, *off, &entries, 4) != 4)
		return false;
	*off += 4;
	if (entries > (e->out_bytes - *off) / 6)
		return false;
	*is_all = entries > MAC_TABLE_MAX - *filled;
	*count = *is_all ? 0 : entries;
	iov_to_buf(e->iov, e->nout, *off, n->mac_table[*filled], *count * 6u);
	*filled += *count;
	*off += (size_t)entries * 6;
	return true;
}

static uint8_t set_mac_table(struct virtio_net *n, const struct vq_elem *e)
{
	unsigned filled = 0;
	size_t off = 2;

	n->nunicast = n->nmulticast = 0;
	n->is_unicast_all = n->is_multicast_all = false;
	memset(n->mac_table, 0, sizeof(n->mac_table));
	if (take_mac_list(n, e, &off, &filled, &n->nunicast, &n->is_unicast_all) &&
	    take_mac_list(n, e, &off, &filled, &n->nmulticast, &n->is_multicast_all))
		return CTRL_OK;
	return CTRL_ERR;
}

static uint8_t do_control(struct virtio_net *n, const struct vq_elem *e)
{
	struct virtio_dev *v = &n->pci.v;
	uint8_t cmd[2], on;
	uint64_t offloads;

	if (iov_to_buf(e->iov, e->nout, 0, cmd, 2) != 2)
		return CTRL_ERR;
	switch (cmd[0]) {
	case CLASS_RX:
		if (cmd[1] >= RX_MODES ||
		    !virtio_has(v, cmd[1] <= RX_ALLMULTI ? F_CTRL_RX : F_CTRL_RX_EXTRA) ||
		    iov_to_buf(e->iov, e->nout, 2, &on, 1) != 1 || on > 1)
			return CTRL_ERR;
		n->rx_mode = (n->rx_mode & ~(1u << cmd[1])) | (unsigned)on << cmd[1];
		return CTRL_OK;
	case CLASS_MAC:
		if (cmd[1] == MAC_TABLE_SET && virtio_has(v, F_CTRL_RX))
			return set_mac_table(n, e);
		if (cmd[1] == MAC_ADDR_SET && virtio_has(v, F_CTRL_MAC_ADDR) && e->out_bytes == 8) {
			iov_to_buf(e->iov, e->nout, 2, n->mac, 6);
			n->host.has_new_mac = false;
			return CTRL_OK;
		}
		return CTRL_ERR;
	case CLASS_ANNOUNCE:
		if (cmd[1] != ANNOUNCE_ACK || !virtio_has(v, F_GUEST_ANNOUNCE) || e->out_bytes != 2)
			return CTRL_ERR;
		n->host.is_announcing = false;
		return CTRL_OK;
	case CLASS_GUEST_OFFLOADS:
		if (cmd[1] != OFFLOADS_SET || !virtio_has(v, F_CTRL_GUEST_OFFLOADS) ||
		    iov_to_buf(e->iov, e->nout, 2, &offloads, 8) != 8 ||
		    offloads & ~(v->features & GUEST_OFFLOADS))
			return CTRL_ERR;
		n->guest_offloads = offloads;
		return CTRL_OK;
	}
	return CTRL_ERR;
}

static int64_t handle_ctrl(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	if (!e->in_bytes) {
		virtio_break(v, q, "a control command without room for its answer");
		return 0;
	}
	uint8_t ack = do_control(net_of(v), e);
	return iov_from_buf(vq_in_iov(e), e->nin, 0, &ack, 1);
}

/* ---- virtio_class ---- */

static void net_kick(struct virtio_dev *v, unsigned q)
{
	switch (q) {
	case QUEUE_RX:
		feed_receiver(net_of(v));
		break;
	case QUEUE_TX:
		virtio_serve(v, q, handle_tx);
		break;
	case QUEUE_CTRL:
		virtio_serve(v, q, handle_ctrl);
		break;
	}
}

static void net_config_read(struct virtio_dev *v, uint8_t *config)
{
	const struct virtio_net *n = net_of(v);
	struct config_space c = { .status = (n->is_link_up ? STATUS_LINK_UP : 0) |
					    (n->host.is_announcing ? STATUS_ANNOUNCE : 0) };

	memcpy(c.mac, n->host.has_new_mac ? n->host.port->mac : n->mac, 6);
	memcpy(config, &c, sizeof(c));
}

static void net_start(struct virtio_dev *v)
{
	struct virtio_net *n = net_of(v);

	n->guest_offloads = v->features & GUEST_OFFLOADS;
	/* Without control commands for it the driver filters by itself. */
	if (!virtio_has(v, F_CTRL_RX))
		n->rx_mode = 1u << RX_PROMISC;
}

static void net_reset(struct virtio_dev *v)
{
	struct virtio_net *n = net_of(v);

	memcpy(n->mac, n->host.port->mac, 6);
	n->host.is_announcing = n->host.has_new_mac = false;
	n->guest_offloads = 0;
	n->rx_mode = 0;
	n->nunicast = n->nmulticast = 0;
	n->is_unicast_all = n->is_multicast_all = false;
	memset(n->mac_table, 0, sizeof(n->mac_table));
}

static const struct virtio_class net_virtio_class = {
	.name = "virtio-net",
	.id = VIRTIO_ID_NET,
	.pci_class = 0x020000,
	.config_len = sizeof(struct config_space),
	.config_read = net_config_read,
	.start = net_start,
	.kick = net_kick,
	.reset = net_reset,
};

/* ---- device ---- */

static void net_destroy(struct device *d)
{
	struct virtio_net *n = container_of(d, struct virtio_net, pci.dev);

	n->host.port->card = (struct net_card){ 0 };
	virtio_pci_fini(&n->pci);
	free(n->host.rx_iov);
	free(n->host.frame);
	free(n);
}

const struct device_class virtio_net_class = {
	.name = "virtio-net",
	.state = &virtio_net_state,
	.reset = virtio_pci_device_reset,
	.after_load = virtio_pci_device_after_load,
	.destroy = net_destroy,
	.pause = virtio_pci_device_pause,
	.resume = virtio_pci_device_resume,
};

int virtio_net_create(struct virtio_net **out, const struct dev_env *env, struct pci_bus *bus,
		      const char *id, const struct virtio_net_config *cfg, struct error *err)
{
	static const uint16_t sizes[NQUEUES] = { QUEUE_SIZE, QUEUE_SIZE, CTRL_SIZE };
	uint64_t offered = F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_CTRL_RX |
			   F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR | F_GUEST_ANNOUNCE;
	struct virtio_net *n = calloc(1, sizeof(*n));
	int r = -ENOMEM;

	if (!n)
		return error_set(err, -ENOMEM, "out of memory");
	if (cfg->port->can_offload)
		offered |= F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | GUEST_OFFLOADS |
			   F_CTRL_GUEST_OFFLOADS;
	n->host.port = cfg->port;
	n->host.rx_iov = calloc((size_t)VQ_IOV_MAX * MERGE_MAX, sizeof(struct iovec));
	n->host.frame = malloc(NET_FRAME_MAX);
	if (!n->host.rx_iov || !n->host.frame) {
		error_set(err, r, "out of memory");
		goto fail;
	}
	memcpy(n->mac, cfg->port->mac, 6);
	n->is_link_up = true;
	r = virtio_pci_init(&n->pci, &virtio_net_class, id, bus, cfg->slot, env, &net_virtio_class,
			    offered, sizes, NQUEUES, err);
	if (r < 0)
		goto fail;
	/* A driver wants its sent frames back some time; most it finds by itself at the next one. */
	virtio_moderate(&n->pci.v, QUEUE_TX);
	cfg->port->card = (struct net_card){
		.receive = net_receive,
		.link_changed = net_link_changed,
		.tx_ready = net_tx_ready,
		.ctx = n,
	};
	*out = n;
	return 0;
fail:
	free(n->host.rx_iov);
	free(n->host.frame);
	free(n);
	return r;
}

void virtio_net_reappear(struct virtio_net *n)
{
	n->host.has_new_mac = memcmp(n->mac, n->host.port->mac, 6) != 0;
	/* Nobody would listen, and a guest that announces itself wakes up half of its programs. */
	if (n->host.port->is_alone)
		return;
	n->host.is_announcing = virtio_has(&n->pci.v, F_GUEST_ANNOUNCE) && n->is_link_up;
	if (n->host.has_new_mac || n->host.is_announcing)
		virtio_config_changed(&n->pci.v);
}

void virtio_net_mac(const struct virtio_net *n, uint8_t mac[6])
{
	memcpy(mac, n->mac, 6);
}

struct device *virtio_net_device(struct virtio_net *n)
{
	return &n->pci.dev;
}

void virtio_net_stats(const struct virtio_net *n, struct virtio_net_stats *out)
{
	*out = n->host.stats;
}
