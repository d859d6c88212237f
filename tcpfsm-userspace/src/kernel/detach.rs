//! Takes away what a killed daemon can have left.
//!
//! Its links died with it. What can be left: clsact filters of ours (kernels without TCX) and pins below our
//! directory of the bpf file system.

use std::{fs, io, path::Path};

use aya::programs::{
    TcAttachType, loaded_programs,
    tc::{TcError, qdisc_detach_program},
};

use super::{attach::tc_errno, chain, names};
use crate::error::{Error, Result};

/// Where pins of ours would be; each ABI version has its own directory in it.
const PIN_DIRECTORY: &str = "/sys/fs/bpf/tcpfsm";

/// Removes our filters from an interface; names what was removed.
///
/// # Errors
/// The system refused.
pub fn filters(interface: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for (side, attach_type, name) in
        [("ingress", TcAttachType::Ingress, names::INGRESS), ("egress", TcAttachType::Egress, names::EGRESS)]
    {
        match qdisc_detach_program(interface, attach_type, name) {
            Ok(()) => removed.push(format!("clsact {side} filter {name} from {interface}")),
            Err(error) if is_absence(&error) => {}
            Err(error) => {
                return Err(Error::Attach {
                    interface: interface.to_owned(),
                    cause: format!("cannot remove the {side} filter: {}", chain(&error)),
                    remedy: format!("tc filter del dev {interface} {side}"),
                });
            }
        }
    }
    Ok(removed)
}

/// No such filter, no clsact qdisc, no such interface any more: nothing to remove.
fn is_absence(error: &TcError) -> bool {
    match error {
        TcError::IoError(error) if error.kind() == io::ErrorKind::NotFound => true,
        error => {
            matches!(tc_errno(error), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP))
        }
    }
}

/// Removes our pins; names what was removed.
///
/// # Errors
/// The system refused.
pub fn pins() -> Result<Vec<String>> {
    let directory = Path::new(PIN_DIRECTORY);
    match fs::remove_dir_all(directory) {
        Ok(()) => Ok(vec![format!("pins in {PIN_DIRECTORY}")]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(cause) => Err(Error::Io { what: format!("remove {PIN_DIRECTORY}"), cause }),
    }
}

/// Names of our programs that are loaded: held by a process that runs.
#[must_use]
pub fn still_loaded() -> Vec<String> {
    let mut found: Vec<_> = loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|info| {
            let name = info.name_as_str()?;
            // The kernel keeps 15 bytes of a name.
            names::PROGRAMS
                .into_iter()
                .find(|ours| ours.get(..15).unwrap_or(ours) == name)
                .map(|ours| format!("{ours} (program {})", info.id()))
        })
        .collect();
    found.sort_unstable();
    found
}
