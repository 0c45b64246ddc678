// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains: what they consist of, the list of them, and how they stop.
//!
//! A domain lives as long as somebody holds it (`Arc`): the list, a processor that runs one of its vCPUs, a request in
//! progress. Lock order: the list, then locks inside a domain; the list is never held while a domain is worked on.

use crate::host::Hv;
use crate::irq::DomainPirqs;
use crate::vcpu::Vcpu;
use crate::watchdog::Watchdogs;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::{DomId, Mfn, VcpuId};
use philoxen_domain::lifecycle::{Lifecycle, ShutdownReason};
use philoxen_evtchn::DomainEvents;
use philoxen_paging::DomainMemory;
use philoxen_physdev::pci_ports::PciPorts;
use philoxen_pv::cpuid::CpuidPolicy;
use philoxen_pv::msr::MsrPolicy;
use spin::RwLock;

/// A domain.
pub struct Domain {
    /// Its identifier.
    pub id: DomId,
    /// It may control the machine and other domains.
    pub privileged: bool,
    /// Where it is in its life.
    pub life: Lifecycle,
    /// Its memory and the rights to map others'.
    pub memory: DomainMemory,
    /// Its event channels.
    pub events: DomainEvents,
    /// Its physical interrupts.
    pub pirqs: DomainPirqs,
    /// Its latch of the PCI configuration ports.
    pub pci: PciPorts,
    /// The frame of its `shared_info`.
    pub shared_info: Mfn,
    /// Its vCPUs, all made when the domain is.
    pub vcpus: Vec<Vcpu>,
    /// What CPUID shows it.
    pub cpuid: CpuidPolicy,
    /// What MSRs show it.
    pub msrs: MsrPolicy,
    /// Its watchdogs.
    pub watchdogs: Watchdogs,
    /// `vm_assist` bits that are on.
    pub assists: AtomicU64,
}

impl Domain {
    /// Its vCPU `id`.
    #[inline]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Vcpu> {
        self.vcpus.get(id.0 as usize)
    }

    /// True if `vm_assist` type `kind` is on.
    #[inline]
    pub fn assist(&self, kind: u32) -> bool {
        self.assists.load(Ordering::Relaxed) & (1 << kind) != 0
    }

    /// Stops the domain for `reason`; the hardware domain takes the machine with it.
    pub fn shut_down(&self, reason: ShutdownReason) {
        if !self.life.shut_down(reason) {
            return;
        }
        if self.id == DomId::DOM0 {
            crate::power::dom0_stopped(reason);
        }
        for vcpu in &self.vcpus {
            crate::schedule::pause(self, vcpu.id);
        }
        if let Some(dom0) = find(DomId::DOM0) {
            dom0.events
                .raise_global_virq(&Hv, philoxen_abi::event::virq::DOM_EXC);
        }
    }
}

static DOMAINS: RwLock<BTreeMap<DomId, Arc<Domain>>> = RwLock::new(BTreeMap::new());

/// Domain `id`, if there is one.
pub fn find(id: DomId) -> Option<Arc<Domain>> {
    DOMAINS.read().get(&id).cloned()
}

/// Adds a domain to the list.
pub fn add(domain: Arc<Domain>) {
    DOMAINS.write().insert(domain.id, domain);
}

/// All domains, in order of their identifiers.
pub fn all() -> Vec<Arc<Domain>> {
    DOMAINS.read().values().cloned().collect()
}
