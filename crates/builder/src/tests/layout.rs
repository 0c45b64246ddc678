// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plan and what the loader makes of it, over many sizes and kinds of kernel.

use super::{BASE, FakeTarget, KERNEL_START, P2M_BASE, linux_notes, small_kernel};
use crate::{
    BuildError, Extent, Flavour, Identity, Kernel, P2m, Plan, Request, build, load_segments,
};
use philoxen_abi::{
    Mfn, Pfn, elfnote,
    start_info::{StartInfo, TextMode, VgaConsoleInfo},
};
use proptest::prelude::*;
use std::collections::HashMap;
use zerocopy::FromBytes;

/// First machine frame of the ramdisk.
const RAMDISK_MFN: u64 = 0x9_0000;

fn dom0() -> Flavour {
    let vga = VgaConsoleInfo::text(TextMode {
        rows: 25,
        columns: 80,
        ..Default::default()
    });
    Flavour::Dom0 {
        vga: Some(vga),
        pm: 3,
    }
}

fn domu() -> Flavour {
    Flavour::DomU {
        store_evtchn: 1,
        console_evtchn: 2,
    }
}

/// The notes of Linux without those named.
fn notes_without(left_out: &[u32]) -> Vec<(u32, Vec<u8>)> {
    linux_notes()
        .into_iter()
        .filter(|(kind, _)| !left_out.contains(kind))
        .collect()
}

/// `pages` frames in runs of different lengths, not adjacent, from high memory down.
fn frames(pages: u64) -> Vec<Extent> {
    let mut extents = Vec::new();
    let (mut left, mut next) = (pages, 0x100_0000);
    for i in 0.. {
        if left == 0 {
            return extents;
        }
        let count = left.min(if i < 40 { 1 + i * 37 } else { 1 << 18 });
        next -= count + 3;
        extents.push(Extent {
            start: Mfn(next),
            count,
        });
        left -= count;
    }
    unreachable!()
}

fn ranges(extents: &[Extent]) -> Vec<std::ops::Range<u64>> {
    extents
        .iter()
        .map(|e| e.start.0..e.start.0 + e.count)
        .collect()
}

/// Every mapping of the tables under `l4`: virtual page to entry. Checks the flags of upper levels.
fn walk(target: &FakeTarget, l4: Mfn) -> HashMap<u64, u64> {
    fn descend(
        target: &FakeTarget,
        table: u64,
        level: u32,
        prefix: u64,
        out: &mut HashMap<u64, u64>,
    ) {
        for slot in 0..512 {
            let entry = target.word(table + slot * 8);
            let va = prefix << 9 | slot;
            if entry & 1 == 0 {
                assert_eq!(entry, 0, "rubbish in a table");
            } else if level == 1 {
                out.insert(va, entry);
            } else {
                assert_eq!(entry & 0xfff, 0x67);
                descend(target, entry & 0x000f_ffff_ffff_f000, level - 1, va, out);
            }
        }
    }
    let mut out = HashMap::new();
    descend(target, l4.addr(), 4, 0, &mut out);
    out
}

struct Built {
    plan: Plan,
    p2m: P2m,
    target: FakeTarget,
    l4: Mfn,
}

fn make(
    image: &[u8],
    ramdisk_len: u64,
    nr_pages: u64,
    flavour: Flavour,
) -> Result<Built, BuildError> {
    let kernel = Kernel::parse(image)?;
    let request = Request {
        kernel: &kernel,
        ramdisk_len,
        cmdline: b"console=hvc0 quiet",
        nr_pages,
        flavour,
    };
    let plan = Plan::new(&request)?;
    let mut extents = frames(plan.frames_needed());
    let ramdisk = plan.ramdisk.map(|r| Extent {
        start: Mfn(RAMDISK_MFN),
        count: r.pages,
    });
    let p2m = P2m::for_plan(&plan, extents.iter().copied(), ramdisk)?;
    extents.extend(ramdisk);
    let mut target = FakeTarget::new(ranges(&extents));
    let identity = Identity {
        shared_info: Mfn(0x777),
        cmdline: request.cmdline,
        flavour,
    };
    load_segments(&mut target, &kernel, &plan, &p2m)?;
    let l4 = build(&mut target, &plan, &p2m, identity)?;
    Ok(Built {
        plan,
        p2m,
        target,
        l4,
    })
}

/// The plan's parts in the order they must have: first PFN and pages.
fn parts(plan: &Plan, kernel_pages: u64) -> Vec<(u64, u64)> {
    let list = (
        plan.p2m.pfn.0,
        plan.p2m.list_pages + plan.p2m.tables.total(),
    );
    let ramdisk = plan.ramdisk.map(|r| (r.pfn.0, r.pages));
    let mut parts = vec![(0, kernel_pages)];
    let list_mapped = list.0 < plan.region_pages;
    parts.extend(ramdisk.filter(|_| plan.ramdisk.unwrap().mapped));
    parts.extend(list_mapped.then_some(list));
    parts.push((plan.start_info.0, 1));
    parts.extend(plan.store.map(|p| (p.0, 1)));
    parts.extend(plan.console.map(|p| (p.0, 1)));
    parts.push((plan.l4.0, plan.nr_pt_frames()));
    parts.push((plan.stack.0, 1));
    parts.push((plan.region_pages, 0));
    parts.extend(ramdisk.filter(|_| !plan.ramdisk.unwrap().mapped));
    parts.extend((!list_mapped).then_some(list));
    parts.push((plan.nr_pages, 0));
    parts
}

fn check(built: &Built, kernel_pages: u64) {
    let Built {
        plan,
        p2m,
        target,
        l4,
    } = built;
    let parts = parts(plan, kernel_pages);
    for pair in parts.windows(2) {
        assert!(
            pair[0].0 + pair[0].1 <= pair[1].0,
            "parts overlap: {parts:x?}"
        );
    }
    assert_eq!(plan.region_end() % (4 << 20), 0);
    assert!((plan.region_pages - plan.stack.0 - 1) * 4 >= 512);

    let mut mapped = walk(target, *l4);
    for pfn in 0..plan.region_pages {
        let va = plan.address(Pfn(pfn)) >> 12 & ((1 << 36) - 1);
        let entry = mapped
            .remove(&va)
            .unwrap_or_else(|| panic!("PFN {pfn:#x} is not mapped"));
        assert_eq!(entry >> 12, p2m.lookup(Pfn(pfn)).unwrap().0);
        let table = pfn >= plan.l4.0 && pfn < plan.l4.0 + plan.nr_pt_frames();
        assert_eq!(entry & 0xfff, if table { 0x25 } else { 0x67 });
    }
    if plan.p2m.tables.total() > 0 {
        for i in 0..plan.p2m.list_pages {
            let entry = mapped
                .remove(&((plan.p2m.va >> 12) + i))
                .expect("list page is not mapped");
            assert_eq!(
                entry,
                p2m.lookup(Pfn(plan.p2m.pfn.0 + i)).unwrap().addr() | 0x67
            );
        }
    }
    assert!(mapped.is_empty(), "mapped besides: {mapped:x?}");

    let mut expected = p2m.iter_from(Pfn(0));
    for page in 0..plan.p2m.list_pages {
        let frame = p2m.lookup(Pfn(plan.p2m.pfn.0 + page)).unwrap();
        for i in 0..512 {
            let want = expected.next().map_or(u64::MAX, |mfn| mfn.0);
            assert_eq!(target.word(frame.addr() + i * 8), want);
        }
    }
    assert!(expected.next().is_none());
    if let Some(ramdisk) = plan.ramdisk {
        assert_eq!(p2m.lookup(ramdisk.pfn), Some(Mfn(RAMDISK_MFN)));
        assert_eq!(
            p2m.lookup(Pfn(ramdisk.pfn.0 + ramdisk.pages - 1))
                .unwrap()
                .0,
            RAMDISK_MFN + ramdisk.pages - 1
        );
    }
}

fn info(built: &Built) -> StartInfo {
    let at = built.p2m.lookup(built.plan.start_info).unwrap().addr();
    StartInfo::read_from_bytes(&built.target.bytes(at, size_of::<StartInfo>())).unwrap()
}

#[test]
fn a_dom0_like_the_one_measured() {
    // The figures of a Debian kernel with 512 MiB: its memory ends at PFN 0x4a00, its ramdisk has 0x3539 pages.
    let mut image_notes = notes_without(&[elfnote::ENTRY]);
    image_notes.push((elfnote::ENTRY, (BASE + 0x100_0000).to_le_bytes().to_vec()));
    let image = super::elf(&[(0x100_0000, vec![1; 64], 0x3a0_0000)], &image_notes);
    let built = make(&image, 0x3539 << 12, 0x2_0000, dom0()).unwrap();
    check(&built, 0x4a00);
    let info = info(&built);
    assert_eq!((info.nr_pt_frames, info.mfn_list), (41, P2M_BASE));
    assert_eq!((info.first_p2m_pfn, info.nr_p2m_frames), (0x8139, 0x103));
    assert_eq!(
        (info.flags, info.mod_start, info.mod_len),
        (0x30b, 0x4c00, 0x3539 << 12)
    );
    assert_eq!(info.pt_base, BASE + (0x4a01 << 12));
    assert_eq!(&info.magic[..16], b"xen-3.0-x86_64p\0");
    assert_eq!(&info.cmd_line[..19], b"console=hvc0 quiet\0");
    assert_eq!((info.nr_pages, info.shared_info), (0x2_0000, 0x77_7000));
    assert_eq!(info.console.word, 0x28 << 32 | 0x490);
    let at = built.p2m.lookup(built.plan.start_info).unwrap().addr();
    assert_eq!(built.target.bytes(at + 0x490, 4), [3, 0, 0, 0]);
    let entry = built.plan.entry;
    assert_eq!(
        (entry.rip, entry.rsi),
        (BASE + 0x100_0000, BASE + 0x4a0_0000)
    );
    assert_eq!(entry.rsp, BASE + ((built.plan.stack.0 + 1) << 12));
    assert_eq!((entry.cs, entry.ss, entry.rflags), (0xe033, 0xe02b, 0x202));
}

#[test]
fn segments_and_zeros_are_loaded() {
    let image = small_kernel(&linux_notes());
    let built = make(&image, 0, 0x4000, dom0()).unwrap();
    let byte = |at: u64| {
        let mfn = built.p2m.lookup(Pfn(at >> 12)).unwrap();
        built.target.bytes(mfn.addr() + at % 4096, 1)[0]
    };
    for i in 0..5000 {
        assert_eq!(byte(KERNEL_START + i), (i * 7) as u8);
    }
    assert!((5000..0x3000).all(|i| byte(KERNEL_START + i) == 0));
    assert!((0..100).all(|i| byte(KERNEL_START + 0x5000 + i) == 0x5a));
    assert!((100..0x2345).all(|i| byte(KERNEL_START + 0x5000 + i) == 0));
    assert_eq!(byte(KERNEL_START + 0x5000 + 0x2345), 0xee);
    assert!(built.plan.ramdisk.is_none());
    assert_eq!((info(&built).mod_len, info(&built).flags & 8), (0, 0));
}

#[test]
fn a_domu_with_everything_in_its_region() {
    let left_out = [
        elfnote::INIT_P2M,
        elfnote::MOD_START_PFN,
        elfnote::SUPPORTED_FEATURES,
    ];
    let image = small_kernel(&notes_without(&left_out));
    let built = make(&image, 12345, 0x4000, domu()).unwrap();
    check(&built, 0x108);
    let info = info(&built);
    let plan = &built.plan;
    assert_eq!(
        (info.flags, &info.magic[..15]),
        (0, &b"xen-3.0-x86_64\0"[..])
    );
    assert_eq!(info.mod_start, plan.address(plan.ramdisk.unwrap().pfn));
    assert_eq!(info.mfn_list, plan.address(plan.p2m.pfn));
    assert_eq!(
        (info.first_p2m_pfn, info.nr_p2m_frames),
        (plan.p2m.pfn.0, 0x20)
    );
    assert_eq!(
        info.store_mfn,
        built.p2m.lookup(plan.store.unwrap()).unwrap().0
    );
    assert_eq!(
        info.console.word,
        built.p2m.lookup(plan.console.unwrap()).unwrap().0
    );
    assert_eq!((info.store_evtchn, info.console.evtchn), (1, 2));
    // The last frame's rest is cleared, the ramdisk itself untouched.
    let end = (RAMDISK_MFN << 12) + 12345;
    assert_eq!(built.target.bytes(end - 1, 2), [0xee, 0]);
}

#[test]
fn the_hypercall_page_is_filled() {
    let mut notes = linux_notes();
    let page = BASE + KERNEL_START + 0x2000;
    notes.push((elfnote::HYPERCALL_PAGE, page.to_le_bytes().to_vec()));
    let built = make(&small_kernel(&notes), 0, 0x4000, dom0()).unwrap();
    let at = built
        .p2m
        .lookup(Pfn((KERNEL_START + 0x2000) >> 12))
        .unwrap()
        .addr();
    let stub = |n: u64| built.target.bytes(at + n * 32, 32);
    assert_eq!(
        stub(29)[..14],
        [
            0x51, 0x41, 0x53, 0xb8, 29, 0, 0, 0, 0x0f, 5, 0x41, 0x5b, 0x59, 0xc3
        ]
    );
    assert_eq!(
        stub(23)[..12],
        [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 5, 0xcc]
    );
    for bad in [page + 1, BASE, 0] {
        notes.pop();
        notes.push((elfnote::HYPERCALL_PAGE, bad.to_le_bytes().to_vec()));
        let error = Kernel::parse(&small_kernel(&notes)).unwrap_err();
        assert_eq!(error, BuildError::BadNote("HYPERCALL_PAGE"));
    }
}

#[test]
fn too_small_or_impossible_domains_are_refused() {
    let image = small_kernel(&linux_notes());
    let plan = |ramdisk, pages| make(&image, ramdisk, pages, dom0()).map(|built| built.plan.free.0);
    let needed = plan(1 << 20, 0x4000).unwrap();
    assert!(plan(1 << 20, needed).is_ok());
    for pages in [0, 1, 0x108, 0x200, 0x480] {
        let error = plan(1 << 20, pages).unwrap_err();
        assert!(
            matches!(error, BuildError::DoesNotFit { have, .. } if have == pages),
            "{error:?}"
        );
    }
    for ramdisk in [u64::MAX, 1 << 62, 0x4000 << 12] {
        assert!(matches!(
            plan(ramdisk, 0x4000),
            Err(BuildError::DoesNotFit { .. })
        ));
    }
    assert_eq!(plan(0, u64::MAX), Err(BuildError::BadExtents));
    let with = |kind: u32, value: u64| {
        let mut notes = notes_without(&[kind]);
        notes.push((kind, value.to_le_bytes().to_vec()));
        make(&small_kernel(&notes), 0, 0x4000, dom0()).map(|built| built.plan)
    };
    for p2m in [
        1,
        BASE,
        0xffff_8000_0000_0000,
        0x7fff_ffff_f000,
        0x8000_0000_0000,
        u64::MAX - 0xfff,
    ] {
        assert_eq!(
            with(elfnote::INIT_P2M, p2m),
            Err(BuildError::BadNote("INIT_P2M")),
            "{p2m:#x}"
        );
    }
    assert_eq!(
        with(elfnote::SUPPORTED_FEATURES, 0x8001),
        Err(BuildError::NotDom0)
    );
    assert_eq!(
        with(elfnote::HV_START_LOW, BASE),
        Err(BuildError::BadNote("HV_START_LOW"))
    );
}

#[test]
fn regions_outside_the_guests_space_are_refused() {
    let at = |base: u64| {
        let mut notes = notes_without(&[elfnote::VIRT_BASE, elfnote::ENTRY]);
        notes.push((elfnote::VIRT_BASE, base.to_le_bytes().to_vec()));
        notes.push((
            elfnote::ENTRY,
            base.wrapping_add(KERNEL_START).to_le_bytes().to_vec(),
        ));
        make(&small_kernel(&notes), 4096, 0x4000, dom0()).map(|built| check(&built, 0x108))
    };
    for base in [0, 0x10_0000, 0x7fff_8000_0000, 0xffff_8800_0000_0000] {
        assert_eq!(at(base), Ok(()), "{base:#x}");
    }
    let outside = BuildError::BadAddress("the initial region reaches past the address space");
    for base in [
        0x7fff_fff0_0000,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_87ff_ffc0_0000,
    ] {
        assert_eq!(at(base), Err(outside), "{base:#x}");
    }
    assert_eq!(at(0xffff_ffff_ffd0_0000), Err(outside));
    assert!(at(u64::MAX - 0xfff).is_err());
    assert_eq!(at(0x800), Err(BuildError::BadNote("VIRT_BASE")));
}

#[test]
fn frames_must_match_the_plan() {
    let image = small_kernel(&linux_notes());
    let plan = make(&image, 5 << 12, 0x4000, dom0()).unwrap().plan;
    let ramdisk = |count| {
        Some(Extent {
            start: Mfn(1),
            count,
        })
    };
    let have = |pages| {
        [Extent {
            start: Mfn(0x1000),
            count: pages,
        }]
    };
    assert!(P2m::for_plan(&plan, have(0x4000 - 5), ramdisk(5)).is_ok());
    assert!(P2m::for_plan(&plan, have(0x4000), ramdisk(5)).is_ok());
    assert!(P2m::for_plan(&plan, have(0x4000 - 6), ramdisk(5)).is_err());
    assert!(P2m::for_plan(&plan, have(0x4000), ramdisk(4)).is_err());
    assert!(P2m::for_plan(&plan, have(0x4000), None).is_err());
}

#[test]
fn a_long_command_line_is_refused() {
    let image = small_kernel(&linux_notes());
    let kernel = Kernel::parse(&image).unwrap();
    for (len, ok) in [(1023, true), (1024, false)] {
        let cmdline = vec![b'x'; len];
        let request = Request {
            kernel: &kernel,
            ramdisk_len: 0,
            cmdline: &cmdline,
            nr_pages: 0x4000,
            flavour: dom0(),
        };
        assert_eq!(Plan::new(&request).is_ok(), ok);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn any_size_is_laid_out_soundly(
        // Evenly over the powers of two from 32 MiB to 8 GiB.
        shift in 13u32..21,
        more in 0u64..1 << 13,
        kernel_size in 0x3000u64..0x180_0000,
        ramdisk in prop_oneof![Just(0), 1u64..0x80_0000],
        own_p2m in any::<bool>(),
        own_ramdisk in any::<bool>(),
        is_dom0 in any::<bool>(),
    ) {
        let nr_pages = (1 << shift) + (more << shift >> 13);
        let mut left_out = vec![];
        left_out.extend((!own_p2m).then_some(elfnote::INIT_P2M));
        left_out.extend((!own_ramdisk).then_some(elfnote::MOD_START_PFN));
        let image = super::elf(&[(KERNEL_START, vec![3; 5000], kernel_size)], &notes_without(&left_out));
        match make(&image, ramdisk, nr_pages, if is_dom0 { dom0() } else { domu() }) {
            Ok(built) => check(&built, (KERNEL_START + kernel_size).div_ceil(4096)),
            Err(error) => {
                let fits = matches!(error, BuildError::DoesNotFit { needed, have } if needed > have && have == nr_pages);
                prop_assert!(fits && nr_pages < 0x4000, "{error:?}");
            }
        }
    }

    #[test]
    fn lookups_agree_with_the_runs(counts in proptest::collection::vec(0u64..5, 0..20), probe in 0u64..60) {
        let mut p2m = P2m::default();
        let mut flat = vec![];
        for (i, count) in counts.into_iter().enumerate() {
            let start = 1000 - 10 * i as u64;
            p2m.push(Extent { start: Mfn(start), count });
            flat.extend((start..start + count).map(Mfn));
        }
        prop_assert_eq!(p2m.nr_pages(), flat.len() as u64);
        prop_assert_eq!(p2m.lookup(Pfn(probe)), flat.get(probe as usize).copied());
        let rest: Vec<_> = p2m.iter_from(Pfn(probe)).collect();
        prop_assert_eq!(&rest[..], flat.get(probe as usize..).unwrap_or_default());
        let run = p2m.run_at(Pfn(probe)).map_or(0, |run| run.count);
        prop_assert!(run <= rest.len() as u64 && (run == 0) == rest.is_empty());
    }
}
