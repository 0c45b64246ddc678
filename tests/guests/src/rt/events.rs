// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels of a kernel with one vCPU: the upcall, the 2-level bitmaps, and a log of what arrived.

use super::{cell::Racy, hyper, memory, traps::Frame};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use philoxen_abi::shared::shared_info::{EVTCHN_MASK, EVTCHN_PENDING};
use philoxen_abi::shared::vcpu_info::PENDING_SEL;

const LOG: usize = 1024;
static PORTS: [AtomicU32; LOG] = [const { AtomicU32::new(0) }; LOG];
static LOGGED: AtomicUsize = AtomicUsize::new(0);
/// Upcalls since boot.
pub static UPCALLS: AtomicU64 = AtomicU64::new(0);

/// Takes pending ports and hands each to the function it is given.
pub type Scanner = fn(&mut dyn FnMut(u32));
static SCANNER: Racy<Scanner> = Racy::new(scan_two_level);

/// Uses another scanner in upcalls from now on.
pub fn set_scanner(scanner: Scanner) {
    SCANNER.replace(scanner);
}

/// The event callback.
pub fn upcall(_frame: &mut Frame) {
    UPCALLS.fetch_add(1, Relaxed);
    memory::take_upcall_pending();
    scan();
}

/// Takes every pending event as an upcall would.
pub fn scan() {
    SCANNER.get()(&mut |port| {
        let place = LOGGED.fetch_add(1, Relaxed);
        PORTS[place % LOG].store(port, Relaxed);
    });
}

fn scan_two_level(found: &mut dyn FnMut(u32)) {
    let mut selector = memory::atomic(memory::vcpu_info() + PENDING_SEL as u64).swap(0, Relaxed);
    while selector != 0 {
        let word = u64::from(selector.trailing_zeros());
        selector &= selector - 1;
        let pending = memory::atomic(memory::shared_info() + EVTCHN_PENDING as u64 + word * 8);
        let mask = memory::read(memory::shared_info() + EVTCHN_MASK as u64 + word * 8);
        let mut ready = pending.load(Relaxed) & !mask;
        pending.fetch_and(!ready, Relaxed);
        while ready != 0 {
            found(word as u32 * 64 + ready.trailing_zeros());
            ready &= ready - 1;
        }
    }
}

/// Number of events since the log was emptied.
pub fn logged() -> usize {
    LOGGED.load(Relaxed)
}

/// The `n`th event of the log.
pub fn entry(n: usize) -> u32 {
    PORTS[n % LOG].load(Relaxed)
}

/// How often `port` is in the log.
pub fn count(port: u32) -> usize {
    (0..logged().min(LOG)).filter(|n| entry(*n) == port).count()
}

/// Empties the log.
pub fn clear() {
    LOGGED.store(0, Relaxed);
}

fn bit(array: usize, port: u32) -> (&'static AtomicU64, u64) {
    let word = memory::shared_info() + array as u64 + u64::from(port / 64) * 8;
    (memory::atomic(word), 1 << (port % 64))
}

/// True if the 2-level pending bit of `port` is set.
pub fn is_pending(port: u32) -> bool {
    let (word, bit) = bit(EVTCHN_PENDING, port);
    word.load(Relaxed) & bit != 0
}

/// Clears the 2-level pending bit.
pub fn clear_pending(port: u32) {
    let (word, bit) = bit(EVTCHN_PENDING, port);
    word.fetch_and(!bit, Relaxed);
}

/// Sets the 2-level mask bit.
pub fn mask(port: u32) {
    let (word, bit) = bit(EVTCHN_MASK, port);
    word.fetch_or(bit, Relaxed);
}

/// Clears the 2-level mask bit without asking for missed events.
pub fn clear_mask(port: u32) {
    let (word, bit) = bit(EVTCHN_MASK, port);
    word.fetch_and(!bit, Relaxed);
}

/// Lets upcalls in, with a hypercall that gives a pending one its chance.
pub fn enable() {
    memory::set_upcall_mask(0);
    hyper::call(philoxen_abi::hypercall::XEN_VERSION, [0; 5]);
}

/// Keeps upcalls out.
pub fn disable() {
    memory::set_upcall_mask(1);
}

/// `struct evtchn_*` of the calls with up to three 32-bit fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Small(pub u32, pub u32, pub u32);

/// `EVTCHNOP_bind_virq`: result and port.
pub fn bind_virq(virq: u32, vcpu: u32) -> (i64, u32) {
    let mut argument = Small(virq, vcpu, 0);
    (hyper::event_op(1, &mut argument), argument.2)
}

/// `EVTCHNOP_bind_ipi`: result and port.
pub fn bind_ipi(vcpu: u32) -> (i64, u32) {
    let mut argument = Small(vcpu, 0, 0);
    (hyper::event_op(7, &mut argument), argument.1)
}

/// `EVTCHNOP_close`.
pub fn close(port: u32) -> i64 {
    hyper::event_op(3, &mut Small(port, 0, 0))
}

/// `EVTCHNOP_send`.
pub fn send(port: u32) -> i64 {
    hyper::event_op(4, &mut Small(port, 0, 0))
}

/// `EVTCHNOP_unmask`.
pub fn unmask(port: u32) -> i64 {
    hyper::event_op(9, &mut Small(port, 0, 0))
}

/// `EVTCHNOP_alloc_unbound` between `dom` and `remote`: result and port.
pub fn alloc_unbound(dom: u16, remote: u16) -> (i64, u32) {
    let mut argument = Small(u32::from(dom) | u32::from(remote) << 16, 0, 0);
    (hyper::event_op(6, &mut argument), argument.1)
}

/// `EVTCHNOP_bind_interdomain`: result and local port.
pub fn bind_interdomain(remote: u16, port: u32) -> (i64, u32) {
    let mut argument = Small(u32::from(remote), port, 0);
    (hyper::event_op(0, &mut argument), argument.2)
}

/// `SCHEDOP_block`: unmasks upcalls and waits for one.
pub fn block() -> i64 {
    hyper::sched_op(1, &mut 0_u32)
}

/// `SCHEDOP_poll` on `ports` until system time `timeout` (0: none).
pub fn poll(ports: &mut [u32], timeout: u64) -> i64 {
    let mut argument = [ports.as_mut_ptr() as u64, ports.len() as u64, timeout];
    hyper::sched_op(3, &mut argument)
}
