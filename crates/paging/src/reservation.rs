// SPDX-License-Identifier: MIT OR Apache-2.0
//! Giving frames to domains and taking them back; `memory_op`'s increase, decrease and populate (xen/memory.h).
//!
//! A frame that a domain's data may be in is zeroed before anyone else has it, and TLBs that may still translate
//! to it are flushed first. The allocation itself holds one general reference; the frame returns to the allocator
//! when the last reference goes, whoever holds it.

use crate::exchange::exchange;
use crate::frame::Frame;
use crate::log;
use crate::machine::{Cx, DomainMemory, Domains, Machine};
use crate::memory_info;
use crate::validate::{get_page, put_frame, put_page, reap};
use crate::word::{ENTRIES, OwnerWord, TypeWord};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::memory::{COMMAND_BITS, COMMAND_MASK, MemoryReservation, address_bits, op};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Mfn, Result};

/// Largest extent an ordinary domain may ask for.
pub const MAX_GUEST_ORDER: u32 = 9;
/// Largest extent a privileged domain may ask for: what is zeroed in one go.
pub const MAX_PRIVILEGED_ORDER: u32 = 12;

/// `memory_op(command, argument)`.
pub fn memory_op<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    args: [u64; 2],
    budget: &mut Budget,
) -> Flow {
    let [command, arg] = args;
    match (command & COMMAND_MASK, command >> COMMAND_BITS) {
        (
            op @ (op::INCREASE_RESERVATION | op::DECREASE_RESERVATION | op::POPULATE_PHYSMAP),
            start,
        ) => reservation(cx, memory, (op, start, GuestVa(arg)), budget).unwrap_or_else(Flow::from),
        (op::EXCHANGE, 0) => exchange(cx, memory, GuestVa(arg), budget),
        (op, 0) => memory_info::query(cx, memory, op, GuestVa(arg)).into(),
        _ => Errno::ENOSYS.into(),
    }
}

pub(crate) const fn max_order(caller: &DomainMemory) -> u32 {
    if caller.is_privileged() {
        MAX_PRIVILEGED_ORDER
    } else {
        MAX_GUEST_ORDER
    }
}

fn reservation<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    (op, start, arg): (u64, u64, GuestVa),
    budget: &mut Budget,
) -> Result<Flow> {
    let request: MemoryReservation = memory.read(arg)?;
    let domain = cx.target(DomId(request.domid))?;
    let extents = GuestVa(request.extent_start);
    // Bad sizes and handles are not errors of this interface: nothing more gets done.
    let nothing = Ok(Flow::Done(start as i64));
    if request.nr_extents > u64::MAX >> COMMAND_BITS
        || request.extent_order > max_order(cx.domain)
        || !(extents.is_null() || extents.range_ok(request.nr_extents.saturating_mul(8)))
    {
        return nothing;
    }
    let frames = 1u32 << request.extent_order;
    for index in start..request.nr_extents {
        if index != start && budget.is_spent() {
            return Ok(Flow::Again([op | index << COMMAND_BITS, arg.0, 0, 0, 0]));
        }
        let extent = extents.element(index, 8);
        let done = match op {
            op::DECREASE_RESERVATION => memory
                .read::<u64>(extent)
                .and_then(|mfn| give_back(cx.machine, domain, Mfn(mfn), frames)),
            op::POPULATE_PHYSMAP => memory.read::<u64>(extent).and_then(|pfn| {
                let mfn = allocate(cx.machine, domain, request.extent_order, request.mem_flags)?;
                for page in 0..u64::from(frames) {
                    let mfn = Mfn(mfn.0.wrapping_add(page));
                    cx.machine.m2p_set(mfn, pfn.wrapping_add(page));
                }
                memory.write(extent, &mfn.0)
            }),
            _ => allocate(cx.machine, domain, request.extent_order, request.mem_flags).and_then(
                |mfn| match extents.is_null() {
                    true => Ok(()),
                    false => memory.write(extent, &mfn.0),
                },
            ),
        };
        if let Err(errno) = done {
            cx.machine
                .extent_refused(cx.domain.id(), domain, request.extent_order, errno);
            return Ok(Flow::Done(index as i64));
        }
        budget.spend(frames.saturating_mul(16));
    }
    Ok(Flow::Done(request.nr_extents.max(start) as i64))
}

/// Takes 2^`order` clean frames from the allocator as the hypervisor's own: no TLB translates to them, and they
/// are zero unless `keep` and no domain's data is in them.
pub(crate) fn take_clean<M: Machine>(
    machine: M,
    order: u32,
    max_bits: u32,
    keep: bool,
) -> Option<Mfn> {
    let block = machine.alloc_block(order, max_bits)?;
    machine.flush_since(block.stamp);
    if block.dirty || !keep {
        for page in 0..1u64 << order {
            machine.zero(Mfn(block.start.0.wrapping_add(page)));
        }
    }
    Some(block.start)
}

/// Takes 2^`order` zeroed frames for the hypervisor at run time; give them back with [`Machine::free_frame`].
pub fn alloc_hypervisor<M: Machine>(machine: M, order: u32, max_bits: u32) -> Option<Mfn> {
    take_clean(machine, order, max_bits, false)
}

/// Allocates an extent for `domain`.
fn allocate<M: Machine>(
    machine: M,
    domain: &DomainMemory,
    order: u32,
    mem_flags: u32,
) -> Result<Mfn> {
    if !domain.charge(1 << order) {
        return Err(Errno::ENOMEM);
    }
    // Memory that never was a domain's holds no secret from a privileged one.
    match take_clean(
        machine,
        order,
        address_bits(mem_flags),
        domain.is_privileged(),
    ) {
        Some(start) => {
            own(machine, domain, start, 1 << order);
            Ok(start)
        }
        None => {
            domain.uncharge(1 << order);
            Err(Errno::ENOMEM)
        }
    }
}

/// Makes the hypervisor's frames `domain`'s. The domain has been charged for them.
pub(crate) fn own<M: Machine>(machine: M, domain: &DomainMemory, start: Mfn, count: u64) {
    let frames = machine.frames();
    for index in start.0..start.0.saturating_add(count) {
        if let Some(frame) = frames.get(Mfn(index)) {
            frame.set_kind(TypeWord::FRESH);
            frame.set_owner(OwnerWord::allocated(domain.id()));
            log::written(machine, frame);
        }
    }
}

/// Gives `count` of the hypervisor's frames from `start` to `domain` as they are (Domain 0 builder).
///
/// # Errors
/// `ENOMEM` if the domain may not have that many.
pub fn assign_frames<M: Machine>(
    machine: M,
    domain: &DomainMemory,
    start: Mfn,
    count: u64,
) -> Result<()> {
    if !domain.charge(count) {
        return Err(Errno::ENOMEM);
    }
    own(machine, domain, start, count);
    Ok(())
}

/// Lets `domain` map one of the hypervisor's frames (`shared_info`, grant tables). It must hold nothing secret.
///
/// The frame keeps one general reference, the hypervisor's; [`put_page`] drops it, and the frame is freed when the
/// guest's references are gone too.
pub fn share_frame<M: Machine>(machine: M, domain: &DomainMemory, mfn: Mfn) {
    if let Some(frame) = machine.frames().get(mfn) {
        frame.set_kind(TypeWord::FRESH);
        frame.set_owner(OwnerWord::shared(domain.id()));
    }
}

/// A zeroed frame that the hypervisor shares with `domain`, see [`share_frame`].
pub fn alloc_shared<M: Machine>(machine: M, domain: &DomainMemory) -> Option<Mfn> {
    let mfn = take_clean(machine, 0, 0, false)?;
    share_frame(machine, domain, mfn);
    Some(mfn)
}

/// Undoes [`share_frame`]: the hypervisor lets go of the frame, which is freed once the guest's mappings are gone too.
pub fn unshare_frame<M: Machine>(machine: M, mfn: Mfn) {
    if let Some(frame) = machine.frames().get(mfn)
        && frame.unshare_hypervisor()
    {
        put_frame(machine, mfn, frame);
    }
}

/// True if only the allocation and the caller refer to a frame: its domain has it mapped nowhere.
///
/// A frame that is given up while it is mapped stays with its domain but leaves its account, so a domain that does that over
/// and over would have more than its limit. Domain 0, whose early boot does it once, is trusted with that.
fn is_unused<M: Machine>(machine: M, mfn: Mfn, frame: &Frame) -> bool {
    let _ = reap(machine, mfn, &mut Budget::new(ENTRIES));
    frame.owner().count() == 2
}

/// Takes frames away from `domain`, which gives them up.
fn give_back<M: Machine>(machine: M, domain: &DomainMemory, start: Mfn, count: u32) -> Result<()> {
    for index in 0..u64::from(count) {
        let mfn = Mfn(start.0.checked_add(index).ok_or(Errno::EINVAL)?);
        get_page(machine, mfn, domain.id())?;
        let frame = machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
        if !domain.is_privileged() && !is_unused(machine, mfn, frame) {
            put_page(machine, mfn);
            return Err(Errno::EINVAL);
        }
        let given = frame.unallocate(domain.id());
        if given {
            domain.uncharge(1);
            // Interrupted validation would keep the frame; undo it now as far as one piece goes.
            let _ = reap(machine, mfn, &mut Budget::new(ENTRIES));
            put_frame(machine, mfn, frame);
        }
        put_page(machine, mfn);
        if !given {
            return Err(Errno::EINVAL);
        }
    }
    Ok(())
}
