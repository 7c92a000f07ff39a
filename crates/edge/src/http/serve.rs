//! The accept loop: connections with limits on their headers, and an end that lets running requests finish.

use super::state::{HttpSettings, Readiness};
use super::tls::Tls;
use app::App;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16_384;
/// How long a new connection may take until its first request is there.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to agree on keys.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request head.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// A server that is bound and ready to run.
pub struct Server {
    listener: TcpListener,
    router: Router,
    tls: Option<Tls>,
}

/// Binds an address. Done before anything is made, so that a busy port leaves nothing behind.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("the address {address} is in use; stop what listens there or choose another with --listen")
        }
        _ => format!("cannot listen on {address}: {e}; choose another with --listen"),
    })
}

impl Server {
    /// A server on a bound address. Fails when a route declares no permission.
    pub fn new(
        listener: TcpListener,
        app: App,
        readiness: Arc<dyn Readiness>,
        settings: HttpSettings,
        tls: Option<Tls>,
    ) -> Result<Server, String> {
        Ok(Server::of(listener, super::router(app, readiness, settings)?, tls))
    }

    /// The same for other routes.
    pub(crate) fn of(listener: TcpListener, router: Router, tls: Option<Tls>) -> Server {
        Server { listener, router, tls }
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` ends; then takes no new connection and waits for running requests, at most `grace`.
    pub async fn run(self, stop: impl Future<Output = ()>, grace: Duration) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (connections, closing) = (TaskTracker::new(), CancellationToken::new());
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let (stream, peer, place) = accepted;
            let service = self.router.clone();
            let closing = closing.clone();
            let acceptor = self.tls.as_ref().map(Tls::acceptor);
            connections.spawn(async move {
                let _place = place;
                welcome(stream, peer, acceptor, service, closing).await;
            });
        }
        drop(self.listener);
        closing.cancel();
        connections.close();
        if tokio::time::timeout(grace, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "connections were cut off at the end of the grace time");
        }
    }
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit) {
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { continue };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) => {
                // Out of file descriptors, or a client that left: the next one may fare better.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves a connection, in the clear or after its handshake.
async fn welcome(stream: TcpStream, peer: SocketAddr, acceptor: Option<TlsAcceptor>, router: Router, closing: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let Some(acceptor) = acceptor else { return serve(stream, peer, router, closing).await };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, peer, router, closing).await,
        Ok(Err(error)) => tracing::debug!(%error, %peer, "a handshake failed"),
        Err(_) => tracing::debug!(%peer, "a handshake took too long"),
    }
}

async fn serve<S>(stream: S, peer: SocketAddr, router: Router, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = Arc::new(AtomicBool::new(false));
    let first = begun.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        first.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().call(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEADER_TIMEOUT)
        .max_concurrent_streams(256)
        .max_header_list_size(HEADER_BYTES_MAX as u32);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // The library waits for as long as it takes to learn which version of HTTP is spoken.
    let silent = async {
        tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        if begun.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome,
        () = silent => return,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, %peer, "a connection ended early");
    }
}
