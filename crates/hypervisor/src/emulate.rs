// SPDX-License-Identifier: MIT OR Apache-2.0
//! Privileged instructions and page-table writes of guest kernels: joins pv's decoder and policies to the running vCPU.

use crate::cpu::{Cpu, Running};
use crate::domain::Domain;
use crate::host::load_root;
use crate::paging::{self, with};
use crate::vcpu::{Vcpu, VcpuState};
use crate::{ports, schedule};
use core::sync::atomic::Ordering;
use philoxen_abi::addr::{HYPERVISOR_END, HYPERVISOR_START};
use philoxen_abi::arch::{CpuidRegs, FLAT_RING3_CS32};
use philoxen_abi::{Errno, GuestMemory, GuestVa, Mfn, PAGE_SIZE, Pfn, VcpuId};
use philoxen_evtchn::VcpuInfo;
use philoxen_hw::cpu::guest::{LoadedGuest, read_prefix};
use philoxen_hw::cpu::{asm, state as registers};
use philoxen_paging::{PteWrite, emulate_pte_write, table_at};
use philoxen_pv::bounce::{self, vector as v};
use philoxen_pv::control::{self, CR4_OSXSAVE, Cr4Policy};
use philoxen_pv::cpuid::CpuidState;
use philoxen_pv::debugreg::{DR6_BS, DebugRegs};
use philoxen_pv::decode::SegmentBases;
use philoxen_pv::emulate::{self, CrWrite, Environment, Outcome};
use philoxen_pv::msr::{MsrPolicy, Read, Write};
use philoxen_pv::ptwrite::WriteOp;
use philoxen_pv::{PvCpu, Regs, Trap};

/// `VMASST_TYPE_writable_pagetables`.
const ASSIST_WRITABLE_PAGETABLES: u32 = 2;
/// Longest instruction.
const MAX_INSTRUCTION: usize = 15;
/// Times a page-table write is retried when other processors change the same entry.
const MAX_RACES: u32 = 64;

/// The vCPU as emulated instructions reach it.
struct Env<'a> {
    domain: &'a Domain,
    id: VcpuId,
    vcpu: &'a Vcpu,
    info: VcpuInfo<'static>,
    /// GS base of user mode is the inactive one.
    in_kernel: bool,
    cr4: &'a mut u64,
    xcr0: &'a mut u64,
    task_switched: &'a mut bool,
    tsc_aux: &'a mut u32,
    debug: &'a mut DebugRegs,
    io_bitmap: (GuestVa, u32),
}

/// Splits the running vCPU into its PV state and the environment of an emulated instruction.
fn split(running: &mut Running) -> (&mut PvCpu, Env<'_>) {
    let Running {
        domain,
        id,
        vcpu,
        info,
        state,
    } = running;
    let VcpuState {
        pv,
        cr4,
        xcr0,
        task_switched,
        tsc_aux,
        debug,
        io_bitmap,
        ..
    } = &mut **state;
    let in_kernel = pv.in_kernel;
    (
        pv,
        Env {
            domain,
            id: *id,
            vcpu,
            info: *info,
            in_kernel,
            cr4,
            xcr0,
            task_switched,
            tsc_aux,
            debug,
            io_bitmap: *io_bitmap,
        },
    )
}

fn segment_bases() -> SegmentBases {
    let [fs, gs, _] = registers::bases();
    SegmentBases { fs, gs }
}

impl Env<'_> {
    fn msr_policy(&self) -> MsrPolicy {
        self.domain.policy.read().msrs
    }
}

impl Environment for Env<'_> {
    type Memory = LoadedGuest;

    fn memory(&self) -> &LoadedGuest {
        &LoadedGuest
    }
    fn segment_bases(&self) -> SegmentBases {
        segment_bases()
    }
    fn is_long_code(&self, cs: u16) -> bool {
        // The guest's own code segments are 64-bit ones but for 32-bit applications, which do nothing we emulate.
        cs | 3 != FLAT_RING3_CS32
    }
    fn io_bitmap_allows(&self, port: u16, size: u8) -> bool {
        let (bitmap, ports) = self.io_bitmap;
        let end = u32::from(port) + u32::from(size);
        if end > ports {
            return false;
        }
        // The bitmap lies in the kernel's memory, which user mode's page tables do not have.
        if !self.in_kernel {
            load_root(self.vcpu, true);
        }
        let closed = |port: u32| {
            let byte = LoadedGuest.read::<u8>(bitmap.add(u64::from(port / 8)));
            byte.is_err() || byte.is_ok_and(|byte| byte & (1 << (port % 8)) != 0)
        };
        let open = !(u32::from(port)..end).any(closed);
        if !self.in_kernel {
            load_root(self.vcpu, false);
        }
        open
    }
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        ports::read(self.domain, port, size)
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        ports::write(self.domain, port, size, value);
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidRegs {
        let state = CpuidState {
            cr4: *self.cr4,
            xcr0: *self.xcr0,
            vcpu: self.id.0,
        };
        self.domain
            .policy
            .read()
            .cpuid
            .lookup(leaf, subleaf, &state)
    }
    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        Some(match self.msr_policy().read(msr, self.id.0) {
            Read::Value(value) => value,
            Read::Fault => return None,
            Read::UserGsBase => registers::inactive_gs_base(),
            Read::FsBase => segment_bases().fs,
            Read::GsBase => segment_bases().gs,
            Read::TscAux => (*self.tsc_aux).into(),
            Read::Tsc => asm::rdtsc(),
        })
    }
    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        match self.msr_policy().write(msr, value, self.id.0) {
            Write::Ignore => {}
            Write::Fault => return false,
            Write::FsBase(base) => registers::set_fs_base(base),
            Write::GsBase(base) => registers::set_gs_base(base),
            Write::UserGsBase(base) => registers::set_inactive_gs_base(base),
            Write::TscAux(aux) => {
                *self.tsc_aux = aux;
                registers::set_tsc_aux(aux);
            }
            Write::HypercallPage(pfn) => return paging::fill_hypercall_page(self.domain, Pfn(pfn)),
        }
        true
    }
    fn read_cr(&mut self, number: u8) -> Option<u64> {
        match number {
            0 => Some(control::cr0_view(*self.task_switched)),
            2 => Some(self.info.cr2().load(Ordering::Relaxed)),
            3 => self.vcpu.roots.kernel().map(|root| root.addr()),
            4 => Some(*self.cr4),
            _ => None,
        }
    }
    fn write_cr(&mut self, number: u8, value: u64) -> CrWrite {
        match number {
            0 => match control::cr0_write(value) {
                Some(task_switched) => {
                    *self.task_switched = task_switched;
                    registers::set_task_switched(task_switched);
                    CrWrite::Done
                }
                None => CrWrite::Refused,
            },
            2 => {
                self.info.cr2().store(value, Ordering::Relaxed);
                CrWrite::Done
            }
            3 => {
                if !value.is_multiple_of(PAGE_SIZE) {
                    return CrWrite::Refused;
                }
                paging::set_kernel_root(self.domain, self.vcpu, Mfn::containing(value))
            }
            4 => {
                let policy = self.domain.policy.read();
                let (xsave, fsgsbase) = (policy.cpuid.has_xsave(), policy.cpuid.has_fsgsbase());
                *self.cr4 = Cr4Policy::new(xsave, fsgsbase).write(value);
                CrWrite::Done
            }
            _ => CrWrite::Refused,
        }
    }
    fn read_dr(&mut self, number: u8) -> Option<u64> {
        self.debug
            .read(number.into(), *self.cr4 & control::CR4_DE != 0)
            .ok()
    }
    fn write_dr(&mut self, number: u8, value: u64) -> bool {
        let done = self
            .debug
            .write(number.into(), value, *self.cr4 & control::CR4_DE != 0)
            .is_ok();
        crate::cpu::load_debug(self.debug);
        done
    }
    fn tsc(&mut self) -> u64 {
        asm::rdtsc()
    }
    fn tsc_aux(&mut self) -> Option<u32> {
        let policy = self.domain.policy.read();
        policy.cpuid.has_rdtscp().then_some(*self.tsc_aux)
    }
    fn xcr0(&mut self) -> Option<u64> {
        (*self.cr4 & CR4_OSXSAVE != 0).then_some(*self.xcr0)
    }
    fn set_xcr0(&mut self, value: u64) -> bool {
        if !control::xcr0_valid(value, self.domain.policy.read().cpuid.xcr0()) {
            return false;
        }
        *self.xcr0 = value;
        registers::set_xcr0(value);
        true
    }
    fn invalidate_page(&mut self, address: u64) {
        if !(HYPERVISOR_START..HYPERVISOR_END).contains(&address) {
            asm::invlpg(address);
        }
    }
    fn flush_caches(&mut self) {
        if self.domain.privileged && self.in_kernel {
            philoxen_hw::machine::flush_caches();
        }
    }
}

/// #GP from a guest.
pub fn general_protection(regs: &mut Regs, cpu: &mut Cpu) {
    let Some(running) = &mut cpu.running else {
        return;
    };
    let error = regs.error_code as u32;
    let (pv, mut env) = split(running);
    let outcome = emulate::general_protection(pv, regs, &mut env, error);
    finish(regs, cpu, outcome);
}

/// #UD from a guest: the forced-emulation prefix, or its own.
pub fn invalid_opcode(regs: &mut Regs, cpu: &mut Cpu) {
    let Some(running) = &mut cpu.running else {
        return;
    };
    let (_, mut env) = split(running);
    let outcome = emulate::invalid_opcode(regs, &mut env);
    finish(regs, cpu, outcome);
}

fn finish(regs: &mut Regs, cpu: &mut Cpu, outcome: Outcome) {
    let Some(running) = &mut cpu.running else {
        return;
    };
    match outcome {
        Outcome::Done | Outcome::Retry => {}
        Outcome::DoneStep => {
            running.state.debug.note_debug(DR6_BS);
            cpu.inject(regs, Trap::new(v::DB, 0));
        }
        Outcome::Halt => schedule::block(running, false),
        Outcome::Software { vector, length } => {
            let (vcpu, mut entry) = running.entry();
            if let Err(crash) =
                bounce::software_interrupt(&mut vcpu.pv, regs, &mut entry, vector, length)
            {
                cpu.crash(regs, &crash);
            }
        }
        Outcome::Inject(trap) => cpu.inject(regs, trap),
    }
}

/// A kernel wrote to a page it has read-only: if that is one of its live L1 tables, does the write after the same checks
/// as `mmu_update`. False: the fault is the guest's own.
pub fn page_table_write(regs: &mut Regs, running: &Running, fault: u64) -> bool {
    if !running.domain.assist(ASSIST_WRITABLE_PAGETABLES) {
        return false;
    }
    let Some(root) = running.vcpu().roots.kernel() else {
        return false;
    };
    let Some(table) = with(running, |cx| table_at(cx, root, fault)) else {
        return false;
    };
    let mut bytes = [0; MAX_INSTRUCTION];
    let len = read_prefix(GuestVa(regs.rip), &mut bytes);
    let Some(bytes) = bytes.get(..len) else {
        return false;
    };
    let Some(write) = WriteOp::decode(regs, bytes, segment_bases(), fault) else {
        return false;
    };
    let at = write.entry_address();
    for _ in 0..MAX_RACES {
        let Ok(old) = LoadedGuest.read::<u64>(GuestVa(at)) else {
            return false;
        };
        let Some(new) = write.apply(old) else {
            write.finish(regs, old);
            return true;
        };
        let access = PteWrite::CompareExchange { old, new };
        match with(running, |cx| {
            emulate_pte_write(cx, table, at % PAGE_SIZE, 8, access)
        }) {
            Ok(found) if found == old => {
                write.finish(regs, old);
                return true;
            }
            Ok(_) | Err(Errno::EAGAIN) => {}
            // What may not be in a page table is the guest's page fault.
            Err(_) => return false,
        }
    }
    // Still contended: the guest executes its instruction again.
    true
}
