// SPDX-License-Identifier: MIT OR Apache-2.0
//! How late a guest wakes up, and how much it computes.
//!
//! `timer`, `ping` and `event-ping` print the median and the 99th percentile in microseconds, `work` units per second.

use std::hint::black_box;
use std::io::{Error, Result};
use std::net::UdpSocket;
use std::num::ParseIntError;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::evtchn::Channel;

mod evtchn;

const USAGE: &str = "usage: pxwake timer PERIOD_US BUSY_US COUNT
       pxwake echo PORT
       pxwake ping ADDRESS:PORT COUNT
       pxwake event-echo DOMAIN
       pxwake event-ping DOMAIN PORT COUNT
       pxwake work SECONDS";

/// How long a lost packet took.
const LOST: Duration = Duration::from_secs(1);
/// Between two packets the other side goes to sleep.
const PAUSE: Duration = Duration::from_millis(10);
/// Before sleeps are measured the guest is idle for so long.
const SETTLE: Duration = Duration::from_secs(1);
/// Multiplications that are a unit of work.
const UNIT: u64 = 20_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match *arguments.as_slice() {
        ["timer", period, busy, count] => {
            number(period).and_then(|period| timer(period, number(busy)?, number(count)?))
        }
        ["echo", port] => number(port).and_then(echo),
        ["ping", to, count] => number(count).and_then(|count| ping(to, count)),
        ["event-echo", domain] => number(domain).and_then(event_echo),
        ["event-ping", domain, port, count] => {
            number(domain).and_then(|domain| event_ping(domain, number(port)?, number(count)?))
        }
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

fn number<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T> {
    text.parse().map_err(Error::other)
}

/// Sleeps to the next of `count` points in time, and notes how much later it is then. After each it computes what takes
/// `busy_us` of a processor of its own.
fn timer(period_us: u64, busy_us: u64, count: u64) -> Result<()> {
    let period = Duration::from_micros(period_us);
    let units = match busy_us {
        0 => 0,
        _ => Duration::from_micros(busy_us)
            .div_duration_f64(unit_time())
            .ceil() as u64,
    };
    // What starting this took has been paid for by then.
    sleep(SETTLE);
    let mut late = Vec::new();
    for _ in 0..count {
        let wanted = Instant::now() + period;
        sleep(period);
        late.push(Instant::now().saturating_duration_since(wanted));
        for _ in 0..units {
            compute();
        }
    }
    show(late)
}

/// Sends back every packet, for ever.
fn echo(port: u16) -> Result<()> {
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

/// Offers `domain` an event channel, whose port it prints, and answers every event, for ever.
fn event_echo(domain: u32) -> Result<()> {
    let mut channel = Channel::offer(domain)?;
    println!("{}", channel.port());
    loop {
        channel.wait()?;
        channel.notify()?;
    }
}

/// Sends `count` events to what `domain` offers as `port`, and notes how long answers take.
fn event_ping(domain: u32, port: u32, count: u64) -> Result<()> {
    let mut channel = Channel::connect(domain, port)?;
    // A port is bound with an event pending.
    channel.wait()?;
    let mut took = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        channel.notify()?;
        channel.wait()?;
        took.push(start.elapsed());
    }
    show(took)
}

fn work(seconds: u64) {
    let time = Duration::from_secs(seconds);
    let mut units = 0_u64;
    let start = Instant::now();
    while start.elapsed() < time {
        compute();
        units += 1;
    }
    println!("{:.3}", units as f64 / start.elapsed().as_secs_f64());
}

/// Does a unit of work.
fn compute() {
    let mut value = 1_u64;
    for step in 0..UNIT {
        value = black_box(
            value
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(step),
        );
    }
}

/// How long a unit of work takes when nothing comes between.
fn unit_time() -> Duration {
    let once = |_| {
        let start = Instant::now();
        compute();
        start.elapsed()
    };
    (0..20).map(once).min().unwrap_or(Duration::MAX)
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
