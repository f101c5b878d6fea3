/* SPDX-License-Identifier: Apache-2.0 */
/*
 * insn_decode: any bytes, in all three modes.  Whatever it answers depends on nothing but those bytes, never on
 * what lies behind the instruction; what it describes lies within the instruction and names what exists.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/cpuid.h"
#include "engine/dbt/decode.h"
#include "fuzz.h"

/* Instructions with all parts: prefixes, REX, SIB, displacement, two immediates, VEX, gather, moffs, far pointer. */
size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const uint8_t seed[] = {
		0xf0, 0x67, 0x66, 0x43, 0x81, 0x84, 0xb5, 1, 2, 3, 4,
		5,    6,					      /* lock add [...], imm */
		0xc8, 0x10, 0x00, 0x01,				      /* enter */
		0xc4, 0xe2, 0xf9, 0x90, 0x04, 0x6b,		      /* gather */
		0xf3, 0x48, 0x0f, 0xb8, 0xc1,			      /* popcnt */
		0x66, 0x0f, 0x3a, 0x0f, 0x42, 0x10, 0x05,	      /* palignr */
		0x65, 0x48, 0xa1, 1,	2,    3,    4,	  5, 6, 7, 8, /* mov rax, gs:[moffs] */
		0xea, 1,    2,	  3,	4,    5,    6,		      /* jmp far */
	};

	if (cap < sizeof(seed))
		return 0;
	memcpy(data, seed, sizeof(seed));
	return sizeof(seed);
}

static void require(bool is_true)
{
	if (!is_true)
		abort();
}

static void check_fields(const struct insn *in, const uint8_t *code)
{
	unsigned nregs = in->mode == 64 ? 16 : 8;

	require(in->desc && in->desc->id > I_INVALID && in->desc->id < I_COUNT &&
		in->desc->feature < CPUF_COUNT);
	require(in->len >= 1 && in->len <= INSN_MAX_LEN && !memcmp(in->bytes, code, in->len));
	require(in->opcode_off < in->len && in->bytes[in->opcode_off] == in->opcode);
	require(in->modrm_off == (in->has_modrm ? in->opcode_off + 1 : 0xff));
	require(in->disp_len ? in->disp_off + in->disp_len <= in->len : in->disp_off == 0xff);
	require(in->imm_len ? in->imm_off + in->imm_len == in->len : in->imm_off == 0xff);
	require(in->opsize == 2 || in->opsize == 4 || (in->opsize == 8 && in->mode == 64));
	require(in->addrsize == 2 || in->addrsize == 4 || (in->addrsize == 8 && in->mode == 64));
	require(in->reg < nregs && in->rm < nregs && in->vvvv < nregs);
	require((in->base < nregs || in->base == 0xff) && (in->index < nregs || in->index == 0xff));
	/* Implied ones aside: SYSCALL writes r11 in compatibility mode, too. */
	require(!((in->gpr_read & ~in->desc->gpr_read) >> nregs) &&
		!((in->gpr_write & ~in->desc->gpr_write) >> nregs));
	require(in->seg < SEG_COUNT || (in->seg == SEG_NONE && !in->has_mem));
	require(in->has_mem || (!in->mem_size && !in->mem_access));
	require(in->nops <= INSN_MAX_OPNDS && in->mem_size <= 512 && in->mem_access <= OPND_RW);
	require(!in->lock || in->mem_access & OPND_WRITE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t modes[] = { 16, 32, 64 };

	for (size_t pos = 0; pos < size; pos++) {
		unsigned avail = (unsigned)(size - pos < 64 ? size - pos : 64);

		for (unsigned m = 0; m < 3; m++) {
			struct insn in, again;
			enum decode_result r = insn_decode(&in, data + pos, avail, modes[m]);

			if (r == DECODE_MORE)
				require(avail < INSN_MAX_LEN && in.len == avail);
			else if (r == DECODE_LONG)
				require(avail >= INSN_MAX_LEN);
			else
				require(in.len <= avail && in.len <= INSN_MAX_LEN);
			if (r != DECODE_OK)
				continue;
			check_fields(&in, data + pos);

			/* Exactly its own bytes suffice, one fewer does not. */
			uint8_t *exact = malloc(in.len);

			if (!exact)
				return 0;
			memcpy(exact, data + pos, in.len);
			require(insn_decode(&again, exact, in.len, modes[m]) == DECODE_OK);
			require(!memcmp(&in, &again, sizeof(in)));
			require(insn_decode(&again, exact, in.len - 1u, modes[m]) == DECODE_MORE);
			free(exact);
		}
	}
	return 0;
}
