/* SPDX-License-Identifier: Apache-2.0 */
/* The second-level TLB and the tags of address spaces: see tlb2.h. */
#include "engine/dbt/tlb2.h"

#define TAG_END (1u << 28)

/* ---- entries ------------------------------------------------------------------------------ */

static uint64_t key_of(uint64_t va, uint32_t tag)
{
	return tlb2_key(va >> GUEST_PAGE_SHIFT, tag);
}

static struct dbt_tlb2_set *set_of(struct dbt_cpu *cpu, uint64_t va, uint32_t tag)
{
	return &cpu->mmu.tlb2[tlb2_hash(va >> GUEST_PAGE_SHIFT, tag) % DBT_TLB2_SETS];
}

static bool find(struct dbt_cpu *cpu, uint64_t va, uint32_t tag, uint64_t *val)
{
	const struct dbt_tlb2_set *s = set_of(cpu, va, tag);
	uint64_t key = key_of(va, tag);

	for (unsigned i = 0; i < DBT_TLB2_WAYS; i++)
		if (s->key[i] == key) {
			*val = s->val[i];
			return true;
		}
	return false;
}

bool tlb2_find(struct dbt_cpu *cpu, uint64_t va, uint64_t *val)
{
	const struct dbt_spaces *sp = &cpu->mmu.spaces;
	bool is_upper = va >> 63; /* mostly global */

	return find(cpu, va, is_upper ? sp->global_tag : sp->tag, val) ||
	       find(cpu, va, is_upper ? sp->tag : sp->global_tag, val);
}

void tlb2_enter(struct dbt_cpu *cpu, uint64_t va, uint64_t val)
{
	const struct dbt_spaces *sp = &cpu->mmu.spaces;
	uint32_t tag = val & TLB2_GLOBAL ? sp->global_tag : sp->tag;
	struct dbt_tlb2_set *s = set_of(cpu, va, tag);
	uint64_t key = key_of(va, tag);
	unsigned way = DBT_TLB2_WAYS;

	for (unsigned i = 0; i < DBT_TLB2_WAYS; i++) {
		if (s->key[i] == key) {
			way = i;
			break;
		}
		if (!s->key[i])
			way = i;
	}
	if (way == DBT_TLB2_WAYS)
		way = cpu->mmu.tlb2_hand++ % DBT_TLB2_WAYS;
	s->key[way] = key;
	s->val[way] = val;
}

void tlb2_drop(struct dbt_cpu *cpu, uint64_t va, uint32_t tag)
{
	struct dbt_tlb2_set *s = set_of(cpu, va, tag);
	uint64_t key = key_of(va, tag);

	for (unsigned i = 0; i < DBT_TLB2_WAYS; i++)
		if (s->key[i] == key)
			s->key[i] = 0;
}

void tlb2_drop_gib(struct dbt_cpu *cpu, uint64_t va, uint32_t tag)
{
	uint64_t span = key_of(va, 0) >> (30 - GUEST_PAGE_SHIFT + 28);

	for (unsigned n = 0; n < DBT_TLB2_SETS; n++)
		for (unsigned i = 0; i < DBT_TLB2_WAYS; i++) {
			uint64_t key = cpu->mmu.tlb2[n].key[i];
			if (key >> (30 - GUEST_PAGE_SHIFT + 28) == span && tlb2_tag(key) == tag)
				cpu->mmu.tlb2[n].key[i] = 0;
		}
}

/* ---- address spaces ----------------------------------------------------------------------- */

static uint32_t new_tag(struct dbt_spaces *sp)
{
	return sp->next_tag++;
}

/* Numbers end: forget everything, the branch table's keys (made from tags) too. */
static void start_over(struct dbt_cpu *cpu)
{
	memset(cpu->mmu.tlb2, 0, sizeof(cpu->mmu.tlb2));
	memset(cpu->ctlb, 0, sizeof(cpu->ctlb));
	cpu->mmu.spaces.next_tag = 1;
	cpu->as_gen++;
}

void spaces_reset(struct dbt_cpu *cpu, uint16_t pcid)
{
	struct dbt_spaces *sp = &cpu->mmu.spaces;

	if (sp->next_tag == 0) /* a new vCPU's: all is zero, and most of it stays so in an idle guest */
		sp->next_tag = 1;
	else if (sp->next_tag > TAG_END - 2)
		start_over(cpu);
	memset(sp->of, 0, sizeof(sp->of));
	sp->current = 0;
	sp->of[0].pcid = pcid;
	sp->tag = sp->of[0].tag = new_tag(sp);
	sp->global_tag = new_tag(sp);
}

static unsigned slot_of(const struct dbt_spaces *sp, uint16_t pcid)
{
	unsigned i = 0;

	while (i < DBT_SPACES && !(sp->of[i].tag && sp->of[i].pcid == pcid))
		i++;
	return i;
}

/* A slot for another PCID: a free one, else the next in turn. */
static unsigned slot_take(struct dbt_spaces *sp)
{
	for (unsigned i = 0; i < DBT_SPACES; i++)
		if (!sp->of[i].tag)
			return i;
	sp->hand = (sp->hand + 1) % DBT_SPACES;
	return sp->hand;
}

bool spaces_switch(struct dbt_cpu *cpu, uint16_t pcid, bool keep)
{
	struct dbt_spaces *sp = &cpu->mmu.spaces;
	unsigned i = slot_of(sp, pcid);

	if (sp->next_tag == TAG_END) {
		spaces_reset(cpu, pcid);
		return true;
	}
	if (i == DBT_SPACES) {
		i = slot_take(sp);
		sp->of[i].pcid = pcid;
		sp->of[i].tag = new_tag(sp);
	} else if (!keep) {
		sp->of[i].tag = new_tag(sp);
	} else if (i == sp->current) {
		return false;
	}
	sp->current = (uint8_t)i;
	sp->tag = sp->of[i].tag;
	return true;
}

bool spaces_flush(struct dbt_cpu *cpu, uint16_t pcid)
{
	struct dbt_spaces *sp = &cpu->mmu.spaces;
	unsigned i = slot_of(sp, pcid);

	if (i == sp->current)
		return spaces_switch(cpu, pcid, false);
	if (i < DBT_SPACES)
		sp->of[i].tag = 0;
	return false;
}

void spaces_flush_others(struct dbt_cpu *cpu)
{
	struct dbt_spaces *sp = &cpu->mmu.spaces;

	for (unsigned i = 0; i < DBT_SPACES; i++)
		if (i != sp->current)
			sp->of[i].tag = 0;
}

uint32_t spaces_tag(const struct dbt_cpu *cpu, uint16_t pcid)
{
	unsigned i = slot_of(&cpu->mmu.spaces, pcid);

	return i < DBT_SPACES ? cpu->mmu.spaces.of[i].tag : 0;
}
