/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layers of a machine's disks.
 *
 * A disk that the machine writes is a file, or a chain of files in the machine's folder: the top is written, what is
 * below it never again.  A snapshot freezes the top under an empty new one, and has links to the whole chain; going back puts
 * an empty layer on the snapshot's chain.  All names are plain names of files in one folder, so that a chain is
 * whole wherever all of it is linked.
 *
 * Layers may be merged while the machine runs (snapmerge.h): chains are read again before they are linked.  Whoever calls
 * vmdisks_open(), vmdisks_reread(), vmdisks_add_to(), vmdisks_copy() or vmdisks_go_back() holds the lock of the snapshots (snapstore_lock()), and
 * holds it until files that are to be opened are.
 *
 * Disks that are read-only have no layers; one whose file lies in the machine's folder goes along with snapshots and copies, by a link.
 * Those that are thrown away at the end have a layer that nobody can name, until a snapshot or a copy is made: then it gets a file, and the
 * disk has layers like any other, which go when the machine is started anew.
 */
#ifndef VIV_CTL_VMDISKS_H
#define VIV_CTL_VMDISKS_H

#include "ctl/snapstore.h"

#define VMDISKS_CHAIN_MAX 256
#define VMDISKS_LAYER_PREFIX                                                                       \
	"layer-" /* of the names that are given to layers; each stands for one content */

struct vmdisk_chain {
	char **files; /* plain names in the machine's folder, top first; the last may be a path outside of it */
	unsigned n;
};

struct vmdisks {
	struct vmconfig *config; /* borrowed; paths of disks are kept up to date in it */
	struct vmdisk_chain chains[MACHINE_MAX_DISKS];
	struct vmdisk_chain next[MACHINE_MAX_DISKS]; /* between vmdisks_go_back() and vmdisks_write_to() */
	char *folder;				     /* the machine's */
	char *kept[MACHINE_MAX_DISKS]; /* files of vmdisks_keep() that are not filled yet */
};

/** vmdisks_is_layered() - is disk @i one with layers? */
bool vmdisks_is_layered(const struct vmconfig *c, unsigned i);

/** vmdisks_open() - learn the chains; before the machine opens the files.  vmdisks_close() in any case. */
int vmdisks_open(struct vmdisks *d, struct vmconfig *c, struct error *err);
void vmdisks_close(struct vmdisks *d); /* zeroed is fine */
/** vmdisks_reread() - the chains as they are now: a merge may have made them shorter. */
int vmdisks_reread(struct vmdisks *d, struct error *err);

/**
 * vmdisks_keep() - the throw-away disk @i of @size_bytes gets layers: the empty file *@path, allocated, is to hold what was written up to
 * now (block_keep_layer()).
 */
int vmdisks_keep(struct vmdisks *d, unsigned i, uint64_t size_bytes, char **path, struct error *err);
/** vmdisks_throw_away() - at a start: disks that are thrown away begin anew, their layers go.  Before vmdisks_open(). */
int vmdisks_throw_away(struct vmconfig *c, struct error *err);

/** vmdisks_new_top() - make an empty layer for disk @i of @size_bytes, after vmdisks_add_to(); its path in *@path, allocated. */
int vmdisks_new_top(struct vmdisks *d, unsigned i, uint64_t size_bytes, char **path, struct error *err);
/**
 * vmdisks_push() - the machine is to write to @path, on top of what it wrote to before: also when it is started again.
 * The caller saves the configuration before the layer is on top: while it is empty, the disk reads the same either way.
 */
int vmdisks_push(struct vmdisks *d, unsigned i, const char *path, struct error *err);
/**
 * vmdisks_pop() - it did not come to that: the layer goes, @format is that of the one below.
 * Saves the configuration first; where that fails, the file stays: the saved one may name it.
 */
void vmdisks_pop(struct vmdisks *d, unsigned i, const char *format);

/** vmdisks_add_to() - links to all chains into a snapshot.  A top outside of the machine's folder comes into it (a link).
 * @names: gets the name of each disk's file there, borrowed until the next call; NULL for a read-only one that lies elsewhere */
int vmdisks_add_to(struct vmdisks *d, struct snapstore_build *b,
		   const char *names[MACHINE_MAX_DISKS], struct error *err);

/**
 * vmdisks_copy() - the chains also for the machine @c, in its folder @folder, with an empty layer of its own on each.
 * What is the top here must get a new one before it is written again.  The new layer is not stable before vmdisks_settle() of the copy.
 * @sizes: of the disks, in bytes
 */
int vmdisks_copy(struct vmdisks *d, struct vmconfig *c, const char *folder,
		 const uint64_t sizes[MACHINE_MAX_DISKS], struct error *err);

/**
 * vmdisks_link_chain() - the chain of the disk @path, of @format, a file in the folder @from, also in the folder @to.
 * Nothing of it may lie outside.  0 with the top's path in *@top, allocated; -EXDEV (another file system), -EINVAL, -errno.
 */
int vmdisks_link_chain(const char *path, const char *format, const char *from, const char *to,
		       char **top, struct error *err);

/**
 * vmdisks_go_back() - the chains of snapshot @from in the machine's folder, with an empty layer on top of each.
 * @is_unsettled: the new layers are not stable yet: see vmdisks_settle()
 * @tops: paths of the new layers by disk (NULL where there is none), to be freed by the caller; when the machine writes
 * to them, vmdisks_went_back()
 */
int vmdisks_go_back(struct vmdisks *d, const struct snapshot_info *from, bool is_unsettled,
		    char *tops[MACHINE_MAX_DISKS], struct error *err);
/** vmdisks_went_back() - takes the paths; saves the configuration and removes layers that nothing here needs any more. */
int vmdisks_went_back(struct vmdisks *d, char *tops[MACHINE_MAX_DISKS], struct error *err);
/**
 * vmdisks_write_to() - takes the paths, and no more: until vmdisks_settle(), a machine that is killed finds its disks as before it went back,
 * so nothing that a guest makes stable meanwhile may be reported to it (block_open.is_unsettled).
 */
int vmdisks_write_to(struct vmdisks *d, char *tops[MACHINE_MAX_DISKS], struct error *err);
/** vmdisks_settle() - the new layers are stable, then the configuration names them, then what nothing needs any more is removed.  Any thread;
 * nobody changes @d or its configuration meanwhile. */
int vmdisks_settle(struct vmdisks *d, struct error *err);

#endif
