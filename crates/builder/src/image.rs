// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the ELF kernel inside what the boot loader handed over.
//!
//! A Linux bzImage (Linux boot protocol 2.08 and later) has its real kernel, compressed, at
//! `payload_offset` behind the setup sectors; Linux appends the unpacked size as one more word.

use crate::{
    BuildError,
    bytes::{slice, u16_at, u32_at},
    decompress::{Format, decompress},
};
use alloc::borrow::Cow;

/// Offset of `setup_sects` in a bzImage.
const SETUP_SECTS: u64 = 0x1f1;
/// Offset of the boot sector's signature.
const BOOT_FLAG: u64 = 0x1fe;
/// Offset of the setup header's magic.
const HEADER: u64 = 0x202;
/// `HdrS`.
const HEADER_MAGIC: &[u8] = b"HdrS";
/// Offset of the boot protocol's version.
const VERSION: u64 = 0x206;
/// First version with a payload.
const VERSION_PAYLOAD: u16 = 0x208;
/// Offset of `payload_offset`, counted from the end of the setup sectors.
const PAYLOAD_OFFSET: u64 = 0x248;
/// Offset of `payload_length`.
const PAYLOAD_LENGTH: u64 = 0x24c;

/// The ELF file in `image`: itself if it is one, else unpacked from a bzImage or a compressed file.
///
/// # Errors
/// [`BuildError::NotAKernel`], or what is wrong with the container or its compressed stream. That the result is
/// a usable ELF is for [`crate::Kernel::parse`] to say.
pub fn unpack(image: &[u8]) -> Result<Cow<'_, [u8]>, BuildError> {
    let payload = bzimage_payload(image)?;
    let bytes = payload.unwrap_or(image);
    match Format::detect(bytes) {
        Some(Format::Elf) => Ok(Cow::Borrowed(bytes)),
        Some(format) => decompress(format, bytes, payload.is_some()).map(Cow::Owned),
        None if payload.is_some() => Err(BuildError::UnknownCompression("an unknown method")),
        None => Err(BuildError::NotAKernel),
    }
}

/// The payload of a bzImage; `None` if `image` is not one.
fn bzimage_payload(image: &[u8]) -> Result<Option<&[u8]>, BuildError> {
    if slice(image, HEADER, HEADER_MAGIC.len() as u64) != Some(HEADER_MAGIC)
        || u16_at(image, BOOT_FLAG) != Some(0xaa55)
    {
        return Ok(None);
    }
    let cut = BuildError::Truncated("the setup header");
    if u16_at(image, VERSION).ok_or(cut)? < VERSION_PAYLOAD {
        return Err(BuildError::OldBzImage);
    }
    // The protocol reads 0 setup sectors as 4, and does not count the boot sector.
    let sectors = match slice(image, SETUP_SECTS, 1) {
        Some(&[0]) => 4,
        Some(&[n]) => u64::from(n),
        _ => return Err(cut),
    };
    let offset = u64::from(u32_at(image, PAYLOAD_OFFSET).ok_or(cut)?);
    let length = u64::from(u32_at(image, PAYLOAD_LENGTH).ok_or(cut)?);
    slice(image, (sectors + 1) * 512 + offset, length)
        .map(Some)
        .ok_or(BuildError::Truncated("the compressed kernel"))
}
