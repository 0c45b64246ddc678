// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machine-wide operations of the hardware domain (xen/platform.h).
//!
//! `struct xen_platform_op` is a command, a version and a union of 128 bytes; the union starts at [`BODY`] and each
//! command's structure is read from and written to that address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENPF_INTERFACE_VERSION`: any other version gets `EACCES`.
pub const INTERFACE_VERSION: u32 = 0x0300_0001;
/// Offset of the union in `struct xen_platform_op`.
pub const BODY: u64 = 8;

/// `XENPF_settime32` ([`SetTime32`]).
pub const SETTIME32: u32 = 17;
/// `XENPF_platform_quirk` (a `u32` quirk).
pub const PLATFORM_QUIRK: u32 = 39;
/// `XENPF_get_cpu_version` ([`CpuVersion`]).
pub const GET_CPU_VERSION: u32 = 48;
/// `XENPF_efi_runtime_call`.
pub const EFI_RUNTIME_CALL: u32 = 49;
/// `XENPF_firmware_info` ([`FirmwareInfo`]).
pub const FIRMWARE_INFO: u32 = 50;
/// `XENPF_enter_acpi_sleep` ([`AcpiSleep`]).
pub const ENTER_ACPI_SLEEP: u32 = 51;
/// `XENPF_set_processor_pminfo` ([`ProcessorPmInfo`]).
pub const SET_PROCESSOR_PMINFO: u32 = 54;
/// `XENPF_get_cpuinfo` ([`CpuInfo`]).
pub const GET_CPUINFO: u32 = 55;
/// `XENPF_cpu_online` (a `u32` processor).
pub const CPU_ONLINE: u32 = 56;
/// `XENPF_cpu_offline` (a `u32` processor).
pub const CPU_OFFLINE: u32 = 57;
/// `XENPF_cpu_hotadd`.
pub const CPU_HOTADD: u32 = 58;
/// `XENPF_mem_hotadd`.
pub const MEM_HOTADD: u32 = 59;
/// `XENPF_settime64` ([`SetTime64`]).
pub const SETTIME64: u32 = 62;

/// `QUIRK_NOIRQBALANCING`, the first known quirk.
pub const QUIRK_FIRST: u32 = 1;
/// `QUIRK_IOAPIC_GOOD_REGSEL`, the last known quirk.
pub const QUIRK_LAST: u32 = 3;

/// `XEN_FW_DISK_INFO`.
pub const FW_DISK_INFO: u32 = 1;
/// `XEN_FW_DISK_MBR_SIGNATURE`.
pub const FW_DISK_MBR_SIGNATURE: u32 = 2;
/// `XEN_FW_VBEDDC_INFO`.
pub const FW_VBEDDC_INFO: u32 = 3;
/// `XEN_FW_EFI_INFO`.
pub const FW_EFI_INFO: u32 = 4;
/// `XEN_FW_KBD_SHIFT_FLAGS`.
pub const FW_KBD_SHIFT_FLAGS: u32 = 5;

/// `XENPF_ACPI_SLEEP_EXTENDED`: the values are sleep types for the reduced-hardware registers.
pub const ACPI_SLEEP_EXTENDED: u32 = 1;

/// `XEN_PM_CX`.
pub const PM_CX: u32 = 0;
/// `XEN_PM_PX`.
pub const PM_PX: u32 = 1;
/// `XEN_PM_TX`.
pub const PM_TX: u32 = 2;
/// `XEN_PM_PDC`.
pub const PM_PDC: u32 = 3;

/// `XEN_PCPU_FLAGS_ONLINE`.
pub const PCPU_ONLINE: u32 = 1;
/// `XEN_PCPU_FLAGS_INVALID`: there is no such processor.
pub const PCPU_INVALID: u32 = 2;

/// The two words before the union.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// One of the commands.
    pub cmd: u32,
    /// [`INTERFACE_VERSION`].
    pub interface_version: u32,
}
const _: () = assert!(size_of::<Header>() as u64 == BODY);

/// `struct xenpf_settime32`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetTime32 {
    /// Seconds since 1970.
    pub secs: u32,
    /// Nanoseconds within the second.
    pub nsecs: u32,
    /// System time (ns) at which that was the time.
    pub system_time: u64,
}
const _: () = assert!(size_of::<SetTime32>() == 16);

/// `struct xenpf_settime64`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetTime64 {
    /// Seconds since 1970.
    pub secs: u64,
    /// Nanoseconds within the second.
    pub nsecs: u32,
    /// Must be zero.
    pub mbz: u32,
    /// System time (ns) at which that was the time.
    pub system_time: u64,
}
const _: () = assert!(size_of::<SetTime64>() == 24);

/// The inputs of `struct xenpf_firmware_info`; its outputs start at the union's offset 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FirmwareInfo {
    /// `FW_*`.
    pub kind: u32,
    /// Element, for the kinds that have several.
    pub index: u32,
}
const _: () = assert!(size_of::<FirmwareInfo>() == 8);

/// `struct xenpf_enter_acpi_sleep`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AcpiSleep {
    /// Value for PM1a control.
    pub val_a: u16,
    /// Value for PM1b control.
    pub val_b: u16,
    /// n of the S-state.
    pub sleep_state: u32,
    /// `ACPI_SLEEP_*`.
    pub flags: u32,
}
const _: () = assert!(size_of::<AcpiSleep>() == 12);

/// The first words of `struct xenpf_set_processor_pminfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProcessorPmInfo {
    /// ACPI processor identifier.
    pub id: u32,
    /// `PM_*`.
    pub kind: u32,
}
const _: () = assert!(size_of::<ProcessorPmInfo>() == 8);

/// `struct xenpf_pcpuinfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuInfo {
    /// In: processor.
    pub xen_cpuid: u32,
    /// Out: highest processor present.
    pub max_present: u32,
    /// Out: `PCPU_*`.
    pub flags: u32,
    /// Out: local APIC identifier.
    pub apic_id: u32,
    /// Out: ACPI processor identifier.
    pub acpi_id: u32,
}
const _: () = assert!(size_of::<CpuInfo>() == 20);

/// `struct xenpf_pcpu_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CpuVersion {
    /// In: processor.
    pub xen_cpuid: u32,
    /// Out: highest processor present.
    pub max_present: u32,
    /// Out: CPUID vendor string.
    pub vendor_id: [u8; 12],
    /// Out: family.
    pub family: u32,
    /// Out: model.
    pub model: u32,
    /// Out: stepping.
    pub stepping: u32,
}
const _: () = assert!(size_of::<CpuVersion>() == 32);
