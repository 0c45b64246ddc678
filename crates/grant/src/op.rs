// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall `grant_table_op(cmd, array, count)` (xen/grant_table.h).
//!
//! Operations on an array write each element's status back as they go; a call that runs out of budget continues with
//! the elements that are left.

use crate::host::{Host, Request, status_of};
use crate::table::{FrameKind, GrantTable};
use crate::unmap::{LOT, Lot};
use crate::{copy, map, transfer, unmap};
use alloc::sync::Arc;
use philoxen_abi::grant::{
    CacheFlush, CopyRequest, GetStatusFrames, GetVersion, MapGrantRef, QuerySize, SetVersion,
    SetupTable, SwapGrantRef, Transfer, UnmapAndReplace, UnmapGrantRef, cache, gntst, op,
};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Mfn, PAGE_SIZE, Result};
use philoxen_paging::{Cx, Domains, validate};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Budget units of an element that pins a grant.
const COST: u32 = 16;

/// `grant_table_op(cmd, array, count)` of the domain whose table is `own`.
pub fn grant_table_op<M: Host, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    own: &Arc<GrantTable>,
    memory: &G,
    args: [u64; 3],
    budget: &mut Budget,
) -> Flow {
    let [cmd, array, count] = args;
    let (cmd, count) = (cmd as u32, count as u32);
    if count > i32::MAX as u32 {
        return Errno::EINVAL.into();
    }
    let mut request = Request::new(cx, own);
    let batch = Batch {
        memory,
        cmd,
        array: GuestVa(array),
        count,
    };
    match cmd {
        op::MAP_GRANT_REF => batch.run(budget, COST, |op: &mut MapGrantRef| {
            map::map(&mut request, op);
            Ok(())
        }),
        op::UNMAP_GRANT_REF => batch.run_lots(budget, &request, |lot, op: &mut UnmapGrantRef| {
            unmap::unmap(&request, lot, op)
        }),
        op::UNMAP_AND_REPLACE => {
            batch.run_lots(budget, &request, |lot, op: &mut UnmapAndReplace| {
                unmap::unmap_and_replace(&request, lot, op)
            })
        }
        op::COPY => {
            let mut held = copy::Held::default();
            let flow = batch.run(budget, 2 * COST, |op: &mut CopyRequest| {
                copy::copy(&mut request, &mut held, op);
                Ok(())
            });
            held.release(cx.machine);
            flow
        }
        op::TRANSFER => batch.one_by_one(|op: &mut Transfer| {
            transfer::transfer(&mut request, op);
            Ok(())
        }),
        op::SWAP_GRANT_REF => batch.run(budget, COST, |op: &mut SwapGrantRef| {
            let swapped = own.swap(cx.machine, op.ref_a, op.ref_b);
            op.status = swapped.err().unwrap_or(gntst::OKAY);
            Ok(())
        }),
        op::CACHE_FLUSH => batch.run(budget, COST, |op: &mut CacheFlush| {
            cache_flush(&mut request, op)
        }),
        op::GET_VERSION => batch.one_by_one(|op: &mut GetVersion| {
            op.version = request.managed(DomId(op.dom))?.1.version();
            Ok(())
        }),
        op::SETUP_TABLE => batch.single(|op| setup_table(&mut request, memory, op)),
        op::QUERY_SIZE => batch.single(|op| query_size(&mut request, op)),
        op::GET_STATUS_FRAMES => batch.single(|op| status_frames(&mut request, memory, op)),
        op::SET_VERSION => {
            let mut result = Ok(());
            let flow = batch.single(|op: &mut SetVersion| {
                result = own.set_version(cx.machine, cx.domain, op.version);
                op.version = own.version();
            });
            match (flow, result) {
                (Flow::Done(0), Err(errno)) => errno.into(),
                _ => flow,
            }
        }
        // A guest does not print on the machine's console; debug keys do.
        _ => Errno::ENOSYS.into(),
    }
}

/// The array of a call.
#[derive(Debug)]
struct Batch<'a, G> {
    memory: &'a G,
    cmd: u32,
    array: GuestVa,
    count: u32,
}

impl<G: GuestMemory> Batch<'_, G> {
    fn at<T>(&self, index: u32) -> GuestVa {
        self.array.element(index.into(), size_of::<T>() as u64)
    }
    /// The call that does the elements from `done` on.
    fn rest<T>(&self, done: u32) -> Flow {
        let left = self.count.saturating_sub(done);
        Flow::Again([self.cmd.into(), self.at::<T>(done).0, left.into(), 0, 0])
    }
    /// Carries out one element; its status is written even if it failed as a whole.
    #[inline]
    fn element<T: FromBytes + IntoBytes + Immutable>(
        &self,
        index: u32,
        work: impl FnOnce(&mut T) -> Result<()>,
    ) -> Result<()> {
        let at = self.at::<T>(index);
        let mut element = T::new_zeroed();
        self.memory.read_bytes(at, element.as_mut_bytes())?;
        work(&mut element)?;
        self.memory.write(at, &element)
    }
    /// Carries out all elements.
    #[inline]
    fn run<T: FromBytes + IntoBytes + Immutable>(
        &self,
        budget: &mut Budget,
        cost: u32,
        mut work: impl FnMut(&mut T) -> Result<()>,
    ) -> Flow {
        for index in 0..self.count {
            if let Err(errno) = self.element(index, &mut work) {
                return errno.into();
            }
            if !budget.spend(cost) && index + 1 < self.count {
                return self.rest::<T>(index + 1);
            }
        }
        Flow::Done(0)
    }
    /// Carries out one element for each call: a call's context holds few other domains, and each element may name another.
    fn one_by_one<T: FromBytes + IntoBytes + Immutable>(
        &self,
        work: impl FnOnce(&mut T) -> Result<()>,
    ) -> Flow {
        match self.count {
            0 => Flow::Done(0),
            count => match self.element(0, work) {
                Ok(()) if count > 1 => self.rest::<T>(1),
                result => result.map(|()| 0).into(),
            },
        }
    }
    /// Carries out all elements in lots, each completed before the next or the end of the call.
    #[inline]
    fn run_lots<T: FromBytes + IntoBytes + Immutable, M: Host, D: Domains>(
        &self,
        budget: &mut Budget,
        request: &Request<'_, M, D>,
        mut work: impl FnMut(&mut Lot, &mut T),
    ) -> Flow {
        let mut lot = Lot::default();
        let mut done = 0;
        while done < self.count {
            let end = self.count.min(done.saturating_add(LOT as u32));
            let mut result = Ok(());
            while done < end && result.is_ok() && !lot.is_full() {
                result = self.element(done, |element| {
                    work(&mut lot, element);
                    Ok(())
                });
                done += 1;
                budget.spend(COST);
            }
            lot.complete(request);
            if let Err(errno) = result {
                return errno.into();
            }
            if budget.is_spent() && done < self.count {
                return self.rest::<T>(done);
            }
        }
        Flow::Done(0)
    }
    /// An operation that comes alone.
    fn single<T: FromBytes + IntoBytes + Immutable>(&self, work: impl FnOnce(&mut T)) -> Flow {
        if self.count != 1 {
            return Errno::EINVAL.into();
        }
        let done = self.element(0, |element| {
            work(element);
            Ok(())
        });
        done.map(|()| 0).into()
    }
}

fn setup_table<M: Host, D: Domains, G: GuestMemory>(
    request: &mut Request<'_, M, D>,
    memory: &G,
    op: &mut SetupTable,
) {
    let machine = request.cx.machine;
    let result = request
        .managed(DomId(op.dom))
        .map_err(status_of)
        .and_then(|(domain, table)| {
            table
                .grow(machine, domain, op.nr_frames)
                .map_err(status_of)?;
            list_frames(
                table,
                memory,
                FrameKind::Shared,
                (op.frame_list, op.nr_frames),
            )
        });
    op.status = result.err().unwrap_or(gntst::OKAY);
}

fn status_frames<M: Host, D: Domains, G: GuestMemory>(
    request: &mut Request<'_, M, D>,
    memory: &G,
    op: &mut GetStatusFrames,
) {
    let result = request
        .managed(DomId(op.dom))
        .map_err(status_of)
        .and_then(|(_, table)| {
            list_frames(
                table,
                memory,
                FrameKind::Status,
                (op.frame_list, op.nr_frames),
            )
        });
    op.status = result.err().unwrap_or(gntst::OKAY);
}

/// Writes the frames of a table to the guest's array.
fn list_frames<G: GuestMemory>(
    table: &GrantTable,
    memory: &G,
    kind: FrameKind,
    (list, count): (u64, u32),
) -> core::result::Result<(), i16> {
    for index in 0..count {
        let mfn = table.frame(kind, index).ok_or(gntst::GENERAL_ERROR)?;
        memory
            .write(GuestVa(list).element(index.into(), 8), &mfn.0)
            .map_err(|_| gntst::BAD_VIRT_ADDR)?;
    }
    Ok(())
}

fn query_size<M: Host, D: Domains>(request: &mut Request<'_, M, D>, op: &mut QuerySize) {
    op.status = match request.managed(DomId(op.dom)) {
        Ok((_, table)) => {
            op.nr_frames = table.frames();
            op.max_nr_frames = table.limits().grant_frames;
            gntst::OKAY
        }
        Err(errno) => status_of(errno),
    };
}

/// Caches are coherent on this architecture: what is left to do is to say whether the caller may ask.
fn cache_flush<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    op: &CacheFlush,
) -> Result<()> {
    let wanted = op.op & !cache::SOURCE_GREF;
    let end = u64::from(op.offset) + u64::from(op.length);
    if u64::from(op.offset) >= PAGE_SIZE
        || end > PAGE_SIZE
        || wanted & !(cache::CLEAN | cache::INVAL) != 0
    {
        return Err(Errno::EINVAL);
    }
    if op.length == 0 || wanted == 0 {
        return Ok(());
    }
    let machine = request.cx.machine;
    let caller = request.cx.domain.id();
    let mfn = if op.op & cache::SOURCE_GREF != 0 {
        let frame = request.own.granted_frame(machine, op.addr_or_ref as u32);
        Mfn(frame.map_err(|_| Errno::EINVAL)?)
    } else {
        Mfn::containing(op.addr_or_ref)
    };
    validate::get_page(machine, mfn, caller).map_err(|_| Errno::EPERM)?;
    validate::put_page(machine, mfn);
    if wanted == cache::INVAL {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}
