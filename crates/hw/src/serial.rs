// SPDX-License-Identifier: MIT OR Apache-2.0
//! The 16550 serial port of the console: polled output, non-blocking input.
//!
//! All state is in atomics and the port itself, so output works at any time, even without the console's lock. A port
//! that is absent or stuck costs a bounded wait once, and is then only tried.
//!
//! Source: PC16550D data sheet; option syntax of Xen's command-line documentation (`com1=`).

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const SCRATCH: u16 = 7;
/// Line status: a byte was received.
const RECEIVED: u8 = 1;
/// Line status: the transmitter's FIFO is empty.
const EMPTY: u8 = 1 << 5;
/// Bytes the FIFO takes once empty.
const FIFO: usize = 16;
/// Polls (about a microsecond each) before a port counts as stuck; a full FIFO at 1200 baud needs 133 ms.
const PATIENCE: u32 = 200_000;
/// Highest baud rate: the clock divided by 16.
const BASE_BAUD: u32 = 115_200;

/// Parity of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parity {
    /// None.
    None,
    /// Odd.
    Odd,
    /// Even.
    Even,
    /// Always 1.
    Mark,
    /// Always 0.
    Space,
}

/// Settings of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Baud rate; `None` leaves the line as firmware set it.
    pub baud: Option<u32>,
    /// Bits of a character, 5 to 8.
    pub data_bits: u8,
    /// Parity.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
    /// First I/O port.
    pub io_base: u16,
    /// Interrupt line; 0 polls.
    pub irq: u8,
}

impl Settings {
    /// The first port at 115200 baud, 8n1.
    pub const COM1: Self = Self {
        baud: Some(BASE_BAUD),
        data_bits: 8,
        parity: Parity::None,
        stop_bits: 1,
        io_base: 0x3f8,
        irq: 4,
    };
    /// The second port at 115200 baud, 8n1.
    pub const COM2: Self = Self {
        io_base: 0x2f8,
        irq: 3,
        ..Self::COM1
    };

    /// Reads `<baud>|auto[/<clock>][,DPS[,<io-base>[,<irq>]]]` over what `self` says; empty parts keep it.
    /// `None` if it is not understood.
    pub fn parse(self, text: &str) -> Option<Self> {
        let mut settings = self;
        for (index, part) in text.split(',').enumerate() {
            match (index, part) {
                (0..=3, "") => {}
                (0, "auto") => settings.baud = None,
                (0, _) => {
                    let digits = part.split_once('/').map_or(part, |(baud, _)| baud);
                    let baud = digits
                        .parse()
                        .ok()
                        .filter(|baud| (50..=BASE_BAUD).contains(baud))?;
                    settings.baud = Some(baud);
                }
                (1, _) => settings.parse_format(part)?,
                (2, "pci" | "amt") => return None,
                (2, _) => settings.io_base = u16::try_from(number(part)?).ok()?,
                (3, _) => settings.irq = u8::try_from(number(part)?).ok()?,
                // Parts for bus addresses, which only PCI cards have.
                _ => return None,
            }
        }
        Some(settings)
    }

    fn parse_format(&mut self, text: &str) -> Option<()> {
        let &[data, parity, stop] = text.as_bytes() else {
            return None;
        };
        self.data_bits = data
            .checked_sub(b'0')
            .filter(|bits| (5..=8).contains(bits))?;
        self.parity = match parity {
            b'n' => Parity::None,
            b'o' => Parity::Odd,
            b'e' => Parity::Even,
            b'm' => Parity::Mark,
            b's' => Parity::Space,
            _ => return None,
        };
        self.stop_bits = stop
            .checked_sub(b'0')
            .filter(|bits| (1..=2).contains(bits))?;
        Some(())
    }

    /// Value of the line control register.
    fn line_control(&self) -> u8 {
        let parity = match self.parity {
            Parity::None => 0,
            Parity::Odd => 0x08,
            Parity::Even => 0x18,
            Parity::Mark => 0x28,
            Parity::Space => 0x38,
        };
        (self.data_bits.saturating_sub(5) & 3)
            | (self.stop_bits.saturating_sub(1) & 1) << 2
            | parity
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// First I/O port of the console; 0 for none.
static PORT: AtomicU16 = AtomicU16::new(0);
/// The transmitter did not empty in time.
static STUCK: AtomicBool = AtomicBool::new(false);

fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: reading a UART register has no effect on memory.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

fn outb(port: u16, value: u8) {
    // SAFETY: writing a UART register has no effect on memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Boot: the first port as console, so that the earliest errors are seen.
pub(crate) fn start_early() {
    start(&Settings::COM1);
}

/// Sets a port up and makes it the console; false if there is none, and then there is no console.
pub fn start(settings: &Settings) -> bool {
    let port = settings.io_base;
    PORT.store(0, Ordering::Relaxed);
    // The scratch register keeps what is written to it; a missing port reads all ones.
    outb(port + SCRATCH, 0x5a);
    if inb(port + SCRATCH) != 0x5a || inb(port + LINE_STATUS) == 0xff {
        return false;
    }
    outb(port + INTERRUPT_ENABLE, 0);
    if let Some(baud) = settings.baud {
        let divisor = (BASE_BAUD / baud.max(1)).clamp(1, 0xffff) as u16;
        let [low, high] = divisor.to_le_bytes();
        outb(port + LINE_CONTROL, settings.line_control() | 0x80);
        outb(port + DATA, low);
        outb(port + INTERRUPT_ENABLE, high);
    }
    outb(port + LINE_CONTROL, settings.line_control());
    outb(port + FIFO_CONTROL, 0x07);
    outb(port + MODEM_CONTROL, 0x03);
    STUCK.store(false, Ordering::Relaxed);
    PORT.store(port, Ordering::Relaxed);
    true
}

/// No console (`console=none`).
pub fn stop() {
    PORT.store(0, Ordering::Relaxed);
}

/// I/O ports of the console, which no domain may use: first port and count.
pub fn ports() -> Option<(u16, u16)> {
    match PORT.load(Ordering::Relaxed) {
        0 => None,
        port => Some((port, 8)),
    }
}

/// Waits until the transmitter's FIFO is empty; false if it will not be.
fn wait_empty(port: u16) -> bool {
    let polls = if STUCK.load(Ordering::Relaxed) {
        1
    } else {
        PATIENCE
    };
    for _ in 0..polls {
        if inb(port + LINE_STATUS) & EMPTY != 0 {
            STUCK.store(false, Ordering::Relaxed);
            return true;
        }
        core::hint::spin_loop();
    }
    STUCK.store(true, Ordering::Relaxed);
    false
}

/// Sends bytes; a line feed is preceded by a carriage return. Bytes for a stuck or missing port are lost.
pub fn write(bytes: &[u8]) {
    let port = PORT.load(Ordering::Relaxed);
    if port == 0 {
        return;
    }
    let mut room = 0;
    let mut send = |byte: u8| {
        if room == 0 {
            if !wait_empty(port) {
                return false;
            }
            room = FIFO;
        }
        outb(port + DATA, byte);
        room -= 1;
        true
    };
    for &byte in bytes {
        if (byte == b'\n' && !send(b'\r')) || !send(byte) {
            return;
        }
    }
}

/// A byte that was received, if there is one.
pub fn read() -> Option<u8> {
    let port = PORT.load(Ordering::Relaxed);
    if port == 0 || inb(port + LINE_STATUS) & RECEIVED == 0 {
        return None;
    }
    Some(inb(port + DATA))
}

/// Turns the interrupt for received bytes on or off; the interrupt is the port's line, edge-triggered.
pub fn set_receive_interrupt(on: bool) {
    let port = PORT.load(Ordering::Relaxed);
    if port != 0 {
        // OUT2 connects the interrupt on PC hardware.
        outb(port + MODEM_CONTROL, if on { 0x0b } else { 0x03 });
        outb(port + INTERRUPT_ENABLE, u8::from(on));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_forms() {
        let base = Settings::COM1;
        assert_eq!(base.parse("115200,8n1"), Some(base));
        assert_eq!(base.parse("auto").unwrap().baud, None);
        let odd = base.parse("9600/1843200,7o2,0x2e8,5").unwrap();
        assert_eq!(
            (odd.baud, odd.data_bits, odd.parity),
            (Some(9600), 7, Parity::Odd)
        );
        assert_eq!((odd.stop_bits, odd.io_base, odd.irq), (2, 0x2e8, 5));
        assert_eq!(odd.line_control(), 0x0e);
        assert_eq!(base.parse(",,0x2f8,").unwrap().io_base, 0x2f8);
        for bad in [
            "fast",
            "0",
            "115200,9n1",
            "115200,8x1",
            "9600,8n1,pci",
            "1,2,3,4,5",
            "9600,8n1,99999999",
        ] {
            assert_eq!(base.parse(bad), None, "{bad}");
        }
    }
}
