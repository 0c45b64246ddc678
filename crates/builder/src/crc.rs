// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reflected CRCs of gzip and XZ: CRC-32 (IEEE 802.3), eight bytes at a time, and CRC-64 (ECMA-182).

/// Reversed polynomial of CRC-32.
const POLY32: u64 = 0xedb8_8320;
/// Reversed polynomial of CRC-64.
const POLY64: u64 = 0xc96c_5795_d787_0f42;

/// Remainder of every byte followed by `zeros` zero bytes.
const fn table(poly: u64, zeros: usize) -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 * (zeros + 1) {
            value = if value & 1 != 0 {
                poly ^ (value >> 1)
            } else {
                value >> 1
            };
            bit += 1;
        }
        #[expect(
            clippy::indexing_slicing,
            reason = "evaluated at compile time, byte < 256"
        )]
        {
            table[byte] = value;
        }
        byte += 1;
    }
    table
}

const fn narrow(wide: [u64; 256]) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(
            clippy::indexing_slicing,
            reason = "evaluated at compile time, byte < 256"
        )]
        {
            table[byte] = wide[byte] as u32;
        }
        byte += 1;
    }
    table
}

/// Tables for a byte with 0 to 7 bytes behind it.
static CRC32: [[u32; 256]; 8] = [
    narrow(table(POLY32, 0)),
    narrow(table(POLY32, 1)),
    narrow(table(POLY32, 2)),
    narrow(table(POLY32, 3)),
    narrow(table(POLY32, 4)),
    narrow(table(POLY32, 5)),
    narrow(table(POLY32, 6)),
    narrow(table(POLY32, 7)),
];
static CRC64: [u64; 256] = table(POLY64, 0);

/// The entry of a byte.
#[inline(always)]
fn entry<T: Copy>(table: &[T; 256], byte: u8) -> T {
    #[expect(clippy::indexing_slicing, reason = "a byte is below 256")]
    table[usize::from(byte)]
}

/// CRC-32 of `data`.
pub fn crc32(data: &[u8]) -> u32 {
    let [t0, t1, t2, t3, t4, t5, t6, t7] = &CRC32;
    let (words, rest) = data.as_chunks::<8>();
    let mut crc = u32::MAX;
    for &[a, b, c, d, e, f, g, h] in words {
        let [a, b, c, d] = (crc ^ u32::from_le_bytes([a, b, c, d])).to_le_bytes();
        crc = entry(t7, a) ^ entry(t6, b) ^ entry(t5, c) ^ entry(t4, d);
        crc ^= entry(t3, e) ^ entry(t2, f) ^ entry(t1, g) ^ entry(t0, h);
    }
    for &byte in rest {
        crc = entry(t0, crc as u8 ^ byte) ^ (crc >> 8);
    }
    !crc
}

/// CRC-64 of `data`.
pub fn crc64(data: &[u8]) -> u64 {
    !data.iter().fold(u64::MAX, |crc, &byte| {
        entry(&CRC64, crc as u8 ^ byte) ^ (crc >> 8)
    })
}
