//! nmap's scans, one technique after the other.

use std::time::{Duration, Instant};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::Family;

use crate::{
    needs,
    programs::run,
    stage::{Due, Owner, Stage},
};

const NMAP: &str = "/usr/bin/nmap";

/// nmap's option, and what the technique is called here.
const TECHNIQUES: [(&str, &str, &str); 6] = [
    ("nmap, SYN scan", "-sS", "syn"),
    ("nmap, connect scan", "-sT", "syn"),
    ("nmap, FIN scan", "-sF", "fin"),
    ("nmap, NULL scan", "-sN", "null"),
    ("nmap, XMAS scan", "-sX", "xmas"),
    ("nmap, ACK scan", "-sA", "ack"),
];

fn scan((name, option, technique): (&'static str, &str, &'static str)) {
    needs!(NMAP);
    let mut stage = Stage::new(name, "");
    let target = Family::V4.a().to_string();
    let since = Instant::now();
    let arguments = ["-Pn", "-n", "--disable-arp-ping", "--max-retries", "0", option, "-p", "1-100", &target];
    run(stage.lab.b(), NMAP, &arguments);
    let took = since.elapsed();
    stage.expect(Due {
        kind: AnomalyKind::PortScan,
        since,
        // When the 25th port was tried, nmap does not tell.
        threshold: Duration::ZERO,
        within: took,
        service: Some((Family::V4.a(), 0).into()),
        source: Some(Family::V4.b()),
        technique: Some(technique),
        count: 25..=100,
        owner: Owner::Elsewhere,
    });
    stage.settle();
    // Flags that no stack sends are that, too.
    let odd = ["null", "fin", "xmas"].contains(&technique);
    stage.finish(if odd { &[AnomalyKind::IllegalSegments] } else { &[] });
}

#[test]
fn a_syn_scan() {
    scan(TECHNIQUES[0]);
}

#[test]
fn a_connect_scan() {
    scan(TECHNIQUES[1]);
}

#[test]
fn a_fin_scan() {
    scan(TECHNIQUES[2]);
}

#[test]
fn a_null_scan() {
    scan(TECHNIQUES[3]);
}

#[test]
fn an_xmas_scan() {
    scan(TECHNIQUES[4]);
}

#[test]
fn an_ack_scan() {
    scan(TECHNIQUES[5]);
}
