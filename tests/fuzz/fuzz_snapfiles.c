/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of snapshots: an index of memory (refused, or it saves to the same bytes), then the uncompressed contents of an
 * exported file (refused, or unpacked with every name inside the folder); two bytes before them say how long the index is.
 * Checksums are made right first: they protect against accidents only.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "ctl/snapbundle.h"
#include "fuzz.h"

#define RAM_BYTES (1 * MIB)

/* In memory: files are synced, which a disk takes its time for. */
static char folder[] = "/dev/shm/viv-fuzz-snapfiles-XXXXXX";
static int dir_fd = -1;

static void remove_files(void)
{
	DIR *d = opendir(folder);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
		    unlinkat(dirfd(d), e->d_name, 0) < 0)
			abort();
	if (d)
		closedir(d);
}

static void remove_folder(void)
{
	remove_files();
	rmdir(folder);
}

static void make_folder(void)
{
	if (dir_fd >= 0)
		return;
	if (!mkdtemp(folder))
		abort();
	dir_fd = open(folder, O_RDONLY | O_DIRECTORY);
	atexit(remove_folder);
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const uint8_t entry[] = {
		'V',
		'I',
		'V',
		'S',
		'N',
		'A',
		'P',
		'1',
		4,
		'd',
		'i',
		's',
		'k',
		0,
		16,
		0,
		0,
		0,
		0,
		0,
		0,
		/* 3 bytes at 5 */
		5,
		0,
		0,
		0,
		0,
		0,
		0,
		0,
		3,
		0,
		0,
		0,
		0,
		0,
		0,
		0,
		1,
		2,
		3,
		255,
		255,
		255,
		255,
		255,
		255,
		255,
		255,
		0,
	};
	struct ram_index x;
	struct bytes b = { 0 };

	if (ram_index_init(&x, RAM_BYTES, NULL) < 0 || ram_index_add_layer(&x, "ram-1", NULL) < 0)
		abort();
	x.layer[3] = 1;
	bytes_put_u16(&b, 0);
	if (ram_index_save(&x, &b, NULL) < 0)
		abort();
	ram_index_free(&x);
	b.data[0] = (uint8_t)(b.len - 2);
	b.data[1] = (uint8_t)((b.len - 2) >> 8);
	bytes_put(&b, entry, sizeof(entry));
	if (b.is_failed || b.len > cap)
		abort();
	memcpy(data, b.data, b.len);
	size_t len = b.len;

	bytes_free(&b);
	return len;
}

static void try_index(const uint8_t *data, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);
	struct bytes again = { 0 };
	struct ram_index x;
	struct error err;

	if (!copy)
		abort();
	memcpy(copy, data, len);
	if (len >= 8) {
		uint64_t sum = XXH64(copy, len - 8, 0);

		memcpy(copy + len - 8, &sum, 8);
	}
	if (ram_index_parse(&x, copy, len, &err) == 0) {
		if (ram_index_save(&x, &again, &err) < 0 || again.len != len ||
		    memcmp(again.data, copy, len) != 0)
			abort();
		ram_index_drop_unused(&x);
		ram_index_free(&x);
		bytes_free(&again);
	}
	free(copy);
}

/* The same bytes as a working set. */
static void try_set(const uint8_t *data, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);
	struct bytes again = { 0 };
	struct working_set w;
	struct error err;

	if (!copy)
		abort();
	memcpy(copy, data, len);
	if (len >= 20) {
		memcpy(copy, "VIVWKSET\2\0\0\0", 12);
		uint64_t sum = XXH64(copy, len - 8, 0);

		memcpy(copy + len - 8, &sum, 8);
	}
	if (working_set_parse(&w, copy, len, &err) == 0) {
		if (working_set_save(&w, &again, &err) < 0 || again.len != len ||
		    memcmp(again.data, copy, len) != 0)
			abort();
		working_set_free(&w);
		bytes_free(&again);
	}
	free(copy);
}

static void try_bundle(const uint8_t *data, size_t len)
{
	struct snapstore_build b = { .dir_fd = dir_fd };
	size_t plain_len = len + 8, cap = ZSTD_compressBound(plain_len);
	uint8_t *plain = malloc(plain_len), *packed = malloc(cap);
	int fd = memfd_create("bundle", MFD_CLOEXEC);
	struct error err;

	if (!plain || !packed || fd < 0)
		abort();
	memcpy(plain, data, len);
	uint64_t sum = XXH64(plain, len, 0);

	memcpy(plain + len, &sum, 8);
	size_t n = ZSTD_compress(packed, cap, plain, plain_len, 1);

	if (ZSTD_isError(n) || write(fd, packed, n) != (ssize_t)n || lseek(fd, 0, SEEK_SET) != 0)
		abort();
	if (snapbundle_unpack(&b, fd, NULL, &err) < 0 && !err.text[0])
		abort();
	remove_files();
	close(fd);
	free(plain);
	free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	make_folder();
	if (len < 2)
		return 0;
	size_t n = MIN((size_t)(data[0] | data[1] << 8), len - 2);

	try_index(data + 2, n);
	try_set(data + 2, n);
	try_bundle(data + 2 + n, len - 2 - n);
	return 0;
}
