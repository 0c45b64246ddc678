// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a new domain may be, and its number.

use core::sync::atomic::{AtomicU16, Ordering};
use philoxen_abi::domctl::{CreateDomain, MISC_MSR_RELAXED, cdf};
use philoxen_abi::{DomId, Errno, Result};

/// Most vCPUs of a domain that tools make.
pub const MAX_VCPUS: u32 = 512;
/// Highest grant-table version.
const GRANT_VERSION: u32 = 2;

/// A creation record that was found sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// UUID.
    pub handle: [u8; 16],
    /// It is the xenstore's domain.
    pub xenstore: bool,
    /// Its processor pool, if there is such a one.
    pub pool: u32,
    /// Most vCPUs.
    pub max_vcpus: u32,
    /// Highest event-channel port.
    pub max_port: u32,
    /// Most grant-table frames, if limited.
    pub grant_frames: Option<u32>,
    /// Most maptrack frames, if limited.
    pub maptrack_frames: Option<u32>,
    /// Highest grant-table version, 1 or 2; 0 for no grant table.
    pub grant_version: u32,
}

/// A creation record that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the tool is told.
    pub errno: Errno,
    /// What the console is told: tools show the number only.
    pub why: &'static str,
}

/// Checks a creation record.
///
/// # Errors
/// `EINVAL` for what a PV domain cannot be or have, `EOPNOTSUPP` without an IOMMU.
pub fn check(request: &CreateDomain) -> core::result::Result<Wanted, Refused> {
    let version = request.grant_opts & 0xf;
    let flags = cdf::XS_DOMAIN | cdf::OOS_OFF;
    let rules = [
        (
            request.flags & cdf::IOMMU != 0 || request.iommu_opts != 0,
            Errno::EOPNOTSUPP,
            "there is no IOMMU for it",
        ),
        (
            request.flags & cdf::HVM != 0,
            Errno::EINVAL,
            "only PV domains can be made",
        ),
        (
            request.flags & !flags != 0,
            Errno::EINVAL,
            "it has an unknown flag",
        ),
        (
            request.max_vcpus == 0 || request.max_vcpus > MAX_VCPUS,
            Errno::EINVAL,
            "a domain has 1 to 512 vCPUs",
        ),
        (
            request.vmtrace_size != 0,
            Errno::EINVAL,
            "vCPUs cannot be traced",
        ),
        (
            request.grant_opts & !0xf != 0 || version > GRANT_VERSION,
            Errno::EINVAL,
            "grant tables have version 1 or 2",
        ),
        (
            request.arch.emulation_flags != 0 || request.arch.misc_flags & !MISC_MSR_RELAXED != 0,
            Errno::EINVAL,
            "PV domains have no emulated devices",
        ),
    ];
    if let Some((_, errno, why)) = rules.into_iter().find(|(broken, ..)| *broken) {
        return Err(Refused { errno, why });
    }
    Ok(Wanted {
        handle: request.handle,
        xenstore: request.flags & cdf::XS_DOMAIN != 0,
        pool: request.cpupool_id,
        max_vcpus: request.max_vcpus,
        max_port: request.max_evtchn_port,
        grant_frames: u32::try_from(request.max_grant_frames).ok(),
        maptrack_frames: u32::try_from(request.max_maptrack_frames).ok(),
        grant_version: version,
    })
}

/// Gives numbers to domains: a used number comes again only after all others.
#[derive(Debug)]
pub struct Numbers(AtomicU16);

impl Numbers {
    /// Starts at 1.
    pub const fn new() -> Self {
        Self(AtomicU16::new(1))
    }

    /// A number that is not `taken`: `wanted`, or the next one if that is 0 or reserved.
    ///
    /// # Errors
    /// `EEXIST` if the wanted one is taken, `ENOMEM` if all are.
    pub fn choose(&self, wanted: DomId, taken: impl Fn(DomId) -> bool) -> Result<DomId> {
        if wanted != DomId::DOM0 && wanted < DomId::FIRST_RESERVED {
            return if taken(wanted) {
                Err(Errno::EEXIST)
            } else {
                Ok(wanted)
            };
        }
        let start = self.0.load(Ordering::Relaxed);
        let id = (start..DomId::FIRST_RESERVED.0)
            .chain(1..start)
            .map(DomId)
            .find(|&id| !taken(id))
            .ok_or(Errno::ENOMEM)?;
        let next = id.0.wrapping_add(1);
        self.0.store(
            if next < DomId::FIRST_RESERVED.0 {
                next
            } else {
                1
            },
            Ordering::Relaxed,
        );
        Ok(id)
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use philoxen_abi::domctl::ArchConfig;

    const PLAIN: CreateDomain = CreateDomain {
        ssidref: 0,
        handle: [7; 16],
        flags: 0,
        iommu_opts: 0,
        max_vcpus: 2,
        max_evtchn_port: 1023,
        max_grant_frames: -1,
        max_maptrack_frames: 1024,
        grant_opts: 2,
        vmtrace_size: 0,
        cpupool_id: 0,
        arch: ArchConfig {
            emulation_flags: 0,
            misc_flags: 0,
        },
    };

    #[test]
    fn records() {
        let wanted = check(&PLAIN).unwrap();
        assert_eq!((wanted.max_vcpus, wanted.max_port), (2, 1023));
        assert_eq!(
            (wanted.grant_frames, wanted.maptrack_frames),
            (None, Some(1024))
        );
        let cases = [
            (
                CreateDomain {
                    flags: cdf::HVM,
                    ..PLAIN
                },
                Errno::EINVAL,
            ),
            (
                CreateDomain {
                    flags: cdf::IOMMU,
                    ..PLAIN
                },
                Errno::EOPNOTSUPP,
            ),
            (
                CreateDomain {
                    flags: 1 << 31,
                    ..PLAIN
                },
                Errno::EINVAL,
            ),
            (
                CreateDomain {
                    max_vcpus: 0,
                    ..PLAIN
                },
                Errno::EINVAL,
            ),
            (
                CreateDomain {
                    max_vcpus: MAX_VCPUS + 1,
                    ..PLAIN
                },
                Errno::EINVAL,
            ),
            (
                CreateDomain {
                    grant_opts: 3,
                    ..PLAIN
                },
                Errno::EINVAL,
            ),
            (
                CreateDomain {
                    grant_opts: 0x12,
                    ..PLAIN
                },
                Errno::EINVAL,
            ),
            (
                CreateDomain {
                    vmtrace_size: 4096,
                    ..PLAIN
                },
                Errno::EINVAL,
            ),
        ];
        for (request, errno) in cases {
            let refused = check(&request).unwrap_err();
            assert_eq!(refused.errno, errno, "{request:?}");
        }
    }

    #[test]
    fn numbers_come_round_last() {
        let numbers = Numbers::new();
        let none = |_: DomId| false;
        assert_eq!(numbers.choose(DomId(0), none), Ok(DomId(1)));
        assert_eq!(numbers.choose(DomId(0x7ff4), none), Ok(DomId(2)));
        assert_eq!(numbers.choose(DomId(1), none), Ok(DomId(1)));
        assert_eq!(numbers.choose(DomId(5), |id| id.0 == 5), Err(Errno::EEXIST));
        assert_eq!(
            numbers.choose(DomId(0), |id| id.0 != 0x7fef),
            Ok(DomId(0x7fef))
        );
        assert_eq!(numbers.choose(DomId(0), |id| id.0 < 9), Ok(DomId(9)));
        assert_eq!(numbers.choose(DomId(0), |_| true), Err(Errno::ENOMEM));
    }
}
