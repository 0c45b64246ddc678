// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entry from guests and exit to them.
//!
//! Every entry builds a [`Regs`] at the top of the processor's main stack and calls one function of the binary with
//! it and with the processor's local data:
//!
//! - `philoxen_syscall(regs, local)` for SYSCALL and SYSENTER;
//! - `philoxen_trap(regs, local)` for exceptions and interrupts from a guest;
//! - `philoxen_first(regs, local)` to fill the frame with the first vCPU that a processor runs;
//! - `philoxen_iret_fault(regs, local)` when returning to the guest itself faulted (bad selector, LDT page missing).
//!
//! Each returns true if SYSRET may be used (flat selectors, canonical RIP, RCX and R11 dead). The frame is then loaded, so a context switch is a matter of writing another vCPU's registers into it.
//! Exceptions in the hypervisor go to [`super::extable`]; NMI, #DF, #MC and #DB have stacks of their own, and move to the
//! main stack when they came from a guest (so #DB on the first instruction after SYSCALL, XSA-260, is harmless).
//!
//! RFLAGS on entry: SYSCALL clears IF, TF, DF, NT, AC through SFMASK; gates clear IF, TF, NT, RF; DF and AC are
//! cleared here.

use super::percpu::{self, BLOCK_SIZE, CpuId};
use super::tables::HYPERVISOR_CS;
use core::arch::{asm, global_asm};
use philoxen_pv::Regs;

/// Vector field of a frame that SYSCALL from 64-bit code made.
pub const VECTOR_SYSCALL: u32 = 0x100;
/// Vector field of a frame that SYSCALL from 32-bit code made.
pub const VECTOR_SYSCALL32: u32 = 0x101;
/// Vector field of a frame that SYSENTER made: its rip, rsp and flags are unknown (zero).
pub const VECTOR_SYSENTER: u32 = 0x102;

/// Bytes of one entry stub.
const STUB_SIZE: usize = 16;
/// Bytes of one per-processor SYSCALL stub.
const SYSCALL_STUB_SIZE: usize = 64;

const _: () = assert!(size_of::<Regs>() == 176);

global_asm!(
    r#"
    .macro SAVE_GENERAL
        push rdi
        push rsi
        push rdx
        push rcx
        push rax
        push r8
        push r9
        push r10
        push r11
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
    .endm
    .macro LOAD_GENERAL
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        pop r11
        pop r10
        pop r9
        pop r8
        pop rax
        pop rcx
        pop rdx
        pop rsi
        pop rdi
    .endm
    /* Patched to nothing on processors without SMAP, see features.rs. */
    .macro SMAP_CLAC
    771: clac
        .pushsection .smap_sites, "a"
        .quad 771b
        .popsection
    .endm

    .section .text.entry, "ax"
    .balign 64
    .global philoxen_stubs
philoxen_stubs:
    .set vector, 0
    .rept 256
    .balign {stub_size}
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
        push 0
    .endif
        push vector
        jmp .Lcommon
    .set vector, vector + 1
    .endr

    .balign 64
.Lcommon:
        SAVE_GENERAL
        cld
        SMAP_CLAC
        test byte ptr [rsp + {cs}], 3
        jz .Lhypervisor
        lea rax, [rsp + {frame}]
        mov rcx, rsp
        or rcx, 0xffff
        sub rcx, {block} - 1
        cmp rax, rcx
        jne .Lmove
    .Ltrap:
        mov rdi, rsp
        mov rsi, [rsp + {frame}]
        xor ebp, ebp
        call philoxen_trap
    .Lexit:
        test al, al
        jnz .Lexit_sysret
    .Lexit_iret:
        LOAD_GENERAL
        add rsp, 16
    .Liret:
        iretq
        .pushsection .ex_table, "a"
        .quad .Liret, .Liret_fault
        .popsection

    /* From a guest, but on an interrupt stack: move the frame to the main stack. IRET to the next line lets NMIs in
       again: nothing may wait for a processor that does not answer them. */
    .Lmove:
        mov rsi, rsp
        lea rdi, [rcx - {frame}]
        mov rsp, rdi
        mov ecx, {frame} / 8
        rep movsq
        mov rax, rsp
        mov ecx, ss
        push rcx
        push rax
        pushfq
        mov ecx, cs
        push rcx
        lea rcx, [rip + .Ltrap]
        push rcx
        iretq

    /* An exception or interrupt in the hypervisor itself. */
    .Lhypervisor:
        mov rdi, rsp
        mov rbp, rsp
        and rsp, -16
        call philoxen_hypervisor_trap
        mov rsp, rbp
        LOAD_GENERAL
        add rsp, 16
        iretq

    /* `iretq` to the guest faulted: rsp is at the five words it wanted, the general registers are the guest's. What
       happened is in the block (percpu::last_fault). */
    .Liret_fault:
        push 0
        push 0
        SAVE_GENERAL
        mov rdi, rsp
        mov rsi, [rsp + {frame}]
        xor ebp, ebp
        call philoxen_iret_fault
        jmp .Lexit

    /* First entry to a guest on a processor: the frame is made by philoxen_first. rdi: top of the main stack. */
    .global philoxen_enter
philoxen_enter:
        lea rsp, [rdi - {frame}]
        mov rdi, rsp
        mov rsi, [rsp + {frame}]
        xor ebp, ebp
        call philoxen_first
        jmp .Lexit

    .balign 64
.Lsyscall:
        push r11
        push 0xe033
        push rcx
        push 0
        push 0x100
        SAVE_GENERAL
        mov rdi, rsp
        mov rsi, [rsp + {frame}]
        xor ebp, ebp
        call philoxen_syscall
        test al, al
        jz .Lexit_iret
    .Lexit_sysret:
        LOAD_GENERAL
        mov rcx, [rsp + 16]
        mov r11, [rsp + 32]
        mov rsp, [rsp + 40]
        sysretq

.Lsyscall32:
        push r11
        push 0xe023
        push rcx
        push 0
        push 0x101
        SAVE_GENERAL
        mov rdi, rsp
        mov rsi, [rsp + {frame}]
        xor ebp, ebp
        call philoxen_syscall
        jmp .Lexit

    /* SYSENTER saves nothing: the guest's handler gets zeros for what is not known. NT may still be set. */
    .global philoxen_sysenter
philoxen_sysenter:
        push 0xe02b
        push 0
        push 0
        popfq
        push 0x202
        push 3
        push 0
        push 0
        push 0x102
        SAVE_GENERAL
        SMAP_CLAC
        mov rdi, rsp
        mov rsi, [rsp + {frame}]
        xor ebp, ebp
        call philoxen_syscall
        jmp .Lexit

    /* SYSCALL leaves the guest's rsp in place, and no register is free: each processor has its own entry code with
       its own two words of memory. */
    .balign 64
    .global philoxen_syscall_stubs
philoxen_syscall_stubs:
    .set number, 0
    .rept {max_cpus}
    .balign {syscall_stub_size}
        mov [rip + philoxen_syscall_words + number * 16], rsp
        mov rsp, [rip + philoxen_syscall_words + number * 16 + 8]
        push 0xe02b
        push [rip + philoxen_syscall_words + number * 16]
        jmp .Lsyscall
    .balign 32
        mov [rip + philoxen_syscall_words + number * 16], rsp
        mov rsp, [rip + philoxen_syscall_words + number * 16 + 8]
        push 0xe02b
        push [rip + philoxen_syscall_words + number * 16]
        jmp .Lsyscall32
    .set number, number + 1
    .endr

    .section .bss.syscall_words, "aw", @nobits
    .balign 16
    .global philoxen_syscall_words
philoxen_syscall_words:
    .skip {max_cpus} * 16
    .text
    "#,
    stub_size = const STUB_SIZE,
    syscall_stub_size = const SYSCALL_STUB_SIZE,
    max_cpus = const percpu::MAX_CPUS,
    block = const BLOCK_SIZE,
    frame = const size_of::<Regs>(),
    cs = const core::mem::offset_of!(Regs, cs),
);

unsafe extern "C" {
    static philoxen_stubs: [[u8; STUB_SIZE]; 256];
    static philoxen_syscall_stubs: [[u8; SYSCALL_STUB_SIZE]; percpu::MAX_CPUS];
    static philoxen_sysenter: u8;
    static mut philoxen_syscall_words: [[u64; 2]; percpu::MAX_CPUS];
    fn philoxen_enter(stack_top: u64) -> !;
}

/// Leaves the boot stack for the main stack of `cpu`, which runs this, and calls `next` there.
pub fn on_main_stack(cpu: CpuId, next: extern "C" fn() -> !) -> ! {
    let top = percpu::stack_top(cpu);
    // SAFETY: percpu::init mapped the stack, which is empty; the abandoned one holds nothing that is used again. `call`
    // leaves the alignment the ABI wants, and the zero frame pointer ends backtraces.
    unsafe {
        asm!("mov rsp, {}", "xor ebp, ebp", "call {}", "ud2", in(reg) top, in(reg) next, options(noreturn))
    }
}

/// Leaves the present stack of `cpu`, which runs this, for good: its first vCPU is scheduled and entered.
pub fn enter_first_guest(cpu: CpuId) -> ! {
    // SAFETY: percpu::init mapped the main stack, which is empty; nothing on the abandoned stack is used again.
    unsafe { philoxen_enter(percpu::stack_top(cpu)) }
}

/// Address of the entry stub of `vector`.
pub(super) fn stub(vector: usize) -> u64 {
    (&raw const philoxen_stubs) as u64 + (vector * STUB_SIZE) as u64
}

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SFMASK: u32 = 0xc000_0084;
const MSR_SYSENTER_CS: u32 = 0x174;
const MSR_SYSENTER_ESP: u32 = 0x175;
const MSR_SYSENTER_EIP: u32 = 0x176;
/// RFLAGS that SYSCALL clears: TF, IF, DF, IOPL, NT, RF, AC.
const SFMASK: u64 = 0x5_7700;

/// Points SYSCALL and SYSENTER of `cpu`, which runs this, at its entry code.
pub(super) fn program_syscall_msrs(cpu: CpuId) {
    let stub = (&raw const philoxen_syscall_stubs) as u64 + (cpu * SYSCALL_STUB_SIZE) as u64;
    let words = (&raw mut philoxen_syscall_words).cast::<[u64; 2]>();
    // SAFETY: `cpu` is below MAX_CPUS (percpu::init would have failed), and only this processor's entry code uses the words.
    unsafe { words.add(cpu).write([0, percpu::stack_top(cpu)]) };
    // SYSRET to 64-bit code takes CS from bits 63..48 plus 16 and SS from there plus 8.
    let star = 0xe023 << 48 | u64::from(HYPERVISOR_CS) << 32;
    let writes = [
        (MSR_STAR, star),
        (MSR_LSTAR, stub),
        (MSR_CSTAR, stub + 32),
        (MSR_SFMASK, SFMASK),
        (MSR_SYSENTER_CS, u64::from(HYPERVISOR_CS)),
        (MSR_SYSENTER_ESP, percpu::stack_top(cpu)),
        (MSR_SYSENTER_EIP, (&raw const philoxen_sysenter) as u64),
    ];
    for (msr, value) in writes {
        // SAFETY: architectural MSRs of every 64-bit processor; the entries lead to code written for them above.
        unsafe { super::asm::wrmsr(msr, value) };
    }
}
