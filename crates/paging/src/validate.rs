// SPDX-License-Identifier: MIT OR Apache-2.0
//! Typed and general references to frames: taking them validates, dropping the last invalidates.
//!
//! Validation of L2 to L4 and its undoing are preemptible; an L1 (512 leaves) is not. Interrupted work stays in
//! the frame as `PARTIAL(next)` and belongs to no reference (see [`crate::word`]): up and down are the same state,
//! so taking the type again continues upwards and [`reap`] continues downwards.
//!
//! A table is never its own descendant: an entry takes a reference of the *lower* kind, and a frame has one kind.
//! That refuses linear page tables (XSA-182, 240, 286, 290) and bounds the recursion by four.

use crate::entry::{self, D, RW};
use crate::frame::Frame;
use crate::log;
use crate::machine::{DomainMemory, IoAccess, Machine};
use crate::word::{ENTRIES, Get, Kind, OwnerWord, Put, TypeWord};
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Mfn, Result};

/// Rounds of waiting for another processor before a request gives up its time slice.
const SPINS: u32 = 10_000;

/// Machine-to-phys value of a frame that no domain has.
pub const INVALID_PFN: u64 = u64::MAX;

/// Why a request did not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Out of budget, or another processor is at it: run again.
    Again,
    /// Refused.
    Failed(Errno),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// Work that is not finished; it is stored in the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfinished;

impl From<Unfinished> for Stop {
    fn from(_: Unfinished) -> Self {
        Self::Again
    }
}

/// Whose frames a new leaf may map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// A domain's.
    Of(DomId),
    /// What is not RAM (`DOMID_IO`).
    Io,
    /// The machine-to-phys table (`DOMID_XEN`); only privileged callers get this far.
    Xen,
}

/// The page tables of one domain.
#[derive(Debug)]
pub struct Tables<'a, M> {
    /// The machine.
    pub machine: M,
    /// Owner of the tables.
    pub owner: &'a DomainMemory,
}

impl<M: Copy> Clone for Tables<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: Copy> Copy for Tables<'_, M> {}

/// Drops a general reference; the last one frees the frame.
#[inline]
pub fn put_page<M: Machine>(machine: M, mfn: Mfn) {
    if let Some(frame) = machine.frames().get(mfn) {
        put_frame(machine, mfn, frame);
    }
}

#[inline]
pub(crate) fn put_frame<M: Machine>(machine: M, mfn: Mfn, frame: &Frame) {
    if frame.put() {
        free(machine, mfn, frame);
    }
}

/// Gives a frame without references back to the allocator.
#[cold]
pub(crate) fn free<M: Machine>(machine: M, mfn: Mfn, frame: &Frame) {
    frame.set_owner(OwnerWord::HYPERVISOR);
    machine.m2p_set(mfn, INVALID_PFN);
    // Read-only translations may be left in TLBs: the next user flushes if nobody has since.
    machine.free_frame(mfn, true, machine.tlb_clock());
}

/// Takes a general reference to a frame of `domain`.
///
/// # Errors
/// `EINVAL` if the frame is not `domain`'s.
#[inline]
pub fn get_page<M: Machine>(machine: M, mfn: Mfn, domain: DomId) -> Result<()> {
    match machine.frames().get(mfn) {
        Some(frame) if frame.get(domain) => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// Takes a writable reference to a frame of `domain`: it cannot become a table or be freed meanwhile.
///
/// # Errors
/// `EINVAL` if the frame is not `domain`'s or in use as a table; `EAGAIN` if another processor holds it up.
#[inline]
pub fn get_page_writable<M: Machine>(machine: M, mfn: Mfn, domain: DomId) -> Result<()> {
    let frame = machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
    take_writable(machine, mfn, frame, domain)
}

/// Drops a writable reference.
#[inline]
pub fn put_page_writable<M: Machine>(machine: M, mfn: Mfn) {
    if let Some(frame) = machine.frames().get(mfn) {
        log::written(machine, frame);
        put_flat(machine, mfn, frame);
    }
}

/// Takes a segment-descriptor reference to a frame of `domain`, whose 512 descriptors must all be allowed.
///
/// # Errors
/// As [`get_page_writable`], and `EINVAL` for a descriptor that is not allowed.
pub fn get_page_segdesc<M: Machine>(machine: M, mfn: Mfn, domain: DomId) -> Result<()> {
    let frame = machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
    take_flat(machine, mfn, frame, Kind::SegDesc, domain)
}

/// Drops a segment-descriptor reference.
pub fn put_page_segdesc<M: Machine>(machine: M, mfn: Mfn) {
    put_page_writable(machine, mfn);
}

#[inline]
pub(crate) fn take_writable<M: Machine>(
    machine: M,
    mfn: Mfn,
    frame: &Frame,
    domain: DomId,
) -> Result<()> {
    if !share_owned(machine, mfn, frame, Kind::Writable, domain)? {
        return take_flat(machine, mfn, frame, Kind::Writable, domain);
    }
    Ok(())
}

/// Takes one more reference to a live type of a frame of `domain`; `false` if the type is not live.
///
/// A live type keeps the frame, so the owner is stable once the reference is taken, and it is looked at again then.
#[inline]
pub(crate) fn share_owned<M: Machine>(
    machine: M,
    mfn: Mfn,
    frame: &Frame,
    kind: Kind,
    domain: DomId,
) -> Result<bool> {
    if !frame.owner().is_owned_by(domain) {
        return Err(Errno::EINVAL);
    }
    if !frame.share(kind) {
        return Ok(false);
    }
    if frame.owner().is_owned_by(domain) {
        return Ok(true);
    }
    // The frame changed hands between the two looks. The reference may have become the last one of a table:
    // what cannot be undone within one unit stays in the frame.
    let _ = put_typed(machine, mfn, frame, &mut Budget::new(1));
    Err(Errno::EINVAL)
}

/// Takes a writable or descriptor reference when it is not simply shared.
#[cold]
fn take_flat<M: Machine>(
    machine: M,
    mfn: Mfn,
    frame: &Frame,
    kind: Kind,
    domain: DomId,
) -> Result<()> {
    for _ in 0..SPINS {
        if share_owned(machine, mfn, frame, kind, domain)? {
            return Ok(());
        }
        // The hypervisor writes to frames it shares, so they never hold descriptors that are in force.
        let refused = kind == Kind::SegDesc && frame.owner().is_shared();
        if refused || !frame.get(domain) {
            return Err(Errno::EINVAL);
        }
        let decision = frame.claim(kind);
        if let Get::Claim { flush, .. } = decision {
            // The frame is busy until published: no one can use the new type before the flush (XSA-401), and
            // the flush is for the old type, whatever the new one is (XSA-408).
            if let Some(stamp) = flush {
                machine.flush_since(stamp);
            }
            let sound = kind != Kind::SegDesc || descriptors_ok(machine, mfn);
            if kind == Kind::SegDesc {
                log::written(machine, frame);
            }
            if sound {
                frame.set_kind(TypeWord::live(kind));
                return Ok(());
            }
            retire(machine, mfn, frame, kind);
            return Err(Errno::EINVAL);
        }
        put_frame(machine, mfn, frame);
        match decision {
            Get::Share(_) => return Ok(()),
            Get::Busy => machine.relax(),
            // A bounded piece per round; a guest that meets this has asked for the conflict.
            Get::Reap => {
                if reap(machine, mfn, &mut Budget::new(ENTRIES)).is_err() {
                    return Err(Errno::EAGAIN);
                }
            }
            _ => return Err(Errno::EINVAL),
        }
    }
    Err(Errno::EAGAIN)
}

/// Checks every descriptor of a frame that no one can write, and stores what they must become.
fn descriptors_ok<M: Machine>(machine: M, mfn: Mfn) -> bool {
    machine.words(mfn).iter().all(|word| {
        let given = word.load(Ordering::Relaxed);
        if given == 0 {
            return true;
        }
        let Some(sound) = machine.check_descriptor(given) else {
            return false;
        };
        if sound != given {
            word.store(sound, Ordering::Relaxed);
        }
        true
    })
}

/// Publishes the idle word of a frame this processor owns, and drops the general reference of its typed ones.
fn retire<M: Machine>(machine: M, mfn: Mfn, frame: &Frame, kind: Kind) {
    if kind.is_table() {
        log::written(machine, frame);
    }
    frame.set_kind(TypeWord::idle(kind, machine.tlb_clock()));
    put_frame(machine, mfn, frame);
}

/// Drops a reference to a frame that is writable or holds descriptors.
#[inline]
pub(crate) fn put_flat<M: Machine>(machine: M, mfn: Mfn, frame: &Frame) {
    if matches!(frame.unshare(), Put::Last) {
        put_flat_last(machine, mfn, frame);
    }
}

#[cold]
fn put_flat_last<M: Machine>(machine: M, mfn: Mfn, frame: &Frame) {
    loop {
        let word = TypeWord::idle(frame.kind().kind(), machine.tlb_clock());
        if frame.retire(word) {
            return put_frame(machine, mfn, frame);
        }
        if !matches!(frame.unshare(), Put::Last) {
            return;
        }
    }
}

/// Drops a typed reference of any kind. If the last one of a table goes, its entries' references go too.
///
/// # Errors
/// [`Unfinished`]: the reference is gone, but entries are left; [`reap`] continues.
#[inline]
pub fn put_typed<M: Machine>(
    machine: M,
    mfn: Mfn,
    frame: &Frame,
    budget: &mut Budget,
) -> core::result::Result<(), Unfinished> {
    match frame.unshare() {
        Put::Shared(_) => Ok(()),
        Put::Last => put_typed_last(machine, mfn, frame, budget),
        Put::NotHeld => {
            debug_assert!(false, "typed count underflow");
            Ok(())
        }
    }
}

#[cold]
fn put_typed_last<M: Machine>(
    machine: M,
    mfn: Mfn,
    frame: &Frame,
    budget: &mut Budget,
) -> core::result::Result<(), Unfinished> {
    loop {
        let kind = frame.kind().kind();
        if !kind.is_table() {
            put_flat_last(machine, mfn, frame);
            return Ok(());
        }
        if frame.retire(TypeWord::busy(kind, ENTRIES)) {
            return invalidate(machine, mfn, frame, (kind, ENTRIES), budget);
        }
        if !matches!(frame.unshare(), Put::Last) {
            return Ok(());
        }
    }
}

/// Continues the interrupted (in)validation of `mfn` downwards, to idle. Does nothing for a frame in another state.
///
/// # Errors
/// [`Unfinished`] if the budget ran out.
#[cold]
pub fn reap<M: Machine>(
    machine: M,
    mfn: Mfn,
    budget: &mut Budget,
) -> core::result::Result<(), Unfinished> {
    let Some(frame) = machine.frames().get(mfn) else {
        return Ok(());
    };
    match frame.claim_partial() {
        Some(progress) => invalidate(machine, mfn, frame, progress, budget),
        None => Ok(()),
    }
}

/// Drops the references of entries `0..next` of a table this processor owns.
fn invalidate<M: Machine>(
    machine: M,
    mfn: Mfn,
    frame: &Frame,
    (kind, next): (Kind, u32),
    budget: &mut Budget,
) -> core::result::Result<(), Unfinished> {
    let words = machine.words(mfn);
    let frames = machine.frames();
    let Some(below) = kind.below() else {
        entries(words)
            .take_while(|(index, _)| *index < next as usize)
            .for_each(|(_, word)| put_leaf(machine, word.load(Ordering::Acquire)));
        budget.spend(ENTRIES);
        retire(machine, mfn, frame, kind);
        return Ok(());
    };
    // The entry at `next` holds no reference, but its table may hold interrupted work that began here.
    if let Some(word) = words.get(next as usize) {
        let child = entry::mfn(word.load(Ordering::Acquire));
        if let Some(child_frame) = frames.get(child)
            && child_frame.kind().is_partial()
            && child_frame.kind().kind() == below
            && may_reap(child_frame.owner(), frame.owner())
            && reap(machine, child, budget).is_err()
        {
            frame.set_kind(TypeWord::partial(kind, next));
            return Err(Unfinished);
        }
    }
    let held = |(index, _): &(usize, &AtomicU64)| *index < next as usize;
    for (index, word) in entries(words).rev().filter(held) {
        let raw = word.load(Ordering::Acquire);
        if !entry::is_present(raw) || kind == Kind::L4 && entry::is_hypervisor_slot(index) {
            continue;
        }
        let child = entry::mfn(raw);
        let Some(child_frame) = frames.get(child) else {
            continue;
        };
        let done = put_typed(machine, child, child_frame, budget);
        if done.is_err() || !budget.spend(1) && index != 0 {
            frame.set_kind(TypeWord::partial(kind, index as u32));
            return Err(Unfinished);
        }
    }
    if kind == Kind::L4 {
        // The guest gets its page back: without our machine addresses in it.
        for (_, word) in hypervisor_slots(words) {
            word.store(0, Ordering::Release);
        }
    }
    retire(machine, mfn, frame, kind);
    Ok(())
}

/// Only interrupted work of the same domain, or of one that is gone, is undone on the way.
fn may_reap(child: OwnerWord, parent: OwnerWord) -> bool {
    child.owner() == parent.owner() || child.is_owned_by(DomId::INVALID)
}

/// The entries of a table with their indices, but for those that stand among eight absent ones: most tables are mostly empty.
fn entries(words: &[AtomicU64; 512]) -> impl DoubleEndedIterator<Item = (usize, &AtomicU64)> {
    const GROUP: usize = 8;
    let (groups, _) = words.as_chunks::<GROUP>();
    let all = |bits, word: &AtomicU64| bits | word.load(Ordering::Relaxed);
    groups
        .iter()
        .enumerate()
        .filter(move |(_, group)| entry::is_present(group.iter().fold(0, all)))
        .flat_map(|(at, group)| {
            let numbered = group.iter().enumerate();
            numbered.map(move |(offset, word)| (at * GROUP + offset, word))
        })
}

fn hypervisor_slots(words: &[AtomicU64; 512]) -> impl Iterator<Item = (usize, &AtomicU64)> {
    words
        .iter()
        .enumerate()
        .filter(|(index, _)| entry::is_hypervisor_slot(*index))
}

/// Drops what a leaf entry holds.
#[inline]
pub(crate) fn put_leaf<M: Machine>(machine: M, raw: u64) {
    if !entry::is_present(raw) {
        return;
    }
    let mfn = entry::mfn(raw);
    // A leaf to anything but a guest frame holds nothing, and no such frame becomes a guest frame while mapped.
    if let Some(frame) = machine.frames().get(mfn)
        && frame.owner().is_guest()
    {
        if raw & RW != 0 {
            if raw & D != 0 {
                log::written(machine, frame);
            }
            put_flat(machine, mfn, frame);
        } else {
            put_frame(machine, mfn, frame);
        }
    }
}

impl<'a, M: Machine> Tables<'a, M> {
    /// The tables of `owner`.
    pub const fn new(machine: M, owner: &'a DomainMemory) -> Self {
        Self { machine, owner }
    }

    /// Takes the reference of a new leaf entry and returns the entry to store.
    #[inline]
    pub(crate) fn take_leaf(&self, raw: u64, pages: Pages) -> Result<u64> {
        if !entry::is_present(raw) {
            return Ok(raw);
        }
        let mfn = entry::mfn(raw);
        if let Some(frame) = self.machine.frames().get(mfn)
            && frame.owner().is_guest()
        {
            let Pages::Of(domain) = pages else {
                return Err(Errno::EINVAL);
            };
            if raw & RW != 0 {
                take_writable(self.machine, mfn, frame, domain)?;
            } else if !frame.get(domain) {
                return Err(Errno::EINVAL);
            }
            return Ok(entry::ram_leaf(raw));
        }
        self.special_leaf(raw, mfn, pages)
    }

    /// A leaf to what is not a guest's RAM; holds no reference.
    #[cold]
    fn special_leaf(&self, raw: u64, mfn: Mfn, pages: Pages) -> Result<u64> {
        match self.machine.frames().class(mfn) {
            crate::word::Class::NotRam => {
                let mine = pages == Pages::Io || pages == Pages::Of(self.owner.id());
                let access = self.machine.io_access(self.owner.id(), mfn);
                match access {
                    IoAccess::ReadWrite if mine => Ok(entry::io_leaf(raw)),
                    IoAccess::ReadOnly if mine => Ok(entry::io_leaf(raw & !RW)),
                    _ => Err(Errno::EPERM),
                }
            }
            crate::word::Class::Hypervisor
                if pages == Pages::Xen && raw & RW == 0 && self.machine.is_m2p_frame(mfn) =>
            {
                Ok(entry::ram_leaf(raw))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Takes a reference of table kind `kind` to the owner's frame `mfn`, validating it if need be.
    ///
    /// # Errors
    /// [`Stop::Again`] with the progress in the frame, or `EINVAL`.
    #[inline]
    pub fn take_table(
        &self,
        mfn: Mfn,
        kind: Kind,
        budget: &mut Budget,
    ) -> core::result::Result<(), Stop> {
        let frame = self.machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
        if share_owned(self.machine, mfn, frame, kind, self.owner.id())? {
            return Ok(());
        }
        self.take_table_slow(mfn, frame, kind, budget)
    }

    #[cold]
    fn take_table_slow(
        &self,
        mfn: Mfn,
        frame: &Frame,
        kind: Kind,
        budget: &mut Budget,
    ) -> core::result::Result<(), Stop> {
        let owner = self.owner.id();
        for _ in 0..SPINS {
            if share_owned(self.machine, mfn, frame, kind, owner)? {
                return Ok(());
            }
            // A frame shared with the hypervisor is never a table: the hypervisor writes to it.
            if frame.owner().is_shared() || !frame.get(owner) {
                return Err(Errno::EINVAL.into());
            }
            let decision = frame.claim(kind);
            if let Get::Claim { flush, resume, .. } = decision {
                if let Some(stamp) = flush {
                    self.machine.flush_since(stamp);
                }
                if resume.is_some() {
                    // Interrupted work holds its own.
                    put_frame(self.machine, mfn, frame);
                }
                return self.validate(mfn, frame, kind, resume.unwrap_or(0), budget);
            }
            put_frame(self.machine, mfn, frame);
            match decision {
                Get::Share(_) => return Ok(()),
                Get::Busy => self.machine.relax(),
                Get::Reap => reap(self.machine, mfn, budget)?,
                _ => return Err(Errno::EINVAL.into()),
            }
        }
        Err(Stop::Again)
    }

    /// Validates a table this processor owns, from entry `next`, and publishes it.
    fn validate(
        &self,
        mfn: Mfn,
        frame: &Frame,
        kind: Kind,
        next: u32,
        budget: &mut Budget,
    ) -> core::result::Result<(), Stop> {
        let words = self.machine.words(mfn);
        let Some(below) = kind.below() else {
            let checked = self.validate_l1(words);
            budget.spend(ENTRIES);
            if checked.is_err() {
                retire(self.machine, mfn, frame, kind);
            } else {
                log::written(self.machine, frame);
                frame.set_kind(TypeWord::live(kind));
            }
            return checked.map_err(Stop::Failed);
        };
        let left = |(index, _): &(usize, &AtomicU64)| *index >= next as usize;
        for (index, word) in entries(words).filter(left) {
            let raw = word.load(Ordering::Acquire);
            if !entry::is_present(raw) || kind == Kind::L4 && entry::is_hypervisor_slot(index) {
                continue;
            }
            let taken = entry::table_entry(raw)
                .map_err(Stop::Failed)
                .and_then(|_| self.take_table(entry::mfn(raw), below, budget));
            match taken {
                Ok(()) => word.fetch_or(entry::US, Ordering::AcqRel),
                Err(stop) => {
                    frame.set_kind(TypeWord::partial(kind, index as u32));
                    if stop != Stop::Again {
                        // What the budget does not allow now is undone when the frame is next needed.
                        let _ = reap(self.machine, mfn, budget);
                    }
                    return Err(stop);
                }
            };
            if !budget.spend(1) && (index as u32) < ENTRIES - 1 {
                frame.set_kind(TypeWord::partial(kind, index as u32 + 1));
                return Err(Stop::Again);
            }
        }
        if kind == Kind::L4 {
            for (slot, word) in hypervisor_slots(words) {
                word.store(self.machine.hypervisor_l4_entry(slot), Ordering::Release);
            }
        }
        log::written(self.machine, frame);
        frame.set_kind(TypeWord::live(kind));
        Ok(())
    }

    fn validate_l1(&self, words: &[AtomicU64; 512]) -> Result<()> {
        let pages = Pages::Of(self.owner.id());
        entries(words).try_for_each(|(index, word)| {
            let raw = word.load(Ordering::Acquire);
            if !entry::is_present(raw) {
                return Ok(());
            }
            let entry = self.take_leaf(raw, pages).inspect_err(|_| {
                for word in words.iter().take(index) {
                    put_leaf(self.machine, word.load(Ordering::Acquire));
                }
            })?;
            // The processor may set A and D through a stale upper entry: change our bits only.
            if entry & !raw != 0 {
                word.fetch_or(entry & !raw, Ordering::AcqRel);
            }
            if raw & !entry != 0 {
                word.fetch_and(!(raw & !entry), Ordering::AcqRel);
            }
            Ok(())
        })
    }
}
