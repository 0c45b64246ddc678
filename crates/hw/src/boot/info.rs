// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the boot loader told us, copied out of its memory: nothing here refers to it any more.

use super::e820::{self, MemoryMap, Region};
use arrayvec::ArrayVec;
use core::fmt;
use core::ops::Range;

/// Most modules that are accepted.
pub const MAX_MODULES: usize = 16;
/// Bytes for all strings together.
const MAX_TEXT: usize = 8192;

/// Why the boot information is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// Neither multiboot 1 nor 2 entered us; the value of EAX.
    Magic(u32),
    /// A structure lies outside the first 4 GiB or is cut short.
    Truncated(&'static str),
    /// More of them than we can keep.
    TooMany(&'static str),
    /// There is no memory map.
    NoMemoryMap,
    /// A module's end lies before its start.
    BadModule,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => {
                write!(f, "not started by a multiboot loader (EAX was {magic:#x})")
            }
            Self::Truncated(what) => write!(f, "the boot loader's {what} is cut short"),
            Self::TooMany(what) => write!(f, "the boot loader passes too many {what}"),
            Self::NoMemoryMap => f.write_str("the boot loader passes no memory map"),
            Self::BadModule => f.write_str("the boot loader passes a module of negative size"),
        }
    }
}

/// A string in the text pool.
#[derive(Clone, Copy, Default, Debug)]
struct Text {
    start: u16,
    len: u16,
}

#[derive(Clone, Debug)]
struct ModuleEntry {
    range: Range<u64>,
    text: Text,
}

/// A file the loader put into memory.
#[derive(Clone, Debug)]
pub struct Module<'a> {
    /// Its bytes' physical addresses.
    pub range: Range<u64>,
    /// Its arguments, without a file name.
    pub cmdline: &'a str,
    /// Its string as the loader passed it.
    pub cmdline_raw: &'a str,
}

/// The screen as the loader or firmware left it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Screen {
    /// Nothing is known.
    Unknown,
    /// VGA text.
    Text {
        /// Columns of characters.
        columns: u16,
        /// Rows of characters.
        rows: u16,
        /// Font height in pixels.
        font_height: u16,
        /// Cursor column.
        cursor_x: u16,
        /// Cursor row.
        cursor_y: u16,
    },
    /// A linear frame buffer with direct colours.
    Linear {
        /// Physical address.
        base: u64,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes per line.
        pitch: u32,
        /// Bits per pixel.
        bits: u8,
        /// Position and size in bits of red, green and blue.
        colours: [(u8, u8); 3],
    },
}

/// A copy of the ACPI root pointer structure that the loader passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rsdp {
    /// Its bytes.
    pub bytes: [u8; 36],
    /// How many of them there are: 20 (ACPI 1.0) or 36.
    pub len: usize,
}

/// Everything the boot loader told us.
#[derive(Clone, Debug)]
pub struct BootInfo {
    text: ArrayVec<u8, MAX_TEXT>,
    command_line: Text,
    loader: Text,
    modules: ArrayVec<ModuleEntry, MAX_MODULES>,
    /// Memory map, sorted, without overlaps.
    pub memory: MemoryMap,
    /// ACPI root pointer, if the loader passed one; else it must be searched.
    pub rsdp: Option<Rsdp>,
    /// Screen.
    pub screen: Screen,
    /// True if the machine was started by UEFI.
    pub efi: bool,
}

impl BootInfo {
    pub(super) const fn new() -> Self {
        Self {
            text: ArrayVec::new_const(),
            command_line: Text { start: 0, len: 0 },
            loader: Text { start: 0, len: 0 },
            modules: ArrayVec::new_const(),
            memory: ArrayVec::new_const(),
            rsdp: None,
            screen: Screen::Unknown,
            efi: false,
        }
    }

    fn get(&self, text: Text) -> &str {
        let start = usize::from(text.start);
        let bytes = self
            .text
            .get(start..start + usize::from(text.len))
            .unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The loader's name, such as `qemu` or `GRUB 2.06-13`.
    pub fn loader(&self) -> &str {
        self.get(self.loader)
    }
    /// The hypervisor's options, without a file name.
    pub fn command_line(&self) -> &str {
        self.clean(self.command_line_raw())
    }
    /// The hypervisor's command line as the loader passed it.
    pub fn command_line_raw(&self) -> &str {
        self.get(self.command_line)
    }
    /// The modules, in the loader's order.
    pub fn modules(&self) -> impl Iterator<Item = Module<'_>> {
        self.modules.iter().map(|entry| {
            let raw = self.get(entry.text);
            Module {
                range: entry.range.clone(),
                cmdline: self.clean(raw),
                cmdline_raw: raw,
            }
        })
    }

    /// Takes the file name off a string where the loader puts one first: QEMU does, GRUB does not.
    fn clean<'a>(&self, raw: &'a str) -> &'a str {
        let raw = raw.trim_start();
        if !self.loader().eq_ignore_ascii_case("qemu") {
            return raw;
        }
        raw.split_once([' ', '\t'])
            .map_or("", |(_, rest)| rest.trim_start())
    }

    /// Keeps a string up to its NUL; bytes that are not printable ASCII become `?`.
    fn keep(&mut self, bytes: &[u8]) -> Result<Text, BootError> {
        let start = self.text.len();
        for &byte in bytes.iter().take_while(|&&byte| byte != 0) {
            let byte = if byte == b'\t' || (b' '..=b'~').contains(&byte) {
                byte
            } else {
                b'?'
            };
            self.text
                .try_push(byte)
                .map_err(|_| BootError::TooMany("command-line characters"))?;
        }
        let len = self.text.len() - start;
        Ok(Text {
            start: start as u16,
            len: len as u16,
        })
    }
    pub(super) fn set_command_line(&mut self, bytes: &[u8]) -> Result<(), BootError> {
        self.command_line = self.keep(bytes)?;
        Ok(())
    }
    pub(super) fn set_loader(&mut self, bytes: &[u8]) -> Result<(), BootError> {
        self.loader = self.keep(bytes)?;
        Ok(())
    }
    pub(super) fn add_module(
        &mut self,
        start: u32,
        end: u32,
        name: &[u8],
    ) -> Result<(), BootError> {
        if end < start {
            return Err(BootError::BadModule);
        }
        let text = self.keep(name)?;
        let range = u64::from(start)..u64::from(end);
        self.modules
            .try_push(ModuleEntry { range, text })
            .map_err(|_| BootError::TooMany("modules"))
    }
    pub(super) fn add_region(&mut self, start: u64, len: u64, kind: u32) -> Result<(), BootError> {
        let Some(region) = Region::from_raw(start, len, kind) else {
            return Ok(());
        };
        self.memory
            .try_push(region)
            .map_err(|_| BootError::TooMany("memory ranges"))
    }
    pub(super) fn set_rsdp(&mut self, tag: &[u8]) {
        let mut bytes = [0; 36];
        let len = tag.len().min(bytes.len());
        if len < 20 {
            return;
        }
        bytes[..len].copy_from_slice(&tag[..len]);
        // The longer form of the structure holds all of the shorter one.
        if self.rsdp.is_none_or(|old| old.len < len) {
            self.rsdp = Some(Rsdp { bytes, len });
        }
    }
    /// Reads the fields that both versions of multiboot have from their address on.
    pub(super) fn set_framebuffer(&mut self, fields: &[u8], colours: &[u8]) {
        let (Some(base), Some(pitch), Some(width), Some(height)) = (
            super::u64_at(fields, 0),
            super::u32_at(fields, 8),
            super::u32_at(fields, 12),
            super::u32_at(fields, 16),
        ) else {
            return;
        };
        let &[bits, kind] = fields.get(20..22).unwrap_or(&[]) else {
            return;
        };
        if let (1, &[rp, rs, gp, gs, bp, bs]) = (kind, colours) {
            let colours = [(rp, rs), (gp, gs), (bp, bs)];
            self.screen = Screen::Linear {
                base,
                width,
                height,
                pitch,
                bits,
                colours,
            };
        }
    }
    /// Ends the reading: there must be a memory map, which is brought into order.
    pub(super) fn finish(&mut self) -> Result<(), BootError> {
        e820::resolve(&mut self.memory).ok_or(BootError::TooMany("memory ranges"))?;
        if self.memory.is_empty() {
            Err(BootError::NoMemoryMap)
        } else {
            Ok(())
        }
    }
}
