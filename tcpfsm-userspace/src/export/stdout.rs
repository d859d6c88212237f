//! Reports to stdout, through a thread that may block where the pipeline must not.

use std::{
    io::{ErrorKind, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use tokio::sync::Notify;
use tracing::warn;

use super::{
    jsonl,
    text::{LEGEND, TextLines, Width},
};
use crate::{
    config::Output,
    error::{Error, Result},
    pipeline::{Losses, SharedGauges, Sink},
    report::Report,
};

/// Chunks that wait for stdout; each holds a batch of lines.
const QUEUE: usize = 256;

/// Bytes that wait for stdout, give or take a chunk.
const QUEUED_BYTES: usize = 16 << 20;

/// Renders reports and hands them to the writing thread.
#[derive(Debug)]
pub struct StdoutSink {
    format: Format,
    chunk: String,
    lines: u64,
    queue: SyncSender<String>,
    queued_bytes: Arc<AtomicUsize>,
    shared: SharedGauges,
    behind: bool,
}

#[derive(Debug)]
enum Format {
    Text(TextLines),
    Jsonl,
}

/// Starts the writing thread. `closed` is notified when nobody reads any more. `None`: nothing is to be written.
///
/// # Errors
/// The system gives no thread.
pub fn start(
    output: Output,
    shared: SharedGauges,
    closed: Arc<Notify>,
) -> Result<Option<(StdoutSink, JoinHandle<()>)>> {
    let (format, header) = match output {
        Output::None | Output::Journal | Output::JournalAll => return Ok(None),
        Output::Jsonl => (Format::Jsonl, String::new()),
        Output::Text => {
            let lines = TextLines::new(Width::Table);
            eprintln!("{LEGEND}");
            let header = lines.header();
            (Format::Text(lines), header)
        }
    };
    let (queue, chunks) = sync_channel(QUEUE);
    let queued_bytes = Arc::new(AtomicUsize::new(0));
    let thread = std::thread::Builder::new()
        .name("stdout".into())
        .spawn({
            let queued_bytes = Arc::clone(&queued_bytes);
            move || write_all(&chunks, &queued_bytes, &closed)
        })
        .map_err(Error::io("start the stdout thread"))?;
    let mut sink = StdoutSink { format, chunk: header, lines: 0, queue, queued_bytes, shared, behind: false };
    sink.flush();
    Ok(Some((sink, thread)))
}

fn write_all(chunks: &Receiver<String>, queued_bytes: &AtomicUsize, closed: &Notify) {
    let mut stdout = std::io::stdout().lock();
    while let Ok(chunk) = chunks.recv() {
        queued_bytes.fetch_sub(chunk.len(), Ordering::Relaxed);
        let written = stdout.write_all(chunk.as_bytes()).and_then(|()| stdout.flush());
        if let Err(error) = written {
            // A reader that has had enough is no failure; the daemon has nobody to report to, and ends.
            if error.kind() != ErrorKind::BrokenPipe {
                warn!("cannot write to stdout: {error}");
            }
            closed.notify_one();
            return;
        }
    }
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
        let chunk = std::mem::take(&mut self.chunk);
        let lines = std::mem::take(&mut self.lines);
        let bytes = chunk.len();
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent =
            if before > QUEUED_BYTES { Err(TrySendError::Full(chunk)) } else { self.queue.try_send(chunk) };
        match sent {
            Ok(()) => self.behind = false,
            Err(TrySendError::Full(_)) => {
                self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                Losses::add(&self.shared.losses.stdout, lines);
                if !std::mem::replace(&mut self.behind, true) {
                    warn!("stdout is too slow: lines are dropped, and counted");
                }
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}
