// SPDX-License-Identifier: MIT OR Apache-2.0
//! Past advisories against event channels, each as a test of the same attack.

use super::{Machine, VA, connect, fifo_guest};
use crate::{Poll, Progress, State, poll};
use core::sync::atomic::Ordering;
use philoxen_abi::event::{Reset, op, virq};
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, GuestVa, VcpuId, sched};
use std::vec::Vec;
use zerocopy::IntoBytes;

/// XSA-188: a second `init_control` for one vCPU, and one that fails, leave the first in place.
#[test]
fn xsa_188_double_init_control() {
    let m = Machine::new(u32::MAX);
    let d = m.dom(0);
    d.init_control(&m, VcpuId(0), 20, 0).unwrap();
    assert_eq!(d.init_control(&m, VcpuId(0), 22, 0), Err(Errno::EINVAL));
    assert_eq!(
        d.init_control(&m, VcpuId(1), 23, 0),
        Err(Errno::EINVAL),
        "not its frame"
    );
    d.init_control(&m, VcpuId(1), 24, 0).unwrap();
    let pins: Vec<_> = m.pins.lock().unwrap().keys().copied().collect();
    assert_eq!(pins, [(0, 20), (0, 24)]);
}

/// XSA-221: polling ports of the FIFO layout before their event words exist.
#[test]
fn xsa_221_poll_without_event_words() {
    let m = Machine::new(u32::MAX);
    let d = m.dom(0);
    let port = d.bind_ipi(&m, VcpuId(1), |_| Ok(())).unwrap();
    d.init_control(&m, VcpuId(0), 20, 0).unwrap();
    let request = sched::Poll {
        ports: VA + 24,
        nr_ports: 2,
        pad: 0,
        timeout: 0,
    };
    let mut bytes = request.as_bytes().to_vec();
    bytes.extend([port, 100].iter().flat_map(|port| port.to_le_bytes()));
    let guest = FakeGuest::new(VA, &mut bytes);
    let wait = poll(&m, &d, VcpuId(0), &guest, GuestVa(VA));
    assert_eq!(wait, Ok(Poll::Wait(None)));
    d.send(&m, port).unwrap();
    assert_eq!(
        poll(&m, &d, VcpuId(0), &guest, GuestVa(VA)),
        Ok(Poll::Ready),
        "it was latched"
    );
}

/// XSA-317: a port allocation that fails half-way leaves no half-made port.
#[test]
fn xsa_317_allocation_errors() {
    let m = Machine::new(300);
    let d = m.dom(1);
    let mut ports = Vec::new();
    while let Ok(port) = d.alloc_unbound(&m, DomId(0), |_| Ok(())) {
        ports.push(port);
    }
    assert_eq!(ports.len(), 300);
    for _ in 0..100 {
        assert_eq!(d.bind_ipi(&m, VcpuId(0), |_| Ok(())), Err(Errno::ENOSPC));
        assert_eq!(
            d.bind_virq(&m, 0, VcpuId(0), |_| Ok(())),
            Err(Errno::ENOSPC)
        );
    }
    assert_eq!(d.used_ports(), 300);
    assert_eq!(d.close(&m, 301), Err(Errno::EINVAL));
    assert_eq!(d.info(&m, 301).map(|i| i.state), Some(State::Free));
    assert_eq!(d.info(&m, 70_000), None);
}

/// XSA-343: events raised and ports bound while a reset runs; XSA-344: the reset is preemptible.
#[test]
fn xsa_343_344_reset() {
    let m = Machine::new(u32::MAX);
    let g = fifo_guest(&m, 1, 4);
    let d = m.dom(1);
    let ports: Vec<u32> = (0..3000)
        .map(|_| d.alloc_unbound(&m, DomId(0), |_| Ok(())).unwrap())
        .collect();
    let (near, far) = connect(&m);
    let mut steps = 0;
    let mut from = 0;
    let mut late = None;
    while let Progress::More(next) = d.reset(&m, from, &mut Budget::new(64)) {
        from = next;
        steps += 1;
        m.dom(0).send(&m, near).unwrap();
        if steps == 200 {
            late = d.bind_ipi(&m, VcpuId(0), |_| Ok(())).ok();
        }
        assert!(steps < 10_000);
    }
    assert!(steps > 300, "closed 3000 ports in {steps} steps");
    assert!(late.is_some());
    assert_eq!((d.used_ports(), d.uses_fifo()), (0, false));
    assert!(
        m.pins.lock().unwrap().is_empty(),
        "FIFO frames are released"
    );
    assert_eq!(
        m.dom(0).info(&m, near).unwrap().state,
        State::Unbound(DomId(1))
    );
    let (page, word) = (far as usize / 1024, far as usize % 1024 / 2);
    m.word(g.array[page], word).store(0, Ordering::SeqCst);
    m.dom(0).send(&m, near).unwrap();
    d.notify(&m, far);
    d.notify(&m, ports[7]);
    assert_eq!(g.event(far), 0, "nobody writes to the frames any more");
    assert_eq!(d.alloc_unbound(&m, DomId(0), |_| Ok(())), Ok(1));
    m.call(0, op::RESET, Reset { dom: 1 }).unwrap();
    assert_eq!(d.used_ports(), 0);
    assert_eq!(
        m.call(0, op::RESET_CONT, Reset { dom: 9 }).unwrap_err(),
        Errno::ESRCH.rax()
    );
}

/// XSA-496: a refused second binding of a VIRQ leaves the first one working.
#[test]
fn xsa_496_virq_bind_error_path() {
    let m = Machine::new(2);
    let d = m.dom(0);
    let port = d.bind_virq(&m, virq::TIMER, VcpuId(0), |_| Ok(())).unwrap();
    assert_eq!(
        d.bind_virq(&m, virq::TIMER, VcpuId(0), |_| Ok(())),
        Err(Errno::EEXIST)
    );
    let fault = d.bind_virq(&m, virq::CONSOLE, VcpuId(0), |_| Err(Errno::EFAULT));
    assert_eq!(fault, Err(Errno::EFAULT));
    // Bound by another vCPU while this request is half-way: the loser undoes only its own port.
    let raced = d.bind_virq(&m, virq::CONSOLE, VcpuId(0), |mine| {
        let slot = &d.vcpus[0].virqs[virq::CONSOLE as usize];
        slot.store(port, Ordering::SeqCst);
        assert_ne!(mine, port);
        Ok(())
    });
    assert_eq!(raced, Err(Errno::EEXIST));
    assert_eq!(d.used_ports(), 1);
    d.raise_virq(&m, VcpuId(0), virq::TIMER);
    assert_eq!(m.consume_two_level(0, 0), [port]);
}

/// XSA-505: the event array grows while the channels are reset: serialised by the table lock, so that after any
/// interleaving the pinned frames are exactly those of the layout in use.
#[test]
fn xsa_505_expand_against_reset() {
    let m = Machine::new(u32::MAX);
    let d = m.dom(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                d.reset(&m, 0, &mut Budget::unlimited());
            }
        });
        scope.spawn(|| {
            for round in 0..2000 {
                let _ = d.init_control(&m, VcpuId(round % 4), 20, 0);
                let _ = d.expand_array(&m, 30 + 2 * u64::from(round % 100));
                if let Ok(port) = d.bind_ipi(&m, VcpuId(round % 4), |_| Ok(())) {
                    let _ = d.send(&m, port);
                    let _ = d.close(&m, port);
                }
            }
        });
    });
    while d.reset(&m, 0, &mut Budget::unlimited()) != Progress::Done {}
    assert!(m.pins.lock().unwrap().is_empty());
}
