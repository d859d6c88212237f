//! Stories and entries as text, for somebody who was woken up by them.

use std::{fmt::Write as _, net::SocketAddr};

use jiff::tz::TimeZone;
use tcpfsm_common::flow::Direction;

use super::{
    diagnose::concerned,
    places::Places,
    story::{EndStory, Moment, Origin, Step, Story},
    tell::own_side,
    texts::{self, Entry},
};
use crate::{
    clock::short_duration,
    detect::AnomalyKind,
    export::text::bytes,
    owner::{Proc, Unowned},
    report::Side,
};

/// Columns of running text.
const WIDTH: usize = 96;

/// A kind of anomaly, without a particular case: from what the detector goes by to how sure it is.
#[must_use]
pub fn kind(kind: AnomalyKind, places: &Places) -> String {
    let entry = texts::of(kind);
    let mut text = format!("{}: {}\n", kind.name(), entry.title);
    heading(&mut text, "WHAT IT GOES BY");
    paragraph(&mut text, "  ", &entry.saw);
    heading(&mut text, "WHAT IT MEANS");
    means(&mut text, entry);
    remedies(&mut text, entry, places, None);
    text
}

/// One connection.
#[must_use]
pub fn story(story: &Story, zone: &TimeZone) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = saw(&mut text, story, zone);
    let entry = story.anomalies.first().map(|&kind| (kind, texts::of(kind)));
    let remote = entry.and_then(|(kind, _)| elsewhere(story, kind));
    heading(&mut text, "WHAT IT MEANS");
    match entry {
        Some((kind, entry)) => {
            paragraph(&mut text, "  ", &headline(story, kind));
            if remote.is_some() {
                paragraph(&mut text, "  ", "What follows is told as from there:");
            }
            means(&mut text, entry);
        }
        None => paragraph(&mut text, "  ", "Nothing is wrong, as far as this shows."),
    }
    for side in Side::ALL {
        let end = story.end(side);
        let meaning = texts::of_state(end.state, end.confirmed);
        paragraph(&mut text, "  ", &format!("{}: {meaning}.", end.state.ss_name()));
        if story.orig_end.state == story.resp_end.state {
            break;
        }
    }
    heading(&mut text, "WHOSE IT IS");
    match remote {
        Some(end) => paragraph(
            &mut text,
            "  ",
            &format!("The remote end's, {end}: the program to look at runs there, not on this host."),
        ),
        None => owner(&mut text, story),
    }
    if let Some((kind, entry)) = entry {
        remedies(&mut text, entry, &Places::of_story(story, concerned(story, kind)), remote);
    }
    for &other in story.anomalies.iter().skip(1) {
        let _ = writeln!(text, "\nALSO  {}\n      tcpfsm explain {}", headline(story, other), other.name());
    }
    text
}

/// The end that a kind is about, where it is another host's: no program of this one is to be blamed for it.
fn elsewhere(story: &Story, kind: AnomalyKind) -> Option<SocketAddr> {
    let local = story.local?;
    concerned(story, kind).filter(|&side| !local.includes(side)).map(|side| story.address(side))
}

/// What a kind is, in one sentence.
fn headline(story: &Story, kind: AnomalyKind) -> String {
    let Entry { title, remote, .. } = texts::of(kind);
    match (elsewhere(story, kind), remote) {
        (Some(end), Some(remote)) => format!("{}, at the remote end {end}: {remote}.", kind.name()),
        (Some(_), None) | (None, _) => format!("{}: {title}.", kind.name()),
    }
}

fn saw(text: &mut String, story: &Story, zone: &TimeZone) -> std::fmt::Result {
    let Story { orig, resp, iface, age_ns, idle_ns, close_reason, origin, timeline, .. } = story;
    let on = if iface.is_empty() { String::new() } else { format!("   on {iface}") };
    writeln!(text, "{orig}{} -> {resp}{}{on}", mark(story, Side::Orig), mark(story, Side::Resp))?;
    heading(text, "WHAT I SAW");
    for side in Side::ALL {
        end(text, story, side)?;
    }
    let began = match origin {
        Origin::Seen if *age_ns > 0 => format!("It began {} ago", short_duration(*age_ns)),
        Origin::Seen => "When it began is not known".to_owned(),
        Origin::PickedUp => "It began before it was watched, so who opened it is a guess".to_owned(),
        Origin::Socket => format!(
            "It began before it was watched, at least {} ago; its state was read from its socket",
            short_duration(*age_ns)
        ),
    };
    let silent = format!("nothing has come from either end for {}", short_duration(*idle_ns));
    let ended = match close_reason {
        Some(reason) => format!("it is over ({})", reason.replace('_', " ")),
        None => "it goes on".to_owned(),
    };
    paragraph(text, "  ", &format!("{began}; {ended}; {silent}."));
    if let (Some(kernel), Some(side)) = (story.kernel_state, own_side(story)) {
        let agree = kernel == story.end(side).state;
        let words = if agree { "says the same" } else { "says otherwise" };
        paragraph(text, "  ", &format!("The kernel's own socket {words}: {}.", kernel.ss_name()));
    }
    paragraph(text, "  ", "(* this host's end; ? assumed: that end has not proved it yet)");
    if timeline.is_empty() {
        paragraph(text, "  ", "No segment of it is remembered: the daemon keeps only so many events.");
    } else {
        timeline_table(text, story, zone)?;
    }
    if timeline.is_empty() && !story.facts.is_empty() {
        paragraph(text, "  ", "What its segments told:");
        for fact in &story.facts {
            writeln!(text, "    {fact:<24} {}", texts::of_fact(fact))?;
        }
    }
    Ok(())
}

fn end(text: &mut String, story: &Story, side: Side) -> std::fmt::Result {
    let EndStory { state, confirmed, dwell_ns, pkts, bytes: sent, rtx, sent_to, acked_to, fin, zero_window } =
        *story.end(side);
    let role = match side {
        Side::Orig => "originator",
        Side::Resp => "responder",
    };
    let assumed = if confirmed || state.is_closed() { "" } else { "?" };
    let since = if dwell_ns == 0 { String::new() } else { format!("for {}", short_duration(dwell_ns)) };
    let state = format!("{}{assumed}", state.ss_name());
    let mut words = vec![format!("{pkts} segments"), format!("{} sent", bytes(sent))];
    if rtx > 0 {
        words.push(format!("{rtx} sent again"));
    }
    match (sent_to, acked_to) {
        (Some(to), Some(acked)) if acked < to => {
            words.push(format!("up to {to}, acknowledged up to {acked}"));
        }
        (Some(to), Some(_)) => words.push(format!("up to {to}, all acknowledged")),
        (Some(to), None) => words.push(format!("up to {to}")),
        (None, _) => words.push("not seen to send".to_owned()),
    }
    if fin {
        words.push("FIN sent".to_owned());
    }
    if zero_window {
        words.push("window closed".to_owned());
    }
    let address = format!("{}{}", story.address(side), mark(story, side));
    writeln!(text, "  {role:<10}  {address:<24} {state:<12} {since:<11} {}", words.join(", "))
}

fn timeline_table(text: &mut String, story: &Story, zone: &TimeZone) -> std::fmt::Result {
    text.push('\n');
    if !story.timeline_whole {
        paragraph(text, "  ", "Not all of it is remembered; what is:");
    }
    writeln!(
        text,
        "  {:<15} {:<12} {:<5} {:>10} {:>10} {:>6}  WHAT HAPPENED",
        "TIME", "DIRECTION", "FLAGS", "SEQ", "ACK", "LEN"
    )?;
    for (at, moment) in story.timeline.iter().enumerate() {
        if story.left_out > 0 && at == story.left_out_at {
            writeln!(text, "  ... {} segments that told something are left out here", story.left_out)?;
        }
        row(text, moment, zone)?;
    }
    if story.plain_segments > 0 {
        let count = story.plain_segments;
        paragraph(text, "  ", &format!("and {count} further segments with nothing to tell."));
    }
    Ok(())
}

fn row(text: &mut String, moment: &Moment, zone: &TimeZone) -> std::fmt::Result {
    let Moment { ts, packet, dir, flags, seq, ack, len, steps, facts } = moment;
    let direction = match dir {
        Some(Direction::Original) => "orig -> resp",
        Some(Direction::Reply) => "resp -> orig",
        None => "-",
    };
    let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    let seq = number(dir.map(|_| *seq));
    let mut words: Vec<String> = steps.iter().map(step).collect();
    // What the steps say already, and what every connection has, is not said again.
    let plain = ["open", "established", "closed", "half_closed"];
    words.extend(
        facts
            .iter()
            .filter(|fact| !plain.contains(&fact.as_ref()))
            .map(|fact| format!("{fact}: {}", texts::of_fact(fact))),
    );
    let mut words = words.into_iter();
    write!(
        text,
        "  {:<15} {direction:<12} {flags:<5} {seq:>10} {:>10} {len:>6}  {}{}",
        ts.local_time(zone),
        number(*ack),
        packet.map(|packet| format!("#{packet} ")).unwrap_or_default(),
        words.next().unwrap_or_default(),
    )?;
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
    for more in words {
        writeln!(text, "  {:65}{more}", "")?;
    }
    Ok(())
}

fn step(step: &Step) -> String {
    let Step { side, from, to, confirmed, dwell_ns, why } = step;
    let assumed = if *confirmed || to.is_closed() { "" } else { "?" };
    let after = if *dwell_ns == 0 { String::new() } else { format!(" after {}", short_duration(*dwell_ns)) };
    format!("{} {} -> {}{assumed}{after} ({why})", side.name(), from.ss_name(), to.ss_name())
}

fn owner(text: &mut String, story: &Story) {
    let own = own_side(story);
    let words = match (&story.proc, &story.unowned) {
        (Some(proc), _) => {
            let Proc { pid, comm, exe, unit, container, pod, confidence } = proc;
            let exe = exe.as_ref().map(|exe| format!(", {exe}")).unwrap_or_default();
            let places = [("unit", unit), ("container", container), ("pod", pod)];
            let place: String = places
                .iter()
                .filter_map(|(what, name)| Some(format!(", {what} {}", name.as_ref()?)))
                .collect();
            format!("{comm}, pid {pid}{exe}{place}: {}.", confidence.meaning())
        }
        (None, Some(Unowned { why, unit, .. })) => {
            let unit = unit.as_ref().map(|unit| format!("Of {unit}. ")).unwrap_or_default();
            format!("{unit}No process: {}.", why.meaning())
        }
        (None, None) if own.is_some() => "Not known: the host was not asked.".to_owned(),
        (None, None) => "Neither end is this host's: its owner is to be found there.".to_owned(),
    };
    paragraph(text, "  ", &words);
}

fn means(text: &mut String, entry: &Entry) {
    paragraph(text, "  ", &entry.means);
    paragraph(text, "  ", &entry.rfc);
}

/// `remote`: the end concerned, where it is another host's.
fn remedies(text: &mut String, entry: &Entry, places: &Places, remote: Option<SocketAddr>) {
    heading(text, "WHAT IT COMES FROM, the likeliest first");
    for (number, cause) in (1..).zip(&entry.causes) {
        item(text, number, cause);
    }
    match remote {
        Some(end) => heading(text, &format!("WHAT TO DO, on {} and not on this host", end.ip())),
        None => heading(text, "WHAT TO DO"),
    }
    for (number, step) in (1..).zip(&entry.steps) {
        match &step.run {
            Some(command) => {
                item(text, number, &format!("{}:", step.what));
                // A command is copied, not read: it is never wrapped.
                let _ = writeln!(text, "       {}", places.fill(command));
            }
            None => item(text, number, &format!("{}.", step.what)),
        }
    }
    heading(text, "IN THE CODE");
    paragraph(text, "  ", &entry.code);
    heading(text, "HOW SURE");
    paragraph(text, "  ", &entry.sure);
}

fn mark(story: &Story, side: Side) -> &'static str {
    if story.local.is_some_and(|local| local.includes(side)) { "*" } else { "" }
}

fn heading(text: &mut String, words: &str) {
    text.push('\n');
    text.push_str(words);
    text.push('\n');
}

fn item(text: &mut String, number: usize, words: &str) {
    let start = text.len();
    paragraph(text, "     ", words);
    text.replace_range(start..start + 5, &format!("  {number}. "));
}

/// Running text, wrapped between words.
fn paragraph(text: &mut String, indent: &str, words: &str) {
    let mut column = 0;
    for word in words.split(' ') {
        let width = word.chars().count();
        if column == 0 {
            text.push_str(indent);
            column = indent.len();
        } else if column + 1 + width > WIDTH {
            text.push('\n');
            text.push_str(indent);
            column = indent.len();
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::WallClock,
        explain::tell,
        owner::{Confidence, WhyUnowned},
        pipeline::synthetic::Conversation,
        report::Local,
    };
    use tcpfsm_common::{flow::End, segment::TcpFlags};

    fn leaked() -> Story {
        let mut talk = Conversation::new();
        let mut events = talk.handshake();
        events.push(talk.segment(End::Low, TcpFlags::FIN | TcpFlags::ACK, 0));
        events.push(talk.segment(End::High, TcpFlags::ACK, 0));
        let now = talk.now + 2_832_000_000_000;
        let mut story = tell::flow(&talk.key, &talk.record, &events, now, WallClock::now());
        story.local = Some(Local::Resp);
        story.iface = "eth0".into();
        story.kernel_state = Some(story.resp_end.state);
        story.proc = Some(Proc {
            pid: 4_711,
            comm: "java".into(),
            exe: Some("/usr/bin/java".into()),
            unit: Some("app.service".into()),
            confidence: Confidence::Socket,
            ..Proc::default()
        });
        story
    }

    #[test]
    fn a_leak_reads_from_top_to_bottom() {
        let text = story(&leaked(), &TimeZone::UTC);
        for (line, words) in [
            ("the flow", "10.0.0.1:40001 -> 10.0.0.2:8080*   on eth0\n"),
            (
                "the ends",
                "responder   10.0.0.2:8080*           CLOSE-WAIT   for 47m12s  2 segments, 0B sent, up to 1, all acknowledged",
            ),
            ("the age", "It began 47m12s ago; it goes on; nothing has come from either end for 47m12s."),
            ("the socket", "The kernel's own socket says the same: CLOSE-WAIT."),
            ("the flags", "orig -> resp FA             0          0      0  orig ESTAB -> FIN-WAIT-1"),
            ("the dwell", "after 2ms (own_fin)"),
            (
                "the meaning",
                "close_wait_stuck: The peer has closed, and the program here never calls close().",
            ),
            ("the standard", "RFC 9293 §3.6"),
            ("the owner", "java, pid 4711, /usr/bin/java, unit app.service: it holds the socket."),
            ("the first cause", "  1. The program does not close the connection on every path"),
            ("a command, filled in", "ls /proc/4711/fd | wc -l"),
            ("the port", "( sport = :8080 or dport = :8080 )"),
            ("the code", "IN THE CODE\n  Treat read() == 0 as the end"),
            ("how sure", "HOW SURE\n  Very sure"),
        ] {
            assert!(text.contains(words), "{line} is missing:\n{text}");
        }
        let running = text.lines().filter(|line| line.starts_with("  ") && !line.starts_with("       "));
        for line in running.filter(|line| !line.contains("->") && !line.contains("segments")) {
            assert!(line.chars().count() <= WIDTH, "too long: {line}");
        }
    }

    /// The same leak, seen from the client: its program has closed, and is not to be blamed.
    #[test]
    fn a_leak_at_the_other_end_is_not_this_hosts() {
        let mut seen_from_the_client = leaked();
        seen_from_the_client.local = Some(Local::Orig);
        seen_from_the_client.kernel_state = Some(seen_from_the_client.orig_end.state);
        let text = story(&seen_from_the_client, &TimeZone::UTC);
        for words in [
            "close_wait_stuck, at the remote end 10.0.0.2:8080: This side has closed, and the program there",
            "WHOSE IT IS\n  The remote end's, 10.0.0.2:8080: ",
            "WHAT TO DO, on 10.0.0.2 and not on this host\n",
            "ls /proc/PID/fd | wc -l",
        ] {
            assert!(text.contains(words), "{words} is missing:\n{text}");
        }
        for words in ["4711", "java,", "the program here never"] {
            assert!(!text.contains(words), "{words} is blamed:\n{text}");
        }
        seen_from_the_client.anomalies.insert(0, AnomalyKind::RstInexact);
        let text = story(&seen_from_the_client, &TimeZone::UTC);
        assert!(text.contains("ALSO  close_wait_stuck, at the remote end 10.0.0.2:8080: "), "{text}");
    }

    #[test]
    fn time_wait_without_owner_is_normal() {
        let mut talk = Conversation::new();
        let events = talk.ordinary_life();
        let mut over = tell::flow(&talk.key, &talk.record, &events, talk.now, WallClock::now());
        over.local = Some(Local::Orig);
        over.unowned = Some(WhyUnowned::TimeWait.into());
        let text = story(&over, &TimeZone::UTC);
        assert!(text.contains("Nothing is wrong"), "{text}");
        assert!(text.contains("TIME_WAIT has no owner: normal."), "{text}");
        assert!(!text.contains("WHAT TO DO"), "{text}");
    }

    #[test]
    fn every_kind_reads_without_a_case_at_hand() {
        for anomaly in AnomalyKind::ALL {
            let text = kind(anomaly, &Places::default());
            for part in ["GOES BY", "MEANS", "COMES FROM", "TO DO", "IN THE CODE", "HOW SURE", "RFC "] {
                assert!(text.contains(part), "{}: no {part}", anomaly.name());
            }
            assert!(!text.contains("{port}") && !text.contains("{pid}"), "{text}");
        }
    }
}
