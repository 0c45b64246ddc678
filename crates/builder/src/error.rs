// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a domain could not be built, each case one line for the console.

use core::fmt;

/// Reason for which an image cannot become a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// Neither an ELF file, a bzImage nor a known compressed format.
    NotAKernel,
    /// The bzImage is too old to name its payload.
    OldBzImage,
    /// The file ends before the part named.
    Truncated(&'static str),
    /// Compressed by the named method, which is not supported.
    UnknownCompression(&'static str),
    /// A compressed stream is damaged; the part or method is named.
    Corrupt(&'static str),
    /// Unpacks to more than [`crate::MAX_IMAGE`].
    TooLarge,
    /// The hypervisor has no memory to unpack into.
    NoMemory,
    /// ELF, but not 64-bit little-endian x86-64.
    WrongMachine,
    /// ELF, but not an executable or without segments to load.
    NotExecutable,
    /// A header of the ELF file contradicts itself; which is named.
    BadElf(&'static str),
    /// No notes of the owner "Xen".
    NoXenNotes,
    /// Xen notes, but only for PVH.
    OnlyPvh,
    /// A Xen note has an impossible value; which is named.
    BadNote(&'static str),
    /// The kernel requires the named feature.
    NeedsFeature(&'static str),
    /// The kernel says that it cannot run as Domain 0.
    NotDom0,
    /// The kernel, ramdisk and tables need this many pages; the domain has fewer.
    DoesNotFit {
        /// Pages the initial layout takes.
        needed: u64,
        /// Pages of the domain.
        have: u64,
    },
    /// The initial mapping leaves the address space or meets the hypervisor's range.
    BadAddress(&'static str),
    /// The command line has more than 1023 bytes.
    CommandLineTooLong,
    /// The frames handed over do not add up to the domain's pages.
    BadExtents,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAKernel => f.write_str("the kernel is neither an ELF file nor a bzImage"),
            Self::OldBzImage => f.write_str(
                "the bzImage's boot protocol is older than 2.08 and does not name its payload",
            ),
            Self::Truncated(what) => write!(f, "the kernel image is truncated: {what} is cut off"),
            Self::UnknownCompression(method) => {
                write!(
                    f,
                    "the kernel is compressed with {method}, which is not supported"
                )
            }
            Self::Corrupt(what) => write!(f, "the kernel image is damaged: bad {what}"),
            Self::TooLarge => write!(
                f,
                "the kernel unpacks to more than {} MiB",
                crate::MAX_IMAGE >> 20
            ),
            Self::NoMemory => f.write_str("too little memory to unpack the kernel"),
            Self::WrongMachine => f.write_str("the kernel is not for 64-bit x86"),
            Self::NotExecutable => f.write_str("the kernel is not an executable ELF file"),
            Self::BadElf(what) => write!(f, "the kernel's ELF headers are wrong: {what}"),
            Self::NoXenNotes => {
                f.write_str("the kernel has no Xen notes: it is built without Xen PV support")
            }
            Self::OnlyPvh => f.write_str("the kernel supports Xen's PVH mode only, not PV"),
            Self::BadNote(what) => write!(f, "the kernel's Xen note {what} is wrong"),
            Self::NeedsFeature(what) => {
                write!(
                    f,
                    "the kernel requires the feature {what}, which there is not"
                )
            }
            Self::NotDom0 => {
                f.write_str("the kernel is built without support for running as Domain 0")
            }
            Self::DoesNotFit { needed, have } => write!(
                f,
                "kernel and ramdisk do not fit: {} KiB needed, the domain has {} KiB",
                needed.saturating_mul(4),
                have.saturating_mul(4)
            ),
            Self::BadAddress(what) => write!(f, "the kernel asks for impossible addresses: {what}"),
            Self::CommandLineTooLong => {
                f.write_str("the kernel's command line is longer than 1023 bytes")
            }
            Self::BadExtents => f.write_str("the frames for the domain do not match its layout"),
        }
    }
}

impl core::error::Error for BuildError {}
