// SPDX-License-Identifier: MIT OR Apache-2.0
//! `vcpu_op` and `set_timer_op` (xen/vcpu.h): vCPUs going up and down, their timers and shared records.

use crate::cpu::Running;
use crate::host::FRAMES;
use crate::vcpu::Vcpu;
use crate::{context, schedule, time};
use core::sync::atomic::Ordering;
use philoxen_abi::vcpu::{self as abi, op};
use philoxen_abi::{Errno, Flow, GuestMemory, GuestVa, Mfn, Result, VcpuId};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_paging::validate::Stop;
use philoxen_sched::{TimerKey, TimerKind};

/// `vcpu_op(cmd, vcpu, arg)`.
pub fn vcpu_op(running: &mut Running, cmd: u64, vcpu: u64, arg: u64) -> Flow {
    let domain = &running.domain;
    let Some(target) = u32::try_from(vcpu)
        .ok()
        .and_then(|id| domain.vcpu(VcpuId(id)))
    else {
        return Errno::ENOENT.into();
    };
    if cmd as u32 != op::INITIALISE {
        let result = other_op(running, cmd as u32, target, GuestVa(arg));
        if cmd as u32 == op::REGISTER_VCPU_INFO {
            running.find_info();
        }
        return result.into();
    }
    match context::initialise(domain, target, GuestVa(arg)) {
        Ok(()) => Flow::Done(0),
        Err(Stop::Failed(errno)) => errno.into(),
        Err(Stop::Again) => Flow::Again([cmd, vcpu, arg, 0, 0]),
    }
}

fn other_op(running: &Running, cmd: u32, target: &Vcpu, arg: GuestVa) -> Result<i64> {
    let (domain, id) = (&running.domain, target.id);
    match cmd {
        op::UP => up(running, target),
        op::DOWN => {
            schedule::take_down(domain, id);
            Ok(0)
        }
        op::IS_UP => Ok(schedule::is_up(domain, id).into()),
        op::GET_RUNSTATE_INFO => runstate_info(running, id, arg),
        op::REGISTER_RUNSTATE_MEMORY_AREA => {
            let request: abi::RegisterAddress = LoadedGuest.read(arg)?;
            register_area(
                running,
                target,
                request.addr,
                abi_size::RUNSTATE,
                Area::Runstate,
            )
        }
        op::REGISTER_VCPU_TIME_MEMORY_AREA => {
            let request: abi::RegisterAddress = LoadedGuest.read(arg)?;
            register_area(running, target, request.addr, abi_size::TIME, Area::Time)
        }
        op::REGISTER_VCPU_INFO => register_vcpu_info(running, target, arg),
        // Linux stops the periodic timers of all its vCPUs on one, when it resumes.
        op::SET_PERIODIC_TIMER | op::STOP_PERIODIC_TIMER => timer_op(target, cmd, arg),
        op::SET_SINGLESHOT_TIMER | op::STOP_SINGLESHOT_TIMER => {
            if running.id != id {
                return Err(Errno::EINVAL);
            }
            timer_op(target, cmd, arg)
        }
        op::SEND_NMI => {
            schedule::send_nmi(target);
            Ok(0)
        }
        op::GET_PHYSID => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// Sizes of the records a guest places.
mod abi_size {
    pub const RUNSTATE: u64 = 48;
    pub const TIME: u64 = 32;
}

/// Which record a guest places.
#[derive(Clone, Copy)]
enum Area {
    Runstate,
    Time,
}

fn up(running: &Running, target: &Vcpu) -> Result<i64> {
    time::write_time(&running.domain, target.id);
    // Held until it is up: a tool may be taking its registers away at the same time.
    let _parked = target.parked.lock();
    if !target.initialised.load(Ordering::Acquire) {
        return Err(Errno::EINVAL);
    }
    schedule::bring_up(&running.domain, target.id);
    Ok(0)
}

fn runstate_info(running: &Running, id: VcpuId, arg: GuestVa) -> Result<i64> {
    let account = schedule::runstate(&running.domain, id).ok_or(Errno::ENOENT)?;
    let [running_ns, runnable, blocked, offline] = account.time;
    let info = abi::RunstateInfo {
        state: account.state,
        pad: 0,
        state_entry_time: account.entered,
        time: [running_ns, runnable, blocked, offline],
    };
    LoadedGuest.write(arg, &info).map(|()| 0)
}

/// Remembers where a record goes; the vCPU that runs gets its first one now.
fn register_area(running: &Running, target: &Vcpu, va: u64, size: u64, area: Area) -> Result<i64> {
    if va != 0 && !GuestVa(va).range_ok(size) {
        return Err(Errno::EFAULT);
    }
    let place = match area {
        Area::Runstate => &target.runstate_area,
        Area::Time => &target.time_area,
    };
    place.store(va, Ordering::Relaxed);
    if target.id == running.id {
        match area {
            Area::Runstate => time::write_runstate(running),
            Area::Time => time::write_time_area(running),
        }
    }
    Ok(0)
}

fn register_vcpu_info(running: &Running, target: &Vcpu, arg: GuestVa) -> Result<i64> {
    let request: abi::RegisterVcpuInfo = LoadedGuest.read(arg)?;
    let domain = &running.domain;
    if target.id != running.id && schedule::is_up(domain, target.id) {
        return Err(Errno::EINVAL);
    }
    domain
        .events
        .register_vcpu_info(&FRAMES, target.id, Mfn(request.mfn), request.offset)?;
    time::write_time(domain, target.id);
    Ok(0)
}

fn timer_op(target: &Vcpu, cmd: u32, arg: GuestVa) -> Result<i64> {
    let periodic = TimerKey::new(target.key, TimerKind::Periodic);
    let singleshot = TimerKey::new(target.key, TimerKind::Singleshot);
    match cmd {
        op::SET_PERIODIC_TIMER => {
            let request: abi::SetPeriodicTimer = LoadedGuest.read(arg)?;
            if request.period_ns < abi::MIN_PERIOD_NS || request.period_ns > i64::MAX as u64 {
                return Err(Errno::EINVAL);
            }
            target.period.store(request.period_ns, Ordering::Relaxed);
            time::set(periodic, time::now().saturating_add(request.period_ns));
        }
        op::STOP_PERIODIC_TIMER => {
            target.period.store(0, Ordering::Relaxed);
            time::cancel(periodic);
        }
        op::SET_SINGLESHOT_TIMER => {
            let request: abi::SetSingleshotTimer = LoadedGuest.read(arg)?;
            if request.flags & abi::SINGLESHOT_FUTURE != 0 && request.timeout_abs_ns < time::now() {
                return Err(Errno::ETIME);
            }
            time::set(singleshot, request.timeout_abs_ns);
        }
        _ => time::cancel(singleshot),
    }
    Ok(0)
}

/// `set_timer_op(deadline)`: the one-shot timer; 0 stops it.
pub fn set_timer_op(running: &Running, deadline: u64) -> Result<i64> {
    let key = TimerKey::new(running.vcpu().key, TimerKind::Singleshot);
    if deadline == 0 {
        time::cancel(key);
    } else {
        time::set(key, deadline);
    }
    Ok(0)
}
