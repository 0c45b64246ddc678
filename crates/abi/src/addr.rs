// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers that name memory, domains and vCPUs: newtypes so that one is never taken for another.

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// First address of the range that every address space reserves for the hypervisor (`HYPERVISOR_VIRT_START`, xen/arch-x86/xen-x86_64.h).
pub const HYPERVISOR_START: u64 = 0xffff_8000_0000_0000;
/// First address after the hypervisor's range (`HYPERVISOR_VIRT_END`).
pub const HYPERVISOR_END: u64 = 0xffff_8800_0000_0000;
/// First L4 slot of the hypervisor's range; slot 256 shows the machine-to-phys table read-only.
pub const HYPERVISOR_FIRST_SLOT: usize = 256;
/// First L4 slot after the hypervisor's range.
pub const HYPERVISOR_END_SLOT: usize = 272;

/// Machine frame number: index of a 4 KiB page of the machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Mfn(pub u64);

impl Mfn {
    /// The frame that holds machine address `addr`.
    pub const fn containing(addr: u64) -> Self {
        Self(addr >> PAGE_SHIFT)
    }
    /// First machine address of the frame.
    pub const fn addr(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

/// Pseudo-physical frame number: a guest's own contiguous numbering of its frames (GFN is the same for PV guests' outside view of an MFN).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Pfn(pub u64);

/// Domain identifier (`domid_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// Domain 0, the privileged first domain.
    pub const DOM0: Self = Self(0);
    /// First of the reserved identifiers (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// The caller itself (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
    /// Machine addresses that are not RAM (`DOMID_IO`).
    pub const IO: Self = Self(0x7ff1);
    /// The hypervisor's own shared frames, such as the machine-to-phys table (`DOMID_XEN`).
    pub const XEN: Self = Self(0x7ff2);
    /// Copy-on-write pages (`DOMID_COW`), unused by PV domains.
    pub const COW: Self = Self(0x7ff3);
    /// No domain (`DOMID_INVALID`).
    pub const INVALID: Self = Self(0x7ff4);
    /// The idle vCPUs (`DOMID_IDLE`).
    pub const IDLE: Self = Self(0x7fff);
}

/// Number of a vCPU within its domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct VcpuId(pub u32);

/// A virtual address a guest gave us. It is a claim, not a pointer: only [`crate::GuestMemory`] can use it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct GuestVa(pub u64);

impl GuestVa {
    /// The null handle.
    pub const NULL: Self = Self(0);
    /// True for the null handle.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
    /// The address `bytes` further on; wraps, and a wrapped address is refused when used.
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
    /// Address of element `index` of an array of `size`-byte elements.
    pub const fn element(self, index: u64, size: u64) -> Self {
        Self(self.0.wrapping_add(index.wrapping_mul(size)))
    }
    /// True if `[self, self+len)` does not wrap, is canonical and lies outside the hypervisor's range.
    pub const fn range_ok(self, len: u64) -> bool {
        let Some(end) = self.0.checked_add(len) else {
            return false;
        };
        end <= 0x0000_8000_0000_0000 || self.0 >= HYPERVISOR_END
    }
}

/// `N` words of guest memory that neither wrap nor touch the hypervisor's range and are canonical: only the check makes one,
/// so whoever is given one needs no check of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestWords<const N: usize>(GuestVa);

impl<const N: usize> GuestWords<N> {
    /// The words from `start` on, if they may be the guest's ([`GuestVa::range_ok`]).
    #[inline(always)]
    pub const fn new(start: GuestVa) -> Option<Self> {
        if start.range_ok(8 * N as u64) {
            Some(Self(start))
        } else {
            None
        }
    }
    /// Address of the first word.
    #[inline(always)]
    pub const fn start(self) -> GuestVa {
        self.0
    }
}

/// True if bits 63..47 of `addr` are all equal (48-bit virtual addresses).
pub const fn is_canonical(addr: u64) -> bool {
    let top = (addr as i64) >> 47;
    top == 0 || top == -1
}
