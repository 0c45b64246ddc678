// SPDX-License-Identifier: MIT OR Apache-2.0
//! Platform devices: interrupt controllers, timers, PCI configuration space, power.
//!
//! Each device type owns its registers; everything may be called on any processor, with interrupts off.

mod calibrate;
pub mod ioapic;
pub mod lapic;
mod legacy;
pub(crate) mod mmio;
mod pci;
pub mod port;
mod power;
pub mod timer;
pub mod vectors;
pub mod watchdog;

use crate::memory;
use core::fmt;
use philoxen_abi::Result;
use philoxen_physdev::acpi::{self, Acpi, Mcfg, Rsdp};
use philoxen_physdev::chip::{ApicId, Chip, Gsi, Sbdf, Width};
use spin::Once;

static ACPI: Once<Acpi> = Once::new();
static BOOT_APIC_ID: Once<u32> = Once::new();

fn physical(address: u64, len: usize) -> Option<&'static [u8]> {
    memory::phys_bytes(address, len)
}

/// Finds the tables and makes interrupt controllers and timers ready. Once, on the boot processor.
///
/// `rsdp` is what the boot loader passed, if it did; otherwise the BIOS areas are searched. Takes about ten
/// milliseconds, for calibration. Afterwards the timer of the boot processor is ready and every device line masked.
///
/// # Errors
/// A reason in words if the machine lacks what we need.
pub fn init(rsdp: Option<Rsdp>) -> core::result::Result<timer::Frequencies, &'static str> {
    let rsdp = rsdp
        .or_else(|| Rsdp::find(&physical))
        .ok_or("no ACPI root pointer found")?;
    let acpi = acpi::parse(&physical, rsdp).ok_or("no valid ACPI root table")?;
    let acpi = ACPI.call_once(|| acpi);
    if acpi.io_apics.is_empty() {
        return Err("ACPI lists no I/O APIC");
    }
    legacy::silence_pics();
    lapic::discover(acpi)?;
    let id = lapic::initial_id();
    BOOT_APIC_ID.call_once(|| id);
    lapic::init(acpi, acpi_id(id));
    ioapic::init(acpi);
    let measured = calibrate::measure(acpi)?;
    timer::set_frequencies(measured);
    timer::init();
    Ok(measured)
}

/// Makes the local APIC and timer of another processor ready; runs on it, after [`init`] on the boot processor.
pub fn init_processor() {
    if let Some(acpi) = ACPI.get() {
        lapic::init(acpi, acpi_id(lapic::initial_id()));
        timer::init();
    }
}

/// ACPI identifier of the processor with a local APIC identifier.
fn acpi_id(apic_id: u32) -> u32 {
    let found = acpi_tables().and_then(|t| t.processors.iter().find(|p| p.apic_id == apic_id));
    found.map_or(apic_id, |p| p.acpi_id)
}

/// The parsed tables; `None` before [`init`].
pub fn acpi_tables() -> Option<&'static Acpi> {
    ACPI.get()
}

/// Local APIC identifier of the boot processor.
pub fn boot_apic_id() -> u32 {
    BOOT_APIC_ID.get().copied().unwrap_or(0)
}

/// The CMOS clock in seconds since 1970, taken as UTC; 0 if there is none.
pub fn wall_clock() -> u64 {
    let century = ACPI
        .get()
        .and_then(|acpi| acpi.fadt)
        .map_or(0, |fadt| fadt.century);
    legacy::clock(century).unwrap_or(0)
}

/// The keyboard shift state that the BIOS keeps at 0x417; 0 if it cannot be read.
pub fn bios_shift_flags() -> u8 {
    memory::phys_bytes(0x417, 1)
        .and_then(|bytes| bytes.first().copied())
        .unwrap_or(0)
}

/// Enters the sleep state that Domain 0 prepared; returns only if the machine did not obey.
pub fn enter_sleep(pm1a: u16, pm1b: u16) {
    if let Some(acpi) = ACPI.get() {
        power::sleep(acpi, pm1a, pm1b);
    }
}

/// Switches the machine off, or stops it if it cannot be.
pub fn power_off() -> ! {
    match ACPI.get() {
        Some(acpi) => power::off(acpi),
        None => crate::cpu::asm::halt_forever(),
    }
}

/// Resets the machine.
pub fn reset() -> ! {
    power::reset(ACPI.get())
}

/// The machine as `philoxen-physdev` sees it. [`init`] has run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Chip for Machine {
    fn nr_gsis(&self) -> u32 {
        ioapic::nr_gsis()
    }
    fn ioapic_read(&self, gsi: Gsi) -> Option<u64> {
        ioapic::read(gsi.0)
    }
    fn ioapic_write(&self, gsi: Gsi, entry: u64) {
        ioapic::write(gsi.0, entry);
    }
    #[inline]
    fn ioapic_mask(&self, gsi: Gsi, masked: bool) {
        ioapic::mask(gsi.0, masked);
    }
    fn ioapic_register(&self, base: u64, register: u8) -> Option<u32> {
        ioapic::register(base, register)
    }
    fn ioapic_gsi_base(&self, base: u64) -> Option<u32> {
        ioapic::gsi_base(base)
    }
    #[inline]
    fn end_of_interrupt(&self) {
        lapic::end_of_interrupt();
    }
    fn default_destination(&self) -> ApicId {
        ApicId(boot_apic_id())
    }
    fn pci_read(&self, function: Sbdf, offset: u16, width: Width) -> u32 {
        pci::read(self.pci_windows(), function, offset, width)
    }
    fn pci_write(&self, function: Sbdf, offset: u16, width: Width, value: u32) {
        pci::write(self.pci_windows(), function, offset, width, value);
    }
    fn pci_windows(&self) -> &[Mcfg] {
        ACPI.get().map_or(&[], |acpi| &acpi.mcfg)
    }
    fn mmio_read32(&self, address: u64) -> Result<u32> {
        Ok(aligned(address)?.read32(address & 0xfff))
    }
    fn mmio_write32(&self, address: u64, value: u32) -> Result<()> {
        aligned(address)?.write32(address & 0xfff, value);
        Ok(())
    }
    fn warn(&self, message: fmt::Arguments<'_>) {
        crate::warn!("{message}");
    }
}

/// The window for a 32-bit register at physical address `address`.
fn aligned(address: u64) -> Result<mmio::Window> {
    if !address.is_multiple_of(4) || is_interrupt_controller(address) {
        return Err(philoxen_abi::Errno::EINVAL);
    }
    mmio::page(address)
}

/// True for the page of a local or I/O APIC: nobody's message tables are there, whatever a device claims.
fn is_interrupt_controller(address: u64) -> bool {
    let page = address & !0xfff;
    acpi_tables().is_none_or(|acpi| {
        acpi.local_apic & !0xfff == page
            || acpi
                .io_apics
                .iter()
                .any(|unit| unit.address & !0xfff == page)
    })
}
