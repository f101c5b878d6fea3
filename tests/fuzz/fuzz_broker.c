/* SPDX-License-Identifier: Apache-2.0 */
/* The broker: any message is answered, and no descriptor that it gives is of a file that is not the machine's. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "ctl/broker.h"
#include "ctl/paths.h"
#include "fuzz.h"

static char home[64] = "/tmp/viv-fuzz-broker-XXXXXX", own[128];
static struct broker_policy *policy;

static void clean_up(void)
{
	struct error err;

	broker_policy_destroy(policy);
	(void)paths_remove_tree(home, &err);
}

static void set_up(void)
{
	struct vmconfig c;
	struct error err;

	log_set_level(LOG_ERROR);
	if (!mkdtemp(home))
		abort();
	setenv("VIVARIUM_HOME", home, 1);
	setenv("TMPDIR", home, 1);
	snprintf(own, sizeof(own), "%s/vms/m", home);
	if (paths_make(own, &err) < 0 || vmconfig_init(&c, &err) < 0 ||
	    vmconfig_set(&c.name, "m", &err) < 0 || vmconfig_save(&c, &err) < 0 ||
	    broker_policy_create(&policy, &c, &err) < 0)
		abort();
	vmconfig_free(&c);
	atexit(clean_up);
}

size_t fuzz_seed(uint8_t *buf, size_t cap)
{
	struct broker_request rq = { .op = BROKER_RENAME };
	char names[512];

	if (!policy)
		set_up();
	rq.len[0] = (uint16_t)(snprintf(names, 200, "%s/machine.json.new", own) + 1);
	rq.len[1] = (uint16_t)(snprintf(names + rq.len[0], 200, "%s/machine.json", own) + 1);
	size_t len = sizeof(rq) + rq.len[0] + rq.len[1];

	if (len > cap)
		return 0;
	memcpy(buf, &rq, sizeof(rq));
	memcpy(buf + sizeof(rq), names, len - sizeof(rq));
	return len;
}

static bool is_its_own(int fd)
{
	char link[64], path[PATH_MAX];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, sizeof(path) - 1);

	if (n < 0)
		return false;
	path[n] = 0;
	/* Files without a name are made in the folder for temporary ones; new machines have folders; two of the host may be read. */
	return strncmp(path, own, strlen(own)) == 0 || strstr(path, "/#") ||
	       strstr(path, "/vms/") || strncmp(path, "/usr/share/", 11) == 0 ||
	       strcmp(path, "/dev/kvm") == 0 || strcmp(path, "/proc/sys/kernel/random/boot_id") == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct broker_request rq;
	const char *names[2];
	char text[PATH_MAX];
	struct stat st;
	int fd = -1;

	if (!policy)
		set_up();
	if (broker_parse(data, size, &rq, names) < 0)
		return 0;
	rq.op %= BROKER_COPY; /* the process's */
	int dir = rq.has_dir[0] ? open(own, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	const int dirs[2] = { dir, -1 };
	int r = broker_answer(policy, &rq, names, dirs, &st, &fd, text);

	if (r > 0 || (fd >= 0 && (r < 0 || !is_its_own(fd))))
		abort();
	if (fd >= 0)
		close(fd);
	if (dir >= 0)
		close(dir);
	return 0;
}
