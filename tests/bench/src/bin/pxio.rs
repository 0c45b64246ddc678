// SPDX-License-Identifier: MIT OR Apache-2.0
//! Throughput of a TCP connection and of a block device, for Domain 0 and its guests.
//!
//! Each run prints one number: MiB per second, or requests per second where single pages are read or written. What is
//! counted arrived: a sender waits until the other side says that it has everything.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: pxio serve PORT
       pxio send|receive ADDRESS:PORT SECONDS
       pxio read|write|random-read|random-write DEVICE SECONDS";

const MIB: f64 = 1_048_576.0;
/// What one call reads or writes of a stream.
const CHUNK: usize = 64 << 10;
/// What one sequential request to a device is.
const LARGE: usize = 1 << 20;
/// What one random request to a device is.
const PAGE: usize = 4096;
/// First byte of a connection: who sends. Behind `SERVER_SENDS` stand the seconds as a little-endian u32.
const CLIENT_SENDS: u8 = b's';
const SERVER_SENDS: u8 = b'r';

/// Requests past the page cache need aligned memory.
#[repr(align(4096))]
struct Buffer([u8; LARGE]);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let seconds = |text: &str| text.parse().map(Duration::from_secs).ok();
    let done = match *arguments.as_slice() {
        ["serve", port] => serve(port),
        [mode @ ("send" | "receive"), to, time] => match seconds(time) {
            Some(time) => stream(mode == "send", to, time),
            None => return usage(),
        },
        [mode, device, time] => match (seconds(time), Access::named(mode)) {
            (Some(time), Some(access)) => access.run(device, time),
            _ => return usage(),
        },
        _ => return usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pxio: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::FAILURE
}

/// Serves one connection after the other, for ever.
fn serve(port: &str) -> Result<()> {
    let port = port.parse().map_err(Error::other)?;
    for connection in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        if let Err(error) = connection.and_then(answer) {
            eprintln!("pxio: {error}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    if mode == [CLIENT_SENDS] {
        let got = swallow(&mut stream)?;
        stream.write_all(&got.to_le_bytes())
    } else {
        let mut seconds = [0; 4];
        stream.read_exact(&mut seconds)?;
        pour(
            &mut stream,
            Duration::from_secs(u32::from_le_bytes(seconds).into()),
        )
    }
}

/// Reads to the end of a stream; how many bytes.
fn swallow(stream: &mut TcpStream) -> Result<u64> {
    let (mut buffer, mut got) = (vec![0; CHUNK], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(got),
            length => got += length as u64,
        }
    }
}

/// Writes for that time, and ends the stream.
fn pour(stream: &mut TcpStream, time: Duration) -> Result<()> {
    let buffer = vec![0x5a; CHUNK];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn stream(send: bool, to: &str, time: Duration) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let start = Instant::now();
    let bytes = if send {
        stream.write_all(&[CLIENT_SENDS])?;
        pour(&mut stream, time)?;
        let mut got = [0; 8];
        stream.read_exact(&mut got)?;
        u64::from_le_bytes(got)
    } else {
        let seconds = u32::try_from(time.as_secs()).map_err(Error::other)?;
        stream.write_all(&[SERVER_SENDS])?;
        stream.write_all(&seconds.to_le_bytes())?;
        swallow(&mut stream)?
    };
    println!("{:.2}", bytes as f64 / MIB / start.elapsed().as_secs_f64());
    Ok(())
}

/// How a device is used.
#[derive(Clone, Copy)]
struct Access {
    write: bool,
    random: bool,
}

impl Access {
    fn named(name: &str) -> Option<Self> {
        let (random, kind) = match name.strip_prefix("random-") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let write = match kind {
            "read" => false,
            "write" => true,
            _ => return None,
        };
        Some(Self { write, random })
    }

    /// Uses the device past the page cache for that time, one request after the other.
    fn run(self, device: &str, time: Duration) -> Result<()> {
        const O_DIRECT: i32 = 0o40000;
        let mut file = OpenOptions::new()
            .read(!self.write)
            .write(self.write)
            .custom_flags(O_DIRECT)
            .open(device)?;
        let length = file.seek(SeekFrom::End(0))?;
        let size = if self.random { PAGE } else { LARGE };
        let places = (length / size as u64).max(1);
        let mut buffer = Box::new(Buffer([0xa5; LARGE]));
        let Some(part) = buffer.0.get_mut(..size) else {
            return Ok(());
        };
        let (mut requests, mut next) = (0u64, 1u64);
        let start = Instant::now();
        while start.elapsed() < time {
            let place = if self.random {
                next = xorshift(next);
                next % places
            } else {
                requests % places
            };
            self.request(&file, part, place * size as u64)?;
            requests += 1;
        }
        let rate = requests as f64 / start.elapsed().as_secs_f64();
        if self.random {
            println!("{rate:.2}");
        } else {
            println!("{:.2}", rate * size as f64 / MIB);
        }
        Ok(())
    }

    fn request(self, file: &File, part: &mut [u8], at: u64) -> Result<()> {
        if self.write {
            file.write_all_at(part, at)
        } else {
            file.read_exact_at(part, at)
        }
    }
}

/// Marsaglia's generator with the shifts 13, 7, 17: the same places in every run.
fn xorshift(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    state
}
