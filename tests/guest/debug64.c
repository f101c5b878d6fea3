/* SPDX-License-Identifier: Apache-2.0 */
/* Single step and debug registers.  SDM vol. 3 chapter 17. */
#include "guest.h"

#define TF 0x100
#define RF 0x10000

static volatile unsigned hits;
static volatile uint64_t hit_ip[64], hit_dr6[64], hit_flags[64];

static void on_debug(struct frame *f)
{
	unsigned i = hits++;

	if (i < 64) {
		hit_ip[i] = f->ip;
		hit_dr6[i] = read_dr6();
		hit_flags[i] = f->flags;
	}
	write_dr6(0xffff0ff0);
	if (i > 60)
		f->flags &= ~(uint64_t)TF;
	if ((hit_dr6[i & 63] & 0xf) && !(hit_dr6[i & 63] & 0x4000))
		f->flags |= RF;
}

static void reset(void)
{
	hits = 0;
	write_dr7(0x400);
	write_dr6(0xffff0ff0);
}

extern uint8_t step_1[], step_2[], step_3[], step_4[], step_end[];

static void test_step(void)
{
	reset();
	__asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq\n"
			 "step_1: nop\n"
			 "step_2: mov $3, %%ecx\n"
			 "step_3: rep movsb\n"
			 "step_4: pushfq; andq $~0x100, (%%rsp); popfq\n"
			 "step_end: nop"
			 :
			 : "S"(0x9000), "D"(0x9100)
			 : "rcx", "memory", "cc");
	check(hits >= 7 && hit_ip[0] == (uintptr_t)step_2,
	      "single step: after the instruction behind POPF");
	check_eq(hit_ip[1], (uintptr_t)step_3, "single step: each instruction");
	check(hit_ip[2] == (uintptr_t)step_3 && hit_ip[3] == (uintptr_t)step_3 &&
		      hit_ip[4] == (uintptr_t)step_4,
	      "single step: each iteration of REP");
	check_eq(hit_dr6[0] & 0xe00f, 0x4000, "DR6.BS");
	check(hit_flags[0] & TF, "TF in the saved flags");
	check_eq(hit_ip[hits - 1], (uintptr_t)step_end,
		 "single step: the POPF that clears TF is the last");
}

extern uint8_t ss_1[], ss_2[], ss_3[];

static void test_shadow(void)
{
	reset();
	__asm__ volatile("mov %%ss, %%eax\n\t"
			 "pushfq; orq $0x100, (%%rsp); popfq\n"
			 "ss_1: mov %%eax, %%ss\n"
			 "ss_2: nop\n"
			 "ss_3: pushfq; andq $~0x100, (%%rsp); popfq"
			 :
			 :
			 : "rax", "memory", "cc");
	check_eq(hit_ip[0], (uintptr_t)ss_3, "single step: MOV SS holds it off for one instruction");
}

static volatile uint64_t watched[8] __attribute__((aligned(64)));

static void set_bp(unsigned n, const volatile void *p, unsigned type, unsigned len_code)
{
	word a = (uintptr_t)p;

	switch (n) {
	case 0:
		write_dr0(a);
		break;
	case 1:
		write_dr1(a);
		break;
	case 2:
		write_dr2(a);
		break;
	default:
		write_dr3(a);
		break;
	}
	word d = read_dr7() & ~(0xful << (16 + 4 * n));
	write_dr7(d | 2ul << 2 * n | (word)(type | len_code << 2) << (16 + 4 * n));
}

extern uint8_t bp_here[], bp_after[];

static void __attribute__((noinline)) run_bp(void)
{
	__asm__ volatile("nop\nbp_here: nop\nbp_after: nop");
}

static void test_execute(void)
{
	reset();
	set_bp(0, bp_here, 0, 0);
	run_bp();
	check(hits == 1 && hit_ip[0] == (uintptr_t)bp_here,
	      "execution breakpoint: before the instruction");
	check_eq(hit_dr6[0] & 0xe00f, 1, "execution breakpoint: DR6.B0");
	run_bp();
	check_eq(hits, 2, "execution breakpoint: RF lets it go on, and it hits again");
	write_dr7(0x400);
	run_bp();
	check_eq(hits, 2, "execution breakpoint off");
}

extern uint8_t wr_after[];

static void test_data(void)
{
	reset();
	set_bp(1, &watched[2], 1, 3); /* write, 4 bytes */
	__asm__ volatile("movl $1, (%0)\nwr_after: nop" : : "r"(&watched[2]) : "memory");
	check(hits == 1 && hit_ip[0] == (uintptr_t)wr_after,
	      "write watchpoint: behind the instruction");
	check_eq(hit_dr6[0] & 0xe00f, 2, "write watchpoint: DR6.B1");
	(void)watched[2];
	check_eq(hits, 1, "write watchpoint: reads pass");
	((volatile uint8_t *)&watched[2])[4] = 1;
	check_eq(hits, 1, "write watchpoint: the next byte passes");
	((volatile uint8_t *)&watched[2])[3] = 1;
	check_eq(hits, 2, "write watchpoint: the last byte hits");
	*(volatile uint16_t *)((uintptr_t)&watched[2] - 1) = 1;
	check_eq(hits, 3, "write watchpoint: an overlapping write hits");
	__asm__ volatile("lock incl (%0)" : : "r"(&watched[2]) : "memory", "cc");
	check_eq(hits, 4, "write watchpoint: a locked operation hits");
	__asm__ volatile("push %0; pop (%1)" : : "r"(5ul), "r"(&watched[2]) : "memory");
	check_eq(hits, 5, "write watchpoint: POP to memory hits");
	watched[3] = 1;
	check_eq(hits, 5, "write watchpoint: the neighbour passes");
	reset();
	set_bp(2, &watched[4], 3, 2); /* read or write, 8 bytes */
	(void)watched[4];
	watched[4] = 2;
	check(hits == 2 && (hit_dr6[0] & 15) == 4, "access watchpoint: read and write");
	reset();
	set_bp(0, &watched[6], 1, 0);
	memset((void *)watched, 0, sizeof(watched)); /* REP STOSB */
	check_eq(hits, 1, "write watchpoint in the middle of REP STOSB");
}

static void write_dr5_dr7_gd(void *arg)
{
	write_dr7(0x2400);
	write_dr0((uintptr_t)arg);
}

static void read_dr4(void *arg)
{
	__asm__ volatile("mov %%dr4, %%rax" : : : "rax");
}

static void dr7_high(void *arg)
{
	write_dr7(1ul << 32);
}

static void dr6_high(void *arg)
{
	write_dr6(1ul << 32);
}

static void test_registers(void)
{
	reset();
	set_handler(DB, NULL);
	struct fault f = catch (write_dr5_dr7_gd, NULL);
	check(f.vector == DB && (f.dr6 & 0x2000), "general detect: DR6.BD");
	check(!(read_dr7() & 0x2000), "general detect is cleared on delivery");
	reset();
	f = catch (read_dr4, NULL);
	check_fault(f, -1, 0, "DR4 is DR6 without CR4.DE");
	write_cr4(read_cr4() | 8);
	check_fault(catch (read_dr4, NULL), UD, 0, "DR4 is undefined with CR4.DE");
	write_cr4(read_cr4() & ~8ul);
	check_fault(catch (dr7_high, NULL), GP, 0, "#GP upper half of DR7");
	check_fault(catch (dr6_high, NULL), GP, 0, "#GP upper half of DR6");
	write_dr6(0);
	check_eq(read_dr6(), 0xffff0ff0, "DR6 fixed bits");
	write_dr7(0);
	check_eq(read_dr7(), 0x400, "DR7 fixed bits");
	set_handler(DB, on_debug);
}

extern uint8_t int_target[];

/* INT n with TF: the handler starts with TF clear; the step trap comes after IRET's next instruction. */
static volatile unsigned soft;

static void on_soft(struct frame *f)
{
	soft++;
	check(!(read_flags() & TF), "TF is clear in a handler");
}

static void test_interrupt(void)
{
	reset();
	set_handler(0x90, on_soft);
	__asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq\n\t"
			 "int $0x90\n\t"
			 "nop\n\t"
			 "pushfq; andq $~0x100, (%%rsp); popfq"
			 :
			 :
			 : "memory", "cc");
	check(soft == 1 && hits >= 2, "single step over INT n");
}

void guest_main(void)
{
	set_handler(DB, on_debug);
	test_step();
	test_shadow();
	test_execute();
	test_data();
	test_registers();
	test_interrupt();
}
