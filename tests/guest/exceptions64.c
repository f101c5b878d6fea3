/* SPDX-License-Identifier: Apache-2.0 */
/* Every exception that an instruction can raise: vector, error code, saved RIP.  SDM vol. 3 6.15. */
#include "guest.h"

#define FN(name, code)                                                                             \
	static void name(void *arg)                                                                \
	{                                                                                          \
		__asm__ volatile(code : : "D"(arg) : "rax", "rcx", "rdx", "memory", "cc");         \
	}

FN(divide, "xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx")
FN(divide_overflow, "mov $1, %%edx; mov $1, %%ecx; xor %%eax, %%eax; div %%ecx")
FN(idivide_min, "mov $0x80000000, %%eax; cdq; mov $-1, %%ecx; idiv %%ecx")
FN(int3, "int3")
FN(icebp, ".byte 0xf1")
FN(invalid, "ud2")
FN(lock_nop, ".byte 0xf0, 0x90")
FN(push_es, ".byte 0x06")
FN(mov_cs, "mov $0x10, %%eax; .byte 0x8e, 0xc8")
FN(lea_reg, ".byte 0x8d, 0xc0")
FN(too_long,
   ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90")
FN(load_limit, "mov $0xfff8, %%eax; mov %%eax, %%ds")
FN(load_ldt_sel, "mov $0x14, %%eax; mov %%eax, %%ds")
FN(load_code_rw, "mov $0x38, %%eax; mov %%eax, %%ds") /* execute-only code */
FN(load_np, "mov $0x40, %%eax; mov %%eax, %%ds")
FN(load_ss_np, "mov $0x40, %%eax; mov %%eax, %%ss")
FN(load_ss_ro, "mov $0x48, %%eax; mov %%eax, %%ss")
FN(noncanonical_ds, "mov $0x800000000000, %%rax; mov (%%rax), %%rcx")
FN(noncanonical_rbp,
   "mov %%rbp, %%rdx; mov $0x800000000000, %%rbp; mov (%%rbp), %%rax; mov %%rdx, %%rbp")
FN(noncanonical_jump, "mov $0x800000000000, %%rax; jmp *%%rax")
FN(cr4_reserved, "mov %%cr4, %%rax; bts $31, %%rax; mov %%rax, %%cr4")
FN(cr0_pg_without_pe, "mov %%cr0, %%rax; and $~1, %%rax; mov %%rax, %%cr0")
FN(cr0_high, "mov %%cr0, %%rax; bts $32, %%rax; mov %%rax, %%cr0")
FN(cr8_high, "mov $0x10, %%eax; mov %%rax, %%cr8")
FN(cr1, ".byte 0x0f, 0x20, 0xc8")
FN(cr4_no_pae, "mov %%cr4, %%rax; and $~0x20, %%rax; mov %%rax, %%cr4")
FN(efer_lme, "mov $0xc0000080, %%ecx; rdmsr; btr $8, %%eax; wrmsr")
FN(efer_reserved, "mov $0xc0000080, %%ecx; rdmsr; bts $1, %%eax; wrmsr")
FN(msr_unknown_read, "mov $0xdead0000, %%ecx; rdmsr")
FN(msr_unknown_write, "mov $0xdead0000, %%ecx; wrmsr")
FN(lstar_noncanonical, "mov $0xc0000082, %%ecx; xor %%eax, %%eax; mov $0x8000, %%edx; wrmsr")
FN(pat_bad, "mov $0x277, %%ecx; mov $2, %%eax; xor %%edx, %%edx; wrmsr")
FN(int_np, "int $0x70")
FN(int_bad_sel, "int $0x71")
FN(int_user_gate, "int $0x72")
FN(ltr_null, "xor %%eax, %%eax; ltr %%ax")
FN(ltr_busy, "mov $0x80, %%eax; ltr %%ax")
FN(ltr_data, "mov $0x10, %%eax; ltr %%ax")
FN(lldt_bad, "mov $0x10, %%eax; lldt %%ax")
FN(iret_bad_cs, "mov %%ss, %%eax; push %%rax; push %%rsp; pushf; pushq $0xfff8; lea 1f(%%rip), "
		"%%rax; push %%rax; iretq; 1:")
FN(retf_null, "pushq $0; lea 1f(%%rip), %%rax; push %%rax; lretq; 1:")
FN(ts_x87, "mov %%cr0, %%rax; or $8, %%rax; mov %%rax, %%cr0; fld1")
FN(ts_sse, "mov %%cr0, %%rax; or $8, %%rax; mov %%rax, %%cr0; movaps %%xmm0, %%xmm0")
FN(ts_wait, "mov %%cr0, %%rax; or $8, %%rax; mov %%rax, %%cr0; fwait")
FN(em_sse, "mov %%cr0, %%rax; or $4, %%rax; mov %%rax, %%cr0; movaps %%xmm0, %%xmm0")
FN(em_x87, "mov %%cr0, %%rax; or $4, %%rax; mov %%rax, %%cr0; fld1")
FN(no_osfxsr, "mov %%cr4, %%rax; and $~0x200, %%rax; mov %%rax, %%cr4; movaps %%xmm0, %%xmm0")
FN(sse_misaligned, "lea 1(%%rdi), %%rax; movaps (%%rax), %%xmm0")
FN(sse_misaligned_op, "lea 4(%%rdi), %%rax; addps (%%rax), %%xmm0")
FN(x87_error, "fninit; pushq $0x37b; fldcw (%%rsp); pop %%rax; fld1; fldz; fdivrp; fwait")
FN(sse_error, "pushq $0x1d80; ldmxcsr (%%rsp); pop %%rax; mov $1, %%eax; cvtsi2ss %%eax, %%xmm0; "
	      "pxor %%xmm1, %%xmm1; divss %%xmm1, %%xmm0")
FN(mxcsr_reserved, "pushq $0x10000; ldmxcsr (%%rsp); pop %%rax")
FN(cmpxchg16b_misaligned,
   "lea 8(%%rdi), %%rax; mov %%rdi, %%rcx; push %%rbx; lock cmpxchg16b (%%rax); pop %%rbx")
FN(fxsave_misaligned, "lea 8(%%rdi), %%rax; fxsave (%%rax)")
FN(hlt_user, "hlt")
FN(out_user, "out %%al, $0x80")
FN(mov_cr_user, "mov %%cr0, %%rax")
FN(wrmsr_user, "mov $0x10, %%ecx; rdmsr")
FN(lgdt_user, "lgdt (%%rdi)")
FN(invlpg_user, "invlpg (%%rdi)")
FN(align_user, "pushfq; orq $0x40000, (%%rsp); popfq; mov 1(%%rdi), %%eax")
FN(int_user, "int $0x73")
FN(int3_user, "int3; mov $7, %%eax; int $0x80")
FN(sti_user, "sti")
FN(popf_user, "pushfq; orq $0x200, (%%rsp); popfq; pushfq; pop %%rax; int $0x80")

static uint8_t buffer[256] __attribute__((aligned(64)));

static void expect(void (*fn)(void *), int vector, word error, const char *name)
{
	check_fault(catch (fn, buffer), vector, error, name);
}

static void expect_user(void (*fn)(void *), int vector, word error, const char *name)
{
	check_fault(call_user(fn, user_ptr(buffer), NULL), vector, error, name);
}

/* CR0 and CR4 back to what they were, after a case that leaves them changed. */
static void expect_cr(void (*fn)(void *), int vector, const char *name)
{
	word cr0 = read_cr0(), cr4 = read_cr4();
	struct fault f = catch (fn, buffer);

	write_cr0(cr0);
	write_cr4(cr4);
	check_fault(f, vector, 0, name);
}

static void test_kernel(void)
{
	set_descriptor(0x38, 0, 0xffffffff, 0xc099 & ~2u); /* code, execute-only */
	set_descriptor(0x40, 0, 0xffffffff, 0xc013);	   /* data, not present */
	set_descriptor(0x48, 0, 0xffffffff, 0xc091);	   /* data, read-only */
	expect(divide, DE, 0, "#DE by zero");
	expect(divide_overflow, DE, 0, "#DE overflow");
	expect(idivide_min, DE, 0, "#DE most negative by -1");
	expect(int3, BP, 0, "#BP");
	expect(icebp, DB, 0, "INT1");
	expect(invalid, UD, 0, "#UD UD2");
	expect(lock_nop, UD, 0, "#UD LOCK without memory");
	expect(push_es, UD, 0, "#UD PUSH ES in 64-bit mode");
	expect(mov_cs, UD, 0, "#UD MOV CS");
	expect(lea_reg, UD, 0, "#UD LEA of a register");
	expect(too_long, GP, 0, "#GP 16-byte instruction");
	expect(load_limit, GP, 0xfff8, "#GP selector beyond the GDT");
	expect(load_ldt_sel, GP, 0x14, "#GP selector into no LDT");
	expect(load_code_rw, GP, 0x38, "#GP execute-only segment as data");
	expect(load_np, NP, 0x40, "#NP data segment");
	expect(load_ss_np, SS, 0x40, "#SS stack segment not present");
	expect(load_ss_ro, GP, 0x48, "#GP read-only stack segment");
	expect(noncanonical_ds, GP, 0, "#GP non-canonical data");
	expect(noncanonical_rbp, SS, 0, "#SS non-canonical through RBP");
	expect(noncanonical_jump, GP, 0, "#GP non-canonical jump");
	expect(cr4_reserved, GP, 0, "#GP reserved CR4 bit");
	expect(cr0_pg_without_pe, GP, 0, "#GP PG without PE");
	expect(cr0_high, GP, 0, "#GP CR0 bit 32");
	expect(cr8_high, GP, 0, "#GP CR8 bit 4");
	expect(cr1, UD, 0, "#UD CR1");
	expect(cr4_no_pae, GP, 0, "#GP PAE off in long mode");
	expect(efer_lme, GP, 0, "#GP LME off under paging");
	expect(efer_reserved, GP, 0, "#GP reserved EFER bit");
	expect(msr_unknown_read, GP, 0, "#GP unknown MSR, read");
	expect(msr_unknown_write, GP, 0, "#GP unknown MSR, write");
	expect(lstar_noncanonical, GP, 0, "#GP non-canonical LSTAR");
	expect(pat_bad, GP, 0, "#GP PAT type 2");
	set_gate(0x70, (void *)guest_main, KCODE, 0x0e, 0);
	expect(int_np, NP, 0x70 * 8 + 2, "#NP gate");
	set_gate(0x71, (void *)guest_main, KDATA, 0x8e, 0);
	expect(int_bad_sel, GP, KDATA, "#GP gate to a data segment");
	set_gate(0x72, (void *)guest_main, KCODE, 0x85, 0);
	expect(int_user_gate, GP, 0x72 * 8 + 2, "#GP task gate in long mode");
	expect(ltr_null, GP, 0, "#GP LTR null");
	expect(ltr_busy, GP, 0x80, "#GP LTR busy");
	expect(ltr_data, GP, 0x10, "#GP LTR of a data segment");
	expect(lldt_bad, GP, 0x10, "#GP LLDT of a data segment");
	expect(iret_bad_cs, GP, 0xfff8, "#GP IRET to a bad CS");
	expect(retf_null, GP, 0, "#GP RETF to null");
}

static void test_fpu(void)
{
	expect_cr(ts_x87, NM, "#NM x87 with TS");
	expect_cr(ts_sse, NM, "#NM SSE with TS");
	expect_cr(ts_wait, NM, "#NM FWAIT with MP and TS");
	expect_cr(em_x87, NM, "#NM x87 with EM");
	expect_cr(em_sse, UD, "#UD SSE with EM");
	expect_cr(no_osfxsr, UD, "#UD SSE without OSFXSR");
	expect(sse_misaligned, GP, 0, "#GP MOVAPS misaligned");
	expect(sse_misaligned_op, GP, 0, "#GP ADDPS misaligned");
	expect(x87_error, MF, 0, "#MF");
	__asm__ volatile("fninit");
	expect(sse_error, XM, 0, "#XM");
	__asm__ volatile("ldmxcsr %0" : : "m"(*&(uint32_t){ 0x1f80 }));
	expect(mxcsr_reserved, GP, 0, "#GP MXCSR reserved");
	expect(cmpxchg16b_misaligned, GP, 0, "#GP CMPXCHG16B misaligned");
	expect(fxsave_misaligned, GP, 0, "#GP FXSAVE misaligned");
}

static void test_user(void)
{
	expect_user(hlt_user, GP, 0, "#GP HLT in ring 3");
	expect_user(sti_user, GP, 0, "#GP STI in ring 3");
	expect_user(out_user, GP, 0, "#GP OUT in ring 3");
	expect_user(mov_cr_user, GP, 0, "#GP MOV CR0 in ring 3");
	expect_user(wrmsr_user, GP, 0, "#GP RDMSR in ring 3");
	expect_user(lgdt_user, GP, 0, "#GP LGDT in ring 3");
	expect_user(invlpg_user, GP, 0, "#GP INVLPG in ring 3");
	expect_user(int_user, GP, 0x73 * 8 + 2, "#GP INT n through a DPL 0 gate");
	expect_user(int3_user, GP, BP * 8 + 2, "#GP INT3 through a DPL 0 gate");
	write_cr0(read_cr0() | 1 << 18);
	expect_user(align_user, AC, 0, "#AC in ring 3");
	expect(align_user, -1, 0, "no #AC in ring 0");
	__asm__ volatile("pushf; andq $~0x40000, (%%rsp); popf" : : : "memory");
	write_cr0(read_cr0() & ~(1ul << 18));
	word flags = 0;
	struct fault f = call_user(popf_user, NULL, &flags);
	check(f.vector == -1 && !(flags & 0x200), "POPF in ring 3 leaves IF alone");
	f = call_user(hlt_user, NULL, NULL);
	check(f.cs == UCODE && (f.sp & ~0x3fffull) != 0, "CS and RSP of ring 3 are saved");
}

/* RIP: faults point at the instruction, traps behind it. */
static void test_rip(void)
{
	struct fault f = catch (int3, NULL);

	check(*(uint8_t *)(f.ip - 1) == 0xcc, "RIP behind INT3");
	f = catch (invalid, NULL);
	check(*(uint8_t *)f.ip == 0x0f && *(uint8_t *)(f.ip + 1) == 0x0b, "RIP at UD2");
	f = catch (noncanonical_jump, NULL);
	check(f.ip < TEST_BASE && *(uint8_t *)f.ip == 0xff, "RIP at the jump, not at its target");
}

/* A fault while #PF is delivered is a double fault, with its own stack by IST. */
static uint8_t ist_stack[4096] __attribute__((aligned(16)));
extern uint8_t entries[];

static void fault_on_bad_stack(void *arg)
{
	__asm__ volatile("mov %0, %%rsp; ud2" : : "r"(arg) : "memory");
}

static void test_double_fault(void)
{
	uint64_t tss = (gdt[TSS_SEL / 8] >> 16 & 0xffffff) | (gdt[TSS_SEL / 8] >> 56) << 24;

	*(uint64_t *)(tss + 36) = (uintptr_t)(ist_stack + sizeof(ist_stack)); /* IST1 */
	set_gate(DF, entries + 16 * DF, KCODE, 0x8e, 1);
	struct fault f = catch (fault_on_bad_stack, (void *)TEST_BASE);
	check_fault(f, DF, 0, "#DF when the stack faults");
	check_eq(f.cr2 & ~0xfffull, TEST_BASE - 4096, "CR2 of the second fault");
	check_eq(f.sp, TEST_BASE, "RSP of the first fault");
	set_gate(UD, (void *)guest_main, KDATA, 0x8e, 0);
	check_fault(catch (invalid, NULL), GP, KDATA + 1, "EXT bit: #GP while #UD is delivered");
	set_gate(GP, (void *)guest_main, KDATA, 0x8e, 0);
	check_fault(catch (load_limit, NULL), DF, 0, "#DF: #GP while #GP is delivered");
	set_gate(GP, entries + 16 * GP, KCODE, 0x8e, 0);
	set_gate(UD, entries + 16 * UD, KCODE, 0x8e, 0);
}

void guest_main(void)
{
	test_kernel();
	test_fpu();
	test_user();
	test_rip();
	test_double_fault();
}
