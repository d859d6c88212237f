//! A network namespace with a name, and how to be in it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::panic;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::which;

/// Where `ip netns` keeps names.
pub(super) const DIRECTORY: &str = "/run/netns";

/// A named namespace; its name is taken away when dropped, and with its last process and socket the namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: Arc<File>,
}

impl Netns {
    /// Makes a namespace. The name is visible to `ip netns`.
    pub fn create(name: &str) -> Result<Self> {
        let output = ip()?.args(["netns", "add", name]).output().context("start ip")?;
        if !output.status.success() {
            bail!("ip netns add {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let path = format!("{DIRECTORY}/{name}");
        match File::open(&path) {
            Ok(handle) => Ok(Self { name: name.to_owned(), handle: Arc::new(handle) }),
            Err(error) => {
                remove(name);
                Err(error).with_context(|| format!("open {path}"))
            }
        }
    }

    /// Its name, for `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure on a thread inside. Sockets made there belong to this namespace for good and can be
    /// handed out. A panic inside goes on outside.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = thread::scope(|scope| {
            let thread = scope.spawn(|| enter(&self.handle).map(|()| inside()));
            thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        });
        entered.with_context(|| format!("enter network namespace {}", self.name))
    }

    /// Starts a thread that stays inside.
    pub fn spawn<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<io::Result<T>>> {
        let handle = Arc::clone(&self.handle);
        thread::Builder::new().spawn(move || enter(&handle).map(|()| inside())).context("start a thread")
    }

    /// A command that will run inside. Only the network is another: mounts, and so bpffs and sysfs, stay as they
    /// are, unlike with `ip netns exec`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let handle = Arc::clone(&self.handle);
        // SAFETY: between fork and exec the closure only makes one system call, setns; it neither allocates nor
        // locks. The handle is shared with the command, so it is still open then.
        unsafe { command.pre_exec(move || enter(&handle)) };
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn enter(handle: &File) -> io::Result<()> {
    move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}

/// Takes a name away; true if it is gone.
pub(super) fn remove(name: &str) -> bool {
    match ip().map(|mut ip| ip.args(["netns", "delete", name]).output()) {
        Ok(Ok(output)) => output.status.success(),
        _ => false,
    }
}

/// `ip`, which plain users' paths often lack.
pub(super) fn ip() -> Result<Command> {
    let path = which("ip").context("`ip` is missing\n  remedy: apt-get install iproute2")?;
    Ok(Command::new(path))
}
