// SPDX-License-Identifier: MIT OR Apache-2.0
//! Privileged instructions of a kernel in ring 3, and writes to its page tables.
//!
//! Names end with the number of the advisory whose attack the check repeats.

use crate::probe;
use crate::rt::hyper;
use crate::rt::memory::{self, Page, pte};
use crate::rt::traps::Trap;
use crate::rt::{check::Checks, random::Random, time};
use crate::themes::pagetypes::{hypervisor_frame, try_write};
use crate::themes::table_writes;
use core::arch::asm;
use philoxen_abi::hypercall as nr;

/// Runs the theme.
pub fn run(t: &mut Checks) {
    privilege_level(t);
    ports(t);
    string_ports(t);
    cpuid(t);
    model_registers(t);
    segment_base_registers(t);
    control_registers(t);
    extended_control(t);
    time_stamp(t);
    debug_registers(t);
    table_writes::run(t);
    refused_instructions(t);
    random_registers(t);
}

fn vector(trap: Option<Trap>) -> Option<u64> {
    trap.map(|trap| trap.frame.vector)
}

/// `cli` in kernel mode.
fn cli() -> Option<Trap> {
    // SAFETY: the flag is virtual; the instruction is emulated or faults.
    unsafe { probe!(["cli"]) }
}

/// `sti` in kernel mode.
fn sti() -> Option<Trap> {
    // SAFETY: as in `cli`.
    unsafe { probe!(["sti"]) }
}

fn inb(port: u16) -> (u8, Option<Trap>) {
    let value: u8;
    // SAFETY: the instruction is emulated or faults; the caller names a port whose reading is harmless.
    let trap = unsafe { probe!(["in al, dx"] in("dx") port, inout("al") 0x5a_u8 => value,) };
    (value, trap)
}

fn outb(port: u16, value: u8) -> Option<Trap> {
    // SAFETY: as in `inb`.
    unsafe { probe!(["out dx, al"] in("dx") port, in("al") value,) }
}

fn privilege_level(t: &mut Checks) {
    let physdev =
        |level: u32| hyper::call(nr::PHYSDEV_OP, [6, hyper::address(&mut { level }), 0, 0, 0]);
    t.ok("I/O privilege level 1", physdev(1));
    t.equal("cli", vector(cli()), None);
    t.equal("cli leaves upcalls as they are", memory::upcall_mask(), 1);
    memory::set_upcall_mask(0);
    t.equal("cli with upcalls on", vector(cli()), None);
    t.equal("upcalls still on", memory::upcall_mask(), 0);
    memory::set_upcall_mask(1);
    t.equal("sti", vector(sti()), None);
    t.equal("sti leaves upcalls as they are", memory::upcall_mask(), 1);
    t.refused("I/O privilege level 4", physdev(4));
    let flags: u64;
    // SAFETY: reads the flags after the two instructions.
    unsafe { asm!("pushfq", "pop {0}", out(reg) flags) };
    t.equal("interrupt flag stays on (202)", flags & 0x200, 0x200);
    let iobitmap = |bits: u32| {
        hyper::call(
            nr::PHYSDEV_OP,
            [7, hyper::address(&mut [0_u64, u64::from(bits)]), 0, 0, 0],
        )
    };
    t.ok("no I/O bitmap", iobitmap(0));
    t.refused("I/O bitmap too long", iobitmap(65537));
}

fn ports(t: &mut Checks) {
    t.equal("write CMOS index", vector(outb(0x70, 0x0a)), None);
    let (value, trap) = inb(0x71);
    t.equal("read CMOS", vector(trap), None);
    t.that("CMOS status is not all ones", value != 0xff);
    t.equal("delay port", vector(outb(0x80, 0)), None);
    let (value, trap) = inb(0x3fd);
    t.equal("hypervisor's serial port", vector(trap), None);
    t.equal("serial port looks absent", value, 0xff);
    t.equal(
        "write to the hypervisor's serial port",
        vector(outb(0x3f9, 0)),
        None,
    );
    // Wider accesses, immediate ports.
    let value: u32;
    // SAFETY: PCI configuration address register; reading it is harmless.
    let trap = unsafe { probe!(["in eax, dx"] in("dx") 0xcf8_u16, out("eax") value,) };
    t.note("PCI address register", trap.is_none(), &value);
    // SAFETY: selects configuration word 0 of the host bridge.
    let trap = unsafe { probe!(["out dx, eax"] in("dx") 0xcf8_u16, in("eax") 0x8000_0000_u32,) };
    t.equal("PCI address written", vector(trap), None);
    let identity: u32;
    // SAFETY: reads vendor and device.
    let trap = unsafe { probe!(["in eax, dx"] in("dx") 0xcfc_u16, out("eax") identity,) };
    t.equal("PCI data read", vector(trap), None);
    t.that("host bridge there", identity != u32::MAX && identity != 0);
    let half: u16;
    // SAFETY: reads the device half.
    let trap = unsafe { probe!(["in ax, dx"] in("dx") 0xcfe_u16, out("ax") half,) };
    t.equal(
        "word access",
        (vector(trap), u32::from(half)),
        (None, identity >> 16),
    );
    // SAFETY: immediate ports.
    let trap = unsafe { probe!(["out 0x80, al", "in al, 0x71", "out 0x80, eax"] out("rax") _,) };
    t.equal("immediate ports", vector(trap), None);
    // SAFETY: reads an unused port pair at the end of the space.
    let trap = unsafe { probe!(["in eax, dx"] in("dx") 0xffff_u16, out("eax") _,) };
    t.that(
        "access across the last port",
        trap.is_none_or(|trap| trap.frame.vector == 13),
    );
}

fn string_ports(t: &mut Checks) {
    let page = Page::take();
    page.fill(u64::MAX);
    let mut left = 4_u64;
    let mut to = page.0;
    // SAFETY: reads a harmless port into a test page.
    let trap =
        unsafe { probe!(["rep insb"] in("dx") 0x71_u16, inout("rcx") left, inout("rdi") to,) };
    if vector(trap).is_none() {
        t.equal("string input", (left, to), (0, page.0 + 4));
        t.equal("bytes behind it untouched", page.word(0) >> 32, 0xffff_ffff);
    }
    let count = 4_u64;
    // SAFETY: a string output whose source is the M2P table: readable.
    let trap = unsafe {
        probe!(["rep outsb"] in("dx") 0x80_u16, inout("rcx") count => _, inout("rsi") philoxen_abi::addr::HYPERVISOR_START => _,)
    };
    t.that(
        "string output from the M2P table",
        trap.is_none_or(|trap| [13, 14].contains(&trap.frame.vector)),
    );
    // SAFETY: must fault: the source is the hypervisor's.
    let trap = unsafe {
        probe!(["outsb"] in("dx") 0x80_u16, inout("rsi") philoxen_abi::addr::HYPERVISOR_START + (3 << 40) => _,)
    };
    t.that("string output of the hypervisor's memory", trap.is_some());
    // SAFETY: must fault: the target is the M2P table.
    let trap = unsafe {
        probe!(["insb"] in("dx") 0x71_u16, inout("rdi") philoxen_abi::addr::HYPERVISOR_START => _,)
    };
    t.that("string input to the M2P table", trap.is_some());
}

/// A root that takes longer to validate than one instruction may: it is executed until that is done.
fn large_root(t: &mut Checks, old: u64) {
    const TABLES: u64 = 40;
    const TLB_FLUSH_LOCAL: u32 = 6;
    let [top, third, second] = [Page::take(), Page::take(), Page::take()];
    let firsts = Page::take_many(TABLES as usize);
    let live = memory::VIRT_BASE + (memory::m2p(memory::root()) << 12);
    for slot in (0..256).chain(272..512) {
        top.set_word(slot, memory::read(live + slot * 8));
    }
    top.set_word(7, third.ma(0) | pte::RW);
    third.set_word(0, second.ma(0) | pte::RW);
    (0..TABLES).for_each(|n| second.set_word(n, firsts.plus(n).ma(0) | pte::RW));
    let tables = || {
        [top, third, second]
            .into_iter()
            .chain((0..TABLES).map(|n| firsts.plus(n)))
    };
    t.that("protect", tables().all(|table| table.protect() == 0));
    let load = |root: u64| {
        // SAFETY: a copy of the root that is loaded, or that one.
        vector(unsafe { probe!(["mov cr3, {0}"] in(reg) root,) })
    };
    t.equal("large root by CR3", load(top.ma(0)), None);
    let now: u64;
    // SAFETY: an emulated read.
    unsafe { asm!("mov {0}, cr3", out(reg) now) };
    t.equal("large root is loaded", now, top.ma(0));
    t.that("its tables are", firsts.restore() != 0);
    t.equal("the old root again", load(old), None);
    // Taking the large one down takes several rounds too, which the next table operation does.
    t.ok("flush", hyper::mmuext_one(TLB_FLUSH_LOCAL, 0, 0));
    t.that("restore", tables().all(|table| table.restore() == 0));
}

/// `cpuid` with the prefix that forces emulation.
pub fn forced(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    // SAFETY: the prefix makes the hypervisor emulate the instruction; rbx is put back.
    unsafe {
        asm!("mov {keep}, rbx", ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e", "cpuid", "xchg {keep}, rbx", keep = out(reg) b,
            inout("eax") leaf => a, inout("ecx") subleaf => c, out("edx") d);
    }
    [a, b as u32, c, d]
}

fn cpuid(t: &mut Checks) {
    let [max, b, c, d] = forced(0x4000_0000, 0);
    t.equal(
        "hypervisor's signature",
        [b, c, d],
        [0x566e_6558, 0x65584d4d, 0x4d4d_566e],
    );
    t.that(
        "leaves up to 5 at least",
        (0x4000_0005..0x4000_0100).contains(&max),
    );
    t.equal(
        "version leaf agrees with xen_version",
        u64::from(forced(0x4000_0001, 0)[0]),
        hyper::call(nr::XEN_VERSION, [0; 5]) as u64,
    );
    let [count, ..] = forced(0x4000_0002, 0);
    t.that("at most one hypercall page", count <= 1);
    let host = core::arch::x86_64::__cpuid(0);
    let [top, b, c, d] = forced(0, 0);
    t.equal(
        "vendor is the processor's",
        [b, c, d],
        [host.ebx, host.ecx, host.edx],
    );
    t.that("some standard leaves", top >= 1);
    let [_, _, c, d] = forced(1, 0);
    t.equal(
        "FPU, TSC, MSR, CX8, FXSR, SSE, SSE2",
        d & 0x0700_0131,
        0x0700_0131,
    );
    t.equal("hypervisor present", c >> 31, 1);
    t.equal(
        "no virtual-8086 or page-size extensions for us",
        d & 0b10,
        0,
    );
    let [_, _, c, d] = forced(0x8000_0001, 0);
    t.equal("long mode, NX, system call", d & 0x2010_0800, 0x2010_0800);
    t.equal("no SVM for us", c & 4, 0);
    let mut silent = true;
    for leaf in (0x4000_0100..0x4001_0000).step_by(0x100) {
        silent &= forced(leaf, 0)[1..] != [0x566e_6558, 0x65584d4d, 0x4d4d_566e];
    }
    t.that("signature at one base alone", silent);
    let width = forced(0x4000_0005, 0)[1] & 0xff;
    t.note("machine address width", (20..=52).contains(&width), &width);
    for leaf in [0x7fff_ffff, 0xffff_ffff, 0x4000_00ff, 0x8000_ffff, 0xd, 7] {
        forced(leaf, 0xffff);
    }
    // The prefix before anything else is what it looks like: an invalid instruction.
    // SAFETY: faults.
    let trap = unsafe { probe!([".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e", "nop"]) };
    t.equal("prefix before something else", vector(trap), Some(6));
}

fn rdmsr(index: u32) -> Result<u64, u64> {
    let (low, high): (u32, u32);
    // SAFETY: emulated or faults.
    let trap = unsafe { probe!(["rdmsr"] in("ecx") index, out("eax") low, out("edx") high,) };
    vector(trap).map_or(Ok(u64::from(low) | u64::from(high) << 32), Err)
}

fn wrmsr(index: u32, value: u64) -> Option<u64> {
    // SAFETY: emulated, ignored or faults: none of the registers is this program's to harm.
    vector(unsafe {
        probe!(["wrmsr"] in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,)
    })
}

fn model_registers(t: &mut Checks) {
    let efer = rdmsr(0xc000_0080).unwrap_or(0);
    t.equal("EFER: system call, long mode, NX", efer & 0xd01, 0xd01);
    let apic = rdmsr(0x1b).unwrap_or(0);
    t.equal(
        "local APIC at its place",
        apic & 0x000f_ffff_f000,
        0xfee0_0000,
    );
    t.equal("PAT is the interface's", rdmsr(0x277), Ok(0x0501_0007_0406));
    t.that("machine-check capabilities", rdmsr(0x179).is_ok());
    t.equal("register that does not exist", rdmsr(0x1234_5678), Err(13));
    t.equal("largest number", rdmsr(u32::MAX), Err(13));
    t.that(
        "reading registers of the hypervisor's",
        [0x4000_0000, 0xc001_0114, 0x1d9, 0x174]
            .iter()
            .all(|n| rdmsr(*n) != Err(14)),
    );
    let hidden = [
        0xc000_0081_u32,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0x175,
        0x176,
    ];
    for index in hidden {
        let value = rdmsr(index);
        let leak = value.is_ok_and(|value| (0xffff_8000..0xffff_8800).contains(&(value >> 32)));
        t.note(
            "entry point of the hypervisor not shown",
            !leak,
            &(index, value),
        );
        // Whatever is answered, our next system call must still reach the hypervisor.
        wrmsr(index, 0x1000);
        t.that(
            "entry point unchanged",
            hyper::call(nr::XEN_VERSION, [0; 5]) > 0,
        );
    }
    t.that(
        "EFER cannot lose long mode",
        wrmsr(0xc000_0080, 0).is_none_or(|vector| vector == 13),
    );
    t.equal(
        "EFER as before",
        rdmsr(0xc000_0080).map(|value| value & 0xd01),
        Ok(0xd01),
    );
    wrmsr(0x1b, 0xfee0_0000);
    t.equal(
        "APIC base as before",
        rdmsr(0x1b).map(|value| value & 0x000f_ffff_f000),
        Ok(0xfee0_0000),
    );
    wrmsr(0x10, 0);
    wrmsr(0x1d9, 1);
    wrmsr(0x1a0, u64::MAX);
    wrmsr(0xc000_0103, 0);
    t.that(
        "alive after those writes (333)",
        hyper::call(nr::XEN_VERSION, [0; 5]) > 0,
    );
}

fn segment_base_registers(t: &mut Checks) {
    const FS: u32 = 0xc000_0100;
    const GS: u32 = 0xc000_0101;
    const KERNEL_GS: u32 = 0xc000_0102;
    for index in [FS, GS, KERNEL_GS] {
        t.equal("base written", wrmsr(index, 0x1234_5000), None);
        t.equal("base read", rdmsr(index), Ok(0x1234_5000));
        for bad in [
            0x8000_0000_0000_0000,
            0x0000_8000_0000_0000,
            0xffff_7fff_ffff_ffff,
        ] {
            t.equal("non-canonical base (193)", wrmsr(index, bad), Some(13));
        }
        t.equal("base unchanged", rdmsr(index), Ok(0x1234_5000));
        t.equal("base cleared", wrmsr(index, 0), None);
    }
    let page = Page::take();
    page.set_word(0, 0x77);
    t.equal("GS base", wrmsr(GS, page.0), None);
    let value: u64;
    // SAFETY: GS is based at a test page.
    unsafe { asm!("mov {0}, gs:[0]", out(reg) value) };
    t.equal("memory by GS", value, 0x77);
    t.equal("GS base cleared", wrmsr(GS, 0), None);
}

fn control_registers(t: &mut Checks) {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: emulated reads.
    unsafe {
        asm!("mov {0}, cr0", "mov {1}, cr3", "mov {2}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4)
    };
    t.equal(
        "paging, protection, write protection",
        cr0 & 0x8001_0001,
        0x8001_0001,
    );
    t.equal("root", cr3 >> 12 & 0xff_ffff_ffff, memory::root());
    t.equal("PAE", cr4 & 0x20, 0x20);
    let set4 = |value: u64| {
        // SAFETY: emulated, filtered or faults.
        vector(unsafe { probe!(["mov cr4, {0}"] in(reg) value,) })
    };
    t.equal("CR4 as it is", set4(cr4), None);
    t.that(
        "CR4 of ones",
        set4(u64::MAX).is_none_or(|vector| vector == 13),
    );
    t.that("CR4 of zeros", set4(0).is_none_or(|vector| vector == 13));
    set4(cr4);
    let set0 = |value: u64| {
        // SAFETY: as above.
        vector(unsafe { probe!(["mov cr0, {0}"] in(reg) value,) })
    };
    t.that(
        "CR0 without paging",
        set0(cr0 & !(1 << 31)).is_none_or(|vector| vector == 13),
    );
    t.that("CR0 of zeros", set0(0).is_none_or(|vector| vector == 13));
    t.that(
        "CR0 without write protection",
        set0(cr0 & !(1 << 16)).is_none_or(|vector| vector == 13),
    );
    t.equal("CR0 as it was", set0(cr0), None);
    let page = Page::take();
    t.ok("protect", page.protect());
    t.that("write protection holds", !try_write(page.0, 1));
    t.ok("restore", page.restore());
    // SAFETY: emulated.
    t.equal(
        "CR3 as it is",
        vector(unsafe { probe!(["mov cr3, {0}"] in(reg) cr3,) }),
        None,
    );
    for bad in [page.ma(0), hypervisor_frame() << 12, 1 << 47, u64::MAX] {
        // SAFETY: must fault or be ignored; the first is a plain page.
        let trap = unsafe { probe!(["mov cr3, {0}"] in(reg) bad,) };
        t.equal("bad root by CR3", vector(trap), Some(13));
    }
    large_root(t, cr3);
    // SAFETY: emulated.
    t.that("clts", unsafe { probe!(["clts"]) }.is_none());
    let address = page.0 + 0x10;
    // SAFETY: a fault that is expected, then the register that names it.
    let cr2: u64 = unsafe {
        probe!(["mov {0}, [{0}]"] inout(reg) 0x1238_u64 => _,);
        let value;
        asm!("mov {0}, cr2", out(reg) value);
        value
    };
    t.equal("CR2 by instruction", cr2, 0x1238);
    // SAFETY: emulated.
    let trap = unsafe { probe!(["mov cr2, {0}"] in(reg) address,) };
    t.that("CR2 written", trap.is_none() && memory::cr2() == address);
    // SAFETY: emulated or faults.
    let trap = unsafe { probe!(["invlpg [{0}]"] in(reg) page.0,) };
    t.that("invlpg", trap.is_none_or(|trap| trap.frame.vector == 13));
    // SAFETY: emulated or faults.
    let trap = unsafe { probe!(["mov {0}, cr8"] out(reg) _,) };
    t.that(
        "CR8",
        trap.is_none_or(|trap| [6, 13].contains(&trap.frame.vector)),
    );
}

fn extended_control(t: &mut Checks) {
    if forced(1, 0)[2] & 1 << 26 == 0 {
        return;
    }
    // SAFETY: sets OSXSAVE, then reads XCR0.
    let (low, high): (u32, u32) = unsafe {
        let (low, high);
        asm!("mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", out(reg) _);
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high);
        (low, high)
    };
    t.equal("x87 state is always on", low & 1, 1);
    let set = |index: u32, low: u32, high: u32| {
        // SAFETY: emulated or faults.
        vector(unsafe { probe!(["xsetbv"] in("ecx") index, in("eax") low, in("edx") high,) })
    };
    t.equal("XCR0 as it is", set(0, low, high), None);
    for (index, low, high) in [
        (0, 0, 0),
        (0, 2, 0),
        (0, 4 | 1, 0),
        (0, u32::MAX, u32::MAX),
        (1, 1, 0),
        (0, 7, 1 << 31),
    ] {
        t.equal("bad XCR0", set(index, low, high), Some(13));
    }
    t.equal("XCR0 for x87 and SSE", set(0, 3, 0), None);
    t.equal("XCR0 back", set(0, low, high), None);
    let leaf = core::arch::x86_64::__cpuid_count(0xd, 0);
    t.that("state size agrees", (576..16384).contains(&leaf.ebx));
}

fn time_stamp(t: &mut Checks) {
    let first = time::tsc();
    let (second, third) = (time::tsc(), time::tsc());
    t.that("counter rises", first < second && second < third);
    // SAFETY: emulated, native or faults.
    let trap = unsafe { probe!(["rdtscp"] out("rax") _, out("rdx") _, out("rcx") _,) };
    t.that(
        "rdtscp",
        trap.is_none_or(|trap| [6, 13].contains(&trap.frame.vector)),
    );
    // SAFETY: as above.
    let trap = unsafe { probe!(["rdpmc"] in("ecx") 0, out("rax") _, out("rdx") _,) };
    t.that("rdpmc", trap.is_none_or(|trap| trap.frame.vector == 13));
}

fn debug_registers(t: &mut Checks) {
    let set = |register: u64, value: u64| hyper::call(nr::SET_DEBUGREG, [register, value, 0, 0, 0]);
    let get = |register: u64| hyper::call(nr::GET_DEBUGREG, [register, 0, 0, 0, 0]) as u64;
    let page = Page::take();
    for register in 0..4 {
        t.ok("breakpoint address", set(register, page.0 + register * 8));
        t.equal(
            "breakpoint address read",
            get(register),
            page.0 + register * 8,
        );
        t.refused(
            "breakpoint in the hypervisor (444)",
            set(register, philoxen_abi::addr::HYPERVISOR_START + (1 << 40)),
        );
        t.refused(
            "breakpoint at its end (444)",
            set(register, philoxen_abi::addr::HYPERVISOR_END - 1),
        );
    }
    // Data write of 8 bytes on breakpoint 0.
    t.ok("arm", set(7, 0x401 | 0b1001 << 16));
    // SAFETY: a store that raises #DB afterwards.
    let trap = unsafe { probe!(["mov [{0}], {0}", "nop"] in(reg) page.0,) };
    t.equal("data breakpoint", vector(trap), Some(1));
    t.equal("cause in DR6", get(6) & 0xf, 1);
    t.ok("disarm", set(7, 0x400));
    // SAFETY: a plain store.
    t.that(
        "no breakpoint",
        unsafe { probe!(["mov [{0}], {0}", "nop"] in(reg) page.0,) }.is_none(),
    );
    t.refused(
        "general-detect bit",
        set(7, 0x2000 | 0x400).min(set(7, 1 << 32)),
    );
    t.refused(
        "I/O breakpoint without the extension",
        set(7, 0x401 | 2 << 16),
    );
    t.ok("DR6 cleared", set(6, 0xffff_0ff0));
    t.refused("no such register", set(9, 0));
    t.that("reading no such register", (get(9) as i64) < 0);
    // SAFETY: emulated.
    let trap = unsafe { probe!(["mov dr1, {0}", "mov {0}, dr1"] inout(reg) page.0 => _,) };
    t.equal("debug register by instruction", vector(trap), None);
    t.equal("same value by hypercall", get(1), page.0);
    // SAFETY: emulated; must be refused.
    let trap = unsafe { probe!(["mov dr0, {0}"] in(reg) philoxen_abi::addr::HYPERVISOR_START,) };
    t.equal(
        "instruction with an address of the hypervisor (444)",
        vector(trap),
        Some(13),
    );
    (0..4).for_each(|register| t.ok("cleared", set(register, 0)));
    t.ok("DR7 at rest", set(7, 0x400));
}

fn refused_instructions(t: &mut Checks) {
    let mut check = |name: &'static str, trap: Option<Trap>| {
        let result = vector(trap);
        t.note(name, matches!(result, Some(6 | 13)), &result);
    };
    // SAFETY: every one of these must fault.
    unsafe {
        check(
            "lgdt",
            probe!(["lgdt [{0}]"] in(reg) memory::start().address,),
        );
        check("lmsw", probe!(["lmsw {0:x}"] in(reg) 0_u64,));
        check("swapgs", probe!(["swapgs"]));
        check("vmmcall", probe!(["vmmcall"]));
        check("vmcall", probe!(["vmcall"]));
        check(
            "vmxon",
            probe!(["vmxon [{0}]"] in(reg) memory::start().address,),
        );
        check("vmrun", probe!(["vmrun"] in("rax") 0_u64,));
        check("stgi", probe!(["stgi"]));
        check("sysretq", probe!(["sysretq"] out("rcx") _,));
        check(
            "sysexit",
            probe!(["sysexit"] in("rcx") 0_u64, in("rdx") 0_u64,),
        );
        check(
            "monitor",
            probe!(["monitor"] in("rax") 0_u64, in("ecx") 0, in("edx") 0,),
        );
        check("rsm", probe!(["rsm"]));
        check(
            "bad invpcid",
            probe!(["invpcid {1}, [{0}]"] in(reg) memory::start().address, in(reg) 9_u64,),
        );
    }
    // SAFETY: emulated for Domain 0, or faults.
    let cache = unsafe { probe!(["wbinvd"]) };
    t.that("wbinvd", cache.is_none_or(|trap| trap.frame.vector == 13));
}

/// Random reads and writes of model-specific registers: nothing happens to the hypervisor.
fn random_registers(t: &mut Checks) {
    let mut random = Random(0x4d_5352);
    let mut other = 0;
    for _ in 0..3000 {
        let index = match random.below(4) {
            0 => random.below(0x500) as u32,
            1 => 0xc000_0000 | random.below(0x200) as u32,
            2 => 0xc001_0000 | random.below(0x200) as u32,
            _ => random.next() as u32,
        };
        other += u32::from(rdmsr(index).is_err_and(|vector| vector != 13));
        // GS is not used by this program; FS neither.
        let vector = wrmsr(index, random.next());
        other += u32::from(vector.is_some_and(|vector| vector != 13));
    }
    t.equal("other faults than #GP", other, 0);
    t.that("alive", hyper::call(nr::XEN_VERSION, [0; 5]) > 0);
}
