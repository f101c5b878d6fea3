/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What comes over a link of a migration, as the target reads it: the records one after the other, each with its numbers and checksum made right
 * first, as these protect against accidents only; then the payload goes where its type leads.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "char/chardev.h"
#include "ctl/handover.h"
#include "ctl/migrate_bundle.h"
#include "ctl/migrate_offer.h"
#include "ctl/paths.h"
#include "fuzz.h"

#define PAGES 512
#define LINKS 2

static struct guest_ram ram;
static _Atomic uint64_t touched[PAGES / 64];

static void setup(void)
{
	if (!ram.base && ram_create(&ram, PAGES * GUEST_PAGE_SIZE, 0, NULL) < 0)
		abort();
}

static void put_hello(struct bytes *b, uint32_t *seq)
{
	struct migrate_offer o;

	if (migrate_offer_init(&o, NULL) < 0 || vmconfig_set(&o.config.name, "m", NULL) < 0 ||
	    vmconfig_set(&o.folder, "/m", NULL) < 0 ||
	    vmconfig_add_disk(&o.config, "/m/d", "raw", false, false, NULL) < 0)
		abort();
	o.mapping_bytes = o.config.mem_bytes;
	json_t *j = migrate_offer_json(&o);
	char *text = json_dumps(j, JSON_COMPACT);

	migrate_record_put(b, MIGRATE_R_HELLO, seq, text, strlen(text));
	free(text);
	json_decref(j);
	migrate_offer_free(&o);
}

/* What is accepted makes sense, and says the same again. */
static void take_hello(const uint8_t *payload, size_t len)
{
	struct migrate_offer o, again;
	struct error err;

	if (migrate_offer_init(&o, &err) < 0 || migrate_offer_init(&again, &err) < 0)
		abort();
	if (migrate_offer_parse(&o, payload, len, &err) == 0) {
		json_t *j = migrate_offer_json(&o);
		char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;

		if (!o.nlinks || o.nlinks > MIGRATE_STREAMS_MAX || o.folder[0] != '/' ||
		    paths_check_name("m", o.config.name, NULL) < 0 || !text ||
		    migrate_offer_parse(&again, text, strlen(text), &err) < 0)
			abort();
		free(text);
		json_decref(j);
	}
	migrate_offer_free(&o);
	migrate_offer_free(&again);
}

/* What a target says goes to the source's parser. */
static void take_accept(const uint8_t *payload, size_t len)
{
	struct migrate_offer o;
	struct error err;

	if (migrate_offer_init(&o, &err) < 0 ||
	    vmconfig_add_disk(&o.config, "/m/d", "raw", false, false, NULL) < 0)
		abort();
	if (migrate_accept_parse(&o, payload, len, &err) == 0 &&
	    (o.kernel.is_copied || o.disks[1].is_copied))
		abort();
	migrate_offer_free(&o);
}

static void take_chunk(const uint8_t *payload, size_t len)
{
	static uint8_t out[MIGRATE_CHUNK_BYTES];
	struct migrate_chunk_reader r = { 0 };
	struct migrate_chunk c;
	struct error err;

	if (migrate_chunk_get(&r, &c, payload, len, &err) == 0) {
		if (!c.len || c.offset + c.len < c.len || (c.data && c.len > sizeof(out)))
			abort();
		if (c.data)
			memcpy(out, c.data, c.len);
	}
	migrate_chunk_reader_free(&r);
}

/* What goes through the hatch of an upgrade; descriptors are numbers here, which nobody uses. */
static void take_hatch(const uint8_t *payload, size_t len)
{
	static const int fds[] = { 1000, 1001, 1002 };
	struct handover_cards cards;
	struct handover h;

	for (unsigned n = 0; n <= ARRAY_SIZE(fds); n++) {
		if (handover_parse_cards((const char *)payload, len, fds, n, &cards) == 0 &&
		    (cards.n > MACHINE_MAX_NICS || (cards.is_tap && cards.n != n)))
			abort();
		if (handover_parse((const char *)payload, len, fds, n, &h) == 0 &&
		    (h.lock >= 0) + (h.listen >= 0) + (h.status >= 0) + (h.lifeline >= 0) +
				    h.ncards + h.nclients !=
			    n)
			abort();
	}
}

static void take_console(const uint8_t *payload, size_t len)
{
	static struct char_dev *hub;
	struct error err;

	if (!hub && chardev_hub(&hub, NULL, 64, -1, &err) < 0)
		abort();
	(void)chardev_hub_load(hub, payload, len, NULL, 0, &err);
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const uint64_t pages[] = { 3, 4, 200 };
	static const char *const hatch[] = {
		"{\"format\": 1, \"cards\": [\"52:54:00:12:34:56\"], \"tap\": true}",
		"{\"format\": 1, \"fds\": [\"lock\", \"card\", \"client\"]}"
	};
	static uint8_t contents[ARRAY_SIZE(pages) * GUEST_PAGE_SIZE];
	struct migrate_packer p = { .level = 1 };
	struct bytes b = { 0 };
	uint32_t seq = 0;

	setup();
	memset(contents, 7, 100);
	for (unsigned codec = MIGRATE_ZSTD; codec < MIGRATE_NCODECS; codec++)
		if (migrate_pack(&p, &b, &seq, codec, pages, ARRAY_SIZE(pages), contents) != (int)codec)
			abort();
	migrate_pack_zero(&b, &seq, 0, 100);
	migrate_put_sums(&b, &seq, &ram, 4, 3);
	migrate_put_state(&b, &seq, (const uint8_t *)"a state", 7);
	migrate_put_rest(&b, &seq, &(struct migrate_rest){ .paused_ns = 1000 });
	migrate_put_missing(&b, &seq, (const uint64_t[PAGES / 64]){ 5, 6, 7 }, PAGES);
	put_hello(&b, &seq);
	for (unsigned i = 0; i < 3; i++)
		if (migrate_chunk_put(&p, &b, &seq, i == 2,
				      &(struct migrate_chunk){ .file = i,
							       .offset = 4096,
							       .len = sizeof(contents),
							       .data = i ? contents : NULL }) < 0)
			abort();
	migrate_units_put(&b, &seq, 0, 1, (const uint64_t *)(const void *)contents, 3);
	migrate_record_put(&b, MIGRATE_R_HELLO, &seq, "{\"copy\": [0]}", 13);
	for (unsigned i = 0; i < ARRAY_SIZE(hatch); i++)
		migrate_record_put(&b, MIGRATE_R_HELLO, &seq, hatch[i], strlen(hatch[i]));
	static const char bundle[] =
		"{\"token\": \"00112233445566778899aabbccddeeff\", \"snapshot\": \"s\"}";

	migrate_record_put(&b, MIGRATE_R_BUNDLE, &seq, bundle, strlen(bundle));
	migrate_record_put(&b, MIGRATE_R_CONSOLE, &seq, "\1\2\0\0\0hi\3\0\0\0abc", 14);
	migrate_packer_free(&p);
	if (b.is_failed || b.len > cap)
		abort();
	memcpy(data, b.data, b.len);
	size_t len = b.len;

	bytes_free(&b);
	return len;
}

static void take(struct migrate_unpacker *u, struct migrate_state_in *state,
		 const struct migrate_header *h, const uint8_t *payload)
{
	struct migrate_rest rest;
	static uint64_t sums[MIGRATE_UNITS_MAX];
	struct migrate_units units;
	char token[MIGRATE_ID_TEXT], name[PATHS_NAME_MAX + 1];
	uint64_t n = 0, bad, nbad, missing[PAGES / 64 + 1] = { 0 }, next;
	struct error err;

	switch (h->type) {
	case MIGRATE_R_HELLO:
		take_hello(payload, h->len);
		take_accept(payload, h->len);
		take_hatch(payload, h->len);
		break;
	case MIGRATE_R_BUNDLE:
		if (bundle_parse(payload, h->len, token, name, &err) == 0 &&
		    (strlen(token) >= sizeof(token) || strlen(name) >= sizeof(name)))
			abort();
		break;
	case MIGRATE_R_CONSOLE:
		take_console(payload, h->len);
		break;
	case MIGRATE_R_DISK:
		take_chunk(payload, h->len);
		break;
	case MIGRATE_R_DISK_SUMS:
		if (migrate_units_get(&units, payload, h->len, &err) == 0)
			memcpy(sums, units.sums, 8ULL * units.n);
		break;
	case MIGRATE_R_RAM:
		if (migrate_unpack(u, &ram, h->seq % LINKS, LINKS, payload, h->len, &n, &err) == 0 &&
		    (!n || n > PAGES))
			abort();
		if (migrate_unpack(u, &ram, 0, 1, payload, h->len, &n, &err) == 0 && (!n || n > PAGES))
			abort();
		break;
	case MIGRATE_R_MISSING:
		next = h->seq % 2 * 64;
		if (migrate_get_missing(missing, PAGES, &next, payload, h->len, &err) == 1 && next != PAGES)
			abort();
		break;
	case MIGRATE_R_SUMS:
		if (migrate_check_sums(&ram, payload, h->len, &bad, &nbad, &err) >= 0 && nbad &&
		    bad >= PAGES)
			abort();
		break;
	case MIGRATE_R_STATE:
		if (migrate_state_add(state, payload, h->len, &err) == 1 && state->data.len != state->total)
			abort();
		break;
	case MIGRATE_R_REST:
		if (migrate_get_rest(&rest, payload, h->len, &err) == 0 && (int64_t)rest.paused_ns < 0)
			abort();
		break;
	default:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct migrate_unpacker u = { .touched = touched };
	struct migrate_state_in state = { 0 };
	uint8_t raw[MIGRATE_HEADER_BYTES];
	struct migrate_header h;
	struct error err;
	uint32_t seq = 0;

	setup();
	for (size_t at = 0; len - at >= MIGRATE_HEADER_BYTES; seq++) {
		memcpy(raw, data + at, sizeof(raw));
		memcpy(raw, "VMIG", 4);
		memset(raw + 6, 0, 2);
		memcpy(raw + 12, &seq, 4);
		at += sizeof(raw);
		if (migrate_header_parse(&h, raw, seq, true, &err) < 0 || h.len > len - at)
			break;
		/* A copy of just its size: what is read past its end is noticed. */
		uint8_t *payload = malloc(h.len ? h.len : 1);

		if (!payload)
			abort();
		memcpy(payload, data + at, h.len);
		h.sum = XXH64(payload, h.len, XXH64(raw, sizeof(raw) - 8, 0));
		if (migrate_payload_check(&h, raw, payload, &err) < 0)
			abort();
		take(&u, &state, &h, payload);
		free(payload);
		at += h.len;
	}
	bytes_free(&state.data);
	migrate_unpacker_free(&u);
	return 0;
}
