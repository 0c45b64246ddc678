// SPDX-License-Identifier: MIT OR Apache-2.0
//! One port: its whole binding in one atomic word, so that a reader gets a consistent picture with one load.
//!
//! Invariant: only the holder of the word's lock bit changes the word or the queue memory beside it.

use crate::sync::{AtomicU32, AtomicU64, Ordering, spin_loop};
use core::ops::{Deref, DerefMut};
use philoxen_abi::event::fifo;
use philoxen_abi::{DomId, VcpuId};

/// What a port is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Not in use.
    Free,
    /// Being set up or torn down; port 0 for ever.
    Reserved,
    /// Waits for a binding from this domain.
    Unbound(DomId),
    /// Connected to a port of a domain.
    Interdomain(DomId, u32),
    /// Bound to a physical interrupt.
    Pirq(u32),
    /// Bound to a virtual interrupt.
    Virq(u32),
    /// Notified by the domain's own vCPUs.
    Ipi,
}

const LOCK: u64 = 1 << 3;
const LATCHED: u64 = 1 << 4;
const PRIORITY: u32 = 5;
const VCPU: u32 = 9;
const VCPU_MAX: u64 = (1 << 13) - 1;
const DOM: u32 = 22;
const ARG: u32 = 38;
const ARG_MAX: u64 = (1 << 24) - 1;
const STATE_BITS: u64 = 7 | 0xffff << DOM | ARG_MAX << ARG;

/// vCPUs that a port word can name.
pub(crate) const MAX_VCPUS: u32 = 1 << 13;
/// PIRQs that a port word can name.
pub(crate) const MAX_PIRQS: u32 = 1 << 24;

/// The decoded form of a port: kind (3 bits), lock, latched, priority (4), vCPU (13), domain (16), argument (24).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word(u64);

impl Word {
    const fn encode(state: State) -> u64 {
        let (kind, dom, arg) = match state {
            State::Free => (0, 0, 0),
            State::Reserved => (1, 0, 0),
            State::Unbound(dom) => (2, dom.0, 0),
            State::Interdomain(dom, port) => (3, dom.0, port),
            State::Pirq(pirq) => (4, 0, pirq),
            State::Virq(virq) => (5, 0, virq),
            State::Ipi => (6, 0, 0),
        };
        kind | (dom as u64) << DOM | (arg as u64 & ARG_MAX) << ARG
    }

    /// A port in `state` with the defaults of the interface: vCPU 0, middle priority.
    pub(crate) const fn new(state: State) -> Self {
        Self(Self::encode(state) | (fifo::PRIORITY_DEFAULT as u64) << PRIORITY)
    }

    #[inline(always)]
    pub(crate) const fn state(self) -> State {
        let dom = DomId((self.0 >> DOM) as u16);
        let arg = (self.0 >> ARG & ARG_MAX) as u32;
        match self.0 & 7 {
            0 => State::Free,
            2 => State::Unbound(dom),
            3 => State::Interdomain(dom, arg),
            4 => State::Pirq(arg),
            5 => State::Virq(arg),
            6 => State::Ipi,
            _ => State::Reserved,
        }
    }

    /// True if bound or waiting to be bound: events may be raised on it.
    #[inline(always)]
    pub(crate) const fn usable(self) -> bool {
        self.0 & 7 > 1
    }

    #[inline(always)]
    pub(crate) const fn vcpu(self) -> VcpuId {
        VcpuId((self.0 >> VCPU & VCPU_MAX) as u32)
    }

    #[inline(always)]
    pub(crate) const fn priority(self) -> u32 {
        (self.0 >> PRIORITY & 15) as u32
    }

    /// True if an event arrived while the FIFO event word was not there yet.
    pub(crate) const fn latched(self) -> bool {
        self.0 & LATCHED != 0
    }

    #[must_use]
    pub(crate) const fn with_state(self, state: State) -> Self {
        Self(self.0 & !STATE_BITS | Self::encode(state))
    }

    #[must_use]
    pub(crate) const fn with_vcpu(self, vcpu: VcpuId) -> Self {
        Self(self.0 & !(VCPU_MAX << VCPU) | (vcpu.0 as u64 & VCPU_MAX) << VCPU)
    }

    #[must_use]
    pub(crate) const fn with_priority(self, priority: u32) -> Self {
        Self(self.0 & !(15 << PRIORITY) | (priority as u64 & 15) << PRIORITY)
    }

    #[must_use]
    pub(crate) const fn with_latched(self, latched: bool) -> Self {
        if latched {
            Self(self.0 | LATCHED)
        } else {
            Self(self.0 & !LATCHED)
        }
    }
}

/// A slot of the port table.
#[derive(Debug)]
pub(crate) struct Port {
    word: AtomicU64,
    /// FIFO queue the event was last put on: vCPU above, priority in the low 4 bits.
    queue: AtomicU32,
}

impl Port {
    pub(crate) fn new(state: State) -> Self {
        Self {
            word: AtomicU64::new(Word::new(state).0),
            queue: AtomicU32::new(fifo::PRIORITY_DEFAULT),
        }
    }

    /// The word as it is now, without locking.
    #[inline(always)]
    pub(crate) fn peek(&self) -> Word {
        Word(self.word.load(Ordering::Acquire) & !LOCK)
    }

    /// Takes the lock bit. Holders never wait for anything but later locks of the order, so waits are short.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_> {
        loop {
            let old = self.word.fetch_or(LOCK, Ordering::AcqRel);
            if old & LOCK == 0 {
                return Guard {
                    port: self,
                    word: Word(old),
                };
            }
            while self.word.load(Ordering::Relaxed) & LOCK != 0 {
                spin_loop();
            }
        }
    }
}

/// The lock bit of a port; the word is written back when this is dropped.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    port: &'a Port,
    word: Word,
}

impl Guard<'_> {
    /// (vCPU, priority) of the FIFO queue the event was last put on.
    pub(crate) fn last_queue(&self) -> (u32, u32) {
        let queue = self.port.queue.load(Ordering::Relaxed);
        (queue >> 4, queue & 15)
    }

    pub(crate) fn set_last_queue(&self, (vcpu, priority): (u32, u32)) {
        self.port
            .queue
            .store(vcpu << 4 | priority, Ordering::Relaxed);
    }
}

impl Deref for Guard<'_> {
    type Target = Word;
    #[inline(always)]
    fn deref(&self) -> &Word {
        &self.word
    }
}

impl DerefMut for Guard<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Word {
        &mut self.word
    }
}

impl Drop for Guard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.port.word.store(self.word.0 & !LOCK, Ordering::Release);
    }
}
