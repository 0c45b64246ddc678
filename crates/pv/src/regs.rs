// SPDX-License-Identifier: MIT OR Apache-2.0
//! The register frame that an entry from a guest leaves at the top of the processor's stack.
//!
//! Invariant: field order and size are those of the entry assembly's pushes; the asserts below hold them.

use philoxen_abi::addr::is_canonical;
use philoxen_abi::arch::{CpuUserRegs, rflags};

/// In [`Regs::origin`]: leave by SYSRET. RCX and R11 are dead, CS and SS become the flat ring-3 ones, and RIP has
/// been found canonical (SYSRET to a non-canonical address faults in ring 0 on some processors: XSA-7).
pub const ORIGIN_SYSRET: u32 = 1;

/// RFLAGS bits a guest may have at will in ring 3. NT is not one of them (XSA-44, XSA-339), nor are IF and IOPL (XSA-202).
pub const RFLAGS_GUEST: u64 = rflags::CF
    | rflags::PF
    | rflags::AF
    | rflags::ZF
    | rflags::SF
    | rflags::TF
    | rflags::DF
    | rflags::OF
    | rflags::RF
    | rflags::AC
    | rflags::ID;

/// RFLAGS for a return to a guest: `wanted` reduced to what a guest may set, IF on, IOPL 0.
#[inline(always)]
pub const fn guest_rflags(wanted: u64) -> u64 {
    (wanted & RFLAGS_GUEST) | rflags::IF | rflags::FIXED
}

/// A guest's registers while it is interrupted. The last five words are what the processor pushes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields are the registers they are named after"
)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Vector of the entry.
    pub vector: u32,
    /// `ORIGIN_*` flags: set by the entry, changed by policy, read by the exit.
    pub origin: u32,
    /// The processor's error code, or 0.
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}
const _: () = assert!(size_of::<Regs>() == 22 * 8);
const _: () = assert!(core::mem::offset_of!(Regs, vector) == 120);
const _: () = assert!(core::mem::offset_of!(Regs, rip) == 136);

impl Regs {
    /// General register `number` (0 is RAX, 4 is RSP, as instructions encode them; only four bits count).
    #[inline]
    pub const fn gpr(&self, number: u8) -> u64 {
        match number & 15 {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            4 => self.rsp,
            5 => self.rbp,
            6 => self.rsi,
            7 => self.rdi,
            8 => self.r8,
            9 => self.r9,
            10 => self.r10,
            11 => self.r11,
            12 => self.r12,
            13 => self.r13,
            14 => self.r14,
            _ => self.r15,
        }
    }

    /// Sets general register `number`.
    #[inline]
    pub const fn set_gpr(&mut self, number: u8, value: u64) {
        match number & 15 {
            0 => self.rax = value,
            1 => self.rcx = value,
            2 => self.rdx = value,
            3 => self.rbx = value,
            4 => self.rsp = value,
            5 => self.rbp = value,
            6 => self.rsi = value,
            7 => self.rdi = value,
            8 => self.r8 = value,
            9 => self.r9 = value,
            10 => self.r10 = value,
            11 => self.r11 = value,
            12 => self.r12 = value,
            13 => self.r13 = value,
            14 => self.r14 = value,
            _ => self.r15 = value,
        }
    }

    /// Writes the EDX:EAX pair as RDMSR and RDTSC do: upper halves become 0.
    #[inline]
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.rax = value & 0xffff_ffff;
        self.rdx = value >> 32;
    }

    /// The EDX:EAX pair.
    #[inline]
    pub const fn edx_eax(&self) -> u64 {
        (self.rdx << 32) | (self.rax & 0xffff_ffff)
    }

    /// Arguments of a hypercall in order: RDI, RSI, RDX, R10, R8.
    #[inline(always)]
    pub const fn hypercall_args(&self) -> [u64; 5] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8]
    }

    /// Makes an arbitrary register image safe to return to: ring 3 selectors and [`guest_rflags`]. True if RIP is
    /// canonical; if not, the caller must not run it.
    #[inline]
    pub const fn sanitise(&mut self) -> bool {
        self.cs = (self.cs & 0xffff) | 3;
        self.ss = (self.ss & 0xffff) | 3;
        self.rflags = guest_rflags(self.rflags);
        is_canonical(self.rip)
    }

    /// Last check before the exit: if SYSRET was wanted but RIP is not canonical (a system call at the end of the lower
    /// half), falls back to IRET, whose fault is taken in the hypervisor's fix-up (XSA-7).
    #[inline(always)]
    pub const fn check_exit(&mut self) {
        if !is_canonical(self.rip) {
            self.origin &= !ORIGIN_SYSRET;
        }
    }

    /// The frame for a vCPU context given by a guest or a tool, made safe; `None` if RIP is not canonical.
    pub fn from_context(user: &CpuUserRegs) -> Option<Self> {
        let mut regs = Self {
            r15: user.r15,
            r14: user.r14,
            r13: user.r13,
            r12: user.r12,
            rbp: user.rbp,
            rbx: user.rbx,
            r11: user.r11,
            r10: user.r10,
            r9: user.r9,
            r8: user.r8,
            rax: user.rax,
            rcx: user.rcx,
            rdx: user.rdx,
            rsi: user.rsi,
            rdi: user.rdi,
            vector: 0,
            origin: 0,
            error_code: 0,
            rip: user.rip,
            cs: user.cs.into(),
            rflags: user.rflags,
            rsp: user.rsp,
            ss: user.ss.into(),
        };
        regs.sanitise().then_some(regs)
    }

    /// The image a tool sees. `selectors` are ES, DS, FS, GS; `masked` is the upcall mask, shown as RFLAGS.IF.
    pub fn to_context(&self, selectors: [u16; 4], masked: bool) -> CpuUserRegs {
        let [es, ds, fs, gs] = selectors;
        CpuUserRegs {
            r15: self.r15,
            r14: self.r14,
            r13: self.r13,
            r12: self.r12,
            rbp: self.rbp,
            rbx: self.rbx,
            r11: self.r11,
            r10: self.r10,
            r9: self.r9,
            r8: self.r8,
            rax: self.rax,
            rcx: self.rcx,
            rdx: self.rdx,
            rsi: self.rsi,
            rdi: self.rdi,
            error_code: 0,
            entry_vector: 0,
            rip: self.rip,
            cs: self.cs as u16,
            pad0: 0,
            saved_upcall_mask: masked.into(),
            pad1: [0; 3],
            rflags: (self.rflags & !rflags::IF) | if masked { 0 } else { rflags::IF },
            rsp: self.rsp,
            ss: self.ss as u16,
            pad2: [0; 3],
            es,
            pad3: [0; 3],
            ds,
            pad4: [0; 3],
            fs,
            pad5: [0; 3],
            gs,
            pad6: [0; 3],
        }
    }
}
