/* SPDX-License-Identifier: Apache-2.0 */
/* `viv set`: change what a machine is made of. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/limits.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"
#include "ctl/vmlock.h"
#include "engine/cpuid.h"
#include "net/netd.h"

struct args {
	const char *engine, *cpu, *append, *net;
	uint64_t cpus, mem;
	struct opt_list forwards;
	struct limit_args limits;
	int log_level; /* -1: as it is */
};

static const char *const levels[] = { "error", "warning", "info", "debug", "trace", NULL };

static const struct opt set_opts[] = {
	OPT_SIZE(struct args, mem, "mem", "SIZE", "memory, 512M or 2G", MACHINE_MIN_MEM, MACHINE_MAX_MEM),
	OPT_UINT(struct args, cpus, "cpus", "N", "number of CPUs", 1, MACHINE_MAX_CPUS),
	OPT_STRING(struct args, cpu, "cpu", "host|x86-64-v2|x86-64-v3", "CPU that the guest sees"),
	OPT_STRING(struct args, engine, "engine", "auto|kvm|dbt", "what executes the guest"),
	OPT_STRING(struct args, append, "append", "TEXT", "the whole kernel command line"),
	OPT_STRING(struct args, net, "net", "nat|none", "network"),
	OPT_LIST(struct args, forwards, "forward", "HOST:GUEST|none",
		 "TCP port of this host to a port of the guest, instead of those there were"),
	OPT_STRING(struct args, limits.cpu, "cpu-limit", "150%|none",
		   "processor time of all its processes together"),
	OPT_SIZE(struct args, limits.mem, "mem-limit", "SIZE", "their memory", 1 * MIB, INT64_MAX),
	OPT_FLAG(struct args, limits.no_mem, "unlimited-mem", "no limit of memory"),
	OPT_STRING(struct args, limits.io, "io-limit", "none|SIZE|read=SIZE,write=SIZE,...",
		   "what they read and write a second"),
	OPT_CHOICE(struct args, log_level, "log-level", "error|warning|info|debug|trace",
		   "from which level on lines are logged; at once if it runs", levels),
	OPT_END,
};
const struct opts_cmd cli_set_cmd = {
	.name = "viv set",
	.usage = "NAME",
	.summary = "change what a machine is made of",
	.details =
		"The machine must be stopped, but for --log-level, which is heard at once. (The "
		"process of the machine's network takes it\n"
		"over at the next start.) --forward, again and again, replaces all forwards; "
		"--forward none removes them.\n"
		"A snapshot that was taken before goes back to what the machine was made of then.",
	.opts = set_opts,
	.min_args = 1,
	.max_args = 1,
};

static bool is_for_stopped(const struct args *a)
{
	return a->engine || a->cpu || a->append || a->net || a->cpus || a->mem || a->forwards.n ||
	       limits_are_asked(&a->limits);
}

static int set_forwards(struct vmconfig *c, const struct args *a, struct error *err)
{
	bool is_none = a->forwards.n == 1 && strcmp(a->forwards.v[0], "none") == 0;
	int r = 0;

	if (!a->forwards.n)
		return 0;
	while (c->nforwards) {
		free(c->forwards[--c->nforwards]);
		c->forwards[c->nforwards] = NULL;
	}
	for (unsigned i = 0; r == 0 && !is_none && i < a->forwards.n; i++) {
		struct netd_forward forward;

		r = netd_parse_forward(a->forwards.v[i], &forward, err);
		if (r == 0)
			r = vmconfig_add_forward(c, a->forwards.v[i], err);
	}
	return r;
}

static int set_net(struct vmconfig *c, const struct args *a, struct error *err)
{
	if (a->net && strcmp(a->net, "nat") != 0 && strcmp(a->net, "none") != 0)
		return error_set(err, -EINVAL,
				 "there is no network \"%s\"; --net takes nat or none", a->net);
	int r = a->net ? vmconfig_set(&c->net, a->net, err) : 0;

	if (r == 0)
		r = set_forwards(c, a, err);
	if (r == 0 && c->nforwards && strcmp(c->net, "nat") != 0)
		r = error_set(err, -EINVAL, "forwards need --net nat; --forward none removes them");
	return r;
}

/* Checked as viv run does. */
static int change(struct vmconfig *c, const struct args *a, struct error *err)
{
	struct cpu_model model;
	int r = set_net(c, a, err);

	if (a->mem)
		c->mem_bytes = ALIGN_DOWN(a->mem, GUEST_PAGE_SIZE);
	if (a->cpus)
		c->cpus = a->cpus;
	if (r == 0 && a->engine)
		r = run_check_engine(a->engine, err);
	if (r == 0 && a->engine)
		r = vmconfig_set(&c->engine, a->engine, err);
	if (r == 0 && a->cpu)
		r = cpu_model_init(&model, a->cpu, (unsigned)c->cpus, err);
	if (r == 0 && a->cpu)
		r = vmconfig_set(&c->cpu, a->cpu, err);
	if (r == 0)
		r = limits_set(c, &a->limits, err);
	if (r == 0 && a->append && !c->kernel)
		r = error_set(err, -EINVAL,
			      "\"%s\" starts from its disk: there is no kernel command line", c->name);
	if (r == 0 && a->append)
		r = vmconfig_set(&c->append, a->append, err);
	if (r == 0 && a->log_level >= 0)
		r = vmconfig_set(&c->log_level, levels[a->log_level], err);
	return r;
}

static int set_stopped(const char *name, const struct args *a, struct error *err)
{
	struct vmconfig c;
	int r = vmconfig_init(&c, err);

	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0)
		r = change(&c, a, err);
	if (r == 0)
		r = vmconfig_save(&c, err);
	vmconfig_free(&c);
	return r;
}

static int set_running(const char *name, const struct args *a, struct error *err)
{
	json_t *reply;

	if (is_for_stopped(a))
		return error_set(err, -EBUSY, "machine \"%s\" is running, and only --log-level can be changed then; viv stop %s first",
				 name, name);
	int r = client_request(name,
			       json_pack("{s:s, s:s}", "cmd", "set", "log_level", levels[a->log_level]),
			       CLIENT_TIMEOUT_MS, &reply, err);

	if (r == 0)
		json_decref(reply);
	return r;
}

static int set(const char *name, const struct args *a, struct error *err)
{
	_cleanup_close_ int lock = vmlock_take(name, err);

	return lock >= 0	? set_stopped(name, a, err)
	       : lock == -EBUSY ? set_running(name, a, err)
				: lock;
}

int cli_set(int argc, char **argv)
{
	struct args a = { .log_level = -1 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_set_cmd, argc, argv, &a, &rest, &status))
		return status;
	if (!is_for_stopped(&a) && a.log_level < 0) {
		error_set(&err, -EINVAL, "there is nothing to set");
		status = cli_usage(&cli_set_cmd, &err);
	} else {
		status = set(rest.args[0], &a, &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	}
	opts_free(&cli_set_cmd, &a, &rest);
	return status;
}
