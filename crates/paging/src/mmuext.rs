// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall `mmuext_op` (xen/xen.h): pins, roots, TLB and cache flushes, LDT, page clear and copy.
//!
//! A root loaded for a vCPU holds a typed L4 reference, taken before the old one is dropped and dropped only
//! after the processor left it.

use crate::log;
use crate::machine::{Cx, DomainMemory, Domains, Flush, FlushScope, Machine, VcpuRoots};
use crate::mmu_update::Batch;
use crate::validate::{
    Stop, Tables, Unfinished, get_page, get_page_writable, put_page, put_page_writable, put_typed,
};
use crate::word::Kind;
use core::sync::atomic::Ordering;
use philoxen_abi::addr::is_canonical;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::mmu::{MmuextOp, RESUMED, mmuext as cmd};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Mfn, PAGE_SIZE, Result};

const OP: u64 = size_of::<MmuextOp>() as u64;
/// Largest LDT.
const MAX_LDT_ENTRIES: u32 = 8192;

/// `mmuext_op(ops, count, pdone, foreigndom)`.
pub fn mmuext_op<M: Machine, D: Domains, G: GuestMemory>(
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
    let domain = match cx.target(DomId(batch.foreign as u16)) {
        Ok(domain) => domain,
        Err(errno) => return errno.into(),
    };
    let mut done = 0;
    while done < batch.count {
        let at = batch.array.element(done.into(), OP);
        let result = memory
            .read::<MmuextOp>(at)
            .map_err(Stop::Failed)
            .and_then(|op| one(cx, memory, domain, op, budget));
        match result {
            Ok(()) => done += 1,
            Err(Stop::Again) => return batch.rest(memory, done, OP),
            Err(Stop::Failed(errno)) => return batch.finish(memory, done, Err(errno)),
        }
        if !budget.spend(1) && done < batch.count || cx.roots.deferred().is_some() {
            return batch.rest(memory, done, OP);
        }
    }
    batch.finish(memory, done, Ok(()))
}

/// Budget units of writing back all caches: some hundred microseconds.
const CACHE_FLUSH_COST: u32 = 2048;

#[inline]
fn one<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    domain: &DomainMemory,
    op: MmuextOp,
    budget: &mut Budget,
) -> core::result::Result<(), Stop> {
    let mfn = Mfn(op.arg1);
    match op.cmd {
        cmd::NEW_BASEPTR => new_kernel_root(cx, domain, mfn, budget),
        cmd::NEW_USER_BASEPTR => new_user_root(cx, domain, mfn, budget),
        cmd::PIN_L1_TABLE => pin(cx, domain, mfn, Kind::L1, budget),
        cmd::PIN_L2_TABLE => pin(cx, domain, mfn, Kind::L2, budget),
        cmd::PIN_L3_TABLE => pin(cx, domain, mfn, Kind::L3, budget),
        cmd::PIN_L4_TABLE => pin(cx, domain, mfn, Kind::L4, budget),
        cmd::UNPIN_TABLE => {
            if unpin(cx.machine, domain, mfn, budget)?.is_err() {
                cx.roots.set_deferred(Some(mfn));
            }
            Ok(())
        }
        cmd::FLUSH_CACHE | cmd::FLUSH_CACHE_GLOBAL => {
            budget.spend(CACHE_FLUSH_COST);
            Ok(other(cx, memory, domain, op)?)
        }
        _ => Ok(other(cx, memory, domain, op)?),
    }
}

fn own<M: Machine, D: Domains>(cx: &Cx<'_, M, D>, domain: &DomainMemory) -> Result<()> {
    if core::ptr::eq(cx.domain, domain) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// `MMUEXT_NEW_BASEPTR` (and MOV to CR3): `mfn` becomes the running vCPU's kernel root, and is loaded.
///
/// # Errors
/// `EPERM` for another domain's; what validation says; or "again".
#[inline]
pub fn new_kernel_root<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    domain: &DomainMemory,
    mfn: Mfn,
    budget: &mut Budget,
) -> core::result::Result<(), Stop> {
    own(cx, domain)?;
    if mfn.0 == 0 {
        return Err(Errno::EINVAL.into());
    }
    Tables::new(cx.machine, cx.domain).take_table(mfn, Kind::L4, budget)?;
    let old = cx.roots.swap_kernel(Some(mfn));
    cx.machine.load_root(mfn);
    drop_root(cx, old, budget);
    Ok(())
}

#[inline]
fn new_user_root<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    domain: &DomainMemory,
    mfn: Mfn,
    budget: &mut Budget,
) -> core::result::Result<(), Stop> {
    own(cx, domain)?;
    let new = if mfn.0 == 0 {
        None
    } else {
        Tables::new(cx.machine, cx.domain).take_table(mfn, Kind::L4, budget)?;
        Some(mfn)
    };
    let old = cx.roots.swap_user(new);
    drop_root(cx, old, budget);
    Ok(())
}

#[inline]
fn drop_root<M: Machine, D: Domains>(cx: &Cx<'_, M, D>, old: Option<Mfn>, budget: &mut Budget) {
    if let Some(old) = old
        && put_root(cx.machine, old, budget).is_err()
    {
        cx.roots.set_deferred(Some(old));
    }
}

#[inline]
fn put_root<M: Machine>(
    machine: M,
    old: Mfn,
    budget: &mut Budget,
) -> core::result::Result<(), Unfinished> {
    machine
        .frames()
        .get(old)
        .map_or(Ok(()), |frame| put_typed(machine, old, frame, budget))
}

/// Gives a vCPU its first roots (builder, `VCPUOP_initialise`); it must not be running.
///
/// # Errors
/// [`Stop::Again`] to be called again, or `EINVAL` if a frame is not a sound L4 of the domain.
pub fn set_roots<M: Machine>(
    machine: M,
    domain: &DomainMemory,
    roots: &VcpuRoots,
    kernel: Mfn,
    user: Option<Mfn>,
    budget: &mut Budget,
) -> core::result::Result<(), Stop> {
    let tables = Tables::new(machine, domain);
    tables.take_table(kernel, Kind::L4, budget)?;
    if let Some(user) = user
        && let Err(stop) = tables.take_table(user, Kind::L4, budget)
    {
        // The kernel root was live before or is now; what is left of its undoing stays in the frame.
        let _ = put_root(machine, kernel, budget);
        return Err(stop);
    }
    for old in [roots.swap_kernel(Some(kernel)), roots.swap_user(user)]
        .into_iter()
        .flatten()
    {
        if put_root(machine, old, budget).is_err() {
            roots.set_deferred(Some(old));
        }
    }
    Ok(())
}

/// Takes a vCPU's roots away (destroy); no processor may use them any more.
///
/// Unfinished invalidation stays in the frames, for [`crate::relinquish`].
pub fn release_roots<M: Machine>(machine: M, roots: &VcpuRoots, budget: &mut Budget) {
    for old in [roots.swap_kernel(None), roots.swap_user(None)]
        .into_iter()
        .flatten()
    {
        let _ = put_root(machine, old, budget);
    }
    roots.set_deferred(None);
}

fn pin<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    domain: &DomainMemory,
    mfn: Mfn,
    kind: Kind,
    budget: &mut Budget,
) -> core::result::Result<(), Stop> {
    match pin_table(cx.machine, domain, mfn, kind, budget)? {
        Ok(()) => Ok(()),
        Err(Unfinished) => {
            cx.roots.set_deferred(Some(mfn));
            Err(Errno::EINVAL.into())
        }
    }
}

/// Validates `mfn` as a table of `domain` and keeps it so until it is unpinned.
///
/// # Errors
/// [`Stop::Again`] to be called again; `EINVAL` if it is not a sound table, is pinned, or the domain is dying.
/// `Ok(Err(Unfinished))`: refused, and its undoing is unfinished.
pub fn pin_table<M: Machine>(
    machine: M,
    domain: &DomainMemory,
    mfn: Mfn,
    kind: Kind,
    budget: &mut Budget,
) -> core::result::Result<core::result::Result<(), Unfinished>, Stop> {
    Tables::new(machine, domain).take_table(mfn, kind, budget)?;
    let frame = machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
    if frame.pin() {
        // What kind of page it is goes with its contents.
        log::written(machine, frame);
        // A domain marked dying before this look may already have been scanned past this frame.
        core::sync::atomic::fence(Ordering::SeqCst);
        if !domain.is_dying() || !frame.unpin() {
            return Ok(Ok(()));
        }
    }
    match put_typed(machine, mfn, frame, budget) {
        Ok(()) => Err(Errno::EINVAL.into()),
        Err(unfinished) => Ok(Err(unfinished)),
    }
}

/// Validates and pins a root in one go (builder).
///
/// # Errors
/// `EINVAL` if it is not a sound L4 of the domain.
pub fn pin_root<M: Machine>(machine: M, domain: &DomainMemory, mfn: Mfn) -> Result<()> {
    match pin_table(machine, domain, mfn, Kind::L4, &mut Budget::unlimited()) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Unfinished)) | Err(Stop::Again) => Err(Errno::EAGAIN),
        Err(Stop::Failed(errno)) => Err(errno),
    }
}

/// Undoes [`pin_table`].
///
/// # Errors
/// `EINVAL` if the frame is not the domain's or not pinned. `Ok(Err(Unfinished))`: unpinned, invalidation unfinished.
pub fn unpin<M: Machine>(
    machine: M,
    domain: &DomainMemory,
    mfn: Mfn,
    budget: &mut Budget,
) -> Result<core::result::Result<(), Unfinished>> {
    get_page(machine, mfn, domain.id())?;
    let frame = machine.frames().get(mfn).ok_or(Errno::EINVAL)?;
    let result = if frame.unpin() {
        log::written(machine, frame);
        Ok(put_typed(machine, mfn, frame, budget))
    } else {
        Err(Errno::EINVAL)
    };
    put_page(machine, mfn);
    result
}

#[inline(never)]
fn other<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    domain: &DomainMemory,
    op: MmuextOp,
) -> Result<()> {
    let page = Flush::Page(op.arg1);
    let vcpus = || memory.read::<u64>(GuestVa(op.arg2)).map(FlushScope::Vcpus);
    let (scope, what) = match op.cmd {
        cmd::TLB_FLUSH_LOCAL => (FlushScope::Local, Flush::All),
        cmd::INVLPG_LOCAL => (FlushScope::Local, page),
        cmd::TLB_FLUSH_MULTI => (vcpus()?, Flush::All),
        cmd::INVLPG_MULTI => (vcpus()?, page),
        cmd::TLB_FLUSH_ALL => (FlushScope::Domain, Flush::All),
        cmd::INVLPG_ALL => (FlushScope::Domain, page),
        _ => return frame_op(cx, domain, op),
    };
    if scope != FlushScope::Domain {
        own(cx, domain)?;
    }
    // No translation exists for such an address, and the instruction would fault with some encodings (XSA-279).
    if matches!(what, Flush::Page(va) if !is_canonical(va)) {
        return Ok(());
    }
    cx.machine.flush_tlb(domain, scope, what);
    Ok(())
}

fn frame_op<M: Machine, D: Domains>(
    cx: &Cx<'_, M, D>,
    domain: &DomainMemory,
    op: MmuextOp,
) -> Result<()> {
    let mfn = Mfn(op.arg1);
    match op.cmd {
        cmd::FLUSH_CACHE | cmd::FLUSH_CACHE_GLOBAL => {
            own(cx, domain)?;
            if !cx.domain.is_privileged() {
                return Err(Errno::EACCES);
            }
            cx.machine.flush_caches(op.cmd == cmd::FLUSH_CACHE_GLOBAL);
            Ok(())
        }
        cmd::SET_LDT => {
            own(cx, domain)?;
            let entries = op.arg2 as u32;
            let bytes = u64::from(entries).saturating_mul(8);
            if !op.arg1.is_multiple_of(PAGE_SIZE)
                || entries > MAX_LDT_ENTRIES
                || entries != 0 && !GuestVa(op.arg1).range_ok(bytes)
            {
                return Err(Errno::EINVAL);
            }
            cx.machine.set_ldt(op.arg1, entries)
        }
        cmd::CLEAR_PAGE => {
            get_page_writable(cx.machine, mfn, domain.id())?;
            cx.machine.zero(mfn);
            put_page_writable(cx.machine, mfn);
            Ok(())
        }
        cmd::COPY_PAGE => copy_page(cx.machine, domain.id(), mfn, Mfn(op.arg2)),
        // Superpages are never mapped; nothing is looked at (XSA-167).
        cmd::MARK_SUPER | cmd::UNMARK_SUPER => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENOSYS),
    }
}

fn copy_page<M: Machine>(machine: M, domain: DomId, to: Mfn, from: Mfn) -> Result<()> {
    get_page(machine, from, domain)?;
    let result = get_page_writable(machine, to, domain);
    if result.is_ok() {
        for (to, from) in machine.words(to).iter().zip(machine.words(from)) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        put_page_writable(machine, to);
    }
    put_page(machine, from);
    result
}
