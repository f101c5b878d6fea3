/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cloudinit.h"

#include <crypt.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "block/iso9660.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"

enum {
	LIST_MAX = 256,
	PASSWORD_MAX = 256,
	KEY_FILE_MAX = 64 * 1024,
	USER_MAX = 32,
	HOSTNAME_MAX = 253
};

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no memory for a seed");
}

static void list_free(struct cloudinit_list *l)
{
	for (unsigned i = 0; i < l->n; i++)
		free(l->v[i]);
	free(l->v);
	*l = (struct cloudinit_list){ 0 };
}

void cloudinit_free(struct cloudinit *ci)
{
	free(ci->user);
	free(ci->hostname);
	free(ci->password_hash);
	list_free(&ci->keys);
	list_free(&ci->packages);
	free(ci->user_data);
	free(ci->meta_data);
	free(ci->network_config);
	*ci = (struct cloudinit){ 0 };
}

static int list_add(struct cloudinit_list *l, const char *text, const char *what, struct error *err)
{
	if (l->n == LIST_MAX)
		return error_set(err, -EINVAL, "there are more than %d %s", LIST_MAX, what);
	char **v = realloc(l->v, (l->n + 1) * sizeof(*v));

	if (v)
		l->v = v;
	char *copy = v ? strdup(text) : NULL;

	if (!copy)
		return no_memory(err);
	l->v[l->n++] = copy;
	return 0;
}

/* "~/..." is this user's: a shell leaves it as it is behind "ssh-key=". */
static int read_file(const char *path, size_t max, char **out, size_t *len, struct error *err)
{
	const char *home = strncmp(path, "~/", 2) == 0 ? getenv("HOME") : NULL;
	_cleanup_free_ char *full = home ? paths_format(err, "%s/%s", home, path + 2) : NULL;

	return home && !full ? -ENOMEM : paths_read_file(full ? full : path, max, out, len, err);
}

/* ---- what may be said ---- */

/* As useradd(8) has it. */
static bool is_user(const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < n; i++)
		if (!(islower((unsigned char)name[i]) || name[i] == '_' ||
		      (i && (isdigit((unsigned char)name[i]) || name[i] == '-'))))
			return false;
	return n >= 1 && n <= USER_MAX;
}

bool cloudinit_is_hostname(const char *name)
{
	size_t n = strlen(name), label = 0;

	for (size_t i = 0; i <= n; i++) {
		if (name[i] == '.' || !name[i]) {
			if (!label || label > 63 || name[i - 1] == '-')
				return false;
			label = 0;
			continue;
		}
		if (!isalnum((unsigned char)name[i]) && (name[i] != '-' || !label))
			return false;
		label++;
	}
	return n <= HOSTNAME_MAX;
}

static bool is_package(const char *name)
{
	for (const char *p = name; *p; p++)
		if (!isalnum((unsigned char)*p) && (p == name || !strchr("+-._:=~/", *p)))
			return false;
	return *name && strlen(name) <= 128;
}

static int add_package(struct cloudinit *ci, const char *name, struct error *err)
{
	if (!is_package(name))
		return error_set(err, -EINVAL, "\"%.80s\" is no name of a package", name);
	return list_add(&ci->packages, name, "packages", err);
}

/* "a+b"; one with a plus in its name is given by package=. */
static int add_packages(struct cloudinit *ci, const char *text, struct error *err)
{
	while (true) {
		size_t n = strcspn(text, "+");
		_cleanup_free_ char *name = strndup(text, n);
		int r = name ? add_package(ci, name, err) : no_memory(err);

		if (r == -EINVAL && !n)
			r = error_set(err, -EINVAL, "packages=A+B has an empty name in it; package=g++ is for one with a plus");
		if (r < 0 || !text[n])
			return r;
		text += n + 1;
	}
}

/* ---- keys ---- */

/* "ssh-ed25519 AAAA... comment", perhaps with options before it. */
static bool has_key(const char *line)
{
	static const char *const types[] = { "ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-" };

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		for (const char *at = line; (at = strstr(at, types[i])); at++) {
			const char *key = strchr(at, ' ');

			if ((at == line || at[-1] == ' ') &&
			    key && strspn(key + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=") >= 32)
				return true;
		}
	return false;
}

int cloudinit_add_key(struct cloudinit *ci, const char *line, struct error *err)
{
	for (const char *p = line; *p; p++)
		if (iscntrl((unsigned char)*p))
			return error_set(err, -EINVAL, "a line has control characters");
	if (!has_key(line))
		return error_set(err, -EINVAL, "a line is no public key of SSH");
	ci->is_wanted = true;
	return list_add(&ci->keys, line, "SSH keys", err);
}

static int add_key_file(struct cloudinit *ci, const char *path, struct error *err)
{
	_cleanup_free_ char *text = NULL;
	char *save = NULL;
	unsigned before = ci->keys.n;
	size_t len;
	int r = read_file(path, KEY_FILE_MAX, &text, &len, err);

	if (r < 0)
		return r;
	if (strlen(text) != len)
		return error_set(err, -EINVAL, "%s is no text", path);
	if (strstr(text, "PRIVATE KEY")) {
		explicit_bzero(text, len);
		return error_set(err, -EINVAL, "%s is a private key; the public one, which a guest is to have, is mostly in %s.pub",
				 path, path);
	}
	for (char *line = strtok_r(text, "\r\n", &save); line && r == 0;
	     line = strtok_r(NULL, "\r\n", &save)) {
		line += strspn(line, " \t");
		if (*line && *line != '#')
			r = cloudinit_add_key(ci, line, err);
	}
	if (r == 0 && ci->keys.n == before)
		r = error_set(err, -EINVAL, "there is no key in it");
	if (r < 0)
		error_prefix(err, "%s", path);
	return r;
}

/* ---- passwords ---- */

static int hash_password(struct cloudinit *ci, const char *password, struct error *err)
{
	static const char digits[] =
		"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
	char setting[3 + 16 + 2] = "$6$";
	uint8_t random[16];

	if (!*password || strlen(password) > PASSWORD_MAX || strpbrk(password, "\r\n"))
		return error_set(err, -EINVAL, "a password has 1 to %d characters, of one line",
				 PASSWORD_MAX);
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	for (unsigned i = 0; i < 16; i++)
		setting[3 + i] = digits[random[i] % 64];
	setting[3 + 16] = '$';
	struct crypt_data *data = calloc(1, sizeof(*data));

	if (!data)
		return no_memory(err);
	/* not crypt_r, which the address sanitizer takes to itself: the linker then leaves libcrypt out */
	const char *hash = crypt_rn(password, setting, data, sizeof(*data));
	bool is_good = hash && strncmp(hash, setting, strlen(setting)) == 0;
	int r = is_good ? vmconfig_set(&ci->password_hash, hash, err)
			: error_set(err, -ENOTSUP, "this host's crypt(3) has no SHA-512");

	explicit_bzero(data, sizeof(*data));
	free(data);
	return r;
}

static int hash_password_file(struct cloudinit *ci, const char *path, struct error *err)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = read_file(path, PASSWORD_MAX + 2, &text, &len, err);

	if (r < 0)
		return r;
	text[strcspn(text, "\r\n")] = 0;
	r = hash_password(ci, text, err);
	explicit_bzero(text, len);
	if (r < 0)
		error_prefix(err, "%s", path);
	return r;
}

/* ---- options ---- */

static int set_once(char **member, const char *what, const char *value, bool is_good, struct error *err)
{
	if (*member)
		return error_set(err, -EINVAL, "%s= is there twice", what);
	return is_good ? vmconfig_set(member, value, err)
		       : error_set(err, -EINVAL, "\"%.80s\" is no %s", value, what);
}

static int add_part(struct cloudinit *ci, const char *key, const char *value, struct error *err)
{
	bool is_password = strcmp(key, "password") == 0 || strcmp(key, "password-file") == 0;

	if (!value)
		return error_set(
			err, -EINVAL, "it is written KEY=VALUE,...; the keys are user, ssh-key, hostname, password, password-file, packages, package");
	if (is_password && ci->password_hash)
		return error_set(err, -EINVAL, "there are two passwords");
	if (strcmp(key, "user") == 0)
		return set_once(&ci->user, key, value, is_user(value), err);
	if (strcmp(key, "hostname") == 0)
		return set_once(&ci->hostname, key, value, cloudinit_is_hostname(value), err);
	if (strcmp(key, "ssh-key") == 0)
		return add_key_file(ci, value, err);
	if (strcmp(key, "password") == 0)
		return hash_password(ci, value, err);
	if (strcmp(key, "password-file") == 0)
		return hash_password_file(ci, value, err);
	if (strcmp(key, "packages") == 0)
		return add_packages(ci, value, err);
	if (strcmp(key, "package") == 0)
		return add_package(ci, value, err);
	/* No value is shown: it may be the rest of a password with a comma. */
	return error_set(
		err, -EINVAL, "there is no such key; the keys are user, ssh-key, hostname, password, password-file, packages, package (a comma in a value is written ,,)");
}

int cloudinit_add(struct cloudinit *ci, const char *spec, struct error *err)
{
	char key[4096];
	const char *cursor = spec, *value;
	int more, r = 0;

	ci->is_wanted = true;
	while (r == 0 && (more = opts_subvalue(&cursor, key, sizeof(key), &value)) != 0)
		r = more < 0 ? error_set(err, more, "it is too long") : add_part(ci, key, value, err);
	explicit_bzero(key, sizeof(key));
	if (r < 0)
		error_prefix(err, "--cloud-init");
	return r;
}

void cloudinit_hide(char *spec)
{
	if (strstr(spec, "password="))
		memset(spec, '*', strlen(spec));
}

static int read_own(const char *option, const char *path, char **out, size_t *len, struct error *err)
{
	int r = path ? read_file(path, ISO9660_FILE_MAX, out, len, err) : 0;

	if (r < 0)
		error_prefix(err, "%s", option);
	return r;
}

int cloudinit_own_files(struct cloudinit *ci, const char *user_data, const char *meta_data,
			const char *network_config, struct error *err)
{
	if (user_data && (ci->user || ci->password_hash || ci->keys.n || ci->packages.n))
		return error_set(
			err, -EINVAL, "--user-data is in place of what user, ssh-key, password and packages of --cloud-init make");
	if (meta_data && ci->hostname)
		return error_set(err, -EINVAL,
				 "--meta-data is in place of what hostname of --cloud-init makes");
	ci->is_wanted |= user_data || meta_data || network_config;
	int r = read_own("--user-data", user_data, &ci->user_data, &ci->user_data_len, err);

	if (r == 0)
		r = read_own("--network-config", network_config, &ci->network_config,
			     &ci->network_config_len, err);
	if (r == 0)
		r = read_own("--meta-data", meta_data, &ci->meta_data, &ci->meta_data_len, err);
	if (r == 0 && meta_data) {
		r = cloudinit_check_meta_data(ci->meta_data, ci->meta_data_len, err);
		if (r < 0)
			error_prefix(err, "--meta-data %s", meta_data);
	}
	return r;
}

/* ---- the seed ---- */

static int make_meta_data(const struct cloudinit *ci, const char *machine, struct bytes *out,
			  struct error *err)
{
	char id[32];
	uint64_t random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	snprintf(id, sizeof(id), "iid-%016llx", (unsigned long long)random);
	return cloudinit_meta_data(id,
				   ci->hostname				       ? ci->hostname
				   : machine && cloudinit_is_hostname(machine) ? machine
									       : NULL,
				   out, err);
}

int cloudinit_make_seed(const struct cloudinit *ci, const char *machine, struct bytes *out,
			struct error *err)
{
	_cleanup_bytes_ struct bytes user = { 0 }, meta = { 0 };
	struct iso9660_file files[3] = { { "user-data" }, { "meta-data" }, { "network-config" } };
	int r = ci->user_data ? 0 : cloudinit_user_data(ci, &user, err);

	if (r == 0 && !ci->meta_data)
		r = make_meta_data(ci, machine, &meta, err);
	if (r < 0)
		return r;
	files[0].data = ci->user_data ? ci->user_data : (const char *)user.data;
	files[0].len = ci->user_data ? ci->user_data_len : user.len;
	files[1].data = ci->meta_data ? ci->meta_data : (const char *)meta.data;
	files[1].len = ci->meta_data ? ci->meta_data_len : meta.len;
	files[2].data = ci->network_config;
	files[2].len = ci->network_config_len;
	return iso9660_write(out, CLOUDINIT_LABEL, files, ci->network_config ? 3 : 2, time(NULL), err);
}
