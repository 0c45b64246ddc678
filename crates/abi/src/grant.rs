// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grant tables: entries of both versions and the requests (xen/grant_table.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `GNTTABOP_*`: first argument of `grant_table_op`.
pub mod op {
    /// Map granted frames ([`super::MapGrantRef`]).
    pub const MAP_GRANT_REF: u32 = 0;
    /// Undo mappings ([`super::UnmapGrantRef`]).
    pub const UNMAP_GRANT_REF: u32 = 1;
    /// Grow the table and list its frames ([`super::SetupTable`]).
    pub const SETUP_TABLE: u32 = 2;
    /// Print the table ([`super::DumpTable`]).
    pub const DUMP_TABLE: u32 = 3;
    /// Give a frame to another domain ([`super::Transfer`]).
    pub const TRANSFER: u32 = 4;
    /// Copy between frames ([`super::CopyRequest`]).
    pub const COPY: u32 = 5;
    /// Read the sizes ([`super::QuerySize`]).
    pub const QUERY_SIZE: u32 = 6;
    /// Undo a mapping and move another entry in its place ([`super::UnmapAndReplace`]).
    pub const UNMAP_AND_REPLACE: u32 = 7;
    /// Choose the version of the entries ([`super::SetVersion`]).
    pub const SET_VERSION: u32 = 8;
    /// List the status frames of version 2 ([`super::GetStatusFrames`]).
    pub const GET_STATUS_FRAMES: u32 = 9;
    /// Read a domain's version ([`super::GetVersion`]).
    pub const GET_VERSION: u32 = 10;
    /// Swap two entries ([`super::SwapGrantRef`]).
    pub const SWAP_GRANT_REF: u32 = 11;
    /// Cache maintenance on a granted frame ([`super::CacheFlush`]).
    pub const CACHE_FLUSH: u32 = 12;
}

/// `GTF_*`: flags of an entry.
pub mod gtf {
    /// Type: grants nothing.
    pub const INVALID: u16 = 0;
    /// Type: the frame may be accessed.
    pub const PERMIT_ACCESS: u16 = 1;
    /// Type: a frame may be transferred in.
    pub const ACCEPT_TRANSFER: u16 = 2;
    /// Type: refers to a grant of another domain (version 2).
    pub const TRANSITIVE: u16 = 3;
    /// The type bits.
    pub const TYPE_MASK: u16 = 3;
    /// Access is read-only (set by the granter).
    pub const READONLY: u16 = 1 << 2;
    /// In use for reading (set by the hypervisor).
    pub const READING: u16 = 1 << 3;
    /// In use for writing (set by the hypervisor).
    pub const WRITING: u16 = 1 << 4;
    /// Cache attribute PWT.
    pub const PWT: u16 = 1 << 5;
    /// Cache attribute PCD.
    pub const PCD: u16 = 1 << 6;
    /// Cache attribute PAT.
    pub const PAT: u16 = 1 << 7;
    /// Only part of the frame, and only for copies (version 2).
    pub const SUB_PAGE: u16 = 1 << 8;
    /// A transfer has been decided: the granter must leave the entry alone.
    pub const TRANSFER_COMMITTED: u16 = 1 << 2;
    /// The transfer is complete.
    pub const TRANSFER_COMPLETED: u16 = 1 << 3;
}

/// `GNTMAP_*`: flags of a mapping.
pub mod map {
    /// For devices.
    pub const DEVICE_MAP: u32 = 1 << 0;
    /// For the processor.
    pub const HOST_MAP: u32 = 1 << 1;
    /// Read-only.
    pub const READONLY: u32 = 1 << 2;
    /// Usable by the current application too.
    pub const APPLICATION_MAP: u32 = 1 << 3;
    /// The address is the machine address of a page-table entry.
    pub const CONTAINS_PTE: u32 = 1 << 4;
    /// Lowest of the guest's available bits for the entry.
    pub const GUEST_AVAIL_SHIFT: u32 = 16;
    /// The guest's available bits for the entry.
    pub const GUEST_AVAIL_MASK: u32 = u32::MAX << GUEST_AVAIL_SHIFT;
}

/// `GNTCOPY_*`: flags of a copy.
pub mod copy {
    /// The source is a grant reference.
    pub const SOURCE_GREF: u16 = 1 << 0;
    /// The destination is a grant reference.
    pub const DEST_GREF: u16 = 1 << 1;
}

/// `GNTTAB_CACHE_*`: operations of a cache flush.
pub mod cache {
    /// Write back.
    pub const CLEAN: u32 = 1 << 0;
    /// Invalidate.
    pub const INVAL: u32 = 1 << 1;
    /// The target is a grant reference.
    pub const SOURCE_GREF: u32 = 1 << 31;
}

/// `GNTST_*`: status of one element of a request.
pub mod gntst {
    /// Done.
    pub const OKAY: i16 = 0;
    /// Something else is wrong.
    pub const GENERAL_ERROR: i16 = -1;
    /// No such domain.
    pub const BAD_DOMAIN: i16 = -2;
    /// No such or no suitable grant reference.
    pub const BAD_GNTREF: i16 = -3;
    /// No such or no suitable handle.
    pub const BAD_HANDLE: i16 = -4;
    /// The virtual address cannot be mapped.
    pub const BAD_VIRT_ADDR: i16 = -5;
    /// The device address cannot be unmapped.
    pub const BAD_DEV_ADDR: i16 = -6;
    /// No space in the I/O MMU.
    pub const NO_DEVICE_SPACE: i16 = -7;
    /// Not allowed.
    pub const PERMISSION_DENIED: i16 = -8;
    /// The frame is no good.
    pub const BAD_PAGE: i16 = -9;
    /// A copy crosses the end of a frame.
    pub const BAD_COPY_ARG: i16 = -10;
    /// A transferred frame's address is too large.
    pub const ADDRESS_TOO_BIG: i16 = -11;
    /// Not done; try again.
    pub const EAGAIN: i16 = -12;
    /// No space for handles.
    pub const NO_SPACE: i16 = -13;
}

/// Entries kept over a change of version (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const RESERVED_ENTRIES: u32 = 8;
/// Entry of the console ring (`GNTTAB_RESERVED_CONSOLE`).
pub const RESERVED_CONSOLE: u32 = 0;
/// Entry of the xenstore ring (`GNTTAB_RESERVED_XENSTORE`).
pub const RESERVED_XENSTORE: u32 = 1;
/// A handle that stands for no mapping.
pub const INVALID_HANDLE: u32 = u32::MAX;

/// `struct grant_entry_v1`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntryV1 {
    /// [`gtf`].
    pub flags: u16,
    /// The domain that is granted something.
    pub domid: u16,
    /// The frame.
    pub frame: u32,
}
const _: () = assert!(size_of::<EntryV1>() == 8);

/// `grant_entry_v2_t.full_page`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntryV2FullPage {
    /// [`gtf`].
    pub flags: u16,
    /// The domain that is granted something.
    pub domid: u16,
    /// Padding.
    pub pad: u32,
    /// The frame.
    pub frame: u64,
}
const _: () = assert!(size_of::<EntryV2FullPage>() == 16);

/// `grant_entry_v2_t.sub_page`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntryV2SubPage {
    /// [`gtf`].
    pub flags: u16,
    /// The domain that is granted something.
    pub domid: u16,
    /// First byte.
    pub page_off: u16,
    /// Bytes.
    pub length: u16,
    /// The frame.
    pub frame: u64,
}
const _: () = assert!(size_of::<EntryV2SubPage>() == 16);

/// `grant_entry_v2_t.transitive`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntryV2Transitive {
    /// [`gtf`].
    pub flags: u16,
    /// The domain that is granted something.
    pub domid: u16,
    /// The domain whose grant is passed on.
    pub trans_domid: u16,
    /// Padding.
    pub pad: u16,
    /// Its grant reference.
    pub gref: u32,
    /// Padding to the size of the union.
    pub spacer: u32,
}
const _: () = assert!(size_of::<EntryV2Transitive>() == 16);

/// `struct gnttab_map_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapGrantRef {
    /// In: virtual address, or machine address of the page-table entry.
    pub host_addr: u64,
    /// In: [`map`].
    pub flags: u32,
    /// In: grant reference.
    pub gref: u32,
    /// In: granting domain.
    pub dom: u16,
    /// Out: [`gntst`].
    pub status: i16,
    /// Out: handle of the mapping.
    pub handle: u32,
    /// Out: address for devices.
    pub dev_bus_addr: u64,
}
const _: () = assert!(size_of::<MapGrantRef>() == 32);

/// `struct gnttab_unmap_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapGrantRef {
    /// In: address of the host mapping; 0: leave it.
    pub host_addr: u64,
    /// In: address of the device mapping; 0: leave it.
    pub dev_bus_addr: u64,
    /// In: handle of the mapping.
    pub handle: u32,
    /// Out: [`gntst`].
    pub status: i16,
    /// Padding.
    pub pad: u16,
}
const _: () = assert!(size_of::<UnmapGrantRef>() == 24);

/// `struct gnttab_setup_table`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetupTable {
    /// In: domain.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// In: frames wanted.
    pub nr_frames: u32,
    /// Out: [`gntst`].
    pub status: i16,
    /// Padding.
    pub pad2: [u16; 3],
    /// In: guest address of an array of frame numbers (u64) to fill.
    pub frame_list: u64,
}
const _: () = assert!(size_of::<SetupTable>() == 24);

/// `struct gnttab_dump_table`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DumpTable {
    /// In: domain.
    pub dom: u16,
    /// Out: [`gntst`].
    pub status: i16,
}
const _: () = assert!(size_of::<DumpTable>() == 4);

/// `struct gnttab_transfer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Transfer {
    /// In: the frame given away.
    pub mfn: u64,
    /// In: receiving domain.
    pub domid: u16,
    /// Padding.
    pub pad: u16,
    /// In: its grant reference.
    pub gref: u32,
    /// Out: [`gntst`].
    pub status: i16,
    /// Padding.
    pub pad2: [u16; 3],
}
const _: () = assert!(size_of::<Transfer>() == 24);

/// `struct gnttab_copy_ptr`: one end of a copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CopyEnd {
    /// Frame, or a grant reference in the low 32 bits.
    pub frame_or_ref: u64,
    /// The domain it belongs to.
    pub domid: u16,
    /// First byte.
    pub offset: u16,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<CopyEnd>() == 16);

/// `struct gnttab_copy`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CopyRequest {
    /// In: from here.
    pub source: CopyEnd,
    /// In: to there.
    pub dest: CopyEnd,
    /// In: bytes.
    pub len: u16,
    /// In: [`copy`].
    pub flags: u16,
    /// Out: [`gntst`].
    pub status: i16,
    /// Padding.
    pub pad: u16,
}
const _: () = assert!(size_of::<CopyRequest>() == 40);

/// `struct gnttab_query_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct QuerySize {
    /// In: domain.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// Out: frames of the table.
    pub nr_frames: u32,
    /// Out: frames it may have.
    pub max_nr_frames: u32,
    /// Out: [`gntst`].
    pub status: i16,
    /// Padding.
    pub pad2: u16,
}
const _: () = assert!(size_of::<QuerySize>() == 16);

/// `struct gnttab_unmap_and_replace`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapAndReplace {
    /// In: address of the mapping.
    pub host_addr: u64,
    /// In: virtual address whose entry takes its place.
    pub new_addr: u64,
    /// In: handle of the mapping.
    pub handle: u32,
    /// Out: [`gntst`].
    pub status: i16,
    /// Padding.
    pub pad: u16,
}
const _: () = assert!(size_of::<UnmapAndReplace>() == 24);

/// `struct gnttab_set_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetVersion {
    /// In: wanted version; out: version in effect.
    pub version: u32,
}
const _: () = assert!(size_of::<SetVersion>() == 4);

/// `struct gnttab_get_status_frames`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetStatusFrames {
    /// In: frames wanted.
    pub nr_frames: u32,
    /// In: domain.
    pub dom: u16,
    /// Out: [`gntst`].
    pub status: i16,
    /// In: guest address of an array of frame numbers (u64) to fill.
    pub frame_list: u64,
}
const _: () = assert!(size_of::<GetStatusFrames>() == 16);

/// `struct gnttab_get_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetVersion {
    /// In: domain.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// Out: version in effect.
    pub version: u32,
}
const _: () = assert!(size_of::<GetVersion>() == 8);

/// `struct gnttab_swap_grant_ref`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SwapGrantRef {
    /// In: one entry.
    pub ref_a: u32,
    /// In: the other.
    pub ref_b: u32,
    /// Out: [`gntst`].
    pub status: i16,
    /// Padding.
    pub pad: u16,
}
const _: () = assert!(size_of::<SwapGrantRef>() == 12);

/// `struct gnttab_cache_flush`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CacheFlush {
    /// In: address for devices, or a grant reference in the low 32 bits.
    pub addr_or_ref: u64,
    /// In: first byte in the frame.
    pub offset: u16,
    /// In: bytes.
    pub length: u16,
    /// In: [`cache`].
    pub op: u32,
}
const _: () = assert!(size_of::<CacheFlush>() == 16);
