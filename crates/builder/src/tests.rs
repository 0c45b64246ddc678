// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host tests: made-up kernels, a machine of bytes, and a page-table walker that knows nothing of the loader.

mod images;
mod layout;
mod xz;

use crate::Target;
use philoxen_abi::{Mfn, elfnote};
use std::collections::HashMap;

/// Memory of a machine, only as many pages as were written. Frames outside the domain's are refused.
pub struct FakeTarget {
    pages: HashMap<u64, Box<[u8; 4096]>>,
    owned: Vec<std::ops::Range<u64>>,
}

impl FakeTarget {
    pub fn new(owned: Vec<std::ops::Range<u64>>) -> Self {
        Self {
            pages: HashMap::new(),
            owned,
        }
    }
    pub fn word(&self, address: u64) -> u64 {
        let page = self.pages.get(&(address >> 12));
        let at = (address & 0xfff) as usize;
        page.map_or(0xdead_dead_dead_dead, |p| {
            u64::from_le_bytes(p[at..at + 8].try_into().unwrap())
        })
    }
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let byte = |at: u64| {
            self.pages
                .get(&(at >> 12))
                .map_or(0xee, |p| p[(at & 0xfff) as usize])
        };
        (address..address + len as u64).map(byte).collect()
    }
    fn each(&mut self, at: Mfn, offset: u64, len: u64, mut write: impl FnMut(&mut [u8], usize)) {
        assert!(len > 0);
        let mut done = 0;
        while done < len {
            let address = at.addr() + offset + done;
            let mfn = address >> 12;
            assert!(
                self.owned.iter().any(|r| r.contains(&mfn)),
                "write outside the domain: {mfn:#x}"
            );
            let start = (address & 0xfff) as usize;
            let part = (4096 - start).min((len - done) as usize);
            let page = self
                .pages
                .entry(mfn)
                .or_insert_with(|| Box::new([0xee; 4096]));
            write(&mut page[start..start + part], done as usize);
            done += part as u64;
        }
    }
}

impl Target for FakeTarget {
    fn write(&mut self, at: Mfn, offset: u64, data: &[u8]) {
        self.each(at, offset, data.len() as u64, |to, done| {
            to.copy_from_slice(&data[done..done + to.len()]);
        });
    }
    fn zero(&mut self, at: Mfn, offset: u64, len: u64) {
        self.each(at, offset, len, |to, _| to.fill(0));
    }
}

/// One note.
pub fn note(owner: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [owner.len() as u32 + 1, desc.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    for part in [&[owner, b"\0"].concat(), desc] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Notes as Linux has them.
pub fn linux_notes() -> Vec<(u32, Vec<u8>)> {
    let number = |n: u64| n.to_le_bytes().to_vec();
    vec![
        (elfnote::XEN_VERSION, b"xen-3.0\0".to_vec()),
        (elfnote::GUEST_OS, b"linux\0".to_vec()),
        (elfnote::LOADER, b"generic\0".to_vec()),
        (elfnote::PAE_MODE, b"yes\0".to_vec()),
        (elfnote::VIRT_BASE, number(BASE)),
        (elfnote::ENTRY, number(BASE + KERNEL_START + 0x10)),
        (elfnote::INIT_P2M, number(P2M_BASE)),
        (elfnote::MOD_START_PFN, number(1)),
        (
            elfnote::FEATURES,
            b"!writable_page_tables|pae_pgdir_above_4gb\0".to_vec(),
        ),
        (
            elfnote::SUPPORTED_FEATURES,
            0x8801u32.to_le_bytes().to_vec(),
        ),
        (elfnote::HV_START_LOW, number(0xffff_8000_0000_0000)),
    ]
}

pub const BASE: u64 = 0xffff_ffff_8000_0000;
pub const P2M_BASE: u64 = 0x80_0000_0000;
pub const KERNEL_START: u64 = 0x10_0000;

/// An ELF kernel with the given load segments (physical address, bytes, size in memory) and notes.
pub fn elf(segments: &[(u64, Vec<u8>, u64)], notes: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut file = vec![0; 64 + 56 * (segments.len() + 1)];
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0]);
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 54, &[56, 0, segments.len() as u8 + 1, 0]);
    let blocks = segments
        .iter()
        .map(|(paddr, data, size)| (1u32, *paddr, data.clone(), *size));
    let note_bytes: Vec<u8> = notes
        .iter()
        .flat_map(|(kind, desc)| note(elfnote::OWNER, *kind, desc))
        .collect();
    let note_size = note_bytes.len() as u64;
    let all = blocks.chain([(4, 0, note_bytes, note_size)]);
    for (i, (kind, paddr, data, size)) in all.enumerate() {
        let at = 64 + 56 * i;
        put(&mut file, at, &kind.to_le_bytes());
        let offset = file.len() as u64;
        for (field, value) in [
            (8, offset),
            (24, paddr),
            (32, data.len() as u64),
            (40, size),
        ] {
            put(&mut file, at + field, &value.to_le_bytes());
        }
        file.extend(data);
    }
    file
}

/// A small kernel with those notes: 1 MiB up, one page of code and some zeros.
pub fn small_kernel(notes: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let code: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
    elf(
        &[
            (KERNEL_START, code, 0x3000),
            (KERNEL_START + 0x5000, vec![0x5a; 100], 0x2345),
        ],
        notes,
    )
}
