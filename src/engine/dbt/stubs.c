/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fixed pieces of emitted code: entering, leaving, and the soft-TLB miss.
 *
 * They stand at the start of the code cache and survive a flush.  Register roles are those of emit.h.
 */
#include <errno.h>

#include "engine/dbt/check.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/xlate.h"

/* Host registers with a guest register in them, as (guest, host) pairs. */
static const uint8_t mapped[][2] = {
	{ R_RAX, H_RAX }, { R_RDX, H_RDX }, { R_RBX, H_RBX }, { R_RBP, H_RBP },
	{ R_RSI, H_RSI }, { R_RDI, H_RDI }, { R_R8, H_R8 },   { R_R12, H_R12 },
	{ R_RCX, H_R9 },  { R_R13, H_R10 }, { R_R14, H_R11 }, { R_RSP, H_R13 },
};

static void emit_push(struct emit *e, unsigned reg)
{
	if (reg >= 8)
		emit_u8(e, 0x41);
	emit_u8(e, 0x50 + (reg & 7));
}

static void emit_pop(struct emit *e, unsigned reg)
{
	if (reg >= 8)
		emit_u8(e, 0x41);
	emit_u8(e, 0x58 + (reg & 7));
}

/* The stubs' own operands in the state are by gs: what they are called with may be in r15. */
static void load_base(struct emit *e)
{
	emit_load_gs(e, H_R15, CPU_OFF(base), 8);
}

static void load_guest(struct emit *e)
{
	for (unsigned i = 0; i < ARRAY_SIZE(mapped); i++)
		emit_load_gs(e, mapped[i][1], CPU_GPR_OFF(mapped[i][0]), 8);
	load_base(e);
}

static void store_guest(struct emit *e)
{
	for (unsigned i = 0; i < ARRAY_SIZE(mapped); i++)
		emit_store_gs(e, CPU_GPR_OFF(mapped[i][0]), mapped[i][1], 8);
}

/* rflags image in s -> host arithmetic flags (popfq would take many times as long); clobbers rax, rcx. */
static void load_flags(struct emit *e)
{
	emit_load_gs(e, H_RCX, CPU_OFF(s.rflags), 4);
	emit_bytes(e, (const uint8_t[]){ 0x89, 0xc8 }, 2);	 /* mov eax, ecx */
	emit_bytes(e, (const uint8_t[]){ 0x88, 0xcc }, 2);	 /* mov ah, cl */
	emit_bytes(e, (const uint8_t[]){ 0xc1, 0xe9, 11 }, 3);	 /* shr ecx, 11: OF */
	emit_bytes(e, (const uint8_t[]){ 0x83, 0xe1, 1 }, 3);	 /* and ecx, 1 */
	emit_bytes(e, (const uint8_t[]){ 0x88, 0xc8 }, 2);	 /* mov al, cl */
	emit_bytes(e, (const uint8_t[]){ 0x04, 0x7f, 0x9e }, 3); /* add al, 0x7f; sahf */
}

/* Host arithmetic flags -> s.rflags; clobbers rcx, r15 and flags. */
static void store_flags(struct emit *e)
{
	emit_u8(e, 0x9c); /* pushfq */
	emit_pop(e, H_RCX);
	emit_u8(e, 0x81), emit_u8(e, 0xe1), emit_u32(e, FL_ARITH); /* and ecx, FL_ARITH */
	emit_load_gs(e, H_R15, CPU_OFF(s.rflags), 4);
	emit_u8(e, 0x41), emit_u8(e, 0x81), emit_u8(e, 0xe7), emit_u32(e, ~(uint32_t)FL_ARITH);
	emit_u8(e, 0x41), emit_u8(e, 0x09), emit_u8(e, 0xcf); /* or r15d, ecx */
	emit_store_gs(e, CPU_OFF(s.rflags), H_R15, 4);
}

static const uint8_t callee_saved[] = { H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15 };

/* Leave to C with the reason in eax; all guest state is stored already. */
static void emit_return(struct emit *e)
{
	emit_load_gs(e, H_RSP, CPU_OFF(host_rsp), 8);
	for (int i = (int)ARRAY_SIZE(callee_saved) - 1; i >= 0; i--)
		emit_pop(e, callee_saved[i]);
	emit_u8(e, 0xc3);
}

static void emit_leave(struct emit *e, unsigned reason)
{
	store_guest(e);
	store_flags(e);
	emit_mov_ri(e, H_RAX, reason);
	emit_return(e);
}

/* Somebody waits for this vCPU: the interpreter makes the access, so that no row of misses can hold it here. */
static bool is_wanted(const struct dbt_cpu *cpu)
{
	return atomic_load_explicit(&cpu->poll, memory_order_relaxed);
}

/* The block is left before the instruction at hand. */
static void count_back(struct dbt_cpu *cpu)
{
	if (cpu->vm->xlate->is_counting)
		cpu->left += (int64_t)cpu->count_fix;
}

/*
 * The miss: called from a block's cold part with the linear address in rcx and
 *   exit_info = page_off | size << 16 | is_write << 28.
 * Returns (to the retry) when the TLB entry is good now, else the instruction is interpreted.
 */
static uint64_t miss(struct dbt_cpu *cpu, uint64_t va)
{
	uint32_t info = (uint32_t)cpu->exit_info;

	cpu->s.rip = cpu->pc_base + (info & 0xffff);
	if (cpu->code_bits != 64)
		cpu->s.rip = (uint32_t)cpu->s.rip;
	if (mmu_fill(cpu, va, (info >> 16) & 0xfff, info >> 28 & 1, cpu->tlb_mode)) {
		cpu->xlate->fill_true++;
		check_note_fill(cpu, va);
		if (!is_wanted(cpu))
			return 1;
	} else {
		cpu->xlate->fill_false++;
	}
	count_back(cpu);
	return 0;
}

/*
 * The same for a group of accesses (coalesce.c); its span lies in one page.  exit_info has bit 29 set too if the
 * access at hand writes.  Returns 1 when one check covers the group now, 0 when each access has to be checked by
 * itself; else the instruction is interpreted: the access at hand is not for translated code.
 */
enum { GROUP_EACH, GROUP_RETRY, GROUP_LEAVE };
static uint64_t miss_group(struct dbt_cpu *cpu, uint64_t va)
{
	uint32_t info = (uint32_t)cpu->exit_info;
	const struct dbt_tlb *t = &cpu->tlb[cpu->tlb_mode];

	cpu->s.rip = cpu->pc_base + (info & 0xffff);
	if (cpu->code_bits != 64)
		cpu->s.rip = (uint32_t)cpu->s.rip;
	/* If the write comes later, as a read: the D bit is not to be set before. */
	if (!mmu_fill(cpu, va, (info >> 16) & 0xfff, info >> 29 & 1, cpu->tlb_mode)) {
		cpu->xlate->fill_false++;
		count_back(cpu);
		return GROUP_LEAVE;
	}
	cpu->xlate->fill_true++;
	check_note_fill(cpu, va);
	if (cpu->code_bits != 64)
		va = (uint32_t)va;
	bool is_writable = va + t->wneg[(va & cpu->tlb_mask) >> GUEST_PAGE_SHIFT] < GUEST_PAGE_SIZE;

	if (is_wanted(cpu)) {
		count_back(cpu);
		return GROUP_LEAVE;
	}
	return !(info >> 28 & 1) || is_writable ? GROUP_RETRY : GROUP_EACH;
}

static uint8_t *begin(struct xlate_vm *x, struct emit *e)
{
	while (x->cc.used & 15)
		x->cc.rw[x->cc.used++] = 0xcc;
	e->p = e->start = x->cc.rw + x->cc.used;
	e->end = x->cc.rw + XLATE_STUB_BYTES;
	e->is_full = e->has_base = false;
	e->exec_delta = x->cc.rx - x->cc.rw;
	return e->p + e->exec_delta;
}

static void finish(struct xlate_vm *x, struct emit *e)
{
	x->cc.used = (size_t)(e->p - x->cc.rw);
}

/* Host registers with a guest register in them that a C function may change. */
static const uint8_t call_clobbered[] = { H_RAX, H_RDX, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11 };

static int32_t guest_home(unsigned host_reg)
{
	unsigned i = 0;

	while (mapped[i][1] != host_reg)
		i++;
	return CPU_GPR_OFF(mapped[i][0]);
}

/* rsp = the dispatcher's stack, aligned for a call of C. */
static void emit_host_stack(struct emit *e)
{
	emit_load_gs(e, H_RSP, CPU_OFF(host_rsp), 8);
	emit_bytes(e, (const uint8_t[]){ 0x48, 0x83, 0xe4, 0xf0 }, 4); /* and rsp, -16 */
}

/*
 * Jump to the block that @fn finds, or leave.  Guest registers that C preserves stay where they are; arithmetic flags travel
 * in tmp[2] (lahf; seto al).
 */
static void emit_find(struct xlate_vm *x, struct emit *e, uintptr_t fn)
{
	for (unsigned i = 0; i < ARRAY_SIZE(call_clobbered); i++)
		emit_store_gs(e, guest_home(call_clobbered[i]), call_clobbered[i], 8);
	emit_bytes(e, (const uint8_t[]){ 0x9f, 0x0f, 0x90, 0xc0 }, 4); /* lahf; seto al */
	emit_store_gs(e, CPU_OFF(tmp[2]), H_RAX, 8);
	emit_store_gs(e, CPU_OFF(tmp[1]), H_RSP, 8);
	emit_host_stack(e);
	emit_load_gs(e, H_RDI, CPU_OFF(self), 8);
	emit_mov_ri(e, H_RAX, (uint64_t)fn);
	emit_bytes(e, (const uint8_t[]){ 0xff, 0xd0 }, 2); /* call rax */
	emit_mov_rr(e, H_RCX, H_RAX, 8);
	emit_load_gs(e, H_RSP, CPU_OFF(tmp[1]), 8);
	emit_load_gs(e, H_RAX, CPU_OFF(tmp[2]), 8);
	emit_bytes(e, (const uint8_t[]){ 0x04, 0x7f, 0x9e }, 3); /* add al, 0x7f; sahf */
	for (unsigned i = 0; i < ARRAY_SIZE(call_clobbered); i++)
		emit_load_gs(e, call_clobbered[i], guest_home(call_clobbered[i]), 8);
	load_base(e);
	emit_bytes(e, (const uint8_t[]){ 0xe3, 0x02, 0xff, 0xe1 }, 4); /* jrcxz +2; jmp rcx */
	emit_leave(e, XEXIT_LOOKUP);
	finish(x, e);
}

/*
 * exit_lookup   the branch table has no block for s.rip
 * exit_branch   the same for a branch, whose exit_info is in r15d
 * exit_far      a far link, in rcx, is not patched, or its page is another
 */
static void emit_lookup_stub(struct xlate_vm *x, struct emit *e)
{
	x->exit_branch = begin(x, e);
	emit_store_gs(e, CPU_OFF(exit_info), H_R15, 4);
	x->exit_lookup = e->p + e->exec_delta;
	emit_find(x, e, (uintptr_t)xlate_lookup_fast);
	x->exit_far = begin(x, e);
	emit_store_gs(e, CPU_OFF(exit_info), H_RCX, 8);
	emit_find(x, e, (uintptr_t)xlate_far);
}

/*
 * Returns.  A guest CALL is a host CALL, and RET a host RET, so that the host predicts where it goes.  Translated code
 * has its own stack for that, in memory no guest can reach.  A call pushes two words: ret_key + return address, and
 * (the host's CALL) the landing, the code of the block after the call.
 *
 *   ret      r14 = the RIP to return to, rcx = ~(ret_key + r14), exit_info set; host RET
 *   landing  pops the word of the call; it goes on if the sum is -1: the guest returns to where it was called from,
 *            in the same mode and mapping.  Else to ret_again, with r14 as it was.
 *
 * ret_again   the guest has returned to something else (longjmp, a return address changed): one of the next few
 *             returns may be the one; else the branch table knows, or exit_lookup
 * ret_miss    stands at the top, for a return without a call: the stack is empty (rsp lies above its base)
 * ret_dead    the landing of a block that was dropped: one more word is on the stack
 */
#define RET_DEPTH 6

static void emit_returns(struct xlate_vm *x, struct emit *e)
{
	static const uint8_t not_r15[] = { 0x49, 0xf7, 0xd7 };
	uint8_t *miss, *found[RET_DEPTH];

	x->ret_again = begin(x, e);
	emit_load_gs(e, H_R15, CPU_OFF(ret_key), 8);
	emit_lea(e, H_R15, H_R15, H_R14, 1, 0, 8);
	emit_bytes(e, not_r15, sizeof(not_r15));
	for (unsigned i = 0; i < RET_DEPTH; i++) {
		/* mov rcx, [rsp + 16 i + 8] */
		emit_bytes(e, (const uint8_t[]){ 0x48, 0x8b, 0x4c, 0x24, (uint8_t)(16 * i + 8) }, 5);
		emit_lea(e, H_RCX, H_RCX, H_R15, 1, 1, 8);
		emit_bytes(e, (const uint8_t[]){ 0xe3, 0 }, 2); /* jrcxz */
		found[i] = e->p;
	}
	emit_bytes(e, (const uint8_t[]){ 0xeb, 0 }, 2); /* jmp short: none of them */
	miss = e->p;
	for (unsigned i = RET_DEPTH; i-- > 0;) {
		found[i][-1] = (uint8_t)(e->p - found[i]);
		if (i) /* lea rsp, [rsp + 16]: drops one */
			emit_bytes(e, (const uint8_t[]){ 0x48, 0x8d, 0x64, 0x24, 16 }, 5);
	}
	emit_mov_rr(e, H_RCX, H_R15, 8);
	load_base(e);
	emit_u8(e, 0xc3);
	finish(x, e);

	x->ret_dead = begin(x, e);
	emit_bytes(e, (const uint8_t[]){ 0x48, 0x8d, 0x64, 0x24, 8 }, 5); /* lea rsp, [rsp + 8] */
	emit_bytes(e, (const uint8_t[]){ 0xeb, 0 }, 2);
	uint8_t *dead = e->p;
	x->ret_miss = e->p + e->exec_delta;
	emit_load_gs(e, H_RSP, CPU_OFF(ret_base), 8);
	miss[-1] = (uint8_t)(e->p - miss);
	dead[-1] = (uint8_t)(e->p - dead);
	emit_store_gs(e, CPU_OFF(s.rip), H_R14, 8);
	emit_mov_rr(e, H_RCX, H_R14, 8);
	emit_pext_gs(e, H_R14, H_RCX, CPU_OFF(jc_mask), false);
	emit_load_gs(e, H_R15, CPU_OFF(jc_key_now), 8);
	emit_lea(e, H_RCX, H_RCX, H_R15, 1, 0, 8);
	emit_load_gs_idx(e, H_R15, H_R14, CPU_OFF(jc_neg));
	emit_lea(e, H_RCX, H_RCX, H_R15, 1, 0, 8);
	emit_bytes(e, (const uint8_t[]){ 0xe3, 5, 0xe9 }, 3); /* jrcxz +5; jmp exit_lookup */
	emit_u32(e, (uint32_t)(x->exit_lookup - (e->p + 4 + e->exec_delta)));
	load_base(e);
	emit_bytes(e, (const uint8_t[]){ 0x65, 0x42, 0xff, 0x24, 0xf5 }, 5); /* jmp gs:[r14 * 8 + jc_code] */
	emit_u32(e, (uint32_t)CPU_OFF(jc_code));
	finish(x, e);
}

/* rax = @fn(cpu, rsi), all guest state being in s; rsp as it was waits in rbx. */
static void emit_c_call(struct emit *e, uintptr_t fn)
{
	emit_load_gs(e, H_RDI, CPU_OFF(self), 8);
	emit_mov_ri(e, H_RAX, (uint64_t)fn);
	emit_bytes(e, (const uint8_t[]){ 0x48, 0x89, 0xe3 }, 3); /* mov rbx, rsp */
	emit_host_stack(e);
	emit_bytes(e, (const uint8_t[]){ 0xff, 0xd0 }, 2);	 /* call rax */
	emit_bytes(e, (const uint8_t[]){ 0x48, 0x89, 0xdc }, 3); /* mov rsp, rbx */
}

/* rax = @fn(cpu, rcx), and flags that say whether it is 0; all guest state is in s meanwhile. */
static void emit_miss_call(struct emit *e, uintptr_t fn)
{
	emit_store_gs(e, CPU_OFF(tmp[0]), H_RCX, 8);
	store_guest(e);
	store_flags(e);
	emit_load_gs(e, H_RSI, CPU_OFF(tmp[0]), 8);
	emit_c_call(e, fn);
	emit_bytes(e, (const uint8_t[]){ 0x48, 0x85, 0xc0 }, 3); /* test rax, rax */
}

/* Unless the condition @not_cc holds, the instruction is interpreted, and the call's return address dropped. */
enum { CC_NZ = 5 };
static void emit_miss_refused(struct xlate_vm *x, struct emit *e, unsigned not_cc)
{
	/* jcc over the two that follow: lea rsp, [rsp + 8]; jmp fault_exit */
	emit_bytes(e, (const uint8_t[]){ (uint8_t)(0x70 | not_cc), 10, 0x48, 0x8d, 0x64, 0x24, 8, 0xe9 },
		   8);
	emit_u32(e, (uint32_t)(x->fault_exit - (e->p + 4 + e->exec_delta)));
}

/* s.rip from the offset in the page in rcx; outside of 64-bit code C wraps it. */
static void emit_rip(struct emit *e)
{
	emit_load_gs(e, H_R14, CPU_OFF(pc_base), 8);
	emit_lea(e, H_RCX, H_RCX, H_R14, 1, 0, 8);
	emit_store_gs(e, CPU_OFF(s.rip), H_RCX, 8);
}

/*
 * An instruction is interpreted in place: xlate_step() says where to go on, or why to leave.
 *
 * exit_call      its offset in the page is in rcx, its decoded form at r15; guest registers are in the host's
 * exit_syscall   the same for SYSCALL, exit_sysret for SYSRET, by a shorter way; r15 is the length
 * exit_interp    its offset in the page is in rcx; guest registers are in the host's
 * fault_exit     they are in s: after a host fault (the signal handler has put them there), or a miss
 */
static void emit_step(struct xlate_vm *x, struct emit *e)
{
	static uint64_t (*const fn[])(struct dbt_cpu *) = { xlate_call, xlate_syscall, xlate_sysret };
	uint8_t **const stub[] = { &x->exit_call, &x->exit_syscall, &x->exit_sysret };
	uint8_t *called[ARRAY_SIZE(fn)];

	for (unsigned i = 0; i < ARRAY_SIZE(fn); i++) {
		*stub[i] = begin(x, e);
		emit_store_gs(e, CPU_OFF(exit_info), H_R15, 8);
		emit_rip(e);
		store_guest(e);
		store_flags(e);
		emit_c_call(e, (uintptr_t)fn[i]);
		emit_u8(e, 0xe9);
		emit_u32(e, 0);
		called[i] = e->p;
		finish(x, e);
	}
	x->exit_interp = begin(x, e);
	emit_rip(e);
	store_guest(e);
	store_flags(e);
	x->fault_exit = e->p + e->exec_delta;
	emit_c_call(e, (uintptr_t)xlate_step);
	for (unsigned i = 0; i < ARRAY_SIZE(fn); i++) {
		uint32_t to_end = (uint32_t)(e->p - called[i]);

		if (!e->is_full)
			memcpy(called[i] - 4, &to_end, 4);
	}
	emit_bytes(e, (const uint8_t[]){ 0x48, 0x83, 0xf8, XEXIT_COUNT, 0x0f, 0x82 }, 6); /* cmp rax; jb */
	emit_u32(e, 0);
	uint8_t *leave = e->p;
	emit_store_gs(e, CPU_OFF(tmp[7]), H_RAX, 8);
	load_flags(e);
	load_guest(e);
	emit_bytes(e, (const uint8_t[]){ 0x65, 0xff, 0x24, 0x25 }, 4); /* jmp gs:[tmp7] */
	emit_u32(e, (uint32_t)CPU_OFF(tmp[7]));
	uint32_t rel = (uint32_t)(e->p - leave);

	if (!e->is_full)
		memcpy(leave - 4, &rel, 4);
	emit_return(e);
	finish(x, e);
}

int xlate_emit_stubs(struct dbt_vm *vm, struct error *err)
{
	struct xlate_vm *x = vm->xlate;
	struct emit em, *e = &em;

	/* unsigned enter(cpu in rdi, code in rsi) */
	x->enter = (unsigned (*)(struct dbt_cpu *, void *))(void *)begin(x, e);
	for (unsigned i = 0; i < ARRAY_SIZE(callee_saved); i++)
		emit_push(e, callee_saved[i]);
	emit_store_gs(e, CPU_OFF(host_rsp), H_RSP, 8);
	emit_load_gs(e, H_RSP, CPU_OFF(ret_base), 8);
	emit_store_gs(e, CPU_OFF(tmp[7]), H_RSI, 8);
	load_flags(e);
	load_guest(e);
	emit_bytes(e, (const uint8_t[]){ 0x65, 0xff, 0x24, 0x25 }, 4); /* jmp gs:[tmp7] */
	emit_u32(e, (uint32_t)CPU_OFF(tmp[7]));
	finish(x, e);

	emit_lookup_stub(x, e);
	if (x->has_bmi2)
		emit_returns(x, e);
	x->exit_link = begin(x, e);
	emit_store_gs(e, CPU_OFF(exit_info), H_RCX, 8);
	emit_leave(e, XEXIT_LINK);
	finish(x, e);
	emit_step(x, e);
	x->exit_poll = begin(x, e);
	emit_rip(e);
	emit_leave(e, XEXIT_POLL);
	finish(x, e);

	/* miss, miss_group: called (return address on the stack), va in rcx, exit_info in r15d */
	x->miss = begin(x, e);
	emit_store_gs(e, CPU_OFF(exit_info), H_R15, 4);
	emit_miss_call(e, (uintptr_t)miss);
	emit_miss_refused(x, e, CC_NZ);
	load_flags(e);
	load_guest(e);
	emit_load_gs(e, H_RCX, CPU_OFF(tmp[0]), 8);
	emit_u8(e, 0xc3);
	finish(x, e);

	/* miss_group: also size - 1 in r14; the answer comes back in rcx.  A span that crosses a page is no question. */
	x->miss_group = begin(x, e);
	emit_store_gs(e, CPU_OFF(exit_info), H_R15, 4);
	emit_store_gs(e, CPU_OFF(tmp[0]), H_RCX, 8);
	emit_lea(e, H_R14, H_R14, H_RCX, 1, 0, 8);
	emit_pext_gs(e, H_RCX, H_RCX, CPU_OFF(page_mask), false);
	emit_pext_gs(e, H_R14, H_R14, CPU_OFF(page_mask), false);
	emit_bytes(e, (const uint8_t[]){ 0x48, 0xf7, 0xd1 }, 3); /* not rcx */
	emit_lea(e, H_RCX, H_RCX, H_R14, 1, 1, 8); /* 0: first and last byte lie in one page */
	emit_bytes(e, (const uint8_t[]){ 0xe3, 15 }, 2); /* jrcxz over the next three */
	emit_mov_ri(e, H_RCX, GROUP_EACH);
	load_base(e);
	emit_u8(e, 0xc3);
	emit_load_gs(e, H_RCX, CPU_OFF(tmp[0]), 8);
	emit_miss_call(e, (uintptr_t)miss_group);
	emit_bytes(e, (const uint8_t[]){ 0x83, 0xf8, GROUP_LEAVE }, 3); /* cmp eax */
	emit_miss_refused(x, e, CC_NZ);
	emit_store_gs(e, CPU_OFF(tmp[0]), H_RAX, 8);
	load_flags(e);
	load_guest(e);
	emit_load_gs(e, H_RCX, CPU_OFF(tmp[0]), 8);
	emit_u8(e, 0xc3);
	finish(x, e);

	if (x->has_bmi2) {
		begin(x, e);
		xlate_emit_strings(x, e);
		finish(x, e);
	}

	if (e->is_full)
		return error_set(err, -ENOMEM, "%llu bytes of code are too few for the engine's stubs",
				 (unsigned long long)XLATE_STUB_BYTES);
	x->cc.stubs_end = x->cc.used;
	return 0;
}
