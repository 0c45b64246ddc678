// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watchdogs of domains (`SCHEDOP_watchdog`): a domain that does not poke its watchdog in time is shut down.

use crate::cpu::Running;
use crate::domain::Domain;
use crate::time;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::sched::{WATCHDOGS_PER_DOMAIN, Watchdog};
use philoxen_abi::{Errno, GuestMemory, GuestVa, Result, VcpuId};
use philoxen_domain::clock::SECOND;
use philoxen_domain::lifecycle::ShutdownReason;
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::warn;
use philoxen_sched::{TimerKey, TimerKind};

/// Deadlines of one domain's watchdogs in system time; 0 is not in use.
pub type Watchdogs = [AtomicU64; WATCHDOGS_PER_DOMAIN as usize];

/// `SCHEDOP_watchdog`: id 0 with a timeout takes a free one and answers its number; an id sets it anew or, with timeout
/// 0, frees it.
pub fn domain_op(running: &Running, arg: GuestVa) -> Result<i64> {
    let answer = set(running, arg)?;
    arm(&running.domain);
    Ok(answer)
}

fn set(running: &Running, arg: GuestVa) -> Result<i64> {
    let request: Watchdog = LoadedGuest.read(arg)?;
    let deadline = match request.timeout {
        0 => 0,
        seconds => time::now().saturating_add(u64::from(seconds) * SECOND),
    };
    let dogs = &running.domain.watchdogs;
    if request.id == 0 {
        if deadline == 0 {
            return Err(Errno::EINVAL);
        }
        let free = |dog: &AtomicU64| {
            dog.compare_exchange(0, deadline, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        return dogs
            .iter()
            .position(free)
            .map(|index| index as i64 + 1)
            .ok_or(Errno::ENOSPC);
    }
    let dog = dogs.get(request.id as usize - 1).ok_or(Errno::EINVAL)?;
    if dog.load(Ordering::Acquire) == 0 {
        return Err(Errno::EINVAL);
    }
    dog.store(deadline, Ordering::Release);
    Ok(0)
}

/// Sets the timer for the domain's first deadline.
fn arm(domain: &Domain) {
    let first = domain
        .watchdogs
        .iter()
        .map(|dog| dog.load(Ordering::Acquire))
        .filter(|&at| at != 0)
        .min();
    if let (Some(deadline), Some(vcpu)) = (first, domain.vcpu(VcpuId(0))) {
        time::set(TimerKey::new(vcpu.key, TimerKind::Watchdog), deadline);
    }
}

/// The timer came: shuts a domain down if one of its watchdogs has run out, or waits for the next.
pub fn check(domain: &Domain, now: u64) {
    let expired = |dog: &AtomicU64| (1..=now).contains(&dog.load(Ordering::Acquire));
    if domain.watchdogs.iter().any(expired) && domain.life.is_running() {
        warn!("d{}: watchdog ran out", domain.id.0);
        domain.shut_down(ShutdownReason::Watchdog);
    } else {
        arm(domain);
    }
}
