// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several processors at once: no lost event, no stray state, no deadlock.

use super::{Machine, connect, fifo_guest};
use crate::State;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use philoxen_abi::event::virq;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, VcpuId};
use std::thread;
use std::vec::Vec;

/// Both ends send, close and rebind all the time; afterwards every port is accounted for and can be closed.
#[test]
fn send_against_close() {
    for fifo in [false, true] {
        let m = Machine::new(64);
        if fifo {
            fifo_guest(&m, 0, 1);
            fifo_guest(&m, 1, 1);
        }
        let worker = |id: u16, seed: u32| {
            let (m, other) = (&m, DomId(1 - id));
            move || {
                let d = m.dom(id);
                let mut x = seed;
                for _ in 0..8000 {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let port = (x >> 8) % 40;
                    match (x >> 20) % 8 {
                        0 => drop(d.alloc_unbound(m, other, |_| Ok(()))),
                        1 | 2 => drop(d.bind_interdomain(m, other, port, |_| Ok(()))),
                        3 => drop(d.close(m, port)),
                        4 => drop(d.bind_virq(m, virq::TIMER, VcpuId(x >> 28 & 3), |_| Ok(()))),
                        5 => d.raise_virq(m, VcpuId(x >> 28 & 3), virq::TIMER),
                        _ => drop(d.send(m, port)),
                    }
                }
            }
        };
        thread::scope(|scope| {
            for id in 0..2 {
                scope.spawn(worker(id, 7 + u32::from(id)));
                scope.spawn(worker(id, 1007 + u32::from(id)));
            }
        });
        for id in 0..2 {
            let (d, peer) = (m.dom(id), m.dom(1 - id));
            let mut used = 0;
            for port in 1..d.port_bound() {
                let state = d.info(&m, port).unwrap().state;
                used += u32::from(!matches!(state, State::Free));
                assert_ne!(state, State::Reserved);
                if let State::Interdomain(_, far) = state {
                    let back = State::Interdomain(DomId(id), port);
                    assert_eq!(peer.info(&m, far).unwrap().state, back);
                }
            }
            assert_eq!(d.used_ports(), used);
        }
        for id in 0..2 {
            while !m.dom(id).destroy(&m, &mut Budget::new(30)) {}
        }
        assert!(m.pins.lock().unwrap().is_empty());
    }
}

/// Two senders against a FIFO consumer: whatever was sent last is seen, and the queues end empty.
#[test]
fn fifo_consumer_loses_nothing() {
    let m = Machine::new(64);
    let mut g = fifo_guest(&m, 1, 1);
    let pairs: Vec<(u32, u32)> = (0..6).map(|_| connect(&m)).collect();
    for (index, &(_, far)) in pairs.iter().enumerate() {
        m.dom(1).set_priority(far, index as u32 % 3).unwrap();
    }
    let sent: Vec<AtomicU32> = (0..6).map(|_| AtomicU32::new(0)).collect();
    let mut seen = [0u32; 6];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|sender| {
                let (m, pairs, sent) = (&m, &pairs, &sent);
                scope.spawn(move || {
                    let d = m.dom(0);
                    for round in 0..20_000 {
                        let index = (round * 5 + sender) % 6;
                        sent[index].fetch_add(1, Ordering::SeqCst);
                        d.send(m, pairs[index].0).unwrap();
                    }
                })
            })
            .collect();
        let (done, pairs, sent, seen, g) = (&done, &pairs, &sent, &mut seen, &mut g);
        let consumer = scope.spawn(move || {
            loop {
                let last = done.load(Ordering::SeqCst);
                for (port, _) in g.consume(0) {
                    let index = pairs.iter().position(|pair| pair.1 == port).unwrap();
                    seen[index] = sent[index].load(Ordering::SeqCst);
                }
                if last {
                    break;
                }
            }
        });
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        consumer.join().unwrap();
    });
    for (index, sent) in sent.iter().enumerate() {
        assert_eq!(
            seen[index],
            sent.load(Ordering::SeqCst),
            "event {index} was lost"
        );
    }
}

/// A poll against the event it waits for: either the poll sees the event, or the event ends the poll.
#[test]
fn a_poll_never_misses_its_event() {
    let m = Machine::new(64);
    let (near, far) = connect(&m);
    let d = m.dom(1);
    for round in 0..3000u32 {
        m.consume_two_level(1, 0);
        m.set_mask(1, far, true);
        let state = d.vcpu(VcpuId(1)).unwrap();
        let barrier = AtomicBool::new(false);
        thread::scope(|scope| {
            let (m, d, barrier) = (&m, &d, &barrier);
            let sender = move || {
                while !barrier.load(Ordering::SeqCst) {
                    core::hint::spin_loop();
                }
                m.dom(0).send(m, near).unwrap();
            };
            let waiting = if round % 8 == 0 {
                Some(scope.spawn(sender))
            } else {
                None
            };
            barrier.store(true, Ordering::SeqCst);
            if waiting.is_none() {
                sender();
            }
            d.pollers.fetch_add(1, Ordering::SeqCst);
            state.polling.store(far, Ordering::SeqCst);
            let ready = d.is_pending(m, far);
            if let Some(waiting) = waiting {
                waiting.join().unwrap();
            }
            assert!(ready || !state.is_polling());
            d.end_poll(VcpuId(1));
        });
        assert_eq!(d.pollers.load(Ordering::SeqCst), 0);
        m.set_mask(1, far, false);
        d.clear_pending(&m, far);
    }
}
