// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends that must be a dump of the guest and nothing worse: each theme announces itself, then destroys its own kernel.

use crate::rt::check::Checks;
use crate::rt::{hyper, traps};
use core::arch::asm;
use philoxen_abi::hypercall as nr;

/// Raises an exception with the stack pointer at `stack`.
fn fault_on(stack: u64) -> ! {
    // SAFETY: nothing of this program runs again.
    unsafe { asm!("mov rsp, {0}", "ud2", in(reg) stack, options(noreturn)) }
}

fn gone(t: &mut Checks) {
    t.note("still running", false, &"after the crash");
}

/// The frame cannot be stored: nothing is mapped at the stack.
pub fn unmapped_stack(t: &mut Checks) {
    t.expect_crash();
    fault_on(0x7000_0000)
}

/// The frame would be written into the hypervisor (215).
pub fn hypervisor_stack(t: &mut Checks) {
    t.expect_crash();
    fault_on(philoxen_abi::addr::HYPERVISOR_START + (3 << 40) + 0x10_0000)
}

/// The frame would be written to the table that is mapped read-only (215).
pub fn m2p_stack(t: &mut Checks) {
    t.expect_crash();
    fault_on(philoxen_abi::addr::HYPERVISOR_START + 0x1000)
}

/// The stack pointer is not canonical.
pub fn wild_stack(t: &mut Checks) {
    t.expect_crash();
    fault_on(0x8000_0000_0000_0000)
}

/// An exception for which no handler is registered.
pub fn no_handler(t: &mut Checks) {
    t.ok(
        "take the handlers away",
        hyper::call(nr::SET_TRAP_TABLE, [0; 5]),
    );
    t.expect_crash();
    // SAFETY: ends this program.
    unsafe { asm!("ud2") };
    gone(t);
}

/// The handler is not executable memory, so that the page fault faults for ever until the stack ends.
pub fn bad_handler(t: &mut Checks) {
    t.ok(
        "a handler that is not there",
        traps::set_gate(14, 0, 0x6000_0000),
    );
    t.expect_crash();
    // SAFETY: ends this program.
    unsafe { asm!("mov {0}, [{0}]", inout(reg) 0x1000_u64 => _) };
    gone(t);
}

/// The kernel asks for it: SCHEDOP_shutdown with SHUTDOWN_crash.
pub fn on_request(t: &mut Checks) {
    t.expect_crash();
    hyper::sched_op(2, &mut 3_u32);
    gone(t);
}
