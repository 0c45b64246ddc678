// SPDX-License-Identifier: MIT OR Apache-2.0
//! The per-processor area (slot 259 of the address space): stacks with guard pages, the processor's block, and
//! the windows that show the running vCPU's GDT and LDT.
//!
//! One area is 256 KiB. Its first 64 KiB hold the stacks and, at the very top, the [`Block`]: whatever stack the
//! processor is on, `(rsp | 0xffff) + 1 - size_of::<Block>()` is its block, without touching GS, which belongs to the guest.
//!
//! | offset | content |
//! |---|---|
//! | 0x00000 | guard |
//! | 0x01000 | #DF stack (one page) |
//! | 0x02000 | guard |
//! | 0x03000 | NMI stack (two pages) |
//! | 0x05000 | guard |
//! | 0x06000 | #MC stack |
//! | 0x07000 | guard |
//! | 0x08000 | #DB stack |
//! | 0x09000 | guard |
//! | 0x0a000 | main stack (24 KiB), [`Block`] at its top |
//! | 0x10000 | GDT window: 14 guest pages, then the hypervisor's page |
//! | 0x20000 | LDT window: 16 guest pages |

use super::tables::Tss;
use crate::memory;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_paging::tlb::CpuNotes;
use philoxen_pv::Regs;

/// Number of a processor, counted by us from 0 (the boot processor); not the APIC identifier.
pub type CpuId = usize;
/// Most processors we can run on.
pub const MAX_CPUS: usize = 64;

const AREA_BASE: u64 = 0xffff_8180_0000_0000;
const AREA_STRIDE: u64 = 0x4_0000;
const STACKS_SIZE: u64 = 0x1_0000;
/// Offset of the main stack in an area.
const MAIN_STACK: u64 = 0xa000;
/// Offset of the GDT window in an area.
const GDT_WINDOW: u64 = 0x1_0000;
/// Offset of the LDT window in an area.
const LDT_WINDOW: u64 = 0x2_0000;
/// Mapped pages of the stacks part, by offset.
const STACK_PAGES: [u64; 11] = [
    0x1000, 0x3000, 0x4000, 0x6000, 0x8000, 0xa000, 0xb000, 0xc000, 0xd000, 0xe000, 0xf000,
];

/// What a processor keeps for itself at the top of its stack area. The layout is known to the entry assembly.
#[repr(C, align(16))]
pub struct Block {
    /// Second argument of the binary's entry points.
    local: *mut (),
    /// This processor's number.
    cpu: u64,
    /// Vectors that arrived while the processor idled, for the idle loop to handle.
    interrupts: [AtomicU64; 4],
    /// Vector and error code of the last fault that the exception table caught.
    fault: [AtomicU64; 2],
    /// What it said of its TLB (`machine.rs`).
    tlb: CpuNotes,
    tss: Tss,
}

/// Bytes of [`Block`], used by the entry assembly.
pub const BLOCK_SIZE: usize = size_of::<Block>();
const _: () = assert!(BLOCK_SIZE.is_multiple_of(16));
const _: () = assert!(core::mem::offset_of!(Block, local) == 0);

/// Processors whose area is there, a bit each.
static MADE: AtomicU64 = AtomicU64::new(0);
const _: () = assert!(MAX_CPUS <= 64);
// Sizes of the stacks, for the check of the image that computes what is used of them (`cargo xtask lint`).
core::arch::global_asm!(
    ".global philoxen_main_stack_bytes",
    ".set philoxen_main_stack_bytes, {main}",
    ".global philoxen_small_stack_bytes",
    ".set philoxen_small_stack_bytes, {small}",
    main = const STACKS_SIZE as usize - MAIN_STACK as usize - BLOCK_SIZE,
    small = const 0x1000,
);

fn area(cpu: CpuId) -> u64 {
    AREA_BASE + cpu as u64 * AREA_STRIDE
}

/// First address above the main stack of `cpu`: where entry frames end and the block begins.
pub fn stack_top(cpu: CpuId) -> u64 {
    area(cpu) + STACKS_SIZE - BLOCK_SIZE as u64
}

/// Address of the GDT window of `cpu`.
pub fn gdt_window(cpu: CpuId) -> u64 {
    area(cpu) + GDT_WINDOW
}

/// Address of the LDT window of `cpu`.
pub fn ldt_window(cpu: CpuId) -> u64 {
    area(cpu) + LDT_WINDOW
}

/// Maps and fills the area of `cpu`. Runs once per processor, on any processor, before its first entry.
pub(super) fn init(cpu: CpuId, local: *mut ()) {
    for offset in STACK_PAGES {
        memory::map_hypervisor_page(
            area(cpu) + offset,
            memory::alloc_hypervisor_page(),
            memory::RW,
        );
    }
    let top = stack_top(cpu);
    let block = Block {
        local,
        cpu: cpu as u64,
        interrupts: [const { AtomicU64::new(0) }; 4],
        fault: [const { AtomicU64::new(0) }; 2],
        tlb: CpuNotes {
            noted: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        },
        tss: Tss::new(
            top,
            [
                area(cpu) + 0x2000,
                area(cpu) + 0x5000,
                area(cpu) + 0x7000,
                area(cpu) + 0x9000,
            ],
        ),
    };
    // SAFETY: the page under `top` was mapped just now and nothing else refers to it; alignment is 16.
    unsafe { (top as *mut Block).write(block) };
    MADE.fetch_or(1 << cpu, Ordering::Release);
}

/// This processor's block.
#[inline(always)]
fn block() -> &'static Block {
    let rsp: u64;
    // SAFETY: reads the stack pointer.
    unsafe {
        core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags))
    };
    let address = (rsp | (STACKS_SIZE - 1)).wrapping_sub(BLOCK_SIZE as u64 - 1);
    // SAFETY: after `init` every stack we run on lies in an area (module documentation), whose block was written
    // by `init` and is only read or changed through atomics afterwards.
    unsafe { &*(address as *const Block) }
}

/// Number of the processor that runs this; 0 as long as it is on the boot stack.
pub fn cpu_id_or_boot() -> CpuId {
    let here = 0u8;
    let end = AREA_BASE + MAX_CPUS as u64 * AREA_STRIDE;
    if (AREA_BASE..end).contains(&((&raw const here) as u64)) {
        cpu_id()
    } else {
        0
    }
}

/// True if two words at `address` lie on a mapped stack of this processor.
pub(super) fn on_stack(address: u64) -> bool {
    let area = area(cpu_id_or_boot());
    let Some(offset) = address.checked_sub(area) else {
        return false;
    };
    offset < STACKS_SIZE - 16
        && STACK_PAGES
            .iter()
            .any(|page| (*page..page + 0x1000 - 8).contains(&offset))
}

/// Number of the processor that runs this.
#[inline]
pub fn cpu_id() -> CpuId {
    block().cpu as CpuId
}

/// Address of this processor's TSS descriptor base.
pub(super) fn tss_address(cpu: CpuId) -> u64 {
    stack_top(cpu) + core::mem::offset_of!(Block, tss) as u64
}

/// Records a vector that arrived in the hypervisor (only while idling).
pub(super) fn record_interrupt(vector: u8) {
    if let Some(word) = block().interrupts.get(usize::from(vector / 64)) {
        word.fetch_or(1 << (vector % 64), Ordering::Relaxed);
    }
}

/// What this processor said of its TLB.
#[inline(always)]
pub(crate) fn tlb_notes() -> &'static CpuNotes {
    &block().tlb
}

/// What processor `cpu` said of its TLB; `None` if it has no area.
pub(crate) fn tlb_notes_of(cpu: CpuId) -> Option<&'static CpuNotes> {
    if cpu >= MAX_CPUS || MADE.load(Ordering::Acquire) & 1 << cpu == 0 {
        return None;
    }
    let block = stack_top(cpu) as *const Block;
    // SAFETY: the area of a processor in `MADE` is mapped for good and its block written; this field is only seen as atomics.
    Some(unsafe { &(*block).tlb })
}

/// Keeps what a caught fault was.
pub(super) fn note_fault(vector: u32, error_code: u64) {
    let [kept_vector, kept_error] = &block().fault;
    kept_vector.store(vector.into(), Ordering::Relaxed);
    kept_error.store(error_code, Ordering::Relaxed);
}

/// Vector and error code of the last fault that the exception table caught on this processor.
pub fn last_fault() -> (u32, u64) {
    let [vector, error] = &block().fault;
    (
        vector.load(Ordering::Relaxed) as u32,
        error.load(Ordering::Relaxed),
    )
}

/// Takes the highest vector that arrived while idling.
pub fn take_interrupt() -> Option<u8> {
    for (index, word) in block().interrupts.iter().enumerate().rev() {
        let bits = word.load(Ordering::Relaxed);
        if bits != 0 {
            let bit = 63 - bits.leading_zeros();
            word.fetch_and(!(1 << bit), Ordering::Relaxed);
            return Some((index as u32 * 64 + bit) as u8);
        }
    }
    None
}

core::arch::global_asm!(
    r#"
    .pushsection .text, "ax"
philoxen_idle_wait:
        sti
philoxen_wait:
        hlt
        cli
        ret
    .popsection
    "#
);

unsafe extern "C" {
    static philoxen_wait: u8;
    fn philoxen_idle_wait();
}

/// Waits with interrupts on until one arrives; it is recorded for [`take_interrupt`].
///
/// Returns at once if one was recorded already. An NMI ends the wait, too.
pub fn idle_wait() {
    // SAFETY: the entry path of an interrupt in the hypervisor only records its vector; `sti; hlt` is atomic
    // with respect to interrupts (`leave_wait` sees to it that an NMI in between makes no difference), and they are off
    // again before this returns.
    unsafe { philoxen_idle_wait() };
}

/// An interrupt came: if the processor is about to wait for one, it must not. (An NMI between `sti` and `hlt` ends the
/// former's hold on interrupts.)
pub(super) fn leave_wait(regs: &mut Regs) {
    let wait = (&raw const philoxen_wait) as u64;
    if regs.rip == wait {
        // One byte: HLT.
        regs.rip = wait + 1;
    }
}
