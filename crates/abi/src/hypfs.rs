// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's file system of parameters (xen/hypfs.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_HYPFS_OP_*`: first argument of `hypfs_op`.
pub mod op {
    /// Gives [`super::VERSION`].
    pub const GET_VERSION: u64 = 0;
    /// Reads an entry.
    pub const READ: u64 = 1;
    /// Changes what is in an entry.
    pub const WRITE_CONTENTS: u64 = 2;
}

/// `XEN_HYPFS_VERSION`.
pub const VERSION: i64 = 1;
/// Longest path, its terminating zero included.
pub const MAX_PATH: usize = 1024;
/// [`Direntry::kind`]: a directory.
pub const TYPE_DIR: u8 = 0;
/// [`Direntry::kind`]: an unsigned number.
pub const TYPE_UINT: u8 = 3;

/// `struct xen_hypfs_direntry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Direntry {
    /// `TYPE_*`.
    pub kind: u8,
    /// 0: as it is.
    pub encoding: u8,
    /// Zero.
    pub pad: u16,
    /// Bytes of what is in it.
    pub content_len: u32,
    /// Most bytes that can be written; 0: it cannot be.
    pub max_write_len: u32,
}
const _: () = assert!(size_of::<Direntry>() == 12);

/// `struct xen_hypfs_dirlistentry` without the name, which follows at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ListEntry {
    /// [`Direntry`].
    pub entry: [u8; 12],
    /// Bytes to the next one; 0: there is none.
    pub off_next: u16,
}
const _: () = assert!(size_of::<ListEntry>() == 14);
