//! `conn_state`: what became of a connection, in Zeek's thirteen words (`base/protocols/conn`).

use super::{connection::Connection, endpoint::State};

impl Connection {
    /// The state that Zeek's `conn.log` would give if the connection ended now.
    pub(in crate::replay) fn conn_state(&self) -> &'static str {
        let (orig, resp) = (self.orig_end(), self.resp_end());
        let unopened = |state| matches!(state, State::Inactive | State::Partial);
        match (orig.state, resp.state) {
            (State::SynSent | State::SynAckSent, State::Reset) => "REJ",
            (State::Reset, State::Reset) if orig.size(resp.state) == 0 && resp.size(orig.state) == 0 => "REJ",
            (o, State::Reset) if unopened(o) => "RSTRH",
            (_, State::Reset) => "RSTR",
            (State::Reset, r) if unopened(r) && is_syn_then_reset(self.history()) => "RSTOS0",
            (State::Reset, r) if unopened(r) => "OTH",
            (State::Reset, _) => "RSTO",
            (State::Closed, State::Closed) => "SF",
            (State::Closed, r) => {
                if unopened(r) {
                    "SH"
                } else {
                    "S2"
                }
            }
            (o, State::Closed) => {
                if unopened(o) {
                    "SHR"
                } else {
                    "S3"
                }
            }
            (State::SynSent, State::Inactive) => "S0",
            (State::Established, State::Established) => "S1",
            _ => "OTH",
        }
    }
}

/// A SYN and a RST of the originator with no other sign of a connection between them.
fn is_syn_then_reset(history: &str) -> bool {
    let history = history.strip_prefix('^').unwrap_or(history);
    let Some(rest) = history.strip_prefix('S') else { return false };
    let Some((between, _)) = rest.split_once('R') else { return false };
    !between.contains(['H', 'A', 'F', 'G', 'I', 'Q'])
}
