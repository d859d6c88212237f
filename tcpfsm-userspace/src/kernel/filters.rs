//! Our filters on clsact qdiscs: unlike all else that is attached they outlive a daemon that was killed.
//!
//! Whose one is, its program tells: a daemon that runs holds its programs open.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::Path,
};

use aya::programs::{
    Link as _,
    tc::{SchedClassifierLink, TcHandle},
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle as Parent, TcMessage, TcOption},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{attach::errno, chain, interfaces::Interface, plan::Side};
use crate::{
    error::{Error, Result},
    host::sees_every_pid,
    netlink::{Channel, Scope},
};

/// More filters than anybody has on an interface.
const MAX_FILTERS: usize = 65_536;

/// A filter of ours, or of an earlier daemon.
#[derive(Debug, PartialEq, Eq)]
pub struct Filter {
    interface: String,
    side: Side,
    priority: u16,
    handle: u32,
    program: u32,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clsact {} filter {}", self.side.name(), self.side.program())
    }
}

impl Filter {
    /// Takes it away.
    ///
    /// # Errors
    /// The system refused.
    pub fn remove(&self) -> Result<()> {
        let Self { interface, side, priority, handle, program: _ } = self;
        let refused = |cause: String| Error::Attach {
            interface: interface.clone(),
            cause: format!("cannot remove the {} filter: {cause}", side.name()),
            remedy: format!("tc filter del dev {interface} {}", side.name()),
        };
        let handle = TcHandle::from(*handle);
        let link = SchedClassifierLink::attached(interface, side.attach_type(), *priority, handle, None)
            .map_err(|error| refused(error.to_string()))?;
        match link.detach() {
            Ok(()) => Ok(()),
            // Somebody else was first.
            Err(error) if is_absence(errno(&error)) => Ok(()),
            Err(error) => Err(refused(chain(&error))),
        }
    }

    fn parse(message: RouteNetlinkMessage, interface: &str, side: Side) -> Option<Self> {
        let RouteNetlinkMessage::NewTrafficFilter(TcMessage { header, attributes, .. }) = message else {
            return None;
        };
        let (mut program, mut is_ours) = (None, false);
        for attribute in attributes {
            let TcAttribute::Options(options) = attribute else { continue };
            for option in options {
                match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => is_ours = name == side.program(),
                    TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(id),
                    _ => {}
                }
            }
        }
        Some(Self {
            interface: interface.to_owned(),
            side,
            priority: (header.info >> 16) as u16,
            handle: header.handle.into(),
            program: program.filter(|_| is_ours)?,
        })
    }
}

/// No such filter, no clsact qdisc, no such interface any more.
fn is_absence(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ENOENT | libc::EINVAL | libc::ENODEV | libc::ENXIO | libc::EOPNOTSUPP))
}

/// The filters of that kind on one side of an interface.
///
/// # Errors
/// The system does not tell.
pub fn on(interface: &Interface, side: Side) -> Result<Vec<Filter>> {
    let mut message = TcMessage::with_index(interface.index.cast_signed());
    message.header.parent = Parent { major: 0xffff, minor: side.minor() };
    let request = RouteNetlinkMessage::GetTrafficFilter(message);
    let parse = |message| Filter::parse(message, &interface.name, side);
    match Channel::new(NETLINK_ROUTE).ask(&request, Scope::Dump, MAX_FILTERS, parse) {
        Err(error) if is_absence(error.raw_os_error()) => Ok(Vec::new()),
        filters => filters.map_err(Error::io(format!("list the filters of {}", interface.name))),
    }
}

/// What kind of qdisc is where clsact would be; none where there is none.
///
/// # Errors
/// The system does not tell.
pub fn kind(interface: &Interface) -> Result<Option<String>> {
    let message = TcMessage::with_index(interface.index.cast_signed());
    let parse = |answer| {
        let RouteNetlinkMessage::NewQueueDiscipline(TcMessage { header, attributes, .. }) = answer else {
            return None;
        };
        let is_it = header.index == interface.index.cast_signed() && header.parent == Parent::CLSACT;
        attributes.into_iter().filter(|_| is_it).find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind),
            _ => None,
        })
    };
    let request = RouteNetlinkMessage::GetQueueDiscipline(message);
    let kinds = Channel::new(NETLINK_ROUTE)
        .ask(&request, Scope::Dump, MAX_FILTERS, parse)
        .map_err(Error::io(format!("list the qdiscs of {}", interface.name)))?;
    Ok(kinds.into_iter().next())
}

/// Which processes hold programs open, as far as `/proc` shows it.
#[derive(Debug)]
pub struct Holders {
    by_program: BTreeMap<u32, u32>,
    /// Whether there may be others.
    hidden: bool,
}

impl Holders {
    /// Looks at what all processes hold.
    #[must_use]
    pub fn look() -> Self {
        let mut holders = Self { by_program: BTreeMap::new(), hidden: !sees_every_pid() };
        let Ok(processes) = fs::read_dir("/proc") else {
            return Self { hidden: true, ..holders };
        };
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match programs_of(&process.path()) {
                Ok(programs) => holders.by_program.extend(programs.into_iter().map(|program| (program, pid))),
                Err(error) => holders.hidden |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
        holders
    }

    /// The process that holds the program of a filter.
    #[must_use]
    pub fn of(&self, filter: &Filter) -> Option<u32> {
        self.by_program.get(&filter.program).copied()
    }

    /// Whether a filter is certainly nobody's any more.
    #[must_use]
    pub fn left(&self, filter: &Filter) -> bool {
        !self.hidden && self.of(filter).is_none()
    }
}

/// The numbers of the programs that a process holds.
fn programs_of(process: &Path) -> io::Result<BTreeSet<u32>> {
    let mut programs = BTreeSet::new();
    for entry in fs::read_dir(process.join("fd"))?.flatten() {
        if !fs::read_link(entry.path()).is_ok_and(|what| what.as_os_str() == "anon_inode:bpf-prog") {
            continue;
        }
        let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
        programs.extend::<Option<u32>>(id);
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::tc::TcFilterBpf;

    use super::*;

    fn message(kind: &str, name: &str) -> RouteNetlinkMessage {
        let mut message = TcMessage::with_index(7);
        message.header.handle = 3_u32.into();
        message.header.info = 1 << 16 | 0x0300;
        message.attributes = vec![
            TcAttribute::Kind(kind.into()),
            TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgName(name.into())),
                TcOption::Bpf(TcFilterBpfOption::ProgId(42)),
            ]),
        ];
        RouteNetlinkMessage::NewTrafficFilter(message)
    }

    #[test]
    fn ours_are_known_by_their_program() {
        let found = Filter::parse(message(TcFilterBpf::KIND, "tcpfsm_egress"), "eth0", Side::Egress).unwrap();
        let expected =
            Filter { interface: "eth0".into(), side: Side::Egress, priority: 1, handle: 3, program: 42 };
        assert_eq!(found, expected);
        assert_eq!(found.to_string(), "clsact egress filter tcpfsm_egress");
        assert_eq!(Filter::parse(message(TcFilterBpf::KIND, "cil_to_netdev"), "eth0", Side::Egress), None);
        let deleted = RouteNetlinkMessage::DelTrafficFilter(TcMessage::with_index(7));
        assert_eq!(Filter::parse(deleted, "eth0", Side::Egress), None);
    }

    #[test]
    fn what_somebody_holds_or_may_hold_is_not_left() {
        let filter =
            Filter::parse(message(TcFilterBpf::KIND, "tcpfsm_egress"), "eth0", Side::Egress).unwrap();
        let holders = |by_program: &[(u32, u32)], hidden| Holders {
            by_program: by_program.iter().copied().collect(),
            hidden,
        };
        assert!(holders(&[(41, 1000)], false).left(&filter));
        assert!(!holders(&[(42, 1000)], false).left(&filter));
        assert_eq!(holders(&[(42, 1000)], false).of(&filter), Some(1000));
        assert!(!holders(&[], true).left(&filter));
    }
}
