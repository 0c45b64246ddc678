// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every operation through the hypercall, with its errors, in the two-level layout.

use super::{Machine, VA, connect};
use crate::{Caller, Frames, Poll, State, event_channel_op, event_channel_op_compat, poll};
use core::sync::atomic::Ordering;
use philoxen_abi::event::*;
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, Flow, GuestVa, Mfn, VcpuId, sched};
use std::vec;

const SELF: u16 = DomId::SELF.0;

fn err(errno: Errno) -> i64 {
    errno.rax()
}

fn unbound(machine: &Machine, by: u16, dom: u16, remote: u16) -> Result<u32, i64> {
    let request = AllocUnbound {
        dom,
        remote_dom: remote,
        port: 0,
    };
    machine.call(by, op::ALLOC_UNBOUND, request).map(|r| r.port)
}

fn status_of(machine: &Machine, by: u16, dom: u16, port: u32) -> Result<Status, i64> {
    let request = Status {
        dom,
        pad: 0,
        port,
        status: 99,
        vcpu: 99,
        detail: 99,
        remote_port: 99,
    };
    machine.call(by, op::STATUS, request)
}

fn bind(machine: &Machine, by: u16, remote_dom: u16, remote_port: u32) -> Result<u32, i64> {
    let request = BindInterdomain {
        remote_dom,
        pad: 0,
        remote_port,
        local_port: 0,
    };
    machine
        .call(by, op::BIND_INTERDOMAIN, request)
        .map(|r| r.local_port)
}

fn virq_port(machine: &Machine, by: u16, virq: u32, vcpu: u32) -> Result<u32, i64> {
    machine
        .call(
            by,
            op::BIND_VIRQ,
            BindVirq {
                virq,
                vcpu,
                port: 0,
            },
        )
        .map(|r| r.port)
}

fn send(machine: &Machine, by: u16, port: u32) -> Result<(), i64> {
    machine.call(by, op::SEND, PortArg { port }).map(drop)
}

fn close(machine: &Machine, by: u16, port: u32) -> Result<(), i64> {
    machine.call(by, op::CLOSE, PortArg { port }).map(drop)
}

#[test]
fn the_lowest_free_port_is_taken() {
    let m = Machine::new(1023);
    for port in 1..=200 {
        assert_eq!(unbound(&m, 1, SELF, 0), Ok(port));
    }
    for port in [150, 7, 63, 64, 8] {
        m.dom(1).close(&m, port).unwrap();
    }
    for port in [7, 8, 63, 64, 150, 201] {
        assert_eq!(unbound(&m, 1, SELF, 0), Ok(port));
    }
}

#[test]
fn ports_are_numbered_from_one_and_privilege_is_checked() {
    let m = Machine::new(1023);
    // The toolstack makes the store and the console port of a new domain, in this order.
    assert_eq!(unbound(&m, 0, 1, 0), Ok(1));
    assert_eq!(unbound(&m, 0, 1, SELF), Ok(2));
    assert_eq!(
        m.dom(1).info(&m, 2).unwrap().state,
        State::Unbound(DomId(0))
    );
    assert_eq!(unbound(&m, 1, 0, 1), Err(err(Errno::EPERM)));
    assert_eq!(
        unbound(&m, 1, 1, 0),
        Ok(3),
        "its own number is as good as DOMID_SELF"
    );
    assert_eq!(unbound(&m, 0, 7, 0), Err(err(Errno::ESRCH)));
    assert_eq!(status_of(&m, 1, 0, 1).unwrap_err(), err(Errno::EPERM));
    assert_eq!(status_of(&m, 0, 9, 1).unwrap_err(), err(Errno::ESRCH));
    assert_eq!(status_of(&m, 0, 1, 1000).unwrap_err(), err(Errno::EINVAL));
    let s = status_of(&m, 0, 1, 1).unwrap();
    assert_eq!((s.status, s.vcpu, s.detail), (status::UNBOUND, 0, 0));
    assert_eq!(status_of(&m, 1, SELF, 4).unwrap().status, status::CLOSED);
    assert_eq!(
        m.call(1, op::RESET, Reset { dom: 0 }).unwrap_err(),
        err(Errno::EPERM)
    );
}

#[test]
fn interdomain_life() {
    let m = Machine::new(1023);
    let far = unbound(&m, 1, SELF, 0).unwrap();
    assert_eq!(bind(&m, 0, 1, far + 1), Err(err(Errno::EINVAL)));
    assert_eq!(bind(&m, 0, 5, far), Err(err(Errno::ESRCH)));
    assert_eq!(
        bind(&m, 1, 1, far),
        Err(err(Errno::EINVAL)),
        "it waits for domain 0"
    );
    let near = bind(&m, 0, 1, far).unwrap();
    assert_eq!(m.take_kicks(), [(0, 0)], "the new end is pending at once");
    assert_eq!(m.consume_two_level(0, 0), [near]);
    assert_eq!(bind(&m, 0, 1, far), Err(err(Errno::EINVAL)), "taken");
    let s = status_of(&m, 0, SELF, near).unwrap();
    assert_eq!(
        (s.status, s.detail, s.remote_port),
        (status::INTERDOMAIN, 1, far)
    );

    send(&m, 0, near).unwrap();
    send(&m, 0, near).unwrap();
    assert_eq!(m.take_kicks(), [(1, 0)], "one kick for one pending event");
    assert_eq!(m.consume_two_level(1, 0), [far]);
    m.call(1, op::BIND_VCPU, BindVcpu { port: far, vcpu: 3 })
        .unwrap();
    send(&m, 0, near).unwrap();
    assert_eq!(m.take_kicks(), [(1, 3)]);
    assert_eq!(m.consume_two_level(1, 3), [far]);

    send(&m, 1, far).unwrap();
    close(&m, 0, near).unwrap();
    assert_eq!(
        m.consume_two_level(0, 0),
        [0u32; 0],
        "closing clears the pending bit"
    );
    assert_eq!(
        m.dom(1).info(&m, far).unwrap().state,
        State::Unbound(DomId(0))
    );
    assert_eq!(send(&m, 1, far), Ok(()), "an unbound port swallows events");
    assert_eq!(send(&m, 0, near), Err(err(Errno::EINVAL)));
    assert_eq!(close(&m, 0, near), Err(err(Errno::EINVAL)));
    assert!(bind(&m, 0, 1, far).is_ok(), "and can be bound again");
}

#[test]
fn loopback_and_ipi() {
    let m = Machine::new(1023);
    let a = unbound(&m, 0, SELF, SELF).unwrap();
    let b = bind(&m, 0, SELF, a).unwrap();
    assert_eq!(m.consume_two_level(0, 0), [b]);
    send(&m, 0, b).unwrap();
    assert_eq!(m.consume_two_level(0, 0), [a]);
    let ipi = m
        .call(0, op::BIND_IPI, BindIpi { vcpu: 2, port: 0 })
        .unwrap()
        .port;
    send(&m, 0, ipi).unwrap();
    assert_eq!(m.consume_two_level(0, 2), [ipi]);
    assert_eq!(
        m.call(0, op::BIND_IPI, BindIpi { vcpu: 4, port: 0 })
            .unwrap_err(),
        err(Errno::ENOENT)
    );
    let fixed = BindVcpu { port: ipi, vcpu: 0 };
    assert_eq!(
        m.call(0, op::BIND_VCPU, fixed).unwrap_err(),
        err(Errno::EINVAL)
    );
    let none = BindVcpu { port: a, vcpu: 4 };
    assert_eq!(
        m.call(0, op::BIND_VCPU, none).unwrap_err(),
        err(Errno::ENOENT)
    );
    for port in [a, ipi] {
        close(&m, 0, port).unwrap();
    }
    assert_eq!(
        m.dom(0).info(&m, b).unwrap().state,
        State::Unbound(DomId(0))
    );
    close(&m, 0, b).unwrap();
    assert_eq!(m.dom(0).used_ports(), 0);
}

#[test]
fn virqs() {
    let m = Machine::new(1023);
    assert_eq!(virq_port(&m, 0, virq::COUNT, 0), Err(err(Errno::EINVAL)));
    assert_eq!(
        virq_port(&m, 0, virq::CONSOLE, 1),
        Err(err(Errno::EINVAL)),
        "global: vCPU 0"
    );
    assert_eq!(virq_port(&m, 0, virq::TIMER, 4), Err(err(Errno::ENOENT)));
    let timer = virq_port(&m, 0, virq::TIMER, 1).unwrap();
    let console = virq_port(&m, 0, virq::CONSOLE, 0).unwrap();
    let mca = virq_port(&m, 0, virq::MCA, 0).unwrap();
    let d = m.dom(0);
    d.raise_virq(&m, VcpuId(0), virq::TIMER);
    assert_eq!(m.take_kicks(), [], "not bound on vCPU 0");
    d.raise_virq(&m, VcpuId(1), virq::TIMER);
    assert_eq!(m.consume_two_level(0, 1), [timer]);
    d.raise_global_virq(&m, virq::CONSOLE);
    d.raise_global_virq(&m, virq::MCA);
    d.raise_global_virq(&m, virq::TIMER);
    d.raise_virq(&m, VcpuId(9), 99);
    assert_eq!(m.consume_two_level(0, 0), [console, mca]);
    m.call(
        0,
        op::BIND_VCPU,
        BindVcpu {
            port: console,
            vcpu: 2,
        },
    )
    .unwrap();
    d.raise_global_virq(&m, virq::CONSOLE);
    assert_eq!(m.consume_two_level(0, 2), [console]);
    let fixed = BindVcpu {
        port: timer,
        vcpu: 0,
    };
    assert_eq!(
        m.call(0, op::BIND_VCPU, fixed).unwrap_err(),
        err(Errno::EINVAL)
    );
    assert_eq!(send(&m, 0, timer), Err(err(Errno::EINVAL)));
    close(&m, 0, timer).unwrap();
    d.raise_virq(&m, VcpuId(1), virq::TIMER);
    assert_eq!(m.consume_two_level(0, 1), [0u32; 0]);
    assert!(virq_port(&m, 0, virq::TIMER, 1).is_ok());
}

#[test]
fn pirqs() {
    let m = Machine::new(1023);
    let request = |pirq, flags| BindPirq {
        pirq,
        flags,
        port: 0,
    };
    let bind = |by, pirq| m.call(by, op::BIND_PIRQ, request(pirq, 1)).map(|r| r.port);
    assert_eq!(bind(1, 4), Err(err(Errno::EINVAL)), "no PIRQs at all");
    assert_eq!(bind(0, 64), Err(err(Errno::EINVAL)));
    assert_eq!(bind(0, 13), Err(err(Errno::EPERM)));
    m.refuse_pirq.store(true, Ordering::Relaxed);
    assert_eq!(bind(0, 9), Err(err(Errno::EBUSY)));
    assert_eq!(m.dom(0).used_ports(), 0);
    m.refuse_pirq.store(false, Ordering::Relaxed);
    let port = bind(0, 9).unwrap();
    assert_eq!(m.bound_pirqs.lock().unwrap().get(&(0, 9)), Some(&true));
    assert_eq!(bind(0, 9), Err(err(Errno::EEXIST)));
    assert!(m.dom(0).raise_pirq(&m, 9));
    assert!(!m.dom(0).raise_pirq(&m, 10));
    assert_eq!(m.consume_two_level(0, 0), [port]);
    m.dom(0).bind_vcpu(&m, port, VcpuId(2)).unwrap();
    assert_eq!(*m.routes.lock().unwrap(), [(DomId(0), 9, VcpuId(2))]);
    close(&m, 0, port).unwrap();
    assert!(m.bound_pirqs.lock().unwrap().is_empty());
    assert!(!m.dom(0).raise_pirq(&m, 9));
}

#[test]
fn masks_and_unmask() {
    let m = Machine::new(1023);
    let (near, far) = connect(&m);
    m.consume_two_level(0, 0);
    m.take_kicks();
    m.set_mask(1, far, true);
    send(&m, 0, near).unwrap();
    assert_eq!(m.take_kicks(), []);
    assert_eq!(
        m.dom(1).info(&m, far).map(|i| (i.pending, i.masked)),
        Some((true, true))
    );
    m.call(1, op::UNMASK, PortArg { port: far }).unwrap();
    assert_eq!(m.take_kicks(), [(1, 0)]);
    assert_eq!(m.consume_two_level(1, 0), [far]);
    m.call(1, op::UNMASK, PortArg { port: far }).unwrap();
    assert_eq!(m.take_kicks(), []);
    assert_eq!(
        m.call(1, op::UNMASK, PortArg { port: 9999 }).unwrap_err(),
        err(Errno::EINVAL)
    );
}

#[test]
fn limits_and_unknown_commands() {
    let m = Machine::new(5);
    for port in 1..=5 {
        assert_eq!(unbound(&m, 1, SELF, 0), Ok(port));
    }
    assert_eq!(unbound(&m, 1, SELF, 0), Err(err(Errno::ENOSPC)));
    close(&m, 1, 2).unwrap();
    close(&m, 1, 4).unwrap();
    assert_eq!(unbound(&m, 1, SELF, 0), Ok(2), "the one free for longest");
    assert_eq!(unbound(&m, 1, SELF, 0), Ok(4));
    assert_eq!(
        m.call(1, 15, PortArg { port: 1 }).unwrap_err(),
        err(Errno::ENOSYS)
    );
    assert_eq!(send(&m, 1, 0), Err(err(Errno::EINVAL)));
    assert_eq!(close(&m, 1, 0), Err(err(Errno::EINVAL)));
    let m = Machine::new(u32::MAX);
    for port in 1..TWO_LEVEL_PORTS {
        assert_eq!(unbound(&m, 1, SELF, 0), Ok(port));
    }
    assert_eq!(
        unbound(&m, 1, SELF, 0),
        Err(err(Errno::ENOSPC)),
        "two levels end at 4096"
    );
}

#[test]
fn a_result_that_cannot_be_written_binds_nothing() {
    let m = Machine::new(1023);
    let events = m.dom(1);
    let caller = Caller {
        events: &events,
        privileged: false,
    };
    // The request ends where memory ends, just before the result field.
    let mut bytes = vec![0xf0, 0x7f, 0, 0];
    let guest = FakeGuest::new(VA, &mut bytes);
    let budget = &mut Budget::unlimited();
    let flow = event_channel_op(
        &m,
        caller,
        &guest,
        op::ALLOC_UNBOUND,
        GuestVa(VA),
        0,
        budget,
    );
    assert_eq!(flow, Flow::Done(err(Errno::EFAULT)));
    assert_eq!(events.used_ports(), 0);
    assert_eq!(
        events.alloc_unbound(&m, DomId(0), |_| Err(Errno::EFAULT)),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        events.bind_virq(&m, 0, VcpuId(0), |_| Err(Errno::EFAULT)),
        Err(Errno::EFAULT)
    );
    assert_eq!(
        events.bind_ipi(&m, VcpuId(0), |_| Err(Errno::EFAULT)),
        Err(Errno::EFAULT)
    );
    let dom0 = m.dom(0);
    assert_eq!(
        dom0.bind_pirq(&m, 4, 0, |_| Err(Errno::EFAULT)),
        Err(Errno::EFAULT)
    );
    let far = events.alloc_unbound(&m, DomId(0), |_| Ok(())).unwrap();
    let failed = dom0.bind_interdomain(&m, DomId(1), far, |_| Err(Errno::EFAULT));
    assert_eq!(failed, Err(Errno::EFAULT));
    assert_eq!((dom0.used_ports(), events.used_ports()), (0, 1));
    assert_eq!(
        events.info(&m, far).unwrap().state,
        State::Unbound(DomId(0))
    );
}

#[test]
fn compat_hypercall() {
    let m = Machine::new(1023);
    let events = m.dom(0);
    let caller = Caller {
        events: &events,
        privileged: true,
    };
    let mut bytes = vec![0; 32];
    bytes[0] = op::BIND_IPI as u8;
    bytes[4] = 1;
    {
        let guest = FakeGuest::new(VA, &mut bytes);
        let budget = &mut Budget::unlimited();
        let flow = event_channel_op_compat(&m, caller, &guest, GuestVa(VA), budget);
        assert_eq!(flow, Flow::Done(0));
    }
    assert_eq!(bytes[8], 1, "the port");
    bytes[0] = op::RESET as u8;
    let guest = FakeGuest::new(VA, &mut bytes);
    let budget = &mut Budget::unlimited();
    let flow = event_channel_op_compat(&m, caller, &guest, GuestVa(VA), budget);
    assert_eq!(flow, Flow::Done(err(Errno::ENOSYS)));
}

#[test]
fn vcpu_info_moves_once_and_loses_nothing() {
    let m = Machine::new(1023);
    let events = m.dom(1);
    let (near, far) = connect(&m);
    send(&m, 0, near).unwrap();
    let place = |mfn, offset| events.register_vcpu_info(&m, VcpuId(0), Mfn(mfn), offset);
    assert_eq!(place(21, 4096 - 63), Err(Errno::EINVAL));
    assert_eq!(place(21, 4), Err(Errno::EINVAL));
    assert_eq!(place(20, 0), Err(Errno::EINVAL), "another domain's frame");
    assert_eq!(
        events.register_vcpu_info(&m, VcpuId(4), Mfn(21), 0),
        Err(Errno::ENOENT)
    );
    let cr2 = m.word(1, 2);
    cr2.store(0xdead_beef, Ordering::SeqCst);
    place(21, 4096 - 64).unwrap();
    assert_eq!(place(21, 0), Err(Errno::EINVAL), "only once");
    assert_eq!(m.word(21, 504 + 2).load(Ordering::SeqCst), 0xdead_beef);
    assert_eq!(
        m.word(21, 504 + 1).load(Ordering::SeqCst),
        u64::MAX,
        "every word is selected"
    );
    let state = events.vcpu(VcpuId(0)).unwrap();
    assert!(state.upcall_pending(&m) && state.upcall_due(&m));
    state.set_upcall_mask(&m, true);
    assert!(state.upcall_pending(&m) && state.upcall_masked(&m) && !state.upcall_due(&m));
    state.set_upcall_mask(&m, false);
    assert!(!state.upcall_masked(&m));
    assert_eq!(state.info_address(), Some(21 * 4096 + 4096 - 64));
    assert_eq!(events.info(&m, far).map(|i| i.pending), Some(true));
    assert_eq!(m.pins.lock().unwrap().get(&(1, 21)), Some(&1));
    while !events.destroy(&m, &mut Budget::new(3)) {}
    assert!(m.pins.lock().unwrap().is_empty());
    assert_eq!(
        events.alloc_unbound(&m, DomId(0), |_| Ok(())),
        Err(Errno::EINVAL),
        "dying"
    );
    assert_eq!(
        m.dom(0).info(&m, near).unwrap().state,
        State::Unbound(DomId(1))
    );
}

#[test]
fn polling() {
    let m = Machine::new(1023);
    let (near, far) = connect(&m);
    m.consume_two_level(0, 0);
    m.take_kicks();
    let events = m.dom(1);
    let state = events.vcpu(VcpuId(2)).unwrap();
    let ask = |ports: &[u32], timeout: u64| {
        let request = sched::Poll {
            ports: VA + 24,
            nr_ports: ports.len() as u32,
            pad: 0,
            timeout,
        };
        let mut bytes = zerocopy::IntoBytes::as_bytes(&request).to_vec();
        bytes.extend(ports.iter().flat_map(|port| port.to_le_bytes()));
        let guest = FakeGuest::new(VA, &mut bytes);
        poll(&m, &events, VcpuId(2), &guest, GuestVa(VA))
    };
    m.set_mask(1, far, true);
    assert_eq!(ask(&[far], 77), Ok(Poll::Wait(Some(77))));
    assert!(state.is_polling());
    send(&m, 0, near).unwrap();
    assert!(!state.is_polling(), "a masked event ends a poll");
    assert_eq!(m.take_kicks(), [(1, 2)]);
    assert_eq!(ask(&[far], 0), Ok(Poll::Ready));
    assert_eq!(ask(&[0, far], 0), Ok(Poll::Ready));
    assert!(!state.is_polling());
    assert_eq!(ask(&[5], 0), Ok(Poll::Wait(None)));
    events.end_poll(VcpuId(2));
    assert!(!state.is_polling());
    assert_eq!(ask(&[9999], 0), Err(Errno::EINVAL));
    assert_eq!(
        ask(&[1, 9999], 0),
        Ok(Poll::Ready),
        "port 1 is pending: not looked further"
    );
    assert_eq!(ask(&[5, 9999], 0), Err(Errno::EINVAL));
    assert_eq!(ask(&[1; 129], 0), Err(Errno::EINVAL));
    assert!(!state.is_polling());
    // An upcall for the polling vCPU ends the poll too.
    let ipi = events.bind_ipi(&m, VcpuId(2), |_| Ok(())).unwrap();
    assert_eq!(ask(&[], 5), Ok(Poll::Wait(Some(5))));
    events.send(&m, ipi).unwrap();
    assert!(!state.is_polling());
    assert_eq!(ask(&[5], 5), Ok(Poll::Ready), "an upcall is due");
    assert_eq!(events.pollers.load(Ordering::SeqCst), 0);
    assert_eq!(m.words(Mfn(1))[0].load(Ordering::SeqCst), 0);
}
