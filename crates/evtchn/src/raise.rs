// SPDX-License-Identifier: MIT OR Apache-2.0
//! Raising events: from a hypercall, a virtual or physical interrupt, or another port; two-level layout and upcalls.
//!
//! Invariant: the pending bit of an event is set before anything that tells the guest or a poller to look for it.

use crate::port::{Guard, State};
use crate::sync::Ordering;
use crate::vcpu::POLL_ANY;
use crate::{DomainEvents, Frames, Host, VcpuEvents, word};
use philoxen_abi::event::virq;
use philoxen_abi::shared::{shared_info, vcpu_info};
use philoxen_abi::{Errno, Result, VcpuId};

/// Word index of the first pending word and the first mask word in `shared_info`.
const PENDING: usize = shared_info::EVTCHN_PENDING / 8;
const MASK: usize = shared_info::EVTCHN_MASK / 8;

/// Word and bit of a port in the two-level bitmaps.
#[inline(always)]
const fn two_level(port: u32) -> (usize, u64) {
    ((port / 64) as usize, 1 << (port % 64))
}

impl DomainEvents {
    /// `EVTCHNOP_send` by this domain: notifies the far end of `port`.
    ///
    /// # Errors
    /// `EINVAL` if the port is not bound to another port or to a vCPU.
    #[inline]
    pub fn send<H: Host>(&self, host: &H, port: u32) -> Result<()> {
        let slot = self.port(port).ok_or(Errno::EINVAL)?;
        match slot.peek().state() {
            State::Interdomain(id, remote) if id == self.id() => {
                self.receive(host, remote, State::Interdomain(id, port));
                Ok(())
            }
            State::Interdomain(id, remote) => {
                // A far end that is gone or was closed meanwhile swallows the event.
                if let Some(domain) = host.domain(id) {
                    domain.receive(host, remote, State::Interdomain(self.id(), port));
                }
                Ok(())
            }
            State::Ipi => {
                self.receive(host, port, State::Ipi);
                Ok(())
            }
            State::Unbound(_) => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Makes `port` pending if it is still bound as `expected`.
    #[inline]
    fn receive<H: Host>(&self, host: &H, port: u32, expected: State) {
        let Some(slot) = self.port(port) else { return };
        let mut guard = slot.lock();
        if guard.state() == expected {
            self.set_pending(host, &mut guard, port);
        }
    }

    /// Makes `port` pending whatever it is bound to; nothing if it is not in use.
    pub fn notify<H: Host>(&self, host: &H, port: u32) {
        let Some(slot) = self.port(port) else { return };
        let mut guard = slot.lock();
        if guard.usable() {
            self.set_pending(host, &mut guard, port);
        }
    }

    /// Raises VIRQ `virq` on `vcpu`; nothing if it is not bound.
    #[inline]
    pub fn raise_virq<H: Host>(&self, host: &H, vcpu: VcpuId, virq: u32) {
        let Some(slot) = self.vcpu(vcpu).and_then(|v| v.virqs.get(virq as usize)) else {
            return;
        };
        let port = slot.load(Ordering::Acquire);
        if port != 0 {
            self.receive(host, port, State::Virq(virq));
        }
    }

    /// Raises a global VIRQ of this domain; nothing if it is not bound or not global.
    pub fn raise_global_virq<H: Host>(&self, host: &H, virq: u32) {
        if virq::is_global(virq) {
            self.raise_virq(host, VcpuId(0), virq);
        }
    }

    /// Raises physical interrupt `pirq`; false if the domain has not bound it.
    #[inline]
    pub fn raise_pirq<H: Host>(&self, host: &H, pirq: u32) -> bool {
        let port = self.pirq_port(pirq);
        let Some(slot) = self.port(port) else {
            return false;
        };
        let mut guard = slot.lock();
        match guard.state() {
            State::Pirq(bound) if bound == pirq => self.set_pending(host, &mut guard, port),
            State::Reserved if port != 0 => *guard = guard.with_latched(true),
            _ => return false,
        }
        true
    }

    /// Port that `pirq` is bound to; 0 is none.
    pub fn pirq_port(&self, pirq: u32) -> u32 {
        self.pirqs
            .get(pirq as usize)
            .map_or(0, |slot| slot.load(Ordering::Acquire))
    }

    /// True if the port's mask bit is set: whether an interrupt that the guest holds off needs to wait.
    pub fn is_masked(&self, frames: &impl Frames, port: u32) -> bool {
        let Some(slot) = self.port(port) else {
            return true;
        };
        let guard = slot.lock();
        !guard.usable() || self.flags(frames, port).1
    }

    /// `EVTCHNOP_unmask`: clears the mask bit of `port` and notifies if it is pending.
    ///
    /// # Errors
    /// `EINVAL` if there is no such port.
    pub fn unmask<H: Host>(&self, host: &H, port: u32) -> Result<()> {
        let slot = self.port(port).ok_or(Errno::EINVAL)?;
        let mut guard = slot.lock();
        if !guard.usable() {
            return Ok(());
        }
        if self.uses_fifo() {
            self.fifo_unmask(host, &mut guard, port);
            return Ok(());
        }
        let info = host.words(self.shared_info());
        let (index, bit) = two_level(port);
        if word(info, MASK + index).fetch_and(!bit, Ordering::SeqCst) & bit != 0
            && word(info, PENDING + index).load(Ordering::SeqCst) & bit != 0
        {
            self.select(host, guard.vcpu(), index);
        }
        Ok(())
    }

    /// Makes a bound port pending. The caller holds its lock bit.
    #[inline]
    pub(crate) fn set_pending<H: Host>(&self, host: &H, guard: &mut Guard<'_>, port: u32) {
        if self.uses_fifo() {
            self.fifo_set_pending(host, guard, port);
            return;
        }
        let info = host.words(self.shared_info());
        let (index, bit) = two_level(port);
        if word(info, PENDING + index).fetch_or(bit, Ordering::SeqCst) & bit != 0 {
            return;
        }
        if word(info, MASK + index).load(Ordering::SeqCst) & bit == 0 {
            self.select(host, guard.vcpu(), index);
        }
        self.wake_pollers(host, port);
    }

    /// Sets a bit of the selector and, if it was clear, the upcall.
    #[inline]
    fn select<H: Host>(&self, host: &H, vcpu: VcpuId, index: usize) {
        let Some(state) = self.vcpu(vcpu) else { return };
        // Without a vcpu_info nothing is lost: registering one selects every word.
        let Some(info) = state.info(host) else {
            return;
        };
        let bit = 1u64 << (index % 64);
        if info.selector().fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            self.mark_pending(host, vcpu, state);
        }
    }

    /// Sets the upcall-pending byte of a vCPU and kicks it if that is news.
    #[inline]
    pub(crate) fn mark_pending<H: Host>(&self, host: &H, vcpu: VcpuId, state: &VcpuEvents) {
        let Some(info) = state.info(host) else {
            return;
        };
        if info.upcall().fetch_or(1, Ordering::SeqCst) & vcpu_info::PENDING_BITS == 0 {
            self.end_poll_of(state);
            host.kick(self.id(), vcpu);
        }
    }

    /// Ends the polls that wait for `port`.
    #[inline]
    pub(crate) fn wake_pollers<H: Host>(&self, host: &H, port: u32) {
        if self.pollers.load(Ordering::SeqCst) != 0 {
            self.search_pollers(host, port);
        }
    }

    #[cold]
    fn search_pollers<H: Host>(&self, host: &H, port: u32) {
        for (index, state) in self.vcpus.iter().enumerate() {
            let polled = state.polling.load(Ordering::SeqCst);
            if (polled == port || polled == POLL_ANY) && self.end_poll_of(state) {
                host.kick(self.id(), VcpuId(index as u32));
            }
        }
    }

    /// Pending and mask bit of a usable port. The caller holds its lock bit.
    pub(crate) fn flags(&self, frames: &impl Frames, port: u32) -> (bool, bool) {
        if self.uses_fifo() {
            return self.fifo_flags(frames, port);
        }
        let info = frames.words(self.shared_info());
        let (index, bit) = two_level(port);
        let set = |base: usize| word(info, base + index).load(Ordering::SeqCst) & bit != 0;
        (set(PENDING), set(MASK))
    }

    /// Clears the pending bit of a port that is being closed. The caller holds its lock bit.
    pub(crate) fn clear_pending(&self, frames: &impl Frames, port: u32) {
        if self.uses_fifo() {
            self.fifo_clear_pending(frames, port);
            return;
        }
        let (index, bit) = two_level(port);
        word(frames.words(self.shared_info()), PENDING + index).fetch_and(!bit, Ordering::SeqCst);
    }

    /// Pending bit in the two-level bitmap, for the switch to the FIFO layout.
    pub(crate) fn was_pending(&self, frames: &impl Frames, port: u32) -> bool {
        let (index, bit) = two_level(port);
        word(frames.words(self.shared_info()), PENDING + index).load(Ordering::SeqCst) & bit != 0
    }
}
