// SPDX-License-Identifier: MIT OR Apache-2.0
//! `XENMEM_exchange` (xen/memory.h): a domain swaps frames for others that are contiguous or below an address limit.
//!
//! Done in chunks of the larger of the two extent sizes, each all or nothing. A chunk's frames are first stolen
//! (one compare-and-swap each, from "only the allocation refers to it" to the hypervisor's), and kept in a list
//! that runs through their own type words; only then is the replacement allocated. Both lists of the guest are
//! checked before anything is touched, and every access goes through the checked guest copy (XSA-29, 212).

use crate::log;
use crate::machine::{Cx, DomainMemory, Domains, Machine};
use crate::reservation::{max_order, own, take_clean};
use crate::validate::free;
use crate::word::{Kind, OwnerWord, TypeWord};
use core::mem::offset_of;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::memory::{MemoryExchange, address_bits, op};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Mfn, Result};

/// The hypervisor's frames, linked through their type words (MFN + 1; 0 ends).
#[derive(Debug, Default)]
struct List {
    head: u64,
}

impl List {
    fn push<M: Machine>(&mut self, machine: M, mfn: Mfn) {
        if let Some(frame) = machine.frames().get(mfn) {
            frame.set_kind(TypeWord(self.head));
            self.head = mfn.0.wrapping_add(1);
        }
    }
    fn pop<M: Machine>(&mut self, machine: M) -> Option<Mfn> {
        let mfn = Mfn(self.head.checked_sub(1)?);
        let frame = machine.frames().get(mfn)?;
        self.head = frame.kind().0;
        frame.set_kind(TypeWord::FRESH);
        Some(mfn)
    }
}

/// A checked request.
struct Plan<'a> {
    domain: &'a DomainMemory,
    request: MemoryExchange,
    /// Input and output extents of one chunk.
    chunk: (u64, u64),
}

fn plan<'a, M: Machine, D: Domains>(
    cx: &Cx<'a, M, D>,
    request: MemoryExchange,
) -> Result<Plan<'a>> {
    let (input, output) = (&request.input, &request.output);
    let limit = max_order(cx.domain);
    if input.extent_order > limit || output.extent_order > limit {
        return Err(Errno::EPERM);
    }
    let total = |extents: u64, order: u32| {
        (extents <= u64::MAX >> (order + 12))
            .then_some(extents << order)
            .ok_or(Errno::EINVAL)
    };
    let frames = total(input.nr_extents, input.extent_order)?;
    if input.domid != output.domid
        || frames != total(output.nr_extents, output.extent_order)?
        || request.nr_exchanged > input.nr_extents
    {
        return Err(Errno::EINVAL);
    }
    for list in [input, output] {
        if !GuestVa(list.extent_start).range_ok(list.nr_extents.saturating_mul(8)) {
            return Err(Errno::EFAULT);
        }
    }
    let order = input.extent_order.max(output.extent_order);
    let chunk = (
        1 << (order - input.extent_order),
        1 << (order - output.extent_order),
    );
    // A resumed request stands at the start of a chunk; a guest may also lie here (XSA-296).
    if !request.nr_exchanged.is_multiple_of(chunk.0) {
        return Err(Errno::EINVAL);
    }
    let domain = cx.target(DomId(input.domid))?;
    Ok(Plan {
        domain,
        request,
        chunk,
    })
}

/// `memory_op(XENMEM_exchange, argument)`. Progress is the request's own `nr_exchanged`.
pub(crate) fn exchange<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    arg: GuestVa,
    budget: &mut Budget,
) -> Flow {
    let plan = match memory
        .read::<MemoryExchange>(arg)
        .and_then(|request| plan(cx, request))
    {
        Ok(plan) => plan,
        Err(errno) => return errno.into(),
    };
    let (step, _) = plan.chunk;
    let mut done = plan.request.nr_exchanged;
    let mut result = Ok(0);
    while done < plan.request.input.nr_extents {
        if done != plan.request.nr_exchanged && budget.is_spent() {
            break;
        }
        result = one_chunk(cx.machine, memory, &plan, done / step);
        match result {
            Ok(_) => done = done.saturating_add(step),
            Err(_) => break,
        }
        budget.spend(
            16 << plan
                .request
                .input
                .extent_order
                .max(plan.request.output.extent_order),
        );
    }
    let at = arg.add(offset_of!(MemoryExchange, nr_exchanged) as u64);
    if let Err(errno) = memory.write(at, &done) {
        return errno.into();
    }
    if result.is_ok() && done < plan.request.input.nr_extents {
        return Flow::Again([op::EXCHANGE, arg.0, 0, 0, 0]);
    }
    result.into()
}

fn one_chunk<M: Machine, G: GuestMemory>(
    machine: M,
    memory: &G,
    plan: &Plan<'_>,
    chunk: u64,
) -> Result<i64> {
    let mut given = List::default();
    let mut taken = List::default();
    let result = steal(machine, memory, plan, chunk, &mut given)
        .and_then(|()| allocate(machine, memory, plan, chunk, &mut taken));
    let order = plan.request.output.extent_order;
    if let Err(errno) = result {
        while let Some(start) = taken.pop(machine) {
            for page in 0..1u64 << order {
                machine.free_frame(Mfn(start.0.wrapping_add(page)), false, 0);
            }
        }
        while let Some(mfn) = given.pop(machine) {
            if let Some(frame) = machine.frames().get(mfn) {
                // The list used the type word for its links: whether an old writable translation is still about is not
                // known any more, so the next use as a table flushes.
                frame.set_kind(TypeWord::idle(Kind::None, machine.tlb_clock()));
                frame.set_owner(OwnerWord::allocated(plan.domain.id()));
                log::written(machine, frame);
            }
        }
        return Err(errno);
    }
    while let Some(mfn) = given.pop(machine) {
        if let Some(frame) = machine.frames().get(mfn) {
            free(machine, mfn, frame);
        }
    }
    // The list gives the last extent first.
    let mut index = (chunk + 1).saturating_mul(plan.chunk.1);
    let mut written = Ok(0);
    while let Some(start) = taken.pop(machine) {
        index = index.saturating_sub(1);
        own(machine, plan.domain, start, 1 << order);
        let at = GuestVa(plan.request.output.extent_start).element(index, 8);
        // The frames are the domain's whether or not it can be told.
        if let Err(errno) = memory.write(at, &start.0) {
            written = Err(errno);
        }
    }
    written
}

/// Takes the chunk's input frames out of the domain's hands.
fn steal<M: Machine, G: GuestMemory>(
    machine: M,
    memory: &G,
    plan: &Plan<'_>,
    chunk: u64,
    given: &mut List,
) -> Result<()> {
    let input = &plan.request.input;
    for extent in 0..plan.chunk.0 {
        let index = chunk.saturating_mul(plan.chunk.0).saturating_add(extent);
        let start: u64 = memory.read(GuestVa(input.extent_start).element(index, 8))?;
        for page in 0..1u64 << input.extent_order {
            let mfn = Mfn(start.checked_add(page).ok_or(Errno::EINVAL)?);
            let frame = machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
            if !frame.steal(plan.domain.id()) {
                return Err(Errno::EINVAL);
            }
            given.push(machine, mfn);
        }
    }
    Ok(())
}

/// Allocates the chunk's output extents and enters their PFNs in the machine-to-phys table.
fn allocate<M: Machine, G: GuestMemory>(
    machine: M,
    memory: &G,
    plan: &Plan<'_>,
    chunk: u64,
    taken: &mut List,
) -> Result<()> {
    let output = &plan.request.output;
    let bits = address_bits(output.mem_flags);
    for extent in 0..plan.chunk.1 {
        let index = chunk.saturating_mul(plan.chunk.1).saturating_add(extent);
        let pfn: u64 = memory.read(GuestVa(output.extent_start).element(index, 8))?;
        let start = take_clean(
            machine,
            output.extent_order,
            bits,
            plan.domain.is_privileged(),
        )
        .ok_or(Errno::ENOMEM)?;
        taken.push(machine, start);
        for page in 0..1u64 << output.extent_order {
            machine.m2p_set(Mfn(start.0.wrapping_add(page)), pfn.wrapping_add(page));
        }
    }
    Ok(())
}
