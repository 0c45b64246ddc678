// SPDX-License-Identifier: MIT OR Apache-2.0
//! Callbacks: where the hypervisor enters a guest kernel other than through its trap table (xen/callback.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `CALLBACKOP_register`: argument [`CallbackRegister`].
pub const CALLBACKOP_REGISTER: u64 = 0;
/// `CALLBACKOP_unregister`: argument [`CallbackUnregister`]; `EINVAL` for callbacks that must stay.
pub const CALLBACKOP_UNREGISTER: u64 = 1;

/// Event upcall. Events are always masked on entry.
pub const CALLBACKTYPE_EVENT: u16 = 0;
/// The guest's state cannot be loaded as it stands.
pub const CALLBACKTYPE_FAILSAFE: u16 = 1;
/// SYSCALL by a 64-bit application.
pub const CALLBACKTYPE_SYSCALL: u16 = 2;
/// SYSENTER on a 32-bit hypervisor: refused.
pub const CALLBACKTYPE_SYSENTER_DEPRECATED: u16 = 3;
/// NMI. Events are always masked on entry.
pub const CALLBACKTYPE_NMI: u16 = 4;
/// SYSENTER by a 32-bit application.
pub const CALLBACKTYPE_SYSENTER: u16 = 5;
/// SYSCALL by a 32-bit application.
pub const CALLBACKTYPE_SYSCALL32: u16 = 7;

/// Mask events while the callback is entered.
pub const CALLBACKF_MASK_EVENTS: u16 = 1;

/// `struct callback_register`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CallbackRegister {
    /// `CALLBACKTYPE_*`.
    pub kind: u16,
    /// [`CALLBACKF_MASK_EVENTS`] or nothing.
    pub flags: u16,
    /// Padding.
    pub pad: u32,
    /// Entry point.
    pub address: u64,
}
const _: () = assert!(size_of::<CallbackRegister>() == 16);

/// `struct callback_unregister`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CallbackUnregister {
    /// `CALLBACKTYPE_*`.
    pub kind: u16,
    /// Unused.
    pub unused: u16,
}
const _: () = assert!(size_of::<CallbackUnregister>() == 4);
