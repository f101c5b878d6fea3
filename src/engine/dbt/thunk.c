/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Thunks: one guest instruction at a time on the host CPU.
 *
 * How it works.  emit_native() re-encodes the instruction; the code, followed by RET, is kept in executable
 * memory and found again by its own bytes (operands that differ only in displacement share a thunk).  The
 * trampoline loads the register map of emit.h and the arithmetic flags, calls the thunk and stores both back.
 * The guest's FPU state is in the host's registers meanwhile.
 *
 * Invariants
 *  1. A fault inside a thunk leaves the guest state untouched: the signal handler sends the thread to
 *     dbt_thunk_landing with the stack as at the thunk's entry, nothing is stored.
 *  2. Of the flags only FL_ARITH come from or go to the host; host DF, TF, AC stay 0.
 *  3. Executable memory is written through a second mapping (W^X) and by the vCPU's own thread only.
 *  4. The guest never sees a host address in the x87 instruction and data pointers: the hardware gets
 *     zeros there and the guest's values wait in thunk_cpu; when the hardware's are not zero any more,
 *     an x87 instruction has run since, and the guest is shown zeros.
 */
#include <assert.h>
#include <cpuid.h>
#include <errno.h>
#include <sys/mman.h>

#include "engine/dbt/emit.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/thunk.h"

#define THUNK_AREA_BYTES (512 * KIB)
#define THUNK_MAX_BYTES	 128u
#define THUNK_TABLE	 8192u /* power of two */
#define THUNK_PROBES	 4u

struct thunk_ref {
	uint32_t hash;
	uint32_t off;
	uint32_t len; /* 0: free */
};

struct thunk_cpu {
	uint8_t *rw, *rx; /* the same memory */
	uint32_t used;
	uint32_t generation; /* changes when all thunks are thrown away; never 0 */
	uint64_t fip, fdp;   /* invariant 4 */
	uint16_t fop;
	struct thunk_ref table[THUNK_TABLE];
	struct decoded decode[THUNK_DECODE_ENTRIES];
};

/* ---- trampoline ---- */

_Static_assert(offsetof(struct dbt_cpu, s.gpr) == 256 && offsetof(struct dbt_cpu, s.rflags) == 392,
	       "the trampoline's offsets");
_Static_assert(FL_ARITH == 0x8d5, "the trampoline's mask");

/*
 * unsigned dbt_thunk_call(struct dbt_cpu *gs, const void *code, void *operand)
 * Returns 0, or from the landing 1 + vector.
 */
unsigned dbt_thunk_call(struct dbt_cpu *cpu, const void *code, void *operand);
extern const char dbt_thunk_landing[];

// clang-format off
__asm__(".text\n"
	".p2align 4\n"
	".globl dbt_thunk_call\n"
	".type dbt_thunk_call, @function\n"
	"dbt_thunk_call:\n"
	"	push %rbx\n"
	"	push %rbp\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	mov %rdx, %r14\n"
	"	mov %rsi, %r15\n"
	"	mov %gs:392, %eax\n"
	"	and $0x8d5, %eax\n"
	"	or $0x202, %eax\n"
	"	push %rax\n"
	"	popfq\n"
	"	mov %gs:256, %rax\n"
	"	mov %gs:264, %r9\n"
	"	mov %gs:272, %rdx\n"
	"	mov %gs:280, %rbx\n"
	"	mov %gs:288, %r13\n"
	"	mov %gs:296, %rbp\n"
	"	mov %gs:304, %rsi\n"
	"	mov %gs:312, %rdi\n"
	"	mov %gs:320, %r8\n"
	"	mov %gs:352, %r12\n"
	"	mov %gs:360, %r10\n"
	"	mov %gs:368, %r11\n"
	"	call *%r15\n"
	"	mov %rax, %gs:256\n"
	"	mov %r9, %gs:264\n"
	"	mov %rdx, %gs:272\n"
	"	mov %rbx, %gs:280\n"
	"	mov %r13, %gs:288\n"
	"	mov %rbp, %gs:296\n"
	"	mov %rsi, %gs:304\n"
	"	mov %rdi, %gs:312\n"
	"	mov %r8, %gs:320\n"
	"	mov %r12, %gs:352\n"
	"	mov %r10, %gs:360\n"
	"	mov %r11, %gs:368\n"
	"	pushfq\n"
	"	pop %rax\n"
	"	mov %gs:392, %rcx\n"
	"	and $0x8d5, %eax\n"
	"	and $0xfffffffffffff72a, %rcx\n"
	"	or %rax, %rcx\n"
	"	mov %rcx, %gs:392\n"
	"	xor %eax, %eax\n"
	"1:	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbp\n"
	"	pop %rbx\n"
	"	ret\n"
	".globl dbt_thunk_landing\n"
	"dbt_thunk_landing:\n"
	"	add $8, %rsp\n" /* the thunk's return address */
	"	jmp 1b\n"
	".size dbt_thunk_call, . - dbt_thunk_call\n");
// clang-format on

bool thunk_fault(struct dbt_cpu *cpu, ucontext_t *uc)
{
	const struct thunk_cpu *t = cpu->thunk;
	uintptr_t pc = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
	int vector;

	if (!t || pc - (uintptr_t)t->rx >= THUNK_AREA_BYTES)
		return false;
	vector = dbt_fault_vector(cpu, uc);
	if (vector < 0)
		return false;
	uc->uc_mcontext.gregs[REG_RAX] = vector + 1;
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)dbt_thunk_landing;
	return true;
}

/* ---- executable memory ---- */

int thunk_cpu_create(struct dbt_cpu *cpu, struct error *err)
{
	struct thunk_cpu *t;
	_cleanup_close_ int fd = -1;
	int ret;

	if (!dbt_host_xsave_mask())
		return error_set(err, -ENOTSUP, "the host CPU has no XSAVE, which the dbt engine needs");
	t = aligned_alloc(64, ALIGN_UP(sizeof(*t), 64));
	if (!t)
		return error_set(err, -ENOMEM, "no memory for a vCPU's interpreter");
	memset(t, 0, sizeof(*t));
	t->generation = 1;
	t->rw = t->rx = MAP_FAILED;

	fd = memfd_create("viv-thunks", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, THUNK_AREA_BYTES) < 0)
		goto fail;
	t->rw = mmap(NULL, THUNK_AREA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	t->rx = mmap(NULL, THUNK_AREA_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (t->rw == MAP_FAILED || t->rx == MAP_FAILED)
		goto fail;
	cpu->thunk = t;
	return 0;
fail:
	ret = -errno;
	if (t->rw != MAP_FAILED)
		munmap(t->rw, THUNK_AREA_BYTES);
	if (t->rx != MAP_FAILED)
		munmap(t->rx, THUNK_AREA_BYTES);
	free(t);
	return error_set(err, ret, "cannot map executable memory for a vCPU (errno %d); is PROT_EXEC forbidden here?",
			 -ret);
}

void thunk_cpu_destroy(struct dbt_cpu *cpu)
{
	struct thunk_cpu *t = cpu->thunk;

	if (!t)
		return;
	munmap(t->rw, THUNK_AREA_BYTES);
	munmap(t->rx, THUNK_AREA_BYTES);
	free(t);
	cpu->thunk = NULL;
}

struct decoded *thunk_decode_slot(struct dbt_cpu *cpu, uint64_t va)
{
	/* Instructions of a loop body sit beside each other: the low bits spread best. */
	return &cpu->thunk->decode[(va ^ va >> 12) & (THUNK_DECODE_ENTRIES - 1)];
}

static uint32_t hash_bytes(const uint8_t *b, unsigned len)
{
	uint32_t h = 2166136261u; /* FNV-1a */

	for (unsigned i = 0; i < len; i++)
		h = (h ^ b[i]) * 16777619u;
	return h ^ h >> 15;
}

/* Code for @in, or NULL when the instruction has no native encoding. */
static const void *thunk_find(struct dbt_cpu *cpu, const struct insn *in)
{
	struct thunk_cpu *t = cpu->thunk;
	uint8_t buf[THUNK_MAX_BYTES];
	struct emit e = { .p = buf, .start = buf, .end = buf + sizeof(buf), .host = emit_host_reg };
	struct thunk_ref *ref = NULL;
	uint32_t len, hash;

	if (!emit_native(&e, in, 0))
		return NULL;
	emit_u8(&e, 0xc3);
	assert(!e.is_full);
	len = (uint32_t)(e.p - e.start);
	hash = hash_bytes(buf, len);

	for (unsigned i = 0; i < THUNK_PROBES; i++) {
		struct thunk_ref *r = &t->table[(hash + i) & (THUNK_TABLE - 1)];

		if (r->len == len && r->hash == hash && !memcmp(t->rw + r->off, buf, len))
			return t->rx + r->off;
		if (!ref && !r->len)
			ref = r;
	}
	if (!ref)
		ref = &t->table[hash & (THUNK_TABLE - 1)];
	if (t->used + len > THUNK_AREA_BYTES) {
		memset(t->table, 0, sizeof(t->table));
		t->used = 0;
		t->generation++;
		if (!t->generation)
			t->generation = 1;
	}
	*ref = (struct thunk_ref){ .hash = hash, .off = t->used, .len = len };
	memcpy(t->rw + t->used, buf, len);
	t->used = ALIGN_UP(t->used + len, 16u);
	return t->rx + ref->off;
}

/* ---- execution ---- */

/* Is the operand's alignment checked before anything else?  Of the SHA instructions it is on Intel's CPUs only. */
static bool is_aligned_operand(const struct dbt_cpu *cpu, const struct insn *in)
{
	return in->desc->attr & INSN_ALIGNED ||
	       (in->desc->feature == CPUF_SHA && !cpu->vm->model.is_amd);
}

/* MOVSXD r16 reads 16 bits of memory on Intel's CPUs (SDM vol. 2, MOVSX), 32 on AMD's. */
static unsigned operand_size(const struct dbt_cpu *cpu, const struct insn *in)
{
	if (in->desc->id == I_MOVSXD && in->opsize == 2 && !cpu->vm->model.is_amd)
		return 2;
	return in->mem_size;
}

static _Noreturn void raise_fault(struct dbt_cpu *cpu, unsigned fault)
{
	if (fault - 1 == EXC_GP)
		dbt_raise_err(cpu, EXC_GP, 0);
	dbt_raise(cpu, fault - 1);
}

enum { FSW_TOP = 0x3800, X87_ALL = 0x3f, X87_PE = 0x20 };

/* TOP of the x87 stack = 0, and nothing else changes. */
static void clear_top(void)
{
	struct {
		uint32_t fcw, fsw, ftw, other[4];
	} env;
	uint16_t fsw;

	__asm__ volatile("fnstsw %0" : "=a"(fsw));
	if (!(fsw & FSW_TOP))
		return;
	__asm__ volatile("fnstenv %0" : "=m"(env));
	env.fsw &= ~(uint32_t)FSW_TOP;
	__asm__ volatile("fldenv %0" : : "m"(env));
}

/*
 * Intel's CPUs do some of an instruction's work before they look at the operand they store to, and a fault there
 * does not undo it: of the step from x87 to MMX the new TOP, not the tags; and the exceptions that VCVTPS2PH finds.
 */
static void work_before_store(struct dbt_cpu *cpu, const struct insn *in, const void *code)
{
	unsigned fault;

	if (in->desc->attr & INSN_MMX) {
		dbt_fpu_to_regs(cpu);
		clear_top();
	} else if (in->desc->id == I_VCVTPS2PH) {
		dbt_fpu_to_regs(cpu);
		fault = dbt_thunk_call(cpu, code, cpu->tmp);
		if (fault)
			raise_fault(cpu, fault);
	}
}

/*
 * x87 stores as Intel's CPUs do them.  With an unmasked exception other than #P nothing is stored (SDM vol. 1 8.5) and
 * the operand is not looked at; AMD's CPUs do.  80 bits are two accesses of which the first may complete and the second
 * fault (SDM vol. 3 8.1.1).  Returns true if the instruction is complete.
 */
static bool x87_store(struct dbt_cpu *cpu, const struct insn *in, const void *code)
{
	_Alignas(16) uint8_t before[512];
	uint64_t ea = insn_ea(cpu, in);
	bool has_base = cpu->code_bits != 64 || in->seg >= SEG_FS;
	uint64_t lin = ea + (has_base ? cpu->s.seg[in->seg].base : 0);
	bool is_split = in->mem_size == 10 && (lin & (GUEST_PAGE_SIZE - 1)) > GUEST_PAGE_SIZE - 10;
	uint16_t fcw, fsw;

	dbt_fpu_to_regs(cpu);
	__asm__ volatile("fnstcw %0" : "=m"(fcw));
	if ((fcw & X87_ALL) == X87_ALL && !is_split)
		return false;
	__asm__ volatile("fxsave64 %0" : "=m"(before));
	if (dbt_thunk_call(cpu, code, cpu->tmp))
		return false; /* the second run raises it */
	__asm__ volatile("fnstsw %0" : "=a"(fsw));
	if (fsw & ~fcw & X87_ALL & ~X87_PE)
		return true;
	__asm__ volatile("fxrstor64 %0" : : "m"(before));
	if (is_split)
		mem_write(cpu, in->seg, ea, 8, cpu->tmp[0]);
	return false;
}

static bool is_x87_store(const struct insn *in)
{
	switch (in->desc->id) {
	case I_FST:
	case I_FSTP:
	case I_FIST:
	case I_FISTP:
	case I_FISTTP:
	case I_FBSTP:
		return true;
	default:
		return false;
	}
}

static void run(struct dbt_cpu *cpu, const struct insn *in, const void *code)
{
	struct mem_op op;
	unsigned fault;
	bool has_op = in->has_mem && in->mem_access;

	if (unlikely(thunk_thread_cpu() != cpu) && thunk_thread_init(cpu, NULL) < 0)
		abort(); /* no GS base: the host kernel denied arch_prctl */

	if (has_op && in->mem_access == ACC_WRITE && !cpu->vm->model.is_amd) {
		work_before_store(cpu, in, code);
		if (is_x87_store(in) && x87_store(cpu, in, code))
			return;
	}

	if (has_op) {
		uint64_t ea = insn_ea(cpu, in);

		/* Before all other checks of the operand, as the CPU does. */
		if (is_aligned_operand(cpu, in) && insn_is_misaligned(cpu, in, ea, in->mem_size))
			dbt_raise_err(cpu, EXC_GP, 0);
		mem_begin(cpu, &op, in->seg, ea, operand_size(cpu, in), in->mem_access,
			  insn_is_locked(in));
	}
	if (in->desc->attr & (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX))
		dbt_fpu_to_regs(cpu);
	fault = dbt_thunk_call(cpu, code, has_op ? op.ptr : cpu->tmp);
	if (unlikely(fault)) {
		if (has_op)
			mem_abort(cpu, &op);
		raise_fault(cpu, fault);
	}
	if (has_op)
		mem_commit(cpu, &op);
}

void native_exec(struct dbt_cpu *cpu, const struct insn *in)
{
	const void *code = thunk_find(cpu, in);

	if (!code)
		dbt_raise(cpu, EXC_UD);
	run(cpu, in, code);
}

void native_exec_cached(struct dbt_cpu *cpu, struct decoded *d)
{
	struct thunk_cpu *t = cpu->thunk;

	if (unlikely(d->generation != t->generation)) {
		d->thunk = thunk_find(cpu, &d->in);
		d->generation = t->generation;
	}
	if (unlikely(!d->thunk))
		dbt_raise(cpu, EXC_UD);
	run(cpu, &d->in, d->thunk);
}

/* ---- FPU state ---- */

/* Offsets in the legacy area of an XSAVE image (SDM vol. 1 10.5.1). */
/* clang-format off */
enum { FX_FOP = 6, FX_FIP = 8, FX_FDP = 16, FX_MXCSR = 24, FX_MXCSR_MASK = 28, XS_BV = 512, XS_COMP = 520 };
/* clang-format on */

uint64_t dbt_host_xsave_mask(void)
{
	static _Atomic uint64_t known; /* bit 63: asked */
	unsigned a, b, c, d;
	uint64_t mask = 0;

	if (known)
		return known & 7;
	if (__get_cpuid(1, &a, &b, &c, &d) && c & bit_OSXSAVE) {
		uint32_t lo, hi;

		__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
		mask = lo & 7;
	}
	known = mask | 1ULL << 63;
	return mask;
}

uint32_t dbt_host_mxcsr_mask(void)
{
	static _Atomic uint32_t known;
	_Alignas(16) uint8_t fx[512];
	uint32_t mask;

	if (known)
		return known;
	memset(fx, 0, sizeof(fx));
	__asm__ volatile("fxsave %0" : "=m"(fx));
	memcpy(&mask, fx + FX_MXCSR_MASK, 4);
	known = mask ? mask : 0xffbf;
	return known;
}

/* What C code expects: everything initial, exceptions masked. */
static const struct {
	_Alignas(64) uint8_t b[X86_XSAVE_BYTES];
} fpu_init = { { [FX_MXCSR] = 0x80, [FX_MXCSR + 1] = 0x1f } };

void thunk_set_fpu_pointers(struct dbt_cpu *cpu, uint64_t fip, uint64_t fdp, uint16_t fop)
{
	cpu->thunk->fip = fip;
	cpu->thunk->fdp = fdp;
	cpu->thunk->fop = fop & 0x7ff;
}

/* The registers' state as an image; they keep it. */
static void save(struct dbt_cpu *cpu, uint32_t mask)
{
	struct thunk_cpu *t = cpu->thunk;
	uint8_t *x = cpu->s.xsave;
	uint64_t fip;

	memset(x + FX_FIP, 0, 16); /* some CPUs write it only with an exception pending */
	__asm__ volatile("xsave64 %0" : "+m"(cpu->s.xsave) : "a"(mask), "d"(0));
	memcpy(&fip, x + FX_FIP, 8);
	if (fip)
		t->fip = t->fdp = t->fop = 0;
	memcpy(x + FX_FIP, &t->fip, 8);
	memcpy(x + FX_FDP, &t->fdp, 8);
	memcpy(x + FX_FOP, &t->fop, 2);
	if (t->fip || t->fdp || t->fop)
		x[XS_BV] |= 1; /* not initial, as with these in the registers */
}

void dbt_fpu_to_mem(struct dbt_cpu *cpu)
{
	uint32_t mask = (uint32_t)dbt_host_xsave_mask();

	if (!cpu->is_fpu_in_regs)
		return;
	save(cpu, mask);
	__asm__ volatile("xrstor64 %0" : : "m"(fpu_init), "a"(mask), "d"(0));
	cpu->is_fpu_in_regs = false;
}

const uint8_t *thunk_fpu_image(struct dbt_cpu *cpu)
{
	dbt_fpu_to_regs(cpu);
	save(cpu, (uint32_t)dbt_host_xsave_mask());
	return cpu->s.xsave;
}

void dbt_fpu_to_regs(struct dbt_cpu *cpu)
{
	struct thunk_cpu *t = cpu->thunk;
	uint8_t *x = cpu->s.xsave;
	uint32_t mask = (uint32_t)dbt_host_xsave_mask(), mxcsr;
	uint64_t bv;

	if (cpu->is_fpu_in_regs)
		return;
	/* The image may come from a stream or another engine: XRSTOR must not fault on it. */
	memcpy(&mxcsr, x + FX_MXCSR, 4);
	mxcsr &= dbt_host_mxcsr_mask();
	memcpy(x + FX_MXCSR, &mxcsr, 4);
	memcpy(&bv, x + XS_BV, 8);
	bv &= mask;
	memcpy(x + XS_BV, &bv, 8);
	memset(x + XS_COMP, 0, 56);

	t->fip = t->fdp = t->fop = 0;
	if (bv & 1) {
		memcpy(&t->fip, x + FX_FIP, 8);
		memcpy(&t->fdp, x + FX_FDP, 8);
		memcpy(&t->fop, x + FX_FOP, 2);
	}
	memset(x + FX_FOP, 0, 2);
	memset(x + FX_FIP, 0, 16);
	__asm__ volatile("xrstor64 %0" : : "m"(cpu->s.xsave), "a"(mask), "d"(0));
	cpu->is_fpu_in_regs = true;
}
