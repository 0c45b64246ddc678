// SPDX-License-Identifier: MIT OR Apache-2.0
//! Message-signalled interrupts: finding and programming the MSI and MSI-X capabilities (PCI Local Bus 3.0, 6.8).
//!
//! The hypervisor writes address and data itself; the enable bits in configuration space stay with Domain 0's driver,
//! which turns a function's messages on and off. An MSI-X table's place is taken from the function's own BAR and
//! must agree with what the caller says.

use crate::chip::{ApicId, Chip, Sbdf, Vector, Width};
use philoxen_abi::{Errno, Result};

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u32 = 1 << 4;
const HEADER_TYPE: u16 = 0x0e;
const FIRST_BAR: u16 = 0x10;
const CAPABILITY_POINTER: u16 = 0x34;
const CAP_MSI: u32 = 0x05;
const CAP_MSIX: u32 = 0x11;
const MSI_ENABLE: u32 = 1;
const MSI_MULTIPLE_ENABLE: u32 = 7 << 4;
const MSI_64BIT: u32 = 1 << 7;
const MSI_MASKABLE: u32 = 1 << 8;
const MSIX_ENTRY_SIZE: u64 = 16;
const MSIX_MASKED: u32 = 1;
/// Where processors take messages; the destination is in bits 12..19.
const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

/// How a function signals one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The capability at `cap`, with 64-bit addresses or not; the offset of its mask register if it has one.
    Msi {
        cap: u16,
        wide: bool,
        mask: Option<u16>,
    },
    /// Entry `index` of a table; `entry` is the entry's physical address.
    MsiX { index: u16, entry: u64 },
}

/// One message of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// The function.
    pub function: Sbdf,
    kind: Kind,
}

/// Offset of a capability in configuration space.
fn capability(chip: &impl Chip, function: Sbdf, wanted: u32) -> Option<u16> {
    let status = chip.pci_read(function, STATUS, Width::Word);
    if status == Width::Word.ones() || status & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = chip.pci_read(function, CAPABILITY_POINTER, Width::Byte) as u16 & 0xfc;
    // 48 capabilities of 4 bytes fit; a longer list is a loop.
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        let header = chip.pci_read(function, at, Width::Word);
        if header & 0xff == wanted {
            return Some(at);
        }
        at = (header >> 8) as u16 & 0xfc;
    }
    None
}

/// Address of memory BAR `index`; 0 if it has none.
fn memory_bar(chip: &impl Chip, function: Sbdf, index: u16) -> Result<u64> {
    let bars = match chip.pci_read(function, HEADER_TYPE, Width::Byte) & 0x7f {
        0 => 6,
        1 => 2,
        _ => 0,
    };
    let read = |bar: u16| u64::from(chip.pci_read(function, FIRST_BAR + bar * 4, Width::Dword));
    if index >= bars {
        return Err(Errno::EINVAL);
    }
    let low = read(index);
    match low & 7 {
        0 => Ok(low & !0xf),
        4 if index + 1 < bars => Ok(read(index + 1) << 32 | low & !0xf),
        _ => Err(Errno::EINVAL),
    }
}

impl Msi {
    /// The single message of a function with an MSI capability.
    ///
    /// # Errors
    /// `ENODEV` if the function has none.
    pub fn plain(chip: &impl Chip, function: Sbdf) -> Result<Self> {
        let cap = capability(chip, function, CAP_MSI).ok_or(Errno::ENODEV)?;
        let control = chip.pci_read(function, cap + 2, Width::Word);
        let wide = control & MSI_64BIT != 0;
        let mask_at = cap + if wide { 16 } else { 12 };
        let mask = (control & MSI_MASKABLE != 0).then_some(mask_at);
        Ok(Self {
            function,
            kind: Kind::Msi { cap, wide, mask },
        })
    }

    /// Entry `index` of the MSI-X table of a function; `table_base` is the address of the BAR that holds it.
    ///
    /// # Errors
    /// `ENODEV` without the capability, `ENXIO` if memory decoding is off, `EINVAL` for an entry beyond the table or
    /// a base that is not the BAR's.
    pub fn extended(
        chip: &impl Chip,
        function: Sbdf,
        index: u32,
        table_base: u64,
        virtual_function: bool,
    ) -> Result<Self> {
        let cap = capability(chip, function, CAP_MSIX).ok_or(Errno::ENODEV)?;
        let control = chip.pci_read(function, cap + 2, Width::Word);
        if index > control & 0x7ff {
            return Err(Errno::EINVAL);
        }
        let table = chip.pci_read(function, cap + 4, Width::Dword);
        let bar = if virtual_function {
            // Its BARs are in the physical function's SR-IOV capability, which the driver has read.
            table_base
        } else {
            if chip.pci_read(function, COMMAND, Width::Word) & COMMAND_MEMORY == 0 {
                return Err(Errno::ENXIO);
            }
            memory_bar(chip, function, table as u16 & 7)?
        };
        if bar == 0 || bar != table_base {
            return Err(Errno::EINVAL);
        }
        let offset = u64::from(table & !7) + u64::from(index) * MSIX_ENTRY_SIZE;
        let entry = bar.checked_add(offset).ok_or(Errno::EINVAL)?;
        Ok(Self {
            function,
            kind: Kind::MsiX {
                index: index as u16,
                entry,
            },
        })
    }

    /// True if both are the same message, or messages that cannot be used together.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.function == other.function
            && match (self.kind, other.kind) {
                (Kind::MsiX { index: a, .. }, Kind::MsiX { index: b, .. }) => a == b,
                _ => true,
            }
    }

    /// Writes address and data, so that the message raises `vector` at `destination`. `masked` as far as possible.
    ///
    /// # Errors
    /// As [`Chip::mmio_write32`].
    pub fn program(
        &self,
        chip: &impl Chip,
        vector: Vector,
        destination: ApicId,
        masked: bool,
    ) -> Result<()> {
        let address = MESSAGE_ADDRESS | (destination.0 & 0xff) << 12;
        let data = u32::from(vector.0);
        match self.kind {
            Kind::Msi { cap, wide, .. } => {
                self.set_masked(chip, true)?;
                // One message only, and none while address and data disagree.
                let control = chip.pci_read(self.function, cap + 2, Width::Word);
                let off = control & !(MSI_ENABLE | MSI_MULTIPLE_ENABLE);
                chip.pci_write(self.function, cap + 2, Width::Word, off);
                chip.pci_write(self.function, cap + 4, Width::Dword, address);
                if wide {
                    chip.pci_write(self.function, cap + 8, Width::Dword, 0);
                }
                let data_at = cap + if wide { 12 } else { 8 };
                chip.pci_write(self.function, data_at, Width::Word, data);
                chip.pci_write(
                    self.function,
                    cap + 2,
                    Width::Word,
                    off | control & MSI_ENABLE,
                );
            }
            Kind::MsiX { entry, .. } => {
                chip.mmio_write32(entry + 12, MSIX_MASKED)?;
                chip.mmio_write32(entry, address)?;
                chip.mmio_write32(entry + 4, 0)?;
                chip.mmio_write32(entry + 8, data)?;
            }
        }
        self.set_masked(chip, masked)
    }

    /// Masks or unmasks the message, if the function can.
    ///
    /// # Errors
    /// As [`Chip::mmio_write32`].
    pub fn set_masked(&self, chip: &impl Chip, masked: bool) -> Result<()> {
        match self.kind {
            Kind::Msi { mask: Some(at), .. } => {
                chip.pci_write(self.function, at, Width::Dword, u32::from(masked));
                Ok(())
            }
            Kind::Msi { mask: None, .. } => Ok(()),
            Kind::MsiX { entry, .. } => {
                chip.mmio_write32(entry + 12, if masked { MSIX_MASKED } else { 0 })?;
                // A read after the write makes it arrive.
                chip.mmio_read32(entry + 12).map(drop)
            }
        }
    }

    /// Stops the message for good.
    pub fn shut(&self, chip: &impl Chip) {
        if let Kind::Msi { cap, .. } = self.kind {
            let control = chip.pci_read(self.function, cap + 2, Width::Word);
            // All ones: the function is gone.
            if control != Width::Word.ones() {
                chip.pci_write(self.function, cap + 2, Width::Word, control & !MSI_ENABLE);
            }
        }
        // The table was reached when the entry was programmed; nothing else can go wrong.
        let _ = self.set_masked(chip, true);
    }
}

/// True if the function has an MSI-X capability.
pub fn has_msix(chip: &impl Chip, function: Sbdf) -> bool {
    capability(chip, function, CAP_MSIX).is_some()
}

/// True if there is a function at this address.
pub fn is_present(chip: &impl Chip, function: Sbdf) -> bool {
    chip.pci_read(function, 0, Width::Word) != Width::Word.ones()
}
