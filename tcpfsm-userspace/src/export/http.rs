//! The metrics address: `/metrics`, `/-/healthy`, `/-/ready`, and `/` to find them.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse as _, Response},
    routing::get,
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_io_timeout::TimeoutStream;
use tracing::warn;

use crate::error::{Error, Result};

/// Connections at a time; one more waits.
const MAX_CLIENTS: usize = 128;

/// A client whose first request is not there after so long is hung up on: anybody on this host may connect.
const FIRST: Duration = Duration::from_secs(5);

/// So is one that sends nothing, or reads nothing, for so long: longer than between two scrapes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the server serves.
pub trait Metrics: Send + Sync + 'static {
    /// Renders a page.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    fn render(&self) -> Result<String>;
}

/// Takes the address.
///
/// # Errors
/// It is in use, or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|cause| Error::Metrics { address, cause })
}

/// Serves until `stop` is ready; from its first answer on everything is attached.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<dyn Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(show_metrics))
        .route("/-/healthy", get(|| async { "healthy\n" }))
        .route("/-/ready", get(|| async { "ready\n" }))
        .with_state(metrics);
    let seats = Arc::new(Semaphore::new(MAX_CLIENTS));
    let clients = Clients { listener, seats, first: FIRST, patience: PATIENCE };
    if let Err(error) = axum::serve(clients, router).with_graceful_shutdown(stop).await {
        warn!("metrics are served no more: {error}");
    }
}

/// Lets clients in, so many at a time.
struct Clients {
    listener: TcpListener,
    seats: Arc<Semaphore>,
    first: Duration,
    patience: Duration,
}

impl Listener for Clients {
    type Io = Client;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Client, SocketAddr) {
        let Ok(seat) = Arc::clone(&self.seats).acquire_owned().await else { return pending().await };
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let mut stream = TimeoutStream::new(stream);
        stream.set_read_timeout(Some(self.patience));
        stream.set_write_timeout(Some(self.patience));
        let first = Some(Box::pin(sleep(self.first)));
        (Client { stream: Box::pin(stream), first, last: 0, _seat: seat }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A client, and its seat for as long as it stays.
struct Client {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    /// Ready when its first request is late; none once that is there.
    first: Option<Pin<Box<Sleep>>>,
    /// The last four bytes that came.
    last: u32,
    _seat: OwnedSemaphorePermit,
}

impl Client {
    /// A request without a body ends with an empty line.
    fn look_for_end(&mut self, came: &[u8]) {
        for &byte in came {
            self.last = self.last << 8 | u32::from(byte);
            if self.last == u32::from_be_bytes(*b"\r\n\r\n") {
                self.first = None;
            }
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.as_mut().is_some_and(|late| late.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = to.filled().len();
        let read = self.stream.as_mut().poll_read(cx, to);
        if self.first.is_some() {
            self.look_for_end(to.filled().get(before..).unwrap_or_default());
        }
        read
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

async fn index() -> Html<&'static str> {
    Html(
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>tcpfsm</title><h1>tcpfsm</h1>\
         <ul><li><a href=/metrics>/metrics</a><li><a href=/-/healthy>/-/healthy</a>\
         <li><a href=/-/ready>/-/ready</a></ul></html>\n",
    )
}

async fn show_metrics(State(metrics): State<Arc<dyn Metrics>>) -> Response {
    // Rendering may wait for a sweep: not on a thread that others need.
    let rendered = tokio::task::spawn_blocking(move || metrics.render())
        .await
        .unwrap_or_else(|error| Err(Error::Answer(error.to_string())));
    match rendered {
        Ok(page) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::*;

    /// A server with two seats.
    async fn serve_two(first: Duration, patience: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let clients = Clients { listener, seats: Arc::new(Semaphore::new(2)), first, patience };
        let router = Router::new().route("/", get(index));
        tokio::spawn(async move { axum::serve(clients, router).await });
        address
    }

    async fn ask(address: SocketAddr, connection: &str) -> TcpStream {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: {connection}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client
    }

    #[tokio::test]
    async fn who_says_nothing_is_hung_up_on_and_makes_room() {
        let first = Duration::from_secs(2);
        let address = serve_two(first, 100 * first).await;
        let mut silent = Vec::new();
        for _ in 0..2 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut waits = ask(address, "close").await;
        let mut page = String::new();
        let answered = timeout(first / 10, waits.read_to_string(&mut page)).await;
        assert!(answered.is_err(), "both seats are taken: {page}");
        waits.read_to_string(&mut page).await.unwrap();
        assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
        for mut client in silent {
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "hung up on");
        }
    }

    #[tokio::test]
    async fn who_has_asked_may_be_silent_for_longer() {
        let first = Duration::from_millis(500);
        let address = serve_two(first, 4 * first).await;
        let mut client = ask(address, "keep-alive").await;
        let (mut page, mut part) = (Vec::new(), [0; 4096]);
        while !page.ends_with(b"</html>\n") {
            let count = client.read(&mut part).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&page));
            page.extend_from_slice(&part[..count]);
        }
        assert!(timeout(2 * first, client.read(&mut part)).await.is_err(), "not hung up on yet");
        assert_eq!(client.read(&mut part).await.unwrap(), 0, "hung up on");
    }
}
