// SPDX-License-Identifier: MIT OR Apache-2.0
//! Console input: to Domain 0, or after Ctrl-A three times to the hypervisor's debug keys and back.

use crate::cpu::{self, CONSOLE};
use crate::domain;
use crate::host::Hv;
use arrayvec::ArrayVec;
use philoxen_abi::DomId;
use philoxen_abi::event::virq;
use philoxen_hw::cpu::cpu_id;
use philoxen_hw::{info, serial};
use spin::{Mutex, MutexGuard};

/// Ctrl-A.
const SWITCH: u8 = 1;
const SWITCH_COUNT: u8 = 3;
/// Bytes kept for Domain 0; more are dropped.
const ROOM: usize = 256;
/// Debug keys kept until they run; more are dropped.
const MAX_KEYS: usize = 32;

struct Input {
    /// Ctrl-A seen and held back.
    switches: u8,
    /// Input goes to the hypervisor.
    ours: bool,
    waiting: ArrayVec<u8, ROOM>,
}

static INPUT: Mutex<Input> = Mutex::new(Input {
    switches: 0,
    ours: false,
    waiting: ArrayVec::new_const(),
});
/// Debug keys to run at the next exit.
static KEYS: Mutex<ArrayVec<u8, MAX_KEYS>> = Mutex::new(ArrayVec::new_const());

/// Takes what the serial line has received.
pub fn receive() {
    let mut for_dom0 = false;
    while let Some(byte) = serial::read() {
        for_dom0 |= accept(byte);
    }
    if for_dom0 && let Some(dom0) = domain::find(DomId::DOM0) {
        dom0.events.raise_global_virq(&Hv, virq::CONSOLE);
    }
}

/// Handles one byte; true if there is something for Domain 0.
///
/// Ctrl-A is held back, as Xen does: three of them switch and reach nobody, fewer go where the input goes before the
/// byte that follows them.
fn accept(byte: u8) -> bool {
    let mut input = INPUT.lock();
    if byte == SWITCH {
        input.switches += 1;
        if input.switches == SWITCH_COUNT {
            switch(input);
        }
        return false;
    }
    for _ in 0..core::mem::take(&mut input.switches) {
        input.deliver(SWITCH);
    }
    input.deliver(byte)
}

/// Sends input to the other side from now on, and says so.
fn switch(mut input: MutexGuard<'_, Input>) {
    input.switches = 0;
    input.ours = !input.ours;
    let to = if input.ours {
        "Philoxen (h for help)"
    } else {
        "DOM0"
    };
    drop(input);
    info!("*** Serial input to {to} (type 'CTRL-a' three times to switch input)");
}

impl Input {
    /// Hands one byte on; true if it is for Domain 0.
    fn deliver(&mut self, byte: u8) -> bool {
        if self.ours {
            queue_key(byte);
            cpu::request(cpu_id(), CONSOLE);
            return false;
        }
        // Bytes that do not fit are lost, as on any serial line nobody reads.
        self.waiting.try_push(byte).is_ok()
    }
}

/// Takes up to `out.len()` bytes for Domain 0.
pub fn take(out: &mut [u8]) -> usize {
    let mut input = INPUT.lock();
    let len = input.waiting.len().min(out.len());
    for (place, byte) in out.iter_mut().zip(input.waiting.drain(..len)) {
        *place = byte;
    }
    len
}

/// Notes a debug key to run at the next exit.
pub fn queue_key(key: u8) {
    // Nobody types so many at a time.
    let _ = KEYS.lock().try_push(key);
}

/// The next debug key to run.
pub fn take_key() -> Option<u8> {
    KEYS.lock().pop_at(0)
}
