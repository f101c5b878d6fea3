/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migrate_offer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/host.h"
#include "base/log.h"
#include "block/image.h"
#include "ctl/paths.h"
#include "ctl/vmdisks.h"
#include "ctl/vmlock.h"
#include "net/identity.h"
#include "vm/snapshot_state.h"

int migrate_offer_init(struct migrate_offer *o, struct error *err)
{
	*o = (struct migrate_offer){ .nlinks = 1 };
	return vmconfig_init(&o->config, err);
}

void migrate_offer_free(struct migrate_offer *o)
{
	free(o->folder);
	o->folder = NULL;
	json_decref(o->network);
	o->network = NULL;
	vmconfig_free(&o->config);
}

/* ---- JSON ---- */

static json_t *file_json(const struct migrate_file *f)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:b}", "dev", (json_int_t)f->dev, "ino",
			 (json_int_t)f->ino, "size", (json_int_t)f->size_bytes, "used",
			 (json_int_t)f->used_bytes, "copied", f->is_copied);
}

json_t *migrate_offer_json(const struct migrate_offer *o)
{
	char id[MIGRATE_ID_TEXT];
	json_t *disks = json_array(), *config = vmconfig_to_json(&o->config);

	migrate_id_text(id, o->id);
	for (unsigned i = 0; disks && i < o->config.ndisks; i++)
		if (json_array_append_new(disks, file_json(&o->disks[i])) < 0) {
			json_decref(disks);
			disks = NULL;
		}
	json_t *all = json_pack("{s:i, s:s, s:s, s:i, s:b, s:b, s:s, s:s, s:s, s:I, s:o, s:o, s:o, "
				"s:o, s:o, s:O*, s:s*}",
				"format", MIGRATE_FORMAT, "id", id, "viv", o->viv, "links",
				(int)o->nlinks, "verify", o->verifies, "copy", o->copies_all, "host",
				o->host_boot, "token", o->token, "folder", o->folder, "mapping",
				(json_int_t)o->mapping_bytes, "config", config, "disks", disks,
				"kernel", file_json(&o->kernel), "initrd", file_json(&o->initrd),
				"firmware", file_json(&o->firmware), "network", o->network,
				"snapshots", o->snapshots[0] ? o->snapshots : NULL);
	/* Who knows nothing of it is not offered it. */
	if (all && o->is_handover && json_object_set_new(all, "handover", json_true()) < 0) {
		json_decref(all);
		return NULL;
	}
	return all;
}

static int bad(struct error *err, const char *what)
{
	return error_set(err, -EINVAL, "the offer has no valid \"%s\"", what);
}

static int get_file(struct migrate_file *f, json_t *json, const char *what, struct error *err)
{
	json_int_t dev, ino, size, used;
	int is_copied;

	if (json_unpack(json, "{s:I, s:I, s:I, s:I, s:b !}", "dev", &dev, "ino", &ino, "size",
			&size, "used", &used, "copied", &is_copied) < 0 ||
	    size < 0 || used < 0 || used > size)
		return bad(err, what);
	*f = (struct migrate_file){ (uint64_t)dev, (uint64_t)ino, (uint64_t)size, (uint64_t)used,
				    is_copied };
	return 0;
}

static int get_text(char *out, size_t cap, json_t *json, const char *what, struct error *err)
{
	const char *s = json_string_value(json);

	if (!s || strlen(s) >= cap || strlen(s) != json_string_length(json))
		return bad(err, what);
	snprintf(out, cap, "%s", s);
	return 0;
}

static int get_disks(struct migrate_offer *o, json_t *list, struct error *err)
{
	int r = json_array_size(list) == o->config.ndisks && json_is_array(list) ? 0 : bad(err, "disks");

	for (unsigned i = 0; r == 0 && i < o->config.ndisks; i++)
		r = get_file(&o->disks[i], json_array_get(list, i), "disks", err);
	return r;
}

static int get_members(struct migrate_offer *o, json_t *j, struct error *err)
{
	char id[MIGRATE_ID_TEXT];
	uint8_t token[MIGRATE_ID_BYTES];
	json_t *links = json_object_get(j, "links"), *mapping = json_object_get(j, "mapping");
	json_t *verify = json_object_get(j, "verify"), *copy = json_object_get(j, "copy");
	/* May be missing. */
	json_t *handover = json_object_get(j, "handover"),
	       *snapshots = json_object_get(j, "snapshots");
	const char *folder = json_string_value(json_object_get(j, "folder"));
	int r = get_text(id, sizeof(id), json_object_get(j, "id"), "id", err);

	if (r == 0)
		r = migrate_id_parse(o->id, id, err);
	if (r == 0)
		r = get_text(o->viv, sizeof(o->viv), json_object_get(j, "viv"), "viv", err);
	if (r == 0)
		r = get_text(o->host_boot, sizeof(o->host_boot), json_object_get(j, "host"), "host", err);
	if (r == 0)
		r = get_text(o->token, sizeof(o->token), json_object_get(j, "token"), "token", err);
	if (r == 0 && o->token[0])
		r = migrate_id_parse(token, o->token, err);
	if (r == 0 && snapshots)
		r = get_text(o->snapshots, sizeof(o->snapshots), snapshots, "snapshots", err);
	if (r == 0 && snapshots)
		r = migrate_id_parse(token, o->snapshots, err);
	if (r == 0 && (!folder || folder[0] != '/' || strlen(folder) >= 4096))
		r = bad(err, "folder");
	if (r == 0)
		r = vmconfig_set(&o->folder, folder, err);
	if (r == 0 && (!json_is_integer(links) || json_integer_value(links) < 1 ||
		       json_integer_value(links) > MIGRATE_STREAMS_MAX))
		r = bad(err, "links");
	if (r == 0 && (!json_is_integer(mapping) || json_integer_value(mapping) < (json_int_t)MACHINE_MIN_MEM ||
		       json_integer_value(mapping) % (json_int_t)GUEST_PAGE_SIZE))
		r = bad(err, "mapping");
	if (r == 0 && !json_is_boolean(verify))
		r = bad(err, "verify");
	if (r == 0 && !json_is_boolean(copy))
		r = bad(err, "copy");
	if (r == 0 && handover && !json_is_boolean(handover))
		r = bad(err, "handover");
	if (r == 0)
		r = vmconfig_from_json(&o->config, json_object_get(j, "config"), err);
	/* No other host says which folders of this one a guest can read. */
	if (r == 0 && o->config.nshares)
		r = error_set(err, -EOPNOTSUPP,
			      "the machine has shared folders of its host, which do not go along");
	if (r < 0)
		return r;
	o->nlinks = (unsigned)json_integer_value(links);
	o->mapping_bytes = (uint64_t)json_integer_value(mapping);
	o->verifies = json_is_true(verify);
	o->copies_all = json_is_true(copy);
	o->is_handover = json_is_true(handover);
	r = get_disks(o, json_object_get(j, "disks"), err);
	if (r == 0)
		r = get_file(&o->kernel, json_object_get(j, "kernel"), "kernel", err);
	if (r == 0)
		r = get_file(&o->initrd, json_object_get(j, "initrd"), "initrd", err);
	if (r == 0)
		r = get_file(&o->firmware, json_object_get(j, "firmware"), "firmware", err);
	if (r == 0 && o->mapping_bytes < o->config.mem_bytes)
		r = bad(err, "mapping");
	json_t *network = json_object_get(j, "network");
	if (r == 0 && network)
		r = identity_check(network, err);
	if (r == 0)
		o->network = json_incref(network);
	return r;
}

int migrate_offer_parse(struct migrate_offer *o, const void *data, size_t len, struct error *err)
{
	json_error_t je;
	json_t *j = json_loadb(data, len, JSON_REJECT_DUPLICATES, &je);
	json_t *format = json_object_get(j, "format");

	if (!j)
		return error_set(err, -EINVAL, "the offer is no JSON object: %s", je.text);
	int r = json_is_integer(format) ? 0 : bad(err, "format");

	if (r == 0 && json_integer_value(format) != MIGRATE_FORMAT)
		r = error_set(err, -ENOTSUP,
			      "the source speaks version %lld of this stream, this host version %d",
			      json_integer_value(format), MIGRATE_FORMAT);
	if (r == 0)
		r = get_members(o, j, err);
	json_decref(j);
	return r;
}

/* ---- which files ---- */

struct migrate_file *migrate_file_of(struct migrate_offer *o, uint32_t n, const char **path)
{
	const struct vmconfig *c = &o->config;

	*path = n < c->ndisks		     ? c->disks[n].path
		: n == MIGRATE_FILE_KERNEL   ? c->kernel
		: n == MIGRATE_FILE_INITRD   ? c->initrd
		: n == MIGRATE_FILE_FIRMWARE ? c->firmware
					     : NULL;
	return !*path			  ? NULL
	       : n < c->ndisks		  ? &o->disks[n]
	       : n == MIGRATE_FILE_KERNEL ? &o->kernel
	       : n == MIGRATE_FILE_INITRD ? &o->initrd
					  : &o->firmware;
}

json_t *migrate_accept_json(struct migrate_offer *o)
{
	json_t *list = json_array();
	const char *path;

	for (uint32_t n = 0; list && n <= MIGRATE_FILE_FIRMWARE; n++) {
		const struct migrate_file *f = migrate_file_of(o, n, &path);

		if (f && f->is_copied && json_array_append_new(list, json_integer(n)) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return json_pack("{s:o, s:b}", "copy", list, "post_copy", o->can_post_copy);
}

int migrate_accept_parse(struct migrate_offer *o, const void *data, size_t len, struct error *err)
{
	json_t *j = json_loadb(data, len, JSON_REJECT_DUPLICATES, NULL);
	json_t *list = json_object_get(j, "copy");
	int r = json_is_array(list) ? 0 : -EPROTO;
	const char *path;

	for (size_t i = 0; r == 0 && i < json_array_size(list); i++) {
		json_t *number = json_array_get(list, i);
		json_int_t n = json_is_integer(number) ? json_integer_value(number) : -1;
		struct migrate_file *f = n >= 0 && n <= MIGRATE_FILE_FIRMWARE
						 ? migrate_file_of(o, (uint32_t)n, &path)
						 : NULL;

		if (f)
			f->is_copied = true;
		else
			r = -EPROTO;
	}
	o->can_post_copy = json_is_true(json_object_get(j, "post_copy"));
	json_decref(j);
	return r < 0 ? error_set(err, r, "the target does not say what it wants to be copied") : 0;
}

/* ---- the folder ---- */

static const char *name_in(const char *path, const char *folder)
{
	size_t len = strlen(folder);

	return !strncmp(path, folder, len) && path[len] == '/' && !strchr(path + len + 1, '/')
		       ? path + len + 1
		       : NULL;
}

static bool is_same_host(const struct migrate_offer *o)
{
	char boot[40];

	snapshot_host_boot(boot);
	return boot[0] && !strcmp(boot, o->host_boot);
}

char *migrate_token_path(const char *file, const char *token, struct error *err)
{
	const char *slash = strrchr(file, '/');

	return paths_format(err, "%.*s/.viv-%s", slash ? (int)(slash - file) : 1,
			    slash ? file : ".", token);
}

/* Has the source left its token beside @path? */
static bool has_token(const struct migrate_offer *o, const char *path)
{
	_cleanup_free_ char *at = o->token[0] ? migrate_token_path(path, o->token, NULL) : NULL;
	struct stat st;

	return at && host.fstatat(AT_FDCWD, at, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       S_ISREG(st.st_mode) && st.st_uid == geteuid();
}

/* Is @path here the file that the source has under this name?  Numbers of file systems mean something on one host only. */
static bool is_seen(const struct migrate_offer *o, const char *path, const struct migrate_file *f)
{
	struct stat st;

	return host.fstatat(AT_FDCWD, path, &st, 0) == 0 && S_ISREG(st.st_mode) &&
	       st.st_ino == f->ino && (is_same_host(o) ? st.st_dev == f->dev : has_token(o, path));
}

/* ... and shall it be used? */
static bool is_same(const struct migrate_offer *o, const char *path, const struct migrate_file *f)
{
	return !o->copies_all && is_seen(o, path, f);
}

/* For a file that is copied: an empty one, in place of *@path. */
static int make_empty(char **path, const char *folder, const char *name,
		      const struct migrate_file *f, struct error *err)
{
	char *own = paths_format(err, "%s/%s", folder, name);

	if (!own)
		return -ENOMEM;
	_cleanup_close_ int fd = host.open(own, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)f->size_bytes) < 0) {
		int r = error_set(err, -errno, "cannot make %s: %s", own, strerror(errno));

		free(own);
		return r;
	}
	free(*path);
	*path = own;
	return 0;
}

/* Kernel, initrd, firmware: where they are, linked from the source's folder, or to be copied. */
static int bring_file(struct migrate_offer *o, char **path, struct migrate_file *f, const char *as,
		      const char *folder, struct error *err)
{
	const char *name = *path ? name_in(*path, o->folder) : NULL;

	f->is_copied = *path && !is_same(o, *path, f);
	if (!*path || (!f->is_copied && !name))
		return 0;
	char *own = f->is_copied ? NULL : paths_format(err, "%s/%s", folder, name);

	if (!own && !f->is_copied)
		return -ENOMEM;
	if (own && host.linkat(AT_FDCWD, *path, AT_FDCWD, own, 0) < 0 && errno != EEXIST) {
		free(own); /* on another file system, for instance */
		f->is_copied = true;
	}
	if (f->is_copied)
		return make_empty(path, folder, as, f, err);
	free(*path);
	*path = own;
	return 0;
}

/* The whole disk comes: into one file of its own format, which stands on nothing. */
static int make_empty_disk(struct migrate_offer *o, unsigned i, const char *folder, struct error *err)
{
	struct vmconfig_disk *d = &o->config.disks[i];
	char *own = paths_format(err, "%s/disk-%u.%s", folder, i, d->format);
	const struct image_create c = { .format = d->format, .size_bytes = o->disks[i].size_bytes };
	int r = own ? image_create(own, &c, err) : -ENOMEM;

	if (r < 0) {
		free(own);
		return r;
	}
	free(d->path);
	d->path = own;
	d->use_direct = false; /* not every file system has it */
	for (unsigned k = 0; k < VMCONFIG_MAX_BACKING && !d->pristine; k++) {
		free(d->backing[k]);
		d->backing[k] = NULL;
	}
	return 0;
}

/* 0: the disk is one that both see; 1: it is not; -errno: it is, but it cannot be used. */
static int share_disk(struct migrate_offer *o, unsigned i, const char *folder, struct error *err)
{
	struct vmconfig_disk *d = &o->config.disks[i];
	struct image_info info;
	int r = 0;

	if (!is_same(o, d->path, &o->disks[i]))
		return 1;
	if (host.access(d->path, d->is_readonly ? R_OK : R_OK | W_OK) < 0)
		r = error_set(err, -errno, "cannot use disk %s here: %s", d->path, strerror(errno));
	if (r == 0)
		r = image_info(d->path, d->format, &info, err);
	if (r < 0)
		return r;
	if (info.size_bytes != o->disks[i].size_bytes)
		r = error_set(err, -EINVAL, "disk %s has another size than the source says", d->path);
	image_info_free(&info);
	if (r < 0 || !name_in(d->path, o->folder))
		return r;
	char *top = NULL;

	r = vmdisks_link_chain(d->path, d->format, o->folder, folder, &top, err);
	if (r < 0)
		return r == -EXDEV ? 1 : r;
	free(d->path);
	d->path = top;
	return 0;
}

/*
 * What a disk that is thrown away begins with at each start has to be here, unless this machine is never started again.  It is believed by name only on the
 * source's host: elsewhere a source could name any file.
 */
static int check_pristine(const struct migrate_offer *o, unsigned i, bool is_seen_here, struct error *err)
{
	return is_seen_here || o->config.is_throwaway
		       ? 0
		       : error_set(err, -ENODEV, "disk %u begins anew at each start, from a file that this host does not see",
				   i);
}

static void forget_pristine(struct vmconfig_disk *d)
{
	free(d->pristine);
	free(d->pristine_format);
	d->pristine = d->pristine_format = NULL;
}

/* What was written to it is there for this run: it gets a file, as for a snapshot (vmdisks_keep()). */
static int bring_throw_away(struct migrate_offer *o, unsigned i, const char *folder, struct error *err)
{
	struct vmconfig_disk *d = &o->config.disks[i];
	bool sees = is_seen(o, d->path, &o->disks[i]);
	int r = check_pristine(o, i, sees, err);

	forget_pristine(d);
	if (r == 0 && sees)
		r = vmconfig_set(&d->pristine, d->path, err);
	if (r == 0 && sees)
		r = vmconfig_set(&d->pristine_format, d->format, err);
	if (r < 0)
		return r;
	o->disks[i].is_copied = true;
	d->is_snapshot = false;
	return make_empty_disk(o, i, folder, err);
}

static int bring_disk(struct migrate_offer *o, unsigned i, const char *folder, struct error *err)
{
	struct vmconfig_disk *d = &o->config.disks[i];
	int r = 0;

	if (d->is_snapshot)
		return bring_throw_away(o, i, folder, err);
	if (d->pristine && !is_same_host(o)) {
		r = check_pristine(o, i, false, err);
		forget_pristine(d);
	}
	if (r == 0)
		r = share_disk(o, i, folder, err);
	o->disks[i].is_copied = r > 0;
	return r > 0 ? make_empty_disk(o, i, folder, err) : r;
}

/* Is there room for what is copied? */
static int check_space(struct migrate_offer *o, const char *folder, struct error *err)
{
	uint64_t want = 0;
	struct statvfs fs;
	const char *path;

	for (uint32_t n = 0; n <= MIGRATE_FILE_FIRMWARE; n++) {
		const struct migrate_file *f = migrate_file_of(o, n, &path);

		if (f && f->is_copied && __builtin_add_overflow(want, f->used_bytes, &want))
			return bad(err, "used");
	}
	if (!want)
		return 0;
	if (statvfs(folder, &fs) < 0)
		return error_set(err, -errno, "cannot see how much room there is in %s: %s", folder,
				 strerror(errno));
	uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;

	return want <= room
		       ? 0
		       : error_set(err, -ENOSPC, "what the machine takes along needs %llu MiB, and in %s there is room for %llu MiB",
				   (unsigned long long)(want >> 20), folder,
				   (unsigned long long)(room >> 20));
}

static int save_incoming(const struct migrate_offer *o, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(o->config.name, MIGRATE_INCOMING, err);
	json_t *json = migrate_offer_json(o);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;

	json_decref(json);
	if (!path || !text)
		return error_set(err, -ENOMEM, "no memory for an offer");
	return paths_write_file(path, text, strlen(text), err);
}

static int fill_folder(struct migrate_offer *o, const char *folder, struct error *err)
{
	int r = save_incoming(o, err); /* first: from here on it is known what the folder is */

	if (r == 0)
		r = bring_file(o, &o->config.kernel, &o->kernel, "kernel", folder, err);
	if (r == 0)
		r = bring_file(o, &o->config.initrd, &o->initrd, "initrd", folder, err);
	if (r == 0)
		r = bring_file(o, &o->config.firmware, &o->firmware, "firmware", folder, err);
	for (unsigned i = 0; r == 0 && i < o->config.ndisks; i++)
		r = bring_disk(o, i, folder, err);
	if (r == 0)
		r = check_space(o, folder, err);
	if (r == 0)
		r = save_incoming(o, err); /* with what is copied */
	return r == 0 ? vmconfig_save(&o->config, err) : r;
}

static int make_locked(const char *name, const char *folder, struct error *err)
{
	if (host.mkdir(folder, 0700) < 0)
		return errno == EEXIST
			       ? error_set(err, -EEXIST, "there is a machine \"%s\" already; --name gives this one another name",
					   name)
			       : error_set(err, -errno, "cannot make %s: %s", folder, strerror(errno));
	return vmlock_take(name, err);
}

/* What a target that was killed has left is nobody's, unless it had come so far that it is a machine. */
static void settle_left_over(const char *name)
{
	_cleanup_close_ int lock = migrate_is_incoming(name) ? vmlock_try(name, NULL) : -1;
	struct error err;

	if (lock >= 0 && migrate_settle(name, &err) < 0)
		log_warn("migrate", "%s", err.text);
}

int migrate_make_folder(struct migrate_offer *o, struct error *err)
{
	const char *name = o->config.name;
	_cleanup_free_ char *vms = paths_data("vms", err), *folder = paths_vm(name, NULL, err);
	struct error why;
	int r = vms && folder ? paths_make(vms, err) : -ENOMEM;

	if (r < 0)
		return r;
	settle_left_over(name);
	int lock = make_locked(name, folder, err);

	if (lock < 0)
		return lock;
	r = fill_folder(o, folder, err);
	if (r == 0)
		return lock;
	if (paths_remove_at_once(folder, &why) < 0)
		log_warn("migrate", "%s", why.text);
	close(lock);
	return r;
}

bool migrate_is_incoming(const char *name)
{
	_cleanup_free_ char *path = paths_vm(name, MIGRATE_INCOMING, NULL);

	return path && host.access(path, F_OK) == 0;
}

int migrate_settle(const char *name, struct error *err)
{
	_cleanup_free_ char *folder = paths_vm(name, NULL, err);
	struct migrate_offer o;

	if (!folder)
		return -ENOMEM;
	if (!migrate_is_incoming(name))
		return host.access(folder, F_OK) == 0;
	int r = migrate_offer_init(&o, err);

	if (r == 0)
		r = migrate_load_incoming(&o, name, err);
	if (r == 0)
		r = claim_ask(o.id, err);
	migrate_offer_free(&o);
	if (r == MIGRATE_ANSWER_RAN) {
		r = migrate_arrived(name, err);
		return r < 0 ? r : 1;
	}
	r = paths_remove_at_once(folder, err);
	return r < 0 ? r : 0;
}

int migrate_stand_in(const char *path, uint64_t size_bytes, struct error *err)
{
	_cleanup_close_ int fd =
		host.open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		return error_set(err, -errno, "cannot make %s: %s", path, strerror(errno));
	return 0;
}

int migrate_load_incoming(struct migrate_offer *o, const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(name, MIGRATE_INCOMING, err);
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = path ? paths_read_file(path, MIGRATE_PAYLOAD_MAX * 2, &text, &len, err) : -ENOMEM;

	return r == 0 ? migrate_offer_parse(o, text, len, err) : r;
}

int migrate_arrived(const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(name, MIGRATE_INCOMING, err);

	if (!path)
		return -ENOMEM;
	if (host.unlinkat(AT_FDCWD, path, 0) < 0 && errno != ENOENT)
		return error_set(err, -errno, "cannot remove %s: %s", path, strerror(errno));
	return 0;
}
