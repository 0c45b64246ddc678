// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `platform_op` hypercall (xen/platform.h): what Domain 0 tells or asks the machine as a whole.

use philoxen_abi::platform as wire;
use philoxen_abi::{Errno, Flow, GuestMemory, GuestVa, Result};

/// A processor as Domain 0 sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysicalCpu {
    /// Runs vCPUs.
    pub online: bool,
    /// Local APIC identifier.
    pub apic_id: u32,
    /// ACPI processor identifier.
    pub acpi_id: u32,
}

/// What the operations do.
pub trait Platform {
    /// True if the caller may use them.
    fn is_hardware_domain(&self) -> bool;

    /// Sets the wall clock: it was `secs` s and `nsecs` ns (below 10^9) after 1970 when the system time was `at` ns.
    fn set_wall_clock(&self, secs: u64, nsecs: u32, at: u64);

    /// Writes the PM1 control registers to switch the machine off; returns only if it did not obey.
    fn power_off(&self, pm1a: u16, pm1b: u16);

    /// Highest number of a processor.
    fn max_cpu(&self) -> u32;

    /// Processor number `cpu`.
    fn cpu(&self, cpu: u32) -> Option<PhysicalCpu>;

    /// The processors' vendor string (CPUID leaf 0: ebx, edx, ecx) and leaf 1's eax.
    fn cpu_signature(&self) -> ([u8; 12], u32);

    /// The BIOS's keyboard shift flags.
    fn keyboard_shift_flags(&self) -> u8;
}

/// Runs one request; `arg` is the address of a `struct xen_platform_op`.
pub fn platform_op(host: &impl Platform, guest: &impl GuestMemory, arg: GuestVa) -> Flow {
    run(host, guest, arg).map(|()| 0).into()
}

fn run(host: &impl Platform, guest: &impl GuestMemory, arg: GuestVa) -> Result<()> {
    let header: wire::Header = guest.read(arg)?;
    if header.interface_version != wire::INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    if !host.is_hardware_domain() {
        return Err(Errno::EPERM);
    }
    let body = arg.add(wire::BODY);
    match header.cmd {
        wire::SETTIME32 => {
            let time: wire::SetTime32 = guest.read(body)?;
            set_time(host, time.secs.into(), time.nsecs, time.system_time)
        }
        wire::SETTIME64 => {
            let time: wire::SetTime64 = guest.read(body)?;
            if time.mbz != 0 {
                return Err(Errno::EINVAL);
            }
            set_time(host, time.secs, time.nsecs, time.system_time)
        }
        wire::FIRMWARE_INFO => firmware_info(host, guest, body),
        wire::ENTER_ACPI_SLEEP => sleep(host, &guest.read(body)?),
        wire::GET_CPUINFO => cpu_info(host, guest, body),
        wire::GET_CPU_VERSION => cpu_version(host, guest, body),
        wire::SET_PROCESSOR_PMINFO => {
            // Idle states and frequencies are the firmware's choice here, so the data has no use.
            let info: wire::ProcessorPmInfo = guest.read(body)?;
            if info.kind <= wire::PM_PDC {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        }
        wire::PLATFORM_QUIRK => {
            // Interrupts are not balanced and the I/O APICs' index register is written every time: nothing to avoid.
            let quirk: u32 = guest.read(body)?;
            let known = (wire::QUIRK_FIRST..=wire::QUIRK_LAST).contains(&quirk);
            if known { Ok(()) } else { Err(Errno::EINVAL) }
        }
        wire::CPU_ONLINE | wire::CPU_OFFLINE | wire::CPU_HOTADD | wire::MEM_HOTADD => {
            Err(Errno::EOPNOTSUPP)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn set_time(host: &impl Platform, secs: u64, nsecs: u32, at: u64) -> Result<()> {
    if nsecs >= 1_000_000_000 {
        return Err(Errno::EINVAL);
    }
    host.set_wall_clock(secs, nsecs, at);
    Ok(())
}

fn firmware_info(host: &impl Platform, guest: &impl GuestMemory, body: GuestVa) -> Result<()> {
    let info: wire::FirmwareInfo = guest.read(body)?;
    match info.kind {
        wire::FW_KBD_SHIFT_FLAGS if info.index == 0 => guest.write(
            body.add(size_of::<wire::FirmwareInfo>() as u64),
            &host.keyboard_shift_flags(),
        ),
        // Asking the BIOS needs real mode, which we never enter: an empty list.
        wire::FW_DISK_INFO
        | wire::FW_DISK_MBR_SIGNATURE
        | wire::FW_VBEDDC_INFO
        | wire::FW_KBD_SHIFT_FLAGS => Err(Errno::ESRCH),
        wire::FW_EFI_INFO => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    }
}

fn sleep(host: &impl Platform, request: &wire::AcpiSleep) -> Result<()> {
    if request.flags & !wire::ACPI_SLEEP_EXTENDED != 0 {
        return Err(Errno::EINVAL);
    }
    if request.flags & wire::ACPI_SLEEP_EXTENDED != 0 || request.sleep_state != 5 {
        return Err(Errno::EOPNOTSUPP);
    }
    host.power_off(request.val_a, request.val_b);
    Err(Errno::EIO)
}

fn cpu_info(host: &impl Platform, guest: &impl GuestMemory, body: GuestVa) -> Result<()> {
    let mut info: wire::CpuInfo = guest.read(body)?;
    info.max_present = host.max_cpu();
    match host.cpu(info.xen_cpuid) {
        Some(cpu) => {
            info.flags = if cpu.online { wire::PCPU_ONLINE } else { 0 };
            (info.apic_id, info.acpi_id) = (cpu.apic_id, cpu.acpi_id);
        }
        None => info.flags = wire::PCPU_INVALID,
    }
    guest.write(body, &info)
}

fn cpu_version(host: &impl Platform, guest: &impl GuestMemory, body: GuestVa) -> Result<()> {
    let mut version: wire::CpuVersion = guest.read(body)?;
    version.max_present = host.max_cpu();
    (
        version.vendor_id,
        version.family,
        version.model,
        version.stepping,
    ) = ([0; 12], 0, 0, 0);
    if host.cpu(version.xen_cpuid).is_some_and(|cpu| cpu.online) {
        let (vendor, eax) = host.cpu_signature();
        let (base, extended) = ((eax >> 8) & 0xf, (eax >> 20) & 0xff);
        version.vendor_id = vendor;
        version.family = if base == 0xf { base + extended } else { base };
        let model = (eax >> 4) & 0xf;
        let has_extended = base == 0xf || base == 6;
        version.model = if has_extended {
            model | (eax >> 12) & 0xf0
        } else {
            model
        };
        version.stepping = eax & 0xf;
    }
    guest.write(body, &version)
}

#[cfg(test)]
#[path = "platform_tests.rs"]
mod tests;
