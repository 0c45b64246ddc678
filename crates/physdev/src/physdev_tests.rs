// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall as Linux uses it, and as it should not.

use super::*;
use crate::chip::Width;
use crate::fake::{FakeChip, IOAPIC, NIC_BAR};
use crate::pci_ports::{PciPorts, covers};
use core::cell::Cell;
use philoxen_abi::guest::FakeGuest;
use philoxen_abi::physdev::*;

struct NoPage;

impl EoiPage for NoPage {
    fn set(&self, _: u32, _: bool) {}
}

struct Domain {
    irqs: DomainIrqs<NoPage>,
    hardware: bool,
    unmasked: Cell<Option<u32>>,
}

impl Caller for Domain {
    type Page = NoPage;
    fn id(&self) -> DomId {
        DomId(0)
    }
    fn is_hardware_domain(&self) -> bool {
        self.hardware
    }
    fn irqs(&self) -> &DomainIrqs<NoPage> {
        &self.irqs
    }
    fn hold_page(&self, frame: Mfn) -> Result<NoPage> {
        if frame.0 == 5 {
            Ok(NoPage)
        } else {
            Err(Errno::EINVAL)
        }
    }
    fn unmask_pirq(&self, pirq: u32) {
        self.unmasked.set(Some(pirq));
    }
}

fn setup() -> (Irqs<FakeChip>, Domain) {
    let irqs = Irqs::new(FakeChip::new());
    let table = DomainIrqs::new(DomId(0), &irqs).unwrap();
    (
        irqs,
        Domain {
            irqs: table,
            hardware: true,
            unmasked: Cell::new(None),
        },
    )
}

const ARG: GuestVa = GuestVa(0x1000);

fn call<T>(irqs: &Irqs<FakeChip>, domain: &Domain, cmd: u64, arg: T) -> (i64, T)
where
    T: FromBytes + IntoBytes + Immutable,
{
    let mut bytes = [0u8; 64];
    let guest = FakeGuest::new(ARG.0, &mut bytes);
    guest.write(ARG, &arg).unwrap();
    let Flow::Done(rax) = physdev_op(irqs, domain, &guest, cmd, ARG) else {
        panic!("restart")
    };
    let out = guest.read(ARG).unwrap();
    (rax, out)
}

fn map(kind: i32, index: i32, pirq: i32) -> MapPirq {
    let domid = DomId::SELF.0;
    let (bus, devfn, entry_nr, table_base) = (0, 0x18, 1, NIC_BAR);
    MapPirq {
        domid,
        pad0: 0,
        kind,
        index,
        pirq,
        bus,
        devfn,
        entry_nr,
        pad1: 0,
        table_base,
    }
}

#[test]
fn linux_boot_sequence() {
    let (irqs, dom) = setup();
    let op = ApicOp {
        apic_physbase: IOAPIC,
        reg: 1,
        value: 0,
    };
    assert_eq!(call(&irqs, &dom, APIC_READ, op).1.value, 0x17_0020);
    let (rax, op) = call(&irqs, &dom, ALLOC_IRQ_VECTOR, IrqOp { irq: 10, vector: 0 });
    assert_eq!(
        (rax, op.vector),
        (0, irqs.gsi_line(Gsi(10)).unwrap().0.into())
    );
    assert_eq!(call(&irqs, &dom, MAP_PIRQ, map(MAP_GSI, 10, 10)).0, 0);
    let setup_gsi = SetupGsi {
        gsi: 10,
        triggering: 1,
        polarity: 0,
        pad: 0,
    };
    assert_eq!(call(&irqs, &dom, SETUP_GSI, setup_gsi).0, 0);
    assert_eq!(call(&irqs, &dom, SETUP_GSI, setup_gsi).0, -17);
    dom.irqs.bind_pirq(&irqs, 10, true).unwrap();
    let (_, query) = call(
        &irqs,
        &dom,
        IRQ_STATUS_QUERY,
        IrqStatusQuery { irq: 10, flags: 9 },
    );
    assert_eq!(query.flags, IRQSTAT_NEEDS_EOI | IRQSTAT_SHARED);
    assert_eq!(
        call(&irqs, &dom, PIRQ_EOI_GMFN_V2, PirqEoiGmfn { gmfn: 5 }).0,
        0
    );
    assert_eq!(call(&irqs, &dom, EOI, Eoi { irq: 10 }).0, 0);
    assert_eq!(dom.unmasked.get(), None);
    let nic = PciDeviceAdd {
        seg: 0,
        bus: 0,
        devfn: 0x18,
        flags: 0,
        physfn_bus: 0,
        physfn_devfn: 0,
        pad: 0,
    };
    assert_eq!(call(&irqs, &dom, PCI_DEVICE_ADD, nic).0, 0);
    assert_eq!(call(&irqs, &dom, PCI_DEVICE_ADD, nic).0, 0);
    let (rax, mapped) = call(&irqs, &dom, MAP_PIRQ, map(MAP_MSI_SEG, -1, -1));
    assert_eq!((rax, mapped.pirq), (0, 207));
    let unmap = UnmapPirq {
        domid: DomId::SELF.0,
        pad: 0,
        pirq: 207,
    };
    assert_eq!(call(&irqs, &dom, UNMAP_PIRQ, unmap).0, 0);
    let area = PciMmcfgReserved {
        address: 0xb000_0000,
        segment: 0,
        start_bus: 0,
        end_bus: 255,
        flags: 1,
    };
    assert_eq!(call(&irqs, &dom, PCI_MMCFG_RESERVED, area).0, 0);
    let device = PciDevice {
        seg: 0,
        bus: 0,
        devfn: 0x18,
    };
    assert_eq!(call(&irqs, &dom, PREPARE_MSIX, device).0, 0);
    assert_eq!(call(&irqs, &dom, PCI_DEVICE_REMOVE, device).0, 0);
    assert_eq!(call(&irqs, &dom, PCI_DEVICE_REMOVE, device).0, -19);
}

#[test]
fn version_1_of_the_page_unmasks() {
    let (irqs, dom) = setup();
    assert_eq!(
        call(&irqs, &dom, PIRQ_EOI_GMFN_V1, PirqEoiGmfn { gmfn: 6 }).0,
        -22
    );
    assert_eq!(
        call(&irqs, &dom, PIRQ_EOI_GMFN_V1, PirqEoiGmfn { gmfn: 5 }).0,
        0
    );
    assert_eq!(
        call(&irqs, &dom, PIRQ_EOI_GMFN_V2, PirqEoiGmfn { gmfn: 5 }).0,
        -16
    );
    dom.irqs.map_gsi(&irqs, Gsi(3), None).unwrap();
    assert_eq!(call(&irqs, &dom, EOI, Eoi { irq: 3 }).0, 0);
    assert_eq!(dom.unmasked.get(), Some(3));
    assert_eq!(call(&irqs, &dom, EOI, Eoi { irq: u32::MAX }).0, -22);
}

#[test]
fn bad_requests() {
    let (irqs, mut dom) = setup();
    assert_eq!(
        call(&irqs, &dom, MAP_PIRQ, map(MAP_MULTI_MSI, 0, -1)).0,
        -95
    );
    assert_eq!(call(&irqs, &dom, MAP_PIRQ, map(MAP_UNKNOWN, 0, -1)).0, -22);
    assert_eq!(call(&irqs, &dom, MAP_PIRQ, map(MAP_GSI, -1, -1)).0, -22);
    assert_eq!(
        call(&irqs, &dom, MAP_PIRQ, map(MAP_GSI, i32::MAX, -1)).0,
        -22
    );
    assert_eq!(
        call(&irqs, &dom, MAP_PIRQ, map(MAP_GSI, 3, i32::MAX)).0,
        -22
    );
    let mut other = map(MAP_GSI, 3, -1);
    other.domid = 1;
    assert_eq!(call(&irqs, &dom, MAP_PIRQ, other).0, -1);
    let mut absent = map(MAP_MSI, 0, -1);
    absent.devfn = 0xff;
    assert_eq!(call(&irqs, &dom, MAP_PIRQ, absent).0, -19);
    absent.devfn = 0x100;
    assert_eq!(call(&irqs, &dom, MAP_PIRQ, absent).0, -22);
    assert_eq!(call(&irqs, &dom, 99, Eoi { irq: 0 }).0, -38);
    let write = ApicOp {
        apic_physbase: IOAPIC,
        reg: 0,
        value: 0,
    };
    assert_eq!(call(&irqs, &dom, APIC_WRITE, write).0, -1);
    let write = ApicOp {
        apic_physbase: IOAPIC,
        reg: u32::MAX,
        value: 0,
    };
    assert_eq!(call(&irqs, &dom, APIC_WRITE, write).0, 0);
    assert_eq!(call(&irqs, &dom, APIC_READ, write).0, -22);
    dom.hardware = false;
    assert_eq!(call(&irqs, &dom, MAP_PIRQ, map(MAP_GSI, 3, -1)).0, -1);
    let mut none = [0u8; 1];
    let guest = FakeGuest::new(0, &mut none);
    assert_eq!(
        physdev_op(&irqs, &dom, &guest, EOI, GuestVa(0)),
        Flow::Done(-14)
    );
}

proptest::proptest! {
    #[test]
    fn no_request_panics(cmd in 0u64..33, bytes: [u8; 40]) {
        let (irqs, dom) = setup();
        let mut memory = bytes;
        let guest = FakeGuest::new(0, &mut memory);
        let _ = physdev_op(&irqs, &dom, &guest, cmd, GuestVa(0));
    }
}

#[test]
fn configuration_ports() {
    let chip = FakeChip::new();
    let ports = PciPorts::new();
    assert!(covers(0xcf7, Width::Word) && covers(0xcff, Width::Byte));
    assert!(!covers(0xcf7, Width::Byte) && !covers(0xd00, Width::Dword));
    // Nothing is selected yet.
    assert_eq!(ports.read(&chip, 0xcfc, Width::Dword), u32::MAX);
    ports.write(&chip, 0xcf8, Width::Dword, 0x8000_1800);
    assert_eq!(ports.read(&chip, 0xcf8, Width::Dword), 0x8000_1800);
    assert_eq!(ports.read(&chip, 0xcfc, Width::Dword), 0x1000_1af4);
    assert_eq!(ports.read(&chip, 0xcfe, Width::Word), 0x1000);
    assert_eq!(ports.read(&chip, 0xcff, Width::Byte), 0x10);
    // Across the end, and a narrow access to the latch (0xcf9 is reset control).
    assert_eq!(ports.read(&chip, 0xcfe, Width::Dword), u32::MAX);
    ports.write(&chip, 0xcf9, Width::Byte, 6);
    assert_eq!(ports.read(&chip, 0xcf9, Width::Byte), 0xff);
    ports.write(&chip, 0xcf8, Width::Dword, 0x8000_1804);
    ports.write(&chip, 0xcfd, Width::Byte, 0x12);
    assert_eq!(ports.read(&chip, 0xcfc, Width::Word), 0x1202);
    // Each domain has its own latch; an absent function reads all ones.
    let other = PciPorts::new();
    other.write(&chip, 0xcf8, Width::Dword, 0x8000_f800);
    assert_eq!(other.read(&chip, 0xcfc, Width::Word), 0xffff);
    assert_eq!(ports.read(&chip, 0xcfc, Width::Byte), 2);
    other.write(&chip, 0xcf8, Width::Dword, 0x8100_1800);
    assert_eq!(other.read(&chip, 0xcfc, Width::Dword), u32::MAX);
}
