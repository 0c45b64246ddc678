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

/// Counts of a run of frames from `base`.
struct Window {
    base: u64,
    counts: Vec<Count>,
}

impl Window {
    /// Room for `len` frames, or for as many as memory allows by halving.
    fn new(mut len: u64) -> Result<Self> {
        let mut counts = Vec::new();
        while counts.try_reserve_exact(len as usize).is_err() {
            len /= 2;
            if len < MIN_WINDOW {
                return Err(Errno::ENOMEM);
            }
        }
        counts.resize(len as usize, Count::default());
        Ok(Self { base: 0, counts })
    }
    fn get(&mut self, mfn: Mfn) -> Option<&mut Count> {
        self.counts.get_mut(mfn.0.checked_sub(self.base)? as usize)
    }
}

/// Fewest frames that a pass is worth.
const MIN_WINDOW: u64 = 4096;

/// Recounts; `held` lists references held elsewhere; `report` is called for each frame that is wrong, in order.
/// Returns how many.
///
/// Takes 12 bytes per frame; with less memory the frames are counted in several passes over all tables.
///
/// # Errors
/// `ENOMEM` if there is no memory for the counters of even a few thousand frames.
pub fn audit<M: Machine>(
    machine: M,
    held: &[(Mfn, Held)],
    mut report: impl FnMut(Wrong),
) -> Result<u64> {
    let frames = machine.frames();
    let mut window = Window::new(frames.len().max(MIN_WINDOW))?;
    let mut wrong = 0;
    while window.base < frames.len() {
        window.counts.fill(Count::default());
        for index in 0..frames.len() {
            count_frame(machine, Mfn(index), &mut window);
        }
        for (mfn, held) in held {
            if let Some(count) = window.get(*mfn) {
                match held {
                    Held::General => count.general = count.general.wrapping_add(1),
                    Held::Typed => count.typed = count.typed.wrapping_add(1),
                }
            }
        }
        wrong += compare(machine, &window, &mut report);
        window.base = window.base.saturating_add(window.counts.len() as u64);
    }
    Ok(wrong)
}

/// Reports the frames of a counted window whose stored counts are others; returns how many.
fn compare<M: Machine>(machine: M, window: &Window, report: &mut impl FnMut(Wrong)) -> u64 {
    let mut wrong = 0;
    for (index, count) in (window.base..).zip(&window.counts) {
        let mfn = Mfn(index);
        let Some(frame) = machine.frames().get(mfn) else {
            break;
        };
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
    wrong
}

fn count_frame<M: Machine>(machine: M, mfn: Mfn, window: &mut Window) {
    let frames = machine.frames();
    let Some(frame) = frames.get(mfn) else { return };
    let (word, owner) = (frame.kind(), frame.owner());
    if !owner.is_guest() {
        return;
    }
    if let Some(count) = window.get(mfn) {
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
        let (Some(count), Some(frame)) = (window.get(target), frames.get(target)) else {
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
