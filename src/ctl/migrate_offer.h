/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The offer: what a HELLO record says, and what the target keeps in incoming.json until the machine is its own.
 *
 * The target makes the machine's folder from it (migrate_make_folder()): its own machine.json, links to the files of the source's folder that are
 * reachable here, and empty files for those that are not, which it has copied.  Nothing there names a file of the source's folder afterwards.
 */
#ifndef VIV_CTL_MIGRATE_OFFER_H
#define VIV_CTL_MIGRATE_OFFER_H

#include "ctl/migrate_claim.h"
#include "ctl/vmconfig.h"
#include "vm/migrate_disk.h"

/* Which file on which host, if it is reachable at all. */
struct migrate_file {
	uint64_t dev, ino;
	uint64_t size_bytes; /* disks: of the disk, others: of the file */
	uint64_t used_bytes; /* that are not known to be zero */
	bool is_copied;	     /* the target's word: it does not see it, and has made an empty one */
};

struct migrate_offer {
	uint8_t id[MIGRATE_ID_BYTES];
	unsigned nlinks;
	bool can_post_copy;	     /* the target's: memory may come after the machine */
	bool verifies;		     /* checksums of all pages, and of what is copied, come */
	bool copies_all;	     /* also what the target sees is copied */
	bool is_handover;	     /* to another process on the same host, handover.h */
	char viv[32];		     /* version of the source */
	char host_boot[40];	     /* of the source, snapshot_host_boot() */
	char token[MIGRATE_ID_TEXT]; /* of shared storage; "": none */
	char snapshots[MIGRATE_ID_TEXT]; /* token of those that came before it, migrate_bundle.h; "": none */
	char *folder;			 /* the source's, of the machine */
	uint64_t mapping_bytes;		 /* RAM and ROM */
	struct vmconfig config;		 /* with the name that it shall have at the target */
	json_t *network; /* its record in its lab (net/identity.h), unless another network was chosen for it; NULL: it is in none */
	struct migrate_file kernel, initrd, firmware, disks[MACHINE_MAX_DISKS];
};

int migrate_offer_init(struct migrate_offer *o, struct error *err);
void migrate_offer_free(struct migrate_offer *o);

/** migrate_offer_json() - NULL: no memory, or a path that is not UTF-8. */
json_t *migrate_offer_json(const struct migrate_offer *o);
/** migrate_offer_parse() - hostile bytes; after migrate_offer_init().  0, -EINVAL, -ENOTSUP (another version), -ENOMEM with @err set. */
int migrate_offer_parse(struct migrate_offer *o, const void *data, size_t len, struct error *err);

/**
 * migrate_token_path() - the file beside @file that shows a target on another host that it sees the source's file: ".viv-TOKEN".  Who made it may write that
 * folder, and @token is a random number; so a source elsewhere can't have any file of the target's taken for its own.
 * Allocated; NULL with @err set.
 */
char *migrate_token_path(const char *file, const char *token, struct error *err);

/** migrate_file_of() - file number @n of vm/migrate_disk.h, and its path in *@path; NULL: the machine has none such. */
struct migrate_file *migrate_file_of(struct migrate_offer *o, uint32_t n, const char **path);
/** migrate_accept_json() - what the target wants to be copied; NULL: no memory. */
json_t *migrate_accept_json(struct migrate_offer *o);
/** migrate_accept_parse() - hostile; sets is_copied.  0 or -EPROTO. */
int migrate_accept_parse(struct migrate_offer *o, const void *data, size_t len, struct error *err);

/**
 * migrate_make_folder() - vms/NAME for what @o offers: machine.json, incoming.json, links, and empty files for what is to be copied.  Changes paths in o->config.
 * Returns a descriptor that holds the machine's lock (vmlock.h); -EEXIST (there is such a machine), -ENOSPC (for what is copied), -errno, nothing left behind.
 */
int migrate_make_folder(struct migrate_offer *o, struct error *err);
/**
 * migrate_settle() - with the machine's lock, decide about a folder in which incoming.json still lies, though nobody receives any more: if the claim is "ran", it is a machine; else
 * the folder goes.  Returns 1: it is a machine (also: it never was incoming); 0: there is nothing; -errno.
 */
int migrate_settle(const char *name, struct error *err);
/** migrate_stand_in() - an empty raw file of @size_bytes for a disk that is elsewhere; not stable, as nobody will read it. */
int migrate_stand_in(const char *path, uint64_t size_bytes, struct error *err);
/** migrate_is_incoming() - does it? */
bool migrate_is_incoming(const char *name);
/** migrate_load_incoming() - the offer of machine @name.  0 or -errno. */
int migrate_load_incoming(struct migrate_offer *o, const char *name, struct error *err);
/** migrate_arrived() - it is a machine like any other. */
int migrate_arrived(const char *name, struct error *err);

#endif
