// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual processor: what every processor may see of it, and what belongs to the processor that runs it.

use alloc::boxed::Box;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU64};
use philoxen_abi::{GuestVa, Mfn, VcpuId};
use philoxen_hw::cpu::state::{FpuState, Segments};
use philoxen_hw::cpu::window::{GDT_PAGES, LDT_PAGES};
use philoxen_hw::memory;
use philoxen_paging::VcpuRoots;
use philoxen_pv::debugreg::DebugRegs;
use philoxen_pv::{PvCpu, Regs, control};
use philoxen_sched::VcpuKey;
use spin::Mutex;

/// The part of a vCPU that any processor may look at.
pub struct Vcpu {
    /// Its number in the domain.
    pub id: VcpuId,
    /// Page-table roots of the guest kernel and of guest user mode.
    pub roots: VcpuRoots,
    /// The private part while no processor runs the vCPU; empty before `VCPUOP_initialise`.
    pub parked: Mutex<Option<Box<VcpuState>>>,
    /// The scheduler's name for it.
    pub key: VcpuKey,
    /// Guest address of its run-state record, 0 if none.
    pub runstate_area: AtomicU64,
    /// Guest address of its secondary time record, 0 if none.
    pub time_area: AtomicU64,
    /// It has registers (built, or `VCPUOP_initialise` came).
    pub initialised: AtomicBool,
    /// An NMI waits to be delivered.
    pub nmi: AtomicBool,
    /// Period of its periodic timer in nanoseconds, 0 if stopped.
    pub period: AtomicU64,
}

impl Vcpu {
    /// vCPU `id`, down and without registers; `key` is given back when it is dropped.
    pub const fn new(id: VcpuId, key: VcpuKey) -> Self {
        Self {
            id,
            roots: VcpuRoots::new(),
            parked: Mutex::new(None),
            key,
            runstate_area: AtomicU64::new(0),
            time_area: AtomicU64::new(0),
            initialised: AtomicBool::new(false),
            nmi: AtomicBool::new(false),
            period: AtomicU64::new(0),
        }
    }
}

impl Drop for Vcpu {
    /// Its key is its own for as long as anybody can name it: who pauses, moves or wakes it up never means another one.
    fn drop(&mut self) {
        crate::schedule::release_key(self.key);
    }
}

/// The part of a vCPU that the processor running it owns; parked in [`Vcpu::parked`] otherwise.
pub struct VcpuState {
    /// General registers, while it does not run.
    pub regs: Regs,
    /// Trap table, callbacks, kernel stack, mode, virtual control registers.
    pub pv: PvCpu,
    /// Extended registers, while it does not run.
    pub fpu: FpuState,
    /// It was loaded without XSAVE, which its domain does not have (the policy of a domain that runs may change).
    pub xsave_hidden: bool,
    /// XCR0 the guest chose.
    pub xcr0: u64,
    /// Selectors and bases, while it does not run.
    pub segments: Segments,
    /// Debug registers.
    pub debug: DebugRegs,
    /// GDT frames, each with a segment-descriptor reference.
    pub gdt: ArrayVec<Mfn, GDT_PAGES>,
    /// Entries in the GDT, as the guest gave them.
    pub gdt_entries: u64,
    /// LDT address.
    pub ldt_base: GuestVa,
    /// Descriptors in the LDT.
    pub ldt_entries: u64,
    /// LDT frames mapped so far, each with a segment-descriptor reference.
    pub ldt: [Option<Mfn>; LDT_PAGES],
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// CR0.TS as the guest set it (`fpu_taskswitch`): its next FPU instruction raises #NM.
    pub task_switched: bool,
    /// Its own I/O bitmap (`PHYSDEVOP_set_iobitmap`): guest address, number of ports; a clear bit opens a port to user mode.
    pub io_bitmap: (GuestVa, u32),
    /// What RDTSCP returns beside the counter.
    pub tsc_aux: u32,
}

impl VcpuState {
    /// A vCPU with these registers, everything else initial; `None` without memory.
    #[inline(never)]
    pub fn new(regs: Regs) -> Option<Box<Self>> {
        if memory::is_scarce() {
            return None;
        }
        let fpu = FpuState::new()?;
        Some(Box::new(Self {
            regs,
            pv: PvCpu::new(),
            fpu,
            xsave_hidden: false,
            xcr0: 1,
            segments: Segments::default(),
            debug: DebugRegs::new(),
            gdt: ArrayVec::new(),
            gdt_entries: 0,
            ldt_base: GuestVa::NULL,
            ldt_entries: 0,
            ldt: [None; LDT_PAGES],
            cr4: control::CR4_FIXED,
            task_switched: false,
            io_bitmap: (GuestVa::NULL, 0),
            tsc_aux: 0,
        }))
    }
}
