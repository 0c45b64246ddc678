// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's port table: buckets of ports made on demand, the set of free ones, and the vCPUs' event state.
//!
//! Invariants: a bucket, once made, stays as long as the domain, so a port reference never dangles; `used` counts the ports
//! that are not free; the lowest free port is taken first, as on Xen.

use crate::free::PortSet;
use crate::port::{MAX_PIRQS, MAX_VCPUS, Port, State, Word};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::{Frames, VcpuEvents, VcpuInfo};
use alloc::boxed::Box;
use alloc::vec::Vec;
use philoxen_abi::event::{TWO_LEVEL_PORTS, fifo};
use philoxen_abi::shared::{LEGACY_MAX_VCPUS, VCPU_INFO_SIZE};
use philoxen_abi::{DomId, Errno, Mfn, PAGE_SIZE, Result, VcpuId};
use spin::Once;

const BUCKET: u32 = 128;
/// Free ports examined before an allocation gives up on them; more than this many are passed over only by a guest
/// that leaves closed ports on its queues.
const RECYCLE_TRIES: u32 = 128;

/// Sizes fixed when a domain is made.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of vCPUs the domain may have, at most 8192.
    pub vcpus: u32,
    /// Highest port number (`max_evtchn_port`), clamped to what the FIFO layout can name.
    pub max_port: u32,
    /// Number of PIRQs; 0 for a domain without physical interrupts.
    pub pirqs: u32,
}

/// What the debug key and the toolstack see of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its binding.
    pub state: State,
    /// vCPU it notifies.
    pub vcpu: VcpuId,
    /// FIFO priority.
    pub priority: u32,
    /// Its pending bit.
    pub pending: bool,
    /// Its mask bit.
    pub masked: bool,
}

/// Allocation state, behind the table lock.
#[derive(Debug)]
pub(crate) struct Table {
    /// Lowest port that has never been used since the last reset.
    pub(crate) fresh: u32,
    /// Ports that are not free, port 0 apart.
    pub(crate) used: u32,
    /// Set when the domain is being destroyed: no more allocations.
    pub(crate) dying: bool,
    /// Where the destruction goes on.
    pub(crate) sweep: u32,
    /// Ports below `fresh` that are free.
    free: PortSet,
}

impl Table {
    /// Forgets the free ports once none is used: numbering starts again at 1.
    pub(crate) fn forget_free(&mut self) {
        self.fresh = 1;
        self.free.clear();
    }
}

/// The event channels of one domain.
#[derive(Debug)]
pub struct DomainEvents {
    id: DomId,
    shared_info: Mfn,
    max_port: u32,
    buckets: Vec<Once<Box<[Port]>>>,
    pub(crate) table: Mutex<Table>,
    pub(crate) vcpus: Vec<VcpuEvents>,
    /// Port of each PIRQ; 0 is none.
    pub(crate) pirqs: Vec<AtomicU32>,
    /// vCPUs that poll: lets the send path skip the search.
    pub(crate) pollers: AtomicU32,
    /// True once the domain uses the FIFO layout. Changes only under the table lock.
    pub(crate) fifo: AtomicBool,
    /// Frames of the FIFO event array; `u64::MAX` is none. Changes only under the table lock.
    pub(crate) array: Vec<AtomicU64>,
}

/// A vector of `count` elements, or `ENOMEM`.
fn try_vec<T>(count: u32, mut make: impl FnMut(u32) -> T) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(count as usize)
        .map_err(|_| Errno::ENOMEM)?;
    for index in 0..count {
        vec.push(make(index));
    }
    Ok(vec)
}

impl DomainEvents {
    /// The events of a new domain `id` whose `shared_info` (zeroed, the hypervisor's own) is frame `shared_info`.
    ///
    /// # Errors
    /// `EINVAL` for limits that the tables cannot hold, `ENOMEM`.
    pub fn new(id: DomId, shared_info: Mfn, limits: Limits) -> Result<Self> {
        if limits.vcpus > MAX_VCPUS || limits.pirqs > MAX_PIRQS {
            return Err(Errno::EINVAL);
        }
        let max_port = limits.max_port.min(fifo::PORTS - 1);
        Ok(Self {
            id,
            shared_info,
            max_port,
            buckets: try_vec(max_port / BUCKET + 1, |_| Once::new())?,
            table: Mutex::new(Table {
                fresh: 1,
                used: 0,
                dying: false,
                sweep: 1,
                free: PortSet::new(max_port)?,
            }),
            vcpus: try_vec(limits.vcpus, |vcpu| {
                VcpuEvents::new(Self::legacy_info(shared_info, vcpu))
            })?,
            pirqs: try_vec(limits.pirqs, |_| AtomicU32::new(0))?,
            pollers: AtomicU32::new(0),
            fifo: AtomicBool::new(false),
            array: try_vec(fifo::ARRAY_PAGES as u32, |_| AtomicU64::new(u64::MAX))?,
        })
    }

    /// Where `shared_info` keeps the `vcpu_info` of `vcpu`.
    fn legacy_info(shared_info: Mfn, vcpu: u32) -> Option<u64> {
        (vcpu < LEGACY_MAX_VCPUS).then(|| {
            shared_info
                .addr()
                .wrapping_add(u64::from(vcpu).wrapping_mul(VCPU_INFO_SIZE as u64))
        })
    }

    /// The domain these belong to.
    #[inline(always)]
    pub const fn id(&self) -> DomId {
        self.id
    }

    /// Frame of the domain's `shared_info`.
    #[inline(always)]
    pub const fn shared_info(&self) -> Mfn {
        self.shared_info
    }

    /// Calls `each` for every frame that is pinned ([`Frames::pin`]), once for each pin: for the page audit.
    pub fn pinned(&self, mut each: impl FnMut(Mfn)) {
        let blocks = self
            .vcpus
            .iter()
            .flat_map(|vcpu| [vcpu.info_address(), vcpu.control_address()]);
        for frame in blocks.flatten().map(Mfn::containing) {
            if frame != self.shared_info {
                each(frame);
            }
        }
        let array = self.array.iter().map(|page| page.load(Ordering::Acquire));
        array
            .filter(|&page| page != u64::MAX)
            .for_each(|page| each(Mfn(page)));
    }

    /// Event state of a vCPU.
    #[inline(always)]
    pub fn vcpu(&self, vcpu: VcpuId) -> Option<&VcpuEvents> {
        self.vcpus.get(vcpu.0 as usize)
    }

    /// True once the domain uses the FIFO layout.
    #[inline(always)]
    pub fn uses_fifo(&self) -> bool {
        self.fifo.load(Ordering::Acquire)
    }

    /// Ports in use: 0 for a domain without any binding.
    pub fn used_ports(&self) -> u32 {
        self.table.lock().used
    }

    /// One more than the highest port in use so far: bound for walks over [`DomainEvents::info`].
    pub fn port_bound(&self) -> u32 {
        self.table.lock().fresh
    }

    /// State of a port for the debug key; `None` if it was never used.
    pub fn info(&self, frames: &impl Frames, port: u32) -> Option<PortInfo> {
        let guard = self.port(port)?.lock();
        let (pending, masked) = if guard.usable() {
            self.flags(frames, port)
        } else {
            (false, false)
        };
        Some(PortInfo {
            state: guard.state(),
            vcpu: guard.vcpu(),
            priority: guard.priority(),
            pending: pending || guard.latched(),
            masked,
        })
    }

    /// The slot of a port, if its bucket exists.
    #[inline(always)]
    pub(crate) fn port(&self, port: u32) -> Option<&Port> {
        self.buckets
            .get((port / BUCKET) as usize)?
            .get()?
            .get((port % BUCKET) as usize)
    }

    /// Highest port of the current layout.
    fn layout_max(&self) -> u32 {
        let ports = if self.uses_fifo() {
            fifo::PORTS
        } else {
            TWO_LEVEL_PORTS
        };
        self.max_port.min(ports - 1)
    }

    /// Takes a free port and marks it reserved.
    ///
    /// # Errors
    /// `ENOSPC` if all ports are in use (or free but still on the guest's queues), `ENOMEM`, `EINVAL` if the domain dies.
    pub(crate) fn reserve(&self, frames: &impl Frames) -> Result<u32> {
        let mut table = self.table.lock();
        if table.dying {
            return Err(Errno::EINVAL);
        }
        let mut free = table.free.next(1);
        for attempt in 0..2 * RECYCLE_TRIES {
            let (port, recycled) = match free.filter(|_| attempt < RECYCLE_TRIES) {
                Some(port) => (port, true),
                None => (self.take_fresh(&mut table)?, false),
            };
            let slot = self.port(port).ok_or(Errno::EINVAL)?;
            if self.is_linked(frames, port) {
                // The guest has not taken the old event off its queue; a new binding would corrupt the queue.
                table.free.insert(port);
                free = free.and_then(|port| table.free.next(port.saturating_add(1)));
                continue;
            }
            if recycled {
                table.free.remove(port);
            }
            *slot.lock() = Word::new(State::Reserved);
            table.used = table.used.saturating_add(1);
            return Ok(port);
        }
        Err(Errno::ENOSPC)
    }

    fn take_fresh(&self, table: &mut Table) -> Result<u32> {
        let port = table.fresh;
        if port > self.layout_max() {
            return Err(Errno::ENOSPC);
        }
        let bucket = self
            .buckets
            .get((port / BUCKET) as usize)
            .ok_or(Errno::ENOSPC)?;
        bucket.try_call_once(|| {
            try_vec(BUCKET, |index| {
                Port::new(if port < BUCKET && index == 0 {
                    State::Reserved
                } else {
                    State::Free
                })
            })
            .map(Vec::into_boxed_slice)
        })?;
        table.fresh = port.saturating_add(1);
        Ok(port)
    }

    /// Gives back a port that the caller holds reserved.
    pub(crate) fn release(&self, port: u32) {
        let mut table = self.table.lock();
        if let Some(slot) = self.port(port) {
            *slot.lock() = Word::new(State::Free);
        }
        table.free.insert(port);
        table.used = table.used.saturating_sub(1);
    }

    /// Moves a vCPU's `vcpu_info` to byte `offset` of its domain's frame `mfn` (`VCPUOP_register_vcpu_info`).
    ///
    /// The contents are copied, and an upcall with the whole selector is made pending, so that an event that raced
    /// with the move is found. The caller has checked that the vCPU is itself or down, and writes the time record again.
    ///
    /// # Errors
    /// `ENOENT` for no such vCPU; `EINVAL` if the structure is misaligned or crosses the frame, if one was registered
    /// before, or if the frame cannot be pinned.
    pub fn register_vcpu_info(
        &self,
        frames: &impl Frames,
        vcpu: VcpuId,
        mfn: Mfn,
        offset: u32,
    ) -> Result<()> {
        let state = self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        let size = VCPU_INFO_SIZE as u32;
        if u64::from(offset) > PAGE_SIZE - u64::from(size)
            || !offset.is_multiple_of(8)
            || mfn.0 >= 1 << 40
        {
            return Err(Errno::EINVAL);
        }
        let table = self.table.lock();
        let old = state.info_address();
        if table.dying || old != Self::legacy_info(self.shared_info, vcpu.0) {
            return Err(Errno::EINVAL);
        }
        frames.pin(self.id, mfn)?;
        let place = mfn.addr().wrapping_add(u64::from(offset));
        if let Some(new) = VcpuInfo::at(frames, place) {
            new.copy(state.info(frames));
            state.set_info(Some(place));
            new.select_all();
        }
        Ok(())
    }

    /// Unpins every registered `vcpu_info`; only when no port is bound and no vCPU runs.
    pub(crate) fn drop_vcpu_infos(&self, frames: &impl Frames) {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            let Some(addr) = vcpu.info_address() else {
                continue;
            };
            let legacy = Self::legacy_info(self.shared_info, index as u32);
            if Some(addr) != legacy {
                vcpu.set_info(legacy);
                frames.unpin(self.id, Mfn::containing(addr));
            }
        }
    }
}
