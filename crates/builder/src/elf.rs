// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bounded reader of 64-bit ELF executables: load segments and Xen notes.
//!
//! Segments are placed by physical address (`p_paddr - PADDR_OFFSET + VIRT_BASE`): Linux links its per-processor
//! data at virtual address 0. Invariant: a [`Segment`]'s file bytes exist and its pseudo-physical range does not wrap.

use crate::{
    BuildError, KernelNotes,
    bytes::{slice, u16_at, u32_at, u64_at},
    notes,
};
use alloc::vec::Vec;

/// Most program headers or sections looked at; real kernels have about 5 and 80.
const MAX_HEADERS: u64 = 512;
/// Size of a program header.
const PHDR: u64 = 56;
/// Size of a section header.
const SHDR: u64 = 64;
/// `PT_LOAD`.
const PT_LOAD: u32 = 1;
/// `PT_NOTE`.
const PT_NOTE: u32 = 4;
/// `SHT_NOTE`.
const SHT_NOTE: u32 = 7;

/// One part of the kernel to load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// Pseudo-physical address in the domain, in bytes.
    pub start: u64,
    /// Bytes it takes, `data` and then zeros.
    pub size: u64,
    /// Its bytes in the file; not longer than `size`.
    pub data: &'a [u8],
}

impl Segment<'_> {
    /// First pseudo-physical address after the segment.
    pub const fn end(&self) -> u64 {
        self.start + self.size
    }
}

/// A PV kernel as its file describes it.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    /// Parts to load, in file order; at least one.
    pub segments: Vec<Segment<'a>>,
    /// What its notes say.
    pub notes: KernelNotes<'a>,
    /// First pseudo-physical address that a segment takes.
    pub start: u64,
    /// First pseudo-physical address behind all segments.
    pub end: u64,
}

impl<'a> Kernel<'a> {
    /// Reads the headers and notes of `elf`.
    ///
    /// # Errors
    /// Why the file is no usable 64-bit PV kernel.
    pub fn parse(elf: &'a [u8]) -> Result<Self, BuildError> {
        let header = Header::parse(elf)?;
        let notes = header.notes(elf)?;
        let mut kernel = Self {
            segments: Vec::new(),
            notes,
            start: u64::MAX,
            end: 0,
        };
        for i in 0..header.phnum {
            let at = header.phoff.saturating_add(i * PHDR);
            if u32_at(elf, at) == Some(PT_LOAD) {
                kernel.push(elf, at)?;
            }
        }
        if kernel.segments.is_empty() {
            return Err(BuildError::NotExecutable);
        }
        let end = notes.virt_base.checked_add(kernel.end);
        let entry = notes.entry.checked_sub(notes.virt_base);
        if end.is_none() {
            return Err(BuildError::BadAddress(
                "the kernel reaches past the address space",
            ));
        }
        if entry.is_none_or(|entry| !(kernel.start..kernel.end).contains(&entry)) {
            return Err(BuildError::BadNote("ENTRY"));
        }
        let page = notes
            .hypercall_page
            .map(|page| page.wrapping_sub(notes.virt_base));
        if page.is_some_and(|page| page % 4096 != 0 || !(kernel.start..kernel.end).contains(&page))
        {
            return Err(BuildError::BadNote("HYPERCALL_PAGE"));
        }
        Ok(kernel)
    }

    /// Adds the load segment of the program header at `at`.
    fn push(&mut self, elf: &'a [u8], at: u64) -> Result<(), BuildError> {
        const CUT: BuildError = BuildError::Truncated("a program header");
        let offset = u64_at(elf, at + 8).ok_or(CUT)?;
        let paddr = u64_at(elf, at + 24).ok_or(CUT)?;
        let filesz = u64_at(elf, at + 32).ok_or(CUT)?;
        let size = u64_at(elf, at + 40).ok_or(CUT)?;
        if size == 0 {
            return Ok(());
        }
        if filesz > size {
            return Err(BuildError::BadElf(
                "a segment is longer in the file than in memory",
            ));
        }
        let start = paddr
            .checked_sub(self.notes.paddr_offset)
            .ok_or(BuildError::BadElf("a segment starts below PADDR_OFFSET"))?;
        let end = start.checked_add(size).ok_or(BuildError::BadElf(
            "a segment reaches past the address space",
        ))?;
        let data = slice(elf, offset, filesz).ok_or(BuildError::Truncated("a segment"))?;
        self.segments.push(Segment { start, size, data });
        self.start = self.start.min(start);
        self.end = self.end.max(end);
        Ok(())
    }
}

/// The fields of the ELF header that matter.
struct Header {
    entry: u64,
    phoff: u64,
    phnum: u64,
    shoff: u64,
    shnum: u64,
}

impl Header {
    fn parse(elf: &[u8]) -> Result<Self, BuildError> {
        const CUT: BuildError = BuildError::Truncated("the ELF header");
        let ident = slice(elf, 0, 16).ok_or(CUT)?;
        if !ident.starts_with(b"\x7fELF") {
            return Err(BuildError::NotAKernel);
        }
        // ELFCLASS64, ELFDATA2LSB, EM_X86_64.
        if ident.get(4..6) != Some(&[2, 1]) || u16_at(elf, 18).ok_or(CUT)? != 62 {
            return Err(BuildError::WrongMachine);
        }
        // ET_EXEC or ET_DYN.
        if !matches!(u16_at(elf, 16).ok_or(CUT)?, 2 | 3) {
            return Err(BuildError::NotExecutable);
        }
        let header = Self {
            entry: u64_at(elf, 24).ok_or(CUT)?,
            phoff: u64_at(elf, 32).ok_or(CUT)?,
            shoff: u64_at(elf, 40).ok_or(CUT)?,
            phnum: u64::from(u16_at(elf, 56).ok_or(CUT)?),
            shnum: u64::from(u16_at(elf, 60).ok_or(CUT)?),
        };
        if header.phnum == 0 {
            return Err(BuildError::NotExecutable);
        }
        if header.phnum > MAX_HEADERS {
            return Err(BuildError::BadElf("too many program headers"));
        }
        if u16_at(elf, 54).map(u64::from) != Some(PHDR) {
            return Err(BuildError::BadElf("program headers of an unknown size"));
        }
        if slice(elf, header.phoff, header.phnum * PHDR).is_none() {
            return Err(BuildError::Truncated("the program headers"));
        }
        Ok(header)
    }

    /// The Xen notes: from the note segments, else (a linker script without one) from the note sections.
    fn notes<'a>(&self, elf: &'a [u8]) -> Result<KernelNotes<'a>, BuildError> {
        let mut notes = notes::Collector::new(self.entry);
        for i in 0..self.phnum {
            let at = self.phoff.saturating_add(i * PHDR);
            if u32_at(elf, at) == Some(PT_NOTE) {
                let offset = u64_at(elf, at + 8).unwrap_or(u64::MAX);
                let size = u64_at(elf, at + 32).unwrap_or(0);
                let block = slice(elf, offset, size).ok_or(BuildError::Truncated("the notes"))?;
                notes.add_block(block)?;
            }
        }
        if !notes.found() {
            for i in 0..self.shnum.min(MAX_HEADERS) {
                let at = self.shoff.saturating_add(i * SHDR);
                if u32_at(elf, at.saturating_add(4)) == Some(SHT_NOTE) {
                    let offset = u64_at(elf, at.saturating_add(24)).unwrap_or(u64::MAX);
                    let size = u64_at(elf, at.saturating_add(32)).unwrap_or(0);
                    let block =
                        slice(elf, offset, size).ok_or(BuildError::Truncated("the notes"))?;
                    notes.add_block(block)?;
                }
            }
        }
        notes.finish()
    }
}
