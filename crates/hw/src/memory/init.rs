// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layout of memory at boot: final page tables, frame table, machine-to-phys table, free frames.
//!
//! RAM of the boot loader's map is cut down by what is taken (first MiB, image, modules); tables and arrays come from the
//! top of what is left, and the rest goes to the buddy allocator. Tables come from below 4 GiB, which the boot tables map.

use super::ranges::Ranges;
use super::tables::{self, Flags, HUGE_SIZE, LARGE_SIZE, RO, RW, RX, Root, SHARED};
use super::*;
use crate::boot::{BootInfo, RegionKind, stop};
use core::ops::Range;
use philoxen_paging::frame::Frame;

const FOUR_GIB: u64 = 1 << 32;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __boot_tables: u8;
    static __boot_tables_end: u8;
    static __image_end: u8;
}

/// Physical address of a symbol of the linker script.
fn symbol(symbol: *const u8) -> u64 {
    (symbol as u64).wrapping_sub(IMAGE)
}

/// Physical addresses of the hypervisor's image.
pub(crate) fn image() -> Range<u64> {
    symbol(&raw const __image_start)..symbol(&raw const __image_end)
}

/// Physical addresses of the image's code.
pub(super) fn text() -> Range<u64> {
    symbol(&raw const __image_start)..symbol(&raw const __text_end)
}

fn boot_tables() -> Range<u64> {
    symbol(&raw const __boot_tables)..symbol(&raw const __boot_tables_end)
}

/// The work in progress.
struct Layout<'a> {
    /// RAM nobody uses yet.
    free: &'a mut Ranges,
    /// All usable RAM.
    ram: &'a Ranges,
    root: Root,
}

/// The one reason for which the layout can fail.
struct NoMemory;

fn take_page(free: &mut Ranges) -> Option<u64> {
    let page = free.take(PAGE_SIZE, PAGE_SIZE, FOUR_GIB)?;
    // SAFETY: the frame is free RAM below 4 GiB, which boot tables and direct map show.
    unsafe { bulk::fill(direct(page), 0, PAGE_SIZE / 8) };
    Some(page)
}

impl Layout<'_> {
    fn page(&mut self) -> Result<u64, NoMemory> {
        take_page(self.free).ok_or(NoMemory)
    }

    fn map(
        &mut self,
        va: u64,
        range: Range<u64>,
        flags: Flags,
        largest: u64,
    ) -> Result<(), NoMemory> {
        let free = &mut *self.free;
        let len = range.end.saturating_sub(range.start);
        let mut page = || take_page(free);
        self.root
            .map(va, range.start, len, flags, largest, &mut page)
            .ok_or(NoMemory)
    }

    /// Links the L3 tables of every slot that can ever be used.
    fn link_slots(&mut self, direct_end: u64) -> Result<(), NoMemory> {
        let last = slot_of(direct(direct_end - 1));
        for slot in slot_of(M2P)..=last {
            if slot != UNUSED_SLOT {
                let l3 = self.page()?;
                self.root.link_l3(slot, l3, slot == slot_of(M2P));
            }
        }
        Ok(())
    }

    fn map_image(&mut self) -> Result<(), NoMemory> {
        let parts = [
            (text(), RX),
            (
                symbol(&raw const __rodata_start)..symbol(&raw const __rodata_end),
                RO,
            ),
            (symbol(&raw const __data_start)..boot_tables().start, RW),
            (boot_tables().end..image().end, RW),
        ];
        for (range, flags) in parts {
            self.map(IMAGE + range.start, range, flags, PAGE_SIZE)?;
        }
        Ok(())
    }

    /// Shows all RAM, but not the image, whose rights its own mapping decides.
    fn map_direct(&mut self, shown: &Ranges) -> Result<(), NoMemory> {
        // Page 1 GiB: CPUID 0x80000001 EDX bit 26.
        let largest = if asm::cpuid(0x8000_0001, 0)[3] & 1 << 26 != 0 {
            HUGE_SIZE
        } else {
            LARGE_SIZE
        };
        for range in shown.iter() {
            self.map(direct(range.start), range.clone(), RW, largest)?;
        }
        Ok(())
    }

    /// Maps `array`, which has `entry` bytes for each frame below `frames`, filled with `value` where it describes RAM.
    /// What describes none shows one shared read-only page.
    fn populate(
        &mut self,
        array: u64,
        entry: u64,
        frames: u64,
        value: u64,
        flags: Flags,
    ) -> Result<(), NoMemory> {
        let hole = self.page()?;
        // SAFETY: the page was just taken.
        unsafe { bulk::fill(direct(hole), value, PAGE_SIZE / 8) };
        let hole_l1 = self.page()?;
        // The M2P's rights come from its L4 entries; its hole page is written by nobody.
        let hole_flags = if flags == SHARED { SHARED } else { RO };
        tables::fill_l1(hole_l1, hole, hole_flags);
        let bytes = (frames * entry).next_multiple_of(PAGE_SIZE);
        for offset in (0..bytes).step_by(LARGE_SIZE as usize) {
            let described =
                |start: u64, len: u64| start / entry * PAGE_SIZE..(start + len) / entry * PAGE_SIZE;
            let len = LARGE_SIZE.min(bytes - offset);
            let va = array + offset;
            if !self.ram.touches(&described(offset, len)) {
                let free = &mut *self.free;
                self.root
                    .link_l1(va, hole_l1, &mut || take_page(free))
                    .ok_or(NoMemory)?;
                continue;
            }
            let pages = (offset..offset + len).step_by(PAGE_SIZE as usize);
            let whole = len == LARGE_SIZE
                && pages
                    .clone()
                    .all(|page| self.ram.touches(&described(page, PAGE_SIZE)));
            if whole && let Some(phys) = self.free.take(LARGE_SIZE, LARGE_SIZE, u64::MAX) {
                // SAFETY: free RAM, shown by the direct map.
                unsafe { bulk::fill(direct(phys), value, LARGE_SIZE / 8) };
                self.map(va, phys..phys + LARGE_SIZE, flags, LARGE_SIZE)?;
                continue;
            }
            for page in pages {
                if self.ram.touches(&described(page, PAGE_SIZE)) {
                    let phys = self
                        .free
                        .take(PAGE_SIZE, PAGE_SIZE, u64::MAX)
                        .ok_or(NoMemory)?;
                    // SAFETY: free RAM, shown by the direct map.
                    unsafe { bulk::fill(direct(phys), value, PAGE_SIZE / 8) };
                    self.map(array + page, phys..phys + PAGE_SIZE, flags, PAGE_SIZE)?;
                } else {
                    self.map(array + page, hole..hole + PAGE_SIZE, hole_flags, PAGE_SIZE)?;
                }
            }
        }
        Ok(())
    }

    /// Gives the hypervisor its writable view of the machine-to-phys table: other L4 entry, same L2 tables.
    fn alias_m2p(&self, frames: u64) -> Result<(), NoMemory> {
        for offset in (0..frames * 8).step_by(HUGE_SIZE as usize) {
            let l2 = self.root.l2_of(M2P + offset).ok_or(NoMemory)?;
            self.root.link_l2(M2P_WRITE + offset, l2).ok_or(NoMemory)?;
        }
        Ok(())
    }
}

/// Lays memory out; afterwards every function of [`super`] works. Once, on the boot stack.
///
/// A machine whose memory does not suffice is stopped with a reason.
#[inline(never)]
pub fn init(info: &BootInfo) {
    let mut ram = Ranges::new();
    let mut shown = Ranges::new();
    for region in &info.memory {
        let range = region.start..region.end.min(DIRECT_SIZE);
        if region.kind == RegionKind::Usable {
            ram.append(range.clone());
        }
        if region.kind.is_ram() {
            shown.append(range);
        }
    }
    let image = image();
    let mut free = ram.clone();
    free.remove(&(0..LOW));
    free.remove(&image);
    for module in info.modules() {
        if !module.range.is_empty()
            && (module.range.start < image.end && image.start < module.range.end)
        {
            stop(format_args!(
                "Cannot boot: a module overlaps the hypervisor."
            ));
        }
        free.remove(&module.range);
    }
    let tables = boot_tables();
    shown.remove(&(image.start..tables.start));
    shown.remove(&(tables.end..image.end));
    if lay_out(info, &ram, &mut free, &shown).is_err() {
        stop(format_args!(
            "Cannot boot: there is not enough memory for the hypervisor."
        ));
    }
}

fn lay_out(
    info: &BootInfo,
    ram: &Ranges,
    free: &mut Ranges,
    shown: &Ranges,
) -> Result<(), NoMemory> {
    let frames = ram.end() / PAGE_SIZE;
    let root = Root(take_page(free).ok_or(NoMemory)?);
    let mut layout = Layout { free, ram, root };
    layout.link_slots(shown.end().max(LARGE_SIZE))?;
    layout.map_image()?;
    layout.map_direct(shown)?;
    // SAFETY: the new tables map the image, the stack in it and all RAM at the same addresses as before.
    unsafe { asm::write_cr3(root.0) };
    ROOT.store(root.0, Ordering::Relaxed);
    layout.populate(FRAMES, size_of::<Frame>() as u64, frames, 0, RW)?;
    layout.populate(M2P, 8, frames, INVALID_M2P, SHARED)?;
    layout.alias_m2p(frames)?;
    // Every page of the array was mapped and zeroed just now, and zero is a valid `Frame` (not RAM).
    FRAME_COUNT.store(frames, Ordering::Release);
    hand_over(&layout, &super::frames(), info);
    Ok(())
}

/// Tells the frame table and the allocator who has which frame.
fn hand_over(layout: &Layout<'_>, table: &FrameTable, info: &BootInfo) {
    let mut kept = layout.ram.clone();
    let tables = boot_tables();
    layout.free.iter().for_each(|range| kept.remove(range));
    kept.remove(&tables);
    for range in kept.iter() {
        table.set_hypervisor(
            Mfn(range.start / PAGE_SIZE),
            (range.end - range.start) / PAGE_SIZE,
        );
    }
    let mut buddy = buddy().lock();
    for range in layout.free.iter().chain([&tables]) {
        let count = (range.end - range.start) / PAGE_SIZE;
        buddy.release_boot(table, Mfn(range.start / PAGE_SIZE), count);
    }
    TOTAL_RAM.store(layout.ram.bytes(), Ordering::Relaxed);
    let mut modules = MODULES.lock();
    for module in info.modules() {
        modules.push(ModuleMemory::new(module.range));
    }
}
