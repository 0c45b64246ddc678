// SPDX-License-Identifier: MIT OR Apache-2.0
//! What debug keys show of the scheduler.

use crate::scheduler::{DEFAULT_WEIGHT, Scheduler};
use crate::vcpu::VcpuKey;
use crate::virtual_time::{BEGINNING, running_for};

/// A processor and who waits for it. Virtual times are in nanoseconds of running at the default weight.
#[derive(Clone, Copy, Debug)]
pub struct ProcessorView {
    /// What it runs.
    pub current: Option<VcpuKey>,
    /// Its virtual time.
    pub virtual_ns: u64,
    /// When it chooses again at the latest, in nanoseconds of system time.
    pub slice_end: u64,
    /// vCPUs that wait for it alone.
    pub own: u32,
    /// vCPUs that wait for any processor of its group.
    pub shared: u32,
}

/// A vCPU's virtual time.
#[derive(Clone, Copy, Debug)]
pub struct VcpuView {
    /// Actual virtual time, in nanoseconds of running at the default weight.
    pub virtual_ns: u64,
    /// The effective one is earlier.
    pub warped: bool,
    /// It waits in a heap.
    pub waits: bool,
}

fn nanoseconds(time: u64) -> u64 {
    running_for(time.saturating_sub(BEGINNING), DEFAULT_WEIGHT)
}

impl Scheduler {
    /// Processor `cpu` as it is.
    pub fn processor(&self, cpu: u32) -> Option<ProcessorView> {
        let group = self.group_of(cpu)?.state.lock();
        let processor = group.processor(cpu)?;
        Some(ProcessorView {
            current: processor.current,
            virtual_ns: nanoseconds(processor.time),
            slice_end: processor.slice_end,
            own: processor.own.len(),
            shared: group.shared.len(),
        })
    }

    /// A vCPU as it is; its virtual time is as of the last decision.
    pub fn vcpu(&self, key: VcpuKey) -> Option<VcpuView> {
        let (vcpu, _group) = self.lock(key)?;
        Some(VcpuView {
            virtual_ns: nanoseconds(vcpu.time.actual()),
            warped: vcpu.time.is_warped(),
            waits: vcpu.is_queued(),
        })
    }
}
