// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes that a guest kernel makes directly to its read-only page tables: which instruction it was, what the
//! page-table entry becomes, and what the registers are afterwards.
//!
//! The caller decodes with [`WriteOp::decode`], then in a loop loads the entry, computes [`WriteOp::apply`], validates the
//! new value and exchanges it with compare-and-swap (so every form is as atomic as a locked one), and finally calls
//! [`WriteOp::finish`] with the old value.
//!
//! Invariant: an instruction is accepted only if its whole memory operand lies in the one 8-byte entry that faulted.

use crate::alu;
use crate::decode::{Insn, SegmentBases, merge};
use crate::regs::Regs;
use philoxen_abi::arch::rflags;

/// What the instruction does to its operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Store,
    StoreString,
    Exchange,
    CompareExchange {
        expected: u64,
    },
    ExchangeAdd,
    Add,
    Sub,
    And,
    Or,
    Xor,
    Not,
    Neg,
    Increment,
    Decrement,
    /// The operand is the bit's mask.
    SetBit,
    ResetBit,
    ComplementBit,
}

/// Where the old value goes: a general register, at `shift` 8 for AH to BH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Destination {
    register: u8,
    high: bool,
}

/// A decoded write to a page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteOp {
    kind: Kind,
    size: u8,
    /// Position of the operand in the entry, in bits.
    shift: u32,
    operand: u64,
    destination: Destination,
    repeat: bool,
    address32: bool,
    length: u64,
    entry: u64,
}

impl WriteOp {
    /// Decodes the 64-bit instruction in `bytes` that faulted writing at `fault`. `None` if it is not a write we emulate or
    /// does not write there: deliver the fault to the guest.
    pub fn decode(regs: &Regs, bytes: &[u8], bases: SegmentBases, fault: u64) -> Option<Self> {
        let mut insn = Insn::decode(bytes, true)?;
        let (kind, size, operand) = if insn.escape {
            decode_escape(&mut insn, regs)?
        } else {
            decode_plain(&mut insn, regs)?
        };
        let mut address = match kind {
            // The string destination is ES:RDI, without override.
            Kind::StoreString if insn.address_size() == 4 => regs.rdi & 0xffff_ffff,
            Kind::StoreString => regs.rdi,
            _ => insn.linear_address(regs, bases)?,
        };
        let mut operand = operand;
        if matches!(kind, Kind::SetBit | Kind::ResetBit | Kind::ComplementBit) {
            (address, operand) = locate_bit(&insn, address, operand, size);
        }
        let within = address & 7;
        let covers = fault.wrapping_sub(address) < u64::from(size);
        if !covers || within + u64::from(size) > 8 {
            return None;
        }
        let lockable = !matches!(kind, Kind::Store | Kind::StoreString);
        if insn.lock && !lockable {
            return None;
        }
        Some(Self {
            kind,
            size,
            shift: (within * 8) as u32,
            operand,
            destination: Destination {
                register: insn.reg(),
                high: insn.is_high_byte(insn.reg(), size),
            },
            repeat: insn.rep && kind == Kind::StoreString,
            address32: insn.address_size() == 4,
            length: insn.length(),
            entry: address & !7,
        })
    }

    /// Address of the entry, 8-byte aligned.
    pub const fn entry_address(&self) -> u64 {
        self.entry
    }

    /// The entry's new value, given its present one; `None` if the instruction leaves it alone (a compare that failed).
    #[inline]
    pub fn apply(&self, entry: u64) -> Option<u64> {
        let mask = alu::mask(self.size);
        let old = (entry >> self.shift) & mask;
        let new = match self.kind {
            Kind::Store | Kind::StoreString | Kind::Exchange => self.operand,
            Kind::CompareExchange { expected } if expected & mask == old => self.operand,
            Kind::CompareExchange { .. } => return None,
            Kind::ExchangeAdd | Kind::Add => old.wrapping_add(self.operand),
            Kind::Sub => old.wrapping_sub(self.operand),
            Kind::And => old & self.operand,
            Kind::Or | Kind::SetBit => old | self.operand,
            Kind::Xor | Kind::ComplementBit => old ^ self.operand,
            Kind::ResetBit => old & !self.operand,
            Kind::Not => !old,
            Kind::Neg => old.wrapping_neg(),
            Kind::Increment => old.wrapping_add(1),
            Kind::Decrement => old.wrapping_sub(1),
        };
        Some((entry & !(mask << self.shift)) | ((new & mask) << self.shift))
    }

    /// Completes the instruction: registers, flags, RIP. `entry` is the value [`WriteOp::apply`] was last given.
    /// A repeated string store does one element and stays at the instruction until the count is 0.
    #[inline]
    pub fn finish(&self, regs: &mut Regs, entry: u64) {
        let old = (entry >> self.shift) & alu::mask(self.size);
        let size = self.size;
        regs.rflags &= !rflags::RF;
        match self.kind {
            Kind::Store | Kind::Not => {}
            Kind::StoreString => return self.finish_string(regs),
            Kind::Exchange => self.give_old(regs, old),
            Kind::CompareExchange { expected } => {
                set_flags(regs, alu::ARITHMETIC, alu::sub(expected, old, size).1);
                if old != expected & alu::mask(size) {
                    regs.rax = merge(regs.rax, old, size);
                }
            }
            Kind::ExchangeAdd => {
                self.give_old(regs, old);
                set_flags(regs, alu::ARITHMETIC, alu::add(old, self.operand, size).1);
            }
            Kind::Add => set_flags(regs, alu::ARITHMETIC, alu::add(old, self.operand, size).1),
            Kind::Sub => set_flags(regs, alu::ARITHMETIC, alu::sub(old, self.operand, size).1),
            Kind::Neg => set_flags(regs, alu::ARITHMETIC, alu::sub(0, old, size).1),
            Kind::And => set_flags(regs, alu::ARITHMETIC, alu::logic(old & self.operand, size)),
            Kind::Or => set_flags(regs, alu::ARITHMETIC, alu::logic(old | self.operand, size)),
            Kind::Xor => set_flags(regs, alu::ARITHMETIC, alu::logic(old ^ self.operand, size)),
            Kind::Increment => {
                set_flags(
                    regs,
                    alu::ARITHMETIC & !rflags::CF,
                    alu::add(old, 1, size).1,
                );
            }
            Kind::Decrement => {
                set_flags(
                    regs,
                    alu::ARITHMETIC & !rflags::CF,
                    alu::sub(old, 1, size).1,
                );
            }
            Kind::SetBit | Kind::ResetBit | Kind::ComplementBit => {
                let carry = if old & self.operand != 0 {
                    rflags::CF
                } else {
                    0
                };
                set_flags(regs, rflags::CF, carry);
            }
        }
        regs.rip = regs.rip.wrapping_add(self.length);
    }

    fn give_old(&self, regs: &mut Regs, old: u64) {
        let Destination { register, high } = self.destination;
        if high {
            let kept = regs.gpr(register & 3) & !0xff00;
            regs.set_gpr(register & 3, kept | ((old & 0xff) << 8));
        } else {
            regs.set_gpr(register, merge(regs.gpr(register), old, self.size));
        }
    }

    fn finish_string(&self, regs: &mut Regs) {
        let size = u64::from(self.size);
        let step = if regs.rflags & rflags::DF != 0 {
            size.wrapping_neg()
        } else {
            size
        };
        let width = if self.address32 { 4 } else { 8 };
        regs.rdi = merge(regs.rdi, regs.rdi.wrapping_add(step), width);
        if self.repeat {
            regs.rcx = merge(regs.rcx, regs.rcx.wrapping_sub(1), width);
            if regs.rcx & alu::mask(width) != 0 {
                return;
            }
        }
        regs.rip = regs.rip.wrapping_add(self.length);
    }
}

#[inline]
fn set_flags(regs: &mut Regs, which: u64, flags: u64) {
    regs.rflags = (regs.rflags & !which) | (flags & which);
}

type Decoded = Option<(Kind, u8, u64)>;

fn decode_plain(insn: &mut Insn<'_>, regs: &Regs) -> Decoded {
    let size = if insn.opcode & 1 == 0 {
        1
    } else {
        insn.operand_size()
    };
    let kind = match insn.opcode {
        0x88 | 0x89 => Kind::Store,
        0x86 | 0x87 => Kind::Exchange,
        0x00 | 0x01 => Kind::Add,
        0x08 | 0x09 => Kind::Or,
        0x20 | 0x21 => Kind::And,
        0x28 | 0x29 => Kind::Sub,
        0x30 | 0x31 => Kind::Xor,
        0xa2 | 0xa3 => {
            insn.take_absolute()?;
            return Some((Kind::Store, size, regs.rax & alu::mask(size)));
        }
        0xaa | 0xab => return Some((Kind::StoreString, size, regs.rax & alu::mask(size))),
        0x80 | 0x81 | 0x83 | 0xc6 | 0xc7 | 0xf6 | 0xf7 | 0xfe | 0xff => {
            return decode_group(insn, size);
        }
        _ => return None,
    };
    insn.take_modrm()?;
    Some((kind, size, insn.read_reg(regs, insn.reg(), size)))
}

fn decode_group(insn: &mut Insn<'_>, size: u8) -> Decoded {
    insn.take_modrm()?;
    let kind = match (insn.opcode, insn.extension()) {
        (0xc6 | 0xc7, 0) => Kind::Store,
        (0x80 | 0x81 | 0x83, 0) => Kind::Add,
        (0x80 | 0x81 | 0x83, 1) => Kind::Or,
        (0x80 | 0x81 | 0x83, 4) => Kind::And,
        (0x80 | 0x81 | 0x83, 5) => Kind::Sub,
        (0x80 | 0x81 | 0x83, 6) => Kind::Xor,
        (0xf6 | 0xf7, 2) => return Some((Kind::Not, size, 0)),
        (0xf6 | 0xf7, 3) => return Some((Kind::Neg, size, 0)),
        (0xfe | 0xff, 0) => return Some((Kind::Increment, size, 0)),
        (0xfe | 0xff, 1) => return Some((Kind::Decrement, size, 0)),
        _ => return None,
    };
    let immediate = insn.take_immediate(if insn.opcode == 0x83 { 1 } else { size })?;
    Some((kind, size, immediate & alu::mask(size)))
}

fn decode_escape(insn: &mut Insn<'_>, regs: &Regs) -> Decoded {
    let wide = insn.operand_size();
    let opcode = insn.opcode;
    let size = if matches!(opcode, 0xb0 | 0xc0) {
        1
    } else {
        wide
    };
    insn.take_modrm()?;
    let kind = match opcode {
        0xb0 | 0xb1 => Kind::CompareExchange {
            expected: regs.rax & alu::mask(size),
        },
        0xc0 | 0xc1 => Kind::ExchangeAdd,
        0xab => Kind::SetBit,
        0xb3 => Kind::ResetBit,
        0xbb => Kind::ComplementBit,
        // movnti
        0xc3 if size >= 4 => Kind::Store,
        0xba => {
            let kind = match insn.extension() {
                5 => Kind::SetBit,
                6 => Kind::ResetBit,
                7 => Kind::ComplementBit,
                _ => return None,
            };
            let bit = insn.take_immediate(1)? & (u64::from(size) * 8 - 1);
            return Some((kind, size, bit));
        }
        _ => return None,
    };
    Some((kind, size, insn.read_reg(regs, insn.reg(), size)))
}

/// Address and mask of the bit that a bit instruction names: a register operand reaches beyond the addressed word, in
/// either direction.
fn locate_bit(insn: &Insn<'_>, address: u64, operand: u64, size: u8) -> (u64, u64) {
    let bits = u64::from(size) * 8;
    let bit = operand & (bits - 1);
    let mut address = address;
    if insn.opcode != 0xba {
        let spare = 64 - bits as u32;
        let offset = ((operand << spare) as i64) >> spare;
        let words = offset >> bits.trailing_zeros();
        address = address.wrapping_add((words as u64).wrapping_mul(u64::from(size)));
    }
    (address, 1_u64.wrapping_shl(bit as u32))
}
