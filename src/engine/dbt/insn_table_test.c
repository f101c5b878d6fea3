/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Properties that every row of the instruction table has.  The rows are the decoder's own, so its source is
 * included here instead of linked.
 */
#include "base/unit.h"

#include <stdlib.h>

#include "base/util.h"
#include "engine/dbt/interp.h" /* first: it renames memcpy and memset, which decode.c uses */
#include "engine/dbt/decode.c"

#define FOR_EACH_ROW(row)                                                                          \
	for (const struct insn_row *row = insn_rows; row < insn_rows + ARRAY_SIZE(insn_rows); row++)

#define fail_row(row, opcode_or_note)                                                              \
	fail_msg("row %u, %s: %s", (unsigned)((row)-insn_rows), insn_name((row)->d.id), opcode_or_note)

static unsigned nops(const struct insn_row *row)
{
	unsigned n = 0;

	while (n < INSN_MAX_OPNDS && row->d.op[n].kind != OPND_NONE)
		n++;
	return n;
}

static bool is_rm(const struct opnd *op)
{
	return op->kind == OPND_GPR_RM || op->kind == OPND_XMM_RM || op->kind == OPND_MMX_RM ||
	       op->kind == OPND_X87_RM;
}

static bool is_gpr(const struct opnd *op)
{
	return op->kind == OPND_GPR_REG || op->kind == OPND_GPR_RM || op->kind == OPND_GPR_VVVV ||
	       op->kind == OPND_GPR_OPCODE || op->kind == OPND_FIXED_GPR;
}

static bool is_vector(const struct opnd *op)
{
	return op->kind == OPND_XMM_REG || op->kind == OPND_XMM_VVVV || op->kind == OPND_XMM_IS4;
}

/* In each mode, with each operand size and VEX.L that the row can meet, every size is one the operand can have. */
static void check_sizes(const struct insn_row *row, const struct insn *in)
{
	for (unsigned i = 0; i < nops(row); i++) {
		const struct opnd *op = &row->d.op[i];
		unsigned size = resolve_size(in, op->size);
		bool is_mem = is_rm(op) && row->mod != 2;

		if (size >= OSZ_V)
			fail_row(row, "a size that nothing resolves");
		if (is_vector(op) && size != 16 && size != 32)
			fail_row(row, "vector register that is neither 16 nor 32 bytes");
		if (is_gpr(op) && !is_mem && size != 1 && size != 2 && size != 4 && size != 8)
			fail_row(row, "general register of no such size");
		if (is_gpr(op) && size == 8 && in->mode != 64 && op->size != 8 && !is_mem)
			fail_row(row, "64-bit register outside 64-bit mode");
		if (is_mem && size == 0 && !(row->d.attr & INSN_NO_MEM_ACCESS))
			fail_row(row, "memory operand without size");
		if (is_rm(op) && row->d.attr & INSN_ALIGNED && (size & (size - 1) || size < 16))
			fail_row(row, "aligned operand that is no vector");
		if ((op->kind == OPND_STR_SRC || op->kind == OPND_STR_DST) && (!size || size > 8))
			fail_row(row, "string element");
	}
}

static void sizes_resolve(void **state)
{
	static const uint8_t modes[] = { 16, 32, 64 };

	FOR_EACH_ROW(row)
	for (unsigned m = 0; m < 3; m++)
		for (unsigned opsize = 2; opsize <= (modes[m] == 64 ? 8 : 4); opsize *= 2)
			for (unsigned l = 0; l < 2; l++) {
				struct insn in = { .mode = modes[m],
						   .opsize = (uint8_t)opsize,
						   .rex_w = opsize == 8,
						   .vex_l = (uint8_t)l };

				if ((row->d.attr & INSN_NO64 && modes[m] == 64) ||
				    (row->d.attr & INSN_ONLY64 && modes[m] != 64) ||
				    (row->l != 0xff && row->l != l))
					continue;
				check_sizes(row, &in);
			}
}

static void operands_are_sound(void **state)
{
	FOR_EACH_ROW(row)
	{
		unsigned nrm = 0;

		for (unsigned i = 0; i < nops(row); i++) {
			const struct opnd *op = &row->d.op[i];

			nrm += is_rm(op);
			if (!op->access || op->access & ~OPND_RW)
				fail_row(row, "operand that is neither read nor written");
			if ((op->kind == OPND_IMM || op->kind == OPND_IMM2 ||
			     op->kind == OPND_REL || op->kind == OPND_ONE) &&
			    op->access != OPND_READ)
				fail_row(row, "written immediate");
			if (op->kind == OPND_FIXED_GPR && op->reg > 15)
				fail_row(row, "no such register");
			if (op->kind == OPND_FIXED_SEG && op->reg >= SEG_COUNT)
				fail_row(row, "no such segment");
		}
		if (nrm > 1)
			fail_row(row, "ModRM.rm twice");
		if (row->d.attr & INSN_RM_MEM_ONLY && row->d.attr & INSN_RM_REG_ONLY)
			fail_row(row, "neither form exists");
		if (row->d.attr & INSN_NO64 && row->d.attr & INSN_ONLY64)
			fail_row(row, "exists in no mode");
		if (row->d.attr & INSN_DEF64 && row->d.attr & INSN_FORCE64)
			fail_row(row, "two rules for the operand size");
		if ((row->d.flags_read | row->d.flags_written) & ~FL_ARITH)
			fail_row(row, "no arithmetic flag");
		if (row->d.feature >= CPUF_COUNT || row->d.id == I_INVALID || row->d.id >= I_COUNT)
			fail_row(row, "no such feature or identity");
	}
}

static void lockable_rows_write_memory(void **state)
{
	unsigned n = 0;

	FOR_EACH_ROW(row)
	{
		if (!(row->d.attr & INSN_LOCKABLE))
			continue;
		n++;
		if (row->mod == 2 || !is_rm(&row->d.op[0]) || row->d.op[0].access != OPND_RW)
			fail_row(row, "LOCK without a memory operand that is read and written");
	}
	assert_true(n > 40);
}

/* What condition @cc reads (SDM vol. 2 appendix B.1.4.7), written out a second time. */
static unsigned flags_of_condition(unsigned cc)
{
	switch (cc >> 1) {
	case 0:
		return FL_OF;
	case 1:
		return FL_CF;
	case 2:
		return FL_ZF;
	case 3:
		return FL_CF | FL_ZF;
	case 4:
		return FL_SF;
	case 5:
		return FL_PF;
	case 6:
		return FL_SF | FL_OF;
	default:
		return FL_SF | FL_OF | FL_ZF;
	}
}

static void conditions_read_their_flags(void **state)
{
	static const struct {
		unsigned table, first;
		enum insn_id id;
		bool is_zx32;
	} families[] = {
		{ MAP_1BYTE, 0x70, I_JCC, false },
		{ MAP_0F, 0x80, I_JCC, false },
		{ MAP_0F, 0x40, I_CMOV, true },
		{ MAP_0F, 0x90, I_SETCC, false },
	};

	for (unsigned f = 0; f < ARRAY_SIZE(families); f++)
		for (unsigned cc = 0; cc < 16; cc++) {
			const struct insn_range *r =
				&insn_index[families[f].table][families[f].first + cc];
			const struct insn_row *row = &insn_rows[r->first];

			assert_int_equal(r->count, 1);
			assert_int_equal(row->d.id, families[f].id);
			assert_int_equal(row->d.flags_read, flags_of_condition(cc));
			assert_int_equal(row->d.flags_written, 0);
			assert_int_equal(!!(row->d.attr & INSN_ZX32), families[f].is_zx32);
		}
}

/* Written by hand, and by whom; and no handler stands for what no row names. */
static void handlers_are_there(void **state)
{
	static bool is_named[I_COUNT];

	FOR_EACH_ROW(row)
	{
		bool has_user = interp_user_handlers[row->d.id],
		     has_sys = interp_sys_handlers[row->d.id];

		is_named[row->d.id] = true;
		switch (row->d.kind) {
		case INSN_NATIVE:
			if (has_user || has_sys)
				fail_row(row, "native, with a handler");
			break;
		case INSN_HAND:
			if (!has_user || has_sys)
				fail_row(row, "no handler in interp_user_handlers, or two");
			break;
		case INSN_SYSTEM:
			if (has_user || !has_sys)
				fail_row(row, "no handler in interp_sys_handlers, or two");
			break;
		default:
			fail_row(row, "no such kind");
		}
	}
	for (unsigned id = 0; id < I_COUNT; id++)
		if (!is_named[id] && (interp_user_handlers[id] || interp_sys_handlers[id]))
			fail_msg("%s has a handler and no row", insn_name(id));
}

/* The index names every row exactly once, and all rows of an opcode agree whether a ModRM byte follows. */
static void index_covers_the_rows(void **state)
{
	unsigned *seen = calloc(ARRAY_SIZE(insn_rows), sizeof(*seen));

	assert_non_null(seen);
	for (unsigned t = 0; t < ARRAY_SIZE(insn_index); t++)
		for (unsigned op = 0; op < 256; op++) {
			const struct insn_range *r = &insn_index[t][op];

			for (unsigned i = r->first; i < r->first + r->count; i++) {
				assert_true(i < ARRAY_SIZE(insn_rows));
				seen[i]++;
				if (insn_rows[i].has_modrm != opcode_has_modrm(t, (uint8_t)op))
					fail_row(&insn_rows[i], "ModRM byte or none?");
			}
		}
	for (unsigned i = 0; i < ARRAY_SIZE(insn_rows); i++)
		if (seen[i] != 1)
			fail_row(&insn_rows[i], "in the index not exactly once");
	free(seen);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_resolve),
		cmocka_unit_test(operands_are_sound),
		cmocka_unit_test(lockable_rows_write_memory),
		cmocka_unit_test(conditions_read_their_flags),
		cmocka_unit_test(handlers_are_there),
		cmocka_unit_test(index_covers_the_rows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
