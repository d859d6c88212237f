//! What can go wrong, as people are told it: what failed, why, and what to do.

use std::{io, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use tcpfsm_common::abi::ABI_VERSION;

/// Every failure that reaches a user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary has no kernel programs in it.
    #[error("this tcpfsm was built without its kernel programs")]
    NoObject,
    /// Capabilities are missing.
    #[error("not permitted: {} {} missing", missing.join(" and "), if missing.len() == 1 { "is" } else { "are" })]
    Privileges {
        /// The names of the capabilities.
        missing: Vec<&'static str>,
    },
    /// The kernel lacks something.
    #[error("this kernel ({release}) cannot run the programs: {lacks}")]
    Kernel {
        /// `uname -r`.
        release: String,
        /// What it lacks.
        lacks: &'static str,
        /// What would help.
        remedy: &'static str,
    },
    /// The object was made for another ABI, or is damaged.
    #[error("the kernel programs do not fit this binary (ABI {ABI_VERSION}): {0}")]
    Object(String),
    /// The kernel refused a program or a map.
    #[error("the kernel refused {what}: {cause}")]
    Load {
        /// The program or map.
        what: String,
        /// The kernel's answer.
        cause: String,
    },
    /// A system call on something that was loaded failed.
    #[error("{what}: {cause}")]
    Bpf {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        cause: String,
    },
    /// No interface was named.
    #[error("no interface to watch was named")]
    NoInterface {
        /// Those there are.
        known: Vec<String>,
    },
    /// An interface does not exist.
    #[error("interface {name:?} does not exist")]
    UnknownInterface {
        /// The one asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Nothing could be attached to an interface.
    #[error("cannot attach to {interface}: {cause}")]
    Attach {
        /// The interface.
        interface: String,
        /// Every way that was tried and why it failed.
        cause: String,
        /// What would help.
        remedy: String,
    },
    /// Every interface went away.
    #[error("all watched interfaces are gone: {}", names.join(", "))]
    InterfacesGone {
        /// Their names.
        names: Vec<String>,
    },
    /// The metrics address cannot be used.
    #[error("cannot serve metrics on {address}: {}", describe(cause))]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        cause: io::Error,
    },
    /// Another daemon answers on the socket.
    #[error("another tcpfsm daemon{} answers on {}", with_pid(*pid), path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
        /// The other daemon, where the system tells.
        pid: Option<i32>,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {}", path.display(), describe(cause))]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The systemd journal does not listen.
    #[error("the systemd journal does not listen on {}: {}", path.display(), describe(cause))]
    Journal {
        /// Its socket.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Nobody answers on the socket.
    #[error("no tcpfsm daemon answers on {}: {}", path.display(), describe(cause))]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// A daemon is there, but does not answer.
    #[error("the tcpfsm daemon on {} has not answered for {} s", path.display(), patience.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// A daemon runs: what is attached is its own.
    #[error("a tcpfsm daemon{} runs and answers on {}: what is attached is its own", with_pid(*pid), path.display())]
    DaemonRuns {
        /// Its socket.
        path: PathBuf,
        /// Its process, where the system tells.
        pid: Option<i32>,
    },
    /// The daemon ended while it was being listened to.
    #[error("the daemon has ended")]
    HungUp,
    /// The daemon, or another one in its place, runs, but does not speak to us any more.
    #[error("the daemon hung up: it was restarted, or we read nothing for {} s", patience.as_secs())]
    HungUpOn {
        /// How long the daemon waits.
        patience: Duration,
    },
    /// The daemon's answer makes no sense, or is a refusal.
    #[error("the daemon's answer: {0}")]
    Answer(String),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration {}: {}", path.display(), describe(cause))]
    ConfigRead {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The configuration file is wrong.
    #[error("the configuration {} is wrong: {cause}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        cause: String,
    },
    /// Options contradict each other or the system.
    #[error("{0}")]
    Usage(String),
    /// Reading or writing failed.
    #[error("{what}: {}", describe(cause))]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        cause: io::Error,
    },
}

/// Tells people something on stderr. That it cannot be written, or that they have gone, is no failure.
macro_rules! complain {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

pub(crate) use complain;

/// The usual result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error, saying what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoObject => {
                Some("cargo xtask build (it builds the kernel programs and embeds them)".into())
            }
            Self::Privileges { .. } => Some(format!(
                "run it as root: sudo {}\n          or give the binary what it needs: sudo setcap cap_bpf,cap_net_admin,cap_perfmon+ep $(command -v tcpfsm)",
                std::env::args_os().map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ")
            )),
            Self::Kernel { remedy, .. } => Some((*remedy).into()),
            Self::Object(_) => Some("build binary and kernel programs together: cargo xtask build".into()),
            Self::Load { .. } => Some("tcpfsm run --log-level debug shows the verifier's words".into()),
            Self::NoInterface { known } => Some(format!("--iface NAME; there are: {}", known.join(" "))),
            Self::UnknownInterface { known, .. } => Some(format!("there are: {}", known.join(" "))),
            Self::Attach { remedy, .. } => Some(remedy.clone()),
            Self::Metrics { address, cause } => Some(match cause.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "port {} is in use: choose another with --metrics ADDRESS:PORT, or --metrics off",
                    address.port()
                ),
                _ => "choose another address with --metrics ADDRESS:PORT, or --metrics off".into(),
            }),
            Self::SocketInUse { .. } => Some(
                "end that daemon first, or choose another socket with --socket PATH (and --metrics)".into(),
            ),
            Self::Socket { .. } => Some("choose another place with --socket PATH".into()),
            Self::Journal { .. } => {
                Some("is this host run by systemd? In a container, mount that socket, or use -o jsonl".into())
            }
            Self::NoDaemon { cause, .. } => Some(match cause.kind() {
                io::ErrorKind::PermissionDenied => "the socket is root's: run this with sudo".into(),
                _ => "start it: sudo tcpfsm run --iface NAME (or name its socket: --socket PATH)".into(),
            }),
            Self::Silent { .. } => {
                Some("is it stopped, or does the machine have no time for it? 64 clients at once are all it serves".into())
            }
            Self::ConfigRead { .. } | Self::Config { .. } => {
                Some("`tcpfsm config default` prints a complete one with comments".into())
            }
            Self::DaemonRuns { pid, .. } => Some(match pid {
                Some(pid) => format!("end it, and it detaches: kill -INT {pid}"),
                None => "end it, and it detaches".into(),
            }),
            Self::Bpf { .. }
            | Self::HungUp
            | Self::HungUpOn { .. }
            | Self::InterfacesGone { .. }
            | Self::Answer(_)
            | Self::Usage(_)
            | Self::Io { .. } => None,
        }
    }

    /// Whether the reader of our output has gone: no failure.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::BrokenPipe)
    }

    /// 1, or 2 where the command line is at fault.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoInterface { .. } | Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// Tells the user.
    pub fn print(&self) {
        complain!("tcpfsm: {self}");
        if let Some(remedy) = self.remedy() {
            complain!("  remedy: {remedy}");
        }
    }
}

fn with_pid(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// The system's words without Rust's "(os error 98)".
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_flag() {
        let error = Error::Metrics {
            address: ([127, 0, 0, 1], 9477).into(),
            cause: io::Error::from_raw_os_error(libc::EADDRINUSE),
        };
        assert_eq!(error.to_string(), "cannot serve metrics on 127.0.0.1:9477: address already in use");
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("9477") && remedy.contains("--metrics")));
    }

    #[test]
    fn missing_capabilities_are_named() {
        let error = Error::Privileges { missing: vec!["CAP_BPF", "CAP_NET_ADMIN"] };
        assert_eq!(error.to_string(), "not permitted: CAP_BPF and CAP_NET_ADMIN are missing");
    }
}
