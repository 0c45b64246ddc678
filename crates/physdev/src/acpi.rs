// SPDX-License-Identifier: MIT OR Apache-2.0
//! The few ACPI tables the hypervisor itself needs, read from byte slices (ACPI 6.4, chapters 4 and 5; IA-PC HPET
//! and PCI Firmware specifications).
//!
//! Invariant: nothing is believed before its checksum, every length is bounded by the bytes at hand, and every list
//! has a fixed capacity; a malformed table is left out. AML is never run: that is Domain 0's task.

use arrayvec::ArrayVec;

/// Longest table that is read.
const MAX_TABLE: usize = 1 << 20;
/// Most tables that are looked at.
const MAX_TABLES: usize = 256;
/// Bytes of a system description table header.
const HEADER: usize = 36;

/// Where physical memory comes from: `len` bytes at a physical address, or nothing if they cannot be read.
pub trait Physical<'a> {
    /// The bytes at `address`.
    fn bytes(&self, address: u64, len: usize) -> Option<&'a [u8]>;
}

impl<'a, F: Fn(u64, usize) -> Option<&'a [u8]>> Physical<'a> for F {
    fn bytes(&self, address: u64, len: usize) -> Option<&'a [u8]> {
        self(address, len)
    }
}

/// A processor that the firmware lists as usable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// Local APIC identifier.
    pub apic_id: u32,
    /// Processor identifier of the ACPI namespace.
    pub acpi_id: u32,
    /// Usable now (otherwise it may be brought online by hot-plug).
    pub enabled: bool,
}

/// An I/O APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Identifier.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u64,
    /// GSI of its first pin.
    pub gsi_base: u32,
}

/// How a line signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signal {
    /// Level-triggered (otherwise edge).
    pub level: bool,
    /// Active low (otherwise high).
    pub low: bool,
}

impl Signal {
    /// The ISA bus's way: edge, active high.
    pub const ISA: Self = Self {
        level: false,
        low: false,
    };
    /// The PCI bus's way: level, active low.
    pub const PCI: Self = Self {
        level: true,
        low: true,
    };

    /// From MPS INTI flags, where "as the bus" means ISA.
    fn from_flags(flags: u16) -> Self {
        Self {
            low: flags & 3 == 3,
            level: (flags >> 2) & 3 == 3,
        }
    }
}

/// An ISA interrupt that is not on the GSI of the same number, or signals in another way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// ISA interrupt.
    pub irq: u8,
    /// Its GSI.
    pub gsi: u32,
    /// How it signals.
    pub signal: Signal,
}

/// A local APIC input that carries the NMI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalNmi {
    /// ACPI processor identifier, or `None` for all.
    pub acpi_id: Option<u32>,
    /// 0 or 1.
    pub lint: u8,
    /// How it signals.
    pub signal: Signal,
}

/// Which space a register is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Memory.
    Memory,
    /// I/O port.
    Port,
    /// PCI configuration space of bus 0: device in bits 32..47, function in 16..31, offset in 0..15.
    Pci,
}

/// A register named by a generic address structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Address space.
    pub space: Space,
    /// Address in it.
    pub address: u64,
}

/// What the fixed description table says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fadt {
    /// GSI of the system control interrupt.
    pub sci: u16,
    /// PM1a event (status and enable) block.
    pub pm1a_event: Option<u16>,
    /// PM1b event block.
    pub pm1b_event: Option<u16>,
    /// PM1a control block.
    pub pm1a_control: Option<u16>,
    /// PM1b control block.
    pub pm1b_control: Option<u16>,
    /// Power management timer.
    pub pm_timer: Option<u16>,
    /// The timer counts 32 bits (otherwise 24).
    pub pm_timer_32: bool,
    /// Reset register and the value to write.
    pub reset: Option<(Register, u8)>,
    /// Index of the century in the real-time clock; 0 if it has none.
    pub century: u8,
    /// Port and value that switch to ACPI mode; port 0 if it is always on.
    pub smi_command: (u32, u8),
    /// Physical address of the FACS; 0 if there is none.
    pub facs: u64,
    /// Physical address of the DSDT.
    pub dsdt: u64,
}

/// A memory window to the PCI configuration space of some buses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mcfg {
    /// Physical address that bus 0 would have.
    pub address: u64,
    /// Segment.
    pub segment: u16,
    /// First bus.
    pub first_bus: u8,
    /// Last bus.
    pub last_bus: u8,
}

/// Everything the hypervisor takes from ACPI.
#[derive(Clone, Debug)]
pub struct Acpi {
    /// Physical address of the local APIC registers.
    pub local_apic: u64,
    /// A pair of 8259 controllers exists too.
    pub has_8259: bool,
    /// Processors, in the firmware's order.
    pub processors: ArrayVec<Processor, 256>,
    /// I/O APICs.
    pub io_apics: ArrayVec<IoApic, 16>,
    /// ISA overrides.
    pub overrides: ArrayVec<Override, 16>,
    /// NMI inputs of local APICs.
    pub local_nmis: ArrayVec<LocalNmi, 16>,
    /// Fixed description.
    pub fadt: Option<Fadt>,
    /// Physical address of the HPET.
    pub hpet: Option<u64>,
    /// PCI configuration windows.
    pub mcfg: ArrayVec<Mcfg, 16>,
    /// Sleep types (PM1a, PM1b) of S5, if the DSDT says them in the usual form.
    pub s5: Option<(u8, u8)>,
}

impl Acpi {
    const fn empty() -> Self {
        Self {
            local_apic: 0xfee0_0000,
            has_8259: true,
            processors: ArrayVec::new_const(),
            io_apics: ArrayVec::new_const(),
            overrides: ArrayVec::new_const(),
            local_nmis: ArrayVec::new_const(),
            fadt: None,
            hpet: None,
            mcfg: ArrayVec::new_const(),
            s5: None,
        }
    }

    /// GSI and signalling of an ISA interrupt.
    pub fn isa(&self, irq: u8) -> (u32, Signal) {
        match self.overrides.iter().find(|o| o.irq == irq) {
            Some(o) => (o.gsi, o.signal),
            None => (u32::from(irq), Signal::ISA),
        }
    }
}

fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The root pointer: where the root table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rsdp {
    /// Physical address of the RSDT; 0 if only an XSDT is given.
    pub rsdt: u64,
    /// Physical address of the XSDT; 0 for ACPI 1.
    pub xsdt: u64,
}

impl Rsdp {
    /// Reads a root pointer structure (20 bytes in ACPI 1, 36 later).
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let first = bytes.get(..20)?;
        if !first.starts_with(b"RSD PTR ") || !sums_to_zero(first) {
            return None;
        }
        let rsdt = u64::from(u32_at(first, 16)?);
        if u8_at(first, 15)? < 2 {
            return Some(Self { rsdt, xsdt: 0 });
        }
        // A damaged extension still leaves the ACPI 1 part.
        let extended = bytes.get(..36).filter(|whole| sums_to_zero(whole));
        Some(Self {
            rsdt,
            xsdt: extended.and_then(|whole| u64_at(whole, 24)).unwrap_or(0),
        })
    }

    /// Searches an area for a root pointer, on 16-byte boundaries.
    pub fn search(area: &[u8]) -> Option<Self> {
        (0..area.len())
            .step_by(16)
            .find_map(|at| Self::parse(area.get(at..)?))
    }

    /// Searches where a BIOS puts it: the first KiB of the EBDA, then 0xe0000..0xfffff.
    pub fn find<'a>(memory: &impl Physical<'a>) -> Option<Self> {
        let ebda = memory
            .bytes(0x40e, 2)
            .and_then(|b| u16_at(b, 0))
            .map(|segment| u64::from(segment) << 4);
        let in_ebda = ebda.filter(|address| (0x400..0xa_0000).contains(address));
        in_ebda
            .and_then(|address| Self::search(memory.bytes(address, 1024)?))
            .or_else(|| Self::search(memory.bytes(0xe_0000, 0x2_0000)?))
    }
}

/// The whole table at `address`, checksum verified.
fn table<'a>(memory: &impl Physical<'a>, address: u64) -> Option<&'a [u8]> {
    let length = u32_at(memory.bytes(address, HEADER)?, 4)? as usize;
    if !(HEADER..=MAX_TABLE).contains(&length) {
        return None;
    }
    memory
        .bytes(address, length)
        .filter(|bytes| sums_to_zero(bytes))
}

/// Reads the tables that `rsdp` leads to; `None` if there is no valid root table.
pub fn parse<'a>(memory: &impl Physical<'a>, rsdp: Rsdp) -> Option<Acpi> {
    let root = |address: u64, signature: &[u8]| {
        let found = if address == 0 {
            None
        } else {
            table(memory, address)
        };
        found.filter(|bytes| bytes.starts_with(signature))
    };
    let (root, entry) = match root(rsdp.xsdt, b"XSDT") {
        Some(bytes) => (bytes, 8),
        None => (root(rsdp.rsdt, b"RSDT")?, 4),
    };
    let mut acpi = Acpi::empty();
    for entry in root.get(HEADER..)?.chunks_exact(entry).take(MAX_TABLES) {
        let address = match entry.len() {
            8 => u64_at(entry, 0),
            _ => u32_at(entry, 0).map(u64::from),
        };
        let Some(bytes) = address.and_then(|address| table(memory, address)) else {
            continue;
        };
        match bytes.get(..4) {
            Some(b"APIC") => drop(madt(&mut acpi, bytes)),
            Some(b"FACP") => acpi.fadt = fadt(bytes),
            Some(b"HPET") => acpi.hpet = hpet(bytes),
            Some(b"MCFG") => drop(mcfg(&mut acpi, bytes)),
            _ => {}
        }
    }
    let dsdt = acpi.fadt.and_then(|fadt| table(memory, fadt.dsdt));
    acpi.s5 = dsdt.and_then(s5);
    Some(acpi)
}

/// Multiple APIC description table; ends early (`None`) at a structure that does not fit.
fn madt(acpi: &mut Acpi, bytes: &[u8]) -> Option<()> {
    acpi.local_apic = u64::from(u32_at(bytes, 36)?);
    acpi.has_8259 = u32_at(bytes, 40)? & 1 != 0;
    let mut rest = bytes.get(44..)?;
    while !rest.is_empty() {
        let length = usize::from(u8_at(rest, 1)?);
        let (entry, after) = rest.split_at_checked(length).filter(|_| length >= 2)?;
        madt_entry(acpi, entry);
        rest = after;
    }
    Some(())
}

fn madt_entry(acpi: &mut Acpi, entry: &[u8]) -> Option<()> {
    // A full list drops what comes after: the capacities are far above what machines have.
    match u8_at(entry, 0)? {
        0 => {
            let (acpi_id, apic_id) = (u8_at(entry, 2)?.into(), u8_at(entry, 3)?.into());
            add_processor(acpi, apic_id, acpi_id, u32_at(entry, 4)?);
        }
        1 => {
            let (id, address) = (u8_at(entry, 2)?, u64::from(u32_at(entry, 4)?));
            let _ = acpi.io_apics.try_push(IoApic {
                id,
                address,
                gsi_base: u32_at(entry, 8)?,
            });
        }
        2 => {
            let (irq, gsi) = (u8_at(entry, 3)?, u32_at(entry, 4)?);
            let signal = Signal::from_flags(u16_at(entry, 8)?);
            let _ = acpi.overrides.try_push(Override { irq, gsi, signal });
        }
        4 => {
            let acpi_id = Some(u8_at(entry, 2)?)
                .filter(|id| *id != 0xff)
                .map(u32::from);
            let (signal, lint) = (Signal::from_flags(u16_at(entry, 3)?), u8_at(entry, 5)? & 1);
            let _ = acpi.local_nmis.try_push(LocalNmi {
                acpi_id,
                lint,
                signal,
            });
        }
        5 => acpi.local_apic = u64_at(entry, 4)?,
        9 => add_processor(
            acpi,
            u32_at(entry, 4)?,
            u32_at(entry, 12)?,
            u32_at(entry, 8)?,
        ),
        10 => {
            let acpi_id = Some(u32_at(entry, 4)?).filter(|id| *id != u32::MAX);
            let (signal, lint) = (Signal::from_flags(u16_at(entry, 2)?), u8_at(entry, 8)? & 1);
            let _ = acpi.local_nmis.try_push(LocalNmi {
                acpi_id,
                lint,
                signal,
            });
        }
        _ => {}
    }
    Some(())
}

fn add_processor(acpi: &mut Acpi, apic_id: u32, acpi_id: u32, flags: u32) {
    let enabled = flags & 1 != 0;
    // Bit 1: not enabled now but can be.
    let usable = enabled || flags & 2 != 0;
    let listed = acpi.processors.iter().any(|p| p.apic_id == apic_id);
    // 0xff and 0xffffffff mark empty entries.
    if usable && !listed && apic_id != 0xff && apic_id != u32::MAX {
        let _ = acpi.processors.try_push(Processor {
            apic_id,
            acpi_id,
            enabled,
        });
    }
}

/// A generic address structure, if it names something.
fn generic_address(bytes: &[u8], at: usize) -> Option<Register> {
    let space = match u8_at(bytes, at)? {
        0 => Space::Memory,
        1 => Space::Port,
        2 => Space::Pci,
        _ => return None,
    };
    let address = u64_at(bytes, at + 4)?;
    (address != 0).then_some(Register { space, address })
}

/// The 64-bit field at `long` if present and not zero, else the 32-bit one at `short`.
fn address_pair(bytes: &[u8], long: usize, short: usize) -> u64 {
    let first = u64_at(bytes, long).filter(|address| *address != 0);
    first
        .or_else(|| u32_at(bytes, short).map(u64::from))
        .unwrap_or(0)
}

fn fadt(bytes: &[u8]) -> Option<Fadt> {
    // Up to the flags: what ACPI 1 had.
    bytes.get(..116)?;
    let port = |long: usize, short: usize| {
        let wide = generic_address(bytes, long).filter(|r| r.space == Space::Port);
        let address = wide
            .map(|r| r.address)
            .or_else(|| u32_at(bytes, short).map(u64::from))?;
        u16::try_from(address).ok().filter(|port| *port != 0)
    };
    let flags = u32_at(bytes, 112)?;
    let reset = if flags & (1 << 10) != 0 {
        generic_address(bytes, 116).zip(u8_at(bytes, 128))
    } else {
        None
    };
    Some(Fadt {
        sci: u16_at(bytes, 46)?,
        pm1a_event: port(148, 56),
        pm1b_event: port(160, 60),
        pm1a_control: port(172, 64),
        pm1b_control: port(184, 68),
        pm_timer: port(208, 76),
        pm_timer_32: flags & (1 << 8) != 0,
        reset,
        century: u8_at(bytes, 108)?,
        smi_command: (u32_at(bytes, 48)?, u8_at(bytes, 52)?),
        facs: address_pair(bytes, 132, 36),
        dsdt: address_pair(bytes, 140, 40),
    })
}

fn hpet(bytes: &[u8]) -> Option<u64> {
    generic_address(bytes, 40)
        .filter(|r| r.space == Space::Memory)
        .map(|r| r.address)
}

fn mcfg(acpi: &mut Acpi, bytes: &[u8]) -> Option<()> {
    for entry in bytes.get(44..)?.chunks_exact(16) {
        let window = Mcfg {
            address: u64_at(entry, 0)?,
            segment: u16_at(entry, 8)?,
            first_bus: u8_at(entry, 10)?,
            last_bus: u8_at(entry, 11)?,
        };
        if window.first_bus <= window.last_bus {
            let _ = acpi.mcfg.try_push(window);
        }
    }
    Some(())
}

/// Sleep types of S5 from the DSDT: finds `Name (_S5, Package () { a, b, ... })` in the byte code.
fn s5(dsdt: &[u8]) -> Option<(u8, u8)> {
    let body = dsdt.get(HEADER..)?;
    let at = body.windows(4).position(|name| name == b"_S5_")?;
    // NameOp before the name (a root prefix may stand between), PackageOp after it.
    let before = body.get(at.checked_sub(2)?..at)?;
    if before.last() != Some(&0x08) && before != [0x08, b'\\'] {
        return None;
    }
    if u8_at(body, at + 4)? != 0x12 {
        return None;
    }
    // Package length (its own size in the top two bits), then the element count.
    let length_bytes = 1 + usize::from(u8_at(body, at + 5)? >> 6);
    let elements = at + 5 + length_bytes + 1;
    let (first, next) = small_integer(body, elements)?;
    let (second, _) = small_integer(body, next)?;
    Some((first & 7, second & 7))
}

/// A byte-sized AML integer and the position after it.
fn small_integer(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    match u8_at(bytes, at)? {
        value @ (0 | 1) => Some((value, at + 1)),
        0x0a => Some((u8_at(bytes, at + 1)?, at + 2)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
