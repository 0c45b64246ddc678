// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where everything of a new domain goes (xen/xen.h, "start of day memory layout"): a pure function.
//!
//! The initial region is a 1:1 map of PFNs from 0 at VIRT_BASE: kernel, ramdisk and phys-to-machine list (unless the
//! kernel's notes place them elsewhere), start_info, for a domU its xenstore and console pages, page tables, stack, and
//! slack to a 4 MiB boundary. Behind it follow, unmapped, the ramdisk and the list with the tables that map it.
//!
//! Invariants: parts do not overlap, follow each other in PFN order, and lie below `nr_pages`; no mapped address is in the
//! hypervisor's range.

use crate::{BuildError, Kernel};
use philoxen_abi::{
    PAGE_SHIFT, PAGE_SIZE, Pfn,
    addr::{HYPERVISOR_END, HYPERVISOR_START, is_canonical},
    start_info::{MAX_GUEST_CMDLINE, VgaConsoleInfo},
};

/// The initial region ends on a multiple of this.
const REGION_ALIGN: u64 = 4 << 20;
/// Least room behind the stack within the region.
const SLACK: u64 = 512 << 10;
/// Most pages of a domain: 64 TiB, whose list still fits in one L4 entry's range.
const MAX_PAGES: u64 = 1 << 34;

/// Which kind of domain to build.
#[derive(Clone, Copy, Debug)]
pub enum Flavour {
    /// The privileged first domain.
    Dom0 {
        /// The screen it takes over.
        vga: Option<VgaConsoleInfo>,
        /// Power management options (`XEN_PROCESSOR_PM_*`) for the flags of start_info.
        pm: u8,
    },
    /// A domain whose console and xenstore another one serves.
    DomU {
        /// Event channel of the xenstore page.
        store_evtchn: u32,
        /// Event channel of the console page.
        console_evtchn: u32,
    },
}

impl Flavour {
    /// True for Domain 0.
    pub const fn is_dom0(&self) -> bool {
        matches!(self, Self::Dom0 { .. })
    }
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel.
    pub kernel: &'a Kernel<'a>,
    /// Bytes of the ramdisk; 0 for none.
    pub ramdisk_len: u64,
    /// The command line, without a NUL.
    pub cmdline: &'a [u8],
    /// Pages of the domain, the ramdisk's included.
    pub nr_pages: u64,
    /// Kind of domain.
    pub flavour: Flavour,
}

/// Where the ramdisk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ramdisk {
    /// First PFN: the frames it was loaded into are given to the domain here, nothing is copied.
    pub pfn: Pfn,
    /// Number of frames.
    pub pages: u64,
    /// Bytes.
    pub len: u64,
    /// It lies in the initial region; else start_info names its PFN.
    pub mapped: bool,
}

/// Where the phys-to-machine list is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct P2mPlan {
    /// Its virtual address.
    pub va: u64,
    /// First PFN of the list, directly followed by `tables`.
    pub pfn: Pfn,
    /// Pages of the list.
    pub list_pages: u64,
    /// Page tables that map it outside the region: L3, L2 and L1; all 0 if it lies in the region.
    pub tables: Tables,
}

/// Numbers of page-table pages by level, without the L4. Pages are laid out L3 first, L1 last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// L3 tables.
    pub l3: u64,
    /// L2 tables.
    pub l2: u64,
    /// L1 tables.
    pub l1: u64,
}

impl Tables {
    /// Tables that map `[start, end)`; the range is not empty.
    pub const fn covering(start: u64, end: u64) -> Self {
        const fn slots(start: u64, end: u64, shift: u32) -> u64 {
            (end.wrapping_sub(1) >> shift)
                .wrapping_sub(start >> shift)
                .wrapping_add(1)
        }
        Self {
            l3: slots(start, end, 39),
            l2: slots(start, end, 30),
            l1: slots(start, end, 21),
        }
    }
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.l3 + self.l2 + self.l1
    }
}

/// State of the boot vCPU at its first instruction; general registers not named are 0, events masked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// First instruction.
    pub rip: u64,
    /// Top of the boot stack.
    pub rsp: u64,
    /// Virtual address of start_info.
    pub rsi: u64,
    /// Flags.
    pub rflags: u64,
    /// Code selector.
    pub cs: u16,
    /// Stack selector.
    pub ss: u16,
}

/// The layout of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Pages of the domain.
    pub nr_pages: u64,
    /// First address of the initial region, that of PFN 0.
    pub virt_base: u64,
    /// Pages of the initial region.
    pub region_pages: u64,
    /// The ramdisk, if there is one.
    pub ramdisk: Option<Ramdisk>,
    /// The phys-to-machine list.
    pub p2m: P2mPlan,
    /// The start_info page; the console record follows the structure in it.
    pub start_info: Pfn,
    /// A domU's xenstore page.
    pub store: Option<Pfn>,
    /// A domU's console page.
    pub console: Option<Pfn>,
    /// The L4 table of the initial region, directly followed by `tables`.
    pub l4: Pfn,
    /// The other tables of the initial region.
    pub tables: Tables,
    /// The boot stack's page.
    pub stack: Pfn,
    /// Page to fill with hypercall stubs.
    pub hypercall_page: Option<Pfn>,
    /// First PFN that the layout leaves free.
    pub free: Pfn,
    /// The kernel's PAE_MODE note, which shows in start_info's magic.
    pub pae: bool,
    /// State of the boot vCPU.
    pub entry: Entry,
}

/// Hands out PFNs in order.
struct Cursor(u64);

impl Cursor {
    fn take(&mut self, pages: u64) -> Pfn {
        let pfn = Pfn(self.0);
        // Saturates at a value that cannot fit any domain, so the checks at the end see it.
        self.0 = self.0.saturating_add(pages);
        pfn
    }
}

impl Plan {
    /// Lays out `request`.
    ///
    /// # Errors
    /// Why the kernel cannot run in this domain: its notes, its addresses, or too few pages.
    pub fn new(request: &Request<'_>) -> Result<Self, BuildError> {
        let notes = &request.kernel.notes;
        notes.check(request.flavour.is_dom0())?;
        if request.cmdline.len() >= MAX_GUEST_CMDLINE {
            return Err(BuildError::CommandLineTooLong);
        }
        if request.nr_pages > MAX_PAGES {
            return Err(BuildError::BadExtents);
        }
        if !notes.virt_base.is_multiple_of(PAGE_SIZE) {
            return Err(BuildError::BadNote("VIRT_BASE"));
        }
        let mut cursor = Cursor(request.kernel.end.div_ceil(PAGE_SIZE));
        let ramdisk_pages = request.ramdisk_len.div_ceil(PAGE_SIZE);
        let list_pages = (request.nr_pages * 8).div_ceil(PAGE_SIZE);
        let mapped = !notes.mod_start_pfn;
        let mapped_ramdisk = cursor.take(if mapped { ramdisk_pages } else { 0 });
        let mapped_list = cursor.take(if notes.init_p2m.is_none() {
            list_pages
        } else {
            0
        });
        let start_info = cursor.take(1);
        let mut shared_page = || (!request.flavour.is_dom0()).then(|| cursor.take(1));
        let (store, console) = (shared_page(), shared_page());
        let l4 = cursor.take(1);
        let (tables, region_pages) = region(notes.virt_base, cursor.0, request.nr_pages)?;
        let stack = Pfn(l4.0 + 1 + tables.total());

        let mut cursor = Cursor(region_pages);
        let ramdisk_pfn = if mapped {
            mapped_ramdisk
        } else {
            cursor.take(ramdisk_pages)
        };
        let address = |pfn: Pfn| notes.virt_base.wrapping_add(pfn.0 << PAGE_SHIFT);
        let region_end = notes.virt_base.wrapping_add(region_pages << PAGE_SHIFT);
        let p2m = match notes.init_p2m {
            Some(va) => {
                let tables = p2m_tables(va, list_pages, (notes.virt_base, region_end))?;
                let pfn = cursor.take(list_pages.saturating_add(tables.total()));
                P2mPlan {
                    va,
                    pfn,
                    list_pages,
                    tables,
                }
            }
            None => {
                let (va, pfn) = (address(mapped_list), mapped_list);
                P2mPlan {
                    va,
                    pfn,
                    list_pages,
                    tables: Tables::default(),
                }
            }
        };
        if cursor.0 > request.nr_pages {
            return Err(BuildError::DoesNotFit {
                needed: cursor.0,
                have: request.nr_pages,
            });
        }
        Ok(Self {
            nr_pages: request.nr_pages,
            virt_base: notes.virt_base,
            region_pages,
            ramdisk: (ramdisk_pages > 0).then_some(Ramdisk {
                pfn: ramdisk_pfn,
                pages: ramdisk_pages,
                len: request.ramdisk_len,
                mapped,
            }),
            p2m,
            start_info,
            store,
            console,
            l4,
            tables,
            stack,
            hypercall_page: notes
                .hypercall_page
                .map(|va| Pfn(va.wrapping_sub(notes.virt_base) >> PAGE_SHIFT)),
            free: Pfn(cursor.0),
            pae: notes.pae,
            entry: Entry {
                rip: notes.entry,
                rsp: address(stack).wrapping_add(PAGE_SIZE),
                rsi: address(start_info),
                rflags: 0x202,
                cs: 0xe033,
                ss: 0xe02b,
            },
        })
    }

    /// Frames to allocate: all pages but the ramdisk's, which come with it.
    pub fn frames_needed(&self) -> u64 {
        self.nr_pages
            .saturating_sub(self.ramdisk.map_or(0, |ramdisk| ramdisk.pages))
    }

    /// Virtual address of `pfn` in the initial region.
    pub const fn address(&self, pfn: Pfn) -> u64 {
        self.virt_base.wrapping_add(pfn.0 << PAGE_SHIFT)
    }

    /// First address behind the initial region.
    pub const fn region_end(&self) -> u64 {
        self.address(Pfn(self.region_pages))
    }

    /// Page tables of the initial region, the L4 included.
    pub const fn nr_pt_frames(&self) -> u64 {
        1 + self.tables.total()
    }

    /// True for the PFNs that are page tables mapped by the initial region.
    pub const fn is_table(&self, pfn: Pfn) -> bool {
        pfn.0 >= self.l4.0 && pfn.0 - self.l4.0 < self.nr_pt_frames()
    }
}

/// Tables and pages of an initial region whose parts, without those tables and the stack, end at page `used`.
fn region(base: u64, used: u64, nr_pages: u64) -> Result<(Tables, u64), BuildError> {
    const OUTSIDE: BuildError =
        BuildError::BadAddress("the initial region reaches past the address space");
    // More tables need more room, which may need more tables; each round adds at least 4 MiB or is the last.
    let mut tables = Tables::default();
    loop {
        // The stack's page is the last part.
        let pages = used.saturating_add(tables.total()).saturating_add(1);
        if pages > nr_pages {
            return Err(BuildError::DoesNotFit {
                needed: pages,
                have: nr_pages,
            });
        }
        let end = base
            .checked_add((pages << PAGE_SHIFT) + SLACK)
            .and_then(|end| end.checked_next_multiple_of(REGION_ALIGN))
            .ok_or(OUTSIDE)?;
        let next = Tables::covering(base, end);
        if next == tables {
            check_range(base, end, OUTSIDE)?;
            return Ok((tables, (end - base) >> PAGE_SHIFT));
        }
        tables = next;
    }
}

/// Tables that map a list of `list_pages` at `va`, which must not share an L4 slot with `region`.
fn p2m_tables(va: u64, list_pages: u64, region: (u64, u64)) -> Result<Tables, BuildError> {
    const BAD: BuildError = BuildError::BadNote("INIT_P2M");
    let end = va.checked_add(list_pages << PAGE_SHIFT).ok_or(BAD)?;
    check_range(va, end, BAD)?;
    let slot = |va: u64| va >> 39;
    let apart = slot(end - 1) < slot(region.0) || slot(va) > slot(region.1.wrapping_sub(1));
    if apart && va.is_multiple_of(PAGE_SIZE) {
        Ok(Tables::covering(va, end))
    } else {
        Err(BAD)
    }
}

/// Refuses a range that is empty, leaves its half of the address space or meets the hypervisor's.
fn check_range(start: u64, end: u64, error: BuildError) -> Result<(), BuildError> {
    let last = end.wrapping_sub(1);
    let canonical = is_canonical(start) && is_canonical(last) && start >> 63 == last >> 63;
    let clear = end <= HYPERVISOR_START || start >= HYPERVISOR_END;
    if start < end && canonical && clear {
        Ok(())
    } else {
        Err(error)
    }
}
