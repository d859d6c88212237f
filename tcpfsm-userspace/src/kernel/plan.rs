//! Which ways of attaching to try, in which order: decided before anything is touched.

use aya::programs::TcAttachType;

use super::{interfaces::Kind, names};
use crate::config::{Ingress, Vantage, XdpMode};

/// A way of seeing packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// XDP in the driver.
    XdpNative,
    /// XDP in the network stack.
    XdpGeneric,
    /// TCX, at the head of the chain (Linux 6.6).
    Tcx,
    /// A filter on the clsact qdisc.
    Clsact,
}

impl Way {
    /// The mode as metrics and messages name it.
    #[must_use]
    pub const fn mode(self) -> &'static str {
        match self {
            Self::XdpNative => "native",
            Self::XdpGeneric => "generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// Whether it takes the interface's one XDP slot.
    #[must_use]
    pub const fn is_xdp(self) -> bool {
        match self {
            Self::XdpNative | Self::XdpGeneric => true,
            Self::Tcx | Self::Clsact => false,
        }
    }
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In.
    Ingress,
    /// Out.
    Egress,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As `tc` names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Our program for it.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Ingress => names::INGRESS,
            Self::Egress => names::EGRESS,
        }
    }

    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Its part of the clsact qdisc (`TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS`).
    pub(super) const fn minor(self) -> u16 {
        match self {
            Self::Ingress => 0xfff2,
            Self::Egress => 0xfff3,
        }
    }
}

/// What a failed attempt says about the ways not tried yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Somebody else's program is in the slot: leave it alone, no XDP here.
    Busy,
    /// Not possible here: try the next way.
    Unsupported,
    /// Not possible at all.
    Fatal,
}

impl Refusal {
    /// Reads the system's answer.
    pub(super) fn from_errno(errno: Option<i32>) -> Self {
        match errno {
            // EBUSY: a program or a link in the slot; EEXIST: one in the other XDP mode, or set by netlink.
            Some(libc::EBUSY | libc::EEXIST) => Self::Busy,
            // 524 is the kernel's own ENOTSUPP, which some drivers let out.
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::ERANGE | libc::ENOMEM | 524) => {
                Self::Unsupported
            }
            _ => Self::Fatal,
        }
    }
}

/// The ways to see incoming packets, best first.
pub(super) fn ingress_ways(ingress: Ingress, mode: XdpMode, kind: Kind) -> Vec<Way> {
    let xdp = match ingress {
        Ingress::Clsact => return vec![Way::Clsact],
        Ingress::Tcx => false,
        Ingress::Xdp => true,
        Ingress::Auto => match kind {
            // What loops back or comes from a container arrives as large segments that native XDP would forbid.
            Kind::Loopback | Kind::Veth => false,
            Kind::Other => true,
        },
    };
    let modes: &[Way] = match mode {
        XdpMode::Auto => &[Way::XdpNative, Way::XdpGeneric],
        XdpMode::Native => &[Way::XdpNative],
        XdpMode::Generic => &[Way::XdpGeneric],
    };
    let xdp_ways = if xdp { modes } else { &[] };
    xdp_ways.iter().copied().chain([Way::Tcx, Way::Clsact]).collect()
}

/// The ways to see outgoing packets, best first.
pub(super) const fn egress_ways(ingress: Ingress) -> &'static [Way] {
    match ingress {
        Ingress::Clsact => &[Way::Clsact],
        Ingress::Auto | Ingress::Xdp | Ingress::Tcx => &[Way::Tcx, Way::Clsact],
    }
}

/// Whether outgoing packets must be seen too.
pub(super) const fn needs_egress(vantage: Vantage, kind: Kind) -> bool {
    match kind {
        // What goes out on the loopback comes in on it: once is enough.
        Kind::Loopback => false,
        Kind::Veth | Kind::Other => match vantage {
            Vantage::Host => true,
            Vantage::Gateway | Vantage::Mirror => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_xdp_on_cards_only() {
        use Way::{Clsact, Tcx, XdpGeneric, XdpNative};
        let auto = |kind| ingress_ways(Ingress::Auto, XdpMode::Auto, kind);
        assert_eq!(auto(Kind::Other), [XdpNative, XdpGeneric, Tcx, Clsact]);
        assert_eq!(auto(Kind::Veth), [Tcx, Clsact]);
        assert_eq!(auto(Kind::Loopback), [Tcx, Clsact]);
        assert_eq!(
            ingress_ways(Ingress::Xdp, XdpMode::Generic, Kind::Veth),
            [XdpGeneric, Tcx, Clsact],
            "asked for by name, XDP is tried even on a veth"
        );
        assert_eq!(ingress_ways(Ingress::Tcx, XdpMode::Auto, Kind::Other), [Tcx, Clsact]);
        assert_eq!(ingress_ways(Ingress::Clsact, XdpMode::Auto, Kind::Other), [Clsact]);
        assert_eq!(egress_ways(Ingress::Auto), [Tcx, Clsact]);
        assert_eq!(egress_ways(Ingress::Clsact), [Clsact], "asked for by name, it is for both ways");
    }

    #[test]
    fn egress_is_for_hosts() {
        assert!(needs_egress(Vantage::Host, Kind::Other));
        assert!(needs_egress(Vantage::Host, Kind::Veth));
        assert!(!needs_egress(Vantage::Host, Kind::Loopback));
        assert!(!needs_egress(Vantage::Gateway, Kind::Other));
        assert!(!needs_egress(Vantage::Mirror, Kind::Other));
    }

    #[test]
    fn a_taken_slot_is_not_a_missing_feature() {
        assert_eq!(Refusal::from_errno(Some(libc::EBUSY)), Refusal::Busy);
        assert_eq!(Refusal::from_errno(Some(libc::EOPNOTSUPP)), Refusal::Unsupported);
        assert_eq!(Refusal::from_errno(Some(libc::EPERM)), Refusal::Fatal);
        assert_eq!(Refusal::from_errno(None), Refusal::Fatal);
    }
}
