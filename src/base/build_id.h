/* SPDX-License-Identifier: Apache-2.0 */
/* Which build of the program this is: what one build has laid out by itself (addresses, tables, code) only the same one may take up again. */
#ifndef VIV_BASE_BUILD_ID_H
#define VIV_BASE_BUILD_ID_H

#include <stdbool.h>
#include <stdint.h>

#define BUILD_ID_BYTES 20

/** build_id() - what the linker has noted (NT_GNU_BUILD_ID, a hash of the whole program), padded with zeros; false: it has noted nothing. */
bool build_id(uint8_t out[BUILD_ID_BYTES]);

#define BUILD_ID_TEXT 17
/** build_id_text() - the first half of it for people: 16 digits, or "unknown". */
void build_id_text(char out[BUILD_ID_TEXT]);

#endif
