//! From a frame to the segment, or the ICMP error, in it.

use tcpfsm_common::{
    flow::{End, FlowKey},
    packet::{IcmpError, Network, Packet, PacketBytes, Parsed, Skip, parse_network},
    segment::Segment,
};

use super::{
    capture::Frame,
    fragments::{Fragment, Fragments},
    link,
    tracker::Want,
};

/// What a frame says of a flow.
pub(super) enum Said {
    /// A TCP segment.
    Segment {
        /// Whose.
        key: FlowKey,
        /// Which end sent it.
        sender: End,
        /// What it says.
        segment: Segment,
        /// Whether all of its payload was captured.
        complete: bool,
    },
    /// An ICMP error about a segment that `quoted` sent.
    Icmp {
        /// Whose segment.
        key: FlowKey,
        /// Which end's segment.
        quoted: End,
        /// What it says.
        error: IcmpError,
    },
    /// Nothing yet: a fragment, kept until the others come.
    Fragment,
}

/// Reads frames.
pub(super) struct Decoder {
    fragments: Option<Fragments>,
}

impl Decoder {
    /// For packets, frames are read as the kernel programs read them; for connections, fragments are put
    /// together first.
    pub(super) fn new(want: Want) -> Self {
        Self { fragments: (want == Want::Connections).then(Fragments::default) }
    }

    #[inline]
    pub(super) fn decode(&mut self, frame: &Frame<'_>) -> Result<Said, Skip> {
        let bytes = frame.bytes;
        let (network, offset) = link::locate(frame.link, bytes)?;
        let end = match network {
            Network::Ipv4 => match usize::from(bytes.u16(offset + 2).ok_or(Skip::Truncated)?) {
                0 => frame.wire_len,
                len => offset + len,
            },
            Network::Ipv6 => match usize::from(bytes.u16(offset + 4).ok_or(Skip::Truncated)?) {
                0 => frame.wire_len,
                len => offset + 40 + len,
            },
        };
        if end > frame.wire_len {
            // The frame is shorter than its IP header says: every receiver drops such a packet.
            return Err(Skip::BadHeader);
        }
        if let Some(fragments) = &mut self.fragments
            && let Some(packet) = bytes.get(offset..end)
            && let Some(fragment) = Fragment::parse(network, packet)
        {
            return match fragments.add(&fragment, frame.time) {
                Some(whole) => Ok(said(parse_network(&whole, network, 0, whole.len())?, true)),
                None => Ok(Said::Fragment),
            };
        }
        Ok(said(parse_network(&bytes, network, offset, frame.wire_len)?, end <= bytes.len()))
    }
}

fn said(parsed: Parsed, complete: bool) -> Said {
    match parsed {
        Parsed::V4(Packet::Tcp(ends, segment)) => {
            let (key, sender) = ends.key(0);
            Said::Segment { key: FlowKey::V4(key), sender, segment, complete }
        }
        Parsed::V6(Packet::Tcp(ends, segment)) => {
            let (key, sender) = ends.key(0);
            Said::Segment { key: FlowKey::V6(key), sender, segment, complete }
        }
        Parsed::V4(Packet::Icmp(ends, error)) => {
            let (key, quoted) = ends.key(0);
            Said::Icmp { key: FlowKey::V4(key), quoted, error }
        }
        Parsed::V6(Packet::Icmp(ends, error)) => {
            let (key, quoted) = ends.key(0);
            Said::Icmp { key: FlowKey::V6(key), quoted, error }
        }
    }
}
