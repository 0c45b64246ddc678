// SPDX-License-Identifier: MIT OR Apache-2.0
//! PC heritage: the 8259 pair (silenced), PIT channel 2, keyboard controller reset, and the CMOS clock.

use super::{port, vectors};

const PIC_MASTER: u16 = 0x20;
const PIC_SLAVE: u16 = 0xa0;
const PIT_CHANNEL2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const SPEAKER: u16 = 0x61;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;

/// Ticks per second of the PIT.
pub(super) const PIT_HZ: u64 = 1_193_182;

/// Moves the 8259 pair to vectors of its own and masks all its lines.
pub(super) fn silence_pics() {
    for (base, vector, cascade) in [
        (PIC_MASTER, vectors::LEGACY_PIC, 4),
        (PIC_SLAVE, vectors::LEGACY_PIC + 8, 2),
    ] {
        port::out8(base + 1, 0xff);
        // ICW1: edge, cascade, ICW4 follows; ICW2: vectors; ICW3: wiring; ICW4: 8086 mode.
        port::out8(base, 0x11);
        port::out8(base + 1, vector);
        port::out8(base + 1, cascade);
        port::out8(base + 1, 1);
        port::out8(base + 1, 0xff);
    }
}

/// Starts channel 2 counting down from 65535, speaker off.
pub(super) fn pit_start() {
    port::out8(SPEAKER, port::in8(SPEAKER) & !0x03);
    // Channel 2, both bytes, mode 0, binary.
    port::out8(PIT_COMMAND, 0xb0);
    port::out8(PIT_CHANNEL2, 0xff);
    port::out8(PIT_CHANNEL2, 0xff);
    port::out8(SPEAKER, port::in8(SPEAKER) & !0x02 | 0x01);
}

/// Count of channel 2.
pub(super) fn pit_read() -> u16 {
    // Latch channel 2.
    port::out8(PIT_COMMAND, 0x80);
    let low = port::in8(PIT_CHANNEL2);
    let high = port::in8(PIT_CHANNEL2);
    u16::from_le_bytes([low, high])
}

/// Stops channel 2.
pub(super) fn pit_stop() {
    port::out8(SPEAKER, port::in8(SPEAKER) & !0x03);
}

/// Pulses the reset line through the keyboard controller.
pub(super) fn keyboard_reset() {
    for _ in 0..10_000 {
        if port::in8(0x64) & 2 == 0 {
            break;
        }
    }
    port::out8(0x64, 0xfe);
}

fn cmos(index: u8) -> u8 {
    port::out8(CMOS_INDEX, index);
    port::in8(CMOS_DATA)
}

/// Raw registers: seconds, minutes, hours, day, month, year, century.
fn clock_registers(century: u8) -> [u8; 7] {
    let of_century = if century == 0 { 0 } else { cmos(century) };
    [
        cmos(0),
        cmos(2),
        cmos(4),
        cmos(7),
        cmos(8),
        cmos(9),
        of_century,
    ]
}

/// The CMOS clock, taken as UTC, in seconds since 1970; `century` is the FADT's register index or 0.
///
/// `None` if the clock is absent or says nonsense.
pub(super) fn clock(century: u8) -> Option<u64> {
    let mut last = [0xff; 7];
    // Registers are stable when no update is in progress and two reads agree.
    for _ in 0..1_000_000 {
        if cmos(0x0a) & 0x80 != 0 {
            continue;
        }
        let now = clock_registers(century);
        if now == last {
            return philoxen_physdev::clock::unix_time(now, cmos(0x0b));
        }
        last = now;
    }
    None
}
