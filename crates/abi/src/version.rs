// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor says about itself: `xen_version` (xen/version.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENVER_*`: first argument of `xen_version`.
pub mod op {
    /// Version number in the result.
    pub const VERSION: u32 = 0;
    /// [`super::Extraversion`].
    pub const EXTRAVERSION: u32 = 1;
    /// [`super::CompileInfo`].
    pub const COMPILE_INFO: u32 = 2;
    /// [`super::Capabilities`].
    pub const CAPABILITIES: u32 = 3;
    /// [`super::Changeset`].
    pub const CHANGESET: u32 = 4;
    /// [`super::PlatformParameters`].
    pub const PLATFORM_PARAMETERS: u32 = 5;
    /// [`super::FeatureInfo`].
    pub const GET_FEATURES: u32 = 6;
    /// Page size in the result.
    pub const PAGESIZE: u32 = 7;
    /// [`super::GuestHandle`].
    pub const GUEST_HANDLE: u32 = 8;
    /// [`super::Commandline`].
    pub const COMMANDLINE: u32 = 9;
    /// [`super::BuildIdHeader`], then the identifier; its length in the result.
    pub const BUILD_ID: u32 = 10;
}

/// The interface version we speak: 4.17.
pub const MAJOR: u32 = 4;
/// The interface version we speak: 4.17.
pub const MINOR: u32 = 17;

/// Result of [`op::VERSION`].
pub const VERSION: u32 = MAJOR << 16 | MINOR;

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident[$len:literal];)*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
            pub struct $name(pub [u8; $len]);

            impl $name {
                /// The text, cut if need be, always ended by a zero byte, the rest zero.
                pub fn new(value: &str) -> Self {
                    Self(text(value))
                }
            }
            const _: () = assert!(size_of::<$name>() == $len);
        )*
    };
}

texts! {
    /// `xen_extraversion_t`: what follows the version number.
    Extraversion[16];
    /// `xen_capabilities_info_t`: guest types, separated by spaces, such as `xen-3.0-x86_64`.
    Capabilities[1024];
    /// `xen_changeset_info_t`: source revision.
    Changeset[64];
    /// `xen_commandline_t`: the hypervisor's command line.
    Commandline[1024];
}

/// A fixed-size field with `value`, cut if need be, always ended by a zero byte.
pub fn text<const N: usize>(value: &str) -> [u8; N] {
    let mut field = [0; N];
    let last = N.saturating_sub(1);
    for (to, from) in field.iter_mut().take(last).zip(value.bytes()) {
        *to = from;
    }
    field
}

/// `struct xen_compile_info`: zero-terminated texts.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CompileInfo {
    /// Compiler and its version.
    pub compiler: [u8; 64],
    /// Who built it.
    pub compile_by: [u8; 16],
    /// Where.
    pub compile_domain: [u8; 32],
    /// When.
    pub compile_date: [u8; 32],
}
const _: () = assert!(size_of::<CompileInfo>() == 144);

/// `struct xen_platform_parameters`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PlatformParameters {
    /// First address of the hypervisor's range.
    pub virt_start: u64,
}
const _: () = assert!(size_of::<PlatformParameters>() == 8);

/// `struct xen_feature_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureInfo {
    /// In: which 32 features; only 0 exists.
    pub submap_idx: u32,
    /// Out: the features ([`crate::features::Features`]).
    pub submap: u32,
}
const _: () = assert!(size_of::<FeatureInfo>() == 8);

/// `xen_domain_handle_t`: the UUID that the toolstack gave the domain.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GuestHandle(pub [u8; 16]);
const _: () = assert!(size_of::<GuestHandle>() == 16);

/// `struct xen_build_id` without its buffer, which follows at offset 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BuildIdHeader {
    /// In: bytes of the buffer.
    pub len: u32,
}
const _: () = assert!(size_of::<BuildIdHeader>() == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_terminated() {
        assert_eq!(text::<4>("abcdef"), *b"abc\0");
        assert_eq!(text::<4>("a"), *b"a\0\0\0");
        assert_eq!(
            Extraversion::new(".0-philoxen-long-name").0.last(),
            Some(&0)
        );
        assert_eq!(VERSION, 0x0004_0011);
    }
}
