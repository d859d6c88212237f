//! When a connection is over: both ends closed, an attempt unanswered, silence.

use tcpfsm_common::flow::End;

use super::{
    connection::{Alarm, Connection},
    endpoint::State,
    timers::{Sleeper, Timer},
};

const SECOND: i64 = 1_000_000_000;

/// `tcp_SYN_timeout`, `tcp_attempt_delay`, `tcp_close_delay`, `tcp_connection_linger`: all 5 s.
pub(super) const SHORT: i64 = 5 * SECOND;
/// `tcp_session_timer`.
const SESSION: i64 = 6 * SECOND;
/// A connection whose handshake has not completed (`udp_inactivity_timeout`, which serves for TCP until then).
pub(super) const INACTIVITY_OPENING: i64 = 60 * SECOND;
/// `tcp_inactivity_timeout`.
pub(super) const INACTIVITY: i64 = 300 * SECOND;
/// `port_inactivity_timeouts`.
pub(super) const INACTIVITY_INTERACTIVE: i64 = 3600 * SECOND;

impl Connection {
    pub(super) fn set_inactivity(&mut self, timeout: i64, alarm: &mut Alarm<'_>) {
        if self.inactivity != timeout {
            self.inactivity = timeout;
            self.inactivity_epoch = self.inactivity_epoch.wrapping_add(1);
            self.set(alarm, Timer::Inactivity, self.last_time.saturating_add(timeout));
        }
    }

    /// Once `end` has closed and all that it sent is there, a close that was put off happens.
    pub(super) fn check_eof(&mut self, end: End, alarm: &mut Alarm<'_>) {
        let (own, peer) = (self.end(end), self.end(end.other()));
        let closed = own.sent_fin || matches!(own.state, State::Closed | State::Reset);
        if own.stream.did_eof || !closed || own.is_pending(peer) {
            return;
        }
        self.end_mut(end).stream.did_eof = true;
        if self.close_deferred {
            self.close(end, alarm);
            self.close_deferred = false;
        }
    }

    /// `end` has closed its side.
    pub(super) fn close(&mut self, end: End, alarm: &mut Alarm<'_>) {
        let (own, peer) = (self.end(end), self.end(end.other()));
        if own.is_pending(peer) {
            self.close_deferred = true;
            return;
        }
        let complete = own.state == State::Reset || peer.did_close || peer.state == State::Inactive;
        let (before, did_close) = (own.before, own.did_close);
        self.close_deferred = false;
        if did_close {
            return;
        }
        self.end_mut(end).did_close = true;
        if complete {
            self.is_active = false;
            self.epoch = self.epoch.wrapping_add(1);
            self.set(alarm, Timer::Delete, self.last_time.saturating_add(SHORT));
        } else if before != State::Inactive {
            self.set(alarm, Timer::Expire, self.last_time.saturating_add(SESSION));
        }
    }

    /// A timer went off. Says whether the connection is over.
    pub(in crate::replay) fn wake(&mut self, sleeper: Sleeper, alarm: &mut Alarm<'_>) -> bool {
        let now = alarm.now;
        let (orig, resp) = (self.orig_end(), self.resp_end());
        match sleeper.timer {
            Timer::Delete => true,
            Timer::Inactivity => {
                if sleeper.epoch != self.inactivity_epoch {
                    return false;
                }
                let due = self.last_time.saturating_add(self.inactivity);
                if due > now {
                    self.set(alarm, Timer::Inactivity, due);
                }
                due <= now
            }
            Timer::Attempt => {
                sleeper.epoch == self.epoch
                    && self.is_active
                    && matches!(orig.state, State::SynSent | State::SynAckSent)
                    && resp.state == State::Inactive
            }
            Timer::Expire => {
                if sleeper.epoch != self.epoch || !self.is_active {
                    return false;
                }
                let states = [orig.state, resp.state];
                let any = |state| states.contains(&state);
                let closed = [orig.did_close, resp.did_close];
                let over = closed == [true; 2]
                    || (closed != [false; 2] && (any(State::Reset) || any(State::Inactive)))
                    || states == [State::Inactive; 2];
                if over && self.last_time.saturating_add(SHORT) < now {
                    return true;
                }
                self.set(alarm, Timer::Expire, now.saturating_add(SESSION));
                false
            }
        }
    }

    pub(super) fn set(&self, alarm: &mut Alarm<'_>, timer: Timer, time: i64) {
        let epoch = if timer == Timer::Inactivity { self.inactivity_epoch } else { self.epoch };
        alarm.timers.set(time, Sleeper { slot: alarm.slot, serial: self.serial, timer, epoch });
    }
}
