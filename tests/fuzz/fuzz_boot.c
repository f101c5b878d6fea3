/* SPDX-License-Identifier: Apache-2.0 */
/* boot_load: any file is refused with a sentence and registers untouched, or loads with an entry point. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "vm/boot.h"

static struct guest_ram ram;

/* Multiboot by ELF: the format with most structure; mutations of the magic reach the others' parsers. */
size_t fuzz_seed(uint8_t *buf, size_t cap)
/* clang-format off */
{
	static const uint8_t elf[] = {
		0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 1, 0, 0, 0,
		0x00, 0x00, 0x20, 0, 52, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 52, 0, 32, 0, 2, 0, 0, 0, 0, 0, 0, 0,
		/* PT_LOAD */
		1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x20, 0, 0, 0, 0x20, 0, 0, 1, 0, 0, 0, 2, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
		/* PT_NOTE */
		4, 0, 0, 0, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x14, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0,
	};
	static const uint8_t note[] = { 4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, 'X', 'e', 'n', 0, 0, 0, 0x20, 0 };
	static const uint8_t multiboot[] = { 0x02, 0xb0, 0xad, 0x1b, 0, 0, 0, 0, 0xfe, 0x4f, 0x52, 0xe4 };
	/* the bzImage header's fields lie between: the first byte decides which of them survive */
	static const uint8_t bz[] = { 0x55, 0xaa, 0xeb, 0x66, 'H', 'd', 'r', 'S', 0x0f, 2 };

	if (cap < 0x300)
		return 0;
	memset(buf, 0, 0x300);
	memcpy(buf, elf, sizeof(elf));
	memcpy(buf + 0x180, note, sizeof(note));
	memcpy(buf + 0x1a0, multiboot, sizeof(multiboot));
	memcpy(buf + 0x1fe, bz, sizeof(bz));
	buf[0x202] = 'h'; /* one bit from being a bzImage */
	buf[0x211] = 1;
	buf[0x22e] = 0xff;
	buf[0x234] = 1;
	buf[0x232] = 0x10;
	buf[0x236] = 1;
	buf[0x239] = 1;
	return 0x300;
}
/* clang-format on */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct x86_state s, before;
	struct error err = { "" };
	struct boot_blob initrd = { .name = "initrd", .data = (uint8_t[4]){ 1, 2, 3, 4 }, .len = 4 };
	struct boot_blob kernel = { .name = "kernel", .len = size };
	struct boot_request rq = { .ram = &ram, .kernel = &kernel, .cmdline = "x=y", .rsdp = BOOT_ACPI_BASE };

	if (!ram.base && ram_create(&ram, 4 * MIB, 0, &err) < 0)
		abort();
	if (size == 0)
		return 0;
	kernel.data = malloc(size); /* exactly so long: a byte too far is a finding */
	if (!kernel.data)
		return 0;
	memcpy(kernel.data, data, size);
	rq.initrd = data[size - 1] & 1 ? &initrd : NULL;
	memset(&s, 0, sizeof(s));
	memcpy(&before, &s, sizeof(s));
	if (boot_load(&rq, &s, &err) < 0) {
		if (!err.text[0] || memcmp(&s, &before, sizeof(s)) != 0)
			abort();
	} else if (!(s.cr0 & X86_CR0_PE) || s.rflags != 2) {
		abort();
	}
	free(kernel.data);
	return 0;
}
