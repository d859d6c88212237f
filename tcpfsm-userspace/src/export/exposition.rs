//! Prometheus' text format (version 0.0.4): families, samples, histograms.

use std::fmt::{Display, Write as _};

use tcpfsm_common::abi::{DWELL_BUCKETS, bucket_limit_ns};

/// The page as it grows.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn into_text(self) -> String {
        self.0
    }

    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", Escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        buckets: &[u64; DWELL_BUCKETS],
        sum_ns: u128,
        is_shown: impl Fn(usize) -> bool,
    ) {
        let bucket_name = format!("{name}_bucket");
        let mut sum = 0;
        for (bucket, count) in buckets.iter().enumerate() {
            sum += count;
            if !is_shown(bucket) {
                continue;
            }
            let limit = bucket_limit_ns(bucket).map_or_else(|| "+Inf".to_owned(), |ns| seconds(ns.into()));
            let labels: Vec<_> = labels.iter().copied().chain([("le", limit.as_str())]).collect();
            self.sample(&bucket_name, &labels, sum);
        }
        self.sample(&format!("{name}_sum"), labels, seconds(sum_ns));
        self.sample(&format!("{name}_count"), labels, sum);
    }
}

/// Nanoseconds as seconds, exactly.
fn seconds(ns: u128) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A label's value: an interface may be named with anything.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str(r"\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str(r"\n"),
            c => f.write_char(c),
        })
    }
}
