// SPDX-License-Identifier: MIT OR Apache-2.0
//! SYSCALL and SYSENTER: an application's system call goes to its kernel, a kernel's is a hypercall.
//!
//! The four hottest paths come first: the bounce, `iret`, `mmu_update` and `update_va_mapping`.

use crate::cpu::{Cpu, Running};
use crate::host::load_root;
use crate::ops::{
    console, control, domctl, events, grant, hypfs, memory, misc, multicall, physdev, sched,
    sysctl, vcpu,
};
use crate::{refusal, traps};
use philoxen_abi::addr::GuestWords;
use philoxen_abi::arch::IretContext;
use philoxen_abi::hypercall::{self as nr, Budget};
use philoxen_abi::{Errno, Flow, GuestVa};
use philoxen_domain::calls::{Allowed, allowed};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::cpu::{CpuId, VECTOR_SYSCALL, VECTOR_SYSCALL32, state};
use philoxen_pv::regs::ORIGIN_SYSRET;
use philoxen_pv::{Crash, Regs, Trap, bounce, iret};

/// Work a hypercall may do before it must let events and the scheduler in, in [`Budget`] units.
pub const BUDGET: u32 = 8192;
/// Bytes of the SYSCALL instruction: a restarted hypercall executes it again.
const SYSCALL_BYTES: u64 = 2;

/// Handles a SYSCALL or SYSENTER frame. Here and below: true if SYSRET may be used to leave.
#[inline(always)]
pub fn from_guest(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    let by_syscall = regs.vector == VECTOR_SYSCALL;
    let Some(running) = cpu.running.as_mut().filter(|_| by_syscall) else {
        return other_entry(regs, cpu);
    };
    if !running.state.pv.in_kernel {
        system_call(regs, cpu)
    } else if regs.rax == nr::IRET {
        iret_hypercall(regs, cpu)
    } else {
        hypercall(regs, cpu)
    }
}

/// An application's system call goes to its kernel.
#[inline(never)]
fn system_call(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    let Some(running) = &mut cpu.running else {
        return cpu.leave_hypervisor(regs);
    };
    let (vcpu, mut entry) = running.entry();
    match bounce::syscall(&mut vcpu.pv, regs, &mut entry) {
        Ok(()) => cpu.leave_hypervisor(regs),
        Err(crash) => refused(regs, cpu, crash),
    }
}

/// Without a callback for it, a system call is an undefined instruction.
#[cold]
#[inline(never)]
fn refused(regs: &mut Regs, cpu: &mut Cpu, crash: Crash) -> bool {
    if !matches!(crash, Crash::NoCallback(_)) {
        return cpu.crash_and_leave(regs, crash);
    }
    bounce::back_to_syscall(regs);
    cpu.inject(regs, Trap::UD);
    cpu.leave_hypervisor(regs)
}

#[cold]
#[inline(never)]
fn other_entry(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    let syscall32 = regs.vector == VECTOR_SYSCALL32;
    let Some(running) = &mut cpu.running else {
        return cpu.leave_hypervisor(regs);
    };
    let (vcpu, mut entry) = running.entry();
    let result = if syscall32 {
        bounce::syscall32(&mut vcpu.pv, regs, &mut entry)
    } else {
        bounce::sysenter(&mut vcpu.pv, regs, &mut entry)
    };
    match result {
        Ok(()) => cpu.leave_hypervisor(regs),
        Err(crash) if syscall32 => refused(regs, cpu, crash),
        Err(crash) => cpu.crash_and_leave(regs, crash),
    }
}

/// A hypercall: number in rax, arguments in rdi, rsi, rdx, r10, r8; result in rax; rcx and r11 are lost.
#[inline(never)]
fn hypercall(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    let number = regs.rax;
    regs.origin = ORIGIN_SYSRET;
    if let Some(running) = &mut cpu.running {
        match dispatch(cpu.id, running, number, regs.hypercall_args()) {
            Flow::Done(value) => regs.rax = value as u64,
            Flow::Again([rdi, rsi, rdx, r10, r8]) => {
                (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8) = (rdi, rsi, rdx, r10, r8);
                regs.rip = regs.rip.wrapping_sub(SYSCALL_BYTES);
            }
        }
    }
    cpu.leave_hypervisor(regs)
}

/// Carries out hypercall `number` for the running vCPU.
#[inline(always)]
pub fn dispatch(cpu: CpuId, running: &mut Running, number: u64, args: [u64; 5]) -> Flow {
    let [a, b, c, d, _] = args;
    match number {
        nr::MMU_UPDATE => memory::mmu_update(running, [a, b, c, d]),
        nr::UPDATE_VA_MAPPING => memory::update_va_mapping(running, [a, b, c]),
        nr::MMUEXT_OP => memory::mmuext_op(running, [a, b, c, d]),
        nr::STACK_SWITCH => control::stack_switch(running, a, b).into(),
        nr::SET_SEGMENT_BASE => control::set_segment_base(running, a, b).into(),
        nr::MULTICALL => multicall::run(cpu, running, a, b),
        nr::EVENT_CHANNEL_OP => events::event_channel_op(running, a, b, c),
        nr::SCHED_OP => sched::sched_op(running, a, b),
        nr::GRANT_TABLE_OP => grant::grant_table_op(running, [a, b, c]),
        _ => dispatch_cold(running, number, args),
    }
}

#[inline(never)]
fn dispatch_cold(running: &mut Running, number: u64, args: [u64; 5]) -> Flow {
    let [a, b, c, d, e] = args;
    match allowed(number) {
        Allowed::All => {}
        Allowed::Privileged if running.domain.privileged => {}
        Allowed::Privileged => {
            refusal::not_privileged(running, number);
            return Errno::EPERM.into();
        }
        Allowed::Nobody => return Errno::ENOSYS.into(),
    }
    match number {
        nr::SET_TRAP_TABLE => control::set_trap_table(running, a).into(),
        nr::SET_GDT => control::set_gdt(running, a, b).into(),
        nr::SET_CALLBACKS => control::set_callbacks(running, [a, b, c]).into(),
        nr::FPU_TASKSWITCH => control::fpu_taskswitch(running, a).into(),
        nr::SET_DEBUGREG => control::set_debugreg(running, a, b).into(),
        nr::GET_DEBUGREG => Flow::Done(control::get_debugreg(running, a)),
        nr::UPDATE_DESCRIPTOR => memory::update_descriptor(running, a, b),
        nr::MEMORY_OP => memory::memory_op(running, a, b),
        nr::UPDATE_VA_MAPPING_OTHERDOMAIN => {
            memory::update_va_mapping_otherdomain(running, [a, b, c, d])
        }
        nr::SET_TIMER_OP => vcpu::set_timer_op(running, a).into(),
        nr::XEN_VERSION => misc::xen_version(running, a, b).into(),
        nr::CONSOLE_IO => console::console_io(running, a, b, c),
        nr::VM_ASSIST => misc::vm_assist(running, a, b).into(),
        nr::VCPU_OP => vcpu::vcpu_op(running, a, b, c),
        nr::NMI_OP => control::nmi_op(running, a, b).into(),
        nr::CALLBACK_OP => control::callback_op(running, a, b).into(),
        nr::SCHED_OP_COMPAT => sched::sched_op_compat(running, a, b),
        nr::EVENT_CHANNEL_OP_COMPAT => events::event_channel_op_compat(running, a),
        nr::PHYSDEV_OP => physdev::physdev_op(running, a, b),
        nr::PLATFORM_OP => physdev::platform_op(running, a),
        nr::SYSCTL => sysctl::sysctl(running, a),
        nr::DOMCTL => domctl::domctl(running, a, b),
        nr::HYPFS_OP => hypfs::hypfs_op(a, [b, c, d, e]),
        _ => Errno::ENOSYS.into(),
    }
}

/// A budget for one hypercall.
pub const fn budget() -> Budget {
    Budget::new(BUDGET)
}

/// The `iret` hypercall: loads the frame on the kernel's stack.
#[inline(never)]
fn iret_hypercall(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    let Some(running) = &mut cpu.running else {
        return cpu.leave_hypervisor(regs);
    };
    let words = GuestWords::new(GuestVa(regs.rsp)).and_then(|at| LoadedGuest.load(at));
    let Some(frame) = words.map(IretContext::from) else {
        let crash = Crash::IretFrameFault(regs.rsp);
        return cpu.crash_and_leave(regs, crash);
    };
    let has_user_root = running.vcpu.roots.user().is_some();
    match iret::iret(&mut running.state.pv, regs, &frame, has_user_root) {
        Ok(done) => {
            if done.to_user {
                load_root(&running.vcpu, false);
                state::swap_gs();
            }
            running.info.set_upcall_mask(done.masked);
            if done.failsafe {
                return failsafe(regs, cpu);
            }
            cpu.leave_hypervisor(regs)
        }
        Err(crash) => cpu.crash_and_leave(regs, crash),
    }
}

#[cold]
#[inline(never)]
fn failsafe(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    traps::failsafe(regs, cpu, None);
    cpu.leave_hypervisor(regs)
}
