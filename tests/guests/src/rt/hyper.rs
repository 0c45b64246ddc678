// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls: the one instruction, and a thin function for each call that several themes use.
//!
//! The structures are written down here a second time, apart from `philoxen-abi`: a test that shared the
//! hypervisor's own definitions would agree with its mistakes. Numbers and error codes are shared.

use core::arch::asm;
use philoxen_abi::hypercall as nr;

/// This domain (`DOMID_SELF`).
pub const SELF: u64 = 0x7ff0;
/// Machine addresses that are not RAM (`DOMID_IO`).
pub const IO: u64 = 0x7ff1;
/// The hypervisor's frames (`DOMID_XEN`).
pub const XEN: u64 = 0x7ff2;

/// Makes hypercall `number`; the result is what the hypervisor left in `rax`.
pub fn call(number: u64, args: [u64; 5]) -> i64 {
    let [a, b, c, d, e] = args;
    let mut rax = number;
    // SAFETY: a hypercall changes rax, rcx, r11 and (by the interface) may change its argument registers. Memory it
    // writes is reached through pointers that the caller passed, and the clobber is assumed (no `nomem`).
    unsafe {
        #[cfg(not(feature = "legacy-layout"))]
        asm!("syscall",
            inlateout("rax") rax, inlateout("rdi") a => _, inlateout("rsi") b => _, inlateout("rdx") c => _,
            inlateout("r10") d => _, inlateout("r8") e => _, lateout("rcx") _, lateout("r11") _);
        #[cfg(feature = "legacy-layout")]
        asm!("shl eax, 5", "lea r9, [rip + guest_hypercall_page]", "add rax, r9", "call rax",
            inlateout("rax") rax, inlateout("rdi") a => _, inlateout("rsi") b => _, inlateout("rdx") c => _,
            inlateout("r10") d => _, inlateout("r8") e => _, lateout("rcx") _, lateout("r11") _,
            lateout("r9") _);
    }
    rax as i64
}

/// [`call`] by the instruction whatever the layout: for numbers that the hypercall page has no entry for.
pub fn call_inline(number: u64, args: [u64; 5]) -> i64 {
    let [a, b, c, d, e] = args;
    let mut rax = number;
    // SAFETY: as in `call`.
    unsafe {
        asm!("syscall",
            inlateout("rax") rax, inlateout("rdi") a => _, inlateout("rsi") b => _, inlateout("rdx") c => _,
            inlateout("r10") d => _, inlateout("r8") e => _, lateout("rcx") _, lateout("r11") _);
    }
    rax as i64
}

/// The address of a structure for the hypervisor to read or write.
pub fn address<T>(value: &mut T) -> u64 {
    core::ptr::from_mut(value) as u64
}

/// `struct mmu_update`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MmuUpdate {
    /// Machine address of the entry, sub-command in the low two bits.
    pub ptr: u64,
    /// New contents.
    pub val: u64,
}

/// `mmu_update`: result, and the number of requests done (`u32::MAX` if not written).
pub fn mmu_update(requests: &mut [MmuUpdate], foreign: u64) -> (i64, u32) {
    let mut done = u32::MAX;
    let count = requests.len() as u64;
    let args = [
        requests.as_mut_ptr() as u64,
        count,
        address(&mut done),
        foreign,
        0,
    ];
    (call(nr::MMU_UPDATE, args), done)
}

/// One `mmu_update` request on ourselves.
pub fn mmu_one(ptr: u64, val: u64) -> i64 {
    mmu_update(&mut [MmuUpdate { ptr, val }], SELF).0
}

/// `update_va_mapping`.
pub fn update_va_mapping(va: u64, pte: u64, flags: u64) -> i64 {
    call(nr::UPDATE_VA_MAPPING, [va, pte, flags, 0, 0])
}

/// `struct mmuext_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MmuExt {
    /// Sub-command.
    pub cmd: u32,
    /// Padding.
    pub pad: u32,
    /// Frame or linear address.
    pub arg1: u64,
    /// Count, bitmap pointer or source frame.
    pub arg2: u64,
}

/// Sub-commands of `mmuext_op`.
pub mod ext {
    #![allow(missing_docs, reason = "the names are the interface's")]
    pub const PIN_L1: u32 = 0;
    pub const PIN_L2: u32 = 1;
    pub const PIN_L3: u32 = 2;
    pub const PIN_L4: u32 = 3;
    pub const UNPIN: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const TLB_FLUSH_MULTI: u32 = 8;
    pub const INVLPG_MULTI: u32 = 9;
    pub const TLB_FLUSH_ALL: u32 = 10;
    pub const INVLPG_ALL: u32 = 11;
    pub const FLUSH_CACHE: u32 = 12;
    pub const SET_LDT: u32 = 13;
    pub const NEW_USER_BASEPTR: u32 = 15;
    pub const CLEAR_PAGE: u32 = 16;
    pub const COPY_PAGE: u32 = 17;
    pub const FLUSH_CACHE_GLOBAL: u32 = 18;
    pub const MARK_SUPER: u32 = 19;
    pub const UNMARK_SUPER: u32 = 20;
}

/// `mmuext_op`: result, and the number of operations done (`u32::MAX` if not written).
pub fn mmuext(ops: &mut [MmuExt], foreign: u64) -> (i64, u32) {
    let mut done = u32::MAX;
    let args = [
        ops.as_mut_ptr() as u64,
        ops.len() as u64,
        address(&mut done),
        foreign,
        0,
    ];
    (call(nr::MMUEXT_OP, args), done)
}

/// One `mmuext_op` on ourselves.
pub fn mmuext_one(cmd: u32, arg1: u64, arg2: u64) -> i64 {
    mmuext(
        &mut [MmuExt {
            cmd,
            pad: 0,
            arg1,
            arg2,
        }],
        SELF,
    )
    .0
}

/// `memory_op`.
pub fn memory_op<T>(cmd: u64, argument: &mut T) -> i64 {
    call(nr::MEMORY_OP, [cmd, address(argument), 0, 0, 0])
}

/// `struct xen_memory_reservation`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Reservation {
    /// Address of the list of frames.
    pub extents: u64,
    /// Length of the list.
    pub count: u64,
    /// log2 of the pages in an extent.
    pub order: u32,
    /// Flags; the low byte limits the address bits.
    pub flags: u32,
    /// Whose memory.
    pub domid: u16,
    /// Padding.
    pub pad: [u16; 3],
}

/// `struct xen_memory_exchange`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Exchange {
    /// What is given.
    pub input: Reservation,
    /// What is wanted; the list holds frame numbers of the caller (PFNs) and is overwritten by the new MFNs.
    pub output: Reservation,
    /// Input extents done.
    pub exchanged: u64,
}

/// `event_channel_op`.
pub fn event_op<T>(cmd: u64, argument: &mut T) -> i64 {
    call(nr::EVENT_CHANNEL_OP, [cmd, address(argument), 0, 0, 0])
}

/// `vcpu_op`.
pub fn vcpu_op<T>(cmd: u64, vcpu: u64, argument: &mut T) -> i64 {
    call(nr::VCPU_OP, [cmd, vcpu, address(argument), 0, 0])
}

/// `sched_op`.
pub fn sched_op<T>(cmd: u64, argument: &mut T) -> i64 {
    call(nr::SCHED_OP, [cmd, address(argument), 0, 0, 0])
}

/// Powers the machine off (`SCHEDOP_shutdown`, `SHUTDOWN_poweroff`).
pub fn power_off() -> ! {
    let mut reason = 0_u32;
    loop {
        sched_op(2, &mut reason);
    }
}

/// `struct multicall_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Multicall {
    /// Hypercall number.
    pub op: u64,
    /// What it returned.
    pub result: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// `multicall`.
pub fn multicall(calls: &mut [Multicall]) -> i64 {
    call(
        nr::MULTICALL,
        [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0],
    )
}
