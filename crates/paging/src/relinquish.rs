// SPDX-License-Identifier: MIT OR Apache-2.0
//! Taking all memory from a domain that is being destroyed.
//!
//! One pass over the frame table: pins go, interrupted work is undone, the allocation's reference is dropped. A
//! frame that others still map is left to nobody (`DOMID_INVALID`), so that a later domain with the same number
//! cannot claim it; it is freed with its last reference.

use crate::frame::Frame;
use crate::machine::{DomainMemory, Machine};
use crate::validate::{put_frame, put_typed, reap};
use core::sync::atomic::Ordering;
use philoxen_abi::Mfn;
use philoxen_abi::hypercall::Budget;

/// How far a step got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The domain has no memory left.
    Done,
    /// Call again.
    Yield,
}

/// Frames of others looked at for one unit of work.
const SCAN: u64 = 32;

/// Releases the memory of a dying domain ([`DomainMemory::set_dying`]). Its vCPUs' roots and the hypervisor's own
/// references to its frames were released before ([`crate::mmuext::release_roots`]). Progress is kept in `domain`.
pub fn relinquish<M: Machine>(machine: M, domain: &DomainMemory, budget: &mut Budget) -> Progress {
    let frames = machine.frames();
    let cursor = domain.cursor();
    let first = cursor.load(Ordering::Relaxed);
    for index in first..frames.len() {
        let mfn = Mfn(index);
        let mine = frames
            .get(mfn)
            .is_some_and(|frame| frame.owner().is_owned_by(domain.id()));
        if mine && !release(machine, domain, mfn, budget) {
            cursor.store(index, Ordering::Relaxed);
            return Progress::Yield;
        }
        if (mine || index % SCAN == 0) && !budget.spend(1) {
            cursor.store(index + 1, Ordering::Relaxed);
            return Progress::Yield;
        }
    }
    cursor.store(0, Ordering::Relaxed);
    // An allocation that was under way elsewhere may have landed behind the scan.
    if domain.total_pages() == 0 {
        Progress::Done
    } else {
        Progress::Yield
    }
}

/// False if unfinished.
fn release<M: Machine>(machine: M, domain: &DomainMemory, mfn: Mfn, budget: &mut Budget) -> bool {
    let Some(frame) = machine.frames().get(mfn) else {
        return true;
    };
    // Held while we look, so that another processor's last reference does not free it under us.
    if !frame.get(domain.id()) {
        return true;
    }
    let finished = strip(machine, domain, mfn, frame, budget);
    put_frame(machine, mfn, frame);
    finished
}

fn strip<M: Machine>(
    machine: M,
    domain: &DomainMemory,
    mfn: Mfn,
    frame: &Frame,
    budget: &mut Budget,
) -> bool {
    if frame.unpin() && put_typed(machine, mfn, frame, budget).is_err() {
        return false;
    }
    if frame.kind().is_partial() && reap(machine, mfn, budget).is_err() {
        return false;
    }
    let held = frame.unallocate(domain.id());
    frame.orphan(domain.id());
    if held {
        domain.uncharge(1);
        put_frame(machine, mfn, frame);
    }
    true
}
