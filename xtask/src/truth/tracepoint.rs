//! The truth: every `sock:inet_sock_set_state` of the run's connections, while it runs.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tcpfsm_common::fsm::State;

use super::perf::{self, Record, Ring};

const TRACEFS: &str = "/sys/kernel/tracing";
const EVENT: &str = "events/sock/inet_sock_set_state";
/// Between two looks into the buffers; 8 MiB of them hold 95,000 records of each CPU.
const NAP: Duration = Duration::from_millis(10);

/// A full socket went from one state to another.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub at: u64,
    /// Which socket: its address in the kernel, used again once it has closed.
    pub socket: u64,
    pub from: State,
    pub to: State,
    /// Address and port of its own; port 0 where the kernel has not chosen yet.
    pub local: SocketAddr,
    /// Its peer's; zero in a listener's child that is just being made.
    pub remote: SocketAddr,
}

/// What was recorded.
#[derive(Debug, Default)]
pub struct Recording {
    /// In the order of time.
    pub changes: Vec<Change>,
    /// Records that found no room in the buffers.
    pub lost: u64,
}

/// The recorder at work.
#[derive(Debug)]
pub struct Recorder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Recording>>,
}

impl Recorder {
    /// Records the sockets whose port, or whose peer's, is one of these.
    pub fn start(ports: std::ops::RangeInclusive<u16>) -> Result<Self> {
        let (first, last) = (ports.start(), ports.end());
        let filter =
            ["sport", "dport"].map(|port| format!("({port} >= {first} && {port} <= {last})")).join(" || ");
        let layout = Layout::read()?;
        let rings = perf::open(layout.id, &filter)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("truth".to_owned())
            .spawn(move || record(rings, &layout, &stopping))
            .context("start a thread")?;
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) -> Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| bail!("the recorder's thread panicked"))
    }
}

fn record(mut rings: Vec<Ring>, layout: &Layout, stop: &AtomicBool) -> Result<Recording> {
    let mut recording = Recording::default();
    loop {
        // Asked before the last look, so that nothing that happened earlier stays behind.
        let last = stop.load(Ordering::Relaxed);
        for ring in &mut rings {
            ring.drain(|record| match record {
                Record::Lost(count) => recording.lost += count,
                Record::Sample(at, fields) => recording.changes.extend(layout.change(at, fields)),
            })?;
        }
        if last {
            break;
        }
        thread::sleep(NAP);
    }
    recording.changes.sort_by_key(|change| change.at);
    Ok(recording)
}

/// The tracepoint's number, and where its fields are.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    id: u64,
    socket: usize,
    from: usize,
    to: usize,
    ports: [usize; 2],
    family: usize,
    v4: [usize; 2],
    v6: [usize; 2],
}

impl Layout {
    fn read() -> Result<Self> {
        // Mounted already, or mounted where nobody else sees it.
        if let Ok(text) = format() {
            return Self::parse(&text);
        }
        let thread = thread::spawn(|| {
            mount_privately().context("mount tracefs")?;
            format()
        });
        let text = thread.join().unwrap_or_else(|_| bail!("the thread that mounts tracefs panicked"));
        Self::parse(&text.context("no tracepoint sock:inet_sock_set_state: the kernel needs CONFIG_FTRACE")?)
    }

    /// From the tracepoint's `format` file.
    fn parse(format: &str) -> Result<Self> {
        let id = format.lines().find_map(|line| line.strip_prefix("ID: ")).context("no ID")?;
        let offset = |name: &str| -> Result<usize> {
            let field = format.lines().filter_map(|line| line.trim().strip_prefix("field:")).find(|line| {
                let declared = line.split(';').next().unwrap_or_default();
                declared.split([' ', '[']).any(|word| word == name)
            });
            let offset = field.and_then(|line| line.split_once("offset:")?.1.split(';').next());
            offset
                .with_context(|| format!("no field {name}"))?
                .parse()
                .with_context(|| format!("offset of {name}"))
        };
        Ok(Self {
            id: id.trim().parse().context("the tracepoint's ID")?,
            socket: offset("skaddr")?,
            from: offset("oldstate")?,
            to: offset("newstate")?,
            ports: [offset("sport")?, offset("dport")?],
            family: offset("family")?,
            v4: [offset("saddr")?, offset("daddr")?],
            v6: [offset("saddr_v6")?, offset("daddr_v6")?],
        })
    }

    /// None for what is not TCP's.
    fn change(&self, at: u64, fields: &[u8]) -> Option<Change> {
        let address = |end: usize| -> Option<SocketAddr> {
            let port = u16::from_ne_bytes(bytes(fields, self.ports[end])?);
            let ip: IpAddr = match i32::from(u16::from_ne_bytes(bytes(fields, self.family)?)) {
                libc::AF_INET => Ipv4Addr::from(bytes::<4>(fields, self.v4[end])?).into(),
                libc::AF_INET6 => Ipv6Addr::from(bytes::<16>(fields, self.v6[end])?).into(),
                _ => return None,
            };
            Some(SocketAddr::new(ip, port))
        };
        Some(Change {
            at,
            socket: u64::from_ne_bytes(bytes(fields, self.socket)?),
            from: state(i32::from_ne_bytes(bytes(fields, self.from)?))?,
            to: state(i32::from_ne_bytes(bytes(fields, self.to)?))?,
            local: address(0)?,
            remote: address(1)?,
        })
    }
}

fn bytes<const N: usize>(fields: &[u8], at: usize) -> Option<[u8; N]> {
    fields.get(at..at + N)?.try_into().ok()
}

/// Codes of the kernel's `include/net/tcp_states.h`.
fn state(code: i32) -> Option<State> {
    Some(match code {
        1 => State::Established,
        2 => State::SynSent,
        3 | 12 => State::SynRecv,
        4 => State::FinWait1,
        5 => State::FinWait2,
        6 => State::TimeWait,
        7 => State::Closed,
        8 => State::CloseWait,
        9 => State::LastAck,
        10 => State::Listen,
        11 => State::Closing,
        _ => return None,
    })
}

fn format() -> Result<String> {
    let path = Path::new(TRACEFS).join(EVENT).join("format");
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Mounts tracefs for the calling thread alone: with the thread it goes away.
fn mount_privately() -> std::io::Result<()> {
    let target = std::ffi::CString::new(TRACEFS)?;
    let checked =
        |result: libc::c_int| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    // SAFETY: unshare(2) takes no pointers; a new mount namespace concerns the calling thread alone.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    // SAFETY: the paths are NUL-terminated and outlive the call; source, type and data may be null with MS_PRIVATE.
    checked(unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        )
    })?;
    // SAFETY: the strings are NUL-terminated and outlive the call; tracefs needs no data.
    checked(unsafe {
        libc::mount(c"tracefs".as_ptr(), target.as_ptr(), c"tracefs".as_ptr(), 0, std::ptr::null())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: inet_sock_set_state\nID: 2287\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n\
        \tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;\n\
        \tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;\n\
        \tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n\
        \tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;\n";

    #[test]
    fn fields_are_where_the_kernel_says() {
        let layout = Layout::parse(FORMAT).unwrap();
        assert_eq!((layout.id, layout.socket, layout.v6), (2287, 8, [40, 56]));
        let mut fields = vec![0_u8; 72];
        fields[8..16].copy_from_slice(&7_u64.to_ne_bytes());
        fields[16..20].copy_from_slice(&3_i32.to_ne_bytes());
        fields[20..24].copy_from_slice(&1_i32.to_ne_bytes());
        fields[24..26].copy_from_slice(&80_u16.to_ne_bytes());
        fields[26..28].copy_from_slice(&40_000_u16.to_ne_bytes());
        fields[28..30].copy_from_slice(&2_u16.to_ne_bytes());
        fields[32..40].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        let change = layout.change(5, &fields).unwrap();
        assert_eq!(
            (change.at, change.socket, change.from, change.to),
            (5, 7, State::SynRecv, State::Established)
        );
        assert_eq!(change.local, "192.0.2.1:80".parse().unwrap());
        assert_eq!(change.remote, "192.0.2.2:40000".parse().unwrap());
        assert!(layout.change(5, &fields[..39]).is_none(), "cut within the IPv4 address");
    }

    #[test]
    fn a_field_that_is_not_there_is_named() {
        let error = Layout::parse(&FORMAT.replace("skaddr", "sk")).unwrap_err();
        assert!(format!("{error:#}").contains("skaddr"), "{error:#}");
    }
}
