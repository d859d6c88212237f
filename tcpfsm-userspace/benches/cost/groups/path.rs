//! How many instructions the programs execute, counted: what the clock says depends on the machine and the hour, this does not.

use std::{cmp::Reverse, collections::HashMap};

use anyhow::{Context as _, Result, bail};
use tcpfsm_common::{
    abi::{Counters, EventKind, Evidence, FlowRecord, KernelConfig, Verdict},
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
    host::{Hook, Host, helper},
    rig::{Clock, Table},
};

/// What the short path calls: two look-ups and the tick.
const SHORT: [i64; 3] = [helper::MAP_LOOKUP_ELEM, helper::MAP_LOOKUP_ELEM, helper::JIFFIES64];

/// What a short connection tells: five moves, and its end with the totals.
const TOLD: [EventKind; 6] = {
    let moved = EventKind::Verdict;
    [moved, moved, moved, moved, moved, EventKind::Closed]
};

/// One packet of a settled flow through XDP, and a whole connection through TC. What helpers do is not in it.
pub fn path(bench: &Bench) -> Result<Vec<Table>> {
    let clock = Clock::start();
    let (floor, object) = (Image::of(bench.floor.bytes())?, Image::of(&bench.object)?);
    let shape = |layout, options| Shape { layout, options };
    let stamped = shape(Layout::Ipv4, Options::Timestamps);
    let stamped6 = shape(Layout::Ipv6, Options::Timestamps);
    let rows = vec![
        ("L", look_up(&floor, "floor_lookup", stamped)?),
        ("L, IPv6", look_up(&floor, "floor_lookup6", stamped6)?),
        ("data", settled_packet(&object, stamped, DATA, true)?),
        ("data, peer asked", settled_packet(&object, stamped, DATA, false)?),
        ("pure ACK", settled_packet(&object, stamped, 0, true)?),
        ("data, no timestamps", settled_packet(&object, shape(Layout::Ipv4, Options::None), DATA, true)?),
        ("data, IPv6", settled_packet(&object, stamped6, DATA, true)?),
    ];
    let mut tables = vec![counted("path", clock, rows)];
    tables.extend(connection(&object)?);
    Ok(tables)
}

fn counted(group: &str, clock: Clock, rows: Vec<(&str, u64)>) -> Table {
    let rows = rows.into_iter().map(|(name, executed)| (name, vec![executed as f64])).collect();
    Table::of(group, "insns", clock, rows)
}

/// A short connection as Linux makes it, seen on its server's interface: by packet, and all of it by function. Fails unless it
/// is told as it should be.
fn connection(object: &Image) -> Result<[Table; 2]> {
    let clock = Clock::start();
    let mut host = Host::new(object);
    let config = KernelConfig {
        event_quota: Config::default().event_quota,
        lanes: 1,
        early: 1,
        ..KernelConfig::default()
    };
    host.set("AYA_LOG_LEVEL", &[0])?;
    host.set("CONFIG", config.as_bytes())?;
    // As after a sweep that found no embryo.
    host.put("EMBRYO_FILTER", &0_u32.to_ne_bytes(), &1_u64.to_ne_bytes());
    let shape = |options| Shape { layout: Layout::Ipv4, options };
    let (mut rows, mut all) = (vec![], Tally::default());
    for (id, (name, step)) in (0_u16..).zip(shape(Options::Timestamps).short_connection()) {
        let options = if step.flags & SYN == 0 { Options::Timestamps } else { Options::Syn };
        let hook = if step.reverse == 0 { Hook::Ingress } else { Hook::Egress };
        let tally = host.packet(hook, &shape(options).played(&step, id)).context(name)?;
        rows.push((name, tally.instructions));
        all.add(&tally);
    }
    let told: Vec<u8> = host.lane().iter().map(|place| place.event.event.kind).collect();
    if told != TOLD.map(|kind| kind as u8) {
        bail!("a connection is told in events {told:?}, not in {TOLD:?}");
    }
    rows.push(("all", all.instructions));
    let mut by_function: HashMap<&str, u64> = HashMap::new();
    for (&at, executed) in &all.at {
        *by_function.entry(object.function(at)).or_default() += executed;
    }
    let mut by_function: Vec<_> = by_function.into_iter().collect();
    by_function.sort_by_key(|&(name, executed)| (Reverse(executed), name));
    Ok([counted("path-connection", clock, rows), counted("path-functions", clock, by_function)])
}

/// The floor's look-up of a flow that is there.
fn look_up(image: &Image, name: &str, shape: Shape) -> Result<u64> {
    let mut host = Host::new(image);
    Ok(host.look_up(name, &shape.frame(DATA))?.instructions)
}

/// The tracker on a segment of a settled flow, whose peer is known or not. Fails unless it does with the record what the machine does.
fn settled_packet(image: &Image, shape: Shape, payload: u32, known: bool) -> Result<u64> {
    let frame = shape.frame(payload);
    let client = client_end(shape.layout, 0);
    let mut record = settled(shape, client);
    if known {
        let edge = record.sent_by(client.other()).edge;
        record.sent[client as usize].know(edge);
    }
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
    counters.clock = host.clock();
    let [_, now] = counters.clock;
    host.put("COUNTERS", &[0; 4], counters.as_bytes());
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
    let after = FlowRecord::read_from_bytes(&host.read(at, size_of::<FlowRecord>())).unwrap();
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
