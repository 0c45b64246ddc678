// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor: entry and exit, tables, per-processor area, guest copies, and the registers a vCPU owns.
//!
//! Entry points of the binary, found by name at link time (see `crates/hypervisor/src/entry.rs`):
//! `philoxen_first`, `philoxen_trap`, `philoxen_syscall`,
//! `philoxen_iret_fault` and `philoxen_fatal`.

pub mod asm;
pub mod backtrace;
mod entry;
pub mod extable;
pub mod features;
pub mod guest;
pub mod nmi;
pub mod percpu;
pub mod start;
pub mod state;
pub mod tables;
pub mod window;

pub use entry::{
    VECTOR_SYSCALL, VECTOR_SYSCALL32, VECTOR_SYSENTER, enter_first_guest, on_main_stack,
};
pub use percpu::{CpuId, MAX_CPUS, cpu_id, cpu_id_or_boot};

/// Brings this processor to the state every entry and exit relies on: tables, control registers, SYSCALL MSRs.
///
/// `local` is handed to the binary's entry points on this processor, as their second argument.
pub fn init(cpu: CpuId, local: *mut ()) {
    features::enable();
    percpu::init(cpu, local);
    window::init(cpu);
    tables::prepare(cpu);
    tables::load(cpu);
    entry::program_syscall_msrs(cpu);
}
