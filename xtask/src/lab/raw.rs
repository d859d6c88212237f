//! Frames in and out of a namespace, past its TCP/IP stack.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::netdevice::name_to_index;

use super::Netns;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct RawPort {
    socket: OwnedFd,
}

impl RawPort {
    /// Opens one on `iface` inside `namespace`.
    pub fn open(namespace: &Netns, iface: &str) -> Result<Self> {
        namespace.run(|| open_here(iface))?.with_context(|| format!("packet socket on {iface}"))
    }

    /// From now on every frame comes and goes behind a `virtio_net_hdr`, so that checksums and segmentation that are
    /// left to the device survive the way through this process; and only frames that come in are seen.
    pub fn keep_offloads(&self) -> Result<()> {
        for (option, what) in [
            (libc::PACKET_VNET_HDR, "PACKET_VNET_HDR"),
            (libc::PACKET_IGNORE_OUTGOING, "PACKET_IGNORE_OUTGOING"),
        ] {
            let on: libc::c_int = 1;
            #[expect(clippy::cast_possible_truncation, reason = "4 bytes")]
            let length = size_of_val(&on) as libc::socklen_t;
            // SAFETY: `on` is an int of `length` bytes, and outlives the call.
            let result = unsafe {
                libc::setsockopt(
                    self.socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    option,
                    (&raw const on).cast(),
                    length,
                )
            };
            if result != 0 {
                return Err(io::Error::last_os_error()).context(what);
            }
        }
        Ok(())
    }

    /// Sends a whole frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        rustix::net::send(&self.socket, frame, rustix::net::SendFlags::empty()).context("send frame")?;
        Ok(())
    }

    /// The next frame, in either direction; none if `deadline` passes before.
    pub fn receive(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0_u8; 65536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Zero would mean "for ever".
            let timeout = left.max(Duration::from_millis(1));
            rustix::net::sockopt::set_socket_timeout(
                &self.socket,
                rustix::net::sockopt::Timeout::Recv,
                Some(timeout),
            )
            .context("set timeout")?;
            match rustix::net::recv(&self.socket, &mut buffer[..], rustix::net::RecvFlags::empty()) {
                Ok((_, length)) => {
                    buffer.truncate(length);
                    return Ok(Some(buffer));
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("receive frame"),
            }
        }
    }
}

impl AsFd for RawPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open_here(iface: &str) -> Result<RawPort> {
    #[expect(clippy::cast_possible_truncation, reason = "ETH_P_ALL is 3")]
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket(2) takes no pointers.
    let raw =
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    if raw < 0 {
        return Err(io::Error::last_os_error()).context("socket");
    }
    // SAFETY: the descriptor was opened above and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let index = name_to_index(&socket, iface).with_context(|| format!("no interface {iface}"))?;
    // SAFETY: zero is a valid value of every field of sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    #[expect(clippy::cast_possible_truncation, reason = "AF_PACKET is 17")]
    let family = libc::AF_PACKET as u16;
    address.sll_family = family;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index).context("interface index")?;
    #[expect(clippy::cast_possible_truncation, reason = "20 bytes")]
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `length` bytes, and outlives the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("bind");
    }
    Ok(RawPort { socket })
}
