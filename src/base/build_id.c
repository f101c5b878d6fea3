/* SPDX-License-Identifier: Apache-2.0 */
#include "base/build_id.h"

#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

static bool find_note(const uint8_t *p, size_t len, uint8_t out[BUILD_ID_BYTES])
{
	ElfW(Nhdr) n;

	while (len >= sizeof(n)) {
		memcpy(&n, p, sizeof(n));
		size_t name = ALIGN_UP((size_t)n.n_namesz, 4), desc = ALIGN_UP((size_t)n.n_descsz, 4);

		if (name > len - sizeof(n) || desc > len - sizeof(n) - name)
			return false;
		if (n.n_type == NT_GNU_BUILD_ID && n.n_namesz == 4 && !memcmp(p + sizeof(n), "GNU", 4)) {
			memcpy(out, p + sizeof(n) + name,
			       MIN((size_t)n.n_descsz, (size_t)BUILD_ID_BYTES));
			return true;
		}
		p += sizeof(n) + name + desc;
		len -= sizeof(n) + name + desc;
	}
	return false;
}

/* The program itself comes first. */
static int on_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &info->dlpi_phdr[i];

		if (h->p_type == PT_NOTE &&
		    find_note((const uint8_t *)(uintptr_t)(info->dlpi_addr + h->p_vaddr), h->p_memsz, arg))
			return 1;
	}
	return 2;
}

void build_id_text(char out[BUILD_ID_TEXT])
{
	uint8_t id[BUILD_ID_BYTES];

	if (!build_id(id)) {
		strcpy(out, "unknown");
		return;
	}
	for (unsigned i = 0; i < BUILD_ID_TEXT / 2; i++)
		snprintf(out + 2 * i, 3, "%02x", id[i]);
}

bool build_id(uint8_t out[BUILD_ID_BYTES])
{
	memset(out, 0, BUILD_ID_BYTES);
	return dl_iterate_phdr(on_object, out) == 1;
}
