// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts from guests: what is ours to handle, and what the guest's kernel gets.

use crate::cpu::{Cpu, Running};
use crate::{emulate, irq};
use core::sync::atomic::Ordering;
use philoxen_abi::addr::{HYPERVISOR_END, HYPERVISOR_START};
use philoxen_hw::cpu::{asm, nmi, percpu, state, window};
use philoxen_hw::guest_log;
use philoxen_hw::log::Level;
use philoxen_pv::bounce::{self, PFEC_USER, PFEC_WRITE, page_fault_error, vector as v};
use philoxen_pv::{Regs, Trap};

/// Page-fault error-code bits: the translation was present; a reserved bit was set; an instruction fetch.
const PFEC_PRESENT: u32 = 1;
const PFEC_RESERVED: u32 = 8;
const PFEC_FETCH: u32 = 16;
/// Vectors from here on are interrupts.
const FIRST_INTERRUPT: u32 = 0x20;
const INT80: u32 = 0x80;
const NMI: u32 = 2;
const MCE: u32 = 18;

/// Handles any exception or interrupt from a guest; true if SYSRET may be used to leave.
#[inline(always)]
pub fn from_guest(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    if regs.vector == u32::from(v::PF) {
        page_fault(regs, cpu)
    } else {
        other_than_page_fault(regs, cpu)
    }
}

#[inline(never)]
fn other_than_page_fault(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    regs.origin = 0;
    match regs.vector {
        13 => emulate::general_protection(regs, cpu),
        INT80 => software(regs, cpu, 0x80, 2),
        vector if vector >= FIRST_INTERRUPT => irq::handle(cpu.id, vector as u8),
        _ => other(regs, cpu),
    }
    cpu.leave_hypervisor(regs)
}

fn other(regs: &mut Regs, cpu: &mut Cpu) {
    match regs.vector {
        1 => debug(regs, cpu),
        NMI => nmi::in_guest(regs),
        3 => software(regs, cpu, v::BP, 1),
        4 => software(regs, cpu, 4, 1),
        6 => emulate::invalid_opcode(regs, cpu),
        7 => device_not_available(regs, cpu),
        MCE => machine_check(regs, cpu),
        vector => cpu.inject(regs, Trap::new(vector as u8, regs.error_code as u32)),
    }
}

/// `int3`, `into`, `int 0x80`: the processor let the gate be called, the guest's own gate decides.
fn software(regs: &mut Regs, cpu: &mut Cpu, vector: u8, length: u64) {
    let Some(running) = &mut cpu.running else {
        return;
    };
    let (vcpu, mut entry) = running.entry();
    if let Err(crash) = bounce::software_interrupt(&mut vcpu.pv, regs, &mut entry, vector, length) {
        cpu.crash(regs, &crash);
    }
}

fn debug(regs: &mut Regs, cpu: &mut Cpu) {
    if let Some(running) = &mut cpu.running {
        running.state.debug.note_debug(state::take_dr6());
    }
    cpu.inject(regs, Trap::new(v::DB, 0));
}

/// #NM: only after `fpu_taskswitch(1)`, since registers are switched eagerly. The guest's handler finds TS clear.
fn device_not_available(regs: &mut Regs, cpu: &mut Cpu) {
    if let Some(running) = &mut cpu.running {
        running.state.task_switched = false;
        state::set_task_switched(false);
    }
    cpu.inject(regs, Trap::new(v::NM, 0));
}

fn machine_check(regs: &mut Regs, cpu: &mut Cpu) {
    cpu.crash_for(regs, format_args!("machine check"));
}

/// Most page faults are the guest's own, and go to its kernel at once.
#[inline(never)]
fn page_fault(regs: &mut Regs, cpu: &mut Cpu) -> bool {
    regs.origin = 0;
    let address = asm::read_cr2();
    let error = regs.error_code as u32;
    let Some(running) = &mut cpu.running else {
        return cpu.leave_hypervisor(regs);
    };
    let in_kernel = running.state.pv.in_kernel;
    let write_to_present = error & (PFEC_PRESENT | PFEC_WRITE) == PFEC_PRESENT | PFEC_WRITE;
    let may_be_ours = (HYPERVISOR_START..HYPERVISOR_END).contains(&address)
        || in_kernel && write_to_present && error & (PFEC_RESERVED | PFEC_FETCH) == 0;
    if may_be_ours {
        return unusual_page_fault(regs, cpu, address);
    }
    running.info.cr2().store(address, Ordering::Relaxed);
    let trap = Trap::page_fault(address, page_fault_error(error, in_kernel));
    let (vcpu, mut entry) = running.entry();
    match bounce::exception(&mut vcpu.pv, regs, &mut entry, trap) {
        Ok(()) => cpu.leave_hypervisor(regs),
        Err(crash) => cpu.crash_and_leave(regs, crash),
    }
}

/// A fault that the guest's page tables or descriptor table may explain.
#[inline(never)]
fn unusual_page_fault(regs: &mut Regs, cpu: &mut Cpu, address: u64) -> bool {
    if let Some(trap) = explain_page_fault(regs, cpu, address) {
        cpu.inject(regs, trap);
    }
    cpu.leave_hypervisor(regs)
}

/// Handles a fault in the hypervisor's range or a kernel's write to a read-only page; what the guest is to get if it is its own.
#[inline(always)]
fn explain_page_fault(regs: &mut Regs, cpu: &mut Cpu, address: u64) -> Option<Trap> {
    let error = regs.error_code as u32;
    let running = cpu.running.as_mut()?;
    let in_kernel = running.state.pv.in_kernel;
    let own = Trap::page_fault(address, page_fault_error(error, in_kernel));
    if !(HYPERVISOR_START..HYPERVISOR_END).contains(&address) {
        return (!emulate::page_table_write(regs, running, address)).then_some(own);
    }
    // A descriptor load touched a page of the LDT window that is not mapped yet.
    let descriptor_load = error & PFEC_USER == 0;
    if descriptor_load && map_ldt(running, address) {
        return None;
    }
    match guest_ldt_address(running, address).filter(|_| descriptor_load) {
        Some(va) => Some(Trap::page_fault(va, error & !PFEC_USER)),
        None => Some(own),
    }
}

/// Maps the page of the running vCPU's LDT that `address` of the window stands for. False if there is none or its
/// frame cannot be a descriptor page.
fn map_ldt(running: &mut Running, address: u64) -> bool {
    let Some(page) = window::ldt_page_of(address) else {
        return false;
    };
    let state = &mut running.state;
    if (page as u64) * 512 >= state.ldt_entries || state.ldt.get(page).is_none_or(Option::is_some) {
        return false;
    }
    let va = state.ldt_base.element(page as u64, philoxen_abi::PAGE_SIZE);
    let domain = running.domain.clone();
    let Some(vcpu) = domain.vcpu(running.id) else {
        return false;
    };
    let Some(mfn) = crate::paging::descriptor_frame(&domain, vcpu, va) else {
        return false;
    };
    if let Some(slot) = running.state.ldt.get_mut(page) {
        *slot = Some(mfn);
    }
    window::map_ldt_page(page, mfn);
    true
}

/// Maps the LDT page that `selector` needs, before it is loaded on the guest's behalf.
pub fn prepare_selector(running: &mut Running, selector: u16) {
    const IN_LDT: u16 = 4;
    if selector & IN_LDT != 0 {
        let offset = u64::from(selector & !7);
        map_ldt(running, window::ldt_address(offset));
    }
}

/// The guest's own address for an address in its LDT window.
fn guest_ldt_address(running: &Running, address: u64) -> Option<u64> {
    let page = window::ldt_page_of(address)? as u64;
    Some(
        running
            .state
            .ldt_base
            .element(page, philoxen_abi::PAGE_SIZE)
            .add(address & 0xfff)
            .0,
    )
}

/// The return to the guest faulted on its CS, SS or RIP: map a missing LDT page and retry, else tell the guest's
/// failsafe callback.
pub fn return_failed(regs: &mut Regs, cpu: &mut Cpu) {
    let (vector, error) = percpu::last_fault();
    let Some(running) = &mut cpu.running else {
        return;
    };
    if vector == u32::from(v::PF) && map_ldt(running, asm::read_cr2()) {
        return;
    }
    guest_log!(
        Level::Warning,
        "d{}v{}: return to {:04x}:{:016x} failed with exception {vector:#x} ({error:#x})",
        running.domain.id.0,
        running.id.0,
        regs.cs,
        regs.rip
    );
    failsafe(regs, cpu, None);
}

/// Enters the failsafe callback. `wanted` are the data selectors that the guest should have and some of which could not be
/// loaded (those are null now); none if they are all as they should be and it was CS, SS or RIP. Linux tells the two
/// cases apart by comparing the frame with what is loaded.
pub fn failsafe(regs: &mut Regs, cpu: &mut Cpu, wanted: Option<[u16; 4]>) {
    let Some(running) = &mut cpu.running else {
        return;
    };
    let selectors = wanted.unwrap_or_else(state::read_selectors);
    let (vcpu, mut entry) = running.entry();
    if let Err(crash) = bounce::failsafe(&mut vcpu.pv, regs, &mut entry, selectors) {
        cpu.crash(regs, &crash);
    }
}
