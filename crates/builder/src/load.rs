// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes a planned domain into its frames: kernel, phys-to-machine list, start_info and initial page tables.
//!
//! Whole pages and runs at a time; nothing is allocated. Entries of L2 to L4 tables are present, writable, user, accessed and
//! dirty (a PV kernel runs in ring 3); L1 entries too, except that page tables themselves are mapped read-only.

use crate::{BuildError, Flavour, Kernel, P2m, Plan, hypercall_page, plan::Tables};
use philoxen_abi::{
    Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn,
    start_info::{
        MAGIC_DOM0, MAGIC_DOMU, MAX_GUEST_CMDLINE, SIF_INITDOMAIN, SIF_MOD_START_PFN, SIF_PM_SHIFT,
        SIF_PRIVILEGED, StartConsole, StartInfo, VgaConsoleInfo,
    },
};
use zerocopy::{FromZeros, IntoBytes};

/// Present, writable, user, accessed, dirty.
const WRITABLE: u64 = 0x67;
/// Present, user, accessed.
const READ_ONLY: u64 = 0x25;
/// Entries of a table, and of a page of the phys-to-machine list.
const ENTRIES: usize = 512;
/// Entry of the list behind the last page.
const INVALID_MFN: u64 = u64::MAX;
/// The bits of a virtual address that tables translate.
const VA_MASK: u64 = (1 << 48) - 1;

/// The machine's memory, as far as the new domain's own frames go.
pub trait Target {
    /// Copies `data` to machine memory from byte `offset` of frame `at`. The range may reach over several frames, which
    /// are contiguous and all belong to the domain.
    fn write(&mut self, at: Mfn, offset: u64, data: &[u8]);
    /// Zeroes `len` bytes in the same way.
    fn zero(&mut self, at: Mfn, offset: u64, len: u64);
}

/// What the hypervisor adds to the plan.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The domain's shared_info frame.
    pub shared_info: Mfn,
    /// The command line, without a NUL, as planned.
    pub cmdline: &'a [u8],
    /// Kind of domain, as planned.
    pub flavour: Flavour,
}

/// Writes the kernel's segments: the first step. Afterwards the kernel's file is not needed any more, and its memory can
/// go to the domain; `p2m` must cover the PFNs below [`Kernel::end`] only.
///
/// # Errors
/// [`BuildError::BadExtents`] if it does not.
pub fn load_segments<T: Target>(
    target: &mut T,
    kernel: &Kernel<'_>,
    plan: &Plan,
    p2m: &P2m,
) -> Result<(), BuildError> {
    let mut load = Loader { target, plan, p2m };
    for segment in &kernel.segments {
        let data_end = load.write(segment.start, segment.data)?;
        load.zero(data_end, segment.end() - data_end)?;
    }
    Ok(())
}

/// Writes everything but the segments ([`load_segments`]); returns the domain's L4 table's frame, ready to be validated
/// and pinned.
///
/// The frames need not be zeroed, but what the kernel and the plan leave out keeps its old content.
///
/// # Errors
/// [`BuildError::BadExtents`] if `p2m` is not [`P2m::for_plan`] of `plan`.
pub fn build<T: Target>(
    target: &mut T,
    plan: &Plan,
    p2m: &P2m,
    identity: Identity<'_>,
) -> Result<Mfn, BuildError> {
    if p2m.nr_pages() != plan.nr_pages {
        return Err(BuildError::BadExtents);
    }
    let mut load = Loader { target, plan, p2m };
    if let Some(pfn) = plan.hypercall_page {
        let mut page = [0; 4096];
        hypercall_page(&mut page);
        load.write(pfn.0 << PAGE_SHIFT, &page)?;
    }
    if let Some(ramdisk) = plan.ramdisk {
        // The rest of its last frame was the boot loader's.
        let start = ramdisk.pfn.0 << PAGE_SHIFT;
        load.zero(
            start + ramdisk.len,
            (ramdisk.pages << PAGE_SHIFT) - ramdisk.len,
        )?;
    }
    load.list()?;
    let pages = [
        Some(plan.start_info),
        plan.store,
        plan.console,
        Some(plan.stack),
    ];
    for pfn in pages.into_iter().flatten() {
        load.zero(pfn.0 << PAGE_SHIFT, PAGE_SIZE)?;
    }
    load.start_info(identity)?;
    load.tables()?;
    p2m.lookup(plan.l4).ok_or(BuildError::BadExtents)
}

struct Loader<'a, T> {
    target: &'a mut T,
    plan: &'a Plan,
    p2m: &'a P2m,
}

impl<T: Target> Loader<'_, T> {
    /// Writes at a pseudo-physical address; returns the address behind.
    fn write(&mut self, mut at: u64, mut data: &[u8]) -> Result<u64, BuildError> {
        while !data.is_empty() {
            let (mfn, offset, room) = self.run(at)?;
            let (part, rest) =
                data.split_at(usize::try_from(room).unwrap_or(usize::MAX).min(data.len()));
            self.target.write(mfn, offset, part);
            at += part.len() as u64;
            data = rest;
        }
        Ok(at)
    }

    /// Zeroes `len` bytes from a pseudo-physical address.
    fn zero(&mut self, mut at: u64, mut len: u64) -> Result<(), BuildError> {
        while len > 0 {
            let (mfn, offset, room) = self.run(at)?;
            let part = room.min(len);
            self.target.zero(mfn, offset, part);
            at += part;
            len -= part;
        }
        Ok(())
    }

    /// Frame and offset of a pseudo-physical address, and the bytes from it to the end of its run.
    fn run(&self, at: u64) -> Result<(Mfn, u64, u64), BuildError> {
        let run = self
            .p2m
            .run_at(Pfn(at >> PAGE_SHIFT))
            .ok_or(BuildError::BadExtents)?;
        let offset = at % PAGE_SIZE;
        let bytes = run
            .count
            .checked_mul(PAGE_SIZE)
            .ok_or(BuildError::BadExtents)?;
        Ok((run.start, offset, bytes - offset))
    }

    /// Writes the phys-to-machine list.
    fn list(&mut self) -> Result<(), BuildError> {
        let mut entries = self.p2m.iter_from(Pfn(0));
        let mut page = [INVALID_MFN; ENTRIES];
        let list = self.p2m.iter_from(self.plan.p2m.pfn);
        let pages =
            usize::try_from(self.plan.p2m.list_pages).map_err(|_| BuildError::BadExtents)?;
        for frame in list.take(pages) {
            for slot in &mut page {
                *slot = entries.next().map_or(INVALID_MFN, |mfn| mfn.0);
            }
            self.target.write(frame, 0, page.as_bytes());
        }
        Ok(())
    }

    /// Writes start_info, and Domain 0's console record behind it.
    fn start_info(&mut self, identity: Identity<'_>) -> Result<(), BuildError> {
        let plan = self.plan;
        let frame = |pfn: Option<Pfn>| match pfn {
            Some(pfn) => self
                .p2m
                .lookup(pfn)
                .map(|mfn| mfn.0)
                .ok_or(BuildError::BadExtents),
            None => Ok(0),
        };
        let mut info = StartInfo::new_zeroed();
        let at = plan.start_info.0 << PAGE_SHIFT;
        let behind = size_of::<StartInfo>();
        let mut screen = None;
        let magic = match identity.flavour {
            Flavour::Dom0 { vga, pm } => {
                info.flags = SIF_PRIVILEGED | SIF_INITDOMAIN | u32::from(pm) << SIF_PM_SHIFT;
                if let Some(vga) = vga {
                    let size = size_of::<VgaConsoleInfo>() as u32;
                    info.console = StartConsole::dom0(behind as u32, size);
                    screen = Some(vga);
                }
                if plan.pae { MAGIC_DOM0 } else { MAGIC_DOMU }
            }
            Flavour::DomU {
                store_evtchn,
                console_evtchn,
            } => {
                info.store_mfn = frame(plan.store)?;
                info.store_evtchn = store_evtchn;
                info.console = StartConsole::domu(frame(plan.console)?, console_evtchn);
                MAGIC_DOMU
            }
        };
        fill(&mut info.magic, magic);
        fill(
            info.cmd_line
                .get_mut(..MAX_GUEST_CMDLINE - 1)
                .unwrap_or_default(),
            identity.cmdline,
        );
        info.nr_pages = plan.nr_pages;
        info.shared_info = identity.shared_info.addr();
        info.pt_base = plan.address(plan.l4);
        info.nr_pt_frames = plan.nr_pt_frames();
        info.mfn_list = plan.p2m.va;
        info.first_p2m_pfn = plan.p2m.pfn.0;
        info.nr_p2m_frames = plan.p2m.list_pages + plan.p2m.tables.total();
        if let Some(ramdisk) = plan.ramdisk {
            info.mod_len = ramdisk.len;
            info.mod_start = plan.address(ramdisk.pfn);
            if !ramdisk.mapped {
                info.mod_start = ramdisk.pfn.0;
                info.flags |= SIF_MOD_START_PFN;
            }
        }
        self.write(at, info.as_bytes())?;
        if let Some(screen) = screen {
            self.write(at + behind as u64, screen.as_bytes())?;
        }
        Ok(())
    }

    /// Writes all page tables.
    fn tables(&mut self) -> Result<(), BuildError> {
        let plan = self.plan;
        let region = (plan.virt_base, plan.region_end());
        let l3 = Pfn(plan.l4.0 + 1);
        self.level(plan.l4, 39, region, l3, |_| WRITABLE)?;
        self.lower_levels(l3, &plan.tables, region, Pfn(0), |pfn| {
            if plan.is_table(pfn) {
                READ_ONLY
            } else {
                WRITABLE
            }
        })?;
        let list = &plan.p2m;
        if list.tables.total() == 0 {
            return Ok(());
        }
        let range = (list.va, list.va.wrapping_add(list.list_pages << PAGE_SHIFT));
        let l3 = Pfn(list.pfn.0 + list.list_pages);
        self.lower_levels(l3, &list.tables, range, list.pfn, |_| WRITABLE)?;
        let first_slot = (list.va & VA_MASK) >> 39;
        for (slot, table) in (first_slot..).zip(l3.0..l3.0 + list.tables.l3) {
            let mfn = self.p2m.lookup(Pfn(table)).ok_or(BuildError::BadExtents)?;
            let entry = mfn.addr() | WRITABLE;
            self.write((plan.l4.0 << PAGE_SHIFT) + slot * 8, &entry.to_le_bytes())?;
        }
        Ok(())
    }

    /// Writes L3, L2 and L1 tables, which lie in this order from `l3`, so that `range` maps PFNs from `pages`.
    fn lower_levels(
        &mut self,
        l3: Pfn,
        tables: &Tables,
        range: (u64, u64),
        pages: Pfn,
        leaf: impl Fn(Pfn) -> u64,
    ) -> Result<(), BuildError> {
        let l2 = Pfn(l3.0 + tables.l3);
        let l1 = Pfn(l2.0 + tables.l2);
        self.level(l3, 30, range, l2, |_| WRITABLE)?;
        self.level(l2, 21, range, l1, |_| WRITABLE)?;
        self.level(l1, PAGE_SHIFT, range, pages, leaf)
    }

    /// Writes the consecutive tables of one level from PFN `table`: `range` in steps of `1 << shift` maps PFNs from `child`.
    fn level(
        &mut self,
        table: Pfn,
        shift: u32,
        range: (u64, u64),
        child: Pfn,
        flags: impl Fn(Pfn) -> u64,
    ) -> Result<(), BuildError> {
        let first = (range.0 & VA_MASK) >> shift;
        let last = (range.1.wrapping_sub(1) & VA_MASK) >> shift;
        let mut tables = self.p2m.iter_from(table);
        let mut children = (child.0..).zip(self.p2m.iter_from(child));
        for group in first / ENTRIES as u64..=last / ENTRIES as u64 {
            let base = group * ENTRIES as u64;
            let mut page = [0; ENTRIES];
            for (slot, entry) in (base..).zip(&mut page) {
                if (first..=last).contains(&slot) {
                    let (pfn, mfn) = children.next().ok_or(BuildError::BadExtents)?;
                    *entry = mfn.addr() | flags(Pfn(pfn));
                }
            }
            let frame = tables.next().ok_or(BuildError::BadExtents)?;
            self.target.write(frame, 0, page.as_bytes());
        }
        Ok(())
    }
}

/// Copies as far as it fits, stopping at a NUL.
fn fill(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(crate::bytes::until_nul(from)) {
        *to = *from;
    }
}
