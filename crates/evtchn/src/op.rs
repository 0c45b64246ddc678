// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `event_channel_op` hypercall: copies requests in, checks who may ask what, copies results out.
//!
//! Results are written to the guest before a binding takes effect: a request that answers `EFAULT` has done nothing.

use crate::{DomainEvents, Host, Progress};
use core::mem::offset_of;
use philoxen_abi::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindPirq, BindVcpu, BindVirq, ExpandArray, InitControl,
    PortArg, Reset, SetPriority, Status, fifo, op,
};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Flow, GuestMemory, GuestVa, Result, VcpuId};

/// Who makes a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The calling domain's events.
    pub events: &'a DomainEvents,
    /// True if the domain may act on others (Domain 0).
    pub privileged: bool,
}

impl<'a> Caller<'a> {
    /// Checks that the caller may act on domain `id`, and resolves it.
    fn target<H: Host>(&self, host: &'a H, id: DomId) -> Result<crate::bind::Peer<'a, H::Ref<'a>>> {
        let own = id == DomId::SELF || id == self.events.id();
        let peer = self.events.peer(host, id)?;
        if own || self.privileged {
            Ok(peer)
        } else {
            Err(Errno::EPERM)
        }
    }

    /// A domain as named by the caller, with `DOMID_SELF` replaced.
    fn resolve(&self, id: u16) -> DomId {
        if DomId(id) == DomId::SELF {
            self.events.id()
        } else {
            DomId(id)
        }
    }
}

/// Address of the result field at `offset` of the structure at `arg`.
const fn field(arg: GuestVa, offset: usize) -> GuestVa {
    arg.add(offset as u64)
}

/// Handles `event_channel_op(cmd, arg)`.
///
/// `progress` is the third argument register: only a restarted reset uses it. `Flow::Again` carries the arguments
/// of the restart.
#[inline]
pub fn event_channel_op<H: Host, G: GuestMemory>(
    host: &H,
    caller: Caller<'_>,
    guest: &G,
    cmd: u32,
    arg: GuestVa,
    progress: u64,
    budget: &mut Budget,
) -> Flow {
    if cmd == op::SEND {
        let sent = guest
            .read::<PortArg>(arg)
            .and_then(|send| caller.events.send(host, send.port));
        return Flow::from(sent.map(|()| 0));
    }
    if matches!(cmd, op::RESET | op::RESET_CONT) {
        let from = if cmd == op::RESET { 0 } else { progress as u32 };
        return reset(host, caller, guest, arg, from, budget);
    }
    let done = match cmd {
        op::BIND_INTERDOMAIN | op::BIND_VIRQ | op::BIND_PIRQ | op::ALLOC_UNBOUND | op::BIND_IPI => {
            bind(host, caller, guest, cmd, arg)
        }
        _ => manage(host, caller, guest, cmd, arg),
    };
    Flow::from(done.map(|()| 0))
}

/// `event_channel_op_compat`: one structure with the command in front, commands up to unmask only.
pub fn event_channel_op_compat<H: Host, G: GuestMemory>(
    host: &H,
    caller: Caller<'_>,
    guest: &G,
    arg: GuestVa,
    budget: &mut Budget,
) -> Flow {
    match guest.read::<u32>(arg) {
        Ok(cmd) if cmd <= op::UNMASK => {
            event_channel_op(host, caller, guest, cmd, arg.add(4), 0, budget)
        }
        Ok(_) => Errno::ENOSYS.into(),
        Err(errno) => errno.into(),
    }
}

/// The operations that return a fresh port.
fn bind<H: Host, G: GuestMemory>(
    host: &H,
    caller: Caller<'_>,
    guest: &G,
    cmd: u32,
    arg: GuestVa,
) -> Result<()> {
    let events = caller.events;
    let publish = |offset: usize| move |port: u32| guest.write::<u32>(field(arg, offset), &port);
    let port = match cmd {
        op::ALLOC_UNBOUND => {
            let request: AllocUnbound = guest.read(arg)?;
            let target = caller.target(host, DomId(request.dom))?;
            let remote = caller.resolve(request.remote_dom);
            target.alloc_unbound(host, remote, publish(offset_of!(AllocUnbound, port)))
        }
        op::BIND_INTERDOMAIN => {
            let request: BindInterdomain = guest.read(arg)?;
            let publish = publish(offset_of!(BindInterdomain, local_port));
            events.bind_interdomain(
                host,
                DomId(request.remote_dom),
                request.remote_port,
                publish,
            )
        }
        op::BIND_VIRQ => {
            let request: BindVirq = guest.read(arg)?;
            let publish = publish(offset_of!(BindVirq, port));
            events.bind_virq(host, request.virq, VcpuId(request.vcpu), publish)
        }
        op::BIND_PIRQ => {
            let request: BindPirq = guest.read(arg)?;
            let publish = publish(offset_of!(BindPirq, port));
            events.bind_pirq(host, request.pirq, request.flags, publish)
        }
        _ => {
            let request: BindIpi = guest.read(arg)?;
            events.bind_ipi(
                host,
                VcpuId(request.vcpu),
                publish(offset_of!(BindIpi, port)),
            )
        }
    };
    port.map(drop)
}

/// The operations on ports and layouts that exist.
fn manage<H: Host, G: GuestMemory>(
    host: &H,
    caller: Caller<'_>,
    guest: &G,
    cmd: u32,
    arg: GuestVa,
) -> Result<()> {
    let events = caller.events;
    match cmd {
        op::CLOSE => events.close(host, guest.read::<PortArg>(arg)?.port),
        op::UNMASK => events.unmask(host, guest.read::<PortArg>(arg)?.port),
        op::STATUS => {
            let request: Status = guest.read(arg)?;
            let target = caller.target(host, DomId(request.dom))?;
            guest.write(arg, &target.status(DomId(request.dom), request.port)?)
        }
        op::BIND_VCPU => {
            let request: BindVcpu = guest.read(arg)?;
            events.bind_vcpu(host, request.port, VcpuId(request.vcpu))
        }
        op::INIT_CONTROL => {
            let request: InitControl = guest.read(arg)?;
            let link_bits = fifo::LINK_BITS as u8;
            guest.write(field(arg, offset_of!(InitControl, link_bits)), &link_bits)?;
            events.init_control(
                host,
                VcpuId(request.vcpu),
                request.control_gfn,
                request.offset,
            )
        }
        op::EXPAND_ARRAY => events.expand_array(host, guest.read::<ExpandArray>(arg)?.array_gfn),
        op::SET_PRIORITY => {
            let request: SetPriority = guest.read(arg)?;
            events.set_priority(request.port, request.priority)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn reset<H: Host, G: GuestMemory>(
    host: &H,
    caller: Caller<'_>,
    guest: &G,
    arg: GuestVa,
    from: u32,
    budget: &mut Budget,
) -> Flow {
    let mut run = || {
        let request: Reset = guest.read(arg)?;
        Ok(caller
            .target(host, DomId(request.dom))?
            .reset(host, from, budget))
    };
    match run() {
        Ok(Progress::Done) => Flow::Done(0),
        Ok(Progress::More(next)) => {
            Flow::Again([u64::from(op::RESET_CONT), arg.0, u64::from(next), 0, 0])
        }
        Err(errno) => Errno::into(errno),
    }
}
