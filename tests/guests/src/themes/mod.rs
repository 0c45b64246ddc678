// SPDX-License-Identifier: MIT OR Apache-2.0
//! The themes, by name.

mod boot;
mod crash;
mod descriptors;
mod domains;
mod emulation;
mod events;
mod exceptions;
mod fifo;
mod fpu;
mod hypercalls;
mod mappings;
mod memory_ops;
mod pagetypes;
mod smp;
mod table_writes;
mod timers;
mod user_mode;

pub use boot::early;

use crate::rt::check::Checks;

/// Name on the command line, and what runs.
pub type Theme = (&'static str, fn(&mut Checks));

/// Every theme. Those whose names start with `crash` end in a dump instead of a verdict.
pub const THEMES: &[Theme] = &[
    ("boot", boot::run),
    ("pagetypes", pagetypes::run),
    ("exceptions", exceptions::run),
    ("events", events::run),
    ("timers", timers::run),
    ("descriptors", descriptors::run),
    ("emulation", emulation::run),
    ("hypercalls", hypercalls::run),
    ("fpu", fpu::run),
    ("no-xsave", fpu::hidden),
    ("smp", smp::run),
    ("domains", domains::run),
    ("crash-unmapped-stack", crash::unmapped_stack),
    ("crash-hypervisor-stack", crash::hypervisor_stack),
    ("crash-m2p-stack", crash::m2p_stack),
    ("crash-wild-stack", crash::wild_stack),
    ("crash-no-handler", crash::no_handler),
    ("crash-bad-handler", crash::bad_handler),
    ("crash-on-request", crash::on_request),
];
