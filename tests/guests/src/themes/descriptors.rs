// SPDX-License-Identifier: MIT OR Apache-2.0
//! Segment descriptors: `set_gdt`, `update_descriptor`, and an LDT that is mapped when first used.
//!
//! Names end with the number of the advisory whose attack the check repeats.

use crate::probe;
use crate::rt::hyper::{self, ext, mmu_one, mmuext_one};
use crate::rt::memory::{Page, pte, root, walk};
use crate::rt::{check::Checks, random::Random};
use crate::themes::pagetypes::hypervisor_frame;
use philoxen_abi::hypercall as nr;

/// 64-bit code, DPL 3, readable.
const CODE: u64 = 0x00af_fb00_0000_ffff;
/// Data, DPL 3, writable.
const DATA: u64 = 0x00cf_f300_0000_ffff;
/// Data, DPL 3, read-only.
const READ_ONLY: u64 = 0x00cf_f100_0000_ffff;
/// 32-bit code, DPL 3.
const CODE32: u64 = 0x00cf_fb00_0000_ffff;
/// A 64-bit call gate, DPL 3.
const CALL_GATE: u64 = 0x0000_ec00_e008_0000;
/// An available task-state segment.
const TASK: u64 = 0x0000_8900_0000_0067;
/// A local descriptor table.
const LDT: u64 = 0x0000_e200_0000_0fff;
/// An interrupt gate, DPL 3.
const INTERRUPT_GATE: u64 = 0x0000_ee00_e008_0000;
/// 64-bit code for ring 0.
const CODE_RING0: u64 = 0x00af_9b00_0000_ffff;
/// Conforming 64-bit code for ring 0.
const CONFORMING_RING0: u64 = 0x00af_9f00_0000_ffff;

/// Descriptors that no guest may have.
const FORBIDDEN: [(&str, u64); 4] = [
    ("call gate", CALL_GATE),
    ("task state", TASK),
    ("LDT descriptor", LDT),
    ("interrupt gate", INTERRUPT_GATE),
];

/// Runs the theme.
pub fn run(t: &mut Checks) {
    global_table(t);
    forbidden(t);
    sizes(t);
    update(t);
    local_table(t);
    bad_local_tables(t);
    random_descriptors(t);
}

fn set_gdt(page: Page, entries: u64) -> i64 {
    let mut frames = [page.mfn()];
    hyper::call(nr::SET_GDT, [frames.as_mut_ptr() as u64, entries, 0, 0, 0])
}

fn update_descriptor(ma: u64, value: u64) -> i64 {
    hyper::call(nr::UPDATE_DESCRIPTOR, [ma, value, 0, 0, 0])
}

/// Loads `selector` into ds and clears it again: the error code of the fault, if there was one.
fn load(selector: u64) -> Option<(u64, u64)> {
    // SAFETY: 64-bit code does not use ds.
    let trap = unsafe { probe!(["mov ds, {0:e}"] in(reg) selector,) };
    // SAFETY: as above.
    unsafe { core::arch::asm!("mov ds, {0:e}", in(reg) 0_u64) };
    trap.map(|trap| trap.code())
}

/// Runs one instruction with code selector `selector` and comes back: the fault, if there was one.
fn run_with(selector: u64) -> Option<(u64, u64)> {
    // SAFETY: the far return goes to the next instruction under another flat selector, the second one back. The stack pointer is put back.
    let trap = unsafe {
        probe!(["mov {s}, rsp", "lea {x}, [rip + 3f]", "push {c}", "push {x}", "lea {x}, [rip + 5f]", "mov [rip + guest_resume], {x}",
            "retfq", "3:", "lea {x}, [rip + 4f]", "push 0xe033", "push {x}", "retfq", "4:", "5:", "mov rsp, {s}"]
            s = out(reg) _, x = out(reg) _, c = in(reg) selector,)
    };
    trap.map(|trap| trap.code())
}

fn global_table(t: &mut Checks) {
    let page = Page::take();
    let words = [0, CODE, DATA, READ_ONLY, 0, CODE32, 0x1234];
    words
        .iter()
        .enumerate()
        .for_each(|(n, word)| page.set_word(n as u64, *word));
    t.refused("writable page", set_gdt(page, 7));
    t.ok("protect", page.protect());
    t.ok("seven entries", set_gdt(page, 7));
    t.equal("data", load(2 << 3 | 3), None);
    t.equal("read-only data", load(3 << 3 | 3), None);
    t.equal("empty entry", load(4 << 3 | 3), Some((13, 4 << 3)));
    t.equal(
        "not-present rubbish",
        load(6 << 3 | 3).map(|trap| trap.1),
        Some(6 << 3),
    );
    t.equal("code", run_with(1 << 3 | 3), None);
    t.equal("data as code", run_with(2 << 3 | 3), Some((13, 2 << 3)));
    t.equal("hypervisor's flat selectors beside it", load(0xe02b), None);
    let limit = load(8 << 3 | 3);
    t.note(
        "behind the entries",
        matches!(limit, Some((13, 0x40))),
        &limit,
    );
    for selector in [0xe003, 0xe00b, 0xe013, 0xe03b, 0xe043, 0xe04b, 0xfffb] {
        let result = run_with(selector);
        t.note(
            "hypervisor's own selectors as code",
            result.is_some_and(|trap| trap.0 != 14),
            &(selector, result),
        );
    }
    t.refused("table page made writable", page.restore());
    t.ok("removed", set_gdt(page, 0));
    t.that("old entry gone", load(2 << 3 | 3).is_some());
    t.ok("page writable", page.restore());
}

fn forbidden(t: &mut Checks) {
    let page = Page::take();
    for (name, word) in FORBIDDEN {
        page.set_word(5, word);
        t.ok("protect", page.protect());
        t.refused(name, set_gdt(page, 512));
        t.ok("restore", page.restore());
    }
    // Ring-0 segments are refused or brought to the guest's ring, never loadable as they are.
    for word in [CODE_RING0, CONFORMING_RING0] {
        page.set_word(5, word);
        t.ok("protect", page.protect());
        if set_gdt(page, 512) == 0 {
            t.equal("ring-0 code brought to ring 3", page.word(5) >> 45 & 3, 3);
            t.ok("removed", set_gdt(page, 0));
        }
        t.ok("restore", page.restore());
    }
}

fn sizes(t: &mut Checks) {
    let page = Page::take();
    t.ok("protect", page.protect());
    let mut frames = [page.mfn(); 16];
    let mut set =
        |count: u64| hyper::call(nr::SET_GDT, [frames.as_mut_ptr() as u64, count, 0, 0, 0]);
    t.ok("the most entries", set(14 * 512));
    t.refused("one more", set(14 * 512 + 1));
    t.refused("16 pages", set(16 * 512));
    t.refused("2^32 - 1 entries", set(0xffff_ffff));
    t.ok("none", set(0));
    let far = philoxen_abi::addr::HYPERVISOR_START + (1 << 42);
    for place in [far, 0x1000, 1 << 47] {
        t.equal(
            "frames at a bad place",
            hyper::call(nr::SET_GDT, [place, 512, 0, 0, 0]),
            -14,
        );
    }
    t.ok("one page many times let go", page.restore());
}

fn update(t: &mut Checks) {
    let (page, other) = (Page::take(), Page::take());
    t.ok("protect", page.protect());
    t.ok("empty table", set_gdt(page, 512));
    t.that("entry is empty", load(9 << 3 | 3).is_some());
    t.ok("update", update_descriptor(page.ma(9), DATA));
    t.equal("entry is data", load(9 << 3 | 3), None);
    for (name, word) in FORBIDDEN {
        t.refused(name, update_descriptor(page.ma(10), word));
    }
    t.equal("refused entry stays empty", page.word(10), 0);
    t.ok("entry cleared", update_descriptor(page.ma(9), 0));
    t.that("cleared entry cannot be loaded", load(9 << 3 | 3).is_some());
    t.ok(
        "update in a plain page",
        update_descriptor(other.ma(3), DATA),
    );
    t.that(
        "plain page has it",
        other.word(3) & !(1 << 40) == DATA & !(1 << 40),
    );
    t.refused("misaligned", update_descriptor(page.ma(9) + 4, DATA));
    t.refused(
        "in a page table",
        update_descriptor(walk(page.0, 2).mfn() << 12, DATA),
    );
    t.refused("in the root", update_descriptor(root() << 12, DATA));
    t.refused(
        "in the hypervisor",
        update_descriptor(hypervisor_frame() << 12, DATA),
    );
    t.refused("where nothing is", update_descriptor(1 << 47, DATA));
    t.refused("at all ones", update_descriptor(!7, DATA));
    t.ok("removed", set_gdt(page, 0));
    t.ok("restore", page.restore());
}

fn set_ldt(va: u64, entries: u64) -> i64 {
    mmuext_one(ext::SET_LDT, va, entries)
}

fn local_table(t: &mut Checks) {
    let pages = Page::take_many(2);
    let second = pages.plus(1);
    pages.set_word(0, DATA);
    pages.set_word(1, CODE);
    pages.set_word(2, CALL_GATE);
    second.set_word(0, DATA);
    second.set_word(1, READ_ONLY);
    t.ok("protect the second page", second.protect());
    // The first page stays writable and holds a gate: it must not become usable.
    t.ok("set", set_ldt(pages.0, 1024));
    t.equal("data in the second page", load(512 << 3 | 7), None);
    t.equal(
        "read-only data in the second page",
        load(513 << 3 | 7),
        None,
    );
    let first = load(7);
    t.note(
        "page with a forbidden entry (298)",
        matches!(first, Some((13 | 14, _))),
        &first,
    );
    t.refused("used page made writable", second.restore());
    let gone = hyper::update_va_mapping(second.0, 0, 2);
    t.ok("used page unmapped", gone);
    t.equal("used page stays in use", load(512 << 3 | 7), None);
    t.ok("mapped read-only", second.protect());
    pages.set_word(2, 0);
    t.ok("protect the first page", pages.protect());
    t.ok("set again", set_ldt(pages.0, 1024));
    t.equal("data in the first page", load(7), None);
    t.equal("code in the first page", run_with(1 << 3 | 7), None);
    t.equal("empty entry", load(2 << 3 | 7), Some((13, 2 << 3 | 4)));
    let behind = load(1024 << 3 | 7);
    t.note(
        "behind the table",
        matches!(behind, Some((13, 0x2004))),
        &behind,
    );
    t.ok("entry updated", update_descriptor(pages.ma(2), DATA));
    t.equal("updated entry", load(2 << 3 | 7), None);
    t.refused(
        "gate in a used table",
        update_descriptor(pages.ma(2), CALL_GATE),
    );
    t.ok("removed", set_ldt(0, 0));
    let none = load(7);
    t.note("no table", matches!(none, Some((13, 4))), &none);
    t.ok("first page writable", pages.restore());
    t.ok("second page writable", second.restore());
}

fn bad_local_tables(t: &mut Checks) {
    let page = Page::take();
    t.refused("misaligned", set_ldt(page.0 + 8, 1));
    t.refused("too long", set_ldt(page.0, 8193));
    t.refused("far too long", set_ldt(page.0, 0xffff_ffff));
    t.refused(
        "in the hypervisor",
        set_ldt(philoxen_abi::addr::HYPERVISOR_START + (1 << 42), 1),
    );
    t.refused("not canonical", set_ldt(1 << 47, 512));
    // Where nothing is mapped it is taken, and every use faults.
    for va in [0x10_0000, 0x7f00_0000_0000] {
        if set_ldt(va, 512) == 0 {
            let result = load(7);
            t.note(
                "table that is not there",
                matches!(result, Some((13 | 14, _))),
                &result,
            );
        }
    }
    let hole = Page::take();
    t.ok("protect", hole.protect());
    t.ok("table in a page that goes away", set_ldt(hole.0, 512));
    t.ok("unmap", hole.unmap());
    t.that("page gone before its first use", load(7).is_some());
    let table = walk(page.0, 2).mfn();
    t.ok("page table in its place", hole.map(table, pte::RO));
    t.that("page table as descriptors", load(7).is_some());
    t.ok("removed", set_ldt(0, 0));
    t.ok("restore", hole.restore());
}

/// Random words: what is accepted must not give a way out of the guest's ring.
fn random_descriptors(t: &mut Checks) {
    let page = Page::take();
    t.ok("protect", page.protect());
    t.ok("table", set_gdt(page, 512));
    let mut random = Random(7);
    let (mut accepted, mut escaped) = (0, 0);
    for round in 0..4000 {
        let word = random.next();
        let slot = 16 + round % 400;
        if update_descriptor(page.ma(slot), word) == 0 {
            accepted += 1;
            let stored = page.word(slot);
            let (present, dpl) = (stored >> 47 & 1, stored >> 45 & 3);
            // Type 0 without the segment bit is no descriptor at all.
            let kind = stored >> 40 & 0x1f;
            let bad = if kind >= 16 { dpl == 0 } else { kind != 0 };
            escaped += u64::from(present == 1 && bad);
            load(slot << 3 | 3);
        }
    }
    t.equal("present entries that are gates or of ring 0", escaped, 0);
    t.that("some accepted", accepted > 0);
    let result = mmu_one(page.ma(3), CALL_GATE | pte::P);
    t.that("descriptor page written as a page table", result != 0);
    t.ok("removed", set_gdt(page, 0));
    t.ok("restore", page.restore());
}
