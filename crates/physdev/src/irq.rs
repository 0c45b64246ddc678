// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical interrupt lines: vectors, triggers, and who has bound them.
//!
//! A line is a GSI or a message, named by its vector; each has its own lock, the only one an interrupt takes.
//! Invariant: a line's source is unmasked exactly while the line is bound and, if level-triggered, nobody's EOI is
//! outstanding; see [`Line::is_masked`].

use crate::acpi::{Acpi, Signal};
use crate::chip::{ApicId, Chip, Gsi, Route, Sbdf, Vector};
use crate::msi::Msi;
use arrayvec::ArrayVec;
use philoxen_abi::{DomId, Errno, Result};
use spin::Mutex;

/// First vector for devices.
pub const FIRST_VECTOR: u8 = 0x20;
/// Last vector for devices.
pub const LAST_VECTOR: u8 = 0xdf;
/// Vectors that guests raise by `int n`.
const SOFTWARE_VECTORS: [u8; 2] = [0x80, 0x82];
const NR_LINES: usize = (LAST_VECTOR - FIRST_VECTOR) as usize + 1;
/// Most GSIs that are used.
pub const MAX_GSIS: u32 = 512;
/// Most PIRQs that share a line.
pub const MAX_SHARERS: usize = 4;

/// An event to raise: the event channel bound to a PIRQ of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Raise {
    /// The domain.
    pub domain: DomId,
    /// Its PIRQ.
    pub pirq: u32,
}

/// What one interrupt raises.
pub type Raised = ArrayVec<Raise, MAX_SHARERS>;

/// Where a line comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A pin of an I/O APIC.
    Gsi(Gsi, Signal),
    /// A message.
    Msi(Msi),
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    raise: Raise,
    /// Delivered to this binding and not yet ended by it.
    in_flight: bool,
}

#[derive(Debug)]
struct Line {
    source: Option<Source>,
    destination: ApicId,
    bindings: ArrayVec<Binding, MAX_SHARERS>,
    shareable: bool,
    /// An interrupt without a taker was reported.
    reported: bool,
    count: u64,
}

impl Line {
    const fn unused() -> Self {
        Self {
            source: None,
            destination: ApicId(0),
            bindings: ArrayVec::new_const(),
            shareable: false,
            reported: false,
            count: 0,
        }
    }

    #[inline]
    fn level_gsi(&self) -> Option<Gsi> {
        match self.source {
            Some(Source::Gsi(gsi, signal)) if signal.level => Some(gsi),
            _ => None,
        }
    }

    /// What the source's mask has to be.
    fn is_masked(&self) -> bool {
        let waits = self.bindings.iter().any(|binding| binding.in_flight);
        self.bindings.is_empty() || waits && self.level_gsi().is_some()
    }

    fn apply_mask(&self, chip: &impl Chip) {
        match self.source {
            Some(Source::Gsi(gsi, _)) => chip.ioapic_mask(gsi, self.is_masked()),
            Some(Source::Msi(msi)) => {
                // Its table was reached when it was programmed.
                let _ = msi.set_masked(chip, self.is_masked());
            }
            None => {}
        }
    }

    /// Writes the whole source: where to, how, and masked or not.
    fn program(&self, chip: &impl Chip, vector: Vector) -> Result<()> {
        let (destination, masked) = (self.destination, self.is_masked());
        match self.source {
            Some(Source::Gsi(gsi, signal)) => {
                let route = Route {
                    vector,
                    destination,
                    signal,
                    masked,
                };
                chip.ioapic_write(gsi, route.entry());
                Ok(())
            }
            Some(Source::Msi(msi)) => msi.program(chip, vector, destination, masked),
            None => Ok(()),
        }
    }
}

/// What is known of a GSI before and while it has a line.
#[derive(Clone, Copy, Debug)]
struct GsiState {
    vector: Option<Vector>,
    signal: Signal,
    /// Domain 0 has said how it signals.
    settled: bool,
    /// The hypervisor drives it: it can be mapped, as kernels map all ISA interrupts, but neither bound nor changed.
    ours: bool,
}

/// Which lines are in use, and how GSIs signal. Innermost but for lines.
#[derive(Debug)]
struct Allocation {
    used: [bool; NR_LINES],
    gsis: [GsiState; MAX_GSIS as usize],
}

/// A line's state, for the debug console.
#[derive(Clone, Debug)]
pub struct LineInfo {
    /// Its vector.
    pub vector: Vector,
    /// Its source.
    pub source: Source,
    /// Where it goes.
    pub destination: ApicId,
    /// Who has bound it.
    pub bound: Raised,
    /// Masked now.
    pub masked: bool,
    /// Interrupts so far.
    pub count: u64,
}

/// All physical interrupt lines of the machine.
#[derive(Debug)]
pub struct Irqs<C> {
    chip: C,
    allocation: Mutex<Allocation>,
    lines: [Mutex<Line>; NR_LINES],
    pub(crate) devices: Mutex<crate::devices::Devices>,
}

fn line_index(vector: Vector) -> Option<usize> {
    vector
        .0
        .checked_sub(FIRST_VECTOR)
        .map(usize::from)
        .filter(|index| *index < NR_LINES)
}

impl<C: Chip> Irqs<C> {
    /// No line in use.
    pub const fn new(chip: C) -> Self {
        let gsi = GsiState {
            vector: None,
            signal: Signal::PCI,
            settled: false,
            ours: false,
        };
        Self {
            chip,
            allocation: Mutex::new(Allocation {
                used: [false; NR_LINES],
                gsis: [gsi; MAX_GSIS as usize],
            }),
            lines: [const { Mutex::new(Line::unused()) }; NR_LINES],
            devices: Mutex::new(crate::devices::Devices::new()),
        }
    }

    /// The machine.
    pub fn chip(&self) -> &C {
        &self.chip
    }

    /// Takes the signalling of the ISA interrupts from the firmware's tables. Once, at boot.
    pub fn init(&self, acpi: &Acpi) {
        let mut allocation = self.allocation.lock();
        for irq in 0..16 {
            let (gsi, signal) = acpi.isa(irq);
            if let Some(state) = allocation.gsis.get_mut(gsi as usize) {
                state.signal = signal;
            }
        }
    }

    /// Keeps a GSI for the hypervisor, which programs it itself. At boot, before any domain runs.
    pub fn claim(&self, gsi: Gsi) {
        if let Some(state) = self.allocation.lock().gsis.get_mut(gsi.0 as usize) {
            state.ours = true;
            state.settled = true;
        }
    }

    /// One past the highest GSI in use.
    pub fn nr_gsis(&self) -> u32 {
        self.chip.nr_gsis().min(MAX_GSIS)
    }

    fn line(&self, vector: Vector) -> Option<&Mutex<Line>> {
        self.lines.get(line_index(vector)?)
    }

    /// Serves an interrupt of the device range and ends it at the local APIC; says whose events to raise.
    #[inline]
    pub fn on_vector(&self, vector: u8) -> Raised {
        let mut raised = Raised::new_const();
        let Some(line) = self.line(Vector(vector)) else {
            self.chip.end_of_interrupt();
            return raised;
        };
        let mut line = line.lock();
        line.count = line.count.wrapping_add(1);
        let level = line.level_gsi();
        for binding in &mut line.bindings {
            binding.in_flight = level.is_some();
            raised.push(binding.raise);
        }
        if let Some(gsi) = level {
            // Masked before it is ended, as the device still asserts it.
            self.chip.ioapic_mask(gsi, true);
        }
        self.chip.end_of_interrupt();
        if raised.is_empty() {
            self.nobody_wants(vector, &mut line);
        }
        raised
    }

    /// An interrupt that nobody has bound: once more masked, and told once.
    #[cold]
    fn nobody_wants(&self, vector: u8, line: &mut Line) {
        line.apply_mask(&self.chip);
        if !line.reported {
            line.reported = true;
            self.chip.warn(format_args!(
                "interrupt {vector:#x} has no taker: {:?}",
                line.source
            ));
        }
    }

    /// The line of a GSI, made on first use.
    ///
    /// # Errors
    /// `EINVAL` if there is no such pin, `ENOSPC` without a free vector.
    pub fn gsi_line(&self, gsi: Gsi) -> Result<Vector> {
        if gsi.0 >= self.nr_gsis() || self.chip.ioapic_read(gsi).is_none() {
            return Err(Errno::EINVAL);
        }
        let mut allocation = self.allocation.lock();
        let state = *allocation.gsis.get(gsi.0 as usize).ok_or(Errno::EINVAL)?;
        if let Some(vector) = state.vector {
            return Ok(vector);
        }
        let vector = allocation.take_vector()?;
        if let Some(state) = allocation.gsis.get_mut(gsi.0 as usize) {
            state.vector = Some(vector);
        }
        // A line without a source cannot be bound.
        if !state.ours {
            self.start(vector, Source::Gsi(gsi, state.signal))?;
        }
        Ok(vector)
    }

    /// A new line for a message.
    ///
    /// # Errors
    /// `EEXIST` if the message has a line or excludes one, `ENOSPC` without a free vector, or as
    /// [`Chip::mmio_write32`].
    pub fn add_msi(&self, msi: Msi) -> Result<Vector> {
        let mut allocation = self.allocation.lock();
        let taken = self.lines.iter().any(|line| match line.lock().source {
            Some(Source::Msi(other)) => msi.conflicts(&other),
            _ => false,
        });
        if taken {
            return Err(Errno::EEXIST);
        }
        let vector = allocation.take_vector()?;
        self.start(vector, Source::Msi(msi))
            .inspect_err(|_| allocation.put_vector(vector))?;
        Ok(vector)
    }

    fn start(&self, vector: Vector, source: Source) -> Result<()> {
        let line = self.line(vector).ok_or(Errno::ENOSPC)?;
        let mut line = line.lock();
        *line = Line::unused();
        line.source = Some(source);
        line.destination = self.chip.default_destination();
        line.program(&self.chip, vector)
            .inspect_err(|_| line.source = None)
    }

    /// Drops the line of a message; a GSI's line stays, masked when unbound.
    pub fn release(&self, vector: Vector) {
        let mut allocation = self.allocation.lock();
        let Some(line) = self.line(vector) else {
            return;
        };
        let mut line = line.lock();
        if let Some(Source::Msi(msi)) = line.source {
            msi.shut(&self.chip);
            *line = Line::unused();
            allocation.put_vector(vector);
        }
    }

    /// Programs the messages of a function again, after it lost its registers.
    ///
    /// # Errors
    /// As [`Chip::mmio_write32`].
    pub fn restore_msi(&self, function: Sbdf) -> Result<()> {
        for (vector, line) in (FIRST_VECTOR..=LAST_VECTOR).zip(&self.lines) {
            let line = line.lock();
            if let Some(Source::Msi(msi)) = line.source
                && msi.function == function
            {
                line.program(&self.chip, Vector(vector))?;
            }
        }
        Ok(())
    }

    /// Says how a GSI signals.
    ///
    /// # Errors
    /// `EINVAL` if there is no such pin; `EEXIST` if it was said before; `EBUSY` if other domains use the line in
    /// another way.
    pub fn setup_gsi(&self, gsi: Gsi, signal: Signal) -> Result<()> {
        if gsi.0 >= self.nr_gsis() || self.chip.ioapic_read(gsi).is_none() {
            return Err(Errno::EINVAL);
        }
        let mut allocation = self.allocation.lock();
        let state = allocation
            .gsis
            .get_mut(gsi.0 as usize)
            .ok_or(Errno::EINVAL)?;
        if state.settled {
            return Err(Errno::EEXIST);
        }
        let line = state
            .vector
            .and_then(|vector| Some((vector, self.line(vector)?)));
        if let Some((vector, line)) = line {
            let mut line = line.lock();
            if line.bindings.len() > 1 && state.signal != signal {
                return Err(Errno::EBUSY);
            }
            if state.signal != signal {
                for binding in &mut line.bindings {
                    binding.in_flight = false;
                }
                line.source = Some(Source::Gsi(gsi, signal));
                line.program(&self.chip, vector)?;
            }
        }
        state.signal = signal;
        state.settled = true;
        Ok(())
    }

    /// Adds a taker to a line and opens it.
    ///
    /// # Errors
    /// `EINVAL` if the vector has no line; `EBUSY` if it is bound and not all takers share.
    pub(crate) fn bind(&self, vector: Vector, raise: Raise, share: bool) -> Result<()> {
        let mut line = self.line(vector).ok_or(Errno::EINVAL)?.lock();
        if line.source.is_none() {
            return Err(Errno::EINVAL);
        }
        if !(line.bindings.is_empty() || share && line.shareable) {
            return Err(Errno::EBUSY);
        }
        let first = line.bindings.is_empty();
        line.bindings
            .try_push(Binding {
                raise,
                in_flight: false,
            })
            .map_err(|_| Errno::EBUSY)?;
        if first {
            line.shareable = share;
            line.reported = false;
            line.apply_mask(&self.chip);
        }
        Ok(())
    }

    /// Takes a taker from a line; an EOI it owed counts as given.
    pub(crate) fn unbind(&self, vector: Vector, raise: Raise) {
        let Some(line) = self.line(vector) else {
            return;
        };
        let mut line = line.lock();
        let before = line.bindings.len();
        line.bindings.retain(|binding| binding.raise != raise);
        if line.bindings.len() != before {
            line.apply_mask(&self.chip);
        }
    }

    /// A taker has handled the interrupt.
    #[inline]
    pub(crate) fn eoi(&self, vector: Vector, raise: Raise) {
        let Some(line) = self.line(vector) else {
            return;
        };
        let mut line = line.lock();
        let mut ended = false;
        for binding in &mut line.bindings {
            ended |= binding.raise == raise && core::mem::take(&mut binding.in_flight);
        }
        if ended && !line.is_masked() {
            line.apply_mask(&self.chip);
        }
    }

    /// Sends a line to another processor.
    ///
    /// # Errors
    /// `EINVAL` if the vector has no line or the hardware cannot name the destination.
    pub(crate) fn route(&self, vector: Vector, destination: ApicId) -> Result<()> {
        let mut line = self.line(vector).ok_or(Errno::EINVAL)?.lock();
        if line.source.is_none() || destination.0 > 254 {
            return Err(Errno::EINVAL);
        }
        if line.destination != destination {
            line.destination = destination;
            line.program(&self.chip, vector)?;
        }
        Ok(())
    }

    /// True if takers must say EOI, and if the line may be shared.
    pub(crate) fn status(&self, vector: Vector) -> (bool, bool) {
        match self.line(vector).map(Mutex::lock) {
            Some(line) => (line.level_gsi().is_some(), line.shareable),
            None => (false, false),
        }
    }

    /// Shows every line in use.
    pub fn for_each_line(&self, mut show: impl FnMut(&LineInfo)) {
        for (vector, line) in (FIRST_VECTOR..=LAST_VECTOR).zip(&self.lines) {
            let line = line.lock();
            let Some(source) = line.source else { continue };
            let info = LineInfo {
                vector: Vector(vector),
                source,
                destination: line.destination,
                bound: line.bindings.iter().map(|binding| binding.raise).collect(),
                masked: line.is_masked(),
                count: line.count,
            };
            drop(line);
            show(&info);
        }
    }
}

impl Allocation {
    fn take_vector(&mut self) -> Result<Vector> {
        for (vector, used) in (FIRST_VECTOR..=LAST_VECTOR).zip(&mut self.used) {
            if !*used && !SOFTWARE_VECTORS.contains(&vector) {
                *used = true;
                return Ok(Vector(vector));
            }
        }
        Err(Errno::ENOSPC)
    }

    fn put_vector(&mut self, vector: Vector) {
        if let Some(used) = line_index(vector).and_then(|index| self.used.get_mut(index)) {
            *used = false;
        }
    }
}

#[cfg(test)]
#[path = "irq_tests.rs"]
mod tests;
