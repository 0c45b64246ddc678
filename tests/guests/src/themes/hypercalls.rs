// SPDX-License-Identifier: MIT OR Apache-2.0
//! All hypercalls with bad arguments: errors by the book, and random calls that hurt nobody but us.
//!
//! Names end with the number of the advisory whose attack the check repeats.

use crate::rt::hyper::{self, Multicall, call_inline, ext, mmuext_one};
use crate::rt::memory::{self, Page};
use crate::rt::traps::{self, Frame};
use crate::rt::{check::Checks, events, random::Random};
use philoxen_abi::addr::HYPERVISOR_START;
use philoxen_abi::hypercall as nr;

/// Runs the theme.
pub fn run(t: &mut Checks) {
    unknown(t);
    bad_pointers(t);
    multicalls(t);
    assists(t);
    scheduling(t);
    console(t);
    privileged(t);
    fuzz(t);
}

fn alive(t: &mut Checks, name: &'static str) {
    t.that(name, call_inline(nr::XEN_VERSION, [0; 5]) >> 16 == 4);
}

fn unknown(t: &mut Checks) {
    for number in [
        11,
        43,
        44,
        47,
        56,
        63,
        64,
        100,
        255,
        256,
        1023,
        1 << 31,
        1 << 32,
        (1 << 32) + 17,
        u64::MAX,
    ] {
        let result = call_inline(number, [0; 5]);
        t.note("unknown number", result == -38, &(number, result));
    }
    // Only the low half counts for some hypervisors: either way no call is made by accident.
    alive(t, "alive after unknown numbers");
    // Registers that are no arguments and no results are kept.
    let mut kept = [11_u64, 12, 13, 14, 15, 9];
    // SAFETY: the hypercall has no arguments; all registers are declared.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") nr::XEN_VERSION => _, in("rdi") 0_u64, in("rsi") 0_u64,
            out("rcx") _, out("r11") _, inout("r12") kept[1], inout("r13") kept[2], inout("r14") kept[3], inout("r15") kept[4],
            inout("r9") kept[5]);
    }
    t.equal("registers kept", kept, [11, 12, 13, 14, 15, 9]);
}

fn bad_pointers(t: &mut Checks) {
    let places = [
        HYPERVISOR_START + (1 << 42),
        0x1000,
        1 << 47,
        u64::MAX - 7,
        0xffff_87ff_ffff_f000,
        0x8000_0000_0000_0000,
    ];
    for place in places {
        // Number and arguments, with the pointer at its place.
        let calls = [
            ("set_trap_table", nr::SET_TRAP_TABLE, [place, 0, 0, 0, 0]),
            ("mmu_update", nr::MMU_UPDATE, [place, 1, 0, hyper::SELF, 0]),
            ("set_gdt", nr::SET_GDT, [place, 1, 0, 0, 0]),
            ("platform_op", nr::PLATFORM_OP, [place, 0, 0, 0, 0]),
            ("memory_op: exchange", nr::MEMORY_OP, [11, place, 0, 0, 0]),
            ("memory_op: populate", nr::MEMORY_OP, [6, place, 0, 0, 0]),
            ("memory_op: memory map", nr::MEMORY_OP, [10, place, 0, 0, 0]),
            ("memory_op: machphys", nr::MEMORY_OP, [12, place, 0, 0, 0]),
            ("multicall", nr::MULTICALL, [place, 1, 0, 0, 0]),
            (
                "xen_version: extraversion",
                nr::XEN_VERSION,
                [1, place, 0, 0, 0],
            ),
            (
                "xen_version: compile info",
                nr::XEN_VERSION,
                [2, place, 0, 0, 0],
            ),
            (
                "xen_version: capabilities",
                nr::XEN_VERSION,
                [3, place, 0, 0, 0],
            ),
            (
                "xen_version: features",
                nr::XEN_VERSION,
                [6, place, 0, 0, 0],
            ),
            ("console_io: write", nr::CONSOLE_IO, [0, 8, place, 0, 0]),
            ("vcpu_op: run state", nr::VCPU_OP, [4, 0, place, 0, 0]),
            ("vcpu_op: vcpu_info", nr::VCPU_OP, [10, 0, place, 0, 0]),
            ("mmuext_op", nr::MMUEXT_OP, [place, 1, 0, hyper::SELF, 0]),
            ("sched_op: poll", nr::SCHED_OP, [3, place, 0, 0, 0]),
            ("sched_op: shutdown", nr::SCHED_OP, [2, place, 0, 0, 0]),
            ("callback_op", nr::CALLBACK_OP, [0, place, 0, 0, 0]),
            (
                "event_channel_op",
                nr::EVENT_CHANNEL_OP,
                [6, place, 0, 0, 0],
            ),
            ("physdev_op", nr::PHYSDEV_OP, [6, place, 0, 0, 0]),
            ("sysctl", nr::SYSCTL, [place, 0, 0, 0, 0]),
            ("domctl", nr::DOMCTL, [place, 0, 0, 0, 0]),
        ];
        for (name, number, args) in calls {
            let result = call_inline(number, args);
            // populate_physmap answers with the number of extents done.
            let none = number == nr::MEMORY_OP && args[0] == 6 && result == 0;
            t.note(
                name,
                result == -14 || result == -38 || none,
                &(place, result),
            );
        }
        // Answers go to memory that is mapped but not ours to write.
        t.equal(
            "answer into the M2P table",
            call_inline(nr::XEN_VERSION, [3, HYPERVISOR_START, 0, 0, 0]),
            -14,
        );
    }
    let page = Page::take();
    t.ok("protect", page.protect());
    t.equal(
        "answer into a read-only page",
        call_inline(nr::XEN_VERSION, [3, page.0, 0, 0, 0]),
        -14,
    );
    let (table, before) = (
        memory::start().pt_base,
        memory::read(memory::start().pt_base),
    );
    t.equal(
        "answer into a page table",
        call_inline(nr::XEN_VERSION, [3, table, 0, 0, 0]),
        -14,
    );
    t.equal("page table unchanged", memory::read(table), before);
    t.ok("restore", page.restore());
}

fn multicalls(t: &mut Checks) {
    let version = Multicall {
        op: nr::XEN_VERSION,
        ..Multicall::default()
    };
    let mut calls = [version; 8];
    calls[3].op = 999;
    calls[5] = Multicall {
        op: nr::UPDATE_VA_MAPPING,
        result: 1,
        args: [HYPERVISOR_START, 0, 0, 0, 0, 0],
    };
    t.ok("multicall", hyper::multicall(&mut calls));
    let good = [0, 1, 2, 4, 6, 7]
        .iter()
        .all(|n: &usize| calls[*n].result >> 16 == 4);
    t.that("results of good calls", good);
    t.equal("unknown number inside", calls[3].result, -38);
    t.refused("bad call inside", calls[5].result);
    t.ok("no calls", hyper::multicall(&mut []));
    iret_inside(t);
    let mut inner = [version; 2];
    let nested = Multicall {
        op: nr::MULTICALL,
        result: 0,
        args: [inner.as_mut_ptr() as u64, 2, 0, 0, 0, 0],
    };
    let mut outer = [nested, version];
    let result = hyper::multicall(&mut outer);
    t.note(
        "multicall inside",
        result < 0 || outer[0].result < 0,
        &(result, outer[0].result),
    );
    for count in [1 << 20, u64::from(u32::MAX), u64::MAX] {
        // The list runs into memory that is not there.
        let end = Page::take_many(2);
        t.ok("unmap", end.plus(1).unmap());
        (0..512).for_each(|n| end.set_word(n, if n % 8 == 0 { nr::XEN_VERSION } else { 0 }));
        let result = hyper::call(nr::MULTICALL, [end.0, count, 0, 0, 0]);
        t.note("list that ends in nothing", result < 0, &result);
        t.ok("restore", end.plus(1).restore());
    }
    let mut blocking = [
        Multicall {
            op: nr::SCHED_OP,
            result: 7,
            args: [0, 0, 0, 0, 0, 0],
        },
        version,
    ];
    t.ok("yield inside", hyper::multicall(&mut blocking));
    t.that("call after the yield", blocking[1].result >> 16 == 4);
    alive(t, "alive after multicalls");
}

/// An `iret` in a multicall is refused, or it takes effect and no later call of the list runs: with a frame for user
/// mode the rest would otherwise run with a user's registers and a kernel's rights.
fn iret_inside(t: &mut Checks) {
    let version = Multicall {
        op: nr::XEN_VERSION,
        result: 77,
        ..Multicall::default()
    };
    let mut calls = [
        version,
        Multicall {
            op: nr::IRET,
            result: 77,
            ..Multicall::default()
        },
        version,
    ];
    // SAFETY: the frame on the stack leads to the same label as the hypercall's own return.
    unsafe {
        core::arch::asm!("lea rdx, [rip + 78f]", "mov r12, rsp", "and rsp, -16", "push {ss}", "push r12", "push 0x2", "push {cs}",
            "push rdx", "push 0", "push 0", "push 0", "push 0", "syscall", "78:", "mov rsp, r12",
            ss = in(reg) memory::KERNEL_SS, cs = in(reg) memory::KERNEL_CS & !3,
            inout("rax") nr::MULTICALL => _, inout("rdi") calls.as_mut_ptr() => _, inout("rsi") 3_u64 => _,
            out("rdx") _, out("rcx") _, out("r11") _, out("r12") _);
    }
    let [first, iret, last] = calls.map(|call| call.result);
    t.that("call before the iret", first >> 16 == 4);
    let refused = iret < 0 && last >> 16 == 4;
    let left = last == 77;
    t.note("iret inside (213)", refused || left, &(iret, last));
    memory::set_upcall_mask(1);
}

fn assists(t: &mut Checks) {
    let assist = |cmd: u64, kind: u64| hyper::call(nr::VM_ASSIST, [cmd, kind, 0, 0, 0]);
    for kind in [2, 3, 5] {
        t.ok("enable", assist(0, kind));
        t.ok("disable", assist(1, kind));
    }
    for (cmd, kind) in [(0, 63), (0, 64), (0, u64::from(u32::MAX)), (2, 2), (9, 2)] {
        let result = assist(cmd, kind);
        t.note(
            "no such assist",
            result == -22 || result == -38,
            &(cmd, kind, result),
        );
    }
    t.ok("writable page tables stay on", assist(0, 2));
}

fn scheduling(t: &mut Checks) {
    t.ok("yield", hyper::sched_op(0, &mut 0_u64));
    t.refused(
        "unknown scheduler operation",
        hyper::sched_op(99, &mut 0_u64),
    );
    t.refused(
        "remote shutdown of no domain",
        hyper::sched_op(4, &mut [99_u32, 0]),
    );
    t.refused(
        "remote shutdown of ourselves",
        hyper::sched_op(4, &mut [0x7ff0_u32, 0]),
    );
    let watchdog = |id: u32, timeout: u32| hyper::sched_op(6, &mut [id, timeout]);
    let mine = watchdog(0, 1000);
    if mine > 0 {
        t.ok("watchdog re-armed", watchdog(mine as u32, 1000));
        t.ok("watchdog disarmed", watchdog(mine as u32, 0));
    }
    t.refused("watchdog that is not there", watchdog(77, 10));
    let mut none = 0_u64;
    t.refused(
        "debug register 100",
        hyper::call(nr::SET_DEBUGREG, [100, 0, 0, 0, 0]),
    );
    t.refused("run state of no vCPU", hyper::vcpu_op(4, 3000, &mut none));
    t.refused("initialise of no vCPU", hyper::vcpu_op(0, 3000, &mut none));
    t.refused("up of no vCPU", hyper::vcpu_op(1, 3000, &mut none));
}

fn console(t: &mut Checks) {
    let text = *b"GUEST-INFO \x1b[0m\x00\x07 odd bytes\n";
    t.ok(
        "odd bytes",
        hyper::call(
            nr::CONSOLE_IO,
            [0, text.len() as u64, text.as_ptr() as u64, 0, 0],
        ),
    );
    t.ok(
        "no bytes",
        hyper::call(nr::CONSOLE_IO, [0, 0, text.as_ptr() as u64, 0, 0]),
    );
    t.that(
        "read",
        hyper::call(nr::CONSOLE_IO, [1, 4, &raw const text as u64, 0, 0]) >= -38,
    );
    t.refused(
        "unknown operation",
        hyper::call(nr::CONSOLE_IO, [9, 1, text.as_ptr() as u64, 0, 0]),
    );
    // Far more than there is memory behind the pointer: stops at the first page that is missing.
    let page = Page::take_many(2);
    t.ok("unmap", page.plus(1).unmap());
    page.fill(0x2e2e_2e2e_2e2e_2e2e);
    page.set_word(511, 0x0a2e_2e2e_2e2e_2e2e);
    for count in [1 << 20, u64::from(u32::MAX) >> 1, u64::from(u32::MAX)] {
        let result = hyper::call(nr::CONSOLE_IO, [0, count, page.0, 0, 0]);
        t.note("length beyond the memory", result < 0, &(count, result));
    }
    t.ok("restore", page.plus(1).restore());
    for _ in 0..8 {
        t.ok(
            "flood",
            hyper::call(nr::CONSOLE_IO, [0, 4096, page.0, 0, 0]),
        );
    }
}

/// Calls that exist for the toolstack or not at all: a wrong version or nothing to do is an error, not an accident.
fn privileged(t: &mut Checks) {
    let page = Page::take();
    for number in [nr::SYSCTL, nr::DOMCTL] {
        t.that(
            "zero version",
            [-13, -38].contains(&call_inline(number, [page.0, 0, 0, 0, 0])),
        );
    }
    t.equal(
        "platform_op without a version",
        call_inline(nr::PLATFORM_OP, [page.0, 0, 0, 0, 0]),
        -13,
    );
    for number in [
        nr::XSM_OP,
        nr::XENOPROF_OP,
        nr::HVM_OP,
        nr::KEXEC_OP,
        nr::TMEM_OP,
        nr::ARGO_OP,
        nr::XENPMU_OP,
        nr::DM_OP,
        nr::HYPFS_OP,
    ] {
        let result = call_inline(number, [0xffff, page.0, 0, 0, 0]);
        t.note("call of other uses", result <= 0, &(number, result));
    }
    let result = call_inline(nr::GRANT_TABLE_OP, [99, page.0, 1, 0, 0]);
    t.refused("unknown grant operation", result);
    for (cmd, count) in [(0, u64::from(u32::MAX)), (5, 1 << 33), (6, u64::MAX)] {
        let result = call_inline(nr::GRANT_TABLE_OP, [cmd, 0x1000, count, 0, 0]);
        // A count is 32 bits wide, so that one of these is a count of nothing.
        t.note("grant operations without end", result <= 0, &(cmd, result));
    }
    let result = call_inline(nr::PHYSDEV_OP, [99, page.0, 0, 0, 0]);
    t.refused("unknown device operation", result);
    t.refused(
        "unknown NMI operation",
        call_inline(nr::NMI_OP, [9, page.0, 0, 0, 0]),
    );
    t.refused(
        "other domain's mapping",
        call_inline(nr::UPDATE_VA_MAPPING_OTHERDOMAIN, [page.0, 0, 0, 99, 0]),
    );
}

/// Faults of our own that a random call has brought about are answered by returning.
fn shrug(frame: &mut Frame) -> bool {
    frame.vector == 7 || frame.vector == 1
}

/// Calls that end or wedge this guest by their definition, or would make the console unreadable for the host.
fn harmful(number: u64, args: &[u64; 5]) -> bool {
    let [first, second, third, ..] = *args;
    match number & 0xffff_ffff {
        nr::IRET
        | nr::CONSOLE_IO
        | nr::SET_TRAP_TABLE
        | nr::SET_CALLBACKS
        | nr::STACK_SWITCH
        | nr::CALLBACK_OP => true,
        // Blocking, shutting down, power states, and waiting for an event that does not come.
        nr::SCHED_OP | nr::SCHED_OP_COMPAT => first & 0xffff_ffff != 0,
        nr::PLATFORM_OP | nr::KEXEC_OP | nr::SYSCTL | nr::DOMCTL => true,
        // Down, NMI, another place for vcpu_info.
        nr::VCPU_OP => matches!(first & 0xffff_ffff, 0..=2 | 5 | 10 | 11 | 13),
        // A list in scratch memory could hold any of the calls here.
        nr::MULTICALL => second != 0 && first >= memory::VIRT_BASE,
        nr::UPDATE_VA_MAPPING | nr::UPDATE_VA_MAPPING_OTHERDOMAIN => first >= memory::VIRT_BASE,
        // A long list writes its results over the memory behind the scratch pages.
        nr::GRANT_TABLE_OP => third & 0xffff_ffff > 40,
        // A breakpoint on something that the handler of breakpoints uses would never end.
        nr::VM_ASSIST | nr::SET_DEBUGREG => true,
        _ => false,
    }
}

fn fuzz(t: &mut Checks) {
    let scratch = Page::take_many(4);
    let mut random = Random(0x50_58);
    traps::hook(Some(shrug));
    events::disable();
    let mut made = 0;
    while made < 60_000 {
        // Arguments: small numbers, scratch memory of random contents, addresses of all kinds, anything.
        let number = if random.below(50) == 0 {
            random.next()
        } else {
            random.below(60)
        };
        let args: [u64; 5] = core::array::from_fn(|_| match random.below(8) {
            0..=2 => random.below(40),
            3 | 4 => scratch.0 + random.below(4096 * 3) / 8 * 8,
            5 => HYPERVISOR_START + (random.next() >> 20),
            6 => [
                0,
                1 << 47,
                u64::MAX,
                0x7ff0,
                0x7ff1,
                0x7ff2,
                1 << 31,
                1 << 63,
            ][random.below(8) as usize],
            _ => random.next(),
        });
        // What the structures in scratch memory hold stays away from our own frames: small and huge numbers alone.
        for _ in 0..4 {
            let value = if random.below(2) == 0 {
                random.below(24)
            } else {
                random.next() | 1 << 62
            };
            scratch
                .plus(random.below(3))
                .set_word(random.below(512), value);
        }
        if harmful(number, &args) {
            continue;
        }
        made += 1;
        call_inline(number, args);
    }
    traps::hook(None);
    hyper::call(nr::FPU_TASKSWITCH, [0; 5]);
    alive(t, "alive after random calls");
    memory::set_upcall_mask(1);
    t.equal("calls made", made, 60_000);
    t.ok(
        "root as before",
        mmuext_one(ext::NEW_BASEPTR, memory::root(), 0),
    );
    let page = Page::take();
    page.set_word(1, 3);
    t.equal("memory as before", page.word(1), 3);
}
