// SPDX-License-Identifier: MIT OR Apache-2.0
//! The entries of a grant table and the pins of those in use: what the table's lock is around.
//!
//! Invariant: as long as an entry is pinned, its frame, user and range are as read when it was first pinned, and its marks
//! show its pins; `pinned` is the number of pinned entries.

use crate::entry::{self, Granted, STATUS_PER_FRAME, Status, V1_PER_FRAME, V2_PER_FRAME, Want};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::Mfn;
use philoxen_abi::grant::{RESERVED_ENTRIES, gntst, gtf};
use philoxen_paging::Machine;

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

/// A table's entries.
#[derive(Debug)]
pub(crate) struct Entries {
    /// The domain is gone: nothing new is pinned, and there are no shared frames.
    pub dead: bool,
    /// Version of the entries.
    pub version: u32,
    /// Frames of the entries.
    pub shared: Vec<Mfn>,
    /// Frames of the status fields; kept when version 2 is left.
    pub status: Vec<Mfn>,
    active: Vec<Vec<Active>>,
    /// Entries that are pinned.
    pub pinned: u32,
}

/// Frames for the status fields of the entries in `frames` frames of version 2.
pub(crate) const fn status_frames(frames: u32) -> u32 {
    frames.div_ceil(STATUS_PER_FRAME / V2_PER_FRAME)
}

fn exchange(a: &AtomicU64, b: &AtomicU64) {
    let value = a.load(Ordering::Acquire);
    a.store(b.swap(value, Ordering::AcqRel), Ordering::Release);
}

impl Entries {
    /// No entries yet.
    pub const fn new() -> Self {
        Self {
            dead: false,
            version: 1,
            shared: Vec::new(),
            status: Vec::new(),
            active: Vec::new(),
            pinned: 0,
        }
    }
    /// Entries there are.
    pub const fn count(&self) -> u32 {
        let per_frame = if self.version == 2 {
            V2_PER_FRAME
        } else {
            V1_PER_FRAME
        };
        self.shared.len() as u32 * per_frame
    }
    pub const fn status_needed(&self) -> u32 {
        status_frames(self.shared.len() as u32)
    }
    /// The words of an entry; the second only in version 2.
    pub fn words<M: Machine>(
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
    #[inline]
    fn active_mut(&mut self, gref: u32) -> Option<&mut Active> {
        let index = (gref / CHUNK) as usize;
        if self.active.get(index).is_none_or(Vec::is_empty) {
            self.add_chunk(index)?;
        }
        self.active.get_mut(index)?.get_mut((gref % CHUNK) as usize)
    }
    #[cold]
    fn add_chunk(&mut self, index: usize) -> Option<()> {
        if index >= self.active.len() {
            let more = index + 1 - self.active.len();
            self.active.try_reserve(more).ok()?;
            self.active.resize_with(index + 1, Vec::new);
        }
        let chunk = self.active.get_mut(index)?;
        chunk.try_reserve_exact(CHUNK as usize).ok()?;
        chunk.resize(CHUNK as usize, Active::default());
        Some(())
    }
    pub fn pinned_reserved(&self) -> u32 {
        (0..RESERVED_ENTRIES)
            .map(|gref| u32::from(self.active(gref).is_pinned()))
            .sum()
    }

    #[inline]
    fn claim<M: Machine>(&self, machine: M, gref: u32, want: Want) -> Result<Granted, i16> {
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

    pub fn pin<M: Machine>(
        &mut self,
        machine: M,
        gref: u32,
        want: Want,
        uses: Use,
    ) -> Result<Pinned, i16> {
        if self.dead {
            return Err(gntst::BAD_DOMAIN);
        }
        if gref >= self.count() {
            return Err(gntst::BAD_GNTREF);
        }
        let was = *self.active_mut(gref).ok_or(gntst::GENERAL_ERROR)?;
        let mut now = was.with(uses).ok_or(gntst::GENERAL_ERROR)?;
        let first = !was.is_pinned();
        let whole = was.start == 0 && u64::from(was.len) == philoxen_abi::PAGE_SIZE;
        if !first && (was.user != want.user.0 || want.whole && !whole) {
            return Err(gntst::GENERAL_ERROR);
        }
        if first || want.write && !was.is_written() {
            let granted = self.claim(machine, gref, want)?;
            if first {
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
    #[inline(always)]
    pub fn unpin<M: Machine>(&mut self, machine: M, gref: u32, uses: Use) -> bool {
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
    pub fn switch<M: Machine>(&mut self, machine: M, version: u32) {
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

    /// Swaps two entries that nobody uses.
    pub fn swap<M: Machine>(&self, machine: M, a: u32, b: u32) -> Result<(), i16> {
        let limit = self.count();
        if a >= limit || b >= limit {
            return Err(gntst::BAD_GNTREF);
        }
        if self.marks(a) != 0 || self.marks(b) != 0 {
            return Err(gntst::EAGAIN);
        }
        if a == b {
            return Ok(());
        }
        let words = |gref| self.words(machine, gref).ok_or(gntst::BAD_GNTREF);
        let ((a, a2), (b, b2)) = (words(a)?, words(b)?);
        exchange(a, b);
        if let (Some(a), Some(b)) = (a2, b2) {
            exchange(a, b);
        }
        Ok(())
    }
}
