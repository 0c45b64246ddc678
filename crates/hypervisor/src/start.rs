// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the boot loader to Domain 0's first instruction.

use crate::cpu::Cpu;
use crate::host::Hv;
use crate::{dom0, fatal, irq, policy, power, schedule, smp, time};
use alloc::boxed::Box;
use philoxen_domain::options::Options;
use philoxen_hw::boot::{self, BootInfo};
use philoxen_hw::log::{self, Source, Threshold};
use philoxen_hw::serial::{self, Settings};
use philoxen_hw::{cpu, dev, info, memory, warn};
use philoxen_paging::Machine;
use philoxen_physdev::acpi::Rsdp;

/// The binary's start, on the boot stack.
pub fn main(boot_info: &'static BootInfo) -> ! {
    let options = Options::parse(boot_info.command_line());
    start_console(&options);
    info!(
        "Philoxen {} (Xen 4.17 PV interface)",
        env!("CARGO_PKG_VERSION")
    );
    info!(
        "Boot loader: {}; command line: {}",
        boot_info.loader(),
        boot_info.command_line()
    );
    for problem in &options.problems {
        warn!("Command line: \"{problem}\" is not understood and ignored");
    }
    power::set_noreboot(options.noreboot);
    memory::init(boot_info);
    let local = Box::leak(Box::new(Cpu::new(0)));
    cpu::init(0, (&raw mut *local).cast());
    cpu::on_main_stack(0, on_main_stack)
}

/// The rest of the boot, on the processor's own stack: from here on it knows which one it is.
extern "C" fn on_main_stack() -> ! {
    let Some(boot_info) = boot::info() else {
        fatal::bug("there is no boot information")
    };
    let options = Options::parse(boot_info.command_line());
    memory::set_flush_since(|stamp| Hv.flush_since(stamp));
    start_devices(boot_info);
    if let Some(isa) = console_settings(&options).map(|settings| settings.irq) {
        irq::start_console_input(isa);
    }
    info!(
        "Memory: {} MiB of RAM, {} MiB free; XCR0 {:#x}",
        memory::total_ram() >> 20,
        memory::buddy().lock().free_frames() >> 8,
        cpu::features::xcr0_supported()
    );
    smp::start_others(boot_info, options.maxcpus);
    info!("Processors: {} in use", smp::cpus());
    if let Err(errno) = schedule::init(smp::cpus() as u32, options.sched_ratelimit_us) {
        fatal::cannot_boot(format_args!("no memory for the scheduler ({errno:?})"));
    }
    if options.dom0_no_xsave {
        policy::hide_xsave_from_dom0();
    }
    if let Err(reason) = dom0::build(boot_info, &options) {
        fatal::cannot_boot(format_args!("{reason}"));
    }
    smp::let_go();
    if options.watchdog && !irq::start_watchdog() {
        warn!("watchdog: this machine has no timer for it");
    }
    cpu::enter_first_guest(0)
}

/// The serial port that `console=` names, as its own option sets it; none for `console=none`.
fn console_settings(options: &Options<'_>) -> Option<Settings> {
    let names = options.console.unwrap_or("com1");
    let (base, text) = match names
        .split(',')
        .find(|name| matches!(*name, "com1" | "com2" | "none"))
    {
        Some("com2") => (Settings::COM2, options.com2),
        Some("none") => return None,
        _ => (Settings::COM1, options.com1),
    };
    Some(text.and_then(|text| base.parse(text)).unwrap_or(base))
}

/// The console, and how much is said on it.
fn start_console(options: &Options<'_>) {
    match console_settings(options) {
        Some(settings) => {
            serial::start(&settings);
        }
        None => serial::stop(),
    }
    for (source, text) in [
        (Source::Hypervisor, options.loglvl),
        (Source::Guest, options.guest_loglvl),
    ] {
        if let Some(threshold) = text.and_then(Threshold::parse) {
            log::set_threshold(source, threshold);
        }
    }
}

/// Interrupt controllers, timers and the clock.
#[inline(never)]
fn start_devices(boot_info: &BootInfo) {
    let rsdp = boot_info
        .rsdp
        .as_ref()
        .and_then(|found| Rsdp::parse(found.bytes.get(..found.len)?));
    let frequencies = match dev::init(rsdp) {
        Ok(frequencies) => frequencies,
        Err(reason) => fatal::cannot_boot(format_args!("{reason}")),
    };
    time::init(boot::entry_tsc(), frequencies.tsc_hz);
    log::set_clock(time::now);
    irq::init();
    info!(
        "TSC {} kHz, local timer {} kHz, measured against {}",
        frequencies.tsc_hz / 1000,
        frequencies.timer_hz / 1000,
        frequencies.reference
    );
}
