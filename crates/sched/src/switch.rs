// SPDX-License-Identifier: MIT OR Apache-2.0
//! A processor changes from one vCPU to another: the order of its steps.
//!
//! Invariant: what a processor holds of a vCPU is back in its place before the scheduler learns that the vCPU may run
//! elsewhere. The model is `tests/model.rs`.

use crate::scheduler::{Kick, Scheduler};
use crate::vcpu::VcpuKey;

/// What a processor does when it changes vCPUs.
pub trait Processor {
    /// Its number.
    fn number(&self) -> u32;

    /// System time in nanoseconds.
    fn now(&self) -> u64;

    /// True if it holds the registers of a vCPU.
    fn is_loaded(&self) -> bool;

    /// Puts what it holds of a vCPU, if any, back into its place, and loads that of `next`, which is in its place; without a next
    /// one, nothing of any vCPU.
    fn change(&mut self, next: Option<VcpuKey>);

    /// It does not run `key` any more, which may run elsewhere now.
    fn left(&mut self, key: VcpuKey);

    /// Carries out what the scheduler asks for.
    fn follow(&mut self, kick: Kick);
}

impl Scheduler {
    /// Chooses what a processor runs, and changes to that. The vCPU, if there is one, and in how many nanoseconds the
    /// processor must choose again at the latest (`u64::MAX`: no need).
    #[inline]
    pub fn switch(&self, processor: &mut impl Processor) -> (Option<VcpuKey>, u64) {
        let decision = self.pick_next(processor.number(), processor.now());
        let (prev, next) = (decision.prev, decision.next);
        processor.follow(decision.kick);
        if prev != next || processor.is_loaded() != next.is_some() {
            processor.change(next);
            // Only now, when nothing of the old one is loaded here any more, may it run elsewhere.
            if let Some(prev) = prev.filter(|prev| Some(*prev) != next) {
                processor.left(prev);
                processor.follow(self.context_saved(prev, processor.now()));
            }
        }
        (next, decision.slice_ns)
    }
}
