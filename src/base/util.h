/* SPDX-License-Identifier: Apache-2.0 */
/* Small things every file wants: sizes, alignment, scope cleanup, branch hints. */
#ifndef VIV_BASE_UTIL_H
#define VIV_BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

typedef uint64_t gpa_t; /* guest-physical address */
typedef uint64_t gva_t; /* guest-virtual (linear) address */

#define KIB 1024ULL
#define MIB (1024ULL * KIB)
#define GIB (1024ULL * MIB)

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define likely(x)     __builtin_expect(!!(x), 1)
#define unlikely(x)   __builtin_expect(!!(x), 0)

/* Each expansion has names of its own, so that they nest. */
#define MIN(a, b)	     MINMAX_(a, b, <, __COUNTER__)
#define MAX(a, b)	     MINMAX_(a, b, >, __COUNTER__)
#define MINMAX_(a, b, op, n) MINMAX__(a, b, op, n)
#define MINMAX__(a, b, op, n)                                                                      \
	({                                                                                         \
		__typeof__(a) a_##n = (a);                                                         \
		__typeof__(b) b_##n = (b);                                                         \
		a_##n op b_##n ? a_##n : b_##n;                                                    \
	})

/* @align is a power of two. */
#define ALIGN_DOWN(x, align) ((x) & ~((__typeof__(x))(align)-1))
#define ALIGN_UP(x, align)   ALIGN_DOWN((x) + (__typeof__(x))(align)-1, align)

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* Scope cleanup: the variable is released when it leaves scope. */
static inline void util_freep(void *p)
{
	free(*(void **)p);
}
static inline void util_closep(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
#define _cleanup_free_	__attribute__((cleanup(util_freep)))
#define _cleanup_close_ __attribute__((cleanup(util_closep)))

#define _printf_(fmt, args) __attribute__((format(printf, fmt, args)))

#endif
