// SPDX-License-Identifier: MIT OR Apache-2.0
//! Feature bits of `XENVER_get_features` and of the kernel's ELF notes (xen/features.h).

bitflags::bitflags! {
    /// `XENFEAT_*`: submap 0.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// The guest may write its page tables directly.
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// The guest may write its descriptor tables directly.
        const WRITABLE_DESCRIPTOR_TABLES = 1 << 1;
        /// The hypervisor translates the guest's physical addresses.
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// The guest's kernel runs in ring 0.
        const SUPERVISOR_MODE_KERNEL = 1 << 3;
        /// Top-level tables may lie above 4 GiB.
        const PAE_PGDIR_ABOVE_4GB = 1 << 4;
        /// `MMU_PT_UPDATE_PRESERVE_AD` exists.
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << 5;
        /// `MMUEXT_CLEAR_PAGE` and `MMUEXT_COPY_PAGE` exist.
        const HIGHMEM_ASSIST = 1 << 6;
        /// Grant mappings honour the guest's available bits.
        const GNTTAB_MAP_AVAIL_BITS = 1 << 7;
        /// Callback by interrupt vector (HVM).
        const HVM_CALLBACK_VECTOR = 1 << 8;
        /// The paravirtual clock is safe (HVM).
        const HVM_SAFE_PVCLOCK = 1 << 9;
        /// PIRQs can be used (HVM).
        const HVM_PIRQS = 1 << 10;
        /// Runs, or can run, as Domain 0.
        const DOM0 = 1 << 11;
        /// `XENMEMF_vnode` is understood.
        const MEMORY_OP_VNODE_SUPPORTED = 1 << 13;
        /// The Arm calling convention for secure monitor calls.
        const ARM_SMCCC_SUPPORTED = 1 << 14;
        /// The ACPI root pointer may be anywhere (PVH).
        const LINUX_RSDP_UNRESTRICTED = 1 << 15;
        /// Pseudo-physical and machine frame numbers differ.
        const NOT_DIRECT_MAPPED = 1 << 16;
        /// The outside names of frames are machine frame numbers.
        const DIRECT_MAPPED = 1 << 17;
    }
}

/// Number of 32-bit submaps (`XENFEAT_NR_SUBMAPS`).
pub const SUBMAPS: u32 = 1;

/// What every PV domain is told in submap 0.
pub const PV: Features = Features::MMU_PT_UPDATE_PRESERVE_AD
    .union(Features::HIGHMEM_ASSIST)
    .union(Features::GNTTAB_MAP_AVAIL_BITS)
    .union(Features::MEMORY_OP_VNODE_SUPPORTED)
    .union(Features::DIRECT_MAPPED);

/// Names in the `FEATURES` ELF note, by bit number (only those with a name there).
pub const NAMES: [(&str, Features); 7] = [
    ("writable_page_tables", Features::WRITABLE_PAGE_TABLES),
    (
        "writable_descriptor_tables",
        Features::WRITABLE_DESCRIPTOR_TABLES,
    ),
    ("auto_translated_physmap", Features::AUTO_TRANSLATED_PHYSMAP),
    ("supervisor_mode_kernel", Features::SUPERVISOR_MODE_KERNEL),
    ("pae_pgdir_above_4gb", Features::PAE_PGDIR_ABOVE_4GB),
    ("hvm_callback_vector", Features::HVM_CALLBACK_VECTOR),
    ("dom0", Features::DOM0),
];
