// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the boot loader to the binary's `philoxen_main`.
//!
//! The loader's information is copied into a [`BootInfo`] before anything else, so its memory is free afterwards.
//! Interrupts are off and stay off.

mod e820;
mod entry;
mod info;
mod multiboot;

pub use e820::{MAX_REGIONS, MemoryMap, Region, RegionKind};
pub use info::{BootError, BootInfo, MAX_MODULES, Module, Rsdp, Screen};

use crate::{log, memory, serial};
use spin::{Mutex, MutexGuard, Once};

unsafe extern "C" {
    static hw_entry_tsc: u64;
}

#[expect(improper_ctypes, reason = "both sides are Rust, compiled together")]
unsafe extern "C" {
    /// The binary's own start; it runs on the boot stack (64 KiB), before [`memory::init`].
    fn philoxen_main(info: &'static BootInfo) -> !;
}

/// Filled in place by [`hw_boot`], because it is too large to be moved about on the boot stack.
static READ: Mutex<BootInfo> = Mutex::new(BootInfo::new());
static INFO: Once<&'static BootInfo> = Once::new();

/// The time-stamp counter when the loader entered us.
pub fn entry_tsc() -> u64 {
    // SAFETY: written once by the entry code, before any Rust ran.
    unsafe { hw_entry_tsc }
}

/// What the boot loader told us; `None` before it was read.
pub fn info() -> Option<&'static BootInfo> {
    INFO.get().copied()
}

/// Prints a one-line reason on the console and stops this processor for good.
pub fn stop(reason: core::fmt::Arguments<'_>) -> ! {
    log::panicking();
    log::always(format_args!("{reason}"));
    halt()
}

/// Stops this processor for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off the processor waits for ever; an NMI or machine check returns here.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Called by the entry code with the loader's EAX and EBX.
#[unsafe(no_mangle)]
extern "C" fn hw_boot(magic: u32, address: u32) -> ! {
    serial::start_early();
    // The lock is never released: what was read is shared, and never changes again.
    let info = MutexGuard::leak(READ.lock());
    let read = match magic {
        multiboot::MAGIC1 => multiboot::read1(&Below4G, address, info),
        multiboot::MAGIC2 => multiboot::read2(&Below4G, address, info),
        _ => Err(BootError::Magic(magic)),
    };
    if let Err(error) = read {
        stop(format_args!("Cannot boot: {error}."))
    }
    if info.screen == Screen::Unknown && !info.efi {
        info.screen = bios_screen();
    }
    let info = *INFO.call_once(|| info);
    // SAFETY: the binary defines it with this signature; it is called once, on a fresh stack.
    unsafe { philoxen_main(info) }
}

/// Physical memory as the boot tables show it.
struct Below4G;

impl multiboot::Physical for Below4G {
    fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        let end = address.checked_add(len as u64)?;
        let image = memory::image();
        if end > 1 << 32 || (address < image.end && image.start < end) {
            return None;
        }
        let start = memory::direct(address) as *const u8;
        // SAFETY: the boot tables map the first 4 GiB; no Rust object lies outside the image yet, and nothing
        // writes there before `memory::init`. The bytes may be anything.
        Some(unsafe { core::slice::from_raw_parts(start, len) })
    }
}

/// The text screen that the BIOS data area describes.
fn bios_screen() -> Screen {
    use multiboot::Physical;
    let Some(area) = Below4G.bytes(0x400, 0x100) else {
        return Screen::Unknown;
    };
    let byte = |offset: usize| area.get(offset).copied().map_or(0, u16::from);
    let columns = byte(0x4a) | byte(0x4b) << 8;
    // Modes 0 to 3 and 7 are text; a machine without a screen has left zeroes.
    if !matches!(byte(0x49), 0..=3 | 7) || columns == 0 {
        return Screen::Unknown;
    }
    Screen::Text {
        columns,
        rows: byte(0x84) + 1,
        font_height: byte(0x85) | byte(0x86) << 8,
        cursor_x: byte(0x50),
        cursor_y: byte(0x51),
    }
}

/// Little-endian word at `offset`.
fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Little-endian long word at `offset`.
fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
