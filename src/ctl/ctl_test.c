/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket: requests, and clients that behave badly.  The machine is played by the test. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "char/chardev.h"
#include "ctl/client.h"
#include "ctl/conn.h"
#include "ctl/events.h"
#include "ctl/paths.h"
#include "ctl/schema.h"
#include "ctl/socket.h"

/* Requests reach the machine by these; the real ones are tested in vm/machine_test.c. */
struct machine {
	pthread_mutex_t lock;
	struct loop *loop;
	enum machine_state state;
	int64_t stop_timeout_ns;
	void (*on_event)(void *arg, enum machine_event event);
	void *event_arg;
};

#define WRAP(ret, name, ...)                                                                       \
	ret __wrap_##name(__VA_ARGS__);                                                            \
	ret __wrap_##name(__VA_ARGS__)

WRAP(struct loop *, machine_loop, struct machine *m)
{
	return m->loop;
}
WRAP(int, machine_pause, struct machine *m, struct error *err)
{
	if (m->state == MACHINE_PAUSED)
		return error_set(err, -EALREADY, "the machine is paused already");
	m->state = MACHINE_PAUSED;
	return 0;
}
WRAP(int, machine_resume, struct machine *m, struct error *err)
{
	m->state = MACHINE_RUNNING;
	return 0;
}
WRAP(int, machine_reset, struct machine *m, struct error *err)
{
	return error_set(err, -EIO, "file \xff is bad");
}
WRAP(int, machine_stop, struct machine *m, int64_t timeout_ns, struct error *err)
{
	m->stop_timeout_ns = timeout_ns;
	return 0;
}
WRAP(void, machine_watch, struct machine *m, void (*fn)(void *arg, enum machine_event event), void *arg)
{
	m->on_event = fn;
	m->event_arg = arg;
}
WRAP(const char *, machine_why_no_resume, const struct machine *m)
{
	return NULL;
}
WRAP(int, machine_inject_nmi, struct machine *m, unsigned index, struct error *err)
{
	return index ? error_set(err, -EINVAL, "no such CPU") : 0;
}
WRAP(void, machine_info, struct machine *m, struct machine_info *out)
{
	*out = (struct machine_info){ .state = m->state, .engine = "fake", .cpu = "host", .cpus = 2 };
}
WRAP(void, machine_counters, struct machine *m, const struct machine_counter_sink *sink)
{
	sink->fn(sink->arg, 0, "halts", 5);
	sink->fn(sink->arg, 1, "halts", 6);
}
WRAP(void, machine_device_counters, struct machine *m, const struct machine_counter_sink *sink)
{
	sink->fn(sink->arg, 0, "uart0", 3);
	sink->fn(sink->arg, 0, "pit", 1);
	sink->fn(sink->arg, 0, "uart0", 4); /* another range of it */
}
WRAP(void, machine_disk_counters, struct machine *m, const struct machine_counter_sink *sink)
{
	sink->fn(sink->arg, 0, "reads", 8);
	sink->fn(sink->arg, 1, "reads", 9);
}
WRAP(void, machine_card_counters, struct machine *m, const struct machine_counter_sink *sink)
{
	sink->fn(sink->arg, 0, "rx_bytes", 60);
}

struct world {
	struct machine m;
	struct vclock clock; /* by hand */
	struct char_dev *hub;
	struct agent *agent;
	struct ctl *ctl;
	char path[128];
};

static char home[] = "/tmp/viv-ctl-XXXXXX";

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct error err;
	struct ctl_config cfg = { .engine_reason = "because" };

	assert_non_null(w);
	pthread_mutex_init(&w->m.lock, NULL);
	w->m.state = MACHINE_RUNNING;
	vclock_init(&w->clock);
	assert_int_equal(loop_create(&w->m.loop, &w->m.lock, &err), 0);
	assert_int_equal(chardev_hub(&w->hub, w->m.loop, 4096, -1, &err), 0);
	assert_int_equal(agent_create(&w->agent, w->m.loop, &w->clock, &err), 0);
	snprintf(w->path, sizeof(w->path), "%s/control.sock", home);
	cfg.machine = &w->m;
	cfg.clock = &w->clock;
	cfg.console = w->hub;
	cfg.agent = w->agent;
	int fd = socket_listen(w->path, &err);

	assert_true(fd >= 0);
	assert_int_equal(ctl_create(&w->ctl, fd, &cfg, &err), 0);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	ctl_destroy(w->ctl);
	agent_destroy(w->agent);
	w->hub->ops->close(w->hub);
	loop_destroy(w->m.loop);
	pthread_mutex_destroy(&w->m.lock);
	unlink(w->path);
	free(w);
	return 0;
}

static void run(struct world *w)
{
	while (loop_run_once(w->m.loop, 5) > 0)
		continue;
}

static void advance(struct world *w, int64_t ns)
{
	vclock_set(&w->clock, vclock_now_ns(&w->clock) + ns);
	vclock_start(&w->clock);
	loop_clock_changed(w->m.loop);
	run(w);
	vclock_stop(&w->clock);
	loop_clock_changed(w->m.loop);
}

static int dial(struct world *w)
{
	struct error err;
	int fd = socket_connect(w->path, &err);

	assert_true(fd >= 0);
	run(w);
	return fd;
}

static void put(struct world *w, int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
	run(w);
}

static bool is_closed(int fd)
{
	char c;
	ssize_t n = recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK);

	return n == 0 || (n < 0 && errno == ECONNRESET);
}

/* The next answer, which must be there already. */
static json_t *answer(int fd)
{
	static char line[65536];
	size_t len = 0;

	while (len < sizeof(line) && recv(fd, line + len, 1, MSG_DONTWAIT) == 1) {
		if (line[len++] == '\n')
			break;
	}
	json_t *json = json_loadb(line, len, 0, NULL);

	assert_non_null(json);
	return json;
}

static void expect(struct world *w, int fd, const char *request, bool is_ok, const char *part)
{
	put(w, fd, request);
	json_t *json = answer(fd);
	char *text = json_dumps(json, JSON_COMPACT);

	assert_int_equal(json_is_true(json_object_get(json, "ok")), is_ok);
	if (!strstr(text, part))
		fail_msg("%s -> %s, not %s", request, text, part);
	free(text);
	json_decref(json);
}

static void test_requests(void **state)
{
	struct world *w = *state;
	int fd = dial(w);

	expect(w, fd, "{\"cmd\":\"status\"}\n", true, "\"state\":\"running\"");
	expect(w, fd, "{\"cmd\":\"pause\"}\n", true, "ok");
	expect(w, fd, "{\"cmd\":\"pause\"}\n", false, "paused already");
	expect(w, fd, "{\"cmd\":\"status\"}\n", true, "\"state\":\"paused\"");
	expect(w, fd, "{\"cmd\":\"info\"}\n", true, "\"counters\":[{\"halts\":5},{\"halts\":6}]");
	expect(w, fd, "{\"cmd\":\"info\"}\n", true, "\"devices\":{\"uart0\":7,\"pit\":1}");
	expect(w, fd, "{\"cmd\":\"info\"}\n", true, "\"disk_counters\":[{\"reads\":8},{\"reads\":9}]");
	expect(w, fd, "{\"cmd\":\"info\"}\n", true, "\"card_counters\":[{\"rx_bytes\":60}]");
	expect(w, fd, "{\"cmd\":\"info\"}\n", true, "\"process\":{\"cpu_time_ns\":");
	expect(w, fd, "{\"cmd\":\"stop\",\"timeout_ms\":1500}\n", true, "ok");
	assert_int_equal(w->m.stop_timeout_ns, 1500000000);
	expect(w, fd, "{\"cmd\":\"quit\"}\n", true, "ok");
	assert_int_equal(w->m.stop_timeout_ns, 0);
	expect(w, fd, "{\"cmd\":\"nmi\",\"cpu\":1}\n", false, "no such CPU");
	expect(w, fd, "{\"cmd\":\"help\"}\n", true, "guest");
	/* an answer that cannot be written as it is */
	expect(w, fd, "{\"cmd\":\"reset\"}\n", false, "UTF-8");
	close(fd);
}

static void test_pipelined(void **state)
{
	struct world *w = *state;
	int fd = dial(w);

	/* several at once, cut anywhere */
	put(w, fd, "{\"cmd\":\"pause\"}\n{\"cmd\":\"res");
	put(w, fd, "ume\"}\n{\"cmd\":\"status\"}\n");
	for (unsigned i = 0; i < 3; i++)
		json_decref(answer(fd));
	/* who has said all still gets the answer */
	put(w, fd, "{\"cmd\":\"status\"}\n");
	shutdown(fd, SHUT_WR);
	run(w);
	json_decref(answer(fd));
	assert_true(is_closed(fd));
	close(fd);
	/* and who leaves at once is obeyed */
	fd = dial(w);
	assert_int_equal(w->m.state, MACHINE_RUNNING);
	assert_true(send(fd, "{\"cmd\":\"pause\"}\n", 16, 0) == 16);
	close(fd);
	run(w);
	assert_int_equal(w->m.state, MACHINE_PAUSED);
	assert_int_equal(w->ctl->nconns, 0);
}

static void test_bad_requests(void **state)
{
	static const char *const bad[] = {
		"\n",
		"x\n",
		"[]\n",
		"{}\n",
		"{\"cmd\":5}\n",
		"{\"cmd\":\"\"}\n",
		"{\"cmd\":\"format\"}\n",
		"{\"cmd\":\"status\",\"x\":1}\n",
		"{\"cmd\":\"status\",\"cmd\":\"pause\"}\n",
		"{\"cmd\":\"stop\",\"timeout_ms\":-1}\n",
		"{\"cmd\":\"stop\",\"timeout_ms\":99999999999}\n",
		"{\"cmd\":\"stop\",\"timeout_ms\":1.5}\n",
		"{\"cmd\":\"resize\",\"cols\":80}\n",
		"{\"cmd\":\"resize\",\"cols\":0,\"rows\":1}\n",
		"{\"cmd\":\"exec\"}\n",
		"{\"cmd\":\"exec\",\"argv\":[]}\n",
		"{\"cmd\":\"exec\",\"argv\":[1]}\n",
		"{\"cmd\":\"exec\",\"argv\":\"ls\"}\n",
		"{\"cmd\":\"console\",\"backlog\":1}\n",
		"\xff\xfe\n",
		"{\"cmd\":\"a\\u0000\"}\n",
	};
	struct world *w = *state;
	int fd = dial(w);

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		expect(w, fd, bad[i], false, "error");
	expect(w, fd, "{\"cmd\":\"status\"}\n", true, "running"); /* none the worse for it */
	close(fd);
}

static void test_slow_clients(void **state)
{
	struct world *w = *state;
	int half = dial(w), idle = dial(w), deaf = dial(w), busy = dial(w);

	put(w, half, "{\"cmd\":");
	put(w, busy, "{\"cmd\":\"agent\",\"timeout_ms\":600000}\n");
	/* asks and asks, and never reads */
	static char questions[400 * 15 + 1];

	for (unsigned i = 0; i < 400; i++)
		memcpy(questions + i * 15, "{\"cmd\":\"help\"}\n", 16);
	put(w, deaf, questions);
	assert_int_equal(w->ctl->nconns, 4);
	advance(w, CTL_LINE_TIMEOUT_NS - 3000000000);
	assert_false(is_closed(half));
	advance(w, 3000000000);
	assert_true(is_closed(half));
	advance(w, CTL_WRITE_TIMEOUT_NS);
	assert_int_equal(w->ctl->nconns, 2); /* deaf is gone */
	assert_false(is_closed(idle));
	advance(w, CTL_IDLE_TIMEOUT_NS);
	assert_true(is_closed(idle));
	assert_false(is_closed(busy)); /* it waits for us */
	advance(w, 600000000000);
	json_t *json = answer(busy);

	assert_false(json_is_true(json_object_get(json, "ok")));
	json_decref(json);
	close(half);
	close(idle);
	close(deaf);
	close(busy);
}

static void test_floods(void **state)
{
	struct world *w = *state;
	static char junk[65536];
	int fds[CTL_MAX_CLIENTS + 8], fd = dial(w);
	size_t sent = 0;

	/* a line without end */
	memset(junk, 'x', sizeof(junk));
	while (!is_closed(fd) && sent <= 2 * CTL_LINE_MAX) {
		ssize_t n = send(fd, junk, sizeof(junk), MSG_NOSIGNAL | MSG_DONTWAIT);

		sent += n > 0 ? (size_t)n : 0;
		run(w);
	}
	assert_true(is_closed(fd));
	assert_in_range(sent, CTL_LINE_MAX - MIB, CTL_LINE_MAX + MIB);
	close(fd);
	/* more clients than there is room: the newest are served */
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = dial(w);
	assert_int_equal(w->ctl->nconns, CTL_MAX_CLIENTS);
	assert_true(is_closed(fds[0]));
	expect(w, fds[ARRAY_SIZE(fds) - 1], "{\"cmd\":\"status\"}\n", true, "running");
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	run(w);
	assert_int_equal(w->ctl->nconns, 0);
}

/* The client of a pending command goes: its job goes with it. */
static void test_leaving_client(void **state)
{
	struct world *w = *state;
	int fd = dial(w);

	put(w, fd, "{\"cmd\":\"exec\",\"argv\":[\"sleep\",\"9\"]}\n");
	assert_non_null(w->ctl->conns->job);
	close(fd);
	run(w);
	assert_int_equal(w->ctl->nconns, 0);
	advance(w, 1000000000);
}

static uint8_t typed[64];
static size_t ntyped;

static size_t can_receive(void *ctx)
{
	return sizeof(typed) - ntyped;
}

static void receive(void *ctx, const uint8_t *data, size_t len)
{
	memcpy(typed + ntyped, data, len);
	ntyped += len;
}

static void test_console(void **state)
{
	struct world *w = *state;
	char buf[64];
	int fd = dial(w);

	ntyped = 0;
	w->hub->user = (struct char_user){ .can_receive = can_receive, .receive = receive };
	assert_int_equal(w->hub->ops->write(w->hub, (const uint8_t *)"login: ", 7), 7);
	/* what is typed together with the request belongs to the console */
	put(w, fd, "{\"cmd\":\"console\",\"backlog\":true}\nroot\n");
	json_t *json = answer(fd);

	assert_true(json_is_true(json_object_get(json, "ok")));
	json_decref(json);
	assert_int_equal(recv(fd, buf, sizeof(buf), MSG_DONTWAIT), 7);
	assert_memory_equal(buf, "login: ", 7);
	assert_int_equal(ntyped, 5);
	assert_memory_equal(typed, "root\n", 5);
	assert_int_equal(w->ctl->nconns, 0); /* no longer the control socket's */
	advance(w, 10 * CTL_IDLE_TIMEOUT_NS);
	assert_false(is_closed(fd));
	close(fd);
	run(w);
}

static void *serve(void *arg)
{
	struct world *w = arg;

	loop_run(w->m.loop);
	return NULL;
}

/* The client's side, against the real server. */
/* ---- events ---- */

static void expect_event(int fd, const char *part)
{
	json_t *json = answer(fd);
	char *text = json_dumps(json, JSON_COMPACT);

	assert_null(json_object_get(json, "ok"));
	assert_true(json_is_string(json_object_get(json, "time")));
	if (!strstr(text, part))
		fail_msg("%s, not %s", text, part);
	free(text);
	json_decref(json);
}

static void test_events(void **state)
{
	struct world *w = *state;
	int fd = dial(w), other = dial(w);
	char c;

	w->m.on_event(w->m.event_arg, MACHINE_WAS_RESET); /* nobody listens */
	expect(w, fd, "{\"cmd\":\"subscribe\"}\n", true, "\"state\":\"running\"");
	w->m.on_event(w->m.event_arg, MACHINE_WAS_RESET);
	w->m.state = MACHINE_PAUSED;
	w->m.on_event(w->m.event_arg, MACHINE_STATE_CHANGED);
	w->m.on_event(w->m.event_arg, MACHINE_TRIPLE_FAULT);
	run(w);
	expect_event(fd, "\"event\":\"reset\"");
	expect_event(fd, "\"state\":\"paused\"");
	expect_event(fd, "triple fault");
	assert_int_equal(recv(other, &c, 1, MSG_DONTWAIT), -1);
	/* It may go on asking, and sit idle as long as it likes; others may not. */
	expect(w, fd, "{\"cmd\":\"status\"}\n", true, "paused");
	advance(w, 2 * CTL_IDLE_TIMEOUT_NS);
	assert_true(is_closed(other) && !is_closed(fd));
	const struct machine_end end = { END_POWEROFF, 0, "it is over" };

	ctl_ended(w->ctl, &end);
	expect_event(fd, "\"reason\":\"poweroff\",\"status\":0,\"text\":\"it is over\"");
	close(fd);
	close(other);
}

/* Nobody waits for who does not read, what is kept for it is bounded, and it learns what it missed. */
static void test_slow_subscriber(void **state)
{
	struct world *w = *state;
	int slow = dial(w), fast = dial(w);
	uint64_t got = 0, lost = 0;
	const unsigned total = 20000;

	expect(w, slow, "{\"cmd\":\"subscribe\"}\n", true, "ok");
	expect(w, fast, "{\"cmd\":\"subscribe\"}\n", true, "ok");
	for (unsigned i = 0; i < total; i++) {
		w->m.on_event(w->m.event_arg, MACHINE_WAS_RESET);
		while (loop_run_once(w->m.loop, 0) > 0)
			continue;
		expect_event(fast, "reset");
	}
	for (struct ctl_conn *c = w->ctl->conns; c; c = c->next)
		assert_true(c->out.len <= 2 * CTL_EVENTS_MAX);
	advance(w, 2 * CTL_WRITE_TIMEOUT_NS);
	while (got + lost < total) {
		json_t *json = answer(slow);

		if (json_object_get(json, "count"))
			lost += (uint64_t)json_integer_value(json_object_get(json, "count"));
		else
			got++;
		json_decref(json);
		while (loop_run_once(w->m.loop, 0) > 0)
			continue;
	}
	assert_true(lost > 0 && got + lost == total);
	/* From here on it misses nothing. */
	w->m.on_event(w->m.event_arg, MACHINE_WAS_RESET);
	run(w);
	expect_event(slow, "reset");
	/* Events that come all at once, from another thread, are bounded as well. */
	for (unsigned i = 0; i < total; i++)
		w->m.on_event(w->m.event_arg, MACHINE_WAS_RESET);
	assert_true(w->ctl->events.len <= CTL_EVENTS_MAX);
	close(slow);
	close(fast);
}

static void test_schema(void **state)
{
	json_t *schema = ctl_schema(), *defs = json_object_get(schema, "$defs");
	char key[80];

	assert_non_null(schema);
	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		snprintf(key, sizeof(key), "%s.answer", c->name);
		json_t *answer_of = json_object_get(defs, key);

		assert_true(json_is_object(answer_of));
		for (const struct ctl_field *f = c->answer; f && f->name; f++) {
			if (!json_is_object(json_object_get(
				    json_object_get(answer_of, "properties"), f->name)))
				fail_msg("%s: %s", key, f->name);
			assert_true(f->help && *f->help);
		}
		snprintf(key, sizeof(key), "%s.request", c->name);
		assert_true(json_is_object(json_object_get(defs, key)));
	}
	json_decref(schema);
}

static void test_client(void **state)
{
	struct world *w = *state;
	struct error err = { "" };
	json_t *reply = NULL;
	pthread_t thread;
	char dir[128];

	setenv("VIVARIUM_HOME", home, 1);
	assert_int_equal(client_connect("none", &err), -ENOENT);
	assert_non_null(strstr(err.text, "viv list"));
	assert_int_equal(client_connect("../x", &err), -EINVAL);
	snprintf(dir, sizeof(dir), "%s/run/m", home);
	assert_int_equal(paths_make(dir, &err), 0);
	snprintf(dir, sizeof(dir), "%s/run/m/control.sock", home);
	assert_int_equal(rename(w->path, dir), 0);
	assert_int_equal(pthread_create(&thread, NULL, serve, w), 0);
	int fd = client_connect("m", &err);

	assert_true(fd >= 0);
	assert_int_equal(client_call(fd, json_pack("{s:s}", "cmd", "status"), 5000, &reply, &err), 0);
	assert_string_equal(json_string_value(json_object_get(reply, "engine")), "fake");
	json_decref(reply);
	assert_int_equal(client_call(fd, json_pack("{s:s}", "cmd", "nonsense"), 5000, &reply, &err),
			 -EREMOTEIO);
	assert_non_null(strstr(err.text, "nonsense"));
	assert_int_equal(client_call(fd, json_pack("{s:s, s:i}", "cmd", "agent", "timeout_ms", 60000),
				     50, &reply, &err),
			 -ETIMEDOUT);
	close(fd);
	loop_stop(w->m.loop, 0);
	pthread_join(thread, NULL);
	assert_int_equal(rename(dir, w->path), 0);
}

static int remove_home(void **state)
{
	return paths_remove_tree(home, NULL);
}

static int make_home(void **state)
{
	return mkdtemp(home) ? 0 : -1;
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_requests),	 T(test_pipelined), T(test_bad_requests),
		T(test_slow_clients),	 T(test_floods),    T(test_leaving_client),
		T(test_console),	 T(test_client),    T(test_events),
		T(test_slow_subscriber), T(test_schema),
	};

	return cmocka_run_group_tests(tests, make_home, remove_home);
}
