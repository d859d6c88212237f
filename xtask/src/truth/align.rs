//! What the kernel did with one end beside what the tracker said of it. Pure.
//!
//! Both are sequences of steps from state to state. They are compared by order, not by time: a tracker on the wire sees a
//! FIN after `close()` and a SYN before the socket. The alignment with the fewest differences counts.

use tcpfsm_common::fsm::State;

use super::lives::Moved;
use super::tracker::Said;

/// What became of a step. Indices are those of the two sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The tracker said what the kernel did.
    Right { kernel: usize },
    /// Where the kernel did one thing, the tracker said another.
    Wrong { kernel: usize, said: usize },
    /// The kernel did it, the tracker said nothing.
    Missed { kernel: usize },
    /// The tracker said it, the kernel did nothing.
    Invented { said: usize },
    /// The tracker said it, marked as assumed, and took it back by itself.
    TakenBack { said: usize },
    /// The tracker said it of a state in which there is no full socket, so that the truth is silent about it.
    Unseen { said: usize },
}

/// Everything found about one end, in order.
pub fn align(kernel: &[Moved], said: &[Said]) -> Vec<Finding> {
    let (kept, taken_back) = take_back(said);
    let mut findings: Vec<Finding> = taken_back.into_iter().map(|said| Finding::TakenBack { said }).collect();
    // TIME-WAIT is a small socket, and its end is no full socket's.
    let (ends, kept): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|(_, step)| step.from == State::TimeWait && step.to == State::Closed);
    findings.extend(ends.into_iter().map(|(said, _)| Finding::Unseen { said }));
    let (places, steps): (Vec<usize>, Vec<Said>) = kept.into_iter().unzip();
    let kernel = without_orphan(kernel, &steps);
    for finding in fewest_differences(kernel, &steps) {
        findings.push(match finding {
            // A SYN that was never answered by an ACK makes a request socket, or none at all, but no full one.
            Finding::Invented { said } if is_requests(&steps[said]) => Finding::Unseen { said: places[said] },
            Finding::Invented { said } => Finding::Invented { said: places[said] },
            Finding::Wrong { kernel, said } => Finding::Wrong { kernel, said: places[said] },
            Finding::Right { .. }
            | Finding::Missed { .. }
            | Finding::TakenBack { .. }
            | Finding::Unseen { .. } => finding,
        });
    }
    findings
}

/// An orphan in FIN-WAIT-2 goes on as a small socket in FIN-WAIT-2: its full socket's end is no transition. That it is
/// still there is for the listings to say.
fn without_orphan<'a>(kernel: &'a [Moved], said: &[Said]) -> &'a [Moved] {
    match (kernel.split_last(), said.last()) {
        (Some((last, before)), Some(step))
            if last.hands_over() && last.from == State::FinWait2 && step.to == State::FinWait2 =>
        {
            before
        }
        _ => kernel,
    }
}

/// What was said and stays said, with its place; and the places of what was assumed and then disproved, with the step
/// back.
fn take_back(said: &[Said]) -> (Vec<(usize, Said)>, Vec<usize>) {
    let (mut kept, mut taken_back): (Vec<(usize, Said)>, Vec<usize>) = (Vec::new(), Vec::new());
    for (at, step) in said.iter().enumerate() {
        let returns_to = kept.iter().rposition(|(_, earlier)| earlier.from == step.to);
        match returns_to {
            Some(first) if &*step.why == "rollback" && !kept[first].1.confirmed => {
                taken_back.extend(kept.drain(first..).map(|(at, _)| at));
                taken_back.push(at);
                continue;
            }
            _ => {}
        }
        match kept.pop() {
            // A FIN that left before the peer's had come disproves the CLOSE-WAIT that was assumed.
            Some((place, assumed))
                if assumed.to == State::CloseWait
                    && !assumed.confirmed
                    && (step.from, step.to) == (State::CloseWait, State::Closing) =>
            {
                taken_back.push(place);
                kept.push((at, Said { from: assumed.from, ..step.clone() }));
            }
            last => {
                kept.extend(last);
                kept.push((at, step.clone()));
            }
        }
    }
    (kept, taken_back)
}

fn is_requests(step: &Said) -> bool {
    match step.to {
        State::SynRecv => before_any(step.from),
        State::Closed | State::Listen => step.from == State::SynRecv,
        _ => false,
    }
}

fn before_any(state: State) -> bool {
    // The small TIME-WAIT socket of an earlier connection counts as none.
    matches!(state, State::Closed | State::Listen | State::TimeWait)
}

fn same_from(kernel: Moved, step: &Said) -> bool {
    if matches!(kernel.to, State::SynSent | State::SynRecv) && before_any(kernel.from) {
        before_any(step.from)
    } else {
        kernel.from == step.from
    }
}

fn same_to(kernel: Moved, step: &Said) -> bool {
    kernel.to == step.to
        || kernel.hands_over() && step.to == State::TimeWait
        // A reset in SYN-RECV returns to LISTEN (RFC 9293 §3.10.7.4); the kernel's child is closed.
        || kernel.from == State::SynRecv && kernel.to == State::Closed && step.to == State::Listen
}

/// How many steps of the kernel, from `kernel[0]` on, are the one that was said: one segment may lead through several
/// states, and the tracker says where it began and where it ended. 0 if none.
fn covers(kernel: &[Moved], step: &Said) -> usize {
    let Some(first) = kernel.first().filter(|first| same_from(**first, step)) else { return 0 };
    let mut here = *first;
    for length in 1..=LONGEST_STRIDE {
        if same_to(here, step) {
            return length;
        }
        match kernel.get(length) {
            Some(next) if next.from == here.to && next.at - first.at < ONE_SEGMENT => here = *next,
            _ => return 0,
        }
    }
    0
}

/// SYN-RECV, ESTABLISHED, CLOSE-WAIT by one segment; FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT by another.
const LONGEST_STRIDE: usize = 3;
/// The kernel takes microseconds for one segment; that it is interrupted meanwhile is allowed for.
const ONE_SEGMENT: u64 = 20_000_000;

fn fewest_differences(kernel: &[Moved], said: &[Said]) -> Vec<Finding> {
    // cost[k][s]: the fewest differences between kernel[k..] and said[s..].
    let (rows, columns) = (kernel.len(), said.len());
    let mut cost = vec![vec![0_usize; columns + 1]; rows + 1];
    for k in (0..=rows).rev() {
        for s in (0..=columns).rev() {
            if k == rows || s == columns {
                cost[k][s] = (rows - k) + (columns - s);
                continue;
            }
            let stride = covers(&kernel[k..], &said[s]);
            let differ = 1 + cost[k + 1][s + 1].min(cost[k + 1][s]).min(cost[k][s + 1]);
            cost[k][s] = if stride > 0 { differ.min(cost[k + stride][s + 1]) } else { differ };
        }
    }
    let (mut k, mut s) = (0, 0);
    let mut findings = Vec::new();
    while k < rows || s < columns {
        let stride = if k < rows && s < columns { covers(&kernel[k..], &said[s]) } else { 0 };
        if stride > 0 && cost[k][s] == cost[k + stride][s + 1] {
            findings.extend((k..k + stride).map(|kernel| Finding::Right { kernel }));
            k += stride;
            s += 1;
        } else if k < rows && s < columns && cost[k][s] == 1 + cost[k + 1][s + 1] {
            findings.push(Finding::Wrong { kernel: k, said: s });
            k += 1;
            s += 1;
        } else if k < rows && (s == columns || cost[k][s] == 1 + cost[k + 1][s]) {
            findings.push(Finding::Missed { kernel: k });
            k += 1;
        } else {
            findings.push(Finding::Invented { said: s });
            s += 1;
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{
        CloseWait, Closed, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv, SynSent,
        TimeWait,
    };

    fn kernel(path: &[State]) -> Vec<Moved> {
        let steps = path.windows(2).enumerate();
        steps.map(|(at, pair)| Moved { at: at as u64, from: pair[0], to: pair[1] }).collect()
    }

    fn said(path: &[State]) -> Vec<Said> {
        path.windows(2).map(|pair| step(pair[0], pair[1], "other", true)).collect()
    }

    fn step(from: State, to: State, why: &str, confirmed: bool) -> Said {
        Said { at: 0, from, to, confirmed, why: why.into() }
    }

    /// Right, wrong, missed, invented, taken back, unseen.
    fn count(kernel: &[Moved], said: &[Said]) -> [usize; 6] {
        let mut counts = [0; 6];
        for finding in align(kernel, said) {
            counts[match finding {
                Finding::Right { .. } => 0,
                Finding::Wrong { .. } => 1,
                Finding::Missed { .. } => 2,
                Finding::Invented { .. } => 3,
                Finding::TakenBack { .. } => 4,
                Finding::Unseen { .. } => 5,
            }] += 1;
        }
        counts
    }

    #[test]
    fn lives_that_are_equal() {
        let client = [Closed, SynSent, Established, FinWait1, FinWait2, Closed];
        let seen = [Closed, SynSent, Established, FinWait1, FinWait2, TimeWait, Closed];
        assert_eq!(count(&kernel(&client), &said(&seen)), [5, 0, 0, 0, 0, 1]);
        let server = [Listen, SynRecv, Established, CloseWait, LastAck, Closed];
        assert_eq!(count(&kernel(&server), &said(&server)), [5, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn one_segment_may_lead_through_two_states() {
        let truth = kernel(&[Established, FinWait1, FinWait2, Closed]);
        assert_eq!(count(&truth, &said(&[Established, FinWait1, TimeWait])), [3, 0, 0, 0, 0, 0]);
        let mut slow = truth;
        slow[2].at += ONE_SEGMENT * 2;
        assert_eq!(count(&slow, &said(&[Established, FinWait1, TimeWait])), [1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn another_way_to_the_end_is_wrong() {
        let truth = kernel(&[Established, FinWait1, Closing, Closed]);
        assert_eq!(count(&truth, &said(&[Established, CloseWait, LastAck, Closed])), [0, 3, 0, 0, 0, 0]);
    }

    #[test]
    fn a_step_too_few_is_missed_and_one_too_many_invented() {
        let truth = kernel(&[Closed, SynSent, Established, FinWait1, Closed]);
        assert_eq!(count(&truth, &said(&[Closed, SynSent, Established, FinWait1])), [3, 0, 1, 0, 0, 0]);
        let truth = kernel(&[Closed, SynSent, Established, CloseWait]);
        let seen = [Closed, SynSent, Established, CloseWait, LastAck];
        assert_eq!(count(&truth, &said(&seen)), [3, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn requests_have_no_full_socket() {
        assert_eq!(count(&[], &said(&[Listen, SynRecv, Closed])), [0, 0, 0, 0, 0, 2]);
        // The first handshake failed, the second did not.
        let truth = kernel(&[Listen, SynRecv, Established]);
        let seen = [Listen, SynRecv, Listen, SynRecv, Established];
        assert_eq!(count(&truth, &said(&seen)), [2, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn an_assumption_taken_back_is_counted_apart() {
        let truth = kernel(&[Established, FinWait1, FinWait2, Closed]);
        let seen = [
            step(Established, FinWait1, "own_fin", true),
            step(FinWait1, FinWait2, "fin_acked", false),
            step(FinWait2, FinWait1, "rollback", true),
            step(FinWait1, FinWait2, "fin_acked", false),
            step(FinWait2, TimeWait, "peer_fin", false),
        ];
        assert_eq!(count(&truth, &seen), [3, 0, 0, 0, 2, 0]);
        // What was called proved cannot be taken back for free.
        let mut proved = seen.to_vec();
        proved[1].confirmed = true;
        assert_eq!(count(&truth, &proved), [3, 0, 0, 2, 0, 0]);
    }

    #[test]
    fn an_orphan_in_fin_wait2_is_still_there() {
        let truth = kernel(&[Established, FinWait1, FinWait2, Closed]);
        assert_eq!(count(&truth, &said(&[Established, FinWait1, FinWait2])), [2, 0, 0, 0, 0, 0]);
        assert_eq!(count(&truth, &said(&[Established, FinWait1])), [1, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn fins_that_cross_disprove_close_wait() {
        let truth = kernel(&[Established, FinWait1, Closing, Closed]);
        let seen = |confirmed| {
            [
                step(Established, CloseWait, "peer_fin", confirmed),
                step(CloseWait, Closing, "own_fin", false),
                step(Closing, TimeWait, "fin_acked", false),
            ]
        };
        assert_eq!(count(&truth, &seen(false)), [3, 0, 0, 0, 1, 0]);
        assert_eq!(count(&truth, &seen(true)), [1, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn a_port_used_again_has_two_lives() {
        let server = [Listen, SynRecv, Established, FinWait1, FinWait2, Closed];
        let mut truth = kernel(&server);
        truth.extend(kernel(&server));
        let path = [Listen, SynRecv, Established, FinWait1, FinWait2, TimeWait];
        let mut seen = said(&path);
        seen.extend(said(&[TimeWait, SynRecv, Established, FinWait1, FinWait2, TimeWait]));
        assert_eq!(count(&truth, &seen), [10, 0, 0, 0, 0, 0]);
    }
}
