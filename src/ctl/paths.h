/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where machines and images live.
 *
 *   data root   $VIVARIUM_HOME, else $XDG_DATA_HOME/vivarium, else ~/.local/share/vivarium
 *     vms/NAME/machine.json        its configuration; disk.raw, vm.log: its own files
 *     vms/NAME/lock                held (flock) by the running machine's process
 *     code-secret                  what files of translated code are believed by (snapcode.h)
 *     images/NAME/image.json       an image: kernel, initrd, disk, command line; images/.blobs: its files by content (cli/store.h)
 *   run root    $VIVARIUM_HOME/run, else $XDG_RUNTIME_DIR/vivarium, else /tmp/vivarium-UID
 *     NAME/control.sock            while it runs; net.sock: tunnels to it (net/tunnel.h)
 *     .labs/LAB/control.sock       of a lab's network
 *
 * Directories are made with mode 0700.
 */
#ifndef VIV_CTL_PATHS_H
#define VIV_CTL_PATHS_H

#include <dirent.h>

#include "base/error.h"

#define PATHS_NAME_MAX 63

/** paths_check_name() - names of machines and images: [A-Za-z0-9][A-Za-z0-9_.-]*, up to 63 bytes. */
int paths_check_name(const char *what, const char *name, struct error *err);

/* All return an allocated string, or NULL with @err set. */
char *paths_data(const char *below, struct error *err);		       /* data root / @below */
char *paths_vm(const char *name, const char *file, struct error *err); /* @file NULL: the directory */
char *paths_image(const char *name, const char *file, struct error *err);
char *paths_run(const char *name, const char *file, struct error *err);
char *paths_lab(const char *name, const char *file, struct error *err); /* run root / .labs / @name / @file */
char *paths_format(struct error *err, const char *fmt, ...) _printf_(2, 3);

/** paths_open_dir() - opendir(3) by the host's table. */
DIR *paths_open_dir(const char *path);
/** paths_make() - directory @path and its parents.  0 (also if it was there) or -errno. */
int paths_make(const char *path, struct error *err);
/** paths_remove_tree() - @path and all in it; not following links.  0 also when it is not there. */
int paths_remove_tree(const char *path, struct error *err);
/* No machine has such a name. */
#define PATHS_REMOVED_PREFIX ".removed-"
/**
 * paths_remove_at_once() - the same, of a machine's folder: whoever looks meanwhile finds all of it or none.  Of one that loses a file after the other, the
 * note that it has moved, and its lock, may go before its configuration, and it would be started a second time.  It loses its name first, to one with
 * PATHS_REMOVED_PREFIX beside it; of one that was killed in between cli_collect() finds it.
 */
int paths_remove_at_once(const char *path, struct error *err);

/** paths_write_file() - whole, with mode 0600, replacing what was there in one step; stable when it returns. */
int paths_write_file(const char *path, const void *data, size_t len, struct error *err);
/** paths_hand_over() - the same, but that whoever carries out the renaming makes it stable: a confined machine's broker, for its configuration. */
int paths_hand_over(const char *path, const void *data, size_t len, struct error *err);
/** paths_sync() - the file, or the names in the folder, @path is stable. */
int paths_sync(const char *path, struct error *err);
/** paths_read_file() - all of a file of at most @max bytes, NUL appended. */
int paths_read_file(const char *path, size_t max, char **out, size_t *len, struct error *err);

#endif
