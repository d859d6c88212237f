//! Answers to what clients of the socket ask.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{
        broadcast::{
            self,
            error::{RecvError, TryRecvError},
        },
        mpsc,
    },
    time::timeout,
};

use super::{
    filter::Filter,
    protocol::{Notice, Request, What},
    stats::Stats,
};
use crate::{
    error::Result,
    explain::story::Story,
    export::jsonl,
    pipeline::{Losses, SharedGauges},
    report::{Report, SCHEMA_VERSION},
};

/// The longest request.
const MAX_REQUEST: u64 = 64 << 10;

/// A client that has asked for nothing for so long is hung up on.
const PATIENCE: Duration = Duration::from_secs(30);

/// One that has read nothing for so long is, too: a person may look at a page for a while.
pub(super) const READING: Duration = Duration::from_secs(600);

/// Lines gathered before they are written.
pub(super) const CHUNK: usize = 32 << 10;

/// What the daemon knows that clients may ask for. Calls may take long: they are made on threads that may wait.
pub trait Answers: Send + Sync + 'static {
    /// Writes the flows that match, line by line; stops when `write` says so. Gives how many matched.
    ///
    /// # Errors
    /// The kernel's maps cannot be read.
    fn flows(&self, filter: &Filter, write: &mut dyn FnMut(&str) -> bool) -> Result<u64>;

    /// Counts and losses.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    fn stats(&self) -> Result<Stats>;

    /// The anomalies that go on and match.
    fn anomalies(&self, filter: &Filter) -> Vec<Report>;

    /// Everything known of the flow between these two ends; `None` where there is none.
    ///
    /// # Errors
    /// The kernel's maps cannot be read.
    fn story(&self, ends: [SocketAddr; 2]) -> Result<Option<Story>>;
}

/// Answers requests.
#[derive(Clone)]
pub struct Office {
    /// Who knows the answers.
    pub answers: Arc<dyn Answers>,
    /// Where live events come from, as long as there are any.
    pub events: broadcast::WeakSender<Arc<Report>>,
    /// Where losses are counted.
    pub shared: SharedGauges,
}

impl Office {
    pub(super) async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader).take(MAX_REQUEST);
        let mut line = String::new();
        timeout(PATIENCE, reader.read_line(&mut line)).await??;
        if line.is_empty() {
            // Somebody looked whether anybody is there.
            return Ok(());
        }
        let request: Request = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => {
                return refuse(&mut writer, &format!("a request that makes no sense: {error}")).await;
            }
        };
        if request.v != SCHEMA_VERSION {
            let words = format!("this daemon speaks schema {SCHEMA_VERSION}, not {}", request.v);
            return refuse(&mut writer, &words).await;
        }
        match request.request {
            What::Watch => self.watch(&request.filter, reader.into_inner().into_inner(), writer).await,
            What::List => self.list(request.filter, &mut writer).await,
            What::Stats => self.stats(&mut writer).await,
            What::Anomalies => self.anomalies(request.filter, &mut writer).await,
            What::Explain => match request.flow {
                Some(ends) => self.explain(ends, &mut writer).await,
                None => refuse(&mut writer, "explain needs a flow").await,
            },
        }
    }

    async fn watch(&self, filter: &Filter, reader: OwnedReadHalf, writer: OwnedWriteHalf) -> io::Result<()> {
        let Some(events) = self.events.upgrade() else { return Ok(()) };
        let mut queue = Queue { reports: events.subscribe(), lines: 0, shared: Some(&self.shared) };
        drop(events);
        let result = self.pass_on(filter, &mut queue, reader, writer).await;
        // All was told, or the watcher did not want it; or it was hung up on.
        if !result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            queue.shared = None;
        }
        result
    }

    async fn pass_on(
        &self,
        filter: &Filter,
        queue: &mut Queue<'_>,
        mut reader: OwnedReadHalf,
        mut writer: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut chunk = String::new();
        let mut hung_up = [0; 1];
        loop {
            let mut next = tokio::select! {
                next = queue.reports.recv() => next.map_err(|error| match error {
                    RecvError::Lagged(lost) => TryRecvError::Lagged(lost),
                    RecvError::Closed => TryRecvError::Closed,
                }),
                // Whatever a watcher says after its request, it is a good-bye.
                _ = reader.read(&mut hung_up) => return Ok(()),
            };
            // What has come meanwhile goes out with it.
            let is_over = loop {
                match next {
                    Ok(report) if filter.wants_event(&report.body) => {
                        jsonl::write(&mut chunk, &report);
                        queue.lines += 1;
                    }
                    Ok(_) => {}
                    Err(TryRecvError::Lagged(lost)) => {
                        Losses::add(&self.shared.losses.watchers, lost);
                        chunk.push_str(&notice(&Notice::Lost(lost)));
                    }
                    Err(TryRecvError::Empty) => break false,
                    Err(TryRecvError::Closed) => break true,
                }
                if chunk.len() >= CHUNK {
                    break false;
                }
                next = queue.reports.try_recv();
            };
            if !chunk.is_empty() {
                write(&mut writer, &chunk).await?;
                chunk.clear();
                queue.lines = 0;
            }
            if is_over {
                return Ok(());
            }
        }
    }

    async fn list(&self, filter: Filter, writer: &mut OwnedWriteHalf) -> io::Result<()> {
        let (chunks, mut received) = mpsc::channel::<String>(4);
        let answers = Arc::clone(&self.answers);
        let walk = tokio::task::spawn_blocking(move || {
            let mut chunk = String::new();
            let mut write = |line: &str| {
                chunk.push_str(line);
                chunk.push('\n');
                chunk.len() < CHUNK || chunks.blocking_send(std::mem::take(&mut chunk)).is_ok()
            };
            let found = answers.flows(&filter, &mut write);
            chunk.push_str(&notice(&match found {
                Ok(count) => Notice::End(count),
                Err(error) => Notice::Error(error.to_string()),
            }));
            let _ = chunks.blocking_send(chunk);
        });
        while let Some(chunk) = received.recv().await {
            write(writer, &chunk).await?;
        }
        walk.await.map_err(io::Error::other)
    }

    async fn anomalies(&self, filter: Filter, writer: &mut OwnedWriteHalf) -> io::Result<()> {
        let answers = Arc::clone(&self.answers);
        let found = tokio::task::spawn_blocking(move || answers.anomalies(&filter)).await;
        let found = found.map_err(io::Error::other)?;
        let mut text = String::new();
        found.iter().for_each(|report| jsonl::write(&mut text, report));
        text.push_str(&notice(&Notice::End(found.len() as u64)));
        write(writer, &text).await
    }

    async fn explain(&self, ends: [SocketAddr; 2], writer: &mut OwnedWriteHalf) -> io::Result<()> {
        let answers = Arc::clone(&self.answers);
        let story = tokio::task::spawn_blocking(move || answers.story(ends)).await;
        match story.map_err(io::Error::other)? {
            Ok(Some(story)) => write(writer, &(serde_json::to_string(&story)? + "\n")).await,
            Ok(None) => {
                let [one, other] = ends;
                refuse(writer, &format!("nothing is known of a connection between {one} and {other}")).await
            }
            Err(error) => refuse(writer, &error.to_string()).await,
        }
    }

    async fn stats(&self, writer: &mut OwnedWriteHalf) -> io::Result<()> {
        let answers = Arc::clone(&self.answers);
        let stats = tokio::task::spawn_blocking(move || answers.stats()).await.map_err(io::Error::other)?;
        match stats {
            Ok(stats) => write(writer, &(serde_json::to_string(&stats)? + "\n")).await,
            Err(error) => refuse(writer, &error.to_string()).await,
        }
    }
}

/// What waits for a watcher. Whatever it is when the watcher is cut off is counted as lost.
struct Queue<'a> {
    reports: broadcast::Receiver<Arc<Report>>,
    /// Taken out, and not yet written.
    lines: u64,
    /// Where losses are counted, as long as any can be.
    shared: Option<&'a SharedGauges>,
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared {
            Losses::add(&shared.losses.watchers, self.lines + self.reports.len() as u64);
        }
    }
}

async fn refuse(writer: &mut OwnedWriteHalf, words: &str) -> io::Result<()> {
    write(writer, &notice(&Notice::Error(words.to_owned()))).await
}

fn notice(notice: &Notice) -> String {
    serde_json::to_string(notice).unwrap_or_default() + "\n"
}

async fn write(writer: &mut OwnedWriteHalf, text: &str) -> io::Result<()> {
    timeout(READING, writer.write_all(text.as_bytes())).await?
}
