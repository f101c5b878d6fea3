/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kvm engine against the real /dev/kvm, with guests of a few instructions.  Where /dev/kvm is
 * missing every test that needs it says so and counts as skipped.
 */
#include "base/unit.h"

#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"
#include "engine/step.h"

#define MEM (1 * MIB)

/* ---- guest code; 16-bit real mode, loaded at its own label's place from 1000H on ---- */
#define GUEST(name, body)                                                                          \
	extern const uint8_t guest_##name[], guest_##name##_end[];                                 \
	__asm__(".pushsection .rodata\n guest_" #name ":\n .code16\n" body "\n guest_" #name       \
		"_end:\n .code64\n .popsection\n")

GUEST(ports, "mov $0x1234, %ax; out %ax, $0x10; in $0x20, %al; mov $0x300, %dx; out %al, %dx\n"
	     "mov $0x2000, %si; mov $3, %cx; mov $0x40, %dx; cld; rep outsb\n"
	     "mov $0x2010, %di; mov $2, %cx; mov $0x50, %dx; rep insw\n"
	     "out %al, $0xf4");
/* DS at a hole, ES at ROM */
GUEST(mmio, "movl $0x11223344, (0x10); mov (0x18), %ebx; movw $0x55, (0x20)\n"
	    "movb $0xee, %es:(0); mov %es:(0), %cl; out %al, $0xf4");
GUEST(spin, "1: inc %ax; jmp 1b");
GUEST(window, "cli; out %al, $0x10; mov $100, %cx; 1: loop 1b; sti; nop; 2: jmp 2b");
GUEST(halt, "sti; 1: hlt; jmp 1b");
GUEST(handler, "push %ax; mov $0x77, %al; out %al, $0x70; pop %ax; iret");
GUEST(nmi, "out %al, $0x10; 1: jmp 1b");
GUEST(dirty, "mov $0x1000, %ax; mov %ax, %ds; 1: movb $1, (0x5000); movb $1, (0x9fff)\n"
	     "out %al, $0x10; jmp 1b");
GUEST(steps, "inc %ax; inc %bx; inc %cx; inc %dx; out %al, $0xf4");

/* long mode, flat */
#define GUEST64(name, body)                                                                        \
	extern const uint8_t guest_##name[], guest_##name##_end[];                                 \
	__asm__(".pushsection .rodata\n guest_" #name ":\n .code64\n" body "\n guest_" #name       \
		"_end:\n .popsection\n")
GUEST64(triple, "lidt 0x2000; ud2");
GUEST64(cx16, "lock cmpxchg16b (%rsi); setz %al; out %al, $0xf4");
/* rdi: LAPIC.  An APIC access, then INIT and SIPI to the other CPU, then wait for its mark. */
GUEST64(smp, "movl $0x1ff, 0xf0(%rdi); movl $0x1000000, 0x310(%rdi); movl $0x4500, 0x300(%rdi)\n"
	     "movl $0x1000000, 0x310(%rdi); movl $0x4609, 0x300(%rdi)\n"
	     "1: cmpw $0x5a5a, 0x8000; jne 1b; out %al, $0xf4");
GUEST(ap, "xor %ax, %ax; mov %ax, %ds; movw $0x5a5a, (0x8000); 1: hlt; jmp 1b");
GUEST64(exchange,
	"mov $1, %eax; cvtsi2sd %eax, %xmm0; fninit; fldz; 1: mov $50, %ecx\n"
	"2: rol $1, %rbx; add %rcx, %rbx; addsd %xmm0, %xmm1; fld1; faddp; dec %ecx; jnz 2b\n"
	"fstl (%rsi); out %al, $0x10; jmp 1b");
/* Take interrupts; the handler ends them at the LAPIC. */
GUEST64(wait64, "movl $0x1ff, 0xf0(%rdi); sti; out %al, $0x10; 1: hlt; jmp 1b");
GUEST64(isr64, "out %al, $0x70; movl $0, 0xb0(%rdi); out %al, $0xf4; iretq");

struct machine_double {
	struct guest_ram ram;
	struct cpu_model model;
	struct engine_vm *vm;
	struct engine_vcpu *cpu[2];
	struct x86_state s;
	struct error err;
	/* What happened. */
	unsigned n;
	struct vcpu_exit seen[64];
	_Atomic unsigned handled;
	int vector; /* next intr_ack */
	unsigned acks;
	unsigned eois;
	uint8_t eoi_vector;
	_Atomic bool is_stop_wanted;
};

static const char *why_no_kvm(void)
{
	static char text[600];
	struct machine_double m = { 0 };
	struct engine_config cfg = { .ram = &m.ram, .model = &m.model, .vcpus = 1 };

	if (ram_create(&m.ram, MEM, 0, &m.err) < 0)
		return "no memory";
	if (engine_kvm.vm_create(&m.vm, &cfg, &m.err) < 0)
		snprintf(text, sizeof(text), "%s", m.err.text);
	engine_kvm.vm_destroy(m.vm);
	ram_destroy(&m.ram);
	return text[0] ? text : NULL;
}

#define NEEDS_KVM()                                                                                \
	do {                                                                                       \
		const char *why_ = why_no_kvm();                                                   \
		if (why_) {                                                                        \
			printf("SKIP %s: %s\n", __func__, why_);                                   \
			skip();                                                                    \
		}                                                                                  \
	} while (0)

static int on_exit_double(void *ctx, struct vcpu_exit *x)
{
	struct machine_double *m = ctx;

	if (x->kind == EXIT_EOI) {
		m->eois++;
		m->eoi_vector = (uint8_t)x->addr;
		return 0;
	}
	if (x->kind == EXIT_PIO && x->addr == 0x70) {
		m->handled++;
		m->is_stop_wanted = true;
	}
	if (x->kind == EXIT_PIO && x->addr == 0xf4)
		m->is_stop_wanted = true;
	if (m->n < ARRAY_SIZE(m->seen))
		m->seen[m->n++] = *x;
	if (!x->is_write)
		x->data = x->kind == EXIT_PIO ? 0xa0 + m->n : 0xdeadbeef;
	if (m->is_stop_wanted)
		engine_kvm.vcpu_kick(m->cpu[0]);
	return 0;
}

static int intr_ack_double(void *ctx)
{
	struct machine_double *m = ctx;

	m->acks++;
	engine_kvm.set_intr(m->cpu[0], false);
	return m->vector;
}

static void load(struct machine_double *m, gpa_t gpa, const uint8_t *code, const uint8_t *end)
{
	assert_int_equal(ram_write(&m->ram, gpa, code, (uint64_t)(end - code)), 0);
}
#define LOAD(m, gpa, name) load(m, gpa, guest_##name, guest_##name##_end)

/* Real mode, flat low segments, stack at 7000H, IP 1000H. */
static void real_mode(struct x86_state *s)
{
	x86_state_reset(s, true);
	for (unsigned i = 0; i < 6; i++) {
		s->seg[i].selector = 0;
		s->seg[i].base = 0;
	}
	s->rip = 0x1000;
	s->gpr[R_RSP] = 0x7000;
}

static void power_on(struct machine_double *m, unsigned cpus)
{
	struct vcpu_up up = { .on_exit = on_exit_double, .intr_ack = intr_ack_double, .ctx = m };
	struct engine_config cfg = { .ram = &m->ram, .model = &m->model, .vcpus = cpus };

	memset(m, 0, sizeof(*m));
	m->vector = -1;
	assert_int_equal(cpu_model_init(&m->model, "host", cpus, &m->err), 0);
	assert_int_equal(ram_create(&m->ram, MEM, 64 * KIB, &m->err), 0);
	uint8_t *rom = ram_add_rom(&m->ram, 0xc0000000, 64 * KIB, &m->err);
	assert_non_null(rom);
	rom[0] = 0x5a;
	if (engine_kvm.vm_create(&m->vm, &cfg, &m->err) < 0)
		fail_msg("%s", m->err.text);
	for (unsigned i = 0; i < cpus; i++) {
		if (engine_kvm.vcpu_create(&m->cpu[i], m->vm, i, &up, &m->err) < 0)
			fail_msg("%s", m->err.text);
		x86_state_reset(&m->s, i == 0);
		if (engine_kvm.set_state(m->cpu[i], &m->s, &m->err) < 0)
			fail_msg("%s", m->err.text);
		assert_int_equal(engine_kvm.set_lapic(m->cpu[i], NULL), 0);
	}
	real_mode(&m->s);
	if (engine_kvm.set_state(m->cpu[0], &m->s, &m->err) < 0)
		fail_msg("%s", m->err.text);
}

static void power_off(struct machine_double *m)
{
	engine_kvm.vcpu_destroy(m->cpu[0]);
	engine_kvm.vcpu_destroy(m->cpu[1]);
	engine_kvm.vm_destroy(m->vm);
	ram_destroy(&m->ram);
}

static enum run_result run(struct machine_double *m)
{
	enum run_result r = engine_kvm.vcpu_run(m->cpu[0], &m->err);

	if (r == RUN_FAILED)
		fail_msg("%s", m->err.text);
	engine_kvm.get_state(m->cpu[0], &m->s);
	return r;
}

/* ---- the tests ---- */

static void test_probe(void **state)
{
	struct engine_probe p;

	engine_kvm.probe(&p);
	printf("probe: %s (%.2f MIPS): %s\n", p.is_usable ? "usable" : "refused", p.mips, p.reason);
	assert_true(p.reason[0]);
	assert_true(p.is_usable ? p.mips >= 50 : true);
}

static void test_ports(void **state)
{
	struct machine_double m;

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, ports);
	ram_write(&m.ram, 0x2000, "xyz", 3);
	assert_int_equal(run(&m), RUN_KICKED);
	assert_int_equal(m.n, 9);
	assert_true(m.seen[0].is_write && m.seen[0].addr == 0x10 && m.seen[0].size == 2 &&
		    m.seen[0].data == 0x1234);
	assert_true(!m.seen[1].is_write && m.seen[1].addr == 0x20 && m.seen[1].size == 1);
	assert_true(m.seen[2].is_write && m.seen[2].addr == 0x300 && m.seen[2].data == 0xa2);
	for (unsigned i = 0; i < 3; i++)
		assert_true(m.seen[3 + i].addr == 0x40 && m.seen[3 + i].data == (uint64_t) "xyz"[i]);
	uint16_t in[2];
	ram_read(&m.ram, 0x2010, in, 4);
	assert_int_equal(in[0], 0xa7);
	assert_int_equal(in[1], 0xa8);
	/* The kick came inside the last OUT, and that OUT is over: invariant 1. */
	assert_int_equal(m.s.rip, 0x1000 + (guest_ports_end - guest_ports));
	power_off(&m);
}

static void test_mmio(void **state)
{
	struct machine_double m;
	uint8_t *rom;

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, mmio);
	m.s.seg[3].base = 0xd0000000;
	m.s.seg[0].base = 0xc0000000;
	assert_int_equal(engine_kvm.set_state(m.cpu[0], &m.s, &m.err), 0);
	assert_int_equal(run(&m), RUN_KICKED);
	assert_int_equal(m.n, 4);
	assert_true(m.seen[0].kind == EXIT_MMIO && m.seen[0].is_write && m.seen[0].size == 4 &&
		    m.seen[0].addr == 0xd0000010 && m.seen[0].data == 0x11223344);
	assert_true(m.seen[1].kind == EXIT_MMIO && !m.seen[1].is_write && m.seen[1].size == 4 &&
		    m.seen[1].addr == 0xd0000018);
	assert_true(m.seen[2].is_write && m.seen[2].size == 2 && m.seen[2].data == 0x55);
	assert_int_equal(m.s.gpr[R_RBX], 0xdeadbeef);
	/* ROM: read directly, written never */
	assert_int_equal(m.s.gpr[R_RCX] & 0xff, 0x5a);
	rom = ram_ptr(&m.ram, 0xc0000000, 1);
	assert_int_equal(*rom, 0x5a);
	power_off(&m);
}

struct later {
	struct machine_double *m;
	void (*fn)(struct machine_double *m);
	unsigned ms;
	pthread_t thread;
	struct engine_vcpu *other; /* of dbt */
};

static void *later_main(void *arg)
{
	struct later *l = arg;
	struct timespec t = { .tv_sec = l->ms / 1000, .tv_nsec = l->ms % 1000 * 1000000L };

	nanosleep(&t, NULL);
	l->fn(l->m);
	return NULL;
}

static void later(struct later *l, struct machine_double *m, unsigned ms,
		  void (*fn)(struct machine_double *))
{
	*l = (struct later){ .m = m, .fn = fn, .ms = ms };
	assert_int_equal(pthread_create(&l->thread, NULL, later_main, l), 0);
}

static void kick_first(struct machine_double *m)
{
	engine_kvm.vcpu_kick(m->cpu[0]);
}

static void raise_intr(struct machine_double *m)
{
	engine_kvm.set_intr(m->cpu[0], true);
}

static void raise_nmi(struct machine_double *m)
{
	engine_kvm.raise_nmi(m->cpu[0]);
}

static void test_kick(void **state)
{
	struct machine_double m;
	struct later l;

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, spin);
	for (unsigned i = 0; i < 20; i++) { /* before, around and inside of KVM_RUN */
		later(&l, &m, i % 4 * 2, kick_first);
		assert_int_equal(run(&m), RUN_KICKED);
		pthread_join(l.thread, NULL);
	}
	assert_true(m.s.gpr[R_RAX] != 0);
	/* A kick before vcpu_run is not lost, and one kick is one return. */
	engine_kvm.vcpu_kick(m.cpu[0]);
	assert_int_equal(run(&m), RUN_KICKED);
	power_off(&m);
}

static void set_vector(struct machine_double *m, unsigned vector, uint16_t ip)
{
	uint16_t entry[2] = { ip, 0 };

	assert_int_equal(ram_write(&m->ram, vector * 4, entry, 4), 0);
}

/* The line is high while interrupts are off: delivery waits for the window. */
static void test_interrupt_window(void **state)
{
	struct machine_double m;

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, window);
	LOAD(&m, 0x1800, handler);
	set_vector(&m, 0x21, 0x1800);
	m.vector = 0x21;
	engine_kvm.set_intr(m.cpu[0], true);
	assert_int_equal(run(&m), RUN_KICKED);
	assert_int_equal(m.acks, 1);
	assert_int_equal(m.handled, 1);
	assert_int_equal(m.seen[0].addr, 0x10); /* the first instructions ran before */
	assert_int_equal(m.seen[1].data, 0x77);
	power_off(&m);
}

static void test_interrupt_wakes(void **state)
{
	struct machine_double m;
	struct later l;

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, halt);
	LOAD(&m, 0x1800, handler);
	set_vector(&m, 0x21, 0x1800);
	m.vector = 0x21;
	later(&l, &m, 20, raise_intr);
	assert_int_equal(run(&m), RUN_KICKED);
	pthread_join(l.thread, NULL);
	assert_int_equal(m.acks, 1);
	assert_int_equal(m.handled, 1);
	/* An interrupt that went away again is none. */
	m.vector = -1;
	m.is_stop_wanted = false;
	engine_kvm.set_intr(m.cpu[0], true);
	later(&l, &m, 20, kick_first);
	assert_int_equal(run(&m), RUN_KICKED);
	pthread_join(l.thread, NULL);
	assert_int_equal(m.acks, 2);
	assert_int_equal(m.handled, 1);
	assert_int_equal(m.s.mp_state, MP_HALTED);
	power_off(&m);
}

static void test_nmi(void **state)
{
	struct machine_double m;
	struct later l;

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, nmi);
	LOAD(&m, 0x1800, handler);
	set_vector(&m, 2, 0x1800);
	later(&l, &m, 10, raise_nmi);
	assert_int_equal(run(&m), RUN_KICKED);
	pthread_join(l.thread, NULL);
	assert_int_equal(m.handled, 1);
	power_off(&m);
}

/* Identity-mapped long mode with 2 MiB pages up to 4 GiB, code at 1000H, IDT at 6000H. */
static void long_mode(struct machine_double *m)
{
	struct x86_state *s = &m->s;
	uint64_t e = 0xb000 | 3;

	ram_write(&m->ram, 0xa000, &e, 8);
	for (unsigned i = 0; i < 4; i++) {
		e = (0xc000 + i * 0x1000) | 3;
		ram_write(&m->ram, 0xb000 + i * 8, &e, 8);
		for (uint64_t j = 0; j < 512; j++) {
			e = (uint64_t)i << 30 | j << 21 | 0x83;
			ram_write(&m->ram, 0xc000 + i * 0x1000 + j * 8, &e, 8);
		}
	}
	const uint64_t gdt[3] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	ram_write(&m->ram, 0x5000, gdt, sizeof(gdt));
	s->gdtr.base = 0x5000;
	s->gdtr.limit = sizeof(gdt) - 1;
	s->idtr.base = 0x6000;
	s->idtr.limit = 0xfff;
	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = (struct x86_seg){ .limit = 0xffffffff,
					      .selector = 16,
					      .attr = 0x93 | SEG_ATTR_G | SEG_ATTR_DB };
	s->seg[1] = (struct x86_seg){ .limit = 0xffffffff,
				      .selector = 8,
				      .attr = 0x9b | SEG_ATTR_G | SEG_ATTR_L };
	s->cr0 = X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_PG;
	s->cr3 = 0xa000;
	s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR;
	s->efer = X86_EFER_LME | X86_EFER_LMA;
	s->rip = 0x1000;
	s->gpr[R_RSP] = 0x7000;
	s->gpr[R_RDI] = KVM_APIC_PAGE;
}

static void set_gate64(struct machine_double *m, unsigned vector, uint64_t ip)
{
	uint64_t gate[2] = { (ip & 0xffff) | 8 << 16 | 0x8eULL << 40 | (ip >> 16 & 0xffff) << 48,
			     ip >> 32 };

	ram_write(&m->ram, 0x6000 + vector * 16, gate, 16);
}

static void start64(struct machine_double *m)
{
	if (engine_kvm.set_state(m->cpu[0], &m->s, &m->err) < 0)
		fail_msg("%s", m->err.text);
}

static void send_level_msi(struct machine_double *m)
{
	engine_kvm.deliver_msi(m->vm, 0xfee00000, 0xc000 | 0x35); /* fixed, level, asserted */
}

static void send_edge_msi(struct machine_double *m)
{
	engine_kvm.deliver_msi(m->vm, 0xfee00000, 0x36);
}

static void test_msi_and_eoi(void **state)
{
	struct machine_double m;
	struct later l;

	NEEDS_KVM();
	power_on(&m, 1);
	long_mode(&m);
	LOAD(&m, 0x1000, wait64);
	LOAD(&m, 0x1800, isr64);
	set_gate64(&m, 0x35, 0x1800);
	set_gate64(&m, 0x36, 0x1800);
	start64(&m);
	later(&l, &m, 20, send_edge_msi);
	assert_int_equal(run(&m), RUN_KICKED);
	pthread_join(l.thread, NULL);
	assert_int_equal(m.handled, 1);
	m.is_stop_wanted = false;
	later(&l, &m, 20, send_level_msi);
	while (m.handled < 2 || m.seen[m.n - 1].addr != 0xf4)
		assert_int_equal(run(&m), RUN_KICKED);
	pthread_join(l.thread, NULL);
	assert_int_equal(m.handled, 2);
	assert_int_equal(m.eois, 1); /* the level one only */
	assert_int_equal(m.eoi_vector, 0x35);
	power_off(&m);
}

static void *second_cpu(void *arg)
{
	struct machine_double *m = arg;
	struct error err;

	return (void *)(intptr_t)engine_kvm.vcpu_run(m->cpu[1], &err);
}

static void test_smp(void **state)
{
	struct machine_double m;
	struct x86_state ap;
	pthread_t t;
	void *r;

	NEEDS_KVM();
	power_on(&m, 2);
	engine_kvm.get_state(m.cpu[1], &ap);
	assert_int_equal(ap.mp_state, MP_WAIT_SIPI);
	long_mode(&m);
	LOAD(&m, 0x1000, smp);
	LOAD(&m, 0x9000, ap);
	start64(&m);
	assert_int_equal(pthread_create(&t, NULL, second_cpu, &m), 0);
	assert_int_equal(run(&m), RUN_KICKED);
	engine_kvm.vcpu_kick(m.cpu[1]);
	pthread_join(t, &r);
	assert_int_equal((intptr_t)r, RUN_KICKED);
	engine_kvm.get_state(m.cpu[1], &ap);
	assert_int_equal(ap.mp_state, MP_HALTED);
	power_off(&m);
}

static void test_dirty_log(void **state)
{
	struct machine_double m;
	uint64_t bitmap[(MEM + 64 * KIB) / 4096 / 64 + 1];

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, dirty);
	assert_int_equal(engine_kvm.dirty_start(m.vm, &m.err), 0);
	assert_int_equal(engine_kvm.dirty_collect(m.vm, bitmap, &m.err), 0);
	for (unsigned round = 0; round < 3; round++) {
		m.is_stop_wanted = true;
		assert_int_equal(run(&m), RUN_KICKED);
		ram_write(&m.ram, 0x12345, "x", 1); /* a device */
		assert_int_equal(engine_kvm.dirty_collect(m.vm, bitmap, &m.err), 0);
		/* DS is 1000H: linear 15000H and 19fffH */
		assert_int_equal(bitmap[0], 1ULL << 0x15 | 1ULL << 0x19 | 1ULL << 0x12);
		for (unsigned i = 1; i < MEM / 4096 / 64; i++)
			assert_int_equal(bitmap[i], 0);
	}
	engine_kvm.dirty_stop(m.vm);
	power_off(&m);
}

static void test_debug(void **state)
{
	struct machine_double m;
	struct engine_debug d = { .single_step = true };

	NEEDS_KVM();
	power_on(&m, 1);
	LOAD(&m, 0x1000, steps);
	assert_int_equal(engine_kvm.set_debug(m.cpu[0], &d), 0);
	for (unsigned i = 1; i <= 3; i++) {
		assert_int_equal(run(&m), RUN_DEBUG);
		assert_int_equal(m.s.rip, 0x1000 + i);
		assert_int_equal(m.s.rflags & X86_FL_TF, 0);
	}
	d = (struct engine_debug){ .nbreak = 1, .bp[0] = { .addr = 0x1000 } };
	m.s.rip = 0x1001;
	assert_int_equal(engine_kvm.set_state(m.cpu[0], &m.s, &m.err), 0);
	d.bp[0].addr = 0x1003;
	assert_int_equal(engine_kvm.set_debug(m.cpu[0], &d), 0);
	assert_int_equal(run(&m), RUN_DEBUG);
	assert_int_equal(m.s.rip, 0x1003);
	d.bp[0].kind = 2;
	assert_int_equal(engine_kvm.set_debug(m.cpu[0], &d), -EINVAL);
	d.nbreak = 5;
	assert_int_equal(engine_kvm.set_debug(m.cpu[0], &d), -EINVAL);
	d.nbreak = 0;
	assert_int_equal(engine_kvm.set_debug(m.cpu[0], &d), 0);
	assert_int_equal(run(&m), RUN_KICKED); /* to the OUT F4H */
	power_off(&m);
}

static void test_triple_fault(void **state)
{
	struct machine_double m;

	NEEDS_KVM();
	power_on(&m, 1);
	long_mode(&m);
	LOAD(&m, 0x1000, triple);
	start64(&m);
	assert_int_equal(run(&m), RUN_SHUTDOWN);
	/* Reset brings it back. */
	real_mode(&m.s);
	LOAD(&m, 0x1000, steps);
	start64(&m);
	assert_int_equal(engine_kvm.set_lapic(m.cpu[0], NULL), 0);
	assert_int_equal(run(&m), RUN_KICKED);
	assert_int_equal(m.s.gpr[R_RBX], 1);
	power_off(&m);
}

/* LOCK CMPXCHG16B in ring 0: natively where the hardware runs it, else by a step on dbt. */
static void test_step(void **state)
{
	struct machine_double m;
	uint64_t pair[2] = { 1, 2 };

	NEEDS_KVM();
	power_on(&m, 1);
	long_mode(&m);
	LOAD(&m, 0x1000, cx16);
	ram_write(&m.ram, 0x4000, pair, 16);
	m.s.gpr[R_RSI] = 0x4000;
	m.s.gpr[R_RAX] = 1;
	m.s.gpr[R_RDX] = 2;
	m.s.gpr[R_RBX] = 33;
	m.s.gpr[R_RCX] = 44;
	start64(&m);
	assert_int_equal(run(&m), RUN_KICKED);
	assert_int_equal(m.s.gpr[R_RAX] & 0xff, 1);
	ram_read(&m.ram, 0x4000, pair, 16);
	assert_int_equal(pair[0], 33);
	assert_int_equal(pair[1], 44);
	printf("steps on dbt: %llu\n", (unsigned long long)to_kvm_vcpu(m.cpu[0])->counters[KVMC_STEPS]);
	power_off(&m);
}

static int no_exit(void *ctx, struct vcpu_exit *x)
{
	struct later *l = ctx;

	engine_dbt.vcpu_kick(l->other);
	(void)x;
	return 0;
}

/* One guest, its state carried to and fro between kvm and dbt at every OUT; SSE, x87 and flags are
 * live. */
static void test_exchange(void **state)
{
	struct machine_double m;
	struct engine_config cfg = { .ram = &m.ram, .model = &m.model, .vcpus = 1 };
	struct later l = { 0 };
	struct vcpu_up up = { .on_exit = no_exit, .ctx = &l };
	struct engine_vm *vm;
	uint64_t expected = 0;
	double sum;

	NEEDS_KVM();
	power_on(&m, 1);
	if (engine_dbt.vm_create(&vm, &cfg, &m.err) < 0 ||
	    engine_dbt.vcpu_create(&l.other, vm, 0, &up, &m.err) < 0)
		fail_msg("%s", m.err.text);
	long_mode(&m);
	LOAD(&m, 0x1000, exchange);
	m.s.gpr[R_RSI] = 0x4000;
	m.is_stop_wanted = true;
	for (unsigned i = 0; i < 20; i++) {
		struct error err;

		if (i % 2) {
			start64(&m);
			assert_int_equal(run(&m), RUN_KICKED);
		} else {
			assert_int_equal(engine_dbt.set_state(l.other, &m.s, &err), 0);
			assert_int_equal(engine_dbt.vcpu_run(l.other, &err), RUN_KICKED);
			engine_dbt.get_state(l.other, &m.s);
		}
		assert_int_equal(m.s.rip, 0x1000 + (guest_exchange_end - guest_exchange) - 2);
		assert_int_equal(m.s.gpr[R_RCX], 0);
	}
	for (unsigned i = 0; i < 20 * 50; i++)
		expected = (expected << 1 | expected >> 63) + 50 - i % 50;
	assert_int_equal(m.s.gpr[R_RBX], expected);
	memcpy(&sum, m.s.xsave + 160 + 16, 8);
	assert_true(sum == 1000);
	ram_read(&m.ram, 0x4000, &sum, 8);
	assert_true(sum == 1000);
	engine_dbt.vcpu_destroy(l.other);
	engine_dbt.vm_destroy(vm);
	power_off(&m);
}

/* ---- state ---- */

static void random_state(struct x86_state *s, const struct kvm_vcpu *v)
{
	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = (uint64_t)rand() << 33 ^ (uint64_t)rand();
	for (unsigned i = 0; i < 4; i++)
		s->dr[i] = (uint64_t)rand() << 4;
	s->rflags = 2 | (rand() & 0x40cd5);
	s->cr2 = (uint64_t)rand() << 12;
	s->dr6 = 0xffff0ff0 | (rand() & 15);
	s->dr7 = 0x400 | (rand() & 0xff);
	s->star = (uint64_t)rand() << 32;
	s->lstar = (uint64_t)rand() << 8;
	s->cstar = (uint64_t)rand() << 8;
	s->fmask = rand() & 0xfffff;
	s->kernel_gs_base = (uint64_t)rand() << 12;
	s->sysenter_cs = rand() & 0xffff;
	s->sysenter_esp = (uint64_t)rand();
	s->sysenter_eip = (uint64_t)rand();
	s->pat = 0x0007040600070406;
	s->mtrr_def_type = 0xc06;
	s->mtrr_fixed[0] = 0x0606060606060606;
	s->mtrr_fixed[10] = 0x0505050505050505;
	s->mtrr_var_base[7] = 0x80000006;
	s->mtrr_var_mask[7] = 0xff80000800;
	s->tsc_adjust = (uint64_t)rand();
	s->kvm_system_time = 0x8001;
	s->seg[4].base = (uint64_t)rand() << 12;
	s->seg[5].base = (uint64_t)rand() << 12;
	s->nmi_blocked = rand() & 1;
	for (unsigned i = 32; i < 160; i++) /* ST0..ST7 as 80-bit values in 16 bytes each */
		s->xsave[i] = i % 16 < 10 ? (uint8_t)rand() : 0;
	for (unsigned i = 160; i < 416; i++)
		s->xsave[i] = (uint8_t)rand();
	s->xsave[0] = 0x7f; /* FCW 37FH, MXCSR 1F80H, XSTATE_BV x87 | SSE */
	s->xsave[1] = 3;
	s->xsave[24] = 0x80;
	s->xsave[25] = 0x1f;
	s->xsave[512] = 3;
	(void)v;
}

/* Fields that do not come back as they went in, on purpose. */
static void mask_state(struct x86_state *s, const struct kvm_vcpu *v)
{
	uint32_t at[KVM_MSR_MAX] = { 0 };
	unsigned n = 0;

	for (const struct kvm_msr_row *r = kvm_msr_rows; r->name; r++)
		for (unsigned i = 0; i < r->count; i++)
			at[n++] = r->offset + i * 8;
	for (unsigned i = 0; i < n; i++)
		if (!v->msr_ok[i]) /* this host's KVM has none */
			memset((char *)s + at[i], 0, 8);
	s->tsc = 0;
	memset(s->xsave + 28, 0, 4); /* MXCSR_MASK: the host's */
}

static void test_state_round_trip(void **state)
{
	struct machine_double m;
	struct x86_state in, out;
	unsigned seed = 20240611;

	NEEDS_KVM();
	printf("seed %u\n", seed);
	srand(seed);
	for (unsigned i = 0; i < 20; i++) {
		power_on(&m, 1);
		struct kvm_vcpu *v = to_kvm_vcpu(m.cpu[0]);
		if (i % 2)
			long_mode(&m);
		random_state(&m.s, v);
		m.s.tsc = 1000000000000;
		in = m.s;
		start64(&m);
		engine_kvm.get_state(m.cpu[0], &out);
		if (!v->vm->is_tsc_reported) /* else this KVM cannot do it, and said so */
			assert_true(out.tsc >= in.tsc && out.tsc - in.tsc < 100000000000);
		mask_state(&in, v);
		mask_state(&out, v);
		for (size_t b = 0; b < sizeof(in); b++)
			if (((uint8_t *)&in)[b] != ((uint8_t *)&out)[b])
				fail_msg("round %u: byte %zu of x86_state: %02x went in, %02x came "
					 "out",
					 i, b, ((uint8_t *)&in)[b], ((uint8_t *)&out)[b]);
		power_off(&m);
	}
}

static void test_pending_events(void **state)
{
	struct machine_double m;
	struct x86_state out;

	NEEDS_KVM();
	power_on(&m, 1);
	m.s.exception_pending = 1;
	m.s.exception_vector = 14;
	m.s.exception_has_error = 1;
	m.s.exception_error = 2;
	m.s.exception_payload = 0x1234000;
	start64(&m);
	engine_kvm.get_state(m.cpu[0], &out);
	assert_true(out.exception_pending && out.exception_vector == 14 && out.exception_has_error &&
		    out.exception_error == 2 && out.exception_payload == 0x1234000);
	m.s.exception_pending = 0;
	m.s.is_external_pending = 1;
	m.s.external_vector = 0x21;
	m.s.interrupt_shadow = 1;
	m.s.nmi_pending = 1;
	start64(&m);
	engine_kvm.get_state(m.cpu[0], &out);
	assert_true(!out.exception_pending && out.is_external_pending && out.external_vector == 0x21);
	assert_int_equal(out.interrupt_shadow, 1);
	assert_int_equal(out.nmi_pending, 1);
	/* It is delivered when the vCPU runs. */
	LOAD(&m, 0x1000, spin);
	LOAD(&m, 0x1800, handler);
	set_vector(&m, 0x21, 0x1800);
	m.s.nmi_pending = m.s.interrupt_shadow = 0;
	m.s.rflags |= X86_FL_IF;
	start64(&m);
	assert_int_equal(run(&m), RUN_KICKED);
	assert_int_equal(m.handled, 1);
	assert_int_equal(m.s.is_external_pending, 0);
	power_off(&m);
}

static void test_lapic_round_trip(void **state)
{
	struct machine_double m;
	uint8_t in[KVM_APIC_BYTES], out[KVM_APIC_BYTES];
	uint64_t deadline = 1ULL << 60;

	NEEDS_KVM();
	power_on(&m, 1);
	assert_int_equal(engine_kvm.get_lapic(m.cpu[0], in), 0);
	in[0x81] = 0;	  /* TPR stays with CR8 */
	in[0xf1] |= 1;	  /* software enable */
	in[0x320] = 0x40; /* timer: deadline mode, vector 40H */
	in[0x322] = 4;
	in[0x361] = 2;
	in[0x180 + 0x10] = 1 << 5; /* TMR, ISR: vector 37 level, in service */
	in[0x100 + 0x10] = 1 << 5;
	if (to_kvm_vcpu(m.cpu[0])->vm->model.has[CPUF_TSC_DEADLINE])
		memcpy(in + KVM_APIC_TSC_DEADLINE, &deadline, 8);
	assert_int_equal(engine_kvm.set_lapic(m.cpu[0], in), 0);
	assert_int_equal(engine_kvm.get_lapic(m.cpu[0], out), 0);
	memset(in + 0xa0, 0, 4); /* PPR follows ISR */
	memset(out + 0xa0, 0, 4);
	for (unsigned i = 0; i < KVM_APIC_BYTES; i++)
		if (in[i] != out[i])
			fail_msg("LAPIC byte %#x: %02x went in, %02x came out", i, in[i], out[i]);
	assert_true(to_kvm_vcpu(m.cpu[0])->vm->level_vectors[37]);
	power_off(&m);
}

static void test_clock_and_tsc(void **state)
{
	struct machine_double m;
	struct kvm_clock_data clk = { 0 };

	NEEDS_KVM();
	power_on(&m, 2);
	assert_int_equal(engine_kvm.set_clock(m.vm, 5000000000, &m.err), 0);
	assert_true(kvm_ioctl(to_kvm_vm(m.vm)->fd, KVM_GET_CLOCK, &clk) >= 0);
	assert_true(clk.clock >= 5000000000 && clk.clock < 65000000000);
	engine_kvm.set_tsc_offset(m.cpu[0], -12345);
	engine_kvm.set_tsc_offset(m.cpu[1], -12345);
	if (!to_kvm_vm(m.vm)->is_tsc_reported)
		assert_int_equal(engine_kvm.get_tsc_offset(m.cpu[0]), -12345);
	else
		printf("SKIP part of %s: this KVM does not shift the TSC\n", __func__);
	assert_int_equal(engine_kvm.get_tsc_offset(m.cpu[0]), engine_kvm.get_tsc_offset(m.cpu[1]));
	uint64_t a = engine_kvm.read_tsc(m.cpu[0]), b = engine_kvm.read_tsc(m.cpu[1]);
	assert_true(b >= a);
	assert_true(engine_kvm.tsc_khz(m.vm) > 100000);
	power_off(&m);
}

/* ---- no /dev/kvm needed ---- */

static void test_filter(void **state)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[2];
	} sup = { .head.nent = 2,
		  .e = { { .function = 1, .edx = 0x078bfbff, .ecx = 1 << 13 | 1 << 26 },
			 { .function = 7, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ebx = 1 << 5 } } };
	struct cpu_model m = { .xcr0_mask = 7, .phys_bits = 48 };

	for (unsigned i = 1; i < CPUF_COUNT; i++)
		m.has[i] = i != CPUF_CX16;
	kvm_filter_model(&m, &sup.head, false);
	assert_true(m.has[CPUF_SSE2] && m.has[CPUF_XSAVE] && m.has[CPUF_HYPERVISOR]);
	assert_false(m.has[CPUF_CX16]);		/* not in the model */
	assert_false(m.has[CPUF_SSE3]);		/* not offered */
	assert_false(m.has[CPUF_TSC_DEADLINE]); /* no capability */
	assert_false(m.has[CPUF_LM]);		/* the leaf is not there at all */
	assert_false(m.has[CPUF_AVX]);
	assert_int_equal(m.xcr0_mask, 3);
}

static int calls_until_failure;

static int failing_ioctl(int fd, unsigned long request, void *arg)
{
	if (--calls_until_failure == 0) {
		errno = ENOMEM;
		return -1;
	}
	return host_calls_real.ioctl(fd, request, arg);
}

static unsigned count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Every ioctl of creation and of loading state fails once: an error with a sentence, nothing left.
 */
static void test_failing_calls(void **state)
{
	struct guest_ram ram = { 0 };
	struct cpu_model model;
	struct engine_config cfg = { .ram = &ram, .model = &model, .vcpus = 1 };
	struct vcpu_up up = { .on_exit = on_exit_double };
	struct x86_state s;
	struct error err;
	unsigned failures = 0, fds;

	NEEDS_KVM();
	assert_int_equal(cpu_model_init(&model, "host", 1, &err), 0);
	assert_int_equal(ram_create(&ram, MEM, 0, &err), 0);
	x86_state_reset(&s, true);
	cfg.is_counting = true;
	assert_int_equal(engine_kvm.vm_create(&(struct engine_vm *){ NULL }, &cfg, &err), -EOPNOTSUPP);
	cfg.is_counting = false;
	fds = count_fds();
	for (int n = 1;; n++) {
		struct engine_vm *vm = NULL;
		struct engine_vcpu *v = NULL;

		err.text[0] = 0;
		calls_until_failure = n;
		host.ioctl = failing_ioctl;
		int rc = engine_kvm.vm_create(&vm, &cfg, &err);
		if (rc >= 0)
			rc = engine_kvm.vcpu_create(&v, vm, 0, &up, &err);
		if (rc >= 0)
			rc = engine_kvm.set_state(v, &s, &err);
		host = host_calls_real;
		bool is_done = calls_until_failure > 0;
		if (rc < 0) {
			failures++;
			assert_true(err.text[0]);
		}
		engine_kvm.vcpu_destroy(v);
		engine_kvm.vm_destroy(vm);
		assert_int_equal(count_fds(), fds);
		if (is_done) {
			assert_int_equal(rc, 0);
			break;
		}
	}
	assert_true(failures > 10);
	ram_destroy(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_filter),
		cmocka_unit_test(test_probe),
		cmocka_unit_test(test_failing_calls),
		cmocka_unit_test(test_ports),
		cmocka_unit_test(test_mmio),
		cmocka_unit_test(test_kick),
		cmocka_unit_test(test_interrupt_window),
		cmocka_unit_test(test_interrupt_wakes),
		cmocka_unit_test(test_nmi),
		cmocka_unit_test(test_msi_and_eoi),
		cmocka_unit_test(test_smp),
		cmocka_unit_test(test_dirty_log),
		cmocka_unit_test(test_debug),
		cmocka_unit_test(test_triple_fault),
		cmocka_unit_test(test_step),
		cmocka_unit_test(test_exchange),
		cmocka_unit_test(test_state_round_trip),
		cmocka_unit_test(test_pending_events),
		cmocka_unit_test(test_lapic_round_trip),
		cmocka_unit_test(test_clock_and_tsc),
	};

	log_set_level(LOG_ERROR); /* what this KVM lacks is told by the tests */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
