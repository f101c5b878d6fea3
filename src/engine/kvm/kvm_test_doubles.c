/* SPDX-License-Identifier: Apache-2.0 */
/* Test doubles of the CPU model and of the dbt engine, replaced by the real ones where these are
 * linked. */
#include <string.h>
#include "engine/engine.h"
#include "engine/step.h"
#define W __attribute__((weak))
W int cpu_model_init(struct cpu_model *m, const char *name, unsigned vcpus, struct error *err)
{
	memset(m, 0, sizeof *m);
	m->name = name;
	for (unsigned i = 1; i < CPUF_COUNT; i++)
		m->has[i] = 1;
	m->vcpus = vcpus;
	m->phys_bits = 40;
	m->xcr0_mask = 7;
	return 0;
}
W void cpuid_query(const struct cpu_model *m, const struct cpuid_env *env, uint32_t leaf,
		   uint32_t sub, struct cpuid_regs *o)
{
	memset(o, 0, sizeof *o);
	uint32_t *r[4] = {&o->eax, &o->ebx, &o->ecx, &o->edx};
#define X(n, l, s, g, b)                                                                           \
	if (leaf == l && sub == s && m->has[CPUF_##n])                                             \
		*r[g] |= 1u << b;
#include "engine/cpu_features.def"
#undef X
	if (leaf == 0) {
		o->eax = 0x16;
		o->ebx = 0x68747541;
		o->ecx = 0x444d4163;
		o->edx = 0x69746e65;
	}
	if (leaf == 0x80000000)
		o->eax = 0x80000008;
	if (leaf == 0x80000008)
		o->eax |= m->phys_bits | 48 << 8;
	if (leaf == 0x40000000) {
		o->eax = 0x40000001;
		o->ebx = 0x4b4d564b;
		o->ecx = 0x564b4d56;
		o->edx = 0x4d;
	}
	if (leaf == 0x40000001)
		o->eax = 0x29;
	if (leaf == 1) {
		o->eax = 0xb00f21;
		o->ebx |= env->apic_id << 24 | 8 << 8;
	}
	if (leaf == 0xd && sub == 0 && m->has[CPUF_XSAVE]) {
		o->eax = m->xcr0_mask;
		o->ebx = o->ecx = m->xcr0_mask & 4 ? 832 : 576;
	}
	if (leaf == 0xd && sub == 2 && m->has[CPUF_AVX]) {
		o->eax = 256;
		o->ebx = 576;
	}
}
W void x86_state_reset(struct x86_state *s, bool b)
{
	memset(s, 0, sizeof *s);
	s->rip = 0xfff0;
	s->rflags = 2;
	for (int i = 0; i < 6; i++)
		s->seg[i] = (struct x86_seg){.limit = 0xffff, .attr = 0x93};
	s->seg[1].attr = 0x9b;
	s->seg[1].selector = 0xf000;
	s->seg[1].base = 0xffff0000;
	s->gdtr.limit = s->idtr.limit = 0xffff;
	s->ldtr = (struct x86_seg){.limit = 0xffff, .attr = 0x82};
	s->tr = (struct x86_seg){.limit = 0xffff, .attr = 0x8b};
	s->cr0 = 0x60000010;
	s->dr6 = 0xffff0ff0;
	s->dr7 = 0x400;
	s->xcr0 = 1;
	s->pat = 0x0007040600070406;
	s->apic_base = 0xfee00800 | (b ? 0x100 : 0);
	s->mp_state = b ? MP_RUNNABLE : MP_WAIT_SIPI;
	s->xsave[0] = 0x7f;
	s->xsave[1] = 3;
	s->xsave[24] = 0x80;
	s->xsave[25] = 0x1f;
	s->xsave[512] = 3;
}
W void x86_state_sipi(struct x86_state *s, uint8_t v)
{
	s->seg[1].selector = v << 8;
	s->seg[1].base = v << 12;
	s->rip = 0;
	s->mp_state = MP_RUNNABLE;
}
static struct guest_ram *gram;
static int mk(struct engine_vm **o, const struct engine_config *c, struct error *e)
{
	gram = c->ram;
	*o = (void *)1;
	return 0;
}
static void rm(struct engine_vm *v)
{
}
static int mkc(struct engine_vcpu **o, struct engine_vm *vm, unsigned i, const struct vcpu_up *up,
	       struct error *e)
{
	*o = (void *)1;
	return 0;
}
static void rmc(struct engine_vcpu *v)
{
}
W const struct engine_ops engine_dbt = {
    .vm_create = mk, .vm_destroy = rm, .vcpu_create = mkc, .vcpu_destroy = rmc};
W int dbt_step_foreign(struct engine_vcpu *d, struct x86_state *s)
{
	uint8_t b[5];
	ram_read(gram, s->rip, b, 5);
	if (memcmp(b, "\xf0\x48\x0f\xc7\x0e", 5))
		return -1;
	uint64_t p[2];
	ram_read(gram, s->gpr[R_RSI], p, 16);
	if (p[0] == s->gpr[R_RAX] && p[1] == s->gpr[R_RDX]) {
		p[0] = s->gpr[R_RBX];
		p[1] = s->gpr[R_RCX];
		ram_write(gram, s->gpr[R_RSI], p, 16);
		s->rflags |= 0x40;
	} else {
		s->gpr[R_RAX] = p[0];
		s->gpr[R_RDX] = p[1];
		s->rflags &= ~0x40ull;
	}
	s->rip += 5;
	return 0;
}
