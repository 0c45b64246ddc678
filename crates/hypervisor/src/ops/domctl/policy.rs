// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's CPUID and MSR policy, read and written by tools.

use super::Request;
use crate::ops::sysctl::{write_leaves, write_msrs};
use crate::policy::{self, CpuPolicy};
use alloc::vec::Vec;
use philoxen_abi::domctl::{self as abi, CpuidLeaf, MsrEntry};
use philoxen_abi::{DomId, Errno, GuestMemory, GuestVa, Result};
use philoxen_control::policy as leaves;
use philoxen_domain::lifecycle::Phase;
use philoxen_hw::cpu::guest::LoadedGuest;

/// `get_cpu_policy`.
#[inline(never)]
pub fn get(request: &Request<'_>) -> Result<i64> {
    let mut record: abi::CpuPolicy = request.read()?;
    {
        let shown = request.target.policy.read();
        record.nr_leaves = write_leaves(&shown.cpuid, GuestVa(record.leaves), record.nr_leaves)?;
    }
    record.nr_msrs = write_msrs(GuestVa(record.msrs), record.nr_msrs)?;
    request.write(&record)
}

/// `set_cpu_policy`: features can be taken away until the domain runs for the first time.
#[inline(never)]
pub fn set(request: &Request<'_>) -> Result<i64> {
    request.not_self()?;
    let mut record: abi::CpuPolicy = request.read()?;
    if record.nr_leaves > leaves::MAX_LEAVES || record.nr_msrs > leaves::MSRS.len() as u32 {
        return Err(Errno::E2BIG);
    }
    if request.target.life.phase() != Phase::Building {
        return Err(Errno::EEXIST);
    }
    (record.err_leaf, record.err_subleaf, record.err_msr) = (u32::MAX, u32::MAX, u32::MAX);
    for index in 0..record.nr_msrs {
        let place = GuestVa(record.msrs).element(index.into(), size_of::<MsrEntry>() as u64);
        let entry: MsrEntry = LoadedGuest.read(place)?;
        if !leaves::msr_allowed(&entry) {
            record.err_msr = entry.index;
            request.write(&record)?;
            return Err(Errno::EINVAL);
        }
    }
    let mut given = Vec::new();
    given
        .try_reserve_exact(record.nr_leaves as usize)
        .map_err(|_| Errno::ENOMEM)?;
    for index in 0..record.nr_leaves {
        let place = GuestVa(record.leaves).element(index.into(), size_of::<CpuidLeaf>() as u64);
        given.push(LoadedGuest.read::<CpuidLeaf>(place)?);
    }
    let config = policy::config(request.target.id == DomId::DOM0);
    match leaves::restrict(config, policy::default(false), &given) {
        Ok(cpuid) => {
            *request.target.policy.write() = CpuPolicy::new(cpuid);
            request.write(&record)
        }
        Err(bad) => {
            (record.err_leaf, record.err_subleaf) = (bad.leaf, bad.subleaf);
            request.write(&record)?;
            Err(Errno::EINVAL)
        }
    }
}
