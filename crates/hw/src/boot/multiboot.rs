// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two formats of boot information, read from byte slices.
//!
//! Sources: Multiboot Specification 0.6.96 section 3.3, Multiboot2 Specification 2.0 section 3.6.

use super::info::{BootError, BootInfo};
use super::{u32_at, u64_at};

/// EAX on entry from a multiboot 1 loader.
pub const MAGIC1: u32 = 0x2bad_b002;
/// EAX on entry from a multiboot 2 loader.
pub const MAGIC2: u32 = 0x36d7_6289;
/// Longest string that is read.
const MAX_STRING: usize = 4096;

/// Gives the bytes at a physical address, as many as asked for.
pub trait Physical {
    /// `len` bytes from `address` on, if they are below 4 GiB.
    fn bytes(&self, address: u64, len: usize) -> Option<&[u8]>;
}

fn string(memory: &impl Physical, address: u32) -> Result<&[u8], BootError> {
    let room = (u32::MAX - address) as usize;
    let bytes = memory
        .bytes(address.into(), MAX_STRING.min(room))
        .ok_or(BootError::Truncated("string"))?;
    let len = bytes
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(BootError::Truncated("string"))?;
    Ok(bytes.get(..len).unwrap_or_default())
}

/// Reads the information structure of a multiboot 1 loader.
pub fn read1(memory: &impl Physical, address: u32, info: &mut BootInfo) -> Result<(), BootError> {
    const COMMAND_LINE: u32 = 1 << 2;
    const MODULES: u32 = 1 << 3;
    const MEMORY_MAP: u32 = 1 << 6;
    const LOADER_NAME: u32 = 1 << 9;
    const FRAMEBUFFER: u32 = 1 << 12;
    let cut = BootError::Truncated("information structure");
    let fixed = memory.bytes(address.into(), 116).ok_or(cut)?;
    let field = |offset| u32_at(fixed, offset).ok_or(cut);
    let flags = field(0)?;
    if flags & LOADER_NAME != 0 {
        info.set_loader(string(memory, field(64)?)?)?;
    }
    if flags & COMMAND_LINE != 0 {
        info.set_command_line(string(memory, field(16)?)?)?;
    }
    if flags & MODULES != 0 {
        let list = u64::from(field(24)?);
        for index in 0..u64::from(field(20)?) {
            let entry = memory
                .bytes(list + index * 16, 16)
                .ok_or(BootError::Truncated("module list"))?;
            let word = |offset| u32_at(entry, offset).unwrap_or(0);
            let name = if word(8) == 0 {
                &[]
            } else {
                string(memory, word(8))?
            };
            info.add_module(word(0), word(4), name)?;
        }
    }
    if flags & MEMORY_MAP == 0 {
        return Err(BootError::NoMemoryMap);
    }
    let len = field(44)? as usize;
    let map = memory
        .bytes(field(48)?.into(), len)
        .ok_or(BootError::Truncated("memory map"))?;
    let mut at = 0;
    while at < len {
        let entry = map.get(at..).unwrap_or_default();
        let (Some(size), Some(start), Some(bytes), Some(kind)) = (
            u32_at(entry, 0),
            u64_at(entry, 4),
            u64_at(entry, 12),
            u32_at(entry, 20),
        ) else {
            return Err(BootError::Truncated("memory map"));
        };
        info.add_region(start, bytes, kind)?;
        at = at.saturating_add(size as usize).saturating_add(4);
    }
    if flags & FRAMEBUFFER != 0 {
        info.set_framebuffer(
            fixed.get(88..).unwrap_or_default(),
            fixed.get(110..).unwrap_or_default(),
        );
    }
    info.finish()
}

/// Reads the tags of a multiboot 2 loader.
pub fn read2(memory: &impl Physical, address: u32, info: &mut BootInfo) -> Result<(), BootError> {
    let cut = BootError::Truncated("information structure");
    let head = memory.bytes(address.into(), 8).ok_or(cut)?;
    let total = u32_at(head, 0).ok_or(cut)? as usize;
    let all = memory.bytes(address.into(), total).ok_or(cut)?;
    let mut at = 8usize;
    loop {
        let tag = all.get(at..).unwrap_or_default();
        let (Some(kind), Some(size)) = (u32_at(tag, 0), u32_at(tag, 4)) else {
            return Err(cut);
        };
        let size = size as usize;
        let body = tag.get(8..size).ok_or(cut)?;
        if kind == 0 {
            break;
        }
        read_tag(info, kind, body)?;
        at = at.saturating_add(size).next_multiple_of(8);
    }
    info.finish()
}

fn read_tag(info: &mut BootInfo, kind: u32, body: &[u8]) -> Result<(), BootError> {
    match kind {
        1 => info.set_command_line(body)?,
        2 => info.set_loader(body)?,
        3 => {
            let cut = BootError::Truncated("module tag");
            let (start, end) = (u32_at(body, 0).ok_or(cut)?, u32_at(body, 4).ok_or(cut)?);
            info.add_module(start, end, body.get(8..).unwrap_or_default())?;
        }
        6 => {
            let cut = BootError::Truncated("memory map");
            let size = u32_at(body, 0).ok_or(cut)? as usize;
            if size < 24 {
                return Err(cut);
            }
            for entry in body.get(8..).unwrap_or_default().chunks_exact(size) {
                let (start, len) = (u64_at(entry, 0).ok_or(cut)?, u64_at(entry, 8).ok_or(cut)?);
                info.add_region(start, len, u32_at(entry, 16).ok_or(cut)?)?;
            }
        }
        8 => info.set_framebuffer(body, body.get(24..30).unwrap_or_default()),
        // EFI system tables (32 and 64 bit).
        11 | 12 => info.efi = true,
        14 | 15 => info.set_rsdp(body),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::boot::{RegionKind, Screen};
    use std::vec::Vec;

    /// Memory that starts at 0.
    struct Fake(Vec<u8>);
    impl Physical for Fake {
        fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
            let start = address as usize;
            // Strings are asked for with their longest length: give what there is.
            self.0
                .get(start..(start + len).min(self.0.len()))
                .filter(|b| !b.is_empty())
        }
    }

    type Reader = fn(&Fake, u32, &mut BootInfo) -> Result<(), BootError>;

    fn read(reader: Reader, memory: Vec<u8>, address: u32) -> Result<BootInfo, BootError> {
        let mut info = BootInfo::new();
        reader(&Fake(memory), address, &mut info).map(|()| info)
    }

    fn put(memory: &mut [u8], at: usize, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            memory[at + index * 4..at + index * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn sample1() -> Vec<u8> {
        let mut memory = std::vec![0u8; 0x1000];
        put(&mut memory, 0x100, &[1 << 2 | 1 << 3 | 1 << 6 | 1 << 9]);
        put(&mut memory, 0x100 + 16, &[0x200, 1, 0x300]);
        put(&mut memory, 0x100 + 44, &[48, 0x400]);
        put(&mut memory, 0x100 + 64, &[0x500]);
        memory[0x200..0x211].copy_from_slice(b"philoxen loglvl=a");
        put(&mut memory, 0x300, &[0x10_0000, 0x10_2000, 0x600, 0]);
        memory[0x600..0x60f].copy_from_slice(b"vmlinuz  quiet ");
        put(&mut memory, 0x400, &[20, 0, 0, 0x9_f000, 0, 1]);
        put(&mut memory, 0x418, &[20, 0x10_0000, 0, 0x100_0000, 0, 1]);
        memory[0x500..0x504].copy_from_slice(b"qemu");
        memory
    }

    #[test]
    fn multiboot1_from_qemu() {
        let info = read(read1, sample1(), 0x100).unwrap();
        assert_eq!(info.command_line(), "loglvl=a");
        assert_eq!(info.command_line_raw(), "philoxen loglvl=a");
        let module = info.modules().next().unwrap();
        assert_eq!(
            (module.cmdline, module.range),
            ("quiet ", 0x10_0000..0x10_2000)
        );
        assert_eq!(info.memory.len(), 2);
    }

    #[test]
    fn any_damage_is_an_error_or_harmless() {
        // Every single changed word of the structures must end in a result, never in a panic or a hang.
        for at in (0x100..0x174)
            .chain(0x300..0x310)
            .chain(0x400..0x430)
            .step_by(4)
        {
            for value in [0, 1, 0xfff, 0x7fff_ffff, u32::MAX, u32::MAX - 3] {
                let mut memory = sample1();
                put(&mut memory, at, &[value]);
                let _ = read(read1, memory, 0x100);
            }
        }
    }

    #[test]
    fn multiboot2_tags() {
        let mut memory = std::vec![0u8; 0x1000];
        put(&mut memory, 0, &[0x100, 0]);
        put(&mut memory, 8, &[1, 13]);
        memory[16..20].copy_from_slice(b"a b\0");
        put(&mut memory, 24, &[6, 40, 24, 0, 0, 1, 0x1000, 0, 1, 0]);
        put(&mut memory, 64, &[3, 20, 0x20_0000, 0x20_1000]);
        memory[80..84].copy_from_slice(b"x y\0");
        put(&mut memory, 88, &[12, 16, 0, 0]);
        put(
            &mut memory,
            104,
            &[8, 38, 0xe000_0000, 0, 4096, 1024, 768, 0x0120],
        );
        put(&mut memory, 136, &[0x0808_0810, 0x0800]);
        put(&mut memory, 144, &[0, 8]);
        let info = read(read2, memory.clone(), 0).unwrap();
        assert_eq!(info.command_line(), "a b");
        assert_eq!(info.modules().next().unwrap().cmdline, "x y");
        assert_eq!(info.memory[0].start, 1 << 32);
        assert_eq!(info.memory[0].kind, RegionKind::Usable);
        assert!(info.efi);
        assert!(matches!(
            info.screen,
            Screen::Linear {
                width: 1024,
                bits: 32,
                ..
            }
        ));
        for at in (0..152).step_by(4) {
            for value in [0, 1, 7, 0xfff, u32::MAX] {
                let mut memory = memory.clone();
                put(&mut memory, at, &[value]);
                let _ = read(read2, memory, 0);
            }
        }
    }
}
