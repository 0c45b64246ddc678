// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which machine frame stands behind each PFN, as a list of contiguous runs.
//!
//! Invariant: the runs are in PFN order, without gaps, from PFN 0 to [`P2m::nr_pages`].

use crate::{BuildError, Plan};
use alloc::vec::Vec;
use philoxen_abi::{Mfn, Pfn};

/// A run of contiguous machine frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First frame.
    pub start: Mfn,
    /// Number of frames.
    pub count: u64,
}

/// A domain's phys-to-machine mapping.
#[derive(Clone, Debug, Default)]
pub struct P2m {
    /// First PFN of each run, and the run.
    runs: Vec<(u64, Extent)>,
    nr_pages: u64,
}

impl P2m {
    /// No pages yet, and room for `runs` runs without another allocation.
    pub fn with_capacity(runs: usize) -> Self {
        Self {
            runs: Vec::with_capacity(runs),
            nr_pages: 0,
        }
    }

    /// Appends a run at the next PFNs; merged with the last one if they are adjacent.
    pub fn push(&mut self, extent: Extent) {
        if extent.count == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some((_, last)) if last.start.0.checked_add(last.count) == Some(extent.start.0) => {
                last.count = last.count.saturating_add(extent.count);
            }
            _ => self.runs.push((self.nr_pages, extent)),
        }
        self.nr_pages = self.nr_pages.saturating_add(extent.count);
    }

    /// The mapping of a planned domain: `frames` in order, with the ramdisk's own frames at the PFNs the plan gave it.
    ///
    /// # Errors
    /// [`BuildError::BadExtents`] if `frames` has fewer than [`Plan::frames_needed`] frames, or `ramdisk` is not
    /// as long as the plan's. More frames than needed are left out.
    pub fn for_plan(
        plan: &Plan,
        frames: impl IntoIterator<Item = Extent>,
        ramdisk: Option<Extent>,
    ) -> Result<Self, BuildError> {
        let mut frames = frames.into_iter();
        let mut rest = Extent {
            start: Mfn(0),
            count: 0,
        };
        let mut p2m = Self::default();
        let mut take = |p2m: &mut Self, mut count: u64| {
            while count > 0 {
                if rest.count == 0 {
                    rest = frames.next().ok_or(BuildError::BadExtents)?;
                }
                let part = rest.count.min(count);
                p2m.push(Extent {
                    start: rest.start,
                    count: part,
                });
                rest = Extent {
                    start: Mfn(rest.start.0.saturating_add(part)),
                    count: rest.count - part,
                };
                count -= part;
            }
            Ok(())
        };
        if let Some(planned) = plan.ramdisk {
            let ramdisk = ramdisk.filter(|extent| extent.count == planned.pages);
            take(&mut p2m, planned.pfn.0)?;
            p2m.push(ramdisk.ok_or(BuildError::BadExtents)?);
        }
        let left = plan.nr_pages.saturating_sub(p2m.nr_pages);
        take(&mut p2m, left)?;
        if p2m.nr_pages == plan.nr_pages {
            Ok(p2m)
        } else {
            Err(BuildError::BadExtents)
        }
    }

    /// Pages mapped.
    pub const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// The runs: first PFN and frames, in PFN order.
    pub fn runs(&self) -> impl Iterator<Item = (Pfn, Extent)> + '_ {
        self.runs.iter().map(|&(pfn, extent)| (Pfn(pfn), extent))
    }

    /// The frame behind `pfn`.
    pub fn lookup(&self, pfn: Pfn) -> Option<Mfn> {
        self.run_at(pfn).map(|extent| extent.start)
    }

    /// The longest run that starts at `pfn`.
    pub fn run_at(&self, pfn: Pfn) -> Option<Extent> {
        let after = self.runs.partition_point(|&(first, _)| first <= pfn.0);
        let &(first, extent) = self.runs.get(after.checked_sub(1)?)?;
        let skip = pfn.0 - first;
        let count = extent.count.checked_sub(skip).filter(|&count| count > 0)?;
        Some(Extent {
            start: Mfn(extent.start.0.saturating_add(skip)),
            count,
        })
    }

    /// The frames of PFNs from `first`, one by one.
    pub fn iter_from(&self, first: Pfn) -> impl Iterator<Item = Mfn> + '_ {
        let index = self
            .runs
            .partition_point(|&(start, _)| start <= first.0)
            .saturating_sub(1);
        let runs = self.runs.get(index..).unwrap_or_default();
        runs.iter().flat_map(move |&(start, extent)| {
            let skip = first.0.saturating_sub(start).min(extent.count);
            (skip..extent.count).map(move |i| Mfn(extent.start.0.saturating_add(i)))
        })
    }
}
