/* SPDX-License-Identifier: Apache-2.0 */
/* Who waits for whom; nothing here depends on how long that takes. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/host.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "ctl/vmlock.h"

static char home[64];

static int set_up(void **state)
{
	_cleanup_free_ char *dir = NULL, *run = NULL;
	struct error err;

	snprintf(home, sizeof(home), "/tmp/viv-lock-XXXXXX");
	assert_non_null(mkdtemp(home));
	setenv("VIVARIUM_HOME", home, 1);
	dir = paths_vm("m", NULL, &err);
	run = paths_run("m", NULL, &err);
	assert_int_equal(paths_make(dir, &err), 0);
	assert_int_equal(paths_make(run, &err), 0);
	return 0;
}

static int tear_down(void **state)
{
	struct error err;

	return paths_remove_tree(home, &err);
}

static void wait_for(int fd)
{
	char word;

	assert_int_equal(read(fd, &word, 1), 1);
}

/* A machine's process, until it is killed; with a control socket if @listens. */
static pid_t start_process(bool listens)
{
	int ready[2];

	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		_cleanup_free_ char *path = paths_run("m", "control.sock", NULL);
		struct error err;
		int fd = vmlock_take("m", &err);
		bool is_fine = fd >= 0 && vmlock_run(fd, "m", &err) == 0 &&
			       (!listens || socket_listen(path, &err) >= 0) &&
			       write(ready[1], "r", 1) == 1;

		while (is_fine)
			pause();
		_exit(1);
	}
	close(ready[1]);
	wait_for(ready[0]);
	close(ready[0]);
	return pid;
}

static void end_process(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static int tries_fd;

/* It tells of each try after the first. */
static int counted_open(const char *path, int flags, mode_t mode)
{
	static unsigned ntries;

	if (ntries++ == 1 && write(tries_fd, "t", 1) != 1)
		_exit(101);
	return open(path, flags, mode);
}

/* One that takes no connection is on its way: who wants to change the machine waits until it has ended. */
static void test_waits_for_one_that_is_ending(void **state)
{
	pid_t machine = start_process(false);
	int tries[2], status;
	struct error err;

	assert_int_equal(vmlock_try("m", &err), -EBUSY);
	assert_true(vmlock_is_running("m"));
	assert_int_equal(pipe(tries), 0);
	pid_t command = fork();

	assert_true(command >= 0);
	if (command == 0) {
		tries_fd = tries[1];
		host.open = counted_open;
		_exit(vmlock_take("m", &err) >= 0 ? 0 : 1);
	}
	close(tries[1]);
	wait_for(tries[0]); /* else it has ended without a second try */
	close(tries[0]);
	end_process(machine);
	assert_int_equal(waitpid(command, &status, 0), command);
	assert_int_equal(status, 0);
}

static void test_does_not_wait_for_one_that_runs(void **state)
{
	pid_t machine = start_process(true);
	struct error err;

	assert_int_equal(vmlock_take("m", &err), -EBUSY);
	assert_non_null(strstr(err.text, "is running"));
	end_process(machine);
	assert_false(vmlock_is_running("m"));
	int fd = vmlock_take("m", &err); /* past the stale socket */

	assert_true(fd >= 0);
	assert_int_equal(vmlock_try("m", &err), -EAGAIN);
	close(fd);
	assert_int_equal(vmlock_take("none", &err), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_waits_for_one_that_is_ending, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_does_not_wait_for_one_that_runs, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
