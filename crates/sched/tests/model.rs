// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scheduler under every order that the memory model allows (loom): events against blocking; vCPUs that change
//! processors against wake-ups, pauses and affinities; vCPUs that are brought up while their domain is destroyed.
//!
//! Each processor of the model takes a few exits of its guest in a thread of its own. Afterwards everybody who was told
//! to look does so, one after the other: whatever is then left undone was lost.

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
    cap "../src/cap.rs", choice "../src/choice.rs", field "../src/field.rs", group "../src/group.rs", heap "../src/heap.rs",
    mask "../src/mask.rs", queueing "../src/queueing.rs", scheduler "../src/scheduler.rs", switch "../src/switch.rs",
    sync "../../../tests/loom/sync.rs", vcpu "../src/vcpu.rs", virtual_time "../src/virtual_time.rs"
);

use core::ops::RangeInclusive;
use loom::sync::Arc;
use loom::thread;
use mask::CpuMask;
use scheduler::{DEFAULT_WEIGHT, Kick, Scheduler};
use switch::Processor;
use sync::{AtomicBool, AtomicU32, Mutex, Ordering, explore};
use vcpu::VcpuKey;

/// A processor was told to choose again.
const RESCHEDULE: u32 = 1;
/// It was interrupted.
const INTERRUPT: u32 = 2;

/// What moves with a vCPU; there is one of each.
#[derive(Debug)]
struct State(VcpuKey);

struct Vcpu {
    key: VcpuKey,
    parked: Mutex<Option<State>>,
    /// It has an event.
    event: AtomicBool,
}

struct World {
    scheduler: Scheduler,
    /// The numbers of the processors in use.
    numbers: [u32; 2],
    /// What they were told.
    told: [AtomicU32; 2],
    vcpus: Vec<Vcpu>,
}

impl World {
    /// Processors `numbers`, and `count` vCPUs that are up and wait to run; nobody was told yet.
    fn new(numbers: [u32; 2], count: usize) -> Self {
        let Ok(scheduler) = Scheduler::new(numbers[1] + 1, 2) else {
            unreachable!("out of memory")
        };
        let used = CpuMask::from_words(&[1 << numbers[0] | 1 << numbers[1]]);
        let vcpu = |_| {
            let Ok(key) = scheduler.add(&used, DEFAULT_WEIGHT, 0) else {
                unreachable!("out of memory")
            };
            let _ = scheduler.bring_up(key, 0);
            Vcpu {
                key,
                parked: Mutex::new(Some(State(key))),
                event: AtomicBool::new(false),
            }
        };
        Self {
            vcpus: (0..count).map(vcpu).collect(),
            scheduler,
            numbers,
            told: [AtomicU32::new(0), AtomicU32::new(0)],
        }
    }

    fn vcpu(&self, key: VcpuKey) -> &Vcpu {
        &self.vcpus[key.0 as usize]
    }

    fn follow(&self, kick: Kick) {
        let (cpu, what) = match kick {
            Kick::None => return,
            Kick::Reschedule(cpu) => (cpu, RESCHEDULE | INTERRUPT),
            Kick::Notice(cpu) => (cpu, INTERRUPT),
            Kick::Later(..) => unreachable!("no budgets here"),
        };
        let told = self.numbers.iter().position(|&number| number == cpu);
        let Some(index) = told else {
            unreachable!("a processor that is not in use")
        };
        self.told[index].fetch_or(what, Ordering::AcqRel);
    }

    /// An event from somewhere: first the event, then the kick.
    fn send(&self, index: usize) {
        let vcpu = &self.vcpus[index];
        vcpu.event.swap(true, Ordering::SeqCst);
        self.follow(self.scheduler.wake(vcpu.key, None, 1));
    }

    fn pause(&self, index: usize) {
        self.follow(self.scheduler.pause(self.vcpus[index].key, 1));
    }

    fn unpause(&self, index: usize) {
        self.follow(self.scheduler.unpause(self.vcpus[index].key, 1));
    }

    /// Restricts a vCPU to one of the processors.
    fn move_to(&self, index: usize, cpu: usize) {
        let mask = CpuMask::one(self.numbers[cpu]);
        let moved = self.scheduler.set_affinity(self.vcpus[index].key, &mask, 1);
        assert!(moved.map(|kick| self.follow(kick)).is_ok());
    }
}

/// A processor, with what it has loaded.
struct Cpu {
    world: Arc<World>,
    index: usize,
    running: Option<State>,
    /// Events its guests have seen.
    seen: u32,
}

impl Processor for Cpu {
    fn number(&self) -> u32 {
        self.world.numbers[self.index]
    }

    fn now(&self) -> u64 {
        1
    }

    fn is_loaded(&self) -> bool {
        self.running.is_some()
    }

    fn change(&mut self, next: Option<VcpuKey>) {
        if let Some(state) = self.running.take() {
            let old = self.world.vcpu(state.0).parked.lock().replace(state);
            assert!(old.is_none(), "the registers were there twice");
        }
        if let Some(next) = next {
            self.running = self.world.vcpu(next).parked.lock().take();
            assert!(self.running.is_some(), "registers are elsewhere");
        }
    }

    fn left(&mut self, _key: VcpuKey) {}

    fn follow(&mut self, kick: Kick) {
        self.world.follow(kick);
    }
}

impl Cpu {
    fn new(world: &Arc<World>, index: usize) -> Self {
        Self {
            world: world.clone(),
            index,
            running: None,
            seen: 0,
        }
    }

    /// One stay in the hypervisor, up to the guest or the wait for an interrupt. The guest looks at its events, and then blocks.
    fn exit(&mut self) {
        let world = self.world.clone();
        let told = world.told[self.index].swap(0, Ordering::AcqRel);
        if told & RESCHEDULE != 0 || self.running.is_none() {
            world.scheduler.switch(self);
        }
        let Some(State(key)) = self.running else {
            return;
        };
        let vcpu = world.vcpu(key);
        self.seen += u32::from(vcpu.event.swap(false, Ordering::SeqCst));
        let quiet = || !vcpu.event.load(Ordering::SeqCst);
        if world.scheduler.block(key, 1, quiet) {
            world.told[self.index].fetch_or(RESCHEDULE, Ordering::AcqRel);
        }
    }

    /// True if something makes it leave its guest, or end its wait.
    fn is_told(&self) -> bool {
        self.world.told[self.index].load(Ordering::Acquire) != 0
    }
}

/// Runs both processors, each for some exits, against `work`. The events that were seen in the end.
fn run(world: &Arc<World>, exits: [usize; 2], work: impl FnOnce()) -> u32 {
    let threads = [0, 1].map(|index| {
        let mut cpu = Cpu::new(world, index);
        // What runs here at the beginning runs already.
        world.scheduler.switch(&mut cpu);
        thread::spawn(move || {
            for _ in 0..exits[cpu.index] {
                cpu.exit();
            }
            cpu
        })
    });
    work();
    let mut cpus = threads.map(|thread| {
        let Ok(cpu) = thread.join() else {
            unreachable!("a processor failed")
        };
        cpu
    });
    while let Some(cpu) = cpus.iter_mut().find(|cpu| cpu.is_told()) {
        cpu.exit();
    }
    for vcpu in &world.vcpus {
        let loaded = cpus
            .iter()
            .filter_map(|cpu| cpu.running.as_ref())
            .filter(|state| state.0 == vcpu.key)
            .count();
        let parked = usize::from(vcpu.parked.lock().is_some());
        assert_eq!(loaded + parked, 1, "{:?}", vcpu.key);
        assert_eq!(world.scheduler.is_on_cpu(vcpu.key), loaded == 1);
        assert!(!vcpu.event.load(Ordering::SeqCst), "an event was lost");
    }
    cpus.iter().map(|cpu| cpu.seen).sum()
}

/// Processors of one group, and of two.
const SAME_GROUP: [u32; 2] = [0, 1];
const TWO_GROUPS: [u32; 2] = [0, 16];

/// Tries [`run`] with `count` vCPUs in both machines; each of them sees as many events as were sent in the end, or as are left of
/// them when two become one.
fn check(count: usize, exits: [usize; 2], sent: RangeInclusive<u32>, work: fn(&World)) {
    for numbers in [SAME_GROUP, TWO_GROUPS] {
        let sent = sent.clone();
        explore(2, move || {
            let world = Arc::new(World::new(numbers, count));
            let seen = run(&world, exits, || work(&world));
            assert!(sent.contains(&seen), "{seen} events");
        });
    }
}

#[test]
fn no_event_is_lost_against_blocking() {
    check(1, [2, 1], 1..=1, |world| world.send(0));
    check(1, [2, 2], 1..=2, |world| {
        world.send(0);
        world.send(0);
    });
}

#[test]
fn a_pause_does_not_swallow_an_event() {
    check(1, [2, 1], 1..=1, |world| {
        world.pause(0);
        world.send(0);
        world.unpause(0);
    });
    check(1, [1, 1], 1..=1, |world| {
        world.send(0);
        world.pause(0);
        world.unpause(0);
    });
}

#[test]
fn who_is_moved_arrives_and_sees_its_event() {
    check(1, [2, 2], 1..=1, |world| {
        world.move_to(0, 1);
        world.send(0);
    });
    check(1, [2, 2], 1..=1, |world| {
        world.send(0);
        world.move_to(0, 1);
    });
    check(1, [1, 1], 1..=2, |world| {
        world.send(0);
        world.move_to(0, 1);
        world.send(0);
        world.move_to(0, 0);
    });
}

#[test]
fn two_vcpus_change_processors() {
    check(2, [2, 2], 2..=2, |world| {
        world.send(0);
        world.send(1);
    });
    check(2, [1, 1], 2..=2, |world| {
        world.send(0);
        world.move_to(0, 1);
        world.move_to(1, 0);
        world.send(1);
    });
}

/// Whoever pauses a vCPU and finds it on no processor may use its registers until the unpause.
#[test]
fn who_is_paused_and_gone_stays_away() {
    check(1, [2, 2], 1..=1, |world| {
        world.send(0);
        world.pause(0);
        if !world.scheduler.is_on_cpu(world.vcpus[0].key) {
            let state = world.vcpus[0].parked.lock().take();
            assert!(state.is_some(), "registers are elsewhere");
            *world.vcpus[0].parked.lock() = state;
        }
        world.unpause(0);
    });
}

/// A domain is destroyed while one of its vCPUs brings up the other, or itself goes down.
#[test]
fn who_is_retired_does_not_come_back() {
    for numbers in [SAME_GROUP, TWO_GROUPS] {
        explore(2, move || {
            let world = Arc::new(World::new(numbers, 2));
            let keys = [world.vcpus[0].key, world.vcpus[1].key];
            let mut cpus = [Cpu::new(&world, 0), Cpu::new(&world, 1)];
            for cpu in &mut cpus {
                world.scheduler.switch(cpu);
            }
            let threads = cpus.map(|mut cpu| {
                thread::spawn(move || {
                    let scheduler = &cpu.world.scheduler;
                    if let Some(State(key)) = cpu.running {
                        let other = VcpuKey(1 - key.0);
                        cpu.world.follow(scheduler.bring_up(other, 1).1);
                        cpu.world.follow(scheduler.take_down(key, 1));
                    }
                    cpu.exit();
                    cpu
                })
            });
            // What destruction does, as often as it is asked for.
            let stop = || {
                for key in keys {
                    world.follow(world.scheduler.retire(key, 1));
                }
                !keys.iter().any(|&key| world.scheduler.is_on_cpu(key))
            };
            let remove = || {
                for vcpu in &world.vcpus {
                    assert!(vcpu.parked.lock().take().is_some());
                    assert_eq!(world.scheduler.remove(vcpu.key, 1), Ok(()));
                }
            };
            let stopped = stop();
            if stopped {
                remove();
            }
            for thread in threads {
                let Ok(mut cpu) = thread.join() else {
                    unreachable!("a processor failed")
                };
                while cpu.is_told() {
                    cpu.exit();
                }
                assert!(cpu.running.is_none());
            }
            if !stopped {
                assert!(stop());
                remove();
            }
        });
    }
}
