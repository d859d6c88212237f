//! What a run found, for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Settings;
use super::lives::{Lives, Moved};
use super::programs::KINDS;
use super::rest::{Agreement, Difference};
use super::score::{Class, Counts, Score, Side, score};
use super::tracker::Said;
use super::traffic::Played;

/// Losses of the daemon that lose lines.
const LOSSES: [&str; 6] = ["ring", "verdicts", "map_insert", "queue", "stdout", "malformed"];

/// Right transitions that a bad wire must leave, in hundredths of a percent.
const GOAL: u64 = 9_990;

/// What a run found.
#[derive(Debug)]
pub struct Report {
    pub(super) settings: Settings,
    pub(super) sides: Vec<SideReport>,
    /// Records of the tracepoint, and records lost.
    pub(super) changes: usize,
    pub(super) lost: u64,
    pub(super) lives: Lives,
    pub(super) played: Played,
    /// Frames, lost ones and late ones.
    pub(super) wire: Option<[u64; 3]>,
    /// What did not come to rest.
    pub(super) unrest: Vec<String>,
    /// CLOCK_MONOTONIC to time of day, nanoseconds.
    pub(super) wall: i64,
}

/// One side's part.
#[derive(Debug)]
pub struct SideReport {
    name: &'static str,
    score: Score,
    rest: Agreement,
    lost: Vec<(String, u64)>,
    not_local: u64,
}

impl SideReport {
    pub(super) fn new(side: &Side<'_>, rest: Agreement) -> Self {
        let lost =
            side.account.lost.iter().filter(|(place, _)| LOSSES.contains(&place.as_str())).cloned().collect();
        Self { name: side.name, score: score(side), rest, lost, not_local: side.account.not_local }
    }
}

impl Report {
    /// What was to hold and does not.
    pub fn missed_goals(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut unless = |holds: bool, what: String| {
            if !holds {
                missed.push(what);
            }
        };
        unless(
            self.lost == 0,
            format!("{} records of the tracepoint were lost: the truth has holes", self.lost),
        );
        unless(self.lives.headless == 0, format!("{} records have no beginning", self.lives.headless));
        for SideReport { name, score: Score { total, ends, contradicted, .. }, rest, lost, not_local } in
            &self.sides
        {
            unless(
                contradicted * 1_000 <= *ends,
                format!("{name}: {contradicted} ends have records that the list of sockets contradicts"),
            );
            unless(lost.is_empty(), format!("{name}: the tracker lost {}", losses(lost)));
            unless(
                *not_local == 0,
                format!("{name}: {not_local} transitions were not said to be this host's"),
            );
            if self.settings.bad_wire() {
                let share = total.right * 10_000 / total.truth().max(1);
                let listed = rest.equal * 10_000 / rest.compared.max(1);
                unless(
                    listed >= GOAL,
                    format!("{name}: {} of the states listed are equal", percent(rest.equal, rest.compared)),
                );
                unless(
                    share >= GOAL,
                    format!("{name}: {} right, less than 99.9 %", percent(total.right, total.truth())),
                );
            } else {
                unless(total.differences() == 0, {
                    let Counts { wrong, missed, invented, .. } = total;
                    format!("{name}: {wrong} transitions wrong, {missed} missed, {invented} invented")
                });
                let differing = rest.compared - rest.equal;
                unless(differing == 0, format!("{name}: {differing} of the states listed differ"));
            }
        }
        missed
    }

    /// Transitions of the kernel's sockets, of all sides, and how many of them were right, wrong, missed; and
    /// invented ones.
    pub fn totals(&self) -> [u64; 5] {
        let mut total = Counts::default();
        for side in &self.sides {
            total += side.score.total;
        }
        [total.truth(), total.right, total.wrong, total.missed, total.invented]
    }

    /// For people; with examples of so many ways to differ.
    pub fn to_text(&self, differences: usize) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, differences);
        text
    }

    fn write(&self, out: &mut String, differences: usize) -> std::fmt::Result {
        writeln!(
            out,
            "{} connections, {} records of sock:inet_sock_set_state, {} lost",
            self.played.connections, self.changes, self.lost
        )?;
        if let Some([frames, lost, late]) = self.wire {
            writeln!(
                out,
                "the wire: {frames} frames, {lost} lost ({}), {late} late ({})",
                percent(lost, frames),
                percent(late, frames)
            )?;
        }
        for (failure, count) in &self.played.failures {
            writeln!(out, "  {count} times: {failure}")?;
        }
        for state in &self.unrest {
            writeln!(out, "  not at rest: {state}")?;
        }
        for side in &self.sides {
            self.write_side(out, side, differences)?;
        }
        let missed = self.missed_goals();
        writeln!(out)?;
        for goal in &missed {
            writeln!(out, "goal missed: {goal}")?;
        }
        if missed.is_empty() {
            writeln!(out, "all goals reached")?;
        }
        Ok(())
    }

    fn write_side(&self, out: &mut String, side: &SideReport, differences: usize) -> std::fmt::Result {
        let SideReport { name, score, rest, lost, .. } = side;
        let Score { total, ends, exact, contradicted, by_kind, by_transition, classes } = score;
        writeln!(
            out,
            "\nTHE {}, {ends} ends, {exact} without a difference; lost by the tracker: {}",
            name.to_uppercase(),
            losses(lost)
        )?;
        if *contradicted > 0 {
            writeln!(
                out,
                "{contradicted} more not judged: their records end where the list of sockets does not"
            )?;
        }
        writeln!(out, "{:32}{}", "TRAFFIC", HEADS)?;
        for (kind, counts) in KINDS.iter().zip(by_kind) {
            writeln!(out, "{:32}{}", kind.name, row(counts))?;
        }
        writeln!(out, "{:32}{}", "all", row(total))?;
        writeln!(out, "{:32}{}", "TRANSITION", HEADS)?;
        for ((from, to), counts) in by_transition {
            let arrow = format!("{} -> {}", from.ss_name(), to.ss_name());
            writeln!(out, "{arrow:32}{}", row(counts))?;
        }
        let Agreement { listings, compared, equal, unsettled, .. } = rest;
        writeln!(
            out,
            "listings of all sockets: {listings}; {equal} of {compared} states equal, {unsettled} on the move"
        )?;
        for difference in rest.differences.iter().take(differences) {
            let Difference { end, kernel, tracker, listed, moves, steps } = difference;
            writeln!(
                out,
                "  {} with {}: the kernel says {}, the tracker {}",
                end.local,
                end.remote,
                kernel.ss_name(),
                tracker.ss_name()
            )?;
            self.write_accounts(out, moves, steps, Some(*listed))?;
        }
        if !classes.is_empty() {
            writeln!(out, "{} ways to differ", classes.len())?;
        }
        for class in classes.iter().take(differences) {
            self.write_class(out, class)?;
        }
        Ok(())
    }

    fn write_class(&self, out: &mut String, class: &Class) -> std::fmt::Result {
        let Class { kind, count, kernel, said, example, moves, steps, .. } = class;
        writeln!(out, "\n  {count} x {}", KINDS[*kind].name)?;
        writeln!(out, "    kernel   {kernel}")?;
        writeln!(out, "    tracker  {said}")?;
        writeln!(out, "    one is {} with {}", example.local, example.remote)?;
        self.write_accounts(out, moves, steps, None)
    }

    /// What both said of an end, in the order of time, and when the kernel's sockets were listed.
    fn write_accounts(
        &self,
        out: &mut String,
        moves: &[Moved],
        steps: &[Said],
        listed: Option<i64>,
    ) -> std::fmt::Result {
        let kernel = moves.iter().map(|moved| {
            let at = (moved.at.cast_signed() + self.wall) / 1_000;
            (at, format!("kernel   {} -> {}", moved.from.ss_name(), moved.to.ss_name()))
        });
        let tracker = steps.iter().map(|step| {
            let assumed = if step.confirmed { "" } else { "?" };
            (
                step.at,
                format!("tracker  {} -> {}{assumed} ({})", step.from.ss_name(), step.to.ss_name(), step.why),
            )
        });
        let listing = listed.map(|at| (at, "listing".to_owned()));
        let mut both: Vec<_> = kernel.chain(tracker).chain(listing).collect();
        both.sort_by_key(|(at, _)| *at);
        let first = both.first().map_or(0, |(at, _)| *at);
        for (at, what) in both {
            writeln!(out, "    {:>12}us  {what}", at - first)?;
        }
        Ok(())
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let Settings { loss, reorder, .. } = self.settings;
        json!({
            "connections": self.played.connections,
            "loss_percent": f64::from(loss) / 10_000.0,
            "reorder_percent": f64::from(reorder) / 10_000.0,
            "wire": self.wire.map(|[frames, lost, late]| json!({ "frames": frames, "lost": lost, "late": late })),
            "records": self.changes,
            "records_lost": self.lost,
            "records_without_beginning": self.lives.headless,
            "failures": self.played.failures,
            "not_at_rest": self.unrest,
            "sides": self.sides.iter().map(side_json).collect::<Vec<_>>(),
            "missed_goals": self.missed_goals(),
        })
    }
}

fn side_json(side: &SideReport) -> Value {
    let SideReport { name, score, rest, lost, not_local } = side;
    let Score { total, ends, exact, contradicted, by_kind, by_transition, classes } = score;
    let Agreement { listings, compared, equal, unsettled, differences } = rest;
    let by_kind: Vec<_> =
        KINDS.iter().zip(by_kind).map(|(kind, counts)| with(counts, &[("traffic", kind.name)])).collect();
    let by_transition: Vec<_> = by_transition
        .iter()
        .map(|((from, to), counts)| with(counts, &[("from", from.name()), ("to", to.name())]))
        .collect();
    let classes: Vec<_> = classes
        .iter()
        .map(|Class { kind, count, counts, kernel, said, example, .. }| {
            let mut class =
                with(counts, &[("traffic", KINDS[*kind].name), ("kernel", kernel), ("tracker", said)]);
            class["count"] = json!(count);
            class["example"] =
                json!({ "local": example.local.to_string(), "remote": example.remote.to_string() });
            class
        })
        .collect();
    let difference = |Difference { end, kernel, tracker, .. }: &Difference| {
        json!({
            "local": end.local.to_string(),
            "remote": end.remote.to_string(),
            "kernel": kernel.name(),
            "tracker": tracker.name(),
        })
    };
    json!({
        "side": name,
        "ends": ends,
        "ends_without_difference": exact,
        "ends_contradicted": contradicted,
        "total": with(total, &[]),
        "by_traffic": by_kind,
        "by_transition": by_transition,
        "differences": classes,
        "lost_by_tracker": lost.iter().map(|(place, count)| json!({ "where": place, "count": count })).collect::<Vec<_>>(),
        "not_local": not_local,
        "listings": {
            "count": listings,
            "compared": compared,
            "equal": equal,
            "on_the_move": unsettled,
            "differences": differences.iter().map(difference).collect::<Vec<_>>(),
        },
    })
}

fn with(counts: &Counts, names: &[(&str, &str)]) -> Value {
    let Counts { right, wrong, missed, invented, taken_back, unseen } = counts;
    let mut value = json!({
        "transitions": counts.truth(),
        "right": right,
        "wrong": wrong,
        "missed": missed,
        "invented": invented,
        "taken_back": taken_back,
        "no_full_socket": unseen,
    });
    for (name, text) in names {
        value[*name] = json!(text);
    }
    value
}

const HEADS: &str = "TRANSITIONS      RIGHT   WRONG  MISSED  INVENTED  TAKEN BACK  NO SOCKET  SHARE RIGHT";

fn row(counts: &Counts) -> String {
    let Counts { right, wrong, missed, invented, taken_back, unseen } = counts;
    let truth = counts.truth();
    format!(
        "{truth:>11}{right:>11}{wrong:>8}{missed:>8}{invented:>10}{taken_back:>12}{unseen:>11}{:>13}",
        percent(*right, truth)
    )
}

/// Rounded down, so that 100 % means all.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let thousandths = part * 100_000 / whole;
    format!("{}.{:03} %", thousandths / 1_000, thousandths % 1_000)
}

fn losses(lost: &[(String, u64)]) -> String {
    if lost.is_empty() {
        return "nothing".to_owned();
    }
    lost.iter().map(|(place, count)| format!("{count} in {place}")).collect::<Vec<_>>().join(", ")
}
