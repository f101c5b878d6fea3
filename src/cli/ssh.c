/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv ssh`: this host's ssh, with a key pair of viv's own, by a tunnel to the machine's port 22 (cli/tunnel.h); where there are none, to a port of this host
 * that is forwarded there.
 *
 * The guest's agent is told the public key, and tells the guest's host keys: both go past the network, so that the connection
 * is to this machine and no other. Without an agent the first connection's host key is taken, and held on to.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/bytes.h"
#include "cli/cli.h"
#include "cli/ssh.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"
#include "net/netd.h"

#define SSH_PORT 22
/* Debian makes them when a server is installed; an image that is shared by many has none until then. */
#define GUEST_KEYS                                                                                 \
	"ls /etc/ssh/ssh_host_*_key.pub >/dev/null 2>&1 || ssh-keygen -A >/dev/null 2>&1; "        \
	"cat /etc/ssh/ssh_host_*_key.pub"
#define KEY_MAX	 8192
#define AGENT_MS 2000
#define HOST_ALIAS                                                                                 \
	"machine" /* the file of known keys is the machine's own, whatever it is called */

struct args {
	const char *user;
};
static const struct opt ssh_opts[] = {
	OPT_STRING(struct args, user, "user", "USER",
		   "whom to log in as (default: the one of --cloud-init, or root)"),
	OPT_END,
};
const struct opts_cmd cli_ssh_cmd = {
	.name = "viv ssh",
	.usage = "NAME [-- CMD...]",
	.summary = "log in to a machine by SSH, or run a command there",
	.details = "The machine is behind NAT (--net nat); no port of this host has to lead there. "
		   "viv has "
		   "a key pair of its own for it,\n"
		   "which the user that --cloud-init made accepts; where the guest runs "
		   "qemu-guest-agent, any user is made to, and the\n"
		   "guest's host keys are known.",
	.opts = ssh_opts,
	.min_args = 1,
	.max_args = 1,
	.takes_command = true,
};

/* ---- the key pair ---- */

static int run_keygen(const char *path, struct error *err)
{
	const char *const argv[] = { "ssh-keygen", "-q",  "-t", "ed25519", "-N", "",
				     "-C",	   "viv", "-f", path,	   NULL };
	int status = -1;

	fflush(NULL);
	pid_t pid = fork();

	if (pid == 0) {
		int null_fd = open("/dev/null", O_RDWR);

		dup2(null_fd, STDIN_FILENO);
		dup2(null_fd, STDOUT_FILENO);
		execvp(argv[0], (char **)(uintptr_t)argv);
		_exit(127);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (pid < 0 || status)
		return error_set(
			err, -EIO,
			"%s", status == 127 << 8 ? "this host has no ssh-keygen; Debian's package openssh-client has it" : "ssh-keygen could not make a key pair");
	return 0;
}

/* Two at once make one. */
int ssh_own_key(char **key, char **public, struct error *err)
{
	_cleanup_free_ char *dir = paths_data("ssh", err);
	int r = dir ? paths_make(dir, err) : -ENOMEM;

	if (r < 0)
		return r;
	_cleanup_free_ char *path = paths_format(err, "%s/id_ed25519", dir);
	_cleanup_free_ char *pub = path ? paths_format(err, "%s.pub", path) : NULL;
	_cleanup_close_ int lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	size_t len;

	if (!pub)
		return -ENOMEM;
	if (lock < 0 || flock(lock, LOCK_EX) < 0)
		return error_set(err, -errno, "cannot lock %s: %s", dir, strerror(errno));
	if (access(path, F_OK) < 0 || access(pub, F_OK) < 0) {
		unlink(path); /* half of a pair: ssh-keygen was killed */
		unlink(pub);
		r = run_keygen(path, err);
	}
	if (r == 0)
		r = paths_read_file(pub, KEY_MAX, public, &len, err);
	if (r < 0)
		return r;
	(*public)[strcspn(*public, "\n")] = 0;
	*key = path;
	path = NULL;
	return 0;
}

/* ---- the guest ---- */

static int add_key(int fd, const char *user, const char *public, struct error *err)
{
	json_t *reply = NULL;
	int r = client_call(fd, json_pack("{s:s, s:s, s:s}", "cmd", "ssh-key", "user", user, "key", public),
			    30000, &reply, err);

	json_decref(reply);
	return r;
}

/* Lines of /etc/ssh/ssh_host_*_key.pub, "TYPE KEY COMMENT", to lines of known_hosts: what does not look like one is left out. */
static int write_known(const char *path, char *keys, struct error *err)
{
	_cleanup_bytes_ struct bytes text = { 0 };
	char type[64], key[4096], *save = NULL;

	for (char *line = strtok_r(keys, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (sscanf(line, "%63[a-z0-9@.-] %4095[A-Za-z0-9+/=]", type, key) == 2)
			bytes_printf(&text, HOST_ALIAS " %s %s\n", type, key);
	}
	if (text.is_failed)
		return error_set(err, -ENOMEM, "no memory for keys");
	return text.len ? paths_write_file(path, text.data, text.len, err)
			: error_set(err, -ENOENT,
				    "the guest has no SSH host keys; is an SSH server installed?");
}

/* 0: the guest's keys are known; 1: there is no agent to ask. */
static int ask_guest(const char *name, const char *user, const char *public, const char *known,
		     struct error *err)
{
	const char *const argv[] = { "sh", "-c", GUEST_KEYS, NULL };
	_cleanup_close_ int fd = client_connect(name, err);
	_cleanup_free_ char *keys = NULL;
	json_t *reply = NULL;
	struct error why;
	int status;

	if (fd < 0)
		return fd;
	if (client_call(fd, json_pack("{s:s, s:i}", "cmd", "agent", "timeout_ms", AGENT_MS), 30000,
			&reply, &why) < 0)
		return 1;
	json_decref(reply);
	int r = add_key(fd, user, public, err);

	if (r == 0)
		r = cli_guest_run(fd, (char **)(uintptr_t)argv, &status, &keys, err);
	return r == 0 ? write_known(known, keys, err) : r;
}

/* ---- the connection ---- */

/* How ssh gets there: the options before "--", and the host after it. */
struct route {
	char *proxy; /* "ProxyCommand=..."; NULL: straight to @host and @port */
	char host[INET6_ADDRSTRLEN + 32], port[8];
};

/* As a word for the shell that ssh has run it, which looks for % before. */
static void put_word(struct bytes *b, const char *word)
{
	bytes_put_u8(b, '\'');
	for (; *word; word++) {
		if (*word == '\'')
			bytes_put(b, "'\\''", 4);
		else
			bytes_put(b, *word == '%' ? "%%" : word, *word == '%' ? 2 : 1);
	}
	bytes_put_u8(b, '\'');
}

static int by_tunnel(struct route *r, const char *name, struct error *err)
{
	_cleanup_bytes_ struct bytes b = { 0 };
	char exe[4096];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	if (n < 0)
		return error_set(err, -errno, "viv does not find itself: %s", strerror(errno));
	exe[n] = 0;
	bytes_printf(&b, "ProxyCommand=");
	put_word(&b, exe);
	bytes_printf(&b, " tunnel %s %d", name, SSH_PORT);
	bytes_put_u8(&b, 0);
	if (b.is_failed)
		return error_set(err, -ENOMEM, "no memory for a command");
	snprintf(r->host, sizeof(r->host), "%s", HOST_ALIAS);
	snprintf(r->port, sizeof(r->port), "%d", SSH_PORT);
	return vmconfig_set(&r->proxy, (const char *)b.data, err);
}

/* The host's end of the forward to port 22. */
static int by_forward(struct route *r, const struct vmconfig *c, struct error *err)
{
	struct netd_forward f = { 0 };
	bool is_found = false;

	for (unsigned i = 0; i < c->nforwards && !is_found; i++)
		is_found = netd_parse_forward(c->forwards[i], &f, err) == 0 && !f.is_udp &&
			   f.guest_port == SSH_PORT;
	if (!is_found)
		return error_set(err, -ENOENT, "machine \"%s\" is in the network %s, where viv ssh finds no way; viv set %s --net nat gives it one while it is stopped",
				 c->name, c->net, c->name);
	socklen_t len = f.host.ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						     : sizeof(struct sockaddr_in);

	if (getnameinfo((struct sockaddr *)&f.host, len, r->host, sizeof(r->host), r->port,
			sizeof(r->port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		return error_set(err, -EINVAL, "the forward's address cannot be used");
	return 0;
}

/* *@user: whom the machine was made for, unless there is one. */
static int find_route(struct route *r, const char *name, char **user, struct error *err)
{
	_cleanup_free_ char *path = paths_run(name, "net.sock", err);
	struct vmconfig c;
	int ret = vmconfig_init(&c, err);

	if (ret == 0)
		ret = path ? vmconfig_load(&c, name, err) : -ENOMEM;
	if (ret == 0 && !*user)
		ret = vmconfig_set(user, c.login ? c.login : "root", err);
	/* One that an older viv started has no socket for them. */
	if (ret == 0)
		ret = strcmp(c.net, "nat") == 0 && (!c.nforwards || access(path, F_OK) == 0)
			      ? by_tunnel(r, name, err)
			      : by_forward(r, &c, err);
	vmconfig_free(&c);
	return ret;
}

/* Takes the place of this process. */
static int exec_with(const struct route *route, const char *user, const char *key, const char *known,
		     bool is_known, char **command, unsigned ncommand, struct error *err)
{
	_cleanup_free_ char *known_opt = paths_format(err, "UserKnownHostsFile=\"%s\"", known);
	const char *fixed[] = { "ssh",
				"-i",
				key,
				"-o",
				"IdentitiesOnly=yes",
				"-o",
				known_opt,
				"-o",
				"GlobalKnownHostsFile=/dev/null",
				"-o",
				"HostKeyAlias=" HOST_ALIAS,
				"-o",
				"CheckHostIP=no",
				"-o",
				is_known ? "StrictHostKeyChecking=yes" : "StrictHostKeyChecking=accept-new",
				"-o",
				"LogLevel=ERROR",
				"-o",
				route->proxy ? route->proxy : "ProxyCommand=none",
				"-p",
				route->port,
				"-l",
				user,
				"--",
				route->host };
	_cleanup_free_ const char **argv = calloc(ARRAY_SIZE(fixed) + ncommand + 1, sizeof(*argv));

	if (!argv || !known_opt)
		return error_set(err, -ENOMEM, "no memory for a command");
	memcpy(argv, fixed, sizeof(fixed));
	for (unsigned i = 0; i < ncommand; i++)
		argv[ARRAY_SIZE(fixed) + i] = command[i];
	fflush(NULL);
	execvp(argv[0], (char **)(uintptr_t)argv);
	return error_set(err, -errno, "this host has no ssh; Debian's package openssh-client has it");
}

static int exec_ssh(const char *name, const struct args *a, char **command, unsigned ncommand,
		    struct error *err)
{
	struct route route = { 0 };
	_cleanup_free_ char *key = NULL, *public = NULL, *user = NULL, *known = NULL;
	int r = paths_check_name("a machine", name, err);

	if (r == 0)
		r = vmconfig_set(&user, a->user, err);
	if (r == 0)
		r = find_route(&route, name, &user, err);
	/* It becomes an argument of ssh. */
	if (r == 0 && (user[0] == '-' || !user[0]))
		r = error_set(err, -EINVAL, "\"%s\" is no name of a user", user);
	if (r == 0)
		r = ssh_own_key(&key, &public, err);
	if (r == 0) {
		known = paths_vm(name, "known_hosts", err);
		r = known ? ask_guest(name, user, public, known, err) : -ENOMEM;
	}
	if (r >= 0)
		r = exec_with(&route, user, key, known, r == 0, command, ncommand, err);
	free(route.proxy);
	return r;
}

int cli_ssh(int argc, char **argv)
{
	struct args a = { NULL };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_ssh_cmd, argc, argv, &a, &rest, &status))
		return status;
	exec_ssh(rest.args[0], &a, rest.command, rest.ncommand, &err);
	status = cli_fail(&err);
	opts_free(&cli_ssh_cmd, &a, &rest);
	return status;
}
