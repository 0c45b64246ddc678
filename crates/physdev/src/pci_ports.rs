// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domain 0's view of the PCI configuration ports 0xcf8..0xcff.
//!
//! The address latch it writes is kept per domain, so that the hypervisor's own accesses cannot come between its
//! address and its data. Domain 0 owns the devices: its accesses to functions are passed on as they are.

use crate::chip::{Chip, Sbdf, Width};
use core::sync::atomic::{AtomicU32, Ordering};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const END: u16 = 0xd00;
const ENABLE: u32 = 1 << 31;
/// Bits 24..30 have no meaning on most machines; an address that uses them reaches nothing.
const RESERVED: u32 = 0x7f << 24;

/// The address latch of one domain.
#[derive(Debug, Default)]
pub struct PciPorts {
    latch: AtomicU32,
}

/// What a port access means.
enum Access {
    /// The latch itself.
    Latch,
    /// Configuration space.
    Register(Sbdf, u16),
    /// Nothing behind it.
    Nothing,
}

/// True if an access of `width` at `port` touches the configuration ports.
pub fn covers(port: u16, width: Width) -> bool {
    port < END && port.saturating_add(width.bytes()) > ADDRESS
}

impl PciPorts {
    /// A latch of zero.
    pub const fn new() -> Self {
        Self {
            latch: AtomicU32::new(0),
        }
    }

    fn decode(&self, port: u16, width: Width) -> Access {
        if port == ADDRESS && width == Width::Dword {
            return Access::Latch;
        }
        let latch = self.latch.load(Ordering::Relaxed);
        let inside = port >= DATA && port.saturating_add(width.bytes()) <= END;
        if !inside || latch & ENABLE == 0 || latch & RESERVED != 0 {
            return Access::Nothing;
        }
        let function = Sbdf {
            segment: 0,
            bus: (latch >> 16) as u8,
            devfn: (latch >> 8) as u8,
        };
        Access::Register(function, (latch & 0xfc) as u16 | port & 3)
    }

    /// A read; the ports are ones that [`covers`] names.
    pub fn read(&self, chip: &impl Chip, port: u16, width: Width) -> u32 {
        match self.decode(port, width) {
            Access::Latch => self.latch.load(Ordering::Relaxed),
            Access::Register(function, offset) => chip.pci_read(function, offset, width),
            Access::Nothing => width.ones(),
        }
    }

    /// A write; the ports are ones that [`covers`] names.
    pub fn write(&self, chip: &impl Chip, port: u16, width: Width, value: u32) {
        match self.decode(port, width) {
            Access::Latch => self.latch.store(value, Ordering::Relaxed),
            Access::Register(function, offset) => chip.pci_write(function, offset, width, value),
            Access::Nothing => {}
        }
    }
}
