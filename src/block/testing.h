/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of images share: a folder, a loop, requests, random work against a model, and qemu-img's opinion. */
#ifndef VIV_BLOCK_TESTING_H
#define VIV_BLOCK_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "block/image.h"

struct fixture {
	char dir[64];
	struct loop *loop;
	uint32_t seed;
	bool has_qemu_img;
	char *paths[32];
	unsigned npaths;
};
int testing_setup(void **state);
int testing_teardown(void **state);

/** testing_path() - "DIR/name", the fixture's. */
const char *testing_path(struct fixture *f, const char *name);
uint32_t testing_random(struct fixture *f);

/** testing_sh() - a shell command in the folder; returns its exit status. */
int testing_sh(struct fixture *f, const char *fmt, ...) _printf_(2, 3);
/** testing_qemu() - qemu-img with these arguments, which must succeed; false: it is not installed (told once). */
bool testing_qemu(struct fixture *f, const char *fmt, ...) _printf_(2, 3);

struct block_dev *testing_open(struct fixture *f, struct block_open o);
int testing_run(struct fixture *f, struct block_dev *b, struct block_req req);
int testing_rw(struct fixture *f, struct block_dev *b, enum block_op op, uint64_t at, void *buf,
	       size_t len);

/** testing_work() - @rounds of random requests, several at a time, against the model @shadow of the whole disk. */
void testing_work(struct fixture *f, struct block_dev *b, uint8_t *shadow, uint64_t size, unsigned rounds);
void testing_expect(struct fixture *f, struct block_dev *b, const uint8_t *shadow, uint64_t size);

/** testing_judge() - the closed image holds @shadow and is clean, for us and for qemu-img. */
void testing_judge(struct fixture *f, const char *name, const char *format, const uint8_t *shadow,
		   uint64_t size);
/** testing_fill() - a file of random runs of bytes and zeroes, which go to @shadow as well. */
void testing_fill(struct fixture *f, const char *name, uint8_t *shadow, uint64_t size);

#endif
