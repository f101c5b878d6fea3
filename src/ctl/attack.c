/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/attack_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/host.h"
#include "ctl/confine.h"

#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

/* Each returns a result that is not negative when it succeeded, else -1 with errno. */
typedef long (*try_fn)(const struct attack_target *t);

/* ---- files ---- */

static long read_password_file(const struct attack_target *t)
{
	return open("/etc/passwd", O_RDONLY);
}

static long read_by_syscall(const struct attack_target *t)
{
	return syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", &(uint64_t[3]){ O_RDONLY, 0, 0 }, 24);
}

/* A descriptor of its folder, from the broker, and up from there. */
static long climb_out(const struct attack_target *t)
{
	int dir = host.open(t->folder, O_RDONLY | O_DIRECTORY, 0);

	return dir < 0 ? -1 : openat(dir, "../../../../../../etc/passwd", O_RDONLY);
}

static long write_in_folder_by_descriptor(const struct attack_target *t)
{
	int dir = host.open(t->folder, O_RDONLY | O_DIRECTORY, 0);

	return dir < 0 ? -1 : openat(dir, "planted", O_WRONLY | O_CREAT, 0600);
}

static long ask_for_password_file(const struct attack_target *t)
{
	return host.open("/etc/passwd", O_RDONLY, 0);
}

static long ask_beside_folder(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/../../../../../../etc/passwd", t->folder);
	return host.open(path, O_RDONLY, 0);
}

static long ask_for_victims_configuration(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/machine.json", t->victim);
	return host.open(path, O_RDONLY, 0);
}

static long ask_to_write_in_victims_folder(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/planted", t->victim);
	return host.open(path, O_WRONLY | O_CREAT, 0600);
}

static long ask_to_link_password_file(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/stolen", t->folder);
	return host.linkat(AT_FDCWD, "/etc/passwd", AT_FDCWD, path, 0);
}

/* A start that reads another kernel: the user's password file. */
static long change_configuration(const struct attack_target *t)
{
	char from[PATH_MAX], to[PATH_MAX];
	json_t *json = vmconfig_to_json(t->config);

	json_object_set_new(json, "kernel", json_string("/etc/passwd"));
	char *text = json_dumps(json, 0);

	snprintf(from, sizeof(from), "%s/other.json", t->folder);
	snprintf(to, sizeof(to), "%s/machine.json", t->folder);
	int fd = host.open(from, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (!text || fd < 0 || write(fd, text, strlen(text)) < 0)
		return -1;
	return host.renameat(AT_FDCWD, from, AT_FDCWD, to);
}

/* @disk, in its folder, as the machine's first disk. */
static long change_disk(const struct attack_target *t, const char *disk)
{
	char from[PATH_MAX], to[PATH_MAX];
	json_t *json = vmconfig_to_json(t->config),
	       *d = json_array_get(json_object_get(json, "disks"), 0);

	json_object_set_new(d, "path", json_string(disk));
	json_object_set_new(d, "format", json_string("raw"));
	char *text = json_dumps(json, 0);

	snprintf(from, sizeof(from), "%s/other.json", t->folder);
	snprintf(to, sizeof(to), "%s/machine.json", t->folder);
	int fd = host.open(from, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (!d || !text || fd < 0 || write(fd, text, strlen(text)) < 0)
		return -1;
	return host.renameat(AT_FDCWD, from, AT_FDCWD, to);
}

/* A start that writes to a file which this one may only read. */
static long make_kernel_a_disk(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/layer-0-stolen.raw", t->folder);
	if (host.linkat(AT_FDCWD, t->config->kernel, AT_FDCWD, path, 0) < 0 && errno != EEXIST)
		return -1;
	return change_disk(t, path);
}

/* The same in two steps: a file of its own becomes the disk, and the kernel takes its name. */
static long put_kernel_in_place_of_disk(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/layer-0-mine.raw", t->folder);
	if (host.open(path, O_RDWR | O_CREAT, 0600) < 0 || change_disk(t, path) < 0 ||
	    host.unlinkat(AT_FDCWD, path, 0) < 0)
		return -1;
	return host.linkat(AT_FDCWD, t->config->kernel, AT_FDCWD, path, 0);
}

static long write_kernel(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/linked", t->folder);
	if (host.linkat(AT_FDCWD, t->config->kernel, AT_FDCWD, path, 0) < 0 && errno != EEXIST)
		return -1;
	return host.open(path, O_RDWR, 0);
}

static long write_configuration(const struct attack_target *t)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/machine.json", t->folder);
	return host.open(path, O_WRONLY, 0);
}

static long ask_for_memory_device(const struct attack_target *t)
{
	return host.open("/dev/mem", O_RDONLY, 0);
}

static long open_by_handle(const struct attack_target *t)
{
	struct {
		unsigned bytes;
		int type;
		unsigned char h[8];
	} handle = { 8, 1, { 2 } };

	return syscall(SYS_open_by_handle_at, 0, &handle, O_RDONLY);
}

#ifdef HAVE_LIBURING
static long open_by_uring(const struct attack_target *t)
{
	struct io_uring ring;
	struct io_uring_cqe *cqe;
	int r = io_uring_queue_init(1, &ring, 0);
	struct io_uring_sqe *sqe = r == 0 ? io_uring_get_sqe(&ring) : NULL;

	if (!sqe) {
		errno = -r;
		return -1;
	}
	io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
	io_uring_submit(&ring);
	r = io_uring_wait_cqe(&ring, &cqe);
	if (r == 0)
		r = cqe->res;
	errno = r < 0 ? -r : 0;
	return r < 0 ? -1 : r;
}
#endif

/* ---- sockets ---- */

static long connect_tcp(const struct attack_target *t)
{
	struct sockaddr_in to = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)t->tcp_port),
				  .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static long raw_socket(const struct attack_target *t)
{
	return socket(AF_PACKET, SOCK_RAW, 0);
}

static long netlink_socket(const struct attack_target *t)
{
	return socket(AF_NETLINK, SOCK_RAW, 0);
}

static long connect_control_socket(const struct attack_target *t)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(to.sun_path, sizeof(to.sun_path), "%.100s", t->socket);
	return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static long ask_for_control_socket(const struct attack_target *t)
{
	return host.open(t->socket, O_RDWR, 0);
}

/* ---- other processes ---- */

static long signal_host_process(const struct attack_target *t)
{
	return kill(t->process, 0);
}

static long signal_all(const struct attack_target *t)
{
	return kill(-1, 0);
}

static long trace_host_process(const struct attack_target *t)
{
	return ptrace(PTRACE_ATTACH, t->process, 0, 0);
}

static long read_host_process(const struct attack_target *t)
{
	char byte;
	struct iovec here = { &byte, 1 }, there = { (void *)(uintptr_t)&environ, 1 };

	return process_vm_readv(t->process, &here, 1, &there, 1, 0);
}

static long descriptor_of_process(const struct attack_target *t)
{
	return syscall(SYS_pidfd_open, t->process, 0);
}

static long run_shell(const struct attack_target *t)
{
	return execve("/bin/sh", (char *[]){ "sh", "-c", "exit 0", NULL }, NULL);
}

static long run_memory(const struct attack_target *t)
{
	int fd = memfd_create("x", 0);

	if (write(fd, "#!/bin/true\n", 12) < 0)
		return -1;
	return syscall(SYS_execveat, fd, "", (char *[]){ "x", NULL }, NULL, AT_EMPTY_PATH);
}

/* ---- what it is ---- */

static long new_user_namespace(const struct attack_target *t)
{
	return unshare(CLONE_NEWUSER);
}

static long clone_namespace(const struct attack_target *t)
{
	return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
}

static long enter_namespace(const struct attack_target *t)
{
	return setns(0, 0);
}

static long mount_proc(const struct attack_target *t)
{
	return mount("proc", "/", "proc", 0, NULL);
}

static long change_root(const struct attack_target *t)
{
	return chroot("/");
}

static long become_root(const struct attack_target *t)
{
	return setuid(0) < 0 ? -1 : setgid(0);
}

static long gain_capabilities(const struct attack_target *t)
{
	struct {
		uint32_t version;
		int pid;
	} head = { 0x20080522, 0 };
	uint32_t all[6] = { ~0u, ~0u, ~0u, ~0u, ~0u, ~0u };

	return syscall(SYS_capset, &head, all);
}

static long become_dumpable(const struct attack_target *t)
{
	return prctl(PR_SET_DUMPABLE, 1);
}

static long add_filterless_thread(const struct attack_target *t)
{
	return prctl(PR_SET_SECCOMP, 0);
}

static long raise_limit(const struct attack_target *t)
{
	const uint64_t all[2] = { ~0ull, ~0ull };

	return syscall(SYS_prlimit64, t->process, 4 /* RLIMIT_CORE */, all, NULL);
}

/* ---- memory that is written and executed ---- */

static long anonymous_code(const struct attack_target *t)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	return p == MAP_FAILED ? -1 : 0;
}

static long stack_code(const struct attack_target *t)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static long writable_file_code(const struct attack_target *t)
{
	int fd = memfd_create("x", 0);

	if (ftruncate(fd, 4096) < 0)
		return -1;
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, fd, 0);

	return p == MAP_FAILED ? -1 : 0;
}

/* ---- the kernel ---- */

static long add_key_(const struct attack_target *t)
{
	return syscall(SYS_add_key, "user", "viv", "x", 1, -3 /* session */);
}

static long search_keyring(const struct attack_target *t)
{
	return syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3, 0);
}

static long load_bpf(const struct attack_target *t)
{
	uint64_t attr[16] = { 0 };

	return syscall(SYS_bpf, 0, attr, sizeof(attr));
}

static long count_events(const struct attack_target *t)
{
	uint64_t attr[16] = { 1 | ((uint64_t)sizeof(attr) << 32) };

	return syscall(SYS_perf_event_open, attr, t->process, -1, -1, 0);
}

static long handle_faults(const struct attack_target *t)
{
	return syscall(SYS_userfaultfd, 0);
}

static long load_module(const struct attack_target *t)
{
	return syscall(SYS_init_module, "", 0, "");
}

static long restart_host(const struct attack_target *t)
{
	return syscall(SYS_reboot, 0xfee1dead, 672274793, 0 /* ctrl-alt-del: off */, NULL);
}

static long set_clock(const struct attack_target *t)
{
	struct timeval now = { 1, 0 };

	return syscall(SYS_settimeofday, &now, NULL);
}

static long use_ports(const struct attack_target *t)
{
	return syscall(SYS_iopl, 3);
}

static long read_kernel_log(const struct attack_target *t)
{
	char buf[16];

	return syscall(SYS_syslog, 3, buf, sizeof(buf));
}

static long watch_files(const struct attack_target *t)
{
	return syscall(SYS_fanotify_init, 0, 0);
}

static long old_system_calls(const struct attack_target *t)
{
	long r;

	/* getpid by 32-bit code's number and door */
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(20L) : "r8", "r9", "r10", "r11", "memory");
	errno = r < 0 ? (int)-r : 0;
	return r < 0 ? -1 : r;
}

static const struct {
	const char *name;
	try_fn fn;
} tries[] = {
	{ "open a file by its name", read_password_file },
	{ "open a file by its name (openat2)", read_by_syscall },
	{ "climb out of the machine's folder", climb_out },
	{ "make a file through a folder's descriptor", write_in_folder_by_descriptor },
#ifdef HAVE_LIBURING
	{ "open a file by io_uring", open_by_uring },
#endif
	{ "open a file by its handle", open_by_handle },
	{ "ask the broker for the password file", ask_for_password_file },
	{ "ask the broker for a file beside the folder", ask_beside_folder },
	{ "ask the broker for another machine's configuration", ask_for_victims_configuration },
	{ "ask the broker to write into another machine's folder", ask_to_write_in_victims_folder },
	{ "ask the broker to link the password file", ask_to_link_password_file },
	{ "ask the broker for memory of the host (/dev/mem)", ask_for_memory_device },
	{ "ask the broker for another machine's control socket", ask_for_control_socket },
	{ "write the machine's configuration", write_configuration },
	{ "replace the machine's configuration by another kernel's", change_configuration },
	{ "write to the machine's kernel by another name", write_kernel },
	{ "replace the configuration by one with the kernel as its disk", make_kernel_a_disk },
	{ "put the kernel in the place of the machine's disk", put_kernel_in_place_of_disk },
	{ "climb out of a shared folder", attack_share_climb },
	{ "climb out of a shared folder by a name with a slash", attack_share_slash },
	{ "follow a link out of a shared folder", attack_share_follow_link },
	{ "make a link out of a shared folder and follow it", attack_share_follow_own_link },
	{ "move a file out of a shared folder", attack_share_move_out },
	{ "make a device in a shared folder", attack_share_device },
	{ "make a set-user-ID file in a shared folder", attack_share_setuid },
	{ "make a file in a read-only shared folder", attack_share_make_in_readonly },
	{ "write a file of a read-only shared folder", attack_share_write_readonly },
	{ "connect to the host's 127.0.0.1", connect_tcp },
	{ "raw packets", raw_socket },
	{ "the kernel's netlink", netlink_socket },
	{ "connect to another machine's control socket", connect_control_socket },
	{ "signal a process of the host", signal_host_process },
	{ "signal all processes", signal_all },
	{ "trace a process of the host", trace_host_process },
	{ "read memory of a process of the host", read_host_process },
	{ "a descriptor of a process of the host", descriptor_of_process },
	{ "raise a limit of a process of the host", raise_limit },
	{ "run a shell", run_shell },
	{ "run a program from memory", run_memory },
	{ "a new user namespace", new_user_namespace },
	{ "a child in a new user namespace", clone_namespace },
	{ "enter another namespace", enter_namespace },
	{ "mount /proc", mount_proc },
	{ "change the root", change_root },
	{ "become root", become_root },
	{ "gain capabilities", gain_capabilities },
	{ "become dumpable", become_dumpable },
	{ "lose the filter of system calls", add_filterless_thread },
	{ "map memory to write and execute", anonymous_code },
	{ "make written memory executable", stack_code },
	{ "map a file to write and execute", writable_file_code },
	{ "add a key", add_key_ },
	{ "find the session's keyring", search_keyring },
	{ "load a BPF program", load_bpf },
	{ "count a process's events", count_events },
	{ "handle page faults", handle_faults },
	{ "load a kernel module", load_module },
	{ "restart the host", restart_host },
	{ "set the host's clock", set_clock },
	{ "use I/O ports", use_ports },
	{ "read the kernel's log", read_kernel_log },
	{ "watch files of the host", watch_files },
	{ "system calls of 32-bit programs", old_system_calls },
};

unsigned attack_count(void)
{
	return ARRAY_SIZE(tries);
}

const char *attack_name(unsigned i)
{
	return tries[i].name;
}

struct attack_result attack_try(unsigned i, const struct attack_target *t, bool is_vcpu)
{
	struct attack_result out = { .outcome = ATTACK_UNTRIED, .name = tries[i].name };
	struct error err;
	int status = 0;
	pid_t pid = fork();

	if (pid < 0)
		return out;
	if (pid == 0) {
		if (is_vcpu && confine_filter_vcpu(&err) < 0)
			_exit(ATTACK_EXIT_UNTRIED);
		errno = 0;
		long r = tries[i].fn(t);

		_exit(r >= 0 ? 0 : errno > 0 && errno < 134 ? errno : 199);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (WIFSIGNALED(status)) {
		out.outcome = ATTACK_KILLED;
	} else if (WEXITSTATUS(status) != ATTACK_EXIT_UNTRIED) {
		out.host_errno = WEXITSTATUS(status);
		out.outcome = out.host_errno ? ATTACK_REFUSED : ATTACK_SUCCEEDED;
	}
	return out;
}
