// SPDX-License-Identifier: MIT OR Apache-2.0
//! Event channels of a guest's user mode: Linux's `/dev/xen/evtchn`, as its header `xen/evtchn.h` describes it.

use pxbench::sys;
use std::fs::File;
use std::io::{Error, Read, Result, Write};

const DEVICE: &str = "/dev/xen/evtchn";
/// Letter of the device's requests.
const CLASS: u8 = b'E';
/// Arguments: domain and port.
const BIND_INTERDOMAIN: u8 = 1;
/// Argument: domain.
const BIND_UNBOUND_PORT: u8 = 2;
/// Argument: port.
const NOTIFY: u8 = 4;

/// One end of an event channel to another domain.
#[derive(Debug)]
pub struct Channel {
    device: File,
    port: u32,
}

impl Channel {
    /// A port that `domain` may bind.
    pub fn offer(domain: u32) -> Result<Self> {
        Self::open(BIND_UNBOUND_PORT, [domain])
    }

    /// The other end of what `domain` offers as `port`.
    pub fn connect(domain: u32, port: u32) -> Result<Self> {
        Self::open(BIND_INTERDOMAIN, [domain, port])
    }

    fn open<const WORDS: usize>(request: u8, argument: [u32; WORDS]) -> Result<Self> {
        let device = File::options().read(true).write(true).open(DEVICE)?;
        let port =
            u32::try_from(sys::ioctl(&device, CLASS, request, argument)?).map_err(Error::other)?;
        Ok(Self { device, port })
    }

    /// The local port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends an event to the other side.
    pub fn notify(&self) -> Result<()> {
        sys::ioctl(&self.device, CLASS, NOTIFY, [self.port]).map(|_| ())
    }

    /// Waits for an event, and lets the next one in.
    pub fn wait(&mut self) -> Result<()> {
        let mut port = [0; 4];
        self.device.read_exact(&mut port)?;
        self.device.write_all(&port)
    }
}
