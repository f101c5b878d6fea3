/* SPDX-License-Identifier: Apache-2.0 */
/* The PC's devices by their ports: each answers as its data sheet says. */
#include "guest.h"

static uint8_t cmos(uint8_t reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

static void test_rtc(void)
{
	uint8_t b = cmos(0x0b);

	check(b & 2 || !(b & 4), "RTC: 24 hours or BCD, as B says");
	check(cmos(0x0d) & 0x80, "RTC: VRT, the battery is good");
	unsigned month = cmos(8), day = cmos(7), year = cmos(9), century = cmos(0x32);
	if (!(b & 4)) {
		month = (month >> 4) * 10 + (month & 15);
		day = (day >> 4) * 10 + (day & 15);
		year = (year >> 4) * 10 + (year & 15);
		century = (century >> 4) * 10 + (century & 15);
	}
	check(month >= 1 && month <= 12 && day >= 1 && day <= 31 && year <= 99, "RTC: a date");
	check(century == 0 || century >= 19, "RTC: a century");
	cmos(0x40);
	outb(0x71, 0x5a);
	check_eq(cmos(0x40), 0x5a, "CMOS: RAM");
	/* periodic flag, and read-to-clear */
	outb(0x70, 0x0a);
	outb(0x71, 0x2f); /* 2 Hz: two reads in a row do not meet two periods */
	(void)cmos(0x0c);
	uint8_t c[2] = { 0 };
	for (unsigned i = 0; i < 1500 && !(c[0] & 0x40); i++) {
		delay_us(1000);
		c[0] = cmos(0x0c);
		c[1] = cmos(0x0c);
	}
	outb(0x70, 0x0a);
	outb(0x71, 0x26);
	check((c[0] & 0x40) && !(c[1] & 0x40), "RTC: the periodic flag, reading C clears it");
	uint8_t s = cmos(0);
	unsigned ms = 0;
	while (cmos(0) == s && ms++ < 1500)
		delay_us(1000);
	check(ms < 1500, "RTC: seconds pass");
}

static bool kbd_wait_out(void)
{
	for (unsigned i = 0; i < 2000; i++) {
		if (inb(0x64) & 1)
			return true;
		delay_us(10);
	}
	return false;
}

static void kbd_command(uint8_t c)
{
	for (unsigned i = 0; i < 2000 && inb(0x64) & 2; i++)
		delay_us(10);
	outb(0x64, c);
}

static void test_i8042(void)
{
	for (unsigned i = 0; i < 16 && inb(0x64) & 1; i++)
		(void)inb(0x60);
	kbd_command(0xaa);
	check(kbd_wait_out() && inb(0x60) == 0x55, "i8042: self-test");
	kbd_command(0xab);
	check(kbd_wait_out() && inb(0x60) == 0, "i8042: interface test");
	kbd_command(0x20);
	bool is_there = kbd_wait_out();
	uint8_t c = inb(0x60);
	check(is_there, "i8042: command byte");
	kbd_command(0x60);
	outb(0x60, c & ~3);
	kbd_command(0x20);
	check(kbd_wait_out() && (inb(0x60) & 0x43) == (c & 0x40), "i8042: command byte written");
	kbd_command(0xd0);
	check(kbd_wait_out() && (inb(0x60) & 3) == 3, "i8042: output port: A20 on, no reset");
	kbd_command(0xd1);
	outb(0x60, 0xdf);
	kbd_command(0x60);
	outb(0x60, c);
}

static void test_a20(void)
{
	volatile uint32_t *low = (void *)0x500, *high = (void *)0x100500;
	uint32_t old = *high;

	*low = 0x11111111;
	*high = 0x22222222;
	check(*low == 0x11111111, "A20 is open");
	*high = old;
	check(inb(0x92) & 2, "port 92H says so");
}

static void test_uart(void)
{
	outb(0x3ff, 0xa5);
	check_eq(inb(0x3ff), 0xa5, "UART: scratch");
	uint8_t lcr = inb(0x3fb);
	outb(0x3fb, lcr | 0x80);
	uint8_t dll = inb(0x3f8), dlm = inb(0x3f9);
	outb(0x3f8, 0x34);
	outb(0x3f9, 0x12);
	check(inb(0x3f8) == 0x34 && inb(0x3f9) == 0x12, "UART: divisor latch");
	outb(0x3f8, dll);
	outb(0x3f9, dlm);
	outb(0x3fb, lcr);
	outb(0x3fa, 1);
	check((inb(0x3fa) & 0xc1) == 0xc1, "UART: FIFOs, no interrupt");
	outb(0x3f9, 2);
	uint8_t iir[2] = { inb(0x3fa), inb(0x3fa) };
	check((iir[0] & 0xf) == 2 && (iir[1] & 0xf) == 1,
	      "UART: transmitter empty in IIR, reading clears it");
	outb(0x3f9, 0);
	check((inb(0x3fd) & 0x60) == 0x60, "UART: THRE, TEMT");
	outb(0x3fc, 0x1e); /* loopback */
	outb(0x3f8, 0x77);
	delay_us(2000);
	check((inb(0x3fd) & 1) && inb(0x3f8) == 0x77, "UART: loopback");
	check_eq(inb(0x3fe) & 0xf0, 0xd0, "UART: loopback of the modem lines");
	outb(0x3fc, 3);
}

static void test_pit2(void)
{
	outb(0x61, (inb(0x61) & ~2) | 1); /* gate on, speaker off */
	bool was_low = false;
	unsigned us = 0;
	/* A CPU that is kept waiting by its host may come too late to see the output low: once more then. */
	for (unsigned i = 0; i < 20 && !(was_low && us > 1000); i++) {
		outb(0x43, 0xb0);
		outb(0x42, 0x00);
		outb(0x42, 0xc0); /* 49152 / 1.19 MHz = 41 ms */
		was_low = !(inb(0x61) & 0x20);
		for (us = 0; !(inb(0x61) & 0x20) && us < 1000000; us += 20)
			delay_us(20);
	}
	check(was_low && us > 1000 && us < 1000000, "PIT channel 2: output at port 61H");
	outb(0x61, inb(0x61) & ~1);
	outb(0x43, 0xb0);
	outb(0x42, 0x00);
	outb(0x42, 0x10); /* 3.4 ms */
	delay_us(8000);
	check(!(inb(0x61) & 0x20), "PIT channel 2: the gate stops it");
}

static uint32_t pci(unsigned dev, unsigned reg)
{
	outl(0xcf8, 0x80000000 | dev << 11 | reg);
	return inl(0xcfc);
}

static void pci_write(unsigned dev, unsigned reg, uint32_t v)
{
	outl(0xcf8, 0x80000000 | dev << 11 | reg);
	outl(0xcfc, v);
}

static void test_pci(void)
{
	unsigned found = 0;

	outl(0xcf8, 0x80000000);
	check_eq(inl(0xcf8), 0x80000000, "PCI: address register");
	check(pci(0, 0) != 0xffffffff, "PCI: a host bridge");
	check_eq(pci(31, 0), 0xffffffff, "PCI: nothing in slot 31");
	outl(0xcf8, 0x80000000);
	check_eq(inw(0xcfe) | (uint32_t)inb(0xcfd) << 24,
		 (pci(0, 0) >> 16) | (pci(0, 0) >> 8 & 0xff) << 24, "PCI: parts of a register");
	outl(0xcf8, 0);
	check_eq(inl(0xcfc), 0xffffffff, "PCI: disabled, all ones");
	bool is_right = true;
	for (unsigned d = 1; d < 32; d++) {
		if (pci(d, 0) == 0xffffffff)
			continue;
		found++;
		for (unsigned bar = 0x10; bar < 0x28; bar += 4) {
			uint32_t old = pci(d, bar);

			pci_write(d, bar, 0xffffffff);
			uint32_t mask = pci(d, bar);
			pci_write(d, bar, old);
			is_right &= pci(d, bar) == old;
			if (mask && !(mask & 1))
				is_right &= ((~(mask & ~15u) + 1) & (mask & ~15u)) ==
						    (~(mask & ~15u) + 1) ||
					    (mask & ~15u) == 0xfffffff0;
		}
	}
	print("# %u PCI devices\n", found);
	check(is_right, "PCI: BARs can be sized and put back");
}

static void test_pm(void)
{
	uint32_t a = pm_timer();

	delay_us(1000);
	check(pm_timer() != a, "ACPI: PM timer");
}

static void test_fw_cfg(void)
{
	outw(0x510, 0);
	char sig[5] = { 0 };
	for (unsigned i = 0; i < 4; i++)
		sig[i] = (char)inb(0x511);
	if (memcmp(sig, "QEMU", 4)) {
		skip("fw_cfg", "not there");
		return;
	}
	check(true, "fw_cfg: signature");
	outw(0x510, 3);
	uint64_t ram = 0;
	for (unsigned i = 0; i < 8; i++)
		ram |= (uint64_t)inb(0x511) << 8 * i;
	check(ram >= 16 << 20 && !(ram & 0xfff), "fw_cfg: RAM size");
	check_eq(inb(0x511), 0, "fw_cfg: zeros past the end");
	outw(0x510, 0x7fff);
	check_eq(inb(0x511), 0, "fw_cfg: a key that is not there");
}

static void test_nothing(void)
{
	check(inb(0x999) == 0xff && inw(0x998) == 0xffff && inl(0x994) == 0xffffffff,
	      "ports of nothing");
	volatile uint32_t *hole = (void *)0xd0000000ul;
	*hole = 1;
	check_eq(*hole, 0xffffffff, "memory of nothing");
	check_eq(*(volatile uint64_t *)0xd0000ffc, ~0ull, "across pages of nothing");
	check_eq(*(volatile uint8_t *)0xd0000001, 0xff, "a byte of nothing");
	uint32_t v = 0x55;
	__asm__ volatile("lock xaddl %0, (%1)" : "+r"(v) : "r"(hole) : "memory", "cc");
	check_eq(v, 0xffffffff, "a locked operation on nothing");
	uint8_t buf[16] __attribute__((aligned(16)));
	__asm__ volatile("movups (%1), %%xmm0; movups %%xmm0, %0"
			 : "=m"(buf)
			 : "r"(hole)
			 : "memory");
	check(buf[0] == 0xff && buf[15] == 0xff, "16 bytes of nothing");
}

void guest_main(void)
{
	test_uart();
	test_rtc();
	test_i8042();
	test_a20();
	test_pit2();
	test_pci();
	test_pm();
	test_fw_cfg();
	test_nothing();
}
