/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lab files: networks, machines and rules as people write them, in YAML (docs/formats/lab.md).
 *
 * A file is taken as a whole or refused with line, column and reason: unknown keys, keys that stand twice, contradictions,
 * names of nothing.  Anchors and aliases are refused: with them a file could contain itself.
 */
#ifndef VIV_NET_LABFILE_H
#define VIV_NET_LABFILE_H

#include "net/faults.h"
#include "net/policy.h"
#include "net/tap.h"

#define LABFILE_BYTES_MAX (1 * MIB)

#define LAB_TEXTS_MAX  16
#define LAB_SHARES_MAX 8 /* as a machine has at most */
struct lab_texts {	 /* a list */
	char *text[LAB_TEXTS_MAX];
	unsigned n;
};

struct lab_machine { /* what is no matter of the network; strings are malloc'd or NULL */
	char *image, *kernel, *initrd, *append, *engine, *memory;
	char *cpus, *user_data;
	struct lab_texts share, cloud_init;
	bool keep;			 /* it stays when it ends */
	bool after[POLICY_MACHINES_MAX]; /* it starts when these are up; never a circle */
};

struct lab {
	struct policy *policy;
	struct lab_machine machines[POLICY_MACHINES_MAX]; /* as policy->machines */
	struct faults faults[POLICY_PORTS_MAX];		  /* as policy->ports */
	struct tap_name taps[POLICY_NETWORKS_MAX];	  /* of networks that are is_tap */
	uint64_t seed;					  /* of all faults */
};

/**
 * lab_parse() - @text of @len bytes.
 * @where: how the file is called in errors, "lab.yaml"
 * @name: the lab's, unless the file has one
 * Returns 0, -ENOMEM or -EINVAL with "lab.yaml:3:7: ..." in @err.
 */
int lab_parse(struct lab **out, const char *text, size_t len, const char *where, const char *name,
	      struct error *err);
void lab_free(struct lab *l); /* NULL is fine */

#endif
