/* SPDX-License-Identifier: Apache-2.0 */
/* `viv vm`: the process of one machine.  Started by spawn.c, never by people. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "base/log.h"
#include "block/block.h"
#include "char/chardev.h"
#include "base/host.h"
#include "cli/cli.h"
#include "cli/vm_handover.h"
#include "cli/vm_host.h"
#include "ctl/ctl.h"
#include "ctl/events.h"
#include "ctl/migrate.h"
#include "ctl/migrate_lazy.h"
#include "ctl/migrate_target.h"
#include "ctl/paths.h"
#include "ctl/snapcode.h"
#include "ctl/snaptake.h"
#include "ctl/vmconfig.h"
#include "ctl/vmlog.h"
#include "ctl/vmsettle.h"

#define CONSOLE_BACKLOG (64 * KIB)
#define DRAIN_MAX_NS	10000000000LL
#define BEGIN_NS	5000000LL
#define CLOCK_MAX_NS	300000000LL /* until the guest's agent has set its clock */
/* Blocks from this size on go back to the host when they are freed: what a kernel was read into, for instance. */
#define MMAP_FROM (128 * KIB)

struct args {
	const char *name, *from, *incoming, *handover;
	uint64_t status_fd, console_fd, lifeline_fd, lock_fd, code_key_fd; /* 0: none */
	bool is_prefault, skips_time;
};

static const struct opt vm_opts[] = {
	OPT_STRING(struct args, name, "name", "NAME", "which machine"),
	OPT_STRING(struct args, from, "from", "SNAP", "go on from this snapshot of it"),
	OPT_STRING(struct args, incoming, "incoming", "FD,...,FD",
		   "links of a migration that it comes over, and the door for another"),
	OPT_STRING(struct args, handover, "handover", "FD,FD,FD,FD",
		   "its process hands it over by these (ctl/handover.h)"),
	OPT_FLAG(struct args, is_prefault, "prefault", "read its working set ahead, or all memory"),
	OPT_FLAG(struct args, skips_time, "skip-time", "its clocks jump by the time since the snapshot"),
	OPT_UINT(struct args, lock_fd, "lock-fd", "FD", "the machine's lock", 3, 65535),
	OPT_UINT(struct args, status_fd, "status-fd", "FD", "pipe for news", 3, 65535),
	OPT_UINT(struct args, console_fd, "console-fd", "FD", "first client of the console", 3, 65535),
	OPT_UINT(struct args, code_key_fd, "code-key-fd", "FD",
		 "pipe with the key of the snapshot's code", 3, 65535),
	OPT_UINT(struct args, lifeline_fd, "lifeline-fd", "FD", "pipe whose end ends the machine", 3, 65535),
	OPT_END,
};
static const struct opts_cmd vm_cmd = {
	.name = "viv vm",
	.usage = "",
	.summary = "internal: the process of one machine",
	.opts = vm_opts,
};

/* What it goes on from: args.from. */
struct origin {
	struct snapshot_info info;
	struct snapshot_state state;
	struct ram_files files;
	struct working_set set; /* empty: none is known */
	bool has_set;		/* it was */
	struct machine_restore restore;
};

struct process {
	struct args args;
	struct vmconfig config;
	struct machine *m;
	struct vclock clock;	 /* host time */
	struct char_dev *hub;	 /* what people see */
	struct char_dev *serial; /* COM1, when the hub is at hvc0 */
	struct agent *agent;
	struct ctl *ctl;
	struct snapper *snapper;
	struct migrator *migrator;
	struct migrate_target *target; /* not NULL: it comes from another host, or process */
	struct vm_handover handover;   /* from, and to, another process here */
	int ready_fd; /* in place of args.status_fd, for the word that it is ready; 0: none */
	struct vmdisks disks;
	struct block_backing_rule backing; /* of layers of disks: this machine's folder, and what --disk allows */
	const char *backing_paths[2 + MACHINE_MAX_DISKS * VMCONFIG_MAX_BACKING];
	int signal_fd;
	struct loop_fd *signal_watch, *lifeline_watch, *door_watch;
	char *vm_dir;
	char engine_reason[256];
	int root_fd;   /* for confine_await(); -1: none */
	int faults_fd; /* of one that comes (ctl/migrate_lazy.h); -1: none */
	bool is_confined;
	char confinement[CONFINE_TEXT]; /* by what, or why not */
	struct broker_start start;	/* of it, or of its broker */
	struct vm_host host;		/* not confined: its own broker */
	/* A copy of a machine that runs: forked off its process. */
	const struct machine_restore *restore; /* NULL: it is none */
	const struct snapper_moment *moment;   /* of it */
	const struct engine_ops *ops;
	bool has_moved;			      /* it runs on another host */
	bool has_arrived;		      /* it came from another host, and is ours */
	uint8_t code_key[CODE_SET_KEY_BYTES]; /* of the snapshot's translated code */
	bool has_code_key;
	struct snapcode_reader *code;	  /* that is being read; or NULL */
	struct working_set_reader *ahead; /* memory that is being read; or NULL */
	struct origin origin;
	/* Its disks are on new layers that a power cut would lose (ctl/vmsettle.h). */
	bool is_unsettled;
	bool is_served;
	struct vtimer *until_begun; /* what the guest comes to is read page by page until then; or NULL */
	struct vtimer *until_clock; /* whoever waits for it to be ready is not told before; or NULL */
	int settle_lock;	    /* of the snapshots, for @settle; -1: none */
	struct vmsettle *settle;    /* they are being made stable; or NULL */
};

static void tell_on(int fd, json_t *msg)
{
	_cleanup_free_ char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;

	json_decref(msg);
	if (!text || fd <= 0)
		return;
	/* Nobody listens any more: fine. */
	if (dprintf(fd, "%s\n", text) < 0)
		log_debug("vm", "status pipe: %s", strerror(errno));
}

static void tell(struct process *p, json_t *msg)
{
	tell_on((int)p->args.status_fd, msg);
}

/* These stay when the machine leaves. */
static bool has_snapshots(const struct process *p)
{
	_cleanup_free_ char *folder = paths_vm(p->args.name, "snapshots", NULL);

	return !folder || (host.unlinkat(AT_FDCWD, folder, AT_REMOVEDIR) < 0 && errno != ENOENT);
}

/* ---- backends ---- */

static int make_backends(void *arg, struct loop *loop, struct machine_config *cfg, struct error *err)
{
	struct process *p = arg;
	int r = chardev_hub(&p->hub, loop, CONSOLE_BACKLOG, -1, err);

	if (r == 0 && p->args.console_fd) {
		r = chardev_hub_attach(p->hub, (int)p->args.console_fd, true, err);
		if (r == 0)
			p->args.console_fd = 0; /* the hub's */
	}
	if (r == 0 && p->config.uses_virtio_console)
		r = chardev_null(&p->serial, err);
	if (r == 0 && p->config.has_agent)
		r = agent_create(&p->agent, loop, &p->clock, err);
	if (r < 0)
		return r;
	cfg->serial = p->serial ? p->serial : p->hub;
	cfg->console = p->serial ? p->hub : NULL;
	cfg->agent = p->agent ? agent_chardev(p->agent) : NULL;
	return 0;
}

static void close_chardev(struct char_dev **c)
{
	if (*c)
		(*c)->ops->close(*c);
	*c = NULL;
}

static void free_backends(void *arg)
{
	struct process *p = arg;

	agent_destroy(p->agent);
	p->agent = NULL;
	close_chardev(&p->hub);
	close_chardev(&p->serial);
}

/* ---- what it goes on from ---- */

static int map_ram(void *arg, struct guest_ram *ram, struct error *err)
{
	struct process *p = arg;
	int r = ram_files_map(&p->origin.files, ram, true, err);

	if (r == 0)
		p->ahead = working_set_read_ahead(&p->origin.set, ram, &p->origin.files);
	/* What is not known yet will be recorded (snapper_record()). */
	ram->notes_seen = !p->origin.has_set;
	/*
	 * And the host reads around each page that is touched, on some hosts megabytes: that brings memory in, but the guest's first instruction would wait for
	 * several of them.
	 */
	if (r == 0 && !p->origin.has_set && !p->args.is_prefault)
		(void)madvise(ram->base, ram->size_bytes, MADV_RANDOM);
	return r;
}

static void on_begun(void *arg)
{
	struct process *p = arg;
	const struct guest_ram *ram = machine_ram(p->m);

	vtimer_destroy(p->until_begun);
	p->until_begun = NULL;
	(void)madvise(ram->base, ram->size_bytes, MADV_NORMAL);
}

static void await_begin(struct process *p)
{
	p->until_begun = vtimer_create(machine_loop(p->m), &p->clock, on_begun, p);
	if (p->until_begun)
		vtimer_arm(p->until_begun, vclock_now_ns(&p->clock) + BEGIN_NS);
	else
		on_begun(p);
}

static void origin_close(struct origin *o)
{
	snapshot_info_free(&o->info);
	snapshot_state_free(&o->state);
	ram_files_close(&o->files);
	working_set_free(&o->set);
}

static int origin_open(struct process *p, struct error *err)
{
	struct origin *o = &p->origin;
	int r = snapstore_open_state(p->args.name, p->args.from, &o->state, err);

	if (r == 0)
		r = snapstore_open_ram(p->args.name, p->args.from, &o->files, err);
	if (r < 0)
		error_prefix(err, "snapshot %s of %s", p->args.from, p->args.name);
	else
		r = snapstore_load(&o->info, p->args.name, p->args.from, err);
	if (r < 0)
		return r;
	struct error why;
	int found = snapstore_open_set(p->args.name, p->args.from, &o->set, &why);

	o->has_set = found == 0;
	if (found < 0 && found != -ENOENT)
		log_warn("vm", "memory is not read ahead: %s", why.text);
	o->restore = (struct machine_restore){ .state = &o->state, .map_ram = map_ram, .arg = p };
	if (p->code)
		o->restore.code_head = snapcode_head(p->code, &o->restore.code_head_len);
	return 0;
}

/* The layers of disks; those of the snapshot that it goes on from, with new ones on top. */
static int open_disks(struct process *p, struct error *err)
{
	char *tops[MACHINE_MAX_DISKS];
	unsigned n = 0;

	p->backing_paths[n++] = p->vm_dir;
	for (unsigned i = 0; i < p->config.ndisks; i++)
		for (char **b = p->config.disks[i].backing; *b; b++)
			p->backing_paths[n++] = *b;
	p->backing = (struct block_backing_rule){ .paths = p->backing_paths };
	/* Switched on, throw-away disks begin anew. */
	int r = p->args.from || p->restore || p->target ? 0 : vmdisks_throw_away(&p->config, err);

	if (r == 0)
		r = vmdisks_open(&p->disks, &p->config, err);
	p->is_unsettled = p->args.from || p->restore;
	if (r < 0 || !p->args.from)
		return r;
	r = vmdisks_go_back(&p->disks, &p->origin.info, true, tops, err);
	return r == 0 ? vmdisks_write_to(&p->disks, tops, err) : r;
}

static void take_cards(struct process *p, struct machine_config *cfg)
{
	struct broker_start *s = &p->start;

	vm_handover_note_cards(&p->handover, s);
	for (cfg->nnics = 0; cfg->nnics < s->ncards; cfg->nnics++) {
		memcpy(cfg->nics[cfg->nnics].mac, s->macs[cfg->nnics], sizeof(s->macs[0]));
		cfg->nics[cfg->nnics].fd = s->cards[cfg->nnics];
		cfg->nics[cfg->nnics].is_tap = s->is_tap;
		cfg->nics[cfg->nnics].is_alone = strcmp(p->config.net, "nat") == 0;
	}
	s->ncards = 0; /* the machine's */
}

static void take_shares(struct process *p, struct machine_config *cfg)
{
	struct broker_start *s = &p->start;

	for (cfg->nshares = 0; cfg->nshares < MIN(s->nshares, p->config.nshares); cfg->nshares++)
		cfg->shares[cfg->nshares] = (struct machine_share){ s->shares[cfg->nshares],
								    p->config.shares[cfg->nshares].tag };
	s->nshares = 0; /* the machine's */
}

/* "5,6,7": the links; the last is the door. */
static unsigned parse_links(const char *at, int fds[MIGRATE_FDS_MAX])
{
	unsigned n = 0;
	char *end;

	for (; at && n < MIGRATE_FDS_MAX; at = end + 1) {
		fds[n++] = (int)strtol(at, &end, 10);
		if (*end != ',')
			break;
	}
	return n;
}

static int open_predecessor(struct process *p, struct error *err)
{
	struct handover_cards cards;
	int all[MIGRATE_FDS_MAX] = { -1, -1, -1, -1 };
	unsigned n = parse_links(p->args.handover, all);
	const struct handover_ends ends = { all[1], all[2], all[3] };

	if (n != HANDOVER_FDS)
		return error_set(err, -EINVAL, "a hand-over takes %d descriptors", HANDOVER_FDS);
	int r = migrate_target_take_over(&p->target, &p->config, all[0], &ends, &cards, err);

	return r == 0 ? vm_handover_make_cards(&p->handover, &cards, &p->start, err) : r;
}

/* And what comes first over them. */
static int open_target(struct process *p, struct error *err)
{
	struct migrate_fds fds = { .faults = p->faults_fd };
	int all[MIGRATE_FDS_MAX];
	unsigned n = parse_links(p->args.incoming, all);

	fds.links = all;
	fds.nlinks = n - 1;
	fds.door = all[n - 1];
	p->faults_fd = -1; /* the target's */
	return migrate_target_open(&p->target, p->args.name, &fds, err);
}

/* Its disks are the source's until the last moment. */
static int create_incoming(struct process *p, struct machine_config *cfg, struct error *err)
{
	char *stand_ins[MACHINE_MAX_DISKS] = { NULL };
	int r = 0;

	for (unsigned i = 0; r == 0 && i < cfg->ndisks; i++) {
		r = migrate_target_stand_in(p->target, i, &stand_ins[i], err);
		if (r == 0 && stand_ins[i]) {
			cfg->disks[i].path = stand_ins[i];
			cfg->disks[i].format = "raw";
			cfg->disks[i].use_direct = false;
		}
	}
	cfg->restore = migrate_target_restore(p->target);
	if (r == 0)
		r = machine_create(&p->m, cfg, p->engine_reason, err);
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (stand_ins[i])
			(void)host.unlinkat(AT_FDCWD, stand_ins[i], 0);
		free(stand_ins[i]);
	}
	return r;
}

/* Disks are files that a merge of snapshots exchanges: none does while they are opened, one after the other. */
static int open_machine(struct process *p, struct machine_config *cfg, struct error *err)
{
	_cleanup_close_ int lock = snapstore_lock(p->args.name, false, err);
	int r = lock < 0 ? lock : open_disks(p, err);
	const struct machine_restore *restore = cfg->restore;

	if (r < 0)
		return r;
	vmconfig_machine(&p->config, cfg);
	cfg->restore = restore;
	cfg->make_backends = make_backends;
	cfg->free_backends = free_backends;
	cfg->backends_arg = p;
	if (p->restore)
		cfg->engine_ops = p->ops;
	for (unsigned i = 0; i < cfg->ndisks; i++) {
		cfg->disks[i].backing = &p->backing;
		cfg->disks[i].is_unsettled = p->is_unsettled;
	}
	if (p->is_unsettled) {
		p->settle_lock = lock;
		lock = -1;
	}
	take_cards(p, cfg);
	take_shares(p, cfg);
	if (broker_door() >= 0)
		cfg->confine_vcpu = confine_filter_vcpu;
	r = p->target ? create_incoming(p, cfg, err) : machine_create(&p->m, cfg, p->engine_reason, err);
	/* It has come up meanwhile, or ends the machine. */
	return r < 0 ? r : vm_host_await_net(&p->host, &p->start, broker_door() >= 0, err);
}

/* It comes while the machine is being made. */
static void take_code_key(struct process *p)
{
	int fd = (int)p->args.code_key_fd;

	if (!fd)
		return;
	p->has_code_key = read(fd, p->code_key, sizeof(p->code_key)) == sizeof(p->code_key);
	close(fd);
	p->args.code_key_fd = 0;
}

static int create_machine(struct process *p, struct error *err)
{
	struct machine_config cfg = { .restore = p->restore };
	int r;

	take_code_key(p);
	/* Read while all else is made ready. */
	if (p->args.from && p->has_code_key)
		p->code = snapcode_read(p->args.name, p->args.from, p->code_key);

	if (!p->args.from)
		return open_machine(p, &cfg, err);
	r = origin_open(p, err);
	if (r < 0)
		return r;
	cfg.restore = &p->origin.restore;
	r = open_machine(p, &cfg, err);
	if (r == 0 && p->args.is_prefault && !p->ahead)
		r = ram_files_prefault(&p->origin.files, machine_ram(p->m), err);
	return r;
}

static void copy_main(void *arg, const char *name, const struct machine_restore *restore,
		      const struct snapper_moment *moment, int status_fd);

/* A confined one asks by its broker. */
static json_t *lab_identity(void *arg)
{
	struct process *p = arg;

	if (broker_door() < 0)
		return vm_host_identity(&p->host);
	return strncmp(p->config.net, "lab:", 4) == 0 ? broker_lab() : NULL;
}

static int create_snapper(struct process *p, struct error *err)
{
	const struct snapper_config sc = { .machine = p->m,
					   .config = &p->config,
					   .disks = &p->disks,
					   .backing = &p->backing,
					   .clock = &p->clock,
					   .agent = p->agent,
					   .code_key = p->has_code_key ? p->code_key : NULL,
					   .identity = lab_identity,
					   .identity_arg = p,
					   .child = copy_main,
					   .child_arg = p };
	int r = snapper_create(&p->snapper, &sc, err);
	const struct migrator_config mc = { .machine = p->m,
					    .config = &p->config,
					    .snapper = p->snapper,
					    .backing = &p->backing,
					    .cards = vm_handover_cards,
					    .give = vm_handover_give,
					    .keep = vm_handover_keep,
					    .arg = &p->handover };

	if (r == 0)
		r = migrator_create(&p->migrator, &mc, err);
	if (r == 0 && p->args.from)
		r = snapper_restored(p->snapper, &p->origin.info, &p->origin.files,
				     &p->origin.state, err);
	origin_close(&p->origin);
	if (r < 0)
		return r;
	return 0;
}

/* ---- events of the process ---- */

static void on_signal(void *arg, int fd, unsigned events)
{
	struct process *p = arg;
	struct signalfd_siginfo si;
	char text[64];

	if (read(fd, &si, sizeof(si)) != sizeof(si))
		return;
	snprintf(text, sizeof(text), "the machine was stopped by signal %u", si.ssi_signo);
	machine_end(p->m, END_STOPPED, 0, text);
}

static void on_lifeline(void *arg, int fd, unsigned events)
{
	struct process *p = arg;

	loop_fd_remove(p->lifeline_watch);
	p->lifeline_watch = NULL;
	machine_end(p->m, END_STOPPED, 0, "the viv run that it belonged to is gone");
}

/* Without its broker it has no files. */
static void on_door(void *arg, int fd, unsigned events)
{
	struct process *p = arg;

	loop_fd_remove(p->door_watch);
	p->door_watch = NULL;
	machine_end(p->m, END_FAILED, 1, "the machine's broker was killed");
}

static int watch_events(struct process *p, struct error *err)
{
	struct loop *loop = machine_loop(p->m);
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	p->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (p->signal_fd < 0)
		return error_set(err, -errno, "cannot watch signals: %s", strerror(errno));
	p->signal_watch = loop_fd_add(loop, p->signal_fd, LOOP_IN, on_signal, p);
	if (p->args.lifeline_fd)
		p->lifeline_watch =
			loop_fd_add(loop, (int)p->args.lifeline_fd, LOOP_IN, on_lifeline, p);
	if (broker_door() >= 0)
		p->door_watch = loop_fd_add(loop, broker_door(), LOOP_IN, on_door, p);
	if (!p->signal_watch || (p->args.lifeline_fd && !p->lifeline_watch) ||
	    (broker_door() >= 0 && !p->door_watch))
		return error_set(err, -ENOMEM, "cannot watch descriptors: %s", strerror(errno));
	return 0;
}

/* Blocked before any thread exists: threads inherit it. */
static void block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* ---- life ---- */

static void tell_ready(struct process *p)
{
	log_info("vm", "started on engine %s: %s", machine_engine(p->m)->name, p->engine_reason);
	tell_on(p->ready_fd > 0 ? p->ready_fd : (int)p->args.status_fd,
		json_pack("{s:s, s:s, s:s}", "event", "ready", "engine", machine_engine(p->m)->name,
			  "reason", p->engine_reason));
	if (p->ready_fd > 0)
		close(p->ready_fd);
	p->ready_fd = 0;
}

static void on_arrived(void *ctx, const struct error *err)
{
	struct process *p = ctx;

	if (!err) {
		tell_ready(p);
		return;
	}
	log_info("vm", "it did not come here: %s", err->text);
	tell(p, json_pack("{s:s, s:s}", "event", "failed", "text", err->text));
	machine_end(p->m, END_FAILED, 1, err->text);
}

/* What waits for memory that will not come must not go on without it. */
static void on_ending(void *arg)
{
	struct process *p = arg;

	if (!migrate_target_forgo(p->target))
		return;
	log_warn("vm", "the machine ends before all of its memory is here");
	tell(p, json_pack("{s:s, s:i, s:i, s:s}", "event", "end", "status", 0, "reason", (int)END_STOPPED,
			  "text", "the machine was stopped before all of its memory was here"));
	_exit(EXIT_FINE);
}

/* What the old process had. */
static void take_over(void *ctx, struct handover *h, const struct bytes *console)
{
	struct process *p = ctx;

	vm_handover_take(&p->handover, h, console);
	/* Whoever had the machine started is told of its end; whoever started this process, that it is ready. */
	p->ready_fd = (int)p->args.status_fd;
	p->args.status_fd = p->handover.status_fd >= 0 ? (uint64_t)p->handover.status_fd : 0;
	if (h->lifeline < 0)
		return;
	p->lifeline_watch = loop_fd_add(machine_loop(p->m), h->lifeline, LOOP_IN, on_lifeline, p);
	if (!p->lifeline_watch)
		log_error("vm", "no memory to see the end of the viv run that it belongs to");
	p->args.lifeline_fd = (uint64_t)h->lifeline;
	p->handover.lifeline_fd = h->lifeline;
	h->lifeline = -1;
}

static int await_incoming(struct process *p, struct error *err)
{
	const struct migrate_target_config tc = { .machine = p->m,
						  .config = &p->config,
						  .backing = &p->backing,
						  .done = on_arrived,
						  .take = take_over,
						  .ctx = p };
	int r = machine_start(p->m, true, err);

	machine_before_end(p->m, on_ending, p);
	return r == 0 ? migrate_target_begin(p->target, &tc, err) : r;
}

static void read_ahead(struct process *p)
{
	snapper_take_readers(p->snapper, p->code, p->ahead);
	p->code = NULL;
	p->ahead = NULL;
}

static int start(struct process *p, struct error *err)
{
	const struct snapper_moment *from = p->restore ? p->moment : snapper_base(p->snapper);
	bool wakes = p->restore || p->args.from;

	if (wakes) {
		machine_new_generation(p->m);
		machine_reappear(p->m);
	}
	/* For a copy it is as if its process had not been scheduled for a moment; nothing in its guest has to be told. */
	if (p->restore)
		machine_skip(p->m, snap_real_ns() - from->real_ns);
	else if (wakes)
		snapper_slept(p->m, from, &(struct snapper_waking){ .skips_time = p->args.skips_time });
	if (wakes)
		snapper_woke(p->snapper, from, !p->restore);
	if (p->args.from)
		snapper_record(p->snapper, p->origin.has_set);
	int r = machine_start(p->m, false, err);

	if (r < 0)
		return r;
	if (p->args.from && !p->origin.has_set && !p->args.is_prefault)
		await_begin(p);
	/* What takes processor time comes after the guest. */
	read_ahead(p);
	return 0;
}

/* May it run here at all? */
static int check_fate(struct process *p, struct error *err)
{
	struct migrate_mark mark;
	int r = mark_get(p->args.name, &mark, err);

	if (r == -ENOENT)
		r = 0;
	else if (r == 0 && mark.has_moved)
		r = error_set(err, -EPERM,
			      "machine \"%s\" moved to %s; viv rm removes what is left of it here",
			      p->args.name, mark.to);
	else if (r == 0)
		r = error_set(err, -EPERM, "machine \"%s\" may be running at %s; viv migrate %s --recover asks there",
			      p->args.name, mark.to, p->args.name);
	if (r < 0 || p->args.incoming || p->args.handover)
		return r;
	r = migrate_settle(p->args.name, err);
	return r == 0 ? error_set(err, -ENOENT,
				  "machine \"%s\" never came here completely, and is gone", p->args.name)
		      : MIN(r, 0);
}

/* Whoever has connected already is answered from here on. */
static int serve(struct process *p, struct error *err)
{
	struct ctl_config cc = { .config = &p->config };

	cc.machine = p->m;
	cc.clock = &p->clock;
	cc.console = p->hub;
	cc.console_window = p->serial ? p->hub : NULL;
	cc.agent = p->agent;
	cc.engine_reason = p->engine_reason;
	cc.is_confined = p->is_confined;
	cc.confinement = p->confinement;
	cc.pid = p->start.pid;
	cc.snapper = p->snapper;
	cc.migrator = p->migrator;
	int r = ctl_create(&p->ctl, p->start.listen_fd, &cc, err);

	p->start.listen_fd = -1;
	p->handover.ctl = p->ctl;
	p->handover.machine = p->m;
	p->handover.hub = p->hub;
	p->handover.agent = p->agent;
	p->handover.name = p->args.name;
	p->handover.status_fd = p->args.status_fd ? (int)p->args.status_fd : -1;
	p->handover.lifeline_fd = p->args.lifeline_fd ? (int)p->args.lifeline_fd : -1;
	return r;
}

/* A copy has told all that the machine that it was copied from wants to know. */
static void close_status(struct process *p)
{
	if (!p->restore)
		return;
	close((int)p->args.status_fd);
	p->args.status_fd = 0;
	p->handover.status_fd = -1;
}

/* With --prefault it is as good as one that has long been running: its clock is right, too, unless that takes long. */
static void tell_if_ready(struct process *p)
{
	if (!p->is_served || p->until_clock)
		return;
	tell_ready(p);
	close_status(p);
}

static void on_clock(void *arg)
{
	struct process *p = arg;

	snapper_on_clock(p->snapper, NULL, NULL);
	vtimer_destroy(p->until_clock);
	p->until_clock = NULL;
	tell_if_ready(p);
}

static void await_clock(struct process *p)
{
	if (!snapper_on_clock(p->snapper, on_clock, p))
		return;
	p->until_clock = vtimer_create(machine_loop(p->m), &p->clock, on_clock, p);
	if (p->until_clock)
		vtimer_arm(p->until_clock, vclock_now_ns(&p->clock) + CLOCK_MAX_NS);
}

static void on_settled(void *arg)
{
	struct process *p = arg;
	struct error err;

	if (!p->settle)
		return; /* the machine ended meanwhile */
	int r = vmsettle_end(p->settle, &err);

	p->settle = NULL;
	p->is_unsettled = r < 0;
	if (r == 0)
		r = serve(p, &err);
	if (r == 0) {
		p->is_served = true;
		tell_if_ready(p);
		return;
	}
	tell(p, json_pack("{s:s, s:s}", "event", "failed", "text", err.text));
	machine_end(p->m, END_FAILED, 1, err.text);
}

/* Under the machine's lock. */
static int set_going(struct process *p, struct error *err)
{
	int r = create_snapper(p, err);

	/* Nothing of the guest has run up to here. */
	if (r == 0)
		r = confine_await(p->root_fd, err);
	p->root_fd = -1;
	if (r == 0)
		r = watch_events(p, err);
	if (r == 0 && p->args.is_prefault) {
		read_ahead(p);
		snapper_await_readers(p->snapper);
	}
	if (r == 0 && p->is_unsettled) {
		r = start(p, err);
		if (r < 0)
			return r;
		if (p->args.is_prefault)
			await_clock(p);
		r = vmsettle_begin(&p->settle, p->m, &p->disks, p->settle_lock, on_settled, p, err);
		p->settle_lock = -1;
		return r;
	}
	if (r == 0)
		r = serve(p, err);
	if (r == 0 && p->args.handover)
		machine_hold_cards(p->m, true);
	if (r == 0 && p->target)
		return await_incoming(p, err);
	if (r < 0)
		return r;
	tell_ready(p);
	return start(p, err);
}

static int build(struct process *p, struct error *err)
{
	int r = p->args.incoming   ? open_target(p, err)
		: p->args.handover ? open_predecessor(p, err)
				   : 0;

	if (r == 0)
		r = create_machine(p, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(machine_lock(p->m));
	r = set_going(p, err);
	pthread_mutex_unlock(machine_lock(p->m));
	return r;
}

/* It has ended before its disks were stable: who waits for it to be ready is told what became of that first. */
static void end_settling(struct process *p)
{
	struct error err;

	if (p->until_clock)
		on_clock(p);
	if (!p->settle)
		return;
	int r = vmsettle_end(p->settle, &err);

	p->settle = NULL;
	p->is_unsettled = r < 0;
	if (r == 0)
		tell_ready(p);
	else
		tell(p, json_pack("{s:s, s:s}", "event", "failed", "text", err.text));
}

/* What the guest wrote last still reaches who listens. */
static void drain_console(struct process *p)
{
	int64_t end_ns = vclock_now_ns(&p->clock) + DRAIN_MAX_NS;

	while (p->hub && chardev_hub_pending(p->hub) && vclock_now_ns(&p->clock) < end_ns)
		loop_run_once(machine_loop(p->m), 100);
}

/* No machine is left in its folder: that goes at the end. */
static void give_back(struct process *p)
{
	if (broker_door() >= 0 && p->vm_dir)
		(void)host.unlinkat(AT_FDCWD, p->vm_dir, AT_REMOVEDIR);
	p->host.is_throwaway = true;
}

static void destroy(struct process *p)
{
	bool has_gone_on = migrator_has_gone_on(p->migrator);

	p->has_moved = migrator_has_moved(p->migrator) && !has_gone_on;
	p->has_arrived = migrate_target_destroy(p->target);
	snapcode_read_end(p->code);
	working_set_read_end(p->ahead);
	origin_close(&p->origin);
	vtimer_destroy(p->until_begun);
	end_settling(p);
	if (p->settle_lock >= 0)
		close(p->settle_lock);
	if (p->m) {
		if (p->is_unsettled)
			machine_settled(p->m, -ECANCELED);
		pthread_mutex_lock(machine_lock(p->m));
		ctl_destroy(p->ctl);
		migrator_destroy(p->migrator);
		snapper_destroy(p->snapper);
		loop_fd_remove(p->signal_watch);
		loop_fd_remove(p->lifeline_watch);
		loop_fd_remove(p->door_watch);
		pthread_mutex_unlock(machine_lock(p->m));
		machine_destroy(p->m);
	}
	if (p->start.listen_fd >= 0)
		close(p->start.listen_fd);
	if (p->root_fd >= 0)
		close(p->root_fd);
	if (p->start.net_ready_fd)
		close(p->start.net_ready_fd);
	if (p->signal_fd >= 0)
		close(p->signal_fd);
	vmdisks_close(&p->disks);
	vm_handover_end(&p->handover, has_gone_on);
	if ((p->has_moved && !has_snapshots(p)) || (p->args.incoming && !p->has_arrived))
		give_back(p);
	if (broker_door() < 0)
		vm_host_finish(&p->host);
	vmconfig_free(&p->config);
	free(p->vm_dir);
}

static int failed(struct process *p, const struct error *err)
{
	if (p->target)
		migrate_target_refuse(p->target, err);
	tell(p, json_pack("{s:s, s:s}", "event", "failed", "text", err->text));
	log_error("vm", "it could not be built: %s", err->text);
	return EXIT_FAILED;
}

static int run(struct process *p)
{
	struct machine_end end;
	struct error err;

	if (build(p, &err) < 0)
		return failed(p, &err);
	machine_run(p->m, &end);
	end_settling(p);
	/* Whoever listens hears the rest from the process that goes on. */
	if (migrator_has_gone_on(p->migrator)) {
		log_info("vm", "%s", end.text);
		return end.status;
	}
	log_write(end.reason == END_FAILED ? LOG_ERROR : LOG_INFO, "vm", "%s", end.text);
	pthread_mutex_lock(machine_lock(p->m));
	if (p->ctl)
		ctl_ended(p->ctl, &end);
	pthread_mutex_unlock(machine_lock(p->m));
	drain_console(p);
	tell(p, json_pack("{s:s, s:i, s:i, s:s}", "event", "end", "status", end.status, "reason",
			  (int)end.reason, "text", end.text));
	return end.status;
}

/* ---- what it is given, and by whom ---- */

/* By itself, with the user's rights. */
static int prepare(struct process *p, struct error *err)
{
	int r = p->args.handover
			? vm_host_prepare_successor(&p->host, &p->config, p->args.name, err)
			: vm_host_prepare(&p->host, &p->config, p->args.name, (int)p->args.lock_fd, err);

	return r == 0 ? check_fate(p, err) : r;
}

/* The host's part is the machine's own, or stays with the broker. */
static void take_start(struct process *p)
{
	p->start = p->host.start;
	broker_start_init(&p->host.start);
}

/* Names of the user's home and of viv's are found without asking for files, or for the current folder, later. */
static int fix_home(struct error *err)
{
	const char *home = getenv("VIVARIUM_HOME");
	bool is_relative = home && home[0] && home[0] != '/';
	_cleanup_free_ char *cwd = is_relative ? getcwd(NULL, 0) : NULL;
	_cleanup_free_ char *full = cwd ? paths_format(err, "%s/%s", cwd, home) : NULL;
	struct passwd *pw = getenv("HOME") ? NULL : getpwuid(getuid());

	if (pw)
		setenv("HOME", pw->pw_dir, 0);
	if (is_relative && (!full || setenv("VIVARIUM_HOME", full, 1) < 0))
		return error_set(err, -ENOENT,
				 "the current folder, which VIVARIUM_HOME is relative to, is gone");
	return 0;
}

/* The process that was started becomes the broker, and another one the machine. */
static int split(struct process *p, struct confine *c, struct error *err)
{
	const int given[] = { (int)p->args.status_fd, (int)p->args.console_fd,
			      (int)p->args.lifeline_fd, (int)p->args.code_key_fd };
	int machines[MIGRATE_FDS_MAX + ARRAY_SIZE(given) + 1];
	unsigned n = parse_links(p->args.incoming ?: p->args.handover, machines);

	for (unsigned i = 0; i < ARRAY_SIZE(given); i++)
		if (given[i])
			machines[n++] = given[i];
	machines[n] = -1;
	int r = fix_home(err);

	if (r < 0)
		return r;
	r = confine_split(c, machines, p->args.incoming != NULL, err);
	if (r != CONFINE_MACHINE) {
		/* What is to be removed is the broker's to remove. */
		p->host.is_dir_ours &= !c->is_machine;
		return r;
	}
	broker_use(c->door, c->pagemap_fd);
	take_start(p);
	p->start.pid = c->machine_pid;
	prctl(PR_SET_NAME, "viv");
	p->is_confined = true;
	p->faults_fd = c->faults_fd;
	p->root_fd = c->root_fd;
	confine_describe(c, p->confinement);
	log_write(c->has_namespaces && c->landlock_abi ? LOG_DEBUG : LOG_WARN, "vm", "confined: %s",
		  p->confinement);
	return r;
}

/* With the rights of the user, which is told. */
static int run_unconfined(struct process *p, const char *why)
{
	snprintf(p->confinement, sizeof(p->confinement), "none: %s", why);
	log_warn("vm", "not confined, it has the user's rights: %s", why);
	take_start(p);
	if (p->args.incoming)
		p->faults_fd = migrate_faults_open(NULL);
	return run(p);
}

static int run_machine(struct process *p)
{
	struct confine c;
	struct error err;
	int r = prepare(p, &err);

	if (r == 0 && !confine_is_wanted())
		return run_unconfined(p, CONFINE_VARIABLE "=off");
	if (r == 0)
		r = split(p, &c, &err);
	if (r < 0)
		return failed(p, &err);
	return r == CONFINE_BROKER ? vm_host_broker(&p->host, &c, &p->config) : run(p);
}

static int start_copy(struct process *p, struct error *err)
{
	if (broker_door() < 0) {
		int r = prepare(p, err);

		if (r == 0)
			take_start(p);
		return r;
	}
	int r = broker_copy(p->args.name, &p->start, err);

	if (r < 0)
		return r;
	vmlog_take(p->start.log_fds);
	broker_use(p->start.door, -1);
	r = vmconfig_load(&p->config, p->args.name, err);
	return r == 0 ? vmlog_set_level(p->config.log_level, err) : r;
}

static void init(struct process *p)
{
	struct error err;

	vclock_init(&p->clock);
	vclock_start(&p->clock);
	p->host.lock_fd = -1;
	vm_handover_init(&p->handover, &p->host);
	broker_start_init(&p->start);
	broker_start_init(&p->host.start);
	p->vm_dir = paths_vm(p->args.name, NULL, &err);
}

/* Descriptors are 0, 1, 2, @status_fd and the broker's; of the machine that was forked only memory is of use. */
static void copy_main(void *arg, const char *name, const struct machine_restore *restore,
		      const struct snapper_moment *moment, int status_fd)
{
	const struct process *from = arg;
	struct process p = { .args = { .name = name, .status_fd = (uint64_t)status_fd },
			     .signal_fd = -1,
			     .root_fd = -1,
			     .faults_fd = -1,
			     .settle_lock = -1,
			     .restore = restore,
			     .moment = moment,
			     .ops = machine_engine(from->m),
			     .engine_reason = "as the machine that it is a copy of",
			     .is_confined = from->is_confined };
	struct error err;

	memcpy(p.confinement, from->confinement, sizeof(p.confinement));

	setsid();
	prctl(PR_SET_NAME, "viv");
	init(&p);
	int r = vmconfig_init(&p.config, &err);

	if (r == 0)
		r = start_copy(&p, &err);
	int status = r < 0 ? failed(&p, &err) : run(&p);

	/* What its folder is to become is the first machine's to say, but for a broker of its own. */
	if (!p.m && broker_door() >= 0)
		give_back(&p);
	destroy(&p);
	_exit(status);
}

int cli_vm(int argc, char **argv)
{
	struct process p = { .signal_fd = -1, .root_fd = -1, .faults_fd = -1, .settle_lock = -1 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&vm_cmd, argc, argv, &p.args, &rest, &status))
		return status;
	opts_free(&vm_cmd, &p.args, &rest);
	if (!p.args.name || paths_check_name("a machine", p.args.name, &err) < 0)
		return EXIT_USAGE;
	/* The machine's alone: its network's process is started before it is read. */
	if (p.args.code_key_fd)
		fcntl((int)p.args.code_key_fd, F_SETFD, FD_CLOEXEC);
	block_signals();
	/* Set, it stays: by itself glibc raises it to the largest block that was freed, and keeps such blocks. */
	(void)mallopt(M_MMAP_THRESHOLD, MMAP_FROM);
	log_set_level(LOG_INFO);
	init(&p);
	status = vmconfig_init(&p.config, &err) < 0 ? cli_fail(&err) : run_machine(&p);
	destroy(&p);
	return status;
}
