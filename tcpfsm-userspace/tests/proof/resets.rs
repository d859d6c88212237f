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

/// Learns a client's next sequence number from what it says, and sends the server six resets in its name.
const FORGER: &str = "
import sys
from scapy.all import Ether, IP, TCP, AsyncSniffer, sendp
iface, source, target, offset, count = sys.argv[1:4] + [int(n) for n in sys.argv[4:6]]
sniffer = AsyncSniffer(iface=iface, lfilter=lambda p: TCP in p and p[TCP].dport == 8080 and len(p[TCP].payload) > 0,
                       count=1, timeout=8, started_callback=lambda: print('listening', flush=True))
sniffer.start()
sniffer.join()
said = sniffer.results[0]
seq = (said[TCP].seq + len(said[TCP].payload) + offset) % 2**32
forged = Ether(src=source, dst=target) / IP(src=said[IP].src, dst=said[IP].dst) / TCP(
    sport=said[TCP].sport, dport=8080, flags='R', seq=seq)
sendp([forged] * count, iface=iface, verbose=False)
";

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// `offset` from the exact number; `shield`: the server's host drops resets, as hosts do that expect forged ones.
fn forge(
    name: &'static str,
    kind: AnomalyKind,
    offset: &str,
    count: u64,
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
    let mut client = connect(&stage, service, 1).remove(0);
    known_by_now();
    let (source, target, number) = (mac(MAC_B), mac(MAC_A), count.to_string());
    let arguments = ["-c", FORGER, IFACE_B, &source, &target, offset, &number];
    let mut forger = Program::start_told(stage.lab.b(), PYTHON, &arguments);
    client.write_all(b"hello").unwrap();
    // The forger sends as soon as it has heard the client, and then takes its time to end.
    let mut since = Instant::now();
    forger.wait();
    if shield {
        since = Instant::now();
        // It never sent that reset, and goes on.
        for _ in 0..4 {
            client.write_all(b"still here").unwrap();
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
        count: 1..=count,
        owner: Owner::Holds(server.pid()),
    });
    stage.settle();
    drop(client);
    stage.finish(besides);
}

#[test]
fn one_that_is_alive_after_its_own_reset() {
    forge(
        "scapy, exact reset of one that goes on",
        AnomalyKind::RstInjection,
        "0",
        1,
        true,
        &[AnomalyKind::ViewMismatch],
    );
}

#[test]
fn inexact_resets() {
    forge("scapy, 6 inexact resets", AnomalyKind::RstInexact, "100", 6, false, &[]);
}

#[test]
fn resets_out_of_the_window() {
    forge("scapy, 12 resets out of the window", AnomalyKind::RstOutOfWindow, "1073741824", 12, false, &[]);
}
