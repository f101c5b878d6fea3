/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers in parentheses are sections of ECMA-119.  A field "both" is written little endian, then big endian (7.2.3, 7.3.3).
 */
#include "block/iso9660.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum {
	PRIMARY = 16,
	JOLIET,
	TERMINATOR,
	PRIMARY_PATHS_L,
	PRIMARY_PATHS_M,
	JOLIET_PATHS_L,
	JOLIET_PATHS_M,
	PRIMARY_ROOT,
	JOLIET_ROOT,
	FIRST_FILE,
};
enum { SHORT_MAX = 8 + 1 + 3 + 2 + 1, PATH_TABLE_LEN = 10, IS_FOLDER = 2 };

struct entry {
	const struct iso9660_file *file;
	char short_name[SHORT_MAX]; /* "USER_DAT.;1" */
	uint32_t sector;
};

struct writer {
	struct bytes *out;
	struct tm time;
	struct entry entries[ISO9660_FILES_MAX];
	unsigned n;
	uint32_t nsectors;
};

/* ---- fields ---- */

static void put_u16_be(struct bytes *b, uint16_t v)
{
	bytes_put_u16(b, __builtin_bswap16(v));
}

static void put_u32_be(struct bytes *b, uint32_t v)
{
	bytes_put_u32(b, __builtin_bswap32(v));
}

static void put_u16_both(struct bytes *b, uint16_t v)
{
	bytes_put_u16(b, v);
	put_u16_be(b, v);
}

static void put_u32_both(struct bytes *b, uint32_t v)
{
	bytes_put_u32(b, v);
	put_u32_be(b, v);
}

static void put_fill(struct bytes *b, uint8_t with, size_t n)
{
	while (n--)
		bytes_put_u8(b, with);
}

/* @len bytes, padded with spaces; in UCS-2, big endian, for Joliet. */
static void put_text(struct bytes *b, const char *text, size_t len, bool is_joliet)
{
	size_t n = strlen(text), cells = is_joliet ? len / 2 : len;

	for (size_t i = 0; i < cells; i++) {
		if (is_joliet)
			bytes_put_u8(b, 0);
		bytes_put_u8(b, i < n ? (uint8_t)text[i] : ' ');
	}
	if (is_joliet && len % 2)
		bytes_put_u8(b, 0);
}

static void pad_to_sector(struct bytes *b, uint32_t sector)
{
	size_t end = (size_t)sector * ISO9660_SECTOR;

	if (b->len < end)
		put_fill(b, 0, end - b->len);
}

/* ---- folders ---- */

/* A date of seven bytes (9.1.5), in UTC. */
static void put_date(struct writer *w)
{
	bytes_put_u8(w->out, (uint8_t)w->time.tm_year);
	bytes_put_u8(w->out, (uint8_t)(w->time.tm_mon + 1));
	bytes_put_u8(w->out, (uint8_t)w->time.tm_mday);
	bytes_put_u8(w->out, (uint8_t)w->time.tm_hour);
	bytes_put_u8(w->out, (uint8_t)w->time.tm_min);
	bytes_put_u8(w->out, (uint8_t)MIN(w->time.tm_sec, 59));
	bytes_put_u8(w->out, 0);
}

/* A record of a folder (9.1); @id of @id_len bytes as on the disk. */
static void put_record(struct writer *w, uint32_t sector, size_t len, uint8_t flags, const void *id,
		       uint8_t id_len)
{
	struct bytes *b = w->out;

	bytes_put_u8(b, (uint8_t)ALIGN_UP(33u + id_len, 2u));
	bytes_put_u8(b, 0);
	put_u32_both(b, sector);
	put_u32_both(b, (uint32_t)len);
	put_date(w);
	bytes_put_u8(b, flags);
	put_fill(b, 0, 2);
	put_u16_both(b, 1);
	bytes_put_u8(b, id_len);
	bytes_put(b, id, id_len);
	if (id_len % 2 == 0)
		bytes_put_u8(b, 0);
}

static void put_file_record(struct writer *w, const struct entry *e, bool is_joliet)
{
	const char *name = is_joliet ? e->file->name : e->short_name;
	uint8_t id[2 * ISO9660_NAME_MAX];
	size_t n = strlen(name);

	for (size_t i = 0; i < n; i++) {
		if (is_joliet)
			id[2 * i] = 0;
		id[is_joliet ? 2 * i + 1 : i] = (uint8_t)name[i];
	}
	put_record(w, e->sector, e->file->len, 0, id, (uint8_t)(is_joliet ? 2 * n : n));
}

/* Itself and its parent, which is itself (6.8.2.2), then the files in the order of their names (9.3). */
static void put_root(struct writer *w, bool is_joliet)
{
	uint32_t sector = is_joliet ? JOLIET_ROOT : PRIMARY_ROOT;
	const struct entry *order[ISO9660_FILES_MAX];

	pad_to_sector(w->out, sector);
	put_record(w, sector, ISO9660_SECTOR, IS_FOLDER, "\0", 1);
	put_record(w, sector, ISO9660_SECTOR, IS_FOLDER, "\1", 1);
	for (unsigned i = 0; i < w->n; i++) {
		const struct entry *e = &w->entries[i];
		unsigned at = i;

		for (; at > 0; at--) {
			const struct entry *before = order[at - 1];

			if (is_joliet ? strcmp(before->file->name, e->file->name) < 0
				      : strcmp(before->short_name, e->short_name) < 0)
				break;
			order[at] = before;
		}
		order[at] = e;
	}
	for (unsigned i = 0; i < w->n; i++)
		put_file_record(w, order[i], is_joliet);
}

/* One row: the root folder (9.4). */
static void put_path_table(struct writer *w, uint32_t at, uint32_t root, bool is_big_endian)
{
	struct bytes *b = w->out;

	pad_to_sector(b, at);
	bytes_put_u8(b, 1);
	bytes_put_u8(b, 0);
	if (is_big_endian) {
		put_u32_be(b, root);
		put_u16_be(b, 1);
	} else {
		bytes_put_u32(b, root);
		bytes_put_u16(b, 1);
	}
	put_fill(b, 0, 2);
}

/* ---- descriptors ---- */

/* Seventeen bytes (8.4.26.1); @is_none: not given. */
static void put_long_date(struct writer *w, bool is_none)
{
	char text[17] = "0000000000000000";

	if (!is_none)
		(void)strftime(text, sizeof(text), "%Y%m%d%H%M%S00", &w->time);
	bytes_put(w->out, text, 16);
	bytes_put_u8(w->out, 0);
}

/* The primary (8.4) or the supplementary one (8.5). */
static void put_descriptor(struct writer *w, const char *label, bool is_joliet)
{
	struct bytes *b = w->out;

	pad_to_sector(b, is_joliet ? JOLIET : PRIMARY);
	bytes_put_u8(b, is_joliet ? 2 : 1);
	bytes_put(b, "CD001\1", 6);
	bytes_put_u8(b, 0);
	put_text(b, "LINUX", 32, is_joliet);
	put_text(b, label, 32, is_joliet);
	put_fill(b, 0, 8);
	put_u32_both(b, w->nsectors);
	/* Joliet's escape sequence: UCS-2 of level 3. */
	bytes_put(b, is_joliet ? "%/E" : "\0\0", 3);
	put_fill(b, 0, 29);
	put_u16_both(b, 1);
	put_u16_both(b, 1);
	put_u16_both(b, ISO9660_SECTOR);
	put_u32_both(b, PATH_TABLE_LEN);
	bytes_put_u32(b, is_joliet ? JOLIET_PATHS_L : PRIMARY_PATHS_L);
	bytes_put_u32(b, 0);
	put_u32_be(b, is_joliet ? JOLIET_PATHS_M : PRIMARY_PATHS_M);
	bytes_put_u32(b, 0);
	put_record(w, is_joliet ? JOLIET_ROOT : PRIMARY_ROOT, ISO9660_SECTOR, IS_FOLDER, "\0", 1);
	put_text(b, "", 128, is_joliet);	 /* volume set */
	put_text(b, "", 128, is_joliet);	 /* publisher */
	put_text(b, "", 128, is_joliet);	 /* preparer */
	put_text(b, "VIVARIUM", 128, is_joliet); /* application */
	for (unsigned i = 0; i < 3; i++)
		put_text(b, "", 37, is_joliet); /* files of copyright, abstract, bibliography */
	put_long_date(w, false);
	put_long_date(w, false);
	put_long_date(w, true);
	put_long_date(w, true);
	bytes_put_u8(b, 1);
}

static void put_terminator(struct writer *w)
{
	pad_to_sector(w->out, TERMINATOR);
	bytes_put_u8(w->out, 255);
	bytes_put(w->out, "CD001\1", 6);
}

/* ---- names ---- */

static bool is_good_name(const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < n; i++)
		if ((unsigned char)name[i] < ' ' || (unsigned char)name[i] > '~' ||
		    strchr("*/:;?\\", name[i]))
			return false;
	return n >= 1 && n <= ISO9660_NAME_MAX && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* At most @max d-characters of @from (7.4.1); others become '_'. */
static unsigned take_d(char *to, const char *from, size_t len, unsigned max)
{
	unsigned n = (unsigned)MIN(len, (size_t)max);

	for (unsigned i = 0; i < n; i++)
		to[i] = (char)(isalnum((unsigned char)from[i]) ? toupper((unsigned char)from[i]) : '_');
	return n;
}

static bool has_short_name(const struct writer *w, const char *name)
{
	for (unsigned i = 0; i < w->n; i++)
		if (strcmp(w->entries[i].short_name, name) == 0)
			return true;
	return false;
}

/* Of level 1 (10.1); a digit at its end where another file has it already: there are fewer files than digits. */
static void make_short_name(const struct writer *w, struct entry *e)
{
	const char *name = e->file->name, *dot = strrchr(name + 1, '.');
	char base[8 + 1] = "", extension[3 + 1] = "";
	unsigned n = take_d(base, name, dot ? (size_t)(dot - name) : strlen(name), 8);

	if (dot)
		take_d(extension, dot + 1, strlen(dot + 1), 3);
	snprintf(e->short_name, sizeof(e->short_name), "%s.%s;1", base, extension);
	for (unsigned i = 0; has_short_name(w, e->short_name); i++)
		snprintf(e->short_name, sizeof(e->short_name), "%.*s%u.%s;1", (int)MIN(n, 7u), base,
			 i % 10, extension);
}

/* ---- */

static int add_file(struct writer *w, const struct iso9660_file *f, struct error *err)
{
	struct entry e = { .file = f, .sector = w->nsectors };

	if (!is_good_name(f->name))
		return error_set(err, -EINVAL, "\"%.80s\" is no name for a file of a seed", f->name);
	if (f->len > ISO9660_FILE_MAX)
		return error_set(err, -EINVAL, "%s has more than %llu MiB", f->name,
				 ISO9660_FILE_MAX / MIB);
	for (unsigned i = 0; i < w->n; i++)
		if (strcasecmp(w->entries[i].file->name, f->name) == 0)
			return error_set(err, -EINVAL, "there are two files \"%s\"", f->name);
	make_short_name(w, &e);
	w->entries[w->n++] = e;
	w->nsectors += (uint32_t)((f->len + ISO9660_SECTOR - 1) / ISO9660_SECTOR);
	return 0;
}

static int check(const char *label, unsigned nfiles, int64_t time_s, struct tm *out, struct error *err)
{
	time_t t = (time_t)time_s;

	if (!is_good_name(label) || strlen(label) > ISO9660_LABEL_MAX)
		return error_set(err, -EINVAL, "\"%.80s\" is no label of a volume", label);
	if (nfiles > ISO9660_FILES_MAX)
		return error_set(err, -EINVAL, "a volume has at most %d files", ISO9660_FILES_MAX);
	if (time_s < 0 || !gmtime_r(&t, out) || out->tm_year > 255)
		return error_set(err, -EINVAL, "a volume is dated from 1970 to 2155");
	return 0;
}

int iso9660_write(struct bytes *out, const char *label, const struct iso9660_file *files,
		  unsigned nfiles, int64_t time_s, struct error *err)
{
	struct writer w = { .out = out, .nsectors = FIRST_FILE };
	int r = check(label, nfiles, time_s, &w.time, err);

	for (unsigned i = 0; r == 0 && i < nfiles; i++)
		r = add_file(&w, &files[i], err);
	if (r < 0)
		return r;
	put_descriptor(&w, label, false);
	put_descriptor(&w, label, true);
	put_terminator(&w);
	put_path_table(&w, PRIMARY_PATHS_L, PRIMARY_ROOT, false);
	put_path_table(&w, PRIMARY_PATHS_M, PRIMARY_ROOT, true);
	put_path_table(&w, JOLIET_PATHS_L, JOLIET_ROOT, false);
	put_path_table(&w, JOLIET_PATHS_M, JOLIET_ROOT, true);
	put_root(&w, false);
	put_root(&w, true);
	for (unsigned i = 0; i < w.n; i++) {
		pad_to_sector(out, w.entries[i].sector);
		bytes_put(out, w.entries[i].file->data, w.entries[i].file->len);
	}
	pad_to_sector(out, w.nsectors);
	return out->is_failed ? error_set(err, -ENOMEM, "no memory for a volume") : 0;
}
