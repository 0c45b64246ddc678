// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own symbol table, for backtraces.
//!
//! A blob that the build makes from the linked image: `u32` count, then `count` pairs of `u32` (offset of the function from
//! the image's base, offset of its name in the names), sorted by the first; then the names, each ended by a NUL.
//! All little-endian. A damaged or empty blob finds nothing.

/// A parsed blob.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    entries: &'a [u8],
    names: &'a [u8],
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    let start = index.checked_mul(4)?;
    let bytes = bytes.get(start..start.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

impl<'a> Symbols<'a> {
    /// Reads the blob's header.
    pub fn new(blob: &'a [u8]) -> Self {
        let count = word(blob, 0).unwrap_or(0) as usize;
        let rest = blob.get(4..).unwrap_or(&[]);
        let (entries, names) = rest
            .split_at_checked(count.saturating_mul(8))
            .unwrap_or((&[], &[]));
        Self { entries, names }
    }

    /// Number of functions.
    pub fn len(&self) -> usize {
        self.entries.len() / 8
    }

    /// True if nothing can be found.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last function that begins at or before `offset` from the image's base: its name and how far in.
    pub fn find(&self, offset: u32) -> Option<(&'a str, u32)> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if word(self.entries, middle * 2)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let index = low.checked_sub(1)?;
        let start = word(self.entries, index * 2)?;
        let name = self
            .names
            .get(word(self.entries, index * 2 + 1)? as usize..)?;
        let name = name.split(|&byte| byte == 0).next()?;
        Some((core::str::from_utf8(name).ok()?, offset.checked_sub(start)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn blob(entries: &[(u32, &str)]) -> Vec<u8> {
        let (mut out, mut names) = (Vec::new(), Vec::new());
        out.extend((entries.len() as u32).to_le_bytes());
        for (offset, name) in entries {
            out.extend(offset.to_le_bytes());
            out.extend((names.len() as u32).to_le_bytes());
            names.extend(name.bytes());
            names.push(0);
        }
        out.extend(names);
        out
    }

    #[test]
    fn finds_the_function_around_an_address() {
        let blob = blob(&[(0x100, "first"), (0x180, "second"), (0x400, "third")]);
        let symbols = Symbols::new(&blob);
        assert_eq!(symbols.find(0xff), None);
        assert_eq!(symbols.find(0x100), Some(("first", 0)));
        assert_eq!(symbols.find(0x3ff), Some(("second", 0x27f)));
        assert_eq!(symbols.find(0x1000), Some(("third", 0xc00)));
    }

    proptest! {
        #[test]
        fn damage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), at: u32) {
            let _ = Symbols::new(&bytes).find(at);
        }
    }
}
