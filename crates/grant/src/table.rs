// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's grant table: the frames of its entries, the pins of those in use, and the domain's own handles.
//!
//! A pinned entry is what the hypervisor goes by: the frame, the user and the range are as they were read when the entry
//! was first pinned, whatever the granter writes into it meanwhile (XSA-500). Everything about entries, the version
//! included, is behind one lock, and nothing found there is used after it is released but by value (XSA-486, XSA-501).

use crate::entry::{
    self, Granted, Header, STATUS_PER_FRAME, Status, V1_PER_FRAME, V2_PER_FRAME, Want,
};
use crate::host::{Host, Limits};
use crate::maptrack::{Maptrack, PER_FRAME};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::grant::{RESERVED_ENTRIES, gntst, gtf};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Mfn, Result};
use philoxen_paging::relinquish::Progress;
use philoxen_paging::reservation::{alloc_shared, unshare_frame};
use philoxen_paging::{DomainMemory, Machine, validate};
use spin::Mutex;

/// Pinned entries allocated at a time.
const CHUNK: u32 = 128;

/// How a grant is used; at least one of host and device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use {
    /// By the processor.
    pub host: bool,
    /// By devices.
    pub device: bool,
    /// For writing.
    pub write: bool,
}

impl Use {
    /// Counters this use occupies.
    fn counters(self) -> impl Iterator<Item = usize> {
        let write = usize::from(self.write);
        let host = self.host.then_some(write);
        let device = self.device.then_some(2 + write);
        host.into_iter().chain(device)
    }
}

/// An entry in use. Pins: host reading, host writing, device reading, device writing.
#[derive(Clone, Copy, Default, Debug)]
struct Active {
    mfn: u32,
    pins: [u16; 4],
    user: u16,
    start: u16,
    len: u16,
}

impl Active {
    fn is_pinned(&self) -> bool {
        self.pins != [0; 4]
    }
    const fn is_written(&self) -> bool {
        let [_, host, _, device] = self.pins;
        host != 0 || device != 0
    }
    /// The entry with one more use; `None` if a counter is full.
    fn with(mut self, uses: Use) -> Option<Self> {
        for index in uses.counters() {
            let pin = self.pins.get_mut(index)?;
            *pin = pin.checked_add(1)?;
        }
        Some(self)
    }
    fn without(mut self, uses: Use) -> Self {
        for index in uses.counters() {
            if let Some(pin) = self.pins.get_mut(index) {
                debug_assert!(*pin != 0, "pin underflow");
                *pin = pin.saturating_sub(1);
            }
        }
        self
    }
    /// The marks that the shared entry carries.
    fn marks(&self) -> u16 {
        match (self.is_pinned(), self.is_written()) {
            (false, _) => 0,
            (true, false) => gtf::READING,
            (true, true) => gtf::READING | gtf::WRITING,
        }
    }
}

/// What a pin gives: the frame and the part of it that is granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pinned {
    /// The frame.
    pub mfn: Mfn,
    /// First byte.
    pub start: u16,
    /// Bytes.
    pub len: u16,
}

#[derive(Debug)]
struct Entries {
    /// The domain is gone: nothing new is pinned, and there are no shared frames.
    dead: bool,
    version: u32,
    shared: Vec<Mfn>,
    status: Vec<Mfn>,
    active: Vec<Vec<Active>>,
    /// Entries that are pinned.
    pinned: u32,
}

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
            entries: Mutex::new(Entries {
                dead: false,
                version: 1,
                shared: Vec::new(),
                status: Vec::new(),
                active: Vec::new(),
                pinned: 0,
            }),
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
        let entries = self.entries.lock();
        let limit = entries.count();
        if a >= limit || b >= limit {
            return Err(gntst::BAD_GNTREF);
        }
        if entries.marks(a) != 0 || entries.marks(b) != 0 {
            return Err(gntst::EAGAIN);
        }
        if a == b {
            return Ok(());
        }
        let words = |gref| entries.words(machine, gref).ok_or(gntst::BAD_GNTREF);
        let ((a, a2), (b, b2)) = (words(a)?, words(b)?);
        exchange(a, b);
        if let (Some(a), Some(b)) = (a2, b2) {
            exchange(a, b);
        }
        Ok(())
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
    #[inline]
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

/// Frames for the status fields of the entries in `frames` frames of version 2.
const fn status_frames(frames: u32) -> u32 {
    frames.div_ceil(STATUS_PER_FRAME / V2_PER_FRAME)
}

fn exchange(a: &AtomicU64, b: &AtomicU64) {
    let value = a.load(Ordering::Acquire);
    a.store(b.swap(value, Ordering::AcqRel), Ordering::Release);
}

impl Entries {
    /// Entries there are.
    const fn count(&self) -> u32 {
        let per_frame = if self.version == 2 {
            V2_PER_FRAME
        } else {
            V1_PER_FRAME
        };
        self.shared.len() as u32 * per_frame
    }
    const fn status_needed(&self) -> u32 {
        status_frames(self.shared.len() as u32)
    }
    /// The words of an entry; the second only in version 2.
    fn words<M: Machine>(
        &self,
        machine: M,
        gref: u32,
    ) -> Option<(&'static AtomicU64, Option<&'static AtomicU64>)> {
        if self.version == 2 {
            let mfn = *self.shared.get((gref / V2_PER_FRAME) as usize)?;
            let at = (gref % V2_PER_FRAME) as usize * 2;
            let words = machine.words(mfn);
            Some((words.get(at)?, words.get(at + 1)))
        } else {
            let mfn = *self.shared.get((gref / V1_PER_FRAME) as usize)?;
            let at = (gref % V1_PER_FRAME) as usize;
            Some((machine.words(mfn).get(at)?, None))
        }
    }
    fn status<M: Machine>(&self, machine: M, gref: u32) -> Option<Status<'static>> {
        let mfn = *self.status.get((gref / STATUS_PER_FRAME) as usize)?;
        let field = gref % STATUS_PER_FRAME;
        Some(Status {
            word: machine.words(mfn).get(field as usize / 4)?,
            shift: field % 4 * 16,
        })
    }
    fn active(&self, gref: u32) -> Active {
        self.active
            .get((gref / CHUNK) as usize)
            .and_then(|chunk| chunk.get((gref % CHUNK) as usize))
            .copied()
            .unwrap_or_default()
    }
    fn marks(&self, gref: u32) -> u16 {
        self.active(gref).marks()
    }
    /// Where the state of entry `gref` is kept, with memory for it if there is none yet.
    fn active_mut(&mut self, gref: u32) -> Option<&mut Active> {
        let index = (gref / CHUNK) as usize;
        if index >= self.active.len() {
            let more = index + 1 - self.active.len();
            self.active.try_reserve(more).ok()?;
            self.active.resize_with(index + 1, Vec::new);
        }
        let chunk = self.active.get_mut(index)?;
        if chunk.is_empty() {
            chunk.try_reserve_exact(CHUNK as usize).ok()?;
            chunk.resize(CHUNK as usize, Active::default());
        }
        chunk.get_mut((gref % CHUNK) as usize)
    }
    fn pinned_reserved(&self) -> u32 {
        (0..RESERVED_ENTRIES)
            .map(|gref| u32::from(self.active(gref).is_pinned()))
            .sum()
    }

    fn claim<M: Machine>(
        &self,
        machine: M,
        gref: u32,
        want: Want,
    ) -> core::result::Result<Granted, i16> {
        let (first, second) = self.words(machine, gref).ok_or(gntst::BAD_GNTREF)?;
        match second {
            None => entry::claim_v1(first, want),
            Some(second) => {
                let status = self.status(machine, gref).ok_or(gntst::GENERAL_ERROR)?;
                entry::claim_v2(first, second, status, want)
            }
        }
    }
    fn unmark<M: Machine>(&self, machine: M, gref: u32, marks: u16) {
        if self.version == 2 {
            if let Some(status) = self.status(machine, gref) {
                status.clear(marks);
            }
        } else if let Some((word, _)) = self.words(machine, gref) {
            entry::clear_v1(word, marks);
        }
    }

    fn pin<M: Machine>(
        &mut self,
        machine: M,
        gref: u32,
        want: Want,
        uses: Use,
    ) -> core::result::Result<Pinned, i16> {
        if self.dead {
            return Err(gntst::BAD_DOMAIN);
        }
        if gref >= self.count() {
            return Err(gntst::BAD_GNTREF);
        }
        let was = *self.active_mut(gref).ok_or(gntst::GENERAL_ERROR)?;
        let mut now = was.with(uses).ok_or(gntst::GENERAL_ERROR)?;
        if was.is_pinned() {
            let whole = was.start == 0 && u64::from(was.len) == philoxen_abi::PAGE_SIZE;
            if was.user != want.user.0 || want.whole && !whole {
                return Err(gntst::GENERAL_ERROR);
            }
            if want.write && !was.is_written() {
                self.claim(machine, gref, want)?;
            }
        } else {
            let granted = self.claim(machine, gref, want)?;
            let frames = machine.frames().len();
            if granted.frame >= frames.min(u64::from(u32::MAX)) {
                self.unmark(machine, gref, gtf::READING | gtf::WRITING);
                return Err(gntst::BAD_PAGE);
            }
            now.mfn = granted.frame as u32;
            now.user = want.user.0;
            (now.start, now.len) = (granted.start, granted.len);
            self.pinned += 1;
        }
        if let Some(active) = self.active_mut(gref) {
            *active = now;
        }
        Ok(Pinned {
            mfn: Mfn(now.mfn.into()),
            start: now.start,
            len: now.len,
        })
    }

    /// True if that was the last use of a table whose domain is gone.
    fn unpin<M: Machine>(&mut self, machine: M, gref: u32, uses: Use) -> bool {
        let Some(active) = self.active_mut(gref) else {
            return false;
        };
        let (was, now) = (*active, active.without(uses));
        *active = now;
        if was.is_pinned() && !now.is_pinned() {
            self.pinned = self.pinned.saturating_sub(1);
        }
        let over = was.marks() & !now.marks();
        if over != 0 && !self.dead {
            self.unmark(machine, gref, over);
        }
        self.dead && was.is_pinned() && self.pinned == 0
    }

    /// Rewrites the table in the other version: the reserved entries, and nothing else.
    fn switch<M: Machine>(&mut self, machine: M, version: u32) {
        let mut kept = [(0, 0); RESERVED_ENTRIES as usize];
        for (gref, kept) in (0..).zip(&mut kept) {
            *kept = match self.words(machine, gref) {
                Some((first, Some(second))) => (
                    entry::v2_to_v1(
                        first.load(Ordering::Acquire),
                        second.load(Ordering::Acquire),
                    ),
                    0,
                ),
                Some((first, None)) => entry::v1_to_v2(first.load(Ordering::Acquire)),
                None => (0, 0),
            };
        }
        for &mfn in self.shared.iter().chain(&self.status) {
            machine.zero(mfn);
        }
        self.version = version;
        for (gref, (one, two)) in (0..).zip(kept) {
            let marks = u64::from(self.marks(gref));
            match self.words(machine, gref) {
                Some((first, Some(second))) => {
                    second.store(two, Ordering::Release);
                    first.store(one, Ordering::Release);
                    if let Some(status) = self.status(machine, gref) {
                        status
                            .word
                            .fetch_or(marks << status.shift, Ordering::SeqCst);
                    }
                }
                Some((first, None)) => first.store(one | marks, Ordering::Release),
                None => {}
            }
        }
    }
}

/// The header of an entry that accepts a transfer from `from`, if it does.
pub(crate) const fn accepts_transfer(word: u64, from: DomId) -> bool {
    let header = Header::of(word);
    header.flags == gtf::ACCEPT_TRANSFER && header.user.0 == from.0
}
