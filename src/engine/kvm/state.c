/* SPDX-License-Identifier: Apache-2.0 */
/*
 * struct x86_state in and out of KVM.
 *
 * Out: the MP state comes first, for reading it makes KVM apply a waiting INIT or SIPI, which
 * changes everything else. In: system registers first (they decide what the others may hold: EFER,
 * APIC_BASE), then general registers, XCR0 before the state it enables, MSRs, the TSC, events, the
 * MP state, debug registers.  The LAPIC follows by kvm_set_lapic(), as its timer counts on
 * APIC_BASE and TSC.
 */
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"

#define S(member) offsetof(struct x86_state, member)

// clang-format off
const struct kvm_msr_row kvm_msr_rows[] = {
	{ "IA32_TSC_ADJUST",         0x3b,       1, 1, S(tsc_adjust) },
	{ "IA32_SPEC_CTRL",          0x48,       1, 1, S(spec_ctrl) },
	{ "IA32_SYSENTER_CS",        0x174,      1, 1, S(sysenter_cs) },
	{ "IA32_SYSENTER_ESP",       0x175,      1, 1, S(sysenter_esp) },
	{ "IA32_SYSENTER_EIP",       0x176,      1, 1, S(sysenter_eip) },
	{ "IA32_MCG_STATUS",         0x17a,      1, 1, S(mcg_status) },
	{ "IA32_MCG_CTL",            0x17b,      1, 1, S(mcg_ctl) },
	{ "IA32_MISC_ENABLE",        0x1a0,      1, 1, S(misc_enable) },
	{ "IA32_MTRR_PHYSBASE",      0x200, X86_MTRR_VAR, 2, S(mtrr_var_base) },
	{ "IA32_MTRR_PHYSMASK",      0x201, X86_MTRR_VAR, 2, S(mtrr_var_mask) },
	{ "IA32_MTRR_FIX64K",        0x250,      1, 1, S(mtrr_fixed[0]) },
	{ "IA32_MTRR_FIX16K",        0x258,      2, 1, S(mtrr_fixed[1]) },
	{ "IA32_MTRR_FIX4K",         0x268,      8, 1, S(mtrr_fixed[3]) },
	{ "IA32_PAT",                0x277,      1, 1, S(pat) },
	{ "IA32_MTRR_DEF_TYPE",      0x2ff,      1, 1, S(mtrr_def_type) },
	{ "IA32_XSS",                0xda0,      1, 1, S(xss) },
	{ "IA32_STAR",               0xc0000081, 1, 1, S(star) },
	{ "IA32_LSTAR",              0xc0000082, 1, 1, S(lstar) },
	{ "IA32_CSTAR",              0xc0000083, 1, 1, S(cstar) },
	{ "IA32_FMASK",              0xc0000084, 1, 1, S(fmask) },
	{ "IA32_KERNEL_GS_BASE",     0xc0000102, 1, 1, S(kernel_gs_base) },
	{ "IA32_TSC_AUX",            0xc0000103, 1, 1, S(tsc_aux) },
	{ "MSR_KVM_WALL_CLOCK_NEW",  0x4b564d00, 1, 1, S(kvm_wall_clock) },
	{ "MSR_KVM_SYSTEM_TIME_NEW", 0x4b564d01, 1, 1, S(kvm_system_time) },
	{ "MSR_KVM_ASYNC_PF_EN",     0x4b564d02, 1, 1, S(kvm_async_pf) },
	{ "MSR_KVM_STEAL_TIME",      0x4b564d03, 1, 1, S(kvm_steal_time) },
	{ "MSR_KVM_PV_EOI_EN",       0x4b564d04, 1, 1, S(kvm_pv_eoi) },
	{ NULL },
};
// clang-format on

/* Element @n of the expanded rows; false past the end. */
static bool msr_at(unsigned n, const struct kvm_msr_row **row, uint32_t *index, uint32_t *offset)
{
	for (const struct kvm_msr_row *r = kvm_msr_rows; r->name; r++) {
		if (n < r->count) {
			*row = r;
			*index = r->index + n * r->stride;
			*offset = r->offset + n * 8;
			return true;
		}
		n -= r->count;
	}
	return false;
}

static uint64_t *msr_field(const struct x86_state *s, uint32_t offset)
{
	return (uint64_t *)(void *)((char *)(uintptr_t)s + offset);
}

static int one_msr(struct kvm_vcpu *v, unsigned long request, uint32_t index, uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e;
	} m = { .head.nmsrs = 1, .e = { .index = index, .data = *value } };
	int rc = kvm_ioctl(v->fd, request, &m);

	if (rc != 1) /* the number of MSRs done */
		return rc < 0 ? rc : -EINVAL;
	*value = m.e.data;
	return 0;
}

void kvm_state_find_msrs(struct kvm_vcpu *v)
{
	const struct kvm_msr_row *row;
	uint32_t index, offset;

	for (unsigned n = 0; msr_at(n, &row, &index, &offset); n++) {
		uint64_t value = 0;

		assert(n < KVM_MSR_MAX);
		v->msr_ok[n] = one_msr(v, KVM_GET_MSRS, index, &value) == 0;
	}
}

static int get_msrs(struct kvm_vcpu *v, struct x86_state *out)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e[KVM_MSR_MAX];
	} m = { 0 };
	uint32_t offsets[KVM_MSR_MAX], index, offset;
	const struct kvm_msr_row *row;

	for (unsigned n = 0; msr_at(n, &row, &index, &offset); n++) {
		if (!v->msr_ok[n])
			continue;
		offsets[m.head.nmsrs] = offset;
		m.e[m.head.nmsrs++].index = index;
	}
	int rc = kvm_ioctl(v->fd, KVM_GET_MSRS, &m);
	if (rc != (int)m.head.nmsrs)
		return rc < 0 ? rc : -EIO;
	for (unsigned i = 0; i < m.head.nmsrs; i++)
		*msr_field(out, offsets[i]) = m.e[i].data;
	return 0;
}

/* One line an MSR and VM: what value got lost, and what stands instead. */
static void report_msr(struct kvm_vcpu *v, unsigned n, const struct kvm_msr_row *row,
		       uint32_t index, uint64_t wanted)
{
	uint64_t stands = 0;
	bool is_known, is_there = one_msr(v, KVM_GET_MSRS, index, &stands) == 0;

	if (is_there && stands == wanted)
		return; /* refused, but nothing is lost */
	pthread_mutex_lock(&v->vm->lock);
	is_known = v->vm->is_msr_reported[n];
	v->vm->is_msr_reported[n] = true;
	pthread_mutex_unlock(&v->vm->lock);
	if (is_known)
		return;
	if (!is_there)
		log_warn("kvm", "this host's KVM has no %s (MSR %#x): the guest's value %#llx is lost",
			 row->name, index, (unsigned long long)wanted);
	else
		log_warn("kvm", "KVM does not set %s (MSR %#x) to %#llx: it stays %#llx", row->name,
			 index, (unsigned long long)wanted, (unsigned long long)stands);
}

static void put_msrs(struct kvm_vcpu *v, const struct x86_state *in, const struct x86_state *base)
{
	const struct kvm_msr_row *row;
	uint32_t index, offset;

	for (unsigned n = 0; msr_at(n, &row, &index, &offset); n++) {
		uint64_t value = *msr_field(in, offset);

		if (base && value == *msr_field(base, offset))
			continue;
		if (!v->msr_ok[n] && !value)
			continue; /* not there, nothing to keep */
		if (one_msr(v, KVM_SET_MSRS, index, &value) < 0)
			report_msr(v, n, row, index, value);
	}
}

/* ---- segments and system registers ---- */

static void seg_from_kvm(struct x86_seg *d, const struct kvm_segment *s)
{
	*d = (struct x86_seg){
		.base = s->base,
		.limit = s->limit,
		.selector = s->selector,
		.attr = (uint16_t)(s->type | s->s << 4 | s->dpl << SEG_ATTR_DPL_SHIFT |
				   s->present << 7 | (s->unusable ? SEG_ATTR_UNUSABLE : 0) |
				   s->avl << 12 | s->l << 13 | s->db << 14 | s->g << 15),
	};
}

static void seg_to_kvm(struct kvm_segment *d, const struct x86_seg *s, bool is_long)
{
	*d = (struct kvm_segment){
		.base = s->base,
		.limit = s->limit,
		.selector = s->selector,
		.type = s->attr & SEG_ATTR_TYPE,
		.s = !!(s->attr & SEG_ATTR_S),
		.dpl = s->attr >> SEG_ATTR_DPL_SHIFT & 3,
		.present = !!(s->attr & SEG_ATTR_P),
		.unusable = !!(s->attr & SEG_ATTR_UNUSABLE),
		.avl = !!(s->attr & SEG_ATTR_AVL),
		.l = is_long && (s->attr & SEG_ATTR_L), /* ignored by the CPU, refused by KVM */
		.db = !!(s->attr & SEG_ATTR_DB),
		.g = !!(s->attr & SEG_ATTR_G),
	};
}

/* Order of x86_state.seg (SEG_ES, CS, SS, DS, FS, GS). */
static struct kvm_segment *sregs_seg(struct kvm_sregs *s, unsigned i)
{
	struct kvm_segment *const segs[6] = { &s->es, &s->cs, &s->ss, &s->ds, &s->fs, &s->gs };

	return segs[i];
}

static void sregs_from_kvm(struct x86_state *out, struct kvm_sregs *s)
{
	for (unsigned i = 0; i < 6; i++)
		seg_from_kvm(&out->seg[i], sregs_seg(s, i));
	seg_from_kvm(&out->ldtr, &s->ldt);
	seg_from_kvm(&out->tr, &s->tr);
	out->gdtr.base = s->gdt.base;
	out->gdtr.limit = s->gdt.limit;
	out->idtr.base = s->idt.base;
	out->idtr.limit = s->idt.limit;
	out->cr0 = s->cr0;
	out->cr2 = s->cr2;
	out->cr3 = s->cr3;
	out->cr4 = s->cr4;
	out->cr8 = s->cr8;
	out->efer = s->efer;
	out->apic_base = s->apic_base;
}

static void sregs_to_kvm(struct kvm_sregs *s, const struct x86_state *in)
{
	bool is_long = in->efer & X86_EFER_LMA;

	*s = (struct kvm_sregs){
		.gdt = { .base = in->gdtr.base, .limit = in->gdtr.limit },
		.idt = { .base = in->idtr.base, .limit = in->idtr.limit },
		.cr0 = in->cr0,
		.cr2 = in->cr2,
		.cr3 = in->cr3,
		.cr4 = in->cr4,
		.cr8 = in->cr8,
		.efer = in->efer,
		.apic_base = in->apic_base,
	};
	for (unsigned i = 0; i < 6; i++)
		seg_to_kvm(sregs_seg(s, i), &in->seg[i], is_long);
	seg_to_kvm(&s->ldt, &in->ldtr, false);
	seg_to_kvm(&s->tr, &in->tr, false);
}

static void regs_from_kvm(struct x86_state *out, const struct kvm_regs *r)
{
	const uint64_t gpr[16] = { r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi,
				   r->r8,  r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15 };

	memcpy(out->gpr, gpr, sizeof(gpr));
	out->rip = r->rip;
	out->rflags = r->rflags;
}

static void regs_to_kvm(struct kvm_regs *r, const struct x86_state *in)
{
	const uint64_t *g = in->gpr;

	*r = (struct kvm_regs){
		.rax = g[R_RAX],
		.rcx = g[R_RCX],
		.rdx = g[R_RDX],
		.rbx = g[R_RBX],
		.rsp = g[R_RSP],
		.rbp = g[R_RBP],
		.rsi = g[R_RSI],
		.rdi = g[R_RDI],
		.r8 = g[R_R8],
		.r9 = g[R_R9],
		.r10 = g[R_R10],
		.r11 = g[R_R11],
		.r12 = g[R_R12],
		.r13 = g[R_R13],
		.r14 = g[R_R14],
		.r15 = g[R_R15],
		.rip = in->rip,
		.rflags = in->rflags,
	};
}

/* ---- FPU ---- */
/* KVM's area is the standard format too, 4096 bytes; XSTATE_BV is at 512. */
#define XSTATE_BV      512
#define SOFTWARE_BYTES 416 /* to 511, not the CPU's: Linux leaves XCR0 there */
#define MXCSR	       24

static void xsave_from_kvm(struct x86_state *out, const struct kvm_xsave *x)
{
	uint64_t bv;

	memcpy(out->xsave, x->region, X86_XSAVE_BYTES);
	memcpy(&bv, out->xsave + XSTATE_BV, 8);
	/* x87 and SSE values are always in the area, initial ones included: say so. */
	bv = (bv & 7) | 3;
	memset(out->xsave + SOFTWARE_BYTES, 0, XSTATE_BV + 64 - SOFTWARE_BYTES);
	memcpy(out->xsave + XSTATE_BV, &bv, 8);
}

static void xsave_to_kvm(struct kvm_xsave *x, const struct kvm_vm *vm, const struct x86_state *in)
{
	uint8_t *p = (uint8_t *)x->region;
	uint64_t bv;
	uint32_t mxcsr;

	memset(x, 0, sizeof(*x));
	memcpy(p, in->xsave, X86_XSAVE_BYTES);
	memcpy(&bv, p + XSTATE_BV, 8);
	bv &= 7 & (vm->supported_xcr0 | 3);
	memset(p + XSTATE_BV, 0, 64);
	memcpy(p + XSTATE_BV, &bv, 8);
	memcpy(&mxcsr, p + MXCSR, 4);
	mxcsr &= 0xffff;
	memcpy(p + MXCSR, &mxcsr, 4);
}

/* ---- events ---- */

/* DR6 bits that a pending #DB brings; the rest of DR6 reads as ones, and KVM takes "active" bits.
 */
#define DR6_PAYLOAD 0xe00fULL

static void events_from_kvm(struct x86_state *out, const struct kvm_vcpu_events *ev)
{
	if (ev->exception.injected || ev->exception.pending) {
		out->exception_pending = 1;
		out->exception_vector = ev->exception.nr;
		out->exception_has_error = ev->exception.has_error_code;
		out->exception_error = ev->exception.error_code;
		if (ev->exception_has_payload)
			out->exception_payload = ev->exception_payload;
		else if (ev->exception.nr == 14)
			out->exception_payload = out->cr2; /* already there */
		else if (ev->exception.nr == 1)
			out->exception_payload = out->dr6 & DR6_PAYLOAD;
	}
	/* A software interrupt in flight is executed again: RIP is at its INT. */
	if (ev->interrupt.injected && !ev->interrupt.soft) {
		out->is_external_pending = 1;
		out->external_vector = ev->interrupt.nr;
	}
	if (ev->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS)
		out->interrupt_shadow = 2;
	else if (ev->interrupt.shadow & KVM_X86_SHADOW_INT_STI)
		out->interrupt_shadow = 1;
	out->nmi_blocked = !!ev->nmi.masked;
	out->nmi_pending = ev->nmi.pending || ev->nmi.injected;
}

static void events_to_kvm(struct kvm_vcpu_events *ev, const struct kvm_vm *vm, const struct x86_state *in)
{
	static const uint8_t shadows[3] = { 0, KVM_X86_SHADOW_INT_STI, KVM_X86_SHADOW_INT_MOV_SS };

	*ev = (struct kvm_vcpu_events){
		.interrupt = { .injected = in->is_external_pending,
			       .nr = in->external_vector,
			       .shadow = shadows[MIN(in->interrupt_shadow, 2)] },
		.nmi = { .pending = in->nmi_pending, .masked = in->nmi_blocked },
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
	};
	if (vm->has_triple_fault_event)
		ev->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	if (vm->has_exception_payload)
		ev->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	if (!in->exception_pending)
		return;
	ev->exception.nr = in->exception_vector;
	ev->exception.has_error_code = in->exception_has_error;
	ev->exception.error_code = in->exception_error;
	if (!vm->has_exception_payload) {
		ev->exception.injected = 1; /* CR2 and DR6 hold the payload: kvm_state_put() */
		return;
	}
	ev->exception.pending = 1;
	if (in->exception_vector == 14 || in->exception_vector == 1) {
		ev->exception_has_payload = 1;
		ev->exception_payload = in->exception_vector == 1 ? in->exception_payload & DR6_PAYLOAD
								  : in->exception_payload;
	}
}

/* ---- all of it ---- */

static int get_failed(struct error *err, int rc, const char *what)
{
	return error_set(err, rc, "KVM does not give out %s: %s", what, strerror(-rc));
}

int kvm_state_get(struct kvm_vcpu *v, struct x86_state *out, struct error *err)
{
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs dregs;
	struct kvm_vcpu_events events;
	struct {
		unsigned long request;
		void *data;
		const char *name;
	} const parts[] = {
		{ KVM_GET_MP_STATE, &mp, "the MP state" },
		{ KVM_GET_REGS, &regs, "the registers" },
		{ KVM_GET_SREGS, &sregs, "the system registers" },
		{ KVM_GET_XSAVE, &xsave, "the FPU state" },
		{ KVM_GET_XCRS, &xcrs, "XCR0" },
		{ KVM_GET_DEBUGREGS, &dregs, "the debug registers" },
		{ KVM_GET_VCPU_EVENTS, &events, "the pending events" },
	};
	int rc;

	for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
		rc = kvm_ioctl(v->fd, parts[i].request, parts[i].data);
		if (rc < 0)
			return get_failed(err, rc, parts[i].name);
	}
	memset(out, 0, sizeof(*out));
	rc = get_msrs(v, out);
	if (rc < 0)
		return get_failed(err, rc, "the MSRs");
	regs_from_kvm(out, &regs);
	sregs_from_kvm(out, &sregs);
	xsave_from_kvm(out, &xsave);
	out->xcr0 = 1;
	for (unsigned i = 0; i < xcrs.nr_xcrs; i++)
		if (xcrs.xcrs[i].xcr == 0)
			out->xcr0 = xcrs.xcrs[i].value;
	memcpy(out->dr, dregs.db, sizeof(out->dr));
	out->dr6 = dregs.dr6;
	out->dr7 = dregs.dr7;
	events_from_kvm(out, &events);
	if (atomic_load(&v->requests) & KVM_REQ_NMI_WAITS)
		out->nmi_pending = 1;
	out->tsc = __builtin_ia32_rdtsc() +
		   (uint64_t)kvm_vcpu_get_tsc_offset((struct engine_vcpu *)(void *)v);
	switch (mp.mp_state) {
	case KVM_MP_STATE_HALTED:
		out->mp_state = MP_HALTED;
		break;
	case KVM_MP_STATE_UNINITIALIZED:
	case KVM_MP_STATE_INIT_RECEIVED:
	case KVM_MP_STATE_AP_RESET_HOLD:
		out->mp_state = MP_WAIT_SIPI;
		break;
	case KVM_MP_STATE_SIPI_RECEIVED: /* old kernels, not applied yet */
		x86_state_sipi(out, (uint8_t)events.sipi_vector);
		break;
	default:
		out->mp_state = MP_RUNNABLE;
		break;
	}
	return 0;
}

static int put_failed(struct error *err, int rc, const char *what)
{
	return error_set(err, rc, "KVM refuses %s: %s", what, strerror(-rc));
}

static bool is_same(const struct x86_state *a, const struct x86_state *b, size_t from, size_t to)
{
	return b && !memcmp((const char *)a + from, (const char *)b + from, to - from);
}

static int put_sregs(struct kvm_vcpu *v, const struct x86_state *in, struct error *err)
{
	struct kvm_sregs sregs;

	sregs_to_kvm(&sregs, in);
	int rc = kvm_ioctl(v->fd, KVM_SET_SREGS, &sregs);
	if (rc < 0)
		return error_set(err, rc,
				 "KVM refuses the control registers CR0=%#llx CR3=%#llx CR4=%#llx "
				 "EFER=%#llx APIC_BASE=%#llx on this host: %s",
				 (unsigned long long)in->cr0, (unsigned long long)in->cr3,
				 (unsigned long long)in->cr4, (unsigned long long)in->efer,
				 (unsigned long long)in->apic_base, strerror(-rc));
	return 0;
}

static int put_fpu(struct kvm_vcpu *v, const struct x86_state *in, struct error *err)
{
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs[0] = { .xcr = 0, .value = in->xcr0 } };
	struct kvm_xsave xsave;
	int rc = kvm_ioctl(v->fd, KVM_SET_XCRS, &xcrs);

	if (rc < 0)
		return error_set(err, rc, "KVM refuses XCR0=%#llx on this host: %s",
				 (unsigned long long)in->xcr0, strerror(-rc));
	xsave_to_kvm(&xsave, v->vm, in);
	rc = kvm_ioctl(v->fd, KVM_SET_XSAVE, &xsave);
	return rc < 0 ? put_failed(err, rc, "the FPU state") : 0;
}

static int put_events(struct kvm_vcpu *v, const struct x86_state *in, struct error *err)
{
	static const uint32_t mp_states[] = {
		[MP_RUNNABLE] = KVM_MP_STATE_RUNNABLE, [MP_HALTED] = KVM_MP_STATE_HALTED, [MP_WAIT_SIPI] = KVM_MP_STATE_INIT_RECEIVED
	};
	struct kvm_mp_state mp = { .mp_state = mp_states[MIN(in->mp_state, MP_WAIT_SIPI)] };
	struct kvm_vcpu_events events;

	events_to_kvm(&events, v->vm, in);
	int rc = kvm_ioctl(v->fd, KVM_SET_VCPU_EVENTS, &events);
	if (rc < 0)
		return put_failed(err, rc, "the pending events");
	rc = kvm_ioctl(v->fd, KVM_SET_MP_STATE, &mp);
	return rc < 0 ? put_failed(err, rc, "the MP state") : 0;
}

int kvm_state_put(struct kvm_vcpu *v, const struct x86_state *in, const struct x86_state *base,
		  struct error *err)
{
	struct kvm_regs regs;
	struct kvm_debugregs dregs = { .dr6 = in->dr6 & 0xffffffff, .dr7 = in->dr7 & 0xffffffff };
	int rc;

	if (!is_same(in, base, S(seg), S(dr)) || !is_same(in, base, S(efer), S(xcr0)) ||
	    !is_same(in, base, S(apic_base), S(kvm_system_time))) {
		rc = put_sregs(v, in, err);
		if (rc < 0)
			return rc;
	}
	regs_to_kvm(&regs, in);
	rc = kvm_ioctl(v->fd, KVM_SET_REGS, &regs);
	if (rc < 0)
		return put_failed(err, rc, "the registers");
	if (!is_same(in, base, S(xcr0), S(xss)) || !is_same(in, base, S(xsave), sizeof(*in))) {
		rc = put_fpu(v, in, err);
		if (rc < 0)
			return rc;
	}
	put_msrs(v, in, base);
	if (!base)
		kvm_vcpu_set_tsc_offset((struct engine_vcpu *)(void *)v,
					(int64_t)(in->tsc - __builtin_ia32_rdtsc()));
	if (!is_same(in, base, S(mp_state), S(xsave))) {
		rc = put_events(v, in, err);
		if (rc < 0)
			return rc;
	}
	memcpy(dregs.db, in->dr, sizeof(dregs.db));
	if (in->exception_pending && in->exception_vector == 1 && !v->vm->has_exception_payload)
		dregs.dr6 |= in->exception_payload & DR6_PAYLOAD;
	rc = kvm_ioctl(v->fd, KVM_SET_DEBUGREGS, &dregs);
	if (rc < 0)
		return put_failed(err, rc, "the debug registers");
	v->is_window_known = false;
	return 0;
}

void kvm_get_state(struct engine_vcpu *ev, struct x86_state *out)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);

	if (kvm_state_get(v, out, &v->broken) < 0)
		x86_state_reset(out, v->index == 0); /* defined, and vcpu_run will tell */
}

int kvm_set_state(struct engine_vcpu *ev, const struct x86_state *in, struct error *err)
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);

	v->needs_completion = false;
	atomic_fetch_and(&v->requests, ~(uint32_t)KVM_REQ_NMI_WAITS);
	return kvm_state_put(v, in, NULL, err);
}

/* ---- LAPIC ---- */

int kvm_get_lapic(struct engine_vcpu *ev, uint8_t regs[KVM_APIC_BYTES])
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);
	struct kvm_lapic_state s;
	uint64_t deadline = 0;
	int rc = kvm_ioctl(v->fd, KVM_GET_LAPIC, &s);

	if (rc < 0)
		return rc;
	memcpy(regs, s.regs, KVM_APIC_BYTES);
	if (v->vm->model.has[CPUF_TSC_DEADLINE]) {
		rc = one_msr(v, KVM_GET_MSRS, 0x6e0, &deadline);
		if (rc < 0)
			return rc;
	}
	memcpy(regs + KVM_APIC_TSC_DEADLINE, &deadline, 8);
	return 0;
}

static void put_reg(uint8_t *regs, unsigned offset, uint32_t value)
{
	memcpy(regs + offset, &value, 4);
}

/* SDM vol. 3 10.4.7.1; the BSP's LINT0 takes the PIC, as firmware leaves it (virtual wire). */
static void lapic_reset_page(uint8_t *regs, unsigned apic_id)
{
	memset(regs, 0, KVM_APIC_BYTES);
	put_reg(regs, 0x20, apic_id << 24);
	put_reg(regs, 0x30, 0x50014);
	put_reg(regs, 0xe0, 0xffffffff);
	put_reg(regs, 0xf0, 0xff);
	for (unsigned lvt = 0x320; lvt <= 0x370; lvt += 0x10)
		put_reg(regs, lvt, 0x10000);
	if (apic_id == 0)
		put_reg(regs, 0x350, 0x700);
}

int kvm_set_lapic(struct engine_vcpu *ev, const uint8_t regs[KVM_APIC_BYTES])
{
	struct kvm_vcpu *v = to_kvm_vcpu(ev);
	struct kvm_lapic_state s;
	uint64_t deadline = 0;
	int rc = 0;

	if (regs) {
		memcpy(s.regs, regs, KVM_APIC_BYTES);
		memcpy(&deadline, regs + KVM_APIC_TSC_DEADLINE, 8);
		memset(s.regs + KVM_APIC_TSC_DEADLINE, 0, 8);
	} else {
		lapic_reset_page((uint8_t *)s.regs, v->index);
	}
	/* EOIs of level interrupts already in service must exit: the trigger mode register says
	 * which. */
	for (unsigned vector = 16; vector < 256; vector++) {
		unsigned tmr = 0x180 + vector / 32 * 16 + vector % 32 / 8;

		if (s.regs[tmr] >> vector % 8 & 1) {
			rc = kvm_learn_level(v->vm, (uint8_t)vector);
			if (rc < 0)
				return rc;
		}
	}
	rc = kvm_ioctl(v->fd, KVM_SET_LAPIC, &s);
	if (rc >= 0 && v->vm->model.has[CPUF_TSC_DEADLINE])
		rc = one_msr(v, KVM_SET_MSRS, 0x6e0, &deadline);
	return rc < 0 ? rc : 0;
}
