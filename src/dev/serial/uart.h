/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 16550A UART.  Source: National Semiconductor PC16550D data sheet.
 *
 * Bytes leave at once (no baud rate), as fast as the backend takes them; what it does not take waits
 * in the transmit FIFO, and THRE stays clear until all is gone: nothing is lost, not by a FIFO reset or a
 * reset of the machine either (on an infinitely fast line those bytes were sent long ago).  The character
 * timeout interrupt comes at once when there are fewer bytes than the trigger level.  OUT2 does not
 * gate the interrupt.
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
	uint8_t ier, fcr, lcr, mcr, scr;
	uint8_t lsr; /* error bits 1..4; the others are computed */
	uint8_t msr; /* bits 7..4 lines, 3..0 changes since the last read */
	uint8_t dll, dlm;
	bool is_thre_pending; /* the THRE interrupt is due; cleared by reading it in IIR, or a THR write */
	uint8_t pad_[2];
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
