// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changing one entry of a live table.
//!
//! The caller holds a typed reference to the table. The order is always: take what the new entry needs, store it
//! atomically, release what the old entry held. A leaf that keeps its frame and writability moves no counts; one
//! that only changes its writability moves the reference between the two counts.

use crate::entry::{self, A, ADDR, CACHE, D, P, RW};
use crate::frame::Frame;
use crate::machine::Machine;
use crate::validate::{Pages, Stop, Tables, put_flat, put_frame, put_leaf, put_typed};
use crate::word::{Get, Kind, Put, TypeWord};
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{Errno, Mfn, Result};

/// Attempts against concurrent changes of the same entry before `EAGAIN`.
const TRIES: u32 = 64;

/// How the new value meets the old one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Replace whatever is there.
    Replace,
    /// Replace, keeping accessed and dirty bits.
    PreserveAd,
    /// Replace exactly this value, or fail with `EAGAIN`.
    Exact(u64),
}

#[inline]
fn swap(slot: &AtomicU64, old: u64, new: u64) -> core::result::Result<u64, u64> {
    slot.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
}

#[inline]
const fn merged(mode: Mode, old: u64, new: u64) -> u64 {
    match mode {
        Mode::PreserveAd => new | old & (A | D),
        Mode::Replace | Mode::Exact(_) => new,
    }
}

/// Stores `new` by `mode` into a slot for which references are settled by the caller; returns the old value.
#[inline]
fn store(slot: &AtomicU64, new: u64, mode: Mode) -> Result<u64> {
    match mode {
        Mode::Replace => Ok(slot.swap(new, Ordering::AcqRel)),
        Mode::Exact(old) => swap(slot, old, new).map_err(|_| Errno::EAGAIN),
        Mode::PreserveAd => {
            let mut old = slot.load(Ordering::Acquire);
            for _ in 0..TRIES {
                match swap(slot, old, merged(mode, old, new)) {
                    Ok(old) => return Ok(old),
                    Err(now) => old = now,
                }
            }
            Err(Errno::EAGAIN)
        }
    }
}

impl<M: Machine> Tables<'_, M> {
    /// Changes an L1 entry and returns the old one.
    #[inline]
    pub(crate) fn update_l1(
        &self,
        slot: &AtomicU64,
        raw: u64,
        mode: Mode,
        pages: Pages,
    ) -> Result<u64> {
        if raw & P == 0 {
            let old = store(slot, raw, mode)?;
            put_leaf(self.machine, old);
            return Ok(old);
        }
        let old = match mode {
            Mode::Exact(old) => old,
            Mode::Replace | Mode::PreserveAd => slot.load(Ordering::Acquire),
        };
        if old & P != 0
            && (old ^ raw) & ADDR == 0
            && let Some(old) = self.update_same_frame(slot, old, raw, mode, pages)
        {
            return Ok(old);
        }
        let new = self.take_leaf(raw, pages)?;
        match store(slot, new, mode) {
            Ok(old) => {
                put_leaf(self.machine, old);
                Ok(old)
            }
            Err(errno) => {
                put_leaf(self.machine, new);
                Err(errno)
            }
        }
    }

    /// A leaf that keeps its frame. `None` if the general way must be taken; nothing has then changed.
    #[inline]
    fn update_same_frame(
        &self,
        slot: &AtomicU64,
        old: u64,
        raw: u64,
        mode: Mode,
        pages: Pages,
    ) -> Option<u64> {
        // Cacheability depends on the frame's class: leave changes of it to the general way.
        if (old ^ raw) & CACHE != 0 {
            return None;
        }
        let new = merged(mode, old, (raw | entry::US) & !entry::G);
        if (old ^ raw) & RW == 0 {
            return swap(slot, old, new).ok();
        }
        let frame = self.machine.frames().get(entry::mfn(raw))?;
        if !frame.owner().is_guest() {
            return None;
        }
        if raw & RW == 0 {
            if !frame.general_room() {
                return None;
            }
            let old = swap(slot, old, new).ok()?;
            self.downgrade(entry::mfn(raw), frame);
            return Some(old);
        }
        let Pages::Of(domain) = pages else {
            return None;
        };
        if !frame.owner().is_owned_by(domain) {
            return None;
        }
        let transferred = self.upgrade(frame)?;
        match (swap(slot, old, new), transferred) {
            (Ok(old), true) => return Some(old),
            (Ok(old), false) => {
                put_frame(self.machine, entry::mfn(raw), frame);
                return Some(old);
            }
            (Err(_), true) => frame.get_again(),
            (Err(_), false) => {}
        }
        put_flat(self.machine, entry::mfn(raw), frame);
        None
    }

    /// Turns the writable reference of a leaf into a general one, after the leaf became read-only.
    #[inline]
    fn downgrade(&self, mfn: Mfn, frame: &Frame) {
        loop {
            // As the last typed reference goes, the general one that the typed ones share becomes the leaf's.
            if frame.retire(TypeWord::idle(Kind::Writable, self.machine.tlb_clock())) {
                return;
            }
            frame.get_again();
            match frame.unshare() {
                Put::Shared(_) | Put::NotHeld => return,
                Put::Last => put_frame(self.machine, mfn, frame),
            }
        }
    }

    /// Takes a writable reference for a leaf that holds a general one. `Some(true)`: the leaf's general reference
    /// has become that of the typed ones.
    #[inline]
    fn upgrade(&self, frame: &Frame) -> Option<bool> {
        if frame.share(Kind::Writable) {
            return Some(false);
        }
        match frame.claim(Kind::Writable) {
            Get::Share(_) => Some(false),
            Get::Claim { flush, .. } => {
                if let Some(stamp) = flush {
                    self.machine.flush_since(stamp);
                }
                frame.set_kind(TypeWord::live(Kind::Writable));
                Some(true)
            }
            Get::Busy | Get::Reap | Get::Mismatch | Get::Overflow => None,
        }
    }

    /// Changes an entry of a table of `kind` L2 to L4. `Ok(Some(mfn))`: done, and the invalidation of table `mfn`
    /// is unfinished.
    pub(crate) fn update_table(
        &self,
        slot: &AtomicU64,
        kind: Kind,
        index: usize,
        raw: u64,
        mode: Mode,
        budget: &mut Budget,
    ) -> core::result::Result<Option<Mfn>, Stop> {
        if kind == Kind::L4 && entry::is_hypervisor_slot(index) {
            return Err(Errno::EINVAL.into());
        }
        let below = kind.below().ok_or(Errno::EINVAL)?;
        let mut new = raw;
        if entry::is_present(raw) {
            new = entry::table_entry(raw)?;
            let old = slot.load(Ordering::Acquire);
            if old & P != 0
                && (old ^ raw) & ADDR == 0
                && swap(slot, old, merged(mode, old, new)).is_ok()
            {
                return Ok(None);
            }
            self.take_table(entry::mfn(raw), below, budget)?;
        }
        match store(slot, new, mode) {
            Ok(old) => Ok(self.put_child(old, budget)),
            Err(errno) => {
                // The table taken above was live or is now: one reference less, and no budget to wait for.
                self.put_child(new, budget);
                Err(errno.into())
            }
        }
    }

    fn put_child(&self, entry: u64, budget: &mut Budget) -> Option<Mfn> {
        if !entry::is_present(entry) {
            return None;
        }
        let mfn = entry::mfn(entry);
        let frame = self.machine.frames().get(mfn)?;
        put_typed(self.machine, mfn, frame, budget)
            .err()
            .map(|_| mfn)
    }
}
