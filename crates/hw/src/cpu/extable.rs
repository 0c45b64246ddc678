// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts while the hypervisor itself runs.
//!
//! An instruction that may fault on a guest's account (a copy, a segment load, the return to the guest) has an entry in
//! the exception table, which names where to go on; any other exception is the hypervisor's own bug and fatal.
//! An interrupt can only arrive in the idle wait, and is recorded for it.

use super::{asm, nmi, percpu};
use philoxen_pv::Regs;

unsafe extern "C" {
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
    fn philoxen_fatal(regs: &Regs, cr2: u64) -> !;
}

/// Where to go on after a fault at `rip`, if that instruction may fault.
fn fixup(rip: u64) -> Option<u64> {
    let start = &raw const __ex_table_start;
    let end = &raw const __ex_table_end;
    let count = (end as usize - start as usize) / size_of::<[u64; 2]>();
    // SAFETY: the linker script lays the table out between the two symbols; it is never written.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    table
        .iter()
        .find(|entry| entry[0] == rip)
        .map(|entry| entry[1])
}

/// Called by the entry code for every trap whose frame says ring 0.
#[unsafe(no_mangle)]
extern "C" fn philoxen_hypervisor_trap(regs: &mut Regs) {
    let vector = regs.vector;
    match vector {
        2 => {
            if nmi::in_hypervisor(regs) {
                // SAFETY: the binary defines it with this signature (crates/hypervisor/src/entry.rs).
                unsafe { philoxen_fatal(regs, asm::read_cr2()) }
            }
        }
        // A guest can arrange #DB at our first instruction (MOV SS with a breakpoint, or TF with SYSENTER): go on without.
        1 => {
            regs.rflags &= !0x100;
            super::state::take_dr6();
        }
        0x20..=0xff => {
            percpu::record_interrupt(vector as u8);
            percpu::leave_wait(regs);
        }
        // Segment and page faults, #GP, #SS and #AC may be on a guest's account; nothing else is.
        vector => match fixup(regs.rip).filter(|_| matches!(vector, 10..=14 | 17)) {
            Some(target) => {
                regs.rip = target;
                percpu::note_fault(regs.vector, regs.error_code);
            }
            None => {
                // SAFETY: the binary defines it with this signature (crates/hypervisor/src/entry.rs).
                unsafe { philoxen_fatal(regs, asm::read_cr2()) }
            }
        },
    }
}
