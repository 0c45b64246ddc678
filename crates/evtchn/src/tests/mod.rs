// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host tests: a fake machine with frames and domains, a model of the guest's side of both layouts.

mod advisories;
mod fifo;
mod ops;
mod random;
mod threads;

use crate::{Caller, DomainEvents, Frames, Host, Limits, Words, event_channel_op};
use core::array::from_fn;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use philoxen_abi::event::fifo as abi;
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::hypercall::Budget;
use philoxen_abi::shared::{shared_info, vcpu_info};
use philoxen_abi::{DomId, Errno, Flow, GuestVa, Mfn, Result, VcpuId};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(crate) const VA: u64 = 0x1000;
/// Frames 0..16 are shared_info frames; from 16 on they belong to the guests (frame % 2 is the domain).
const FRAMES: usize = 600;

pub(crate) struct Machine {
    frames: Vec<Box<Words>>,
    domains: Mutex<BTreeMap<u16, Arc<DomainEvents>>>,
    pub(crate) kicks: Mutex<Vec<(DomId, VcpuId)>>,
    pub(crate) pins: Mutex<BTreeMap<(u16, u64), u32>>,
    pub(crate) bound_pirqs: Mutex<BTreeMap<(u16, u32), bool>>,
    pub(crate) routes: Mutex<Vec<(DomId, u32, VcpuId)>>,
    pub(crate) refuse_pirq: AtomicBool,
}

impl Frames for Machine {
    fn words(&self, mfn: Mfn) -> &Words {
        &self.frames[mfn.0 as usize]
    }
    fn pin(&self, dom: DomId, mfn: Mfn) -> Result<()> {
        if mfn.0 < 16 || mfn.0 >= FRAMES as u64 || mfn.0 % 2 != u64::from(dom.0 % 2) {
            return Err(Errno::EINVAL);
        }
        *self.pins.lock().unwrap().entry((dom.0, mfn.0)).or_default() += 1;
        Ok(())
    }
    fn unpin(&self, dom: DomId, mfn: Mfn) {
        let mut pins = self.pins.lock().unwrap();
        let count = pins
            .get_mut(&(dom.0, mfn.0))
            .expect("unpin of a frame that is not pinned");
        *count -= 1;
        if *count == 0 {
            pins.remove(&(dom.0, mfn.0));
        }
    }
}

impl Host for Machine {
    type Ref<'a> = Arc<DomainEvents>;
    fn domain(&self, id: DomId) -> Option<Arc<DomainEvents>> {
        self.domains.lock().unwrap().get(&id.0).cloned()
    }
    fn kick(&self, dom: DomId, vcpu: VcpuId) {
        self.kicks.lock().unwrap().push((dom, vcpu));
    }
    fn pirq_permitted(&self, dom: DomId, pirq: u32) -> bool {
        dom == DomId::DOM0 && pirq != 13
    }
    fn bind_pirq(&self, dom: DomId, pirq: u32, share: bool) -> Result<()> {
        if self.refuse_pirq.load(Ordering::Relaxed) {
            return Err(Errno::EBUSY);
        }
        let old = self
            .bound_pirqs
            .lock()
            .unwrap()
            .insert((dom.0, pirq), share);
        assert_eq!(old, None, "PIRQ bound twice");
        Ok(())
    }
    fn unbind_pirq(&self, dom: DomId, pirq: u32) {
        let old = self.bound_pirqs.lock().unwrap().remove(&(dom.0, pirq));
        assert!(old.is_some(), "PIRQ unbound twice");
    }
    fn route_pirq(&self, dom: DomId, pirq: u32, vcpu: VcpuId) {
        self.routes.lock().unwrap().push((dom, pirq, vcpu));
    }
}

impl Machine {
    /// Domains 0 and 1 with four vCPUs each, ports up to `max_port`.
    pub(crate) fn new(max_port: u32) -> Self {
        let machine = Self {
            frames: (0..FRAMES)
                .map(|_| Box::new(from_fn(|_| AtomicU64::new(0))))
                .collect(),
            domains: Mutex::default(),
            kicks: Mutex::default(),
            pins: Mutex::default(),
            bound_pirqs: Mutex::default(),
            routes: Mutex::default(),
            refuse_pirq: AtomicBool::new(false),
        };
        for id in 0..2 {
            let limits = Limits {
                vcpus: 4,
                max_port,
                pirqs: if id == 0 { 64 } else { 0 },
            };
            let events = DomainEvents::new(DomId(id), Mfn(u64::from(id)), limits).unwrap();
            machine.domains.lock().unwrap().insert(id, Arc::new(events));
        }
        machine
    }
    pub(crate) fn dom(&self, id: u16) -> Arc<DomainEvents> {
        self.domain(DomId(id)).unwrap()
    }
    pub(crate) fn take_kicks(&self) -> Vec<(u16, u32)> {
        let mut kicks = self.kicks.lock().unwrap();
        std::mem::take(&mut *kicks)
            .into_iter()
            .map(|(dom, vcpu)| (dom.0, vcpu.0))
            .collect()
    }
    /// A hypercall of domain `id` with `request` as its argument structure.
    pub(crate) fn call<T: IntoBytes + FromBytes + Immutable + Copy>(
        &self,
        id: u16,
        cmd: u32,
        request: T,
    ) -> core::result::Result<T, i64> {
        let mut bytes = request.as_bytes().to_vec();
        let guest = FakeGuest::new(VA, &mut bytes);
        let events = self.dom(id);
        let caller = Caller {
            events: &events,
            privileged: id == 0,
        };
        let (mut cmd, mut arg, mut progress) = (cmd, GuestVa(VA), 0);
        loop {
            let mut budget = Budget::new(50);
            match event_channel_op(self, caller, &guest, cmd, arg, progress, &mut budget) {
                Flow::Done(0) => return Ok(T::read_from_bytes(&bytes).unwrap()),
                Flow::Done(error) => return Err(error),
                Flow::Again(args) => {
                    (cmd, arg, progress) = (args[0] as u32, GuestVa(args[1]), args[2]);
                }
            }
        }
    }
    fn word(&self, frame: u64, index: usize) -> &AtomicU64 {
        &self.frames[frame as usize][index]
    }
    /// The guest's side of the two-level layout: takes what is pending for `vcpu`, as an upcall handler does.
    pub(crate) fn consume_two_level(&self, id: u16, vcpu: usize) -> Vec<u32> {
        let info = u64::from(id);
        let base = vcpu * 64;
        let upcall = self.word(info, (base + vcpu_info::UPCALL) / 8);
        let selector = self.word(info, (base + vcpu_info::PENDING_SEL) / 8);
        let mut seen = Vec::new();
        upcall.fetch_and(!0xff, Ordering::SeqCst);
        let mut words = selector.swap(0, Ordering::SeqCst);
        while words != 0 {
            let index = words.trailing_zeros() as usize;
            words &= words - 1;
            let pending = self.word(info, shared_info::EVTCHN_PENDING / 8 + index);
            let mask = self.word(info, shared_info::EVTCHN_MASK / 8 + index);
            let mut bits = pending.load(Ordering::SeqCst) & !mask.load(Ordering::SeqCst);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                pending.fetch_and(!(1 << bit), Ordering::SeqCst);
                seen.push(index as u32 * 64 + bit);
            }
        }
        seen
    }
    pub(crate) fn set_mask(&self, id: u16, port: u32, masked: bool) {
        let word = self.word(
            u64::from(id),
            shared_info::EVTCHN_MASK / 8 + port as usize / 64,
        );
        if masked {
            word.fetch_or(1 << (port % 64), Ordering::SeqCst);
        } else {
            word.fetch_and(!(1 << (port % 64)), Ordering::SeqCst);
        }
    }
}

/// The guest's side of the FIFO layout, as a PV kernel does it.
pub(crate) struct FifoGuest<'a> {
    pub(crate) machine: &'a Machine,
    /// Domain.
    pub(crate) id: u16,
    /// Frames of the event array.
    pub(crate) array: Vec<u64>,
    /// Frame of each vCPU's control block (at offset 0).
    pub(crate) control: [u64; 4],
    /// The consumer's private heads.
    pub(crate) heads: [[u32; abi::QUEUES]; 4],
}

impl FifoGuest<'_> {
    fn half(&self, frame: u64, index: u32) -> (&AtomicU64, u32) {
        (
            self.machine.word(frame, index as usize / 2),
            32 * (index & 1),
        )
    }
    pub(crate) fn event(&self, port: u32) -> u32 {
        let (word, shift) = self.half(self.array[port as usize / 1024], port % 1024);
        (word.load(Ordering::SeqCst) >> shift) as u32
    }
    fn update(&self, port: u32, change: impl Fn(u32) -> u32) -> u32 {
        let (word, shift) = self.half(self.array[port as usize / 1024], port % 1024);
        loop {
            let old = word.load(Ordering::SeqCst);
            let value = (old >> shift) as u32;
            let new = old & !(0xffff_ffff << shift) | u64::from(change(value)) << shift;
            if word
                .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
            {
                return value;
            }
        }
    }
    pub(crate) fn set_masked(&self, port: u32, masked: bool) {
        self.update(port, |w| {
            if masked {
                w | abi::MASKED
            } else {
                w & !abi::MASKED
            }
        });
    }
    /// Handles one upcall of `vcpu`: the ports in the order they are taken, with the priority they came at.
    pub(crate) fn consume(&mut self, vcpu: usize) -> Vec<(u32, usize)> {
        let mut seen = Vec::new();
        let upcall = self.machine.word(u64::from(self.id), vcpu * 8);
        upcall.fetch_and(!0xff, Ordering::SeqCst);
        let frame = self.control[vcpu];
        let take_ready = || {
            let word = self.machine.word(frame, 0);
            word.fetch_and(!0xffff_ffff, Ordering::SeqCst) as u32
        };
        let mut ready = take_ready();
        while ready != 0 {
            let priority = ready.trailing_zeros() as usize;
            let mut head = self.heads[vcpu][priority];
            if head == 0 {
                let (word, shift) = self.half(frame, 2 + priority as u32);
                head = (word.load(Ordering::SeqCst) >> shift) as u32;
            }
            let port = head;
            // Unlink: LINKED and the link go together.
            let old = self.update(port, |w| w & !(abi::LINKED | abi::LINK_MASK));
            let next = old & abi::LINK_MASK;
            if next == 0 {
                ready &= !(1 << priority);
            }
            let word = self.event(port);
            if word & abi::PENDING != 0 && word & abi::MASKED == 0 {
                self.update(port, |w| w & !abi::PENDING);
                seen.push((port, priority));
            }
            self.heads[vcpu][priority] = next;
            ready |= take_ready();
        }
        seen
    }
}

/// A FIFO guest with control blocks for all four vCPUs and `pages` array pages.
pub(crate) fn fifo_guest(machine: &Machine, id: u16, pages: u64) -> FifoGuest<'_> {
    let events = machine.dom(id);
    let frame = |n: u64| 16 + 2 * n + u64::from(id);
    let control = from_fn(|vcpu| frame(vcpu as u64));
    for (vcpu, &mfn) in control.iter().enumerate() {
        events
            .init_control(machine, VcpuId(vcpu as u32), mfn, 0)
            .unwrap();
    }
    let array: Vec<u64> = (0..pages).map(|page| frame(10 + page)).collect();
    for &mfn in &array {
        events.expand_array(machine, mfn).unwrap();
    }
    FifoGuest {
        machine,
        id,
        array,
        control,
        heads: Default::default(),
    }
}

/// Connects a port of domain 0 to a port of domain 1: (local, remote).
pub(crate) fn connect(machine: &Machine) -> (u32, u32) {
    let far = machine
        .dom(1)
        .alloc_unbound(machine, DomId(0), |_| Ok(()))
        .unwrap();
    let near = machine
        .dom(0)
        .bind_interdomain(machine, DomId(1), far, |_| Ok(()))
        .unwrap();
    (near, far)
}
