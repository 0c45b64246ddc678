// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hand-made tables, whole, damaged and cut short.

use super::*;
use std::vec::Vec;

const RSDT: u64 = 0x1000;
const TABLES: u64 = 0x2000;

fn seal(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = 0u8.wrapping_sub(bytes.iter().fold(0, |sum: u8, b| sum.wrapping_add(*b)));
}

fn finish(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(*signature);
    bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(body);
    seal(&mut bytes, 9);
    bytes
}

fn sample_madt() -> Vec<u8> {
    let mut body = Vec::from([0, 0, 0xe0, 0xfe, 1, 0, 0, 0]);
    body.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
    body.extend_from_slice(&[0, 8, 1, 1, 1, 0, 0, 0]);
    body.extend_from_slice(&[0, 8, 2, 2, 0, 0, 0, 0]);
    body.extend_from_slice(&[1, 12, 7, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    body.extend_from_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body.extend_from_slice(&[2, 10, 0, 9, 9, 0, 0, 0, 13, 0]);
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    body.extend_from_slice(&[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
    finish(b"APIC", &body)
}

fn sample_fadt(dsdt: u32) -> Vec<u8> {
    let mut whole = std::vec![0u8; 244];
    let mut put = |at: usize, value: &[u8]| whole[at..at + value.len()].copy_from_slice(value);
    put(36, &0x7_0000u32.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    put(46, &9u16.to_le_bytes());
    put(48, &[0xb2, 0, 0, 0, 0xf1]);
    put(56, &0x600u32.to_le_bytes());
    put(64, &0x604u32.to_le_bytes());
    put(76, &0x608u32.to_le_bytes());
    put(108, &[0x32]);
    put(112, &(1u32 << 10 | 1 << 8).to_le_bytes());
    put(116, &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 0x0f]);
    finish(b"FACP", &whole[HEADER..])
}

fn sample_dsdt() -> Vec<u8> {
    finish(
        b"DSDT",
        b"\x10\x05\x08_S5_\x12\x08\x04\x0a\x05\x01\x00\x00rest",
    )
}

/// Memory as (address, bytes).
fn memory(tables: &[Vec<u8>]) -> Vec<(u64, Vec<u8>)> {
    let mut parts = Vec::new();
    let mut root = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        let address = TABLES + at as u64 * 0x1000;
        if !table.starts_with(b"DSDT") {
            root.extend_from_slice(&(address as u32).to_le_bytes());
        }
        parts.push((address, table.clone()));
    }
    parts.push((RSDT, finish(b"RSDT", &root)));
    parts
}

fn read(parts: &[(u64, Vec<u8>)], address: u64, len: usize) -> Option<&[u8]> {
    parts.iter().find_map(|(start, bytes)| {
        let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
        bytes.get(offset..offset.checked_add(len)?)
    })
}

fn parse_parts(parts: &[(u64, Vec<u8>)]) -> Option<Acpi> {
    parse(
        &|address, len| read(parts, address, len),
        Rsdp {
            rsdt: RSDT,
            xsdt: 0,
        },
    )
}

fn all() -> Vec<Vec<u8>> {
    let mut hpet = std::vec![0u8; 20];
    hpet[4] = 0;
    hpet[8..16].copy_from_slice(&0xfed0_0000u64.to_le_bytes());
    let mut windows = std::vec![0u8; 24];
    windows[8..16].copy_from_slice(&0xb000_0000u64.to_le_bytes());
    windows[19] = 0xff;
    let mcfg = finish(b"MCFG", &windows);
    let dsdt_at = (TABLES + 0x4000) as u32;
    Vec::from([
        sample_madt(),
        sample_fadt(dsdt_at),
        finish(b"HPET", &hpet),
        mcfg,
        sample_dsdt(),
    ])
}

#[test]
fn everything_is_found() {
    let acpi = parse_parts(&memory(&all())).unwrap();
    assert_eq!(acpi.local_apic, 0xfee0_0000);
    assert!(acpi.has_8259);
    let ids: Vec<_> = acpi
        .processors
        .iter()
        .map(|p| (p.apic_id, p.acpi_id))
        .collect();
    assert_eq!(ids, [(0, 0), (1, 1), (0x100, 5)]);
    let io_apic = IoApic {
        id: 7,
        address: 0xfec0_0000,
        gsi_base: 0,
    };
    assert_eq!(acpi.io_apics.as_slice(), [io_apic]);
    assert_eq!(acpi.isa(0), (2, Signal::ISA));
    assert_eq!(
        acpi.isa(9),
        (
            9,
            Signal {
                level: true,
                low: false
            }
        )
    );
    assert_eq!(acpi.isa(4), (4, Signal::ISA));
    assert_eq!(
        acpi.local_nmis[0],
        LocalNmi {
            acpi_id: None,
            lint: 1,
            signal: Signal::ISA
        }
    );
    let fadt = acpi.fadt.unwrap();
    assert_eq!(
        (fadt.sci, fadt.pm1a_control, fadt.pm1b_control),
        (9, Some(0x604), None)
    );
    assert_eq!(
        (fadt.pm1a_event, fadt.pm_timer, fadt.pm_timer_32),
        (Some(0x600), Some(0x608), true)
    );
    assert_eq!(
        (fadt.century, fadt.smi_command, fadt.facs),
        (0x32, (0xb2, 0xf1), 0x7_0000)
    );
    assert_eq!(
        fadt.reset,
        Some((
            Register {
                space: Space::Port,
                address: 0xcf9
            },
            0x0f
        ))
    );
    assert_eq!(acpi.hpet, Some(0xfed0_0000));
    let window = Mcfg {
        address: 0xb000_0000,
        segment: 0,
        first_bus: 0,
        last_bus: 255,
    };
    assert_eq!(acpi.mcfg.as_slice(), [window]);
    assert_eq!(acpi.s5, Some((5, 1)));
}

#[test]
fn a_wrong_checksum_hides_a_table() {
    let mut tables = all();
    let last = tables[0].len() - 1;
    tables[0][last] ^= 1;
    let acpi = parse_parts(&memory(&tables)).unwrap();
    assert!(acpi.processors.is_empty());
    assert!(acpi.fadt.is_some());
    let mut parts = memory(&all());
    parts.last_mut().unwrap().1[36] ^= 1;
    assert!(parse_parts(&parts).is_none());
}

#[test]
fn tables_cut_short_end_early() {
    for which in 0..5 {
        for keep in 0..all()[which].len() - HEADER {
            let mut tables = all();
            let signature: [u8; 4] = tables[which][..4].try_into().unwrap();
            tables[which] = finish(&signature, &tables[which][HEADER..HEADER + keep]);
            let acpi = parse_parts(&memory(&tables)).unwrap();
            assert!(acpi.processors.len() <= 3);
            // The length says more than there is.
            let length = tables[which].len() as u32 + 1;
            tables[which][4..8].copy_from_slice(&length.to_le_bytes());
            seal(&mut tables[which], 9);
            parse_parts(&memory(&tables)).unwrap();
        }
    }
}

#[test]
fn an_entry_of_length_zero_ends_the_list() {
    let body = [
        0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0,
    ];
    let acpi = parse_parts(&memory(&[finish(b"APIC", &body)])).unwrap();
    assert!(acpi.processors.is_empty());
    assert!(!acpi.has_8259);
}

fn rsdp(revision: u8) -> Vec<u8> {
    let mut bytes = Vec::from(*b"RSD PTR \0OEMOEM\0");
    bytes[15] = revision;
    bytes.extend_from_slice(&0x1234u32.to_le_bytes());
    seal(&mut bytes[..20], 8);
    bytes.extend_from_slice(&36u32.to_le_bytes());
    bytes.extend_from_slice(&0x5678u64.to_le_bytes());
    bytes.resize(36, 0);
    seal(&mut bytes, 32);
    bytes
}

#[test]
fn root_pointers() {
    assert_eq!(
        Rsdp::parse(&rsdp(0)),
        Some(Rsdp {
            rsdt: 0x1234,
            xsdt: 0
        })
    );
    assert_eq!(
        Rsdp::parse(&rsdp(2)),
        Some(Rsdp {
            rsdt: 0x1234,
            xsdt: 0x5678
        })
    );
    let mut damaged = rsdp(2);
    damaged[30] ^= 1;
    assert_eq!(
        Rsdp::parse(&damaged),
        Some(Rsdp {
            rsdt: 0x1234,
            xsdt: 0
        })
    );
    damaged[3] ^= 1;
    assert_eq!(Rsdp::parse(&damaged), None);
    assert_eq!(Rsdp::parse(&rsdp(0)[..19]), None);
    let mut area = std::vec![0u8; 4096];
    area[0x120..0x120 + 36].copy_from_slice(&rsdp(2));
    assert_eq!(
        Rsdp::search(&area),
        Some(Rsdp {
            rsdt: 0x1234,
            xsdt: 0x5678
        })
    );
    area.rotate_right(8);
    assert_eq!(Rsdp::search(&area), None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(which in 0usize..5, at in 0usize..300, value: u8) {
        let mut tables = all();
        let index = at % tables[which].len();
        tables[which][index] = value;
        let len = tables[which].len() as u32;
        tables[which][4..8].copy_from_slice(&len.to_le_bytes());
        seal(&mut tables[which], 9);
        let _ = parse_parts(&memory(&tables));
    }
}
