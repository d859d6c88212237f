//! From the kernel's records to the life of each end.
//!
//! A record names the socket by its address in the kernel. Its first records may lack a port (a client's is chosen after
//! SYN-SENT is entered, a listener's child learns its peer after SYN-RECV), so a life is collected by socket, and
//! filed under both addresses once it has them.

use std::collections::HashMap;
use std::net::SocketAddr;

use tcpfsm_common::fsm::State;

use super::tracepoint::{Change, Recording};

/// One end of a connection: its own address and its peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// The kernel moved a full socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub at: u64,
    pub from: State,
    pub to: State,
}

impl Moved {
    /// The full socket is gone from a state that goes on without one: from FIN-WAIT-2 and CLOSING Linux hands over to a
    /// small TIME-WAIT socket, whose life the tracepoint does not show. (Or a reset ended it.)
    pub fn hands_over(self) -> bool {
        matches!(self.from, State::FinWait2 | State::Closing) && self.to == State::Closed
    }
}

/// The lives of all ends.
#[derive(Debug, Default)]
pub struct Lives {
    /// Four-tuples that were used again have their lives one after the other.
    pub by_end: HashMap<End, Vec<Moved>>,
    /// Records of sockets whose beginning was not recorded.
    pub headless: u64,
}

impl Lives {
    pub fn of(recording: &Recording) -> Self {
        let mut lives = Self::default();
        let mut sockets: HashMap<u64, Life> = HashMap::new();
        for change in &recording.changes {
            // close() in FIN-WAIT-2 sets the state that is set already.
            if is_listeners(change) || change.from == change.to {
                continue;
            }
            if is_birth(change) {
                lives.file(sockets.insert(change.socket, Life::default()));
            }
            let Some(life) = sockets.get_mut(&change.socket) else {
                lives.headless += 1;
                continue;
            };
            life.add(change);
            if change.to == State::Closed {
                lives.file(sockets.remove(&change.socket));
            }
        }
        for life in sockets.into_values() {
            lives.file(Some(life));
        }
        for moves in lives.by_end.values_mut() {
            moves.sort_by_key(|moved| moved.at);
        }
        lives
    }

    fn file(&mut self, life: Option<Life>) {
        if let Some(Life { end: Some(end), moves }) = life {
            self.by_end.entry(end).or_default().extend(moves);
        }
    }
}

#[derive(Default)]
struct Life {
    end: Option<End>,
    moves: Vec<Moved>,
}

impl Life {
    fn add(&mut self, change: &Change) {
        let &Change { at, from, to, local, remote, socket: _ } = change;
        if local.port() != 0 && remote.port() != 0 {
            self.end = Some(End { local, remote });
        }
        self.moves.push(Moved { at, from, to });
    }
}

/// A connection's full socket begins as a client's or as a listener's child.
fn is_birth(change: &Change) -> bool {
    matches!((change.from, change.to), (State::Closed, State::SynSent) | (State::Listen, State::SynRecv))
}

fn is_listeners(change: &Change) -> bool {
    matches!((change.from, change.to), (State::Closed, State::Listen) | (State::Listen, State::Closed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_filed_under_both_addresses_once_they_are_known() {
        let full: [SocketAddr; 2] = ["192.0.2.1:80".parse().unwrap(), "192.0.2.2:40000".parse().unwrap()];
        let none: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let change = |at, socket, from, to, remote| Change { at, socket, from, to, local: full[0], remote };
        let recording = Recording {
            changes: vec![
                change(1, 9, State::Closed, State::Listen, none),
                change(2, 1, State::Listen, State::SynRecv, none),
                change(3, 1, State::SynRecv, State::Established, full[1]),
                change(4, 1, State::Established, State::Closed, full[1]),
                // Another socket at the same place in memory, and the same four-tuple.
                change(5, 1, State::Listen, State::SynRecv, none),
                change(6, 1, State::SynRecv, State::Established, full[1]),
                change(7, 2, State::Established, State::CloseWait, full[1]),
            ],
            lost: 0,
        };
        let lives = Lives::of(&recording);
        assert_eq!(lives.headless, 1);
        let end = End { local: full[0], remote: full[1] };
        let times: Vec<_> = lives.by_end[&end].iter().map(|moved| moved.at).collect();
        assert_eq!(times, [2, 3, 4, 5, 6]);
    }
}
