/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP connections, one after the other: opened, ended by the server, closed.
 *
 *   connect serve PORT             in the background, once it listens
 *   connect open ADDRESS PORT N    prints the seconds that N of them took
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what)
{
	fprintf(stderr, "connect: %s: %s\n", what, strerror(errno));
	return 1;
}

static int serve(const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 128) < 0)
		return fail(port);
	if (daemon(0, 0) < 0)
		return fail("daemon");
	for (;;) {
		int conn = accept(fd, NULL, NULL);
		if (conn >= 0)
			close(conn);
	}
}

static int open_one(const struct sockaddr_in *a)
{
	char byte;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		return -1;
	int r = connect(fd, (const struct sockaddr *)a, sizeof(*a));
	if (r == 0 && recv(fd, &byte, 1, 0) != 0)
		r = -1;
	int e = errno;
	close(fd);
	errno = e;
	return r;
}

static int open_all(const char *address, const char *port, long n)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };
	struct timespec from, to;

	if (inet_pton(AF_INET, address, &a.sin_addr) != 1)
		return fail(address);
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (long i = 0; i < n; i++)
		if (open_one(&a) < 0)
			return fail(address);
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%.6f\n", (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "serve") == 0)
		return serve(argv[2]);
	if (argc == 5 && strcmp(argv[1], "open") == 0)
		return open_all(argv[2], argv[3], atol(argv[4]));
	fprintf(stderr, "usage: connect serve PORT | open ADDRESS PORT N\n");
	return 2;
}
