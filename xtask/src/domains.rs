// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench domains`, `bench sched` and `bench isolation`: what guests cost, what they get and what they lose, on
//! Philoxen and on Debian's Xen, in the same emulator, Domain 0 and guests. Runs of the two are interleaved; the medians over all runs are printed, with a
//! verdict for every row.
//!
//! By wall clock everything counts, and so does what else the host does: it needs an idle host or many runs. By instructions
//! one run says how long the paths are, without what TLB and cache misses cost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::args::{DOM0_ARGS, GuestOptions, HYPERVISOR_ARGS, Mode, XL_HYPERVISOR_ARGS};
use crate::bench::{median_of, number, row, watch};
use crate::build;
use crate::host::{Progress, Tree};
use crate::initramfs;
use crate::kernel;
use crate::qemu::{Boot, Machine, Qemu};
use crate::rootfs::{self, Root};
use crate::run;
use crate::servers;

const LIMIT: Duration = Duration::from_secs(3600);

/// A script of tests/xl/bench and what it prints.
#[derive(Debug)]
pub struct Suite {
    script: &'static str,
    /// Programs of tests/bench that it needs.
    programs: &'static [&'static str],
    /// Disks besides Domain 0's, each a copy of servers.rs's image.
    servers: usize,
    /// Memory of the machine; Domain 0's is part of it.
    memory: &'static str,
    rows: &'static [Row],
}

/// What guests cost.
pub const DOMAINS: Suite = Suite {
    script: "bench-domains",
    programs: &["pxio"],
    servers: 0,
    memory: "2G",
    rows: DOMAIN_ROWS,
};

/// What the scheduler gives them.
pub const SCHED: Suite = Suite {
    script: "bench-sched",
    programs: &["pxwake"],
    servers: 0,
    memory: "4G",
    rows: SCHED_ROWS,
};

/// What one guest's work costs another.
pub const ISOLATION: Suite = Suite {
    script: "bench-isolation",
    programs: &[],
    servers: 5,
    memory: "2G",
    rows: ISOLATION_ROWS,
};

/// Name in the script's output, what it is, what is good.
type Row = (&'static str, &'static str, Good);

/// What is good.
#[derive(Clone, Copy, Debug)]
enum Good {
    /// At most Xen's.
    Less,
    /// At least Xen's.
    More,
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

const DOMAIN_ROWS: &[Row] = &[
    ("create", "xl create to /init, ms", Good::Less),
    (
        "create-devices",
        "the same with disk and network, ms",
        Good::Less,
    ),
    ("destroy", "xl destroy, 128 MiB, ms", Good::Less),
    ("destroy-1GiB", "xl destroy, 1 GiB, ms", Good::Less),
    (
        "destroy-devices",
        "xl destroy with disk and network, ms",
        Good::Less,
    ),
    ("memory", "one more idle guest, KiB", Good::AtMost(64.0)),
    (
        "memory-network",
        "the same with a network interface, KiB",
        Good::AtMost(64.0),
    ),
    ("tcp-to-guest", "TCP Domain 0 to guest, MiB/s", Good::More),
    ("tcp-to-dom0", "TCP guest to Domain 0, MiB/s", Good::More),
    ("block-read", "sequential read, MiB/s", Good::More),
    ("block-write", "sequential write, MiB/s", Good::More),
    (
        "block-random-read",
        "random reads of 4 KiB per second",
        Good::More,
    ),
    (
        "block-random-write",
        "random writes of 4 KiB per second",
        Good::More,
    ),
];

const SHARE: Good = Good::AtMost(1.0);
const SCHED_ROWS: &[Row] = &[
    (
        "share-equal-2",
        "2 guests that compute, error of shares, %",
        SHARE,
    ),
    ("share-weights-2", "the same, weights 1:2", SHARE),
    ("share-equal-4", "4 guests", SHARE),
    ("share-weights-4", "the same, weights 1:2:3:4", SHARE),
    ("share-equal-8", "8 guests", SHARE),
    ("share-weights-8", "the same, weights 1:2:...:8", SHARE),
    (
        "wake-timer-0-median",
        "timer of a guest alone, late by, us",
        Good::Less,
    ),
    ("wake-timer-0-p99", "99th percentile", Good::Less),
    ("wake-timer-1-median", "beside 1 that computes", Good::Less),
    ("wake-timer-1-p99", "99th percentile", Good::Less),
    ("wake-timer-7-median", "beside 7", Good::Less),
    ("wake-timer-7-p99", "99th percentile", Good::Less),
    ("wake-timer-31-median", "beside 31", Good::Less),
    ("wake-timer-31-p99", "99th percentile", Good::Less),
    (
        "wake-net-0-median",
        "packet to a guest alone and back, us",
        Good::Less,
    ),
    ("wake-net-0-p99", "99th percentile", Good::Less),
    ("wake-net-1-median", "beside 1 that computes", Good::Less),
    ("wake-net-1-p99", "99th percentile", Good::Less),
    ("wake-net-7-median", "beside 7", Good::Less),
    ("wake-net-7-p99", "99th percentile", Good::Less),
    ("wake-net-31-median", "beside 31", Good::Less),
    ("wake-net-31-p99", "99th percentile", Good::Less),
    (
        "wake-unwarped-median",
        "timer of one that computes half the time, beside 7",
        Good::Less,
    ),
    ("wake-unwarped-p99", "99th percentile", Good::Less),
    ("wake-warped-median", "the same, warped", Good::Less),
    ("wake-warped-p99", "99th percentile", Good::Less),
    (
        "wake-warped-ratio",
        "warped to unwarped, 99th percentile",
        Good::AtMost(0.1),
    ),
    (
        "event-ping-median",
        "event to another guest and back, us",
        Good::Less,
    ),
    ("event-ping-p99", "99th percentile", Good::Less),
    (
        "scaling",
        "work of as many guests as processors to one's",
        Good::AtLeast(1.9),
    ),
];

/// What a domain may lose, as in the paper.
const DATABASE: Good = Good::AtMost(4.0);
const WEB: Good = Good::AtMost(2.0);
const ISOLATION_ROWS: &[Row] = &[
    (
        "db-benign",
        "database beside guests that compute, 1/s",
        Good::More,
    ),
    ("web-benign", "web server, 1/s", Good::More),
    ("db-disk", "database beside a disk hog, 1/s", Good::More),
    ("web-disk", "web server", Good::More),
    (
        "db-fork",
        "database beside a fork bomb and memory hog, 1/s",
        Good::More,
    ),
    ("web-fork", "web server", Good::More),
    ("db-both", "database beside both, 1/s", Good::More),
    ("web-both", "web server", Good::More),
    ("loss-db-disk", "disk hog: database loses, %", DATABASE),
    ("loss-web-disk", "web server loses, %", WEB),
    (
        "loss-db-fork",
        "fork bomb and memory hog: database loses, %",
        DATABASE,
    ),
    ("loss-web-fork", "web server loses, %", WEB),
    ("loss-db-both", "both: database loses, %", DATABASE),
    ("loss-web-both", "web server loses, %", WEB),
];

/// Values by row.
type Values = BTreeMap<String, Vec<f64>>;

/// `cargo xtask bench domains`, `cargo xtask bench sched`.
pub fn bench(tree: &Tree, options: &GuestOptions, suite: &Suite) -> Result<()> {
    let root = domain0(tree, options, suite)?;
    let mut machines = options
        .systems
        .iter()
        .map(|name| Ok((name.clone(), machine(tree, options, suite, &root, name)?)))
        .collect::<Result<Vec<_>>>()?;
    println!(
        "Guests of Debian's xl, {} of memory, {} processor(s)",
        suite.memory, options.cpus
    );
    for (mode, title, runs) in [
        (
            Mode::Icount,
            "By instructions (-icount shift=0,sleep=off): a second is 10^9 of them",
            1,
        ),
        (Mode::Wall, "By wall clock", options.runs),
    ] {
        if options.mode != Mode::Both && options.mode != mode {
            continue;
        }
        for (_, machine) in &mut machines {
            machine.extra = vec!["-snapshot".into()];
            let mut dom0 = format!("{DOM0_ARGS} philoxen.test={}", suite.script);
            if mode == Mode::Icount {
                let clock = ["-icount", "shift=0,sleep=off"];
                machine.extra.extend(clock.map(Into::into));
                dom0.push_str(" philoxen.bench=once");
            }
            if let Boot::Multiboot { modules, .. } = &mut machine.boot {
                *modules = run::modules(&root.files, &dom0);
            }
        }
        let values = measure(tree, suite, &machines, mode, runs)?;
        println!("{title}; medians of {runs} interleaved runs");
        table(suite, &options.systems, &values);
    }
    Ok(())
}

/// Runs every machine `runs` times.
fn measure(
    tree: &Tree,
    suite: &Suite,
    machines: &[(String, Machine)],
    mode: Mode,
    runs: usize,
) -> Result<BTreeMap<String, Values>> {
    let logs = tree.directory("bench-logs")?;
    let kind = if mode == Mode::Icount {
        "icount"
    } else {
        "wall"
    };
    let mut values: BTreeMap<String, Values> = BTreeMap::new();
    let progress = Progress::spinner("Measuring guests");
    for round in 1..=runs {
        for (name, machine) in machines {
            let what = format!("{name} {kind} {round}/{runs}");
            let log = logs.join(format!("{}-{name}-{kind}-{round}.log", suite.script));
            let verdict = format!("PHILOXEN-TEST {} ", suite.script);
            let outcome = watch(machine, &log, LIMIT, Some(&verdict), &progress, &what)?;
            ensure!(
                outcome.line(&format!("{verdict}PASS")).is_some(),
                "{what} did not end well; see {}",
                log.display()
            );
            let of_system = values.entry(name.clone()).or_default();
            for (name, value) in outcome.lines.iter().filter_map(|(_, line)| row(line)) {
                of_system.entry(name).or_default().push(value);
            }
        }
    }
    Ok(values)
}

/// The Domain 0 with xl, and what measures in it.
fn domain0(tree: &Tree, options: &GuestOptions, suite: &Suite) -> Result<Root> {
    let mut root = rootfs::make(tree, &options.flavour)?;
    let mut extra: Vec<(String, PathBuf)> = Vec::new();
    for script in [suite.script, "bench"] {
        let path = tree.root.join(format!("tests/xl/bench/{script}.sh"));
        extra.push((format!("xl/{script}.sh"), path));
    }
    for program in suite.programs {
        extra.push((
            format!("xl/{program}"),
            build::bench_program(tree, program)?,
        ));
    }
    let mut bytes = std::fs::read(&root.files.initramfs)?;
    bytes.extend(initramfs::addition(&extra)?);
    root.files.initramfs = tree.target.join("initramfs-xl-bench.img");
    std::fs::write(&root.files.initramfs, bytes)?;
    Ok(root)
}

/// A machine with one of the systems; what it boots in it depends on the clock.
fn machine(
    tree: &Tree,
    options: &GuestOptions,
    suite: &Suite,
    root: &Root,
    system: &str,
) -> Result<Machine> {
    let (image, needs) = match system {
        "xen" => (kernel::xen(tree)?, run::XEN_NEEDS),
        "philoxen" => (build::hypervisor(tree)?.elf, ""),
        other => bail!("no system is called {other}: xen, philoxen"),
    };
    let mut disks = vec![root.disk.clone()];
    if suite.servers > 0 {
        disks.extend(vec![servers::image(tree)?; suite.servers]);
    }
    Ok(Machine {
        qemu: Qemu::find(options.qemu.as_deref())?,
        memory: suite.memory.to_owned(),
        cpus: options.cpus,
        cpu: None,
        boot: Boot::Multiboot {
            image,
            args: format!("{HYPERVISOR_ARGS} {needs} {XL_HYPERVISOR_ARGS}"),
            modules: Vec::new(),
        },
        disks,
        net: run::card(&root.files),
        no_reboot: true,
        parallel: true,
        extra: Vec::new(),
    })
}

fn table(suite: &Suite, systems: &[String], values: &BTreeMap<String, Values>) {
    print!("{:46}", "");
    for system in systems {
        print!(" {system:>10}");
    }
    println!("  philoxen/xen");
    for (name, title, good) in suite.rows {
        let value = |system: &str| {
            let values = values.get(system)?.get(*name)?;
            median_of(values.iter().copied())
        };
        if systems.iter().all(|system| value(system).is_none()) {
            continue;
        }
        print!("{title:46}");
        for system in systems {
            print!(" {:>10}", number(value(system), 2));
        }
        let (ours, theirs) = (value("philoxen"), value("xen"));
        let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
        let met = match good {
            Good::Less => ratio.map(|ratio| ratio <= 1.0),
            Good::More => ratio.map(|ratio| ratio >= 1.0),
            Good::AtMost(most) => ours.map(|ours| ours <= *most),
            Good::AtLeast(least) => ours.map(|ours| ours >= *least),
        };
        println!(
            " {:>13}  {}",
            number(ratio, 2),
            met.map_or("", |met| if met { "met" } else { "missed" })
        );
    }
}
