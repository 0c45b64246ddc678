// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine for host tests: one I/O APIC of 24 pins, PCI functions as bytes, device registers as a map.

use crate::acpi::Mcfg;
use crate::chip::{ApicId, Chip, Gsi, Sbdf, Width};
use core::cell::{Cell, RefCell};
use core::fmt;
use philoxen_abi::{Errno, Result};
use std::collections::BTreeMap;
use std::vec::Vec;

/// Physical address of the I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Device registers are here; elsewhere is RAM.
pub const MMIO: core::ops::Range<u64> = 0xf000_0000..0xffff_0000;
/// A function with MSI-X (table of 3 entries at offset 0x800 of 64-bit BAR 2) and maskable 64-bit MSI.
pub const NIC: Sbdf = Sbdf {
    segment: 0,
    bus: 0,
    devfn: 0x18,
};
/// Address of the NIC's BAR 2.
pub const NIC_BAR: u64 = 0xfebf_1000;
/// A function with plain 32-bit MSI, unmaskable.
pub const SOUND: Sbdf = Sbdf {
    segment: 0,
    bus: 0,
    devfn: 0x20,
};

/// What the hypervisor did to the controllers, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    /// Wrote an entry.
    Route(u32, u64),
    /// Masked or unmasked a pin.
    Mask(u32, bool),
    /// Ended the interrupt in service.
    End,
}

/// The machine.
#[derive(Debug)]
pub struct FakeChip {
    /// Steps since the last [`FakeChip::take`].
    pub did: RefCell<Vec<Did>>,
    /// Entries.
    pub pins: RefCell<[u64; 24]>,
    /// Configuration space.
    pub config: RefCell<BTreeMap<Sbdf, [u8; 256]>>,
    /// Device registers.
    pub registers: RefCell<BTreeMap<u64, u32>>,
    /// Warnings given.
    pub warnings: Cell<usize>,
}

impl FakeChip {
    /// The machine with its functions.
    pub fn new() -> Self {
        let mut nic = [0u8; 256];
        nic[0..4].copy_from_slice(&[0xf4, 0x1a, 0x00, 0x10]);
        nic[4] = 2;
        nic[6] = 0x10;
        nic[0x18..0x1c].copy_from_slice(&(NIC_BAR as u32 | 4).to_le_bytes());
        nic[0x34] = 0x40;
        nic[0x40..0x4c].copy_from_slice(&[0x11, 0x50, 2, 0x80, 2, 8, 0, 0, 0, 0, 0, 0]);
        nic[0x50..0x54].copy_from_slice(&[5, 0, 0x80, 1]);
        let mut sound = [0u8; 256];
        sound[0..4].copy_from_slice(&[1, 2, 3, 4]);
        sound[6] = 0x10;
        sound[0x34] = 0x60;
        sound[0x60..0x64].copy_from_slice(&[5, 0, 0, 0]);
        Self {
            did: RefCell::default(),
            pins: RefCell::new([0x10000; 24]),
            config: RefCell::new(BTreeMap::from([(NIC, nic), (SOUND, sound)])),
            registers: RefCell::default(),
            warnings: Cell::new(0),
        }
    }

    /// Steps since the last call.
    pub fn take(&self) -> Vec<Did> {
        self.did.take()
    }

    /// A device register.
    pub fn register(&self, address: u64) -> u32 {
        self.registers.borrow().get(&address).copied().unwrap_or(0)
    }
}

impl Chip for FakeChip {
    fn nr_gsis(&self) -> u32 {
        24
    }
    fn ioapic_read(&self, gsi: Gsi) -> Option<u64> {
        self.pins.borrow().get(gsi.0 as usize).copied()
    }
    fn ioapic_write(&self, gsi: Gsi, entry: u64) {
        self.did.borrow_mut().push(Did::Route(gsi.0, entry));
        self.pins.borrow_mut()[gsi.0 as usize] = entry;
    }
    fn ioapic_mask(&self, gsi: Gsi, masked: bool) {
        self.did.borrow_mut().push(Did::Mask(gsi.0, masked));
        let entry = &mut self.pins.borrow_mut()[gsi.0 as usize];
        *entry = *entry & !0x10000 | u64::from(masked) << 16;
    }
    fn ioapic_register(&self, base: u64, register: u8) -> Option<u32> {
        (base == IOAPIC).then_some(if register == 1 { 0x17_0020 } else { 0 })
    }
    fn ioapic_gsi_base(&self, base: u64) -> Option<u32> {
        (base == IOAPIC).then_some(0)
    }
    fn end_of_interrupt(&self) {
        self.did.borrow_mut().push(Did::End);
    }
    fn default_destination(&self) -> ApicId {
        ApicId(3)
    }
    fn pci_read(&self, function: Sbdf, offset: u16, width: Width) -> u32 {
        let config = self.config.borrow();
        let Some(bytes) = config.get(&function) else {
            return width.ones();
        };
        let at = offset as usize;
        (0..width.bytes() as usize).fold(0, |v, i| v | u32::from(bytes[at + i]) << (8 * i))
    }
    fn pci_write(&self, function: Sbdf, offset: u16, width: Width, value: u32) {
        let mut config = self.config.borrow_mut();
        let Some(bytes) = config.get_mut(&function) else {
            return;
        };
        for i in 0..width.bytes() as usize {
            bytes[offset as usize + i] = (value >> (8 * i)) as u8;
        }
    }
    fn pci_windows(&self) -> &[Mcfg] {
        &[Mcfg {
            address: 0xb000_0000,
            segment: 0,
            first_bus: 0,
            last_bus: 255,
        }]
    }
    fn mmio_read32(&self, address: u64) -> Result<u32> {
        if MMIO.contains(&address) {
            Ok(self.register(address))
        } else {
            Err(Errno::EINVAL)
        }
    }
    fn mmio_write32(&self, address: u64, value: u32) -> Result<()> {
        if !MMIO.contains(&address) {
            return Err(Errno::EINVAL);
        }
        self.registers.borrow_mut().insert(address, value);
        Ok(())
    }
    fn warn(&self, _: fmt::Arguments<'_>) {
        self.warnings.set(self.warnings.get() + 1);
    }
}
