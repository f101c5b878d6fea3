/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a machine is made of, as kept in vms/NAME/machine.json between `viv run` and `viv start` and
 * handed to the process of the machine.  One row a member (vmconfig.c); unknown members are an
 * error, missing ones keep their default.
 */
#ifndef VIV_CTL_VMCONFIG_H
#define VIV_CTL_VMCONFIG_H

#include <jansson.h>

#include "base/error.h"
#include "ctl/cgroup.h"
#include "vm/machine.h"

#define VMCONFIG_MAX_FORWARDS 32
#define VMCONFIG_MAX_BYTES    (4 * MIB)
#define VMCONFIG_MAX_BACKING  8

struct vmconfig_disk {
	char *path; /* absolute */
	char *format;
	bool is_readonly, is_snapshot, use_direct;
	uint64_t max_bytes_per_s, max_ops_per_s; /* 0: no limit */
	/* What a throw-away disk that has layers begins with at each start; NULL: the disk is none. */
	char *pristine, *pristine_format;
	char *backing[VMCONFIG_MAX_BACKING + 1]; /* absolute; files and folders its backing files may be */
};

struct vmconfig_share {
	char *path; /* absolute; NULL: of a snapshot, which does not say where on the host it is (vmconfig_forget_shares) */
	char *tag;  /* by which the guest mounts it */
	bool is_readonly;
};

struct vmconfig {
	char *name, *engine, *cpu, *image;
	char *kernel, *initrd, *append, *firmware; /* absolute paths */
	uint64_t mem_bytes, cpus, check_every;
	uint64_t without; /* ENGINE_* techniques that are off */
	char *net;	  /* "nat", "none", "lab:LAB:NETWORK,NETWORK" */
	char *mac;	  /* "52:54:00:..." */
	char *log_level;  /* "info": log_level_parse() */
	char *lab;	  /* viv up of this lab made it, and viv down ends it; NULL: none */
	char *login;	  /* whom viv ssh logs in as; NULL: root */
	json_t *origin; /* the record, in its lab, of the machine that it is a copy of (net/identity.h); NULL: none */
	char *forwards[VMCONFIG_MAX_FORWARDS]; /* "2222:22" */
	unsigned nforwards;
	struct vmconfig_disk disks[MACHINE_MAX_DISKS];
	unsigned ndisks;
	struct vmconfig_share shares[MACHINE_MAX_SHARES];
	unsigned nshares;
	struct cgroup_limits limits; /* its devices are found at each start */
	bool has_iommu, has_edu;
	bool no_reboot, is_strict, use_interp_only, is_counting;
	bool is_throwaway;	  /* its directory goes when it ends */
	bool has_agent;		  /* the guest runs qemu-guest-agent */
	bool uses_virtio_console; /* the console people see is hvc0, not COM1 */
};

/** vmconfig_init() - defaults: 1 CPU, 1 GiB, auto, NAT.  0 or -ENOMEM; vmconfig_free() after it. */
int vmconfig_init(struct vmconfig *c, struct error *err);
void vmconfig_free(struct vmconfig *c);

/** vmconfig_set() - replace an allocated string by a copy of @value (NULL: none). */
int vmconfig_set(char **member, const char *value, struct error *err);
int vmconfig_add_disk(struct vmconfig *c, const char *path, const char *format, bool is_readonly,
		      bool is_snapshot, struct error *err);
/** vmconfig_allow_backing() - the disk added last may stand on @path, a file or a folder. */
int vmconfig_allow_backing(struct vmconfig *c, const char *path, struct error *err);
/** vmconfig_own_disk() - what is written to @d stays: it never begins anew. */
void vmconfig_own_disk(struct vmconfig_disk *d);
/** vmconfig_set_origin() - @record is checked; NULL: none.  It is in the networks of that record then, and no lab's file made it. */
int vmconfig_set_origin(struct vmconfig *c, json_t *record, struct error *err);
int vmconfig_add_forward(struct vmconfig *c, const char *spec, struct error *err);

/** vmconfig_add_share() - a shared folder; @path NULL: not known.  0, -EINVAL (its tag, too many), -ENOMEM. */
int vmconfig_add_share(struct vmconfig *c, const char *path, const char *tag, bool is_readonly,
		       struct error *err);
/** vmconfig_forget_shares() - where on the host they are: that is the user's to say, never a snapshot's or another host's. */
void vmconfig_forget_shares(struct vmconfig *c);

json_t *vmconfig_to_json(const struct vmconfig *c); /* NULL: no memory */
/** vmconfig_from_json() - over the defaults; hostile input.  On failure @c is still to be freed. */
int vmconfig_from_json(struct vmconfig *c, json_t *json, struct error *err);

/** vmconfig_load() / _save() - vms/@name/machine.json.  Its name is the directory's: files that it names in the one that
 * the machine had before it was renamed are taken to be here. */
int vmconfig_load(struct vmconfig *c, const char *name, struct error *err);
int vmconfig_save(const struct vmconfig *c, struct error *err);
/** vmconfig_put() - as vmconfig_save(), for a new machine, which makes it stable itself when it runs (vmsettle.h). */
int vmconfig_put(const struct vmconfig *c, struct error *err);

/** vmconfig_machine() - the machine's view; borrows from @c.  Backends and cards are the caller's. */
void vmconfig_machine(const struct vmconfig *c, struct machine_config *out);

/** vmconfig_new_mac() - one of its own.  0, -EIO, -ENOMEM. */
int vmconfig_new_mac(struct vmconfig *c, struct error *err);
/** vmconfig_parse_mac() - 0 or -EINVAL. */
int vmconfig_parse_mac(const char *text, uint8_t mac[6], struct error *err);

#endif
