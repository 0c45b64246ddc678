// SPDX-License-Identifier: MIT OR Apache-2.0
//! What domains see of the processor: the policies that this machine allows, and the one each domain has.

use crate::time;
use core::sync::atomic::{AtomicBool, Ordering};
use philoxen_abi::arch::CpuidRegs;
use philoxen_abi::version;
use philoxen_domain::clock::Scale;
use philoxen_hw::cpu::{asm, features};
use philoxen_hw::{dev, memory};
use philoxen_pv::cpuid::{CpuidConfig, CpuidPolicy};
use philoxen_pv::msr::MsrPolicy;
use spin::Once;

/// What CPUID and MSRs show a domain.
#[derive(Debug)]
pub struct CpuPolicy {
    /// CPUID.
    pub cpuid: CpuidPolicy,
    /// MSRs.
    pub msrs: MsrPolicy,
}

impl CpuPolicy {
    /// The policy that goes with this CPUID.
    pub fn new(cpuid: CpuidPolicy) -> Self {
        Self {
            msrs: MsrPolicy::new(&cpuid),
            cpuid,
        }
    }
}

/// Domain 0 does not see XSAVE (`dom0-cpuid=no-xsave`).
static DOM0_NO_XSAVE: AtomicBool = AtomicBool::new(false);

/// Hides XSAVE from Domain 0; to be called before it is made.
pub fn hide_xsave_from_dom0() {
    DOM0_NO_XSAVE.store(true, Ordering::Relaxed);
}

/// The policies of ordinary domains and of the hardware domain, found out when Domain 0 is made: one of the questions
/// costs the processor a segment register, which no guest uses then.
static DEFAULTS: Once<[(CpuidConfig, CpuidPolicy); 2]> = Once::new();

fn defaults(hardware_domain: bool) -> &'static (CpuidConfig, CpuidPolicy) {
    let [ordinary, hardware] = DEFAULTS.call_once(|| {
        [false, true].map(|hardware_domain| {
            let config = make_config(hardware_domain);
            (config, CpuidPolicy::new(&config, host))
        })
    });
    if hardware_domain { hardware } else { ordinary }
}

/// The most a domain may be shown; the hardware domain sees some more of the machine.
pub fn default(hardware_domain: bool) -> &'static CpuidPolicy {
    &defaults(hardware_domain).1
}

/// What policies of this machine are made from.
pub fn config(hardware_domain: bool) -> &'static CpuidConfig {
    &defaults(hardware_domain).0
}

/// The processor's own answer.
fn host(leaf: u32, subleaf: u32) -> CpuidRegs {
    let [a, b, c, d] = asm::cpuid(leaf, subleaf);
    CpuidRegs { a, b, c, d }
}

fn make_config(hardware_domain: bool) -> CpuidConfig {
    let hz = dev::timer::tsc_hz();
    let scale = Scale::from_frequency(hz);
    let hide_xsave = hardware_domain && DOM0_NO_XSAVE.load(Ordering::Relaxed);
    CpuidConfig {
        hardware_domain,
        xcr0: if hide_xsave {
            0
        } else {
            features::xcr0_supported()
        },
        fsgsbase: false,
        null_clears_base: features::null_clears_base(),
        tsc_reliable: time::counters_agree(),
        tsc_khz: u32::try_from(hz / 1000).unwrap_or(u32::MAX),
        tsc_scale: (scale.mul, scale.shift),
        machine_address_bits: memory::address_bits(),
        version: version::VERSION,
    }
}
