// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mistakes that grant tables were built with elsewhere, by the number of their Xen Security Advisory.

use super::fake::*;
use super::versions::{grant_v2, set_version, status};
use crate::table::FrameKind;
use philoxen_abi::Mfn;
use philoxen_abi::grant::{copy, gntst, gtf, map as flag, op};
use philoxen_abi::hypercall::Budget;
use philoxen_paging::entry::RW;
use std::sync::atomic::Ordering;

/// Rewrites the caller's own leaf by `mmu_update`.
fn rewrite(fake: M, who: usize, page: u64, value: u64) -> i64 {
    use philoxen_abi::{DomId, Flow, guest::FakeGuest};
    use zerocopy::IntoBytes;
    let mut words = [Fake::leaf_address(who, page), value];
    let guest = FakeGuest::new(VA, words.as_mut_bytes());
    let args = [VA, 1, 0, DomId::SELF.0.into()];
    let cx = fake.cx(who, 0);
    match philoxen_paging::mmu_update(&cx, &guest, args, &mut Budget::unlimited()) {
        Flow::Done(value) => value,
        Flow::Again(_) => panic!("one request"),
    }
}

/// XSA-218: the granter sees its entry unused only once no TLB translates to the frame, and the frame's type is free by then.
#[test]
fn xsa_218_flush_before_release() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 0, mfn);
    let mapped = fake.map(0, 1, 8, HOLE, HOST);
    fake.speculate();
    assert_eq!(fake.unmap(0, mapped.handle, HOLE << 12, 0), gntst::OKAY);
    assert!(
        fake.tlb
            .lock()
            .iter()
            .all(|stale| stale.domain != 0 || stale.mfn != mfn)
    );
}

/// XSA-218, 228: the same handle twice in one lot is one unmap.
#[test]
fn xsa_228_a_handle_is_used_once() {
    let fake = Fake::new();
    fake.permit(1, 8, 0, Fake::data(1, 0));
    let mapped = fake.map(0, 1, 8, HOLE, HOST | flag::DEVICE_MAP);
    let one = unmap_request(mapped.handle, HOLE << 12, mapped.address);
    let mut lot = [one, one, unmap_request(mapped.handle, 0, mapped.address)];
    assert_eq!(fake.op(0, op::UNMAP_GRANT_REF, &mut lot), 0);
    assert_eq!(
        lot.map(|op| op.status),
        [gntst::OKAY, gntst::BAD_HANDLE, gntst::BAD_HANDLE]
    );
    assert_eq!(fake.tables[0].handles_in_use(), 0);
    fake.check([].into_iter());
}

/// XSA-224: a wrong bus address ends nothing, and each use ends once.
#[test]
fn xsa_224_device_uses_are_counted() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 0, mfn);
    let mapped = fake.map(0, 1, 8, HOLE, HOST | flag::DEVICE_MAP);
    assert_eq!(
        fake.unmap(0, mapped.handle, HOLE << 12, 0x1000),
        gntst::BAD_DEV_ADDR
    );
    assert_ne!(fake.leaf(0, HOLE), 0);
    assert_eq!(fake.unmap(0, mapped.handle, 0, mapped.address), gntst::OKAY);
    assert_eq!(fake.unmap(0, mapped.handle, 0, mapped.address), gntst::OKAY);
    assert_eq!(fake.tables[1].entries_in_use(), 1);
    fake.check([(Mfn(mfn), true)].into_iter());
    assert_eq!(fake.unmap(0, mapped.handle, HOLE << 12, 0), gntst::OKAY);
    fake.check([].into_iter());
}

/// XSA-226: no transitive grants.
#[test]
fn xsa_226_transitive_grants_are_refused() {
    let fake = Fake::new();
    assert_eq!(set_version(fake, 1, 2), 0);
    grant_v2(fake, 1, 8, (u64::from(gtf::TRANSITIVE) | 2 << 32, 8));
    let mine = Fake::data(0, 0);
    let result = fake.copy(0, granted(1, 8, 0), own(mine, 0), 1, copy::SOURCE_GREF);
    assert_eq!(result, gntst::GENERAL_ERROR);
    assert_eq!(fake.map(0, 1, 8, HOLE, HOST).status, gntst::GENERAL_ERROR);
    assert_eq!(status(fake, 1, 8), 0);
}

/// XSA-227: the address of an entry is on an eight-byte boundary, and in an L1 table of the caller's.
#[test]
fn xsa_227_misaligned_entries() {
    let fake = Fake::new();
    fake.permit(1, 8, 0, Fake::data(1, 0));
    for offset in 1..8 {
        let at = Fake::leaf_address(0, HOLE) + offset;
        let mapped = fake.map_at(0, 1, 8, at, HOST | flag::CONTAINS_PTE);
        assert_eq!(mapped.status, gntst::GENERAL_ERROR);
    }
    assert_eq!((fake.leaf(0, HOLE), fake.leaf(0, HOLE + 1)), (0, 0));
}

/// XSA-234: a writable handle is not ended by the leaf of a read-only one, nor the other way round.
#[test]
fn xsa_234_writability_must_match() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 0, mfn);
    let (rw, ro) = (
        fake.map(0, 1, 8, HOLE, HOST),
        fake.map(0, 1, 8, HOLE + 1, HOST | RO),
    );
    assert_eq!(
        fake.unmap(0, rw.handle, (HOLE + 1) << 12, 0),
        gntst::BAD_VIRT_ADDR
    );
    assert_eq!(
        fake.unmap(0, ro.handle, HOLE << 12, 0),
        gntst::BAD_VIRT_ADDR
    );
    // A leaf that the guest changed is not what was mapped; its handle stays until the domain goes.
    assert_eq!(rewrite(fake, 0, HOLE, fake.leaf(0, HOLE) & !RW), 0);
    assert_eq!(
        fake.unmap(0, rw.handle, HOLE << 12, 0),
        gntst::BAD_VIRT_ADDR
    );
    let marks = fake.entry_v1(1, 8).load(Ordering::SeqCst) as u16;
    assert_eq!(marks & gtf::WRITING, gtf::WRITING);
    fake.check([(Mfn(mfn), true), (Mfn(mfn), false)].into_iter());
    fake.destroy(0);
    assert_eq!(fake.tables[1].entries_in_use(), 0);
    fake.check([].into_iter());
}

/// XSA-234: a leaf that the guest removed itself takes its own reference with it, and nothing of the handle's.
#[test]
fn xsa_234_leaves_removed_behind_the_handle() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 2, mfn);
    let mapped = fake.map(2, 1, 8, HOLE, HOST);
    // No second leaf can be made from the first, and a read-only one cannot become writable.
    assert!(rewrite(fake, 2, HOLE + 1, fake.leaf(2, HOLE)) < 0);
    assert_eq!(rewrite(fake, 2, HOLE, 0), 0);
    assert!(rewrite(fake, 2, HOLE, mfn << 12 | 3) < 0);
    fake.check([(Mfn(mfn), true)].into_iter());
    assert_eq!(
        fake.unmap(2, mapped.handle, HOLE << 12, 0),
        gntst::BAD_VIRT_ADDR
    );
    fake.permit(1, 9, 2, Fake::data(1, 1));
    let ro = fake.map(2, 1, 9, HOLE, HOST | RO);
    assert_eq!(ro.status, gntst::OKAY);
    assert!(rewrite(fake, 2, HOLE, fake.leaf(2, HOLE) | RW) < 0);
}

/// XSA-255, 382, 384: status frames stay what they are when version 2 is left; nothing is freed that a guest maps.
#[test]
fn xsa_255_status_frames_are_not_freed_in_use() {
    let fake = Fake::new();
    assert_eq!(set_version(fake, 1, 2), 0);
    let frame = fake.tables[1].frame(FrameKind::Status, 0).unwrap();
    assert_eq!(rewrite(fake, 1, HOLE, frame.0 << 12 | 3), 0);
    let free = fake.buddy.lock().free_frames();
    for version in [1, 2, 1, 2] {
        assert_eq!(set_version(fake, 1, version), 0);
    }
    assert_eq!(fake.buddy.lock().free_frames(), free);
    assert_eq!(fake.tables[1].frame(FrameKind::Status, 0), Some(frame));
    fake.check([].into_iter());
    fake.destroy(1);
    fake.check([].into_iter());
    assert!(!fake.frame(frame.0).owner().is_guest());
}

/// XSA-316: a map that fails late says so, and leaves nothing.
#[test]
fn xsa_316_failures_are_reported() {
    let fake = Fake::new();
    fake.permit(1, 8, 0, Fake::data(1, 0));
    let mapped = fake.map(0, 1, 8, 1 << 25, HOST);
    assert_eq!(
        (mapped.status, mapped.handle),
        (gntst::BAD_VIRT_ADDR, u32::MAX)
    );
    assert_eq!(fake.tables[0].handles_in_use(), 0);
    assert_eq!(
        fake.entry_v1(1, 8).load(Ordering::SeqCst) as u16,
        gtf::PERMIT_ACCESS
    );
    fake.check([].into_iter());
}

/// XSA-500: a pinned grant is what it was when it was pinned, whatever the granter writes into the entry.
#[test]
fn xsa_500_a_pinned_frame_stays() {
    let fake = Fake::new();
    let (first, other) = (Fake::data(1, 0), Fake::data(1, 1));
    fake.permit(1, 8, 0, first);
    let mapped = fake.map(0, 1, 8, HOLE, HOST | RO);
    fake.permit(1, 8, 0, other);
    let mine = Fake::data(0, 0);
    fake.poke(mine, 0, 0xab);
    assert_eq!(
        fake.copy(0, own(mine, 0), granted(1, 8, 0), 1, copy::DEST_GREF),
        gntst::OKAY
    );
    assert_eq!((fake.peek(first, 0), fake.peek(other, 0)), (0xab, 0));
    // Another domain cannot join a pinned entry by being named in it.
    fake.permit(1, 8, 2, first);
    assert_eq!(fake.map(2, 1, 8, HOLE, HOST).status, gntst::GENERAL_ERROR);
    fake.check([(Mfn(first), false)].into_iter());
    assert_eq!(fake.unmap(0, mapped.handle, HOLE << 12, 0), gntst::OKAY);
    fake.check([].into_iter());
}

/// A granter that dies leaves mapped frames to those who map them; the last unmap is told.
#[test]
fn frames_outlive_their_granter() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 0, mfn);
    let mapped = fake.map(0, 1, 8, HOLE, HOST);
    fake.poke(mfn, 0, 0x77);
    fake.destroy(1);
    fake.check([(Mfn(mfn), true)].into_iter());
    assert_eq!(fake.peek(mfn, 0), 0x77);
    assert_eq!(fake.map(0, 1, 8, HOLE + 1, HOST).status, gntst::BAD_DOMAIN);
    assert!(fake.released.lock().is_empty());
    assert_eq!(fake.unmap(0, mapped.handle, HOLE << 12, 0), gntst::OKAY);
    assert_eq!(fake.released.lock().len(), 1);
    fake.check([].into_iter());
    assert_eq!(
        fake.buddy.lock().free_frames(),
        fake.free_at_start - 2 + EACH
    );
}
