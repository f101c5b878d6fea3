/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes are read back by a reader that goes by the standard's tables and knows nothing of the writer. */
#include "base/unit.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/iso9660.h"

static const char user_data[] = "#cloud-config\n";
static uint8_t big[3 * ISO9660_SECTOR + 1];

static const struct iso9660_file files[] = {
	{ "user-data", user_data, sizeof(user_data) - 1 },
	{ "meta-data", "", 0 },
	{ "network-config", big, sizeof(big) },
	{ "network-other", big, ISO9660_SECTOR },
	{ "A file.with.dots", "x", 1 },
};
#define NFILES ((unsigned)ARRAY_SIZE(files))

/* ---- a reader ---- */

static const uint8_t *sector(const struct bytes *v, uint32_t n)
{
	assert_true(((uint64_t)n + 1) * ISO9660_SECTOR <= v->len);
	return v->data + (size_t)n * ISO9660_SECTOR;
}

static uint32_t le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* 7.3.3 */
static uint32_t both32(const uint8_t *p)
{
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(p[i], p[7 - i]);
	return le32(p);
}

/* 7.2.3 */
static uint32_t both16(const uint8_t *p)
{
	assert_int_equal(p[0], p[3]);
	assert_int_equal(p[1], p[2]);
	return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static void read_name(char out[200], const uint8_t *id, unsigned len, bool is_joliet)
{
	unsigned step = is_joliet ? 2 : 1;

	assert_int_equal(len % step, 0);
	for (unsigned i = 0; i < len; i += step) {
		if (is_joliet)
			assert_int_equal(id[i], 0);
		out[i / step] = (char)id[i + step - 1];
	}
	out[len / step] = 0;
}

/* The record at @at; its length. */
static unsigned check_record(const uint8_t *at, bool is_folder)
{
	unsigned id_len = at[32];

	assert_int_equal(at[0], 33 + id_len + (id_len % 2 == 0));
	assert_int_equal(at[1], 0);
	assert_memory_equal(at + 18, "\x7e\x0b\x1b\x17\x2d\x29\0", 7); /* 2026-11-27 23:45:41 UTC */
	assert_int_equal(at[25], is_folder ? 2 : 0);
	assert_int_equal(both16(at + 28), 1);
	return at[0];
}

/* The folder of the record @at has all files, in the order of names. */
static void check_folder(const struct bytes *v, const uint8_t *root, bool is_joliet)
{
	const uint8_t *at = sector(v, both32(root + 2)), *end = at + both32(root + 10);
	char before[200] = "", name[200];
	unsigned n = 0, found = 0;

	assert_int_equal(both32(root + 10), ISO9660_SECTOR);
	for (; at < end && at[0]; n++) {
		unsigned len = check_record(at, n < 2);

		read_name(name, at + 33, at[32], is_joliet && n >= 2);
		if (n < 2) {
			assert_int_equal(at[32], 1);
			assert_int_equal(at[33], n);
			assert_memory_equal(at + 2, root + 2, 16);
		} else {
			assert_true(strcmp(before, name) < 0);
			strcpy(before, name);
		}
		for (unsigned i = 0; n >= 2 && i < NFILES; i++) {
			if (strcmp(name, files[i].name) != 0 && is_joliet)
				continue;
			if (both32(at + 10) != files[i].len ||
			    (files[i].len &&
			     memcmp(sector(v, both32(at + 2)), files[i].data, files[i].len) != 0))
				continue;
			found |= 1u << i;
		}
		at += len;
	}
	assert_int_equal(n, 2 + NFILES);
	assert_int_equal(found, (1u << NFILES) - 1);
	for (; at < end; at++)
		assert_int_equal(*at, 0);
}

static void check_descriptor(const struct bytes *v, unsigned n, bool is_joliet)
{
	const uint8_t *d = sector(v, n), *root = d + 156;
	char label[200];

	assert_int_equal(d[0], is_joliet ? 2 : 1);
	assert_memory_equal(d + 1, "CD001\1\0", 7);
	read_name(label, d + 40, 32, is_joliet);
	assert_memory_equal(label, "cidata    ", 10);
	assert_int_equal(both32(d + 80) * ISO9660_SECTOR, v->len);
	assert_memory_equal(d + 88, is_joliet ? "%/E" : "\0\0\0", 3);
	assert_int_equal(both16(d + 128), ISO9660_SECTOR);
	assert_int_equal(both32(d + 132), 10);
	/* path tables: the root folder alone */
	uint32_t extent = both32(root + 2);
	const uint8_t *l = sector(v, le32(d + 140)), *m = sector(v, __builtin_bswap32(le32(d + 148)));

	assert_int_equal(le32(l + 2), extent);
	assert_int_equal(__builtin_bswap32(le32(m + 2)), extent);
	assert_memory_equal(l + 6, "\1\0\0\0", 4);
	assert_memory_equal(m + 6, "\0\1\0\0", 4);
	assert_memory_equal(d + 813, "2026112723454100\0", 17);
	assert_memory_equal(d + 847, "0000000000000000\0", 17);
	assert_int_equal(d[881], 1);
	check_record(root, true);
	check_folder(v, root, is_joliet);
}

/* ---- tests ---- */

#define TIME 1795823141

static void test_volume(void **state)
{
	_cleanup_bytes_ struct bytes v = { 0 };
	struct error err;

	memset(big, 0xa5, sizeof(big));
	assert_int_equal(iso9660_write(&v, "cidata", files, NFILES, TIME, &err), 0);
	assert_int_equal(v.len % ISO9660_SECTOR, 0);
	for (unsigned i = 0; i < 16 * ISO9660_SECTOR; i++)
		assert_int_equal(v.data[i], 0);
	check_descriptor(&v, 16, false);
	check_descriptor(&v, 17, true);
	assert_memory_equal(sector(&v, 18), "\377CD001\1", 7);
}

/* Level 1: eight capitals, digits and underscores, a dot, three of them, a version; all different. */
static void test_short_names(void **state)
{
	_cleanup_bytes_ struct bytes v = { 0 };
	struct error err;
	char name[200];
	unsigned n = 0;

	assert_int_equal(iso9660_write(&v, "cidata", files, NFILES, TIME, &err), 0);
	const uint8_t *at = sector(&v, both32(sector(&v, 16) + 158));
	static const char *const want[] = { "A_FILE_W.DOT;1", "META_DAT.;1", "NETWORK0.;1",
					    "NETWORK_.;1", "USER_DAT.;1" };

	for (; at[0]; at += at[0], n++) {
		read_name(name, at + 33, at[32], false);
		if (n >= 2)
			assert_string_equal(name, want[n - 2]);
	}
	assert_int_equal(n, 2 + ARRAY_SIZE(want));
}

static void test_most(void **state)
{
	struct iso9660_file all[ISO9660_FILES_MAX + 1];
	char names[ISO9660_FILES_MAX + 1][ISO9660_NAME_MAX + 1];
	_cleanup_bytes_ struct bytes v = { 0 }, w = { 0 };
	struct error err;

	for (unsigned i = 0; i <= ISO9660_FILES_MAX; i++) {
		memset(names[i], 'n', ISO9660_NAME_MAX);
		names[i][ISO9660_NAME_MAX] = 0;
		names[i][ISO9660_NAME_MAX - 1] = (char)('a' + i);
		all[i] = (struct iso9660_file){ names[i], "x", 1 };
	}
	assert_int_equal(iso9660_write(&v, "1234567890123456", all, ISO9660_FILES_MAX, TIME, &err), 0);
	assert_int_equal(v.len, (25 + ISO9660_FILES_MAX) * ISO9660_SECTOR);
	assert_int_equal(iso9660_write(&w, "x", all, ISO9660_FILES_MAX + 1, TIME, &err), -EINVAL);
}

static void test_refused(void **state)
{
	static const char *const bad[] = {
		"",	".",
		"..",	"a/b",
		"a\\b", "a;b",
		"a\nb", "\303\244",
		"a*",	"n2345678901234567890123456789012345678901234567890123456789012345"
	};
	_cleanup_bytes_ struct bytes v = { 0 };
	struct iso9660_file f = { "good", "x", 1 };
	const struct iso9660_file twice[] = { f, { "Good", "x", 1 } };
	struct error err;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		f.name = bad[i];
		assert_int_equal(iso9660_write(&v, "x", &f, 1, TIME, &err), -EINVAL);
	}
	f.name = "good";
	f.len = ISO9660_FILE_MAX + 1;
	assert_int_equal(iso9660_write(&v, "x", &f, 1, TIME, &err), -EINVAL);
	f.len = 1;
	assert_int_equal(iso9660_write(&v, "x", twice, 2, TIME, &err), -EINVAL);
	assert_int_equal(iso9660_write(&v, "", &f, 1, TIME, &err), -EINVAL);
	assert_int_equal(iso9660_write(&v, "12345678901234567", &f, 1, TIME, &err), -EINVAL);
	assert_int_equal(iso9660_write(&v, "x", &f, 1, -1, &err), -EINVAL);
	assert_int_equal(iso9660_write(&v, "x", &f, 1, 1LL << 40, &err), -EINVAL);
	assert_int_equal(v.len, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_volume),
		cmocka_unit_test(test_short_names),
		cmocka_unit_test(test_most),
		cmocka_unit_test(test_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
