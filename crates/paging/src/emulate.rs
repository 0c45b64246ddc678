// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writable page tables by emulation: a guest's write to a page that it maps read-only because it is a live L1
//! table is carried out as an entry change, with the same checks and the same atomicity as the instruction had.

use crate::entry::{self, RW};
use crate::log;
use crate::machine::{Cx, Domains, Machine};
use crate::update::Mode;
use crate::va_mapping::lookup_l1e;
use crate::validate::{Pages, Tables, put_typed, share_owned};
use crate::word::Kind;
use core::sync::atomic::Ordering;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{Errno, Mfn, Result};

/// Attempts against concurrent changes of the entry.
const TRIES: u32 = 16;

/// What the faulting instruction does to memory. Values are in the low bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PteWrite {
    /// Stores a value.
    Write(u64),
    /// Stores `new` if memory holds `old`.
    CompareExchange {
        /// Value compared with memory.
        old: u64,
        /// Value stored if it is equal.
        new: u64,
    },
    /// Swaps a value with memory.
    Exchange(u64),
}

/// The live L1 table that a write to `va` under `root` would hit: its frame, if `va` maps one of the domain's
/// read-only. `None`: the fault is the guest's own.
#[inline]
pub fn table_at<M: Machine, D: Domains>(cx: &Cx<'_, M, D>, root: Mfn, va: u64) -> Option<Mfn> {
    let (_, _, raw) = lookup_l1e(cx.machine, root, va)?;
    if !entry::is_present(raw) || raw & RW != 0 {
        return None;
    }
    let mfn = entry::mfn(raw);
    let frame = cx.machine.frames().get(mfn)?;
    (frame.owner().is_owned_by(cx.domain.id()) && frame.kind().is_live_as(Kind::L1)).then_some(mfn)
}

/// Carries out a write of `size` bytes at `offset` in the L1 table `table`. Returns what memory held there.
///
/// # Errors
/// `EINVAL` if the access is not within one entry, the frame is no live L1 of the domain, or the new entry is not
/// allowed: the fault then goes to the guest. `EAGAIN` if others keep changing the entry: let the instruction run again.
pub fn emulate_pte_write<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    table: Mfn,
    offset: u64,
    size: u32,
    access: PteWrite,
) -> Result<u64> {
    let within = (offset & 7) as u32;
    if !matches!(size, 1 | 2 | 4 | 8) || within + size > 8 || offset > 4095 {
        return Err(Errno::EINVAL);
    }
    let frame = cx.machine.frames().get(table).ok_or(Errno::EINVAL)?;
    if !share_owned(cx.machine, table, frame, Kind::L1, cx.domain.id())? {
        return Err(Errno::EINVAL);
    }
    let result = change(
        cx,
        table,
        (offset >> 3) as usize,
        (within * 8, size),
        access,
    );
    log::written(cx.machine, frame);
    if put_typed(cx.machine, table, frame, &mut Budget::unlimited()).is_err() {
        cx.roots.set_deferred(Some(table));
    }
    result
}

fn change<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    table: Mfn,
    index: usize,
    (shift, size): (u32, u32),
    access: PteWrite,
) -> Result<u64> {
    let slot = cx.machine.words(table).get(index).ok_or(Errno::EINVAL)?;
    let tables = Tables::new(cx.machine, cx.domain);
    let pages = Pages::Of(cx.domain.id());
    // A whole entry that is only replaced needs no look at the old one.
    if let (8, PteWrite::Write(new) | PteWrite::Exchange(new)) = (size, access) {
        return tables.update_l1(slot, new, Mode::Replace, pages);
    }
    let mask = (u64::MAX >> (64 - 8 * size)) << shift;
    for _ in 0..TRIES {
        let old = slot.load(Ordering::Acquire);
        let field = (old & mask) >> shift;
        let new = match access {
            PteWrite::Write(new) | PteWrite::Exchange(new) => new,
            PteWrite::CompareExchange { old: expected, new } => {
                if expected & (mask >> shift) != field {
                    return Ok(field);
                }
                new
            }
        };
        let value = old & !mask | (new << shift) & mask;
        match tables.update_l1(slot, value, Mode::Exact(old), pages) {
            Ok(_) => return Ok(field),
            Err(Errno::EAGAIN) => cx.machine.relax(),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EAGAIN)
}
