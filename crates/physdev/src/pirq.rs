// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain's PIRQs: its own numbers for the interrupt lines it was given.
//!
//! Invariant: a line is mapped at most once per domain; a bound PIRQ has exactly one binding at its line; the bit of
//! a PIRQ in the shared EOI page is set exactly if it is mapped to a level-triggered line.

use crate::chip::{ApicId, Chip, Gsi, Vector};
use crate::irq::{Irqs, Raise};
use crate::msi::Msi;
use alloc::vec::Vec;
use philoxen_abi::{DomId, Errno, Result};
use spin::Mutex;

/// PIRQs beyond the GSIs, for messages.
const MESSAGE_PIRQS: u32 = 184;

/// A guest's page that holds a bit per PIRQ: set if the guest has to say EOI. Dropping it gives the page back.
pub trait EoiPage {
    /// Sets or clears the bit of `pirq` atomically; bits beyond the page are ignored.
    fn set(&self, pirq: u32, needs_eoi: bool);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pirq {
    Free,
    /// Promised by `get_free_pirq`.
    Reserved,
    Mapped {
        vector: Vector,
        bound: bool,
    },
}

#[derive(Debug)]
struct Table<P> {
    pirqs: Vec<Pirq>,
    page: Option<P>,
    /// Version 1 of the page: an EOI also unmasks the event channel.
    unmask_on_eoi: bool,
}

/// The PIRQs of one domain.
#[derive(Debug)]
pub struct DomainIrqs<P> {
    domain: DomId,
    nr_gsis: u32,
    table: Mutex<Table<P>>,
}

impl<P: EoiPage> Table<P> {
    fn mapped(&self, pirq: u32) -> Result<Vector> {
        match self.pirqs.get(pirq as usize) {
            Some(Pirq::Mapped { vector, .. }) => Ok(*vector),
            _ => Err(Errno::EINVAL),
        }
    }

    fn find(&self, wanted: Vector) -> Option<u32> {
        let is = |p: &Pirq| matches!(p, Pirq::Mapped { vector, .. } if *vector == wanted);
        self.pirqs.iter().position(is).map(|index| index as u32)
    }

    fn is_free(&self, pirq: u32) -> bool {
        self.pirqs.get(pirq as usize) == Some(&Pirq::Free)
    }

    fn set(&mut self, pirq: u32, state: Pirq) {
        if let Some(slot) = self.pirqs.get_mut(pirq as usize) {
            *slot = state;
        }
    }

    fn tell(&self, pirq: u32, needs_eoi: bool) {
        if let Some(page) = &self.page {
            page.set(pirq, needs_eoi);
        }
    }
}

impl<P: EoiPage> DomainIrqs<P> {
    /// A table without PIRQs that may be mapped: for domains without devices.
    pub const fn none(domain: DomId) -> Self {
        let table = Table {
            pirqs: Vec::new(),
            page: None,
            unmask_on_eoi: false,
        };
        Self {
            domain,
            nr_gsis: 0,
            table: Mutex::new(table),
        }
    }

    /// A table with room for every GSI and for messages.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new<C: Chip>(domain: DomId, irqs: &Irqs<C>) -> Result<Self> {
        let nr_gsis = irqs.nr_gsis().max(16);
        let count = (nr_gsis + MESSAGE_PIRQS) as usize;
        let mut pirqs = Vec::new();
        pirqs.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        pirqs.resize(count, Pirq::Free);
        let table = Table {
            pirqs,
            page: None,
            unmask_on_eoi: false,
        };
        Ok(Self {
            domain,
            nr_gsis,
            table: Mutex::new(table),
        })
    }

    /// Shows the shared page, if there is one: for the page audit.
    pub fn with_page(&self, show: impl FnOnce(&P)) {
        if let Some(page) = &self.table.lock().page {
            show(page);
        }
    }

    /// Number of PIRQs (also those not mapped).
    pub fn nr_pirqs(&self) -> u32 {
        self.table.lock().pirqs.len() as u32
    }

    fn raise(&self, pirq: u32) -> Raise {
        Raise {
            domain: self.domain,
            pirq,
        }
    }

    /// A free PIRQ: for messages from the top; for a GSI its own number, or one above the ISA interrupts.
    fn choose(&self, table: &Table<P>, gsi: Option<Gsi>) -> Result<u32> {
        let count = table.pirqs.len() as u32;
        let free = |pirq: &u32| table.is_free(*pirq);
        match gsi {
            Some(gsi) if table.is_free(gsi.0) => Some(gsi.0),
            Some(_) => (16..self.nr_gsis).find(free),
            None => (16..count).rev().find(free),
        }
        .ok_or(Errno::ENOSPC)
    }

    /// The PIRQ that a map request gets: `wanted`, or a free one.
    fn claim(&self, table: &Table<P>, wanted: Option<u32>, gsi: Option<Gsi>) -> Result<u32> {
        match wanted {
            None => self.choose(table, gsi),
            Some(pirq) => match table.pirqs.get(pirq as usize).ok_or(Errno::EINVAL)? {
                Pirq::Free | Pirq::Reserved => Ok(pirq),
                Pirq::Mapped { .. } => Err(Errno::EBUSY),
            },
        }
    }

    fn map(&self, irqs: &Irqs<impl Chip>, table: &mut Table<P>, pirq: u32, vector: Vector) {
        table.set(
            pirq,
            Pirq::Mapped {
                vector,
                bound: false,
            },
        );
        table.tell(pirq, irqs.status(vector).0);
    }

    /// Gives a GSI a PIRQ; asking again returns the same.
    ///
    /// # Errors
    /// `EINVAL` for a GSI or PIRQ out of range, `EBUSY` if either is mapped otherwise, `ENOSPC`.
    pub fn map_gsi<C: Chip>(&self, irqs: &Irqs<C>, gsi: Gsi, wanted: Option<u32>) -> Result<u32> {
        let mut table = self.table.lock();
        let vector = irqs.gsi_line(gsi)?;
        if let Some(pirq) = table.find(vector) {
            return if wanted.is_none_or(|w| w == pirq) {
                Ok(pirq)
            } else {
                Err(Errno::EBUSY)
            };
        }
        let pirq = self.claim(&table, wanted, Some(gsi))?;
        self.map(irqs, &mut table, pirq, vector);
        Ok(pirq)
    }

    /// Gives a message a PIRQ and programs it.
    ///
    /// # Errors
    /// As [`Irqs::add_msi`]; `EINVAL` and `EBUSY` for a wanted PIRQ out of range or in use, `ENOSPC`.
    pub fn map_msi<C: Chip>(&self, irqs: &Irqs<C>, msi: Msi, wanted: Option<u32>) -> Result<u32> {
        let mut table = self.table.lock();
        let pirq = self.claim(&table, wanted, None)?;
        let vector = irqs.add_msi(msi)?;
        self.map(irqs, &mut table, pirq, vector);
        Ok(pirq)
    }

    /// Takes a PIRQ back; a bound one is unbound first (its event channel stays, silent).
    ///
    /// # Errors
    /// `EINVAL` if it is not mapped.
    pub fn unmap<C: Chip>(&self, irqs: &Irqs<C>, pirq: u32) -> Result<()> {
        let mut table = self.table.lock();
        if table.pirqs.get(pirq as usize) == Some(&Pirq::Reserved) {
            table.set(pirq, Pirq::Free);
            return Ok(());
        }
        let vector = table.mapped(pirq)?;
        irqs.unbind(vector, self.raise(pirq));
        irqs.release(vector);
        table.set(pirq, Pirq::Free);
        table.tell(pirq, false);
        Ok(())
    }

    /// Reserves a free PIRQ for a GSI above the ISA range, or for a message.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn reserve(&self, for_gsi: bool) -> Result<u32> {
        let mut table = self.table.lock();
        let pirq = if for_gsi {
            (16..self.nr_gsis)
                .find(|pirq| table.is_free(*pirq))
                .ok_or(Errno::ENOSPC)?
        } else {
            self.choose(&table, None)?
        };
        table.set(pirq, Pirq::Reserved);
        Ok(pirq)
    }

    /// Binds a PIRQ, for an event channel: from now on its interrupts are raised.
    ///
    /// # Errors
    /// `EINVAL` if it is not mapped, `EEXIST` if it is bound, `EBUSY` if its line is not shared.
    pub fn bind_pirq<C: Chip>(&self, irqs: &Irqs<C>, pirq: u32, share: bool) -> Result<()> {
        let mut table = self.table.lock();
        let vector = match table.pirqs.get(pirq as usize) {
            Some(Pirq::Mapped { bound: true, .. }) => return Err(Errno::EEXIST),
            Some(Pirq::Mapped {
                vector,
                bound: false,
            }) => *vector,
            _ => return Err(Errno::EINVAL),
        };
        irqs.bind(vector, self.raise(pirq), share)?;
        table.set(
            pirq,
            Pirq::Mapped {
                vector,
                bound: true,
            },
        );
        Ok(())
    }

    /// The reverse, when the event channel is closed. Not bound is no error.
    pub fn unbind_pirq<C: Chip>(&self, irqs: &Irqs<C>, pirq: u32) {
        let mut table = self.table.lock();
        if let Ok(vector) = table.mapped(pirq) {
            irqs.unbind(vector, self.raise(pirq));
            table.set(
                pirq,
                Pirq::Mapped {
                    vector,
                    bound: false,
                },
            );
        }
    }

    /// The domain has handled an interrupt of this PIRQ. True if its event channel has to be unmasked too.
    ///
    /// # Errors
    /// `EINVAL` if it is not mapped.
    pub fn eoi<C: Chip>(&self, irqs: &Irqs<C>, pirq: u32) -> Result<bool> {
        let table = self.table.lock();
        irqs.eoi(table.mapped(pirq)?, self.raise(pirq));
        Ok(table.unmask_on_eoi)
    }

    /// Sends the interrupts of a PIRQ to another processor.
    ///
    /// # Errors
    /// `EINVAL` if it is not mapped or the hardware cannot name the destination.
    pub fn route_pirq<C: Chip>(&self, irqs: &Irqs<C>, pirq: u32, to: ApicId) -> Result<()> {
        irqs.route(self.table.lock().mapped(pirq)?, to)
    }

    /// True if the domain must say EOI for this PIRQ, and if its line may be shared.
    ///
    /// # Errors
    /// `EINVAL` if there is no such PIRQ.
    pub fn status<C: Chip>(&self, irqs: &Irqs<C>, pirq: u32) -> Result<(bool, bool)> {
        let table = self.table.lock();
        match table.pirqs.get(pirq as usize).ok_or(Errno::EINVAL)? {
            Pirq::Mapped { vector, .. } => Ok(irqs.status(*vector)),
            Pirq::Free | Pirq::Reserved => Ok((false, false)),
        }
    }

    /// Shares a page that says which PIRQs need an EOI.
    ///
    /// # Errors
    /// `EBUSY` if there is one.
    pub fn share_page<C: Chip>(&self, irqs: &Irqs<C>, unmask_on_eoi: bool, page: P) -> Result<()> {
        let mut table = self.table.lock();
        if table.page.is_some() {
            return Err(Errno::EBUSY);
        }
        table.page = Some(page);
        table.unmask_on_eoi = unmask_on_eoi;
        drop(table);
        self.refresh(irqs);
        Ok(())
    }

    /// Writes every bit of the shared page anew, after the signalling of a line changed.
    pub(crate) fn refresh<C: Chip>(&self, irqs: &Irqs<C>) {
        let table = self.table.lock();
        for (pirq, state) in (0..).zip(&table.pirqs) {
            let needs = matches!(state, Pirq::Mapped { vector, .. } if irqs.status(*vector).0);
            table.tell(pirq, needs);
        }
    }

    /// Gives everything back, when the domain is destroyed.
    pub fn release_all<C: Chip>(&self, irqs: &Irqs<C>) {
        for pirq in 0..self.nr_pirqs() {
            // Unmapped ones have nothing to give back.
            let _ = self.unmap(irqs, pirq);
        }
        // Given back without the lock, as that takes others.
        let page = self.table.lock().page.take();
        drop(page);
    }
}
