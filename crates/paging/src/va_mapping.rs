// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercalls `update_va_mapping` and `update_va_mapping_otherdomain` (xen/xen.h): change the leaf entry of a
//! virtual address in the running address space.

use crate::entry;
use crate::log;
use crate::machine::{Cx, Domains, Flush, FlushScope, Machine};
use crate::update::Mode;
use crate::validate::{Pages, Tables, put_typed, share_owned};
use crate::word::Kind;
use core::sync::atomic::Ordering;
use philoxen_abi::addr::{HYPERVISOR_END, HYPERVISOR_START, is_canonical};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::mmu;
use philoxen_abi::{Errno, Flow, GuestMemory, GuestVa, Mfn, Result};

/// The L1 table and index that map `va` below `root`, as the tables say now.
///
/// Holds no reference: the caller takes one of type L1, which fails if the frame has become something else.
#[inline]
pub fn lookup_l1<M: Machine>(machine: M, root: Mfn, va: u64) -> Option<(Mfn, usize)> {
    if !is_canonical(va) || (HYPERVISOR_START..HYPERVISOR_END).contains(&va) {
        return None;
    }
    let mut table = root;
    for level in [4, 3, 2] {
        let word = machine.words(table).get(entry::index(va, level))?;
        let raw = word.load(Ordering::Acquire);
        if raw & (entry::P | entry::PSE) != entry::P {
            return None;
        }
        table = entry::mfn(raw);
        if table.0 >= machine.frames().len() {
            return None;
        }
    }
    Some((table, entry::index(va, 1)))
}

/// The leaf entry of `va` below `root`: table, index and present value.
pub fn lookup_l1e<M: Machine>(machine: M, root: Mfn, va: u64) -> Option<(Mfn, usize, u64)> {
    let (table, index) = lookup_l1(machine, root, va)?;
    let raw = machine.words(table).get(index)?.load(Ordering::Acquire);
    Some((table, index, raw))
}

/// `update_va_mapping(va, value, flags)`.
#[inline]
pub fn update_va_mapping<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    args: [u64; 3],
    budget: &mut Budget,
) -> Flow {
    let pages = Pages::Of(cx.domain.id());
    update(cx, memory, args, pages, budget).map(|()| 0).into()
}

/// `update_va_mapping_otherdomain(va, value, flags, domid)`: the frame mapped is another domain's.
pub fn update_va_mapping_otherdomain<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    args: [u64; 4],
    budget: &mut Budget,
) -> Flow {
    let [va, value, flags, domid] = args;
    cx.pages(domid)
        .and_then(|pages| update(cx, memory, [va, value, flags], pages, budget))
        .map(|()| 0)
        .into()
}

#[inline]
fn update<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    [va, value, flags]: [u64; 3],
    pages: Pages,
    budget: &mut Budget,
) -> Result<()> {
    let root = cx.roots.kernel().ok_or(Errno::EINVAL)?;
    let (table, index) = lookup_l1(cx.machine, root, va).ok_or(Errno::EINVAL)?;
    let frame = cx.machine.frames().get(table).ok_or(Errno::EINVAL)?;
    if !share_owned(cx.machine, table, frame, Kind::L1, cx.domain.id())? {
        return Err(Errno::EINVAL);
    }
    let slot = cx.machine.words(table).get(index).ok_or(Errno::EINVAL)?;
    let tables = Tables::new(cx.machine, cx.domain);
    let result = tables.update_l1(slot, value, Mode::Replace, pages);
    log::written(cx.machine, frame);
    if put_typed(cx.machine, table, frame, budget).is_err() {
        cx.roots.set_deferred(Some(table));
    }
    result?;
    if flags & mmu::UVMF_FLUSHTYPE_MASK == mmu::UVMF_NONE {
        return Ok(());
    }
    flush(cx, memory, va, flags)
}

fn flush<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    va: u64,
    flags: u64,
) -> Result<()> {
    let what = match flags & mmu::UVMF_FLUSHTYPE_MASK {
        mmu::UVMF_TLB_FLUSH => Flush::All,
        mmu::UVMF_INVLPG => Flush::Page(va),
        _ => return Err(Errno::EINVAL),
    };
    let scope = match flags & !mmu::UVMF_FLUSHTYPE_MASK {
        mmu::UVMF_LOCAL => FlushScope::Local,
        mmu::UVMF_ALL => FlushScope::Domain,
        bitmap => FlushScope::Vcpus(memory.read::<u64>(GuestVa(bitmap))?),
    };
    cx.machine.flush_tlb(cx.domain, scope, what);
    Ok(())
}
