// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which interrupt vector is whose. A higher class (upper four bits) wins at the local APIC.
//!
//! Devices use 0x20..=0xdf, given out by `philoxen-physdev`.

/// First vector of the 8259 pair, all masked; a spurious one may still come and needs no EOI.
pub const LEGACY_PIC: u8 = 0xe0;
/// Last vector of the 8259 pair.
pub const LEGACY_PIC_LAST: u8 = 0xef;
/// Another processor asks this one to look at its pending work.
pub const EVENT_CHECK: u8 = 0xf1;
/// Local APIC timer.
pub const TIMER: u8 = 0xf8;
/// Serial port of the console.
pub const SERIAL: u8 = 0xf0;
/// Local APIC error.
pub const APIC_ERROR: u8 = 0xfe;
/// Spurious interrupt of the local APIC: no EOI.
pub const SPURIOUS: u8 = 0xff;
