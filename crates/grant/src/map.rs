// SPDX-License-Identifier: MIT OR Apache-2.0
//! `GNTTABOP_map_grant_ref`.
//!
//! A handle is reserved, the grant pinned, the leaf placed, and then the handle made known: each step undoes those
//! before it if it fails, and the status says so (XSA-316).

use crate::entry::Want;
use crate::host::{Host, Request};
use crate::maptrack::Mapping;
use crate::table::{GrantTable, Use};
use alloc::sync::Arc;
use philoxen_abi::grant::{MapGrantRef, gntst, map as flag};
use philoxen_abi::{DomId, Errno, Mfn};
use philoxen_paging::Domains;
use philoxen_paging::grant::{self as leaf, Leaf, LeafAt};

/// Carries out one element and fills in its results.
#[inline]
pub(crate) fn map<M: Host, D: Domains>(request: &mut Request<'_, M, D>, op: &mut MapGrantRef) {
    op.status = match try_map(request, op) {
        Ok((handle, mfn)) => {
            op.handle = handle;
            op.dev_bus_addr = mfn.addr();
            gntst::OKAY
        }
        Err(status) => status,
    };
}

fn try_map<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    op: &MapGrantRef,
) -> Result<(u32, Mfn), i16> {
    let uses = Use {
        host: op.flags & flag::HOST_MAP != 0,
        device: op.flags & flag::DEVICE_MAP != 0,
        write: op.flags & flag::READONLY == 0,
    };
    if !uses.host && !uses.device {
        return Err(gntst::BAD_GNTREF);
    }
    let own = request.own;
    let granter = request.table(DomId(op.dom))?.clone();
    let handle = own.maptrack.lock().reserve().ok_or(gntst::NO_SPACE)?;
    match place(request, op, &granter, uses) {
        Ok(mfn) => {
            let mapping = Mapping {
                granter,
                gref: op.gref,
                mfn,
                uses,
                by_entry: op.flags & flag::CONTAINS_PTE != 0,
            };
            own.maptrack.lock().publish(handle, mapping);
            Ok((handle, mfn))
        }
        Err(status) => {
            own.maptrack.lock().cancel(handle);
            Err(status)
        }
    }
}

/// Pins the grant and places the leaf, if there is to be one.
fn place<M: Host, D: Domains>(
    request: &Request<'_, M, D>,
    op: &MapGrantRef,
    granter: &Arc<GrantTable>,
    uses: Use,
) -> Result<Mfn, i16> {
    let cx = request.cx;
    let want = Want {
        user: cx.domain.id(),
        write: uses.write,
        whole: true,
    };
    let pinned = granter.acquire(cx.machine, op.gref, want, uses)?;
    if !uses.host {
        return Ok(pinned.mfn);
    }
    let by_entry = op.flags & flag::CONTAINS_PTE != 0;
    let leaf = Leaf {
        mfn: pinned.mfn,
        writable: uses.write,
    };
    let avail = op.flags >> flag::GUEST_AVAIL_SHIFT;
    let at = leaf_at(op.host_addr, by_entry);
    match leaf::map_leaf(cx, at, leaf, granter.domain(), avail) {
        Ok(()) => Ok(pinned.mfn),
        Err(errno) => {
            GrantTable::put_frame(cx.machine, pinned.mfn, uses.write);
            granter.unpin(cx.machine, op.gref, uses);
            Err(leaf_status(errno, by_entry))
        }
    }
}

/// Where a leaf is, by how its address was given.
pub(crate) const fn leaf_at(address: u64, by_entry: bool) -> LeafAt {
    if by_entry {
        LeafAt::Entry(address)
    } else {
        LeafAt::Address(address)
    }
}

/// Status of a leaf that could not be placed or removed.
pub(crate) const fn leaf_status(errno: Errno, by_entry: bool) -> i16 {
    match errno {
        Errno::EAGAIN => gntst::EAGAIN,
        _ if by_entry => gntst::GENERAL_ERROR,
        _ => gntst::BAD_VIRT_ADDR,
    }
}
