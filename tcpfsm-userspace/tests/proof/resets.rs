//! Resets that scapy forges into a conversation it listens to.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::{IFACE_B, MAC_A, MAC_B};

use crate::{
    leak::{connect, leaky_server},
    needs,
    programs::{NFT, PYTHON, Program, known_by_now, run},
    stage::{Due, Owner, Stage},
};

const SCAPY: &str = "/usr/lib/python3/dist-packages/scapy/all.py";

/// Learns the clients' next sequence numbers from what they say, and sends the server resets in their names.
const FORGER: &str = "
import sys
from scapy.all import Ether, IP, TCP, AsyncSniffer, sendp
iface, source, target, offset, count, clients = sys.argv[1:4] + [int(n) for n in sys.argv[4:7]]
sniffer = AsyncSniffer(iface=iface, lfilter=lambda p: TCP in p and p[TCP].dport == 8080 and len(p[TCP].payload) > 0,
                       count=clients, timeout=8, started_callback=lambda: print('listening', flush=True))
sniffer.start()
sniffer.join()
def forged(said):
    seq = (said[TCP].seq + len(said[TCP].payload) + offset) % 2**32
    return Ether(src=source, dst=target) / IP(src=said[IP].src, dst=said[IP].dst) / TCP(
        sport=said[TCP].sport, dport=8080, flags='R', seq=seq)
sendp([forged(said) for said in sniffer.results] * count, iface=iface, verbose=False)
";

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// `offset` from the exact number; `shield`: the server's host drops resets, as hosts do that expect forged ones. As many of
/// each of so many clients.
fn forge(
    name: &'static str,
    kind: AnomalyKind,
    offset: &str,
    count: u64,
    clients: usize,
    shield: bool,
    besides: &[AnomalyKind],
) {
    needs!(PYTHON, SCAPY, NFT);
    let mut stage = Stage::new(name, "");
    let (service, server) = leaky_server(&stage);
    if shield {
        let rules = "add table inet shield; add chain inet shield in { type filter hook input priority 0; }; \
                     add rule inet shield in tcp flags & rst == rst drop";
        run(stage.lab.a(), NFT, &[rules]);
    }
    let mut clients = connect(&stage, service, clients);
    known_by_now();
    let (source, target, number) = (mac(MAC_B), mac(MAC_A), count.to_string());
    let who = clients.len().to_string();
    let arguments = ["-c", FORGER, IFACE_B, &source, &target, offset, &number, &who];
    let mut forger = Program::start_told(stage.lab.b(), PYTHON, &arguments);
    clients.iter_mut().for_each(|client| client.write_all(b"hello").unwrap());
    // The forger sends as soon as it has heard the client, and then takes its time to end.
    let mut since = Instant::now();
    forger.wait();
    if shield {
        since = Instant::now();
        // They never sent that reset, and go on.
        for _ in 0..4 {
            clients.iter_mut().for_each(|client| client.write_all(b"still here").unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    stage.expect(Due {
        kind,
        since,
        threshold: Duration::ZERO,
        within: Duration::from_secs(1),
        service: Some(service),
        source: None,
        technique: None,
        count: 1..=count * clients.len() as u64,
        owner: Owner::Holds(server.pid()),
    });
    // Longer than a reset must stand to be believed.
    std::thread::sleep(Duration::from_secs(2));
    stage.settle();
    drop(clients);
    stage.finish(besides);
}

#[test]
fn one_that_is_alive_after_its_own_reset() {
    forge(
        "scapy, exact reset of one that goes on",
        AnomalyKind::RstInjection,
        "0",
        1,
        1,
        true,
        &[AnomalyKind::ViewMismatch],
    );
}

/// As many as would make a peer that is gone.
#[test]
fn several_that_are_alive_after_their_own_resets() {
    forge(
        "scapy, exact resets of 5 that go on",
        AnomalyKind::RstInjection,
        "0",
        1,
        5,
        true,
        &[AnomalyKind::ViewMismatch],
    );
}

#[test]
fn inexact_resets() {
    forge("scapy, 6 inexact resets", AnomalyKind::RstInexact, "100", 6, 1, false, &[]);
}

#[test]
fn resets_out_of_the_window() {
    forge("scapy, 12 resets out of the window", AnomalyKind::RstOutOfWindow, "1073741824", 12, 1, false, &[]);
}
