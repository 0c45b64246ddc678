// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU beyond the 32 of `shared_info` before it has registered a `vcpu_info`.

use crate::sync::AtomicU64;
use crate::{Frames, VcpuEvents, VcpuInfo};
use philoxen_abi::shared::{VCPU_INFO_SIZE, vcpu_info};

/// Stands in for the `vcpu_info` of a vCPU that has none: nobody ever makes an upcall pending here.
static NO_INFO: [AtomicU64; VCPU_INFO_SIZE / 8] =
    [const { AtomicU64::new(vcpu_info::MASK_BITS) }; VCPU_INFO_SIZE / 8];

impl VcpuEvents {
    /// The `vcpu_info`, or for a vCPU without one a masked and quiet one that is nobody's.
    #[inline(always)]
    pub fn info_or_none<'a>(&self, frames: &'a impl Frames) -> VcpuInfo<'a> {
        self.info(frames).unwrap_or(VcpuInfo(&NO_INFO))
    }
}
