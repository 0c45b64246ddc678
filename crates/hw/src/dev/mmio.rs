// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory-mapped device registers.
//!
//! Invariant: a [`Window`] covers pages that `memory::map_mmio` mapped uncached for good, outside RAM; accesses are
//! volatile, aligned and inside the window (others read all ones and write nothing).

use crate::memory;
use arrayvec::ArrayVec;
use philoxen_abi::{Errno, PAGE_SIZE, Result};
use spin::Mutex;

/// Registers at consecutive physical addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    base: u64,
    len: u64,
}

impl Window {
    /// Maps `len` bytes at physical address `physical`; `None` if that is RAM or cannot be mapped.
    pub(crate) fn map(physical: u64, len: u64) -> Option<Self> {
        let base = memory::map_mmio(physical, len)?;
        Some(Self { base, len })
    }

    #[inline]
    fn address(&self, offset: u64, size: u64) -> Option<u64> {
        let end = offset.checked_add(size)?;
        (end <= self.len && offset.is_multiple_of(size)).then_some(self.base + offset)
    }

    /// Reads a 32-bit register.
    #[inline]
    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let Some(address) = self.address(offset, 4) else {
            return u32::MAX;
        };
        // SAFETY: mapped by `map` and in bounds (`address`); device memory is nobody's Rust object.
        unsafe { (address as *const u32).read_volatile() }
    }

    /// Writes a 32-bit register.
    #[inline]
    pub(crate) fn write32(&self, offset: u64, value: u32) {
        let Some(address) = self.address(offset, 4) else {
            return;
        };
        // SAFETY: as `read32`.
        unsafe { (address as *mut u32).write_volatile(value) };
    }

    /// Reads a 16-bit register.
    pub(crate) fn read16(&self, offset: u64) -> u16 {
        let Some(address) = self.address(offset, 2) else {
            return u16::MAX;
        };
        // SAFETY: as `read32`.
        unsafe { (address as *const u16).read_volatile() }
    }

    /// Writes a 16-bit register.
    pub(crate) fn write16(&self, offset: u64, value: u16) {
        let Some(address) = self.address(offset, 2) else {
            return;
        };
        // SAFETY: as `read32`.
        unsafe { (address as *mut u16).write_volatile(value) };
    }

    /// Reads an 8-bit register.
    pub(crate) fn read8(&self, offset: u64) -> u8 {
        let Some(address) = self.address(offset, 1) else {
            return u8::MAX;
        };
        // SAFETY: as `read32`.
        unsafe { (address as *const u8).read_volatile() }
    }

    /// Writes an 8-bit register.
    pub(crate) fn write8(&self, offset: u64, value: u8) {
        let Some(address) = self.address(offset, 1) else {
            return;
        };
        // SAFETY: as `read32`.
        unsafe { (address as *mut u8).write_volatile(value) };
    }
}

/// Device pages mapped one by one: MSI-X tables and PCI configuration windows. They stay mapped.
static PAGES: Mutex<ArrayVec<(u64, Window), 256>> = Mutex::new(ArrayVec::new_const());

/// The window of the page that holds `address`.
///
/// # Errors
/// `EINVAL` if it is RAM, `ENOMEM` if no more pages can be mapped.
pub(crate) fn page(address: u64) -> Result<Window> {
    let page = address & !(PAGE_SIZE - 1);
    let mut pages = PAGES.lock();
    if let Some((_, window)) = pages.iter().find(|(known, _)| *known == page) {
        return Ok(*window);
    }
    if pages.is_full() {
        return Err(Errno::ENOMEM);
    }
    let window = Window::map(page, PAGE_SIZE).ok_or(Errno::EINVAL)?;
    pages.push((page, window));
    Ok(window)
}
