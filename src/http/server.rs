//! Sockets and time: the accept loop, one task per connection, and the way out.
//!
//! HTTP/1 only. A permit is taken before a connection is accepted, so one too many costs nothing; connections that nobody
//! uses make room for it. Every phase of a connection has its own clock: waiting for a request, receiving its head,
//! receiving its body (`limits`), computing (the request's deadline), sending (each slice in `stream`, the whole answer
//! here). On the way out the listener closes first, then every connection after the answer it is working on.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::rt::Write as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::config::HttpConfig;
use crate::http::stream::{ClientStream, Expired, Patience, Pulse, StreamLimits};
use crate::observe::metrics::{ConnectionEnd, Metrics};

/// When to stop, seen from the server.
#[derive(Debug, Clone)]
pub struct ShutdownSignals {
    stop: watch::Receiver<bool>,
    grace: Duration,
}

/// The other end: [`StopServing::stop`] makes every server that has the signals drain.
#[derive(Debug)]
pub struct StopServing(watch::Sender<bool>);

/// What became of the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeReport {
    /// Connections accepted in all.
    pub accepted: u64,
    /// Connections that were cut because the grace period had passed.
    pub cut: usize,
}

/// Answers requests until told to stop, then finishes what is in flight, for the grace period at most.
///
/// The listener is closed as soon as the stop signal arrives.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: &HttpConfig,
    metrics: Arc<Metrics>,
    mut shutdown: ShutdownSignals,
) -> ServeReport {
    let permits = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
    let (config, stop) = (config.clone(), shutdown.stop.clone());
    let shared = Arc::new(Shared { router, config, metrics, stop, crowded: Notify::new() });
    let mut connections = JoinSet::new();
    let mut accepted = 0;
    let mut backoff = Backoff::default();
    loop {
        let next = tokio::select! {
            () = shutdown.stopped() => break,
            next = accept(&listener, &permits, &shared) => next,
        };
        // Tasks that have ended are forgotten here, so that the set stays as small as the number of connections.
        while connections.try_join_next().is_some() {}
        match next {
            Ok((stream, permit)) => {
                accepted += 1;
                backoff = Backoff::default();
                connections.spawn(connection(stream, permit, Arc::clone(&shared)));
            }
            // These concern the connection that was to be accepted, not us.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                // Out of descriptors, of which idle connections hold most.
                shared.crowded.notify_waiters();
                backoff.pause(&error, &mut shutdown).await;
            }
        }
    }
    drop(listener);
    let drained =
        tokio::time::timeout(shutdown.grace, async { while connections.join_next().await.is_some() {} }).await;
    let cut = if drained.is_ok() { 0 } else { connections.len() };
    connections.shutdown().await;
    ServeReport { accepted, cut }
}

/// What all connections share.
struct Shared {
    router: Router,
    config: HttpConfig,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
    /// All permits are taken: who does not need its connection should close it.
    crowded: Notify,
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    shared: &Shared,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        permit
    } else {
        shared.metrics.http().connection_refused(ConnectionEnd::Limit);
        loop {
            shared.crowded.notify_waiters();
            let permit = tokio::time::timeout(IDLE_IN_A_CROWD, Arc::clone(permits).acquire_owned());
            if let Ok(permit) = permit.await {
                break permit.map_err(io::Error::other)?;
            }
        }
    };
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

/// Pauses after an accept that failed, growing while it keeps failing: out of file descriptors, the loop must not
/// spin while the connections that hold them end.
#[derive(Debug, Default)]
struct Backoff(u32);

impl Backoff {
    async fn pause(&mut self, error: &io::Error, shutdown: &mut ShutdownSignals) {
        if self.0 == 0 {
            tracing::warn!(%error, "cannot accept connections; trying again");
        }
        let pause = ACCEPT_PAUSE * 2_u32.pow(self.0.min(MAX_DOUBLINGS));
        self.0 += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.stopped() => {}
        }
    }
}

/// How long a connection may be unused where there is no other for a new client.
const IDLE_IN_A_CROWD: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
const MAX_DOUBLINGS: u32 = 6;

/// Serves one connection to its end.
async fn connection(stream: TcpStream, permit: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let Shared { config, metrics, .. } = &*shared;
    metrics.http().connection_opened();
    // Small answers must not wait for more to send.
    let _ = stream.set_nodelay(true);
    let HttpConfig { header_timeout, answer_timeout, idle_timeout, .. } = *config;
    let pulse = Pulse::new(Patience { head: header_timeout, answer: answer_timeout, idle: idle_timeout });
    let HttpConfig { write_timeout, max_header_bytes, max_headers, .. } = *config;
    let limits = StreamLimits { write_timeout, max_header_bytes, max_headers };
    let stream = ClientStream::new(stream, Arc::clone(&pulse), limits);
    let router = shared.router.clone();
    let service = {
        let pulse = Arc::clone(&pulse);
        service_fn(move |request| answer(router.clone(), Arc::clone(&pulse), request))
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Heads have a clock of their own, which tells idle connections from slow ones.
        .header_read_timeout(None)
        .max_header_size(config.max_header_bytes)
        .max_headers(config.max_headers)
        .max_buf_size(config.max_header_bytes.max(MIN_BUFFER_BYTES))
        .serve_connection(stream, service);
    let mut stop = ShutdownSignals { stop: shared.stop.clone(), grace: Duration::ZERO };
    let (mut leaving, mut told) = (false, false);
    loop {
        if leaving && !told {
            told = true;
            Pin::new(&mut connection).graceful_shutdown();
            pulse.leave();
        }
        tokio::select! {
            biased;
            // First, so that an answer that is written from now on says that it is the last one.
            () = stop.stopped(), if !leaving => leaving = true,
            ended = &mut connection => {
                match ended {
                    // Where the client has offered another protocol (Java's offer h2c), hyper hands the connection over
                    // unclosed. Any other is closed by now, and stays so.
                    Ok(()) => {
                        let mut stream = connection.into_parts().io;
                        // The client may have gone.
                        let _ = poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await;
                    }
                    Err(error) if error.is_parse() => metrics.http().connection_refused(ConnectionEnd::Malformed),
                    Err(_) => {}
                }
                break;
            }
            () = shared.crowded.notified(), if !leaving => leaving = pulse.is_idle_since(IDLE_IN_A_CROWD),
            expired = pulse.expired() => match expired {
                Expired::Idle if !leaving => leaving = true,
                // The guard of the exchange counts the client as gone.
                Expired::Idle | Expired::Answer => break,
                Expired::Head => {
                    metrics.http().connection_refused(ConnectionEnd::HeaderTimeout);
                    break;
                }
            }
        }
    }
    metrics.http().connection_closed();
    drop(permit);
}

/// One request on its way to the router.
async fn answer(
    router: Router,
    pulse: Arc<Pulse>,
    request: Request<Incoming>,
) -> Result<axum::response::Response, std::convert::Infallible> {
    pulse.answering();
    // Chunked, on a connection that has also announced lengths: if both stood in one head, a proxy before us may
    // have counted differently. This answer is the last one here, so no second request can hide in the difference.
    let doubtful = request.headers().contains_key(header::TRANSFER_ENCODING) && pulse.has_seen_length();
    let mut response = router.oneshot(request.map(Body::new)).await?;
    if doubtful {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if response.headers().contains_key(header::CONNECTION) {
        pulse.linger();
    }
    Ok(response.map(|body| Body::new(pulse.until_sent(body))))
}

// === impl ShutdownSignals ===

impl ShutdownSignals {
    /// Both ends; in-flight work gets `grace` after the stop.
    pub fn new(grace: Duration) -> (StopServing, Self) {
        let (sender, stop) = watch::channel(false);
        (StopServing(sender), Self { stop, grace })
    }

    /// Returns once the server is told to stop, or nobody is left who could tell it.
    async fn stopped(&mut self) {
        // An error means that the other end is gone, which is a stop as well.
        let _ = self.stop.wait_for(|stop| *stop).await;
    }
}

impl StopServing {
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Bodies are read in pieces of at most this size; a head has its own limit.
const MIN_BUFFER_BYTES: usize = 128 * 1024;
