/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/log.h"
#include "base/opts.h"
#include "ctl/paths.h"

#define PERIOD_US   100000
#define TEXT_MAX    (256 * KIB) /* of files in /proc */
#define OWN_PREFIX  "viv-"
#define CPU_MAX_PCT 102400 /* 1024 processors */

static const struct {
	unsigned bit;
	const char *name, *option;
} controllers[] = {
	{ CGROUP_CPU, "cpu", "--cpu-limit" },
	{ CGROUP_MEMORY, "memory", "--mem-limit" },
	{ CGROUP_IO, "io", "--io-limit" },
};

/* ---- what is said ---- */

int cgroup_parse_cpu(const char *text, uint64_t *percent)
{
	size_t n = strspn(text, "0123456789.");
	char *end;
	double v = strtod(text, &end);
	bool is_percent = text[n] == '%' && !text[n + 1];

	if (!n || n > 8 || end != text + n || (text[n] && !is_percent))
		return -EINVAL;
	v = is_percent ? v : v * 100;
	if (v < 1 || v > CPU_MAX_PCT)
		return -EINVAL;
	*percent = (uint64_t)(v + 0.5);
	return 0;
}

static int io_part(const char *key, const char *value, struct cgroup_limits *l)
{
	uint64_t v;

	if (!value) {
		if (opts_parse_size(key, &v) < 0 || !v)
			return -EINVAL;
		l->read_bps = l->write_bps = v;
		return 0;
	}
	bool is_iops = strcmp(key, "read-iops") == 0 || strcmp(key, "write-iops") == 0;
	int r = is_iops ? opts_parse_uint(value, &v) : opts_parse_size(value, &v);

	if (r < 0 || !v)
		return -EINVAL;
	if (strcmp(key, "read") == 0)
		l->read_bps = v;
	else if (strcmp(key, "write") == 0)
		l->write_bps = v;
	else if (strcmp(key, "read-iops") == 0)
		l->read_iops = v;
	else if (strcmp(key, "write-iops") == 0)
		l->write_iops = v;
	else
		return -EINVAL;
	return 0;
}

int cgroup_parse_io(const char *text, struct cgroup_limits *l, struct error *err)
{
	const char *cursor = text, *value;
	char key[64];
	int more, r = 0;

	while (r == 0 && (more = opts_subvalue(&cursor, key, sizeof(key), &value)) != 0)
		r = more < 0 ? more : io_part(key, value, l);
	return r < 0 ? error_set(err, -EINVAL, "--io-limit takes 50M a second, or read=50M,write=20M,read-iops=500,write-iops=500, or some of them")
		     : 0;
}

unsigned cgroup_wanted(const struct cgroup_limits *l)
{
	return (l->cpu_percent ? CGROUP_CPU : 0) | (l->mem_bytes ? CGROUP_MEMORY : 0) |
	       (l->read_bps || l->write_bps || l->read_iops || l->write_iops ? CGROUP_IO : 0);
}

/* ---- small files of the kernel ---- */

static char *read_text(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *text = fd >= 0 ? malloc(TEXT_MAX + 1) : NULL;
	size_t len = 0;
	ssize_t n;

	while (text && len < TEXT_MAX && (n = read(fd, text + len, TEXT_MAX - len)) != 0) {
		if (n < 0 && errno != EINTR)
			break;
		len += n > 0 ? (size_t)n : 0;
	}
	if (text)
		text[len] = 0;
	return text;
}

/* The kernel takes what is written at once, or says why not. */
static int write_text(const char *dir, const char *file, const char *text)
{
	char path[4096];

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, file) >= sizeof(path))
		return -ENAMETOOLONG;
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	size_t len = strlen(text);

	if (fd < 0)
		return -errno;
	ssize_t n = write(fd, text, len);

	return n < 0 ? -errno : (size_t)n == len ? 0 : -EIO;
}

/* Which of ours stand in the list @dir/@file. */
static unsigned read_controllers(const char *dir, const char *file)
{
	_cleanup_free_ char *path = paths_format(NULL, "%s/%s", dir, file);
	_cleanup_free_ char *text = path ? read_text(path) : NULL;
	char *save = NULL;
	unsigned found = 0;

	for (char *w = text ? strtok_r(text, " \n", &save) : NULL; w; w = strtok_r(NULL, " \n", &save))
		for (size_t i = 0; i < ARRAY_SIZE(controllers); i++)
			if (strcmp(w, controllers[i].name) == 0)
				found |= controllers[i].bit;
	return found;
}

/* ---- where ---- */

/* "36 35 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw": the mount point, and which group of the hierarchy is there. */
static bool parse_mount(char *line, char **root, char **point)
{
	char *dash = strstr(line, " - "), *save = NULL, *word = line;

	if (!dash || strncmp(dash + 3, "cgroup2 ", 8) != 0)
		return false;
	*dash = 0;
	word = strtok_r(line, " ", &save);
	for (unsigned i = 0; i < 3 && word; i++)
		word = strtok_r(NULL, " ", &save);
	*root = word;
	*point = word ? strtok_r(NULL, " ", &save) : NULL;
	return *point && !strchr(*root, '\\') && !strchr(*point, '\\');
}

char *cgroup_own_path(const char *self, const char *mountinfo, char **mount)
{
	const char *at = strncmp(self, "0::", 3) == 0 ? self : strstr(self, "\n0::");
	_cleanup_free_ char *own = NULL, *mounts = strdup(mountinfo);
	char *save = NULL, *root, *point;

	if (!at || !mounts)
		return NULL;
	at += *at == '\n' ? 4 : 3;
	own = strndup(at, strcspn(at, "\n"));
	/* Above the root of a namespace, or removed: not for us. */
	if (!own || own[0] != '/' || strstr(own, "/..") || strstr(own, " (deleted)"))
		return NULL;
	for (char *line = strtok_r(mounts, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		size_t n;

		if (!parse_mount(line, &root, &point))
			continue;
		n = strcmp(root, "/") == 0 ? 0 : strlen(root);
		if (strncmp(own, root, n) != 0 || (own[n] != '/' && own[n]))
			continue;
		*mount = strdup(point);
		char *path =
			paths_format(NULL, "%s%s", point, strcmp(own + n, "/") == 0 ? "" : own + n);

		if (*mount && path)
			return path;
		free(*mount);
		free(path);
		return NULL;
	}
	return NULL;
}

static bool is_ours(const char *dir)
{
	_cleanup_free_ char *procs = paths_format(NULL, "%s/cgroup.procs", dir);

	return procs && access(dir, W_OK) == 0 && access(procs, W_OK) == 0;
}

/* One that has processes hands on nothing, but for the root, which has no type. */
static bool may_hand_on(const char *dir)
{
	_cleanup_free_ char *type = paths_format(NULL, "%s/cgroup.type", dir);
	_cleanup_free_ char *path = paths_format(NULL, "%s/cgroup.procs", dir);
	_cleanup_free_ char *procs = path ? read_text(path) : NULL;

	return type && (access(type, F_OK) < 0 || (procs && !*procs));
}

/* What @dir hands on, having been asked to; @is_dry: would. */
static unsigned hand_on(const char *dir, unsigned wanted, bool is_dry)
{
	unsigned has = read_controllers(dir, "cgroup.subtree_control");

	if (is_dry && may_hand_on(dir))
		has |= read_controllers(dir, "cgroup.controllers");
	for (size_t i = 0; i < ARRAY_SIZE(controllers); i++) {
		char word[16];

		if (is_dry || !(wanted & ~has & controllers[i].bit) ||
		    !(read_controllers(dir, "cgroup.controllers") & controllers[i].bit))
			continue;
		snprintf(word, sizeof(word), "+%s", controllers[i].name);
		/* -EBUSY: it has processes of its own */
		if (write_text(dir, "cgroup.subtree_control", word) == 0)
			has |= controllers[i].bit;
	}
	return has & wanted;
}

char *cgroup_find_parent(const char *own, const char *mount, unsigned wanted, bool is_dry, unsigned *missing)
{
	char *dir = strdup(own);

	*missing = wanted;
	while (dir && strlen(dir) >= strlen(mount) && is_ours(dir)) {
		unsigned lacks = wanted & ~hand_on(dir, wanted, is_dry);

		if (!lacks)
			return dir;
		if (__builtin_popcount(lacks) < __builtin_popcount(*missing))
			*missing = lacks;
		*strrchr(dir, '/') = 0;
	}
	free(dir);
	return NULL;
}

static char *find_here(unsigned wanted, bool is_dry, char **own, unsigned *missing)
{
	_cleanup_free_ char *self = read_text("/proc/self/cgroup"),
			    *mounts = read_text("/proc/self/mountinfo");
	_cleanup_free_ char *mount = NULL;
	const char *named = getenv("VIVARIUM_CGROUP");

	*missing = wanted;
	*own = self && mounts ? cgroup_own_path(self, mounts, &mount) : NULL;
	if (!*own)
		return NULL;
	return named && *named ? cgroup_find_parent(named, named, wanted, is_dry, missing)
			       : cgroup_find_parent(*own, mount, wanted, is_dry, missing);
}

/* ---- limits ---- */

/* The disk that a partition is of: what io.max is about.  0: there is none, as with file systems that are no single device. */
static dev_t disk_of(dev_t dev)
{
	char path[96], real[4096];
	unsigned ma, mi;

	if (!major(dev))
		return 0;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(dev), minor(dev));
	if (!realpath(path, real))
		return 0;
	_cleanup_free_ char *part = paths_format(NULL, "%s/partition", real);

	if (part && access(part, F_OK) == 0)
		*strrchr(real, '/') = 0;
	_cleanup_free_ char *file = paths_format(NULL, "%s/dev", real);
	_cleanup_free_ char *text = file ? read_text(file) : NULL;

	return text && sscanf(text, "%u:%u", &ma, &mi) == 2 ? makedev(ma, mi) : 0;
}

static void put_io(char *text, size_t cap, dev_t disk, const struct cgroup_limits *l)
{
	const struct {
		const char *key;
		uint64_t value;
	} parts[] = { { "rbps", l->read_bps },
		      { "wbps", l->write_bps },
		      { "riops", l->read_iops },
		      { "wiops", l->write_iops } };
	size_t n = (size_t)snprintf(text, cap, "%u:%u", major(disk), minor(disk));

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		if (parts[i].value)
			n += (size_t)snprintf(text + n, cap - n, " %s=%llu", parts[i].key,
					      (unsigned long long)parts[i].value);
}

static int limit_io(const char *path, const struct cgroup_limits *l, struct error *err)
{
	unsigned n = 0;

	for (unsigned i = 0; i < l->ndevices; i++) {
		dev_t disk = disk_of(l->devices[i]);
		char text[200];

		if (!disk)
			continue;
		put_io(text, sizeof(text), disk, l);
		int r = write_text(path, "io.max", text);

		if (r < 0)
			return error_set(err, r, "--io-limit: the kernel does not take \"%s\": %s",
					 text, strerror(-r));
		n++;
	}
	return n ? 0 : error_set(err, -EOPNOTSUPP, "--io-limit: none of the machine's files is on a disk that the kernel can limit; --disk FILE,bps=50M limits what the machine does");
}

static int set(const char *path, const char *file, const char *option, const char *text, struct error *err)
{
	int r = write_text(path, file, text);

	return r < 0 ? error_set(err, r, "%s: cannot write %s/%s: %s", option, path, file, strerror(-r))
		     : 0;
}

int cgroup_make(const char *path, const struct cgroup_limits *l, struct error *err)
{
	char text[64];
	int r = 0;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return error_set(err, -errno, "cannot make %s: %s", path, strerror(errno));
	if (l->cpu_percent) {
		snprintf(text, sizeof(text), "%llu %d",
			 (unsigned long long)l->cpu_percent * PERIOD_US / 100, PERIOD_US);
		r = set(path, "cpu.max", "--cpu-limit", text, err);
	}
	if (r == 0 && l->mem_bytes) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)l->mem_bytes);
		r = set(path, "memory.max", "--mem-limit", text, err);
	}
	if (r == 0 && cgroup_wanted(l) & CGROUP_IO)
		r = limit_io(path, l, err);
	return r;
}

/* ---- a machine's ---- */

static int refuse(unsigned missing, bool has_cgroup2, struct error *err)
{
	char names[64] = "";

	for (size_t i = 0; i < ARRAY_SIZE(controllers); i++)
		if (missing & controllers[i].bit)
			snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s",
				 *names ? ", " : "", controllers[i].option);
	return error_set(
		err,
		-EOPNOTSUPP, has_cgroup2 ? "%s can't be had: no control group above this process hands on its controller to this user; systemd-run --user --scope -p Delegate=yes viv ... gives one, if the user's session has it" : "%s can't be had: this host has no cgroup v2 (unified) that this process is in",
		names);
}

/* Groups of machines that were killed are empty, and go; one that is being made at this moment has nobody in it either, and is made again. */
static void sweep(const char *parent)
{
	DIR *d = opendir(parent);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (strncmp(e->d_name, OWN_PREFIX, strlen(OWN_PREFIX)) == 0)
			(void)unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
	if (d)
		closedir(d);
}

static int move(const char *group, pid_t pid)
{
	char text[24];

	snprintf(text, sizeof(text), "%d", (int)pid);
	return write_text(group, "cgroup.procs", text);
}

int cgroup_enter(struct cgroup *g, const struct cgroup_limits *l, const char *name, struct error *err)
{
	unsigned missing, wanted = cgroup_wanted(l);
	int r = -ENOENT;

	*g = (struct cgroup){ NULL, NULL };
	if (!wanted)
		return 0;
	_cleanup_free_ char *parent = find_here(wanted, false, &g->home, &missing);

	if (!parent) {
		r = refuse(missing, g->home, err);
		cgroup_leave(g);
		return r;
	}
	sweep(parent);
	g->path = paths_format(err, "%s/" OWN_PREFIX "%s-%d", parent, name, (int)getpid());
	for (unsigned i = 0; g->path && r == -ENOENT && i < 100; i++) {
		r = cgroup_make(g->path, l, err);
		if (r == 0)
			r = move(g->path, getpid());
	}
	if (!g->path)
		r = -ENOMEM;
	else if (r < 0 && r != -EOPNOTSUPP)
		error_set(err, r, "the machine cannot be put into %s: %s", g->path, strerror(-r));
	if (r < 0)
		cgroup_leave(g);
	return r;
}

int cgroup_add(const struct cgroup *g, pid_t pid, struct error *err)
{
	int r = g->path ? move(g->path, pid) : 0;

	return r < 0 ? error_set(err, r, "process %d cannot be put into %s: %s", (int)pid, g->path,
				 strerror(-r))
		     : 0;
}

void cgroup_leave(struct cgroup *g)
{
	if (g->path) {
		if (g->home && move(g->home, getpid()) < 0)
			log_debug("cgroup", "stays in %s until the next machine starts", g->path);
		(void)rmdir(g->path);
	}
	free(g->path);
	free(g->home);
	*g = (struct cgroup){ NULL, NULL };
}

unsigned cgroup_offered(char why[256])
{
	unsigned offered = 0, missing;
	_cleanup_free_ char *own = NULL;
	struct error err = { "" };

	for (size_t i = 0; i < ARRAY_SIZE(controllers); i++) {
		free(own);
		own = NULL;
		_cleanup_free_ char *parent = find_here(controllers[i].bit, true, &own, &missing);

		offered |= parent ? controllers[i].bit : 0;
	}
	if (offered != (CGROUP_CPU | CGROUP_MEMORY | CGROUP_IO))
		refuse((CGROUP_CPU | CGROUP_MEMORY | CGROUP_IO) & ~offered, own, &err);
	snprintf(why, 256, "%s", err.text);
	return offered;
}
