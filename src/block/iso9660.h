/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing small ISO 9660 file systems: a few files in the root folder, held in memory.
 *
 * The volume is described twice (ECMA-119, 2nd edition, and Microsoft's Joliet specification): the primary tree has names of level 1,
 * 8.3 in capitals, and the supplementary one the names as they are, in UCS-2. What Linux, the BSDs and Windows mount
 * is the latter.
 *
 *   sector 0   system area, 16 sectors of zeros
 *         16   primary volume descriptor        19, 20   path tables of the primary tree, little and big endian
 *         17   supplementary one (Joliet)       21, 22   those of Joliet
 *         18   end of the descriptors           23, 24   the two root folders
 *                                               25       files, each from a sector of its own
 */
#ifndef VIV_BLOCK_ISO9660_H
#define VIV_BLOCK_ISO9660_H

#include "base/bytes.h"
#include "base/error.h"

#define ISO9660_SECTOR	  2048
#define ISO9660_FILES_MAX 10	     /* a root folder is one sector */
#define ISO9660_NAME_MAX  64	     /* Joliet: 128 bytes */
#define ISO9660_LABEL_MAX 16	     /* Joliet's 32 bytes */
#define ISO9660_FILE_MAX  (16 * MIB) /* bytes of one file */

struct iso9660_file {
	const char *name; /* ASCII, 1 to ISO9660_NAME_MAX, no control characters, none of * / : ; ? \ */
	const void *data; /* borrowed */
	size_t len;
};

/**
 * iso9660_write() - the whole volume, a multiple of ISO9660_SECTOR bytes.
 * @label: its identifier, ASCII, 1 to ISO9660_LABEL_MAX; small letters are kept, as others' programs do (ECMA-119 has capitals)
 * @files: names may not be the same but for small and capital letters
 * @time_s: seconds since 1970, in UTC, from 1970 to 2155; what all is dated
 * 0, -EINVAL (a label, names, sizes, the date), -ENOMEM; @out is to be freed by the caller in any case.
 */
int iso9660_write(struct bytes *out, const char *label, const struct iso9660_file *files,
		  unsigned nfiles, int64_t time_s, struct error *err);

#endif
