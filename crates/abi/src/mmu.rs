// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page-table hypercalls: `mmu_update`, `update_va_mapping`, `mmuext_op` (xen/xen.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One request of `mmu_update` (`struct mmu_update`).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MmuUpdate {
    /// Machine address of the entry (or of the frame, for [`MACHPHYS_UPDATE`]); the command is in its low bits.
    pub ptr: u64,
    /// New contents of the entry (or PFN).
    pub val: u64,
}
const _: () = assert!(size_of::<MmuUpdate>() == 16);

/// Bits of [`MmuUpdate::ptr`] that hold the command; entries are 8 bytes.
pub const COMMAND_MASK: u64 = 7;
/// `MMU_NORMAL_PT_UPDATE`: store the value.
pub const NORMAL_PT_UPDATE: u64 = 0;
/// `MMU_MACHPHYS_UPDATE`: set the frame's machine-to-phys entry.
pub const MACHPHYS_UPDATE: u64 = 1;
/// `MMU_PT_UPDATE_PRESERVE_AD`: store the value, keeping accessed and dirty bits.
pub const PT_UPDATE_PRESERVE_AD: u64 = 2;
/// `MMU_PT_UPDATE_NO_TRANSLATE`: as normal; the value is never translated (it never is for us).
pub const PT_UPDATE_NO_TRANSLATE: u64 = 3;

/// Bit of a batch's count (`mmu_update`, `mmuext_op`) that marks a resumed call: `pdone` holds what was done before.
/// With a null array it means only: finish a deferred table teardown.
pub const RESUMED: u32 = 1 << 31;

/// `UVMF_FLUSHTYPE_MASK`.
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
/// `UVMF_NONE`: no flush.
pub const UVMF_NONE: u64 = 0;
/// `UVMF_TLB_FLUSH`: flush whole TLBs.
pub const UVMF_TLB_FLUSH: u64 = 1;
/// `UVMF_INVLPG`: flush the one address.
pub const UVMF_INVLPG: u64 = 2;
/// `UVMF_LOCAL`: this processor only. Any other value but [`UVMF_ALL`] is a pointer to a bitmap of vCPUs.
pub const UVMF_LOCAL: u64 = 0;
/// `UVMF_ALL`: all processors of the domain.
pub const UVMF_ALL: u64 = 1 << 2;

/// One operation of `mmuext_op` (`struct mmuext_op`).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MmuextOp {
    /// Command, one of the constants of [`mmuext`].
    pub cmd: u32,
    /// Padding.
    pub pad: u32,
    /// `mfn` or `linear_addr`.
    pub arg1: u64,
    /// `nr_ents` (low half), `vcpumask` (pointer) or `src_mfn`.
    pub arg2: u64,
}
const _: () = assert!(size_of::<MmuextOp>() == 24);

/// Commands of `mmuext_op` (`enum mmuext_cmd`).
pub mod mmuext {
    /// Pin as an L1 table.
    pub const PIN_L1_TABLE: u32 = 0;
    /// Pin as an L2 table.
    pub const PIN_L2_TABLE: u32 = 1;
    /// Pin as an L3 table.
    pub const PIN_L3_TABLE: u32 = 2;
    /// Pin as an L4 table.
    pub const PIN_L4_TABLE: u32 = 3;
    /// Unpin a table.
    pub const UNPIN_TABLE: u32 = 4;
    /// Load a new kernel root.
    pub const NEW_BASEPTR: u32 = 5;
    /// Flush this processor's TLB.
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    /// Flush one address on this processor.
    pub const INVLPG_LOCAL: u32 = 7;
    /// Flush the TLBs of a set of vCPUs.
    pub const TLB_FLUSH_MULTI: u32 = 8;
    /// Flush one address for a set of vCPUs.
    pub const INVLPG_MULTI: u32 = 9;
    /// Flush the TLBs of all vCPUs.
    pub const TLB_FLUSH_ALL: u32 = 10;
    /// Flush one address for all vCPUs.
    pub const INVLPG_ALL: u32 = 11;
    /// Write back and flush this processor's caches.
    pub const FLUSH_CACHE: u32 = 12;
    /// Set the LDT.
    pub const SET_LDT: u32 = 13;
    /// Set the user-mode root (0: none).
    pub const NEW_USER_BASEPTR: u32 = 15;
    /// Zero a frame.
    pub const CLEAR_PAGE: u32 = 16;
    /// Copy a frame.
    pub const COPY_PAGE: u32 = 17;
    /// Write back and flush the caches of all processors.
    pub const FLUSH_CACHE_GLOBAL: u32 = 18;
    /// Mark a superpage: refused.
    pub const MARK_SUPER: u32 = 19;
    /// Unmark a superpage: refused.
    pub const UNMARK_SUPER: u32 = 20;
}
