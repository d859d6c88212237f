//! What shares are of: how much there was of something in each group, before anything went wrong there.

use std::{collections::hash_map::Entry, net::SocketAddr};

use tcpfsm_common::{abi::EventKind, fact::Fact};

use super::{QuickMap, Seen, window::Window};

/// Groups remembered per count. One in which nothing happened for a window is forgotten.
const MAX_GROUPS: usize = 16_384;

/// What counts: of which groups, and how many.
pub(super) type Base = [Option<(SocketAddr, u64)>; 2];

/// Tells what counts.
pub(super) type BaseOf = fn(&Seen<'_>) -> Base;

/// Whether any base can count this. Of what is ordinary only a connection's beginning and its end are part of one.
pub(super) fn may_count(seen: &Seen<'_>) -> bool {
    !seen.is_ordinary() || seen.has(Fact::Open) || seen.kind() == EventKind::Closed
}

/// One count in all groups, within one length of window.
pub(super) struct Bases {
    of: BaseOf,
    length: u64,
    groups: QuickMap<SocketAddr, Window>,
    /// What happened in groups for which there was no room.
    elsewhere: Window,
    overflow: u64,
}

impl Bases {
    pub(super) fn new(of: BaseOf, length: u64) -> Self {
        Self { of, length, groups: QuickMap::default(), elsewhere: Window::default(), overflow: 0 }
    }

    /// Whether it counts this. Functions of equal code may have one address, which is as good; one function that
    /// has two addresses is counted twice, which only costs memory.
    pub(super) fn is(&self, of: BaseOf, length: u64) -> bool {
        std::ptr::fn_addr_eq(self.of, of) && self.length == length
    }

    pub(super) fn seen(&mut self, seen: &Seen<'_>) {
        let Self { of, length, groups, elsewhere, overflow } = self;
        let time = seen.event().time;
        // By reference: a copy of what was just written word by word stalls.
        for (group, weight) in of(seen).iter().flatten() {
            let room = groups.len() < MAX_GROUPS;
            let window = match groups.entry(*group) {
                Entry::Occupied(known) => known.into_mut(),
                // Before it found room it was counted with the others.
                Entry::Vacant(new) if room => new.insert(*elsewhere),
                Entry::Vacant(_) => {
                    *overflow += weight;
                    &mut *elsewhere
                }
            };
            window.add(time, *length, *weight);
        }
    }

    /// What happened in a group so far, or more than that where there was no room for it: a share of it is too
    /// small rather than too large, until a window later.
    pub(super) fn of_group(&self, group: &SocketAddr) -> Window {
        self.groups.get(group).copied().unwrap_or(self.elsewhere)
    }

    /// Forgets groups in which nothing happened for a window.
    pub(super) fn swept(&mut self, now: u64) {
        let length = self.length;
        self.groups.retain(|_, window| window.sum(now, length) > 0);
    }

    /// How much was counted for groups without room.
    pub(super) const fn overflow(&self) -> u64 {
        self.overflow
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::synthetic::Conversation;
    use tcpfsm_common::{flow::End, segment::TcpFlags};

    const SECOND: u64 = 1_000_000_000;
    const LENGTH: u64 = 60 * SECOND;

    fn requests(seen: &Seen<'_>) -> Base {
        [Some((seen.service(), 1)), None]
    }

    /// A request at `second` to a service of its own.
    fn request(bases: &mut Bases, service: u16, second: u64) -> SocketAddr {
        let mut talk = Conversation::between(1, service);
        talk.now = second * SECOND;
        let observation = talk.segment(End::Low, TcpFlags::SYN, 0);
        let seen = Seen { observation: &observation, sweep: 1 };
        bases.seen(&seen);
        seen.service()
    }

    fn sum(bases: &Bases, group: &SocketAddr, second: u64) -> u64 {
        bases.of_group(group).sum(second * SECOND, LENGTH)
    }

    #[test]
    fn no_base_counts_what_none_is_asked_about() {
        use crate::detect::{floods, handshake, illegal, peer_gone, resets};
        let specs = [handshake::SPECS, resets::SPECS, illegal::SPECS, floods::SPECS, peer_gone::SPECS];
        let mut spared = 0;
        for observation in &Conversation::new().ordinary_life() {
            let seen = Seen { observation, sweep: 1 };
            if !may_count(&seen) {
                spared += 1;
                assert!(
                    specs.iter().flat_map(|specs| specs.iter()).all(|spec| (spec.base)(&seen) == [None; 2])
                );
            }
        }
        assert!(spared >= 4, "{spared}: nearly all of a connection's events");
    }

    #[test]
    fn idle_groups_are_forgotten() {
        let mut bases = Bases::new(requests, LENGTH);
        let service = request(&mut bases, 80, 1);
        request(&mut bases, 80, 2);
        bases.swept(30 * SECOND);
        assert_eq!((bases.groups.len(), sum(&bases, &service, 30)), (1, 2));
        bases.swept(90 * SECOND);
        assert_eq!((bases.groups.len(), bases.overflow()), (0, 0));
    }

    #[test]
    fn a_group_without_room_may_have_been_any_of_those() {
        let mut bases = Bases::new(requests, LENGTH);
        let early = request(&mut bases, 1, 100);
        for service in 2..=MAX_GROUPS as u16 {
            request(&mut bases, service, 60);
        }
        let late = request(&mut bases, 20_000, 110);
        request(&mut bases, 20_001, 110);
        assert_eq!((sum(&bases, &early, 110), sum(&bases, &late, 110)), (1, 2), "at most both were its");
        assert_eq!((bases.groups.len(), bases.overflow()), (MAX_GROUPS, 2));
        bases.swept(130 * SECOND);
        request(&mut bases, 20_000, 130);
        assert_eq!(sum(&bases, &late, 130), 3, "it has room, and the past that it may have");
        assert_eq!(sum(&bases, &late, 175), 1, "which passes");
    }
}
