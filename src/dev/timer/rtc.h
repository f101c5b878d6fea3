/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MC146818A real-time clock and CMOS memory (ports 70H, 71H).  Source: Motorola MC146818A data sheet.
 *
 * Time of day = the wall clock at machine time 0 (a parameter) + machine time + what the guest set.
 * Simplified: the day of the week follows from the date; no daylight saving; the square wave has no pin.
 */
#ifndef VIV_DEV_TIMER_RTC_H
#define VIV_DEV_TIMER_RTC_H

#include "dev/device.h"

struct rtc_config {
	int64_t wall_ns_at_zero; /* UTC nanoseconds since 1970 at machine time 0 */
	uint64_t low_ram_bytes; /* below 4G, for the memory size bytes 15H-18H, 30H, 31H, 34H, 35H */
	uint64_t high_ram_bytes; /* from 4G: 5BH-5DH */
	uint8_t boot_order;	 /* 3DH: 2 disk, 3 CD (SeaBIOS) */
	unsigned cpus;		 /* 5FH: cpus - 1 (SeaBIOS) */
};

struct rtc {
	struct device dev;
	struct dev_env env;
	struct irq_line irq8;
	struct vtimer *timer; /* next event that interrupts */
	struct bus_range *range;
	int64_t offset_ns; /* time of day (since 1970) - machine time, while it runs */
	int64_t seen_ns;   /* machine time until which the flags of register C are up to date */
	/* A, B as written, C flags, D constant; time and date (0, 2, 4, 6..9, 32H) only while stopped */
	uint8_t ram[128];
	uint8_t index;	    /* port 70H, bits 6..0 */
	bool is_nmi_masked; /* port 70H bit 7 */
	uint8_t pad_[6];
};

extern const struct device_class rtc_class;

/** rtc_create() - @cfg is read during the call only. */
int rtc_create(struct rtc **out, const struct dev_env *env, struct irq_line irq8,
	       const struct rtc_config *cfg, struct error *err);

/** rtc_advance() - it runs on battery: @ns of real time went by while machine time stood still.  What it would have signaled
 * meanwhile is pending.  Stopped by the guest, it stays as it is. */
void rtc_advance(struct rtc *r, int64_t ns);

#endif
