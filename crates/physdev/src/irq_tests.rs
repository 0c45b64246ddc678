// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow of interrupts through a fake machine.

use crate::acpi::Signal;
use crate::chip::{ApicId, Gsi, Vector};
use crate::fake::{Did, FakeChip, NIC, NIC_BAR, SOUND};
use crate::irq::{Irqs, MAX_SHARERS, Raise};
use crate::msi::Msi;
use crate::pirq::{DomainIrqs, EoiPage};
use core::cell::RefCell;
use philoxen_abi::{DomId, Errno};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::vec::Vec;

#[derive(Clone, Debug, Default)]
struct Page(Rc<RefCell<BTreeSet<u32>>>);

impl EoiPage for Page {
    fn set(&self, pirq: u32, needs_eoi: bool) {
        let mut bits = self.0.borrow_mut();
        if needs_eoi {
            bits.insert(pirq);
        } else {
            bits.remove(&pirq);
        }
    }
}

type Domain = DomainIrqs<Page>;

fn machine() -> Irqs<FakeChip> {
    Irqs::new(FakeChip::new())
}

fn domain(irqs: &Irqs<FakeChip>, id: u16) -> Domain {
    Domain::new(DomId(id), irqs).unwrap()
}

fn raise(domain: u16, pirq: u32) -> Raise {
    Raise {
        domain: DomId(domain),
        pirq,
    }
}

/// A GSI mapped and bound in one domain; returns its vector.
fn bound(irqs: &Irqs<FakeChip>, dom: &Domain, gsi: u32, signal: Signal) -> u8 {
    irqs.setup_gsi(Gsi(gsi), signal).unwrap();
    assert_eq!(dom.map_gsi(irqs, Gsi(gsi), Some(gsi)), Ok(gsi));
    dom.bind_pirq(irqs, gsi, true).unwrap();
    irqs.gsi_line(Gsi(gsi)).unwrap().0
}

#[test]
fn a_level_line_stays_masked_until_eoi() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    let vector = bound(
        &irqs,
        &dom,
        10,
        Signal {
            level: true,
            low: false,
        },
    );
    assert_eq!(
        irqs.chip().pins.borrow()[10],
        3 << 56 | 1 << 15 | u64::from(vector)
    );
    irqs.chip().take();
    assert_eq!(irqs.on_vector(vector).as_slice(), [raise(0, 10)]);
    assert_eq!(irqs.chip().take(), [Did::Mask(10, true), Did::End]);
    assert_eq!(dom.eoi(&irqs, 10), Ok(false));
    assert_eq!(irqs.chip().take(), [Did::Mask(10, false)]);
    // One EOI too many does nothing.
    assert_eq!(dom.eoi(&irqs, 10), Ok(false));
    assert_eq!(irqs.chip().take(), []);
}

#[test]
fn a_line_of_the_hypervisor_is_mapped_but_never_touched() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    irqs.claim(Gsi(4));
    let before = irqs.chip().pins.borrow()[4];
    assert_eq!(irqs.setup_gsi(Gsi(4), Signal::PCI), Err(Errno::EEXIST));
    assert_eq!(dom.map_gsi(&irqs, Gsi(4), Some(4)), Ok(4));
    assert_eq!(dom.bind_pirq(&irqs, 4, true), Err(Errno::EINVAL));
    assert_eq!(irqs.chip().pins.borrow()[4], before);
}

#[test]
fn an_edge_line_is_never_masked_while_bound() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    let vector = bound(&irqs, &dom, 1, Signal::ISA);
    irqs.chip().take();
    for _ in 0..3 {
        assert_eq!(irqs.on_vector(vector).as_slice(), [raise(0, 1)]);
        assert_eq!(irqs.chip().take(), [Did::End]);
    }
    assert_eq!(dom.status(&irqs, 1), Ok((false, true)));
}

#[test]
fn a_shared_line_waits_for_all_takers() {
    let irqs = machine();
    let (a, b) = (domain(&irqs, 0), domain(&irqs, 1));
    let vector = bound(&irqs, &a, 11, Signal::PCI);
    let pirq = b.map_gsi(&irqs, Gsi(11), None).unwrap();
    b.bind_pirq(&irqs, pirq, true).unwrap();
    assert_eq!(
        irqs.on_vector(vector).as_slice(),
        [raise(0, 11), raise(1, pirq)]
    );
    irqs.chip().take();
    a.eoi(&irqs, 11).unwrap();
    assert_eq!(irqs.chip().take(), []);
    // A taker that goes away owes nothing any more.
    b.unbind_pirq(&irqs, pirq);
    assert_eq!(irqs.chip().take(), [Did::Mask(11, false)]);
    a.unbind_pirq(&irqs, 11);
    assert_eq!(irqs.chip().take(), [Did::Mask(11, true)]);
}

#[test]
fn sharing_needs_everybodys_consent() {
    let irqs = machine();
    let (a, b) = (domain(&irqs, 0), domain(&irqs, 1));
    a.map_gsi(&irqs, Gsi(5), None).unwrap();
    b.map_gsi(&irqs, Gsi(5), None).unwrap();
    a.bind_pirq(&irqs, 5, false).unwrap();
    assert_eq!(a.bind_pirq(&irqs, 5, false), Err(Errno::EEXIST));
    assert_eq!(b.bind_pirq(&irqs, 5, true), Err(Errno::EBUSY));
    a.unbind_pirq(&irqs, 5);
    a.bind_pirq(&irqs, 5, true).unwrap();
    assert_eq!(b.bind_pirq(&irqs, 5, false), Err(Errno::EBUSY));
    b.bind_pirq(&irqs, 5, true).unwrap();
    let mut more: Vec<_> = (2..8).map(|id| domain(&irqs, id)).collect();
    more.retain(|dom| {
        dom.map_gsi(&irqs, Gsi(5), None).unwrap();
        dom.bind_pirq(&irqs, 5, true).is_ok()
    });
    assert_eq!(more.len(), MAX_SHARERS - 2);
}

#[test]
fn an_interrupt_without_taker_is_masked_and_told_once() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    let vector = bound(&irqs, &dom, 4, Signal::ISA);
    dom.unbind_pirq(&irqs, 4);
    irqs.chip().take();
    for _ in 0..1000 {
        assert!(irqs.on_vector(vector).is_empty());
        assert_eq!(irqs.chip().take(), [Did::End, Did::Mask(4, true)]);
    }
    assert_eq!(irqs.chip().warnings.get(), 1);
    // A vector without a line, and one outside the device range.
    assert!(irqs.on_vector(0xd0).is_empty());
    assert!(irqs.on_vector(0xff).is_empty());
}

#[test]
fn an_unmap_of_a_bound_pirq_silences_it() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    let vector = bound(&irqs, &dom, 10, Signal::PCI);
    irqs.on_vector(vector);
    dom.unmap(&irqs, 10).unwrap();
    assert!(irqs.on_vector(vector).is_empty());
    assert_ne!(irqs.chip().pins.borrow()[10] & 0x10000, 0);
    assert_eq!(dom.eoi(&irqs, 10), Err(Errno::EINVAL));
    assert_eq!(dom.unmap(&irqs, 10), Err(Errno::EINVAL));
    dom.unbind_pirq(&irqs, 10);
}

#[test]
fn a_gsi_is_set_up_once_and_can_change_while_bound() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    let page = Page::default();
    dom.share_page(&irqs, false, page.clone()).unwrap();
    dom.map_gsi(&irqs, Gsi(9), Some(9)).unwrap();
    dom.bind_pirq(&irqs, 9, true).unwrap();
    assert!(page.0.borrow().contains(&9));
    irqs.setup_gsi(Gsi(9), Signal::ISA).unwrap();
    dom.refresh(&irqs);
    assert!(page.0.borrow().is_empty());
    assert_eq!(irqs.chip().pins.borrow()[9] & 0x1a000, 0);
    assert_eq!(irqs.setup_gsi(Gsi(9), Signal::PCI), Err(Errno::EEXIST));
    assert_eq!(irqs.setup_gsi(Gsi(24), Signal::PCI), Err(Errno::EINVAL));
    assert_eq!(dom.share_page(&irqs, false, page).err(), Some(Errno::EBUSY));
}

#[test]
fn msix_entries_are_programmed_masked_and_opened_by_bind() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    let chip = irqs.chip();
    let message = |index| Msi::extended(chip, NIC, index, NIC_BAR, false);
    let pirq = dom.map_msi(&irqs, message(1).unwrap(), None).unwrap();
    assert_eq!(pirq, dom.nr_pirqs() - 1);
    let entry = NIC_BAR + 0x800 + 16;
    let vector = chip.register(entry + 8) as u8;
    assert_eq!(chip.register(entry), 0xfee0_3000);
    assert_eq!(
        (chip.register(entry + 4), chip.register(entry + 12)),
        (0, 1)
    );
    dom.bind_pirq(&irqs, pirq, false).unwrap();
    assert_eq!(chip.register(entry + 12), 0);
    assert_eq!(irqs.on_vector(vector).as_slice(), [raise(0, pirq)]);
    assert_eq!(dom.status(&irqs, pirq), Ok((false, false)));
    dom.route_pirq(&irqs, pirq, ApicId(9)).unwrap();
    assert_eq!(
        (chip.register(entry), chip.register(entry + 12)),
        (0xfee0_9000, 0)
    );
    assert_eq!(
        dom.map_msi(&irqs, message(1).unwrap(), None),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        dom.map_msi(&irqs, Msi::plain(chip, NIC).unwrap(), None),
        Err(Errno::EEXIST)
    );
    // The registers are lost in a reset and come back.
    chip.registers.borrow_mut().clear();
    irqs.restore_msi(NIC).unwrap();
    assert_eq!(
        (chip.register(entry), chip.register(entry + 12)),
        (0xfee0_9000, 0)
    );
    dom.unmap(&irqs, pirq).unwrap();
    assert_eq!(chip.register(entry + 12), 1);
    assert_eq!(dom.map_msi(&irqs, message(1).unwrap(), None), Ok(pirq));
}

#[test]
fn msix_requests_are_checked_against_the_function() {
    let irqs = machine();
    let chip = irqs.chip();
    let request = |index, base| Msi::extended(chip, NIC, index, base, false).map(drop);
    assert_eq!(request(2, NIC_BAR), Ok(()));
    assert_eq!(request(3, NIC_BAR), Err(Errno::EINVAL));
    assert_eq!(request(0, NIC_BAR + 0x1000), Err(Errno::EINVAL));
    assert_eq!(
        Msi::extended(chip, SOUND, 0, NIC_BAR, false).err(),
        Some(Errno::ENODEV)
    );
    chip.config.borrow_mut().get_mut(&NIC).unwrap()[4] = 0;
    assert_eq!(request(0, NIC_BAR), Err(Errno::ENXIO));
    // A BAR that was moved over RAM: nothing is written, nothing is leaked.
    let config = |at: usize, value: u8| chip.config.borrow_mut().get_mut(&NIC).unwrap()[at] = value;
    config(4, 2);
    config(0x1b, 0x10);
    let over_ram = Msi::extended(chip, NIC, 0, 0x10bf_1000, false).unwrap();
    let dom = domain(&irqs, 0);
    assert_eq!(dom.map_msi(&irqs, over_ram, None), Err(Errno::EINVAL));
    assert_eq!(
        dom.map_msi(&irqs, Msi::plain(chip, SOUND).unwrap(), None)
            .map(drop),
        Ok(())
    );
    // A capability list that loops ends.
    config(0x41, 0x40);
    config(0x40, 1);
    assert_eq!(request(0, NIC_BAR), Err(Errno::ENODEV));
}

#[test]
fn msi_capabilities_of_both_forms() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    let chip = irqs.chip();
    chip.config.borrow_mut().get_mut(&SOUND).unwrap()[0x62] = 0x11;
    let pirq = dom
        .map_msi(&irqs, Msi::plain(chip, SOUND).unwrap(), None)
        .unwrap();
    let config = chip.config.borrow()[&SOUND];
    // Enable is kept, several messages are not.
    assert_eq!(
        config[0x60..0x6a],
        [5, 0, 1, 0, 0, 0x30, 0xe0, 0xfe, config[0x68], 0]
    );
    assert_eq!(irqs.on_vector(config[0x68]).as_slice(), []);
    dom.bind_pirq(&irqs, pirq, false).unwrap();
    assert_eq!(irqs.on_vector(config[0x68]).as_slice(), [raise(0, pirq)]);
    dom.unmap(&irqs, pirq).unwrap();
    assert_eq!(chip.config.borrow()[&SOUND][0x62], 0);

    let pirq = dom
        .map_msi(&irqs, Msi::plain(chip, NIC).unwrap(), Some(40))
        .unwrap();
    assert_eq!(pirq, 40);
    assert_eq!(chip.config.borrow()[&NIC][0x60], 1);
    dom.bind_pirq(&irqs, pirq, false).unwrap();
    let config = chip.config.borrow()[&NIC];
    assert_eq!(config[0x54..0x5c], [0, 0x30, 0xe0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(config[0x60], 0);
}

#[test]
fn vectors_run_out_cleanly_and_skip_software_ones() {
    let irqs = machine();
    let doms: Vec<_> = (0..2).map(|id| domain(&irqs, id)).collect();
    let mut seen = BTreeSet::new();
    for gsi in 0..24 {
        seen.insert(irqs.gsi_line(Gsi(gsi)).unwrap().0);
    }
    assert_eq!(seen.len(), 24);
    let mut results = BTreeSet::new();
    for devfn in 0..=255 {
        let function = crate::chip::Sbdf {
            segment: 0,
            bus: 1,
            devfn,
        };
        let sound = irqs.chip().config.borrow()[&SOUND];
        irqs.chip().config.borrow_mut().insert(function, sound);
        let message = Msi::plain(irqs.chip(), function).unwrap();
        let dom = &doms[usize::from(devfn % 2)];
        if let Err(errno) = dom.map_msi(&irqs, message, None) {
            results.insert(errno.0);
        }
    }
    assert_eq!(results.into_iter().collect::<Vec<_>>(), [Errno::ENOSPC.0]);
    irqs.for_each_line(|line| {
        seen.insert(line.vector.0);
    });
    assert_eq!(seen.len(), 190);
    assert!(!seen.contains(&0x80) && !seen.contains(&0x82));
    for dom in &doms {
        dom.release_all(&irqs);
    }
    let mut left = 0;
    irqs.for_each_line(|_| left += 1);
    assert_eq!(left, 24);
}

#[test]
fn pirq_numbers() {
    let irqs = machine();
    let dom = domain(&irqs, 0);
    assert_eq!(dom.nr_pirqs(), 208);
    assert_eq!(dom.reserve(false), Ok(207));
    assert_eq!(dom.reserve(true), Ok(16));
    let sound = Msi::plain(irqs.chip(), SOUND).unwrap();
    assert_eq!(dom.map_gsi(&irqs, Gsi(16), None), Ok(17));
    assert_eq!(dom.map_gsi(&irqs, Gsi(16), None), Ok(17));
    assert_eq!(dom.map_gsi(&irqs, Gsi(16), Some(20)), Err(Errno::EBUSY));
    assert_eq!(dom.map_msi(&irqs, sound, Some(17)), Err(Errno::EBUSY));
    assert_eq!(dom.map_msi(&irqs, sound, Some(208)), Err(Errno::EINVAL));
    assert_eq!(dom.map_msi(&irqs, sound, Some(207)), Ok(207));
    assert_eq!(dom.map_gsi(&irqs, Gsi(24), None), Err(Errno::EINVAL));
    assert_eq!(dom.bind_pirq(&irqs, 99, false), Err(Errno::EINVAL));
    assert_eq!(dom.bind_pirq(&irqs, u32::MAX, false), Err(Errno::EINVAL));
    let none = Domain::none(DomId(7));
    assert_eq!(none.map_gsi(&irqs, Gsi(3), None), Err(Errno::ENOSPC));
    assert_eq!(none.eoi(&irqs, 3), Err(Errno::EINVAL));
}

proptest::proptest! {
    /// Whatever domains do: a GSI's pin is open exactly if it is bound and no EOI of a level line is outstanding.
    #[test]
    fn masks_follow_the_rule(steps: Vec<(u8, u8, bool)>) {
        let irqs = machine();
        let doms = [domain(&irqs, 0), domain(&irqs, 1)];
        let gsis = [(3u32, Signal::ISA), (10, Signal::PCI)];
        for (gsi, signal) in gsis {
            irqs.setup_gsi(Gsi(gsi), signal).unwrap();
            for dom in &doms {
                dom.map_gsi(&irqs, Gsi(gsi), Some(gsi)).unwrap();
            }
        }
        let mut bound = BTreeSet::new();
        let mut owed = BTreeSet::new();
        for (step, which, second) in steps {
            let (gsi, signal) = gsis[usize::from(second)];
            let id = u16::from(which % 2);
            let dom = &doms[usize::from(id)];
            match step % 4 {
                0 => if dom.bind_pirq(&irqs, gsi, true).is_ok() { bound.insert((gsi, id)); },
                1 => {
                    dom.unbind_pirq(&irqs, gsi);
                    bound.remove(&(gsi, id));
                    owed.remove(&(gsi, id));
                }
                2 => {
                    dom.eoi(&irqs, gsi).unwrap();
                    owed.remove(&(gsi, id));
                }
                _ => {
                    let Vector(vector) = irqs.gsi_line(Gsi(gsi)).unwrap();
                    // The controller delivers only what is open.
                    if irqs.chip().pins.borrow()[gsi as usize] & 0x10000 != 0 {
                        continue;
                    }
                    let raised = irqs.on_vector(vector);
                    let takers: Vec<_> = raised.iter().map(|r| (r.pirq, r.domain.0)).collect();
                    let mut want: Vec<_> = bound.iter().filter(|b| b.0 == gsi).copied().collect();
                    want.sort();
                    let mut got = takers.clone();
                    got.sort();
                    proptest::prop_assert_eq!(got, want);
                    if signal.level {
                        owed.extend(takers);
                    }
                }
            }
            for (gsi, _) in gsis {
                let open = irqs.chip().pins.borrow()[gsi as usize] & 0x10000 == 0;
                let has_taker = bound.iter().any(|b| b.0 == gsi);
                let waits = owed.iter().any(|o| o.0 == gsi);
                proptest::prop_assert_eq!(open, has_taker && !waits);
            }
        }
    }
}
