/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ELF kernels: loading for multiboot, and boot by the PVH protocol.
 *
 * Sources: System V ABI, ELF header and program header; Xen public/arch-x86/hvm/start_info.h and
 * docs/misc/pvh.pandoc ("x86/HVM direct boot ABI").
 */
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "vm/boot.h"

int elf_open(struct elf_file *f, const struct boot_blob *blob, struct error *err)
{
	const uint8_t *p = boot_blob_at(blob, 0, sizeof(Elf32_Ehdr));

	if (!p || memcmp(p, ELFMAG, SELFMAG) != 0)
		return error_set(err, -ENOEXEC, "%s is not an ELF file", blob->name);
	if (p[EI_DATA] != ELFDATA2LSB || (p[EI_CLASS] != ELFCLASS32 && p[EI_CLASS] != ELFCLASS64))
		return error_set(err, -ENOEXEC, "%s is not a little-endian ELF file", blob->name);

	struct elf_file e = { .blob = blob, .is_64 = p[EI_CLASS] == ELFCLASS64 };
	unsigned machine;

	if (e.is_64) {
		Elf64_Ehdr h;

		p = boot_blob_at(blob, 0, sizeof(h));
		if (!p)
			return error_set(err, -ENOEXEC, "%s is cut off in its ELF header", blob->name);
		memcpy(&h, p, sizeof(h));
		e.entry = h.e_entry;
		e.phoff = h.e_phoff;
		e.phentsize = h.e_phentsize;
		e.phnum = h.e_phnum;
		machine = h.e_machine;
		if (e.phentsize != sizeof(Elf64_Phdr))
			return error_set(err, -ENOEXEC, "%s has program headers of %u bytes, not %zu",
					 blob->name, e.phentsize, sizeof(Elf64_Phdr));
	} else {
		Elf32_Ehdr h;

		memcpy(&h, p, sizeof(h));
		e.entry = h.e_entry;
		e.phoff = h.e_phoff;
		e.phentsize = h.e_phentsize;
		e.phnum = h.e_phnum;
		machine = h.e_machine;
		if (e.phentsize != sizeof(Elf32_Phdr))
			return error_set(err, -ENOEXEC, "%s has program headers of %u bytes, not %zu",
					 blob->name, e.phentsize, sizeof(Elf32_Phdr));
	}
	if (machine != EM_386 && machine != EM_X86_64)
		return error_set(err, -ENOEXEC, "%s is an ELF file for another CPU (e_machine %u)",
				 blob->name, machine);
	if (!boot_blob_at(blob, e.phoff, (uint64_t)e.phnum * e.phentsize))
		return error_set(err, -ENOEXEC,
				 "%s is cut off: its program headers lie outside of the file",
				 blob->name);
	*f = e;
	return 0;
}

int elf_segment(const struct elf_file *f, unsigned i, struct elf_segment *out, struct error *err)
{
	const uint8_t *p = boot_blob_at(f->blob, f->phoff + (uint64_t)i * f->phentsize, f->phentsize);

	if (!p)
		return error_set(err, -EINVAL, "%s has no program header %u", f->blob->name, i);
	if (f->is_64) {
		Elf64_Phdr h;

		memcpy(&h, p, sizeof(h));
		*out = (struct elf_segment){ h.p_type,	 h.p_offset, h.p_vaddr, h.p_paddr,
					     h.p_filesz, h.p_memsz,  h.p_align };
	} else {
		Elf32_Phdr h;

		memcpy(&h, p, sizeof(h));
		*out = (struct elf_segment){ h.p_type,	 h.p_offset, h.p_vaddr, h.p_paddr,
					     h.p_filesz, h.p_memsz,  h.p_align };
	}
	return 0;
}

int elf_load(const struct elf_file *f, struct boot_map *map, struct error *err)
{
	bool has_any = false;

	for (unsigned i = 0; i < f->phnum; i++) {
		struct elf_segment s;
		int r = elf_segment(f, i, &s, err);

		if (r < 0)
			return r;
		if (s.type != PT_LOAD || s.memsz == 0)
			continue;
		const uint8_t *src = boot_blob_at(f->blob, s.offset, s.filesz);

		if (!src || s.filesz > s.memsz)
			return error_set(err, -EINVAL, "%s is cut off or broken: segment %u lies outside of the file",
					 f->blob->name, i);
		void *dst = boot_place_at(map, s.paddr, s.memsz, f->blob->name, err);

		if (!dst)
			return -ENOMEM;
		memcpy(dst, src, s.filesz);
		memset((uint8_t *)dst + s.filesz, 0, s.memsz - s.filesz);
		has_any = true;
	}
	if (!has_any)
		return error_set(err, -ENOEXEC, "%s has nothing to load (no PT_LOAD segment)",
				 f->blob->name);
	return 0;
}

uint64_t elf_entry_phys(const struct elf_file *f)
{
	for (unsigned i = 0; i < f->phnum; i++) {
		struct elf_segment s;

		if (elf_segment(f, i, &s, NULL) == 0 && s.type == PT_LOAD && f->entry >= s.vaddr &&
		    f->entry - s.vaddr < s.memsz)
			return f->entry - s.vaddr + s.paddr;
	}
	return f->entry;
}

/* Notes are 4-aligned, in GNU's 8-aligned segments too where Xen's are concerned. */
static bool notes_find(const uint8_t *p, uint64_t len, const char *owner, uint32_t type,
		       const uint8_t **desc, uint32_t *desc_len)
{
	uint64_t owner_len = strlen(owner) + 1;

	for (uint64_t at = 0; len - at >= sizeof(Elf32_Nhdr);) {
		Elf32_Nhdr h;

		memcpy(&h, p + at, sizeof(h));
		at += sizeof(h);
		uint64_t name_bytes = ALIGN_UP((uint64_t)h.n_namesz, 4);
		uint64_t desc_bytes = ALIGN_UP((uint64_t)h.n_descsz, 4);

		if (name_bytes > len - at || h.n_descsz > len - at - name_bytes)
			return false;
		if (h.n_type == type && h.n_namesz == owner_len && memcmp(p + at, owner, owner_len) == 0) {
			*desc = p + at + name_bytes;
			*desc_len = h.n_descsz;
			return true;
		}
		at += name_bytes;
		if (desc_bytes > len - at)
			return false;
		at += desc_bytes;
	}
	return false;
}

bool elf_find_note(const struct elf_file *f, const char *owner, uint32_t type, const uint8_t **desc,
		   uint32_t *desc_len)
{
	for (unsigned i = 0; i < f->phnum; i++) {
		struct elf_segment s;

		if (elf_segment(f, i, &s, NULL) < 0 || s.type != PT_NOTE)
			continue;
		const uint8_t *p = boot_blob_at(f->blob, s.offset, s.filesz);

		if (p && notes_find(p, s.filesz, owner, type, desc, desc_len))
			return true;
	}
	return false;
}

/* ---- PVH ---- */

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define HVM_START_MAGIC		 0x336ec578

struct hvm_start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr;
	uint64_t memmap_paddr;
	uint32_t memmap_entries, reserved;
};
struct hvm_modlist_entry {
	uint64_t paddr, size, cmdline_paddr, reserved;
};
struct hvm_memmap_entry {
	uint64_t addr, size;
	uint32_t type, reserved;
};

/* Everything start_info points to, in one placed block. */
struct pvh_block {
	struct hvm_start_info info;
	struct hvm_modlist_entry module;
	struct hvm_memmap_entry memmap[E820_MAX];
	char cmdline[];
};

int boot_load_pvh(const struct boot_request *rq, struct x86_state *bsp, struct error *err)
{
	struct boot_map map;
	struct elf_file elf;
	const uint8_t *desc;
	uint32_t desc_len, entry;
	gpa_t at, initrd = 0;
	int r = elf_open(&elf, rq->kernel, err);

	if (r < 0)
		return r;
	if (!elf_find_note(&elf, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, &desc, &desc_len) || desc_len < 4)
		return error_set(
			err, -ENOEXEC,
			"%s is an ELF file without a PVH entry note; boot the bzImage (vmlinuz) or "
			"a kernel built with CONFIG_PVH",
			rq->kernel->name);
	memcpy(&entry, desc, 4);

	boot_map_init(&map, rq->ram);
	r = elf_load(&elf, &map, err);
	if (r < 0)
		return r;
	r = boot_set_flat32(&map, bsp, entry, err);
	if (r < 0)
		return r;

	size_t cmdline_bytes = strlen(rq->cmdline) + 1;
	struct pvh_block *b = boot_place_low(&map, sizeof(*b) + cmdline_bytes, 4096, BOOT_LOW_START,
					     BOOT_EBDA, "the PVH start info", &at, err);

	if (!b)
		return -ENOMEM;
	memset(b, 0, sizeof(*b));
	if (rq->initrd) {
		void *p = boot_place_high(&map, rq->initrd->len, 4096, BOOT_HIGH_START, 4 * GIB,
					  "the initrd", &initrd, err);

		if (!p)
			return -ENOMEM;
		memcpy(p, rq->initrd->data, rq->initrd->len);
		b->module.paddr = initrd;
		b->module.size = rq->initrd->len;
	}

	struct e820_entry e820[E820_MAX];
	unsigned n = e820_build(rq->ram, e820);

	for (unsigned i = 0; i < n; i++)
		b->memmap[i] = (struct hvm_memmap_entry){ e820[i].addr, e820[i].len, e820[i].type, 0 };
	memcpy(b->cmdline, rq->cmdline, cmdline_bytes);
	b->info = (struct hvm_start_info){
		.magic = HVM_START_MAGIC,
		.version = 1,
		.nr_modules = rq->initrd ? 1 : 0,
		.modlist_paddr = rq->initrd ? at + offsetof(struct pvh_block, module) : 0,
		.cmdline_paddr = at + offsetof(struct pvh_block, cmdline),
		.rsdp_paddr = rq->rsdp,
		.memmap_paddr = at + offsetof(struct pvh_block, memmap),
		.memmap_entries = n,
	};
	bsp->gpr[R_RBX] = at + offsetof(struct pvh_block, info);
	/* The ABI gives TR base 0, limit 67H; segments as boot_set_flat32 made them. */
	return 0;
}
