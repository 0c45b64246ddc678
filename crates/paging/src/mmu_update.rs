// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall `mmu_update` (xen/xen.h): changes single entries of page tables and of the machine-to-phys table.
//!
//! A frame that is no table may be written too, as if it were mapped writable. The kind of the table comes from
//! its live type, and a reference to that type is held while the entry changes (XSA-109, 401).

use crate::frame::Frame;
use crate::log;
use crate::machine::{Cx, Domains, Machine};
use crate::update::Mode;
use crate::validate::{
    Pages, Stop, Tables, get_page, put_flat, put_page, put_typed, reap, share_owned, take_writable,
};
use crate::word::Kind;
use core::sync::atomic::Ordering;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::mmu::{self, MmuUpdate, RESUMED};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Mfn, Result};

/// Bytes of one request.
const REQUEST: u64 = size_of::<MmuUpdate>() as u64;

/// Where a batch stands: shared by `mmu_update` and `mmuext_op`.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Array of requests left.
    pub array: GuestVa,
    /// Requests left.
    pub count: u32,
    /// Guest address of the counter of finished requests, or null.
    pub pdone: GuestVa,
    /// Requests that earlier rounds of this call finished.
    pub before: u32,
    /// The raw last argument: the domains concerned.
    pub foreign: u64,
}

impl Batch {
    /// Reads the arguments; for a resumed call also `pdone`.
    #[inline]
    pub fn new<G: GuestMemory>(memory: &G, args: [u64; 4]) -> Result<Self> {
        let [array, count, pdone, foreign] = args;
        let mut batch = Self {
            array: GuestVa(array),
            count: count as u32,
            pdone: GuestVa(pdone),
            before: 0,
            foreign,
        };
        if batch.count & RESUMED != 0 {
            batch.count &= !RESUMED;
            if !batch.pdone.is_null() {
                batch.before = memory.read::<u32>(batch.pdone)?;
            }
        }
        Ok(batch)
    }
    /// Tells the guest how many requests are finished.
    #[inline]
    pub fn report<G: GuestMemory>(&self, memory: &G, done: u32) -> Result<()> {
        if self.pdone.is_null() {
            return Ok(());
        }
        memory.write(self.pdone, &self.before.wrapping_add(done))
    }
    /// The arguments with which the rest of the batch runs.
    #[cold]
    pub fn rest<G: GuestMemory>(&self, memory: &G, done: u32, size: u64) -> Flow {
        if let Err(errno) = self.report(memory, done) {
            return errno.into();
        }
        let left = self.count.saturating_sub(done);
        let array = if left == 0 {
            GuestVa::NULL
        } else {
            self.array.element(done.into(), size)
        };
        Flow::Again([
            array.0,
            u64::from(left | RESUMED),
            self.pdone.0,
            self.foreign,
            0,
        ])
    }
    /// End of the batch.
    #[inline]
    pub fn finish<G: GuestMemory>(&self, memory: &G, done: u32, result: Result<()>) -> Flow {
        let reported = self.report(memory, done);
        result.and(reported).map(|()| 0).into()
    }
}

impl<M: Machine, D: Domains> Cx<'_, M, D> {
    /// Continues the teardown this vCPU put off; false if it is still not done.
    #[inline]
    pub(crate) fn finish_deferred(&self, budget: &mut Budget) -> bool {
        let Some(mfn) = self.roots.deferred() else {
            return true;
        };
        if reap(self.machine, mfn, budget).is_err() {
            return false;
        }
        self.roots.set_deferred(None);
        true
    }
    /// Whose frames the low half of a `foreigndom` argument names.
    #[inline]
    pub(crate) fn pages(&self, foreign: u64) -> Result<Pages> {
        let id = DomId(foreign as u16);
        if id == DomId::SELF || id == self.domain.id() {
            return Ok(Pages::Of(self.domain.id()));
        }
        self.foreign_pages(id)
    }
    #[cold]
    fn foreign_pages(&self, id: DomId) -> Result<Pages> {
        if !self.domain.is_privileged() {
            return Err(Errno::EPERM);
        }
        match id {
            DomId::IO => Ok(Pages::Io),
            DomId::XEN => Ok(Pages::Xen),
            _ => self.target(id).map(|domain| Pages::Of(domain.id())),
        }
    }
}

/// `mmu_update(requests, count, pdone, foreigndom)`.
pub fn mmu_update<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    args: [u64; 4],
    budget: &mut Budget,
) -> Flow {
    if !cx.finish_deferred(budget) {
        let [array, count, pdone, foreign] = args;
        return Flow::Again([array, count, pdone, foreign, 0]);
    }
    let [array, count, ..] = args;
    if count as u32 == RESUMED && array == 0 {
        return Flow::Done(0);
    }
    let batch = match Batch::new(memory, args) {
        Ok(batch) => batch,
        Err(errno) => return errno.into(),
    };
    let setup = cx.pages(batch.foreign).and_then(|pages| {
        // The upper half names the owner of the tables, plus one.
        match ((batch.foreign >> 16) as u16).checked_sub(1) {
            None => Ok((pages, cx.domain)),
            Some(id) => cx.target(DomId(id)).map(|owner| (pages, owner)),
        }
    });
    let (pages, owner) = match setup {
        Ok(setup) => setup,
        Err(errno) => return errno.into(),
    };
    let tables = Tables::new(cx.machine, owner);
    let mut done = 0;
    while done < batch.count {
        let at = batch.array.element(done.into(), REQUEST);
        let result = memory
            .read::<MmuUpdate>(at)
            .map_err(Stop::Failed)
            .and_then(|request| one(cx, tables, request, pages, budget));
        match result {
            Ok(()) => done += 1,
            Err(Stop::Again) => return batch.rest(memory, done, REQUEST),
            Err(Stop::Failed(errno)) => return batch.finish(memory, done, Err(errno)),
        }
        if !budget.spend(1) && done < batch.count || cx.roots.deferred().is_some() {
            return batch.rest(memory, done, REQUEST);
        }
    }
    batch.finish(memory, done, Ok(()))
}

#[inline]
fn one<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    tables: Tables<'_, M>,
    request: MmuUpdate,
    pages: Pages,
    budget: &mut Budget,
) -> core::result::Result<(), Stop> {
    let mode = match request.ptr & mmu::COMMAND_MASK {
        mmu::NORMAL_PT_UPDATE | mmu::PT_UPDATE_NO_TRANSLATE => Mode::Replace,
        mmu::PT_UPDATE_PRESERVE_AD => Mode::PreserveAd,
        mmu::MACHPHYS_UPDATE => return Ok(machphys(cx, request, pages)?),
        _ => return Err(Errno::ENOSYS.into()),
    };
    let mfn = Mfn::containing(request.ptr);
    let index = (request.ptr >> 3) as usize & 511;
    let frame = cx.machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
    if share_owned(cx.machine, mfn, frame, Kind::L1, tables.owner.id())? {
        let slot = cx.machine.words(mfn).get(index).ok_or(Errno::EINVAL)?;
        let result = tables.update_l1(slot, request.val, mode, pages);
        release(cx, mfn, frame, budget);
        return Ok(result.map(|_| ())?);
    }
    upper(cx, tables, (mfn, frame, index), (request.val, mode), budget)
}

/// Drops the table reference held during the change, which is in the log.
#[inline]
fn release<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    mfn: Mfn,
    frame: &Frame,
    budget: &mut Budget,
) {
    log::written(cx.machine, frame);
    if put_typed(cx.machine, mfn, frame, budget).is_err() {
        cx.roots.set_deferred(Some(mfn));
    }
}

/// Changes an entry of an L2 to L4 table, or a word of a frame that is no table.
#[inline(never)]
fn upper<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    tables: Tables<'_, M>,
    (mfn, frame, index): (Mfn, &Frame, usize),
    (value, mode): (u64, Mode),
    budget: &mut Budget,
) -> core::result::Result<(), Stop> {
    let slot = cx.machine.words(mfn).get(index).ok_or(Errno::EINVAL)?;
    let kind = frame.kind().kind();
    if matches!(kind, Kind::L2 | Kind::L3 | Kind::L4)
        && share_owned(cx.machine, mfn, frame, kind, tables.owner.id())?
    {
        let result = tables.update_table(slot, kind, index, value, mode, budget);
        release(cx, mfn, frame, budget);
        if let Some(child) = result? {
            // The table just dropped may itself hold the unfinished work of the one above: one is enough.
            cx.roots.set_deferred(Some(child));
        }
        return Ok(());
    }
    take_writable(cx.machine, mfn, frame, tables.owner.id())?;
    slot.swap(value, Ordering::AcqRel);
    log::written(cx.machine, frame);
    put_flat(cx.machine, mfn, frame);
    Ok(())
}

fn machphys<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    request: MmuUpdate,
    pages: Pages,
) -> Result<()> {
    let Pages::Of(owner) = pages else {
        return Err(Errno::EPERM);
    };
    let mfn = Mfn::containing(request.ptr);
    // The reference keeps the frame its owner's while the entry changes, and is always dropped (XSA-113).
    get_page(cx.machine, mfn, owner)?;
    cx.machine.m2p_set(mfn, request.val);
    if let Some(frame) = cx.machine.frames().get(mfn) {
        log::written(cx.machine, frame);
    }
    put_page(cx.machine, mfn);
    Ok(())
}
