// SPDX-License-Identifier: MIT OR Apache-2.0
//! What event channels need from the machine, the domain list and the scheduler.

use crate::DomainEvents;
use crate::sync::AtomicU64;
use core::ops::Deref;
use philoxen_abi::{DomId, Mfn, Result, VcpuId};

/// A frame as the hypervisor sees it: 512 words that guests may change at any time.
pub type Words = [AtomicU64; 512];

/// Access to frames.
pub trait Frames {
    /// The contents of a frame of RAM. Called only for frames that are pinned or belong to the hypervisor.
    fn words(&self, mfn: Mfn) -> &Words;

    /// Takes a reference to frame `mfn` of domain `dom` and a writable type reference, so that it can neither become a
    /// page table nor leave the domain until [`Frames::unpin`].
    ///
    /// # Errors
    /// `EINVAL` if the frame is not the domain's or cannot be writable.
    fn pin(&self, dom: DomId, mfn: Mfn) -> Result<()>;

    /// Gives back what [`Frames::pin`] took.
    fn unpin(&self, dom: DomId, mfn: Mfn);
}

/// What event channels need from the rest of the hypervisor.
pub trait Host: Frames {
    /// Keeps a domain alive while its events are used.
    type Ref<'a>: Deref<Target = DomainEvents>
    where
        Self: 'a;

    /// The events of domain `id`, if there is such a domain.
    fn domain(&self, id: DomId) -> Option<Self::Ref<'_>>;

    /// Event state of a vCPU changed from nothing pending to pending, or its poll ended: unblock it, and make it look if
    /// it runs on another processor. Called with a port's lock bit held: must not call back into this crate.
    fn kick(&self, dom: DomId, vcpu: VcpuId);

    /// True if `dom` may use physical interrupt `pirq`.
    fn pirq_permitted(&self, dom: DomId, pirq: u32) -> bool;

    /// Starts delivery of `pirq` to `dom` (from now on [`DomainEvents::raise_pirq`] may be called).
    ///
    /// # Errors
    /// The reason why the line cannot be bound, such as `EBUSY` for a line that somebody uses unshared.
    fn bind_pirq(&self, dom: DomId, pirq: u32, share: bool) -> Result<()>;

    /// Stops delivery of `pirq` to `dom`.
    fn unbind_pirq(&self, dom: DomId, pirq: u32);

    /// The port of `pirq` now notifies `vcpu`: its interrupts had better go where that runs.
    fn route_pirq(&self, dom: DomId, pirq: u32, vcpu: VcpuId);
}

/// Word `index` of a frame; the index wraps at the end of the frame.
#[inline(always)]
pub(crate) fn word(words: &Words, index: usize) -> &AtomicU64 {
    words.get(index & 511).unwrap_or(&words[0])
}
