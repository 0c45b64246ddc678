// SPDX-License-Identifier: MIT OR Apache-2.0
//! GDT, TSS and IDT (Intel SDM volume 3, chapters 3, 6 and 8).
//!
//! The GDT of a processor is its 64 KiB window: guest descriptors in the first 14 pages, ours in the page at
//! selector 0xe000. Guests know the flat selectors of that page (`FLAT_*` in xen/arch-x86/xen-x86_64.h).

use super::percpu::{self, CpuId};
use crate::memory;
use core::arch::asm;
use spin::Once;

/// Our 64-bit code segment.
pub const HYPERVISOR_CS: u16 = 0xe008;
const HYPERVISOR_DS: u16 = 0xe010;
const TSS_SELECTOR: u16 = 0xe040;
const LDT_SELECTOR: u16 = 0xe050;
/// Offset of our descriptors in the GDT window.
const RESERVED: u64 = 0xe000;

/// Stack of the double-fault, NMI, machine-check and debug handlers: numbers in the TSS's interrupt stack table.
const IST_DOUBLE_FAULT: u8 = 1;
const IST_NMI: u8 = 2;
const IST_MACHINE_CHECK: u8 = 3;
const IST_DEBUG: u8 = 4;

/// Task-state segment of 64-bit mode: stack of ring 0, interrupt stacks, no I/O bitmap.
#[repr(C, packed(4))]
pub struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    iomap_base: u16,
}

impl Tss {
    /// A TSS whose ring-0 stack begins at `rsp0` and whose first interrupt stacks are `ist`.
    pub const fn new(rsp0: u64, ist: [u64; 4]) -> Self {
        Self {
            reserved0: 0,
            rsp: [rsp0, 0, 0],
            reserved1: 0,
            ist: [ist[0], ist[1], ist[2], ist[3], 0, 0, 0],
            reserved2: 0,
            reserved3: 0,
            iomap_base: size_of::<Self>() as u16,
        }
    }
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Low word of a 16-byte system descriptor (TSS type 9, LDT type 2).
const fn system_low(base: u64, limit: u64, kind: u64) -> u64 {
    (limit & 0xffff) | (base & 0xff_ffff) << 16 | kind << 40 | 1 << 47 | (base >> 24 & 0xff) << 56
}

/// Makes our page of the GDT of `cpu`. Once per processor, on any processor.
pub(super) fn prepare(cpu: CpuId) {
    let window = percpu::gdt_window(cpu);
    let tss = percpu::tss_address(cpu);
    let page = memory::alloc_hypervisor_page();
    memory::map_hypervisor_page(window + RESERVED, page, memory::RW);
    let entries: [u64; 10] = [
        0,
        0x00af_9b00_0000_ffff, // 0xe008 our 64-bit code
        0x00cf_9300_0000_ffff, // 0xe010 our data
        0x00cf_bb00_0000_ffff, // 0xe019 ring-1 32-bit code
        0x00cf_fb00_0000_ffff, // 0xe023 ring-3 32-bit code
        0x00cf_f300_0000_ffff, // 0xe02b ring-3 data
        0x00af_fb00_0000_ffff, // 0xe033 ring-3 64-bit code
        0x00cf_9b00_0000_ffff, // 0xe038 our 32-bit code
        system_low(tss, size_of::<Tss>() as u64 - 1, 9),
        tss >> 32,
    ];
    // SAFETY: the window page was mapped just now, writable; only its processor uses it.
    unsafe { ((window + RESERVED) as *mut [u64; 10]).write(entries) };
}

/// Loads GDT, TSS and IDT of `cpu`, which is the processor that runs this.
pub(super) fn load(cpu: CpuId) {
    let window = percpu::gdt_window(cpu);
    let gdt = Pointer {
        limit: 0xefff,
        base: window,
    };
    let idt = Pointer {
        limit: 0xfff,
        base: idt().as_ptr() as u64,
    };
    // SAFETY: the table is valid as filled above, and stays mapped; CS is reloaded by a far return to the next line.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "push {cs}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ss, {ds:e}",
            "mov ds, {zero:e}",
            "mov es, {zero:e}",
            "mov fs, {zero:e}",
            "mov gs, {zero:e}",
            "lidt [{idt}]",
            "ltr {tss:x}",
            "lldt {zero:x}",
            gdt = in(reg) &gdt,
            idt = in(reg) &idt,
            cs = in(reg) u64::from(HYPERVISOR_CS),
            ds = in(reg) u32::from(HYPERVISOR_DS),
            tss = in(reg) u32::from(TSS_SELECTOR),
            zero = in(reg) 0,
            tmp = out(reg) _,
        )
    };
}

/// Makes this processor's LDT the first `entries` descriptors of its LDT window; 0 means none.
pub(super) fn set_ldt(cpu: CpuId, entries: u64) {
    let (low, high) = if entries == 0 {
        (0, 0)
    } else {
        let base = percpu::ldt_window(cpu);
        (system_low(base, entries * 8 - 1, 2), base >> 32)
    };
    let slot = (percpu::gdt_window(cpu) + u64::from(LDT_SELECTOR)) as *mut [u64; 2];
    let selector = if entries == 0 { 0 } else { LDT_SELECTOR };
    // SAFETY: the slot lies in our own page of this processor's GDT.
    unsafe { slot.write([low, high]) };
    // SAFETY: the descriptor was written above; its window pages hold validated descriptors or are not mapped.
    unsafe { asm!("lldt {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

type Idt = [[u64; 2]; 256];

/// The interrupt table, the same for every processor: each vector leads to its 16-byte stub in entry.rs.
///
/// Gates 3, 4 and 0x80 may be called by guests (`int3`, `into`, 32-bit system calls); any other `int n` raises
/// #GP, whose handler looks the vector up in the guest's own table.
fn idt() -> &'static Idt {
    static IDT: Once<Idt> = Once::new();
    IDT.call_once(|| {
        let mut table = [[0; 2]; 256];
        for (vector, gate) in table.iter_mut().enumerate() {
            let address = super::entry::stub(vector);
            let ist = match vector {
                1 => IST_DEBUG,
                2 => IST_NMI,
                8 => IST_DOUBLE_FAULT,
                18 => IST_MACHINE_CHECK,
                _ => 0,
            };
            let dpl: u64 = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
            let low = (address & 0xffff)
                | u64::from(HYPERVISOR_CS) << 16
                | u64::from(ist) << 32
                | (0x8e | dpl << 5) << 40
                | (address >> 16 & 0xffff) << 48;
            *gate = [low, address >> 32];
        }
        table
    })
}
