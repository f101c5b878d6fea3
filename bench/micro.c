/* SPDX-License-Identifier: Apache-2.0 */
/*
 * micro TEST [N] - one small piece of work, N times its unit, and a checksum of what it computed.
 *
 * The tests are what whole programs consist of: arithmetic, calls, branches through tables, memory near and far,
 * floating point, and each service of a kernel by itself.  Every result depends on all the work, and is the same on
 * every machine.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char **args; /* after TEST and N */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint32_t lcg(uint32_t *s)
{
	return *s = *s * 1664525 + 1013904223;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
	return (h ^ v) * 0x100000001b3ULL;
}

/* ---- computing ---- */

static uint64_t test_alu(long n)
{
	uint64_t x = 1;

	for (long i = 0; i < n * 1000000; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		x ^= x >> 13;
	}
	return x;
}

__attribute__((noinline)) static unsigned fib(unsigned n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t test_calls(long n)
{
	uint64_t sum = 0;

	for (long i = 0; i < n; i++)
		sum += fib(27);
	return sum;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t test_sort(long n)
{
	size_t count = 100000;
	uint32_t *a = malloc(count * sizeof(*a)), seed = 1;
	uint64_t h = 0;

	for (long r = 0; r < n; r++) {
		for (size_t i = 0; i < count; i++)
			a[i] = lcg(&seed);
		qsort(a, count, sizeof(*a), compare);
		h = mix(h, a[count / 3]);
	}
	free(a);
	return h;
}

/* An interpreter's loop: one indirect jump for each operation. */
static uint64_t test_dispatch(long n)
{
	static const void *const labels[] = { &&add, &&xor, &&mul, &&sub, && or, &&inc, &&shl, &&shr };
	static uint8_t program[4096];
	uint32_t seed = 1;
	uint64_t x = 1;
	long left = n * 1000000, i = 0;

	for (size_t k = 0; k < sizeof(program); k++)
		program[k] = lcg(&seed) >> 28 & 7;
#define NEXT                                                                                       \
	do {                                                                                       \
		if (!left--)                                                                       \
			return x;                                                                  \
		goto *labels[program[i++ & 4095]];                                                 \
	} while (0)
	NEXT;
add:
	x += 1;
	NEXT;
	xor : x ^= 3;
	NEXT;
mul:
	x *= 5;
	NEXT;
sub:
	x -= 7;
	NEXT;
	or : x |= 9;
	NEXT;
inc:
	x += 11;
	NEXT;
shl:
	x <<= 1;
	NEXT;
shr:
	x = x >> 1 | x << 63;
	NEXT;
#undef NEXT
}

/* Updates all over 16 MiB: a TLB miss, nearly, for each. */
static uint64_t test_random(long n)
{
	size_t size = 16 << 20, mask = size / 8 - 1;
	uint64_t *a = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t s = 1, h = 0;

	if (a == MAP_FAILED)
		die("mmap");
	for (long i = 0; i < n * 1000000; i++) {
		s = s * 6364136223846793005ULL + 1;
		a[(s >> 33) & mask] ^= s;
	}
	for (size_t i = 0; i <= mask; i += 509)
		h = mix(h, a[i]);
	munmap(a, size);
	return h;
}

/* The next address is in the last word read. */
static uint64_t test_chase(long n)
{
	uint32_t count = 100000, seed = 1;
	uint32_t *next = malloc(count * sizeof(*next)), *order = malloc(count * sizeof(*order)), at = 0;

	for (uint32_t i = 0; i < count; i++)
		order[i] = i;
	for (uint32_t i = count - 1; i; i--) {
		uint32_t j = lcg(&seed) % (i + 1), t = order[i];

		order[i] = order[j];
		order[j] = t;
	}
	for (uint32_t i = 0; i < count; i++)
		next[order[i]] = order[(i + 1) % count];
	for (long i = 0; i < n * 1000000 + 7; i++)
		at = next[at];
	free(next);
	free(order);
	return at;
}

static uint64_t bits_of(double d)
{
	uint64_t u;

	memcpy(&u, &d, sizeof(u));
	return u;
}

/* Five bodies, n times 10,000 steps. */
static uint64_t test_nbody(long n)
{
	double p[5][3], v[5][3] = { { 0 } }, m[5] = { 39.4, 0.037, 0.011, 0.0017, 0.002 };

	for (int i = 0; i < 15; i++)
		p[i / 3][i % 3] = (i * 7 % 11) - 5 + i * 0.01;
	for (long step = 0; step < n * 10000; step++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				double d[3], r2 = 0.01;

				for (int k = 0; k < 3; k++) {
					d[k] = p[i][k] - p[j][k];
					r2 += d[k] * d[k];
				}
				double f = 0.001 / (r2 * __builtin_sqrt(r2));

				for (int k = 0; k < 3; k++) {
					v[i][k] -= d[k] * m[j] * f;
					v[j][k] += d[k] * m[i] * f;
				}
			}
		for (int i = 0; i < 15; i++)
			p[i / 3][i % 3] += 0.001 * v[i / 3][i % 3];
	}
	return mix(bits_of(p[0][0]), bits_of(v[4][2]));
}

#define LU 200
/* Gaussian elimination with pivoting, as LINPACK does it. */
static uint64_t test_linpack(long n)
{
	static double a[LU][LU], b[LU];
	uint64_t h = 0;

	for (long r = 0; r < n; r++) {
		uint32_t seed = (uint32_t)r + 1;

		for (int i = 0; i < LU; i++) {
			for (int j = 0; j < LU; j++)
				a[i][j] = (double)lcg(&seed) / 4294967296.0 - 0.5;
			b[i] = (double)lcg(&seed) / 4294967296.0;
		}
		for (int k = 0; k < LU; k++) {
			int best = k;

			for (int i = k + 1; i < LU; i++)
				if (__builtin_fabs(a[i][k]) > __builtin_fabs(a[best][k]))
					best = i;
			for (int j = 0; j < LU; j++) {
				double t = a[k][j];

				a[k][j] = a[best][j];
				a[best][j] = t;
			}
			double t = b[k];

			b[k] = b[best];
			b[best] = t;
			for (int i = k + 1; i < LU; i++) {
				double f = a[i][k] / a[k][k];

				for (int j = k; j < LU; j++)
					a[i][j] -= f * a[k][j];
				b[i] -= f * b[k];
			}
		}
		h = mix(h, bits_of(b[LU - 1] / a[LU - 1][LU - 1]));
	}
	return h;
}

/* Embedded-style work in turns: a linked list, small matrices, a state machine over text, CRC over it all. */
struct node {
	struct node *next;
	uint16_t key, data;
};

static uint16_t crc16(uint16_t crc, uint32_t v, int bits)
{
	for (int i = 0; i < bits; i++, v >>= 1)
		crc = (uint16_t)((crc ^ v) & 1 ? crc >> 1 ^ 0xa001 : crc >> 1);
	return crc;
}

static struct node *merge_sort(struct node *list, unsigned count)
{
	if (count < 2) {
		if (list)
			list->next = NULL;
		return list;
	}
	struct node *second = list, *head = NULL, **tail = &head;

	for (unsigned i = 0; i < count / 2; i++)
		second = second->next;
	struct node *b = merge_sort(second, count - count / 2), *a = merge_sort(list, count / 2);

	while (a && b) {
		struct node **from = a->key <= b->key ? &a : &b;

		*tail = *from;
		tail = &(*tail)->next;
		*from = (*from)->next;
	}
	*tail = a ? a : b;
	return head;
}

static uint16_t list_part(uint16_t crc, uint32_t *seed)
{
	static struct node nodes[128];

	for (int i = 0; i < 128; i++)
		nodes[i] = (struct node){ i < 127 ? &nodes[i + 1] : NULL,
					  (uint16_t)(lcg(seed) >> 16), (uint16_t)i };
	for (struct node *p = merge_sort(nodes, 128); p; p = p->next)
		crc = crc16(crc, p->data, 8);
	return crc;
}

static uint16_t matrix_part(uint16_t crc, uint32_t *seed)
{
	static int32_t a[16][16], b[16][16];

	for (int i = 0; i < 256; i++) {
		a[i / 16][i % 16] = (int16_t)(lcg(seed) >> 16);
		b[i / 16][i % 16] = (int16_t)(lcg(seed) >> 16);
	}
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 16; j++) {
			uint32_t sum = 0;

			for (int k = 0; k < 16; k++)
				sum += (uint32_t)(a[i][k] * b[k][j]);
			crc = crc16(crc, sum, 4);
		}
	return crc;
}

static uint16_t state_part(uint16_t crc)
{
	static const char text[] = "5012,1.2e-3,+77,0x1f,-874.9,T0.3e-1F,3.14159e+0,abc,007,1e5,";
	enum { START, SIGN, INT, FRACTION, EXPONENT, BAD } state = START;
	unsigned counts[6] = { 0 };

	for (int r = 0; r < 8; r++)
		for (const char *p = text; *p; p++) {
			switch (*p) {
			case ',':
				state = START;
				break;
			case '+':
			case '-':
				state = state == START || state == EXPONENT ? SIGN : BAD;
				break;
			case '.':
				state = state <= INT ? FRACTION : BAD;
				break;
			case 'e':
				state = state == INT || state == FRACTION ? EXPONENT : BAD;
				break;
			default:
				state = *p < '0' || *p > '9' ? BAD : state < INT ? INT : state;
			}
			counts[state]++;
		}
	for (int i = 0; i < 6; i++)
		crc = crc16(crc, counts[i], 16);
	return crc;
}

static uint64_t test_core(long n)
{
	uint32_t seed = 1;
	uint16_t crc = 0;

	for (long i = 0; i < n * 100; i++)
		crc = state_part(matrix_part(list_part(crc, &seed), &seed));
	return crc;
}

static uint64_t test_copy(long n)
{
	size_t size = 1 << 20;
	uint8_t *a = malloc(size), *b = malloc(size);
	uint64_t h = 0;

	memset(a, 1, size);
	for (long i = 0; i < n * 100; i++) {
		memcpy(b, a, size);
		a[i % 1024] = b[i % 4096] + 1;
		h = mix(h, b[i % 1000]);
	}
	free(a);
	free(b);
	return h;
}

static uint64_t test_text(long n)
{
	uint64_t h = 0;
	char b[256];

	for (long i = 0; i < n * 10000; i++) {
		int len = snprintf(b, sizeof(b), "%ld %s %lx %f", i, "hello", i * 77, (double)i * 0.5);

		h = mix(h, (uint64_t)len + (uint64_t)strtol(b, NULL, 10) + strlen(b));
	}
	return h;
}

/* ---- the kernel's services ---- */

static uint64_t test_getppid(long n)
{
	uint64_t same = 0;
	long parent = syscall(SYS_getppid);

	for (long i = 0; i < n * 10000; i++)
		same += syscall(SYS_getppid) == parent;
	return same;
}

static void all(ssize_t r, ssize_t want, const char *what)
{
	if (r != want)
		die(what);
}

static pid_t fork_child(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	return pid;
}

static void reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status != 0)
		die("child");
}

static uint64_t test_pipe(long n)
{
	int there[2], back[2];
	unsigned char c = 0;

	if (pipe(there) < 0 || pipe(back) < 0)
		die("pipe");
	pid_t pid = fork_child();

	if (pid == 0) {
		close(there[1]);
		while (read(there[0], &c, 1) == 1) {
			c++;
			all(write(back[1], &c, 1), 1, "write");
		}
		_exit(0);
	}
	close(there[0]);
	for (long i = 0; i < n * 1000; i++) {
		all(write(there[1], &c, 1), 1, "write");
		all(read(back[0], &c, 1), 1, "read");
	}
	close(there[1]);
	reap(pid);
	return c;
}

static uint64_t test_fault(long n)
{
	size_t size = 8 << 20;
	uint64_t touched = 0;

	for (long r = 0; r < n; r++) {
		char *a = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (a == MAP_FAILED)
			die("mmap");
		madvise(a, size, MADV_NOHUGEPAGE);
		for (size_t i = 0; i < size; i += 4096)
			touched += ++a[i];
		munmap(a, size);
	}
	return touched;
}

static uint64_t test_fork(long n)
{
	for (long i = 0; i < n; i++) {
		pid_t pid = fork_child();

		if (pid == 0)
			_exit(0);
		reap(pid);
	}
	return (uint64_t)n;
}

static uint64_t test_exec(long n)
{
	for (long i = 0; i < n; i++) {
		pid_t pid = fork_child();

		if (pid == 0) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		reap(pid);
	}
	return (uint64_t)n;
}

static volatile sig_atomic_t signals;

static void on_signal(int sig)
{
	(void)sig;
	signals++;
}

static uint64_t test_signal(long n)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGUSR1, &sa, NULL);
	for (long i = 0; i < n * 1000; i++)
		raise(SIGUSR1);
	return (uint64_t)signals;
}

/* ---- disk and network ---- */

#define SECTOR 4096
/* 4 KiB at random places of the file or disk args[0], past the page cache; writes go to its second half. */
static uint64_t disk(long n, bool is_write)
{
	int fd = open(args[0], (is_write ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
	off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	uint64_t h = 0, s = 1;
	uint8_t *buf = NULL;

	if (size < SECTOR || posix_memalign((void **)&buf, SECTOR, SECTOR))
		die(args[0]);
	memset(buf, 0x5a, SECTOR);
	for (long i = 0; i < n * 100; i++) {
		s = s * 6364136223846793005ULL + 1;
		off_t at = (off_t)((s >> 33) % (uint64_t)(size / SECTOR / 2)) * SECTOR +
			   (is_write ? size / 2 : 0);

		if (is_write)
			all(pwrite(fd, buf, SECTOR, at), SECTOR, "pwrite");
		else
			all(pread(fd, buf, SECTOR, at), SECTOR, "pread");
		h = mix(h, is_write ? (uint64_t)at : buf[i % SECTOR]);
	}
	if (is_write && fsync(fd) < 0)
		die("fsync");
	close(fd);
	free(buf);
	return h;
}

static uint64_t test_diskread(long n)
{
	return disk(n, false);
}

static uint64_t test_diskwrite(long n)
{
	return disk(n, true);
}

/*
 * n MiB to or from args[0]:args[1].  The first byte says which way, from here; at the end the other side says
 * how many MiB came, one byte each: nothing counts that did not arrive.
 */
static uint64_t net(long n, char way)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(args[1])) };
	size_t size = 1 << 20, got = 0;
	char *buf = calloc(1, size), count[8] = { 0 };

	if (!buf || inet_pton(AF_INET, args[0], &to.sin_addr) != 1)
		die(args[0]);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		die("connect");
	snprintf(count, sizeof(count), "%c%06ld", way, n);
	all(send(fd, count, 7, 0), 7, "send");
	if (way == 's') {
		for (long i = 0; i < n; i++)
			for (size_t at = 0; at < size;) {
				ssize_t r = send(fd, buf + at, size - at, 0);

				if (r <= 0)
					die("send");
				at += (size_t)r;
			}
		all(recv(fd, count, 6, MSG_WAITALL), 6, "recv");
		got = strtoul(count, NULL, 10) << 20;
	} else {
		for (ssize_t r; (r = recv(fd, buf, size, 0)) > 0;)
			got += (size_t)r;
	}
	close(fd);
	free(buf);
	return got >> 20;
}

static uint64_t test_send(long n)
{
	return net(n, 's');
}

static uint64_t test_receive(long n)
{
	return net(n, 'r');
}

// clang-format off
static const struct {
	const char *name;
	uint64_t (*run)(long n);
	int nargs;
} tests[] = {
	{ "alu", test_alu, 0 },           { "calls", test_calls, 0 },         { "sort", test_sort, 0 },
	{ "dispatch", test_dispatch, 0 }, { "random", test_random, 0 },       { "chase", test_chase, 0 },
	{ "nbody", test_nbody, 0 },       { "linpack", test_linpack, 0 },     { "core", test_core, 0 },
	{ "copy", test_copy, 0 },         { "text", test_text, 0 },           { "getppid", test_getppid, 0 },
	{ "pipe", test_pipe, 0 },         { "fault", test_fault, 0 },         { "fork", test_fork, 0 },
	{ "exec", test_exec, 0 },         { "signal", test_signal, 0 },
	{ "diskread", test_diskread, 1 }, { "diskwrite", test_diskwrite, 1 },
	{ "send", test_send, 2 },         { "receive", test_receive, 2 },
};
// clang-format on

int main(int argc, char **argv)
{
	long n = argc > 2 ? strtol(argv[2], NULL, 10) : 1;

	args = argv + 3;
	for (size_t i = 0; argc > 1 && i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (strcmp(argv[1], tests[i].name) != 0 || argc < 3 + tests[i].nargs)
			continue;
		printf("%s %ld %016llx\n", argv[1], n, (unsigned long long)tests[i].run(n));
		return 0;
	}
	fprintf(stderr, "usage: micro TEST N [ARGS]; there are");
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
		fprintf(stderr, " %s", tests[i].name);
	fprintf(stderr, "\n");
	return 2;
}
