// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event state of one vCPU: where its `vcpu_info` is, its VIRQ ports, its poll, its FIFO queues.
//!
//! Invariant: a location is stored only while its frame is pinned or belongs to the hypervisor.

use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};
use crate::{Frames, Words};
use core::array::from_fn;
use philoxen_abi::event::{fifo, virq};
use philoxen_abi::shared::{VCPU_INFO_SIZE, vcpu_info};
use philoxen_abi::{Mfn, PAGE_SIZE};

const NOWHERE: u64 = u64::MAX;
/// Value of `polling` that any event ends.
pub(crate) const POLL_ANY: u32 = u32::MAX;

/// A vCPU's `vcpu_info` where it is now: words that the guest may change at any time.
///
/// The processor that runs the vCPU keeps one instead of finding it anew for every event: a place is given up only for another
/// place of the same domain that the vCPU itself asked for (or somebody for it, while it was down), or when the domain dies.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo<'a>(pub(crate) &'a [AtomicU64; VCPU_INFO_SIZE / 8]);

impl<'a> VcpuInfo<'a> {
    /// The one at machine address `addr`, within a frame.
    #[inline(always)]
    pub(crate) fn at(frames: &'a impl Frames, addr: u64) -> Option<Self> {
        let (words, at) = VcpuEvents::resolve(frames, addr)?;
        words.get(at..)?.first_chunk().map(Self)
    }

    /// Takes the contents of `old`, or what a vCPU starts with: everything zero, upcalls masked.
    pub(crate) fn copy(self, old: Option<VcpuInfo<'_>>) {
        for (index, word) in self.0.iter().enumerate() {
            let initial = if index == vcpu_info::UPCALL / 8 {
                1 << 8
            } else {
                0
            };
            let value = old
                .and_then(|old| old.0.get(index))
                .map_or(initial, |word| word.load(Ordering::Relaxed));
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Makes an upcall with the whole selector pending.
    pub(crate) fn select_all(self) {
        self.selector().store(u64::MAX, Ordering::SeqCst);
        self.upcall().fetch_or(1, Ordering::SeqCst);
    }

    /// The word with the upcall's pending and mask bytes.
    #[inline(always)]
    pub(crate) const fn upcall(self) -> &'a AtomicU64 {
        &self.0[vcpu_info::UPCALL / 8]
    }

    /// The selector of words with pending ports.
    #[inline(always)]
    pub(crate) const fn selector(self) -> &'a AtomicU64 {
        &self.0[vcpu_info::PENDING_SEL / 8]
    }

    /// What stands for CR2, which a guest kernel cannot read.
    #[inline(always)]
    pub const fn cr2(self) -> &'a AtomicU64 {
        &self.0[vcpu_info::CR2 / 8]
    }

    /// The four words of the time record: version, TSC, system time, rate.
    pub const fn time(self) -> [&'a AtomicU64; 4] {
        let [.., version, tsc, time, rate] = self.0;
        [version, tsc, time, rate]
    }

    /// True if an upcall is pending, masked or not.
    #[inline(always)]
    pub fn upcall_pending(self) -> bool {
        self.upcall().load(Ordering::SeqCst) & vcpu_info::PENDING_BITS != 0
    }

    /// True if the guest masked its upcalls.
    #[inline(always)]
    pub fn upcall_masked(self) -> bool {
        self.upcall().load(Ordering::SeqCst) & vcpu_info::MASK_BITS != 0
    }

    /// True if an upcall is pending and not masked: it must be delivered before the guest runs on.
    #[inline(always)]
    pub fn upcall_due(self) -> bool {
        let upcall = self.upcall().load(Ordering::SeqCst);
        // The pending byte is the lower one: with the mask byte clear, both together are at most its bits.
        let both = upcall & (vcpu_info::PENDING_BITS | vcpu_info::MASK_BITS);
        both != 0 && both <= vcpu_info::PENDING_BITS
    }

    /// Sets the upcall mask byte to 1 or 0.
    #[inline(always)]
    pub fn set_upcall_mask(self, masked: bool) {
        // A non-zero byte is masked already; only the guest's own 0 and our 1 matter.
        if masked {
            self.upcall().fetch_or(1 << 8, Ordering::SeqCst);
        } else {
            self.upcall()
                .fetch_and(!vcpu_info::MASK_BITS, Ordering::SeqCst);
        }
    }
}

const _: () = assert!(vcpu_info::TIME + 32 == VCPU_INFO_SIZE);

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

    /// The `vcpu_info`; `None` for a vCPU beyond the 32 of `shared_info` that has not registered one.
    #[inline(always)]
    pub fn info<'a>(&self, frames: &'a impl Frames) -> Option<VcpuInfo<'a>> {
        VcpuInfo::at(frames, self.info.load(Ordering::Acquire))
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

    /// True if an upcall is pending, masked or not.
    pub fn upcall_pending(&self, frames: &impl Frames) -> bool {
        self.info(frames).is_some_and(VcpuInfo::upcall_pending)
    }

    /// True if the guest masked its upcalls, or has no `vcpu_info`.
    pub fn upcall_masked(&self, frames: &impl Frames) -> bool {
        self.info(frames).is_none_or(VcpuInfo::upcall_masked)
    }

    /// True if an upcall is pending and not masked: it must be delivered before the guest runs on.
    #[inline(always)]
    pub fn upcall_due(&self, frames: &impl Frames) -> bool {
        self.info(frames).is_some_and(VcpuInfo::upcall_due)
    }

    /// Sets the upcall mask byte to 1 or 0.
    pub fn set_upcall_mask(&self, frames: &impl Frames, masked: bool) {
        if let Some(info) = self.info(frames) {
            info.set_upcall_mask(masked);
        }
    }

    /// True while a poll begun by [`crate::poll`] has not been ended by an event or [`crate::DomainEvents::end_poll`].
    #[inline]
    pub fn is_polling(&self) -> bool {
        self.polling.load(Ordering::SeqCst) != 0
    }
}
