/* SPDX-License-Identifier: Apache-2.0 */
#include "base/lib.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

int lib_load(const char *const *files, const struct lib_call *calls, size_t n, struct error *err)
{
	void *lib = NULL;

	for (size_t i = 0; files[i] && !lib; i++)
		lib = dlopen(files[i], RTLD_NOW | RTLD_LOCAL);
	if (!lib)
		return error_set(err, -ENOENT, "the library %s is needed for this: %s", files[0],
				 dlerror());
	for (size_t i = 0; i < n; i++) {
		void *call = dlsym(lib, calls[i].name);

		if (!call)
			return error_set(err, -ENOENT, "the library %s is needed for this, and the one that is here lacks %s",
					 files[0], calls[i].name);
		memcpy(calls[i].at, &call, sizeof(call));
	}
	return 0;
}
