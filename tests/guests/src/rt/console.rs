// SPDX-License-Identifier: MIT OR Apache-2.0
//! Text to the hypervisor's console, a line per hypercall.

use super::hyper;
use core::fmt::{Arguments, Result, Write};
use philoxen_abi::hypercall::CONSOLE_IO;

struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        let address = self.bytes.as_ptr() as u64;
        hyper::call(CONSOLE_IO, [0, self.used as u64, address, 0, 0]);
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> Result {
        for byte in text.bytes() {
            if self.used == self.bytes.len() {
                self.flush();
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Prints `text`; what [`crate::print`] expands to.
pub fn write(text: Arguments<'_>) {
    let mut line = Line {
        bytes: [0; 256],
        used: 0,
    };
    // The writer above cannot fail.
    let _ = line.write_fmt(text);
    line.flush();
}

/// Prints one line.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => { $crate::rt::console::write(format_args!("{}\n", format_args!($($text)*))) };
}
