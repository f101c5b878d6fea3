/* SPDX-License-Identifier: Apache-2.0 */
/* The commands, and the check of requests against their rows. */
#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "base/build_id.h"
#include "base/log.h"
#include "char/chardev.h"
#include "block/block.h"
#include "ctl/conn.h"
#include "ctl/events.h"
#include "ctl/migrate.h"
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
	char build[BUILD_ID_TEXT];

	machine_info(conn->ctl->cfg.machine, &info);
	put(reply, "state", json_string(machine_state_name(info.state)));
	put(reply, "pid", json_integer(conn->ctl->cfg.pid));
	put(reply, "engine", json_string(info.engine));
	put(reply, "cpus", json_integer(info.cpus));
	put(reply, "mem", json_integer((json_int_t)info.mem_bytes));
	build_id_text(build);
	put(reply, "viv", json_string(VIV_VERSION));
	put(reply, "build", json_string(build));
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
		return NULL;
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
	put(reply, "confined", json_boolean(c->cfg.is_confined));
	put(reply, "confinement", json_string(c->confinement));
	put(reply, "cpu", json_string(info.cpu));
	put(reply, "clock_ns", json_integer(info.clock_ns));
	put(reply, "resets", json_integer((json_int_t)info.resets));
	put(reply, "created_ns", json_integer(info.created_ns));
	put(reply, "first_instruction_ns", json_integer(info.first_run_ns));
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
	if (migrator_is_active(c->cfg.migrator)) {
		json_t *migration = json_pack("{s:b}", "active", 1);

		migrator_status(c->cfg.migrator, migration);
		put(reply, "migration", migration);
	}
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

/* What guests may tell of a command: nothing else of what an agent says goes to clients. */
static json_t *exec_answer(json_t *result)
{
	static const struct {
		const char *name;
		enum ctl_arg_kind kind;
	} members[] = { { "exitcode", CTL_INT },       { "signal", CTL_INT },
			{ "out-data", CTL_STRING },    { "err-data", CTL_STRING },
			{ "out-truncated", CTL_BOOL }, { "err-truncated", CTL_BOOL } };
	json_t *answer = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
		json_t *v = json_object_get(result, members[i].name);

		if (members[i].kind == CTL_INT	    ? json_is_integer(v)
		    : members[i].kind == CTL_STRING ? json_is_string(v)
						    : json_is_boolean(v))
			(void)json_object_set(answer, members[i].name, v);
	}
	return answer;
}

static void exec_done(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;
	json_t *answer = exec_answer(result);

	conn->job = NULL;
	conn_reply(conn, answer, err);
	json_decref(answer);
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

/* ---- files of the guest ---- */

/* The longest time that one request to the agent may take. */
#define FILE_TIMEOUT_NS 60000000000LL

static void file_fail(struct ctl_conn *conn, const char *what)
{
	struct error err;

	error_set(&err, -EPROTO, "the guest agent's answer to %s makes no sense", what);
	conn_reply(conn, NULL, &err);
}

static void file_opened(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;
	json_t *handle = json_object_get(result, "return");

	conn->job = NULL;
	if (!err && (!json_is_integer(handle) || json_integer_value(handle) < 0)) {
		file_fail(conn, "guest-file-open");
		return;
	}
	json_t *answer = err ? NULL : json_pack("{s:O}", "handle", handle);

	conn_reply(conn, answer, err);
	json_decref(answer);
}

static void file_was_read(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;
	json_t *ret = json_object_get(result, "return"), *data = json_object_get(ret, "buf-b64");
	json_t *eof = json_object_get(ret, "eof");

	conn->job = NULL;
	if (!err && (!json_is_string(data) || !json_is_boolean(eof))) {
		file_fail(conn, "guest-file-read");
		return;
	}
	json_t *answer = err ? NULL : json_pack("{s:O, s:O}", "data", data, "eof", eof);

	conn_reply(conn, answer, err);
	json_decref(answer);
}

static void file_was_written(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;
	json_t *count = json_object_get(json_object_get(result, "return"), "count");

	conn->job = NULL;
	if (!err && (!json_is_integer(count) || json_integer_value(count) < 0)) {
		file_fail(conn, "guest-file-write");
		return;
	}
	json_t *answer = err ? NULL : json_pack("{s:O}", "count", count);

	conn_reply(conn, answer, err);
	json_decref(answer);
}

static void file_closed(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;

	conn->job = NULL;
	conn_reply(conn, NULL, err);
}

/* @arguments is taken. */
static int file_call(struct ctl_conn *conn, const char *command, json_t *arguments,
		     agent_done_fn done, struct error *err)
{
	int r = need_agent(conn, err);

	if (r == 0 && !arguments)
		r = error_set(err, -ENOMEM, "no memory for a request to the guest");
	if (r == 0)
		r = agent_call(conn->ctl->cfg.agent, command, arguments, FILE_TIMEOUT_NS, done,
			       conn, &conn->job, err);
	json_decref(arguments);
	return r < 0 ? r : CTL_PENDING;
}

static int cmd_file_open(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	bool is_write = json_is_true(json_object_get(request, "write"));

	return file_call(conn, "guest-file-open",
			 json_pack("{s:O, s:s}", "path", json_object_get(request, "path"), "mode",
				   is_write ? "wb" : "rb"),
			 file_opened, err);
}

static int cmd_file_read(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return file_call(conn, "guest-file-read",
			 json_pack("{s:O, s:I}", "handle", json_object_get(request, "handle"),
				   "count", (json_int_t)arg_uint(request, "count", CTL_FILE_CHUNK)),
			 file_was_read, err);
}

static int cmd_file_write(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return file_call(conn, "guest-file-write",
			 json_pack("{s:O, s:O}", "handle", json_object_get(request, "handle"),
				   "buf-b64", json_object_get(request, "data")),
			 file_was_written, err);
}

static int cmd_ssh_key(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return file_call(conn, "guest-ssh-add-authorized-keys",
			 json_pack("{s:O, s:[O]}", "username", json_object_get(request, "user"),
				   "keys", json_object_get(request, "key")),
			 file_closed, err);
}

static int cmd_file_close(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	return file_call(conn, "guest-file-close",
			 json_pack("{s:O}", "handle", json_object_get(request, "handle")),
			 file_closed, err);
}

/* ---- snapshots ---- */

static int need_snapper(struct ctl_conn *conn, struct error *err)
{
	const char *away = machine_why_no_resume(conn->ctl->cfg.machine);

	if (away)
		return error_set(err, -EBUSY, "%s", away);
	if (migrator_is_active(conn->ctl->cfg.migrator))
		return error_set(err, -EBUSY, "the machine is being moved to another host");
	if (machine_ram(conn->ctl->cfg.machine)->is_lazy)
		return error_set(
			err, -EBUSY,
			"a part of the machine's memory is still on its way here; wait for that");
	if (machine_ram(conn->ctl->cfg.machine)->is_shared)
		return error_set(
			err, -EBUSY, "the machine's memory is just being taken over from an older process; wait for that");
	return conn->ctl->cfg.snapper ? 0 : error_set(err, -ENODEV, "this machine takes no snapshots");
}

static void snapshot_done(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;

	conn->awaits_snapper = false;
	if (conn->does) {
		if (err)
			put(conn->does_what, "error", json_string(err->text));
		ctl_event(conn->ctl, conn->does, conn->does_what);
		conn->does = NULL;
		conn->does_what = NULL;
	}
	conn_reply(conn, result, err);
}

/* The event that there will be when it is done. */
static void will_do(struct ctl_conn *conn, const char *event, json_t *members)
{
	json_decref(conn->does_what);
	conn->does = event;
	conn->does_what = members;
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
	if (r == 0)
		will_do(conn, "snapshot", json_pack("{s:s}", "name", name));
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
	if (r == 0)
		will_do(conn, "forked", json_pack("{s:O}", "names", list));
	return r < 0 ? r : CTL_PENDING;
}

static int cmd_restore(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	const char *name = json_string_value(json_object_get(request, "name"));
	const struct snapper_waking waking = {
		.tells_guest = json_is_true(json_object_get(request, "set_clock")),
		.skips_time = json_is_true(json_object_get(request, "skip_time"))
	};
	int r = need_snapper(conn, err);

	if (r == 0)
		r = snapper_restore(conn->ctl->cfg.snapper, name, &waking, reply, snapshot_done,
				    conn, err);
	conn->awaits_snapper = r == -EINPROGRESS;
	if (conn->awaits_snapper)
		will_do(conn, "restored", json_pack("{s:s}", "name", name));
	else if (r == 0)
		ctl_event(conn->ctl, "restored", json_pack("{s:s}", "name", name));
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

static int cmd_subscribe(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	struct machine_info info;

	conn->is_subscribed = true;
	machine_info(conn->ctl->cfg.machine, &info);
	put(reply, "state", json_string(machine_state_name(info.state)));
	return 0;
}

/* ---- migration ---- */

static int need_migrator(struct ctl_conn *conn, struct error *err)
{
	const struct ctl_config *cfg = &conn->ctl->cfg;

	if (cfg->migrator && migrator_is_active(cfg->migrator))
		return 0;
	if (machine_why_no_resume(cfg->machine))
		return error_set(err, -EBUSY, "%s", machine_why_no_resume(cfg->machine));
	return cfg->migrator ? 0 : error_set(err, -ENODEV, "this machine cannot be moved");
}

static void migrate_done(void *ctx, json_t *result, const struct error *err)
{
	struct ctl_conn *conn = ctx;

	conn->awaits_migrator = false;
	events_watch_migration(conn->ctl); /* how it ended */
	conn_reply(conn, result, err);
}

static int cmd_migrate(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int fds[CTL_FDS_MAX];
	const struct migrate_request rq = {
		.fds = fds,
		.nfds = conn_take_fds(conn, fds),
		.to = json_string_value(json_object_get(request, "to")),
		.name = json_string_value(json_object_get(request, "name")),
		.engine = json_string_value(json_object_get(request, "engine")),
		.network = json_string_value(json_object_get(request, "network")),
		.token = json_string_value(json_object_get(request, "token")),
		.snapshots = json_string_value(json_object_get(request, "snapshots")),
		.max_downtime_ns = arg_uint(request, "max_downtime_us", 0) * 1000,
		.deadline_ns = arg_uint(request, "deadline_ms", 0) * 1000000,
		.bytes_per_s = arg_uint(request, "bytes_per_s", 0),
		.priority = json_is_true(json_object_get(request, "keep_running")) ? MIGRATE_KEEP_RUNNING
										   : MIGRATE_FINISH,
		.verifies = json_is_true(json_object_get(request, "verify")),
		.copies_all = json_is_true(json_object_get(request, "copy")),
	};
	int r = need_migrator(conn, err);

	if (r < 0) {
		for (unsigned i = 0; i < rq.nfds; i++)
			close(fds[i]);
		return r;
	}
	r = migrator_begin(conn->ctl->cfg.migrator, &rq, migrate_done, conn, err);
	conn->awaits_migrator = r == 0;
	if (r == 0)
		events_watch_migration(conn->ctl);
	return r < 0 ? r : CTL_PENDING;
}

static int cmd_upgrade(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int fds[CTL_FDS_MAX];
	unsigned n = conn_take_fds(conn, fds);
	const struct handover_ends ends = { fds[1], fds[2], fds[3] };
	const struct migrate_request rq = { .fds = fds,
					    .nfds = 1,
					    .to = json_string_value(json_object_get(request, "to")),
					    .upgrade = &ends };
	int r = n == HANDOVER_FDS ? need_migrator(conn, err)
				  : error_set(err, -EINVAL, "an upgrade takes %d descriptors, not %u",
					      HANDOVER_FDS, n);

	if (r == 0 && agent_is_busy(conn->ctl->cfg.agent))
		r = error_set(err, -EBUSY, "a command is being executed in the guest by its agent, which would be lost; wait for its end");
	if (r < 0) {
		while (n)
			close(fds[--n]);
		return r;
	}
	r = migrator_begin(conn->ctl->cfg.migrator, &rq, migrate_done, conn, err);
	if (r < 0)
		return r;
	conn->awaits_migrator = true;
	events_watch_migration(conn->ctl);
	return CTL_PENDING;
}

static int cmd_migrate_status(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int r = need_migrator(conn, err);

	if (r < 0)
		return r;
	put(reply, "active", json_boolean(migrator_is_active(conn->ctl->cfg.migrator)));
	migrator_status(conn->ctl->cfg.migrator, reply);
	return 0;
}

static int cmd_migrate_cancel(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int r = need_migrator(conn, err);

	return r < 0 ? r : migrator_cancel(conn->ctl->cfg.migrator, err);
}

static int cmd_migrate_recover(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err)
{
	int fds[CTL_FDS_MAX];
	unsigned n = conn_take_fds(conn, fds);
	int r = n == 1 ? need_migrator(conn, err)
		       : error_set(err, -EINVAL, "recovering takes one link, not %u", n);

	if (r < 0) {
		while (n)
			close(fds[--n]);
		return r;
	}
	r = migrator_recover(conn->ctl->cfg.migrator, fds[0], migrate_done, conn, err);
	conn->awaits_migrator = r == 0;
	if (r == 0)
		events_watch_migration(conn->ctl);
	return r < 0 ? r : CTL_PENDING;
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
	{ "skip_time", CTL_BOOL,   false, 0, 0, "all clocks of the guest jump by the time since the snapshot" },
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
static const struct ctl_arg migrate_args[] = {
	{ "to",              CTL_STRING, true,  1, 255, "where to, for people; descriptors that come along are the links" },
	{ "name",            CTL_STRING, false, 1, PATHS_NAME_MAX, "of the machine there" },
	{ "engine",          CTL_STRING, false, 1, 16, "that it runs on there" },
	{ "network",         CTL_STRING, false, 1, 255, "of the machine there" },
	{ "max_downtime_us", CTL_UINT,   false, 1, 3600000000ULL, "that it may stand still" },
	{ "deadline_ms",     CTL_UINT,   false, 1, EXEC_TIMEOUT_MAX_MS, "until it has to be there" },
	{ "bytes_per_s",     CTL_UINT,   false, 1, UINT32_MAX * 1024ULL, "that the links may carry" },
	{ "keep_running",    CTL_BOOL,   false, 0, 0, "rather give up than slow it down" },
	{ "verify",          CTL_BOOL,   false, 0, 0, "compare all pages and copied disks by checksum before it runs there" },
	{ "token",           CTL_STRING, false, 32, 32, "in the name of files beside the machine's, which shows that the target sees them" },
	{ "snapshots",       CTL_STRING, false, 32, 32, "token by which its snapshots are known, which are at the target already" },
	{ "copy",            CTL_BOOL,   false, 0, 0, "copy disks also where the target sees them" },
	ARG_END,
};
static const struct ctl_arg upgrade_args[] = {
	{ "to", CTL_STRING, true, 1, 255, "of what program it is, for people; four descriptors come along (handover.h)" },
	ARG_END,
};
static const struct ctl_arg file_open_args[] = {
	{ "path",  CTL_STRING, true,  1, 4096, "in the guest" },
	{ "write", CTL_BOOL,   false, 0, 0, "made anew to be written, not read" },
	ARG_END,
};
static const struct ctl_arg file_read_args[] = {
	{ "handle", CTL_UINT, true,  0, INT64_MAX, "of file-open" },
	{ "count",  CTL_UINT, false, 1, CTL_FILE_CHUNK, "bytes, at most" },
	ARG_END,
};
static const struct ctl_arg file_write_args[] = {
	{ "handle", CTL_UINT,   true, 0, INT64_MAX, "of file-open" },
	{ "data",   CTL_STRING, true, 0, CTL_FILE_CHUNK / 3 * 4 + 4, "base64" },
	ARG_END,
};
static const struct ctl_arg file_close_args[] = {
	{ "handle", CTL_UINT, true, 0, INT64_MAX, "of file-open" },
	ARG_END,
};
static const struct ctl_arg ssh_key_args[] = {
	{ "user", CTL_STRING, true, 1, 64, "of the guest" },
	{ "key",  CTL_STRING, true, 1, 8192, "public key, a line of authorized_keys" },
	ARG_END,
};
static const struct ctl_arg agent_args[] = {
	{ "timeout_ms", CTL_UINT, false, 1, EXEC_TIMEOUT_MAX_MS, "how long to wait" },
	ARG_END,
};

#define END { .name = NULL }
const char *const ctl_states[] = { "created", "running", "paused", "ended", NULL };

#define STATUS_ROWS                                                                                   \
	{ "state",  CTL_STRING, false, "whether it runs", .words = ctl_states },                          \
	{ "pid",    CTL_UINT,   false, "its process" },                                                   \
	{ "engine", CTL_STRING, false, "what executes the guest" },                                       \
	{ "cpus",   CTL_UINT,   false, "how many" },                                                      \
	{ "mem",    CTL_UINT,   false, "bytes of guest memory" },                                          \
	{ "viv",    CTL_STRING, true,  "version of the program that its process runs" },                   \
	{ "build",  CTL_STRING, true,  "which build of it" }
static const struct ctl_field status_answer[] = { STATUS_ROWS, END };
static const struct ctl_field process_fields[] = {
	{ "cpu_time_ns",        CTL_UINT, false, "processor time of all its threads" },
	{ "minor_faults",       CTL_UINT, false, "page faults without I/O" },
	{ "major_faults",       CTL_UINT, false, "page faults with I/O" },
	{ "max_resident_bytes", CTL_UINT, false, "the most memory there ever was" },
	END,
};
static const struct ctl_field info_answer[] = {
	STATUS_ROWS,
	{ "engine_reason", CTL_STRING,       false, "why that one" },
	{ "confined",      CTL_BOOL,         false, "is its process kept from the user's files and networks" },
	{ "confinement",   CTL_STRING,       false, "by what, or why not" },
	{ "cpu",           CTL_STRING,       false, "the model that the guest sees" },
	{ "clock_ns",      CTL_INT,          false, "machine time since it was switched on" },
	{ "resets",        CTL_UINT,         false, "how often it was reset" },
	{ "created_ns",    CTL_UINT,         false, "when it began to be built, by the host's CLOCK_MONOTONIC" },
	{ "first_instruction_ns", CTL_UINT,  false, "when a CPU began to execute, likewise; 0: none did" },
	{ "disk_io",       CTL_STRINGS,      false, "how each disk's transfers are done" },
	{ "counters",      CTL_COUNTER_LIST, false, "of each CPU" },
	{ "devices",       CTL_COUNTERS,     false, "accesses to each device over the bus" },
	{ "disk_counters", CTL_COUNTER_LIST, false, "of each disk" },
	{ "card_counters", CTL_COUNTER_LIST, false, "of each network card" },
	{ "process",       CTL_OBJECT,       true,  "of the machine's process", .fields = process_fields },
	{ "migration",     CTL_OBJECT,       true,  "while it is being moved: how far that is", .fields = ctl_migration_fields },
	END,
};
static const struct ctl_field exec_fields[] = {
	{ "exitcode",      CTL_INT,    true, "of the command; or" },
	{ "signal",        CTL_INT,    true, "that ended it" },
	{ "out-data",      CTL_STRING, true, "standard output, base64" },
	{ "err-data",      CTL_STRING, true, "standard error, base64" },
	{ "out-truncated", CTL_BOOL,   true, "there was more than the agent keeps" },
	{ "err-truncated", CTL_BOOL,   true, "there was more than the agent keeps" },
	END,
};
static const struct ctl_field file_open_answer[] = {
	{ "handle", CTL_UINT, false, "for the other commands; the guest's agent keeps the file open until file-close" },
	END,
};
static const struct ctl_field file_read_answer[] = {
	{ "data", CTL_STRING, false, "base64" },
	{ "eof",  CTL_BOOL,   false, "the file ends here" },
	END,
};
static const struct ctl_field file_write_answer[] = {
	{ "count", CTL_UINT, false, "bytes written: perhaps not all" },
	END,
};
static const struct ctl_field snapshot_answer[] = {
	{ "pause_us", CTL_UINT,         false, "how long the machine stood still" },
	{ "bytes",    CTL_UINT,         false, "written" },
	{ "parent",   CTL_TEXT_OR_NULL, false, "the snapshot that it holds the difference to" },
	END,
};
static const struct ctl_field progress_answer[] = {
	{ "busy",  CTL_BOOL, false, "is one being taken?" },
	{ "done",  CTL_UINT, false, "bytes" },
	{ "total", CTL_UINT, false, "bytes; 0: not known" },
	END,
};
static const struct ctl_field restore_answer[] = {
	{ "pause_us", CTL_UINT, false, "how long the machine stood still" },
	{ "pages",    CTL_UINT, false, "of memory that had changed" },
	END,
};
static const struct ctl_field fork_answer[] = {
	{ "pause_us", CTL_UINT, false, "how long the machine stood still" },
	{ "copies",   CTL_UINT, false, "made" },
	END,
};
#define MIGRATE_FIELDS \
	{ "state",                CTL_STRING, false, "offered, precopy, switching, releasing, committed, doubt, serving, stranded, moved, kept" }, \
	{ "text",                 CTL_STRING, false, "the same for people" }, \
	{ "to",                   CTL_STRING, false, "where to" }, \
	{ "elapsed_us",           CTL_UINT,   false, "since it began" }, \
	{ "sent_bytes",           CTL_UINT,   false, "over all links" }, \
	{ "pages_sent",           CTL_UINT,   false, "with contents" }, \
	{ "pages_zero",           CTL_UINT,   false, "that were zero" }, \
	{ "pages_packed",         CTL_UINT,   false, "of those with contents" }, \
	{ "pages_delta",          CTL_UINT,   false, "of those with contents, as what they differ in from what was sent before" }, \
	{ "pages_left",           CTL_UINT,   false, "of this round" }, \
	{ "dirty_bytes_per_s",    CTL_UINT,   false, "that the guest changes" }, \
	{ "rounds",               CTL_UINT,   false, "of memory" }, \
	{ "throttle_percent",     CTL_UINT,   false, "that the guest's CPUs are held" }, \
	{ "expected_downtime_us", CTL_UINT,   false, "if it paused now" }, \
	{ "disk_bytes_sent",      CTL_UINT,   false, "of disks and the like" }, \
	{ "disk_bytes_left",      CTL_UINT,   false, "of this round of disks, or written since" }, \
	{ "pages_late",           CTL_UINT,   false, "sent after the machine had gone" }, \
	{ "pages_wanted",         CTL_UINT,   false, "of those, waited for by the guest" }
static const struct ctl_field migrate_answer[] = {
	MIGRATE_FIELDS,
	{ "downtime_us",    CTL_UINT, false, "that the machine stood still" },
	{ "first_pause_us", CTL_UINT, false, "that it stood still at the beginning" },
	{ "frozen_us",      CTL_UINT, true,  "of upgrade: in all, while memory was handed over piece by piece" },
	{ "longest_freeze_us", CTL_UINT, true, "of that, at a time at most" },
	END,
};
const struct ctl_field ctl_migration_fields[] = {
	{ "active", CTL_BOOL, false, "is one under way, or in doubt?" },
	MIGRATE_FIELDS,
	END,
};
static const struct ctl_field set_answer[] = {
	{ "log_level", CTL_STRING, false, "in force now" },
	END,
};
static const struct ctl_field subscribe_answer[] = {
	{ "state", CTL_STRING, false, "to which the first event is the change", .words = ctl_states },
	END,
};
static const struct ctl_field help_arg_fields[] = {
	{ "name",     CTL_STRING, false, "of the argument" },
	{ "kind",     CTL_STRING, false, "integer, string, boolean or strings" },
	{ "required", CTL_BOOL,   false, "must it be there?" },
	{ "help",     CTL_STRING, false, "what it is" },
	END,
};
static const struct ctl_field help_command_fields[] = {
	{ "name", CTL_STRING,  false, "of the command" },
	{ "help", CTL_STRING,  false, "what it does" },
	{ "args", CTL_OBJECTS, false, "its arguments", .fields = help_arg_fields },
	END,
};
static const struct ctl_field help_answer[] = {
	{ "commands", CTL_OBJECTS, false, "all there are", .fields = help_command_fields },
	END,
};

const struct ctl_command ctl_commands[] = {
	{ "status",            "state, process and engine",                               NULL,            status_answer,         cmd_status },
	{ "info",              "everything known, with counters",                         NULL,            info_answer,           cmd_info },
	{ "pause",             "stop the CPUs and the clock",                             NULL,            NULL,                  cmd_pause },
	{ "resume",            "go on after a pause",                                     NULL,            NULL,                  cmd_resume },
	{ "reset",             "press the reset button",                                  NULL,            NULL,                  cmd_reset },
	{ "stop",              "press the power button, end it after a time-out",         stop_args,       NULL,                  cmd_stop },
	{ "quit",              "end it at once",                                          NULL,            NULL,                  cmd_quit },
	{ "nmi",               "press the NMI button",                                    nmi_args,        NULL,                  cmd_nmi },
	{ "console",           "make this connection the console",                        console_args,    NULL,                  cmd_console },
	{ "resize",            "tell the console's window size",                          resize_args,     NULL,                  cmd_resize },
	{ "exec",              "run a command in the guest",                              exec_args,       exec_fields,           cmd_exec },
	{ "agent",             "wait until the guest's agent answers",                    agent_args,      NULL,                  cmd_agent },
	{ "file-open",         "open a file of the guest",                                file_open_args,  file_open_answer,      cmd_file_open },
	{ "file-read",         "read on in it",                                           file_read_args,  file_read_answer,      cmd_file_read },
	{ "file-write",        "write on in it",                                          file_write_args, file_write_answer,     cmd_file_write },
	{ "file-close",        "have the agent close it",                                 file_close_args, NULL,                  cmd_file_close },
	{ "ssh-key",           "have it let a key log in",                                ssh_key_args,    NULL,                  cmd_ssh_key },
	{ "snapshot",          "take a snapshot; going away cancels it",                  snapshot_args,   snapshot_answer,       cmd_snapshot },
	{ "snapshot-progress", "of the snapshot being taken",                             NULL,            progress_answer,       cmd_snapshot_progress },
	{ "restore",           "go back to a snapshot in place, and on from there",       restore_args,    restore_answer,        cmd_restore },
	{ "fork",              "make living copies of the machine",                       fork_args,       fork_answer,           cmd_fork },
	{ "merged",            "files of snapshots were merged: do without what is gone", merged_args,     NULL,                  cmd_merged },
	{ "set",               "change what can be changed while it runs",                set_args,        set_answer,            cmd_set },
	{ "subscribe",         "get events from here on, besides answers",                NULL,            subscribe_answer,      cmd_subscribe },
	{ "migrate",           "move the machine to another process",                     migrate_args,    migrate_answer,        cmd_migrate },
	{ "upgrade",           "go on in another process on this host",                   upgrade_args,    migrate_answer,        cmd_upgrade },
	{ "migrate-status",    "how far that is",                                         NULL,            ctl_migration_fields, cmd_migrate_status },
	{ "migrate-cancel",    "it stays here",                                           NULL,            NULL,                  cmd_migrate_cancel },
	{ "migrate-recover",   "ask over the link that comes along whether it moved",     NULL,            migrate_answer,        cmd_migrate_recover },
	{ "help",              "these commands",                                          NULL,            help_answer,           cmd_help },
	{ .name = NULL },
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
	default: /* of answers */
		return false;
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
