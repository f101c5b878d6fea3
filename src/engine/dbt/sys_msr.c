/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Model-specific registers.
 *
 * How it works: most are a row of a table: where the value lies in x86_state, which feature shows
 * it, what a written value must satisfy.  Those with effects have code.  APIC MSRs belong to the
 * machine (EXIT_MSR).  An MSR that is not here does not exist: #GP(0), and a log line.
 *
 * Some vendor MSRs exist with a fixed value, because operating systems read them without asking
 * CPUID; writes to those are dropped.
 *
 * Source: SDM vol. 4; APM vol. 2 appendix A.
 */
#include "base/log.h"
#include "engine/dbt/sys.h"

#define MSR_TSC		   0x10
#define MSR_APIC_BASE	   0x1b
#define MSR_TSC_ADJUST	   0x3b
#define MSR_PRED_CMD	   0x49
#define MSR_TSC_DEADLINE   0x6e0
#define MSR_X2APIC_FIRST   0x800
#define MSR_X2APIC_LAST	   0x8ff
#define MSR_XSS		   0xda0
#define MSR_EFER	   0xc0000080
#define MSR_FS_BASE	   0xc0000100
#define MSR_GS_BASE	   0xc0000101
#define MSR_MTRR_VAR_FIRST 0x200
#define MSR_MTRR_VAR_LAST  (MSR_MTRR_VAR_FIRST + 2 * X86_MTRR_VAR - 1)

#define EFER_AUTO_IBRS (1u << 21)
#define TYPE_UC	       0

/* What a written value must satisfy. */
enum msr_check {
	CHECK_NONE,
	CHECK_CANONICAL,
	CHECK_U32, /* upper half reserved */
	CHECK_PAT,
	CHECK_MTRR_FIXED, /* eight memory types */
	CHECK_MTRR_DEF,
	CHECK_SPEC_CTRL,
	CHECK_MCG_CTL, /* all ones or zero */
};

struct msr_row {
	uint32_t index;
	uint16_t offset; /* in x86_state */
	uint8_t check;	 /* enum msr_check */
	uint8_t feature; /* enum cpu_feature */
};

#define AT(member) offsetof(struct x86_state, member)
static const struct msr_row rows[] = {
	// clang-format off
	{ 0x048,      AT(spec_ctrl),      CHECK_SPEC_CTRL,  CPUF_SPEC_CTRL },
	{ 0x174,      AT(sysenter_cs),    CHECK_NONE,       CPUF_SEP },
	{ 0x175,      AT(sysenter_esp),   CHECK_CANONICAL,  CPUF_SEP },
	{ 0x176,      AT(sysenter_eip),   CHECK_CANONICAL,  CPUF_SEP },
	{ 0x17a,      AT(mcg_status),     CHECK_NONE,       CPUF_MCA },
	{ 0x17b,      AT(mcg_ctl),        CHECK_MCG_CTL,    CPUF_MCA },
	{ 0x1a0,      AT(misc_enable),    CHECK_NONE,       CPUF_NONE },
	{ 0x250,      AT(mtrr_fixed[0]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x258,      AT(mtrr_fixed[1]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x259,      AT(mtrr_fixed[2]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x268,      AT(mtrr_fixed[3]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x269,      AT(mtrr_fixed[4]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x26a,      AT(mtrr_fixed[5]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x26b,      AT(mtrr_fixed[6]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x26c,      AT(mtrr_fixed[7]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x26d,      AT(mtrr_fixed[8]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x26e,      AT(mtrr_fixed[9]),  CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x26f,      AT(mtrr_fixed[10]), CHECK_MTRR_FIXED, CPUF_MTRR },
	{ 0x277,      AT(pat),            CHECK_PAT,        CPUF_PAT },
	{ 0x2ff,      AT(mtrr_def_type),  CHECK_MTRR_DEF,   CPUF_MTRR },
	{ 0xc0000081, AT(star),           CHECK_NONE,       CPUF_SYSCALL },
	{ 0xc0000082, AT(lstar),          CHECK_CANONICAL,  CPUF_LM },
	{ 0xc0000083, AT(cstar),          CHECK_CANONICAL,  CPUF_LM },
	{ 0xc0000084, AT(fmask),          CHECK_U32,        CPUF_SYSCALL },
	{ 0xc0000102, AT(kernel_gs_base), CHECK_CANONICAL,  CPUF_LM },
	{ 0xc0000103, AT(tsc_aux),        CHECK_U32,        CPUF_RDTSCP },
	// clang-format on
};
#undef AT

/* Registers with one value. */
enum msr_vendor { VENDOR_ANY, VENDOR_INTEL, VENDOR_AMD };

struct msr_fixed {
	uint32_t index;
	uint8_t vendor;	     /* enum msr_vendor */
	uint8_t feature;     /* enum cpu_feature */
	bool can_be_written; /* writes are dropped; else #GP */
	uint64_t val;
};

#define MTRR_CAP (X86_MTRR_VAR | 1u << 8 | 1u << 10) /* variable, fixed, write-combining */
#define MCG_CAP	 (1u << 8)			     /* no banks, MCG_CTL is there */
/* RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO,
 * PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO */
#define ARCH_CAPS                                                                                         \
	(1ULL << 0 | 1ULL << 1 | 1ULL << 3 | 1ULL << 4 | 1ULL << 5 | 1ULL << 6 | 1ULL << 8 | 1ULL << 13 | \
	 1ULL << 14 | 1ULL << 15 | 1ULL << 20 | 1ULL << 24 | 1ULL << 26 | 1ULL << 27 | 1ULL << 62)

static const struct msr_fixed fixed[] = {
	// clang-format off
	{ 0x00000000, VENDOR_ANY,   CPUF_MCE,       true,  0 },            /* P5_MC_ADDR */
	{ 0x00000001, VENDOR_ANY,   CPUF_MCE,       true,  0 },            /* P5_MC_TYPE */
	{ 0x00000017, VENDOR_INTEL, CPUF_NONE,      false, 0 },            /* PLATFORM_ID */
	{ 0x0000002a, VENDOR_INTEL, CPUF_NONE,      true,  1u << 24 },     /* EBL_CR_POWERON */
	{ 0x0000003a, VENDOR_INTEL, CPUF_NONE,      false, 1 },            /* FEATURE_CONTROL: locked */
	{ 0x0000008b, VENDOR_INTEL, CPUF_NONE,      true,  1ULL << 32 },   /* microcode revision */
	{ 0x0000008b, VENDOR_AMD,   CPUF_NONE,      true,  0x1000065 },    /* PATCH_LEVEL */
	{ 0x000000ce, VENDOR_INTEL, CPUF_NONE,      false, 0 },            /* PLATFORM_INFO */
	{ 0x000000fe, VENDOR_ANY,   CPUF_MTRR,      false, MTRR_CAP },
	{ 0x0000010a, VENDOR_INTEL, CPUF_ARCH_CAPS, false, ARCH_CAPS },
	{ 0x00000179, VENDOR_ANY,   CPUF_MCA,       false, MCG_CAP },
	{ 0x00000198, VENDOR_INTEL, CPUF_NONE,      false, 0 },            /* PERF_STATUS */
	{ 0x000001d9, VENDOR_ANY,   CPUF_NONE,      true,  0 },            /* DEBUGCTL */
	{ 0x000001db, VENDOR_ANY,   CPUF_NONE,      false, 0 },            /* LASTBRANCHFROMIP */
	{ 0x000001dc, VENDOR_ANY,   CPUF_NONE,      false, 0 },            /* LASTBRANCHTOIP */
	{ 0x000001dd, VENDOR_ANY,   CPUF_NONE,      false, 0 },            /* LASTINTFROMIP */
	{ 0x000001de, VENDOR_ANY,   CPUF_NONE,      false, 0 },            /* LASTINTTOIP */
	{ 0xc0010000, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFEVTSEL0: counts nothing */
	{ 0xc0010001, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFEVTSEL1: counts nothing */
	{ 0xc0010002, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFEVTSEL2: counts nothing */
	{ 0xc0010003, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFEVTSEL3: counts nothing */
	{ 0xc0010004, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFCTR0: counts nothing */
	{ 0xc0010005, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFCTR1: counts nothing */
	{ 0xc0010006, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFCTR2: counts nothing */
	{ 0xc0010007, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PERFCTR3: counts nothing */
	{ 0xc0010010, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* SYSCFG */
	{ 0xc0010015, VENDOR_AMD,   CPUF_NONE,      true,  1u << 24 },     /* HWCR: TSC counts at P0 */
	{ 0xc001001a, VENDOR_AMD,   CPUF_NONE,      false, 0 },            /* TOP_MEM */
	{ 0xc001001d, VENDOR_AMD,   CPUF_NONE,      false, 0 },            /* TOP_MEM2 */
	{ 0xc001001f, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* NB_CFG */
	{ 0xc0010020, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* PATCH_LOADER */
	{ 0xc0010055, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* INT_PENDING_MSG */
	{ 0xc0010058, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* MMIO_CONF_BASE */
	{ 0xc0010114, VENDOR_AMD,   CPUF_NONE,      false, 1u << 3 | 1u << 4 }, /* VM_CR: no SVM */
	{ 0xc0011020, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* LS_CFG */
	{ 0xc0011021, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* IC_CFG */
	{ 0xc0011022, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* DC_CFG */
	{ 0xc0011029, VENDOR_AMD,   CPUF_NONE,      true,  1u << 1 },      /* DE_CFG: LFENCE serializes */
	{ 0xc001102a, VENDOR_AMD,   CPUF_NONE,      true,  0 },            /* CU_CFG */
	// clang-format on
};

/* KVM's registers (Documentation/virt/kvm/x86/msr.rst): those that CPUID shows, no others. */
static uint64_t *kvm_msr(struct dbt_cpu *cpu, uint32_t index)
{
	if (!cpu->vm->model.has_kvm_pv)
		return NULL;
	switch (index) {
	case 0x4b564d00:
		return &cpu->s.kvm_wall_clock;
	case 0x4b564d01:
		return &cpu->s.kvm_system_time;
	case 0x4b564d03:
		return &cpu->s.kvm_steal_time;
	case 0x4b564d04:
		return &cpu->s.kvm_pv_eoi;
	default:
		return NULL;
	}
}

/* ---- values ---- */

static bool is_mtrr_type(unsigned type)
{
	return type <= 6 && type != 2 && type != 3;
}

static bool are_types(uint64_t val, bool is_pat)
{
	for (unsigned i = 0; i < 8; i++) {
		unsigned type = val >> 8 * i & 0xff;

		if (!is_mtrr_type(type) && !(is_pat && type == 7))
			return false;
	}
	return true;
}

/* IBRS, STIBP, BHI_DIS_S */
static bool is_spec_ctrl(const struct dbt_cpu *cpu, uint64_t val)
{
	return !(val & ~(cpu_has(&cpu->vm->model, CPUF_BHI_CTRL) ? 0x403ULL : 3ULL));
}

static bool is_acceptable(const struct dbt_cpu *cpu, uint8_t check, uint64_t val)
{
	switch (check) {
	case CHECK_CANONICAL:
		return va_is_canonical(val);
	case CHECK_U32:
		return !(val >> 32);
	case CHECK_PAT:
		return are_types(val, true);
	case CHECK_MTRR_FIXED:
		return are_types(val, false);
	case CHECK_MTRR_DEF:
		return !(val & ~0xcffULL) && is_mtrr_type(val & 0xff);
	case CHECK_SPEC_CTRL:
		return is_spec_ctrl(cpu, val);
	case CHECK_MCG_CTL:
		return val == 0 || val == ~0ULL;
	default:
		return true;
	}
}

static const struct msr_row *find_row(const struct dbt_cpu *cpu, uint32_t index)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		if (rows[i].index == index)
			return cpu_has(&cpu->vm->model, rows[i].feature) ? &rows[i] : NULL;
	return NULL;
}

static const struct msr_fixed *find_fixed(const struct dbt_cpu *cpu, uint32_t index)
{
	const struct cpu_model *m = &cpu->vm->model;
	unsigned vendor = m->is_amd ? VENDOR_AMD : VENDOR_INTEL;

	for (unsigned i = 0; i < ARRAY_SIZE(fixed); i++)
		if (fixed[i].index == index && cpu_has(m, fixed[i].feature) &&
		    (fixed[i].vendor == VENDOR_ANY || fixed[i].vendor == vendor))
			return &fixed[i];
	return NULL;
}

static uint64_t *row_value(struct dbt_cpu *cpu, const struct msr_row *row)
{
	return (uint64_t *)(void *)((char *)&cpu->s + row->offset);
}

/* ---- registers with effects ---- */

static bool is_machine_msr(const struct dbt_cpu *cpu, uint32_t index)
{
	const struct cpu_model *m = &cpu->vm->model;

	if (index == MSR_TSC_DEADLINE)
		return cpu_has(m, CPUF_TSC_DEADLINE);
	if (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST)
		return cpu_has(m, CPUF_X2APIC);
	return index == MSR_APIC_BASE;
}

static bool machine_msr(struct dbt_cpu *cpu, uint32_t index, bool is_write, uint64_t *val)
{
	struct vcpu_exit x = {
		.kind = EXIT_MSR, .is_write = is_write, .size = 8, .addr = index, .data = *val
	};

	if (dbt_exit(cpu, &x))
		return false;
	if (index == MSR_APIC_BASE)
		cpu->s.apic_base = x.data;
	*val = x.data;
	return true;
}

static bool efer_write(struct dbt_cpu *cpu, uint64_t val)
{
	const struct cpu_model *m = &cpu->vm->model;
	uint64_t known = X86_EFER_LMA, old = cpu->s.efer;

	if (cpu_has(m, CPUF_SYSCALL))
		known |= X86_EFER_SCE;
	if (cpu_has(m, CPUF_LM))
		known |= X86_EFER_LME;
	if (cpu_has(m, CPUF_NX))
		known |= X86_EFER_NXE;
	if (cpu_has(m, CPUF_AUTO_IBRS))
		known |= EFER_AUTO_IBRS;
	if (val & ~known)
		return false;
	if ((val ^ old) & X86_EFER_LME && cpu->s.cr0 & X86_CR0_PG)
		return false;
	cpu->s.efer = (val & ~(uint64_t)X86_EFER_LMA) | (old & X86_EFER_LMA);
	if ((val ^ old) & X86_EFER_NXE)
		mmu_flush_all(cpu);
	dbt_mode_changed(cpu);
	return true;
}

static void tsc_move(struct dbt_cpu *cpu, uint64_t delta)
{
	cpu->tsc_offset += (int64_t)delta;
	cpu->s.tsc_adjust += delta;
}

static bool mtrr_var_write(struct dbt_cpu *cpu, uint32_t index, uint64_t val)
{
	unsigned n = (index - MSR_MTRR_VAR_FIRST) / 2;
	uint64_t phys = cpu->vm->phys_mask & ~0xfffULL;

	if (index & 1) {
		if (val & ~(phys | 0x800))
			return false;
		cpu->s.mtrr_var_mask[n] = val;
	} else {
		if (val & ~(phys | 0xff) || !is_mtrr_type(val & 0xff))
			return false;
		cpu->s.mtrr_var_base[n] = val;
	}
	return true;
}

static bool is_mtrr_var(const struct dbt_cpu *cpu, uint32_t index)
{
	return index >= MSR_MTRR_VAR_FIRST && index <= MSR_MTRR_VAR_LAST &&
	       cpu_has(&cpu->vm->model, CPUF_MTRR);
}

/* ---- reading and writing ---- */

/* False: #GP(0). */
static bool msr_read(struct dbt_cpu *cpu, uint32_t index, uint64_t *val)
{
	const struct cpu_model *m = &cpu->vm->model;
	const struct msr_fixed *f;
	const struct msr_row *row;
	const uint64_t *kvm;

	switch (index) {
	case MSR_TSC:
		*val = dbt_rdtsc(cpu);
		return true;
	case MSR_TSC_ADJUST:
		*val = cpu->s.tsc_adjust;
		return cpu_has(m, CPUF_TSC_ADJUST);
	case MSR_XSS:
		*val = cpu->s.xss;
		return cpu_has(m, CPUF_XSAVES);
	case MSR_EFER:
		*val = cpu->s.efer;
		return true;
	case MSR_FS_BASE:
		*val = cpu->s.seg[SEG_FS].base;
		return cpu_has(m, CPUF_LM);
	case MSR_GS_BASE:
		*val = cpu->s.seg[SEG_GS].base;
		return cpu_has(m, CPUF_LM);
	default:
		break;
	}
	if (is_machine_msr(cpu, index)) {
		*val = 0;
		return machine_msr(cpu, index, false, val);
	}
	if (is_mtrr_var(cpu, index)) {
		unsigned n = (index - MSR_MTRR_VAR_FIRST) / 2;

		*val = index & 1 ? cpu->s.mtrr_var_mask[n] : cpu->s.mtrr_var_base[n];
		return true;
	}
	row = find_row(cpu, index);
	if (row) {
		*val = *row_value(cpu, row);
		return true;
	}
	f = find_fixed(cpu, index);
	if (f) {
		*val = f->val;
		return true;
	}
	kvm = kvm_msr(cpu, index);
	if (kvm)
		*val = *kvm;
	return kvm;
}

/* False: #GP(0). */
static bool msr_write(struct dbt_cpu *cpu, uint32_t index, uint64_t val)
{
	const struct cpu_model *m = &cpu->vm->model;
	const struct msr_fixed *f;
	const struct msr_row *row;
	uint64_t *kvm;

	switch (index) {
	case MSR_TSC:
		tsc_move(cpu, val - dbt_rdtsc(cpu));
		return true;
	case MSR_TSC_ADJUST:
		if (!cpu_has(m, CPUF_TSC_ADJUST))
			return false;
		tsc_move(cpu, val - cpu->s.tsc_adjust);
		return true;
	case MSR_PRED_CMD:
		return cpu_has(m, CPUF_SPEC_CTRL) && !(val & ~1ULL);
	case MSR_XSS: /* no supervisor states */
		return cpu_has(m, CPUF_XSAVES) && val == 0;
	case MSR_EFER:
		return efer_write(cpu, val);
	case MSR_FS_BASE:
	case MSR_GS_BASE:
		if (!cpu_has(m, CPUF_LM) || !va_is_canonical(val))
			return false;
		cpu->s.seg[index == MSR_FS_BASE ? SEG_FS : SEG_GS].base = val;
		return true;
	default:
		break;
	}
	if (is_machine_msr(cpu, index))
		return machine_msr(cpu, index, true, &val);
	if (is_mtrr_var(cpu, index))
		return mtrr_var_write(cpu, index, val);
	row = find_row(cpu, index);
	if (row) {
		if (!is_acceptable(cpu, row->check, val))
			return false;
		*row_value(cpu, row) = val;
		return true;
	}
	f = find_fixed(cpu, index);
	if (f)
		return f->can_be_written;
	kvm = kvm_msr(cpu, index);
	if (kvm) {
		struct vcpu_exit x = {
			.kind = EXIT_MSR, .is_write = true, .size = 8, .addr = index, .data = val
		};

		if (dbt_exit(cpu, &x)) /* the machine checks the value and uses the guest's structure */
			return false;
		*kvm = val;
	}
	return kvm;
}

void sys_rdmsr(struct dbt_cpu *cpu, const struct insn *in)
{
	uint32_t index = (uint32_t)cpu->s.gpr[R_RCX];
	uint64_t val;

	if (!msr_read(cpu, index, &val)) {
		dbt_fpu_to_mem(cpu);
		log_guest("msr", "vCPU %u reads MSR %#x: #GP", cpu->index, index);
		sys_gp0(cpu);
	}
	cpu->s.gpr[R_RAX] = (uint32_t)val;
	cpu->s.gpr[R_RDX] = val >> 32;
}

void sys_wrmsr(struct dbt_cpu *cpu, const struct insn *in)
{
	uint32_t index = (uint32_t)cpu->s.gpr[R_RCX];
	uint64_t val = (uint32_t)cpu->s.gpr[R_RAX] | cpu->s.gpr[R_RDX] << 32;

	if (!msr_write(cpu, index, val)) {
		dbt_fpu_to_mem(cpu);
		log_guest("msr", "vCPU %u writes %#llx to MSR %#x: #GP", cpu->index,
			  (unsigned long long)val, index);
		sys_gp0(cpu);
	}
}

/* There are no performance counters: every index is invalid. */
void sys_rdpmc(struct dbt_cpu *cpu, const struct insn *in)
{
	sys_gp0(cpu);
}
