/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands in for a BIOS after a direct boot: an interrupt vector table whose every entry leads to
 * something harmless.
 *
 * Boot code that drops to real mode (Xen, boot loaders) asks the BIOS for memory, disks and video without
 * knowing that there is none.  Services answer "not supported" (carry set, AH = 86H), INT 11H and
 * 12H tell what the BIOS data area says, hardware interrupts are acknowledged, the rest returns.
 * The code lies in the EBDA, which the memory map reserves.
 */
#include <errno.h>

#include "vm/boot.h"

#define STUBS_OFFSET 0x10 /* in the EBDA; its first byte is its size in KiB */

static const uint8_t stub_return[] = { 0xcf }; /* iret */
static const uint8_t stub_unsupported[] = {
	0x55,			/* push bp */
	0x89, 0xe5,		/* mov bp, sp */
	0x80, 0x4e, 0x06, 0x01, /* or byte [bp+6], 1: carry in the flags that IRET restores */
	0x5d,			/* pop bp */
	0xb4, 0x86,		/* mov ah, 86h */
	0xcf,			/* iret */
};
static const uint8_t stub_equipment[] = {
	0x1e,		  /* push ds */
	0x31, 0xc0,	  /* xor ax, ax */
	0x8e, 0xd8,	  /* mov ds, ax */
	0xa1, 0x10, 0x04, /* mov ax, [410h] */
	0x1f,		  /* pop ds */
	0xcf,		  /* iret */
};
static const uint8_t stub_memory_size[] = {
	0x1e,		  /* push ds */
	0x31, 0xc0,	  /* xor ax, ax */
	0x8e, 0xd8,	  /* mov ds, ax */
	0xa1, 0x13, 0x04, /* mov ax, [413h] */
	0x1f,		  /* pop ds */
	0xcf,		  /* iret */
};
static const uint8_t stub_irq_master[] = {
	0x50,	    /* push ax */
	0xb0, 0x20, /* mov al, 20h */
	0xe6, 0x20, /* out 20h, al */
	0x58,	    /* pop ax */
	0xcf,	    /* iret */
};
static const uint8_t stub_irq_slave[] = {
	0x50,	    /* push ax */
	0xb0, 0x20, /* mov al, 20h */
	0xe6, 0xa0, /* out 0a0h, al */
	0xe6, 0x20, /* out 20h, al */
	0x58,	    /* pop ax */
	0xcf,	    /* iret */
};

#define STUB(code, first, last)                                                                    \
	{                                                                                          \
		code, sizeof(code), first, last                                                    \
	}
static const struct {
	const uint8_t *code;
	uint8_t len, first, last; /* vectors */
} stubs[] = {
	/* later rows override earlier ones */
	STUB(stub_return, 0x00, 0xff),	  STUB(stub_irq_master, 0x08, 0x0f),
	STUB(stub_irq_slave, 0x70, 0x77), STUB(stub_unsupported, 0x10, 0x1a),
	STUB(stub_equipment, 0x11, 0x11), STUB(stub_memory_size, 0x12, 0x12),
};
#undef STUB

int boot_place_bios_stubs(struct guest_ram *ram, struct error *err)
{
	uint16_t off = STUBS_OFFSET;
	uint8_t ebda_kib = 1;

	if (ram_write(ram, BOOT_EBDA, &ebda_kib, 1) < 0)
		return error_set(err, -EFAULT, "guest RAM has no room for BIOS stand-ins");
	for (size_t i = 0; i < ARRAY_SIZE(stubs); i++) {
		uint32_t vector = (uint32_t)(BOOT_EBDA >> 4) << 16 | off;

		if (ram_write(ram, BOOT_EBDA + off, stubs[i].code, stubs[i].len) < 0)
			return error_set(err, -EFAULT, "guest RAM has no room for BIOS stand-ins");
		for (unsigned v = stubs[i].first; v <= stubs[i].last; v++)
			if (ram_write(ram, 4 * v, &vector, sizeof(vector)) < 0)
				return error_set(err, -EFAULT, "guest RAM has no first page");
		off += stubs[i].len;
	}
	return 0;
}
