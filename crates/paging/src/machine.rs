// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this crate needs from the machine and from the domain list, and the state it keeps for each domain and vCPU.

use crate::buddy::Block;
use crate::frame::FrameTable;
use crate::log::WriteLog;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use philoxen_abi::memory::E820Entry;
use philoxen_abi::{DomId, Errno, Mfn, Result};
use spin::Mutex;

/// Whose TLBs to flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushScope {
    /// This processor's.
    Local,
    /// Those of the processors that may hold translations of these vCPUs of the domain (bit = vCPU number).
    Vcpus(u64),
    /// Those of all processors that may hold translations of the domain.
    Domain,
}

/// What to flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Every translation.
    All,
    /// The translation of one address.
    Page(u64),
}

/// How a domain may map a frame of device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoAccess {
    /// Not at all.
    None,
    /// For reading; a writable mapping becomes read-only.
    ReadOnly,
    /// As it likes.
    ReadWrite,
}

/// The machine as this crate sees it; a zero-sized handle in production.
///
/// The TLB clock orders removals of translations and whole-TLB flushes. A removal takes a stamp, which advances the clock; a
/// processor notes the clock before each flush. A translation removed at stamp `t` is gone from every processor
/// whose note is above `t`.
pub trait Machine: Copy {
    /// The frame table.
    fn frames(&self) -> FrameTable;
    /// The words of a RAM frame, through the direct map. `mfn` lies in the frame table and is or just was a guest frame.
    fn words(&self, mfn: Mfn) -> &'static [AtomicU64; 512];
    /// Fills a frame with zeroes.
    fn zero(&self, mfn: Mfn);
    /// Machine-to-phys entry of a frame.
    fn m2p_get(&self, mfn: Mfn) -> u64;
    /// Sets the machine-to-phys entry of a frame.
    fn m2p_set(&self, mfn: Mfn, pfn: u64);
    /// Frames of the machine-to-phys table may be mapped read-only by privileged domains.
    fn is_m2p_frame(&self, mfn: Mfn) -> bool;
    /// First frame of the 2 MiB piece `index` of the machine-to-phys table; `None` after its end.
    fn m2p_extent(&self, index: u64) -> Option<Mfn>;
    /// The TLB clock now.
    fn tlb_clock(&self) -> u64;
    /// Returns once every processor has flushed its TLB after `stamp`.
    fn flush_since(&self, stamp: u64);
    /// Flushes TLBs at the guest's request.
    fn flush_tlb(&self, domain: &DomainMemory, scope: FlushScope, what: Flush);
    /// Writes back and invalidates caches, of all processors if `all`.
    fn flush_caches(&self, all: bool);
    /// Makes this processor use the root `l4` now (and flush its TLB).
    fn load_root(&self, l4: Mfn);
    /// Entry of the hypervisor's slot `slot` (256..272), the same in every root.
    fn hypervisor_l4_entry(&self, slot: usize) -> u64;
    /// Takes a block from the allocator ([`crate::buddy::Buddy::alloc_block`] under its lock).
    fn alloc_block(&self, order: u32, max_bits: u32) -> Option<Block>;
    /// Hears that `domain` could not be given or rid of 2^`order` frames, for those who read the console.
    fn extent_refused(&self, _caller: DomId, _domain: &DomainMemory, _order: u32, _errno: Errno) {}
    /// Gives a frame back to the allocator ([`crate::buddy::Buddy::free_block`] under its lock).
    fn free_frame(&self, mfn: Mfn, dirty: bool, stamp: u64);
    /// A pause while another processor finishes.
    fn relax(&self);
    /// How many domains have a log of writes; see [`crate::log`].
    fn logs(&self) -> &'static AtomicU32;
    /// The value to store for segment descriptor `descriptor` (its privilege may be lowered), or `None` if a guest may not
    /// have it in a loaded table.
    fn check_descriptor(&self, descriptor: u64) -> Option<u64>;
    /// How `domain` may map `mfn`, which is not RAM. Must be [`IoAccess::None`] beyond the physical address width.
    fn io_access(&self, domain: DomId, mfn: Mfn) -> IoAccess;
    /// Uses a descriptor table at guest address `base` as the running vCPU's LDT (0 entries: none).
    ///
    /// # Errors
    /// What the caller is to be told.
    fn set_ldt(&self, base: u64, entries: u32) -> Result<()>;
    /// Entry `index` of the machine's memory map; `None` after its end.
    fn memory_map_entry(&self, index: usize) -> Option<E820Entry>;
}

/// Finds domains by number.
pub trait Domains {
    /// The memory state of a live domain.
    fn find(&self, id: DomId) -> Option<&DomainMemory>;
}

/// What this crate keeps for a domain.
#[derive(Debug)]
pub struct DomainMemory {
    id: DomId,
    privileged: bool,
    total: AtomicU64,
    max: AtomicU64,
    dying: AtomicBool,
    shared_info: AtomicU64,
    cursor: AtomicU64,
    memory_map: Mutex<Vec<E820Entry>>,
    /// Its log of writes.
    pub(crate) log: WriteLog,
}

impl DomainMemory {
    /// State of a domain without memory. `max_pages` limits its reservation; `u64::MAX` is no limit.
    pub const fn new(id: DomId, privileged: bool, max_pages: u64) -> Self {
        Self {
            id,
            privileged,
            total: AtomicU64::new(0),
            max: AtomicU64::new(max_pages),
            dying: AtomicBool::new(false),
            shared_info: AtomicU64::new(0),
            cursor: AtomicU64::new(0),
            memory_map: Mutex::new(Vec::new()),
            log: WriteLog::new(),
        }
    }
    /// The domain's number.
    #[inline]
    pub const fn id(&self) -> DomId {
        self.id
    }
    /// True for a domain that may act on others and on the machine.
    #[inline]
    pub const fn is_privileged(&self) -> bool {
        self.privileged
    }
    /// Frames the domain has.
    pub fn total_pages(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
    /// Frames the domain may have.
    pub fn max_pages(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }
    /// Sets how many frames the domain may have; may be below what it has.
    pub fn set_max_pages(&self, pages: u64) {
        self.max.store(pages, Ordering::Relaxed);
    }
    /// True once the domain is being destroyed.
    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }
    /// From now on the domain gets no memory and no pins.
    pub fn set_dying(&self) {
        self.dying.store(true, Ordering::SeqCst);
    }
    /// Tells which frame is the domain's `shared_info`, for `XENMEM_maximum_gpfn`.
    pub fn set_shared_info(&self, mfn: Mfn) {
        self.shared_info.store(mfn.0, Ordering::Relaxed);
    }
    /// The frame of `shared_info`, once set.
    pub fn shared_info(&self) -> Option<Mfn> {
        match self.shared_info.load(Ordering::Relaxed) {
            0 => None,
            mfn => Some(Mfn(mfn)),
        }
    }
    /// Counts `pages` more if the limit allows.
    pub(crate) fn charge(&self, pages: u64) -> bool {
        let max = self.max_pages();
        let mut total = self.total_pages();
        loop {
            let Some(new) = total.checked_add(pages) else {
                return false;
            };
            if new > max || self.is_dying() {
                return false;
            }
            match self
                .total
                .compare_exchange(total, new, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => total = now,
            }
        }
    }
    pub(crate) fn uncharge(&self, pages: u64) {
        self.total.fetch_sub(pages, Ordering::Relaxed);
    }
    pub(crate) const fn cursor(&self) -> &AtomicU64 {
        &self.cursor
    }
    pub(crate) const fn memory_map(&self) -> &Mutex<Vec<E820Entry>> {
        &self.memory_map
    }
}

/// The page-table roots of a vCPU. Each holds a typed L4 reference; MFN 0 stands for none.
#[derive(Debug, Default)]
pub struct VcpuRoots {
    kernel: AtomicU64,
    user: AtomicU64,
    deferred: AtomicU64,
}

impl VcpuRoots {
    /// A vCPU without roots.
    pub const fn new() -> Self {
        Self {
            kernel: AtomicU64::new(0),
            user: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
        }
    }
    /// Root used in kernel mode.
    #[inline]
    pub fn kernel(&self) -> Option<Mfn> {
        some(self.kernel.load(Ordering::Relaxed))
    }
    /// Root used in user mode.
    #[inline]
    pub fn user(&self) -> Option<Mfn> {
        some(self.user.load(Ordering::Relaxed))
    }
    pub(crate) fn swap_kernel(&self, new: Option<Mfn>) -> Option<Mfn> {
        some(
            self.kernel
                .swap(new.map_or(0, |mfn| mfn.0), Ordering::AcqRel),
        )
    }
    pub(crate) fn swap_user(&self, new: Option<Mfn>) -> Option<Mfn> {
        some(self.user.swap(new.map_or(0, |mfn| mfn.0), Ordering::AcqRel))
    }
    /// A table whose invalidation was interrupted. Only a hint: the work is stored in the frame, and whoever needs
    /// the frame finishes it.
    pub(crate) fn deferred(&self) -> Option<Mfn> {
        some(self.deferred.load(Ordering::Relaxed))
    }
    pub(crate) fn set_deferred(&self, mfn: Option<Mfn>) {
        self.deferred
            .store(mfn.map_or(0, |mfn| mfn.0), Ordering::Relaxed);
    }
}

#[inline]
const fn some(mfn: u64) -> Option<Mfn> {
    if mfn == 0 { None } else { Some(Mfn(mfn)) }
}

/// Who asks: the machine, the calling domain and vCPU, and the other domains.
#[derive(Debug)]
pub struct Cx<'a, M, D> {
    /// The machine.
    pub machine: M,
    /// The calling domain.
    pub domain: &'a DomainMemory,
    /// The calling vCPU's roots.
    pub roots: &'a VcpuRoots,
    /// The other domains.
    pub domains: &'a D,
}

impl<'a, M: Machine, D: Domains> Cx<'a, M, D> {
    /// The domain a request names, which may be `DOMID_SELF`.
    ///
    /// # Errors
    /// `EPERM` if it is another one and the caller is not privileged, `ESRCH` if there is none.
    #[inline]
    pub fn target(&self, id: DomId) -> Result<&'a DomainMemory> {
        if id == DomId::SELF || id == self.domain.id {
            return Ok(self.domain);
        }
        if !self.domain.privileged {
            return Err(Errno::EPERM);
        }
        self.domains.find(id).ok_or(Errno::ESRCH)
    }
}
