/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migrate_claim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/broker.h"
#include "ctl/paths.h"

#define FOLDER	   "migrations"
#define MARK_FILE  "handover.json"
#define KEEP_S	   (60 * 24 * 3600L) /* that a source may take to ask */
#define MARK_BYTES 4096

/* ---- ids ---- */

void migrate_id_text(char out[MIGRATE_ID_TEXT], const uint8_t id[MIGRATE_ID_BYTES])
{
	for (unsigned i = 0; i < MIGRATE_ID_BYTES; i++)
		snprintf(out + 2 * i, 3, "%02x", id[i]);
}

int migrate_id_parse(uint8_t id[MIGRATE_ID_BYTES], const char *text, struct error *err)
{
	uint8_t out[MIGRATE_ID_BYTES];

	if (strlen(text) != 2 * MIGRATE_ID_BYTES || strspn(text, "0123456789abcdef") != strlen(text))
		return error_set(err, -EINVAL, "\"%.40s\" is no id of a migration", text);
	for (unsigned i = 0; i < MIGRATE_ID_BYTES; i++)
		sscanf(text + 2 * i, "%2hhx", &out[i]);
	memcpy(id, out, sizeof(out));
	return 0;
}

int migrate_id_new(uint8_t id[MIGRATE_ID_BYTES], struct error *err)
{
	if (getrandom(id, MIGRATE_ID_BYTES, 0) != MIGRATE_ID_BYTES)
		return error_set(err, -EIO, "the host gives no random numbers");
	return 0;
}

/* ---- the claim ---- */

static char *claim_path(const uint8_t id[MIGRATE_ID_BYTES], const char *what, struct error *err)
{
	char text[MIGRATE_ID_TEXT];

	migrate_id_text(text, id);
	_cleanup_free_ char *folder = paths_data(FOLDER, err);

	return folder ? paths_format(err, "%s/%s.%s", folder, text, what) : NULL;
}

char *migrate_socket_path(const uint8_t id[MIGRATE_ID_BYTES], const char *what, struct error *err)
{
	_cleanup_free_ char *folder = paths_data(FOLDER, err);

	return folder && paths_make(folder, err) == 0 ? claim_path(id, what, err) : NULL;
}

static int sync_folder(const char *folder, struct error *err)
{
	_cleanup_close_ int fd = host.open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

	if (fd < 0 || fsync(fd) < 0)
		return error_set(err, -errno, "cannot write %s: %s", folder, strerror(errno));
	return 0;
}

int claim_sync(struct error *err)
{
	if (broker_door() >= 0)
		return broker_claim(CLAIM_SYNC, err);
	_cleanup_free_ char *folder = paths_data(FOLDER, err);

	return folder ? sync_folder(folder, err) : -ENOMEM;
}

static void remove_old(const char *folder)
{
	DIR *d = paths_open_dir(folder);
	time_t now = time(NULL);
	struct dirent *e;
	struct stat st;

	while (d && (e = readdir(d)))
		if (host.fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    (S_ISREG(st.st_mode) || S_ISSOCK(st.st_mode)) && st.st_mtime < now - KEEP_S &&
		    host.unlinkat(dirfd(d), e->d_name, 0) < 0)
			log_debug("migrate", "cannot remove %s: %s", e->d_name, strerror(errno));
	if (d)
		closedir(d);
}

int claim_open(const uint8_t id[MIGRATE_ID_BYTES], struct error *err)
{
	if (broker_door() >= 0)
		return broker_claim(CLAIM_OPEN, err);
	_cleanup_free_ char *folder = paths_data(FOLDER, err);
	_cleanup_free_ char *path = claim_path(id, "open", err), *ran = claim_path(id, "ran", err),
			    *aborted = claim_path(id, "aborted", err);

	if (!folder || !path || !ran || !aborted)
		return -ENOMEM;
	int r = paths_make(folder, err);

	if (r < 0)
		return r;
	remove_old(folder);
	if (host.access(ran, F_OK) == 0 || host.access(aborted, F_OK) == 0)
		return error_set(err, -EEXIST, "this migration was here before");
	_cleanup_close_ int fd = host.open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return error_set(err, -errno, "cannot make %s: %s", path, strerror(errno));
	return sync_folder(folder, err);
}

/* 0; -ENOENT: it is not open. */
static int decide(const uint8_t id[MIGRATE_ID_BYTES], const char *what, struct error *err)
{
	_cleanup_free_ char *from = claim_path(id, "open", err), *to = claim_path(id, what, err);

	if (!from || !to)
		return -ENOMEM;
	if (host.renameat(AT_FDCWD, from, AT_FDCWD, to) == 0)
		return 0;
	return error_set(err, -errno, "cannot rename %s: %s", from, strerror(errno));
}

int claim_take(const uint8_t id[MIGRATE_ID_BYTES], struct error *err)
{
	if (broker_door() >= 0)
		return broker_claim(CLAIM_TAKE, err);
	int r = decide(id, "ran", err);

	return r == -ENOENT ? error_set(err, -ECANCELED, "the source has taken the machine back") : r;
}

int claim_ask(const uint8_t id[MIGRATE_ID_BYTES], struct error *err)
{
	if (broker_door() >= 0)
		return broker_claim(CLAIM_ASK, err);
	_cleanup_free_ char *ran = claim_path(id, "ran", err), *aborted = claim_path(id, "aborted", err);
	int r = ran && aborted ? decide(id, "aborted", err) : -ENOMEM;

	if (r < 0 && r != -ENOENT)
		return r;
	int answer = host.access(ran, F_OK) == 0       ? MIGRATE_ANSWER_RAN
		     : host.access(aborted, F_OK) == 0 ? MIGRATE_ANSWER_ABORTED
						       : MIGRATE_ANSWER_UNKNOWN;

	/* Whoever is told acts on it: it must not be forgotten in a power cut. */
	r = answer == MIGRATE_ANSWER_UNKNOWN ? 0 : claim_sync(err);
	return r < 0 ? r : answer;
}

void claim_forget(const uint8_t id[MIGRATE_ID_BYTES])
{
	if (broker_door() >= 0) {
		(void)broker_claim(CLAIM_FORGET, NULL);
		return;
	}
	_cleanup_free_ char *path = claim_path(id, "ran", NULL);

	if (path && host.unlinkat(AT_FDCWD, path, 0) < 0)
		log_debug("migrate", "cannot remove %s: %s", path, strerror(errno));
}

/* ---- the mark ---- */

int mark_put(const char *name, const struct migrate_mark *mark, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(name, MARK_FILE, err);
	json_t *json = json_pack("{s:i, s:s, s:s, s:b}", "format", 1, "id", mark->id, "to",
				 mark->to, "moved", mark->has_moved);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_INDENT(1)) : NULL;

	json_decref(json);
	if (!path || !text)
		return path ? error_set(err, -EINVAL,
					"the target's name is not UTF-8, or there is no memory")
			    : -ENOMEM;
	return paths_write_file(path, text, strlen(text), err);
}

int mark_get(const char *name, struct migrate_mark *mark, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(name, MARK_FILE, err);
	_cleanup_free_ char *text = NULL;
	uint8_t id[MIGRATE_ID_BYTES];
	size_t len;

	if (!path)
		return -ENOMEM;
	int r = paths_read_file(path, MARK_BYTES, &text, &len, err);

	if (r < 0)
		return r;
	json_t *json = json_loadb(text, len, 0, NULL);
	const char *id_text = json_string_value(json_object_get(json, "id"));
	const char *to = json_string_value(json_object_get(json, "to"));

	r = id_text && to && strlen(to) < sizeof(mark->to) ? migrate_id_parse(id, id_text, err) : -EINVAL;
	if (r == 0) {
		snprintf(mark->id, sizeof(mark->id), "%s", id_text);
		snprintf(mark->to, sizeof(mark->to), "%s", to);
		mark->has_moved = json_is_true(json_object_get(json, "moved"));
	} else {
		error_set(err, r, "%s is damaged", path);
	}
	json_decref(json);
	return r;
}

int mark_remove(const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(name, MARK_FILE, err);

	if (!path)
		return -ENOMEM;
	if (host.unlinkat(AT_FDCWD, path, 0) < 0 && errno != ENOENT)
		return error_set(err, -errno, "cannot remove %s: %s", path, strerror(errno));
	return 0;
}
