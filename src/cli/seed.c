/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/seed.h"

#include <errno.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/ssh.h"
#include "ctl/paths.h"

bool seed_is_asked(const struct seed_args *a)
{
	return a->cloud_init.n || a->user_data || a->meta_data || a->network_config;
}

int seed_read(struct cloudinit *ci, const struct seed_args *a, struct error *err)
{
	int r = 0;

	*ci = (struct cloudinit){ 0 };
	for (unsigned i = 0; i < a->cloud_init.n; i++) {
		if (r == 0)
			r = cloudinit_add(ci, a->cloud_init.v[i], err);
		cloudinit_hide((char *)(uintptr_t)a->cloud_init.v[i]);
	}
	return r < 0 ? r : cloudinit_own_files(ci, a->user_data, a->meta_data, a->network_config, err);
}

/* Without it viv ssh has to ask the guest's agent. */
static int add_own_key(struct cloudinit *ci, struct error *err)
{
	_cleanup_free_ char *key = NULL, *public = NULL;
	struct error why;

	if (ci->user_data)
		return 0;
	if (ssh_own_key(&key, &public, &why) == 0)
		return cloudinit_add_key(ci, public, err);
	cli_note("the machine does not get viv's own key: %s", why.text);
	return 0;
}

int seed_add(struct cloudinit *ci, struct vmconfig *c, bool is_named, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(c->name, CLOUDINIT_FILE, err);
	_cleanup_bytes_ struct bytes seed = { 0 };
	int r = path ? add_own_key(ci, err) : -ENOMEM;

	if (r == 0)
		r = cloudinit_make_seed(ci, is_named ? c->name : NULL, &seed, err);
	if (r == 0)
		r = paths_write_file(path, seed.data, seed.len, err);
	if (r == 0)
		r = vmconfig_add_disk(c, path, "raw", true, false, err);
	return r < 0 ? r : vmconfig_set(&c->login, ci->user, err);
}
