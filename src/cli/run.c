/* SPDX-License-Identifier: Apache-2.0 */
/* `viv run`: options to configuration; foreground, detached, or one command. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/image.h"
#include "cli/limits.h"
#include "cli/seed.h"
#include "cli/share.h"
#include "cli/snapshot.h"
#include "cli/spawn.h"
#include "cli/store.h"
#include "cli/terminal.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/vmlock.h"
#include "engine/pick.h"
#include "net/netd.h"
#include "net/tap.h"

#define STOP_TIMEOUT_MS 30000
#define CONSOLE_TAIL	2000

struct args {
	const char *lab; /* viv up of it makes the machine; NULL: a person does */
	const char *name, *from, *engine, *cpu, *kernel, *initrd, *append, *firmware, *net,
		*without, *iommu;
	uint64_t cpus, mem, check;
	struct opt_list disks, shares, forwards, devices;
	struct seed_args seed;
	struct limit_args limits;
	bool rm, detach, prefault, skip_time, no_reboot, strict, interp_only, counting, with_input;
	int64_t boot_timeout;
};

static const struct opt run_opts[] = {
	OPT_STRING(struct args, name, "name", "NAME", "keep the machine under this name"),
	OPT_FLAG(struct args, rm, "rm", "remove the machine when it ends, with all it wrote"),
	OPT_FLAG_L(struct args, detach, "detach", 'd', "run in the background"),
	OPT_STRING(struct args, from, "from", "MACHINE@SNAPSHOT",
		   "go on from a snapshot as a machine of its own"),
	OPT_FLAG(struct args, prefault,
		 "prefault", "with --from: what it needs first is in memory before it runs, its clock is set before it counts as ready"),
	OPT_FLAG(struct args, skip_time, "skip-time",
		 "with --from: the guest's clocks jump to now; for one without an agent"),
	OPT_STRING(struct args, engine, "engine", "auto|kvm|dbt", "what executes the guest (default auto)"),
	OPT_STRING(struct args, cpu, "cpu", "host|x86-64-v2|x86-64-v3", "CPU that the guest sees"),
	OPT_UINT(struct args, cpus, "cpus", "N", "number of CPUs", 1, MACHINE_MAX_CPUS),
	OPT_SIZE(struct args, mem, "mem", "SIZE", "memory, 512M or 2G", MACHINE_MIN_MEM, MACHINE_MAX_MEM),
	OPT_STRING(struct args, kernel, "kernel", "FILE", "Linux bzImage, ELF with PVH note, or multiboot"),
	OPT_STRING(struct args, initrd, "initrd", "FILE", "initial ramdisk, or multiboot module"),
	OPT_STRING(struct args, append, "append", "TEXT",
		   "kernel command line; with an image: added to its own"),
	OPT_STRING(struct args, firmware, "firmware", "FILE",
		   "BIOS image (default: SeaBIOS if there is no kernel)"),
	OPT_LIST(struct args, disks, "disk", "FILE[,ro][,snapshot][,format=F]",
		 "a disk; may be given again"),
	OPT_LIST(struct args, shares, "share", "FOLDER[:TAG][,ro]",
		 "a folder of this host that the guest can mount; may be given again"),
	OPT_STRING(struct args, net, "net", "nat|none|lab:LAB:NETWORK|tap:NAME|bridge:NAME",
		   "network (default nat with an image, else none)"),
	OPT_LIST(struct args, forwards, "forward", "HOST:GUEST",
		 "TCP port of this host to a port of the guest"),
	OPT_LIST(struct args, seed.cloud_init, "cloud-init",
		 "KEY=VALUE,...", "what the guest's cloud-init sets up: user=NAME,ssh-key=FILE,hostname=NAME,packages=A+B"),
	OPT_STRING(struct args, seed.user_data, "user-data", "FILE",
		   "for cloud-init, in place of what is made"),
	OPT_STRING(struct args, seed.meta_data, "meta-data", "FILE", "the same; it has an instance-id"),
	OPT_STRING(struct args, seed.network_config, "network-config", "FILE",
		   "for cloud-init; without it the guest asks for an address by DHCP"),
	OPT_STRING(struct args, limits.cpu, "cpu-limit", "150%|1.5",
		   "processor time of all its processes together, by a control group"),
	OPT_SIZE(struct args, limits.mem, "mem-limit", "SIZE",
		 "their memory, the guest's among it, by a control group", 1 * MIB, INT64_MAX),
	OPT_STRING(struct args, limits.io, "io-limit", "SIZE|read=SIZE,write=SIZE,read-iops=N,write-iops=N",
		   "what they read and write a second, by a control group"),
	OPT_STRING(struct args, iommu, "iommu", "intel|none",
		   "remap DMA and interrupts (VT-d), for guests that test or use DMA isolation"),
	OPT_LIST(struct args, devices, "device", "edu",
		 "a device for tests of drivers: edu (PCI, DMA, interrupts)"),
	OPT_FLAG_L(struct args, with_input, "input", 'i', "with a command: pass standard input to it"),
	OPT_DURATION(struct args, boot_timeout, "boot-timeout", "TIME",
		     "with a command: how long booting may take", 1000000000, 86400LL * 1000000000),
	OPT_FLAG(struct args, no_reboot, "no-reboot", "end instead of resetting"),
	OPT_FLAG(struct args, strict, "strict", "tests: exact dead flags, verified code (slower)"),
	OPT_UINT(struct args, check, "check", "N",
		 "tests: compare every N-th block with the interpreter", 0, UINT32_MAX),
	OPT_FLAG(struct args, interp_only, "interp-only", "tests: interpret everything"),
	OPT_FLAG(struct args, counting, "counting", "tests: count instructions exactly (slower)"),
	OPT_STRING(struct args, without, "without", "LIST",
		   "measuring: techniques of the dbt engine to switch off, or none"),
	OPT_END,
};

const struct opts_cmd cli_run_cmd = {
	.name = "viv run",
	.usage = "[IMAGE] [-- CMD...]",
	.summary = "make a machine and run it",
	.details =
		"Without --detach and without a command, this terminal is the machine's console; "
		"Ctrl-] ends the\n"
		"machine.  Its exit status is 0 when the guest switches itself off, and (V << 1) | "
		"1 when it\n"
		"writes V to the debug exit port.\n\n"
		"Without --name the machine leaves nothing behind: what it writes to the image's "
		"disk is\n"
		"thrown away.  With --name it gets a copy of the disk and stays until viv rm.\n\n"
		"--disk takes after the file: format=qcow2 or raw (else by the name: .qcow2, all "
		"others raw; "
		"what is in\n"
		"the file is not asked), ro, snapshot (writes are thrown away), direct (past the "
		"host's "
		"cache), bps=50M\n"
		"and iops=500 (limits), and backing=PATH, again and again: a file, or a folder of "
		"files, "
		"that the image\n"
		"may stand on.\n\n"
		"--share FOLDER:TAG is mounted in the guest by mount -t 9p -o "
		"trans=virtio,version=9p2000.L TAG /mnt; TAG is\n"
		"the folder's name unless it is given.  Everything there is done as the user who "
		"runs "
		"viv; with ro nothing\n"
		"in it changes.  With --from, the folders of the snapshot are named again, by "
		"their tags.\n\n"
		"--net tap:NAME is an interface of this host, with the guest at the other end of "
		"its cable; bridge:NAME makes "
		"one and puts it\n"
		"into that bridge.  Both need the rights of root, but for a tap device that root "
		"made for you (ip tuntap "
		"add ... user NAME).\n\n"
		"--cloud-init gives the guest a disk by which cloud-init, which stock cloud images "
		"have, sets it up at its first boot:\n"
		"user=NAME is the image's default user by that name, ssh-key=FILE (a public one; "
		"again and again) may log in as it, and\n"
		"so may viv ssh; password-file=FILE or password=TEXT, hostname=NAME, "
		"packages=A+B and package=NAME, which are installed.\n\n"
		"--cpu-limit, --mem-limit and --io-limit need a control group (cgroup v2) that is "
		"delegated to you: systemd-run --user\n"
		"--scope -p Delegate=yes viv run ...; viv doctor says what there is. Without it "
		"--disk FILE,bps=50M limits what a guest\n"
		"reads and writes, and --cpus how many processors it uses.\n\n"
		"--iommu intel puts every PCI device behind an Intel VT-d unit; Linux uses it with "
		"--append "
		"intel_iommu=on.\n"
		"There is no memory balloon then: it is about physical pages.\n\n"
		"With a command, the machine boots, runs it through the guest agent, prints its "
		"output, and the exit\n"
		"status is the command's.",
	.opts = run_opts,
	.max_args = 1,
	.takes_command = true,
};

/* ---- options to configuration ---- */

static int absolute(const char *path, char **out, struct error *err)
{
	char *full;

	if (!path)
		return 0;
	full = realpath(path, NULL);
	if (!full)
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	free(*out);
	*out = full;
	return 0;
}

struct disk_args {
	char path[8200], format[16];
	bool is_readonly, is_snapshot, use_direct;
	uint64_t bps, iops;
	struct {
		char *v[VMCONFIG_MAX_BACKING];
		unsigned n;
	} backing;
};

/* One part of --disk after the file. */
static int disk_option(struct disk_args *d, const char *key, const char *value, struct error *err)
{
	if (!value && strcmp(key, "ro") == 0)
		d->is_readonly = true;
	else if (!value && strcmp(key, "snapshot") == 0)
		d->is_snapshot = true;
	else if (!value && strcmp(key, "direct") == 0)
		d->use_direct = true;
	else if (value && strcmp(key, "format") == 0 && strlen(value) < sizeof(d->format))
		snprintf(d->format, sizeof(d->format), "%s", value);
	else if (value && strcmp(key, "bps") == 0 && opts_parse_size(value, &d->bps) == 0)
		return 0;
	else if (value && strcmp(key, "iops") == 0 && opts_parse_uint(value, &d->iops) == 0)
		return 0;
	else if (value && strcmp(key, "backing") == 0 && d->backing.n < VMCONFIG_MAX_BACKING)
		return absolute(value, &d->backing.v[d->backing.n++], err);
	else
		return error_set(err, -EINVAL,
				 "\"%s\" is none of ro, snapshot, direct, format=raw, "
				 "format=qcow2, backing=FILE, "
				 "bps=SIZE, iops=N",
				 key);
	return 0;
}

static int parse_disk(struct disk_args *d, const char *spec, struct error *err)
{
	char key[4096];
	const char *cursor = spec, *value;
	bool is_first = true;
	int r;

	while ((r = opts_subvalue(&cursor, key, sizeof(key), &value)) > 0) {
		if (is_first)
			snprintf(d->path, sizeof(d->path), "%s%s%s", key, value ? "=" : "",
				 value ? value : "");
		else if ((r = disk_option(d, key, value, err)) < 0)
			return r;
		is_first = false;
	}
	return r < 0 || !d->path[0] ? error_set(err, -EINVAL, "it names no file") : 0;
}

static int add_disk(struct vmconfig *c, const char *spec, struct error *err)
{
	struct disk_args d = { .format = "" };
	_cleanup_free_ char *full = NULL;
	int r = parse_disk(&d, spec, err);

	if (r < 0)
		error_prefix(err, "--disk %s", spec);
	/* By the name, which no guest can change; never by what the file says of itself. */
	const char *dot = strrchr(d.path, '.');
	if (!d.format[0])
		snprintf(d.format, sizeof(d.format), "%s",
			 dot && strcmp(dot, ".qcow2") == 0 ? "qcow2" : "raw");
	if (r == 0)
		r = absolute(d.path, &full, err);
	if (r == 0)
		r = vmconfig_add_disk(c, full, d.format, d.is_readonly, d.is_snapshot, err);
	if (r == 0) {
		struct vmconfig_disk *disk = &c->disks[c->ndisks - 1];
		disk->use_direct = d.use_direct;
		disk->max_bytes_per_s = d.bps;
		disk->max_ops_per_s = d.iops;
	}
	for (unsigned i = 0; i < d.backing.n; i++) {
		if (r == 0)
			r = vmconfig_allow_backing(c, d.backing.v[i], err);
		free(d.backing.v[i]);
	}
	return r;
}

/* Kernel, initrd and command line of the image, unless given; its disk comes first. */
static int use_image(struct vmconfig *c, const struct args *a, const struct image *im, struct error *err)
{
	_cleanup_free_ char *append = NULL;
	int r = 0;

	if (!a->kernel && !a->firmware && im->kernel) {
		r = vmconfig_set(&c->kernel, im->kernel, err);
		if (r == 0 && !a->initrd)
			r = vmconfig_set(&c->initrd, im->initrd, err);
		append = paths_format(err, "%s%s%s", im->append, a->append ? " " : "",
				      a->append ? a->append : "");
		if (r == 0)
			r = append ? vmconfig_set(&c->append, append, err) : -ENOMEM;
	}
	c->has_agent = im->has_agent;
	c->uses_virtio_console = im->uses_virtio_console;
	return r;
}

/* Whether it can serve on this host is for the machine to find out. */
int run_check_engine(const char *name, struct error *err)
{
	bool is_known = strcmp(name, "auto") == 0;

	for (unsigned i = 0; engines[i]; i++)
		is_known |= strcmp(name, engines[i]->name) == 0;
	return is_known ? 0
			: error_set(err, -EINVAL,
				    "there is no engine \"%s\"; --engine takes auto, kvm or dbt", name);
}

int run_check_net(const char *net, struct error *err)
{
	struct tap_name name;

	if (strcmp(net, "nat") == 0 || strcmp(net, "none") == 0 || strncmp(net, "lab:", 4) == 0)
		return 0;
	if (strncmp(net, "tap:", 4) == 0 || strncmp(net, "bridge:", 7) == 0)
		return tap_parse(net, &name, err);
	return error_set(err, -EINVAL,
			 "there is no network \"%s\"; there are nat, none, "
			 "lab:LAB:NETWORK,NETWORK, and tap:NAME and bridge:NAME for "
			 "who has the rights of root",
			 net);
}

static int set_strings(struct vmconfig *c, const struct args *a, bool has_image, struct error *err)
{
	int r = absolute(a->kernel, &c->kernel, err);

	if (r == 0)
		r = absolute(a->initrd, &c->initrd, err);
	if (r == 0)
		r = absolute(a->firmware, &c->firmware, err);
	if (r == 0 && a->append)
		r = vmconfig_set(&c->append, a->append, err);
	if (r == 0 && a->engine)
		r = run_check_engine(a->engine, err);
	if (r == 0 && a->engine)
		r = vmconfig_set(&c->engine, a->engine, err);
	if (r == 0 && a->cpu)
		r = vmconfig_set(&c->cpu, a->cpu, err);
	if (r == 0)
		r = vmconfig_set(&c->net,
				 a->net							 ? a->net
				 : has_image || a->forwards.n || seed_is_asked(&a->seed) ? "nat"
											 : "none",
				 err);
	if (r == 0)
		r = run_check_net(c->net, err);
	if (r == 0 && a->forwards.n && strcmp(c->net, "nat") != 0)
		r = error_set(err, -EINVAL, "--forward needs --net nat");
	return r;
}

static int set_devices(struct vmconfig *c, const struct args *a, struct error *err)
{
	if (a->iommu && strcmp(a->iommu, "intel") != 0 && strcmp(a->iommu, "none") != 0)
		return error_set(err, -EINVAL,
				 "there is no IOMMU \"%s\"; --iommu takes intel or none", a->iommu);
	c->has_iommu = a->iommu && strcmp(a->iommu, "intel") == 0;
	for (unsigned i = 0; i < a->devices.n; i++) {
		if (strcmp(a->devices.v[i], "edu") != 0)
			return error_set(err, -EINVAL, "there is no device \"%s\"; --device takes edu",
					 a->devices.v[i]);
		if (c->has_edu)
			return error_set(err, -EINVAL, "a machine has one device \"edu\" at most");
		c->has_edu = true;
	}
	return 0;
}

static int make_config(struct vmconfig *c, const struct args *a, const struct image *im,
		       const char *image_name, const struct opts_rest *rest, struct error *err)
{
	int r = a->name ? paths_check_name("a machine", a->name, err) : 0;

	if (r == 0)
		r = set_strings(c, a, im, err);
	if (r < 0)
		return r;
	c->cpus = a->cpus ? a->cpus : c->cpus;
	c->mem_bytes = ALIGN_DOWN(a->mem ? a->mem : c->mem_bytes, GUEST_PAGE_SIZE);
	c->check_every = a->check;
	c->no_reboot = a->no_reboot;
	c->is_strict = a->strict;
	c->use_interp_only = a->interp_only;
	c->is_counting = a->counting;
	r = set_devices(c, a, err);
	if (r == 0)
		r = limits_set(c, &a->limits, err);
	if (r == 0 && a->without)
		r = engine_parse_techniques(a->without, &c->without, err);
	if (r < 0)
		return r;
	r = vmconfig_set(&c->lab, a->lab, err);
	if (r < 0)
		return r;
	c->is_throwaway = a->rm || !a->name;
	c->has_agent = rest->command != NULL;
	if (im) {
		r = vmconfig_set(&c->image, image_name, err);
		if (r == 0)
			r = use_image(c, a, im, err);
	}
	for (unsigned i = 0; r == 0 && i < a->disks.n; i++)
		r = add_disk(c, a->disks.v[i], err);
	for (unsigned i = 0; r == 0 && i < a->shares.n; i++)
		r = share_add(c, a->shares.v[i], err);
	for (unsigned i = 0; r == 0 && i < a->forwards.n; i++) {
		struct netd_forward forward;

		r = netd_parse_forward(a->forwards.v[i], &forward, err);
		if (r == 0)
			r = vmconfig_add_forward(c, a->forwards.v[i], err);
	}
	return r == 0 ? vmconfig_new_mac(c, err) : r;
}

/* ---- the machine's directory ---- */

/* Returns the lock of the new machine. */
static int make_directory(struct vmconfig *c, const char *wanted, struct error *err)
{
	_cleanup_free_ char *vms = paths_data("vms", err);
	int r = vms ? paths_make(vms, err) : -ENOMEM;

	for (unsigned i = 0; r == 0 && i < 100; i++) {
		char name[32];
		uint32_t random = 0;

		if (getrandom(&random, sizeof(random), 0) != sizeof(random))
			return error_set(err, -EIO, "the host gives no random numbers");
		snprintf(name, sizeof(name), "vm-%06x", random & 0xffffff);
		r = vmconfig_set(&c->name, wanted ? wanted : name, err);
		_cleanup_free_ char *dir = r == 0 ? paths_vm(c->name, NULL, err) : NULL;

		if (!dir)
			return -ENOMEM;
		if (mkdir(dir, 0700) == 0) {
			r = vmlock_take(c->name, err);
			if (r != -ENOENT)
				return r;
			r = 0;
			continue; /* somebody removed it at once */
		}
		if (errno != EEXIST)
			return error_set(err, -errno, "cannot make %s: %s", dir, strerror(errno));
		if (wanted)
			return error_set(
				err, -EEXIST,
				"there is a machine \"%s\" already; viv start %s starts it, "
				"viv rm %s removes it",
				wanted, wanted, wanted);
	}
	return r < 0 ? r : error_set(err, -EEXIST, "found no free name for the machine");
}

/* The image's disk: a throw-away layer over it, or the machine's own copy. */
static int add_image_disk(struct vmconfig *c, const struct image *im, struct error *err)
{
	if (!im || !im->disk)
		return 0;
	if (c->is_throwaway)
		return vmconfig_add_disk(c, im->disk, im->disk_format, false, true, err);
	bool is_qcow2 = strcmp(im->disk_format, "qcow2") == 0;
	_cleanup_free_ char *own = paths_vm(c->name, is_qcow2 ? "disk.qcow2" : "disk.raw", err);
	int r = own ? image_copy_disk(im->disk, own, err) : -ENOMEM;

	return r < 0 ? r : vmconfig_add_disk(c, own, im->disk_format, false, false, err);
}

/* The image's disk is the first: the one its command line means. */
static void image_disk_first(struct vmconfig *c)
{
	struct vmconfig_disk last = c->disks[c->ndisks - 1];

	memmove(&c->disks[1], &c->disks[0], (c->ndisks - 1) * sizeof(c->disks[0]));
	c->disks[0] = last;
}

/* *@lock: receives the machine's. */
static int make_machine(struct vmconfig *c, const struct image *im, struct cloudinit *seed,
			const char *wanted, int *lock, struct error *err)
{
	int r = wanted ? paths_check_name("a machine", wanted, err) : 0;

	if (r == 0)
		r = make_directory(c, wanted, err);
	if (r < 0)
		return r;
	*lock = r;
	unsigned before = c->ndisks;

	r = add_image_disk(c, im, err);
	if (r == 0 && c->ndisks > before)
		image_disk_first(c);
	if (r == 0 && seed->is_wanted)
		r = seed_add(seed, c, wanted, err);
	if (r == 0)
		r = vmconfig_save(c, err);
	return r;
}

/* Under its lock. */
static void remove_machine(const struct vmconfig *c)
{
	struct error err;

	if (c->name && cli_remove_machine(c->name, &err) < 0)
		cli_note("%s", err.text);
}

/* Its process was killed, and did not do it; unless somebody was faster, and perhaps made another one. */
static void remove_leftover(const struct vmconfig *c)
{
	_cleanup_free_ char *dir = paths_vm(c->name, NULL, NULL);
	struct vmconfig now;

	if (!dir || access(dir, F_OK) < 0)
		return;
	_cleanup_close_ int lock = vmlock_take(c->name, NULL);

	if (lock >= 0 && vmconfig_init(&now, NULL) == 0 && vmconfig_load(&now, c->name, NULL) == 0 &&
	    now.mac && c->mac && strcmp(now.mac, c->mac) == 0)
		remove_machine(c);
	if (lock >= 0)
		vmconfig_free(&now);
}

/* ---- running ---- */

/* Gives *@lock away. */
static int start_and_tell(struct spawned *s, const struct vmconfig *c, int *lock,
			  const struct spawn_from *from, bool is_attached, struct error *err)
{
	char engine[256], reason[256];
	int r = spawn_machine(s, c, *lock, from, is_attached, err);

	if (r == 0)
		r = spawned_wait_ready(s, engine, reason, err);
	if (r == 0)
		cli_note("engine %s: %s", engine, reason);
	close(*lock);
	*lock = -1;
	if (r < 0)
		remove_leftover(c); /* made a moment ago, it never ran */
	return r;
}

static bool on_status(void *arg)
{
	return spawned_read(arg);
}

struct session {
	const struct vmconfig *c;
	struct spawned *s;
};

static bool session_status(void *arg)
{
	struct session *ses = arg;

	return on_status(ses->s);
}

/* Best effort: without it the guest keeps its old idea of the window. */
static void session_resize(void *arg, unsigned cols, unsigned rows)
{
	struct session *ses = arg;
	json_t *reply = NULL;

	if (ses->c->uses_virtio_console && client_request(ses->c->name,
							  json_pack("{s:s, s:i, s:i}", "cmd", "resize",
								    "cols", (int)cols, "rows", (int)rows),
							  1000, &reply, NULL) == 0)
		json_decref(reply);
}

static void quit_machine(const struct vmconfig *c)
{
	json_t *reply = NULL;

	/* It may end by itself at this very moment. */
	if (client_request(c->name, json_pack("{s:s}", "cmd", "quit"), CLIENT_TIMEOUT_MS, &reply,
			   NULL) == 0)
		json_decref(reply);
}

static int run_foreground(const struct vmconfig *c, int *lock, const struct spawn_from *from,
			  struct error *err)
{
	struct spawned s;
	struct session ses = { c, &s };
	struct bridge b = { .on_also = session_status, .on_resize = session_resize, .arg = &ses };
	int sig = 0;
	int r = start_and_tell(&s, c, lock, from, true, err);

	if (r < 0) {
		spawned_free(&s);
		return cli_fail(err);
	}
	if (isatty(STDIN_FILENO))
		cli_note("Ctrl-] ends the machine%s",
			 c->is_throwaway && c->image
				 ? "; what it writes to its disk is thrown away (--name keeps it)"
				 : "");
	r = terminal_raw(err);
	if (r < 0) {
		cli_fail(err);
	} else {
		b.console_fd = s.console_fd;
		b.also_fd = s.status_fd;
		r = terminal_bridge(&b, &sig, err);
	}
	if (r == BRIDGE_ESCAPE || r == BRIDGE_SIGNAL || r < 0)
		quit_machine(c);
	terminal_restore();
	if (r < 0)
		cli_fail(err);
	int status = spawned_finish(&s, err);

	spawned_free(&s);
	if (r == BRIDGE_ESCAPE)
		fprintf(stderr, "\n");
	cli_note("%s", err->text);
	return r == BRIDGE_SIGNAL ? 128 + sig : r < 0 ? EXIT_FAILED : status;
}

static int run_detached(const struct vmconfig *c, int *lock, const struct spawn_from *from,
			struct error *err)
{
	struct spawned s;
	int r = start_and_tell(&s, c, lock, from, false, err);

	spawned_free(&s);
	if (r < 0)
		return cli_fail(err);
	printf("%s\n", c->name);
	return EXIT_FINE;
}

/* ---- one command ---- */

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* Keeps the last bytes of the console, for the case that the guest never gets to its agent. */
struct tail {
	char text[CONSOLE_TAIL];
	size_t len;
};

static void read_tail(struct tail *t, int fd)
{
	char buf[4096];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
		size_t take = MIN((size_t)n, sizeof(t->text)),
		       keep = MIN(t->len, sizeof(t->text) - take);

		memmove(t->text, t->text + t->len - keep, keep);
		memcpy(t->text + keep, buf + n - take, take);
		t->len = keep + take;
	}
}

/* Guests print anything: what could steer the terminal is left out. */
static void print_tail(const struct tail *t)
{
	fprintf(stderr, "---- the console's end:\n");
	for (size_t i = 0; i < t->len; i++) {
		unsigned char c = (unsigned char)t->text[i];

		if (c == '\n' || c == '\t' || (c >= ' ' && c != 0x7f))
			fputc(c, stderr);
	}
	fprintf(stderr, "\n----\n");
}

static int wait_agent(const struct vmconfig *c, struct spawned *s, int64_t timeout_ns,
		      struct tail *t, struct error *err)
{
	int64_t end_ms = now_ms() + timeout_ns / 1000000;
	struct progress p;
	int r, fd = client_connect(c->name, err);

	if (fd < 0)
		return fd;
	progress_start(&p, "booting");
	for (;;) {
		json_t *reply = NULL;

		r = client_call(fd, json_pack("{s:s, s:i}", "cmd", "agent", "timeout_ms", 500),
				30000, &reply, err);
		json_decref(reply);
		read_tail(t, s->console_fd);
		progress_tick(&p, -1);
		if (r != -EREMOTEIO)
			break; /* it answers, or the machine ended */
		if (now_ms() >= end_ms) {
			r = error_set(err, -ETIMEDOUT, "the guest agent did not answer in %lld s",
				      (long long)(timeout_ns / 1000000000));
			break;
		}
	}
	progress_end(&p);
	close(fd);
	return r;
}

static bool is_disposable(const struct vmconfig *c)
{
	for (unsigned i = 0; i < c->ndisks; i++) {
		if (!c->disks[i].is_readonly && !c->disks[i].is_snapshot)
			return false;
	}
	return true;
}

/* A machine that wrote to real disks is switched off in order. */
static void end_machine(const struct vmconfig *c, struct spawned *s)
{
	struct error err;
	json_t *reply = NULL;

	if (is_disposable(c)) {
		quit_machine(c);
	} else if (client_request(c->name,
				  json_pack("{s:s, s:i}", "cmd", "stop", "timeout_ms", STOP_TIMEOUT_MS),
				  CLIENT_TIMEOUT_MS, &reply, &err) == 0) {
		json_decref(reply);
	}
	while (spawned_read(s))
		continue;
}

static int run_command(const struct vmconfig *c, int *lock, const struct spawn_from *from,
		       const struct args *a, char **command, struct error *err)
{
	struct tail tail = { .len = 0 };
	struct spawned s;
	json_t *reply = NULL;
	int status = EXIT_FAILED;
	json_t *request = cli_exec_request(command, a->with_input, err);
	int r = request ? start_and_tell(&s, c, lock, from, true, err) : -EINVAL;

	if (r < 0) {
		if (request)
			spawned_free(&s);
		json_decref(request);
		return cli_fail(err);
	}
	r = wait_agent(c, &s, a->boot_timeout, &tail, err);
	if (r < 0) {
		json_decref(request);
		read_tail(&tail, s.console_fd);
		cli_note("%s", err->text);
		print_tail(&tail);
	} else if (client_request(c->name, request, -1, &reply, err) < 0 ||
		   cli_decode(reply, "out-data", STDOUT_FILENO, err) < 0 ||
		   cli_decode(reply, "err-data", STDERR_FILENO, err) < 0) {
		cli_fail(err);
	} else {
		status = cli_command_status(reply);
	}
	json_decref(reply);
	end_machine(c, &s);
	spawned_finish(&s, err);
	spawned_free(&s);
	return status;
}

/* The machine's directory is complete. */
static int run_made(struct vmconfig *c, int *lock, const struct spawn_from *from,
		    const struct args *a, const struct opts_rest *rest, struct error *err)
{
	int status;

	if (rest->command)
		status = run_command(c, lock, from, a, rest->command, err);
	else if (a->detach)
		status = run_detached(c, lock, from, err);
	else
		status = run_foreground(c, lock, from, err);
	/* The machine's process removes its files itself; this is for one that was killed. */
	if (c->is_throwaway && !a->detach)
		remove_leftover(c);
	return status;
}

/* @store: the image store's lock, which is given back once the machine has what it needs from there. */
static int run_config(struct vmconfig *c, const struct args *a, const struct opts_rest *rest,
		      const struct image *im, struct cloudinit *seed, int *store, struct error *err)
{
	_cleanup_close_ int lock = -1;
	int r = make_machine(c, im, seed, a->name, &lock, err);

	if (*store >= 0)
		close(*store);
	*store = -1;

	if (r < 0) {
		/* A directory that was there before us is not ours to remove. */
		if (lock >= 0)
			remove_machine(c);
		return cli_fail(err);
	}
	return run_made(c, &lock, NULL, a, rest, err);
}

/* ---- from a snapshot ---- */

/* What the machine is made of is the snapshot's matter. */
static int check_from(const struct args *a, const char *image, struct error *err)
{
	if (image || a->cpu || a->kernel || a->initrd || a->append || a->firmware || a->cpus ||
	    a->mem || a->disks.n || a->without || a->iommu || a->devices.n || seed_is_asked(&a->seed))
		return error_set(err, -EINVAL,
				 "with --from the snapshot says what the machine is made of; "
				 "besides it there are "
				 "--name, --rm, --detach, --engine, --net, --forward, --share, "
				 "--cpu-limit, --mem-limit, --io-limit, --prefault, --skip-time");
	return a->net ? run_check_net(a->net, err) : 0;
}

static int make_from(struct vmconfig *c, const struct args *a, const struct snapshot_info *info,
		     int *lock, struct error *err)
{
	int r = a->name ? paths_check_name("a machine", a->name, err) : 0;

	if (r == 0 && a->engine)
		r = run_check_engine(a->engine, err);
	if (r == 0)
		r = make_directory(c, a->name, err);
	if (r < 0)
		return r;
	*lock = r;
	r = snapshot_instantiate(info, c, a->net, a->rm || !a->name, err);
	if (r == 0)
		r = limits_set(c, &a->limits, err);
	if (r == 0 && a->engine)
		r = vmconfig_set(&c->engine, a->engine, err);
	for (unsigned i = 0; r == 0 && i < a->forwards.n; i++)
		r = vmconfig_add_forward(c, a->forwards.v[i], err);
	for (unsigned i = 0; r == 0 && i < a->shares.n; i++)
		r = share_give(c, a->shares.v[i], err);
	if (r == 0)
		r = share_check(c, err);
	if (r == 0)
		r = vmconfig_new_mac(c, err);
	if (r == 0)
		r = vmconfig_save(c, err);
	if (r < 0)
		remove_machine(c);
	return r;
}

static int run_from(const struct args *a, const char *image, const struct opts_rest *rest,
		    struct error *err)
{
	const char *at = strchr(a->from, '@');
	_cleanup_free_ char *vm = at ? strndup(a->from, (size_t)(at - a->from)) : NULL;
	struct spawn_from from = { .is_prefault = a->prefault, .skips_time = a->skip_time };
	struct snapshot_info info;
	struct vmconfig c;
	_cleanup_close_ int lock = -1;
	int r = at ? check_from(a, image, err)
		   : error_set(err, -EINVAL, "--from takes MACHINE@SNAPSHOT");

	if (r < 0)
		return cli_usage(&cli_run_cmd, err);
	r = vm ? snapstore_load(&info, vm, at + 1, err) : error_set(err, -ENOMEM, "no memory");
	if (r < 0)
		return cli_fail(err);
	r = vmconfig_init(&c, err);
	if (r == 0)
		r = make_from(&c, a, &info, &lock, err);
	from.snapshot = info.name;
	int status = r < 0 ? cli_fail(err) : run_made(&c, &lock, &from, a, rest, err);

	vmconfig_free(&c);
	snapshot_info_free(&info);
	return status;
}

int cli_run(int argc, char **argv)
{
	return cli_run_in_lab(NULL, argc, argv);
}

static int run_new(const struct args *a, const char *image, const struct opts_rest *rest,
		   struct error *err)
{
	struct cloudinit seed = { 0 };
	struct image im = { 0 };
	struct vmconfig c;
	_cleanup_close_ int store = -1;
	int status, r = vmconfig_init(&c, err);

	if (r == 0 && image) {
		store = store_lock(false, err);
		r = store < 0 ? store : image_load(&im, image, err);
	}
	if (r < 0) {
		status = cli_fail(err);
	} else {
		r = seed_read(&seed, &a->seed, err);
		if (r == 0)
			r = make_config(&c, a, image ? &im : NULL, image, rest, err);
		status = r == 0 ? run_config(&c, a, rest, image ? &im : NULL, &seed, &store, err)
			 : r == -EINVAL ? cli_usage(&cli_run_cmd, err)
					: cli_fail(err);
	}
	cloudinit_free(&seed);
	vmconfig_free(&c);
	image_free(&im);
	return status;
}

int cli_run_in_lab(const char *lab, int argc, char **argv)
{
	struct args a = { .lab = lab, .boot_timeout = 300LL * 1000000000 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_run_cmd, argc, argv, &a, &rest, &status))
		return status;
	const char *image = rest.nargs ? rest.args[0] : NULL;

	cli_collect();
	if (rest.command && (!rest.ncommand || a.detach)) {
		error_set(&err, -EINVAL,
			  rest.ncommand ? "--detach and a command exclude each other"
					: "the command after -- is missing");
		status = cli_usage(&cli_run_cmd, &err);
	} else if (a.from) {
		status = run_from(&a, image, &rest, &err);
	} else {
		status = run_new(&a, image, &rest, &err);
	}
	opts_free(&cli_run_cmd, &a, &rest);
	return status;
}
