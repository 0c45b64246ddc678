// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processor pools: a domain's vCPUs run on the processors of its pool only.
//!
//! The scheduler knows no pools; it is told of each vCPU where it may run. The lock of the pools is held while it is told,
//! and while a domain comes into a pool, so that what it was told last is what is true.

use crate::domain::{self, Domain};
use crate::{schedule, smp};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use philoxen_abi::{Errno, Result};
use philoxen_sched::{CpuMask, Pools};
use spin::{Mutex, MutexGuard, Once};

static POOLS: Once<Mutex<Pools>> = Once::new();

/// All pools. At first there is number 0, with every processor.
pub fn lock() -> MutexGuard<'static, Pools> {
    POOLS
        .call_once(|| Mutex::new(Pools::new(smp::cpus() as u32)))
        .lock()
}

/// The processors of a domain's pool.
pub fn processors(domain: &Domain) -> CpuMask {
    let pools = lock();
    let pool = domain.tool.pool.load(Ordering::Relaxed);
    pools.processors(pool).unwrap_or(CpuMask::NONE)
}

/// Number of domains in a pool, which stays until the pools are unlocked.
pub fn domains(_pools: &Pools, id: u32) -> usize {
    domain::all()
        .iter()
        .filter(|domain| is_in(domain, id))
        .count()
}

/// Puts a domain on the list; false if its number is taken.
///
/// # Errors
/// `ESRCH` if its pool does not exist or has no processors.
pub fn add_domain(domain: &Arc<Domain>) -> Result<bool> {
    let pools = lock();
    pools
        .habitable(domain.tool.pool.load(Ordering::Relaxed))
        .map_err(|_| Errno::ESRCH)?;
    Ok(domain::add(domain.clone()))
}

/// Confines the new vCPUs of a domain to its pool.
pub fn settle(domain: &Domain) {
    confine(&lock(), domain);
}

/// Moves a domain to a pool.
///
/// # Errors
/// `ENOENT` if there is none, or without processors.
pub fn move_domain(domain: &Domain, id: u32) -> Result<()> {
    let pools = lock();
    pools.habitable(id)?;
    domain.tool.pool.store(id, Ordering::Relaxed);
    confine(&pools, domain);
    Ok(())
}

/// Gives a pool a processor; without a number, any that is free.
///
/// # Errors
/// As [`Pools::add`].
pub fn add_processor(id: u32, cpu: Option<u32>) -> Result<()> {
    let mut pools = lock();
    pools.add(id, cpu)?;
    confine_all(&pools, id);
    Ok(())
}

/// Takes a processor from a pool; without a number, any. Its domains have left it, or are about to, when this returns.
///
/// # Errors
/// As [`Pools::remove`].
pub fn remove_processor(id: u32, cpu: Option<u32>) -> Result<()> {
    let mut pools = lock();
    let inhabitants = domains(&pools, id);
    pools.remove(id, cpu, inhabitants)?;
    confine_all(&pools, id);
    Ok(())
}

fn is_in(domain: &Domain, id: u32) -> bool {
    domain.tool.pool.load(Ordering::Relaxed) == id
}

fn confine_all(pools: &Pools, id: u32) {
    for domain in domain::all().iter().filter(|domain| is_in(domain, id)) {
        confine(pools, domain);
    }
}

fn confine(pools: &Pools, domain: &Domain) {
    if let Some(processors) = pools.processors(domain.tool.pool.load(Ordering::Relaxed)) {
        schedule::confine(domain, &processors);
    }
}
