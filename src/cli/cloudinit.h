/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A seed for cloud-init (its data source NoCloud): a volume "cidata" with user-data, meta-data and, where there is one, network-config.
 *
 *   viv run --cloud-init user=ann,ssh-key=~/.ssh/id_ed25519.pub,hostname=web debian-12-genericcloud.qcow2
 *
 * The guest reads it at its first boot, as a disk that it can't write. Whoever can read the seed's file, or is root in the guest, sees
 * what is in it: of a password only its hash, SHA-512 by crypt(3).
 */
#ifndef VIV_CLI_CLOUDINIT_H
#define VIV_CLI_CLOUDINIT_H

#include "base/bytes.h"
#include "base/error.h"
#include "base/opts.h"

#define CLOUDINIT_LABEL "cidata"
#define CLOUDINIT_FILE	"seed.iso" /* in the machine's folder */

struct cloudinit_list {
	char **v;
	unsigned n;
};

struct cloudinit {
	char *user, *hostname;
	char *password_hash;
	struct cloudinit_list keys, packages; /* keys: lines of authorized_keys */
	/* Files of the user's own, in place of what would be made; NULL: none. */
	char *user_data, *meta_data, *network_config;
	size_t user_data_len, meta_data_len, network_config_len;
	bool is_wanted;
};

/**
 * cloudinit_add() - one --cloud-init: "user=NAME,ssh-key=FILE,hostname=NAME,password=TEXT,password-file=FILE,packages=A+B,package=NAME".
 * 0; -EINVAL, -errno of a file.  No sentence has anything of a password in it.  cloudinit_free() in any case.
 */
int cloudinit_add(struct cloudinit *ci, const char *spec, struct error *err);
/** cloudinit_hide() - overwrite @spec, which is of the command line, if there is a password in it: others may see it there. */
void cloudinit_hide(char *spec);
/** cloudinit_add_key() - a line of authorized_keys, checked: -EINVAL. */
int cloudinit_add_key(struct cloudinit *ci, const char *line, struct error *err);
/** cloudinit_own_files() - each NULL: none.  0; -EINVAL where it contradicts what was added, or is no meta-data; -errno. */
int cloudinit_own_files(struct cloudinit *ci, const char *user_data, const char *meta_data,
			const char *network_config, struct error *err);
void cloudinit_free(struct cloudinit *ci); /* zeroed is fine */

/**
 * cloudinit_make_seed() - the volume's bytes.
 * @machine: its name, which is its host name, too, where that is none of @ci and can be one; NULL: it has none of its own
 * A new instance-id is in it: cloud-init in a guest that has seen another one does its work of a first boot again.
 */
int cloudinit_make_seed(const struct cloudinit *ci, const char *machine, struct bytes *out,
			struct error *err);

/* ---- its parts (cloudinit_yaml.c), for tests ---- */

int cloudinit_user_data(const struct cloudinit *ci, struct bytes *out, struct error *err);
int cloudinit_meta_data(const char *instance_id, const char *hostname, struct bytes *out,
			struct error *err);
/** cloudinit_check_meta_data() - a map in YAML that has an instance-id: -EINVAL. */
int cloudinit_check_meta_data(const char *text, size_t len, struct error *err);
/** cloudinit_is_hostname() - labels of letters, digits and hyphens (RFC 1123, 2.1), with dots between them. */
bool cloudinit_is_hostname(const char *name);

#endif
