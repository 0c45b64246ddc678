// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event state of one vCPU: where its `vcpu_info` is, its VIRQ ports, its poll, its FIFO queues.
//!
//! Invariant: a location is stored only while its frame is pinned or belongs to the hypervisor.

use crate::{Frames, Words, word};
use core::array::from_fn;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use philoxen_abi::event::{fifo, virq};
use philoxen_abi::shared::vcpu_info;
use philoxen_abi::{Mfn, PAGE_SIZE};
use spin::Mutex;

const NOWHERE: u64 = u64::MAX;
/// Value of `polling` that any event ends.
pub(crate) const POLL_ANY: u32 = u32::MAX;

/// Event state of one vCPU, owned by its domain's [`crate::DomainEvents`].
#[derive(Debug)]
pub struct VcpuEvents {
    /// Machine address of the `vcpu_info`, or `NOWHERE`.
    info: AtomicU64,
    /// 0: not polling; a port; or [`POLL_ANY`].
    pub(crate) polling: AtomicU32,
    /// Port of each VIRQ bound to this vCPU (global ones: to the domain, kept by vCPU 0); 0 is none.
    pub(crate) virqs: [AtomicU32; virq::COUNT as usize],
    /// Machine address of the FIFO control block, or `NOWHERE`.
    control: AtomicU64,
    /// Last port of each FIFO queue; 0 is none. The heads are in the control block.
    pub(crate) tails: [Mutex<u32>; fifo::QUEUES],
}

impl VcpuEvents {
    pub(crate) fn new(info: Option<u64>) -> Self {
        Self {
            info: AtomicU64::new(info.unwrap_or(NOWHERE)),
            polling: AtomicU32::new(0),
            virqs: from_fn(|_| AtomicU32::new(0)),
            control: AtomicU64::new(NOWHERE),
            tails: from_fn(|_| Mutex::new(0)),
        }
    }

    #[inline(always)]
    fn resolve(frames: &impl Frames, addr: u64) -> Option<(&Words, usize)> {
        if addr == NOWHERE {
            return None;
        }
        Some((
            frames.words(Mfn::containing(addr)),
            (addr % PAGE_SIZE) as usize / 8,
        ))
    }

    /// The frame that holds the `vcpu_info` and the index of its first word; `None` for a vCPU beyond the 32 of
    /// `shared_info` that has not registered one.
    #[inline(always)]
    pub fn info<'a>(&self, frames: &'a impl Frames) -> Option<(&'a Words, usize)> {
        Self::resolve(frames, self.info.load(Ordering::Acquire))
    }

    /// Machine address of the `vcpu_info`.
    pub fn info_address(&self) -> Option<u64> {
        Some(self.info.load(Ordering::Acquire)).filter(|&addr| addr != NOWHERE)
    }

    pub(crate) fn set_info(&self, addr: Option<u64>) {
        self.info.store(addr.unwrap_or(NOWHERE), Ordering::SeqCst);
    }

    /// The frame of the FIFO control block and the index of its first word.
    #[inline(always)]
    pub(crate) fn control<'a>(&self, frames: &'a impl Frames) -> Option<(&'a Words, usize)> {
        Self::resolve(frames, self.control.load(Ordering::Acquire))
    }

    pub(crate) fn control_address(&self) -> Option<u64> {
        Some(self.control.load(Ordering::Acquire)).filter(|&addr| addr != NOWHERE)
    }

    pub(crate) fn set_control(&self, addr: Option<u64>) {
        self.control
            .store(addr.unwrap_or(NOWHERE), Ordering::SeqCst);
    }

    /// The word with the upcall's pending and mask bytes; masked and quiet if there is no `vcpu_info`.
    #[inline(always)]
    fn upcall(&self, frames: &impl Frames) -> u64 {
        match self.info(frames) {
            Some((words, at)) => {
                word(words, at.wrapping_add(vcpu_info::UPCALL / 8)).load(Ordering::SeqCst)
            }
            None => vcpu_info::MASK_BITS,
        }
    }

    /// True if an upcall is pending, masked or not.
    #[inline(always)]
    pub fn upcall_pending(&self, frames: &impl Frames) -> bool {
        self.upcall(frames) & vcpu_info::PENDING_BITS != 0
    }

    /// True if the guest masked its upcalls.
    #[inline(always)]
    pub fn upcall_masked(&self, frames: &impl Frames) -> bool {
        self.upcall(frames) & vcpu_info::MASK_BITS != 0
    }

    /// True if an upcall is pending and not masked: it must be delivered before the guest runs on.
    #[inline(always)]
    pub fn upcall_due(&self, frames: &impl Frames) -> bool {
        let upcall = self.upcall(frames);
        upcall & vcpu_info::PENDING_BITS != 0 && upcall & vcpu_info::MASK_BITS == 0
    }

    /// Sets the upcall mask byte to 1 or 0.
    #[inline(always)]
    pub fn set_upcall_mask(&self, frames: &impl Frames, masked: bool) {
        if let Some((words, at)) = self.info(frames) {
            let upcall = word(words, at.wrapping_add(vcpu_info::UPCALL / 8));
            // A non-zero byte is masked already; only the guest's own 0 and our 1 matter.
            if masked {
                upcall.fetch_or(1 << 8, Ordering::SeqCst);
            } else {
                upcall.fetch_and(!vcpu_info::MASK_BITS, Ordering::SeqCst);
            }
        }
    }

    /// True while a poll begun by [`crate::poll`] has not been ended by an event or [`crate::DomainEvents::end_poll`].
    #[inline]
    pub fn is_polling(&self) -> bool {
        self.polling.load(Ordering::SeqCst) != 0
    }
}
