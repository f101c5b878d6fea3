/* SPDX-License-Identifier: Apache-2.0 */
/* From the multiboot entry to guest_main() in long mode; the APs' way there; exception entries. */
	.section .multiboot, "a"
	.align 4
	.long 0x1badb002, 0, -0x1badb002

	.text
	.code32
	.global start
start:
	cld
	mov %ebx, multiboot_info
	mov $stack_top, %esp
	/* page tables: 4 GiB identity by 2 MiB pages, supervisor; the same again for users */
	mov $pd_kernel, %edi
	mov $0x83, %eax
	call fill_pds
	mov $pd_user, %edi
	mov $0x87, %eax
	call fill_pds
	mov $pdpt_kernel, %edi
	mov $pd_kernel + 7, %eax
	call fill_pdpt
	movl $pdpt_kernel + 7, pml4
	mov $pdpt_kernel + 256 * 8, %edi /* USER_BASE */
	mov $pd_user + 7, %eax
	call fill_pdpt
	call enter_long
	ljmp $0x08, $start64

/* eax: first entry; edi: four tables */
fill_pds:
	mov $2048, %ecx
1:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 1b
	ret
fill_pdpt:
	mov $4, %ecx
1:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	loop 1b
	ret

/* Paging and LME on, GDT loaded; the caller jumps to a 64-bit segment. */
enter_long:
	mov $pml4, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	rdmsr
	or $0x900, %eax /* LME, NXE */
	wrmsr
	mov %cr0, %eax
	and $~0x6000000c, %eax /* caches on, EM and TS off */
	or $0x80010022, %eax /* PG, WP, NE, MP */
	mov %eax, %cr0
	lgdt gdt_pointer
	ret

	.code64
start64:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	mov $stack_top, %rsp
	xor %ebp, %ebp
	call lib_main
1:	hlt
	jmp 1b

/* ---- application processors: real mode at 8000H ---- */
	.global ap_start, ap_end
	.code16
ap_start:
	cli
	xor %ax, %ax
	mov %ax, %ds
	lgdtl ap_gdt_pointer - ap_start + 0x8000
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $0x18, $ap_32
ap_gdt_pointer:
	.word 0x1ff
	.long gdt
ap_end:
	.code32
ap_32:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $1, %ebx
	lock xadd %ebx, ap_next
	mov %ebx, %esp
	shl $14, %esp
	add $ap_stacks, %esp
	call enter_long
	ljmp $0x08, $1f
	.code64
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %ebx, %edi
	mov %esp, %esp
	xor %ebp, %ebp
	call ap_main

/* ---- exceptions ---- */
	.altmacro
	.macro entry n
	.align 16
	.if \n == 8 || (\n >= 10 && \n <= 14) || \n == 17 || \n == 21
	.else
	push $0
	.endif
	push $\n
	jmp entry_common
	.endm
	.align 16
	.global entries
entries:
	n = 0
	.rept 256
	entry %n
	n = n + 1
	.endr

entry_common:
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	cld
	mov %rsp, %rdi
	mov %rsp, %rbp
	and $-16, %rsp
	call lib_exception
	mov %rbp, %rsp
	.global frame_return
frame_return:
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp
	iretq

/* long catch_call(rdi: fn, rsi: arg, rdx: &saved rsp): 0 when fn returned, 1 through catch_jump */
	.global catch_call, catch_jump
catch_call:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	pushf
	sub $8, %rsp
	mov %rsp, (%rdx)
	mov %rdi, %rax
	mov %rsi, %rdi
	call *%rax
	xor %eax, %eax
	jmp 1f
/* (rdi: saved rsp) */
catch_jump:
	mov %rdi, %rsp
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $1, %eax
1:	add $8, %rsp
	popf
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

/* void user_jump(rdi: fn, rsi: arg, rdx: stack): never returns; INT 80H and faults come back */
	.global user_jump
user_jump:
	push $0x2b
	push %rdx
	push user_flags(%rip)
	push $0x33
	push %rdi
	mov %rsi, %rdi
	xor %ebp, %ebp
	iretq

	.data
	.align 8
	.global multiboot_info
multiboot_info: .quad 0
	.global ap_next
ap_next: .long 1
	.align 8
gdt_pointer:
	.word 0x1ff
	.quad gdt
	.global gdt
	.align 8
gdt:	.quad 0
	.quad 0x00af9b000000ffff /* 08 code 64 */
	.quad 0x00cf93000000ffff /* 10 data */
	.quad 0x00cf9b000000ffff /* 18 code 32 */
	.quad 0x00cffb000000ffff /* 20 user code 32 */
	.quad 0x00cff3000000ffff /* 28 user data */
	.quad 0x00affb000000ffff /* 30 user code 64 */
	.fill 57, 8, 0

	.bss
	.align 4096
	.global pml4
pml4:	.skip 4096
pdpt_kernel: .skip 4096
pd_kernel: .skip 4 * 4096
pd_user: .skip 4 * 4096
stack:	.skip 65536
	.global stack_top
stack_top:
ap_stacks: .skip 9 * 16384
