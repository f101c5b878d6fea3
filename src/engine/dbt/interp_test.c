/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interpreter around an instruction: traps, breakpoints, shadows, repeated strings, changed code, x87
 * pointers; and the emitter, read back by the decoder.  What instructions compute is compared with the host's
 * CPU in tests/difftest.
 *
 * The machine: real mode, code at 0:CODE, the handler of vector v at 0:HANDLERS + v.
 */
#include "base/unit.h"

#include "engine/dbt/emit.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/thunk.h"

enum { HANDLERS = 0x1000, CODE = 0x2000, STACK = 0x8000, DATA = 0x9000 };

static struct guest_ram ram;
static struct cpu_model model;
static struct engine_vm *vm;
static struct dbt_cpu *cpu;
static struct sigaction engine_sigfpe; /* cmocka puts its own in front of every test */

static int on_exit_(void *ctx, struct vcpu_exit *x)
{
	x->data = ~0ULL;
	return 0;
}

static int no_intr(void *ctx)
{
	return -1;
}

static int setup(void **state)
{
	const struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = no_intr };
	struct engine_config cfg = { .ram = &ram, .model = &model, .vcpus = 1 };
	struct engine_vcpu *vcpu;
	struct error err;

	assert_int_equal(cpu_model_init(&model, "host", 1, &err), 0);
	assert_int_equal(ram_create(&ram, 2 * MIB, 0, &err), 0);
	assert_int_equal(engine_dbt.vm_create(&vm, &cfg, &err), 0);
	assert_int_equal(engine_dbt.vcpu_create(&vcpu, vm, 0, &up, &err), 0);
	cpu = (struct dbt_cpu *)(void *)vcpu;
	assert_int_equal(thunk_thread_init(cpu, &err), 0);
	for (unsigned v = 0; v < 256; v++) {
		ram.base[4 * v] = (uint8_t)(HANDLERS + v);
		ram.base[4 * v + 1] = (uint8_t)((HANDLERS + v) >> 8);
	}
	cpu->s.cr0 |= X86_CR0_NE;
	cpu->s.cr4 |= X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		cpu->s.seg[i].base = 0;
		cpu->s.seg[i].selector = 0;
	}
	cpu->s.gpr[R_RSP] = STACK;
	cpu->s.rip = CODE;
	cpu->s.rflags = 2;
	dbt_mode_changed(cpu);
	mmu_flush_all(cpu);
	return 0;
}

static int teardown(void **state)
{
	dbt_fpu_to_mem(cpu);
	thunk_thread_finish();
	engine_dbt.vcpu_destroy((struct engine_vcpu *)(void *)cpu);
	engine_dbt.vm_destroy(vm);
	ram_destroy(&ram);
	return 0;
}

static void put_code(const uint8_t *bytes, unsigned len)
{
	assert_int_equal(ram_write(&ram, CODE, bytes, len), 0);
	cpu->s.rip = CODE;
	sigaction(SIGFPE, &engine_sigfpe, NULL);
}
#define CODE_BYTES(...)                                                                            \
	put_code((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* One step that must end in the handler of @vector, with @ip pushed. */
static void expect_exception(unsigned vector, unsigned ip)
{
	uint64_t sp = cpu->s.gpr[R_RSP];

	interp_one(cpu);
	assert_int_equal(cpu->s.rip, HANDLERS + vector);
	assert_int_equal(cpu->s.gpr[R_RSP], sp - 6);
	assert_int_equal(ram.base[sp - 6] | ram.base[sp - 5] << 8, ip);
}

static void expect_step(unsigned rip)
{
	interp_one(cpu);
	assert_int_equal(cpu->s.rip, rip);
}

static void test_single_step(void **state)
{
	CODE_BYTES(0x90, 0x8e, 0xd0, 0x90, 0x90); /* nop; mov ss, ax; nop; nop */
	cpu->s.rflags |= X86_FL_TF;
	cpu->s.dr6 = 0;
	expect_exception(EXC_DB, CODE + 1);
	assert_int_equal(cpu->s.dr6 & 0x400f, 0x4000);
	assert_false(cpu->s.rflags & X86_FL_TF);

	/* MOV SS swallows its own trap, the next instruction's comes. */
	cpu->s.rflags |= X86_FL_TF;
	cpu->s.rip = CODE + 1;
	expect_step(CODE + 3);
	assert_int_equal(cpu->s.interrupt_shadow, 2);
	expect_exception(EXC_DB, CODE + 4);
	assert_int_equal(cpu->s.interrupt_shadow, 0);
}

static void test_code_breakpoint(void **state)
{
	CODE_BYTES(0x90, 0x90);
	cpu->s.dr[2] = CODE + 1;
	cpu->s.dr7 = 0x400 | 1 << 4;
	expect_step(CODE + 1);
	expect_exception(EXC_DB, CODE + 1);
	assert_int_equal(cpu->s.dr6 & 0x400f, 4);

	/* RF lets it run, once. */
	cpu->s.rip = CODE + 1;
	cpu->s.rflags |= X86_FL_RF;
	expect_step(CODE + 2);
	assert_false(cpu->s.rflags & X86_FL_RF);
}

static void test_host_debug(void **state)
{
	CODE_BYTES(0x90, 0x90);
	cpu->debug = (struct engine_debug){ .nbreak = 1, .bp = { { .addr = CODE + 1 } } };
	expect_step(CODE + 1);
	assert_false(cpu->is_debug_hit);
	expect_step(CODE + 1);
	assert_true(cpu->is_debug_hit);

	cpu->is_debug_hit = false;
	cpu->debug = (struct engine_debug){ .single_step = true };
	expect_step(CODE + 2);
	assert_true(cpu->is_debug_hit);
}

static void test_sti_shadow(void **state)
{
	CODE_BYTES(0xfb, 0x90); /* sti; nop */
	expect_step(CODE + 1);
	assert_int_equal(cpu->s.interrupt_shadow, 1);
	expect_step(CODE + 2);
	assert_int_equal(cpu->s.interrupt_shadow, 0);
}

static void test_rep_movs_in_parts(void **state)
{
	const unsigned len = 0xf000;
	unsigned calls = 0;

	CODE_BYTES(0xf3, 0x66, 0xa5); /* rep movsd, es: at 1M - 64K */
	for (unsigned i = 0; i < len; i++)
		ram.base[0x10000 + i] = (uint8_t)(i * 7 + (i >> 8));
	cpu->s.seg[SEG_DS].base = 0x10000;
	cpu->s.seg[SEG_ES].base = 0x40001; /* every fourth element of it crosses ... */
	cpu->s.gpr[R_RSI] = 0;
	cpu->s.gpr[R_RDI] = 2; /* ... a page */
	cpu->s.gpr[R_RCX] = len / 4;
	while (cpu->s.rip == CODE) {
		uint64_t left = cpu->s.gpr[R_RCX];

		interp_one(cpu);
		calls++;
		assert_true(cpu->s.gpr[R_RCX] < left);
		assert_int_equal(!!(cpu->s.rflags & X86_FL_RF), cpu->s.rip == CODE);
		assert_int_equal(cpu->s.gpr[R_RSI], len - 4 * cpu->s.gpr[R_RCX]);
	}
	assert_in_range(calls, 1, 200);
	assert_memory_equal(ram.base + 0x10000, ram.base + 0x40003, len);
	assert_int_equal(cpu->s.gpr[R_RDI], len + 2);
}

static void test_rep_movs_overlap(void **state)
{
	CODE_BYTES(0xf3, 0xa4); /* rep movsb, one byte ahead of itself: a fill */
	ram.base[DATA] = 0x5a;
	memset(ram.base + DATA + 1, 0, 300);
	cpu->s.gpr[R_RSI] = DATA;
	cpu->s.gpr[R_RDI] = DATA + 1;
	cpu->s.gpr[R_RCX] = 200;
	while (cpu->s.rip == CODE)
		interp_one(cpu);
	for (unsigned i = 0; i <= 200; i++)
		assert_int_equal(ram.base[DATA + i], 0x5a);
	assert_int_equal(ram.base[DATA + 201], 0);
}

static void test_rep_backward_wraps(void **state)
{
	CODE_BYTES(0xfd, 0xf3, 0xaa); /* std; rep stosb through offset 0 */
	cpu->s.seg[SEG_ES].base = 0x40000;
	cpu->s.gpr[R_RAX] = 0x77;
	cpu->s.gpr[R_RDI] = 0xabcd0001;
	cpu->s.gpr[R_RCX] = 4;
	interp_one(cpu);
	while (cpu->s.rip == CODE + 1)
		interp_one(cpu);
	assert_int_equal(cpu->s.gpr[R_RDI], 0xabcdfffd);
	assert_int_equal(ram.base[0x40000], 0x77);
	assert_int_equal(ram.base[0x40001], 0x77);
	assert_int_equal(ram.base[0x4ffff], 0x77);
	assert_int_equal(ram.base[0x4fffe], 0x77);
	assert_int_equal(ram.base[0x4fffd], 0);
}

static void test_changed_code(void **state)
{
	CODE_BYTES(0x40); /* inc ax */
	cpu->s.gpr[R_RAX] = 5;
	expect_step(CODE + 1);
	assert_int_equal(cpu->s.gpr[R_RAX], 6);
	ram.base[CODE] = 0x48; /* dec ax, without telling anybody */
	cpu->s.rip = CODE;
	expect_step(CODE + 1);
	assert_int_equal(cpu->s.gpr[R_RAX], 5);
}

static void test_end_of_segment(void **state)
{
	cpu->s.seg[SEG_CS].base = 0x30000;
	ram.base[0x3ffff] = 0x90;
	cpu->s.rip = 0xffff;
	expect_step(0x10000); /* EIP does not wrap ... */
	expect_exception(EXC_GP, 0x0000);
	/* ... and an instruction may not cross the limit. */
	cpu->s.seg[SEG_CS].base = 0x30000;
	ram.base[0x3ffff] = 0xb0; /* mov al, imm8 */
	cpu->s.rip = 0xffff;
	expect_exception(EXC_GP, 0xffff);
}

static void test_faults(void **state)
{
	CODE_BYTES(0xf6, 0xf1); /* div cl */
	cpu->s.gpr[R_RCX] = 0;
	expect_exception(EXC_DE, CODE);

	CODE_BYTES(0x0f, 0x0b);
	expect_exception(EXC_UD, CODE);

	CODE_BYTES(0x0f, 0x58, 0xc1); /* addps */
	cpu->s.cr0 |= X86_CR0_TS;
	expect_exception(EXC_NM, CODE);
	cpu->s.cr4 &= ~(uint64_t)X86_CR4_OSFXSR;
	cpu->s.rip = CODE;
	expect_exception(EXC_UD, CODE);

	CODE_BYTES(0x9b, 0xd9, 0xe8); /* fwait; fld1 */
	expect_step(CODE + 1);	      /* MP = 0: FWAIT ignores TS */
	expect_exception(EXC_NM, CODE + 1);
	cpu->s.cr0 |= X86_CR0_MP;
	cpu->s.rip = CODE;
	expect_exception(EXC_NM, CODE);
}

static void test_fpu_error(void **state)
{
	/* fninit; fldcw [DATA]; fldz; fld1; fdiv st0, st1; fnop; fnclex; fnop */
	static const uint16_t fcw = 0x37b; /* zero divide unmasked */

	assert_int_equal(ram_write(&ram, DATA, &fcw, 2), 0);
	CODE_BYTES(0xdb, 0xe3, 0xd9, 0x2e, DATA & 0xff, DATA >> 8, 0xd9, 0xee, 0xd9, 0xe8, 0xd8,
		   0xf1, 0xd9, 0xd0);
	for (unsigned i = 0; i < 5; i++)
		interp_one(cpu);
	assert_int_equal(cpu->s.rip, CODE + 12);
	assert_true(fpu_is_error_pending(cpu));
	expect_exception(EXC_MF, CODE + 12);

	CODE_BYTES(0xdb, 0xe2, 0xd9, 0xd0);
	expect_step(CODE + 2);
	assert_false(fpu_is_error_pending(cpu));
	expect_step(CODE + 4);

	/* sqrtps of a negative number with invalid unmasked; without OSXMMEXCPT it is #UD. */
	static const uint32_t mxcsr = 0x1f00, minus_one = 0xbf800000;

	assert_int_equal(ram_write(&ram, DATA, &mxcsr, 4), 0);
	assert_int_equal(ram_write(&ram, DATA + 4, &minus_one, 4), 0);
	CODE_BYTES(0x0f, 0xae, 0x16, DATA & 0xff, DATA >> 8, 0xf3, 0x0f, 0x51, 0x06,
		   (DATA + 4) & 0xff, (DATA + 4) >> 8);
	expect_step(CODE + 5);
	expect_exception(EXC_XM, CODE + 5);
	cpu->s.cr4 &= ~(uint64_t)X86_CR4_OSXMMEXCPT;
	cpu->s.rip = CODE + 5;
	expect_exception(EXC_UD, CODE + 5);
}

/* The pointers an x87 instruction leaves behind are the host's own: the guest must not see them. */
static void test_fpu_pointers(void **state)
{
	uint64_t fip;

	/* fld1; fxsave [DATA]; fnstenv [DATA + 512] */
	CODE_BYTES(0xd9, 0xe8, 0x0f, 0xae, 0x06, DATA & 0xff, DATA >> 8, 0xd9, 0x36, DATA & 0xff,
		   (DATA + 512) >> 8);
	memset(ram.base + DATA, 0xff, 600);
	for (unsigned i = 0; i < 3; i++)
		interp_one(cpu);
	memcpy(&fip, ram.base + DATA + 8, 8);
	assert_int_equal(fip, 0);
	memcpy(&fip, ram.base + DATA + 16, 8);
	assert_int_equal(fip, 0);
	memcpy(&fip, ram.base + DATA + 512 + 6, 8); /* 16-bit format: FIP, FOP, FDP */
	assert_int_equal(fip & 0xffffffffffff, 0);

	/* What the guest loads itself it gets back: fldenv, fnstenv, 16-bit real format. */
	static const uint16_t env[7] = { 0x37f, 0, 0xffff, 0x1234, 0x5678, 0x9abc, 0xd000 };

	assert_int_equal(ram_write(&ram, DATA, env, sizeof(env)), 0);
	CODE_BYTES(0xd9, 0x26, DATA & 0xff, DATA >> 8, 0xd9, 0x36, DATA & 0xff, (DATA + 512) >> 8);
	expect_step(CODE + 4);
	expect_step(CODE + 8);
	assert_memory_equal(ram.base + DATA + 512, env, sizeof(env));
	dbt_fpu_to_mem(cpu);
	memcpy(&fip, cpu->s.xsave + 8, 8);
	assert_int_equal(fip, 0x51234);
}

/*
 * The guest has x87, SSE and AVX.  What more the host has (AVX-512, AMX) is neither written to the guest's area, which
 * ends after AVX, nor changed in the registers.
 */
static void test_host_vector_state(void **state)
{
	static const uint8_t pattern[64] = { [0 ... 63] = 0x5a };
	uint8_t zmm[64] = { 0 };
	uint64_t mask = 0x1234, xcr0;
	uint32_t lo, hi;
	uint8_t after[256];

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	xcr0 = lo | (uint64_t)hi << 32;
	if ((xcr0 & 0xe6) != 0xe6) {
		print_message("skipped: the host has no AVX-512\n");
		return;
	}
	dbt_fpu_to_mem(cpu);
	memcpy(after, &cpu->s + 1, sizeof(after));
	__asm__ volatile("vmovdqu64 %0, %%zmm17; kmovq %1, %%k3" : : "m"(pattern), "m"(mask));
	dbt_fpu_to_regs(cpu);
	dbt_fpu_to_mem(cpu);
	mask = 0;
	__asm__ volatile("vmovdqu64 %%zmm17, %0; kmovq %%k3, %1" : "=m"(zmm), "=m"(mask));
	assert_memory_equal(zmm, pattern, 64);
	assert_int_equal(mask, 0x1234);
	assert_int_equal(cpu->s.xsave[512] & 0xf8, 0); /* XSTATE_BV */
	assert_memory_equal(after, &cpu->s + 1, sizeof(after));
}

/* `rep bsf` is BSF for a CPU without BMI1: of zero it leaves the destination, TZCNT gives the size. */
static void test_missing_feature(void **state)
{
	struct dbt_vm *v = cpu->vm;
	bool had = v->model.has[CPUF_BMI1];

	v->model.has[CPUF_BMI1] = false;
	CODE_BYTES(0xf3, 0x0f, 0xbc, 0xc1); /* tzcnt ax, cx */
	cpu->s.gpr[R_RAX] = 0x1111;
	cpu->s.gpr[R_RCX] = 0;
	expect_step(CODE + 4);
	assert_int_equal(cpu->s.gpr[R_RAX], 0x1111);
	assert_true(cpu->s.rflags & FL_ZF);
	v->model.has[CPUF_BMI1] = had;

	v->model.has[CPUF_POPCNT] = false;
	CODE_BYTES(0xf3, 0x0f, 0xb8, 0xc2); /* popcnt ax, dx: not in the cache yet */
	expect_exception(EXC_UD, CODE);
}

static void test_libc(void **state)
{
	uint8_t buf[64];

	for (unsigned i = 0; i < sizeof(buf); i++)
		buf[i] = (uint8_t)i;
	memmove(buf + 3, buf, 40);
	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(buf[i + 3], i);
	memmove(buf, buf + 3, 40);
	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(buf[i], i);
	memset(buf, 0xee, 5);
	assert_int_equal(buf[4], 0xee);
	assert_int_equal(buf[5], 5);
	assert_true(memcmp("abd", "abc", 3) > 0);
	assert_true(memcmp("abc", "abd", 3) < 0);
	assert_int_equal(memcmp("abcx", "abcy", 3), 0);
	assert_int_equal(memcmp("a", "b", 0), 0);
}

/* ---- the emitter, read back by the decoder ---- */

static uint8_t out[64];

static struct emit start(void)
{
	memset(out, 0xcc, sizeof(out));
	return (struct emit){ .p = out, .start = out, .end = out + sizeof(out) };
}

static struct insn read_back(const struct emit *e)
{
	struct insn in;

	assert_false(e->is_full);
	assert_int_equal(insn_decode(&in, out, sizeof(out), 64), DECODE_OK);
	assert_int_equal(in.len, e->p - e->start);
	return in;
}

static void test_emit_lea(void **state)
{
	static const int32_t disps[] = { 0, 1, -128, 127, 128, -129, 0x12345678, INT32_MIN };

	for (unsigned base = 0; base <= 16; base++)
		for (unsigned index = 0; index <= 16; index++)
			for (unsigned d = 0; d < ARRAY_SIZE(disps); d++) {
				unsigned scale = 1u << (d & 3), dst = (base * 7 + index) & 15;
				struct emit e = start();
				struct insn in;

				if (index == H_RSP)
					continue;
				emit_lea(&e, dst, base == 16 ? H_NONE : base,
					 index == 16 ? H_NONE : index, scale, disps[d], d & 4 ? 4 : 8);
				in = read_back(&e);
				assert_int_equal(in.desc->id, I_LEA);
				assert_int_equal(in.reg, dst);
				assert_int_equal(in.base, base == 16 ? 0xff : base);
				assert_int_equal(in.index, index == 16 ? 0xff : index);
				if (index < 16)
					assert_int_equal(in.scale, scale);
				assert_int_equal(in.disp, disps[d]);
				assert_int_equal(in.opsize, d & 4 ? 4 : 8);
				assert_false(in.rip_rel);
			}
}

static void test_emit_moves(void **state)
{
	static const uint64_t imms[] = {
		0,    1, 0x7fffffff, 0x80000000, 0xffffffff, 0xffffffff80000000, 0x123456789abcdef0,
		~0ULL
	};
	static const unsigned sizes[] = { 1, 2, 4, 8 };

	for (unsigned r = 0; r < 16; r++) {
		for (unsigned i = 0; i < ARRAY_SIZE(imms); i++) {
			struct emit e = start();
			struct insn in;

			emit_mov_ri(&e, r, imms[i]);
			in = read_back(&e);
			assert_int_equal(in.desc->id, I_MOV);
			assert_int_equal(in.opsize == 4 ? (uint32_t)in.imm : (uint64_t)in.imm, imms[i]);
			assert_int_equal(in.op[0].kind == OPND_GPR_OPCODE
						 ? (in.opcode & 7) + (in.rex_b ? 8 : 0)
						 : in.rm,
					 r);
		}
		for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
			struct emit e = start();
			struct insn in;

			emit_store_gs(&e, 0x12345, r, sizes[i]);
			in = read_back(&e);
			assert_int_equal(in.desc->id, I_MOV);
			assert_int_equal(in.reg, r);
			assert_false(insn_is_high8(&in, &in.op[1], in.reg));
			assert_int_equal(in.seg, SEG_GS);
			assert_int_equal(in.disp, 0x12345);
			assert_int_equal(in.mem_size, sizes[i]);
			assert_int_equal(in.base & in.index, 0xff);

			e = start();
			emit_load_gs(&e, r, -8, sizes[i]);
			in = read_back(&e);
			assert_int_equal(in.reg, r);
			assert_int_equal(in.disp, -8);
			assert_int_equal(in.mem_size, sizes[i]);

			e = start();
			emit_store_gs_imm(&e, 0x100, -2, sizes[i]);
			in = read_back(&e);
			assert_int_equal(in.mem_size, sizes[i]);
			assert_int_equal((int8_t)in.imm, -2);
		}
		for (unsigned src = 0; src < 16; src++) {
			struct emit e = start();
			struct insn in;

			emit_mov_rr(&e, r, src, 4); /* never left out: it clears the upper half */
			in = read_back(&e);
			assert_int_equal(in.desc->id, I_MOV);
			assert_int_equal(in.reg, r);
			assert_int_equal(in.rm, src);
			assert_int_equal(in.opsize, 4);
		}
	}
}

static void test_emit_full(void **state)
{
	struct emit e = { .p = out, .start = out, .end = out + 3, .host = emit_host_reg };

	emit_mov_ri(&e, H_RAX, 1);
	assert_true(e.is_full);
	assert_ptr_equal(e.p, e.end);
}

int main(void)
{
#define MACHINE_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		MACHINE_TEST(test_single_step),	       MACHINE_TEST(test_code_breakpoint),
		MACHINE_TEST(test_host_debug),	       MACHINE_TEST(test_sti_shadow),
		MACHINE_TEST(test_rep_movs_in_parts),  MACHINE_TEST(test_rep_movs_overlap),
		MACHINE_TEST(test_rep_backward_wraps), MACHINE_TEST(test_changed_code),
		MACHINE_TEST(test_end_of_segment),     MACHINE_TEST(test_faults),
		MACHINE_TEST(test_fpu_error),	       MACHINE_TEST(test_fpu_pointers),
		MACHINE_TEST(test_host_vector_state),  MACHINE_TEST(test_missing_feature),
		cmocka_unit_test(test_libc),	       cmocka_unit_test(test_emit_lea),
		cmocka_unit_test(test_emit_moves),     cmocka_unit_test(test_emit_full),
	};

	if (dbt_signal_init(NULL) < 0)
		return 1;
	sigaction(SIGFPE, NULL, &engine_sigfpe);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
