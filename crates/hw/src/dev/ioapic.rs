// SPDX-License-Identifier: MIT OR Apache-2.0
//! I/O APICs (82093AA and later). Pins are named by GSI over the whole machine.
//!
//! Each unit has a lock, as its registers are reached through an index; the low half of every entry is kept in
//! memory so that masking is one index and one data write.

use super::mmio::Window;
use alloc::{vec, vec::Vec};
use philoxen_physdev::{acpi::Acpi, chip::Route};
use spin::{Mutex, Once};

const MAX_PINS: usize = 240;
const REG_VERSION: u32 = 1;
const REG_ENTRIES: u32 = 0x10;
const MASKED: u32 = Route::MASKED as u32;

struct Registers {
    window: Window,
    low: Vec<u32>,
}

impl Registers {
    fn read(&mut self, register: u32) -> u32 {
        self.window.write32(0, register);
        self.window.read32(0x10)
    }
    fn write(&mut self, register: u32, value: u32) {
        self.window.write32(0, register);
        self.window.write32(0x10, value);
    }
    fn set_low(&mut self, pin: u32, value: u32) {
        if let Some(low) = self.low.get_mut(pin as usize) {
            *low = value;
            self.write(REG_ENTRIES + 2 * pin, value);
        }
    }
    fn low(&self, pin: u32) -> u32 {
        self.low.get(pin as usize).copied().unwrap_or(MASKED)
    }
}

struct Unit {
    address: u64,
    gsi_base: u32,
    pins: u32,
    registers: Mutex<Registers>,
}

static UNITS: Once<Vec<Unit>> = Once::new();

/// Maps every unit and masks every pin. Once, on the boot processor.
pub(super) fn init(acpi: &Acpi) {
    UNITS.call_once(|| {
        let mut units = Vec::new();
        for found in &acpi.io_apics {
            let Some(window) = Window::map(found.address, 0x100) else {
                crate::warn!("I/O APIC at {:#x} cannot be mapped", found.address);
                continue;
            };
            let mut registers = Registers {
                window,
                low: vec![MASKED; MAX_PINS],
            };
            let version = registers.read(REG_VERSION);
            if version == u32::MAX {
                crate::warn!("no I/O APIC at {:#x}", found.address);
                continue;
            }
            let pins = (((version >> 16) & 0xff) + 1).min(MAX_PINS as u32);
            for pin in 0..pins {
                registers.set_low(pin, MASKED);
            }
            let registers = Mutex::new(registers);
            units.push(Unit {
                address: found.address,
                gsi_base: found.gsi_base,
                pins,
                registers,
            });
        }
        units
    });
}

fn units() -> &'static [Unit] {
    UNITS.get().map_or(&[], |units| units)
}

fn pin(gsi: u32) -> Option<(&'static Unit, u32)> {
    units().iter().find_map(|unit| {
        let pin = gsi.checked_sub(unit.gsi_base)?;
        (pin < unit.pins).then_some((unit, pin))
    })
}

/// One past the highest GSI.
pub fn nr_gsis() -> u32 {
    units()
        .iter()
        .map(|unit| unit.gsi_base.saturating_add(unit.pins))
        .max()
        .unwrap_or(0)
}

/// Reads the entry of a GSI.
pub fn read(gsi: u32) -> Option<u64> {
    let (unit, pin) = pin(gsi)?;
    let mut registers = unit.registers.lock();
    let low = registers.read(REG_ENTRIES + 2 * pin);
    let high = registers.read(REG_ENTRIES + 2 * pin + 1);
    Some(u64::from(high) << 32 | u64::from(low))
}

/// Writes the entry of a GSI. The pin is masked while the halves disagree.
pub fn write(gsi: u32, entry: u64) {
    let Some((unit, pin)) = pin(gsi) else { return };
    let mut registers = unit.registers.lock();
    let masked = registers.low(pin) | MASKED;
    registers.set_low(pin, masked);
    registers.write(REG_ENTRIES + 2 * pin + 1, (entry >> 32) as u32);
    registers.set_low(pin, entry as u32);
}

/// Masks or unmasks a GSI.
#[inline]
pub fn mask(gsi: u32, masked: bool) {
    let Some((unit, pin)) = pin(gsi) else { return };
    let mut registers = unit.registers.lock();
    let low = registers.low(pin);
    let new = if masked { low | MASKED } else { low & !MASKED };
    registers.set_low(pin, new);
}

/// Reads a register of the unit at physical address `address`.
pub fn register(address: u64, register: u8) -> Option<u32> {
    let unit = units().iter().find(|unit| unit.address == address)?;
    Some(unit.registers.lock().read(register.into()))
}

/// First GSI of the unit at physical address `address`.
pub fn gsi_base(address: u64) -> Option<u32> {
    units()
        .iter()
        .find(|unit| unit.address == address)
        .map(|unit| unit.gsi_base)
}
