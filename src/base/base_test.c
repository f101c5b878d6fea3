/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/unit.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/host.h"
#include "base/log.h"

static void error_prefixes_and_truncates(void **state)
{
	struct error e = { 0 };

	assert_int_equal(error_set(&e, -ENOENT, "cannot open %s", "x\ny"), -ENOENT);
	assert_string_equal(e.text, "cannot open x?y");
	error_prefix(&e, "disk %d", 2);
	assert_string_equal(e.text, "disk 2: cannot open x?y");
	assert_int_equal(error_set(NULL, -EIO, "nobody listens"), -EIO);
	error_prefix(NULL, "nobody");

	error_set(&e, -EINVAL, "again: %s", e.text); /* arguments inside the target */
	assert_string_equal(e.text, "again: disk 2: cannot open x?y");

	char big[2000];
	memset(big, 'a', sizeof(big));
	big[sizeof(big) - 1] = 0;
	error_set(&e, -EINVAL, "%s", big);
	assert_int_equal(strlen(e.text), sizeof(e.text) - 1);
	error_prefix(&e, "p");
	assert_int_equal(strlen(e.text), sizeof(e.text) - 1);
	assert_memory_equal(e.text, "p: aaa", 6);
	for (size_t n = 500; n < 520; n++) { /* prefixes about as long as the room */
		big[n] = 0;
		error_set(&e, -EINVAL, "tail");
		error_prefix(&e, "%s", big);
		assert_true(strlen(e.text) < sizeof(e.text));
		assert_memory_equal(e.text, big, 500);
		big[n] = 'a';
	}
}

static void bytes_round_trip(void **state)
{
	struct bytes b = { 0 };

	bytes_put_u8(&b, 1);
	bytes_put_u16(&b, 0x203);
	bytes_put_u32(&b, 0x4050607);
	bytes_put_u64(&b, 0x8090a0b0c0d0e0fULL);
	bytes_put(&b, "xyz", 3);
	bytes_put(&b, NULL, 0);
	bytes_printf(&b, "%s-%d", "hello", 42);
	assert_false(b.is_failed);
	assert_int_equal(b.len, 1 + 2 + 4 + 8 + 3 + 8);
	assert_int_equal(b.data[1], 3); /* little-endian */

	struct byte_reader r = { .data = b.data, .len = b.len };
	char text[8];
	assert_int_equal(bytes_get_u8(&r), 1);
	assert_int_equal(bytes_get_u16(&r), 0x203);
	assert_int_equal(bytes_get_u32(&r), 0x4050607);
	assert_int_equal(bytes_get_u64(&r), 0x8090a0b0c0d0e0fULL);
	assert_true(bytes_get(&r, text, 3));
	assert_memory_equal(text, "xyz", 3);
	assert_true(bytes_get(&r, text, 8));
	assert_memory_equal(text, "hello-42", 8);
	assert_false(r.is_failed);
	assert_int_equal(bytes_get_u8(&r), 0);
	assert_true(r.is_failed);
	bytes_free(&b);
	assert_null(b.data);
	bytes_put_u8(&b, 7); /* usable again */
	assert_int_equal(b.data[0], 7);
	bytes_free(&b);
}

static void bytes_read_past_end_gives_zeros(void **state)
{
	uint8_t data[4] = { 1, 2, 3, 4 };
	struct byte_reader r = { .data = data, .len = 4 };
	uint8_t out[8] = { 9, 9, 9, 9, 9, 9, 9, 9 }, zero[8] = { 0 };

	assert_int_equal(bytes_get_u16(&r), 0x201);
	assert_false(bytes_get(&r, out, 3));
	assert_memory_equal(out, zero, 3);
	assert_int_equal(bytes_get_u16(&r), 0); /* failed stays failed */
	r = (struct byte_reader){ .data = data, .len = 4 };
	assert_false(bytes_get(&r, out, 8));
	assert_memory_equal(out, zero, 8);
}

static unsigned fail_at, ncalls;
static void *failing_realloc(void *p, size_t len)
{
	return ++ncalls == fail_at ? NULL : realloc(p, len);
}

static void bytes_failed_growth_sticks(void **state)
{
	for (fail_at = 1; fail_at <= 4; fail_at++) {
		struct bytes b = { 0 };
		ncalls = 0;
		host.realloc = failing_realloc;
		for (unsigned i = 0; i < 300; i++)
			bytes_put_u8(&b, (uint8_t)i);
		host = host_calls_real;
		assert_true(b.is_failed);
		assert_true(b.len < 300);
		bytes_put_u8(&b, 1);
		bytes_printf(&b, "x");
		assert_true(b.is_failed);
		for (size_t i = 0; i < b.len; i++)
			assert_int_equal(b.data[i], (uint8_t)i);
		bytes_free(&b);
	}
}

static size_t read_log(int fd, char *text, size_t cap)
{
	ssize_t n = pread(fd, text, cap - 1, 0);

	assert_true(n >= 0);
	text[n] = 0;
	return (size_t)n;
}

static unsigned count_lines(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

/* Each byte of each length counts, those of memory that is not aligned, too. */
static void bytes_all_zero(void **state)
{
	uint8_t buf[400] = { [0] = 1, [399] = 1 };

	for (size_t len = 0; len < sizeof(buf) - 1; len++) {
		assert_true(bytes_are_zero(buf + 1, MIN(len, sizeof(buf) - 2)));
		buf[1 + len] = 0x80;
		assert_int_equal(bytes_are_zero(buf + 1, sizeof(buf) - 2), len == sizeof(buf) - 2);
		buf[1 + len] = len == sizeof(buf) - 2;
	}
}

static void log_levels_and_rate(void **state)
{
	char text[8192];
	int fd = memfd_create("log", MFD_CLOEXEC);

	assert_true(fd >= 0);
	log_set_fd(fd);
	log_set_level(LOG_INFO);
	log_debug("area", "not shown");
	log_guest("area", "not shown");
	log_info("area", "shown %d\033[2J", 1);
	read_log(fd, text, sizeof(text));
	assert_string_equal(text, "viv: info: area: shown 1?[2J\n");

	assert_int_equal(ftruncate(fd, 0), 0);
	lseek(fd, 0, SEEK_SET);
	log_set_level(LOG_DEBUG);
	for (int i = 0; i < 1000; i++)
		log_guest("dev", "bad value %d", i);
	read_log(fd, text, sizeof(text));
	assert_in_range(count_lines(text), 10, 25); /* 10, or more where a second went by */

	assert_int_equal(ftruncate(fd, 0), 0);
	lseek(fd, 0, SEEK_SET);
	char big[3000];
	memset(big, 'a', sizeof(big));
	big[sizeof(big) - 1] = 0;
	log_error("dev", "%s", big);
	assert_true(read_log(fd, text, sizeof(text)) <= 1024);
	assert_int_equal(count_lines(text), 1);
	log_set_fd(STDERR_FILENO);
	log_set_level(LOG_WARN);
	close(fd);
}

/* Two files that are written in turns, by @n lines of 100 bytes or a little more. */
static void write_lines(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		log_error("test",
			  "line %06u of a text that is about as long as those that people write", i);
}

static size_t size_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (size_t)st.st_size;
}

static void log_is_bounded(void **state)
{
	int fds[2] = { memfd_create("log", MFD_CLOEXEC), memfd_create("log.1", MFD_CLOEXEC) }, got[2];

	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(fcntl(fds[i], F_SETFL, O_APPEND), 0);
	log_set_files(fds, 4096);
	assert_true(log_files(got) && got[0] == fds[0] && got[1] == fds[1]);
	for (unsigned i = 0; i < 1000; i++) {
		write_lines(1);
		assert_true(size_of(fds[0]) < 4096 + LOG_LINE_MAX &&
			    size_of(fds[1]) < 4096 + LOG_LINE_MAX);
		/* Of what was written last, at least one file's size is there. */
		if (i > 100)
			assert_true(size_of(fds[0]) + size_of(fds[1]) > 4096);
	}
	/* A process that comes anew goes on where the last line is. */
	assert_int_equal(ftruncate(fds[0], 0), 0);
	assert_int_equal(ftruncate(fds[1], 0), 0);
	log_set_files(fds, 4096);
	write_lines(1);
	size_t one = size_of(fds[0]);

	assert_true(one > 0 && size_of(fds[1]) == 0);
	log_set_files(fds, 4096);
	write_lines(1);
	assert_int_equal(size_of(fds[0]), 2 * one);
	log_set_fd(STDERR_FILENO);
	close(fds[0]);
	close(fds[1]);
}

static int no_truncate(int fd, off_t len)
{
	return -1;
}

static void log_stops_at_its_bound(void **state)
{
	int fds[2] = { memfd_create("log", MFD_CLOEXEC), memfd_create("log.1", MFD_CLOEXEC) };

	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(fcntl(fds[i], F_SETFL, O_APPEND), 0);
	log_set_files(fds, 4096);
	host.ftruncate = no_truncate;
	write_lines(1000);
	host = host_calls_real;
	assert_true(size_of(fds[0]) < 4096 + LOG_LINE_MAX && size_of(fds[1]) < 4096 + LOG_LINE_MAX);
	log_set_fd(STDERR_FILENO);
	close(fds[0]);
	close(fds[1]);
}

static void log_lines_are_json(void **state)
{
	static const struct {
		const char *text, *want;
	} cases[] = {
		{ "plain", "plain" },
		{ "say \"hi\" \\", "say \\\"hi\\\" \\\\" },
		{ "esc \033[2J\n\x7f", "esc ?[2J??" },
		{ "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80" },
		{ "\xc2\x9b"
		  "1m \xff \xc0\xaf \xed\xa0\x80 \xe2\x82",
		  "??1m ? ?? ??? ??" },
	};
	int fds[2] = { memfd_create("log", MFD_CLOEXEC), memfd_create("log.1", MFD_CLOEXEC) };
	char text[8192], big[3000];

	log_set_files(fds, 1 << 20);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_int_equal(ftruncate(fds[0], 0), 0);
		lseek(fds[0], 0, SEEK_SET);
		log_error("area", "%s", cases[i].text);
		read_log(fds[0], text, sizeof(text));
		const char *got = strstr(text, "\"text\": \"");

		assert_non_null(got);
		assert_memory_equal(text, "{\"time\": \"20", 12);
		assert_non_null(
			strstr(text, "\"level\": \"error\", \"area\": \"area\", \"pid\": "));
		got += strlen("\"text\": \"");
		assert_int_equal(strncmp(got, cases[i].want, strlen(cases[i].want)), 0);
		assert_string_equal(got + strlen(cases[i].want), "\"}\n");
	}
	/* Cut off, never inside of what was escaped, and whole. */
	memset(big, '"', sizeof(big));
	big[sizeof(big) - 1] = 0;
	for (unsigned cut = 0; cut < 2; cut++) {
		assert_int_equal(ftruncate(fds[0], 0), 0);
		lseek(fds[0], 0, SEEK_SET);
		log_error("area", "%s%s", cut ? "x" : "", big);
		size_t len = read_log(fds[0], text, sizeof(text));

		assert_true(len <= LOG_LINE_MAX);
		assert_string_equal(text + len - 5, "\\\"\"}\n");
		assert_int_equal(text[len - 6], '"');
	}
	log_set_fd(STDERR_FILENO);
	close(fds[0]);
	close(fds[1]);
}

/* Whatever it is that a guest makes us say. */
static void log_has_a_rate(void **state)
{
	int fds[2] = { memfd_create("log", MFD_CLOEXEC), memfd_create("log.1", MFD_CLOEXEC) };

	log_set_files(fds, 1 << 20);
	for (unsigned i = 0; i < 100000; i++)
		log_warn("net", "x");
	/* Some seconds may have gone by: far fewer than there are lines. */
	assert_true(size_of(fds[0]) < 100000 * 20);
	log_set_fd(STDERR_FILENO);
	close(fds[0]);
	close(fds[1]);
}

static void log_levels_have_names(void **state)
{
	enum log_level l = LOG_INFO;

	for (unsigned i = 0; i < LOG_NLEVELS; i++) {
		assert_int_equal(log_level_parse(log_level_name((enum log_level)i), &l), 0);
		assert_int_equal(l, i);
	}
	assert_int_equal(log_level_parse("loud", &l), -EINVAL);
	assert_int_equal(l, LOG_TRACE);
}

static void host_table_is_replaceable(void **state)
{
	_cleanup_close_ int fd = host.open("/dev/zero", O_RDONLY | O_CLOEXEC, 0);

	assert_true(fd >= 0);
	host.malloc = NULL;
	host = host_calls_real;
	assert_ptr_equal(host.malloc, host_calls_real.malloc);
}

static ssize_t short_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	static unsigned calls;

	if (calls++ % 3 == 1) {
		errno = EINTR;
		return -1;
	}
	return pwrite(fd, buf, MIN(len, 3u), offset);
}

static ssize_t full_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	if (offset >= 8) {
		errno = ENOSPC;
		return -1;
	}
	return pwrite(fd, buf, MIN(len, 4u), offset);
}

static ssize_t no_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	return 0;
}

static void host_writes_all(void **state)
{
	_cleanup_close_ int fd = memfd_create("all", MFD_CLOEXEC);
	char back[16] = { 0 };

	host.pwrite = short_pwrite;
	assert_int_equal(host_pwrite_all(fd, "0123456789", 10, 5), 0);
	assert_int_equal(pread(fd, back, sizeof(back), 5), 10);
	assert_string_equal(back, "0123456789");
	host.pwrite = full_pwrite;
	assert_int_equal(host_pwrite_all(fd, "0123456789", 10, 0), -ENOSPC);
	host.pwrite = no_pwrite;
	assert_int_equal(host_pwrite_all(fd, "0123456789", 10, 0), -EIO);
	assert_int_equal(host_pwrite_all(fd, "", 0, 0), 0);
	host = host_calls_real;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(error_prefixes_and_truncates),
		cmocka_unit_test(bytes_round_trip),
		cmocka_unit_test(bytes_read_past_end_gives_zeros),
		cmocka_unit_test(bytes_failed_growth_sticks),
		cmocka_unit_test(bytes_all_zero),
		cmocka_unit_test(log_levels_and_rate),
		cmocka_unit_test(log_is_bounded),
		cmocka_unit_test(log_stops_at_its_bound),
		cmocka_unit_test(log_lines_are_json),
		cmocka_unit_test(log_has_a_rate),
		cmocka_unit_test(log_levels_have_names),
		cmocka_unit_test(host_table_is_replaceable),
		cmocka_unit_test(host_writes_all),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
