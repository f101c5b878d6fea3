/* SPDX-License-Identifier: Apache-2.0 */
/* `viv net`: the process of a network (net/netd.h).  Started by `viv vm`. */
#include "cli/cli.h"
#include "net/netd.h"

int cli_net(int argc, char **argv)
{
	return netd_cli(argc, argv);
}
