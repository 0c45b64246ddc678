// SPDX-License-Identifier: MIT OR Apache-2.0
//! PCI configuration space: ports 0xcf8/0xcfc for the first 256 bytes of segment 0, memory windows (MCFG) beyond.
//!
//! The address port is machine-wide state: [`PORTS`] guards it, and nothing else in the hypervisor touches it.

use super::{mmio, port};
use philoxen_physdev::acpi::Mcfg;
use philoxen_physdev::chip::{Sbdf, Width};
use spin::Mutex;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

static PORTS: Mutex<()> = Mutex::new(());

/// Where a register is.
enum Place {
    Ports(u32),
    Memory(u64),
    Nowhere,
}

fn place(windows: &[Mcfg], at: Sbdf, offset: u16, width: Width) -> Place {
    let end = offset.saturating_add(width.bytes());
    // An access may not leave its dword.
    if end > 0x1000 || offset / 4 != (end - 1) / 4 {
        return Place::Nowhere;
    }
    if at.segment == 0 && end <= 0x100 {
        let function = u32::from(at.bus) << 16 | u32::from(at.devfn) << 8;
        return Place::Ports(0x8000_0000 | function | u32::from(offset & 0xfc));
    }
    let window = windows
        .iter()
        .find(|w| w.segment == at.segment && (w.first_bus..=w.last_bus).contains(&at.bus));
    let function = u64::from(at.bus) << 20 | u64::from(at.devfn) << 12;
    match window.and_then(|w| w.address.checked_add(function)) {
        Some(address) => Place::Memory(address | u64::from(offset)),
        None => Place::Nowhere,
    }
}

/// Reads; all ones for what is absent.
pub(super) fn read(windows: &[Mcfg], at: Sbdf, offset: u16, width: Width) -> u32 {
    match place(windows, at, offset, width) {
        Place::Ports(address) => {
            let data = DATA + (offset & 3);
            let _guard = PORTS.lock();
            port::out32(ADDRESS, address);
            match width {
                Width::Byte => port::in8(data).into(),
                Width::Word => port::in16(data).into(),
                Width::Dword => port::in32(data),
            }
        }
        Place::Memory(address) => {
            let Ok(window) = mmio::page(address) else {
                return width.ones();
            };
            let at = address & 0xfff;
            match width {
                Width::Byte => window.read8(at).into(),
                Width::Word => window.read16(at).into(),
                Width::Dword => window.read32(at),
            }
        }
        Place::Nowhere => width.ones(),
    }
}

/// Writes; dropped for what is absent.
pub(super) fn write(windows: &[Mcfg], at: Sbdf, offset: u16, width: Width, value: u32) {
    match place(windows, at, offset, width) {
        Place::Ports(address) => {
            let data = DATA + (offset & 3);
            let _guard = PORTS.lock();
            port::out32(ADDRESS, address);
            match width {
                Width::Byte => port::out8(data, value as u8),
                Width::Word => port::out16(data, value as u16),
                Width::Dword => port::out32(data, value),
            }
        }
        Place::Memory(address) => {
            let Ok(window) = mmio::page(address) else {
                return;
            };
            let at = address & 0xfff;
            match width {
                Width::Byte => window.write8(at, value as u8),
                Width::Word => window.write16(at, value as u16),
                Width::Dword => window.write32(at, value),
            }
        }
        Place::Nowhere => {}
    }
}
