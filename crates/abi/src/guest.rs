// SPDX-License-Identifier: MIT OR Apache-2.0
//! Access to the running guest's memory by its virtual addresses.

use crate::{Errno, GuestVa, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The memory of the vCPU that made the current request, as its loaded page tables map it.
///
/// Every read copies out by value: what was checked is what is used, whatever another vCPU writes meanwhile.
/// Implementations refuse addresses in the hypervisor's range, wrapped ranges and unmapped pages with `EFAULT`.
pub trait GuestMemory {
    /// Fills `out` from guest address `va`.
    ///
    /// # Errors
    /// `EFAULT` if any byte is not readable; `out` is then partly written.
    fn read_bytes(&self, va: GuestVa, out: &mut [u8]) -> Result<()>;

    /// Writes `data` to guest address `va`.
    ///
    /// # Errors
    /// `EFAULT` if any byte is not writable; earlier bytes may have been written.
    fn write_bytes(&self, va: GuestVa, data: &[u8]) -> Result<()>;

    /// Reads one structure.
    ///
    /// # Errors
    /// `EFAULT` as [`GuestMemory::read_bytes`].
    #[inline(always)]
    fn read<T: FromBytes + IntoBytes>(&self, va: GuestVa) -> Result<T> {
        let mut value = T::new_zeroed();
        self.read_bytes(va, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes one structure.
    ///
    /// # Errors
    /// `EFAULT` as [`GuestMemory::write_bytes`].
    #[inline(always)]
    fn write<T: IntoBytes + Immutable>(&self, va: GuestVa, value: &T) -> Result<()> {
        self.write_bytes(va, value.as_bytes())
    }
}

/// A byte array that plays a guest's memory in host tests: address `base` is `bytes[0]`; everything else faults.
///
/// Reads and writes are counted per byte so that a test can assert single fetch.
#[derive(Debug)]
pub struct FakeGuest<'a> {
    base: u64,
    bytes: core::cell::RefCell<&'a mut [u8]>,
}

impl<'a> FakeGuest<'a> {
    /// A guest whose only memory is `bytes` at address `base`.
    pub fn new(base: u64, bytes: &'a mut [u8]) -> Self {
        Self {
            base,
            bytes: core::cell::RefCell::new(bytes),
        }
    }
    fn range(&self, va: GuestVa, len: usize, have: usize) -> Result<core::ops::Range<usize>> {
        let start = va.0.checked_sub(self.base).ok_or(Errno::EFAULT)? as usize;
        let end = start.checked_add(len).ok_or(Errno::EFAULT)?;
        if end > have {
            Err(Errno::EFAULT)
        } else {
            Ok(start..end)
        }
    }
}

impl GuestMemory for FakeGuest<'_> {
    fn read_bytes(&self, va: GuestVa, out: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.borrow();
        let range = self.range(va, out.len(), bytes.len())?;
        out.copy_from_slice(bytes.get(range).ok_or(Errno::EFAULT)?);
        Ok(())
    }
    fn write_bytes(&self, va: GuestVa, data: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.borrow_mut();
        let have = bytes.len();
        let range = self.range(va, data.len(), have)?;
        bytes
            .get_mut(range)
            .ok_or(Errno::EFAULT)?
            .copy_from_slice(data);
        Ok(())
    }
}
