// SPDX-License-Identifier: MIT OR Apache-2.0
//! `sched_op` (xen/sched.h).

use crate::cpu::Running;
use crate::host::Hv;
use crate::{domain, schedule, time};
use philoxen_abi::sched::{self as abi, op};
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Result};
use philoxen_domain::lifecycle::ShutdownReason;
use philoxen_evtchn::{Poll, poll};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::info;
use philoxen_sched::{TimerKey, TimerKind};

/// `sched_op(cmd, arg)`.
#[inline]
pub fn sched_op(running: &mut Running, cmd: u64, arg: u64) -> Flow {
    let arg = GuestVa(arg);
    match cmd as u32 {
        op::BLOCK => block(running),
        op::YIELD => schedule::yield_now(running),
        op::POLL => return poll_op(running, arg).into(),
        op::SHUTDOWN => return shutdown(running, arg).into(),
        op::SHUTDOWN_CODE => return LoadedGuest.read::<abi::Shutdown>(arg).map(|_| 0).into(),
        op::REMOTE_SHUTDOWN => return remote_shutdown(running, arg).into(),
        op::WATCHDOG => return crate::watchdog::domain_op(running, arg).into(),
        op::PIN_OVERRIDE => {
            return if running.domain.privileged {
                Errno::ENOSYS
            } else {
                Errno::EPERM
            }
            .into();
        }
        _ => return Errno::ENOSYS.into(),
    }
    Flow::Done(0)
}

/// `sched_op_compat(cmd, reason)`: the old form, with the shutdown reason in the register.
pub fn sched_op_compat(running: &mut Running, cmd: u64, arg: u64) -> Flow {
    match cmd as u32 {
        op::BLOCK => block(running),
        op::YIELD => schedule::yield_now(running),
        op::SHUTDOWN => return stop(running, arg as u32).into(),
        _ => return Errno::ENOSYS.into(),
    }
    Flow::Done(0)
}

/// Unmasks upcalls and blocks, in one step: an event that came before is found on the way out.
fn block(running: &Running) {
    running.info.set_upcall_mask(false);
    schedule::block(running, false);
}

fn poll_op(running: &Running, arg: GuestVa) -> Result<i64> {
    let key = TimerKey::new(running.vcpu().key, TimerKind::Poll);
    match poll(&Hv, &running.domain.events, running.id, &LoadedGuest, arg)? {
        Poll::Ready => {}
        Poll::Wait(timeout) => {
            match timeout {
                Some(deadline) => time::set(key, deadline),
                None => time::cancel(key),
            }
            schedule::block(running, true);
        }
    }
    Ok(0)
}

fn shutdown(running: &Running, arg: GuestVa) -> Result<i64> {
    let request: abi::Shutdown = LoadedGuest.read(arg)?;
    stop(running, request.reason)
}

fn stop(running: &Running, code: u32) -> Result<i64> {
    let reason = ShutdownReason::from_code(code).ok_or(Errno::EINVAL)?;
    info!("d{} shut down: {reason:?}", running.domain.id.0);
    running.domain.shut_down(reason);
    Ok(0)
}

fn remote_shutdown(running: &Running, arg: GuestVa) -> Result<i64> {
    if !running.domain.privileged {
        return Err(Errno::EPERM);
    }
    let request: abi::RemoteShutdown = LoadedGuest.read(arg)?;
    let reason = ShutdownReason::from_code(request.reason).ok_or(Errno::EINVAL)?;
    let target = domain::find(DomId(request.domain_id)).ok_or(Errno::ESRCH)?;
    target.shut_down(reason);
    Ok(0)
}
