//! `tcpfsm detach`: takes away what a killed daemon can have left, and says what it took.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::Path,
    process::ExitCode,
};

use super::print;
use crate::{
    cli::DetachArgs,
    control::client::peer_pid,
    error::{Error, Result},
    kernel::{
        detach,
        filters::Holders,
        interfaces::{self, Interface},
        probe,
    },
};

pub(super) fn detach(args: DetachArgs) -> Result<ExitCode> {
    let DetachArgs { iface, socket } = args;
    let all = iface.is_empty();
    let interfaces: Vec<Interface> = if all {
        // One may go away in between.
        interfaces::names().iter().filter_map(|name| Interface::find(name).ok()).collect()
    } else {
        iface.iter().map(|name| Interface::find(name)).collect::<Result<_>>()?
    };
    probe::check_capabilities()?;
    if let Ok(stream) = UnixStream::connect(&socket.socket) {
        // Its links are held by its descriptors: only its end takes them away.
        return Err(Error::DaemonRuns { path: socket.socket, pid: peer_pid(&stream) });
    }
    let holders = Holders::look();
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    for interface in &interfaces {
        let filters = detach::filters(interface, &holders)?;
        removed.extend(filters.removed);
        kept.extend(filters.kept);
    }
    if all {
        removed.extend(detach::pins()?);
        removed.extend(stale_socket(&socket.socket)?);
    }
    let mut text: String = removed.iter().map(|what| format!("removed {what}\n")).collect();
    text.extend(kept.iter().map(|what| format!("kept {what}\n")));
    let loaded = detach::still_loaded();
    if loaded.is_empty() && removed.is_empty() {
        text.push_str("nothing of tcpfsm is attached\n");
    }
    if !loaded.is_empty() {
        text.push_str(&format!(
            "still loaded, by a daemon that runs (with another --socket, or in another namespace): {}\n",
            loaded.join(", ")
        ));
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes the socket's file: nobody answers on it.
fn stale_socket(path: &Path) -> Result<Option<String>> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) | Err(_) => return Ok(None),
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(format!("the stale socket {}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::Io { what: format!("remove {}", path.display()), cause }),
    }
}
