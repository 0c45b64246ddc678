// SPDX-License-Identifier: MIT OR Apache-2.0
//! Recounts every reference from what holds it and compares with the frames' counts (debug key and tests).
//!
//! The machine must be still: no other processor in this crate, no frame busy.

use crate::entry::{self, RW};
use crate::machine::Machine;
use crate::word::{ENTRIES, Kind};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use philoxen_abi::{Errno, Mfn, Result};

/// A reference that is held outside page tables, pins and allocations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// A general one.
    General,
    /// A typed one (a vCPU's root, a writable mapping of the hypervisor, a GDT frame).
    Typed,
}

/// A frame whose counts are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The frame.
    pub mfn: Mfn,
    /// Stored and recounted typed references.
    pub typed: (u32, u32),
    /// Stored and recounted general references.
    pub general: (u32, u32),
    /// Found in an entry that needs another type than the frame has.
    pub mistyped: bool,
}

#[derive(Clone, Copy, Default)]
struct Count {
    typed: u32,
    general: u32,
    mistyped: bool,
}

/// Recounts; `held` lists references held elsewhere; `report` is called for each frame that is wrong, in order.
/// Returns how many.
///
/// # Errors
/// `ENOMEM` if there is no memory for the counters (12 bytes per frame).
pub fn audit<M: Machine>(
    machine: M,
    held: impl Iterator<Item = (Mfn, Held)>,
    mut report: impl FnMut(Wrong),
) -> Result<u64> {
    let frames = machine.frames();
    let mut counts: Vec<Count> = Vec::new();
    counts
        .try_reserve_exact(frames.len() as usize)
        .map_err(|_| Errno::ENOMEM)?;
    counts.resize(frames.len() as usize, Count::default());
    for index in 0..frames.len() {
        count_frame(machine, Mfn(index), &mut counts);
    }
    for (mfn, held) in held {
        if let Some(count) = counts.get_mut(mfn.0 as usize) {
            match held {
                Held::General => count.general = count.general.wrapping_add(1),
                Held::Typed => count.typed = count.typed.wrapping_add(1),
            }
        }
    }
    let mut wrong = 0;
    for (index, count) in counts.iter().enumerate() {
        let mfn = Mfn(index as u64);
        let Some(frame) = frames.get(mfn) else { break };
        let (kind, owner) = (frame.kind(), frame.owner());
        if !owner.is_guest() {
            continue;
        }
        let typed = (kind.count(), count.typed);
        let general = (owner.count(), count.general);
        if typed.0 != typed.1 || general.0 != general.1 || count.mistyped || kind.is_busy() {
            wrong += 1;
            report(Wrong {
                mfn,
                typed,
                general,
                mistyped: count.mistyped,
            });
        }
    }
    Ok(wrong)
}

fn count_frame<M: Machine>(machine: M, mfn: Mfn, counts: &mut [Count]) {
    let frames = machine.frames();
    let Some(frame) = frames.get(mfn) else { return };
    let (word, owner) = (frame.kind(), frame.owner());
    if !owner.is_guest() {
        return;
    }
    if let Some(count) = counts.get_mut(mfn.0 as usize) {
        count.typed += u32::from(word.is_pinned());
        count.general += u32::from(word.holds_general());
        count.general += u32::from(owner.is_allocated()) + u32::from(owner.is_shared());
    }
    let kind = word.kind();
    if !kind.is_table() {
        return;
    }
    let next = if word.is_live() { ENTRIES } else { word.next() };
    for (index, slot) in machine.words(mfn).iter().enumerate().take(next as usize) {
        let raw = slot.load(Ordering::Relaxed);
        if !entry::is_present(raw) || kind == Kind::L4 && entry::is_hypervisor_slot(index) {
            continue;
        }
        let target = entry::mfn(raw);
        let (Some(count), Some(frame)) = (counts.get_mut(target.0 as usize), frames.get(target))
        else {
            continue;
        };
        if !frame.owner().is_guest() {
            continue;
        }
        let needed = match kind.below() {
            Some(below) => below,
            None if raw & RW != 0 => Kind::Writable,
            None => {
                count.general = count.general.wrapping_add(1);
                continue;
            }
        };
        count.typed = count.typed.wrapping_add(1);
        count.mistyped |= !frame.kind().is_live_as(needed);
    }
}
