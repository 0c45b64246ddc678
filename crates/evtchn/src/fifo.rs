// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FIFO layout (xen/event_channel.h, `EVTCHN_FIFO_*`): one event word per port in guest frames, and per vCPU a control
//! block with the heads of sixteen queues.
//!
//! Event words are 32 bits wide; here each is half of an atomic 64-bit word and is only ever changed by a 64-bit
//! read-modify-write. The guest may write anything at any time: links are followed only by the guest, and
//! the hypervisor remembers nothing but each queue's last port, which it checks like any other port number.
//!
//! Invariant: the array's frames and the control blocks are pinned while stored, and are stored no longer than some
//! port may be bound (only a reset or destruction that found no port in use removes them, under the table lock).

use crate::domain::Table;
use crate::port::Guard;
use crate::sync::{AtomicU64, MutexGuard, Ordering};
use crate::{DomainEvents, Frames, Host, word};
use philoxen_abi::event::{TWO_LEVEL_PORTS, fifo};
use philoxen_abi::{Errno, Mfn, PAGE_SIZE, Result, VcpuId};

const NO_FRAME: u64 = u64::MAX;
/// Attempts to change a link before the guest is taken to interfere on purpose; its event is then dropped.
const LINK_TRIES: u32 = 256;

/// One 32-bit event word inside its 64-bit word.
#[derive(Clone, Copy)]
struct EventWord<'a> {
    word: &'a AtomicU64,
    shift: u32,
}

impl EventWord<'_> {
    fn load(self) -> u32 {
        (self.word.load(Ordering::SeqCst) >> self.shift) as u32
    }

    /// Sets `bits`; the previous value.
    fn set(self, bits: u32) -> u32 {
        (self
            .word
            .fetch_or(u64::from(bits) << self.shift, Ordering::SeqCst)
            >> self.shift) as u32
    }

    /// Clears `bits`; the previous value.
    fn clear(self, bits: u32) -> u32 {
        (self
            .word
            .fetch_and(!(u64::from(bits) << self.shift), Ordering::SeqCst)
            >> self.shift) as u32
    }

    /// Points the word to the next port if the word is on a queue; false if the guest has taken it off.
    ///
    /// The guest takes an event off by clearing LINKED and the link together, so this must be one compare-and-swap;
    /// from the second attempt on, BUSY asks the guest to leave its word alone.
    fn link_to(self, next: u32) -> bool {
        for attempt in 0..LINK_TRIES {
            let both = self.word.load(Ordering::SeqCst);
            let value = (both >> self.shift) as u32;
            if value & fifo::LINKED == 0 {
                if value & fifo::BUSY != 0 {
                    self.clear(fifo::BUSY);
                }
                return false;
            }
            let linked = value & !(fifo::BUSY | fifo::LINK_MASK) | next;
            let field = u64::from(u32::MAX) << self.shift;
            let new = both & !field | u64::from(linked) << self.shift;
            if self
                .word
                .compare_exchange(both, new, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
            {
                return true;
            }
            if attempt == 0 {
                self.set(fifo::BUSY);
            }
        }
        self.clear(fifo::BUSY);
        true
    }
}

impl DomainEvents {
    /// The event word of a port, if the guest has provided its page.
    #[inline]
    fn event_word<'a>(&self, frames: &'a impl Frames, port: u32) -> Option<EventWord<'a>> {
        let page = self.array.get((port / fifo::WORDS_PER_PAGE) as usize)?;
        let mfn = page.load(Ordering::Acquire);
        if mfn == NO_FRAME {
            return None;
        }
        let index = port % fifo::WORDS_PER_PAGE;
        Some(EventWord {
            word: word(frames.words(Mfn(mfn)), (index / 2) as usize),
            shift: 32 * (index & 1),
        })
    }

    /// True if a free port's event word is still on one of the guest's queues. The caller holds the table lock.
    pub(crate) fn is_linked(&self, frames: &impl Frames, port: u32) -> bool {
        self.uses_fifo()
            && self
                .event_word(frames, port)
                .is_some_and(|w| w.load() & fifo::LINKED != 0)
    }

    pub(crate) fn fifo_flags(&self, frames: &impl Frames, port: u32) -> (bool, bool) {
        let value = self.event_word(frames, port).map_or(0, EventWord::load);
        (value & fifo::PENDING != 0, value & fifo::MASKED != 0)
    }

    pub(crate) fn fifo_clear_pending(&self, frames: &impl Frames, port: u32) {
        if let Some(event) = self.event_word(frames, port) {
            event.clear(fifo::PENDING);
        }
    }

    pub(crate) fn fifo_unmask<H: Host>(&self, host: &H, guard: &mut Guard<'_>, port: u32) {
        let Some(event) = self.event_word(host, port) else {
            return;
        };
        event.clear(fifo::MASKED);
        if event.load() & fifo::PENDING != 0 {
            self.fifo_set_pending(host, guard, port);
        }
    }

    /// Makes a port pending and puts it on its queue unless it is masked or on one already.
    pub(crate) fn fifo_set_pending<H: Host>(&self, host: &H, guard: &mut Guard<'_>, port: u32) {
        let Some(event) = self.event_word(host, port) else {
            // The guest has not provided the page yet: expand_array delivers the event.
            **guard = guard.with_latched(true);
            return;
        };
        let old = event.set(fifo::PENDING);
        if old & (fifo::MASKED | fifo::LINKED) == 0 {
            self.enqueue(host, guard, port, event);
        }
        if old & fifo::PENDING == 0 {
            self.wake_pollers(host, port);
        }
    }

    /// Appends the event to the queue of its vCPU and priority.
    fn enqueue<H: Host>(&self, host: &H, guard: &Guard<'_>, port: u32, event: EventWord<'_>) {
        let new = (guard.vcpu().0, guard.priority());
        let old = guard.last_queue();
        let Some(state) = self.vcpu(guard.vcpu()) else {
            return;
        };
        // Without a control block there is nowhere to put it; the guest must not unmask before it has set one up.
        let Some((control, at)) = state.control(host) else {
            return;
        };
        let mut tails = self.lock_tails(new, old);
        let Some(tail) = tails.0.as_deref_mut() else {
            return;
        };
        if event.set(fifo::LINKED) & fifo::LINKED != 0 {
            return;
        }
        // If this event was the last of a queue, its word no longer continues that queue.
        if old == new {
            if *tail == port {
                *tail = 0;
            }
        } else {
            if let Some(old_tail) = tails.1.as_deref_mut()
                && *old_tail == port
            {
                *old_tail = 0;
            }
            guard.set_last_queue(new);
        }
        let linked = *tail != 0
            && self
                .event_word(host, *tail)
                .is_some_and(|last| last.link_to(port));
        if !linked {
            let field = fifo::CONTROL_HEAD / 4 + new.1 as usize;
            let head = word(control, at.wrapping_add(field / 2));
            let shift = 32 * (field as u32 & 1);
            // Only we write heads: flipping the differing bits stores ours and leaves the neighbour alone.
            let now = (head.load(Ordering::SeqCst) >> shift) as u32;
            head.fetch_xor(u64::from(now ^ port) << shift, Ordering::SeqCst);
        }
        *tail = port;
        drop(tails);
        if !linked {
            let ready = 1u64 << new.1;
            if word(control, at).fetch_or(ready, Ordering::SeqCst) & ready == 0 {
                self.mark_pending(host, guard.vcpu(), state);
            }
        }
    }

    /// Locks the queue an event goes to and, if different, the one it was on last, in ascending order.
    fn lock_tails(
        &self,
        new: (u32, u32),
        old: (u32, u32),
    ) -> (Option<MutexGuard<'_, u32>>, Option<MutexGuard<'_, u32>>) {
        let lock = |(vcpu, priority): (u32, u32)| {
            Some(
                self.vcpu(VcpuId(vcpu))?
                    .tails
                    .get(priority as usize)?
                    .lock(),
            )
        };
        if new == old {
            (lock(new), None)
        } else if new < old {
            let first = lock(new);
            (first, lock(old))
        } else {
            let first = lock(old);
            (lock(new), first)
        }
    }

    /// `EVTCHNOP_init_control`: gives `vcpu` its control block at byte `offset` of frame `mfn`; the first block switches
    /// the domain to the FIFO layout.
    ///
    /// # Errors
    /// `ENOENT` for no such vCPU; `EINVAL` if the block is misaligned or crosses the frame, if the vCPU has one
    /// already (XSA-188), or if the frame cannot be pinned.
    pub fn init_control<H: Host>(
        &self,
        host: &H,
        vcpu: VcpuId,
        mfn: u64,
        offset: u32,
    ) -> Result<()> {
        let state = self.vcpu(vcpu).ok_or(Errno::ENOENT)?;
        let last = PAGE_SIZE - u64::from(fifo::CONTROL_BLOCK_SIZE);
        if u64::from(offset) > last || !offset.is_multiple_of(8) || mfn >= 1 << 40 {
            return Err(Errno::EINVAL);
        }
        let table = self.table.lock();
        if table.dying || state.control_address().is_some() {
            return Err(Errno::EINVAL);
        }
        host.pin(self.id(), Mfn(mfn))?;
        state.set_control(Some(Mfn(mfn).addr().wrapping_add(u64::from(offset))));
        if !self.uses_fifo() {
            self.fifo.store(true, Ordering::SeqCst);
            self.latch_pending(host, &table);
        }
        Ok(())
    }

    /// Keeps what was pending in the two-level bitmaps for when the event words arrive.
    fn latch_pending(&self, frames: &impl Frames, table: &Table) {
        for port in 1..table.fresh.min(TWO_LEVEL_PORTS) {
            let Some(slot) = self.port(port) else { break };
            let mut guard = slot.lock();
            *guard = guard.with_priority(fifo::PRIORITY_DEFAULT);
            if guard.usable() && self.was_pending(frames, port) {
                *guard = guard.with_latched(true);
            }
        }
    }

    /// `EVTCHNOP_expand_array`: adds frame `mfn` with the next 1024 event words.
    ///
    /// # Errors
    /// `EOPNOTSUPP` in the two-level layout, `ENOSPC` if the array is full, `EINVAL` if the frame cannot be pinned.
    pub fn expand_array<H: Host>(&self, host: &H, mfn: u64) -> Result<()> {
        if mfn >= 1 << 40 {
            return Err(Errno::EINVAL);
        }
        let table = self.table.lock();
        if !self.uses_fifo() {
            return Err(Errno::EOPNOTSUPP);
        }
        if table.dying {
            return Err(Errno::EINVAL);
        }
        let (page, entry) = self
            .array
            .iter()
            .enumerate()
            .find(|(_, entry)| entry.load(Ordering::Relaxed) == NO_FRAME)
            .ok_or(Errno::ENOSPC)?;
        host.pin(self.id(), Mfn(mfn))?;
        entry.store(mfn, Ordering::SeqCst);
        let first = page as u32 * fifo::WORDS_PER_PAGE;
        for port in first.max(1)..table.fresh.min(first + fifo::WORDS_PER_PAGE) {
            let Some(slot) = self.port(port) else { break };
            let mut guard = slot.lock();
            if guard.latched() {
                *guard = guard.with_latched(false);
                if guard.usable() {
                    self.fifo_set_pending(host, &mut guard, port);
                }
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_set_priority`: from its next event on, `port` goes to the queue of `priority`.
    ///
    /// # Errors
    /// `EINVAL` for no such priority or port, `ENOSYS` in the two-level layout.
    pub fn set_priority(&self, port: u32, priority: u32) -> Result<()> {
        if priority > fifo::PRIORITY_MIN {
            return Err(Errno::EINVAL);
        }
        let slot = self.port(port).ok_or(Errno::EINVAL)?;
        if !self.uses_fifo() {
            return Err(Errno::ENOSYS);
        }
        let mut guard = slot.lock();
        *guard = guard.with_priority(priority);
        Ok(())
    }

    /// Goes back to the two-level layout and unpins its frames. Only with no port in use, under the table lock.
    pub(crate) fn drop_fifo(&self, frames: &impl Frames) {
        if !self.fifo.swap(false, Ordering::SeqCst) {
            return;
        }
        for vcpu in &self.vcpus {
            for tail in &vcpu.tails {
                *tail.lock() = 0;
            }
            if let Some(addr) = vcpu.control_address() {
                vcpu.set_control(None);
                frames.unpin(self.id(), Mfn::containing(addr));
            }
        }
        for entry in &self.array {
            let mfn = entry.swap(NO_FRAME, Ordering::SeqCst);
            if mfn != NO_FRAME {
                frames.unpin(self.id(), Mfn(mfn));
            }
        }
    }
}
