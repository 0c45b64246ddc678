// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changing one entry of a live table.
//!
//! The caller holds a typed reference to the table. The order is always: take what the new entry needs, store it
//! atomically, release what the old entry held. A leaf that keeps its frame and writability moves no counts; one
//! that only changes its writability moves the reference between the two counts.

use crate::entry::{self, A, ADDR, CACHE, D, P, RW};
use crate::log;
use crate::machine::Machine;
use crate::validate::{
    Pages, Stop, Tables, put_flat, put_frame, put_leaf, put_typed, take_writable,
};
use crate::word::Kind;
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
        let new = merged(mode, old, entry::leaf(raw));
        if (old ^ raw) & RW == 0 {
            let old = swap(slot, old, new).ok()?;
            if old & !new & D != 0 {
                log::leaf_changes(self.machine, old);
            }
            return Some(old);
        }
        let frame = self.machine.frames().get(entry::mfn(raw))?;
        if !frame.owner().is_guest() {
            return None;
        }
        if raw & RW == 0 {
            // The reference of the read-only leaf comes before the leaf: another processor may remove it at once.
            if !frame.get(frame.owner().owner()?) {
                return None;
            }
            return match swap(slot, old, new) {
                Ok(old) => {
                    log::leaf_changes(self.machine, old);
                    put_flat(self.machine, entry::mfn(raw), frame);
                    Some(old)
                }
                Err(_) => {
                    put_frame(self.machine, entry::mfn(raw), frame);
                    None
                }
            };
        }
        let Pages::Of(domain) = pages else {
            return None;
        };
        // Holds its own general reference, so that nobody frees the frame while it is claimed.
        take_writable(self.machine, entry::mfn(raw), frame, domain).ok()?;
        match swap(slot, old, new) {
            Ok(old) => {
                put_frame(self.machine, entry::mfn(raw), frame);
                Some(old)
            }
            Err(_) => {
                put_flat(self.machine, entry::mfn(raw), frame);
                None
            }
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
