/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/serial/uart.h"

#include <errno.h>
#include <string.h>

#define IER_RX	  0x01
#define IER_THRE  0x02
#define IER_LINE  0x04
#define IER_MODEM 0x08

#define IIR_NONE    0x01
#define IIR_MODEM   0x00
#define IIR_THRE    0x02
#define IIR_RX	    0x04
#define IIR_LINE    0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFOS   0xc0

#define FCR_ENABLE   0x01
#define FCR_CLEAR_RX 0x02

#define LCR_BREAK 0x40
#define LCR_DLAB  0x80

#define MCR_DTR	 0x01
#define MCR_RTS	 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10

#define LSR_DR	    0x01
#define LSR_OVERRUN 0x02
#define LSR_BREAK   0x10
#define LSR_ERRORS  0x1e
#define LSR_THRE    0x20
#define LSR_TEMT    0x40

#define MSR_CTS	 0x10
#define MSR_DSR	 0x20
#define MSR_RI	 0x40
#define MSR_DCD	 0x80
#define MSR_TERI 0x04

/* ---- FIFOs ---- */

static bool fifo_push(struct uart_fifo *f, uint8_t byte, unsigned capacity)
{
	if (f->len >= capacity)
		return false;
	f->data[(f->head + f->len) % UART_FIFO] = byte;
	f->len++;
	return true;
}

static uint8_t fifo_pop(struct uart_fifo *f)
{
	uint8_t byte = f->data[f->head];

	f->head = (f->head + 1) % UART_FIFO;
	f->len--;
	return byte;
}

static unsigned rx_capacity(const struct uart *u)
{
	return u->fcr & FCR_ENABLE ? UART_FIFO : 1;
}

static unsigned rx_trigger(const struct uart *u)
{
	static const uint8_t levels[4] = { 1, 4, 8, 14 };

	return u->fcr & FCR_ENABLE ? levels[u->fcr >> 6] : 1;
}

/* ---- interrupts ---- */

static uint8_t interrupt_id(const struct uart *u)
{
	if ((u->ier & IER_LINE) && u->lsr)
		return IIR_LINE;
	if ((u->ier & IER_RX) && u->rx.len)
		return u->rx.len >= rx_trigger(u) ? IIR_RX : IIR_TIMEOUT;
	if ((u->ier & IER_THRE) && u->is_thre_pending)
		return IIR_THRE;
	if ((u->ier & IER_MODEM) && (u->msr & 0x0f))
		return IIR_MODEM;
	return IIR_NONE;
}

static void update(struct uart *u)
{
	irq_set(&u->irq, interrupt_id(u) != IIR_NONE);
}

/* ---- transmitting ---- */

/* Give the backend what it takes; tell the guest when the FIFO ran empty. */
static void drain(struct uart *u)
{
	while (u->tx.len) {
		size_t n = MIN((size_t)u->tx.len, (size_t)(UART_FIFO - u->tx.head));
		size_t taken = n;

		if (u->chr)
			taken = u->chr->ops->write(u->chr, u->tx.data + u->tx.head, n);
		u->tx.head = (uint8_t)((u->tx.head + taken) % UART_FIFO);
		u->tx.len = (uint8_t)(u->tx.len - taken);
		if (taken < n)
			return; /* on_writable goes on */
	}
	u->is_thre_pending = true;
}

static void receive_byte(struct uart *u, uint8_t byte)
{
	if (!fifo_push(&u->rx, byte, rx_capacity(u)))
		u->lsr |= LSR_OVERRUN;
}

static void write_thr(struct uart *u, uint8_t byte)
{
	/* The line must fall before the next THRE interrupt rises: ISA interrupts are edges. */
	u->is_thre_pending = false;
	update(u);
	if (u->mcr & MCR_LOOP) {
		receive_byte(u, byte);
		if (!u->tx.len)
			u->is_thre_pending = true;
	} else {
		if (!fifo_push(&u->tx, byte, UART_FIFO))
			log_guest("uart", "%s: byte written into a full FIFO is lost", u->dev.id);
		drain(u);
	}
	update(u);
}

static void on_writable(void *ctx)
{
	struct uart *u = ctx;

	if (!u->tx.len)
		return;
	drain(u);
	update(u);
}

/* ---- receiving ---- */

static size_t can_receive(void *ctx)
{
	const struct uart *u = ctx;

	if (u->mcr & MCR_LOOP)
		return 0;
	return rx_capacity(u) - MIN(u->rx.len, rx_capacity(u));
}

static void receive(void *ctx, const uint8_t *data, size_t len)
{
	struct uart *u = ctx;

	for (size_t i = 0; i < len; i++)
		receive_byte(u, data[i]);
	update(u);
}

static void ask_for_more(struct uart *u)
{
	if (u->chr && can_receive(u))
		u->chr->ops->rx_ready(u->chr);
}

static uint8_t read_rbr(struct uart *u)
{
	bool was_full = u->rx.len >= rx_capacity(u);
	uint8_t byte;

	if (!u->rx.len)
		return 0;
	byte = fifo_pop(&u->rx);
	update(u);
	if (was_full || !u->rx.len)
		ask_for_more(u);
	return byte;
}

/* ---- modem lines ---- */

static uint8_t modem_lines(const struct uart *u)
{
	uint8_t lines = 0;

	if (!(u->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD; /* a cable with somebody at its end */
	if (u->mcr & MCR_RTS)
		lines |= MSR_CTS;
	if (u->mcr & MCR_DTR)
		lines |= MSR_DSR;
	if (u->mcr & MCR_OUT1)
		lines |= MSR_RI;
	if (u->mcr & MCR_OUT2)
		lines |= MSR_DCD;
	return lines;
}

static void write_mcr(struct uart *u, uint8_t v)
{
	bool was_loop = u->mcr & MCR_LOOP;
	uint8_t old = u->msr & 0xf0, now;

	u->mcr = v & 0x1f;
	now = modem_lines(u);
	u->msr = now | (u->msr & 0x0f);
	u->msr |= (old ^ now) >> 4 & 0x0b;
	if (old & ~now & MSR_RI)
		u->msr |= MSR_TERI;
	update(u);
	if (was_loop && !(u->mcr & MCR_LOOP))
		ask_for_more(u);
}

/* ---- registers ---- */

static void write_fcr(struct uart *u, uint8_t v)
{
	if (((u->fcr ^ v) & FCR_ENABLE) || ((v & FCR_ENABLE) && (v & FCR_CLEAR_RX)))
		u->rx.len = 0;
	/* without the enable bit the others are not programmed */
	u->fcr = v & FCR_ENABLE ? v & 0xc9 : 0;
	update(u);
	ask_for_more(u);
}

static void write_ier(struct uart *u, uint8_t v)
{
	uint8_t rising = v & (uint8_t)~u->ier;

	u->ier = v & 0x0f;
	if ((rising & IER_THRE) && !u->tx.len)
		u->is_thre_pending = true;
	update(u);
}

static void write_lcr(struct uart *u, uint8_t v)
{
	if ((v & ~u->lcr & LCR_BREAK) && (u->mcr & MCR_LOOP)) {
		u->lsr |= LSR_BREAK;
		receive_byte(u, 0);
		update(u);
	}
	u->lcr = v;
}

static uint8_t read_lsr(struct uart *u)
{
	uint8_t v = u->lsr;

	if (u->rx.len)
		v |= LSR_DR;
	if (!u->tx.len)
		v |= LSR_THRE | LSR_TEMT;
	u->lsr = 0;
	update(u);
	return v;
}

static uint8_t reg_read(struct uart *u, unsigned reg)
{
	bool is_dlab = u->lcr & LCR_DLAB;
	uint8_t v;

	switch (reg) {
	case 0:
		return is_dlab ? u->dll : read_rbr(u);
	case 1:
		return is_dlab ? u->dlm : u->ier;
	case 2:
		v = interrupt_id(u);
		if (v == IIR_THRE) {
			u->is_thre_pending = false;
			update(u);
		}
		return v | (u->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
	case 3:
		return u->lcr;
	case 4:
		return u->mcr;
	case 5:
		return read_lsr(u);
	case 6:
		v = u->msr;
		u->msr &= 0xf0;
		update(u);
		return v;
	default:
		return u->scr;
	}
}

static void reg_write(struct uart *u, unsigned reg, uint8_t v)
{
	bool is_dlab = u->lcr & LCR_DLAB;

	switch (reg) {
	case 0:
		if (is_dlab)
			u->dll = v;
		else
			write_thr(u, v);
		break;
	case 1:
		if (is_dlab)
			u->dlm = v;
		else
			write_ier(u, v);
		break;
	case 2:
		write_fcr(u, v);
		break;
	case 3:
		write_lcr(u, v);
		break;
	case 4:
		write_mcr(u, v);
		break;
	case 7:
		u->scr = v;
		break;
	default: /* LSR and MSR are read-only */
		break;
	}
}

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)reg_read(dev, (unsigned)offset + i) << i * 8;
	return v;
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	for (unsigned i = 0; i < size; i++)
		reg_write(dev, (unsigned)offset + i, (uint8_t)(value >> i * 8));
}

static const struct bus_ops port_ops = { port_read, port_write };

/* ---- life cycle ---- */

static int check(const void *obj, struct error *err)
{
	const struct uart *u = obj;

	if (u->rx.head >= UART_FIFO || u->rx.len > UART_FIFO || u->tx.head >= UART_FIFO ||
	    u->tx.len > UART_FIFO || (u->ier & 0xf0) || (u->mcr & 0xe0) || (u->lsr & ~LSR_ERRORS) ||
	    (u->fcr & ~0xc9))
		return error_set(err, -EINVAL, "serial port state is impossible");
	return 0;
}

// clang-format off
static const struct field fifo_fields[] = {
	F_BYTES(struct uart_fifo, data),
	F_U8(struct uart_fifo, head),
	F_U8(struct uart_fifo, len),
	F_END,
};
static const struct state_desc fifo_desc = {
	.name = "uart-fifo", .version = 1, .size = sizeof(struct uart_fifo), .fields = fifo_fields,
};
static const struct field fields[] = {
	F_HOST(struct uart, dev),
	F_HOST(struct uart, env),
	F_HOST(struct uart, irq),
	F_HOST(struct uart, chr),
	F_HOST(struct uart, range),
	F_STRUCT(struct uart, rx, &fifo_desc),
	F_STRUCT(struct uart, tx, &fifo_desc),
	F_U8(struct uart, ier),
	F_U8(struct uart, fcr),
	F_U8(struct uart, lcr),
	F_U8(struct uart, mcr),
	F_U8(struct uart, scr),
	F_U8(struct uart, lsr),
	F_U8(struct uart, msr),
	F_U8(struct uart, dll),
	F_U8(struct uart, dlm),
	F_BOOL(struct uart, is_thre_pending),
	F_HOST(struct uart, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "uart",
	.version = 1,
	.size = sizeof(struct uart),
	.fields = fields,
	.check = check,
};

static void reset(struct device *d)
{
	struct uart *u = container_of(d, struct uart, dev);

	u->rx = (struct uart_fifo){ 0 };
	if (!u->tx.len) /* else it still goes out */
		u->tx = (struct uart_fifo){ 0 };
	u->ier = u->fcr = u->lcr = u->mcr = u->lsr = u->scr = 0;
	u->msr = modem_lines(u);
	u->dll = 12; /* 9600 baud */
	u->dlm = 0;
	u->is_thre_pending = false;
	update(u);
	ask_for_more(u);
}

static void after_load(struct device *d)
{
	struct uart *u = container_of(d, struct uart, dev);

	if (u->tx.len)
		drain(u);
	update(u);
	ask_for_more(u);
}

static void destroy(struct device *d)
{
	struct uart *u = container_of(d, struct uart, dev);

	if (u->chr)
		u->chr->user = (struct char_user){ 0 };
	bus_remove(u->env.bus, u->range);
	free(u);
}

const struct device_class uart_class = {
	.name = "uart",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

uint16_t uart_port(unsigned index)
{
	static const uint16_t ports[4] = { 0x3f8, 0x2f8, 0x3e8, 0x2e8 };

	return ports[index & 3];
}

int uart_create(struct uart **out, const struct dev_env *env, unsigned index, struct irq_line irq,
		struct char_dev *chr, struct error *err)
{
	struct uart *u;
	char id[24];
	int rc;

	if (index > 3)
		return error_set(err, -EINVAL, "there are serial ports 0 to 3, not %u", index);
	u = calloc(1, sizeof(*u));
	if (!u)
		return error_set(err, -ENOMEM, "no memory for a serial port");
	snprintf(id, sizeof(id), "uart%u", index);
	device_init(&u->dev, &uart_class, id);
	u->env = *env;
	u->irq = irq;
	rc = bus_add(env->bus, BUS_PIO, uart_port(index), 8, 0, &port_ops, u, &u->range);
	if (rc) {
		free(u);
		return error_set(err, rc, "the ports of serial port %u are taken", index);
	}
	u->chr = chr;
	if (chr)
		chr->user = (struct char_user){
			.can_receive = can_receive,
			.receive = receive,
			.writable = on_writable,
			.ctx = u,
		};
	reset(&u->dev);
	*out = u;
	return 0;
}
