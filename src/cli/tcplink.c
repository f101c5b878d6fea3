/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/tcplink.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/opts.h"

#define DEAD_MS 60000 /* that what was sent may stay without an answer */

int tcplink_parse(struct tcplink_address *out, const char *scheme, const char *text, struct error *err)
{
	const char *end = text[0] == '[' ? strchr(text, ']') : NULL;
	const char *host = text[0] == '[' ? text + 1 : text;
	const char *colon = end ? (end[1] == ':' ? end + 1 : NULL) : strrchr(text, ':');
	size_t len = colon ? (size_t)((end ? end : colon) - host) : 0;
	uint64_t port;

	if (!colon || (text[0] == '[' && !end) || len >= sizeof(out->host) ||
	    strcspn(host, " \t\n/@") < len || (!end && memchr(host, ':', len)) ||
	    opts_parse_uint(colon + 1, &port) < 0 || port > 65535)
		return error_set(err, -EINVAL, "\"%s://%s\" is no address; it is %s://HOST:PORT",
				 scheme, text, scheme);
	snprintf(out->host, sizeof(out->host), "%.*s", (int)len, host);
	snprintf(out->port, sizeof(out->port), "%llu", (unsigned long long)port);
	return 0;
}

static int resolve(const struct tcplink_address *a, bool is_passive, struct addrinfo **list,
		   struct error *err)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
					.ai_flags = AI_NUMERICSERV | (is_passive ? AI_PASSIVE : 0) };
	int e = getaddrinfo(a->host[0] ? a->host : NULL, a->port, &hints, list);

	return e ? error_set(err, -EINVAL, "\"%s\" is no host: %s", a->host,
			     e == EAI_SYSTEM ? strerror(errno) : gai_strerror(e))
		 : 0;
}

static void set(int fd, int level, int option, int value, const char *what)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)) < 0)
		log_debug("tcp", "cannot set %s: %s", what, strerror(errno));
}

void tcplink_tune(int fd)
{
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
	set(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE");
	set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, DEAD_MS, "TCP_USER_TIMEOUT");
}

int tcplink_connect(const struct tcplink_address *a, struct error *err)
{
	struct addrinfo *list = NULL;
	int r = a->host[0] ? resolve(a, false, &list, err)
			   : error_set(err, -EINVAL, "where to? The host is missing");

	if (r < 0)
		return r;
	r = -ENOENT;
	for (const struct addrinfo *i = list; i && r < 0; i = i->ai_next) {
		int fd = socket(i->ai_family, i->ai_socktype | SOCK_CLOEXEC, i->ai_protocol);

		if (fd >= 0 && connect(fd, i->ai_addr, i->ai_addrlen) == 0) {
			r = fd;
			break;
		}
		r = error_set(err, -errno, "cannot connect to %s port %s: %s", a->host, a->port,
			      strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	freeaddrinfo(list);
	if (r >= 0)
		tcplink_tune(r);
	return r;
}

static void learn_port(struct tcplink_address *a, int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	if (getsockname(fd, (struct sockaddr *)&ss, &len) == 0)
		(void)getnameinfo((struct sockaddr *)&ss, len, NULL, 0, a->port, sizeof(a->port),
				  NI_NUMERICSERV);
}

int tcplink_listen(struct tcplink_address *a, struct error *err)
{
	struct addrinfo *list = NULL;
	int r = resolve(a, true, &list, err);

	if (r < 0)
		return r;
	r = -ENOENT;
	for (const struct addrinfo *i = list; i && r < 0; i = i->ai_next) {
		int fd = socket(i->ai_family, i->ai_socktype | SOCK_CLOEXEC, i->ai_protocol);

		if (fd >= 0)
			set(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
		if (fd >= 0 && bind(fd, i->ai_addr, i->ai_addrlen) == 0 && listen(fd, 64) == 0) {
			r = fd;
			break;
		}
		r = error_set(err, -errno, "cannot listen on port %s%s%s: %s", a->port,
			      a->host[0] ? " of " : "", a->host, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	freeaddrinfo(list);
	if (r >= 0)
		learn_port(a, r);
	return r;
}
