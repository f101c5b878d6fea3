/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot as one file, to be taken to another host (docs/formats/snapshot.md). */
#ifndef VIV_CTL_SNAPBUNDLE_H
#define VIV_CTL_SNAPBUNDLE_H

#include "ctl/snapstore.h"

#define SNAPBUNDLE_FILES_MAX 2048
#define SNAPBUNDLE_SIZE_MAX  (64ULL << 40) /* of one file */

/** snapbundle_export() - all of snapshot @name of @vm into the new file @path; it has its name when it is complete.
 * 0, -EEXIST, -EINVAL (a disk of it is elsewhere), -errno. */
int snapbundle_export(const char *vm, const char *name, const char *path,
		      const struct ram_progress *progress, struct error *err);

/** snapbundle_write() - the same into @fd, which may be a pipe.  0, -EINVAL, -errno. */
int snapbundle_write(const char *vm, const char *name, int fd, const struct ram_progress *progress,
		     struct error *err);

/** snapbundle_unpack() - hostile @fd into the folder that is being built; nothing is verified beyond its form. */
int snapbundle_unpack(const struct snapstore_build *b, int fd, const struct ram_progress *progress,
		      struct error *err);

/** snapbundle_import() - snapshot @name of @vm, which has a directory, out of the file @path; every checksum is compared. */
int snapbundle_import(const char *vm, const char *name, const char *path,
		      const struct ram_progress *progress, struct error *err);
/** snapbundle_read() - the same out of @fd, which may be a pipe. */
int snapbundle_read(const char *vm, const char *name, int fd, const struct ram_progress *progress,
		    struct error *err);

#endif
