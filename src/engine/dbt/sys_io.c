/* SPDX-License-Identifier: Apache-2.0 */
/* Port I/O and the interrupt flag. */
#include "engine/dbt/sys.h"

#define REP_BATCH 64 /* elements of a REP INS/OUTS between two looks at cpu->requests */

/* ---- permission (SDM vol. 1 19.5) ---- */

static void check_port(struct dbt_cpu *cpu, uint16_t port, unsigned size)
{
	const struct x86_seg *tr = &cpu->s.tr;
	uint64_t mask = dbt_is_long(cpu) ? ~0ULL : 0xffffffff;
	unsigned off, bits;

	if (!(cpu->s.cr0 & X86_CR0_PE))
		return;
	if (!(cpu->s.rflags & X86_FL_VM) && cpu->cpl <= (cpu->s.rflags >> 12 & 3))
		return;
	if (tr->attr & SEG_ATTR_UNUSABLE || !tss_is_wide(cpu) || tr->limit < 103)
		sys_gp0(cpu);
	off = sys_read(cpu, (tr->base + 102) & mask, 2) + port / 8;
	if (off + 1 > tr->limit)
		sys_gp0(cpu);
	bits = sys_read(cpu, (tr->base + off) & mask, 2);
	if (bits >> (port & 7) & ((1u << size) - 1))
		sys_gp0(cpu);
}

/* I/O breakpoints (SDM vol. 3 17.2.5): CR4.DE and R/W = 10; a trap after the access. */
static void note_breakpoints(struct dbt_cpu *cpu, uint16_t port, unsigned size)
{
	const struct x86_state *s = &cpu->s;

	if (likely(!(s->dr7 & 0xff)) || !(s->cr4 & X86_CR4_DE))
		return;
	for (unsigned i = 0; i < 4; i++) {
		unsigned len = (s->dr7 >> (18 + 4 * i) & 3) + 1; /* 1, 2, -, 4 */
		uint64_t first = s->dr[i] & ~(uint64_t)(len - 1);

		if (s->dr7 >> (2 * i) & 3 && (s->dr7 >> (16 + 4 * i) & 3) == 2 && len != 3 &&
		    port < first + len && first < (uint64_t)port + size)
			cpu->dr6_pending |= 1u << i;
	}
}

static uint32_t port_read(struct dbt_cpu *cpu, uint16_t port, unsigned size)
{
	struct vcpu_exit x = { .kind = EXIT_PIO, .size = size, .addr = port };

	if (dbt_exit(cpu, &x))
		sys_gp0(cpu);
	note_breakpoints(cpu, port, size);
	return x.data & sys_low_mask(size);
}

static void port_write(struct dbt_cpu *cpu, uint16_t port, unsigned size, uint32_t val)
{
	struct vcpu_exit x = { .kind = EXIT_PIO,
			       .is_write = true,
			       .size = size,
			       .addr = port,
			       .data = val & sys_low_mask(size) };

	if (dbt_exit(cpu, &x))
		sys_gp0(cpu);
	note_breakpoints(cpu, port, size);
}

/* All of IN, OUT, INS, OUTS: opcode bit 0 clear means bytes; there are no 64-bit ports. */
static unsigned port_size(const struct insn *in)
{
	return !(in->opcode & 1) ? 1 : in->opsize == 2 ? 2 : 4;
}

static uint16_t port_number(const struct dbt_cpu *cpu, const struct insn *in)
{
	return in->opcode & 8 ? cpu->s.gpr[R_RDX] & 0xffff : in->imm & 0xff;
}

void sys_in(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned size = port_size(in);
	uint16_t port = port_number(cpu, in);

	check_port(cpu, port, size);
	gpr_set(cpu, in, R_RAX, size, port_read(cpu, port, size));
}

void sys_out(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned size = port_size(in);
	uint16_t port = port_number(cpu, in);

	check_port(cpu, port, size);
	port_write(cpu, port, size, gpr_get(cpu, in, R_RAX, size));
}

/* ---- strings ---- */

static uint64_t addr_mask(const struct insn *in)
{
	return sys_low_mask(in->addrsize);
}

/* A register of the address size; 32-bit writes zero-extend, 16-bit ones keep the rest. */
static void set_addr_reg(struct dbt_cpu *cpu, const struct insn *in, unsigned reg, uint64_t val)
{
	if (in->addrsize == 2)
		cpu->s.gpr[reg] = (cpu->s.gpr[reg] & ~0xffffULL) | (val & 0xffff);
	else
		cpu->s.gpr[reg] = val & addr_mask(in);
}

static void advance(struct dbt_cpu *cpu, const struct insn *in, unsigned reg, unsigned size)
{
	uint64_t step = cpu->s.rflags & X86_FL_DF ? 0 - (uint64_t)size : size;

	set_addr_reg(cpu, in, reg, cpu->s.gpr[reg] + step);
}

static void ins_one(struct dbt_cpu *cpu, const struct insn *in, uint16_t port, unsigned size)
{
	uint64_t ea = cpu->s.gpr[R_RDI] & addr_mask(in);
	struct mem_op op;

	/* The memory must be writable before the port is read: reading has effects. */
	mem_begin(cpu, &op, SEG_ES, ea, size, ACC_WRITE, false);
	mem_abort(cpu, &op);
	mem_write(cpu, SEG_ES, ea, size, port_read(cpu, port, size));
	advance(cpu, in, R_RDI, size);
}

static void outs_one(struct dbt_cpu *cpu, const struct insn *in, uint16_t port, unsigned size)
{
	uint64_t ea = cpu->s.gpr[R_RSI] & addr_mask(in);

	unsigned seg = in->seg == SEG_NONE ? SEG_DS : in->seg;

	port_write(cpu, port, size, mem_read(cpu, seg, ea, size));
	advance(cpu, in, R_RSI, size);
}

/* May more elements follow without a look around (interrupts, kicks, traps)? */
static bool may_go_on(struct dbt_cpu *cpu)
{
	return !(cpu->s.rflags & X86_FL_TF) && !(cpu->s.dr7 & 0xff) && !cpu->dr6_pending &&
	       !atomic_load_explicit(&cpu->requests, memory_order_relaxed);
}

static void string_io(struct dbt_cpu *cpu, const struct insn *in,
		      void (*one)(struct dbt_cpu *, const struct insn *, uint16_t, unsigned))
{
	uint16_t port = cpu->s.gpr[R_RDX] & 0xffff;
	unsigned size = port_size(in);

	if (!in->rep && !in->repne) {
		check_port(cpu, port, size);
		one(cpu, in, port, size);
		return;
	}
	if ((cpu->s.gpr[R_RCX] & addr_mask(in)) == 0)
		return;
	check_port(cpu, port, size);
	for (unsigned n = 0; n < REP_BATCH; n++) {
		one(cpu, in, port, size);
		set_addr_reg(cpu, in, R_RCX, cpu->s.gpr[R_RCX] - 1);
		if ((cpu->s.gpr[R_RCX] & addr_mask(in)) == 0)
			return;
		if (!may_go_on(cpu))
			break;
	}
	/* Not done: the instruction is resumed, its RF stays. */
	cpu->next_rip = cpu->s.rip;
	cpu->is_rf_cleared = false;
	cpu->is_partial = true;
}

void sys_ins(struct dbt_cpu *cpu, const struct insn *in)
{
	string_io(cpu, in, ins_one);
}

void sys_outs(struct dbt_cpu *cpu, const struct insn *in)
{
	string_io(cpu, in, outs_one);
}

/* ---- the interrupt flag (SDM vol. 2 CLI, STI; vol. 3 21.3-21.4) ---- */

/* CLI and STI act on IF, or on VIF (true), or fault. */
static bool uses_vif(struct dbt_cpu *cpu)
{
	unsigned iopl = cpu->s.rflags >> 12 & 3;

	if (!(cpu->s.cr0 & X86_CR0_PE) || cpu->cpl <= iopl)
		return false;
	if (cpu->s.rflags & X86_FL_VM ? cpu->s.cr4 & X86_CR4_VME : cpu->cpl == 3 && cpu->s.cr4 & X86_CR4_PVI)
		return true;
	sys_gp0(cpu);
}

void sys_cli(struct dbt_cpu *cpu, const struct insn *in)
{
	cpu->s.rflags &= ~(uint64_t)(uses_vif(cpu) ? X86_FL_VIF : X86_FL_IF);
}

void sys_sti(struct dbt_cpu *cpu, const struct insn *in)
{
	if (uses_vif(cpu)) {
		if (cpu->s.rflags & X86_FL_VIP)
			sys_gp0(cpu);
		cpu->s.rflags |= X86_FL_VIF;
	} else if (!(cpu->s.rflags & X86_FL_IF)) {
		cpu->s.rflags |= X86_FL_IF;
		cpu->s.interrupt_shadow = 1;
	}
}
