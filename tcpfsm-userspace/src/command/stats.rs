//! `tcpfsm stats`: counts per state, transitions, losses.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use tcpfsm_common::fsm::State;

use super::print;
use crate::{
    cli::{StatsArgs, StatsFormat},
    clock::short_duration,
    control::{
        client::{Answer, Conversation},
        filter::Filter,
        protocol::{Request, What},
        stats::{Count, Stats, ViewsLine},
    },
    error::{Error, Result},
};

pub(super) fn stats(args: StatsArgs) -> Result<ExitCode> {
    let StatsArgs { output, socket } = args;
    let request = Request::new(What::Stats, Filter::default());
    let mut conversation = Conversation::start(&socket.socket, &request)?;
    match conversation.next_answer()? {
        Some(Answer::Item(line)) => match output {
            StatsFormat::Json => print(line)?,
            StatsFormat::Table => print(&tables(&Answer::parse(line)?))?,
        },
        Some(Answer::Notice(_)) | None => {
            return Err(Error::HungUp);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tables(stats: &Stats) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_tables(&mut text, stats);
    text
}

fn write_tables(text: &mut String, stats: &Stats) -> std::fmt::Result {
    let Stats {
        v: _,
        pid,
        uptime_seconds,
        attached,
        flows,
        states,
        transitions,
        opened,
        picked_up,
        closed,
        packets,
        anomalies,
        views,
        maps,
        events,
        lost,
    } = stats;
    let up = Duration::try_from_secs_f64(*uptime_seconds).unwrap_or_default();
    let up = short_duration(u64::try_from(up.as_nanos()).unwrap_or(u64::MAX));
    writeln!(text, "daemon    pid {pid}, up {up}")?;
    for line in attached {
        writeln!(text, "attached  {} {} ({})", line.interface, line.hook, line.mode)?;
    }
    writeln!(text, "flows     {flows} now, {opened} opened, {picked_up} picked up")?;

    writeln!(text, "\n{:<12} {:>9} {:>9} {:>9} {:>9}", "STATE", "ORIG", "RESP", "ASSUMED", "STUCK")?;
    for line in states.iter().filter(|line| line.orig + line.resp > 0) {
        let name = ss_name(&line.state);
        writeln!(text, "{name:<12} {:>9} {:>9} {:>9} {:>9}", line.orig, line.resp, line.assumed, line.stuck)?;
    }

    writeln!(text, "\n{:<5} {:<26} {:>9}", "END", "TRANSITION", "COUNT")?;
    for line in transitions {
        let arrow = format!("{} -> {}", ss_name(&line.from), ss_name(&line.to));
        writeln!(text, "{:<5} {arrow:<26} {:>9}", line.side, line.count)?;
    }

    let counts = |counts: &[Count]| {
        let there: Vec<_> = counts
            .iter()
            .filter(|count| count.count > 0)
            .map(|count| format!("{} {}", count.count, count.name.replace('_', " ")))
            .collect();
        if there.is_empty() { "none".to_owned() } else { there.join(", ") }
    };
    writeln!(text, "\nclosed    {}", counts(closed))?;
    for line in anomalies.iter().filter(|line| line.total > 0) {
        writeln!(text, "anomaly   {}: {} now, {} so far", line.kind, line.active, line.total)?;
    }
    let ViewsLine { seeded, agreed, differed, gone, followed, differing } = views;
    writeln!(
        text,
        "sockets   {seeded} known from the start; compared: {agreed} agreed, {differed} differed ({differing} now), \
         {gone} gone, {followed} followed"
    )?;
    for line in packets {
        writeln!(text, "packets   {} {}: {}", line.hook, line.verdict, line.count)?;
    }
    for line in maps {
        write!(text, "map       {}: {} of {}", line.map, line.entries, line.capacity)?;
        if !line.evicted.is_empty() {
            let total: u64 = line.evicted.iter().map(|count| count.count).sum();
            write!(text, "; {total} evicted: {}", counts(&line.evicted))?;
        }
        writeln!(text)?;
    }
    writeln!(text, "events    {events}\nlost      {}", counts(lost))
}

fn ss_name(name: &str) -> &str {
    match name.parse::<State>() {
        Ok(state) => state.ss_name(),
        Err(_) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stats::{MapLine, StateLine, TransitionLine};

    #[test]
    fn tables_show_what_there_is() {
        let stats = Stats {
            pid: 7,
            uptime_seconds: 192.0,
            flows: 3,
            states: vec![
                StateLine { state: "established".into(), orig: 2, resp: 1, ..StateLine::default() },
                StateLine { state: "closing".into(), ..StateLine::default() },
            ],
            transitions: vec![TransitionLine {
                from: "established".into(),
                to: "fin_wait1".into(),
                side: "orig".into(),
                count: 5,
            }],
            maps: vec![MapLine {
                map: "flows4".into(),
                entries: 128,
                capacity: 128,
                evicted: vec![
                    Count { name: "established".into(), count: 2 },
                    Count { name: "time_wait".into(), count: 40 },
                ],
            }],
            lost: vec![Count { name: "ring".into(), count: 0 }],
            ..Stats::default()
        };
        let text = tables(&stats);
        assert!(text.contains("pid 7, up 3m12s"));
        assert!(text.contains("ESTAB                2         1"), "{text}");
        assert!(!text.contains("CLOSING"));
        assert!(text.contains("orig  ESTAB -> FIN-WAIT-1                5"), "{text}");
        assert!(
            text.contains("map       flows4: 128 of 128; 42 evicted: 2 established, 40 time wait"),
            "{text}"
        );
        assert!(text.contains("lost      none"));
    }
}
