/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translated code that was kept: without its code of authentication, which would let nothing pass, and as of this very build.  It is refused, and
 * nothing is there afterwards, or taken over, every block accepted by the verifier; then all of it is dropped again by writes to its pages.
 * The same bytes as a file: no key fits.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/dbt/keep.h"
#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"
#include "fuzz.h"
#include "vm/code_set.h"

enum { PML4 = 0x2000, PDPT = 0x3000, CODE = 0x10000, END_PAGE = 0x12000 };

static struct guest_ram ram;
static struct cpu_model model;
static struct engine_vm *vm;
static struct engine_vcpu *vcpu;
static struct dbt_cpu *cpu;
static struct engine_code kept;

static int on_exit_(void *ctx, struct vcpu_exit *exit)
{
	return 0;
}

static int intr_ack(void *ctx)
{
	return -1;
}

/* A loop over memory, a call, instructions that are interpreted, one that goes on in the next page. */
static const uint8_t guest[] = {
	0x48, 0x03, 0x1e, 0x48, 0x83, 0xc6,
	0x08, 0x48, 0xff, 0xca, 0x75, 0xf4, /* add rbx,[rsi]; add rsi,8; dec rdx; jnz */
	0x53, 0x0f, 0xa2, 0x5b, 0xb9, 8,
	0,    0,    0,	  0xf3, 0x48, 0xab, /* push rbx; cpuid; pop rbx; mov ecx, 8; rep stosq */
	0xe8, 0xe3, 0x0f, 0x00, 0x00,	    /* call END_PAGE - 1000H */
	0xff, 0xc8, 0x75, 0x01, 0x90, 0xf4, /* dec eax; jnz +1; nop; hlt */
};
static const uint8_t sub[] = { 0x48, 0x81, 0xc3, 0x78, 0x56, 0x34, 0x12, 0xc3 };

static void must(int rc)
{
	if (rc)
		abort();
}

/* The vCPU's memory is none that a search for leaks looks into. */
static void clean_up(void)
{
	engine_dbt.vcpu_destroy(vcpu);
	engine_dbt.vm_destroy(vm);
	ram_destroy(&ram);
	bytes_free(&kept.bytes);
}

static void make_vm(void)
{
	struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = intr_ack };
	struct engine_config cfg = { .ram = &ram, .model = &model, .vcpus = 1, .is_strict = true };
	struct x86_state s;
	struct error err;

	if (vm)
		return;
	atexit(clean_up);
	must(ram_create(&ram, 2 * MIB, 0, &err));
	must(cpu_model_init(&model, "host", 1, &err));
	must(engine_dbt.vm_create(&vm, &cfg, &err));
	must(engine_dbt.vcpu_create(&vcpu, vm, 0, &up, &err));
	cpu = (struct dbt_cpu *)(void *)vcpu;
	memcpy(ram.base + CODE, guest, sizeof(guest));
	memcpy(ram.base + CODE + 0x1000, (const uint8_t[]){ 0xe9, 0xf8, 0x0f, 0, 0 }, 5); /* jmp to END_PAGE - 3 */
	memcpy(ram.base + END_PAGE - 3, sub, sizeof(sub));
	memcpy(ram.base + PML4, &(uint64_t){ PDPT | 7 }, 8);
	memcpy(ram.base + PDPT, &(uint64_t){ 0x87 }, 8);
	engine_dbt.get_state(vcpu, &s);
	s.cr3 = PML4;
	s.cr4 = X86_CR4_PAE;
	s.cr0 |= X86_CR0_PE | X86_CR0_PG | X86_CR0_WP;
	s.efer = X86_EFER_LME | X86_EFER_LMA;
	s.seg[SEG_CS] = (struct x86_seg){ .selector = 8, .limit = 0xffffffff, .attr = 0xa09b };
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			s.seg[i] = (struct x86_seg){ .selector = 16, .limit = 0xffffffff, .attr = 0xc093 };
	s.rip = CODE;
	s.gpr[R_RSP] = 0x7000;
	s.gpr[R_RSI] = 0x20000;
	s.gpr[R_RDI] = 0x30000;
	s.gpr[R_RDX] = 1000;
	must(engine_dbt.set_state(vcpu, &s, &err));
	must(engine_dbt.dirty_start(vm, &err));
	must(thunk_thread_init(cpu, &err));
	if (engine_dbt.vcpu_run(vcpu, &err) != RUN_HALTED)
		abort();
	must(engine_dbt.code_save(vm, NULL, &kept, &err));
	xlate_flush(cpu->vm);
	int null_fd = open("/dev/null", O_WRONLY);

	log_set_fd(null_fd); /* the verifier says what it refuses */
}

/* All of it but the ident: the rest of part 0, and the others. */
size_t fuzz_seed(uint8_t *data, size_t cap)
{
	make_vm();
	size_t skip = xlate_code_ident(), len = kept.bytes.len - skip;

	if (len > cap)
		abort();
	memcpy(data, kept.bytes.data + skip, len);
	return len;
}

/* As a file: a head, and parts that nobody has authenticated. */
static void try_file(const uint8_t *data, size_t len)
{
	static const uint8_t key[CODE_SET_KEY_BYTES] = { 1 };
	uint8_t head[CODE_SET_HEAD_BYTES] = "VIVCODES\2\0\0", *copy;
	struct code_set c;
	struct error err;

	memcpy(head + 12, data, MIN(len, sizeof(head) - 12));
	if (code_set_parse(&c, key, head, len, &err) < 0)
		return;
	copy = malloc(len);
	if (!copy)
		abort();
	memcpy(copy, data, len);
	for (unsigned i = 0; i < c.nparts; i++) {
		const uint8_t *part = copy + code_set_at(&c, i);

		if (code_set_check(&c, i, part, part + c.len[i], &err) == 0)
			abort();
	}
	free(copy);
}

struct input {
	const uint8_t *data;
	size_t len;
	uint32_t lens[ENGINE_CODE_PARTS];
};

static unsigned keep_parts_of(const uint8_t *all, size_t len, uint32_t lens[ENGINE_CODE_PARTS])
{
	struct keep_head head;

	if (len < sizeof(head))
		return 1;
	memcpy(&head, all, sizeof(head));
	unsigned n = MIN(head.nsegments, KEEP_SEGMENTS_MAX);

	for (unsigned i = 0; i < n; i++)
		lens[i + 1] = (uint32_t)keep_part_bytes(&head.segments[i]);
	return n + 1;
}

/* engine_code_source.read */
static int read_part(void *arg, unsigned i, uint8_t *to, struct error *err)
{
	const struct input *in = arg;
	size_t at = 0;

	for (unsigned k = 0; k < i; k++)
		at += in->lens[k];
	if (at > in->len || in->lens[i] > in->len - at)
		return error_set(err, -EINVAL, "cut off");
	memcpy(to, in->data + at, in->lens[i]);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	size_t skip = xlate_code_ident();
	struct error err;

	make_vm();
	try_file(data, len);
	uint8_t *all = malloc(skip + len);
	struct input input = { .data = all, .len = skip + len };
	struct engine_code_source in = { .nparts = 1, .len = input.lens, .read = read_part, .arg = &input };

	if (!all)
		abort();
	memcpy(all, kept.bytes.data, skip);
	memcpy(all + skip, data, len);
	/* The lengths that belong to what the head says, as far as there is room for them. */
	input.lens[0] = kept.len[0];
	in.nparts = keep_parts_of(all, skip + len, input.lens);
	int r = engine_dbt.code_load(vm, &in, NULL, &err);

	free(all);
	if (r == -ESTALE || cpu->vm->xlate->verify_failures)
		abort();
	dbt_code_written(cpu->vm, 0, ram.size_bytes); /* nothing has changed: it is loaded again, the next time */
	for (uint64_t i = 0; i < ram.size_bytes >> GUEST_PAGE_SHIFT; i++)
		if (ram.page_flags[i] & RAM_PAGE_CODE)
			abort();
	if (cpu->vm->xlate->table.nblocks)
		abort();
	xlate_flush(cpu->vm);
	return 0;
}
