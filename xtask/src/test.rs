// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: lints, the host's tests, and tests in QEMU, each by name, with a time limit and a log.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::args::{self, DOM0_ARGS, Dom0, HYPERVISOR_ARGS, Net};
use crate::build;
use crate::cases::{self, Bad, Broken, Debian, Route, Special, Then};
use crate::host::{Progress, Tree};
use crate::iso;
use crate::kernel;
use crate::lint;
use crate::qemu::{Boot, DISK_BYTES, End, Machine, Outcome, Qemu, Watch};
use crate::rootfs::{self, Root};
use crate::run::{self, Files};
use crate::serve::{Server, noise};

mod xl;

/// Limits by kind of machine; generous, because two machines may share a slow host.
const GUEST_LIMIT: Duration = Duration::from_secs(90);
const DEBIAN_LIMIT: Duration = Duration::from_secs(150);
const BAD_LIMIT: Duration = Duration::from_secs(90);
/// Time for a bad boot to end after its reason was given, and time after which one that shall not end is still there.
const BAD_END: Duration = Duration::from_secs(30);
const BAD_STOP: Duration = Duration::from_secs(6);
/// What the hypervisor prints of a Domain 0 that crashed.
const CRASHED: &str = "Domain 0 crashed";
/// Part of the disk that the host fills and Domain 0 copies, and where it copies it to.
const PATTERN: usize = 4 << 20;
const COPY_AT: usize = 8 << 20;
/// Lines of a log shown after a failure.
const TAIL: usize = 40;

/// One test.
#[derive(Clone, Debug)]
enum Case {
    Lint(lint::Check),
    Host,
    Guest {
        theme: String,
        legacy: bool,
        special: Option<&'static Special>,
    },
    Debian(&'static Debian),
    Bad(&'static Bad),
    /// Scripts of tests/xl, which share a machine as long as they pass.
    Xl(xl::Scripts),
}

impl Case {
    fn on_host(&self) -> bool {
        matches!(self, Self::Lint(_) | Self::Host)
    }
}

/// What a test found.
struct Report {
    passed: usize,
    failed: usize,
    detail: String,
}

/// Everything the tests' machines are made of.
struct Parts {
    qemu: Qemu,
    image: PathBuf,
    /// Arguments that the image needs besides the defaults.
    needs: &'static str,
    guests: [PathBuf; 2],
    files: Files,
    cd: Option<PathBuf>,
    /// The Domain 0 with xl, where a test needs it.
    xl: Option<Root>,
    server: Server,
}

/// True for what runs when nothing is asked for by name.
fn usual(name: &str, case: &Case) -> bool {
    !matches!(case, Case::Xl(_)) || cases::USUAL_SESSIONS.contains(&name)
}

pub fn test(tree: &Tree, options: &args::Test) -> Result<bool> {
    let all = all_cases(tree)?;
    let wanted = options.filter.as_deref().unwrap_or("");
    let chosen: Vec<(String, Case)> = all
        .into_iter()
        .filter(|(name, case)| {
            name.contains(wanted) && (options.list || options.filter.is_some() || usual(name, case))
        })
        .collect();
    if options.list {
        for (name, _) in &chosen {
            println!("{name}");
        }
        return Ok(true);
    }
    ensure!(
        !chosen.is_empty(),
        "no test has a name with {wanted} in it (--list shows them)"
    );

    let start = Instant::now();
    let logs = tree.directory("test-logs")?;
    let (mut passed, mut failed) = (0, 0);
    let mut count = |report: &Report| {
        passed += report.passed;
        failed += report.failed;
    };
    let (host, machines): (Vec<_>, Vec<_>) =
        chosen.into_iter().partition(|(_, case)| case.on_host());
    for (name, case) in &host {
        count(&timed(name, &logs, print, |log| match case {
            Case::Lint(check) => check(tree).map(|()| (1, String::new())),
            _ => lint::host_tests(tree, log).and_then(|(passed, failed, names)| {
                ensure!(
                    failed == 0,
                    "{failed} of {} tests failed: {names}",
                    passed + failed
                );
                Ok((passed, format!("{passed} tests")))
            }),
        }));
    }
    if !machines.is_empty() {
        match parts(tree, options, &machines) {
            Ok(parts) => {
                let jobs = jobs(options);
                for report in run_machines(&parts, xl::shared(machines, jobs), &logs, jobs) {
                    count(&report);
                }
            }
            Err(error) => {
                println!("FAIL build: {error:#}");
                count(&Report {
                    passed: 0,
                    failed: machines.len(),
                    detail: String::new(),
                });
            }
        }
    }
    println!("{:.0} s in all", start.elapsed().as_secs_f32());
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn all_cases(tree: &Tree) -> Result<Vec<(String, Case)>> {
    let mut all: Vec<(String, Case)> = lint::CHECKS
        .iter()
        .map(|(name, check)| (format!("lint/{name}"), Case::Lint(*check)))
        .collect();
    all.push(("host".to_owned(), Case::Host));
    let table = tree.root.join("tests/guests/src/themes/mod.rs");
    let themes = cases::themes(
        &std::fs::read_to_string(&table)
            .with_context(|| format!("cannot read {}", table.display()))?,
    );
    ensure!(!themes.is_empty(), "{} lists no themes", table.display());
    for theme in themes {
        all.push((
            format!("guest/{theme}"),
            Case::Guest {
                theme,
                legacy: false,
                special: None,
            },
        ));
    }
    all.extend(cases::SPECIAL.iter().map(|special| {
        let case = Case::Guest {
            theme: special.theme.to_owned(),
            legacy: false,
            special: Some(special),
        };
        (format!("guest/{}", special.name), case)
    }));
    let boot = "boot".to_owned();
    all.push((
        "guest/boot-legacy".to_owned(),
        Case::Guest {
            theme: boot,
            legacy: true,
            special: None,
        },
    ));
    all.extend(
        cases::BAD
            .iter()
            .map(|bad| (format!("bad/{}", bad.name), Case::Bad(bad))),
    );
    all.extend(
        cases::DEBIAN
            .iter()
            .map(|boot| (format!("debian/{}", boot.name), Case::Debian(boot))),
    );
    all.extend(rootfs::scripts(tree)?.into_iter().flat_map(|script| {
        [1, 2].map(|cpus| {
            let names = vec![script.clone()];
            let scripts = xl::Scripts { names, cpus };
            (scripts.test(&script), Case::Xl(scripts))
        })
    }));
    Ok(all)
}

fn jobs(options: &args::Test) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    options.jobs.unwrap_or(processors).max(1)
}

/// Whether a test runs the test kernel of that layout.
fn uses_guest(case: &Case, legacy: bool) -> bool {
    match case {
        Case::Guest { legacy: this, .. } => *this == legacy,
        Case::Bad(bad) => !legacy && matches!(bad.files, Broken::Guest(_)),
        _ => false,
    }
}

/// Builds and fetches what `machines` need.
fn parts(tree: &Tree, options: &args::Test, machines: &[(String, Case)]) -> Result<Parts> {
    let dom0 = Dom0 {
        flavour: "amd64".to_owned(),
        kernel: None,
        initrd: None,
        xen_args: None,
        kernel_args: None,
    };
    let server = Server::start(tree)?;
    let files = run::files(tree, &dom0)?;
    let (image, needs) = if options.xen {
        (kernel::xen(tree)?, run::XEN_NEEDS)
    } else {
        (build::hypervisor(tree)?.elf, "")
    };
    let guest = |legacy: bool| {
        let used = machines.iter().any(|(_, case)| uses_guest(case, legacy));
        if used {
            build::guests(tree, legacy)
        } else {
            Ok(PathBuf::new())
        }
    };
    let cd = machines
        .iter()
        .find_map(|(_, case)| match case {
            Case::Debian(boot) if boot.route != Route::Direct => Some(*boot),
            _ => None,
        })
        .map(|boot| {
            let dom0_args = debian_args(boot, &server);
            iso::make(
                tree,
                &image,
                &files,
                &format!("{HYPERVISOR_ARGS} {needs}"),
                &dom0_args,
                "test.iso",
            )
        })
        .transpose()?;
    let sessions = machines
        .iter()
        .any(|(_, case)| matches!(case, Case::Xl(..)));
    Ok(Parts {
        xl: sessions
            .then(|| rootfs::make(tree, &dom0.flavour))
            .transpose()?,
        qemu: Qemu::find(options.qemu.as_deref())?,
        guests: [guest(false)?, guest(true)?],
        image,
        needs,
        files,
        cd,
        server,
    })
}

/// Runs the machines' tests, some at a time.
fn run_machines(
    parts: &Parts,
    cases: Vec<(String, Case)>,
    logs: &Path,
    jobs: usize,
) -> Vec<Report> {
    let total: usize = cases
        .iter()
        .map(|(_, case)| match case {
            Case::Xl(scripts) => scripts.names.len(),
            _ => 1,
        })
        .sum();
    let progress = Progress::spinner(format!("{total} tests in QEMU"));
    let queue = Mutex::new(cases.into_iter().collect::<VecDeque<_>>());
    let reports = Mutex::new(Vec::new());
    let add = |report| {
        if let Ok(mut reports) = reports.lock() {
            reports.push(report);
            progress.note(format!("{} of {total} tests in QEMU", reports.len()));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().map_or(None, |mut queue| queue.pop_front());
                    match next {
                        Some((_, Case::Xl(scripts))) => {
                            xl::sessions(parts, &scripts, logs, &progress, add);
                        }
                        Some((name, case)) => add(timed(
                            &name,
                            logs,
                            |text| progress.line(text),
                            |log| one(parts, &name, &case, log, &progress),
                        )),
                        None => break,
                    }
                }
            });
        }
    });
    drop(progress);
    reports.into_inner().unwrap_or_default()
}

/// Runs one test and prints its line; after a failure also the end of its log.
fn timed(
    name: &str,
    logs: &Path,
    show: impl FnOnce(&str),
    run: impl FnOnce(&Path) -> Result<(usize, String)>,
) -> Report {
    let log = logs.join(format!("{}.log", name.replace('/', "-")));
    let _ = std::fs::remove_file(&log);
    let start = Instant::now();
    let result = run(&log);
    tell(name, &log, start.elapsed(), result, show)
}

/// Prints the line of a test that has run.
fn tell(
    name: &str,
    log: &Path,
    time: Duration,
    result: Result<(usize, String)>,
    show: impl FnOnce(&str),
) -> Report {
    let report = match result {
        Ok((passed, detail)) => Report {
            passed,
            failed: 0,
            detail,
        },
        Err(error) => Report {
            passed: 0,
            failed: 1,
            detail: format!("{error:#}"),
        },
    };
    let verdict = if report.failed == 0 { "PASS" } else { "FAIL" };
    let mut text = format!(
        "{verdict} {name} ({:.1} s) {}",
        time.as_secs_f32(),
        report.detail
    );
    if report.failed != 0
        && let Ok(bytes) = std::fs::read(log)
    {
        let lines = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = lines.lines().collect();
        text.push_str(&format!("\n  the end of {}:", log.display()));
        for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
            text.push_str("\n  | ");
            text.push_str(line.trim_end_matches('\r'));
        }
    }
    show(&text);
    report
}

fn print(text: &str) {
    println!("{text}");
}

/// Runs one machine's test.
fn one(
    parts: &Parts,
    name: &str,
    case: &Case,
    log: &Path,
    progress: &Progress,
) -> Result<(usize, String)> {
    let detail = match case {
        Case::Guest {
            theme,
            legacy,
            special,
        } => guest(parts, theme, *legacy, *special, log),
        Case::Debian(boot) => debian(parts, boot, log, |line| {
            progress.note(format!("{name}: {line}"))
        }),
        Case::Bad(bad) => bad_boot(parts, bad, log),
        Case::Lint(_) | Case::Host | Case::Xl(_) => bail!("not one machine's test"),
    }?;
    Ok((1, detail))
}

impl Parts {
    fn machine(&self, boot: Boot, memory: &str) -> Machine {
        Machine {
            qemu: self.qemu.clone(),
            memory: memory.to_owned(),
            cpus: 1,
            cpu: None,
            boot,
            disks: Vec::new(),
            net: Net::None,
            no_reboot: true,
            parallel: false,
            extra: Vec::new(),
        }
    }

    fn multiboot(&self, args: &str, modules: Vec<(PathBuf, String)>) -> Boot {
        Boot::Multiboot {
            image: self.image.clone(),
            args: format!("{HYPERVISOR_ARGS} {} {args}", self.needs),
            modules,
        }
    }
}

fn guest(
    parts: &Parts,
    theme: &str,
    legacy: bool,
    special: Option<&Special>,
    log: &Path,
) -> Result<String> {
    let [new, old] = &parts.guests;
    let kernel = if legacy { old } else { new };
    let args = special.map_or("", |special| special.args);
    let mut machine = parts.machine(
        parts.multiboot(args, vec![(kernel.clone(), format!("test={theme}"))]),
        "256M",
    );
    machine.cpus = special.map_or(1, |special| special.cpus);
    machine.parallel = true;
    let outcome = Watch {
        log,
        limit: GUEST_LIMIT,
        until: Some(&format!("GUEST-TEST {theme} ")),
        grace: Duration::from_secs(10),
        replies: &[],
    }
    .run(&machine, |_| {})?;
    if let Some(line) = outcome.line("GUEST-TEST panic FAIL") {
        bail!("{line}");
    }
    let verdict = outcome
        .line(&format!("GUEST-TEST {theme} "))
        .with_context(|| format!("no verdict {}", how(outcome.end, GUEST_LIMIT)))?;
    if verdict.contains(" EXPECT-CRASH") {
        let dump = outcome.line(CRASHED);
        ensure!(dump.is_some(), "the hypervisor did not say `{CRASHED}`");
        ensure!(
            outcome.end == End::Off,
            "the machine did not reset after the crash"
        );
        return Ok("crashed as it should".to_owned());
    }
    ensure!(verdict.contains(" PASS"), "{verdict}");
    if let Some(line) = special.and_then(|special| outcome.line(special.forbids)) {
        bail!("{line}");
    }
    if let Some(special) = special {
        let said = outcome.line(special.wants).is_some();
        ensure!(said, "the console does not say `{}`", special.wants);
    }
    ensure!(
        outcome.end == End::Off,
        "the machine did not power off after its verdict"
    );
    Ok(String::new())
}

fn how(end: End, limit: Duration) -> String {
    match end {
        End::Off => "before the machine ended".to_owned(),
        End::Seen | End::Limit => format!("within {} s", limit.as_secs()),
    }
}

/// Arguments of Domain 0's kernel for a test.
fn debian_args(boot: &Debian, server: &Server) -> String {
    let Some(script) = boot.script else {
        return DOM0_ARGS.to_owned();
    };
    format!(
        "{DOM0_ARGS} philoxen.test={script} philoxen.memory={} philoxen.http={} philoxen.sum={}",
        boot.sees, server.port, server.sum
    )
}

fn debian(parts: &Parts, boot: &Debian, log: &Path, seen: impl FnMut(&str)) -> Result<String> {
    let disk = log.with_extension("disk");
    let pattern = noise(u64::from(boot.sees), PATTERN);
    let file = std::fs::File::create(&disk)?;
    std::io::Write::write_all(&mut &file, &pattern)?;
    file.set_len(DISK_BYTES)?;
    drop(file);

    let what = match boot.route {
        Route::Direct => parts.multiboot(
            boot.args,
            run::modules(&parts.files, &debian_args(boot, &parts.server)),
        ),
        Route::Bios | Route::Uefi => Boot::Cd {
            image: parts.cd.clone().context("no CD image was made")?,
            uefi: boot.route == Route::Uefi,
        },
    };
    let mut machine = parts.machine(what, boot.memory);
    machine.cpus = boot.cpus;
    machine.cpu = (!boot.cpu.is_empty()).then(|| format!("{}{}", parts.qemu.cpu, boot.cpu));
    machine.net = boot.net;
    machine.disks = vec![disk.clone()];
    // Without it, an emulator that ends says that the machine powered off, not that it was reset.
    machine.no_reboot = boot.no_reboot;
    let outcome = Watch {
        log,
        limit: DEBIAN_LIMIT,
        until: None,
        grace: Duration::ZERO,
        replies: boot.replies,
    }
    .run(&machine, seen)?;
    let copied =
        std::fs::read(&disk).map(|bytes| bytes.get(COPY_AT..COPY_AT + PATTERN) == Some(&*pattern));
    std::fs::remove_file(&disk)?;

    let details = debian_verdict(boot, &outcome)?;
    if boot.script == Some("debian") {
        ensure!(
            copied.unwrap_or(false),
            "what Domain 0 wrote to the disk is not what was there to copy"
        );
    }
    Ok(details)
}

fn debian_verdict(boot: &Debian, outcome: &Outcome) -> Result<String> {
    if let Some((_, line)) = outcome
        .lines
        .iter()
        .find(|(_, line)| line.contains("PHILOXEN-TEST ") && line.contains(" FAIL"))
    {
        bail!("{line}");
    }
    for text in boot.expects {
        ensure!(outcome.line(text).is_some(), "`{text}` was not printed");
    }
    if let Some(script) = boot.script.filter(|_| !boot.no_reboot) {
        ensure!(
            outcome
                .line(&format!("PHILOXEN-TEST {script} PASS"))
                .is_some(),
            "the script has no verdict {}",
            how(outcome.end, DEBIAN_LIMIT)
        );
    }
    ensure!(outcome.end == End::Off, "the machine did not power off");
    Ok(outcome
        .find("PHILOXEN-INIT")
        .map(|(time, _)| format!("/init after {:.1} s", time.as_secs_f32()))
        .unwrap_or_default())
}

fn bad_boot(parts: &Parts, bad: &Bad, log: &Path) -> Result<String> {
    let mut modules = run::modules(&parts.files, DOM0_ARGS);
    let replacement = log.with_extension("module");
    match bad.files {
        Broken::Nothing => {}
        Broken::NoModules => modules.clear(),
        Broken::Garbage => {
            std::fs::write(&replacement, noise(7, 1 << 20))?;
            replace(&mut modules, 0, &replacement);
        }
        // The hypervisor itself is an ELF file that nothing is wrong with.
        Broken::NoNotes => replace(&mut modules, 0, &parts.image),
        Broken::HalfKernel => {
            half(&parts.files.kernel, &replacement)?;
            replace(&mut modules, 0, &replacement);
        }
        Broken::HalfInitramfs => {
            half(&parts.files.initramfs, &replacement)?;
            replace(&mut modules, 1, &replacement);
        }
        Broken::Guest(theme) => {
            let [kernel, _] = &parts.guests;
            modules = vec![(kernel.clone(), format!("test={theme}"))];
        }
    }
    let mut machine = parts.machine(parts.multiboot(bad.args, modules), bad.memory);
    machine.cpu = bad.cpu.map(str::to_owned);
    let outcome = Watch {
        log,
        limit: BAD_LIMIT,
        until: Some(bad.reason),
        grace: match bad.then {
            Then::Off => BAD_END,
            Then::Stop => BAD_STOP,
        },
        replies: bad.replies,
    }
    .run(&machine, |_| {})?;
    let _ = std::fs::remove_file(&replacement);
    let reason = outcome
        .line(bad.reason)
        .with_context(|| format!("no reason given {}", how(outcome.end, BAD_LIMIT)))?;
    if let Some(panic) = outcome.line("Panic on CPU") {
        bail!("{panic}");
    }
    for text in bad.also {
        ensure!(outcome.line(text).is_some(), "`{text}` was not printed");
    }
    match bad.then {
        Then::Off => ensure!(
            outcome.end == End::Off,
            "the machine was not reset after its reason"
        ),
        Then::Stop => ensure!(
            outcome.end != End::Off,
            "the machine did not stop after its reason"
        ),
    }
    Ok(reason.trim().to_owned())
}

fn replace(modules: &mut [(PathBuf, String)], which: usize, file: &Path) {
    if let Some((path, _)) = modules.get_mut(which) {
        *path = file.to_path_buf();
    }
}

fn half(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from)?;
    std::fs::write(to, bytes.get(..bytes.len() / 2).unwrap_or_default())?;
    Ok(())
}
