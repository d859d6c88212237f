//! What a detector found, with the owner of the flow longest concerned.

use std::borrow::Cow;

use tcpfsm_common::fsm::State;

use super::owners::Owners;
use crate::{
    clock::WallClock,
    detect::Finding,
    owner::Ownership,
    report::{Anomaly, Flow, Ratio, Side},
};

/// A finding as it is reported. Asks the host.
pub(crate) fn anomaly(
    finding: &Finding,
    owners: &mut Owners,
    iface: Cow<'static, str>,
    clock: WallClock,
) -> Anomaly {
    let &Finding {
        kind,
        phase,
        severity,
        count,
        peak,
        first_seen,
        time,
        oldest,
        source,
        technique,
        permille,
    } = finding;
    let ends = [oldest.end, oldest.end.other()].map(|end| oldest.key.socket_addr(end));
    let [orig, resp] = match oldest.side {
        Side::Orig => ends,
        Side::Resp => [ends[1], ends[0]],
    };
    let flow = Flow { orig, resp, iface, local: owners.local(orig, resp) };
    // Only this host's own stuck end has an owner here; the other end's program is elsewhere.
    let own = flow.local.is_some_and(|local| local.includes(oldest.side));
    let kernel_state = owners.kernel_state(&flow, oldest.side);
    // Whether its program still has it, the socket knows better than the wire: a forged reset closes only there.
    let state = kernel_state.unwrap_or(oldest.state);
    let Ownership { proc, unowned, .. } =
        if own { owners.owner_now(&flow, oldest.side, state) } else { Ownership::default() };
    Anomaly {
        flow,
        side: oldest.side,
        anomaly: kind,
        phase,
        severity,
        service: oldest.service,
        source,
        technique: technique.map(Cow::Borrowed),
        ratio: permille.map(Ratio),
        count,
        peak,
        first_seen: clock.at(first_seen),
        oldest_ns: time.saturating_sub(oldest.since),
        state: oldest.state,
        kernel_state: kernel_state.map(State::name).map(Cow::Borrowed),
        proc,
        unowned,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, SocketAddr},
        time::Duration,
    };

    use super::*;
    use crate::{
        owner::{OwnerLookup, Proc, WhyUnowned},
        pipeline::synthetic::{Conversation, RESP},
    };
    use tcpfsm_common::flow::End;

    /// A host whose one socket, the responder's, is in this state.
    struct HostWith(State);

    impl OwnerLookup for HostWith {
        fn is_local(&self, address: IpAddr) -> bool {
            address == RESP.ip()
        }

        fn ownership(&mut self, _: SocketAddr, _: SocketAddr) -> Ownership {
            Proc { pid: 7, ..Proc::default() }.into()
        }

        fn kernel_state(&mut self, _: SocketAddr, _: SocketAddr) -> Option<State> {
            Some(self.0)
        }

        fn degraded(&self) -> Option<String> {
            None
        }
    }

    /// What is reported of an end that the wire has in `wire` and its socket in `socket`.
    fn reported(end: End, wire: State, socket: State) -> Anomaly {
        let finding = Conversation::new().finding(end, wire);
        let mut owners = Owners::new(Box::new(HostWith(socket)), Duration::from_secs(1));
        anomaly(&finding, &mut owners, "lo".into(), WallClock::now())
    }

    #[test]
    fn whose_it_is_the_socket_says_not_the_wire() {
        let told = |wire, socket| {
            let Anomaly { proc, unowned, .. } = reported(End::High, wire, socket);
            (proc.map(|proc| proc.pid), unowned.map(|unowned| unowned.why))
        };
        // A forged reset that the receiver's firewall dropped: the program still has it.
        assert_eq!(told(State::Closed, State::Established), (Some(7), None));
        assert_eq!(told(State::TimeWait, State::Established), (Some(7), None));
        assert_eq!(told(State::Established, State::TimeWait), (None, Some(WhyUnowned::TimeWait)));
    }

    #[test]
    fn the_other_ends_owner_is_elsewhere() {
        let Anomaly { proc, unowned, kernel_state, .. } =
            reported(End::Low, State::CloseWait, State::CloseWait);
        assert_eq!((proc, unowned, kernel_state), (None, None, None));
    }
}
