// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of the hypervisor: its own bugs, and a boot that cannot go on.

use crate::{dump, power, smp};
use core::panic::PanicInfo;
use philoxen_hw::{cpu, error, log};
use philoxen_pv::Regs;

/// Vector of the watchdog's interrupt.
const NMI: u32 = 2;

/// A state that our own code excludes.
#[cold]
#[track_caller]
pub fn bug(what: &str) -> ! {
    report(format_args!("{what}"), core::panic::Location::caller())
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => report(format_args!("{}", info.message()), at),
        None => report(
            format_args!("{}", info.message()),
            core::panic::Location::caller(),
        ),
    }
}

fn report(what: core::fmt::Arguments<'_>, at: &core::panic::Location<'_>) -> ! {
    smp::stop_others();
    log::panicking();
    error!(
        "Panic on CPU {}: {what} ({}:{})",
        cpu::cpu_id_or_boot(),
        at.file(),
        at.line()
    );
    dump::backtrace(cpu::backtrace::frame_pointer());
    others();
    power::crash()
}

/// An exception in the hypervisor that nothing allows for.
#[cold]
pub fn exception(regs: &Regs, cr2: u64) -> ! {
    smp::stop_others();
    log::panicking();
    if regs.vector == NMI {
        error!(
            "Panic on CPU {}: the watchdog found it stuck in the hypervisor",
            cpu::cpu_id_or_boot()
        );
    } else {
        describe(regs, cr2);
    }
    dump::registers(regs);
    dump::location(regs.rip);
    dump::backtrace(regs.rbp);
    others();
    power::crash()
}

/// Says where the other processors were.
fn others() {
    for cpu in smp::others() {
        match cpu::nmi::stopped_at(cpu) {
            Some(rip) => {
                error!("CPU {cpu} was stopped at");
                dump::location(rip);
            }
            None => error!("CPU {cpu} does not stop"),
        }
    }
}

fn describe(regs: &Regs, cr2: u64) {
    error!(
        "Panic on CPU {}: exception {:#x} error {:#x} in the hypervisor, cr2 {cr2:#x}",
        cpu::cpu_id_or_boot(),
        regs.vector,
        regs.error_code
    );
}

/// A machine, kernel or configuration we cannot boot: one line, time to read it, then the end.
#[cold]
pub fn cannot_boot(reason: core::fmt::Arguments<'_>) -> ! {
    error!("Cannot boot: {reason}");
    power::give_up()
}
