// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's grant table: the frames of its entries, the pins of those in use, and the domain's own handles.
//!
//! A pinned entry is what the hypervisor goes by: the frame, the user and the range are as they were read when the entry
//! was first pinned, whatever the granter writes into it meanwhile (XSA-500). Everything about entries, the version
//! included, is behind one lock, and nothing found there is used after it is released but by value (XSA-486, XSA-501).

use crate::entries::{Entries, status_frames};
pub use crate::entries::{Pinned, Use};
use crate::entry::{Header, Want};
use crate::host::{Host, Limits};
use crate::maptrack::{Maptrack, PER_FRAME};
use crate::sync::Mutex;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::grant::{gntst, gtf};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Mfn, Result};
use philoxen_paging::relinquish::Progress;
use philoxen_paging::reservation::{alloc_shared, unshare_frame};
use philoxen_paging::{DomainMemory, Machine, validate};

/// Frames of a table, in the order of its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// The entries.
    Shared,
    /// The status fields of version 2.
    Status,
}

/// A domain's grant table.
#[derive(Debug)]
pub struct GrantTable {
    domain: DomId,
    limits: Limits,
    entries: Mutex<Entries>,
    pub(crate) maptrack: Mutex<Maptrack>,
    cursor: AtomicU64,
}

impl GrantTable {
    /// The table of `domain`, without frames yet. Limits out of range are cut to what is possible.
    pub fn new(domain: DomId, limits: Limits) -> Self {
        let limits = Limits::wanted(
            Some(limits.grant_frames),
            Some(limits.maptrack_frames),
            limits.max_version,
        );
        Self {
            domain,
            limits,
            entries: Mutex::new(Entries::new()),
            maptrack: Mutex::new(Maptrack::new(limits.maptrack_frames * PER_FRAME)),
            cursor: AtomicU64::new(0),
        }
    }
    /// Whose table it is.
    #[inline]
    pub const fn domain(&self) -> DomId {
        self.domain
    }
    /// Its limits.
    pub const fn limits(&self) -> Limits {
        self.limits
    }
    /// Version of the entries.
    pub fn version(&self) -> u32 {
        self.entries.lock().version
    }
    /// Frames of the table now.
    pub fn frames(&self) -> u32 {
        self.entries.lock().shared.len() as u32
    }
    /// Frames of a kind there are or may be: those of the status array go with those of the entries.
    pub fn max_frames(&self, kind: FrameKind) -> u32 {
        match kind {
            FrameKind::Shared => self.limits.grant_frames,
            FrameKind::Status => status_frames(self.limits.grant_frames),
        }
    }
    /// Entries that somebody uses: a domain that is being destroyed stays until this is 0.
    pub fn entries_in_use(&self) -> u32 {
        self.entries.lock().pinned
    }
    /// Handles that the domain has.
    pub fn handles_in_use(&self) -> u32 {
        self.maptrack.lock().used()
    }
    /// The references that the domain's handles hold, each to a frame and writable or not (for an audit).
    pub fn held(&self, each: impl FnMut(Mfn, bool)) {
        self.maptrack.lock().held(each);
    }
    /// Frame `index` of a kind, if there is one; status frames only while the version is 2.
    pub fn frame(&self, kind: FrameKind, index: u32) -> Option<Mfn> {
        let entries = self.entries.lock();
        match kind {
            FrameKind::Shared => entries.shared.get(index as usize).copied(),
            FrameKind::Status if entries.version == 2 && index < entries.status_needed() => {
                entries.status.get(index as usize).copied()
            }
            FrameKind::Status => None,
        }
    }

    /// Makes the table have at least `frames` frames. `memory` is the table's domain.
    ///
    /// # Errors
    /// `EINVAL` above the limit, `ESRCH` for a domain that is gone, `ENOMEM`; some frames may then have been added.
    pub fn grow<M: Machine>(&self, machine: M, memory: &DomainMemory, frames: u32) -> Result<()> {
        if frames > self.limits.grant_frames {
            return Err(Errno::EINVAL);
        }
        // Each round adds a frame, here or on another processor.
        loop {
            let next = {
                let entries = self.entries.lock();
                if entries.dead || memory.is_dying() {
                    return Err(Errno::ESRCH);
                }
                let have = entries.shared.len() as u32;
                if have >= frames {
                    return Ok(());
                }
                let short = entries.version == 2
                    && (entries.status.len() as u32) < status_frames(have.saturating_add(1));
                if short {
                    FrameKind::Status
                } else {
                    FrameKind::Shared
                }
            };
            self.add_frame(machine, memory, next)?;
        }
    }

    /// Adds one frame, unless another processor did meanwhile. The allocation is outside the lock: it may flush TLBs.
    fn add_frame<M: Machine>(
        &self,
        machine: M,
        memory: &DomainMemory,
        kind: FrameKind,
    ) -> Result<()> {
        let mfn = alloc_shared(machine, memory).ok_or(Errno::ENOMEM)?;
        let max = self.max_frames(kind) as usize;
        let mut entries = self.entries.lock();
        let short_of_status = entries.version == 2
            && entries.status.len() < status_frames(entries.shared.len() as u32 + 1) as usize;
        let dead = entries.dead;
        let list = match kind {
            FrameKind::Shared => &mut entries.shared,
            FrameKind::Status => &mut entries.status,
        };
        let wanted = kind == FrameKind::Status || !short_of_status;
        let result = if dead {
            Err(Errno::ESRCH)
        } else if list.len() >= max || !wanted {
            Ok(false)
        } else {
            list.try_reserve(1)
                .map(|()| true)
                .map_err(|_| Errno::ENOMEM)
        };
        if result == Ok(true) {
            list.push(mfn);
            return Ok(());
        }
        drop(entries);
        unshare_frame(machine, mfn);
        result.map(|_| ())
    }

    /// Changes the version of the entries; the reserved ones survive as far as the other version can say them.
    ///
    /// # Errors
    /// `EINVAL` for a version there is not or that this domain may not have, `EBUSY` while other entries are in use,
    /// `ENOMEM`, `ESRCH` for a domain that is gone.
    pub fn set_version<M: Machine>(
        &self,
        machine: M,
        memory: &DomainMemory,
        version: u32,
    ) -> Result<()> {
        if version == 0 || version > self.limits.max_version {
            return Err(Errno::EINVAL);
        }
        loop {
            {
                let mut entries = self.entries.lock();
                if entries.dead || memory.is_dying() {
                    return Err(Errno::ESRCH);
                }
                if entries.version == version {
                    return Ok(());
                }
                if entries.pinned != entries.pinned_reserved() {
                    return Err(Errno::EBUSY);
                }
                if version == 1 || entries.status.len() as u32 >= entries.status_needed() {
                    entries.switch(machine, version);
                    return Ok(());
                }
            }
            self.add_frame(machine, memory, FrameKind::Status)?;
        }
    }

    /// Swaps two entries.
    ///
    /// # Errors
    /// `GNTST_bad_gntref`, or `GNTST_eagain` if one is in use.
    pub fn swap<M: Machine>(&self, machine: M, a: u32, b: u32) -> core::result::Result<(), i16> {
        self.entries.lock().swap(machine, a, b)
    }

    /// Pins entry `gref` for `uses` by `want.user` and takes a reference to its frame: a writable one to write.
    /// [`GrantTable::put_frame`] and [`GrantTable::unpin`], in this order, end it.
    ///
    /// # Errors
    /// `GNTST_*`.
    #[inline]
    pub fn acquire<M: Host>(
        &self,
        machine: M,
        gref: u32,
        want: Want,
        uses: Use,
    ) -> core::result::Result<Pinned, i16> {
        let pinned = self.entries.lock().pin(machine, gref, want, uses)?;
        let taken = if uses.write {
            validate::get_page_writable(machine, pinned.mfn, self.domain)
        } else {
            validate::get_page(machine, pinned.mfn, self.domain)
        };
        match taken {
            Ok(()) => Ok(pinned),
            Err(errno) => {
                self.unpin(machine, gref, uses);
                Err(match errno {
                    Errno::EAGAIN => gntst::EAGAIN,
                    _ => gntst::BAD_PAGE,
                })
            }
        }
    }
    /// Drops the reference to a frame that [`GrantTable::acquire`] took.
    #[inline]
    pub fn put_frame<M: Machine>(machine: M, mfn: Mfn, write: bool) {
        if write {
            validate::put_page_writable(machine, mfn);
        } else {
            validate::put_page(machine, mfn);
        }
    }
    /// Drops pins, and tells the granter if that ends its entry's use. TLBs no longer translate to the frame.
    pub fn unpin<M: Host>(&self, machine: M, gref: u32, uses: Use) {
        let last = self.entries.lock().unpin(machine, gref, uses);
        if last {
            machine.released(self.domain);
        }
    }
    /// Calls `work` with the version and the words of an entry, under the lock of the entries.
    pub(crate) fn with_words<M: Machine, R>(
        &self,
        machine: M,
        gref: u32,
        work: impl FnOnce(u32, &AtomicU64, Option<&AtomicU64>) -> core::result::Result<R, i16>,
    ) -> core::result::Result<R, i16> {
        let entries = self.entries.lock();
        if entries.dead {
            return Err(gntst::BAD_DOMAIN);
        }
        if gref >= entries.count() {
            return Err(gntst::BAD_GNTREF);
        }
        let (first, second) = entries.words(machine, gref).ok_or(gntst::BAD_GNTREF)?;
        work(entries.version, first, second)
    }

    /// The frame that an entry of the caller's own names now.
    pub(crate) fn granted_frame<M: Machine>(
        &self,
        machine: M,
        gref: u32,
    ) -> core::result::Result<u64, i16> {
        self.with_words(machine, gref, |_, first, second| {
            Ok(match second {
                Some(second) => second.load(Ordering::Acquire),
                None => first.load(Ordering::Acquire) >> 32,
            })
        })
    }

    /// Destruction, on the granter's side: nothing can be granted any more, and the hypervisor lets go of the shared
    /// frames. What others still use stays pinned until they are done.
    pub fn destroy<M: Machine>(&self, machine: M) {
        let (shared, status) = {
            let mut entries = self.entries.lock();
            entries.dead = true;
            (
                core::mem::take(&mut entries.shared),
                core::mem::take(&mut entries.status),
            )
        };
        for mfn in shared.into_iter().chain(status) {
            unshare_frame(machine, mfn);
        }
    }

    /// Destruction, on the side of a domain that maps: ends all its mappings. Its vCPUs run no more and no processor
    /// has one of its roots loaded; the leaves go with its page tables.
    pub fn release_mappings<M: Host>(&self, machine: M, budget: &mut Budget) -> Progress {
        let mut handle = self.cursor.load(Ordering::Relaxed) as u32;
        loop {
            let seized = {
                let mut maptrack = self.maptrack.lock();
                maptrack.close();
                if handle >= maptrack.len() || maptrack.used() == 0 {
                    maptrack.clear();
                    return Progress::Done;
                }
                maptrack.seize(handle)
            };
            handle += 1;
            if let Some(mapping) = seized {
                Self::put_frame(machine, mapping.mfn, mapping.uses.write);
                mapping.granter.unpin(machine, mapping.gref, mapping.uses);
                budget.spend(15);
            }
            if !budget.spend(1) {
                self.cursor.store(handle.into(), Ordering::Relaxed);
                return Progress::Yield;
            }
        }
    }
}

/// The header of an entry that accepts a transfer from `from`, if it does.
pub(crate) const fn accepts_transfer(word: u64, from: DomId) -> bool {
    let header = Header::of(word);
    header.flags == gtf::ACCEPT_TRANSFER && header.user.0 == from.0
}
