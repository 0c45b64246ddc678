// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policy of platform devices: which physical interrupt goes to which domain, the `physdev_op` and `platform_op`
//! hypercalls, PCI configuration space by ports, and the ACPI tables. No hardware access: see [`chip::Chip`].
//!
//! Invariants: a device vector has at most one line and a line exactly one vector; a level-triggered line that was
//! delivered stays masked until every domain that got it has said EOI; a line that nobody has bound is masked.
//!
//! Lock order: a domain's PIRQ table, the allocation of lines, a line. An interrupt takes only its line's lock. The
//! list of PCI functions is taken alone.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod chip;
pub mod clock;
mod devices;
#[cfg(test)]
mod fake;
pub mod irq;
pub mod msi;
pub mod pci_ports;
pub mod physdev;
pub mod pirq;
pub mod platform;

pub use irq::{Irqs, Raise, Raised};
pub use physdev::{Caller, physdev_op};
pub use pirq::{DomainIrqs, EoiPage};
pub use platform::{Platform, platform_op};
