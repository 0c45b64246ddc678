// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that fault because a PV kernel runs in ring 3, carried out on its behalf.
//!
//! Invariants: the virtual I/O privilege decides about CLI, STI and port access and real RFLAGS are never touched by them
//! (XSA-202); privileged instructions are for the guest's kernel only; a string instruction does at most
//! [`STRING_BATCH`] elements per call and comes back for the rest.

use crate::alu;
use crate::bounce::{Trap, idt_error, vector};
use crate::decode::{Bytes, Insn, Segment, SegmentBases, merge};
use crate::regs::Regs;
use crate::state::PvCpu;
use philoxen_abi::arch::{CpuidRegs, cpuid, rflags};
use philoxen_abi::{GuestMemory, GuestVa};

/// Elements a repeated string instruction transfers per call.
pub const STRING_BATCH: u32 = 64;

/// What emulated instructions reach. Policy about values is in [`crate::msr`], [`crate::control`],
/// [`crate::debugreg`] and [`crate::cpuid`]; this joins it to the vCPU.
pub trait Environment {
    /// The guest's memory.
    type Memory: GuestMemory;
    /// Access to the guest's memory.
    fn memory(&self) -> &Self::Memory;
    /// FS and active GS base, for operands with an override.
    fn segment_bases(&self) -> SegmentBases;
    /// Whether CS is a 64-bit code segment (false: compatibility mode).
    fn is_long_code(&self, cs: u16) -> bool;
    /// Whether the guest's own I/O bitmap (`PHYSDEVOP_set_iobitmap`) opens `size` ports from `port` to its user mode.
    fn io_bitmap_allows(&self, port: u16, size: u8) -> bool;
    /// Reads a port; all ones where the domain has no access. `size` is 1, 2 or 4.
    fn port_in(&mut self, port: u16, size: u8) -> u32;
    /// Writes a port; dropped where the domain has no access.
    fn port_out(&mut self, port: u16, size: u8, value: u32);
    /// CPUID as the domain sees it.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidRegs;
    /// RDMSR; `None` raises `#GP`.
    fn read_msr(&mut self, msr: u32) -> Option<u64>;
    /// WRMSR; false raises `#GP`.
    fn write_msr(&mut self, msr: u32, value: u64) -> bool;
    /// MOV from CR0, CR2, CR3 or CR4; `None` raises `#GP`.
    fn read_cr(&mut self, number: u8) -> Option<u64>;
    /// MOV to CR0, CR2, CR3 or CR4.
    fn write_cr(&mut self, number: u8, value: u64) -> CrWrite;
    /// MOV from a debug register; `None` raises `#UD`.
    fn read_dr(&mut self, number: u8) -> Option<u64>;
    /// MOV to a debug register; false raises `#GP`.
    fn write_dr(&mut self, number: u8, value: u64) -> bool;
    /// The guest's time-stamp counter.
    fn tsc(&mut self) -> u64;
    /// The guest's TSC_AUX; `None` if it has no RDTSCP.
    fn tsc_aux(&mut self) -> Option<u32>;
    /// XCR0 of the guest; `None` while its CR4.OSXSAVE is clear (`#UD`).
    fn xcr0(&mut self) -> Option<u64>;
    /// XSETBV; false raises `#GP`.
    fn set_xcr0(&mut self, value: u64) -> bool;
    /// INVLPG.
    fn invalidate_page(&mut self, address: u64);
    /// WBINVD and INVD; a domain without devices may ignore it.
    fn flush_caches(&mut self);
}

/// How a write to a control register ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrWrite {
    /// The register has the value.
    Done,
    /// Raises `#GP`.
    Refused,
    /// A bounded part is done and remembered outside the registers (a new root is partly validated): execute it again.
    Again,
}

impl From<bool> for CrWrite {
    fn from(accepted: bool) -> Self {
        if accepted { Self::Done } else { Self::Refused }
    }
}

/// How an emulation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The registers are those after the instruction.
    Done,
    /// As `Done`, and RFLAGS.TF was set: raise `#DB` with DR6.BS.
    DoneStep,
    /// As `Done` for HLT: block until an event is pending, with the upcall mask as it is.
    Halt,
    /// A software interrupt; RIP is behind it: [`crate::bounce::software_interrupt`].
    Software {
        /// Vector.
        vector: u8,
        /// Length of the instruction.
        length: u64,
    },
    /// Raise this at the unchanged RIP.
    Inject(Trap),
    /// A bounded part is done: run the instruction again.
    Retry,
}

/// Why an instruction is not retired.
enum Stop {
    /// It faults.
    Fault(Trap),
    /// It goes on when it is executed again.
    Again,
}

impl From<Trap> for Stop {
    fn from(trap: Trap) -> Self {
        Self::Fault(trap)
    }
}

impl From<Stop> for Outcome {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Fault(trap) => Self::Inject(trap),
            Stop::Again => Self::Retry,
        }
    }
}

type Step = Result<(), Stop>;
const NOTHING: [u8; 4] = [0; 4];
const GP: Trap = Trap::gp(0);

/// Answers `#GP` from a guest. `error` is the processor's error code.
pub fn general_protection<E: Environment>(
    pv: &PvCpu,
    regs: &mut Regs,
    env: &mut E,
    error: u32,
) -> Outcome {
    let bytes = Bytes::fetch(env.memory(), regs.rip);
    let long = env.is_long_code(regs.cs as u16);
    let insn = Insn::decode(bytes.as_slice(), long);
    if error != 0 {
        // The IDT bit means a gate refused `int n`. The instruction says which, as QEMU before 10 reports 16 * n + 2.
        if error & 2 != 0
            && let Some(mut insn) = insn
            && insn.opcode == 0xcd
            && !insn.escape
            && let Some(vector) = insn.take_u8()
        {
            let length = insn.length();
            if pv.gate(vector).address() == 0 {
                return Outcome::Inject(Trap::gp(idt_error(vector)));
            }
            regs.rip = regs.rip.wrapping_add(length);
            return Outcome::Software { vector, length };
        }
        return Outcome::Inject(Trap::gp(error));
    }
    let Some(insn) = insn else {
        return Outcome::Inject(GP);
    };
    if insn.lock {
        return Outcome::Inject(GP);
    }
    if is_string_io(&insn) {
        return string_io(pv, regs, env, insn);
    }
    let halt = !insn.escape && insn.opcode == 0xf4;
    let mut insn = insn;
    let step = if insn.escape {
        system(pv, regs, env, &mut insn)
    } else {
        simple(pv, regs, env, &mut insn)
    };
    match step {
        Ok(()) if halt => {
            retire(regs, insn.length());
            Outcome::Halt
        }
        Ok(()) => retire(regs, insn.length()),
        Err(stop) => stop.into(),
    }
}

/// Answers `#UD` from a guest: CPUID behind the forced-emulation prefix; anything else is the guest's own.
pub fn invalid_opcode<E: Environment>(regs: &mut Regs, env: &mut E) -> Outcome {
    let bytes = Bytes::fetch(env.memory(), regs.rip);
    let Some(rest) = bytes.as_slice().strip_prefix(&cpuid::EMULATE_PREFIX) else {
        return Outcome::Inject(Trap::UD);
    };
    if !rest.starts_with(&[0x0f, 0xa2]) {
        return Outcome::Inject(Trap::UD);
    }
    do_cpuid(regs, env);
    retire(regs, cpuid::EMULATE_PREFIX.len() as u64 + 2)
}

#[inline]
fn retire(regs: &mut Regs, length: u64) -> Outcome {
    regs.rip = regs.rip.wrapping_add(length);
    regs.rflags &= !rflags::RF;
    if regs.rflags & rflags::TF != 0 {
        Outcome::DoneStep
    } else {
        Outcome::Done
    }
}

fn do_cpuid<E: Environment>(regs: &mut Regs, env: &E) {
    let out = env.cpuid(regs.rax as u32, regs.rcx as u32);
    regs.rax = out.a.into();
    regs.rbx = out.b.into();
    regs.rcx = out.c.into();
    regs.rdx = out.d.into();
}

/// Whether the guest's own rules allow the access: virtual IOPL first, then its bitmap.
fn port_allowed<E: Environment>(pv: &PvCpu, env: &E, port: u16, size: u8) -> bool {
    pv.iopl_allows() || env.io_bitmap_allows(port, size)
}

/// Operand size of port instructions: an even opcode is a byte, otherwise 2 or 4 (REX.W does not widen).
fn port_size(insn: &Insn<'_>) -> u8 {
    if insn.opcode & 1 == 0 {
        1
    } else {
        insn.operand_size().min(4)
    }
}

/// One-byte opcodes: port access, CLI, STI, HLT.
fn simple<E: Environment>(pv: &PvCpu, regs: &mut Regs, env: &mut E, insn: &mut Insn<'_>) -> Step {
    match insn.opcode {
        0xe4..=0xe7 => {
            let port = insn.take_u8().ok_or(GP)?;
            port_access(pv, regs, env, insn, u16::from(port))
        }
        0xec..=0xef => {
            let port = regs.rdx as u16;
            port_access(pv, regs, env, insn, port)
        }
        // The upcall mask, not IF, stops events: under the virtual IOPL these do nothing.
        0xfa | 0xfb if pv.iopl_allows() => Ok(()),
        0xf4 if pv.in_kernel => Ok(()),
        _ => Err(GP.into()),
    }
}

fn port_access<E: Environment>(
    pv: &PvCpu,
    regs: &mut Regs,
    env: &mut E,
    insn: &Insn<'_>,
    port: u16,
) -> Step {
    let size = port_size(insn);
    if !port_allowed(pv, env, port, size) {
        return Err(GP.into());
    }
    if insn.opcode & 2 == 0 {
        let value = env.port_in(port, size);
        regs.rax = merge(regs.rax, value.into(), size);
    } else {
        env.port_out(port, size, (regs.rax & alu::mask(size)) as u32);
    }
    Ok(())
}

/// Opcodes behind 0F: for the guest's kernel, but for RDTSC and CPUID.
fn system<E: Environment>(pv: &PvCpu, regs: &mut Regs, env: &mut E, insn: &mut Insn<'_>) -> Step {
    match insn.opcode {
        0x31 => {
            let tsc = env.tsc();
            regs.set_edx_eax(tsc);
            return Ok(());
        }
        0xa2 => {
            do_cpuid(regs, env);
            return Ok(());
        }
        0x01 => return system_01(pv, regs, env, insn),
        _ if !pv.in_kernel => return Err(GP.into()),
        _ => {}
    }
    match insn.opcode {
        0x06 => {
            let cr0 = env.read_cr(0).ok_or(GP)?;
            wrote(env.write_cr(0, cr0 & !crate::control::CR0_TS))
        }
        0x08 | 0x09 => {
            env.flush_caches();
            Ok(())
        }
        0x20..=0x23 => move_special(regs, env, insn),
        0x30 => accept(env.write_msr(regs.rcx as u32, regs.edx_eax())),
        0x32 => {
            let msr = regs.rcx as u32;
            // A kernel that has not set its #GP handler yet could only die of the exception: it reads 0.
            let early = pv.gate(vector::GP).address() == 0;
            let value = env.read_msr(msr).or(early.then_some(0)).ok_or(GP)?;
            regs.set_edx_eax(value);
            Ok(())
        }
        _ => Err(GP.into()),
    }
}

fn wrote(write: CrWrite) -> Step {
    match write {
        CrWrite::Done => Ok(()),
        CrWrite::Refused => Err(GP.into()),
        CrWrite::Again => Err(Stop::Again),
    }
}

fn accept(ok: bool) -> Step {
    if ok { Ok(()) } else { Err(GP.into()) }
}

/// The 0F 01 group: XGETBV, XSETBV, RDTSCP, LMSW, INVLPG. The descriptor-table loads stay `#GP`.
fn system_01<E: Environment>(
    pv: &PvCpu,
    regs: &mut Regs,
    env: &mut E,
    insn: &mut Insn<'_>,
) -> Step {
    insn.take_modrm().ok_or(GP)?;
    match insn.modrm() {
        0xf9 => {
            let aux = env.tsc_aux().ok_or(Trap::UD)?;
            let tsc = env.tsc();
            regs.set_edx_eax(tsc);
            regs.rcx = aux.into();
            return Ok(());
        }
        0xd0 => {
            let xcr0 = env.xcr0().ok_or(Trap::UD)?;
            if regs.rcx as u32 != 0 {
                return Err(GP.into());
            }
            regs.set_edx_eax(xcr0);
            return Ok(());
        }
        _ if !pv.in_kernel => return Err(GP.into()),
        0xd1 => {
            env.xcr0().ok_or(Trap::UD)?;
            return accept(regs.rcx as u32 == 0 && env.set_xcr0(regs.edx_eax()));
        }
        _ => {}
    }
    match insn.extension() {
        6 if !insn.has_memory() => {
            let cr0 = env.read_cr(0).ok_or(GP)?;
            // LMSW sets the low four bits and cannot clear PE.
            let low = insn.read_reg(regs, insn.rm(), 2) & 0xf;
            wrote(env.write_cr(0, (cr0 & !0xe) | low))
        }
        7 if insn.has_memory() => {
            let bases = env.segment_bases();
            let address = insn.linear_address(regs, bases).ok_or(GP)?;
            env.invalidate_page(address);
            Ok(())
        }
        _ => Err(GP.into()),
    }
}

/// MOV to and from control and debug registers. The operand is always a register of 64 bits.
fn move_special<E: Environment>(regs: &mut Regs, env: &mut E, insn: &mut Insn<'_>) -> Step {
    // ModRM's mode is ignored by the processor; reject the forms that would read as memory.
    insn.take_modrm().ok_or(GP)?;
    if insn.has_memory() {
        return Err(Trap::UD.into());
    }
    let (number, general) = (insn.reg(), insn.rm());
    match insn.opcode {
        0x20 => {
            let value = env.read_cr(number).ok_or(GP)?;
            regs.set_gpr(general, value);
            Ok(())
        }
        0x21 => {
            let value = env.read_dr(number).ok_or(Trap::UD)?;
            regs.set_gpr(general, value);
            Ok(())
        }
        0x22 => wrote(env.write_cr(number, regs.gpr(general))),
        _ => accept(env.write_dr(number, regs.gpr(general))),
    }
}

fn is_string_io(insn: &Insn<'_>) -> bool {
    !insn.escape && matches!(insn.opcode, 0x6c..=0x6f)
}

/// INS and OUTS, single or repeated.
fn string_io<E: Environment>(pv: &PvCpu, regs: &mut Regs, env: &mut E, insn: Insn<'_>) -> Outcome {
    let (port, size) = (regs.rdx as u16, port_size(&insn));
    // In compatibility mode data segments may have bases that are not known here.
    if !env.is_long_code(regs.cs as u16) || !port_allowed(pv, env, port, size) {
        return Outcome::Inject(GP);
    }
    let width = insn.address_size();
    for _ in 0..STRING_BATCH {
        if insn.rep && regs.rcx & alu::mask(width) == 0 {
            return retire(regs, insn.length());
        }
        if let Err(stop) = string_element(pv, regs, env, &insn, size) {
            return stop.into();
        }
        if !insn.rep {
            return retire(regs, insn.length());
        }
        regs.rcx = merge(regs.rcx, regs.rcx.wrapping_sub(1), width);
    }
    Outcome::Retry
}

fn string_element<E: Environment>(
    pv: &PvCpu,
    regs: &mut Regs,
    env: &mut E,
    insn: &Insn<'_>,
    size: u8,
) -> Step {
    let input = insn.opcode & 2 == 0;
    let (port, width) = (regs.rdx as u16, insn.address_size());
    let step = if regs.rflags & rflags::DF != 0 {
        u64::from(size).wrapping_neg()
    } else {
        u64::from(size)
    };
    let user = if pv.in_kernel {
        0
    } else {
        crate::bounce::PFEC_USER
    };
    if input {
        let address = regs.rdi & alu::mask(width);
        // A device read cannot be undone: first find out, by clearing the target, whether the value can be stored.
        let fault = Trap::page_fault(address, user | crate::bounce::PFEC_WRITE);
        let (clear, _) = NOTHING.split_at(usize::from(size));
        env.memory()
            .write_bytes(GuestVa(address), clear)
            .map_err(|_| fault)?;
        let value = env.port_in(port, size).to_le_bytes();
        let (value, _) = value.split_at(usize::from(size));
        env.memory()
            .write_bytes(GuestVa(address), value)
            .map_err(|_| fault)?;
        regs.rdi = merge(regs.rdi, regs.rdi.wrapping_add(step), width);
    } else {
        let segment: Option<Segment> = insn.segment();
        let base = Insn::segment_base(segment, env.segment_bases());
        let address = base.wrapping_add(regs.rsi & alu::mask(width));
        let mut value = [0_u8; 4];
        let (low, _) = value.split_at_mut(usize::from(size));
        let fault = Trap::page_fault(address, user);
        env.memory()
            .read_bytes(GuestVa(address), low)
            .map_err(|_| fault)?;
        env.port_out(port, size, u32::from_le_bytes(value));
        regs.rsi = merge(regs.rsi, regs.rsi.wrapping_add(step), width);
    }
    Ok(())
}
