// SPDX-License-Identifier: MIT OR Apache-2.0
//! The XZ container (XZ format 1.2) with the filters that Linux kernels use: LZMA2, alone or behind x86 BCJ.
//!
//! Headers, the index and block checks are verified. Of the checks CRC-32 and CRC-64 are known; SHA-256 is refused.

use crate::{
    BuildError,
    bytes::{slice, u32_at, u64_at},
    crc::{crc32, crc64},
    decompress::Output,
    lzma::Decoder,
};

/// Bytes of the stream header, and of the footer.
const HEADER: usize = 12;
/// Filter: x86 branch converter.
const FILTER_X86: u64 = 4;
/// Filter: LZMA2.
const FILTER_LZMA2: u64 = 0x21;

const BAD: BuildError = BuildError::Corrupt("XZ stream");
const CUT: BuildError = BuildError::Truncated("the XZ stream");
const FILTER: BuildError = BuildError::UnknownCompression("an unusual XZ filter");

/// Unpacks the XZ stream at the start of `stream`.
#[inline(never)]
pub fn unpack(stream: &[u8], output: &mut Output) -> Result<(), BuildError> {
    let header = stream.get(..HEADER).ok_or(CUT)?;
    let flags = slice(header, 6, 2).ok_or(CUT)?;
    if Some(crc32(flags)) != u32_at(header, 8) {
        return Err(BuildError::Corrupt("XZ header"));
    }
    let check = match flags {
        [0, 0] => Check::None,
        [0, 1] => Check::Crc32,
        [0, 4] => Check::Crc64,
        _ => return Err(BuildError::UnknownCompression("XZ with an unusual check")),
    };
    let mut decoder = Decoder::new()?;
    let mut at = HEADER;
    // CRC of the sizes that the index must list, in its own encoding.
    let mut index = Index::default();
    while stream.get(at).ok_or(CUT)? != &0 {
        at = block(stream, at, check, &mut decoder, output, &mut index)?;
    }
    let end = index.verify(stream, at)?;
    let footer = stream
        .get(end..)
        .and_then(|rest| rest.get(..HEADER))
        .ok_or(CUT)?;
    let body = slice(footer, 4, 6).ok_or(CUT)?;
    let backward = u32_at(footer, 4).map(|words| (u64::from(words) + 1) * 4);
    if u32_at(footer, 0) != Some(crc32(body))
        || backward != Some((end - at) as u64)
        || slice(body, 4, 2) != Some(flags)
        || !footer.ends_with(b"YZ")
    {
        return Err(BuildError::Corrupt("XZ footer"));
    }
    Ok(())
}

/// Checksum of a block's content.
#[derive(Clone, Copy)]
enum Check {
    None,
    Crc32,
    Crc64,
}

impl Check {
    /// Verifies `data` against the value at `at`; returns the position behind it.
    fn verify(self, stream: &[u8], at: usize, data: &[u8]) -> Result<usize, BuildError> {
        let (size, right) = match self {
            Self::None => (0, true),
            Self::Crc32 => (4, u32_at(stream, at as u64).ok_or(CUT)? == crc32(data)),
            Self::Crc64 => (8, u64_at(stream, at as u64).ok_or(CUT)? == crc64(data)),
        };
        if right {
            Ok(at + size)
        } else {
            Err(BuildError::Corrupt("XZ checksum"))
        }
    }
}

/// Decodes the block at `at`; returns the position behind it.
fn block(
    stream: &[u8],
    at: usize,
    check: Check,
    decoder: &mut Decoder,
    output: &mut Output,
    index: &mut Index,
) -> Result<usize, BuildError> {
    let header_size = (usize::from(*stream.get(at).ok_or(CUT)?) + 1) * 4;
    let header = stream
        .get(at..)
        .and_then(|rest| rest.get(..header_size))
        .ok_or(CUT)?;
    let (fields, crc) = header.split_at_checked(header_size - 4).ok_or(CUT)?;
    if u32_at(crc, 0) != Some(crc32(fields)) {
        return Err(BuildError::Corrupt("XZ block header"));
    }
    let (x86, packed_size, size) = filters(fields)?;
    let start = output.len;
    let data_at = at + header_size;
    let packed = decoder.decode(stream.get(data_at..).ok_or(CUT)?, output)?;
    let unpacked = output.len - start;
    if packed_size.is_some_and(|n| n != packed as u64) || size.is_some_and(|n| n != unpacked as u64)
    {
        return Err(BAD);
    }
    let data = output.bytes.get_mut(start..start + unpacked).ok_or(BAD)?;
    if x86 {
        unfilter_x86(data);
    }
    let padded = (data_at + packed).next_multiple_of(4);
    let padding = stream.get(data_at + packed..padded).ok_or(CUT)?;
    if padding.iter().any(|&b| b != 0) {
        return Err(BAD);
    }
    let end = check.verify(stream, padded, data)?;
    // The unpadded size counts all but the padding.
    index.add(
        (header_size + packed + (end - padded)) as u64,
        unpacked as u64,
    );
    Ok(end)
}

/// Reads a block header's flags, sizes and filters: whether x86 BCJ is on, packed size, unpacked size.
fn filters(fields: &[u8]) -> Result<(bool, Option<u64>, Option<u64>), BuildError> {
    let flags = *fields.get(1).ok_or(BAD)?;
    if flags & 0x3c != 0 {
        return Err(FILTER);
    }
    let mut at = 2;
    let mut optional = |bit| {
        if flags & bit != 0 {
            number(fields, &mut at).map(Some)
        } else {
            Ok(None)
        }
    };
    let packed = optional(0x40)?;
    let size = optional(0x80)?;
    let mut filter = || {
        let id = number(fields, &mut at)?;
        let properties = number(fields, &mut at)?;
        let value = slice(fields, at as u64, properties).ok_or(BAD)?;
        at += value.len();
        Ok((id, value))
    };
    let (mut id, mut value) = filter()?;
    let x86 = flags & 3 == 1;
    if x86 {
        // No properties, or a start offset, of which only 0 is used.
        if id != FILTER_X86 || value.iter().any(|&b| b != 0) {
            return Err(FILTER);
        }
        (id, value) = filter()?;
    }
    if flags & 3 > 1 || id != FILTER_LZMA2 || value.len() != 1 {
        return Err(FILTER);
    }
    let rest = fields.get(at..).ok_or(BAD)?;
    if rest.iter().any(|&b| b != 0) {
        return Err(BAD);
    }
    Ok((x86, packed, size))
}

/// A number of up to 63 bits, 7 in each byte, lowest first.
fn number(bytes: &[u8], at: &mut usize) -> Result<u64, BuildError> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at).ok_or(CUT)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BAD)
}

/// What the index must say: number of blocks, and their sizes folded into one value each.
#[derive(Default, PartialEq, Eq)]
struct Index {
    blocks: u64,
    packed: u64,
    unpacked: u64,
}

impl Index {
    fn add(&mut self, packed: u64, unpacked: u64) {
        self.blocks = self.blocks.wrapping_add(1);
        // The sum alone would miss exchanged records.
        self.packed = self.packed.rotate_left(7) ^ packed;
        self.unpacked = self.unpacked.rotate_left(7) ^ unpacked;
    }

    /// Checks the index at `start`; returns the position behind it.
    fn verify(&self, stream: &[u8], start: usize) -> Result<usize, BuildError> {
        const WRONG: BuildError = BuildError::Corrupt("XZ index");
        let mut at = start + 1;
        if number(stream, &mut at)? != self.blocks {
            return Err(WRONG);
        }
        let mut listed = Self::default();
        for _ in 0..self.blocks {
            let packed = number(stream, &mut at)?;
            let unpacked = number(stream, &mut at)?;
            listed.add(packed, unpacked);
        }
        let end = start + (at - start).next_multiple_of(4);
        let crc = u32_at(stream, end as u64).ok_or(CUT)?;
        let body = stream.get(start..end).ok_or(CUT)?;
        let padding = stream.get(at..end).ok_or(CUT)?;
        if listed != *self || crc != crc32(body) || padding.iter().any(|&b| b != 0) {
            return Err(WRONG);
        }
        Ok(end + 4)
    }
}

/// Undoes the x86 filter, which made the targets of `call` (e8) and `jmp` (e9) absolute.
///
/// An opcode within the three bytes before an opcode may be an operand's byte: `near` has a bit for each such one, the
/// nearest lowest, and the filter did not touch what would then be ambiguous.
fn unfilter_x86(data: &mut [u8]) {
    let is_sign = |byte: u8| byte == 0 || byte == 0xff;
    let mut near = 0u32;
    let mut last = None;
    let mut i = 0;
    while let Some(found) = next_branch(data, i) {
        i = found;
        near = match last.map(|last: usize| i - last) {
            Some(gap @ 1..=3) => (near << (gap - 1)) & 7,
            _ => 0,
        };
        last = Some(i);
        i += 1;
        let Some(operand) = data
            .get(i..)
            .and_then(|rest| rest.first_chunk::<4>())
            .copied()
        else {
            return;
        };
        // Bytes from the oldest near opcode to this one, 0 to 3.
        let depth = 32 - near.leading_zeros();
        let top = operand.get(3 - depth as usize).copied().unwrap_or(0);
        let ambiguous = near != 0 && (near & (near - 1) != 0 || is_sign(top));
        let [.., sign] = operand;
        if ambiguous || !is_sign(sign) {
            near = near << 1 | 1;
            continue;
        }
        let next = (i + 4) as u32;
        let mut absolute = u32::from_le_bytes(operand);
        let relative = loop {
            let relative = absolute.wrapping_sub(next);
            if near == 0 {
                break relative;
            }
            let shift = 24 - depth * 8;
            if !is_sign((relative >> shift) as u8) {
                break relative;
            }
            absolute = relative ^ ((1u32 << (shift + 8)) - 1);
        };
        // The top byte is the sign: bit 24 extended.
        let relative = (relative << 7) as i32 >> 7;
        if let Some(to) = data
            .get_mut(i..)
            .and_then(|rest| rest.first_chunk_mut::<4>())
        {
            *to = relative.to_le_bytes();
        }
        i += 4;
    }
}

/// Position of the next byte e8 or e9 from `at`, looking at eight bytes at a time.
#[inline(always)]
fn next_branch(data: &[u8], mut at: usize) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    loop {
        let Some(word) = data.get(at..)?.first_chunk::<8>() else {
            return data
                .get(at..)?
                .iter()
                .position(|byte| byte & 0xfe == 0xe8)
                .map(|i| at + i);
        };
        // Zero bytes where there is an opcode; the lowest one found is exact.
        let diff = (u64::from_le_bytes(*word) ^ (0xe8 * LOW)) & (0xfe * LOW);
        let zero = diff.wrapping_sub(LOW) & !diff & (0x80 * LOW);
        if zero != 0 {
            return Some(at + (zero.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
}
