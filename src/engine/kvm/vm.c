/* SPDX-License-Identifier: Apache-2.0 */
/* The VM of the kvm engine; the story is in kvm.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "engine/kvm/kvm.h"

#define MAX_CPUID_ENTRIES 256
/* One reserved routing entry a vector, 16 to 255: kvm_learn_level().  KVM keeps the number in a
 * byte. */
#define LEVEL_ROUTES 240
#define LEVEL_FIRST  16
/* Three pages that Intel CPUs without "unrestricted guest" need in guest-physical space, between
 * the LAPIC and the firmware (api.rst 4.35, 4.37). */
#define IDENTITY_MAP_ADDR 0xfeffc000ULL
#define TSS_ADDR	  0xfeffd000ULL

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int r;

	do
		r = host.ioctl(fd, request, arg);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

static int check_extension(const struct kvm_vm *vm, int cap)
{
	int r = kvm_ioctl(vm->fd, KVM_CHECK_EXTENSION, (void *)(intptr_t)cap);

	return r < 0 ? 0 : r;
}

static int enable_cap(const struct kvm_vm *vm, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap c = { .cap = cap, .args = { arg } };

	return kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &c);
}

static void on_kick_signal(int sig)
{
	/* Its arrival is the news: KVM_RUN returns -EINTR. */
}

int kvm_own_signal(void)
{
	struct sigaction old, sa = { .sa_handler = on_kick_signal };

	sigemptyset(&sa.sa_mask);
	if (sigaction(KVM_KICK_SIGNAL, NULL, &old))
		return -errno;
	if (old.sa_handler == on_kick_signal)
		return 0;
	return sigaction(KVM_KICK_SIGNAL, &sa, NULL) ? -errno : 0;
}

static void vm_destroy(struct engine_vm *evm)
{
	struct kvm_vm *vm = to_kvm_vm(evm);

	if (!vm)
		return;
	if (vm->step_vm)
		engine_dbt.vm_destroy(vm->step_vm);
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->dev_fd >= 0)
		close(vm->dev_fd);
	pthread_mutex_destroy(&vm->lock);
	free(vm->supported);
	free(vm);
}

static int set_slot(struct kvm_vm *vm, unsigned i, const struct kvm_slot *s)
{
	struct kvm_userspace_memory_region r = {
		.slot = i,
		.flags = (s->is_readonly ? KVM_MEM_READONLY : 0) |
			 (vm->is_logging && !s->is_readonly ? KVM_MEM_LOG_DIRTY_PAGES : 0),
		.guest_phys_addr = s->gpa,
		.memory_size = s->is_used ? s->size_bytes : 0,
		.userspace_addr = (uintptr_t)vm->ram->base + s->offset,
	};
	int rc = kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r);

	if (rc >= 0)
		vm->slots[i] = *s;
	return rc;
}

static bool slot_is_region(const struct kvm_slot *s, const struct ram_region *r)
{
	return s->is_used && s->gpa == r->gpa && s->size_bytes == r->size_bytes &&
	       s->offset == r->offset && s->is_readonly == r->is_readonly;
}

/* Drop first, then add: a region may have moved over the place of another. */
static int vm_ram_changed(struct engine_vm *evm, struct error *err)
{
	struct kvm_vm *vm = to_kvm_vm(evm);
	const struct guest_ram *ram = vm->ram;

	for (unsigned i = 0; i < RAM_MAX_REGIONS; i++) {
		struct kvm_slot none = vm->slots[i];
		bool is_kept = i < ram->nregions && slot_is_region(&none, &ram->regions[i]);

		if (!none.is_used || is_kept)
			continue;
		none.is_used = false;
		int rc = set_slot(vm, i, &none);
		if (rc < 0)
			return error_set(err, rc, "KVM does not give up memory at %#llx: %s",
					 (unsigned long long)none.gpa, strerror(-rc));
	}
	for (unsigned i = 0; i < ram->nregions; i++) {
		const struct ram_region *r = &ram->regions[i];
		struct kvm_slot s = { .gpa = r->gpa,
				      .size_bytes = r->size_bytes,
				      .offset = r->offset,
				      .is_readonly = r->is_readonly,
				      .is_used = true };

		if (vm->slots[i].is_used)
			continue;
		int rc = set_slot(vm, i, &s);
		if (rc < 0)
			return error_set(err, rc, "KVM refuses %llu KiB of memory at %#llx: %s",
					 (unsigned long long)(r->size_bytes / KIB),
					 (unsigned long long)r->gpa, strerror(-rc));
	}
	return 0;
}

static int open_device(struct kvm_vm *vm, struct error *err)
{
	vm->dev_fd = host.open("/dev/kvm", O_RDWR | O_CLOEXEC, 0);
	if (vm->dev_fd < 0)
		return error_set(err, -errno, "/dev/kvm cannot be opened: %s", strerror(errno));
	int api = kvm_ioctl(vm->dev_fd, KVM_GET_API_VERSION, NULL);
	if (api != KVM_API_VERSION)
		return error_set(err, -ENOTSUP, "/dev/kvm speaks version %d of its interface, not %d",
				 api, KVM_API_VERSION);
	int bytes = kvm_ioctl(vm->dev_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (bytes < (int)sizeof(struct kvm_run))
		return error_set(err, -ENOTSUP, "/dev/kvm shares %d bytes a vCPU, too few", bytes);
	vm->run_bytes = (size_t)bytes;
	vm->fd = kvm_ioctl(vm->dev_fd, KVM_CREATE_VM, NULL);
	if (vm->fd < 0)
		return error_set(err, vm->fd, "KVM does not create a VM: %s", strerror(-vm->fd));
	return 0;
}

/* What the engine is built on; each has been in Linux since 4.13 at the latest. */
static int require_caps(const struct kvm_vm *vm, struct error *err)
{
	static const struct {
		int cap;
		const char *name;
	} needed[] = {
		{ KVM_CAP_USER_MEMORY, "memory slots" },
		{ KVM_CAP_SPLIT_IRQCHIP, "the split interrupt controller" },
		{ KVM_CAP_SIGNAL_MSI, "MSIs" },
		{ KVM_CAP_READONLY_MEM, "read-only memory" },
		{ KVM_CAP_IMMEDIATE_EXIT, "immediate exits" },
		{ KVM_CAP_XSAVE, "XSAVE state" },
		{ KVM_CAP_XCRS, "XCR state" },
		{ KVM_CAP_DEBUGREGS, "debug registers" },
		{ KVM_CAP_VCPU_EVENTS, "pending events" },
		{ KVM_CAP_MP_STATE, "the multiprocessing state" },
		{ KVM_CAP_ADJUST_CLOCK, "its clock" },
		{ KVM_CAP_SET_TSS_ADDR, "the TSS address" },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(needed); i++)
		if (!check_extension(vm, needed[i].cap))
			return error_set(err, -ENOTSUP, "this host's KVM does not offer %s",
					 needed[i].name);
	int max = check_extension(vm, KVM_CAP_MAX_VCPUS);
	if (max && vm->cfg.vcpus > (unsigned)max)
		return error_set(err, -EINVAL, "this host's KVM runs at most %d vCPUs, not %u", max,
				 vm->cfg.vcpus);
	return 0;
}

static int read_supported_cpuid(struct kvm_vm *vm, struct error *err)
{
	vm->supported =
		calloc(1, sizeof(*vm->supported) + MAX_CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2));
	if (!vm->supported)
		return error_set(err, -ENOMEM, "no memory for KVM's CPUID table");
	vm->supported->nent = MAX_CPUID_ENTRIES;
	int rc = kvm_ioctl(vm->dev_fd, KVM_GET_SUPPORTED_CPUID, vm->supported);
	if (rc < 0)
		return error_set(err, rc, "KVM does not tell its CPUID: %s", strerror(-rc));
	vm->supported_xcr0 = 3;
	for (unsigned i = 0; i < vm->supported->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &vm->supported->entries[i];

		if (e->function == 0xd && e->index == 0)
			vm->supported_xcr0 = e->eax | (uint64_t)e->edx << 32;
	}
	return 0;
}

static int configure(struct kvm_vm *vm, struct error *err)
{
	uint64_t identity = IDENTITY_MAP_ADDR;
	int rc = require_caps(vm, err);

	if (rc < 0)
		return rc;
	rc = kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	if (rc >= 0)
		rc = kvm_ioctl(vm->fd, KVM_SET_TSS_ADDR, (void *)(uintptr_t)TSS_ADDR);
	if (rc < 0)
		return error_set(err, rc, "KVM refuses its three helper pages: %s", strerror(-rc));
	rc = enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, LEVEL_ROUTES);
	if (rc < 0)
		return error_set(err, rc, "KVM refuses the split interrupt controller: %s",
				 strerror(-rc));
	vm->has_exception_payload = check_extension(vm, KVM_CAP_EXCEPTION_PAYLOAD) &&
				    enable_cap(vm, KVM_CAP_EXCEPTION_PAYLOAD, 1) >= 0;
	/* Failures in user mode come to us too, instead of #UD (api.rst 7.x). */
	if (check_extension(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE)) {
		rc = enable_cap(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
		if (rc < 0)
			return error_set(err, rc, "KVM does not report emulation failures: %s",
					 strerror(-rc));
	}
	vm->has_triple_fault_event = check_extension(vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT) &&
				     enable_cap(vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1) >= 0;
	rc = read_supported_cpuid(vm, err);
	if (rc < 0)
		return rc;
	int khz = kvm_ioctl(vm->fd, KVM_GET_TSC_KHZ, NULL); /* on VMs since Linux 5.18; else per vCPU */
	if (khz > 0)
		vm->tsc_khz = (uint32_t)khz;
	kvm_filter_model(&vm->model, vm->supported, check_extension(vm, KVM_CAP_TSC_DEADLINE_TIMER));
	return vm_ram_changed((struct engine_vm *)(void *)vm, err);
}

static int vm_create(struct engine_vm **out, const struct engine_config *cfg, struct error *err)
{
	if (cfg->is_counting)
		return error_set(err, -EOPNOTSUPP,
				 "the kvm engine counts no instructions: use --engine dbt");
	struct kvm_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return error_set(err, -ENOMEM, "no memory for a VM");
	vm->dev_fd = vm->fd = -1;
	vm->ram = cfg->ram;
	vm->model = *cfg->model;
	vm->cfg = *cfg;
	vm->cfg.model = &vm->model;
	vm->tsc_khz = cfg->model->tsc_khz;
	pthread_mutex_init(&vm->lock, NULL);
	int rc = kvm_own_signal();
	if (rc < 0)
		error_set(err, rc, "the kick signal cannot be set up: %s", strerror(-rc));
	else
		rc = open_device(vm, err);
	if (rc >= 0)
		rc = configure(vm, err);
	if (rc < 0) {
		vm_destroy((struct engine_vm *)(void *)vm);
		return rc;
	}
	*out = (struct engine_vm *)(void *)vm;
	return 0;
}

int kvm_learn_level(struct kvm_vm *vm, uint8_t vector)
{
	struct {
		struct kvm_irq_routing head;
		struct kvm_irq_routing_entry entries[LEVEL_ROUTES];
	} * t;
	int rc = 0;

	if (vector < LEVEL_FIRST)
		return 0; /* no LAPIC takes it, SDM vol. 3 10.5.2 */

	pthread_mutex_lock(&vm->lock);
	if (vm->level_vectors[vector])
		goto out;
	t = calloc(1, sizeof(*t));
	if (!t) {
		rc = -ENOMEM;
		goto out;
	}
	vm->level_vectors[vector] = true;
	/*
	 * Physical broadcast, level: KVM scans the reserved entries to find the vectors whose EOI
	 * we want, on any vCPU.  Nothing is ever delivered through them.
	 */
	for (unsigned i = LEVEL_FIRST; i < 256; i++) {
		if (!vm->level_vectors[i])
			continue;
		t->entries[t->head.nr++] = (struct kvm_irq_routing_entry){
			.gsi = i - LEVEL_FIRST,
			.type = KVM_IRQ_ROUTING_MSI,
			.u.msi = { .address_lo = KVM_APIC_PAGE | 0xff << 12, .data = 0x8000 | 0x4000 | i },
		};
	}
	rc = kvm_ioctl(vm->fd, KVM_SET_GSI_ROUTING, &t->head);
	if (rc < 0)
		vm->level_vectors[vector] = false;
	free(t);
out:
	pthread_mutex_unlock(&vm->lock);
	return rc < 0 ? rc : 0;
}

static int deliver_msi(struct engine_vm *evm, uint64_t addr, uint32_t data)
{
	struct kvm_vm *vm = to_kvm_vm(evm);
	struct kvm_msi msi = { .address_lo = (uint32_t)addr,
			       .address_hi = (uint32_t)(addr >> 32),
			       .data = data };
	bool is_level = data & 0x8000;

	if (is_level && !(data & 0x4000))
		return 0; /* de-assertion: nothing to deliver */
	if (is_level) {
		int rc = kvm_learn_level(vm, data & 0xff);

		if (rc < 0)
			return rc;
	}
	int rc = kvm_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);

	return rc < 0 ? rc : 0; /* 0: no CPU took it, which is the guest's doing */
}

static uint32_t vm_tsc_khz(struct engine_vm *vm)
{
	return to_kvm_vm(vm)->tsc_khz;
}

static int vm_set_clock(struct engine_vm *vm, int64_t now_ns, struct error *err)
{
	struct kvm_clock_data clk = { .clock = (uint64_t)now_ns };
	int rc = kvm_ioctl(to_kvm_vm(vm)->fd, KVM_SET_CLOCK, &clk);

	if (rc < 0)
		return error_set(err, rc, "KVM's clock cannot be set: %s", strerror(-rc));
	return 0;
}

static uint64_t vcpu_read_tsc(struct engine_vcpu *v)
{
	return __builtin_ia32_rdtsc() + (uint64_t)atomic_load(&to_kvm_vcpu(v)->tsc_offset);
}

/* ---- dirty log ---- */
/*
 * Two sources: KVM's own log of what vCPUs wrote, and the page flags of what the host side wrote
 * (devices, and instructions stepped on dbt).
 */
static int set_logging(struct kvm_vm *vm, bool is_on, struct error *err)
{
	vm->is_logging = is_on;
	for (unsigned i = 0; i < RAM_MAX_REGIONS; i++) {
		if (!vm->slots[i].is_used || vm->slots[i].is_readonly)
			continue;
		struct kvm_slot same = vm->slots[i];
		int rc = set_slot(vm, i, &same);
		if (rc < 0)
			return error_set(err, rc, "KVM cannot %s logging writes to memory at %#llx: %s",
					 is_on ? "start" : "stop", (unsigned long long)same.gpa,
					 strerror(-rc));
	}
	return 0;
}

static int dirty_start(struct engine_vm *evm, struct error *err)
{
	struct kvm_vm *vm = to_kvm_vm(evm);
	int rc = set_logging(vm, true, err);

	if (rc < 0) {
		set_logging(vm, false, NULL);
		return rc;
	}
	ram_log_start(vm->ram);
	return 0;
}

static void dirty_stop(struct engine_vm *evm)
{
	struct kvm_vm *vm = to_kvm_vm(evm);
	struct error err;

	if (set_logging(vm, false, &err) < 0)
		log_warn("kvm", "%s", err.text); /* costs speed, nothing else */
	ram_log_stop(vm->ram);
}

static void set_bit(uint64_t *bitmap, uint64_t n)
{
	bitmap[n / 64] |= 1ULL << n % 64;
}

static int collect_slot(struct kvm_vm *vm, unsigned i, uint64_t *bitmap, struct error *err)
{
	const struct kvm_slot *s = &vm->slots[i];
	uint64_t pages = s->size_bytes >> GUEST_PAGE_SHIFT;
	uint64_t first = s->offset >> GUEST_PAGE_SHIFT;
	_cleanup_free_ uint64_t *log = calloc((pages + 63) / 64, sizeof(*log));
	struct kvm_dirty_log d = { .slot = i, .dirty_bitmap = log };

	if (!log)
		return error_set(err, -ENOMEM, "no memory for the dirty log");
	int rc = kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &d);
	if (rc < 0)
		return error_set(err, rc, "KVM's dirty log cannot be read: %s", strerror(-rc));
	for (uint64_t w = 0; w < (pages + 63) / 64; w++)
		for (uint64_t bits = log[w]; bits; bits &= bits - 1)
			set_bit(bitmap, first + w * 64 + (uint64_t)__builtin_ctzll(bits));
	return 0;
}

static int dirty_collect(struct engine_vm *evm, uint64_t *bitmap, struct error *err)
{
	struct kvm_vm *vm = to_kvm_vm(evm);
	struct guest_ram *ram = vm->ram;

	memset(bitmap, 0, ((ram->size_bytes >> GUEST_PAGE_SHIFT) + 63) / 64 * 8);
	for (unsigned i = 0; i < RAM_MAX_REGIONS; i++) {
		if (!vm->slots[i].is_used || vm->slots[i].is_readonly)
			continue;
		int rc = collect_slot(vm, i, bitmap, err);
		if (rc < 0)
			return rc;
	}
	ram_log_collect(ram, bitmap);
	return 0;
}

static unsigned vcpu_counters(struct engine_vcpu *v, const char **names, uint64_t *values, unsigned max)
{
	static const char *const all[KVMC_COUNT] = {
		[KVMC_RUNS] = "kvm_runs",
		[KVMC_PIO] = "exits_pio",
		[KVMC_MMIO] = "exits_mmio",
		[KVMC_EOI] = "exits_eoi",
		[KVMC_WINDOWS] = "exits_interrupt_window",
		[KVMC_EXTINTS] = "pic_interrupts",
		[KVMC_NMIS] = "nmis",
		[KVMC_KICKS] = "kicks",
		[KVMC_STEPS] = "steps_on_dbt",
		[KVMC_DEBUG] = "exits_debug",
	};
	unsigned n = MIN(max, (unsigned)KVMC_COUNT);

	for (unsigned i = 0; i < n; i++) {
		names[i] = all[i];
		values[i] = to_kvm_vcpu(v)->counters[i];
	}
	return n;
}

const struct engine_ops engine_kvm = {
	.name = "kvm",
	.runs_in_kernel = true,
	.owns_lapic = true,
	.probe = kvm_probe,
	.vm_create = vm_create,
	.vm_destroy = vm_destroy,
	.vm_ram_changed = vm_ram_changed,
	.deliver_msi = deliver_msi,
	.vcpu_create = kvm_vcpu_create,
	.vcpu_destroy = kvm_vcpu_destroy,
	.vcpu_run = kvm_vcpu_run,
	.vcpu_kick = kvm_vcpu_kick,
	.get_state = kvm_get_state,
	.set_state = kvm_set_state,
	.get_lapic = kvm_get_lapic,
	.set_lapic = kvm_set_lapic,
	.set_intr = kvm_vcpu_set_intr,
	.raise_nmi = kvm_vcpu_raise_nmi,
	.read_tsc = vcpu_read_tsc,
	.tsc_khz = vm_tsc_khz,
	.get_tsc_offset = kvm_vcpu_get_tsc_offset,
	.set_tsc_offset = kvm_vcpu_set_tsc_offset,
	.set_clock = vm_set_clock,
	.dirty_start = dirty_start,
	.dirty_collect = dirty_collect,
	.dirty_stop = dirty_stop,
	.set_debug = kvm_vcpu_set_debug,
	.counters = vcpu_counters,
};
