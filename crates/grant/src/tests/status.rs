// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each request answers, and what it leaves behind.

use super::fake::*;
use crate::host::Limits;
use philoxen_abi::grant::{
    CacheFlush, GetStatusFrames, GetVersion, QuerySize, SetVersion, SetupTable, SwapGrantRef,
    Transfer, UnmapAndReplace, cache, copy, gntst, gtf, map as flag, op,
};
use philoxen_abi::{DomId, Errno};
use philoxen_paging::entry::{self, NX, P, RW};
use std::sync::atomic::Ordering;
use std::vec::Vec;

#[test]
fn a_frame_is_mapped_marked_and_unmapped() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 0, mfn);
    let mapped = fake.map(0, 1, 8, HOLE, HOST | 3 << flag::GUEST_AVAIL_SHIFT);
    assert_eq!((mapped.status, mapped.address), (gntst::OKAY, mfn << 12));
    let leaf = fake.leaf(0, HOLE);
    assert_eq!(entry::mfn(leaf).0, mfn);
    assert_eq!(leaf & (P | RW | NX | 0xe00), P | RW | NX | 0x600);
    let marks = u64::from(gtf::READING | gtf::WRITING);
    assert_eq!(fake.entry_v1(1, 8).load(Ordering::SeqCst) & marks, marks);
    fake.check([(philoxen_abi::Mfn(mfn), true)].into_iter());
    assert_eq!(fake.unmap(0, mapped.handle, HOLE << 12, 0), gntst::OKAY);
    assert_eq!(fake.leaf(0, HOLE), 0);
    assert_eq!(fake.entry_v1(1, 8).load(Ordering::SeqCst) & marks, 0);
    assert_eq!(
        fake.unmap(0, mapped.handle, HOLE << 12, 0),
        gntst::BAD_HANDLE
    );
    fake.check([].into_iter());
}

#[test]
fn read_only_maps_read_only_and_marks_reading() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.grant(1, 8, 2, mfn, gtf::PERMIT_ACCESS | gtf::READONLY);
    assert_eq!(fake.map(2, 1, 8, HOLE, HOST).status, gntst::GENERAL_ERROR);
    let mapped = fake.map(2, 1, 8, HOLE, HOST | RO);
    assert_eq!(mapped.status, gntst::OKAY);
    assert_eq!(fake.leaf(2, HOLE) & RW, 0);
    let word = fake.entry_v1(1, 8).load(Ordering::SeqCst);
    assert_eq!(
        word as u16,
        gtf::PERMIT_ACCESS | gtf::READONLY | gtf::READING
    );
    assert_eq!(fake.unmap(2, mapped.handle, HOLE << 12, 0), gntst::OKAY);
}

#[test]
fn map_refuses_what_was_not_granted() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 2, mfn);
    let status = |who, from, gref, page, flags| fake.map(who, from, gref, page, flags).status;
    assert_eq!(status(0, 1, 8, HOLE, HOST), gntst::GENERAL_ERROR);
    assert_eq!(status(2, 1, 9, HOLE, HOST), gntst::GENERAL_ERROR);
    assert_eq!(status(2, 1, 512, HOLE, HOST), gntst::BAD_GNTREF);
    assert_eq!(status(2, 1, u32::MAX, HOLE, HOST), gntst::BAD_GNTREF);
    assert_eq!(status(2, 1, 8, HOLE, RO), gntst::BAD_GNTREF);
    assert_eq!(status(2, 7, 8, HOLE, HOST), gntst::BAD_DOMAIN);
    assert_eq!(
        status(2, DomId::SELF.0.into(), 8, HOLE, HOST),
        gntst::BAD_DOMAIN
    );
    // No table covers the address, and none of the hypervisor's does.
    assert_eq!(status(2, 1, 8, 1 << 20, HOST), gntst::BAD_VIRT_ADDR);
    let theirs = 0xffff_8000_0000_0000 >> 12;
    assert_eq!(status(2, 1, 8, theirs, HOST), gntst::BAD_VIRT_ADDR);
    // Frames that are not the granter's, not there, or in use as tables.
    for bad in [Fake::data(0, 0), 1, FRAMES + 5, u32::MAX.into(), 0] {
        fake.permit(1, 8, 2, bad);
        assert_eq!(status(2, 1, 8, HOLE, HOST), gntst::BAD_PAGE, "{bad:#x}");
        assert_eq!(
            fake.entry_v1(1, 8).load(Ordering::SeqCst) as u16,
            gtf::PERMIT_ACCESS
        );
    }
    fake.permit(1, 8, 2, Fake::first(1) + 3);
    assert_eq!(status(2, 1, 8, HOLE, HOST), gntst::BAD_PAGE);
    let table = fake.map(2, 1, 8, HOLE, HOST | RO);
    assert_eq!(table.status, gntst::OKAY);
    assert_eq!(fake.unmap(2, table.handle, HOLE << 12, 0), gntst::OKAY);
    assert_eq!(fake.tables[1].entries_in_use(), 0);
    assert_eq!(fake.tables[2].handles_in_use(), 0);
    fake.check([].into_iter());
}

#[test]
fn handles_run_out() {
    let fake = Fake::with_limits(Limits::wanted(Some(1), Some(1), 1));
    fake.permit(1, 8, 0, Fake::data(1, 0));
    let flags = flag::DEVICE_MAP;
    let handles: Vec<_> = (0..256).map(|_| fake.map(0, 1, 8, 0, flags)).collect();
    assert!(handles.iter().all(|mapped| mapped.status == gntst::OKAY));
    assert_eq!(fake.map(0, 1, 8, 0, flags).status, gntst::NO_SPACE);
    for mapped in handles {
        assert_eq!(fake.unmap(0, mapped.handle, 0, mapped.address), gntst::OKAY);
    }
    assert_eq!(fake.tables[1].entries_in_use(), 0);
    fake.check([].into_iter());
}

#[test]
fn the_address_may_be_that_of_an_entry() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 0, mfn);
    let flags = HOST | flag::CONTAINS_PTE;
    let at = Fake::leaf_address(0, HOLE);
    let map = |address| fake.map_at(0, 1, 8, address, flags);
    assert_eq!(map(at + 4).status, gntst::GENERAL_ERROR);
    assert_eq!(map(Fake::first(0) << 12).status, gntst::GENERAL_ERROR);
    assert_eq!(
        map(Fake::leaf_address(1, HOLE)).status,
        gntst::GENERAL_ERROR
    );
    assert_eq!(map(!7).status, gntst::GENERAL_ERROR);
    let mapped = map(at);
    assert_eq!(mapped.status, gntst::OKAY);
    assert_eq!(entry::mfn(fake.leaf(0, HOLE)).0, mfn);
    assert_eq!(
        fake.unmap(0, mapped.handle, HOLE << 12, 0),
        gntst::GENERAL_ERROR
    );
    assert_eq!(fake.unmap(0, mapped.handle, at, 0), gntst::OKAY);
    fake.check([].into_iter());
}

#[test]
fn uses_end_one_by_one() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 0);
    fake.permit(1, 8, 0, mfn);
    let mapped = fake.map(0, 1, 8, HOLE, HOST | flag::DEVICE_MAP);
    assert_eq!(fake.unmap(0, mapped.handle, 0, 0), gntst::OKAY);
    assert_eq!(fake.unmap(0, mapped.handle, 0, 0x1000), gntst::BAD_DEV_ADDR);
    assert_eq!(fake.unmap(0, mapped.handle, HOLE << 12, 0), gntst::OKAY);
    assert_eq!(fake.tables[1].entries_in_use(), 1);
    fake.check([(philoxen_abi::Mfn(mfn), true)].into_iter());
    assert_eq!(fake.unmap(0, mapped.handle, 0, mapped.address), gntst::OKAY);
    assert_eq!(fake.tables[1].entries_in_use(), 0);
    assert_eq!(
        fake.unmap(0, mapped.handle, 0, mapped.address),
        gntst::BAD_HANDLE
    );
    assert_eq!(fake.unmap(0, 12345, 0, 0), gntst::BAD_HANDLE);
}

#[test]
fn replace_moves_an_entry() {
    let fake = Fake::new();
    fake.permit(1, 8, 0, Fake::data(1, 0));
    let mapped = fake.map(0, 1, 8, HOLE, HOST);
    let moved = fake.leaf(0, 5);
    let replace = |host: u64, new: u64| {
        let mut request = [UnmapAndReplace {
            host_addr: host << 12,
            new_addr: new << 12,
            handle: mapped.handle,
            status: 99,
            pad: 0,
        }];
        assert_eq!(fake.op(0, op::UNMAP_AND_REPLACE, &mut request), 0);
        request[0].status
    };
    assert_eq!(replace(HOLE, HOLE), gntst::BAD_VIRT_ADDR);
    assert_eq!(replace(HOLE + 1, 5), gntst::BAD_VIRT_ADDR);
    assert_eq!(replace(HOLE, 1 << 20), gntst::BAD_VIRT_ADDR);
    assert_eq!(fake.leaf(0, 5), moved);
    assert_eq!(replace(HOLE, 5), gntst::OKAY);
    assert_eq!((fake.leaf(0, 5), fake.leaf(0, HOLE)), (0, moved));
    fake.check([].into_iter());
}

#[test]
fn copies_go_every_way() {
    let fake = Fake::new();
    let (source, dest, mine) = (Fake::data(1, 0), Fake::data(2, 0), Fake::data(0, 0));
    fake.permit(1, 8, 0, source);
    fake.permit(2, 9, 0, dest);
    fake.poke(source, 0, 0x8877_6655_4433_2211);
    let both = copy::SOURCE_GREF | copy::DEST_GREF;
    assert_eq!(
        fake.copy(0, granted(1, 8, 1), granted(2, 9, 4090), 6, both),
        gntst::OKAY
    );
    assert_eq!(fake.peek(dest, 511), 0x7766_5544_3322_0000);
    assert_eq!(
        fake.copy(0, granted(2, 9, 4090), own(mine, 0), 6, copy::SOURCE_GREF),
        gntst::OKAY
    );
    assert_eq!(fake.peek(mine, 0), 0x7766_5544_3322);
    assert_eq!(
        fake.copy(0, own(mine, 0), granted(1, 8, 0), 1, copy::DEST_GREF),
        gntst::OKAY
    );
    assert_eq!(fake.peek(source, 0), 0x8877_6655_4433_2222);
    assert_eq!(fake.copy(0, own(mine, 0), own(mine, 8), 8, 0), gntst::OKAY);
    assert_eq!(fake.peek(mine, 1), 0x7766_5544_3322);
    for table in &fake.tables {
        assert_eq!(table.entries_in_use(), 0);
    }
    fake.check([].into_iter());
}

#[test]
fn a_batch_of_copies_goes_by_what_each_element_names() {
    for budget in [u32::MAX, 1] {
        let fake = Fake::new();
        let (mine, ones, twos) = (Fake::data(0, 0), Fake::data(1, 0), Fake::data(2, 0));
        // An entry with the number of a frame, and one that two domains have.
        let number = u32::try_from(mine).unwrap();
        fake.permit(1, number, 0, ones);
        fake.permit(2, number, 0, twos);
        for word in 0..8 {
            fake.poke(mine, word, word as u64 + 1);
        }
        let to = |domain, at| granted(domain, number, at);
        let give = |from, to| copy_request(from, to, 8, copy::DEST_GREF);
        let take = |from, to| copy_request(from, to, 8, copy::SOURCE_GREF);
        let mut batch = [
            give(own(mine, 0), to(1, 0)),
            give(own(mine, 8), to(1, 8)),
            give(own(mine, 16), to(2, 0)),
            give(own(mine, 24), granted(2, 9999, 0)),
            give(own(mine, 32), to(2, 8)),
            give(own(ones, 0), to(2, 16)),
            take(to(1, 0), own(mine, 56)),
            take(to(2, 0), own(mine, 64)),
            copy_request(own(mine, 40), own(mine, 72), 8, 0),
            give(own(mine, 48), to(1, 16)),
        ];
        fake.op_on((0, 0), budget, op::COPY, &mut batch);
        let mut expected = [gntst::OKAY; 10];
        (expected[3], expected[5]) = (gntst::BAD_GNTREF, gntst::BAD_PAGE);
        assert_eq!(batch.map(|element| element.status), expected);
        let words = |mfn, at: [usize; 3]| at.map(|word| fake.peek(mfn, word));
        assert_eq!(words(ones, [0, 1, 2]), [1, 2, 7]);
        assert_eq!(words(twos, [0, 1, 2]), [3, 5, 0]);
        assert_eq!(words(mine, [7, 8, 9]), [1, 3, 6]);
        for table in &fake.tables {
            assert_eq!(table.entries_in_use(), 0);
        }
        fake.check([].into_iter());
    }
}

#[test]
fn copy_refuses() {
    let fake = Fake::new();
    fake.grant(
        1,
        8,
        0,
        Fake::data(1, 0),
        gtf::PERMIT_ACCESS | gtf::READONLY,
    );
    let mine = Fake::data(0, 0);
    let to_grant = |from, to, len| fake.copy(0, from, to, len, copy::DEST_GREF);
    assert_eq!(
        to_grant(own(mine, 0), granted(1, 8, 0), 1),
        gntst::GENERAL_ERROR
    );
    assert_eq!(
        to_grant(own(mine, 4095), granted(1, 8, 0), 2),
        gntst::BAD_COPY_ARG
    );
    assert_eq!(
        to_grant(own(mine, 0), granted(1, 8, 4096), 1),
        gntst::BAD_COPY_ARG
    );
    assert_eq!(
        to_grant(own(mine, 0), granted(9, 8, 0), 1),
        gntst::BAD_DOMAIN
    );
    assert_eq!(
        to_grant(own(mine, 0), granted(1, 9999, 0), 1),
        gntst::BAD_GNTREF
    );
    assert_eq!(
        to_grant(own(Fake::data(1, 0), 0), granted(1, 8, 0), 1),
        gntst::BAD_PAGE
    );
    // Another domain's frame by number, even for a privileged caller.
    assert_eq!(
        fake.copy(0, granted(1, 8, 0), own(mine, 0), 1, 0),
        gntst::PERMISSION_DENIED
    );
    assert_eq!(
        fake.copy(0, own(mine, 0), own(Fake::first(0) + 3, 0), 1, 0),
        gntst::BAD_PAGE
    );
    assert_eq!(
        fake.copy(0, own(mine, 0), own(u64::MAX, 0), 1, 0),
        gntst::BAD_PAGE
    );
    fake.check([].into_iter());
}

fn query(fake: M, who: usize, dom: u16) -> QuerySize {
    let mut request = [QuerySize {
        dom,
        pad: 0,
        nr_frames: 77,
        max_nr_frames: 77,
        status: 99,
        pad2: 0,
    }];
    assert_eq!(fake.op(who, op::QUERY_SIZE, &mut request), 0);
    request[0]
}

#[test]
fn sizes_are_told_to_those_who_may_know() {
    let fake = Fake::new();
    let answer = query(fake, 1, DomId::SELF.0);
    assert_eq!(
        (answer.status, answer.nr_frames, answer.max_nr_frames),
        (0, 1, 4)
    );
    assert_eq!(query(fake, 0, 1).status, gntst::OKAY);
    assert_eq!(query(fake, 1, 0).status, gntst::PERMISSION_DENIED);
    assert_eq!(query(fake, 0, 9).status, gntst::BAD_DOMAIN);
    let mut version = [GetVersion {
        dom: 2,
        pad: 0,
        version: 0,
    }];
    assert_eq!(
        fake.op(1, op::GET_VERSION, &mut version),
        Errno::EPERM.rax()
    );
    assert_eq!(fake.op(0, op::GET_VERSION, &mut version), 0);
    assert_eq!(version[0].version, 1);
    version[0].dom = 9;
    assert_eq!(
        fake.op(0, op::GET_VERSION, &mut version),
        Errno::ESRCH.rax()
    );
}

#[test]
fn the_table_grows_to_its_limit() {
    let fake = Fake::new();
    assert_eq!(fake.setup(1, 3), gntst::OKAY);
    assert_eq!(fake.setup(1, 2), gntst::OKAY);
    assert_eq!(query(fake, 1, DomId::SELF.0).nr_frames, 3);
    assert_eq!(fake.setup(1, 5), gntst::GENERAL_ERROR);
    let mut request = [SetupTable {
        dom: 0,
        pad: 0,
        nr_frames: 1,
        status: 99,
        pad2: [0; 3],
        frame_list: 0,
    }];
    assert_eq!(fake.op(1, op::SETUP_TABLE, &mut request), 0);
    assert_eq!(request[0].status, gntst::PERMISSION_DENIED);
    request[0].dom = 1;
    assert_eq!(fake.op(1, op::SETUP_TABLE, &mut request), 0);
    assert_eq!(request[0].status, gntst::BAD_VIRT_ADDR);
    let mut two = [request[0]; 2];
    assert_eq!(fake.op(1, op::SETUP_TABLE, &mut two), Errno::EINVAL.rax());
    fake.check([].into_iter());
}

#[test]
fn a_domain_without_grants_is_refused_everything() {
    let fake = Fake::with_limits(Limits::wanted(None, Some(1), 0));
    assert_eq!(fake.setup(1, 1), gntst::GENERAL_ERROR);
    assert_eq!(fake.map(0, 1, 0, HOLE, HOST).status, gntst::BAD_GNTREF);
    let mut version = [SetVersion { version: 1 }];
    assert_eq!(
        fake.op(1, op::SET_VERSION, &mut version),
        Errno::EINVAL.rax()
    );
}

#[test]
fn swap_exchanges_unused_entries() {
    let fake = Fake::new();
    fake.permit(1, 8, 0, Fake::data(1, 0));
    fake.permit(1, 9, 2, Fake::data(1, 1));
    let (a, b) = (
        fake.entry_v1(1, 8).load(Ordering::SeqCst),
        fake.entry_v1(1, 9).load(Ordering::SeqCst),
    );
    let swap = |ref_a, ref_b| {
        let mut request = [SwapGrantRef {
            ref_a,
            ref_b,
            status: 99,
            pad: 0,
        }];
        assert_eq!(fake.op(1, op::SWAP_GRANT_REF, &mut request), 0);
        request[0].status
    };
    assert_eq!(swap(8, 9), gntst::OKAY);
    assert_eq!(fake.entry_v1(1, 8).load(Ordering::SeqCst), b);
    assert_eq!(fake.entry_v1(1, 9).load(Ordering::SeqCst), a);
    assert_eq!(swap(8, 8), gntst::OKAY);
    assert_eq!(swap(8, 512), gntst::BAD_GNTREF);
    let mapped = fake.map(0, 1, 9, HOLE, HOST);
    assert_eq!(mapped.status, gntst::OKAY);
    assert_eq!(swap(8, 9), gntst::EAGAIN);
}

#[test]
fn transfer_gives_a_frame_with_its_contents() {
    let fake = Fake::new();
    let mfn = Fake::data(1, 11);
    fake.grant(2, 8, 1, 0, gtf::ACCEPT_TRANSFER);
    let transfer = |who: usize, domid, gref, mfn| {
        let mut request = [Transfer {
            mfn,
            domid,
            pad: 0,
            gref,
            status: 99,
            pad2: [0; 3],
        }];
        assert_eq!(fake.op(who, op::TRANSFER, &mut request), 0);
        request[0].status
    };
    assert_eq!(transfer(1, 9, 8, mfn), gntst::BAD_DOMAIN);
    assert_eq!(transfer(1, 2, 9, mfn), gntst::GENERAL_ERROR);
    assert_eq!(transfer(0, 2, 8, Fake::data(0, 11)), gntst::GENERAL_ERROR);
    assert_eq!(transfer(1, 2, 999, mfn), gntst::BAD_GNTREF);
    assert_eq!(transfer(1, 2, 8, 1 << 33), gntst::ADDRESS_TOO_BIG);
    // Mapped: in use.
    assert_eq!(transfer(1, 2, 8, mfn), gntst::BAD_PAGE);
    assert_eq!(
        fake.entry_v1(2, 8).load(Ordering::SeqCst) as u16,
        gtf::ACCEPT_TRANSFER
    );
    // The giver unmaps it first.
    let at = fake.cx(1, 0);
    let leaf = philoxen_paging::grant::Leaf {
        mfn: philoxen_abi::Mfn(mfn),
        writable: true,
    };
    let page = philoxen_paging::grant::LeafAt::Address((EACH - 1) << 12);
    philoxen_paging::grant::unmap_leaf(&at, page, leaf).unwrap();
    fake.poke(mfn, 3, 0x1234);
    assert_eq!(transfer(1, 2, 8, mfn), gntst::OKAY);
    let word = fake.entry_v1(2, 8).load(Ordering::SeqCst);
    let done = gtf::ACCEPT_TRANSFER | gtf::TRANSFER_COMMITTED | gtf::TRANSFER_COMPLETED;
    assert_eq!((word as u16, word >> 32), (done, mfn));
    assert!(fake.frame(mfn).owner().is_owned_by(DomId(2)));
    assert_eq!(fake.peek(mfn, 3), 0x1234);
    assert_eq!(
        (fake.domains[1].total_pages(), fake.domains[2].total_pages()),
        (EACH - 1, EACH + 1)
    );
    fake.domains[2].set_max_pages(EACH + 1);
    fake.grant(2, 9, 1, 0, gtf::ACCEPT_TRANSFER);
    assert_eq!(transfer(1, 2, 9, Fake::data(1, 10)), gntst::GENERAL_ERROR);
    fake.check([].into_iter());
}

#[test]
fn cache_flushes_are_checked_and_need_nothing() {
    let fake = Fake::new();
    let flush = |addr_or_ref, offset, length, op_: u32| {
        let mut request = [CacheFlush {
            addr_or_ref,
            offset,
            length,
            op: op_,
        }];
        fake.op(1, op::CACHE_FLUSH, &mut request)
    };
    let mine = Fake::data(1, 0) << 12;
    assert_eq!(flush(mine, 0, 4096, cache::CLEAN), 0);
    assert_eq!(flush(mine, 0, 0, cache::CLEAN), 0);
    assert_eq!(flush(mine, 4096, 0, cache::CLEAN), Errno::EINVAL.rax());
    assert_eq!(flush(mine, 8, 4096, cache::CLEAN), Errno::EINVAL.rax());
    assert_eq!(flush(mine, 0, 8, 1 << 5), Errno::EINVAL.rax());
    assert_eq!(flush(mine, 0, 8, cache::INVAL), Errno::EOPNOTSUPP.rax());
    assert_eq!(
        flush(Fake::data(0, 0) << 12, 0, 8, cache::CLEAN),
        Errno::EPERM.rax()
    );
    fake.permit(1, 8, 0, Fake::data(1, 0));
    assert_eq!(flush(8, 0, 8, cache::CLEAN | cache::SOURCE_GREF), 0);
    assert_eq!(
        flush(999, 0, 8, cache::CLEAN | cache::SOURCE_GREF),
        Errno::EINVAL.rax()
    );
}

#[test]
fn status_frames_only_in_version_2() {
    let fake = Fake::new();
    let mut request = [GetStatusFrames {
        nr_frames: 1,
        dom: DomId::SELF.0,
        status: 99,
        frame_list: 0,
    }];
    assert_eq!(fake.op(1, op::GET_STATUS_FRAMES, &mut request), 0);
    assert_eq!(request[0].status, gntst::GENERAL_ERROR);
    request[0].nr_frames = 0;
    assert_eq!(fake.op(1, op::GET_STATUS_FRAMES, &mut request), 0);
    assert_eq!(request[0].status, gntst::OKAY);
}

#[test]
fn unknown_operations_and_bad_arrays() {
    let fake = Fake::new();
    let mut none: [u64; 1] = [0];
    assert_eq!(fake.op(1, op::DUMP_TABLE, &mut none), Errno::ENOSYS.rax());
    assert_eq!(fake.op(1, 99, &mut none), Errno::ENOSYS.rax());
    let mut short: [u64; 2] = [0; 2];
    assert_eq!(
        fake.op(1, op::MAP_GRANT_REF, &mut short),
        Errno::EFAULT.rax()
    );
    assert_eq!(fake.op::<u64>(1, op::MAP_GRANT_REF, &mut []), 0);
}
