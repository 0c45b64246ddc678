// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tree of parameters that `xenhypfs` shows (xen/hypfs.h): `/domain/<id>/bvt/{warp,warp-limit,unwarp}`, in microseconds.

use philoxen_abi::hypfs::{Direntry, ListEntry, TYPE_DIR, TYPE_UINT};
use philoxen_abi::{DomId, Errno, Result};
use zerocopy::IntoBytes;

/// A parameter of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// By how much its virtual time is ahead when it wakes up.
    Warp,
    /// How long it may run so.
    WarpLimit,
    /// How long it may not after that.
    Unwarp,
}

const PARAMETERS: [(&str, Parameter); 3] = [
    ("warp", Parameter::Warp),
    ("warp-limit", Parameter::WarpLimit),
    ("unwarp", Parameter::Unwarp),
];

/// A place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// `/`.
    Root,
    /// `/domain`.
    Domains,
    /// `/domain/<id>`.
    Domain(DomId),
    /// `/domain/<id>/bvt`.
    Scheduling(DomId),
    /// A number of 32 bits.
    Number(DomId, Parameter),
}

/// Bytes of a number's content.
pub const NUMBER_BYTES: u32 = 4;
/// Longest name of an entry.
const MAX_NAME: usize = 16;
const HEADER: usize = size_of::<ListEntry>();
/// Room for any entry of a listing.
pub const MAX_ENTRY: usize = entry_bytes(MAX_NAME) as usize;

/// The place that a path names.
///
/// # Errors
/// `EINVAL` if it does not begin at the root, `ENOENT` if there is no such place.
pub fn find(path: &[u8]) -> Result<Node> {
    let path = core::str::from_utf8(path).map_err(|_| Errno::ENOENT)?;
    let mut parts = path.strip_prefix('/').ok_or(Errno::EINVAL)?.split('/');
    let mut node = Node::Root;
    loop {
        let part = match parts.next() {
            None => return Ok(node),
            Some("") if node == Node::Root && parts.next().is_none() => return Ok(node),
            Some(part) => part,
        };
        node = match (node, part) {
            (Node::Root, "domain") => Node::Domains,
            (Node::Domains, id) if !id.starts_with(['+', '0']) || id == "0" => {
                Node::Domain(DomId(id.parse().map_err(|_| Errno::ENOENT)?))
            }
            (Node::Domain(id), "bvt") => Node::Scheduling(id),
            (Node::Scheduling(id), name) => PARAMETERS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|&(_, parameter)| Node::Number(id, parameter))
                .ok_or(Errno::ENOENT)?,
            _ => return Err(Errno::ENOENT),
        };
    }
}

impl Node {
    /// The domain it is about.
    pub const fn domain(self) -> Option<DomId> {
        match self {
            Self::Domain(id) | Self::Scheduling(id) | Self::Number(id, _) => Some(id),
            Self::Root | Self::Domains => None,
        }
    }

    /// Calls `each` with the names and places directly below; `domains` are all there are.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn children(
        self,
        domains: impl Iterator<Item = DomId>,
        mut each: impl FnMut(&str, Self) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Root => each("domain", Self::Domains),
            Self::Domains => {
                for id in domains {
                    let mut digits = [0; 5];
                    each(decimal(id.0, &mut digits), Self::Domain(id))?;
                }
                Ok(())
            }
            Self::Domain(id) => each("bvt", Self::Scheduling(id)),
            Self::Scheduling(id) => PARAMETERS
                .iter()
                .try_for_each(|&(name, parameter)| each(name, Self::Number(id, parameter))),
            Self::Number(..) => Ok(()),
        }
    }

    /// What is said of the place itself.
    pub fn entry(self, domains: impl Iterator<Item = DomId>) -> Direntry {
        let number = matches!(self, Self::Number(..));
        let mut listing = 0u32;
        // Counting cannot fail.
        let _ = self.children(domains, |name, _| {
            listing = listing.saturating_add(entry_bytes(name.len()));
            Ok(())
        });
        Direntry {
            kind: if number { TYPE_UINT } else { TYPE_DIR },
            encoding: 0,
            pad: 0,
            content_len: if number { NUMBER_BYTES } else { listing },
            max_write_len: if number { NUMBER_BYTES } else { 0 },
        }
    }
}

/// Bytes of an entry whose name has `name` bytes: header, name, zero, and padding to a multiple of four.
const fn entry_bytes(name: usize) -> u32 {
    ((HEADER + name + 1) as u32).next_multiple_of(4)
}

/// An entry of a listing, in `place`; how much of it.
pub fn list_entry<'a>(
    name: &str,
    entry: Direntry,
    last: bool,
    place: &'a mut [u8; MAX_ENTRY],
) -> Option<&'a [u8]> {
    let bytes = entry_bytes(name.len());
    let mut header = ListEntry {
        entry: [0; 12],
        off_next: if last { 0 } else { bytes as u16 },
    };
    header.entry.copy_from_slice(entry.as_bytes());
    place.fill(0);
    let (head, tail) = place.split_at_mut_checked(HEADER)?;
    head.copy_from_slice(header.as_bytes());
    tail.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    place.get(..bytes as usize)
}

fn decimal(mut number: u16, digits: &mut [u8; 5]) -> &str {
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    let text = digits.get(digits.len() - used..).unwrap_or_default();
    core::str::from_utf8(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn domains() -> impl Iterator<Item = DomId> {
        [0, 7, 65_000].map(DomId).into_iter()
    }

    #[test]
    fn every_place_is_found_by_the_names_on_the_way() {
        let mut todo = Vec::from([(String::new(), Node::Root)]);
        let mut numbers = 0;
        while let Some((path, node)) = todo.pop() {
            if !path.is_empty() {
                assert_eq!(find(path.as_bytes()), Ok(node), "{path}");
            }
            numbers += u32::from(matches!(node, Node::Number(..)));
            node.children(domains(), |name, child| {
                todo.push((path.clone() + "/" + name, child));
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(numbers, 9);
        assert_eq!(find(b"/"), Ok(Node::Root));
        let warp = Node::Number(DomId(7), Parameter::Warp);
        assert_eq!(find(b"/domain/7/bvt/warp"), Ok(warp));
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "//",
            "/domain/",
            "/domain/07",
            "/domain/+7",
            "/domain/70000",
            "/domain/x",
            "/x",
            "/domain/7/",
            "/domain/7/bvt/warp/",
            "/domain/7/bvt/warp/x",
            "/domain/7/bvt/warp2",
        ] {
            assert_eq!(find(path.as_bytes()), Err(Errno::ENOENT), "{path}");
        }
        for path in ["", "domain"] {
            assert_eq!(find(path.as_bytes()), Err(Errno::EINVAL), "{path}");
        }
        assert_eq!(find(b"/\xff"), Err(Errno::ENOENT));
    }

    #[test]
    fn listings_have_the_announced_size() {
        let mut written = 0;
        let mut names = Vec::new();
        Node::Domains
            .children(domains(), |name, child| {
                let mut place = [0; MAX_ENTRY];
                let entry = list_entry(name, child.entry(domains()), false, &mut place).unwrap();
                assert_eq!(usize::from(entry[12]), entry.len());
                written += entry.len() as u32;
                names.push(name.to_string());
                Ok(())
            })
            .unwrap();
        assert_eq!(names, ["0", "7", "65000"]);
        assert_eq!(Node::Domains.entry(domains()).content_len, written);
        let mut place = [0; MAX_ENTRY];
        let number = Node::Number(DomId(0), Parameter::Unwarp).entry(domains());
        let entry = list_entry("unwarp", number, true, &mut place).unwrap();
        assert_eq!(entry, b"\x03\0\0\0\x04\0\0\0\x04\0\0\0\0\0unwarp\0\0\0\0");
    }
}
