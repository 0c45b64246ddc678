// SPDX-License-Identifier: MIT OR Apache-2.0
//! LZMA2 decoder that uses the output itself as its dictionary (LZMA specification of the LZMA SDK; XZ format 1.2, 5.3.1).
//!
//! Unpacking the kernel is the longest part of a boot, so this is written for few branches, which cost an emulator and a
//! processor alike. All probabilities are one array of a power of two of entries, indexed under a mask, which needs no
//! check; compressed chunks are copied to a fixed buffer for the same reason. Invariant: a chunk writes exactly the bytes
//! it announces, so damaged input ends after at most that many; reading beyond the chunk is noticed at its end.

use crate::{BuildError, decompress::Output};
use alloc::{boxed::Box, vec};

/// Most compressed bytes of a chunk.
const CHUNK: usize = 1 << 16;
/// Bits of a probability.
const PROB_BITS: u32 = 11;
/// Even odds.
const EVEN: u16 = 1 << (PROB_BITS - 1);
/// Rate of adaption.
const MOVE: u32 = 5;
/// Below this the range takes in another byte.
const TOP: u32 = 1 << 24;
/// First state in which the last symbol was a match.
const MATCHED: usize = 7;
/// First distance slot that has direct bits.
const DIRECT_SLOT: u32 = 14;

const BAD: BuildError = BuildError::Corrupt("XZ stream");
const CUT: BuildError = BuildError::Truncated("the XZ stream");

/// Places in the array of probabilities.
mod place {
    /// Literals: 16 contexts of 0x300.
    pub const LITERAL: usize = 0;
    /// By state and position, 16 each.
    pub const IS_MATCH: usize = LITERAL + 16 * 0x300;
    /// By state and position, 16 each.
    pub const IS_REP0_LONG: usize = IS_MATCH + 256;
    /// By state.
    pub const IS_REP: usize = IS_REP0_LONG + 256;
    /// By state.
    pub const IS_REP0: usize = IS_REP + 16;
    /// By state.
    pub const IS_REP1: usize = IS_REP0 + 16;
    /// By state.
    pub const IS_REP2: usize = IS_REP1 + 16;
    /// By length, 64 each.
    pub const SLOT: usize = IS_REP2 + 16;
    /// Low bits of short distances.
    pub const SPECIAL: usize = SLOT + 256;
    /// Low bits of long distances.
    pub const ALIGN: usize = SPECIAL + 128;
    /// Lengths of matches: two choices, low and middle by position, high.
    pub const MATCH_LEN: usize = ALIGN + 16;
    /// Offsets in the above.
    pub const LEN_LOW: usize = 2;
    /// See [`LEN_LOW`].
    pub const LEN_MID: usize = LEN_LOW + 128;
    /// See [`LEN_LOW`].
    pub const LEN_HIGH: usize = LEN_MID + 128;
    /// Lengths of repeated matches.
    pub const REP_LEN: usize = MATCH_LEN + LEN_HIGH + 256;
    /// Size of the array.
    pub const SIZE: usize = 1 << 14;
    const _: () = assert!(REP_LEN + LEN_HIGH + 256 <= SIZE);
}

/// The range decoder over one chunk. A local value of the decoding loop, so that it lives in registers.
struct Range<'a> {
    range: u32,
    code: u32,
    input: &'a [u8; CHUNK],
    taken: usize,
    probs: &'a mut [u16; place::SIZE],
}

impl Range<'_> {
    /// Takes in a byte if the range has become small.
    #[inline(always)]
    fn normalise(&mut self) {
        #[expect(clippy::indexing_slicing, reason = "masked to the array's length")]
        let byte = self.input[self.taken & (CHUNK - 1)];
        let low = u32::from(self.range < TOP);
        let mask = low.wrapping_neg();
        self.taken = self.taken.wrapping_add(low as usize);
        self.range <<= low * 8;
        self.code = self.code << (low * 8) | (u32::from(byte) & mask);
    }

    #[inline(always)]
    fn prob(&mut self, index: usize) -> &mut u16 {
        #[expect(clippy::indexing_slicing, reason = "masked to the array's length")]
        &mut self.probs[index & (place::SIZE - 1)]
    }

    /// One bit, by arithmetic instead of a branch on it.
    #[inline(always)]
    fn bit(&mut self, index: usize) -> usize {
        self.normalise();
        let p = u32::from(*self.prob(index));
        let bound = (self.range >> PROB_BITS).wrapping_mul(p);
        let one = u32::from(self.code >= bound);
        let mask = one.wrapping_neg();
        // A one keeps the upper part of the range and lowers the odds of a zero.
        self.range = bound ^ (mask & (bound ^ self.range.wrapping_sub(bound)));
        self.code = self.code.wrapping_sub(bound & mask);
        // Towards 2048 for a zero, 0 for a one, by 1/32 of the way rounded down; 2017 makes both one shift.
        let target = ((1 << PROB_BITS) + 1 - (1 << MOVE)) & !mask;
        let step = (p.wrapping_sub(target) as i32) >> MOVE;
        *self.prob(index) = p.wrapping_sub(step as u32) as u16;
        one as usize
    }

    /// One bit that the caller branches on.
    #[inline(always)]
    fn test(&mut self, index: usize) -> bool {
        self.normalise();
        let p = u32::from(*self.prob(index));
        let bound = (self.range >> PROB_BITS).wrapping_mul(p);
        if self.code < bound {
            self.range = bound;
            *self.prob(index) = p.wrapping_add(((1 << PROB_BITS) - p) >> MOVE) as u16;
            false
        } else {
            self.range = self.range.wrapping_sub(bound);
            self.code = self.code.wrapping_sub(bound);
            *self.prob(index) = p.wrapping_sub(p >> MOVE) as u16;
            true
        }
    }

    /// A number of `bits` bits, highest first.
    #[inline(always)]
    fn tree(&mut self, base: usize, bits: u32) -> usize {
        let mut symbol = 1usize;
        for _ in 0..bits {
            symbol = symbol << 1 | self.bit(base.wrapping_add(symbol));
        }
        symbol & ((1 << bits) - 1)
    }

    /// A number of `bits` bits, lowest first.
    #[inline(always)]
    fn reverse_tree(&mut self, base: usize, bits: u32) -> u32 {
        let mut symbol = 1usize;
        let mut value = 0;
        for i in 0..bits {
            let bit = self.bit(base.wrapping_add(symbol));
            symbol = symbol << 1 | bit;
            value |= bit << i;
        }
        value as u32
    }

    /// `bits` bits of even odds, highest first.
    #[inline(always)]
    fn direct(&mut self, bits: u32) -> u32 {
        let mut value = 0;
        for _ in 0..bits {
            self.normalise();
            self.range >>= 1;
            let one = u32::from(self.code >= self.range);
            self.code = self.code.wrapping_sub(self.range & one.wrapping_neg());
            value = value << 1 | one;
        }
        value
    }

    /// The length of a match; `base` is [`place::MATCH_LEN`] or [`place::REP_LEN`].
    #[inline(always)]
    fn length(&mut self, base: usize, pos_state: usize) -> usize {
        if !self.test(base) {
            2 + self.tree(base + place::LEN_LOW + pos_state * 8, 3)
        } else if !self.test(base + 1) {
            10 + self.tree(base + place::LEN_MID + pos_state * 8, 3)
        } else {
            18 + self.tree(base + place::LEN_HIGH, 8)
        }
    }

    /// The distance of a match of length `len`, less one.
    #[inline(always)]
    fn distance(&mut self, len: usize) -> u32 {
        let slot = self.tree(place::SLOT + (len - 2).min(3) * 64, 6) as u32;
        if slot < 4 {
            return slot;
        }
        let bits = (slot >> 1) - 1;
        let base = (2 | slot & 1) << bits;
        if slot < DIRECT_SLOT {
            let at = place::SPECIAL + (base - slot) as usize;
            base.wrapping_add(self.reverse_tree(at, bits))
        } else {
            let high = self.direct(bits - 4) << 4;
            base.wrapping_add(high)
                .wrapping_add(self.reverse_tree(place::ALIGN, 4))
        }
    }

    /// A literal after byte `before`, whose context starts at `base`.
    #[inline(always)]
    fn literal(&mut self, base: usize) -> u8 {
        self.tree(base, 8) as u8
    }

    /// A literal after a match, of which `expected` would have been the next byte: as long as it agrees, it is context.
    #[inline(always)]
    fn matched_literal(&mut self, base: usize, expected: u8) -> u8 {
        let mut expected = usize::from(expected);
        let mut agree = 0x100;
        let mut symbol = 1usize;
        for _ in 0..8 {
            expected <<= 1;
            let hint = expected & agree;
            let bit = self.bit(
                base.wrapping_add(agree)
                    .wrapping_add(hint)
                    .wrapping_add(symbol),
            );
            symbol = symbol << 1 | bit;
            agree &= hint ^ bit.wrapping_sub(1);
        }
        symbol as u8
    }
}

/// `lc` of the LZMA specification, and its `lp` and `pb` as masks.
#[derive(Clone, Copy)]
struct Properties {
    lc: u32,
    lp_mask: usize,
    pb_mask: usize,
}

impl Properties {
    fn parse(byte: u8) -> Result<Self, BuildError> {
        let (lc, rest) = (u32::from(byte) % 9, byte / 9);
        let (lp, pb) = (rest % 5, rest / 5);
        // LZMA2 allows four bits of literal context altogether.
        if pb > 4 || lc + u32::from(lp) > 4 {
            return Err(BAD);
        }
        Ok(Self {
            lc,
            lp_mask: (1 << lp) - 1,
            pb_mask: (1 << pb) - 1,
        })
    }
}

/// State of a stream between chunks.
pub struct Decoder {
    probs: Box<[u16; place::SIZE]>,
    input: Box<[u8; CHUNK]>,
    properties: Option<Properties>,
    state: usize,
    reps: [u32; 4],
    /// Position in the output of the dictionary's first byte.
    dictionary: usize,
}

impl Decoder {
    /// A decoder with its buffers (96 KiB).
    pub fn new() -> Result<Self, BuildError> {
        let probs = vec![EVEN; place::SIZE].into_boxed_slice();
        let input = vec![0; CHUNK].into_boxed_slice();
        Ok(Self {
            probs: probs.try_into().map_err(|_| BuildError::NoMemory)?,
            input: input.try_into().map_err(|_| BuildError::NoMemory)?,
            properties: None,
            state: 0,
            reps: [0; 4],
            dictionary: 0,
        })
    }

    /// Decodes the LZMA2 chunks at the start of `stream` up to the end mark; returns the bytes taken.
    pub fn decode(&mut self, stream: &[u8], output: &mut Output) -> Result<usize, BuildError> {
        let mut rest = stream;
        let mut first = true;
        let mut take = |count: usize| -> Result<&[u8], BuildError> {
            let (head, tail) = rest.split_at_checked(count).ok_or(CUT)?;
            rest = tail;
            Ok(head)
        };
        let mut total = 0;
        let big_endian = |bytes: &[u8]| bytes.iter().fold(0, |n, &b| n << 8 | usize::from(b));
        loop {
            let control = usize::from(take(1)?.first().copied().unwrap_or(0));
            total += 1;
            if control == 0 {
                return Ok(total);
            }
            // 1 and 0xe0.. begin a new dictionary, as the first chunk must.
            if control == 1 || control >= 0xe0 {
                self.dictionary = output.len;
                self.properties = self.properties.filter(|_| control != 1);
            } else if first || control < 0x80 && control != 2 {
                return Err(BAD);
            }
            first = false;
            if control < 0x80 {
                let size = big_endian(take(2)?) + 1;
                output.append(take(size)?)?;
                total += 2 + size;
                continue;
            }
            let size = ((control & 0x1f) << 16) + big_endian(take(2)?) + 1;
            let packed = big_endian(take(2)?) + 1;
            total += 4 + packed;
            if control >= 0xc0 {
                self.properties =
                    Some(Properties::parse(take(1)?.first().copied().unwrap_or(255))?);
                total += 1;
            }
            if control >= 0xa0 {
                self.probs.fill(EVEN);
                self.state = 0;
                self.reps = [0; 4];
            }
            let end = output.reserve(size)?;
            self.chunk(take(packed)?, &mut output.bytes, output.len, end)?;
            output.len = end;
        }
    }

    /// Decodes one chunk into `out[pos..end]`.
    fn chunk(
        &mut self,
        chunk: &[u8],
        out: &mut [u8],
        mut pos: usize,
        end: usize,
    ) -> Result<(), BuildError> {
        let Properties {
            lc,
            lp_mask,
            pb_mask,
        } = self.properties.ok_or(BAD)?;
        let (&[zero, a, b, c, d], _) = chunk.split_first_chunk().ok_or(BAD)?;
        if zero != 0 {
            return Err(BAD);
        }
        self.input
            .get_mut(..chunk.len())
            .ok_or(BAD)?
            .copy_from_slice(chunk);
        let dictionary = self.dictionary;
        let [mut rep0, mut rep1, mut rep2, mut rep3] = self.reps;
        let mut state = self.state;
        let mut range = Range {
            range: u32::MAX,
            code: u32::from_be_bytes([a, b, c, d]),
            input: &self.input,
            taken: 5,
            probs: &mut self.probs,
        };
        while pos < end {
            let offset = pos - dictionary;
            let pos_state = offset & pb_mask;
            if !range.test(place::IS_MATCH + state * 16 + pos_state) {
                let before = if offset == 0 {
                    0
                } else {
                    byte(out, pos.wrapping_sub(1))?
                };
                let context = ((offset & lp_mask) << lc) + (usize::from(before) >> (8 - lc));
                let base = place::LITERAL + context * 0x300;
                let value = if state < MATCHED {
                    range.literal(base)
                } else {
                    if rep0 as usize >= offset {
                        return Err(BAD);
                    }
                    range.matched_literal(base, byte(out, pos - 1 - rep0 as usize)?)
                };
                *out.get_mut(pos).ok_or(BAD)? = value;
                pos += 1;
                state = after_literal(state);
                continue;
            }
            let matched = state >= MATCHED;
            let len;
            if !range.test(place::IS_REP + state) {
                (rep3, rep2, rep1) = (rep2, rep1, rep0);
                len = range.length(place::MATCH_LEN, pos_state);
                rep0 = range.distance(len);
                state = if matched { 10 } else { 7 };
            } else if range.test(place::IS_REP0 + state) {
                let distance = if !range.test(place::IS_REP1 + state) {
                    rep1
                } else {
                    let far = if !range.test(place::IS_REP2 + state) {
                        rep2
                    } else {
                        core::mem::replace(&mut rep3, rep2)
                    };
                    rep2 = rep1;
                    far
                };
                (rep1, rep0) = (rep0, distance);
                len = range.length(place::REP_LEN, pos_state);
                state = if matched { 11 } else { 8 };
            } else if range.test(place::IS_REP0_LONG + state * 16 + pos_state) {
                len = range.length(place::REP_LEN, pos_state);
                state = if matched { 11 } else { 8 };
            } else {
                len = 1;
                state = if matched { 11 } else { 9 };
            }
            // Also refuses LZMA's end mark, which LZMA2 does not use.
            if rep0 as usize >= offset || len > end - pos {
                return Err(BAD);
            }
            pos = repeat(out, pos, rep0 as usize + 1, len).ok_or(BAD)?;
        }
        range.normalise();
        let whole = range.code == 0 && range.taken == chunk.len();
        self.state = state;
        self.reps = [rep0, rep1, rep2, rep3];
        if whole { Ok(()) } else { Err(BAD) }
    }
}

#[inline(always)]
fn byte(out: &[u8], at: usize) -> Result<u8, BuildError> {
    out.get(at).copied().ok_or(BAD)
}

/// The state after a literal.
#[inline(always)]
const fn after_literal(state: usize) -> usize {
    match state {
        0..4 => 0,
        4..10 => state - 3,
        _ => state - 6,
    }
}

/// Copies `len` bytes from `distance` back to `pos`; returns the position behind. `None` if that is outside.
#[inline(always)]
fn repeat(out: &mut [u8], pos: usize, distance: usize, len: usize) -> Option<usize> {
    let end = pos.checked_add(len)?;
    let mut to = pos;
    let mut from = pos.checked_sub(distance)?;
    if end.checked_add(8)? <= out.len() {
        // Whole words, up to 7 bytes too far: those are written again later. A short period is first made longer.
        let mut period = distance;
        while period < 8 {
            period += distance;
        }
        let single = end.min(from + period);
        while to < single {
            *out.get_mut(to)? = *out.get(from)?;
            to += 1;
            from += 1;
        }
        from = to.saturating_sub(period);
        while to < end {
            let word = *out.get(from..)?.first_chunk::<8>()?;
            *out.get_mut(to..)?.first_chunk_mut::<8>()? = word;
            to += 8;
            from += 8;
        }
    } else {
        while to < end {
            *out.get_mut(to)? = *out.get(from)?;
            to += 1;
            from += 1;
        }
    }
    Some(end)
}
