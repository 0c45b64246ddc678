// SPDX-License-Identifier: MIT OR Apache-2.0
//! Version 2: its entries and status, changes of version, the resource interface.

use super::fake::*;
use crate::host::Limits;
use crate::table::FrameKind;
use philoxen_abi::grant::{SetVersion, copy, gntst, gtf, op};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::memory::{AcquireResource, resource};
use philoxen_abi::{DomId, Errno, GuestVa, Mfn};
use std::sync::atomic::Ordering;
use std::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

pub fn set_version(fake: M, who: usize, version: u32) -> i64 {
    fake.op(who, op::SET_VERSION, &mut [SetVersion { version }])
}

fn shared(fake: M, who: usize, gref: u32) -> (u64, usize) {
    let mfn = fake.tables[who]
        .frame(FrameKind::Shared, gref / 256)
        .unwrap();
    (mfn.0, gref as usize % 256 * 2)
}

pub fn grant_v2(fake: M, who: usize, gref: u32, words: (u64, u64)) {
    let (mfn, slot) = shared(fake, who, gref);
    fake.poke(mfn, slot + 1, words.1);
    fake.poke(mfn, slot, words.0);
}

fn header(flags: u16, to: usize) -> u64 {
    u64::from(flags) | (to as u64) << 16
}

pub fn status(fake: M, who: usize, gref: u32) -> u16 {
    let mfn = fake.tables[who]
        .frame(FrameKind::Status, gref / 2048)
        .unwrap();
    (fake.peek(mfn.0, gref as usize % 2048 / 4) >> (gref % 4 * 16)) as u16
}

#[test]
fn version_2_keeps_its_marks_in_the_status() {
    let fake = Fake::new();
    assert_eq!(set_version(fake, 1, 2), 0);
    let mfn = Fake::data(1, 0);
    grant_v2(fake, 1, 9, (header(gtf::PERMIT_ACCESS, 0), mfn));
    let mapped = fake.map(0, 1, 9, HOLE, HOST);
    assert_eq!(mapped.status, gntst::OKAY);
    assert_eq!(status(fake, 1, 9), gtf::READING | gtf::WRITING);
    assert_eq!((status(fake, 1, 8), status(fake, 1, 10)), (0, 0));
    let again = fake.map(0, 1, 9, HOLE + 1, HOST | RO);
    assert_eq!(fake.unmap(0, mapped.handle, HOLE << 12, 0), gntst::OKAY);
    assert_eq!(status(fake, 1, 9), gtf::READING);
    assert_eq!(
        fake.unmap(0, again.handle, (HOLE + 1) << 12, 0),
        gntst::OKAY
    );
    assert_eq!(status(fake, 1, 9), 0);
    fake.check([].into_iter());
}

#[test]
fn parts_of_frames_are_for_copies() {
    let fake = Fake::new();
    assert_eq!(set_version(fake, 1, 2), 0);
    let part = header(gtf::PERMIT_ACCESS | gtf::SUB_PAGE, 0) | 100 << 32 | 50 << 48;
    grant_v2(fake, 1, 9, (part, Fake::data(1, 0)));
    assert_eq!(fake.map(0, 1, 9, HOLE, HOST).status, gntst::GENERAL_ERROR);
    let mine = Fake::data(0, 0);
    let read = |offset, len| {
        fake.copy(
            0,
            granted(1, 9, offset),
            own(mine, 0),
            len,
            copy::SOURCE_GREF,
        )
    };
    assert_eq!(read(100, 50), gntst::OKAY);
    assert_eq!(read(99, 2), gntst::GENERAL_ERROR);
    assert_eq!(read(100, 51), gntst::GENERAL_ERROR);
    assert_eq!(read(149, 1), gntst::OKAY);
    assert_eq!(read(150, 1), gntst::GENERAL_ERROR);
    // A part that ends beyond the frame reaches no further than the frame.
    grant_v2(fake, 1, 9, (part | 0xffff << 32, Fake::data(1, 0)));
    assert_eq!(read(4095, 1), gntst::GENERAL_ERROR);
    // Frame numbers that no version 1 entry could hold.
    grant_v2(fake, 1, 9, (header(gtf::PERMIT_ACCESS, 0), 1 << 40));
    assert_eq!(read(0, 1), gntst::BAD_PAGE);
    assert_eq!(status(fake, 1, 9), 0);
}

#[test]
fn reserved_entries_survive_a_change() {
    let fake = Fake::new();
    fake.grant(
        1,
        1,
        0,
        Fake::data(1, 1),
        gtf::PERMIT_ACCESS | gtf::READONLY,
    );
    fake.grant(1, 2, 0, 7, gtf::ACCEPT_TRANSFER);
    fake.permit(1, 8, 0, Fake::data(1, 0));
    let held = fake.map(0, 1, 1, HOLE, HOST | RO);
    assert_eq!(held.status, gntst::OKAY);
    assert_eq!(set_version(fake, 1, 2), 0);
    let (mfn, slot) = shared(fake, 1, 1);
    assert_eq!(
        fake.peek(mfn, slot),
        header(gtf::PERMIT_ACCESS | gtf::READONLY, 0)
    );
    assert_eq!(fake.peek(mfn, slot + 1), Fake::data(1, 1));
    assert_eq!(status(fake, 1, 1), gtf::READING);
    for gref in [2, 8] {
        let (mfn, slot) = shared(fake, 1, gref);
        assert_eq!((fake.peek(mfn, slot), fake.peek(mfn, slot + 1)), (0, 0));
    }
    assert_eq!(set_version(fake, 1, 1), 0);
    let word = fake.entry_v1(1, 1).load(Ordering::SeqCst);
    assert_eq!(
        word as u16,
        gtf::PERMIT_ACCESS | gtf::READONLY | gtf::READING
    );
    assert_eq!(word >> 32, Fake::data(1, 1));
    assert_eq!(fake.unmap(0, held.handle, HOLE << 12, 0), gntst::OKAY);
    let word = fake.entry_v1(1, 1).load(Ordering::SeqCst);
    assert_eq!(word as u16, gtf::PERMIT_ACCESS | gtf::READONLY);
    fake.check([].into_iter());
}

#[test]
fn the_version_cannot_change_under_a_use() {
    let fake = Fake::new();
    fake.permit(1, 8, 0, Fake::data(1, 0));
    let held = fake.map(0, 1, 8, HOLE, HOST);
    assert_eq!(set_version(fake, 1, 2), Errno::EBUSY.rax());
    assert_eq!(set_version(fake, 1, 1), 0);
    assert_eq!(set_version(fake, 1, 0), Errno::EINVAL.rax());
    assert_eq!(set_version(fake, 1, 3), Errno::EINVAL.rax());
    assert_eq!(fake.unmap(0, held.handle, HOLE << 12, 0), gntst::OKAY);
    assert_eq!(set_version(fake, 1, 2), 0);
    let only = Fake::with_limits(Limits::wanted(None, None, 1));
    assert_eq!(set_version(only, 1, 2), Errno::EINVAL.rax());
}

fn acquire(
    fake: M,
    who: usize,
    request: AcquireResource,
    list: usize,
) -> (i64, AcquireResource, Vec<u64>) {
    let mut words = std::vec![0u64; 4 + list];
    words.as_mut_bytes()[..32].copy_from_slice(request.as_bytes());
    let guest = FakeGuest::new(VA, words.as_mut_bytes());
    let cx = fake.cx(who, 0);
    let result = crate::acquire_resource(&cx, &fake.tables[who], &guest, GuestVa(VA));
    let result = result.unwrap_or_else(Errno::rax);
    let back = AcquireResource::read_from_bytes(&words.as_bytes()[..32]).unwrap();
    (result, back, words[4..].to_vec())
}

#[test]
fn the_toolstack_finds_a_guests_table() {
    let fake = Fake::new();
    let request = AcquireResource {
        domid: 1,
        kind: resource::GRANT_TABLE,
        id: resource::GRANT_TABLE_SHARED,
        nr_frames: 2,
        pad: 0,
        frame: 1,
        frame_list: VA + 32,
    };
    let (result, _, list) = acquire(fake, 0, request, 2);
    assert_eq!(result, 0);
    assert_eq!(fake.tables[1].frames(), 3);
    for (index, mfn) in list.iter().enumerate() {
        assert_eq!(
            fake.tables[1].frame(FrameKind::Shared, 1 + index as u32),
            Some(Mfn(*mfn))
        );
        assert!(fake.frame(*mfn).owner().is_owned_by(DomId(1)));
    }
    let size = AcquireResource {
        nr_frames: 0,
        frame_list: 0,
        ..request
    };
    let (result, back, _) = acquire(fake, 0, size, 0);
    assert_eq!((result, back.nr_frames), (0, 4));
    let error = |change: fn(&mut AcquireResource)| {
        let mut bad = request;
        change(&mut bad);
        acquire(fake, 0, bad, 2).0
    };
    assert_eq!(error(|r| r.frame = 3), Errno::EINVAL.rax());
    assert_eq!(error(|r| r.frame = u64::MAX), Errno::EINVAL.rax());
    assert_eq!(error(|r| r.kind = 0), Errno::EOPNOTSUPP.rax());
    assert_eq!(error(|r| r.id = 1), Errno::EINVAL.rax());
    assert_eq!(error(|r| r.id = 2), Errno::EINVAL.rax());
    assert_eq!(error(|r| r.pad = 1), Errno::EINVAL.rax());
    assert_eq!(error(|r| r.domid = 9), Errno::ESRCH.rax());
    assert_eq!(error(|r| r.domid = 0), Errno::EPERM.rax());
    assert_eq!(error(|r| r.frame_list = 0), Errno::EFAULT.rax());
    assert_eq!(
        acquire(
            fake,
            1,
            AcquireResource {
                domid: 2,
                ..request
            },
            2
        )
        .0,
        Errno::EPERM.rax()
    );
}
