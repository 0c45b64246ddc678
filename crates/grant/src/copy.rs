// SPDX-License-Identifier: MIT OR Apache-2.0
//! `GNTTABOP_copy`: between frames of the caller and frames granted to it, in any combination.
//!
//! A granted side is pinned and referenced like a mapping for as long as the copy takes, and its frame and range are
//! those of the pin (XSA-500).

use crate::entry::Want;
use crate::host::{Host, Request};
use crate::table::{GrantTable, Use};
use alloc::sync::Arc;
use philoxen_abi::grant::{CopyEnd, CopyRequest, copy as flag, gntst};
use philoxen_abi::{DomId, Errno, Mfn, PAGE_SIZE};
use philoxen_paging::{Domains, validate};

/// A side that is held.
#[derive(Debug)]
struct Side {
    mfn: Mfn,
    write: bool,
    /// Bytes that may be touched.
    start: u64,
    end: u64,
    grant: Option<(Arc<GrantTable>, u32)>,
}

/// Carries out one element and fills in its status.
#[inline]
pub(crate) fn copy<M: Host, D: Domains>(request: &mut Request<'_, M, D>, op: &mut CopyRequest) {
    op.status = try_copy(request, op).err().unwrap_or(gntst::OKAY);
}

fn try_copy<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    op: &CopyRequest,
) -> Result<(), i16> {
    let len = u64::from(op.len);
    let (from, to) = (u64::from(op.source.offset), u64::from(op.dest.offset));
    if from + len > PAGE_SIZE || to + len > PAGE_SIZE {
        return Err(gntst::BAD_COPY_ARG);
    }
    let machine = request.cx.machine;
    let source = hold(
        request,
        &op.source,
        op.flags & flag::SOURCE_GREF != 0,
        false,
    )?;
    let result = hold(request, &op.dest, op.flags & flag::DEST_GREF != 0, true).and_then(|dest| {
        let sound = source.covers(from, len) && dest.covers(to, len);
        if sound {
            machine.copy((dest.mfn, to), (source.mfn, from), len);
        }
        dest.release(machine);
        sound.then_some(()).ok_or(gntst::GENERAL_ERROR)
    });
    source.release(machine);
    result
}

fn hold<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    end: &CopyEnd,
    granted: bool,
    write: bool,
) -> Result<Side, i16> {
    let machine = request.cx.machine;
    let caller = request.cx.domain.id();
    if !granted {
        // Frames of others can only be named by a grant.
        if end.domid != DomId::SELF.0 {
            return Err(gntst::PERMISSION_DENIED);
        }
        let mfn = Mfn(end.frame_or_ref);
        let taken = if write {
            validate::get_page_writable(machine, mfn, caller)
        } else {
            validate::get_page(machine, mfn, caller)
        };
        return match taken {
            Ok(()) => Ok(Side {
                mfn,
                write,
                start: 0,
                end: PAGE_SIZE,
                grant: None,
            }),
            Err(Errno::EAGAIN) => Err(gntst::EAGAIN),
            Err(_) => Err(gntst::BAD_PAGE),
        };
    }
    let id = match DomId(end.domid) {
        DomId::SELF => caller,
        id => id,
    };
    let granter = request.table(id)?.clone();
    let gref = end.frame_or_ref as u32;
    let want = Want {
        user: caller,
        write,
        whole: false,
    };
    let pinned = granter.acquire(machine, gref, want, host_use(write))?;
    let start = u64::from(pinned.start);
    Ok(Side {
        mfn: pinned.mfn,
        write,
        start,
        end: start + u64::from(pinned.len),
        grant: Some((granter, gref)),
    })
}

const fn host_use(write: bool) -> Use {
    Use {
        host: true,
        device: false,
        write,
    }
}

impl Side {
    const fn covers(&self, offset: u64, len: u64) -> bool {
        offset >= self.start && offset + len <= self.end
    }
    fn release<M: Host>(self, machine: M) {
        GrantTable::put_frame(machine, self.mfn, self.write);
        if let Some((granter, gref)) = self.grant {
            granter.unpin(machine, gref, host_use(self.write));
        }
    }
}
