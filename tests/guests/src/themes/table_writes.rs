// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes to live page tables by ordinary instructions (part of the theme `emulation`).

use crate::probe;
use crate::rt::hyper::{self, ext, mmuext_one};
use crate::rt::memory::{self, Page, pte, walk};
use crate::rt::{check::Checks, traps::Trap};
use crate::themes::pagetypes::{hypervisor_frame, try_read, try_write};
use philoxen_abi::hypercall as nr;

/// Runs the checks.
pub fn run(t: &mut Checks) {
    table_writes(t);
    refused_entries(t);
    other_writes(t);
}

fn vector(trap: Option<Trap>) -> Option<u64> {
    trap.map(|trap| trap.frame.vector)
}

/// Writes to a live L1 table by ordinary instructions.
fn table_writes(t: &mut Checks) {
    let (window, one, two) = (Page::take(), Page::take(), Page::take());
    one.set_word(0, 1);
    two.set_word(0, 2);
    let table = walk(window.0, 2).mfn();
    let entry = memory::VIRT_BASE + (memory::m2p(table) << 12) + memory::index(window.0, 1) * 8;
    t.ok(
        "writable page tables",
        hyper::call(nr::VM_ASSIST, [0, 2, 0, 0, 0]),
    );
    let flush = || mmuext_one(ext::INVLPG_LOCAL, window.0, 0);
    t.that("mov", try_write(entry, one.ma(0) | pte::RW));
    t.ok("flush", flush());
    t.equal("mov took effect", try_read(window.0), Some(1));
    let mut old = two.ma(0) | pte::RW;
    // SAFETY: an exchange with a live entry, which is emulated.
    t.that(
        "xchg",
        unsafe { probe!(["xchg [{0}], {1}"] in(reg) entry, inout(reg) old,) }.is_none(),
    );
    t.equal("xchg gave the old entry", old & pte::FRAME, one.ma(0));
    t.ok("flush", flush());
    t.equal("xchg took effect", try_read(window.0), Some(2));
    let current = memory::read(entry);
    let compare = |expected: u64, new: u64| {
        let (after, equal): (u64, u8);
        // SAFETY: as above.
        let trap = unsafe {
            probe!(["lock cmpxchg [{0}], {1}", "sete {2}"] in(reg) entry, in(reg) new, out(reg_byte) equal, inout("rax") expected => after,)
        };
        (vector(trap), after, equal)
    };
    t.equal(
        "cmpxchg with another value",
        compare(current ^ 0x20, 0),
        (None, current, 0),
    );
    t.equal("entry unchanged", memory::read(entry), current);
    t.equal("cmpxchg", compare(current, one.ma(0) | pte::RW).2, 1);
    t.ok("flush", flush());
    t.equal("cmpxchg took effect", try_read(window.0), Some(1));
    // SAFETY: clears the writable bit of a live entry.
    let trap = unsafe { probe!(["lock and qword ptr [{0}], {1}"] in(reg) entry, in(reg) !pte::W,) };
    if vector(trap).is_none() {
        t.ok("flush", flush());
        t.that("lock and made it read-only", !try_write(window.0, 9));
        // SAFETY: sets it again.
        let trap = unsafe { probe!(["lock or qword ptr [{0}], 2"] in(reg) entry,) };
        t.equal("lock or", vector(trap), None);
        t.ok("flush", flush());
        t.that("lock or made it writable", try_write(window.0, 1));
        // SAFETY: clears the accessed bit.
        let trap = unsafe { probe!(["lock btr qword ptr [{0}], 5"] in(reg) entry,) };
        t.equal(
            "lock btr",
            (vector(trap), memory::read(entry) & 0x20),
            (None, 0),
        );
    } else {
        t.equal("lock and refused as a page fault", vector(trap), Some(14));
    }
    t.ok("restore", window.restore());
}

/// Entries that no guest may have, written into a live L1 table.
fn refused_entries(t: &mut Checks) {
    let window = Page::take();
    let table = walk(window.0, 2).mfn();
    let entry = memory::VIRT_BASE + (memory::m2p(table) << 12) + memory::index(window.0, 1) * 8;
    let before = memory::read(entry);
    for (name, value) in [
        ("hypervisor's frame", hypervisor_frame() << 12 | pte::RW),
        ("page table writable", table << 12 | pte::RW),
        ("root writable", memory::root() << 12 | pte::RW),
        ("frame that is not there", 1 << 47 | pte::RW),
    ] {
        t.that(name, !try_write(entry, value));
        // SAFETY: as above.
        let trap = unsafe { probe!(["xchg [{0}], {1}"] in(reg) entry, inout(reg) value => _,) };
        t.equal(name, vector(trap), Some(14));
        t.equal("entry as before", memory::read(entry), before);
    }
    // SAFETY: half an entry.
    let trap = unsafe { probe!(["mov dword ptr [{0}], 0"] in(reg) entry,) };
    t.that(
        "half an entry",
        vector(trap).is_none_or(|vector| vector == 14),
    );
    // SAFETY: across two entries.
    let trap = unsafe { probe!(["mov qword ptr [{0} + 4], 0"] in(reg) entry,) };
    t.equal("across two entries", vector(trap), Some(14));
    t.ok("restore", window.restore());
}

/// What is read-only for another reason must fault.
fn other_writes(t: &mut Checks) {
    let page = Page::take();
    t.ok("protect", page.protect());
    // SAFETY: faults.
    let trap = unsafe { probe!(["xchg [{0}], {1}"] in(reg) page.0, inout(reg) 0_u64 => _,) };
    t.equal(
        "plain read-only page",
        trap.map(|trap| trap.code()),
        Some((14, 3)),
    );
    for level in [2, 3, 4] {
        let table = if level == 4 {
            memory::root()
        } else {
            walk(page.0, level + 1).mfn()
        };
        let entry =
            memory::VIRT_BASE + (memory::m2p(table) << 12) + memory::index(page.0, level) * 8;
        let value = memory::read(entry);
        t.that("entry of a higher level", !try_write(entry, value));
        t.equal("higher level unchanged", memory::read(entry), value);
    }
    t.ok("restore", page.restore());
}
