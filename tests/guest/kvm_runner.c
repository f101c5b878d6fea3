/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs one test guest on the kvm engine, whatever its probe says; the serial line is standard
 * output.
 *
 *   kvm-runner IMAGE CPUS [APPEND]      status as `viv run` gives it
 *   kvm-runner --probe                  0: KVM is usable, 2: it works but emulates, 77: there is
 * none
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "char/chardev.h"
#include "engine/engine.h"
#include "vm/machine.h"

static size_t put(struct char_dev *c, const uint8_t *data, size_t len)
{
	(void)c;
	return fwrite(data, 1, len, stdout);
}

static void nothing(struct char_dev *c)
{
	(void)c;
}

static int probe(void)
{
	struct engine_probe p;
	struct guest_ram ram;
	struct cpu_model model;
	struct engine_config cfg = { .ram = &ram, .model = &model, .vcpus = 1 };
	struct engine_vm *vm = NULL;
	struct error err;

	engine_kvm.probe(&p);
	printf("kvm: %s\n", p.reason);
	if (p.is_usable)
		return 0;
	if (cpu_model_init(&model, "host", 1, &err) < 0 || ram_create(&ram, MIB, 0, &err) < 0)
		return 77;
	int rc = engine_kvm.vm_create(&vm, &cfg, &err);
	if (rc < 0)
		printf("%s\n", err.text);
	engine_kvm.vm_destroy(vm);
	ram_destroy(&ram);
	return rc < 0 ? 77 : 2;
}

int main(int argc, char **argv)
{
	static const struct char_ops ops = { .write = put, .rx_ready = nothing, .close = nothing };
	struct char_dev serial = { .ops = &ops };
	struct machine *m;
	struct machine_end end;
	struct error err;

	if (argc == 2 && !strcmp(argv[1], "--probe"))
		return probe();
	if (argc < 3) {
		fprintf(stderr, "usage: kvm-runner IMAGE CPUS [APPEND] | --probe\n");
		return 2;
	}
	const struct machine_config cfg = {
		.name = "guest",
		.engine_ops = &engine_kvm,
		.cpus = (unsigned)atoi(argv[2]),
		.mem_bytes = 64 * MIB,
		.kernel = argv[1],
		.append = argc > 3 ? argv[3] : "",
		.serial = &serial,
		.no_reboot = true,
	};
	log_set_level(LOG_ERROR); /* what this KVM lacks is not the guests' matter */
	int rc = machine_create(&m, &cfg, NULL, &err);
	if (rc == 0) {
		pthread_mutex_lock(machine_lock(m));
		rc = machine_start(m, false, &err);
		pthread_mutex_unlock(machine_lock(m));
	}
	if (rc < 0) {
		fprintf(stderr, "kvm-runner: %s\n", err.text);
		return 2;
	}
	machine_run(m, &end);
	machine_destroy(m);
	fflush(stdout);
	fprintf(stderr, "kvm-runner: %s\n", end.text);
	return end.status;
}
