// SPDX-License-Identifier: MIT OR Apache-2.0
//! [`Hv`]: what the policy crates ask of the hypervisor, answered from the hardware crate and the domain list.

use crate::domain::{self, Domain};
use crate::schedule;
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use core::ops::Deref;
use philoxen_abi::addr::GuestWords;
use philoxen_abi::{DomId, Mfn, Result, VcpuId};
use philoxen_evtchn::{DomainEvents, Frames, Host, VcpuInfo, Words};
use philoxen_grant::GrantTable;
use philoxen_hw::cpu::{guest::LoadedGuest, state};
use philoxen_hw::memory;
use philoxen_pv::KernelEntry;

/// The hypervisor as the policy crates see it. It has no state of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hv;

/// The same, by the name that reads better where frames are meant.
pub const FRAMES: Hv = Hv;

/// A domain held while its events are used.
pub struct EventsOf(Arc<Domain>);

impl Deref for EventsOf {
    type Target = DomainEvents;
    fn deref(&self) -> &DomainEvents {
        &self.0.events
    }
}

impl Frames for Hv {
    #[inline(always)]
    fn words(&self, mfn: Mfn) -> &Words {
        memory::words_or_scratch(mfn)
    }

    fn pin(&self, dom: DomId, mfn: Mfn) -> Result<()> {
        crate::paging::get_writable(dom, mfn)
    }

    fn unpin(&self, _dom: DomId, mfn: Mfn) {
        crate::paging::put_writable(mfn);
    }
}

impl Host for Hv {
    type Ref<'a> = EventsOf;

    fn domain(&self, id: DomId) -> Option<EventsOf> {
        domain::find(id).map(EventsOf)
    }

    #[inline]
    fn kick(&self, dom: DomId, vcpu: VcpuId) {
        schedule::kick(dom, vcpu);
    }

    fn pirq_permitted(&self, dom: DomId, pirq: u32) -> bool {
        domain::find(dom).is_some_and(|domain| crate::irq::pirq_permitted(&domain, pirq))
    }

    fn bind_pirq(&self, dom: DomId, pirq: u32, share: bool) -> Result<()> {
        crate::irq::bind_pirq(dom, pirq, share)
    }

    fn unbind_pirq(&self, dom: DomId, pirq: u32) {
        crate::irq::unbind_pirq(dom, pirq);
    }

    fn route_pirq(&self, dom: DomId, pirq: u32, vcpu: VcpuId) {
        crate::irq::route_pirq(dom, pirq, vcpu);
    }
}

impl philoxen_grant::Host for Hv {
    fn table(&self, id: DomId) -> Option<Arc<GrantTable>> {
        domain::find(id).map(|domain| domain.grants.clone())
    }

    #[inline]
    fn copy(&self, to: (Mfn, u64), from: (Mfn, u64), len: u64) {
        memory::copy_between_frames(to, from, len);
    }

    fn released(&self, granter: DomId) {
        // If somebody else saw the end of its destruction first, the number may be another domain's by now.
        if let Some(domain) = domain::find(granter)
            && domain.life.is_dying()
        {
            crate::lifecycle::destroy(&domain, &mut crate::syscall::budget());
        }
    }
}

/// Loads the page-table root of the mode a vCPU is in.
#[inline(always)]
pub fn load_root(vcpu: &Vcpu, in_kernel: bool) {
    let root = if in_kernel {
        vcpu.roots.kernel()
    } else {
        vcpu.roots.user()
    };
    philoxen_hw::machine::load_root(root);
}

/// How the running vCPU's kernel is entered.
pub struct GuestEntry<'a> {
    /// Its shared part.
    pub vcpu: &'a Vcpu,
    /// Its `vcpu_info`.
    pub info: VcpuInfo<'static>,
}

impl KernelEntry for GuestEntry<'_> {
    #[inline(always)]
    fn upcall_masked(&self) -> bool {
        self.info.upcall_masked()
    }

    #[inline(always)]
    fn mask_upcalls(&mut self) {
        self.info.set_upcall_mask(true);
    }

    #[inline(always)]
    fn switch_to_kernel(&mut self) {
        load_root(self.vcpu, true);
        state::swap_gs();
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, at: GuestWords<N>, words: [u64; N]) -> bool {
        LoadedGuest.store(at, words)
    }
}
