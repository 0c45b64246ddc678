// SPDX-License-Identifier: MIT OR Apache-2.0
//! `GNTTABOP_copy`: between frames of the caller and frames granted to it, in any combination.
//!
//! A granted side is pinned and referenced like a mapping for as long as it is held, and its frame and range are those of
//! the pin (XSA-500). What an element names stays held until one names something else there, or the call ends: the
//! elements of a batch go along frames, several of which begin or end in the same one.

use crate::entry::Want;
use crate::host::{Host, Request};
use crate::table::{GrantTable, Use};
use alloc::sync::Arc;
use philoxen_abi::grant::{CopyEnd, CopyRequest, copy as flag, gntst};
use philoxen_abi::{DomId, Errno, Mfn, PAGE_SIZE};
use philoxen_paging::{Domains, validate};

/// How an element names a side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Name {
    domain: u16,
    granted: bool,
    frame_or_ref: u64,
}

impl Name {
    const fn new(end: &CopyEnd, granted: bool) -> Self {
        Self {
            domain: end.domid,
            granted,
            frame_or_ref: end.frame_or_ref,
        }
    }
    const fn gref(self) -> u32 {
        self.frame_or_ref as u32
    }
}

/// A side that is held.
#[derive(Debug)]
struct Side {
    name: Name,
    mfn: Mfn,
    write: bool,
    /// Bytes that may be touched.
    start: u64,
    end: u64,
    /// The table that grants it, if it is not the caller's own.
    granter: Option<Arc<GrantTable>>,
}

/// What a call holds: the sides of its last element. To be released at its end.
#[derive(Debug, Default)]
pub(crate) struct Held {
    source: Option<Side>,
    dest: Option<Side>,
}

impl Held {
    /// Lets go of both sides.
    pub fn release<M: Host>(mut self, machine: M) {
        release(machine, &mut self.source);
        release(machine, &mut self.dest);
    }
}

/// Carries out one element and fills in its status.
#[inline]
pub(crate) fn copy<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    held: &mut Held,
    op: &mut CopyRequest,
) {
    op.status = try_copy(request, held, op).err().unwrap_or(gntst::OKAY);
}

#[inline]
fn try_copy<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    held: &mut Held,
    op: &CopyRequest,
) -> Result<(), i16> {
    let len = u64::from(op.len);
    let (from, to) = (u64::from(op.source.offset), u64::from(op.dest.offset));
    if from + len > PAGE_SIZE || to + len > PAGE_SIZE {
        return Err(gntst::BAD_COPY_ARG);
    }
    let machine = request.cx.machine;
    let name = Name::new(&op.source, op.flags & flag::SOURCE_GREF != 0);
    let source = hold(request, &mut held.source, name, false)?;
    let name = Name::new(&op.dest, op.flags & flag::DEST_GREF != 0);
    let dest = hold(request, &mut held.dest, name, true)?;
    if !source.covers(from, len) || !dest.covers(to, len) {
        return Err(gntst::GENERAL_ERROR);
    }
    machine.copy((dest.mfn, to), (source.mfn, from), len);
    Ok(())
}

/// Holds what `name` names in `place`, if that is not what is there.
#[inline]
fn hold<'a, M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    place: &'a mut Option<Side>,
    name: Name,
    write: bool,
) -> Result<&'a Side, i16> {
    if place.as_ref().is_none_or(|side| side.name != name) {
        change(request, place, name, write)?;
    }
    place.as_ref().ok_or(gntst::GENERAL_ERROR)
}

/// Holds in `place` what `name` names, in the place of what is there.
#[inline(never)]
fn change<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    place: &mut Option<Side>,
    name: Name,
    write: bool,
) -> Result<(), i16> {
    release(request.cx.machine, place);
    *place = Some(if name.granted {
        Side::granted(request, name, write)?
    } else {
        Side::own(request, name, write)?
    });
    Ok(())
}

/// Lets go of what is in `place`.
fn release<M: Host>(machine: M, place: &mut Option<Side>) {
    if let Some(side) = place {
        GrantTable::put_frame(machine, side.mfn, side.write);
        if let Some(granter) = &side.granter {
            granter.unpin(machine, side.name.gref(), host_use(side.write));
        }
    }
    *place = None;
}

const fn host_use(write: bool) -> Use {
    Use {
        host: true,
        device: false,
        write,
    }
}

impl Side {
    /// A frame of the caller's.
    fn own<M: Host, D: Domains>(
        request: &Request<'_, M, D>,
        name: Name,
        write: bool,
    ) -> Result<Self, i16> {
        // Frames of others can only be named by a grant.
        if name.domain != DomId::SELF.0 {
            return Err(gntst::PERMISSION_DENIED);
        }
        let machine = request.cx.machine;
        let caller = request.cx.domain.id();
        let mfn = Mfn(name.frame_or_ref);
        let taken = if write {
            validate::get_page_writable(machine, mfn, caller)
        } else {
            validate::get_page(machine, mfn, caller)
        };
        taken.map_err(|errno| match errno {
            Errno::EAGAIN => gntst::EAGAIN,
            _ => gntst::BAD_PAGE,
        })?;
        Ok(Self {
            name,
            mfn,
            write,
            start: 0,
            end: PAGE_SIZE,
            granter: None,
        })
    }
    /// What an entry of a granter's table grants.
    fn granted<M: Host, D: Domains>(
        request: &mut Request<'_, M, D>,
        name: Name,
        write: bool,
    ) -> Result<Self, i16> {
        let caller = request.cx.domain.id();
        let id = match DomId(name.domain) {
            DomId::SELF => caller,
            id => id,
        };
        let granter = request.table(id)?.clone();
        let want = Want {
            user: caller,
            write,
            whole: false,
        };
        let pinned = granter.acquire(request.cx.machine, name.gref(), want, host_use(write))?;
        let start = u64::from(pinned.start);
        Ok(Self {
            name,
            mfn: pinned.mfn,
            write,
            start,
            end: start + u64::from(pinned.len),
            granter: Some(granter),
        })
    }
    const fn covers(&self, offset: u64, len: u64) -> bool {
        offset >= self.start && offset + len <= self.end
    }
}
