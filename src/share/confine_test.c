/* SPDX-License-Identifier: Apache-2.0 */
/* What is left to somebody who has taken over the server: the folder, and nothing that is not a matter of files. */
#include "share/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "share/confine.h"
#include "share/sharer.h"

static struct share_rig r;
static int dir_of_before = -1; /* of what is around the folder, opened before: as if it had been forgotten */

static int set_up(void **state)
{
	share_rig_open(&r, false);
	dir_of_before = open(r.dir, O_RDONLY | O_DIRECTORY);
	return 0;
}

static int tear_down(void **state)
{
	close(dir_of_before);
	share_rig_close(&r);
	return 0;
}

/* ---- tries: each in a confined process of its own; a result that is not negative is a success ---- */

static long open_path(const char *path)
{
	const struct open_how how = { .flags = O_RDONLY };

	return syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
}

static long open_below(int dir, const char *path, uint64_t flags)
{
	const struct open_how how = { .flags = flags, .mode = flags & O_CREAT ? 0600 : 0 };

	return syscall(SYS_openat2, dir, path, &how, sizeof(how));
}

static long password_file(int root)
{
	return open_path("/etc/passwd");
}

static long password_file_from_above(int root)
{
	return open_below(root, "../../../../../../../etc/passwd", O_RDONLY);
}

static long secret_beside(int root)
{
	return open_below(root, "../secret", O_RDONLY);
}

static long secret_by_absolute_name(int root)
{
	return open_path(share_path(&r, "secret"));
}

static long plant_beside(int root)
{
	long fd = open_below(root, "../planted", O_WRONLY | O_CREAT);

	/* Above a root is the root. */
	return fd >= 0 && open_below(root, "planted", O_RDONLY) >= 0 ? -1 : fd;
}

static long through_a_link(int root)
{
	return symlinkat("../secret", root, "out") < 0 ? -1 : open_below(root, "out", O_RDONLY);
}

static long through_absolute_link(int root)
{
	return symlinkat("/etc/passwd", root, "abs") < 0 ? -1 : open_below(root, "abs", O_RDONLY);
}

static long by_processes(int root)
{
	return open_path("/proc/self/root/etc/passwd");
}

static long secret_by_old_descriptor(int root)
{
	return open_below(dir_of_before, "secret", O_RDONLY);
}

static long move_in(int root)
{
	return renameat2(dir_of_before, "secret", root, "stolen", 0);
}

static long link_in(int root)
{
	return linkat(dir_of_before, "secret", root, "stolen", 0);
}

static long old_open(int root)
{
	return syscall(SYS_openat, root, ".", O_RDONLY);
}

static long make_device(int root)
{
	return mknodat(root, "null", S_IFCHR | 0666, 0x103);
}

static long change_owner(int root)
{
	return fchownat(root, "file", 12345, 12345, 0);
}

static long set_attribute(int root)
{
	return syscall(SYS_fsetxattr, root, "user.x", "y", 1, 0);
}

static long make_socket(int root)
{
	return socket(AF_INET, SOCK_STREAM, 0);
}

static long make_unix_socket(int root)
{
	return socket(AF_UNIX, SOCK_STREAM, 0);
}

static long run_program(int root)
{
	return execve("/bin/true", (char *[]){ "true", NULL }, NULL);
}

static long make_process(int root)
{
	return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static long trace_parent(int root)
{
	return ptrace(PTRACE_ATTACH, getppid(), 0, 0);
}

static long signal_parent(int root)
{
	return kill(getppid(), 0);
}

static long new_namespace(int root)
{
	return unshare(CLONE_NEWUSER);
}

static long change_root(int root)
{
	return chroot(".");
}

static long control_device(int root)
{
	return syscall(SYS_ioctl, 0, 0x5401, NULL);
}

static long use_uring(int root)
{
	char params[256] = { 0 };

	return syscall(SYS_io_uring_setup, 1, params);
}

static long executable_memory(int root)
{
	return syscall(SYS_mmap, 0, 4096, 7, 0x22, -1, 0) == -1 ? -1 : 0;
}

static const struct {
	const char *name;
	long (*fn)(int root);
} tries[] = {
	{ "the password file", password_file },
	{ "the password file, from above", password_file_from_above },
	{ "the file beside the folder", secret_beside },
	{ "the same by its absolute name", secret_by_absolute_name },
	{ "a new file beside the folder", plant_beside },
	{ "the file by a link", through_a_link },
	{ "the password file by a link", through_absolute_link },
	{ "the root by /proc", by_processes },
	{ "the file by a descriptor of before", secret_by_old_descriptor },
	{ "to move it in", move_in },
	{ "to link it in", link_in },
	{ "open(2)", old_open },
	{ "a device", make_device },
	{ "another owner", change_owner },
	{ "an attribute", set_attribute },
	{ "a socket", make_socket },
	{ "a UNIX socket", make_unix_socket },
	{ "a program", run_program },
	{ "a process", make_process },
	{ "to trace its parent", trace_parent },
	{ "to signal its parent", signal_parent },
	{ "a namespace", new_namespace },
	{ "another root", change_root },
	{ "ioctl(2)", control_device },
	{ "io_uring", use_uring },
	{ "memory to execute", executable_memory },
};

/* @apart: in namespaces of its own, which the kernel may not give: then 77. */
static int confine(bool apart, bool is_readonly, int *root)
{
	struct share_confinement c = { 0 };
	struct error err;

	*root = apart ? share_enter(r.share, is_readonly, &c, &err)
		      : open(r.share, O_PATH | O_DIRECTORY);
	if (*root < 0)
		return 78;
	if (apart && !c.has_namespaces)
		return 77;
	return share_confine(*root, is_readonly, &c, &err) < 0 ? 79 : 0;
}

static int wait_for(pid_t pid)
{
	int status = -1;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	return status;
}

static void attack(bool apart)
{
	share_host_write(&r, "share/file", "text");
	for (size_t i = 0; i < ARRAY_SIZE(tries); i++) {
		int root;
		pid_t pid = fork();

		if (pid == 0) {
			int e = confine(apart, false, &root);

			_exit(e ? e : tries[i].fn(root) >= 0 ? 1 : 0);
		}
		int status = wait_for(pid);

		if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
			print_message("not tried: the kernel gives no namespaces\n");
			skip();
		}
		if (!(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) &&
		    !(WIFEXITED(status) && !WEXITSTATUS(status)))
			fail_msg("%s: status %#x", tries[i].name, status);
		unlink(share_path(&r, "share/out"));
		unlink(share_path(&r, "share/abs"));
	}
	assert_string_equal(share_host_read(&r, "secret"), "secret");
	assert_int_equal(access(share_path(&r, "planted"), F_OK), -1);
}

static void attack_apart(void **state)
{
	attack(true);
}

/* Where the kernel gives no namespaces, Landlock and the filter have to do. */
static void attack_with_landlock(void **state)
{
	attack(false);
}

/* Unconfined those about files work: the tries are some. */
static void tries_are_some(void **state)
{
	int root = open(r.share, O_PATH | O_DIRECTORY);

	assert_true(password_file(root) >= 0 && secret_beside(root) >= 0 && through_a_link(root) >= 0 &&
		    secret_by_old_descriptor(root) >= 0 && plant_beside(root) >= 0 &&
		    old_open(root) >= 0 && make_socket(root) >= 0 && link_in(root) >= 0);
	close(root);
}

/* ---- and it can serve ---- */

#define NEED(x)                                                                                    \
	do {                                                                                       \
		n++;                                                                               \
		if (!(x))                                                                          \
			return n;                                                                  \
	} while (0)

/* Every message once.  The number of the first that failed. */
static int serve_all(bool apart)
{
	struct share_attr a;
	struct bytes state = { 0 };
	struct error err;
	unsigned stale;
	int root, n = 0, e;

	umask(0);
	e = confine(apart, false, &root);
	if (e)
		return e;
	share_server_destroy(r.s);
	r.s = NULL;
	NEED(share_server_create(&r.s, root, false, &err) == 0);
	share_rig_attach(&r, 65536);
	NEED(share_mkdir(&r, SHARE_ROOT, "dir", 0755) == 0);
	NEED(share_walk(&r, SHARE_ROOT, 2, "dir") == 0);
	NEED(share_walk(&r, 2, 3, "") == 0);
	NEED(share_create(&r, 3, "file", O_RDWR, 0666) == 0);
	NEED(share_write(&r, 3, 0, "text") == 0);
	NEED(strcmp(share_read(&r, 3, 0), "text") == 0);
	NEED(share_rename_at(&r, 2, "file", SHARE_ROOT, "moved") == 0); /* to another directory */
	NEED(share_walk(&r, SHARE_ROOT, 4, "moved") == 0);
	NEED(share_setattr(&r, 4, 1, 0, 0, 0) == 0); /* mode 0, and back */
	NEED(share_setattr(&r, 4, 1, 0600, 0, 0) == 0);
	NEED(share_setattr(&r, 4, 8 | 0x1b0, 0, 0, 2) == 0);
	NEED(share_getattr(&r, 4, &a) == 0 && a.size == 2 && a.mode == (S_IFREG | 0600));
	NEED(share_symlink(&r, SHARE_ROOT, "link", "x") == 0);
	NEED(share_walk(&r, SHARE_ROOT, 5, "") == 0 && share_open(&r, 5, O_RDONLY) == 0);
	NEED(strstr(share_list(&r, 5, 4096), "moved") != NULL);
	share_begin(&r, P9_TFSYNC);
	bytes_put_u32(&r.req, 3);
	NEED(share_call(&r) == 0);
	share_begin(&r, P9_TSTATFS);
	bytes_put_u32(&r.req, 3);
	NEED(share_call(&r) == 0);
	share_begin(&r, P9_TLINK);
	bytes_put_u32(&r.req, 2);
	bytes_put_u32(&r.req, 4);
	share_text(&r, "hard");
	NEED(share_call(&r) == 0);
	NEED(share_server_save(r.s, &state) == 0);
	NEED(share_server_load(r.s, state.data, state.len, &stale, &err) == 0 && stale == 0);
	NEED(share_unlink_at(&r, 2, "hard", 0) == 0);
	NEED(share_unlink_at(&r, SHARE_ROOT, "dir", AT_REMOVEDIR) == 0);
	return 0;
}

static void serves(void **state)
{
	for (unsigned apart = 0; apart < 2; apart++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(serve_all(apart));
		int status = wait_for(pid);

		if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 77))
			fail_msg("apart %u: status %#x", apart, status);
		unlink(share_path(&r, "share/moved"));
		unlink(share_path(&r, "share/link"));
	}
}

/* The kernel, too, lets nobody write there. */
static void readonly(void **state)
{
	for (unsigned apart = 0; apart < 2; apart++) {
		pid_t pid = fork();

		if (pid == 0) {
			int root, e = confine(apart, true, &root);

			_exit(e ? e
				: open_below(root, "new", O_WRONLY | O_CREAT) >= 0 ||
					      mkdirat(root, "d", 0755) == 0);
		}
		int status = wait_for(pid);

		assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77));
	}
}

/* ---- the process ---- */

static int server = -1; /* its socket */

/* Like share_call(), of the process. */
static int call(void)
{
	uint32_t size = (uint32_t)r.req.len;

	memcpy(r.req.data, &size, sizeof(size));
	assert_int_equal(send(server, r.req.data, size, MSG_NOSIGNAL), size);
	if (recv(server, &size, sizeof(size), MSG_WAITALL) != sizeof(size))
		return -EPIPE;
	assert_true(size >= P9_HEADER && size <= sizeof(r.reply));
	assert_int_equal(recv(server, r.reply, size - sizeof(size), MSG_WAITALL), size - sizeof(size));
	r.in = (struct byte_reader){ .data = r.reply, .len = size - sizeof(size), .pos = 3 };
	return r.reply[0] == P9_RLERROR ? -(int)bytes_get_u32(&r.in) : 0;
}

static pid_t start_server(rlim_t file_size_max)
{
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	pid_t pid = fork();

	if (pid == 0) {
		const struct rlimit limit = { file_size_max, file_size_max };
		char fd[16];
		char *argv[] = { "share", "--fd", fd, "--dir", r.share, "--tag", "test", NULL };

		close(ends[0]);
		snprintf(fd, sizeof(fd), "%d", ends[1]);
		_exit(setrlimit(RLIMIT_FSIZE, &limit) < 0 ? 9 : sharer_cli(7, argv));
	}
	close(ends[1]);
	server = ends[0];
	return pid;
}

/* The user's limit (ulimit -f) is an error to the guest, and not a signal to the server. */
static void limit_of_file_size(void **state)
{
	pid_t pid = start_server(4096);

	share_begin(&r, P9_TVERSION);
	bytes_put_u32(&r.req, 8192);
	share_text(&r, P9_VERSION);
	assert_int_equal(call(), 0);
	share_begin(&r, P9_TATTACH);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u32(&r.req, P9_NOFID);
	share_text(&r, "root");
	share_text(&r, "");
	bytes_put_u32(&r.req, 0);
	assert_int_equal(call(), 0);
	share_begin(&r, P9_TLCREATE);
	bytes_put_u32(&r.req, SHARE_ROOT);
	share_text(&r, "file");
	bytes_put_u32(&r.req, O_RDWR);
	bytes_put_u32(&r.req, 0644);
	bytes_put_u32(&r.req, 0);
	assert_int_equal(call(), 0);
	share_begin(&r, P9_TWRITE);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u64(&r.req, 4096);
	bytes_put_u32(&r.req, 1);
	bytes_put_u8(&r.req, 'x');
	int e = call();

	close(server);
	int status = wait_for(pid);

	assert_int_equal(e, -EFBIG);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = { TEST(attack_apart),	  TEST(attack_with_landlock),
					    TEST(tries_are_some), TEST(serves),
					    TEST(readonly),	  TEST(limit_of_file_size) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
