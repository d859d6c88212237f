//! One connection as Zeek cuts it: from the packet that creates it to the timer that ends it.

use tcpfsm_common::{
    flow::End,
    segment::{Segment, TcpFlags},
};

use super::{
    endpoint::{Endpoint, State},
    history::History,
    lifetime::{INACTIVITY, INACTIVITY_INTERACTIVE, INACTIVITY_OPENING, SHORT},
    ports::{is_interactive, is_likely_server},
    timers::{Timer, Timers},
};

/// A segment and what the summary needs beside it.
#[derive(Clone, Copy)]
pub(in crate::replay) struct Packet<'a> {
    pub(in crate::replay) sender: End,
    pub(in crate::replay) segment: &'a Segment,
    pub(in crate::replay) time: i64,
    /// All of its payload was captured.
    pub(in crate::replay) complete: bool,
}

/// The time of the capture, and where timers go.
pub(in crate::replay) struct Alarm<'a> {
    pub(in crate::replay) timers: &'a mut Timers,
    pub(in crate::replay) slot: u32,
    /// The capture's time, which never goes back.
    pub(in crate::replay) now: i64,
}

/// A connection.
#[derive(Debug)]
pub(in crate::replay) struct Connection {
    pub(super) serial: u32,
    pub(super) epoch: u8,
    pub(super) inactivity_epoch: u8,
    pub(super) inactivity: i64,
    pub(super) orig: End,
    ports: [u16; 2],
    ends: [Endpoint; 2],
    history: History,
    /// Of the last packet, until both ends have closed.
    pub(super) last_time: i64,
    pub(super) is_active: bool,
    is_partial: bool,
    pub(super) close_deferred: bool,
}

impl Connection {
    /// A connection that `packet` begins; `ports` are those of the low and the high end.
    pub(in crate::replay) fn new(
        serial: u32,
        packet: Packet<'_>,
        ports: [u16; 2],
        alarm: &mut Alarm<'_>,
    ) -> Self {
        let mut connection = Self {
            serial,
            epoch: 0,
            inactivity_epoch: 0,
            inactivity: INACTIVITY_OPENING,
            orig: packet.sender,
            ports,
            ends: [Endpoint::default(), Endpoint::default()],
            history: History::default(),
            last_time: packet.time,
            is_active: true,
            is_partial: false,
            close_deferred: false,
        };
        if connection.begins_at_server(packet.segment.flags) {
            connection.orig = packet.sender.other();
            connection.history.flip();
        }
        connection.set(alarm, Timer::Expire, alarm.now.saturating_add(SHORT));
        connection.set(alarm, Timer::Inactivity, packet.time.saturating_add(INACTIVITY_OPENING));
        connection
    }

    /// A beginning without a SYN, from a port on which servers are expected: the sender is the responder. A
    /// SYN-ACK between two such ports may be a stealth scan, so there the sender is believed.
    fn begins_at_server(&self, flags: TcpFlags) -> bool {
        let syn = flags.any(TcpFlags::SYN);
        if syn && !flags.any(TcpFlags::ACK) {
            return false;
        }
        let (from, to) = (self.port(self.orig), self.port(self.orig.other()));
        is_likely_server(from) && if is_likely_server(to) { !syn && from < to } else { true }
    }

    const fn port(&self, end: End) -> u16 {
        self.ports[end as usize & 1]
    }

    pub(super) const fn end(&self, end: End) -> &Endpoint {
        &self.ends[end as usize & 1]
    }

    pub(super) const fn end_mut(&mut self, end: End) -> &mut Endpoint {
        &mut self.ends[end as usize & 1]
    }

    pub(super) const fn orig_end(&self) -> &Endpoint {
        self.end(self.orig)
    }

    pub(super) const fn resp_end(&self) -> &Endpoint {
        self.end(self.orig.other())
    }

    /// Which end Zeek would call the originator.
    pub(in crate::replay) const fn originator(&self) -> End {
        self.orig
    }

    pub(in crate::replay) const fn serial(&self) -> u32 {
        self.serial
    }

    pub(in crate::replay) fn history(&self) -> &str {
        self.history.as_str()
    }

    /// Packets and payload bytes that `end` sent, retransmissions included.
    pub(in crate::replay) const fn volume(&self, end: End) -> (u64, u64) {
        let end = self.end(end);
        (end.packets, end.bytes)
    }

    /// Whether this segment begins another connection of the same endpoints.
    pub(in crate::replay) fn is_reused_by(&self, segment: &Segment) -> bool {
        let flags = segment.flags;
        if !flags.any(TcpFlags::SYN) {
            return false;
        }
        let mut first = self.orig_end();
        if flags.any(TcpFlags::ACK) {
            if first.state != State::Inactive {
                return false;
            }
            first = self.resp_end();
        }
        if self.ends.iter().any(|end| end.did_close) {
            return true;
        }
        // The SYN that a SYN-ACK seen before it answers is no new beginning.
        let late = !flags.any(TcpFlags::ACK)
            && first.state == State::SynAckSent
            && self.resp_end().state == State::Inactive
            && self.resp_end().starts_at(segment.seq);
        !first.starts_at(segment.seq) && !late
    }

    /// Takes a segment into account.
    pub(in crate::replay) fn observe(&mut self, packet: Packet<'_>, alarm: &mut Alarm<'_>) {
        let Packet { sender, segment, time, complete } = packet;
        let flags = segment.flags;
        let syn = flags.any(TcpFlags::SYN);
        if self.is_answered_syn_ack(segment) {
            self.flip();
        }
        let is_orig = self.orig as u8 == sender as u8;
        self.history.is_originator(is_orig);
        self.judge_partial(flags, is_orig);

        let own = &mut self.ends[sender as usize & 1];
        own.packets += 1;
        own.bytes += u64::from(segment.len);
        let end = if flags.any(TcpFlags::RST) {
            // A RST's data is no part of the stream.
            Segment { len: 0, ..*segment }.end_seq()
        } else {
            segment.end_seq()
        };
        own.begin(segment, end);
        let place = own.locate(segment.seq);
        own.write_history(&mut self.history, segment, place.at);
        if segment.window == 0
            && !flags.any(TcpFlags::RST)
            && self.end(sender.other()).state != State::Closed
            && self.end(sender).state != State::Reset
        {
            self.ends[sender as usize & 1].note_zero_window(&mut self.history);
        }
        if !self.ends.iter().all(|end| end.did_close) {
            self.last_time = time;
        }
        if flags.any(TcpFlags::FIN) {
            let len = end.since(segment.seq).cast_unsigned();
            self.end_mut(sender).note_fin(place.at.wrapping_add(u64::from(len)));
        }
        let mut acked = 0;
        if flags.any(TcpFlags::ACK) {
            let peer = self.end_mut(sender.other());
            if peer.state == State::Inactive {
                peer.begin_unseen(segment.ack);
                acked = 1;
            } else {
                let place = peer.locate_ack(segment.ack);
                if !place.underflow {
                    acked = place.at;
                    if !flags.any(TcpFlags::RST) {
                        peer.advance_ack(segment.ack);
                    }
                }
            }
        }
        self.ends[sender as usize & 1].advance_last(&mut self.history, segment, end);
        let closes = self.step(sender, segment, alarm);
        // After the step, so that a gap which only a FIN or RST reveals is not told: those are unreliable.
        if flags.any(TcpFlags::ACK) {
            self.acknowledge(sender.other(), acked, alarm);
        }
        self.end_mut(sender).seen = true;
        if segment.len > 0 && complete && !flags.any(TcpFlags::RST) && !place.underflow {
            let at = if syn { place.at.wrapping_add(1) } else { place.at };
            let (peer, is_partial) = (self.end(sender.other()).state, self.is_partial);
            self.end_mut(sender).deliver(at, segment.len, peer, is_partial);
        }
        self.check_eof(sender, alarm);
        if closes {
            self.close(sender, alarm);
        }
    }

    /// A SYN-ACK came first, and an ACK or data follows at once: no scan looks like that, so the SYN was
    /// missed and the sender of the SYN-ACK is the responder.
    fn is_answered_syn_ack(&self, segment: &Segment) -> bool {
        const CONTROL: u16 = TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST;
        self.history.as_str() == "H"
            && self.orig_end().state == State::SynAckSent
            && self.resp_end().state == State::Inactive
            && !segment.flags.any(CONTROL)
            && (segment.flags.any(TcpFlags::ACK) || segment.len > 0)
    }

    fn flip(&mut self) {
        self.orig = self.orig.other();
        self.history.flip();
        self.is_partial = false;
    }

    fn judge_partial(&mut self, flags: TcpFlags, is_orig: bool) {
        let syn = flags.any(TcpFlags::SYN);
        if is_orig {
            if !self.orig_end().seen {
                self.is_partial = !syn || flags.any(TcpFlags::ACK);
            }
        } else if !self.resp_end().seen && !self.is_partial {
            self.is_partial = !syn;
        }
    }

    /// Moves the sender's state. Says whether that closes its side.
    fn step(&mut self, sender: End, segment: &Segment, alarm: &mut Alarm<'_>) -> bool {
        let flags = segment.flags;
        let (fin, rst) = (flags.any(TcpFlags::FIN), flags.any(TcpFlags::RST));
        match self.end(sender).state {
            State::Inactive => self.step_inactive(sender, segment, alarm),
            State::SynSent | State::SynAckSent => {
                if fin {
                    self.set_state(sender, State::Closed, alarm);
                }
                if rst {
                    self.set_state(sender, State::Reset, alarm);
                    self.is_active = false;
                }
                fin || rst
            }
            State::Established | State::Partial => {
                let (own, peer) = (self.end(sender), self.end(sender.other()));
                if flags.any(TcpFlags::SYN)
                    && !flags.any(TcpFlags::ACK)
                    && own.state == State::Partial
                    && peer.state == State::Inactive
                {
                    self.set_state(sender, State::SynSent, alarm);
                }
                if fin && !rst {
                    self.set_state(sender, State::Closed, alarm);
                    let peer = self.end(sender.other());
                    if peer.state == State::Reset && peer.before == State::Closed {
                        // FIN, then RST, then the answer to the FIN: an ordinary end.
                        self.set_state(sender.other(), State::Closed, alarm);
                    }
                }
                if rst {
                    self.set_state(sender, State::Reset, alarm);
                    let peer = self.end(sender.other());
                    if peer.state != State::Reset || peer.before != State::Established {
                        self.is_active = false;
                    }
                }
                fin || rst
            }
            State::Closed => {
                if !rst || self.end(sender.other()).state == State::Closed {
                    return false;
                }
                self.set_state(sender, State::Reset, alarm);
                !self.end(sender).did_close
            }
            State::Reset => false,
        }
    }

    fn step_inactive(&mut self, sender: End, segment: &Segment, alarm: &mut Alarm<'_>) -> bool {
        let flags = segment.flags;
        let other = sender.other();
        let is_orig = self.orig as u8 == sender as u8;
        let mut closes = false;
        if flags.any(TcpFlags::SYN) {
            if is_orig {
                let state = if flags.any(TcpFlags::ACK) { State::SynAckSent } else { State::SynSent };
                self.set_state(sender, state, alarm);
                self.set(alarm, Timer::Attempt, self.last_time.saturating_add(SHORT));
            } else {
                let reversed = !flags.any(TcpFlags::ACK)
                    && self.end(other).state == State::SynAckSent
                    && self.end(sender).starts_at(segment.seq);
                if reversed {
                    // The SYN-ACK was seen before the SYN that it answers.
                    self.flip();
                    self.set_state(other, State::Established, alarm);
                    self.end_mut(sender).seen = true;
                } else if self.end(other).state == State::SynSent {
                    self.set_state(other, State::Established, alarm);
                }
                self.set_state(sender, State::Established, alarm);
                if self.end(other).state != State::Partial {
                    self.note_established(alarm);
                }
            }
        }
        if flags.any(TcpFlags::FIN) {
            self.set_state(sender, State::Closed, alarm);
            closes = true;
        }
        if flags.any(TcpFlags::RST) {
            self.set_state(sender, State::Reset, alarm);
            closes = true;
        }
        if self.end(sender).state == State::Inactive {
            let peer = self.end(other).state;
            if !is_orig && segment.len == 0 && peer == State::SynSent {
                // Some stacks acknowledge a SYN before they answer it.
            } else if flags.any(TcpFlags::ACK) && peer == State::Established {
                // Only the SYN was missed.
                self.set_state(sender, State::Established, alarm);
                self.is_partial = false;
            } else {
                self.set_state(sender, State::Partial, alarm);
            }
        }
        closes
    }

    fn set_state(&mut self, end: End, state: State, alarm: &mut Alarm<'_>) {
        let opening = |state| matches!(state, State::Inactive | State::SynSent | State::SynAckSent);
        let before = self.end(end).state;
        if before != state && !opening(state) && opening(before) && opening(self.end(end.other()).state) {
            self.set_inactivity(INACTIVITY, alarm);
        }
        self.end_mut(end).set_state(state);
    }

    fn note_established(&mut self, alarm: &mut Alarm<'_>) {
        let (from, to) = (self.port(self.orig), self.port(self.orig.other()));
        let unseen = self.orig_end().state == State::Inactive;
        let service = if unseen && !is_likely_server(to) && is_likely_server(from) { from } else { to };
        if is_interactive(service) {
            self.set_inactivity(INACTIVITY_INTERACTIVE, alarm);
        }
    }

    /// `end`'s data before `at` was acknowledged.
    fn acknowledge(&mut self, end: End, at: u64, alarm: &mut Alarm<'_>) {
        let (peer, is_partial) = (self.end(end.other()).state, self.is_partial);
        let gaps = self.end_mut(end).acknowledged(at, peer, is_partial);
        if gaps > 0 && self.ends.iter().all(Endpoint::is_clean) {
            self.history.is_originator(self.orig as u8 == end as u8);
            self.ends[end as usize & 1].note_gaps(&mut self.history, gaps);
        }
        self.check_eof(end, alarm);
    }
}
