// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU's kernel has told us about itself: trap table, callbacks, kernel stack, I/O privilege.
//!
//! Invariant: every entry address kept here is canonical, checked when it was registered, so entering the kernel needs
//! no check of it (XSA-298: an address of 0 means "not registered" and is never entered).

use crate::bounce::vector;
use core::fmt;
use philoxen_abi::addr::is_canonical;
use philoxen_abi::arch::{self, TrapInfo};
use philoxen_abi::{Errno, Result, callback};

/// Why a domain cannot go on. Its `Display` form is for the crash message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// An exception for which the kernel has no handler.
    NoHandler(u8),
    /// A callback the kernel has not registered (`CALLBACKTYPE_*`).
    NoCallback(u16),
    /// The kernel stack lies in the hypervisor's range or is not canonical.
    BadStack(u64),
    /// The exception frame could not be stored at this address.
    FrameFault(u64),
    /// The frame of `iret` could not be read at this address.
    IretFrameFault(u64),
    /// `iret` to user mode without user page tables.
    NoUserTables,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHandler(vector) => write!(f, "no handler for exception {vector:#x}"),
            Self::NoCallback(kind) => write!(f, "callback {kind} is not registered"),
            Self::BadStack(sp) => write!(f, "kernel stack {sp:#x} is not the guest's"),
            Self::FrameFault(sp) => write!(f, "exception frame at {sp:#x} cannot be stored"),
            Self::IretFrameFault(sp) => write!(f, "iret frame at {sp:#x} cannot be read"),
            Self::NoUserTables => write!(f, "iret to user mode without user page tables"),
        }
    }
}

/// One way into the guest kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Callback {
    address: u64,
    mask_events: bool,
}

impl Callback {
    /// Not registered.
    pub const NONE: Self = Self {
        address: 0,
        mask_events: false,
    };

    /// A callback at `address`; `None` if it is not canonical.
    pub const fn new(address: u64, mask_events: bool) -> Option<Self> {
        if is_canonical(address) {
            Some(Self {
                address,
                mask_events,
            })
        } else {
            None
        }
    }
    /// The entry point; 0 if not registered.
    #[inline(always)]
    pub const fn address(self) -> u64 {
        self.address
    }
    /// Whether events are masked on entry.
    #[inline(always)]
    pub const fn masks_events(self) -> bool {
        self.mask_events
    }
    /// Whether there is an entry point.
    #[inline(always)]
    pub const fn is_set(self) -> bool {
        self.address != 0
    }
}

/// One gate of the virtual IDT, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gate {
    address: u64,
    cs: u16,
    flags: u8,
}

impl Gate {
    const NONE: Self = Self {
        address: 0,
        cs: 0,
        flags: 0,
    };

    /// Entry point; 0 if the kernel has none.
    #[inline(always)]
    pub const fn address(self) -> u64 {
        self.address
    }
    /// Whether events are masked on entry.
    #[inline(always)]
    pub const fn masks_events(self) -> bool {
        self.flags & arch::TI_MASK_EVENTS != 0
    }
    /// Whether `int n` may use the gate: level 0 nobody, 1 and 2 the kernel, 3 everyone.
    #[inline]
    pub const fn allows_software(self, in_kernel: bool) -> bool {
        self.flags & arch::TI_DPL >= if in_kernel { 1 } else { 3 }
    }
}

/// The PV state of one vCPU that exception delivery and emulation need.
#[derive(Clone, Debug)]
pub struct PvCpu {
    traps: [Gate; 256],
    /// Stack selector from `stack_switch`, kept for tools; entries use the flat one.
    pub kernel_ss: u16,
    /// Stack for entries from user mode.
    pub kernel_sp: u64,
    /// True while the guest's kernel runs, false in its user mode.
    pub in_kernel: bool,
    /// Event upcall.
    pub event: Callback,
    /// Entered when the guest's state cannot be loaded.
    pub failsafe: Callback,
    /// SYSCALL by 64-bit applications.
    pub syscall: Callback,
    /// SYSCALL by 32-bit applications.
    pub syscall32: Callback,
    /// SYSENTER.
    pub sysenter: Callback,
    iopl: u8,
    architectural_iopl: bool,
    /// An NMI was delivered whose handler has not returned.
    in_nmi: bool,
    /// `iret` has to look at one of the two: kept together so that it looks once.
    iret_work: bool,
    shown_iopl: u64,
}

impl Default for PvCpu {
    fn default() -> Self {
        Self::new()
    }
}

impl PvCpu {
    /// A vCPU at its first instruction: in kernel mode, nothing registered, I/O privilege 0.
    pub const fn new() -> Self {
        Self {
            traps: [Gate::NONE; 256],
            kernel_ss: 0,
            kernel_sp: 0,
            in_kernel: true,
            event: Callback::NONE,
            failsafe: Callback::NONE,
            syscall: Callback::NONE,
            syscall32: Callback::NONE,
            sysenter: Callback::NONE,
            iopl: 0,
            architectural_iopl: false,
            in_nmi: false,
            iret_work: false,
            shown_iopl: 0,
        }
    }

    /// The gate of `vector`.
    #[inline(always)]
    pub fn gate(&self, vector: u8) -> Gate {
        self.traps
            .get(usize::from(vector))
            .copied()
            .unwrap_or(Gate::NONE)
    }

    /// Registers one gate (`set_trap_table`, vCPU context); an address of 0 removes it.
    ///
    /// # Errors
    /// `EINVAL` if the address is not canonical; nothing is changed then.
    pub fn set_gate(&mut self, trap: &TrapInfo) -> Result<()> {
        if !is_canonical(trap.address) {
            return Err(Errno::EINVAL);
        }
        if let Some(gate) = self.traps.get_mut(usize::from(trap.vector)) {
            let flags = trap.flags & (arch::TI_DPL | arch::TI_MASK_EVENTS);
            *gate = Gate {
                address: trap.address,
                cs: trap.cs,
                flags,
            };
        }
        Ok(())
    }

    /// Removes every gate (`set_trap_table(NULL)`).
    pub fn clear_gates(&mut self) {
        self.traps = [Gate::NONE; 256];
    }

    /// The gate of `vector` in the form a tool sees.
    pub fn trap_info(&self, vector: u8) -> TrapInfo {
        let gate = self.gate(vector);
        TrapInfo {
            vector,
            flags: gate.flags,
            cs: gate.cs,
            pad: 0,
            address: gate.address,
        }
    }

    /// `CALLBACKOP_register`: `flags` as in [`callback::CallbackRegister`].
    ///
    /// # Errors
    /// `EINVAL` if the address is not canonical, `ENOSYS` for a type that does not exist here.
    pub fn register_callback(&mut self, kind: u16, flags: u16, address: u64) -> Result<()> {
        let mask = flags & callback::CALLBACKF_MASK_EVENTS != 0;
        let wanted = Callback::new(address, mask).ok_or(Errno::EINVAL)?;
        match kind {
            // Event and NMI entries mask events whatever the flag says.
            callback::CALLBACKTYPE_EVENT => {
                self.event = Callback {
                    mask_events: true,
                    ..wanted
                };
            }
            callback::CALLBACKTYPE_FAILSAFE => self.failsafe = wanted,
            callback::CALLBACKTYPE_SYSCALL => self.syscall = wanted,
            callback::CALLBACKTYPE_SYSCALL32 => self.syscall32 = wanted,
            callback::CALLBACKTYPE_SYSENTER => self.sysenter = wanted,
            callback::CALLBACKTYPE_NMI => self.set_nmi_gate(address),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(())
    }

    /// `CALLBACKOP_unregister`.
    ///
    /// # Errors
    /// `EINVAL` for callbacks that must stay, `ENOSYS` for a type that does not exist here.
    pub fn unregister_callback(&mut self, kind: u16) -> Result<()> {
        match kind {
            callback::CALLBACKTYPE_EVENT
            | callback::CALLBACKTYPE_FAILSAFE
            | callback::CALLBACKTYPE_SYSCALL
            | callback::CALLBACKTYPE_SYSCALL32
            | callback::CALLBACKTYPE_SYSENTER => Err(Errno::EINVAL),
            callback::CALLBACKTYPE_NMI => {
                self.set_nmi_gate(0);
                Ok(())
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    /// The NMI callback is the gate of vector 2: so the trap table, which is saved with the vCPU, has it.
    fn set_nmi_gate(&mut self, address: u64) {
        if let Some(gate) = self.traps.get_mut(usize::from(vector::NMI)) {
            *gate = Gate {
                address,
                cs: if address == 0 {
                    0
                } else {
                    arch::FLAT_KERNEL_CS64
                },
                flags: 0,
            };
        }
    }

    /// Where NMIs go.
    pub(crate) fn nmi(&self) -> Callback {
        Callback {
            address: self.gate(vector::NMI).address,
            mask_events: true,
        }
    }

    /// The virtual I/O privilege level.
    pub const fn iopl(&self) -> u8 {
        self.iopl
    }

    /// Sets the virtual I/O privilege level (`PHYSDEVOP_set_iopl`).
    ///
    /// # Errors
    /// `EINVAL` above 3.
    pub fn set_iopl(&mut self, iopl: u32) -> Result<()> {
        self.iopl = u8::try_from(iopl)
            .ok()
            .filter(|level| *level <= 3)
            .ok_or(Errno::EINVAL)?;
        self.update_shown();
        Ok(())
    }

    /// `VMASST_TYPE_architectural_iopl`: show the virtual level in RFLAGS and take it back at `iret`.
    pub fn set_architectural_iopl(&mut self, on: bool) {
        self.architectural_iopl = on;
        self.update_shown();
    }

    /// Whether I/O instructions, CLI and STI are allowed by the virtual level. The kernel counts as ring 1.
    #[inline]
    pub const fn iopl_allows(&self) -> bool {
        self.iopl >= if self.in_kernel { 1 } else { 3 }
    }

    /// IOPL bits to show in a guest-visible RFLAGS.
    #[inline(always)]
    pub(crate) const fn shown_iopl(&self) -> u64 {
        self.shown_iopl
    }

    /// Takes the level from RFLAGS of an `iret` frame if the assist is on, and ends an NMI.
    #[inline(always)]
    pub(crate) fn note_iret(&mut self, rflags: u64) {
        if self.iret_work {
            self.iret_does(rflags);
        }
    }

    #[cold]
    fn iret_does(&mut self, rflags: u64) {
        self.in_nmi = false;
        if self.architectural_iopl {
            self.iopl = ((rflags & arch::rflags::IOPL) >> 12) as u8;
        }
        self.update_shown();
    }

    /// True if an NMI can be delivered: there is a callback, and no NMI is being handled.
    pub fn takes_nmi(&self) -> bool {
        self.nmi().is_set() && !self.in_nmi
    }

    /// Until the next `iret` no NMI is delivered.
    pub(crate) fn begin_nmi(&mut self) {
        self.in_nmi = true;
        self.update_shown();
    }

    fn update_shown(&mut self) {
        self.iret_work = self.architectural_iopl || self.in_nmi;
        self.shown_iopl = if self.architectural_iopl {
            u64::from(self.iopl) << 12
        } else {
            0
        };
    }
}
