//! How many instructions the short path executes, counted: what the clock says depends on the machine and the hour, this does not.

use anyhow::{Context as _, Result, bail};
use tcpfsm_common::{
    abi::{Counters, Evidence, FlowRecord, KernelConfig, Verdict},
    flow::End,
    fsm::{State, observe_settled},
    packet::{Packet, Parsed, parse_ether, parse_network},
    seq::SeqNum,
};
use tcpfsm_userspace::config::Config;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use crate::{
    Bench,
    emulate::{Image, Tally},
    frames::{CLIENT_ISS, DATA, Layout, Options, SERVER_ISS, SYN, Shape, WINDOW},
    groups::established::client_end,
    host::{Hook, Host},
    rig::{Clock, Table},
};

/// What the short path calls: two look-ups and the tick.
const SHORT: [i64; 3] = [1, 1, 118];

/// One packet of the client's, through XDP. What helpers do is not in it.
pub fn path(bench: &Bench) -> Result<Vec<Table>> {
    let clock = Clock::start();
    let (floor, object) = (Image::of(bench.floor.bytes())?, Image::of(&bench.object)?);
    let shape = |layout, options| Shape { layout, options };
    let stamped = shape(Layout::Ipv4, Options::Timestamps);
    let stamped6 = shape(Layout::Ipv6, Options::Timestamps);
    let rows = [
        ("L", look_up(&floor, "floor_lookup", stamped)?),
        ("L, IPv6", look_up(&floor, "floor_lookup6", stamped6)?),
        ("data", tracker(&object, stamped, DATA)?),
        ("pure ACK", tracker(&object, stamped, 0)?),
        ("data, no timestamps", tracker(&object, shape(Layout::Ipv4, Options::None), DATA)?),
        ("data, IPv6", tracker(&object, stamped6, DATA)?),
    ];
    let rows = rows.into_iter().map(|(name, executed)| (name, vec![executed as f64])).collect();
    Ok(vec![Table::of("path", "insns", clock, rows), connection(&object)?])
}

/// A short connection as Linux makes it, seen on the server's interface.
fn connection(object: &Image) -> Result<Table> {
    let clock = Clock::start();
    let mut host = Host::new(object);
    host.set("AYA_LOG_LEVEL", &[0])?;
    host.set(
        "CONFIG",
        KernelConfig { event_quota: Config::default().event_quota, ..KernelConfig::default() }.as_bytes(),
    )?;
    let (syn, stamped) = (
        Shape { layout: Layout::Ipv4, options: Options::Syn },
        Shape { layout: Layout::Ipv4, options: Options::Timestamps },
    );
    let mut rows = vec![];
    let mut all = Tally::default();
    for (at, (name, step)) in stamped.short_connection().into_iter().enumerate() {
        let shape = if step.flags & SYN == 0 { stamped } else { syn };
        let hook = if step.reverse == 0 { Hook::Ingress } else { Hook::Egress };
        let tally = host.packet(hook, &shape.played(&step, at as u16)).with_context(|| format!("{name}"))?;
        if std::env::var_os("PATH_DETAIL").is_some() {
            detail(object, name, &tally);
        }
        rows.push((name, vec![tally.instructions as f64]));
        all.add(&tally);
    }
    if std::env::var_os("PATH_DETAIL").is_some() {
        detail(object, "all", &all);
        eprintln!("distinct {} events {:?}", all.at.len(), host.events);
    }
    rows.push(("all", vec![all.instructions as f64]));
    Ok(Table::of("path-connection", "insns", clock, rows))
}

fn detail(object: &Image, name: &str, tally: &Tally) {
    let mut by: std::collections::HashMap<&str, (u64, u64)> = Default::default();
    for (at, count) in &tally.at {
        let entry = by.entry(object.function(*at)).or_default();
        entry.0 += count;
        entry.1 += 1;
    }
    let mut by: Vec<_> = by.into_iter().collect();
    by.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.0));
    if let Some(dir) = std::env::var_os("PATH_DUMP") {
        use std::fmt::Write as _;
        let mut text = String::new();
        for (at, count) in &tally.at {
            let function = object.function(*at);
            let _ = writeln!(text, "{function} {} {count}", *at as u64 - object.place(function).unwrap());
        }
        std::fs::write(std::path::Path::new(&dir).join(name.replace(' ', "_")), text).unwrap();
    }
    eprintln!("{name}: {} instructions, {} calls, helpers {:?}", tally.instructions, tally.calls, tally.helpers);
    for (function, (executed, distinct)) in by {
        eprintln!("    {executed:6} {distinct:6} {function}");
    }
}

/// The floor's look-up of a flow that is there.
fn look_up(image: &Image, name: &str, shape: Shape) -> Result<u64> {
    let mut host = Host::new(image);
    Ok(host.found(name, &shape.frame(DATA))?.instructions)
}

/// The tracker on a segment of a settled flow. Fails unless it does with the record what the machine does.
fn tracker(image: &Image, shape: Shape, payload: u32) -> Result<u64> {
    let frame = shape.frame(payload);
    let client = client_end(shape.layout, 0);
    let mut record = settled(shape, client);
    let mut host = Host::new(image);
    let (network, offset) = parse_ether(&frame.as_slice()).expect("a frame");
    let (map, key, segment) = match parse_network(&frame.as_slice(), network, offset, frame.len()) {
        Ok(Parsed::V4(Packet::Tcp(ends, segment))) => ("FLOWS4", ends.key(0).0.as_bytes().to_vec(), segment),
        Ok(Parsed::V6(Packet::Tcp(ends, segment))) => ("FLOWS6", ends.key(0).0.as_bytes().to_vec(), segment),
        other => bail!("{shape:?}: {other:?}"),
    };
    let at = host.put(map, &key, record.as_bytes());
    // A tick whose time is known.
    let mut counters = Counters::new_zeroed();
    counters.clock = [host.tick(), host.now];
    host.put("COUNTERS", &[0; 4], counters.as_bytes());
    let now = host.now;
    let tally = host.packet(Hook::Xdp, &frame)?;
    if tally.helpers != SHORT {
        bail!("{shape:?}: helpers {:?} are not the short path's", tally.helpers);
    }
    let (verdict, [low, high]) = (Verdict(record.shared.verdict), &mut record.sent);
    let (own, peer) = if client == End::Low { (low, &*high) } else { (high, &*low) };
    if observe_settled(verdict, client, own, peer, &segment) != Some(verdict) {
        bail!("{shape:?}: the flow is not settled");
    }
    own.count(segment.len, segment.ip_id, now);
    let after = FlowRecord::read_from_bytes(&host.machine().read(at, size_of::<FlowRecord>())).unwrap();
    if after != record {
        bail!("{shape:?}: the program left {after:?}, the machine {record:?}");
    }
    Ok(tally.instructions)
}

/// A flow whose client has nothing outstanding.
fn settled(shape: Shape, client: End) -> FlowRecord {
    let verdict = Verdict::default().with_state(End::Low, State::Established, true).with_state(
        End::High,
        State::Established,
        true,
    );
    let stamped = if shape.options == Options::None { 0 } else { Evidence::TIMESTAMPS };
    let sent = |nxt: u32, ack: u32| Evidence {
        nxt: SeqNum(nxt),
        contig: SeqNum(nxt),
        ooo_start: SeqNum(nxt),
        ooo_end: SeqNum(nxt),
        ack: SeqNum(ack),
        last_ack: SeqNum(ack),
        edge: SeqNum(ack).plus(WINDOW),
        flags: Evidence::SEEN | Evidence::SYN | Evidence::SCALE | Evidence::EDGE | stamped,
        scale: 14,
        ..Evidence::default()
    };
    let (client_nxt, server_nxt) = (CLIENT_ISS + 1, SERVER_ISS + 1 + DATA);
    let mut record = FlowRecord::default();
    record.shared.verdict = verdict.0;
    record.sent[client as usize] = sent(client_nxt, server_nxt);
    record.sent[client.other() as usize] = sent(server_nxt, client_nxt);
    record
}
