//! Programs onto interfaces, never at anybody else's expense.
//!
//! XDP has one slot per interface: if it is taken, ingress is seen through TCX instead. TCX has a chain: ours
//! stand at its head and pass every packet on to the next.

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, Xdp, XdpMode,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
    xdp::{XdpError, XdpLink},
};
use tcpfsm_common::abi::Hook;
use tracing::{info, warn};

use super::{
    chain, filters,
    interfaces::Interface,
    loader::Kernel,
    plan::{Refusal, Side, Way, egress_ways, ingress_ways, needs_egress},
    probe,
};
use crate::{
    config::{self, Config},
    error::{Error, Result},
};

/// How many priorities of clsact filters are tried.
const PRIORITIES: u16 = 32;

/// One program on one interface; detached when dropped.
#[derive(Debug)]
pub struct Attachment {
    /// The interface.
    pub interface: Interface,
    /// Where packets are seen.
    pub hook: Hook,
    /// In which way.
    pub way: Way,
    _link: Link,
}

/// What keeps a program attached.
#[derive(Debug)]
#[expect(dead_code, reason = "held for their Drop, which detaches")]
enum Link {
    Xdp(XdpLink),
    Classifier(SchedClassifierLink),
}

/// Attaches everything the configuration asks for.
///
/// # Errors
/// An interface does not exist, or nothing could be attached to it. What was attached before is detached.
pub fn attach(kernel: &mut Kernel, config: &Config) -> Result<Vec<Attachment>> {
    if config.interfaces.is_empty() {
        return Err(Error::NoInterface { known: super::interfaces::names() });
    }
    let interfaces: Vec<_> =
        config.interfaces.iter().map(|name| Interface::find(name)).collect::<Result<_>>()?;
    let mut attachments: Vec<Attachment> = Vec::new();
    for interface in interfaces {
        if attachments.iter().any(|other| other.interface.index == interface.index) {
            continue;
        }
        if !interface.up {
            warn!("{} is down: nothing to see until it is up", interface.name);
        }
        // Egress first: without it the first packets in would look one-sided.
        let egress = if needs_egress(config.vantage, interface.kind) {
            Some(attach_egress(kernel, config, &interface)?)
        } else {
            None
        };
        let ingress = attach_ingress(kernel, config, &interface)?;
        announce(&interface, &ingress, egress.as_ref());
        attachments.push(ingress);
        attachments.extend(egress);
    }
    Ok(attachments)
}

fn announce(interface: &Interface, ingress: &Attachment, egress: Option<&Attachment>) {
    let ingress_name =
        if ingress.way.is_xdp() { format!("XDP {}", ingress.way.mode()) } else { ingress.way.mode().into() };
    match egress {
        Some(egress) => info!("{}: ingress {ingress_name}, egress {}", interface.name, egress.way.mode()),
        None => {
            info!("{}: ingress {ingress_name}, no egress (each packet comes in here once)", interface.name)
        }
    }
}

fn attach_ingress(kernel: &mut Kernel, config: &Config, interface: &Interface) -> Result<Attachment> {
    let mut ways = ingress_ways(config.ingress, config.xdp_mode, interface.kind);
    let mut refusals = Vec::new();
    while !ways.is_empty() {
        let way = ways.remove(0);
        let attempt = match way {
            Way::XdpNative => try_xdp(kernel, interface, XdpMode::Driver),
            Way::XdpGeneric => try_xdp(kernel, interface, XdpMode::Skb),
            Way::Tcx => try_tcx(kernel, interface, Side::Ingress),
            Way::Clsact => try_clsact(kernel, interface, Side::Ingress),
        };
        let attempt = match attempt {
            // An old verifier, say: the other program may pass where this one does not.
            Err(error) if way.is_xdp() && config.ingress == config::Ingress::Auto => {
                warn!("{}: {error}; ingress is seen through TC instead", interface.name);
                refusals.push(format!("{}: {error}", describe(way)));
                ways.retain(|way| !way.is_xdp());
                continue;
            }
            attempt => attempt?,
        };
        let refused = match attempt {
            Ok(link) => {
                let hook = if way.is_xdp() { Hook::Xdp } else { Hook::TcIngress };
                return Ok(Attachment { interface: interface.clone(), hook, way, _link: link });
            }
            Err(refused) => refused,
        };
        let Refused { refusal, cause } = refused;
        match refusal {
            Refusal::Busy => {
                warn!(
                    "{}: the XDP slot holds somebody else's program, which stays; ingress is seen through TC instead",
                    interface.name
                );
                ways.retain(|way| !way.is_xdp());
            }
            Refusal::Unsupported if way.is_xdp() && config.xdp_mode == config::XdpMode::Native => {
                // Asked for by name: another mode would not be what was asked for.
                refusals.push(format!("XDP native: {cause}"));
                break;
            }
            Refusal::Unsupported => info!("{}: no {}: {cause}", interface.name, describe(way)),
            Refusal::Fatal => ways.clear(),
        }
        refusals.push(format!("{}: {cause}", describe(way)));
    }
    Err(attach_error(interface, &refusals))
}

fn attach_egress(kernel: &mut Kernel, config: &Config, interface: &Interface) -> Result<Attachment> {
    let mut refusals = Vec::new();
    for &way in egress_ways(config.ingress) {
        let attempt = match way {
            Way::Clsact => try_clsact(kernel, interface, Side::Egress)?,
            Way::Tcx | Way::XdpNative | Way::XdpGeneric => try_tcx(kernel, interface, Side::Egress)?,
        };
        match attempt {
            Ok(link) => {
                return Ok(Attachment {
                    interface: interface.clone(),
                    hook: Hook::TcEgress,
                    way,
                    _link: link,
                });
            }
            Err(Refused { refusal, cause }) => {
                refusals.push(format!("{}: {cause}", describe(way)));
                if matches!(refusal, Refusal::Fatal) {
                    break;
                }
            }
        }
    }
    Err(attach_error(interface, &refusals))
}

fn attach_error(interface: &Interface, refusals: &[String]) -> Error {
    Error::Attach {
        interface: interface.name.clone(),
        cause: refusals.join("; "),
        remedy:
            "--ingress auto --xdp-mode auto lets tcpfsm choose the way; `tcpfsm detach` takes away what an \
                 earlier run may have left"
                .into(),
    }
}

const fn describe(way: Way) -> &'static str {
    match way {
        Way::XdpNative => "native XDP",
        Way::XdpGeneric => "generic XDP",
        Way::Tcx => "TCX",
        Way::Clsact => "clsact",
    }
}

/// A way that was refused, and why.
struct Refused {
    refusal: Refusal,
    cause: String,
}

fn try_xdp(kernel: &mut Kernel, interface: &Interface, mode: XdpMode) -> Result<Result<Link, Refused>> {
    if !probe::has_multi_buffer_xdp() {
        let cause = "needs Linux 5.18 (multi-buffer XDP)".to_owned();
        return Ok(Err(Refused { refusal: Refusal::Unsupported, cause }));
    }
    let program: &mut Xdp = kernel.xdp()?;
    let attempt =
        program.attach_to_if_index(interface.index, mode).and_then(|id| program.take_link(id)).map(Link::Xdp);
    Ok(attempt.map_err(|error| refused(&error)))
}

fn try_tcx(kernel: &mut Kernel, interface: &Interface, side: Side) -> Result<Result<Link, Refused>> {
    if !probe::has_tcx(&interface.name) {
        let cause = "needs Linux 6.6".to_owned();
        return Ok(Err(Refused { refusal: Refusal::Unsupported, cause }));
    }
    classifier(kernel, interface, side, || TcAttachOptions::TcxOrder(LinkOrder::first()))
}

fn try_clsact(kernel: &mut Kernel, interface: &Interface, side: Side) -> Result<Result<Link, Refused>> {
    match tc::qdisc_add_clsact(&interface.name) {
        Ok(()) => {}
        // Somebody's, or our own from before: filters share it. The older ingress qdisc has the same place, and would take an
        // egress filter for one on ingress.
        Err(error) if tc_errno(&error) == Some(libc::EEXIST) => {
            if side == Side::Egress && filters::kind(interface)?.is_some_and(|kind| kind != "clsact") {
                let cause = format!(
                    "an ingress qdisc is in the place of clsact, and it has no egress (tc qdisc del dev {} ingress)",
                    interface.name
                );
                return Ok(Err(Refused { refusal: Refusal::Unsupported, cause }));
            }
        }
        Err(error) => {
            let refusal = Refusal::from_errno(tc_errno(&error));
            return Ok(Err(Refused { refusal, cause: format!("no clsact qdisc: {}", chain(&error)) }));
        }
    }
    if let Err(error) = clear_up(interface, side) {
        warn!("{}: what an earlier tcpfsm may have left stays: {error}", interface.name);
    }
    // Priority 1 comes first; a filter of eBPF's for all protocols that is there at 1 keeps its handle, and ours gets the next.
    // Others have their priority for themselves.
    let mut refused = None;
    for priority in 1..=PRIORITIES {
        let options = || TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() });
        match classifier(kernel, interface, side, options)? {
            Ok(link) => {
                if priority > 1 {
                    warn!(
                        "{}: other {} filters come before ours: what they drop or redirect is not seen",
                        interface.name,
                        side.name()
                    );
                }
                return Ok(Ok(link));
            }
            Err(Refused { refusal: Refusal::Unsupported, cause }) => refused = Some(cause),
            Err(refused) => return Ok(Err(refused)),
        }
    }
    Ok(Err(Refused { refusal: Refusal::Unsupported, cause: refused.unwrap_or_default() }))
}

/// Takes away the filters that a killed daemon left: each packet would pass its programs too, for nothing.
fn clear_up(interface: &Interface, side: Side) -> Result<()> {
    let filters = filters::on(interface, side)?;
    if filters.is_empty() {
        return Ok(());
    }
    let holders = filters::Holders::look();
    for filter in filters {
        if holders.left(&filter) {
            filter.remove()?;
            info!("{}: removed the {filter} that an earlier tcpfsm left", interface.name);
        } else if holders.of(&filter).is_none() {
            warn!(
                "{}: there is a {filter}, and whether its daemon runs cannot be seen from here; \
                 if it does not, `tcpfsm detach` removes it",
                interface.name
            );
        }
    }
    Ok(())
}

fn classifier(
    kernel: &mut Kernel,
    interface: &Interface,
    side: Side,
    options: impl Fn() -> TcAttachOptions,
) -> Result<Result<Link, Refused>> {
    let program: &mut SchedClassifier = kernel.classifier(side.program())?;
    let attempt = program
        .attach_with_options(&interface.name, side.attach_type(), options())
        .and_then(|id| program.take_link(id))
        .map(Link::Classifier);
    Ok(attempt.map_err(|error| refused(&error)))
}

fn refused(error: &ProgramError) -> Refused {
    let errno = errno(error);
    let cause = match errno {
        Some(errno) => crate::error::describe(&std::io::Error::from_raw_os_error(errno)),
        None => chain(error),
    };
    Refused { refusal: Refusal::from_errno(errno), cause }
}

/// The system's answer inside aya's error.
pub(super) fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(XdpError::NetlinkError(error)) | ProgramError::NetlinkError(error) => {
            error.raw_os_error()
        }
        ProgramError::TcError(error) => tc_errno(error),
        ProgramError::IOError(error) => error.raw_os_error(),
        _ => None,
    }
}

/// The system's answer inside aya's error.
fn tc_errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}
