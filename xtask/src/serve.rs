// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file that machines under test download from the host.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host::{self, Tree};

/// Size of the file.
const BYTES: usize = 1 << 20;

/// Bytes that look random and are the same in every run.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A server on the host's loopback interface, which QEMU's user network shows as 10.0.2.2.
#[derive(Clone, Debug)]
pub struct Server {
    pub port: u16,
    /// First 16 hexadecimal digits of the file's SHA-256.
    pub sum: String,
}

impl Server {
    /// Serves the file until the program ends.
    pub fn start(tree: &Tree) -> Result<Self> {
        let body = noise(0x5eed, BYTES);
        let file = tree.directory("test-logs")?.join("download");
        std::fs::write(&file, &body)?;
        let sum = host::capture(Command::new("sha256sum").arg(&file))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let body = body.clone();
                // A machine that goes away in the middle fails its own test.
                std::thread::spawn(move || answer(stream, &body).ok());
            }
        });
        Ok(Self {
            port,
            sum: sum
                .get(..16)
                .context("sha256sum printed no sum")?
                .to_owned(),
        })
    }
}

fn answer(mut stream: std::net::TcpStream, body: &[u8]) -> Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") && request.len() < 16384 {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        request.extend(buffer.get(..length).unwrap_or_default());
    }
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    Ok(())
}
