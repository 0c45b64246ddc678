// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask`: everything a developer does with Philoxen on the host, one command each.
//!
//! Nothing outside the target directory is written, but for `lint --bless` (the ledger of unsafe blocks) and
//! packages that the user is told of before apt installs them.

mod args;
mod bench;
mod build;
mod cases;
mod debian;
mod deps;
mod domains;
mod guestdisk;
mod host;
mod image;
mod initramfs;
mod iso;
mod kernel;
mod lint;
mod package;
mod qemu;
mod rootfs;
mod run;
mod serve;
mod servers;
mod stack;
mod sysroot;
mod test;

use clap::Parser as _;

use args::{Args, Bench, Command};

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let result = host::Tree::find().and_then(|tree| match args.command {
        Command::Build => build::hypervisor(&tree).map(|_| true),
        Command::Run(options) => run::run(&tree, &options),
        Command::Test(options) => test::test(&tree, &options),
        Command::Lint(options) => lint::command(&tree, &options),
        Command::Iso(options) => iso::command(&tree, &options).map(|()| true),
        Command::Bench(Bench::Boot(options)) => bench::boot(&tree, &options).map(|()| true),
        Command::Bench(Bench::Micro(options)) => bench::micro(&tree, &options).map(|()| true),
        Command::Bench(Bench::SchedHost) => bench::sched_host(&tree).map(|()| true),
        Command::Bench(Bench::Domains(options)) => {
            domains::bench(&tree, &options, &domains::DOMAINS).map(|()| true)
        }
        Command::Bench(Bench::Sched(options)) => {
            domains::bench(&tree, &options, &domains::SCHED).map(|()| true)
        }
        Command::Bench(Bench::Isolation(options)) => {
            domains::bench(&tree, &options, &domains::ISOLATION).map(|()| true)
        }
    });
    match result {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
