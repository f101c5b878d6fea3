/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything architectural of one x86 CPU, engine-neutral and plain: engines load and store it,
 * snapshots carry it (field table in x86_state.c).  Local APIC state is the LAPIC device's.
 *
 * Source: Intel SDM vol. 3; segment attributes as in VMX access rights (SDM vol. 3 24.4.1).
 */
#ifndef VIV_ENGINE_X86_STATE_H
#define VIV_ENGINE_X86_STATE_H

#include "base/util.h"

struct state_desc;

/* clang-format off */
enum { R_RAX, R_RCX, R_RDX, R_RBX, R_RSP, R_RBP, R_RSI, R_RDI, R_R8, R_R9, R_R10, R_R11, R_R12,
       R_R13, R_R14, R_R15 };
/* clang-format on */

struct x86_seg {
	uint64_t base;
	uint32_t limit; /* in bytes, granularity applied */
	uint16_t selector;
	uint16_t attr; /* SEG_ATTR_*: type 3..0, S 4, DPL 6..5, P 7, AVL 12, L 13, D/B 14, G 15;
			    * bit 8 (unusable): the NULL selector was loaded */
};

#define SEG_ATTR_TYPE	   0x000f
#define SEG_ATTR_S	   0x0010
#define SEG_ATTR_DPL_SHIFT 5
#define SEG_ATTR_P	   0x0080
#define SEG_ATTR_UNUSABLE  0x0100
#define SEG_ATTR_AVL	   0x1000
#define SEG_ATTR_L	   0x2000
#define SEG_ATTR_DB	   0x4000
#define SEG_ATTR_G	   0x8000

struct x86_dtable {
	uint64_t base;
	uint16_t limit;
	uint8_t pad_[6];
};

enum x86_mp_state { MP_RUNNABLE, MP_HALTED, MP_WAIT_SIPI };

/* Standard-format XSAVE area: legacy 512 + header 64 + AVX 256. */
#define X86_XSAVE_BYTES 832
#define X86_MTRR_VAR	8

struct x86_state {
	uint64_t gpr[16];
	uint64_t rip;
	uint64_t rflags;
	struct x86_seg seg[6]; /* SEG_ES .. SEG_GS */
	struct x86_seg ldtr, tr;
	struct x86_dtable gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4, cr8; /* cr8: only meaningful where the engine owns the LAPIC */
	uint64_t dr[4], dr6, dr7;
	uint64_t efer;
	uint64_t xcr0, xss;

	/* MSRs */
	uint64_t star, lstar, cstar, fmask, kernel_gs_base, tsc_aux;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, misc_enable, spec_ctrl;
	uint64_t mtrr_def_type, mtrr_fixed[11];
	uint64_t mtrr_var_base[X86_MTRR_VAR], mtrr_var_mask[X86_MTRR_VAR];
	uint64_t mcg_status, mcg_ctl;
	uint64_t tsc; /* value at the moment the state was taken */
	uint64_t tsc_adjust;
	uint64_t apic_base; /* IA32_APIC_BASE */
	uint64_t kvm_system_time, kvm_wall_clock, kvm_steal_time, kvm_async_pf,
		kvm_pv_eoi; /* paravirtual MSRs */

	/* Events */
	uint8_t mp_state; /* enum x86_mp_state */
	uint8_t sipi_vector;
	uint8_t interrupt_shadow; /* 0, 1 = by STI, 2 = by MOV SS / POP SS */
	uint8_t nmi_blocked;	  /* until IRET */
	uint8_t nmi_pending;
	uint8_t exception_pending; /* raised, not delivered yet: exchange with KVM */
	uint8_t exception_vector;
	uint8_t exception_has_error;
	uint32_t exception_error;
	uint8_t is_external_pending; /* an acknowledged external interrupt not delivered yet */
	uint8_t external_vector;
	bool unhalt_pending; /* KVM_HC_KICK_CPU: the next HLT ends at once */
	uint8_t pad_[1];
	uint64_t exception_payload; /* CR2 for #PF, DR6 for #DB */
	uint8_t pad_xsave_[56];

	/* x87, SSE, AVX in the standard (not compacted) XSAVE format. */
	_Alignas(64) uint8_t xsave[X86_XSAVE_BYTES];
};

/* The field table of struct x86_state, every byte of it. */
extern const struct state_desc x86_state_desc;

/** x86_state_reset() - the state after power-up or RESET (SDM vol. 3 table 9-1). */
void x86_state_reset(struct x86_state *s, bool is_bsp);
/** x86_state_init() - the state after INIT: as reset, but FPU, most MSRs and CR0.CD/NW survive. */
void x86_state_init(struct x86_state *s, bool is_bsp);
/** x86_state_sipi() - start-up IPI: real mode at @vector << 12. */
void x86_state_sipi(struct x86_state *s, uint8_t vector);

#define X86_CR0_PE	   (1u << 0)
#define X86_CR0_MP	   (1u << 1)
#define X86_CR0_EM	   (1u << 2)
#define X86_CR0_TS	   (1u << 3)
#define X86_CR0_ET	   (1u << 4)
#define X86_CR0_NE	   (1u << 5)
#define X86_CR0_WP	   (1u << 16)
#define X86_CR0_AM	   (1u << 18)
#define X86_CR0_NW	   (1u << 29)
#define X86_CR0_CD	   (1u << 30)
#define X86_CR0_PG	   (1u << 31)
#define X86_CR4_VME	   (1u << 0)
#define X86_CR4_PVI	   (1u << 1)
#define X86_CR4_TSD	   (1u << 2)
#define X86_CR4_DE	   (1u << 3)
#define X86_CR4_PSE	   (1u << 4)
#define X86_CR4_PAE	   (1u << 5)
#define X86_CR4_MCE	   (1u << 6)
#define X86_CR4_PGE	   (1u << 7)
#define X86_CR4_PCE	   (1u << 8)
#define X86_CR4_OSFXSR	   (1u << 9)
#define X86_CR4_OSXMMEXCPT (1u << 10)
#define X86_CR4_UMIP	   (1u << 11)
#define X86_CR4_LA57	   (1u << 12)
#define X86_CR4_FSGSBASE   (1u << 16)
#define X86_CR4_PCIDE	   (1u << 17)
#define X86_CR4_OSXSAVE	   (1u << 18)
#define X86_CR4_SMEP	   (1u << 20)
#define X86_CR4_SMAP	   (1u << 21)
#define X86_EFER_SCE	   (1u << 0)
#define X86_EFER_LME	   (1u << 8)
#define X86_EFER_LMA	   (1u << 10)
#define X86_EFER_NXE	   (1u << 11)
#define X86_FL_TF	   (1u << 8)
#define X86_FL_IF	   (1u << 9)
#define X86_FL_DF	   (1u << 10)
#define X86_FL_IOPL	   (3u << 12)
#define X86_FL_NT	   (1u << 14)
#define X86_FL_RF	   (1u << 16)
#define X86_FL_VM	   (1u << 17)
#define X86_FL_AC	   (1u << 18)
#define X86_FL_VIF	   (1u << 19)
#define X86_FL_VIP	   (1u << 20)
#define X86_FL_ID	   (1u << 21)

#endif
