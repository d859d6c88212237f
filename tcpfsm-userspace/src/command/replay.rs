//! `tcpfsm replay`.

use std::{io, process::ExitCode};

use crate::{
    error::{Error, Result},
    replay::{self, ReplayArgs},
};

/// Replays capture files to stdout.
///
/// # Errors
/// Where stdout cannot be written.
pub(super) fn replay(args: &ReplayArgs) -> Result<ExitCode> {
    replay::run(args, &mut io::stdout().lock())
        .map_err(|error| Error::io("write to stdout")(io::Error::other(format!("{error:#}"))))
}
