//! Makes the next packet of a plan out of the frame, then calls the measured program, which is thus measured unchanged.

use crate::{
    maps::PLAN,
    memory::{load8, store32},
    plan::{CLIENT_PORTS, CLIENTS, Plan, SERVER, SERVER_PORT, STEPS, Step},
};

/// Of an IPv6 header.
const TCP: u64 = 6;
const HOPS: u64 = 64;

/// Writes the next packet into a frame whose IPv4 header is at `AT`.
#[inline(always)]
pub(crate) fn vary4<const AT: usize>(data: usize, end: usize) {
    let Some(Packet { flow, turn, id, step }) = next() else { return };
    let ip = data + AT;
    if ip + 40 > end {
        return;
    }
    let client = u64::from((CLIENTS + (flow >> 14)).to_be());
    let server = u64::from(SERVER.to_be());
    let (src, dst) = if step.reverse == 0 { (client, server) } else { (server, client) };
    // SAFETY: the check above covers every store.
    unsafe {
        store32::<2>(ip, be16(step.len) | be16(id) << 16);
        store32::<12>(ip, src);
        store32::<16>(ip, dst);
    }
    tcp(ip + 20, flow, turn, step);
}

/// The same for an IPv6 header.
#[inline(always)]
pub(crate) fn vary6<const AT: usize>(data: usize, end: usize) {
    let Some(Packet { flow, turn, step, id: _ }) = next() else { return };
    let ip = data + AT;
    if ip + 60 > end {
        return;
    }
    let client = u64::from((CLIENTS + (flow >> 14)).to_be());
    let server = u64::from(SERVER.to_be());
    let (src, dst) = if step.reverse == 0 { (client, server) } else { (server, client) };
    // SAFETY: the check above covers every store.
    unsafe {
        store32::<4>(ip, be16(step.len) | TCP << 16 | HOPS << 24);
        // All in one network: 2001:db8::/96.
        store32::<20>(ip, src);
        store32::<36>(ip, dst);
    }
    tcp(ip + 40, flow, turn, step);
}

/// One packet of a plan.
struct Packet {
    flow: u32,
    turn: u32,
    /// The IPv4 identification: another one than that of the flow's packet before.
    id: u32,
    step: &'static Step,
}

/// The next packet.
#[inline(always)]
fn next() -> Option<Packet> {
    let plan = PLAN.get_ptr_mut(0)?;
    // SAFETY: the map's one element; one CPU runs one plan.
    let Plan { unit, mask, turn_shift, mix_shift, first, step, steps, spare: _, script } =
        unsafe { &mut *plan };
    let now = *unit;
    let at = *step;
    if at + 1 >= *steps {
        *step = 0;
        *unit = now + 1;
    } else {
        *step = at + 1;
    }
    let mut flow = now & *mask;
    if *mix_shift != 0 {
        // A bijection on as many bits as the mask has.
        flow = flow.wrapping_mul(0x9e37_79b1) & *mask;
        flow ^= flow >> (*mix_shift & 63);
        flow = flow.wrapping_mul(0x85eb_ca6b) & *mask;
        flow ^= flow >> (*mix_shift & 63);
    }
    let turn = (now >> (*turn_shift & 63)) as u32;
    Some(Packet {
        flow: *first + flow as u32,
        turn,
        // Another one than a shorter or longer script has left behind.
        id: (*steps << 8) + turn.wrapping_mul(*steps) + at + 1,
        step: &script[at as usize & (STEPS - 1)],
    })
}

#[inline(always)]
fn tcp(tcp: usize, flow: u32, turn: u32, step: &Step) {
    let client = be16(CLIENT_PORTS + (flow & 0x3fff));
    let server = u64::from(SERVER_PORT.to_be());
    let (src, dst) = if step.reverse == 0 { (client, server) } else { (server, client) };
    let seq = step.seq.wrapping_add(turn.wrapping_mul(step.seq_turn));
    let ack = step.ack.wrapping_add(turn.wrapping_mul(step.ack_turn));
    // SAFETY: the callers' checks cover the TCP header.
    unsafe {
        store32::<0>(tcp, src | dst << 16);
        store32::<4>(tcp, u64::from(seq.to_be()));
        store32::<8>(tcp, u64::from(ack.to_be()));
        let offset = load8::<12>(tcp);
        store32::<12>(tcp, offset | u64::from(step.flags) << 8 | be16(step.window) << 16);
    }
}

#[inline(always)]
fn be16(value: u32) -> u64 {
    u64::from((value as u16).to_be())
}
