// SPDX-License-Identifier: MIT OR Apache-2.0
//! `GNTTABOP_unmap_grant_ref` and `GNTTABOP_unmap_and_replace`, in lots of up to [`LOT`] elements.
//!
//! First all leaves of a lot are removed, then TLBs are flushed once, and only then are the frames' references and the
//! pins dropped (XSA-218).

use crate::host::{Host, Request};
use crate::map::{leaf_at, leaf_status};
use crate::maptrack::Mapping;
use crate::table::GrantTable;
use arrayvec::ArrayVec;
use philoxen_abi::grant::{UnmapAndReplace, UnmapGrantRef, gntst};
use philoxen_paging::grant::{self as leaf, Leaf};
use philoxen_paging::{Domains, Flush, FlushScope};

/// Elements between two flushes.
pub(crate) const LOT: usize = 32;

/// Uses that were taken out of a handle, and whose leaf is gone.
#[derive(Debug)]
struct Ended {
    handle: u32,
    mapping: Mapping,
}

/// Elements whose leaves are gone and whose references are not.
#[derive(Debug, Default)]
pub(crate) struct Lot {
    ended: ArrayVec<Ended, LOT>,
    flush: bool,
}

/// What to end.
#[derive(Clone, Copy, Debug)]
struct End {
    handle: u32,
    /// Address of the leaf, or 0.
    host: u64,
    /// Address for devices, or 0.
    device: u64,
    /// Address of the entry that takes the leaf's place.
    replace: Option<u64>,
}

/// First half of one element; the lot has room.
#[inline]
pub(crate) fn unmap<M: Host, D: Domains>(
    request: &Request<'_, M, D>,
    lot: &mut Lot,
    op: &mut UnmapGrantRef,
) {
    let end = End {
        handle: op.handle,
        host: op.host_addr,
        device: op.dev_bus_addr,
        replace: None,
    };
    op.status = begin(request, lot, end).err().unwrap_or(gntst::OKAY);
}

/// First half of one element; the lot has room.
pub(crate) fn unmap_and_replace<M: Host, D: Domains>(
    request: &Request<'_, M, D>,
    lot: &mut Lot,
    op: &mut UnmapAndReplace,
) {
    let end = End {
        handle: op.handle,
        host: op.host_addr,
        device: 0,
        replace: (op.new_addr != 0).then_some(op.new_addr),
    };
    op.status = begin(request, lot, end).err().unwrap_or(gntst::OKAY);
}

fn begin<M: Host, D: Domains>(
    request: &Request<'_, M, D>,
    lot: &mut Lot,
    end: End,
) -> Result<(), i16> {
    let maptrack = &request.own.maptrack;
    let mapping = maptrack
        .lock()
        .claim(end.handle, end.host != 0, end.device != 0)
        .ok_or(gntst::BAD_HANDLE)?;
    let removed = remove(request, &mapping, end);
    let uses = mapping.uses;
    let ended = Ended {
        handle: end.handle,
        mapping,
    };
    // A lot never has more elements than it holds.
    let room = removed.is_err() || lot.ended.try_push(ended).is_ok();
    if removed.is_err() || !room {
        maptrack.lock().restore(end.handle, uses);
        return Err(removed.err().unwrap_or(gntst::GENERAL_ERROR));
    }
    lot.flush |= uses.host;
    Ok(())
}

fn remove<M: Host, D: Domains>(
    request: &Request<'_, M, D>,
    mapping: &Mapping,
    end: End,
) -> Result<(), i16> {
    // Each use is ended only by its own address (XSA-224).
    if mapping.uses.device && end.device != mapping.mfn.addr() {
        return Err(gntst::BAD_DEV_ADDR);
    }
    if !mapping.uses.host {
        return Ok(());
    }
    let leaf = Leaf {
        mfn: mapping.mfn,
        writable: mapping.uses.write,
    };
    let result = match end.replace {
        Some(_) if mapping.by_entry => return Err(gntst::GENERAL_ERROR),
        Some(new) => leaf::replace_leaf(request.cx, end.host, leaf, new),
        None => leaf::unmap_leaf(request.cx, leaf_at(end.host, mapping.by_entry), leaf),
    };
    result.map_err(|errno| leaf_status(errno, mapping.by_entry))
}

impl Lot {
    /// True if no other element fits.
    pub fn is_full(&self) -> bool {
        self.ended.is_full()
    }
    /// Second half of all elements.
    pub fn complete<M: Host, D: Domains>(&mut self, request: &Request<'_, M, D>) {
        let machine = request.cx.machine;
        if core::mem::take(&mut self.flush) {
            machine.flush_tlb(request.cx.domain, FlushScope::Domain, Flush::All);
        }
        for Ended { handle, mapping } in self.ended.drain(..) {
            let last = request.own.maptrack.lock().finish(handle);
            if last {
                GrantTable::put_frame(machine, mapping.mfn, mapping.uses.write);
            }
            mapping.granter.unpin(machine, mapping.gref, mapping.uses);
        }
    }
}
