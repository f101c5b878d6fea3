/* SPDX-License-Identifier: Apache-2.0 */
/* Moving one machine, for viv migrate and viv evacuate. */
#ifndef VIV_CLI_MIGRATE_H
#define VIV_CLI_MIGRATE_H

#include <jansson.h>

#include "base/error.h"
#include "cli/transport.h"

enum { MIGRATE_KEEP_RUNNING_FIRST, MIGRATE_FINISH_FIRST };
extern const char *const migrate_priorities[]; /* in this order, ends with NULL */

struct migrate_options {
	const char *name, *engine;	/* at the target; NULL: as here */
	const char *network;		/* there, as viv run --net; NULL: as here */
	int64_t max_downtime, deadline; /* ns; 0: the machine's own idea, none */
	uint64_t bandwidth, links;	/* 0: no limit, one */
	int priority;
	struct transport_options transport;
	bool verify, copy;
	bool with_snapshots; /* else they stay here */
};

/* Options of both verbs: of @type, whose member @o is a struct migrate_options. */
#define MIGRATE_TRANSPORT_OPTS(type)                                                                                           \
	OPT_STRING(type, o.transport.certificates, "certificates", "FOLDER",                                                   \
		   "ca.pem, cert.pem and key.pem for tls:// (default: tls in viv's data folder)"),                             \
		OPT_FLAG(type, o.transport.is_insecure, "insecure",                                                            \
			 "also over tcp://, where everybody on the way sees and changes it"),                                  \
		OPT_FLAG(type, o.copy,                                                                                         \
			 "copy", "copy disks also where the target sees the same files (default: only what it does not see)"), \
		OPT_FLAG(type, o.with_snapshots, "with-snapshots",                                                             \
			 "snapshots go along, before the machine (default: they stay here)")

/**
 * migrate_machine() - move @name to @to, with progress on a terminal; Ctrl-C cancels.
 * Returns 0 with *@report, to be json_decref'ed; -EINTR: canceled from here; -errno.
 */
int migrate_machine(const char *name, const char *to, const struct migrate_options *o,
		    json_t **report, struct error *err);
/**
 * migrate_request_over() - ask the machine @name, with the descriptors @t, which are closed here then: who else held them would keep the peer from noticing its end.
 * @request: stolen
 * With progress, as migrate_machine(); the same results.
 */
int migrate_request_over(const char *name, json_t *request, struct transport *t, json_t **report,
			 struct error *err);
/** migrate_print() - a line about a report. */
void migrate_print(const char *name, json_t *report);

#endif
