// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks of the linked hypervisor, and the symbol table it carries.
//!
//! QEMU loads a multiboot image by addresses in its header: one run of the file at one physical address. So the
//! distance between file offset and physical address must be the same in every segment.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use object::LittleEndian;
use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD, SHT_SYMTAB, STT_FUNC, STT_NOTYPE};
use object::read::elf::{FileHeader as _, ProgramHeader as _, Sym as _};

/// Longest name kept in the symbol table.
const NAME_LIMIT: usize = 60;

/// What counts of a segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    virt: u64,
    phys: u64,
    file_size: u64,
    memory_size: u64,
    flags: u32,
}

/// A linked image.
#[derive(Debug)]
pub struct Image {
    segments: Vec<Segment>,
    /// Names of functions by address.
    functions: BTreeMap<u64, String>,
}

impl Image {
    /// Reads an ELF file.
    pub fn read(path: &Path) -> Result<Self> {
        let data =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&data).map_err(|error| anyhow!("{}: {error}", path.display()))
    }

    fn parse(data: &[u8]) -> object::Result<Self> {
        let endian = LittleEndian;
        let header = FileHeader64::<LittleEndian>::parse(data)?;
        let segments: Vec<Segment> = header
            .program_headers(endian, data)?
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_memsz(endian) > 0)
            .map(|segment| Segment {
                offset: segment.p_offset(endian),
                virt: segment.p_vaddr(endian),
                phys: segment.p_paddr(endian),
                file_size: segment.p_filesz(endian),
                memory_size: segment.p_memsz(endian),
                flags: segment.p_flags(endian),
            })
            .collect();

        let executable = |address: u64| {
            segments.iter().any(|segment| {
                segment.flags & PF_X != 0
                    && address
                        .checked_sub(segment.virt)
                        .is_some_and(|offset| offset < segment.memory_size)
            })
        };
        let mut functions = BTreeMap::new();
        let symbols = header
            .sections(endian, data)?
            .symbols(endian, data, SHT_SYMTAB)?;
        for symbol in symbols.iter() {
            let address = symbol.st_value(endian);
            // Labels of assembly code have no type; both mark where code starts.
            let code = matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE) && executable(address);
            if symbol.is_undefined(endian) || !code {
                continue;
            }
            let raw = String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?);
            let name = short_name(&raw);
            if name.is_empty() || name.starts_with(".L") {
                continue;
            }
            // Of several names for one place the longest says most; ties are broken by the alphabet so that
            // equal builds give equal tables.
            let best = functions.entry(address).or_insert_with(String::new);
            if (name.len(), &name) > (best.len(), &*best) {
                *best = name;
            }
        }
        Ok(Self {
            segments,
            functions,
        })
    }

    /// Lowest virtual address less its physical address: what the symbol table counts from.
    pub fn base(&self) -> Option<u64> {
        self.segments
            .iter()
            .filter(|segment| segment.virt != segment.phys)
            .map(|segment| segment.virt.wrapping_sub(segment.phys))
            .min()
    }

    /// Number of functions known by name.
    pub fn symbol_count(&self) -> usize {
        self.functions.len()
    }

    /// Checks that the image can be loaded, and returns its size in memory.
    pub fn check(&self, limit: u64) -> Result<u64> {
        let mut distance = None;
        let (mut low, mut high) = (u64::MAX, 0);
        for segment in &self.segments {
            low = low.min(segment.phys);
            high = high.max(segment.phys.saturating_add(segment.memory_size));
            if segment.file_size == 0 {
                continue;
            }
            let this = segment.phys.wrapping_sub(segment.offset);
            let first = *distance.get_or_insert(this);
            ensure!(
                this == first,
                "the segment at {:#x} is {this:#x} away from its place in the file, the first one {first:#x}: \
                 multiboot loaders would misplace it",
                segment.virt
            );
            ensure!(
                segment.flags & (PF_W | PF_X) != PF_W | PF_X,
                "the segment at {:#x} is writable and executable",
                segment.virt
            );
        }
        if low >= high {
            bail!("the image has nothing to load");
        }
        let size = high - low;
        ensure!(
            size < limit,
            "the image takes {} KiB of memory; {} KiB is the limit",
            size.div_ceil(1024),
            limit / 1024
        );
        Ok(size)
    }

    /// Sizes by kind of segment, for the user.
    pub fn sections_line(&self) -> String {
        let (mut text, mut read_only, mut data, mut zero) = (0, 0, 0, 0);
        for segment in &self.segments {
            if segment.flags & PF_X != 0 {
                text += segment.file_size;
            } else if segment.flags & PF_W == 0 {
                read_only += segment.file_size;
            } else {
                data += segment.file_size;
            }
            zero += segment.memory_size.saturating_sub(segment.file_size);
        }
        let kib = |bytes: u64| bytes.div_ceil(1024);
        format!(
            "text {}, read-only {}, data {}, zero {}",
            kib(text),
            kib(read_only),
            kib(data),
            kib(zero)
        )
    }

    /// The symbol table in the form that the hypervisor reads, all numbers little-endian: `u32` count; per function,
    /// in order of address, `u32` offset from `base` and `u32` offset of its name; then the names, each ended by NUL.
    pub fn symbol_blob(&self, base: u64) -> Result<Vec<u8>> {
        let mut table = Vec::new();
        let mut names = Vec::new();
        let mut count = 0u32;
        for (address, name) in &self.functions {
            // Start-up code that runs at its physical address is not found by a backtrace.
            let Some(offset) = address.checked_sub(base) else {
                continue;
            };
            table.extend(
                u32::try_from(offset)
                    .context("a symbol is too far from the base")?
                    .to_le_bytes(),
            );
            table.extend(u32::try_from(names.len())?.to_le_bytes());
            names.extend(name.bytes());
            names.push(0);
            count += 1;
        }
        let mut blob = count.to_le_bytes().to_vec();
        blob.extend(table);
        blob.extend(names);
        Ok(blob)
    }
}

/// The readable name without hash and generic arguments, cut to what a line of a backtrace has room for.
fn short_name(raw: &str) -> String {
    let full = format!("{:#}", rustc_demangle::demangle(raw));
    let mut name = String::new();
    let mut depth = 0usize;
    for character in full.chars() {
        match character {
            // `<Type as Trait>::method` at the start keeps its text; generic arguments further in are dropped.
            '<' if !name.is_empty() && name != "<" => depth += 1,
            '>' if depth > 0 => depth -= 1,
            _ if depth == 0 && character.is_ascii() && !character.is_ascii_control() => {
                name.push(character)
            }
            _ => {}
        }
    }
    name.truncate(NAME_LIMIT);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, phys: u64, size: u64, flags: u32) -> Segment {
        Segment {
            offset,
            virt: 0xffff_8080_0000_0000 + phys,
            phys,
            file_size: size,
            memory_size: size,
            flags,
        }
    }

    fn image(segments: Vec<Segment>) -> Image {
        Image {
            segments,
            functions: BTreeMap::from([
                (0xffff_8080_0010_0000, "first".to_owned()),
                (0xffff_8080_0010_0010, "second".to_owned()),
            ]),
        }
    }

    #[test]
    fn names_are_short() {
        assert_eq!(short_name("guest_start"), "guest_start");
        assert_eq!(
            short_name("_ZN4core9panicking9panic_fmt17h0123456789abcdefE"),
            "core::panicking::panic_fmt"
        );
        assert!(short_name(&"x".repeat(200)).len() <= NAME_LIMIT);
    }

    #[test]
    fn a_misplaced_segment_is_found() {
        let good = image(vec![
            segment(0x1000, 0x100000, 0x1000, PF_X),
            segment(0x2000, 0x101000, 0x1000, 0),
        ]);
        assert_eq!(good.check(1 << 20).unwrap(), 0x2000);
        let bad = image(vec![
            segment(0x1000, 0x100000, 0x1000, PF_X),
            segment(0x2000, 0x102000, 0x1000, 0),
        ]);
        assert!(bad.check(1 << 20).is_err());
        assert!(good.check(0x1000).is_err());
        assert!(
            image(vec![segment(0, 0x100000, 16, PF_W | PF_X)])
                .check(1 << 20)
                .is_err()
        );
    }

    #[test]
    fn the_blob_reads_back() {
        let image = image(vec![segment(0x1000, 0x100000, 0x1000, PF_X)]);
        let blob = image.symbol_blob(image.base().unwrap()).unwrap();
        let word = |at: usize| u32::from_le_bytes(blob[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), 2);
        assert_eq!((word(4), word(8)), (0x10_0000, 0));
        assert_eq!((word(12), word(16)), (0x10_0010, 6));
        assert_eq!(&blob[20..], b"first\0second\0");
    }
}
