// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `memory_op` operations that ask or set a fact: sizes, the machine-to-phys table, memory maps (xen/memory.h).

use crate::machine::{Cx, Domains, Machine};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use philoxen_abi::memory::{
    E820Entry, ForeignMemoryMap, MACHPHYS_END, MACHPHYS_START, MachphysMapping, MachphysMfnList,
    MemoryMap, op,
};
use philoxen_abi::shared::shared_info;
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, Result};

/// Most entries a domain's memory map may have.
const MAX_MAP_ENTRIES: u32 = 128;
const ENTRY: u64 = size_of::<E820Entry>() as u64;

/// Handles operation `op`; not one of the others of `memory_op`.
pub(crate) fn query<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    op: u64,
    arg: GuestVa,
) -> Result<i64> {
    let named = || memory.read::<u16>(arg).and_then(|id| cx.target(DomId(id)));
    match op {
        op::MAXIMUM_RAM_PAGE => Ok(cx.machine.frames().len().saturating_sub(1) as i64),
        op::CURRENT_RESERVATION => Ok(named()?.total_pages() as i64),
        op::MAXIMUM_RESERVATION => Ok(named()?.max_pages() as i64),
        op::MAXIMUM_GPFN => {
            let shared = named()?.shared_info().ok_or(Errno::ESRCH)?;
            let word = cx.machine.words(shared).get(shared_info::MAX_PFN / 8);
            let count = word.ok_or(Errno::EINVAL)?.load(Ordering::Relaxed);
            // A domain that has not told its count yet (one that is being restored) has frame 0; no count is an error.
            Ok(i64::try_from(count.saturating_sub(1)).unwrap_or(i64::MAX))
        }
        op::MACHPHYS_MFN_LIST => machphys_list(cx, memory, arg),
        op::MACHPHYS_MAPPING => {
            let max_mfn = cx.machine.frames().len().saturating_sub(1);
            let mapping = MachphysMapping {
                v_start: MACHPHYS_START,
                v_end: MACHPHYS_END,
                max_mfn,
            };
            memory.write(arg, &mapping).map(|()| 0)
        }
        op::MEMORY_MAP => memory_map(cx, memory, arg),
        op::MACHINE_MEMORY_MAP => machine_memory_map(cx, memory, arg),
        op::SET_MEMORY_MAP => set_memory_map(cx, memory, arg),
        // Memory sharing does not exist: nothing is saved by it.
        op::GET_SHARING_FREED_PAGES | op::GET_SHARING_SHARED_PAGES => Ok(0),
        op::GET_VNUMAINFO | op::ACQUIRE_RESOURCE => Err(Errno::EOPNOTSUPP),
        // Claims are not kept (the toolstack then goes without), and the rest is for translated guests.
        _ => Err(Errno::ENOSYS),
    }
}

fn machphys_list<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    arg: GuestVa,
) -> Result<i64> {
    if !cx.domain.is_privileged() {
        return Err(Errno::EPERM);
    }
    let mut list: MachphysMfnList = memory.read(arg)?;
    let mut count = 0;
    while count < list.max_extents
        && let Some(mfn) = cx.machine.m2p_extent(count.into())
    {
        memory.write(GuestVa(list.extent_start).element(count.into(), 8), &mfn.0)?;
        count += 1;
    }
    list.nr_extents = count;
    memory.write(arg, &list).map(|()| 0)
}

fn memory_map<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    arg: GuestVa,
) -> Result<i64> {
    let mut request: MemoryMap = memory.read(arg)?;
    let map = cx.domain.memory_map().lock();
    if map.is_empty() {
        return Err(Errno::ENOSYS);
    }
    let count = map.len().min(request.nr_entries as usize);
    for (index, entry) in map.iter().take(count).enumerate() {
        memory.write(GuestVa(request.buffer).element(index as u64, ENTRY), entry)?;
    }
    request.nr_entries = count as u32;
    memory.write(arg, &request).map(|()| 0)
}

fn machine_memory_map<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    arg: GuestVa,
) -> Result<i64> {
    if !cx.domain.is_privileged() {
        return Err(Errno::EPERM);
    }
    let mut request: MemoryMap = memory.read(arg)?;
    let mut count = 0;
    while count < request.nr_entries
        && let Some(entry) = cx.machine.memory_map_entry(count as usize)
    {
        memory.write(GuestVa(request.buffer).element(count.into(), ENTRY), &entry)?;
        count += 1;
    }
    request.nr_entries = count;
    memory.write(arg, &request).map(|()| 0)
}

fn set_memory_map<M: Machine, D: Domains, G: GuestMemory>(
    cx: &Cx<'_, M, D>,
    memory: &G,
    arg: GuestVa,
) -> Result<i64> {
    let request: ForeignMemoryMap = memory.read(arg)?;
    let domain = cx.target(DomId(request.domid))?;
    if !cx.domain.is_privileged() {
        return Err(Errno::EPERM);
    }
    let count = request.map.nr_entries;
    if count > MAX_MAP_ENTRIES {
        return Err(Errno::EINVAL);
    }
    let mut map = Vec::new();
    map.try_reserve_exact(count as usize)
        .map_err(|_| Errno::ENOMEM)?;
    for index in 0..count {
        map.push(memory.read(GuestVa(request.map.buffer).element(index.into(), ENTRY))?);
    }
    *domain.memory_map().lock() = map;
    Ok(0)
}
