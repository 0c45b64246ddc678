// SPDX-License-Identifier: MIT OR Apache-2.0
//! The boot contract: registers, start_info, P2M, initial page tables, versions and features (xen/xen.h "start of day",
//! xen/version.h).

use crate::probe;
use crate::rt::memory::{self, PAGE, VIRT_BASE, p2m, pte, walk};
use crate::rt::{cell::Racy, check::Checks, hyper};
use core::arch::asm;
use philoxen_abi::hypercall as nr;

/// Registers at entry: stack pointer, flags, cs, ss, ds | es | fs | gs.
static ENTRY: Racy<[u64; 5]> = Racy::new([0; 5]);
static ENTRY_MASK: Racy<u8> = Racy::new(0);

/// Keeps what must be looked at before anything else runs.
pub fn early(stack: u64) {
    let (flags, cs, ss, data): (u64, u64, u64, u64);
    // SAFETY: reads selectors and flags.
    unsafe {
        asm!("pushfq", "pop {}", out(reg) flags);
        asm!("mov {0:e}, cs", "mov {1:e}, ss", out(reg) cs, out(reg) ss);
        asm!("mov {0:e}, ds", "mov {1:e}, es", "or {0:e}, {1:e}", "mov {1:e}, fs", "or {0:e}, {1:e}",
            "mov {1:e}, gs", "or {0:e}, {1:e}", out(reg) data, out(reg) _);
    }
    ENTRY.replace([stack, flags, cs, ss, data]);
    ENTRY_MASK.replace(memory::upcall_mask());
}

/// Runs the theme.
pub fn run(t: &mut Checks) {
    registers(t);
    start_info(t);
    frames(t);
    tables(t);
    machine_to_phys(t);
    versions(t);
    reservations(t);
    ramdisk(t);
    if cfg!(feature = "legacy-layout") {
        legacy(t);
    }
}

fn registers(t: &mut Checks) {
    let [stack, flags, cs, ss, data] = ENTRY.get();
    let info = memory::start();
    t.equal("stack is page-aligned", stack % PAGE, 0);
    t.that(
        "stack follows the page tables",
        stack >= info.pt_base + info.nr_pt_frames * PAGE,
    );
    t.equal("interrupt flag set", flags & 0x200, 0x200);
    t.equal(
        "trap, direction and nested-task flags clear",
        flags & 0x4500,
        0,
    );
    t.equal("code selector", cs, memory::KERNEL_CS);
    t.equal("stack selector", ss, memory::KERNEL_SS);
    t.equal("data selectors null", data, 0);
    t.equal("upcalls start masked", ENTRY_MASK.get(), 1);
}

fn start_info(t: &mut Checks) {
    let info = memory::start();
    t.that("magic", info.magic.starts_with(b"xen-3.0-x86_64"));
    t.equal("privileged initial domain", info.flags & 3, 3);
    t.that("some memory", info.nr_pages > 4096);
    t.equal("shared info is a page", info.shared_info % PAGE, 0);
    t.equal("start_info is page-aligned", info.address % PAGE, 0);
    t.that(
        "start_info is in the initial mapping",
        info.address >= VIRT_BASE,
    );
    t.equal("page tables are page-aligned", info.pt_base % PAGE, 0);
    if cfg!(feature = "legacy-layout") {
        t.that(
            "P2M in the initial mapping",
            info.mfn_list >= VIRT_BASE && info.mfn_list < info.address,
        );
    } else {
        t.equal("P2M where the note asks", info.mfn_list, 0x80_0000_0000);
        t.that(
            "P2M frames named",
            info.nr_p2m_frames * 512 >= info.nr_pages,
        );
        let end = info.first_p2m_pfn.saturating_add(info.nr_p2m_frames);
        t.that("P2M frames are the domain's", end <= info.nr_pages);
    }
}

/// The second module arrives whole, where start_info says: by frame number, or in the initial mapping as older kernels
/// have it. The first bytes are those of a gzip file or a cpio archive.
fn ramdisk(t: &mut Checks) {
    let info = memory::start();
    let by_frame = info.flags & 8 != 0;
    if info.mod_len == 0 {
        return;
    }
    t.equal(
        "ramdisk by frame number",
        by_frame,
        !cfg!(feature = "legacy-layout"),
    );
    let first = if by_frame {
        info.mod_start
    } else {
        (info.mod_start - VIRT_BASE) / PAGE
    };
    let pages = info.mod_len.div_ceil(PAGE);
    t.that(
        "ramdisk within our memory",
        first
            .checked_add(pages)
            .is_some_and(|end| end <= info.nr_pages),
    );
    let window = memory::Page::take();
    t.ok("map the ramdisk", window.map(p2m(first), pte::RW));
    let start = window.word(0);
    let known = start & 0xffff == 0x8b1f || start.to_le_bytes().starts_with(b"070701");
    t.note("ramdisk starts as such files do", known, &start);
    t.ok(
        "map its last page",
        window.map(p2m(first + pages - 1), pte::RW),
    );
    let (tail, used) = (
        (info.mod_len % PAGE).div_ceil(8),
        !info.mod_len.is_multiple_of(PAGE),
    );
    t.that(
        "nothing behind its end",
        !used || (tail..512).all(|n| window.word(n) == 0),
    );
    t.ok("restore", window.restore());
    if !by_frame {
        t.equal(
            "ramdisk in the initial mapping",
            memory::read(info.mod_start),
            start,
        );
    }
}

/// Every P2M entry is inverse to the hypervisor's table.
fn frames(t: &mut Checks) {
    let pages = memory::start().nr_pages;
    let bad = (0..pages)
        .filter(|pfn| memory::m2p(p2m(*pfn)) != *pfn)
        .count();
    t.equal("P2M entries that M2P contradicts", bad, 0);
}

fn tables(t: &mut Checks) {
    let info = memory::start();
    let [stack, ..] = ENTRY.get();
    let tables = info.pt_base..info.pt_base + info.nr_pt_frames * PAGE;
    let (mut wrong, mut mode, mut va) = (0, 0, VIRT_BASE);
    while walk(va, 2).value & pte::P != 0 {
        let entry = walk(va, 1).value;
        if entry & pte::P == 0 {
            break;
        }
        wrong += u32::from(entry & pte::FRAME != p2m((va - VIRT_BASE) >> 12) << 12);
        let writable = entry & pte::W != 0;
        // The shared-info window has been remapped by our own start.
        if va == memory::shared_info() {
            wrong -= 1;
        }
        mode += u32::from(writable == tables.contains(&va));
        va += PAGE;
        if memory::index(va, 2) == 0 && memory::index(va, 1) == 0 {
            break;
        }
    }
    t.equal("initial mapping is 1:1", wrong, 0);
    t.equal("tables read-only, all else writable", mode, 0);
    t.equal("initial mapping ends at 4 MiB", va % (4 << 20), 0);
    t.that("512 KiB behind the stack", va >= stack + (512 << 10));
    t.equal(
        "root is the table at pt_base",
        walk(info.pt_base, 1).mfn(),
        memory::root(),
    );
}

fn machine_to_phys(t: &mut Checks) {
    let place = philoxen_abi::addr::HYPERVISOR_START + memory::root() * 8;
    t.equal(
        "M2P readable",
        memory::read(place),
        (memory::start().pt_base - VIRT_BASE) >> 12,
    );
    // SAFETY: a write that must fault; if it does not, it repeats what is there.
    let trap = unsafe { probe!(["mov [{0}], {1}"] in(reg) place, in(reg) memory::read(place),) };
    t.equal(
        "M2P write faults",
        trap.map(|trap| trap.frame.vector),
        Some(14),
    );
    let mut range = [0_u64; 3];
    t.ok("machphys_mapping", hyper::memory_op(12, &mut range));
    let [start, end, last] = range;
    t.equal("M2P start", start, philoxen_abi::addr::HYPERVISOR_START);
    t.that(
        "M2P covers our root",
        memory::root() <= last && start + last * 8 < end,
    );
    let highest = (0..memory::start().nr_pages).map(p2m).max();
    t.that(
        "M2P covers all our frames",
        highest.is_some_and(|mfn| mfn <= last),
    );
    let trap = read_probe(philoxen_abi::addr::HYPERVISOR_END - 8);
    t.that("end of the hypervisor's range unreadable", trap);
}

fn read_probe(va: u64) -> bool {
    // SAFETY: a read whose fault is expected.
    let trap = unsafe { probe!(["mov {0}, [{0}]"] inout(reg) va => _,) };
    trap.is_some_and(|trap| trap.frame.vector == 14)
}

fn version<T>(cmd: u64, argument: &mut T) -> i64 {
    hyper::call(nr::XEN_VERSION, [cmd, hyper::address(argument), 0, 0, 0])
}

fn versions(t: &mut Checks) {
    let number = hyper::call(nr::XEN_VERSION, [0; 5]);
    t.that("version 4.x", number >> 16 == 4);
    // Each buffer starts full of ones: nothing may stay that the call had to set, nothing behind it may change (122).
    let mut text = [0xff_u8; 1100];
    t.ok("capabilities", version(3, &mut text));
    let end = text.iter().position(|byte| *byte == 0);
    let name = end.map(|end| &text[..end]).unwrap_or_default();
    let capable = name
        .split(|byte| *byte == b' ')
        .any(|word| word == b"xen-3.0-x86_64");
    t.that("capable of 64-bit PV", capable);
    t.that(
        "capabilities end with their structure",
        text[1024..].iter().all(|byte| *byte == 0xff),
    );
    let mut extra = [0xff_u8; 24];
    t.that(
        "extraversion",
        version(1, &mut extra) == 0 && extra[..16].contains(&0),
    );
    t.that(
        "extraversion ends with its structure",
        extra[16..] == [0xff; 8],
    );
    let mut base = 0_u64;
    t.ok("platform parameters", version(5, &mut base));
    t.equal(
        "hypervisor's range",
        base,
        philoxen_abi::addr::HYPERVISOR_START,
    );
    t.equal(
        "page size",
        hyper::call(nr::XEN_VERSION, [7, 0, 0, 0, 0]),
        4096,
    );
    let mut features = [0_u32, 0];
    t.ok("features", version(6, &mut features));
    let need = 1 << 5 | 1 << 7 | 1 << 11;
    t.equal("features that Linux needs", features[1] & need, need);
    t.equal("features that PV has not", features[1] & 0b1111, 0);
    t.refused("features beyond the last word", version(6, &mut [9_u32, 0]));
    t.refused("unknown sub-command", version(99, &mut base));
    let far = philoxen_abi::addr::HYPERVISOR_START + 0x1000_0000_0000;
    for address in [
        0x10,
        far,
        far + (1 << 40),
        0x8000_0000_0000_0000,
        u64::MAX - 3,
    ] {
        let result = hyper::call(nr::XEN_VERSION, [5, address, 0, 0, 0]);
        t.equal("bad pointer", result, -14);
    }
}

fn reservations(t: &mut Checks) {
    let mut domid = 0x7ff0_u64;
    let pages = memory::start().nr_pages as i64;
    t.equal(
        "current reservation",
        hyper::memory_op(3, &mut domid),
        pages,
    );
    t.that(
        "highest machine page",
        hyper::memory_op(2, &mut domid) as u64 >= memory::root(),
    );
    let mut map = [[0_u32; 5]; 64];
    let mut argument = [map.len() as u64, map.as_mut_ptr() as u64];
    t.ok("machine memory map", hyper::memory_op(10, &mut argument));
    let count = argument[0] as u32 as usize;
    t.that(
        "machine memory map has entries",
        (1..=map.len()).contains(&count),
    );
    let ram = map.iter().take(count).filter(|entry| entry[4] == 1);
    let bytes: u64 = ram
        .map(|entry| u64::from(entry[2]) | u64::from(entry[3]) << 32)
        .sum();
    t.that(
        "machine has more RAM than we",
        bytes / PAGE >= memory::start().nr_pages,
    );
    t.refused("unknown memory operation", hyper::memory_op(63, &mut domid));
}

/// What older kernels ask for: a page full of calls, the ramdisk and the list in the initial mapping.
#[allow(
    unreachable_code,
    unused_variables,
    reason = "the page exists in one of the layouts only"
)]
fn legacy(t: &mut Checks) {
    #[cfg(feature = "legacy-layout")]
    {
        unsafe extern "C" {
            static guest_hypercall_page: u8;
        }
        let page = &raw const guest_hypercall_page as u64;
        let filled = (0..43)
            .filter(|number| *number != 11)
            .all(|number| memory::read(page + number * 32) != 0);
        t.that("hypercall page filled", filled);
    }
}
