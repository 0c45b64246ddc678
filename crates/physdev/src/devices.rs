// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PCI functions that Domain 0 has announced.

use crate::chip::Sbdf;
use alloc::collections::BTreeMap;
use philoxen_abi::{Errno, Result};

/// Most functions that are remembered.
const MAX_FUNCTIONS: usize = 4096;

/// Announced functions, and which of them are virtual (SR-IOV).
#[derive(Debug, Default)]
pub struct Devices {
    functions: BTreeMap<Sbdf, bool>,
}

impl Devices {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            functions: BTreeMap::new(),
        }
    }

    /// Remembers a function; announcing one again is no error.
    ///
    /// # Errors
    /// `ENOMEM` if too many are known.
    pub fn add(&mut self, function: Sbdf, is_virtual: bool) -> Result<()> {
        if self.functions.len() >= MAX_FUNCTIONS && !self.functions.contains_key(&function) {
            return Err(Errno::ENOMEM);
        }
        self.functions.insert(function, is_virtual);
        Ok(())
    }

    /// Forgets a function.
    ///
    /// # Errors
    /// `ENODEV` if it is not known.
    pub fn remove(&mut self, function: Sbdf) -> Result<()> {
        self.functions
            .remove(&function)
            .map(drop)
            .ok_or(Errno::ENODEV)
    }

    /// True for an announced virtual function.
    pub fn is_virtual(&self, function: Sbdf) -> bool {
        self.functions.get(&function).copied().unwrap_or(false)
    }
}
