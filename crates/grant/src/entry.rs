// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared entries: pure decisions on what a granter wrote, and the atomic steps that mark an entry as in use.
//!
//! A version 1 entry is one 64-bit word: flags, domain, frame. A version 2 entry is two words, and its marks are in a
//! status array of 16-bit fields in frames of their own. The granter may change all of it at any time with accesses of
//! its own width; the hypervisor reads each word once per attempt and only ever changes whole words.

use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::DomId;
use philoxen_abi::grant::{gntst, gtf};

/// Entries of version 1 in a frame.
pub const V1_PER_FRAME: u32 = 512;
/// Entries of version 2 in a frame.
pub const V2_PER_FRAME: u32 = 256;
/// Status fields in a frame.
pub const STATUS_PER_FRAME: u32 = 2048;
/// Attempts against a granter that keeps changing its entry.
const TRIES: u32 = 8;
/// Bytes of a frame.
const WHOLE: u16 = 4096;

/// Flags and domain of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// `GTF_*`.
    pub flags: u16,
    /// Who is granted something.
    pub user: DomId,
}

impl Header {
    /// The header in the first word of an entry of either version.
    pub const fn of(word: u64) -> Self {
        Self {
            flags: word as u16,
            user: DomId((word >> 16) as u16),
        }
    }
    /// The first word's low half.
    pub const fn bits(self) -> u64 {
        self.flags as u64 | (self.user.0 as u64) << 16
    }
    /// The type bits.
    pub const fn kind(self) -> u16 {
        self.flags & gtf::TYPE_MASK
    }
}

/// What someone wants to do with a granted frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// Who.
    pub user: DomId,
    /// Write to it.
    pub write: bool,
    /// All of it: a mapping, not a copy.
    pub whole: bool,
}

/// What an entry grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granted {
    /// Frame number as the granter wrote it.
    pub frame: u64,
    /// First byte.
    pub start: u16,
    /// Bytes.
    pub len: u16,
}

/// The marks that an access sets, if the entry allows it.
///
/// # Errors
/// `GNTST_general_error`: another type, another domain, read-only, or only part of a frame where all is wanted.
pub const fn admit(header: Header, want: Want) -> Result<u16, i16> {
    let partial = header.flags & gtf::SUB_PAGE != 0;
    if header.kind() != gtf::PERMIT_ACCESS
        || header.user.0 != want.user.0
        || want.whole && partial
        || want.write && header.flags & gtf::READONLY != 0
    {
        return Err(gntst::GENERAL_ERROR);
    }
    Ok(if want.write {
        gtf::READING | gtf::WRITING
    } else {
        gtf::READING
    })
}

/// Marks a version 1 entry as in use for `want`.
///
/// # Errors
/// As [`admit`]; also if the granter keeps changing the entry.
pub fn claim_v1(word: &AtomicU64, want: Want) -> Result<Granted, i16> {
    let mut old = word.load(Ordering::Acquire);
    for _ in 0..TRIES {
        let marks = admit(Header::of(old), want)?;
        let new = old | marks as u64;
        match word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => {
                return Ok(Granted {
                    frame: old >> 32,
                    start: 0,
                    len: WHOLE,
                });
            }
            Err(now) => old = now,
        }
    }
    Err(gntst::GENERAL_ERROR)
}

/// A status field: a word and the position in it.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    /// The word.
    pub word: &'a AtomicU64,
    /// Lowest bit of the field.
    pub shift: u32,
}

impl Status<'_> {
    /// Sets marks; returns those that were not set.
    fn set(self, marks: u16) -> u16 {
        let bits = u64::from(marks) << self.shift;
        let before = self.word.fetch_or(bits, Ordering::SeqCst);
        marks & !((before >> self.shift) as u16)
    }
    /// Clears marks.
    pub fn clear(self, marks: u16) {
        let bits = u64::from(marks) << self.shift;
        self.word.fetch_and(!bits, Ordering::SeqCst);
    }
}

/// Marks a version 2 entry as in use for `want`.
///
/// The granter ends access by clearing the flags and then looking at the status; here the status is set and then the
/// flags are looked at again, so one of the two sees the other.
///
/// # Errors
/// As [`claim_v1`].
pub fn claim_v2(
    first: &AtomicU64,
    second: &AtomicU64,
    status: Status<'_>,
    want: Want,
) -> Result<Granted, i16> {
    for _ in 0..TRIES {
        let word = first.load(Ordering::SeqCst);
        let header = Header::of(word);
        let marks = admit(header, want)?;
        let frame = second.load(Ordering::Acquire);
        let set = status.set(marks);
        if first.load(Ordering::SeqCst) == word {
            let (start, len) = if header.flags & gtf::SUB_PAGE != 0 {
                ((word >> 32) as u16, (word >> 48) as u16)
            } else {
                (0, WHOLE)
            };
            return Ok(Granted { frame, start, len });
        }
        status.clear(set);
    }
    Err(gntst::GENERAL_ERROR)
}

/// Removes marks from a version 1 entry.
pub fn clear_v1(word: &AtomicU64, marks: u16) {
    word.fetch_and(!u64::from(marks), Ordering::SeqCst);
}

/// A version 1 entry in the form of version 2 (first word, second word): what survives a change of version.
pub const fn v1_to_v2(word: u64) -> (u64, u64) {
    let header = Header::of(word);
    if header.kind() != gtf::PERMIT_ACCESS {
        return (0, 0);
    }
    let kept = Header {
        flags: header.flags & (gtf::TYPE_MASK | gtf::READONLY),
        user: header.user,
    };
    (kept.bits(), word >> 32)
}

/// A version 2 entry in the form of version 1, if it can be said there.
pub const fn v2_to_v1(first: u64, second: u64) -> u64 {
    let header = Header::of(first);
    if header.kind() != gtf::PERMIT_ACCESS
        || header.flags & gtf::SUB_PAGE != 0
        || second > u32::MAX as u64
    {
        return 0;
    }
    let kept = Header {
        flags: header.flags & (gtf::TYPE_MASK | gtf::READONLY),
        user: header.user,
    };
    kept.bits() | second << 32
}
