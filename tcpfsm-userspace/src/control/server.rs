//! The daemon's end of the socket.

use std::{
    fs::{self, DirBuilder},
    future::Future,
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{fs::Mode, process::umask};
use tokio::{net::UnixListener, sync::Semaphore, task::JoinSet, time::timeout};
use tracing::debug;

use super::{client, office::Office};
use crate::error::{Error, Result};

/// Connections at a time; one more waits.
const MAX_CLIENTS: usize = 64;

/// At the daemon's end clients have so long to read what is there for them.
const GOOD_BYE: Duration = Duration::from_secs(1);

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
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
            Ok(_) => {
                return Err(failed(io::Error::other("there is a file of that name that is no socket")));
            }
            Err(_) => {}
        }
        // Nobody else may connect before its mode is set.
        let usual = umask(Mode::from_raw_mode(0o117));
        let listener = UnixListener::bind(path);
        umask(usual);
        let socket = Self { listener: listener.map_err(failed)?, path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(socket)
    }

    /// Serves clients until `over` is ready. Then nobody is let in any more, what it gives is dropped, and who is in has
    /// [`GOOD_BYE`] to read on.
    pub async fn serve<T>(self, office: Office, over: impl Future<Output = T>) {
        let seats = Arc::new(Semaphore::new(MAX_CLIENTS));
        let mut clients = JoinSet::new();
        tokio::pin!(over);
        let last = loop {
            tokio::select! {
                last = &mut over => break last,
                Some(_) = clients.join_next() => {}
                client = self.admit(&seats, &office) => match client {
                    Ok(client) => drop(clients.spawn(client)),
                    Err(error) => {
                        debug!("control socket: {error}");
                        // Out of descriptors, mostly: give others time to return some.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        };
        drop(self);
        drop(last);
        let leave = async { while clients.join_next().await.is_some() {} };
        if timeout(GOOD_BYE, leave).await.is_err() {
            clients.shutdown().await;
        }
    }

    /// Waits for a seat, and for a client to take it.
    async fn admit(
        &self,
        seats: &Arc<Semaphore>,
        office: &Office,
    ) -> io::Result<impl Future<Output = ()> + use<>> {
        let seat = Arc::clone(seats).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = self.listener.accept().await?;
        let office = office.clone();
        Ok(async move {
            if let Err(error) = office.serve(stream).await {
                debug!("a client of the control socket: {error}");
            }
            drop(seat);
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};

    use tokio::sync::broadcast;

    use super::{
        super::{
            filter::Filter,
            office::{Answers, CHUNK},
            protocol::Notice,
            stats::Stats,
        },
        *,
    };
    use crate::{
        clock::Wall,
        explain::story::Story,
        pipeline::{Losses, SharedGauges, synthetic::Conversation},
        report::{Body, ConnClosed, Report},
    };
    use std::net::SocketAddr;

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

    /// What tells of events, until it goes away.
    struct Events {
        sender: broadcast::Sender<Arc<Report>>,
        shared: SharedGauges,
    }

    impl Events {
        /// Tells of so many, once somebody watches.
        fn tell(&self, count: u64) {
            while self.sender.receiver_count() == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            for seq in 0..count {
                self.sender.send(report(seq)).unwrap();
            }
        }

        fn lost(&self) -> u64 {
            Losses::get(&self.shared.losses.watchers)
        }
    }

    /// Runs a server; `client` asks on a thread of its own. Ends with it.
    fn with_server(capacity: usize, client: impl FnOnce(&Path, &Events) + Send + 'static) -> SharedGauges {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/tcpfsm.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let shared = runtime.block_on(async {
            let socket = ControlSocket::bind(&path).unwrap();
            let shared = SharedGauges::default();
            let events = Events { sender: broadcast::channel(capacity).0, shared: Arc::clone(&shared) };
            let office = Office {
                answers: Arc::new(Fixed),
                events: events.sender.downgrade(),
                shared: Arc::clone(&shared),
            };
            let path = path.clone();
            let asked = tokio::task::spawn_blocking(move || client(&path, &events));
            socket.serve(office, async { asked.await.unwrap() }).await;
            shared
        });
        assert!(!path.exists(), "the socket's file goes away with it");
        shared
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
        with_server(4, |path, events| {
            let mut watcher = ask(path, r#"{"v":1,"request":"watch"}"#);
            // Told at once, more than the channel holds: the watcher's task cannot have taken them all.
            let mut sent = 0;
            while events.lost() == 0 {
                events.tell(10_000);
                sent += 10_000;
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
            assert_eq!(events.lost(), lost);
        });
    }

    #[test]
    fn at_the_end_a_watcher_reads_what_was_told() {
        let (seen, told) = std::sync::mpsc::channel();
        let shared = with_server(20_000, move |path, events| {
            let watcher = ask(path, r#"{"v":1,"request":"watch"}"#);
            events.tell(10_000);
            std::thread::spawn(move || seen.send(watcher.lines().map(Result::unwrap).count()));
        });
        assert_eq!(told.recv(), Ok(10_000), "and then the end of the file");
        assert_eq!(Losses::get(&shared.losses.watchers), 0);
    }

    #[test]
    fn what_a_watcher_does_not_read_at_the_end_is_counted() {
        let (kept, keeper) = std::sync::mpsc::channel();
        let shared = with_server(20_000, move |path, events| {
            kept.send(ask(path, r#"{"v":1,"request":"watch"}"#)).unwrap();
            events.tell(10_000);
        });
        // Whole lines in what was written, and those that were not.
        let seen =
            keeper.recv().unwrap().lines().map_while(Result::ok).filter(|line| line.ends_with('}')).count();
        let lost = Losses::get(&shared.losses.watchers);
        assert!(seen > 0 && lost > 0, "{seen} and {lost}");
        assert!((10_000..10_000 + CHUNK as u64 / 100).contains(&(seen as u64 + lost)), "{seen} and {lost}");
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
