// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processors in use. Bringing more than the boot processor up is not done yet; everything else asks here.

use philoxen_hw::cpu::CpuId;
use philoxen_hw::{dev, machine};

/// Number of processors that run guests.
pub const fn cpus() -> usize {
    1
}

/// Local APIC identifier of a processor.
pub fn apic_id(_cpu: CpuId) -> u32 {
    dev::boot_apic_id()
}

/// True if guests may compare time-stamp counters of any two processors.
pub const fn tsc_is_stable() -> bool {
    cpus() == 1
}

/// Makes processor `cpu` drop its TLB, and waits for it.
pub fn flush(_cpu: CpuId) {
    machine::flush_local();
}
