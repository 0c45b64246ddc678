// SPDX-License-Identifier: MIT OR Apache-2.0
//! ELF notes by which a guest kernel describes itself (xen/elfnote.h, `XEN_ELFNOTE_*`).
//!
//! They live in a `PT_NOTE` segment under the owner name [`OWNER`]. A numeric note is 4 or 8 bytes
//! long, a string ends at its first NUL.

/// Owner name of every note, without its terminating NUL.
pub const OWNER: &[u8] = b"Xen";

/// Number: virtual address of the entry point.
pub const ENTRY: u32 = 1;
/// Number: virtual address of the page to fill with hypercall stubs.
pub const HYPERCALL_PAGE: u32 = 2;
/// Number: virtual address that pseudo-physical address 0 is mapped at; 0 if absent.
pub const VIRT_BASE: u32 = 3;
/// Number: what to subtract from an ELF physical address to get a pseudo-physical one; 0 if absent.
pub const PADDR_OFFSET: u32 = 4;
/// String: interface version, always `xen-3.0`.
pub const XEN_VERSION: u32 = 5;
/// String: name of the guest operating system.
pub const GUEST_OS: u32 = 6;
/// String: version of the guest operating system.
pub const GUEST_VERSION: u32 = 7;
/// String: kind of loader, `generic`.
pub const LOADER: u32 = 8;
/// String: 32-bit PAE support.
pub const PAE_MODE: u32 = 9;
/// String: `|`-separated feature names, `!` before a required one.
pub const FEATURES: u32 = 10;
/// String: `yes` if the symbol table must be loaded.
pub const BSD_SYMTAB: u32 = 11;
/// Number: lowest address at which the hypervisor's hole may begin.
pub const HV_START_LOW: u32 = 12;
/// Pairs of mask and value that tell which non-present L1 entries hold an MFN.
pub const L1_MFN_VALID: u32 = 13;
/// Number: non-zero if a suspend request may be cancelled.
pub const SUSPEND_CANCEL: u32 = 14;
/// Number: virtual address at which to map the phys-to-machine list.
pub const INIT_P2M: u32 = 15;
/// Number: non-zero if the ramdisk may be given by frame number, unmapped.
pub const MOD_START_PFN: u32 = 16;
/// Number: bitmap of `XENFEAT_*` that the kernel supports.
pub const SUPPORTED_FEATURES: u32 = 17;
/// Number: physical entry point for PVH guests.
pub const PHYS32_ENTRY: u32 = 18;

/// The only interface version there is, the value of [`XEN_VERSION`].
pub const VERSION_3: &[u8] = b"xen-3.0";
