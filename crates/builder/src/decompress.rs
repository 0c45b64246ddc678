// SPDX-License-Identifier: MIT OR Apache-2.0
//! Unpacks a compressed kernel: XZ, zstd, gzip and LZ4, told apart by their magic numbers.
//!
//! Invariant: output is bounded by [`MAX_IMAGE`] and a decoder's own window by the same; every stream's
//! end, and its checksum where the crate checks one, must be right. Linux appends the unpacked size to
//! the payload, which sizes the output in one allocation; without it the output grows by doubling.

use crate::{
    BuildError,
    bytes::{slice, u16_at, u32_at},
    crc::crc32,
    xz,
};
use alloc::{boxed::Box, vec::Vec};
use lz4_flex::block::DecompressError;
use miniz_oxide::inflate::{TINFLStatus, core as inflate};
use ruzstd::{
    decoding::{BlockDecodingStrategy, FrameDecoder},
    io::Read as _,
};

/// Largest unpacked kernel, and largest window of a decoder, in bytes.
pub const MAX_IMAGE: usize = 128 << 20;
/// First guess at the unpacked size when the stream does not tell.
const FIRST_SIZE: usize = 64 << 10;
/// Unpacked size of every block but the last in LZ4's legacy format.
const LZ4_BLOCK: usize = 8 << 20;

/// What a file is, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Not compressed.
    Elf,
    /// XZ container.
    Xz,
    /// Zstandard frame.
    Zstd,
    /// gzip member.
    Gzip,
    /// LZ4's legacy frame, the form Linux uses.
    Lz4Legacy,
    /// Known, not supported.
    Other(&'static str),
}

impl Format {
    /// Recognises a format.
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Format); 9] = [
            (b"\x7fELF", Format::Elf),
            (b"\xfd7zXZ\0", Format::Xz),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (b"\x1f\x8b", Format::Gzip),
            (b"\x02\x21\x4c\x18", Format::Lz4Legacy),
            (b"\x04\x22\x4d\x18", Format::Other("LZ4 frames")),
            (b"BZh", Format::Other("bzip2")),
            (b"\x5d\0\0", Format::Other("LZMA")),
            (b"\x89LZO", Format::Other("LZO")),
        ];
        MAGIC
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
            .map(|&(_, format)| format)
    }
}

/// Unpacks `stream`; `linux` tells that it is a Linux payload, which ends in its unpacked size.
pub fn decompress(format: Format, stream: &[u8], linux: bool) -> Result<Vec<u8>, BuildError> {
    let body = stream.len().saturating_sub(4);
    // gzip ends in its own size word, which Linux uses instead of appending another.
    let hint = (linux || format == Format::Gzip)
        .then(|| u32_at(stream, body as u64))
        .flatten();
    let body = if linux && format != Format::Gzip {
        stream.get(..body).unwrap_or_default()
    } else {
        stream
    };
    let mut output = Output::new(hint)?;
    match format {
        Format::Elf => return Err(BuildError::NotAKernel),
        Format::Other(method) => return Err(BuildError::UnknownCompression(method)),
        Format::Xz => xz::unpack(body, &mut output)?,
        Format::Zstd => zstd(body, &mut output)?,
        Format::Gzip => gzip(body, &mut output)?,
        Format::Lz4Legacy => lz4(body, &mut output, hint.is_some())?,
    }
    if hint.is_some() && hint != u32::try_from(output.len).ok() {
        return Err(BuildError::Corrupt("unpacked size"));
    }
    output.bytes.truncate(output.len);
    Ok(output.bytes)
}

/// The unpacked bytes so far, `bytes[..len]`, and zeroed room behind them.
pub struct Output {
    /// All room there is.
    pub bytes: Vec<u8>,
    /// Bytes unpacked.
    pub len: usize,
}

impl Output {
    fn new(hint: Option<u32>) -> Result<Self, BuildError> {
        let size = hint.map_or(FIRST_SIZE, |size| size as usize);
        if size > MAX_IMAGE {
            return Err(BuildError::TooLarge);
        }
        let mut output = Self {
            bytes: Vec::new(),
            len: 0,
        };
        output.resize(size)?;
        Ok(output)
    }

    /// Makes room for `more` bytes; returns the length with them.
    pub fn reserve(&mut self, more: usize) -> Result<usize, BuildError> {
        let end = self.len.saturating_add(more);
        if end > MAX_IMAGE {
            return Err(BuildError::TooLarge);
        }
        if end > self.bytes.len() {
            self.resize(end.saturating_mul(2).min(MAX_IMAGE))?;
        }
        Ok(end)
    }

    /// Appends `data`.
    pub fn append(&mut self, data: &[u8]) -> Result<(), BuildError> {
        let end = self.reserve(data.len())?;
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(data);
        }
        self.len = end;
        Ok(())
    }

    fn resize(&mut self, size: usize) -> Result<(), BuildError> {
        let more = size.saturating_sub(self.bytes.len());
        self.bytes
            .try_reserve_exact(more)
            .map_err(|_| BuildError::NoMemory)?;
        self.bytes.resize(size, 0);
        Ok(())
    }

    fn room(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.len..).unwrap_or_default()
    }

    /// Room for at least one more byte.
    fn grow(&mut self) -> Result<(), BuildError> {
        if self.len < self.bytes.len() {
            return Ok(());
        }
        if self.len >= MAX_IMAGE {
            return Err(BuildError::TooLarge);
        }
        self.resize(self.len.saturating_mul(2).clamp(FIRST_SIZE, MAX_IMAGE))
    }
}

#[inline(never)]
fn zstd(mut stream: &[u8], output: &mut Output) -> Result<(), BuildError> {
    const BAD: BuildError = BuildError::Corrupt("zstd stream");
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_IMAGE as u64);
    decoder.init(&mut stream).map_err(|_| BAD)?;
    loop {
        // The decoder keeps a window of output, so what has been unpacked is bounded before it is collected.
        decoder
            .decode_blocks(&mut stream, BlockDecodingStrategy::UptoBytes(1 << 20))
            .map_err(|_| BAD)?;
        while decoder.can_collect() > 0 {
            output.grow()?;
            let read = decoder.read(output.room()).map_err(|_| BAD)?;
            output.len += read;
        }
        if decoder.is_finished() {
            return Ok(());
        }
    }
}

#[inline(never)]
fn gzip(stream: &[u8], output: &mut Output) -> Result<(), BuildError> {
    const CUT: BuildError = BuildError::Truncated("the gzip stream");
    let start = gzip_header(stream).ok_or(CUT)?;
    let mut input = stream.get(start..).ok_or(CUT)?;
    let mut state = Box::<inflate::DecompressorOxide>::default();
    loop {
        let flags = inflate::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, read, written) =
            inflate::decompress(&mut state, input, &mut output.bytes, output.len, flags);
        input = input.get(read..).unwrap_or_default();
        output.len += written;
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput => output.grow()?,
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => return Err(CUT),
            _ => return Err(BuildError::Corrupt("gzip stream")),
        }
    }
    let crc = u32_at(input, 0).ok_or(CUT)?;
    if crc != crc32(output.bytes.get(..output.len).unwrap_or_default()) {
        return Err(BuildError::Corrupt("gzip checksum"));
    }
    Ok(())
}

/// Length of a gzip member's header (RFC 1952); `None` if it is cut off.
fn gzip_header(stream: &[u8]) -> Option<usize> {
    const FHCRC: u8 = 2;
    const FEXTRA: u8 = 4;
    const FNAME: u8 = 8;
    const FCOMMENT: u8 = 16;
    let flags = *stream.get(3)?;
    let mut at = 10;
    if flags & FEXTRA != 0 {
        at += 2 + usize::from(u16_at(stream, at as u64)?);
    }
    for flag in [FNAME, FCOMMENT] {
        if flags & flag != 0 {
            at += stream.get(at..)?.iter().position(|&b| b == 0)? + 1;
        }
    }
    Some(if flags & FHCRC != 0 { at + 2 } else { at })
}

#[inline(never)]
fn lz4(stream: &[u8], output: &mut Output, sized: bool) -> Result<(), BuildError> {
    const CUT: BuildError = BuildError::Truncated("the LZ4 stream");
    let mut at = 4;
    while at < stream.len() as u64 {
        let length = u64::from(u32_at(stream, at).ok_or(CUT)?);
        let block = slice(stream, at + 4, length).ok_or(CUT)?;
        at += 4 + length;
        if !sized {
            output.reserve(LZ4_BLOCK)?;
        }
        let room = output.room();
        let size = room.len().min(LZ4_BLOCK);
        let target = room.get_mut(..size).unwrap_or_default();
        output.len +=
            lz4_flex::block::decompress_into(block, target).map_err(|error| match error {
                DecompressError::OutputTooSmall { .. } if size < LZ4_BLOCK => {
                    BuildError::Corrupt("unpacked size")
                }
                _ => BuildError::Corrupt("LZ4 stream"),
            })?;
    }
    Ok(())
}
