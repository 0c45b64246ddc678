// SPDX-License-Identifier: MIT OR Apache-2.0
//! Power-off and reset.

use super::{legacy, mmio, pci, port};
use crate::cpu::asm::{halt_forever, rdtsc, relax};
use core::arch::asm;
use philoxen_physdev::acpi::{Acpi, Space};
use philoxen_physdev::chip::{Sbdf, Width};

const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE: u16 = 7 << 10;
const SCI_ENABLE: u16 = 1;
const RESET_CONTROL: u16 = 0xcf9;

/// A pause of some tens of milliseconds whatever the TSC's rate, for hardware to act.
fn pause() {
    let start = rdtsc();
    while rdtsc().wrapping_sub(start) < 100_000_000 {
        relax();
    }
}

/// Writes the PM1 control registers with the sleep enable bit; returns only if the machine did not obey.
pub(super) fn sleep(acpi: &Acpi, pm1a: u16, pm1b: u16) {
    let Some(fadt) = acpi.fadt else { return };
    // Both sleep types first, so that both registers agree when the machine acts.
    let blocks = [(fadt.pm1a_control, pm1a), (fadt.pm1b_control, pm1b)];
    for enable in [0, SLEEP_ENABLE] {
        for (register, value) in blocks {
            if let Some(register) = register {
                port::out16(register, value & !SLEEP_ENABLE | enable);
            }
        }
    }
    pause();
}

/// Switches the machine off with the sleep types of the DSDT, or stops it for good.
pub(super) fn off(acpi: &Acpi) -> ! {
    if let (Some(fadt), Some((a, b))) = (acpi.fadt, acpi.s5) {
        let keep = fadt.pm1a_control.map_or(0, port::in16);
        if keep & SCI_ENABLE == 0 && fadt.smi_command.0 != 0 {
            port::out8(fadt.smi_command.0 as u16, fadt.smi_command.1);
            pause();
        }
        let base = fadt.pm1a_control.map_or(0, port::in16) & !SLEEP_TYPE;
        sleep(acpi, base | u16::from(a) << 10, base | u16::from(b) << 10);
    }
    halt_forever();
}

fn reset_register(acpi: &Acpi) {
    let Some((register, value)) = acpi.fadt.and_then(|fadt| fadt.reset) else {
        return;
    };
    match register.space {
        Space::Port => {
            if let Ok(port) = u16::try_from(register.address) {
                port::out8(port, value);
            }
        }
        Space::Memory => {
            if let Ok(window) = mmio::page(register.address) {
                window.write8(register.address & 0xfff, value);
            }
        }
        Space::Pci => {
            let device = (register.address >> 32) as u8;
            let function = (register.address >> 16) as u8;
            let at = Sbdf {
                segment: 0,
                bus: 0,
                devfn: device << 3 | function & 7,
            };
            pci::write(&[], at, register.address as u16, Width::Byte, value.into());
        }
    }
    pause();
}

/// Resets the machine by the first way that works.
pub(super) fn reset(acpi: Option<&Acpi>) -> ! {
    if let Some(acpi) = acpi {
        reset_register(acpi);
    }
    port::out8(RESET_CONTROL, 0x02);
    port::out8(RESET_CONTROL, 0x06);
    pause();
    legacy::keyboard_reset();
    pause();
    let empty = [0u16; 5];
    // SAFETY: ends the machine: with no descriptor table the exception is a triple fault, which resets it.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &raw const empty, options(nostack)) };
    halt_forever();
}
