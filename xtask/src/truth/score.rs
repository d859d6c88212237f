//! The score: how many transitions of local sockets the tracker got right, wrong, missed, invented.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::AddAssign;

use tcpfsm_common::fsm::State;

use super::align::{Finding, align};
use super::lives::{End, Lives, Moved};
use super::programs::KINDS;
use super::rest::Listing;
use super::tracker::{Account, Said};
use super::traffic::Played;

/// One side of the ground: what its kernel did and what its tracker said.
pub struct Side<'a> {
    pub name: &'static str,
    /// Whether its local ends are the clients'.
    pub clients: bool,
    pub lives: &'a Lives,
    pub account: &'a Account,
    pub played: &'a Played,
    /// The last listing of its sockets, and what to add to a CLOCK_MONOTONIC nanosecond to get its clock.
    pub last: Option<(&'a Listing, i64)>,
}

impl Side<'_> {
    /// Its ends that took part.
    pub fn ends(&self) -> impl Iterator<Item = End> {
        self.played.kinds.keys().map(|pair| self.end(*pair))
    }

    fn end(&self, [client, server]: [SocketAddr; 2]) -> End {
        if self.clients {
            End { local: client, remote: server }
        } else {
            End { local: server, remote: client }
        }
    }
}

/// Counts of findings.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub right: u64,
    pub wrong: u64,
    pub missed: u64,
    pub invented: u64,
    pub taken_back: u64,
    pub unseen: u64,
}

impl Counts {
    /// Transitions of the kernel's sockets.
    pub fn truth(&self) -> u64 {
        self.right + self.wrong + self.missed
    }

    pub fn differences(&self) -> u64 {
        self.wrong + self.missed + self.invented
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { right, wrong, missed, invented, taken_back, unseen } = other;
        self.right += right;
        self.wrong += wrong;
        self.missed += missed;
        self.invented += invented;
        self.taken_back += taken_back;
        self.unseen += unseen;
    }
}

/// Ends that differ in the same way.
#[derive(Debug)]
pub struct Class {
    /// The kind of traffic, an index of [`KINDS`].
    pub kind: usize,
    pub count: u64,
    pub counts: Counts,
    /// The kernel's path and the tracker's, as words.
    pub kernel: String,
    pub said: String,
    /// One of them.
    pub example: End,
    pub moves: Vec<Moved>,
    pub steps: Vec<Said>,
}

/// The score of one side.
#[derive(Debug, Default)]
pub struct Score {
    pub total: Counts,
    /// Ends with a life in the kernel or in the tracker.
    pub ends: u64,
    /// Of these, without a difference.
    pub exact: u64,
    /// Not judged, and not among `ends`: the records end in a state that the list of sockets does not show.
    pub contradicted: u64,
    /// By kind of traffic, in the order of [`KINDS`].
    pub by_kind: Vec<Counts>,
    /// By the kernel's transition; what was invented by the tracker's.
    pub by_transition: BTreeMap<(State, State), Counts>,
    /// Every way to differ, the commonest first.
    pub classes: Vec<Class>,
}

/// Scores a side.
pub fn score(side: &Side<'_>) -> Score {
    let mut score = Score { by_kind: vec![Counts::default(); KINDS.len()], ..Score::default() };
    let mut classes: HashMap<(usize, String, String), Class> = HashMap::new();
    for (pair, &kind) in &side.played.kinds {
        let end = side.end(*pair);
        let moves = side.lives.by_end.get(&end).map_or(&[][..], Vec::as_slice);
        let steps = side.account.by_end.get(&end).map_or(&[][..], Vec::as_slice);
        if moves.is_empty() && steps.is_empty() {
            continue;
        }
        if side.last.is_some_and(|(listing, wall)| listing.contradicts(end, moves, wall)) {
            score.contradicted += 1;
            continue;
        }
        let mut counts = Counts::default();
        for finding in align(moves, steps) {
            let (one, transition) = judge(finding, moves, steps);
            counts += one;
            *score.by_transition.entry(transition).or_default() += one;
        }
        score.ends += 1;
        score.total += counts;
        score.by_kind[kind] += counts;
        if counts.differences() == 0 {
            score.exact += 1;
            continue;
        }
        let words =
            (kind, path(moves.iter().map(|m| (m.from, m.to))), path(steps.iter().map(|s| (s.from, s.to))));
        let class = classes.entry(words).or_insert_with_key(|(kind, kernel, said)| Class {
            kind: *kind,
            count: 0,
            counts: Counts::default(),
            kernel: kernel.clone(),
            said: said.clone(),
            example: end,
            moves: moves.to_vec(),
            steps: steps.to_vec(),
        });
        class.count += 1;
        class.counts += counts;
    }
    score.classes = classes.into_values().collect();
    score.classes.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.kernel.cmp(&b.kernel)));
    score
}

/// What a finding counts as, and for which transition.
fn judge(finding: Finding, moves: &[Moved], steps: &[Said]) -> (Counts, (State, State)) {
    let none = Counts::default();
    let kernel = |at: usize| (moves[at].from, moves[at].to);
    let tracker = |at: usize| (steps[at].from, steps[at].to);
    match finding {
        Finding::Right { kernel: at } => (Counts { right: 1, ..none }, kernel(at)),
        Finding::Wrong { kernel: at, .. } => (Counts { wrong: 1, ..none }, kernel(at)),
        Finding::Missed { kernel: at } => (Counts { missed: 1, ..none }, kernel(at)),
        Finding::Invented { said } => (Counts { invented: 1, ..none }, tracker(said)),
        Finding::TakenBack { said } => (Counts { taken_back: 1, ..none }, tracker(said)),
        Finding::Unseen { said } => (Counts { unseen: 1, ..none }, tracker(said)),
    }
}

/// `SYN-SENT > ESTAB > ...`; where a step does not follow from the one before, both states are named.
fn path(steps: impl Iterator<Item = (State, State)>) -> String {
    let mut words = String::new();
    let mut here = None;
    for (from, to) in steps {
        if here != Some(from) {
            if here.is_some() {
                words.push_str(" | ");
            }
            words.push_str(from.ss_name());
        }
        words.push_str(" > ");
        words.push_str(to.ss_name());
        here = Some(to);
    }
    if words.is_empty() { "nothing".to_owned() } else { words }
}
