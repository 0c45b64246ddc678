// SPDX-License-Identifier: MIT OR Apache-2.0
//! Error codes of the interface (xen/errno.h); a hypercall returns the negated value.

/// A Xen error number, positive as in the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Self = Self($value);)*
            /// The value a guest sees in `rax`.
            pub const fn rax(self) -> i64 {
                -(self.0 as i64)
            }
        }

        impl core::fmt::Display for Errno {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.0 {
                    $($value => f.write_str(concat!(stringify!($name), ": ", $doc)),)*
                    other => write!(f, "error {other}"),
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such object.";
    ESRCH = 3, "No such domain or entry.";
    EINTR = 4, "Interrupted.";
    EIO = 5, "I/O error.";
    ENXIO = 6, "No such device or address.";
    E2BIG = 7, "Argument list too long.";
    ENOEXEC = 8, "Not an executable image.";
    EBADF = 9, "Bad handle.";
    ECHILD = 10, "No such child.";
    EAGAIN = 11, "Try again.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Permission denied (wrong interface version).";
    EFAULT = 14, "Bad guest address.";
    EBUSY = 16, "Object is busy.";
    EEXIST = 17, "Object exists.";
    EXDEV = 18, "Cross-domain link.";
    ENODEV = 19, "No such device.";
    ENOTDIR = 20, "Not a directory.";
    EISDIR = 21, "Is a directory.";
    EINVAL = 22, "Invalid argument.";
    ENFILE = 23, "Table overflow.";
    ENOSPC = 28, "No space left.";
    EROFS = 30, "Read-only.";
    EMLINK = 31, "Too many links.";
    EDOM = 33, "Argument out of domain.";
    ERANGE = 34, "Result not representable.";
    EDEADLK = 35, "Deadlock avoided.";
    ENOSYS = 38, "Not implemented.";
    ENODATA = 61, "No data.";
    ETIME = 62, "Time has passed.";
    EBADMSG = 74, "Bad message.";
    EOVERFLOW = 75, "Value too large.";
    EILSEQ = 84, "Illegal sequence.";
    EOPNOTSUPP = 95, "Not supported.";
    EADDRINUSE = 98, "Address in use.";
    ENOBUFS = 105, "No buffer space.";
    ENOTCONN = 107, "Not connected.";
    ETIMEDOUT = 110, "Timed out.";
}
