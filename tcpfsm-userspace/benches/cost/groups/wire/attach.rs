//! Programs put on the lab's watched interface. Whoever attaches is in its namespace.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::XdpLink,
    },
};
use xtask::lab::IFACE_A;

/// What keeps a program attached; dropped, it is detached.
#[expect(dead_code, reason = "held for their Drop")]
pub enum Link {
    Tcx(SchedClassifierLink),
    Xdp(XdpLink),
}

/// On one side by TCX; the program is loaded.
pub fn tcx(ebpf: &mut Ebpf, name: &str, side: TcAttachType) -> Result<Link> {
    let program: &mut SchedClassifier = ebpf.program_mut(name).context("no such program")?.try_into()?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let link = program.attach_with_options(IFACE_A, side, options)?;
    Ok(Link::Tcx(program.take_link(link)?))
}

/// In the driver by XDP; the program is loaded.
pub fn xdp(ebpf: &mut Ebpf, name: &str) -> Result<Link> {
    let program: &mut Xdp = ebpf.program_mut(name).context("no such program")?.try_into()?;
    let link = program.attach(IFACE_A, XdpMode::Driver)?;
    Ok(Link::Xdp(program.take_link(link)?))
}
