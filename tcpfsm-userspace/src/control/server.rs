//! The daemon's end of the socket.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, broadcast, mpsc},
    time::timeout,
};
use tracing::debug;

use super::{
    client,
    filter::Filter,
    protocol::{Notice, Request, What},
    stats::Stats,
};
use crate::{
    error::{Error, Result},
    explain::story::Story,
    export::jsonl,
    pipeline::{Losses, SharedGauges},
    report::{Report, SCHEMA_VERSION},
};

/// Connections at a time; one more waits.
const MAX_CLIENTS: usize = 64;

/// The longest request.
const MAX_REQUEST: u64 = 64 << 10;

/// A client that has asked for nothing, or read nothing, for so long is hung up on.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lines gathered before they are written.
const CHUNK: usize = 32 << 10;

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

/// The socket; its file goes away with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether another daemon answers there.
///
/// # Errors
/// One does.
pub fn check_free(path: &Path) -> Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(stream) => Err(Error::SocketInUse { path: path.to_owned(), pid: client::peer_pid(&stream) }),
        Err(_) => Ok(()),
    }
}

impl ControlSocket {
    /// Makes the socket, in place of one that a killed daemon left.
    ///
    /// # Errors
    /// Another daemon answers there, or the file cannot be made.
    pub fn bind(path: &Path) -> Result<Self> {
        check_free(path)?;
        let failed = |cause| Error::Socket { path: path.to_owned(), cause };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
            Ok(_) => {
                return Err(failed(io::Error::other("there is a file of that name that is no socket")));
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Self { listener, path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(socket)
    }

    /// Serves clients for ever.
    pub async fn serve(&self, office: Office) {
        let seats = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let office = office.clone();
                    tokio::spawn(async move {
                        if let Err(error) = office.serve(stream).await {
                            debug!("a client of the control socket: {error}");
                        }
                        drop(seat);
                    });
                }
                Err(error) => {
                    debug!("control socket: {error}");
                    // Out of descriptors, mostly: give others time to return some.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Answers requests.
#[derive(Clone)]
pub struct Office {
    /// Who knows the answers.
    pub answers: Arc<dyn Answers>,
    /// Where live events come from.
    pub events: broadcast::Sender<Arc<Report>>,
    /// Where losses are counted.
    pub shared: SharedGauges,
}

impl Office {
    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
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

    async fn watch(
        &self,
        filter: &Filter,
        mut reader: OwnedReadHalf,
        mut writer: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut events = self.events.subscribe();
        let mut chunk = String::new();
        let mut hung_up = [0; 1];
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                // Whatever a watcher says after its request, it is a good-bye.
                _ = reader.read(&mut hung_up) => return Ok(()),
            };
            self.append(&mut chunk, filter, event)?;
            // What has come meanwhile goes out with it.
            while chunk.len() < CHUNK {
                match events.try_recv() {
                    Ok(event) => self.append(&mut chunk, filter, Ok(event))?,
                    Err(broadcast::error::TryRecvError::Lagged(lost)) => {
                        self.append(&mut chunk, filter, Err(broadcast::error::RecvError::Lagged(lost)))?;
                    }
                    Err(_) => break,
                }
            }
            if !chunk.is_empty() {
                write(&mut writer, &chunk).await?;
                chunk.clear();
            }
        }
    }

    fn append(
        &self,
        chunk: &mut String,
        filter: &Filter,
        event: Result<Arc<Report>, broadcast::error::RecvError>,
    ) -> io::Result<()> {
        match event {
            Ok(report) => {
                if filter.wants_event(&report.body) {
                    jsonl::write(chunk, &report);
                }
                Ok(())
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                Losses::add(&self.shared.losses.watchers, lost);
                chunk.push_str(&notice(&Notice::Lost(lost)));
                Ok(())
            }
            Err(broadcast::error::RecvError::Closed) => Err(io::ErrorKind::ConnectionAborted.into()),
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

async fn refuse(writer: &mut OwnedWriteHalf, words: &str) -> io::Result<()> {
    write(writer, &notice(&Notice::Error(words.to_owned()))).await
}

fn notice(notice: &Notice) -> String {
    serde_json::to_string(notice).unwrap_or_default() + "\n"
}

async fn write(writer: &mut OwnedWriteHalf, text: &str) -> io::Result<()> {
    timeout(PATIENCE, writer.write_all(text.as_bytes())).await?
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};

    use super::*;
    use crate::{
        clock::Wall,
        pipeline::synthetic::Conversation,
        report::{Body, ConnClosed},
    };

    struct Fixed;

    impl Answers for Fixed {
        fn flows(&self, _: &Filter, write: &mut dyn FnMut(&str) -> bool) -> Result<u64> {
            for _ in 0..10_000 {
                write("{\"a\":1}");
            }
            Ok(10_000)
        }

        fn stats(&self) -> Result<Stats> {
            Ok(Stats { v: 1, flows: 7, ..Stats::default() })
        }

        fn anomalies(&self, _: &Filter) -> Vec<Report> {
            Vec::new()
        }

        fn story(&self, _: [SocketAddr; 2]) -> Result<Option<Story>> {
            Ok(None)
        }
    }

    fn report(seq: u64) -> Arc<Report> {
        let body = Body::ConnClosed(ConnClosed {
            flow: Conversation::new().flow(),
            reason: "finish".into(),
            orig_state: Default::default(),
            resp_state: Default::default(),
            duration_ns: 0,
            orig_pkts: 0,
            resp_pkts: 0,
            orig_bytes: 0,
            resp_bytes: 0,
            facts: vec![],
            proc: None,
            unowned: None,
            sample: 1,
        });
        Arc::new(Report { v: 1, seq, ts: Wall(0), host: "h".into(), body })
    }

    /// Runs a server; `client` asks on a thread of its own.
    fn with_server(capacity: usize, client: impl FnOnce(&Path, &Office) + Send + 'static) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/tcpfsm.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = ControlSocket::bind(&path).unwrap();
            let office = Office {
                answers: Arc::new(Fixed),
                events: broadcast::channel(capacity).0,
                shared: SharedGauges::default(),
            };
            let asked = {
                let (path, office) = (path.clone(), office.clone());
                tokio::task::spawn_blocking(move || client(&path, &office))
            };
            tokio::select! {
                () = socket.serve(office) => {}
                result = asked => result.unwrap(),
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        assert!(!path.exists(), "the socket's file goes away with it");
    }

    fn ask(path: &Path, line: &str) -> BufReader<std::os::unix::net::UnixStream> {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        writeln!(stream, "{line}").unwrap();
        BufReader::new(stream)
    }

    fn next(reader: &mut impl std::io::BufRead) -> String {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn stats_and_lists_are_answered() {
        with_server(4, |path, _| {
            assert!(next(&mut ask(path, r#"{"v":1,"request":"stats"}"#)).contains(r#""flows":7"#));
            let lines: Vec<_> =
                ask(path, r#"{"v":1,"request":"list","filter":{}}"#).lines().map(Result::unwrap).collect();
            assert_eq!(lines.len(), 10_001);
            assert_eq!(lines[10_000], r#"{"end":10000}"#);
            assert_eq!(next(&mut ask(path, r#"{"v":1,"request":"anomalies"}"#)), "{\"end\":0}\n");
        });
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        with_server(4, |path, _| {
            for (line, words) in [
                ("hello", "makes no sense"),
                (r#"{"v":2,"request":"stats"}"#, "speaks schema 1"),
                (r#"{"v":1,"request":"list","filter":{"state":1}}"#, "unknown field"),
                (r#"{"v":1,"request":"explain"}"#, "needs a flow"),
                (r#"{"v":1,"request":"explain","flow":["10.0.0.1:1","10.0.0.2:2"]}"#, "nothing is known"),
            ] {
                let answer = next(&mut ask(path, line));
                assert!(answer.starts_with("{\"error\":") && answer.contains(words), "{answer}");
            }
            drop(std::os::unix::net::UnixStream::connect(path).unwrap());
        });
    }

    #[test]
    fn a_slow_watcher_loses_events_and_is_told_how_many() {
        with_server(4, |path, office| {
            let mut watcher = ask(path, r#"{"v":1,"request":"watch"}"#);
            while office.events.receiver_count() == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            // Sent at once, more than the channel holds: the watcher's task cannot have taken them all.
            let mut sent = 0;
            while Losses::get(&office.shared.losses.watchers) == 0 {
                for _ in 0..10_000 {
                    sent += 1;
                    office.events.send(report(sent)).unwrap();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let mut lost = 0;
            let mut seen = 0;
            while lost + seen < sent {
                let line = next(&mut watcher);
                match serde_json::from_str(&line) {
                    Ok(Notice::Lost(count)) => lost += count,
                    _ => {
                        seen += 1;
                        assert!(serde_json::from_str::<Report>(&line).is_ok(), "{line}");
                    }
                }
            }
            assert_eq!(Losses::get(&office.shared.losses.watchers), lost);
        });
    }

    #[test]
    fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
        with_server(4, |path, _| match ControlSocket::bind(path) {
            Err(Error::SocketInUse { pid, .. }) => {
                assert_eq!(pid, Some(i32::try_from(std::process::id()).unwrap()));
            }
            other => panic!("{other:?}"),
        });
        let directory = tempfile::tempdir().unwrap();
        let stale = directory.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            drop(ControlSocket::bind(&stale).unwrap());
            let file = directory.path().join("file");
            fs::write(&file, "precious").unwrap();
            assert!(matches!(ControlSocket::bind(&file), Err(Error::Socket { .. })));
            assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        });
    }
}
