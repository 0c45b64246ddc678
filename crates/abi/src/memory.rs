// SPDX-License-Identifier: MIT OR Apache-2.0
//! `memory_op`: reservations, exchange, memory maps (xen/memory.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits of the command argument that hold the operation; the rest is the extent to resume at (`MEMOP_EXTENT_SHIFT`).
pub const COMMAND_BITS: u32 = 6;
/// Mask of the operation.
pub const COMMAND_MASK: u64 = (1 << COMMAND_BITS) - 1;

/// Operations (`XENMEM_*`).
pub mod op {
    /// Allocate frames.
    pub const INCREASE_RESERVATION: u64 = 0;
    /// Give frames back.
    pub const DECREASE_RESERVATION: u64 = 1;
    /// Highest MFN of RAM.
    pub const MAXIMUM_RAM_PAGE: u64 = 2;
    /// Frames the domain has.
    pub const CURRENT_RESERVATION: u64 = 3;
    /// Frames the domain may have.
    pub const MAXIMUM_RESERVATION: u64 = 4;
    /// Frames of the machine-to-phys table.
    pub const MACHPHYS_MFN_LIST: u64 = 5;
    /// Allocate frames for given PFNs.
    pub const POPULATE_PHYSMAP: u64 = 6;
    /// Map a frame at a guest frame number (translated guests).
    pub const ADD_TO_PHYSMAP: u64 = 7;
    /// The domain's own memory map.
    pub const MEMORY_MAP: u64 = 9;
    /// The machine's memory map.
    pub const MACHINE_MEMORY_MAP: u64 = 10;
    /// Swap frames for others, contiguous or with an address limit.
    pub const EXCHANGE: u64 = 11;
    /// Where the machine-to-phys table is.
    pub const MACHPHYS_MAPPING: u64 = 12;
    /// Sets a domain's memory map.
    pub const SET_MEMORY_MAP: u64 = 13;
    /// Highest PFN of a domain.
    pub const MAXIMUM_GPFN: u64 = 14;
    /// Undo of [`ADD_TO_PHYSMAP`].
    pub const REMOVE_FROM_PHYSMAP: u64 = 15;
    /// Populate-on-demand target (HVM).
    pub const SET_POD_TARGET: u64 = 16;
    /// Populate-on-demand target (HVM).
    pub const GET_POD_TARGET: u64 = 17;
    /// Frames freed by memory sharing.
    pub const GET_SHARING_FREED_PAGES: u64 = 18;
    /// Frames shared by memory sharing.
    pub const GET_SHARING_SHARED_PAGES: u64 = 19;
    /// Batch form of [`ADD_TO_PHYSMAP`].
    pub const ADD_TO_PHYSMAP_BATCH: u64 = 23;
    /// Stake a claim on free frames.
    pub const CLAIM_PAGES: u64 = 24;
    /// Virtual NUMA topology.
    pub const GET_VNUMAINFO: u64 = 26;
    /// Frames of a resource, such as a grant table.
    pub const ACQUIRE_RESOURCE: u64 = 28;
}

/// Address width limit in [`MemoryReservation::mem_flags`] (`XENMEMF_get_address_bits`); 0 is none.
pub const fn address_bits(mem_flags: u32) -> u32 {
    mem_flags & 0xff
}

/// `struct xen_memory_reservation`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryReservation {
    /// Guest address of the array of extent bases (`u64` each).
    pub extent_start: u64,
    /// Number of extents.
    pub nr_extents: u64,
    /// Each is 2^this frames.
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    /// Whose reservation.
    pub domid: u16,
    /// Padding.
    pub pad: [u16; 3],
}
const _: () = assert!(size_of::<MemoryReservation>() == 32);

/// `struct xen_memory_exchange`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryExchange {
    /// What is given.
    pub input: MemoryReservation,
    /// What is wanted: PFNs in, MFNs out.
    pub output: MemoryReservation,
    /// Input extents exchanged so far.
    pub nr_exchanged: u64,
}
const _: () = assert!(size_of::<MemoryExchange>() == 72);

/// `struct xen_machphys_mfn_list`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachphysMfnList {
    /// Size of the array.
    pub max_extents: u32,
    /// Padding.
    pub pad0: u32,
    /// Guest address of the array.
    pub extent_start: u64,
    /// Entries written.
    pub nr_extents: u32,
    /// Padding.
    pub pad1: u32,
}
const _: () = assert!(size_of::<MachphysMfnList>() == 24);

/// `struct xen_machphys_mapping`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MachphysMapping {
    /// First address of the table.
    pub v_start: u64,
    /// End of the range reserved for it.
    pub v_end: u64,
    /// Highest MFN that can be looked up.
    pub max_mfn: u64,
}
const _: () = assert!(size_of::<MachphysMapping>() == 24);

/// `MACH2PHYS_VIRT_START` (xen/arch-x86/xen-x86_64.h).
pub const MACHPHYS_START: u64 = crate::addr::HYPERVISOR_START;
/// `MACH2PHYS_VIRT_END`.
pub const MACHPHYS_END: u64 = MACHPHYS_START + (1 << 38);

/// `struct xen_memory_map`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MemoryMap {
    /// Room for entries, then entries written.
    pub nr_entries: u32,
    /// Padding.
    pub pad: u32,
    /// Guest address of the array of [`E820Entry`].
    pub buffer: u64,
}
const _: () = assert!(size_of::<MemoryMap>() == 16);

/// `struct xen_foreign_memory_map`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ForeignMemoryMap {
    /// Whose map.
    pub domid: u16,
    /// Padding.
    pub pad: [u16; 3],
    /// The map.
    pub map: MemoryMap,
}
const _: () = assert!(size_of::<ForeignMemoryMap>() == 24);

/// One range of a memory map, as BIOS INT 15h E820 returns it.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// [`E820_RAM`] or another type.
    pub kind: u32,
}
const _: () = assert!(size_of::<E820Entry>() == 20);

/// Usable memory.
pub const E820_RAM: u32 = 1;
/// Reserved.
pub const E820_RESERVED: u32 = 2;
/// ACPI tables, reclaimable.
pub const E820_ACPI: u32 = 3;
/// ACPI non-volatile storage.
pub const E820_NVS: u32 = 4;
/// Faulty memory.
pub const E820_UNUSABLE: u32 = 5;

/// What [`AcquireResource`] can name.
pub mod resource {
    /// `XENMEM_resource_grant_table`: a domain's grant table.
    pub const GRANT_TABLE: u16 = 1;
    /// `XENMEM_resource_grant_table_id_shared`: the frames of its entries.
    pub const GRANT_TABLE_SHARED: u32 = 0;
    /// `XENMEM_resource_grant_table_id_status`: the status frames of version 2.
    pub const GRANT_TABLE_STATUS: u32 = 1;
}

/// `struct xen_mem_acquire_resource`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AcquireResource {
    /// In: whose resource.
    pub domid: u16,
    /// In: [`resource`].
    pub kind: u16,
    /// In: which of that kind.
    pub id: u32,
    /// In: frames wanted; 0 with a null list asks for the size. Out: the size.
    pub nr_frames: u32,
    /// Must be zero.
    pub pad: u32,
    /// In: first frame.
    pub frame: u64,
    /// In: guest address of an array of frame numbers (u64) to fill.
    pub frame_list: u64,
}
const _: () = assert!(size_of::<AcquireResource>() == 32);
