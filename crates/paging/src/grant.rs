// SPDX-License-Identifier: MIT OR Apache-2.0
//! Leaf entries placed and removed on behalf of a grant (xen/grant_table.h).
//!
//! Such a leaf is like any other: it holds its own reference to the frame, taken from the frame's real owner when it is
//! placed and dropped by whoever removes it, be it an unmap, a plain write of the entry or the end of the table. The
//! grant's handle holds another one. So neither can lose or drop the other's, whatever a guest does to its tables
//! between map and unmap. A domain without privilege cannot make a second leaf to a foreign frame from one it has, so
//! there are never more of them than handles. A leaf goes only if it still is what was mapped, writability included
//! (XSA-227, XSA-234).

use crate::entry::{self, A, ADDR, D as DIRTY, KERNEL, NX, P, RW, US};
use crate::log;
use crate::machine::{Cx, DomainMemory, Domains, Machine};
use crate::reservation::own;
use crate::update::Mode;
use crate::va_mapping::lookup_l1;
use crate::validate::{INVALID_PFN, Pages, Tables, put_leaf, put_typed, share_owned};
use crate::word::Kind;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Mfn, PAGE_SHIFT, Result};

/// Attempts against concurrent changes of the same entry.
const TRIES: u32 = 16;
/// Lowest of the bits of an entry that are the guest's own.
const AVAIL_SHIFT: u32 = 9;
/// The three bits that are the guest's own.
const AVAIL_MASK: u64 = 7;

/// Where the leaf is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeafAt {
    /// The entry that maps this address in the caller's kernel address space.
    Address(u64),
    /// The entry at this machine address, in one of the caller's live L1 tables.
    Entry(u64),
}

/// A leaf for a granted frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The frame.
    pub mfn: Mfn,
    /// May be written through.
    pub writable: bool,
}

impl Leaf {
    /// A kernel's leaf, whatever part of the address space it is for: one for a domain's own frame must stay as it is.
    const fn raw(self, avail: u32) -> u64 {
        let rw = if self.writable { RW | DIRTY } else { 0 };
        let avail = (avail as u64 & AVAIL_MASK) << AVAIL_SHIFT;
        (self.mfn.0 << PAGE_SHIFT) & ADDR | P | US | KERNEL | A | NX | rw | avail
    }
    const fn is(self, raw: u64) -> bool {
        entry::is_present(raw)
            && entry::mfn(raw).0 == self.mfn.0
            && (raw & RW != 0) == self.writable
    }
}

/// Maps `owner`'s frame at `at`, replacing what is there; `avail` goes to the entry's bits that are the guest's own.
///
/// # Errors
/// `EINVAL`: no live L1 table of the caller's there, or the frame is not `owner`'s or may not be mapped so.
/// `EAGAIN`: another processor holds it up.
pub fn map_leaf<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    at: LeafAt,
    leaf: Leaf,
    owner: DomId,
    avail: u32,
) -> Result<()> {
    with_slot(cx, at, |tables, slot| {
        tables
            .update_l1(slot, leaf.raw(avail), Mode::Replace, Pages::Of(owner))
            .map(|_| ())
    })
}

/// Removes the leaf at `at` if it still is `leaf`. TLBs are the caller's business.
///
/// # Errors
/// `EINVAL`: there is no such leaf. `EAGAIN`: the entry keeps changing.
pub fn unmap_leaf<M: Machine, D: Domains>(cx: &Cx<'_, M, D>, at: LeafAt, leaf: Leaf) -> Result<()> {
    with_slot(cx, at, |tables, slot| {
        for _ in 0..TRIES {
            let old = slot.load(Ordering::Acquire);
            if !leaf.is(old) {
                return Err(Errno::EINVAL);
            }
            // The processor may set accessed and dirty bits meanwhile.
            match tables.update_l1(slot, 0, Mode::Exact(old), Pages::Of(cx.domain.id())) {
                Err(Errno::EAGAIN) => cx.machine.relax(),
                result => return result.map(|_| ()),
            }
        }
        Err(Errno::EAGAIN)
    })
}

/// As [`unmap_leaf`], and moves the entry of address `new` into the leaf's place, leaving nothing at `new`.
///
/// # Errors
/// As [`unmap_leaf`]; `EINVAL` also if `new` has no entry.
pub fn replace_leaf<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    at: u64,
    leaf: Leaf,
    new: u64,
) -> Result<()> {
    if at >> PAGE_SHIFT == new >> PAGE_SHIFT {
        return Err(Errno::EINVAL);
    }
    with_slot(cx, LeafAt::Address(new), |_, from| {
        with_slot(cx, LeafAt::Address(at), |_, slot| {
            // The same table may be mapped twice: an entry must not replace itself.
            if core::ptr::eq(from, slot) {
                return Err(Errno::EINVAL);
            }
            if !leaf.is(slot.load(Ordering::Acquire)) {
                return Err(Errno::EINVAL);
            }
            // The entry moves with its reference: a leaf is as good in one of the caller's tables as in another.
            let moved = from.swap(0, Ordering::AcqRel);
            let result = exchange(cx, slot, leaf, moved);
            match result {
                Ok(old) => put_leaf(cx.machine, old),
                Err(_) => {
                    let back = from.compare_exchange(0, moved, Ordering::AcqRel, Ordering::Relaxed);
                    if back.is_err() {
                        put_leaf(cx.machine, moved);
                    }
                }
            }
            result.map(|_| ())
        })
    })
}

fn exchange<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    slot: &AtomicU64,
    leaf: Leaf,
    new: u64,
) -> Result<u64> {
    for _ in 0..TRIES {
        let old = slot.load(Ordering::Acquire);
        if !leaf.is(old) {
            return Err(Errno::EINVAL);
        }
        if slot
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            return Ok(old);
        }
        cx.machine.relax();
    }
    Err(Errno::EAGAIN)
}

/// Calls `work` with the entry at `at`, holding a reference to its live L1 table.
fn with_slot<M: Machine, D: Domains, R>(
    cx: &Cx<'_, M, D>,
    at: LeafAt,
    work: impl FnOnce(Tables<'_, M>, &AtomicU64) -> Result<R>,
) -> Result<R> {
    let (table, index) = match at {
        LeafAt::Address(va) => {
            let root = cx.roots.kernel().ok_or(Errno::EINVAL)?;
            lookup_l1(cx.machine, root, va).ok_or(Errno::EINVAL)?
        }
        // An entry lies on an eight-byte boundary (XSA-227).
        LeafAt::Entry(address) if address & 7 == 0 => {
            (Mfn::containing(address), (address >> 3) as usize & 511)
        }
        LeafAt::Entry(_) => return Err(Errno::EINVAL),
    };
    let frame = cx.machine.frames().get(table).ok_or(Errno::EINVAL)?;
    if !share_owned(cx.machine, table, frame, Kind::L1, cx.domain.id())? {
        return Err(Errno::EINVAL);
    }
    let result = match cx.machine.words(table).get(index) {
        Some(slot) => work(Tables::new(cx.machine, cx.domain), slot),
        None => Err(Errno::EINVAL),
    };
    log::written(cx.machine, frame);
    if put_typed(cx.machine, table, frame, &mut Budget::unlimited()).is_err() {
        cx.roots.set_deferred(Some(table));
    }
    result
}

/// Takes a frame that nothing refers to but `from`'s allocation, and charges `to` for it: the first half of a transfer.
/// No translation to it is left in any TLB. Nobody owns it until [`finish_transfer`].
///
/// # Errors
/// `EINVAL` if the frame is not `from`'s or in use; `ENOMEM` if `to` may not have it. Nothing has then changed.
pub fn begin_transfer<M: Machine>(
    machine: M,
    from: &DomainMemory,
    to: &DomainMemory,
    mfn: Mfn,
) -> Result<()> {
    let frame = machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
    if !to.charge(1) {
        return Err(Errno::ENOMEM);
    }
    if !frame.steal(from.id()) {
        to.uncharge(1);
        return Err(Errno::EINVAL);
    }
    from.uncharge(1);
    machine.flush_since(machine.tlb_clock());
    machine.m2p_set(mfn, INVALID_PFN);
    Ok(())
}

/// Gives a frame from [`begin_transfer`] to `to`, with its contents.
pub fn finish_transfer<M: Machine>(machine: M, to: &DomainMemory, mfn: Mfn) {
    own(machine, to, mfn, 1);
}
