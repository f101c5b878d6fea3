/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's kernel speaks 9P to `viv share` by the machine's process; here that process does, with nothing between it and the server's
 * checks.  A session of its own for each try; a try whose server does not answer at all was none.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl/attack_int.h"
#include "share/p9.h"

#define MESSAGE_MAX P9_MSIZE_MIN
#define ROOT_FID    0
#define FILE_FID    1

struct session {
	int fd;
	uint16_t tag; /* one that no answer to an earlier process has */
	uint8_t data[MESSAGE_MAX];
	struct p9_out out;
};

static void begin_message(struct session *s, enum p9_type type)
{
	s->out = (struct p9_out){ .data = s->data, .cap = sizeof(s->data) };
	p9_put_u32(&s->out, 0);
	p9_put_u8(&s->out, (uint8_t)type);
	p9_put_u16(&s->out, s->tag);
}

static bool read_all(int fd, uint8_t *p, size_t len)
{
	for (ssize_t n; len; p += n, len -= (size_t)n) {
		n = read(fd, p, len);
		if (n <= 0)
			return false;
	}
	return true;
}

/* What the request in s->out is answered: 0, or -1 with errno. */
static long ask(struct session *s)
{
	uint8_t type = s->data[4], head[P9_HEADER];
	struct byte_reader in;
	uint32_t size;

	p9_poke_u32(&s->out, 0, (uint32_t)s->out.len);
	if (write(s->fd, s->data, s->out.len) != (ssize_t)s->out.len)
		_exit(ATTACK_EXIT_UNTRIED);
	do {
		if (!read_all(s->fd, head, sizeof(head)))
			_exit(ATTACK_EXIT_UNTRIED);
		in = (struct byte_reader){ .data = head, .len = sizeof(head) };
		size = bytes_get_u32(&in);
		if (size < P9_HEADER || size > MESSAGE_MAX || !read_all(s->fd, s->data, size - P9_HEADER))
			_exit(ATTACK_EXIT_UNTRIED);
		bytes_get_u8(&in);
	} while (bytes_get_u16(&in) != s->tag);
	if (head[4] == type + 1)
		return 0;
	in = (struct byte_reader){ .data = s->data, .len = size - P9_HEADER };
	errno = (int)bytes_get_u32(&in);
	return -1;
}

static void put_text(struct session *s, const char *text)
{
	p9_put_text(&s->out, text, strlen(text));
}

static void open_session(struct session *s, int fd)
{
	s->fd = fd;
	s->tag = (uint16_t)(getpid() % 100);
	begin_message(s, P9_TVERSION);
	p9_put_u32(&s->out, MESSAGE_MAX);
	put_text(s, P9_VERSION);
	if (ask(s) < 0)
		_exit(ATTACK_EXIT_UNTRIED);
	begin_message(s, P9_TATTACH);
	p9_put_u32(&s->out, ROOT_FID);
	p9_put_u32(&s->out, P9_NOFID);
	put_text(s, "root");
	put_text(s, "");
	p9_put_u32(&s->out, 0);
	if (ask(s) < 0)
		_exit(ATTACK_EXIT_UNTRIED);
}

/* FILE_FID is what is found by @n names from the folder on. */
static long walk(struct session *s, const char *const names[], unsigned n)
{
	begin_message(s, P9_TWALK);
	p9_put_u32(&s->out, ROOT_FID);
	p9_put_u32(&s->out, FILE_FID);
	p9_put_u16(&s->out, (uint16_t)n);
	for (unsigned i = 0; i < n; i++)
		put_text(s, names[i]);
	return ask(s);
}

static long open_file(struct session *s, int flags)
{
	begin_message(s, P9_TLOPEN);
	p9_put_u32(&s->out, FILE_FID);
	p9_put_u32(&s->out, (uint32_t)flags);
	return ask(s);
}

static long make_link(struct session *s, const char *name, const char *target)
{
	begin_message(s, P9_TSYMLINK);
	p9_put_u32(&s->out, ROOT_FID);
	put_text(s, name);
	put_text(s, target);
	p9_put_u32(&s->out, 0);
	return ask(s);
}

static long make_file(struct session *s, const char *name, uint32_t mode)
{
	if (walk(s, NULL, 0) < 0)
		return -1;
	begin_message(s, P9_TLCREATE);
	p9_put_u32(&s->out, FILE_FID);
	put_text(s, name);
	p9_put_u32(&s->out, O_RDWR);
	p9_put_u32(&s->out, mode);
	p9_put_u32(&s->out, 0);
	return ask(s);
}

long attack_share_climb(const struct attack_target *t)
{
	static const char *const names[] = { "..", ATTACK_SECRET };
	struct session s;

	open_session(&s, t->share_fd);
	return walk(&s, names, 2) < 0 ? -1 : open_file(&s, O_RDONLY);
}

long attack_share_slash(const struct attack_target *t)
{
	static const char *const names[] = { "../" ATTACK_SECRET };
	struct session s;

	open_session(&s, t->share_fd);
	return walk(&s, names, 1) < 0 ? -1 : open_file(&s, O_RDONLY);
}

static long follow(struct session *s, const char *name)
{
	return walk(s, &name, 1) < 0 ? -1 : open_file(s, O_RDONLY);
}

long attack_share_follow_link(const struct attack_target *t)
{
	struct session s;

	open_session(&s, t->share_fd);
	return follow(&s, ATTACK_LINK);
}

long attack_share_follow_own_link(const struct attack_target *t)
{
	struct session s;

	open_session(&s, t->share_fd);
	if (make_link(&s, "own", "/etc/passwd") < 0 && errno != EEXIST)
		_exit(ATTACK_EXIT_UNTRIED); /* it may: who follows it decides */
	return follow(&s, "own");
}

long attack_share_move_out(const struct attack_target *t)
{
	struct session s;

	open_session(&s, t->share_fd);
	begin_message(&s, P9_TRENAMEAT);
	p9_put_u32(&s.out, ROOT_FID);
	put_text(&s, ATTACK_LINK);
	p9_put_u32(&s.out, ROOT_FID);
	put_text(&s, "../planted");
	return ask(&s);
}

/* The host's memory. */
long attack_share_device(const struct attack_target *t)
{
	struct session s;

	open_session(&s, t->share_fd);
	begin_message(&s, P9_TMKNOD);
	p9_put_u32(&s.out, ROOT_FID);
	put_text(&s, "mem");
	p9_put_u32(&s.out, S_IFCHR | 0600);
	p9_put_u32(&s.out, 1);
	p9_put_u32(&s.out, 1);
	p9_put_u32(&s.out, 0);
	return ask(&s);
}

long attack_share_setuid(const struct attack_target *t)
{
	enum { MODE = 1 }; /* valid: of Tsetattr */
	struct session s;

	open_session(&s, t->share_fd);
	if (follow(&s, ATTACK_KEPT) < 0)
		_exit(ATTACK_EXIT_UNTRIED);
	begin_message(&s, P9_TSETATTR);
	p9_put_u32(&s.out, FILE_FID);
	p9_put_u32(&s.out, MODE);
	p9_put_u32(&s.out, 04755);
	p9_put_u32(&s.out, 0); /* uid, gid */
	p9_put_u32(&s.out, 0);
	for (unsigned i = 0; i < 5; i++) /* size, times */
		p9_put_u64(&s.out, 0);
	return ask(&s);
}

long attack_share_make_in_readonly(const struct attack_target *t)
{
	struct session s;

	open_session(&s, t->readonly_share_fd);
	return make_file(&s, "planted", 0600);
}

long attack_share_write_readonly(const struct attack_target *t)
{
	static const char *const names[] = { ATTACK_KEPT };
	struct session s;

	open_session(&s, t->readonly_share_fd);
	if (walk(&s, names, 1) < 0)
		_exit(ATTACK_EXIT_UNTRIED);
	return open_file(&s, O_RDWR);
}
