//! The least parse that finds a flow: Ethernet, IP, TCP with bounds checks, and the endpoints in order.

use crate::memory::{load8, load16, load32};

const IPV4: u64 = 0x0800_u16.to_be() as u64;
const IPV6: u64 = 0x86dd_u16.to_be() as u64;
const TCP: u64 = 6;
const FRAGMENT: u64 = 0x3fff_u16.to_be() as u64;

/// An IPv4 flow.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Key16 {
    addr: [u32; 2],
    ports: u32,
    proto: u32,
}

/// An IPv6 flow.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Key40 {
    addr: [[u32; 4]; 2],
    ports: u32,
    proto: u32,
}

/// The key of an IPv4 TCP packet.
#[inline(always)]
pub(crate) fn key16(data: usize, end: usize) -> Option<Key16> {
    let ip = data + 14;
    if ip + 20 > end {
        return None;
    }
    // SAFETY: each load comes after the check that covers it.
    unsafe {
        if load16::<12>(data) != IPV4
            || load8::<0>(ip) >> 4 != 4
            || load8::<9>(ip) != TCP
            || load16::<6>(ip) & FRAGMENT != 0
        {
            return None;
        }
        let header = (load8::<0>(ip) & 15) as usize * 4;
        if header < 20 {
            return None;
        }
        let tcp = ip + header;
        if tcp + 20 > end || load8::<12>(tcp) >> 4 < 5 {
            return None;
        }
        let (src, dst) = (load32::<12>(ip) as u32, load32::<16>(ip) as u32);
        let ports = load32::<0>(tcp) as u32;
        let swap = src > dst || (src == dst && ports & 0xffff > ports >> 16);
        Some(if swap {
            Key16 { addr: [dst, src], ports: ports.rotate_left(16), proto: TCP as u32 }
        } else {
            Key16 { addr: [src, dst], ports, proto: TCP as u32 }
        })
    }
}

/// The key of an IPv6 TCP packet without extension headers.
#[inline(always)]
pub(crate) fn key40(data: usize, end: usize) -> Option<Key40> {
    let ip = data + 14;
    let tcp = ip + 40;
    if tcp + 20 > end {
        return None;
    }
    // SAFETY: the check above covers every load.
    unsafe {
        if load16::<12>(data) != IPV6
            || load8::<0>(ip) >> 4 != 6
            || load8::<6>(ip) != TCP
            || load8::<12>(tcp) >> 4 < 5
        {
            return None;
        }
        let src = [
            load32::<8>(ip) as u32,
            load32::<12>(ip) as u32,
            load32::<16>(ip) as u32,
            load32::<20>(ip) as u32,
        ];
        let dst = [
            load32::<24>(ip) as u32,
            load32::<28>(ip) as u32,
            load32::<32>(ip) as u32,
            load32::<36>(ip) as u32,
        ];
        let ports = load32::<0>(tcp) as u32;
        let swap = if src[3] != dst[3] {
            src[3] > dst[3]
        } else if src[2] != dst[2] {
            src[2] > dst[2]
        } else if src[1] != dst[1] {
            src[1] > dst[1]
        } else if src[0] != dst[0] {
            src[0] > dst[0]
        } else {
            ports & 0xffff > ports >> 16
        };
        Some(if swap {
            Key40 { addr: [dst, src], ports: ports.rotate_left(16), proto: TCP as u32 }
        } else {
            Key40 { addr: [src, dst], ports, proto: TCP as u32 }
        })
    }
}
