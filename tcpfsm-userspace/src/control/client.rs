//! The other end of the socket: what `watch`, `list` and `stats` share.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    office::READING,
    protocol::{Notice, Request, What},
};
use crate::error::{Error, Result};

/// How long an answer, or its next line, may take,
const ANSWER: Duration = Duration::from_secs(10);
/// and where all flows are looked through for those of one process.
const LIST: Duration = Duration::from_secs(60);

/// One request to the daemon and its answer, line by line.
#[derive(Debug)]
pub struct Conversation {
    reader: BufReader<UnixStream>,
    path: PathBuf,
    /// How long the next line may take; none for events, which come when they come.
    patience: Option<Duration>,
    line: String,
}

/// One line of an answer.
#[derive(Debug)]
pub enum Answer<'a> {
    /// What was asked for, as it came, with its line feed.
    Item(&'a str),
    /// The server's own words.
    Notice(Notice),
}

impl Answer<'_> {
    /// Reads an item.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn parse<T: DeserializeOwned>(line: &str) -> Result<T> {
        serde_json::from_str(line).map_err(|error| {
            Error::Answer(format!("{error}; is the daemon of another version than this command?"))
        })
    }
}

impl Conversation {
    /// Asks.
    ///
    /// # Errors
    /// No daemon answers.
    pub fn start(path: &Path, request: &Request) -> Result<Self> {
        let no_daemon = |cause| Error::NoDaemon { path: path.to_owned(), cause };
        let mut stream = UnixStream::connect(path).map_err(no_daemon)?;
        let patience = match request.request {
            What::Watch => None,
            What::List => Some(LIST),
            What::Stats | What::Anomalies | What::Explain => Some(ANSWER),
        };
        stream.set_read_timeout(patience).map_err(no_daemon)?;
        let line = serde_json::to_string(request).map_err(|error| Error::Answer(error.to_string()))?;
        stream.write_all((line + "\n").as_bytes()).map_err(no_daemon)?;
        Ok(Self { reader: BufReader::new(stream), path: path.to_owned(), patience, line: String::new() })
    }

    /// The next line; `None` when the daemon hung up.
    ///
    /// # Errors
    /// The answer is a refusal, or cannot be read.
    pub fn next_answer(&mut self) -> Result<Option<Answer<'_>>> {
        let Self { reader, path, patience, line } = self;
        line.clear();
        let count = reader.read_line(line).map_err(|cause| match (cause.kind(), *patience) {
            (io::ErrorKind::WouldBlock, Some(patience)) => Error::Silent { path: path.clone(), patience },
            _ => Error::Io { what: format!("read from {}", path.display()), cause },
        })?;
        if count == 0 {
            return Ok(None);
        }
        // Notices begin as nothing else does; items are not parsed here, since some only pass through.
        if !["{\"error\"", "{\"lost\"", "{\"end\"", "{\"note\""].iter().any(|start| line.starts_with(start)) {
            return Ok(Some(Answer::Item(line)));
        }
        match Answer::parse(line)? {
            Notice::Error(words) => Err(Error::Answer(words)),
            notice => Ok(Some(Answer::Notice(notice))),
        }
    }

    /// Why there is no next line.
    #[must_use]
    pub fn hung_up(&self) -> Error {
        match UnixStream::connect(&self.path) {
            Ok(_) => Error::HungUpOn { patience: READING },
            Err(_) => Error::HungUp,
        }
    }

    /// Whether the next line must be waited for: time to show what is there.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.reader.buffer().contains(&b'\n')
    }
}

/// The process at the other end of a socket; none where it is in a PID namespace that is not seen from here. (rustix has it that no
/// pid is 0.)
#[must_use]
pub fn peer_pid(stream: &UnixStream) -> Option<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).ok()?;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes of a plain structure.
    let answer = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    (answer == 0 && peer.pid > 0).then_some(peer.pid)
}
