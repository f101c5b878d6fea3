/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instruction fetch across a page boundary, with the interpreter's cache of decoded instructions: what is cached for
 * an address is a whole instruction or nothing, also when the fetch of its second page raises #PF.
 */
#include "base/unit.h"

#include <string.h>

#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/segment.h"
#include "engine/dbt/thunk.h"

enum { /* physical layout; the first GiB is mapped to itself */
       GDT = 0x1000,
       IDT = 0x2000,
       TSS = 0x3000,
       HANDLER = 0x4000,
       STACK = 0x8000, /* top */
       PML4 = 0x10000,
       PDPT = 0x11000,
       PD = 0x12000,
       PT = 0x13000,
       PAGE1 = 0x20000,
       PAGE2 = 0x28000, /* not adjacent */
};
enum { K_CODE = 0x08, K_DATA = 0x10, PRESENT_RW = 3 };
#define VA 0x40000000ULL /* PAGE1; PAGE2 follows while it is mapped */

static struct guest_ram ram;
static struct cpu_model model;
static struct engine_vm *vm;
static struct engine_vcpu *vcpu;
static struct dbt_cpu *cpu;

static int on_exit_(void *ctx, struct vcpu_exit *x)
{
	fail_msg("exit %d", (int)x->kind);
	return -1;
}

static int intr_ack(void *ctx)
{
	return -1;
}

static void poke(uint64_t gpa, uint64_t val)
{
	memcpy(ram.base + gpa, &val, 8);
}

static uint64_t peek(uint64_t gpa)
{
	uint64_t val;

	memcpy(&val, ram.base + gpa, 8);
	return val;
}

static void load_seg(unsigned seg, uint16_t sel)
{
	struct seg_desc d = { .lo = (uint32_t)peek(GDT + sel), .hi = (uint32_t)(peek(GDT + sel) >> 32) };

	seg_fill(&cpu->s.seg[seg], sel, &d);
}

static int setup(void **state)
{
	struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = intr_ack };
	struct engine_config cfg = { .ram = &ram, .model = &model, .vcpus = 1, .use_interp_only = true };
	struct error err = { "" };
	struct x86_state s;

	if (ram_create(&ram, 2 * MIB, 0, &err) || cpu_model_init(&model, "host", 1, &err) ||
	    engine_dbt.vm_create(&vm, &cfg, &err) || engine_dbt.vcpu_create(&vcpu, vm, 0, &up, &err)) {
		print_error("%s\n", err.text);
		return -1;
	}
	cpu = (struct dbt_cpu *)(void *)vcpu;
	if (thunk_thread_init(cpu, &err))
		return -1;

	x86_state_reset(&s, true);
	s.gdtr.base = GDT;
	s.gdtr.limit = 0x17;
	s.idtr.base = IDT;
	s.idtr.limit = 0xfff;
	s.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
	if (engine_dbt.set_state(vcpu, &s, NULL))
		return -1;
	poke(GDT + K_CODE, 0x00af9b000000ffff);
	poke(GDT + K_DATA, 0x00cf93000000ffff);
	poke(IDT + EXC_PF * 16, HANDLER | (uint64_t)K_CODE << 16 | 0x8e00ULL << 32);
	poke(PML4, PDPT | PRESENT_RW);
	poke(PDPT, 0x80 | PRESENT_RW);
	poke(PDPT + 8, PD | PRESENT_RW);
	poke(PD, PT | PRESENT_RW);
	poke(PT, PAGE1 | PRESENT_RW);
	cpu->s.cr3 = PML4;
	cpu->s.cr4 = X86_CR4_PAE;
	cpu->s.cr0 |= X86_CR0_PG | X86_CR0_WP;
	cpu->s.efer = X86_EFER_LME | X86_EFER_LMA;
	cpu->s.tr = (struct x86_seg){ .base = TSS, .limit = 0x67, .selector = 0x28, .attr = 0x8b };
	load_seg(SEG_CS, K_CODE);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			load_seg(i, K_DATA);
	dbt_mode_changed(cpu);
	return 0;
}

static int teardown(void **state)
{
	engine_dbt.vcpu_destroy(vcpu);
	engine_dbt.vm_destroy(vm);
	ram_destroy(&ram);
	return 0;
}

/* Maps or unmaps the second page as a guest does: the entry, then INVLPG. */
static void map_second(bool is_present)
{
	static const uint8_t invlpg[] = { 0x0f, 0x01, 0x3b }; /* [rbx] */

	poke(PT + 8, is_present ? PAGE2 | PRESENT_RW : 0);
	memcpy(ram.base + HANDLER + 0x100, invlpg, sizeof(invlpg));
	cpu->s.gpr[R_RBX] = VA + 0x1000;
	cpu->s.rip = HANDLER + 0x100;
	interp_one(cpu);
	assert_int_equal(cpu->s.rip, HANDLER + 0x100 + sizeof(invlpg));
}

/* One instruction at @va, with RAX, RCX known before. */
static void run_at(uint64_t va)
{
	cpu->s.gpr[R_RAX] = 0x1111111111111111;
	cpu->s.gpr[R_RCX] = 5;
	cpu->s.gpr[R_RSP] = STACK;
	cpu->s.rip = va;
	interp_one(cpu);
}

static const struct {
	uint8_t len, bytes[INSN_MAX_LEN];
	uint64_t rax;
} insns[] = {
	{ 2, { 0x89, 0xc8 }, 5 },					    /* mov eax, ecx */
	{ 5, { 0xb8, 0x90, 0x90, 0x90, 0x90 }, 0x90909090 },		    /* mov eax, imm32 */
	{ 10, { 0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8 }, 0x0807060504030201 }, /* mov rax, imm64 */
	{ 8, { 0x48, 0x8d, 0x84, 0x09, 0x44, 0x33, 0x22, 0x11 }, 0x11223344 + 10 }, /* lea rax, [rcx+rcx+disp32] */
	{ 4, { 0x48, 0x83, 0xc0, 0x01 }, 0x1111111111111112 },			    /* add rax, 1 */
	{ 5, { 0xc4, 0xe2, 0xf0, 0xf2, 0xc0 }, 0x1111111111111110 }, /* andn rax, rcx, rax */
};

/* Every instruction split at every byte: mapped, unmapped, mapped again. */
static void second_page_comes_back(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(insns); i++)
		for (unsigned in_first = 1; in_first < insns[i].len; in_first++) {
			unsigned len = insns[i].len;
			uint64_t va = VA + 0x1000 - in_first;

			if (insns[i].bytes[0] == 0xc4 && !model.has[CPUF_BMI1]) {
				print_message("ANDN left out: the host has no BMI1\n");
				continue;
			}
			memcpy(ram.base + PAGE1 + 0x1000 - in_first, insns[i].bytes, in_first);
			memcpy(ram.base + PAGE2, insns[i].bytes + in_first, len - in_first);

			for (unsigned round = 0; round < 2; round++) {
				map_second(true);
				run_at(va);
				assert_int_equal(cpu->s.rip, va + len);
				assert_int_equal(cpu->s.gpr[R_RAX], insns[i].rax);

				map_second(false);
				for (unsigned again = 0; again < 2; again++) {
					run_at(va);
					assert_int_equal(cpu->s.rip, HANDLER);
					assert_int_equal(cpu->s.cr2, VA + 0x1000);
					assert_int_equal(peek(STACK - 40), va); /* RIP in the frame */
					assert_int_equal(cpu->s.gpr[R_RAX], 0x1111111111111111);
				}
			}
			map_second(true);
			run_at(va);
			assert_int_equal(cpu->s.rip, va + len);
			assert_int_equal(cpu->s.gpr[R_RAX], insns[i].rax);
		}
}

/* The bytes behind the boundary change with the page: what is cached is compared with memory there, too. */
static void second_page_is_another(void **state)
{
	uint64_t va = VA + 0x1000 - 2;

	memcpy(ram.base + PAGE1 + 0x1000 - 2, "\xb8\x01", 2); /* mov eax, imm32 */
	for (unsigned round = 0; round < 4; round++) {
		memset(ram.base + PAGE2, (int)round, 3);
		map_second(round != 2);
		run_at(va);
		if (round == 2) {
			assert_int_equal(cpu->s.rip, HANDLER);
			continue;
		}
		assert_int_equal(cpu->s.rip, va + 5);
		assert_int_equal(cpu->s.gpr[R_RAX], 0x1 | round * 0x01010100);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(second_page_comes_back),
		cmocka_unit_test(second_page_is_another),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
