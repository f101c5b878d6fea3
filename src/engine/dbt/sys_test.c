/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system half of the interpreter on a tiny machine: descriptors, gates, task switches, delivery
 * in every mode, control registers, MSRs, port permission.  Linear is physical throughout (long
 * mode runs on one 1 GiB identity page).
 */
#include "base/unit.h"

#include <errno.h>
#include <string.h>

#include "engine/dbt/segment.h"
#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"

/* ---- the machine ---- */

enum { /* physical layout */
       GDT = 0x1000,
       IDT = 0x2000,
       TSS_A = 0x3000,
       TSS_B = 0x3800,
       CODE = 0x4000,
       STACK0 = 0x8000, /* tops */
       STACK3 = 0xa000,
       IST1 = 0xc000,
       PML4 = 0x10000,
       PDPT = 0x11000,
};
enum { /* selectors */
       K_CODE = 0x08,
       K_DATA = 0x10,
       U_CODE = 0x1b,
       U_DATA = 0x23,
       SEL_TSS_A = 0x28, /* 16 bytes in long mode */
       SEL_TSS_B = 0x38,
       SEL_GATE = 0x40, /* 16 bytes in long mode */
       SEL_TEST = 0x50,
       GDT_BYTES = 0x60,
};
enum { CODE32 = 0xc09b, DATA32 = 0xc093, DPL3 = 0x60 };

static struct guest_ram ram;
static struct cpu_model model;
static struct engine_vm *vm;
static struct engine_vcpu *vcpu;
static struct dbt_cpu *cpu;
static struct vcpu_exit last_exit;
static unsigned nexits;

static void (*in_exit)(void); /* what happens while the machine serves an exit; once */

static int on_exit_(void *ctx, struct vcpu_exit *x)
{
	void (*fn)(void) = in_exit;

	in_exit = NULL;
	if (fn)
		fn();
	last_exit = *x;
	nexits++;
	if (x->kind == EXIT_MSR && (x->addr == 0x8ff || (x->addr == 0x4b564d03 && x->data & 0x3e)))
		return -EPERM;
	if (!x->is_write)
		x->data = 0x1122334455667788;
	return 0;
}

static int intr_ack(void *ctx)
{
	return -1;
}

static unsigned nyields;

static void yield(void *ctx)
{
	assert_false(cpu->is_running);
	nyields++;
}

static int setup(void **state)
{
	struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = intr_ack, .yield = yield };
	struct engine_config cfg = { .ram = &ram, .model = &model, .vcpus = 2, .use_interp_only = true };
	struct error err = { "" };

	if (ram_create(&ram, 2 * MIB, 0, &err) || cpu_model_init(&model, "host", 1, &err) ||
	    engine_dbt.vm_create(&vm, &cfg, &err) || engine_dbt.vcpu_create(&vcpu, vm, 0, &up, &err)) {
		print_error("%s\n", err.text);
		return -1;
	}
	cpu = (struct dbt_cpu *)(void *)vcpu;
	return thunk_thread_init(cpu, &err);
}

static int teardown(void **state)
{
	engine_dbt.vcpu_destroy(vcpu);
	engine_dbt.vm_destroy(vm);
	ram_destroy(&ram);
	return 0;
}

static void poke(uint64_t gpa, unsigned size, uint64_t val)
{
	memcpy(ram.base + gpa, &val, size);
}

static uint64_t peek(uint64_t gpa, unsigned size)
{
	uint64_t val = 0;

	memcpy(&val, ram.base + gpa, size);
	return val;
}

/* A code or data descriptor: attr as in x86_seg, limit in its unit. */
static void set_desc(unsigned sel, uint32_t base, uint32_t limit, uint16_t attr)
{
	poke(GDT + (sel & ~7u), 8,
	     (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xff) << 40 |
		     (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(attr >> 12) << 52 |
		     (uint64_t)(base >> 24) << 56);
}

/* Low half of any gate. */
static uint64_t gate(unsigned type, unsigned dpl, uint16_t sel, uint32_t off, unsigned extra)
{
	return (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)extra << 32 | (uint64_t)type << 40 |
	       (uint64_t)dpl << 45 | 1ULL << 47 | (uint64_t)(off >> 16) << 48;
}

static void set_idt(unsigned vector, uint64_t low)
{
	poke(IDT + vector * (dbt_is_long(cpu) ? 16 : 8), 8, low);
}

static void load_seg(unsigned seg, uint16_t sel)
{
	struct seg_desc d = { .lo = peek(GDT + (sel & ~7u), 4), .hi = peek(GDT + (sel & ~7u) + 4, 4) };

	seg_fill(&cpu->s.seg[seg], sel, &d);
}

static void enter_cpl(unsigned cpl)
{
	load_seg(SEG_CS, cpl ? U_CODE : K_CODE);
	load_seg(SEG_SS, cpl ? U_DATA : K_DATA);
	load_seg(SEG_DS, cpl ? U_DATA : K_DATA);
	load_seg(SEG_ES, cpl ? U_DATA : K_DATA);
	load_seg(SEG_FS, cpl ? U_DATA : K_DATA);
	load_seg(SEG_GS, cpl ? U_DATA : K_DATA);
	cpu->s.gpr[R_RSP] = cpl ? STACK3 : STACK0;
	dbt_mode_changed(cpu);
}

static void common_tables(void)
{
	struct x86_state s;

	x86_state_reset(&s, true);
	s.gdtr.base = GDT;
	s.gdtr.limit = GDT_BYTES - 1;
	s.idtr.base = IDT;
	s.idtr.limit = 0x7ff;
	s.rip = CODE;
	s.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
	memset(ram.base, 0, 0x20000);
	set_desc(K_CODE, 0, 0xfffff, CODE32);
	set_desc(K_DATA, 0, 0xfffff, DATA32);
	set_desc(U_CODE, 0, 0xfffff, CODE32 | DPL3);
	set_desc(U_DATA, 0, 0xfffff, DATA32 | DPL3);
	set_desc(SEL_TSS_A, TSS_A, 0x7ff, 0x8b); /* busy */
	set_desc(SEL_TSS_B, TSS_B, 0x67, 0x89);
	assert_int_equal(engine_dbt.set_state(vcpu, &s, NULL), 0);
	cpu->s.tr = (struct x86_seg){ .base = TSS_A, .limit = 0x7ff, .selector = SEL_TSS_A, .attr = 0x8b };
	poke(TSS_A + 4, 4, STACK0);
	poke(TSS_A + 8, 4, K_DATA);
	poke(TSS_A + 102, 2, 0x100);
	nexits = 0;
}

/* 32-bit protected mode without paging. */
static void protected32(unsigned cpl)
{
	common_tables();
	enter_cpl(cpl);
}

/* 64-bit mode. */
static void long64(unsigned cpl)
{
	common_tables();
	set_desc(K_CODE, 0, 0, 0xa09b);
	set_desc(U_CODE, 0, 0, 0xa0fb);
	poke(PML4, 8, PDPT | 7);
	poke(PDPT, 8, 0x87);
	cpu->s.cr3 = PML4;
	cpu->s.cr4 = X86_CR4_PAE;
	cpu->s.cr0 |= X86_CR0_PG | X86_CR0_WP;
	cpu->s.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_SCE;
	poke(TSS_A + 4, 8, STACK0);
	poke(TSS_A + 0x24, 8, IST1);
	mmu_flush_all(cpu);
	enter_cpl(cpl);
}

static void real16(void)
{
	common_tables();
	cpu->s.cr0 = X86_CR0_ET;
	cpu->s.idtr.base = 0;
	cpu->s.idtr.limit = 0x3ff;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		seg_set_real(cpu, i, 0);
	cpu->s.gpr[R_RSP] = STACK0;
	dbt_mode_changed(cpu);
}

/* ---- running something that may raise ---- */

static const struct insn *run_in;

static void do_insn(void)
{
	interp_sys_handlers[run_in->desc->id](cpu, run_in);
}

/* The vector raised, or -1. */
static __attribute__((noinline)) int attempt(void (*fn)(void))
{
	if (__builtin_setjmp(cpu->raise_jmp))
		return cpu->raise_vector;
	fn();
	return -1;
}

/* One system instruction, as interp_one runs it. */
static int insn(const char *bytes, unsigned len)
{
	struct insn in;
	int vector;

	assert_int_equal(insn_decode(&in, (const uint8_t *)bytes, len, cpu->code_bits), DECODE_OK);
	assert_int_equal(in.len, len);
	assert_int_equal(in.desc->kind, INSN_SYSTEM);
	cpu->next_rip = cpu->s.rip + in.len;
	cpu->dr6_pending = 0;
	run_in = &in;
	vector = attempt(do_insn);
	if (vector < 0)
		cpu->s.rip = cpu->next_rip;
	return vector;
}
#define INSN(bytes) insn(bytes, sizeof(bytes) - 1)

static struct {
	unsigned seg, opsize, pop;
	uint16_t sel;
	uint64_t off;
} arg;
static void do_seg_load(void)
{
	seg_load(cpu, arg.seg, arg.sel);
}
static void do_jump(void)
{
	far_jump(cpu, arg.sel, arg.off, arg.opsize);
}
static void do_call(void)
{
	far_call(cpu, arg.sel, arg.off, arg.opsize);
}
static void do_return(void)
{
	far_return(cpu, arg.opsize, arg.pop);
}
static void do_iret(void)
{
	far_iret(cpu, arg.opsize);
}

static int far(void (*fn)(void), uint16_t sel, uint64_t off, unsigned opsize)
{
	arg.sel = sel;
	arg.off = off;
	arg.opsize = opsize;
	cpu->next_rip = cpu->s.rip + 7;
	int vector = attempt(fn);

	if (vector < 0)
		cpu->s.rip = cpu->next_rip;
	return vector;
}

static void raise_and_deliver(unsigned vector, bool has_error, uint32_t err)
{
	cpu->raise_vector = vector;
	cpu->raise_has_error = has_error;
	cpu->raise_error = err;
	exc_deliver_raised(cpu);
}

/* ---- a vCPU as the engine creates it ---- */

static void test_fresh_tlb(void **state)
{
	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++) {
		for (unsigned i = 0; i < 1u << DBT_TLB_BITS_MIN; i++) {
			assert_int_equal(cpu->tlb[mode].rneg[i], DBT_TLB_INVALID(i));
			assert_int_equal(cpu->tlb[mode].wneg[i], DBT_TLB_INVALID(i));
		}
	}
	assert_int_equal(cpu->tlb_mask, ((1u << DBT_TLB_BITS_MIN) - 1) << 12);
}

/* ---- segment registers ---- */

static void test_seg_load(void **state)
{
	static const struct {
		const char *what;
		uint8_t cpl, seg;
		uint16_t sel, attr; /* of the descriptor at SEL_TEST */
		int vector;
		uint32_t err;
	} rows[] = {
		// clang-format off
		{ "data",                      0, SEG_DS, SEL_TEST,     0xc092, -1, 0 },
		{ "readable code",             0, SEG_DS, SEL_TEST,     0xc09a, -1, 0 },
		{ "execute-only code",         0, SEG_DS, SEL_TEST,     0xc098, EXC_GP, SEL_TEST },
		{ "not present",               0, SEG_DS, SEL_TEST,     0xc012, EXC_NP, SEL_TEST },
		{ "system descriptor",         0, SEG_DS, SEL_TEST,     0x0082, EXC_GP, SEL_TEST },
		{ "DPL 0 from CPL 3",          3, SEG_DS, SEL_TEST,     0xc092, EXC_GP, SEL_TEST },
		{ "DPL 0 with RPL 3",          0, SEG_DS, SEL_TEST | 3, 0xc092, EXC_GP, SEL_TEST },
		{ "conforming code, CPL 3",    3, SEG_ES, SEL_TEST | 3, 0xc09e, -1, 0 },
		{ "beyond the table",          0, SEG_FS, 0x60,         0xc092, EXC_GP, 0x60 },
		{ "no LDT",                    0, SEG_GS, 0x0c,         0xc092, EXC_GP, 0x0c },
		{ "null",                      3, SEG_GS, 3,            0xc092, -1, 0 },
		{ "stack",                     0, SEG_SS, SEL_TEST,     0xc092, -1, 0 },
		{ "null stack",                0, SEG_SS, 0,            0xc092, EXC_GP, 0 },
		{ "read-only stack",           0, SEG_SS, SEL_TEST,     0xc090, EXC_GP, SEL_TEST },
		{ "stack with other RPL",      0, SEG_SS, SEL_TEST | 1, 0xc092, EXC_GP, SEL_TEST },
		{ "stack with other DPL",      3, SEG_SS, SEL_TEST | 3, 0xc092, EXC_GP, SEL_TEST },
		{ "stack not present",         0, SEG_SS, SEL_TEST,     0xc012, EXC_SS, SEL_TEST },
		// clang-format on
	};

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct x86_seg before;
		int vector;

		protected32(rows[i].cpl);
		set_desc(SEL_TEST, 0x12345678, 0x11, rows[i].attr);
		cpu->s.ldtr.attr = SEG_ATTR_UNUSABLE;
		before = cpu->s.seg[rows[i].seg];
		arg.seg = rows[i].seg;
		arg.sel = rows[i].sel;
		vector = attempt(do_seg_load);
		if (vector != rows[i].vector || (vector >= 0 && cpu->raise_error != rows[i].err))
			fail_msg("%s: vector %d error %#x", rows[i].what, vector, cpu->raise_error);
		if (vector >= 0) {
			assert_memory_equal(&before, &cpu->s.seg[rows[i].seg], sizeof(before));
			assert_false(peek(GDT + SEL_TEST + 5, 1) & 1);
		} else if (rows[i].sel >= 4) {
			assert_int_equal(cpu->s.seg[rows[i].seg].base, 0x12345678);
			assert_int_equal(cpu->s.seg[rows[i].seg].limit, 0x11fff);
			assert_true(peek(GDT + SEL_TEST + 5, 1) & 1); /* accessed */
		} else {
			assert_true(cpu->s.seg[rows[i].seg].attr & SEG_ATTR_UNUSABLE);
		}
	}
}

static void test_null_ss_long(void **state)
{
	long64(0);
	arg.seg = SEG_SS;
	arg.sel = 0;
	assert_int_equal(attempt(do_seg_load), -1);
	assert_int_equal(cpu->cpl, 0);
	arg.sel = 3;
	assert_int_equal(attempt(do_seg_load), EXC_GP);
	long64(3);
	assert_int_equal(attempt(do_seg_load), EXC_GP);
}

static void test_mov_ss_shadow(void **state)
{
	protected32(0);
	cpu->s.gpr[R_RAX] = K_DATA;
	assert_int_equal(INSN("\x8e\xd0"), -1); /* mov ss, ax */
	assert_int_equal(cpu->s.interrupt_shadow, 2);
	assert_true(cpu->no_step_trap);
	assert_int_equal(INSN("\x8e\xc8"), EXC_UD); /* mov cs, ax */
}

static void test_unreal(void **state)
{
	protected32(0);
	cpu->s.cr0 &= ~(uint64_t)X86_CR0_PE;
	seg_set_real(cpu, SEG_DS, 0x1234);
	assert_int_equal(cpu->s.seg[SEG_DS].base, 0x12340);
	assert_int_equal(cpu->s.seg[SEG_DS].limit, 0xffffffff);
}

/* On a 16-bit stack the upper half of ESP stays, also in the frame pointer that ENTER pushes. */
static void test_enter_16(void **state)
{
	protected32(0);
	set_desc(SEL_TEST, 0x8000, 0xffff, 0x0093); /* 16-bit stack */
	arg.seg = SEG_SS;
	arg.sel = SEL_TEST;
	assert_int_equal(attempt(do_seg_load), -1);
	cpu->s.gpr[R_RSP] = 0x10000;
	cpu->s.gpr[R_RBP] = 0x1234abcd;
	memcpy(ram.base + CODE, "\xc8\x10\x00\x01", 4); /* enter 16, 1 */
	interp_one(cpu);
	assert_int_equal(cpu->s.rip, CODE + 4);
	assert_int_equal(cpu->s.gpr[R_RSP], 0x1ffe8);
	assert_int_equal(cpu->s.gpr[R_RBP], 0x1234fffc); /* BP only */
	assert_int_equal(peek(0x8000 + 0xfffc, 4), 0x1234abcd);
	assert_int_equal(peek(0x8000 + 0xfff8, 4), 0x1fffc);
}

/* ---- call gates ---- */

static void test_call_gate(void **state)
{
	protected32(3);
	poke(GDT + SEL_GATE, 8, gate(DESC_CALL32, 3, K_CODE, 0x5678, 2));
	cpu->s.gpr[R_RSP] -= 8;
	poke(STACK3 - 8, 4, 0xaaaa);
	poke(STACK3 - 4, 4, 0xbbbb);
	assert_int_equal(far(do_call, SEL_GATE | 3, 0xdead, 4), -1);
	assert_int_equal(cpu->s.rip, 0x5678);
	assert_int_equal(cpu->cpl, 0);
	assert_int_equal(cpu->s.seg[SEG_SS].selector, K_DATA);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 24);
	assert_int_equal(peek(STACK0 - 4, 4), U_DATA);
	assert_int_equal(peek(STACK0 - 8, 4), STACK3 - 8);
	assert_int_equal(peek(STACK0 - 12, 4), 0xbbbb);
	assert_int_equal(peek(STACK0 - 16, 4), 0xaaaa);
	assert_int_equal(peek(STACK0 - 20, 4), U_CODE);
	assert_int_equal(peek(STACK0 - 24, 4), CODE + 7);

	/* Back: parameters go on both stacks, a kernel DS does not survive. */
	load_seg(SEG_DS, K_DATA);
	arg.pop = 8;
	assert_int_equal(far(do_return, 0, 0, 4), -1);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.rip, CODE + 7);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK3);
	assert_int_equal(cpu->s.seg[SEG_DS].selector, 0);
	assert_true(cpu->s.seg[SEG_DS].attr & SEG_ATTR_UNUSABLE);
	assert_int_equal(cpu->s.seg[SEG_ES].selector, U_DATA);
	arg.pop = 0;
}

static void test_call_gate_faults(void **state)
{
	struct x86_state before;

	protected32(3);
	poke(GDT + SEL_GATE, 8, gate(DESC_CALL32, 0, K_CODE, 0x5678, 0));
	assert_int_equal(far(do_call, SEL_GATE | 3, 0, 4), EXC_GP); /* gate DPL */
	assert_int_equal(cpu->raise_error, SEL_GATE);
	poke(GDT + SEL_GATE, 8, gate(DESC_CALL32, 3, K_CODE, 0x5678, 0) & ~(1ULL << 47));
	assert_int_equal(far(do_call, SEL_GATE | 3, 0, 4), EXC_NP);
	poke(GDT + SEL_GATE, 8, gate(DESC_CALL32, 3, K_CODE, 0x5678, 0));
	assert_int_equal(far(do_jump, SEL_GATE | 3, 0, 4), EXC_GP); /* JMP does not change the CPL */
	assert_int_equal(cpu->raise_error, K_CODE);
	poke(TSS_A + 8, 4, U_DATA);
	before = cpu->s;
	assert_int_equal(far(do_call, SEL_GATE | 3, 0, 4), EXC_TS);
	assert_int_equal(cpu->raise_error, U_DATA & ~3);
	assert_memory_equal(&before, &cpu->s, sizeof(before));
	poke(TSS_A + 8, 4, K_DATA);
	cpu->s.tr.limit = 8;
	assert_int_equal(far(do_call, SEL_GATE | 3, 0, 4), EXC_TS);
	assert_int_equal(cpu->raise_error, SEL_TSS_A);
}

static void test_call_gate_long(void **state)
{
	long64(3);
	poke(GDT + SEL_GATE, 8, gate(DESC_CALL32, 3, K_CODE, 0x5678, 0));
	poke(GDT + SEL_GATE + 8, 8, 0);
	assert_int_equal(far(do_call, SEL_GATE | 3, 0, 4), -1);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 32);
	assert_int_equal(cpu->s.seg[SEG_SS].selector, 0);
	assert_int_equal(peek(STACK0 - 8, 8), U_DATA);
	assert_int_equal(peek(STACK0 - 16, 8), STACK3);
	assert_int_equal(cpu->s.rip, 0x5678);
	long64(3);
	poke(GDT + SEL_GATE, 8, gate(DESC_CALL32, 3, K_CODE, 0x5678, 0));
	poke(GDT + SEL_GATE + 8, 8, 0xc00ULL << 32); /* type bits of the upper half */
	assert_int_equal(far(do_call, SEL_GATE | 3, 0, 4), EXC_GP);
	poke(GDT + SEL_GATE + 8, 8, 0x8000); /* non-canonical target */
	assert_int_equal(far(do_call, SEL_GATE | 3, 0, 4), EXC_GP);
	assert_int_equal(cpu->raise_error, 0);
}

/* ---- interrupts and exceptions ---- */

static void test_interrupt_gate(void **state)
{
	protected32(3);
	set_idt(14, gate(DESC_INT32, 0, K_CODE, 0x6000, 0));
	cpu->s.rflags = 2 | X86_FL_IF | X86_FL_TF | X86_FL_NT | X86_FL_AC;
	raise_and_deliver(EXC_PF, true, 7);
	assert_int_equal(cpu->s.rip, 0x6000);
	assert_int_equal(cpu->cpl, 0);
	assert_int_equal(cpu->s.rflags, 2 | X86_FL_AC);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 24);
	assert_int_equal(peek(STACK0 - 4, 4), U_DATA);
	assert_int_equal(peek(STACK0 - 8, 4), STACK3);
	assert_int_equal(peek(STACK0 - 12, 4),
			 2 | X86_FL_IF | X86_FL_TF | X86_FL_NT | X86_FL_AC | X86_FL_RF);
	assert_int_equal(peek(STACK0 - 16, 4), U_CODE);
	assert_int_equal(peek(STACK0 - 20, 4), CODE);
	assert_int_equal(peek(STACK0 - 24, 4), 7);

	/* And back. */
	cpu->s.gpr[R_RSP] += 4;
	poke(STACK0 - 12, 4, 2 | X86_FL_IF);
	cpu->s.nmi_blocked = 1;
	assert_int_equal(far(do_iret, 0, 0, 4), -1);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.rip, CODE);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK3);
	assert_int_equal(cpu->s.rflags, 2 | X86_FL_IF);
	assert_int_equal(cpu->s.nmi_blocked, 0);
}

static void test_trap_gate_16(void **state)
{
	protected32(0);
	set_idt(33, gate(DESC_TRAP16, 0, K_CODE, 0x6000, 0));
	cpu->s.rflags = 2 | X86_FL_IF;
	exc_interrupt(cpu, 33, false);
	assert_int_equal(cpu->s.rflags, 2 | X86_FL_IF);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 6);
	assert_int_equal(peek(STACK0 - 6, 2), CODE);
}

static void test_software_interrupt(void **state)
{
	protected32(3);
	set_idt(0x80, gate(DESC_INT32, 3, K_CODE, 0x6000, 0));
	set_idt(0x81, gate(DESC_INT32, 0, K_CODE, 0x6000, 0));
	assert_int_equal(INSN("\xcd\x81"), EXC_GP);
	assert_int_equal(cpu->raise_error, 0x81 * 8 + 2);
	assert_int_equal(INSN("\xcd\x82"), EXC_GP); /* an empty gate */
	cpu->s.rflags |= X86_FL_RF;
	assert_int_equal(INSN("\xcd\x80"), -1);
	assert_int_equal(peek(STACK0 - 20, 4), CODE + 2);
	assert_int_equal(peek(STACK0 - 12, 4), 2); /* RF is not pushed */
}

/* Faults on the way: EXT bit, double fault, shutdown. */
static void test_double_fault(void **state)
{
	protected32(0);
	set_idt(EXC_GP, gate(DESC_INT32, 0, K_CODE, 0x6000, 0));
	exc_interrupt(cpu, 200, false); /* empty gate: #GP with EXT */
	assert_int_equal(cpu->s.rip, 0x6000);
	assert_int_equal(peek(STACK0 - 16, 4), 200 * 8 + 3);

	protected32(0);
	set_idt(EXC_DF, gate(DESC_INT32, 0, K_CODE, 0x7000, 0));
	raise_and_deliver(EXC_GP, true, 0x10);
	assert_int_equal(cpu->s.rip, 0x7000);
	assert_int_equal(peek(STACK0 - 16, 4), 0); /* error code */
	assert_int_equal(peek(STACK0 - 12, 4), CODE);
	assert_false(cpu->is_shutdown);

	protected32(0);
	raise_and_deliver(EXC_GP, true, 0x10);
	assert_true(cpu->is_shutdown);
	cpu->is_shutdown = false;

	/* A benign first exception: the second one is served as itself. */
	protected32(0);
	set_idt(EXC_GP, gate(DESC_INT32, 0, K_CODE, 0x6000, 0));
	raise_and_deliver(EXC_UD, false, 0);
	assert_int_equal(cpu->s.rip, 0x6000);
	assert_int_equal(peek(STACK0 - 16, 4), EXC_UD * 8 + 3);
	assert_int_equal(cpu->exc_ext, 0);
}

/* #NP on delivering INT n goes to the #NP handler with EXT = 0. */
static void test_not_present_gate(void **state)
{
	protected32(0);
	set_idt(0x40, gate(DESC_INT32, 0, K_CODE, 0x6000, 0) & ~(1ULL << 47));
	assert_int_equal(INSN("\xcd\x40"), EXC_NP);
	assert_int_equal(cpu->raise_error, 0x40 * 8 + 2);
}

static void test_long_ist(void **state)
{
	long64(0);
	cpu->s.gpr[R_RSP] = STACK0 - 3;
	set_idt(EXC_GP, gate(DESC_INT32, 0, K_CODE, 0x6000, 1));
	raise_and_deliver(EXC_GP, true, 0x55);
	assert_int_equal(cpu->s.gpr[R_RSP], IST1 - 48);
	assert_int_equal(cpu->s.seg[SEG_SS].selector, K_DATA); /* CPL did not change */
	assert_int_equal(peek(IST1 - 8, 8), K_DATA);
	assert_int_equal(peek(IST1 - 16, 8), STACK0 - 3);
	assert_int_equal(peek(IST1 - 48, 8), 0x55);
	cpu->s.gpr[R_RSP] += 8;
	assert_int_equal(far(do_iret, 0, 0, 8), -1);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 3);

	/* Without IST the stack is aligned; from ring 3 SS becomes NULL. */
	long64(3);
	set_idt(33, gate(DESC_INT32, 0, K_CODE, 0x6000, 0));
	poke(TSS_A + 4, 8, STACK0 - 1);
	exc_interrupt(cpu, 33, false);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 16 - 40);
	assert_int_equal(cpu->s.seg[SEG_SS].selector, 0);
	assert_int_equal(cpu->cpl, 0);
	assert_int_equal(far(do_iret, 0, 0, 8), -1);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK3);

	long64(0);
	set_idt(33, gate(DESC_INT16, 0, K_CODE, 0x6000, 0));
	set_idt(EXC_GP, gate(DESC_INT32, 0, K_CODE, 0x7000, 0));
	exc_interrupt(cpu, 33, false);
	assert_int_equal(cpu->s.rip, 0x7000);
}

static void test_iret_faults(void **state)
{
	struct x86_state before;

	long64(0);
	cpu->s.gpr[R_RSP] = STACK0 - 40;
	poke(STACK0 - 40, 8, 1ULL << 47); /* non-canonical */
	poke(STACK0 - 32, 8, U_CODE);
	poke(STACK0 - 24, 8, 2);
	poke(STACK0 - 16, 8, STACK3);
	poke(STACK0 - 8, 8, U_DATA);
	before = cpu->s;
	assert_int_equal(far(do_iret, 0, 0, 8), EXC_GP);
	assert_int_equal(cpu->raise_error, 0);
	assert_memory_equal(&before, &cpu->s, sizeof(before));
	poke(STACK0 - 40, 8, CODE);
	poke(STACK0 - 8, 8, 3); /* NULL SS for ring 3 */
	assert_int_equal(far(do_iret, 0, 0, 8), EXC_GP);
	poke(STACK0 - 8, 8, K_DATA);
	assert_int_equal(far(do_iret, 0, 0, 8), EXC_GP);
	assert_int_equal(cpu->raise_error, K_DATA);
	cpu->s.rflags |= X86_FL_NT; /* no tasks in long mode */
	assert_int_equal(far(do_iret, 0, 0, 8), EXC_GP);
	assert_int_equal(cpu->raise_error, 0);
}

static void test_real_mode(void **state)
{
	real16();
	poke(0x21 * 4, 4, 0x12345678);
	cpu->s.rflags = 2 | X86_FL_IF | X86_FL_TF;
	assert_int_equal(INSN("\xcd\x21"), -1);
	assert_int_equal(cpu->s.seg[SEG_CS].base, 0x12340);
	assert_int_equal(cpu->s.rip, 0x5678);
	assert_int_equal(cpu->s.rflags, 2);
	assert_int_equal(peek(STACK0 - 2, 2), 2 | X86_FL_IF | X86_FL_TF);
	assert_int_equal(peek(STACK0 - 6, 2), CODE + 2);
	assert_int_equal(far(do_iret, 0, 0, 2), -1);
	assert_int_equal(cpu->s.rip, CODE + 2);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0);
	assert_true(cpu->s.rflags & X86_FL_IF);

	/* No error code, and the vector table has a limit. */
	real16();
	poke(EXC_GP * 4, 4, 0x00006000);
	raise_and_deliver(EXC_GP, true, 0x1234);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 6);
	real16();
	cpu->s.idtr.limit = 15;
	raise_and_deliver(EXC_GP, true, 0);
	assert_true(cpu->is_shutdown);
	cpu->is_shutdown = false;
}

/* ---- virtual-8086 mode ---- */

static void enter_vm86(unsigned iopl)
{
	protected32(0);
	cpu->s.rflags = 2 | X86_FL_VM | iopl << 12;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		seg_set_vm86(&cpu->s.seg[i], i == SEG_CS ? 0 : 0x900);
	cpu->s.gpr[R_RSP] = 0x100;
	dbt_mode_changed(cpu);
}

static void test_vm86(void **state)
{
	enter_vm86(0);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(INSN("\xcd\x21"), EXC_GP);
	assert_int_equal(INSN("\xfa"), EXC_GP); /* cli */

	enter_vm86(3);
	set_idt(0x21, gate(DESC_INT32, 3, K_CODE, 0x6000, 0));
	assert_int_equal(INSN("\xcd\x21"), -1);
	assert_int_equal(cpu->cpl, 0);
	assert_int_equal(cpu->s.gpr[R_RSP], STACK0 - 36);
	assert_int_equal(cpu->s.seg[SEG_DS].selector, 0);
	assert_false(cpu->s.rflags & X86_FL_VM);
	for (unsigned i = 0; i < 4; i++) /* GS FS DS ES */
		assert_int_equal(peek(STACK0 - 4 * (i + 1), 4), 0x900);
	assert_int_equal(peek(STACK0 - 24, 4), 0x100);
	assert_int_equal(far(do_iret, 0, 0, 4), -1); /* and back into it */
	assert_true(cpu->s.rflags & X86_FL_VM);
	assert_int_equal(cpu->s.seg[SEG_GS].base, 0x9000);
	assert_int_equal(cpu->s.gpr[R_RSP], 0x100);
	assert_int_equal(cpu->s.rip, CODE + 2);
}

static void test_vme(void **state)
{
	enter_vm86(0);
	cpu->s.cr4 = X86_CR4_VME;
	poke(0x21 * 4, 4, 0x00106000);
	cpu->s.rflags |= X86_FL_VIF;
	assert_int_equal(INSN("\xcd\x21"), -1); /* map bit clear: the program's own handler */
	assert_int_equal(cpu->s.rip, 0x6000);
	assert_int_equal(cpu->s.seg[SEG_CS].base, 0x100);
	assert_false(cpu->s.rflags & X86_FL_VIF);
	assert_int_equal(peek(0x9000 + 0x100 - 2, 2), 2 | X86_FL_IF | X86_FL_IOPL);
	assert_int_equal(far(do_iret, 0, 0, 2), -1);
	assert_true(cpu->s.rflags & X86_FL_VIF);
	assert_int_equal(cpu->s.rflags & X86_FL_IOPL, 0);

	poke(TSS_A + 0x100 - 32 + 0x21 / 8, 1, 1 << (0x21 & 7)); /* bit set: needs IOPL 3 */
	assert_int_equal(INSN("\xcd\x21"), EXC_GP);
	assert_int_equal(INSN("\xfa"), -1);
	assert_false(cpu->s.rflags & X86_FL_VIF);
	cpu->s.rflags |= X86_FL_VIP;
	assert_int_equal(INSN("\xfb"), EXC_GP); /* sti with an interrupt pending */
}

/* ---- tasks ---- */

static void fill_tss_b(void)
{
	poke(TSS_B + 0x20, 4, 0x7700);
	poke(TSS_B + 0x24, 4, 2);
	for (unsigned i = 0; i < 8; i++)
		poke(TSS_B + 0x28 + 4 * i, 4, 0x100 + i);
	poke(TSS_B + 0x38, 4, STACK3); /* ESP */
	poke(TSS_B + 0x48, 2, K_DATA);
	poke(TSS_B + 0x4c, 2, K_CODE);
	poke(TSS_B + 0x50, 2, K_DATA);
	poke(TSS_B + 0x54, 2, K_DATA);
}

static unsigned tss_type(unsigned sel)
{
	return peek(GDT + sel + 5, 1) & 15;
}

static void test_task_call(void **state)
{
	protected32(0);
	fill_tss_b();
	cpu->s.gpr[R_RBX] = 0xb0b;
	assert_int_equal(far(do_call, SEL_TSS_B, 0xf4f4f4f4, 4), -1);
	assert_int_equal(cpu->s.rip, 0x7700);
	assert_int_equal(cpu->s.gpr[R_RDI], 0x107);
	assert_int_equal(cpu->s.tr.selector, SEL_TSS_B);
	assert_int_equal(cpu->s.rflags, 2 | X86_FL_NT);
	assert_true(cpu->s.cr0 & X86_CR0_TS);
	assert_int_equal(peek(TSS_B, 2), SEL_TSS_A);
	assert_int_equal(peek(TSS_A + 0x20, 4), CODE + 7);
	assert_int_equal(peek(TSS_A + 0x34, 4), 0xb0b);
	assert_int_equal(tss_type(SEL_TSS_A), 11);
	assert_int_equal(tss_type(SEL_TSS_B), 11);
	assert_int_equal(far(do_jump, SEL_TSS_A, 0, 4), EXC_GP); /* busy */

	assert_int_equal(far(do_iret, 0, 0, 4), -1);
	assert_int_equal(cpu->s.tr.selector, SEL_TSS_A);
	assert_int_equal(cpu->s.rip, CODE + 7);
	assert_int_equal(cpu->s.gpr[R_RBX], 0xb0b);
	assert_int_equal(tss_type(SEL_TSS_B), 9);
	assert_false(peek(TSS_B + 0x24, 4) & X86_FL_NT);
	assert_false(cpu->s.rflags & X86_FL_NT);
}

static void test_task_jump_and_gate(void **state)
{
	protected32(0);
	fill_tss_b();
	poke(GDT + SEL_GATE, 8, gate(DESC_TASK_GATE, 0, SEL_TSS_B, 0, 0));
	assert_int_equal(far(do_jump, SEL_GATE, 0, 4), -1);
	assert_int_equal(cpu->s.rip, 0x7700);
	assert_int_equal(tss_type(SEL_TSS_A), 9);
	assert_int_equal(cpu->s.rflags, 2);

	/* An exception through a task gate: the error code goes on the new stack, RF into the old
	 * TSS. */
	protected32(0);
	fill_tss_b();
	poke(TSS_B + 0x64, 2, 1); /* T */
	set_idt(EXC_DB, gate(DESC_INT32, 0, K_CODE, 0x6000, 0));
	set_idt(EXC_GP, gate(DESC_TASK_GATE, 0, SEL_TSS_B, 0, 0));
	raise_and_deliver(EXC_GP, true, 0x99);
	assert_int_equal(peek(STACK3 - 4, 4), 0x99);
	assert_int_equal(peek(TSS_A + 0x20, 4), CODE);
	assert_true(peek(TSS_A + 0x24, 4) & X86_FL_RF);
	assert_int_equal(cpu->s.rip, 0x6000); /* the debug trap of the T flag */
	assert_true(cpu->s.dr6 & 1u << 15);
	assert_int_equal(peek(STACK3 - 16, 4), 0x7700);
}

static void test_task_faults(void **state)
{
	struct x86_state before;

	protected32(0);
	fill_tss_b();
	set_desc(SEL_TSS_B, TSS_B, 0x66, 0x89);
	before = cpu->s;
	assert_int_equal(far(do_jump, SEL_TSS_B, 0, 4), EXC_TS);
	assert_int_equal(cpu->raise_error, SEL_TSS_B);
	set_desc(SEL_TSS_B, TSS_B, 0x67, 0x09);
	assert_int_equal(far(do_jump, SEL_TSS_B, 0, 4), EXC_NP);
	assert_memory_equal(&before, &cpu->s, sizeof(before));
	assert_int_equal(tss_type(SEL_TSS_A), 11);

	/* A bad segment is found in the new task. */
	set_desc(SEL_TSS_B, TSS_B, 0x67, 0x89);
	poke(TSS_B + 0x50, 2, U_DATA);
	assert_int_equal(far(do_jump, SEL_TSS_B, 0, 4), EXC_TS);
	assert_int_equal(cpu->raise_error, U_DATA & ~3);
	assert_int_equal(cpu->s.tr.selector, SEL_TSS_B);
	assert_int_equal(cpu->s.rip, 0x7700);

	protected32(0);
	cpu->s.rflags |= X86_FL_NT;
	poke(TSS_A, 2, SEL_TSS_B); /* not busy: IRET must not go there */
	assert_int_equal(far(do_iret, 0, 0, 4), EXC_TS);
	long64(0);
	assert_int_equal(far(do_jump, SEL_TSS_B, 0, 4), EXC_GP);
}

static void test_task_16(void **state)
{
	protected32(0);
	set_desc(SEL_TSS_B, TSS_B, 0x2b, 0x81);
	poke(TSS_B + 0x0e, 2, 0x7700);
	poke(TSS_B + 0x10, 2, 2);
	poke(TSS_B + 0x12, 2, 0xabcd);
	poke(TSS_B + 0x22, 2, K_DATA);
	poke(TSS_B + 0x24, 2, K_CODE);
	poke(TSS_B + 0x26, 2, K_DATA);
	assert_int_equal(far(do_call, SEL_TSS_B, 0, 4), -1);
	assert_int_equal(cpu->s.rip, 0x7700);
	assert_int_equal(cpu->s.gpr[R_RAX], 0xffffabcd);
	assert_true(cpu->s.seg[SEG_FS].attr & SEG_ATTR_UNUSABLE);
	assert_int_equal(tss_type(SEL_TSS_B), DESC_TSS16_BUSY);
	assert_int_equal(far(do_iret, 0, 0, 4), -1);
	assert_int_equal(peek(TSS_B + 0x12, 2), 0xabcd);
	assert_int_equal(cpu->s.tr.selector, SEL_TSS_A);
}

/* A debug task with its own T flag set would loop for ever. */
static void test_debug_task_loop(void **state)
{
	protected32(0);
	fill_tss_b();
	poke(TSS_B + 0x64, 2, 1);
	poke(TSS_B + 0x24, 4, 2);
	set_idt(EXC_DB, gate(DESC_TASK_GATE, 0, SEL_TSS_B, 0, 0));
	raise_and_deliver(EXC_DB, false, 0); /* second round: the TSS is busy, #GP, #GP: double fault */
	assert_true(cpu->is_shutdown);
	cpu->is_shutdown = false;
}

/* ---- system calls ---- */

static void test_syscall(void **state)
{
	long64(3);
	cpu->s.star = 0x0010000800000000; /* SYSRET base 10H, SYSCALL base 8 */
	cpu->s.lstar = 0xffffffff81000000;
	cpu->s.fmask = X86_FL_IF | X86_FL_TF;
	cpu->s.rflags = 2 | X86_FL_IF | X86_FL_TF | X86_FL_RF | FL_CF;
	assert_int_equal(INSN("\x0f\x05"), -1);
	assert_int_equal(cpu->s.rip, cpu->s.lstar);
	assert_int_equal(cpu->cpl, 0);
	assert_int_equal(cpu->s.gpr[R_RCX], CODE + 2);
	assert_int_equal(cpu->s.gpr[R_R11], 2 | X86_FL_IF | X86_FL_TF | FL_CF);
	assert_int_equal(cpu->s.rflags, 2 | FL_CF);
	assert_true(cpu->no_step_trap);
	assert_int_equal(cpu->s.seg[SEG_SS].selector, 0x10);

	assert_int_equal(INSN("\x48\x0f\x07"), -1);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.seg[SEG_CS].selector, 0x23);
	assert_int_equal(cpu->s.seg[SEG_SS].selector, 0x1b);
	assert_int_equal(cpu->code_bits, 64);
	assert_int_equal(cpu->s.rip, CODE + 2);
	assert_true(cpu->dr6_pending & 1u << 14); /* TF set at the end traps at once */

	long64(0);
	cpu->s.gpr[R_RCX] = 1ULL << 47;
	assert_int_equal(INSN("\x48\x0f\x07"), EXC_GP); /* in ring 0 */
	assert_int_equal(cpu->cpl, 0);
	assert_int_equal(INSN("\x0f\x07"), -1); /* to compatibility mode only ECX counts */
	assert_int_equal(cpu->code_bits, 32);
	long64(0);
	cpu->s.efer &= ~(uint64_t)X86_EFER_SCE;
	assert_int_equal(INSN("\x0f\x05"), EXC_UD);
}

static void test_sysenter(void **state)
{
	protected32(3);
	assert_int_equal(INSN("\x0f\x34"), EXC_GP); /* CS MSR is null */
	cpu->s.sysenter_cs = K_CODE;
	cpu->s.sysenter_esp = 0x1ffff8000; /* only the low half counts */
	cpu->s.sysenter_eip = 0x9000;
	cpu->s.rflags |= X86_FL_IF;
	assert_int_equal(INSN("\x0f\x34"), -1);
	assert_int_equal(cpu->s.gpr[R_RSP], 0xffff8000);
	assert_int_equal(cpu->s.rip, 0x9000);
	assert_int_equal(cpu->cpl, 0);
	assert_false(cpu->s.rflags & X86_FL_IF);
	cpu->s.gpr[R_RCX] = STACK3;
	cpu->s.gpr[R_RDX] = CODE;
	assert_int_equal(INSN("\x0f\x35"), -1);
	assert_int_equal(cpu->cpl, 3);
	assert_int_equal(cpu->s.seg[SEG_CS].selector, 0x1b);
	assert_int_equal(cpu->s.rip, CODE);
}

static void test_system_calls_by_vendor(void **state)
{
	struct cpu_model *m = &cpu->vm->model;
	bool was_amd = m->is_amd;

	for (int amd = 0; amd < 2; amd++) {
		m->is_amd = amd;
		protected32(3);
		cpu->s.efer |= X86_EFER_SCE;
		cpu->s.star = 0x0010000800009000; /* EIP is the low half */
		assert_int_equal(INSN("\x0f\x05"), amd ? -1 : EXC_UD);
		assert_int_equal(cpu->cpl, amd ? 0 : 3);
		protected32(0);
		cpu->s.efer |= X86_EFER_SCE;
		assert_int_equal(INSN("\x0f\x07"), amd ? -1 : EXC_UD);
		assert_int_equal(cpu->cpl, amd ? 3 : 0);

		long64(3);
		cpu->s.sysenter_cs = 0;
		assert_int_equal(INSN("\x0f\x34"), amd ? EXC_UD : EXC_GP);
		long64(0);
		assert_int_equal(INSN("\x0f\x35"), amd ? EXC_UD : EXC_GP);
	}
	m->is_amd = was_amd;
}

/* ---- control registers ---- */

static int mov_cr(unsigned cr, uint64_t val)
{
	char bytes[3] = { 0x0f, 0x22, (char)(0xc0 | cr << 3) };

	cpu->s.gpr[R_RAX] = val;
	return insn(bytes, 3);
}

static void test_mov_cr(void **state)
{
	protected32(0);
	assert_int_equal(mov_cr(0, X86_CR0_PG), EXC_GP);	      /* PG without PE */
	assert_int_equal(mov_cr(0, X86_CR0_PE | X86_CR0_NW), EXC_GP); /* NW without CD */
	assert_int_equal(mov_cr(4, X86_CR4_LA57), EXC_GP);
	assert_int_equal(mov_cr(4, X86_CR4_PCIDE), EXC_GP); /* not in long mode */
	assert_int_equal(mov_cr(4, 1u << 31), EXC_GP);
	assert_int_equal(INSN("\x0f\x22\xc8"), EXC_UD); /* CR1 */

	/* Into long mode and what it forbids. */
	cpu->s.efer = X86_EFER_LME;
	cpu->s.cr3 = PML4;
	assert_int_equal(mov_cr(0, X86_CR0_PE | X86_CR0_PG), EXC_GP); /* no PAE */
	assert_int_equal(mov_cr(4, X86_CR4_PAE), -1);
	cpu->s.tr.attr = 0x83; /* 16-bit TSS */
	assert_int_equal(mov_cr(0, X86_CR0_PE | X86_CR0_PG), EXC_GP);
	cpu->s.tr.attr = 0x8b;
	assert_int_equal(mov_cr(0, X86_CR0_PE | X86_CR0_PG), -1);
	assert_true(cpu->s.efer & X86_EFER_LMA);
	assert_int_equal(mov_cr(4, 0), EXC_GP);

	long64(0);
	assert_int_equal(mov_cr(0, X86_CR0_PE), EXC_GP); /* PG off in 64-bit mode */
	assert_int_equal(mov_cr(0, 1ULL << 32), EXC_GP);
	assert_int_equal(mov_cr(3, PML4 | 1ULL << 50), EXC_GP);
	assert_int_equal(mov_cr(3, PML4 | 5), -1);
	assert_int_equal(cpu->s.cr3, PML4 | 5);
	assert_int_equal(mov_cr(4, X86_CR4_PAE | X86_CR4_PCIDE), EXC_GP); /* CR3[11:0] != 0 */
	assert_int_equal(mov_cr(3, PML4), -1);
	assert_int_equal(mov_cr(4, X86_CR4_PAE | X86_CR4_PCIDE), -1);
	assert_int_equal(mov_cr(3, PML4 | 1ULL << 63 | 7), -1);
	assert_int_equal(cpu->s.cr3, PML4 | 7);
	load_seg(SEG_CS, K_CODE);
	cpu->s.seg[SEG_CS].attr = CODE32; /* compatibility mode */
	dbt_mode_changed(cpu);
	assert_int_equal(mov_cr(0, X86_CR0_PE), EXC_GP); /* PCIDE holds PG */
}

static void test_pdptes(void **state)
{
	protected32(0);
	cpu->s.cr4 = X86_CR4_PAE;
	cpu->s.cr3 = PDPT;
	poke(PDPT, 8, 0x20000 | 1);
	poke(PDPT + 8, 8, 0x20000 | 3); /* R/W is reserved here */
	assert_int_equal(mov_cr(0, X86_CR0_PE | X86_CR0_PG), EXC_GP);
	assert_false(cpu->s.cr0 & X86_CR0_PG);
	poke(PDPT + 8, 8, 0x30000 | 1);
	assert_int_equal(mov_cr(0, X86_CR0_PE | X86_CR0_PG), -1);
	assert_int_equal(cpu->pdpte[1], 0x30001);
	poke(PDPT + 8, 8, 0x40000 | 1); /* not seen before the next load */
	assert_int_equal(cpu->pdpte[1], 0x30001);
	poke(PDPT + 0x20, 8, 0x50000 | 1);
	poke(PDPT + 0x38, 8, 1ULL << 60 | 1);
	assert_int_equal(mov_cr(3, PDPT + 0x20), EXC_GP);
	assert_int_equal(cpu->s.cr3, PDPT);
	assert_int_equal(mov_cr(3, PDPT), -1);
	assert_int_equal(cpu->pdpte[1], 0x40001);
}

static void test_lmsw_smsw(void **state)
{
	protected32(0);
	cpu->s.gpr[R_RAX] = 0xfffe; /* PE can't be cleared; only four bits count */
	assert_int_equal(INSN("\x0f\x01\xf0"), -1);
	assert_int_equal(cpu->s.cr0 & 0xffff, 0x3f);
	protected32(3);
	cpu->s.cr4 = X86_CR4_UMIP;
	assert_int_equal(INSN("\x0f\x01\xe0"), EXC_GP);	    /* smsw */
	assert_int_equal(INSN("\x0f\x00\xc8"), EXC_GP);	    /* str */
	assert_int_equal(INSN("\x0f\x01\x45\x00"), EXC_GP); /* sgdt */
	cpu->s.cr4 = 0;
	assert_int_equal(INSN("\x0f\x00\xc8"), -1);
	assert_int_equal(cpu->s.gpr[R_RAX], SEL_TSS_A);
}

static void test_debug_registers(void **state)
{
	long64(0);
	cpu->s.gpr[R_RAX] = 0xffffffff;
	assert_int_equal(INSN("\x0f\x23\xf0"), -1); /* dr6 */
	assert_int_equal(cpu->s.dr6, 0xffffefff);
	assert_int_equal(INSN("\x0f\x23\xf8"), -1); /* dr7 */
	assert_int_equal(cpu->s.dr7, 0xffff27ff);
	assert_int_equal(INSN("\x0f\x21\xc0"), EXC_DB); /* general detect */
	assert_true(cpu->s.dr6 & 1u << 13);
	assert_false(cpu->s.dr7 & 1u << 13);
	assert_int_equal(INSN("\x0f\x21\xe0"), -1); /* dr4 is dr6 */
	assert_int_equal(cpu->s.gpr[R_RAX], cpu->s.dr6);
	cpu->s.gpr[R_RAX] = 1ULL << 32;
	assert_int_equal(INSN("\x0f\x23\xf8"), EXC_GP);
	cpu->s.cr4 |= X86_CR4_DE;
	assert_int_equal(INSN("\x0f\x21\xe0"), EXC_UD);
}

static void test_xsetbv(void **state)
{
	long64(0);
	if (!model.has[CPUF_AVX]) {
		print_message("no AVX on this host: XSETBV not checked\n");
		return;
	}
	cpu->s.gpr[R_RAX] = 7;
	cpu->s.gpr[R_RDX] = 0;
	assert_int_equal(INSN("\x0f\x01\xd1"), EXC_UD); /* no OSXSAVE */
	cpu->s.cr4 |= X86_CR4_OSXSAVE;
	assert_int_equal(INSN("\x0f\x01\xd1"), -1);
	assert_int_equal(cpu->s.xcr0, 7);
	static const uint64_t bad[] = { 0, 2, 5, 0xf };

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		cpu->s.gpr[R_RAX] = bad[i];
		assert_int_equal(INSN("\x0f\x01\xd1"), EXC_GP);
	}
	cpu->s.gpr[R_RAX] = 7;
	cpu->s.gpr[R_RCX] = 1;
	assert_int_equal(INSN("\x0f\x01\xd1"), EXC_GP);
}

/* ---- MSRs ---- */

static int wrmsr(uint32_t index, uint64_t val)
{
	cpu->s.gpr[R_RCX] = index;
	cpu->s.gpr[R_RAX] = (uint32_t)val;
	cpu->s.gpr[R_RDX] = val >> 32;
	return INSN("\x0f\x30");
}

static int rdmsr(uint32_t index, uint64_t *val)
{
	int vector;

	cpu->s.gpr[R_RCX] = index;
	vector = INSN("\x0f\x32");
	*val = cpu->s.gpr[R_RAX] | cpu->s.gpr[R_RDX] << 32;
	return vector;
}

static void test_msrs(void **state)
{
	uint64_t val;

	long64(0);
	assert_int_equal(wrmsr(0xc0000082, 1ULL << 47), EXC_GP); /* LSTAR, non-canonical */
	assert_int_equal(wrmsr(0xc0000082, 0xffff800000000000), -1);
	assert_int_equal(rdmsr(0xc0000082, &val), -1);
	assert_int_equal(val, 0xffff800000000000);
	assert_int_equal(wrmsr(0xc0000101, 0x1234), -1);
	assert_int_equal(cpu->s.seg[SEG_GS].base, 0x1234);
	assert_int_equal(INSN("\x0f\x01\xf8"), -1); /* swapgs */
	assert_int_equal(cpu->s.kernel_gs_base, 0x1234);
	assert_int_equal(wrmsr(0x277, 0x0007040600070402), EXC_GP); /* PAT: type 2 */
	assert_int_equal(wrmsr(0x277, 0x0007040600070406), -1);
	assert_int_equal(wrmsr(0x2ff, 0xc06), -1);
	assert_int_equal(wrmsr(0x2ff, 0xc02), EXC_GP);
	assert_int_equal(wrmsr(0x201, 1ULL << 60), EXC_GP);
	assert_int_equal(rdmsr(0xfe, &val), -1);
	assert_int_equal(val & 0xff, X86_MTRR_VAR);
	assert_int_equal(wrmsr(0xfe, 0), EXC_GP); /* read-only */
	assert_int_equal(rdmsr(0xdead, &val), EXC_GP);
	assert_int_equal(wrmsr(0xc0000080, 1u << 12), EXC_GP);	   /* SVME */
	assert_int_equal(wrmsr(0xc0000080, X86_EFER_SCE), EXC_GP); /* LME with paging on */
	assert_int_equal(wrmsr(0xc0000080, X86_EFER_LME | X86_EFER_NXE), -1); /* LMA stays */
	assert_int_equal(cpu->s.efer, X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE);
	assert_int_equal(wrmsr(0x10, 1ULL << 40), -1); /* TSC */
	assert_int_equal(rdmsr(0x10, &val), -1);
	assert_in_range(val, 1ULL << 40, (1ULL << 40) + (1ULL << 34));
	assert_int_equal(rdmsr(0x3b, &val), -1);
	assert_int_equal(wrmsr(0x3b, val + 1000), -1);
	assert_int_equal(nexits, 0);
	assert_int_equal(rdmsr(0x802, &val), -1); /* x2APIC: the machine's */
	assert_int_equal(last_exit.kind, EXIT_MSR);
	assert_int_equal(last_exit.addr, 0x802);
	assert_int_equal(val, 0x1122334455667788);
	assert_int_equal(wrmsr(0x8ff, 0), EXC_GP); /* refused by it */
}

/* ---- ports ---- */

static void test_port_permission(void **state)
{
	protected32(3);
	cpu->s.gpr[R_RDX] = 0x70;
	memset(ram.base + TSS_A + 0x100, 0xff, 0x200);
	assert_int_equal(INSN("\xec"), EXC_GP);
	poke(TSS_A + 0x100 + 0x70 / 8, 1, 0xfc); /* 70H and 71H */
	assert_int_equal(INSN("\xec"), -1);
	assert_int_equal(last_exit.addr, 0x70);
	assert_int_equal(cpu->s.gpr[R_RAX] & 0xff, 0x88);
	assert_int_equal(INSN("\x66\xed"), -1);
	assert_int_equal(INSN("\xed"), EXC_GP); /* 70H to 73H */
	cpu->s.gpr[R_RDX] = 0xffff;
	assert_int_equal(INSN("\xec"), EXC_GP); /* beyond the TSS */
	cpu->s.rflags |= X86_FL_IOPL;
	assert_int_equal(INSN("\xed"), -1);
	assert_int_equal(cpu->s.gpr[R_RAX], 0x55667788);
	cpu->s.tr.attr = 0x83; /* a 16-bit TSS has no map */
	cpu->s.rflags &= ~(uint64_t)X86_FL_IOPL;
	assert_int_equal(INSN("\xee"), EXC_GP);
}

static void test_io_breakpoint(void **state)
{
	protected32(0);
	cpu->s.dr[1] = 0x61;
	cpu->s.dr7 = 0x400 | 8 | 6u << 20; /* DR1: I/O, two bytes, aligned down to 60H */
	cpu->s.gpr[R_RDX] = 0x60;
	assert_int_equal(INSN("\xee"), -1);
	assert_int_equal(cpu->dr6_pending, 0); /* needs CR4.DE */
	cpu->s.cr4 = X86_CR4_DE;
	assert_int_equal(INSN("\xee"), -1);
	assert_int_equal(cpu->dr6_pending, 2);
	cpu->s.gpr[R_RDX] = 0x5d;
	assert_int_equal(INSN("\xee"), -1);
	assert_int_equal(cpu->dr6_pending, 0);
	assert_int_equal(INSN("\xed"), -1); /* 5DH to 60H */
	assert_int_equal(cpu->dr6_pending, 2);
}

static void test_string_io(void **state)
{
	protected32(0);
	cpu->s.gpr[R_RDX] = 0x1f0;
	cpu->s.gpr[R_RCX] = 3;
	cpu->s.gpr[R_RDI] = 0x5000;
	assert_int_equal(INSN("\xf3\x66\x6d"), -1); /* rep insw */
	assert_int_equal(nexits, 3);
	assert_int_equal(cpu->s.gpr[R_RDI], 0x5006);
	assert_int_equal(peek(0x5000, 8), 0x0000778877887788);
	cpu->s.rflags |= X86_FL_DF | X86_FL_TF;
	cpu->s.gpr[R_RCX] = 2;
	cpu->s.gpr[R_RSI] = 0x5002;
	cpu->s.rip = CODE;
	assert_int_equal(INSN("\xf3\x66\x6f"), -1); /* single-stepped: one element at a time */
	assert_int_equal(cpu->s.gpr[R_RCX], 1);
	assert_int_equal(cpu->s.gpr[R_RSI], 0x5000);
	assert_int_equal(cpu->s.rip, CODE);
	assert_int_equal(INSN("\xf3\x66\x6f"), -1);
	assert_int_equal(cpu->s.rip, CODE + 3);
	/* A destination that can't be written: the port is not read. */
	nexits = 0;
	load_seg(SEG_ES, K_CODE);
	dbt_mode_changed(cpu);
	cpu->s.gpr[R_RCX] = 1;
	assert_int_equal(INSN("\xf3\x6c"), EXC_GP);
	assert_int_equal(nexits, 0);
	assert_int_equal(cpu->s.gpr[R_RCX], 1);
}

static void test_interrupt_flag(void **state)
{
	protected32(0);
	assert_int_equal(INSN("\xfb"), -1); /* sti */
	assert_int_equal(cpu->s.interrupt_shadow, 1);
	cpu->s.interrupt_shadow = 0;
	assert_int_equal(INSN("\xfb"), -1);
	assert_int_equal(cpu->s.interrupt_shadow, 0); /* IF was set already */
	protected32(3);
	assert_int_equal(INSN("\xfa"), EXC_GP);
	cpu->s.cr4 = X86_CR4_PVI;
	cpu->s.rflags |= X86_FL_VIF;
	assert_int_equal(INSN("\xfa"), -1);
	assert_false(cpu->s.rflags & X86_FL_VIF);
	protected32(0);
	assert_int_equal(INSN("\xf4"), -1);
	assert_int_equal(cpu->s.mp_state, MP_HALTED);
	set_idt(EXC_NMI, gate(DESC_INT32, 0, K_CODE, 0x6000, 0));
	exc_interrupt(cpu, 2, true);
	assert_int_equal(cpu->s.mp_state, MP_RUNNABLE);
	assert_int_equal(cpu->s.nmi_blocked, 1);
}

/* ---- what KVM gives beyond a CPU ---- */

static void test_kvm_msrs(void **state)
{
	protected32(0);
	cpu->s.gpr[R_RCX] = 0x4b564d03;
	cpu->s.gpr[R_RAX] = 0x1041;
	cpu->s.gpr[R_RDX] = 0;
	assert_int_equal(INSN("\x0f\x30"), -1); /* wrmsr */
	assert_int_equal(last_exit.addr, 0x4b564d03);
	assert_int_equal(last_exit.data, 0x1041);
	assert_int_equal(cpu->s.kvm_steal_time, 0x1041);
	/* what the machine refuses faults and changes nothing */
	cpu->s.gpr[R_RAX] = 0x2043;
	assert_int_equal(INSN("\x0f\x30"), EXC_GP);
	assert_int_equal(cpu->s.kvm_steal_time, 0x1041);
	assert_int_equal(INSN("\x0f\x32"), -1); /* rdmsr */
	assert_int_equal(cpu->s.gpr[R_RAX], 0x1041);
	cpu->s.gpr[R_RCX] = 0x4b564d04;
	assert_int_equal(INSN("\x0f\x30"), -1);
	assert_int_equal(cpu->s.kvm_pv_eoi, 0x1041);
	cpu->s.gpr[R_RCX] = 0x4b564d02; /* no asynchronous page faults */
	assert_int_equal(INSN("\x0f\x30"), EXC_GP);
	x86_state_init(&cpu->s, true);
	assert_int_equal(cpu->s.kvm_steal_time | cpu->s.kvm_pv_eoi, 0);
}

/* Two HLTs, interrupts off. */
static enum run_result run_halt(void)
{
	poke(CODE, 4, 0x9090f4fa); /* cli; hlt; nop; nop */
	poke(CODE + 4, 2, 0xf4);   /* hlt */
	cpu->s.rip = CODE;
	cpu->s.mp_state = MP_RUNNABLE;
	return engine_dbt.vcpu_run(vcpu, NULL);
}

static void test_unhalt(void **state)
{
	struct x86_state *s = aligned_alloc(64, sizeof(*s));

	assert_non_null(s);
	protected32(0);
	/* during the HLT */
	assert_int_equal(run_halt(), RUN_HALTED);
	assert_int_equal(cpu->s.rip, CODE + 2);
	assert_int_equal(engine_dbt.vcpu_run(vcpu, NULL), RUN_HALTED); /* a wakeup for nothing */
	assert_int_equal(cpu->s.rip, CODE + 2);
	engine_dbt.unhalt(vcpu);
	assert_int_equal(engine_dbt.vcpu_run(vcpu, NULL), RUN_HALTED);
	assert_int_equal(cpu->s.rip, CODE + 5); /* the second one: the first had used it up */
	/* before the HLT: the first one is passed */
	engine_dbt.unhalt(vcpu);
	assert_int_equal(run_halt(), RUN_HALTED);
	assert_int_equal(cpu->s.rip, CODE + 5);
	/* it is state */
	engine_dbt.unhalt(vcpu);
	engine_dbt.get_state(vcpu, s);
	assert_true(s->unhalt_pending);
	assert_int_equal(engine_dbt.set_state(vcpu, s, NULL), 0);
	assert_int_equal(run_halt(), RUN_HALTED);
	assert_int_equal(cpu->s.rip, CODE + 5);
	engine_dbt.unhalt(vcpu);
	s->unhalt_pending = false;
	assert_int_equal(engine_dbt.set_state(vcpu, s, NULL), 0);
	assert_int_equal(run_halt(), RUN_HALTED);
	assert_int_equal(cpu->s.rip, CODE + 2);
	free(s);
}

static void test_flush_request(void **state)
{
	protected32(0);
	uint64_t before = cpu->tlb_flushes;

	engine_dbt.flush_tlb(vcpu);
	assert_int_equal(run_halt(), RUN_HALTED);
	assert_int_equal(cpu->tlb_flushes, before + 1);
}

/* A row of PAUSEs gives the core away sooner or later, a single one does not. */
static void test_pause(void **state)
{
	protected32(0);
	nyields = 0;
	cpu->pause_last = 0;
	poke(CODE, 3, 0xf490f3); /* pause; hlt */
	cpu->s.rip = CODE;
	assert_int_equal(engine_dbt.vcpu_run(vcpu, NULL), RUN_HALTED);
	assert_int_equal(nyields, 0);
	dbt_run_enter(cpu);
	while (!nyields)
		dbt_pause(cpu);
	assert_true(cpu->is_running);
	assert_int_equal(cpu->pauses_yielded, 1);
	dbt_run_leave(cpu);
}

/* ---- the mode key ---- */

static void test_mode_key(void **state)
{
	uint64_t kernel, user;

	long64(0);
	assert_int_equal(cpu->mode_key, DBT_MODE_CODE64 | DBT_MODE_FLAT | DBT_MODE_PE |
						DBT_MODE_NO_SSE | DBT_MODE_NO_AVX);
	kernel = cpu->jc_key;
	enter_cpl(3);
	user = cpu->jc_key;
	assert_true(cpu->mode_key & DBT_MODE_USER);
	assert_int_equal(cpu->tlb_mode, DBT_TLB_USER);
	/* What tells two modes apart is another number each time. */
	uint64_t apart = kernel - user;

	cpu->as_gen++;
	enter_cpl(0);
	kernel = cpu->jc_key;
	enter_cpl(3);
	assert_int_not_equal(kernel - cpu->jc_key, apart);
	user = cpu->jc_key;
	enter_cpl(0);
	assert_int_equal(cpu->jc_key, kernel);
	assert_int_not_equal(user, kernel);
	cpu->as_gen++;
	dbt_mode_changed(cpu);
	assert_int_not_equal(cpu->jc_key, kernel);

	protected32(0);
	assert_true(cpu->mode_key & DBT_MODE_FLAT);
	cpu->s.seg[SEG_DS].limit = 0xffff;
	dbt_mode_changed(cpu);
	assert_false(cpu->mode_key & DBT_MODE_FLAT);
	enter_vm86(3);
	assert_int_equal(cpu->code_bits, 16);
	assert_int_equal(cpu->mode_key & (DBT_MODE_PE | DBT_MODE_VM86), DBT_MODE_VM86);
}

/* The C library, which a translation needs for memory, uses vector registers. */
static void test_translation_saves_vectors(void **state)
{
	protected32(0);
	poke(CODE, 2, 0xf490); /* nop; hlt */
	cpu->s.rip = CODE;
	dbt_run_enter(cpu);
	dbt_fpu_to_regs(cpu);
	struct xlate_block *b = xlate_find(cpu, 0, false);
	bool is_in_regs = cpu->is_fpu_in_regs;

	dbt_fpu_to_mem(cpu);
	dbt_run_leave(cpu);
	assert_non_null(b);
	assert_false(is_in_regs);
}

/* The poison of the branch table's key, put there after the vCPU has looked, goes with the next miss. */
static void test_late_poison(void **state)
{
	protected32(0);
	poke(CODE, 2, 0xf490); /* nop; hlt */
	cpu->s.rip = CODE;
	dbt_run_enter(cpu);
	assert_non_null(xlate_find(cpu, 0, false));
	atomic_store(&cpu->poll, 0);
	atomic_store(&cpu->jc_key_now, cpu->jc_poison);
	assert_non_null(xlate_lookup_fast(cpu));
	assert_true(atomic_load(&cpu->jc_key_now) == cpu->jc_key);
	dbt_poll_set(cpu);
	assert_null(xlate_lookup_fast(cpu));
	assert_true(atomic_load(&cpu->jc_key_now) == cpu->jc_poison);
	atomic_store(&cpu->poll, 0);
	dbt_poll_refresh(cpu);
	assert_true(atomic_load(&cpu->jc_key_now) == cpu->jc_key);
	dbt_run_leave(cpu);
}

/* No guest knows what the keys of its vCPUs' branch tables begin with: two of one machine differ, and 0 is none. */
static void test_keys_are_secret(void **state)
{
	struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = intr_ack, .yield = yield };
	struct engine_vcpu *second;
	struct error err = { "" };

	assert_int_equal(engine_dbt.vcpu_create(&second, vm, 1, &up, &err), 0);
	struct dbt_cpu *other = (struct dbt_cpu *)(void *)second;
	assert_true(other->jc_poison && other->as_gen > 1000);
	assert_true(other->jc_poison != cpu->jc_poison);
	assert_true(other->jc_key && other->jc_key != other->jc_poison);
	assert_true((int64_t)(other->as_gen - cpu->as_gen) > 1000 ||
		    (int64_t)(cpu->as_gen - other->as_gen) > 1000);
	engine_dbt.vcpu_destroy(second);
}

/* What other vCPUs do while this one is out: the cache is flushed, filled again, and they run the same code. */
static void flush_and_refill(void)
{
	struct code_cache *cc = &cpu->vm->xlate->cc;
	uint64_t rip = cpu->s.rip;

	assert_int_equal(rip, CODE + 8);
	xlate_flush(cpu->vm);
	memset(cc->rw + XLATE_STUB_BYTES, 0xcc, 64 * KIB); /* INT3 */
	cc->seg[cc->now].hot += 64 * KIB;
	cpu->s.rip = CODE + 10;
	assert_non_null(xlate_find(cpu, 0, false));
	cpu->s.rip = rip;
}

/* The interpreter under a call of translated code: where that was to return to is no more. */
static void test_flush_under_frames(void **state)
{
	static const uint8_t code[] = { 0xe8, 3,    0,	  0, 0, /* call 8 */
					0xb0, 42,   0xf4,	/* mov al, 42; hlt */
					0xe6, 0x80, 0xc3 };	/* out 80h, al; ret */

	long64(0);
	memcpy(ram.base + CODE, code, sizeof(code));
	cpu->vm->cfg.use_interp_only = false;
	for (unsigned i = 0; i < 6; i++) { /* the calls after the first few are all in translated code */
		if (i == 5)
			in_exit = flush_and_refill;
		cpu->s.rip = CODE;
		cpu->s.gpr[R_RAX] = 0;
		cpu->s.mp_state = MP_RUNNABLE;
		assert_int_equal(engine_dbt.vcpu_run(vcpu, NULL), RUN_HALTED);
		assert_int_equal(cpu->s.gpr[R_RAX], 42);
		assert_int_equal(cpu->s.rip, CODE + 8);
		assert_int_equal(cpu->s.gpr[R_RSP], STACK0);
		assert_int_equal(nexits, i + 1);
	}
	assert_null(in_exit);
	cpu->vm->cfg.use_interp_only = true;
}

/* What the verifier refuses is not executed, and the machine stops, so that nobody overlooks it. */
static void test_refused_block(void **state)
{
	struct xlate_vm *x = cpu->vm->xlate;
	struct error err = { "" };

	protected32(0);
	poke(CODE, 2, 0xf490);
	x->verify_failures = 1;
	strcpy(x->refused, "for a test");
	assert_int_equal(engine_dbt.vcpu_run(vcpu, &err), RUN_FAILED);
	assert_string_equal(err.text, "the verifier refused a block: for a test");
	assert_int_equal(cpu->s.rip, CODE);
	x->verify_failures = 0;
	assert_int_equal(engine_dbt.vcpu_run(vcpu, NULL), RUN_HALTED);
}

static void test_descriptor_info(void **state)
{
	protected32(3);
	cpu->s.gpr[R_RCX] = K_DATA;
	assert_int_equal(INSN("\x0f\x02\xc1"), -1); /* lar eax, ecx: DPL 0 from ring 3 */
	assert_false(cpu->s.rflags & FL_ZF);
	cpu->s.gpr[R_RCX] = U_DATA;
	assert_int_equal(INSN("\x0f\x02\xc1"), -1);
	assert_true(cpu->s.rflags & FL_ZF);
	assert_int_equal(cpu->s.gpr[R_RAX], 0xc0f300);
	assert_int_equal(INSN("\x0f\x03\xc1"), -1); /* lsl */
	assert_int_equal(cpu->s.gpr[R_RAX], 0xffffffff);
	assert_int_equal(INSN("\x0f\x00\xe9"), -1); /* verw cx */
	assert_true(cpu->s.rflags & FL_ZF);
	cpu->s.gpr[R_RCX] = U_CODE;
	assert_int_equal(INSN("\x0f\x00\xe9"), -1);
	assert_false(cpu->s.rflags & FL_ZF);
	assert_int_equal(INSN("\x0f\x00\xe1"), -1); /* verr cx */
	assert_true(cpu->s.rflags & FL_ZF);
	cpu->s.gpr[R_RAX] = 0x10;
	cpu->s.gpr[R_RBX] = 3;
	assert_int_equal(INSN("\x63\xd8"), -1); /* arpl ax, bx */
	assert_int_equal(cpu->s.gpr[R_RAX], 0x13);
	protected32(0);
	cpu->s.gpr[R_RCX] = SEL_TSS_B;
	assert_int_equal(INSN("\x0f\x00\xd9"), -1); /* ltr */
	assert_int_equal(tss_type(SEL_TSS_B), 11);
	assert_int_equal(INSN("\x0f\x00\xd9"), EXC_GP); /* busy now */
	cpu->s.gpr[R_RCX] = 0;
	assert_int_equal(INSN("\x0f\x00\xd1"), -1); /* lldt null */
	assert_true(cpu->s.ldtr.attr & SEG_ATTR_UNUSABLE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fresh_tlb),
		cmocka_unit_test(test_seg_load),
		cmocka_unit_test(test_null_ss_long),
		cmocka_unit_test(test_mov_ss_shadow),
		cmocka_unit_test(test_unreal),
		cmocka_unit_test(test_enter_16),
		cmocka_unit_test(test_call_gate),
		cmocka_unit_test(test_call_gate_faults),
		cmocka_unit_test(test_call_gate_long),
		cmocka_unit_test(test_interrupt_gate),
		cmocka_unit_test(test_trap_gate_16),
		cmocka_unit_test(test_software_interrupt),
		cmocka_unit_test(test_double_fault),
		cmocka_unit_test(test_not_present_gate),
		cmocka_unit_test(test_long_ist),
		cmocka_unit_test(test_iret_faults),
		cmocka_unit_test(test_real_mode),
		cmocka_unit_test(test_vm86),
		cmocka_unit_test(test_vme),
		cmocka_unit_test(test_task_call),
		cmocka_unit_test(test_task_jump_and_gate),
		cmocka_unit_test(test_task_faults),
		cmocka_unit_test(test_task_16),
		cmocka_unit_test(test_debug_task_loop),
		cmocka_unit_test(test_syscall),
		cmocka_unit_test(test_sysenter),
		cmocka_unit_test(test_system_calls_by_vendor),
		cmocka_unit_test(test_mov_cr),
		cmocka_unit_test(test_pdptes),
		cmocka_unit_test(test_lmsw_smsw),
		cmocka_unit_test(test_debug_registers),
		cmocka_unit_test(test_xsetbv),
		cmocka_unit_test(test_msrs),
		cmocka_unit_test(test_port_permission),
		cmocka_unit_test(test_io_breakpoint),
		cmocka_unit_test(test_string_io),
		cmocka_unit_test(test_interrupt_flag),
		cmocka_unit_test(test_kvm_msrs),
		cmocka_unit_test(test_unhalt),
		cmocka_unit_test(test_flush_request),
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_mode_key),
		cmocka_unit_test(test_translation_saves_vectors),
		cmocka_unit_test(test_late_poison),
		cmocka_unit_test(test_keys_are_secret),
		cmocka_unit_test(test_flush_under_frames),
		cmocka_unit_test(test_refused_block),
		cmocka_unit_test(test_descriptor_info),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
