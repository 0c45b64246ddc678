// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vCPU's own processor state: trap table, callbacks, stacks, descriptor tables, segment bases, debug registers, FPU.

use crate::cpu::Running;
use crate::{paging, traps};
use philoxen_abi::arch::{self, TrapInfo};
use philoxen_abi::callback::{
    CALLBACKOP_REGISTER, CALLBACKOP_UNREGISTER, CallbackRegister, CallbackUnregister,
};
use philoxen_abi::{Errno, GuestMemory, GuestVa, Result, callback};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::cpu::state;
use philoxen_pv::control::CR4_DE;

/// Trap-table entries read in one call at most: one per vector, and the end mark.
const MAX_TRAPS: u64 = 257;

/// `set_trap_table(table)`: replaces the gates listed; the list ends at address 0. A null table removes all.
pub fn set_trap_table(running: &mut Running, table: u64) -> Result<i64> {
    let table = GuestVa(table);
    let pv = &mut running.state.pv;
    if table.is_null() {
        pv.clear_gates();
        return Ok(0);
    }
    for index in 0..MAX_TRAPS {
        let trap: TrapInfo =
            LoadedGuest.read(table.element(index, size_of::<TrapInfo>() as u64))?;
        if trap.address == 0 {
            return Ok(0);
        }
        pv.set_gate(&trap)?;
    }
    Err(Errno::EINVAL)
}

/// `set_gdt(frames, entries)`.
pub fn set_gdt(running: &mut Running, list: u64, entries: u64) -> Result<i64> {
    // The reserved part begins at entry FIRST_RESERVED_GDT_ENTRY.
    if entries > arch::FIRST_RESERVED_GDT_ENTRY as u64 {
        return Err(Errno::EINVAL);
    }
    let mut frames = [0u64; arch::FIRST_RESERVED_GDT_PAGE];
    let count = entries.div_ceil(512) as usize;
    let frames = frames.get_mut(..count).ok_or(Errno::EINVAL)?;
    for (index, frame) in (0..).zip(frames.iter_mut()) {
        *frame = LoadedGuest.read(GuestVa(list).element(index, 8))?;
    }
    paging::replace_gdt(running, frames, entries).map(|()| 0)
}

/// `stack_switch(ss, sp)`: the kernel stack for entries from user mode.
#[inline]
pub fn stack_switch(running: &mut Running, ss: u64, sp: u64) -> Result<i64> {
    running.state.pv.kernel_ss = ss as u16 | 3;
    running.state.pv.kernel_sp = sp;
    Ok(0)
}

/// `set_callbacks(event, failsafe, syscall)`, the old form of `callback_op`.
pub fn set_callbacks(running: &mut Running, addresses: [u64; 3]) -> Result<i64> {
    let pv = &mut running.state.pv;
    let kinds = [
        callback::CALLBACKTYPE_EVENT,
        callback::CALLBACKTYPE_FAILSAFE,
        callback::CALLBACKTYPE_SYSCALL,
    ];
    for (kind, address) in kinds.into_iter().zip(addresses) {
        pv.register_callback(kind, 0, address)?;
    }
    Ok(0)
}

/// `callback_op(cmd, arg)`.
pub fn callback_op(running: &mut Running, cmd: u64, arg: u64) -> Result<i64> {
    let pv = &mut running.state.pv;
    match cmd {
        CALLBACKOP_REGISTER => {
            let request: CallbackRegister = LoadedGuest.read(GuestVa(arg))?;
            pv.register_callback(request.kind, request.flags, request.address)?;
        }
        CALLBACKOP_UNREGISTER => {
            let request: CallbackUnregister = LoadedGuest.read(GuestVa(arg))?;
            pv.unregister_callback(request.kind)?;
        }
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// `nmi_op(cmd, arg)`: registers (0: `{handler, pad}`) or removes (1) the NMI callback of vCPU 0.
pub fn nmi_op(running: &mut Running, cmd: u64, arg: u64) -> Result<i64> {
    let pv = &mut running.state.pv;
    match cmd {
        0 => {
            let [handler, _pad]: [u64; 2] = LoadedGuest.read(GuestVa(arg))?;
            if running.id.0 != 0 {
                return Err(Errno::EINVAL);
            }
            pv.register_callback(callback::CALLBACKTYPE_NMI, 0, handler)?;
        }
        1 => pv.unregister_callback(callback::CALLBACKTYPE_NMI)?,
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// `fpu_taskswitch(set)`: CR0.TS.
pub fn fpu_taskswitch(running: &mut Running, set: u64) -> Result<i64> {
    running.state.task_switched = set != 0;
    state::set_task_switched(set != 0);
    Ok(0)
}

/// `set_segment_base(which, base)`. In a hypercall the guest is in kernel mode: its user GS base is the inactive one.
#[inline]
pub fn set_segment_base(running: &mut Running, which: u64, base: u64) -> Result<i64> {
    if which != arch::SEGBASE_GS_USER_SEL && !philoxen_abi::addr::is_canonical(base) {
        return Err(Errno::EINVAL);
    }
    match which {
        arch::SEGBASE_GS_USER => state::set_inactive_gs_base(base),
        arch::SEGBASE_FS => state::set_fs_base(base),
        arch::SEGBASE_GS_KERNEL => state::set_gs_base(base),
        arch::SEGBASE_GS_USER_SEL => {
            // A selector the guest's tables do not have becomes null, as the failsafe path would make it.
            traps::prepare_selector(running, base as u16);
            state::load_user_gs_selector(base as u16);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// `set_debugreg(register, value)`.
pub fn set_debugreg(running: &mut Running, register: u64, value: u64) -> Result<i64> {
    let extensions = running.state.cr4 & CR4_DE != 0;
    running.state.debug.write(register, value, extensions)?;
    crate::cpu::load_debug(&running.state.debug);
    Ok(0)
}

/// `get_debugreg(register)`: the value itself, or a negative error number.
pub fn get_debugreg(running: &Running, register: u64) -> i64 {
    let extensions = running.state.cr4 & CR4_DE != 0;
    match running.state.debug.read(register, extensions) {
        Ok(value) => value as i64,
        Err(errno) => errno.rax(),
    }
}
