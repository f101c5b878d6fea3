/* SPDX-License-Identifier: Apache-2.0 */
/* What the networks of labs count: by rule, and by card and reason. */
#include "base/util.h"
#include "cli/prom.h"
#include "cli/prom_int.h"

static void put_rules(json_t *const *labs, size_t n, const char *counter, struct prom_family f)
{
	json_t *rule;
	json_int_t v, id;
	size_t k;

	for (size_t i = 0; i < n; i++) {
		const char *lab = json_string_value(json_object_get(labs[i], "lab"));

		json_array_foreach(json_object_get(labs[i], "rules"), k, rule)
		{
			const char *action = json_string_value(json_object_get(rule, "action"));
			const char *text = json_string_value(json_object_get(rule, "rule"));

			if (!lab || !action || !text || !prom_read_number(rule, "id", &id) ||
			    !prom_read_number(rule, counter, &v))
				continue;
			prom_begin_sample(&f, "lab", lab);
			fprintf(f.out, ",id=\"%lld\"", (long long)id);
			prom_put_label(f.out, "action", action);
			prom_put_label(f.out, "rule", text);
			prom_end_sample(&f, v, false);
		}
	}
}

static void put_card(struct prom_family *f, const char *lab, const char *card, const char *reason,
		     json_int_t v)
{
	prom_begin_sample(f, "lab", lab);
	prom_put_label(f->out, "card", card);
	prom_put_label(f->out, "reason", reason);
	prom_end_sample(f, v, false);
}

static void put_denied(json_t *const *labs, size_t n, FILE *out)
{
	struct prom_family f = {
		out, PROM_COUNTER("viv_lab_card_denied_frames",
				  "Frames of a card that did not pass, by reason; default: no rule "
				  "allows it; "
				  "full: it took them too slowly; fault: lost on a bad link.")
	};
	const char *reason;
	json_t *card, *count;
	json_int_t v;
	size_t k;

	for (size_t i = 0; i < n; i++) {
		const char *lab = json_string_value(json_object_get(labs[i], "lab"));

		json_array_foreach(json_object_get(labs[i], "cards"), k, card)
		{
			const char *name = json_string_value(json_object_get(card, "card"));
			json_t *denied = json_object_get(card, "denied");

			if (!lab || !name)
				continue;
			json_object_foreach(denied, reason, count)
			{
				if (prom_read_number(denied, reason, &v))
					put_card(&f, lab, name, reason, v);
			}
			if (prom_read_number(card, "dropped", &v))
				put_card(&f, lab, name, "full", v);
			if (prom_read_number(card, "lost", &v))
				put_card(&f, lab, name, "fault", v);
		}
	}
}

void prom_print_labs(json_t *const *labs, size_t n, FILE *out)
{
	put_rules(labs, n,
		  "frames", (struct prom_family){ out, PROM_COUNTER("viv_lab_rule_frames", "Frames that a rule of a lab decided, either way; those of a deny rule are drops.") });
	put_rules(
		labs, n, "flows",
		(struct prom_family){ out, PROM_COUNTER("viv_lab_rule_flows",
							"Flows that a rule of a lab let begin.") });
	put_denied(labs, n, out);
}
