/* SPDX-License-Identifier: Apache-2.0 */
/* The list of digests beside an image: what is taken says plain names and digits only. */
#include <stdlib.h>
#include <string.h>

#include "cli/store.h"
#include "fuzz.h"

#define HEX "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const char seed[] = HEX "  disk.raw\n" HEX "  image.json\n";

	if (cap < sizeof(seed) - 1)
		abort();
	memcpy(data, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct store_digests d;
	struct error err;
	char *text = malloc(len + !len);

	if (!text)
		return 0;
	memcpy(text, data, len);
	if (store_parse(text, len, &d, &err) == 0) {
		if (!d.n || d.n > STORE_FILES_MAX)
			abort();
		for (unsigned i = 0; i < d.n; i++)
			if (strlen(d.files[i].hex) != STORE_HEX ||
			    strspn(d.files[i].hex, "0123456789abcdef") != STORE_HEX ||
			    strchr(d.files[i].name, '/') || d.files[i].name[0] == '.' ||
			    !d.files[i].name[0])
				abort();
	}
	free(text);
	return 0;
}
