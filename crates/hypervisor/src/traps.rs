// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts from guests: what is ours to handle, and what the guest's kernel gets.

use crate::cpu::{Cpu, Running};
use crate::domain::Domain;
use crate::host::FRAMES;
use crate::{emulate, irq};
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::VcpuId;
use philoxen_abi::addr::{HYPERVISOR_END, HYPERVISOR_START};
use philoxen_abi::shared::vcpu_info;
use philoxen_hw::cpu::{asm, percpu, state, window};
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
const MCE: u32 = 18;

/// Handles any exception or interrupt from a guest.
#[inline]
pub fn from_guest(regs: &mut Regs, cpu: &mut Cpu) {
    regs.origin = 0;
    match regs.vector {
        14 => page_fault(regs, cpu),
        13 => emulate::general_protection(regs, cpu),
        INT80 => software(regs, cpu, 0x80, 2),
        vector if vector >= FIRST_INTERRUPT => irq::handle(cpu.id, vector as u8),
        _ => other(regs, cpu),
    }
}

fn other(regs: &mut Regs, cpu: &mut Cpu) {
    match regs.vector {
        1 => debug(regs, cpu),
        // An NMI in a guest is the watchdog's, and all is well; others have no meaning on this machine.
        2 => {}
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

fn page_fault(regs: &mut Regs, cpu: &mut Cpu) {
    let address = asm::read_cr2();
    let error = regs.error_code as u32;
    let Some(running) = &mut cpu.running else {
        return;
    };
    if (HYPERVISOR_START..HYPERVISOR_END).contains(&address) {
        // A descriptor load touched a page of the LDT window that is not mapped yet.
        let descriptor_load = error & PFEC_USER == 0;
        if descriptor_load && map_ldt(running, address) {
            return;
        }
        return match guest_ldt_address(running, address).filter(|_| descriptor_load) {
            Some(va) => cpu.inject(regs, Trap::page_fault(va, error & !PFEC_USER)),
            None => deliver_page_fault(regs, cpu, address, error),
        };
    }
    let write_to_present = error & (PFEC_PRESENT | PFEC_WRITE) == PFEC_PRESENT | PFEC_WRITE;
    if write_to_present
        && error & (PFEC_RESERVED | PFEC_FETCH) == 0
        && running.state.pv.in_kernel
        && emulate::page_table_write(regs, running, address)
    {
        return;
    }
    deliver_page_fault(regs, cpu, address, error);
}

fn deliver_page_fault(regs: &mut Regs, cpu: &mut Cpu, address: u64, error: u32) {
    let Some(running) = &mut cpu.running else {
        return;
    };
    let error = page_fault_error(error, running.state.pv.in_kernel);
    cpu.inject(regs, Trap::page_fault(address, error));
}

/// The word of a vCPU's `vcpu_info` that stands for CR2, which a guest kernel cannot read.
fn cr2_word(domain: &Domain, id: VcpuId) -> Option<&AtomicU64> {
    let (words, at) = domain.events.vcpu(id)?.info(&FRAMES)?;
    words.get((at + vcpu_info::CR2 / 8) & 511)
}

/// Tells a guest where it faulted.
pub fn set_guest_cr2(domain: &Domain, id: VcpuId, address: u64) {
    if let Some(word) = cr2_word(domain, id) {
        word.store(address, Ordering::Relaxed);
    }
}

/// What a guest reads from CR2.
pub fn guest_cr2(domain: &Domain, id: VcpuId) -> u64 {
    cr2_word(domain, id).map_or(0, |word| word.load(Ordering::Relaxed))
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
