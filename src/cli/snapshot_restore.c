/* SPDX-License-Identifier: Apache-2.0 */
/* `viv snapshot restore`, and machines that begin with a snapshot. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "cli/lab.h"
#include "cli/snapshot.h"
#include "cli/spawn.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/snapbundle.h"
#include "ctl/vmlock.h"

static int restore_running(const char *vm, const char *name, bool skips_time, struct error *err)
{
	json_t *reply;
	int r = client_request(vm,
			       json_pack("{s:s, s:s, s:b, s:b}", "cmd", "restore", "name", name,
					 "set_clock", 1, "skip_time", (int)skips_time),
			       CLIENT_TIMEOUT_MS, &reply, err);

	if (r < 0)
		return r;
	cli_note("%s is back at %s: %.1f ms, %lld pages", vm, name,
		 (double)json_integer_value(json_object_get(reply, "pause_us")) / 1000,
		 (long long)json_integer_value(json_object_get(reply, "pages")));
	json_decref(reply);
	return 0;
}

static int start_from(const char *vm, const struct spawn_from *from, struct error *err)
{
	char engine[256], reason[256];
	struct vmconfig c;
	struct spawned s;
	_cleanup_close_ int lock = vmlock_take(vm, err);
	int r = vmconfig_init(&c, lock < 0 ? NULL : err);

	if (lock < 0)
		r = lock;
	if (r == 0)
		r = vmconfig_load(&c, vm, err);
	if (r == 0) {
		r = spawn_machine(&s, &c, lock, from, false, err);
		if (r == 0)
			r = spawned_wait_ready(&s, engine, reason, err);
		spawned_free(&s);
	}
	if (r == 0)
		cli_note("engine %s: %s", engine, reason);
	vmconfig_free(&c);
	return r;
}

int snapshot_restore(const char *vm, const char *name, bool is_prefault, bool skips_time,
		     struct error *err)
{
	const struct spawn_from from = { .snapshot = name,
					 .is_prefault = is_prefault,
					 .skips_time = skips_time };
	struct snapshot_info i;
	int r = paths_check_name("a machine", vm, err);

	if (r == 0)
		r = paths_check_name("a snapshot", name, err);
	if (r < 0)
		return r;
	snapstore_prefetch(vm, name);
	r = snapstore_load(&i, vm, name, err);
	if (r < 0)
		return r;
	snapshot_info_free(&i);
	r = cli_is_running(vm) ? restore_running(vm, name, skips_time, err) : -ESRCH;
	/* One that has just ended counts as off. */
	return r == -ESRCH || r == -ENOENT || r == -ECONNREFUSED ? start_from(vm, &from, err) : r;
}

/* ---- a machine of its own ---- */

/* All files of the snapshot's folder under the same names in the folder that is being built. */
static int link_all(struct snapstore_build *b, const char *dir, struct error *err)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	int r = d ? 0 : error_set(err, -errno, "cannot read %s: %s", dir, strerror(errno));

	while (r == 0 && (e = readdir(d))) {
		_cleanup_free_ char *path = paths_format(err, "%s/%s", dir, e->d_name);

		if (e->d_name[0] != '.')
			r = path ? snapstore_add_file(b, path, e->d_name, false, err) : -ENOMEM;
	}
	if (d)
		closedir(d);
	return r;
}

static int copy_snapshot(const struct snapshot_info *from, const char *vm, struct error *err)
{
	_cleanup_free_ char *dir = snapstore_path(from->vm, from->name, NULL, err);
	struct snapstore_build b;
	int r = dir ? snapstore_begin(&b, vm, from->name, err) : -ENOMEM;

	if (!dir)
		return r;
	if (r == 0) {
		_cleanup_close_ int lock = snapstore_lock(from->vm, false, err);

		r = lock < 0 ? lock : link_all(&b, dir, err);
	}
	if (r == 0)
		r = snapstore_commit(&b, err);
	snapstore_end(&b);
	return r;
}

/* The file @path of the snapshot as a file of the machine's own. */
static int own_file(char **path, const char *vm, struct error *err)
{
	if (!*path)
		return 0;
	const char *name = strrchr(*path, '/');
	char *own = paths_vm(vm, name ? name + 1 : *path, err);

	if (!own)
		return -ENOMEM;
	if (link(*path, own) < 0) {
		int r = error_set(err, -errno, "cannot link %s to %s: %s", *path, own, strerror(errno));

		free(own);
		return r;
	}
	free(*path);
	*path = own;
	return 0;
}

/* Is @path that of a file in @dir? */
static bool is_in(const char *dir, const char *path)
{
	size_t n = strlen(dir);

	return strncmp(path, dir, n) == 0 && path[n] == '/' && !strchr(path + n + 1, '/');
}

/* A disk of the snapshot: that of the machine's own copy of the snapshot, until its process has put a layer on it. */
static int own_disk(struct vmconfig_disk *d, const struct snapshot_info *from, const char *vm,
		    struct error *err)
{
	_cleanup_free_ char *dir = snapstore_path(from->vm, from->name, NULL, err);
	const char *name = strrchr(d->path, '/');

	if (!dir)
		return -ENOMEM;
	if (d->is_readonly)
		return is_in(dir, d->path) ? own_file(&d->path, vm, err) : 0;
	char *path = snapstore_path(vm, from->name, name ? name + 1 : d->path, err);

	if (!path)
		return -ENOMEM;
	free(d->path);
	d->path = path;
	return 0;
}

static bool has_disk(const struct vmconfig *c, const char *path)
{
	for (unsigned i = 0; i < c->ndisks; i++)
		if (strcmp(c->disks[i].path, path) == 0)
			return true;
	return false;
}

static bool is_in_lab(const char *net)
{
	return strncmp(net, "lab:", 4) == 0;
}

/* A network that not everybody may have. */
static bool is_given(const char *net)
{
	return strncmp(net, "tap:", 4) == 0 || strncmp(net, "bridge:", 7) == 0 || is_in_lab(net);
}

/*
 * A snapshot is its machine's word, which may have been taken over when it was written, or it comes from elsewhere: what it has of this host, files
 * outside of it, host networks and labs, it has only if the user gave it to the machine, or gives it now.
 * @own: the machine's own configuration; NULL: there is no such machine any more
 */
static int check_host_parts(const struct snapshot_info *from, const struct vmconfig *own,
			    const char *net, struct error *err)
{
	_cleanup_free_ char *dir = snapstore_path(from->vm, from->name, "", err);
	const struct vmconfig *c = &from->config;
	int r = dir ? 0 : -ENOMEM;

	for (unsigned i = 0; r == 0 && i < c->ndisks; i++) {
		const char *path = c->disks[i].path;
		bool is_inside =
			strncmp(path, dir, strlen(dir)) == 0 && !strchr(path + strlen(dir), '/');

		if (!is_inside && !(own && has_disk(own, path)))
			r = error_set(err, -EPERM, "the snapshot names %s as a disk, which is none of machine \"%s\"",
				      path, from->vm);
	}
	if (r == 0 && !net && is_given(c->net) && !(own && strcmp(own->net, c->net) == 0))
		r = error_set(err, -EPERM, "the snapshot names %s as its network, which is not that of machine \"%s\"; --net says which it shall have",
			      c->net, from->vm);
	return r;
}

/*
 * In which lab it is, and as whom, is not told by the snapshot, which could name any machine of it: it is in the place that the lab gave the machine of
 * the snapshot, or in one of its own if the user says so.
 */
static int set_place(const struct snapshot_info *from, const struct vmconfig *own, const char *net,
		     struct vmconfig *c, struct error *err)
{
	json_t *record = NULL;
	int r = net ? vmconfig_set(&c->net, net, err) : 0;

	if (r == 0 && is_in_lab(c->net))
		r = net ? lab_admit(net, c->name, &record, err)
			: lab_place_of(c->net, from->vm, own->origin, &record, err);
	if (r == 0)
		r = vmconfig_set_origin(c, record, err);
	json_decref(record);
	return r;
}

/* The snapshot's configuration, and files, for the machine @c->name, which has the snapshot. */
static int take_over_as(const struct snapshot_info *from, const struct vmconfig *own,
			const char *net, struct vmconfig *c, struct error *err)
{
	int r = check_host_parts(from, own, net, err);

	if (r < 0)
		return r;
	_cleanup_free_ char *name = strdup(c->name);
	json_t *json = vmconfig_to_json(&from->config);

	r = name && json ? vmconfig_from_json(c, json, err)
			 : error_set(err, -ENOMEM, "no memory for a machine");
	json_decref(json);
	if (r == 0)
		r = vmconfig_set(&c->name, name, err);
	if (r == 0)
		r = set_place(from, own, net, c, err);
	/* Ports of the host are the first machine's; and a snapshot may come from elsewhere, or from one that was taken over. */
	while (c->nforwards)
		free(c->forwards[--c->nforwards]);
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++)
		r = own_disk(&c->disks[i], from, c->name, err);
	if (r == 0)
		r = own_file(&c->kernel, c->name, err);
	if (r == 0)
		r = own_file(&c->initrd, c->name, err);
	return r < 0 ? r : own_file(&c->firmware, c->name, err);
}

static int take_over(const struct snapshot_info *from, const char *net, struct vmconfig *c,
		     struct error *err)
{
	struct vmconfig own;
	struct error why;
	int r = vmconfig_init(&own, err);
	bool has_own = r == 0 && vmconfig_load(&own, from->vm, &why) == 0;

	if (r == 0)
		r = take_over_as(from, has_own ? &own : NULL, net, c, err);
	vmconfig_free(&own);
	return r;
}

int snapshot_instantiate(const struct snapshot_info *from, struct vmconfig *c, const char *net,
			 bool is_throwaway, struct error *err)
{
	int r = copy_snapshot(from, c->name, err);

	if (r == 0)
		r = take_over(from, net, c, err);
	c->is_throwaway = is_throwaway;
	return r;
}

/* ---- export, import ---- */

/* Progress that begins when there is some: not before a refusal. */
struct packing {
	struct progress progress;
	const char *what;
	bool has_begun;
};

static bool tick(void *arg, uint64_t done, uint64_t total)
{
	struct packing *p = arg;

	if (!p->has_begun)
		progress_start(&p->progress, p->what);
	p->has_begun = true;
	progress_tick(&p->progress, (int)(done * 1000 / total));
	return true;
}

static void packing_end(struct packing *p)
{
	if (p->has_begun)
		progress_end(&p->progress);
}

int snapshot_export(const char *vm, const char *name, const char *path, struct error *err)
{
	struct packing p = { .what = "packing the snapshot" };
	struct ram_progress progress = { tick, &p };
	int r = snapbundle_export(vm, name, path, &progress, err);

	packing_end(&p);
	return r;
}

/* A machine of nothing but its snapshot. */
static int make_machine(const char *vm, const char *name, const char *net, struct error *err)
{
	struct snapshot_info info;
	struct vmconfig c;
	int r = snapstore_load(&info, vm, name, err);

	if (r < 0)
		return r;
	r = vmconfig_init(&c, err);
	if (r == 0)
		r = vmconfig_set(&c.name, vm, err);
	if (r == 0)
		r = take_over(&info, net, &c, err);
	c.is_throwaway = false;
	if (r == 0)
		r = vmconfig_save(&c, err);
	vmconfig_free(&c);
	snapshot_info_free(&info);
	return r;
}

int snapshot_import(const char *vm, const char *name, const char *path, const char *net, struct error *err)
{
	struct packing p = { .what = "unpacking the snapshot" };
	struct ram_progress progress = { tick, &p };
	int r = paths_check_name("a machine", vm, err);

	if (r == 0 && net)
		r = run_check_net(net, err);
	_cleanup_free_ char *dir = r == 0 ? paths_vm(vm, NULL, err) : NULL;
	struct error why;

	if (!dir)
		return r < 0 ? r : -ENOMEM;
	bool is_new = access(dir, F_OK) < 0;

	if (is_new)
		r = paths_make(dir, err);
	if (r == 0)
		r = snapbundle_import(vm, name, path, &progress, err);
	packing_end(&p);
	if (r == 0 && is_new)
		r = make_machine(vm, name, net, err);
	if (r < 0 && is_new && paths_remove_at_once(dir, &why) < 0)
		cli_note("%s", why.text);
	return r;
}
