/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The controller has one output buffer.  Its own answers go there at once (a device's byte that was there
 * goes back to the front of its queue); bytes of keyboard and mouse follow one at a time, each when the
 * buffer has been read and the interface is not disabled.
 *
 * Interrupt lines are high while the buffer holds a byte of that device, and fall with the read, so that
 * each byte is an edge.
 */
#include "dev/chipset/i8042.h"

#include <errno.h>
#include <string.h>

#define CCB_KBD_INT   0x01
#define CCB_AUX_INT   0x02
#define CCB_SYSTEM    0x04
#define CCB_KBD_OFF   0x10
#define CCB_AUX_OFF   0x20
#define CCB_TRANSLATE 0x40

#define STATUS_FULL	0x01
#define STATUS_SYSTEM	0x04
#define STATUS_COMMAND	0x08
#define STATUS_UNLOCKED 0x10
#define STATUS_AUX	0x20

#define PS2_ACK	   0xfa
#define PS2_RESEND 0xfe
#define PS2_PASSED 0xaa

enum { FROM_CONTROLLER, FROM_KBD, FROM_MOUSE };

/* Scan code set 2 to set 1, as the controller translates. */
// clang-format off
static const uint8_t set2_to_set1[128] = {
	0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
	0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
	0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
	0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
	0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
	0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
	0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
	0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
};
// clang-format on

static uint8_t to_set1(uint8_t code)
{
	if (code < 0x80)
		return set2_to_set1[code];
	return code == 0x83 ? 0x41 : code == 0x84 ? 0x54 : code;
}

/* ---- queues ---- */

static bool queue_push(struct ps2_queue *q, uint8_t byte)
{
	if (q->len == PS2_QUEUE)
		return false;
	q->data[(q->head + q->len++) % PS2_QUEUE] = byte;
	return true;
}

static void queue_unpop(struct ps2_queue *q, uint8_t byte)
{
	if (q->len == PS2_QUEUE)
		return;
	q->head = (q->head + PS2_QUEUE - 1) % PS2_QUEUE;
	q->data[q->head] = byte;
	q->len++;
}

static uint8_t queue_pop(struct ps2_queue *q)
{
	uint8_t byte = q->data[q->head];

	q->head = (q->head + 1) % PS2_QUEUE;
	q->len--;
	return byte;
}

/* ---- output buffer ---- */

static void update_irqs(struct i8042 *k)
{
	uint8_t ccb = k->ram[0];

	irq_set(&k->irq_kbd, k->is_full && !k->is_aux && (ccb & CCB_KBD_INT));
	irq_set(&k->irq_mouse, k->is_full && k->is_aux && (ccb & CCB_AUX_INT));
}

static void fill(struct i8042 *k, uint8_t source, bool is_aux, uint8_t byte)
{
	k->obuf = byte;
	k->source = source;
	k->is_aux = is_aux;
	k->is_full = true;
}

/* The keyboard's next byte as the controller passes it on; false: none yet. */
static bool next_kbd_byte(struct i8042 *k, uint8_t *out)
{
	while (k->kbd.q.len) {
		uint8_t byte = queue_pop(&k->kbd.q);

		k->kbd.last = byte;
		if (!(k->ram[0] & CCB_TRANSLATE)) {
			*out = byte;
			return true;
		}
		if (byte == 0xf0) {
			k->is_break = true;
			continue;
		}
		*out = to_set1(byte) | (k->is_break ? 0x80 : 0);
		k->is_break = false;
		return true;
	}
	return false;
}

/* Bring the next waiting byte into the buffer. */
static void pump(struct i8042 *k)
{
	uint8_t byte;

	if (!k->is_full && !(k->ram[0] & CCB_KBD_OFF) && next_kbd_byte(k, &byte))
		fill(k, FROM_KBD, false, byte);
	if (!k->is_full && !(k->ram[0] & CCB_AUX_OFF) && k->mouse.q.len) {
		k->mouse.last = queue_pop(&k->mouse.q);
		fill(k, FROM_MOUSE, true, k->mouse.last);
	}
	update_irqs(k);
}

/* An answer of the controller itself, or a byte it is told to pretend. */
static void answer(struct i8042 *k, bool is_aux, uint8_t byte)
{
	if (k->is_full && k->source == FROM_KBD) {
		queue_unpop(&k->kbd.q, k->kbd.last);
		k->is_break = (k->ram[0] & CCB_TRANSLATE) && ((k->obuf ^ to_set1(k->kbd.last)) & 0x80);
	} else if (k->is_full && k->source == FROM_MOUSE) {
		queue_unpop(&k->mouse.q, k->obuf);
	}
	k->is_full = false;
	update_irqs(k);
	fill(k, FROM_CONTROLLER, is_aux, byte);
	update_irqs(k);
}

static uint8_t read_data(struct i8042 *k)
{
	uint8_t byte = k->obuf;

	k->is_full = false;
	update_irqs(k); /* the line falls before the next byte raises it */
	pump(k);
	return byte;
}

static uint8_t read_status(const struct i8042 *k)
{
	return (k->is_full ? STATUS_FULL : 0) | (k->is_system ? STATUS_SYSTEM : 0) |
	       (k->was_command ? STATUS_COMMAND : 0) | STATUS_UNLOCKED |
	       (k->is_full && k->is_aux ? STATUS_AUX : 0);
}

/* ---- keyboard ---- */

static void kbd_defaults(struct ps2_kbd *d)
{
	d->cmd = 0;
	d->leds = 0;
	d->rate = 0x2b;
	d->scan_set = 2;
	d->is_scanning = true;
}

static void kbd_argument(struct ps2_kbd *d, uint8_t v)
{
	uint8_t cmd = d->cmd;

	d->cmd = 0;
	switch (cmd) {
	case 0xed:
		d->leds = v & 7;
		break;
	case 0xf3:
		d->rate = v & 0x7f;
		break;
	default: /* F0H */
		if (v > 2) {
			queue_push(&d->q, PS2_RESEND);
			return;
		}
		if (v == 0) {
			queue_push(&d->q, PS2_ACK);
			queue_push(&d->q, d->scan_set);
			return;
		}
		d->scan_set = v;
		break;
	}
	queue_push(&d->q, PS2_ACK);
}

static void kbd_write(struct ps2_kbd *d, uint8_t v)
{
	struct ps2_queue *q = &d->q;

	if (d->cmd) {
		kbd_argument(d, v);
		return;
	}
	switch (v) {
	case 0xed: /* lamps */
	case 0xf0: /* scan code set */
	case 0xf3: /* typematic rate */
		d->cmd = v;
		queue_push(q, PS2_ACK);
		break;
	case 0xee: /* echo */
		queue_push(q, 0xee);
		break;
	case 0xf2: /* identify */
		queue_push(q, PS2_ACK);
		queue_push(q, 0xab);
		queue_push(q, 0x83);
		break;
	case 0xf4: /* enable */
		d->is_scanning = true;
		queue_push(q, PS2_ACK);
		break;
	case 0xf5: /* defaults, disable */
	case 0xf6: /* defaults */
		q->len = 0;
		kbd_defaults(d);
		d->is_scanning = v == 0xf6;
		queue_push(q, PS2_ACK);
		break;
	case 0xf7 ... 0xfa: /* all keys ...: scan code set 3 only */
		queue_push(q, PS2_ACK);
		break;
	case 0xfe:
		queue_push(q, d->last);
		break;
	case 0xff: /* reset */
		q->len = 0;
		kbd_defaults(d);
		queue_push(q, PS2_ACK);
		queue_push(q, PS2_PASSED);
		break;
	default:
		queue_push(q, PS2_RESEND);
		break;
	}
}

void i8042_key(struct i8042 *k, const uint8_t *code, unsigned len)
{
	struct ps2_kbd *d = &k->kbd;
	bool is_break = false;

	/* room for the answer to a command stays */
	if (!d->is_scanning || d->q.len + len > PS2_QUEUE - 8)
		return;
	for (unsigned i = 0; i < len; i++) {
		if (d->scan_set == 1 && code[i] == 0xf0) {
			is_break = true;
			continue;
		}
		queue_push(&d->q, d->scan_set == 1 ? to_set1(code[i]) | (is_break ? 0x80 : 0) : code[i]);
		is_break = false;
	}
	pump(k);
}

/* ---- mouse ---- */

static void mouse_defaults(struct ps2_mouse *m)
{
	m->cmd = 0;
	m->rate = 100;
	m->resolution = 2;
	m->is_scaling = m->is_reporting = m->is_remote = m->is_wrap = false;
}

static void mouse_packet(struct ps2_mouse *m, int dx, int dy, int dz)
{
	int x = MAX(-256, MIN(dx, 255)), y = MAX(-256, MIN(dy, 255)), z = MAX(-8, MIN(dz, 7));

	if (m->q.len + 4 > PS2_QUEUE - 8)
		return;
	queue_push(&m->q, (uint8_t)(0x08 | (m->buttons & 7) | (x < 0 ? 0x10 : 0) | (y < 0 ? 0x20 : 0)));
	queue_push(&m->q, (uint8_t)x);
	queue_push(&m->q, (uint8_t)y);
	if (m->id == 3)
		queue_push(&m->q, (uint8_t)z);
	else if (m->id == 4)
		queue_push(&m->q, (uint8_t)((z & 0x0f) | (m->buttons & 0x18) << 1));
}

void i8042_mouse(struct i8042 *k, int dx, int dy, int dz, unsigned buttons)
{
	struct ps2_mouse *m = &k->mouse;

	m->buttons = buttons & 0x1f;
	if (!m->is_reporting || m->is_remote || m->is_wrap)
		return;
	mouse_packet(m, dx, dy, dz);
	pump(k);
}

static void mouse_set_rate(struct ps2_mouse *m, uint8_t v)
{
	if (m->knock[0] == 200 && m->knock[1] == 100 && v == 80)
		m->id = 3;
	else if (m->id == 3 && m->knock[0] == 200 && m->knock[1] == 200 && v == 80)
		m->id = 4;
	m->knock[0] = m->knock[1];
	m->knock[1] = v;
	m->rate = v;
}

static void mouse_status(struct ps2_mouse *m)
{
	uint8_t b = m->buttons;

	queue_push(&m->q, (uint8_t)((b & 1) << 2 | (b & 4) >> 1 | (b & 2) >> 1 |
				    m->is_scaling << 4 | m->is_reporting << 5 | m->is_remote << 6));
	queue_push(&m->q, m->resolution);
	queue_push(&m->q, m->rate);
}

static void mouse_command(struct ps2_mouse *m, uint8_t v)
{
	queue_push(&m->q, PS2_ACK);
	switch (v) {
	case 0xe6:
	case 0xe7:
		m->is_scaling = v == 0xe7;
		break;
	case 0xe8: /* resolution */
	case 0xf3: /* sample rate */
		m->cmd = v;
		break;
	case 0xe9:
		mouse_status(m);
		break;
	case 0xea:
		m->is_remote = false;
		break;
	case 0xeb:
		mouse_packet(m, 0, 0, 0);
		break;
	case 0xee:
		m->is_wrap = true;
		break;
	case 0xf0:
		m->is_remote = true;
		break;
	case 0xf2:
		queue_push(&m->q, m->id);
		break;
	case 0xf4:
	case 0xf5:
		m->is_reporting = v == 0xf4;
		break;
	case 0xf6:
		mouse_defaults(m);
		break;
	default: /* ECH: wrap mode is off already */
		break;
	}
}

static void mouse_write(struct ps2_mouse *m, uint8_t v)
{
	if (m->cmd) {
		if (m->cmd == 0xf3)
			mouse_set_rate(m, v);
		else
			m->resolution = v & 3;
		m->cmd = 0;
		queue_push(&m->q, PS2_ACK);
		return;
	}
	if (m->is_wrap && v != 0xec && v != 0xff) {
		queue_push(&m->q, v);
		return;
	}
	switch (v) {
	case 0xfe:
		queue_push(&m->q, m->last);
		break;
	case 0xff:
		m->q.len = 0;
		mouse_defaults(m);
		m->id = 0;
		queue_push(&m->q, PS2_ACK);
		queue_push(&m->q, PS2_PASSED);
		queue_push(&m->q, 0);
		break;
	case 0xec:
		m->is_wrap = false;
		mouse_command(m, v);
		break;
	case 0xe6 ... 0xeb:
	case 0xee:
	case 0xf0:
	case 0xf2 ... 0xf6:
		mouse_command(m, v);
		break;
	default:
		queue_push(&m->q, PS2_RESEND);
		break;
	}
}

/* ---- controller ---- */

static uint8_t outport(const struct i8042 *k)
{
	return 0xcd | (k->is_a20 ? 2 : 0) | (k->is_full && !k->is_aux ? 0x10 : 0) |
	       (k->is_full && k->is_aux ? 0x20 : 0);
}

static void write_outport(struct i8042 *k, uint8_t v)
{
	k->is_a20 = v & 2;
	if (!(v & 1))
		k->env.request_reset(k->env.ctx);
}

static void command(struct i8042 *k, uint8_t v)
{
	k->was_command = true;
	k->cmd = 0;
	switch (v) {
	case 0x20 ... 0x3f:
		answer(k, false, k->ram[v & 31]);
		break;
	case 0x60 ... 0x7f:
	case 0xd1: /* write output port */
	case 0xd2: /* write keyboard output buffer */
	case 0xd3: /* write mouse output buffer */
	case 0xd4: /* write to mouse */
		k->cmd = v;
		break;
	case 0xa7:
		k->ram[0] |= CCB_AUX_OFF;
		break;
	case 0xa8:
		k->ram[0] &= (uint8_t)~CCB_AUX_OFF;
		break;
	case 0xa9: /* test mouse interface */
	case 0xab: /* test keyboard interface */
		answer(k, false, 0);
		break;
	case 0xaa: /* self-test */
		k->is_system = true;
		k->ram[0] |= CCB_SYSTEM;
		answer(k, false, 0x55);
		break;
	case 0xad:
		k->ram[0] |= CCB_KBD_OFF;
		break;
	case 0xae:
		k->ram[0] &= (uint8_t)~CCB_KBD_OFF;
		break;
	case 0xc0: /* input port: keyboard not locked */
		answer(k, false, 0x80);
		break;
	case 0xd0:
		answer(k, false, outport(k));
		break;
	case 0xdd:
	case 0xdf:
		k->is_a20 = v == 0xdf;
		break;
	case 0xe0: /* test inputs */
		answer(k, false, 0);
		break;
	case 0xf0 ... 0xff: /* pulse output port bits that are 0 */
		if (!(v & 1))
			k->env.request_reset(k->env.ctx);
		break;
	default:
		log_guest("i8042", "unknown command %#x", v);
		break;
	}
	pump(k);
}

static void write_data(struct i8042 *k, uint8_t v)
{
	uint8_t cmd = k->cmd;

	k->was_command = false;
	k->cmd = 0;
	switch (cmd) {
	case 0x60 ... 0x7f:
		k->ram[cmd & 31] = v;
		if (cmd == 0x60)
			k->is_system = v & CCB_SYSTEM;
		break;
	case 0xd1:
		write_outport(k, v);
		break;
	case 0xd2:
	case 0xd3:
		answer(k, cmd == 0xd3, v);
		break;
	case 0xd4:
		k->ram[0] &= (uint8_t)~CCB_AUX_OFF;
		mouse_write(&k->mouse, v);
		break;
	default:
		k->ram[0] &= (uint8_t)~CCB_KBD_OFF;
		kbd_write(&k->kbd, v);
		break;
	}
	pump(k);
}

/* ---- ports ---- */

static uint64_t data_port_read(void *dev, uint64_t offset, unsigned size)
{
	return read_data(dev);
}

static void data_port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	write_data(dev, (uint8_t)value);
}

static uint64_t status_port_read(void *dev, uint64_t offset, unsigned size)
{
	return read_status(dev);
}

static void command_port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	command(dev, (uint8_t)value);
}

static uint64_t port92_read(void *dev, uint64_t offset, unsigned size)
{
	const struct i8042 *k = dev;

	return k->port92 | (k->is_a20 ? 2 : 0);
}

static void port92_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct i8042 *k = dev;
	bool is_rise = (value & 1) && !(k->port92 & 1);

	k->port92 = value & 0x01;
	k->is_a20 = value & 2;
	if (is_rise)
		k->env.request_reset(k->env.ctx);
}

static const struct bus_ops data_ops = { data_port_read, data_port_write };
static const struct bus_ops command_ops = { status_port_read, command_port_write };
static const struct bus_ops port92_ops = { port92_read, port92_write };

/* ---- life cycle ---- */

static int queue_check(const void *obj, struct error *err)
{
	const struct ps2_queue *q = obj;

	if (q->head >= PS2_QUEUE || q->len > PS2_QUEUE)
		return error_set(err, -EINVAL, "keyboard or mouse queue is impossible");
	return 0;
}

static int check(const void *obj, struct error *err)
{
	const struct i8042 *k = obj;

	if (k->source > FROM_MOUSE || k->port92 > 1 || !k->kbd.scan_set || k->kbd.scan_set > 2 ||
	    (k->mouse.id != 0 && k->mouse.id != 3 && k->mouse.id != 4) || k->mouse.buttons > 31)
		return error_set(err, -EINVAL, "keyboard controller state is impossible");
	return 0;
}

// clang-format off
static const struct field queue_fields[] = {
	F_BYTES(struct ps2_queue, data),
	F_U8(struct ps2_queue, head),
	F_U8(struct ps2_queue, len),
	F_END,
};
static const struct state_desc queue_desc = {
	.name = "ps2-queue", .version = 1, .size = sizeof(struct ps2_queue),
	.fields = queue_fields, .check = queue_check,
};
static const struct field kbd_fields[] = {
	F_STRUCT(struct ps2_kbd, q, &queue_desc),
	F_U8(struct ps2_kbd, cmd),
	F_U8(struct ps2_kbd, leds),
	F_U8(struct ps2_kbd, rate),
	F_U8(struct ps2_kbd, scan_set),
	F_U8(struct ps2_kbd, last),
	F_BOOL(struct ps2_kbd, is_scanning),
	F_END,
};
static const struct state_desc kbd_desc = {
	.name = "ps2-keyboard", .version = 1, .size = sizeof(struct ps2_kbd), .fields = kbd_fields,
};
static const struct field mouse_fields[] = {
	F_STRUCT(struct ps2_mouse, q, &queue_desc),
	F_U8(struct ps2_mouse, cmd),
	F_U8(struct ps2_mouse, rate),
	F_U8(struct ps2_mouse, resolution),
	F_U8(struct ps2_mouse, buttons),
	F_U8(struct ps2_mouse, id),
	F_BYTES(struct ps2_mouse, knock),
	F_U8(struct ps2_mouse, last),
	F_BOOL(struct ps2_mouse, is_reporting),
	F_BOOL(struct ps2_mouse, is_remote),
	F_BOOL(struct ps2_mouse, is_wrap),
	F_BOOL(struct ps2_mouse, is_scaling),
	F_END,
};
static const struct state_desc mouse_desc = {
	.name = "ps2-mouse", .version = 1, .size = sizeof(struct ps2_mouse), .fields = mouse_fields,
};
static const struct field fields[] = {
	F_HOST(struct i8042, dev),
	F_HOST(struct i8042, env),
	F_HOST(struct i8042, irq_kbd),
	F_HOST(struct i8042, irq_mouse),
	F_HOST(struct i8042, ranges),
	F_BYTES(struct i8042, ram),
	F_U8(struct i8042, cmd),
	F_U8(struct i8042, obuf),
	F_U8(struct i8042, source),
	F_U8(struct i8042, port92),
	F_BOOL(struct i8042, is_full),
	F_BOOL(struct i8042, is_aux),
	F_BOOL(struct i8042, is_system),
	F_BOOL(struct i8042, was_command),
	F_BOOL(struct i8042, is_a20),
	F_BOOL(struct i8042, is_break),
	F_STRUCT(struct i8042, kbd, &kbd_desc),
	F_STRUCT(struct i8042, mouse, &mouse_desc),
	F_HOST(struct i8042, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "i8042",
	.version = 1,
	.size = sizeof(struct i8042),
	.fields = fields,
	.check = check,
};

/* As firmware leaves it: self-test passed, translating, keyboard on, mouse off. */
static void reset(struct device *d)
{
	struct i8042 *k = container_of(d, struct i8042, dev);

	memset(k->ram, 0, sizeof(k->ram));
	k->ram[0] = CCB_KBD_INT | CCB_SYSTEM | CCB_AUX_OFF | CCB_TRANSLATE;
	k->cmd = k->obuf = k->source = k->port92 = 0;
	k->is_full = k->is_aux = k->is_break = false;
	k->is_system = k->was_command = k->is_a20 = true;
	memset(&k->kbd, 0, sizeof(k->kbd));
	memset(&k->mouse, 0, sizeof(k->mouse));
	kbd_defaults(&k->kbd);
	mouse_defaults(&k->mouse);
	update_irqs(k);
}

static void after_load(struct device *d)
{
	update_irqs(container_of(d, struct i8042, dev));
}

static void destroy(struct device *d)
{
	struct i8042 *k = container_of(d, struct i8042, dev);

	for (unsigned i = 0; i < ARRAY_SIZE(k->ranges); i++)
		bus_remove(k->env.bus, k->ranges[i]);
	free(k);
}

const struct device_class i8042_class = {
	.name = "i8042",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

int i8042_create(struct i8042 **out, const struct dev_env *env, struct irq_line irq_kbd,
		 struct irq_line irq_mouse, struct error *err)
{
	struct i8042 *k = calloc(1, sizeof(*k));
	int rc;

	if (!k)
		return error_set(err, -ENOMEM, "no memory for the keyboard controller");
	device_init(&k->dev, &i8042_class, "i8042");
	k->env = *env;
	k->irq_kbd = irq_kbd;
	k->irq_mouse = irq_mouse;
	rc = bus_add(env->bus, BUS_PIO, 0x60, 1, 0, &data_ops, k, &k->ranges[0]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x64, 1, 0, &command_ops, k, &k->ranges[1]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x92, 1, 0, &port92_ops, k, &k->ranges[2]);
	if (rc) {
		destroy(&k->dev);
		return error_set(err, rc, "the keyboard controller's ports are taken");
	}
	reset(&k->dev);
	*out = k;
	return 0;
}
