// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the paging crate needs, from the hardware crate and the domain list, and its operations for the running vCPU.

use crate::cpu::{self, Running};
use crate::domain::{self, Domain};
use crate::host::Hv;
use crate::syscall::budget;
use crate::vcpu::Vcpu;
use crate::{schedule, smp};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU32, AtomicU64};
use philoxen_abi::memory::E820Entry;
use philoxen_abi::{DomId, Errno, GuestVa, Mfn, PAGE_SIZE, Pfn, Result};
use philoxen_hw::cpu::{asm, window};
use philoxen_hw::{machine as hw, memory};
use philoxen_paging::buddy::Block;
use philoxen_paging::frame::FrameTable;
use philoxen_paging::machine::{Flush, FlushScope};
use philoxen_paging::validate::Stop;
use philoxen_paging::{Cx, DomainMemory, Domains, IoAccess, Machine, mmuext, va_mapping, validate};
use philoxen_pv::descriptor;
use philoxen_pv::emulate::CrWrite;
use spin::Once;

/// Other domains that one request can name.
const MAX_FOREIGN: usize = 2;

impl Machine for Hv {
    #[inline(always)]
    fn frames(&self) -> FrameTable {
        memory::frames()
    }
    #[inline(always)]
    fn words(&self, mfn: Mfn) -> &'static [AtomicU64; 512] {
        memory::words_or_scratch(mfn)
    }
    fn zero(&self, mfn: Mfn) {
        memory::zero_frames(mfn, 1);
    }
    #[inline]
    fn m2p_get(&self, mfn: Mfn) -> u64 {
        memory::m2p_get(mfn)
    }
    #[inline]
    fn m2p_set(&self, mfn: Mfn, pfn: u64) {
        memory::m2p_set(mfn, pfn);
    }
    fn is_m2p_frame(&self, mfn: Mfn) -> bool {
        memory::is_m2p_frame(mfn)
    }
    fn m2p_extent(&self, index: u64) -> Option<Mfn> {
        memory::m2p_extent(index)
    }
    #[inline]
    fn tlb_clock(&self) -> u64 {
        hw::tlb_stamp()
    }
    fn flush_since(&self, stamp: u64) {
        smp::flush_since(stamp, |_| true);
    }
    fn flush_tlb(&self, domain: &DomainMemory, scope: FlushScope, what: Flush) {
        match what {
            Flush::Page(va) => asm::invlpg(va),
            Flush::All => hw::flush_local(),
        }
        // Other processors are told whole flushes only: rare, and right for any scope.
        match scope {
            FlushScope::Local => {}
            FlushScope::Vcpus(mask) => schedule::flush_others(domain.id(), mask),
            FlushScope::Domain => schedule::flush_others(domain.id(), u64::MAX),
        }
    }
    fn flush_caches(&self, all: bool) {
        if all {
            smp::flush_caches();
        } else {
            hw::flush_caches();
        }
    }
    #[inline]
    fn load_root(&self, l4: Mfn) {
        hw::load_root(Some(l4));
    }
    fn hypervisor_l4_entry(&self, slot: usize) -> u64 {
        memory::hypervisor_l4_entry(slot)
    }
    fn alloc_block(&self, order: u32, max_bits: u32) -> Option<Block> {
        memory::alloc_for_domain(order, max_bits)
    }
    fn extent_refused(&self, caller: DomId, domain: &DomainMemory, order: u32, errno: Errno) {
        crate::refusal::memory(caller, domain, order, errno);
    }
    fn free_frame(&self, mfn: Mfn, dirty: bool, stamp: u64) {
        memory::buddy()
            .lock()
            .free_block(&memory::frames(), mfn, 0, dirty, stamp);
    }
    fn relax(&self) {
        asm::relax();
    }
    #[inline]
    fn logs(&self) -> &'static AtomicU32 {
        static LOGS: AtomicU32 = AtomicU32::new(0);
        &LOGS
    }
    fn check_descriptor(&self, value: u64) -> Option<u64> {
        descriptor::check(value)
    }
    fn io_access(&self, domain: DomId, mfn: Mfn) -> IoAccess {
        let exists = mfn.0 < 1 << (memory::address_bits() - 12);
        let given = || {
            let domain = domain::find(domain);
            domain.is_some_and(|domain| domain.tool.access.read().frames.contains(mfn.0, 1))
        };
        if exists && (domain == DomId::DOM0 || given()) {
            crate::irq::device_access(mfn)
        } else {
            IoAccess::None
        }
    }
    fn set_ldt(&self, base: u64, entries: u32) -> Result<()> {
        cpu::set_ldt(GuestVa(base), entries)
    }
    fn memory_map_entry(&self, index: usize) -> Option<E820Entry> {
        let region = *philoxen_hw::boot::info()?.memory.get(index)?;
        Some(E820Entry {
            addr: region.start,
            size: region.end - region.start,
            kind: region.kind as u32,
        })
    }
}

/// The domains other than the caller that a request names, held until it is done.
pub struct Others {
    held: [Once<(DomId, Arc<Domain>)>; MAX_FOREIGN],
}

impl Others {
    const fn new() -> Self {
        Self {
            held: [const { Once::new() }; MAX_FOREIGN],
        }
    }
}

impl Domains for Others {
    fn find(&self, id: DomId) -> Option<&DomainMemory> {
        for slot in &self.held {
            if let Some((held, domain)) = slot.get() {
                if *held == id {
                    return Some(&domain.memory);
                }
                continue;
            }
            let domain = domain::find(id)?;
            return Some(&slot.call_once(|| (id, domain)).1.memory);
        }
        None
    }
}

/// Calls `work` with the running vCPU's paging context.
#[inline(always)]
pub fn with<R>(running: &Running, work: impl FnOnce(&Cx<'_, Hv, Others>) -> R) -> R {
    let domains = Others::new();
    let cx = Cx {
        machine: Hv,
        domain: &running.domain.memory,
        roots: &running.vcpu().roots,
        domains: &domains,
    };
    work(&cx)
}

/// MOV to CR3 of the running vCPU's kernel; refused if the frame cannot be a root. A root that takes long to validate keeps
/// how far it is.
pub fn set_kernel_root(domain: &Domain, vcpu: &Vcpu, root: Mfn) -> CrWrite {
    let domains = Others::new();
    let cx = Cx {
        machine: Hv,
        domain: &domain.memory,
        roots: &vcpu.roots,
        domains: &domains,
    };
    match mmuext::new_kernel_root(&cx, &domain.memory, root, &mut budget()) {
        Ok(()) => CrWrite::Done,
        Err(Stop::Again) => CrWrite::Again,
        Err(Stop::Failed(_)) => CrWrite::Refused,
    }
}

/// Takes a writable reference to a frame of `dom`.
///
/// # Errors
/// `EINVAL` if it is not the domain's or is in use as a table.
pub fn get_writable(dom: DomId, mfn: Mfn) -> Result<()> {
    validate::get_page_writable(Hv, mfn, dom)
}

/// Gives back what [`get_writable`] took.
pub fn put_writable(mfn: Mfn) {
    validate::put_page_writable(Hv, mfn);
}

/// The frame that `va` of the vCPU's kernel maps, with a segment-descriptor reference taken.
pub fn descriptor_frame(domain: &Domain, vcpu: &Vcpu, va: GuestVa) -> Option<Mfn> {
    let (_, _, entry) = va_mapping::lookup_l1e(Hv, vcpu.roots.kernel()?, va.0)?;
    let mfn = Mfn((entry >> 12) & ((1 << 40) - 1));
    if entry & 1 == 0 {
        return None;
    }
    validate::get_page_segdesc(Hv, mfn, domain.id)
        .ok()
        .map(|()| mfn)
}

/// Replaces the running vCPU's GDT: every frame becomes a descriptor page before the old ones are given back.
///
/// # Errors
/// `EINVAL` for too many entries or a frame that cannot be a descriptor page; nothing has changed then.
pub fn replace_gdt(running: &mut Running, frames: &[u64], entries: u64) -> Result<()> {
    let mut new = ArrayVec::<Mfn, { window::GDT_PAGES }>::new();
    for &frame in frames {
        let taken = validate::get_page_segdesc(Hv, Mfn(frame), running.domain.id);
        if taken.is_err() || new.try_push(Mfn(frame)).is_err() {
            if taken.is_ok() {
                validate::put_page_segdesc(Hv, Mfn(frame));
            }
            new.iter()
                .for_each(|&mfn| validate::put_page_segdesc(Hv, mfn));
            return Err(Errno::EINVAL);
        }
    }
    window::set_gdt(&new);
    let state = &mut running.state;
    core::mem::swap(&mut state.gdt, &mut new);
    state.gdt_entries = entries;
    new.iter()
        .for_each(|&mfn| validate::put_page_segdesc(Hv, mfn));
    Ok(())
}

/// Fills page `pfn` of a domain's own numbering with hypercall stubs; false if it is not a writable page of the domain.
pub fn fill_hypercall_page(domain: &Domain, pfn: Pfn) -> bool {
    // A PV guest's own numbering is known to itself alone: it gives the frame.
    let mfn = Mfn(pfn.0);
    if get_writable(domain.id, mfn).is_err() {
        return false;
    }
    let mut page = [0; PAGE_SIZE as usize];
    philoxen_builder::hypercall_page(&mut page);
    memory::copy_to_frames(mfn, 0, &page);
    put_writable(mfn);
    true
}
