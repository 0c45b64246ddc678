// SPDX-License-Identifier: MIT OR Apache-2.0
//! Handles: what a domain has mapped through grants of others.
//!
//! A slot is free, reserved (its handle is not known to the guest yet) or used. A used slot's uses (host, device) are
//! taken out one by one by unmap requests; a request that is between taking a use out and having finished is counted as
//! a claim, and the slot becomes free when no use and no claim is left. So two requests that race for one handle never
//! both get the same use (XSA-218), and a slot is never reused under a request (XSA-228).

use crate::table::{GrantTable, Use};
use alloc::sync::Arc;
use alloc::vec::Vec;
use philoxen_abi::Mfn;

/// Handles that one maptrack frame stands for.
pub const PER_FRAME: u32 = 256;
/// Slots allocated at a time.
const CHUNK: u32 = 128;
const NONE: u32 = u32::MAX;

const HOST: u16 = 1;
const DEVICE: u16 = 2;
const READONLY: u16 = 4;
const ENTRY: u16 = 8;

/// A mapping.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Whose grant.
    pub granter: Arc<GrantTable>,
    /// Its reference.
    pub gref: u32,
    /// The frame.
    pub mfn: Mfn,
    /// The uses it has, and whether it is writable.
    pub uses: Use,
    /// Placed by the machine address of a page-table entry, not by virtual address.
    pub by_entry: bool,
}

/// Used if `granter` is there; otherwise `gref` is the next free slot.
#[derive(Debug)]
struct Slot {
    granter: Option<Arc<GrantTable>>,
    gref: u32,
    mfn: u32,
    flags: u16,
    claims: u16,
}

const _: () = assert!(size_of::<Slot>() == 24);

/// A domain's handles.
#[derive(Debug)]
pub struct Maptrack {
    chunks: Vec<Vec<Slot>>,
    free: u32,
    used: u32,
    limit: u32,
}

impl Maptrack {
    /// No handles yet; at most `limit`.
    pub const fn new(limit: u32) -> Self {
        Self {
            chunks: Vec::new(),
            free: NONE,
            used: 0,
            limit,
        }
    }
    /// Handles that are reserved or used.
    pub const fn used(&self) -> u32 {
        self.used
    }
    /// From now on there are no new handles.
    pub const fn close(&mut self) {
        self.limit = 0;
    }
    /// Handles there may be at most so far: all used ones are below.
    pub const fn len(&self) -> u32 {
        self.chunks.len() as u32 * CHUNK
    }
    /// True if there never was a handle.
    pub const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
    /// Gives the memory of all slots back; none is in use.
    pub fn clear(&mut self) {
        if self.used == 0 {
            self.chunks = Vec::new();
            self.free = NONE;
        }
    }

    fn slot(&mut self, handle: u32) -> Option<&mut Slot> {
        self.chunks
            .get_mut((handle / CHUNK) as usize)?
            .get_mut((handle % CHUNK) as usize)
    }
    fn grow(&mut self) -> Option<()> {
        let first = self.len();
        let mut chunk = Vec::new();
        chunk.try_reserve_exact(CHUNK as usize).ok()?;
        self.chunks.try_reserve(1).ok()?;
        for index in 0..CHUNK {
            let last = index == CHUNK - 1;
            chunk.push(Slot {
                granter: None,
                gref: if last { self.free } else { first + index + 1 },
                mfn: 0,
                flags: 0,
                claims: 0,
            });
        }
        self.chunks.push(chunk);
        self.free = first;
        Some(())
    }
    /// Takes a handle for a mapping that is being made; `None` if there are none left.
    pub fn reserve(&mut self) -> Option<u32> {
        if self.used >= self.limit {
            return None;
        }
        if self.free == NONE {
            self.grow()?;
        }
        let handle = self.free;
        let next = self.slot(handle)?.gref;
        self.free = next;
        self.used += 1;
        Some(handle)
    }
    /// Gives a reserved handle back.
    pub fn cancel(&mut self, handle: u32) {
        let free = self.free;
        if let Some(slot) = self.slot(handle) {
            (slot.granter, slot.flags, slot.gref) = (None, 0, free);
            self.free = handle;
            self.used = self.used.saturating_sub(1);
        }
    }
    /// Makes a reserved handle stand for a mapping.
    pub fn publish(&mut self, handle: u32, mapping: Mapping) {
        if let Some(slot) = self.slot(handle) {
            let flags = flag(mapping.uses.host, HOST)
                | flag(mapping.uses.device, DEVICE)
                | flag(!mapping.uses.write, READONLY)
                | flag(mapping.by_entry, ENTRY);
            *slot = Slot {
                granter: Some(mapping.granter),
                gref: mapping.gref,
                // Frames in the frame table are below 2^30.
                mfn: mapping.mfn.0 as u32,
                flags,
                claims: 0,
            };
        }
    }
    /// Takes uses out of a mapping: the host one if `host`, the device one if `device`, as far as it has them. Each
    /// claim must end by [`Maptrack::restore`] or [`Maptrack::finish`]. `None`: no such mapping, or nothing left of it.
    pub fn claim(&mut self, handle: u32, host: bool, device: bool) -> Option<Mapping> {
        let slot = self.slot(handle)?;
        let granter = slot.granter.clone()?;
        if slot.flags & (HOST | DEVICE) == 0 {
            return None;
        }
        slot.claims = slot.claims.checked_add(1)?;
        let taken = slot.flags & (flag(host, HOST) | flag(device, DEVICE));
        slot.flags &= !taken;
        Some(Mapping {
            granter,
            gref: slot.gref,
            mfn: Mfn(slot.mfn.into()),
            uses: Use {
                host: taken & HOST != 0,
                device: taken & DEVICE != 0,
                write: slot.flags & READONLY == 0,
            },
            by_entry: slot.flags & ENTRY != 0,
        })
    }
    /// Calls `each` for the frame of every used handle, which holds one reference to it: a writable one if so told.
    pub fn held(&self, mut each: impl FnMut(Mfn, bool)) {
        let used = |slot: &&Slot| slot.granter.is_some();
        for slot in self.chunks.iter().flatten().filter(used) {
            each(Mfn(slot.mfn.into()), slot.flags & READONLY == 0);
        }
    }
    /// Ends a claim by giving its uses back.
    pub fn restore(&mut self, handle: u32, uses: Use) {
        if let Some(slot) = self.slot(handle) {
            slot.flags |= flag(uses.host, HOST) | flag(uses.device, DEVICE);
            slot.claims = slot.claims.saturating_sub(1);
        }
    }
    /// Ends a claim whose uses are gone. True if nothing is left of the mapping: the handle is free, and the frame's
    /// reference is the caller's to drop.
    #[must_use = "the frame's reference must be dropped with the handle"]
    pub fn finish(&mut self, handle: u32) -> bool {
        let Some(slot) = self.slot(handle) else {
            return false;
        };
        slot.claims = slot.claims.saturating_sub(1);
        if slot.claims != 0 || slot.flags & (HOST | DEVICE) != 0 {
            return false;
        }
        self.cancel(handle);
        true
    }
    /// Frees a used handle whatever it has, and returns what it was: for a domain that no longer runs.
    pub fn seize(&mut self, handle: u32) -> Option<Mapping> {
        let mapping = self.claim(handle, true, true)?;
        if let Some(slot) = self.slot(handle) {
            slot.claims = 0;
        }
        self.cancel(handle);
        Some(mapping)
    }
}

const fn flag(set: bool, bit: u16) -> u16 {
    if set { bit } else { 0 }
}
