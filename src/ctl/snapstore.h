/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots on disk: vms/VM/snapshots/NAME, a folder that needs nothing outside of itself.
 *
 *   snapshot.json   what it is: when, of what, parent, and the machine's configuration with file names in place of paths
 *   state           CPUs, devices, clocks (vm/snapshot_state.h)
 *   ram.index, ram-...   memory (vm/snapshot_ram.h)
 *   working-set     of memory, once a machine was started from it (vm/working_set.h)
 *   code-set        what the engine made of its code, likewise (vm/code_set.h)
 *   kernel, initrd, firmware, disk files
 *
 * Files that several snapshots, or a snapshot and a machine, have in common are hard links to one file, which nobody
 * writes any more.  So deleting one never takes anything from another, whatever their order.
 *
 * What deleted snapshots leave in common with others is merged by snapmerge.h, which exchanges files of a folder under its lock.
 *
 * A snapshot is built in snapshots/.tmp-NAME, synced, and renamed: under its name it is whole.  The builder holds
 * a lock (flock) on the folder; without one it is left over from a builder that died, and goes at the next occasion.
 */
#ifndef VIV_CTL_SNAPSTORE_H
#define VIV_CTL_SNAPSTORE_H

#include "ctl/vmconfig.h"
#include "vm/snapshot_ram.h"
#include "vm/snapshot_state.h"
#include "vm/working_set.h"

#define SNAPSTORE_FORMAT   1
#define SNAPSTORE_JSON_MAX (8 * MIB)

/* ---- building ---- */

struct snapstore_build {
	char *vm, *name, *dir, *final; /* paths of both folders */
	int dir_fd;		       /* locked */
};

/** snapstore_begin() - 0; -EINVAL (name), -EEXIST, -errno.  Then snapstore_end() in any case. */
int snapstore_begin(struct snapstore_build *b, const char *vm, const char *name, struct error *err);
/** snapstore_add_file() - @path under the name @as: a link where possible, else a copy if @may_copy.
 * Returns 0, -EXDEV (a copy would be needed), -EEXIST, -errno. */
int snapstore_add_file(struct snapstore_build *b, const char *path, const char *as, bool may_copy,
		       struct error *err);
/** snapstore_add_config() - files of @c that a machine needs to start again, and @c itself with their names instead
 * of paths in *@out; to be json_decref'ed.
 * @disks: names of disk files in the folder by disk; NULL: its path is kept */
int snapstore_add_config(struct snapstore_build *b, const struct vmconfig *c,
			 const char *const disks[MACHINE_MAX_DISKS], json_t **out, struct error *err);
/** snapstore_write() - a file of the folder, synced. */
int snapstore_write(const struct snapstore_build *b, const char *file, const void *data, size_t len,
		    struct error *err);
/** snapstore_commit() - all is written: sync and rename.  0 or -errno. */
int snapstore_commit(struct snapstore_build *b, struct error *err);
/** snapstore_end() - removes the folder if it was not committed. */
void snapstore_end(struct snapstore_build *b);
/** snapstore_release() - forget the build without removing anything: another process has it. */
void snapstore_release(struct snapstore_build *b);

/** snapstore_clean() - remove what builders that died left over. */
void snapstore_clean(const char *vm);

/**
 * snapstore_lock() - against files that are exchanged (@is_exclusive) while they are linked elsewhere, or opened one after the other.
 * Returns a descriptor to be closed; -EBUSY: others have had it for SNAPSTORE_LOCK_MS; -errno.
 */
int snapstore_lock(const char *vm, bool is_exclusive, struct error *err);
#define SNAPSTORE_LOCK_MS 30000
/** snapstore_try_lock() - the same without waiting: -EAGAIN where others have it. */
int snapstore_try_lock(const char *vm, bool is_exclusive, struct error *err);
/** snapstore_remove_unnamed() - files of memory in the folder that @x does not name: left over by a merge. */
void snapstore_remove_unnamed(int dir_fd, const struct ram_index *x);

/* ---- looking ---- */

/* When and how its state was saved. */
struct snapper_moment {
	int64_t real_ns; /* real time since 1970 */
	bool is_frozen;	 /* the guest's file systems were frozen */
};

struct snapshot_info {
	char *vm, *name, *parent; /* parent: NULL: none */
	char *viv, *engine;
	int64_t created_s; /* real time since 1970 */
	struct snapper_moment moment;
	uint64_t pause_us;		  /* how long the machine stood still for it */
	uint64_t own_bytes, shared_bytes; /* on the host's disk: of this one alone, and also of others; 0: snapstore_measure() was not called */
	struct vmconfig config;		  /* paths into the snapshot's folder */
	json_t *network; /* its record in its lab (net/identity.h); NULL: it was in none */
};

/** snapstore_load() - -ENOENT: there is none of that name.  snapshot_info_free() after success. */
int snapstore_load(struct snapshot_info *out, const char *vm, const char *name, struct error *err);
/** snapstore_measure() - fill in its sizes on the host, by whether its files have other names: a look at each of them. */
void snapstore_measure(struct snapshot_info *i);
void snapshot_info_free(struct snapshot_info *i); /* zeroed is fine */

/** snapstore_list() - all of @vm, oldest first, measured; *@n of them in *@out, an array to be freed after each.  Damaged ones are
 * told to @damaged (NULL: nobody) and left out. */
int snapstore_list(const char *vm, struct snapshot_info **out, unsigned *n,
		   void (*damaged)(void *arg, const char *name, const struct error *why), void *arg,
		   struct error *err);
void snapstore_list_free(struct snapshot_info *list, unsigned n);

/** snapstore_path() - the folder, or @file in it; allocated. */
char *snapstore_path(const char *vm, const char *name, const char *file, struct error *err);
/** snapstore_prefetch() - what a start from it reads first, but for memory, is asked of the host's disk, at once and beside all else. */
void snapstore_prefetch(const char *vm, const char *name);
int snapstore_open_state(const char *vm, const char *name, struct snapshot_state *out, struct error *err);
/** snapstore_open_set() - -ENOENT: none was recorded. */
int snapstore_open_set(const char *vm, const char *name, struct working_set *out, struct error *err);
int snapstore_open_ram(const char *vm, const char *name, struct ram_files *out, struct error *err);

/** snapstore_delete() - gone in one step.  0, -ENOENT, -errno. */
int snapstore_delete(const char *vm, const char *name, struct error *err);

#endif
