/* SPDX-License-Identifier: Apache-2.0 */
/* The guest agent's port: a guest writes anything; each job ends once, and only by an answer or an error. */
#include <stdlib.h>
#include <string.h>

#include "ctl/agent.h"
#include "fuzz.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct vclock clock_;
static struct loop *loop;
static unsigned ends;

static size_t can_receive(void *ctx)
{
	return 65536;
}

static void receive(void *ctx, const uint8_t *data, size_t len)
{
}

static void done(void *ctx, json_t *result, const struct error *err)
{
	if (!result == !err || (err && !err->text[0]))
		abort();
	ends++;
}

/* Ids are counted from 1: the right answers of the first job, then of the second. */
size_t fuzz_seed(uint8_t *buf, size_t cap)
{
	static const char seed[] =
		"\xff{\"return\": 1}\n{\"return\": {\"pid\": 9}}\n"
		"{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \"aGk=\"}}\n"
		"\xff{\"return\": 2}\n{\"error\": {\"desc\": \"no\"}}\n";

	if (cap < sizeof(seed))
		return 0;
	memcpy(buf, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct agent_job *jobs[2];
	struct agent *a;
	struct error err;

	if (!loop) {
		vclock_init(&clock_);
		if (loop_create(&loop, &lock, &err) < 0)
			abort();
	}
	vclock_set(&clock_, 0);
	if (agent_create(&a, loop, &clock_, &err) < 0)
		return 0;
	struct char_dev *chr = agent_chardev(a);
	json_t *argv = json_pack("[s, s]", "echo", "hi");

	chr->user = (struct char_user){ .can_receive = can_receive, .receive = receive };
	ends = 0;
	for (unsigned i = 0; i < 2; i++)
		if (agent_exec(a, argv, NULL, 1000000000000, done, NULL, &jobs[i], &err) < 0)
			abort();
	/* Every line is followed by time, so that waiting jobs go on. */
	chr->ops->write(chr, data, 0);
	for (size_t at = 0; at < size;) {
		const uint8_t *nl = memchr(data + at, '\n', size - at);
		size_t n = nl ? (size_t)(nl - data) + 1 - at : size - at;

		if (chr->ops->write(chr, data + at, n) != n)
			abort();
		at += n;
		vclock_set(&clock_, vclock_now_ns(&clock_) + 300000000);
		chr->ops->write(chr, data, 0);
	}
	if (ends > 2)
		abort();
	agent_destroy(a);
	json_decref(argv);
	return 0;
}
