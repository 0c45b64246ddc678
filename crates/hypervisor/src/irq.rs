// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts: ours, and devices' on their way to the domain that drives them.

use crate::domain::{self, Domain};
use crate::host::Hv;
use crate::{input, paging, schedule, smp, time};
use core::sync::atomic::{AtomicU32, Ordering};
use philoxen_abi::{DomId, Errno, Mfn, Result, VcpuId};
use philoxen_evtchn::Frames;
use philoxen_hw::cpu::CpuId;
use philoxen_hw::dev::{self, lapic, vectors};
use philoxen_hw::{serial, warn};
use philoxen_paging::IoAccess;
use philoxen_physdev::acpi::Signal;
use philoxen_physdev::chip::{ApicId, Chip, Gsi, Route, Vector};
use philoxen_physdev::irq::{FIRST_VECTOR, LAST_VECTOR};
use philoxen_physdev::{DomainIrqs, EoiPage, Irqs};

/// Bits of a frame.
const FRAME_BITS: u32 = 4096 * 8;

/// All interrupt lines of the machine.
pub static IRQS: Irqs<dev::Machine> = Irqs::new(dev::Machine);
/// Frames of device memory that no domain may map: local APIC, I/O APICs.
static SENSITIVE: spin::Once<arrayvec::ArrayVec<Mfn, 24>> = spin::Once::new();
/// Spurious interrupts so far.
static SPURIOUS: AtomicU32 = AtomicU32::new(0);

/// The PIRQs of a domain.
pub type DomainPirqs = DomainIrqs<HeldPage>;

/// Reads what the ACPI tables say of interrupts; keeps the controllers' registers from guests.
pub fn init() {
    let Some(acpi) = dev::acpi_tables() else {
        return;
    };
    IRQS.init(acpi);
    SENSITIVE.call_once(|| {
        let mut frames = arrayvec::ArrayVec::new();
        let io_apics = acpi.io_apics.iter().map(|unit| unit.address);
        for address in io_apics.chain([acpi.local_apic]) {
            // More controllers than fit do not exist; one too many would be mappable by Domain 0 only.
            let _ = frames.try_push(Mfn::containing(address));
        }
        frames
    });
}

/// How Domain 0 may map a frame of device memory: not the interrupt controllers', the HPET's for reading (the firmware's
/// own code looks at it), all others as it likes.
pub fn device_access(mfn: Mfn) -> IoAccess {
    let hpet = dev::acpi_tables().and_then(|acpi| acpi.hpet);
    if SENSITIVE.get().is_none_or(|frames| frames.contains(&mfn)) {
        IoAccess::None
    } else if hpet.is_some_and(|address| Mfn::containing(address) == mfn) {
        IoAccess::ReadOnly
    } else {
        IoAccess::ReadWrite
    }
}

/// Lets the console's serial port interrupt us for received bytes; `isa` is its ISA interrupt.
pub fn start_console_input(isa: u8) {
    let Some(acpi) = dev::acpi_tables() else {
        return;
    };
    let moved = acpi.overrides.iter().find(|entry| entry.irq == isa);
    let (gsi, signal) = moved.map_or((isa.into(), Signal::ISA), |entry| (entry.gsi, entry.signal));
    let destination = IRQS.chip().default_destination();
    let route = Route {
        vector: Vector(vectors::SERIAL),
        destination,
        signal,
        masked: false,
    };
    IRQS.claim(Gsi(gsi));
    dev::ioapic::write(gsi, route.entry());
    serial::set_receive_interrupt(true);
}

/// Starts the hypervisor's watchdog; false if the machine has no timer for it.
pub fn start_watchdog() -> bool {
    let gsi = dev::watchdog::start();
    if let Some(gsi) = gsi {
        IRQS.claim(Gsi(gsi));
    }
    gsi.is_some()
}

/// Serves interrupt `vector` on processor `cpu`.
pub fn handle(cpu: CpuId, vector: u8) {
    match vector {
        vectors::TIMER => {
            lapic::end_of_interrupt();
            time::interrupt(cpu);
        }
        FIRST_VECTOR..=LAST_VECTOR => device(vector),
        vectors::SERIAL => {
            lapic::end_of_interrupt();
            input::receive();
        }
        // What there is to do is found on the way out: pending work, or an upcall of the running vCPU.
        vectors::EVENT_CHECK => lapic::end_of_interrupt(),
        vectors::APIC_ERROR => {
            lapic::end_of_interrupt();
            warn!("local APIC error {:#x} on CPU {cpu}", lapic::take_errors());
        }
        vectors::SPURIOUS | vectors::LEGACY_PIC..=vectors::LEGACY_PIC_LAST => {
            SPURIOUS.fetch_add(1, Ordering::Relaxed);
        }
        _ => {
            lapic::end_of_interrupt();
            warn!("unexpected vector {vector:#x} on CPU {cpu}");
        }
    }
}

fn device(vector: u8) {
    for raise in IRQS.on_vector(vector) {
        if let Some(domain) = domain::find(raise.domain) {
            domain.events.raise_pirq(&Hv, raise.pirq);
        }
    }
}

/// True if `domain` may bind `pirq`.
pub fn pirq_permitted(domain: &Domain, pirq: u32) -> bool {
    domain.id == DomId::DOM0 && pirq < domain.pirqs.nr_pirqs()
}

/// Starts delivery of a PIRQ to its domain.
///
/// # Errors
/// `ESRCH`, or as [`DomainIrqs::bind_pirq`].
pub fn bind_pirq(dom: DomId, pirq: u32, share: bool) -> Result<()> {
    domain::find(dom)
        .ok_or(Errno::ESRCH)?
        .pirqs
        .bind_pirq(&IRQS, pirq, share)
}

/// Stops delivery of a PIRQ to its domain.
pub fn unbind_pirq(dom: DomId, pirq: u32) {
    if let Some(domain) = domain::find(dom) {
        domain.pirqs.unbind_pirq(&IRQS, pirq);
    }
}

/// Sends the interrupts of a domain's PIRQ to the processor that its vCPU `vcpu` runs on, or ran on last.
pub fn route_pirq(dom: DomId, pirq: u32, vcpu: VcpuId) {
    let Some(domain) = domain::find(dom) else {
        return;
    };
    if let Some(vcpu) = domain.vcpu(vcpu) {
        let to = ApicId(smp::apic_id(schedule::home(vcpu) as CpuId));
        // One that the hardware cannot send there goes on arriving where it does, and the event reaches the vCPU all the same.
        let _ = domain.pirqs.route_pirq(&IRQS, pirq, to);
    }
}

/// A domain's page that says which PIRQs need an EOI; its writable reference is given back on drop.
#[derive(Debug)]
pub struct HeldPage(Mfn);

impl HeldPage {
    /// The frame.
    pub const fn frame(&self) -> Mfn {
        self.0
    }

    /// Takes frame `mfn` of domain `dom`.
    ///
    /// # Errors
    /// `EINVAL` if it is not a writable page of the domain.
    pub fn take(dom: DomId, mfn: Mfn) -> Result<Self> {
        paging::get_writable(dom, mfn).map(|()| Self(mfn))
    }
}

impl EoiPage for HeldPage {
    fn set(&self, pirq: u32, needs_eoi: bool) {
        if pirq >= FRAME_BITS {
            return;
        }
        let bit = 1u64 << (pirq % 64);
        if let Some(word) = Hv.words(self.0).get((pirq / 64) as usize) {
            if needs_eoi {
                word.fetch_or(bit, Ordering::SeqCst);
            } else {
                word.fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for HeldPage {
    fn drop(&mut self) {
        paging::put_writable(self.0);
    }
}
