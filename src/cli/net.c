/* SPDX-License-Identifier: Apache-2.0 */
/* `viv net`: what a lab's network does, and changing it while it runs.  Also the processes of networks themselves (net/netd.h,
 * net/labd.h), which `viv` starts. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/lab.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "net/labd.h"
#include "net/netd.h"

/* ---- labs that are up ---- */

int lab_request(const char *name, json_t *request, json_t **reply, struct error *err)
{
	_cleanup_free_ char *path = paths_lab(name, "control.sock", err);
	_cleanup_close_ int fd = path ? socket_connect(path, err) : -ENOMEM;

	if (fd < 0) {
		json_decref(request);
		return fd == -ENOENT || fd == -ECONNREFUSED
			       ? error_set(err, fd, "lab \"%s\" is not up", name)
			       : fd;
	}
	return client_call(fd, request, CLIENT_TIMEOUT_MS, reply, err);
}

static bool has_machine(const char *lab, const char *machine)
{
	json_t *reply, *card;
	bool has = false;
	size_t i;

	if (lab_request(lab, json_pack("{s:s}", "cmd", "show"), &reply, NULL) < 0)
		return false;
	json_array_foreach(json_object_get(reply, "cards"), i, card)
	{
		const char *label = json_string_value(json_object_get(card, "card"));
		const char *dot = label ? strchr(label, '.') : NULL;
		has |= !machine || (dot && strcasecmp(dot + 1, machine) == 0);
	}
	json_decref(reply);
	return has;
}

char *lab_find(const char *machine, struct error *err)
{
	_cleanup_free_ char *root = paths_lab("", NULL, err);
	DIR *dir = root ? opendir(root) : NULL;
	char *found = NULL;
	unsigned n = 0;

	for (struct dirent *e; dir && (e = readdir(dir));) {
		if (e->d_name[0] == '.' || !has_machine(e->d_name, machine))
			continue;
		n++;
		free(found);
		found = strdup(e->d_name);
	}
	if (dir)
		closedir(dir);
	if (n == 1)
		return found;
	free(found);
	if (n > 1)
		error_set(err, -EINVAL, "more than one lab is up%s%s; say which: --lab LAB",
			  machine ? " with a machine " : "", machine ? machine : "");
	else if (machine)
		error_set(err, -ENOENT, "no lab that is up has a machine \"%s\"", machine);
	else
		error_set(err, -ENOENT, "no lab is up; viv up LAB.yaml brings one up");
	return NULL;
}

/* ---- show ---- */

struct args {
	const char *lab, *output;
	struct opt_list names;
	bool json, end;
};

static json_int_t number(json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

static const char *text(json_t *o, const char *key)
{
	const char *t = json_string_value(json_object_get(o, key));

	return t ? t : "";
}

static void print_card(json_t *c)
{
	json_t *denied = json_object_get(c, "denied"), *value;
	const char *reason;

	printf("%-20s %-15s %-10s %8lld %8lld %6lld", text(c, "card"), text(c, "address"),
	       json_is_true(json_object_get(c, "quarantine")) ? "quarantine"
	       : json_is_true(json_object_get(c, "up"))	      ? "up"
							      : "down",
	       (long long)number(json_object_get(c, "in"), "frames"),
	       (long long)number(json_object_get(c, "out"), "frames"), (long long)number(c, "flows"));
	if (strcmp(text(c, "faults"), "none") != 0)
		printf("  %s", text(c, "faults"));
	printf("\n");
	json_object_foreach(denied, reason, value)
		printf("    denied %8lld  %s\n", (long long)json_integer_value(value), reason);
	if (number(c, "dropped"))
		printf("    dropped %7lld  no room\n", (long long)number(c, "dropped"));
	if (number(c, "lost"))
		printf("    lost %10lld  by faults\n", (long long)number(c, "lost"));
}

static void print_lab(json_t *reply)
{
	json_t *o;
	size_t i;

	printf("lab %s\n\n%-20s %-15s %-10s %8s %8s %6s\n", text(reply, "lab"), "CARD", "ADDRESS",
	       "STATE", "FROM IT", "TO IT", "FLOWS");
	json_array_foreach(json_object_get(reply, "cards"), i, o) print_card(o);
	printf("\n%4s %-6s %8s %6s  %s\n", "ID", "ACTION", "FRAMES", "FLOWS", "RULE");
	json_array_foreach(json_object_get(reply, "rules"), i, o)
		printf("%4lld %-6s %8lld %6lld  %s\n", (long long)number(o, "id"), text(o, "action"),
		       (long long)number(o, "frames"), (long long)number(o, "flows"), text(o, "rule"));
}

/* ---- the verbs ---- */

#define LAB_OPT OPT_STRING(struct args, lab, "lab", "LAB", "which lab, if more than one is up")

// clang-format off
static const struct opt show_opts[] = { LAB_OPT, OPT_FLAG(struct args, json, "json", "print JSON"), OPT_END };
static const struct opts_cmd show_cmd = {
	.name = "viv net show", .usage = "", .opts = show_opts,
	.summary = "cards with their counters, and rules with theirs",
};
static const struct opt rule_opts[] = {
	LAB_OPT,
	OPT_LIST(struct args, names, "name", "DOMAIN", "of the internet only what has this name; may be given again"),
	OPT_END,
};
static const struct opts_cmd allow_cmd = {
	.name = "viv net allow", .usage = "'FROM -> TO' [WHAT]", .opts = rule_opts, .min_args = 1, .max_args = 2,
	.summary = "let something pass from now on, before all other rules",
	.details = "FROM and TO are NETWORK.MACHINE, NETWORK.* or, on the right, internet; WHAT is tcp/80,443, udp/53, icmp or any.",
};
static const struct opt deny_opts[] = { LAB_OPT, OPT_END };
static const struct opts_cmd deny_cmd = {
	.name = "viv net deny", .usage = "'FROM -> TO' [WHAT]", .opts = deny_opts, .min_args = 1, .max_args = 2,
	.summary = "let something pass no more, before all other rules; open connections end, too",
};
static const struct opts_cmd remove_cmd = {
	.name = "viv net remove", .usage = "ID", .opts = deny_opts, .min_args = 1, .max_args = 1,
	.summary = "take a rule away; viv net show tells its number",
};
static const struct opts_cmd fault_cmd = {
	.name = "viv net fault", .usage = "NETWORK.MACHINE SETTING...", .opts = deny_opts, .min_args = 2, .max_args = 8,
	.summary = "make the link of a card bad: latency=20ms jitter=5ms loss=1% reorder=1% bandwidth=1M partition=on none=on",
};
// clang-format on

static json_t *rule_request(const char *cmd, const struct args *a, const struct opts_rest *rest)
{
	json_t *names = a->names.n ? json_array() : NULL; /* without: a rule of all names */

	for (unsigned i = 0; i < a->names.n; i++)
		json_array_append_new(names, json_string(a->names.v[i]));
	return json_pack("{s:s, s:s, s:s*, s:o*}", "cmd", cmd, "rule", rest->args[0], "what",
			 rest->nargs > 1 ? rest->args[1] : NULL, "names", names);
}

static json_t *fault_request(const struct opts_rest *rest, struct error *err)
{
	json_t *settings = json_object();

	for (unsigned i = 1; i < rest->nargs; i++) {
		const char *eq = strchr(rest->args[i], '=');
		if (!eq) {
			json_decref(settings);
			error_set(err, -EINVAL, "\"%s\" is no setting; write latency=20ms",
				  rest->args[i]);
			return NULL;
		}
		_cleanup_free_ char *key = strndup(rest->args[i], (size_t)(eq - rest->args[i]));
		json_object_set_new(settings, key ? key : "", json_string(eq + 1));
	}
	return json_pack("{s:s, s:s, s:o}", "cmd", "fault", "card", rest->args[0], "settings", settings);
}

static json_t *make_request(const char *verb, const struct args *a, const struct opts_rest *rest,
			    struct error *err)
{
	uint64_t id;

	if (strcmp(verb, "show") == 0)
		return json_pack("{s:s}", "cmd", "show");
	if (strcmp(verb, "fault") == 0)
		return fault_request(rest, err);
	if (strcmp(verb, "remove") != 0)
		return rule_request(verb, a, rest);
	if (opts_parse_uint(rest->args[0], &id) == 0 && id <= UINT32_MAX)
		return json_pack("{s:s, s:I}", "cmd", "remove", "id", (json_int_t)id);
	error_set(err, -EINVAL, "\"%s\" is no number of a rule", rest->args[0]);
	return NULL;
}

static int ask(const struct opts_cmd *cmd, const char *verb, int argc, char **argv)
{
	struct args a = { 0 };
	struct opts_rest rest;
	struct error err = { "no memory" };
	json_t *reply = NULL;
	int status;

	if (!cli_parse(cmd, argc, argv, &a, &rest, &status))
		return status;
	json_t *request = make_request(verb, &a, &rest, &err);
	if (!request) {
		status = cli_usage(cmd, &err);
	} else {
		_cleanup_free_ char *lab = a.lab ? strdup(a.lab) : lab_find(NULL, &err);
		int r = lab ? lab_request(lab, request, &reply, &err) : -ENOENT;
		if (!lab)
			json_decref(request);
		status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	}
	if (reply && strcmp(verb, "show") == 0 && a.json) {
		json_object_del(reply, "ok");
		status = cli_print_json(json_incref(reply));
	} else if (reply && strcmp(verb, "show") == 0) {
		print_lab(reply);
	}
	json_decref(reply);
	opts_free(cmd, &a, &rest);
	return status;
}

/* ---- the process of a lab ---- */

struct lab_args {
	const char *file;
	uint64_t control_fd, ready_fd;
};
// clang-format off
static const struct opt lab_opts[] = {
	OPT_STRING(struct lab_args, file, "file", "FILE", "the lab"),
	OPT_UINT(struct lab_args, control_fd, "control-fd", "N", "listening control socket", 3, INT32_MAX),
	OPT_UINT(struct lab_args, ready_fd, "ready-fd", "N", "tell here, once, whether it serves", 3, INT32_MAX),
	OPT_END,
};
static const struct opts_cmd lab_cmd = {
	.name = "viv net lab", .usage = "", .summary = "internal: the network of a lab", .opts = lab_opts,
};
// clang-format on

static int run_lab(int argc, char **argv)
{
	struct labd_config cfg = { .ready_fd = -1,
				   .resolv_conf = "/etc/resolv.conf",
				   .is_confined = true,
				   .watches_host = true };
	struct lab_args a = { 0 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&lab_cmd, argc, argv, &a, &rest, &status))
		return status;
	opts_free(&lab_cmd, &a, &rest);
	if (!a.file || !a.control_fd) {
		error_set(&err, -EINVAL, "viv net lab is started by viv up");
		return cli_usage(&lab_cmd, &err);
	}
	cfg.control_fd = (int)a.control_fd;
	cfg.ready_fd = a.ready_fd ? (int)a.ready_fd : -1;
	if (lab_load(&cfg.lab, a.file, &err) < 0) {
		if (cfg.ready_fd >= 0)
			dprintf(cfg.ready_fd, "%s\n", err.text);
		return cli_fail(&err);
	}
	return labd_main(&cfg);
}

// clang-format off
static const struct {
	const char *name, *summary;
	const struct opts_cmd *cmd;
} tools[] = {
	{ "show",   "cards and rules with their counters",       &show_cmd },
	{ "allow",  "let something pass from now on",            &allow_cmd },
	{ "deny",   "let something pass no more",                &deny_cmd },
	{ "remove", "take a rule away",                          &remove_cmd },
	{ "fault",  "latency, loss, bandwidth ... of a card",    &fault_cmd },
	{ "capture", "write packets to a file",                  &cli_capture_cmd },
};
// clang-format on

static bool action_at(unsigned i, struct opts_action *out)
{
	if (i >= ARRAY_SIZE(tools))
		return false;
	*out = (struct opts_action){ tools[i].name, tools[i].cmd->usage, tools[i].summary, tools[i].cmd };
	return true;
}

static const struct opt net_opts[] = { OPT_END };
const struct opts_cmd cli_net_cmd = {
	.name = "viv net",
	.usage = "ACTION ...",
	.summary = "show and change what a lab's network lets pass, while it runs",
	.details = "Each action has options of its own, which its --help shows.",
	.opts = net_opts,
	.min_args = 1,
	.max_args = 1024,
	.action = action_at,
};

static int print_usage(FILE *out, int status)
{
	opts_help(&cli_net_cmd, out);
	return status;
}

int cli_net(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	const char *names[ARRAY_SIZE(tools) + 1] = { NULL };

	/* The processes, as viv starts them. */
	if (strncmp(verb, "--fd", 4) == 0)
		return netd_cli(argc, argv);
	if (strcmp(verb, "lab") == 0)
		return run_lab(argc - 1, argv + 1);
	if (strcmp(verb, "--help") == 0 || strcmp(verb, "-h") == 0)
		return print_usage(stdout, EXIT_FINE);
	for (unsigned i = 0; i < ARRAY_SIZE(tools); i++) {
		names[i] = tools[i].name;
		if (strcmp(verb, tools[i].name) == 0 && tools[i].cmd == &cli_capture_cmd)
			return cli_capture(argc - 1, argv + 1);
		if (strcmp(verb, tools[i].name) == 0)
			return ask(tools[i].cmd, verb, argc - 1, argv + 1);
	}
	if (!*verb)
		return print_usage(stderr, EXIT_USAGE);
	const char *meant = opts_suggest(verb, names);
	if (meant)
		cli_note("there is no viv net %s; did you mean \"%s\"?", verb, meant);
	else
		cli_note("there is no viv net %s; viv net --help lists what there is", verb);
	return EXIT_USAGE;
}

/* ---- quarantine ---- */

// clang-format off
static const struct opt quarantine_opts[] = {
	OPT_STRING_L(struct args, output, "output", 'o', "FILE", "capture what it tries to send from now on, pcapng"),
	LAB_OPT, OPT_FLAG(struct args, end, "end", "connect it again"), OPT_END,
};
const struct opts_cmd cli_quarantine_cmd = {
	.name = "viv quarantine", .usage = "MACHINE", .opts = quarantine_opts, .min_args = 1, .max_args = 1,
	.summary = "cut a machine of a lab off, at once and from everything; it keeps running",
};
// clang-format on

int cli_quarantine(int argc, char **argv)
{
	struct args a = { 0 };
	struct opts_rest rest;
	struct error err;
	json_t *reply = NULL;
	int status;

	if (!cli_parse(&cli_quarantine_cmd, argc, argv, &a, &rest, &status))
		return status;
	_cleanup_free_ char *lab = a.lab ? strdup(a.lab) : lab_find(rest.args[0], &err);
	/* The capture first: not a packet is missed. */
	int capture_fd = -1;
	int r = lab ? 0 : -ENOENT;
	if (r == 0 && a.output)
		r = lab_capture(lab, rest.args[0], a.output, json_pack("{s:b}", "stay", 1),
				&capture_fd, &err);
	if (capture_fd >= 0)
		close(capture_fd);
	status = r < 0 || lab_request(lab,
				      json_pack("{s:s, s:s, s:b}", "cmd", "quarantine", "machine",
						rest.args[0], "on", !a.end),
				      &reply, &err) < 0
			 ? cli_fail(&err)
			 : EXIT_FINE;
	json_decref(reply);
	opts_free(&cli_quarantine_cmd, &a, &rest);
	return status;
}
