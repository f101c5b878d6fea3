/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv cp`: files to and from machines, through the agent of their guests.
 *
 * A file goes in pieces of CTL_FILE_CHUNK, under another name until it is whole, and then gets its mode and its name. A directory
 * goes as an archive that tar makes and unpacks on either side. What a guest gives is hostile: archives with devices are refused,
 * and the host's tar puts nothing outside of the directory that it is to fill (GNU tar's own rules about .., / and links).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/bytes.h"
#include "cli/cli.h"
#include "ctl/base64.h"
#include "ctl/client.h"
#include "ctl/ctl.h"
#include "ctl/paths.h"

struct args {
	bool recursive;
};
static const struct opt cp_opts[] = {
	OPT_FLAG_L(struct args, recursive, "recursive", 'r', "directories, with all that is in them"),
	OPT_END,
};
const struct opts_cmd cli_cp_cmd = {
	.name = "viv cp",
	.usage = "FROM TO",
	.summary = "copy files to and from machines",
	.details = "FROM and TO are files of this host, or MACHINE:/PATH. The guest must run "
		   "qemu-guest-agent. A file keeps its\n"
		   "permissions, and appears when it is whole; a TO that is a directory gets the "
		   "file under its own name.",
	.opts = cp_opts,
	.min_args = 2,
	.max_args = 2,
};

/* One side of a copy. */
struct side {
	char *machine;	   /* NULL: the host */
	char *path;	   /* in the end: of the file itself */
	char *part;	   /* the name that is written until the file is whole */
	int conn;	   /* to the machine */
	int fd;		   /* of the host's file */
	json_int_t handle; /* of the guest's; -1: none */
};

static void side_close(struct side *s)
{
	json_t *reply = NULL;

	if (s->conn >= 0 && s->handle >= 0 &&
	    client_call(s->conn, json_pack("{s:s, s:I}", "cmd", "file-close", "handle", s->handle),
			CLIENT_TIMEOUT_MS, &reply, NULL) == 0)
		json_decref(reply);
	s->handle = -1;
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

static void side_free(struct side *s)
{
	side_close(s);
	if (s->conn >= 0)
		close(s->conn);
	free(s->machine);
	free(s->path);
	free(s->part);
}

/* "MACHINE:PATH" if there is no slash before the colon, as with scp. */
static int side_init(struct side *s, const char *text, struct error *err)
{
	const char *colon = strchr(text, ':'), *slash = strchr(text, '/');

	*s = (struct side){ .conn = -1, .fd = -1, .handle = -1 };
	if (colon && (!slash || colon < slash)) {
		s->machine = strndup(text, (size_t)(colon - text));
		s->path = strdup(colon[1] ? colon + 1 : ".");
	} else {
		s->path = strdup(text);
	}
	if (!s->path || (colon && !s->machine && (!slash || colon < slash)))
		return error_set(err, -ENOMEM, "no memory for a path");
	if (s->machine && s->path[0] != '/')
		return error_set(err, -EINVAL, "\"%s\": a path in a machine begins with /", text);
	if (s->machine)
		s->conn = client_connect(s->machine, err);
	return s->machine && s->conn < 0 ? s->conn : 0;
}

/* ---- questions to a guest ---- */

static int guest_sh(struct side *s, const char *script, const char *a, const char *b, const char *c,
		    int *status, char **out, struct error *err)
{
	const char *argv[] = { "sh", "-c", script, "viv", a, b ? b : "", c ? c : "", NULL };

	return cli_guest_run(s->conn, (char **)(uintptr_t)argv, status, out, err);
}

/* *@mode: of a file or directory; -ENOENT without @err where there is nothing. */
static int side_stat(struct side *s, mode_t *mode, struct error *err)
{
	struct stat st;
	int status = 0;

	if (!s->machine) {
		if (stat(s->path, &st) < 0)
			return errno == ENOENT ? -ENOENT
					       : error_set(err, -errno, "cannot read %s: %s",
							   s->path, strerror(errno));
		*mode = st.st_mode;
		return 0;
	}
	_cleanup_free_ char *out = NULL;
	unsigned value;
	int r = guest_sh(s, "stat -L -c %f -- \"$1\"", s->path, NULL, NULL, &status, &out, err);

	if (r < 0)
		return r;
	if (status != 0)
		return -ENOENT;
	if (sscanf(out, "%x", &value) != 1)
		return error_set(err, -EPROTO, "the guest's stat makes no sense");
	*mode = value;
	return 0;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static void strip_slashes(char *path)
{
	for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
		path[n - 1] = 0;
}

/* A target that is a directory means the file in it. */
static int into_directory(struct side *to, const char *from_path, struct error *err)
{
	mode_t mode = 0;
	int r = side_stat(to, &mode, err);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (!S_ISDIR(mode))
		return 0;
	char *path = paths_format(err, "%s/%s", to->path, base_name(from_path));

	if (!path)
		return -ENOMEM;
	free(to->path);
	to->path = path;
	return 0;
}

/* ---- one file ---- */

static int open_for_read(struct side *s, struct error *err)
{
	if (!s->machine) {
		s->fd = open(s->path, O_RDONLY | O_CLOEXEC);
		return s->fd < 0 ? error_set(err, -errno, "cannot read %s: %s", s->path, strerror(errno))
				 : 0;
	}
	json_t *reply = NULL;
	int r = client_call(s->conn, json_pack("{s:s, s:s}", "cmd", "file-open", "path", s->path),
			    -1, &reply, err);

	if (r == 0)
		s->handle = json_integer_value(json_object_get(reply, "handle"));
	json_decref(reply);
	return r;
}

static int open_for_write(struct side *s, struct error *err)
{
	uint64_t random;
	json_t *reply = NULL;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	s->part = paths_format(err, "%s.viv-%016llx", s->path, (unsigned long long)random);
	if (!s->part)
		return -ENOMEM;
	if (!s->machine) {
		s->fd = open(s->part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
		return s->fd < 0 ? error_set(err, -errno, "cannot write %s: %s", s->path, strerror(errno))
				 : 0;
	}
	int r = client_call(
		s->conn, json_pack("{s:s, s:s, s:b}", "cmd", "file-open", "path", s->part, "write", 1),
		-1, &reply, err);

	if (r == 0)
		s->handle = json_integer_value(json_object_get(reply, "handle"));
	json_decref(reply);
	return r;
}

/* The next piece into @buf, of CTL_FILE_CHUNK bytes; its length, 0 at the end, -errno. */
static ssize_t read_piece(struct side *s, struct bytes *buf, struct error *err)
{
	json_t *reply = NULL;
	ssize_t n;

	if (!s->machine) {
		static uint8_t piece[CTL_FILE_CHUNK];

		do
			n = read(s->fd, piece, sizeof(piece));
		while (n < 0 && errno == EINTR);
		if (n < 0)
			return error_set(err, -errno, "cannot read %s: %s", s->path, strerror(errno));
		bytes_put(buf, piece, (size_t)n);
		return buf->is_failed ? error_set(err, -ENOMEM, "no memory for a file") : n;
	}
	for (;;) {
		int r = client_call(s->conn,
				    json_pack("{s:s, s:I, s:I}", "cmd", "file-read", "handle",
					      s->handle, "count", (json_int_t)CTL_FILE_CHUNK),
				    -1, &reply, err);

		if (r < 0)
			return r;
		json_t *data = json_object_get(reply, "data");
		bool is_eof = json_is_true(json_object_get(reply, "eof"));

		r = json_is_string(data)
			    ? base64_decode(buf, json_string_value(data), json_string_length(data))
			    : -EPROTO;
		json_decref(reply);
		if (r < 0 || buf->is_failed || buf->len > CTL_FILE_CHUNK)
			return error_set(err, -EPROTO, "the guest agent's answer makes no sense");
		if (buf->len || is_eof)
			return (ssize_t)buf->len;
	}
}

static int write_guest(struct side *s, const uint8_t *data, size_t len, struct error *err)
{
	while (len) {
		_cleanup_bytes_ struct bytes text = { 0 };
		json_t *reply = NULL;

		base64_encode(&text, data, len);
		bytes_put_u8(&text, 0);
		if (text.is_failed)
			return error_set(err, -ENOMEM, "no memory for a file");
		int r = client_call(s->conn,
				    json_pack("{s:s, s:I, s:s}", "cmd", "file-write", "handle",
					      s->handle, "data", (char *)text.data),
				    -1, &reply, err);
		json_int_t n = r == 0 ? json_integer_value(json_object_get(reply, "count")) : 0;

		json_decref(reply);
		if (r < 0)
			return r;
		if (n <= 0 || (size_t)n > len)
			return error_set(err, -EPROTO, "the guest wrote %lld of %zu bytes",
					 (long long)n, len);
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int write_host(struct side *s, const uint8_t *data, size_t len, struct error *err)
{
	while (len) {
		ssize_t n = write(s->fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, -errno, "cannot write %s: %s", s->path, strerror(errno));
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

/* It is whole: its mode, without what gives rights, and its name. */
static int finish(struct side *s, mode_t mode, struct error *err)
{
	int status = 0, r = 0;
	char octal[8];

	mode &= 0777;
	if (!s->machine) {
		if (fchmod(s->fd, mode) < 0 || rename(s->part, s->path) < 0)
			r = error_set(err, -errno, "cannot write %s: %s", s->path, strerror(errno));
		return r;
	}
	side_close(s);
	snprintf(octal, sizeof(octal), "%o", (unsigned)mode);
	r = guest_sh(s, "chmod \"$1\" -- \"$2\" && mv -f -- \"$2\" \"$3\"", octal, s->part, s->path,
		     &status, NULL, err);
	return r == 0 && status ? error_set(err, -EIO, "the guest cannot name the file %s", s->path) : r;
}

static void give_up(struct side *s)
{
	int status;

	if (!s->part)
		return;
	side_close(s);
	if (!s->machine)
		unlink(s->part);
	else
		guest_sh(s, "rm -f -- \"$1\"", s->part, NULL, NULL, &status, NULL, NULL);
}

static int copy_file(struct side *from, struct side *to, mode_t mode, struct error *err)
{
	struct progress p;
	ssize_t n = 0;
	int r = open_for_read(from, err);

	if (r == 0)
		r = open_for_write(to, err);
	if (r < 0)
		return r;
	p = (struct progress){ 0 };
	if (isatty(STDERR_FILENO))
		progress_start(&p, "copying");
	do {
		_cleanup_bytes_ struct bytes piece = { 0 };

		n = read_piece(from, &piece, err);
		if (n > 0)
			r = to->machine ? write_guest(to, piece.data, piece.len, err)
					: write_host(to, piece.data, piece.len, err);
		progress_tick(&p, -1);
	} while (n > 0 && r == 0);
	progress_end(&p);
	r = n < 0 ? (int)n : r;
	if (r == 0)
		r = finish(to, mode, err);
	if (r < 0)
		give_up(to);
	return r;
}

/* ---- directories ---- */

/* The host's tar; @listing: receives what it prints, or NULL.  0, or -EIO with @err. */
static int host_tar(const char *const argv[], FILE **listing, struct error *err)
{
	FILE *out = listing ? tmpfile() : NULL;
	int status = -1;

	if (listing && !out)
		return error_set(err, -errno, "cannot make a temporary file: %s", strerror(errno));
	fflush(NULL);
	pid_t pid = fork();

	if (pid == 0) {
		if (out)
			dup2(fileno(out), STDOUT_FILENO);
		execvp("tar", (char **)(uintptr_t)argv);
		_exit(127);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	if (pid < 0 || status != 0) {
		if (out)
			fclose(out);
		return error_set(err, -EIO, "%s",
				 status == 127 << 8 ? "this host has no tar" : "tar failed on this host");
	}
	if (listing) {
		rewind(out);
		*listing = out;
	}
	return 0;
}

/* A guest's archive has nothing in it but files, directories and links. */
static int check_archive(const char *archive, struct error *err)
{
	const char *const argv[] = { "tar", "--force-local", "-tvf", archive, NULL };
	FILE *listing;
	char line[512];
	bool is_start = true;
	int r = host_tar(argv, &listing, err);

	while (r == 0 && fgets(line, sizeof(line), listing)) {
		if (is_start && !strchr("-dlh", line[0]))
			r = error_set(err, -EPERM, "there are devices or the like in that directory; they are not copied");
		is_start = strchr(line, '\n') != NULL;
	}
	if (r != -EIO)
		fclose(listing);
	return r;
}

static int host_unpack(const char *archive, const char *dir, struct error *err)
{
	const char *const argv[] = {
		"tar", "--force-local", "-xpf", archive, "--no-same-owner", "-C", dir, NULL
	};
	int r = check_archive(archive, err);

	if (r == 0 && mkdir(dir, 0777) < 0 && errno != EEXIST)
		r = error_set(err, -errno, "cannot make the directory %s: %s", dir, strerror(errno));
	return r < 0 ? r : host_tar(argv, NULL, err);
}

static int guest_tar(struct side *s, const char *script, const char *archive, struct error *err)
{
	int status = 0, r = guest_sh(s, script, archive, s->path, NULL, &status, NULL, err);

	return r == 0 && status ? error_set(err, -EIO, "tar in the guest failed on %s (status %d)",
					    s->path, status)
				: r;
}

/* A file beside what is copied; the same name on both sides. */
static int archive_side(struct side *s, const struct side *of, const char *name, struct error *err)
{
	const char *tmp = getenv("TMPDIR");

	*s = (struct side){ .conn = -1, .fd = -1, .handle = -1 };
	s->path = of->machine ? paths_format(err, "/var/tmp/%s", name)
			      : paths_format(err, "%s/%s", tmp && tmp[0] == '/' ? tmp : "/tmp", name);
	if (of->machine)
		s->machine = strdup(of->machine);
	if (!s->path || (of->machine && !s->machine))
		return error_set(err, -ENOMEM, "no memory for a path");
	s->conn = of->machine ? client_connect(of->machine, err) : -1;
	return of->machine && s->conn < 0 ? s->conn : 0;
}

static void archive_remove(struct side *s)
{
	int status;

	if (!s->path)
		return;
	side_close(s);
	if (!s->machine)
		unlink(s->path);
	else if (s->conn >= 0)
		guest_sh(s, "rm -f -- \"$1\"", s->path, NULL, NULL, &status, NULL, NULL);
}

static int copy_directory(struct side *from, struct side *to, struct error *err)
{
	struct side packed = { .conn = -1, .fd = -1, .handle = -1 }, there = packed;
	uint64_t random;
	char name[48];

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	snprintf(name, sizeof(name), "viv-cp-%016llx.tar", (unsigned long long)random);
	int r = archive_side(&packed, from, name, err);

	if (r == 0)
		r = archive_side(&there, to, name, err);
	if (r == 0 && from->machine) {
		r = guest_tar(from, "umask 077; tar -cf \"$1\" -C \"$2\" .", packed.path, err);
	} else if (r == 0) {
		const char *const argv[] = { "tar", "--force-local", "-cf", packed.path,
					     "-C",  from->path,	     ".",   NULL };
		int fd = open(packed.path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

		r = fd < 0 ? error_set(err, -errno, "cannot write %s: %s", packed.path, strerror(errno))
			   : host_tar(argv, NULL, err);
		if (fd >= 0)
			close(fd);
	}
	if (r == 0 && (from->machine || to->machine))
		r = copy_file(&packed, &there, 0600, err);
	if (r == 0)
		r = to->machine ? guest_tar(to, "mkdir -p -- \"$2\" && tar -xpf \"$1\" -C \"$2\"",
					    there.path, err)
				: host_unpack(there.path, to->path, err);
	archive_remove(&packed);
	archive_remove(&there);
	side_free(&packed);
	side_free(&there);
	return r;
}

static int copy(struct side *from, struct side *to, const struct args *a, struct error *err)
{
	mode_t mode = 0;
	int r;

	if (!from->machine && !to->machine)
		return error_set(err, -EINVAL, "neither is in a machine; MACHINE:/PATH is");
	strip_slashes(from->path);
	r = side_stat(from, &mode, err);
	if (r == -ENOENT && !err->text[0])
		error_set(err, r, "there is no %s%s%s", from->machine ? from->machine : "",
			  from->machine ? ":" : "", from->path);
	if (r == 0 && S_ISDIR(mode) && !a->recursive)
		r = error_set(err, -EISDIR, "%s is a directory; --recursive copies those", from->path);
	if (r == 0 && !S_ISDIR(mode) && !S_ISREG(mode))
		r = error_set(err, -EINVAL, "%s is neither a file nor a directory", from->path);
	if (r == 0)
		r = into_directory(to, from->path, err);
	if (r < 0)
		return r;
	return S_ISDIR(mode) ? copy_directory(from, to, err) : copy_file(from, to, mode, err);
}

int cli_cp(int argc, char **argv)
{
	struct args a = { false };
	struct side from, to = { .conn = -1, .fd = -1, .handle = -1 };
	struct opts_rest rest;
	struct error err = { "" };
	int status;

	if (!cli_parse(&cli_cp_cmd, argc, argv, &a, &rest, &status))
		return status;
	int r = side_init(&from, rest.args[0], &err);

	if (r == 0)
		r = side_init(&to, rest.args[1], &err);
	if (r == 0)
		r = copy(&from, &to, &a, &err);
	side_free(&from);
	side_free(&to);
	status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_cp_cmd, &a, &rest);
	return status;
}
