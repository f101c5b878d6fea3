/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/virtio.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"

static int check_virtio(const void *obj, struct error *err)
{
	const struct virtio_dev *v = obj;

	/* Before FEATURES_OK they are what the driver wrote, whatever that is. */
	if (v->status & VIRTIO_S_FEATURES_OK && v->features & ~v->host.offered)
		return error_set(err, -EINVAL, "virtio features %#llx are not offered here",
				 (unsigned long long)(v->features & ~v->host.offered));
	if (v->status & VIRTIO_S_DRIVER_OK && !(v->status & VIRTIO_S_FEATURES_OK))
		return error_set(err, -EINVAL, "virtio state has a driver without features");
	for (unsigned i = 0; i < sizeof(v->reserved); i++)
		if (v->reserved[i])
			return error_set(err, -EINVAL, "virtio state has reserved bytes set");
	return 0;
}

// clang-format off
static const struct field virtio_fields[] = {
	F_U64(struct virtio_dev, features),
	F_U8(struct virtio_dev, status),
	F_U8(struct virtio_dev, config_generation),
	F_BYTES(struct virtio_dev, reserved),
	F_STRUCT_ARRAY(struct virtio_dev, vqs, &vq_state),
	F_HOST(struct virtio_dev, host),
	F_END,
};
// clang-format on
const struct state_desc virtio_state = {
	.name = "virtio",
	.version = 1,
	.size = sizeof(struct virtio_dev),
	.fields = virtio_fields,
	.check = check_virtio,
};

/* ---- queries ---- */

bool virtio_is_live(const struct virtio_dev *v)
{
	return (v->status & (VIRTIO_S_DRIVER_OK | VIRTIO_S_NEEDS_RESET)) == VIRTIO_S_DRIVER_OK &&
	       !v->host.is_paused && v->host.transport->can_dma(v);
}

struct virtqueue *virtio_vq(struct virtio_dev *v, unsigned q)
{
	if (q >= v->host.nqueues || !virtio_is_live(v) || !vq_is_ready(&v->vqs[q]))
		return NULL;
	return &v->vqs[q];
}

/* ---- life cycle ---- */

static void run_deferred(void *arg)
{
	struct virtio_dev *v = arg;
	uint32_t queues = v->host.deferred;

	v->host.deferred = 0;
	for (unsigned q = 0; q < v->host.nqueues; q++)
		if (queues & (1u << q))
			virtio_kick(v, q);
}

/* Interrupts that were put off and are still wanted. */
static void run_moderated(void *arg)
{
	struct virtio_dev *v = arg;

	for (unsigned q = 0; q < v->host.nqueues; q++)
		if (v->host.moderated & (1u << q) && vq_wants_interrupt(&v->vqs[q]))
			v->host.transport->notify_queue(v, q);
}

int virtio_init(struct virtio_dev *v, const struct virtio_class *cls,
		const struct virtio_transport *transport, const struct dev_env *env,
		uint64_t offered, const uint16_t *sizes, unsigned nqueues, struct error *err)
{
	assert(nqueues <= VIRTIO_QUEUES_MAX && cls->config_len <= VIRTIO_CONFIG_MAX);
	memset(v, 0, sizeof(*v));
	v->host = (struct virtio_host){
		.cls = cls,
		.transport = transport,
		.ram = env->ram,
		.clock = env->clock,
		.offered = offered | VIRTIO_FEATURES_COMMON,
		.nqueues = nqueues,
		.scratch = calloc(VQ_IOV_MAX, sizeof(struct iovec)),
		.defer_timer = vtimer_create(env->loop, env->clock, run_deferred, v),
		.irq_timer = vtimer_create(env->loop, env->clock, run_moderated, v),
	};
	for (unsigned q = 0; q < VIRTIO_QUEUES_MAX; q++)
		vq_init(&v->vqs[q], env->ram, q < nqueues ? sizes[q] : 0);
	if (!v->host.scratch || !v->host.defer_timer || !v->host.irq_timer) {
		virtio_fini(v);
		return error_set(err, -ENOMEM, "out of memory");
	}
	return 0;
}

void virtio_fini(struct virtio_dev *v)
{
	vtimer_destroy(v->host.defer_timer);
	vtimer_destroy(v->host.irq_timer);
	free(v->host.scratch);
	v->host.defer_timer = v->host.irq_timer = NULL;
	v->host.scratch = NULL;
}

void virtio_set_dma(struct virtio_dev *v, const struct dma_path *dma)
{
	v->host.offered |= VIRTIO_F_ACCESS_PLATFORM;
	for (unsigned q = 0; q < VIRTIO_QUEUES_MAX; q++)
		vq_set_dma(&v->vqs[q], dma);
}

void virtio_finish(struct virtio_dev *v)
{
	if (v->host.cls->pause)
		v->host.cls->pause(v);
}

void virtio_reset(struct virtio_dev *v)
{
	/* First the device lets go of its chains, then the queues forget. */
	v->host.cls->reset(v);
	for (unsigned q = 0; q < VIRTIO_QUEUES_MAX; q++)
		vq_reset(&v->vqs[q]);
	v->host.deferred = 0;
	vtimer_cancel(v->host.defer_timer);
	vtimer_cancel(v->host.irq_timer);
	v->features = 0;
	v->status = 0;
	v->config_generation = 0;
}

static void map_queue(struct virtio_dev *v, struct virtqueue *vq)
{
	vq_map(vq, virtio_has(v, VIRTIO_F_EVENT_IDX), virtio_has(v, VIRTIO_F_INDIRECT_DESC));
}

void virtio_after_load(struct virtio_dev *v)
{
	for (unsigned q = 0; q < v->host.nqueues; q++)
		if (v->vqs[q].is_enabled)
			map_queue(v, &v->vqs[q]);
	/* A kick may have been on its way when the state was saved. */
	for (unsigned q = 0; q < v->host.nqueues; q++)
		virtio_defer(v, q);
}

void virtio_pause(struct virtio_dev *v)
{
	if (v->host.is_paused)
		return;
	v->host.is_paused = true;
	if (v->host.cls->pause)
		v->host.cls->pause(v);
	vtimer_cancel(v->host.irq_timer);
	run_moderated(v);
}

void virtio_resume(struct virtio_dev *v)
{
	if (!v->host.is_paused)
		return;
	v->host.is_paused = false;
	if (v->host.cls->resume)
		v->host.cls->resume(v);
	for (unsigned q = 0; q < v->host.nqueues; q++)
		virtio_defer(v, q);
}

/* ---- what the driver does ---- */

static bool features_are_fine(const struct virtio_dev *v)
{
	if (v->features & ~v->host.offered) {
		log_guest("virtio", "%s: the driver takes features that were not offered: %#llx",
			  v->host.cls->name, (unsigned long long)(v->features & ~v->host.offered));
		return false;
	}
	if (!virtio_has(v, VIRTIO_F_VERSION_1)) {
		log_guest("virtio", "%s: a driver without VERSION_1", v->host.cls->name);
		return false;
	}
	if (v->host.offered & VIRTIO_F_ACCESS_PLATFORM && !virtio_has(v, VIRTIO_F_ACCESS_PLATFORM)) {
		/* It would give physical addresses, which the IOMMU takes for others. */
		log_guest("virtio", "%s: a driver without ACCESS_PLATFORM", v->host.cls->name);
		return false;
	}
	return true;
}

void virtio_set_status(struct virtio_dev *v, uint8_t status)
{
	if (!status) {
		virtio_reset(v);
		return;
	}
	uint8_t added = status & ~v->status;
	if (v->status & ~status & ~VIRTIO_S_NEEDS_RESET)
		log_guest("virtio", "%s: the driver clears status bits (2.1.1)", v->host.cls->name);
	added &= ~VIRTIO_S_NEEDS_RESET;
	if (added & VIRTIO_S_FEATURES_OK && !features_are_fine(v))
		added &= ~VIRTIO_S_FEATURES_OK; /* the driver reads it back */
	if (added & VIRTIO_S_DRIVER_OK && !((v->status | added) & VIRTIO_S_FEATURES_OK)) {
		log_guest("virtio", "%s: DRIVER_OK without FEATURES_OK", v->host.cls->name);
		added &= ~VIRTIO_S_DRIVER_OK;
	}
	v->status |= added;
	if (added & VIRTIO_S_DRIVER_OK) {
		if (v->host.cls->start)
			v->host.cls->start(v);
		virtio_kick_all(v); /* buffers may have been posted before */
	}
}

void virtio_set_features(struct virtio_dev *v, uint32_t select, uint32_t value)
{
	if (v->status & VIRTIO_S_FEATURES_OK) {
		log_guest("virtio", "%s: features written after FEATURES_OK", v->host.cls->name);
		return;
	}
	if (select < 2) {
		unsigned shift = select * 32;
		v->features = (v->features & ~(0xffffffffULL << shift)) | (uint64_t)value << shift;
	} else if (value) {
		log_guest("virtio", "%s: features past bit 63", v->host.cls->name);
	}
}

void virtio_enable_queue(struct virtio_dev *v, unsigned q)
{
	if (q >= v->host.nqueues || !v->vqs[q].host.max_size || v->vqs[q].is_enabled)
		return;
	if (!(v->status & VIRTIO_S_FEATURES_OK)) {
		log_guest("virtio", "%s: queue %u enabled before FEATURES_OK", v->host.cls->name, q);
		return;
	}
	v->vqs[q].is_enabled = true;
	map_queue(v, &v->vqs[q]);
	virtio_flush(v, q);
}

/* A queue that broke: tell the driver once (2.1.2). */
static void note_broken(struct virtio_dev *v, unsigned q)
{
	if (!v->vqs[q].is_broken || v->status & VIRTIO_S_NEEDS_RESET)
		return;
	v->status |= VIRTIO_S_NEEDS_RESET;
	log_guest("virtio", "%s: queue %u is broken, the device needs a reset", v->host.cls->name, q);
	if (v->status & VIRTIO_S_DRIVER_OK)
		v->host.transport->notify_config(v);
}

void virtio_kick(struct virtio_dev *v, unsigned q)
{
	if (!virtio_vq(v, q))
		return;
	v->host.cls->kick(v, q);
	note_broken(v, q);
}

void virtio_kick_all(struct virtio_dev *v)
{
	for (unsigned q = 0; q < v->host.nqueues; q++)
		virtio_kick(v, q);
}

uint32_t virtio_config_read(struct virtio_dev *v, unsigned offset, unsigned size)
{
	uint8_t config[VIRTIO_CONFIG_MAX + 4] = { 0 };
	uint32_t value = 0;

	if (offset >= v->host.cls->config_len || size > 4)
		return 0;
	v->host.cls->config_read(v, config);
	memset(config + v->host.cls->config_len, 0, sizeof(config) - v->host.cls->config_len);
	memcpy(&value, config + offset, size);
	return value;
}

void virtio_config_write(struct virtio_dev *v, unsigned offset, unsigned size, uint32_t value)
{
	if (v->host.cls->config_write && size <= 4 && offset < v->host.cls->config_len &&
	    size <= v->host.cls->config_len - offset)
		v->host.cls->config_write(v, offset, size, value);
	else
		log_guest("virtio", "%s: write to configuration byte %u", v->host.cls->name, offset);
}

/* ---- for devices ---- */

void virtio_flush(struct virtio_dev *v, unsigned q)
{
	struct virtqueue *vq = &v->vqs[q];

	vq_publish(vq);
	if (v->host.moderated & (1u << q) && !v->host.is_paused &&
	    vq_unsignalled(vq) < VIRTIO_IRQ_BACKLOG) {
		if (vq_unsignalled(vq) && !vtimer_is_armed(v->host.irq_timer))
			vtimer_arm(v->host.irq_timer, vclock_now_ns(v->host.clock) + VIRTIO_IRQ_DELAY_NS);
	} else if (vq_wants_interrupt(vq)) {
		v->host.transport->notify_queue(v, q);
	}
	note_broken(v, q);
}

void virtio_moderate(struct virtio_dev *v, unsigned q)
{
	v->host.moderated |= 1u << q;
}

void virtio_break(struct virtio_dev *v, unsigned q, const char *why)
{
	log_guest("virtio", "%s: queue %u: %s", v->host.cls->name, q, why);
	v->vqs[q].is_broken = true;
	note_broken(v, q);
}

void virtio_config_changed(struct virtio_dev *v)
{
	v->config_generation++;
	if (v->status & VIRTIO_S_DRIVER_OK)
		v->host.transport->notify_config(v);
}

void virtio_defer(struct virtio_dev *v, unsigned q)
{
	v->host.deferred |= 1u << q;
	if (!vtimer_is_armed(v->host.defer_timer))
		vtimer_arm(v->host.defer_timer, vclock_now_ns(v->host.clock));
}

void virtio_serve(struct virtio_dev *v, unsigned q,
		  int64_t (*handle)(struct virtio_dev *v, unsigned q, struct vq_elem *elem))
{
	struct virtqueue *vq = virtio_vq(v, q);
	struct vq_elem elem = { .iov = v->host.scratch };
	unsigned budget = VIRTIO_BUDGET;
	int r;

	if (!vq)
		return;
	if (v->host.is_serving) {
		/* A backend called back from inside a handler. */
		virtio_defer(v, q);
		return;
	}
	v->host.is_serving = true;
	do {
		vq_disarm_kick(vq);
		while ((r = budget ? vq_pop(vq, &elem) : -EAGAIN) > 0) {
			budget--;
			int64_t n = handle(v, q, &elem);
			if (n == VIRTIO_STOP) {
				vq_unpop(vq, 1);
				break;
			}
			if (n != VIRTIO_KEPT)
				vq_put(vq, &elem, n);
		}
		/* Each round costs: an index that flickers under us must not keep us here. */
	} while (r == 0 && vq_arm_kick(vq) && budget-- > 1);
	if (r == 0 && !budget)
		r = -EAGAIN;
	v->host.is_serving = false;
	if (r == -EAGAIN)
		virtio_defer(v, q);
	virtio_flush(v, q);
}
