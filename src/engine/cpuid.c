/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPU models and the CPUID leaves they show.
 *
 * How it works: cpu_features.def says where each feature's bit stands; a model is the set of those
 * bits, and everything else (sizes, topology, caches, names) is computed here.  The vendor and the
 * family are the host's, because most instructions run on it.
 *
 * What is shown on purpose:
 *  - nothing is affected by the speculation bugs that a guest would work around at a price: guest
 *    code never runs at its own addresses or with its own indirect branches, so its workarounds
 *    protect nothing here (Intel: IA32_ARCH_CAPABILITIES; AMD: AutoIBRS, BTC_NO, SRSO_NO ...);
 *  - not SMAP, LA57, PKU, CET, MPX, AVX-512: they cost time or are not built;
 *  - not MONITOR: guests idle better in HLT.
 *
 * Compiled without vector registers, as the dbt engine is (see cpuid_query()).
 */
#include <cpuid.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/util.h"
#include "engine/cpuid.h"

enum { REG_A, REG_B, REG_C, REG_D };

static const struct feature_bit {
	uint32_t leaf;
	uint8_t subleaf, reg, bit;
} feature_bits[CPUF_COUNT] = {
#define X(name, leaf_, subleaf_, reg_, bit_)                                                       \
	[CPUF_##name] = { .leaf = leaf_, .subleaf = subleaf_, .reg = reg_, .bit = bit_ },
#include "engine/cpu_features.def"
#undef X
};

/* ---- the models ---- */

/* Done by the engine itself, whatever the host has. */
static const uint8_t own_features[] = {
	CPUF_FPU,	 CPUF_VME,	 CPUF_DE,	    CPUF_PSE,	     CPUF_TSC,
	CPUF_MSR,	 CPUF_PAE,	 CPUF_MCE,	    CPUF_SEP,	     CPUF_MTRR,
	CPUF_PGE,	 CPUF_MCA,	 CPUF_PAT,	    CPUF_PSE36,	     CPUF_CLFSH,
	CPUF_PCID,	 CPUF_X2APIC,	 CPUF_TSC_DEADLINE, CPUF_HYPERVISOR, CPUF_FSGSBASE,
	CPUF_TSC_ADJUST, CPUF_SMEP,	 CPUF_ERMS,	    CPUF_INVPCID,    CPUF_UMIP,
	CPUF_FSRM,	 CPUF_SYSCALL,	 CPUF_NX,	    CPUF_GBPAGES,    CPUF_RDTSCP,
	CPUF_LM,	 CPUF_PREFETCHW, CPUF_CLFLUSHOPT,
};

/* Run on the host: shown only if it has them too.  x86-64-v2 ... */
static const uint8_t native_v2[] = {
	CPUF_CX8,  CPUF_CMOV,  CPUF_MMX,   CPUF_FXSR,  CPUF_SSE,    CPUF_SSE2,	 CPUF_SSE3,
	CPUF_CX16, CPUF_SSSE3, CPUF_SSE41, CPUF_SSE42, CPUF_POPCNT, CPUF_LAHF64, CPUF_INVARIANT_TSC,
};
/* ... v3 ... */
static const uint8_t native_v3[] = {
	CPUF_MOVBE, CPUF_XSAVE, CPUF_AVX,  CPUF_F16C, CPUF_FMA,
	CPUF_BMI1,  CPUF_BMI2,	CPUF_AVX2, CPUF_ABM,
};
/* ... and everything else that the engine can run. */
static const uint8_t native_host[] = {
	CPUF_PCLMUL, CPUF_AES,	   CPUF_RDRAND, CPUF_RDSEED, CPUF_ADX,	   CPUF_CLWB,
	CPUF_SHA,    CPUF_RDPID,   CPUF_GFNI,	CPUF_VAES,   CPUF_VPCLMUL, CPUF_XSAVEOPT,
	CPUF_XSAVEC, CPUF_XGETBV1, CPUF_XSAVES, CPUF_MMXEXT, CPUF_SSE4A,   CPUF_MISALIGNSSE,
};

static const uint8_t amd_features[] = {
	CPUF_CLZERO,	       CPUF_CR8_LEGACY, CPUF_TOPOEXT,	CPUF_LFENCE_SERIAL,
	CPUF_NULL_CLEARS_BASE, CPUF_AUTO_IBRS,	CPUF_SSB_NO,	CPUF_BTC_NO,
	CPUF_SRSO_NO,	       CPUF_TSA_SQ_NO,	CPUF_TSA_L1_NO,
};
static const uint8_t intel_features[] = { CPUF_SPEC_CTRL, CPUF_STIBP, CPUF_BHI_CTRL, CPUF_ARCH_CAPS };

static const struct model_row {
	const char *name;
	bool has_v3, has_host;
} model_rows[] = {
	{ "host", true, true },
	{ "x86-64-v2", false, false },
	{ "x86-64-v3", true, false },
};

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
	uint32_t max = __get_cpuid_max(leaf & 0x80000000, NULL);

	memset(r, 0, 4 * sizeof(*r));
	if (max >= leaf)
		__cpuid_count(leaf, subleaf, r[REG_A], r[REG_B], r[REG_C], r[REG_D]);
}

static bool host_has(unsigned feature)
{
	const struct feature_bit *b = &feature_bits[feature];
	uint32_t r[4];

	host_cpuid(b->leaf, b->subleaf, r);
	return r[b->reg] >> b->bit & 1;
}

/* XCR0 of the host: what its operating system lets programs use. */
static uint64_t host_xcr0(void)
{
	uint32_t r[4], lo, hi;

	host_cpuid(1, 0, r);
	if (!(r[REG_C] & 1u << 27)) /* OSXSAVE */
		return 0;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return lo | (uint64_t)hi << 32;
}

static void add(struct cpu_model *m, const uint8_t *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		m->has[list[i]] = true;
}

static void add_native(struct cpu_model *m, const uint8_t *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		m->has[list[i]] = host_has(list[i]);
}

/* Features make no sense without those they build on. */
static void drop_dependents(struct cpu_model *m)
{
	static const struct {
		uint8_t feature, needs;
	} rows[] = {
		{ CPUF_AVX, CPUF_XSAVE },     { CPUF_XSAVEOPT, CPUF_XSAVE },
		{ CPUF_XSAVEC, CPUF_XSAVE },  { CPUF_XGETBV1, CPUF_XSAVE },
		{ CPUF_XSAVES, CPUF_XSAVEC }, { CPUF_AVX2, CPUF_AVX },
		{ CPUF_FMA, CPUF_AVX },	      { CPUF_F16C, CPUF_AVX },
		{ CPUF_VAES, CPUF_AVX },      { CPUF_VPCLMUL, CPUF_AVX },
		{ CPUF_BMI1, CPUF_AVX },      { CPUF_BMI2, CPUF_AVX },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (!m->has[rows[i].needs])
			m->has[rows[i].feature] = false;
}

static void init_identity(struct cpu_model *m)
{
	static const char brand[] = "Vivarium Virtual CPU";
	uint32_t r[4];

	host_cpuid(0, 0, r);
	memcpy(m->vendor, &r[REG_B], 4);
	memcpy(m->vendor + 4, &r[REG_D], 4);
	memcpy(m->vendor + 8, &r[REG_C], 4);
	m->is_amd = !strcmp(m->vendor, "AuthenticAMD") || !strcmp(m->vendor, "HygonGenuine");
	host_cpuid(1, 0, r);
	m->signature = r[REG_A] & 0x0fff3fff;
	memcpy(m->brand, brand, sizeof(brand));
	host_cpuid(0x80000008, 0, r);
	m->has_fpu_error_pointers = m->is_amd && r[REG_B] & 1u << 2;
}

int cpu_model_init(struct cpu_model *m, const char *name, unsigned vcpus, struct error *err)
{
	const struct model_row *row = NULL;
	struct cpu_model new = { .vcpus = vcpus, .phys_bits = 42, .has_kvm_pv = true };

	for (size_t i = 0; i < ARRAY_SIZE(model_rows); i++)
		if (!strcmp(name, model_rows[i].name))
			row = &model_rows[i];
	if (!row)
		return error_set(err, -EINVAL,
				 "unknown CPU model '%s'; there are host, x86-64-v2, x86-64-v3", name);
	if (vcpus < 1 || vcpus > 255)
		return error_set(err, -EINVAL, "a machine has 1 to 255 vCPUs, not %u", vcpus);

	new.name = row->name;
	init_identity(&new);
	add(&new, own_features, ARRAY_SIZE(own_features));
	add_native(&new, native_v2, ARRAY_SIZE(native_v2));
	if (row->has_v3)
		add_native(&new, native_v3, ARRAY_SIZE(native_v3));
	if (row->has_host)
		add_native(&new, native_host, ARRAY_SIZE(native_host));
	if (new.is_amd)
		add(&new, amd_features, ARRAY_SIZE(amd_features));
	else
		add(&new, intel_features, ARRAY_SIZE(intel_features));
	new.has[CPUF_HTT] = vcpus > 1;
	new.has[CPUF_CMP_LEGACY] = new.is_amd &&vcpus > 1;
	if ((host_xcr0() & 7) != 7)
		new.has[CPUF_XSAVE] = false;
	drop_dependents(&new);
	new.xcr0_mask = new.has[CPUF_AVX] ? 7 : 3;
	*m = new;
	return 0;
}

/* ---- the leaves ---- */

#define MAX_BASIC	   0x16
#define MAX_EXTENDED	   0x80000021
#define MAX_HYPERVISOR	   0x40000010
#define XSAVE_LEGACY_BYTES 576 /* with the header */
#define XSAVE_AVX_BYTES	   256
#define CLFLUSH_BYTES	   64

/* Bits that hold APIC ids 0..vcpus-1. */
static unsigned apic_id_bits(const struct cpu_model *m)
{
	unsigned bits = 0;

	while ((1u << bits) < m->vcpus)
		bits++;
	return bits;
}

static uint32_t word_of(const char *s)
{
	return (uint32_t)(uint8_t)s[0] | (uint32_t)(uint8_t)s[1] << 8 |
	       (uint32_t)(uint8_t)s[2] << 16 | (uint32_t)(uint8_t)s[3] << 24;
}

static void leaf_vendor(const struct cpu_model *m, uint32_t max, struct cpuid_regs *out)
{
	out->eax = max;
	out->ebx = word_of(m->vendor);
	out->edx = word_of(m->vendor + 4);
	out->ecx = word_of(m->vendor + 8);
}

static void leaf_1(const struct cpu_model *m, const struct cpuid_env *env, struct cpuid_regs *out)
{
	out->eax = m->signature;
	out->ebx = (env->apic_id & 0xff) << 24 | (m->vcpus & 0xff) << 16 | CLFLUSH_BYTES / 8 << 8;
	if (env->apic_enabled)
		out->edx |= 1u << 9;
	if (env->cr4 & 1u << 18) /* OSXSAVE */
		out->ecx |= 1u << 27;
}

/* Deterministic cache parameters (leaf 4; AMD 8000001DH has the same layout). */
static void leaf_cache(const struct cpu_model *m, uint32_t subleaf, struct cpuid_regs *out)
{
	static const struct {
		uint8_t type, level; /* 1 data, 2 instruction, 3 unified */
		uint8_t ways;
		bool is_shared;
		uint32_t sets;
	} caches[] = {
		{ 1, 1, 8, false, 64 },	   /* 32 KiB */
		{ 2, 1, 8, false, 64 },	   /* 32 KiB */
		{ 3, 2, 8, false, 1024 },  /* 512 KiB */
		{ 3, 3, 16, true, 16384 }, /* 16 MiB */
	};

	if (subleaf >= ARRAY_SIZE(caches))
		return;
	out->eax = caches[subleaf].type | (uint32_t)caches[subleaf].level << 5 | 1u << 8;
	if (caches[subleaf].is_shared)
		out->eax |= ((1u << apic_id_bits(m)) - 1) << 14;
	if (!m->is_amd)
		out->eax |= ((1u << apic_id_bits(m)) - 1) << 26; /* cores in the package */
	out->ebx = (CLFLUSH_BYTES - 1) | (uint32_t)(caches[subleaf].ways - 1) << 22;
	out->ecx = caches[subleaf].sets - 1;
}

/* Extended topology: one thread a core, all cores in one package. */
static void leaf_b(const struct cpu_model *m, const struct cpuid_env *env, uint32_t subleaf,
		   struct cpuid_regs *out)
{
	out->ecx = subleaf & 0xff;
	out->edx = env->apic_id;
	if (subleaf == 0) {
		out->ebx = 1;
		out->ecx |= 1u << 8; /* SMT */
	} else if (subleaf == 1) {
		out->eax = apic_id_bits(m);
		out->ebx = m->vcpus;
		out->ecx |= 2u << 8; /* core */
	}
}

static uint32_t xsave_bytes(uint64_t components)
{
	return XSAVE_LEGACY_BYTES + (components & 4 ? XSAVE_AVX_BYTES : 0);
}

static void leaf_d(const struct cpu_model *m, const struct cpuid_env *env, uint32_t subleaf,
		   struct cpuid_regs *out)
{
	if (!m->has[CPUF_XSAVE])
		return;
	if (subleaf == 0) {
		out->eax = (uint32_t)m->xcr0_mask;
		out->ebx = xsave_bytes(env->xcr0);
		out->ecx = xsave_bytes(m->xcr0_mask);
	} else if (subleaf == 1) {
		if (m->has[CPUF_XSAVEC])
			out->ebx = xsave_bytes(env->xcr0 | env->xss);
	} else if (subleaf == 2 && m->xcr0_mask & 4) {
		out->eax = XSAVE_AVX_BYTES;
		out->ebx = XSAVE_LEGACY_BYTES;
	}
}

static void leaf_hypervisor(const struct cpu_model *m, uint32_t leaf, struct cpuid_regs *out)
{
	const char *name = m->has_kvm_pv ? "KVMKVMKVM\0\0" : "VIVARIUMVIVA";

	switch (leaf) {
	case 0x40000000:
		out->eax = MAX_HYPERVISOR;
		out->ebx = word_of(name);
		out->ecx = word_of(name + 4);
		out->edx = word_of(name + 8);
		break;
	case 0x40000001:
		if (m->has_kvm_pv)
			out->eax = CPUID_KVM_FEATURES;
		break;
	case 0x40000010: /* timing: TSC and APIC bus in kHz */
		out->eax = m->tsc_khz;
		out->ebx = m->tsc_khz ? 1000000 : 0;
		break;
	default:
		break;
	}
}

static void leaf_basic(const struct cpu_model *m, const struct cpuid_env *env, uint32_t leaf,
		       uint32_t subleaf, struct cpuid_regs *out)
{
	switch (leaf) {
	case 0:
		leaf_vendor(m, MAX_BASIC, out);
		break;
	case 1:
		leaf_1(m, env, out);
		break;
	case 2:
		if (!m->is_amd) { /* "see leaf 4" */
			out->eax = 0xff01;
			out->ebx = 0xff;
		}
		break;
	case 4:
		if (!m->is_amd)
			leaf_cache(m, subleaf, out);
		break;
	case 6:
		out->eax = 1u << 2; /* ARAT: the APIC timer never stops */
		break;
	case 7:
		if (subleaf == 0 && m->has[CPUF_BHI_CTRL])
			out->eax = 2; /* the last subleaf */
		break;
	case 0xb:
		leaf_b(m, env, subleaf, out);
		break;
	case 0xd:
		leaf_d(m, env, subleaf, out);
		break;
	case 0x15:
		/* TSC = crystal * EBX / EAX; the crystal is 1 MHz here. */
		if (!m->is_amd && m->tsc_khz) {
			out->eax = 1000;
			out->ebx = m->tsc_khz;
			out->ecx = 1000000;
		}
		break;
	case 0x16:
		if (!m->is_amd && m->tsc_khz) {
			out->eax = out->ebx = m->tsc_khz / 1000;
			out->ecx = 100;
		}
		break;
	default:
		break;
	}
}

static void leaf_extended(const struct cpu_model *m, const struct cpuid_env *env, uint32_t leaf,
			  uint32_t subleaf, struct cpuid_regs *out)
{
	const char *brand;

	switch (leaf) {
	case 0x80000000:
		if (m->is_amd)
			leaf_vendor(m, MAX_EXTENDED, out);
		else
			out->eax = 0x80000008;
		break;
	case 0x80000001:
		out->eax = m->is_amd ? m->signature : 0;
		break;
	case 0x80000002:
	case 0x80000003:
	case 0x80000004:
		brand = m->brand + (leaf - 0x80000002) * 16;
		out->eax = word_of(brand);
		out->ebx = word_of(brand + 4);
		out->ecx = word_of(brand + 8);
		out->edx = word_of(brand + 12);
		break;
	case 0x80000005:
		if (m->is_amd) { /* L1 TLBs; L1: 32 KiB, 8-way */
			out->eax = out->ebx = 0xff40ff40;
			out->ecx = out->edx = 32u << 24 | 8u << 16 | 1u << 8 | CLFLUSH_BYTES;
		}
		break;
	case 0x80000006:
		/* L2: 512 KiB, 8-way (code 6); AMD: L3 in units of 512 KiB, 16-way (code 8) */
		out->ecx = 512u << 16 | 6u << 12 | 1u << 8 | CLFLUSH_BYTES;
		if (m->is_amd)
			out->edx = 32u << 18 | 8u << 12 | 1u << 8 | CLFLUSH_BYTES;
		break;
	case 0x80000008:
		out->eax = m->phys_bits | 48u << 8;
		if (m->is_amd) {
			out->ecx = (m->vcpus - 1) | apic_id_bits(m) << 12;
			if (m->has_fpu_error_pointers)
				out->ebx |= 1u << 2;
		}
		break;
	case 0x8000001d:
		if (m->is_amd)
			leaf_cache(m, subleaf, out);
		break;
	case 0x8000001e:
		if (m->is_amd) {
			out->eax = env->apic_id;
			out->ebx = env->apic_id & 0xff; /* core; one thread in it */
		}
		break;
	default:
		break;
	}
}

static void add_feature_bits(const struct cpu_model *m, uint32_t leaf, uint32_t subleaf,
			     struct cpuid_regs *out)
{
	for (unsigned f = CPUF_NONE + 1; f < CPUF_COUNT; f++) {
		const struct feature_bit *b = &feature_bits[f];
		uint32_t bit = 1u << b->bit;

		if (b->leaf != leaf || b->subleaf != subleaf || !m->has[f])
			continue;
		if (b->reg == REG_A)
			out->eax |= bit;
		else if (b->reg == REG_B)
			out->ebx |= bit;
		else if (b->reg == REG_C)
			out->ecx |= bit;
		else
			out->edx |= bit;
	}
}

/* AMD repeats these bits of leaf 1 EDX in leaf 80000001H. */
#define AMD_SHARED_EDX 0x0183f3ffu

static bool leaf_has_subleaves(uint32_t leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x8000001d;
}

void cpuid_query(const struct cpu_model *m, const struct cpuid_env *env, uint32_t leaf,
		 uint32_t subleaf, struct cpuid_regs *out)
{
	uint32_t max_extended = m->is_amd ? MAX_EXTENDED : 0x80000008;

	out->eax = out->ebx = out->ecx = out->edx = 0;
	if (!leaf_has_subleaves(leaf))
		subleaf = 0;
	if (leaf >> 16 == 0x4000) {
		leaf_hypervisor(m, leaf, out);
		return;
	}
	if (leaf & 0x80000000 ? leaf > max_extended : leaf > MAX_BASIC) {
		/* Intel answers as for the highest basic leaf, AMD with zeros. */
		if (m->is_amd)
			return;
		leaf = MAX_BASIC;
	}
	if (leaf & 0x80000000)
		leaf_extended(m, env, leaf, subleaf, out);
	else
		leaf_basic(m, env, leaf, subleaf, out);
	add_feature_bits(m, leaf, subleaf, out);
	if (leaf == 0x80000001 && m->is_amd) {
		struct cpuid_regs one = { 0 };

		add_feature_bits(m, 1, 0, &one);
		if (env->apic_enabled)
			one.edx |= 1u << 9;
		out->edx |= one.edx & AMD_SHARED_EDX;
	}
}
