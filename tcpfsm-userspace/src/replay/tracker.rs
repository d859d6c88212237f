//! Every flow of a capture: its record for the RFC machine, its connection for the summary.

use std::{collections::HashMap, net::SocketAddr};

use foldhash::fast::RandomState;
use tcpfsm_common::{
    abi::{Evidence, FlowRecord, STATE_SLOTS, SweepRequest, Verdict},
    fact::Facts,
    flow::{Direction, End, FlowKey},
    fsm::{Config, DEFAULT_TIMEOUT_SECONDS, PlainDesk, State, advance, expire, observe_icmp},
    packet::IcmpError,
    segment::TcpFlags,
};

use super::{
    tale::{Before, Tale},
    zeek::{Alarm, Connection, Packet, Timers},
};
use crate::explain::story::Story;

/// Flows in the table before it is first swept.
const FIRST_SWEEP: usize = 1 << 16;

/// Above this many flows, those of which only one end was ever heard are not waited for any longer: a flood of
/// SYNs from random addresses must not take all memory.
const CROWDED: usize = 1 << 19;

/// What the machine says of a packet.
pub(super) struct Sighting {
    /// It belongs to a flow: a stray, or what might be the beginning of a pickup, does not.
    pub(super) is_of_flow: bool,
    pub(super) orig: SocketAddr,
    pub(super) resp: SocketAddr,
    pub(super) direction: Direction,
    pub(super) flags: TcpFlags,
    /// Originator first.
    pub(super) states: [State; 2],
    pub(super) confirmed: [bool; 2],
    pub(super) facts: Facts,
}

/// A connection that is over, or that the capture ends in.
pub(super) struct Summary {
    pub(super) orig: SocketAddr,
    pub(super) resp: SocketAddr,
    pub(super) first: i64,
    pub(super) last: i64,
    /// Originator first, as are the pairs below.
    pub(super) states: [State; 2],
    pub(super) packets: [u64; 2],
    pub(super) bytes: [u64; 2],
    pub(super) conn_state: &'static str,
    pub(super) history: String,
    pub(super) facts: Facts,
    /// Where it was wanted.
    pub(super) story: Option<Box<Story>>,
}

/// What is wanted of a capture.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Only what the machine says of each packet.
    Packets,
    /// Only the connections.
    Connections,
    /// The connections, explained.
    Stories,
}

/// The flows of a capture.
pub(super) struct Tracker {
    want: Want,
    index: HashMap<FlowKey, u32, RandomState>,
    flows: Vec<Flow>,
    free: Vec<u32>,
    timers: Timers,
    serial: u32,
    /// The capture's time, which never goes back, whatever a packet's time says.
    clock: i64,
    next_sweep: usize,
    finished: Vec<Summary>,
}

struct Flow {
    key: FlowKey,
    record: FlowRecord,
    connection: Option<Box<Open>>,
    in_use: bool,
}

struct Open {
    zeek: Connection,
    order: u64,
    first: i64,
    last: i64,
    facts: Facts,
    tale: Option<Tale>,
}

impl Tracker {
    pub(super) fn new(want: Want) -> Self {
        Self {
            want,
            index: HashMap::default(),
            flows: Vec::new(),
            free: Vec::new(),
            timers: Timers::default(),
            serial: 0,
            clock: i64::MIN,
            next_sweep: FIRST_SWEEP,
            finished: Vec::new(),
        }
    }

    /// Connections that ended since this was last asked.
    pub(super) fn finished(&mut self) -> impl Iterator<Item = Summary> + '_ {
        self.finished.drain(..)
    }

    /// A TCP segment; `number` is its packet's, `complete` says whether all of its payload was captured.
    pub(super) fn segment(&mut self, key: FlowKey, packet: Packet<'_>, number: u64) -> Sighting {
        let Packet { sender, segment, time, .. } = packet;
        self.tick(time);
        let slot = self.slot(key, time);
        if self.want != Want::Packets {
            self.begin(slot, packet, number);
        }
        let Some(flow) = self.flows.get_mut(slot as usize) else { return unseen(key, packet) };
        let now = monotonic(time);
        flow.settle_silence(now);
        let before = Before::of(&flow.record);
        let facts = advance(&mut flow.record, sender, segment, now, Config::default()).0.facts;
        if let Some(open) = &mut flow.connection {
            let mut alarm = Alarm { timers: &mut self.timers, slot, now: self.clock };
            open.zeek.observe(packet, &mut alarm);
            open.last = open.last.max(time);
            open.facts.0 |= facts.0;
            if let Some(tale) = &mut open.tale {
                tale.segment(number, &key, &flow.record, before, (sender, segment, facts, now));
            }
        }
        sighting(key, flow.record.shared.verdict, sender, segment.flags, facts)
    }

    /// An ICMP error about a segment that `quoted` sent. Gives what it changed, if it changed anything.
    pub(super) fn icmp(
        &mut self,
        key: FlowKey,
        quoted: End,
        error: &IcmpError,
        time: i64,
    ) -> Option<Sighting> {
        self.tick(time);
        let slot = *self.index.get(&key)?;
        let flow = self.flows.get_mut(slot as usize)?;
        let now = monotonic(time);
        flow.settle_silence(now);
        let earlier = Before::of(&flow.record);
        let shared = &mut flow.record.shared;
        let before = Verdict(shared.verdict);
        let own = &flow.record.sent[quoted as usize & 1];
        let step = observe_icmp(&PlainDesk::default(), before, quoted, own, error);
        shared.verdict = step.verdict.0;
        shared.facts |= step.facts.0;
        for (end, since) in [End::Low, End::High].into_iter().zip(&mut shared.since) {
            if before.state(end) != step.verdict.state(end) {
                *since = now;
            }
        }
        if let Some(open) = &mut flow.connection {
            open.facts.0 |= step.facts.0;
            if let Some(tale) = &mut open.tale {
                tale.icmp(&key, &flow.record, earlier, (quoted, step.facts, now));
            }
        }
        // It came to the end whose segment it quotes.
        let from = quoted.other();
        (before != step.verdict).then(|| sighting(key, step.verdict.0, from, TcpFlags::default(), step.facts))
    }

    /// The capture is at its end: so is every connection, in the order in which they began.
    pub(super) fn end(&mut self) {
        let mut open: Vec<_> = self
            .flows
            .iter()
            .zip(0_u32..)
            .filter_map(|(flow, slot)| flow.connection.as_ref().map(|open| (open.order, slot)))
            .collect();
        open.sort_unstable();
        for (_, slot) in open {
            self.finish(slot);
        }
    }

    /// Lets time pass up to a packet.
    fn tick(&mut self, time: i64) {
        self.clock = self.clock.max(time);
        while let Some(sleeper) = self.timers.due(self.clock) {
            let slot = sleeper.slot;
            let Some(open) = self.flows.get_mut(slot as usize).and_then(|flow| flow.connection.as_mut())
            else {
                continue;
            };
            let mut alarm = Alarm { timers: &mut self.timers, slot, now: self.clock };
            if open.zeek.serial() == sleeper.serial && open.zeek.wake(sleeper, &mut alarm) {
                self.finish(slot);
            }
        }
    }

    /// The flow's place, made if there is none.
    fn slot(&mut self, key: FlowKey, time: i64) -> u32 {
        if let Some(&slot) = self.index.get(&key) {
            return slot;
        }
        if self.index.len() >= self.next_sweep {
            self.sweep(monotonic(time));
        }
        let flow = Flow { key, record: FlowRecord::default(), connection: None, in_use: true };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            // Fewer than 2³² flows fit into any memory.
            None => u32::try_from(self.flows.len()).unwrap_or(u32::MAX),
        };
        match self.flows.get_mut(slot as usize) {
            Some(place) => *place = flow,
            None => self.flows.push(flow),
        }
        self.index.insert(key, slot);
        slot
    }

    /// Makes sure that the flow has a connection, and that it is the one which this packet belongs to.
    fn begin(&mut self, slot: u32, packet: Packet<'_>, number: u64) {
        let Some(flow) = self.flows.get(slot as usize) else { return };
        match &flow.connection {
            Some(open) if open.zeek.is_reused_by(packet.segment) => self.finish(slot),
            Some(_) => return,
            None => {}
        }
        self.serial = self.serial.wrapping_add(1);
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        let ports = match flow.key {
            FlowKey::V4(key) => key.port,
            FlowKey::V6(key) => key.port,
        };
        let mut alarm = Alarm { timers: &mut self.timers, slot, now: self.clock };
        flow.connection = Some(Box::new(Open {
            zeek: Connection::new(self.serial, packet, ports, &mut alarm),
            order: number,
            first: packet.time,
            last: packet.time,
            facts: Facts::default(),
            tale: (self.want == Want::Stories).then(Tale::default),
        }));
    }

    /// Ends a flow's connection; the flow itself stays for the machine.
    fn finish(&mut self, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        let Some(mut open) = flow.connection.take() else { return };
        let now = monotonic(self.clock.max(open.last));
        let story = open.tale.take().map(|tale| Box::new(tale.end(&flow.key, &flow.record, now)));
        let orig = open.zeek.originator();
        let ends = [orig, orig.other()];
        let verdict = Verdict(flow.record.shared.verdict);
        let volumes = ends.map(|end| open.zeek.volume(end));
        self.finished.push(Summary {
            orig: flow.key.socket_addr(orig),
            resp: flow.key.socket_addr(orig.other()),
            first: open.first,
            last: open.last,
            states: ends.map(|end| verdict.state(end)),
            packets: volumes.map(|(packets, _)| packets),
            bytes: volumes.map(|(_, bytes)| bytes),
            conn_state: open.zeek.conn_state(),
            history: open.zeek.history().to_owned(),
            facts: open.facts,
            story,
        });
    }

    /// Forgets flows of which nothing is left. It runs when their number has doubled, so that its cost per
    /// flow is constant.
    #[cold]
    fn sweep(&mut self, now: u64) {
        let crowded = self.index.len() >= CROWDED;
        for slot in (0_u32..).take(self.flows.len()) {
            let Some(flow) = self.flows.get_mut(slot as usize) else { break };
            if !flow.in_use {
                continue;
            }
            let given_up = crowded && flow.is_one_sided();
            if given_up {
                self.finish(slot);
            }
            let Some(flow) = self.flows.get_mut(slot as usize) else { break };
            if flow.connection.is_none() {
                flow.settle_silence(now);
                if given_up || flow.record.last_seen() == 0 {
                    flow.in_use = false;
                    self.index.remove(&flow.key);
                    self.free.push(slot);
                }
            }
        }
        self.next_sweep = (self.index.len() * 2).max(FIRST_SWEEP);
    }
}

impl Flow {
    fn is_one_sided(&self) -> bool {
        self.record.sent.iter().any(|sent| !sent.has(Evidence::SEEN))
    }

    /// What time alone did to the flow since its last packet: the same as the daemon's sweep.
    #[inline]
    fn settle_silence(&mut self, now: u64) {
        let last_seen = self.record.last_seen();
        if last_seen != 0 && now.saturating_sub(last_seen) >= SHORTEST_TIMEOUT {
            self.expire(now);
        }
    }

    fn expire(&mut self, now: u64) {
        let request = SweepRequest { now, timeout: TIMEOUTS, ..SweepRequest::default() };
        let expiry = expire(&self.record, &request);
        if expiry.remove {
            self.record = FlowRecord::default();
            return;
        }
        let shared = &mut self.record.shared;
        let before = Verdict(shared.verdict);
        for (end, since) in [End::Low, End::High].into_iter().zip(&mut shared.since) {
            if before.state(end) != expiry.verdict.state(end) {
                *since = now;
            }
        }
        shared.verdict = expiry.verdict.0;
    }
}

const TIMEOUTS: [u64; STATE_SLOTS] = {
    let mut timeouts = [0; STATE_SLOTS];
    let mut i = 0;
    while i < DEFAULT_TIMEOUT_SECONDS.len() {
        timeouts[i] = DEFAULT_TIMEOUT_SECONDS[i] * 1_000_000_000;
        i += 1;
    }
    timeouts
};

/// No state's time runs out before: a flow heard of since need not be looked at.
const SHORTEST_TIMEOUT: u64 = {
    let mut shortest = u64::MAX;
    let mut i = 0;
    while i < TIMEOUTS.len() {
        if TIMEOUTS[i] != 0 && TIMEOUTS[i] < shortest {
            shortest = TIMEOUTS[i];
        }
        i += 1;
    }
    shortest
};

/// The machine's clock: the packet's own time, never 0, which stands for "not seen".
fn monotonic(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0).max(1 << 16)
}

fn sighting(key: FlowKey, verdict: u64, sender: End, flags: TcpFlags, facts: Facts) -> Sighting {
    // Where nothing is known of the flow, who sends this is as good an originator as the other.
    let verdict = Verdict(verdict);
    let orig = if verdict == Verdict::default() { sender } else { verdict.originator() };
    let ends = [orig, orig.other()];
    let direction = if orig as u8 == sender as u8 { Direction::Original } else { Direction::Reply };
    let [orig, resp] = ends.map(|end| key.socket_addr(end));
    Sighting {
        is_of_flow: verdict.generation() != 0 && !verdict.has(Verdict::CANDIDATE),
        orig,
        resp,
        direction,
        flags,
        states: ends.map(|end| verdict.state(end)),
        confirmed: ends.map(|end| verdict.is_confirmed(end)),
        facts,
    }
}

fn unseen(key: FlowKey, packet: Packet<'_>) -> Sighting {
    sighting(key, 0, packet.sender, packet.segment.flags, Facts::default())
}
