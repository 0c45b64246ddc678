// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations of two domains against a simple model; at the end nothing is bound.

use super::{FifoGuest, Machine, fifo_guest};
use crate::{Progress, State};
use philoxen_abi::event::virq;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::{DomId, Errno, VcpuId};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as u32) % bound
    }
}

/// (domain, port) -> its state; and which events must be seen by the guest.
#[derive(Default)]
struct Model {
    ports: BTreeMap<(u16, u32), State>,
    pending: BTreeSet<(u16, u32)>,
}

impl Model {
    fn send(&mut self, id: u16, port: u32) -> bool {
        match self.ports.get(&(id, port)) {
            Some(State::Interdomain(dom, far)) => {
                self.pending.insert((dom.0, *far));
                true
            }
            Some(State::Ipi) => {
                self.pending.insert((id, port));
                true
            }
            Some(State::Unbound(_)) => true,
            _ => false,
        }
    }
    fn close(&mut self, id: u16, port: u32) -> bool {
        match self.ports.remove(&(id, port)) {
            Some(State::Interdomain(dom, far)) => {
                self.ports.insert((dom.0, far), State::Unbound(DomId(id)));
            }
            Some(_) => {}
            None => return false,
        }
        self.pending.remove(&(id, port));
        true
    }
}

fn step(m: &Machine, model: &mut Model, random: &mut Random, fifo: [bool; 2]) {
    let id = random.below(2) as u16;
    let d = m.dom(id);
    let port = random.below(24);
    let vcpu = VcpuId(random.below(4));
    match random.below(12) {
        0 | 1 => {
            let remote = DomId(random.below(2) as u16);
            if let Ok(port) = d.alloc_unbound(m, remote, |_| Ok(())) {
                assert_eq!(model.ports.insert((id, port), State::Unbound(remote)), None);
            }
        }
        2 | 3 => {
            let remote = random.below(2) as u16;
            let waits = model.ports.get(&(remote, port)) == Some(&State::Unbound(DomId(id)));
            let bound = d.bind_interdomain(m, DomId(remote), port, |_| Ok(()));
            assert!(bound.is_ok() == waits || waits && bound == Err(Errno::ENOSPC));
            if let Ok(near) = bound {
                model
                    .ports
                    .insert((id, near), State::Interdomain(DomId(remote), port));
                model
                    .ports
                    .insert((remote, port), State::Interdomain(DomId(id), near));
                model.pending.insert((id, near));
            }
        }
        4 => {
            let kind = if random.below(2) == 0 {
                virq::TIMER
            } else {
                virq::DEBUG
            };
            if let Ok(port) = d.bind_virq(m, kind, vcpu, |_| Ok(())) {
                model.ports.insert((id, port), State::Virq(kind));
            }
        }
        5 => {
            if let Ok(port) = d.bind_ipi(m, vcpu, |_| Ok(())) {
                model.ports.insert((id, port), State::Ipi);
            }
        }
        6 | 7 => assert_eq!(d.close(m, port).is_ok(), model.close(id, port)),
        8 => {
            let _ = d.bind_vcpu(m, port, vcpu);
        }
        9 if fifo[id as usize] => {
            let _ = d.set_priority(port, random.below(16));
        }
        _ => assert_eq!(d.send(m, port).is_ok(), model.send(id, port)),
    }
}

fn check(m: &Machine, model: &Model) {
    for id in 0..2 {
        let d = m.dom(id);
        let used = model.ports.range((id, 0)..(id + 1, 0)).count();
        assert_eq!(d.used_ports() as usize, used);
        for (&(_, port), &state) in model.ports.range((id, 0)..(id + 1, 0)) {
            assert_eq!(d.info(m, port).unwrap().state, state);
        }
    }
}

fn collect(m: &Machine, guests: &mut [Option<FifoGuest<'_>>]) -> BTreeSet<(u16, u32)> {
    let mut seen = Vec::new();
    for id in 0..2u16 {
        for vcpu in 0..4 {
            match &mut guests[id as usize] {
                Some(guest) => seen.extend(guest.consume(vcpu).into_iter().map(|(p, _)| (id, p))),
                None => seen.extend(m.consume_two_level(id, vcpu).into_iter().map(|p| (id, p))),
            }
        }
    }
    let set: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(set.len(), seen.len(), "an event was delivered twice");
    set
}

fn run(seed: u64, fifo: [bool; 2]) {
    let m = Machine::new(20);
    let mut guests: Vec<_> = (0..2)
        .map(|id| fifo[id].then(|| fifo_guest(&m, id as u16, 1)))
        .collect();
    let mut model = Model::default();
    let mut random = Random(seed);
    for _ in 0..400 {
        for _ in 0..random.below(12) {
            step(&m, &mut model, &mut random, fifo);
        }
        check(&m, &model);
        let seen = collect(&m, &mut guests);
        assert_eq!(seen, std::mem::take(&mut model.pending), "seed {seed}");
    }
    for id in 0..2 {
        let d = m.dom(id);
        if random.below(2) == 0 {
            let mut from = 0;
            while let Progress::More(next) = d.reset(&m, from, &mut Budget::new(20)) {
                from = next;
            }
        } else {
            while !d.destroy(&m, &mut Budget::new(20)) {}
        }
        assert_eq!(d.used_ports(), 0);
    }
    assert!(m.pins.lock().unwrap().is_empty());
}

#[test]
fn random_operations_match_the_model() {
    for seed in 0..40 {
        run(seed, [false, false]);
        run(seed, [true, true]);
        run(seed, [true, false]);
    }
}
