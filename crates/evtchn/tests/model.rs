// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events under every order that the memory model allows (loom): senders against a vCPU that blocks, polls, masks its upcalls
//! or a port, in both layouts.
//!
//! The vCPU and the processor that runs it are one thread, which takes a few steps of its guest. Afterwards it does what
//! it was told or interrupted for, as often as it was: an event that it has not seen then was lost.

#![allow(clippy::indexing_slicing, reason = "the model's own lists")]

extern crate alloc;

macro_rules! files {
    ($($name:ident $path:literal),*) => {
        $(#[path = $path]
        #[allow(dead_code, unused_imports, reason = "not everything is part of a race")]
        mod $name;)*
    };
}
files!(
    bind "../src/bind.rs", domain "../src/domain.rs", fifo "../src/fifo.rs", free "../src/free.rs", host "../src/host.rs",
    poll "../src/poll.rs", port "../src/port.rs", raise "../src/raise.rs", sync "../../../tests/loom/sync.rs",
    vcpu "../src/vcpu.rs"
);

use domain::{DomainEvents, Limits};
use host::{Frames, Host, Words, word};
use loom::sync::Arc;
use loom::thread;
use philoxen_abi::event::fifo as abi;
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::shared::shared_info;
use philoxen_abi::{DomId, Errno, GuestVa, Mfn, Result, VcpuId, sched};
use poll::{Poll, poll};
use sync::{AtomicU32, AtomicU64, Mutex, Ordering, explore, make_lazily};
use vcpu::{VcpuEvents, VcpuInfo};
use zerocopy::IntoBytes;

const VCPU: VcpuId = VcpuId(0);
const SHARED_INFO: u64 = 0;
const CONTROL: u64 = 1;
const ARRAY: u64 = 2;

/// What the scheduler knows of the vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Running,
    Blocked,
    Runnable,
}

struct World {
    frames: [Box<Words>; 3],
    events: DomainEvents,
    /// As behind the scheduler's lock: `kick` wakes up who is blocked, and interrupts who runs.
    state: Mutex<State>,
    /// Its processor was interrupted, or woken up.
    told: AtomicU32,
}

impl Frames for World {
    fn words(&self, mfn: Mfn) -> &Words {
        &self.frames[mfn.0 as usize]
    }
    fn pin(&self, _dom: DomId, _mfn: Mfn) -> Result<()> {
        Ok(())
    }
    fn unpin(&self, _dom: DomId, _mfn: Mfn) {}
}

impl Host for World {
    type Ref<'a> = &'a DomainEvents;
    fn domain(&self, id: DomId) -> Option<&DomainEvents> {
        (id == self.events.id()).then_some(&self.events)
    }
    fn kick(&self, _dom: DomId, _vcpu: VcpuId) {
        let mut state = self.state.lock();
        if *state == State::Blocked {
            *state = State::Runnable;
        }
        drop(state);
        self.told.fetch_or(1, Ordering::AcqRel);
    }
    fn pirq_permitted(&self, _dom: DomId, _pirq: u32) -> bool {
        false
    }
    fn bind_pirq(&self, _dom: DomId, _pirq: u32, _share: bool) -> Result<()> {
        Err(Errno::EBUSY)
    }
    fn unbind_pirq(&self, _dom: DomId, _pirq: u32) {}
    fn route_pirq(&self, _dom: DomId, _pirq: u32, _vcpu: VcpuId) {}
}

impl World {
    /// A domain with one vCPU, whose ports 1 and 2 are bound to it.
    fn new(layout: Layout) -> Self {
        let limits = Limits {
            vcpus: 1,
            max_port: 63,
            pirqs: 0,
        };
        // Threads of the model have small stacks.
        let frame = || -> Box<Words> {
            let words: Vec<_> = (0..512).map(|_| AtomicU64::new(0)).collect();
            let Ok(frame) = words.try_into() else {
                unreachable!("512 words")
            };
            frame
        };
        let Ok(events) = DomainEvents::new(DomId(1), Mfn(SHARED_INFO), limits) else {
            unreachable!("out of memory")
        };
        let world = Self {
            frames: [frame(), frame(), frame()],
            events,
            state: Mutex::new(State::Running),
            told: AtomicU32::new(0),
        };
        let d = &world.events;
        for port in 1..=2 {
            assert_eq!(d.bind_ipi(&world, VCPU, |_| Ok(())), Ok(port));
        }
        if layout == Layout::Fifo {
            assert_eq!(d.init_control(&world, VCPU, CONTROL, 0), Ok(()));
            assert_eq!(d.expand_array(&world, ARRAY), Ok(()));
        }
        world
    }

    fn word(&self, frame: u64, index: usize) -> &AtomicU64 {
        word(&self.frames[frame as usize], index)
    }

    fn send(&self, port: u32) {
        assert_eq!(self.events.send(self, port), Ok(()));
    }

    fn info(&self) -> VcpuInfo<'_> {
        let Some(info) = self.events.vcpu(VCPU).and_then(|vcpu| vcpu.info(self)) else {
            unreachable!("it has one in shared_info")
        };
        info
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    TwoLevel,
    Fifo,
}

/// The vCPU on its processor.
struct Vcpu {
    world: Arc<World>,
    layout: Layout,
    /// Upcalls whose handler has not returned.
    upcalls: u32,
    /// The queue's head as the guest has it (FIFO).
    head: u32,
    /// The ports that the guest found pending.
    seen: Vec<u32>,
}

impl Vcpu {
    /// The guest masks port 1.
    fn mask_port_1(&self) {
        match self.layout {
            Layout::TwoLevel => {
                let masked = self.world.word(SHARED_INFO, shared_info::EVTCHN_MASK / 8);
                masked.fetch_or(1 << 1, Ordering::SeqCst);
            }
            Layout::Fifo => {
                let mask = u64::from(abi::MASKED) << 32;
                self.world.word(ARRAY, 0).fetch_or(mask, Ordering::SeqCst);
            }
        }
    }

    /// The way out of the hypervisor: delivers the upcall if it is due, and runs the guest's handler to its end.
    fn leave(&mut self) {
        while self.world.info().upcall_due() {
            assert_eq!(self.upcalls, 0, "an upcall into a masked vCPU");
            self.world.info().set_upcall_mask(true);
            self.upcalls += 1;
            match self.layout {
                Layout::TwoLevel => self.handle_two_level(),
                Layout::Fifo => self.handle_fifo(),
            }
            // The handler returns by IRET, which unmasks and looks again.
            self.upcalls -= 1;
            self.world.info().set_upcall_mask(false);
        }
    }

    fn handle_two_level(&mut self) {
        let world = &self.world;
        world.info().upcall().fetch_and(!0xff, Ordering::SeqCst);
        let selected = world.info().selector().swap(0, Ordering::SeqCst);
        if selected & 1 == 0 {
            return;
        }
        let pending = world.word(SHARED_INFO, shared_info::EVTCHN_PENDING / 8);
        let masked = world.word(SHARED_INFO, shared_info::EVTCHN_MASK / 8);
        let mut bits = pending.load(Ordering::SeqCst) & !masked.load(Ordering::SeqCst);
        while bits != 0 {
            let port = bits.trailing_zeros();
            bits &= bits - 1;
            pending.fetch_and(!(1 << port), Ordering::SeqCst);
            self.seen.push(port);
        }
    }

    /// As Linux does: the queue of one priority.
    fn handle_fifo(&mut self) {
        let world = self.world.clone();
        let queue = abi::PRIORITY_DEFAULT as usize;
        world.info().upcall().fetch_and(!0xff, Ordering::SeqCst);
        let mut ready = world.word(CONTROL, 0).swap(0, Ordering::SeqCst) as u32;
        while ready & 1 << queue != 0 {
            let mut head = self.head;
            if head == 0 {
                let field = abi::CONTROL_HEAD / 4 + queue;
                let both = world.word(CONTROL, field / 2).load(Ordering::SeqCst);
                head = (both >> (32 * (field & 1))) as u32;
            }
            let event = world.word(ARRAY, head as usize / 2);
            let shift = 32 * (head & 1);
            // Takes it off the queue: LINKED and the link go together.
            let off = u64::from(abi::LINKED | abi::LINK_MASK) << shift;
            let old = (event.fetch_and(!off, Ordering::SeqCst) >> shift) as u32;
            self.head = old & abi::LINK_MASK;
            if self.head == 0 {
                ready &= !(1 << queue);
            }
            let value = (event.load(Ordering::SeqCst) >> shift) as u32;
            if value & abi::PENDING != 0 && value & abi::MASKED == 0 {
                let pending = u64::from(abi::PENDING) << shift;
                event.fetch_and(!pending, Ordering::SeqCst);
                self.seen.push(head);
            }
            ready |= world.word(CONTROL, 0).swap(0, Ordering::SeqCst) as u32;
        }
    }

    /// Sleeps unless the hypervisor finds a reason not to; events are looked for under the scheduler's lock.
    fn sleep(&mut self, polling: bool) {
        {
            let events = self.world.events.vcpu(VCPU);
            let is_polling = || events.is_some_and(VcpuEvents::is_polling);
            let mut state = self.world.state.lock();
            if !self.world.info().upcall_due() && (!polling || is_polling()) {
                *state = State::Blocked;
            }
        }
        self.wait();
    }

    /// `SCHEDOP_block`.
    fn block(&mut self) {
        self.world.info().set_upcall_mask(false);
        self.sleep(false);
    }

    /// `SCHEDOP_poll` for one port.
    fn poll(&mut self, port: u32) {
        let request = sched::Poll {
            ports: 0x1000 + size_of::<sched::Poll>() as u64,
            nr_ports: 1,
            pad: 0,
            timeout: 0,
        };
        let mut memory = request.as_bytes().to_vec();
        memory.extend(port.to_le_bytes());
        let guest = FakeGuest::new(0x1000, &mut memory);
        let world = self.world.clone();
        match poll(&*world, &world.events, VCPU, &guest, GuestVa(0x1000)) {
            Ok(Poll::Ready) => self.leave(),
            Ok(Poll::Wait(_)) => self.sleep(true),
            Err(errno) => unreachable!("{errno:?}"),
        }
    }

    /// If the vCPU was woken up it runs again; its processor looks at its events if it was interrupted, or runs it.
    fn wait(&mut self) {
        let told = self.world.told.swap(0, Ordering::AcqRel) != 0;
        {
            let mut state = self.world.state.lock();
            match *state {
                State::Blocked => return,
                State::Running if !told => return,
                State::Running => {}
                State::Runnable => {
                    *state = State::Running;
                    self.world.events.end_poll(VCPU);
                }
            }
        }
        self.leave();
    }

    /// Uses everything that threads share: two events, one of them polled for.
    fn rehearse(&mut self) {
        let world = self.world.clone();
        world.info().set_upcall_mask(true);
        self.poll(2);
        world.send(1);
        world.send(2);
        self.upcalls += 1;
        self.wait();
        self.upcalls -= 1;
        world.info().set_upcall_mask(false);
        self.leave();
        saw_both(self);
        self.seen.clear();
    }

    fn is_running(&self) -> bool {
        *self.world.state.lock() == State::Running
    }
}

/// Runs `guest` on the vCPU against two senders of these ports; `end` looks at the vCPU after everything it was told for.
fn check(layout: Layout, senders: [&'static [u32]; 2], guest: fn(&mut Vcpu), end: fn(&mut Vcpu)) {
    make_lazily();
    explore(2, move || {
        let world = Arc::new(World::new(layout));
        let mut vcpu = Vcpu {
            world: world.clone(),
            layout,
            upcalls: 0,
            head: 0,
            seen: Vec::new(),
        };
        vcpu.rehearse();
        let senders = senders.map(|ports| {
            let world = world.clone();
            (!ports.is_empty())
                .then(|| thread::spawn(move || ports.iter().for_each(|&port| world.send(port))))
        });
        guest(&mut vcpu);
        for sender in senders.into_iter().flatten() {
            assert!(sender.join().is_ok());
        }
        while world.told.load(Ordering::Acquire) != 0 {
            vcpu.wait();
        }
        end(&mut vcpu);
        assert_eq!(world.events.pollers.load(Ordering::SeqCst), 0);
    });
}

/// It saw each of the two ports, and nothing is left.
fn saw_both(vcpu: &mut Vcpu) {
    assert!(vcpu.is_running(), "it sleeps on");
    for port in 1..=2 {
        assert!(vcpu.seen.contains(&port), "port {port} was lost");
        assert!(!vcpu.world.events.is_pending(&*vcpu.world, port));
    }
}

/// Sleeps, and once more if it was woken up.
fn block_twice(vcpu: &mut Vcpu) {
    vcpu.block();
    if vcpu.is_running() {
        vcpu.leave();
    }
}

#[test]
fn events_reach_who_blocks() {
    check(Layout::TwoLevel, [&[1], &[2]], block_twice, saw_both);
    check(Layout::TwoLevel, [&[1, 2], &[]], block_twice, saw_both);
}

#[test]
fn events_reach_who_blocks_with_queues() {
    check(Layout::Fifo, [&[1], &[2]], block_twice, saw_both);
    check(Layout::Fifo, [&[1, 2, 1], &[]], block_twice, saw_both);
}

/// The guest masks its upcalls for a while. When it unmasks them it looks whether one is pending, and asks for it.
#[test]
fn no_upcall_while_masked_and_none_lost() {
    for layout in [Layout::TwoLevel, Layout::Fifo] {
        let guest = |vcpu: &mut Vcpu| {
            vcpu.leave();
            vcpu.world.info().set_upcall_mask(true);
            vcpu.upcalls += 1;
            vcpu.wait();
            vcpu.upcalls -= 1;
            vcpu.world.info().set_upcall_mask(false);
            if vcpu.world.info().upcall_pending() {
                vcpu.leave();
            }
        };
        check(layout, [&[1], &[2]], guest, saw_both);
    }
}

/// The guest masks a port for a while and unmasks it by hypercall.
#[test]
fn no_event_is_lost_against_unmask() {
    for layout in [Layout::TwoLevel, Layout::Fifo] {
        let guest = |vcpu: &mut Vcpu| {
            let world = vcpu.world.clone();
            vcpu.mask_port_1();
            vcpu.wait();
            assert_eq!(world.events.unmask(&*world, 1), Ok(()));
            vcpu.leave();
        };
        check(layout, [&[1], &[2]], guest, saw_both);
    }
}

/// The guest polls a masked port with its upcalls masked, as a kernel does that waits for a lock.
#[test]
fn a_poll_ends_with_its_event() {
    for layout in [Layout::TwoLevel, Layout::Fifo] {
        let guest = |vcpu: &mut Vcpu| {
            let world = vcpu.world.clone();
            world.info().set_upcall_mask(true);
            vcpu.mask_port_1();
            vcpu.upcalls += 1;
            vcpu.poll(1);
        };
        let end = |vcpu: &mut Vcpu| {
            assert!(vcpu.is_running(), "it polls on");
            assert!(vcpu.world.events.is_pending(&*vcpu.world, 1));
        };
        check(layout, [&[1], &[]], guest, end);
        check(layout, [&[2, 1], &[]], guest, end);
    }
}
