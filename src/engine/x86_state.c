/* SPDX-License-Identifier: Apache-2.0 */
/* The architectural state: reset values, and its field table. */
#include <errno.h>
#include <string.h>

#include "engine/x86_state.h"
#include "state/field.h"

#define XSAVE_FCW	    0
#define XSAVE_FTW	    4
#define XSAVE_MXCSR	    24
#define XSAVE_HEADER	    512
#define MXCSR_DEFAULT	    0x1f80
#define PAT_DEFAULT	    0x0007040600070406ULL
#define APIC_BASE_DEFAULT   0xfee00000ULL
#define APIC_BASE_BSP	    0x100
#define APIC_BASE_ENABLED   0x800
#define MISC_ENABLE_DEFAULT 0x1801 /* fast strings; BTS and PEBS unavailable */

/* ---- reset (SDM vol. 3 table 9-1) ---- */

static void set_seg(struct x86_seg *s, uint16_t selector, uint64_t base, uint16_t attr)
{
	s->selector = selector;
	s->base = base;
	s->limit = 0xffff;
	s->attr = attr;
}

/* What RESET and INIT have in common. */
static void reset_core(struct x86_state *s, bool is_bsp)
{
	const uint16_t data = SEG_ATTR_P | SEG_ATTR_S | 3;

	memset(s->gpr, 0, sizeof(s->gpr));
	s->rip = 0xfff0;
	s->rflags = 2;
	for (unsigned i = 0; i < 6; i++)
		set_seg(&s->seg[i], 0, 0, data);
	set_seg(&s->seg[1], 0xf000, 0xffff0000, SEG_ATTR_P | SEG_ATTR_S | 11); /* CS */
	set_seg(&s->ldtr, 0, 0, SEG_ATTR_P | 2);
	set_seg(&s->tr, 0, 0, SEG_ATTR_P | 11);
	s->gdtr.base = s->idtr.base = 0;
	s->gdtr.limit = s->idtr.limit = 0xffff;
	s->cr2 = s->cr3 = s->cr4 = s->cr8 = 0;
	memset(s->dr, 0, sizeof(s->dr));
	s->dr6 = 0xffff0ff0;
	s->dr7 = 0x400;
	s->efer = 0;

	s->mp_state = is_bsp ? MP_RUNNABLE : MP_WAIT_SIPI;
	s->sipi_vector = 0;
	s->interrupt_shadow = s->nmi_blocked = s->nmi_pending = 0;
	s->exception_pending = s->exception_vector = s->exception_has_error = 0;
	s->exception_error = 0;
	s->is_external_pending = s->external_vector = 0;
	s->exception_payload = 0;
}

void x86_state_reset(struct x86_state *s, bool is_bsp)
{
	static const uint16_t fcw = 0x40;
	static const uint32_t mxcsr = MXCSR_DEFAULT;

	memset(s, 0, sizeof(*s));
	reset_core(s, is_bsp);
	s->gpr[R_RDX] = 0x600; /* family 6, as a boot loader may look at it */
	s->cr0 = X86_CR0_CD | X86_CR0_NW | X86_CR0_ET;
	s->xcr0 = 1;
	s->pat = PAT_DEFAULT;
	s->misc_enable = MISC_ENABLE_DEFAULT;
	s->apic_base = APIC_BASE_DEFAULT | APIC_BASE_ENABLED | (is_bsp ? APIC_BASE_BSP : 0);
	memcpy(s->xsave + XSAVE_FCW, &fcw, sizeof(fcw));
	s->xsave[XSAVE_FTW] = 0xff; /* all registers hold +0.0, none is empty */
	memcpy(s->xsave + XSAVE_MXCSR, &mxcsr, sizeof(mxcsr));
	s->xsave[XSAVE_HEADER] = 3; /* x87 and SSE parts are valid */
}

void x86_state_init(struct x86_state *s, bool is_bsp)
{
	uint64_t cache_bits = s->cr0 & (X86_CR0_CD | X86_CR0_NW);

	reset_core(s, is_bsp);
	s->gpr[R_RDX] = 0x600;
	s->cr0 = X86_CR0_ET | cache_bits;
	/* As KVM does: who starts this CPU next has other use for that memory. */
	s->kvm_system_time = s->kvm_steal_time = s->kvm_async_pf = s->kvm_pv_eoi = 0;
	s->unhalt_pending = false;
}

void x86_state_sipi(struct x86_state *s, uint8_t vector)
{
	set_seg(&s->seg[1], (uint16_t)(vector << 8), (uint64_t)vector << 12,
		SEG_ATTR_P | SEG_ATTR_S | 11);
	s->rip = 0;
	s->mp_state = MP_RUNNABLE;
	s->sipi_vector = vector;
}

/* ---- field table ---- */

static const struct field seg_fields[] = {
	F_U64(struct x86_seg, base),
	F_U32(struct x86_seg, limit),
	F_U16(struct x86_seg, selector),
	F_U16(struct x86_seg, attr),
	F_END,
};
static const struct state_desc seg_desc = {
	.name = "segment",
	.version = 1,
	.size = sizeof(struct x86_seg),
	.fields = seg_fields,
};

static const struct field dtable_fields[] = {
	F_U64(struct x86_dtable, base),
	F_U16(struct x86_dtable, limit),
	F_HOST(struct x86_dtable, pad_),
	F_END,
};
static const struct state_desc dtable_desc = {
	.name = "descriptor-table",
	.version = 1,
	.size = sizeof(struct x86_dtable),
	.fields = dtable_fields,
};

#define S struct x86_state
static const struct field state_fields[] = {
	F_ARRAY(FIELD_U64, S, gpr),
	F_U64(S, rip),
	F_U64(S, rflags),
	F_STRUCT_ARRAY(S, seg, &seg_desc),
	F_STRUCT(S, ldtr, &seg_desc),
	F_STRUCT(S, tr, &seg_desc),
	F_STRUCT(S, gdtr, &dtable_desc),
	F_STRUCT(S, idtr, &dtable_desc),
	F_U64(S, cr0),
	F_U64(S, cr2),
	F_U64(S, cr3),
	F_U64(S, cr4),
	F_U64(S, cr8),
	F_ARRAY(FIELD_U64, S, dr),
	F_U64(S, dr6),
	F_U64(S, dr7),
	F_U64(S, efer),
	F_U64(S, xcr0),
	F_U64(S, xss),
	F_U64(S, star),
	F_U64(S, lstar),
	F_U64(S, cstar),
	F_U64(S, fmask),
	F_U64(S, kernel_gs_base),
	F_U64(S, tsc_aux),
	F_U64(S, sysenter_cs),
	F_U64(S, sysenter_esp),
	F_U64(S, sysenter_eip),
	F_U64(S, pat),
	F_U64(S, misc_enable),
	F_U64(S, spec_ctrl),
	F_U64(S, mtrr_def_type),
	F_ARRAY(FIELD_U64, S, mtrr_fixed),
	F_ARRAY(FIELD_U64, S, mtrr_var_base),
	F_ARRAY(FIELD_U64, S, mtrr_var_mask),
	F_U64(S, mcg_status),
	F_U64(S, mcg_ctl),
	F_U64(S, tsc),
	F_U64(S, tsc_adjust),
	F_U64(S, apic_base),
	F_U64(S, kvm_system_time),
	F_U64(S, kvm_wall_clock),
	F_U64(S, kvm_steal_time),
	F_U64(S, kvm_async_pf),
	F_U64(S, kvm_pv_eoi),
	F_U8(S, mp_state),
	F_U8(S, sipi_vector),
	F_U8(S, interrupt_shadow),
	F_U8(S, nmi_blocked),
	F_U8(S, nmi_pending),
	F_U8(S, exception_pending),
	F_U8(S, exception_vector),
	F_U8(S, exception_has_error),
	F_U32(S, exception_error),
	F_U8(S, is_external_pending),
	F_U8(S, external_vector),
	FIELD_(FIELD_BOOL, S, unhalt_pending, 2),
	F_HOST(S, pad_),
	F_U64(S, exception_payload),
	F_HOST(S, pad_xsave_),
	F_BYTES(S, xsave),
	F_END,
};
#undef S

/* MXCSR bits that this host's XRSTOR takes without a fault. */
static uint32_t host_mxcsr_mask(void)
{
	_Alignas(16) uint8_t area[512] = { 0 };
	uint32_t mask;

	__asm__ volatile("fxsave %0" : "=m"(area));
	memcpy(&mask, area + 28, sizeof(mask));
	return mask ? mask : 0xffbf;
}

/* The XSAVE image goes to the host's XRSTOR: what that would refuse must not get in. */
static int check_xsave(const struct x86_state *s, struct error *err)
{
	uint64_t xstate_bv, xcomp_bv;
	uint32_t mxcsr;

	memcpy(&xstate_bv, s->xsave + XSAVE_HEADER, 8);
	memcpy(&xcomp_bv, s->xsave + XSAVE_HEADER + 8, 8);
	memcpy(&mxcsr, s->xsave + XSAVE_MXCSR, 4);
	if (xstate_bv & ~7ULL || xcomp_bv)
		return error_set(err, -EINVAL, "the FPU image names components %#llx that this CPU lacks",
				 (unsigned long long)(xstate_bv | xcomp_bv));
	for (unsigned i = 16; i < 64; i++)
		if (s->xsave[XSAVE_HEADER + i])
			return error_set(err, -EINVAL, "the FPU image's header is damaged");
	if (mxcsr & ~host_mxcsr_mask())
		return error_set(err, -EINVAL, "MXCSR %#x has bits that this host lacks", mxcsr);
	return 0;
}

static int check_state(const void *obj, struct error *err)
{
	const struct x86_state *s = obj;

	if (s->mp_state > MP_WAIT_SIPI || s->interrupt_shadow > 2)
		return error_set(err, -EINVAL, "no CPU has activity state %u and interrupt shadow %u",
				 s->mp_state, s->interrupt_shadow);
	if (s->exception_vector > 31)
		return error_set(err, -EINVAL, "there is no exception %u", s->exception_vector);
	if (s->cr0 >> 32 || (s->cr0 & X86_CR0_PG && !(s->cr0 & X86_CR0_PE)))
		return error_set(err, -EINVAL, "CR0 %#llx is impossible", (unsigned long long)s->cr0);
	if (s->efer & X86_EFER_LMA &&
	    (!(s->cr0 & X86_CR0_PG) || !(s->cr4 & X86_CR4_PAE) || !(s->efer & X86_EFER_LME)))
		return error_set(err, -EINVAL, "EFER %#llx is impossible with CR0 %#llx, CR4 %#llx",
				 (unsigned long long)s->efer, (unsigned long long)s->cr0,
				 (unsigned long long)s->cr4);
	if (s->dr6 >> 32 || s->dr7 >> 32)
		return error_set(err, -EINVAL, "the debug registers have reserved bits set");
	if (!(s->xcr0 & 1) || s->xcr0 & ~7ULL || (s->xcr0 & 6) == 4 || s->xss)
		return error_set(err, -EINVAL, "XCR0 %#llx is impossible", (unsigned long long)s->xcr0);
	return check_xsave(s, err);
}

const struct state_desc x86_state_desc = {
	.name = "x86-cpu",
	.version = 2,
	.size = sizeof(struct x86_state),
	.fields = state_fields,
	.check = check_state,
};
