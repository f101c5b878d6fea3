/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What cloud-init is told, in YAML.  Every text of the user's passes the emitter, which quotes it: "no", "1e3", "a: b" stay texts.
 *
 * The user is the image's default user by another name (`user`), so that it has the groups, the shell and the sudo rule that the
 * distribution gives that one; keys and password are the default user's.
 */
#include <errno.h>
#include <string.h>
#include <yaml.h>

#include "cli/cloudinit.h"

struct writer {
	yaml_emitter_t emitter;
	struct bytes *out;
	bool has_failed;
};

static int on_write(void *arg, unsigned char *data, size_t len)
{
	bytes_put(arg, data, len);
	return !((struct bytes *)arg)->is_failed;
}

/* Takes the event, also when it was never made (@is_made: what the initializer returned). */
static void emit(struct writer *w, yaml_event_t *e, int is_made)
{
	if (!is_made || w->has_failed) {
		if (is_made)
			yaml_event_delete(e);
		w->has_failed = true;
		return;
	}
	w->has_failed |= !yaml_emitter_emit(&w->emitter, e);
}

static void begin_map(struct writer *w)
{
	yaml_event_t e;

	emit(w, &e, yaml_mapping_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE));
}

static void end_map(struct writer *w)
{
	yaml_event_t e;

	emit(w, &e, yaml_mapping_end_event_initialize(&e));
}

/* @is_plain: a word of ours, or a boolean. */
static void put_scalar(struct writer *w, const char *text, bool is_plain)
{
	yaml_event_t e;

	emit(w, &e,
	     yaml_scalar_event_initialize(
		     &e, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text), is_plain, !is_plain,
		     is_plain ? YAML_PLAIN_SCALAR_STYLE : YAML_DOUBLE_QUOTED_SCALAR_STYLE));
}

static void put_key(struct writer *w, const char *key)
{
	put_scalar(w, key, true);
}

static void put_text(struct writer *w, const char *key, const char *text)
{
	put_key(w, key);
	put_scalar(w, text, false);
}

static void put_bool(struct writer *w, const char *key, bool value)
{
	put_key(w, key);
	put_scalar(w, value ? "true" : "false", true);
}

static void put_list(struct writer *w, const char *key, const struct cloudinit_list *list)
{
	yaml_event_t e;

	if (!list->n)
		return;
	put_key(w, key);
	emit(w, &e, yaml_sequence_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_SEQUENCE_STYLE));
	for (unsigned i = 0; i < list->n; i++)
		put_scalar(w, list->v[i], false);
	emit(w, &e, yaml_sequence_end_event_initialize(&e));
}

static void begin(struct writer *w, struct bytes *out)
{
	yaml_event_t e;

	*w = (struct writer){ .out = out };
	w->has_failed = !yaml_emitter_initialize(&w->emitter);
	if (w->has_failed)
		return;
	yaml_emitter_set_output(&w->emitter, on_write, out);
	yaml_emitter_set_width(&w->emitter, -1); /* a key is one line */
	emit(w, &e, yaml_stream_start_event_initialize(&e, YAML_UTF8_ENCODING));
	emit(w, &e, yaml_document_start_event_initialize(&e, NULL, NULL, NULL, 1));
	begin_map(w);
}

static int end(struct writer *w, const char *what, struct error *err)
{
	yaml_event_t e;

	end_map(w);
	emit(w, &e, yaml_document_end_event_initialize(&e, 1));
	emit(w, &e, yaml_stream_end_event_initialize(&e));
	yaml_emitter_delete(&w->emitter);
	return w->has_failed || w->out->is_failed
		       ? error_set(err, -EINVAL, "the %s can't be written: a text of it is not valid UTF-8, or there is no memory",
				   what)
		       : 0;
}

int cloudinit_user_data(const struct cloudinit *ci, struct bytes *out, struct error *err)
{
	struct writer w;

	bytes_printf(out, "#cloud-config\n");
	begin(&w, out);
	if (ci->user) {
		put_key(&w, "user");
		begin_map(&w);
		put_text(&w, "name", ci->user);
		end_map(&w);
		if (strcmp(ci->user, "root") == 0)
			put_bool(&w, "disable_root", false);
	}
	put_list(&w, "ssh_authorized_keys", &ci->keys);
	if (ci->password_hash) {
		put_text(&w, "password", ci->password_hash);
		put_key(&w, "chpasswd");
		begin_map(&w);
		put_bool(&w, "expire", false);
		end_map(&w);
	}
	/* The name resolves: sudo asks for it. */
	put_text(&w, "manage_etc_hosts", "localhost");
	if (ci->packages.n)
		put_bool(&w, "package_update", true);
	put_list(&w, "packages", &ci->packages);
	return end(&w, "user-data", err);
}

int cloudinit_meta_data(const char *instance_id, const char *hostname, struct bytes *out,
			struct error *err)
{
	struct writer w;

	begin(&w, out);
	put_text(&w, "instance-id", instance_id);
	if (hostname)
		put_text(&w, "local-hostname", hostname);
	return end(&w, "meta-data", err);
}

static bool has_instance_id(yaml_document_t *doc)
{
	const yaml_node_t *root = yaml_document_get_root_node(doc);

	if (!root || root->type != YAML_MAPPING_NODE)
		return false;
	for (const yaml_node_pair_t *p = root->data.mapping.pairs.start;
	     p < root->data.mapping.pairs.top; p++) {
		const yaml_node_t *k = yaml_document_get_node(doc, p->key);
		const yaml_node_t *v = yaml_document_get_node(doc, p->value);

		if (k->type == YAML_SCALAR_NODE && v->type == YAML_SCALAR_NODE && v->data.scalar.length &&
		    strcmp((const char *)k->data.scalar.value, "instance-id") == 0)
			return true;
	}
	return false;
}

int cloudinit_check_meta_data(const char *text, size_t len, struct error *err)
{
	yaml_document_t doc;
	yaml_parser_t p;
	int r = 0;

	if (!yaml_parser_initialize(&p))
		return error_set(err, -ENOMEM, "no memory for meta-data");
	yaml_parser_set_input_string(&p, (const unsigned char *)text, len);
	if (!yaml_parser_load(&p, &doc)) {
		r = error_set(err, -EINVAL, "it is no YAML, line %zu: %s", p.problem_mark.line + 1,
			      p.problem ? p.problem : "no memory");
	} else {
		if (!has_instance_id(&doc))
			r = error_set(err, -EINVAL, "it has no instance-id, without which cloud-init does not take it for a seed");
		yaml_document_delete(&doc);
	}
	yaml_parser_delete(&p);
	return r;
}
