/* SPDX-License-Identifier: Apache-2.0 */
/* Tries that have a file of their own.  Each returns a result that is not negative when it succeeded, else -1 with errno. */
#ifndef VIV_CTL_ATTACK_INT_H
#define VIV_CTL_ATTACK_INT_H

#include "ctl/attack.h"

#define ATTACK_EXIT_UNTRIED 200 /* of a try's process, beside 0 and errno */

/* attack_share.c: 9P to the servers of the machine's shared folders. */
long attack_share_climb(const struct attack_target *t);
long attack_share_slash(const struct attack_target *t);
long attack_share_follow_link(const struct attack_target *t);
long attack_share_follow_own_link(const struct attack_target *t);
long attack_share_move_out(const struct attack_target *t);
long attack_share_device(const struct attack_target *t);
long attack_share_setuid(const struct attack_target *t);
long attack_share_make_in_readonly(const struct attack_target *t);
long attack_share_write_readonly(const struct attack_target *t);

#endif
