// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is printed when something went wrong: registers, backtraces with names, a guest's last state.

use crate::cpu::Running;
use philoxen_abi::{GuestMemory, GuestVa};
use philoxen_domain::symbols::Symbols;
use philoxen_hw::cpu::{asm, backtrace as stack, guest::LoadedGuest, state};
use philoxen_hw::error;
use philoxen_pv::Regs;

static BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/symbols.bin"));
/// Virtual address that symbol offsets count from.
const IMAGE_BASE: u64 = 0xffff_8080_0000_0000;
/// Frames shown of the hypervisor's stack.
const MAX_FRAMES: usize = 32;
/// Words shown of a guest's stack.
const STACK_WORDS: u64 = 16;

/// Prints one code address with its function.
pub fn location(address: u64) {
    let symbol = address
        .checked_sub(IMAGE_BASE)
        .and_then(|offset| u32::try_from(offset).ok())
        .and_then(|offset| Symbols::new(BLOB).find(offset));
    match symbol {
        Some((name, offset)) => error!("  [{address:016x}] {name}+{offset:#x}"),
        None => error!("  [{address:016x}]"),
    }
}

/// Prints the hypervisor's calls from frame pointer `rbp` on.
pub fn backtrace(rbp: u64) {
    error!("Call trace:");
    // A return address is behind its call: one byte back is inside.
    stack::walk(rbp, MAX_FRAMES, |address| location(address.wrapping_sub(1)));
}

/// Prints a register frame.
pub fn registers(r: &Regs) {
    error!(
        "rip {:04x}:{:016x} rsp {:04x}:{:016x} rflags {:08x}",
        r.cs, r.rip, r.ss, r.rsp, r.rflags
    );
    error!(
        "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
        r.rax, r.rbx, r.rcx, r.rdx
    );
    error!(
        "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
        r.rsi, r.rdi, r.rbp, r.r8
    );
    error!(
        "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
        r.r9, r.r10, r.r11, r.r12
    );
    error!("r13 {:016x} r14 {:016x} r15 {:016x}", r.r13, r.r14, r.r15);
}

/// Prints why the running domain is ended, and the state of its vCPU.
pub fn guest_crash(running: &Running, regs: &Regs, reason: core::fmt::Arguments<'_>) {
    let mode = if running.state.pv.in_kernel {
        "kernel"
    } else {
        "user"
    };
    error!(
        "d{}v{} crashed ({mode} mode): {reason}",
        running.domain.id.0, running.id.0
    );
    error!(
        "vector {:#x} error {:#x} cr2 {:016x} cr3 {:016x}",
        regs.vector,
        regs.error_code,
        asm::read_cr2(),
        asm::read_cr3()
    );
    registers(regs);
    let [fs, active, other] = state::bases();
    let [ds, es, fs_selector, gs] = state::read_selectors();
    error!(
        "ds {ds:04x} es {es:04x} fs {fs_selector:04x} gs {gs:04x} fs base {fs:016x} gs base {active:016x} other {other:016x}"
    );
    guest_stack(regs.rsp);
}

fn guest_stack(rsp: u64) {
    error!("Guest stack from rsp:");
    for line in 0..STACK_WORDS / 4 {
        let word = |index| LoadedGuest.read::<u64>(GuestVa(rsp).element(line * 4 + index, 8));
        let (Ok(a), Ok(b), Ok(c), Ok(d)) = (word(0), word(1), word(2), word(3)) else {
            error!(
                "  not readable from {:016x} on",
                rsp.wrapping_add(line * 32)
            );
            return;
        };
        error!("  {a:016x} {b:016x} {c:016x} {d:016x}");
    }
}
