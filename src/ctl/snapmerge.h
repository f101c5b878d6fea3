/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is left of deleted snapshots, merged into what needs it.
 *
 * Memory: layers that the same snapshots use, and nobody else, become one file that holds only the granules they read.
 * Disks: a layer that is nobody's top and has one child goes into a copy of this child, which takes the child's name.
 *
 * Invariants
 *  1. A file that has its name never changes: machines map it, or read it as a backing file.  What is merged is a new file.
 *  2. A layer's name stands for its content, in whatever folder and whichever of its files: the merged file takes the name of the child,
 *     so that what stands on it finds the same.  A layer of memory gets a new name, as indexes are rewritten anyway.
 *  3. Each folder is whole at any time: the new file is stable before a name or an index leads to it, and the old one goes after that.
 *
 *  4. What somebody writes to is left alone: every image is locked while it is read (block/image_file.h).
 *  5. What is made of a snapshot's files goes to snapshots with the same files only (device and inode), whatever their names: a file
 *     that was imported may have a name that is known here, and other contents.
 *  6. What is damaged is left alone, and keeps nothing else from being merged.
 *
 * So a process killed at any moment leaves whole snapshots and perhaps files that nothing leads to, which the next merge removes.  A
 * running machine reads on in the old files until it is told to close them.
 */
#ifndef VIV_CTL_SNAPMERGE_H
#define VIV_CTL_SNAPMERGE_H

#include "vm/snapshot_ram.h"

/** Smaller files are always merged, larger ones if what they are merged with is not tiny beside them. */
#define SNAPMERGE_ALWAYS_BYTES (64 * MIB)

/* A machine that runs does itself what nobody else can do with its disks.  Each returns 0; -ESRCH: it does not run (any more); -errno. */
struct snapmerge_running {
	/* @layer, which nobody else needs, goes into the top of disk @disk, which is directly above it. */
	int (*take_in)(void *arg, unsigned disk, const char *layer,
		       const struct ram_progress *progress, struct error *err);
	/* What was merged is closed. */
	int (*close)(void *arg, struct error *err);
	void *arg;
};

/**
 * snapmerge() - all that can be merged of the machine @vm, running or not.
 * @running: NULL: if it runs, what is directly below its tops waits for the next time
 * @progress: of each file in turn
 * Raises the process's limit of open files to what it may be.
 * Returns 0; -ECANCELED, -ENOSPC, -EIO ..., of the first that failed: all snapshots are whole, and what they were.
 */
int snapmerge(const char *vm, const struct snapmerge_running *running,
	      const struct ram_progress *progress, struct error *err);

/* ---- its parts ---- */
/** snapmerge_ram() - layers of memory; the caller holds the lock of merges. */
int snapmerge_ram(const char *vm, const struct ram_progress *progress, struct error *err);

#endif
