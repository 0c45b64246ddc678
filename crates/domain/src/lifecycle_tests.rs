// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a domain, step by step.

use crate::lifecycle::{Lifecycle, Phase, ShutdownReason};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[test]
fn ordinary_life() {
    let life = Lifecycle::new(0);
    assert!(!life.shut_down(ShutdownReason::Crash, || {}));
    assert!(life.start() && !life.start());
    assert!(life.is_running());
    assert!(
        life.shut_down(ShutdownReason::Reboot, || {})
            && !life.shut_down(ShutdownReason::Crash, || {})
    );
    assert_eq!(life.phase(), Phase::ShutDown(ShutdownReason::Reboot));
    assert!(life.kill() && !life.kill());
    assert!(!life.resume(|| {}) && !life.start());
    assert!(life.finish() && !life.finish());
    assert_eq!(life.phase(), Phase::Dead);
}

#[test]
fn only_one_processor_destroys() {
    for _ in 0..200 {
        let (life, wins) = (Lifecycle::new(0), AtomicUsize::new(0));
        life.start();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    life.shut_down(ShutdownReason::Crash, || {});
                    if life.kill() {
                        wins.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(wins.load(Ordering::Relaxed), 1);
        assert_eq!(life.phase(), Phase::Dying);
    }
}

#[test]
fn reasons_have_the_abi_numbers() {
    for code in 0..6 {
        assert_eq!(
            ShutdownReason::from_code(code).map(|r| r as u32),
            Some(code)
        );
    }
    assert_eq!(ShutdownReason::from_code(6), None);
}
