// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mappings, roots and lists of requests; many tables, random entries (part of the theme `pagetypes`).

use crate::rt::hyper::{self, MmuExt, MmuUpdate, ext, mmu_one, mmu_update, mmuext, mmuext_one};
use crate::rt::memory::{self, Page, pte, root, walk};
use crate::rt::{check::Checks, random::Random};
use crate::themes::memory_ops;
use crate::themes::pagetypes::{chain, hypervisor_frame, try_read};
use philoxen_abi::hypercall as nr;

/// Runs the checks.
pub fn run(t: &mut Checks) {
    batches(t);
    accessed_and_dirty(t);
    machine_to_phys(t);
    va_mapping(t);
    base_pointers(t);
    descriptor_pages(t);
    clear_and_copy(t);
    device_frames(t);
    handles(t);
    many(t);
    random_updates(t);
}

fn batches(t: &mut Checks) {
    let window = Page::take_many(3);
    let page = Page::take();
    let good = |n: u64| MmuUpdate {
        ptr: window.plus(n).pte_ma(),
        val: page.ma(0) | pte::RO,
    };
    let bad = MmuUpdate {
        ptr: window.plus(1).pte_ma(),
        val: hypervisor_frame() << 12 | pte::RO,
    };
    t.equal(
        "three good",
        mmu_update(&mut [good(0), good(1), good(2)], hyper::SELF),
        (0, 3),
    );
    let (result, done) = mmu_update(&mut [good(0), bad, good(2)], hyper::SELF);
    t.refused("bad in the middle", result);
    t.equal("one done before it", done, 1);
    t.equal("none", mmu_update(&mut [], hyper::SELF), (0, 0));
    let (result, done) = mmu_update(&mut [good(0)], 5);
    t.refused("domain that is not there", result);
    t.that("nothing done for it", done == 0 || done == u32::MAX);
    let flush = MmuExt {
        cmd: ext::TLB_FLUSH_LOCAL,
        ..MmuExt::default()
    };
    let wrong = MmuExt {
        cmd: ext::PIN_L1,
        arg1: hypervisor_frame(),
        ..MmuExt::default()
    };
    t.equal(
        "two flushes",
        mmuext(&mut [flush, flush], hyper::SELF),
        (0, 2),
    );
    let (result, done) = mmuext(&mut [flush, wrong, flush], hyper::SELF);
    t.refused("bad operation in the middle", result);
    t.equal("one operation done before it", done, 1);
    for n in 0..3 {
        t.ok("restore", window.plus(n).restore());
    }
    let none = hyper::call(nr::MMU_UPDATE, [0, 0, 0, hyper::SELF, 0]);
    t.ok("no requests, no pointers", none);
    t.equal(
        "requests at null",
        hyper::call(nr::MMU_UPDATE, [0, 1, 0, hyper::SELF, 0]),
        -14,
    );
}

fn accessed_and_dirty(t: &mut Checks) {
    let window = Page::take();
    window.set_word(0, 1);
    let (ma, frame) = (window.pte_ma(), window.ma(0));
    t.equal("used page is accessed and dirty", window.pte() & 0x60, 0x60);
    t.ok(
        "preserve_ad",
        mmu_one(ma | 2, frame | pte::P | pte::W | pte::U),
    );
    t.equal("accessed and dirty kept", window.pte() & 0x60, 0x60);
    t.ok(
        "normal update",
        mmu_one(ma, frame | pte::P | pte::W | pte::U),
    );
    t.equal("accessed and dirty replaced", window.pte() & 0x60, 0);
    t.ok("flush", mmuext_one(ext::TLB_FLUSH_LOCAL, 0, 0));
    window.set_word(0, 2);
    t.equal("set by the processor again", window.pte() & 0x60, 0x60);
    t.ok("not translated", mmu_one(ma | 3, frame | pte::RW));
}

fn machine_to_phys(t: &mut Checks) {
    let page = Page::take();
    let (mfn, pfn) = (page.mfn(), page.pfn());
    t.ok("machphys", mmu_one(mfn << 12 | 1, 0x5555));
    t.equal("machphys written", memory::m2p(mfn), 0x5555);
    t.ok("machphys back", mmu_one(mfn << 12 | 1, pfn));
    t.refused(
        "machphys of the hypervisor's frame",
        mmu_one(hypervisor_frame() << 12 | 1, 1),
    );
    t.refused("machphys of no frame", mmu_one(1 << 47 | 1, 1));
    for _ in 0..300 {
        t.ok("machphys often (113)", mmu_one(mfn << 12 | 1, pfn));
        t.refused(
            "machphys for a domain not there",
            mmu_update(
                &mut [MmuUpdate {
                    ptr: mfn << 12 | 1,
                    val: pfn,
                }],
                5,
            )
            .0,
        );
    }
    let before = hyper::memory_op(3, &mut 0x7ff0_u64);
    t.ok("unmap", page.unmap());
    t.equal("given back", memory_ops::decrease(&mut [mfn]), 1);
    t.equal(
        "no reference was left (113)",
        hyper::memory_op(3, &mut 0x7ff0_u64),
        before - 1,
    );
    t.that("taken again", memory_ops::repopulate(page));
}

fn va_mapping(t: &mut Checks) {
    let (window, one, two) = (Page::take(), Page::take(), Page::take());
    one.fill(1);
    two.fill(2);
    for flags in [1, 2, 4 | 1, 4 | 2] {
        t.ok(
            "map one",
            hyper::update_va_mapping(window.0, one.ma(0) | pte::RW, flags),
        );
        t.equal("one visible", try_read(window.0), Some(1));
        t.ok(
            "map two",
            hyper::update_va_mapping(window.0, two.ma(0) | pte::RW, flags),
        );
        t.equal("two visible", try_read(window.0), Some(2));
        t.ok("unmap", hyper::update_va_mapping(window.0, 0, flags));
        t.equal("unmapped", try_read(window.0), None);
    }
    let mut everybody = u64::MAX;
    for kind in [1, 2] {
        let flags = hyper::address(&mut everybody) | kind;
        t.ok(
            "flush by a set of vCPUs",
            hyper::update_va_mapping(window.0, one.ma(0) | pte::RW, flags),
        );
    }
    for cmd in [ext::TLB_FLUSH_MULTI, ext::INVLPG_MULTI] {
        t.ok(
            "flush operation by a set of vCPUs",
            mmuext_one(cmd, window.0, hyper::address(&mut everybody)),
        );
        t.refused(
            "set of vCPUs at a bad place",
            mmuext_one(
                cmd,
                window.0,
                philoxen_abi::addr::HYPERVISOR_START + (1 << 42),
            ),
        );
    }
    for cmd in [ext::TLB_FLUSH_ALL, ext::INVLPG_ALL] {
        t.ok("flush all", mmuext_one(cmd, window.0, 0));
    }
    for address in [
        0,
        1 << 46,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_8300_0000_0000,
        0xffff_87ff_ffff_f000,
    ] {
        t.refused(
            "address that is not ours to map",
            hyper::update_va_mapping(address, one.ma(0) | pte::RW, 0),
        );
        t.refused(
            "address that is not ours to clear",
            hyper::update_va_mapping(address, 0, 0),
        );
    }
    t.ok(
        "invlpg of a bad address (279)",
        mmuext_one(ext::INVLPG_LOCAL, 0x8000_0000_0000_0000, 0).min(0),
    );
    t.ok("restore", window.restore());
}

fn base_pointers(t: &mut Checks) {
    let page = Page::take();
    for cmd in [ext::NEW_BASEPTR, ext::NEW_USER_BASEPTR] {
        t.refused("writable page as root", mmuext_one(cmd, page.mfn(), 0));
        t.refused(
            "L3 table as root",
            mmuext_one(cmd, walk(page.0, 4).mfn(), 0),
        );
        t.refused(
            "hypervisor's frame as root",
            mmuext_one(cmd, hypervisor_frame(), 0),
        );
        t.refused("frame not there as root", mmuext_one(cmd, 1 << 35, 0));
    }
    t.ok("same root again", mmuext_one(ext::NEW_BASEPTR, root(), 0));
    t.ok("no user root", mmuext_one(ext::NEW_USER_BASEPTR, 0, 0));
    // A copy of the root works as one, and the first can be unpinned, pinned and used again meanwhile.
    let copy = Page::take();
    (0..512).for_each(|slot| copy.set_word(slot, memory::read(memory::start().pt_base + slot * 8)));
    t.ok("protect", copy.protect());
    t.ok(
        "unpinned table as root",
        mmuext_one(ext::NEW_BASEPTR, copy.mfn(), 0),
    );
    page.set_word(0, 99);
    t.equal("memory under the copy", page.word(0), 99);
    t.refused("root in use made writable", copy.restore());
    t.refused(
        "root in use pinned as L1",
        mmuext_one(ext::PIN_L1, copy.mfn(), 0),
    );
    t.ok("unpin the first root", mmuext_one(ext::UNPIN, root(), 0));
    t.ok("first root again", mmuext_one(ext::NEW_BASEPTR, root(), 0));
    t.ok("pin the first root", mmuext_one(ext::PIN_L4, root(), 0));
    t.ok("copy writable", copy.restore());
    let user = chain(0);
    user.iter()
        .for_each(|table| t.ok("protect", table.protect()));
    t.ok(
        "user root",
        mmuext_one(ext::NEW_USER_BASEPTR, user[0].mfn(), 0),
    );
    t.refused("user root in use made writable", user[0].restore());
    t.ok("user root removed", mmuext_one(ext::NEW_USER_BASEPTR, 0, 0));
    user.iter()
        .for_each(|table| t.ok("restore", table.restore()));
}

fn descriptor_pages(t: &mut Checks) {
    let page = Page::take();
    let mut frame = page.mfn();
    let set = |count: u64, frame: &mut u64| {
        hyper::call(nr::SET_GDT, [hyper::address(frame), count, 0, 0, 0])
    };
    t.refused("writable page as GDT", set(512, &mut frame));
    t.ok("protect", page.protect());
    t.ok("GDT", set(512, &mut frame));
    t.refused("GDT page made writable (214)", page.restore());
    t.refused(
        "GDT page as L1 table",
        mmuext_one(ext::PIN_L1, page.mfn(), 0),
    );
    t.ok("GDT removed", set(0, &mut frame));
    t.ok("page writable", page.restore());
    for bad in [hypervisor_frame(), 1 << 35, u64::MAX, root()] {
        t.refused(
            "GDT in a frame that is none of ours",
            set(512, &mut { bad }),
        );
    }
}

fn clear_and_copy(t: &mut Checks) {
    let (from, to) = (Page::take(), Page::take());
    from.fill(0xabcd);
    t.ok(
        "copy page",
        mmuext_one(ext::COPY_PAGE, to.mfn(), from.mfn()),
    );
    t.that("copied", (0..512).all(|n| to.word(n) == 0xabcd));
    t.ok("clear page", mmuext_one(ext::CLEAR_PAGE, to.mfn(), 0));
    t.that("cleared", (0..512).all(|n| to.word(n) == 0));
    for table in [root(), walk(to.0, 2).mfn(), hypervisor_frame(), 1 << 35] {
        t.refused("clear a table", mmuext_one(ext::CLEAR_PAGE, table, 0));
        t.refused(
            "copy over a table",
            mmuext_one(ext::COPY_PAGE, table, from.mfn()),
        );
    }
    t.refused(
        "copy from the hypervisor",
        mmuext_one(ext::COPY_PAGE, to.mfn(), hypervisor_frame()),
    );
}

/// Domain 0 may map devices, but not those that are the hypervisor's.
fn device_frames(t: &mut Checks) {
    let window = Page::take();
    t.ok("VGA memory", window.map(0xb8, pte::RW));
    t.ok("firmware", window.map(0xf0, pte::RO));
    t.that("firmware readable", try_read(window.0).is_some());
    t.refused("local APIC", window.map(0xfee00, pte::RW));
    let mapped = window.map(0xfec00, pte::RW) == 0;
    t.that(
        "I/O APIC not writable",
        !mapped || window.pte() & pte::W == 0,
    );
    let io = |mfn: u64| {
        let request = MmuUpdate {
            ptr: window.pte_ma(),
            val: mfn << 12 | pte::RW,
        };
        mmu_update(&mut [request], hyper::IO).0
    };
    t.ok("VGA memory as DOMID_IO", io(0xb8));
    t.refused("RAM as DOMID_IO", io(Page::take().mfn()));
    t.ok("restore", window.restore());
    for bits in [0x8, 0x10, 0x18] {
        t.ok(
            "cached otherwise (154, 402)",
            window.map(window.mfn(), pte::RW | bits),
        );
        t.refused(
            "table cached otherwise and writable",
            window.map(root(), pte::RW | bits),
        );
    }
    t.ok("restore", window.restore());
}

fn handles(t: &mut Checks) {
    let far = philoxen_abi::addr::HYPERVISOR_START;
    for address in [
        far,
        far + (1 << 42),
        0x1000,
        1 << 47,
        u64::MAX - 7,
        0xffff_87ff_ffff_fff8,
    ] {
        t.equal(
            "mmu_update from a bad place",
            hyper::call(nr::MMU_UPDATE, [address, 1, 0, hyper::SELF, 0]),
            -14,
        );
        t.equal(
            "mmuext_op from a bad place",
            hyper::call(nr::MMUEXT_OP, [address, 1, 0, hyper::SELF, 0]),
            -14,
        );
    }
    let mut flush = MmuExt {
        cmd: ext::TLB_FLUSH_LOCAL,
        ..MmuExt::default()
    };
    for address in [far, far + (1 << 42), 0x1000, 0xffff_87ff_ffff_fffc] {
        let args = [hyper::address(&mut flush), 1, address, hyper::SELF, 0];
        t.that(
            "count to a bad place does no harm",
            hyper::call(nr::MMUEXT_OP, args) <= 0,
        );
    }
}

fn many(t: &mut Checks) {
    let page = Page::take();
    t.ok("protect", page.protect());
    let failures = (0..2000).filter(|_| {
        mmuext_one(ext::PIN_L1, page.mfn(), 0) != 0 || mmuext_one(ext::UNPIN, page.mfn(), 0) != 0
    });
    t.equal("pin and unpin 2000 times", failures.count(), 0);
    // 64 top-level tables over one third-level table, which maps a full tree below (45, 290: long validations).
    let leaf = Page::take();
    let [top, third, second, first] = chain(leaf.ma(0) | pte::RO);
    (1..512).for_each(|n| first.set_word(n, leaf.ma(0) | pte::RO));
    (1..512).for_each(|n| second.set_word(n, first.ma(0) | pte::RW));
    (1..512).for_each(|n| third.set_word(n, second.ma(0) | pte::RW));
    [top, third, second, first]
        .iter()
        .for_each(|table| t.ok("protect", table.protect()));
    let tops = Page::take_many(64);
    for n in 0..64 {
        let top = tops.plus(n);
        (0..256).for_each(|slot| top.set_word(slot, third.ma(0) | pte::RW));
        t.ok("protect", top.protect());
        t.ok("pin one of many", mmuext_one(ext::PIN_L4, top.mfn(), 0));
    }
    t.refused("shared tables made writable", first.restore());
    for n in 0..64 {
        t.ok(
            "unpin one of many",
            mmuext_one(ext::UNPIN, tops.plus(n).mfn(), 0),
        );
        t.ok("restore one of many", tops.plus(n).restore());
    }
    [page, top, third, second, first]
        .iter()
        .for_each(|table| t.ok("restore", table.restore()));
}

/// Random entries into a private tree: nothing may ever make one of its tables writable.
fn random_updates(t: &mut Checks) {
    let mut random = Random(2003);
    let data = Page::take();
    let tables = chain(data.ma(0) | pte::RW);
    tables
        .iter()
        .for_each(|table| t.ok("protect", table.protect()));
    t.ok("pin", mmuext_one(ext::PIN_L4, tables[0].mfn(), 0));
    let frames = [0, 1, 2, 3].map(|n: usize| tables[n].mfn());
    let targets = [
        frames[0],
        frames[1],
        frames[2],
        frames[3],
        data.mfn(),
        hypervisor_frame(),
        root(),
        1 << 35,
    ];
    let mut caught = 0;
    for _ in 0..20_000 {
        let table = frames[random.below(4) as usize];
        // Slot 0 keeps the tree together, so that the last table stays an L1 table.
        let slot = 1 + random.below(511);
        let target = targets[random.below(8) as usize];
        let flags = random.next() & 0x8000_0000_0000_0fff;
        mmu_one(
            ((table << 12) + slot * 8) | (random.below(2) * 2),
            target << 12 | flags,
        );
        if random.below(64) == 0 {
            let pin = random.below(4) as u32;
            mmuext_one(pin, targets[random.below(6) as usize], 0);
        }
        // An L1 entry that is present and writable must name the data page alone.
        if table == frames[3] {
            let value = tables[3].word(slot);
            let bad = value & 3 == 3 && (value & pte::FRAME) >> 12 != data.mfn();
            caught += u32::from(bad);
        }
    }
    t.equal("writable entry for something other than data", caught, 0);
    for table in tables {
        for slot in (0..256).chain(272..512) {
            mmu_one(table.ma(slot), 0);
        }
    }
    tables.iter().for_each(|table| {
        mmuext_one(ext::UNPIN, table.mfn(), 0);
    });
    mmuext_one(ext::UNPIN, data.mfn(), 0);
    for table in tables {
        t.ok("writable after all", table.restore());
    }
}
