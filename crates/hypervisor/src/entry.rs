// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names by which the hardware crate's assembly finds the binary. Nothing else here: the functions behind them are
//! ordinary safe code. Each returns true if SYSRET may be used for the way back.
#![expect(
    unsafe_code,
    reason = "an exported symbol name is `unsafe` to declare; the names are this binary's own"
)]

use crate::cpu::Cpu;
use philoxen_hw::boot::BootInfo;
use philoxen_pv::Regs;

/// After the boot code: long mode, boot stack, boot information parsed.
#[unsafe(no_mangle)]
fn philoxen_main(info: &'static BootInfo) -> ! {
    crate::start::main(info)
}

/// Fills the frame of the first guest this processor runs.
#[unsafe(no_mangle)]
extern "C" fn philoxen_first(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    cpu.leave_hypervisor(regs)
}

/// Exceptions and interrupts from a guest.
#[unsafe(no_mangle)]
extern "C" fn philoxen_trap(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    crate::traps::from_guest(regs, cpu)
}

/// SYSCALL and SYSENTER from a guest.
#[unsafe(no_mangle)]
extern "C" fn philoxen_syscall(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    crate::syscall::from_guest(regs, cpu)
}

/// The return to the guest faulted: the frame is what could not be loaded.
#[unsafe(no_mangle)]
extern "C" fn philoxen_iret_fault(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    crate::traps::return_failed(regs, cpu);
    cpu.leave_hypervisor(regs)
}

/// An exception in the hypervisor itself.
#[unsafe(no_mangle)]
extern "C" fn philoxen_fatal(regs: &Regs, cr2: u64) -> ! {
    crate::fatal::exception(regs, cr2)
}
