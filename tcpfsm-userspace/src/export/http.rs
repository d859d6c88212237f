//! The metrics address: `/metrics`, `/-/healthy`, `/-/ready`, and `/` to find them.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse as _, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tracing::warn;

use crate::error::{Error, Result};

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

/// Serves until `stop` is ready. `ready` says whether everything is attached.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<dyn Metrics>,
    ready: Arc<AtomicBool>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(show_metrics))
        .route("/-/healthy", get(|| async { "healthy\n" }))
        .route("/-/ready", get(show_ready))
        .with_state(Served { metrics, ready });
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        warn!("metrics are served no more: {error}");
    }
}

#[derive(Clone)]
struct Served {
    metrics: Arc<dyn Metrics>,
    ready: Arc<AtomicBool>,
}

async fn index() -> Html<&'static str> {
    Html(
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>tcpfsm</title><h1>tcpfsm</h1>\
         <ul><li><a href=/metrics>/metrics</a><li><a href=/-/healthy>/-/healthy</a>\
         <li><a href=/-/ready>/-/ready</a></ul></html>\n",
    )
}

async fn show_metrics(State(served): State<Served>) -> Response {
    // Rendering may wait for a sweep: not on a thread that others need.
    let rendered = tokio::task::spawn_blocking(move || served.metrics.render())
        .await
        .unwrap_or_else(|error| Err(Error::Answer(error.to_string())));
    match rendered {
        Ok(page) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn show_ready(State(served): State<Served>) -> (StatusCode, &'static str) {
    if served.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
