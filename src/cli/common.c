/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "ctl/base64.h"
#include "ctl/client.h"
#include "ctl/ctl.h"

int cli_fail(const struct error *err)
{
	fprintf(stderr, "viv: %s\n", err->text);
	return EXIT_FAILED;
}

int cli_usage(const struct opts_cmd *cmd, const struct error *err)
{
	fprintf(stderr, "viv: %s; %s --help tells how it is used\n", err->text, cmd->name);
	return EXIT_USAGE;
}

void cli_note(const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "viv: %s\n", text);
}

bool cli_parse(const struct opts_cmd *cmd, int argc, char **argv, void *obj, struct opts_rest *rest,
	       int *status)
{
	struct error err;
	int r = opts_parse(cmd, argc, argv, obj, rest, &err);

	if (r == OPTS_OK)
		return true;
	if (r == OPTS_HELP) {
		opts_help(cmd, stdout);
		opts_free(cmd, obj, rest);
		*status = EXIT_FINE;
	} else if (r == -EINVAL) {
		*status = cli_usage(cmd, &err);
	} else {
		*status = cli_fail(&err);
	}
	return false;
}

int cli_print_json(json_t *json)
{
	struct error err;
	int r = json ? json_dumpf(json, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY) : -1;

	json_decref(json);
	if (r < 0 || putchar('\n') == EOF || fflush(stdout) == EOF) {
		error_set(&err, -EIO, "cannot write the output");
		return cli_fail(&err);
	}
	return EXIT_FINE;
}

/* ---- commands in a guest ---- */

static int write_fd(int fd, const uint8_t *p, size_t len)
{
	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int cli_decode(json_t *obj, const char *key, int fd, struct error *err)
{
	_cleanup_bytes_ struct bytes raw = { 0 };
	json_t *v = json_object_get(obj, key);

	if (!v)
		return 0;
	if (!json_is_string(v) || base64_decode(&raw, json_string_value(v), json_string_length(v)) < 0)
		return error_set(err, -EPROTO, "the guest agent's answer makes no sense");
	int r = write_fd(fd, raw.data, raw.len);

	/* A closed pipe is the reader's wish. */
	return r == 0 || r == -EPIPE ? 0
				     : error_set(err, r, "cannot write the output: %s", strerror(-r));
}

int cli_command_status(json_t *result)
{
	json_t *code = json_object_get(result, "exitcode"),
	       *sig = json_object_get(result, "signal");

	if (json_is_integer(sig))
		return 128 + (int)(json_integer_value(sig) & 127);
	return json_is_integer(code) ? (int)(json_integer_value(code) & 255) : EXIT_FAILED;
}

/* The socket's line holds everything: base64 makes 4 of 3. */
#define INPUT_MAX (CTL_LINE_MAX / 4 * 3 - 256 * KIB)

static int read_input(struct bytes *text, struct error *err)
{
	_cleanup_bytes_ struct bytes raw = { 0 };
	uint8_t buf[16384];
	ssize_t n;

	while ((n = read(STDIN_FILENO, buf, sizeof(buf))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, -errno, "cannot read the input: %s", strerror(errno));
		bytes_put(&raw, buf, (size_t)n);
		if (raw.len > INPUT_MAX)
			return error_set(err, -EFBIG, "more than %llu bytes of input cannot be passed",
					 (unsigned long long)INPUT_MAX);
	}
	base64_encode(text, raw.data, raw.len);
	bytes_put_u8(text, 0);
	return raw.is_failed || text->is_failed ? error_set(err, -ENOMEM, "no memory for the input") : 0;
}

json_t *cli_exec_request(char **argv, bool with_input, struct error *err)
{
	_cleanup_bytes_ struct bytes input = { 0 };
	json_t *list = json_array();

	for (; *argv; argv++) {
		if (json_array_append_new(list, json_string(*argv)) < 0) {
			error_set(err, -EINVAL, "an argument is not valid UTF-8");
			json_decref(list);
			return NULL;
		}
	}
	if (json_array_size(list) > CTL_EXEC_MAX_ARGS || (with_input && read_input(&input, err) < 0)) {
		if (!with_input || json_array_size(list) > CTL_EXEC_MAX_ARGS)
			error_set(err, -E2BIG, "a command has at most %d words", CTL_EXEC_MAX_ARGS);
		json_decref(list);
		return NULL;
	}
	json_t *request = json_pack("{s:s, s:o, s:s*}", "cmd", "exec", "argv", list, "input",
				    with_input ? (char *)input.data : NULL);

	if (!request)
		error_set(err, -ENOMEM, "no memory for the command");
	return request;
}

int cli_guest_run(int fd, char **argv, int *status, char **out, struct error *err)
{
	_cleanup_bytes_ struct bytes text = { 0 };
	json_t *reply = NULL, *request = cli_exec_request(argv, false, err);
	int r = request ? client_call(fd, request, -1, &reply, err) : -EINVAL;
	json_t *data = json_object_get(reply, "out-data");

	if (r == 0 && json_is_string(data) &&
	    base64_decode(&text, json_string_value(data), json_string_length(data)) < 0)
		r = error_set(err, -EPROTO, "the guest agent's answer makes no sense");
	if (r == 0) {
		bytes_put_u8(&text, 0);
		if (text.is_failed)
			r = error_set(err, -ENOMEM, "no memory for what the guest says");
	}
	if (r == 0) {
		*status = cli_command_status(reply);
		if (out) {
			*out = (char *)text.data;
			text = (struct bytes){ 0 };
		}
	}
	json_decref(reply);
	return r;
}

/* ---- progress ---- */

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

void progress_start(struct progress *p, const char *what)
{
	*p = (struct progress){ .what = what, .start_ms = now_ms() };
	if (!isatty(STDERR_FILENO))
		cli_note("%s", what);
}

void progress_tick(struct progress *p, int permille)
{
	int64_t now = now_ms();

	if (!isatty(STDERR_FILENO) || now - p->start_ms < 1000 || now - p->shown_ms < 200)
		return;
	p->shown_ms = now;
	p->is_shown = true;
	if (permille >= 0)
		fprintf(stderr, "\r\033[K%s ... %d %%", p->what, permille / 10);
	else
		fprintf(stderr, "\r\033[K%s ... %lld s", p->what, (long long)(now - p->start_ms) / 1000);
	fflush(stderr);
}

void progress_end(struct progress *p)
{
	if (p->is_shown)
		fprintf(stderr, "\r\033[K");
	p->is_shown = false;
}
