// SPDX-License-Identifier: MIT OR Apache-2.0
//! `console_io` (`CONSOLEIO_*`, xen/xen.h): Domain 0's console on the hypervisor's serial line.

use crate::cpu::{self, Running};
use crate::input;
use philoxen_abi::{Errno, Flow, GuestMemory, GuestVa};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_hw::{cpu::cpu_id, log};

const WRITE: u64 = 0;
const READ: u64 = 1;
/// Bytes taken from the guest at a time.
const CHUNK: usize = 128;
/// Bytes written before others get their turn: the line is slow.
const MAX_WRITE: u64 = 256;

/// `console_io(cmd, count, buffer)`. Domains other than 0 have consoles of their own: `EPERM`.
pub fn console_io(running: &Running, cmd: u64, count: u64, buffer: u64) -> Flow {
    if !running.domain.privileged {
        return Errno::EPERM.into();
    }
    let count = count & 0xffff_ffff;
    match cmd {
        WRITE => write(count, GuestVa(buffer)),
        READ => read(count, GuestVa(buffer)),
        _ => Errno::ENOSYS.into(),
    }
}

fn write(count: u64, buffer: GuestVa) -> Flow {
    let mut done = 0;
    while done < count {
        if done >= MAX_WRITE || (done != 0 && cpu::work_pending(cpu_id())) {
            return Flow::Again([WRITE, count - done, buffer.add(done).0, 0, 0]);
        }
        let mut bytes = [0; CHUNK];
        let len = (count - done).min(CHUNK as u64);
        let Some(part) = bytes.get_mut(..len as usize) else {
            break;
        };
        if let Err(errno) = LoadedGuest.read_bytes(buffer.add(done), part) {
            return errno.into();
        }
        log::raw(part);
        done += len;
    }
    Flow::Done(0)
}

fn read(count: u64, buffer: GuestVa) -> Flow {
    let mut bytes = [0; CHUNK];
    let room = count.min(CHUNK as u64) as usize;
    let len = bytes.get_mut(..room).map_or(0, input::take);
    match LoadedGuest.write_bytes(buffer, bytes.get(..len).unwrap_or(&[])) {
        Ok(()) => Flow::Done(len as i64),
        Err(errno) => errno.into(),
    }
}
