/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two machines are made of nothing but a folder, a configuration and, for one of them, a control socket.  The other one's process is
 * confined as any, and then makes the tries of ctl/attack.h in place of running a guest.
 */
#include "cli/attack.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/log.h"
#include "cli/cli.h"
#include "ctl/attack.h"
#include "ctl/broker.h"
#include "ctl/confine.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "share/sharer.h"

struct stage {
	struct vmconfig attacker;
	char victim_name[PATHS_NAME_MAX + 1];
	char *folder, *victim, *run_dir, *socket;
	int listen_fd, tcp_fd;
	pid_t share_pids[2];
	struct attack_target target;
};

static int make_machine(struct vmconfig *c, const char *name, char **folder, struct error *err)
{
	int r = vmconfig_init(c, err);

	if (r == 0)
		r = vmconfig_set(&c->name, name, err);
	*folder = r == 0 ? paths_vm(name, NULL, err) : NULL;
	if (!*folder)
		return r < 0 ? r : -ENOMEM;
	r = paths_make(*folder, err);
	return r == 0 ? vmconfig_save(c, err) : r;
}

static int make_file(const char *folder, const char *name, char **path, struct error *err)
{
	*path = paths_format(err, "%s/%s", folder, name);
	return *path ? paths_write_file(*path, name, strlen(name), err) : -ENOMEM;
}

/* The attacker may read its kernel, which lies with the victim's files, and writes its disk. */
static int add_files(struct stage *s, struct error *err)
{
	_cleanup_free_ char *disk = NULL;
	int r = make_file(s->victim, "kernel", &s->attacker.kernel, err);

	if (r == 0)
		r = make_file(s->folder, "layer-0.raw", &disk, err);
	if (r == 0)
		r = vmconfig_add_disk(&s->attacker, disk, "raw", false, false, err);
	return r == 0 ? vmconfig_save(&s->attacker, err) : r;
}

/* One folder, served twice: to be written, and not. */
static int share_folder(struct stage *s, struct error *err)
{
	int *const fds[] = { &s->target.share_fd, &s->target.readonly_share_fd };
	_cleanup_free_ char *secret = NULL, *kept = NULL, *link = NULL;
	_cleanup_free_ char *folder = paths_format(err, "%s/shared", s->folder);
	int r = folder ? make_file(s->folder, ATTACK_SECRET, &secret, err) : -ENOMEM;

	if (r == 0)
		r = paths_make(folder, err);
	if (r == 0)
		r = make_file(folder, ATTACK_KEPT, &kept, err);
	if (r == 0) {
		link = paths_format(err, "%s/%s", folder, ATTACK_LINK);
		r = link ? 0 : -ENOMEM;
	}
	if (r == 0 && symlink(secret, link) < 0)
		r = error_set(err, -errno, "cannot make %s: %s", link, strerror(errno));
	for (unsigned i = 0; r == 0 && i < ARRAY_SIZE(fds); i++) {
		const struct sharer_options o = { .path = folder,
						  .tag = i ? "readonly" : "shared",
						  .is_readonly = i > 0 };

		r = sharer_spawn(&o, fds[i], &s->share_pids[i], err);
	}
	return r;
}

static int listen_tcp(struct stage *s, struct error *err)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof(sa);

	s->tcp_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->tcp_fd < 0 || bind(s->tcp_fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
	    listen(s->tcp_fd, 1) < 0 || getsockname(s->tcp_fd, (struct sockaddr *)&sa, &len) < 0)
		return error_set(err, -errno, "cannot listen on 127.0.0.1: %s", strerror(errno));
	s->target.tcp_port = ntohs(sa.sin_port);
	return 0;
}

static int stage_set(struct stage *s, struct error *err)
{
	char name[PATHS_NAME_MAX + 1];
	struct vmconfig victim = { 0 };

	*s = (struct stage){ .listen_fd = -1,
			     .tcp_fd = -1,
			     .target = { .share_fd = -1, .readonly_share_fd = -1 } };
	snprintf(name, sizeof(name), "attacker-%d", (int)getpid());
	snprintf(s->victim_name, sizeof(s->victim_name), "victim-%d", (int)getpid());
	int r = make_machine(&s->attacker, name, &s->folder, err);

	if (r == 0)
		r = make_machine(&victim, s->victim_name, &s->victim, err);
	vmconfig_free(&victim);
	if (r == 0)
		r = add_files(s, err);
	if (r == 0)
		r = share_folder(s, err);
	s->run_dir = paths_run(s->victim_name, NULL, err);
	s->socket = paths_run(s->victim_name, "control.sock", err);
	if (r == 0)
		r = s->run_dir && s->socket ? paths_make(s->run_dir, err) : -ENOMEM;
	if (r == 0) {
		s->listen_fd = socket_listen(s->socket, err);
		r = s->listen_fd < 0 ? s->listen_fd : listen_tcp(s, err);
	}
	s->target.config = &s->attacker;
	s->target.folder = s->folder;
	s->target.victim = s->victim;
	s->target.socket = s->socket;
	s->target.process = getpid();
	return r;
}

static void stage_clear(struct stage *s)
{
	struct error err;

	if (s->target.share_fd >= 0)
		close(s->target.share_fd);
	if (s->target.readonly_share_fd >= 0)
		close(s->target.readonly_share_fd);
	for (unsigned i = 0; i < ARRAY_SIZE(s->share_pids); i++)
		while (s->share_pids[i] > 0 && waitpid(s->share_pids[i], NULL, 0) < 0 && errno == EINTR)
			continue;
	if (s->folder && paths_remove_tree(s->folder, &err) < 0)
		cli_note("%s", err.text);
	if (s->victim && paths_remove_tree(s->victim, &err) < 0)
		cli_note("%s", err.text);
	if (s->run_dir && paths_remove_tree(s->run_dir, &err) < 0)
		cli_note("%s", err.text);
	if (s->listen_fd >= 0)
		close(s->listen_fd);
	if (s->tcp_fd >= 0)
		close(s->tcp_fd);
	free(s->folder);
	free(s->victim);
	free(s->run_dir);
	free(s->socket);
	vmconfig_free(&s->attacker);
}

/* In the confined process: all tries, twice; results to @fd. */
static void attack(const struct attack_target *t, int fd)
{
	for (unsigned i = 0; i < attack_count(); i++) {
		struct attack_result r[2] = { attack_try(i, t, false), attack_try(i, t, true) };

		if (write(fd, r, sizeof(r)) != sizeof(r))
			_exit(1);
	}
	_exit(0);
}

static const char *describe(const struct attack_result *r, char text[96])
{
	switch (r->outcome) {
	case ATTACK_SUCCEEDED:
		return "SUCCEEDED";
	case ATTACK_KILLED:
		return "killed";
	case ATTACK_REFUSED:
		snprintf(text, 96, "%s", r->host_errno == 199 ? "refused" : strerror(r->host_errno));
		return text;
	case ATTACK_UNTRIED:
		break;
	}
	return "could not be tried";
}

static bool is_bad(const struct attack_result *r)
{
	return r->outcome == ATTACK_SUCCEEDED || r->outcome == ATTACK_UNTRIED;
}

/* What came from the confined process: how many results. */
static unsigned collect(int fd, json_t *list, bool as_json, unsigned *nbad)
{
	struct attack_result r[2];
	unsigned n = 0;

	while (read(fd, r, sizeof(r)) == sizeof(r) && n < attack_count()) {
		char text[2][96];
		const char *process = describe(&r[0], text[0]), *vcpu = describe(&r[1], text[1]);
		bool bad = is_bad(&r[0]) || is_bad(&r[1]);

		*nbad += bad;
		if (!as_json)
			printf("%s  %-56s %-34s %s\n", bad ? "BAD " : "ok  ", attack_name(n),
			       process, vcpu);
		(void)json_array_append_new(list,
					    json_pack("{s:s, s:b, s:s, s:s}", "try", attack_name(n),
						      "ok", !bad, "process", process, "vcpu", vcpu));
		n++;
	}
	return n;
}

static void print_means(const struct confine *c)
{
	char means[CONFINE_TEXT];

	printf("What a machine could do if its guest had taken it over.\n");
	confine_describe(c, means);
	printf("      in force: %s\n\n", means);
	printf("      %-56s %-34s %s\n", "what it tried", "the process",
	       "a thread that executes guest code");
}

/* Another process, so that what it becomes, a broker, ends with it. */
static int be_broker(struct stage *s, int result_fd, bool as_json)
{
	const int machines[] = { result_fd, s->target.share_fd, s->target.readonly_share_fd, -1 };
	struct broker_policy *p = NULL;
	struct confine c;
	struct error err;

	fflush(NULL);
	int r = confine_split(&c, machines, false, &err);

	if (r == CONFINE_MACHINE) {
		if (confine_await(c.root_fd, &err) < 0)
			_exit(cli_fail(&err));
		broker_use(c.door, c.pagemap_fd);
		attack(&s->target, result_fd);
	}
	if (r < 0)
		return cli_fail(&err);
	if (!as_json)
		print_means(&c);
	fflush(NULL);
	if (broker_policy_create(&p, &s->attacker, &err) < 0)
		return cli_fail(&err);
	log_set_level(LOG_ERROR); /* each refusal would be told */
	broker_serve(p, c.door, NULL, NULL);
	broker_policy_destroy(p);
	return confine_wait(&c) == 0 ? EXIT_FINE : EXIT_FAILED;
}

static int run_stage(struct stage *s, bool as_json, struct error *err)
{
	int fds[2], status = 0;
	unsigned nbad = 0;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	fflush(NULL);
	pid_t pid = fork();

	if (pid == 0) {
		close(fds[0]);
		_exit(be_broker(s, fds[1], as_json));
	}
	close(fds[1]);
	json_t *list = json_array();
	unsigned n = pid > 0 ? collect(fds[0], list, as_json, &nbad) : 0;

	close(fds[0]);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (n != attack_count() || status != 0) {
		json_decref(list);
		return error_set(err, -EIO, "%u of %u tries were made, then the process ended", n,
				 attack_count());
	}
	if (as_json)
		return cli_print_json(json_pack("{s:b, s:i, s:o}", "ok", nbad == 0, "succeeded",
						nbad, "tries", list))
			       ?: nbad != 0;
	json_decref(list);
	printf("\n%u tries, %u of them succeeded or could not be made\n", n, nbad);
	return nbad ? EXIT_FAILED : EXIT_FINE;
}

int attack_run(bool as_json)
{
	struct stage s;
	struct error err;
	int r = stage_set(&s, &err);

	if (r == 0)
		r = run_stage(&s, as_json, &err);
	stage_clear(&s);
	return r < 0 ? cli_fail(&err) : r;
}
