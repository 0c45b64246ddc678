// SPDX-License-Identifier: MIT OR Apache-2.0
//! `event_channel_op`.

use crate::cpu::Running;
use crate::host::Hv;
use crate::schedule;
use crate::syscall::budget;
use philoxen_abi::{Flow, GuestVa};
use philoxen_evtchn::Caller;
use philoxen_hw::cpu::guest::LoadedGuest;

fn caller(running: &Running) -> Caller<'_> {
    Caller {
        events: &running.domain.events,
        privileged: running.domain.privileged,
    }
}

/// `event_channel_op(cmd, arg, progress)`.
#[inline]
pub fn event_channel_op(running: &Running, cmd: u64, arg: u64, progress: u64) -> Flow {
    let caller = caller(running);
    schedule::sending(running, || {
        philoxen_evtchn::event_channel_op(
            &Hv,
            caller,
            &LoadedGuest,
            cmd as u32,
            GuestVa(arg),
            progress,
            &mut budget(),
        )
    })
}

/// `event_channel_op_compat(arg)`.
pub fn event_channel_op_compat(running: &Running, arg: u64) -> Flow {
    let caller = caller(running);
    philoxen_evtchn::event_channel_op_compat(&Hv, caller, &LoadedGuest, GuestVa(arg), &mut budget())
}
