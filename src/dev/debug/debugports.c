/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/debug/debugports.h"

#include <errno.h>
#include <string.h>

#define PORT_POST     0x80
#define PORT_CONSOLE  0xe9
#define PORT_EXIT     0xf4
#define PORT_FIRMWARE 0x402
#define CONSOLE_ID    0xe9 /* what a reader finds where there is a console */

static void put_char(struct debug_line *l, const char *area, uint8_t c)
{
	if (c >= ' ' && c <= '~' && l->len < DEBUG_LINE_MAX)
		l->text[l->len++] = (char)c;
	if (c != '\n' && l->len < DEBUG_LINE_MAX)
		return;
	log_debug(area, "%.*s", (int)l->len, l->text);
	l->len = 0;
}

static uint64_t post_read(void *dev, uint64_t offset, unsigned size)
{
	return ((struct debugports *)dev)->post;
}

static void post_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	((struct debugports *)dev)->post = (uint8_t)value;
}

static uint64_t console_read(void *dev, uint64_t offset, unsigned size)
{
	return CONSOLE_ID;
}

static void console_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	put_char(&((struct debugports *)dev)->lines[0], "guest", (uint8_t)value);
}

static void firmware_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	put_char(&((struct debugports *)dev)->lines[1], "firmware", (uint8_t)value);
}

static uint64_t exit_read(void *dev, uint64_t offset, unsigned size)
{
	return 0;
}

static void exit_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct debugports *p = dev;

	p->env.debug_exit(p->env.ctx, (unsigned)value);
}

static const struct bus_ops post_ops = { post_read, post_write };
static const struct bus_ops console_ops = { console_read, console_write };
static const struct bus_ops firmware_ops = { console_read, firmware_write };
static const struct bus_ops exit_ops = { exit_read, exit_write };

// clang-format off
static const struct field fields[] = {
	F_HOST(struct debugports, dev),
	F_HOST(struct debugports, env),
	F_HOST(struct debugports, ranges),
	F_HOST(struct debugports, lines),
	F_U8(struct debugports, post),
	F_HOST(struct debugports, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "debugports",
	.version = 1,
	.size = sizeof(struct debugports),
	.fields = fields,
};

static void reset(struct device *d)
{
	container_of(d, struct debugports, dev)->post = 0;
}

static void destroy(struct device *d)
{
	struct debugports *p = container_of(d, struct debugports, dev);

	for (unsigned i = 0; i < ARRAY_SIZE(p->ranges); i++)
		bus_remove(p->env.bus, p->ranges[i]);
	free(p);
}

const struct device_class debugports_class = {
	.name = "debugports",
	.state = &desc,
	.reset = reset,
	.destroy = destroy,
};

int debugports_create(struct debugports **out, const struct dev_env *env, bool has_exit, struct error *err)
{
	struct debugports *p = calloc(1, sizeof(*p));
	int rc;

	if (!p)
		return error_set(err, -ENOMEM, "no memory for the debug ports");
	device_init(&p->dev, &debugports_class, "debugports");
	p->env = *env;
	rc = bus_add(env->bus, BUS_PIO, PORT_POST, 1, 0, &post_ops, p, &p->ranges[0]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, PORT_CONSOLE, 1, 0, &console_ops, p, &p->ranges[1]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, PORT_FIRMWARE, 1, 0, &firmware_ops, p, &p->ranges[2]);
	if (!rc && has_exit)
		rc = bus_add(env->bus, BUS_PIO, PORT_EXIT, 4, 0, &exit_ops, p, &p->ranges[3]);
	if (rc) {
		destroy(&p->dev);
		return error_set(err, rc, "the debug ports are taken");
	}
	*out = p;
	return 0;
}
