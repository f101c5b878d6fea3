/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "net/capture.h"

static char dir[64];
static struct error err;
static const char *const interfaces[] = { "dmz.web", "app.db" };

static int set_up(void **state)
{
	snprintf(dir, sizeof(dir), "/tmp/viv-capture.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static void path_of(const char *name, char out[400])
{
	snprintf(out, 400, "%s/%s", dir, name);
}

static int tear_down(void **state)
{
	DIR *d = opendir(dir);
	char path[400];

	for (struct dirent *e; d && (e = readdir(d));)
		if (e->d_name[0] != '.') {
			path_of(e->d_name, path);
			unlink(path);
		}
	closedir(d);
	return rmdir(dir);
}

static struct capture_config config(const char *name)
{
	return (struct capture_config){ .dir_fd = open(dir, O_RDONLY | O_DIRECTORY),
					.name = name,
					.interfaces = interfaces,
					.ninterfaces = 2 };
}

/* Walks the blocks of a file by both of their lengths; how many packets; the last one's comment. */
static unsigned read_file(const char *name, char comment[256])
{
	char path[400];
	uint8_t *b = malloc(4 * MIB);
	unsigned packets = 0, interfaces_seen = 0;

	path_of(name, path);
	int fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	ssize_t len = read(fd, b, 4 * MIB);
	close(fd);
	struct byte_reader r = { .data = b, .len = (size_t)len };
	while (r.pos < r.len) {
		size_t at = r.pos;
		uint32_t type = bytes_get_u32(&r), size = bytes_get_u32(&r), last;
		assert_true(size >= 12 && size % 4 == 0 && size <= r.len - at);
		memcpy(&last, b + at + size - 4, 4);
		assert_int_equal(last, size);
		assert_true(at || type == 0x0a0d0d0a);
		interfaces_seen += type == 1;
		if (type == 6) {
			assert_true(bytes_get_u32(&r) < 2);
			bytes_get_u64(&r);
			uint32_t captured = bytes_get_u32(&r);
			assert_int_equal(bytes_get_u32(&r), captured);
			r.pos += (captured + 3) & ~3u;
			assert_int_equal(bytes_get_u16(&r), 1);
			uint16_t n = bytes_get_u16(&r);
			memcpy(comment, b + r.pos, MIN(n, 255));
			comment[MIN(n, 255)] = 0;
			packets++;
		}
		r.pos = at + size;
	}
	assert_int_equal(interfaces_seen, 2);
	assert_false(r.is_failed);
	free(b);
	return packets;
}

static void test_file(void **state)
{
	struct capture_config cfg = config("x.pcapng");
	struct capture *c;
	uint8_t frame[61] = { 1 };
	char comment[256];

	assert_int_equal(capture_open(&c, &cfg, &err), 0);
	for (unsigned i = 0; i < 5; i++)
		capture_packet(c, i % 2, CAPTURE_IN, 1700000000000000000u + i, frame, 60 + i % 2,
			       "denied: spoofed IP");
	assert_int_equal(capture_flush(c), 0);
	assert_int_equal(capture_stats(c).packets, 5);
	assert_int_equal(read_file("x.pcapng", comment), 5);
	assert_string_equal(comment, "denied: spoofed IP");
	capture_close(c);
}

static void test_filter(void **state)
{
	/* ldh [12]; jeq #0x806, 0, 1; ret #65535; ret #0 */
	static const struct capture_insn arp[] = {
		{ 0x28, 0, 0, 12 }, { 0x15, 0, 1, 0x806 }, { 6, 0, 0, 65535 }, { 6, 0, 0, 0 }
	};
	/* ja -1: libpcap's own check takes it, for protochain. */
	static const struct capture_insn endless[] = { { 5, 0, 0, 0xffffffff }, { 6, 0, 0, 0 } };
	struct capture_config cfg = config("x");
	struct capture *c;
	uint8_t frame[60] = { 0 };
	char comment[256];

	cfg.filter = arp;
	cfg.ninsns = 4;
	assert_int_equal(capture_open(&c, &cfg, &err), 0);
	capture_packet(c, 0, CAPTURE_IN, 1, frame, 60, "no");
	frame[12] = 8;
	frame[13] = 6;
	capture_packet(c, 0, CAPTURE_IN, 1, frame, 60, "yes");
	capture_packet(c, 0, CAPTURE_IN, 1, frame, 10, "too short to tell");
	capture_close(c);
	assert_int_equal(read_file("x", comment), 1);
	assert_string_equal(comment, "yes");
	cfg = config("y");
	cfg.filter = endless;
	cfg.ninsns = 2;
	assert_int_equal(capture_open(&c, &cfg, &err), -EINVAL);
	cfg = config("y");
	cfg.filter = endless;
	cfg.ninsns = 1;
	assert_int_equal(capture_open(&c, &cfg, &err), -EINVAL);
}

static void test_rotation(void **state)
{
	struct capture_config cfg = config("r");
	static uint8_t frame[1500];
	char path[400], comment[256];
	struct capture *c;
	struct stat st;

	cfg.rotate_bytes = CAPTURE_ROTATE_MIN;
	cfg.keep = 2;
	assert_int_equal(capture_open(&c, &cfg, &err), 0);
	for (unsigned i = 0; i < 200; i++) {
		capture_packet(c, 0, CAPTURE_OUT, i, frame, sizeof(frame), "passed");
		assert_int_equal(capture_flush(c), 0);
	}
	unsigned files = capture_stats(c).files;
	capture_close(c);
	assert_in_range(files, 4, 6);
	for (unsigned i = 0; i < files; i++) {
		snprintf(comment, sizeof(comment), i ? "r.%u" : "r", i);
		path_of(comment, path);
		assert_int_equal(stat(path, &st), i + 2 < files ? -1 : 0);
	}
	snprintf(path, sizeof(path), "r.%u", files - 2);
	assert_true(read_file(path, comment) > 40);
}

static void test_refused(void **state)
{
	static const char *const names[] = { "", "a/b", "..", "/etc/x" };
	struct capture *c;

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		struct capture_config cfg = config(names[i]);
		assert_int_equal(capture_open(&c, &cfg, &err), -EINVAL);
	}
	struct capture_config cfg = config("x");
	cfg.rotate_bytes = 1000;
	assert_int_equal(capture_open(&c, &cfg, &err), -EINVAL);
}

/* The disk is full: it says so, and is quiet from then on. */
static void test_full(void **state)
{
	struct capture_config cfg = { .dir_fd = open("/dev", O_RDONLY | O_DIRECTORY),
				      .name = "full",
				      .interfaces = interfaces,
				      .ninterfaces = 2 };
	struct capture *c;

	assert_int_equal(capture_open(&c, &cfg, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "full"));
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, set_up, tear_down)
	const struct CMUnitTest tests[] = { T(test_file), T(test_filter), T(test_rotation),
					    T(test_refused), T(test_full) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
