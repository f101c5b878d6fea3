/* SPDX-License-Identifier: Apache-2.0 */
/* The key pair by which viv logs in to machines: one for each user of viv. */
#ifndef VIV_CLI_SSH_H
#define VIV_CLI_SSH_H

#include "base/error.h"

/** ssh_own_key() - *@key: the private one's path; *@public: the public one, a line; allocated.  Made once. 0 or -errno. */
int ssh_own_key(char **key, char **public, struct error *err);

#endif
