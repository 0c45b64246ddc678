// SPDX-License-Identifier: MIT OR Apache-2.0
//! Domains: what they consist of, the list of them, and how they stop.
//!
//! A domain lives as long as somebody holds it (`Arc`): the list, a processor that runs one of its vCPUs, a request in
//! progress. Lock order: the list, then locks inside a domain; the list is never held while a domain is worked on.

use crate::host::Hv;
use crate::irq::DomainPirqs;
use crate::lifecycle::Tool;
use crate::policy::CpuPolicy;
use crate::vcpu::Vcpu;
use crate::watchdog::Watchdogs;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use philoxen_abi::{DomId, Errno, Mfn, Result, VcpuId};
use philoxen_domain::lifecycle::{Lifecycle, ShutdownReason};
use philoxen_evtchn::{DomainEvents, Limits};
use philoxen_grant::GrantTable;
use philoxen_hw::memory;
use philoxen_paging::{DomainMemory, reservation, validate};
use philoxen_physdev::pci_ports::PciPorts;
use spin::{Once, RwLock};

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
    /// Its grant table, and what it has mapped of others'.
    pub grants: Arc<GrantTable>,
    /// Its physical interrupts.
    pub pirqs: DomainPirqs,
    /// Its latch of the PCI configuration ports.
    pub pci: PciPorts,
    /// The frame of its `shared_info`.
    pub shared_info: Mfn,
    /// Its vCPUs, all made at once.
    vcpus: Once<Vec<Arc<Vcpu>>>,
    /// What the processor shows it.
    pub policy: RwLock<CpuPolicy>,
    /// What the toolstack keeps about it.
    pub tool: Tool,
    /// Its watchdogs.
    pub watchdogs: Watchdogs,
    /// `vm_assist` bits that are on.
    pub assists: AtomicU64,
}

/// What a domain is made with.
pub struct Config {
    /// Its identifier.
    pub id: DomId,
    /// It may control the machine and other domains.
    pub privileged: bool,
    /// Frames it may have; `u64::MAX` is no limit.
    pub max_pages: u64,
    /// Most vCPUs.
    pub max_vcpus: u32,
    /// Highest event-channel port.
    pub max_port: u32,
    /// How big its grant table may become.
    pub grants: philoxen_grant::Limits,
    /// Its physical interrupts.
    pub pirqs: DomainPirqs,
    /// What the toolstack keeps about it.
    pub tool: Tool,
    /// Pauses by the toolstack that it begins with.
    pub pauses: u32,
}

impl Domain {
    /// A domain under construction, without vCPUs and memory, and not yet on the list.
    ///
    /// # Errors
    /// `ENOMEM`, or `EINVAL` for limits that cannot be.
    #[inline(never)]
    pub fn new(config: Config) -> Result<Arc<Self>> {
        // Some of what it is made of cannot be refused any more once it was begun.
        if memory::is_scarce() {
            return Err(Errno::ENOMEM);
        }
        let Config { id, pirqs, .. } = config;
        let memory = DomainMemory::new(id, config.privileged, config.max_pages);
        let limits = Limits {
            vcpus: config.max_vcpus,
            max_port: config.max_port,
            pirqs: pirqs.nr_pirqs(),
        };
        let shared_info = reservation::alloc_shared(Hv, &memory).ok_or(Errno::ENOMEM)?;
        memory.set_shared_info(shared_info);
        let events = DomainEvents::new(id, shared_info, limits)
            .inspect_err(|_| validate::put_page(Hv, shared_info))?;
        let cpuid = crate::policy::default(id == DomId::DOM0).clone();
        Ok(Arc::new(Self {
            id,
            privileged: config.privileged,
            life: Lifecycle::new(config.pauses),
            memory,
            events,
            grants: Arc::new(GrantTable::new(id, config.grants)),
            pirqs,
            pci: PciPorts::new(),
            shared_info,
            vcpus: Once::new(),
            policy: RwLock::new(CpuPolicy::new(cpuid)),
            tool: config.tool,
            watchdogs: Default::default(),
            assists: AtomicU64::new(0),
        }))
    }

    /// Its vCPU `id`.
    #[inline]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Arc<Vcpu>> {
        self.vcpus.get()?.get(id.0 as usize)
    }

    /// Its vCPUs; none until they are made.
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        self.vcpus.get().map_or(&[], Vec::as_slice)
    }

    /// Gives the domain its vCPUs; false if it has some already.
    pub fn set_vcpus(&self, vcpus: Vec<Arc<Vcpu>>) -> bool {
        let mut given = false;
        self.vcpus.call_once(|| {
            given = true;
            vcpus
        });
        given
    }

    /// True if `vm_assist` type `kind` is on.
    #[inline]
    pub fn assist(&self, kind: u32) -> bool {
        self.assists.load(Ordering::Relaxed) & (1 << kind) != 0
    }

    /// Stops the domain for `reason`; the hardware domain takes the machine with it.
    pub fn shut_down(&self, reason: ShutdownReason) {
        let stop = || {
            if self.id == DomId::DOM0 {
                crate::power::dom0_stopped(reason);
            }
            crate::schedule::pause_all(self);
            // Who is told that it shut down finds it standing still.
            crate::lifecycle::wait_stopped(self);
        };
        if !self.life.shut_down(reason, stop) {
            return;
        }
        if let Some(dom0) = find(DomId::DOM0) {
            dom0.events
                .raise_global_virq(&Hv, philoxen_abi::event::virq::DOM_EXC);
        }
    }
}

impl Drop for Domain {
    /// Gives back what only a domain that nobody can name any more does not need.
    fn drop(&mut self) {
        validate::put_page(Hv, self.shared_info);
    }
}

static DOMAINS: RwLock<BTreeMap<DomId, Arc<Domain>>> = RwLock::new(BTreeMap::new());

/// Domain `id`, if there is one.
pub fn find(id: DomId) -> Option<Arc<Domain>> {
    DOMAINS.read().get(&id).cloned()
}

/// Adds a domain to the list; false if its number is taken.
pub fn add(domain: Arc<Domain>) -> bool {
    let mut list = DOMAINS.write();
    if list.contains_key(&domain.id) {
        return false;
    }
    list.insert(domain.id, domain);
    true
}

/// Takes a domain off the list.
pub fn remove(domain: &Domain) {
    let removed = DOMAINS.write().remove(&domain.id);
    // Dropped without the lock, as that may free it.
    drop(removed);
}

/// The first domain with a number of at least `id`.
pub fn at_or_after(id: DomId) -> Option<Arc<Domain>> {
    let list = DOMAINS.read();
    list.range(id..).next().map(|(_, domain)| domain.clone())
}

/// All domains, in order of their identifiers.
pub fn all() -> Vec<Arc<Domain>> {
    DOMAINS.read().values().cloned().collect()
}
