// SPDX-License-Identifier: MIT OR Apache-2.0
//! One test for each attack on page types and reservations that hypervisors have suffered (Xen advisory numbers).

use super::fake::{EACH, Fake, M, VA, hypervisor_entry};
use crate::audit::Held;
use crate::entry::{A, CACHE, D, G, KERNEL, P, PAT, PCD, PSE, PWT, RW, US};
use crate::validate::{get_page_segdesc, put_page_segdesc};
use crate::word::{Class, Kind};
use philoxen_abi::memory::op;
use philoxen_abi::mmu::{self, mmuext};
use philoxen_abi::{DomId, Errno, Mfn};
use std::vec::Vec;

const SELF: u64 = 0x7ff0;
const EINVAL: i64 = Errno::EINVAL.rax();
const EPERM: i64 = Errno::EPERM.rax();

/// A machine whose domains run on their first tables.
fn running() -> (M, u64) {
    let fake = Fake::new();
    for who in 0..2 {
        assert_eq!(fake.ext(who, mmuext::PIN_L4_TABLE, Fake::first(who)), 0);
        assert_eq!(fake.ext(who, mmuext::NEW_BASEPTR, Fake::first(who)), 0);
    }
    fake.check();
    (fake, Fake::first(0))
}

#[test]
fn a_root_gets_the_hypervisors_slots_and_keeps_them() {
    let (fake, first) = running();
    for slot in 256..272 {
        assert_eq!(fake.peek(first, slot), hypervisor_entry(slot));
        assert_eq!(
            fake.set(0, first, slot as u64, (first + 1) << 12 | P),
            EINVAL
        );
    }
    assert_eq!(fake.set(0, first, 272, (first + 1) << 12 | P), 0);
    fake.check();
}

#[test]
fn xsa_45_unpin_of_a_tree_is_preemptible() {
    let (fake, first) = running();
    assert_eq!(fake.set(0, first + 3, 0, 0), 0);
    // A second root over a second tree.
    for (table, target) in [(8, 9), (9, 10), (10, 11)] {
        assert_eq!(fake.set(0, first + 3, table, 0), 0);
        fake.poke(first + table, 0, (first + target) << 12 | P | RW);
    }
    assert_eq!(fake.set(0, first + 3, 11, 0), 0);
    assert_eq!(fake.ext_in(1, 0, mmuext::PIN_L4_TABLE, first + 8, 0), 0);
    assert!(fake.frame(first + 11).kind().is_live_as(Kind::L1));
    fake.check();
    assert_eq!(fake.ext_in(1, 0, mmuext::UNPIN_TABLE, first + 8, 0), 0);
    for table in 8..12 {
        let word = fake.frame(first + table).kind();
        assert!(!word.is_live() && !word.is_partial(), "{table}: {word:?}");
    }
    fake.check();
}

#[test]
fn xsa_58_failed_pins_leave_no_references() {
    let (fake, first) = running();
    fake.set(0, first + 3, 8, 0);
    fake.poke(first + 8, 0, (first + 20) << 12 | P | RW);
    fake.poke(first + 8, 1, Fake::first(1) << 12 | P);
    let before = fake.frame(first + 20).owner();
    for kind in [
        mmuext::PIN_L1_TABLE,
        mmuext::PIN_L2_TABLE,
        mmuext::PIN_L4_TABLE,
    ] {
        assert_eq!(fake.ext(0, kind, first + 8), EINVAL);
        assert_eq!(fake.frame(first + 20).owner(), before);
        fake.check();
    }
    // Twice is once too many, and the second leaves no reference either.
    assert_eq!(fake.ext(0, mmuext::PIN_L4_TABLE, first), EINVAL);
    fake.check();
}

#[test]
fn xsa_109_updates_go_by_the_live_type() {
    let (fake, first) = running();
    // A data page is written as data, another domain's not at all, a descriptor table neither.
    assert_eq!(fake.set(0, first + 20, 5, 0x1234), 0);
    assert_eq!(fake.peek(first + 20, 5), 0x1234);
    assert_eq!(fake.set(0, Fake::first(1) + 20, 5, 1), EINVAL);
    fake.set(0, first + 3, 21, 0);
    get_page_segdesc(fake, Mfn(first + 21), DomId(0)).unwrap();
    assert_eq!(fake.set(0, first + 21, 0, 1), EINVAL);
    assert_eq!(
        fake.set(0, first + 3, 21, (first + 21) << 12 | P | RW),
        EINVAL
    );
    put_page_segdesc(fake, Mfn(first + 21));
    assert_eq!(fake.set(0, first + 21, 0, 1), 0);
    assert_eq!(
        get_page_segdesc(fake, Mfn(first + 21), DomId(0)),
        Err(Errno::EINVAL)
    );
    fake.check();
}

#[test]
fn xsa_113_machphys_updates_leak_no_reference() {
    let (fake, first) = running();
    let before = fake.frame(first + 9).owner();
    assert_eq!(
        fake.update(0, (first + 9) << 12 | mmu::MACHPHYS_UPDATE, 77, SELF),
        0
    );
    assert_eq!(crate::Machine::m2p_get(&fake, Mfn(first + 9)), 77);
    assert_eq!(
        fake.update(1, (first + 9) << 12 | mmu::MACHPHYS_UPDATE, 78, SELF),
        EINVAL
    );
    assert_eq!(crate::Machine::m2p_get(&fake, Mfn(first + 9)), 77);
    assert_eq!(fake.frame(first + 9).owner(), before);
}

#[test]
fn xsa_148_no_large_pages_at_any_level() {
    let (fake, first) = running();
    for table in 0..3 {
        let entry = fake.peek(first + table, 0);
        assert_eq!(fake.set(0, first + table, 0, entry | PSE), EINVAL);
        assert_eq!(fake.set(0, first + table, 1, entry | PSE), EINVAL);
        assert_eq!(fake.peek(first + table, 0), entry);
    }
    fake.poke(first + 8, 0, 0);
    fake.set(0, first + 3, 8, 0);
    fake.poke(first + 8, 0, PSE | P | RW);
    assert_eq!(fake.ext(0, mmuext::PIN_L2_TABLE, first + 8), EINVAL);
    fake.check();
}

#[test]
fn xsa_154_402_ram_is_write_back_and_devices_are_not() {
    let (fake, first) = running();
    let target = (first + 9) << 12 | P;
    for attributes in [PWT, PCD, PAT, CACHE] {
        assert_eq!(fake.set(0, first + 3, 9, target | attributes | G), 0);
        assert_eq!(fake.peek(first + 3, 9), target | US | KERNEL);
    }
    let device = 0x7000 | P | RW;
    assert_eq!(fake.set(0, first + 3, 9, device), 0);
    assert_eq!(fake.peek(first + 3, 9), device | US | KERNEL | PCD);
    assert_eq!(fake.set(0, first + 3, 9, device | PAT), 0);
    assert_eq!(fake.peek(first + 3, 9), device | US | KERNEL | PAT);
    // Not for the unprivileged, nor beyond what the machine decodes.
    assert_eq!(fake.set(1, Fake::first(1) + 3, 9, device), EPERM);
    assert_eq!(
        fake.set(0, first + 3, 9, 1 << 51 | 1 << 52 | P),
        0,
        "bit 51 is MFN bit 39"
    );
    fake.check();
}

#[test]
fn xsa_167_superpage_marks_are_refused() {
    let (fake, _) = running();
    for mfn in [0, 1 << 30, u64::MAX] {
        assert_eq!(
            fake.ext(0, mmuext::MARK_SUPER, mfn),
            Errno::EOPNOTSUPP.rax()
        );
        assert_eq!(
            fake.ext(0, mmuext::UNMARK_SUPER, mfn),
            Errno::EOPNOTSUPP.rax()
        );
    }
}

#[test]
fn xsa_182_240_286_290_linear_page_tables_are_refused() {
    let (fake, first) = running();
    for table in 0..3 {
        for target in [first, first + table] {
            assert_eq!(fake.set(0, first + table, 3, target << 12 | P), EINVAL);
            assert_eq!(fake.set(0, first + table, 3, target << 12 | P | RW), EINVAL);
        }
    }
    // A table of tables that contains itself does not validate, and nothing is left of the attempt.
    fake.set(0, first + 3, 8, 0);
    fake.poke(first + 8, 0, (first + 8) << 12 | P);
    for kind in [
        mmuext::PIN_L2_TABLE,
        mmuext::PIN_L3_TABLE,
        mmuext::PIN_L4_TABLE,
    ] {
        assert_eq!(fake.ext_in(1, 0, kind, first + 8, 0), EINVAL);
    }
    // Read-only at L1 is fine: that shows the table to its owner.
    assert_eq!(fake.set(0, first + 3, 8, first << 12 | P), 0);
    assert_eq!(fake.set(0, first + 3, 8, first << 12 | P | RW), EINVAL);
    fake.check();
}

#[test]
fn xsa_401_descriptors_are_checked_after_the_last_writer() {
    let (fake, first) = running();
    fake.speculate();
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    get_page_segdesc(fake, Mfn(first + 9), DomId(0)).unwrap();
    let gdt = (Mfn(first + 9), Held::Typed, Kind::SegDesc);
    fake.held.lock().push(gdt);
    fake.check();
    fake.held.lock().clear();
    // And back: nobody writes while a stale descriptor cache may be in use.
    put_page_segdesc(fake, Mfn(first + 9));
    assert_eq!(fake.set(0, first + 3, 9, (first + 9) << 12 | P | RW), 0);
    fake.check();
}

#[test]
fn writable_references_become_general_ones_and_back() {
    let (fake, first) = running();
    let frame = fake.frame(first + 9);
    let counts = || (frame.kind().count(), frame.owner().count());
    let (rw, ro) = ((first + 9) << 12 | P | RW, (first + 9) << 12 | P);
    assert_eq!(counts(), (1, 2));
    for (slot, entry, expected) in [
        (10, rw, (2, 2)),
        (9, ro, (1, 3)),
        (10, ro, (0, 3)),
        (9, rw, (1, 3)),
        (10, rw, (2, 2)),
        (9, 0, (1, 2)),
        (10, 0, (0, 1)),
    ] {
        assert_eq!(fake.set(0, first + 3, slot, entry), 0);
        assert_eq!(counts(), expected, "{slot} {entry:#x}");
        fake.check();
    }
}

#[test]
fn a_lost_race_for_an_entry_takes_nothing() {
    use crate::update::Mode;
    use crate::validate::{Pages, Tables};
    let (fake, first) = running();
    let frame = fake.frame(first + 9);
    let (rw, ro) = ((first + 9) << 12 | P | RW | US, (first + 9) << 12 | P | US);
    let tables = Tables::new(fake, &fake.domains[0]);
    let slot = &crate::Machine::words(&fake, Mfn(first + 3))[10];
    // What the caller saw is no longer there: each way of taking a reference is undone.
    for (nine, seen, wanted) in [
        (ro, ro, rw),
        (rw, rw, ro),
        (rw, ro, rw),
        (ro, 0, ro),
        (0, 0, rw),
    ] {
        assert_eq!(fake.set(0, first + 3, 9, nine), 0);
        let before = (frame.kind().count(), frame.owner());
        let result = tables.update_l1(slot, wanted, Mode::Exact(seen), Pages::Of(DomId(0)));
        assert_eq!(result, Err(Errno::EAGAIN));
        assert_eq!((frame.kind().count(), frame.owner()), before);
        fake.check();
    }
}

#[test]
fn xsa_214_types_do_not_outlive_ownership() {
    let (fake, first) = running();
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    get_page_segdesc(fake, Mfn(first + 9), DomId(0)).unwrap();
    put_page_segdesc(fake, Mfn(first + 9));
    assert_eq!(fake.set(0, first + 3, 9, (first + 9) << 12 | P), 0);
    fake.poke(first + 9, 7, 0x5ec2e7);
    fake.speculate();
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    let mut words = [VA + 32, 1, 0, SELF, first + 9];
    assert_eq!(
        fake.memory(u32::MAX, 0, op::DECREASE_RESERVATION, &mut words),
        1
    );
    assert_eq!(fake.frame(first + 9).owner().class(), Class::Free);
    fake.domains[1].set_max_pages(1000);
    let mut words = [VA + 32, 1, 0, SELF, 5];
    while words[4] != first + 9 {
        words[4] = 5;
        assert_eq!(
            fake.memory(u32::MAX, 1, op::POPULATE_PHYSMAP, &mut words),
            1
        );
    }
    assert_eq!(fake.frame(first + 9).kind().kind(), Kind::None);
    // Nor do contents and translations.
    assert!((0..512).all(|slot| fake.peek(first + 9, slot) == 0));
    fake.check();
}

#[test]
fn xsa_241_408_retyping_flushes_what_was_used_as_the_old_type() {
    let (fake, first) = running();
    fake.speculate();
    let before = fake.flushes.load(core::sync::atomic::Ordering::SeqCst);
    assert_eq!(fake.set(0, first + 3, 9, (first + 9) << 12 | P), 0);
    assert_eq!(
        fake.flushes.load(core::sync::atomic::Ordering::SeqCst),
        before
    );
    assert_eq!(fake.ext(0, mmuext::PIN_L1_TABLE, first + 9), 0);
    assert_eq!(
        fake.flushes.load(core::sync::atomic::Ordering::SeqCst),
        before + 1
    );
    fake.check();
    // Again as the same type: nothing to flush. Back to writable: the caches may still walk it.
    assert_eq!(fake.ext(0, mmuext::UNPIN_TABLE, first + 9), 0);
    assert_eq!(fake.ext(0, mmuext::PIN_L1_TABLE, first + 9), 0);
    assert_eq!(fake.ext(0, mmuext::UNPIN_TABLE, first + 9), 0);
    assert_eq!(
        fake.flushes.load(core::sync::atomic::Ordering::SeqCst),
        before + 1
    );
    assert_eq!(fake.set(0, first + 3, 9, (first + 9) << 12 | P | RW), 0);
    assert_eq!(
        fake.flushes.load(core::sync::atomic::Ordering::SeqCst),
        before + 2
    );
    fake.check();
}

#[test]
fn xsa_279_addresses_to_flush_need_not_be_sound() {
    let (fake, _) = running();
    assert_eq!(fake.ext(0, mmuext::INVLPG_LOCAL, 0x1234_0000_0000_0000), 0);
    assert_eq!(fake.ext(0, mmuext::INVLPG_ALL, u64::MAX), 0);
}

#[test]
fn xsa_29_212_exchange_writes_only_where_the_guest_may() {
    let (fake, first) = running();
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    let before: Vec<_> = (0..EACH)
        .map(|page| fake.frame(first + page).owner())
        .collect();
    for (input, output) in [
        (VA + 72, 0xffff_8000_0000_0000),
        (0xffff_8300_0000_0000, VA + 80),
    ] {
        let mut words = [input, 1, 0, SELF, output, 1, 0, SELF, 0, first + 9, 40];
        assert_eq!(
            fake.memory(u32::MAX, 0, op::EXCHANGE, &mut words),
            Errno::EFAULT.rax()
        );
    }
    // XSA-296: a lie about how far it got.
    let mut words = [VA + 72, 1, 0, SELF, VA + 80, 1, 0, SELF, 2, first + 9, 40];
    assert_eq!(fake.memory(u32::MAX, 0, op::EXCHANGE, &mut words), EINVAL);
    let mut words = [
        VA + 72,
        u64::MAX,
        9,
        SELF,
        VA + 80,
        u64::MAX,
        9,
        SELF,
        0,
        first + 9,
        40,
    ];
    assert_eq!(fake.memory(u32::MAX, 0, op::EXCHANGE, &mut words), EINVAL);
    let after: Vec<_> = (0..EACH)
        .map(|page| fake.frame(first + page).owner())
        .collect();
    assert_eq!(before, after);
}

#[test]
fn xsa_287_exchange_takes_only_what_nobody_uses() {
    let (fake, first) = running();
    let mut words = [
        VA + 72,
        4,
        0,
        SELF,
        VA + 104,
        1,
        2 | 20 << 32,
        SELF,
        0,
        0,
        0,
        0,
        0,
        40,
    ];
    for page in 0..4 {
        words[9 + page] = first + 12 + page as u64;
    }
    for page in [12, 13, 15] {
        assert_eq!(fake.set(0, first + 3, page, 0), 0);
    }
    // One given twice: nothing changes.
    words[11] = first + 13;
    assert_eq!(fake.memory(1, 0, op::EXCHANGE, &mut words), EINVAL);
    words[11] = first + 14;
    // One is still mapped: nothing changes.
    assert_eq!(fake.memory(1, 0, op::EXCHANGE, &mut words), EINVAL);
    assert_eq!(words[8], 0);
    fake.check();
    assert_eq!(fake.set(0, first + 3, 14, 0), 0);
    assert_eq!(fake.memory(1, 0, op::EXCHANGE, &mut words), 0);
    assert_eq!(words[8], 4);
    let start = words[13];
    assert_eq!(start % 4, 0);
    for page in 0..4 {
        assert!(fake.frame(start + page).owner().is_owned_by(DomId(0)));
        assert_eq!(crate::Machine::m2p_get(&fake, Mfn(start + page)), 40 + page);
        assert_eq!(fake.frame(first + 12 + page).owner().class(), Class::Free);
    }
    // An address limit nothing satisfies: a clean refusal.
    let mut words = [
        VA + 72,
        4,
        0,
        SELF,
        VA + 104,
        1,
        2 | 13 << 32,
        SELF,
        0,
        start,
        start + 1,
        start + 2,
        start + 3,
        40,
    ];
    assert_eq!(
        fake.memory(1, 0, op::EXCHANGE, &mut words),
        Errno::ENOMEM.rax()
    );
    assert_eq!((words[8], words[13]), (0, 40));
    assert_eq!(fake.domains[0].total_pages(), EACH);
    fake.check();
}

#[test]
fn xsa_299_309_310_interrupted_promotion_can_be_abandoned() {
    let (fake, first) = running();
    for table in [8, 9, 10, 11] {
        assert_eq!(fake.set(0, first + 3, table, 0), 0);
    }
    for (table, target) in [(8, 9), (9, 10), (10, 11)] {
        fake.poke(first + table, 0, (first + target) << 12 | P | RW);
        fake.poke(first + table, 1, 0);
    }
    let mut words = [u64::from(mmuext::PIN_L4_TABLE), first + 8, 0];
    let flow = {
        use zerocopy::IntoBytes;
        let guest = philoxen_abi::guest::FakeGuest::new(VA, words.as_mut_bytes());
        let mut budget = philoxen_abi::hypercall::Budget::new(1);
        crate::mmuext_op(&fake.cx(0), &guest, [VA, 1, 0, SELF], &mut budget)
    };
    assert!(matches!(flow, philoxen_abi::Flow::Again(_)));
    assert!(fake.frame(first + 8).kind().is_partial());
    fake.check();
    // The guest does something else with the frames instead: interrupted work is undone first, all the way down.
    assert_eq!(fake.set(0, first + 3, 8, (first + 8) << 12 | P | RW), 0);
    for table in [9, 10, 11] {
        let word = fake.frame(first + table).kind();
        assert!(!word.is_partial() && !word.is_live(), "{table}: {word:?}");
    }
    for table in [8, 9, 10, 11] {
        assert_eq!(
            fake.set(0, first + 3, table, (first + table) << 12 | P | RW),
            0,
            "{table}"
        );
        fake.check();
    }
}

#[test]
fn hypervisor_memory_is_never_mapped_but_the_m2p_read_only() {
    let (fake, first) = running();
    let m2p = super::fake::M2P_FRAME;
    let entry = m2p << 12 | P;
    let at = (first + 3) << 12 | 9 << 3;
    assert_eq!(fake.update(0, at, entry, SELF), EINVAL);
    assert_eq!(fake.update(0, at, entry, u64::from(DomId::XEN.0)), 0);
    assert_eq!(
        fake.update(0, at, entry | RW, u64::from(DomId::XEN.0)),
        EINVAL
    );
    assert_eq!(
        fake.update(0, at, entry + 0x1000, u64::from(DomId::XEN.0)),
        EINVAL
    );
    let at = (Fake::first(1) + 3) << 12 | 9 << 3;
    assert_eq!(fake.update(1, at, entry, u64::from(DomId::XEN.0)), EPERM);
    fake.check();
}

#[test]
fn foreign_mappings_hold_frames_beyond_their_owner() {
    let (fake, first) = running();
    let theirs = Fake::first(1) + 9;
    let at = (first + 3) << 12 | 9 << 3;
    assert_eq!(
        fake.update(1, (Fake::first(1) + 3) << 12 | 9 << 3, first << 12 | P, 0),
        EPERM
    );
    assert_eq!(fake.update(0, at, theirs << 12 | P | RW, 1), 0);
    assert_eq!(fake.set(1, Fake::first(1) + 3, 9, 0), 0);
    assert_eq!(fake.ext(1, mmuext::PIN_L1_TABLE, theirs), EINVAL);
    fake.domains[1].set_dying();
    let mut budget = philoxen_abi::hypercall::Budget::unlimited();
    crate::mmuext::release_roots(fake, &fake.roots[1], &mut budget);
    assert_eq!(
        crate::relinquish(fake, &fake.domains[1], &mut budget),
        crate::Progress::Done
    );
    assert!(fake.frame(theirs).owner().is_owned_by(DomId::INVALID));
    fake.check();
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    assert_eq!(fake.frame(theirs).owner().class(), Class::Free);
    fake.check();
}

#[test]
fn preserve_ad_keeps_what_the_processor_set() {
    let (fake, first) = running();
    fake.poke(first + 3, 9, fake.peek(first + 3, 9) | A | D);
    let entry = (first + 10) << 12 | P | RW;
    let at = (first + 3) << 12 | 9 << 3;
    assert_eq!(
        fake.update(0, at | mmu::PT_UPDATE_PRESERVE_AD, entry, SELF),
        0
    );
    assert_eq!(fake.peek(first + 3, 9), entry | US | KERNEL | A | D);
    assert_eq!(fake.update(0, at, entry, SELF), 0);
    assert_eq!(fake.peek(first + 3, 9), entry | US | KERNEL);
    fake.check();
}

#[test]
fn descriptors_are_written_checked_and_only_to_own_frames() {
    let (fake, first) = running();
    let update = |page: u64, offset: u64, value: u64| match crate::update_descriptor(
        &fake.cx(0),
        [page << 12 | offset, value],
    ) {
        philoxen_abi::Flow::Done(value) => value,
        philoxen_abi::Flow::Again(_) => panic!("never preempted"),
    };
    // The fake's rule adds bit 1, as the real one raises the privilege.
    assert_eq!(update(first + 9, 16, 0x40), 0);
    assert_eq!(fake.peek(first + 9, 2), 0x42);
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    get_page_segdesc(fake, Mfn(first + 9), DomId(0)).unwrap();
    assert_eq!(update(first + 9, 24, 0x80), 0);
    assert_eq!(fake.peek(first + 9, 3), 0x82);
    for (page, offset, value) in [
        (first + 9, 24, 0x81),
        (first + 9, 4, 0x80),
        (first, 0, 0x80),
        (Fake::first(1) + 9, 0, 0x80),
        (1 << 51, 0, 0),
    ] {
        assert_eq!(
            update(page, offset, value),
            EINVAL,
            "{page} {offset} {value:#x}"
        );
    }
    put_page_segdesc(fake, Mfn(first + 9));
    fake.check();
}

/// 241: a refused exchange must not lose the time of a frame's last writable mapping.
#[test]
fn a_refused_exchange_keeps_stale_translations_in_mind() {
    let (fake, first) = running();
    fake.speculate();
    assert_eq!(fake.set(0, first + 3, 12, 0), 0);
    // Frame 12 is unmapped but not flushed, 14 is mapped still: two single frames for one of order 1 are refused.
    let mut words = [
        VA + 72,
        2,
        0,
        SELF,
        VA + 104,
        1,
        1,
        SELF,
        0,
        first + 12,
        first + 14,
        0,
        0,
        40,
    ];
    assert_eq!(fake.memory(u32::MAX, 0, op::EXCHANGE, &mut words), EINVAL);
    assert_eq!(fake.ext(0, mmuext::PIN_L1_TABLE, first + 12), 0);
    fake.check();
}

/// Another processor clears a leaf and frees its frame while the leaf becomes read-only.
#[test]
fn a_frame_freed_during_a_downgrade_is_left_alone() {
    let (fake, first) = running();
    let (slot, target) = (20, first + 9);
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    assert_eq!(fake.set(0, first + 3, slot, target << 12 | P | RW), 0);
    fake.check();
    *fake.hook.lock() = Some(std::boxed::Box::new(move || {
        assert_eq!(fake.set(0, first + 3, slot, 0), 0);
        let mut words = [VA + 32, 1, 0, SELF, target];
        assert_eq!(
            fake.memory(u32::MAX, 0, op::DECREASE_RESERVATION, &mut words),
            1
        );
    }));
    let _ = fake.set(0, first + 3, slot, target << 12 | P);
    fake.check();
}

/// The same while the leaf becomes writable.
#[test]
fn a_frame_freed_during_an_upgrade_is_left_alone() {
    let (fake, first) = running();
    let (slot, target) = (20, first + 9);
    // Was an idle table once, so that the upgrade flushes.
    assert_eq!(fake.set(0, first + 3, 9, 0), 0);
    assert_eq!(fake.ext(0, mmuext::PIN_L1_TABLE, target), 0);
    assert_eq!(fake.ext(0, mmuext::UNPIN_TABLE, target), 0);
    assert_eq!(fake.set(0, first + 3, slot, target << 12 | P), 0);
    fake.check();
    *fake.hook.lock() = Some(std::boxed::Box::new(move || {
        assert_eq!(fake.set(0, first + 3, slot, 0), 0);
        let mut words = [VA + 32, 1, 0, SELF, target];
        assert_eq!(
            fake.memory(u32::MAX, 0, op::DECREASE_RESERVATION, &mut words),
            1
        );
    }));
    let _ = fake.set(0, first + 3, slot, target << 12 | P | RW);
    fake.check();
}

/// A domain that gives up frames while they are mapped must not get others beyond its limit.
#[test]
fn frames_in_use_cannot_be_given_up() {
    let (fake, _) = running();
    let first = Fake::first(1);
    fake.domains[1].set_max_pages(EACH);
    for page in 4..20 {
        let mut words = [VA + 32, 1, 0, SELF, first + page];
        assert_eq!(
            fake.memory(u32::MAX, 1, op::DECREASE_RESERVATION, &mut words),
            0
        );
        let mut words = [VA + 32, 1, 0, SELF, 5];
        assert_eq!(
            fake.memory(u32::MAX, 1, op::POPULATE_PHYSMAP, &mut words),
            0
        );
    }
    let owned = (0..super::fake::FRAMES)
        .filter(|&mfn| fake.frame(mfn).owner().is_owned_by(DomId(1)))
        .count();
    assert!(owned as u64 <= EACH, "{owned}");
}
