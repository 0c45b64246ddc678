// SPDX-License-Identifier: MIT OR Apache-2.0
//! The system calls that are measured or needed, as safe functions: the only `unsafe` of these programs.
//!
//! Each wrapper does one call and turns a failure into `io::Error`. Nothing here allocates, so that what is timed is
//! the call.
#![allow(unsafe_code, reason = "system calls are foreign functions")]

use std::ffi::CStr;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Bytes of a page; this program is for x86-64 alone.
pub const PAGE: usize = 4096;

/// What `kill` sends and the handler catches in the signal rows.
pub const SIGNAL: i32 = libc::SIGUSR1;

fn check(value: i32) -> Result<i32> {
    if value < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// A file descriptor, closed when dropped.
#[derive(Debug)]
pub struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: this value owns the descriptor; nobody uses it afterwards.
        unsafe { libc::close(self.0) };
    }
}

impl Fd {
    /// Opens `path` with the `open(2)` flags `flags` (mode 0600 where one is created).
    pub fn open(path: &CStr, flags: i32) -> Result<Self> {
        // SAFETY: `path` is a terminated string that outlives the call.
        check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) }).map(Self)
    }
    /// Reads one byte.
    pub fn read_byte(&self) -> Result<u8> {
        let mut byte = 0_u8;
        // SAFETY: one byte of room is behind the pointer.
        let count = unsafe { libc::read(self.0, ptr::from_mut(&mut byte).cast(), 1) };
        if count == 1 {
            Ok(byte)
        } else {
            Err(Error::last_os_error())
        }
    }
    /// Writes one byte.
    pub fn write_byte(&self, byte: u8) -> Result<()> {
        // SAFETY: one byte is behind the pointer.
        let count = unsafe { libc::write(self.0, ptr::from_ref(&byte).cast(), 1) };
        if count == 1 {
            Ok(())
        } else {
            Err(Error::last_os_error())
        }
    }
    /// Makes the file `length` bytes long.
    pub fn set_length(&self, length: usize) -> Result<()> {
        // SAFETY: no memory is involved.
        check(unsafe { libc::ftruncate(self.0, length as libc::off_t) }).map(drop)
    }
}

/// A pipe: its reading and its writing end.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [-1_i32; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    let [read, write] = ends;
    Ok((Fd(read), Fd(write)))
}

/// The cheapest system call that the C library does not answer by itself.
pub fn getppid() -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::getppid() }
}

/// Looks the status of `path` up.
pub fn stat(path: &CStr) -> Result<()> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the string is terminated, and the buffer has the structure's size.
    check(unsafe { libc::stat(path.as_ptr(), status.as_mut_ptr()) }).map(drop)
}

/// Calls of [`on_signal`] so far.
static SIGNALS: AtomicU64 = AtomicU64::new(0);
/// Faults that [`on_fault`] still lets happen before it opens the page.
static FAULTS_LEFT: AtomicU64 = AtomicU64::new(0);
/// The page of the protection-fault row.
static FAULT_PAGE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

extern "C" fn on_signal(_signal: i32) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn on_fault(_signal: i32) {
    let left = FAULTS_LEFT.load(Ordering::Relaxed);
    if left > 1 {
        FAULTS_LEFT.store(left - 1, Ordering::Relaxed);
        return;
    }
    let page = FAULT_PAGE.load(Ordering::Relaxed);
    // SAFETY: the page is a mapping of ours that only `protection_faults` writes to.
    let opened = unsafe { libc::mprotect(page.cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE) };
    if opened != 0 {
        // SAFETY: ends the process; returning would fault for ever.
        unsafe { libc::_exit(3) };
    }
}

fn install(signal: i32, handler: extern "C" fn(i32)) -> Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction` (default action, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: the structure is complete, and both handlers use only what is safe in a signal handler.
    check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) }).map(drop)
}

/// Installs the counting handler for [`SIGNAL`].
pub fn install_handler() -> Result<()> {
    install(SIGNAL, on_signal)
}

/// Sends [`SIGNAL`] to this process; the handler has run on return.
pub fn signal_self() -> Result<()> {
    // SAFETY: no memory is involved.
    let me = unsafe { libc::getpid() };
    // SAFETY: the signal goes to ourselves, and its handler is installed.
    check(unsafe { libc::kill(me, SIGNAL) }).map(drop)
}

/// Signals caught so far.
pub fn signals_caught() -> u64 {
    SIGNALS.load(Ordering::Relaxed)
}

/// Writes to a read-only page `count` times; each write faults into a handler that returns to the same write.
pub fn protection_faults(page: &Mapping, count: u64) -> Result<()> {
    FAULT_PAGE.store(page.start.cast(), Ordering::Relaxed);
    FAULTS_LEFT.store(count, Ordering::Relaxed);
    install(libc::SIGSEGV, on_fault)?;
    // SAFETY: the page is a mapping that we own.
    check(unsafe { libc::mprotect(page.start, PAGE, libc::PROT_READ) })?;
    page.write(0);
    Ok(())
}

/// Memory that was mapped, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping; nobody uses it afterwards.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

impl Mapping {
    fn map(length: usize, flags: i32, fd: i32) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel picks the address, so no memory in use is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            Err(Error::last_os_error())
        } else {
            Ok(Self { start, length })
        }
    }
    /// Private zeroed memory.
    pub fn anonymous(length: usize) -> Result<Self> {
        Self::map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }
    /// The first `length` bytes of `file`, shared. `length` must not pass the file's end.
    pub fn file(file: &Fd, length: usize) -> Result<Self> {
        Self::map(length, libc::MAP_SHARED, file.0)
    }
    /// Pages in the mapping.
    pub fn pages(&self) -> usize {
        self.length / PAGE
    }
    /// Reads the first byte of page `page` (taken modulo the number of pages).
    pub fn read(&self, page: usize) -> u8 {
        let offset = page % self.pages() * PAGE;
        // SAFETY: the offset is below the mapping's length.
        let byte = unsafe { self.start.cast::<u8>().add(offset) };
        // SAFETY: the byte is inside a readable mapping.
        unsafe { byte.read_volatile() }
    }
    /// Writes the first byte of page `page` (taken modulo the number of pages).
    pub fn write(&self, page: usize) {
        let offset = page % self.pages() * PAGE;
        // SAFETY: the offset is below the mapping's length.
        let byte = unsafe { self.start.cast::<u8>().add(offset) };
        // SAFETY: the byte is inside our mapping; where it is read-only the handler is installed that opens it.
        unsafe { byte.write_volatile(1) };
    }
}

/// What `fork` returned.
#[derive(Debug)]
pub enum Fork {
    /// We are the new process.
    Child,
    /// We are the old one.
    Parent(Child),
}

/// A child process that is not yet waited for.
#[derive(Debug)]
pub struct Child(i32);

impl Child {
    /// Waits for its end: the exit code, or -1 after a signal.
    pub fn wait(self) -> Result<i32> {
        let mut status = 0;
        // SAFETY: the status has room behind the pointer.
        check(unsafe { libc::waitpid(self.0, &raw mut status, 0) })?;
        Ok(if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            -1
        })
    }
    /// Ends it.
    pub fn kill(&self) {
        // SAFETY: the process is our own child, not yet waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

/// Makes a copy of this process.
pub fn fork() -> Result<Fork> {
    // SAFETY: this program has one thread, so the child's locks and allocator are in order.
    let pid = check(unsafe { libc::fork() })?;
    Ok(if pid == 0 {
        Fork::Child
    } else {
        Fork::Parent(Child(pid))
    })
}

/// Ends this process at once, without the C library's exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by `program`; returns only on failure.
pub fn exec(program: &CStr, arguments: [Option<&CStr>; 3]) -> Error {
    let [first, second, third] = arguments.map(|text| text.map_or(ptr::null(), CStr::as_ptr));
    let arguments = [first, second, third, ptr::null()];
    let environment: [*const libc::c_char; 1] = [ptr::null()];
    // SAFETY: both arrays end with a null pointer and hold terminated strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Error::last_os_error()
}

/// Keeps this process and its children on processor 0, so that every row has all its processes on one processor.
pub fn pin_to_first_processor() -> Result<()> {
    let mask: [u64; 16] = std::array::from_fn(|word| u64::from(word == 0));
    // SAFETY: the mask's size is given, and any bytes are a valid mask.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&mask), mask.as_ptr().cast()) }).map(drop)
}

/// Makes request `number` of the device class with letter `class`, whose argument is `WORDS` 32-bit words that the device reads.
/// Returns what the device does.
pub fn ioctl<const WORDS: usize>(
    device: &impl AsRawFd,
    class: u8,
    number: u8,
    mut argument: [u32; WORDS],
) -> Result<i32> {
    let request = (WORDS as u64 * 4) << 16 | u64::from(class) << 8 | u64::from(number);
    // SAFETY: the request says how long its argument is, and a device that knows it touches no more; the array is as long.
    check(unsafe { libc::ioctl(device.as_raw_fd(), request, argument.as_mut_ptr()) })
}
