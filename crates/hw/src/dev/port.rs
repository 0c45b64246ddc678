// SPDX-License-Identifier: MIT OR Apache-2.0
//! I/O ports.
//!
//! A port write can do anything a device can do, so the raw functions stay inside the crate; each driver here owns
//! its ports. [`guest_read`] and [`guest_write`] serve the hardware domain's emulated accesses and refuse ours.

use core::arch::asm;
use philoxen_physdev::chip::Width;

/// Reads 8 bits.
#[inline]
pub(crate) fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: a port read does not touch memory of ours.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads 16 bits.
#[inline]
pub(crate) fn in16(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as `in8`.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads 32 bits.
#[inline]
pub(crate) fn in32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as `in8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Writes 8 bits.
#[inline]
pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: the crate writes only ports of devices it drives (or, for the hardware domain, devices it does not).
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes 16 bits.
#[inline]
pub(crate) fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes 32 bits.
#[inline]
pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
    };
}

/// True if the hypervisor drives one of the `width` ports from `port`: interrupt controllers (0x20, 0xa0), timer
/// channels 0 and 1, PCI configuration (0xcf8..0xcff; reset control 0xcf9 among them).
pub fn is_ours(port: u16, width: Width) -> bool {
    let last = port.saturating_add(width.bytes() - 1);
    let ours = [(0x20, 0x21), (0x40, 0x41), (0xa0, 0xa1), (0xcf8, 0xcff)];
    ours.iter()
        .any(|(first, end)| port <= *end && last >= *first)
}

/// A read by the hardware domain; all ones from our own ports.
pub fn guest_read(port: u16, width: Width) -> u32 {
    if is_ours(port, width) {
        return width.ones();
    }
    match width {
        Width::Byte => in8(port).into(),
        Width::Word => in16(port).into(),
        Width::Dword => in32(port),
    }
}

/// A write by the hardware domain; dropped for our own ports.
pub fn guest_write(port: u16, width: Width, value: u32) {
    // Timer commands may only name channel 2 (bits 6 and 7: the channel; 3 reads back).
    let timer_command = port <= 0x43 && port.saturating_add(width.bytes()) > 0x43;
    if is_ours(port, width) || timer_command && (width != Width::Byte || value >> 6 != 2) {
        return;
    }
    match width {
        Width::Byte => out8(port, value as u8),
        Width::Word => out16(port, value as u16),
        Width::Dword => out32(port, value),
    }
}
