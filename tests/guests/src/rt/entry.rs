// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ELF notes that make this program a PV kernel, its first instructions, and the ways in from the hypervisor.
//!
//! Bounce frames are those of xen/arch-x86_64.h: `rcx r11 [error] rip cs rflags rsp ss` in ascending order. Every
//! entry turns its frame into one [`super::traps::Frame`], whose upper part is what the `iret` hypercall wants.

use core::arch::global_asm;

/// Pseudo vector of the event callback.
pub const VECTOR_EVENT: u64 = 256;
/// Pseudo vector of the failsafe callback.
pub const VECTOR_FAILSAFE: u64 = 257;
/// Pseudo vector of the syscall callback.
pub const VECTOR_SYSCALL: u64 = 258;
/// Pseudo vector of the NMI callback.
pub const VECTOR_NMI: u64 = 259;
/// Bytes between the entries of `guest_entries`.
pub const ENTRY_SIZE: u64 = 32;

unsafe extern "C" {
    /// 260 entries of [`ENTRY_SIZE`] bytes: one per exception vector, then the callbacks.
    static guest_entries: u8;
}

/// Address of the entry for `vector`.
pub fn address(vector: u64) -> u64 {
    &raw const guest_entries as u64 + vector * ENTRY_SIZE
}

// Notes: type, then either a terminated string or one 8-byte number.
global_asm!(
    r#"
    .macro XEN_STRING type, text:vararg
        .long 4, 2f - 1f, \type
        .asciz "Xen"
    1:  .asciz \text
    2:  .balign 4
    .endm
    .macro XEN_NUMBER type, value:vararg
        .long 4, 8, \type
        .asciz "Xen"
        .quad \value
    .endm
    .pushsection .note.Xen, "a", @note
    XEN_STRING 6, "philoxen-test-guest"
    XEN_STRING 7, "1"
    XEN_STRING 5, "xen-3.0"
    XEN_STRING 8, "generic"
    XEN_STRING 10, "!writable_page_tables|pae_pgdir_above_4gb"
    XEN_STRING 9, "yes"
    XEN_NUMBER 3, 0xffffffff80000000
    XEN_NUMBER 4, 0
    XEN_NUMBER 1, guest_start
    XEN_NUMBER 12, 0xffff800000000000
    XEN_NUMBER 17, 0x8801
    XEN_NUMBER 14, 1
    .popsection
"#
);

#[cfg(not(feature = "legacy-layout"))]
global_asm!(
    r#"
    .pushsection .note.Xen, "a", @note
    XEN_NUMBER 15, 0x8000000000
    XEN_NUMBER 16, 1
    .popsection
"#
);

#[cfg(feature = "legacy-layout")]
global_asm!(
    r#"
    .pushsection .note.Xen, "a", @note
    XEN_NUMBER 2, guest_hypercall_page
    .popsection
    .pushsection .bss.hypercall_page, "aw", @nobits
    .balign 4096
    .globl guest_hypercall_page
    guest_hypercall_page: .skip 4096
    .popsection
"#
);

global_asm!(
    r#"
    .pushsection .text.start, "ax", @progbits
    .globl guest_start
guest_start:
    cld
    mov rbx, rsp
    lea rsp, [rip + guest_boot_stack_top]
    xor ebp, ebp
    mov rdi, rsi
    mov rsi, rbx
    call guest_main
    ud2
    .popsection

    .pushsection .bss.stacks, "aw", @nobits
    .balign 4096
    .skip 131072
    .globl guest_boot_stack_top
guest_boot_stack_top:
    .skip 65536
    .globl guest_trap_stack_top
guest_trap_stack_top:
    .popsection

    .pushsection .text, "ax", @progbits
    .balign 32
    .globl guest_entries
guest_entries:
    .set vector, 0
    .rept 260
    .balign 32
    pop rcx
    pop r11
    .if vector == 257
    add rsp, 32                          # ds es fs gs of the failsafe frame
    .endif
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21
    push 0                               # no error code here
    .endif
    push rcx
    push r11
    push rax
    mov eax, offset vector
    jmp guest_entry_common
    .set vector, vector + 1
    .endr

guest_entry_common:
    push rax
    push rbx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    cld
    call guest_trap
    mov rsp, rbx
    .globl guest_leave
guest_leave:
    pop r15
    pop r14
    pop r13
    pop r12
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rbx
    add rsp, 8
    mov eax, 23
    syscall
    ud2

    # fn(frame: *const Frame): leaves for user mode by the frame; returns when guest_user_return is reached.
    .globl guest_enter_user
guest_enter_user:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + guest_user_stack], rsp
    mov rsp, rdi
    jmp guest_leave
    .globl guest_user_return
guest_user_return:
    mov rsp, [rip + guest_user_stack]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    .popsection

    .pushsection .bss.user, "aw", @nobits
    .balign 8
    .globl guest_user_stack
guest_user_stack: .skip 8
    .popsection
"#
);
