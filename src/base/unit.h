/* SPDX-License-Identifier: Apache-2.0 */
/* What a unit test includes first: cmocka and the headers it needs before it. */
#ifndef VIV_BASE_UNIT_H
#define VIV_BASE_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
