/* SPDX-License-Identifier: Apache-2.0 */
/* The commands, and the check of requests against their rows. */
#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "base/log.h"
#include "char/chardev.h"
#include "block/block.h"
#include "ctl/conn.h"
#include "ctl/paths.h"

#define STOP_TIMEOUT_MAX_MS 3600000
#define EXEC_TIMEOUT_MAX_MS (7 * 24 * 3600 * 1000ULL)

static uint64_t arg_uint(json_t *request, const char *name, uint64_t dflt)
{
	json_t *v = json_object_get(request, name);

	return v ? (uint64_t)json_integer_value(v) : dflt;
}

/* ---- commands ---- */

static void put(json_t *obj, const char *key, json_t *value)
{
	/* No memory: the member is missing, which clients take as an error. */
	(void)json_object_set_new(obj, key, value);
}

static int cmd_status(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	struct machine_info info;

	machine_info(conn->ctl->cfg.machine, &info);
	put(reply, "state", json_string(machine_state_name(info.state)));
	put(reply, "pid", json_integer(getpid()));
	put(reply, "engine", json_string(info.engine));
	put(reply, "cpus", json_integer(info.cpus));
	put(reply, "mem", json_integer((json_int_t)info.mem_bytes));
	return 0;
}

static void add_counter(void *arg, unsigned index, const char *name, uint64_t value)
{
	json_t *list = arg, *one = json_array_get(list, index);

	if (!one) {
		one = json_object();
		(void)json_array_append_new(list, one);
	}
	put(one, name, json_integer((json_int_t)value));
}

static void add_device(void *arg, unsigned index, const char *name, uint64_t value)
{
	json_t *devices = arg;

	put(devices, name,
	    json_integer(json_integer_value(json_object_get(devices, name)) + (json_int_t)value));
}

/* How each disk's transfers that wait are done. */
static json_t *disk_io(struct machine *m, unsigned n)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < n; i++) {
		struct block_dev *b = machine_block(m, i);
		struct block_info info;

		b->ops->info(b, &info);
		(void)json_array_append_new(list, json_string(info.io ? info.io : "none"));
	}
	return list;
}

/* Of the machine's process, getrusage(2); "max_resident_bytes" is the most there ever was. */
static json_t *process_counters(void)
{
	struct rusage u;

	if (getrusage(RUSAGE_SELF, &u) < 0)
		return json_null();
	int64_t cpu_us = (int64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000 +
			 u.ru_utime.tv_usec + u.ru_stime.tv_usec;

	return json_pack("{s:I, s:I, s:I, s:I}", "cpu_time_ns", (json_int_t)(cpu_us * 1000),
			 "minor_faults", (json_int_t)u.ru_minflt, "major_faults",
			 (json_int_t)u.ru_majflt, "max_resident_bytes", (json_int_t)u.ru_maxrss * 1024);
}

static int cmd_info(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	json_t *counters = json_array();
	struct machine_counter_sink sink = { add_counter, counters };
	json_t *devices = json_object();
	struct machine_counter_sink device_sink = { add_device, devices };
	json_t *disks = json_array(), *cards = json_array();
	struct machine_counter_sink disk_sink = { add_counter, disks };
	struct machine_counter_sink card_sink = { add_counter, cards };
	struct ctl *c = conn->ctl;
	struct machine_info info;

	cmd_status(conn, request, reply, err);
	machine_info(c->cfg.machine, &info);
	put(reply, "engine_reason", json_string(c->engine_reason));
	put(reply, "cpu", json_string(info.cpu));
	put(reply, "clock_ns", json_integer(info.clock_ns));
	put(reply, "resets", json_integer((json_int_t)info.resets));
	put(reply, "disk_io", disk_io(c->cfg.machine, info.disks));
	machine_counters(c->cfg.machine, &sink);
	put(reply, "counters", counters);
	machine_device_counters(c->cfg.machine, &device_sink);
	put(reply, "devices", devices);
	machine_disk_counters(c->cfg.machine, &disk_sink);
	put(reply, "disk_counters", disks);
	machine_card_counters(c->cfg.machine, &card_sink);
	put(reply, "card_counters", cards);
	put(reply, "process", process_counters());
	return 0;
}

static int cmd_pause(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return machine_pause(conn->ctl->cfg.machine, err);
}

static int cmd_resume(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return machine_resume(conn->ctl->cfg.machine, err);
}

static int cmd_reset(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return machine_reset(conn->ctl->cfg.machine, err);
}

static int cmd_stop(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int64_t timeout_ns = (int64_t)arg_uint(request, "timeout_ms", 30000) * 1000000;

	return machine_stop(conn->ctl->cfg.machine, timeout_ns, err);
}

static int cmd_quit(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return machine_stop(conn->ctl->cfg.machine, 0, err);
}

static int cmd_nmi(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return machine_inject_nmi(conn->ctl->cfg.machine, (unsigned)arg_uint(request, "cpu", 0), err);
}

static int cmd_console(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	if (!conn->ctl->cfg.console)
		return error_set(err, -ENODEV, "this machine has no console");
	conn->gives_backlog = json_is_true(json_object_get(request, "backlog"));
	return CTL_BECOMES_CONSOLE;
}

static int cmd_resize(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	if (conn->ctl->cfg.console_window)
		chardev_hub_resize(conn->ctl->cfg.console_window,
				   (unsigned)arg_uint(request, "cols", 80),
				   (unsigned)arg_uint(request, "rows", 25));
	return 0;
}

static int need_agent(struct ctl_conn *conn, struct error *err)
{
	if (!conn->ctl->cfg.agent)
		return error_set(
			err, -ENODEV,
			"this machine was started without a guest agent's port, so nothing can be "
			"executed in it from outside");
	return 0;
}

static void exec_done(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;

	conn->job = NULL;
	conn_reply(conn, result, err);
}

static int cmd_exec(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	const char *input = json_string_value(json_object_get(request, "input"));
	int64_t timeout_ns = (int64_t)arg_uint(request, "timeout_ms", EXEC_TIMEOUT_MAX_MS) * 1000000;
	int r = need_agent(conn, err);

	if (r == 0)
		r = agent_exec(conn->ctl->cfg.agent, json_object_get(request, "argv"), input,
			       timeout_ns, exec_done, conn, &conn->job, err);
	return r < 0 ? r : CTL_PENDING;
}

static int cmd_agent(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int64_t timeout_ns = (int64_t)arg_uint(request, "timeout_ms", 1000) * 1000000;
	int r = need_agent(conn, err);

	if (r == 0)
		r = agent_ping(conn->ctl->cfg.agent, timeout_ns, exec_done, conn, &conn->job, err);
	return r < 0 ? r : CTL_PENDING;
}

/* ---- snapshots ---- */

static int need_snapper(struct ctl_conn *conn, struct error *err)
{
	return conn->ctl->cfg.snapper ? 0 : error_set(err, -ENODEV, "this machine takes no snapshots");
}

static void snapshot_done(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;

	conn->awaits_snapper = false;
	conn_reply(conn, result, err);
}

static int cmd_snapshot(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	const char *name = json_string_value(json_object_get(request, "name"));
	int r = need_snapper(conn, err);

	if (r == 0)
		r = snapper_take(conn->ctl->cfg.snapper, name,
				 json_is_true(json_object_get(request, "freeze")), snapshot_done,
				 conn, err);
	conn->awaits_snapper = r == 0;
	return r < 0 ? r : CTL_PENDING;
}

static int cmd_snapshot_progress(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	uint64_t done = 0, total = 0;
	int r = need_snapper(conn, err);

	if (r < 0)
		return r;
	put(reply, "busy", json_boolean(snapper_progress(conn->ctl->cfg.snapper, &done, &total)));
	put(reply, "done", json_integer((json_int_t)done));
	put(reply, "total", json_integer((json_int_t)total));
	return 0;
}

static int cmd_fork(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	json_t *list = json_object_get(request, "names");
	const char *names[CTL_FORK_MAX];
	unsigned n = (unsigned)json_array_size(list);
	int r = need_snapper(conn, err);

	for (unsigned i = 0; i < n; i++)
		names[i] = json_string_value(json_array_get(list, i));
	if (r == 0)
		r = snapper_fork(conn->ctl->cfg.snapper, names, n,
				 json_is_true(json_object_get(request, "freeze")), snapshot_done,
				 conn, err);
	conn->awaits_snapper = r == 0;
	return r < 0 ? r : CTL_PENDING;
}

static int cmd_restore(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	const char *name = json_string_value(json_object_get(request, "name"));
	int r = need_snapper(conn, err);

	if (r == 0)
		r = snapper_restore(conn->ctl->cfg.snapper, name,
				    json_is_true(json_object_get(request, "set_clock")), reply,
				    snapshot_done, conn, err);
	conn->awaits_snapper = r == -EINPROGRESS;
	return conn->awaits_snapper ? CTL_PENDING : r;
}

static int cmd_merged(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int r = need_snapper(conn, err);

	if (r == 0)
		r = snapper_merged(conn->ctl->cfg.snapper, (unsigned)arg_uint(request, "disk", 0),
				   json_string_value(json_object_get(request, "layer")),
				   snapshot_done, conn, err);
	conn->awaits_snapper = r == 0;
	return r < 0 ? r : CTL_PENDING;
}

static int cmd_set(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	const char *name = json_string_value(json_object_get(request, "log_level"));
	struct vmconfig *config = conn->ctl->cfg.config;
	enum log_level level;
	int r = 0;

	if (name && log_level_parse(name, &level) < 0)
		return error_set(err, -EINVAL, "there is no log level \"%.40s\"; there are error, warning, info, debug and trace",
				 name);
	if (name && config) {
		r = vmconfig_set(&config->log_level, name, err);
		if (r == 0)
			r = vmconfig_save(config, err);
	}
	if (name && r == 0)
		log_set_level(level);
	put(reply, "log_level", json_string(log_level_name(log_level())));
	return r;
}

static int cmd_help(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err);

// clang-format off
#define ARG_END { .name = NULL }
static const struct ctl_arg stop_args[] = {
	{ "timeout_ms", CTL_UINT, false, 0, STOP_TIMEOUT_MAX_MS, "after which it is stopped the hard way" },
	ARG_END,
};
static const struct ctl_arg nmi_args[] = {
	{ "cpu", CTL_UINT, false, 0, MACHINE_MAX_CPUS - 1, "which CPU" },
	ARG_END,
};
static const struct ctl_arg console_args[] = {
	{ "backlog", CTL_BOOL, false, 0, 0, "begin with what was last written" },
	ARG_END,
};
static const struct ctl_arg resize_args[] = {
	{ "cols", CTL_UINT, true, 1, 65535, "columns" },
	{ "rows", CTL_UINT, true, 1, 65535, "rows" },
	ARG_END,
};
static const struct ctl_arg exec_args[] = {
	{ "argv",       CTL_STRINGS, true,  1, CTL_EXEC_MAX_ARGS, "program and arguments" },
	{ "input",      CTL_STRING,  false, 0, CTL_LINE_MAX, "standard input, base64" },
	{ "timeout_ms", CTL_UINT,    false, 1, EXEC_TIMEOUT_MAX_MS, "for agent and command together" },
	ARG_END,
};
static const struct ctl_arg snapshot_args[] = {
	{ "name",   CTL_STRING, true,  1, PATHS_NAME_MAX, "of the snapshot" },
	{ "freeze", CTL_BOOL,   false, 0, 0, "the guest's agent freezes its file systems meanwhile" },
	ARG_END,
};
static const struct ctl_arg restore_args[] = {
	{ "name",      CTL_STRING, true,  1, PATHS_NAME_MAX, "of the snapshot" },
	{ "set_clock", CTL_BOOL,   false, 0, 0, "the guest's agent sets its clock afterwards" },
	ARG_END,
};
static const struct ctl_arg merged_args[] = {
	{ "disk",  CTL_UINT,   false, 0, MACHINE_MAX_DISKS - 1, "which" },
	{ "layer", CTL_STRING, false, 1, PATHS_NAME_MAX, "that is below its top, and goes into it" },
	ARG_END,
};
static const struct ctl_arg fork_args[] = {
	{ "names",  CTL_STRINGS, true,  1, CTL_FORK_MAX, "of the copies" },
	{ "freeze", CTL_BOOL,    false, 0, 0, "the guest's agent freezes its file systems meanwhile" },
	ARG_END,
};
static const struct ctl_arg set_args[] = {
	{ "log_level", CTL_STRING, false, 1, 16, "error, warning, info, debug or trace" },
	ARG_END,
};
static const struct ctl_arg agent_args[] = {
	{ "timeout_ms", CTL_UINT, false, 1, EXEC_TIMEOUT_MAX_MS, "how long to wait" },
	ARG_END,
};

const struct ctl_command ctl_commands[] = {
	{ "status",  "state, process and engine",                        NULL,         cmd_status },
	{ "info",    "everything known, with counters",                  NULL,         cmd_info },
	{ "pause",   "stop the CPUs and the clock",                      NULL,         cmd_pause },
	{ "resume",  "go on after a pause",                              NULL,         cmd_resume },
	{ "reset",   "press the reset button",                           NULL,         cmd_reset },
	{ "stop",    "press the power button, end it after a time-out",  stop_args,    cmd_stop },
	{ "quit",    "end it at once",                                   NULL,         cmd_quit },
	{ "nmi",     "press the NMI button",                             nmi_args,     cmd_nmi },
	{ "console", "make this connection the console",                 console_args, cmd_console },
	{ "resize",  "tell the console's window size",                   resize_args,  cmd_resize },
	{ "exec",    "run a command in the guest",                       exec_args,    cmd_exec },
	{ "agent",   "wait until the guest's agent answers",             agent_args,   cmd_agent },
	{ "snapshot", "take a snapshot; going away cancels it",          snapshot_args, cmd_snapshot },
	{ "snapshot-progress", "of the snapshot being taken",            NULL,         cmd_snapshot_progress },
	{ "restore", "go back to a snapshot in place, and on from there", restore_args, cmd_restore },
	{ "fork",    "make living copies of the machine",                fork_args,    cmd_fork },
	{ "merged",  "files of snapshots were merged: do without what is gone", merged_args, cmd_merged },
	{ "set",     "change what can be changed while it runs",         set_args,     cmd_set },
	{ "help",    "these commands",                                   NULL,         cmd_help },
	{ NULL, NULL, NULL, NULL },
};
// clang-format on

static int cmd_help(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	static const char *const kinds[] = { "integer", "string", "boolean", "strings" };
	json_t *list = json_array();

	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		json_t *args = json_array();

		for (const struct ctl_arg *a = c->args; a && a->name; a++)
			(void)json_array_append_new(args, json_pack("{s:s, s:s, s:b, s:s}", "name",
								    a->name, "kind", kinds[a->kind],
								    "required", a->is_required,
								    "help", a->help));
		(void)json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", c->name,
							    "help", c->help, "args", args));
	}
	put(reply, "commands", list);
	return 0;
}

/* ---- checking ---- */

static bool is_strings(json_t *v, uint64_t min, uint64_t max)
{
	size_t i;
	json_t *s;

	if (!json_is_array(v) || json_array_size(v) < min || json_array_size(v) > max)
		return false;
	json_array_foreach(v, i, s)
	{
		if (!json_is_string(s))
			return false;
	}
	return true;
}

static bool is_valid(const struct ctl_arg *a, json_t *v)
{
	switch (a->kind) {
	case CTL_UINT:
		return json_is_integer(v) && json_integer_value(v) >= 0 &&
		       (uint64_t)json_integer_value(v) >= a->min &&
		       (uint64_t)json_integer_value(v) <= a->max;
	case CTL_STRING:
		return json_is_string(v) && json_string_length(v) >= a->min &&
		       json_string_length(v) <= a->max;
	case CTL_BOOL:
		return json_is_boolean(v);
	case CTL_STRINGS:
		return is_strings(v, a->min, a->max);
	}
	return false;
}

static const struct ctl_arg *find_arg(const struct ctl_command *cmd, const char *name)
{
	for (const struct ctl_arg *a = cmd->args; a && a->name; a++) {
		if (strcmp(a->name, name) == 0)
			return a;
	}
	return NULL;
}

static int check_args(const struct ctl_command *cmd, json_t *request, struct error *err)
{
	const char *key;
	json_t *v;

	json_object_foreach(request, key, v)
	{
		const struct ctl_arg *a = find_arg(cmd, key);

		if (strcmp(key, "cmd") == 0)
			continue;
		if (!a)
			return error_set(err, -EINVAL, "%s has no argument \"%.40s\"", cmd->name, key);
		if (!is_valid(a, v))
			return error_set(err, -EINVAL, "the argument %s of %s has no valid value",
					 a->name, cmd->name);
	}
	for (const struct ctl_arg *a = cmd->args; a && a->name; a++) {
		if (a->is_required && !json_object_get(request, a->name))
			return error_set(err, -EINVAL, "%s needs the argument %s", cmd->name, a->name);
	}
	return 0;
}

const struct ctl_command *ctl_parse(const char *line, size_t len, json_t **request, struct error *err)
{
	json_error_t je;
	json_t *json = json_loadb(line, len, JSON_REJECT_DUPLICATES, &je);
	const char *name = json_string_value(json_object_get(json, "cmd"));

	if (!json) {
		error_set(err, -EINVAL, "a request is one JSON object a line: %s", je.text);
		return NULL;
	}
	for (const struct ctl_command *c = ctl_commands; name && c->name; c++) {
		if (strcmp(c->name, name) != 0)
			continue;
		if (check_args(c, json, err) < 0) {
			json_decref(json);
			return NULL;
		}
		*request = json;
		return c;
	}
	error_set(err, -EINVAL, "there is no command \"%.40s\"; \"help\" lists them", name ? name : "");
	json_decref(json);
	return NULL;
}
