/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest's CPU is: named models and the CPUID leaves they show.
 *
 * CPUID shows exactly what works and nothing else (both engines use the same answer).  A model is
 * a set of features; host support for what is executed natively is subtracted at creation.
 *
 * Source: Intel SDM vol. 2 CPUID; AMD APM vol. 3 appendix E.
 */
#ifndef VIV_ENGINE_CPUID_H
#define VIV_ENGINE_CPUID_H

#include <stdbool.h>
#include <stdint.h>

struct error;

/* Features that gate instructions or architectural bits.  X(name, leaf, subleaf, reg, bit). */
enum cpu_feature {
	CPUF_NONE = 0,
#define X(name, leaf, subleaf, reg, bit) CPUF_##name,
#include "engine/cpu_features.def"
#undef X
	CPUF_COUNT
};

struct cpuid_regs {
	uint32_t eax, ebx, ecx, edx;
};

/*
 * What KVM's leaf 40000001H shows (Documentation/virt/kvm/x86/cpuid.rst): no delay at I/O ports, the clock at its
 * present registers, steal time, end of interrupt in memory, HLT ended by hypercall (for spinlocks), TLB flushes left to a
 * CPU that does not run, IPIs by hypercall, yield by hypercall, a clock stable over all CPUs.
 */
#define CPUID_KVM_FEATURES                                                                         \
	(1u << 1 | 1u << 3 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 9 | 1u << 11 | 1u << 13 | 1u << 24)

struct cpu_model {
	const char *name;	     /* "host", "x86-64-v2", "x86-64-v3" */
	char vendor[13];	     /* the host's: instructions run natively */
	bool is_amd;		     /* which vendor's leaves and MSRs are shown */
	bool has_kvm_pv;	     /* KVM's signature, clock and hypercalls */
	bool has_fpu_error_pointers; /* AMD: FXRSTOR always restores FIP, FDP (host's) */
	uint32_t signature;	     /* leaf 1 EAX: family, model, stepping of the host */
	char brand[48];		     /* leaves 80000002H..4H, zero-padded */
	bool has[CPUF_COUNT];	     /* features after subtraction of what the host lacks */
	uint32_t tsc_khz;	     /* shown in leaf 15H/40000010H; 0: not shown */
	uint8_t phys_bits;	     /* MAXPHYADDR shown, 36..52; covers 1 TiB of RAM above 4G */
	unsigned vcpus;		     /* for the topology leaves */
	uint64_t xcr0_mask;	     /* XCR0 bits the guest may set: x87|SSE[|AVX] */
};

/**
 * cpu_model_init() - fill @m from a name.
 * @name: "host" (everything the dbt engine can do on this host), "x86-64-v2", "x86-64-v3"
 * @vcpus: 1..255
 * Returns 0, or -EINVAL with the known names in @err.
 */
int cpu_model_init(struct cpu_model *m, const char *name, unsigned vcpus, struct error *err);

/* What CPUID reads from the running CPU besides the model. */
struct cpuid_env {
	uint32_t apic_id;
	uint64_t xcr0, xss, cr4; /* OSXSAVE, size of the XSAVE area in use */
	bool apic_enabled;	 /* IA32_APIC_BASE bit 11: leaf 1 EDX.APIC */
};

/** cpuid_query() - compiled without vector registers: dbt calls it with guest FPU state live.
 * the answer to CPUID(leaf, subleaf); out-of-range leaves follow the vendor's rule. */
void cpuid_query(const struct cpu_model *m, const struct cpuid_env *env, uint32_t leaf,
		 uint32_t subleaf, struct cpuid_regs *out);

static inline bool cpu_has(const struct cpu_model *m, enum cpu_feature f)
{
	return f == CPUF_NONE || m->has[f];
}

#endif
