/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server of a shared folder: any messages, in any order, and any saved state.  Whatever they are, each message gets one answer that is one, bounds hold,
 * what the server saves it takes again, and what is beside the folder stays as it is.
 *
 * Input: u8 0 and a saved state; else messages, each u16 length and as many bytes of body behind a header that is made here: its first byte is the type.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "fuzz.h"
#include "share/server.h"

#define MESSAGES_MAX 200

static char dir[64], share[80];
static struct share_server *server;
static uint8_t request[P9_MSIZE_MAX], reply[P9_MSIZE_MAX];

static void must(bool is_fine)
{
	if (!is_fine)
		abort();
}

static const char *beside(const char *name)
{
	static char text[128];

	snprintf(text, sizeof(text), "%s/%s", dir, name);
	return text;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	if (ftw->level)
		(void)remove(path);
	return 0;
}

static int make_writable(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)ftw;
	if (flag == FTW_D || flag == FTW_DNR)
		(void)chmod(path, 0755);
	(void)st;
	return 0;
}

static void clear_folder(void)
{
	(void)chmod(share, 0755);
	nftw(share, make_writable, 16, FTW_PHYS);
	nftw(share, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void at_exit(void)
{
	share_server_destroy(server);
	clear_folder();
	unlink(beside("secret"));
	rmdir(share);
	rmdir(dir);
}

static void set_up(void)
{
	struct error err;

	snprintf(dir, sizeof(dir), "/tmp/viv-fuzz-share-XXXXXX");
	must(mkdtemp(dir) != NULL);
	snprintf(share, sizeof(share), "%s/share", dir);
	must(mkdir(share, 0755) == 0);
	int fd = open(beside("secret"), O_WRONLY | O_CREAT, 0400);

	must(fd >= 0 && write(fd, "secret", 6) == 6);
	close(fd);
	must(share_server_create(&server, open(share, O_PATH | O_DIRECTORY), false, &err) == 0);
	atexit(at_exit);
}

/* Beside the folder are itself and the secret, as ever. */
static void check_beside(void)
{
	struct stat st, above;

	must(stat(beside("secret"), &st) == 0 && st.st_size == 6 && st.st_nlink == 1 &&
	     (st.st_mode & 07777) == 0400);
	must(stat(dir, &above) == 0 && above.st_nlink == 3);
}

static void say(const uint8_t *body, size_t len)
{
	uint32_t size = (uint32_t)(P9_HEADER + len - 1), got;

	if (!len)
		return;
	memcpy(request, &size, 4);
	request[4] = body[0];
	memset(request + 5, 0x11, 2);
	memcpy(request + P9_HEADER, body + 1, len - 1);
	size_t n = share_server_handle(server, request, size, reply);

	must(n >= P9_HEADER && n <= P9_MSIZE_MAX);
	memcpy(&got, reply, 4);
	must(got == n && reply[5] == 0x11 && reply[6] == 0x11);
	must(reply[4] == P9_RLERROR ? n == P9_ERROR_LEN : reply[4] == (uint8_t)(body[0] + 1));
	must(share_server_fids(server) <= SHARE_FIDS_MAX && share_server_nodes(server) <= SHARE_NODES_MAX);
}

static void save_and_load(void)
{
	struct bytes state = { 0 }, text = { 0 };
	struct error err;
	unsigned stale;

	must(share_server_save(server, &state) == 0 && state.len <= SHARE_STATE_MAX);
	must(share_state_check(state.data, state.len, &err) == 0);
	must(share_state_show(state.data, state.len, &text, &err) == 0);
	must(share_server_load(server, state.data, state.len, &stale, &err) == 0);
	bytes_free(&state);
	bytes_free(&text);
}

static void any_state(const uint8_t *data, size_t len)
{
	struct bytes text = { 0 };
	struct error err;
	unsigned stale;
	bool is_fine = share_state_check(data, len, &err) == 0;

	must((share_state_show(data, len, &text, &err) == 0) == is_fine);
	must((share_server_load(server, data, len, &stale, &err) == 0) == is_fine);
	bytes_free(&text);
}

static void put(struct bytes *b, uint8_t type, const void *body, size_t len)
{
	bytes_put_u16(b, (uint16_t)(len + 1));
	bytes_put_u8(b, type);
	bytes_put(b, body, len);
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	struct bytes b = { 0 };

	/* A session: version, attach, clone, create, write, read, and some names. */
	bytes_put_u8(&b, 1);
	put(&b, P9_TVERSION,
	    "\0\0\1\0\10\0"
	    "9P2000.L",
	    14);
	put(&b, P9_TATTACH, "\1\0\0\0\377\377\377\377\0\0\0\0\0\0\0\0", 16);
	put(&b, P9_TWALK, "\1\0\0\0\2\0\0\0\0\0", 10);
	put(&b, P9_TLCREATE, "\2\0\0\0\4\0file\2\0\0\0\244\1\0\0\0\0\0\0", 22);
	put(&b, P9_TWRITE, "\2\0\0\0\0\0\0\0\0\0\0\0\4\0\0\0text", 20);
	put(&b, P9_TREAD, "\2\0\0\0\0\0\0\0\0\0\0\0\377\0\0\0", 16);
	put(&b, P9_TMKDIR, "\1\0\0\0\1\0d\355\1\0\0\0\0\0\0", 15);
	put(&b, P9_TWALK, "\1\0\0\0\3\0\0\0\1\0\1\0d", 13);
	put(&b, P9_TSYMLINK, "\3\0\0\0\1\0l\12\0../../../x\0\0\0\0", 23);
	put(&b, P9_TWALK, "\3\0\0\0\4\0\0\0\1\0\1\0l", 13);
	put(&b, P9_TREADLINK, "\4\0\0\0", 4);
	put(&b, P9_TRENAMEAT, "\1\0\0\0\4\0file\3\0\0\0\1\0x", 17);
	put(&b, P9_TGETATTR, "\2\0\0\0\377\7\0\0\0\0\0\0", 12);
	put(&b, P9_TSETATTR, "\2\0\0\0\1\0\0\0\200\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
	    56);
	put(&b, P9_TWALK, "\1\0\0\0\5\0\0\0\0\0", 10);
	put(&b, P9_TLOPEN, "\5\0\0\0\0\0\1\0", 8);
	put(&b, P9_TREADDIR, "\5\0\0\0\0\0\0\0\0\0\0\0\0\4\0\0", 16);
	put(&b, P9_TLINK, "\1\0\0\0\2\0\0\0\1\0h", 11);
	put(&b, P9_TUNLINKAT, "\1\0\0\0\1\0h\0\0\0\0", 11);
	put(&b, P9_TSTATFS, "\1\0\0\0", 4);
	put(&b, P9_TCLUNK, "\2\0\0\0", 4);
	must(!b.is_failed && b.len <= cap);
	memcpy(data, b.data, b.len);
	size_t len = b.len;

	bytes_free(&b);
	return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct byte_reader in = { .data = data, .len = len };

	if (!server)
		set_up();
	share_server_reset(server);
	clear_folder();
	if (bytes_get_u8(&in) == 0) {
		any_state(data + in.pos, len - in.pos);
		save_and_load();
		return 0;
	}
	for (unsigned i = 0; i < MESSAGES_MAX && in.pos < in.len; i++) {
		size_t n = bytes_get_u16(&in);

		n = MIN(n, in.len - in.pos);
		say(in.data + in.pos, n);
		in.pos += n;
	}
	save_and_load();
	check_beside();
	return 0;
}
