// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first instructions: multiboot headers, and the way from 32-bit protected mode to 64-bit Rust.
//!
//! A multiboot loader enters `hw_entry32` in flat 32-bit mode without paging, EAX = magic, EBX = address of its
//! information. Symbols are linked high, so 32-bit code uses `symbol - BASE`, the physical address. The boot tables
//! map the first 4 GiB three times: one to one, at the image's base and at the direct map's base.
//!
//! Sources: Multiboot Specification 0.6.96 section 3.1, Multiboot2 Specification 2.0 section 3.1.

use core::arch::global_asm;

global_asm!(
    r#"
    .set BASE, 0xffff808000000000

    .section .boot.header, "a"
    .balign 8
    # Multiboot 1: page-aligned modules, memory information, address fields.
hw_multiboot1:
    .long 0x1badb002
    .long 0x00010003
    .long -(0x1badb002 + 0x00010003)
    .long hw_multiboot1 - BASE
    .long __image_start - BASE
    .long __load_end - BASE
    .long __image_end - BASE
    .long hw_entry32 - BASE

    .balign 8
hw_multiboot2:
    .long 0xe85250d6
    .long 0
    .long 6f - hw_multiboot2
    .long -(0xe85250d6 + (6f - hw_multiboot2))
    # Information request, optional: loader name, memory map, framebuffer, ACPI (old, new).
    .balign 8
    .short 1, 1
    .long 28
    .long 2, 6, 8, 14, 15
    # Console: an EGA text screen will do.
    .balign 8
    .short 4, 1
    .long 12
    .long 2
    # Entry address.
    .balign 8
    .short 3, 0
    .long 12
    .long hw_entry32 - BASE
    # Page-aligned modules.
    .balign 8
    .short 6, 0
    .long 8
    # End.
    .balign 8
    .short 0, 0
    .long 8
6:

    .section .boot.text, "ax"
    .balign 16
    .code32
    .globl hw_entry32
hw_entry32:
    cli
    cld
    movl %eax, %edi
    movl %ebx, %ebp
    movl $(__boot_stack_top - BASE), %esp
    rdtsc
    movl %eax, hw_entry_tsc - BASE
    movl %edx, hw_entry_tsc - BASE + 4

    # CPUID exists if EFLAGS.ID can be changed.
    pushfl
    popl %eax
    movl %eax, %ecx
    xorl $0x200000, %eax
    pushl %eax
    popfl
    pushfl
    popl %eax
    xorl %ecx, %eax
    testl $0x200000, %eax
    movl $(hw_no_64bit - BASE), %esi
    jz hw_refuse
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb hw_refuse
    movl $0x80000001, %eax
    cpuid
    btl $29, %edx
    jnc hw_refuse
    movl $(hw_no_nx - BASE), %esi
    btl $20, %edx
    jnc hw_refuse
    # TSC, MSR, PAE, APIC, PGE, FXSR, SSE, SSE2.
    movl $(hw_no_base - BASE), %esi
    movl $1, %eax
    cpuid
    andl $0x07002270, %edx
    cmpl $0x07002270, %edx
    jne hw_refuse

    # L2: 2048 entries of 2 MiB, present, writable, large.
    movl $(__boot_tables - BASE + 2 * 4096), %ebx
    movl $0x83, %eax
    movl $2048, %ecx
2:  movl %eax, (%ebx)
    movl $0, 4(%ebx)
    addl $0x200000, %eax
    addl $8, %ebx
    decl %ecx
    jnz 2b
    # L3: the four L2 tables.
    movl $(__boot_tables - BASE + 4096), %ebx
    movl $(__boot_tables - BASE + 2 * 4096 + 3), %eax
    movl $4, %ecx
3:  movl %eax, (%ebx)
    addl $4096, %eax
    addl $8, %ebx
    decl %ecx
    jnz 3b
    # L4: one to one, the image's slot, the direct map's slot.
    movl $(__boot_tables - BASE + 4096 + 3), %eax
    movl %eax, __boot_tables - BASE
    movl %eax, __boot_tables - BASE + 257 * 8
    movl %eax, __boot_tables - BASE + 262 * 8

    # PAE, PGE.
    movl $0xa0, %eax
    movl %eax, %cr4
    movl $(__boot_tables - BASE), %eax
    movl %eax, %cr3
    # EFER: NXE, LME, SCE.
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax
    wrmsr
    # PG, WP, NE, ET, MP, PE.
    movl $0x80010033, %eax
    movl %eax, %cr0
    lgdt hw_gdt_low - BASE
    ljmp $8, $(4f - BASE)

    .code64
4:  movabsq $5f, %rax
    jmpq *%rax
5:  lgdt hw_gdt_high(%rip)
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    leaq __boot_stack_top(%rip), %rsp
    movl %edi, %edi
    movl %ebp, %esi
    xorl %ebp, %ebp
    call hw_boot
    ud2

    # Prints the text at ESI on COM1, as far as there is one, and stops.
    .code32
hw_refuse:
    movl $(hw_uart_setup - BASE), %ebx
    movl $7, %ecx
2:  movzbl (%ebx), %edx
    addl $0x3f8, %edx
    movb 1(%ebx), %al
    outb %al, %dx
    addl $2, %ebx
    decl %ecx
    jnz 2b
3:  lodsb
    testb %al, %al
    jz 6f
    movb %al, %ah
    movl $100000, %ecx
4:  movl $0x3fd, %edx
    inb %dx, %al
    testb $0x20, %al
    jnz 5f
    decl %ecx
    jnz 4b
5:  movb %ah, %al
    movl $0x3f8, %edx
    outb %al, %dx
    jmp 3b
6:  cli
    hlt
    jmp 6b

    .balign 8
hw_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
hw_gdt_low:
    .short 23
    .long hw_gdt - BASE
    .globl hw_gdt_high
hw_gdt_high:
    .short 23
    .quad hw_gdt
    # Register and value: interrupts off, divisor latch, divisor 1, 8n1, FIFO, DTR and RTS.
hw_uart_setup:
    .byte 1, 0, 3, 0x80, 0, 1, 1, 0, 3, 3, 2, 7, 4, 3
hw_no_64bit:
    .asciz "(XEN) This processor has no 64-bit mode, which Philoxen needs.\r\n"
hw_no_nx:
    .asciz "(XEN) This processor has no no-execute pages (NX), which Philoxen needs.\r\n"
hw_no_base:
    .asciz "(XEN) This processor lacks one of TSC, MSR, PAE, APIC, PGE, FXSR, SSE, SSE2, which Philoxen needs.\r\n"

    .section .data.hw_entry_tsc, "aw"
    .balign 8
    .globl hw_entry_tsc
hw_entry_tsc:
    .quad 0
    # What the compiler puts behind this is 64-bit code.
    .code64
    .text
"#,
    options(att_syntax)
);
