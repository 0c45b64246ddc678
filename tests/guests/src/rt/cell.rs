// SPDX-License-Identifier: MIT OR Apache-2.0
//! Global variables of a kernel that one vCPU at a time uses.

use core::cell::UnsafeCell;

/// A global that is copied in and out whole.
#[derive(Debug)]
pub struct Racy<T>(UnsafeCell<T>);

// SAFETY: one vCPU uses these variables. Handlers interrupt it, but every access is one copy that no handler
// of ours interrupts at a place where it would matter: tests look at what a handler left after it returned.
unsafe impl<T> Sync for Racy<T> {}

impl<T: Copy> Racy<T> {
    /// A global that starts as `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
    /// Its value.
    pub fn get(&self) -> T {
        // SAFETY: the pointer is valid, and nobody holds a reference.
        unsafe { self.0.get().read_volatile() }
    }
    /// Sets it; gives the old value.
    pub fn replace(&self, value: T) -> T {
        let old = self.get();
        // SAFETY: the pointer is valid, and nobody holds a reference.
        unsafe { self.0.get().write_volatile(value) };
        old
    }
}
