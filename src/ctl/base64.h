/* SPDX-License-Identifier: Apache-2.0 */
/* Base64 (RFC 4648 section 4), strict: padding required, no other characters. */
#ifndef VIV_CTL_BASE64_H
#define VIV_CTL_BASE64_H

#include "base/bytes.h"

/** base64_encode() - append the text of @len bytes. */
void base64_encode(struct bytes *out, const void *data, size_t len);
/** base64_decode() - append the bytes of @text.  0, -EINVAL (not base64), -ENOMEM. */
int base64_decode(struct bytes *out, const char *text, size_t len);

#endif
