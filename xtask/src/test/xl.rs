// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sessions with Debian's xl: the scripts of tests/xl, one after the other in a machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::args::{DOM0_ARGS, XL_HYPERVISOR_ARGS, XL_MEMORY};
use crate::cases::{LARGE_MEMORY, LARGE_SESSIONS, USUAL_SESSIONS};
use crate::host::Progress;
use crate::qemu::{End, Watch};
use crate::run;

use super::{Case, Parts, Report, how, tell};

/// Limit for each script.
const XL_LIMIT: Duration = Duration::from_secs(900);

/// Scripts of tests/xl for one machine.
#[derive(Clone, Debug)]
pub struct Scripts {
    pub names: Vec<String>,
    /// Processors of the machine.
    pub cpus: u32,
}

impl Scripts {
    /// The test's name for one of them.
    pub fn test(&self, script: &str) -> String {
        match self.cpus {
            1 => format!("xl/{script}"),
            cpus => format!("xl/{script}-{cpus}cpus"),
        }
    }
}

/// The machines with the scripts of tests/xl dealt out to one for each job and number of processors: it starts Domain 0
/// once for all of them. They come first, because they take longest. The usual ones come longest first and are dealt to
/// and fro, so that each machine has as much to do.
pub fn shared(cases: Vec<(String, Case)>, jobs: usize) -> Vec<(String, Case)> {
    let mut hands: BTreeMap<(u32, usize), Vec<String>> = BTreeMap::new();
    let (mut sessions, others): (Vec<_>, Vec<_>) = cases
        .into_iter()
        .partition(|(_, case)| matches!(case, Case::Xl(_)));
    sessions.sort_by_key(|(name, _)| USUAL_SESSIONS.iter().position(|usual| usual == name));
    let places = (0..jobs).chain((0..jobs).rev()).cycle();
    for ((_, case), place) in sessions.into_iter().zip(places) {
        if let Case::Xl(scripts) = case {
            let hand = hands.entry((scripts.cpus, place)).or_default();
            hand.extend(scripts.names);
        }
    }
    hands
        .into_iter()
        .map(|((cpus, _), names)| {
            (
                format!("xl/{}", names.join(",")),
                Case::Xl(Scripts { names, cpus }),
            )
        })
        .chain(others)
        .collect()
}

/// Runs scripts of tests/xl. They share a machine, which ends with the first that fails: the others get a new one.
pub fn sessions(
    parts: &Parts,
    scripts: &Scripts,
    logs: &Path,
    progress: &Progress,
    add: impl Fn(Report),
) {
    let mut left = scripts.names.as_slice();
    while let Some((first, _)) = left.split_first() {
        let log = logs.join(format!("xl-{}-{}cpus.log", left.join("-"), scripts.cpus));
        let start = Instant::now();
        let mut passed = 0;
        let mut since = start;
        let failure = session(parts, left, scripts.cpus, &log, |line| {
            let verdict = left.get(passed).and_then(|script| {
                let rest = line.split_once(&format!("PHILOXEN-TEST {script} PASS "));
                rest.map(|(_, detail)| (script, detail))
            });
            if let Some((script, detail)) = verdict {
                let result = Ok((1, detail.to_owned()));
                let name = scripts.test(script);
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
        let name = scripts.test(&running);
        add(tell(&name, &log, since.elapsed(), Err(error), |text| {
            progress.line(text);
        }));
        left = left.get(1..).unwrap_or_default();
    }
}

/// Runs scripts of tests/xl in the Domain 0 with xl, whose disk is as new afterwards, as long as they pass.
fn session(
    parts: &Parts,
    scripts: &[String],
    cpus: u32,
    log: &Path,
    seen: impl FnMut(&str),
) -> Result<()> {
    let root = parts.xl.as_ref().context("no Domain 0 with xl was made")?;
    let args = format!("{DOM0_ARGS} philoxen.test={}", scripts.join(","));
    let large = scripts
        .iter()
        .any(|script| LARGE_SESSIONS.contains(&script.as_str()));
    let mut machine = parts.machine(
        parts.multiboot(XL_HYPERVISOR_ARGS, run::modules(&root.files, &args)),
        if large { LARGE_MEMORY } else { XL_MEMORY },
    );
    machine.cpus = cpus;
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
