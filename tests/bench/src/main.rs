// SPDX-License-Identifier: MIT OR Apache-2.0
//! Micro-benchmarks of what an operating system does for its programs, by lmbench's published definitions.
//!
//! Runs anywhere a static program does, an initramfs with nothing but busybox included. Each row prints one line
//! `BENCH <row> <microseconds per operation>`, a row that cannot run `BENCH <row> FAILED <reason>`, and the last line is
//! `BENCH done`.

mod measure;
mod rows;

use measure::Plan;
use pxbench::sys;
use rows::{Context, FILE_BYTES, ROWS};
use std::ffi::{CStr, CString};
use std::io::{Result, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// With this as its only argument the program ends at once: what the exec rows run.
pub const EXIT_FLAG: &CStr = c"--exit";

const USAGE: &str = "usage: pxbench [--quick] [--file PATH] [--list] [ROW...]
  --quick      fewer and shorter repetitions
  --file PATH  scratch file of 16 MiB to create and map (default: pxbench.tmp in the temporary directory)
  --list       print the rows' names and end
  ROW          measure only rows whose name contains this text";

struct Options {
    plan: Plan,
    file: CString,
    filters: Vec<String>,
}

/// `None` if there is nothing to measure.
fn options(
    mut arguments: impl Iterator<Item = String>,
) -> std::result::Result<Option<Options>, String> {
    let directory = std::env::temp_dir();
    let directory = if directory.is_dir() {
        directory
    } else {
        "/".into()
    };
    let mut file = directory.join("pxbench.tmp").into_os_string();
    let (mut plan, mut filters) = (Plan::FULL, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => plan = Plan::QUICK,
            "--file" => file = arguments.next().ok_or("--file needs a path")?.into(),
            "--list" => {
                ROWS.iter().for_each(|(name, _)| println!("{name}"));
                return Ok(None);
            }
            "-h" | "--help" => {
                println!("{USAGE}");
                return Ok(None);
            }
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            _ if ROWS.iter().any(|(name, _)| name.contains(&argument)) => filters.push(argument),
            _ => return Err(format!("no row is named like {argument}")),
        }
    }
    let file = CString::new(file.as_bytes()).map_err(|error| error.to_string())?;
    Ok(Some(Options {
        plan,
        file,
        filters,
    }))
}

/// Fills the scratch file, so that the rows that map it find every page in memory.
fn prepare(file: &CStr) -> Result<()> {
    let scratch = sys::Fd::open(file, libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC)?;
    scratch.set_length(FILE_BYTES)?;
    let mapping = sys::Mapping::file(&scratch, FILE_BYTES)?;
    (0..mapping.pages()).for_each(|page| mapping.write(page));
    Ok(())
}

fn run(options: &Options) -> Result<bool> {
    prepare(&options.file)?;
    let program = std::env::args_os().next().unwrap_or_default();
    let program = std::env::current_exe().map_or(program, std::path::PathBuf::into_os_string);
    let program = CString::new(program.as_bytes())?;
    if let Err(error) = sys::pin_to_first_processor() {
        eprintln!("pxbench: not kept on one processor: {error}");
    }
    let context = Context {
        plan: options.plan,
        file: &options.file,
        program: &program,
    };
    let mut good = true;
    for (name, row) in &ROWS {
        let wanted = |filter: &String| name.contains(filter.as_str());
        if !options.filters.is_empty() && !options.filters.iter().any(wanted) {
            continue;
        }
        match row(&context) {
            Ok(time) => println!("BENCH {name} {time:.4}"),
            Err(error) => {
                good = false;
                println!("BENCH {name} FAILED {error}");
            }
        }
        // A buffered line would be printed again by every child that is forked later.
        std::io::stdout().flush()?;
    }
    println!("BENCH done");
    Ok(good)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments
        .peek()
        .is_some_and(|argument| argument.as_bytes() == EXIT_FLAG.to_bytes())
    {
        return ExitCode::SUCCESS;
    }
    let options = match options(arguments) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("pxbench: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let outcome = run(&options);
    let removed = std::fs::remove_file(std::ffi::OsStr::from_bytes(options.file.to_bytes()));
    match (outcome, removed) {
        (Ok(true), Ok(())) => ExitCode::SUCCESS,
        (Ok(false), _) => ExitCode::FAILURE,
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("pxbench: {error}");
            ExitCode::FAILURE
        }
    }
}
