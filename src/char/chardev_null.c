/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "char/chardev.h"

static size_t null_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	return len;
}

static void null_rx_ready(struct char_dev *c)
{
}

static void null_close(struct char_dev *c)
{
	free(c);
}

static const struct char_ops null_ops = { null_write, null_rx_ready, null_close };

int chardev_null(struct char_dev **out, struct error *err)
{
	struct char_dev *c = calloc(1, sizeof(*c));

	if (!c)
		return error_set(err, -ENOMEM, "no memory for a character device");
	c->ops = &null_ops;
	*out = c;
	return 0;
}
