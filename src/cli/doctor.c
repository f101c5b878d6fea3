/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv doctor`: what this host offers, measured rather than guessed, and what is missing.  One row a check;
 * each tries the thing itself.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "block/uring.h"
#include "cli/attack.h"
#include "cli/cli.h"
#include "ctl/cgroup.h"
#include "ctl/confine.h"
#include "ctl/paths.h"
#include "engine/pick.h"

struct args {
	bool json, attack;
};
static const struct opt doctor_opts[] = {
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_FLAG(struct args, attack,
		 "attack", "try what a confined machine could do to this host if its guest had taken it over"),
	OPT_END,
};
const struct opts_cmd cli_doctor_cmd = {
	.name = "viv doctor",
	.usage = "",
	.summary = "show what this host offers and what is missing",
	.details = "The exit status is 0 if machines can run here; with --attack, if all that was "
		   "tried failed.",
	.opts = doctor_opts,
};

enum verdict { GOOD, NOTE, BAD }; /* BAD: something that is wanted is missing */
struct finding {
	enum verdict verdict;
	char text[320];
};

static void say(struct finding *f, enum verdict v, const char *fmt, ...) _printf_(3, 4);
static void say(struct finding *f, enum verdict v, const char *fmt, ...)
{
	va_list ap;

	f->verdict = v;
	va_start(ap, fmt);
	vsnprintf(f->text, sizeof(f->text), fmt, ap);
	va_end(ap);
}

/* ---- CPU ---- */

static bool cpuid_bit(unsigned leaf, unsigned subleaf, unsigned reg, unsigned bit)
{
	unsigned r[4] = { 0 };

	return __get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}

static void check_avx2(struct finding *f)
{
	if (__builtin_cpu_supports("avx2"))
		say(f, GOOD, "yes");
	else
		say(f, NOTE, "no: guests see x86-64-v2 at most");
}

static void check_bmi2(struct finding *f)
{
	if (__builtin_cpu_supports("bmi2"))
		say(f, GOOD, "yes");
	else
		say(f, NOTE, "no: the translator uses longer address checks");
}

static void check_fsgsbase(struct finding *f)
{
	/* HWCAP2 bit 1: the kernel allows the instructions in user space. */
	if (getauxval(AT_HWCAP2) & 2)
		say(f, GOOD, "yes");
	else if (cpuid_bit(7, 0, 1, 0))
		say(f, NOTE, "the CPU has it, but the kernel forbids it to programs (Linux before 5.9?)");
	else
		say(f, NOTE, "no");
}

static void check_virtualization(struct finding *f)
{
	if (cpuid_bit(1, 0, 2, 5))
		say(f, GOOD, "VMX");
	else if (cpuid_bit(0x80000001, 0, 2, 2))
		say(f, GOOD, "SVM");
	else
		say(f, NOTE, "none: the dbt engine does not need it");
}

/* ---- kernel ---- */

/* What must be tried in a process of its own: 0, or an errno. */
static int try_in_child(int (*fn)(void))
{
	int status = 0;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return errno;
	if (pid == 0)
		_exit(fn() < 0 ? errno & 127 : 0);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

static int do_userns(void)
{
	return unshare(CLONE_NEWUSER | CLONE_NEWNET);
}

static void check_userns(struct finding *f)
{
	int e = try_in_child(do_userns);

	if (e == 0)
		say(f, GOOD, "yes");
	else
		say(f, NOTE, "no (%s): images cannot be built without root; sysctl kernel.unprivileged_userns_clone",
		    strerror(e));
}

static int do_seccomp(void)
{
	uint32_t action = SECCOMP_RET_KILL_PROCESS;

	return (int)syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
}

static void check_seccomp(struct finding *f)
{
	if (do_seccomp() == 0)
		say(f, GOOD, "yes");
	else
		say(f, NOTE, "no (%s)", strerror(errno));
}

static void check_landlock(struct finding *f)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	if (abi > 0)
		say(f, GOOD, "ABI %ld", abi);
	else
		say(f, NOTE, "no (%s)", strerror(errno));
}

/* The thing itself: a process that becomes one, and ends. */
static void try_confinement(int fd)
{
	const int none[] = { -1 };
	char text[CONFINE_TEXT];
	struct confine c;
	struct error err;
	int r = confine_split(&c, none, false, &err);

	if (r == CONFINE_MACHINE)
		_exit(confine_await(c.root_fd, &err) < 0);
	if (r == 0) {
		close(c.door);
		confine_describe(&c, text);
		r = confine_wait(&c) == 0 ? 0 : -EIO;
	} else {
		snprintf(text, sizeof(text), "%.200s", err.text);
	}
	(void)!write(fd, text, strlen(text));
	_exit(r != 0 ? 2 : !c.has_namespaces || !c.landlock_abi);
}

static void check_confinement(struct finding *f)
{
	char text[CONFINE_TEXT] = "";
	int fds[2], status = 0;

	if (!confine_is_wanted()) {
		say(f, NOTE, "machines are not confined: " CONFINE_VARIABLE "=off");
		return;
	}
	pid_t pid = pipe2(fds, O_CLOEXEC) < 0 ? -1 : fork();

	if (pid == 0)
		try_confinement(fds[1]);
	if (pid < 0) {
		say(f, NOTE, "could not be tried: %s", strerror(errno));
		return;
	}
	close(fds[1]);
	ssize_t n = read(fds[0], text, sizeof(text) - 1);

	text[n > 0 ? n : 0] = 0;
	close(fds[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (WIFEXITED(status) && WEXITSTATUS(status) < 2)
		say(f, WEXITSTATUS(status) ? NOTE : GOOD, "machines have %s", text);
	else
		say(f, BAD, "machines can't be confined: %s; " CONFINE_VARIABLE "=off runs them with your rights",
		    text[0] ? text : "the process was killed");
}

static void check_io_uring(struct finding *f)
{
	uint8_t params[120] = { 0 }; /* struct io_uring_params */
	int fd = (int)syscall(SYS_io_uring_setup, 1, params), host_errno = errno;
	struct uring *u = NULL;
	int r = uring_create(&u);

	if (fd >= 0)
		close(fd);
	uring_destroy(u);
	if (r == 0)
		say(f, GOOD, "yes: raw disks use it, others a thread pool");
	else if (fd >= 0)
		say(f, NOTE, "yes, but this viv does not (%s): disks use a thread pool",
		    r == -ENOSYS ? "built without liburing" : strerror(-r));
	else
		say(f, NOTE, "no (%s): disks use a thread pool", strerror(host_errno));
}

static void check_userfaultfd(struct finding *f)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);

	if (fd >= 0) {
		close(fd);
		say(f, GOOD, "yes");
	} else if (access("/dev/userfaultfd", R_OK | W_OK) == 0) {
		say(f, GOOD, "by /dev/userfaultfd");
	} else {
		say(f, NOTE, "no (%s)", strerror(errno));
	}
}

static void check_huge_pages(struct finding *f)
{
	_cleanup_free_ char *text = NULL;
	FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
	char line[128] = "";

	if (file && fgets(line, sizeof(line), file)) {
		char *start = strchr(line, '['), *end = strchr(line, ']');

		if (start && end && end > start)
			text = strndup(start + 1, (size_t)(end - start - 1));
	}
	if (file)
		fclose(file);
	if (text && strcmp(text, "never") != 0)
		say(f, GOOD, "transparent, %s", text);
	else
		say(f, NOTE, "no: memory access of guests is slower");
}

static void check_cgroup2(struct finding *f)
{
	char why[256];
	unsigned offered = cgroup_offered(why);

	if (!*why)
		say(f, GOOD, "v2: --cpu-limit, --mem-limit, --io-limit");
	else if (!offered)
		say(f, NOTE, "%s", why);
	else
		say(f, NOTE, "v2:%s%s%s; %s", offered & CGROUP_CPU ? " --cpu-limit" : "",
		    offered & CGROUP_MEMORY ? " --mem-limit" : "",
		    offered & CGROUP_IO ? " --io-limit" : "", why);
}

static void check_memfd_exec(struct finding *f)
{
	int fd = memfd_create("viv-doctor", MFD_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, 4096) == 0)
		p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (p != MAP_FAILED) {
		munmap(p, 4096);
		say(f, GOOD, "yes");
	} else {
		say(f, BAD, "no (%s): the dbt engine cannot work", strerror(errno));
	}
	if (fd >= 0)
		close(fd);
}

/* ---- room ---- */

static void check_disk(struct finding *f)
{
	struct error err;
	_cleanup_free_ char *path = paths_data("", &err);
	struct statvfs sv;

	/* The nearest directory that is there already. */
	while (path && statvfs(path, &sv) < 0) {
		char *slash = strrchr(path, '/');

		if (!slash || errno != ENOENT)
			break;
		*(slash == path ? slash + 1 : slash) = 0;
	}
	if (!path || statvfs(path, &sv) < 0) {
		say(f, BAD, "cannot look at %s: %s", path ? path : "the data directory", strerror(errno));
		return;
	}
	unsigned long long mib = (unsigned long long)sv.f_bavail * sv.f_frsize / (1024 * 1024);

	say(f, mib >= 2048 ? GOOD : NOTE, "%llu MiB free at %s%s", mib, path,
	    mib >= 2048 ? "" : ": building an image needs 2048");
}

static bool has_tool(const char *name)
{
	const char *path = getenv("PATH");

	path = path ? path : "/usr/bin:/bin";
	while (*path) {
		size_t len = strcspn(path, ":");
		char file[4096];

		snprintf(file, sizeof(file), "%.*s/%s", (int)MIN(len, (size_t)3800), path, name);
		if (access(file, X_OK) == 0)
			return true;
		path += len + (path[len] == ':');
	}
	return false;
}

static void check_tools(struct finding *f)
{
	static const struct {
		const char *tool, *package;
	} tools[] = { { "mmdebstrap", "mmdebstrap" },
		      { "mke2fs", "e2fsprogs" },
		      { "cpio", "cpio" },
		      { "qemu-img", "qemu-utils" } };
	char missing[200] = "";
	size_t at = 0;

	for (size_t i = 0; i < ARRAY_SIZE(tools); i++) {
		char sbin[64];

		snprintf(sbin, sizeof(sbin), "/usr/sbin/%s", tools[i].tool);
		if (!has_tool(tools[i].tool) && access(sbin, X_OK) < 0)
			at += (size_t)snprintf(missing + at, sizeof(missing) - at, "%s%s",
					       at ? " " : "", tools[i].package);
	}
	if (at)
		say(f, NOTE, "missing for images: apt install %s", missing);
	else
		say(f, GOOD, "mmdebstrap, mke2fs, cpio, qemu-img");
}

static void check_firmware(struct finding *f)
{
	if (access("/usr/share/seabios/bios-256k.bin", R_OK) == 0)
		say(f, GOOD, "SeaBIOS");
	else
		say(f, NOTE, "missing for booting from disks: apt install seabios");
}

// clang-format off
static const struct {
	const char *key, *label;
	void (*check)(struct finding *f);
} checks[] = {
	{ "virtualization", "hardware virtualization", check_virtualization },
	{ "avx2",           "AVX2",                    check_avx2 },
	{ "bmi2",           "BMI2",                    check_bmi2 },
	{ "fsgsbase",       "FSGSBASE",                check_fsgsbase },
	{ "memfd_exec",     "executable memory",       check_memfd_exec },
	{ "userns",         "user namespaces",         check_userns },
	{ "seccomp",        "seccomp",                 check_seccomp },
	{ "landlock",       "Landlock",                check_landlock },
	{ "confinement",    "confinement",             check_confinement },
	{ "io_uring",       "io_uring",                check_io_uring },
	{ "userfaultfd",    "userfaultfd",             check_userfaultfd },
	{ "huge_pages",     "huge pages",              check_huge_pages },
	{ "cgroup",         "cgroup",                  check_cgroup2 },
	{ "disk",           "disk space",              check_disk },
	{ "firmware",       "firmware",                check_firmware },
	{ "tools",          "tools",                   check_tools },
};
// clang-format on

static json_t *engines_json(const char **chosen, char reason[256], struct error *err)
{
	json_t *list = json_array();

	for (const struct engine_ops *const *e = engines; *e; e++) {
		struct engine_probe p = { 0 };

		(*e)->probe(&p);
		(void)json_array_append_new(list, json_pack("{s:s, s:b, s:f, s:s}", "name",
							    (*e)->name, "usable", p.is_usable,
							    "mips", p.mips, "reason", p.reason));
	}
	const struct engine_ops *ops = engine_pick("auto", reason, err);

	*chosen = ops ? ops->name : NULL;
	return list;
}

static void print_row(enum verdict v, const char *label, const char *text)
{
	static const char *const marks[] = { "ok  ", "note", "BAD " };

	printf("%s  %-24s %s\n", marks[v], label, text);
}

static void print_engines(json_t *list, const char *chosen, const char *reason)
{
	size_t i;
	json_t *e;

	json_array_foreach(list, i, e)
	{
		bool is_usable = json_is_true(json_object_get(e, "usable"));
		double mips = json_real_value(json_object_get(e, "mips"));
		char label[64], text[400], speed[48] = "";

		snprintf(label, sizeof(label), "engine %s",
			 json_string_value(json_object_get(e, "name")));
		if (mips > 0)
			snprintf(speed, sizeof(speed), "%.*f million instructions a second; ",
				 mips < 10 ? 1 : 0, mips);
		snprintf(text, sizeof(text), "%s%s", speed,
			 json_string_value(json_object_get(e, "reason")));
		print_row(is_usable ? GOOD : NOTE, label, text);
	}
	if (chosen)
		printf("ok    --engine auto takes      %s: %s\n", chosen, reason);
	else
		printf("BAD   --engine auto takes      none\n");
}

static int doctor(const struct args *a)
{
	char reason[256] = "";
	struct error err = { "" };
	const char *chosen;
	json_t *engine_list = engines_json(&chosen, reason, &err), *json = json_object();
	bool is_fine = chosen;

	if (!a->json)
		print_engines(engine_list, chosen, reason);
	for (size_t i = 0; i < ARRAY_SIZE(checks); i++) {
		struct finding f;

		checks[i].check(&f);
		is_fine = is_fine && f.verdict != BAD;
		if (!a->json)
			print_row(f.verdict, checks[i].label, f.text);
		(void)json_object_set_new(
			json, checks[i].key,
			json_pack("{s:b, s:s}", "ok", f.verdict == GOOD, "text", f.text));
	}
	if (a->json) {
		int status = cli_print_json(json_pack(
			"{s:b, s:s?, s:s, s:o, s:o}", "ok", is_fine, "engine", chosen, "reason",
			chosen ? reason : err.text, "engines", engine_list, "checks", json));

		return status == EXIT_FINE && !is_fine ? EXIT_FAILED : status;
	}
	json_decref(engine_list);
	json_decref(json);
	return is_fine ? EXIT_FINE : EXIT_FAILED;
}

int cli_doctor(int argc, char **argv)
{
	struct args a = { 0 };
	struct opts_rest rest;
	int status;

	if (!cli_parse(&cli_doctor_cmd, argc, argv, &a, &rest, &status))
		return status;
	opts_free(&cli_doctor_cmd, &a, &rest);
	return a.attack ? attack_run(a.json) : doctor(&a);
}
