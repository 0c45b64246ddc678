// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shadow of the model test: every handle, as the answers of requests tell, and what must follow from them.

use super::fake::*;
use super::model::{GREFS, Op};
use super::versions::{set_version, status};
use crate::table::FrameKind;
use philoxen_abi::grant::{
    SwapGrantRef, Transfer, UnmapAndReplace, copy, gntst, gtf, map as flag, op,
};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::memory::op as memory_op;
use philoxen_abi::{DomId, Flow, Mfn};
use philoxen_paging::entry::{self, P, RW};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::vec::Vec;
use zerocopy::IntoBytes;

#[derive(Clone, Copy, Debug)]
struct Handle {
    who: usize,
    handle: u32,
    from: usize,
    gref: u32,
    mfn: u64,
    at: u64,
    host: bool,
    device: bool,
    write: bool,
}

/// Three domains and what their handles should be.
pub struct Model {
    fake: M,
    units: u32,
    handles: Vec<Handle>,
    /// Entries whose marks the granter has written itself while they were in use.
    scribbled: BTreeMap<(usize, u32), ()>,
}

impl Model {
    pub fn new(units: u32) -> Self {
        Self {
            fake: Fake::new(),
            units,
            handles: Vec::new(),
            scribbled: BTreeMap::new(),
        }
    }
    fn gone(&self, who: usize) -> bool {
        self.fake.gone[who].load(Ordering::SeqCst)
    }
    fn request<T: IntoBytes + zerocopy::FromBytes + zerocopy::Immutable>(
        &self,
        who: usize,
        cmd: u32,
        op: T,
    ) -> T {
        let mut ops = [op];
        assert_eq!(self.fake.op_on((who, 0), self.units, cmd, &mut ops), 0);
        let [op] = ops;
        op
    }
    /// Answer of the step, for comparison.
    /// Answer of the step, for comparison. Who is gone does nothing any more.
    pub fn apply(&mut self, op: &Op) -> i64 {
        let actor = match *op {
            Op::Grant { who, .. }
            | Op::Share { who, .. }
            | Op::Map { who, .. }
            | Op::Copy { who, .. }
            | Op::Write { who, .. }
            | Op::Swap { who, .. }
            | Op::Version { who, .. }
            | Op::Setup { who, .. }
            | Op::Transfer { who, .. }
            | Op::Decrease { who, .. }
            | Op::Destroy { who } => Some(who),
            Op::Unmap { .. } | Op::Replace { .. } | Op::Speculate => None,
        };
        if actor.is_some_and(|who| self.gone(who)) {
            return 0;
        }
        match *op {
            Op::Grant {
                who,
                gref,
                to,
                frame,
                flags,
            } => self.grant(who, gref, to, frame, flags),
            Op::Share { .. } => self.share(op),
            Op::Map {
                who,
                from,
                gref,
                page,
                flags,
                by_entry,
            } => self.map(who, from, gref, page, flags, by_entry),
            Op::Unmap {
                pick,
                host,
                device,
                page,
                who,
            } => self.unmap(pick, host, device, page, who),
            Op::Replace { pick, page } => self.replace(pick, page),
            Op::Copy { .. } => self.copy(op),
            Op::Write {
                who,
                page,
                frame,
                flags,
                foreign,
            } => {
                let owner = (frame.wrapping_sub(8) / EACH).min(2) as u16;
                let whose = if foreign { owner } else { DomId::SELF.0 };
                self.write(who, page, frame << 12 | flags, whose)
            }
            Op::Swap { who, a, b } => self.swap(who, a, b),
            Op::Version { who, version } => {
                let before = self.fake.tables[who].version();
                let result = set_version(self.fake, who, version);
                if self.fake.tables[who].version() != before {
                    self.scribbled.retain(|&(owner, _), ()| owner != who);
                }
                result
            }
            Op::Setup { who, frames } => self.fake.setup(who, frames).into(),
            Op::Transfer {
                who,
                to,
                gref,
                frame,
            } => {
                self.scribbled.insert((to, gref), ());
                let (mfn, domid) = (frame, to as u16);
                let request = Transfer {
                    mfn,
                    domid,
                    pad: 0,
                    gref,
                    status: 99,
                    pad2: [0; 3],
                };
                self.request(who, op::TRANSFER, request).status.into()
            }
            Op::Decrease { who, frame } => self.decrease(who, frame),
            Op::Speculate => {
                self.fake.speculate();
                0
            }
            Op::Destroy { who } => {
                self.fake.destroy(who);
                self.handles.retain(|handle| handle.who != who);
                0
            }
        }
    }
    /// Grants, if the entry is free, and maps.
    fn share(&mut self, op: &Op) -> i64 {
        let Op::Share {
            from,
            gref,
            who,
            frame,
            readonly,
            page,
            flags,
            by_entry,
        } = *op
        else {
            return 0;
        };
        if self.gone(from) {
            return 0;
        }
        let readonly = if readonly { gtf::READONLY } else { 0 };
        if !self
            .handles
            .iter()
            .any(|h| h.from == from && h.gref == gref)
        {
            self.grant(
                from,
                gref,
                who,
                Fake::data(from, frame),
                gtf::PERMIT_ACCESS | readonly,
            );
            self.scribbled.remove(&(from, gref));
        }
        self.map(who, from, gref, page, flags, by_entry)
    }
    fn copy(&self, op: &Op) -> i64 {
        let Op::Copy {
            who,
            ends: [source, dest],
            flags,
            offset,
            len,
        } = *op
        else {
            return 0;
        };
        let end = |(from, gref, frame): (usize, u32, u64), is_grant| {
            if is_grant {
                granted(from, gref, offset)
            } else {
                own(frame, offset)
            }
        };
        let source = end(source, flags & copy::SOURCE_GREF != 0);
        let dest = end(dest, flags & copy::DEST_GREF != 0);
        let request = copy_request(source, dest, len, flags);
        self.request(who, op::COPY, request).status.into()
    }
    fn swap(&mut self, who: usize, a: u32, b: u32) -> i64 {
        let request = SwapGrantRef {
            ref_a: a,
            ref_b: b,
            status: 99,
            pad: 0,
        };
        let status = self.request(who, op::SWAP_GRANT_REF, request).status;
        if status == gntst::OKAY && a != b {
            let had_a = self.scribbled.remove(&(who, a)).is_some();
            let had_b = self.scribbled.remove(&(who, b)).is_some();
            for (had, gref) in [(had_a, b), (had_b, a)] {
                if had {
                    self.scribbled.insert((who, gref), ());
                }
            }
        }
        status.into()
    }
    fn grant(&mut self, who: usize, gref: u32, to: usize, frame: u64, flags: u16) -> i64 {
        let table = &self.fake.tables[who];
        let header = u64::from(flags) | (to as u64) << 16;
        if table.version() == 2 {
            let mfn = table.frame(FrameKind::Shared, 0).unwrap().0;
            self.fake.poke(mfn, gref as usize * 2, header);
            self.fake.poke(mfn, gref as usize * 2 + 1, frame);
        } else {
            self.fake
                .entry_v1(who, gref)
                .store(header | frame << 32, Ordering::SeqCst);
            self.scribbled.insert((who, gref), ());
        }
        0
    }
    fn map(
        &mut self,
        who: usize,
        from: usize,
        gref: u32,
        page: u64,
        flags: u32,
        by_entry: bool,
    ) -> i64 {
        let (at, flags) = if by_entry && flags & HOST != 0 {
            (
                Fake::leaf_address(who, page.min(511)),
                flags | flag::CONTAINS_PTE,
            )
        } else {
            (page << 12, flags)
        };
        let answer = self.request(who, op::MAP_GRANT_REF, map_request(from, gref, at, flags));
        if answer.status == gntst::OKAY {
            self.handles.push(Handle {
                who,
                handle: answer.handle,
                from,
                gref,
                mfn: answer.dev_bus_addr >> 12,
                at,
                host: flags & HOST != 0,
                device: flags & flag::DEVICE_MAP != 0,
                write: flags & RO == 0,
            });
        }
        answer.status.into()
    }
    fn unmap(
        &mut self,
        pick: usize,
        host: bool,
        device: bool,
        page: Option<u64>,
        other: Option<usize>,
    ) -> i64 {
        if self.handles.is_empty() {
            return 0;
        }
        let index = pick % self.handles.len();
        let handle = self.handles[index];
        let who = other.unwrap_or(handle.who);
        if self.gone(who) {
            return 0;
        }
        let at = if host {
            page.map_or(handle.at, |page| page << 12)
        } else {
            0
        };
        let bus = if device { handle.mfn << 12 } else { 0 };
        let answer = self.request(
            who,
            op::UNMAP_GRANT_REF,
            unmap_request(handle.handle, at, bus),
        );
        if answer.status == gntst::OKAY {
            let found = self
                .handles
                .iter()
                .position(|h| h.who == who && h.handle == handle.handle);
            let real = found.expect("an unmap of no handle succeeded");
            // Of somebody else's handle with the same number the bus address is most likely wrong; if right, it counts.
            let ended = &mut self.handles[real];
            ended.host &= at == 0;
            ended.device &= bus == 0;
            if !ended.host && !ended.device {
                self.handles.swap_remove(real);
            }
        }
        answer.status.into()
    }
    fn replace(&mut self, pick: usize, page: u64) -> i64 {
        if self.handles.is_empty() {
            return 0;
        }
        let index = pick % self.handles.len();
        let handle = self.handles[index];
        if self.gone(handle.who) || !handle.host || handle.at == 0 {
            return 0;
        }
        let request = UnmapAndReplace {
            host_addr: handle.at,
            new_addr: page << 12,
            handle: handle.handle,
            status: 99,
            pad: 0,
        };
        let status = self
            .request(handle.who, op::UNMAP_AND_REPLACE, request)
            .status;
        if status == gntst::OKAY {
            self.handles[index].host = false;
            if !self.handles[index].device {
                self.handles.swap_remove(index);
            }
        }
        status.into()
    }
    fn write(&self, who: usize, page: u64, value: u64, whose: u16) -> i64 {
        let mut words = [Fake::leaf_address(who, page.min(511)), value];
        let guest = FakeGuest::new(VA, words.as_mut_bytes());
        match philoxen_paging::mmu_update(
            &self.fake.cx(who, 0),
            &guest,
            [VA, 1, 0, whose.into()],
            &mut Budget::unlimited(),
        ) {
            Flow::Done(value) => value,
            Flow::Again(_) => panic!("one request"),
        }
    }
    fn decrease(&self, who: usize, frame: u64) -> i64 {
        let mut words = [VA + 32, 1, 0, u64::from(DomId::SELF.0), frame];
        let guest = FakeGuest::new(VA, words.as_mut_bytes());
        let args = [memory_op::DECREASE_RESERVATION, VA];
        match philoxen_paging::memory_op(
            &self.fake.cx(who, 0),
            &guest,
            args,
            &mut Budget::unlimited(),
        ) {
            Flow::Done(value) => value,
            Flow::Again(_) => panic!("one extent"),
        }
    }
    pub fn check(&self) {
        let fake = self.fake;
        fake.check(self.handles.iter().map(|h| (Mfn(h.mfn), h.write)));
        for who in 0..DOMAINS {
            let mine = || self.handles.iter().filter(move |h| h.who == who);
            assert_eq!(fake.tables[who].handles_in_use(), mine().count() as u32);
            let mut used: Vec<u32> = self
                .handles
                .iter()
                .filter(|h| h.from == who)
                .map(|h| h.gref)
                .collect();
            used.sort_unstable();
            used.dedup();
            assert_eq!(fake.tables[who].entries_in_use(), used.len() as u32);
            if !self.gone(who) {
                self.check_marks(who);
            }
        }
        for stale in fake.tlb.lock().iter() {
            let owned = fake
                .frame(stale.mfn)
                .owner()
                .is_owned_by(DomId(stale.domain as u16));
            // Domain 0 may map frames of others without grants.
            let held = self.handles.iter().any(|h| {
                h.who == stale.domain
                    && h.mfn == stale.mfn
                    && h.host | h.device
                    && (h.write || !stale.writable)
            });
            let free = !fake.frame(stale.mfn).owner().is_guest();
            let orphan = fake.frame(stale.mfn).owner().is_owned_by(DomId::INVALID);
            assert!(
                owned || held || free || orphan || stale.domain == 0 || self.gone(stale.domain),
                "{stale:?}"
            );
        }
        for who in (1..DOMAINS).filter(|&who| !self.gone(who)) {
            for page in 0..512 {
                let raw = fake.leaf(who, page);
                let mfn = entry::mfn(raw).0;
                if raw & P == 0 || fake.frame(mfn).owner().is_owned_by(DomId(who as u16)) {
                    continue;
                }
                for need in [P, P | RW] {
                    let is = |p: u64| {
                        fake.leaf(who, p) & need == need && entry::mfn(fake.leaf(who, p)).0 == mfn
                    };
                    let leaves = (0..512).filter(|&p| is(p)).count();
                    let same =
                        |h: &&Handle| h.who == who && h.mfn == mfn && (need & RW == 0 || h.write);
                    assert!(
                        leaves <= self.handles.iter().filter(same).count(),
                        "leaf {raw:#x}"
                    );
                }
            }
        }
    }
    fn check_marks(&self, who: usize) {
        let fake = self.fake;
        for gref in GREFS {
            let uses = || {
                self.handles
                    .iter()
                    .filter(|h| h.from == who && h.gref == gref)
            };
            let mut expected = if uses().count() == 0 { 0 } else { gtf::READING };
            if uses().any(|h| h.write) {
                expected |= gtf::WRITING;
            }
            if fake.tables[who].version() == 2 {
                assert_eq!(status(fake, who, gref), expected);
            } else if !self.scribbled.contains_key(&(who, gref)) {
                let marks = fake.entry_v1(who, gref).load(Ordering::SeqCst) as u16
                    & (gtf::READING | gtf::WRITING);
                assert_eq!(marks, expected, "entry {gref} of {who}");
            }
        }
    }
    /// Entries that nobody uses and the granter writes anew show true marks from then on.
    pub fn forget(&mut self, op: &Op) {
        if let Op::Grant {
            who, gref, flags, ..
        } = *op
            && flags & (gtf::READING | gtf::WRITING) == 0
            && !self.handles.iter().any(|h| h.from == who && h.gref == gref)
        {
            self.scribbled.remove(&(who, gref));
        }
    }
    pub fn finish(mut self, order: [usize; DOMAINS]) {
        for who in order {
            if !self.gone(who) {
                self.fake.destroy(who);
            }
            self.handles.retain(|handle| handle.who != who);
            self.check();
        }
        for table in &self.fake.tables {
            assert_eq!((table.entries_in_use(), table.handles_in_use()), (0, 0));
        }
        // What the domains began with, what they were given since, and their tables: all is free.
        let free = self.fake.buddy.lock().free_frames();
        assert_eq!(free, 64 + DOMAINS as u64 * EACH);
    }
}
