//! How many instructions the short path executes, counted: what the clock says depends on the machine and the hour, this does not.

use anyhow::{Result, bail};
use tcpfsm_common::{
    abi::{Counters, Evidence, FlowRecord, Verdict},
    flow::End,
    fsm::{State, observe_settled},
    packet::{Packet, Parsed, parse_ether, parse_network},
    seq::SeqNum,
};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use crate::{
    Bench,
    emulate::{Machine, program},
    frames::{CLIENT_ISS, DATA, Layout, Options, SERVER_ISS, Shape, WINDOW},
    groups::established::client_end,
    rig::{Clock, Table},
};

/// Helpers by number.
const MAP_LOOKUP_ELEM: i32 = 1;
const JIFFIES64: i32 = 118;

/// Where things are in the machine's memory.
const CONTEXT: u64 = 0x2_0000;
const PACKET: u64 = 0x3_0000;
const RECORD: u64 = 0x4_0000;
const COUNTERS: u64 = 0x5_0000;

/// The time, as tick and as clock.
const TICK: u64 = 5;
const NOW: u64 = 0x1_2345_0000;

/// One packet of the client's, through XDP. What helpers do is not in it.
pub fn path(bench: &Bench) -> Result<Table> {
    let clock = Clock::start();
    let shape = |layout, options| Shape { layout, options };
    let stamped = shape(Layout::Ipv4, Options::Timestamps);
    let stamped6 = shape(Layout::Ipv6, Options::Timestamps);
    let rows = [
        ("L", floor(bench, "floor_lookup", stamped)?),
        ("L, IPv6", floor(bench, "floor_lookup6", stamped6)?),
        ("data", tracker(bench, stamped, DATA)?),
        ("pure ACK", tracker(bench, stamped, 0)?),
        ("data, no timestamps", tracker(bench, shape(Layout::Ipv4, Options::None), DATA)?),
        ("data, IPv6", tracker(bench, stamped6, DATA)?),
    ];
    let rows = rows.into_iter().map(|(name, executed)| (name, vec![executed as f64])).collect();
    Ok(Table::of("path", "insns", clock, rows))
}

/// A machine with a frame as an XDP program gets it.
fn machine(frame: &[u8]) -> Machine {
    let mut machine = Machine::default();
    let end = PACKET + frame.len() as u64;
    machine.write(PACKET, frame);
    machine.write(CONTEXT, [PACKET as u32, end as u32].as_bytes());
    machine
}

/// The floor's look-up of a flow that is there.
fn floor(bench: &Bench, name: &str, shape: Shape) -> Result<u64> {
    machine(&shape.frame(DATA)).run(&program(bench.floor.bytes(), name)?, CONTEXT, |helper| match helper {
        MAP_LOOKUP_ELEM => Ok(RECORD),
        other => bail!("{name} calls helper {other}"),
    })
}

/// The tracker on a segment of a settled flow. Fails unless it does with the record what the machine does.
fn tracker(bench: &Bench, shape: Shape, payload: u32) -> Result<u64> {
    let frame = shape.frame(payload);
    let client = client_end(shape.layout, 0);
    let mut record = settled(shape, client);
    let mut counters = Counters::new_zeroed();
    counters.clock = [TICK, NOW];
    let mut machine = machine(&frame);
    machine.write(RECORD, record.as_bytes());
    machine.write(COUNTERS, counters.as_bytes());
    let mut found = [RECORD, COUNTERS].into_iter();
    let executed = machine.run(&program(&bench.object, "tcpfsm_xdp")?, CONTEXT, |helper| {
        match (helper, found.len()) {
            (MAP_LOOKUP_ELEM, 1..) => Ok(found.next().unwrap()),
            (JIFFIES64, 0) => Ok(TICK),
            (other, _) => bail!("{shape:?}: helper {other} is not one of the short path's"),
        }
    })?;
    let (network, offset) = parse_ether(&frame.as_slice()).expect("a frame");
    let segment = match parse_network(&frame.as_slice(), network, offset, frame.len()) {
        Ok(Parsed::V4(Packet::Tcp(_, segment)) | Parsed::V6(Packet::Tcp(_, segment))) => segment,
        other => bail!("{shape:?}: {other:?}"),
    };
    let (verdict, [low, high]) = (Verdict(record.shared.verdict), &mut record.sent);
    let (own, peer) = if client == End::Low { (low, &*high) } else { (high, &*low) };
    if !observe_settled(verdict, client, own, peer, &segment) {
        bail!("{shape:?}: the flow is not settled");
    }
    own.count(segment.len, segment.ip_id, NOW);
    let after = FlowRecord::read_from_bytes(&machine.read(RECORD, size_of::<FlowRecord>())).unwrap();
    if after != record {
        bail!("{shape:?}: the program left {after:?}, the machine {record:?}");
    }
    Ok(executed)
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
