//! Segments of settled flows: one flow, or many in random order; XDP, TC, VLAN, IPv6.

use anyhow::{Result, bail};
use tcpfsm_common::{
    flow::End,
    fsm::observe_settled,
    segment::{Segment, TcpFlags, TcpOptions},
    seq::SeqNum,
};

use crate::{
    Bench,
    floor::{Floor, Flows, Jig, Loaded},
    frames::{CLIENT_ISS, DATA, Layout, Options, SERVER_ISS, Shape},
    plan::Step,
    rig::{EMPTY, Effort, Probe, Table, measure},
    subject::{Expect, Sizes, Subject, key4, key6, room},
};

const STAMPED: Options = Options::Timestamps;

/// A case: the tracker on settled flows through a jig.
struct Case {
    name: &'static str,
    program: &'static str,
    shape: Shape,
    script: fn(Shape) -> Vec<Step>,
    base: &'static str,
    to: &'static str,
}

/// A case that is set up.
struct Ready {
    case: Case,
    subject: Subject,
    jig: Jig,
    expect: Expect,
    bits: u32,
}

impl Ready {
    fn new(bench: &Bench, case: Case, bits: u32) -> Result<Self> {
        let entries = room(1 << bits).max(1024);
        let (flows4, flows6) =
            if case.shape.layout == Layout::Ipv6 { (1024, entries) } else { (entries, 1024) };
        let sizes = Sizes { flows4, flows6, ..Sizes::default() };
        let mut subject = Subject::load(&bench.object, &sizes)?;
        // The tag is not part of the key.
        let layout = if case.shape.layout == Layout::Vlan { Layout::Ipv4 } else { case.shape.layout };
        subject.establish(&bench.floor, layout, 1 << bits)?;
        let target = subject.program(case.program)?;
        let mut jig = bench.floor.jig(&target, case.shape.layout)?;
        jig.play(flows(bits), &(case.script)(case.shape))?;
        let expect = Expect::begin(&subject, Some(&jig))?;
        Ok(Self { case, subject, jig, expect, bits })
    }

    fn probe(&self) -> Probe<'static> {
        let frame = self.case.shape.frame(DATA);
        Probe::new(self.case.name, self.jig.program(), frame).base(self.case.base).to(self.case.to)
    }

    /// Every packet took the short path: nothing was told, nothing moved, the numbers are where they must be, and
    /// the next packet would take it too.
    fn verify(&self, packets: u64) -> Result<()> {
        let Self { case, subject, jig, expect, bits } = self;
        expect.nothing_but(subject, packets, case.name)?;
        let script = (case.script)(case.shape);
        let units = packets / script.len() as u64;
        if jig.units()? - expect.began() != units {
            bail!("{}: {units} units run, {} played", case.name, jig.units()? - expect.began());
        }
        let layout = case.shape.layout;
        let turns = units >> bits;
        for flow in [0, (1_u32 << bits) - 1] {
            let record = subject.record(layout, flow)?;
            let client = client_end(layout, flow);
            let (own, peer) = (record.sent_by(client), record.sent_by(client.other()));
            let sent = u64::from(own.nxt.0.wrapping_sub(CLIENT_ISS + 1));
            let each = u64::from(script[0].seq_turn);
            if sent != turns * each && sent != (turns + 1) * each {
                bail!("{}: flow {flow} has {sent} bytes after {turns} turns of {each}", case.name);
            }
            let next = Segment {
                seq: own.nxt,
                ack: SeqNum(SERVER_ISS + 1 + DATA),
                len: DATA,
                flags: TcpFlags(TcpFlags::ACK),
                window: u16::MAX,
                options: TcpOptions {
                    tsval: own.tsval,
                    present: TcpOptions::HAS_TIMESTAMPS,
                    ..TcpOptions::default()
                },
                ..Segment::default()
            };
            let verdict = tcpfsm_common::abi::Verdict(record.shared.verdict);
            if observe_settled(verdict, client, &mut own.clone(), peer, &next) != Some(verdict) {
                bail!("{}: flow {flow} is not on the short path: {verdict:?} {own:?}", case.name);
            }
        }
        Ok(())
    }
}

/// Which end of a flow the jig's client is.
pub fn client_end(layout: Layout, flow: u32) -> End {
    let (addr, client) = match layout {
        Layout::Ipv6 => (key6(flow).port, flow),
        Layout::Ipv4 | Layout::Vlan => (key4(flow).port, flow),
    };
    let port = u16::try_from(crate::plan::CLIENT_PORTS + (client & 0x3fff)).unwrap();
    if addr[0] == port { End::Low } else { End::High }
}

fn flows(bits: u32) -> Flows {
    if bits == 0 { Flows::InOrder { bits } } else { Flows::Mixed { bits } }
}

fn shape(layout: Layout, options: Options) -> Shape {
    Shape { layout, options }
}

/// The floor with `2^bits` flows in its maps.
fn filled_floor(bench: &Bench, bits: u32) -> Result<(Floor, Vec<Jig>)> {
    let mut floor = bench.floor.load(room(1 << bits), room(1 << bits))?;
    let mut jigs = Vec::new();
    for (insert, layout) in [("floor_insert_tc", Layout::Ipv4), ("floor_insert6_tc", Layout::Ipv6)] {
        let program = floor.program(insert)?;
        let mut jig = bench.floor.jig(&program, layout)?;
        let shape = shape(layout, STAMPED);
        jig.play(Flows::InOrder { bits }, &shape.data())?;
        jig.run(shape, DATA, 1 << bits)?;
        jigs.push(jig);
    }
    Ok((floor, jigs))
}

/// Runs the floor's probes and the cases in turn, and checks each case's path.
fn run(
    name: &str,
    bench: &Bench,
    effort: Effort,
    mut probes: Vec<Probe<'static>>,
    cases: Vec<Case>,
    bits: u32,
) -> Result<Table> {
    let mut ready = Vec::new();
    for case in cases {
        ready.push(Ready::new(bench, case, bits)?);
    }
    let floors = probes.len();
    probes.extend(ready.iter().map(Ready::probe));
    let table = measure(name, effort, &mut probes)?;
    for (ready, probe) in ready.iter().zip(&probes[floors..]) {
        ready.verify(probe.ran)?;
    }
    Ok(table)
}

/// The empty program in a jig.
fn empty_jig(bench: &Bench, floor: &mut Floor, program: &str, layout: Layout, bits: u32) -> Result<Jig> {
    let empty = floor.program(program)?;
    let mut jig = bench.floor.jig(&empty, layout)?;
    jig.play(flows(bits), &shape(layout, STAMPED).data())?;
    Ok(jig)
}

/// One flow, XDP.
pub fn hot(bench: &Bench) -> Result<Table> {
    let (mut floor, _jigs) = filled_floor(bench, 10)?;
    let frame = shape(Layout::Ipv4, STAMPED).frame(DATA);
    let frame6 = shape(Layout::Ipv6, STAMPED).frame(DATA);
    let jig = empty_jig(bench, &mut floor, "floor_empty", Layout::Ipv4, 0)?;
    let jig_pair = {
        let empty = floor.program("floor_empty")?;
        let mut jig = bench.floor.jig(&empty, Layout::Ipv4)?;
        jig.play(flows(0), &shape(Layout::Ipv4, STAMPED).data_and_ack())?;
        jig
    };
    let jig_vlan = empty_jig(bench, &mut floor, "floor_empty", Layout::Vlan, 0)?;
    let jig6 = empty_jig(bench, &mut floor, "floor_empty", Layout::Ipv6, 0)?;
    let programs: Vec<Loaded> = ["floor_empty", "floor_parse", "floor_lookup", "floor_lookup6"]
        .iter()
        .map(|name| floor.program(name))
        .collect::<Result<_>>()?;
    let mut l = bench.floor.jig(&programs[2], Layout::Ipv4)?;
    l.play(flows(0), &shape(Layout::Ipv4, STAMPED).data())?;
    let probes = vec![
        Probe::new(EMPTY, &programs[0], frame.clone()),
        Probe::new("jig", jig.program(), frame.clone()),
        Probe::new("jig, two steps", jig_pair.program(), frame.clone()),
        Probe::new("jig, VLAN", jig_vlan.program(), shape(Layout::Vlan, STAMPED).frame(DATA)),
        Probe::new("jig, IPv6", jig6.program(), frame6.clone()),
        Probe::new("parse", &programs[1], frame.clone()),
        Probe::new("L", &programs[2], frame.clone()),
        Probe::new("L in the jig", l.program(), frame).base("jig").to("L"),
        Probe::new("L, IPv6", &programs[3], frame6),
    ];
    let v4 = shape(Layout::Ipv4, STAMPED);
    let case = |name, shape, script, base, to| Case { name, program: "tcpfsm_xdp", shape, script, base, to };
    let cases = vec![
        case("data", v4, Shape::data as fn(Shape) -> _, "jig", "L"),
        case("pure ACK", v4, Shape::pure_ack, "jig", "L"),
        case("data and its ACK in turn", v4, Shape::data_and_ack, "jig, two steps", "L"),
        case("data, no timestamps", shape(Layout::Ipv4, Options::None), Shape::data, "jig", "L"),
        case("data, VLAN", shape(Layout::Vlan, STAMPED), Shape::data, "jig, VLAN", "L"),
        case("data, IPv6", shape(Layout::Ipv6, STAMPED), Shape::data, "jig, IPv6", "L, IPv6"),
    ];
    let table = run("hot", bench, bench.effort(40e6), probes, cases, 0)?;
    no_misses(&floor, 2)?;
    Ok(table)
}

/// One flow, TC beside XDP.
pub fn tc(bench: &Bench) -> Result<Table> {
    let (mut floor, _jigs) = filled_floor(bench, 10)?;
    let frame = shape(Layout::Ipv4, STAMPED).frame(DATA);
    let jig = empty_jig(bench, &mut floor, "floor_empty", Layout::Ipv4, 0)?;
    let jig_tc = empty_jig(bench, &mut floor, "floor_empty_tc", Layout::Ipv4, 0)?;
    let programs: Vec<Loaded> = ["floor_empty", "floor_empty_tc", "floor_lookup", "floor_lookup_tc"]
        .iter()
        .map(|name| floor.program(name))
        .collect::<Result<_>>()?;
    let probes = vec![
        Probe::new(EMPTY, &programs[0], frame.clone()),
        Probe::new("jig", jig.program(), frame.clone()),
        Probe::new("jig, TC", jig_tc.program(), frame.clone()),
        Probe::new("empty, TC", &programs[1], frame.clone()),
        Probe::new("L", &programs[2], frame.clone()),
        Probe::new("L, TC", &programs[3], frame),
    ];
    let v4 = shape(Layout::Ipv4, STAMPED);
    let case = |name, program, script, base| Case { name, program, shape: v4, script, base, to: "L" };
    let cases = vec![
        case("data, XDP", "tcpfsm_xdp", Shape::data as fn(Shape) -> _, "jig"),
        case("data, TC egress", "tcpfsm_egress", Shape::data, "jig, TC"),
        case("data, TC ingress", "tcpfsm_ingress", Shape::data, "jig, TC"),
        case("pure ACK, TC egress", "tcpfsm_egress", Shape::pure_ack, "jig, TC"),
    ];
    let table = run("tc", bench, bench.effort(40e6), probes, cases, 0)?;
    no_misses(&floor, 2)?;
    Ok(table)
}

/// Many flows in random order.
pub fn cold(bench: &Bench, name: &str, bits: u32, with_ipv6: bool) -> Result<Table> {
    let (mut floor, _jigs) = filled_floor(bench, bits)?;
    let v4 = shape(Layout::Ipv4, STAMPED);
    let v6 = shape(Layout::Ipv6, STAMPED);
    let empty = floor.program("floor_empty")?;
    let jig = empty_jig(bench, &mut floor, "floor_empty", Layout::Ipv4, bits)?;
    let jig6 = empty_jig(bench, &mut floor, "floor_empty", Layout::Ipv6, bits)?;
    let (lookup, lookup6) = (floor.program("floor_lookup")?, floor.program("floor_lookup6")?);
    let mut l = bench.floor.jig(&lookup, Layout::Ipv4)?;
    l.play(flows(bits), &v4.data())?;
    let mut l6 = bench.floor.jig(&lookup6, Layout::Ipv6)?;
    l6.play(flows(bits), &v6.data())?;
    let mut probes = vec![
        Probe::new(EMPTY, &empty, v4.frame(DATA)),
        Probe::new("jig", jig.program(), v4.frame(DATA)),
        Probe::new("L", l.program(), v4.frame(DATA)).base("jig"),
    ];
    let case = |name, shape, script, base, to| Case { name, program: "tcpfsm_xdp", shape, script, base, to };
    let mut cases = vec![
        case("data", v4, Shape::data as fn(Shape) -> _, "jig", "L"),
        case("pure ACK", v4, Shape::pure_ack, "jig", "L"),
    ];
    if with_ipv6 {
        probes.push(Probe::new("jig, IPv6", jig6.program(), v6.frame(DATA)));
        probes.push(Probe::new("L, IPv6", l6.program(), v6.frame(DATA)).base("jig, IPv6"));
        cases.push(case("data, IPv6", v6, Shape::data, "jig, IPv6", "L, IPv6"));
    }
    let before = floor.seen()?[0];
    let table = run(name, bench, bench.effort(150e6), probes, cases, bits)?;
    let missed = floor.seen()?[0] - before;
    if missed != 0 {
        bail!("{name}: {missed} lookups of the floor missed");
    }
    Ok(table)
}

/// The two fillings miss each flow once, and nothing else does.
fn no_misses(floor: &Floor, fillings: u64) -> Result<()> {
    let missed = floor.seen()?[0];
    if missed != fillings << 10 {
        bail!("{missed} lookups of the floor missed, of which {} when it was filled", fillings << 10);
    }
    Ok(())
}
