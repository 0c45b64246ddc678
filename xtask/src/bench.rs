// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: Philoxen beside Debian's Xen and bare Linux, on the same emulator, kernel and initramfs.
//! Runs of the systems are interleaved, so that a host that gets slower does so for all; medians are printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::args::{BenchOptions, DOM0_ARGS, HYPERVISOR_ARGS, MEMORY, Mode, Net};
use crate::build;
use crate::host::{self, Progress, Tree};
use crate::initramfs;
use crate::kernel;
use crate::qemu::{Boot, Machine, Outcome, Watch};
use crate::run::{self, Files};

const BOOT_LIMIT: Duration = Duration::from_secs(180);
const MICRO_LIMIT: Duration = Duration::from_secs(1800);

/// `cargo xtask bench sched-host`.
pub fn sched_host(tree: &Tree) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    host::run(
        Command::new(cargo)
            .args(["run", "--quiet", "--release", "--package", "philoxen-sched"])
            .args(["--example", "decisions"])
            .current_dir(&tree.root),
    )
}

/// A system to measure.
struct System {
    name: String,
    boot: Boot,
}

/// The systems that the options name, with more arguments for their kernel.
fn systems(tree: &Tree, options: &BenchOptions, files: &Files, args: &str) -> Result<Vec<System>> {
    let dom0 = format!("{DOM0_ARGS} {args}");
    options
        .systems
        .iter()
        .map(|name| {
            let boot = match name.as_str() {
                "native" => Boot::Linux {
                    kernel: files.kernel.clone(),
                    args: format!("{} {args}", run::NATIVE_ARGS),
                    initramfs: files.initramfs.clone(),
                },
                "xen" => Boot::Multiboot {
                    image: kernel::xen(tree)?,
                    args: format!("{HYPERVISOR_ARGS} {}", run::XEN_NEEDS),
                    modules: run::modules(files, &dom0),
                },
                "philoxen" => Boot::Multiboot {
                    image: build::hypervisor(tree)?.elf,
                    args: HYPERVISOR_ARGS.to_owned(),
                    modules: run::modules(files, &dom0),
                },
                other => bail!("no system is called {other}: native, xen, philoxen"),
            };
            Ok(System {
                name: name.clone(),
                boot,
            })
        })
        .collect()
}

fn files(tree: &Tree, options: &BenchOptions, extra: &[initramfs::Extra]) -> Result<Files> {
    let kernel = kernel::kernel(tree, &options.flavour)?;
    Ok(Files {
        initramfs: initramfs::make(tree, &kernel, extra)?,
        kernel: kernel.image,
        virtio_only: false,
    })
}

/// Runs one machine until it powers off.
pub fn watch(
    machine: &Machine,
    log: &Path,
    limit: Duration,
    until: Option<&str>,
    progress: &Progress,
    what: &str,
) -> Result<Outcome> {
    progress.note(what);
    Watch {
        log,
        limit,
        until,
        grace: Duration::from_secs(5),
        replies: &[],
    }
    .run(machine, |line| progress.note(format!("{what}: {line}")))
}

/// Times of one boot, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct BootTimes {
    /// From the emulator's start to /init.
    init: f64,
    /// Of it, from the hypervisor's entry to Domain 0's first instruction, decompression of the kernel included.
    own: Option<f64>,
    /// Of that, decompression of the kernel.
    decompression: Option<f64>,
}

/// `cargo xtask bench boot`.
pub fn boot(tree: &Tree, options: &BenchOptions) -> Result<()> {
    let files = files(tree, options, &[])?;
    let systems = systems(tree, options, &files, "philoxen.test=mark")?;
    let logs = tree.directory("bench-logs")?;
    let mut times: BTreeMap<&str, Vec<BootTimes>> = BTreeMap::new();
    let progress = Progress::spinner("Booting");
    for round in 1..=options.runs {
        for system in &systems {
            let mut machine = Machine::new(&options.machine, system.boot.clone())?;
            machine.net = Net::E1000;
            machine.no_reboot = true;
            let what = format!("{} {round}/{}", system.name, options.runs);
            let log = logs.join(format!("boot-{}-{round}.log", system.name));
            let outcome = watch(
                &machine,
                &log,
                BOOT_LIMIT,
                Some("PHILOXEN-TEST mark"),
                &progress,
                &what,
            )?;
            let found = boot_times(&outcome).with_context(|| {
                format!("{} did not reach /init; see {}", system.name, log.display())
            })?;
            times.entry(&system.name).or_default().push(found);
        }
    }
    drop(progress);

    println!(
        "Boot of Debian's kernel to /init, {} of memory, {} processor(s), medians of {} interleaved runs, ms",
        options.machine.memory.as_deref().unwrap_or(MEMORY),
        options.machine.cpus,
        options.runs
    );
    println!(
        "{:10} {:>10} {:>12} {:>15} {:>16}",
        "", "/init", "hypervisor", "decompression", "the rest of it"
    );
    for system in &systems {
        let Some(runs) = times.get(system.name.as_str()) else {
            continue;
        };
        let own = median_of(runs.iter().filter_map(|run| run.own));
        let decompression = median_of(runs.iter().filter_map(|run| run.decompression));
        let rest = median_of(
            runs.iter()
                .filter_map(|run| Some(run.own? - run.decompression?)),
        );
        println!(
            "{:10} {:>10} {:>12} {:>15} {:>16}",
            system.name,
            number(median_of(runs.iter().map(|run| run.init)), 0),
            number(own, 1),
            number(decompression, 1),
            number(rest, 1)
        );
    }
    println!(
        "hypervisor: its first line (Philoxen: its entry, by its own clock) to Domain 0's first instruction"
    );
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn boot_times(outcome: &Outcome) -> Option<BootTimes> {
    let (init, _) = outcome.find("PHILOXEN-INIT")?;
    // Philoxen says it itself; Xen's part is read from when its lines arrive.
    let (own, decompression) = match outcome.line("bench: dom0 entry at ") {
        Some(line) => (
            number_after(line, "dom0 entry at "),
            number_after(line, "decompression "),
        ),
        None => xen_times(outcome),
    };
    Some(BootTimes {
        init: milliseconds(init),
        own,
        decompression,
    })
}

/// Xen's first line to Domain 0's first; decompression lies between the builder's start and what it finds out about
/// the kernel.
fn xen_times(outcome: &Outcome) -> (Option<f64>, Option<f64>) {
    let at = |text: &str| outcome.find(text).map(|(time, _)| time);
    let between =
        |from: Option<Duration>, to: Option<Duration>| Some(milliseconds(to?.checked_sub(from?)?));
    let own = between(at("Xen version"), at("Linux version")).filter(|_| at("(XEN)").is_some());
    let decompression = between(at("*** Building a PV Dom0 ***"), at("ELF: phdr"))
        .or_else(|| between(at("*** Building a PV Dom0 ***"), at(" Xen  kernel: ")));
    (own, decompression)
}

/// The microseconds behind `text`, in milliseconds.
fn number_after(line: &str, text: &str) -> Option<f64> {
    let (_, rest) = line.split_once(text)?;
    let microseconds: f64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(microseconds / 1000.0)
}

pub fn median_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied()?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = values.get(values.len() / 2 - 1).copied()?;
    Some(f64::midpoint(lower, upper))
}

pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Results of the micro-benchmarks: by row, then by system.
type Rows = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

/// `cargo xtask bench micro`.
pub fn micro(tree: &Tree, options: &BenchOptions) -> Result<()> {
    let program = build::bench_program(tree, "pxbench")?;
    let extra: [(String, PathBuf); 1] = [("bin/pxbench".to_owned(), program)];
    let files = files(tree, options, &extra)?;
    let arguments = options.rows.join(",");
    let systems = systems(
        tree,
        options,
        &files,
        &format!("philoxen.test=bench philoxen.bench={arguments}"),
    )?;
    // Instruction counts repeat within half a percent, so that one run of them says it.
    for (mode, title, runs) in [
        (
            Mode::Icount,
            "By instructions (-icount shift=0,sleep=off), us",
            1,
        ),
        (Mode::Wall, "By wall clock, us", options.runs),
    ] {
        if options.mode != Mode::Both && options.mode != mode {
            continue;
        }
        let (order, rows) = measure(tree, options, &systems, mode, runs)?;
        println!("{title}; medians of {runs}");
        table(&systems, &order, &rows);
    }
    Ok(())
}

/// Runs every system `runs` times, and returns the rows in their order and their values.
fn measure(
    tree: &Tree,
    options: &BenchOptions,
    systems: &[System],
    mode: Mode,
    runs: usize,
) -> Result<(Vec<String>, Rows)> {
    let logs = tree.directory("bench-logs")?;
    let (mut order, mut rows) = (Vec::new(), Rows::new());
    let progress = Progress::spinner("Measuring");
    for round in 1..=runs {
        for system in systems {
            let mut machine = Machine::new(&options.machine, system.boot.clone())?;
            machine.no_reboot = true;
            let kind = if mode == Mode::Icount {
                "icount"
            } else {
                "wall"
            };
            if mode == Mode::Icount {
                machine.extra = ["-icount", "shift=0,sleep=off"].map(Into::into).to_vec();
            }
            let what = format!("{} {kind} {round}/{runs}", system.name);
            let log = logs.join(format!("micro-{}-{kind}-{round}.log", system.name));
            let outcome = watch(
                &machine,
                &log,
                MICRO_LIMIT,
                Some("PHILOXEN-TEST bench"),
                &progress,
                &what,
            )?;
            ensure!(
                outcome.line("PHILOXEN-TEST bench PASS").is_some(),
                "{what} did not end well; see {}",
                log.display()
            );
            for (_, line) in &outcome.lines {
                let Some((row, value)) = row(line) else {
                    continue;
                };
                if !order.contains(&row) {
                    order.push(row.clone());
                }
                rows.entry(row)
                    .or_default()
                    .entry(system.name.clone())
                    .or_default()
                    .push(value);
            }
        }
    }
    Ok((order, rows))
}

/// `BENCH <row> <microseconds>`.
pub fn row(line: &str) -> Option<(String, f64)> {
    let (_, rest) = line.split_once("BENCH ")?;
    let (name, value) = rest.trim().rsplit_once(' ')?;
    Some((name.to_owned(), value.parse().ok()?))
}

fn table(systems: &[System], order: &[String], rows: &Rows) {
    print!("{:24}", "");
    for system in systems {
        print!(" {:>10}", system.name);
    }
    let ratios: Vec<&System> = systems
        .iter()
        .filter(|system| system.name != "philoxen")
        .collect();
    for system in &ratios {
        print!(" {:>18}", format!("philoxen/{}", system.name));
    }
    println!();
    for row in order {
        let value = |system: &str| {
            let values = rows.get(row)?.get(system)?;
            median_of(values.iter().copied())
        };
        print!("{row:24}");
        for system in systems {
            print!(" {:>10}", number(value(&system.name), 3));
        }
        for system in &ratios {
            let ratio = value("philoxen")
                .zip(value(&system.name))
                .map(|(ours, theirs)| ours / theirs);
            print!(" {:>18}", number(ratio, 2));
        }
        println!();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median_of([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median_of([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median_of(std::iter::empty()), None);
    }

    #[test]
    fn rows_are_read() {
        assert_eq!(
            row("BENCH null call 0.374"),
            Some(("null call".to_owned(), 0.374))
        );
        assert_eq!(row("BENCH done"), None);
        assert_eq!(row("BENCH fork FAILED no memory"), None);
        assert_eq!(
            number_after(
                "bench: dom0 entry at 1500 us, decompression 250 us",
                "decompression "
            ),
            Some(0.25)
        );
    }
}
