// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sessions with Debian's xl: the scripts of tests/xl, one after the other in a machine.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::args::{DOM0_ARGS, XL_HYPERVISOR_ARGS, XL_MEMORY};
use crate::host::Progress;
use crate::qemu::{End, Watch};
use crate::run;

use super::{Case, Parts, Report, how, tell};

/// Limit for each script.
const XL_LIMIT: Duration = Duration::from_secs(900);

/// The machines with the scripts of tests/xl dealt out to one for each job: it starts Domain 0 once for all of them. They
/// come first, because they take longest.
pub fn shared(cases: Vec<(String, Case)>, jobs: usize) -> Vec<(String, Case)> {
    let mut hands = vec![Vec::new(); jobs];
    let mut others = Vec::new();
    let mut next = (0..jobs).cycle();
    for (name, case) in cases {
        match (case, next.next().and_then(|hand| hands.get_mut(hand))) {
            (Case::Xl(scripts), Some(hand)) => hand.extend(scripts),
            (case, _) => others.push((name, case)),
        }
    }
    hands
        .into_iter()
        .filter(|hand| !hand.is_empty())
        .map(|hand| (format!("xl/{}", hand.join(",")), Case::Xl(hand)))
        .chain(others)
        .collect()
}

/// Runs scripts of tests/xl. They share a machine, which ends with the first that fails: the others get a new one.
pub fn sessions(
    parts: &Parts,
    scripts: &[String],
    logs: &Path,
    progress: &Progress,
    add: impl Fn(Report),
) {
    let mut left = scripts;
    while let Some((first, _)) = left.split_first() {
        let log = logs.join(format!("xl-{}.log", left.join("-")));
        let start = Instant::now();
        let mut passed = 0;
        let mut since = start;
        let failure = session(parts, left, &log, |line| {
            let verdict = left.get(passed).and_then(|script| {
                let rest = line.split_once(&format!("PHILOXEN-TEST {script} PASS "));
                rest.map(|(_, detail)| (script, detail))
            });
            if let Some((script, detail)) = verdict {
                let result = Ok((1, detail.to_owned()));
                let name = format!("xl/{script}");
                add(tell(&name, &log, since.elapsed(), result, |text| {
                    progress.line(text);
                }));
                (passed, since) = (passed + 1, Instant::now());
            } else {
                progress.note(format!("xl: {line}"));
            }
        })
        .err();
        let (_, rest) = left.split_at(passed);
        left = rest;
        // Whatever went wrong is the fault of the script that was running, or of the last one.
        let running = left.first().unwrap_or(first).clone();
        let error = match failure {
            Some(error) => error,
            None if left.is_empty() => break,
            None => anyhow::anyhow!("the script has no verdict"),
        };
        let name = format!("xl/{running}");
        add(tell(&name, &log, since.elapsed(), Err(error), |text| {
            progress.line(text);
        }));
        left = left.get(1..).unwrap_or_default();
    }
}

/// Runs scripts of tests/xl in the Domain 0 with xl, whose disk is as new afterwards, as long as they pass.
fn session(parts: &Parts, scripts: &[String], log: &Path, seen: impl FnMut(&str)) -> Result<()> {
    let root = parts.xl.as_ref().context("no Domain 0 with xl was made")?;
    let args = format!("{DOM0_ARGS} philoxen.test={}", scripts.join(","));
    let mut machine = parts.machine(
        parts.multiboot(XL_HYPERVISOR_ARGS, run::modules(&root.files, &args)),
        XL_MEMORY,
    );
    machine.net = run::card(&root.files);
    machine.disks = vec![root.disk.clone()];
    machine.extra = vec!["-snapshot".into()];
    let limit = XL_LIMIT * u32::try_from(scripts.len())?;
    let outcome = Watch {
        log,
        limit,
        until: None,
        grace: Duration::ZERO,
        replies: &[],
    }
    .run(&machine, seen)?;
    if let Some((_, line)) = outcome
        .lines
        .iter()
        .find(|(_, line)| line.contains("PHILOXEN-TEST ") && line.contains(" FAIL"))
    {
        bail!("{line}");
    }
    ensure!(
        outcome.end == End::Off,
        "the machine did not power off {}",
        how(outcome.end, limit)
    );
    Ok(())
}
