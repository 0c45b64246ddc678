// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions in kernel and user mode, the `iret` hypercall, callbacks, system calls.
//!
//! Names end with the number of the advisory whose attack the check repeats.

use crate::probe;
use crate::rt::entry::{VECTOR_FAILSAFE, VECTOR_SYSCALL};
use crate::rt::memory::{self, KERNEL_CS, KERNEL_SS, Page};
use crate::rt::traps::{self, Frame, Trap};
use crate::rt::user::{CODE, DATA, STACK, Space};
use crate::rt::{cell::Racy, check::Checks, entry, events, hyper};
use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;
use philoxen_abi::hypercall as nr;

/// An address that is not canonical.
const NOT_CANONICAL: u64 = 0x8000_0000_0000_0000;

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
    let space = Space::new();
    system_calls(t, &space);
    user_faults(t, &space);
    segment_bases(t, &space);
    bad_returns(t, &space);
    tables(t);
    random_frames(t, &space);
}

fn code(trap: Option<Trap>) -> Option<(u64, u64)> {
    trap.map(|trap| trap.code())
}

fn kernel_faults(t: &mut Checks) {
    // SAFETY: each instruction only faults.
    let divide = unsafe { probe!(["xor edx, edx", "xor {0:e}, {0:e}", "div {0:e}"] out(reg) _, out("rax") _, out("rdx") _,) };
    t.equal("divide error", code(divide), Some((0, 0)));
    // SAFETY: as above.
    let breakpoint = unsafe { probe!(["lea {0}, [rip + 3f]", "int3", "3:", "nop"] out(reg) _,) };
    t.equal("breakpoint", code(breakpoint), Some((3, 0)));
    let (next, at): (u64, u64);
    // SAFETY: as above.
    let trap = unsafe { probe!(["lea {0}, [rip + 3f]", "int3", "3:", "nop"] out(reg) next,) };
    t.equal("breakpoint returns behind itself", trap.map(|trap| trap.frame.rip), Some(next));
    // SAFETY: as above.
    let trap = unsafe { probe!(["lea {0}, [rip + 3f]", "3: ud2"] out(reg) at,) };
    t.equal("invalid opcode", code(trap), Some((6, 0)));
    t.equal("invalid opcode at itself", trap.map(|trap| trap.frame.rip), Some(at));
    t.equal("kernel code selector with RPL 0", trap.map(|trap| trap.frame.selector()), Some(KERNEL_CS & !3));
    // SAFETY: as above.
    let trap = unsafe { probe!(["mov {0}, [{0}]"] inout(reg) NOT_CANONICAL => _,) };
    t.equal("non-canonical address", code(trap), Some((13, 0)));
    // SAFETY: as above; the data segments are not used.
    let trap = unsafe { probe!(["mov ds, {0:e}"] in(reg) 0x1233_u64,) };
    t.equal("selector behind the GDT's entries", code(trap), Some((13, 0x1230)));
    // SAFETY: as above.
    let trap = unsafe { probe!(["mov ss, {0:e}"] in(reg) 0_u64,) };
    t.equal("null stack selector", trap.map(|trap| trap.frame.vector), Some(13));
    for number in 0..3 {
        // SAFETY: as above.
        let trap = match number {
            0 => unsafe { probe!(["lidt [{0}]"] in(reg) memory::start().address,) },
            1 => unsafe { probe!(["ltr {0:x}"] in(reg) 0_u64,) },
            _ => unsafe { probe!(["lldt {0:x}"] in(reg) 0x8_u64,) },
        };
        t.equal("privileged instruction", trap.map(|trap| trap.frame.vector), Some(13));
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
    t.equal("write to a read-only page", report(write()), Some(((14, 3), place)));
    t.ok("restore", page.restore());
    t.that("write to a writable page", write().is_none());
    t.equal("read across into nothing", report(across(page)), Some(((14, 0), page.0 + 4096)));
    for address in [0, 0x1000, 0x7fff_ffff_f000, philoxen_abi::addr::HYPERVISOR_START + (3 << 40), u64::MAX - 4095] {
        // SAFETY: as above.
        let trap = unsafe { probe!(["mov {0:l}, [{0}]"] inout(reg) address => _,) };
        t.equal("address reported", trap.map(|trap| (trap.frame.vector, trap.cr2)), Some((14, address)));
    }
    // SAFETY: as above.
    let trap = unsafe { probe!(["mov [{0}], {0}"] in(reg) philoxen_abi::addr::HYPERVISOR_START,) };
    t.equal("write to the M2P table", trap.map(|trap| trap.frame.vector), Some(14));
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
        t.ok("open the gate to the kernel", traps::set_gate(vector, 4 | 1, entry::address(vector)));
    }
    // SAFETY: as above.
    let trap = unsafe { probe!(["int 0x30"]) };
    t.note("open gate", matches!(code(trap), Some((0x30 | 0x60, 0))), &code(trap));
    for vector in [0x30, 0x60] {
        t.ok("close the gate", traps::set_gate(vector, 4, entry::address(vector)));
    }
    // SAFETY: as above.
    let trap = unsafe { probe!(["int 0x80"]) };
    t.equal("int 0x80", code(trap), Some((0x80, 0)));
    // SAFETY: as above.
    let trap = unsafe { probe!([".byte 0xcd, 3"]) };
    t.note("two-byte int 3", trap.is_some_and(|trap| [3, 13].contains(&trap.frame.vector)), &code(trap));
}

static SEEN: Racy<[u64; 4]> = Racy::new([0; 4]);

/// Looks at an entry by `ud2` and skips it.
fn look(frame: &mut Frame) -> bool {
    if frame.vector != 6 {
        return false;
    }
    let end = core::ptr::from_ref(frame) as u64 + size_of::<Frame>() as u64;
    SEEN.replace([end, frame.cs, frame.rflags, u64::from(memory::upcall_mask())]);
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
    t.ok("gate that does not mask", traps::set_gate(6, 0, entry::address(6)));
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
    t.equal("upcalls allowed by the interrupt flag", memory::upcall_mask(), 0);
    let masked = iret(0x2, 0, kernel, KERNEL_SS, None);
    t.that("return with the interrupt flag clear", masked.1.is_none());
    t.equal("upcalls masked by the interrupt flag", memory::upcall_mask(), 1);
    t.that("real interrupts stay on (202)", masked.0 & 0x200 != 0);
    let carry = iret(0x2 | 1 | 0x40 | 0x80 | 0x800, 0, kernel, KERNEL_SS, None);
    t.equal("arithmetic flags", carry.0 & 0x8c1, 0x8c1);
    let level = iret(0x3002, 0, kernel, KERNEL_SS, None);
    t.equal("no real I/O privilege level", level.0 & 0x3000, 0);
    let nested = iret(0x4002, 0, kernel, KERNEL_SS, None);
    t.that("return with the nested-task flag (44)", nested.1.is_none());
    let wild = iret(0x2 | 0x2_0000 | 0x1_0000 | 0x18_0000 | 0x20_0000, 0, kernel, KERNEL_SS, None);
    t.that("no virtual-8086 mode", wild.0 & 0x1a_0000 == 0);
    let step = iret(0x102, 0, kernel, KERNEL_SS, None);
    t.equal("single step after return", code(step.1), Some((1, 0)));
    let fast = iret(0x202, 0x100, kernel, KERNEL_SS, None);
    t.that("return as from a system call", fast.1.is_none());
    for vgcf in [0, 0x100] {
        for rip in [NOT_CANONICAL, 0x0000_8000_0000_0000, 0xffff_7fff_ffff_fff0] {
            let bad = iret(0x202, vgcf, kernel, KERNEL_SS, Some(rip));
            let vector = bad.1.map(|trap| trap.frame.vector);
            t.note("non-canonical rip (7)", matches!(vector, Some(13 | 14 | VECTOR_FAILSAFE)), &vector);
        }
    }
    for (cs, ss) in [(0x1230, KERNEL_SS), (kernel, 0x1233), (0x8, KERNEL_SS), (kernel, 0x18 | 3), (0xe000, KERNEL_SS)] {
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
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x44000", "popfq", "ud2", "pushfq", "and dword ptr [rsp], 0xfffbbfff", "popfq") };
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

fn system_calls(t: &mut Checks, space: &Space) {
    // syscall; ud2
    space.load(&[0x0f, 0x05, 0x0f, 0x0b]);
    let mut frame = Space::frame();
    (frame.rax, frame.rbx, frame.rdx, frame.rsi, frame.rdi) = (1, 2, 3, 4, 5);
    (frame.rbp, frame.r8, frame.r9, frame.r10, frame.r12) = (6, 7, 8, 9, 10);
    (frame.r13, frame.r14, frame.r15) = (11, 12, 13);
    let back = space.run(&frame).frame;
    t.equal("system call enters the kernel", back.vector, VECTOR_SYSCALL);
    t.equal("number and arguments", [back.rax, back.rdi, back.rsi, back.rdx, back.r10, back.r8], [1, 5, 4, 3, 9, 7]);
    let rest = [back.rbx, back.rbp, back.r9, back.r12, back.r13, back.r14, back.r15];
    t.equal("other registers", rest, [2, 6, 8, 10, 11, 12, 13]);
    t.equal("rip behind the instruction", back.rip, CODE + 2);
    t.equal("rcx holds rip", back.rcx, CODE + 2);
    t.equal("r11 holds the flags", back.r11 & !0x1_0000, back.rflags & !0x1_0000);
    t.equal("user stack", back.rsp, STACK);
    t.equal("user selectors", (back.selector() & 3, back.ss & 3), (3, 3));
    t.equal("upcalls were allowed", back.saved_mask(), 0);
    // Both ways back give the registers that were asked for.
    for flags in [0, 0x100] {
        let mut frame = Space::frame();
        (frame.error, frame.rax, frame.rbx, frame.rdi) = (flags, 0xa, 0xb, 0xc);
        (frame.rcx, frame.r11) = (0x1234, 0x5678);
        space.load(&[0x0f, 0x0b]);
        let back = space.run(&frame).frame;
        t.equal("registers after iret", (back.vector, back.rax, back.rbx, back.rdi), (6, 0xa, 0xb, 0xc));
        if flags == 0 {
            t.equal("rcx and r11 after a full iret", (back.rcx, back.r11), (0x1234, 0x5678));
        }
    }
    memory::set_upcall_mask(1);
}

fn user_faults(t: &mut Checks, space: &Space) {
    let mut check = |name: &'static str, code: &[u8], want: (u64, u64)| {
        space.load(code);
        let trap = space.run(&Space::frame());
        t.equal(name, trap.code(), want);
        t.that("user mode named in the frame", trap.frame.from_user());
        trap
    };
    check("user: ud2", &[0x0f, 0x0b], (6, 0));
    check("user: int3", &[0xcc], (3, 0));
    check("user: int 0x80", &[0xcd, 0x80], (0x80, 0));
    check("user: hlt", &[0xf4], (13, 0));
    check("user: cli", &[0xfa], (13, 0));
    check("user: in", &[0xe4, 0x71], (13, 0));
    check("user: out", &[0xe6, 0x80], (13, 0));
    check("user: mov from cr0", &[0x0f, 0x20, 0xc0], (13, 0));
    check("user: rdmsr", &[0x0f, 0x32], (13, 0));
    check("user: wrmsr", &[0x0f, 0x30], (13, 0));
    let trap = check("user: read at 0", &[0x8a, 0x04, 0x25, 0, 0, 0, 0], (14, 4));
    t.equal("user: fault address", trap.cr2, 0);
    let mut check = |name: &'static str, code: &[u8], want: (u64, u64)| {
        space.load(code);
        let trap = space.run(&Space::frame());
        t.equal(name, trap.code(), want);
        trap
    };
    check("user: write at 0", &[0x88, 0x04, 0x25, 0, 0, 0, 0], (14, 6));
    // mov [CODE], al
    check("user: write to read-only code", &[0x88, 0x04, 0x25, 0, 0, 0x40, 0], (14, 7));
    // xor eax, eax; jmp rax
    check("user: jump to 0", &[0x31, 0xc0, 0xff, 0xe0], (14, 0x14));
    // mov rax, VIRT_BASE + 1 MiB (kernel code); mov al, [rax]
    check("user: read of the kernel", &[0x48, 0xc7, 0xc0, 0, 0, 0x10, 0x80, 0x8a, 0x00], (14, 4));
    // xor ecx, ecx; div ecx
    check("user: divide error", &[0x31, 0xc9, 0xf7, 0xf1], (0, 0));
    // mov rax, 1 << 63; mov rsp, rax; push rax. QEMU has #GP here where processors have #SS.
    space.load(&[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x89, 0xc4, 0x50]);
    let trap = space.run(&Space::frame());
    t.note("user: push to a non-canonical stack", matches!(trap.code(), (12 | 13, 0)), &trap.code());
    space.load(&[0xcd, 0x31]);
    let trap = space.run(&Space::frame());
    t.note("user: closed gate", matches!(trap.code(), (13, 0x18a | 0x312)), &trap.code());
    space.load(&[0x90, 0x90, 0x0f, 0x0b]);
    let mut frame = Space::frame();
    frame.rflags |= 0x100;
    let trap = space.run(&frame);
    t.equal("user: single step", (trap.frame.vector, trap.frame.rip), (1, CODE + 1));
    // Reads of what the kernel sees at the same addresses.
    space.data.set_word(3, 0x5a5a);
    space.load(&[0x48, 0x8b, 0x04, 0x25, 0x18, 0x10, 0x40, 0, 0x0f, 0x05]);
    t.equal("user: reads its data", space.run(&Space::frame()).frame.rax, 0x5a5a);
    let trap = user_reads(space, philoxen_abi::addr::HYPERVISOR_START + (1 << 40));
    t.equal("user: hypervisor's memory", trap.frame.vector, 14);
    let trap = user_reads(space, philoxen_abi::addr::HYPERVISOR_START + (3 << 40));
    t.equal("user: hypervisor's direct map", trap.frame.vector, 14);
}

/// Reads `address` in user mode: the trap of the read, or that of the system call behind it.
fn user_reads(space: &Space, address: u64) -> Trap {
    // mov rax, [rbx]; syscall
    space.load(&[0x48, 0x8b, 0x03, 0x0f, 0x05]);
    let mut frame = Space::frame();
    frame.rbx = address;
    space.run(&frame)
}

fn segment_bases(t: &mut Checks, space: &Space) {
    let kernel = Page::take();
    kernel.set_word(1, 0x11);
    space.data.set_word(1, 0x22);
    space.data.set_word(2, 0x33);
    let set = |which: u64, base: u64| hyper::call(nr::SET_SEGMENT_BASE, [which, base, 0, 0, 0]);
    t.ok("FS base", set(0, DATA + 8));
    t.ok("user GS base", set(1, DATA));
    t.ok("kernel GS base", set(2, kernel.0));
    let read = || {
        let value: u64;
        // SAFETY: the kernel's GS base is a test page.
        unsafe { asm!("mov {0}, gs:[8]", out(reg) value) };
        value
    };
    t.equal("kernel reads by GS", read(), 0x11);
    // mov rax, gs:[8]; mov rbx, fs:[8]; syscall
    space.load(&[0x65, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0x64, 0x48, 0x8b, 0x1c, 0x25, 8, 0, 0, 0, 0x0f, 0x05]);
    let back = space.run(&Space::frame()).frame;
    t.equal("user reads by GS and FS", (back.rax, back.rbx), (0x22, 0x33));
    t.equal("kernel reads by GS again", read(), 0x11);
    for which in 0..3 {
        t.refused("non-canonical base (193)", set(which, NOT_CANONICAL));
        t.refused("almost canonical base (193)", set(which, 0x0000_8000_0000_0000));
    }
    t.refused("unknown base", set(9, 0));
    t.equal("GS kept after refusals", read(), 0x11);
    t.that("user GS selector 0", set(3, 0) == 0);
    // A selector that cannot be loaded reads as null or is refused; the kernel's base stays.
    set(3, 0x1233);
    t.equal("kernel GS after a bad user selector", read(), 0x11);
    t.ok("user GS selector back", set(3, 0));
}

fn bad_returns(t: &mut Checks, space: &Space) {
    space.load(&[0x0f, 0x0b]);
    let mut check = |name: &'static str, change: &dyn Fn(&mut Frame)| {
        let mut frame = Space::frame();
        change(&mut frame);
        let trap = space.run(&frame);
        let good = matches!(trap.frame.vector, 6 | 10..=14 | VECTOR_FAILSAFE);
        t.note(name, good, &(trap.code(), trap.frame.rip));
    };
    for flags in [0, 0x100] {
        check("user: non-canonical rip (7)", &|frame| (frame.error, frame.rip) = (flags, NOT_CANONICAL));
        check("user: rip at the edge (7)", &|frame| (frame.error, frame.rip) = (flags, 0x0000_8000_0000_0000));
        check("user: rip in the hypervisor", &|frame| (frame.error, frame.rip) = (flags, 0xffff_8080_0010_0000));
        check("user: non-canonical stack", &|frame| (frame.error, frame.rsp) = (flags, NOT_CANONICAL));
        check("user: stack in the hypervisor", &|frame| (frame.error, frame.rsp) = (flags, 0xffff_8180_0000_0000));
        check("user: all flags", &|frame| (frame.error, frame.rflags) = (flags, u64::MAX & !0x100));
    }
    check("user: cs not there", &|frame| frame.cs = 0x1233);
    check("user: cs null", &|frame| frame.cs = 3);
    check("user: ss not there", &|frame| frame.ss = 0x1233);
    check("user: cs is data", &|frame| frame.cs = KERNEL_SS);
    check("user: hypervisor's selectors", &|frame| frame.cs = 0xe00b);
    memory::set_upcall_mask(1);
}

fn tables(t: &mut Checks) {
    let far = philoxen_abi::addr::HYPERVISOR_START + (1 << 42);
    for place in [far, 0x1000, 1 << 47, u64::MAX - 7] {
        t.equal("trap table at a bad place", hyper::call(nr::SET_TRAP_TABLE, [place, 0, 0, 0, 0]), -14);
    }
    for address in [NOT_CANONICAL, 0xffff_8080_0000_0000] {
        let result = traps::set_gate(0x41, 0, address);
        t.that("handler at a bad address", (-4095..=0).contains(&result));
    }
    // SAFETY: a closed or open gate; either way it traps.
    let trap = unsafe { probe!(["int 0x41"]) };
    t.that("bad handler is not reached", trap.is_some());
    t.ok("gate 0x41 as before", traps::set_gate(0x41, 4, entry::address(0x41)));
    let count = events::UPCALLS.load(Relaxed);
    t.equal("no upcall came by itself", count, 0);
    for (which, name) in [(0, "event callback"), (1, "failsafe callback"), (2, "syscall callback")] {
        let mut good = [256, 257, 258].map(entry::address);
        let keep = good;
        good[which] = NOT_CANONICAL;
        let [event, failsafe, syscall] = good;
        let result = hyper::call(nr::SET_CALLBACKS, [event, failsafe, syscall, 0, 0]);
        t.note(name, (-4095..=0).contains(&result), &result);
        let [event, failsafe, syscall] = keep;
        t.ok("callbacks back", hyper::call(nr::SET_CALLBACKS, [event, failsafe, syscall, 0, 0]));
    }
    for (kind, vector) in [(0, 256), (1, 257), (2, 258), (4, entry::VECTOR_NMI)] {
        let mut argument = [kind, entry::address(vector)];
        t.ok("callback_op", hyper::call(nr::CALLBACK_OP, [0, hyper::address(&mut argument), 0, 0, 0]));
    }
    t.refused("unknown callback", hyper::call(nr::CALLBACK_OP, [0, hyper::address(&mut [77_u64, 0]), 0, 0, 0]));
    t.refused("event callback unregistered", hyper::call(nr::CALLBACK_OP, [1, hyper::address(&mut [0_u64, 0]), 0, 0, 0]));
}

/// Random frames into user mode: whatever they hold, the kernel hears of it.
fn random_frames(t: &mut Checks, space: &Space) {
    let mut random = crate::rt::random::Random(1);
    space.load(&[0x0f, 0x0b]);
    let mut wrong = 0;
    for round in 0..2000 {
        let mut frame = Space::frame();
        let pick = [0, 1, 0x7fff_ffff_ffff, 0x8000_0000_0000, NOT_CANONICAL, 0xffff_8000_0000_0000, u64::MAX, CODE];
        match random.below(6) {
            0 => frame.rip = pick[random.below(8) as usize],
            1 => frame.rsp = pick[random.below(8) as usize],
            2 => frame.cs = random.next() & 0xffff | 3,
            3 => frame.ss = random.next() & 0xffff,
            4 => frame.rflags = random.next() & !0x100,
            _ => frame.error = random.next(),
        }
        let trap = space.run(&frame);
        let good = matches!(trap.frame.vector, 0 | 1 | 3 | 6 | 10..=14 | 17 | VECTOR_FAILSAFE);
        if !good {
            wrong += 1;
            t.note("random frame", false, &(round, trap.code(), trap.frame.rip));
        }
    }
    t.equal("random frames that came back oddly", wrong, 0);
    memory::set_upcall_mask(1);
}
