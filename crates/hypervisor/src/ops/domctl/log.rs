// SPDX-License-Identifier: MIT OR Apache-2.0
//! `shadow_op`: the log of writes to a domain's memory, by which tools copy it while it runs. There is no shadow.

use super::Request;
use crate::cpu::Running;
use crate::domain::{self, Domain};
use crate::host::Hv;
use crate::syscall::budget;
use philoxen_abi::domctl::{self as abi, ShadowOp, shadow};
use philoxen_abi::{DomId, Errno, Flow, GuestVa, Mfn, Result};
use philoxen_hw::cpu::guest::LoadedGuest;
use philoxen_paging::log::{self, Op, Round, Writers};

impl Writers for Domain {
    fn maps_others(&self, id: DomId) -> bool {
        domain::find(id).is_some_and(|other| other.privileged || other.grants.handles_in_use() != 0)
    }
    fn pinned(&self, each: impl FnMut(Mfn)) {
        self.events.pinned(each);
    }
}

/// `shadow_op`. A round that is not over runs again with its token as second argument.
pub fn shadow_op(running: &Running, header: &abi::Header, arg: u64, token: u64) -> Flow {
    let Some(target) = domain::find(DomId(header.domain)) else {
        return Errno::ESRCH.into();
    };
    let request = Request {
        running,
        target,
        arg: GuestVa(arg),
    };
    match run(&request, token) {
        Ok(Round::Again(token)) => Flow::Again([arg, token, 0, 0, 0]),
        Ok(Round::Done(_)) => Flow::Done(0),
        Err(errno) => errno.into(),
    }
}

fn run(request: &Request<'_>, token: u64) -> Result<Round> {
    request.not_self()?;
    let mut record: ShadowOp = request.read()?;
    let memory = &request.target.memory;
    let op = match (record.op, record.mode) {
        (shadow::OFF, _) => {
            log::stop(Hv, memory);
            return Ok(Round::Done(0));
        }
        (shadow::ENABLE_LOGDIRTY, _) | (shadow::ENABLE, shadow::ENABLE_LOG_DIRTY) => Op::Start,
        (shadow::CLEAN, 0 | shadow::LOGDIRTY_FINAL) => Op::Take,
        (shadow::PEEK, 0 | shadow::LOGDIRTY_FINAL) => Op::Look,
        _ => return Err(Errno::EINVAL),
    };
    let wanted = log::Request {
        op,
        bitmap: GuestVa(record.dirty_bitmap),
        bits: record.pages,
        token,
    };
    let round = log::round(
        Hv,
        memory,
        &*request.target,
        &LoadedGuest,
        &wanted,
        &mut budget(),
    )?;
    if let (Round::Done(pages), Op::Take | Op::Look) = (round, op) {
        record.dirty_count = pages;
        record.fault_count = 0;
        request.write(&record)?;
    }
    Ok(round)
}
