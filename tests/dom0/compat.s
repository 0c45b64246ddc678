# SPDX-License-Identifier: MIT OR Apache-2.0
# A 32-bit program without a library, for tests/compat: makes system calls in both ways that a 64-bit kernel has for it.
# First by the interrupt gate 0x80, then by the entry point that the kernel names in the auxiliary vector
# (AT_SYSINFO): SYSCALL on AMD's processors, SYSENTER on Intel's. The second way is used many times, so that a flag or
# selector which is lost on an interrupted way back shows.

    .set    SYS_EXIT, 1
    .set    SYS_WRITE, 4
    .set    SYS_GETPID, 20
    .set    AT_SYSINFO, 32
    .set    ROUNDS, 20000

    .code32
    .globl  _start
_start:
    mov     %esp, %ebp
    mov     $SYS_WRITE, %eax
    mov     $1, %ebx
    mov     $gate, %ecx
    mov     $gate_length, %edx
    int     $0x80

    # The stack holds the number of arguments, the arguments and 0, the environment and 0, then the auxiliary vector:
    # pairs of type and value up to type 0.
    mov     (%ebp), %ecx
    lea     8(%ebp,%ecx,4), %esi
1:  lodsl
    test    %eax, %eax
    jnz     1b
2:  lodsl
    mov     %eax, %ebx
    lodsl
    test    %ebx, %ebx
    jz      missing
    cmp     $AT_SYSINFO, %ebx
    jne     2b

    mov     %eax, %edi
    mov     $ROUNDS, %esi
3:  mov     $SYS_GETPID, %eax
    call    *%edi
    test    %eax, %eax
    jle     missing
    dec     %esi
    jnz     3b
    mov     $SYS_WRITE, %eax
    mov     $1, %ebx
    mov     $entry, %ecx
    mov     $entry_length, %edx
    call    *%edi
    xor     %ebx, %ebx
    jmp     4f
missing:
    mov     $1, %ebx
4:  mov     $SYS_EXIT, %eax
    int     $0x80

    .section .rodata
gate:
    .ascii  "COMPAT int80\n"
    .set    gate_length, . - gate
entry:
    .ascii  "COMPAT vsyscall\n"
    .set    entry_length, . - entry
