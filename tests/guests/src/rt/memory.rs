// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the domain builder gave us: start_info, the P2M list, the initial mapping; and pages for tests to use.
//!
//! The initial mapping is 1:1 from `VIRT_BASE`, so the page at `VIRT_BASE + n * 4096` was pseudo-physical frame `n` to begin with, and
//! page tables can be walked through it.

use super::{cell::Racy, hyper};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use philoxen_abi::addr::HYPERVISOR_START;

/// Start of the initial mapping.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The flat code selector of the hypervisor's part of the GDT.
pub const KERNEL_CS: u64 = 0xe033;
/// The flat data selector of the hypervisor's part of the GDT.
pub const KERNEL_SS: u64 = 0xe02b;

/// Page-table entry bits.
pub mod pte {
    /// Present.
    pub const P: u64 = 1;
    /// Writable.
    pub const W: u64 = 2;
    /// User: every guest mapping has it.
    pub const U: u64 = 4;
    /// Accessed.
    pub const A: u64 = 0x20;
    /// Dirty.
    pub const D: u64 = 0x40;
    /// Large page (levels 2 and 3).
    pub const PSE: u64 = 0x80;
    /// Global.
    pub const G: u64 = 0x100;
    /// No execute.
    pub const NX: u64 = 1 << 63;
    /// Read-only leaf.
    pub const RO: u64 = P | U | A;
    /// Writable leaf or table entry.
    pub const RW: u64 = P | W | U | A | D;
    /// The bits that name a frame.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
}

/// The part of `struct start_info` that tests use.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names are the interface's")]
pub struct StartInfo {
    pub address: u64,
    pub magic: [u8; 32],
    pub nr_pages: u64,
    pub shared_info: u64,
    pub flags: u32,
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    pub mfn_list: u64,
    pub mod_start: u64,
    pub mod_len: u64,
    pub first_p2m_pfn: u64,
    pub nr_p2m_frames: u64,
}

static START: Racy<Option<StartInfo>> = Racy::new(None);
/// Where this vCPU's `vcpu_info` is mapped.
static VCPU_INFO: AtomicU64 = AtomicU64::new(0);

/// The `u64` at `va`, which must be mapped.
pub fn read(va: u64) -> u64 {
    // SAFETY: the caller names memory of this kernel; a wrong address faults into the handler, which reports it.
    unsafe { (va as *const u64).read_volatile() }
}

/// Writes the `u64` at `va`, which must be mapped writable and not be in use by Rust code.
pub fn write(va: u64, value: u64) {
    // SAFETY: as in `read`; test pages and shared pages are never Rust references.
    unsafe { (va as *mut u64).write_volatile(value) };
}

/// The word at `va` as an atomic.
pub fn atomic(va: u64) -> &'static AtomicU64 {
    // SAFETY: callers name shared or test pages, which are mapped for good and only reached by such accesses.
    unsafe { AtomicU64::from_ptr(va as *mut u64) }
}

fn atomic_byte(va: u64) -> &'static AtomicU8 {
    // SAFETY: as in `atomic`.
    unsafe { AtomicU8::from_ptr(va as *mut u8) }
}

/// What the builder told us.
pub fn start() -> StartInfo {
    START.get().expect("start_info was read at entry")
}

/// Reads start_info and maps the shared-info page.
pub fn init(address: u64) {
    let field = |offset: u64| read(address + offset);
    let mut magic = [0; 32];
    for (index, word) in magic.chunks_mut(8).enumerate() {
        word.copy_from_slice(&field(index as u64 * 8).to_le_bytes());
    }
    let info = StartInfo {
        address,
        magic,
        nr_pages: field(32),
        shared_info: field(40),
        flags: field(48) as u32,
        pt_base: field(88),
        nr_pt_frames: field(96),
        mfn_list: field(104),
        mod_start: field(112),
        mod_len: field(120),
        first_p2m_pfn: field(1152),
        nr_p2m_frames: field(1160),
    };
    START.replace(Some(info));
    let result = hyper::update_va_mapping(shared_info(), info.shared_info | pte::RW, 2);
    assert_eq!(result, 0, "mapping the shared-info page");
    VCPU_INFO.store(shared_info(), Relaxed);
}

/// Copies the command line; `None` if it is not terminated.
pub fn command_line(buffer: &mut [u8; 1024]) -> Option<&str> {
    let address = start().address + 128;
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (read(address + index as u64 / 8 * 8) >> (index % 8 * 8)) as u8;
    }
    let length = buffer.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(buffer.get(..length)?).ok()
}

/// A page of the kernel's image, for the pool and the shared-info window.
#[repr(C, align(4096))]
struct RawPage(UnsafeCell<[u8; 4096]>);
// SAFETY: only reached through addresses, as volatile or atomic words.
unsafe impl Sync for RawPage {}
impl RawPage {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; 4096]))
    }
}

static SHARED_WINDOW: RawPage = RawPage::new();
/// Pages that tests take from.
const POOL_PAGES: usize = 1024;
static POOL: [RawPage; POOL_PAGES] = [const { RawPage::new() }; POOL_PAGES];
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

/// Where the shared-info page is mapped.
pub fn shared_info() -> u64 {
    &raw const SHARED_WINDOW as u64
}

/// Where this vCPU's `vcpu_info` is mapped.
pub fn vcpu_info() -> u64 {
    VCPU_INFO.load(Relaxed)
}

/// Uses another place for `vcpu_info` from now on.
pub fn set_vcpu_info(va: u64) {
    VCPU_INFO.store(va, Relaxed);
}

/// `evtchn_upcall_mask`.
pub fn upcall_mask() -> u8 {
    atomic_byte(vcpu_info() + 1).load(Relaxed)
}

/// Sets `evtchn_upcall_mask`.
pub fn set_upcall_mask(mask: u8) {
    atomic_byte(vcpu_info() + 1).store(mask, Relaxed);
}

/// `evtchn_upcall_pending`, cleared by reading.
pub fn take_upcall_pending() -> u8 {
    atomic_byte(vcpu_info()).swap(0, Relaxed)
}

/// `evtchn_upcall_pending`.
pub fn upcall_pending() -> u8 {
    atomic_byte(vcpu_info()).load(Relaxed)
}

/// `vcpu_info.arch.cr2`.
pub fn cr2() -> u64 {
    read(vcpu_info() + 16)
}

/// Machine frame of pseudo-physical frame `pfn`.
pub fn p2m(pfn: u64) -> u64 {
    assert!(pfn < start().nr_pages, "frame number {pfn:#x}");
    read(start().mfn_list + pfn * 8)
}

/// Changes the P2M list.
pub fn set_p2m(pfn: u64, mfn: u64) {
    assert!(pfn < start().nr_pages, "frame number {pfn:#x}");
    write(start().mfn_list + pfn * 8, mfn);
}

/// Pseudo-physical frame of machine frame `mfn` by the hypervisor's table.
pub fn m2p(mfn: u64) -> u64 {
    read(HYPERVISOR_START + mfn * 8)
}

/// One level of a walk: machine address of the entry, and the entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Machine address of the entry.
    pub ma: u64,
    /// Its value.
    pub value: u64,
}

impl Entry {
    /// The frame that the entry names.
    pub fn mfn(self) -> u64 {
        (self.value & pte::FRAME) >> 12
    }
}

/// Index into the table of `level` (1 to 4) for `va`.
pub fn index(va: u64, level: u32) -> u64 {
    va >> (12 + 9 * (level - 1)) & 0x1ff
}

/// The frame of our first top-level table.
pub fn root() -> u64 {
    p2m((start().pt_base - VIRT_BASE) >> 12)
}

/// The entry of `level` that maps `va`, by the tables that the builder made.
pub fn walk(va: u64, level: u32) -> Entry {
    let mut table = root();
    let mut at = 4;
    loop {
        let ma = (table << 12) + index(va, at) * 8;
        let value = read(VIRT_BASE + (m2p(table) << 12) + index(va, at) * 8);
        let entry = Entry { ma, value };
        if at == level {
            return entry;
        }
        assert!(value & pte::P != 0, "no level {at} entry for {va:#x}");
        (table, at) = (entry.mfn(), at - 1);
    }
}

/// A page of the pool: its address, and (as long as nothing else is mapped there) its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(pub u64);

impl Page {
    /// Takes a fresh page, all zero, mapped writable.
    pub fn take() -> Self {
        Self::take_many(1)
    }
    /// Takes `count` pages in a row; the first is returned.
    pub fn take_many(count: usize) -> Self {
        let first = POOL_USED.fetch_add(count, Relaxed);
        assert!(
            first + count <= POOL_PAGES,
            "the pool of test pages is used up"
        );
        Self(&raw const POOL as u64 + first as u64 * PAGE)
    }
    /// The `n`th page after this one.
    pub fn plus(self, n: u64) -> Self {
        Self(self.0 + n * PAGE)
    }
    /// Its pseudo-physical frame.
    pub fn pfn(self) -> u64 {
        (self.0 - VIRT_BASE) >> 12
    }
    /// Its machine frame by the P2M list.
    pub fn mfn(self) -> u64 {
        p2m(self.pfn())
    }
    /// Machine address of the entry that maps it.
    pub fn pte_ma(self) -> u64 {
        walk(self.0, 1).ma
    }
    /// The entry that maps it.
    pub fn pte(self) -> u64 {
        walk(self.0, 1).value
    }
    /// Maps `mfn` here with `flags` and flushes the address.
    pub fn map(self, mfn: u64, flags: u64) -> i64 {
        hyper::update_va_mapping(self.0, mfn << 12 | flags, 2)
    }
    /// Makes the page read-only.
    pub fn protect(self) -> i64 {
        self.map(self.mfn(), pte::RO)
    }
    /// Maps the page's own frame writable again.
    pub fn restore(self) -> i64 {
        self.map(self.mfn(), pte::RW)
    }
    /// Takes the mapping away.
    pub fn unmap(self) -> i64 {
        hyper::update_va_mapping(self.0, 0, 2)
    }
    /// Word `n` of the page.
    pub fn word(self, n: u64) -> u64 {
        read(self.0 + n * 8)
    }
    /// Sets word `n`.
    pub fn set_word(self, n: u64, value: u64) {
        write(self.0 + n * 8, value);
    }
    /// Sets every word.
    pub fn fill(self, value: u64) {
        (0..512).for_each(|n| self.set_word(n, value));
    }
    /// Machine address of word `n`.
    pub fn ma(self, n: u64) -> u64 {
        (self.mfn() << 12) + n * 8
    }
}
