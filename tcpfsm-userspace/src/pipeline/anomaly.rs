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
