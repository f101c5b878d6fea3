/* SPDX-License-Identifier: Apache-2.0 */
#include "base/iov.h"

#include <string.h>

static size_t iov_copy(const struct iovec *iov, unsigned n, size_t off, void *buf, size_t len, bool is_to)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		size_t part = MIN(iov[i].iov_len - off, len - done);
		uint8_t *at = (uint8_t *)iov[i].iov_base + off;
		if (is_to)
			memcpy((uint8_t *)buf + done, at, part);
		else
			memcpy(at, (uint8_t *)buf + done, part);
		done += part;
		off = 0;
	}
	return done;
}

size_t iov_to_buf(const struct iovec *iov, unsigned n, size_t off, void *dst, size_t len)
{
	return iov_copy(iov, n, off, dst, len, true);
}

size_t iov_from_buf(const struct iovec *iov, unsigned n, size_t off, const void *src, size_t len)
{
	return iov_copy(iov, n, off, (void *)(uintptr_t)src, len, false);
}

size_t iov_bytes(const struct iovec *iov, unsigned n)
{
	size_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

unsigned iov_slice(const struct iovec *iov, unsigned n, size_t off, size_t len, struct iovec *out)
{
	unsigned m = 0;

	for (unsigned i = 0; i < n && len; i++) {
		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		size_t part = MIN(iov[i].iov_len - off, len);
		out[m++] = (struct iovec){ (uint8_t *)iov[i].iov_base + off, part };
		len -= part;
		off = 0;
	}
	return m;
}
