// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a domain's state is told to tools.

use philoxen_abi::domctl::{dominf, pfinfo};

/// What [`flags`] is made from.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// Being destroyed.
    pub dying: bool,
    /// Code of the shutdown, if it was shut down.
    pub shutdown: Option<u8>,
    /// Paused by the toolstack.
    pub paused: bool,
    /// It is the xenstore's domain.
    pub xenstore: bool,
    /// Under a debugger.
    pub debugged: bool,
    /// vCPUs that are up.
    pub online: u32,
    /// Of these, how many wait for an event.
    pub blocked: u32,
    /// One runs now.
    pub running: bool,
}

/// `XEN_DOMINF_*` of a domain.
pub fn flags(state: &State) -> u32 {
    let bit = |condition: bool, flag: u32| if condition { flag } else { 0 };
    let code = state
        .shutdown
        .map_or(0, |code| u32::from(code) << dominf::SHUTDOWN_SHIFT);
    bit(state.dying, dominf::DYING)
        | bit(state.shutdown.is_some(), dominf::SHUTDOWN)
        | bit(state.paused, dominf::PAUSED)
        | bit(state.xenstore, dominf::XS_DOMAIN)
        | bit(state.debugged, dominf::DEBUGGED)
        | bit(
            state.online != 0 && state.blocked == state.online,
            dominf::BLOCKED,
        )
        | bit(state.running, dominf::RUNNING)
        | code
}

/// The answer of `getpageframeinfo3` for a frame of the domain: the level of the page table it is (0: none), and
/// whether it is pinned.
pub const fn frame_type(level: u64, pinned: bool) -> u64 {
    level << pfinfo::LEVEL_SHIFT | if pinned { pfinfo::PINNED } else { 0 }
}

/// The credit2 weight and cap of a domain, as its tools gave them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Weight; 256 is the ordinary one.
    pub weight: u16,
    /// Per cent of a processor it may use at most; 0 is no limit.
    pub cap: u16,
}

impl Share {
    /// What a domain begins with.
    pub const DEFAULT: Self = Self {
        weight: 256,
        cap: 0,
    };

    /// The share after a tool gave `weight` (0: unchanged) and `cap`.
    pub const fn changed(self, weight: u16, cap: u16) -> Self {
        Self {
            weight: if weight == 0 { self.weight } else { weight },
            cap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let idle = State {
            online: 2,
            blocked: 2,
            ..State::default()
        };
        assert_eq!(flags(&idle), dominf::BLOCKED);
        assert_eq!(flags(&State::default()), 0, "no vCPU is not blocked");
        let crashed = State {
            shutdown: Some(3),
            paused: true,
            ..idle
        };
        assert_eq!(flags(&crashed), 3 << 16 | 4 | 8 | 16);
        let busy = State {
            running: true,
            blocked: 1,
            ..idle
        };
        assert_eq!(flags(&busy), dominf::RUNNING);
    }

    #[test]
    fn frames() {
        assert_eq!(frame_type(0, false), 0);
        assert_eq!(frame_type(4, true), 0xc000_0000);
        assert_eq!(frame_type(1, false), 0x1000_0000);
    }

    #[test]
    fn shares() {
        assert_eq!(
            Share::DEFAULT.changed(0, 50),
            Share {
                weight: 256,
                cap: 50
            }
        );
        assert_eq!(
            Share::DEFAULT.changed(512, 0),
            Share {
                weight: 512,
                cap: 0
            }
        );
    }
}
