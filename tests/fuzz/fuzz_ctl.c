/* SPDX-License-Identifier: Apache-2.0 */
/* ctl_parse: any line is refused with a sentence, or is a request whose arguments are what its row says. */
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"
#include "fuzz.h"

size_t fuzz_seed(uint8_t *buf, size_t cap)
{
	static const char seed[] = "{\"cmd\":\"exec\",\"argv\":[\"sh\",\"-c\",\"x\"],\"input\":"
				   "\"aGk=\",\"timeout_ms\":500}";

	if (cap < sizeof(seed))
		return 0;
	memcpy(buf, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

static void check(const struct ctl_arg *a, json_t *v)
{
	if (!v) {
		if (a->is_required)
			abort();
		return;
	}
	switch (a->kind) {
	case CTL_UINT:
		if (!json_is_integer(v) || (uint64_t)json_integer_value(v) < a->min ||
		    (uint64_t)json_integer_value(v) > a->max)
			abort();
		break;
	case CTL_STRING:
		if (!json_is_string(v) || json_string_length(v) > a->max)
			abort();
		break;
	case CTL_BOOL:
		if (!json_is_boolean(v))
			abort();
		break;
	case CTL_STRINGS:
		if (!json_is_array(v) || json_array_size(v) < a->min || json_array_size(v) > a->max)
			abort();
		for (size_t i = 0; i < json_array_size(v); i++)
			if (!json_is_string(json_array_get(v, i)))
				abort();
		break;
	default: /* kinds of answers: no argument has one */
		abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = { "" };
	json_t *request = NULL;
	const struct ctl_command *cmd = ctl_parse((const char *)data, size, &request, &err);

	if (!cmd) {
		if (!err.text[0] || request)
			abort();
		return 0;
	}
	if (strcmp(json_string_value(json_object_get(request, "cmd")), cmd->name) != 0)
		abort();
	for (const struct ctl_arg *a = cmd->args; a && a->name; a++)
		check(a, json_object_get(request, a->name));
	json_decref(request);
	return 0;
}
