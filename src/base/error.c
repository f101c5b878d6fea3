/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* A sentence is one line whatever a file name in it contains. */
static void keep_one_line(char *text)
{
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
}

int error_set(struct error *err, int neg_errno, const char *fmt, ...)
{
	if (err) {
		char text[sizeof(err->text)]; /* the arguments may point into err->text */
		va_list ap;
		va_start(ap, fmt);
		vsnprintf(text, sizeof(text), fmt, ap);
		va_end(ap);
		keep_one_line(text);
		memcpy(err->text, text, strlen(text) + 1);
	}
	return neg_errno;
}

void error_prefix(struct error *err, const char *fmt, ...)
{
	if (!err)
		return;
	char text[sizeof(err->text)];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	keep_one_line(text);
	size_t len = MIN((size_t)n, sizeof(text) - 1);
	size_t left = sizeof(text) - len;
	size_t old = strnlen(err->text, sizeof(err->text) - 1);
	size_t room = left > 3 ? left - 3 : 0;
	size_t keep = MIN(old, room);

	if (room) {
		memcpy(text + len, ": ", 2);
		memcpy(text + len + 2, err->text, keep);
		text[len + 2 + keep] = 0;
	}
	memcpy(err->text, text, sizeof(text));
}
