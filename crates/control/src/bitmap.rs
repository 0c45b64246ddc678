// SPDX-License-Identifier: MIT OR Apache-2.0
//! `struct xenctl_bitmap`: sets of processors and nodes in a tool's memory.

use philoxen_abi::domctl::Bitmap;
use philoxen_abi::{GuestMemory, GuestVa, Result};

/// Words of a set of processors.
pub const WORDS: usize = 4;
const BYTES: usize = WORDS * 8;
/// Bytes of zeroes written at most behind a set; tools have room for their own largest machine.
const MAX_BYTES: u64 = 4096;

/// Reads a set; bits that it has no room for are 0.
///
/// # Errors
/// `EFAULT`.
pub fn read<G: GuestMemory>(guest: &G, bitmap: &Bitmap) -> Result<[u64; WORDS]> {
    let mut bytes = [0; BYTES];
    let count = (bitmap.nr_bits.div_ceil(8) as usize).min(BYTES);
    if let Some(part) = bytes.get_mut(..count) {
        guest.read_bytes(GuestVa(bitmap.bytes), part)?;
    }
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
    }
    let spare = bitmap.nr_bits % 64;
    if let Some(word) = words.get_mut((bitmap.nr_bits / 64) as usize) {
        *word &= (1u64 << spare).wrapping_sub(1);
    }
    Ok(words)
}

/// Writes a set as far as there is room, and zeroes into the rest of the room.
///
/// # Errors
/// `EFAULT`.
pub fn write<G: GuestMemory>(guest: &G, bitmap: &Bitmap, words: &[u64; WORDS]) -> Result<()> {
    let room = u64::from(bitmap.nr_bits.div_ceil(8)).min(MAX_BYTES);
    let mut done = 0;
    for word in words.iter().copied().chain(core::iter::repeat(0)) {
        if done >= room {
            break;
        }
        let bytes = word.to_le_bytes();
        let part = bytes.get(..(room - done).min(8) as usize).unwrap_or(&bytes);
        guest.write_bytes(GuestVa(bitmap.bytes).add(done), part)?;
        done += 8;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use philoxen_abi::Errno;
    use philoxen_abi::guest::FakeGuest;

    #[test]
    fn sets_are_cut_and_filled() {
        let mut memory = [0xffu8; 64];
        let guest = FakeGuest::new(0x1000, &mut memory);
        let bitmap = |nr_bits| Bitmap {
            bytes: 0x1000,
            nr_bits,
            pad: 0,
        };
        assert_eq!(read(&guest, &bitmap(3)), Ok([7, 0, 0, 0]));
        assert_eq!(read(&guest, &bitmap(64)), Ok([u64::MAX, 0, 0, 0]));
        assert_eq!(read(&guest, &bitmap(512)), Ok([u64::MAX; 4]));
        assert_eq!(read(&guest, &bitmap(0)), Ok([0; 4]));
        assert_eq!(write(&guest, &bitmap(12), &[5, 0, 0, 0]), Ok(()));
        assert_eq!(write(&guest, &bitmap(512), &[5, 6, 7, 8]), Ok(()));
        assert_eq!(read(&guest, &bitmap(512)), Ok([5, 6, 7, 8]));
        assert_eq!(write(&guest, &bitmap(520), &[0; 4]), Err(Errno::EFAULT));
        assert_eq!(write(&guest, &bitmap(0), &[1; 4]), Ok(()));
    }

    #[test]
    fn only_the_room_is_written() {
        let mut memory = [0xffu8; 8];
        let guest = FakeGuest::new(0, &mut memory);
        let two = Bitmap {
            bytes: 0,
            nr_bits: 9,
            pad: 0,
        };
        assert_eq!(write(&guest, &two, &[0x101, 0, 0, 0]), Ok(()));
        assert_eq!(memory, [1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }
}
