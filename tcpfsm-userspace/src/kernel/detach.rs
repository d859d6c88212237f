//! Takes away what a killed daemon can have left.
//!
//! Its links died with it. What can be left: clsact filters of ours (kernels without TCX) and pins below our
//! directory of the bpf file system.

use std::{fs, io, path::Path};

use aya::programs::loaded_programs;

use super::{
    filters::{self, Holders},
    interfaces::Interface,
    names,
    plan::Side,
};
use crate::error::{Error, Result};

/// Where pins of ours would be; each ABI version has its own directory in it.
const PIN_DIRECTORY: &str = "/sys/fs/bpf/tcpfsm";

/// What became of the filters of an interface.
#[derive(Debug, Default)]
pub struct Filters {
    /// What was removed.
    pub removed: Vec<String>,
    /// What was not, because a process holds its program.
    pub kept: Vec<String>,
}

/// Removes from an interface the filters of ours that no process holds the programs of.
///
/// # Errors
/// The system refused.
pub fn filters(interface: &Interface, holders: &Holders) -> Result<Filters> {
    let mut found = Filters::default();
    for side in Side::ALL {
        for filter in filters::on(interface, side)? {
            match holders.of(&filter) {
                Some(pid) => found.kept.push(format!("{filter} on {}: process {pid} runs", interface.name)),
                None => {
                    filter.remove()?;
                    found.removed.push(format!("{filter} from {}", interface.name));
                }
            }
        }
    }
    Ok(found)
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
