// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's command line, with Xen's option names where we have the feature.
//!
//! Values that belong to a device are kept as text for its driver (`com1=`, `loglvl=`). An option that is not known
//! or has a bad value is kept for the boot log to report; it never stops the boot.

use arrayvec::ArrayVec;

/// Most problems that are remembered.
const MAX_PROBLEMS: usize = 16;
const MIB: u64 = 1 << 20;

/// A `dom0_mem=` amount in bytes; a negative one is taken off what the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So much.
    Exactly(u64),
    /// All but so much.
    AllBut(u64),
}

impl Amount {
    /// The amount in bytes on a machine with `available` bytes.
    pub fn resolve(self, available: u64) -> u64 {
        match self {
            Self::Exactly(bytes) => bytes,
            Self::AllBut(bytes) => available.saturating_sub(bytes),
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options<'a> {
    /// `console=`: names of console devices, comma-separated (`com1`, `com2`, `vga`, `none`).
    pub console: Option<&'a str>,
    /// `com1=` line settings.
    pub com1: Option<&'a str>,
    /// `com2=` line settings.
    pub com2: Option<&'a str>,
    /// `dom0_mem=<amount>`.
    pub dom0_mem: Option<Amount>,
    /// `dom0_mem=min:<amount>`.
    pub dom0_mem_min: Option<Amount>,
    /// `dom0_mem=max:<amount>`.
    pub dom0_mem_max: Option<Amount>,
    /// `dom0_max_vcpus=`.
    pub dom0_max_vcpus: Option<u32>,
    /// `dom0_vcpus_pin`: each of Domain 0's vCPUs stays on the processor of its number.
    pub dom0_vcpus_pin: bool,
    /// `maxcpus=`.
    pub maxcpus: Option<u32>,
    /// `sched_ratelimit_us=`: the context-switch allowance.
    pub sched_ratelimit_us: Option<u32>,
    /// `loglvl=`.
    pub loglvl: Option<&'a str>,
    /// `guest_loglvl=`.
    pub guest_loglvl: Option<&'a str>,
    /// `dom0-cpuid=no-xsave`: Domain 0 does not see XSAVE.
    pub dom0_no_xsave: bool,
    /// `noreboot`: stop instead of rebooting after a crash.
    pub noreboot: bool,
    /// `watchdog`.
    pub watchdog: bool,
    /// Options that are not known or have a bad value.
    pub problems: ArrayVec<&'a str, MAX_PROBLEMS>,
}

/// True if `us` microseconds can be a rate limit of the scheduler (`XEN_SYSCTL_SCHED_RATELIMIT_MIN` and `_MAX`); 0 is none.
pub const fn is_rate_limit(us: u32) -> bool {
    us == 0 || (us >= 100 && us <= 500_000)
}

/// A size with Xen's suffixes: B, K, M, G, T; a plain number counts KiB.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'B' => (text.get(..text.len() - 1)?, 1),
        b'K' => (text.get(..text.len() - 1)?, 1 << 10),
        b'M' => (text.get(..text.len() - 1)?, MIB),
        b'G' => (text.get(..text.len() - 1)?, 1 << 30),
        b'T' => (text.get(..text.len() - 1)?, 1 << 40),
        _ => (text, 1 << 10),
    };
    parse_number(digits)?.checked_mul(unit)
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn parse_amount(text: &str) -> Option<Amount> {
    match text.strip_prefix('-') {
        Some(rest) => parse_size(rest).map(Amount::AllBut),
        None => parse_size(text).map(Amount::Exactly),
    }
}

/// `name`, `name=yes|on|true|enable|1`, `no-name`, `name=no|...`: a boolean option.
fn parse_bool(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("" | "1" | "yes" | "on" | "true" | "enable" | "force") => Some(true),
        Some("0" | "no" | "off" | "false" | "disable") => Some(false),
        Some(_) => None,
    }
}

impl<'a> Options<'a> {
    /// Reads a command line; words are separated by blanks.
    pub fn parse(line: &'a str) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            if word == "--" {
                break;
            }
            if options.take(word).is_none() {
                // More problems than fit are not worth reporting one by one.
                let _ = options.problems.try_push(word);
            }
        }
        options
    }

    fn take(&mut self, word: &'a str) -> Option<()> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        match name {
            "console" => self.console = Some(value?),
            "com1" => self.com1 = Some(value?),
            "com2" => self.com2 = Some(value?),
            "loglvl" => self.loglvl = Some(value?),
            "guest_loglvl" => self.guest_loglvl = Some(value?),
            "dom0_mem" => self.take_dom0_mem(value?)?,
            "dom0_max_vcpus" => self.dom0_max_vcpus = Some(parse_vcpus(value?)?),
            "dom0-cpuid" => self.dom0_no_xsave = !parse_feature(value?, "xsave")?,
            "dom0_vcpus_pin" => self.dom0_vcpus_pin = parse_bool(value)?,
            "maxcpus" => self.maxcpus = Some(u32::try_from(parse_number(value?)?).ok()?),
            "sched_ratelimit_us" => {
                let us = u32::try_from(parse_number(value?)?).ok()?;
                self.sched_ratelimit_us = Some(us).filter(|&us| is_rate_limit(us));
                self.sched_ratelimit_us?;
            }
            "noreboot" => self.noreboot = parse_bool(value)?,
            "watchdog" => self.watchdog = parse_bool(value)?,
            "no-watchdog" if value.is_none() => self.watchdog = false,
            _ => return None,
        }
        Some(())
    }

    fn take_dom0_mem(&mut self, value: &str) -> Option<()> {
        for part in value.split(',') {
            if let Some(amount) = part.strip_prefix("min:") {
                self.dom0_mem_min = Some(parse_amount(amount)?);
            } else if let Some(amount) = part.strip_prefix("max:") {
                self.dom0_mem_max = Some(parse_amount(amount)?);
            } else {
                self.dom0_mem = Some(parse_amount(part)?);
            }
        }
        Some(())
    }
}

/// `<name>`, `no-<name>` or `<name>=<boolean>`.
fn parse_feature(text: &str, name: &str) -> Option<bool> {
    if text.strip_prefix("no-") == Some(name) {
        return Some(false);
    }
    let rest = text.strip_prefix(name)?;
    parse_bool(if rest.is_empty() {
        None
    } else {
        Some(rest.strip_prefix('=')?)
    })
}

/// `dom0_max_vcpus=<min>-<max>` or one number; the upper bound counts, and at least 1.
fn parse_vcpus(value: &str) -> Option<u32> {
    let last = value.rsplit('-').next()?;
    let count = u32::try_from(parse_number(last)?).ok()?;
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn xens_names() {
        let o = Options::parse(
            "console=com1 com1=115200,8n1 dom0_mem=512M,max:1G dom0_max_vcpus=1-2 dom0_vcpus_pin loglvl=all noreboot watchdog",
        );
        assert_eq!(o.console, Some("com1"));
        assert_eq!(o.com1, Some("115200,8n1"));
        assert_eq!(o.dom0_mem, Some(Amount::Exactly(512 << 20)));
        assert_eq!(o.dom0_mem_max, Some(Amount::Exactly(1 << 30)));
        assert_eq!(o.dom0_max_vcpus, Some(2));
        assert!(o.noreboot && o.watchdog && o.dom0_vcpus_pin && o.problems.is_empty());
    }

    #[test]
    fn problems_are_reported_and_the_rest_counts() {
        let o = Options::parse("frobnicate dom0_mem=lots noreboot=maybe maxcpus=1 console");
        assert_eq!(
            o.problems.as_slice(),
            ["frobnicate", "dom0_mem=lots", "noreboot=maybe", "console"]
        );
        assert_eq!(o.maxcpus, Some(1));
        let limit = |text| Options::parse(text).sched_ratelimit_us;
        assert_eq!(limit("sched_ratelimit_us=500"), Some(500));
        assert_eq!(limit("sched_ratelimit_us=0"), Some(0));
        assert_eq!(limit("sched_ratelimit_us=99"), None);
    }

    #[test]
    fn features() {
        for (word, hidden) in [
            ("dom0-cpuid=no-xsave", true),
            ("dom0-cpuid=xsave=0", true),
            ("dom0-cpuid=xsave", false),
        ] {
            let options = Options::parse(word);
            assert_eq!((options.dom0_no_xsave, options.problems.len()), (hidden, 0));
        }
        for word in ["dom0-cpuid", "dom0-cpuid=no-fpu", "dom0-cpuid=xsaves"] {
            assert_eq!(Options::parse(word).problems.as_slice(), [word]);
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64"), Some(64 << 10));
        assert_eq!(parse_size("64m"), Some(64 << 20));
        assert_eq!(parse_size("2G"), Some(2 << 30));
        assert_eq!(parse_size("99999999999T"), None);
        assert_eq!(parse_size(""), None);
        assert_eq!(parse_amount("-256M"), Some(Amount::AllBut(256 << 20)));
        assert_eq!(Amount::AllBut(1 << 30).resolve(1 << 20), 0);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            Options::parse(&text);
        }
    }
}
