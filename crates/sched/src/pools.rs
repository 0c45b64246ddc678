// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processor pools: which processors belong together (`XEN_SYSCTL_cpupool_op`, xen/sysctl.h).
//!
//! A processor is in at most one pool; those in none stand idle. Every domain is in one pool, whose processors its vCPUs may
//! use ([`crate::Scheduler::confine`]). Who calls counts the domains of a pool, and sees to it that they do not change
//! meanwhile. Pool 0 always exists.

use crate::mask::CpuMask;
use philoxen_abi::{Errno, Result};

/// Most pools.
pub const MAX_POOLS: u32 = 64;

/// All pools.
#[derive(Debug)]
pub struct Pools {
    pools: [Option<CpuMask>; MAX_POOLS as usize],
    /// Processors there are.
    cpus: u32,
}

impl Pools {
    /// Pool 0 with all of `cpus` processors.
    pub fn new(cpus: u32) -> Self {
        let mut pools = [None; MAX_POOLS as usize];
        if let Some(first) = pools.first_mut() {
            *first = Some(CpuMask::below(cpus));
        }
        Self { pools, cpus }
    }

    /// Makes a pool without processors; which. Without a number, the lowest that is free.
    ///
    /// # Errors
    /// `EEXIST` if there is such a pool, `ENOSPC` without room for another.
    pub fn create(&mut self, id: Option<u32>) -> Result<u32> {
        let free = || (0..MAX_POOLS).find(|&id| self.processors(id).is_none());
        let id = id.or_else(free).ok_or(Errno::ENOSPC)?;
        let place = self.pools.get_mut(id as usize).ok_or(Errno::ENOSPC)?;
        if place.is_some() {
            return Err(Errno::EEXIST);
        }
        *place = Some(CpuMask::NONE);
        Ok(id)
    }

    /// Ends a pool that has neither processors nor domains.
    ///
    /// # Errors
    /// `ENOENT` if there is none, `EBUSY`.
    pub fn destroy(&mut self, id: u32, domains: usize) -> Result<()> {
        let processors = self.processors(id).ok_or(Errno::ENOENT)?;
        if id == 0 || domains != 0 || processors != CpuMask::NONE {
            return Err(Errno::EBUSY);
        }
        if let Some(place) = self.pools.get_mut(id as usize) {
            *place = None;
        }
        Ok(())
    }

    /// Gives a pool a processor that is in none; without a number, the lowest.
    ///
    /// # Errors
    /// `ENOENT` if there is no such pool, `EINVAL` no such processor or none at all, `ENODEV` if it is in a pool.
    pub fn add(&mut self, id: u32, cpu: Option<u32>) -> Result<()> {
        let free = self.free();
        let mut pool = self.processors(id).ok_or(Errno::ENOENT)?;
        let cpu = cpu
            .or_else(|| free.among(0..self.cpus).next())
            .filter(|cpu| *cpu < self.cpus)
            .ok_or(Errno::EINVAL)?;
        if !free.contains(cpu) {
            return Err(Errno::ENODEV);
        }
        pool.insert(cpu);
        self.set(id, pool);
        Ok(())
    }

    /// Takes a processor from a pool; without a number, the highest.
    ///
    /// # Errors
    /// `ENOENT` if there is no such pool, `EINVAL` if the processor is not in it, `EBUSY` if its domains would have none.
    pub fn remove(&mut self, id: u32, cpu: Option<u32>, domains: usize) -> Result<()> {
        let mut pool = self.processors(id).ok_or(Errno::ENOENT)?;
        let cpu = cpu
            .or_else(|| pool.among(0..self.cpus).last())
            .filter(|&cpu| pool.contains(cpu))
            .ok_or(Errno::EINVAL)?;
        pool.remove(cpu);
        if domains != 0 && pool == CpuMask::NONE {
            return Err(Errno::EBUSY);
        }
        self.set(id, pool);
        Ok(())
    }

    fn set(&mut self, id: u32, processors: CpuMask) {
        if let Some(place) = self.pools.get_mut(id as usize) {
            *place = Some(processors);
        }
    }

    /// A pool's processors, if there is such a pool.
    pub fn processors(&self, id: u32) -> Option<CpuMask> {
        *self.pools.get(id as usize)?
    }

    /// The processors that domains of a pool could run on.
    ///
    /// # Errors
    /// `ENOENT` if there is no such pool, or no processor in it.
    pub fn habitable(&self, id: u32) -> Result<CpuMask> {
        let some = self
            .processors(id)
            .filter(|processors| *processors != CpuMask::NONE);
        some.ok_or(Errno::ENOENT)
    }

    /// The processors that are in no pool.
    pub fn free(&self) -> CpuMask {
        let mut free = CpuMask::below(self.cpus);
        for pool in self.pools.iter().flatten() {
            pool.among(0..self.cpus).for_each(|cpu| free.remove(cpu));
        }
        free
    }

    /// The first pool with a number of at least `id`, and its processors.
    pub fn at_or_after(&self, id: u32) -> Option<(u32, CpuMask)> {
        (id..MAX_POOLS).find_map(|id| Some((id, self.processors(id)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &[u32]) -> CpuMask {
        let mut mask = CpuMask::NONE;
        cpus.iter().for_each(|&cpu| mask.insert(cpu));
        mask
    }

    #[test]
    fn a_processor_is_in_one_pool_or_none() {
        let mut pools = Pools::new(4);
        assert_eq!(pools.processors(0), Some(set(&[0, 1, 2, 3])));
        assert_eq!(pools.create(None), Ok(1));
        assert_eq!(pools.add(1, None), Err(Errno::EINVAL));
        assert_eq!(pools.add(1, Some(3)), Err(Errno::ENODEV));
        assert_eq!(pools.add(1, Some(4)), Err(Errno::EINVAL));
        assert_eq!(pools.remove(0, None, 1), Ok(()));
        assert_eq!(pools.remove(0, Some(3), 1), Err(Errno::EINVAL));
        assert_eq!(pools.remove(0, Some(1), 1), Ok(()));
        assert_eq!(pools.free(), set(&[1, 3]));
        assert_eq!(pools.add(1, None), Ok(()));
        assert_eq!(pools.add(1, Some(3)), Ok(()));
        assert_eq!(pools.processors(0), Some(set(&[0, 2])));
        assert_eq!(pools.processors(1), Some(set(&[1, 3])));
        assert_eq!(pools.free(), CpuMask::NONE);
    }

    #[test]
    fn a_pool_in_use_stays() {
        let mut pools = Pools::new(2);
        assert_eq!(pools.destroy(0, 0), Err(Errno::EBUSY));
        assert_eq!(pools.remove(0, Some(0), 1), Ok(()));
        assert_eq!(pools.remove(0, Some(1), 1), Err(Errno::EBUSY));
        assert_eq!(pools.create(Some(7)), Ok(7));
        assert_eq!(pools.create(Some(7)), Err(Errno::EEXIST));
        assert_eq!(pools.create(Some(MAX_POOLS)), Err(Errno::ENOSPC));
        assert_eq!(pools.habitable(7), Err(Errno::ENOENT));
        assert_eq!(pools.add(7, Some(0)), Ok(()));
        assert_eq!(pools.habitable(7), Ok(set(&[0])));
        assert_eq!(pools.at_or_after(1), Some((7, set(&[0]))));
        assert_eq!(pools.destroy(7, 0), Err(Errno::EBUSY));
        assert_eq!(pools.remove(7, None, 0), Ok(()));
        assert_eq!(pools.destroy(7, 1), Err(Errno::EBUSY));
        assert_eq!(pools.destroy(7, 0), Ok(()));
        assert_eq!(pools.destroy(7, 0), Err(Errno::ENOENT));
        assert_eq!(pools.at_or_after(1), None);
        for id in 1..MAX_POOLS {
            assert_eq!(pools.create(None), Ok(id));
        }
        assert_eq!(pools.create(None), Err(Errno::ENOSPC));
    }
}
