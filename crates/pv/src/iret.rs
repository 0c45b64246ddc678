// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `iret` hypercall: from the nine words on the guest kernel's stack to the registers it wants to run with.
//!
//! Invariant: after [`iret`] the frame has RPL 3 selectors, IF set, IOPL 0, no NT or VM, and SYSRET is asked for only
//! with a canonical RIP (XSA-7, XSA-44, XSA-202). A frame that cannot be loaded is answered by the failsafe callback.

use crate::bounce::code_selector_ok;
use crate::regs::{ORIGIN_SYSRET, Regs, guest_rflags};
use crate::state::{Crash, PvCpu};
use philoxen_abi::addr::is_canonical;
use philoxen_abi::arch::{self, IretContext, VGCF_IN_SYSCALL};

/// What the caller still has to do after [`iret`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Iret {
    /// Kernel mode was left: load the user page tables and swap the GS bases.
    pub to_user: bool,
    /// New upcall mask.
    pub masked: bool,
    /// The state cannot be loaded: after the switch and the mask, deliver [`crate::bounce::failsafe`].
    pub failsafe: bool,
}

/// Loads the frame of an `iret` hypercall into `regs`. `has_user_root` says whether user page tables are registered.
///
/// # Errors
/// The reason to crash the domain.
#[inline(always)]
pub fn iret(
    pv: &mut PvCpu,
    regs: &mut Regs,
    frame: &IretContext,
    has_user_root: bool,
) -> Result<Iret, Crash> {
    let to_user = frame.cs & 3 == 3;
    if to_user {
        if !has_user_root {
            return Err(Crash::NoUserTables);
        }
        pv.in_kernel = false;
    }
    pv.note_iret(frame.rflags);
    let masked = frame.rflags & arch::rflags::IF == 0;

    regs.rax = frame.rax;
    regs.rip = frame.rip;
    regs.rsp = frame.rsp;
    regs.rflags = guest_rflags(frame.rflags);
    let canonical = is_canonical(frame.rip);
    // A 32-bit target cannot take the 64-bit SYSRET: it goes the general way.
    let compat = frame.cs as u16 | 3 == arch::FLAT_RING3_CS32;
    if frame.flags & VGCF_IN_SYSCALL != 0 && canonical && !compat {
        // What SYSRET would leave, should another way back be taken: nothing of the kernel's.
        regs.rcx = frame.rip;
        regs.r11 = regs.rflags;
        regs.cs = u64::from(arch::FLAT_RING3_CS64);
        regs.ss = u64::from(arch::FLAT_RING3_SS64);
        regs.origin |= ORIGIN_SYSRET;
        return Ok(Iret {
            to_user,
            masked,
            failsafe: false,
        });
    }
    let cs = frame.cs as u16 | 3;
    regs.cs = u64::from(cs);
    regs.ss = u64::from(frame.ss as u16 | 3);
    regs.r11 = frame.r11;
    regs.rcx = frame.rcx;
    regs.origin &= !ORIGIN_SYSRET;
    Ok(Iret {
        to_user,
        masked,
        failsafe: !canonical || !code_selector_ok(cs),
    })
}
