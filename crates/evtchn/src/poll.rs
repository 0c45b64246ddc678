// SPDX-License-Identifier: MIT OR Apache-2.0
//! `SCHEDOP_poll` (xen/sched.h): sleep until one of some ports is pending.
//!
//! Invariant against lost wake-ups: a poll is announced before the ports are looked at, and an event is made pending
//! before pollers are looked for; both with sequentially consistent operations, so one of the two sees the other.

use crate::sync::Ordering;
use crate::vcpu::POLL_ANY;
use crate::{DomainEvents, Frames, Host, VcpuEvents};
use philoxen_abi::{Errno, GuestMemory, GuestVa, Result, VcpuId, sched};

/// What to do with a vCPU that polls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// Return 0 to it at once.
    Ready,
    /// Block it as long as [`VcpuEvents::is_polling`] says so, at most until this system time in nanoseconds if any;
    /// then call [`DomainEvents::end_poll`] and return 0.
    Wait(Option<u64>),
}

/// Handles `sched_op(SCHEDOP_poll, arg)` of `vcpu` of `domain`.
///
/// # Errors
/// `EINVAL` for more than 128 ports or a port that does not exist; `EFAULT`; `ENOENT` for no such vCPU.
pub fn poll<H: Host, G: GuestMemory>(
    host: &H,
    domain: &DomainEvents,
    vcpu: VcpuId,
    guest: &G,
    arg: GuestVa,
) -> Result<Poll> {
    let request: sched::Poll = guest.read(arg)?;
    let state = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    if request.nr_ports > sched::POLL_MAX_PORTS {
        return Err(Errno::EINVAL);
    }
    let ports = GuestVa(request.ports);
    let announced = match request.nr_ports {
        1 => guest.read::<u32>(ports)?,
        _ => POLL_ANY,
    };
    if domain.port(announced).is_none() && request.nr_ports == 1 {
        return Err(Errno::EINVAL);
    }
    domain.end_poll_of(state);
    domain.pollers.fetch_add(1, Ordering::SeqCst);
    // Port 0 is never pending: polling it alone waits for the timeout or an upcall.
    state.polling.store(
        if announced == 0 { POLL_ANY } else { announced },
        Ordering::SeqCst,
    );
    let ready = any_ready(host, domain, state, guest, &request, announced);
    if matches!(ready, Ok(false)) {
        return Ok(Poll::Wait(
            Some(request.timeout).filter(|&timeout| timeout != 0),
        ));
    }
    domain.end_poll_of(state);
    ready.map(|_| Poll::Ready)
}

/// True if an upcall must be delivered or one of the ports is pending.
fn any_ready<H: Host, G: GuestMemory>(
    host: &H,
    domain: &DomainEvents,
    state: &VcpuEvents,
    guest: &G,
    request: &sched::Poll,
    announced: u32,
) -> Result<bool> {
    if state.upcall_due(host) {
        return Ok(true);
    }
    if request.nr_ports == 1 {
        return Ok(domain.is_pending(host, announced));
    }
    for index in 0..u64::from(request.nr_ports) {
        let port: u32 = guest.read(GuestVa(request.ports).element(index, 4))?;
        domain.port(port).ok_or(Errno::EINVAL)?;
        if domain.is_pending(host, port) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl DomainEvents {
    /// True if the port is in use and its pending bit set. A port without an event word is not pending (XSA-221).
    pub fn is_pending(&self, frames: &impl Frames, port: u32) -> bool {
        let Some(slot) = self.port(port) else {
            return false;
        };
        let guard = slot.lock();
        guard.usable() && (guard.latched() || self.flags(frames, port).0)
    }

    /// Ends the poll of `vcpu`, if any: at its timeout, or when it runs again for another reason.
    pub fn end_poll(&self, vcpu: VcpuId) {
        if let Some(state) = self.vcpu(vcpu) {
            self.end_poll_of(state);
        }
    }

    /// Ends a poll; true if there was one.
    #[inline]
    pub(crate) fn end_poll_of(&self, state: &VcpuEvents) -> bool {
        if !state.is_polling() {
            return false;
        }
        let was = state.polling.swap(0, Ordering::SeqCst) != 0;
        if was {
            self.pollers.fetch_sub(1, Ordering::SeqCst);
        }
        was
    }
}
