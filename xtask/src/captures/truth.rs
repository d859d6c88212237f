//! What is known of the captures' connections, and what `tcpfsm replay` says of them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One connection as Zeek cuts it.
#[derive(Debug)]
pub(super) struct Truth {
    /// The capture, relative to the archive's top.
    pub(super) file: String,
    /// When it began, microseconds since 1970.
    pub(super) began: i64,
    /// Zeek's originator and responder.
    pub(super) ends: [SocketAddr; 2],
    pub(super) conn_state: String,
    pub(super) history: String,
    /// The reference agrees with Zeek on `conn_state`.
    pub(super) is_scored: bool,
    /// Where everybody agrees and nothing is odd: who is the client, and the states of client and server.
    pub(super) clean: Option<(SocketAddr, [String; 2])>,
}

impl Truth {
    /// Reads one JSON object per line.
    pub(super) fn parse_all(lines: &str) -> Result<Vec<Self>> {
        let parse = |(number, line): (usize, &str)| {
            let value = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            Self::parse(&value).with_context(|| format!("line {}: a field is missing", number + 1))
        };
        lines.lines().enumerate().map(parse).collect()
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let end = |host: &str, port: &str| address(value.get(host)?, value.get(port)?);
        let conn_state = text("zeek_conn_state")?;
        let clean = || {
            if !value.get("clean")?.as_bool()? {
                return None;
            }
            let reference = value.get("ref")?;
            let state = |name: &str| Some(canonical(reference.get(name)?.as_str()?));
            let client = reference.get("client")?;
            Some((address(client.get(0)?, client.get(1)?)?, [state("client_state")?, state("server_state")?]))
        };
        Some(Self {
            file: text("pcap")?,
            began: (value.get("ts")?.as_f64()? * 1e6).round() as i64,
            ends: [end("orig_h", "orig_p")?, end("resp_h", "resp_p")?],
            is_scored: text("ref_conn_state").as_ref() == Some(&conn_state),
            conn_state,
            history: text("zeek_history").unwrap_or_default(),
            clean: clean(),
        })
    }
}

/// A line of `tcpfsm replay -o jsonl`.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) began: i64,
    pub(super) ends: [SocketAddr; 2],
    pub(super) states: [String; 2],
    pub(super) conn_state: String,
    pub(super) history: String,
}

impl Found {
    pub(super) fn parse_all(lines: &str) -> Result<Vec<Self>> {
        let parse = |line: &str| {
            let value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            Self::parse(&value).with_context(|| format!("a field is missing: {line}"))
        };
        lines.lines().map(parse).collect()
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let end = |name: &str| text(name)?.parse().ok().map(unmapped);
        Some(Self {
            began: micros(text("first_ts")?)?,
            ends: [end("orig")?, end("resp")?],
            states: [canonical(text("orig_state")?), canonical(text("resp_state")?)],
            conn_state: text("conn_state")?.to_owned(),
            history: text("history")?.to_owned(),
        })
    }
}

fn address(host: &Value, port: &Value) -> Option<SocketAddr> {
    let ip: IpAddr = host.as_str()?.parse().ok()?;
    Some(unmapped(SocketAddr::new(ip, u16::try_from(port.as_u64()?).ok()?)))
}

/// Zeek writes `::ffff:1.2.3.4` as `1.2.3.4`.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One name per state: no connection and LISTEN look alike from outside.
fn canonical(state: &str) -> String {
    match state.to_ascii_lowercase().as_str() {
        "close" | "listen" | "none" => "closed".to_owned(),
        state => state.to_owned(),
    }
}

/// `2026-11-22T10:00:00.072385Z` as microseconds since 1970.
fn micros(text: &str) -> Option<i64> {
    let number = |at: std::ops::Range<usize>| text.get(at)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    // Years that begin in March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469;
    let seconds = days * 86_400 + number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
    Some(seconds * 1_000_000 + number(20..26)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(micros("1970-01-01T00:00:00.000001Z"), Some(1));
        assert_eq!(micros("2000-02-29T12:00:00.000000Z"), Some(951_825_600_000_000));
        assert_eq!(micros("1969-12-31T23:59:59.999999Z"), Some(-1));
        assert_eq!(micros("soon"), None);
    }

    #[test]
    fn a_line_of_each_kind() {
        let truth =
            r#"{"pcap":"a/b.pcap","ts":1.5,"orig_h":"10.0.0.1","orig_p":1,"resp_h":"10.0.0.2","resp_p":2,
            "zeek_conn_state":"SF","zeek_history":null,"ref_conn_state":"SF","clean":true,
            "ref":{"client":["10.0.0.1",1],"client_state":"CLOSE","server_state":"TIME_WAIT"}}"#
                .replace('\n', " ");
        let truth = Truth::parse_all(&truth).unwrap().remove(0);
        assert_eq!((truth.began, truth.is_scored, truth.history.as_str()), (1_500_000, true, ""));
        let (client, states) = truth.clean.unwrap();
        assert_eq!((client, states), (truth.ends[0], ["closed".to_owned(), "time_wait".to_owned()]));
        let found = r#"{"orig":"[::ffff:10.0.0.1]:1","resp":"[::2]:2","first_ts":"1970-01-01T00:00:01.500000Z","orig_state":"listen","resp_state":"time_wait","conn_state":"SF","history":"S","events":[]}"#;
        let found = Found::parse_all(found).unwrap().remove(0);
        assert_eq!(found.ends[0], truth.ends[0]);
        assert_eq!((found.began, found.states[0].as_str()), (1_500_000, "closed"));
    }
}
