// SPDX-License-Identifier: MIT OR Apache-2.0
//! What grant tables need from the machine and the domain list, and how big they may be.

use crate::table::GrantTable;
use alloc::sync::Arc;
use philoxen_abi::grant::gntst;
use philoxen_abi::{DomId, Errno, Mfn};
use philoxen_paging::{Cx, DomainMemory, Domains, Machine};

/// Most frames a table may be given.
pub const MAX_FRAMES: u32 = 1024;
/// Most maptrack frames that can be given: 2^22 handles.
pub const MAX_MAPTRACK_FRAMES: u32 = 1 << 14;

/// The machine and the domains, as this crate sees them.
pub trait Host: Machine {
    /// The grant table of a live domain.
    fn table(&self, id: DomId) -> Option<Arc<GrantTable>>;
    /// Copies `len` bytes within domains' frames; each side is a frame and an offset, and lies within that frame. The
    /// caller holds references to both frames.
    fn copy(&self, to: (Mfn, u64), from: (Mfn, u64), len: u64);
    /// The last use of anything that a destroyed domain had granted has ended.
    fn released(&self, granter: DomId);
}

/// How big a domain's tables may become, and of what version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Frames of the table, up to [`MAX_FRAMES`].
    pub grant_frames: u32,
    /// Frames for handles, of [`crate::maptrack::PER_FRAME`] each; up to [`MAX_MAPTRACK_FRAMES`].
    pub maptrack_frames: u32,
    /// Highest version of the entries, 1 or 2; 0 for a domain that can grant nothing.
    pub max_version: u32,
}

impl Limits {
    /// What a domain gets that did not ask for anything else (`max_grant_frames`, `max_maptrack_frames` of -1).
    pub const DEFAULT: Self = Self {
        grant_frames: 64,
        maptrack_frames: 1024,
        max_version: 2,
    };

    /// What the toolstack asked for; `None` leaves it at the default. Out of range is cut to what is possible.
    pub fn wanted(grant_frames: Option<u32>, maptrack_frames: Option<u32>, version: u32) -> Self {
        let frames = grant_frames.unwrap_or(Self::DEFAULT.grant_frames);
        let maptrack = maptrack_frames.unwrap_or(Self::DEFAULT.maptrack_frames);
        Self {
            grant_frames: if version == 0 {
                0
            } else {
                frames.min(MAX_FRAMES)
            },
            maptrack_frames: maptrack.min(MAX_MAPTRACK_FRAMES),
            max_version: version.min(2),
        }
    }
}

/// Status of an element when a domain cannot be named.
pub(crate) const fn status_of(errno: Errno) -> i16 {
    match errno {
        Errno::EPERM => gntst::PERMISSION_DENIED,
        Errno::ESRCH => gntst::BAD_DOMAIN,
        _ => gntst::GENERAL_ERROR,
    }
}

/// The running vCPU's request: its paging context and its domain's own table.
#[derive(Debug)]
pub(crate) struct Request<'a, M, D> {
    pub cx: &'a Cx<'a, M, D>,
    pub own: &'a Arc<GrantTable>,
    /// The table used last, if it is another domain's: batches name one domain.
    pub last: Option<Arc<GrantTable>>,
}

impl<'a, M: Host, D: Domains> Request<'a, M, D> {
    pub const fn new(cx: &'a Cx<'a, M, D>, own: &'a Arc<GrantTable>) -> Self {
        Self {
            cx,
            own,
            last: None,
        }
    }
    /// The table of domain `id`, whoever asks.
    pub fn table(&mut self, id: DomId) -> Result<&Arc<GrantTable>, i16> {
        if id == self.own.domain() {
            return Ok(self.own);
        }
        if self.last.as_ref().is_none_or(|table| table.domain() != id) {
            self.last = Some(self.cx.machine.table(id).ok_or(gntst::BAD_DOMAIN)?);
        }
        self.last.as_ref().ok_or(gntst::BAD_DOMAIN)
    }
    /// Memory and table of a domain the caller may manage: itself, or any if it is privileged.
    pub fn managed(
        &mut self,
        id: DomId,
    ) -> philoxen_abi::Result<(&'a DomainMemory, &Arc<GrantTable>)> {
        let memory = self.cx.target(id)?;
        let table = self.table(memory.id()).map_err(|_| Errno::ESRCH)?;
        Ok((memory, table))
    }
}
