// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug registers a guest may load.
//!
//! Invariant: no breakpoint address lies in the hypervisor's range (XSA-444), DR7.GD is never set, and reserved bits have
//! the values the processor demands, so loading an accepted set never faults.

use philoxen_abi::addr::{HYPERVISOR_END, HYPERVISOR_START, is_canonical};
use philoxen_abi::{Errno, Result};

/// Reserved DR6 bits that read as 1.
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6 bits a guest may set: B0 to B3, BD, BS, BT.
const DR6_GUEST: u64 = 0xe00f;
/// Reserved DR7 bits that read as 1.
const DR7_ONES: u64 = 0x400;
/// DR7 bits a guest may set: enables, LE, GE, conditions. GD (bit 13), RTM (11) and 12, 14, 15 are not among them.
const DR7_GUEST: u64 = 0xffff_03ff;
/// DR7 enable bits.
pub const DR7_ENABLES: u64 = 0xff;
/// DR6.BS: a single step.
pub const DR6_BS: u64 = 1 << 14;

/// A vCPU's debug registers; DR4 and DR5 do not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugRegs {
    addresses: [u64; 4],
    /// Status.
    pub dr6: u64,
    dr7: u64,
}

impl Default for DebugRegs {
    fn default() -> Self {
        Self::new()
    }
}

impl DebugRegs {
    /// As after reset: nothing armed.
    pub const fn new() -> Self {
        Self {
            addresses: [0; 4],
            dr6: DR6_ONES,
            dr7: DR7_ONES,
        }
    }

    /// DR0 to DR3.
    pub const fn addresses(&self) -> [u64; 4] {
        self.addresses
    }

    /// DR7 to load while the guest runs.
    pub const fn dr7(&self) -> u64 {
        self.dr7
    }

    /// Whether a breakpoint is armed, so that the registers must be loaded.
    pub const fn is_active(&self) -> bool {
        self.dr7 & DR7_ENABLES != 0
    }

    /// Adds what a `#DB` reported, as the processor does.
    pub fn note_debug(&mut self, status: u64) {
        self.dr6 |= (status & DR6_GUEST) | DR6_ONES;
    }

    /// A register's value; 4 and 5 are 6 and 7 unless CR4.DE (`extensions`) is set.
    ///
    /// # Errors
    /// `EINVAL` for a register that does not exist.
    pub fn read(&self, number: u64, extensions: bool) -> Result<u64> {
        match number {
            0..=3 => self
                .addresses
                .get(number as usize)
                .copied()
                .ok_or(Errno::EINVAL),
            4 if !extensions => Ok(self.dr6),
            5 if !extensions => Ok(self.dr7),
            6 => Ok(self.dr6),
            7 => Ok(self.dr7),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Sets a register (`set_debugreg`, MOV to DR); the caller then loads the processor's if the vCPU runs.
    ///
    /// # Errors
    /// `EPERM` for an address the guest may not watch or a DR7 bit it may not have, `EINVAL` for a register that does not
    /// exist; nothing is changed then.
    pub fn write(&mut self, number: u64, value: u64, extensions: bool) -> Result<()> {
        match number {
            0..=3 => {
                if !is_canonical(value) || (HYPERVISOR_START..HYPERVISOR_END).contains(&value) {
                    return Err(Errno::EPERM);
                }
                let slot = self
                    .addresses
                    .get_mut(number as usize)
                    .ok_or(Errno::EINVAL)?;
                *slot = value;
            }
            4 if !extensions => return self.write(6, value, true),
            5 if !extensions => return self.write(7, value, true),
            6 => self.dr6 = (value & DR6_GUEST) | DR6_ONES,
            7 => {
                if value & !(DR7_GUEST | DR7_ONES) != 0 || !conditions_ok(value) {
                    return Err(Errno::EPERM);
                }
                self.dr7 = value | DR7_ONES;
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

/// No breakpoint may watch I/O ports (condition 2, which needs CR4.DE and would watch the hypervisor's accesses), and an
/// instruction breakpoint (condition 0) must have length 0.
const fn conditions_ok(dr7: u64) -> bool {
    let mut slot = 0;
    while slot < 4 {
        let control = (dr7 >> (16 + slot * 4)) & 15;
        let armed = (dr7 >> (slot * 2)) & 3 != 0;
        if armed && (control & 3 == 2 || (control & 3 == 0 && control >> 2 != 0)) {
            return false;
        }
        slot += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_out_of_the_hypervisor() {
        let mut regs = DebugRegs::new();
        for bad in [
            HYPERVISOR_START,
            HYPERVISOR_END - 1,
            0x8000_0000_0000,
            0xffff_7fff_ffff_ffff,
        ] {
            assert_eq!(regs.write(2, bad, true), Err(Errno::EPERM), "{bad:#x}");
        }
        assert_eq!(regs, DebugRegs::new());
        regs.write(2, HYPERVISOR_END, true).unwrap();
        regs.write(3, 0x7fff_ffff_ffff, true).unwrap();
        assert_eq!(regs.read(2, true), Ok(HYPERVISOR_END));
    }

    #[test]
    fn control_bits() {
        let mut regs = DebugRegs::new();
        assert!(!regs.is_active());
        for bit in [11, 12, 13, 14, 15, 32, 63] {
            assert_eq!(
                regs.write(7, 1 << bit, true),
                Err(Errno::EPERM),
                "bit {bit}"
            );
        }
        // I/O breakpoint, and an instruction breakpoint of length 4, while armed.
        assert_eq!(regs.write(7, 1 | 2 << 16, true), Err(Errno::EPERM));
        assert_eq!(regs.write(7, 1 | 12 << 16, true), Err(Errno::EPERM));
        regs.write(7, 0x000d_0303, true).unwrap();
        assert!(regs.is_active());
        assert_eq!(regs.read(7, true), Ok(0x000d_0703));
        assert_eq!(regs.read(5, false), Ok(0x000d_0703));
        assert_eq!(regs.read(5, true), Err(Errno::EINVAL));
        regs.write(6, 0, true).unwrap();
        assert_eq!(regs.read(6, true), Ok(0xffff_0ff0));
        regs.note_debug(DR6_BS | 1 << 40);
        assert_eq!(regs.read(6, true), Ok(0xffff_4ff0));
        assert_eq!(regs.write(8, 0, true), Err(Errno::EINVAL));
    }
}
