//! How much of the ground truth `tcpfsm replay` gets right.

use std::collections::BTreeMap;

use anyhow::Result;

use super::truth::{Found, Truth};

/// The mean over the classes of `conn_state` that is wanted, in per cent.
const CONN_STATE_GOAL: f64 = 99.0;
const HISTORY_GOAL: f64 = 97.0;
const STATES_GOAL: f64 = 99.0;

/// Connections of the same endpoints that begin this near to each other, in microseconds, are the same.
const SAME_TIME: u64 = 1000;

/// So many right of so many.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    right: u32,
    of: u32,
}

impl Share {
    fn count(&mut self, right: bool) {
        self.right += u32::from(right);
        self.of += 1;
    }

    fn percent(self) -> f64 {
        if self.of == 0 { 100.0 } else { 100.0 * f64::from(self.right) / f64::from(self.of) }
    }
}

/// The score so far.
#[derive(Debug, Default)]
pub(super) struct Score {
    files: u32,
    refused: u32,
    crashes: Vec<String>,
    hangs: Vec<String>,
    missing: u32,
    extra: u32,
    classes: BTreeMap<String, Share>,
    history: Share,
    /// Both ends' RFC states on clean lines, from what the reference has read: TCP alone; …
    states: Share,
    /// … and as they are where ICMP errors are read too.
    states_with_icmp: Share,
    differences: Vec<String>,
}

impl Score {
    pub(super) fn refused(&mut self, file: &str) {
        self.refused += 1;
        self.differences.push(format!("{file}: refused"));
    }

    pub(super) fn crashed(&mut self, file: &str, how: &str) {
        self.crashes.push(format!("{file}: {how}"));
    }

    pub(super) fn hung(&mut self, file: &str) {
        self.hangs.push(file.to_owned());
    }

    pub(super) fn absent(&mut self, file: &str) {
        self.differences.push(format!("{file}: in the ground truth, but not in the archive"));
    }

    /// Compares what was found in a file, with and without ICMP errors, with what is known of it.
    pub(super) fn file(
        &mut self,
        name: &str,
        expected: &[Truth],
        found: &str,
        without_icmp: &str,
    ) -> Result<()> {
        self.files += 1;
        let mut found: Vec<_> = Found::parse_all(found)?.into_iter().map(Some).collect();
        let mut without_icmp: Vec<_> = Found::parse_all(without_icmp)?.into_iter().map(Some).collect();
        for truth in expected {
            let place = format!("{name}: {} > {}", truth.ends[0], truth.ends[1]);
            let connection = take_nearest(&mut found, truth);
            self.connection(&place, truth, connection.as_ref());
            self.states(&place, truth, connection.as_ref(), take_nearest(&mut without_icmp, truth).as_ref());
        }
        for found in found.iter().flatten() {
            self.extra += 1;
            self.differences.push(format!(
                "{name}: {} > {}: only here: {} {}",
                found.ends[0], found.ends[1], found.conn_state, found.history
            ));
        }
        Ok(())
    }

    /// `conn_state` and `history`: Zeek reads no ICMP errors for them, nor does the summary.
    fn connection(&mut self, place: &str, truth: &Truth, found: Option<&Found>) {
        let Some(found) = found else {
            self.missing += u32::from(truth.is_scored);
            self.differences.push(format!("{place}: missing: {} {}", truth.conn_state, truth.history));
            if truth.is_scored {
                self.classes.entry(truth.conn_state.clone()).or_default().count(false);
                self.history.count(false);
            }
            return;
        };
        if !truth.is_scored {
            return;
        }
        let same = found.conn_state == truth.conn_state;
        self.classes.entry(truth.conn_state.clone()).or_default().count(same);
        let same_history = found.history == truth.history;
        self.history.count(same_history);
        if !(same && same_history) {
            self.differences.push(format!(
                "{place}: {} {}, wanted {} {}",
                found.conn_state, found.history, truth.conn_state, truth.history
            ));
        }
    }

    /// Both ends' states on a clean line. No line is left out of either figure.
    fn states(
        &mut self,
        place: &str,
        truth: &Truth,
        with_icmp: Option<&Found>,
        without_icmp: Option<&Found>,
    ) {
        let Some((client, wanted)) = &truth.clean else { return };
        let [without, with] = [without_icmp, with_icmp].map(|found| {
            found.map(|found| {
                let [orig, resp] = found.states.clone();
                if found.ends[0] == *client { [orig, resp] } else { [resp, orig] }
            })
        });
        self.states.count(without.as_ref() == Some(wanted));
        self.states_with_icmp.count(with.as_ref() == Some(wanted));
        let icmp = if without == with { "" } else { " with ICMP errors" };
        if let Some([client, server]) = with.filter(|with| with != wanted).or(without)
            && [&client, &server] != [&wanted[0], &wanted[1]]
        {
            self.differences.push(format!(
                "{place}: client {client}, server {server}{icmp}, wanted {} and {}",
                wanted[0], wanted[1]
            ));
        }
    }

    fn conn_state_mean(&self) -> f64 {
        let classes = self.classes.len().max(1);
        self.classes.values().map(|share| share.percent()).sum::<f64>() / classes as f64
    }

    /// Whether nothing crashed or hung, and every share is as high as wanted.
    pub(super) fn reaches_its_goals(&self) -> bool {
        self.crashes.is_empty()
            && self.hangs.is_empty()
            && self.conn_state_mean() >= CONN_STATE_GOAL
            && self.history.percent() >= HISTORY_GOAL
            && self.states.percent() >= STATES_GOAL
    }

    /// The score for people: to stdout, since nothing else is there.
    pub(super) fn print(&self, differences: bool) {
        let Self { files, refused, missing, extra, history, states, states_with_icmp, .. } = self;
        println!(
            "files        {files} read, {refused} refused, {} crashed, {} hung",
            self.crashes.len(),
            self.hangs.len()
        );
        for file in self.crashes.iter().chain(&self.hangs) {
            println!("             {file}");
        }
        println!("connections  {missing} missing, {extra} that the ground truth does not have");
        let mut overall = Share::default();
        for (class, share) in &self.classes {
            overall.right += share.right;
            overall.of += share.of;
            println!(
                "conn_state   {class:6} {:>5} of {:>5}  {:>6.2} %",
                share.right,
                share.of,
                share.percent()
            );
        }
        let (mean, classes) = (self.conn_state_mean(), self.classes.len());
        println!("conn_state   mean of the {classes} classes  {mean:>6.2} %   (goal {CONN_STATE_GOAL} %)");
        println!(
            "conn_state   all    {:>5} of {:>5}  {:>6.2} %",
            overall.right,
            overall.of,
            overall.percent()
        );
        let show = |name: &str, share: Share, goal: &str| {
            println!("{name} {:>5} of {:>5}  {:>6.2} %{goal}", share.right, share.of, share.percent());
        };
        show("history           ", *history, &format!("   (goal {HISTORY_GOAL} %)"));
        let goal = format!("   on all clean lines, from TCP alone as the reference (goal {STATES_GOAL} %)");
        show("RFC states        ", *states, &goal);
        show("RFC states        ", *states_with_icmp, "   on all clean lines, with ICMP errors");
        if differences {
            for difference in &self.differences {
                println!("  {difference}");
            }
        } else {
            println!("{} differences: --differences lists them", self.differences.len());
        }
    }
}

/// Takes out the connection of the same endpoints that began nearest.
fn take_nearest(found: &mut [Option<Found>], truth: &Truth) -> Option<Found> {
    found
        .iter_mut()
        .filter(|found| found.as_ref().is_some_and(|found| is_same(truth, found)))
        .min_by_key(|found| found.as_ref().map(|found| found.began.abs_diff(truth.began)))
        .and_then(Option::take)
}

fn is_same(truth: &Truth, found: &Found) -> bool {
    let [orig, resp] = found.ends;
    (truth.ends == [orig, resp] || truth.ends == [resp, orig])
        && found.began.abs_diff(truth.began) <= SAME_TIME
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUTH: &str = concat!(
        r#"{"pcap":"a","ts":1.0,"orig_h":"10.0.0.1","orig_p":1,"resp_h":"10.0.0.2","resp_p":2,"#,
        r#""zeek_conn_state":"SF","zeek_history":"ShFf","ref_conn_state":"SF","clean":true,"#,
        r#""ref":{"client":["10.0.0.1",1],"client_state":"TIME_WAIT","server_state":"CLOSE"}}"#
    );

    fn found(history: &str, began: &str) -> String {
        format!(
            r#"{{"orig":"10.0.0.1:1","resp":"10.0.0.2:2","first_ts":"{began}","orig_state":"time_wait","resp_state":"closed","conn_state":"SF","history":"{history}","events":[]}}"#
        )
    }

    fn score(found: &str) -> Score {
        let mut score = Score::default();
        score.file("a", &Truth::parse_all(TRUTH).unwrap(), found, found).unwrap();
        score
    }

    #[test]
    fn a_perfect_file() {
        let score = score(&found("ShFf", "1970-01-01T00:00:01.000000Z"));
        assert!(score.reaches_its_goals() && score.differences.is_empty(), "{score:?}");
    }

    #[test]
    fn differences_are_told_apart() {
        let other_history = score(&found("ShF", "1970-01-01T00:00:01.000000Z"));
        assert_eq!((other_history.history.right, other_history.conn_state_mean()), (0, 100.0));
        let other_time = score(&found("ShFf", "1970-01-01T00:00:02.000000Z"));
        assert_eq!((other_time.missing, other_time.extra, other_time.states.right), (1, 1, 0));
    }
}
