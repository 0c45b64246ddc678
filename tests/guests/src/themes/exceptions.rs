// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions in kernel and user mode, the `iret` hypercall, callbacks, system calls.
//!
//! Names end with the number of the advisory whose attack the check repeats.

use crate::probe;
use crate::rt::entry::VECTOR_FAILSAFE;
use crate::rt::memory::{self, KERNEL_CS, KERNEL_SS, Page};
use crate::rt::traps::{self, Frame, Trap};
use crate::rt::{cell::Racy, check::Checks, entry, events, hyper};
use crate::themes::user_mode;
use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;
use philoxen_abi::hypercall as nr;

/// An address that is not canonical.
pub const NOT_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// Runs the theme.
pub fn run(t: &mut Checks) {
    kernel_faults(t);
    page_faults(t);
    software_interrupts(t);
    frames(t);
    masking(t);
    nested(t);
    kernel_iret(t);
    flags_at_entry(t);
    tables(t);
    user_mode::run(t);
}

fn code(trap: Option<Trap>) -> Option<(u64, u64)> {
    trap.map(|trap| trap.code())
}

fn kernel_faults(t: &mut Checks) {
    // SAFETY: each instruction only faults.
    let divide = unsafe {
        probe!(["xor edx, edx", "xor {0:e}, {0:e}", "div {0:e}"] out(reg) _, out("rax") _, out("rdx") _,)
    };
    t.equal("divide error", code(divide), Some((0, 0)));
    // SAFETY: as above.
    let breakpoint = unsafe { probe!(["lea {0}, [rip + 3f]", "int3", "3:", "nop"] out(reg) _,) };
    t.equal("breakpoint", code(breakpoint), Some((3, 0)));
    let (next, at): (u64, u64);
    // SAFETY: as above.
    let trap = unsafe { probe!(["lea {0}, [rip + 3f]", "int3", "3:", "nop"] out(reg) next,) };
    t.equal(
        "breakpoint returns behind itself",
        trap.map(|trap| trap.frame.rip),
        Some(next),
    );
    // SAFETY: as above.
    let trap = unsafe { probe!(["lea {0}, [rip + 3f]", "3: ud2"] out(reg) at,) };
    t.equal("invalid opcode", code(trap), Some((6, 0)));
    t.equal(
        "invalid opcode at itself",
        trap.map(|trap| trap.frame.rip),
        Some(at),
    );
    t.equal(
        "kernel code selector with RPL 0",
        trap.map(|trap| trap.frame.selector()),
        Some(KERNEL_CS & !3),
    );
    // SAFETY: as above.
    let trap = unsafe { probe!(["mov {0}, [{0}]"] inout(reg) NOT_CANONICAL => _,) };
    t.equal("non-canonical address", code(trap), Some((13, 0)));
    // SAFETY: as above; the data segments are not used.
    let trap = unsafe { probe!(["mov ds, {0:e}"] in(reg) 0x1233_u64,) };
    t.equal(
        "selector behind the GDT's entries",
        code(trap),
        Some((13, 0x1230)),
    );
    // SAFETY: as above.
    let trap = unsafe { probe!(["mov ss, {0:e}"] in(reg) 0_u64,) };
    t.equal(
        "null stack selector",
        trap.map(|trap| trap.frame.vector),
        Some(13),
    );
    for number in 0..3 {
        let trap = match number {
            // SAFETY: as above.
            0 => unsafe { probe!(["lidt [{0}]"] in(reg) memory::start().address,) },
            // SAFETY: as above.
            1 => unsafe { probe!(["ltr {0:x}"] in(reg) 0_u64,) },
            // SAFETY: as above.
            _ => unsafe { probe!(["lldt {0:x}"] in(reg) 0x8_u64,) },
        };
        t.equal(
            "privileged instruction",
            trap.map(|trap| trap.frame.vector),
            Some(13),
        );
    }
}

fn page_faults(t: &mut Checks) {
    let page = Page::take();
    let place = page.0 + 0x123;
    let report = |trap: Option<Trap>| trap.map(|trap| (trap.code(), trap.cr2));
    // SAFETY: reads and writes of a test page whose faults are expected.
    let read = || unsafe { probe!(["mov {0:l}, [{0}]"] inout(reg) place => _,) };
    // SAFETY: as above.
    let write = || unsafe { probe!(["mov byte ptr [{0}], 1"] in(reg) place,) };
    t.ok("unmap", page.unmap());
    t.equal("read of nothing", report(read()), Some(((14, 0), place)));
    t.equal("write to nothing", report(write()), Some(((14, 2), place)));
    t.ok("read-only", page.protect());
    t.that("read of a read-only page", read().is_none());
    t.equal(
        "write to a read-only page",
        report(write()),
        Some(((14, 3), place)),
    );
    t.ok("restore", page.restore());
    t.that("write to a writable page", write().is_none());
    t.equal(
        "read across into nothing",
        report(across(page)),
        Some(((14, 0), page.0 + 4096)),
    );
    for address in [
        0,
        0x1000,
        0x7fff_ffff_f000,
        philoxen_abi::addr::HYPERVISOR_START + (3 << 40),
        u64::MAX - 4095,
    ] {
        // SAFETY: as above.
        let trap = unsafe { probe!(["mov {0:l}, [{0}]"] inout(reg) address => _,) };
        t.equal(
            "address reported",
            trap.map(|trap| (trap.frame.vector, trap.cr2)),
            Some((14, address)),
        );
    }
    // SAFETY: as above.
    let trap = unsafe { probe!(["mov [{0}], {0}"] in(reg) philoxen_abi::addr::HYPERVISOR_START,) };
    t.equal(
        "write to the M2P table",
        trap.map(|trap| trap.frame.vector),
        Some(14),
    );
}

/// Reads a word that lies across the end of `page`, whose successor is unmapped for the time.
fn across(page: Page) -> Option<Trap> {
    let next = Page::take();
    assert_eq!(next, page.plus(1), "the next page of the pool");
    next.unmap();
    // SAFETY: a read whose fault is expected.
    let trap = unsafe { probe!(["mov {0}, [{0}]"] inout(reg) page.0 + 4092 => _,) };
    next.restore();
    trap
}

/// QEMU before 10.0 reports 16n+2 instead of 8n+2 for `int n` through a closed gate, and a hypervisor that believes it takes 2n for the vector.
fn software_interrupts(t: &mut Checks) {
    // SAFETY: software interrupts with a handler that resumes behind them.
    let trap = unsafe { probe!(["int 0x30"]) };
    let good = matches!(code(trap), Some((13, 0x182 | 0x302)));
    t.note("closed gate", good, &code(trap));
    for vector in [0x30, 0x60] {
        t.ok(
            "open the gate to the kernel",
            traps::set_gate(vector, 4 | 1, entry::address(vector)),
        );
    }
    // SAFETY: as above.
    let trap = unsafe { probe!(["int 0x30"]) };
    t.note(
        "open gate",
        matches!(code(trap), Some((0x30 | 0x60, 0))),
        &code(trap),
    );
    for vector in [0x30, 0x60] {
        t.ok(
            "close the gate",
            traps::set_gate(vector, 4, entry::address(vector)),
        );
    }
    // SAFETY: as above.
    let trap = unsafe { probe!(["int 0x80"]) };
    t.equal("int 0x80", code(trap), Some((0x80, 0)));
    // SAFETY: as above.
    let trap = unsafe { probe!([".byte 0xcd, 3"]) };
    t.note(
        "two-byte int 3",
        trap.is_some_and(|trap| [3, 13].contains(&trap.frame.vector)),
        &code(trap),
    );
}

static SEEN: Racy<[u64; 4]> = Racy::new([0; 4]);

/// Looks at an entry by `ud2` and skips it.
fn look(frame: &mut Frame) -> bool {
    if frame.vector != 6 {
        return false;
    }
    let end = core::ptr::from_ref(frame) as u64 + size_of::<Frame>() as u64;
    SEEN.replace([
        end,
        frame.cs,
        frame.rflags,
        u64::from(memory::upcall_mask()),
    ]);
    frame.rip += 2;
    true
}

/// Raises an exception on a stack that is `below` bytes lower, with `flags` set.
fn raise(below: u64, flags: u64) -> [u64; 4] {
    traps::hook(Some(look));
    // SAFETY: the hook skips the ud2; stack and flags are put back.
    unsafe {
        asm!("mov {s}, rsp", "sub rsp, {below}", "pushfq", "or [rsp], {flags}", "popfq", "ud2",
            "pushfq", "and qword ptr [rsp], {clear}", "popfq", "mov rsp, {s}",
            s = out(reg) _, below = in(reg) below, flags = in(reg) flags, clear = const !0x4_4500_i32);
    }
    traps::hook(None);
    SEEN.get()
}

fn frames(t: &mut Checks) {
    for below in [0, 8, 16, 24, 1, 7] {
        let [end, ..] = raise(1024 + below, 0);
        t.equal("stack aligned to 16", end % 16, 0);
    }
    let registers: [u64; 14] = core::array::from_fn(|n| 0x1111_1111_1111_1111 * (n as u64 + 1));
    let mut after = registers;
    traps::hook(Some(look));
    // SAFETY: the hook skips the ud2; all registers are declared or put back.
    unsafe {
        asm!("push rbx", "push rbp", "push r11",
            "mov rax, [r11]", "mov rbx, [r11 + 8]", "mov rcx, [r11 + 16]", "mov rdx, [r11 + 24]", "mov rsi, [r11 + 32]",
            "mov rdi, [r11 + 40]", "mov rbp, [r11 + 48]", "mov r8, [r11 + 56]", "mov r9, [r11 + 64]", "mov r10, [r11 + 72]",
            "mov r12, [r11 + 80]", "mov r13, [r11 + 88]", "mov r14, [r11 + 96]", "mov r15, [r11 + 104]", "ud2",
            "xchg rax, [rsp]", "xchg rax, r11", "cmp rax, r11", "mov rax, [rsp]",
            "mov [r11], rax", "mov [r11 + 8], rbx", "mov [r11 + 16], rcx", "mov [r11 + 24], rdx", "mov [r11 + 32], rsi",
            "mov [r11 + 40], rdi", "mov [r11 + 48], rbp", "mov [r11 + 56], r8", "mov [r11 + 64], r9", "mov [r11 + 72], r10",
            "mov [r11 + 80], r12", "mov [r11 + 88], r13", "mov [r11 + 96], r14", "mov [r11 + 104], r15",
            "pop r11", "pop rbp", "pop rbx",
            inout("r11") after.as_mut_ptr() => _, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _);
    }
    traps::hook(None);
    t.equal("registers kept over an exception", after, registers);
}

fn masking(t: &mut Checks) {
    t.ok("gate that masks", traps::set_gate(6, 4, entry::address(6)));
    memory::set_upcall_mask(0);
    let [_, cs, flags, mask] = raise(0, 0);
    t.equal("masked on entry", mask, 1);
    t.equal("mask before saved", cs >> 32 & 0xff, 0);
    t.equal("interrupt flag shows it", flags & 0x200, 0x200);
    t.equal("mask restored by iret", memory::upcall_mask(), 0);
    t.ok(
        "gate that does not mask",
        traps::set_gate(6, 0, entry::address(6)),
    );
    let [.., mask] = raise(0, 0);
    t.equal("not masked on entry", mask, 0);
    memory::set_upcall_mask(1);
    let [_, cs, flags, mask] = raise(0, 0);
    t.equal("stays masked", mask, 1);
    t.equal("mask saved", cs >> 32 & 0xff, 1);
    t.equal("interrupt flag clear", flags & 0x200, 0);
    t.equal("masked after iret", memory::upcall_mask(), 1);
    t.ok("gate as before", traps::set_gate(6, 4, entry::address(6)));
}

fn nested(t: &mut Checks) {
    /// Faults four times inside the handler, by page fault and divide error.
    fn deep(frame: &mut Frame) -> bool {
        if frame.vector != 6 {
            return false;
        }
        let resume = traps::RESUME.load(Relaxed);
        let mut count = 0;
        for _ in 0..4 {
            // SAFETY: faults that are expected.
            let trap = unsafe { probe!(["mov {0}, [{0}]"] inout(reg) 0x1000_u64 => _,) };
            count += u64::from(code(trap) == Some((14, 0)));
        }
        SEEN.replace([count, 0, 0, 0]);
        traps::RESUME.store(resume, Relaxed);
        frame.rip += 2;
        true
    }
    traps::hook(Some(deep));
    let mut value = 5_u64;
    // SAFETY: the hook skips the ud2.
    unsafe { asm!("ud2", "inc {0}", inout(reg) value) };
    traps::hook(None);
    t.equal("faults inside a handler", SEEN.get()[0], 4);
    t.equal("and back", value, 6);
}

/// Returns to the next instruction in kernel mode by the `iret` hypercall with these slots; gives the flags then, and
/// the trap if one came first.
fn iret(flags: u64, vgcf: u64, cs: u64, ss: u64, rip: Option<u64>) -> (u64, Option<Trap>) {
    let mut after = flags;
    traps::taken();
    // SAFETY: the frame returns to the label behind the hypercall or faults, and then the handler goes there.
    unsafe {
        asm!("lea rdx, [rip + 78f]", "mov [rip + guest_resume], rdx",
            "test {target}, {target}", "cmovz {target}, rdx", "mov r12, rsp", "and rsp, -16",
            "push {ss}", "push r12", "push {flags}", "push {cs}", "push {target}", "push {vgcf}",
            "push 0x33", "push 0x22", "push 0x11", "mov eax, 23", "syscall",
            "78:", "mov rsp, r12", "pushfq", "pop {flags}", "push 2", "popfq",
            flags = inout(reg) after, target = inout(reg) rip.unwrap_or(0) => _, cs = in(reg) cs, ss = in(reg) ss, vgcf = in(reg) vgcf,
            out("rax") _, out("rcx") _, out("r11") _, out("rdx") _, out("r12") _);
    }
    (after, traps::taken())
}

fn kernel_iret(t: &mut Checks) {
    let kernel = KERNEL_CS & !3;
    let plain = iret(0x202, 0, kernel, KERNEL_SS, None);
    t.that("plain return", plain.1.is_none());
    t.equal(
        "upcalls allowed by the interrupt flag",
        memory::upcall_mask(),
        0,
    );
    let masked = iret(0x2, 0, kernel, KERNEL_SS, None);
    t.that("return with the interrupt flag clear", masked.1.is_none());
    t.equal(
        "upcalls masked by the interrupt flag",
        memory::upcall_mask(),
        1,
    );
    t.that("real interrupts stay on (202)", masked.0 & 0x200 != 0);
    let carry = iret(0x2 | 1 | 0x40 | 0x80 | 0x800, 0, kernel, KERNEL_SS, None);
    t.equal("arithmetic flags", carry.0 & 0x8c1, 0x8c1);
    let level = iret(0x3002, 0, kernel, KERNEL_SS, None);
    t.equal("no real I/O privilege level", level.0 & 0x3000, 0);
    let nested = iret(0x4002, 0, kernel, KERNEL_SS, None);
    t.that("return with the nested-task flag (44)", nested.1.is_none());
    let wild = iret(
        0x2 | 0x2_0000 | 0x1_0000 | 0x18_0000 | 0x20_0000,
        0,
        kernel,
        KERNEL_SS,
        None,
    );
    t.that("no virtual-8086 mode", wild.0 & 0x1a_0000 == 0);
    let step = iret(0x102, 0, kernel, KERNEL_SS, None);
    t.equal("single step after return", code(step.1), Some((1, 0)));
    let fast = iret(0x202, 0x100, kernel, KERNEL_SS, None);
    t.that("return as from a system call", fast.1.is_none());
    for vgcf in [0, 0x100] {
        for rip in [NOT_CANONICAL, 0x0000_8000_0000_0000, 0xffff_7fff_ffff_fff0] {
            let bad = iret(0x202, vgcf, kernel, KERNEL_SS, Some(rip));
            let vector = bad.1.map(|trap| trap.frame.vector);
            t.note(
                "non-canonical rip (7)",
                matches!(vector, Some(13 | 14 | VECTOR_FAILSAFE)),
                &vector,
            );
        }
    }
    for (cs, ss) in [
        (0x1230, KERNEL_SS),
        (kernel, 0x1233),
        (0x8, KERNEL_SS),
        (kernel, 0x18 | 3),
        (0xe000, KERNEL_SS),
    ] {
        let (_, trap) = iret(0x202, 0, cs, ss, None);
        let vector = trap.map(|trap| trap.frame.vector);
        let good = matches!(vector, None | Some(10..=13 | VECTOR_FAILSAFE));
        t.note("bad selectors in iret (215)", good, &(cs, ss, vector));
    }
    memory::set_upcall_mask(1);
}

fn flags_at_entry(t: &mut Checks) {
    let [_, _, flags, _] = raise(0, 0x4000 | 0x4_0000);
    t.equal("nested-task flag saved", flags & 0x4000, 0x4000);
    t.equal("alignment-check flag saved", flags & 0x4_0000, 0x4_0000);
    /// Notes the flags that the handler itself runs with.
    fn inside(frame: &mut Frame) -> bool {
        let flags: u64;
        // SAFETY: reads the flags.
        unsafe { asm!("pushfq", "pop {0}", out(reg) flags) };
        SEEN.replace([flags, 0, 0, 0]);
        frame.rip += 2;
        true
    }
    traps::hook(Some(inside));
    // SAFETY: the hook skips the ud2; the flags are put back.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x44000",
            "popfq",
            "ud2",
            "pushfq",
            "and dword ptr [rsp], 0xfffbbfff",
            "popfq"
        )
    };
    traps::hook(None);
    t.equal("handler without those flags", SEEN.get()[0] & 0x4_4100, 0);
    let before = hyper::call(nr::XEN_VERSION, [0; 5]);
    // SAFETY: sets a flag for the time of one hypercall.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x44000", "popfq") };
    let under = hyper::call(nr::XEN_VERSION, [0; 5]);
    // SAFETY: clears it.
    unsafe { asm!("pushfq", "and dword ptr [rsp], 0xfffbbfff", "popfq") };
    t.equal("hypercall under the nested-task flag (44)", under, before);
}

fn tables(t: &mut Checks) {
    let far = philoxen_abi::addr::HYPERVISOR_START + (1 << 42);
    for place in [far, 0x1000, 1 << 47, u64::MAX - 7] {
        t.equal(
            "trap table at a bad place",
            hyper::call(nr::SET_TRAP_TABLE, [place, 0, 0, 0, 0]),
            -14,
        );
    }
    for address in [NOT_CANONICAL, 0xffff_8080_0000_0000] {
        let result = traps::set_gate(0x41, 0, address);
        t.that("handler at a bad address", (-4095..=0).contains(&result));
    }
    // SAFETY: a closed or open gate; either way it traps.
    let trap = unsafe { probe!(["int 0x41"]) };
    t.that("bad handler is not reached", trap.is_some());
    t.ok(
        "gate 0x41 as before",
        traps::set_gate(0x41, 4, entry::address(0x41)),
    );
    let count = events::UPCALLS.load(Relaxed);
    t.equal("no upcall came by itself", count, 0);
    for (which, name) in [
        (0, "event callback"),
        (1, "failsafe callback"),
        (2, "syscall callback"),
    ] {
        let mut good = [256, 257, 258].map(entry::address);
        let keep = good;
        good[which] = NOT_CANONICAL;
        let [event, failsafe, syscall] = good;
        let result = hyper::call(nr::SET_CALLBACKS, [event, failsafe, syscall, 0, 0]);
        t.note(name, (-4095..=0).contains(&result), &result);
        let [event, failsafe, syscall] = keep;
        t.ok(
            "callbacks back",
            hyper::call(nr::SET_CALLBACKS, [event, failsafe, syscall, 0, 0]),
        );
    }
    for (kind, vector) in [(0, 256), (1, 257), (2, 258), (4, entry::VECTOR_NMI)] {
        let mut argument = [kind, entry::address(vector)];
        t.ok(
            "callback_op",
            hyper::call(nr::CALLBACK_OP, [0, hyper::address(&mut argument), 0, 0, 0]),
        );
    }
    t.refused(
        "unknown callback",
        hyper::call(
            nr::CALLBACK_OP,
            [0, hyper::address(&mut [77_u64, 0]), 0, 0, 0],
        ),
    );
    t.refused(
        "event callback unregistered",
        hyper::call(
            nr::CALLBACK_OP,
            [1, hyper::address(&mut [0_u64, 0]), 0, 0, 0],
        ),
    );
}
