/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/testing.h"

/* ---- time ---- */
struct vtimer {
	struct vtimer *next;
	struct vclock *clk;
	void (*fn)(void *arg);
	void *arg;
	int64_t deadline_ns; /* INT64_MAX: not armed */
};
static struct vtimer *timers;

void vclock_init(struct vclock *clk)
{
	memset(clk, 0, sizeof(*clk));
}

int64_t vclock_now_ns(const struct vclock *clk)
{
	return clk->offset_ns;
}

void vclock_set(struct vclock *clk, int64_t now_ns)
{
	clk->offset_ns = now_ns;
}

void vclock_start(struct vclock *clk)
{
	clk->is_running = true;
}

void vclock_stop(struct vclock *clk)
{
	clk->is_running = false;
}

struct vtimer *vtimer_create(struct loop *l, struct vclock *clk, void (*fn)(void *arg), void *arg)
{
	struct vtimer *t = calloc(1, sizeof(*t));

	assert_non_null(t);
	*t = (struct vtimer){ timers, clk, fn, arg, INT64_MAX };
	timers = t;
	return t;
}

void vtimer_arm(struct vtimer *t, int64_t deadline_ns)
{
	t->deadline_ns = deadline_ns;
}

void vtimer_cancel(struct vtimer *t)
{
	t->deadline_ns = INT64_MAX;
}

bool vtimer_is_armed(const struct vtimer *t)
{
	return t->deadline_ns != INT64_MAX;
}

int64_t vtimer_deadline_ns(const struct vtimer *t)
{
	return t->deadline_ns;
}

void vtimer_destroy(struct vtimer *t)
{
	if (!t)
		return;
	for (struct vtimer **p = &timers; *p; p = &(*p)->next) {
		if (*p == t) {
			*p = t->next;
			break;
		}
	}
	free(t);
}

static void run_due(struct test_env *e, int64_t until_ns, bool is_stepwise)
{
	for (;;) {
		struct vtimer *first = NULL;

		for (struct vtimer *t = timers; t; t = t->next)
			if (t->clk == &e->clock && t->deadline_ns <= until_ns &&
			    (!first || t->deadline_ns < first->deadline_ns))
				first = t;
		if (!first)
			return;
		if (is_stepwise && first->deadline_ns > vclock_now_ns(&e->clock))
			vclock_set(&e->clock, first->deadline_ns);
		first->deadline_ns = INT64_MAX;
		first->fn(first->arg);
	}
}

void test_advance(struct test_env *t, int64_t ns)
{
	int64_t end = vclock_now_ns(&t->clock) + ns;

	run_due(t, end, true);
	vclock_set(&t->clock, end);
}

void test_advance_late(struct test_env *t, int64_t ns)
{
	int64_t end = vclock_now_ns(&t->clock) + ns;

	vclock_set(&t->clock, end);
	run_due(t, end, false);
}

/* ---- environment ---- */
static void line_set(void *ctx, unsigned n, bool level)
{
	struct test_line *l = &((struct test_env *)ctx)->lines[n];

	l->rises += level && !l->level;
	l->falls += !level && l->level;
	l->level = level;
}

struct irq_line test_line(struct test_env *t, unsigned n)
{
	return (struct irq_line){ line_set, t, n };
}

static void msi_send(void *ctx, uint64_t addr, uint32_t data)
{
	struct test_env *t = ctx;

	t->msi.count++;
	t->msi.addr = addr;
	t->msi.data = data;
}

static void request_reset(void *ctx)
{
	((struct test_env *)ctx)->resets++;
}

static void request_poweroff(void *ctx)
{
	((struct test_env *)ctx)->poweroffs++;
}

static void debug_exit(void *ctx, unsigned code)
{
	struct test_env *t = ctx;

	t->exits++;
	t->exit_code = code;
}

void test_env_init(struct test_env *t)
{
	memset(t, 0, sizeof(*t));
	vclock_init(&t->clock);
	assert_int_equal(ram_create(&t->ram, MIB, 0, NULL), 0);
	t->env = (struct dev_env){
		.bus = bus_create(),
		.ram = &t->ram,
		.clock = &t->clock,
		.msi = { msi_send, t },
		.request_reset = request_reset,
		.request_poweroff = request_poweroff,
		.debug_exit = debug_exit,
		.ctx = t,
	};
	assert_non_null(t->env.bus);
}

void test_env_fini(struct test_env *t)
{
	bus_destroy(t->env.bus);
	ram_destroy(&t->ram);
	for (struct vtimer *v = timers; v; v = v->next)
		assert_ptr_not_equal(v->clk, &t->clock); /* a device forgot one */
}

void test_move_state(const struct device *from, struct device *to)
{
	struct bytes b = { 0 };
	struct byte_reader r;
	struct error err = { 0 };

	assert_ptr_equal(from->cls, to->cls);
	assert_int_equal(state_save(from->cls->state, from, &b), 0);
	r = (struct byte_reader){ .data = b.data, .len = b.len };
	assert_int_equal(state_load(to->cls->state, to, &r, &err), 0);
	assert_int_equal(r.pos, b.len);
	if (to->cls->after_load)
		to->cls->after_load(to);
	bytes_free(&b);
}
