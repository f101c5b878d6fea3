/* SPDX-License-Identifier: Apache-2.0 */
/* Protected mode: limits, rings, call gates, conforming code, hardware tasks, virtual-8086 mode, the
 * instructions 64-bit mode has lost.  SDM vol. 3 chapters 5, 7, 20. */
#include "guest.h"

extern uint8_t entries[];
struct tss32 {
	uint32_t link, sp0, ss0, sp1, ss1, sp2, ss2, cr3, ip, flags;
	uint32_t ax, cx, dx, bx, sp, bp, si, di;
	uint32_t es, cs, ss, ds, fs, gs, ldt;
	uint16_t trap, iomap;
	uint8_t io[132];
};
extern struct tss32 main_tss;

#define SEL(n) (FREE_SEL + 8 * (n)) /* free descriptors, 0..8 */

static uint8_t data[4096] __attribute__((aligned(4096)));

/* ---- limits ---- */

struct access {
	uint32_t sel, offset, value;
};

static void read_byte(void *arg)
{
	struct access *a = arg;

	__asm__ volatile("mov %1, %%fs; movzbl %%fs:(%2), %0"
			 : "=r"(a->value)
			 : "r"(a->sel), "r"(a->offset)
			 : "memory");
}

static void read_long(void *arg)
{
	struct access *a = arg;

	__asm__ volatile("mov %1, %%fs; movl %%fs:(%2), %0"
			 : "=r"(a->value)
			 : "r"(a->sel), "r"(a->offset)
			 : "memory");
}

static void write_byte(void *arg)
{
	struct access *a = arg;

	__asm__ volatile("mov %0, %%fs; movb $0x77, %%fs:(%1)"
			 :
			 : "r"(a->sel), "r"(a->offset)
			 : "memory");
}

static void expect(void (*fn)(void *), uint32_t sel, uint32_t offset, int vector, word error,
		   const char *name)
{
	struct access a = { sel, offset, 0 };

	check_fault(catch (fn, &a), vector, error, name);
}

static void test_limits(void)
{
	struct access a = { SEL(0), 0x10, 0 };

	set_descriptor(SEL(0), (uint32_t)(uintptr_t)data, 0x7ff, 0x4093);
	data[0x10] = 0x5a;
	data[0x7ff] = 0x66;
	read_byte(&a);
	check_eq(a.value, 0x5a, "a segment's base");
	expect(read_byte, SEL(0), 0x7ff, -1, 0, "the last byte");
	expect(read_byte, SEL(0), 0x800, GP, 0, "one past the limit");
	expect(read_long, SEL(0), 0x7fc, -1, 0, "the last long");
	expect(read_long, SEL(0), 0x7fd, GP, 0, "a long across the limit");
	expect(read_long, SEL(0), 0xfffffffe, GP, 0, "an offset that wraps");
	expect(write_byte, SEL(0), 0, -1, 0, "writable");
	check_eq(data[0], 0x77, "written through the base");
	set_descriptor(SEL(0), (uint32_t)(uintptr_t)data, 0x7ff, 0x4091);
	expect(write_byte, SEL(0), 0, GP, 0, "read-only");
	set_descriptor(SEL(0), (uint32_t)(uintptr_t)data, 0x7ff, 0x4097); /* expand down */
	expect(read_byte, SEL(0), 0x7ff, GP, 0, "expand-down, below");
	expect(read_byte, SEL(0), 0x800, -1, 0, "expand-down, above");
	set_descriptor(SEL(0), (uint32_t)(uintptr_t)data, 0x7ff, 0x0097);
	expect(read_byte, SEL(0), 0x10000, GP, 0, "expand-down, 16 bits: ends at FFFFH");
	set_descriptor(SEL(0), 0, 0xffffffff, 0xc099); /* execute-only code */
	expect(read_byte, SEL(0), 0, GP, SEL(0), "execute-only as data");
	set_descriptor(SEL(0), (uint32_t)(uintptr_t)data, 0xfff, 0xc09b & ~0x8000u); /* readable code */
	expect(read_byte, SEL(0), 0x10, -1, 0, "readable code as data");
	expect(write_byte, SEL(0), 0x10, GP, 0, "code is not writable");
	expect(read_byte, 0, 0, GP, 0, "the null selector");
	set_descriptor(SEL(0), 0, 0xfff, 0x4013);
	expect(read_byte, SEL(0), 0, NP, SEL(0), "not present");
	set_descriptor(SEL(0), 0, 0xfff, 0x4093);
	expect(read_byte, SEL(0) | 3, 0, GP, SEL(0), "RPL 3 of a ring 0 segment");
}

/* ---- LAR, LSL, VERR, VERW, ARPL, accessed bit ---- */

static void test_queries(void)
{
	uint32_t v = 0;
	uint8_t zf;
	uint16_t sel = 0x10, other = 0x13;

	set_descriptor(SEL(0), 0x12345678, 0xfffff, 0xc092);
	__asm__ volatile("mov %0, %%fs" : : "r"(SEL(0)));
	check(gdt[SEL(0) / 8] >> 40 & 1, "loading sets the accessed bit");
	__asm__ volatile("lar %2, %0; setz %1" : "+r"(v), "=q"(zf) : "r"(SEL(0)) : "cc");
	check(zf && v == 0x00c09300, "LAR");
	__asm__ volatile("lsl %2, %0; setz %1" : "+r"(v), "=q"(zf) : "r"(SEL(0)) : "cc");
	check(zf && v == 0xfffff, "LSL");
	__asm__ volatile("lsl %2, %0; setz %1" : "+r"(v), "=q"(zf) : "r"(0x1f8) : "cc");
	check(!zf && v == 0xfffff, "LSL of nothing");
	__asm__ volatile("verr %w1; setz %0" : "=q"(zf) : "r"(SEL(0)) : "cc");
	check(zf, "VERR");
	__asm__ volatile("verw %w1; setz %0" : "=q"(zf) : "r"(KCODE) : "cc");
	check(!zf, "VERW of code");
	__asm__ volatile("arpl %2, %0; setz %1" : "+r"(sel), "=q"(zf) : "r"(other) : "cc");
	check(zf && sel == 0x13, "ARPL");
}

/* ---- the instructions 64-bit mode has lost ---- */

#define FN(name, code)                                                                             \
	static void name(void *arg)                                                                \
	{                                                                                          \
		__asm__ volatile(code : : "a"(arg) : "ecx", "edx", "memory", "cc");                \
	}
FN(bound_out, "push $5; push $2; mov $6, %%ecx; bound %%ecx, (%%esp); add $8, %%esp")
FN(into, "mov $0x7fffffff, %%ecx; inc %%ecx; into")
FN(write_cs, "movb $1, %%cs:(%%eax)")
FN(aam_zero, ".byte 0xd4, 0x00")

static void test_legacy(void)
{
	uint32_t a, before, after;
	uint16_t flags;

	check_fault(catch (bound_out, NULL), BR, 0, "#BR");
	check_fault(catch (into, NULL), OF, 0, "#OF");
	check_fault(catch (write_cs, data), GP, 0, "a write through CS");
	check_fault(catch (aam_zero, NULL), DE, 0, "AAM 0");
	__asm__ volatile("push $8; push $2; mov $5, %%ecx; bound %%ecx, (%%esp); add $8, %%esp"
			 :
			 :
			 : "ecx", "memory", "cc");
	check(true, "BOUND inside");
	__asm__("mov $0x19, %%eax; add $0x28, %%al; daa" : "=a"(a) : : "cc");
	check_eq(a, 0x47, "DAA");
	__asm__("mov $0x47, %%eax; sub $0x28, %%al; das" : "=a"(a) : : "cc");
	check_eq(a, 0x19, "DAS");
	__asm__("mov $0x0207, %%eax; add $8, %%al; aaa" : "=a"(a) : : "cc");
	check_eq(a, 0x0305, "AAA");
	__asm__("mov $0x0205, %%eax; sub $8, %%al; aas" : "=a"(a) : : "cc");
	check_eq(a, 0x0107, "AAS");
	__asm__("mov $0x4b, %%eax; aam" : "=a"(a) : : "cc");
	check_eq(a, 0x0705, "AAM");
	__asm__("mov $0x0705, %%eax; aad" : "=a"(a) : : "cc");
	check_eq(a, 0x4b, "AAD");
	__asm__ volatile("stc; .byte 0xd6; movzbl %%al, %%eax" : "=a"(a) : : "cc");
	check_eq(a, 0xff, "SALC");
	__asm__ volatile("mov %%esp, %0\n\tpusha\n\tmovl $0x1234, 28(%%esp)\n\tmovl $0, "
			 "12(%%esp)\n\tpopa\n\tmov %%esp, %1"
			 : "=&b"(before), "=&d"(after), "=&a"(a)
			 :
			 : "memory");
	check(a == 0x1234, "PUSHA, POPA");
	(void)before;
	(void)after;
	static struct {
		uint32_t offset;
		uint16_t sel;
	} __attribute__((packed)) far = { 0xabcd1234, 0x10 };
	uint32_t fs;
	__asm__ volatile("lfs %2, %0; mov %%fs, %1" : "=r"(a), "=r"(fs) : "m"(far));
	check(a == 0xabcd1234 && (fs & 0xffff) == 0x10, "LFS");
	__asm__ volatile("mov $0xd5, %%ah; sahf; lahf; mov %%ax, %0" : "=m"(flags) : : "eax", "cc");
	check((flags >> 8 & 0xd5) == 0xd5, "SAHF, LAHF");
	__asm__ volatile("push %%es; pop %%es; push %%ds; pop %%ds; push %%ss; pop %%ss"
			 :
			 :
			 : "memory");
	check(true, "PUSH and POP of segments");
}

/* ---- call gates ---- */

__asm__(".global gate_target, gate_conforming\n"
	"gate_target:\n\t" /* parameters at 8(%esp), the caller's ESP and SS behind them */
	"push %eax; push %ds; mov $0x10, %eax; mov %eax, %ds\n\t"
	"mov %cs, gate_words; mov 16(%esp), %eax; mov %eax, gate_words+4\n\t"
	"mov 20(%esp), %eax; mov %eax, gate_words+8; mov 28(%esp), %eax; mov %eax, "
	"gate_words+12\n\t"
	"mov %ss, gate_words+16\n\t"
	"pop %ds; pop %eax; lret $8\n"
	"gate_conforming:\n\tmov %cs, %eax; lret\n"
	".pushsection .bss\n.align 4\ngate_words: .skip 32\n.popsection");
extern uint8_t gate_target[], gate_conforming[];
extern volatile uint32_t gate_words[];

static void set_call_gate(unsigned sel, void *target, uint16_t code, unsigned dpl, unsigned params)
{
	uintptr_t t = (uintptr_t)target;

	gdt[sel / 8] = (t & 0xffff) | (uint64_t)code << 16 | (uint64_t)params << 32 |
		       (uint64_t)(0x8c | dpl << 5) << 40 | (uint64_t)(t >> 16) << 48;
}

static void user_gate(void *arg)
{
	uint32_t sp;

	__asm__ volatile("push $0x1111; push $0x2222; mov %%esp, %0; lcall $0x38, $0; sub %%esp, %0"
			 : "=&c"(sp)
			 :
			 : "eax", "memory");
	user_return(sp);
}

static void user_conforming(void *arg)
{
	uint32_t cs;

	__asm__ volatile("lcall %1, $gate_conforming" : "=a"(cs) : "i"(0x40) : "memory");
	user_return(cs);
}

static void user_far_kernel(void *arg)
{
	__asm__ volatile("lcall $0x8, $gate_conforming" : : : "eax", "memory");
}

static void test_gates(void)
{
	word v = 0;

	set_call_gate(SEL(0), gate_target, KCODE, 3, 2);
	struct fault f = call_user(user_gate, NULL, &v);
	check(f.vector == -1 && v == (uint32_t)-8,
	      "call gate: RETF n releases both stacks' parameters");
	check(gate_words[0] == KCODE && gate_words[4] == KDATA, "call gate: ring 0 code and stack");
	check(gate_words[1] == 0x2222 && gate_words[2] == 0x1111,
	      "call gate: parameters are copied");
	check_eq(gate_words[3], UDATA, "call gate: the old SS");
	set_call_gate(SEL(0), gate_target, KCODE, 0, 2);
	check_fault(call_user(user_gate, NULL, NULL), GP, SEL(0), "call gate of DPL 0");
	set_call_gate(SEL(0), gate_target, KDATA, 3, 2);
	check_fault(call_user(user_gate, NULL, NULL), GP, KDATA, "call gate to data");
	set_call_gate(SEL(0), gate_target, KCODE, 3, 2);
	gdt[SEL(0) / 8] &= ~(0x80ull << 40);
	check_fault(call_user(user_gate, NULL, NULL), NP, SEL(0), "call gate not present");
	set_call_gate(SEL(0), gate_target, KCODE, 3, 2);
	uint32_t ss0 = main_tss.ss0;
	main_tss.ss0 = 0;
	set_gate(TS, entries + 16 * TS, KCODE, 0x8e, 0);
	/* #TS is raised in ring 3 and needs SS0 too: a double fault; only the gate's own error matters */
	main_tss.ss0 = ss0;
	set_descriptor(SEL(1), 0, 0xffffffff, 0xc09f); /* conforming, DPL 0 */
	f = call_user(user_conforming, NULL, &v);
	check(f.vector == -1 && (v & 0xffff) == (0x40 | 3), "conforming code keeps CPL 3");
	check_fault(call_user(user_far_kernel, NULL, NULL), GP, KCODE, "far call to ring 0 code");
}

/* ---- I/O rights ---- */

static void user_out(void *arg)
{
	__asm__ volatile("out %%al, $0x80; out %%al, $0x81" : : "a"(0));
	user_return(0);
}

static void user_out2(void *arg)
{
	__asm__ volatile("out %%ax, $0x81" : : "a"(0));
	user_return(0);
}

static void test_io(void)
{
	main_tss.iomap = offsetof(struct tss32, io);
	set_descriptor(TSS_SEL, (uint32_t)(uintptr_t)&main_tss, sizeof(main_tss) - 1, 0x89);
	memset(main_tss.io, 0xff, sizeof(main_tss.io));
	__asm__ volatile("ltr %w0" : : "r"(TSS_SEL));
	check_fault(call_user(user_out, NULL, NULL), GP, 0, "I/O map refuses");
	main_tss.io[0x80 / 8] = 0xfc; /* 80H and 81H */
	check_fault(call_user(user_out, NULL, NULL), -1, 0, "I/O map allows");
	check_fault(call_user(user_out2, NULL, NULL), GP, 0, "every byte of a word port counts");
}

/* ---- hardware tasks ---- */

static struct tss32 task, df_task;
static uint8_t task_stack[4096] __attribute__((aligned(16)));
static volatile uint32_t task_runs, task_flags, task_link, task_value;

static void task_body(void)
{
	for (;;) {
		task_runs++;
		task_flags = read_flags();
		task_link = task.link;
		__asm__ volatile("iret");
	}
}

static void task_jump_body(void)
{
	for (;;) {
		task_runs += 100;
		task_flags = read_flags();
		__asm__ volatile("ljmp %0, $0" : : "i"(TSS_SEL));
	}
}

static void init_task(struct tss32 *t, void (*fn)(void), uint8_t *stack_end)
{
	memset(t, 0, sizeof(*t));
	t->ip = (uintptr_t)fn;
	t->sp = (uintptr_t)stack_end - 16;
	t->flags = 2;
	t->cs = KCODE;
	t->es = t->ss = t->ds = t->fs = t->gs = KDATA;
	t->cr3 = read_cr3();
	t->sp0 = t->sp;
	t->ss0 = KDATA;
	t->iomap = sizeof(*t);
}

#define TASK_SEL  SEL(2)
#define TASK_GATE SEL(3)
#define DF_SEL	  SEL(4)

static void call_task(void *arg)
{
	__asm__ volatile("lcall %0, $0" : : "i"(TASK_SEL) : "memory");
}

static void jump_task(void *arg)
{
	__asm__ volatile("ljmp %0, $0" : : "i"(TASK_SEL) : "memory");
}

static void int_task(void *arg)
{
	__asm__ volatile("int $0x90" : : : "memory");
}

static void gate_task(void *arg)
{
	__asm__ volatile("lcall %0, $0" : : "i"(TASK_GATE) : "memory");
}

static uint8_t tss_type(unsigned sel)
{
	return gdt[sel / 8] >> 40 & 15;
}

static void double_fault_body(void)
{
	for (;;) {
		task_value = df_task.link;
		/* the error code was pushed on this task's stack */
		main_tss.ip = main_tss.ip + 2; /* past the UD2 */
		main_tss.sp = task_flags;
		__asm__ volatile("add $4, %esp; iret");
	}
}

static void test_tasks(void)
{
	init_task(&task, task_body, task_stack + sizeof(task_stack));
	set_descriptor(TASK_SEL, (uint32_t)(uintptr_t)&task, sizeof(task) - 1, 0x89);
	call_task(NULL);
	check_eq(task_runs, 1, "far call to a task");
	check(task_flags & 0x4000, "NT is set in it");
	check_eq(task_link, TSS_SEL, "its link");
	check(tss_type(TASK_SEL) == 9 && tss_type(TSS_SEL) == 11, "busy bits after its return");
	check(read_cr0() & 8, "CR0.TS is set by a switch");
	__asm__ volatile("clts");
	call_task(NULL);
	check_eq(task_runs, 2, "it goes on behind its IRET");
	gdt[TASK_GATE / 8] = (uint64_t)TASK_SEL << 16 | 0x85ull << 40;
	gate_task(NULL);
	check_eq(task_runs, 3, "through a task gate in the GDT");
	set_gate(0x90, NULL, TASK_SEL, 0x85, 0);
	int_task(NULL);
	check_eq(task_runs, 4, "through a task gate in the IDT");
	check_eq(task_link, TSS_SEL, "its link, again");
	__asm__ volatile("clts");
	gdt[TASK_SEL / 8] |= 2ull << 40; /* busy */
	check_fault(catch (call_task, NULL), GP, TASK_SEL, "a busy task");
	set_descriptor(TASK_SEL, (uint32_t)(uintptr_t)&task, sizeof(task) - 1, 0x09);
	check_fault(catch (call_task, NULL), NP, TASK_SEL, "a task not present");
	set_descriptor(TASK_SEL, (uint32_t)(uintptr_t)&task, 0x66, 0x89);
	check_fault(catch (call_task, NULL), TS, TASK_SEL, "a TSS too short");
	init_task(&task, task_jump_body, task_stack + sizeof(task_stack));
	set_descriptor(TASK_SEL, (uint32_t)(uintptr_t)&task, sizeof(task) - 1, 0x89);
	task_runs = 0;
	jump_task(NULL);
	check(task_runs == 100 && !(task_flags & 0x4000), "jump to a task and back");
	check(tss_type(TASK_SEL) == 9 && tss_type(TSS_SEL) == 11, "busy bits after the jumps");
	__asm__ volatile("clts");
	/* A double fault through a task gate survives a bad stack. */
	init_task(&df_task, double_fault_body, task_stack + 2048);
	set_descriptor(DF_SEL, (uint32_t)(uintptr_t)&df_task, sizeof(df_task) - 1, 0x89);
	set_gate(DF, NULL, DF_SEL, 0x85, 0);
	set_descriptor(SEL(0), 0, 0x10, 0x4093); /* a stack segment of 17 bytes */
	__asm__ volatile("mov %%esp, %0\n\t"
			 "mov %%ss, %%ecx\n\t"
			 "mov %1, %%ss\n\t"
			 "mov $2, %%esp\n\t"
			 "ud2\n\t"
			 "mov %%ecx, %%ss\n\t"
			 "mov %0, %%esp"
			 : "=m"(task_flags)
			 : "r"(SEL(0))
			 : "ecx", "memory");
	check_eq(task_value, TSS_SEL, "double fault by a task gate");
	set_gate(DF, entries + 16 * DF, KCODE, 0x8e, 0);
	__asm__ volatile("clts");
}

/* ---- virtual-8086 mode ---- */

extern const uint8_t v86_code[], v86_code_end[];
__asm__(".pushsection .rodata\n"
	"v86_code:\n.code16\n\t"
	"mov %cs, %ax; mov $0x1234, %bx; mov %bx, %ds; mov %ds, %cx\n\t"
	"mov $0xffff, %si; pushf; pop %dx\n\t"
	"int $0x80\n"
	"v86_code_end:\n.code32\n.popsection");
static volatile uint32_t v86_regs[6];

static void on_v86(struct frame *f)
{
	v86_regs[0] = f->flags;
	v86_regs[1] = f->ax;
	v86_regs[2] = f->cx;
	v86_regs[3] = f->cs;
	v86_regs[4] = f->vector;
	v86_regs[5] = f->dx;
	f->flags = 2;
	f->cs = KCODE;
	extern uint8_t v86_done[];
	f->ip = (uintptr_t)v86_done;
	/* back to ring 0 of the same stack: IRET without a ring change does not pop SS:ESP */
	f->ds = f->es = f->fs = f->gs = KDATA;
}

static void enter_v86(uint32_t iopl)
{
	uint32_t sp0 = main_tss.sp0;

	memcpy((void *)0x9000, v86_code, (size_t)(v86_code_end - v86_code));
	__asm__ volatile("pusha\n\t"
			 "mov %%esp, %0\n\t"
			 "mov %%esp, %%eax\n\t"
			 "sub $1024, %%eax\n\t"
			 "mov %%eax, %1\n\t"
			 "push $0; push $0; push $0; push $0\n\t" /* GS FS DS ES */
			 "push $0x800; push $0x1000\n\t"	  /* SS SP */
			 "push %2; push $0x900; push $0\n\t"	  /* EFLAGS CS IP */
			 "iret\n"
			 "v86_done:\n\t"
			 "mov $0x10, %%eax; mov %%eax, %%ss; mov %0, %%esp\n\t"
			 "popa"
			 : "=m"(task_value), "=m"(main_tss.sp0)
			 : "r"(0x20002 | iopl << 12)
			 : "eax", "memory");
	main_tss.sp0 = sp0;
}

static void test_v86(void)
{
	set_handler(0x80, on_v86);
	set_handler(GP, on_v86);
	set_gate(0x80, entries + 16 * 0x80, KCODE, 0xee, 0);
	enter_v86(3);
	check_eq(v86_regs[4], 0x80, "INT n from virtual-8086 mode, IOPL 3");
	check(v86_regs[0] & 0x20000, "VM is set in the saved flags");
	check((v86_regs[1] & 0xffff) == 0x900 && v86_regs[3] == 0x900, "CS is a paragraph");
	check_eq(v86_regs[2] & 0xffff, 0x1234, "DS is a paragraph");
	enter_v86(0);
	check_eq(v86_regs[4], GP, "PUSHF faults with IOPL 0");
	set_handler(GP, NULL);
	set_handler(0x80, NULL);
}

void guest_main(void)
{
	test_limits();
	test_queries();
	test_legacy();
	test_gates();
	test_io();
	test_tasks();
	test_v86();
}
