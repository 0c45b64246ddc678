// SPDX-License-Identifier: MIT OR Apache-2.0
//! How late a guest wakes up, and how much it computes.
//!
//! `timer` and `ping` print the median and the 99th percentile in microseconds, `work` units per second.

use std::hint::black_box;
use std::io::{Error, Result};
use std::net::UdpSocket;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: pxwake timer PERIOD_US COUNT
       pxwake echo PORT
       pxwake ping ADDRESS:PORT COUNT
       pxwake work SECONDS";

/// How long a lost packet took.
const LOST: Duration = Duration::from_secs(1);
/// Between two packets the other side goes to sleep.
const PAUSE: Duration = Duration::from_millis(10);
/// Multiplications that are a unit of work.
const UNIT: u64 = 100_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match *arguments.as_slice() {
        ["timer", period, count] => number(period).and_then(|period| timer(period, number(count)?)),
        ["echo", port] => number(port).and_then(echo),
        ["ping", to, count] => number(count).and_then(|count| ping(to, count)),
        ["work", seconds] => number(seconds).map(work),
        _ => Err(Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pxwake: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(Error::other)
}

/// Sleeps to the next of `count` points in time, and notes how much later it is then.
fn timer(period_us: u64, count: u64) -> Result<()> {
    let period = Duration::from_micros(period_us);
    let mut late = Vec::new();
    for _ in 0..count {
        let wanted = Instant::now() + period;
        sleep(period);
        late.push(Instant::now().saturating_duration_since(wanted));
    }
    show(late)
}

/// Sends back every packet, for ever.
fn echo(port: u64) -> Result<()> {
    let port = u16::try_from(port).map_err(Error::other)?;
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    let mut packet = [0; 64];
    loop {
        let (length, from) = socket.recv_from(&mut packet)?;
        socket.send_to(packet.get(..length).unwrap_or_default(), from)?;
    }
}

/// Sends `count` packets, each after the answer to the one before, and notes how long answers take.
fn ping(to: &str, count: u64) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut took = Vec::new();
    for number in 0..count {
        let start = Instant::now();
        socket.send(&number.to_le_bytes())?;
        took.push(answered(&socket, number).map_or(LOST, |()| start.elapsed()));
        sleep(PAUSE);
    }
    show(took)
}

/// Waits for the answer to packet `number`; those to earlier ones, which came too late, are skipped.
fn answered(socket: &UdpSocket, number: u64) -> Result<()> {
    let mut answer = [0; 8];
    loop {
        socket.recv(&mut answer)?;
        if answer == number.to_le_bytes() {
            return Ok(());
        }
    }
}

fn work(seconds: u64) {
    let time = Duration::from_secs(seconds);
    let (mut units, mut value) = (0u64, 1u64);
    let start = Instant::now();
    while start.elapsed() < time {
        for step in 0..UNIT {
            value = black_box(
                value
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(step),
            );
        }
        units += 1;
    }
    println!("{:.3}", units as f64 / start.elapsed().as_secs_f64());
}

/// Prints the median and the 99th percentile.
fn show(mut times: Vec<Duration>) -> Result<()> {
    times.sort_unstable();
    let at = |percent: usize| {
        times
            .get(times.len().saturating_sub(1) * percent / 100)
            .map(|time| time.as_secs_f64() * 1e6)
            .ok_or_else(|| Error::other("nothing was measured"))
    };
    println!("{:.1} {:.1}", at(50)?, at(99)?);
    Ok(())
}
