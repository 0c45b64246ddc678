// SPDX-License-Identifier: MIT OR Apache-2.0
//! Byte offsets of what a domain shares with the hypervisor: `shared_info`, `vcpu_info`, `vcpu_time_info`
//! (xen/xen.h, xen/arch-x86/xen.h).
//!
//! The frames are written by both sides at any time, so they are never Rust structures: code reaches them as
//! 512 atomic 64-bit words (one frame) and these offsets. A field smaller than a word is changed by a masked
//! compare-and-swap or read-modify-write of its word, so one word is never accessed at two widths.

/// vCPUs whose `vcpu_info` lives in `shared_info` until they register their own (`XEN_LEGACY_MAX_VCPUS`).
pub const LEGACY_MAX_VCPUS: u32 = 32;
/// Bytes of one `struct vcpu_info`.
pub const VCPU_INFO_SIZE: usize = 64;

/// Offsets in `struct vcpu_info`, in bytes.
pub mod vcpu_info {
    /// Word that holds `evtchn_upcall_pending` (byte 0) and `evtchn_upcall_mask` (byte 1).
    pub const UPCALL: usize = 0;
    /// `evtchn_upcall_pending` within the word at [`UPCALL`].
    pub const PENDING_BITS: u64 = 0xff;
    /// `evtchn_upcall_mask` within the word at [`UPCALL`].
    pub const MASK_BITS: u64 = 0xff00;
    /// `evtchn_pending_sel`.
    pub const PENDING_SEL: usize = 8;
    /// `arch.cr2`.
    pub const CR2: usize = 16;
    /// `time` (`struct vcpu_time_info`): version (u32), pad, tsc_timestamp, system_time, mul (u32) + shift (i8) + flags (u8).
    pub const TIME: usize = 32;
}

/// Offsets in `struct shared_info`, in bytes.
pub mod shared_info {
    /// `evtchn_pending[64]`.
    pub const EVTCHN_PENDING: usize = 32 * super::VCPU_INFO_SIZE;
    /// `evtchn_mask[64]`.
    pub const EVTCHN_MASK: usize = EVTCHN_PENDING + 64 * 8;
    /// Word of `wc_version` (low half) and `wc_sec` (high half).
    pub const WALLCLOCK: usize = EVTCHN_MASK + 64 * 8;
    /// Word of `wc_nsec` (low half) and `wc_sec_hi` (high half).
    pub const WALLCLOCK_NSEC: usize = WALLCLOCK + 8;
    /// `arch.max_pfn`.
    pub const MAX_PFN: usize = WALLCLOCK_NSEC + 8;
    /// `arch.pfn_to_mfn_frame_list_list`.
    pub const P2M_LIST_LIST: usize = MAX_PFN + 8;
    /// `arch.nmi_reason`.
    pub const NMI_REASON: usize = P2M_LIST_LIST + 8;
}

/// `XEN_PVCLOCK_TSC_STABLE_BIT` in `vcpu_time_info.flags`.
pub const PVCLOCK_TSC_STABLE: u8 = 1;
