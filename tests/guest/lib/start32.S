/* SPDX-License-Identifier: Apache-2.0 */
/* From the multiboot entry to guest_main() in flat protected mode; exception entries. */
	.section .multiboot, "a"
	.align 4
	.long 0x1badb002, 0, -0x1badb002

	.text
	.global start
start:
	cld
	mov %ebx, multiboot_info
	lgdt gdt_pointer
	ljmp $0x08, $1f
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	mov $stack_top, %esp
	mov %cr0, %eax
	and $~0x6000000c, %eax
	or $0x22, %eax
	mov %eax, %cr0
	xor %ebp, %ebp
	call lib_main
2:	hlt
	jmp 2b

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
	pusha
	push %ds
	push %es
	push %fs
	push %gs
	cld
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %esp, %eax
	mov %esp, %ebp
	and $-16, %esp
	sub $12, %esp
	push %eax
	call lib_exception
	mov %ebp, %esp
	.global frame_return
frame_return:
	pop %gs
	pop %fs
	pop %es
	pop %ds
	popa
	add $8, %esp
	iret

/* long catch_call(fn, arg, &saved sp) */
	.global catch_call, catch_jump
catch_call:
	push %ebx
	push %ebp
	push %esi
	push %edi
	pushf
	mov 24(%esp), %eax /* fn */
	mov 28(%esp), %ecx
	mov 32(%esp), %edx
	mov %esp, (%edx)
	push %ecx
	call *%eax
	add $4, %esp
	xor %eax, %eax
	jmp 1f
catch_jump:
	mov 4(%esp), %ecx
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	mov %ecx, %esp
	mov $1, %eax
1:	popf
	pop %edi
	pop %esi
	pop %ebp
	pop %ebx
	ret

/* void user_jump(fn, arg, stack) */
	.global user_jump
user_jump:
	mov 4(%esp), %eax
	mov 8(%esp), %ecx
	mov 12(%esp), %edx
	sub $4, %edx
	mov %ecx, 4(%edx) /* the argument; its return address is never used */
	mov $0x23, %ecx
	mov %ecx, %ds
	mov %ecx, %es
	push $0x23
	push %edx
	push user_flags
	push $0x1b
	push %eax
	iret

	.data
	.align 8
	.global multiboot_info
multiboot_info: .quad 0
gdt_pointer:
	.word 0x1ff
	.long gdt
	.global gdt
	.align 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff /* 08 code */
	.quad 0x00cf93000000ffff /* 10 data */
	.quad 0x00cffb000000ffff /* 18 user code */
	.quad 0x00cff3000000ffff /* 20 user data */
	.fill 59, 8, 0

	.bss
	.align 4096
	.skip 65536
	.global stack_top
stack_top:
