/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DMA and interrupt remapping as a guest sees it: the edu device behind the VT-d unit.  DMA goes where the
 * tables say and nowhere else, what is refused is recorded and told, messages come through the remapping
 * table.  VT-d specification, rev. 2.3; sections at the checks.
 */
#include "guest.h"

#define VTD 0xfed90000u
/* clang-format off */
enum { VER = 0x00, CAP = 0x08, ECAP = 0x10, GCMD = 0x18, GSTS = 0x1c, RTADDR = 0x20, FSTS = 0x34, FECTL = 0x38, FEDATA = 0x3c,
       FEADDR = 0x40, IQH = 0x80, IQT = 0x88, IQA = 0x90, IRTA = 0xb8 };
/* clang-format on */
enum { TE = 1u << 31, SRTP = 1u << 30, QIE = 1u << 26, IRE = 1u << 25, SIRTP = 1u << 24 };

enum {
	EDU_ID = 0,
	EDU_RAISE = 0x60,
	EDU_ACK = 0x64,
	EDU_FROM = 0x80,
	EDU_TO = 0x88,
	EDU_COUNT = 0x90,
	EDU_COMMAND = 0x98
};
#define EDU_BUFFER 0x40000

#define FAULT_VECTOR 0x60
#define MSI_VECTOR   0x61
#define IOVA	     0x123000

static uint32_t r32(uint64_t at)
{
	return *(volatile uint32_t *)at;
}
static uint64_t r64(uint64_t at)
{
	return *(volatile uint64_t *)at;
}
static void w32(uint64_t at, uint32_t v)
{
	*(volatile uint32_t *)at = v;
}
static void w64(uint64_t at, uint64_t v)
{
	*(volatile uint64_t *)at = v;
}

/* ---- PCI ---- */

static unsigned slot;
static uint64_t edu;

static uint32_t pci_read(unsigned reg)
{
	outl(0xcf8, 0x80000000 | slot << 11 | (reg & 0xfc));
	return inl(0xcfc);
}

static void pci_write(unsigned reg, uint32_t v)
{
	outl(0xcf8, 0x80000000 | slot << 11 | (reg & 0xfc));
	outl(0xcfc, v);
}

static bool find_edu(void)
{
	for (slot = 0; slot < 32; slot++)
		if (pci_read(0) == 0x11e81234)
			break;
	if (slot == 32)
		return false;
	if (!(pci_read(0x10) & ~15u))
		pci_write(0x10, 0xe0000000);
	pci_write(4, 0x6);
	edu = pci_read(0x10) & ~15u;
	return true;
}

/* False: it did not end. */
static bool dma(uint64_t from, uint64_t to, uint64_t count, unsigned command)
{
	w64(edu + EDU_FROM, from);
	w64(edu + EDU_TO, to);
	w64(edu + EDU_COUNT, count);
	w32(edu + EDU_COMMAND, command | 1);
	for (unsigned i = 0; i < 20000; i++) {
		if (!(r32(edu + EDU_COMMAND) & 1))
			return true;
		delay_us(10);
	}
	return false;
}

/* ---- the unit ---- */

static uint64_t *root, *context, *l3, *l2, *l1, *irt, *iq;
static unsigned tail;
static volatile unsigned faults, messages;

static void command(uint32_t on, uint32_t once)
{
	w32(VTD + GCMD, on | once);
	for (unsigned i = 0; i < 1000 && (r32(VTD + GSTS) & (on | once)) != (on | once); i++)
		delay_us(10);
}

static void on_fault(struct frame *f)
{
	(void)f;
	faults++;
	lapic_eoi();
}

static void on_message(struct frame *f)
{
	(void)f;
	messages++;
	lapic_eoi();
}

/* Interrupts in until @counter is @want, at most a moment. */
static bool comes(volatile unsigned *counter, unsigned want)
{
	for (unsigned i = 0; i < 200 && *counter != want; i++) {
		sti();
		delay_us(50);
		cli();
	}
	return *counter == want;
}

/* Queued invalidation with a wait descriptor behind it: 6.5.2. */
static bool invalidate(void)
{
	volatile uint32_t *status = (void *)(iq + 500);
	const uint64_t descs[4] = { 2 | 1 << 4, 0, 5 | 2 << 4 | 0x77ULL << 32, (uintptr_t)status };

	*status = 0;
	for (unsigned i = 0; i < 4; i++)
		iq[tail / 8 + i] = descs[i];
	tail += 32;
	w64(VTD + IQT, tail);
	for (unsigned i = 0; i < 1000 && *status != 0x77; i++)
		delay_us(10);
	return *status == 0x77 && r64(VTD + IQH) == tail;
}

static void check_fault_record(unsigned reason, uint64_t addr, bool is_read, const char *name)
{
	uint64_t at = VTD + (r64(VTD + CAP) >> 24 & 0x3ff) * 16 + (r32(VTD + FSTS) >> 8 & 0xff) * 16;
	uint64_t high = r64(at + 8);

	check((r32(VTD + FSTS) & 2) && high >> 63, name);
	check_eq(high >> 32 & 0xff, reason, "its reason");
	check_eq(high & 0xffff, slot << 3, "its requester");
	check_eq(high >> 62 & 1, is_read, "its direction");
	check_eq(r64(at), addr, "its address");
	w32(at + 12, 0x80000000);
	check_eq(r32(VTD + FSTS) & 0xff, 0, "it is cleared");
}

static void set_up(void)
{
	root = alloc_page();
	context = alloc_page();
	l3 = alloc_page();
	l2 = alloc_page();
	l1 = alloc_page();
	irt = alloc_page();
	iq = alloc_page();
	root[0] = (uintptr_t)context | 1;
	context[slot * 8 * 2] = (uintptr_t)l3 | 1;
	context[slot * 8 * 2 + 1] = 1 | 5 << 8; /* 39 bits, domain 5 */
	l3[0] = (uintptr_t)l2 | 3;
	l2[0] = (uintptr_t)l1 | 3;
	w64(VTD + RTADDR, (uintptr_t)root);
	w64(VTD + IRTA, (uintptr_t)irt | 3); /* 16 entries */
	w64(VTD + IQA, (uintptr_t)iq);
	w32(VTD + FEDATA, FAULT_VECTOR);
	w32(VTD + FEADDR, 0xfee00000);
	w32(VTD + FECTL, 0);
	command(0, SRTP);
	command(0, SIRTP);
	command(QIE, 0);
	check(invalidate(), "queued invalidation");
	command(QIE | TE, 0);
	check_eq(r32(VTD + GSTS), (uint32_t)(TE | SRTP | QIE | SIRTP), "translation is on");
}

static void test_dma(void)
{
	uint64_t *page = alloc_page(), *other = alloc_page();

	page[0] = 0x1122334455667788;
	l1[IOVA >> 12] = (uintptr_t)page | 3;
	check(dma(IOVA, EDU_BUFFER, 8, 0) && dma(EDU_BUFFER, IOVA + 64, 8, 2), "DMA ends");
	check_eq(page[8], 0x1122334455667788, "DMA goes where the tables say");
	check_eq(r32(VTD + FSTS) & 0xff, 0, "no fault");
	/* a neighbour that is elsewhere */
	l1[(IOVA >> 12) + 1] = (uintptr_t)other | 3;
	page[511] = 0xaaaa;
	other[0] = 0xbbbb;
	dma(IOVA + 4088, EDU_BUFFER, 16, 0);
	dma(EDU_BUFFER, IOVA + 1024, 16, 2);
	check(page[128] == 0xaaaa && page[129] == 0xbbbb, "across pages that are no neighbours");
	/* read-only: what it would write stays away, 9.8 */
	l1[IOVA >> 12] = (uintptr_t)page | 1;
	check(invalidate(), "invalidation after a change");
	page[16] = 0x5555;
	dma(EDU_BUFFER, IOVA + 128, 8, 2);
	check_eq(page[16], 0x5555, "a page without write permission is not written");
	check(comes(&faults, 1), "the fault event comes");
	check_fault_record(5, IOVA, false, "the refused write is recorded");
	/* not mapped at all: the physical address of the page is none of the device's */
	page[17] = 0x6666;
	dma(EDU_BUFFER, (uintptr_t)(page + 17), 8, 2);
	check_eq(page[17], 0x6666, "physical addresses lead nowhere");
	check(comes(&faults, 2), "the fault event comes again");
	check_fault_record(5, (uintptr_t)page, false, "the refused write is recorded");
	dma(0x777000, EDU_BUFFER, 8, 0);
	check(comes(&faults, 3), "the fault event comes for a read");
	check_fault_record(6, 0x777000, true, "the refused read is recorded");
	/* a context entry for nobody */
	context[slot * 8 * 2] &= ~1ULL;
	dma(IOVA, EDU_BUFFER, 8, 0);
	check(comes(&faults, 4), "the fault event comes without a context");
	check_fault_record(2, IOVA, true, "a device without a context is refused");
	/* pass-through, 9.3: as if there were no unit */
	context[slot * 8 * 2] = 1 | 2 << 2;
	page[18] = 0x7777;
	dma((uintptr_t)(page + 18), EDU_BUFFER, 8, 0);
	dma(EDU_BUFFER, (uintptr_t)(page + 19), 8, 2);
	check_eq(page[19], 0x7777, "pass-through");
}

static void test_interrupts(void)
{
	unsigned cap = pci_read(0x34) & 0xff;

	irt[2 * 3] = 1 | (uint64_t)MSI_VECTOR << 16; /* APIC 0, fixed, edge */
	irt[2 * 3 + 1] = 1 << 18 | slot << 3;
	command(QIE | TE | IRE, 0);
	pci_write(cap + 4, 0xfee00010 | 3 << 5);
	pci_write(cap + 8, 0);
	pci_write(cap + 12, 0);
	pci_write(cap, pci_read(cap) | 1 << 16);
	w32(edu + EDU_RAISE, 1);
	check(comes(&messages, 1), "a remapped message comes");
	w32(edu + EDU_ACK, 1);
	/* another device's entry, 5.1.4.1 */
	irt[2 * 3 + 1] = 1 << 18 | (slot + 1) << 3;
	w32(edu + EDU_RAISE, 1);
	check(comes(&faults, 5), "the fault event comes for an interrupt");
	check_eq(messages, 1, "an entry is its device's only");
	check_fault_record(0x26, 3ULL << 48, false, "the refused message is recorded");
	/* compatibility format */
	pci_write(cap + 4, 0xfee00000);
	pci_write(cap + 12, MSI_VECTOR);
	w32(edu + EDU_RAISE, 1);
	check(comes(&faults, 6), "the fault event comes for a message in compatibility format");
	check_eq(messages, 1, "compatibility format is blocked");
	check_fault_record(0x25, 0, false, "the blocked message is recorded");
	command(QIE | TE, 0);
	w32(edu + EDU_RAISE, 1);
	check(comes(&messages, 2), "without remapping it comes");
	w32(edu + EDU_ACK, 1);
	pci_write(cap, pci_read(cap) & ~(1u << 16));
}

void guest_main(void)
{
	if (!find_edu()) {
		check(false, "there is an edu device");
		return;
	}
	check_eq(r32(edu + EDU_ID), 0x010000ed, "the edu device answers");
	check((r32(VTD + VER) & 0xff) == 0x10, "there is a VT-d unit");
	check((r64(VTD + CAP) >> 8 & 0x1f) == 6, "3 and 4 levels");
	check((r64(VTD + ECAP) & 0xa) == 0xa, "queued invalidation, interrupt remapping");
	lapic_enable();
	set_handler(FAULT_VECTOR, on_fault);
	set_handler(MSI_VECTOR, on_message);
	set_up();
	test_dma();
	test_interrupts();
	command(0, 0);
}
