// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercall numbers (xen/xen.h, `__HYPERVISOR_*`) and how a handler answers.

use crate::{Errno, Result};

/// What a hypercall handler tells the dispatcher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Finished: this goes to `rax`.
    Done(i64),
    /// Used up its budget: run again with these arguments (rdi, rsi, rdx, r10, r8) after pending work; progress is in them.
    Again([u64; 5]),
}

impl From<Result<i64>> for Flow {
    fn from(result: Result<i64>) -> Self {
        match result {
            Ok(value) => Self::Done(value),
            Err(errno) => Self::Done(errno.rax()),
        }
    }
}

impl From<Errno> for Flow {
    fn from(errno: Errno) -> Self {
        Self::Done(errno.rax())
    }
}

/// Steps of work a request may do before it must yield to pending events and the scheduler.
///
/// One unit is about one page-table entry validated (some tens of nanoseconds).
#[derive(Debug)]
pub struct Budget(u32);

impl Budget {
    /// A budget of `units`.
    pub const fn new(units: u32) -> Self {
        Self(units)
    }
    /// No limit: for boot and host tests.
    pub const fn unlimited() -> Self {
        Self(u32::MAX)
    }
    /// Takes `units`; false once the budget is spent (the work of this call may still be done).
    #[inline]
    pub fn spend(&mut self, units: u32) -> bool {
        if self.0 == u32::MAX {
            return true;
        }
        self.0 = self.0.saturating_sub(units);
        self.0 != 0
    }
    /// True once nothing is left.
    pub const fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

macro_rules! numbers {
    ($($name:ident = $value:literal;)*) => {
        $(#[doc = concat!("`__HYPERVISOR_`", stringify!($name), ".")] pub const $name: u64 = $value;)*
    };
}

numbers! {
    SET_TRAP_TABLE = 0;
    MMU_UPDATE = 1;
    SET_GDT = 2;
    STACK_SWITCH = 3;
    SET_CALLBACKS = 4;
    FPU_TASKSWITCH = 5;
    SCHED_OP_COMPAT = 6;
    PLATFORM_OP = 7;
    SET_DEBUGREG = 8;
    GET_DEBUGREG = 9;
    UPDATE_DESCRIPTOR = 10;
    MEMORY_OP = 12;
    MULTICALL = 13;
    UPDATE_VA_MAPPING = 14;
    SET_TIMER_OP = 15;
    EVENT_CHANNEL_OP_COMPAT = 16;
    XEN_VERSION = 17;
    CONSOLE_IO = 18;
    PHYSDEV_OP_COMPAT = 19;
    GRANT_TABLE_OP = 20;
    VM_ASSIST = 21;
    UPDATE_VA_MAPPING_OTHERDOMAIN = 22;
    IRET = 23;
    VCPU_OP = 24;
    SET_SEGMENT_BASE = 25;
    MMUEXT_OP = 26;
    XSM_OP = 27;
    NMI_OP = 28;
    SCHED_OP = 29;
    CALLBACK_OP = 30;
    XENOPROF_OP = 31;
    EVENT_CHANNEL_OP = 32;
    PHYSDEV_OP = 33;
    HVM_OP = 34;
    SYSCTL = 35;
    DOMCTL = 36;
    KEXEC_OP = 37;
    TMEM_OP = 38;
    ARGO_OP = 39;
    XENPMU_OP = 40;
    DM_OP = 41;
    HYPFS_OP = 42;
    MCA = 48;
}
