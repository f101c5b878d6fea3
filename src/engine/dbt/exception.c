/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Delivery of exceptions, interrupts and software interrupts in every mode.
 *
 * How it works: deliver() does one event: reads the vector or gate, checks, pushes the frame, and
 * only then commits the new state; whatever it raises finds the state as before.  deliver_chain()
 * runs it for events that have no instruction to fault (exceptions, interrupts) and combines a
 * fault raised on the way into the next event: serial, double fault, or shutdown.  Software
 * interrupts are instructions: what their delivery raises is an ordinary fault of theirs.
 *
 * Invariants
 *  1. deliver_chain() never raises and ends after at most MAX_ROUNDS events: a chain of benign
 *     events that feed themselves (a #DB task with the T flag set, say) ends in shutdown.
 *  2. cpu->exc_ext is 1 only while an event external to the program is delivered.
 *
 * Source: SDM vol. 3 6.12-6.15 (protected and long mode), table 6-5 (double faults), 21.1.4 (real
 * mode), 21.3 (virtual-8086), vol. 2 INT n.
 */
#include "base/log.h"
#include "engine/dbt/segment.h"

#define MAX_ROUNDS 64
#define DR6_BT	   (1u << 15)
#define DR6_FIXED  0xffff0ff0ULL
#define DR7_GD	   (1u << 13)

enum event_kind { EV_EXCEPTION, EV_EXTERNAL, EV_NMI, EV_SOFT_INT, EV_SOFT_EXC, EV_INT1 };

struct event {
	uint8_t vector;
	uint8_t kind; /* enum event_kind */
	bool has_error;
	uint32_t error;
	uint64_t rip;	/* to return to */
	uint64_t flags; /* image of RFLAGS to push */
};

static bool event_is_software(const struct event *ev)
{
	return ev->kind == EV_SOFT_INT || ev->kind == EV_SOFT_EXC;
}

/* ---- real mode ---- */

static void commit_real(struct dbt_cpu *cpu, struct stack_frame *f, uint16_t cs, uint16_t ip)
{
	stack_set_sp(cpu, f, f->sp);
	seg_set_real(cpu, SEG_CS, cs);
	cpu->s.rip = cpu->next_rip = ip;
	cpu->s.interrupt_shadow = 0;
}

static void push_real(struct dbt_cpu *cpu, struct stack_frame *f, const struct event *ev, uint64_t flags)
{
	stack_frame_current(cpu, f);
	stack_frame_push(cpu, f, 2, flags);
	stack_frame_push(cpu, f, 2, cpu->s.seg[SEG_CS].selector);
	stack_frame_push(cpu, f, 2, ev->rip);
}

static void deliver_real(struct dbt_cpu *cpu, const struct event *ev)
{
	unsigned off = ev->vector * 4u;
	struct stack_frame f;
	uint32_t target;

	if (off + 3 > cpu->s.idtr.limit)
		dbt_raise_err(cpu, EXC_GP, off + 2 + cpu->exc_ext);
	target = sys_read(cpu, (uint32_t)(cpu->s.idtr.base + off), 4);
	push_real(cpu, &f, ev, ev->flags);
	if ((target & 0xffff) > cpu->s.seg[SEG_CS].limit)
		dbt_raise_err(cpu, EXC_GP, 0);
	cpu->s.rflags &= ~(uint64_t)(X86_FL_IF | X86_FL_TF | X86_FL_AC | X86_FL_RF);
	commit_real(cpu, &f, target >> 16, target);
	dbt_mode_changed(cpu);
}

/* ---- protected and long mode ---- */

struct gate {
	struct seg_desc d;
	uint16_t sel;
	uint64_t rip;
	unsigned size; /* of the values pushed */
	unsigned ist;
	bool clears_if;
};

static void gate_read(struct dbt_cpu *cpu, const struct event *ev, struct gate *g)
{
	bool is_long = dbt_is_long(cpu);
	unsigned size = is_long ? 16 : 8, off = ev->vector * size, type;
	uint32_t err = ev->vector * 8u + 2 + cpu->exc_ext;
	uint64_t raw;

	if (off + size - 1 > cpu->s.idtr.limit)
		dbt_raise_err(cpu, EXC_GP, err);
	g->d.va = cpu->s.idtr.base + off;
	if (!is_long)
		g->d.va = (uint32_t)g->d.va;
	raw = sys_read(cpu, g->d.va, 8);
	g->d.lo = (uint32_t)raw;
	g->d.hi = (uint32_t)(raw >> 32);
	g->d.lo2 = is_long ? sys_read(cpu, g->d.va + 8, 4) : 0;
	g->d.hi2 = 0;

	type = desc_type(&g->d);
	if (desc_is_segment(&g->d) || (type & 6) != 6) { /* neither interrupt nor trap gate */
		if (is_long || desc_is_segment(&g->d) || type != DESC_TASK_GATE)
			dbt_raise_err(cpu, EXC_GP, err);
	} else if (is_long && !(type & 8)) {
		dbt_raise_err(cpu, EXC_GP, err);
	}
	if (event_is_software(ev) && desc_dpl(&g->d) < cpu->cpl)
		dbt_raise_err(cpu, EXC_GP, err);
	if (!desc_is_present(&g->d))
		dbt_raise_err(cpu, EXC_NP, err);

	g->sel = g->d.lo >> 16;
	g->size = is_long ? 8 : type & 8 ? 4 : 2;
	g->rip = g->d.lo & 0xffff;
	if (g->size != 2)
		g->rip |= g->d.hi & 0xffff0000;
	g->rip |= (uint64_t)g->d.lo2 << 32;
	g->ist = is_long ? g->d.hi & 7 : 0;
	g->clears_if = !(type & 1);
}

/* The gate's code segment. */
static void gate_read_code(struct dbt_cpu *cpu, const struct gate *g, struct seg_desc *code)
{
	if (sel_is_null(g->sel))
		seg_fault(cpu, EXC_GP, 0);
	if (!desc_fetch(cpu, g->sel, code) || !desc_is_code(code) || desc_dpl(code) > cpu->cpl)
		seg_fault(cpu, EXC_GP, g->sel);
	if (dbt_is_long(cpu) && (!desc_is_long(code) || desc_is_big(code)))
		seg_fault(cpu, EXC_GP, g->sel);
	if (!desc_is_present(code))
		seg_fault(cpu, EXC_NP, g->sel);
	if (cpu->s.rflags & X86_FL_VM && (desc_is_conforming(code) || desc_dpl(code) != 0))
		seg_fault(cpu, EXC_GP, g->sel);
}

static void push_frame(struct dbt_cpu *cpu, struct stack_frame *f, const struct event *ev,
		       unsigned size, bool has_stack)
{
	static const uint8_t vm86_segs[] = { SEG_GS, SEG_FS, SEG_DS, SEG_ES };

	if (cpu->s.rflags & X86_FL_VM) {
		for (unsigned i = 0; i < ARRAY_SIZE(vm86_segs); i++)
			stack_frame_push(cpu, f, size, cpu->s.seg[vm86_segs[i]].selector);
	}
	if (has_stack) {
		stack_frame_push(cpu, f, size, cpu->s.seg[SEG_SS].selector);
		stack_frame_push(cpu, f, size, cpu->s.gpr[R_RSP]);
	}
	stack_frame_push(cpu, f, size, ev->flags);
	stack_frame_push(cpu, f, size, cpu->s.seg[SEG_CS].selector);
	stack_frame_push(cpu, f, size, ev->rip);
	if (ev->has_error)
		stack_frame_push(cpu, f, size, ev->error);
}

static void deliver_gate(struct dbt_cpu *cpu, const struct event *ev, const struct gate *g)
{
	bool is_long = dbt_is_long(cpu), is_inner;
	uint64_t rip, sp = cpu->s.gpr[R_RSP];
	unsigned cpl = cpu->cpl;
	struct stack_frame f;
	struct seg_desc code;
	struct x86_seg ss;

	gate_read_code(cpu, g, &code);
	is_inner = !desc_is_conforming(&code) && desc_dpl(&code) < cpl;
	if (is_inner)
		cpl = desc_dpl(&code);
	if (is_inner || g->ist)
		tss_inner_stack(cpu, cpl, g->ist, &ss, &sp);
	if (!is_inner)
		ss = cpu->s.seg[SEG_SS];
	if (is_long)
		sp &= ~15ULL;
	stack_frame_init(cpu, &f, &ss, sp, cpl, is_long,
			 (is_inner ? ss.selector & 0xfffcu : 0) | cpu->exc_ext);
	push_frame(cpu, &f, ev, g->size, is_inner || is_long);
	rip = code_check_rip(cpu, &code, g->rip);
	desc_set_accessed(cpu, &code);

	if (cpu->s.rflags & X86_FL_VM) {
		seg_set_null(&cpu->s.seg[SEG_ES], 0, 0);
		seg_set_null(&cpu->s.seg[SEG_DS], 0, 0);
		seg_set_null(&cpu->s.seg[SEG_FS], 0, 0);
		seg_set_null(&cpu->s.seg[SEG_GS], 0, 0);
	}
	cpu->s.seg[SEG_SS] = ss;
	stack_set_sp(cpu, &f, f.sp);
	seg_fill(&cpu->s.seg[SEG_CS], (g->sel & 0xfffc) | cpl, &code);
	cpu->s.rip = cpu->next_rip = rip;
	cpu->s.rflags &= ~(uint64_t)(X86_FL_TF | X86_FL_NT | X86_FL_VM | X86_FL_RF);
	if (g->clears_if)
		cpu->s.rflags &= ~(uint64_t)X86_FL_IF;
	cpu->s.interrupt_shadow = 0;
	dbt_mode_changed(cpu);
}

static void deliver_protected(struct dbt_cpu *cpu, const struct event *ev)
{
	struct gate g;

	gate_read(cpu, ev, &g);
	if (desc_type(&g.d) == DESC_TASK_GATE) {
		cpu->next_rip = ev->rip;
		cpu->s.rflags = ev->flags;
		task_switch(cpu, g.sel, TASK_INT, ev->has_error, ev->error);
	} else {
		deliver_gate(cpu, ev, &g);
	}
}

static void deliver(struct dbt_cpu *cpu, const struct event *ev)
{
	cpu->exc_ext = !event_is_software(ev);
	if (cpu->s.cr0 & X86_CR0_PE)
		deliver_protected(cpu, ev);
	else
		deliver_real(cpu, ev);
	cpu->exc_ext = 0;
}

/* ---- events without an instruction ---- */

/* False when the delivery raised (cpu->raise_*).  Its own function: the buffer dies with its frame.
 */
static __attribute__((noinline)) bool try_deliver(struct dbt_cpu *cpu, const struct event *ev)
{
	if (__builtin_setjmp(cpu->raise_jmp))
		return false;
	deliver(cpu, ev);
	return true;
}

static bool is_contributory(unsigned vector)
{
	return vector == EXC_DE || (vector >= EXC_TS && vector <= EXC_GP);
}

void exc_note_debug(struct dbt_cpu *cpu, uint64_t bits)
{
	cpu->s.dr6 = (cpu->s.dr6 & ~15ULL) | bits | DR6_FIXED;
	cpu->s.dr7 &= ~(uint64_t)DR7_GD;
	cpu->dr6_pending = 0;
}

/* The event of cpu->raise_*. */
static void event_from_raise(struct dbt_cpu *cpu, struct event *ev)
{
	unsigned vector = cpu->raise_vector;
	/* #DB is a trap, or an instruction breakpoint: RF is for its handler to set (SDM vol. 3
	 * 17.3.1.1). */
	bool is_fault = vector != EXC_DB && vector != EXC_BP && vector != EXC_OF &&
			vector != EXC_DF && vector != EXC_MC;

	*ev = (struct event){
		.vector = vector,
		.kind = EV_EXCEPTION,
		.has_error = cpu->raise_has_error,
		.error = cpu->raise_error,
		.rip = cpu->s.rip,
		.flags = is_fault ? cpu->s.rflags | X86_FL_RF : cpu->s.rflags,
	};
}

/* @ev raised cpu->raise_* while it was delivered: the next event (table 6-5), false: shutdown. */
static bool event_combine(struct dbt_cpu *cpu, struct event *ev)
{
	unsigned first = ev->vector, second = cpu->raise_vector;
	bool is_bad = is_contributory(second) || second == EXC_PF;
	bool is_double = false;

	if (ev->kind == EV_EXCEPTION) {
		if (first == EXC_DF && is_bad)
			return false;
		is_double = (first == EXC_PF && is_bad) ||
			    (is_contributory(first) && is_contributory(second));
	}
	if (is_double) {
		cpu->raise_vector = EXC_DF;
		cpu->raise_has_error = true;
		cpu->raise_error = 0;
	}
	event_from_raise(cpu, ev);
	return true;
}

static void shut_down(struct dbt_cpu *cpu, unsigned vector)
{
	cpu->is_shutdown = true;
	dbt_fpu_to_mem(cpu);
	log_guest("cpu", "vCPU %u shuts down: vector %u could not be delivered at %04x:%#llx",
		  cpu->index, vector, cpu->s.seg[SEG_CS].selector, (unsigned long long)cpu->s.rip);
}

static void deliver_chain(struct dbt_cpu *cpu, struct event *ev)
{
	void *saved_jmp[ARRAY_SIZE(cpu->raise_jmp)];
	unsigned round;

	if (cpu->s.mp_state == MP_HALTED) /* by an interrupt, or a single-step trap of HLT itself */
		cpu->s.mp_state = MP_RUNNABLE;
	memcpy(saved_jmp, cpu->raise_jmp, sizeof(saved_jmp));
	cpu->in_exception = true;
	for (round = 0; round < MAX_ROUNDS; round++) {
		if (!try_deliver(cpu, ev)) {
			cpu->exc_ext = 0;
			if (!event_combine(cpu, ev)) {
				round = MAX_ROUNDS;
				break;
			}
		} else if (cpu->dr6_pending & DR6_BT) { /* T flag of the TSS switched to */
			cpu->raise_vector = EXC_DB;
			cpu->raise_has_error = false;
			exc_note_debug(cpu, DR6_BT);
			event_from_raise(cpu, ev);
		} else {
			break;
		}
	}
	cpu->in_exception = false;
	memcpy(cpu->raise_jmp, saved_jmp, sizeof(saved_jmp));
	if (round == MAX_ROUNDS)
		shut_down(cpu, ev->vector);
}

void exc_deliver_raised(struct dbt_cpu *cpu)
{
	struct event ev;

	cpu->exc_ext = 0;
	event_from_raise(cpu, &ev);
	deliver_chain(cpu, &ev);
}

void exc_interrupt(struct dbt_cpu *cpu, unsigned vector, bool is_nmi)
{
	struct event ev = {
		.vector = is_nmi ? EXC_NMI : vector,
		.kind = is_nmi ? EV_NMI : EV_EXTERNAL,
		.rip = cpu->s.rip,
		.flags = cpu->s.rflags,
	};

	if (is_nmi)
		cpu->s.nmi_blocked = 1;
	deliver_chain(cpu, &ev);
}

/* ---- software interrupts ---- */

/* Virtual-8086 mode with CR4.VME: does INT @vector go to the 8086 program's own handler?
 * (SDM vol. 3 21.3.3: bit clear in the redirection map below the I/O map.) */
static bool vme_is_redirected(struct dbt_cpu *cpu, unsigned vector)
{
	const struct x86_seg *tr = &cpu->s.tr;
	unsigned off;

	if (!tss_is_wide(cpu) || tr->limit < 103)
		dbt_raise_err(cpu, EXC_GP, 0);
	off = sys_read(cpu, (uint32_t)(tr->base + 102), 2) - 32 + vector / 8;
	if (off > tr->limit)
		dbt_raise_err(cpu, EXC_GP, 0);
	return !(sys_read(cpu, (uint32_t)(tr->base + off), 1) >> (vector & 7) & 1);
}

static void deliver_vme(struct dbt_cpu *cpu, const struct event *ev)
{
	bool is_virtual_if = (cpu->s.rflags & X86_FL_IOPL) != X86_FL_IOPL;
	uint64_t flags = ev->flags;
	struct stack_frame f;
	uint32_t target;

	if (is_virtual_if) {
		flags &= ~(uint64_t)X86_FL_IF;
		flags |= X86_FL_IOPL | (flags & X86_FL_VIF ? X86_FL_IF : 0);
	}
	target = sys_read(cpu, ev->vector * 4u, 4);
	push_real(cpu, &f, ev, flags);
	cpu->s.rflags &= ~(uint64_t)(X86_FL_TF | X86_FL_RF | (is_virtual_if ? X86_FL_VIF : X86_FL_IF));
	commit_real(cpu, &f, target >> 16, target);
}

void exc_software(struct dbt_cpu *cpu, unsigned vector, enum exc_soft kind)
{
	struct event ev = {
		.vector = vector,
		.kind = kind == EXC_SOFT_INT	? EV_SOFT_INT
			: kind == EXC_SOFT_INT1 ? EV_INT1
						: EV_SOFT_EXC,
		.rip = cpu->next_rip,
		.flags = cpu->s.rflags & ~(uint64_t)X86_FL_RF,
	};

	if (cpu->s.rflags & X86_FL_VM && kind == EXC_SOFT_INT) {
		if (cpu->s.cr4 & X86_CR4_VME && vme_is_redirected(cpu, vector)) {
			deliver_vme(cpu, &ev);
			cpu->no_step_trap = true;
			return;
		}
		if ((cpu->s.rflags & X86_FL_IOPL) != X86_FL_IOPL)
			dbt_raise_err(cpu, EXC_GP, 0);
	}
	deliver(cpu, &ev);
	cpu->no_step_trap = true;
	if (kind == EXC_SOFT_INT1) {
		/* DR6 does not tell of it, but takes what MOV SS left pending. */
		if (cpu->dr6_pending)
			exc_note_debug(cpu, cpu->dr6_pending);
		cpu->s.dr7 &= ~(uint64_t)DR7_GD;
	}
}
