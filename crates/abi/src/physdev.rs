// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical devices and interrupts of the hardware domain (xen/physdev.h).
//!
//! C `int` fields that a guest fills stay signed here, as negative values have meaning (`pirq == -1`: choose one).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `PHYSDEVOP_irq_status_query`: does the PIRQ need an EOI, is it shared ([`IrqStatusQuery`]).
pub const IRQ_STATUS_QUERY: u64 = 5;
/// `PHYSDEVOP_set_iopl`: virtual I/O privilege level of the calling vCPU ([`SetIopl`]).
pub const SET_IOPL: u64 = 6;
/// `PHYSDEVOP_set_iobitmap`: I/O port bitmap of the calling vCPU ([`SetIobitmap`]).
pub const SET_IOBITMAP: u64 = 7;
/// `PHYSDEVOP_apic_read`: reads an I/O APIC register ([`ApicOp`]).
pub const APIC_READ: u64 = 8;
/// `PHYSDEVOP_apic_write`: writes an I/O APIC register ([`ApicOp`]).
pub const APIC_WRITE: u64 = 9;
/// `PHYSDEVOP_alloc_irq_vector`: the vector of a GSI ([`IrqOp`]).
pub const ALLOC_IRQ_VECTOR: u64 = 10;
/// `PHYSDEVOP_free_irq_vector`: gives a vector back ([`IrqOp`]).
pub const FREE_IRQ_VECTOR: u64 = 11;
/// `PHYSDEVOP_eoi`: the guest has handled a level-triggered interrupt ([`Eoi`]).
pub const EOI: u64 = 12;
/// `PHYSDEVOP_map_pirq`: gives an interrupt source a PIRQ ([`MapPirq`]).
pub const MAP_PIRQ: u64 = 13;
/// `PHYSDEVOP_unmap_pirq`: the reverse ([`UnmapPirq`]).
pub const UNMAP_PIRQ: u64 = 14;
/// `PHYSDEVOP_manage_pci_add`: a function of segment 0 was found ([`ManagePci`]).
pub const MANAGE_PCI_ADD: u64 = 15;
/// `PHYSDEVOP_manage_pci_remove`: a function of segment 0 is gone ([`ManagePci`]).
pub const MANAGE_PCI_REMOVE: u64 = 16;
/// `PHYSDEVOP_pirq_eoi_gmfn_v1`: shares the EOI bitmap; an EOI also unmasks the event channel ([`PirqEoiGmfn`]).
pub const PIRQ_EOI_GMFN_V1: u64 = 17;
/// `PHYSDEVOP_restore_msi`: programs the MSIs of a function of segment 0 again ([`ManagePci`]).
pub const RESTORE_MSI: u64 = 19;
/// `PHYSDEVOP_manage_pci_add_ext`: as add, for extended and virtual functions ([`ManagePciExt`]).
pub const MANAGE_PCI_ADD_EXT: u64 = 20;
/// `PHYSDEVOP_setup_gsi`: trigger and polarity of a GSI ([`SetupGsi`]).
pub const SETUP_GSI: u64 = 21;
/// `PHYSDEVOP_get_free_pirq`: reserves a PIRQ for a later map ([`GetFreePirq`]).
pub const GET_FREE_PIRQ: u64 = 23;
/// `PHYSDEVOP_pci_mmcfg_reserved`: an MMCONFIG area may be used ([`PciMmcfgReserved`]).
pub const PCI_MMCFG_RESERVED: u64 = 24;
/// `PHYSDEVOP_pci_device_add`: a function was found ([`PciDeviceAdd`]).
pub const PCI_DEVICE_ADD: u64 = 25;
/// `PHYSDEVOP_pci_device_remove`: a function is gone ([`PciDevice`]).
pub const PCI_DEVICE_REMOVE: u64 = 26;
/// `PHYSDEVOP_restore_msi_ext`: programs the MSIs of a function again ([`PciDevice`]).
pub const RESTORE_MSI_EXT: u64 = 27;
/// `PHYSDEVOP_pirq_eoi_gmfn_v2`: shares the EOI bitmap, nothing else changes ([`PirqEoiGmfn`]).
pub const PIRQ_EOI_GMFN_V2: u64 = 28;
/// `PHYSDEVOP_prepare_msix`: the function's memory areas will not move ([`PciDevice`]).
pub const PREPARE_MSIX: u64 = 30;
/// `PHYSDEVOP_release_msix`: they may move again ([`PciDevice`]).
pub const RELEASE_MSIX: u64 = 31;

/// `XENIRQSTAT_needs_eoi`.
pub const IRQSTAT_NEEDS_EOI: u32 = 1 << 0;
/// `XENIRQSTAT_shared`.
pub const IRQSTAT_SHARED: u32 = 1 << 1;

/// `MAP_PIRQ_TYPE_MSI`: MSI or MSI-X of a function of segment 0.
pub const MAP_MSI: i32 = 0;
/// `MAP_PIRQ_TYPE_GSI`: a GSI, `index` is its number.
pub const MAP_GSI: i32 = 1;
/// `MAP_PIRQ_TYPE_UNKNOWN`.
pub const MAP_UNKNOWN: i32 = 2;
/// `MAP_PIRQ_TYPE_MSI_SEG`: as MSI; the segment is in bits 16..31 of `bus`.
pub const MAP_MSI_SEG: i32 = 3;
/// `MAP_PIRQ_TYPE_MULTI_MSI`: several consecutive MSIs.
pub const MAP_MULTI_MSI: i32 = 4;

/// `XEN_PCI_MMCFG_RESERVED`.
pub const PCI_MMCFG_IS_RESERVED: u32 = 1;
/// `XEN_PCI_DEV_EXTFN`: an ARI extended function.
pub const PCI_DEV_EXTFN: u32 = 1;
/// `XEN_PCI_DEV_VIRTFN`: an SR-IOV virtual function of `physfn`.
pub const PCI_DEV_VIRTFN: u32 = 2;
/// `XEN_PCI_DEV_PXM`: the first optional word is the proximity domain.
pub const PCI_DEV_PXM: u32 = 4;

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident = $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire! {
    /// `struct physdev_eoi`.
    Eoi = 4 {
        /// PIRQ.
        irq: u32,
    }
}

wire! {
    /// `struct physdev_pirq_eoi_gmfn`.
    PirqEoiGmfn = 8 {
        /// Frame of the guest that becomes the bitmap, indexed by PIRQ.
        gmfn: u64,
    }
}

wire! {
    /// `struct physdev_irq_status_query`.
    IrqStatusQuery = 8 {
        /// PIRQ.
        irq: u32,
        /// Out: `IRQSTAT_*`.
        flags: u32,
    }
}

wire! {
    /// `struct physdev_set_iopl`.
    SetIopl = 4 {
        /// Level 0..=3.
        iopl: u32,
    }
}

wire! {
    /// `struct physdev_set_iobitmap`.
    SetIobitmap = 16 {
        /// Guest address of the bitmap: a set bit forbids the port.
        bitmap: u64,
        /// Ports the bitmap covers.
        nr_ports: u32,
        /// Padding.
        pad: u32,
    }
}

wire! {
    /// `struct physdev_apic`.
    ApicOp = 16 {
        /// Physical address of the I/O APIC.
        apic_physbase: u64,
        /// Register index.
        reg: u32,
        /// In or out: the value.
        value: u32,
    }
}

wire! {
    /// `struct physdev_irq`.
    IrqOp = 8 {
        /// GSI.
        irq: u32,
        /// In or out: vector.
        vector: u32,
    }
}

wire! {
    /// `struct physdev_map_pirq`.
    MapPirq = 40 {
        /// Domain that gets the PIRQ.
        domid: u16,
        /// Padding.
        pad0: u16,
        /// `MAP_*`.
        kind: i32,
        /// GSI for [`MAP_GSI`].
        index: i32,
        /// In: wanted PIRQ or negative; out: the PIRQ.
        pirq: i32,
        /// Bus, and segment << 16 for [`MAP_MSI_SEG`].
        bus: i32,
        /// Device << 3 | function.
        devfn: i32,
        /// MSI-X table entry.
        entry_nr: i32,
        /// Padding.
        pad1: u32,
        /// Address of the BAR that holds the MSI-X table; 0 means MSI.
        table_base: u64,
    }
}
const _: () = assert!(core::mem::offset_of!(MapPirq, kind) == 4);
const _: () = assert!(core::mem::offset_of!(MapPirq, table_base) == 32);

wire! {
    /// `struct physdev_unmap_pirq`.
    UnmapPirq = 8 {
        /// Domain that has the PIRQ.
        domid: u16,
        /// Padding.
        pad: u16,
        /// PIRQ.
        pirq: i32,
    }
}

wire! {
    /// `struct physdev_manage_pci` and `struct physdev_restore_msi`.
    ManagePci = 2 {
        /// Bus.
        bus: u8,
        /// Device << 3 | function.
        devfn: u8,
    }
}

wire! {
    /// `struct physdev_manage_pci_ext`.
    ManagePciExt = 16 {
        /// Bus.
        bus: u8,
        /// Device << 3 | function.
        devfn: u8,
        /// Padding.
        pad0: u16,
        /// Non-zero for an ARI extended function.
        is_extfn: u32,
        /// Non-zero for an SR-IOV virtual function.
        is_virtfn: u32,
        /// Bus of the physical function.
        physfn_bus: u8,
        /// Device << 3 | function of the physical function.
        physfn_devfn: u8,
        /// Padding.
        pad1: u16,
    }
}

wire! {
    /// `struct physdev_setup_gsi`.
    SetupGsi = 8 {
        /// GSI.
        gsi: i32,
        /// 0 edge, 1 level.
        triggering: u8,
        /// 0 active high, 1 active low.
        polarity: u8,
        /// Padding.
        pad: u16,
    }
}

wire! {
    /// `struct physdev_get_free_pirq`.
    GetFreePirq = 8 {
        /// [`MAP_GSI`] or [`MAP_MSI`].
        kind: i32,
        /// Out: the PIRQ.
        pirq: u32,
    }
}

wire! {
    /// `struct physdev_pci_mmcfg_reserved`.
    PciMmcfgReserved = 16 {
        /// Physical address of bus 0 of the segment.
        address: u64,
        /// Segment.
        segment: u16,
        /// First bus.
        start_bus: u8,
        /// Last bus.
        end_bus: u8,
        /// [`PCI_MMCFG_IS_RESERVED`].
        flags: u32,
    }
}

wire! {
    /// `struct physdev_pci_device_add` without its optional words.
    PciDeviceAdd = 12 {
        /// Segment.
        seg: u16,
        /// Bus.
        bus: u8,
        /// Device << 3 | function.
        devfn: u8,
        /// `PCI_DEV_*`.
        flags: u32,
        /// Bus of the physical function.
        physfn_bus: u8,
        /// Device << 3 | function of the physical function.
        physfn_devfn: u8,
        /// Padding.
        pad: u16,
    }
}

wire! {
    /// `struct physdev_pci_device`.
    PciDevice = 4 {
        /// Segment.
        seg: u16,
        /// Bus.
        bus: u8,
        /// Device << 3 | function.
        devfn: u8,
    }
}
