// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control of other domains from bare hands: requests as words, with the offsets that xen/domctl.h gives.

use super::hyper;
use super::memory::{Page, pte};
use philoxen_abi::hypercall as nr;

const DOMCTL_VERSION: u64 = 0x15;
const SYSCTL_VERSION: u64 = 0x15;
const PHYSINFO: u64 = 3;
const DEBUG_KEYS: u64 = 7;
const GETDOMAININFO: u64 = 5;
const CREATEDOMAIN: u64 = 1;

/// `struct xen_domctl`: command and version, domain, and sixteen words of record.
pub type Request = [u64; 18];

/// A request about `domain` whose record begins with `record`.
pub fn request(cmd: u64, domain: u16, record: &[u64]) -> Request {
    let mut request = [0; 18];
    request[0] = cmd | DOMCTL_VERSION << 32;
    request[1] = domain.into();
    request[2..2 + record.len()].copy_from_slice(record);
    request
}

/// Makes a request, until it is not to be repeated any more.
pub fn make(request: &mut Request) -> i64 {
    hyper::call(nr::DOMCTL, [hyper::address(request), 0, 0, 0, 0])
}

/// `domctl(cmd)` about `domain`.
pub fn domctl(cmd: u64, domain: u16, record: &[u64]) -> i64 {
    make(&mut request(cmd, domain, record))
}

/// `createdomain` with number `domain` (0: any), one vCPU and these flags: result and number.
pub fn create(domain: u16, flags: u64) -> (i64, u16) {
    let mut record = [0; 8];
    // ssidref and handle are 0; flags at 20, max_vcpus at 28, max_evtchn_port at 32.
    record[2] = flags << 32;
    record[3] = 1 << 32;
    // Default sizes of the grant tables (-1 at 36 and 40), version 1 at 44.
    record[4] = 127 | 0xffff_ffff << 32;
    record[5] = 0xffff_ffff | 1 << 32;
    let mut request = request(CREATEDOMAIN, domain, &record);
    (make(&mut request), request[1] as u16)
}

/// What `getdomaininfo` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// `XEN_DOMINF_*`.
    pub flags: u32,
    /// Pages it has.
    pub pages: u64,
    /// Frame of its `shared_info`.
    pub shared_info: u64,
}

/// The domain with number `domain`, if there is one.
pub fn info(domain: u16) -> Option<Info> {
    let mut request = request(GETDOMAININFO, domain, &[]);
    let result = make(&mut request);
    let record = &request[2..];
    (result == 0 && request[1] as u16 == domain).then_some(Info {
        flags: (record[0] >> 32) as u32,
        pages: record[1],
        shared_info: record[6],
    })
}

/// Free pages of the machine (`XEN_SYSCTL_physinfo`).
pub fn free_pages() -> u64 {
    let mut request = [0; 18];
    request[0] = PHYSINFO | SYSCTL_VERSION << 32;
    let result = hyper::call(nr::SYSCTL, [hyper::address(&mut request), 0, 0, 0, 0]);
    assert_eq!(result, 0, "physinfo");
    request[1 + 6]
}

/// Types `key` on the hypervisor's console (`XEN_SYSCTL_debug_keys`).
pub fn debug_key(mut key: u8) -> i64 {
    let mut request = [0; 18];
    request[0] = DEBUG_KEYS | SYSCTL_VERSION << 32;
    request[1] = hyper::address(&mut key);
    request[2] = 1;
    hyper::call(nr::SYSCTL, [hyper::address(&mut request), 0, 0, 0, 0])
}

/// Takes `N` pages for `domain`; their frames.
pub fn populate<const N: usize>(domain: u16) -> Option<[u64; N]> {
    let mut list = core::array::from_fn(|pfn| pfn as u64);
    let mut reservation = hyper::Reservation {
        extents: list.as_mut_ptr() as u64,
        count: N as u64,
        domid: domain,
        ..hyper::Reservation::default()
    };
    (hyper::memory_op(6, &mut reservation) == N as i64).then_some(list)
}

/// Maps frame `mfn` of `domain` at `page`.
pub fn map_foreign(page: Page, domain: u16, mfn: u64, flags: u64) -> i64 {
    let args = [page.0, mfn << 12 | flags, 2, domain.into(), 0];
    hyper::call(nr::UPDATE_VA_MAPPING_OTHERDOMAIN, args)
}

/// Writes words into frame `mfn` of `domain` through `window`; false if it cannot be mapped.
pub fn fill(window: Page, domain: u16, mfn: u64, words: &[(u64, u64)]) -> bool {
    if map_foreign(window, domain, mfn, pte::RW) != 0 {
        return false;
    }
    for &(index, value) in words {
        window.set_word(index, value);
    }
    window.unmap() == 0
}
