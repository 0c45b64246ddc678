// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bad and compressed images: always a reason, never a panic.

use super::{BASE, KERNEL_START, elf, linux_notes, note, small_kernel};
use crate::{BuildError, Flavour, Kernel, Plan, Request, unpack};
use philoxen_abi::elfnote;
use proptest::prelude::*;
use std::time::Instant;

/// `b"The same bytes, over and over. "` 20 times, by `xz --x86 --lzma2 --check=crc32`.
const XZ: &[u8] = &XZ_BYTES;
/// By `gzip -n`.
const GZIP: &[u8] = &GZIP_BYTES;
/// By `zstd`.
const ZSTD: &[u8] = &ZSTD_BYTES;
/// By `lz4 -l`.
const LZ4: &[u8] = &LZ4_BYTES;

fn plain() -> Vec<u8> {
    b"The same bytes, over and over. ".repeat(20)
}

const XZ_BYTES: [u8; 100] = [
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x01, 0x04, 0x00,
    0x21, 0x01, 0x1a, 0x00, 0x01, 0xc9, 0x80, 0xb3, 0xe0, 0x02, 0x6b, 0x00, 0x26, 0x5d, 0x00, 0x2a,
    0x1a, 0x08, 0xa2, 0x03, 0x35, 0x84, 0xa5, 0x8d, 0x79, 0xbb, 0x5f, 0x53, 0xb7, 0x65, 0xd9, 0x12,
    0xec, 0x05, 0x0f, 0x41, 0x74, 0xa3, 0x6b, 0x9a, 0x69, 0x95, 0x78, 0xf2, 0x51, 0x09, 0xf8, 0x97,
    0x50, 0xea, 0xfa, 0xe0, 0x00, 0x00, 0x00, 0x00, 0x06, 0x3c, 0xf2, 0x5a, 0x00, 0x01, 0x3e, 0xec,
    0x04, 0x00, 0x00, 0x00, 0x89, 0x0f, 0x63, 0x9f, 0x3e, 0x30, 0x0d, 0x8b, 0x02, 0x00, 0x00, 0x00,
    0x00, 0x01, 0x59, 0x5a,
];
const GZIP_BYTES: [u8; 55] = [
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0x0b, 0xc9, 0x48, 0x55, 0x28, 0x4e,
    0xcc, 0x4d, 0x55, 0x48, 0xaa, 0x2c, 0x49, 0x2d, 0xd6, 0x51, 0xc8, 0x2f, 0x4b, 0x2d, 0x52, 0x48,
    0xcc, 0x4b, 0x01, 0x33, 0xf4, 0x14, 0x42, 0x46, 0xa5, 0x47, 0xa5, 0xa9, 0x25, 0x0d, 0x00, 0x06,
    0x3c, 0xf2, 0x5a, 0x6c, 0x02, 0x00, 0x00,
];
const ZSTD_BYTES: [u8; 49] = [
    0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x68, 0x25, 0x01, 0x00, 0xd0, 0x54, 0x68, 0x65, 0x20, 0x73, 0x61,
    0x6d, 0x65, 0x20, 0x62, 0x79, 0x74, 0x65, 0x73, 0x2c, 0x20, 0x6f, 0x76, 0x65, 0x72, 0x20, 0x61,
    0x6e, 0x64, 0x2e, 0x20, 0x02, 0x00, 0x4a, 0x84, 0x2a, 0x0c, 0xdb, 0x32, 0x06, 0xb5, 0xf3, 0xf4,
    0x7b,
];
const LZ4_BYTES: [u8; 50] = [
    0x02, 0x21, 0x4c, 0x18, 0x2a, 0x00, 0x00, 0x00, 0xf1, 0x09, 0x54, 0x68, 0x65, 0x20, 0x73, 0x61,
    0x6d, 0x65, 0x20, 0x62, 0x79, 0x74, 0x65, 0x73, 0x2c, 0x20, 0x6f, 0x76, 0x65, 0x72, 0x20, 0x61,
    0x6e, 0x64, 0x09, 0x00, 0x2f, 0x2e, 0x20, 0x1f, 0x00, 0xff, 0xff, 0x37, 0x50, 0x76, 0x65, 0x72,
    0x2e, 0x20,
];

/// A bzImage around `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 5 * 512 + 100];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0f, 2]);
    put(0x248, &100u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image
}

/// A stream as Linux puts it into a bzImage: gzip has its size at the end anyway.
fn linux_payload(stream: &[u8]) -> Vec<u8> {
    let size = (plain().len() as u32).to_le_bytes();
    if stream == GZIP {
        stream.to_vec()
    } else {
        [stream, &size].concat()
    }
}

/// Both stages.
fn both(image: &[u8]) -> Result<usize, BuildError> {
    let unpacked = unpack(image)?;
    Kernel::parse(&unpacked).map(|kernel| kernel.segments.len())
}

#[test]
fn every_format_is_unpacked() {
    for stream in [XZ, GZIP, ZSTD, LZ4] {
        assert_eq!(unpack(stream).unwrap(), plain());
        assert_eq!(unpack(&bzimage(&linux_payload(stream))).unwrap(), plain());
    }
    let kernel = small_kernel(&linux_notes());
    assert_eq!(unpack(&kernel).unwrap(), kernel);
    assert_eq!(unpack(&bzimage(&kernel)).unwrap(), kernel);
}

#[test]
fn a_wrong_size_word_is_noticed() {
    for (stream, by) in [XZ, ZSTD, LZ4, GZIP]
        .into_iter()
        .flat_map(|s| [(s, 1), (s, -1), (s, 1000)])
    {
        let mut payload = linux_payload(stream);
        let at = payload.len() - 4;
        let size = (plain().len() as i32 + by) as u32;
        payload[at..].copy_from_slice(&size.to_le_bytes());
        let error = unpack(&bzimage(&payload)).unwrap_err();
        assert_eq!(error, BuildError::Corrupt("unpacked size"));
        payload[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(unpack(&bzimage(&payload)), Err(BuildError::TooLarge));
    }
}

#[test]
fn truncated_streams_are_refused() {
    for stream in [XZ, GZIP, ZSTD, LZ4] {
        for len in 0..stream.len() {
            // LZ4's legacy format has no end mark: what ends between two blocks is whole.
            let whole = stream == LZ4 && len == 4;
            assert!(
                unpack(&stream[..len]).is_err() || whole,
                "{len} of {stream:x?}"
            );
            let image = bzimage(&linux_payload(stream));
            assert!(unpack(&image[..image.len() - 1 - len]).is_err());
        }
    }
}

#[test]
fn what_is_no_kernel_has_a_reason() {
    let mut cases = vec![
        (vec![], BuildError::NotAKernel),
        (b"#!/bin/sh\n".to_vec(), BuildError::NotAKernel),
        (vec![0; 4096], BuildError::NotAKernel),
        (
            b"BZh9xxxxxxxx".to_vec(),
            BuildError::UnknownCompression("bzip2"),
        ),
        (
            bzimage(b"rubbish!"),
            BuildError::UnknownCompression("an unknown method"),
        ),
        (b"\x7fELF".to_vec(), BuildError::Truncated("the ELF header")),
    ];
    let good = small_kernel(&linux_notes());
    let mut with = |at: usize, bytes: &[u8], error| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        cases.push((image, error));
    };
    with(4, &[1], BuildError::WrongMachine);
    with(5, &[2], BuildError::WrongMachine);
    with(18, &[3], BuildError::WrongMachine);
    with(16, &[1], BuildError::NotExecutable);
    with(56, &[0, 0], BuildError::NotExecutable);
    with(
        56,
        &[0xff, 0xff],
        BuildError::BadElf("too many program headers"),
    );
    with(
        54,
        &[55],
        BuildError::BadElf("program headers of an unknown size"),
    );
    with(32, &[0xff; 8], BuildError::Truncated("the program headers"));
    with(64 + 8, &[0xff; 8], BuildError::Truncated("a segment"));
    with(64 + 40, &[0; 8], BuildError::BadNote("ENTRY"));
    with(
        64 + 40,
        &[1, 0, 0, 0, 0, 0, 0, 0],
        BuildError::BadElf("a segment is longer in the file than in memory"),
    );
    with(
        64 + 40,
        &[0xff; 8],
        BuildError::BadElf("a segment reaches past the address space"),
    );
    with(
        64 + 2 * 56 + 8,
        &[0xff; 8],
        BuildError::Truncated("the notes"),
    );
    let mut old = bzimage(XZ);
    old[0x206] = 7;
    cases.push((old, BuildError::OldBzImage));
    let mut long = bzimage(XZ);
    long[0x24c..0x250].fill(0xff);
    cases.push((long, BuildError::Truncated("the compressed kernel")));
    cases.push((
        bzimage(XZ)[..0x24e].to_vec(),
        BuildError::Truncated("the setup header"),
    ));
    let mut sha = XZ.to_vec();
    sha[7] = 10;
    cases.push((sha, BuildError::Corrupt("XZ header")));
    for (image, error) in cases {
        assert_eq!(both(&image), Err(error));
        let line = error.to_string();
        assert!(line.len() < 100 && !line.contains('\n'), "{line}");
    }
}

#[test]
fn notes_decide() {
    let image = |notes: &[(u32, Vec<u8>)]| elf(&[(KERNEL_START, vec![0; 64], 64)], notes);
    let number = |n: u64| n.to_le_bytes().to_vec();
    let phys = (elfnote::PHYS32_ENTRY, number(0x100_0000));
    assert_eq!(both(&image(&[])), Err(BuildError::NoXenNotes));
    assert_eq!(
        both(&image(std::slice::from_ref(&phys))),
        Err(BuildError::OnlyPvh)
    );
    assert_eq!(
        both(&image(&[
            phys,
            (elfnote::XEN_VERSION, b"xen-3.0\0".to_vec())
        ])),
        Err(BuildError::OnlyPvh)
    );
    assert_eq!(both(&image(&linux_notes())), Ok(1));
    let also = |kind, desc: &[u8]| {
        let mut notes = linux_notes();
        notes.push((kind, desc.to_vec()));
        both(&image(&notes))
    };
    assert_eq!(
        also(elfnote::VIRT_BASE, b"abc"),
        Err(BuildError::BadNote("VIRT_BASE"))
    );
    assert_eq!(
        also(elfnote::XEN_VERSION, b"xen-2.0"),
        Err(BuildError::BadNote("XEN_VERSION"))
    );
    assert_eq!(
        also(elfnote::ENTRY, &number(1)),
        Err(BuildError::BadNote("ENTRY"))
    );
    assert_eq!(
        also(elfnote::ENTRY, &number(BASE + KERNEL_START + 64)),
        Err(BuildError::BadNote("ENTRY"))
    );
    let below = Err(BuildError::BadElf("a segment starts below PADDR_OFFSET"));
    assert_eq!(also(elfnote::PADDR_OFFSET, &number(u64::MAX)), below);
    assert_eq!(also(0x1234_5678, b"whatever"), Ok(1));
}

#[test]
fn features_are_read() {
    let check = |features: &[u8], numeric: Option<u32>| {
        let mut notes = linux_notes();
        notes.retain(|(kind, _)| ![elfnote::FEATURES, elfnote::SUPPORTED_FEATURES].contains(kind));
        notes.push((elfnote::FEATURES, features.to_vec()));
        notes.extend(numeric.map(|n| (elfnote::SUPPORTED_FEATURES, n.to_le_bytes().to_vec())));
        let image = small_kernel(&notes);
        let kernel = Kernel::parse(&image).unwrap();
        kernel
            .notes
            .check(true)
            .map(|()| (kernel.notes.supported, kernel.notes.required))
    };
    assert_eq!(
        check(b"!writable_page_tables|pae_pgdir_above_4gb", None),
        Ok((0x11, 1))
    );
    assert_eq!(check(b"dom0|unheard_of", Some(1)), Ok((0x801, 0)));
    assert_eq!(check(b"", Some(1)), Err(BuildError::NotDom0));
    let needs = BuildError::NeedsFeature("supervisor_mode_kernel");
    assert_eq!(check(b"!supervisor_mode_kernel|dom0", None), Err(needs));
    assert!(check(b"auto_translated_physmap", None).is_ok());
}

#[test]
fn notes_may_be_in_sections_only() {
    let mut image = elf(&[(KERNEL_START, vec![0; 64], 64)], &[]);
    let blocks: Vec<u8> = linux_notes()
        .iter()
        .flat_map(|(kind, desc)| [note(b"GNU", 3, b"12345"), note(b"Xen", *kind, desc)].concat())
        .collect();
    let offset = image.len() as u64;
    image.extend(&blocks);
    let table = image.len() as u64;
    image.resize(image.len() + 128, 0);
    let mut put = |at: usize, value: u64, len: usize| {
        image[at..at + len].copy_from_slice(&value.to_le_bytes()[..len])
    };
    put(40, table, 8);
    put(60, 2, 2);
    put(table as usize + 64 + 4, 7, 4);
    put(table as usize + 64 + 24, offset, 8);
    put(table as usize + 64 + 32, blocks.len() as u64, 8);
    let kernel = Kernel::parse(&image).unwrap();
    assert_eq!(
        (kernel.notes.virt_base, kernel.notes.guest_os),
        (BASE, "linux")
    );
    assert!(kernel.notes.mod_start_pfn && kernel.notes.pae && kernel.notes.l1_mfn_valid.is_none());
}

#[test]
fn every_truncation_has_a_reason() {
    let kernel = small_kernel(&linux_notes());
    for len in 0..kernel.len() {
        assert!(
            both(&kernel[..len]).is_err(),
            "{len} of {} bytes",
            kernel.len()
        );
    }
    let image = bzimage(&kernel);
    for len in 0..image.len() {
        assert!(both(&image[..len]).is_err());
    }
}

proptest! {
    #[test]
    fn damaged_streams_never_panic(
        which in 0usize..4,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut stream = [XZ, GZIP, ZSTD, LZ4][which].to_vec();
        for (at, value) in changes {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        let _ = both(&stream);
        let _ = both(&bzimage(&stream));
    }

    #[test]
    fn damaged_kernels_never_panic(
        changes in proptest::collection::vec((0usize..900, prop_oneof![any::<u8>(), Just(0xff), Just(0)]), 1..12),
        ramdisk in any::<u64>(),
        nr_pages in prop_oneof![0u64..0x1_0000, any::<u64>()],
        domu in any::<bool>(),
    ) {
        let mut image = small_kernel(&linux_notes());
        // Headers lie at the start, notes at the end.
        let len = image.len();
        for (at, value) in changes {
            image[if at < 450 { at } else { len - 1 - (at - 450) }] = value;
        }
        if let Ok(kernel) = Kernel::parse(&image) {
            let flavour = if domu {
                Flavour::DomU { store_evtchn: 1, console_evtchn: 2 }
            } else {
                Flavour::Dom0 { vga: None, pm: 0 }
            };
            let request = Request { kernel: &kernel, ramdisk_len: ramdisk, cmdline: b"", nr_pages, flavour };
            let _ = Plan::new(&request);
        }
    }
}

/// Unpacks and plans the real kernels named in `PHILOXEN_TEST_KERNELS` (paths separated by `:`), and tells how long it took.
#[test]
fn real_kernels() {
    let Ok(paths) = std::env::var("PHILOXEN_TEST_KERNELS") else {
        return;
    };
    for path in paths.split(':') {
        let image = std::fs::read(path).unwrap();
        let start = Instant::now();
        let unpacked = unpack(&image).unwrap();
        let took = start.elapsed();
        let kernel = Kernel::parse(&unpacked).unwrap();
        println!(
            "{path}: {} bytes in {took:?}, ends at {:#x}",
            unpacked.len(),
            kernel.end
        );
        println!("  {:x?}", kernel.notes);
        assert_eq!(kernel.notes.guest_os, "linux");
        for is_dom0 in [true, false] {
            let flavour = if is_dom0 {
                Flavour::Dom0 { vga: None, pm: 3 }
            } else {
                Flavour::DomU {
                    store_evtchn: 1,
                    console_evtchn: 2,
                }
            };
            let request = Request {
                kernel: &kernel,
                ramdisk_len: 40 << 20,
                cmdline: b"",
                nr_pages: 0x2_0000,
                flavour,
            };
            println!("  {:x?}", Plan::new(&request));
        }
    }
}
