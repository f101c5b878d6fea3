/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/share.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/opts.h"

struct spec {
	char first[8200];
	const char *tag; /* in @first or @path */
	char *path;	 /* allocated */
	bool is_readonly;
};

static int find_folder(struct spec *s, struct error *err)
{
	/* What follows the last colon is the tag, if it is in the last component: names of folders seldom have one. */
	char *colon = strrchr(s->first, ':');
	struct stat st;

	if (colon && !strchr(colon, '/')) {
		*colon = 0;
		s->tag = colon + 1;
	}
	s->path = realpath(s->first, NULL);
	if (!s->path || stat(s->path, &st) < 0)
		return error_set(err, -errno, "cannot open %s: %s", s->first, strerror(errno));
	if (!S_ISDIR(st.st_mode))
		return error_set(err, -ENOTDIR, "%s is no folder", s->first);
	if (!s->tag)
		s->tag = strrchr(s->path, '/') + 1;
	return 0;
}

static int parse(struct spec *s, const char *text, struct error *err)
{
	char key[4096];
	const char *cursor = text, *value;
	bool is_first = true;
	int r;

	while ((r = opts_subvalue(&cursor, key, sizeof(key), &value)) > 0) {
		if (is_first)
			snprintf(s->first, sizeof(s->first), "%s%s%s", key, value ? "=" : "",
				 value ? value : "");
		else if (!value && strcmp(key, "ro") == 0)
			s->is_readonly = true;
		else
			return error_set(err, -EINVAL, "\"%s\" is not ro", key);
		is_first = false;
	}
	if (r < 0 || !s->first[0])
		return error_set(err, -EINVAL, "it names no folder");
	return find_folder(s, err);
}

/* The text stays for messages. */
static int done(struct spec *s, const char *text, int r, struct error *err)
{
	free(s->path);
	if (r < 0)
		error_prefix(err, "--share %s", text);
	return r;
}

int share_add(struct vmconfig *c, const char *text, struct error *err)
{
	struct spec s = { .path = NULL };
	int r = parse(&s, text, err);

	if (r == 0)
		r = vmconfig_add_share(c, s.path, s.tag, s.is_readonly, err);
	return done(&s, text, r, err);
}

int share_give(struct vmconfig *c, const char *text, struct error *err)
{
	struct spec s = { .path = NULL };
	int r = parse(&s, text, err);
	unsigned i = 0;

	while (r == 0 && i < c->nshares && strcmp(c->shares[i].tag, s.tag) != 0)
		i++;
	if (r == 0 && i == c->nshares)
		r = error_set(err, -ENOENT,
			      "the snapshot is of a machine without a shared folder \"%s\"", s.tag);
	if (r == 0)
		r = vmconfig_set(&c->shares[i].path, s.path, err);
	if (r == 0)
		c->shares[i].is_readonly = s.is_readonly;
	return done(&s, text, r, err);
}

int share_check(const struct vmconfig *c, struct error *err)
{
	for (unsigned i = 0; i < c->nshares; i++)
		if (!c->shares[i].path)
			return error_set(err, -EINVAL, "the snapshot is of a machine with a shared folder \"%s\"; --share FOLDER:%s says which one it is here",
					 c->shares[i].tag, c->shares[i].tag);
	return 0;
}
