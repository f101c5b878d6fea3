/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/util.h"
#include "cli/prom.h"
#include "cli/prom_int.h"

enum source {
	OF_MACHINE,   /* a member of the answer */
	OF_PROCESS,   /* ... of its "process" */
	OF_MIGRATION, /* ... of its "migration", while there is one */
	OF_VCPU,      /* of each object in "counters", labelled by its number */
	OF_ENGINE,    /* the same, summed up: what all vCPUs share stands with the first */
	OF_DISK,      /* of each object in "disk_counters" */
	OF_CARD,      /* of each object in "card_counters" */
};

struct row {
	const char *metric, *type, *help; /* NULL: one more sample of the metric above */
	enum source source;
	const char *counter;
	const char *key, *value; /* a label beside the machine's and the index; or NULL */
	bool is_ns;		 /* to be shown in seconds */
};

#define COUNTER(metric, help) PROM_COUNTER("viv_vm_" metric, help)
#define GAUGE(metric, help)   PROM_GAUGE("viv_vm_" metric, help)
#define MORE		      NULL, NULL, NULL

// clang-format off
static const struct row rows[] = {
	{ GAUGE("cpus", "vCPUs of the machine."), OF_MACHINE, "cpus" },
	{ GAUGE("memory_bytes", "Memory that the guest has."), OF_MACHINE, "mem" },
	{ GAUGE("clock_seconds", "Machine time since power-on; it stands still while the machine is paused."), OF_MACHINE, "clock_ns", .is_ns = true },
	{ COUNTER("resets", "Resets of the machine."), OF_MACHINE, "resets" },

	{ COUNTER("process_cpu_seconds", "Processor time of the machine's process: vCPUs, translation, devices."), OF_PROCESS, "cpu_time_ns", .is_ns = true },
	{ GAUGE("process_max_resident_bytes", "The most memory of the host that the machine's process had at once."), OF_PROCESS, "max_resident_bytes" },
	{ COUNTER("process_page_faults", "Page faults of the machine's process on the host; major ones waited for a disk."), OF_PROCESS, "minor_faults", "severity", "minor" },
	{ MORE, OF_PROCESS, "major_faults", "severity", "major" },

	{ GAUGE("migration_dirty_bytes_per_second", "What the guest changes of its memory, while the machine is being moved."), OF_MIGRATION, "dirty_bytes_per_s" },
	{ GAUGE("migration_sent_bytes", "Bytes sent of the machine that is being moved."), OF_MIGRATION, "sent_bytes" },
	{ GAUGE("migration_left_pages", "Pages that are still to be sent in this round."), OF_MIGRATION, "pages_left" },
	{ GAUGE("migration_throttle_percent", "Time that the guest's CPUs are held for it."), OF_MIGRATION, "throttle_percent" },

	{ COUNTER("vcpu_cpu_seconds", "Processor time of the vCPU's thread."), OF_VCPU, "cpu_time_ns", .is_ns = true },
	{ COUNTER("vcpu_halts", "HLT instructions with nothing to deliver."), OF_VCPU, "halts" },
	{ COUNTER("vcpu_exits", "Calls of the machine by the engine, by kind."), OF_VCPU, "exits_pio", "kind", "pio" },
	{ MORE, OF_VCPU, "exits_mmio",      "kind", "mmio" },
	{ MORE, OF_VCPU, "exits_msr",       "kind", "msr" },
	{ MORE, OF_VCPU, "exits_cr8",       "kind", "cr8" },
	{ MORE, OF_VCPU, "exits_hypercall", "kind", "hypercall" },
	{ MORE, OF_VCPU, "exits_eoi",       "kind", "eoi" },

	{ COUNTER("dbt_block_entries", "Entries into translated code from the dispatcher."), OF_VCPU, "block_entries" },
	{ COUNTER("dbt_exits", "Returns from translated code to the dispatcher, by reason."), OF_VCPU, "exits_lookup", "reason", "lookup" },
	{ MORE, OF_VCPU, "exits_link",        "reason", "link" },
	{ MORE, OF_VCPU, "exits_interpreter", "reason", "interpreter" },
	{ MORE, OF_VCPU, "exits_poll",        "reason", "poll" },
	{ COUNTER("dbt_interpreted_instructions", "Instructions executed by the interpreter."), OF_VCPU, "instructions_interpreted" },
	{ COUNTER("dbt_tlb_misses", "Misses of the soft TLB; refused ones are faults, devices, page crossings and pages whose writes must be noticed."), OF_VCPU, "tlb_fills", "outcome", "filled" },
	{ MORE, OF_VCPU, "tlb_refused", "outcome", "refused" },
	{ COUNTER("dbt_page_walks", "Walks of the guest's page tables."), OF_VCPU, "tlb_walks" },
	{ COUNTER("dbt_tlb_flushes", "Flushes of the soft TLB."), OF_VCPU, "tlb_flushes" },

	{ COUNTER("dbt_translated_blocks", "Blocks translated."), OF_ENGINE, "translations" },
	{ GAUGE("dbt_blocks", "Translated blocks that are there."), OF_ENGINE, "blocks_size" },
	{ COUNTER("dbt_invalidated_blocks", "Blocks dropped because their bytes were written."), OF_ENGINE, "blocks_invalidated" },
	{ COUNTER("dbt_dropped_blocks", "Blocks dropped because the limit of memory for code was reached."), OF_ENGINE, "blocks_dropped" },
	{ GAUGE("dbt_code_bytes", "Memory of translated code."), OF_ENGINE, "code_bytes" },
	{ GAUGE("dbt_code_records_bytes", "Memory of the records of translated blocks."), OF_ENGINE, "code_records_bytes" },
	{ GAUGE("dbt_code_limit_bytes", "What code and records together may have now."), OF_ENGINE, "code_limit_bytes" },

	{ COUNTER("disk_operations", "Requests of the guest to a disk."), OF_DISK, "reads", "operation", "read" },
	{ MORE, OF_DISK, "writes",   "operation", "write" },
	{ MORE, OF_DISK, "flushes",  "operation", "flush" },
	{ MORE, OF_DISK, "discards", "operation", "discard" },
	{ COUNTER("disk_bytes", "Bytes that the guest reads from a disk and writes to it."), OF_DISK, "read_bytes", "operation", "read" },
	{ MORE, OF_DISK, "written_bytes", "operation", "write" },
	{ COUNTER("disk_errors", "Requests to a disk that failed."), OF_DISK, "errors" },

	{ COUNTER("network_bytes", "Bytes that the guest receives and sends, by card."), OF_CARD, "rx_bytes", "direction", "receive" },
	{ MORE, OF_CARD, "tx_bytes", "direction", "transmit" },
	{ COUNTER("network_frames", "Frames that the guest receives and sends, by card."), OF_CARD, "rx_frames", "direction", "receive" },
	{ MORE, OF_CARD, "tx_frames", "direction", "transmit" },
	{ COUNTER("network_dropped_frames", "Frames lost at a card: no buffer of the guest, or not sent."), OF_CARD, "rx_dropped", "direction", "receive" },
	{ MORE, OF_CARD, "tx_dropped", "direction", "transmit" },
	{ COUNTER("network_filtered_frames", "Frames not for the guest, by the card's own filter."), OF_CARD, "rx_filtered" },
};
// clang-format on

/* ---- samples ---- */

static void put_sample(struct prom_family *f, const struct row *r, const char *vm,
		       const char *index_key, size_t index, json_int_t v)
{
	prom_begin_sample(f, "vm", vm);
	if (index_key)
		fprintf(f->out, ",%s=\"%zu\"", index_key, index);
	if (r->key)
		prom_put_label(f->out, r->key, r->value);
	prom_end_sample(f, v, r->is_ns);
}

static void put_each(struct prom_family *f, const struct row *r, const struct prom_machine *m)
{
	static const struct {
		const char *list, *key;
	} lists[] = {
		[OF_VCPU] = { "counters", "vcpu" }, [OF_DISK] = { "disk_counters", "disk" }, [OF_CARD] = { "card_counters", "card" }
	};
	json_t *one;
	json_int_t v;
	size_t i;

	json_array_foreach(json_object_get(m->info, lists[r->source].list), i, one)
	{
		if (prom_read_number(one, r->counter, &v))
			put_sample(f, r, m->name, lists[r->source].key, i, v);
	}
}

static void put_sum(struct prom_family *f, const struct row *r, const struct prom_machine *m)
{
	json_int_t v, sum = 0;
	bool is_there = false, is_too_much = false;
	json_t *one;
	size_t i;

	json_array_foreach(json_object_get(m->info, "counters"), i, one)
	{
		if (!prom_read_number(one, r->counter, &v))
			continue;
		is_there = true;
		is_too_much |= __builtin_add_overflow(sum, v, &sum);
	}
	if (is_there && !is_too_much)
		put_sample(f, r, m->name, NULL, 0, sum);
}

static void put_row(struct prom_family *f, const struct row *r, const struct prom_machine *m)
{
	json_t *from = r->source == OF_PROCESS	   ? json_object_get(m->info, "process")
		       : r->source == OF_MIGRATION ? json_object_get(m->info, "migration")
						   : m->info;
	json_int_t v;

	switch (r->source) {
	case OF_MACHINE:
	case OF_PROCESS:
	case OF_MIGRATION:
		if (prom_read_number(from, r->counter, &v))
			put_sample(f, r, m->name, NULL, 0, v);
		break;
	case OF_ENGINE:
		put_sum(f, r, m);
		break;
	default:
		put_each(f, r, m);
	}
}

static void put_rows(const struct prom_machine *machines, size_t n, FILE *out)
{
	struct prom_family f = { 0 };

	for (const struct row *r = rows; r < rows + ARRAY_SIZE(rows); r++) {
		if (r->metric)
			f = (struct prom_family){ out, r->metric, r->type, r->help };
		for (size_t i = 0; i < n; i++)
			put_row(&f, r, &machines[i]);
	}
}

/* ---- what is not in the table ---- */

static void put_states(const struct prom_machine *machines, size_t n, FILE *out)
{
	struct prom_family up = {
		out, GAUGE("up", "1 for a running machine that answers, 0 if it does not.")
	};
	struct prom_family paused = { out, GAUGE("paused", "1 while the machine is paused.") };
	struct prom_family resident = {
		out, GAUGE("process_resident_bytes",
			   "Memory of the host that the machine's process has now.")
	};

	for (size_t i = 0; i < n; i++) {
		prom_begin_sample(&up, "vm", machines[i].name);
		prom_end_sample(&up, machines[i].info != NULL, false);
	}
	for (size_t i = 0; i < n; i++) {
		const char *state = json_string_value(json_object_get(machines[i].info, "state"));

		if (!state)
			continue;
		prom_begin_sample(&paused, "vm", machines[i].name);
		prom_end_sample(&paused, strcmp(state, "paused") == 0, false);
	}
	for (size_t i = 0; i < n; i++) {
		if (machines[i].resident_bytes < 0)
			continue;
		prom_begin_sample(&resident, "vm", machines[i].name);
		prom_end_sample(&resident, machines[i].resident_bytes, false);
	}
}

static void put_info(const struct prom_machine *machines, size_t n, FILE *out)
{
	struct prom_family f = { out, GAUGE("info", "The machine's engine and CPU; always 1.") };

	for (size_t i = 0; i < n; i++) {
		const char *engine = json_string_value(json_object_get(machines[i].info, "engine"));
		const char *cpu = json_string_value(json_object_get(machines[i].info, "cpu"));

		if (!engine || !cpu)
			continue;
		prom_begin_sample(&f, "vm", machines[i].name);
		prom_put_label(out, "engine", engine);
		prom_put_label(out, "cpu", cpu);
		prom_end_sample(&f, 1, false);
	}
}

static void put_devices(const struct prom_machine *machines, size_t n, FILE *out)
{
	struct prom_family f = { out, COUNTER("device_accesses",
					      "Accesses of the guest to a device over the bus.") };
	const char *device;
	json_int_t v;
	json_t *one;

	for (size_t i = 0; i < n; i++) {
		json_t *devices = json_object_get(machines[i].info, "devices");

		json_object_foreach(devices, device, one)
		{
			if (!prom_read_number(devices, device, &v))
				continue;
			prom_begin_sample(&f, "vm", machines[i].name);
			prom_put_label(out, "device", device);
			prom_end_sample(&f, v, false);
		}
	}
}

void prom_print(const struct prom_machine *machines, size_t n, FILE *out)
{
	put_states(machines, n, out);
	put_info(machines, n, out);
	put_rows(machines, n, out);
	put_devices(machines, n, out);
}
