// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binding and closing ports, reset and destruction.
//!
//! Every binding goes free -> reserved -> bound and back the same way. A reserved port belongs to the one request that
//! reserved it: no other request touches it, so a failing request undoes only its own work (XSA-317, XSA-496).
//! Two ports are locked together in the order of (domain, port).

use crate::port::{Guard, State, Word};
use crate::sync::{AtomicU32, Ordering};
use crate::{DomainEvents, Frames, Host};
use core::ops::Deref;
use philoxen_abi::event::{BIND_PIRQ_WILL_SHARE, Status, status, virq};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Result, VcpuId};

/// How often a request follows a port that changes under it before it tells the guest to try again.
const RETRIES: u32 = 16;

/// Whether a bounded request has finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing left to do.
    Done,
    /// Budget spent: call again with this port to go on.
    More(u32),
}

/// A domain that may be the one whose events we hold already.
pub(crate) enum Peer<'a, R> {
    Own(&'a DomainEvents),
    Other(R),
}

impl<R: Deref<Target = DomainEvents>> Deref for Peer<'_, R> {
    type Target = DomainEvents;
    fn deref(&self) -> &DomainEvents {
        match self {
            Self::Own(events) => events,
            Self::Other(events) => events,
        }
    }
}

/// Clears a VIRQ's or PIRQ's slot if it still names `port`.
fn clear_slot(slot: Option<&AtomicU32>, port: u32) {
    if let Some(slot) = slot {
        let _ = slot.compare_exchange(port, 0, Ordering::SeqCst, Ordering::SeqCst);
    }
}

impl DomainEvents {
    /// The domain `id` as this domain names it (`DOMID_SELF` too).
    pub(crate) fn peer<'a, H: Host>(
        &'a self,
        host: &'a H,
        id: DomId,
    ) -> Result<Peer<'a, H::Ref<'a>>> {
        if id == DomId::SELF || id == self.id() {
            return Ok(Peer::Own(self));
        }
        host.domain(id).map(Peer::Other).ok_or(Errno::ESRCH)
    }

    /// Locks two different ports.
    fn lock_pair<'a>(one: (&'a Self, u32), two: (&'a Self, u32)) -> Option<(Guard<'a>, Guard<'a>)> {
        let (a, b) = (one.0.port(one.1)?, two.0.port(two.1)?);
        if (one.0.id(), one.1) < (two.0.id(), two.1) {
            let first = a.lock();
            Some((first, b.lock()))
        } else {
            let first = b.lock();
            Some((a.lock(), first))
        }
    }

    /// Turns a reserved port into `word`, or frees it and passes the error on.
    fn commit(&self, port: u32, result: Result<Word>) -> Result<u32> {
        match result {
            Ok(word) => {
                if let Some(slot) = self.port(port) {
                    *slot.lock() = word;
                }
                Ok(port)
            }
            Err(errno) => {
                self.release(port);
                Err(errno)
            }
        }
    }

    /// `EVTCHNOP_alloc_unbound` in this domain: a port that waits for `remote`. `publish` hands the number to the
    /// caller; if it fails, nothing has happened.
    ///
    /// # Errors
    /// `ENOSPC`, `ENOMEM`, `EINVAL` if the domain dies, or what `publish` returned.
    pub fn alloc_unbound(
        &self,
        frames: &impl Frames,
        remote: DomId,
        publish: impl FnOnce(u32) -> Result<()>,
    ) -> Result<u32> {
        let port = self.reserve(frames)?;
        self.commit(
            port,
            publish(port).map(|()| Word::new(State::Unbound(remote))),
        )
    }

    /// `EVTCHNOP_bind_interdomain` by this domain to `remote_port` of `remote`. The new port is pending at once, in
    /// case the far end notified before.
    ///
    /// # Errors
    /// `ESRCH` for no such domain; `EINVAL` if its port does not wait for this domain; `ENOSPC`, `ENOMEM`; `publish`'s.
    pub fn bind_interdomain<H: Host>(
        &self,
        host: &H,
        remote: DomId,
        remote_port: u32,
        publish: impl FnOnce(u32) -> Result<()>,
    ) -> Result<u32> {
        let peer = self.peer(host, remote)?;
        let waiting = State::Unbound(self.id());
        if peer
            .port(remote_port)
            .is_none_or(|slot| slot.peek().state() != waiting)
        {
            return Err(Errno::EINVAL);
        }
        let port = self.reserve(host)?;
        let connect = || {
            publish(port)?;
            let (mut near, mut far) =
                Self::lock_pair((self, port), (&peer, remote_port)).ok_or(Errno::EINVAL)?;
            if far.state() != waiting {
                return Err(Errno::EINVAL);
            }
            *far = far.with_state(State::Interdomain(self.id(), port));
            drop(far);
            *near = Word::new(State::Interdomain(peer.id(), remote_port));
            self.set_pending(host, &mut near, port);
            Ok(())
        };
        match connect() {
            Ok(()) => Ok(port),
            Err(errno) => {
                self.release(port);
                Err(errno)
            }
        }
    }

    /// `EVTCHNOP_bind_virq`: a port for VIRQ `virq` of `vcpu`.
    ///
    /// # Errors
    /// `EINVAL` for no such VIRQ or a global one not on vCPU 0; `ENOENT` for no such vCPU; `EEXIST` if bound already;
    /// `ENOSPC`, `ENOMEM`; `publish`'s.
    pub fn bind_virq(
        &self,
        frames: &impl Frames,
        virq: u32,
        vcpu: VcpuId,
        publish: impl FnOnce(u32) -> Result<()>,
    ) -> Result<u32> {
        if virq >= virq::COUNT || virq::is_global(virq) && vcpu != VcpuId(0) {
            return Err(Errno::EINVAL);
        }
        let state = self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        let slot = state.virqs.get(virq as usize).ok_or(Errno::EINVAL)?;
        if slot.load(Ordering::Acquire) != 0 {
            return Err(Errno::EEXIST);
        }
        let port = self.reserve(frames)?;
        let result = publish(port).map(|()| Word::new(State::Virq(virq)).with_vcpu(vcpu));
        self.claim(slot, port, result)
    }

    /// Enters a reserved port into its VIRQ's slot and commits it, both under its lock bit.
    fn claim(&self, slot: &AtomicU32, port: u32, result: Result<Word>) -> Result<u32> {
        let word = match result {
            Ok(word) => word,
            Err(errno) => return self.commit(port, Err(errno)),
        };
        let Some(entry) = self.port(port) else {
            return Err(Errno::EINVAL);
        };
        let mut guard = entry.lock();
        if slot
            .compare_exchange(0, port, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            drop(guard);
            return self.commit(port, Err(Errno::EEXIST));
        }
        *guard = word;
        Ok(port)
    }

    /// `EVTCHNOP_bind_ipi`: a port that notifies `vcpu`.
    ///
    /// # Errors
    /// `ENOENT` for no such vCPU; `ENOSPC`, `ENOMEM`; `publish`'s.
    pub fn bind_ipi(
        &self,
        frames: &impl Frames,
        vcpu: VcpuId,
        publish: impl FnOnce(u32) -> Result<()>,
    ) -> Result<u32> {
        self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        let port = self.reserve(frames)?;
        self.commit(
            port,
            publish(port).map(|()| Word::new(State::Ipi).with_vcpu(vcpu)),
        )
    }

    /// `EVTCHNOP_bind_pirq`: a port for physical interrupt `pirq`.
    ///
    /// # Errors
    /// `EINVAL` for no such PIRQ, `EPERM` if the domain may not use it, `EEXIST` if bound already; `ENOSPC`, `ENOMEM`;
    /// `publish`'s and [`Host::bind_pirq`]'s.
    pub fn bind_pirq<H: Host>(
        &self,
        host: &H,
        pirq: u32,
        flags: u32,
        publish: impl FnOnce(u32) -> Result<()>,
    ) -> Result<u32> {
        let slot = self.pirqs.get(pirq as usize).ok_or(Errno::EINVAL)?;
        if !host.pirq_permitted(self.id(), pirq) {
            return Err(Errno::EPERM);
        }
        if slot.load(Ordering::Acquire) != 0 {
            return Err(Errno::EEXIST);
        }
        let port = self.reserve(host)?;
        if let Err(errno) = publish(port) {
            return self.commit(port, Err(errno));
        }
        if slot
            .compare_exchange(0, port, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            return self.commit(port, Err(Errno::EEXIST));
        }
        // The line may fire before the port is bound: `raise_pirq` latches that. Nobody can close a reserved port.
        if let Err(errno) = host.bind_pirq(self.id(), pirq, flags & BIND_PIRQ_WILL_SHARE != 0) {
            clear_slot(Some(slot), port);
            return self.commit(port, Err(errno));
        }
        let mut guard = self.port(port).ok_or(Errno::EINVAL)?.lock();
        let fired = guard.latched();
        *guard = Word::new(State::Pirq(pirq));
        if fired {
            self.set_pending(host, &mut guard, port);
        }
        Ok(port)
    }

    /// Takes a port out of `state` into the reserved state; false if it is not in that state any more.
    fn withdraw(&self, frames: &impl Frames, port: u32, state: State) -> bool {
        let Some(slot) = self.port(port) else {
            return false;
        };
        let mut guard = slot.lock();
        if guard.state() != state {
            return false;
        }
        self.clear_pending(frames, port);
        *guard = Word::new(State::Reserved);
        true
    }

    /// Takes an interdomain port into the reserved state and its far end back to unbound; false if it has changed.
    fn disconnect<H: Host>(&self, host: &H, port: u32, remote: DomId, remote_port: u32) -> bool {
        let state = State::Interdomain(remote, remote_port);
        let Ok(peer) = self.peer(host, remote) else {
            return self.withdraw(host, port, state);
        };
        let Some((mut near, mut far)) = Self::lock_pair((self, port), (&peer, remote_port)) else {
            return self.withdraw(host, port, state);
        };
        if near.state() != state {
            return false;
        }
        if far.state() == State::Interdomain(self.id(), port) {
            *far = far.with_state(State::Unbound(self.id()));
        }
        self.clear_pending(host, port);
        *near = Word::new(State::Reserved);
        true
    }

    /// `EVTCHNOP_close`: frees `port`; the far end of an interdomain channel waits for a binding again.
    ///
    /// # Errors
    /// `EINVAL` if the port is not in use; `EAGAIN` if others keep rebinding it.
    pub fn close<H: Host>(&self, host: &H, port: u32) -> Result<()> {
        let slot = self.port(port).ok_or(Errno::EINVAL)?;
        for _ in 0..RETRIES {
            let word = slot.peek();
            let state = word.state();
            let taken = match state {
                State::Free | State::Reserved => return Err(Errno::EINVAL),
                State::Interdomain(remote, far) => self.disconnect(host, port, remote, far),
                _ => self.withdraw(host, port, state),
            };
            if !taken {
                continue;
            }
            match state {
                State::Pirq(pirq) => {
                    host.unbind_pirq(self.id(), pirq);
                    clear_slot(self.pirqs.get(pirq as usize), port);
                }
                State::Virq(virq) => {
                    let owner = if virq::is_global(virq) {
                        VcpuId(0)
                    } else {
                        word.vcpu()
                    };
                    clear_slot(
                        self.vcpu(owner).and_then(|v| v.virqs.get(virq as usize)),
                        port,
                    );
                }
                _ => {}
            }
            self.release(port);
            return Ok(());
        }
        Err(Errno::EAGAIN)
    }

    /// `EVTCHNOP_bind_vcpu`: `port` notifies `vcpu` from now on.
    ///
    /// # Errors
    /// `ENOENT` for no such vCPU; `EINVAL` if the port is not in use or its vCPU is fixed (IPI, per-vCPU VIRQ).
    pub fn bind_vcpu<H: Host>(&self, host: &H, port: u32, vcpu: VcpuId) -> Result<()> {
        self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        let slot = self.port(port).ok_or(Errno::EINVAL)?;
        let mut guard = slot.lock();
        let state = guard.state();
        match state {
            State::Unbound(_) | State::Interdomain(..) | State::Pirq(_) => {}
            State::Virq(virq) if virq::is_global(virq) => {}
            _ => return Err(Errno::EINVAL),
        }
        *guard = guard.with_vcpu(vcpu);
        drop(guard);
        if let State::Pirq(pirq) = state {
            host.route_pirq(self.id(), pirq, vcpu);
        }
        Ok(())
    }

    /// `EVTCHNOP_status` of a port of this domain; `dom` is what the caller called it.
    ///
    /// # Errors
    /// `EINVAL` for a port that was never used.
    pub fn status(&self, dom: DomId, port: u32) -> Result<Status> {
        let word = self.port(port).ok_or(Errno::EINVAL)?.peek();
        let (kind, detail, remote_port) = match word.state() {
            State::Free | State::Reserved => (status::CLOSED, 0, 0),
            State::Unbound(remote) => (status::UNBOUND, u32::from(remote.0), 0),
            State::Interdomain(remote, far) => (status::INTERDOMAIN, u32::from(remote.0), far),
            State::Pirq(pirq) => (status::PIRQ, pirq, 0),
            State::Virq(virq) => (status::VIRQ, virq, 0),
            State::Ipi => (status::IPI, 0, 0),
        };
        let vcpu = word.vcpu().0;
        Ok(Status {
            dom: dom.0,
            pad: 0,
            port,
            status: kind,
            vcpu,
            detail,
            remote_port,
        })
    }

    /// Closes ports from `from` on until the budget is spent; the port to go on with, or `None` at the end.
    fn sweep<H: Host>(&self, host: &H, from: u32, budget: &mut Budget) -> Option<u32> {
        let bound = self.port_bound();
        for port in from.max(1)..bound {
            // A port that is free or being bound answers EINVAL: the caller counts what is left.
            let closed = self.close(host, port).is_ok();
            if !budget.spend(if closed { 8 } else { 1 }) {
                return Some(port.saturating_add(1));
            }
        }
        None
    }

    /// `EVTCHNOP_reset`: closes every port and goes back to the two-level layout, in bounded steps (XSA-344).
    /// Start with `from` = 0. Ports bound meanwhile are closed too: it ends only when none is in use (XSA-343).
    pub fn reset<H: Host>(&self, host: &H, from: u32, budget: &mut Budget) -> Progress {
        if let Some(next) = self.sweep(host, from, budget) {
            return Progress::More(next);
        }
        let mut table = self.table.lock();
        if table.used != 0 {
            return Progress::More(0);
        }
        self.drop_fifo(host);
        table.forget_free();
        Progress::Done
    }

    /// One bounded step of destroying the domain's channels: closes ports, then unpins what the guest registered. True
    /// when all is gone; nothing can be allocated from the first step on. The vCPUs must have stopped for good.
    pub fn destroy<H: Host>(&self, host: &H, budget: &mut Budget) -> bool {
        let from = {
            let mut table = self.table.lock();
            table.dying = true;
            table.sweep
        };
        let next = self.sweep(host, from, budget);
        let mut table = self.table.lock();
        table.sweep = next.unwrap_or(1);
        if next.is_some() || table.used != 0 {
            return false;
        }
        self.drop_fifo(host);
        table.forget_free();
        self.drop_vcpu_infos(host);
        true
    }
}
