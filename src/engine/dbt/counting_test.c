/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counting mode: the same guest interpreted and translated retires the same number of instructions, at its end, at each port
 * access, at each interrupt and at every count that it is stopped at, and has the same registers and memory there.
 *
 * The guest, 64-bit code in ring 0, faults, repeats, changes itself, calls and is interrupted where the test says.
 */
#include "base/unit.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"

enum {
	PML4 = 0x2000,
	PDPT = 0x3000,
	GDT = 0x4000,
	IDT = 0x5000,
	STACK = 0x8000,
	CODE = 0x10000,
	IRQ = 0x31,
	RAM_BYTES = 2 * MIB,
};

// clang-format off
__asm__(".pushsection .rodata\n"
	"counting_code:\n"
	"	mov $120, %r12d\n"
	"1:	mov %r12, %rdi\n"
	"	call 10f\n"
	"	add %rax, 0x9010\n"
	"	mov $0xa000, %edi\n	mov %r12d, %ecx\n	and $0x3f, %ecx\n	mov $0x5a, %al\n	rep stosb\n"
	"	mov $0xa000, %esi\n	mov $0xafd0, %edi\n	mov $100, %ecx\n	rep movsb\n"
	"	mov $0xb000, %esi\n	mov $0xc000, %edi\n	mov $90, %ecx\n	repe cmpsb\n"
	"	xor %ecx, %ecx\n	xor %edx, %edx\n	mov $7, %eax\n	div %rcx\n"
	"	ud2\n"
	"	mov $0x7fffffff00, %rbx\n	incq 0x9040\n	mov (%rbx), %rax\n"
	"	pushfq\n	cli\n	incq 0x9018\n	nop\n	nop\n	popfq\n"
	"	int $0x30\n"
	"	mov $0x70, %edx\n	out %al, %dx\n	in %dx, %al\n	mov $3, %ecx\n	mov $0xa000, %esi\n	rep outsb\n"
	"	xor %eax, %eax\n	cpuid\n"
	"	lea 10f(%rip), %rbx\n	mov $3, %edi\n	call *%rbx\n"
	"	mov %r12b, 3f+1(%rip)\n"
	"3:	mov $1, %al\n	add %al, 0x9020\n"
	"	mov $50, %ecx\n"
	"2:	addq $3, 0x9028\n	mov 0x9030, %rax\n	add %rax, 0x9038\n	loop 2b\n"
	"	mov $30, %ecx\n	mov $0xd000, %edi\n"
	"4:	mov %rcx, (%rdi)\n	add $8, %rdi\n	dec %ecx\n	jnz 4b\n"
	"	movq %r12, %xmm0\n	paddq %xmm0, %xmm1\n"
	"	cli\n	nop\n	nop\n	sti\n	nop\n	lock incq 0x9048\n"
	"	dec %r12d\n	jnz 1b\n"
	"	hlt\n"
	"10:	push %rbp\n	mov %rsp, %rbp\n	xor %eax, %eax\n"
	"11:	add %rdi, %rax\n	dec %rdi\n	jg 11b\n"
	"	pop %rbp\n	ret\n"
	"counting_de:	incq 0x9100\n	addq $3, (%rsp)\n	iretq\n"
	"counting_ud:	incq 0x9108\n	addq $2, (%rsp)\n	iretq\n"
	"counting_pf:	incq 0x9110\n	add $8, %rsp\n	addq $3, (%rsp)\n	iretq\n"
	"counting_int:	incq 0x9118\n	iretq\n"
	"counting_irq:	push %rax\n	incq 0x9120\n	mov 0x9120, %rax\n	add %rax, 0x9128\n	pop %rax\n	iretq\n"
	"counting_end:\n"
	".popsection\n");
// clang-format on
extern const uint8_t counting_code[], counting_de[], counting_ud[], counting_pf[], counting_int[],
	counting_irq[], counting_end[];

/* What a run was seen to do: compared word by word. */
struct trace {
	size_t n;
	uint64_t w[65536];
};

struct run {
	struct guest_ram ram;
	struct cpu_model model;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;
	struct dbt_cpu *cpu;
	struct trace *t;
};

static void note(struct trace *t, uint64_t v)
{
	assert_true(t->n < ARRAY_SIZE(t->w));
	t->w[t->n++] = v;
}

static int on_exit_(void *ctx, struct vcpu_exit *x)
{
	struct run *r = ctx;

	assert_int_equal(x->kind, EXIT_PIO);
	note(r->t, engine_dbt.count(r->vcpu));
	note(r->t, x->data);
	if (!x->is_write)
		x->data = 0x42;
	return 0;
}

static int intr_ack(void *ctx)
{
	struct run *r = ctx;

	note(r->t, engine_dbt.count(r->vcpu));
	engine_dbt.set_intr(r->vcpu, false);
	return IRQ;
}

static void put_gate(struct run *r, unsigned vector, const uint8_t *handler)
{
	uint32_t at = CODE + (uint32_t)(handler - counting_code);
	uint32_t gate[4] = { (at & 0xffff) | 8u << 16, (at & 0xffff0000) | 0x8e00, 0, 0 };

	memcpy(r->ram.base + IDT + 16 * vector, gate, sizeof(gate));
}

static void fill_guest(struct run *r)
{
	const uint64_t gdt[] = { 0, 0x00a09b0000000000, 0x00c0930000000000 };

	memcpy(r->ram.base + CODE, counting_code, (size_t)(counting_end - counting_code));
	memcpy(r->ram.base + PML4, &(uint64_t){ PDPT | 0x63 }, 8);
	memcpy(r->ram.base + PDPT, &(uint64_t){ 0xe3 }, 8);
	memcpy(r->ram.base + GDT, gdt, sizeof(gdt));
	put_gate(r, 0, counting_de);
	put_gate(r, 6, counting_ud);
	put_gate(r, 14, counting_pf);
	put_gate(r, 0x30, counting_int);
	put_gate(r, IRQ, counting_irq);
}

static struct sigaction engine_sigfpe; /* cmocka puts its own in place at each test */

static void start(struct run *r, struct engine_config cfg, struct trace *t)
{
	struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = intr_ack, .ctx = r };
	struct x86_state s;
	struct error err = { "" };

	sigaction(SIGFPE, &engine_sigfpe, NULL);
	memset(r, 0, sizeof(*r));
	r->t = t;
	t->n = 0;
	cfg.ram = &r->ram;
	cfg.model = &r->model;
	cfg.vcpus = 1;
	cfg.is_counting = true;
	assert_int_equal(ram_create(&r->ram, RAM_BYTES, 0, &err), 0);
	assert_int_equal(cpu_model_init(&r->model, "host", 1, &err), 0);
	assert_int_equal(engine_dbt.vm_create(&r->vm, &cfg, &err), 0);
	assert_int_equal(engine_dbt.vcpu_create(&r->vcpu, r->vm, 0, &up, &err), 0);
	r->cpu = (struct dbt_cpu *)(void *)r->vcpu;
	fill_guest(r);
	engine_dbt.get_state(r->vcpu, &s);
	s.cr3 = PML4;
	s.cr4 = X86_CR4_PAE | X86_CR4_OSFXSR;
	s.cr0 = (s.cr0 & ~(uint64_t)(X86_CR0_TS | X86_CR0_EM)) | X86_CR0_PE | X86_CR0_PG | X86_CR0_WP;
	s.efer = X86_EFER_LME | X86_EFER_LMA;
	s.rflags = 2 | X86_FL_IF;
	s.rip = CODE;
	s.gpr[R_RSP] = STACK;
	s.gdtr.base = GDT;
	s.gdtr.limit = 23;
	s.idtr.base = IDT;
	s.idtr.limit = 0xfff;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s.seg[i] = (struct x86_seg){ .selector = 16, .limit = 0xffffffff, .attr = 0xc093 };
	s.seg[SEG_CS] = (struct x86_seg){ .selector = 8, .limit = 0xffffffff, .attr = 0xa09b };
	assert_int_equal(engine_dbt.set_state(r->vcpu, &s, &err), 0);
}

static void finish(struct run *r)
{
	engine_dbt.vcpu_destroy(r->vcpu);
	engine_dbt.vm_destroy(r->vm);
	ram_destroy(&r->ram);
}

static uint64_t hash(uint64_t h, const void *p, size_t bytes)
{
	const uint64_t *w = p;

	for (size_t i = 0; i < bytes / 8; i++)
		h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL, h ^= h >> 29;
	return h;
}

/* Registers and memory, but for the time. */
static uint64_t state_hash(struct run *r)
{
	static struct x86_state s;

	engine_dbt.get_state(r->vcpu, &s);
	s.tsc = 0;
	uint64_t h = hash(1, s.gpr, sizeof(s.gpr)) ^ s.rip ^ s.rflags << 32 ^ s.interrupt_shadow;

#ifndef __SANITIZE_ADDRESS__ /* whose own functions use vector registers within the engine */
	h = hash(h, s.xsave + 160, 256);
#endif
	return hash(h, r->ram.base, RAM_BYTES);
}

static uint64_t rng(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* Runs to HLT, stopped at counts that depend on @seed only (0: at none), with an interrupt at every third of them. */
static void trace_run(struct engine_config cfg, uint64_t seed, struct trace *t)
{
	struct run r;
	struct error err = { "" };
	uint64_t x = seed, at = 0;
	enum run_result result = RUN_KICKED;

	start(&r, cfg, t);
	for (unsigned i = 0; result == RUN_KICKED; i++) {
		if (seed) {
			at += rng(&x) % (rng(&x) % 3 ? 700 : 9) + 1;
			engine_dbt.stop_at(r.vcpu, at);
		}
		result = engine_dbt.vcpu_run(r.vcpu, &err);
		if (result == RUN_KICKED)
			assert_int_equal(engine_dbt.count(r.vcpu), at);
		note(t, engine_dbt.count(r.vcpu));
		note(t, state_hash(&r));
		if (i % 3 == 2)
			engine_dbt.set_intr(r.vcpu, true);
	}
	assert_string_equal(err.text, "");
	assert_int_equal(result, RUN_HALTED);
	finish(&r);
}

static const struct engine_config interpreted = { .use_interp_only = true };
static struct trace *want, *got;

static void compare(struct engine_config cfg, uint64_t seed)
{
	trace_run(cfg, seed, got);
	assert_int_equal(want->n, got->n);
	for (size_t i = 0; i < want->n; i++)
		if (want->w[i] != got->w[i])
			fail_msg("seed %llu: word %zu of %zu is %llx, interpreted %llx",
				 (unsigned long long)seed, i, want->n,
				 (unsigned long long)got->w[i], (unsigned long long)want->w[i]);
}

static const struct engine_config configs[] = {
	{ .is_strict = true },
	{ .is_strict = true, .without = ENGINE_COALESCING | ENGINE_RETURNS },
	{ .is_strict = true, .without = ENGINE_IN_PLACE | ENGINE_CHAINING },
	{ .is_strict = true, .without = ENGINE_CODE_ROOM },
	{ .check_every = 1 },
};

static void test_total(void **state)
{
	trace_run(interpreted, 0, want);
	assert_true(want->n > 2 * 5 * 120);
	for (unsigned i = 0; i < ARRAY_SIZE(configs); i++)
		compare(configs[i], 0);
}

static void test_stops(void **state)
{
	for (uint64_t seed = 1; seed <= 6; seed++) {
		trace_run(interpreted, seed, want);
		assert_true(want->n > 2 * 5 * 120 + 100);
		for (unsigned i = 0; i < ARRAY_SIZE(configs); i++)
			compare(configs[i], seed);
	}
}

/* One instruction at a time: each step but those that only begin with a fault counts one. */
static void test_each(void **state)
{
	struct run r;
	struct error err = { "" };

	for (unsigned translated = 0; translated < 2; translated++) {
		start(&r, translated ? configs[0] : interpreted, got);
		for (uint64_t at = 1; at < 2000; at++) {
			engine_dbt.stop_at(r.vcpu, at);
			assert_int_equal(engine_dbt.vcpu_run(r.vcpu, &err), RUN_KICKED);
			assert_int_equal(engine_dbt.count(r.vcpu), at);
		}
		/* A count that has passed: nothing is executed. */
		uint64_t before = state_hash(&r);

		engine_dbt.stop_at(r.vcpu, 5);
		assert_int_equal(engine_dbt.vcpu_run(r.vcpu, &err), RUN_KICKED);
		assert_int_equal(engine_dbt.count(r.vcpu), 1999);
		assert_int_equal(state_hash(&r), before);
		engine_dbt.stop_at(r.vcpu, UINT64_MAX);
		assert_int_equal(engine_dbt.vcpu_run(r.vcpu, &err), RUN_HALTED);
		finish(&r);
	}
}

static int setup(void **state)
{
	if (dbt_signal_init(NULL) < 0)
		return -1;
	sigaction(SIGFPE, NULL, &engine_sigfpe);
	want = calloc(1, sizeof(*want));
	got = calloc(1, sizeof(*got));
	return want && got ? 0 : -1;
}

static int teardown(void **state)
{
	free(want);
	free(got);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_total),
		cmocka_unit_test(test_stops),
		cmocka_unit_test(test_each),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
