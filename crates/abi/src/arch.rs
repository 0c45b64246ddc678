// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor side of the interface (xen/arch-x86/xen.h, xen/arch-x86/xen-x86_64.h): selectors of the flat
//! segments, register images, the trap table, the vCPU context and the `iret` frame.
//!
//! Invariant: every structure has exactly the size and offsets of the header, with padding spelled out, so a copy
//! to a guest never carries stale bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First page of a 16-page GDT that belongs to the hypervisor (`FIRST_RESERVED_GDT_PAGE`).
pub const FIRST_RESERVED_GDT_PAGE: usize = 14;
/// First byte of the GDT that belongs to the hypervisor (`FIRST_RESERVED_GDT_BYTE`); also the selector 0xe000.
pub const FIRST_RESERVED_GDT_BYTE: usize = FIRST_RESERVED_GDT_PAGE * 4096;
/// First descriptor number that belongs to the hypervisor (`FIRST_RESERVED_GDT_ENTRY`); a guest's GDT has at most so many.
pub const FIRST_RESERVED_GDT_ENTRY: usize = FIRST_RESERVED_GDT_BYTE / 8;
/// Largest number of LDT entries.
pub const MAX_LDT_ENTRIES: u64 = 8192;

/// Flat 32-bit code segment for ring 3 (`FLAT_RING3_CS32`, `FLAT_USER_CS32`).
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// Flat stack and data segment for ring 3 (`FLAT_RING3_SS64`, `FLAT_RING3_DS32`).
pub const FLAT_RING3_SS64: u16 = 0xe02b;
/// Flat 64-bit code segment for ring 3 (`FLAT_RING3_CS64`).
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// Code segment in which a guest kernel is entered (`FLAT_KERNEL_CS64`).
pub const FLAT_KERNEL_CS64: u16 = FLAT_RING3_CS64;
/// Stack segment in which a guest kernel is entered (`FLAT_KERNEL_SS64`).
pub const FLAT_KERNEL_SS64: u16 = FLAT_RING3_SS64;
/// Data segments of a 64-bit guest: the null selector (`FLAT_KERNEL_DS64`).
pub const FLAT_KERNEL_DS64: u16 = 0;

/// `SEGBASE_FS`: the FS base.
pub const SEGBASE_FS: u64 = 0;
/// `SEGBASE_GS_USER`: the GS base of user mode.
pub const SEGBASE_GS_USER: u64 = 1;
/// `SEGBASE_GS_KERNEL`: the GS base of kernel mode.
pub const SEGBASE_GS_KERNEL: u64 = 2;
/// `SEGBASE_GS_USER_SEL`: load the user GS selector in bits 15..0 of the base.
pub const SEGBASE_GS_USER_SEL: u64 = 3;

/// `VGCF_i387_valid`: `fpu_ctxt` is meaningful.
pub const VGCF_I387_VALID: u64 = 1 << 0;
/// `VGCF_in_kernel`: the vCPU is in kernel mode.
pub const VGCF_IN_KERNEL: u64 = 1 << 2;
/// `VGCF_failsafe_disables_events`: the failsafe callback is entered with events masked.
pub const VGCF_FAILSAFE_DISABLES_EVENTS: u64 = 1 << 3;
/// `VGCF_syscall_disables_events`: the syscall callback is entered with events masked.
pub const VGCF_SYSCALL_DISABLES_EVENTS: u64 = 1 << 4;
/// `VGCF_online`: the vCPU is up.
pub const VGCF_ONLINE: u64 = 1 << 5;
/// `VGCF_in_syscall`, in [`IretContext::flags`] only: R11, RCX, CS and SS of the frame may be discarded.
pub const VGCF_IN_SYSCALL: u64 = 1 << 8;

/// Bits of [`TrapInfo::flags`] that hold the privilege a software interrupt needs (`TI_GET_DPL`).
pub const TI_DPL: u8 = 3;
/// Bit of [`TrapInfo::flags`] that masks events on entry (`TI_GET_IF`).
pub const TI_MASK_EVENTS: u8 = 4;

/// `struct trap_info`: one gate of the guest's virtual IDT. An `address` of 0 ends a list.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrapInfo {
    /// Exception or interrupt vector.
    pub vector: u8,
    /// [`TI_DPL`] and [`TI_MASK_EVENTS`].
    pub flags: u8,
    /// Code selector the guest names; 64-bit kernels are entered in the flat one whatever it says.
    pub cs: u16,
    /// Padding.
    pub pad: u32,
    /// Handler.
    pub address: u64,
}
const _: () = assert!(size_of::<TrapInfo>() == 16);

/// `struct cpu_user_regs`: a vCPU's registers as seen by tools and in `vcpu_guest_context`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(
    missing_docs,
    reason = "the fields are the registers they are named after"
)]
pub struct CpuUserRegs {
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
    /// Private to the hypervisor.
    pub error_code: u32,
    /// Private to the hypervisor.
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub pad0: u16,
    /// 1 if event delivery was masked; RFLAGS.IF is its opposite.
    pub saved_upcall_mask: u8,
    pub pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    pub pad2: [u16; 3],
    pub es: u16,
    pub pad3: [u16; 3],
    pub ds: u16,
    pub pad4: [u16; 3],
    pub fs: u16,
    pub pad5: [u16; 3],
    pub gs: u16,
    pub pad6: [u16; 3],
}
const _: () = assert!(size_of::<CpuUserRegs>() == 200);
const _: () = assert!(core::mem::offset_of!(CpuUserRegs, rip) == 128);
const _: () = assert!(core::mem::offset_of!(CpuUserRegs, saved_upcall_mask) == 140);
const _: () = assert!(core::mem::offset_of!(CpuUserRegs, ss) == 160);

/// `struct vcpu_guest_context`: the whole state of a vCPU (`VCPUOP_initialise`, domctl).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuGuestContext {
    /// FPU state in FXSAVE form.
    pub fpu_ctxt: [u8; 512],
    /// `VGCF_*`.
    pub flags: u64,
    /// General registers.
    pub user_regs: CpuUserRegs,
    /// Virtual IDT.
    pub trap_ctxt: [TrapInfo; 256],
    /// Linear address of the LDT.
    pub ldt_base: u64,
    /// Descriptors in the LDT.
    pub ldt_ents: u64,
    /// Machine frames of the GDT.
    pub gdt_frames: [u64; 16],
    /// Descriptors in the GDT.
    pub gdt_ents: u64,
    /// Stack selector for entries from user mode.
    pub kernel_ss: u64,
    /// Stack pointer for entries from user mode.
    pub kernel_sp: u64,
    /// CR0 to CR7; the user page table is in number 1.
    pub ctrlreg: [u64; 8],
    /// DR0 to DR7.
    pub debugreg: [u64; 8],
    /// Event callback.
    pub event_callback_eip: u64,
    /// Failsafe callback.
    pub failsafe_callback_eip: u64,
    /// 64-bit system-call callback.
    pub syscall_callback_eip: u64,
    /// `VMASST_TYPE_*` bitmap.
    pub vm_assist: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base of kernel mode.
    pub gs_base_kernel: u64,
    /// GS base of user mode.
    pub gs_base_user: u64,
}
const _: () = assert!(size_of::<VcpuGuestContext>() == 5168);
const _: () = assert!(core::mem::offset_of!(VcpuGuestContext, trap_ctxt) == 720);
const _: () = assert!(core::mem::offset_of!(VcpuGuestContext, kernel_ss) == 4968);
const _: () = assert!(core::mem::offset_of!(VcpuGuestContext, event_callback_eip) == 5112);

/// `struct iret_context`: what the `iret` hypercall finds at the guest's stack pointer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(
    missing_docs,
    reason = "the fields are the registers they are named after"
)]
pub struct IretContext {
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    /// [`VGCF_IN_SYSCALL`] or nothing.
    pub flags: u64,
    pub rip: u64,
    /// Bits 1..0 of 3 mean user mode; anything less means kernel mode.
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}
const _: () = assert!(size_of::<IretContext>() == 72);

impl From<[u64; 9]> for IretContext {
    /// The context whose words, by ascending address, are these.
    #[inline(always)]
    fn from([rax, r11, rcx, flags, rip, cs, rflags, rsp, ss]: [u64; 9]) -> Self {
        Self {
            rax,
            r11,
            rcx,
            flags,
            rip,
            cs,
            rflags,
            rsp,
            ss,
        }
    }
}

/// RFLAGS bits by name.
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Reads as 1.
    pub const FIXED: u64 = 1 << 1;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single step.
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// String direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume: no instruction breakpoint on the next instruction.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check.
    pub const AC: u64 = 1 << 18;
    /// CPUID can be used if this can be changed.
    pub const ID: u64 = 1 << 21;
}

/// `struct xen_cpuid_leaf` without the key: what CPUID returns.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CpuidRegs {
    /// EAX.
    pub a: u32,
    /// EBX.
    pub b: u32,
    /// ECX.
    pub c: u32,
    /// EDX.
    pub d: u32,
}

/// CPUID leaves of the hypervisor (xen/arch-x86/cpuid.h).
pub mod cpuid {
    /// `XEN_CPUID_FIRST_LEAF`.
    pub const FIRST_LEAF: u32 = 0x4000_0000;
    /// Offset of the last leaf (`XEN_CPUID_MAX_NUM_LEAVES`).
    pub const MAX_NUM_LEAVES: u32 = 5;
    /// "XenV".
    pub const SIGNATURE_EBX: u32 = 0x566e_6558;
    /// "MMXe".
    pub const SIGNATURE_ECX: u32 = 0x6558_4d4d;
    /// "nVMM".
    pub const SIGNATURE_EDX: u32 = 0x4d4d_566e;
    /// `XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD`.
    pub const FEAT1_PRESERVE_AD: u32 = 1;
    /// First MSR of the hypervisor: a write fills the hypercall page named in bits 63..12.
    pub const HYPERCALL_MSR: u32 = 0x4000_0000;
    /// `XEN_EMULATE_PREFIX`: bytes in front of CPUID that ask for the emulated instruction.
    pub const EMULATE_PREFIX: [u8; 5] = [0x0f, 0x0b, 0x78, 0x65, 0x6e];
}
