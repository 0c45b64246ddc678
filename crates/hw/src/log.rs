// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's log: levels, the ring that `xl dmesg` reads, and the console.
//!
//! One message is one line, prefixed `(XEN) ` as readers of Xen's log expect. The console's lock is the last in
//! the lock order. A processor that panics, or that finds the lock held for very long, goes on without it: then the
//! ring misses the line and the serial port, which needs no lock, shows it.

use crate::serial;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use spin::{Mutex, MutexGuard, Once};

/// How important a message is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 0,
    /// Something is not as it should be.
    Warning = 1,
    /// Worth knowing.
    Info = 2,
    /// For developers.
    Debug = 3,
}

/// Which messages are shown (`loglvl=`, `guest_loglvl=`): those below `always`, and a few per second of those below
/// `limited`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threshold {
    always: u8,
    limited: u8,
}

impl Threshold {
    /// Reads `<level>[/<rate-limited level>]`, levels being none, error, warning, info, debug, all.
    pub fn parse(text: &str) -> Option<Self> {
        let level = |name: &str| {
            Some(match name {
                "none" => 0,
                "error" => 1,
                "warning" => 2,
                "info" => 3,
                "debug" | "all" => 4,
                _ => return None,
            })
        };
        let (always, limited) = text.split_once('/').unwrap_or((text, text));
        let (always, limited) = (level(always)?, level(limited)?);
        (always <= limited).then_some(Self { always, limited })
    }

    const fn verdict(self, level: Level) -> Verdict {
        if (level as u8) < self.always {
            Verdict::Show
        } else if (level as u8) < self.limited {
            Verdict::Limit
        } else {
            Verdict::Drop
        }
    }

    const fn pack(self) -> u8 {
        self.always | self.limited << 4
    }
    const fn unpack(bits: u8) -> Self {
        Self {
            always: bits & 0xf,
            limited: bits >> 4,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Show,
    Limit,
    Drop,
}

/// Whose doing a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The hypervisor itself.
    Hypervisor,
    /// A guest, which may cause many.
    Guest,
}

/// Messages that may come at once under the rate limit.
const BURST: u32 = 10;
/// Nanoseconds after which one more may come.
const REFILL: u64 = 500_000_000;

/// Lets `BURST` messages through, and then one every `REFILL`.
#[derive(Debug)]
struct Limiter {
    spent: u32,
    since: u64,
    missed: u32,
}

impl Limiter {
    const fn new() -> Self {
        Self {
            spent: 0,
            since: 0,
            missed: 0,
        }
    }
    /// True if a message may pass now; gives how many were held back before it.
    fn pass(&mut self, now: u64) -> Option<u32> {
        let earned = now.saturating_sub(self.since) / REFILL;
        if earned > 0 {
            self.spent = self
                .spent
                .saturating_sub(u32::try_from(earned).unwrap_or(BURST));
            self.since = now;
        }
        if self.spent == BURST {
            self.missed = self.missed.saturating_add(1);
            return None;
        }
        self.spent += 1;
        Some(core::mem::take(&mut self.missed))
    }
}

/// Bytes of the ring at boot; a power of two.
const BOOT_RING: usize = 16 << 10;

/// The last bytes that were logged. Positions count all bytes ever written.
struct Ring {
    boot: [u8; BOOT_RING],
    /// Replaces `boot` once it is not empty.
    heap: Vec<u8>,
    written: u64,
    cleared: u64,
}

impl Ring {
    const fn new() -> Self {
        Self {
            boot: [0; BOOT_RING],
            heap: Vec::new(),
            written: 0,
            cleared: 0,
        }
    }
    fn bytes(&self) -> &[u8] {
        if self.heap.is_empty() {
            &self.boot
        } else {
            &self.heap
        }
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        if self.heap.is_empty() {
            &mut self.boot
        } else {
            &mut self.heap
        }
    }
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let at = self.written;
            let buffer = self.bytes_mut();
            let len = buffer.len() as u64;
            if let Some(place) = buffer.get_mut((at % len) as usize) {
                *place = byte;
            }
            self.written += 1;
        }
    }
    /// Oldest position still there.
    fn oldest(&self) -> u64 {
        self.written
            .saturating_sub(self.bytes().len() as u64)
            .max(self.cleared)
    }
    fn copy(&self, from: u64, out: &mut [u8]) -> (usize, u64) {
        let from = from.clamp(self.oldest(), self.written);
        let buffer = self.bytes();
        let len = buffer.len() as u64;
        let count = out.len().min((self.written - from) as usize);
        for (position, byte) in (from..).zip(out.iter_mut().take(count)) {
            *byte = buffer.get((position % len) as usize).copied().unwrap_or(0);
        }
        (count, from + count as u64)
    }
    /// Continues in `new`, which is not empty, with as much as fits.
    fn grow(&mut self, mut new: Vec<u8>) -> Vec<u8> {
        let len = new.len() as u64;
        let from = self.oldest().max(self.written.saturating_sub(len));
        for position in from..self.written {
            let byte = self
                .bytes()
                .get((position % self.bytes().len() as u64) as usize)
                .copied();
            if let (Some(byte), Some(place)) = (byte, new.get_mut((position % len) as usize)) {
                *place = byte;
            }
        }
        self.cleared = self.cleared.max(from);
        core::mem::replace(&mut self.heap, new)
    }
}

struct Console {
    ring: Ring,
    limiter: Limiter,
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    ring: Ring::new(),
    limiter: Limiter::new(),
});
/// Xen's defaults of a release build: `loglvl=warning`, `guest_loglvl=none/warning`. Ours shows information, too.
static HYPERVISOR: AtomicU8 = AtomicU8::new(
    Threshold {
        always: 3,
        limited: 3,
    }
    .pack(),
);
static GUEST: AtomicU8 = AtomicU8::new(
    Threshold {
        always: 0,
        limited: 2,
    }
    .pack(),
);
static PANICKING: AtomicBool = AtomicBool::new(false);
static TIMESTAMPS: AtomicBool = AtomicBool::new(false);
static CLOCK: Once<fn() -> u64> = Once::new();
/// Tries for the lock before a processor goes on without it.
const PATIENCE: u32 = 100_000_000;
/// The same when somebody panics.
const PANIC_PATIENCE: u32 = 1_000_000;

/// Sets which messages from `source` are shown.
pub fn set_threshold(source: Source, threshold: Threshold) {
    let place = match source {
        Source::Hypervisor => &HYPERVISOR,
        Source::Guest => &GUEST,
    };
    place.store(threshold.pack(), Ordering::Relaxed);
}

/// Gives the log a clock, in nanoseconds since boot, for time stamps and the rate limit.
pub fn set_clock(clock: fn() -> u64) {
    CLOCK.call_once(|| clock);
}

/// Puts the time before each message from now on.
pub fn set_timestamps(on: bool) {
    TIMESTAMPS.store(on, Ordering::Relaxed);
}

/// From now on the console's lock stops nobody for long: this processor may hold it itself.
pub fn panicking() {
    PANICKING.store(true, Ordering::Relaxed);
}

fn lock() -> Option<MutexGuard<'static, Console>> {
    let mut tries: u32 = 0;
    loop {
        if let Some(console) = CONSOLE.try_lock() {
            return Some(console);
        }
        tries += 1;
        let limit = if PANICKING.load(Ordering::Relaxed) {
            PANIC_PATIENCE
        } else {
            PATIENCE
        };
        if tries > limit {
            return None;
        }
        core::hint::spin_loop();
    }
}

/// A line on its way to ring and port, collected so that the port gets few, long writes.
struct Line<'a> {
    console: Option<&'a mut Console>,
    buffer: [u8; 128],
    used: usize,
}

impl Line<'_> {
    fn flush(&mut self) {
        let bytes = self.buffer.get(..self.used).unwrap_or_default();
        serial::write(bytes);
        if let Some(console) = &mut self.console {
            console.ring.push(bytes);
        }
        self.used = 0;
    }
}

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == self.buffer.len() {
                self.flush();
            }
            if let Some(place) = self.buffer.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

fn emit(console: Option<&mut Console>, text: fmt::Arguments<'_>) {
    let mut line = Line {
        console,
        buffer: [0; 128],
        used: 0,
    };
    // Writing to a `Line` never fails; an error could only come from a broken `Display`.
    let _ = line.write_str("(XEN) ");
    if TIMESTAMPS.load(Ordering::Relaxed)
        && let Some(clock) = CLOCK.get()
    {
        let micros = clock() / 1000;
        let _ = write!(
            line,
            "[{:5}.{:06}] ",
            micros / 1_000_000,
            micros % 1_000_000
        );
    }
    let _ = line.write_fmt(text);
    let _ = line.write_str("\n");
    line.flush();
}

/// Logs a message if its level is shown. Use the macros.
pub fn message(source: Source, level: Level, text: fmt::Arguments<'_>) {
    let bits = match source {
        Source::Hypervisor => &HYPERVISOR,
        Source::Guest => &GUEST,
    };
    let verdict = Threshold::unpack(bits.load(Ordering::Relaxed)).verdict(level);
    if verdict == Verdict::Drop {
        return;
    }
    let mut console = lock();
    if verdict == Verdict::Limit
        && let (Some(console), Some(clock)) = (console.as_deref_mut(), CLOCK.get())
    {
        match console.limiter.pass(clock()) {
            None => return,
            Some(0) => {}
            Some(missed) => emit(Some(console), format_args!("({missed} messages held back)")),
        }
    }
    emit(console.as_deref_mut(), text);
}

/// Logs a message whatever the thresholds.
pub fn always(text: fmt::Arguments<'_>) {
    emit(lock().as_deref_mut(), text);
}

/// Puts bytes on the console as they are, without prefix and not into the ring: a domain's own console output.
pub fn raw(bytes: &[u8]) {
    let console = lock();
    serial::write(bytes);
    drop(console);
}

/// Copies log bytes from position `from` on (0: from the oldest). Gives how many, and the position to go on from.
/// With `clear`, everything up to now is left out of later reads.
pub fn read(from: u64, clear: bool, out: &mut [u8]) -> (usize, u64) {
    let Some(mut console) = lock() else {
        return (0, from);
    };
    let result = console.ring.copy(from, out);
    if clear {
        console.ring.cleared = console.ring.written;
    }
    result
}

/// Sets the size of the ring (`conring_size=`), keeping the newest bytes; false without memory.
pub fn set_size(bytes: usize) -> bool {
    let mut new = Vec::new();
    if bytes < 4096 || new.try_reserve_exact(bytes).is_err() {
        return false;
    }
    new.resize(bytes, 0);
    let old = lock().map(|mut console| console.ring.grow(new));
    // The old ring is freed here, after the lock.
    old.is_some()
}

/// Logs a message of the hypervisor at a [`Level`].
#[macro_export]
macro_rules! log {
    ($level:expr, $($text:tt)+) => {
        $crate::log::message($crate::log::Source::Hypervisor, $level, ::core::format_args!($($text)+))
    };
}

/// Logs a message about a guest's doing at a [`Level`]; these are limited in number.
#[macro_export]
macro_rules! guest_log {
    ($level:expr, $($text:tt)+) => {
        $crate::log::message($crate::log::Source::Guest, $level, ::core::format_args!($($text)+))
    };
}

/// Logs an error.
#[macro_export]
macro_rules! error {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Error, $($text)+) };
}

/// Logs a warning.
#[macro_export]
macro_rules! warn {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Warning, $($text)+) };
}

/// Logs something worth knowing.
#[macro_export]
macro_rules! info {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Info, $($text)+) };
}

/// Logs something for developers.
#[macro_export]
macro_rules! debug {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Debug, $($text)+) };
}

/// Logs a line whatever the thresholds, such as the answer to a debug key.
#[macro_export]
macro_rules! print {
    ($($text:tt)+) => { $crate::log::always(::core::format_args!($($text)+)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let both = Threshold::parse("error/info").unwrap();
        assert_eq!(both.verdict(Level::Error), Verdict::Show);
        assert_eq!(both.verdict(Level::Info), Verdict::Limit);
        assert_eq!(both.verdict(Level::Debug), Verdict::Drop);
        assert_eq!(Threshold::unpack(both.pack()), both);
        assert_eq!(
            Threshold::parse("none").unwrap().verdict(Level::Error),
            Verdict::Drop
        );
        assert_eq!(
            Threshold::parse("all").unwrap().verdict(Level::Debug),
            Verdict::Show
        );
        assert!(Threshold::parse("all/error").is_none() && Threshold::parse("loud").is_none());
    }

    #[test]
    fn ring_wraps_clears_and_grows() {
        let mut ring = Ring::new();
        for number in 0..10_000u32 {
            ring.push(&number.to_le_bytes());
        }
        let mut out = [0; 8];
        let (count, next) = ring.copy(0, &mut out);
        assert_eq!((count, next), (8, 40_000 - BOOT_RING as u64 + 8));
        assert_eq!(out[..4], ((40_000 - BOOT_RING as u32) / 4).to_le_bytes());
        ring.cleared = ring.written - 8;
        ring.grow(alloc::vec![0; 5000]);
        let mut out = [0; 100];
        assert_eq!(ring.copy(0, &mut out), (8, 40_000));
        assert_eq!(out[4..8], 9999u32.to_le_bytes());
        ring.push(&[7; 6000]);
        assert_eq!(ring.copy(0, &mut out), (100, 46_000 - 5000 + 100));
        assert_eq!(ring.copy(u64::MAX, &mut out).0, 0);
    }

    #[test]
    fn limiter_lets_a_burst_and_then_a_trickle_through() {
        let mut limiter = Limiter::new();
        let passed = (0..100).filter(|_| limiter.pass(0).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limiter.pass(REFILL), Some(90));
        assert_eq!(limiter.pass(REFILL + 1), None);
    }
}
