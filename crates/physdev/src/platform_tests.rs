// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each operation, and requests that must fail.

use super::*;
use core::cell::Cell;
use philoxen_abi::guest::FakeGuest;
use zerocopy::IntoBytes;

#[derive(Default)]
struct Host {
    denied: bool,
    time: Cell<Option<(u64, u32, u64)>>,
    off: Cell<Option<(u16, u16)>>,
}

impl Platform for Host {
    fn is_hardware_domain(&self) -> bool {
        !self.denied
    }
    fn set_wall_clock(&self, secs: u64, nsecs: u32, at: u64) {
        self.time.set(Some((secs, nsecs, at)));
    }
    fn power_off(&self, pm1a: u16, pm1b: u16) {
        self.off.set(Some((pm1a, pm1b)));
    }
    fn max_cpu(&self) -> u32 {
        1
    }
    fn cpu(&self, cpu: u32) -> Option<PhysicalCpu> {
        (cpu < 2).then_some(PhysicalCpu {
            online: cpu == 0,
            apic_id: cpu * 2,
            acpi_id: cpu,
        })
    }
    fn cpu_signature(&self) -> ([u8; 12], u32) {
        (*b"AuthenticAMD", 0x0083_0f12)
    }
    fn keyboard_shift_flags(&self) -> u8 {
        0x20
    }
}

fn call(host: &Host, cmd: u32, body: &[u8]) -> (i64, [u8; 136]) {
    let mut bytes = [0u8; 136];
    bytes[..4].copy_from_slice(&cmd.to_le_bytes());
    bytes[4..8].copy_from_slice(&wire::INTERFACE_VERSION.to_le_bytes());
    bytes[8..8 + body.len()].copy_from_slice(body);
    let flow = platform_op(host, &FakeGuest::new(0, &mut bytes), GuestVa(0));
    let Flow::Done(rax) = flow else {
        panic!("restart")
    };
    (rax, bytes)
}

fn words<const N: usize>(words: [u32; N]) -> [u32; N] {
    words
}

#[test]
fn clocks() {
    let host = Host::default();
    assert_eq!(
        call(&host, wire::SETTIME32, words([7, 8, 9, 0]).as_bytes()).0,
        0
    );
    assert_eq!(host.time.take(), Some((7, 8, 9)));
    assert_eq!(
        call(&host, wire::SETTIME64, words([7, 1, 8, 0, 9, 0]).as_bytes()).0,
        0
    );
    assert_eq!(host.time.take(), Some((0x1_0000_0007, 8, 9)));
    assert_eq!(
        call(&host, wire::SETTIME64, words([7, 1, 8, 1, 9, 0]).as_bytes()).0,
        -22
    );
    assert_eq!(
        call(&host, wire::SETTIME32, words([7, 1_000_000_000]).as_bytes()).0,
        -22
    );
    assert_eq!(host.time.take(), None);
}

#[test]
fn sleep_is_power_off_only() {
    let host = Host::default();
    let request = |state: u32, flags: u32| words([0x0001_3c01, state, flags]);
    assert_eq!(
        call(&host, wire::ENTER_ACPI_SLEEP, request(3, 0).as_bytes()).0,
        -95
    );
    assert_eq!(
        call(&host, wire::ENTER_ACPI_SLEEP, request(5, 1).as_bytes()).0,
        -95
    );
    assert_eq!(
        call(&host, wire::ENTER_ACPI_SLEEP, request(5, 2).as_bytes()).0,
        -22
    );
    assert_eq!(host.off.get(), None);
    call(&host, wire::ENTER_ACPI_SLEEP, request(5, 0).as_bytes());
    assert_eq!(host.off.get(), Some((0x3c01, 1)));
}

#[test]
fn firmware() {
    let host = Host::default();
    let ask = |kind, index| call(&host, wire::FIRMWARE_INFO, words([kind, index]).as_bytes());
    let (rax, bytes) = ask(5, 0);
    assert_eq!((rax, bytes[16]), (0, 0x20));
    for (kind, index, expected) in [
        (5, 1, -3),
        (1, 0, -3),
        (2, 0, -3),
        (3, 0, -3),
        (4, 0, -38),
        (9, 0, -22),
    ] {
        assert_eq!(ask(kind, index).0, expected);
    }
}

#[test]
fn processors() {
    let host = Host::default();
    let info = |cpu: u32| {
        let (rax, bytes) = call(&host, wire::GET_CPUINFO, cpu.as_bytes());
        assert_eq!(rax, 0);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        [word(12), word(16), word(20), word(24)]
    };
    assert_eq!(info(0), [1, 1, 0, 0]);
    assert_eq!(info(1), [1, 0, 2, 1]);
    assert_eq!(info(7), [1, 2, 0, 0]);
    let (_, bytes) = call(&host, wire::GET_CPU_VERSION, 0u32.as_bytes());
    assert_eq!(&bytes[16..28], b"AuthenticAMD");
    assert_eq!((bytes[28], bytes[32], bytes[36]), (0x17, 0x31, 2));
}

#[test]
fn refusals() {
    let host = Host::default();
    assert_eq!(call(&host, wire::CPU_OFFLINE, &[]).0, -95);
    assert_eq!(call(&host, 1000, &[]).0, -38);
    assert_eq!(
        call(&host, wire::SET_PROCESSOR_PMINFO, words([0, 1]).as_bytes()).0,
        0
    );
    assert_eq!(
        call(&host, wire::SET_PROCESSOR_PMINFO, words([0, 9]).as_bytes()).0,
        -22
    );
    assert_eq!(call(&host, wire::PLATFORM_QUIRK, 4u32.as_bytes()).0, -22);
    let denied = Host {
        denied: true,
        ..Host::default()
    };
    assert_eq!(call(&denied, wire::GET_CPUINFO, &[]).0, -1);
    let mut bytes = [0u8; 136];
    let guest = FakeGuest::new(0, &mut bytes);
    assert_eq!(platform_op(&denied, &guest, GuestVa(0)), Flow::Done(-13));
    assert_eq!(platform_op(&denied, &guest, GuestVa(130)), Flow::Done(-14));
}
