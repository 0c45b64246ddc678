// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shutdown, resume, pauses and destruction of a domain under every order that the memory model allows (loom): its vCPUs are
//! paused exactly as often as its life says.

#[path = "../src/destruction.rs"]
mod destruction;
#[path = "../src/lifecycle.rs"]
#[allow(dead_code, reason = "not every step is part of a race")]
mod lifecycle;
#[path = "../../../tests/loom/sync.rs"]
mod sync;

use destruction::{Destruction, Remains, Step};
use lifecycle::{Lifecycle, Phase, ShutdownReason};
use loom::sync::Arc;
use loom::thread;
use philoxen_abi::hypercall::Budget;
use sync::{AtomicU32, Mutex, Ordering, explore};

/// A domain whose vCPUs count their pauses, as the scheduler does: one unpause too many is nothing.
struct Domain {
    life: Lifecycle,
    vcpus: [AtomicU32; 2],
}

impl Domain {
    fn running() -> Arc<Self> {
        let life = Lifecycle::new(0);
        life.start();
        Arc::new(Self {
            life,
            vcpus: [AtomicU32::new(0), AtomicU32::new(0)],
        })
    }

    fn stop(&self) {
        for vcpu in &self.vcpus {
            vcpu.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn go(&self) {
        for vcpu in &self.vcpus {
            let _ = vcpu.fetch_update(Ordering::AcqRel, Ordering::Acquire, |pauses| {
                pauses.checked_sub(1)
            });
        }
    }

    fn shut_down(&self, reason: ShutdownReason) -> bool {
        self.life.shut_down(reason, || self.stop())
    }

    fn resume(&self) -> bool {
        self.life.resume(|| self.go())
    }

    fn pause_for_a_moment(&self) {
        if self.life.pause(|| self.stop()).is_ok() {
            assert_ne!(self.vcpus[1].load(Ordering::Acquire), 0);
            assert_eq!(self.life.unpause(|| self.go()), Ok(()));
        }
    }

    /// Nobody works on it any more.
    fn check(&self) {
        let shut_down = matches!(self.life.phase(), Phase::ShutDown(_));
        let expected = u32::from(shut_down) + u32::from(self.life.is_paused());
        for vcpu in &self.vcpus {
            assert_eq!(vcpu.load(Ordering::Acquire), expected, "{:?}", self.life);
        }
    }
}

/// Runs `first` and `second` on processors of their own against `third`, and looks at what is left of the domain.
fn check(first: fn(&Domain), second: fn(&Domain), third: fn(&Domain)) {
    explore(2, move || {
        let domain = Domain::running();
        let others = [first, second].map(|work| {
            let domain = domain.clone();
            thread::spawn(move || work(&domain))
        });
        third(&domain);
        for other in others {
            assert!(other.join().is_ok());
        }
        domain.check();
    });
}

#[test]
fn who_resumes_undoes_what_the_shutdown_did() {
    check(
        |domain| {
            domain.shut_down(ShutdownReason::Suspend);
        },
        |domain| {
            domain.resume();
        },
        |domain| {
            domain.resume();
            domain.shut_down(ShutdownReason::Crash);
        },
    );
}

#[test]
fn pauses_of_the_toolstack_are_its_own() {
    check(
        |domain| {
            domain.shut_down(ShutdownReason::Suspend);
        },
        |domain| {
            domain.resume();
        },
        Domain::pause_for_a_moment,
    );
}

#[test]
fn who_sees_a_domain_shut_down_finds_it_paused() {
    check(
        |domain| assert!(domain.shut_down(ShutdownReason::Reboot)),
        |domain| {
            if let Phase::ShutDown(reason) = domain.life.phase() {
                assert_eq!(reason, ShutdownReason::Reboot);
                let paused = |vcpu: &AtomicU32| vcpu.load(Ordering::Acquire) != 0;
                assert!(domain.vcpus.iter().all(paused));
            }
        },
        Domain::pause_for_a_moment,
    );
}

#[test]
fn destruction_waits_for_whoever_keeps_the_domain_alive() {
    explore(2, || {
        let domain = Domain::running();
        let killer = {
            let domain = domain.clone();
            thread::spawn(move || assert!(domain.life.kill()))
        };
        let stopper = {
            let domain = domain.clone();
            thread::spawn(move || {
                domain.shut_down(ShutdownReason::Crash);
            })
        };
        if let Ok(steady) = domain.life.steady() {
            assert!(!domain.life.is_dying() && !steady.is_paused());
        }
        domain.life.resume(|| assert!(!domain.life.is_dying()));
        let _ = domain.life.pause(|| assert!(!domain.life.is_dying()));
        assert!(killer.join().is_ok() && stopper.join().is_ok());
        assert_eq!(domain.life.phase(), Phase::Dying);
        assert!(domain.life.steady().is_err() && !domain.resume());
    });
}

/// A domain with one frame that somebody uses.
struct Remainder {
    destruction: Destruction,
    /// Users, and whether the last of them must see to it.
    users: Mutex<(u32, bool)>,
    gone: AtomicU32,
}

impl Remains for Remainder {
    fn take(&self, step: Step, _budget: &mut Budget) -> bool {
        let mut users = self.users.lock();
        if step == Step::Grants {
            users.1 = true;
        }
        step != Step::Users || users.0 == 0
    }

    fn reached(&self, step: Step) {
        if step == Step::Gone {
            self.gone.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Remainder {
    fn go_on(&self) -> bool {
        self.destruction.go_on(self, &mut Budget::unlimited())
    }

    fn unuse(&self) {
        let mut users = self.users.lock();
        users.0 -= 1;
        let last = *users == (0, true);
        drop(users);
        if last {
            self.go_on();
        }
    }
}

#[test]
fn the_last_user_ends_a_domain_or_sees_that_somebody_does() {
    explore(3, || {
        let domain = Arc::new(Remainder {
            destruction: Destruction::default(),
            users: Mutex::new((2, false)),
            gone: AtomicU32::new(0),
        });
        let users = [(); 2].map(|()| {
            let domain = domain.clone();
            thread::spawn(move || domain.unuse())
        });
        // The toolstack asks again as long as there is something to do.
        while !domain.go_on() {
            thread::yield_now();
        }
        for user in users {
            assert!(user.join().is_ok());
        }
        assert_eq!(domain.gone.load(Ordering::Acquire), 1);
    });
}

/// What `sync` is for: loom alone does not find this.
#[test]
#[should_panic = "changed"]
fn the_model_sees_a_change_by_a_thread_that_looked_first() {
    explore(2, || {
        let life = Arc::new(Lifecycle::new(0));
        let other = life.clone();
        let other = thread::spawn(move || other.start());
        let before = life.phase();
        assert_eq!(before, life.phase(), "changed");
        assert_eq!(other.join().ok(), Some(true));
    });
}
