// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FIFO layout against the guest's consumer.

use super::{Machine, connect, fifo_guest};
use core::sync::atomic::Ordering;
use philoxen_abi::event::{SetPriority, fifo as abi, op, virq};
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, VcpuId};
use std::vec::Vec;

#[test]
fn order_and_priority() {
    let m = Machine::new(u32::MAX);
    let mut g = fifo_guest(&m, 0, 1);
    let d = m.dom(0);
    let ports: Vec<u32> = (0..6)
        .map(|_| d.bind_ipi(&m, VcpuId(1), |_| Ok(())).unwrap())
        .collect();
    for &port in ports.iter().rev() {
        d.send(&m, port).unwrap();
    }
    let seen: Vec<u32> = g.consume(1).into_iter().map(|(port, _)| port).collect();
    assert_eq!(seen, [6, 5, 4, 3, 2, 1], "first in, first out");
    m.call(
        0,
        op::SET_PRIORITY,
        SetPriority {
            port: 5,
            priority: 0,
        },
    )
    .unwrap();
    m.call(
        0,
        op::SET_PRIORITY,
        SetPriority {
            port: 2,
            priority: 15,
        },
    )
    .unwrap();
    for &port in &ports {
        d.send(&m, port).unwrap();
        d.send(&m, port).unwrap();
    }
    let expected = [(5, 0), (1, 7), (3, 7), (4, 7), (6, 7), (2, 15)];
    assert_eq!(g.consume(1), expected);
    assert_eq!(g.consume(1), []);
    let bad = SetPriority {
        port: 5,
        priority: 16,
    };
    assert_eq!(
        m.call(0, op::SET_PRIORITY, bad).unwrap_err(),
        Errno::EINVAL.rax()
    );
    assert_eq!(
        m.dom(1).set_priority(1, 3),
        Err(Errno::EINVAL),
        "no such port"
    );
}

#[test]
fn masked_events_wait() {
    let m = Machine::new(u32::MAX);
    let (near, far) = connect(&m);
    let mut g = fifo_guest(&m, 1, 1);
    g.consume(0);
    g.set_masked(far, true);
    m.take_kicks();
    m.dom(0).send(&m, near).unwrap();
    assert_eq!(
        (m.take_kicks(), g.event(far)),
        (Vec::new(), abi::PENDING | abi::MASKED)
    );
    m.dom(1).unmask(&m, far).unwrap();
    assert_eq!(m.take_kicks(), [(1, 0)]);
    assert_eq!(g.consume(0), [(far, 7)]);
    assert_eq!(g.event(far), 0);
}

#[test]
fn an_event_moves_between_queues() {
    let m = Machine::new(u32::MAX);
    let mut g = fifo_guest(&m, 0, 1);
    let d = m.dom(0);
    let a = d
        .bind_virq(&m, virq::CONSOLE, VcpuId(0), |_| Ok(()))
        .unwrap();
    let b = d
        .bind_virq(&m, virq::DOM_EXC, VcpuId(0), |_| Ok(()))
        .unwrap();
    for (round, vcpu) in [1, 1, 3, 0, 2].into_iter().enumerate() {
        // The tail of the old queue must not be linked from there any more.
        d.raise_global_virq(&m, virq::CONSOLE);
        let before = g.consume(d.info(&m, a).unwrap().vcpu.0 as usize);
        assert_eq!(before, [(a, d.info(&m, a).unwrap().priority as usize)]);
        d.bind_vcpu(&m, a, VcpuId(vcpu)).unwrap();
        d.set_priority(a, round as u32).unwrap();
        d.raise_global_virq(&m, virq::DOM_EXC);
        d.raise_global_virq(&m, virq::CONSOLE);
        d.raise_global_virq(&m, virq::DOM_EXC);
        let mut seen = g.consume(0);
        if vcpu != 0 {
            seen.extend(g.consume(vcpu as usize));
        }
        seen.sort_unstable();
        assert_eq!(seen, [(a, round), (b, 7)]);
    }
}

#[test]
fn events_before_the_words_arrive_are_kept() {
    let m = Machine::new(u32::MAX);
    let (near, far) = connect(&m);
    m.dom(0).send(&m, near).unwrap();
    let d = m.dom(1);
    assert_eq!(d.expand_array(&m, 61), Err(Errno::EOPNOTSUPP), "two-level");
    assert_eq!(d.set_priority(far, 1), Err(Errno::ENOSYS));
    // Pending in the bitmaps when the layout changes, and again while there are no event words.
    let mut g = fifo_guest(&m, 1, 0);
    assert!(d.is_pending(&m, far));
    m.dom(0).send(&m, near).unwrap();
    assert_eq!(g.consume(0), []);
    g.array.push(61);
    d.expand_array(&m, 61).unwrap();
    assert_eq!(g.consume(0), [(far, 7)]);
    assert!(!d.is_pending(&m, far));
}

#[test]
fn errors_of_control_and_array() {
    let m = Machine::new(u32::MAX);
    let d = m.dom(0);
    let init = |vcpu, mfn, offset| d.init_control(&m, VcpuId(vcpu), mfn, offset);
    assert_eq!(init(4, 20, 0), Err(Errno::ENOENT));
    assert_eq!(init(0, 20, 4096 - 71), Err(Errno::EINVAL));
    assert_eq!(init(0, 20, 12), Err(Errno::EINVAL));
    assert_eq!(init(0, 21, 0), Err(Errno::EINVAL), "not its frame");
    assert_eq!(init(0, u64::MAX, 0), Err(Errno::EINVAL));
    assert!(!d.uses_fifo() && m.pins.lock().unwrap().is_empty());
    init(0, 20, 4096 - 72).unwrap();
    assert_eq!(d.expand_array(&m, 21), Err(Errno::EINVAL));
    assert_eq!(d.expand_array(&m, 1 << 52), Err(Errno::EINVAL));
    for page in 0..128 {
        d.expand_array(&m, 100 + 2 * page).unwrap();
    }
    assert_eq!(d.expand_array(&m, 50), Err(Errno::ENOSPC));
    assert_eq!(m.pins.lock().unwrap().len(), 129);
    assert_eq!(
        d.reset(&m, 0, &mut Budget::unlimited()),
        crate::Progress::Done
    );
    assert!(!d.uses_fifo() && m.pins.lock().unwrap().is_empty());
}

#[test]
fn a_closed_event_still_on_a_queue_is_not_reused() {
    let m = Machine::new(3);
    let mut g = fifo_guest(&m, 0, 1);
    let d = m.dom(0);
    let ipi = || d.bind_ipi(&m, VcpuId(0), |_| Ok(()));
    let ports = [ipi().unwrap(), ipi().unwrap(), ipi().unwrap()];
    for port in ports {
        d.send(&m, port).unwrap();
    }
    d.close(&m, ports[0]).unwrap();
    d.close(&m, ports[1]).unwrap();
    assert_eq!(
        g.event(ports[0]) & (abi::PENDING | abi::LINKED),
        abi::LINKED
    );
    assert_eq!(ipi(), Err(Errno::ENOSPC), "both are still linked");
    assert_eq!(
        g.consume(0),
        [(ports[2], 7)],
        "closed events are not delivered"
    );
    assert_eq!((ipi(), ipi()), (Ok(ports[0]), Ok(ports[1])));
}

#[test]
fn a_guest_that_scribbles_hurts_only_itself() {
    let m = Machine::new(u32::MAX);
    let mut g = fifo_guest(&m, 0, 1);
    let d = m.dom(0);
    let ports: Vec<u32> = (0..8)
        .map(|_| d.bind_ipi(&m, VcpuId(0), |_| Ok(())).unwrap())
        .collect();
    let mut seed = 1u64;
    for _ in 0..20_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = m.word(g.array[0], (seed >> 20) as usize % 8);
        word.store(seed.rotate_left(17), Ordering::SeqCst);
        m.word(g.control[0], (seed >> 30) as usize % 9)
            .store(seed, Ordering::SeqCst);
        d.send(&m, ports[(seed >> 40) as usize % 8]).unwrap();
    }
    // Cleaned up, the queues work again: the hypervisor's only memory is the tails, which it checks.
    for index in 0..512 {
        m.word(g.array[0], index).store(0, Ordering::SeqCst);
    }
    for index in 0..9 {
        m.word(g.control[0], index).store(0, Ordering::SeqCst);
    }
    g.heads = Default::default();
    for &port in &ports {
        d.send(&m, port).unwrap();
    }
    assert_eq!(g.consume(0).len(), 8);
    assert_eq!(m.dom(1).id(), DomId(1));
}
