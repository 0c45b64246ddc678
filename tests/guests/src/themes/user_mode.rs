// SPDX-License-Identifier: MIT OR Apache-2.0
//! User mode: system calls, faults, segment bases, returns that cannot work (part of the theme `exceptions`).

use crate::rt::entry::{VECTOR_FAILSAFE, VECTOR_SYSCALL};
use crate::rt::memory::{self, KERNEL_SS, Page};
use crate::rt::random::Random;
use crate::rt::traps::{Frame, Trap};
use crate::rt::user::{CODE, DATA, STACK, Space};
use crate::rt::{check::Checks, hyper};
use crate::themes::exceptions::NOT_CANONICAL;
use core::arch::asm;
use philoxen_abi::hypercall as nr;

/// Runs the checks.
pub fn run(t: &mut Checks) {
    let space = Space::new();
    system_calls(t, &space);
    user_faults(t, &space);
    segment_bases(t, &space);
    bad_returns(t, &space);
    random_frames(t, &space);
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
    t.equal(
        "number and arguments",
        [back.rax, back.rdi, back.rsi, back.rdx, back.r10, back.r8],
        [1, 5, 4, 3, 9, 7],
    );
    let rest = [
        back.rbx, back.rbp, back.r9, back.r12, back.r13, back.r14, back.r15,
    ];
    t.equal("other registers", rest, [2, 6, 8, 10, 11, 12, 13]);
    t.equal("rip behind the instruction", back.rip, CODE + 2);
    t.equal("rcx holds rip", back.rcx, CODE + 2);
    t.equal(
        "r11 holds the flags",
        back.r11 & !0x1_0000,
        back.rflags & !0x1_0000,
    );
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
        t.equal(
            "registers after iret",
            (back.vector, back.rax, back.rbx, back.rdi),
            (6, 0xa, 0xb, 0xc),
        );
        if flags == 0 {
            t.equal(
                "rcx and r11 after a full iret",
                (back.rcx, back.r11),
                (0x1234, 0x5678),
            );
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
    check(
        "user: write to read-only code",
        &[0x88, 0x04, 0x25, 0, 0, 0x40, 0],
        (14, 7),
    );
    // xor eax, eax; jmp rax
    check("user: jump to 0", &[0x31, 0xc0, 0xff, 0xe0], (14, 0x14));
    // mov rax, VIRT_BASE + 1 MiB (kernel code); mov al, [rax]
    check(
        "user: read of the kernel",
        &[0x48, 0xc7, 0xc0, 0, 0, 0x10, 0x80, 0x8a, 0x00],
        (14, 4),
    );
    // xor ecx, ecx; div ecx
    check("user: divide error", &[0x31, 0xc9, 0xf7, 0xf1], (0, 0));
    // mov rax, 1 << 63; mov rsp, rax; push rax. QEMU has #GP here where processors have #SS.
    space.load(&[
        0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x89, 0xc4, 0x50,
    ]);
    let trap = space.run(&Space::frame());
    t.note(
        "user: push to a non-canonical stack",
        matches!(trap.code(), (12 | 13, 0)),
        &trap.code(),
    );
    space.load(&[0xcd, 0x31]);
    let trap = space.run(&Space::frame());
    t.note(
        "user: closed gate",
        matches!(trap.code(), (13, 0x18a | 0x312)),
        &trap.code(),
    );
    space.load(&[0x90, 0x90, 0x0f, 0x0b]);
    let mut frame = Space::frame();
    frame.rflags |= 0x100;
    let trap = space.run(&frame);
    t.equal(
        "user: single step",
        (trap.frame.vector, trap.frame.rip),
        (1, CODE + 1),
    );
    // Reads of what the kernel sees at the same addresses.
    space.data.set_word(3, 0x5a5a);
    space.load(&[0x48, 0x8b, 0x04, 0x25, 0x18, 0x10, 0x40, 0, 0x0f, 0x05]);
    t.equal(
        "user: reads its data",
        space.run(&Space::frame()).frame.rax,
        0x5a5a,
    );
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
    space.load(&[
        0x65, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0x64, 0x48, 0x8b, 0x1c, 0x25, 8, 0, 0, 0, 0x0f,
        0x05,
    ]);
    let back = space.run(&Space::frame()).frame;
    t.equal(
        "user reads by GS and FS",
        (back.rax, back.rbx),
        (0x22, 0x33),
    );
    t.equal("kernel reads by GS again", read(), 0x11);
    for which in 0..3 {
        t.refused("non-canonical base (193)", set(which, NOT_CANONICAL));
        t.refused(
            "almost canonical base (193)",
            set(which, 0x0000_8000_0000_0000),
        );
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
        check("user: non-canonical rip (7)", &|frame| {
            (frame.error, frame.rip) = (flags, NOT_CANONICAL)
        });
        check("user: rip at the edge (7)", &|frame| {
            (frame.error, frame.rip) = (flags, 0x0000_8000_0000_0000)
        });
        check("user: rip in the hypervisor", &|frame| {
            (frame.error, frame.rip) = (flags, 0xffff_8080_0010_0000)
        });
        check("user: non-canonical stack", &|frame| {
            (frame.error, frame.rsp) = (flags, NOT_CANONICAL)
        });
        check("user: stack in the hypervisor", &|frame| {
            (frame.error, frame.rsp) = (flags, 0xffff_8180_0000_0000)
        });
        check("user: all flags", &|frame| {
            (frame.error, frame.rflags) = (flags, !0x100)
        });
    }
    check("user: cs not there", &|frame| frame.cs = 0x1233);
    check("user: cs null", &|frame| frame.cs = 3);
    check("user: ss not there", &|frame| frame.ss = 0x1233);
    check("user: cs is data", &|frame| frame.cs = KERNEL_SS);
    check("user: hypervisor's selectors", &|frame| frame.cs = 0xe00b);
    memory::set_upcall_mask(1);
}

/// Random frames into user mode: whatever they hold, the kernel hears of it.
fn random_frames(t: &mut Checks, space: &Space) {
    let mut random = Random(1);
    space.load(&[0x0f, 0x0b]);
    let mut wrong = 0;
    for round in 0..2000 {
        let mut frame = Space::frame();
        let pick = [
            0,
            1,
            0x7fff_ffff_ffff,
            0x8000_0000_0000,
            NOT_CANONICAL,
            0xffff_8000_0000_0000,
            u64::MAX,
            CODE,
        ];
        match random.below(6) {
            0 => frame.rip = pick[random.below(8) as usize],
            1 => frame.rsp = pick[random.below(8) as usize],
            2 => frame.cs = random.next() & 0xffff | 3,
            3 => frame.ss = random.next() & 0xffff,
            4 => frame.rflags = random.next() & !0x100,
            _ => frame.error = random.next(),
        }
        let trap = space.run(&frame);
        let good = matches!(
            trap.frame.vector,
            0 | 1 | 3 | 6 | 10..=14 | 17 | VECTOR_FAILSAFE
        );
        if !good {
            wrong += 1;
            t.note("random frame", false, &(round, trap.code(), trap.frame.rip));
        }
    }
    t.equal("random frames that came back oddly", wrong, 0);
    memory::set_upcall_mask(1);
}
