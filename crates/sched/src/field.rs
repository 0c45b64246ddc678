// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fields of a record that a lock guards without being around it: atomics that are only read and written, never contended,
//! and so these also in models.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

macro_rules! field {
    ($name:ident, $atomic:ident, $value:ident, $what:literal) => {
        #[doc = $what]
        #[derive(Debug, Default)]
        pub(crate) struct $name($atomic);

        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self($atomic::new(value))
            }
            #[inline]
            pub(crate) fn get(&self) -> $value {
                self.0.load(Relaxed)
            }
            #[inline]
            pub(crate) fn set(&self, value: $value) {
                self.0.store(value, Relaxed);
            }
        }
    };
}

field!(Flag, AtomicBool, bool, "A guarded truth value.");
field!(Byte, AtomicU8, u8, "A guarded 8-bit number.");
field!(Word, AtomicU32, u32, "A guarded 32-bit number.");
field!(Long, AtomicU64, u64, "A guarded 64-bit number.");
