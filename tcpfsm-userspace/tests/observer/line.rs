//! One line of a script: a segment, and what must be known and told after it.
//!
//! Sender (`C` or `S`), flags (`0` for none), `s` and the sequence number, `a` and the acknowledgment,
//! `+` and the length, `w` and the window, `t` and the timestamp; then what must be known of client and server after it, `-` where no flow
//! must be shown; then facts that it must tell, or with `!` must not, and with `=` the close reason. Numbers are
//! relative to each end's initial one. A state with `~` is assumed.

use tcpfsm_common::{
    abi::{CloseReason, FlowRecord, Verdict},
    fact::{Fact, Facts},
    flow::End,
    fsm::State,
    segment::TcpFlags,
};

use crate::support::segments;

/// A state, and whether it is assumed.
type End2 = [(State, bool); 2];

#[derive(Debug)]
pub struct Line {
    pub from_client: bool,
    flags: u16,
    seq: u32,
    ack: u32,
    len: usize,
    window: u16,
    timestamp: Option<u32>,
    /// Client and server; `None` where no flow must be shown.
    expected: Option<End2>,
    told: Facts,
    untold: Facts,
    reason: Option<&'static str>,
}

/// Initial sequence numbers; the server's wraps around soon.
const ISS: [u32; 2] = [0x1000_0000, 0xffff_ffa0];

impl Line {
    pub fn parse(text: &'static str) -> Self {
        let mut words = text.split_whitespace();
        let from_client = words.next() == Some("C");
        let (own, peer) = if from_client { (ISS[0], ISS[1]) } else { (ISS[1], ISS[0]) };
        let flags = words.next().unwrap().chars().fold(0, |flags, letter| flags | flag(letter));
        let mut line = Self {
            from_client,
            flags,
            seq: own,
            ack: 0,
            len: 0,
            window: 64_240,
            timestamp: None,
            expected: None,
            told: Facts::default(),
            untold: Facts::default(),
            reason: None,
        };
        for word in words {
            let number = || word[1..].parse::<u32>();
            match word.chars().next().unwrap() {
                's' if number().is_ok() => line.seq = own.wrapping_add(number().unwrap()),
                'a' if number().is_ok() => line.ack = peer.wrapping_add(number().unwrap()),
                'w' if number().is_ok() => line.window = number().unwrap().try_into().unwrap(),
                't' if number().is_ok() => line.timestamp = number().ok(),
                '+' => line.len = number().unwrap().try_into().unwrap(),
                '-' => line.expected = None,
                '=' => line.reason = Some(&word[1..]),
                '!' => line.untold.add(fact(&word[1..])),
                _ if word.contains('/') => {
                    let (client, server) = word.split_once('/').unwrap();
                    line.expected = Some([client, server].map(state));
                }
                _ => line.told.add(fact(word)),
            }
        }
        line
    }

    pub fn packet(&self, family: segments::Family, network: u32, id: u16) -> Vec<u8> {
        let ports = if self.from_client { (40_000, 443) } else { (443, 40_000) };
        let options = self.timestamp.map_or_else(Vec::new, |value| segments::timestamps_option(value, 7));
        let tcp = segments::tcp(ports, self.seq, self.ack, self.flags, self.window, &options, self.len);
        let (from, to) = if self.from_client { (1, 2) } else { (2, 1) };
        match family {
            segments::Family::V4 => segments::ipv4(network, from, to, id, &tcp),
            segments::Family::V6 => segments::ipv6(network, from, to, &tcp),
        }
    }

    pub fn check(&self, record: &FlowRecord, told: Facts) -> Result<(), String> {
        let shown = self.states_of(record);
        let alike = match (self.expected, shown) {
            (None, None) => true,
            // Of a closed end nothing is there to be proved.
            (Some(expected), Some(shown)) => expected
                .into_iter()
                .zip(shown)
                .all(|(expected, shown)| expected == shown || expected.0 == shown.0 && shown.0.is_closed()),
            _ => false,
        };
        let (missing, surplus) = (self.told.without(told), Facts(self.untold.0 & told.0));
        let reason = Verdict(record.shared.verdict).close_reason().name();
        if self.reason.is_some_and(|expected| expected != reason) {
            return Err(format!("ended by {reason}"));
        }
        if alike && missing.is_empty() && surplus.is_empty() {
            return Ok(());
        }
        Err(format!("shows {shown:?} (state, assumed) and tells: {}", names(told)))
    }

    /// Client's and server's; `None` where no flow is shown.
    fn states_of(&self, record: &FlowRecord) -> Option<End2> {
        let verdict = Verdict(record.shared.verdict);
        let stray = verdict.is_closed() && verdict.close_reason() == CloseReason::Open;
        if stray || verdict.has(Verdict::CANDIDATE) {
            return None;
        }
        // Hosts 1 and 2 of `segments`: the client sorts first, whatever the family.
        Some([End::Low, End::High].map(|end| {
            let state = verdict.state(end);
            (if state.is_closed() { State::Closed } else { state }, !verdict.is_confirmed(end))
        }))
    }
}

fn state(text: &str) -> (State, bool) {
    let (text, assumed) = match text.strip_prefix('~') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let state = match text {
        "CL" => State::Closed,
        "SS" => State::SynSent,
        "SR" => State::SynRecv,
        "ES" => State::Established,
        "F1" => State::FinWait1,
        "F2" => State::FinWait2,
        "CW" => State::CloseWait,
        "LA" => State::LastAck,
        "CG" => State::Closing,
        "TW" => State::TimeWait,
        other => panic!("{other} is no state"),
    };
    (state, assumed)
}

fn flag(letter: char) -> u16 {
    match letter {
        'S' => TcpFlags::SYN,
        'A' => TcpFlags::ACK,
        'F' => TcpFlags::FIN,
        'R' => TcpFlags::RST,
        'P' => TcpFlags::PSH,
        'U' => TcpFlags::URG,
        '0' => 0,
        other => panic!("{other} is no flag"),
    }
}

fn fact(name: &str) -> Fact {
    let found = Fact::ALL.into_iter().find(|fact| fact.name() == name);
    found.unwrap_or_else(|| panic!("{name} is no fact"))
}

fn names(facts: Facts) -> String {
    facts.iter().map(Fact::name).collect::<Vec<_>>().join(", ")
}
