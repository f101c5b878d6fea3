/* SPDX-License-Identifier: Apache-2.0 */
/*
 * viv-tls: links of a migration over TLS 1.3, by GnuTLS.  A program of its own, so that neither viv nor the process of a machine has a parser of TLS.
 * viv starts it (tls.c):
 *
 *   viv-tls connect FOLDER HOST    3: connected TCP socket, 4: stream socket of the link, 5: pipe
 *   viv-tls listen FOLDER PATH     3: listening TCP socket, 4: pipe; who is believed gets a connection to the socket PATH
 *
 * Into the pipe goes "ok" when the peer is believed, or the listener is ready; else one sentence.  Both sides show a certificate that ca.pem of FOLDER vouches
 * for; that of whom one connects to is for HOST.  A listener has a process for each connection: what an unknown peer sends is read by one that has nothing else.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "cli/tcplink.h"
#include "ctl/socket.h"

#define PRIORITY     "NORMAL:-VERS-ALL:+VERS-TLS1.3"
#define HANDSHAKE_MS 10000
#define PIECE	     16384 /* what one record of TLS carries */
#define MAX_CHILDREN 64 /* connections at a time, of links and of those that are not believed yet */

struct relay {
	gnutls_session_t session;
	int net_fd, link_fd;
};

static int word_fd = -1; /* whom to tell; -1: standard error */

/* One sentence, and the end. */
__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof(text) - 1, fmt, ap);

	va_end(ap);
	if (n > (int)sizeof(text) - 2)
		n = (int)sizeof(text) - 2;
	for (int i = 0; i < n; i++) /* names come from the peer */
		if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
			text[i] = '?';
	text[n] = '\n';
	if (word_fd < 0)
		fprintf(stderr, "viv: %.*s", n + 1, text);
	else if (write(word_fd, text, (size_t)n + 1) < 0)
		fprintf(stderr, "viv: %.*s", n + 1, text);
	exit(1);
}

static void say_ok(void)
{
	if (word_fd >= 0 && write(word_fd, "ok\n", 3) != 3)
		exit(1);
	if (word_fd >= 0)
		close(word_fd);
	word_fd = -1;
}

/* ---- who is who ---- */

static char *in_folder(const char *folder, const char *name)
{
	char *path;

	if (asprintf(&path, "%s/%s", folder, name) < 0)
		fail("no memory");
	return path;
}

static gnutls_certificate_credentials_t load(const char *folder)
{
	gnutls_certificate_credentials_t c;
	char *ca = in_folder(folder, "ca.pem"), *cert = in_folder(folder, "cert.pem"),
	     *key = in_folder(folder, "key.pem");
	struct stat st;
	int r = gnutls_certificate_allocate_credentials(&c);

	if (r < 0)
		fail("TLS cannot be used: %s", gnutls_strerror(r));
	r = gnutls_certificate_set_x509_trust_file(c, ca, GNUTLS_X509_FMT_PEM);
	if (r <= 0)
		fail("no certificates of whom to believe in %s: %s", ca,
		     r ? gnutls_strerror(r) : "there are none in it");
	if (stat(key, &st) == 0 && st.st_mode & 077)
		fail("%s can be read by others; chmod 600 makes it this user's alone", key);
	r = gnutls_certificate_set_x509_key_file(c, cert, key, GNUTLS_X509_FMT_PEM);
	if (r < 0)
		fail("cannot use %s with %s: %s", cert, key, gnutls_strerror(r));
	free(ca);
	free(cert);
	free(key);
	return c;
}

/* Why the peer is not believed, for people. */
static void fail_handshake(gnutls_session_t s, int r)
{
	gnutls_datum_t why = { NULL, 0 };

	if (r == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR &&
	    gnutls_certificate_verification_status_print(gnutls_session_get_verify_cert_status(s),
							 GNUTLS_CRT_X509, &why, 0) == 0)
		fail("the peer's certificate is not believed: %s", why.data);
	if (r == GNUTLS_E_FATAL_ALERT_RECEIVED)
		fail("the peer does not believe this host's certificate, or speaks no TLS 1.3: it "
		     "says \"%s\"",
		     gnutls_alert_get_name(gnutls_alert_get(s)));
	fail("no TLS connection could be made: %s", gnutls_strerror(r));
}

static gnutls_session_t handshake(gnutls_certificate_credentials_t c, int fd, const char *host)
{
	gnutls_typed_vdata_st want[2];
	unsigned n = 0;
	gnutls_session_t s;
	int r = gnutls_init(&s, (host ? GNUTLS_CLIENT : GNUTLS_SERVER) | GNUTLS_NO_TICKETS |
					GNUTLS_NO_SIGNAL);

	if (r == 0)
		r = gnutls_priority_set_direct(s, PRIORITY, NULL);
	if (r == 0)
		r = gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, c);
	if (r < 0)
		fail("TLS cannot be used: %s", gnutls_strerror(r));
	if (host) {
		want[n].type = GNUTLS_DT_DNS_HOSTNAME; /* addresses, too */
		want[n].data = (unsigned char *)(uintptr_t)host;
		want[n++].size = 0;
	} else {
		gnutls_certificate_server_set_request(s, GNUTLS_CERT_REQUIRE);
	}
	want[n].type = GNUTLS_DT_KEY_PURPOSE_OID;
	want[n].data = (unsigned char *)(uintptr_t)(host ? GNUTLS_KP_TLS_WWW_SERVER
							 : GNUTLS_KP_TLS_WWW_CLIENT);
	want[n++].size = 0;
	gnutls_session_set_verify_cert2(s, want, n, 0);
	gnutls_transport_set_int(s, fd);
	gnutls_handshake_set_timeout(s, HANDSHAKE_MS);
	do
		r = gnutls_handshake(s);
	while (r < 0 && !gnutls_error_is_fatal(r));
	if (r < 0) {
		(void)gnutls_alert_send_appropriate(s, r);
		fail_handshake(s, r);
	}
	return s;
}

/*
 * In TLS 1.3 a client's side of the handshake ends before the server has looked at its certificate: both say one byte first, the server when it believes
 * the client.
 */
static void greet(gnutls_session_t s, bool is_client)
{
	char byte = 'v';
	ssize_t r;

	if (!is_client) {
		r = gnutls_record_send(s, &byte, 1);
		if (r != 1)
			fail("the peer is gone: %s", gnutls_strerror((int)r));
		return;
	}
	gnutls_record_set_timeout(s, HANDSHAKE_MS);
	do
		r = gnutls_record_recv(s, &byte, 1);
	while (r == GNUTLS_E_INTERRUPTED || r == GNUTLS_E_AGAIN);
	if (r < 0)
		fail_handshake(s, (int)r);
	if (r != 1 || byte != 'v')
		fail("what answers is no viv receive");
	gnutls_record_set_timeout(s, GNUTLS_INDEFINITE_TIMEOUT);
}

/* ---- passing on ---- */

static void *to_net(void *arg)
{
	struct relay *r = arg;
	char buf[PIECE];
	ssize_t n, sent;

	while ((n = read(r->link_fd, buf, sizeof(buf))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;
		for (ssize_t done = 0; done < n; done += sent) {
			sent = gnutls_record_send(r->session, buf + done, (size_t)(n - done));
			if (sent == GNUTLS_E_INTERRUPTED || sent == GNUTLS_E_AGAIN)
				sent = 0;
			if (sent < 0) { /* the link ends on both sides */
				shutdown(r->link_fd, SHUT_RDWR);
				return NULL;
			}
		}
	}
	/* In order, so that the peer knows that nothing is missing. */
	(void)gnutls_bye(r->session, GNUTLS_SHUT_WR);
	return NULL;
}

static void from_net(struct relay *r)
{
	char buf[PIECE];
	ssize_t n;

	for (;;) {
		n = gnutls_record_recv(r->session, buf, sizeof(buf));
		if (n == GNUTLS_E_INTERRUPTED || n == GNUTLS_E_AGAIN)
			continue;
		if (n <= 0)
			break;
		for (ssize_t done = 0, w; done < n; done += w) {
			w = send(r->link_fd, buf + done, (size_t)(n - done), MSG_NOSIGNAL);
			if (w < 0 && errno == EINTR)
				w = 0;
			if (w < 0) { /* nobody wants it any more */
				shutdown(r->net_fd, SHUT_RDWR);
				return;
			}
		}
	}
	shutdown(r->link_fd, n == 0 ? SHUT_WR : SHUT_RDWR);
}

static int relay(gnutls_session_t s, int net_fd, int link_fd)
{
	struct relay r = { s, net_fd, link_fd };
	pthread_t thread;

	if (pthread_create(&thread, NULL, to_net, &r) != 0)
		fail("cannot start a thread");
	from_net(&r);
	pthread_join(thread, NULL);
	return 0;
}

/* ---- verbs ---- */

static int do_connect(const char *folder, const char *host)
{
	word_fd = 5;
	gnutls_certificate_credentials_t c = load(folder);
	gnutls_session_t s = handshake(c, 3, host);

	greet(s, true);
	say_ok();
	return relay(s, 3, 4);
}

static int serve(gnutls_certificate_credentials_t c, int fd, const char *path)
{
	struct error err;

	setsid(); /* Ctrl-C ends the listener, not a link */
	tcplink_tune(fd);
	gnutls_session_t s = handshake(c, fd, NULL);
	int link = socket_connect(path, &err);

	if (link < 0)
		fail("viv receive has ended");
	greet(s, false);
	return relay(s, fd, link);
}

static int do_listen(const char *folder, const char *path)
{
	unsigned nchildren = 0;

	word_fd = 4;
	gnutls_certificate_credentials_t c = load(folder);

	say_ok();
	for (;;) {
		while (nchildren && waitpid(-1, NULL, nchildren >= MAX_CHILDREN ? 0 : WNOHANG) > 0)
			nchildren--;
		int fd = accept4(3, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS))
			usleep(100000);
		if (fd < 0 && errno == EINVAL)
			fail("the socket is not one that listens");
		if (fd < 0)
			continue;
		pid_t pid = fork();

		if (pid == 0) {
			close(3);
			exit(serve(c, fd, path));
		}
		if (pid < 0)
			fprintf(stderr, "viv: a connection is refused: %s\n", strerror(errno));
		else
			nchildren++;
		close(fd);
	}
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && !strcmp(argv[1], "connect"))
		return do_connect(argv[2], argv[3]);
	if (argc == 4 && !strcmp(argv[1], "listen"))
		return do_listen(argv[2], argv[3]);
	fprintf(stderr, "viv-tls is started by viv migrate and viv receive\n");
	return 2;
}
