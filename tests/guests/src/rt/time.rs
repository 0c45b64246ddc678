// SPDX-License-Identifier: MIT OR Apache-2.0
//! System time from the record that the hypervisor keeps in `vcpu_info.time`.

use super::memory;
use core::sync::atomic::{Ordering, compiler_fence};
use philoxen_abi::shared::vcpu_info::TIME;

/// One consistent reading of `struct vcpu_time_info`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the names are the interface's")]
pub struct Record {
    pub version: u32,
    pub tsc_timestamp: u64,
    pub system_time: u64,
    pub mul: u32,
    pub shift: i8,
    pub flags: u8,
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads the record at `address` by the version protocol; `None` if it was in change a million times over.
pub fn record_at(address: u64) -> Option<Record> {
    for _ in 0..1_000_000 {
        let version = memory::read(address) as u32;
        compiler_fence(Ordering::SeqCst);
        let (tsc_timestamp, system_time) = (memory::read(address + 8), memory::read(address + 16));
        let scale = memory::read(address + 24);
        compiler_fence(Ordering::SeqCst);
        if version & 1 == 0 && memory::read(address) as u32 == version {
            let (shift, flags) = ((scale >> 32) as i8, (scale >> 40) as u8);
            return Some(Record {
                version,
                tsc_timestamp,
                system_time,
                mul: scale as u32,
                shift,
                flags,
            });
        }
    }
    None
}

/// The vCPU's own record.
pub fn record() -> Record {
    record_at(memory::vcpu_info() + TIME as u64).expect("a stable time record")
}

impl Record {
    /// System time in ns at counter value `tsc`.
    pub fn at(&self, tsc: u64) -> u64 {
        let delta = tsc.wrapping_sub(self.tsc_timestamp);
        let delta = if self.shift < 0 {
            delta >> -i32::from(self.shift)
        } else {
            delta << self.shift
        };
        self.system_time
            .wrapping_add(((u128::from(delta) * u128::from(self.mul)) >> 32) as u64)
    }
}

/// System time now, in ns.
pub fn now() -> u64 {
    let record = record();
    record.at(tsc())
}

/// Spins for `ns`.
pub fn spin(ns: u64) {
    let end = now() + ns;
    while now() < end {}
}
