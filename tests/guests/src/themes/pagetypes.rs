// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page types: what a guest may do to its page tables, and what it must not get away with.
//!
//! Names end with the number of the advisory whose attack the check repeats.

use crate::probe;
use crate::rt::check::Checks;
use crate::rt::hyper::{self, ext, mmu_one, mmuext_one};
use crate::rt::memory::{self, Page, pte, root, walk};
use crate::themes::{mappings, memory_ops};

/// Runs the theme.
pub fn run(t: &mut Checks) {
    own_tables_stay_read_only(t);
    pins(t);
    retype_waits_for_references(t);
    levels(t);
    entries(t);
    reserved_slots(t);
    large_pages(t);
    recursive_tables(t);
    mappings::run(t);
    memory_ops::run(t);
}

/// A frame of the hypervisor's: the table behind its own top-level slot.
pub fn hypervisor_frame() -> u64 {
    let slot = memory::start().pt_base + 256 * 8;
    (memory::read(slot) & pte::FRAME) >> 12
}

/// The word at `va`, or `None` if reading it faults.
pub fn try_read(va: u64) -> Option<u64> {
    let mut value = va;
    // SAFETY: a read whose fault is expected.
    let trap = unsafe { probe!(["mov {0}, [{0}]"] inout(reg) value,) };
    trap.is_none().then_some(value)
}

/// Writes the word at `va`; false if that faults.
pub fn try_write(va: u64, value: u64) -> bool {
    // SAFETY: a write to test memory whose fault is expected.
    unsafe { probe!(["mov [{0}], {1}"] in(reg) va, in(reg) value,) }.is_none()
}

fn own_tables_stay_read_only(t: &mut Checks) {
    let window = Page::take();
    for (name, mfn) in [
        ("writable L1 table", walk(window.0, 2).mfn()),
        ("writable L2 table", walk(window.0, 3).mfn()),
        ("writable L3 table", walk(window.0, 4).mfn()),
        ("writable L4 table", root()),
    ] {
        t.refused(name, window.map(mfn, pte::RW));
        t.refused(name, mmu_one(window.pte_ma(), mfn << 12 | pte::RW));
        t.ok("read-only table", window.map(mfn, pte::RO));
        let evil = hypervisor_frame() << 12 | pte::RW;
        t.that(
            "bad entry written to a table",
            !try_write(window.0 + memory::index(window.0, 1) * 8, evil),
        );
        t.refused("read-only table made writable", window.map(mfn, pte::RW));
    }
    t.ok("window given back", window.restore());
}

fn pins(t: &mut Checks) {
    let page = Page::take();
    t.refused(
        "pin a writable page",
        mmuext_one(ext::PIN_L1, page.mfn(), 0),
    );
    t.ok("protect", page.protect());
    t.ok("pin L1", mmuext_one(ext::PIN_L1, page.mfn(), 0));
    t.refused("pin L1 twice", mmuext_one(ext::PIN_L1, page.mfn(), 0));
    t.refused("pin L1 as L2", mmuext_one(ext::PIN_L2, page.mfn(), 0));
    t.refused("pin L1 as L4", mmuext_one(ext::PIN_L4, page.mfn(), 0));
    t.refused("pinned table made writable", page.restore());
    t.ok("unpin", mmuext_one(ext::UNPIN, page.mfn(), 0));
    t.refused("unpin twice (58)", mmuext_one(ext::UNPIN, page.mfn(), 0));
    t.ok("unpinned page writable", page.restore());
    for level in [ext::PIN_L1, ext::PIN_L2, ext::PIN_L3, ext::PIN_L4] {
        t.refused(
            "pin a frame of the hypervisor",
            mmuext_one(level, hypervisor_frame(), 0),
        );
        t.refused(
            "pin a frame that is not there",
            mmuext_one(level, 1 << 35, 0),
        );
        t.refused("pin frame number all ones", mmuext_one(level, u64::MAX, 0));
        t.refused(
            "pin the root as something",
            if level == ext::PIN_L4 {
                -1
            } else {
                mmuext_one(level, root(), 0)
            },
        );
    }
    t.refused(
        "unpin what is not pinned",
        mmuext_one(ext::UNPIN, page.mfn(), 0),
    );
    t.refused(
        "unpin a frame that is not there",
        mmuext_one(ext::UNPIN, u64::MAX, 0),
    );
    t.refused("mark_super (167)", mmuext_one(ext::MARK_SUPER, 1 << 40, 0));
    t.refused(
        "unmark_super (167)",
        mmuext_one(ext::UNMARK_SUPER, u64::MAX, 0),
    );
    t.refused("unknown operation", mmuext_one(99, 0, 0));
}

fn retype_waits_for_references(t: &mut Checks) {
    let (page, other) = (Page::take(), Page::take());
    t.ok("second writable mapping", other.map(page.mfn(), pte::RW));
    t.ok("first made read-only", page.protect());
    t.refused(
        "pin with a writable mapping left",
        mmuext_one(ext::PIN_L1, page.mfn(), 0),
    );
    t.ok("second made read-only", other.map(page.mfn(), pte::RO));
    t.ok(
        "pin without writable mappings",
        mmuext_one(ext::PIN_L1, page.mfn(), 0),
    );
    // A stale translation here would let us write anything into a live table.
    let evil = hypervisor_frame() << 12 | pte::RW;
    t.that(
        "no stale writable translation (241, 408)",
        !try_write(other.0 + 8, evil),
    );
    t.equal("table unchanged", page.word(1), 0);
    t.ok("unpin", mmuext_one(ext::UNPIN, page.mfn(), 0));
    t.ok("restore other", other.restore());
    t.ok("restore page", page.restore());
    // The other way: a table that is in use as such keeps its type after its pin is gone.
    let [top, third] = [Page::take(), Page::take()];
    top.set_word(3, third.ma(0) | pte::RW);
    t.ok("protect third", third.protect());
    t.ok("protect top", top.protect());
    t.ok("pin top", mmuext_one(ext::PIN_L4, top.mfn(), 0));
    t.refused("table under a pinned table made writable", third.restore());
    t.refused(
        "L3 under L4 pinned as L1",
        mmuext_one(ext::PIN_L1, third.mfn(), 0),
    );
    t.ok(
        "L3 under L4 pinned too",
        mmuext_one(ext::PIN_L3, third.mfn(), 0),
    );
    t.ok("unpin top", mmuext_one(ext::UNPIN, top.mfn(), 0));
    t.ok("top writable", top.restore());
    t.refused("L3 still pinned", third.restore());
    t.ok("unpin third", mmuext_one(ext::UNPIN, third.mfn(), 0));
    t.ok("third writable", third.restore());
}

/// Tables of an address space, top first: slot 0 of each leads to the next, the last maps `leaf`.
pub fn chain(leaf: u64) -> [Page; 4] {
    let tables: [Page; 4] = core::array::from_fn(|_| Page::take());
    for pair in tables.windows(2) {
        pair[0].set_word(0, pair[1].ma(0) | pte::RW);
    }
    tables[3].set_word(0, leaf);
    tables
}

fn levels(t: &mut Checks) {
    let data = Page::take();
    data.set_word(0, 0x1234_5678);
    let tables = chain(data.ma(0) | pte::RW);
    for (table, level) in tables.iter().zip([4, 3, 2, 1]) {
        t.refused(
            "pin with writable tables below",
            mmuext_one(level - 1, table.mfn(), 0),
        );
    }
    for table in tables {
        t.ok("protect", table.protect());
    }
    let [top, third, second, first] = tables;
    t.ok(
        "pin L4 pins all levels",
        mmuext_one(ext::PIN_L4, top.mfn(), 0),
    );
    for table in [third, second, first] {
        t.refused("lower level writable", table.restore());
    }
    // The third-level table can be used in the live root as well, and mapped memory appears there.
    let slot = (root() << 12) + 7 * 8;
    t.ok(
        "L3 hung into the live root",
        mmu_one(slot, third.ma(0) | pte::RW),
    );
    t.equal(
        "memory through the new slot",
        try_read(7 << 39),
        Some(0x1234_5678),
    );
    t.that(
        "write through the new slot",
        try_write((7 << 39) + 8, 77) && data.word(1) == 77,
    );
    t.refused(
        "L2 table in the root's slot",
        mmu_one(slot, second.ma(0) | pte::RW),
    );
    t.refused(
        "L1 table in the root's slot",
        mmu_one(slot, first.ma(0) | pte::RW),
    );
    t.refused(
        "data page in the root's slot",
        mmu_one(slot, data.ma(0) | pte::RW),
    );
    t.equal(
        "slot unchanged by refusals",
        try_read(7 << 39),
        Some(0x1234_5678),
    );
    // An entry taken away in a lower table vanishes from every address space.
    t.ok("clear L1 entry", mmu_one(first.ma(0), 0));
    t.ok("flush", mmuext_one(ext::INVLPG_LOCAL, 7 << 39, 0));
    t.equal("cleared entry", try_read(7 << 39), None);
    t.ok(
        "set L1 entry again",
        mmu_one(first.ma(0), data.ma(0) | pte::RO),
    );
    t.equal("entry set again", try_read((7 << 39) + 8), Some(77));
    t.that("entry is read-only", !try_write(7 << 39, 0));
    t.ok("clear L3 entry", mmu_one(third.ma(0), 0));
    t.ok("flush", mmuext_one(ext::TLB_FLUSH_LOCAL, 0, 0));
    t.equal("cut off at L3", try_read(7 << 39), None);
    t.ok("root's slot cleared", mmu_one(slot, 0));
    t.ok("unpin L4", mmuext_one(ext::UNPIN, top.mfn(), 0));
    for table in tables {
        t.ok("writable at the end", table.restore());
    }
}

fn entries(t: &mut Checks) {
    let (page, window) = (Page::take(), Page::take());
    let ma = window.pte_ma();
    let own = window.pte();
    let xen = hypervisor_frame();
    for (name, frame) in [
        ("hypervisor frame", xen),
        ("hypervisor frame, last of the table", m2p_frame()),
        ("frame beyond the machine", 1 << 35),
        ("largest frame", (1 << 40) - 1),
    ] {
        t.refused(name, mmu_one(ma, frame << 12 | pte::RW));
        t.refused(name, mmu_one(ma, frame << 12 | pte::RO));
        t.refused(
            name,
            hyper::update_va_mapping(window.0, frame << 12 | pte::RW, 0),
        );
    }
    t.equal(
        "entry unchanged by refusals",
        window.pte() & !(pte::A | pte::D),
        own & !(pte::A | pte::D),
    );
    t.refused("entry in a frame of the hypervisor", mmu_one(xen << 12, 0));
    t.refused(
        "entry of a frame that is not there (109)",
        mmu_one(1 << 47, 0),
    );
    t.refused("entry at all ones", mmu_one(!3, 0));
    t.ok("no user bit", mmu_one(ma, page.ma(0) | pte::P | pte::W));
    t.ok("flush", mmuext_one(ext::INVLPG_LOCAL, window.0, 0));
    page.set_word(5, 55);
    t.equal(
        "kernel reaches a page without the user bit",
        try_read(window.0 + 40),
        Some(55),
    );
    t.ok(
        "not present, any bits",
        mmu_one(ma, 0x7fff_ffff_ffff_fffe & !1),
    );
    t.equal(
        "not present reads back",
        window.pte(),
        0x7fff_ffff_ffff_fffe,
    );
    t.ok("no execute", window.map(page.mfn(), pte::RW | pte::NX));
    window.fill(0xcccc_cccc_cccc_cccc);
    // SAFETY: a jump into a page that must not be executable and holds nothing but breakpoints; either way it traps.
    let trap = unsafe { probe!(["jmp {0}"] in(reg) window.0,) };
    let trap = trap.map(|trap| (trap.code(), trap.frame.rip));
    t.equal("executing it faults", trap, Some(((14, 0x11), window.0)));
    t.ok("restore", window.restore());
}

/// A frame behind the machine-to-phys table, found through the hypervisor's own answer.
fn m2p_frame() -> u64 {
    let mut frame = 0_u64;
    let mut list = [1_u64, hyper::address(&mut frame), 0];
    hyper::memory_op(5, &mut list);
    frame
}

fn reserved_slots(t: &mut Checks) {
    let [_, third, ..] = chain(0);
    t.ok("protect", third.protect());
    for slot in [256, 257, 258, 264, 271] {
        let ma = (root() << 12) + slot * 8;
        t.refused(
            "table in a reserved slot",
            mmu_one(ma, third.ma(0) | pte::RW),
        );
        t.refused("reserved slot cleared", mmu_one(ma, 0));
        t.refused(
            "reserved slot rewritten",
            mmu_one(
                ma,
                memory::read(memory::start().pt_base + slot * 8) | pte::W,
            ),
        );
    }
    t.ok(
        "slot behind the reserved ones",
        mmu_one((root() << 12) + 272 * 8, 0),
    );
    t.ok("restore", third.restore());
    // What a new top-level table holds in the reserved slots is the hypervisor's, whatever we put there.
    let top = Page::take();
    (256..272).for_each(|slot| top.set_word(slot, 0xdead_0000 | pte::RW));
    t.ok("protect top", top.protect());
    t.ok(
        "pin with rubbish in the reserved slots",
        mmuext_one(ext::PIN_L4, top.mfn(), 0),
    );
    t.that(
        "rubbish is gone",
        (256..272).all(|slot| top.word(slot) & pte::FRAME != 0xdead_0000),
    );
    t.ok("unpin", mmuext_one(ext::UNPIN, top.mfn(), 0));
    t.ok("restore top", top.restore());
}

fn large_pages(t: &mut Checks) {
    let page = Page::take();
    let second = walk(page.0, 2);
    let third = walk(page.0, 3);
    t.refused(
        "large page bit on a live L2 entry (148)",
        mmu_one(second.ma, second.value | pte::PSE),
    );
    t.refused(
        "large page and writable (148)",
        mmu_one(second.ma, second.value | pte::PSE | pte::RW),
    );
    t.refused(
        "large page over our tables (148)",
        mmu_one(second.ma, root() << 12 & !0x1f_ffff | pte::PSE | pte::RW),
    );
    t.refused(
        "large page at L3",
        mmu_one(third.ma, third.value | pte::PSE),
    );
    let top = walk(page.0, 4);
    t.refused("large page at L4", mmu_one(top.ma, top.value | pte::PSE));
    let table = Page::take();
    table.set_word(0, page.mfn() << 12 & !0x1f_ffff | pte::PSE | pte::RW);
    t.ok("protect", table.protect());
    t.refused(
        "pin L2 with a large page",
        mmuext_one(ext::PIN_L2, table.mfn(), 0),
    );
    t.refused(
        "pin L3 with a large page",
        mmuext_one(ext::PIN_L3, table.mfn(), 0),
    );
    t.ok("restore", table.restore());
}

fn recursive_tables(t: &mut Checks) {
    let slot = (root() << 12) + 9 * 8;
    t.refused(
        "writable self map of the root (182)",
        mmu_one(slot, root() << 12 | pte::RW),
    );
    // A read-only one is a matter of policy; a writable one behind it is not.
    if mmu_one(slot, root() << 12 | pte::RO) == 0 {
        t.refused(
            "self map flipped to writable (182)",
            mmu_one(slot, root() << 12 | pte::RW),
        );
        let alias = (9 << 39) | (9 << 30) | (9 << 21) | (9 << 12) | (9 * 8);
        t.that(
            "write through the self map",
            !try_write(alias, root() << 12 | pte::RW),
        );
        t.ok("self map removed", mmu_one(slot, 0));
    }
    // Two tables that name each other (240): whatever is answered, both can be got rid of.
    let [one, two] = [Page::take(), Page::take()];
    one.set_word(0, two.ma(0) | pte::RO);
    two.set_word(0, one.ma(0) | pte::RO);
    t.ok("protect one", one.protect());
    t.ok("protect two", two.protect());
    for (name, pin) in [
        ("mutual L2", ext::PIN_L2),
        ("mutual L3", ext::PIN_L3),
        ("mutual L4 (240)", ext::PIN_L4),
    ] {
        if mmuext_one(pin, one.mfn(), 0) == 0 {
            t.ok(name, mmuext_one(ext::UNPIN, one.mfn(), 0));
        }
    }
    t.ok("one writable again", one.restore());
    t.ok("two writable again", two.restore());
    let own = Page::take();
    own.set_word(1, own.ma(0) | pte::RW);
    t.ok("protect own", own.protect());
    for pin in [ext::PIN_L1, ext::PIN_L2, ext::PIN_L3, ext::PIN_L4] {
        t.refused(
            "table that maps itself writable",
            mmuext_one(pin, own.mfn(), 0),
        );
    }
    t.ok("own writable again", own.restore());
}
