// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entering the guest kernel: what is stored on its stack and which registers it starts with.
//!
//! The frame, by ascending address: RCX, R11, \[DS, ES, FS, GS for the failsafe callback\], \[error code\], RIP, CS with
//! the saved upcall mask in byte 4, RFLAGS with IF opposite to that mask, RSP, SS.
//!
//! Invariant: a [`Frame`] exists only for a registered, canonical entry point and for a stack outside the hypervisor's
//! range (XSA-215), whatever route led to it (XSA-259, XSA-298).

use crate::regs::{ORIGIN_SYSRET, Regs};
use crate::state::{Callback, Crash, Gate, PvCpu};
use philoxen_abi::addr::GuestWords;
use philoxen_abi::arch::{self, FLAT_KERNEL_CS64, FLAT_KERNEL_SS64, rflags};
use philoxen_abi::{GuestVa, callback};

/// Flags that the kernel must not inherit from what it interrupted.
const CLEARED: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::VM | rflags::AC;

/// Exception vectors by name.
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid task state.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// Control protection.
    pub const CP: u8 = 21;
}

/// Page-fault error-code bit: the access was a write.
pub const PFEC_WRITE: u32 = 2;
/// Page-fault error-code bit: the access came from user mode.
pub const PFEC_USER: u32 = 4;

/// An exception to raise in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trap {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that have one.
    pub error: Option<u32>,
    /// For page faults that emulation raises: the address for `vcpu_info.arch.cr2`.
    pub cr2: Option<u64>,
}

impl Trap {
    /// An exception; `error` is used only if the vector has an error code.
    #[inline]
    pub const fn new(vector: u8, error: u32) -> Self {
        let error = if has_error_code(vector) {
            Some(error)
        } else {
            None
        };
        Self {
            vector,
            error,
            cr2: None,
        }
    }
    /// `#GP(error)`.
    pub const fn gp(error: u32) -> Self {
        Self::new(vector::GP, error)
    }
    /// `#UD`.
    pub const UD: Self = Self::new(vector::UD, 0);

    /// `#PF` at `address`; `error` as the guest is to see it.
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self {
            vector: vector::PF,
            error: Some(error),
            cr2: Some(address),
        }
    }
    /// `int n` through a gate: no error code whatever the vector.
    pub const fn software(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            cr2: None,
        }
    }
}

/// Whether the processor pushes an error code for `vector`.
#[inline]
pub const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10 | 11 | 12 | 13 | 14 | 17 | 21)
}

/// The page-fault error code as the guest is to see it: the processor reports its kernel, which runs in ring 3, as user.
#[inline(always)]
pub const fn page_fault_error(error: u32, in_kernel: bool) -> u32 {
    if in_kernel { error & !PFEC_USER } else { error }
}

/// A planned entry: `N` words to store and where to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<const N: usize> {
    /// The words, by ascending address.
    pub words: [u64; N],
    /// Where the words go; the first one's address is the kernel's stack pointer.
    pub sp: GuestWords<N>,
    /// Entry point.
    pub rip: u64,
    /// The guest is in user mode: switch to the kernel's page tables and GS base before storing the words.
    pub switch: bool,
    /// Set the upcall mask.
    pub mask: bool,
}

/// A planned exception entry, with or without error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bounce {
    /// No error code.
    Plain(Frame<7>),
    /// With error code.
    Coded(Frame<8>),
}

/// The words all frames end with, and the stack they go to.
struct Base {
    tail: [u64; 5],
    stack: u64,
    switch: bool,
}

/// RFLAGS as the guest sees them: IF is the opposite of the upcall mask, IOPL the virtual one or 0.
#[inline(always)]
fn guest_view(pv: &PvCpu, flags: u64, masked: bool) -> u64 {
    (flags & !(rflags::IF | rflags::IOPL)) | (u64::from(!masked) << 9) | pv.shown_iopl()
}

#[inline(always)]
fn base(pv: &PvCpu, regs: &Regs, masked: bool) -> Base {
    // RPL 0 tells the kernel that it interrupted itself; real selectors always have RPL 3.
    let (stack, cs) = if pv.in_kernel {
        (regs.rsp, regs.cs & 0xfffc)
    } else {
        (pv.kernel_sp, regs.cs & 0xffff)
    };
    let flags = guest_view(pv, regs.rflags, masked);
    Base {
        tail: [
            regs.rip,
            cs | (u64::from(masked) << 32),
            flags,
            regs.rsp,
            regs.ss & 0xffff,
        ],
        stack: stack & !15,
        switch: !pv.in_kernel,
    }
}

/// The `N` words of a frame below `stack`.
#[inline(always)]
fn frame_sp<const N: usize>(stack: u64) -> Result<GuestWords<N>, Crash> {
    let sp = GuestVa(stack.wrapping_sub(8 * N as u64));
    GuestWords::new(sp).ok_or(Crash::BadStack(stack))
}

#[inline(always)]
fn plain(pv: &PvCpu, regs: &Regs, masked: bool, rip: u64, mask: bool) -> Result<Frame<7>, Crash> {
    let Base {
        tail: [a, b, c, d, e],
        stack,
        switch,
    } = base(pv, regs, masked);
    let sp = frame_sp(stack)?;
    Ok(Frame {
        words: [regs.rcx, regs.r11, a, b, c, d, e],
        sp,
        rip,
        switch,
        mask,
    })
}

/// Plans the entry for an application's SYSCALL: the hottest path of all. `masked` is the current upcall mask. The vCPU is in
/// user mode (a kernel's SYSCALL is a hypercall), so the stack is the registered one and the segments are flat.
///
/// # Errors
/// As [`syscall`].
#[inline(always)]
pub fn plan_syscall(pv: &PvCpu, regs: &Regs, masked: bool) -> Result<Frame<7>, Crash> {
    let entry = pv.syscall;
    if !entry.is_set() {
        return Err(Crash::NoCallback(callback::CALLBACKTYPE_SYSCALL));
    }
    let cs = u64::from(arch::FLAT_RING3_CS64) | (u64::from(masked) << 32);
    let ss = u64::from(arch::FLAT_RING3_SS64);
    let flags = guest_view(pv, regs.rflags, masked);
    let words = [regs.rcx, regs.r11, regs.rip, cs, flags, regs.rsp, ss];
    let sp = frame_sp(pv.kernel_sp & !15)?;
    Ok(Frame {
        words,
        sp,
        rip: entry.address(),
        switch: true,
        mask: entry.masks_events(),
    })
}

/// Plans the event upcall.
///
/// # Errors
/// The reason to crash the domain.
#[inline(always)]
pub fn plan_event(pv: &PvCpu, regs: &Regs, masked: bool) -> Result<Frame<7>, Crash> {
    plan_callback(pv, regs, masked, pv.event, callback::CALLBACKTYPE_EVENT)
}

/// Plans an entry through `entry`, one of `pv`'s callbacks (`kind` names it in the error).
///
/// # Errors
/// The reason to crash the domain.
#[inline(always)]
pub fn plan_callback(
    pv: &PvCpu,
    regs: &Regs,
    masked: bool,
    entry: Callback,
    kind: u16,
) -> Result<Frame<7>, Crash> {
    if !entry.is_set() {
        return Err(Crash::NoCallback(kind));
    }
    plain(pv, regs, masked, entry.address(), entry.masks_events())
}

/// Plans the entry for an exception.
///
/// # Errors
/// The reason to crash the domain.
#[inline(always)]
pub fn plan_exception(pv: &PvCpu, regs: &Regs, masked: bool, trap: Trap) -> Result<Bounce, Crash> {
    let gate: Gate = pv.gate(trap.vector);
    let rip = gate.address();
    if rip == 0 {
        return Err(Crash::NoHandler(trap.vector));
    }
    let Some(error) = trap.error else {
        return plain(pv, regs, masked, rip, gate.masks_events()).map(Bounce::Plain);
    };
    let Base {
        tail: [a, b, c, d, e],
        stack,
        switch,
    } = base(pv, regs, masked);
    let sp = frame_sp(stack)?;
    let words = [regs.rcx, regs.r11, u64::from(error), a, b, c, d, e];
    Ok(Bounce::Coded(Frame {
        words,
        sp,
        rip,
        switch,
        mask: gate.masks_events(),
    }))
}

/// Plans the failsafe callback: `regs` is the state that could not be loaded, `selectors` are its DS, ES, FS, GS.
///
/// # Errors
/// The reason to crash the domain.
pub fn plan_failsafe(
    pv: &PvCpu,
    regs: &Regs,
    masked: bool,
    selectors: [u16; 4],
) -> Result<Frame<11>, Crash> {
    let entry = pv.failsafe;
    if !entry.is_set() {
        return Err(Crash::NoCallback(callback::CALLBACKTYPE_FAILSAFE));
    }
    let Base {
        tail: [a, b, c, d, e],
        stack,
        switch,
    } = base(pv, regs, masked);
    let [ds, es, fs, gs] = selectors.map(u64::from);
    let sp = frame_sp(stack)?;
    let words = [regs.rcx, regs.r11, ds, es, fs, gs, a, b, c, d, e];
    Ok(Frame {
        words,
        sp,
        rip: entry.address(),
        switch,
        mask: entry.masks_events(),
    })
}

impl<const N: usize> Frame<N> {
    /// Registers with which the kernel starts. Call after the words are stored.
    #[inline(always)]
    pub fn enter(&self, regs: &mut Regs) {
        regs.rip = self.rip;
        regs.cs = u64::from(FLAT_KERNEL_CS64);
        regs.rsp = self.sp.start().0;
        regs.ss = u64::from(FLAT_KERNEL_SS64);
        regs.rflags &= !CLEARED;
        // The frame holds RCX and R11, the entry point is canonical and the selectors are flat: SYSRET will do.
        regs.origin |= ORIGIN_SYSRET;
    }
}

/// What an entry needs from the vCPU it happens on.
pub trait KernelEntry {
    /// The upcall mask.
    fn upcall_masked(&self) -> bool;
    /// Sets the upcall mask.
    fn mask_upcalls(&mut self);
    /// Leaves user mode: loads the kernel's page tables and swaps the GS bases.
    fn switch_to_kernel(&mut self);
    /// Stores a frame in guest memory; false if that faults.
    fn store<const N: usize>(&mut self, at: GuestWords<N>, words: [u64; N]) -> bool;
}

/// Carries out a planned entry.
///
/// # Errors
/// [`Crash::FrameFault`] if the frame cannot be stored: crash the domain.
#[inline(always)]
pub fn deliver<const N: usize, E: KernelEntry>(
    frame: &Frame<N>,
    pv: &mut PvCpu,
    regs: &mut Regs,
    env: &mut E,
) -> Result<(), Crash> {
    if frame.switch {
        env.switch_to_kernel();
        pv.in_kernel = true;
    }
    if !env.store(frame.sp, frame.words) {
        return Err(Crash::FrameFault(frame.sp.start().0));
    }
    if frame.mask {
        env.mask_upcalls();
    }
    frame.enter(regs);
    Ok(())
}

/// Delivers an application's SYSCALL.
///
/// # Errors
/// The reason to crash the domain; but for [`Crash::NoCallback`], raise `#UD` at the instruction ([`back_to_syscall`]) instead.
#[inline(always)]
pub fn syscall<E: KernelEntry>(pv: &mut PvCpu, regs: &mut Regs, env: &mut E) -> Result<(), Crash> {
    let frame = plan_syscall(pv, regs, env.upcall_masked())?;
    deliver(&frame, pv, regs, env)?;
    regs.rflags &= !rflags::DF;
    Ok(())
}

/// Delivers a 32-bit application's SYSCALL.
///
/// # Errors
/// As [`syscall`].
pub fn syscall32<E: KernelEntry>(
    pv: &mut PvCpu,
    regs: &mut Regs,
    env: &mut E,
) -> Result<(), Crash> {
    let (entry, masked) = (pv.syscall32, env.upcall_masked());
    let frame = plan_callback(pv, regs, masked, entry, callback::CALLBACKTYPE_SYSCALL32)?;
    deliver(&frame, pv, regs, env)?;
    regs.rflags &= !rflags::DF;
    Ok(())
}

/// Goes back to the SYSCALL instruction: it is two bytes long, and the entry saved the address behind it.
pub const fn back_to_syscall(regs: &mut Regs) {
    regs.rip = regs.rip.wrapping_sub(2);
}

/// Delivers SYSENTER: the processor saved neither RIP nor RSP, so the frame says 0 for what the entry code could not
/// know. Without a callback it is `#GP(0)`, with NT clear (XSA-44).
///
/// # Errors
/// The reason to crash the domain.
pub fn sysenter<E: KernelEntry>(pv: &mut PvCpu, regs: &mut Regs, env: &mut E) -> Result<(), Crash> {
    regs.rflags &= !rflags::NT;
    if !pv.sysenter.is_set() {
        return exception(pv, regs, env, Trap::gp(0));
    }
    let (entry, masked) = (pv.sysenter, env.upcall_masked());
    let frame = plan_callback(pv, regs, masked, entry, callback::CALLBACKTYPE_SYSENTER)?;
    deliver(&frame, pv, regs, env)?;
    regs.rflags &= !rflags::DF;
    Ok(())
}

/// Delivers an exception.
///
/// # Errors
/// The reason to crash the domain.
#[inline(always)]
pub fn exception<E: KernelEntry>(
    pv: &mut PvCpu,
    regs: &mut Regs,
    env: &mut E,
    trap: Trap,
) -> Result<(), Crash> {
    match plan_exception(pv, regs, env.upcall_masked(), trap)? {
        Bounce::Plain(frame) => deliver(&frame, pv, regs, env),
        Bounce::Coded(frame) => deliver(&frame, pv, regs, env),
    }
}

/// Delivers `int n`, whose RIP is already behind the instruction, if the guest's gate allows it; else `#GP` with the
/// gate's number at the instruction of `length` bytes (XSA-259: a missing gate is not entered).
///
/// # Errors
/// The reason to crash the domain.
pub fn software_interrupt<E: KernelEntry>(
    pv: &mut PvCpu,
    regs: &mut Regs,
    env: &mut E,
    vector: u8,
    length: u64,
) -> Result<(), Crash> {
    let gate = pv.gate(vector);
    if gate.address() != 0 && gate.allows_software(pv.in_kernel) {
        return exception(pv, regs, env, Trap::software(vector));
    }
    regs.rip = regs.rip.wrapping_sub(length);
    exception(pv, regs, env, Trap::gp(idt_error(vector)))
}

/// Error code that names gate `vector` of the IDT.
pub const fn idt_error(vector: u8) -> u32 {
    ((vector as u32) << 3) | 2
}

/// Delivers the event upcall.
///
/// # Errors
/// The reason to crash the domain.
#[inline]
pub fn event<E: KernelEntry>(pv: &mut PvCpu, regs: &mut Regs, env: &mut E) -> Result<(), Crash> {
    let frame = plan_event(pv, regs, env.upcall_masked())?;
    deliver(&frame, pv, regs, env)
}

/// Delivers an NMI, which the guest must take ([`PvCpu::takes_nmi`]).
///
/// # Errors
/// The reason to crash the domain.
pub fn nmi<E: KernelEntry>(pv: &mut PvCpu, regs: &mut Regs, env: &mut E) -> Result<(), Crash> {
    let (entry, masked) = (pv.nmi(), env.upcall_masked());
    let frame = plan_callback(pv, regs, masked, entry, callback::CALLBACKTYPE_NMI)?;
    deliver(&frame, pv, regs, env)?;
    pv.begin_nmi();
    Ok(())
}

/// Delivers the failsafe callback; `selectors` are DS, ES, FS, GS as the guest should have them. Those that differ from what is
/// loaded could not be; if none does, it was CS, SS or RIP.
///
/// # Errors
/// The reason to crash the domain.
pub fn failsafe<E: KernelEntry>(
    pv: &mut PvCpu,
    regs: &mut Regs,
    env: &mut E,
    selectors: [u16; 4],
) -> Result<(), Crash> {
    let frame = plan_failsafe(pv, regs, env.upcall_masked(), selectors)?;
    deliver(&frame, pv, regs, env)
}

/// True if `cs` can name a code segment of the guest: not null, and of the hypervisor's part of the GDT only the two
/// flat ring-3 code segments.
#[inline]
pub const fn code_selector_ok(cs: u16) -> bool {
    let in_ldt = cs & 4 != 0;
    in_ldt
        || ((cs & !7) != 0
            && ((cs as usize) < arch::FIRST_RESERVED_GDT_BYTE
                || cs | 3 == arch::FLAT_RING3_CS64
                || cs | 3 == arch::FLAT_RING3_CS32))
}
