/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes in many pieces. */
#ifndef VIV_BASE_IOV_H
#define VIV_BASE_IOV_H

#include <sys/uio.h>

#include "base/util.h"

/** iov_to_buf() - copy up to @len bytes from offset @off of @iov.  Returns how many. */
size_t iov_to_buf(const struct iovec *iov, unsigned n, size_t off, void *dst, size_t len);
/** iov_from_buf() - copy up to @len bytes to offset @off of @iov.  Returns how many. */
size_t iov_from_buf(const struct iovec *iov, unsigned n, size_t off, const void *src, size_t len);
/** iov_bytes() - sum of the lengths. */
size_t iov_bytes(const struct iovec *iov, unsigned n);
/** iov_slice() - vectors of [@off, @off+@len) of @iov into @out (room for @n).  Returns how many. */
unsigned iov_slice(const struct iovec *iov, unsigned n, size_t off, size_t len, struct iovec *out);

#endif
