// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grant tables: the grant crate's operations for the running vCPU.

use crate::cpu::Running;
use crate::paging::with;
use crate::syscall::budget;
use philoxen_abi::{Flow, GuestVa};
use philoxen_hw::cpu::guest::LoadedGuest;

/// `grant_table_op(cmd, array, count)`.
pub fn grant_table_op(running: &Running, args: [u64; 3]) -> Flow {
    with(running, |cx| {
        philoxen_grant::grant_table_op(
            cx,
            &running.domain.grants,
            &LoadedGuest,
            args,
            &mut budget(),
        )
    })
}

/// `memory_op(XENMEM_acquire_resource, arg)`.
pub fn acquire_resource(running: &Running, arg: u64) -> Flow {
    with(running, |cx| {
        philoxen_grant::acquire_resource(cx, &running.domain.grants, &LoadedGuest, GuestVa(arg))
    })
    .into()
}
