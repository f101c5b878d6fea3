/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small writer of AML, the byte code of ACPI definition blocks (ACPI 6.4 chapter 20) and of
 * resource templates (6.4).  Everything is appended to a struct bytes; aml_begin_*() opens a
 * block and gives a mark, aml_end() closes the innermost one by filling in its length.
 */
#ifndef VIV_VM_AML_H
#define VIV_VM_AML_H

#include "base/bytes.h"

/* Names are written as in ASL: "\\_SB", "PCI0", "\\_SB.PCI0"; short segments are padded with '_'. */
void aml_name_string(struct bytes *b, const char *name);
void aml_int(struct bytes *b, uint64_t v);
void aml_string(struct bytes *b, const char *s);
void aml_eisa_id(struct bytes *b, const char *id); /* "PNP0A03" */

/* Name (@name, <object that the caller appends>) */
void aml_name(struct bytes *b, const char *name);
void aml_name_int(struct bytes *b, const char *name, uint64_t v);

size_t aml_begin_scope(struct bytes *b, const char *name);
size_t aml_begin_device(struct bytes *b, const char *name);
size_t aml_begin_method(struct bytes *b, const char *name, unsigned nargs);
size_t aml_begin_package(struct bytes *b, unsigned nelements);
size_t aml_begin_if(struct bytes *b); /* then the predicate, then the terms */
void aml_end(struct bytes *b, size_t mark);

void aml_return(struct bytes *b); /* then the object */
void aml_notify(struct bytes *b, const char *name, uint8_t value);
void aml_store_arg0(struct bytes *b, const char *name);

/* ---- resource templates: built apart, then wrapped ---- */
enum aml_space { AML_MEMORY = 0, AML_IO = 1, AML_BUS = 2 };
void aml_res_io(struct bytes *r, uint16_t base, uint8_t len);
void aml_res_irq(struct bytes *r, unsigned irq);
/* A window that a bridge passes on. */
void aml_res_word(struct bytes *r, enum aml_space space, uint16_t min, uint16_t max);
void aml_res_dword(struct bytes *r, enum aml_space space, uint32_t min, uint32_t max);
/** aml_name_resources() - Name (@name, ResourceTemplate () { @r }); frees @r. */
void aml_name_resources(struct bytes *b, const char *name, struct bytes *r);

#endif
