// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rows: what one operation of each is.
//!
//! The definitions are those that lmbench's papers and manual pages publish (L. McVoy, C. Staelin, "lmbench: portable
//! tools for performance analysis", USENIX 1996); the code is our own.

use crate::measure::Plan;
use pxbench::sys::{self, Fd, Fork, Mapping, PAGE};
use std::ffi::CStr;
use std::hint::black_box;
use std::io::{Error, Result};

/// Bytes of the file that the memory rows map.
pub const FILE_BYTES: usize = 16 << 20;
/// Pages that one pass of the page-fault row touches (4 MiB).
const FAULT_PAGES: usize = 1024;

/// What every row may use.
#[derive(Debug)]
pub struct Context<'a> {
    /// How long to measure.
    pub plan: Plan,
    /// A file of [`FILE_BYTES`] that the row may read, look up and map.
    pub file: &'a CStr,
    /// This program, for the exec rows.
    pub program: &'a CStr,
}

/// A row: its name, and a function that gives microseconds per operation.
pub type Row = (&'static str, fn(&Context<'_>) -> Result<f64>);

/// All rows in the order they run.
pub const ROWS: [Row; 14] = [
    ("null_call", null_call),
    ("read", read),
    ("stat", stat),
    ("open_close", open_close),
    ("signal_install", signal_install),
    ("signal_handle", signal_handle),
    ("fork", fork),
    ("exec", exec),
    ("sh", shell),
    ("ctx_2p_0k", |context| switch(context, 2, 0)),
    ("ctx_8p_16k", |context| switch(context, 8, 16 << 10)),
    ("protection_fault", protection_fault),
    ("page_fault", page_fault),
    ("mmap_16m", map_file),
];

fn repeat(plan: Plan, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
    plan.time(|count| {
        for _ in 0..count {
            operation()?;
        }
        Ok(())
    })
}

/// The cheapest system call: `getppid`.
fn null_call(context: &Context<'_>) -> Result<f64> {
    repeat(context.plan, || {
        black_box(sys::getppid());
        Ok(())
    })
}

/// One byte from `/dev/zero`.
fn read(context: &Context<'_>) -> Result<f64> {
    let zero = Fd::open(c"/dev/zero", libc::O_RDONLY)?;
    repeat(context.plan, || zero.read_byte().map(drop))
}

/// The status of a file by its path.
fn stat(context: &Context<'_>) -> Result<f64> {
    repeat(context.plan, || sys::stat(context.file))
}

/// Opening a file for reading and closing it.
fn open_close(context: &Context<'_>) -> Result<f64> {
    repeat(context.plan, || {
        Fd::open(context.file, libc::O_RDONLY).map(drop)
    })
}

/// Installing a signal handler.
fn signal_install(context: &Context<'_>) -> Result<f64> {
    repeat(context.plan, sys::install_handler)
}

/// A signal that a process sends to itself, to the return from its handler.
fn signal_handle(context: &Context<'_>) -> Result<f64> {
    sys::install_handler()?;
    let before = sys::signals_caught();
    let time = repeat(context.plan, sys::signal_self)?;
    if sys::signals_caught() == before {
        return Err(Error::other("no signal was caught"));
    }
    Ok(time)
}

/// Catching a protection fault: a write to a read-only page, to the return from its handler.
fn protection_fault(context: &Context<'_>) -> Result<f64> {
    let page = Mapping::anonymous(PAGE)?;
    page.write(0);
    context
        .plan
        .time(|count| sys::protection_faults(&page, count))
}

/// Runs `child` in a new process and waits for it to end with code 0.
fn in_child(child: impl FnOnce() -> Error) -> Result<()> {
    match sys::fork()? {
        Fork::Child => {
            child();
            sys::exit_now(127)
        }
        Fork::Parent(child) => match child.wait()? {
            0 => Ok(()),
            code => Err(Error::other(format!("child ended with {code}"))),
        },
    }
}

/// A new process that ends at once.
fn fork(context: &Context<'_>) -> Result<f64> {
    repeat(context.plan, || in_child(|| sys::exit_now(0)))
}

/// A new process that runs a new program, which ends at once.
fn exec(context: &Context<'_>) -> Result<f64> {
    let arguments = [Some(context.program), Some(crate::EXIT_FLAG), None];
    repeat(context.plan, || {
        in_child(|| sys::exec(context.program, arguments))
    })
}

/// A new process that has the shell run that program.
fn shell(context: &Context<'_>) -> Result<f64> {
    let mut command = context.program.to_bytes().to_vec();
    command.push(b' ');
    command.extend_from_slice(crate::EXIT_FLAG.to_bytes());
    let command = std::ffi::CString::new(command)?;
    let arguments = [Some(c"sh"), Some(c"-c"), Some(command.as_c_str())];
    repeat(context.plan, || {
        in_child(|| sys::exec(c"/bin/sh", arguments))
    })
}

/// One member of a ring: takes the token, sums its array, hands the token on. Ends when the ring is broken.
struct Member {
    from: Fd,
    to: Fd,
    work: Vec<u64>,
}

impl Member {
    fn pass(&mut self) -> Result<()> {
        let token = self.from.read_byte()?;
        black_box(
            self.work
                .iter()
                .fold(0_u64, |sum, word| sum.wrapping_add(*word)),
        );
        self.to.write_byte(token)
    }
}

/// `processes` members whose pipes form a ring, with `bytes` of work each.
fn ring(processes: usize, bytes: usize) -> Result<Vec<Member>> {
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..processes {
        let (read, write) = sys::pipe()?;
        reads.push(read);
        writes.push(write);
    }
    writes.rotate_left(1);
    let member = |(from, to)| Member {
        from,
        to,
        work: vec![1; bytes / 8],
    };
    Ok(reads.into_iter().zip(writes).map(member).collect())
}

/// A context switch: a token passed round `processes` processes, each summing `bytes` at its turn, less
/// what the same pipes and sums cost within one process.
fn switch(context: &Context<'_>, processes: usize, bytes: usize) -> Result<f64> {
    let mut alone = ring(processes, bytes)?;
    let per_round = processes as f64;
    // One member starts the token and is last to get it back: the round ends where it began.
    alone.rotate_left(1);
    let overhead = repeat(context.plan, || {
        let token_out = alone.last().ok_or_else(|| Error::other("no member"))?;
        token_out.to.write_byte(1)?;
        alone
            .iter_mut()
            .take(processes - 1)
            .try_for_each(Member::pass)?;
        let last = alone.last_mut().ok_or_else(|| Error::other("no member"))?;
        black_box(
            last.work
                .iter()
                .fold(0_u64, |sum, word| sum.wrapping_add(*word)),
        );
        last.from.read_byte().map(drop)
    })?;
    drop(alone);

    let mut members = ring(processes, bytes)?;
    let first = members.remove(0);
    let mut children = Vec::new();
    while let Some(mut member) = members.pop() {
        match sys::fork()? {
            Fork::Child => loop {
                if member.pass().is_err() {
                    sys::exit_now(0);
                }
            },
            Fork::Parent(child) => children.push(child),
        }
    }
    let round = repeat(context.plan, || {
        first.to.write_byte(1)?;
        black_box(
            first
                .work
                .iter()
                .fold(0_u64, |sum, word| sum.wrapping_add(*word)),
        );
        first.from.read_byte().map(drop)
    });
    for child in children {
        child.kill();
        child.wait()?;
    }
    Ok((round? - overhead) / per_round)
}

/// The first touch of a page of a mapped file that is in memory, less mapping and unmapping.
fn page_fault(context: &Context<'_>) -> Result<f64> {
    let file = Fd::open(context.file, libc::O_RDWR)?;
    let bytes = FAULT_PAGES * PAGE;
    let mapping = |touch: bool| {
        repeat(context.plan, || {
            let mapping = Mapping::file(&file, bytes)?;
            if touch {
                // An odd step through a power of two visits every page once, in no order that read-ahead could guess.
                for step in 0..FAULT_PAGES {
                    black_box(mapping.read(step.wrapping_mul(389) % FAULT_PAGES));
                }
            }
            Ok(())
        })
    };
    let empty = mapping(false)?;
    Ok((mapping(true)? - empty) / FAULT_PAGES as f64)
}

/// Mapping 16 MiB of a file, writing to every page of its first tenth, and unmapping it.
fn map_file(context: &Context<'_>) -> Result<f64> {
    let file = Fd::open(context.file, libc::O_RDWR)?;
    repeat(context.plan, || {
        let mapping = Mapping::file(&file, FILE_BYTES)?;
        for page in 0..mapping.pages() / 10 {
            mapping.write(page);
        }
        Ok(())
    })
}
