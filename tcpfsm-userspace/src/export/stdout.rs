//! Reports to stdout, through a thread that may block where the pipeline must not.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use tokio::sync::oneshot;
use tracing::warn;

use super::{
    jsonl,
    text::{LEGEND, TextLines, Width},
};
use crate::{
    config::Output,
    error::{Error, Result, complain},
    pipeline::{Backlog, Losses, SharedGauges, Sink},
    report::Report,
};

/// Bytes that may wait for stdout, give or take a chunk: a second and more of a busy host's JSON lines.
const MOST_QUEUED: usize = 64 << 20;

/// Bytes written at once.
const PIECE: usize = 64 << 10;

/// Renders reports and hands them to the writing thread.
#[derive(Debug)]
pub struct StdoutSink {
    format: Format,
    chunk: String,
    lines: u64,
    queue: Sender<Chunk>,
    shared: SharedGauges,
    behind: bool,
}

/// Whole lines, and how many.
#[derive(Debug)]
struct Chunk {
    text: String,
    lines: u64,
}

#[derive(Debug)]
enum Format {
    Text(TextLines),
    Jsonl,
}

/// Starts the writing thread. `broken` is told why it cannot write any more. `None`: nothing is to be written.
///
/// # Errors
/// The system gives no thread.
pub fn start(
    output: Output,
    shared: SharedGauges,
    broken: oneshot::Sender<io::Error>,
) -> Result<Option<(StdoutSink, JoinHandle<()>)>> {
    let (format, header) = match output {
        Output::None | Output::Journal | Output::JournalAll => return Ok(None),
        Output::Jsonl => (Format::Jsonl, String::new()),
        Output::Text => {
            let lines = TextLines::new(Width::Table);
            complain!("{LEGEND}");
            let header = lines.header();
            (Format::Text(lines), header)
        }
    };
    let (queue, chunks) = channel();
    let thread = std::thread::Builder::new()
        .name("stdout".into())
        .spawn({
            let shared = Arc::clone(&shared);
            move || {
                if let Err(error) = write_all(&chunks, &shared.backlog, rustix::stdio::stdout()) {
                    let _ = broken.send(error);
                }
            }
        })
        .map_err(Error::io("start the stdout thread"))?;
    let mut sink = StdoutSink { format, chunk: header, lines: 0, queue, shared, behind: false };
    sink.flush();
    Ok(Some((sink, thread)))
}

fn write_all(chunks: &Receiver<Chunk>, backlog: &Backlog, to: BorrowedFd<'_>) -> io::Result<()> {
    while let Ok(Chunk { text, lines }) = chunks.recv() {
        // In pieces: whoever waits for the end sees that it gets on.
        for piece in text.as_bytes().chunks(PIECE) {
            write(to, piece)?;
            backlog.bytes.fetch_sub(piece.len(), Ordering::Relaxed);
        }
        backlog.lines.fetch_sub(lines, Ordering::Relaxed);
    }
    Ok(())
}

/// Writes all of it, also where whoever started us left a pipe that does not wait for its reader.
fn write(to: BorrowedFd<'_>, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match rustix::io::write(to, text) {
            Ok(written) => text = text.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Sink for StdoutSink {
    fn take(&mut self, report: &Report) {
        match &self.format {
            Format::Text(lines) => lines.write(&mut self.chunk, report),
            Format::Jsonl => jsonl::write(&mut self.chunk, report),
        }
        self.lines += 1;
    }

    fn flush(&mut self) {
        if self.chunk.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.chunk);
        let lines = std::mem::take(&mut self.lines);
        let backlog = &self.shared.backlog;
        let queued = backlog.bytes.load(Ordering::Relaxed);
        if queued > MOST_QUEUED {
            Losses::add(&self.shared.losses.stdout, lines);
            if !std::mem::replace(&mut self.behind, true) {
                warn!("stdout is too slow: lines are dropped, and counted");
            }
            return;
        }
        // Said once, not at every chunk that finds a little room again.
        self.behind &= queued > MOST_QUEUED / 2;
        backlog.bytes.fetch_add(text.len(), Ordering::Relaxed);
        backlog.lines.fetch_add(lines, Ordering::Relaxed);
        // An error means that nobody reads any more, which ends the daemon.
        let _ = self.queue.send(Chunk { text, lines });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_does_not_wait_is_waited_for() {
        use std::{io::Read as _, os::fd::AsFd as _};
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let text = "0123456789".repeat(100_000);
        let read = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut all = String::new();
            reader.read_to_string(&mut all).map(|_| all)
        });
        write(writer.as_fd(), text.as_bytes()).unwrap();
        drop(writer);
        assert!(read.join().unwrap().unwrap() == text);

        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(write(writer.as_fd(), b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (queue, chunks) = channel();
        let shared = SharedGauges::default();
        let mut sink = StdoutSink {
            format: Format::Jsonl,
            chunk: String::new(),
            lines: 0,
            queue,
            shared: Arc::clone(&shared),
            behind: false,
        };
        let chunk = "x".repeat(MOST_QUEUED / 16);
        let mut flush = |times: usize| {
            for _ in 0..times {
                (sink.chunk, sink.lines) = (chunk.clone(), 10);
                sink.flush();
            }
            (sink.behind, Losses::get(&shared.losses.stdout))
        };
        assert_eq!(flush(17), (false, 0), "one more than there is room for");
        assert_eq!(flush(3), (true, 30));
        assert_eq!(chunks.try_iter().map(|chunk| chunk.text.len()).sum::<usize>(), 17 * chunk.len());
        let backlog = &shared.backlog;
        assert_eq!(backlog.lines.load(Ordering::Relaxed), 170);
        backlog.bytes.fetch_sub(2 * chunk.len(), Ordering::Relaxed);
        assert_eq!(flush(1), (true, 30), "a little room is no news");
        backlog.bytes.fetch_sub(8 * chunk.len(), Ordering::Relaxed);
        assert_eq!(flush(1), (false, 30));
    }
}
