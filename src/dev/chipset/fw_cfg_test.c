/* SPDX-License-Identifier: Apache-2.0 */
#include <endian.h>

#include "dev/chipset/fw_cfg.h"
#include "dev/testing.h"

static struct test_env t;
static struct fw_cfg *f;

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(fw_cfg_create(&f, &t.env, NULL), 0);
	assert_int_equal(fw_cfg_add_u64(f, FW_CFG_RAM_SIZE, 0x123456789), 0);
	assert_int_equal(fw_cfg_add_u16(f, FW_CFG_NB_CPUS, 4), 0);
	assert_int_equal(fw_cfg_add_bytes(f, FW_CFG_ARCH_LOCAL + 3, "e820!", 5), 0);
	assert_int_equal(fw_cfg_add_file(f, "etc/one", "0123456789", 10), 0);
	assert_int_equal(fw_cfg_add_file(f, "etc/two", "", 0), 0);
	return 0;
}

static int teardown(void **state)
{
	f->dev.cls->destroy(&f->dev);
	test_env_fini(&t);
	return 0;
}

static void pick(uint16_t key)
{
	bus_write(t.env.bus, BUS_PIO, 0x510, 2, key);
}

static void read_bytes(void *out, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		((uint8_t *)out)[i] = test_inb(&t, 0x511);
}

static void test_ports(void **state)
{
	char buf[16] = { 0 };
	uint64_t v = 0;

	pick(FW_CFG_SIGNATURE);
	read_bytes(buf, 4);
	assert_string_equal(buf, "QEMU");
	pick(FW_CFG_ID);
	read_bytes(&v, 4);
	assert_int_equal(v, 3);
	pick(FW_CFG_RAM_SIZE);
	read_bytes(&v, 8);
	assert_true(v == 0x123456789);
	assert_int_equal(test_inb(&t, 0x511), 0); /* past the end */
	pick(FW_CFG_NB_CPUS);
	v = 0;
	read_bytes(&v, 2);
	assert_int_equal(v, 4);
	pick(FW_CFG_ARCH_LOCAL + 3);
	read_bytes(buf, 5);
	assert_memory_equal(buf, "e820!", 5);
	pick(0x4000 | FW_CFG_NB_CPUS); /* the old write channel reads the same */
	assert_int_equal(test_inb(&t, 0x511), 4);
	pick(0x3fff);
	assert_int_equal(test_inb(&t, 0x511), 0);
	pick(0xffff);
	assert_int_equal(test_inb(&t, 0x511), 0);
	test_outb(&t, 0x511, 1);
	test_outb(&t, 0x510, 1);
}

static void test_directory(void **state)
{
	uint8_t d[4 + 2 * 64];
	uint32_t v;

	pick(FW_CFG_FILE_DIR);
	read_bytes(d, sizeof(d));
	memcpy(&v, d, 4);
	assert_int_equal(be32toh(v), 2);
	memcpy(&v, d + 4, 4);
	assert_int_equal(be32toh(v), 10);
	assert_int_equal(d[8] << 8 | d[9], FW_CFG_FILE_FIRST);
	assert_string_equal((char *)d + 12, "etc/one");
	assert_string_equal((char *)d + 4 + 64 + 8, "etc/two");
	pick(FW_CFG_FILE_FIRST);
	assert_int_equal(test_inb(&t, 0x511), '0');
}

static void test_bad_additions(void **state)
{
	char name[64];

	assert_int_equal(fw_cfg_add_file(f, "etc/one", "", 0), -EEXIST);
	assert_int_equal(fw_cfg_add_file(f, "", "", 0), -EINVAL);
	memset(name, 'x', sizeof(name));
	name[56] = 0;
	assert_int_equal(fw_cfg_add_file(f, name, "", 0), -EINVAL);
	name[55] = 0;
	assert_int_equal(fw_cfg_add_file(f, name, "", 0), 0);
	assert_int_equal(fw_cfg_add_bytes(f, FW_CFG_FILE_FIRST, "", 0), -EINVAL);
	assert_int_equal(fw_cfg_add_bytes(f, FW_CFG_FILE_DIR, "", 0), -EINVAL);
	assert_int_equal(fw_cfg_add_bytes(f, 0x1000, "", 0), -EINVAL);
	assert_int_equal(fw_cfg_add_bytes(f, 1, "", (size_t)FW_CFG_MAX_BLOB + 1), -EINVAL);
	for (unsigned i = 3; i < FW_CFG_FILE_SLOTS; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		assert_int_equal(fw_cfg_add_file(f, name, "x", 1), 0);
	}
	assert_int_equal(fw_cfg_add_file(f, "one too many", "x", 1), -ENOSPC);
	/* replaced */
	assert_int_equal(fw_cfg_add_u16(f, FW_CFG_NB_CPUS, 9), 0);
	pick(FW_CFG_NB_CPUS);
	assert_int_equal(test_inb(&t, 0x511), 9);
}

static uint32_t dma(uint32_t control, uint32_t len, uint64_t addr)
{
	struct {
		uint32_t control, len;
		uint64_t addr;
	} a = { htobe32(control), htobe32(len), htobe64(addr) };

	assert_int_equal(ram_write(&t.ram, 0x1000, &a, sizeof(a)), 0);
	bus_write(t.env.bus, BUS_PIO, 0x514, 4, 0);
	bus_write(t.env.bus, BUS_PIO, 0x518, 4, htobe32(0x1000));
	assert_int_equal(ram_read(&t.ram, 0x1000, &a, sizeof(a)), 0);
	return be32toh(a.control);
}

static void test_dma(void **state)
{
	char buf[32] = { 0 };
	uint64_t v;

	v = bus_read(t.env.bus, BUS_PIO, 0x514, 4);
	assert_memory_equal(&v, "QEMU", 4);
	v = bus_read(t.env.bus, BUS_PIO, 0x518, 4);
	assert_memory_equal(&v, " CFG", 4);

	memset(ram_ptr(&t.ram, 0x2000, 32), 0xee, 32);
	assert_int_equal(dma(FW_CFG_FILE_FIRST << 16 | 0x0a, 4, 0x2000), 0); /* select, read */
	ram_read(&t.ram, 0x2000, buf, 5);
	assert_memory_equal(buf, "0123\xee", 5);
	assert_int_equal(dma(0x04, 2, 0), 0); /* skip */
	assert_int_equal(dma(0x02, 8, 0x2000), 0);
	ram_read(&t.ram, 0x2000, buf, 9);
	assert_memory_equal(buf, "6789\0\0\0\0\xee", 9); /* zeros past the end */
	/* to where there is no RAM, across its end, from a wild descriptor */
	assert_int_equal(dma(FW_CFG_FILE_FIRST << 16 | 0x0a, 4, 0xffffffffffff), 1);
	assert_int_equal(dma(FW_CFG_FILE_FIRST << 16 | 0x0a, 4, MIB - 2), 1);
	assert_int_equal(dma(FW_CFG_FILE_FIRST << 16 | 0x0a, UINT32_MAX, 0x2000), 1);
	assert_int_equal(dma(FW_CFG_FILE_FIRST << 16 | 0x0a, 64 * MIB, 0x2000), 1);
	assert_int_equal(dma(0x12 | FW_CFG_FILE_FIRST << 16, 4, 0x2000) & 1, 0); /* read wins */
	assert_int_equal(dma(0x10, 4, 0x2000), 1); /* nothing is writable */
	assert_int_equal(dma(0x04, UINT32_MAX, 0), 0);
	assert_int_equal(dma(0x04, UINT32_MAX, 0), 0);
	assert_int_equal(dma(0x02, 4, 0x2000), 0);
	bus_write(t.env.bus, BUS_PIO, 0x514, 4, 0xffffffff);
	bus_write(t.env.bus, BUS_PIO, 0x518, 4, 0xffffffff);
	bus_write(t.env.bus, BUS_PIO, 0x51b, 1, 0);
}

static void test_state_moves(void **state)
{
	struct test_env u;
	struct fw_cfg *f2;

	test_env_init(&u);
	assert_int_equal(fw_cfg_create(&f2, &u.env, NULL), 0);
	assert_int_equal(fw_cfg_add_file(f2, "etc/one", "0123456789", 10), 0);
	pick(FW_CFG_FILE_FIRST);
	test_inb(&t, 0x511);
	test_move_state(&f->dev, &f2->dev);
	assert_int_equal(test_inb(&u, 0x511), '1');
	f2->dev.cls->destroy(&f2->dev);
	test_env_fini(&u);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_ports), T(test_directory),   T(test_bad_additions),
		T(test_dma),   T(test_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
