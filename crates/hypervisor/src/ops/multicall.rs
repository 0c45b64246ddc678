// SPDX-License-Identifier: MIT OR Apache-2.0
//! `multicall`: several hypercalls in one (`struct multicall_entry`, xen/xen.h).

use crate::cpu::{self, Running};
use crate::syscall;
use philoxen_abi::hypercall as nr;
use philoxen_abi::{Errno, Flow, GuestMemory, GuestVa};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::cpu::{CpuId, asm};

/// Bytes of one entry: op, result, six arguments.
const ENTRY_SIZE: u64 = 64;
/// TSC ticks after which interrupts get their turn: about a millisecond.
const MAX_TICKS: u64 = 2_000_000;
/// Entries done before interrupts get their turn.
const MAX_AT_ONCE: u64 = 32;
/// Offset of the result.
const RESULT: u64 = 8;
/// Offset of the arguments.
const ARGS: u64 = 16;

/// `multicall(entries, count)`.
///
/// Each entry's result goes to the entry; the call as a whole answers 0. `iret` cannot be batched, since the rest would run
/// with the rights of what it returns to (XSA-213), nor can a multicall.
#[inline]
pub fn run(cpu: CpuId, running: &mut Running, list: u64, count: u64) -> Flow {
    let start = asm::rdtsc();
    for index in 0..count {
        let entry = GuestVa(list).element(index, ENTRY_SIZE);
        // The first entry always runs, so a restarted batch makes progress.
        if index != 0
            && (index == MAX_AT_ONCE
                || cpu::work_pending(cpu)
                || asm::rdtsc().wrapping_sub(start) > MAX_TICKS)
        {
            return Flow::Again([entry.0, count - index, 0, 0, 0]);
        }
        let [op, _result, a, b, c, d, e, _f]: [u64; 8] = match LoadedGuest.read(entry) {
            Ok(words) => words,
            Err(errno) => return errno.into(),
        };
        let flow = match op {
            nr::IRET | nr::MULTICALL => Errno::EINVAL.into(),
            _ => syscall::dispatch(cpu, running, op, [a, b, c, d, e]),
        };
        let stored = match flow {
            Flow::Done(value) => LoadedGuest.write(entry.add(RESULT), &(value as u64)),
            // The entry keeps its progress in its own arguments; the batch goes on from it.
            Flow::Again(args) => match LoadedGuest.write(entry.add(ARGS), &args) {
                Ok(()) => return Flow::Again([entry.0, count - index, 0, 0, 0]),
                Err(errno) => Err(errno),
            },
        };
        if let Err(errno) = stored {
            return errno.into();
        }
        if !running.domain.life.is_running() {
            break;
        }
    }
    Flow::Done(0)
}
