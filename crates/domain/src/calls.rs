// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may make which hypercall: one table for the whole interface.
//!
//! A call that a domain may not make at all is refused here with `EPERM`, before its handler sees an argument; calls
//! that are open to all but have privileged sub-operations check those themselves.

use philoxen_abi::hypercall as nr;

/// Who may make a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every domain.
    All,
    /// The hardware domain and other domains that were given control of the machine.
    Privileged,
    /// Nobody: the call is not part of what we offer (`ENOSYS`).
    Nobody,
}

/// The permission of hypercall `number`.
pub fn allowed(number: u64) -> Allowed {
    match number {
        nr::SET_TRAP_TABLE
        | nr::MMU_UPDATE
        | nr::SET_GDT
        | nr::STACK_SWITCH
        | nr::SET_CALLBACKS
        | nr::FPU_TASKSWITCH
        | nr::SET_DEBUGREG
        | nr::GET_DEBUGREG
        | nr::UPDATE_DESCRIPTOR
        | nr::MEMORY_OP
        | nr::MULTICALL
        | nr::UPDATE_VA_MAPPING
        | nr::UPDATE_VA_MAPPING_OTHERDOMAIN
        | nr::SET_TIMER_OP
        | nr::XEN_VERSION
        | nr::CONSOLE_IO
        | nr::VM_ASSIST
        | nr::IRET
        | nr::VCPU_OP
        | nr::SET_SEGMENT_BASE
        | nr::MMUEXT_OP
        | nr::NMI_OP
        | nr::SCHED_OP
        | nr::SCHED_OP_COMPAT
        | nr::CALLBACK_OP
        | nr::EVENT_CHANNEL_OP
        | nr::EVENT_CHANNEL_OP_COMPAT
        | nr::GRANT_TABLE_OP
        | nr::PHYSDEV_OP
        | nr::PHYSDEV_OP_COMPAT => Allowed::All,
        nr::PLATFORM_OP | nr::SYSCTL | nr::DOMCTL | nr::HYPFS_OP => Allowed::Privileged,
        _ => Allowed::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_may_not_control_the_platform() {
        for number in [nr::PLATFORM_OP, nr::SYSCTL, nr::DOMCTL, nr::HYPFS_OP] {
            assert_eq!(allowed(number), Allowed::Privileged);
        }
        assert_eq!(allowed(nr::MMU_UPDATE), Allowed::All);
        assert_eq!(allowed(11), Allowed::Nobody);
        assert_eq!(allowed(u64::MAX), Allowed::Nobody);
    }
}
