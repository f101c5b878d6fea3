/* SPDX-License-Identifier: Apache-2.0 */
/* The guest agent's channel against an agent played by the test. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "ctl/agent.h"
#include "ctl/base64.h"

#define S 1000000000LL

struct world {
	pthread_mutex_t lock;
	struct loop *loop;
	struct vclock clock; /* moved by hand: time-outs without waiting */
	struct agent *a;
	struct char_dev *chr;
	char sent[65536]; /* what the guest received */
	size_t nsent, room;
	unsigned ndone;
	int code;
	json_t *result;
	char text[512];
};

static size_t can_receive(void *ctx)
{
	struct world *w = ctx;

	return w->room;
}

static void receive(void *ctx, const uint8_t *data, size_t len)
{
	struct world *w = ctx;

	assert_true(len <= w->room && w->nsent + len < sizeof(w->sent));
	memcpy(w->sent + w->nsent, data, len);
	w->nsent += len;
	w->sent[w->nsent] = 0;
}

static void done(void *ctx, json_t *result, const struct error *err)
{
	struct world *w = ctx;

	w->ndone++;
	w->code = err ? -1 : 0;
	snprintf(w->text, sizeof(w->text), "%s", err ? err->text : "");
	json_decref(w->result);
	w->result = result ? json_deep_copy(result) : NULL;
}

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct error err;

	assert_non_null(w);
	pthread_mutex_init(&w->lock, NULL);
	vclock_init(&w->clock);
	assert_int_equal(loop_create(&w->loop, &w->lock, &err), 0);
	assert_int_equal(agent_create(&w->a, w->loop, &w->clock, &err), 0);
	w->chr = agent_chardev(w->a);
	w->chr->user = (struct char_user){ .can_receive = can_receive, .receive = receive, .ctx = w };
	w->room = 4096;
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	agent_destroy(w->a);
	loop_destroy(w->loop);
	pthread_mutex_destroy(&w->lock);
	json_decref(w->result);
	free(w);
	return 0;
}

/* Let host time pass, and what is due happen. */
static void advance(struct world *w, int64_t ns)
{
	vclock_set(&w->clock, vclock_now_ns(&w->clock) + ns);
	vclock_start(&w->clock);
	loop_clock_changed(w->loop);
	for (unsigned i = 0; i < 5; i++)
		loop_run_once(w->loop, 2);
	vclock_stop(&w->clock);
	loop_clock_changed(w->loop);
}

static void say(struct world *w, const char *text)
{
	assert_int_equal(w->chr->ops->write(w->chr, (const uint8_t *)text, strlen(text)), strlen(text));
}

static void clear(struct world *w)
{
	w->nsent = 0;
	w->sent[0] = 0;
}

static long sync_id(struct world *w)
{
	char *p = NULL, *next = w->sent;

	while ((next = strstr(next, "\"id\":")))
		p = next++; /* the last one */
	assert_non_null(p);
	return strtol(p + 5, NULL, 10);
}

static void answer_sync(struct world *w)
{
	char text[64];

	assert_non_null(strstr(w->sent, "\xff{\"execute\":\"guest-sync-delimited\""));
	snprintf(text, sizeof(text), "\xff{\"return\": %ld}\n", sync_id(w));
	clear(w);
	say(w, text);
}

static struct agent_job *start(struct world *w, const char *argv_json, const char *input)
{
	json_t *argv = json_loads(argv_json, 0, NULL);
	struct agent_job *job;
	struct error err;

	assert_int_equal(agent_exec(w->a, argv, input, 60 * S, done, w, &job, &err), 0);
	json_decref(argv);
	advance(w, 1);
	return job;
}

static void test_exec(void **state)
{
	struct world *w = *state;

	start(w, "[\"sh\", \"-c\", \"echo \\\"x\\\"\"]", "aGk=");
	answer_sync(w);
	/* a proper request, whatever is in the arguments */
	json_t *req = json_loads(w->sent, 0, NULL), *args = json_object_get(req, "arguments");

	assert_string_equal(json_string_value(json_object_get(req, "execute")), "guest-exec");
	assert_string_equal(json_string_value(json_object_get(args, "path")), "sh");
	assert_string_equal(json_string_value(json_array_get(json_object_get(args, "arg"), 1)),
			    "echo \"x\"");
	assert_string_equal(json_string_value(json_object_get(args, "input-data")), "aGk=");
	assert_true(json_is_true(json_object_get(args, "capture-output")));
	json_decref(req);
	clear(w);
	say(w, "{\"return\": {\"pid\": 77}}\n");
	/* asked at growing intervals */
	for (unsigned i = 0; i < 4; i++) {
		advance(w, S);
		assert_non_null(strstr(w->sent, "guest-exec-status"));
		assert_non_null(strstr(w->sent, "77"));
		clear(w);
		say(w, "{\"return\": {\"exited\": false}}\n");
	}
	advance(w, S);
	/* in pieces, as it may come */
	say(w, "{\"return\": {\"exited\": true, \"exit");
	say(w, "code\": 3, \"out-data\": \"aGkK\"}");
	assert_int_equal(w->ndone, 0);
	say(w, "}\n");
	assert_int_equal(w->ndone, 1);
	assert_int_equal(w->code, 0);
	assert_int_equal(json_integer_value(json_object_get(w->result, "exitcode")), 3);
	assert_string_equal(json_string_value(json_object_get(w->result, "out-data")), "aGkK");
}

static void test_late_agent(void **state)
{
	struct world *w = *state;
	struct agent_job *job;
	struct error err;

	w->room = 0; /* the port is not open yet */
	assert_int_equal(agent_ping(w->a, 5 * S, done, w, &job, &err), 0);
	advance(w, 2 * S);
	assert_int_equal(w->nsent, 0);
	w->room = 4096;
	w->chr->ops->rx_ready(w->chr);
	advance(w, S);
	/* an answer to an earlier question, then nonsense, then the right one */
	long id = sync_id(w);
	char text[64];

	snprintf(text, sizeof(text), "{\"return\": %ld}\n", id - 1);
	say(w, text);
	say(w, "\xff\xff\n\n[1, 2\n{\"return\": \"x\"}\nnull\n");
	assert_int_equal(w->ndone, 0);
	snprintf(text, sizeof(text), "\xff{\"return\": %ld}\n", id);
	say(w, text);
	assert_int_equal(w->ndone, 1);
	assert_int_equal(w->code, 0);
}

static void test_time_outs(void **state)
{
	struct world *w = *state;
	struct agent_job *job;
	struct error err;

	assert_int_equal(agent_ping(w->a, 5 * S, done, w, &job, &err), 0);
	for (unsigned i = 0; i < 6; i++)
		advance(w, S);
	assert_int_equal(w->ndone, 1);
	assert_non_null(strstr(w->text, "qemu-guest-agent"));

	/* it goes away in the middle: the next command begins anew */
	clear(w);
	start(w, "[\"true\"]", NULL);
	answer_sync(w);
	for (unsigned i = 0; i < 16; i++)
		advance(w, S);
	assert_int_equal(w->ndone, 2);
	assert_non_null(strstr(w->text, "stopped answering"));
	clear(w);
	start(w, "[\"true\"]", NULL);
	answer_sync(w);
	say(w, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Failed to execute child "
	       "process\"}}\n");
	assert_int_equal(w->ndone, 3);
	assert_non_null(strstr(w->text, "Failed to execute child process"));

	/* a command that never ends */
	clear(w);
	start(w, "[\"sleep\"]", NULL);
	answer_sync(w);
	say(w, "{\"return\": {\"pid\": 1}}\n");
	for (unsigned i = 0; i < 70 && w->ndone == 3; i++) {
		advance(w, S);
		say(w, "{\"return\": {\"exited\": false}}\n");
	}
	assert_int_equal(w->ndone, 4);
	assert_non_null(strstr(w->text, "did not end in time"));
}

static void test_nonsense(void **state)
{
	static const char *const answers[] = {
		"{\"return\": {\"pid\": \"x\"}}\n",
		"{\"return\": []}\n",
		"{}\n",
		"[]\n",
		"{\"error\": 5}\n",
		"{\"error\": {\"desc\": {}}}\n",
	};
	struct world *w = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(answers); i++) {
		clear(w);
		start(w, "[\"true\"]", NULL);
		answer_sync(w);
		say(w, answers[i]);
		assert_int_equal(w->ndone, i + 1);
		assert_int_equal(w->code, -1);
	}
	/* What is no answer at all is dropped; the real one may follow. */
	clear(w);
	start(w, "[\"true\"]", NULL);
	answer_sync(w);
	say(w, "7\n\x01\xff{]\n");
	assert_int_equal(w->ndone, ARRAY_SIZE(answers));
	say(w, "{\"error\": {\"desc\": \"late\"}}\n");
	assert_int_equal(w->ndone, ARRAY_SIZE(answers) + 1);
	assert_non_null(strstr(w->text, "late"));
}

static void test_many(void **state)
{
	struct world *w = *state;
	struct agent_job *jobs[AGENT_MAX_JOBS], *extra;
	struct error err;

	for (unsigned i = 0; i < AGENT_MAX_JOBS; i++)
		assert_int_equal(agent_ping(w->a, 5 * S, done, w, &jobs[i], &err), 0);
	assert_int_equal(agent_ping(w->a, 5 * S, done, w, &extra, &err), -EBUSY);
	advance(w, 1);
	/* the one under way is cancelled: its answer is nobody's, the next one is asked */
	agent_cancel(jobs[0]);
	answer_sync(w);
	assert_int_equal(w->ndone, 0);
	for (unsigned i = 1; i < AGENT_MAX_JOBS; i++) {
		advance(w, 1);
		answer_sync(w);
		assert_int_equal(w->ndone, i);
	}
}

/* A line without end costs no more than the bound, and what follows is understood. */
static void test_endless_line(void **state)
{
	struct world *w = *state;
	size_t chunk = 1 << 20;
	char *x = malloc(chunk + 1);

	assert_non_null(x);
	memset(x, 'x', chunk);
	x[chunk] = 0;
	start(w, "[\"true\"]", NULL);
	for (size_t i = 0; i < AGENT_LINE_MAX / chunk + 3; i++)
		say(w, x);
	say(w, "\n");
	answer_sync(w);
	say(w, "{\"error\": {\"desc\": \"heard\"}}\n");
	assert_non_null(strstr(w->text, "heard"));
	free(x);
}

static void test_base64(void **state)
{
	static const struct {
		const char *raw, *text;
	} pairs[] = { { "", "" },	 { "f", "Zg==" },	 { "fo", "Zm8=" },
		      { "foo", "Zm9v" }, { "foob", "Zm9vYg==" }, { "\xff\xfe\xfd", "//79" } };
	static const char *const bad[] = { "Z",	   "Zg",   "Zg=",      "Z===", "====",
					   "Zh==", "Zm9=", "Zg==Zg==", "Zm 8", "Zm\n8=" };
	struct bytes b = { 0 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(pairs); i++) {
		b.len = 0;
		base64_encode(&b, pairs[i].raw, strlen(pairs[i].raw));
		assert_int_equal(b.len, strlen(pairs[i].text));
		assert_memory_equal(b.len ? (char *)b.data : "", pairs[i].text, b.len);
		b.len = 0;
		assert_int_equal(base64_decode(&b, pairs[i].text, strlen(pairs[i].text)), 0);
		assert_int_equal(b.len, strlen(pairs[i].raw));
		assert_memory_equal(b.len ? (char *)b.data : "", pairs[i].raw, b.len);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(base64_decode(&b, bad[i], strlen(bad[i])), -EINVAL);
	bytes_free(&b);
}

static void test_call(void **state)
{
	struct world *w = *state;
	struct agent_job *job;
	struct error err;

	assert_int_equal(agent_call(w->a, "guest-fsfreeze-freeze", NULL, 60 * S, done, w, &job, &err), 0);
	advance(w, 1);
	answer_sync(w);
	assert_string_equal(w->sent, "{\"execute\":\"guest-fsfreeze-freeze\"}\n");
	say(w, "{\"return\": 2}\n");
	assert_int_equal(w->ndone, 1);
	assert_int_equal(json_integer_value(json_object_get(w->result, "return")), 2);
	/* The time is that of sending, not of asking. */
	assert_int_equal(agent_set_time(w->a, 60 * S, done, w, &job, &err), 0);
	clear(w);
	advance(w, 1);
	time_t before = time(NULL);

	answer_sync(w);
	long long seconds = 0;

	assert_int_equal(sscanf(w->sent, "{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"date\",\"arg\":[\"-u\",\"-s\",\"@%lld.",
				&seconds),
			 1);
	assert_true(seconds >= before && seconds <= time(NULL) + 1); /* time() is coarser */
	say(w, "{\"error\": {\"desc\": \"not allowed\"}}\n");
	assert_int_equal(w->ndone, 2);
	assert_non_null(strstr(w->text, "not allowed"));
}

/* What was asked in a future that did not come: its answer is for nobody. */
static void test_restart(void **state)
{
	struct world *w = *state;
	struct agent_job *job;
	struct error err;

	start(w, "[\"sleep\"]", NULL);
	answer_sync(w);
	assert_non_null(strstr(w->sent, "guest-exec"));
	say(w, "{\"return\": {\"pid\"");
	agent_restart(w->a);
	assert_int_equal(w->ndone, 1);
	assert_non_null(strstr(w->text, "another moment"));
	assert_int_equal(agent_call(w->a, "guest-fsfreeze-thaw", NULL, 60 * S, done, w, &job, &err), 0);
	clear(w);
	advance(w, 1);
	answer_sync(w);
	say(w, "{\"return\": 0}\n");
	assert_int_equal(w->ndone, 2);
	assert_int_equal(w->code, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_exec),	  T(test_late_agent), T(test_time_outs),
		T(test_nonsense), T(test_many),	      T(test_endless_line),
		T(test_call),	  T(test_restart),    cmocka_unit_test(test_base64),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
