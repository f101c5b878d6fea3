/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 16550A UART.  Source: National Semiconductor PC16550D data sheet.
 *
 * Bytes leave at once (no baud rate), as fast as the backend takes them; what it does not take waits
 * in the transmit FIFO, and THRE stays clear until there is room: nothing is lost.  The character timeout
 * interrupt comes at once when there are fewer bytes than the trigger level.
 */
#ifndef VIV_DEV_SERIAL_UART_H
#define VIV_DEV_SERIAL_UART_H

#include "char/chardev.h"
#include "dev/device.h"

#define UART_FIFO 16

struct uart_fifo {
	uint8_t data[UART_FIFO];
	uint8_t head, len;
};

struct uart {
	struct device dev;
	struct dev_env env;
	struct irq_line irq;
	struct char_dev *chr; /* borrowed; NULL: nothing connected */
	struct bus_range *range;
	struct uart_fifo rx, tx;
	uint8_t ier, fcr, lcr, mcr, lsr, msr, scr;
	uint8_t dll, dlm;
	bool is_thre_pending; /* the THRE interrupt is due (SDS 8.6.3: cleared by IIR read or THR write) */
	bool is_break_pending_;
	uint8_t pad_[1];
};

extern const struct device_class uart_class;

/**
 * uart_create() - COM port.
 * @index: 0..3: COM1 3F8H, COM2 2F8H, COM3 3E8H, COM4 2E8H
 * @irq: COM1 and COM3 usually ISA IRQ 4, the others 3
 * @chr: backend, borrowed; NULL: not connected (output vanishes)
 */
int uart_create(struct uart **out, const struct dev_env *env, unsigned index, struct irq_line irq,
		struct char_dev *chr, struct error *err);
uint16_t uart_port(unsigned index);

#endif
