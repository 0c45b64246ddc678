// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the policy of physical interrupts needs from the machine; `philoxen-hw` implements it, tests fake it.

use crate::acpi::{Mcfg, Signal};
use core::fmt;
use philoxen_abi::Result;

/// Global system interrupt: a pin of an I/O APIC, numbered over the whole machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Gsi(pub u32);

/// Interrupt vector of the device range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Vector(pub u8);

/// Identifier of a local APIC, as an interrupt's destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApicId(pub u32);

/// Address of a PCI function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sbdf {
    /// Segment.
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device << 3 | function.
    pub devfn: u8,
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, function) = (self.devfn >> 3, self.devfn & 7);
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.segment, self.bus, device, function
        )
    }
}

/// Width of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// From a number of bytes (1, 2 or 4).
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }
    /// Number of bytes.
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }
    /// What a read of something absent returns.
    pub const fn ones(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// A redirection entry of an I/O APIC, fixed delivery to one processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Vector delivered.
    pub vector: Vector,
    /// Destination; the I/O APIC can name identifiers up to 254.
    pub destination: ApicId,
    /// Trigger and polarity.
    pub signal: Signal,
    /// Masked.
    pub masked: bool,
}

impl Route {
    /// The mask bit of a redirection entry.
    pub const MASKED: u64 = 1 << 16;

    /// The 64-bit register value.
    pub const fn entry(self) -> u64 {
        let mut entry = self.vector.0 as u64 | ((self.destination.0 & 0xff) as u64) << 56;
        if self.signal.low {
            entry |= 1 << 13;
        }
        if self.signal.level {
            entry |= 1 << 15;
        }
        if self.masked {
            entry |= Self::MASKED;
        }
        entry
    }
}

/// The machine's interrupt controllers, PCI configuration space and device registers.
///
/// Operations on different lines may run at the same time on several processors.
pub trait Chip {
    /// One past the highest GSI.
    fn nr_gsis(&self) -> u32;

    /// Reads a redirection entry; `None` if no I/O APIC has the GSI.
    fn ioapic_read(&self, gsi: Gsi) -> Option<u64>;

    /// Writes a redirection entry; ignored if no I/O APIC has the GSI.
    fn ioapic_write(&self, gsi: Gsi, entry: u64);

    /// Changes only the mask bit of an entry.
    fn ioapic_mask(&self, gsi: Gsi, masked: bool);

    /// Reads register `register` of the I/O APIC at physical address `base`.
    fn ioapic_register(&self, base: u64, register: u8) -> Option<u32>;

    /// First GSI of the I/O APIC at physical address `base`.
    fn ioapic_gsi_base(&self, base: u64) -> Option<u32>;

    /// Ends the interrupt that this processor is serving (local APIC).
    fn end_of_interrupt(&self);

    /// Where interrupts go unless somebody says otherwise.
    fn default_destination(&self) -> ApicId;

    /// Reads PCI configuration space; all ones for absent functions or offsets out of reach.
    fn pci_read(&self, function: Sbdf, offset: u16, width: Width) -> u32;

    /// Writes PCI configuration space; dropped for absent functions or offsets out of reach.
    fn pci_write(&self, function: Sbdf, offset: u16, width: Width, value: u32);

    /// Windows to the PCI configuration space.
    fn pci_windows(&self) -> &[Mcfg];

    /// Reads a device register.
    ///
    /// # Errors
    /// `EINVAL` if `address` is RAM or not aligned to 4, `ENOMEM` if it cannot be mapped.
    fn mmio_read32(&self, address: u64) -> Result<u32>;

    /// Writes a device register.
    ///
    /// # Errors
    /// As [`Chip::mmio_read32`].
    fn mmio_write32(&self, address: u64, value: u32) -> Result<()>;

    /// Says something to the administrator.
    fn warn(&self, message: fmt::Arguments<'_>);
}
