/* SPDX-License-Identifier: Apache-2.0 */
/* Rules as people write them, and the host's own networks. */
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/opts.h"
#include "net/packet.h"
#include "net/policy.h"

static const struct {
	const char *name;
	uint8_t proto;
} protos[] = { { "any", 0 }, { "tcp", IP_TCP }, { "udp", IP_UDP }, { "icmp", IP_ICMP } };

static int unknown(const char *what, const char *name, const char *const *names, struct error *err)
{
	const char *meant = opts_suggest(name, names);

	return meant ? error_set(err, -EINVAL, "there is no %s \"%s\"; did you mean \"%s\"?", what,
				 name, meant)
		     : error_set(err, -EINVAL, "there is no %s \"%s\"", what, name);
}

static int parse_end(const struct policy *p, const char *text, size_t len, bool is_left,
		     struct policy_end *out, struct error *err)
{
	const char *names[POLICY_PORTS_MAX + 1] = { NULL };
	char end[2 * POLICY_NAME_MAX + 2];

	*out = (struct policy_end){ .network = -1, .machine = -1 };
	if (!len || len >= sizeof(end))
		return error_set(err, -EINVAL,
				 "an end of a rule is NETWORK.MACHINE, NETWORK.* or internet");
	memcpy(end, text, len);
	end[len] = 0;
	if (strcmp(end, "internet") == 0) {
		out->kind = POLICY_END_INTERNET;
		return is_left ? error_set(err, -EINVAL, "nothing comes from the internet by itself; forward: leads a port in")
			       : 0;
	}
	char *machine = strchr(end, '.');
	if (!machine)
		return error_set(
			err, -EINVAL,
			"\"%s\" is no end of a rule: NETWORK.MACHINE, NETWORK.* or internet", end);
	*machine++ = 0;
	if (strcmp(end, "*") != 0 && (out->network = policy_find_network(p, end)) < 0) {
		for (unsigned i = 0; i < p->nnetworks; i++)
			names[i] = p->networks[i].name;
		return unknown("network", end, names, err);
	}
	if (strcmp(machine, "*") != 0 && (out->machine = policy_find_machine(p, machine)) < 0) {
		for (unsigned i = 0; i < p->nmachines; i++)
			names[i] = p->machines[i].name;
		return unknown("machine", machine, names, err);
	}
	if (out->network >= 0 && out->machine >= 0 && policy_find_port(p, out->machine, out->network) < 0)
		return error_set(err, -EINVAL, "machine \"%s\" is not in network \"%s\"", machine, end);
	return 0;
}

static int parse_range(const char *text, size_t len, struct policy_range *out)
{
	char copy[16], *dash;
	uint64_t first, last;

	if (!len || len >= sizeof(copy))
		return -EINVAL;
	memcpy(copy, text, len);
	copy[len] = 0;
	dash = strchr(copy, '-');
	if (dash)
		*dash++ = 0;
	if (opts_parse_uint(copy, &first) < 0 || (dash && opts_parse_uint(dash, &last) < 0))
		return -EINVAL;
	if (!dash)
		last = first;
	if (first < 1 || last > 65535 || first > last)
		return -EINVAL;
	*out = (struct policy_range){ (uint16_t)first, (uint16_t)last };
	return 0;
}

int policy_parse_what(const char *what, struct policy_rule *out, struct error *err)
{
	const char *slash = strchr(what, '/');
	size_t len = slash ? (size_t)(slash - what) : strlen(what);
	unsigned i = 0;

	while (i < ARRAY_SIZE(protos) &&
	       (strlen(protos[i].name) != len || strncmp(protos[i].name, what, len) != 0))
		i++;
	if (i == ARRAY_SIZE(protos))
		return error_set(
			err, -EINVAL,
			"\"%s\" is no protocol: any, icmp, tcp, udp, tcp/PORT, udp/PORT,PORT-PORT",
			what);
	out->proto = protos[i].proto;
	out->nports = 0;
	if (!slash)
		return 0;
	if (out->proto != IP_TCP && out->proto != IP_UDP)
		return error_set(err, -EINVAL, "only tcp and udp have ports, not %.*s", (int)len, what);
	for (const char *p = slash + 1;; p++) {
		size_t n = strcspn(p, ",");
		if (out->nports == POLICY_RANGES_MAX)
			return error_set(err, -EINVAL, "a rule has at most %d ports and ranges",
					 POLICY_RANGES_MAX);
		if (parse_range(p, n, &out->ports[out->nports]) < 0)
			return error_set(err, -EINVAL,
					 "\"%.*s\" is no port from 1 to 65535 and no range of them",
					 (int)n, p);
		out->nports++;
		p += n;
		if (!*p)
			return 0;
	}
}

static void trim(const char **text, size_t *len)
{
	while (*len && **text == ' ') {
		++*text;
		--*len;
	}
	while (*len && (*text)[*len - 1] == ' ')
		--*len;
}

int policy_parse_rule(const struct policy *p, const char *ends, const char *what,
		      struct policy_rule *out, struct error *err)
{
	const char *arrow = strstr(ends, "->"), *right;
	size_t left_len, right_len;

	memset(out, 0, sizeof(*out));
	if (!arrow)
		return error_set(err, -EINVAL, "\"%s\" is no rule: FROM -> TO", ends);
	left_len = (size_t)(arrow - ends);
	right = arrow + 2;
	right_len = strlen(right);
	trim(&ends, &left_len);
	trim(&right, &right_len);
	int r = parse_end(p, ends, left_len, true, &out->from, err);
	if (r == 0)
		r = parse_end(p, right, right_len, false, &out->to, err);
	return r == 0 && what && *what ? policy_parse_what(what, out, err) : r;
}

static void format_end(const struct policy *p, const struct policy_end *e, char *buf, size_t cap)
{
	if (e->kind == POLICY_END_INTERNET)
		snprintf(buf, cap, "internet");
	else
		snprintf(buf, cap, "%s.%s", e->network < 0 ? "*" : p->networks[e->network].name,
			 e->machine < 0 ? "*" : p->machines[e->machine].name);
}

const char *policy_format_rule(const struct policy *p, const struct policy_rule *r, char *buf, size_t cap)
{
	char from[2 * POLICY_NAME_MAX + 4], to[2 * POLICY_NAME_MAX + 4];
	const char *proto = "any";
	size_t len;

	format_end(p, &r->from, from, sizeof(from));
	format_end(p, &r->to, to, sizeof(to));
	for (unsigned i = 0; i < ARRAY_SIZE(protos); i++)
		if (protos[i].proto == r->proto)
			proto = protos[i].name;
	len = (size_t)snprintf(buf, cap, "%s -> %s : %s", from, to, proto);
	for (unsigned i = 0; i < r->nports && len < cap; i++) {
		len += (size_t)snprintf(buf + len, cap - len, "%c%u", i ? ',' : '/', r->ports[i].first);
		if (r->ports[i].last != r->ports[i].first && len < cap)
			len += (size_t)snprintf(buf + len, cap - len, "-%u", r->ports[i].last);
	}
	for (unsigned i = 0; i < r->nnames && len < cap; i++)
		len += (size_t)snprintf(buf + len, cap - len, "%s%s", i ? "," : " @", r->names[i]);
	return buf;
}

int policy_check_domain(const char *name, struct error *err)
{
	const char *p = strncmp(name, "*.", 2) == 0 ? name + 2 : name;
	size_t len = strlen(p), label = 0;

	if (!len || len > POLICY_DOMAIN_MAX - 2)
		goto bad;
	for (; *p; p++) {
		bool is_alnum = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
				(*p >= '0' && *p <= '9');
		if (*p == '.' ? !label || p[-1] == '-' || !p[1]
			      : !is_alnum && *p != '_' && (*p != '-' || !label))
			goto bad;
		label = *p == '.' ? 0 : label + 1;
		if (label > 63)
			goto bad;
	}
	if (p[-1] != '-')
		return 0;
bad:
	return error_set(err, -EINVAL, "\"%s\" is no domain name", name);
}

static unsigned count_bits(const uint8_t *mask, unsigned len)
{
	unsigned n = 0;

	while (n < len * 8 && mask[n / 8] & 0x80 >> n % 8)
		n++;
	return n;
}

int policy_block_host(struct policy *p, struct error *err)
{
	struct ifaddrs *all, *i;
	int r = 0;

	if (getifaddrs(&all) < 0)
		return error_set(err, -errno, "cannot list this host's addresses: %s", strerror(errno));
	for (i = all; i && r == 0; i = i->ifa_next) {
		struct net_prefix range;
		struct net_addr at;
		if (!i->ifa_addr || !i->ifa_netmask)
			continue;
		if (i->ifa_addr->sa_family == AF_INET) {
			const struct sockaddr_in *a = (const void *)i->ifa_addr,
						 *m = (const void *)i->ifa_netmask;
			at = net_addr_v4((const uint8_t *)&a->sin_addr);
			range = net_prefix_of(&at, 96 + count_bits((const uint8_t *)&m->sin_addr, 4));
		} else if (i->ifa_addr->sa_family == AF_INET6) {
			const struct sockaddr_in6 *a = (const void *)i->ifa_addr,
						  *m = (const void *)i->ifa_netmask;
			at = net_addr_v6(a->sin6_addr.s6_addr);
			range = net_prefix_of(&at, count_bits(m->sin6_addr.s6_addr, 16));
		} else {
			continue;
		}
		r = policy_block(p, &range);
	}
	freeifaddrs(all);
	return r == 0 ? 0 : error_set(err, r, "this host has more addresses than a policy can hold");
}
