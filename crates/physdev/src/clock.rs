// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers of the CMOS real-time clock (MC146818) as a time.

/// Status B: hours count to 23.
const HOURS_24: u8 = 1 << 1;
/// Status B: registers are binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Hours register in 12-hour mode: afternoon.
const AFTERNOON: u8 = 0x80;

/// Seconds since 1970 of a clock that runs in UTC.
///
/// `registers` are seconds, minutes, hours, day, month, year, century (0 if there is none) as read; `status_b` tells
/// their form. `None` if they are no valid time.
pub fn unix_time(registers: [u8; 7], status_b: u8) -> Option<u64> {
    let decode = |value: u8| {
        if status_b & BINARY != 0 {
            return Some(u64::from(value));
        }
        let (tens, ones) = (value >> 4, value & 0xf);
        (tens <= 9 && ones <= 9).then(|| u64::from(tens * 10 + ones))
    };
    let [second, minute, hour, day, month, year, century] = registers;
    let (second, minute) = (decode(second)?, decode(minute)?);
    let hour = if status_b & HOURS_24 != 0 {
        decode(hour)?
    } else {
        decode(hour & !AFTERNOON)? % 12 + if hour & AFTERNOON != 0 { 12 } else { 0 }
    };
    let (day, month, year) = (decode(day)?, decode(month)?, decode(year)?);
    // Without a century register: 1970 to 2069.
    let century = decode(century).filter(|c| (19..=29).contains(c));
    let year = year + 100 * century.unwrap_or(if year < 70 { 20 } else { 19 });
    let valid = second < 60
        && minute < 60
        && hour < 24
        && (1..=12).contains(&month)
        && (1970..3000).contains(&year)
        && (1..=month_days(year, month)).contains(&day);
    valid.then(|| ((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

const fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1 January 1970 to the first of a month.
fn days_before(year: u64, month: u64) -> u64 {
    let past = year - 1;
    // Leap days up to the end of the year before, less those up to the end of 1969 (477).
    let leaps = past / 4 - past / 100 + past / 400 - 477;
    (year - 1970) * 365 + leaps + (1..month).map(|month| month_days(year, month)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::unix_time;

    #[test]
    fn known_times() {
        // date -u -d '2026-11-21 11:49:05' +%s
        let bcd = [0x05, 0x49, 0x11, 0x21, 0x11, 0x26, 0x20];
        assert_eq!(unix_time(bcd, 2), Some(1_795_261_745));
        assert_eq!(
            unix_time([5, 49, 11, 21, 11, 26, 20], 6),
            Some(1_795_261_745)
        );
        assert_eq!(unix_time([0, 0, 0, 1, 1, 0x70, 0], 2), Some(0));
        // Leap day of 2000, and noon and midnight of a 12-hour clock.
        assert_eq!(unix_time([0, 0, 0, 0x29, 2, 0, 0x20], 2), Some(951_782_400));
        assert_eq!(unix_time([0, 0, 0x12, 1, 1, 0x70, 0], 0), Some(0));
        assert_eq!(unix_time([0, 0, 0x92, 1, 1, 0x70, 0], 0), Some(12 * 3600));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(unix_time([0xff; 7], 2), None);
        assert_eq!(unix_time([0; 7], 2), None);
        assert_eq!(unix_time([0, 0, 0, 0x29, 2, 0x23, 0x20], 2), None);
        assert_eq!(unix_time([0x60, 0, 0, 1, 1, 0, 0x20], 2), None);
    }

    proptest::proptest! {
        #[test]
        fn no_registers_panic(registers: [u8; 7], status: u8) {
            let _ = unix_time(registers, status);
        }
    }
}
