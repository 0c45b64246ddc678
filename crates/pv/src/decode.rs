// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bounded decoder for the instructions this crate emulates: prefixes, opcode, ModRM, SIB, immediates.
//!
//! Invariants: instruction bytes are copied from the guest once and decoded from the copy, so another vCPU cannot change
//! them between check and use; at most 15 bytes are looked at; running out of bytes is `None`, never a panic.

use crate::alu;
use crate::regs::Regs;
use philoxen_abi::{GuestMemory, GuestVa, PAGE_SIZE};

/// Longest instruction.
pub const MAX_LENGTH: usize = 15;

/// Instruction bytes by value.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    data: [u8; MAX_LENGTH],
    len: usize,
}

impl Bytes {
    /// A copy of the first 15 of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut data = [0; MAX_LENGTH];
        let mut len = 0;
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
            len += 1;
        }
        Self { data, len }
    }

    /// Copies the bytes at `rip`: those up to the page's end, then, if they can be read, those of the next page.
    #[inline]
    pub fn fetch<M: GuestMemory>(memory: &M, rip: u64) -> Self {
        let mut data = [0; MAX_LENGTH];
        let left = (PAGE_SIZE - (rip & (PAGE_SIZE - 1))) as usize;
        let (first, second) = data.split_at_mut(left.min(MAX_LENGTH));
        let mut len = 0;
        if memory.read_bytes(GuestVa(rip), first).is_ok() {
            len = first.len();
            let next = GuestVa(rip).add(len as u64);
            if !second.is_empty() && memory.read_bytes(next, second).is_ok() {
                len = MAX_LENGTH;
            }
        }
        Self { data, len }
    }

    /// The bytes that could be read.
    pub fn as_slice(&self) -> &[u8] {
        self.data.get(..self.len).unwrap_or(&[])
    }
}

/// Segment override.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// CS, DS, ES or SS: base 0 in 64-bit mode.
    Flat,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// Bases of the segments that have one in 64-bit mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentBases {
    /// FS base.
    pub fs: u64,
    /// Active GS base.
    pub gs: u64,
}

/// A memory operand, before registers are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Memory {
    base: Option<u8>,
    index: Option<u8>,
    scale: u8,
    displacement: i64,
    rip_relative: bool,
}

/// An instruction as far as it is decoded; the `take_*` methods move on through its bytes.
#[derive(Clone, Debug)]
pub struct Insn<'a> {
    bytes: &'a [u8],
    pos: usize,
    long: bool,
    address32: bool,
    operand16: bool,
    rex: u8,
    segment: Option<Segment>,
    memory: Option<Memory>,
    mod_reg_rm: u8,
    /// LOCK prefix seen.
    pub lock: bool,
    /// REP or REPNE prefix seen.
    pub rep: bool,
    /// The opcode follows a 0F escape.
    pub escape: bool,
    /// The opcode byte.
    pub opcode: u8,
}

impl<'a> Insn<'a> {
    /// Decodes prefixes and opcode. `long` is false for code in a compatibility-mode segment.
    pub fn decode(bytes: &'a [u8], long: bool) -> Option<Self> {
        let mut insn = Self {
            bytes: bytes.get(..bytes.len().min(MAX_LENGTH))?,
            pos: 0,
            long,
            address32: !long,
            operand16: false,
            rex: 0,
            segment: None,
            memory: None,
            mod_reg_rm: 0,
            lock: false,
            rep: false,
            escape: false,
            opcode: 0,
        };
        loop {
            let byte = insn.take_u8()?;
            match byte {
                0x66 => insn.operand16 = true,
                // 16-bit addressing of compatibility mode is not supported.
                0x67 if !long => return None,
                0x67 => insn.address32 = true,
                0xf0 => insn.lock = true,
                0xf2 | 0xf3 => insn.rep = true,
                0x26 | 0x2e | 0x36 | 0x3e => {
                    // In 64-bit mode these are ignored; elsewhere they replace an earlier override.
                    if !long {
                        insn.segment = Some(Segment::Flat);
                    }
                }
                0x64 => insn.segment = Some(Segment::Fs),
                0x65 => insn.segment = Some(Segment::Gs),
                0x40..=0x4f if long => {
                    insn.rex = byte;
                    continue;
                }
                0x0f => {
                    insn.escape = true;
                    insn.opcode = insn.take_u8()?;
                    return Some(insn);
                }
                _ => {
                    insn.opcode = byte;
                    return Some(insn);
                }
            }
            // A legacy prefix behind REX cancels it.
            insn.rex = 0;
        }
    }

    /// Next byte.
    pub fn take_u8(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.pos)?;
        self.pos += 1;
        Some(byte)
    }

    /// Next `size` bytes (up to 8) as a little-endian number, sign-extended.
    pub fn take_signed(&mut self, size: u8) -> Option<i64> {
        let mut value: u64 = 0;
        for position in 0..u32::from(size.min(8)) {
            value |= u64::from(self.take_u8()?) << (position * 8);
        }
        let spare = 64 - u32::from(size.clamp(1, 8)) * 8;
        Some(((value << spare) as i64) >> spare)
    }

    /// An immediate for an operand of `size` bytes: at most 4 bytes, sign-extended.
    pub fn take_immediate(&mut self, size: u8) -> Option<u64> {
        self.take_signed(size.min(4)).map(|value| value as u64)
    }

    /// Decodes ModRM, SIB and displacement.
    pub fn take_modrm(&mut self) -> Option<()> {
        let modrm = self.take_u8()?;
        self.mod_reg_rm = modrm;
        let mode = modrm >> 6;
        if mode == 3 {
            return Some(());
        }
        let rm = modrm & 7;
        let mut memory = Memory::default();
        let mut no_base = false;
        if rm == 4 {
            let sib = self.take_u8()?;
            memory.scale = sib >> 6;
            let index = ((sib >> 3) & 7) | ((self.rex & 2) << 2);
            memory.index = (index != 4).then_some(index);
            no_base = sib & 7 == 5 && mode == 0;
            if !no_base {
                memory.base = Some((sib & 7) | ((self.rex & 1) << 3));
            }
        } else if rm == 5 && mode == 0 {
            no_base = true;
            memory.rip_relative = self.long;
        } else {
            memory.base = Some(rm | ((self.rex & 1) << 3));
        }
        memory.displacement = match mode {
            0 if no_base => self.take_signed(4)?,
            1 => self.take_signed(1)?,
            2 => self.take_signed(4)?,
            _ => 0,
        };
        self.memory = Some(memory);
        Some(())
    }

    /// Uses an absolute address from the instruction (`mov` with moffs) as the memory operand.
    pub fn take_absolute(&mut self) -> Option<()> {
        let displacement = self.take_signed(if self.address32 { 4 } else { 8 })?;
        self.memory = Some(Memory {
            displacement,
            ..Memory::default()
        });
        Some(())
    }

    /// Operand size of instructions that are not byte instructions.
    pub const fn operand_size(&self) -> u8 {
        if self.rex & 8 != 0 {
            8
        } else if self.operand16 {
            2
        } else {
            4
        }
    }

    /// Bits 5..3 of ModRM: an opcode extension.
    pub const fn extension(&self) -> u8 {
        (self.mod_reg_rm >> 3) & 7
    }
    /// The whole ModRM byte.
    pub const fn modrm(&self) -> u8 {
        self.mod_reg_rm
    }
    /// Register number in ModRM's `reg` field.
    pub const fn reg(&self) -> u8 {
        self.extension() | ((self.rex & 4) << 1)
    }
    /// Register number in ModRM's `rm` field.
    pub const fn rm(&self) -> u8 {
        (self.mod_reg_rm & 7) | ((self.rex & 1) << 3)
    }
    /// Whether ModRM named memory.
    pub const fn has_memory(&self) -> bool {
        self.memory.is_some()
    }
    /// Bytes decoded so far: the instruction's length at the end.
    pub const fn length(&self) -> u64 {
        self.pos as u64
    }
    /// The segment override, if any.
    pub const fn segment(&self) -> Option<Segment> {
        self.segment
    }
    /// Address size in bytes.
    pub const fn address_size(&self) -> u8 {
        if self.address32 { 4 } else { 8 }
    }

    /// Reads register `number` at `size`, with AH to BH where no REX prefix makes them SPL to DIL.
    pub fn read_reg(&self, regs: &Regs, number: u8, size: u8) -> u64 {
        if self.is_high_byte(number, size) {
            (regs.gpr(number & 3) >> 8) & 0xff
        } else {
            regs.gpr(number) & alu::mask(size)
        }
    }

    /// Writes register `number` at `size`; 32-bit writes clear the upper half.
    pub fn write_reg(&self, regs: &mut Regs, number: u8, size: u8, value: u64) {
        if self.is_high_byte(number, size) {
            let old = regs.gpr(number & 3);
            regs.set_gpr(number & 3, (old & !0xff00) | ((value & 0xff) << 8));
        } else {
            regs.set_gpr(number, merge(regs.gpr(number), value, size));
        }
    }

    pub(crate) const fn is_high_byte(&self, number: u8, size: u8) -> bool {
        size == 1 && self.rex == 0 && number >= 4 && number < 8
    }

    /// Base of `segment`.
    pub const fn segment_base(segment: Option<Segment>, bases: SegmentBases) -> u64 {
        match segment {
            Some(Segment::Fs) => bases.fs,
            Some(Segment::Gs) => bases.gs,
            _ => 0,
        }
    }

    /// Linear address of the memory operand. Call when the whole instruction is decoded: RIP-relative operands count
    /// from its end.
    pub fn linear_address(&self, regs: &Regs, bases: SegmentBases) -> Option<u64> {
        let memory = self.memory?;
        let mut offset = memory.displacement as u64;
        if let Some(base) = memory.base {
            offset = offset.wrapping_add(regs.gpr(base));
        }
        if let Some(index) = memory.index {
            offset = offset.wrapping_add(regs.gpr(index) << memory.scale);
        }
        if memory.rip_relative {
            offset = offset.wrapping_add(regs.rip).wrapping_add(self.length());
        }
        if self.address32 {
            offset &= 0xffff_ffff;
        }
        Some(Self::segment_base(self.segment, bases).wrapping_add(offset))
    }
}

/// A register after a write of its low `size` bytes, by the processor's rules.
#[inline]
pub(crate) const fn merge(old: u64, value: u64, size: u8) -> u64 {
    match size {
        1 | 2 => (old & !alu::mask(size)) | (value & alu::mask(size)),
        4 => value & 0xffff_ffff,
        _ => value,
    }
}
