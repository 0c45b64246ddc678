// SPDX-License-Identifier: MIT OR Apache-2.0
//! Switching the machine off, resetting it, and stopping it.

use core::sync::atomic::{AtomicBool, Ordering};
use philoxen_domain::lifecycle::ShutdownReason;
use philoxen_hw::cpu::asm;
use philoxen_hw::{dev, info};

/// `noreboot` was given: stop where the machine would be reset after a failure.
static NO_REBOOT: AtomicBool = AtomicBool::new(false);

/// Sets what happens after a failure.
pub fn set_noreboot(on: bool) {
    NO_REBOOT.store(on, Ordering::Relaxed);
}

/// Domain 0 is gone, and with it whoever could manage the machine.
pub fn dom0_stopped(reason: ShutdownReason) {
    match reason {
        ShutdownReason::Poweroff => {
            info!("Domain 0 halted: powering off");
            dev::power_off()
        }
        ShutdownReason::Crash | ShutdownReason::Watchdog => {
            info!("Domain 0 crashed");
            crash()
        }
        ShutdownReason::Reboot | ShutdownReason::Suspend | ShutdownReason::SoftReset => {
            info!("Domain 0 shut down: rebooting machine");
            dev::reset()
        }
    }
}

/// After a failure: resets the machine, or stops it under `noreboot`.
pub fn crash() -> ! {
    crate::smp::stop_others();
    if NO_REBOOT.load(Ordering::Relaxed) {
        info!("Reboot disabled on the command line: stopped");
        asm::halt_forever()
    }
    info!("Rebooting machine");
    dev::reset()
}

/// TSC ticks that somebody needs to read a line: some seconds on any processor.
const READING_TIME: u64 = 10_000_000_000;

/// The boot cannot go on: resets the machine after a while, or stops it under `noreboot`.
pub fn give_up() -> ! {
    if !NO_REBOOT.load(Ordering::Relaxed) {
        info!("Rebooting in some seconds");
        let start = asm::rdtsc();
        while asm::rdtsc().wrapping_sub(start) < READING_TIME {
            asm::relax();
        }
    }
    crash()
}
