/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the broker: broker.c (its process), broker_policy.c (what is allowed), broker_replace.c (the machine's configuration),
 * broker_config.c (which one may follow which), broker_client.c.
 */
#ifndef VIV_CTL_BROKER_INT_H
#define VIV_CTL_BROKER_INT_H

#include "ctl/broker.h"
#include "ctl/migrate_claim.h"
#include "vm/machine.h"

#define BROKER_CONFIG	  "machine.json"
#define BROKER_DEPTH_MAX  3 /* snapshots/NAME/FILE: what is removed again with little effort */
#define BROKER_LISTED_MAX (16 + MACHINE_MAX_DISKS * (4 + 2 * VMCONFIG_MAX_BACKING))

/* A file of the configuration, or a folder whose files disks may stand on. */
struct listed {
	char *path;
	bool is_writable, is_tree;
};

struct folder {
	char *path; /* as names of files in it begin */
	char *real; /* as the kernel names it */
	int fd;
	json_t *config; /* of the machine there; NULL: none yet */
};

/* Which file a disk's path led to. */
struct broker_top {
	dev_t dev;
	ino_t ino; /* 0: none */
};

struct broker_policy {
	struct folder own, copies[BROKER_COPIES_MAX];
	unsigned ncopies;
	char *machines; /* the folder of all machines' */
	char *temporary;
	struct listed listed[BROKER_LISTED_MAX];
	unsigned nlisted;
	/* By disk: the file that the machine writes by its configuration, and the one that it wrote before that. */
	struct broker_top tops[MACHINE_MAX_DISKS], before[MACHINE_MAX_DISKS];
	bool is_unwanted;
	broker_lab_fn lab;
	void *lab_arg;
	json_t *record;	       /* what its lab said last; NULL: nothing */
	char *name;	       /* of the machine */
	bool awaits, has_left; /* it comes from another process; it goes on in another one */
	int lock_fd;	       /* that came with it; -1: it has not come */
	int held_lock;	       /* borrowed; -1: none */
	/* The migration that it comes by. */
	bool is_incoming, is_taken; /* taken: it is ours */
	uint8_t id[MIGRATE_ID_BYTES];
};

/* Where a name leads. */
struct place {
	struct folder *folder; /* NULL: listed */
	const struct listed *listed;
	int fd;		/* of the folder that @name is in; AT_FDCWD where listed */
	unsigned depth; /* below the machine's folder; 1: directly in it; 0: it is that folder itself */
	bool is_top; /* not below a folder there */
	char name[PATH_MAX];
};

struct broker_follow {
	const char *folder; /* of the machine whose configuration it is to be: absolute, its last component is the machine's name */
	bool is_copy; /* it is a copy of the machine: its name, its MAC address, no forwards, its own kernel */
	json_t *record; /* of the machine in its lab, which is where a copy comes from; NULL: none */
};
/** broker_config_follows() - may a machine with the configuration @old have @new? */
bool broker_config_follows(json_t *old, json_t *new, const struct broker_follow *f);

/** broker_learn_tops() - those of the machine's configuration, when it begins. */
void broker_learn_tops(struct broker_policy *p);
/** broker_is_top() - does the configuration that is in force in its folder name @at as a disk? */
bool broker_is_top(const struct place *at);
/**
 * broker_replace_config() - what the machine wrote at @from becomes the configuration @to: checked, and written anew from what was
 * checked.  0, -EACCES: it is none that it may have; -errno.
 */
int broker_replace_config(struct broker_policy *p, const struct place *from, const struct place *to);

#endif
