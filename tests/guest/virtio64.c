/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio devices under attack: rings with loops, wild addresses, absurd lengths and indices, registers
 * written in any order.  Whatever a device makes of it, the guest goes on, and after a reset the
 * device is back.  virtio 1.2, chapters 2.7 and 4.1.
 */
#include "guest.h"

static uint32_t seed = 4711;

static uint32_t any(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed;
}

static uint32_t pci_read(unsigned dev, unsigned reg)
{
	outl(0xcf8, 0x80000000 | dev << 11 | (reg & 0xfc));
	return inl(0xcfc);
}

static void pci_write(unsigned dev, unsigned reg, uint32_t v)
{
	outl(0xcf8, 0x80000000 | dev << 11 | (reg & 0xfc));
	outl(0xcfc, v);
}

static uint8_t pci_byte(unsigned dev, unsigned reg)
{
	return (uint8_t)(pci_read(dev, reg) >> 8 * (reg & 3));
}

struct device {
	volatile uint8_t *common, *notify, *isr, *config;
	uint32_t notify_step;
	unsigned id;
};

enum { /* 4.1.4.3 */
       /* clang-format off */
	DEVICE_FEATURE_SELECT = 0, DEVICE_FEATURE = 4, DRIVER_FEATURE_SELECT = 8, DRIVER_FEATURE = 12,
	MSIX_VECTOR = 16, NUM_QUEUES = 18, STATUS = 20, QUEUE_SELECT = 22, QUEUE_SIZE = 24,
	QUEUE_ENABLE = 28, NOTIFY_OFF = 30, DESC = 32, AVAIL = 40, USED = 48 };
       /* clang-format on */

static uint8_t r8(volatile uint8_t *p)
{
	return *p;
}
static uint16_t r16(volatile uint8_t *p)
{
	return *(volatile uint16_t *)p;
}
static uint32_t r32(volatile uint8_t *p)
{
	return *(volatile uint32_t *)p;
}
static void w8(volatile uint8_t *p, uint8_t v)
{
	*p = v;
}
static void w16(volatile uint8_t *p, uint16_t v)
{
	*(volatile uint16_t *)p = v;
}
static void w32(volatile uint8_t *p, uint32_t v)
{
	*(volatile uint32_t *)p = v;
}
static void w64(volatile uint8_t *p, uint64_t v)
{
	w32(p, (uint32_t)v);
	w32(p + 4, (uint32_t)(v >> 32));
}

static bool find_device(unsigned slot, struct device *d)
{
	uint32_t id = pci_read(slot, 0);
	uint32_t next_bar = 0xe0000000 + slot * 0x1000000;

	if ((id & 0xffff) != 0x1af4 || id >> 16 < 0x1040)
		return false;
	memset(d, 0, sizeof(*d));
	d->id = (id >> 16) - 0x1040;
	pci_write(slot, 4, 6);			 /* memory, bus master */
	for (unsigned bar = 0; bar < 6; bar++) { /* those that firmware left out */
		uint32_t v = pci_read(slot, 0x10 + 4 * bar);

		if (v & 1)
			continue;
		if (!(v & ~15u)) {
			pci_write(slot, 0x10 + 4 * bar, 0xffffffff);
			if (pci_read(slot, 0x10 + 4 * bar)) {
				pci_write(slot, 0x10 + 4 * bar, next_bar);
				next_bar += 0x100000;
			}
		}
		if ((v & 6) == 4)
			bar++;
	}
	unsigned limit = 0;
	for (unsigned cap = pci_byte(slot, 0x34); cap && limit++ < 48; cap = pci_byte(slot, cap + 1)) {
		if (pci_byte(slot, cap) != 9)
			continue;
		unsigned type = pci_byte(slot, cap + 3), bar = pci_byte(slot, cap + 4);
		uint64_t base = pci_read(slot, 0x10 + 4 * bar) & ~15u;

		if ((pci_read(slot, 0x10 + 4 * bar) & 6) == 4)
			base |= (uint64_t)pci_read(slot, 0x14 + 4 * bar) << 32;
		if (type < 1 || type > 4 || base >> 32)
			continue;
		volatile uint8_t *p = (void *)(base + pci_read(slot, cap + 8));
		if (type == 1)
			d->common = p;
		else if (type == 2)
			d->notify = p, d->notify_step = pci_read(slot, cap + 16);
		else if (type == 3)
			d->isr = p;
		else
			d->config = p;
	}
	return d->common && d->notify;
}

static bool reset(struct device *d)
{
	w8(d->common + STATUS, 0);
	for (unsigned i = 0; i < 5000; i++) {
		if (r8(d->common + STATUS) == 0)
			return true;
		delay_us(100);
	}
	return false;
}

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};
#define QSIZE 16
static struct {
	struct desc desc[QSIZE] __attribute__((aligned(4096)));
	uint16_t avail[2 + QSIZE + 1] __attribute__((aligned(4096)));
	uint16_t used[2 + QSIZE * 4 + 1] __attribute__((aligned(4096)));
	struct desc indirect[64] __attribute__((aligned(4096)));
	uint8_t data[8192];
} q;

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

/* Negotiate VERSION_1 and everything offered in the low word, queue @n ready. */
static void start(struct device *d, unsigned n, uint64_t desc, uint64_t avail, uint64_t used)
{
	reset(d);
	w8(d->common + STATUS, 1);
	w8(d->common + STATUS, 3);
	for (unsigned i = 0; i < 2; i++) {
		w32(d->common + DEVICE_FEATURE_SELECT, i);
		uint32_t f = r32(d->common + DEVICE_FEATURE);
		w32(d->common + DRIVER_FEATURE_SELECT, i);
		w32(d->common + DRIVER_FEATURE, i ? 1 : f);
	}
	w8(d->common + STATUS, 11);
	w16(d->common + QUEUE_SELECT, (uint16_t)n);
	w16(d->common + QUEUE_SIZE, QSIZE);
	w64(d->common + DESC, desc);
	w64(d->common + AVAIL, avail);
	w64(d->common + USED, used);
	w16(d->common + QUEUE_ENABLE, 1);
	w8(d->common + STATUS, 15);
}

static void start_here(struct device *d, unsigned n)
{
	memset(&q, 0, sizeof(q));
	start(d, n, (uintptr_t)q.desc, (uintptr_t)q.avail, (uintptr_t)q.used);
}

static void kick(struct device *d, unsigned n)
{
	w16(d->common + QUEUE_SELECT, (uint16_t)n);
	w16(d->notify + r16(d->common + NOTIFY_OFF) * d->notify_step, (uint16_t)n);
	delay_us(300);
	(void)r8(d->isr);
}

/* avail: @head once */
static void offer(struct device *d, unsigned n, uint16_t head)
{
	q.avail[2 + q.avail[1] % QSIZE] = head;
	__asm__ volatile("" : : : "memory");
	q.avail[1]++;
	kick(d, n);
}

static void set(unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	q.desc[i] = (struct desc){ addr, len, flags, next };
}

static void attack_queue(struct device *d, unsigned n)
{
	static const uint64_t wild[] = {
		0,	   0xd0000000,	0xfee00000, 0xfffffffffffff000, 0x7fffffffffffffff,
		0x3fff000, 0x100000000, 0xffffffff
	};

	start_here(d, n);
	set(0, (uintptr_t)q.data, 64, NEXT, 0); /* a loop of one */
	offer(d, n, 0);
	start_here(d, n);
	for (unsigned i = 0; i < QSIZE; i++) /* a loop of all */
		set(i, (uintptr_t)q.data, 16, NEXT | (i >= 8 ? WRITE : 0), (uint16_t)((i + 1) % QSIZE));
	offer(d, n, 3);
	start_here(d, n);
	set(0, (uintptr_t)q.data, 64, NEXT, 0xffff); /* a next that is none */
	offer(d, n, 0);
	start_here(d, n);
	offer(d, n, 0xffff); /* a head that is none */
	for (unsigned i = 0; i < sizeof(wild) / 8; i++) {
		start_here(d, n);
		set(0, wild[i], 16, NEXT, 1);
		set(1, wild[i], 0xffffffff, NEXT | WRITE, 2);
		set(2, wild[sizeof(wild) / 8 - 1 - i], 0x80000000, WRITE, 0);
		offer(d, n, 0);
		start(d, n, wild[i], (uintptr_t)q.avail, (uintptr_t)q.used);
		offer(d, n, 0);
		start(d, n, (uintptr_t)q.desc, wild[i], (uintptr_t)q.used);
		kick(d, n);
		start(d, n, (uintptr_t)q.desc, (uintptr_t)q.avail, wild[i]);
		set(0, (uintptr_t)q.data, 512, WRITE, 0);
		offer(d, n, 0);
	}
	start_here(d, n); /* zero lengths, writable before readable */
	set(0, (uintptr_t)q.data, 0, NEXT | WRITE, 1);
	set(1, (uintptr_t)q.data, 0, NEXT, 2);
	set(2, (uintptr_t)q.data, 16, 0, 0);
	offer(d, n, 0);
	start_here(d, n); /* the used ring inside the descriptors, all in one page */
	start(d, n, (uintptr_t)q.desc, (uintptr_t)q.desc, (uintptr_t)q.desc);
	set(0, (uintptr_t)q.desc, 4096, WRITE, 0);
	kick(d, n);
	start_here(d, n); /* an index far ahead */
	q.avail[1] = 0x8000;
	kick(d, n);
	start_here(d, n);
	q.avail[1] = QSIZE + 1;
	kick(d, n);
	/* indirect: nested, looping, of odd size, with itself as data, out of RAM */
	static const uint32_t lens[] = { 16, 17, 1024, 0, 0xfffffff0, 16 * 40000 };
	for (unsigned i = 0; i < sizeof(lens) / 4; i++) {
		start_here(d, n);
		for (unsigned k = 0; k < 64; k++)
			q.indirect[k] = (struct desc){ (uintptr_t)q.indirect, 1024,
						       (uint16_t)(NEXT | (i & 1 ? INDIRECT : 0)),
						       (uint16_t)(k * 7 % 64) };
		set(0, (uintptr_t)q.indirect, lens[i], INDIRECT, 0);
		offer(d, n, 0);
		start_here(d, n);
		set(0, (uintptr_t)q.indirect, lens[i], INDIRECT | NEXT, 0);
		offer(d, n, 0);
		start_here(d, n);
		set(0, 0xd0000000, lens[i], INDIRECT, 0);
		offer(d, n, 0);
	}
	for (unsigned round = 0; round < 40; round++) { /* anything at all */
		start_here(d, n);
		for (unsigned i = 0; i < QSIZE; i++)
			set(i, any() & 1 ? (uintptr_t)q.data + (any() & 0xfff) : any(),
			    any() & 3 ? any() & 0x3ff : any(), (uint16_t)(any() & 7),
			    (uint16_t)(any() % (QSIZE + 1)));
		for (unsigned i = 0; i < 64; i++)
			q.indirect[i] = q.desc[any() % QSIZE];
		for (unsigned i = 0; i < 4; i++) {
			if (any() & 1)
				set(i, (uintptr_t)q.indirect, 16 * (any() % 65), INDIRECT, 0);
			q.avail[2 + i] = (uint16_t)(any() % QSIZE);
		}
		q.avail[1] = (uint16_t)(any() % (QSIZE + 2));
		kick(d, n);
	}
}

static void attack_registers(struct device *d)
{
	for (unsigned round = 0; round < 3000; round++) {
		unsigned at = any() & 0x3f;

		switch (any() % 6) {
		case 0:
			w8(d->common + at, (uint8_t)any());
			break;
		case 1:
			w16(d->common + (at & ~1u), (uint16_t)any());
			break;
		case 2:
			w32(d->common + (at & ~3u), any());
			break;
		case 3: /* over the end of registers, and misaligned */
			*(volatile uint64_t *)(d->common + at) = (uint64_t)any() << 32 | any();
			break;
		case 4:
			w16(d->notify + (any() & 0x3e), (uint16_t)any());
			break;
		default:
			(void)r32(d->common + at);
			if (d->config) {
				(void)r32(d->config + (any() & 0xfff));
				w8(d->config + (any() & 0xff), (uint8_t)any());
			}
			break;
		}
	}
}

/* Queue operations in the wrong order: enabling before addresses, after DRIVER_OK, twice. */
static void attack_order(struct device *d)
{
	reset(d);
	w16(d->common + QUEUE_ENABLE, 1);
	w16(d->notify, 0);
	w8(d->common + STATUS, 15); /* DRIVER_OK without features */
	w16(d->notify, 0);
	w8(d->common + STATUS, 7);
	start_here(d, 0);
	w64(d->common + DESC, 0xd0000000); /* moved while it runs */
	w16(d->common + QUEUE_SIZE, 0x7fff);
	offer(d, 0, 0);
	w16(d->common + QUEUE_SELECT, 0xffff);
	w16(d->common + QUEUE_ENABLE, 1);
	w16(d->common + QUEUE_SIZE, 3);
	(void)r16(d->common + NOTIFY_OFF);
	w16(d->common + MSIX_VECTOR, 0x1234);
	delay_us(300);
}

void guest_main(void)
{
	unsigned found = 0;
	struct device d;

	for (unsigned slot = 0; slot < 32; slot++) {
		if (!find_device(slot, &d))
			continue;
		found++;
		print("# virtio device %u in slot %u\n", d.id, slot);
		check(reset(&d), "reset");
		unsigned queues = r16(d.common + NUM_QUEUES);
		for (unsigned n = 0; n < queues && n < 3; n++)
			attack_queue(&d, n);
		check(reset(&d), "reset after hostile rings");
		attack_order(&d);
		check(reset(&d), "reset after a wrong order");
		attack_registers(&d);
		check(reset(&d), "reset after random registers");
		check_eq(r16(d.common + NUM_QUEUES), queues, "its queues are back");
		start_here(&d, 0);
		check(r8(d.common + STATUS) == 15, "it can be started again");
		reset(&d);
	}
	check(found > 0, "there are virtio devices");
}
