// SPDX-License-Identifier: MIT OR Apache-2.0
//! `physdev_op` and `platform_op` for the running vCPU.

use crate::cpu::Running;
use crate::domain::Domain;
use crate::host::Hv;
use crate::irq::{DomainPirqs, HeldPage, IRQS};
use crate::{refusal, smp, time};
use philoxen_abi::physdev as abi;
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Mfn, Result};
use philoxen_hw::cpu::asm;
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::{dev, info};
use philoxen_physdev::platform::PhysicalCpu;
use philoxen_physdev::{Caller, Platform};

/// I/O ports there are.
const PORTS: u32 = 0x1_0000;

struct Calling<'a>(&'a Domain);

impl Caller for Calling<'_> {
    type Page = HeldPage;

    fn id(&self) -> DomId {
        self.0.id
    }
    fn is_hardware_domain(&self) -> bool {
        self.0.id == DomId::DOM0
    }
    fn irqs(&self) -> &DomainPirqs {
        &self.0.pirqs
    }
    fn hold_page(&self, frame: Mfn) -> Result<HeldPage> {
        HeldPage::take(self.0.id, frame)
    }
    fn unmask_pirq(&self, pirq: u32) {
        let port = self.0.events.pirq_port(pirq);
        if port != 0 {
            // The port may be closed by another vCPU meanwhile: then there is nothing to unmask.
            let _ = self.0.events.unmask(&Hv, port);
        }
    }
}

/// `physdev_op(cmd, arg)`. The I/O privilege is the vCPU's, everything else the domain's.
pub fn physdev_op(running: &mut Running, cmd: u64, arg: u64) -> Flow {
    match cmd {
        abi::SET_IOPL => set_iopl(running, GuestVa(arg)).into(),
        abi::SET_IOBITMAP => set_iobitmap(running, GuestVa(arg)).into(),
        _ => philoxen_physdev::physdev_op(
            &IRQS,
            &Calling(&running.domain),
            &LoadedGuest,
            cmd,
            GuestVa(arg),
        ),
    }
}

fn set_iopl(running: &mut Running, arg: GuestVa) -> Result<i64> {
    let iopl: u32 = LoadedGuest.read(arg)?;
    running.state.pv.set_iopl(iopl).map(|()| 0)
}

fn set_iobitmap(running: &mut Running, arg: GuestVa) -> Result<i64> {
    let request: abi::SetIobitmap = LoadedGuest.read(arg)?;
    let bitmap = GuestVa(request.bitmap);
    if request.nr_ports > PORTS || !bitmap.range_ok(u64::from(PORTS / 8)) {
        return Err(Errno::EINVAL);
    }
    running.state.io_bitmap = (bitmap, request.nr_ports);
    Ok(0)
}

struct Machine<'a>(&'a Domain);

impl Platform for Machine<'_> {
    fn is_hardware_domain(&self) -> bool {
        self.0.id == DomId::DOM0
    }
    fn set_wall_clock(&self, secs: u64, nsecs: u32, at: u64) {
        time::set_wall_clock(secs, nsecs, at);
    }
    fn power_off(&self, pm1a: u16, pm1b: u16) {
        info!("Domain 0 enters ACPI sleep state S5");
        dev::enter_sleep(pm1a, pm1b);
    }
    fn max_cpu(&self) -> u32 {
        smp::cpus() as u32 - 1
    }
    fn cpu(&self, cpu: u32) -> Option<PhysicalCpu> {
        if cpu as usize >= smp::cpus() {
            return None;
        }
        let apic_id = smp::apic_id(cpu as usize);
        let known = dev::acpi_tables()
            .and_then(|acpi| acpi.processors.iter().find(|p| p.apic_id == apic_id));
        Some(PhysicalCpu {
            online: true,
            apic_id,
            acpi_id: known.map_or(apic_id, |p| p.acpi_id),
        })
    }
    fn cpu_signature(&self) -> ([u8; 12], u32) {
        let [_, ebx, ecx, edx] = asm::cpuid(0, 0);
        let mut vendor = [0; 12];
        for (place, word) in vendor.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        (vendor, asm::cpuid(1, 0)[0])
    }
    fn keyboard_shift_flags(&self) -> u8 {
        dev::bios_shift_flags()
    }
}

/// `platform_op(arg)`.
pub fn platform_op(running: &Running, arg: u64) -> Flow {
    if running.domain.id != DomId::DOM0 {
        return Errno::EPERM.into();
    }
    let flow = philoxen_physdev::platform_op(&Machine(&running.domain), &LoadedGuest, GuestVa(arg));
    if let Flow::Done(value) = flow
        && let Ok(number @ 1..=4095) = i32::try_from(value.wrapping_neg())
    {
        refusal::request(running, format_args!("platform_op"), Errno(number));
    }
    flow
}
