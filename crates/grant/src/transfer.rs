// SPDX-License-Identifier: MIT OR Apache-2.0
//! `GNTTABOP_transfer`: gives a frame, with its contents, to a domain that offers an entry for it.
//!
//! The receiver's entry is first marked as committed, then the frame changes hands, then the entry gets the frame and
//! the mark of completion: the receiver must leave a committed entry alone. If the frame cannot be given after all, the
//! entry is as before.

use crate::entry::Header;
use crate::host::{Host, Request};
use crate::table::accepts_transfer;
use core::sync::atomic::Ordering;
use philoxen_abi::grant::{Transfer, gntst, gtf};
use philoxen_abi::{DomId, Errno, Mfn};
use philoxen_paging::{Domains, grant as leaf};

/// Carries out one element and fills in its status.
pub(crate) fn transfer<M: Host, D: Domains>(request: &mut Request<'_, M, D>, op: &mut Transfer) {
    op.status = try_transfer(request, *op).err().unwrap_or(gntst::OKAY);
}

fn try_transfer<M: Host, D: Domains>(
    request: &mut Request<'_, M, D>,
    op: Transfer,
) -> Result<(), i16> {
    let machine = request.cx.machine;
    let from = request.cx.domain;
    let to = if DomId(op.domid) == from.id() {
        from
    } else {
        let found = request.cx.domains.find(DomId(op.domid));
        found.ok_or(gntst::BAD_DOMAIN)?
    };
    let mfn = Mfn(op.mfn);
    let table = request.table(DomId(op.domid))?;
    let committed = gtf::TRANSFER_COMMITTED;
    table.with_words(machine, op.gref, |version, first, _| {
        let old = first.load(Ordering::Acquire);
        if version == 1 && mfn.0 > u64::from(u32::MAX) {
            return Err(gntst::ADDRESS_TOO_BIG);
        }
        if !accepts_transfer(old, from.id()) {
            return Err(gntst::GENERAL_ERROR);
        }
        let new = old | u64::from(committed);
        first
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .map(|_| ())
            .map_err(|_| gntst::EAGAIN)
    })?;
    let moved = leaf::begin_transfer(machine, from, to, mfn).map_err(|errno| match errno {
        Errno::ENOMEM => gntst::GENERAL_ERROR,
        _ => gntst::BAD_PAGE,
    });
    // The version may have changed meanwhile, and the entry with it; then there is nothing left to tell.
    let told = table.with_words(machine, op.gref, |_, first, second| {
        let word = first.load(Ordering::Acquire);
        let header = Header::of(word);
        let same = header.flags == gtf::ACCEPT_TRANSFER | committed && header.user == from.id();
        if !same {
            return Ok(());
        }
        match (moved, second) {
            (Err(_), _) => {
                first.fetch_and(!u64::from(committed), Ordering::SeqCst);
            }
            (Ok(()), Some(second)) => {
                second.store(mfn.0, Ordering::SeqCst);
                first.fetch_or(gtf::TRANSFER_COMPLETED.into(), Ordering::SeqCst);
            }
            (Ok(()), None) => {
                let done = header.bits() | u64::from(gtf::TRANSFER_COMPLETED) | mfn.0 << 32;
                first.store(done, Ordering::SeqCst);
            }
        }
        Ok(())
    });
    moved?;
    leaf::finish_transfer(machine, to, mfn);
    // A receiver that died meanwhile has the frame all the same: its destruction waits for it.
    told.or(Ok(()))
}
