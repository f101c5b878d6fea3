/* SPDX-License-Identifier: Apache-2.0 */
/* Labs on the command line. */
#ifndef VIV_CLI_LAB_H
#define VIV_CLI_LAB_H

#include "net/labfile.h"

/**
 * lab_load() - read and check a lab file; this host's networks are no internet to it.
 * Returns 0 or -errno with @err set; lab_free() after it.
 */
int lab_load(struct lab **out, const char *path, struct error *err);

#endif
